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
	Local netip.Addr // address of our VTEP; its family is that of the outer packets
	// MSS is the largest TCP segment plus its IP and TCP headers, in bytes, that a SYN may announce. 0: any.
	MSS uint16
	// ZeroCsum6: an outer UDP checksum of 0 is fine over IPv6 (RFC 6935).
	ZeroCsum6 bool
	// Ageing is the kernel's, 0 for never. Refresh is how often the kernel must see a frame of each MAC.
	Ageing, Refresh time.Duration
	Off             bool // count, but leave every packet to the kernel
}

// Put writes one network.
func (n *Networks) Put(k NetworkKey, v Network) error {
	b := bpf.Network{Net: uint16(v.Net), Local: words(v.Local), Mss: v.MSS, Refresh: uint64(v.Refresh), Ageing: uint64(v.Ageing)}
	if v.Off {
		b.Flags |= uint16(bpf.PlaceOff)
	}
	if v.Local.Is6() {
		b.Flags |= uint16(bpf.PlaceV6)
	}
	if v.ZeroCsum6 {
		b.Flags |= uint16(bpf.PlaceZero6)
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
			Net: fdb.NetID(v.Net), Local: addr(v.Local, uint32(v.Flags)&bpf.PlaceV6 != 0), MSS: v.Mss, Ageing: time.Duration(v.Ageing),
			Refresh: time.Duration(v.Refresh), Off: uint32(v.Flags)&bpf.PlaceOff != 0, ZeroCsum6: uint32(v.Flags)&bpf.PlaceZero6 != 0,
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read VNI map: %w", err)
	}
	return out, nil
}

func vniKey(k NetworkKey) bpf.VNIKey { return bpf.VNIKey{Vni: uint32(k.VNI), Port: be16(k.Port)} }
