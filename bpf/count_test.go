// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"slices"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Each VTEP has its own packets, and what a VTEP's packets come to is what its
// network counts, whichever way they took.
func TestVTEPCounters(t *testing.T) {
	l := newLab(t, nil)
	s := scenes[0]
	l.on = s.underlay
	l.reset(t)
	send := func(h bpf.Hook, frames ...[]byte) (n maps.Count) {
		for _, f := range frames {
			l.frame(t, h, f)
			n.Packets++
			n.Bytes += uint64(len(f))
			if h == bpf.HookDecap {
				n.Bytes -= uint64(l.on.len())
			}
		}
		return n
	}
	to := func(dst fdb.MAC) []byte { return s.sent(inner{dst: dst}) }
	var want [indexVTEPBad + 1]maps.Traffic
	want[indexVTEP1].SentFast = send(bpf.HookEncap, to(bob), to(bob), to(bob))
	want[indexVTEP2].SentFast = send(bpf.HookEncap, to(dave))
	want[indexVTEPBad].SentSlow = send(bpf.HookEncap, to(lost)) // no way there: for it all the same
	want[indexVTEP1].ReceivedFast = send(bpf.HookDecap, s.received(inner{}), s.received(inner{}))
	l.edit(bob, func(e *bpf.FDBEntry) { e.Seen = ago(2 * refresh) })
	send(bpf.HookDecap, s.received(inner{}))
	want[indexVTEP1].ReceivedSlow = send(bpf.HookDeliver, s.arrived(inner{}).frame())
	send(bpf.HookEncap, to(fdb.MAC{0x02, 9, 9, 9, 9, 9})) // unknown: nobody's
	for i := range want {
		got, err := l.set.ByVTEP.Read(uint32(i))
		if err != nil {
			t.Fatal(err)
		}
		if got != want[i] {
			t.Errorf("VTEP %d counted\n%+v, want\n%+v", i, got, want[i])
		}
	}
	counts, err := l.set.Counters.Read(netID)
	if err != nil {
		t.Fatal(err)
	}
	_, sent := counts.Sent()
	_, received := counts.Received()
	by := l.traffic()
	unknown := counts[bpf.HookEncap][reason("dst_unknown")].Packets
	if got := by.SentFast.Packets + by.SentSlow.Packets; got != sent.Packets-unknown || unknown != 1 {
		t.Errorf("by VTEP %d sent, by network %d of which %d for nobody known", got, sent.Packets, unknown)
	}
	if got := by.ReceivedFast.Packets + by.ReceivedSlow.Packets; got != received.Packets {
		t.Errorf("by VTEP %d received, by network %d", got, received.Packets)
	}
}

// What is not counted is carried all the same.
func TestCountingOff(t *testing.T) {
	for level := range uint8(3) {
		l := newLab(t, map[string]any{"vx_counting": level})
		l.on = scenes[0].underlay
		l.reset(t)
		for h, frame := range map[bpf.Hook][]byte{bpf.HookEncap: scenes[0].sent(inner{}), bpf.HookDecap: scenes[0].received(inner{}),
			bpf.HookDeliver: scenes[0].arrived(inner{}).frame()} {
			if verdict, _ := l.frame(t, h, frame); verdict != actRedirect {
				t.Errorf("counting %d, %v: verdict %d", level, h, verdict)
			}
		}
		counts, err := l.set.Counters.Read(netID)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(counts), map[uint8]int{0: 0, 1: 3, 2: 3}[level]; got != want {
			t.Errorf("counting %d: %d hooks counted, want %d", level, got, want)
		}
		if got, want := l.traffic() != (maps.Traffic{}), level == 2; got != want {
			t.Errorf("counting %d: counted by VTEP: %t, want %t", level, got, want)
		}
	}
}

// What counting costs in the programs, against no counting: rounds of all three
// levels one after the other, so short that what else the machine does hits them
// alike, and the median of the rounds' differences. `alone`: a packet that is
// carried is changed, so each run has one of its own and a system call before
// it, and caches are those of a packet that comes alone. `burst`: packets that stay as they are
// run many times, as under load: at the vxlan device they are carried, at encap they are too large.
//
//	go test ./bpf -run ^$ -bench Counting -benchtime 1x
func BenchmarkCounting(b *testing.B) {
	const rounds, alone, burst = 301, 400, 20000
	const loopback = 1 // where packets of Benchmark are from
	s := scenes[0]
	received := s.received(inner{})
	clear(received[:6]) // to the loopback device: a packet for nobody here is let pass unread
	labs := make([]*lab, 3)
	for level := range labs {
		labs[level] = newLab(b, map[string]any{"vx_counting": uint8(level)})
		labs[level].on = s.underlay
		labs[level].reset(b)
		must(labs[level].set.Ports.Put(loopback, labs[level].portAt()))
	}
	for _, c := range []struct {
		name   string
		hook   bpf.Hook
		frame  []byte
		burst  bool
		reason string
	}{
		{"alone/encap", bpf.HookEncap, s.sent(inner{}), false, "fast"},
		{"alone/decap", bpf.HookDecap, received, false, "fast"},
		{"burst/deliver", bpf.HookDeliver, s.arrived(inner{}).frame(), true, "fast"},
		{"burst/encap", bpf.HookEncap, s.sent(inner{payload: overlayMTU}), true, "mtu"},
	} {
		b.Run(c.name, func(b *testing.B) {
			none := make([]float64, 0, rounds)
			var more [3][]float64 // ns
			for range b.N {
				for round := range rounds {
					var took [3]float64
					for i := range labs {
						level := (round + i) % len(labs)
						l := labs[level]
						// Young enough for all runs of a round.
						l.edit(alice, func(e *bpf.FDBEntry) { e.Seen = ago(0); e.To = loopback })
						l.edit(bob, func(e *bpf.FDBEntry) { e.Seen = ago(0); e.Slow = 0 })
						if c.burst {
							took[level] = l.repeated(c.hook, c.frame, burst)
						} else {
							took[level] = l.oneByOne(c.hook, c.frame, alone)
						}
					}
					none = append(none, took[0])
					for level := 1; level < len(labs); level++ {
						more[level] = append(more[level], took[level]-took[0])
					}
				}
			}
			counts, err := labs[1].set.Counters.Read(netID)
			must(err)
			if counts[c.hook][reason(c.reason)].Packets < rounds*alone {
				b.Fatalf("the packets did not go the way that is measured: %v", counts)
			}
			base := quartile(none, 2)
			b.ReportMetric(base, "ns-none")
			for level, what := range map[int]string{1: "reason", 2: "vtep"} {
				b.ReportMetric(quartile(more[level], 2), "ns-more-"+what)
				b.ReportMetric(100*quartile(more[level], 2)/base, "%-more-"+what)
				b.ReportMetric(quartile(more[level], 3)-quartile(more[level], 1), "ns-iqr-"+what)
			}
		})
	}
}

func quartile(v []float64, q int) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[q*(len(v)-1)/4]
}

// repeated is the mean time in ns of one run of many on the same packet.
func (l *lab) repeated(h bpf.Hook, frame []byte, runs int) float64 {
	// Not what the call reports: those are whole ns.
	var took time.Duration
	p := l.program(h)
	l.do(func() {
		var err error
		start := time.Now()
		_, _, err = p.Benchmark(frame, runs, nil)
		took = time.Since(start)
		must(err)
	})
	return float64(took) / float64(runs)
}

// oneByOne is the mean time in ns of one run on a packet of its own.
func (l *lab) oneByOne(h bpf.Hook, frame []byte, runs int) float64 {
	var sum time.Duration
	p := l.program(h)
	l.do(func() {
		for range runs {
			_, took, err := p.Benchmark(frame, 1, nil)
			must(err)
			sum += took
		}
	})
	return float64(sum) / float64(runs)
}
