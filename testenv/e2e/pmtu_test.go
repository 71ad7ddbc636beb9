// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// Packets that are too big, seen from the containers, on plain kernel VXLAN
// first and then with vxbpf: the same sequence gives the same answers.
//
//	TestOversize: bridge, vxlan link and containers believe in 1500 bytes, the underlay has no more itself
//
//	h1  mgmt-1 --1500-- br-mgmt - encap-mgmt - eth2 ==1500== eth2 - encap-mgmt - br-mgmt --1500-- mgmt-1  h2
//
//	TestPathMTU: the overlay fits the underlay's links, but not a hop on the way
//
//	h1  mgmt-1 --1450-- br-mgmt - encap-mgmt - eth2 --1500-- router --1400-- eth2 - encap-mgmt - br-mgmt --1450-- mgmt-1  h2

// kinds of the two hosts: the oracle, and what is compared with it.
var kinds = map[string][2]bool{"kernel and kernel": {true, true}, "vxbpf and vxbpf": {}, "vxbpf and kernel": {false, true}}

// pmtuLab makes the lab with a kind of host on each side.
func pmtuLab(t *testing.T, spec testenv.Spec, kernel [2]bool, o testenv.KernelVXLANOptions) overlay {
	t.Helper()
	spec.Hosts = slices.Clone(spec.Hosts)
	for i := range spec.Hosts {
		if kernel[i] {
			spec.Hosts[i].Datapath = testenv.None
		}
	}
	w := newOverlay(t, spec, true)
	for i, h := range w.Hosts {
		if kernel[i] {
			_, err := w.KernelVXLAN(w.ctx, h.Name, "mgmt", o)
			w.must(err)
		}
	}
	return w
}

// shrink gives the hop behind the router another size.
func (w overlay) shrink(mtu int) {
	w.t.Helper()
	h := w.handle(w.SwitchNS())
	for _, host := range w.Hosts {
		l, err := h.LinkByName("p-" + host.Name)
		w.must(err)
		dst := &net.IPNet{IP: host.Address.AsSlice(), Mask: net.CIDRMask(host.Address.BitLen(), host.Address.BitLen())}
		w.must(h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK, MTU: mtu, MTULock: true}))
	}
}

// intact moves data both ways between containers that know nothing of the path.
func (w overlay) intact(a, b *testenv.Container) {
	w.t.Helper()
	for _, p := range [][2]*testenv.Container{{a, b}, {b, a}} {
		for _, addr := range []netip.Addr{p[1].Addr.Addr(), p[1].Addr6.Addr()} {
			w.forget(p[0])
			r, err := testenv.Transfer(w.ctx, p[0].NS, p[1].NS, addr, 1<<20, 6)
			if err != nil || !r.Match {
				w.t.Errorf("tcp from %s to %s: %+v, %v", p[0].NS.Name(), addr, r, err)
			}
		}
	}
}

// forget makes a container forget the path MTUs that it has learnt: they go
// with the route.
func (w overlay) forget(c *testenv.Container) {
	w.t.Helper()
	h := w.handle(c.NS)
	l, err := h.LinkByName("eth0")
	w.must(err)
	routes, err := h.RouteList(l, netlink.FAMILY_ALL)
	w.must(err)
	for _, r := range routes {
		if dst, ok := netip.AddrFromSlice(r.Dst.IP); ok && (c.Addr.Contains(dst) || c.Addr6.Contains(dst)) {
			w.must(h.RouteDel(&r), h.RouteAdd(&r))
		}
	}
}

// ask sends one echo request of that size, IP header included, that may not be
// fragmented, and says what came of it.
func (w overlay) ask(from testenv.NS, to netip.Addr, size int) string {
	w.t.Helper()
	header := 28
	if to.Is6() {
		header = 48
	}
	r, err := testenv.Ping(w.ctx, from, to, testenv.PingOptions{Count: 1, Size: size - header, DontFragment: true, Timeout: time.Second})
	w.must(err)
	switch {
	case len(r.Errors) == 1 && r.Received == 0:
		_, what, _ := strings.Cut(r.Errors[0], ": ")
		if strings.Contains(what, "message too long") {
			what = "refused by the own host"
		}
		return what
	case r.OK():
		return "answered"
	case r.Received == 0 && len(r.Errors) == 0:
		return "lost"
	}
	return r.String()
}

// tell sends one datagram of that size, headers included, and says what came of it.
func (w overlay) tell(from, to testenv.NS, addr netip.Addr, size int, dontFragment bool) string {
	w.t.Helper()
	in, err := to.ListenPacket(w.ctx, "udp", netip.AddrPortFrom(addr, 0).String())
	w.must(err)
	defer in.Close()
	out, err := from.Dial(w.ctx, "udp", in.LocalAddr().String())
	w.must(err)
	defer out.Close()
	level, option, header := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, 28
	if addr.Is6() {
		level, option, header = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, 48
	}
	mode := unix.IP_PMTUDISC_DONT
	if dontFragment {
		mode = unix.IP_PMTUDISC_DO
	}
	rc, err := out.(*net.UDPConn).SyscallConn()
	w.must(err)
	w.must(rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, mode) }), err)
	if _, err := out.Write(make([]byte, size-header)); errors.Is(err, syscall.EMSGSIZE) {
		return "refused by the own host"
	} else if err != nil {
		return err.Error()
	}
	// Either it arrives or an error comes back, or neither.
	w.must(in.SetReadDeadline(time.Now().Add(time.Second)), out.SetReadDeadline(time.Now().Add(time.Second)))
	back := make(chan error, 1)
	go func() {
		_, err := out.Read(make([]byte, 1))
		if errors.Is(err, syscall.EMSGSIZE) {
			_ = in.SetReadDeadline(time.Now())
		}
		back <- err
	}()
	n, _, err := in.ReadFrom(make([]byte, 1<<16))
	_ = out.SetReadDeadline(time.Now())
	switch answer := <-back; {
	case err == nil && n == size-header:
		return "arrived"
	case err == nil:
		return fmt.Sprintf("arrived with %d bytes", n)
	case errors.Is(answer, syscall.EMSGSIZE):
		return "too big, says the way"
	}
	return "lost"
}

// answers are what a container gets to see when it sends packets of these
// sizes to the other. TCP goes first where the way back is not first known.
func (w overlay) answers(from, to *testenv.Container, sizes []int, tcpFirst bool) (out []string) {
	w.t.Helper()
	add := func(format string, args ...any) {
		// Addresses of both directions read the same.
		s := strings.NewReplacer(from.Addr.Addr().String(), "FROM", from.Addr6.Addr().String(), "FROM",
			to.Addr.Addr().String(), "TO", to.Addr6.Addr().String(), "TO").Replace(fmt.Sprintf(format, args...))
		out = append(out, s)
	}
	for _, addr := range []netip.Addr{to.Addr.Addr(), to.Addr6.Addr()} {
		family := map[bool]string{false: "v4", true: "v6"}[addr.Is6()]
		tcp := func() {
			w.forget(from)
			r, err := testenv.Transfer(w.ctx, from.NS, to.NS, addr, 1<<20, 5)
			if err != nil {
				add("%s tcp: %v", family, err)
				return
			}
			add("%s tcp: intact %v, path MTU %d", family, r.Match, r.PathMTU)
		}
		if tcpFirst {
			tcp()
		}
		for _, size := range sizes {
			w.forget(from)
			add("%s ping %d: %s", family, size, w.ask(from.NS, addr, size))
			add("%s ping %d again: %s", family, size, w.ask(from.NS, addr, size))
			w.forget(from)
			add("%s udp %d, df: %s", family, size, w.tell(from.NS, to.NS, addr, size, true))
			add("%s udp %d, df, again: %s", family, size, w.tell(from.NS, to.NS, addr, size, true))
			w.forget(from)
			add("%s udp %d: %s", family, size, w.tell(from.NS, to.NS, addr, size, false))
		}
		if !tcpFirst {
			tcp()
		}
	}
	return out
}

// compareSizes gives each kind of lab the same sequence and compares what the
// containers see with what they see on plain kernel VXLAN. judge looks at the
// other labs afterwards.
func compareSizes(t *testing.T, sizes []int, lab func(t *testing.T, kernel [2]bool) overlay, judge func(w overlay, hosts []string)) {
	t.Helper()
	answers := map[string][]string{}
	order := []string{"kernel and kernel", "vxbpf and vxbpf", "vxbpf and kernel"}
	if !full() {
		// What is lost takes its second: the edge only.
		order, sizes = order[:2], sizes[1:3]
	}
	for _, kind := range order {
		t.Run(kind, func(t *testing.T) {
			w := lab(t, kinds[kind])
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			for _, p := range [][2]*testenv.Container{{a, b}, {b, a}} {
				w.ping(p[0].NS, p[1].Addr.Addr())
				w.ping(p[0].NS, p[1].Addr6.Addr())
			}
			var fast []string
			for i, kernel := range kinds[kind] {
				if !kernel {
					fast = append(fast, w.Hosts[i].Name)
					w.know(w.Hosts[i].Name, a.MAC, b.MAC)
				}
			}
			for _, p := range []struct {
				name     string
				from, to *testenv.Container
				tcpFirst bool
			}{{"h1 to h2: ", a, b, true}, {"h2 to h1: ", b, a, false}} {
				for _, s := range w.answers(p.from, p.to, sizes, p.tcpFirst) {
					answers[kind] = append(answers[kind], p.name+s)
				}
			}
			if len(fast) == 0 {
				t.Logf("%s", strings.Join(answers[kind], "\n"))
				for _, s := range answers[kind] {
					if strings.Contains(s, "tcp:") && !strings.Contains(s, "intact true") {
						t.Errorf("not even the kernel: %s", s)
					}
				}
				return
			}
			if d := cmp.Diff(answers["kernel and kernel"], answers[kind]); d != "" {
				t.Errorf("not what containers see on plain kernel VXLAN (-):\n%s", d)
			}
			judge(w, fast)
		})
	}
}

func TestOversize(t *testing.T) {
	for _, tc := range []struct {
		name, prefix string
		under, later int // MTU of the underlay, and what it becomes when all is set up
		fits         int
	}{
		{"the underlay shrinks", "192.0.2.0/24", 1550, 1500, 1450},
		{"the underlay shrinks, IPv6", "2001:db8:12::/64", 1570, 1500, 1430},
		// The bridge drops single packets and says nothing, the vxlan device answers to large ones.
		{"the containers do not care", "192.0.2.0/24", 1500, 1500, 1450},
	} {
		if tc.under == tc.later && !full() {
			continue // for the most part waits for what is lost
		}
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // it waits for what does not come
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
			spec.Underlay.Prefix, spec.Underlay.MTU = netip.MustParsePrefix(tc.prefix), tc.under
			spec.Underlay.Config = "udp_checksum: false"
			spec.ContainerMTU = 1500
			compareSizes(t, []int{1280, tc.fits, tc.fits + 1, 1500}, func(t *testing.T, kernel [2]bool) overlay {
				w := pmtuLab(t, spec, kernel, testenv.KernelVXLANOptions{NoChecksum: true})
				for _, h := range w.Hosts {
					l, err := w.handle(h.NS).LinkByName("eth2")
					w.must(err)
					w.must(w.handle(h.NS).LinkSetMTU(l, tc.later))
				}
				return w
			}, func(w overlay, hosts []string) {
				for _, h := range hosts {
					n := w.network(h, "mgmt")
					if n.Reasons["encap"]["mtu"].Packets == 0 || n.Reasons["encap"]["fast"].Packets < 100 {
						t.Errorf("%s: encap %v, want some too big and the rest fast", h, n.Reasons["encap"])
					}
				}
			})
		})
	}
}

func TestPathMTU(t *testing.T) {
	for _, tc := range []struct {
		prefix, df string
		attr       byte
	}{{"192.0.2.0/24", "unset", 0}, {"192.0.2.0/24", "set", 1}, {"192.0.2.0/24", "inherit", 2}, {"2001:db8:12::/64", "", 0}} {
		t.Run(tc.prefix+" df "+tc.df, func(t *testing.T) {
			t.Parallel() // it waits for what does not come
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
			spec.Underlay = testenv.Underlay{Kind: testenv.Routed, PathMTU: 1400, Prefix: netip.MustParsePrefix(tc.prefix), Config: "udp_checksum: false"}
			o := testenv.KernelVXLANOptions{NoChecksum: true}
			fits := 1330
			if tc.df != "" {
				fits = 1350
				spec.Underlay.Config = testenv.Keys("{udp_checksum: false, df: " + tc.df + "}")
				o.Attributes = map[int][]byte{unix.IFLA_VXLAN_DF: {tc.attr}}
			}
			compareSizes(t, []int{1280, fits, fits + 1, fits + 70}, func(t *testing.T, kernel [2]bool) overlay {
				return pmtuLab(t, spec, kernel, o)
			}, func(w overlay, hosts []string) {
				// What fits the hop is on the fast path again when the daemon has heard of it.
				a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
				for _, h := range hosts {
					ok := false
					w.wait("full packets on the fast path of "+h, func() bool {
						w.each([]string{h}, "mgmt", func() { w.echo(a.NS, b.NS, b.Addr.Addr(), 20, fits-28) }, func(_ string, sent, _ share) {
							ok = sent.Fast >= 20
						})
						return ok
					})
				}
				// The path gets smaller still, and once more when no daemon is left to hear of it.
				w.shrink(1390)
				w.intact(a, b)
				for _, h := range hosts {
					s, _ := w.status(h)
					w.must(syscall.Kill(s.Daemon, syscall.SIGKILL))
				}
				w.shrink(1380)
				w.intact(a, b)
			})
		})
	}
}
