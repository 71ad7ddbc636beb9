// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// capturing is a lab whose programs capture, and who reads what they write.
type capturing struct {
	*lab
	*ringbuf.Reader
}

func newCapturing(t testing.TB, constants map[string]any, size uint32) *capturing {
	t.Helper()
	l := newLabOf(t, func() (*ebpf.CollectionSpec, error) {
		spec, err := bpf.LoadCapture()
		if err == nil {
			spec.Maps["vx_capture"].MaxEntries = size
			spec.Maps["vx_capture_cpu"].MaxEntries = uint32(ebpf.MustPossibleCPU())
		}
		return spec, err
	}, constants)
	r, err := ringbuf.NewReader(l.capture)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &capturing{l, r}
	c.until(time.Hour)
	return c
}

// until lets the programs capture for so long.
func (c *capturing) until(d time.Duration) {
	must(c.captureCtl.Put(uint32(0), bpf.CaptureControl{Until: uint64(monotonic() + d)}))
}

func monotonic() time.Duration {
	var ts unix.Timespec
	must(unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return time.Duration(ts.Nano())
}

type captured struct {
	bpf.CaptureEvent
	in, out []byte
}

// drain reads what is there.
func (c *capturing) drain(t testing.TB) (all []captured) {
	t.Helper()
	c.SetDeadline(time.Now())
	for {
		r, err := c.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		e, in, out, err := bpf.ParseCapture(r.RawSample)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, captured{e, bytes.Clone(in), bytes.Clone(out)})
	}
}

// counts are seen and lost, over all CPUs.
func (c *capturing) counts() (seen, lost uint64) {
	var k uint32
	b := make([]byte, c.captureCPU.ValueSize())
	for it := c.captureCPU.Iterate(); it.Next(&k, &b); {
		seen += binary.NativeEndian.Uint64(b)
		lost += binary.NativeEndian.Uint64(b[8:])
	}
	return seen, lost
}

// Capture costs nothing while nobody captures: the ordinary programs hold no
// trace of it, not even a constant that says "off". And no program is forgotten:
// each one has a twin that captures.
func TestCaptureIsApart(t *testing.T) {
	plain, err := bpf.Load()
	if err != nil {
		t.Fatal(err)
	}
	twin, err := bpf.LoadCapture()
	if err != nil {
		t.Fatal(err)
	}
	uses := func(p *ebpf.ProgramSpec) (maps, helpers int) {
		for _, i := range p.Instructions {
			if bpf.OfCapture(i.Reference()) {
				maps++
			}
			if i.IsBuiltinCall() && (asm.BuiltinFunc(i.Constant) == asm.FnRingbufOutput || asm.BuiltinFunc(i.Constant) == asm.FnGetSmpProcessorId) {
				helpers++
			}
		}
		return maps, helpers
	}
	for name, p := range plain.Programs {
		if m, h := uses(p); m+h > 0 {
			t.Errorf("%s: %d uses of capture's maps, %d of its helpers", name, m, h)
		}
		c := twin.Programs[name]
		if c == nil {
			t.Errorf("%s has no twin in capture.bpf.c", name)
			continue
		}
		if m, h := uses(c); m < 4 || h < 3 {
			t.Errorf("%s does not capture: call capture_enter before it changes the packet, and capture_leave with its verdict", name)
		}
		if c.Type != p.Type {
			t.Errorf("%s: a %v captures for a %v", name, c.Type, p.Type)
		}
	}
	for name := range twin.Programs {
		if plain.Programs[name] == nil {
			t.Errorf("%s only captures", name)
		}
	}
	for name := range plain.Variables {
		if bpf.OfCapture(name) {
			t.Errorf("constant %s costs a load in the ordinary programs", name)
		}
	}
	for name, m := range plain.Maps {
		if bpf.OfCapture(name) {
			t.Errorf("the ordinary programs bring map %s", name)
		} else if o := twin.Maps[name]; name != ".rodata" && (o == nil || o.Type != m.Type || o.KeySize != m.KeySize || o.ValueSize != m.ValueSize || o.Flags != m.Flags) {
			t.Errorf("map %s differs where capture is on", name)
		}
	}
}

// All frames of all tables: the programs that capture do to each what the
// others do, and tell the truth about it.
func TestCapture(t *testing.T) {
	c := newCapturing(t, map[string]any{"vx_capture_len": uint32(4096)}, 1<<20)
	hooks := map[bpf.Hook]int{}
	for _, s := range scenes {
		c.on = s.underlay
		for _, p := range slices.Concat(encapCases(s), decapCases(s), deliverCases(s), mtuCases(s)) {
			t.Run(fmt.Sprintf("%v/%v/%s", s, p.hook, p.name), func(t *testing.T) {
				check, sent := p.check, []byte(nil)
				p.check = func(t *testing.T, l *lab, out []byte) {
					sent = out
					if check != nil {
						check(t, l, out)
					}
				}
				start := monotonic()
				p.run(t, c.lab)
				all := c.drain(t)
				if p.foreign {
					if len(all) != 0 {
						t.Errorf("captured what is not ours: %+v", all)
					}
					return
				}
				if len(all) != 1 {
					t.Fatalf("%d events for one packet", len(all))
				}
				hooks[p.hook]++
				e := all[0]
				in := p.frame
				if p.shim.etherType != 0 {
					in = bytes.Clone(in)
					binary.BigEndian.PutUint16(in[12:], p.shim.etherType)
				}
				if at := time.Duration(e.At); at < start || at > monotonic() {
					t.Errorf("time %v, want between %v and now", at, start)
				}
				e.At = 0
				want := captured{in: in}
				dev := p.ifindex
				if dev == 0 {
					dev = c.device(p.hook)
				}
				want.Ifindex, want.Net, want.Hook, want.Reason, want.Segments = dev, uint16(netID), uint8(p.hook), uint8(p.reason), p.gsoSegs
				want.LenIn, want.Had = uint32(len(in)), uint32(len(in))
				switch p.reason {
				case bpf.Fast:
					want.Fate, want.out, want.LenOut, want.Got = uint8(bpf.FateFast), sent, uint32(len(sent)), uint32(len(sent))
				case bpf.DropBroken:
					want.Fate = uint8(bpf.FateDrop)
				}
				if p.shim.vlan {
					want.Vlan = 5
					e.in, want.in = nil, nil // the kernel may put the tag into the bytes that the test run shows
				}
				if d := cmp.Diff(want, e, cmp.AllowUnexported(captured{}), cmp.Comparer(bytes.Equal)); d != "" {
					t.Errorf("event (-want +got):\n%s", d)
				}
			})
		}
	}
	if len(hooks) < 3 {
		t.Errorf("captured at %v only", slices.Collect(maps.Keys(hooks)))
	}
	if seen, lost := c.counts(); lost != 0 || seen == 0 {
		t.Errorf("seen %d, lost %d", seen, lost)
	}
}

// What a capture asks for, and nothing else.
func TestCaptureAsks(t *testing.T) {
	word := func(m fdb.MAC) uint64 { return bpf.NewFDBKey(0, m).Word }
	s := scenes[0]
	frames := []struct {
		name  string
		hook  bpf.Hook
		frame []byte
	}{
		{"fast out", bpf.HookEncap, s.sent(inner{})},
		{"fast in", bpf.HookDecap, s.received(inner{})},
		{"flooded", bpf.HookEncap, s.sent(inner{dst: broadcast})},
		{"from dave", bpf.HookDecap, s.received(inner{src: nobody})},
		{"delivered", bpf.HookDeliver, s.arrived(inner{}).frame()},
	}
	for _, c := range []struct {
		name      string
		constants map[string]any
		want      string
	}{
		{"all", nil, "fast out,fast in,flooded,from dave,delivered"},
		{"one hook", map[string]any{"vx_capture_at": uint32(1 << bpf.HookDecap)}, "fast in,from dave"},
		{"one fate", map[string]any{"vx_capture_fates": uint32(1 << bpf.FateKernel)}, "flooded,from dave"},
		{"one reason", map[string]any{"vx_capture_why": uint64(1 << bpf.BUM)}, "flooded"},
		{"another network", map[string]any{"vx_capture_net": uint16(otherID)}, ""},
		{"this network", map[string]any{"vx_capture_net": uint16(netID)}, "fast out,fast in,flooded,from dave,delivered"},
		{"inner source", map[string]any{"vx_capture_src": word(bob)}, "fast in,delivered"},
		{"inner destination", map[string]any{"vx_capture_dst": word(alice)}, "fast in,from dave,delivered"},
		{"both", map[string]any{"vx_capture_src": word(alice), "vx_capture_dst": word(bob)}, "fast out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newCapturing(t, c.constants, 1<<20)
			var got []string
			for _, f := range frames {
				l.reset(t)
				l.lab.frame(t, f.hook, f.frame)
				if n := len(l.drain(t)); n > 1 {
					t.Errorf("%s: %d events", f.name, n)
				} else if n == 1 {
					got = append(got, f.name)
				}
			}
			if g := strings.Join(got, ","); g != c.want {
				t.Errorf("captured %s, want %s", g, c.want)
			}
		})
	}
	t.Run("length", func(t *testing.T) {
		l := newCapturing(t, map[string]any{"vx_capture_len": uint32(60)}, 1<<20)
		in := s.sent(inner{payload: 200})
		_, out := l.lab.frame(t, bpf.HookEncap, in)
		e := l.drain(t)
		if len(e) != 1 || !bytes.Equal(e[0].in, in[:60]) || !bytes.Equal(e[0].out, out[:60]) || int(e[0].LenIn) != len(in) || int(e[0].LenOut) != len(out) {
			t.Errorf("want 60 bytes of %d and of %d, got %+v", len(in), len(out), e)
		}
	})
	t.Run("one in ten", func(t *testing.T) {
		l := newCapturing(t, map[string]any{"vx_capture_nth": uint32(10), "vx_capture_len": uint32(60)}, 1<<20)
		for range 1000 {
			l.lab.frame(t, bpf.HookDeliver, frames[4].frame)
		}
		if n := len(l.drain(t)); n < 40 || n > 200 {
			t.Errorf("captured %d of 1000, want about 100", n)
		}
	})
	t.Run("a reader that died", func(t *testing.T) {
		l := newCapturing(t, nil, 1<<20)
		l.until(-time.Second)
		l.lab.frame(t, bpf.HookEncap, frames[0].frame)
		if n := len(l.drain(t)); n != 0 {
			t.Errorf("captured %d packets for nobody", n)
		}
	})
	t.Run("a full buffer", func(t *testing.T) {
		l := newCapturing(t, nil, uint32(os.Getpagesize()))
		const n = 100
		for range n {
			l.reset(t)
			if verdict, _ := l.lab.frame(t, bpf.HookEncap, frames[0].frame); verdict != actRedirect {
				t.Fatalf("verdict %d: a full buffer is no reason to let a packet go", verdict)
			}
		}
		got := len(l.drain(t))
		if seen, lost := l.counts(); seen != n || lost != n-uint64(got) || got == 0 || lost == 0 {
			t.Errorf("%d packets: read %d, said %d seen and %d lost", n, got, seen, lost)
		}
	})
}

// vx_tc_moved has no verdict; its packets are the kernel's.
func TestCaptureMoved(t *testing.T) {
	c := newCapturing(t, nil, 1<<20)
	in := scenes[0].sent(inner{})
	if _, _, err := c.exec(c.obj.VxTcMoved, in, skBuff{Ifindex: c.vxlan, IngressIfindex: c.port}, 1); err != nil {
		t.Fatal(err)
	}
	e := c.drain(t)
	if len(e) != 1 || e[0].Hook != bpf.CaptureMoved || e[0].Fate != uint8(bpf.FateKernel) || e[0].Ifindex != c.vxlan || !bytes.Equal(e[0].in, in) || len(e[0].out) != 0 {
		t.Errorf("events %+v", e)
	}
}

func TestParseCapture(t *testing.T) {
	if got := binary.Size(bpf.CaptureEvent{}); got != 40 {
		t.Errorf("an event is %d bytes", got)
	}
	b := make([]byte, 40+3+2+3)
	binary.NativeEndian.PutUint32(b[20:], 3)
	binary.NativeEndian.PutUint32(b[24:], 2)
	copy(b[40:], "abcde")
	if _, in, out, err := bpf.ParseCapture(b); err != nil || string(in) != "abc" || string(out) != "de" {
		t.Errorf("%q, %q, %v", in, out, err)
	}
	for _, n := range []int{0, 39, 44} {
		if _, _, _, err := bpf.ParseCapture(b[:n]); !errors.Is(err, bpf.ErrShortEvent) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// What capture costs while it is on, for the record; it is bounded by the
// length kept. That it costs nothing when off, TestCaptureIsApart shows.
func BenchmarkCapture(b *testing.B) {
	s := scenes[0]
	for _, v := range []struct {
		name string
		lab  func(*testing.B) *lab
	}{
		{"off", func(b *testing.B) *lab { return newLab(b, nil) }},
		{"nobody reads", func(b *testing.B) *lab {
			c := newCapturing(b, nil, 1<<20)
			c.until(-time.Second)
			return c.lab
		}},
		{"another flow", func(b *testing.B) *lab {
			return newCapturing(b, map[string]any{"vx_capture_src": bpf.NewFDBKey(0, nobody).Word}, 1<<20).lab
		}},
		{"96 bytes", func(b *testing.B) *lab {
			return newCapturing(b, map[string]any{"vx_capture_len": uint32(96)}, 1<<26).lab
		}},
		{"2048 bytes", func(b *testing.B) *lab { return newCapturing(b, nil, 1<<26).lab }},
	} {
		l := v.lab(b)
		in := s.arrived(inner{payload: 1400}).frame()
		b.Run(v.name, func(b *testing.B) {
			// The kernel measures the runs itself; deliver leaves the packet as it is, so it can be repeated.
			if _, _, err := l.exec(l.obj.VxTcDeliver, in, skBuff{Ifindex: l.vxlan}, uint32(b.N)); err != nil {
				b.Fatal(err)
			}
		})
	}
}
