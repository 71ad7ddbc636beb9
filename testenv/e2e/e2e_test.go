// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the real vxbpf binary on hosts in network namespaces, with
// the kernel's VXLAN driver as the oracle. Each file starts with its topology.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// binary is the vxbpf under test: $VXBPF_BIN, or this tree's, built once.
var binary = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("VXBPF_BIN"); b != "" {
		return b, nil
	}
	out := filepath.Join(tmp, "vxbpf")
	cmd := exec.Command("go", "build", "-o", out, "github.com/vxbpf/vxbpf/cmd/vxbpf")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build vxbpf: %w\n%s", err, b)
	}
	return out, nil
})

var tmp string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "end-to-end tests make network namespaces and load BPF: run as root")
			return 1
		}
		var err error
		if tmp, err = os.MkdirTemp("", "vxbpf-e2e-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(tmp)
		before := traces()
		code := m.Run()
		for _, left := range leftBehind(before) {
			fmt.Fprintln(os.Stderr, "FAIL: left behind:", left)
			code = 1
		}
		return code
	}())
}

// traces is what a vxbpf under test may leave on this machine: state, pins, itself.
func traces() map[string]bool {
	found := map[string]bool{}
	for _, pattern := range []string{loader.DefaultRunDir + "/*", loader.DefaultPinRoot + "/*", "/run/netns/*"} {
		files, _ := filepath.Glob(pattern) // only a bad pattern errs
		for _, f := range files {
			found[f] = true
		}
	}
	bin, err := binary()
	if err != nil {
		return found // each test says so
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		b, err := os.ReadFile(l)
		if argv := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"); err == nil && argv[0] == bin {
			found["process "+filepath.Base(filepath.Dir(l))+": "+strings.Join(argv, " ")] = true
		}
	}
	return found
}

// leftBehind gives what ends a moment to be gone.
func leftBehind(before map[string]bool) []string {
	for try := 0; ; try++ {
		now := traces()
		maps.DeleteFunc(now, func(k string, _ bool) bool { return before[k] })
		if len(now) == 0 || try == 20 {
			return slices.Sorted(maps.Keys(now))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// world is a lab with what tests do to it.
type world struct {
	*testenv.Lab
	t   *testing.T
	ctx context.Context
	bin string

	daemons map[string]*testenv.Daemon
}

// daemonOf is the daemon that start started last on a host.
func (w *world) daemonOf(host string) *testenv.Daemon { return w.daemons[host] }

// up builds a lab of its own for the test and takes it down afterwards; with
// start, `vxbpf load` with args runs on each host whose datapath is not none and
// that is not a plain kernel host.
func up(t *testing.T, spec testenv.Spec, start bool, args ...string) *world {
	t.Helper()
	need.Kernel(t, need.FastPath)
	return upAnyway(t, spec, start, args...)
}

// upAnyway is up on kernels that cannot run the fast path, too.
func upAnyway(t *testing.T, spec testenv.Spec, start bool, args ...string) *world {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(3*time.Minute))
	t.Cleanup(cancel)
	spec.Name = fmt.Sprintf("e%06x", rand.N(1<<24))
	l, err := testenv.Up(ctx, spec, testenv.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Lab: l, t: t, ctx: ctx, bin: bin}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("left behind: %v", err)
		}
	})
	if start {
		for _, h := range l.Hosts {
			if h.Datapath != testenv.None && !h.KernelVXLAN && !h.Stranger {
				w.start(h.Name, args...)
			}
		}
	}
	return w
}

// start runs `vxbpf load` on a host, waits until it is ready, and plugs the containers in.
func (w *world) start(host string, args ...string) *testenv.Daemon {
	w.t.Helper()
	d, err := w.Host(host).Start(w.ctx, testenv.StartOptions{Binary: w.bin, Args: args, Timeout: patience(30 * time.Second)})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.daemons == nil {
		w.daemons = map[string]*testenv.Daemon{}
	}
	w.daemons[host] = d
	if err := w.AttachContainers(w.ctx, host); err != nil {
		w.t.Fatal(err)
	}
	w.attached(host)
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("log of %s:\n%s", host, d.Log())
		}
	})
	return d
}

// vxbpf runs a command of vxbpf in a host's namespace and returns its output
// and exit code. --instance is the host's.
func (w *world) vxbpf(host string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	h := w.Host(host)
	cmd := h.NS.Command(w.ctx, w.bin, append([]string{"--instance", h.Instance()}, args...)...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("vxbpf %s: %v", strings.Join(args, " "), err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return out.String(), errOut.String(), code
}

// status is what tests read of `vxbpf status -o json`.
type status struct {
	Daemon   int    `json:"daemon_pid"`
	Attach   string `json:"attach"`
	Degraded bool   `json:"degraded"`
	Reason   string `json:"reason"`
	XDP      []struct {
		Device  string `json:"device"`
		Program string `json:"program"`
		Reason  string `json:"reason"`
	} `json:"xdp"`
	Networks []networkStatus `json:"networks"`
	Repairs  struct {
		Repaired uint64   `json:"repaired"`
		Reported uint64   `json:"reported"`
		Foreign  []string `json:"foreign"`
	} `json:"repairs"`
}

type networkStatus struct {
	Name     string   `json:"name"`
	Datapath string   `json:"datapath"`
	Reason   string   `json:"reason"`
	VTEPs    []string `json:"vteps"`
	Local    int      `json:"fdb_local"`
	Remote   int      `json:"fdb_remote"`
	Sent     share    `json:"sent"`
	Received share    `json:"received"`
	// Strangers by prefix.
	Strangers []struct {
		Prefix  string `json:"prefix"`
		Last    string `json:"last"`
		Packets uint64 `json:"packets"`
	} `json:"strangers"`
	Sources   []string `json:"allowed_sources"`
	Unchecked string   `json:"unchecked"`
	Ports     []struct {
		Name   string `json:"name"`
		Fast   bool   `json:"fast"`
		Reason string `json:"reason"`
	} `json:"ports"`
	// Reasons by hook and reason.
	Reasons map[string]map[string]struct {
		Packets uint64 `json:"packets"`
		Bytes   uint64 `json:"bytes"`
	} `json:"reasons"`
}

type share struct {
	Fast  uint64 `json:"fast"`
	Total uint64 `json:"total"`
}

func (a share) plus(b share) share { return share{a.Fast + b.Fast, a.Total + b.Total} }
func (a share) less(b share) share { return share{a.Fast - b.Fast, a.Total - b.Total} }

func (a share) ratio() float64 {
	if a.Total == 0 {
		return 0
	}
	return float64(a.Fast) / float64(a.Total)
}

func (w *world) status(host string) (s status, code int) {
	w.t.Helper()
	out, errOut, code := w.vxbpf(host, "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		w.t.Fatalf("status of %s: %v\n%s%s", host, err, out, errOut)
	}
	return s, code
}

// network is one network of a host's status.
func (w *world) network(host, name string) networkStatus {
	w.t.Helper()
	s, _ := w.status(host)
	for _, n := range s.Networks {
		if n.Name == name {
			return n
		}
	}
	w.t.Fatalf("status of %s has no network %s", host, name)
	return networkStatus{}
}

// ping fails the test if one request goes unanswered.
func (w *world) ping(from testenv.NS, to netip.Addr) {
	w.t.Helper()
	r, err := testenv.Ping(w.ctx, from, to, testenv.PingOptions{Count: 3, Interval: 5 * time.Millisecond, Timeout: 2 * time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	if !r.OK() {
		w.t.Errorf("ping from %s to %s: %s", from.Name(), to, r)
	}
}

// transfer moves data over TCP and fails the test if it does not arrive as it was sent.
func (w *world) transfer(from, to *testenv.Container, size int64) testenv.TransferResult {
	w.t.Helper()
	r, err := testenv.Transfer(w.ctx, from.NS, to.NS, to.Addr.Addr(), size, 1)
	if err != nil {
		w.t.Fatal(err)
	}
	if !r.Match {
		w.t.Errorf("data altered between %s and %s: sent %s, received %s", from.Name, to.Name, r.SentSHA256, r.ReceivedSHA256)
	}
	return r
}

// wait polls until ok, and fails the test with what it waited for.
func (w *world) wait(what string, ok func() bool) {
	w.t.Helper()
	w.waitFor(15*time.Second, what, ok)
}

func (w *world) waitFor(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience(limit)); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) || w.ctx.Err() != nil {
			w.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// oneNetwork is a spec of n hosts with network mgmt and one container each.
func oneNetwork(hosts ...testenv.HostSpec) testenv.Spec {
	s := testenv.Spec{
		Networks:   []testenv.Network{{Name: "mgmt", VNI: 236, Subnet: netip.MustParsePrefix("172.29.236.0/24"), Subnet6: netip.MustParsePrefix("fd00:29:236::/64")}},
		Hosts:      hosts,
		Containers: 1,
	}
	if len(hosts) > 2 {
		s.Underlay.Kind = testenv.Switch
	}
	return s
}
