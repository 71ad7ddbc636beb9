// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/diff"
)

// The same frames into K, kernel VXLAN alone, and X, vxbpf on all hosts; what
// comes out must be the same. See package diff. Each topology:
//
//	mgmt-1 mgmt-2   mgmt-1 mgmt-2   mgmt-1 mgmt-2
//	   br-mgmt         br-mgmt         br-mgmt
//	   h1 eth2         h2 eth2         h3 eth2     x1 eth2
//	        └─────────────┴──── sw0 ──────┴───────────┘
//
//	VXBPF_DIFF_SEED=n       the seed, else 1, or a random one with VXBPF_DIFF_FRAMES
//	VXBPF_DIFF_FRAMES=n     about so many frames in all
//	VXBPF_DIFF_PROFILE=p,p  these profiles, or all
//	VXBPF_DIFF_BATCH=n      only this batch, to look at a difference again
//	VXBPF_DIFF_WITHOUT=k;k  leave out these kinds of frames
//	VXBPF_DIFF_KERNEL=1     X is K once more: what the test itself does differently

// Frames in a batch, without the announcements at its end.
const diffBatch = 400

// diffEnv is a number from the environment.
func diffEnv(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// diffRun is two topologies of one profile.
type diffRun struct {
	t    *testing.T
	ctx  context.Context
	p    diff.Profile
	seed uint64
	k, x *diff.Topology
	g    *diff.Generator
	// Of the hosts of X, by name.
	daemons map[string]*testenv.Daemon
	pinned  map[string]*vxmaps.Set

	sent, out int
	checked   bool // that Compare would have said something
}

func newDiffRun(t *testing.T, p diff.Profile, seed uint64) *diffRun {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	r := &diffRun{t: t, ctx: t.Context(), p: p, seed: seed, daemons: map[string]*testenv.Daemon{}, pinned: map[string]*vxmaps.Set{}}
	start := func(h *testenv.Host, config []byte) error {
		d, err := h.Start(r.ctx, testenv.StartOptions{Binary: bin, Config: config})
		if err != nil {
			return err
		}
		r.daemons[h.Name] = d
		return r.open(h)
	}
	if os.Getenv("VXBPF_DIFF_KERNEL") != "" {
		start = nil
	}
	open := func(name string, start func(*testenv.Host, []byte) error) *diff.Topology {
		top, err := diff.New(r.ctx, fmt.Sprintf("%s%06x", name, rand.N(1<<24)), p, start)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if t.Failed() && start != nil {
				for host, d := range r.daemons {
					t.Logf("log of %s:\n%s", host, d.Log())
				}
			}
			if err := top.Close(); err != nil {
				t.Error(err)
			}
		})
		return top
	}
	r.k = open("k", nil)
	r.x = open("x", start)
	kw, err := r.k.World()
	if err != nil {
		t.Fatal(err)
	}
	xw, err := r.x.World()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(kw, xw) {
		t.Fatalf("the topologies are not alike:\n%+v\n%+v", kw, xw)
	}
	weights := maps.Clone(p.Kinds)
	for k := range strings.SplitSeq(os.Getenv("VXBPF_DIFF_WITHOUT"), ";") {
		if weights == nil {
			weights = map[string]int{}
		}
		weights[k] = 0
	}
	r.g = diff.NewGenerator(kw, seed, weights)
	return r
}

// open opens the pinned maps of a host for the time of the test.
func (r *diffRun) open(h *testenv.Host) error {
	dirs, err := filepath.Glob(filepath.Join(loader.DefaultPinRoot, h.Instance(), "maps-*"))
	if err != nil || len(dirs) != 1 {
		return fmt.Errorf("pinned maps of %s: %v %w", h.Name, dirs, err)
	}
	set, done, err := vxmaps.OpenPinned(dirs[0])
	if err != nil {
		return err
	}
	r.t.Cleanup(func() { _ = done() })
	r.pinned[h.Name] = set
	return nil
}

// unknown waits until the fast path of every host has all MACs that stay where
// they are, and returns those that it has not got in time.
func (r *diffRun) unknown(bound time.Duration) (missing []string) {
	r.t.Helper()
	end := time.Now().Add(bound)
	for host, set := range r.pinned {
		for {
			table, err := set.FDB.All(func(uint32) netip.Addr { return netip.Addr{} })
			if err != nil {
				r.t.Fatal(err)
			}
			known := map[fdb.MAC]bool{}
			for k, e := range table {
				known[k.MAC] = !e.Pending
			}
			left := slices.DeleteFunc(r.g.MACs(), func(m fdb.MAC) bool { return known[m] })
			if len(left) == 0 {
				break
			}
			if time.Now().After(end) {
				missing = append(missing, fmt.Sprint(host, left))
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return missing
}

// counters of all hosts of X.
func (r *diffRun) counters() map[string]uint64 {
	out := map[string]uint64{}
	for host, set := range r.pinned {
		c, err := set.Counters.Read(1)
		if err != nil {
			r.t.Fatal(err)
		}
		for hook, reasons := range c {
			for reason, n := range reasons {
				out[fmt.Sprintf("%s %v %v", host, hook, reason)] = n.Packets
			}
		}
	}
	return out
}

// both sends a batch into both topologies.
func (r *diffRun) both(steps []diff.Step) (k, x diff.Run) {
	r.t.Helper()
	k, err := r.k.Run(r.ctx, steps)
	if err != nil {
		r.t.Fatal(err)
	}
	if x, err = r.x.Run(r.ctx, steps); err != nil {
		r.t.Fatal(err)
	}
	return k, x
}

// batch sends steps and says what differed.
func (r *diffRun) batch(steps []diff.Step, flows diff.Flows) (report string) {
	r.t.Helper()
	before := r.counters()
	k, x := r.both(steps)
	r.sent += len(steps)
	r.out += len(k.Frames)
	flows.Add(x.Frames)
	if !r.checked && len(x.Frames) > 0 {
		// The comparison can fail.
		for what, frames := range diff.Mutants(x.Frames, rand.New(rand.NewPCG(r.seed, 0))) {
			if len(diff.Compare(x.Frames, frames)) == 0 {
				r.t.Errorf("%s goes unnoticed", what)
			}
		}
		r.checked = true
	}
	report = diff.Report(steps, k, x, 5)
	if report != "" {
		for what, n := range r.counters() {
			if n != before[what] {
				report += fmt.Sprintf("counter %s: %d\n", what, n-before[what])
			}
		}
		report += r.shrink(steps, k, x)
	}
	for i := range steps {
		if !diff.SameError(k.Errors[i], x.Errors[i]) {
			report += fmt.Sprintf("frame %d, %s, at %s: K says %v, X says %v\n", i, steps[i].Kind, steps[i].At, k.Errors[i], x.Errors[i])
		}
	}
	kf, err := r.k.FDBs()
	if err != nil {
		r.t.Fatal(err)
	}
	xf, err := r.x.FDBs()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, line := range diff.CompareSets(kf, xf) {
		report += "FDB " + line + "\n"
	}
	return report
}

// shrink tries the first frame with a difference again, with little before it.
func (r *diffRun) shrink(steps []diff.Step, k, x diff.Run) string {
	i := diff.First(steps, k, x)
	if i < 0 {
		return ""
	}
	for _, few := range diff.Related(steps, i) {
		r.both(r.g.Announce())
		r.unknown(5 * time.Second)
		k, x := r.both(few)
		if s := diff.Report(few, k, x, 1); s != "" {
			return fmt.Sprintf("it shows again with %d frames:\n%s", len(few), s)
		}
	}
	return fmt.Sprintf("frame %d and those before it that share its addresses do not show it again\n", i)
}

func TestDiff(t *testing.T) {
	// One seed where people wait: few frames of a random one may be too few of the kinds that BPF carries.
	seed := diffEnv(t, "VXBPF_DIFF_SEED", 1)
	if os.Getenv("VXBPF_DIFF_SEED") == "" && os.Getenv("VXBPF_DIFF_FRAMES") != "" {
		seed = rand.Uint64N(1 << 32)
	}
	frames := int(diffEnv(t, "VXBPF_DIFF_FRAMES", 4500))
	names := os.Getenv("VXBPF_DIFF_PROFILE")
	if names == "" {
		names = "ipv4,ipv6,gro"
	}
	profiles := slices.DeleteFunc(slices.Clone(diff.Profiles), func(p diff.Profile) bool {
		return names != "all" && !slices.Contains(strings.Split(names, ","), p.Name)
	})
	if len(profiles) == 0 {
		t.Fatalf("no profile is called %s", names)
	}
	var sent, out int
	for _, p := range profiles {
		t.Run(p.Name, func(t *testing.T) {
			r := newDiffRun(t, p, seed)
			r.run(frames / len(profiles))
			sent += r.sent
			out += r.out
		})
	}
	t.Logf("seed %d: %d frames in, %d out, over %d profiles", seed, sent, out, len(profiles))
}

func (r *diffRun) run(frames int) {
	t := r.t
	flows := diff.Flows{}
	only := int(diffEnv(t, "VXBPF_DIFF_BATCH", 0))
	replay := fmt.Sprintf("VXBPF_DIFF_SEED=%d VXBPF_DIFF_PROFILE=%s VXBPF_DIFF_FRAMES=%d go test ./testenv/e2e -run 'TestDiff$' -count=1 -v", r.seed, r.p.Name, frames)
	if report := r.batch(append(r.g.Announce(), r.g.Queries()...), flows); report != "" {
		t.Fatalf("first words, seed %d, profile %s:\n%s", r.seed, r.p.Name, report)
	}
	time.Sleep(300 * time.Millisecond) // see Queries
	settled := r.p.MinSent > 0
	m := r.unknown(map[bool]time.Duration{true: 5 * time.Second}[settled])
	if len(m) > 0 && settled {
		t.Errorf("not on the fast path: %v", m)
	}
	for n, failed := 1, 0; r.sent < frames && failed < 3; n++ {
		if only != 0 {
			n = only
		}
		if report := r.batch(r.g.Batch(n, diffBatch), flows); report != "" {
			failed++
			t.Errorf("batch %d of seed %d, profile %s:\n%s\nall of it again: %s\nthis batch alone: VXBPF_DIFF_BATCH=%d %s", n, r.seed, r.p.Name, report, replay, n, replay)
		}
		switch {
		case only != 0:
			return
		case n%8 == 0 && settled:
			// What programs have removed comes back.
			if m := r.unknown(10 * time.Second); len(m) > 0 {
				t.Errorf("after batch %d of seed %d, profile %s, not on the fast path again: %v", n, r.seed, r.p.Name, m)
				lines, err := r.x.FDBs()
				t.Logf("FDBs %v:\n%s", err, strings.Join(lines, "\n"))
			}
		case n%4 != 3:
			r.unknown(20 * time.Millisecond)
		}
	}
	if m := diff.CompareSets(r.k.Reached(), r.x.Reached()); len(m) > 0 {
		t.Errorf("broadcasts came out elsewhere: %v", m)
	}
	// The kernel's port for what takes the slow path, another on the fast path.
	if s := flows.Spread(2); len(s) > 0 {
		t.Errorf("%d flows with more than 2 outer source ports, the first %s", len(s), s[0])
	}
	t.Logf("%d frames in, %d out", r.sent, r.out)
	// All hosts together: what a seed has one of them send is chance.
	var sent, received share
	var reasons []any
	for host := range r.daemons {
		s := r.status(host)
		t.Logf("%s: sent %d of %d on the fast path, received %d of %d", host, s.Sent.Fast, s.Sent.Total, s.Received.Fast, s.Received.Total)
		sent, received, reasons = sent.plus(s.Sent), received.plus(s.Received), append(reasons, host, s.Reasons)
	}
	if sent.ratio() < r.p.MinSent || received.ratio() < r.p.MinReceived {
		t.Errorf("too little on the fast path, sent %v, received %v: the comparison says little: %v", sent, received, reasons)
	}
}

func (r *diffRun) status(host string) networkStatus {
	r.t.Helper()
	bin, err := binary()
	if err != nil {
		r.t.Fatal(err)
	}
	h := r.x.Lab.Host(host)
	out, err := h.NS.Command(r.ctx, bin, "--instance", h.Instance(), "status", "-o", "json").Output()
	var s status
	if jerr := json.Unmarshal(out, &s); jerr != nil || len(s.Networks) != 1 {
		r.t.Fatalf("status of %s: %v %v\n%s", host, err, jerr, out)
	}
	return s.Networks[0]
}

// That the test cuts GSO packets up as the kernel does: the kernel has to, where
// no device does it.
func TestDiffSegments(t *testing.T) {
	p := diff.Profiles[slices.IndexFunc(diff.Profiles, func(p diff.Profile) bool { return p.Name == "offloads-off" })]
	top, err := diff.New(t.Context(), fmt.Sprintf("s%06x", rand.N(1<<24)), p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := top.Close(); err != nil {
			t.Error(err)
		}
	}()
	w, err := top.World()
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	g := diff.NewGenerator(w, seed, nil)
	if _, err := top.Run(t.Context(), g.Announce()); err != nil {
		t.Fatal(err)
	}
	steps := g.GSO(200)
	run, err := top.Run(t.Context(), steps)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []diff.Norm
	for _, s := range steps {
		frames, err := diff.Segments(s.Frame, s.Hdr)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			want = append(want, diff.Norm{Data: string(f)})
		}
	}
	for _, f := range run.Frames {
		if f.At.Dev != "eth2" && !strings.Contains(f.Data, "marker") {
			got = append(got, diff.Norm{Data: f.Data, Note: f.Note})
		}
	}
	if d := diff.Compare(want, got); len(d) > 0 || len(want) < 400 {
		t.Errorf("seed %d: of %d segments %d differ, the first %d times instead of %d:\n%s", seed, len(want), len(d), d[0].X, d[0].K, diff.Decode([]byte(d[0].Data)))
	}
}
