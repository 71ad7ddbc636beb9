// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	bits "encoding/binary"
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
// roamer, called m below, is a MAC address that speaks now here, now there.
var roamer = fdb.MAC{0x02, 0xc0, 0, 0, 0xee, 0x0a}

func threeHosts() testenv.Spec {
	s := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}, testenv.HostSpec{Name: "h3"}, testenv.HostSpec{Name: "h4", Stranger: true})
	s.Containers = 2
	return s
}

// toM are frames from everybody to m, and one to everybody from a1.
func toM(l lab) (out []probe) {
	nodes := l.nodes()
	for _, from := range slices.Sorted(maps.Keys(nodes)) {
		out = append(out, probe{name: from + " to m", from: from, frame: ether(roamer, nodes[from].mac, 0x0800, 100)})
	}
	return out
}

// speak has m say something at a node: a frame to dst.
func (tw *twin) speak(at string, dst fdb.MAC, proto uint16) {
	tw.t.Helper()
	number := <-numbers
	for _, l := range []lab{tw.kernel, tw.vxbpf} {
		l.send(at, ether(dst, roamer, proto, 100), number)
	}
}

// follows waits until frames from a node to m take a path.
func (tw *twin) follows(when, from, want string) {
	tw.t.Helper()
	var got string
	tw.vxbpf.settle(func() bool {
		got = tw.vxbpf.pathOf(from, ether(roamer, tw.vxbpf.nodes()[from].mac, 0x0800, 100))
		return got == want
	})
	if got != want {
		tw.t.Errorf("%s: frames from %s to m take %q, want %q", when, from, got, want)
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
	static := map[string][2]string{"h1": {"02:c0:00:02:01:01", "192.0.2.12"}, "h2": {"02:c0:00:01:01:01", "192.0.2.11"}}
	tw := buildTwin(t, bridgeSpec(), func(_ lab, h *testenv.Host) []byte {
		return fmt.Appendf(nil, `
underlay: {device: eth2, ttl: 5}
networks:
  - {name: mgmt, vni: 236, bridge: br-mgmt, learning: false, remotes: [%[2]s], fdb: [{mac: %[1]s, remote: %[2]s}], mtu: 1450}
`, static[h.Name][0], static[h.Name][1])
	})
	for host, s := range static {
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

// everywhere reports whether the entry for m is so in the maps of all hosts.
func (l lab) everywhere(so func(e fdb.Entry, ok bool) bool) bool {
	l.t.Helper()
	for _, h := range l.Hosts {
		if h.Stranger {
			continue
		}
		if e, ok := l.table(h.Name)[roamer]; !so(e, ok) {
			return false
		}
	}
	return true
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
				tw.both("h1", "bridge fdb replace "+roamer.String()+" dev v-mgmt-1 master "+kind)
				for _, h := range []string{"h2", "h3"} {
					tw.both(h, "bridge fdb replace "+roamer.String()+" dev encap-mgmt dst 192.0.2.11 self "+kind,
						"bridge fdb replace "+roamer.String()+" dev encap-mgmt master "+kind)
				}
			}
			if daemons.name != "dead" {
				// All of it, and confirmed: nothing is left to do for a daemon that goes to sleep.
				l.wait("m in all maps as the kernel has it", func() bool {
					return l.everywhere(func(e fdb.Entry, ok bool) bool {
						return ok && !e.Pending && e.Static == (entry != "learned") && e.Sticky == (entry == "sticky")
					})
				})
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
					return append([]probe{{name: "m's own", from: move.at, frame: ether(move.dst, roamer, move.proto, 100)}}, toM(l)...)
				})
			}
			if daemons.end != 0 {
				signal(daemons.end)
			}
			if daemons.name == "awake" {
				tw.follows(daemons.name+", "+entry+" entry, all moves done", "b1", "h1 decap port_kind, h1 deliver fast, h2 encap fast")
			}
			for _, h := range []string{"h1", "h2", "h3"} {
				for _, lab := range []lab{tw.kernel, tw.vxbpf} {
					// Wherever it stands: one of these does it.
					for _, c := range []string{"dev v-mgmt-1 master", "dev v-mgmt-2 master", "dev encap-mgmt master", "dev encap-mgmt self"} {
						f := strings.Fields("bridge fdb del " + roamer.String() + " " + c)
						_ = lab.Host(h).NS.Command(lab.ctx, f[0], f[1:]...).Run()
					}
				}
			}
			if daemons.name != "dead" {
				l.wait("m to be forgotten", func() bool { return l.everywhere(func(_ fdb.Entry, ok bool) bool { return !ok }) })
			}
		}
	}
}

// outer wraps a frame up in VXLAN over IPv4, as a host could that is no VTEP.
func outer(from, to *testenv.Host, port uint16, vni fdb.VNI, inner []byte) []byte {
	udp := make([]byte, 16)
	bits.BigEndian.PutUint16(udp, 40000)
	bits.BigEndian.PutUint16(udp[2:], port)
	bits.BigEndian.PutUint16(udp[4:], uint16(16+len(inner)))
	udp[8] = 8
	bits.BigEndian.PutUint32(udp[12:], uint32(vni)<<8)
	ip := slices.Concat([]byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}, from.Address.AsSlice(), to.Address.AsSlice())
	bits.BigEndian.PutUint16(ip[2:], uint16(36+len(inner)))
	bits.BigEndian.PutUint16(ip[10:], ^uint16(onesSum(ip)))
	return slices.Concat(to.MAC[:], from.MAC[:], []byte{8, 0}, ip, udp, inner)
}

// Frames that claim somebody else's MAC address: from another VTEP, and from a
// host that is none.
func TestLearningHijack(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, threeHosts())
	nodes := tw.vxbpf.nodes()
	everybody := func(p ...probe) func(lab) []probe {
		return func(l lab) []probe {
			for i := range p {
				if p[i].from == "wire h4" {
					p[i].skip = 50
				}
			}
			return slices.Concat(p, toM(l), l.probes())
		}
	}
	claim := func(mac, dst fdb.MAC) []byte { return ether(dst, mac, 0x0800, 100) }
	forged := func(mac, dst fdb.MAC) []byte {
		return outer(tw.vxbpf.Host("h4"), tw.vxbpf.Host("h1"), 4789, 236, claim(mac, dst))
	}

	// m is b2's, and static at h1.
	tw.both("h1", "bridge fdb replace "+roamer.String()+" dev encap-mgmt dst 192.0.2.12 self static",
		"bridge fdb replace "+roamer.String()+" dev encap-mgmt master static")
	tw.speak("b2", broadcast, 0x88b5)
	tw.follows("m at b2, static", "a1", "h1 encap fast, h2 decap port_kind, h2 deliver fast")
	for _, at := range []struct {
		name, from, path string
		frame            []byte
	}{
		{"b2, where it is", "b2", "h1 decap fast, h2 encap fast", claim(roamer, nodes["a1"].mac)},
		{"another VTEP", "c2", "h1 decap src_static, h3 encap fast", claim(roamer, nodes["a1"].mac)},
		{"a host that is no VTEP", "wire h4", "h1 decap src_static", forged(roamer, nodes["a1"].mac)},
	} {
		tw.strictly("a static MAC claimed by "+at.name, everybody(probe{name: "m at " + at.name, from: at.from, frame: at.frame}))
		var got string
		tw.vxbpf.settle(func() bool { got = tw.vxbpf.pathOf(at.from, at.frame); return got == at.path })
		if got != at.path {
			t.Errorf("a static MAC claimed by %s: takes %q, want %q", at.name, got, at.path)
		}
	}

	// What is learned, the kernel believes anybody.
	for _, c := range []struct {
		name string
		mac  fdb.MAC
	}{
		{"another host's container", nodes["b1"].mac}, {"a local container", nodes["a1"].mac}, {"the host itself", nodes["A"].mac}, {"nobody", nobody},
	} {
		tw.strictly(c.name+"'s MAC claimed by a host that is no VTEP",
			everybody(probe{name: "claimed " + c.name, from: "wire h4", frame: forged(c.mac, nodes["a2"].mac)}))
		tw.settle()
		tw.paths("after "+c.name+"'s MAC was claimed", nil)
	}
	if n := tw.vxbpf.counts("h1", "mgmt"); n["h1 decap src_moved"] == 0 || n["h1 decap src_static"] == 0 {
		t.Errorf("counted %v", n)
	}
}

// Where frames to m go, as `bridge fdb` and `ip nexthop` can say it: to one
// VTEP, to several, by another port or VNI, to nowhere.
func TestLearningDestinations(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, threeHosts())
	for _, h := range []string{"h2", "h3"} {
		tw.both(h, "bridge fdb replace "+roamer.String()+" dev v-mgmt-2 master static")
	}
	tw.both("h1", "bridge fdb replace "+roamer.String()+" dev encap-mgmt master static",
		"ip nexthop add id 1 via 192.0.2.12 fdb", "ip nexthop add id 2 via 192.0.2.13 fdb",
		"ip nexthop add id 10 group 1 fdb", "ip nexthop add id 20 group 1/2 fdb")
	// Many flows: a next hop group divides them.
	flows := func(l lab) (out []probe) {
		for i := range byte(16) {
			f := ether(roamer, l.nodes()["a1"].mac, 0x0800, 100)
			f[14+20] ^= i
			out = append(out, probe{name: fmt.Sprintf("flow %d", i), from: "a1", frame: f})
		}
		return append(out, l.probes()...)
	}
	entry := "bridge fdb replace " + roamer.String() + " dev encap-mgmt self static "
	for _, c := range []struct{ name, h1, path string }{
		{"one VTEP", entry + "dst 192.0.2.12", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
		{"two VTEPs, of which the kernel takes the first", "bridge fdb append " + roamer.String() + " dev encap-mgmt self static dst 192.0.2.13", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
		{"the other VTEP", entry + "dst 192.0.2.13", "h1 encap fast, h3 decap port_kind, h3 deliver fast"},
		{"another UDP port", entry + "dst 192.0.2.12 port 4790", "h1 encap dst_unknown"},
		{"another VNI", entry + "dst 192.0.2.12 vni 237", "h1 encap dst_unknown"},
		{"a device", entry + "dst 192.0.2.12 via eth2", "h1 encap dst_unknown, h2 decap port_kind, h2 deliver fast"},
		{"a host that does not answer ARP", entry + "dst 192.0.2.99", "h1 encap fast"},
		{"a host without a route: on the link, since there is a device", entry + "dst 203.0.113.9", "h1 encap fast"},
		{"from a control plane", "bridge fdb del " + roamer.String() + " dev encap-mgmt self\n" +
			"bridge fdb replace " + roamer.String() + " dev encap-mgmt self extern_learn dst 192.0.2.12", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
		{
			"a next hop group of one, learning: the kernel drops what comes from there",
			"bridge fdb del " + roamer.String() + " dev encap-mgmt self\n" + entry + "nhid 10", "h1 encap dst_unknown, h2 decap port_kind, h2 deliver fast",
		},
		{"a next hop group of one, no learning", "ip link set encap-mgmt type vxlan id 236 nolearning", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
		{"the group has another member", "ip nexthop replace id 10 group 2 fdb", "h1 encap fast, h3 decap port_kind, h3 deliver fast"},
		{"the member has another address", "ip nexthop replace id 2 via 192.0.2.12 fdb", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
		{"and its own again", "ip nexthop replace id 2 via 192.0.2.13 fdb", "h1 encap fast, h3 decap port_kind, h3 deliver fast"},
		{"the group grows", "ip nexthop replace id 10 group 1/2 fdb", ""},
		{"the group shrinks", "ip nexthop replace id 10 group 1 fdb", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
		{"a group of two", entry + "nhid 20", ""},
		{"the first of two is gone", "ip nexthop del id 1", "h1 encap fast, h3 decap port_kind, h3 deliver fast"},
		{"the group is gone", "ip nexthop del id 20", "h1 encap dst_unknown, h2 decap port_kind, h2 deliver fast, h3 decap port_kind, h3 deliver fast"},
		{"everybody, once more than there are", entry + "dst 192.0.2.12\nbridge fdb append 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.99\n" +
			"bridge fdb append 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.13 vni 237", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
		{"nobody but one", "bridge fdb del 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.12\n" +
			"bridge fdb del 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.13 vni 237", "h1 encap fast, h2 decap port_kind, h2 deliver fast"},
	} {
		tw.both("h1", lines(c.h1)...)
		if c.path != "" {
			tw.follows(c.name, "a1", c.path)
		}
		tw.sameProbes(c.name, flows, 3)
		if c.path == "" {
			before := tw.vxbpf.counts("h1", "mgmt")
			to := map[string]bool{}
			for name, places := range tw.vxbpf.seen(flows(tw.vxbpf)) {
				if strings.HasPrefix(name, "flow") {
					to[places] = true
				}
			}
			if after := tw.vxbpf.counts("h1", "mgmt"); len(to) != 2 || after["h1 encap dst_unknown"] < before["h1 encap dst_unknown"]+16 {
				t.Errorf("%s: flows go %v, counted %v, before %v", c.name, slices.Collect(maps.Keys(to)), after, before)
			}
		}
	}
}
