// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
)

// A path of the underlay that turns out to be narrower; the world is that of prog_test.go.
//
//	us ─── large packet ──► router ─/─► vtep1       ICMP "fragmentation needed" (type 3 code 4, RFC 792, RFC 1191)
//	us ◄── "too big" ────── router                  ICMPv6 "packet too big" (type 2 code 0, RFC 4443)
//	└ vx_tc_decap stamps vx_control; the kernel learns the path MTU; vx_tc_encap
//	  leaves to it what a narrower path might not take, until the daemon has asked again

// The smallest path MTU that the kernel learns: ip_rt_min_pmtu, IPV6_MIN_MTU.
var narrowest = map[bool]int{false: 552, true: 1280}

func (l *lab) tooBig() time.Duration {
	var c bpf.Control
	must(l.obj.VxControl.Lookup(bpf.ControlTooBig, &c))
	return time.Duration(c.At)
}

func (l *lab) setTooBig(at time.Duration) {
	must(l.obj.VxControl.Put(bpf.ControlTooBig, bpf.Control{At: uint64(at)}))
}

// complaint is an ICMP message of any type about a VXLAN packet of ours.
func complaint(u underlay, typ, code byte, change ...func([]byte)) []byte {
	quoted := scene{underlay: u}.received(inner{})[ethHdr:][:u.len()-ethHdr]
	message := append([]byte{typ, code, 0, 0, 0, 0, 5, 120}, quoted...)
	o := newOuter(underlayMAC, routerMAC, u.local, u.stranger, 0)
	var network gopacket.SerializableLayer = &o.ip
	o.ip.Protocol, o.ip6.NextHeader = layers.IPProtocolICMPv4, layers.IPProtocolICMPv6
	if u.v6() {
		network = &o.ip6
	}
	binary.BigEndian.PutUint16(message[2:], ^sum(message))
	b := serialize(true, &o.eth, network, gopacket.Payload(message))
	for _, f := range change {
		f(b)
	}
	return b
}

func TestTooBigHeard(t *testing.T) {
	l := newLab(t, nil)
	hear := func(t *testing.T, b []byte, s shim) bool {
		t.Helper()
		l.setTooBig(0)
		p := l.obj.VxTcDecap
		if s != (shim{}) {
			p = l.through(t, s, bpf.HookDecap).Program
		}
		verdict, out, err := l.exec(p, b, skBuff{Ifindex: l.world.underlay}, 1)
		if err != nil {
			t.Fatal(err)
		}
		if verdict != actUnspec || s == (shim{}) && !bytes.Equal(out, b) {
			t.Errorf("verdict %d, want %d and the message as it was", verdict, actUnspec)
		}
		if c := since(nil, l.tally(bpf.HookDecap)); c != nil {
			t.Fatalf("counted %v", c)
		}
		at := l.tooBig()
		if at != 0 && (maps.Now()-at < 0 || maps.Now()-at > time.Minute) {
			t.Errorf("stamp is %v ago, want now", maps.Now()-at)
		}
		return at != 0
	}
	for _, u := range []underlay{under4, under6} {
		l.on = u
		l.reset(t)
		right := map[bool][2]int{false: {3, 4}, true: {2, 0}}[u.v6()]
		for typ := range 256 {
			for code := range 256 {
				// Of the types that say nothing of the kind, a few codes are enough.
				if code > 5 && typ > 4 && typ != code {
					continue
				}
				want := [2]int{typ, code} == right
				if got := hear(t, complaint(u, byte(typ), byte(code)), shim{}); got != want {
					t.Errorf("type %d code %d over %v: heard %v, want %v", typ, code, u.local, got, want)
				}
			}
		}
		typ, code := byte(right[0]), byte(right[1])
		udpPort := scene{underlay: u}.received(inner{}, func(o *outer) { o.udp.SrcPort = layers.UDPPort(int(typ)<<8 | int(code)); o.vxlan.VNI = 9 })
		next := map[bool]int{false: ethHdr + 9, true: ethHdr + 6}[u.v6()]
		for _, c := range []struct {
			name  string
			frame []byte
			shim  shim
			want  bool
		}{
			{"as it should be", complaint(u, typ, code), shim{}, true},
			{"checksum verified by the device", complaint(u, typ, code), shim{verified: true}, true},
			{"of the other family's protocol", complaint(u, typ, code, func(b []byte) { b[next] = map[bool]byte{false: 58, true: 1}[u.v6()] }), shim{}, false},
			{"of the other family's type", complaint(u, map[bool]byte{false: 2, true: 3}[u.v6()], map[bool]byte{false: 0, true: 4}[u.v6()]), shim{}, false},
			{"a UDP packet with such a source port", udpPort, shim{}, false},
			{"TCP", complaint(u, typ, code, func(b []byte) { b[next] = 6 }), shim{}, false},
			{"to another host", complaint(u, typ, code, func(b []byte) { copy(b, routerMAC[:]) }), shim{}, false},
			{"with a tag in the metadata", complaint(u, typ, code), shim{vlan: true}, false},
			{"in a tagged frame", tagged(complaint(u, typ, code), 5), shim{}, false},
			// No room for the packet that it is about: RFC 792 quotes its IP header and 8 bytes.
			{"shorter than any", complaint(u, typ, code)[:u.len()+ethHdr-1], shim{}, false},
			{"short", complaint(u, typ, code)[:u.len()+ethHdr], shim{}, true},
		} {
			t.Run(fmt.Sprintf("%v/%s", u.local, c.name), func(t *testing.T) {
				if got := hear(t, c.frame, c.shim); got != c.want {
					t.Errorf("heard %v, want %v", got, c.want)
				}
			})
		}
	}
	// The kernel hears these too. Reading past options is left out: routers answer without any.
	l.on = under4
	if hear(t, complaint(under4, 3, 4, func(b []byte) { b[ethHdr] = 0x46 }), shim{}) {
		t.Error("heard from within IP options")
	}
}

func TestTooBigHeeded(t *testing.T) {
	l := newLab(t, nil)
	lease := func(d time.Duration) func() {
		return func() { must(l.set.Control.SetLease(maps.Now() + d)) }
	}
	live, dead := lease(time.Hour), lease(0)
	for _, s := range scenes {
		l.on = s.underlay
		// The largest frame that passes in any case, as an outer packet at the smallest path MTU.
		least := narrowest[s.v6()] - (s.len() - ethHdr)
		large := underlayMTU - (s.len() - ethHdr)
		for _, c := range []struct {
			name  string
			lease func()
			ago   time.Duration // 0: never
			size  int
			held  bool
		}{
			{"never heard", live, 0, large, false},
			{"never heard, no daemon", dead, 0, large, false},
			{"just now", live, time.Nanosecond, large, true},
			{"just now, smallest that is held", live, time.Nanosecond, least + 1, true},
			{"just now, largest that is not", live, time.Nanosecond, least, false},
			{"just now, small", live, time.Nanosecond, 200, false},
			{"by a CPU that is a tick ahead", live, -10 * time.Millisecond, large, true},
			{"a second ago", live, time.Second, large, true},
			{"three seconds ago", live, 3 * time.Second, large, false},
			{"ten minutes ago", live, 600 * time.Second, large, false},
			{"an hour ago", live, time.Hour, large, false},
			{"just now, no daemon", dead, time.Nanosecond, large, true},
			{"three seconds ago, no daemon", dead, 3 * time.Second, large, true},
			{"almost ten minutes ago, no daemon", dead, 590 * time.Second, large, true},
			{"almost ten minutes ago, no daemon, small", dead, 590 * time.Second, least, false},
			{"ten minutes ago, no daemon", dead, 600 * time.Second, large, false},
			{"an hour ago, no daemon", dead, time.Hour, large, false},
		} {
			t.Run(s.String()+"/"+c.name, func(t *testing.T) {
				in := inner{src: alice, dst: bob, v6: s.in6}.sized(c.size)
				want := bpf.Fast
				if c.held {
					want = reason("mtu")
				}
				progCase{hook: bpf.HookEncap, frame: in, reason: want, prepare: func(l *lab) {
					p := l.portAt()
					p.MTU = 9000
					must(l.set.Ports.Put(l.port, p))
					c.lease()
					if c.ago != 0 {
						l.setTooBig(maps.Now() - c.ago)
					}
				}}.run(t, l)
			})
		}
		// Segments count, not the packet that they are made of. What passes gets as far as adjust_room, see "gso of no kind".
		for d, want := range map[int]bpf.Reason{0: reason("adjust_failed"), 1: reason("mtu")} {
			headers := ethHdr + s.inLen() + tcpHdr
			progCase{hook: bpf.HookEncap, frame: s.sent(inner{tcp: true, payload: 3000}), gsoSize: uint32(least - headers + d), gsoSegs: 6,
				reason: want, prepare: func(l *lab) { l.setTooBig(maps.Now()) }}.run(t, l)
		}
	}
}

// What the one program hears, the other heeds.
func TestTooBigFromDecapToEncap(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		l.reset(t)
		large := inner{src: alice, dst: bob, v6: s.in6}.sized(overlayMTU + ethHdr - 20)
		if verdict, _ := l.frame(t, bpf.HookEncap, large); verdict != actRedirect {
			t.Fatalf("%v: verdict %d, want %d", s, verdict, actRedirect)
		}
		message := complaint(s.underlay, 3, 4)
		if s.v6() {
			message = complaint(s.underlay, 2, 0)
		}
		l.frame(t, bpf.HookDecap, message)
		if verdict, out := l.frame(t, bpf.HookEncap, large); verdict != actUnspec || !bytes.Equal(out, large) {
			t.Errorf("%v: verdict %d, want %d and the frame as it was", s, verdict, actUnspec)
		}
		if verdict, _ := l.frame(t, bpf.HookEncap, s.sent(inner{})); verdict != actRedirect {
			t.Errorf("%v, small: verdict %d, want %d", s, verdict, actRedirect)
		}
	}
}
