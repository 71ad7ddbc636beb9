// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// vxbpf beside others on the same host: beside itself, with several underlay
// devices and addresses, and beside VXLAN links that are none of its business.

// instance is one vxbpf of several on a host.
type instance struct {
	l       lab
	host    string
	name    string // of the network, its only one
	id      string
	mode    string // of attaching
	config  []byte
	running *testenv.Daemon
}

func (i *instance) load() {
	i.l.t.Helper()
	d, err := i.l.Host(i.host).Start(i.l.ctx, testenv.StartOptions{
		Binary: i.l.bin, Config: i.config, Args: []string{"--instance", i.id, "--attach", i.mode}, UnloadArgs: []string{"--instance", i.id},
	})
	i.l.must(err)
	i.running = d
	c := i.l.Container(i.host, i.name+"-1")
	i.l.sh(i.host, "ip link set "+c.HostEnd+" master br-"+i.name)
	i.l.wait("the bridge of "+i.id+" to be up", func() bool {
		out, err := i.l.Host(i.host).NS.Command(i.l.ctx, "ip", "link", "show", "br-"+i.name).CombinedOutput()
		return err == nil && strings.Contains(string(out), "state UP")
	})
}

func (i *instance) kill() {
	i.l.t.Helper()
	i.l.must(i.running.Kill())
}

func (i *instance) unload() {
	i.l.t.Helper()
	if out, errOut, code := i.l.vxbpf(i.host, "--instance", i.id, "unload"); code != 0 {
		i.l.t.Fatalf("unload of %s: exit %d\n%s%s", i.id, code, out, errOut)
	}
}

// fast is how many packets its fast path has sent and received.
func (i *instance) fast() (sent, received uint64) {
	i.l.t.Helper()
	st, err := loader.ReadState(filepath.Join(loader.DefaultRunDir, i.id))
	i.l.must(err)
	set, done, err := vxmaps.OpenPinned(st.Pins)
	i.l.must(err)
	defer func() { i.l.must(done()) }()
	c, err := set.Counters.Read(st.Networks[0].ID)
	i.l.must(err)
	out, _ := c.Sent()
	in, _ := c.Received()
	return out.Packets, in.Packets
}

// flowing waits until the fast path of a network has carried 200 packets more on both hosts, out and in.
func flowing(when string, both [2]*instance) {
	both[0].l.t.Helper()
	for k, i := range both {
		sent, received := i.fast()
		i.l.wait(fmt.Sprintf("the fast path of %s to carry packets %s", i.id, when), func() bool {
			s, r := i.fast()
			return k == 0 && s > sent+200 || k == 1 && r > received+200
		})
	}
}

func (l lab) drops() (n uint64) {
	for _, h := range l.Hosts {
		n += l.qdiscDrops(h.Name)
	}
	return n
}

//	h1: mgmt-1    -- br-mgmt    -- encap-mgmt    ┐                 h2: the same
//	    storage-1 -- br-storage -- encap-storage ┴ eth2 ==== eth2
//
// Two instances share the underlay device and the UDP port. What one of them does
// is nothing to the other's traffic.
func TestCoexistInstances(t *testing.T) {
	modes := [][2]string{{"tcx", "tcx"}, {"clsact", "clsact"}}
	if full() {
		modes = append(modes, [2]string{"tcx", "clsact"})
	}
	for _, modes := range modes {
		t.Run(modes[0]+" and "+modes[1], func(t *testing.T) {
			t.Parallel()
			needMode(t, modes[:]...)
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
			spec.Networks = append(spec.Networks, testenv.Network{Name: "storage", VNI: 244, Subnet: netip.MustParsePrefix("172.29.244.0/24")})
			l := lab{newOverlay(t, spec, false), map[string]*eye{}, nil}
			before := map[string]hostState{}
			var all [2][2]*instance // by instance and host
			for _, h := range l.Hosts {
				before[h.Name] = l.steady(h.Name)
			}
			for i, name := range []string{"mgmt", "storage"} {
				for j, h := range l.Hosts {
					alone := l.Spec
					alone.Networks = l.Spec.Networks[i : i+1]
					in := &instance{l: l, host: h.Name, name: name, id: fmt.Sprintf("%s-%c", h.Instance(), 'a'+i), mode: modes[i], config: h.Config(alone)}
					all[i][j] = in
					t.Cleanup(func() { // the lab unloads one instance of each host
						if _, err := os.Stat(filepath.Join(loader.DefaultPinRoot, in.id)); err == nil {
							_ = l.Host(in.host).NS.Command(context.Background(), l.bin, "--instance", in.id, "unload").Run()
						}
					})
				}
			}
			a, b := all[0], all[1]
			both := func(which [2]*instance, fn func(*instance)) {
				fn(which[0])
				fn(which[1])
			}
			stream := func(i [2]*instance) *testenv.Stream {
				from, to := l.Container("h1", i[0].name+"-1"), l.Container("h2", i[0].name+"-1")
				// A clsact qdisc that comes or goes costs packets on its device, this one included.
				l.wait(i[0].name+" to answer", func() bool {
					r, err := testenv.Ping(l.ctx, from.NS, to.Addr.Addr(), testenv.PingOptions{Count: 3, Interval: 5 * time.Millisecond, Timeout: time.Second})
					l.must(err)
					return r.OK()
				})
				s, err := testenv.StartStream(l.ctx, from.NS, to.NS, to.Addr.Addr(), testenv.StreamOptions{Rate: 2000})
				l.must(err)
				t.Cleanup(func() { s.Stop() })
				l.wait("the stream of "+i[0].name+" to flow", func() bool { return s.Received() > 200 })
				return s
			}
			both(a, (*instance).load)
			for _, turn := range []struct {
				still, busy [2]*instance
				loaded      bool
			}{{a, b, false}, {b, a, true}} {
				s := stream(turn.still)
				dropped := l.drops()
				steps := []struct {
					name string
					fn   func(*instance)
					flow bool // of the busy one, afterwards
				}{
					{"load", (*instance).load, true}, {"kill", (*instance).kill, true}, {"load after kill", (*instance).load, true},
					{"unload", (*instance).unload, false}, {"load again", (*instance).load, true},
				}
				if turn.loaded {
					steps = append(steps[1:2], steps[3:]...)
				}
				for _, step := range steps {
					both(turn.busy, step.fn)
					what := fmt.Sprintf("after %s of %s", step.name, turn.busy[0].name)
					if step.flow {
						other := stream(turn.busy)
						flowing(what, turn.busy)
						other.Stop()
					}
					flowing(what, turn.still)
				}
				got := s.Received()
				l.wait("the stream to go on", func() bool { return s.Received() > got+200 })
				r := s.Stop()
				dropped = l.drops() - dropped
				t.Logf("%s, meanwhile: %s, %d by the kernel's change of qdiscs", turn.still[0].name, r, dropped)
				if r.Lost > r.ReceiverDrops+dropped || r.Duplicates > 0 {
					t.Errorf("%s, while the other instance came and went: %s, only %d of them by the kernel's change of qdiscs", turn.still[0].name, r, dropped)
				}
			}
			// They leave each other's programs alone.
			for _, h := range l.Hosts {
				out, _ := h.NS.Command(l.ctx, "timeout", "0.5", "tc", "monitor").CombinedOutput() // it does not end by itself
				if strings.Contains(string(out), "filter") {
					t.Errorf("%s: filters change although nobody does anything:\n%s", h.Name, out)
				}
				for _, i := range []*instance{a[0], b[0], a[1], b[1]} {
					out, _, code := l.vxbpf(i.host, "--instance", i.id, "status")
					if code != 0 || strings.Contains(out, "carries another") {
						t.Errorf("status of %s: exit %d\n%s", i.id, code, out)
					}
				}
			}
			// Made by the first, used by the second: gone with the last.
			both(a, (*instance).unload)
			both(b, (*instance).unload)
			for _, h := range l.Hosts {
				l.same(h.Name, "unload of both instances", before[h.Name])
			}
		})
	}
}

// remake is a vxlan link made by hand, in place of the one that is there.
func remake(network string, vni int, dev, local, remote string, port int) []string {
	return []string{
		"ip link del encap-" + network,
		fmt.Sprintf("ip link add encap-%s mtu 1450 type vxlan id %d dev %s local %s dstport %d ttl 5 noudpcsum", network, vni, dev, local, port),
		fmt.Sprintf("bridge fdb append 00:00:00:00:00:00 dev encap-%s dst %s", network, remote),
		fmt.Sprintf("ip link set encap-%s master br-%s up", network, network),
	}
}

//	h1: a1 = mgmt-1    -- br-mgmt    -- encap-mgmt    (192.0.2.11) ┬ eth2 ==== eth2   h2: the same
//	    a2 = repl-1    -- br-repl    -- encap-repl    (192.0.2.21) ┘
//	    a3 = storage-1 -- br-storage -- encap-storage (198.51.100.11) - eth3 ==== eth3
//
// Several underlay devices on a host, and several addresses on one of them.
func TestCoexistUnderlays(t *testing.T) {
	t.Parallel()
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	for i, n := range []string{"repl", "storage"} {
		spec.Networks = append(spec.Networks, testenv.Network{Name: n, VNI: fdb.VNI(248 - 4*i), Subnet: netip.MustParsePrefix(fmt.Sprintf("172.29.%d.0/24", 248-4*i))})
	}
	tw := buildTwin(t, spec, func(l lab, h *testenv.Host) []byte {
		if h.Name == "h1" {
			l.sh("h1", "ip link add eth3 type veth peer name eth3 netns "+l.Host("h2").NS.Name())
			for i, host := range []string{"h1", "h2"} {
				l.sh(host, fmt.Sprintf("ip addr add 198.51.100.1%d/24 dev eth3", i+1), "ip link set eth3 up", fmt.Sprintf("ip addr add 192.0.2.2%d/24 dev eth2", i+1))
			}
		}
		own, other := h.Name[1:], string(rune('3'-h.Name[1]+'0'))
		if h.KernelVXLAN {
			l.sh(h.Name, remake("repl", 248, "eth2", "192.0.2.2"+own, "192.0.2.2"+other, 4789)...)
			l.sh(h.Name, remake("storage", 244, "eth3", "198.51.100.1"+own, "198.51.100.1"+other, 4789)...)
		}
		return fmt.Appendf(nil, `
underlay: {device: eth2, ttl: 5, allowed_sources: any} # the kernel believes strangers too
networks:
  - {name: mgmt, vni: 236, bridge: br-mgmt, remotes: [192.0.2.1%[2]s], mtu: 1450}
  - {name: repl, vni: 248, bridge: br-repl, local: 192.0.2.2%[1]s, remotes: [192.0.2.2%[2]s], mtu: 1450}
  - {name: storage, vni: 244, bridge: br-storage, device: eth3, remotes: [198.51.100.1%[2]s], mtu: 1450}
`, own, other)
	})
	fast := map[string]string{}
	for _, n := range "123" {
		fast[fmt.Sprintf("a%c>b%c", n, n)] = "h1 encap fast, h2 decap fast"
		fast[fmt.Sprintf("b%c>a%c", n, n)] = "h1 decap fast, h2 encap fast"
	}
	tw.announce()
	tw.same("three networks")
	tw.pathsOnly("three networks", fast)

	// To the address of one network, by the device of another, or for another.
	odd := func(l lab) (out []probe) {
		h1, h2 := *l.Host("h1"), *l.Host("h2")
		for i, vni := range []fdb.VNI{236, 248, 244} {
			dst, src := l.nodes()[fmt.Sprintf("a%d", i+1)].mac, l.nodes()[fmt.Sprintf("b%d", i+1)].mac
			for _, a := range [][2]string{{"192.0.2.12", "192.0.2.11"}, {"192.0.2.22", "192.0.2.21"}, {"198.51.100.12", "198.51.100.11"}} {
				h1.Address, h2.Address = netip.MustParseAddr(a[1]), netip.MustParseAddr(a[0])
				out = append(out, probe{name: fmt.Sprintf("VNI %d to %s", vni, a[1]), from: "wire h2",
					frame: outer(&h2, &h1, 4789, vni, ether(dst, src, 0x0800, 100)), skip: 50})
			}
		}
		return out
	}
	tw.sameProbes("to another network's address", odd, 3)
	tw.announce()
	tw.pathsOnly("after frames to another network's address", fast)

	// The device or the address of one goes: the others do not notice.
	for _, c := range []struct{ name, away, back, lost string }{
		{"a device down", "ip link set eth3 down", "ip link set eth3 up", "3"},
		{"an address gone", "ip addr del 192.0.2.21/24 dev eth2", "ip addr add 192.0.2.21/24 dev eth2", "2"},
	} {
		tw.both("h1", c.away)
		rest := maps.Clone(fast)
		delete(rest, "a"+c.lost+">b"+c.lost)
		delete(rest, "b"+c.lost+">a"+c.lost)
		tw.pathsOnly(c.name, rest)
		tw.same(c.name)
		tw.both("h1", c.back)
		tw.announce()
		tw.pathsOnly("after "+c.name, fast)
		tw.same("after " + c.name)
	}
}

// stats are the packet and byte counters of a link: received, then sent.
func (l lab) stats(host, dev string) (out [2][2]uint64) {
	l.t.Helper()
	ln, err := l.handle(l.Host(host).NS).LinkByName(dev)
	l.must(err)
	s := ln.Attrs().Statistics
	return [2][2]uint64{{s.RxPackets, s.RxBytes}, {s.TxPackets, s.TxBytes}}
}

//	h1: a1 = mgmt-1  -- br-mgmt  -- encap-mgmt  ┬ eth2 ==== eth2   h2: the same
//	    a2 = other-1 -- br-other -- encap-other ┘
//
// encap-other and br-other are somebody else's, on the same UDP port, or with the
// same VNI on another.
func TestCoexistForeign(t *testing.T) {
	t.Parallel()
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.Networks = append(spec.Networks, testenv.Network{Name: "other", VNI: 999, Subnet: netip.MustParsePrefix("172.29.99.0/24")})
	tw := buildTwin(t, spec, func(l lab, h *testenv.Host) []byte {
		ours := l.Spec
		ours.Networks = ours.Networks[:1]
		if !h.KernelVXLAN {
			_, err := l.KernelVXLAN(l.ctx, h.Name, "other", testenv.KernelVXLANOptions{NoChecksum: true})
			l.must(err)
		}
		return h.Config(ours)
	})
	l := tw.vxbpf
	own := map[string]string{"a1>b1": usual["a1>b1"], "b1>a1": usual["b1>a1"], "a2>b2": "", "b2>a2": ""}
	theirs := []string{"encap-other", "br-other", "v-other-1"}
	for _, other := range []struct {
		name      string
		vni, port int
	}{{"another VNI on our port", 999, 4789}, {"our VNI on another port", 236, 8472}} {
		tw.both("h1", remake("other", other.vni, "eth2", "192.0.2.11", "192.0.2.12", other.port)...)
		tw.both("h2", remake("other", other.vni, "eth2", "192.0.2.12", "192.0.2.11", other.port)...)
		tw.announce()
		tw.pathsOnly(other.name, own)
		tw.same(other.name)

		// Their counters, down to the byte.
		pair := func(l lab) (out []probe) {
			for _, p := range l.probes() {
				if p.from == "a2" || p.from == "b2" {
					out = append(out, p)
				}
			}
			return out
		}
		for try := 0; ; try++ {
			var gained [2]map[string][2][2]uint64
			for i, l := range []lab{tw.kernel, tw.vxbpf} {
				before := map[string][2][2]uint64{}
				gained[i] = map[string][2][2]uint64{}
				for _, h := range []string{"h1", "h2"} {
					for _, dev := range theirs {
						before[h+" "+dev] = l.stats(h, dev)
					}
				}
				l.seen(pair(l))
				for k, b := range before {
					h, dev, _ := strings.Cut(k, " ")
					n := l.stats(h, dev)
					for x := range n {
						for y := range n[x] {
							n[x][y] -= b[x][y]
						}
					}
					gained[i][k] = n
				}
			}
			if maps.Equal(gained[0], gained[1]) {
				break
			}
			if try == 2 { // IGMP comes when it likes
				t.Errorf("%s: counters of the other links gained\nkernel %v\nvxbpf  %v", other.name, gained[0], gained[1])
				break
			}
		}
	}

	// Nobody has this VNI: nothing happens, and nothing is counted.
	nobodys := func(l lab) (out []probe) {
		for i, vni := range []fdb.VNI{0, 4711, fdb.MaxVNI} {
			for _, dst := range []fdb.MAC{l.nodes()["a1"].mac, l.nodes()["a2"].mac, broadcast} {
				out = append(out, probe{name: fmt.Sprint(vni, dst), from: "wire h2", skip: 50,
					frame: outer(l.Host("h2"), l.Host("h1"), 4789, vni, ether(dst, l.nodes()["b1"].mac, 0x0800, 100+i))})
			}
		}
		return out
	}
	tw.sameProbes("a VNI that nobody has", func(l lab) []probe { return append(nobodys(l), l.probes()...) }, 3)
	var before, after map[string]uint64
	for range 3 { // IGMP comes when it likes
		before = l.counts("h1", "")
		l.seen(nobodys(l))
		if after = l.counts("h1", ""); maps.Equal(before, after) {
			break
		}
	}
	if !maps.Equal(before, after) {
		t.Errorf("a VNI that nobody has is counted: before %v, after %v", before, after)
	}

	// vxbpf comes and goes; theirs stays as it is, and so does its traffic.
	names := func(h string) (out []string) {
		for _, line := range l.steady(h) {
			for _, dev := range theirs {
				if strings.Contains(line, " "+dev+" ") {
					out = append(out, line)
				}
			}
		}
		return out
	}
	state := names("h1")
	s := l.stream("a2", "b2")
	for _, step := range []string{"unload", "load", "kill", "load"} {
		switch step {
		case "unload":
			if out, errOut, code := l.vxbpf("h1", "unload"); code != 0 {
				t.Fatalf("unload: exit %d\n%s%s", code, out, errOut)
			}
		case "kill":
			l.must(tw.daemons["h1"].Kill())
		case "load":
			ours := l.Spec
			ours.Networks = ours.Networks[:1]
			d, err := l.Host("h1").Start(l.ctx, testenv.StartOptions{Binary: l.bin, Config: l.Host("h1").Config(ours)})
			l.must(err)
			tw.daemons["h1"] = d
		}
		if diff := hostState(state).changes(names("h1")); diff != "" {
			t.Errorf("%s changes somebody else's links:\n%s", step, diff)
		}
	}
	l.whole(s, "vxbpf comes and goes, somebody else's traffic")
}

// The smallest and the largest VNI, and an MTU that is not the underlay's.
func TestCoexistVNI(t *testing.T) {
	t.Parallel()
	for _, vni := range []fdb.VNI{0, fdb.MaxVNI} {
		spec := bridgeSpec()
		spec.Networks[0].MTU, spec.ContainerMTU = 1400, 1450
		tw := newTwin(t, spec, "vni: 236", fmt.Sprintf("vni: %d", vni))
		for i, host := range []string{"h1", "h2"} {
			tw.kernel.sh(host, remake("mgmt", int(vni), "eth2", fmt.Sprintf("192.0.2.1%d", i+1), fmt.Sprintf("192.0.2.1%d", 2-i), 4789)...)
			tw.kernel.sh(host, "ip link set encap-mgmt mtu 1400")
		}
		tw.settle()
		when := fmt.Sprintf("VNI %d", vni)
		tw.paths(when, nil)
		tw.same(when)
		big := tw.vxbpf.nodes()
		for size, want := range map[int]string{1372: "h1 encap fast, h2 decap fast", 1373: "h1 encap mtu"} {
			got := tw.vxbpf.pathOf("a1", ether(big["b1"].mac, big["a1"].mac, 0x0800, size))
			if !strings.HasPrefix(got, want) {
				t.Errorf("%s: %d bytes take %q, want %q", when, size+28, got, want)
			}
		}
	}
}
