// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/vxbpf/vxbpf/maps"
)

// Where a SYN meets the clamp; the world is that of prog_test.go.
//
//	port ──► vx_tc_encap ──► underlay        carried: clamped;  left to the kernel: as it was,
//	             └► bridge ► vxlan link ► vx_tc_moved           and clamped here
//	underlay ► vx_tc_decap ► port            carried: clamped;  left to the kernel: as it was,
//	             └► vxlan link ► vx_tc_deliver                  and clamped here, whether it is carried on or not

const (
	tcpFIN, tcpSYN, tcpRST, tcpACK, tcpECE, tcpCWR = 1, 2, 4, 16, 64, 128

	clampMTU  = 1400
	clampMSS4 = clampMTU - ip4Hdr - tcpHdr
	clampMSS6 = clampMTU - ip6Hdr - tcpHdr
)

// mss is the option that announces one (RFC 9293 section 3.2).
func mss(n uint16) []byte { return []byte{2, 4, byte(n >> 8), byte(n)} }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func nops(n int) []byte { return bytes.Repeat([]byte{1}, n) }

// segment is a TCP segment with these flags and options. Options are filled up with zeros, which is End of Option List.
func (i inner) segment(flags byte, options []byte) inner {
	i.tcp, i.tcpOptions = true, (len(options)+3)/4*4
	patch := i.patch
	i.patch = func(b []byte) {
		tcp := b[transport(b):]
		tcp[13] = flags
		clear(tcp[tcpHdr : tcpHdr+i.tcpOptions])
		copy(tcp[tcpHdr:], options)
		tcp[16], tcp[17] = 0, 0
		binary.BigEndian.PutUint16(tcp[16:], ^segmentSum(b))
		if patch != nil {
			patch(b)
		}
	}
	return i
}

// transport is where the transport header of a frame starts, extension headers not looked at.
func transport(b []byte) int {
	if binary.BigEndian.Uint16(b[12:]) == 0x86dd {
		return ethHdr + ip6Hdr
	}
	return ethHdr + int(b[ethHdr]&15)*4
}

// segmentSum is the sum over pseudo header and TCP segment: 0xffff if the checksum is right.
func segmentSum(b []byte) uint16 {
	at := transport(b)
	addresses := b[ethHdr+12 : ethHdr+20]
	if binary.BigEndian.Uint16(b[12:]) == 0x86dd {
		addresses = b[ethHdr+8 : ethHdr+40]
	}
	segment := b[at:]
	if len(segment)%2 == 1 {
		segment = append(bytes.Clone(segment), 0)
	}
	return sum(cat(addresses, []byte{0, 6}, binary.BigEndian.AppendUint16(nil, uint16(len(b)-at)), segment))
}

// mssOption finds the MSS of a SYN that is to be clamped, reading options as
// RFC 9293 section 3.1 and 3.2 say: where its two bytes are, and what they shall
// say. 0: the frame stays as it is.
func mssOption(b []byte, mtu int) (at int, want uint16) {
	const tcp = 6
	if len(b) < ethHdr+ip4Hdr {
		return 0, 0
	}
	header := ip4Hdr
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		if b[ethHdr]&15 < 5 || b[ethHdr+9] != tcp || binary.BigEndian.Uint16(b[ethHdr+6:])&0x3fff != 0 {
			return 0, 0
		}
	case 0x86dd:
		header = ip6Hdr
		if len(b) < ethHdr+ip6Hdr || b[ethHdr+6] != tcp {
			return 0, 0
		}
	default:
		return 0, 0
	}
	t := transport(b)
	if len(b) < t+14 || b[t+13]&tcpSYN == 0 {
		return 0, 0
	}
	end := min(t+int(b[t+12]>>4)*4, len(b))
	for at := t + tcpHdr; at+4 <= end; {
		kind, length := b[at], int(b[at+1])
		switch {
		case kind == 0:
			return 0, 0
		case kind == 1:
			length = 1
		case kind == 2 && length != 4, length < 2:
			return 0, 0
		case kind == 2:
			want := uint16(mtu - header - tcpHdr)
			if binary.BigEndian.Uint16(b[at+2:]) <= want {
				return 0, 0
			}
			return at + 2, want
		}
		at += length
	}
	return 0, 0
}

// checkClamp demands that out is in, but for the announcement and a checksum that is as right as it was.
func checkClamp(t testing.TB, in, out []byte, mtu int) {
	t.Helper()
	want := bytes.Clone(in)
	if at, n := mssOption(in, mtu); at != 0 {
		binary.BigEndian.PutUint16(want[at:], n)
		sum := transport(in) + 16
		if len(out) == len(in) {
			copy(want[sum:sum+2], out[sum:])
		}
		// 0 and 0xffff are the same to RFC 1071, so congruence is what counts.
		if segmentSum(in)%0xffff != segmentSum(want)%0xffff {
			t.Errorf("segment summed up to %#x, now to %#x", segmentSum(in), segmentSum(want))
		}
	}
	if !bytes.Equal(out, want) {
		t.Errorf("clamped frame (-want +got):\n%s", cmp.Diff(want, out))
	}
}

// clamp makes all networks and devices announce no more than mtu allows.
func (l *lab) clamp(mtu uint16) {
	p, n := l.portAt(), l.network()
	p.MSS, n.MSS = mtu, mtu
	for _, dev := range []uint32{l.port, l.vxlan, l.bridge} {
		must(l.set.Ports.Put(dev, p))
	}
	must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
}

// clampHook is a program that clamps: what it is given for an inner frame, and where the inner frame is afterwards.
type clampHook struct {
	name    string
	program func(*lab) *ebpf.Program
	device  func(*lab) uint32
	decap   bool // the frame comes with an outer header
	out     int  // headers in front afterwards, by what it does with a frame of a known MAC
	verdict int
}

func clampHooks(s scene) []clampHook {
	port, vxlan := func(l *lab) uint32 { return l.port }, func(l *lab) uint32 { return l.vxlan }
	return []clampHook{
		{"encap", func(l *lab) *ebpf.Program { return l.obj.VxTcEncap }, port, false, s.len(), actRedirect},
		{"decap", func(l *lab) *ebpf.Program { return l.obj.VxTcDecap }, func(l *lab) uint32 { return l.world.underlay }, true, 0, actRedirect},
		{"deliver", func(l *lab) *ebpf.Program { return l.obj.VxTcDeliver }, vxlan, false, 0, actRedirect},
		{"moved", func(l *lab) *ebpf.Program { return l.obj.VxTcMoved }, vxlan, false, 0, actUnspec},
	}
}

// frame is the inner frame in the direction of the hook, and what the program is given.
func (h clampHook) frame(s scene, i inner) (in, given []byte) {
	i.src, i.dst = bob, alice
	if h.name == "encap" || h.name == "moved" {
		i.src, i.dst = alice, bob
	}
	i.v6 = i.v6 || s.in6
	in = i.frame()
	if h.decap {
		return in, s.wrap(in)
	}
	return in, in
}

func (h clampHook) run(t testing.TB, l *lab, given []byte) []byte {
	t.Helper()
	verdict, out, err := l.exec(h.program(l), given, skBuff{Ifindex: h.device(l), IngressIfindex: l.port}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if verdict != h.verdict {
		t.Fatalf("verdict %d, want %d", verdict, h.verdict)
	}
	return out[h.out:]
}

func TestClamp(t *testing.T) {
	other := []byte{3, 3, 7}                                // window scale (RFC 7323): makes what follows lie odd
	stamps := append([]byte{8, 10}, nops(8)...)             // timestamps
	fast := append([]byte{34, 18}, nops(16)...)             // fast open, longest cookie (RFC 7413)
	padded := func(b []byte) []byte { return append(b, 0) } // an End after it
	type clampCase struct {
		name  string
		i     inner
		clamp bool
	}
	syn := func(options ...[]byte) inner { return inner{}.segment(tcpSYN, cat(options...)) }
	cases := []clampCase{
		{"first", syn(mss(1460)), true},
		{"syn-ack", inner{}.segment(tcpSYN|tcpACK, mss(1460)), true},
		{"syn that asks for ECN", inner{}.segment(tcpSYN|tcpECE|tcpCWR, mss(1460)), true},
		{"largest", syn(mss(0xffff)), true},
		{"with data", inner{payload: 101}.segment(tcpSYN, mss(9000)), true},
		{"without data", inner{payload: -1}.segment(tcpSYN, mss(9000)), true},
		{"behind another option", syn(stamps, mss(1460)), true},
		{"behind an option, odd", syn(other, mss(1460)), true},
		{"behind two options", syn(other, stamps, mss(1460)), true},
		{"behind a long option", syn(fast, mss(1460)), true},
		{"before others", syn(mss(1460), nops(1), other, nops(2), stamps), true},
		{"last of all", syn(nops(36), mss(1460)), true},
		{"behind an option of 36 bytes", syn(append([]byte{30, 36}, nops(34)...), mss(1460)), true},
		{"unknown option of length 2", syn([]byte{77, 2}, mss(1460)), true},
		{"twice", syn(mss(1460), mss(1460)), true},
		{"small, then large", syn(mss(500), mss(1460)), false},

		{"absent", syn(), false},
		{"absent, others there", syn(nops(2), stamps), false},
		{"behind the end", syn([]byte{0}, nops(3), mss(1460)), false},
		{"behind an option of length 0", syn([]byte{77, 0}, mss(1460)), false},
		{"behind an option of length 1", syn([]byte{77, 1}, mss(1460)), false},
		{"behind an option that is longer than the header", syn([]byte{77, 41}, mss(1460)), false},
		{"behind an option of length 255", syn([]byte{77, 255}, mss(1460)), false},
		{"cut by the header's end", syn(nops(1), []byte{2, 4, 0xff}), false},
		{"length 0", syn([]byte{2, 0, 0xff, 0xff}), false},
		{"length 1", syn([]byte{2, 1, 0xff, 0xff}), false},
		{"length 2", syn([]byte{2, 2, 0xff, 0xff}), false},
		{"length 3", syn(padded([]byte{2, 3, 0xff})), false},
		{"length 5", syn([]byte{2, 5, 0xff, 0xff, 0xff, 0, 0, 0}), false},
		{"length 255", syn([]byte{2, 255, 0xff, 0xff}), false},
		{"wrong length, then a right one", syn([]byte{2, 3, 0xff}, mss(1460)), false},
		{"0", syn(mss(0)), false},
		{"ack", inner{}.segment(tcpACK, mss(1460)), false},
		{"reset", inner{}.segment(tcpRST, mss(1460)), false},
		{"fin", inner{}.segment(tcpFIN|tcpACK, mss(1460)), false},
		{"no flags", inner{}.segment(0, mss(1460)), false},
		{"behind an extension header", inner{v6: true, extension: true}.segment(tcpSYN, nil), false},
		{"udp that looks like a syn", inner{patch: func(b []byte) { copy(b[transport(b):], syn(mss(1460)).frame()[ethHdr+ip4Hdr:]) }}, false},
	}
	in4 := []clampCase{
		{"ip options", inner{ipOptions: 8}.segment(tcpSYN, mss(1460)), true},
		{"all ip options", inner{ipOptions: 40}.segment(tcpSYN, cat(other, mss(1460))), true},
		{"one more than fits", syn(mss(clampMSS4 + 1)), true},
		{"just fits", syn(mss(clampMSS4)), false},
		{"may be fragmented", inner{noDF: true}.segment(tcpSYN, mss(1460)), true},
		{"first fragment", inner{patch: func(b []byte) { b[20] = 0x20; fixIPSum(b) }}.segment(tcpSYN, mss(1460)), false},
		{"second fragment", inner{patch: func(b []byte) { b[21] = 5; fixIPSum(b) }}.segment(tcpSYN, mss(1460)), false},
		{"second fragment, offset in the upper bits", inner{patch: func(b []byte) { b[20] = 0x10; fixIPSum(b) }}.segment(tcpSYN, mss(1460)), false},
	}
	in6 := []clampCase{
		{"one more than fits", syn(mss(clampMSS6 + 1)), true},
		{"just fits", syn(mss(clampMSS6)), false},
	}
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		special := in4
		if s.in6 {
			special = in6
		}
		for _, h := range clampHooks(s) {
			for _, c := range append(cases[:len(cases):len(cases)], special...) {
				t.Run(fmt.Sprintf("%v/%s/%s", s, h.name, c.name), func(t *testing.T) {
					l.reset(t)
					in, given := h.frame(s, c.i)
					needMixed(t, h.decap && mixed(given))
					if got := h.run(t, l, given); !bytes.Equal(got, in) {
						t.Errorf("without a clamp the frame changes (-in +out):\n%s", cmp.Diff(in, got))
					}
					l.clamp(clampMTU)
					out := h.run(t, l, given)
					if at, _ := mssOption(in, clampMTU); (at != 0) != c.clamp {
						t.Fatalf("this frame: to be clamped %v, want %v", at != 0, c.clamp)
					}
					checkClamp(t, in, out, clampMTU)
					if got := !bytes.Equal(out, in); got != c.clamp {
						t.Errorf("changed: %v, want %v", got, c.clamp)
					}
					if err := checksums(in); err == nil {
						if err := checksums(out); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
	}
}

// Any SYN, any options, right or not: nothing but the announcement changes, and the checksum with it.
func TestClampProperty(t *testing.T) {
	l := newLab(t, nil)
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	clamped := 0
	for n := range 4000 {
		s := scenes[r.IntN(len(scenes))]
		if l.on != s.underlay {
			l.on = s.underlay
			l.reset(t)
		}
		mtu := 100 + r.IntN(3000)
		l.clamp(uint16(mtu))
		i := inner{tos: uint8(r.IntN(64) << 2), payload: r.IntN(300), noDF: r.IntN(2) == 0}
		if r.IntN(4) == 0 {
			i.ipOptions = 4 * r.IntN(11)
		}
		i = i.segment(byte(r.Uint32())|map[bool]byte{true: tcpSYN}[r.IntN(8) != 0], randomOptions(r))
		h := clampHooks(s)[r.IntN(4)]
		in, given := h.frame(s, i)
		if h.decap && mixed(given) && !l.decapL3 {
			continue // the kernel's, as TestPrograms has it
		}
		out := h.run(t, l, given)
		checkClamp(t, in, out, mtu)
		if err := checksums(out); err != nil && checksums(in) == nil {
			t.Error(err)
		}
		if !bytes.Equal(in, out) {
			clamped++
		}
		if t.Failed() {
			t.Fatalf("frame %d of seed %d: %v at %s, mtu %d: %x", n, seed, s, h.name, mtu, in)
		}
	}
	if clamped < 500 {
		t.Errorf("%d of 4000 frames were clamped: the test looks at little", clamped)
	}
}

// randomOptions are up to 40 bytes of TCP options, mostly well formed, with an MSS among them more often than not.
func randomOptions(r *rand.Rand) (b []byte) {
	for len(b) < 40 {
		switch r.IntN(8) {
		case 0, 1:
			b = append(b, nops(1+r.IntN(5))...)
		case 2, 3, 4:
			b = append(b, mss(uint16(r.Uint32()))...)
		case 5, 6:
			n := 2 + r.IntN(12)
			b = append(append(b, byte(3+r.IntN(250)), byte(n)), bytes.Repeat([]byte{2}, n-2)...)
		case 7:
			if r.IntN(3) == 0 {
				b = append(b, byte(r.IntN(4)), byte(r.IntN(6)), byte(r.Uint32()))
			} else if r.IntN(3) == 0 {
				return b
			}
		}
	}
	return b[:40]
}

// A frame that vx_tc_encap or vx_tc_decap leaves to the kernel stays as it was;
// the kernel's way leads past vx_tc_moved or vx_tc_deliver, which clamp it
// whatever else they think of it.
func TestClampLeftToTheKernel(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		hooks := clampHooks(s)
		for _, c := range []struct {
			name    string
			hook    int // index into hooks
			change  func(*inner)
			prepare func(*lab)
			ctx     skBuff
			shim    shim
			clamp   bool
		}{
			{"unknown destination", 0, func(i *inner) { i.dst = nobody }, nil, skBuff{}, shim{}, false},
			{"unknown source", 0, func(i *inner) { i.src = nobody }, nil, skBuff{}, shim{}, false},
			{"broadcast", 0, func(i *inner) { i.dst = broadcast }, nil, skBuff{}, shim{}, false},
			{"too large", 0, func(i *inner) { i.payload = 1500 }, nil, skBuff{}, shim{}, false},
			{"no outer header", 0, func(i *inner) { i.dst = lost }, nil, skBuff{}, shim{}, false},
			{"port off", 0, nil, portOff(func(l *lab) uint32 { return l.port }), skBuff{}, shim{}, false},
			{"segments", 0, func(i *inner) { i.payload = 1200 }, nil, skBuff{GSOSize: 500, GSOSegs: 3}, shim{}, false},
			{"tag", 0, nil, nil, skBuff{}, shim{vlan: true}, false},

			{"unknown destination", 1, func(i *inner) { i.dst = nobody }, nil, skBuff{}, shim{}, false},
			{"unknown source", 1, func(i *inner) { i.src = nobody }, nil, skBuff{}, shim{}, false},
			{"too large", 1, func(i *inner) { i.payload = 1500 }, nil, skBuff{}, shim{}, false},
			{"port to transmit on", 1, func(i *inner) { i.dst = tap }, nil, skBuff{}, shim{}, false},
			{"aggregate", 1, func(i *inner) { i.payload = 1200 }, nil, skBuff{GSOSize: 500, GSOSegs: 3}, shim{}, false},

			{"unknown destination", 2, func(i *inner) { i.dst = nobody }, nil, skBuff{}, shim{}, true},
			{"unknown source", 2, func(i *inner) { i.src = nobody }, nil, skBuff{}, shim{}, true},
			{"broadcast", 2, func(i *inner) { i.dst = broadcast }, nil, skBuff{}, shim{}, true},
			{"refresh due", 2, nil, aged(bob, refresh+time.Second), skBuff{}, shim{}, true},
			{"too large", 2, func(i *inner) { i.payload = 1500 }, nil, skBuff{}, shim{}, true},
			{"device off", 2, nil, func(l *lab) {
				p := l.portAt()
				p.MSS, p.Off = clampMTU, true
				must(l.set.Ports.Put(l.vxlan, p))
			}, skBuff{}, shim{}, true},
			{"segments", 2, func(i *inner) { i.payload = 1200 }, nil, skBuff{GSOSize: 500, GSOSegs: 3}, shim{verified: true}, false},
			{"tag", 2, nil, nil, skBuff{}, shim{vlan: true}, false},
			{"not a device of ours", 2, nil, func(l *lab) { must(l.set.Ports.Delete(l.vxlan)) }, skBuff{}, shim{}, false},

			{"unknown source", 3, func(i *inner) { i.src = nobody }, nil, skBuff{}, shim{}, true},
			{"broadcast", 3, func(i *inner) { i.dst = broadcast }, nil, skBuff{}, shim{}, true},
			{"device off", 3, nil, func(l *lab) {
				p := l.portAt()
				p.MSS, p.Off = clampMTU, true
				must(l.set.Ports.Put(l.vxlan, p))
			}, skBuff{}, shim{}, true},
			{"segments", 3, func(i *inner) { i.payload = 1200 }, nil, skBuff{GSOSize: 500, GSOSegs: 3}, shim{}, false},
			{"tag", 3, nil, nil, skBuff{}, shim{vlan: true}, false},
			{"not a device of ours", 3, nil, func(l *lab) { must(l.set.Ports.Delete(l.vxlan)) }, skBuff{}, shim{}, false},
		} {
			h := hooks[c.hook]
			t.Run(fmt.Sprintf("%v/%s/%s", s, h.name, c.name), func(t *testing.T) {
				l.reset(t)
				l.clamp(clampMTU)
				if c.prepare != nil {
					c.prepare(l)
				}
				i := inner{src: bob, dst: alice, v6: s.in6}
				if c.hook == 0 || c.hook == 3 {
					i.src, i.dst = alice, bob
				}
				if c.change != nil {
					c.change(&i)
				}
				in := i.segment(tcpSYN, mss(9000)).frame()
				given := in
				if h.decap {
					given = s.wrap(in)
				}
				p := h.program(l)
				if c.shim != (shim{}) {
					p = l.before(t, c.shim, p).Program
				}
				c.ctx.Ifindex, c.ctx.IngressIfindex = h.device(l), l.port
				verdict, out, err := l.exec(p, given, c.ctx, 1)
				if err != nil {
					t.Fatal(err)
				}
				if want := map[bool]int{true: actRedirect, false: actUnspec}[c.hook == 2 && c.ctx.GSOSize != 0]; verdict != want {
					t.Errorf("verdict %d, want %d", verdict, want)
				}
				switch {
				case c.clamp:
					checkClamp(t, in, out, clampMTU)
				case c.shim.vlan: // the kernel puts the tag into the bytes it shows
					if !bytes.HasSuffix(out, given[12:]) {
						t.Errorf("frame behind its tag (-in +out):\n%s", cmp.Diff(given[12:], out))
					}
				case !bytes.Equal(out, given):
					t.Errorf("the kernel gets another frame (-in +out):\n%s", cmp.Diff(given, out))
				}
				if c.clamp == bytes.Equal(out, given) {
					t.Errorf("changed: %v, want %v", !c.clamp, c.clamp)
				}
			})
		}
	}
}

// Each place has a clamp of its own: the network's for what arrives from the underlay, the device's for the others.
func TestClampPlaces(t *testing.T) {
	l := newLab(t, nil)
	s := scenes[0]
	hooks := clampHooks(s)
	for n, set := range []func(){
		func() { p := l.portAt(); p.MSS = clampMTU; must(l.set.Ports.Put(l.port, p)) },
		func() {
			n := l.network()
			n.MSS = clampMTU
			must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
		},
		func() { p := l.portAt(); p.MSS = clampMTU; must(l.set.Ports.Put(l.vxlan, p)) },
	} {
		l.reset(t)
		set()
		for m, h := range hooks {
			in, given := h.frame(s, inner{}.segment(tcpSYN, mss(1460)))
			out := h.run(t, l, given)
			if want := n == m || n == 2 && m == 3; bytes.Equal(in, out) == want {
				t.Errorf("clamp set at place %d: %s changed the frame: %v, want %v", n, h.name, !want, want)
			}
		}
	}
}
