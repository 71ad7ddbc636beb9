// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"strings"
)

// The self-checks. A benchmark that measures something other than it says is
// worse than none: each round is refused unless counters prove what it was.

// fastShare is the least share of packets on the fast path in a tc round.
const fastShare = 0.99

// look sends a few packets with a counter on the underlay, before a round:
// were they encapsulated, and should they have been?
func (b *bed) look() error {
	const n = 20
	var before, after [sniffCounters]uint64
	read := func(v *[sniffCounters]uint64) (err error) {
		for i := range v {
			if v[i], err = b.sniff.read(uint32(i)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := read(&before); err != nil {
		return err
	}
	detach, err := attachTCX(b.host(1).NS, underlayDev, b.sniff.prog)
	if err != nil {
		return err
	}
	lost, err := b.ping.exchange(n)
	if derr := detach(); err == nil {
		err = derr
	}
	if err != nil {
		return err
	}
	if err := read(&after); err != nil {
		return err
	}
	for i := range after {
		after[i] -= before[i]
	}
	return b.judgeLook(n, lost, after)
}

func (b *bed) judgeLook(n, lost int, seen [sniffCounters]uint64) error {
	outer, plain := seen[sniffOuter]+seen[sniffSum], seen[sniffPlain]
	switch {
	case lost > 0:
		return fmt.Errorf("%d of %d packets lost before the round", lost, n)
	case b.datapath == Bare && outer > 0:
		return fmt.Errorf("the bare path encapsulated: %d VXLAN packets on the underlay", outer)
	case b.datapath == Bare && plain < uint64(n):
		return fmt.Errorf("%d packets crossed the underlay, %d were sent", plain, n)
	case b.datapath != Bare && outer < uint64(n):
		return fmt.Errorf("%d VXLAN packets crossed the underlay, %d were sent (%d were not encapsulated)", outer, n, plain)
	case seen[sniffSum] > 0:
		return fmt.Errorf("%d packets with an outer UDP checksum: the datapaths would not do the same work", seen[sniffSum])
	}
	return nil
}

// judge compares what a round claims with what the counters saw.
func (b *bed) judge(w *workload, p profile, r *Round, before, after tally) error {
	vx := after.vx.less(before.vx)
	r.Fast = vx.share()
	drops, where := after.dropsSince(before)
	r.Drops = drops
	var bad []string
	if !w.aggregates {
		crossed := after.rx - before.rx
		if float64(crossed) < 0.99*float64(r.Received) {
			bad = append(bad, fmt.Sprintf("%d packets arrived by the underlay, %d are claimed", crossed, r.Received))
		}
		if vx.hosts > 0 && float64(vx.total) < 0.99*float64(r.Received)*float64(vx.hosts)*w.passes() {
			bad = append(bad, fmt.Sprintf("vxbpf counted %d packets on %d hosts, the round had %d", vx.total, vx.hosts, r.Received))
		}
	}
	if n := after.rx - before.rx; p.wire && n > 0 && (after.bytes-before.bytes)/n > uint64(p.mtu+14) {
		bad = append(bad, fmt.Sprintf("super-packets of %d bytes on average crossed a wire of MTU %d", (after.bytes-before.bytes)/n, p.mtu))
	}
	if r.Fast != nil && *r.Fast < fastShare {
		bad = append(bad, fmt.Sprintf("only %.1f %% of %d packets took the fast path", 100**r.Fast, vx.total))
	}
	if vx.dropped > 0 {
		bad = append(bad, fmt.Sprintf("vxbpf dropped %d packets (drop_broken)", vx.dropped))
	}
	if lost := float64(r.Lost); lost > w.lossLimit*float64(r.Sent) {
		bad = append(bad, fmt.Sprintf("%d of %d packets lost (%.2f %%)", r.Lost, r.Sent, 100*lost/float64(r.Sent)))
	}
	// What devices drop must be no more than what the workload knows to be lost.
	if float64(drops) > float64(r.Lost)+w.lossLimit*float64(r.Sent) {
		bad = append(bad, fmt.Sprintf("devices dropped %d packets: %s", drops, strings.Join(where, ", ")))
	}
	if len(bad) > 0 {
		return fmt.Errorf("%s", strings.Join(bad, "; "))
	}
	return nil
}

// passes is how often a packet of the workload's count is seen by vxbpf on one
// host: an injected frame on one of two hosts, a datagram once, a request twice
// with its answer.
func (w *workload) passes() float64 {
	switch {
	case w.prepare != nil:
		return 0.5
	case w.unit == perSecond:
		return 2
	}
	return 1
}
