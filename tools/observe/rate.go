// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
)

// Rates is what went on between two looks.
type Rates struct {
	Over     time.Duration
	Networks map[string]Flow
	VTEPs    map[VTEPKey]Flow
	Ports    map[int]PortTraffic // by ifindex; with Options.Traffic
	// Reasons in packets, by network, hook and reason.
	Reasons map[ReasonKey]maps.Count
}

// VTEPKey tells VTEPs apart over time: an index may be given to another one.
type VTEPKey struct {
	Remote netip.Addr
	Port   uint16
	Index  uint32
}

// ReasonKey names one counter.
type ReasonKey struct {
	Network string
	Hook    bpf.Hook
	Reason  bpf.Reason
}

// Flow is the traffic of both directions.
type Flow struct{ Sent, Received Share }

// All is both directions together.
func (f Flow) All() Share {
	return Share{f.Sent.Fast + f.Received.Fast, f.Sent.Total + f.Received.Total, f.Sent.FastBytes + f.Received.FastBytes, f.Sent.Bytes + f.Received.Bytes}
}

// Key of a VTEP in Rates.
func (v *VTEP) Key() VTEPKey { return VTEPKey{v.Remote, v.UDPPort, v.Index} }

// Since says what went on between an earlier look and this one. What was not
// there then, or began to count anew, counts from 0.
func (s *Snapshot) Since(old *Snapshot) *Rates {
	r := &Rates{Over: s.Mono - old.Mono, Networks: map[string]Flow{}, VTEPs: map[VTEPKey]Flow{}, Ports: map[int]PortTraffic{}, Reasons: map[ReasonKey]maps.Count{}}
	for _, n := range s.Networks {
		f := Flow{n.Sent, n.Received}
		if o := old.Network(n.Name); o != nil && o.ID == n.ID {
			f = Flow{n.Sent.Less(o.Sent), n.Received.Less(o.Received)}
		}
		r.Networks[n.Name] = f
	}
	before := map[VTEPKey]*VTEP{}
	for i := range old.VTEPs {
		before[old.VTEPs[i].Key()] = &old.VTEPs[i]
	}
	for i := range s.VTEPs {
		v := &s.VTEPs[i]
		f := Flow{v.Sent(), v.Received()}
		if o := before[v.Key()]; o != nil {
			f = Flow{f.Sent.Less(o.Sent()), f.Received.Less(o.Received())}
		}
		r.VTEPs[v.Key()] = f
	}
	ports := map[int]*PortTraffic{}
	for _, p := range old.Ports {
		ports[p.Index] = p.Traffic
	}
	for _, p := range s.Ports {
		if p.Traffic == nil {
			continue
		}
		// What a port counted before anybody looked is no rate.
		if o := ports[p.Index]; o != nil {
			r.Ports[p.Index] = PortTraffic{since(p.Traffic.Sent, o.Sent), since(p.Traffic.Received, o.Received)}
		}
	}
	for n, counts := range s.Counts {
		for h, byReason := range counts {
			for reason, c := range byReason {
				o := old.Counts[n][h][reason]
				if d := since(c, o); d.Packets > 0 {
					r.Reasons[ReasonKey{n, h, reason}] = d
				}
			}
		}
	}
	return r
}

func since(c, old maps.Count) maps.Count {
	return maps.Count{Packets: less(c.Packets, old.Packets), Bytes: less(c.Bytes, old.Bytes)}
}

// Sample looks twice.
func Sample(ctx context.Context, o Options, over time.Duration) (*Snapshot, *Rates, error) {
	first, err := Read(o)
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-time.After(over):
	}
	last, err := Read(o)
	if err != nil {
		return nil, nil, err
	}
	return last, last.Since(first), nil
}

// PerSecond is a count as a rate.
func (r *Rates) PerSecond(n uint64) float64 {
	if r == nil || r.Over <= 0 {
		return 0
	}
	return float64(n) / r.Over.Seconds()
}

// SI writes a number in at most 5 characters: 999, 1.2k, 34.5M, 123G.
func SI(v float64) string {
	for _, unit := range []string{"", "k", "M", "G", "T"} {
		switch {
		case v < 999.5 && (unit == "" && (v == float64(int64(v)) || v >= 99.95) || v >= 99.95):
			return fmt.Sprintf("%.0f%s", v, unit)
		case v < 99.95:
			return fmt.Sprintf("%.1f%s", v, unit)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.0fP", v)
}
