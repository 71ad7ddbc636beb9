// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Networks is vx_vni: which VXLAN packets are ours.
type Networks struct{ m *ebpf.Map }

// NetworkKey names a network as a VXLAN packet does.
type NetworkKey struct {
	VNI  fdb.VNI
	Port uint16 // UDP destination port, host order
}

// Network is what the decapsulating side needs to know of a network.
type Network struct {
	Net   fdb.NetID
	Local netip.Addr // IPv4 address of our VTEP
	// Ageing is the kernel's, 0 for never. Refresh is how often the kernel must see a frame of each MAC.
	Ageing, Refresh time.Duration
	Off             bool // count, but leave every packet to the kernel
}

// Put writes one network.
func (n *Networks) Put(k NetworkKey, v Network) error {
	b := bpf.Network{Net: uint16(v.Net), Local: be32(v.Local), Refresh: uint64(v.Refresh), Ageing: uint64(v.Ageing)}
	if v.Off {
		b.Flags |= uint16(bpf.PlaceOff)
	}
	if err := n.m.Put(vniKey(k), b); err != nil {
		return fmt.Errorf("put network vni %v port %d: %w", k.VNI, k.Port, err)
	}
	return nil
}

// Delete removes a network; one that is not there is fine.
func (n *Networks) Delete(k NetworkKey) error {
	if err := n.m.Delete(vniKey(k)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete network vni %v port %d: %w", k.VNI, k.Port, err)
	}
	return nil
}

// All reads the whole map.
func (n *Networks) All() (map[NetworkKey]Network, error) {
	out := map[NetworkKey]Network{}
	var k bpf.VNIKey
	var v bpf.Network
	it := n.m.Iterate()
	for it.Next(&k, &v) {
		out[NetworkKey{VNI: fdb.VNI(k.Vni), Port: be16(k.Port)}] = Network{
			Net: fdb.NetID(v.Net), Local: addr4(v.Local), Ageing: time.Duration(v.Ageing),
			Refresh: time.Duration(v.Refresh), Off: uint32(v.Flags)&bpf.PlaceOff != 0,
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read VNI map: %w", err)
	}
	return out, nil
}

func vniKey(k NetworkKey) bpf.VNIKey { return bpf.VNIKey{Vni: uint32(k.VNI), Port: be16(k.Port)} }
