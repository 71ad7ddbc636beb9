// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// VLAN tags, inside and outside of the overlay, on plain kernel VXLAN first and
// then with vxbpf. Some kernels have neither 802.1Q devices nor bridges that
// filter; `make test-kernels` runs these tests on those that do.

// commands runs each of them in a namespace, without a shell: busybox has an ip of its own.
func (w *world) commands(ns testenv.NS, format string, args ...any) {
	w.t.Helper()
	for line := range strings.SplitSeq(fmt.Sprintf(format, args...), ";") {
		f := strings.Fields(line)
		if out, err := ns.Command(w.ctx, f[0], f[1:]...).CombinedOutput(); err != nil {
			w.t.Fatalf("%s: %s: %v\n%s", ns.Name(), line, err, out)
		}
	}
}

// tagged puts a device over another that tags frames, once or twice, and returns its addresses.
func (w *world) tagged(ns testenv.NS, below string, tags, host int) (v4, v6 netip.Addr) {
	w.t.Helper()
	if tags == 2 {
		w.commands(ns, "ip link add link %s name outer0 type vlan proto 802.1ad id 7; ip link set outer0 up", below)
		below = "outer0"
	}
	v4, v6 = netip.AddrFrom4([4]byte{10, 5, 0, byte(host)}), netip.MustParseAddr(fmt.Sprintf("fd00:5::%d", host))
	w.commands(ns, "ip link add link %s name vlan0 type vlan id 5; ip addr add %s/24 dev vlan0; ip -6 addr add %s/64 dev vlan0 nodad; ip link set vlan0 up", below, v4, v6)
	return v4, v6
}

//	h1: mgmt-1 vlan0 (outer0) eth0 ══ v-mgmt-1 - br-mgmt - encap-mgmt - eth2 ══ eth2 - encap-mgmt - br-mgmt - v-mgmt-1 ══ eth0 (outer0) vlan0 mgmt-1 :h2
//	                                          vlan0 (outer0) on br-mgmt, too
//
// Tagged frames go the kernel's way and arrive; a network with vlan_tags has room
// for them, so that full ones make no fragments on the underlay. Frames without
// tags are as fast as ever.
func TestVLANTags(t *testing.T) {
	need.Kernel(t, need.VLAN)
	for _, c := range []struct{ tags, room int }{{1, 0}, {1, 1}, {2, 2}} {
		for kind, kernel := range kinds {
			if kind == "vxbpf and kernel" && c.room != 1 {
				continue // each takes its time on an emulated machine
			}
			t.Run(fmt.Sprintf("%d tags, room for %d, %s", c.tags, c.room, kind), func(t *testing.T) {
				spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
				mtu := 1450 - 4*c.room
				spec.Networks[0].MTU = mtu
				spec.Networks[0].Config = testenv.Keys(fmt.Sprintf("{mtu: auto, vlan_tags: %d}", c.room))
				w := pmtuLab(t, spec, kernel, testenv.KernelVXLANOptions{NoChecksum: true})
				a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
				h1 := w.Host("h1").NS
				for _, h := range w.Hosts {
					l, err := w.handle(h.NS).LinkByName("encap-mgmt")
					w.must(err)
					if l.Attrs().MTU != mtu {
						t.Errorf("encap-mgmt of %s has MTU %d, want %d", h.Name, l.Attrs().MTU, mtu)
					}
				}
				a4, a6 := w.tagged(a.NS, "eth0", c.tags, 1)
				b4, b6 := w.tagged(b.NS, "eth0", c.tags, 2)
				host4, host6 := w.tagged(h1, "br-mgmt", c.tags, 3)
				w.small(a, b)
				before := w.snmp(h1)["Ip:FragCreates"] + w.snmp(w.Host("h2").NS)["Ip:FragCreates"]
				for _, p := range []struct {
					from, to testenv.NS
					addrs    []netip.Addr
				}{
					{a.NS, b.NS, []netip.Addr{b4, b6}}, {b.NS, a.NS, []netip.Addr{a4, a6}},
					{h1, b.NS, []netip.Addr{b4, b6}}, {b.NS, h1, []netip.Addr{host4, host6}},
				} {
					for _, addr := range p.addrs {
						w.ping(p.from, addr)
						r, err := testenv.Transfer(w.ctx, p.from, p.to, addr, scale(2<<20), 3)
						if err != nil || !r.Match {
							t.Errorf("tcp from %s to %s: %+v, %v", p.from.Name(), addr, r, err)
						}
						if got := w.ask(p.from, addr, mtu); got != "answered" {
							t.Errorf("an echo of %d bytes from %s to %s: %s", mtu, p.from.Name(), addr, got)
						}
					}
				}
				cut := w.snmp(h1)["Ip:FragCreates"] + w.snmp(w.Host("h2").NS)["Ip:FragCreates"] - before
				if (cut > 0) != (c.room < c.tags) {
					t.Errorf("%d fragments on the underlay with room for %d of %d tags", cut, c.room, c.tags)
				}
				for i, h := range w.Hosts {
					if kernel[i] {
						continue
					}
					n := w.network(h.Name, "mgmt")
					if n.Reasons["encap"]["vlan_tag"].Packets == 0 || n.Reasons["decap"]["not_ip"].Packets+n.Reasons["deliver"]["vlan_tag"].Packets == 0 {
						t.Errorf("%s counts no tagged frames: %v", h.Name, n.Reasons)
					}
				}
				if kind == "vxbpf and vxbpf" {
					w.accelerated(a, b)
				}
			})
		}
	}
}

//	h1 (and h2): mgmt-1 ══ v-mgmt-1 (VLAN 10, untagged) ─┐
//	             mgmt-2 ══ v-mgmt-2 (VLAN 20, untagged) ─┼─ br-mgmt ── encap-mgmt (10 and 20, tagged)
//	             mgmt-3 ══ v-mgmt-3 (10 and 20, tagged) ─┘
//
// A bridge that filters is the kernel's: who reaches whom is as without vxbpf,
// also when it begins to filter, and ends, while vxbpf runs.
func TestVLANFiltering(t *testing.T) {
	need.Kernel(t, need.VLAN, need.VLANFiltering)
	for kind, kernel := range kinds {
		t.Run(kind, func(t *testing.T) {
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
			spec.Containers = 3
			w := pmtuLab(t, spec, kernel, testenv.KernelVXLANOptions{NoChecksum: true})
			containers := []*testenv.Container{}
			for _, h := range w.Hosts {
				containers = append(containers, h.Containers...)
			}
			var fast []string
			for i, h := range w.Hosts {
				if !kernel[i] {
					fast = append(fast, h.Name)
				}
			}
			// reach is who answers whom, on eth0 and, for mgmt-3, in both VLANs. Who must not, gets a short time only.
			reach := func() string {
				var s strings.Builder
				for _, from := range containers {
					for _, to := range containers {
						if from == to {
							continue
						}
						addrs := []netip.Addr{to.Addr.Addr()}
						for _, vlan := range []byte{10, 20} {
							addrs = append(addrs, inVLAN(vlan, to))
						}
						for _, addr := range addrs {
							r, err := testenv.Ping(w.ctx, from.NS, addr, testenv.PingOptions{Count: 2, Interval: time.Millisecond, Timeout: 150 * time.Millisecond})
							if err == nil && r.OK() {
								fmt.Fprintf(&s, "%s reaches %s\n", from.NS.Name()[len(w.Name):], addr)
							}
						}
					}
				}
				return s.String()
			}
			for _, c := range containers {
				switch c.Name {
				case "mgmt-1":
					w.commands(c.NS, "ip addr add %s/24 dev eth0", inVLAN(10, c))
				case "mgmt-2":
					w.commands(c.NS, "ip addr add %s/24 dev eth0", inVLAN(20, c))
				default:
					for _, vlan := range []byte{10, 20} {
						w.commands(c.NS, "ip link add link eth0 name vlan%d type vlan id %d; ip addr add %s/24 dev vlan%d; ip link set vlan%d up", vlan, vlan, inVLAN(vlan, c), vlan, vlan)
					}
				}
			}
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			w.small(a, b)
			for _, h := range fast {
				w.know(h, a.MAC, b.MAC)
			}

			for _, h := range w.Hosts {
				w.commands(h.NS, "ip link set br-mgmt type bridge vlan_filtering 1")
				for _, port := range []string{"v-mgmt-1", "v-mgmt-2", "v-mgmt-3", "encap-mgmt"} {
					w.commands(h.NS, "bridge vlan del dev %s vid 1", port)
				}
				w.commands(h.NS, "bridge vlan add dev v-mgmt-1 vid 10 pvid untagged; bridge vlan add dev v-mgmt-2 vid 20 pvid untagged")
				for _, port := range []string{"v-mgmt-3", "encap-mgmt"} {
					w.commands(h.NS, "bridge vlan add dev %s vid 10; bridge vlan add dev %s vid 20", port, port)
				}
			}
			for _, h := range fast {
				w.wait(h+" to say that the bridge filters", func() bool {
					s, code := w.status(h)
					return code == 3 && s.Degraded && s.Networks[0].Reason == "bridge br-mgmt filters VLANs"
				})
			}
			before := map[string]networkStatus{}
			for _, h := range fast {
				before[h] = w.network(h, "mgmt")
			}
			in := func(c *testenv.Container, vlan byte) bool {
				return c.Name == "mgmt-3" || c.Name == fmt.Sprintf("mgmt-%d", vlan/10)
			}
			var want strings.Builder
			for _, from := range containers {
				for _, to := range containers {
					if from == to {
						continue
					}
					if from.Name == to.Name && from.Name != "mgmt-3" {
						fmt.Fprintf(&want, "%s reaches %s\n", from.NS.Name()[len(w.Name):], to.Addr.Addr())
					}
					for _, vlan := range []byte{10, 20} {
						if in(from, vlan) && in(to, vlan) {
							fmt.Fprintf(&want, "%s reaches %s\n", from.NS.Name()[len(w.Name):], inVLAN(vlan, to))
						}
					}
				}
			}
			if got := reach(); got != want.String() {
				t.Errorf("with VLANs:\n%s\nwant:\n%s", got, want.String())
			}
			for _, h := range fast {
				after := w.network(h, "mgmt")
				if after.Sent.Fast != before[h].Sent.Fast || after.Received.Fast != before[h].Received.Fast {
					t.Errorf("%s: BPF carried packets of a bridge that filters: %v, before %v", h, after.Reasons, before[h].Reasons)
				}
			}

			for _, h := range w.Hosts {
				w.commands(h.NS, "ip link set br-mgmt type bridge vlan_filtering 0")
			}
			if kind == "vxbpf and vxbpf" {
				w.accelerated(a, b)
			} else {
				w.wait("the containers to reach each other again", func() bool { return w.reaches(a.NS, b.Addr.Addr()) })
			}
		})
	}
}

// inVLAN is a container's address in a VLAN.
func inVLAN(vlan byte, c *testenv.Container) netip.Addr {
	a := c.Addr.Addr().As4()
	return netip.AddrFrom4([4]byte{10, vlan, 0, a[3]})
}

func (w *world) reaches(from testenv.NS, to netip.Addr) bool {
	r, err := testenv.Ping(w.ctx, from, to, testenv.PingOptions{Count: 1, Timeout: 100 * time.Millisecond})
	return err == nil && r.OK()
}

//	h1: mgmt-1 ══ v-mgmt-1 ─ br-mgmt ─ encap-mgmt ─ eth2.100 ─ eth2 ══ eth2 ─ eth2.100 ─ encap-mgmt ─ br-mgmt ─ v-mgmt-1 ══ mgmt-1 :h2
//	    mgmt-2 eth0.30 ─ eth0 ══ trunk0 ─ trunk0.30 ─┘
//
// The underlay itself may be a VLAN, and so may a port of the bridge: a trunk
// port with more hosts behind it. Both are fast.
func TestVLANDevices(t *testing.T) {
	need.Kernel(t, need.VLAN)
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.Containers = 2
	w := newOverlay(t, spec, false)
	addr := map[string]string{"h1": "198.51.100.11", "h2": "198.51.100.12"}
	for _, h := range w.Hosts {
		w.commands(h.NS, "ip link add link eth2 name eth2.100 type vlan id 100; ip addr add %s/24 dev eth2.100; ip link set eth2.100 up", addr[h.Name])
	}
	for i, h := range w.Hosts {
		d, err := h.Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: fmt.Appendf(nil,
			"underlay: {device: eth2.100}\nnetworks: [{name: mgmt, vni: 236, bridge: br-mgmt, remotes: [%s]}]\n", addr[w.Hosts[1-i].Name])})
		w.must(err)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("log of %s:\n%s", h.Name, d.Log())
			}
		})
		w.must(w.AttachContainers(w.ctx, h.Name))
	}
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.accelerated(a, b)

	// mgmt-2 behind a trunk.
	c, h1 := w.Container("h1", "mgmt-2"), w.Host("h1").NS
	w.unlink(h1, c.HostEnd)
	w.commands(h1, "ip link add trunk0 mtu %d type veth peer name eth0 address %s mtu %d netns %s", c.MTU, c.MAC, c.MTU, c.NS.Name())
	w.commands(h1, "ip link set trunk0 up; ip link add link trunk0 name trunk0.30 type vlan id 30; ip link set trunk0.30 master br-mgmt; ip link set trunk0.30 up")
	w.commands(c.NS, "ip link set eth0 up; ip link add link eth0 name eth0.30 type vlan id 30; ip addr add %s dev eth0.30; ip link set eth0.30 up", c.Addr)
	w.wait("trunk0.30 to be a fast port", func() bool { fast, _, _ := w.port("h1", "trunk0.30"); return fast })
	w.ping(b.NS, c.Addr.Addr())
	w.know("h1", b.MAC)
	w.each([]string{"h1"}, "mgmt", func() {
		for _, p := range [][2]*testenv.Container{{b, c}, {c, b}} {
			r, err := testenv.Transfer(w.ctx, p[0].NS, p[1].NS, p[1].Addr.Addr(), scale(8<<20), 1)
			if err != nil || !r.Match {
				t.Errorf("%s to %s: %+v, %v", p[0].Name, p[1].Name, r, err)
			}
		}
	}, func(_ string, sent, received share) {
		if sent.ratio() < 0.5 || received.ratio() < 0.5 {
			t.Errorf("trunk: sent %+v, received %+v on the fast path", sent, received)
		}
	})
}
