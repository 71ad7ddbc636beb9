// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// No topology: frames as the sockets would see them. That Segments does what the
// kernel does, TestDiffSegments of package e2e shows.

// testWorld is three hosts on paper.
func testWorld(v6 bool) World {
	w := World{MTU: 1450, Port: 1500, Underlay: 1500, Stranger: WorldHost{Name: stranger, MAC: fdb.MAC{2, 0xe2, 0, 4}}}
	addr := func(n int) netip.Addr {
		if v6 {
			return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", n))
		}
		return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n))
	}
	w.Stranger.Addr = addr(14)
	for i, name := range Hosts {
		h := WorldHost{Name: name, MAC: fdb.MAC{2, 0xe2, 0, byte(i + 1)}, Addr: addr(11 + i), Bridge: fdb.MAC{2, 0xb0, 0, byte(i + 1), 1}, VXLAN: fdb.MAC{2, 0xf0, 0, byte(i + 1), 1}}
		for c := range perHost {
			h.Containers = append(h.Containers, fdb.MAC{2, 0xc0, 0, byte(i + 1), 1, byte(c + 1)})
			h.HostEnds = append(h.HostEnds, fdb.MAC{2, 0xa0, 0, byte(i + 1), 1, byte(c + 1)})
		}
		w.Hosts = append(w.Hosts, h)
	}
	return w
}

// sample is a VXLAN packet that h1 has sent to h2.
func sample(v6 bool, c csum) (*Generator, outer, []byte) {
	g := NewGenerator(testWorld(v6), 1, nil)
	g.Rand = rand.New(rand.NewPCG(1, 1))
	o := g.outer(0, 1)
	o.csum = c
	h := ip{src: netip.MustParseAddr("172.29.236.11"), dst: netip.MustParseAddr("172.29.236.21"), ttl: 64, proto: protoUDP}
	return g, o, ethernet(fdb.MAC{2, 1}, fdb.MAC{2, 2}, typeIPv4, h.wrap(h.udp(1, 2, csumRight, 0, g.payload(50))))
}

func out(frame []byte) []Norm {
	return Normalise(Sighting{At: Point{"h1", underlayDev}, Out: true, Type: unix.PACKET_OUTGOING, Data: frame})
}

func TestBatchesAreTheSameAgain(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b, c := NewGenerator(testWorld(v6), 7, nil), NewGenerator(testWorld(v6), 7, nil), NewGenerator(testWorld(v6), 8, nil)
		b.Batch(1, 50) // the third does not depend on the first
		if x, y := a.Batch(3, 400), b.Batch(3, 400); !reflect.DeepEqual(x, y) {
			t.Error("the same seed makes other frames")
		}
		if x, y := a.Batch(3, 400), c.Batch(3, 400); reflect.DeepEqual(x, y) {
			t.Error("another seed makes the same frames")
		}
		seen := map[string]bool{}
		for n := range 40 {
			for _, s := range a.Batch(n, 400) {
				seen[s.Kind] = true
				if len(s.Frame) < ethHdr {
					t.Fatalf("%s: a frame of %d bytes", s.Kind, len(s.Frame))
				}
			}
		}
		for _, k := range kinds {
			if k.weight > 0 && !seen[k.name] {
				t.Errorf("no %q", k.name)
			}
		}
		if without := NewGenerator(testWorld(v6), 7, map[string]int{"wanderer": 0}).Batch(1, 2000); slices.ContainsFunc(without, func(s Step) bool { return s.Kind == "wanderer" }) {
			t.Error("a kind that was left out is there")
		}
	}
}

// Each byte of a packet is compared, but the source port, and the IPv4 id with its checksum.
func TestOnlyWhatMayDiffer(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, c := range []csum{csumZero, csumRight} {
			_, o, in := sample(v6, c)
			frame := o.wrap(in)
			var free []int
			for i := range frame {
				for bit := range 8 {
					b := bytes.Clone(frame)
					b[i] ^= 1 << bit
					if len(Compare(out(frame), out(b))) == 0 && !slices.Contains(free, i) {
						free = append(free, i)
					}
				}
			}
			sport := len(frame) - len(in) - vxlanHdr - udpHdr
			want := []int{sport, sport + 1}
			if c == csumRight {
				want = nil // an outer checksum covers it
			}
			if !slices.Equal(free, want) {
				t.Errorf("IPv6 %v, checksum %d: bytes %v are not compared, want %v", v6, c, free, want)
			}
			other := o
			other.ip.id, other.sport = 999, 50000
			if d := Compare(out(frame), out(other.wrap(in))); len(d) != 0 {
				t.Errorf("IPv6 %v, checksum %d: id and source port may differ: %+v", v6, c, d)
			}
			other.sport = 1000
			if d := Compare(out(frame), out(other.wrap(in))); len(d) != 2 || !strings.Contains(d[0].Note+d[1].Note, "out of range") {
				t.Errorf("IPv6 %v, checksum %d: a source port out of range: %+v", v6, c, d)
			}
		}
	}
}

// An ICMP error of a host quotes what it got, source port and id included.
func TestQuotedPackets(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		_, o, in := sample(v6, csumZero)
		quote := func(o outer, typ byte) []byte {
			h := ip{src: o.ip.dst, dst: o.ip.src, ttl: 64, proto: protoICMP, id: o.ip.id}
			if v6 {
				h.proto = protoICMP6
			}
			return ethernet(o.ethSrc, o.ethDst, h.typ(), h.wrap(h.icmp(typ, 3, csumRight, o.wrap(in)[ethHdr:])))
		}
		typ := byte(3)
		if v6 {
			typ = 1
		}
		other := o
		other.ip.id, other.sport = 999, 50000
		if d := Compare(out(quote(o, typ)), out(quote(other, typ))); len(d) != 0 {
			t.Errorf("IPv6 %v: %+v", v6, d)
		}
		other.vni++
		if d := Compare(out(quote(o, typ)), out(quote(other, typ))); len(d) != 2 {
			t.Errorf("IPv6 %v: another VNI goes unnoticed", v6)
		}
	}
}

func TestMutantsAreSeen(t *testing.T) {
	g, o, in := sample(false, csumZero)
	var frames []Norm
	for range 20 {
		frames = append(frames, out(o.wrap(append(bytes.Clone(in), g.payload(8)...)))...)
	}
	if d := Compare(frames, slices.Clone(frames)); len(d) != 0 {
		t.Fatalf("the same frames differ: %+v", d)
	}
	for seed := range uint64(100) {
		for what, mutant := range Mutants(frames, rand.New(rand.NewPCG(seed, 0))) {
			if len(Compare(frames, mutant)) == 0 || len(Compare(mutant, frames)) == 0 {
				t.Fatalf("seed %d: %s goes unnoticed", seed, what)
			}
		}
	}
	typed, noted := slices.Clone(frames), slices.Clone(frames)
	typed[3].Type, noted[3].Note = unix.PACKET_HOST, "x"
	if len(Compare(frames, typed)) != 2 || len(Compare(frames, noted)) != 2 {
		t.Error("another packet type or note goes unnoticed")
	}
}

// A GSO packet of a tunnel is cut as one without it, with outer headers that fit each piece.
func TestSegmentsInATunnel(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, c := range []csum{csumZero, csumRight} {
			g, o, _ := sample(v6, c)
			for range 100 {
				src, dst := g.apart()
				s := g.gso(src, dst)
				if len(s.Frame) > 60000 {
					continue
				}
				plain, err := Segments(s.Frame, s.Hdr)
				if err != nil {
					t.Fatal(err)
				}
				hdr := s.Hdr
				hdr.CsumStart += uint16(len(o.wrap(nil)))
				tunnel, err := Segments(o.wrap(s.Frame), hdr)
				if err != nil {
					t.Fatal(err)
				}
				if len(tunnel) != len(plain) {
					t.Fatalf("%d pieces in the tunnel, %d without", len(tunnel), len(plain))
				}
				for i := range plain {
					if badTransport(plain[i]) {
						t.Fatalf("piece %d has a wrong checksum:\n%s", i, Decode(plain[i]))
					}
					// The kernel leaves the outer id as it is or counts it up: it is blanked.
					if want := o.wrap(plain[i]); !bytes.Equal(tunnel[i], want) {
						t.Fatalf("piece %d:\n%s\nwant\n%s", i, Decode(tunnel[i]), Decode(want))
					}
				}
			}
		}
	}
}

func TestChecksumsFilledIn(t *testing.T) {
	g, o, _ := sample(false, csumZero)
	for range 100 {
		src, dst := g.apart()
		s := g.partial(src, dst)
		got, err := Segments(s.Frame, s.Hdr)
		if err != nil || len(got) != 1 || badTransport(got[0]) {
			t.Fatalf("%v\n%s", err, Decode(s.Frame))
		}
		hdr := s.Hdr
		hdr.CsumStart += uint16(len(o.wrap(nil)))
		if tunnel, err := Segments(o.wrap(s.Frame), hdr); err != nil || !bytes.Equal(tunnel[0], o.wrap(got[0])) {
			t.Fatalf("in a tunnel: %v", err)
		}
	}
	if _, err := Segments(make([]byte, 30), VNetHdr{Flags: NeedsCsum, CsumStart: 29, CsumOffset: 6}); err == nil {
		t.Error("a checksum behind the end is no error")
	}
	if _, err := Segments(make([]byte, 100), VNetHdr{Flags: NeedsCsum, GSOType: GSOTCPv4, GSOSize: 10, CsumStart: 34}); err == nil {
		t.Error("a GSO packet that is none is no error")
	}
}

func TestWrongChecksumThatIsVouchedFor(t *testing.T) {
	_, _, in := sample(false, csumZero)
	bad := bytes.Clone(in)
	bad[len(bad)-1]++
	at := Point{"h1", "mgmt-1"}
	for _, c := range []struct {
		frame []byte
		flags uint8
		note  bool
	}{{in, dataValid, false}, {bad, dataValid, true}, {bad, 0, false}} {
		n := Normalise(Sighting{At: at, Data: c.frame, Hdr: VNetHdr{Flags: c.flags}})
		if (n[0].Note != "") != c.note {
			t.Errorf("flags %d: %q", c.flags, n[0].Note)
		}
	}
}

func TestFlowsKeepTheirPort(t *testing.T) {
	_, o, in := sample(false, csumZero)
	f := Flows{}
	for port := range uint16(3) {
		o.sport = 40000 + port
		f.Add(out(o.wrap(in)))
	}
	if len(f.Spread(2)) != 1 || len(f.Spread(3)) != 0 {
		t.Errorf("%v", f)
	}
}

func TestSameError(t *testing.T) {
	for _, c := range []struct {
		k, x error
		same bool
	}{{nil, nil, true}, {unix.ENOMEM, nil, true}, {nil, unix.ENOBUFS, true}, {unix.EMSGSIZE, nil, false}, {unix.EINVAL, unix.EINVAL, true}, {unix.EINVAL, errors.New("other"), false}} {
		if SameError(c.k, c.x) != c.same {
			t.Errorf("%v and %v", c.k, c.x)
		}
	}
}
