// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
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

// A pair that talks is never forgotten, although the kernel sees hardly any of
// its packets; a pair that is silent is forgotten as ever.
func TestLearningAgeing(t *testing.T) {
	t.Parallel()
	const seconds = 2
	tw := newTwin(t, bridgeSpec())
	nodes := tw.vxbpf.nodes()
	busy := []fdb.MAC{nodes["a1"].mac, nodes["b1"].mac}
	idle := []fdb.MAC{nodes["a2"].mac, nodes["b2"].mac}
	labs := []lab{tw.kernel, tw.vxbpf}
	for _, l := range labs {
		l.stream("a1", "b1")
		l.stream("b1", "a1")
	}
	// sticky: it never moves, but without frames it ages.
	sticky := "bridge fdb replace " + nodes["a1"].mac.String() + " dev v-mgmt-1 master dynamic sticky"
	for _, round := range []struct{ name, h1 string }{{"learned entries", ""}, {"a sticky entry", sticky}} {
		tw.both("h1", lines(round.h1)...)
		tw.settle()
		tw.ageing(seconds)
		began := time.Now()
		before := tw.vxbpf.counts("h1", "mgmt")
		left := map[string]int{}
		// Three times as long as an entry lives, and until the idle ones are gone.
		tw.vxbpf.waitFor(60*time.Second, round.name+": the idle MACs to be forgotten in both labs", func() bool {
			for i, l := range labs {
				for _, host := range []string{"h1", "h2"} {
					have := l.entries(host, busy...)
					if len(have) < 3 { // both in the bridge, the other host's in the vxlan link too
						t.Fatalf("%s: lab %d forgot a MAC in use at %s: has %v after %s", round.name, i, host, have, time.Since(began))
					}
					left[fmt.Sprint(i, host)] = len(l.entries(host, idle...))
				}
			}
			for _, n := range left {
				if n > 0 {
					return false
				}
			}
			return time.Since(began) > 3*seconds*time.Second
		})
		for _, host := range []string{"h1", "h2"} {
			table := tw.vxbpf.table(host)
			for _, mac := range idle {
				if e, ok := table[mac]; ok {
					t.Errorf("%s: %s has forgotten %s, the map of the fast path has not: %+v", round.name, host, mac, e)
				}
			}
		}
		after := tw.vxbpf.counts("h1", "mgmt")
		for _, hook := range []string{"h1 encap ", "h1 decap "} {
			fast, all := after[hook+"fast"]-before[hook+"fast"], uint64(0)
			for k, v := range after {
				if strings.HasPrefix(k, hook) {
					all += v - before[k]
				}
			}
			if fast < 1000 || all-fast > all/20 {
				t.Errorf("%s: %s%d of %d packets", round.name, hook, fast, all)
			}
		}
		for _, host := range []string{"h1", "h2"} {
			if k, v := tw.kernel.fdb(host), tw.vxbpf.fdb(host); !slices.Equal(k, v) {
				t.Errorf("%s: entries of %s, kernel %q, vxbpf %q", round.name, host, k, v)
			}
		}
		tw.ageing(300)
	}
}

// The config says `learning: false`: the vxlan link learns nothing, and only what
// is static is known.
func TestLearningOff(t *testing.T) {
	t.Parallel()
	static := "    learning: false\n    fdb:\n      - {mac: 02:c0:00:02:01:01, remote: 192.0.2.12}\n"
	tw := newTwin(t, bridgeSpec(), "    bridge: br-mgmt\n", "    bridge: br-mgmt\n"+static)
	for _, h := range tw.kernel.Hosts {
		tw.kernel.sh(h.Name, "ip link set encap-mgmt type vxlan id 236 nolearning",
			"bridge fdb replace 02:c0:00:02:01:01 dev encap-mgmt dst 192.0.2.12 self static",
			"bridge fdb replace 02:c0:00:02:01:01 dev encap-mgmt master static")
	}
	_ = tw
}

var _ = net.IP{}
var _ = netip.Addr{}
var _ = unix.SIGKILL
