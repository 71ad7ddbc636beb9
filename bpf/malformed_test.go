// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Frames that nobody should send; the world is that of prog_test.go.
//
//	underlay ── anything ──► vx_tc_decap ─┬─► what the kernel would deliver: the inner frame, to its own network
//	                                      └─► all else: to the kernel, not a bit changed
//	port ────── anything ──► vx_tc_encap ─┬─► a right outer header around it
//	                                      └─► to the kernel, not a bit changed

// knobs is a state of the world as a number, so that a fuzzer can turn it.
type knobs uint64

const (
	knobIPv6       knobs = 1 << iota // underlay
	knobClamp                        // MSS clamp, to 100 and knobMSS
	knobTTLInherit                   // outer header of both VTEPs
	knobTOSInherit
	knobTTLAuto
	knobDF     // 2 bits
	_          //
	knobNoMACs // nobody knows the next hop's
	knobNoZero6
	knobNoLease
	knobTooBig   // the underlay said so just now
	knobVerified // the device has verified the packet's outermost checksum
	knobAnyNow   // every MAC is due for a refresh
	knobTTL      = 16
	knobTOS      = 24
	knobLabel    = 32
	knobMSS      = 52
)

func (k knobs) has(bit knobs) bool { return k&bit != 0 }

func (k knobs) underlay() underlay {
	if k.has(knobIPv6) {
		return under6
	}
	return under4
}

func (k knobs) clampMTU() int { return 100 + int(k>>knobMSS&0xfff) }

func (k knobs) vtep(v maps.VTEP) maps.VTEP {
	v.TTLInherit, v.TOSInherit, v.MACs = k.has(knobTTLInherit), k.has(knobTOSInherit), !k.has(knobNoMACs)
	v.TOS, v.HopLimit = uint8(k>>knobTOS)&^3, 61
	if v.TTL = uint8(k >> knobTTL); k.has(knobTTLAuto) {
		v.TTL = 0
	}
	if v.Remote.Is6() {
		v.FlowLabel = uint32(k>>knobLabel) & 0xfffff
	} else {
		v.DF = maps.DF(k / knobDF & 3 % 3)
	}
	return v
}

// turn brings the maps into the state; a family that was there before needs no reset.
func (l *lab) turn(t testing.TB, k knobs) {
	t.Helper()
	if l.on != k.underlay() {
		l.on = k.underlay()
		l.reset(t)
	}
	l.resetFDB()
	if k.has(knobAnyNow) {
		table, _ := l.entries()
		for key := range table {
			l.editKey(bpf.NewFDBKey(uint16(key.Net), key.MAC), func(e *bpf.FDBEntry) { e.Seen = ago(refresh + time.Minute) })
		}
	}
	p, n := l.portAt(), l.network()
	n.ZeroCsum6 = !k.has(knobNoZero6)
	if k.has(knobClamp) {
		p.MSS, n.MSS = uint16(k.clampMTU()), uint16(k.clampMTU())
	}
	must(l.set.Ports.Put(l.port, p))
	must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
	n.Net = otherID
	must(l.set.Networks.Put(maps.NetworkKey{VNI: otherVNI, Port: 4789}, n))
	must(l.set.VTEPs.Put(indexVTEP1, k.vtep(l.vtep(l.on.vtep1))))
	must(l.set.VTEPs.Put(indexVTEP2, k.vtep(l.vtep(l.on.vtep2))))
	until := maps.Now()
	if !k.has(knobNoLease) {
		until += time.Hour
	}
	must(l.set.Control.SetLease(until))
	var heard time.Duration
	if k.has(knobTooBig) {
		heard = maps.Now()
	}
	l.setTooBig(heard)
}

// objection is why BPF must not carry a packet, "" if it may. It repeats what the
// RFCs and the kernel's receive path demand, not what the program does.
type objection string

// nd is neighbour discovery, types 133 to 137 of RFC 4861.
func nd(b []byte) bool {
	at := ethHdr + ip6Hdr
	return binary.BigEndian.Uint16(b[12:]) == 0x86dd && len(b) > at && b[ethHdr+6] == 58 && b[at] >= 133 && b[at] <= 137
}

// ip finds the inner header complete.
func ip(b []byte) objection {
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		if len(b) < ethHdr+ip4Hdr {
			return "short IPv4 header"
		}
	case 0x86dd:
		if len(b) < ethHdr+ip6Hdr {
			return "short IPv6 header"
		}
	default:
		return "not IP"
	}
	if nd(b) {
		return "neighbour discovery"
	}
	return ""
}

// mayDecap judges a packet from the underlay. It returns the network that its VNI names.
func (k knobs) mayDecap(l *lab, b []byte, gsoSize uint16) (fdb.NetID, objection) {
	u := k.underlay()
	head := u.len()
	be := binary.BigEndian
	switch {
	case gsoSize != 0:
		return 0, "aggregate"
	case len(b) < head+ethHdr:
		return 0, "short"
	case [6]byte(b) != underlayMAC:
		return 0, "sent to another host, or to a group"
	}
	p := b[ethHdr:]
	var from, to netip.Addr
	if u.v6() {
		switch {
		case be.Uint16(b[12:]) != 0x86dd:
			return 0, "not IPv6"
		case p[0]>>4 != 6:
			return 0, "version"
		case p[6] != 17:
			return 0, "not UDP"
		case int(be.Uint16(p[4:])) != len(p)-ip6Hdr:
			return 0, "payload length"
		}
		from, to = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
	} else {
		switch {
		case be.Uint16(b[12:]) != 0x0800:
			return 0, "not IPv4"
		case p[0] != 0x45:
			return 0, "version or options"
		case p[9] != 17:
			return 0, "not UDP"
		case int(be.Uint16(p[2:])) != len(p):
			return 0, "total length"
		case be.Uint16(p[6:])&0xbfff != 0:
			return 0, "fragment"
		case sum(p[:ip4Hdr]) != 0xffff:
			return 0, "header checksum"
		}
		from, to = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
	}
	udp, vx, in := b[ethHdr+u.ipLen():], b[head-vxlanHdr:], b[head:]
	net := map[uint32]fdb.NetID{uint32(vni): netID, uint32(otherVNI): otherID}[be.Uint32(vx[4:])>>8]
	table, _ := l.entries()
	src, srcThere := table[fdb.Key{Net: net, MAC: fdb.MAC(in[6:12])}]
	dst, dstThere := table[fdb.Key{Net: net, MAC: fdb.MAC(in[:6])}]
	outside, inside := innerECN(b), innerECN(in)
	switch {
	case to != u.local:
		return net, "not our address"
	case be.Uint16(udp[2:]) != 4789:
		return net, "UDP port"
	case int(be.Uint16(udp[4:])) != len(udp):
		return net, "UDP length"
	case be.Uint16(udp[6:]) != 0 && !k.has(knobVerified):
		return net, "UDP checksum that nobody verified"
	case be.Uint16(udp[6:]) == 0 && u.v6() && k.has(knobNoZero6):
		return net, "no UDP checksum"
	case be.Uint32(vx) != 0x08000000 || vx[7] != 0:
		return net, "VXLAN flags and reserved bits"
	case net == 0:
		return net, "VNI"
	case !srcThere || src.Kind != fdb.Remote || !src.VTEP.IsValid() || src.VTEP != from:
		return net, "source"
	case k.has(knobAnyNow) && !src.Static:
		return net, "due for a refresh"
	case in[0]&1 != 0:
		return net, "broadcast"
	case !dstThere || dst.Kind != fdb.Peer && dst.Kind != fdb.Host:
		return net, "destination"
	case dst.Kind == fdb.Peer && dst.Static && k.has(knobNoLease):
		return net, "no lease"
	case len(in)-ethHdr > overlayMTU:
		return net, "size"
	}
	if o := ip(in); o != "" {
		return net, o
	}
	if outside == ce && inside == notECT || outside == ect1 && inside == ect0 {
		return net, "congestion marks"
	}
	return net, ""
}

func innerECN(b []byte) uint8 {
	if len(b) < ethHdr+2 {
		return 0
	}
	if binary.BigEndian.Uint16(b[12:]) == 0x86dd {
		return b[ethHdr+1] >> 4 & 3
	}
	return b[ethHdr+1] & 3
}

// mayEncap judges a frame from the port.
func (k knobs) mayEncap(l *lab, b []byte, gsoSize uint16) objection {
	u := k.underlay()
	table, _ := l.entries()
	src := table[fdb.Key{Net: netID, MAC: fdb.MAC(b[6:12])}]
	dst := table[fdb.Key{Net: netID, MAC: fdb.MAC(b[:6])}]
	outerLen := len(b) + u.len() - ethHdr
	switch {
	case gsoSize != 0:
		return "test packets have no kind of GSO"
	case src.Kind == fdb.Remote || src.Port != l.port:
		return "source"
	case k.has(knobAnyNow) && !src.Static:
		return "due for a refresh"
	case b[0]&1 != 0:
		return "broadcast"
	case dst.Kind != fdb.Remote || !dst.VTEP.IsValid():
		return "destination"
	case dst.Static && k.has(knobNoLease):
		return "no lease"
	case len(b)-ethHdr > overlayMTU, outerLen > underlayMTU:
		return "size"
	case k.has(knobTooBig) && outerLen > narrowest[u.v6()]:
		return "path MTU"
	}
	return ip(b)
}

// moved is one counter, and by how much it went up.
type moved struct {
	net    fdb.NetID
	reason bpf.Reason
	n      maps.Count
}

// tally is the counters of one hook: of both networks, and of network 0, which is none.
func (l *lab) tally(h bpf.Hook) (out []moved) {
	var cpus []bpf.NetCount
	for _, id := range []fdb.NetID{0, netID, otherID} {
		must(l.obj.VxCount.Lookup(uint32(id), &cpus))
		for r := range bpf.Reason(bpf.Reasons) {
			m := moved{net: id, reason: r}
			for i := range cpus {
				m.n.Packets += cpus[i].By[r][h].Packets
				m.n.Bytes += cpus[i].By[r][h].Bytes
			}
			out = append(out, m)
		}
	}
	return out
}

// since is what moved after an earlier tally, or the last reset.
func since(before, now []moved) (out []moved) {
	for i, m := range now {
		if before != nil {
			m.n.Packets -= before[i].n.Packets
			m.n.Bytes -= before[i].n.Bytes
		}
		if m.n != (maps.Count{}) {
			out = append(out, m)
		}
	}
	return out
}

// try runs a frame through a program and checks all that must hold. It returns the counter that moved, if one did.
func (l *lab) try(t testing.TB, h bpf.Hook, k knobs, b []byte, gsoSize uint16) *moved {
	t.Helper()
	if h == bpf.HookDecap {
		return l.tryDecap(t, k, b, gsoSize)
	}
	return l.tryEncap(t, k, b, gsoSize)
}

// observe runs a frame and checks what holds for any: the verdict is one of two, a
// packet for the kernel is as it was, one counter moves at most, no entry is made
// and none removed but that of a source that moved. It returns the counter, if
// one moved, and the packet where BPF carries it. ran: the kernel takes such a test frame.
func (l *lab) observe(t testing.TB, h bpf.Hook, k knobs, b []byte, gsoSize uint16) (counted *moved, carried []byte, ran bool) {
	t.Helper()
	l.turn(t, k)
	before := l.tally(h)
	p := l.program(h)
	if k.has(knobVerified) {
		p = l.through(t, shim{verified: true}, h).Program
	}
	verdict, out, err := l.exec(p, b, skBuff{Ifindex: l.device(h), GSOSize: uint32(gsoSize)}, 1)
	switch {
	case refused(err):
		return nil, nil, false
	case err != nil:
		t.Fatal(err)
	case verdict != actUnspec && verdict != actRedirect:
		t.Errorf("verdict %d", verdict)
	case verdict == actUnspec && !bytes.Equal(out, b):
		t.Errorf("to the kernel, but changed:\n%s", cmp.Diff(b, out))
	}
	changes := since(before, l.tally(h))
	if len(changes) > 1 || len(changes) == 1 && changes[0].n.Packets != 1 {
		t.Fatalf("counters moved: %v", changes)
	}
	if len(changes) == 1 {
		counted = &changes[0]
	}
	if fast := counted != nil && counted.reason == bpf.Fast; fast != (verdict == actRedirect) {
		t.Errorf("verdict %d, counted %v", verdict, counted)
	}
	l.checkFDB(t, counted, h, b)
	if verdict == actRedirect {
		carried = out
	}
	return counted, carried, true
}

func (l *lab) checkFDB(t testing.TB, counted *moved, h bpf.Hook, b []byte) {
	t.Helper()
	table, index := l.entries()
	var k bpf.FDBKey
	var v bpf.FDBEntry
	seen := 0
	for it := l.obj.VxFdb.Iterate(); it.Next(&k, &v); {
		key := fdb.Key{Net: fdb.NetID(k.Net()), MAC: k.MAC()}
		e, ok := table[key]
		if to := map[bool]uint32{true: index[key], false: e.Port}[e.Kind == fdb.Remote]; !ok || fdb.Kind(v.Kind) != e.Kind || v.To != to || v.Mtu != e.MTU {
			t.Errorf("entry %v is %+v, was %+v (there: %v)", key, v, e, ok)
		}
		delete(table, key)
		seen++
	}
	if len(table) == 0 {
		return
	}
	if counted == nil && h == bpf.HookDecap && len(table) == 1 {
		// Behind options, extension headers, in a first fragment: not counted, but the kernel may learn from it.
		for key := range table {
			if !bytes.Contains(b, key.MAC[:]) {
				t.Errorf("entry %v is gone, and the packet is not from there", key)
			}
		}
		return
	}
	if counted == nil || counted.reason != reason("src_moved") || len(table) != 1 {
		t.Fatalf("%d entries are gone, %d left, counted %v", len(table), seen, counted)
	}
	if h == bpf.HookDecap {
		b = b[ethHdr+outerIP(b)+udpHdr+vxlanHdr:]
	}
	if _, ok := table[fdb.Key{Net: counted.net, MAC: fdb.MAC(b[6:12])}]; !ok {
		t.Errorf("%v is gone, the frame came from %v", table, fdb.MAC(b[6:12]))
	}
}

func (l *lab) tryDecap(t testing.TB, k knobs, b []byte, gsoSize uint16) *moved {
	t.Helper()
	counted, out, ran := l.observe(t, bpf.HookDecap, k, b, gsoSize)
	if !ran {
		return nil
	}
	net, objection := k.mayDecap(l, b, gsoSize)
	if counted != nil && (net == 0 && objection == "VNI" || net != 0 && counted.net != net) {
		t.Errorf("counted for network %d, the packet's is %d", counted.net, net)
	}
	if heard, want := l.tooBig(), k.has(knobTooBig) || complains(b); (heard != 0) != want {
		t.Errorf("a \"too big\" was heard %v ago (0: never), want %v", heard, want)
	}
	if out == nil {
		return counted
	}
	if objection != "" {
		t.Fatalf("carried in spite of %s", objection)
	}
	head := l.on.len()
	if want := uint64(len(b) - head); counted.n.Bytes != want {
		t.Errorf("counted %d bytes, want %d", counted.n.Bytes, want)
	}
	want := bytes.Clone(b[head:])
	if innerECN(b) == ce && innerECN(want) != notECT {
		mark(want)
	}
	k.checkInner(t, want, out)
	return counted
}

func (l *lab) tryEncap(t testing.TB, k knobs, b []byte, gsoSize uint16) *moved {
	t.Helper()
	counted, out, ran := l.observe(t, bpf.HookEncap, k, b, gsoSize)
	if !ran {
		return nil
	}
	if counted == nil || counted.net != netID {
		t.Errorf("counted %v, want one packet of network %d", counted, netID)
	} else if counted.n.Bytes != uint64(len(b)) {
		t.Errorf("counted %d bytes, want %d", counted.n.Bytes, len(b))
	}
	if out == nil {
		return counted
	}
	if o := k.mayEncap(l, b, gsoSize); o != "" {
		t.Fatalf("carried in spite of %s", o)
	}
	v := k.vtep(l.vtep(l.on.vtep1))
	if fdb.MAC(b[:6]) == dave {
		v = k.vtep(l.vtep(l.on.vtep2))
	}
	if len(out) <= l.on.len() {
		t.Fatalf("carried %d bytes", len(out))
	}
	k.checkInner(t, b, out[l.on.len():])
	checkEncap(t, v, vni, out[l.on.len():], out)
	return counted
}

// checkInner compares inner frames byte by byte but for what a clamp may change.
func (k knobs) checkInner(t testing.TB, want, out []byte) {
	t.Helper()
	if k.has(knobClamp) {
		checkClamp(t, want, out, k.clampMTU())
	} else if !bytes.Equal(want, out) {
		t.Errorf("inner frame (-want +got):\n%s", cmp.Diff(want, out))
	}
}

// mark is IP_ECN_set_ce: the checksum follows by RFC 1624.
func mark(b []byte) {
	if binary.BigEndian.Uint16(b[12:]) == 0x86dd {
		b[ethHdr+1] |= ce << 4
		return
	}
	ip := b[ethHdr:]
	if ip[1]&3 == ce {
		return
	}
	was := uint16(ip[1])
	now := was | uint16(ce)
	sum := uint32(^binary.BigEndian.Uint16(ip[10:])) + uint32(^was) + uint32(now)
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	ip[1] = byte(now)
}

// complains says whether a packet is a "too big" message for us, as TestTooBigHeard has it.
func complains(b []byte) bool {
	if len(b) < ethHdr+ip4Hdr || [6]byte(b) != underlayMAC && b[0]&1 == 0 || [6]byte(b) == broadcast {
		return false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		return len(b) >= under4.len()+ethHdr && b[ethHdr] == 0x45 && b[ethHdr+9] == 1 && b[ethHdr+ip4Hdr] == 3 && b[ethHdr+ip4Hdr+1] == 4
	case 0x86dd:
		return len(b) >= under6.len()+ethHdr && b[ethHdr+6] == 58 && b[ethHdr+ip6Hdr] == 2 && b[ethHdr+ip6Hdr+1] == 0
	}
	return false
}

// Every bit of the outer header, with and without a checksum that covers the
// change up: either the packet is the kernel's, untouched, or the bit is one
// that no receiver cares about, and the inner frame comes out as it went in.
func TestDecapBitFlips(t *testing.T) {
	l := newLab(t, nil)
	// Bits that may differ, by byte of the outer header. Those inside an IPv4 header need the checksum made right.
	mac := map[int]byte{6: 0xff, 7: 0xff, 8: 0xff, 9: 0xff, 10: 0xff, 11: 0xff} // source
	free4 := map[int]byte{
		15: 0xff,           // TOS: an inner Not-ECT packet stays as it is whatever ECT(0) or ECT(1) is outside
		18: 0xff, 19: 0xff, // IP id
		20: 0x40,           // don't fragment
		22: 0xff,           // TTL
		24: 0xff, 25: 0xff, // the checksum itself, where it is made right again
		34: 0xff, 35: 0xff, // UDP source port
	}
	free6 := map[int]byte{
		14: 0x0f, 15: 0xff, 16: 0xff, 17: 0xff, // class, likewise, and flow label
		21: 0xff,           // hop limit
		54: 0xff, 55: 0xff, // UDP source port
	}
	for _, s := range l.decapScenes(t) {
		l.on = s.underlay
		l.reset(t)
		free := map[bool]map[int]byte{false: free4, true: free6}[s.v6()]
		good := s.received(inner{tcp: true})
		for bit := range s.len() * 8 {
			for _, fixed := range []bool{false, true} {
				n, mask := bit/8, byte(1)<<(bit%8)
				b := bytes.Clone(good)
				b[n] ^= mask
				inIP := !s.v6() && n >= ethHdr && n < ethHdr+ip4Hdr
				if fixed && inIP {
					fixIPSum(b)
				}
				l.resetFDB()
				before := l.tally(bpf.HookDecap)
				verdict, out := l.frame(t, bpf.HookDecap, b)
				net := netID
				if n == s.len()-2 && mask == 1 {
					net = otherID // the VNI says so
				}
				if mac[n] != 0 || net == otherID || free[n]&mask != 0 && (fixed || !inIP) {
					if verdict != actRedirect || !bytes.Equal(out, good[s.len():]) {
						t.Errorf("%v byte %d bit %#02x, checksum fixed %v: verdict %d, want %d and the inner frame", s, n, mask, fixed, verdict, actRedirect)
					}
					if c := since(before, l.tally(bpf.HookDecap)); len(c) != 1 || c[0].net != net || c[0].reason != bpf.Fast {
						t.Errorf("%v byte %d bit %#02x: counted %v, want network %d", s, n, mask, c, net)
					}
				} else if verdict != actUnspec || !bytes.Equal(out, b) {
					t.Errorf("%v byte %d bit %#02x, checksum fixed %v: verdict %d, want %d and the frame as it was", s, n, mask, fixed, verdict, actUnspec)
				}
			}
		}
	}
}

// RFC 7348 section 5: the I flag set, all else 0. What the kernel makes of another value depends on its options.
func TestDecapVXLANBits(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range []scene{{under4, false}, {under6, false}} {
		l.on = s.underlay
		l.reset(t)
		good := s.received(inner{})
		at := s.len() - vxlanHdr
		var changes []uint64
		for n := range 64 {
			for m := range n + 1 {
				changes = append(changes, 1<<n|1<<m)
			}
		}
		for _, x := range append(changes, 1<<63|1<<59, ^uint64(0)) {
			if reserved := uint64(0xffffffff_000000ff); x&reserved == 0 {
				continue // another VNI: TestVNIs
			}
			b := bytes.Clone(good)
			binary.BigEndian.PutUint64(b[at:], binary.BigEndian.Uint64(b[at:])^x)
			if verdict, out := l.frame(t, bpf.HookDecap, b); verdict != actUnspec || !bytes.Equal(out, b) {
				t.Errorf("%v: VXLAN header %x: verdict %d, want %d and the frame as it was", s, b[at:s.len()], verdict, actUnspec)
			}
		}
		// Without the I flag it is no VXLAN packet, and not counted. The other 39 bits by ones and twos, or with the VNI's last.
		want := map[fdb.NetID]uint64{netID: 39 * 40 / 2, otherID: 39}
		for _, c := range since(nil, l.tally(bpf.HookDecap)) {
			if c.reason != reason("outer_malformed") || c.n.Packets != want[c.net] {
				t.Errorf("%v: counted %v, want %d", s, c, want[c.net])
			}
			delete(want, c.net)
		}
		if len(want) != 0 {
			t.Errorf("%v: not counted: %v", s, want)
		}
	}
}

// A frame that was cut is never carried, unless its outer lengths are those of
// a shorter packet: then it is one, down to an inner IP header.
func TestDecapTruncated(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range l.decapScenes(t) {
		l.on = s.underlay
		l.reset(t)
		good := s.received(inner{tcp: true, tcpOptions: 12, payload: 20})
		least := s.len() + ethHdr + s.inLen()
		// Shorter ones the kernel refuses as test frames: they say IP and have no IP header.
		for n := ethHdr + s.ipLen(); n < len(good); n++ {
			b := bytes.Clone(good[:n])
			l.resetFDB()
			if verdict, out := l.frame(t, bpf.HookDecap, b); verdict != actUnspec || !bytes.Equal(out, b) {
				t.Errorf("%v cut to %d bytes: verdict %d, want %d and the frame as it was", s, n, verdict, actUnspec)
			}
			if n < ethHdr+s.ipLen()+udpHdr {
				continue
			}
			fixLengths(b)
			l.resetFDB()
			verdict, out := l.frame(t, bpf.HookDecap, b)
			if n >= least {
				if verdict != actRedirect || !bytes.Equal(out, b[s.len():]) {
					t.Errorf("%v short packet of %d bytes: verdict %d, want %d and the inner frame", s, n, verdict, actRedirect)
				}
			} else if verdict != actUnspec || !bytes.Equal(out, b) {
				t.Errorf("%v short packet of %d bytes: verdict %d, want %d and the frame as it was", s, n, verdict, actUnspec)
			}
		}
	}
}

// Whatever there is behind an inner IP header is carried as it is.
func TestEncapTruncated(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		l.reset(t)
		good := s.sent(inner{tcp: true, tcpOptions: 12, payload: 20})
		for n := ethHdr + s.inLen(); n < len(good); n++ {
			l.carried(t, l.vtep(l.on.vtep1), good[:n])
		}
	}
}

// Frames of the tables, with bits flipped, bytes overwritten, cut, in worlds of
// all kinds: a short run of what the fuzzers do, on each `go test`.
func TestMangled(t *testing.T) {
	l := newLab(t, nil)
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	seeds := fuzzSeeds()
	carried := 0
	for n := range 3000 {
		x := seeds[r.IntN(len(seeds))]
		b, k := bytes.Clone(x.frame), x.knobs
		for range r.IntN(3) {
			k ^= 1 << r.IntN(64)
		}
		for range r.IntN(3) {
			at := r.IntN(min(len(b), 160))
			switch r.IntN(3) {
			case 0:
				b[at] ^= 1 << r.IntN(8)
			case 1:
				b[at] = byte(r.Uint32())
			case 2:
				b = b[:max(at, ethHdr+1)]
			}
		}
		if r.IntN(2) == 0 && len(b) > under6.len() && x.hook == bpf.HookDecap {
			fixLengths(b)
		}
		if !fits(b) {
			continue
		}
		t.Run("", func(t *testing.T) {
			if c := l.try(t, x.hook, k, b, x.gsoSize); c != nil && c.reason == bpf.Fast {
				carried++
			}
			if t.Failed() {
				t.Logf("seed %d, frame %d: vx_tc_%v knobs %#x gso %d: %x", seed, n, x.hook, uint64(k), x.gsoSize, b)
			}
		})
	}
	if carried < 150 {
		t.Errorf("%d of 3000 frames were carried: the test looks at little", carried)
	}
}
