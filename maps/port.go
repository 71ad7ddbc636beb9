// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Ports is vx_port: which network an interface belongs to. Bridge ports, bridge
// devices and vxlan devices stand in it.
type Ports struct{ m *ebpf.Map }

// Port is what a program at an interface needs to know.
type Port struct {
	Net             fdb.NetID
	VNI             fdb.VNI
	MTU             uint16 // of the vxlan device, bytes after the Ethernet header
	MSS             uint16 // as in Network
	Ageing, Refresh time.Duration
	Off             bool // count, but leave every packet to the kernel
	// Of XDP at this port. Soft: as in Network. SG: the underlay device takes frames in several buffers.
	Soft, SG bool
}

// Put writes the port with this ifindex.
func (p *Ports) Put(ifindex uint32, v Port) error {
	var vni [4]byte
	binary.BigEndian.PutUint32(vni[:], uint32(v.VNI)<<8)
	b := bpf.Port{Net: uint16(v.Net), Mtu: v.MTU, Vni: binary.NativeEndian.Uint32(vni[:]),
		Mss: v.MSS, Refresh: uint64(v.Refresh), Ageing: uint64(v.Ageing)}
	for flag, on := range map[uint32]bool{bpf.PlaceOff: v.Off, bpf.PlaceSoft: v.Soft, bpf.PlaceSG: v.SG} {
		if on {
			b.Flags |= flag
		}
	}
	if err := p.m.Put(ifindex, b); err != nil {
		return fmt.Errorf("put port %d (map holds %d): %w", ifindex, p.m.MaxEntries(), err)
	}
	return nil
}

// Delete removes a port; one that is not there is fine.
func (p *Ports) Delete(ifindex uint32) error {
	if err := p.m.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete port %d: %w", ifindex, err)
	}
	return nil
}

// All reads the whole map, by ifindex.
func (p *Ports) All() (map[uint32]Port, error) {
	out := map[uint32]Port{}
	var k uint32
	var v bpf.Port
	it := p.m.Iterate()
	for it.Next(&k, &v) {
		var vni [4]byte
		binary.NativeEndian.PutUint32(vni[:], v.Vni)
		out[k] = Port{Net: fdb.NetID(v.Net), VNI: fdb.VNI(binary.BigEndian.Uint32(vni[:]) >> 8), MTU: v.Mtu, MSS: v.Mss,
			Ageing: time.Duration(v.Ageing), Refresh: time.Duration(v.Refresh), Off: v.Flags&bpf.PlaceOff != 0,
			Soft: v.Flags&bpf.PlaceSoft != 0, SG: v.Flags&bpf.PlaceSG != 0}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read port map: %w", err)
	}
	return out, nil
}
