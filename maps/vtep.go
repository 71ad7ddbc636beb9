// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// VTEPs is vx_vtep: index -> outer header. Index 0 stays empty.
type VTEPs struct{ m *ebpf.Map }

// VTEP is everything that makes the outer header towards one remote.
type VTEP struct {
	VTEPKey
	Device         uint32  // ifindex to send from
	SrcMAC, DstMAC fdb.MAC // DstMAC is the next hop's
	MACs           bool    // both MACs are right now, and the daemon keeps them so while its lease lasts
	MTU            uint16  // path MTU, outer IP header included
}

// VTEPKey is what tells two outer headers apart for good: the rest follows the
// route and may change.
type VTEPKey struct {
	Local, Remote netip.Addr // IPv4
	Port          uint16     // UDP destination port, host order
	TTL           uint8
	Low, High     uint16 // UDP source ports, host order; the kernel uses Low up to High-1
}

// Template builds the value that the programs read: the outer header with all
// that does not change per packet, lengths, id and checksum left 0 (RFC 791,
// RFC 768, RFC 7348 section 5). TOS 0, don't-fragment clear, UDP checksum 0.
func (v VTEP) Template() bpf.VTEP {
	var t bpf.VTEP
	o := t.Outer[:]
	copy(o[0:6], v.DstMAC[:])
	copy(o[6:12], v.SrcMAC[:])
	binary.BigEndian.PutUint16(o[12:], 0x0800)
	ip := o[14:34]
	ip[0] = 0x45
	ip[8] = v.TTL
	ip[9] = 17
	src, dst := v.Local.As4(), v.Remote.As4()
	copy(ip[12:16], src[:])
	copy(ip[16:20], dst[:])
	udp := o[34:42]
	binary.BigEndian.PutUint16(udp[2:], v.Port)
	o[42] = 0x08 // the I flag: the VNI is valid
	t.Csum = sum16(ip)
	t.Flags = bpf.VTEPReady
	if v.MACs {
		t.Flags |= bpf.VTEPMACs
	}
	t.Mtu = v.MTU
	t.PortMin = v.Low
	t.PortRange = v.High - v.Low
	t.Ifindex = v.Device
	t.Remote = be32(v.Remote)
	return t
}

// sum16 is the folded one's complement sum of the words as they lie in memory (RFC 1071).
func sum16(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.NativeEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// Put writes the template at an index. Programs read it without a lock, so the
// MACs are declared wrong before they change and right after: a program that
// sees half of the change asks the neighbour table.
func (t *VTEPs) Put(index uint32, v VTEP) error {
	val := v.Template()
	var old bpf.VTEP
	if err := t.m.Lookup(index, &old); err != nil {
		return fmt.Errorf("look up VTEP %d (map holds %d): %w", index, t.m.MaxEntries(), err)
	}
	if old == val {
		return nil
	}
	steps := []bpf.VTEP{val}
	if val.Flags&bpf.VTEPMACs != 0 {
		quiet := val
		quiet.Flags &^= bpf.VTEPMACs
		calm := old
		calm.Flags &^= bpf.VTEPMACs
		steps = []bpf.VTEP{calm, quiet, val}
	}
	for _, s := range steps {
		if err := t.m.Put(index, s); err != nil {
			return fmt.Errorf("put VTEP %d (%v): %w", index, v.Remote, err)
		}
	}
	return nil
}

// Clear empties an index, so that it can serve another VTEP.
func (t *VTEPs) Clear(index uint32) error {
	if err := t.m.Put(index, bpf.VTEP{}); err != nil {
		return fmt.Errorf("clear VTEP %d: %w", index, err)
	}
	return nil
}

// Len is how many indexes there are, 0 included.
func (t *VTEPs) Len() uint32 { return t.m.MaxEntries() }

// All reads the indexes in use.
func (t *VTEPs) All() (map[uint32]VTEP, error) {
	out := map[uint32]VTEP{}
	var k uint32
	var b bpf.VTEP
	it := t.m.Iterate()
	for it.Next(&k, &b) {
		if b.Flags&bpf.VTEPReady == 0 {
			continue
		}
		o := b.Outer[:]
		v := VTEP{
			VTEPKey: VTEPKey{
				Local: netip.AddrFrom4([4]byte(o[26:30])), Remote: addr4(b.Remote),
				Port: binary.BigEndian.Uint16(o[36:]), TTL: o[22], Low: b.PortMin, High: b.PortMin + b.PortRange,
			},
			Device: b.Ifindex, MACs: b.Flags&bpf.VTEPMACs != 0, MTU: b.Mtu,
		}
		copy(v.DstMAC[:], o[0:6])
		copy(v.SrcMAC[:], o[6:12])
		out[k] = v
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read VTEP map: %w", err)
	}
	return out, nil
}
