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
	Src            netip.Addr // outer source address: Local, or the route's where Local is not set
	HopLimit       uint8      // outer TTL where the key has none
	Device         uint32     // ifindex to send from
	SrcMAC, DstMAC fdb.MAC    // DstMAC is the next hop's
	MACs           bool       // both MACs are right now, and the daemon keeps them so while its lease lasts
	MTU            uint16     // path MTU, outer IP header included
	Off            bool       // there is no way to it now: packets that come from it are its all the same
}

// VTEPKey is what tells two outer headers apart for good: the rest follows the
// route and may change.
type VTEPKey struct {
	Local, Remote netip.Addr // of one family; Local is invalid where the route chooses
	OIF           uint32     // ifindex that the route is asked to leave by, 0: any
	Port          uint16     // UDP destination port, host order
	Low, High     uint16     // UDP source ports, host order; the kernel uses Low up to High-1
	TTL           uint8      // 0: the route's, or the system's
	TOS           uint8      // DSCP in the upper 6 bits (RFC 2474); the lower two are ECN's
	DF            DF
	TTLInherit    bool // from the inner packet, where that is IP
	TOSInherit    bool
	FlowLabel     uint32 // IPv6, 20 bits
}

// DF is what the outer don't-fragment flag follows; IPv4 only. The numbers are
// the kernel's (enum ifla_vxlan_df).
type DF uint8

// The values of DF.
const (
	DFUnset   DF = iota
	DFSet        // always set
	DFInherit    // as in the inner packet; IPv6 counts as set
)

const dontFragment = 0x40 // in the upper byte of flags and fragment offset

// Template builds the value that the programs read: the outer header with all
// that does not change per packet, lengths, id and checksum left 0 (RFC 791,
// RFC 8200, RFC 768). UDP checksum 0 (RFC 7348 section 5, RFC 6935).
func (v VTEP) Template() bpf.VTEP {
	t := bpf.VTEP{Flags: bpf.VTEPKnown, Mtu: v.MTU, PortMin: v.Low, PortRange: v.High - v.Low, Ifindex: v.Device,
		Tos: v.TOS &^ 3, Ttl: v.TTL, Remote: words(v.Remote), Oif: v.OIF}
	for flag, on := range map[uint16]bool{
		bpf.VTEPReady: !v.Off, bpf.VTEPMACs: v.MACs, bpf.VTEPV6: v.Remote.Is6(), bpf.VTEPTTLInherit: v.TTLInherit, bpf.VTEPTOSInherit: v.TOSInherit,
		bpf.VTEPDFInherit: v.DF == DFInherit, bpf.VTEPTTLAuto: v.TTL == 0, bpf.VTEPSrcAuto: !v.Local.IsValid(),
	} {
		if on {
			t.Flags |= flag
		}
	}
	if v.TTL == 0 {
		t.Ttl = v.HopLimit
	}
	o := t.Outer[:]
	copy(o[0:6], v.DstMAC[:])
	copy(o[6:12], v.SrcMAC[:])
	ip, udp := o[14:34], o[34:42]
	if v.Remote.Is6() {
		ip, udp = o[14:54], o[54:62]
		binary.BigEndian.PutUint16(o[12:], 0x86dd)
		binary.BigEndian.PutUint32(ip, 6<<28|v.FlowLabel&0xfffff)
		ip[6] = 17
		copy(ip[8:24], v.Src.AsSlice())
		copy(ip[24:40], v.Remote.AsSlice())
	} else {
		binary.BigEndian.PutUint16(o[12:], 0x0800)
		ip[0] = 0x45
		if v.DF == DFSet {
			ip[6] = dontFragment
		}
		ip[9] = 17
		copy(ip[12:16], v.Src.AsSlice())
		copy(ip[16:20], v.Remote.AsSlice())
		t.Csum = sum16(ip)
	}
	binary.BigEndian.PutUint16(udp[2:], v.Port)
	return t
}

// parse is the inverse of Template.
func parse(b bpf.VTEP) VTEP {
	has := func(flag uint16) bool { return b.Flags&flag != 0 }
	v6 := has(bpf.VTEPV6)
	o := b.Outer[:]
	ip, udp := o[14:34], o[34:42]
	v := VTEP{
		VTEPKey: VTEPKey{Remote: addr(b.Remote, v6), OIF: b.Oif, Low: b.PortMin, High: b.PortMin + b.PortRange, TTL: b.Ttl, TOS: b.Tos,
			TTLInherit: has(bpf.VTEPTTLInherit), TOSInherit: has(bpf.VTEPTOSInherit)},
		Device: b.Ifindex, MACs: has(bpf.VTEPMACs), MTU: b.Mtu, Off: !has(bpf.VTEPReady),
	}
	if v6 {
		ip, udp = o[14:54], o[54:62]
		v.Src = netip.AddrFrom16([16]byte(ip[8:24]))
		v.FlowLabel = binary.BigEndian.Uint32(ip) & 0xfffff
	} else {
		v.Src = netip.AddrFrom4([4]byte(ip[12:16]))
		if ip[6] == dontFragment {
			v.DF = DFSet
		}
	}
	if has(bpf.VTEPDFInherit) {
		v.DF = DFInherit
	}
	if has(bpf.VTEPTTLAuto) {
		v.TTL, v.HopLimit = 0, b.Ttl
	}
	if !has(bpf.VTEPSrcAuto) {
		v.Local = v.Src
	}
	v.Port = binary.BigEndian.Uint16(udp[2:])
	copy(v.DstMAC[:], o[0:6])
	copy(v.SrcMAC[:], o[6:12])
	return v
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
		if b.Flags&bpf.VTEPKnown == 0 {
			continue
		}
		out[k] = parse(b)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read VTEP map: %w", err)
	}
	return out, nil
}
