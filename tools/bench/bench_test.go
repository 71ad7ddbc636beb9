// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
)

// These tests run every workload once, briefly: that it works and that its
// self-checks hold. No figure is asserted, the machine is shared.

var tmp string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "the benchmark makes network namespaces and loads BPF: run as root")
			return 1
		}
		var err error
		if tmp, err = os.MkdirTemp("", "vxbpf-bench-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(tmp)
		code := m.Run()
		labs, err := testenv.List()
		for _, l := range labs {
			if l.Creator == os.Getpid() {
				fmt.Fprintln(os.Stderr, "FAIL: left behind: lab", l.Name)
				code = 1
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		return code
	}())
}

var vxbpfBinary = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("VXBPF_BIN"); b != "" {
		return b, nil
	}
	out := filepath.Join(tmp, "vxbpf")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", out, "github.com/vxbpf/vxbpf/cmd/vxbpf")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build vxbpf: %w\n%s", err, b)
	}
	return out, nil
})

func brief(t *testing.T, names ...string) Options {
	t.Helper()
	bin, err := vxbpfBinary()
	if err != nil {
		t.Fatal(err)
	}
	return Options{Binary: bin, Quick: true, Rounds: 1, RoundTime: 40 * time.Millisecond, frames: 20_000, Workloads: names, Progress: t.Output()}
}

func TestEveryWorkload(t *testing.T) {
	var names []string
	for _, n := range Names() {
		names = append(names, n[0])
	}
	o := brief(t, names...)
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Error("self-check:", p)
	}
	cpus, err := allowedCPUs()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range workloads {
		for _, p := range profiles {
			if !w.in(p) || p.mtu != 1500 || w.twoCPUs && len(cpus) < 2 {
				continue
			}
			for _, k := range w.kinds() {
				if k == genBed {
					continue
				}
				x := r.Find(w.name, p.name, k.datapath, k.sides)
				if x == nil {
					t.Errorf("%s %s %s: no row", w.name, p.name, k)
					continue
				}
				if len(x.Raw) != 1 || x.Median <= 0 || x.CPU <= 0 || x.RatioToKernel <= 0 || x.RatioToBare <= 0 {
					t.Errorf("%s %s %s: %+v", w.name, p.name, k, x)
				}
				if (x.FastShare != nil) != (k.datapath == TC) {
					t.Errorf("%s %s %s: fast share %v", w.name, p.name, k, x.FastShare)
				}
				if (x.Latency != nil) != (w.unit == perSecond) || x.Latency != nil && (x.Latency.P50 <= 0 || x.Latency.P50 > x.Latency.P999) {
					t.Errorf("%s %s %s: latency %+v", w.name, p.name, k, x.Latency)
				}
			}
		}
	}
	if len(r.Scale) != 3 || r.Scale[1].Entries != 100_000 || r.Scale[1].Active != scaleActive || r.Scale[0].Median <= 0 || r.Scale[1].Ratio <= 0 || r.Scale[1].NS <= 0 {
		t.Errorf("scale: %+v", r.Scale)
	}
	if len(r.Flood) != len(floodKinds) {
		t.Errorf("flood: %+v", r.Flood)
	}
	for _, f := range r.Flood {
		if len(f.Rounds) != 1 || f.Alone <= 0 || f.Generator <= 0 || f.Offered <= 0 || (f.Checked > 0) != (f.Check != "none") {
			t.Errorf("flood: %+v", f)
		}
	}
	for _, want := range []string{"vx_tc_encap", "vx_tc_decap", "vx_tc_deliver"} {
		if !slices.ContainsFunc(r.Programs, func(p Program) bool { return p.Name == want && p.NS > 0 }) {
			t.Errorf("no time of %s in %+v", want, r.Programs)
		}
	}
}

// TestLargeMTU: the profiles that the quick run leaves out.
func TestLargeMTU(t *testing.T) {
	o := brief(t, "tcp_stream_4")
	o.Profiles = []string{"veth-9000", "wire-9000"}
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Problems {
		t.Error("self-check:", p)
	}
	if len(r.Results) != 8 {
		t.Errorf("%d rows, want 8", len(r.Results))
	}
}

// TestSabotage: a benchmark whose beds are not what they say must not pass.
func TestSabotage(t *testing.T) {
	detach := func(t *testing.T, drop *counterProg, b *bed) error {
		d, err := attachTCX(b.host(1).NS, underlayDev, drop.prog)
		if err == nil {
			b.undo = append(b.undo, d)
		}
		return err
	}
	for _, tc := range []struct {
		name      string
		workload  string
		only      []bedKind
		actual    map[bedKind]bedKind
		corrupt   func(t *testing.T, b *bed) error
		want      []string // one of them
		survivors bool     // other rows are still there
	}{
		{name: "kernel claimed as tc", workload: "udp_rr", only: []bedKind{tcBed}, actual: map[bedKind]bedKind{tcBed: kernelBed}, want: []string{"kernel vxlan, not on BPF"}},
		{name: "kernel claimed as bare", workload: "udp_rr", only: []bedKind{bareBed, kernelBed}, actual: map[bedKind]bedKind{bareBed: kernelBed}, want: []string{"the bare path encapsulated"}, survivors: true},
		{name: "bare claimed as kernel", workload: "udp_rr", only: []bedKind{bareBed, kernelBed}, actual: map[bedKind]bedKind{kernelBed: bareBed}, want: []string{"were not encapsulated"}, survivors: true},
		{name: "tc without its programs", workload: "udp_app_64", only: []bedKind{bareBed, tcBed}, corrupt: func(_ *testing.T, b *bed) error {
			for _, f := range b.fast {
				if err := removePins(b, f); err != nil {
					return err
				}
			}
			return nil
		}, want: []string{"vxbpf counted 0 packets"}, survivors: true},
		{name: "half of tc", workload: "decap_64", only: []bedKind{genBed, bareBed, tcBed}, corrupt: func(_ *testing.T, b *bed) error {
			for _, f := range b.fast {
				for _, p := range []string{"vx_tc_decap-*", "vx_tc_deliver-*"} {
					if err := removePins(b, f, p); err != nil {
						return err
					}
				}
			}
			return nil
		}, want: []string{"vxbpf counted 0 packets", "fast path"}, survivors: true},
		{name: "lossy datagrams", workload: "udp_app_64", only: []bedKind{kernelBed}, corrupt: func(t *testing.T, b *bed) error { return detach(t, lossy(t, 50), b) }, want: []string{"lost"}},
		{name: "lossy requests", workload: "udp_rr", only: []bedKind{kernelBed}, corrupt: func(t *testing.T, b *bed) error { return detach(t, lossy(t, 97), b) }, want: []string{"lost"}},
		{name: "lossy injection", workload: "decap_64", only: []bedKind{genBed, kernelBed}, corrupt: func(t *testing.T, b *bed) error {
			if b.datapath == genBed.datapath {
				return nil
			}
			return detach(t, lossy(t, 60), b)
		}, want: []string{"lost"}},
		{name: "no check claimed as one", workload: floodName, only: []bedKind{kernelBed, checkedBed}, corrupt: func(_ *testing.T, b *bed) error {
			for i, g := range b.guards {
				if err := b.strip(i); err != nil {
					return fmt.Errorf("host %s: %w", g.Name, err)
				}
			}
			return nil
		}, want: []string{"the source check counted 0 of"}, survivors: true},
		{name: "a check claimed as none", workload: floodName, only: []bedKind{kernelBed}, actual: map[bedKind]bedKind{kernelBed: checkedBed}, want: []string{"learnt none of the forged addresses"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := brief(t, tc.workload)
			o.Profiles = []string{"veth"}
			o.actual, o.only = tc.actual, tc.only
			if tc.corrupt != nil {
				o.corrupt = func(b *bed) error { return tc.corrupt(t, b) }
			}
			r, err := Run(t.Context(), o)
			text := fmt.Sprint(err)
			if r != nil {
				text = strings.Join(r.Problems, "\n")
				if r.Err() == nil {
					t.Error("the report has no error")
				}
			}
			if !slices.ContainsFunc(tc.want, func(w string) bool { return strings.Contains(text, w) }) {
				t.Errorf("problems %q, want %q", text, tc.want)
			}
			if tc.survivors && (r == nil || len(r.Results)+len(r.Flood) == 0) {
				t.Error("the honest rows are gone")
			}
		})
	}
}

func lossy(t *testing.T, n int32) *counterProg {
	t.Helper()
	p, err := newLossy(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.close() })
	return p
}

// removePins takes programs off. The daemon, which would put them back at the next event, goes first.
func removePins(b *bed, f *fastHost, patterns ...string) error {
	for i, h := range b.lab.Hosts {
		if h == f.Host && b.daemons[i] != nil {
			if err := b.daemons[i].Kill(); err != nil {
				return err
			}
			b.daemons[i] = nil
		}
	}
	if len(patterns) == 0 {
		patterns = []string{"*"}
	}
	for _, p := range patterns {
		pins, err := filepath.Glob(filepath.Join(filepath.Dir(f.pins), "links", p))
		if err != nil || len(pins) == 0 {
			return fmt.Errorf("no pins %s: %w", p, err)
		}
		for _, pin := range pins {
			if err := os.Remove(pin); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestInterrupted: what was measured is kept, and nothing is left.
func TestInterrupted(t *testing.T) {
	o := brief(t, "udp_rr", "udp_app_64", "decap_64")
	o.Rounds, o.Profiles = 1000, []string{"veth"}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Some rounds after the warm-up.
	o.Progress = lineCounter{n: new(int), at: 2, then: func() { time.AfterFunc(1500*time.Millisecond, cancel) }}
	start := time.Now()
	r, err := Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Interrupted || len(r.Results) == 0 || len(r.Results[0].Raw) == 0 || r.Results[0].Median == 0 {
		t.Errorf("after ctrl-C: interrupted %t, %d rows", r.Interrupted, len(r.Results))
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("ended after %s", d)
	}
	labs, err := testenv.List()
	for _, l := range labs {
		if l.Creator == os.Getpid() {
			t.Errorf("lab %s is left", l.Name)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// lineCounter calls then at one of the lines written.
type lineCounter struct {
	n    *int
	at   int
	then func()
}

func (c lineCounter) Write(b []byte) (int, error) {
	if *c.n++; *c.n == c.at {
		c.then()
	}
	return len(b), nil
}

func TestUnknownNames(t *testing.T) {
	for _, o := range []Options{{Workloads: []string{"udp_r"}}, {Profiles: []string{"wire-1500"}}, {Rounds: -1}} {
		if r, err := Run(t.Context(), o); err == nil || r != nil {
			t.Errorf("%+v: %v, %v", o, r, err)
		}
	}
}
