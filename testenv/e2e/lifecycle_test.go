// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// stream starts numbered packets from the first container of one host to that
// of another, 10,000 a second, and waits until they flow.
func (w *world) stream(from, to string) *testenv.Stream {
	w.t.Helper()
	a, b := w.Container(from, "mgmt-1"), w.Container(to, "mgmt-1")
	w.ping(a.NS, b.Addr.Addr())
	s, err := testenv.StartStream(w.ctx, a.NS, b.NS, b.Addr.Addr(), testenv.StreamOptions{Rate: 10_000})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Stop() })
	w.wait("the stream to flow", func() bool { return s.Received() > 1000 })
	return s
}

// whole ends a stream and fails the test if the network lost a packet of it.
func (w *world) whole(s *testenv.Stream, what string) {
	w.t.Helper()
	before := s.Received()
	w.wait("the stream to go on after "+what, func() bool { return s.Received() > before+1000 })
	r := s.Stop()
	w.t.Logf("%s: %s", what, r)
	if r.Lost > r.ReceiverDrops || r.SendErrors > 0 || r.Duplicates > 0 {
		w.t.Errorf("%s: %s, %d of them dropped by the receiving socket, %d send errors", what, r, r.ReceiverDrops, r.SendErrors)
	}
}

// fast is how many packets of network mgmt a host's fast path has sent and received.
func (w *world) fast(host string) uint64 {
	w.t.Helper()
	n := w.network(host, "mgmt")
	return n.Sent.Fast + n.Received.Fast
}

// flowing waits until the fast paths of both hosts have carried a thousand packets more.
func (w *world) flowing(when string) {
	w.t.Helper()
	for _, h := range w.Hosts {
		before := w.fast(h.Name)
		w.wait(fmt.Sprintf("the fast path of %s to carry packets %s", h.Name, when), func() bool { return w.fast(h.Name) > before+1000 })
	}
}

// linkIDs are the ids of a host's pinned tcx links, by name of the pin. Filters have no such thing.
func (w *world) linkIDs(host string) map[string]link.ID {
	w.t.Helper()
	if attachedBy(w.t) != "tcx" {
		return nil
	}
	ids := map[string]link.ID{}
	pins, err := filepath.Glob(filepath.Join(w.pinDir(host), "links", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		info, err := l.Info()
		if err := errors.Join(err, l.Close()); err != nil {
			w.t.Fatal(err)
		}
		ids[filepath.Base(pin)] = info.ID
	}
	if len(ids) == 0 {
		w.t.Fatalf("no pinned links of %s", host)
	}
	return ids
}

// kernel changes something with rtnetlink in a namespace.
func (w *world) kernel(ns testenv.NS, change func(h *kernel.Handle) error) {
	w.t.Helper()
	err := ns.Do(func() error {
		h, err := kernel.Open()
		if err != nil {
			return err
		}
		return errors.Join(change(h), h.Close())
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// renumber gives a container another MAC address.
func (w *world) renumber(c *testenv.Container, mac fdb.MAC) {
	w.t.Helper()
	w.kernel(c.NS, func(h *kernel.Handle) error {
		l, _, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.SetMAC(l.Index, mac)
	})
}

//	h1: mgmt-1, mgmt-2 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// The data path outlives the daemon: `kill -9` of both daemons, six seconds
// without any, and their restart, all under one stream that loses nothing.
func TestKill(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.Containers = 2
	w := up(t, spec, false)
	daemons := map[string]*testenv.Daemon{"h1": w.start("h1"), "h2": w.start("h2")}
	kill := func() {
		t.Helper()
		for _, d := range daemons {
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ids := map[string]map[string]link.ID{}
	for _, h := range w.Hosts {
		w.hooks(h.Name, attachedBy(t))
		ids[h.Name] = w.linkIDs(h.Name)
		if s, code := w.status(h.Name); s.Daemon != daemons[h.Name].Pid || code != 0 {
			t.Errorf("status of %s: exit %d, daemon %d, want %d", h.Name, code, s.Daemon, daemons[h.Name].Pid)
		}
	}

	s := w.stream("h1", "h2")
	w.flowing("before the kill")
	kill()
	w.flowing("right after the kill")
	// The daemon's lease on cached headers is 5 s.
	time.Sleep(6 * time.Second)
	w.flowing("after the lease has ended")
	carried := map[string]uint64{}
	for _, h := range w.Hosts {
		st, code := w.status(h.Name)
		if st.Daemon != 0 || code != 0 || st.Attach != attachedBy(t) || len(st.Networks) != 1 || st.Networks[0].Datapath != "tc" {
			t.Errorf("status of %s without a daemon: exit %d, %+v", h.Name, code, st)
		}
		if out, _, _ := w.vxbpf(h.Name, "status"); !strings.Contains(out, "NO DAEMON") {
			t.Errorf("status of %s does not say that the daemon is gone:\n%s", h.Name, out)
		}
		carried[h.Name] = w.fast(h.Name)
	}
	for _, h := range w.Hosts {
		daemons[h.Name] = w.start(h.Name)
		if now := w.fast(h.Name); now < carried[h.Name] {
			t.Errorf("restart on %s: the fast path's counter went from %d to %d", h.Name, carried[h.Name], now)
		}
		if now := w.linkIDs(h.Name); !maps.Equal(now, ids[h.Name]) {
			t.Errorf("restart on %s: the ids of the pinned links went from %v to %v", h.Name, ids[h.Name], now)
		}
		if st, _ := w.status(h.Name); st.Daemon != daemons[h.Name].Pid {
			t.Errorf("status of %s: daemon %d, want %d", h.Name, st.Daemon, daemons[h.Name].Pid)
		}
		w.hooks(h.Name, attachedBy(t))
	}
	w.flowing("after the restart")
	w.whole(s, "kill -9 and restart")

	// New MAC addresses are followed again, on both sides.
	a, b := w.Container("h1", "mgmt-2"), w.Container("h2", "mgmt-1")
	macs := []int{w.network("h1", "mgmt").Local, w.network("h2", "mgmt").Remote}
	w.renumber(a, fdb.MAC{0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0x01})
	w.ping(a.NS, b.Addr.Addr())
	w.wait("the new MAC in the maps of both hosts", func() bool {
		return w.network("h1", "mgmt").Local > macs[0] && w.network("h2", "mgmt").Remote > macs[1]
	})
	before := w.network("h1", "mgmt").Sent
	w.transfer(a, b, 16<<20)
	if sent := w.network("h1", "mgmt").Sent.less(before); sent.ratio() < 0.99 {
		t.Errorf("from the new MAC: %d of %d packets on the fast path", sent.Fast, sent.Total)
	}

	// And under TCP. The size doubles until the kill comes in the middle.
	for size := scale(256 << 20); ; size *= 2 {
		done := make(chan testenv.TransferResult, 1)
		failed := make(chan error, 1)
		carried := w.fast("h1")
		go func() {
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			r, err := testenv.Transfer(w.ctx, a.NS, b.NS, b.Addr.Addr(), size, 1)
			failed <- err
			done <- r
		}()
		w.wait("the transfer to begin", func() bool { return w.fast("h1") > carried+1000 })
		kill()
		early := len(done) > 0
		for _, h := range w.Hosts {
			daemons[h.Name] = w.start(h.Name)
		}
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
		if r := <-done; !r.Match {
			t.Errorf("data altered by kill -9: sent %s, received %s", r.SentSHA256, r.ReceivedSHA256)
		}
		if !early {
			break
		}
		if size > 4<<30 {
			t.Fatalf("%d bytes went through before the daemons were killed", size)
		}
	}
}

// byHand makes on a host what an administrator could have made before vxbpf
// came: a bridge with an address and spanning tree, and a vxlan link with a
// TTL, an MTU, no learning and a remote that the config does not know.
func (w *world) byHand(host string) {
	w.t.Helper()
	_, err := w.KernelVXLAN(w.ctx, host, "mgmt", testenv.KernelVXLANOptions{
		TTL: 9, MTU: 1400, NoLearning: true, Remotes: []netip.Addr{netip.MustParseAddr("192.0.2.99")},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.kernel(w.Host(host).NS, func(h *kernel.Handle) error {
		br, _, err := h.LinkByName("br-mgmt")
		if err != nil {
			return err
		}
		x, _, err := h.LinkByName("encap-mgmt")
		if err != nil {
			return err
		}
		on, delay, ageing := true, 2*time.Second, 123*time.Second
		return errors.Join(
			h.AddAddress(br.Index, netip.MustParsePrefix("10.99.0.1/24")),
			h.SetBridge(br.Index, kernel.BridgeChange{ForwardDelay: &delay}),
			h.SetBridge(br.Index, kernel.BridgeChange{STP: &on, Ageing: &ageing}),
			h.AddStatic(x.Index, fdb.MAC{0x02, 0, 0, 0, 0, 0x63}, netip.MustParseAddr("192.0.2.99")),
		)
	})
}

// steady is a host's state once spanning tree and the like have settled.
func (w *world) steady(host string) hostState {
	w.t.Helper()
	before := w.state(host)
	for quiet := 0; quiet < 5; quiet++ {
		time.Sleep(100 * time.Millisecond)
		now := w.state(host)
		if before.changes(now) != "" || strings.Contains(strings.Join(now, "\n"), " 18/5/1=01") || strings.Contains(strings.Join(now, "\n"), " 18/5/1=02") {
			quiet = -1 // a port is listening (1) or learning (2)
		}
		before = now
		if w.ctx.Err() != nil {
			w.t.Fatalf("%s does not settle", host)
		}
	}
	return before
}

//	h1 (bare): mgmt-1 on nothing -- eth2 ==== eth2 -- encap-mgmt -- br-mgmt, made by hand: h2
//
// unload removes exactly what vxbpf made, and puts back what it changed,
// whether the daemon lives or was killed.
func TestUnload(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.HostAddresses = []string{"mgmt"}
	w := up(t, spec, false)
	w.byHand("h2")
	hosts := []string{"h1", "h2"}
	before := map[string]hostState{}
	for _, h := range hosts {
		before[h] = w.steady(h)
	}
	for _, how := range []struct {
		name, attach string
		kill         bool
	}{{"unload", attachedBy(t), false}, {"kill -9 and unload", attachedBy(t), true}, {"unload of clsact", "clsact", false}} {
		daemons := map[string]*testenv.Daemon{}
		config := []byte(strings.ReplaceAll(string(w.Host("h2").Config(w.Spec)), "      addresses:\n", "      stp: false\n      forward_delay: 0\n      addresses:\n"))
		for _, host := range hosts {
			o := testenv.StartOptions{Binary: w.bin, Args: []string{"--attach", how.attach}}
			if host == "h2" {
				o.Config = config
			}
			d, err := w.Host(host).Start(w.ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			daemons[host] = d
			if err := w.AttachContainers(w.ctx, host); err != nil {
				t.Fatal(err)
			}
			w.hooks(host, how.attach)
		}
		w.ping(w.Container("h1", "mgmt-1").NS, w.Container("h2", "mgmt-1").Addr.Addr())
		w.transfer(w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1"), 4<<20)
		for _, host := range hosts {
			if diff := before[host].changes(w.state(host)); diff == "" {
				t.Fatalf("load changed nothing on %s: this test sees nothing", host)
			}
			if how.kill {
				if err := daemons[host].Kill(); err != nil {
					t.Fatal(err)
				}
			}
			dry, _, code := w.vxbpf(host, "unload", "--dry-run")
			if code != 0 || !strings.Contains(dry, "192.0.2.1") && host == "h2" {
				t.Errorf("unload --dry-run on %s: exit %d\n%s", host, code, dry)
			}
			out, errOut, code := w.vxbpf(host, "unload")
			if code != 0 {
				t.Errorf("%s on %s: exit %d\n%s%s", how.name, host, code, out, errOut)
			}
			if out != dry {
				t.Errorf("%s on %s did something else than --dry-run said:\n%s\ndry run:\n%s", how.name, host, out, dry)
			}
			if !how.kill {
				select {
				case <-daemons[host].Done():
				case <-w.ctx.Done():
					t.Fatalf("the daemon of %s lives on", host)
				}
			}
			w.same(host, how.name, before[host])
			if out, _, code := w.vxbpf(host, "unload"); code != 0 || !strings.Contains(out, "nothing is loaded") {
				t.Errorf("second unload on %s: exit %d\n%s", host, code, out)
			}
			w.same(host, "the second unload", before[host])
		}
	}
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// With --keep-links the kernel takes over in the middle of everything, and a
// later load adopts what it finds.
func TestUnloadKeepLinks(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), true)
	s := w.stream("h1", "h2")
	w.flowing("before unload")
	for _, h := range w.Hosts {
		if out, errOut, code := w.vxbpf(h.Name, "unload", "--keep-links"); code != 0 || !strings.Contains(out, "keep bridge br-mgmt") || !strings.Contains(out, "keep vxlan encap-mgmt") {
			t.Errorf("unload --keep-links on %s: exit %d\n%s%s", h.Name, code, out, errOut)
		}
		if p := w.programs(h.Name); len(p) > 0 {
			t.Errorf("programs on %s: %v", h.Name, p)
		}
		state := w.state(h.Name)
		if i := slices.IndexFunc(state, func(l string) bool { return strings.HasPrefix(l, "file ") }); i >= 0 {
			t.Errorf("left on %s: %s", h.Name, state[i])
		}
		if _, _, code := w.vxbpf(h.Name, "status"); code != 1 {
			t.Errorf("status of %s: exit %d", h.Name, code)
		}
	}
	w.whole(s, "unload --keep-links")
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")

	// The same under TCP: the fast path is left, and entered again, under way.
	kept := map[string]hostState{}
	for _, h := range w.Hosts {
		kept[h.Name] = w.steady(h.Name)
		out, errOut, code := w.vxbpf(h.Name, "load", "--dry-run", w.config(h.Name))
		if code != 0 || !strings.Contains(out, "keep vxlan encap-mgmt (adopted)") || !strings.Contains(out, "nothing to change") {
			t.Errorf("load --dry-run on %s: exit %d\n%s%s", h.Name, code, out, errOut)
		}
	}
	done := make(chan error, 1)
	go func() {
		r, err := testenv.Transfer(w.ctx, a.NS, b.NS, b.Addr.Addr(), 512<<20, 1)
		if err == nil && !r.Match {
			err = fmt.Errorf("data altered: sent %s, received %s", r.SentSHA256, r.ReceivedSHA256)
		}
		done <- err
	}()
	for _, h := range w.Hosts {
		w.start(h.Name)
	}
	w.ping(a.NS, b.Addr.Addr())
	for _, h := range w.Hosts {
		if out, errOut, code := w.vxbpf(h.Name, "unload", "--keep-links"); code != 0 {
			t.Errorf("unload --keep-links on %s: exit %d\n%s%s", h.Name, code, out, errOut)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.ping(a.NS, b.Addr.Addr())

	// What was adopted stays at a plain unload too.
	for _, h := range w.Hosts {
		w.start(h.Name)
		w.hooks(h.Name, attachedBy(t))
		if out, errOut, code := w.vxbpf(h.Name, "unload"); code != 0 {
			t.Errorf("unload on %s: exit %d\n%s%s", h.Name, code, out, errOut)
		}
		w.same(h.Name, "adoption and unload", kept[h.Name])
	}
	w.ping(a.NS, b.Addr.Addr())
}

//	h1: mgmt-1, mgmt-2 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// load again: while a daemon runs, after it has ended, with --once, over the
// state of another version, and with a config that does not fit.
func TestLoadAgain(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.Containers = 2
	w := up(t, spec, false)
	d := w.start("h1")
	w.start("h2")
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.ping(a.NS, b.Addr.Addr())
	w.hooks("h1", attachedBy(t))
	loaded, ids := w.steady("h1"), w.linkIDs("h1")
	unchanged := func(after string) {
		t.Helper()
		w.same("h1", after, loaded)
		if now := w.linkIDs("h1"); !maps.Equal(now, ids) {
			t.Errorf("%s: the ids of the pinned links went from %v to %v", after, ids, now)
		}
	}

	// A second daemon. One that is let in would stay.
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	bounded := &world{Lab: w.Lab, t: t, ctx: ctx, bin: w.bin}
	for _, args := range [][]string{{"load"}, {"load", "--once"}, {"load", "--attach", "clsact"}} {
		if len(args) == 1 {
			t.Setenv("NOTIFY_SOCKET", "/nowhere") // a service manager's start, which is to be the daemon itself
		} else if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
			t.Fatal(err)
		}
		_, errOut, code := bounded.vxbpf("h1", append(args, w.config("h1", "mgmt\n", "other\n"))...)
		if code != 1 || !strings.Contains(errOut, fmt.Sprintf("process %d ", d.Pid)) || !strings.Contains(errOut, "vxbpf unload") {
			t.Errorf("second %v: exit %d, want 1 and pid %d\n%s", args, code, d.Pid, errOut)
		}
		unchanged("a second load")
	}
	if s, _ := w.status("h1"); s.Daemon != d.Pid {
		t.Errorf("after a second load the daemon is %d, want %d", s.Daemon, d.Pid)
	}

	// SIGTERM: the end is orderly, and the data path stays.
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(string(d.Log()), "the data path stays") {
		t.Errorf("log:\n%s", d.Log())
	}
	unchanged("SIGTERM")
	before := w.fast("h1")
	w.transfer(a, b, 4<<20)
	if w.fast("h1") < before+1000 {
		t.Error("after SIGTERM the fast path carries nothing")
	}
	out, errOut, code := w.vxbpf("h1", "load", "--dry-run", w.config("h1"))
	if code != 0 || !strings.Contains(out, "nothing to change") || strings.Contains(out, "create") {
		t.Errorf("load --dry-run after a load: exit %d\n%s%s", code, out, errOut)
	}
	out, errOut, code = w.vxbpf("h1", "load", "--dry-run", "-o", "json", w.config("h1"))
	var plan struct {
		Changes bool `json:"changes"`
		Actions []struct {
			Verb string `json:"verb"`
		} `json:"actions"`
	}
	if err := json.Unmarshal([]byte(out), &plan); err != nil || code != 0 || plan.Changes || len(plan.Actions) == 0 {
		t.Errorf("load --dry-run -o json: exit %d, %v, %+v\n%s", code, err, plan, errOut)
	}
	for _, act := range plan.Actions {
		if act.Verb != "keep" {
			t.Errorf("load --dry-run after a load would %s something:\n%s", act.Verb, out)
		}
	}
	unchanged("a dry run")

	// A load that cannot be: what the earlier one left stays.
	if _, errOut, code := w.vxbpf("h1", "load", w.config("h1", "eth2", "eth9")); code != 2 || !strings.Contains(errOut, "eth9 does not exist") {
		t.Errorf("load with a missing device: exit %d\n%s", code, errOut)
	}
	unchanged("a load that failed")
	file := filepath.Join(w.runDir("h1"), "state.json")
	state, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for bad, message := range map[string]string{
		strings.Replace(string(state), `"version":1`, `"version":99`, 1): "version 99",
		string(state[:len(state)/2]):                                     "state.json",
	} {
		if err := os.WriteFile(file, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"load", w.config("h1")}, {"load", "--dry-run", w.config("h1")}, {"unload"}, {"status"}} {
			if _, errOut, code := w.vxbpf("h1", args...); code != 1 || !strings.Contains(errOut, message) {
				t.Errorf("%v over state with %s: exit %d\n%s", args, message, code, errOut)
			}
			unchanged(args[0] + " over state with " + message)
			if now, err := os.ReadFile(file); err != nil || string(now) != bad {
				t.Errorf("%v over state with %s changed the state: %v", args, message, err)
			}
		}
	}
	// Without any state the data path is still not the failed load's to remove.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := w.vxbpf("h1", "load", w.config("h1", "eth2", "eth9")); code != 2 {
		t.Errorf("load with a missing device and no state: exit %d\n%s", code, errOut)
	}
	if now := w.linkIDs("h1"); !maps.Equal(now, ids) {
		t.Errorf("after a load that failed without state, the ids of the pinned links went from %v to %v", ids, now)
	}
	if err := os.MkdirAll(w.runDir("h1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, state, 0o644); err != nil {
		t.Fatal(err)
	}

	// --once takes over as well, and its data path needs nobody.
	if out, errOut, code := w.vxbpf("h1", "load", "--once", w.config("h1")); code != 0 {
		t.Errorf("load --once: exit %d\n%s%s", code, out, errOut)
	}
	unchanged("load --once")
	out, _, code = w.vxbpf("h1", "status")
	if code != 0 || !strings.Contains(out, "no daemon (--once)") || strings.Contains(out, "NO DAEMON") {
		t.Errorf("status after load --once: exit %d\n%s", code, out)
	}
	if s, _ := w.status("h1"); s.Daemon != 0 {
		t.Errorf("status after load --once: daemon %d", s.Daemon)
	}
	sent := w.network("h1", "mgmt").Sent
	w.transfer(a, b, 16<<20)
	if sent = w.network("h1", "mgmt").Sent.less(sent); sent.ratio() < 0.99 {
		t.Errorf("after load --once %d of %d packets are on the fast path", sent.Fast, sent.Total)
	}
	// A MAC that comes later takes the kernel's way, and gets there.
	c := w.Container("h1", "mgmt-2")
	w.renumber(c, fdb.MAC{0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0x02})
	w.ping(c.NS, b.Addr.Addr())
	w.transfer(c, b, 4<<20)
}

// qdiscDrops is how many packets a host's links had to drop on their way out.
func (w *world) qdiscDrops(host string) (sum uint64) {
	w.t.Helper()
	err := w.Host(host).NS.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		for _, l := range strings.Split(string(b), "\n") {
			_, counters, ok := strings.Cut(l, ":")
			if f := strings.Fields(counters); ok && len(f) == 16 {
				n, perr := strconv.ParseUint(f[11], 10, 64)
				sum, err = sum+n, errors.Join(err, perr)
			}
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return sum
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// A restart may change the way of attaching: each hook has one program
// afterwards, and nothing of ours loses a packet. The kernel does: adding or
// removing a clsact qdisc, whoever does it, drops what the device sends in that
// moment (qdisc_graft deactivates the device; noop_enqueue counts the packets).
func TestAttachSwitch(t *testing.T) {
	need.Kernel(t, need.TCX)
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	w := up(t, spec, false)
	bare := w.steady("h1")
	daemons := map[string]*testenv.Daemon{}
	restart := func(mode string) {
		t.Helper()
		for _, h := range w.Hosts {
			if d := daemons[h.Name]; d != nil {
				if err := d.Stop(); err != nil {
					t.Error(err)
				}
			}
			daemons[h.Name] = w.start(h.Name, "--attach", mode)
			w.hooks(h.Name, mode)
			if st, code := w.status(h.Name); code != 0 || st.Attach != mode {
				t.Errorf("status of %s: exit %d, attached by %s, want %s", h.Name, code, st.Attach, mode)
			}
		}
	}
	restart("tcx")
	for _, mode := range []string{"clsact", "tcx"} {
		s := w.stream("h1", "h2")
		dropped := w.qdiscDrops("h1") + w.qdiscDrops("h2")
		restart(mode)
		w.flowing("attached by " + mode)
		r := s.Stop()
		dropped = w.qdiscDrops("h1") + w.qdiscDrops("h2") - dropped
		t.Logf("to %s: %s, %d by the kernel's change of qdiscs", mode, r, dropped)
		if r.Lost > r.ReceiverDrops+dropped || r.Duplicates > 0 {
			t.Errorf("to %s: %s, only %d of them by the kernel's change of qdiscs", mode, r, dropped)
		}

		s = w.stream("h1", "h2")
		restart(mode)
		w.whole(s, mode+" again")
	}
	if out, errOut, code := w.vxbpf("h1", "unload"); code != 0 {
		t.Errorf("unload: exit %d\n%s%s", code, out, errOut)
	}
	w.same("h1", "two switches and unload", bare)
}
