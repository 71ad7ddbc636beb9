// SPDX-License-Identifier: Apache-2.0

// Package bench is `vxbpf bench`: it compares vxbpf with the kernel's VXLAN and
// with no overlay at all, on this machine, in hosts that it builds of network
// namespaces.
//
// A run is rounds: bare, kernel, vxbpf on both hosts, vxbpf on one, bare, ...
// Ratios are made of rounds that ran next to each other. The first round of each
// row is warm-up and dropped. Each round proves by counters that it was what it
// says (see check.go); one that cannot is run again, and counts as a problem in
// the end. What is measured, and how, is one workload per file:
//
//	rr.go      request/response and connections, latency per request
//	bulk.go    TCP streams and UDP datagrams, socket to socket
//	inject.go  packets into and out of a container, without a sender's socket
//	scale.go   packet cost against FDB size
//	flood.go   a TCP stream under a flood of forged packets
//	programs.go  ns per run of each BPF program
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Options of Run.
type Options struct {
	// Binary is the vxbpf to be measured. Empty: the running program.
	Binary string
	// Quick is fewer and shorter rounds: under 2 minutes in all.
	Quick bool
	// Rounds per row, warm-up not counted. 0: 10, or 5 with Quick.
	Rounds int
	// RoundTime of one round. 0: 800 ms, or 150 ms with Quick.
	RoundTime time.Duration
	// Workloads and Profiles to run. Empty: all; with Quick, those of MTU 1500.
	Workloads, Profiles []string
	// Progress is where progress goes; Terminal: redraw one line.
	Progress io.Writer
	Terminal bool
	// Command and Commit are for the report.
	Command, Commit string
	// Log gets what the topologies say. nil: nothing.
	Log *slog.Logger

	// For tests: what a bed is instead of what it says, what is done to each bed
	// before the first round, and how many frames a round injects.
	actual  map[bedKind]bedKind
	corrupt func(*bed) error
	frames  uint64
	only    []bedKind // nil: all
}

// kinds are the beds that a workload runs on.
func (o *Options) kinds(w *workload) []bedKind {
	return slices.DeleteFunc(w.kinds(), func(k bedKind) bool { return o.only != nil && !slices.Contains(o.only, k) })
}

// Check fills in defaults and refuses what does not exist.
func (o *Options) Check() error {
	if o.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find own binary: %w", err)
		}
		o.Binary = self
	}
	if o.Rounds == 0 {
		o.Rounds = 10
		if o.Quick {
			o.Rounds = 5
		}
	}
	if o.Rounds < 1 || o.Rounds > 1000 {
		return fmt.Errorf("%d rounds: want 1 to 1000", o.Rounds)
	}
	if o.RoundTime == 0 {
		o.RoundTime = 800 * time.Millisecond
		if o.Quick {
			o.RoundTime = 150 * time.Millisecond
		}
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	known := func(what string, names []string, all [][2]string) error {
		for _, n := range names {
			if !slices.ContainsFunc(all, func(x [2]string) bool { return x[0] == n }) {
				return fmt.Errorf("unknown %s %q (see `vxbpf bench --list`)", what, n)
			}
		}
		return nil
	}
	return errors.Join(known("workload", o.Workloads, Names()), known("profile", o.Profiles, Profiles()))
}

func (o *Options) wants(name string) bool {
	if len(o.Workloads) > 0 {
		return slices.Contains(o.Workloads, name)
	}
	if name == floodName {
		return !o.Quick
	}
	return !o.Quick || !slices.ContainsFunc(workloads, func(w *workload) bool { return w.name == name && w.fullOnly })
}

func (o *Options) wantsProfile(p profile) bool {
	if len(o.Profiles) == 0 {
		return !o.Quick || p.mtu == 1500
	}
	return slices.Contains(o.Profiles, p.name)
}

// run is a run under way.
type run struct {
	Options
	report *Report
	rows   map[row]*Result
	prefix string
	cpus   []int
	bar    *bar
	port   int
	limit  time.Time // when all should be over; zero: no limit
}

// quickLimit leaves room under the two minutes that --quick promises.
const quickLimit = 95 * time.Second

// Run measures. The report is never nil when rounds have run, even if ctx ends
// in the middle or a self-check fails: the error is then in Report.Problems or
// Report.Interrupted. An error means that nothing could be measured.
func Run(ctx context.Context, o Options) (*Report, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	r := &run{Options: o, rows: map[row]*Result{}, prefix: fmt.Sprintf("bench%d%02x-", os.Getpid(), rand.N(256)), port: 20000}
	start := time.Now()
	if o.Quick {
		r.limit = start.Add(quickLimit)
	}
	var err error
	if r.cpus, err = allowedCPUs(); err != nil {
		return nil, err
	}
	r.report = &Report{Version: ReportVersion, Date: start.UTC().Truncate(time.Second), Command: o.Command, Commit: o.Commit,
		Machine: machine(len(r.cpus)), Rounds: o.Rounds, RoundTime: o.RoundTime.Seconds(),
		Notes: append(notes(), circumstances()...), Problems: []string{}, Results: []Result{}, Programs: []Program{}, Scale: []Scale{}, Flood: []Flood{}}
	defer moreThreads()()
	r.bar = newBar(o.Progress, o.Terminal, r.steps())
	err = r.all(ctx)
	r.bar.done()
	for _, x := range r.rows {
		if len(x.Raw) > 0 {
			r.report.Results = append(r.report.Results, *x)
		}
	}
	slices.SortFunc(r.report.Results, compareRows)
	r.report.summarize()
	r.report.Seconds = time.Since(start).Seconds()
	if ctx.Err() != nil {
		r.report.Interrupted = true
		err = nil
	}
	if err != nil && len(r.report.Results)+len(r.report.Scale)+len(r.report.Flood)+len(r.report.Programs) == 0 {
		return nil, err
	}
	if err != nil {
		r.report.Problems = append(r.report.Problems, err.Error())
	}
	return r.report, nil
}

// notes says once what all rows have in common.
func notes() []string {
	return []string{
		"the underlay is a veth pair between network namespaces of one machine: absolute figures are veth figures, ratios are the message",
		"kernel is what `vxbpf load` makes with `datapath: kernel` and `allowed_sources: any`: bridge and kernel vxlan device, outer UDP checksum 0, as vxbpf itself sends; no program and no daemon of vxbpf runs there",
		"bare bridges the containers over the underlay without encapsulation; containers have the underlay's MTU less 50 there too, so the payload per packet is equal",
		"sides one: the first host runs vxbpf, the other kernel vxlan",
		"spread: how wide the interval is that holds the true median with 93 % certainty, by order statistics (5 rounds: least to greatest; 10: without the outermost two), in per cent of the median",
		"ageing is 1 h on all datapaths, so that no address ages within the run",
		"cpu is the time of the sending and receiving threads, with the softirq work done in them, and of ksoftirqd; kernel statistics of the whole machine are in cpu.system and cpu.softirq of each round",
		"decap, encap and many_flows are net of the generator, which is everything up to the frame in the receiving driver and is measured in the same round; the sink is included",
	}
}

// moreThreads makes room for threads that wait in raw system calls.
func moreThreads() (restore func()) {
	was := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(max(was, 48))
	return func() { runtime.GOMAXPROCS(was) }
}

// quiet runs fn without garbage collection: it would wait for threads that sit
// in raw system calls.
func quiet(fn func()) {
	runtime.GC()
	was := debug.SetGCPercent(-1)
	fn()
	debug.SetGCPercent(was)
}

func (r *run) selected(p profile) (out []*workload) {
	for _, w := range workloads {
		if r.wants(w.name) && w.in(p) && r.wantsProfile(p) && (!w.twoCPUs || len(r.cpus) > 1) {
			out = append(out, w)
		}
	}
	return out
}

// steps is how many rounds there will be, for the progress bar.
func (r *run) steps() (n int) {
	for _, p := range profiles {
		for _, w := range r.selected(p) {
			n += len(r.kinds(w)) * (r.Rounds + 1)
		}
	}
	if r.wants(scaleName) {
		n += r.scaleSteps()
	}
	if r.wants(floodName) {
		n += r.floodSteps()
	}
	if r.wants(programsName) {
		n += len(programWorkloads)
	}
	return n
}

func (r *run) all(ctx context.Context) error {
	if len(r.cpus) < 2 {
		r.report.Notes = append(r.report.Notes, "one CPU only: the two CPU workloads were left out, streams run on one CPU")
	}
	var sizes []int
	for _, p := range profiles {
		if !slices.Contains(sizes, p.mtu) {
			sizes = append(sizes, p.mtu)
		}
	}
	for _, mtu := range sizes {
		if err := r.size(ctx, mtu); err != nil {
			return err
		}
	}
	if r.wants(scaleName) {
		if err := r.scale(ctx); err != nil {
			return err
		}
	}
	if r.wants(floodName) {
		return r.flood(ctx)
	}
	return nil
}

// size runs all profiles of one underlay MTU, on beds that stand meanwhile.
func (r *run) size(ctx context.Context, mtu int) (err error) {
	var kinds []bedKind
	programs := r.wants(programsName) && mtu == 1500
	if programs {
		kinds = append(kinds, genBed, tcBed)
	}
	for _, p := range profiles {
		if p.mtu != mtu {
			continue
		}
		for _, w := range r.selected(p) {
			for _, k := range r.kinds(w) {
				if !slices.Contains(kinds, k) {
					kinds = append(kinds, k)
				}
			}
		}
	}
	if len(kinds) == 0 {
		return nil
	}
	r.bar.say("building " + strconv.Itoa(len(kinds)) + " topologies, MTU " + strconv.Itoa(mtu))
	beds, err := r.build(ctx, kinds, mtu)
	defer func() { err = errors.Join(err, downAll(beds)) }()
	if err != nil {
		return err
	}
	for _, p := range profiles {
		if p.mtu != mtu {
			continue
		}
		if err := r.profile(ctx, p, beds); err != nil {
			return err
		}
	}
	if programs {
		return r.programs(ctx, beds[tcBed], profiles[0])
	}
	return nil
}

// build makes the beds side by side.
func (r *run) build(ctx context.Context, kinds []bedKind, mtu int) (map[bedKind]*bed, error) {
	made := make([]*bed, len(kinds))
	g, gctx := errgroup.WithContext(ctx)
	for i, k := range kinds {
		o := bedOptions{prefix: r.prefix, binary: r.Binary, log: r.Log}
		if c, ok := r.actual[k]; ok {
			o.actual = &c
		}
		g.Go(func() (err error) {
			made[i], err = newBed(gctx, k, mtu, o)
			return err
		})
	}
	err := g.Wait()
	beds := map[bedKind]*bed{}
	for i, b := range made {
		if b != nil {
			beds[kinds[i]] = b
			if r.corrupt != nil && err == nil {
				err = r.corrupt(b)
			}
		}
	}
	return beds, err
}

func downAll(beds map[bedKind]*bed) error {
	g := errgroup.Group{}
	for _, b := range beds {
		g.Go(b.down)
	}
	return g.Wait()
}

// profile sets the underlay up for one profile and runs its workloads.
func (r *run) profile(ctx context.Context, p profile, beds map[bedKind]*bed) error {
	todo := r.selected(p)
	if len(todo) == 0 {
		return nil
	}
	for _, b := range beds {
		if err := b.setProfile(p); err != nil {
			return err
		}
	}
	for _, w := range todo {
		if err := r.workload(ctx, p, w, beds); err != nil {
			return err
		}
	}
	return nil
}

// setProfile sets the offloads of the underlay devices.
func (b *bed) setProfile(p profile) error {
	for i := range b.lab.Hosts {
		ns := b.host(i).NS
		err := errors.Join(
			offload(ns, underlayDev, setTSO, !p.wire),
			offload(ns, underlayDev, setGSO, !p.wire),
			offload(ns, underlayDev, setGRO, p.wire))
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) workload(ctx context.Context, p profile, w *workload, beds map[bedKind]*bed) (err error) {
	ready := map[bedKind]*injection{}
	defer func() {
		for _, x := range ready {
			err = errors.Join(err, x.close())
		}
	}()
	if w.prepare != nil {
		for _, k := range r.kinds(w) {
			r.bar.say("preparing " + w.name + " on " + k.String())
			x, perr := w.prepare(ctx, beds[k])
			if perr != nil {
				return fmt.Errorf("prepare %s on %s: %w", w.name, k, perr)
			}
			ready[k] = x
		}
	}
	failed := map[bedKind]bool{}
	for i := range r.Rounds + 1 {
		generator := 0.0
		for _, k := range r.kinds(w) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if failed[k] {
				r.bar.step("")
				continue
			}
			s := r.slot(beds[k], p, i == 0)
			s.inject, s.generator = ready[k], generator
			r.bar.step(w.name + " " + p.name + " " + k.String())
			x, tries, err := r.round(ctx, w, s)
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				r.report.Problems = append(r.report.Problems, fmt.Sprintf("%s, %s, %s: %v", w.name, p.name, k, err))
				failed[k] = true // it would fail again, and cost time
				continue
			}
			if k == genBed {
				generator = x.Value
				continue
			}
			if i == 0 {
				continue // warm-up
			}
			x.Round = i
			res := r.result(w, p, k)
			res.Raw = append(res.Raw, x)
			res.Retried += tries - 1
		}
	}
	return nil
}

// slot chooses length and place of the next round.
func (r *run) slot(b *bed, p profile, warmup bool) slot {
	r.port++
	s := slot{bed: b, profile: p, dur: r.RoundTime, frames: r.frames, port: 10000 + r.port%50000, pathCPU: r.cpus[len(r.cpus)-1], farCPU: r.cpus[0]}
	if warmup {
		s.dur /= 2
	}
	if !r.limit.IsZero() {
		// Behind schedule: shorter rounds rather than fewer rows.
		const between = 60 * time.Millisecond // building up and looking
		if left := time.Until(r.limit)/time.Duration(max(1, r.bar.left())) - between; left < s.dur {
			s.dur = max(left, 40*time.Millisecond)
		}
	}
	return s
}

// tries of a round that a self-check refuses.
const tries = 3

// round runs one round and its self-checks; a refused one again.
func (r *run) round(ctx context.Context, w *workload, s slot) (x Round, n int, err error) {
	for n = 1; n <= tries; n++ {
		if n > 1 {
			r.port++
			s.port = 10000 + r.port%50000
		}
		x, err = once(ctx, w, s)
		if err == nil || ctx.Err() != nil {
			return x, n, err
		}
	}
	return x, tries, fmt.Errorf("refused %d times: %w", tries, err)
}

func once(ctx context.Context, w *workload, s slot) (x Round, err error) {
	quiet(func() {
		if s.bed.datapath == genBed.datapath {
			x, err = w.run(ctx, s)
			return
		}
		var before, after tally
		if err = s.bed.look(); err != nil {
			return
		}
		if before, err = s.bed.tally(); err != nil {
			return
		}
		if x, err = w.run(ctx, s); err != nil {
			return
		}
		if after, err = s.bed.tally(); err != nil {
			return
		}
		err = s.bed.judge(w, s.profile, &x, before, after)
	})
	return x, err
}

func (r *run) result(w *workload, p profile, k bedKind) *Result {
	key := row{w.name, p.name, k.datapath, k.sides}
	x := r.rows[key]
	if x == nil {
		x = &Result{Workload: w.name, Profile: p.name, MTU: p.mtu, Datapath: k.datapath, Sides: k.sides, Unit: w.unit,
			Better: Higher, CPUUnit: w.cpuUnit}
		if w.lower {
			x.Better = Lower
		}
		r.rows[key] = x
	}
	return x
}

// compareRows sorts as the workloads, profiles and datapaths are listed.
func compareRows(a, b Result) int {
	place := func(x Result) int {
		w := slices.IndexFunc(workloads, func(w *workload) bool { return w.name == x.Workload })
		p := slices.IndexFunc(profiles, func(p profile) bool { return p.name == x.Profile })
		d := slices.Index([]string{Bare, Kernel, TC, XDP}, x.Datapath)
		return (p*100+w)*100 + d*10 + strings.Compare(x.Sides, Both)
	}
	return place(a) - place(b)
}
