// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/testenv"
)

// stall is the longest that a TCP connection may stand still where nothing is lost: the machine is shared.
const stall = 900 * time.Millisecond

// unbroken runs do under a stream of numbered packets from h1 to h2 and a TCP
// connection the other way, and fails the test if a packet is lost, or the
// connection breaks, stalls, or brings other bytes than were sent.
func (w *world) unbroken(what string, do func()) {
	w.t.Helper()
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	s := w.stream("h1", "h2")
	f, err := testenv.StartFlow(w.ctx, b.NS, a.NS, a.Addr.Addr())
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		r, err := f.Stop()
		w.t.Logf("%s: TCP %s", what, r)
		if err != nil || !r.Match || r.LongestStall > patience(stall) {
			w.t.Errorf("%s: TCP %s, %v", what, r, err)
		}
	}()
	do()
	w.whole(s, what)
}

// another writes a changed copy of a config and returns where.
func (w *world) another(text []byte, oldnew ...string) string {
	w.t.Helper()
	c := string(text)
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(c, oldnew[i]) {
			w.t.Fatalf("%q is not in the config:\n%s", oldnew[i], c)
		}
		c = strings.Replace(c, oldnew[i], oldnew[i+1], 1)
	}
	file := filepath.Join(w.t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(c), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

const secondNetwork = `- name: second
  vni: 300
  bridge: br-second
  remotes: [192.0.2.77]
  fdb: [{mac: "02:00:00:00:00:99", remote: 192.0.2.77}]
`

//	h1: mgmt-1 on br-mgmt -- encap-mgmt, of plain kernel VXLAN -- eth2 ==== eth2 -- the same: h2
//
// The whole life of a daemon on a host with traffic, under numbered packets and a
// TCP connection: nothing of it shows in either. Another version is TestVersions'.
func TestUnbroken(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	for _, h := range w.Hosts {
		if _, err := w.KernelVXLAN(w.ctx, h.Name, "mgmt", testenv.KernelVXLANOptions{NoChecksum: true}); err != nil {
			t.Fatal(err)
		}
	}
	daemons := map[string]*testenv.Daemon{}
	begin := func() {
		for _, h := range w.Hosts {
			daemons[h.Name] = w.start(h.Name)
			if n := w.network(h.Name, "mgmt"); n.Datapath != "tc" {
				t.Errorf("datapath of %s: %s, %s", h.Name, n.Datapath, n.Reason)
			}
		}
		w.flowing("on both hosts")
	}
	both := func(change func(host string)) {
		for _, h := range w.Hosts {
			change(h.Name)
		}
	}
	w.unbroken("load over the kernel's traffic", begin)
	text := map[string][]byte{}
	both(func(h string) { text[h] = read(t, w.config(h)) })
	plain := func(h string) string { return w.another(text[h]) }

	w.unbroken("reload with an unrelated change", func() {
		both(func(h string) { w.reload(h, w.another(append(slices.Clone(text[h]), secondNetwork...))) })
		if w.link("h1", "encap-second") == nil {
			t.Error("the second network is not there")
		}
		both(func(h string) { w.reload(h, plain(h)) })
		if w.link("h1", "encap-second") != nil {
			t.Error("the second network is still there")
		}
		w.flowing("after the reload")
	})
	w.unbroken("kill -9 and restart", func() {
		for _, d := range daemons {
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		w.flowing("without a daemon")
		begin()
	})
	w.unbroken("tc, kernel, tc", func() {
		both(func(h string) {
			w.reload(h, w.another(text[h], "datapath: auto", "datapath: kernel"))
			if n := w.network(h, "mgmt"); n.Datapath != "kernel" {
				t.Errorf("datapath kernel on %s: %+v", h, n)
			}
		})
		both(func(h string) { w.reload(h, plain(h)) })
		w.flowing("on tc again")
	})
	w.unbroken("unload --keep-links", func() {
		both(func(h string) {
			if out, errOut, code := w.vxbpf(h, "unload", "--keep-links"); code != 0 {
				t.Errorf("unload --keep-links on %s: exit %d\n%s%s", h, code, out, errOut)
			}
			if p := w.programs(h); len(p) > 0 {
				t.Errorf("programs on %s: %v", h, p)
			}
		})
	})
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 (192.0.2.11, .111) ==== eth2 -- the same: h2
//
// One thing of the config changes, and nothing else: remotes, static entries, the
// underlay address and ttl in place, without a lost packet; the UDP port by making
// the link again, which the plan says.
func TestReloadParts(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	w.start("h1")
	w.start("h2")
	w.ip("h1", "addr", "add", "192.0.2.111/24", "dev", "eth2")
	b := w.Container("h2", "mgmt-1")
	index := w.link("h1", "encap-mgmt").Index
	text := map[string][]byte{"h1": read(t, w.config("h1")), "h2": read(t, w.config("h2"))}
	change := func(host, want string, oldnew ...string) {
		t.Helper()
		l := w.reload(host, w.another(text[host], oldnew...))
		var did []string
		for _, a := range l.Plan.Actions {
			if a.Verb != "keep" {
				did = append(did, strings.TrimSpace(a.Verb+" "+a.Object+" "+a.Attr))
			}
		}
		if got := strings.Join(did, ", "); got != want {
			t.Errorf("reload of %s did %q, want %q", host, got, want)
		}
	}
	unmoved := func() {
		t.Helper()
		if x := w.link("h1", "encap-mgmt"); x == nil || x.Index != index {
			t.Errorf("the link was made again: %+v", x)
		}
		w.clean("h1", 5*time.Second)
		w.clean("h2", 5*time.Second)
		w.flowing("after the change")
	}
	w.unbroken("remotes", func() {
		change("h1", "add remote 192.0.2.77 on encap-mgmt", "- 192.0.2.12\n", "- 192.0.2.12\n  - 192.0.2.77\n")
		if n := w.network("h1", "mgmt"); !slices.Contains(n.Sources, "192.0.2.77") {
			t.Errorf("who may send: %v", n.Sources)
		}
		change("h1", "remove remote 192.0.2.77 on encap-mgmt")
		unmoved()
	})
	w.unbroken("static entries", func() {
		static := fmt.Sprintf("vni: 236\n  fdb: [{mac: %q, remote: 192.0.2.12}]", b.MAC)
		change("h1", fmt.Sprintf("add static %s -> 192.0.2.12 on encap-mgmt", b.MAC), "vni: 236", static)
		unmoved()
		change("h1", fmt.Sprintf("remove static %s -> 192.0.2.12 on encap-mgmt", b.MAC))
		unmoved()
	})
	w.unbroken("underlay address", func() {
		const add = "- 192.0.2.11\n"
		change("h2", "add remote 192.0.2.111 on encap-mgmt", add, add+"  - 192.0.2.111\n")
		change("h1", "change vxlan encap-mgmt local", "device: eth2", "device: eth2\n  local: 192.0.2.111")
		if l := w.link("h1", "encap-mgmt"); l.VXLAN.Local.String() != "192.0.2.111" {
			t.Errorf("local address %s", l.VXLAN.Local)
		}
		w.wait("h2 to send there", func() bool {
			out, _, _ := w.vxbpf("h2", "show", "fdb", "--vtep", "192.0.2.111")
			return strings.Contains(out, w.Container("h1", "mgmt-1").MAC.String())
		})
		unmoved()
		change("h1", "change vxlan encap-mgmt local")
		unmoved()
	})
	change("h2", "remove remote 192.0.2.111 on encap-mgmt")

	// The kernel cannot change the port of a link. Until the other host has changed too, nothing arrives.
	s := w.stream("h1", "h2")
	for h, remote := range map[string]string{"h1": "192.0.2.12", "h2": "192.0.2.11"} {
		change(h, "recreate vxlan encap-mgmt, add port encap-mgmt of br-mgmt, add remote "+remote+" on encap-mgmt", "ttl: 5", "ttl: 5\n  port: 4790")
		if l := w.link(h, "encap-mgmt"); l == nil || l.VXLAN.Port != 4790 {
			t.Errorf("port of %s: %+v", h, l)
		}
	}
	got := s.Received()
	w.wait("the stream to go on", func() bool { return s.Received() > got+1000 })
	w.ping(b.NS, w.Container("h1", "mgmt-1").Addr.Addr())
	w.flowing("over the other port")
	r := s.Stop()
	t.Logf("port: %s", r)
	if lost := time.Duration(r.Lost) * time.Second / 10_000; lost > patience(5*time.Second) {
		t.Errorf("port: %s without traffic", lost)
	}
	w.clean("h1", 5*time.Second)
	w.transfer(b, w.Container("h1", "mgmt-1"), 4<<20)
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// A reload fails in the maps or at the hooks, in the middle: the last good state
// stands, nothing is there by half, and no packet is lost. What is in the way is
// made with other tools: a map that others have filled, a map of another shape
// under the name of ours, something else under the name of a link's pin.
func TestReloadFails(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	d := w.start("h1")
	w.start("h2")
	w.ping(w.Container("h1", "mgmt-1").NS, w.Container("h2", "mgmt-1").Addr.Addr())
	w.hooks("h1", attachedBy(t))
	text := read(t, w.config("h1"))
	second := append(slices.Clone(text), secondNetwork...)
	was, ids := w.steady("h1"), w.linkIDs("h1")
	stands := func(after string) {
		t.Helper()
		w.same("h1", after, was)
		if now := w.linkIDs("h1"); !maps.Equal(now, ids) {
			t.Errorf("%s: the ids of the pinned links went from %v to %v", after, ids, now)
		}
		if st := w.mustStatus("h1"); st.Daemon != d.Pid || len(st.Networks) != 1 {
			t.Errorf("%s: daemon %d, want %d; networks %+v", after, st.Daemon, d.Pid, st.Networks)
		}
		w.clean("h1", 5*time.Second)
		w.flowing(after)
	}

	// In the maps, after the links were made: there is no room for another port.
	w.unbroken("a full map", func() {
		m := w.pinned("h1", "vx_port")
		defer m.Close()
		value := make([]byte, m.ValueSize())
		n := 0
		for i := uint32(1 << 30); ; i++ {
			if err := m.Update(i, value, ebpf.UpdateNoExist); err != nil {
				break // no room
			}
			n++
		}
		if n == 0 {
			t.Fatal("nothing fits into the map: this test does nothing")
		}
		out, errOut, code := w.vxbpf("h1", "load", w.another(second))
		if code != 1 || !strings.Contains(errOut, "put port") {
			t.Errorf("reload with a full map: exit %d\n%s%s", code, out, errOut)
		}
		stands("a full map")
	})
	w.unbroken("the same reload without the fault", func() {
		w.reload("h1", w.another(second)) // what was in the way went with the roll-back
		w.reload("h1", w.another(text))
		stands("the same reload without the fault")
	})

	// In the maps, before anything: many networks need larger ones, and something else has the place.
	many := slices.Clone(text)
	for i := range 70 {
		many = fmt.Appendf(many, "- {name: s%d, vni: %d, bridge: br-s%d, remotes: [192.0.2.77]}\n", i, 1000+i, i)
	}
	before := w.mapDirs("h1")
	w.reload("h1", w.another(many))
	larger := w.mapDirs("h1")
	w.reload("h1", w.another(text))
	w.unload("h1")
	d = w.start("h1")
	if len(larger) != 1 || slices.Equal(before, larger) {
		t.Fatalf("71 networks in %v, one in %v: this test does nothing", larger, before)
	}
	w.hooks("h1", attachedBy(t))
	w.ping(w.Container("h1", "mgmt-1").NS, w.Container("h2", "mgmt-1").Addr.Addr())
	was, ids = w.steady("h1"), w.linkIDs("h1")
	if err := os.MkdirAll(larger[0], 0o700); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Pin(filepath.Join(larger[0], "vx_fdb")); err != nil {
		t.Fatal(err)
	}
	w.unbroken("a map of another shape", func() {
		out, errOut, code := w.vxbpf("h1", "load", w.another(many))
		if code != 1 || !strings.Contains(errOut, "vx_fdb") {
			t.Errorf("reload over a map of another shape: exit %d\n%s%s", code, out, errOut)
		}
		if _, err := os.Stat(filepath.Join(larger[0], "vx_fdb")); err != nil {
			t.Errorf("what is not vxbpf's went: %v", err)
		}
		if err := os.RemoveAll(larger[0]); err != nil {
			t.Error(err)
		}
		stands("a map of another shape")
	})

	if attachedBy(t) != "tcx" {
		return // filters have no pins
	}
	// At a hook: one device that takes no program is slow, says why, and stops nothing else.
	w.ip("h1", "link", "add", "br-second", "type", "bridge")
	w.ip("h1", "link", "set", "br-second", "up")
	pin := filepath.Join(w.pinDir("h1"), "links", fmt.Sprintf("vx_tc_encap-%d-egress", w.link("h1", "br-second").Index))
	if err := other.Pin(pin); err != nil {
		t.Fatal(err)
	}
	w.unbroken("something else under a pin's name", func() {
		w.reload("h1", w.another(second))
		out, errOut, _ := w.vxbpf("h1", "verify")
		if !strings.Contains(out, "br-second") {
			t.Errorf("verify does not name the hook:\n%s%s", out, errOut)
		}
		if !strings.Contains(string(d.Log()), "attach vx_tc_encap to br-second") {
			t.Errorf("the log does not name the hook:\n%s", d.Log())
		}
		if _, err := os.Stat(pin); err != nil {
			t.Errorf("what is not vxbpf's went: %v", err)
		}
		w.flowing("with a hook missing elsewhere")
		if err := os.Remove(pin); err != nil {
			t.Error(err)
		}
		w.clean("h1", 10*time.Second)
	})
	w.reload("h1", w.another(text))
	w.clean("h1", 5*time.Second)
}

// mapDirs are the directories of a host's pinned maps.
func (w *world) mapDirs(host string) []string {
	w.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(w.pinDir(host), "maps-*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return dirs
}

// pinned opens one of a host's maps.
func (w *world) pinned(host, name string) *ebpf.Map {
	w.t.Helper()
	dirs := w.mapDirs(host)
	if len(dirs) != 1 {
		w.t.Fatalf("maps of %s: %v", host, dirs)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dirs[0], name), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// unload ends a host's daemon and removes what it made.
func (w *world) unload(host string) {
	w.t.Helper()
	if out, errOut, code := w.vxbpf(host, "unload"); code != 0 {
		w.t.Fatalf("unload on %s: exit %d\n%s%s", host, code, out, errOut)
	}
}
