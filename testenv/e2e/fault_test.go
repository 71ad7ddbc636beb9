// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
)

// fault is one row of the table in FAULTS.md: what goes wrong on h1, what
// becomes of the traffic, how long the repair may take, what the operator sees.
type fault struct {
	name string
	do   func(f *faults)
	// undo is what an operator does where the daemon must not.
	undo func(f *faults)
	// traffic: "none lost" through the fault and the repair, or "interrupted" while the way itself is gone.
	traffic string
	within  time.Duration // until `verify` is clean, after undo where there is one
	sees    string        // part of the daemon's log, of `status`, or of `verify` while it lasts
}

type faults struct {
	*world
	d *testenv.Daemon
}

func (f *faults) run(args ...string) { f.ip("h1", args...) }

func (f *faults) bridge(args ...string) {
	f.t.Helper()
	if out, err := f.Host("h1").NS.Command(f.ctx, "bridge", args...).CombinedOutput(); err != nil {
		f.t.Fatalf("bridge %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (f *faults) restart() {
	f.t.Helper()
	f.d = f.start("h1")
}

const (
	keeps     = "none lost"
	interrupt = "interrupted"
)

// The rows. A row's order matters to none other: each begins and ends with a host in order.
var faultTable = []fault{
	{name: "vxlan link deleted", do: func(f *faults) { f.run("link", "del", "encap-mgmt") }, traffic: interrupt, within: 5 * time.Second, sees: "create vxlan encap-mgmt"},
	{name: "bridge deleted", do: func(f *faults) { f.run("link", "del", "br-mgmt") },
		// The containers' ports are not vxbpf's to plug in.
		undo: func(f *faults) {
			f.wait("the bridge to come back", func() bool { return f.link("h1", "br-mgmt") != nil })
			if err := f.AttachContainers(f.ctx, "h1"); err != nil {
				f.t.Fatal(err)
			}
		}, traffic: interrupt, within: 5 * time.Second, sees: "create bridge br-mgmt"},
	{name: "vxlan link set down", do: func(f *faults) { f.run("link", "set", "encap-mgmt", "down") }, traffic: interrupt, within: 5 * time.Second, sees: "change vxlan encap-mgmt state: down -> up"},
	{name: "bridge set down", do: func(f *faults) { f.run("link", "set", "br-mgmt", "down") }, traffic: interrupt, within: 5 * time.Second, sees: "change bridge br-mgmt state: down -> up"},
	{name: "vxlan link taken out of the bridge", do: func(f *faults) { f.run("link", "set", "encap-mgmt", "nomaster") }, traffic: interrupt, within: 5 * time.Second, sees: "add port encap-mgmt of br-mgmt"},
	{name: "vxlan link renamed", do: func(f *faults) { f.run("link", "set", "encap-mgmt", "name", "other0") }, traffic: interrupt, within: 5 * time.Second, sees: "rename other0 to encap-mgmt"},
	{name: "ttl changed", do: func(f *faults) { f.run("link", "set", "encap-mgmt", "type", "vxlan", "ttl", "3") }, traffic: keeps, within: 5 * time.Second, sees: "ttl: 3 -> 5"},
	{name: "mtu changed", do: func(f *faults) { f.run("link", "set", "encap-mgmt", "mtu", "1280") }, traffic: keeps, within: 5 * time.Second, sees: "mtu: 1280 -> 1450"},
	{name: "remote removed", do: func(f *faults) {
		f.bridge("fdb", "del", "00:00:00:00:00:00", "dev", "encap-mgmt", "dst", "192.0.2.12")
	}, traffic: keeps, within: 5 * time.Second, sees: "add remote 192.0.2.12"},
	{name: "static entry removed", do: func(f *faults) { f.bridge("fdb", "del", "02:00:00:00:00:77", "dev", "encap-mgmt", "dst", "192.0.2.12") }, traffic: keeps,
		within: 5 * time.Second, sees: "add static 02:00:00:00:00:77"},
	{name: "static entry moved", do: func(f *faults) {
		f.bridge("fdb", "replace", "02:00:00:00:00:77", "dev", "encap-mgmt", "dst", "192.0.2.99", "self", "permanent")
	}, traffic: keeps, within: 5 * time.Second, sees: "change static 02:00:00:00:00:77"},
	{name: "bridge's address removed", do: func(f *faults) { f.run("addr", "flush", "dev", "br-mgmt", "scope", "global") }, traffic: keeps, within: 5 * time.Second, sees: "add address"},
	{name: "FDB flushed", do: func(f *faults) {
		f.run("link", "set", "br-mgmt", "type", "bridge", "fdb_flush")
		f.bridge("fdb", "flush", "dev", "encap-mgmt", "nopermanent")
	}, traffic: keeps, within: 5 * time.Second},
	{name: "learnt entry of the vxlan link removed", do: func(f *faults) {
		mac := f.Container("h2", "mgmt-1").MAC.String()
		f.bridge("fdb", "del", mac, "dev", "encap-mgmt", "self")
	}, traffic: keeps, within: 5 * time.Second},
	{name: "container's port set down and up", do: func(f *faults) { f.run("link", "set", f.Container("h1", "mgmt-1").HostEnd, "down") },
		undo: func(f *faults) { f.run("link", "set", f.Container("h1", "mgmt-1").HostEnd, "up") }, traffic: interrupt, within: 5 * time.Second},
	{name: "container's port taken out of the bridge", do: func(f *faults) { f.run("link", "set", f.Container("h1", "mgmt-1").HostEnd, "nomaster") },
		undo: func(f *faults) { f.run("link", "set", f.Container("h1", "mgmt-1").HostEnd, "master", "br-mgmt") }, traffic: interrupt, within: 5 * time.Second},
	{name: "underlay set down and up", do: func(f *faults) { f.run("link", "set", "eth2", "down") }, undo: func(f *faults) { f.run("link", "set", "eth2", "up") },
		traffic: interrupt, within: 5 * time.Second, sees: "VTEP 192.0.2.12: no way there"},
	{name: "neighbour entry of the VTEP removed", do: func(f *faults) { f.run("neigh", "flush", "dev", "eth2") }, traffic: keeps, within: 5 * time.Second},
	{name: "route to the VTEP leads astray", do: func(f *faults) { f.run("route", "add", "192.0.2.12/32", "via", "192.0.2.200", "dev", "eth2") },
		undo: func(f *faults) { f.run("route", "del", "192.0.2.12/32", "via", "192.0.2.200", "dev", "eth2") }, traffic: interrupt, within: 5 * time.Second},
	{name: "MAC address of the VTEP changed", do: func(f *faults) { f.ip("h2", "link", "set", "eth2", "address", "02:00:00:00:77:77") }, traffic: interrupt, within: 20 * time.Second},
	{name: "link pin removed", do: func(f *faults) {
		pins, err := filepath.Glob(filepath.Join(f.pinDir("h1"), "links", "vx_tc_encap-*"))
		if err != nil || len(pins) == 0 {
			f.t.Fatalf("no pins: %v", err)
		}
		for _, p := range pins {
			if err := os.Remove(p); err != nil {
				f.t.Fatal(err)
			}
		}
	}, traffic: keeps, within: 5 * time.Second, sees: "attach vx_tc_encap"},
	{name: "map pins removed", do: func(f *faults) {
		pins, err := filepath.Glob(filepath.Join(f.pinDir("h1"), "maps-*", "vx_*"))
		if err != nil || len(pins) == 0 {
			f.t.Fatalf("no pins: %v", err)
		}
		for _, p := range pins {
			if err := os.Remove(p); err != nil {
				f.t.Fatal(err)
			}
		}
	}, traffic: keeps, within: 5 * time.Second, sees: "pin map vx_fdb"},
	{name: "clsact qdisc added and deleted at a port", do: func(f *faults) {
		dev := f.Container("h1", "mgmt-1").HostEnd
		for _, what := range []string{"add", "del"} {
			if out, err := f.Host("h1").NS.Command(f.ctx, "tc", "qdisc", what, "dev", dev, "clsact").CombinedOutput(); err != nil {
				f.t.Fatalf("tc: %v\n%s", err, out)
			}
		}
	}, traffic: interrupt, within: 5 * time.Second},
	{name: "daemon killed and started", do: func(f *faults) {
		if err := f.d.Kill(); err != nil {
			f.t.Fatal(err)
		}
	}, undo: (*faults).restart, traffic: keeps, within: 5 * time.Second, sees: "NO DAEMON"},
	{name: "daemon stopped for longer than its lease", do: func(f *faults) {
		if err := syscall.Kill(f.d.Pid, syscall.SIGSTOP); err != nil {
			f.t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
	}, undo: func(f *faults) {
		if err := syscall.Kill(f.d.Pid, syscall.SIGCONT); err != nil {
			f.t.Fatal(err)
		}
	}, traffic: keeps, within: 5 * time.Second},
	{name: "state file removed", do: func(f *faults) {
		if err := os.Remove(filepath.Join(f.runDir("h1"), "state.json")); err != nil {
			f.t.Fatal(err)
		}
	}, traffic: keeps, within: 5 * time.Second, sees: "state.json"},
}

// verify is what `vxbpf verify` prints, and its exit code.
func (w *world) verify(host string) (string, int) {
	out, errOut, code := w.vxbpf(host, "verify")
	return out + errOut, code
}

// clean waits until verify finds nothing, and returns how long that took.
func (w *world) clean(host string, within time.Duration) time.Duration {
	w.t.Helper()
	began := time.Now()
	for {
		out, code := w.verify(host)
		if code == 0 {
			return time.Since(began)
		}
		if time.Since(began) > within+5*time.Second || w.ctx.Err() != nil {
			w.t.Fatalf("verify on %s after %s: exit %d\n%s", host, time.Since(began).Round(time.Millisecond), code, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

//	h1: mgmt-1 on br-mgmt (with an address) -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// Somebody breaks something on h1 while a stream runs. Each row of the table
// says what must become of the traffic; afterwards it flows, on the fast path,
// and verify finds nothing. $VXBPF_FAULTS names a file for the measured table.
func TestFaults(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.HostAddresses = []string{"mgmt"}
	spec.Networks[0].Config = testenv.Keys(`{fdb: [{mac: "02:00:00:00:00:77", remote: 192.0.2.12}]}`)
	w := up(t, spec, false)
	f := &faults{world: w}
	f.d = w.start("h1")
	_, err := w.Host("h2").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: []byte(strings.ReplaceAll(string(w.Host("h2").Config(w.Spec)), "remote: 192.0.2.12", "remote: 192.0.2.11"))})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AttachContainers(w.ctx, "h2"); err != nil {
		t.Fatal(err)
	}
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.ping(a.NS, b.Addr.Addr())
	w.clean("h1", 5*time.Second)

	type row struct {
		name, traffic, repair, sees string
	}
	var rows []row
	for _, r := range faultTable {
		t.Run(strings.ReplaceAll(r.name, " ", "-"), func(t *testing.T) {
			sub := &faults{world: &world{Lab: w.Lab, t: t, ctx: w.ctx, bin: w.bin}, d: f.d}
			s := sub.stream("h1", "h2")
			before := len(f.d.Log())
			repairs := sub.repairs()
			r.do(sub)
			seen := r.sees == ""
			look := func() {
				if !seen {
					st, _, _ := sub.vxbpf("h1", "status", "--interval", "0")
					v, _ := sub.verify("h1")
					seen = strings.Contains(string(sub.d.Log())[min(before, len(sub.d.Log())):]+st+v, r.sees)
				}
			}
			if r.undo != nil {
				for range 20 { // the daemon hears of it in a moment
					if look(); seen {
						break
					}
					time.Sleep(50 * time.Millisecond)
				}
				r.undo(sub)
			}
			took := sub.clean("h1", r.within)
			look()
			f.d = sub.d
			if !seen {
				t.Errorf("the operator does not see %q; log:\n%s", r.sees, sub.d.Log()[min(before, len(sub.d.Log())):])
			}
			if took > r.within {
				t.Errorf("repaired after %s, want %s", took, r.within)
			}
			// The stream goes one way: where the kernel has forgotten the receiver, it floods until that one speaks.
			sub.wait("the receiver to reach the sender", func() bool {
				r, err := testenv.Ping(sub.ctx, b.NS, a.Addr.Addr(), testenv.PingOptions{Count: 1, Timeout: 500 * time.Millisecond})
				return err == nil && r.OK()
			})
			got := s.Received()
			sub.wait("the stream to go on", func() bool { return s.Received() > got+500 })
			carried := sub.fast("h1")
			sub.wait("the fast path to carry again", func() bool { return sub.fast("h1") > carried+500 })
			res := s.Stop()
			t.Logf("%s; verify clean after %s; %d repairs", res, took.Round(10*time.Millisecond), sub.repairs()-repairs)
			if r.traffic == keeps && res.Lost > res.ReceiverDrops {
				t.Errorf("traffic: %s, %d of them dropped by the receiving socket", res, res.ReceiverDrops)
			}
			traffic := "none lost"
			if lost := res.Lost - min(res.Lost, res.ReceiverDrops); lost > 0 {
				traffic = fmt.Sprintf("%d ms lost", lost/10)
			}
			rows = append(rows, row{r.name, traffic, fmt.Sprintf("%.1f s", took.Seconds()), r.sees})
		})
	}
	if file := os.Getenv("VXBPF_FAULTS"); file != "" {
		var b strings.Builder
		for _, r := range rows {
			fmt.Fprintf(&b, "| %s | %s | %s | `%s` |\n", r.name, r.traffic, r.repair, r.sees)
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// repairs is how many things the daemon of h1 has put back.
func (w *world) repairs() int {
	w.t.Helper()
	out, _, _ := w.vxbpf("h1", "status", "-o", "json")
	var s struct {
		Repairs struct {
			Repaired int `json:"repaired"`
		} `json:"repairs"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0
	}
	return s.Repairs.Repaired
}

// The table in the documentation has a row for each that is tested, and no other.
func TestFaultTable(t *testing.T) {
	b, err := os.ReadFile("FAULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for l := range strings.Lines(string(b)) {
		if cells := strings.Split(l, "|"); len(cells) > 4 && !strings.HasPrefix(strings.TrimSpace(cells[1]), "-") && strings.TrimSpace(cells[1]) != "Fault" {
			have = append(have, strings.TrimSpace(cells[1]))
		}
	}
	var want []string
	for _, r := range faultTable {
		want = append(want, r.name)
	}
	if !slices.Equal(have, want) {
		t.Errorf("FAULTS.md has the rows\n%s\nthe test\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	if len(want) < 20 {
		t.Errorf("%d rows, want 20", len(want))
	}
}

// With --repair=false the daemon reports what others change, and leaves it; a
// `load` without it puts it back, and from then on again what follows.
func TestLeaveDrift(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), true, "--repair=false")
	ttl := func(n string) { w.ip("h1", "link", "set", "encap-mgmt", "type", "vxlan", "ttl", n) }
	drifted := func() (string, bool) {
		out, _, code := w.vxbpf("h1", "verify")
		return out, code == 4
	}
	ttl("9")
	w.wait("the report", func() bool {
		s, _ := w.status("h1")
		return s.Repairs.Reported == 1 && len(s.Repairs.Foreign) == 1
	})
	time.Sleep(2 * time.Second) // ten times as long as a repair waits
	if out, drift := drifted(); !drift || !strings.Contains(out, "ttl") {
		t.Errorf("a ttl changed under --repair=false: verify says\n%s", out)
	}
	if s, _ := w.status("h1"); s.Repairs.Repaired != 0 {
		t.Errorf("put back: %+v", s.Repairs)
	}
	if out, msg, code := w.vxbpf("h1", "load", w.config("h1")); code != 0 || !strings.Contains(out, "ttl") {
		t.Errorf("load: exit %d\n%s%s", code, out, msg)
	}
	if out, drift := drifted(); drift {
		t.Errorf("after load: verify says\n%s", out)
	}
	ttl("9")
	w.wait("the repair", func() bool {
		_, drift := drifted()
		s, _ := w.status("h1")
		return !drift && s.Repairs.Repaired == 1
	})
}
