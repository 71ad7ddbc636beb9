// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/loader"
	vxmaps "github.com/vxbpf/vxbpf/maps"
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
	sent, _ = c.Sent()
	received, _ = c.Received()
	return sent, received
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
	for _, modes := range [][2]string{{"tcx", "tcx"}, {"clsact", "clsact"}, {"tcx", "clsact"}} {
		t.Run(modes[0]+" and "+modes[1], func(t *testing.T) {
			t.Parallel()
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
				l.ping(from.NS, to.Addr.Addr())
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
				cmd := h.NS.Command(l.ctx, "timeout", "1", "tc", "monitor")
				out, _ := cmd.CombinedOutput()
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
