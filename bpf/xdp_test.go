// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

// A test frame of XDP comes from loopback, so in these tests it is the port and the tap of the drawing.
const loopback = 1

type xdpCase struct {
	name    string
	hook    bpf.Hook
	prepare func(*lab)
	frame   []byte
	reason  bpf.Reason
	foreign bool                                   // goes up, not counted
	want    func(in []byte) []byte                 // of a frame that is carried; nil: without, or with, the outer header
	check   func(t *testing.T, l *lab, out []byte) // besides
}

// xdpLab is a lab whose ports take and deliver raw frames.
func (l *lab) xdpReset(t testing.TB) {
	t.Helper()
	l.reset(t)
	raw := func(m fdb.MAC, flags uint8, to uint32) {
		l.edit(m, func(e *bpf.FDBEntry) {
			e.Flags |= flags
			if to != 0 {
				e.To = to
			}
		})
	}
	raw(alice, bpf.EntryRaw, loopback)               // a stack: TCP goes up to GRO
	raw(tap, bpf.EntryRaw|bpf.EntryRawTCP, loopback) // a VM without offloads
	raw(sue, bpf.EntryRaw|bpf.EntryRawTCP, loopback) // static
	must(l.set.Ports.Put(loopback, l.portAt()))
	n := l.network()
	n.Check, n.MAC = maps.Check{}, underlayMAC
	must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
	n.Net = otherID
	must(l.set.Networks.Put(maps.NetworkKey{VNI: otherVNI, Port: 4789}, n))
	l.do(func() {
		for _, i := range []uint32{loopback, l.underlay} {
			must(l.set.Raw.Put(i))
		}
	})
	l.clearStrangers()
	// The VTEPs may send, nobody else.
	var list []maps.Source
	for _, a := range []fdb.NetID{netID, otherID} {
		list = append(list, maps.Source{Net: a, Prefix: netip.PrefixFrom(l.on.vtep1, l.on.vtep1.BitLen())}, maps.Source{Net: a, Prefix: netip.PrefixFrom(l.on.vtep2, l.on.vtep2.BitLen())})
	}
	must(l.set.Sources.Set(list))
}

func (l *lab) xdpProgram(h bpf.Hook) *ebpf.Program {
	if h == bpf.HookXDPEncap {
		return l.obj.VxXdpEncap
	}
	return l.obj.VxXdpDecap
}

func (l *lab) xdpNetwork(change func(*maps.Network)) func(*lab) {
	return func(l *lab) {
		n := l.network()
		n.Check, n.MAC = maps.Check{}, underlayMAC
		change(&n)
		must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
	}
}

func (c xdpCase) run(t *testing.T, l *lab) {
	l.xdpReset(t)
	if c.prepare != nil {
		c.prepare(l)
	}
	opts := ebpf.RunOptions{Data: c.frame, DataOut: make([]byte, len(c.frame)+256), Repeat: 1}
	var verdict uint32
	var err error
	l.do(func() { verdict, err = l.xdpProgram(c.hook).Run(&opts) })
	if err != nil {
		t.Fatal(err)
	}
	want := maps.Counts{}
	if !c.foreign {
		n := maps.Count{Packets: 1, Bytes: uint64(len(c.frame))}
		if c.hook == bpf.HookXDPDecap {
			n.Bytes -= uint64(l.on.len())
		}
		want[c.hook] = map[bpf.Reason]maps.Count{c.reason: n}
	}
	got, err := l.set.Counters.Read(netID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
	out := opts.DataOut
	wantVerdict := uint32(xdpPass)
	switch {
	case c.foreign:
	case c.reason == bpf.Fast:
		wantVerdict = xdpRedirect
	case c.reason.Drops():
		wantVerdict = xdpDrop
	}
	if verdict != wantVerdict {
		t.Errorf("verdict %d, want %d", verdict, wantVerdict)
	}
	switch {
	case verdict != xdpRedirect:
		if verdict == xdpPass && !bytes.Equal(out, c.frame) {
			t.Errorf("what goes up is another frame (-in +out):\n%s", cmp.Diff(c.frame, out))
		}
	case c.hook == bpf.HookXDPEncap:
		checkEncap(t, l.vtep(l.on.vtep1), vni, c.frame, out)
	default:
		w := c.frame[l.on.len():]
		if c.want != nil {
			w = c.want(c.frame)
		}
		if !bytes.Equal(out, w) {
			t.Errorf("decapsulated frame (-want +got):\n%s", cmp.Diff(w, out))
		}
	}
	if c.check != nil {
		c.check(t, l, out)
	}
}

func xdpCases(s scene) []xdpCase {
	const d, e = bpf.HookXDPDecap, bpf.HookXDPEncap
	mark := func(tos uint8) func(*outer) { return func(o *outer) { o.tos(tos) } }
	toTap := func(i inner) inner { i.dst = tap; return i }
	fromTap := func(i inner) inner { i.src = tap; return i }
	soft := func(l *lab) { l.xdpNetwork(func(n *maps.Network) { n.Soft = true })(l) }
	softPort := func(l *lab) { p := l.portAt(); p.Soft = true; must(l.set.Ports.Put(loopback, p)) }
	unsummed := func(i inner) inner {
		i.patch = func(b []byte) { b[len(b)-1] ^= 0xff }
		return i
	}
	stamped := func(m fdb.MAC) func(*testing.T, *lab, []byte) {
		return func(t *testing.T, l *lab, _ []byte) {
			if maps.Now()-time.Duration(l.entry(m).Slow) > time.Second {
				t.Errorf("the next frames of %v may overtake this one", m)
			}
		}
	}
	clamp := func(l *lab) { l.xdpNetwork(func(n *maps.Network) { n.MSS = 1400 })(l) }
	return []xdpCase{
		{name: "udp to a container", hook: d, frame: s.received(inner{}), reason: bpf.Fast},
		{name: "tcp to a container", hook: d, frame: s.received(inner{tcp: true}), reason: reason("port_kind")},
		{name: "udp to a VM", hook: d, frame: s.received(toTap(inner{})), reason: bpf.Fast},
		{name: "tcp to a VM", hook: d, frame: s.received(toTap(inner{tcp: true})), reason: bpf.Fast},
		{name: "the largest", hook: d, frame: s.wrap(s.arrived(inner{}).sized(overlayMTU + ethHdr)), reason: bpf.Fast},
		{name: "larger than the port takes", hook: d, frame: s.wrap(s.arrived(inner{}).sized(overlayMTU + ethHdr + 1)), reason: reason("mtu")},
		{name: "a stranger", hook: d, frame: s.received(inner{}, func(o *outer) { o.from(s.stranger) }), reason: bpf.DropStranger, check: kept(bob)},
		{name: "a stranger, an unknown MAC", hook: d, frame: s.received(inner{src: nobody}, func(o *outer) { o.from(s.stranger) }), reason: bpf.DropStranger},
		{name: "a stranger, network off", hook: d, prepare: l7(func(n *maps.Network) { n.Off = true }), frame: s.received(inner{}, func(o *outer) { o.from(s.stranger) }), reason: bpf.DropStranger},
		{name: "moved to another VTEP", hook: d, frame: s.received(inner{}, func(o *outer) { o.from(s.vtep2) }), reason: reason("src_moved"), check: kept(bob)},
		{name: "unknown source", hook: d, frame: s.received(inner{src: nobody}), reason: reason("src_unknown")},
		{name: "unknown destination", hook: d, frame: s.received(inner{dst: nobody}), reason: reason("dst_unknown")},
		{name: "a VTEP's destination", hook: d, frame: s.received(inner{dst: dave}), reason: reason("dst_remote")},
		{name: "broadcast", hook: d, frame: s.wrap(arp(bob)), reason: bpf.BUM},
		{name: "to the host", hook: d, frame: s.received(inner{dst: hostMAC}), reason: reason("port_kind")},
		{name: "neighbour discovery", hook: d, frame: s.received(icmp6(135)), reason: reason("nd")},
		{name: "due", hook: d, prepare: aged(bob, refresh+time.Second), frame: s.received(inner{}), reason: reason("refresh"), check: stamped(bob)},
		{name: "behind one that is on the slow path", hook: d, prepare: func(l *lab) { l.edit(bob, func(e *bpf.FDBEntry) { e.Slow = ago(0) }) },
			frame: s.received(inner{}), reason: reason("in_order")},
		{name: "aged destination", hook: d, prepare: aged(alice, ageing+time.Second), frame: s.received(inner{}), reason: reason("dst_aged")},
		{name: "a container, no daemon", hook: d, prepare: noLease, frame: s.received(inner{}), reason: reason("no_lease")},
		{name: "a VM, no daemon", hook: d, prepare: noLease, frame: s.received(toTap(inner{})), reason: bpf.Fast},
		{name: "the port is gone", hook: d, prepare: func(l *lab) { must(l.set.Raw.Delete(loopback)) }, frame: s.received(inner{}), reason: reason("port_gone")},
		{name: "network off", hook: d, prepare: l7(func(n *maps.Network) { n.Off = true }), frame: s.received(inner{}), foreign: true},
		{name: "another VNI", hook: d, frame: s.received(inner{}, func(o *outer) { o.vxlan.VNI = 99 }), foreign: true},
		{name: "for another host's MAC", hook: d, frame: s.received(inner{}, func(o *outer) { o.eth.DstMAC = routerMAC[:] }), foreign: true},
		{name: "to another address", hook: d, frame: s.received(inner{}, func(o *outer) { o.to(s.vtep2) }), foreign: true},
		{name: "outer checksum", hook: d, frame: s.received(inner{}, func(o *outer) { o.udpSum = true }), reason: reason("outer_csum")},
		{name: "wrong length", hook: d, frame: append(s.received(inner{}), 0), reason: reason("outer_malformed")},
		{name: "CE marks an ECN capable packet", hook: d, frame: s.received(inner{tos: ect0}, mark(ce)), reason: bpf.Fast, want: func(in []byte) []byte {
			return s.arrived(inner{tos: ce}).frame()
		}},
		{name: "CE over one that is not", hook: d, frame: s.received(inner{}, mark(ce)), reason: reason("outer_ecn"), check: stamped(bob)},
		{name: "SYN with a clamp", hook: d, prepare: clamp, frame: s.received(toTap(inner{}.segment(tcpSYN, mss(1460)))), reason: reason("mss")},
		{name: "no SYN, with a clamp", hook: d, prepare: clamp, frame: s.received(toTap(inner{tcp: true})), reason: bpf.Fast},
		{name: "soft: udp with its checksum", hook: d, prepare: soft, frame: s.received(inner{}), reason: bpf.Fast},
		{name: "soft: an odd length", hook: d, prepare: soft, frame: s.received(inner{payload: 77}), reason: bpf.Fast},
		{name: "soft: tcp with its checksum", hook: d, prepare: soft, frame: s.received(toTap(inner{tcp: true, payload: 333})), reason: bpf.Fast},
		{name: "soft: the largest", hook: d, prepare: soft, frame: s.wrap(s.arrived(inner{}).sized(overlayMTU + ethHdr)), reason: bpf.Fast},
		{name: "soft: a checksum to be filled in", hook: d, prepare: soft, frame: s.received(unsummed(inner{})), reason: reason("inner_csum"), check: stamped(bob)},
		{name: "soft: the same of tcp", hook: d, prepare: soft, frame: s.received(toTap(unsummed(inner{tcp: true}))), reason: reason("inner_csum")},
		{name: "soft: another protocol", hook: d, prepare: soft, frame: s.received(inner{l4: 132}), reason: reason("inner_csum")},
		{name: "soft: udp without one", hook: d, prepare: soft, reason: reason("inner_csum"), frame: s.received(inner{patch: func(b []byte) {
			copy(b[ethHdr+s.inLen()+6:], []byte{0, 0})
		}})},
		{name: "not soft: nobody looks", hook: d, frame: s.received(unsummed(inner{})), reason: bpf.Fast},

		{name: "out, udp", hook: e, frame: s.sent(fromTap(inner{})), reason: bpf.Fast},
		{name: "out, tcp", hook: e, frame: s.sent(fromTap(inner{tcp: true})), reason: bpf.Fast},
		{name: "out, with marks", hook: e, frame: s.sent(fromTap(inner{tos: ce})), reason: bpf.Fast},
		{name: "out, the largest", hook: e, frame: func() []byte { i := fromTap(s.arrived(inner{src: tap, dst: bob})); return i.sized(overlayMTU + ethHdr) }(),
			reason: map[bool]bpf.Reason{false: bpf.Fast, true: reason("mtu")}[s.v6()]},
		{name: "out, larger than the link takes", hook: e, frame: s.arrived(inner{src: tap, dst: bob}).sized(overlayMTU + ethHdr + 1), reason: reason("mtu")},
		{name: "out, unknown source", hook: e, frame: s.sent(inner{src: nobody}), reason: reason("src_unknown")},
		{name: "out, source of another port", hook: e, prepare: func(l *lab) { l.edit(tap, func(e *bpf.FDBEntry) { e.To = l.bridge }) }, frame: s.sent(fromTap(inner{})), reason: reason("src_moved"), check: kept(tap)},
		{name: "out, unknown destination", hook: e, frame: s.sent(fromTap(inner{dst: nobody})), reason: reason("dst_unknown")},
		{name: "out, local destination", hook: e, frame: s.sent(fromTap(inner{dst: alice})), reason: bpf.DstLocal},
		{name: "out, broadcast", hook: e, frame: arp(tap), reason: bpf.BUM},
		{name: "out, neighbour discovery", hook: e, frame: s.sent(fromTap(icmp6(135))), reason: reason("nd")},
		{name: "out, due", hook: e, prepare: aged(tap, refresh+time.Second), frame: s.sent(fromTap(inner{})), reason: reason("refresh"), check: stamped(tap)},
		{name: "out, behind one in the stack", hook: e, prepare: func(l *lab) { l.edit(tap, func(e *bpf.FDBEntry) { e.Slow = ago(0) }) }, frame: s.sent(fromTap(inner{})), reason: reason("in_order")},
		{name: "out, no lease", hook: e, prepare: noLease, frame: s.sent(fromTap(inner{})), reason: reason("no_lease")},
		{name: "out, no fresh MACs", hook: e, frame: s.sent(fromTap(inner{})), reason: reason("no_lease"), prepare: func(l *lab) {
			v := l.vtep(l.on.vtep1)
			v.MACs = false
			must(l.set.VTEPs.Put(indexVTEP1, v))
		}},
		{name: "out, the underlay takes no raw frames", hook: e, prepare: func(l *lab) { must(l.set.Raw.Delete(l.underlay)) }, frame: s.sent(fromTap(inner{})), reason: reason("port_kind")},
		{name: "out, port off", hook: e, prepare: portOff(func(*lab) uint32 { return loopback }), frame: s.sent(fromTap(inner{})), reason: reason("not_ready")},
		{name: "out, soft: with its checksum", hook: e, prepare: softPort, frame: s.sent(fromTap(inner{tcp: true, payload: 201})), reason: bpf.Fast},
		{name: "out, soft: to be filled in", hook: e, prepare: softPort, frame: s.sent(fromTap(unsummed(inner{}))), reason: reason("inner_csum"), check: stamped(tap)},
		{name: "out, SYN with a clamp", hook: e, prepare: func(l *lab) { p := l.portAt(); p.MSS = 1400; must(l.set.Ports.Put(loopback, p)) },
			frame: s.sent(fromTap(inner{}.segment(tcpSYN, mss(1460)))), reason: reason("mss")},
	}
}

// l7 changes network 7.
func l7(change func(*maps.Network)) func(*lab) {
	return func(l *lab) { l.xdpNetwork(change)(l) }
}

func TestXDP(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		for _, c := range xdpCases(s) {
			t.Run(s.String()+"/"+c.name, func(t *testing.T) { c.run(t, l) })
		}
	}
}

// Frames in several buffers: only to and from devices that take them, and whole.
func TestXDPFrags(t *testing.T) {
	l := newLab(t, nil, "vx_xdp_decap", "vx_xdp_encap")
	for _, s := range []scene{{under4, false}, {under6, true}} {
		l.on = s.underlay
		big := s.arrived(inner{dst: tap})
		big.payload = 7000
		in := s.wrap(big.frame())
		jumbo := func(sg bool) func(*lab) {
			return func(l *lab) {
				l.edit(tap, func(e *bpf.FDBEntry) {
					e.Mtu = 9000
					if sg {
						e.Flags |= bpf.EntryRawSG
					}
				})
				p := l.portAt()
				p.MTU, p.SG = 8930, sg
				must(l.set.Ports.Put(loopback, p))
				v := l.vtep(l.on.vtep1)
				v.MTU = 9000
				must(l.set.VTEPs.Put(indexVTEP1, v))
			}
		}
		out := big
		out.src, out.dst = tap, bob
		for _, c := range []xdpCase{
			{name: "decap", hook: bpf.HookXDPDecap, prepare: jumbo(true), frame: in, reason: bpf.Fast},
			{name: "decap, the port takes one buffer", hook: bpf.HookXDPDecap, prepare: jumbo(false), frame: in, reason: reason("port_kind")},
			{name: "encap", hook: bpf.HookXDPEncap, prepare: jumbo(true), frame: out.frame(), reason: bpf.Fast},
			{name: "encap, the underlay takes one buffer", hook: bpf.HookXDPEncap, prepare: jumbo(false), frame: out.frame(), reason: reason("port_kind")},
		} {
			t.Run(s.String()+"/"+c.name, func(t *testing.T) { c.run(t, l) })
		}
	}
}

// The program that only checks sources lets all else up, uncounted.
func TestXDPGuard(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range []scene{{under4, false}, {under6, true}} {
		l.on = s.underlay
		for _, c := range []struct {
			name    string
			frame   []byte
			verdict uint32
		}{
			{"from a VTEP", s.received(inner{}), xdpPass},
			{"an unknown MAC from a VTEP", s.received(inner{src: nobody}), xdpPass},
			{"from a stranger", s.received(inner{}, func(o *outer) { o.from(s.stranger) }), xdpDrop},
			{"from a stranger for another MAC", s.received(inner{}, func(o *outer) { o.from(s.stranger); o.eth.DstMAC = routerMAC[:] }), xdpPass},
			{"something else", s.received(inner{}, func(o *outer) { o.from(s.stranger); o.udp.DstPort = 53 }), xdpPass},
		} {
			l.xdpReset(t)
			opts := ebpf.RunOptions{Data: c.frame, DataOut: make([]byte, len(c.frame)+256), Repeat: 1}
			var verdict uint32
			var err error
			l.do(func() { verdict, err = l.obj.VxXdpGuard.Run(&opts) })
			counts, cerr := l.set.Counters.Read(netID)
			if err != nil || cerr != nil || verdict != c.verdict || len(counts) > 0 != (verdict == xdpDrop) {
				t.Errorf("%v %s: verdict %d, want %d; counted %v; %v %v", s, c.name, verdict, c.verdict, counts, err, cerr)
			}
			if c.verdict == xdpPass && !bytes.Equal(opts.DataOut, c.frame) {
				t.Errorf("%v %s: changed", s, c.name)
			}
		}
	}
}
