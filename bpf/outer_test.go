// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// What the outer header says, field by field; the world is that of prog_test.go.
//
//	Ethernet | IPv4: TOS, id, DF, TTL, checksum | UDP: source port | VXLAN: VNI | inner frame
//	         | IPv6: class, label, hop limit    |

// carried encapsulates a frame and demands that it goes the fast path.
func (l *lab) carried(t testing.TB, v maps.VTEP, in []byte) []byte {
	t.Helper()
	must(l.set.VTEPs.Put(indexVTEP1, v))
	verdict, out := l.frame(t, bpf.HookEncap, in)
	if verdict != actRedirect {
		t.Fatalf("verdict %d, want %d", verdict, actRedirect)
	}
	checkEncap(t, v, vni, in, out)
	return out
}

// auto is a VTEP whose TTL and source are the system's.
func auto(v maps.VTEP) maps.VTEP {
	v.TTL, v.HopLimit = 0, 61
	v.Local = netip.Addr{}
	return v
}

func TestEncapTTL(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		for _, c := range []struct {
			name    string
			key     uint8
			inherit bool
			inner   int
			want    uint8
		}{
			{"number", 7, false, 33, 7},
			{"largest", 255, false, 33, 255},
			{"the system's", 0, false, 33, 61},
			{"inherited", 0, true, 33, 33},
			{"inherited 1", 0, true, 1, 1},
			{"inherited 255", 0, true, 255, 255},
			{"inherited 0 is the system's", 0, true, -1, 61},
		} {
			t.Run(s.String()+"/"+c.name, func(t *testing.T) {
				l.reset(t)
				v := auto(l.vtep(l.on.vtep1))
				v.TTL, v.TTLInherit = c.key, c.inherit
				out := l.carried(t, v, s.sent(inner{ttl: c.inner}))
				if got := out[ethHdr+map[bool]int{false: 8, true: 7}[s.v6()]]; got != c.want {
					t.Errorf("outer TTL %d, want %d", got, c.want)
				}
			})
		}
	}
}

// RFC 6040 section 4.1 for the lower two bits; DSCP stays inside unless it is inherited.
func TestEncapTOS(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		l.reset(t)
		for _, inherit := range []bool{false, true} {
			for _, number := range []uint8{0, 0x28, 0xfc} {
				v := l.vtep(l.on.vtep1)
				v.TOS, v.TOSInherit = number, inherit
				for tos := range 256 {
					out := l.carried(t, v, s.sent(inner{tos: uint8(tos)}))
					want := number
					if inherit {
						want = uint8(tos) &^ 3
					}
					want |= [...]uint8{notECT, ect1, ect0, ect0}[tos&3]
					got := out[ethHdr+1]
					if s.v6() {
						got = uint8(binary.BigEndian.Uint16(out[ethHdr:]) >> 4)
					}
					if got != want {
						t.Errorf("%v, TOS %#x, inherit %v, inner %#x: outer TOS %#x, want %#x", s, number, inherit, tos, got, want)
					}
				}
			}
		}
	}
}

func TestEncapDF(t *testing.T) {
	l := newLab(t, nil)
	for df, want := range map[maps.DF][3]bool{ // inner IPv4 without and with DF, inner IPv6
		maps.DFUnset:   {false, false, false},
		maps.DFSet:     {true, true, true},
		maps.DFInherit: {false, true, true},
	} {
		for n, i := range []inner{{noDF: true}, {}, {v6: true}} {
			v := l.vtep(l.on.vtep1)
			v.DF = df
			out := l.carried(t, v, scenes[0].sent(i))
			if got := out[ethHdr+6]; got != map[bool]byte{false: 0, true: 0x40}[want[n]] || out[ethHdr+7] != 0 {
				t.Errorf("DF %d, inner %d: flags %#x %#x, want DF %v", df, n, got, out[ethHdr+7], want[n])
			}
		}
	}
	// Only the flag itself is inherited: not "more fragments", not the offset, not the reserved bit.
	v := l.vtep(l.on.vtep1)
	v.DF = maps.DFInherit
	for _, frag := range []uint16{0x2000, 0x8000, 0x1fff, 0x6000, 0xffff} {
		l.carried(t, v, scenes[0].sent(inner{patch: func(b []byte) { binary.BigEndian.PutUint16(b[ethHdr+6:], frag); fixIPSum(b) }}))
	}
}

func TestEncapFlowLabel(t *testing.T) {
	l := newLab(t, nil)
	l.on = under6
	for _, s := range scenes[2:] {
		for _, label := range []uint32{0, 1, 0x12345, 0xfffff} {
			for _, tos := range []uint8{0, 0x0c, 0xff} { // the class is next to the label
				l.reset(t)
				v := l.vtep(l.on.vtep1)
				v.FlowLabel, v.TOSInherit = label, true
				out := l.carried(t, v, s.sent(inner{tos: tos}))
				if got := binary.BigEndian.Uint32(out[ethHdr:]); got>>28 != 6 || got&0xfffff != label {
					t.Errorf("first word %#08x, want version 6 and label %#x", got, label)
				}
			}
		}
	}
}

// Any options, any frame: checkEncap builds the whole header anew, and gopacket
// finds all checksums right, the inner ones still too.
func TestEncapProperty(t *testing.T) {
	l := newLab(t, nil)
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for n := range 3000 {
		s := scenes[r.IntN(len(scenes))]
		if l.on != s.underlay {
			l.on = s.underlay
			l.reset(t)
		}
		v, in := randomVTEP(r, l.vtep(l.on.vtep1)), s.sent(randomInner(r))
		out := l.carried(t, v, in)
		for _, b := range [][]byte{out, out[s.len():]} {
			if err := checksums(b); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Fatalf("frame %d of seed %d: %v %+v", n, seed, s, v)
		}
	}
}

func randomVTEP(r *rand.Rand, v maps.VTEP) maps.VTEP {
	flip := func() bool { return r.IntN(2) == 0 }
	v.TTL, v.HopLimit = uint8(r.IntN(256)), uint8(1+r.IntN(255))
	if v.TTLInherit = flip(); v.TTLInherit && flip() {
		v.TTL = 0
	}
	v.TOS, v.TOSInherit = uint8(r.IntN(64)<<2), flip()
	if v.Remote.Is6() {
		v.FlowLabel = r.Uint32N(1 << 20)
	} else {
		v.DF = maps.DF(r.IntN(3))
		from, to := v.Src.As4(), v.Remote.As4()
		from[3], to[2] = byte(r.Uint32()), byte(r.Uint32())
		v.Src, v.Remote = netip.AddrFrom4(from), netip.AddrFrom4(to)
	}
	v.Port = uint16(r.Uint32())
	v.Low = uint16(r.IntN(65535))
	v.High = v.Low + 1 + uint16(r.IntN(int(65535-v.Low)))
	v.MACs = flip()
	for i := range v.SrcMAC {
		v.SrcMAC[i], v.DstMAC[i] = byte(r.Uint32())&^1, byte(r.Uint32())&^1
	}
	return v
}

func randomInner(r *rand.Rand) inner {
	flip := func() bool { return r.IntN(2) == 0 }
	return inner{v6: flip(), tos: uint8(r.Uint32()), ttl: 1 + r.IntN(255), noDF: flip(), tcp: flip(), ipOptions: 4 * r.IntN(11),
		tcpOptions: 4 * r.IntN(11), extension: flip(), sport: uint16(1024 + r.IntN(60000)), payload: r.IntN(1200)}
}

// The program's own flow hash: all fragments of a packet go one way although
// only the first has ports, and so they do whatever the later ones carry there.
func TestEncapFragmentsKeepTogether(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range []scene{{under4, false}, {under6, false}} {
		l.on = s.underlay
		l.reset(t)
		port := func(frag uint16, ports uint32) uint16 {
			in := s.sent(inner{})
			binary.BigEndian.PutUint16(in[14+6:], frag)
			binary.BigEndian.PutUint32(in[34:], ports)
			out := l.carried(t, l.vtep(l.on.vtep1), in)
			return binary.BigEndian.Uint16(out[ethHdr+s.ipLen():])
		}
		const moreFragments, offset = 0x2000, 185
		first := port(moreFragments, 1111<<16|2222)
		for i, got := range []uint16{port(moreFragments|offset, 0xdeadbeef), port(2*offset, 0x12345678)} {
			if got != first {
				t.Errorf("%v: fragment %d leaves from source port %d, the first from %d", s, i+2, got, first)
			}
		}
		if port(0, 1111<<16|2222) == port(0, 1112<<16|2222) && port(0, 1113<<16|2222) == port(0, 1114<<16|2222) {
			t.Errorf("%v: whole packets of different flows share source ports", s)
		}
	}
}

// The outer header is made from a template: nothing of one packet may leak into the next, and the parts that vary must.
func TestEncapVaries(t *testing.T) {
	l := newLab(t, nil)
	const flows = 64
	for _, s := range scenes {
		l.on = s.underlay
		l.reset(t)
		ids, ports := map[uint16]bool{}, map[uint16]bool{}
		for n := range flows {
			in := s.sent(inner{sport: uint16(10000 + n)})
			var first uint16
			for again := range 3 {
				out := l.carried(t, l.vtep(l.on.vtep1), in)
				ids[binary.BigEndian.Uint16(out[18:])] = true
				port := binary.BigEndian.Uint16(out[ethHdr+s.ipLen():])
				if again == 0 {
					first = port
				} else if port != first {
					t.Errorf("%v: flow %d has source ports %d and %d", s, n, first, port)
				}
			}
			ports[first] = true
		}
		// By chance, 192 ids out of 65536 and 64 ports out of 28232 collide hardly ever, and never that often.
		if !s.v6() && len(ids) < 180 {
			t.Errorf("%v: %d different IP ids in %d packets", s, len(ids), 3*flows)
		}
		if len(ports) < 56 {
			t.Errorf("%v: %d different source ports for %d flows", s, len(ports), flows)
		}
	}
}

// Each part of an inner flow's identity counts: flows that differ in one part only spread over source ports.
func TestEncapFlowHash(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		l.reset(t)
		ip := ethHdr
		parts := map[string]int{"source address": ip + 15, "destination address": ip + 19, "source port": ip + ip4Hdr + 1, "destination port": ip + ip4Hdr + 3}
		if s.in6 {
			parts = map[string]int{"source address, upper half": ip + 10, "source address, lower half": ip + 23, "destination address, upper half": ip + 30,
				"destination address, lower half": ip + 39, "source port": ip + ip6Hdr + 1, "destination port": ip + ip6Hdr + 3}
		}
		for name, at := range parts {
			ports := map[uint16]bool{}
			for n := range 32 {
				out := l.carried(t, l.vtep(l.on.vtep1), s.sent(inner{patch: func(b []byte) { b[at] = byte(n) }}))
				ports[binary.BigEndian.Uint16(out[ethHdr+s.ipLen():])] = true
			}
			if len(ports) < 24 {
				t.Errorf("%v: %d source ports for 32 flows that differ by %s", s, len(ports), name)
			}
		}
	}
}

// udp_flow_src_port: the hash, its upper half made to count, scaled to the range.
func TestEncapSourcePort(t *testing.T) {
	l := newLab(t, nil)
	kernel := func(hash, low, high uint32) uint16 {
		hash ^= hash << 16
		return uint16(uint64(hash)*uint64(high-low)>>32) + uint16(low)
	}
	for _, s := range scenes {
		l.on = s.underlay
		at := ethHdr + s.ipLen()
		for _, r := range [][2]uint16{{srcLow, srcHigh}, {0, 65535}, {50000, 50001}, {1, 2}, {0, 1}, {65534, 65535}, {777, 777}, {65535, 65535}} {
			for _, hash := range []uint32{1, 2, 0xffff, 0x10000, 0x12345678, 0x7fffffff, 0x80000000, 0xffffffff} {
				l.reset(t)
				v := l.vtep(l.on.vtep1)
				v.Low, v.High = r[0], r[1]
				must(l.set.VTEPs.Put(indexVTEP1, v))
				in := s.sent(inner{})
				_, out, err := l.exec(l.through(t, shim{hash: hash}, bpf.HookEncap).Program, in, skBuff{Ifindex: l.port}, 1)
				if err != nil {
					t.Fatal(err)
				}
				checkEncap(t, v, vni, in, out)
				if got, want := binary.BigEndian.Uint16(out[at:]), kernel(hash, uint32(r[0]), uint32(r[1])); got != want {
					t.Errorf("%v: hash %#x in %v: source port %d, want %d", s, hash, r, got, want)
				}
			}
		}
		l.reset(t)
		// Without a hash the program makes one; the packet keeps it.
		in := s.sent(inner{tcp: true})
		_, out := l.frame(t, bpf.HookEncap, in)
		state := l.probe(t, shim{}, bpf.HookEncap, in, skBuff{Ifindex: l.port})
		if got, want := binary.BigEndian.Uint16(out[at:]), kernel(state.Hash, srcLow, srcHigh); state.Hash == 0 || got != want {
			t.Errorf("%v: hash %#x: source port %d, want %d", s, state.Hash, got, want)
		}
	}
}

// RFC 6040 section 4.2 as Linux has it since 5.8 (INET_ECN_decapsulate): outer CE
// marks or drops, outer ECT(1) turns an inner ECT(0) into ECT(1). A mark is made
// in BPF, the others are the kernel's. A packet that is shared, or whose checksum
// the device summed up whole (CHECKSUM_COMPLETE), does not come out of
// BPF_PROG_TEST_RUN: the mark on those is left to the end-to-end tests.
func TestDecapECN(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		for out := range uint8(4) {
			for in := range uint8(4) {
				for _, tcp := range []bool{false, true} {
					t.Run(fmt.Sprintf("%v outer %s inner %s tcp=%v", s, ecnName[out], ecnName[in], tcp), func(t *testing.T) {
						l.reset(t)
						needMixed(t, s.in6 != s.v6())
						b := s.received(inner{tcp: tcp, tos: 0xb8 | in}, func(o *outer) { o.tos(0x28 | out) })
						verdict, got := l.frame(t, bpf.HookDecap, b)
						want := b[s.len():]
						switch {
						case out == ce && in != notECT:
							want = s.arrived(inner{tcp: tcp, tos: 0xb8 | ce}).frame()
						case out == ce, out == ect1 && in == ect0:
							if verdict != actUnspec || !bytes.Equal(got, b) {
								t.Errorf("verdict %d, want %d and the frame as it was: the kernel judges", verdict, actUnspec)
							}
							return
						}
						if verdict != actRedirect || !bytes.Equal(got, want) {
							t.Errorf("verdict %d, want %d and this inner frame (-want +got):\n%s", verdict, actRedirect, cmp.Diff(want, got))
						}
						if err := checksums(got); err != nil {
							t.Error(err)
						}
					})
				}
			}
		}
	}
}

func TestVNIs(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		for _, n := range []fdb.VNI{0, 1, 255, 256, 65536, fdb.MaxVNI - 1, fdb.MaxVNI} {
			l.reset(t)
			p := l.portAt()
			p.VNI = n
			must(l.set.Ports.Put(l.port, p))
			must(l.set.Networks.Put(maps.NetworkKey{VNI: n, Port: 4789}, l.network()))
			in := s.sent(inner{})
			verdict, out := l.frame(t, bpf.HookEncap, in)
			if verdict != actRedirect {
				t.Errorf("%v, VNI %v: encap verdict %d, want %d", s, n, verdict, actRedirect)
			}
			checkEncap(t, l.vtep(l.on.vtep1), n, in, out)

			b := s.received(inner{}, func(o *outer) { o.vxlan.VNI = uint32(n) })
			if verdict, out := l.frame(t, bpf.HookDecap, b); l.takes(s) && (verdict != actRedirect || !bytes.Equal(out, b[s.len():])) {
				t.Errorf("%v, VNI %v: decap verdict %d, want %d and the inner frame", s, n, verdict, actRedirect)
			}
			must(l.set.Networks.Delete(maps.NetworkKey{VNI: n, Port: 4789}))
			if verdict, out := l.frame(t, bpf.HookDecap, b); verdict != actUnspec || !bytes.Equal(out, b) {
				t.Errorf("%v, VNI %v of somebody else: verdict %d, want %d and the frame as it was", s, n, verdict, actUnspec)
			}
		}
	}
}

// Two networks, one of each family: a packet counts only for the one that its
// VNI names, and only from an address that is that network's VTEP in full.
func TestFamiliesKeepApart(t *testing.T) {
	l := newLab(t, nil)
	mapped := addr("::ffff:192.0.2.12")
	for _, c := range []struct {
		name    string
		network underlay // what the maps say
		remote  string   // VTEP of bob, "" for the one in the drawing
		packet  []byte
		reason  bpf.Reason
	}{
		{"IPv6 packet, IPv4 network", under4, "", scene{underlay: under6}.received(inner{}), reason("outer_not_local")},
		{"IPv4 packet, IPv6 network", under6, "", scene{underlay: under4}.received(inner{}), reason("outer_not_local")},
		{"IPv6 group, IPv4 network", under4, "", toGroup(under6), reason("outer_not_local")},
		{"IPv4 group, IPv6 network", under6, "", toGroup(under4), reason("outer_not_local")},
		{"IPv4 packet, VTEP is its mapped address", under6, mapped.String(), scene{underlay: under4}.received(inner{}), reason("outer_not_local")},
		{"IPv6 packet from the mapped address", under6, mapped.String(), from(under6, mapped.String()), bpf.Fast},
		{"IPv6 packet from the mapped address of an IPv4 VTEP", under6, "192.0.2.12", from(under6, mapped.String()), reason("src_moved")},
		// maps writes IPv4 into the first word.
		{"IPv6 packet, IPv4 VTEP has the same words", under6, "192.0.2.12", from(under6, "c000:20c::"), reason("src_moved")},
		{"IPv4 packet, IPv6 VTEP has the same first word", under4, "c000:20c::1", scene{underlay: under4}.received(inner{}), reason("src_moved")},
		{"IPv4 packet, IPv6 VTEP has the same words", under4, "c000:20c::", scene{underlay: under4}.received(inner{}), reason("src_moved")},
		{"source differs in the first word", under6, "", from(under6, "2001:db9:1::12"), reason("src_moved")},
		{"source differs in the second word", under6, "", from(under6, "2001:db8:1:1::12"), reason("src_moved")},
		{"source differs in the third word", under6, "", from(under6, "2001:db8:1::1:0:12"), reason("src_moved")},
		{"source differs in the fourth word", under6, "", from(under6, "2001:db8:1::112"), reason("src_moved")},
		{"destination differs in the first word", under6, "", to(under6, "2001:db9:1::11"), reason("outer_not_local")},
		{"destination differs in the second word", under6, "", to(under6, "2001:db8:1:1::11"), reason("outer_not_local")},
		{"destination differs in the third word", under6, "", to(under6, "2001:db8:1::1:0:11"), reason("outer_not_local")},
		{"destination differs in the fourth word", under6, "", to(under6, "2001:db8:1::111"), reason("outer_not_local")},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.on = c.network
			progCase{hook: bpf.HookDecap, frame: c.packet, reason: c.reason, prepare: func(l *lab) {
				if c.remote == "" {
					return
				}
				v := l.vtep(addr(c.remote))
				if v.Remote.Is4() {
					v.Src, v.Local = under4.local, under4.local
				} else {
					v.Src, v.Local = under6.local, under6.local
				}
				must(l.set.VTEPs.Put(indexVTEP1, v))
			}}.run(t, l)
		})
	}
	// A VTEP without an outer header has no address that a packet could come from: not the unspecified one either.
	for _, s := range scenes {
		l.on = s.underlay
		unspecified := map[bool]string{false: "0.0.0.0", true: "::"}[s.v6()]
		progCase{hook: bpf.HookDecap, frame: s.received(inner{src: lost}, func(o *outer) { o.from(addr(unspecified)) }), reason: reason("src_moved")}.run(t, l)
	}
}

func from(u underlay, a string) []byte {
	return scene{underlay: u}.received(inner{}, func(o *outer) { o.from(addr(a)) })
}

func to(u underlay, a string) []byte {
	return scene{underlay: u}.received(inner{}, func(o *outer) { o.to(addr(a)) })
}

func toGroup(u underlay) []byte {
	return scene{underlay: u}.received(inner{}, func(o *outer) { o.eth.DstMAC = group[:]; o.to(u.group) })
}

// A packet of one family must not read the other's length of headers.
func TestOuterEtherType(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		l.reset(t)
		b := s.received(inner{}, func(o *outer) {
			o.eth.EthernetType = map[bool]layers.EthernetType{true: layers.EthernetTypeIPv4, false: layers.EthernetTypeIPv6}[o.v6]
		})
		if verdict, out := l.frame(t, bpf.HookDecap, b); verdict != actUnspec || !bytes.Equal(out, b) {
			t.Errorf("%v under the other EtherType: verdict %d, want %d and the frame as it was", s, verdict, actUnspec)
		}
	}
}
