// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"fmt"
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

// What counting costs in the programs: rounds of all three levels, interleaved.
// A packet that is carried is changed, so each run has one of its own: caches
// are those of a packet that comes alone. A packet that is too large is counted
// in the same two places and stays as it is: one runs many times, as in a burst.
//
//	go test ./bpf -run ^$ -bench Counting -benchtime 1x
func BenchmarkCounting(b *testing.B) {
	const rounds, runs = 21, 20000
	const loopback = 1 // where packets of Benchmark are from
	s := scenes[0]
	labs := make([]*lab, 3)
	for level := range labs {
		labs[level] = newLab(b, map[string]any{"vx_counting": uint8(level)})
		labs[level].on = s.underlay
		labs[level].reset(b)
		must(labs[level].set.Ports.Put(loopback, labs[level].portAt()))
	}
	for _, c := range []struct {
		name  string
		hook  bpf.Hook
		frame []byte
		burst bool
	}{
		{"encap", bpf.HookEncap, s.sent(inner{}), false},
		{"decap", bpf.HookDecap, s.received(inner{}), false},
		{"burst", bpf.HookEncap, s.sent(inner{payload: overlayMTU}), true},
	} {
		b.Run(c.name, func(b *testing.B) {
			ns := make([][]float64, len(labs))
			for range b.N {
				for range rounds {
					for level, l := range labs {
						// Young enough for all runs of a round.
						l.edit(alice, func(e *bpf.FDBEntry) { e.Seen = ago(0); e.To = loopback })
						l.edit(bob, func(e *bpf.FDBEntry) { e.Seen = ago(0); e.Slow = 0 })
						ns[level] = append(ns[level], l.perRun(c.hook, c.frame, runs, c.burst))
					}
				}
			}
			for level := range ns {
				slices.Sort(ns[level])
				n := len(ns[level])
				b.ReportMetric(ns[level][n/2], fmt.Sprintf("ns/run-%d", level))
				b.ReportMetric(ns[level][3*n/4]-ns[level][n/4], fmt.Sprintf("iqr-%d", level))
			}
		})
	}
}

// perRun is the mean time of one run in ns.
func (l *lab) perRun(h bpf.Hook, frame []byte, runs int, burst bool) float64 {
	p := l.program(h)
	if burst {
		var took time.Duration
		l.do(func() {
			var err error
			_, took, err = p.Benchmark(frame, 50*runs, nil)
			must(err)
		})
		return float64(took)
	}
	var sum time.Duration
	l.do(func() {
		for range runs {
			_, took, err := p.Benchmark(frame, 1, nil)
			must(err)
			sum += took
		}
	})
	return float64(sum) / float64(runs)
}
