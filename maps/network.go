// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
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
	// Guard: the network is on the kernel path, and only the source check is ours. Implies Off.
	Guard bool
	Check Check
	// MAC of the underlay device. Zero: XDP leaves the network alone.
	MAC fdb.MAC
	// Soft: received frames may lack a transport checksum that a device was to fill in.
	Soft bool
}

// Check says how outer sources are checked.
type Check struct {
	// Off: whoever reaches us may send.
	Off bool
	// Follow: the list follows the kernel's FDB, so it counts while a daemon does that.
	Follow bool
}

func (c Check) flags() (f uint16) {
	if c.Off {
		f |= uint16(bpf.PlaceAny)
	}
	if c.Follow {
		f |= uint16(bpf.PlaceFollow)
	}
	return f
}

// Put writes one network.
func (n *Networks) Put(k NetworkKey, v Network) error {
	b := bpf.Network{Net: uint16(v.Net), Local: words(v.Local), Mss: v.MSS, Refresh: uint64(v.Refresh), Ageing: uint64(v.Ageing)}
	b.Flags = v.Check.flags()
	if v.Off || v.Guard {
		b.Flags |= uint16(bpf.PlaceOff)
	}
	if v.Soft {
		b.Flags |= uint16(bpf.PlaceSoft)
	}
	var mac [8]byte
	copy(mac[:], v.MAC[:])
	b.Mac = binary.NativeEndian.Uint64(mac[:])
	if v.Guard {
		b.Flags |= uint16(bpf.PlaceGuard)
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
		if k.Vni == bpf.VNIPort {
			continue
		}
		var mac [8]byte
		binary.NativeEndian.PutUint64(mac[:], v.Mac)
		has := func(flag uint32) bool { return uint32(v.Flags)&flag != 0 }
		out[NetworkKey{VNI: fdb.VNI(k.Vni), Port: be16(k.Port)}] = Network{
			Net: fdb.NetID(v.Net), Local: addr(v.Local, has(bpf.PlaceV6)), MSS: v.Mss, Ageing: time.Duration(v.Ageing),
			Refresh: time.Duration(v.Refresh), Off: has(bpf.PlaceOff), ZeroCsum6: has(bpf.PlaceZero6),
			MAC: fdb.MAC(mac[:6]), Soft: has(bpf.PlaceSoft), Guard: has(bpf.PlaceGuard), Check: Check{Off: has(bpf.PlaceAny), Follow: has(bpf.PlaceFollow)},
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read VNI map: %w", err)
	}
	return out, nil
}

func vniKey(k NetworkKey) bpf.VNIKey { return bpf.VNIKey{Vni: uint32(k.VNI), Port: be16(k.Port)} }

// SetPorts says which UDP ports are ours, and how a packet to one of them is
// checked that does not show its VNI. Ports that are not in the list are not ours
// any more. Check by port is that of the most generous network there.
func (n *Networks) SetPorts(want map[uint16]Check) error {
	all := map[uint16]Check{}
	for p, c := range want {
		all[p] = c
	}
	// Port 0 stands for all: a packet that does not even show its port.
	if len(want) > 0 {
		var c Check
		for _, w := range want {
			c.Off, c.Follow = c.Off || w.Off, c.Follow || w.Follow
		}
		all[0] = c
	}
	var gone []bpf.VNIKey
	var k bpf.VNIKey
	var v bpf.Network
	it := n.m.Iterate()
	for it.Next(&k, &v) {
		if _, ok := all[be16(k.Port)]; k.Vni == bpf.VNIPort && !ok {
			gone = append(gone, k)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read VNI map: %w", err)
	}
	for p, c := range all {
		if err := n.m.Put(bpf.VNIKey{Vni: bpf.VNIPort, Port: be16(p)}, bpf.Network{Net: bpf.SourceUnion, Flags: c.flags()}); err != nil {
			return fmt.Errorf("put UDP port %d: %w", p, err)
		}
	}
	for _, k := range gone {
		if err := n.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete UDP port %d: %w", be16(k.Port), err)
		}
	}
	return nil
}
