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

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// What bridges and vxlan links learn, keep and forget, with the kernel as the
// oracle: see bridge_test.go for the two labs and their nodes. Here with three
// hosts where a MAC moves, and with one on the underlay that is no VTEP:
//
//	h1  a1, a2 -- br-mgmt -- eth2 -- p-h1 ┐
//	h2  b1, b2 -- br-mgmt -- eth2 -- p-h2 ┤
//	h3  c1, c2 -- br-mgmt -- eth2 -- p-h3 ┼ sw0
//	h4  stranger             eth2 -- p-h4 ┘
//
// m is a MAC address that speaks now here, now there.
var m = fdb.MAC{0x02, 0xc0, 0, 0, 0xee, 0x0a}

func threeHosts() testenv.Spec {
	s := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}, testenv.HostSpec{Name: "h3"}, testenv.HostSpec{Name: "h4", Stranger: true})
	s.Containers = 2
	return s
}

// toM are frames from everybody to m, and one to everybody from a1.
func toM(l lab) (out []probe) {
	nodes := l.nodes()
	for _, from := range slices.Sorted(maps.Keys(nodes)) {
		out = append(out, probe{from + " to m", from, ether(m, nodes[from].mac, 0x0800, 100)})
	}
	return out
}

// speak has m say something at a node: a frame to dst.
func (tw *twin) speak(at string, dst fdb.MAC, proto uint16) {
	tw.t.Helper()
	number := <-numbers
	for _, l := range []lab{tw.kernel, tw.vxbpf} {
		l.send(at, ether(dst, m, proto, 100), number)
	}
}

// ageing of bridges and vxlan links on all hosts of both labs, in seconds. That
// of the vxlan link is changed twice: the driver then looks at its entries' age
// now, and not at the end of the ten seconds that it may have begun to wait.
func (tw *twin) ageing(seconds int) {
	tw.t.Helper()
	for _, h := range tw.kernel.Hosts {
		if !h.Stranger {
			tw.both(h.Name,
				fmt.Sprintf("ip link set br-mgmt type bridge ageing_time %d", seconds*100),
				fmt.Sprintf("ip link set encap-mgmt type vxlan id 236 ageing %d", seconds+1),
				fmt.Sprintf("ip link set encap-mgmt type vxlan id 236 ageing %d", seconds))
		}
	}
}

// entries are the ages of the forwarding entries of MACs on a host: "bridge" or
// "vxlan" and the MAC.
func (l lab) entries(host string, macs ...fdb.MAC) map[string]time.Duration {
	l.t.Helper()
	out := map[string]time.Duration{}
	l.kernel(l.Host(host).NS, func(h *kernel.Handle) error {
		es, err := h.FDB()
		for _, e := range es {
			if slices.Contains(macs, e.MAC) {
				table := "bridge "
				if e.Self {
					table = "vxlan "
				}
				out[table+e.MAC.String()] = e.Age
			}
		}
		return err
	})
	return out
}

// monitor lists the forwarding entries of a host that vanish from now on.
func (l lab) monitor(host string) (deleted func() []string) {
	l.t.Helper()
	cmd := l.Host(host).NS.Command(l.ctx, "bridge", "monitor", "fdb")
	file := filepath.Join(l.t.TempDir(), host)
	f, err := os.Create(file)
	l.must(err)
	cmd.Stdout = f
	l.must(cmd.Start(), f.Close())
	l.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return func() (out []string) {
		b, err := os.ReadFile(file)
		l.must(err)
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "Deleted ") {
				out = append(out, strings.TrimSpace(line))
			}
		}
		return out
	}
}

// A pair that talks is never forgotten, although the kernel sees hardly any of
// its packets; a pair that is silent is forgotten as ever.
func TestLearningAgeing(t *testing.T) {
	t.Parallel()
	const seconds = 2
	tw := newTwin(t, bridgeSpec())
	nodes := tw.vxbpf.nodes()
	busy := []fdb.MAC{nodes["a1"].mac, nodes["b1"].mac}
	idle := []fdb.MAC{nodes["a2"].mac, nodes["b2"].mac}
	labs, hosts := []lab{tw.kernel, tw.vxbpf}, []string{"h1", "h2"}
	// Frames do not move it, but without frames it ages like others.
	tw.both("h1", "bridge fdb replace "+busy[0].String()+" dev v-mgmt-1 master dynamic sticky")
	tw.paths("before", nil)
	deleted := map[string]func() []string{}
	for i, l := range labs {
		l.stream("a1", "b1")
		l.stream("b1", "a1")
		for _, host := range hosts {
			deleted[fmt.Sprint(i, host)] = l.monitor(host)
		}
	}
	tw.ageing(seconds)
	began, before := time.Now(), tw.vxbpf.counts("h1", "mgmt")
	// Three times as long as an entry lives, and until the idle ones are gone.
	tw.vxbpf.waitFor(60*time.Second, "the idle MACs to be forgotten in both labs", func() bool {
		left := 0
		for i, l := range labs {
			for _, host := range hosts {
				have := l.entries(host, busy...)
				if len(have) < 3 { // both in the bridge, the other host's in the vxlan link too
					t.Fatalf("lab %d has forgotten a MAC in use at %s: has %v after %s", i, host, have, time.Since(began))
				}
				left += len(l.entries(host, idle...))
			}
		}
		return left == 0 && time.Since(began) > 3*seconds*time.Second
	})
	after := tw.vxbpf.counts("h1", "mgmt")
	for k, lines := range deleted {
		for _, line := range lines() {
			if strings.Contains(line, busy[0].String()) || strings.Contains(line, busy[1].String()) {
				t.Errorf("lab %s: a MAC in use: %s", k, line)
			}
		}
	}
	for _, host := range hosts {
		table := tw.vxbpf.table(host)
		for _, mac := range idle {
			if e, ok := table[mac]; ok {
				t.Errorf("%s has forgotten %s, the map of the fast path has not: %+v", host, mac, e)
			}
		}
		if k, v := tw.kernel.fdb(host), tw.vxbpf.fdb(host); !slices.Equal(k, v) {
			t.Errorf("entries of %s: kernel %q, vxbpf %q", host, k, v)
		}
	}
	for _, hook := range []string{"h1 encap ", "h1 decap "} {
		fast, all := after[hook+"fast"]-before[hook+"fast"], uint64(0)
		for k, v := range after {
			if strings.HasPrefix(k, hook) {
				all += v - before[k]
			}
		}
		if fast < 1000 || all-fast > all/20 {
			t.Errorf("%sfast: %d of %d packets", hook, fast, all)
		}
	}
}

// The config says `learning: false`: the vxlan link learns nothing, and only
// what is static is known.
func TestLearningOff(t *testing.T) {
	t.Parallel()
	entry := func(mac, remote string) string {
		return "    bridge: br-mgmt\n    learning: false\n    fdb:\n      - {mac: " + mac + ", remote: " + remote + "}\n"
	}
	// One replacer for both hosts: the remote tells them apart.
	tw := newTwin(t, bridgeSpec(),
		"    bridge: br-mgmt\n    remotes:\n      - \"192.0.2.12\"\n", entry("02:c0:00:02:01:01", "192.0.2.12")+"    remotes:\n      - \"192.0.2.12\"\n",
		"    bridge: br-mgmt\n    remotes:\n      - \"192.0.2.11\"\n", entry("02:c0:00:01:01:01", "192.0.2.11")+"    remotes:\n      - \"192.0.2.11\"\n")
	for host, s := range map[string][2]string{"h1": {"02:c0:00:02:01:01", "192.0.2.12"}, "h2": {"02:c0:00:01:01:01", "192.0.2.11"}} {
		tw.kernel.sh(host, "ip link set encap-mgmt type vxlan id 236 nolearning", "ip link set encap-mgmt down", "ip link set encap-mgmt up",
			"bridge fdb replace "+s[0]+" dev encap-mgmt dst "+s[1]+" self static", "bridge fdb replace "+s[0]+" dev encap-mgmt master static")
	}
	tw.announce()
	tw.same("no learning")
	stranger := ", h2 decap src_unknown, h2 deliver src_unknown"
	tw.paths("no learning", map[string]string{
		"A>b1": "h1 encap fast" + stranger, "a2>b1": "h1 encap fast" + stranger, "A>B": "h1 encap dst_unknown" + stranger,
		"b1>A": "h1 decap fast, h2 encap dst_unknown", "b1>a2": "h1 decap fast, h2 encap dst_unknown",
	})
}

// A MAC goes from host to host, in every way that one can notice or not: the
// forwarding entries of all hosts stay the kernel's, and so does each frame's way.
// First the daemons are there, then they sleep, then they are dead.
func TestLearningMoves(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, threeHosts())
	l := tw.vxbpf
	signal := func(s unix.Signal) {
		t.Helper()
		for _, d := range tw.daemons {
			l.must(unix.Kill(d.Pid, s))
		}
	}
	nodes := l.nodes()
	for _, daemons := range []struct {
		name        string
		before, end unix.Signal
	}{{"awake", 0, 0}, {"asleep", unix.SIGSTOP, unix.SIGCONT}, {"dead", unix.SIGKILL, 0}} {
		for _, entry := range []string{"learned", "static", "sticky", "extern_learn"} {
			if daemons.name == "dead" && entry != "learned" {
				continue // without a daemon static entries are the kernel's alone
			}
			tw.speak("a1", broadcast, 0x88b5)
			if entry != "learned" {
				kind := map[string]string{"sticky": "static sticky"}[entry]
				if kind == "" {
					kind = entry
				}
				tw.both("h1", "bridge fdb replace "+m.String()+" dev v-mgmt-1 master "+kind)
				for _, h := range []string{"h2", "h3"} {
					tw.both(h, "bridge fdb replace "+m.String()+" dev encap-mgmt dst 192.0.2.11 self "+kind,
						"bridge fdb replace "+m.String()+" dev encap-mgmt master "+kind)
				}
			}
			if daemons.name != "dead" {
				for _, h := range []string{"h1", "h2", "h3"} {
					l.know(h, m)
				}
			}
			if daemons.before != 0 {
				signal(daemons.before)
			}
			for _, move := range []struct {
				at    string
				dst   fdb.MAC
				proto uint16
			}{
				{"a2", broadcast, 0x88b5},       // to another port
				{"a1", nodes["b1"].mac, 0x0800}, // and back, but only h2 hears
				{"b2", broadcast, 0x0800},       // local to remote, remote to local, remote to remote
				{"c2", nodes["a1"].mac, 0x0800}, // only h1 hears of it: h2 goes on as before
				{"c2", nodes["a1"].mac, 0x88b5},
				{"c1", nodes["b1"].mac, 0x86dd},
				{"a1", nodes["a2"].mac, 0x0800}, // nobody hears but h1
				{"a1", broadcast, 0x88b5},
			} {
				when := fmt.Sprintf("daemons %s, %s entry, m speaks at %s to %s (%04x)", daemons.name, entry, move.at, move.dst, move.proto)
				tw.strictly(when, func(l lab) []probe {
					return append([]probe{{"m's own", move.at, ether(move.dst, m, move.proto, 100)}}, toM(l)...)
				})
			}
			if daemons.end != 0 {
				signal(daemons.end)
			}
			for _, h := range []string{"h1", "h2", "h3"} {
				for _, lab := range []lab{tw.kernel, tw.vxbpf} {
					// Wherever it stands: one of these does it.
					for _, c := range []string{"dev v-mgmt-1 master", "dev v-mgmt-2 master", "dev encap-mgmt master", "dev encap-mgmt self"} {
						f := strings.Fields("bridge fdb del " + m.String() + " " + c)
						_ = lab.Host(h).NS.Command(lab.ctx, f[0], f[1:]...).Run()
					}
				}
			}
		}
	}
}
