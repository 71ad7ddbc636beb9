// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// scaleRow is what a daemon needs at one size. Times are of `vxbpf` commands, process start included.
type scaleRow struct {
	Kind     string `json:"kind"` // what grows: "networks", "vteps", "fdb"
	Networks int    `json:"networks"`
	VTEPs    int    `json:"vteps"`
	Entries  int    `json:"fdb_entries"`

	Load     float64 `json:"load_s"`           // bare host to READY=1
	Reload   float64 `json:"reload_s"`         // the same config again
	Add      float64 `json:"reload_add_one_s"` // with one network more
	Restart  float64 `json:"restart_s"`        // kill -9 to READY=1 over what stands
	Unload   float64 `json:"unload_s"`
	Mirrored float64 `json:"mirrored_s"` // entries written by somebody else, until verify is clean; the writing included
	RSS      float64 `json:"rss_mib"`
	Idle     float64 `json:"idle_cpu_percent"` // of a core, over IdleOver seconds
	IdleOver float64 `json:"idle_over_s"`
}

// churnRow is what 10,000 changes a second of the FDB cost.
type churnRow struct {
	Entries   int     `json:"fdb_entries"`
	Rate      float64 `json:"changes_per_s"`
	Seconds   float64 `json:"seconds"`
	CPU       float64 `json:"daemon_cpu_percent"`
	Events    uint64  `json:"netlink_events"`
	Overruns  uint64  `json:"overruns"`
	Settled   float64 `json:"verify_clean_after_s"`
	Sent      uint64  `json:"stream_sent"`
	Lost      uint64  `json:"stream_lost"`
	RSS       float64 `json:"rss_mib"`
	Forced    bool    `json:"daemon_stopped"` // so that events were lost
	StoppedAt float64 `json:"stopped_s"`
}

// cpuTime is the CPU time of a process and of all threads that it has had.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil { // clock_getcpuclockid(3)
		t.Fatalf("CPU time of process %d: %v", pid, err)
	}
	return time.Duration(ts.Nano())
}

// rss is the resident memory of a process in MiB.
func rss(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s*(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmRSS in\n%s", b)
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return float64(kb) / 1024
}

// scaleHost is a host of many networks, VTEPs or entries; h2 answers for network mgmt only.
type scaleHost struct {
	*world
	d      *testenv.Daemon
	socket string // of its metrics
}

// manyVTEPs is in no network of the lab; the way there leads by h2.
var manyVTEPs = netip.MustParsePrefix("10.9.0.0/16")

func scaleVTEP(i int) netip.Addr {
	a := manyVTEPs.Addr().As4()
	n := i + 1
	a[2], a[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(a)
}

func scaleMAC(i int) fdb.MAC {
	return fdb.MAC{0x02, 0x5c, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
}

func newScaleHost(t *testing.T) *scaleHost {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "metrics.sock")
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	w.ctx = ctx // longer than other tests
	w.ip("h1", "route", "add", manyVTEPs.String(), "via", "192.0.2.12")
	w.start("h2")
	return &scaleHost{world: w, socket: socket}
}

// many is h1's config with networks more of them; all VTEPs are remotes of network mgmt.
func (s *scaleHost) many(networks, vteps int) []byte {
	var b strings.Builder
	text := "metrics: unix:" + s.socket + "\n" + string(s.Host("h1").Config(s.Spec))
	if vteps > 0 {
		var list []string
		for i := range vteps {
			list = append(list, scaleVTEP(i).String())
		}
		const one = "- 192.0.2.12\n"
		if !strings.Contains(text, one) {
			s.t.Fatalf("no remote in\n%s", text)
		}
		text = strings.Replace(text, one, one+"  - "+strings.Join(list, "\n  - ")+"\n", 1)
	}
	b.WriteString(text)
	for i := range networks {
		fmt.Fprintf(&b, "- {name: s%d, vni: %d, bridge: br-s%d, remotes: [192.0.2.12, 192.0.2.13], fdb: [{mac: %q, remote: 192.0.2.12}]}\n", i, 1000+i, i, scaleMAC(1<<24+i).String())
	}
	return []byte(b.String())
}

func (s *scaleHost) begin(config []byte) time.Duration {
	s.t.Helper()
	began := time.Now()
	d, err := s.Host("h1").Start(s.ctx, testenv.StartOptions{Binary: s.bin, Config: config, Timeout: 10 * time.Minute})
	if err != nil {
		s.t.Fatal(err)
	}
	took := time.Since(began)
	s.d = d
	if err := s.AttachContainers(s.ctx, "h1"); err != nil {
		s.t.Fatal(err)
	}
	return took
}

func (s *scaleHost) handOver(config []byte) time.Duration {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		s.t.Fatal(err)
	}
	began := time.Now()
	s.reload("h1", file)
	return time.Since(began)
}

// entries writes FDB entries as a control plane would, behind the first vteps VTEPs.
func (s *scaleHost) entries(n, vteps int) {
	s.t.Helper()
	s.batch(func(out io.Writer) {
		for i := range n {
			fmt.Fprintf(out, "fdb replace %s dev encap-mgmt dst %s self master dynamic extern_learn\n", scaleMAC(i), scaleVTEP(i%vteps))
		}
	})
}

// batch runs `bridge -batch` in h1 and feeds it.
func (s *scaleHost) batch(feed func(io.Writer)) {
	s.t.Helper()
	cmd := s.Host("h1").NS.Command(s.ctx, "bridge", "-batch", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	buf := bufio.NewWriterSize(in, 1<<16)
	feed(buf)
	_ = buf.Flush()
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		s.t.Fatalf("bridge -batch: %v\n%s", err, errs.String())
	}
}

// idle is the daemon's CPU in percent of a core while nothing happens.
func (s *scaleHost) idle(over time.Duration) float64 {
	s.t.Helper()
	time.Sleep(2 * time.Second) // what the last step has left to do
	before := cpuTime(s.t, s.d.Pid)
	time.Sleep(over)
	return 100 * (cpuTime(s.t, s.d.Pid) - before).Seconds() / over.Seconds()
}

func (s *scaleHost) entriesInMap() int {
	n := s.network("h1", "mgmt")
	return n.Remote
}

// metric is a counter of the daemon, over all its labels.
func (s *scaleHost) metric(name string) uint64 {
	s.t.Helper()
	sum := 0.0
	for k, v := range s.scrape(s.socket) {
		if k == name || strings.HasPrefix(k, name+"{") {
			sum += v
		}
	}
	return uint64(sum)
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//	    br-s0 -- encap-s0, br-s1 -- encap-s1, ...
//
// What a daemon costs as networks, VTEPs and FDB entries grow by tens (make
// bench-scale). $VXBPF_SCALE is the file for the figures, as JSON, $VXBPF_SCALE_IDLE
// how long the daemon is watched at rest; $VXBPF_SCALE_NETWORKS, _VTEPS and _FDB list
// other sizes, 0 for none.
func TestScale(t *testing.T) {
	file := os.Getenv("VXBPF_SCALE")
	idleOver := 65 * time.Second // two dumps of everything
	networks, vteps, entries := []int{10, 100, 1000}, []int{10, 100, 1000}, []int{10, 100, 1000, 10_000, 100_000}
	if file == "" {
		need.Elsewhere(t, "bench-scale", "it takes most of an hour")
	}
	if s := os.Getenv("VXBPF_SCALE_IDLE"); s != "" {
		var err error
		if idleOver, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	list := func(key string, l []int) []int {
		s := os.Getenv(key)
		if s == "" {
			return l
		}
		l = nil
		for _, f := range strings.Split(s, ",") {
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			if n > 0 {
				l = append(l, n)
			}
		}
		return l
	}
	networks, vteps, entries = list("VXBPF_SCALE_NETWORKS", networks), list("VXBPF_SCALE_VTEPS", vteps), list("VXBPF_SCALE_FDB", entries)
	var rows []scaleRow
	var churn []churnRow
	save := func() {
		b, err := json.MarshalIndent(struct {
			Kernel string     `json:"kernel"`
			CPUs   int        `json:"cpus"`
			Rows   []scaleRow `json:"rows"`
			Churn  []churnRow `json:"churn"`
		}{kernelRelease(), runtime.NumCPU(), rows, churn}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	life := func(t *testing.T, s *scaleHost, r scaleRow, config, more []byte) {
		t.Helper()
		r.IdleOver = idleOver.Seconds()
		if r.Kind != "fdb" {
			r.Load = s.begin(config).Seconds()
		}
		if r.Entries > 0 {
			began := time.Now()
			s.entries(r.Entries, r.VTEPs)
			s.waitFor(2*time.Minute, "the entries in the map", func() bool { return s.entriesInMap() >= r.Entries })
			r.Mirrored = time.Since(began).Seconds()
		}
		s.clean("h1", time.Minute)
		r.Reload = s.handOver(config).Seconds()
		r.Add = s.handOver(more).Seconds()
		s.handOver(config)
		r.Idle, r.RSS = s.idle(idleOver), rss(t, s.d.Pid)
		if err := s.d.Kill(); err != nil {
			t.Fatal(err)
		}
		r.Restart = s.begin(config).Seconds()
		s.clean("h1", time.Minute)
		if r.Kind != "fdb" {
			began := time.Now()
			if out, errOut, code := s.vxbpf("h1", "unload"); code != 0 {
				t.Errorf("unload: exit %d\n%s%s", code, out, errOut)
			}
			r.Unload = time.Since(began).Seconds()
		}
		t.Logf("%+v", r)
		rows = append(rows, r)
		save()
	}
	for _, n := range networks {
		t.Run(fmt.Sprintf("networks-%d", n), func(t *testing.T) {
			s := newScaleHost(t)
			life(t, s, scaleRow{Kind: "networks", Networks: n, VTEPs: 1}, s.many(n-1, 0), s.many(n, 0))
		})
	}
	for _, n := range vteps {
		t.Run(fmt.Sprintf("vteps-%d", n), func(t *testing.T) {
			s := newScaleHost(t)
			life(t, s, scaleRow{Kind: "vteps", Networks: 1, VTEPs: n, Entries: n}, s.many(0, n), s.many(1, n))
		})
	}
	if len(entries) == 0 {
		return
	}
	t.Run("fdb", func(t *testing.T) {
		s := newScaleHost(t)
		const vteps = 100
		config := s.many(0, vteps)
		s.begin(config)
		a, b := s.Container("h1", "mgmt-1"), s.Container("h2", "mgmt-1")
		s.ping(a.NS, b.Addr.Addr())
		for _, n := range entries {
			life(t, s, scaleRow{Kind: "fdb", Networks: 1, VTEPs: min(n, vteps), Entries: n}, config, s.many(1, vteps))
		}
		n := entries[len(entries)-1]
		for _, forced := range []bool{false, true} {
			r := s.churn(n, vteps, forced)
			t.Logf("%+v", r)
			churn = append(churn, r)
			save()
			if forced == (r.Overruns == 0) {
				t.Errorf("forced %t, and %d overruns", forced, r.Overruns)
			}
			if r.Lost > 0 {
				t.Errorf("%d packets lost", r.Lost)
			}
		}
	})
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// churn changes the entries of a table of n, 10,000 changes a second for ten
// seconds, under a stream; with forced the daemon is stopped for three of them,
// so that its socket overruns. Thirds of the changes move, remove and add.
func (s *scaleHost) churn(n, vteps int, forced bool) churnRow {
	s.t.Helper()
	const rate, seconds, tick = 10_000, 10, 10 * time.Millisecond
	r := churnRow{Entries: n, Forced: forced}
	stream := s.stream("h1", "h2")
	s.flowing("before the churn")
	events, overruns := s.metric("vxbpf_fdb_events_total"), s.metric("vxbpf_netlink_overruns_total")
	cpu, began := cpuTime(s.t, s.d.Pid), time.Now()
	if forced {
		r.StoppedAt = 3
		pid := s.d.Pid
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			s.t.Fatal(err)
		}
		time.AfterFunc(3*time.Second, func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	}
	changes := 0
	s.batch(func(w io.Writer) {
		buf := w.(*bufio.Writer)
		at := func(i int) string { return scaleVTEP(i % vteps).String() }
		to := 0
		for k := range int(seconds * time.Second / tick) {
			for range rate / int(time.Second/tick) {
				// Entry i by turns: moves, goes, comes back where it was moved to.
				i, what := (changes/3*7919)%n, changes%3
				mac := scaleMAC(i)
				switch what {
				case 0:
					to = i + 1 + changes/3
					fmt.Fprintf(buf, "fdb replace %s dev encap-mgmt dst %s self master dynamic extern_learn\n", mac, at(to))
				case 1:
					fmt.Fprintf(buf, "fdb del %s dev encap-mgmt dst %s self master\n", mac, at(to))
				case 2:
					fmt.Fprintf(buf, "fdb replace %s dev encap-mgmt dst %s self master dynamic extern_learn\n", mac, at(to+1))
				}
				changes++
			}
			_ = buf.Flush()
			time.Sleep(time.Until(began.Add(time.Duration(k+1) * tick)))
		}
	})
	took := time.Since(began)
	r.Seconds, r.Rate = took.Seconds(), float64(changes)/took.Seconds()
	r.CPU = 100 * (cpuTime(s.t, s.d.Pid) - cpu).Seconds() / took.Seconds()
	r.Settled = s.clean("h1", time.Minute).Seconds()
	r.Events, r.Overruns = s.metric("vxbpf_fdb_events_total")-events, s.metric("vxbpf_netlink_overruns_total")-overruns
	r.RSS = rss(s.t, s.d.Pid)
	got := stream.Received()
	s.wait("the stream to go on", func() bool { return stream.Received() > got+1000 })
	res := stream.Stop()
	s.t.Logf("churn: %s, %d dropped by the receiving socket", res, res.ReceiverDrops)
	r.Sent, r.Lost = res.Sent, res.Lost-min(res.Lost, res.ReceiverDrops)
	return r
}
