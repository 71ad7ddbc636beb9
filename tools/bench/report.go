// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"
)

// ReportVersion is the version of the JSON form. Keys are added, never renamed.
const ReportVersion = 1

// Report is everything that a run has measured.
type Report struct {
	Version     int       `json:"version"`
	Date        time.Time `json:"date"`
	Command     string    `json:"command"`
	Commit      string    `json:"commit"`
	Machine     Machine   `json:"machine"`
	Rounds      int       `json:"rounds"`        // per row, warm-up not counted
	RoundTime   float64   `json:"round_seconds"` // length of a round as planned
	Seconds     float64   `json:"seconds"`       // of the whole run
	Interrupted bool      `json:"interrupted"`   // ended early: what is here was measured, the rest is missing
	Notes       []string  `json:"notes"`         // what the figures mean, and what was not run
	Problems    []string  `json:"problems"`      // self-checks that failed; not empty = the run is no evidence
	Results     []Result  `json:"results"`
	Programs    []Program `json:"programs"`
	Scale       []Scale   `json:"scale"`
	Flood       []Flood   `json:"flood"`
}

// Machine is where a Report was made.
type Machine struct {
	Hostname    string `json:"hostname"`
	Kernel      string `json:"kernel"`
	Arch        string `json:"arch"`
	CPU         string `json:"cpu_model"`
	CPUs        int    `json:"cpus"`
	Memory      uint64 `json:"memory_bytes"`
	Hypervisor  bool   `json:"hypervisor"`
	Clocksource string `json:"clocksource"`
}

// Result is one row: a workload on one datapath in one profile.
type Result struct {
	Workload string `json:"workload"`
	Profile  string `json:"profile"`
	MTU      int    `json:"mtu"`      // of the underlay; the containers have 50 less, on bare too
	Datapath string `json:"datapath"` // bare, kernel, tc, xdp
	Sides    string `json:"sides"`    // both, or one: the other host runs kernel vxlan
	Unit     string `json:"unit"`
	Better   string `json:"better"` // higher or lower

	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Spread float64 `json:"spread"` // width of the interval of the median, as a share of it

	// Ratios are made round by round with the neighbouring round of the other
	// datapath, then the median is taken. > 1 is better than it. 0: not known.
	RatioToKernel float64 `json:"ratio_to_kernel"`
	RatioMin      float64 `json:"ratio_to_kernel_min"`
	RatioMax      float64 `json:"ratio_to_kernel_max"`
	// RatioLow and RatioHigh enclose the true ratio to the kernel with 93 % certainty.
	RatioLow    float64 `json:"ratio_to_kernel_low"`
	RatioHigh   float64 `json:"ratio_to_kernel_high"`
	RatioToBare float64 `json:"ratio_to_bare"`

	// CPUUnit and CPU: what it cost, median over the rounds.
	CPUUnit    string   `json:"cpu_unit"` // ns/GB, ns/packet or ns/transaction
	CPU        float64  `json:"cpu"`
	CPUKernel  float64  `json:"cpu_ratio_to_kernel"` // < 1 is cheaper than the kernel
	FastShare  *float64 `json:"fast_share"`          // of the packets that vxbpf saw; null where it does not run
	Lost       uint64   `json:"lost"`
	Retried    int      `json:"retried"` // rounds that a self-check refused and that were run again
	Latency    *Latency `json:"latency,omitempty"`
	Conclusive bool     `json:"conclusive"`
	Note       string   `json:"note,omitempty"`
	Raw        []Round  `json:"rounds"`
}

// Latency of single requests, in microseconds.
type Latency struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	// CDF is pairs of share and microseconds.
	CDF [][2]float64 `json:"cdf"`
}

// Round is one measurement.
type Round struct {
	Round    int      `json:"round"` // rounds of the same number ran next to each other
	Value    float64  `json:"value"`
	Seconds  float64  `json:"seconds"`
	Sent     uint64   `json:"sent"`     // packets or requests offered
	Received uint64   `json:"received"` // of them arrived, or were answered
	Lost     uint64   `json:"lost"`
	Bytes    uint64   `json:"bytes"`       // payload that arrived
	Resent   uint64   `json:"retransmits"` // TCP segments
	CPU      CPU      `json:"cpu"`
	Cost     float64  `json:"cpu_cost"`            // in the row's cpu_unit
	Gross    float64  `json:"gross,omitempty"`     // ns per packet, generator included
	Gen      float64  `json:"generator,omitempty"` // ns per packet of the generator alone, same round
	Fast     *float64 `json:"fast_share"`
	Latency  *Latency `json:"latency,omitempty"`
	Drops    uint64   `json:"drops"` // that the devices on the way counted
}

// CPU in seconds.
type CPU struct {
	// Seconds of the generator's threads, with the softirq work done in them,
	// and of ksoftirqd: what the round cost, to the nanosecond.
	Seconds   float64 `json:"seconds"`
	Ksoftirqd float64 `json:"ksoftirqd"`
	// System and Softirq of the whole machine, /proc/stat, in steps of 10 ms.
	System  float64 `json:"system"`
	Softirq float64 `json:"softirq"`
}

// Program is what one program costs per run, as the kernel counts it. The
// statistics themselves are in it: about 20 ns.
type Program struct {
	Name     string  `json:"program"`
	Workload string  `json:"workload"`
	Host     string  `json:"host"`
	Runs     uint64  `json:"runs"`
	Packets  uint64  `json:"packets"` // that the workload sent through it
	NS       float64 `json:"ns_per_run"`
}

// Scale is the cost of a packet at one size of the FDB.
type Scale struct {
	Entries int     `json:"entries"`
	Active  int     `json:"active_entries"` // of them in use, at random
	Median  float64 `json:"median"`         // ns per packet, net of the generator
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Ratio   float64 `json:"ratio"`          // to the smallest table, per round; < 1 is better
	NS      float64 `json:"ns_per_program"` // of vx_tc_decap, statistics (20 ns) included
	Rounds  []Round `json:"rounds"`
}

// Flood is one datapath under a flood of forged packets.
type Flood struct {
	Datapath string `json:"datapath"`
	Check    string `json:"check"`  // none, tc or xdp: where sources are checked
	Wanted   int    `json:"wanted"` // forged packets/s that were to be offered

	// Medians over the rounds. Rates of the TCP stream are Gb/s.
	Alone     float64 `json:"alone"`
	Generator float64 `json:"generator"` // with the same flood into a driver that drops it, elsewhere
	Flood     float64 `json:"flood"`
	Offered   float64 `json:"offered"` // forged packets/s
	// Kept is Flood by Generator, round by round; KeptAlone by Alone.
	Kept      float64 `json:"kept"`
	KeptMin   float64 `json:"kept_min"`
	KeptMax   float64 `json:"kept_max"`
	KeptAlone float64 `json:"kept_alone"`
	Packets   uint64  `json:"packets"` // forged, of all rounds
	Checked   uint64  `json:"checked"` // of them counted by the check
	Retried   int     `json:"retried"`

	Rounds []FloodRound `json:"rounds"`
}

// FloodRound is three streams, one after the other.
type FloodRound struct {
	Round     int     `json:"round"`
	Alone     float64 `json:"alone"` // Gb/s
	Generator float64 `json:"generator"`
	Flood     float64 `json:"flood"`
	Stalled   bool    `json:"stalled,omitempty"` // the flooded stream stood still until it was given up
	Sent      uint64  `json:"sent"`              // forged packets at the flooded host
	Seconds   float64 `json:"seconds"`           // that the flood lasted
	Beside    float64 `json:"beside"`            // forged packets/s while the generator alone ran
	Dropped   uint64  `json:"dropped"`           // by full rings and queues of the devices
	Checked   uint64  `json:"checked"`           // by the source check
	Learnt    float64 `json:"learnt"`            // share of the forged MAC addresses that the kernel then knew, by sample
}

// The words of a Result.
const (
	Bare   = "bare"
	Kernel = "kernel"
	TC     = "tc"
	XDP    = "xdp"

	Both = "both"
	One  = "one"

	Higher = "higher"
	Lower  = "lower"
)

// noisy is the spread from which a row says that it proves nothing.
const noisy = 0.30

// row names a Result.
type row struct{ workload, profile, datapath, sides string }

func (x *Result) key() row { return row{x.Workload, x.Profile, x.Datapath, x.Sides} }

// Find returns a result, nil if there is none.
func (r *Report) Find(workload, profile, datapath, sides string) *Result {
	for i := range r.Results {
		if r.Results[i].key() == (row{workload, profile, datapath, sides}) {
			return &r.Results[i]
		}
	}
	return nil
}

// summarize fills in all that follows from the raw rounds.
func (r *Report) summarize() {
	for i := range r.Results {
		x := &r.Results[i]
		x.summarize(r.Find(x.Workload, x.Profile, Kernel, Both), r.Find(x.Workload, x.Profile, Bare, Both))
	}
	r.summarizeScale()
	for i := range r.Flood {
		r.Flood[i].summarize()
	}
}

func (f *Flood) summarize() {
	pick := func(get func(FloodRound) float64) (out []float64) {
		for _, r := range f.Rounds {
			out = append(out, get(r))
		}
		return out
	}
	kept := pick(func(r FloodRound) float64 { return r.Flood / r.Generator })
	f.Kept, f.KeptMin, f.KeptMax = median(kept), slices.Min(kept), slices.Max(kept)
	f.KeptAlone = median(pick(func(r FloodRound) float64 { return r.Flood / r.Alone }))
	f.Alone = median(pick(func(r FloodRound) float64 { return r.Alone }))
	f.Generator = median(pick(func(r FloodRound) float64 { return r.Generator }))
	f.Flood = median(pick(func(r FloodRound) float64 { return r.Flood }))
	f.Offered = median(pick(func(r FloodRound) float64 { return float64(r.Sent) / r.Seconds }))
	f.Packets, f.Checked = 0, 0
	for _, r := range f.Rounds {
		f.Packets, f.Checked = f.Packets+r.Sent, f.Checked+r.Checked
	}
}

func (r *Report) summarizeScale() {
	for i := range r.Scale {
		s := &r.Scale[i]
		v := column(s.Rounds, func(r Round) float64 { return r.Value })
		s.Median, s.Min, s.Max = median(v), slices.Min(v), slices.Max(v)
		s.Ratio = median(ratios(s.Rounds, r.Scale[0].Rounds, func(a, b Round) float64 { return a.Value / b.Value }))
	}
}

func (x *Result) summarize(kernel, bare *Result) {
	if len(x.Raw) == 0 {
		return
	}
	v := column(x.Raw, func(r Round) float64 { return r.Value })
	x.Median, x.Min, x.Max = median(v), slices.Min(v), slices.Max(v)
	lo, hi := interval(v)
	x.Spread = (hi - lo) / x.Median
	x.CPU = median(column(x.Raw, func(r Round) float64 { return r.Cost }))
	better := func(a, b Round) float64 {
		if x.Better == Lower {
			return b.Value / a.Value
		}
		return a.Value / b.Value
	}
	judged, what := x.Spread, "spread"
	if kernel != nil {
		if rs := ratios(x.Raw, kernel.Raw, better); len(rs) > 0 {
			x.RatioToKernel, x.RatioMin, x.RatioMax = median(rs), slices.Min(rs), slices.Max(rs)
			x.RatioLow, x.RatioHigh = interval(rs)
			if x.Datapath != Kernel {
				// Rounds that drift together leave the ratio as it is.
				judged, what = (x.RatioHigh-x.RatioLow)/x.RatioToKernel, "ratio's spread"
			}
		}
		x.CPUKernel = median(ratios(x.Raw, kernel.Raw, func(a, b Round) float64 { return a.Cost / b.Cost }))
	}
	if bare != nil {
		x.RatioToBare = median(ratios(x.Raw, bare.Raw, better))
	}
	x.Conclusive, x.Note = judged < noisy, ""
	if !x.Conclusive {
		x.Note = fmt.Sprintf("%s %.0f %%: not conclusive", what, 100*judged)
	}
	x.Lost, x.FastShare, x.Latency = 0, nil, nil
	var share []float64
	var lats []*Latency
	for _, r := range x.Raw {
		x.Lost += r.Lost
		if r.Fast != nil {
			share = append(share, *r.Fast)
		}
		if r.Latency != nil {
			lats = append(lats, r.Latency)
		}
	}
	if len(share) > 0 {
		worst := slices.Min(share)
		x.FastShare = &worst
	}
	if len(lats) > 0 {
		x.Latency = medianLatency(lats)
	}
}

// medianLatency takes each quantile's median over the rounds.
func medianLatency(all []*Latency) *Latency {
	pick := func(f func(*Latency) float64) float64 {
		var v []float64
		for _, l := range all {
			v = append(v, f(l))
		}
		return median(v)
	}
	out := &Latency{
		P50:  pick(func(l *Latency) float64 { return l.P50 }),
		P99:  pick(func(l *Latency) float64 { return l.P99 }),
		P999: pick(func(l *Latency) float64 { return l.P999 }),
	}
	for i, p := range all[0].CDF {
		out.CDF = append(out.CDF, [2]float64{p[0], pick(func(l *Latency) float64 { return l.CDF[i][1] })})
	}
	return out
}

func column(rs []Round, f func(Round) float64) []float64 {
	out := make([]float64, 0, len(rs))
	for _, r := range rs {
		out = append(out, f(r))
	}
	return out
}

// ratios pairs rounds of the same number.
func ratios(a, b []Round, f func(a, b Round) float64) []float64 {
	var out []float64
	for _, x := range a {
		for _, y := range b {
			if x.Round == y.Round {
				if q := f(x, y); q > 0 && q < 1e9 {
					out = append(out, q)
				}
			}
		}
	}
	return out
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}

// interval holds the true median with a certainty of at least 93 %, whatever the
// distribution: from the k-th smallest to the k-th greatest value, where fewer
// than k of n values on one side of the median is improbable (binomial, p = 1/2).
// Fewer than 5 values do not give that: then it is the range.
func interval(v []float64) (lo, hi float64) {
	if len(v) == 0 {
		return 0, 0
	}
	s := slices.Sorted(slices.Values(v))
	n, k := len(s), 0
	p := math.Pow(0.5, float64(n)) // of i values below the median, from i = 0
	sum := p
	for i := 0; 2*sum < 0.07 && k < (n-1)/2; i++ {
		k = i
		p *= float64(n-i) / float64(i+1)
		sum += p
	}
	return s[k], s[n-1-k]
}

// WriteJSON writes the report.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(r)
}

// ReadReport reads a report that an earlier run wrote as JSON.
func ReadReport(file string) (*Report, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if r.Version != ReportVersion {
		return nil, fmt.Errorf("read %s: it has version %d, this vxbpf knows %d", file, r.Version, ReportVersion)
	}
	return &r, nil
}

// Err is what the self-checks found, nil if all passed.
func (r *Report) Err() error {
	var errs []error
	for _, p := range r.Problems {
		errs = append(errs, errors.New(p))
	}
	return errors.Join(errs...)
}
