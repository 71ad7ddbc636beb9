// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/testenv"
)

// loaded is what `load -o json` prints where a daemon takes the config.
type loaded struct {
	PID     int    `json:"pid"`
	Changes bool   `json:"changes"`
	Until   string `json:"until"`
	Plan    struct {
		Actions []struct {
			Verb   string `json:"verb"`
			Object string `json:"object"`
			Attr   string `json:"attr"`
			Reason string `json:"reason"`
		} `json:"actions"`
	} `json:"plan"`
}

// reload hands a config to the daemon of a host, and fails the test if it does not take it.
func (w *world) reload(host, file string, args ...string) (l loaded) {
	w.t.Helper()
	out, errOut, code := w.vxbpf(host, append(append([]string{"load", "-o", "json"}, args...), file)...)
	if err := json.Unmarshal([]byte(out), &l); err != nil || code != 0 {
		w.t.Fatalf("reload on %s: exit %d, %v\n%s%s", host, code, err, out, errOut)
	}
	return l
}

// link is a link of a host, nil if it has none of that name.
func (w *world) link(host, name string) (l *kernel.Link) {
	w.t.Helper()
	w.kernel(w.Host(host).NS, func(h *kernel.Handle) error {
		k, ok, err := h.LinkByName(name)
		if ok {
			l = &k
		}
		return err
	})
	return l
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// Another config goes to the daemon that runs. What can change in place does,
// under a stream that loses nothing; what cannot be is refused or rolled back,
// and then nothing has changed.
func TestReload(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	d := w.start("h1")
	w.start("h2")
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.ping(a.NS, b.Addr.Addr())
	w.hooks("h1", "tcx")
	index, ids := w.link("h1", "encap-mgmt").Index, w.linkIDs("h1")
	first := w.config("h1")
	text, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	// another writes a changed copy of the config.
	another := func(oldnew ...string) string {
		t.Helper()
		c := string(text)
		for i := 0; i < len(oldnew); i += 2 {
			if !strings.Contains(c, oldnew[i]) {
				t.Fatalf("%q is not in the config:\n%s", oldnew[i], c)
			}
			c = strings.Replace(c, oldnew[i], oldnew[i+1], 1)
		}
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(c), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	more := string(text) + `- name: second
  vni: 300
  bridge: br-second
  remotes: [192.0.2.77]
  fdb: [{mac: "02:00:00:00:00:99", remote: 192.0.2.77}]
`
	second := filepath.Join(t.TempDir(), "second.yaml")
	if err := os.WriteFile(second, []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}

	s := w.stream("h1", "h2")
	w.flowing("before the reload")
	if l := w.reload("h1", first); l.Changes || l.PID != d.Pid {
		t.Errorf("the same config again: %+v", l)
	}
	// A network more, and one less; its parts are made and go.
	if l := w.reload("h1", second); !l.Changes {
		t.Errorf("another network: %+v", l)
	}
	if w.link("h1", "encap-second") == nil || w.link("h1", "br-second") == nil || len(w.mustStatus("h1").Networks) != 2 {
		t.Error("the second network is not there")
	}
	w.reload("h1", first)
	if w.link("h1", "encap-second") != nil || w.link("h1", "br-second") != nil {
		t.Error("the second network is still there")
	}
	// In place: the link stays the same link, with other attributes.
	for _, c := range []struct {
		oldnew []string
		ok     func(l *kernel.Link) bool
	}{
		{[]string{"ttl: 5", "ttl: 9"}, func(l *kernel.Link) bool { return l.VXLAN.TTL == 9 }},
		{[]string{"ttl: 5", "ttl: 5\n  tos: 32"}, func(l *kernel.Link) bool { return l.VXLAN.TOS == 32 }},
		{[]string{"mtu: 1450", "mtu: 1400"}, func(l *kernel.Link) bool { return l.MTU == 1400 }},
		{[]string{"vni: 236", "vni: 236\n  ageing: 200"}, func(l *kernel.Link) bool { return l.VXLAN.Ageing == 200*time.Second }},
	} {
		l := w.reload("h1", another(c.oldnew...))
		x := w.link("h1", "encap-mgmt")
		if !l.Changes || x == nil || x.Index != index || !c.ok(x) {
			t.Errorf("%v: %+v, link %+v %+v", c.oldnew, l, x, x.VXLAN)
		}
		for _, act := range l.Plan.Actions {
			if act.Verb == "recreate" || act.Verb == "delete" {
				t.Errorf("%v: %+v", c.oldnew, act)
			}
		}
	}
	w.reload("h1", first)
	if now := w.linkIDs("h1"); !maps.Equal(now, ids) {
		t.Errorf("the ids of the pinned links went from %v to %v", ids, now)
	}
	w.flowing("after the reloads")
	w.whole(s, "reloads in place")

	// To the kernel's path and back.
	s = w.stream("h1", "h2")
	kernelPath := another("datapath: auto", "datapath: kernel")
	if l := w.reload("h1", kernelPath); !strings.Contains(fmt.Sprint(l.Plan.Actions), "datapath") {
		t.Errorf("to the kernel: the plan does not say so: %+v", l)
	}
	// The check of outer sources alone goes on.
	if p := w.programs("h1"); len(p) != 1 || !slices.Equal(p["eth2 ingress"], []string{"tcx vx_tc_guard"}) {
		t.Errorf("datapath kernel: programs %v", p)
	}
	if n := w.network("h1", "mgmt"); n.Datapath != "kernel" {
		t.Errorf("datapath kernel: %+v", n)
	}
	w.reload("h1", first)
	w.hooks("h1", "tcx")
	w.flowing("after tc, kernel, tc")
	w.whole(s, "tc, kernel, tc")

	// SIGHUP reads the file that was loaded last.
	if err := os.WriteFile(first, []byte(strings.Replace(string(text), "ttl: 5", "ttl: 7", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(d.Pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	w.wait("SIGHUP to set ttl 7", func() bool { return w.link("h1", "encap-mgmt").VXLAN.TTL == 7 })
	if err := os.WriteFile(first, text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.reload("h1", first)

	// What cannot be. Nothing has changed afterwards, not even half.
	was, ids := w.steady("h1"), w.linkIDs("h1")
	unchanged := func(after string) {
		t.Helper()
		w.same("h1", after, was)
		if now := w.linkIDs("h1"); !maps.Equal(now, ids) {
			t.Errorf("%s: the ids of the pinned links went from %v to %v", after, ids, now)
		}
		if st := w.mustStatus("h1"); st.Daemon != d.Pid {
			t.Errorf("%s: daemon %d, want %d", after, st.Daemon, d.Pid)
		}
	}
	for _, c := range []struct {
		file, message string
		code          int
	}{
		{another("device: eth2", "device: eth9"), "eth9 does not exist", 2},
		{another("ttl: 5", "ttl: 5000"), "ttl", 2},
		{another("vni: 236", "vni: 236\n  colour: red"), "unknown key colour", 2},
	} {
		if out, errOut, code := w.vxbpf("h1", "load", c.file); code != c.code || !strings.Contains(errOut, c.message) {
			t.Errorf("want %q: exit %d\n%s%s", c.message, code, out, errOut)
		}
		unchanged(c.message)
	}
	// In the middle: the name is taken by what no list of links shows as such, so
	// that the kernel refuses the last of several steps.
	w.ip("h1", "link", "property", "add", "dev", "eth2", "altname", "encap-second")
	was = w.steady("h1")
	out, errOut, code := w.vxbpf("h1", "load", second)
	if code != 1 || !strings.Contains(errOut, "create vxlan encap-second") {
		t.Errorf("a step that the kernel refuses: exit %d\n%s%s", code, out, errOut)
	}
	unchanged("a step that the kernel refuses")
	w.ping(a.NS, b.Addr.Addr())
	w.transfer(a, b, 4<<20)
}

// ip runs iproute2's ip in a host's namespace.
func (w *world) ip(host string, args ...string) {
	w.t.Helper()
	if out, err := w.Host(host).NS.Command(w.ctx, "ip", args...).CombinedOutput(); err != nil {
		w.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// mustStatus is status where something is loaded.
func (w *world) mustStatus(host string) status {
	w.t.Helper()
	s, code := w.status(host)
	if code != 0 {
		w.t.Fatalf("status of %s: exit %d", host, code)
	}
	return s
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// A config that is not confirmed goes: by the daemon, by the guard where the
// daemon was killed, by the next daemon; and nothing is left where nothing was.
func TestConfirm(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	bare := w.steady("h1")
	plain := w.config("h1")
	other := w.config("h1", "ttl: 5", "ttl: 9")
	ttl := func() int {
		if l := w.link("h1", "encap-mgmt"); l != nil {
			return l.VXLAN.TTL
		}
		return -1
	}
	// rejected is what a daemon that rolled back to nothing leaves: the next start must know.
	nothing := func(after string) {
		t.Helper()
		file := filepath.Join(w.runDir("h1"), "rejected.json")
		w.wait("nothing to be left after "+after, func() bool { return w.link("h1", "encap-mgmt") == nil && exists(file) })
		if err := errors.Join(os.Remove(file), os.Remove(w.runDir("h1"))); err != nil {
			t.Error(err)
		}
		w.same("h1", after, bare)
	}

	// On a host where nothing was loaded. The daemon ends with an error.
	d := w.start("h1", "--confirm", "2s")
	if out, _, _ := w.vxbpf("h1", "status", "--interval", "0"); !strings.Contains(out, "NOT CONFIRMED") {
		t.Errorf("status does not tell:\n%s", out)
	}
	<-d.Done()
	if !strings.Contains(string(d.Log()), "not confirmed in time") {
		t.Errorf("log:\n%s", d.Log())
	}
	if out, errOut, code := w.vxbpf("h1", "confirm"); code != 1 {
		t.Errorf("confirm too late: exit %d\n%s%s", code, out, errOut)
	}
	// A service manager would start it again: that is no decision.
	if _, err := w.Host("h1").StartVXBPF(w.ctx, w.bin); err == nil || !strings.Contains(err.Error(), "rolled back because nobody confirmed it") {
		t.Errorf("a start by a service manager after the roll-back: %v", err)
	}
	nothing("a first load without a confirmation")

	// The same, killed: the guard.
	d = w.start("h1", "--confirm", "2s")
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	nothing("kill -9 after a first load without a confirmation")

	// Over a config that is in force.
	d = w.start("h1")
	w.start("h2")
	w.ping(w.Container("h1", "mgmt-1").NS, w.Container("h2", "mgmt-1").Addr.Addr())
	s := w.stream("h1", "h2")
	if l := w.reload("h1", other, "--confirm", "1s"); l.Until == "" || ttl() != 9 {
		t.Errorf("ttl %d, %+v", ttl(), l)
	}
	w.wait("the daemon to roll back", func() bool { return ttl() == 5 })
	if out, _, _ := w.vxbpf("h1", "status"); !strings.Contains(out, "ROLLED BACK") {
		t.Errorf("status does not tell:\n%s", out)
	}
	// Confirmed, it stays.
	w.reload("h1", other, "--confirm", "1s")
	if out, errOut, code := w.vxbpf("h1", "confirm"); code != 0 {
		t.Errorf("confirm: exit %d\n%s%s", code, out, errOut)
	}
	time.Sleep(1500 * time.Millisecond)
	if ttl() != 9 {
		t.Errorf("confirmed, and ttl is %d", ttl())
	}
	if _, _, code := w.vxbpf("h1", "confirm"); code != 1 {
		t.Errorf("a second confirm: exit %d", code)
	}
	// --reject does not wait.
	w.reload("h1", plain, "--confirm", "1h")
	if _, errOut, code := w.vxbpf("h1", "confirm", "--reject"); code != 0 {
		t.Errorf("confirm --reject: exit %d\n%s", code, errOut)
	}
	w.wait("a rejected config to go", func() bool { return ttl() == 9 })
	w.whole(s, "roll-backs")

	// kill -9 inside the window, and nobody starts another daemon: the guard rolls back, and traffic flows.
	w.reload("h1", plain, "--confirm", "1s")
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if ttl() != 5 {
		t.Errorf("killed inside the window: ttl %d", ttl())
	}
	w.wait("the guard to roll back", func() bool { return ttl() == 9 })
	w.wait("the guard to end", func() bool {
		pids, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pids {
			if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), "guard\x00--instance\x00"+w.Host("h1").Instance()) {
				return false
			}
		}
		return true
	})
	w.transfer(w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1"), 1<<20)

	// kill -9 inside the window, and a service manager starts it with the file
	// that is on disk: the window goes on, and ends as it would have.
	d, err := w.Host("h1").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: read(t, other)})
	if err != nil {
		t.Fatal(err)
	}
	w.reload("h1", plain, "--confirm", "4s") // a busy machine needs a second or two to start it again
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	d, err = w.Host("h1").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: read(t, plain)})
	if err != nil {
		t.Fatal(err)
	}
	if ttl() != 5 {
		t.Errorf("started again inside the window: ttl %d", ttl())
	}
	w.wait("the second daemon to roll back", func() bool { return ttl() == 9 })
	// And once more after its end, with the same file: the last good one is loaded.
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err = w.Host("h1").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: read(t, plain)}); err != nil {
		t.Fatal(err)
	}
	if ttl() != 9 {
		t.Errorf("a service manager started a config that was rolled back: ttl %d", ttl())
	}
	// A person may.
	w.reload("h1", plain)
	if ttl() != 5 {
		t.Errorf("loaded by hand after a roll-back: ttl %d", ttl())
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
