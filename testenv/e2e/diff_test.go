// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
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
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/diff"
)

// The same frames into K (kernel VXLAN) and X (vxbpf on all hosts): see package
// diff for the topology.
//
//	VXBPF_DIFF_SEED=n      the seed, else a random one
//	VXBPF_DIFF_FRAMES=n    about so many frames in all
//	VXBPF_DIFF_PROFILE=s   only this profile
//	VXBPF_DIFF_WITHOUT=s;s leave out these kinds of frames
//	VXBPF_DIFF_KERNEL=1    X is K once more: what the test itself does differently

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

// diffX is the topology that runs vxbpf.
type diffX struct {
	*diff.Topology
	t   *testing.T
	bin string
	all map[string]*testenv.Daemon
}

func (x *diffX) start(ctx context.Context) func(*testenv.Host, []byte) error {
	if os.Getenv("VXBPF_DIFF_KERNEL") != "" {
		return nil
	}
	return func(h *testenv.Host, config []byte) error {
		d, err := h.Start(ctx, testenv.StartOptions{Binary: x.bin, Config: config})
		if err == nil {
			x.all[h.Name] = d
		}
		return err
	}
}

// know waits a moment until the fast path of every host has the MACs, and
// returns those that it has not.
func (x *diffX) know(macs []fdb.MAC) (missing []string) {
	x.t.Helper()
	end := time.Now().Add(1500 * time.Millisecond) // what programs removed and the kernel did not move is back within a second
	for host := range x.all {
		for {
			table := x.table(host)
			unknown := slices.DeleteFunc(slices.Clone(macs), func(m fdb.MAC) bool { return table[m] })
			if len(unknown) == 0 {
				break
			}
			if time.Now().After(end) {
				missing = append(missing, fmt.Sprint(host, unknown))
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	return missing
}

func (x *diffX) table(host string) map[fdb.MAC]bool {
	x.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(loader.DefaultPinRoot, x.Lab.Host(host).Instance(), "maps-*"))
	if err != nil || len(dirs) != 1 {
		x.t.Fatalf("pinned maps of %s: %v %v", host, dirs, err)
	}
	set, done, err := maps.OpenPinned(dirs[0])
	if err != nil {
		x.t.Fatal(err)
	}
	defer func() { _ = done() }()
	table, err := set.FDB.All(func(uint32) netip.Addr { return netip.Addr{} })
	if err != nil {
		x.t.Fatal(err)
	}
	out := map[fdb.MAC]bool{}
	for k, e := range table {
		out[k.MAC] = !e.Pending
	}
	return out
}

func (x *diffX) status(ctx context.Context, host string) networkStatus {
	x.t.Helper()
	h := x.Lab.Host(host)
	out, err := h.NS.Command(ctx, x.bin, "--instance", h.Instance(), "status", "-o", "json").Output()
	var s status
	if jerr := json.Unmarshal(out, &s); jerr != nil || len(s.Networks) != 1 {
		x.t.Fatalf("status of %s: %v %v\n%s", host, err, jerr, out)
	}
	return s.Networks[0]
}

func TestDiff(t *testing.T) {
	seed := diffEnv(t, "VXBPF_DIFF_SEED", rand.Uint64N(1<<32))
	frames := int(diffEnv(t, "VXBPF_DIFF_FRAMES", 4000))
	profiles := diff.Profiles[:1]
	if name := os.Getenv("VXBPF_DIFF_PROFILE"); name != "" {
		profiles = slices.DeleteFunc(slices.Clone(diff.Profiles), func(p diff.Profile) bool { return name != "all" && p.Name != name })
	}
	t.Logf("seed %d", seed)
	for _, p := range profiles {
		t.Run(p.Name, func(t *testing.T) { diffProfile(t, p, seed, frames/len(profiles)) })
	}
}

const diffBatch = 400

func diffProfile(t *testing.T, p diff.Profile, seed uint64, frames int) {
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	x := &diffX{t: t, bin: bin, all: map[string]*testenv.Daemon{}}
	open := func(name string, start func(*testenv.Host, []byte) error) *diff.Topology {
		top, err := diff.New(ctx, fmt.Sprintf("%s%05x", name, rand.N(1<<20)), p, start)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := top.Close(); err != nil {
				t.Error(err)
			}
		})
		return top
	}
	k := open("k", nil)
	x.Topology = open("x", x.start(ctx))
	t.Cleanup(func() {
		for host, d := range x.all {
			if t.Failed() {
				t.Logf("log of %s:\n%s", host, d.Log())
			}
		}
	})
	kw, err := k.World()
	if err != nil {
		t.Fatal(err)
	}
	xw, err := x.World()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(kw, xw) {
		t.Fatalf("the topologies are not alike:\n%+v\n%+v", kw, xw)
	}
	g := diff.NewGenerator(kw, seed, strings.Split(os.Getenv("VXBPF_DIFF_WITHOUT"), ";")...)
	flows := diff.Flows{}
	var sent, out, failed, unknown int
	for n := 0; sent < frames && failed < 3; n++ {
		steps := append(g.Announce(), g.Queries()...)
		if n > 0 {
			steps = g.Batch(n, diffBatch)
		}
		kr, err := k.Run(ctx, steps)
		if err != nil {
			t.Fatal(err)
		}
		xr, err := x.Run(ctx, steps)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			time.Sleep(300 * time.Millisecond) // Queries
		}
		sent += len(steps)
		out += len(kr.Frames)
		flows.Add(xr.Frames)
		report := diff.Report(steps, kr, xr, 5)
		for i := range steps {
			if !diff.SameError(kr.Errors[i], xr.Errors[i]) {
				report += fmt.Sprintf("frame %d, %s, at %s: K says %v, X says %v\n", i, steps[i].Kind, steps[i].At, kr.Errors[i], xr.Errors[i])
			}
		}
		kf, err := k.FDBs()
		if err != nil {
			t.Fatal(err)
		}
		xf, err := x.FDBs()
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range diff.CompareSets(kf, xf) {
			report += "FDB " + line + "\n"
		}
		if report != "" {
			failed++
			t.Errorf("batch %d of seed %d, profile %s:\n%s", n, seed, p.Name, report)
		}
		// Every fourth batch comes as the last one left things.
		if n%4 != 3 {
			if m := x.know(g.MACs()); len(m) > 0 {
				unknown++
			}
		}
	}
	if n := diff.CompareSets(k.Reached(), x.Reached()); len(n) > 0 {
		t.Errorf("markers came out elsewhere: %v", n)
	}
	t.Logf("%d frames in, %d out, seed %d; after %d batches some MACs were not on the fast path again soon", sent, out, seed, unknown)
	if s := flows.Spread(2); len(s) > 0 {
		t.Errorf("%d flows with more than 2 outer source ports, the first %s", len(s), s[0])
	}
	for host := range x.all {
		s := x.status(ctx, host)
		t.Logf("%s: sent %d of %d on the fast path, received %d of %d; %v", host, s.Sent.Fast, s.Sent.Total, s.Received.Fast, s.Received.Total, s.Reasons)
		if s.Sent.ratio() < p.MinSent || s.Received.ratio() < p.MinReceived {
			t.Errorf("%s: too little on the fast path, the comparison says little", host)
		}
	}
}
