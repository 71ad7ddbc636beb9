// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	bits "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// Ports that come, go and change while vxbpf runs.
//
//	h1  mgmt-1 -- v-mgmt-1 ┐                             ┌ v-mgmt-1 -- mgmt-1  h2
//	    mgmt-2 -- v-mgmt-2 ┼ br-mgmt - eth2 == eth2 - br-mgmt
//	        px -- v-same ──┤                             └ v-mgmt-2 -- mgmt-2
//	     guest -- tap0 ────┘
//
// px is the other end of v-same in h1's own namespace, with an address of
// h1's; guest is the test, which holds the tap device.

// twoEach is h1 and h2 with two containers each.
func twoEach(h2 testenv.HostSpec) testenv.Spec {
	h2.Name = "h2"
	s := oneNetwork(testenv.HostSpec{Name: "h1"}, h2)
	s.Containers = 2
	return s
}

// ifindex of a link in a host, 0 if it is not there.
func (w overlay) ifindex(host, name string) int {
	w.t.Helper()
	l, err := w.handle(w.Host(host).NS).LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return 0
	}
	w.must(err)
	return l.Attrs().Index
}

// traces are all the things of vxbpf on a host that have to do with a link.
func (w overlay) traces(host string, ifindex int) (out []string) {
	w.t.Helper()
	if _, err := os.Stat(w.pinDir(host)); err == nil {
		for mac, e := range w.table(host) {
			if e.Port == uint32(ifindex) {
				out = append(out, "fdb "+mac.String())
			}
		}
		w.pinned(host, func(s *maps.Set) {
			ports, err := s.Ports.All()
			w.must(err)
			if _, ok := ports[uint32(ifindex)]; ok {
				out = append(out, "port")
			}
		})
	}
	pins, err := filepath.Glob(filepath.Join(w.pinDir(host), "links", fmt.Sprintf("*-%d-*", ifindex)))
	w.must(err)
	for _, p := range pins {
		out = append(out, "pin "+filepath.Base(p))
	}
	st, err := loader.ReadState(filepath.Join(loader.DefaultRunDir, w.Host(host).Instance()))
	if err == nil {
		if slices.Contains(st.Qdiscs, ifindex) {
			out = append(out, "record of a qdisc")
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		w.must(err)
	}
	for _, f := range w.filters(host, ifindex) {
		if strings.HasPrefix(f, "vxbpf/") {
			out = append(out, "filter "+f)
		}
	}
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		w.must(w.Host(host).NS.Do(func() error {
			attached, err := tcxPrograms(w.t, ifindex, at)
			if errors.Is(err, unix.ENODEV) {
				return nil
			}
			if err == nil {
				for range attached {
					out = append(out, at.String())
				}
			}
			return err
		}))
	}
	slices.Sort(out)
	return out
}

// filters are the names of the BPF filters on a link.
func (w overlay) filters(host string, ifindex int) (names []string) {
	w.t.Helper()
	h := w.handle(w.Host(host).NS)
	l, err := h.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) || !w.hasClsact(host, ifindex) {
		return nil
	}
	w.must(err)
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		all, err := h.FilterList(l, parent)
		w.must(err)
		for _, f := range all {
			if b, ok := f.(*netlink.BpfFilter); ok {
				names = append(names, b.Name)
			}
		}
	}
	return names
}

func (w overlay) hasClsact(host string, ifindex int) bool {
	w.t.Helper()
	return slices.Contains(w.clsacts(host), ifindex)
}

// clsacts are the links with a clsact qdisc.
func (w overlay) clsacts(host string) (out []int) {
	w.t.Helper()
	all, err := w.handle(w.Host(host).NS).QdiscList(nil)
	w.must(err)
	for _, q := range all {
		if q.Type() == "clsact" {
			out = append(out, q.Attrs().LinkIndex)
		}
	}
	slices.Sort(out)
	return out
}

// addClsact is what some other tool has put there.
func (w overlay) addClsact(host, name string) {
	w.t.Helper()
	w.must(w.handle(w.Host(host).NS).QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: w.ifindex(host, name), Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}))
}

// addFilter is a filter of some other tool that lets everything pass.
func (w overlay) addFilter(host, name string, parent uint32) {
	w.t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	w.must(err)
	defer p.Close()
	w.must(w.handle(w.Host(host).NS).FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: w.ifindex(host, name), Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 100},
		Fd:          p.FD(), Name: "foreign", DirectAction: true,
	}))
}

// port is what status says about a port, and whether it says anything.
func (w overlay) port(host, name string) (fast bool, reason string, there bool) {
	w.t.Helper()
	for _, p := range w.network(host, "mgmt").Ports {
		if p.Name == name {
			return p.Fast, p.Reason, true
		}
	}
	return false, "", false
}

// accelerated moves data both ways between a container of h1 and one of h2.
func (w overlay) accelerated(a, b *testenv.Container) {
	w.t.Helper()
	w.wait(a.HostEnd+" to be a fast port", func() bool { fast, _, _ := w.port("h1", a.HostEnd); return fast })
	w.small(a, b)
	w.know("h1", a.MAC, b.MAC)
	time.Sleep(50 * time.Millisecond) // vx_hold_ns
	for _, p := range [][2]*testenv.Container{{a, b}, {b, a}} {
		w.each([]string{"h1"}, "mgmt", func() { w.transfer(p[0], p[1], bulk) }, func(h string, sent, received share) {
			data := sent
			if p[0] == b {
				data = received
			}
			w.mostly("h1, tcp from "+p[0].NS.Name(), data, 5000)
		})
	}
}

func TestContainerComesAndGoes(t *testing.T) {
	for _, mode := range []string{"tcx", "clsact"} {
		t.Run(mode, func(t *testing.T) {
			needMode(t, mode)
			w := newOverlay(t, twoEach(testenv.HostSpec{}), false)
			// Found there: on eth2 a qdisc with a filter, on v-mgmt-1 a qdisc alone.
			h1 := w.Host("h1").NS
			eth2 := w.ifindex("h1", "eth2")
			w.addClsact("h1", "eth2")
			// Below tcx the fast path keeps off a device with a filter at ingress (foreign_test.go).
			w.addFilter("h1", "eth2", map[string]uint32{"tcx": netlink.HANDLE_MIN_EGRESS, "clsact": netlink.HANDLE_MIN_INGRESS}[mode])
			w.addClsact("h1", "v-mgmt-1")
			found := w.clsacts("h1")

			w.start("h2")
			w.start("h1", "--attach", mode)
			if s, _ := w.status("h1"); s.Attach != mode {
				t.Fatalf("attached by %s, want %s", s.Attach, mode)
			}
			c, far := w.Container("h1", "mgmt-2"), w.Container("h2", "mgmt-1")
			w.accelerated(c, far)
			want := []string{"fdb " + c.MAC.String(), "port"}
			if mode == "tcx" {
				want = append(want, "pin vx_tc_encap", ebpf.AttachTCXIngress.String())
			} else {
				want = append(want, "filter vxbpf/", "record of a qdisc")
			}
			// gone waits until nothing is left, and before makes sure that there was something to see.
			gone := func(ifindex int, remove func()) {
				t.Helper()
				before := w.traces("h1", ifindex)
				for _, p := range want {
					if !slices.ContainsFunc(before, func(s string) bool { return strings.HasPrefix(s, p) }) {
						t.Errorf("traces of a container's port: no %q in %q", p, before)
					}
				}
				remove()
				var left []string
				defer func() {
					if len(left) > 0 {
						t.Errorf("left behind: %q", left)
					}
				}()
				w.wait("all traces of "+c.HostEnd+" to vanish", func() bool { left = w.traces("h1", ifindex); return len(left) == 0 })
				if _, _, there := w.port("h1", c.HostEnd); there {
					t.Errorf("status still shows %s", c.HostEnd)
				}
			}
			first := w.ifindex("h1", c.HostEnd)
			gone(first, func() { w.unlink(h1, c.HostEnd) })

			// A new one, by nobody's leave.
			w.veth(h1, c.HostEnd, c.NS, "eth0", c.MAC, c.MTU, "br-mgmt")
			in := w.handle(c.NS)
			eth0, err := in.LinkByName("eth0")
			w.must(err)
			for _, p := range []netip.Prefix{c.Addr, c.Addr6} {
				a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
				if p.Addr().Is6() {
					a.Flags = unix.IFA_F_NODAD
				}
				w.must(in.AddrAdd(eth0, a))
			}
			second := w.ifindex("h1", c.HostEnd)
			if second == first {
				t.Error("the new link has the old one's number: nothing shown")
			}
			w.accelerated(c, far)

			// Taken out of the bridge only: the link stays, and nothing of ours on it.
			h := w.handle(h1)
			v, err := h.LinkByName(c.HostEnd)
			w.must(err)
			br, err := h.LinkByName("br-mgmt")
			w.must(err)
			gone(second, func() { w.must(h.LinkSetNoMaster(v)) })
			if w.hasClsact("h1", second) {
				t.Error("a clsact qdisc is left on a link that is no port any more")
			}
			w.must(h.LinkSetMaster(v, br))
			w.accelerated(c, far)
			gone(second, func() { w.unlink(h1, c.HostEnd) })

			// The other container did not notice, and is still fast.
			w.accelerated(w.Container("h1", "mgmt-1"), far)

			names := w.filters("h1", eth2)
			if ours := slices.ContainsFunc(names, func(s string) bool { return strings.HasPrefix(s, "vxbpf/") }); !slices.Contains(names, "foreign") || ours != (mode == "clsact") {
				t.Errorf("filters on eth2 while loaded: %q", names)
			}
			if made := len(w.clsacts("h1")) > len(found); made != (mode == "clsact") {
				t.Errorf("links with clsact: %v, before load %v", w.clsacts("h1"), found)
			}
			port := w.ifindex("h1", "v-mgmt-1")
			if out, errOut, code := w.vxbpf("h1", "unload", "--keep-links"); code != 0 {
				t.Fatalf("unload: exit %d\n%s%s", code, out, errOut)
			}
			if now := w.clsacts("h1"); !slices.Equal(now, found) {
				t.Errorf("links with clsact after unload: %v, before load %v", now, found)
			}
			if names := w.filters("h1", eth2); !slices.Equal(names, []string{"foreign"}) {
				t.Errorf("filters on eth2 after unload: %q", names)
			}
			for _, i := range []int{eth2, port, w.ifindex("h1", "br-mgmt"), w.ifindex("h1", "encap-mgmt")} {
				if left := w.traces("h1", i); len(left) > 0 || i == 0 {
					t.Errorf("left on interface %d after unload: %q", i, left)
				}
			}
			if _, err := os.Stat(w.pinDir("h1")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("pins after unload: %v", err)
			}
			w.ping(w.Container("h1", "mgmt-1").NS, far.Addr.Addr()) // by the kernel
		})
	}
}

// A veth whose other end is in the same namespace: bpf_redirect_peer would drop.
func TestPortSameNamespace(t *testing.T) {
	w := newOverlay(t, twoEach(testenv.HostSpec{}), true)
	h1, far := w.Host("h1").NS, w.Container("h2", "mgmt-1")
	// The bridge must not answer for px's address.
	w.must(h1.Sysctl("net.ipv4.conf.all.arp_ignore", "1"))
	mac := fdb.MAC{0x02, 0xc0, 0, 0, 0xee, 0x02}
	w.veth(h1, "v-same", h1, "px", mac, 1450, "br-mgmt")
	px := netip.MustParsePrefix("172.29.236.50/24")
	h := w.handle(h1)
	l, err := h.LinkByName("px")
	w.must(err)
	w.must(h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: px.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	w.wait("v-same to be a fast port", func() bool { fast, _, _ := w.port("h1", "v-same"); return fast })

	w.ping(far.NS, px.Addr())
	w.know("h1", mac, far.MAC)
	if e := w.table("h1")[mac]; e.Kind != fdb.Egress || e.Port != uint32(w.ifindex("h1", "v-same")) {
		t.Errorf("entry of px: %+v", e)
	}
	time.Sleep(50 * time.Millisecond) // vx_hold_ns
	w.each([]string{"h1", "h2"}, "mgmt", func() { w.echo(far.NS, h1, px.Addr(), 200, 1400) }, func(h string, sent, received share) {
		w.mostly(h+", udp, sent", sent, 200)
		w.mostly(h+", udp, received", received, 200)
	})
	for _, p := range []struct {
		from, to testenv.NS
		addr     netip.Addr
		data     string
	}{{far.NS, h1, px.Addr(), "received"}, {h1, far.NS, far.Addr.Addr(), "sent"}} {
		w.each([]string{"h1"}, "mgmt", func() {
			r, err := testenv.Transfer(w.ctx, p.from, p.to, p.addr, bulk, 3)
			w.must(err)
			if !r.Match {
				t.Errorf("tcp from %s: data altered", p.from.Name())
			}
		}, func(_ string, sent, received share) {
			w.mostly("h1, tcp "+p.data, map[string]share{"sent": sent, "received": received}[p.data], 5000)
		})
	}
	// It came by way of the vxlan device: the underlay hook does not send out of ports.
	if n := w.network("h1", "mgmt"); n.Reasons["decap"]["port_kind"].Packets < 200 {
		t.Errorf("decap: %v", n.Reasons["decap"])
	}
}

// guest is a virtual machine behind a tap device that echoes UDP. It answers
// ARP and nothing else. What arrives broken is in bad, and not answered.
type guest struct {
	f   *os.File
	mac fdb.MAC
	ip  netip.Addr
	got int
	bad []string
}

func (g *guest) run() {
	buf := make([]byte, 1<<16)
	for {
		n, err := g.f.Read(buf)
		if err != nil {
			return // closed
		}
		if answer := g.answer(buf[:n]); answer != nil {
			if _, err := g.f.Write(answer); err != nil {
				return
			}
		}
	}
}

func (g *guest) answer(b []byte) []byte {
	if len(b) < 14 {
		return nil
	}
	ip := g.ip.As4()
	out := slices.Clone(b)
	copy(out[0:6], b[6:12])
	copy(out[6:12], g.mac[:])
	switch proto := bits.BigEndian.Uint16(b[12:]); {
	case proto == unix.ETH_P_ARP && len(b) >= 42 && b[21] == 1 && [4]byte(b[38:42]) == ip:
		out[21] = 2
		copy(out[32:42], b[22:32])
		copy(out[22:28], g.mac[:])
		copy(out[28:32], ip[:])
		return out
	case proto == unix.ETH_P_IP && len(b) >= 42 && b[23] == 17 && [4]byte(b[30:34]) == ip:
		g.got++
		udp := b[34 : 14+int(bits.BigEndian.Uint16(b[16:]))]
		pseudo := slices.Concat(b[26:34], []byte{0, 17}, udp[4:6])
		if len(udp)%2 == 1 {
			udp = append(slices.Clone(udp), 0)
		}
		switch {
		case fdb.MAC(b[0:6]) != g.mac:
			g.bad = append(g.bad, fmt.Sprintf("for %x", b[0:6]))
			return nil
		case onesSum(b[14:34]) != 0xffff, onesSum(slices.Concat(pseudo, udp)) != 0xffff:
			g.bad = append(g.bad, fmt.Sprintf("checksum of %d bytes: %x", len(b), b[:42]))
			return nil
		}
		// Both checksums hold for swapped addresses and ports too.
		copy(out[26:30], b[30:34])
		copy(out[30:34], b[26:30])
		copy(out[34:36], b[36:38])
		copy(out[36:38], b[34:36])
		return out
	}
	return nil
}

// tap makes a tap device in a namespace and puts it into a bridge, up.
func (w overlay) tap(ns testenv.NS, name, bridge string) *os.File {
	w.t.Helper()
	var fd int
	w.must(ns.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		return err
	}))
	h := w.handle(ns)
	l, err := h.LinkByName(name)
	w.must(err)
	br, err := h.LinkByName(bridge)
	w.must(err)
	w.must(h.LinkSetMTU(l, 1450), h.LinkSetMaster(l, br), h.LinkSetUp(l))
	return os.NewFile(uintptr(fd), "tap")
}

func TestPortTap(t *testing.T) {
	w := newOverlay(t, twoEach(testenv.HostSpec{}), true)
	far, near := w.Container("h2", "mgmt-1"), w.Container("h1", "mgmt-1")
	g := &guest{f: w.tap(w.Host("h1").NS, "tap0", "br-mgmt"), mac: fdb.MAC{0x02, 0xc0, 0, 0, 0xee, 0x03}, ip: netip.MustParseAddr("172.29.236.60")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.run()
	}()
	stop := func() {
		g.f.Close()
		<-done
	}
	defer stop()
	w.wait("tap0 to be a fast port", func() bool { fast, _, _ := w.port("h1", "tap0"); return fast })
	index := w.ifindex("h1", "tap0")

	addr := netip.AddrPortFrom(g.ip, 7).String()
	w.echoed(far.NS, addr, 5, 100)
	w.know("h1", g.mac, far.MAC)
	if e := w.table("h1")[g.mac]; e.Kind != fdb.Egress || e.Port != uint32(index) {
		t.Errorf("entry of the guest: %+v", e)
	}
	time.Sleep(50 * time.Millisecond) // vx_hold_ns
	for _, size := range []int{18, 1421, 1422} {
		w.each([]string{"h1", "h2"}, "mgmt", func() { w.echoed(far.NS, addr, 200, size) }, func(h string, sent, received share) {
			w.mostly(fmt.Sprintf("%s, %d bytes, sent", h, size), sent, 200)
			w.mostly(fmt.Sprintf("%s, %d bytes, received", h, size), received, 200)
		})
	}
	w.echoed(near.NS, addr, 50, 300) // the bridge's own work
	stop()
	if len(g.bad) > 0 || g.got < 650 {
		t.Errorf("guest got %d datagrams, of them broken: %q", g.got, g.bad)
	}
	// Its owner gone, the device is gone, and all of ours with it.
	w.wait("all traces of tap0 to vanish", func() bool { return len(w.traces("h1", index)) == 0 && w.ifindex("h1", "tap0") == 0 })
}

// setPortState of a bridge port, as spanning tree would.
func setPortState(ns testenv.NS, ifindex int, state uint8) error {
	return ns.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
		msg.Index = int32(ifindex)
		req.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
		info.AddRtAttr(nl.IFLA_BRPORT_STATE, nl.Uint8Attr(state))
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// Port states of the bridge, linux/if_bridge.h. "Blocking" would not last: with
// no spanning tree the bridge selects the states of its ports anew at once, and
// leaves only disabled ones alone (br_port_state_selection).
const (
	portDisabled   = 0
	portForwarding = 3
)

// The kernel host is the oracle: with the same ports isolated or disabled, the
// same pings get through.
func TestPortStates(t *testing.T) {
	for _, kernel := range []bool{false, true} {
		t.Run(fmt.Sprintf("kernel %v", kernel), func(t *testing.T) {
			spec := twoEach(testenv.HostSpec{})
			spec.Hosts[0].KernelVXLAN = kernel
			w := newOverlay(t, spec, true)
			h1 := w.Host("h1").NS
			a, b, far := w.Container("h1", "mgmt-1"), w.Container("h1", "mgmt-2"), w.Container("h2", "mgmt-1")
			w.small(a, far)
			w.small(b, far)
			w.small(a, b)

			isolate := func(name string, on bool) {
				t.Helper()
				h := w.handle(h1)
				l, err := h.LinkByName(name)
				w.must(err)
				w.must(h.LinkSetIsolated(l, on))
			}
			state := func(name string, s uint8) {
				t.Helper()
				w.must(setPortState(h1, w.ifindex("h1", name), s))
			}
			// says waits for status to know; "" is "fast".
			says := func(port, reason string) {
				t.Helper()
				if kernel {
					return
				}
				w.wait(fmt.Sprintf("status to say %q about %s", reason, port), func() bool {
					fast, why, _ := w.port("h1", port)
					return fast == (reason == "") && strings.Contains(why, reason)
				})
			}
			reach := func(from, to *testenv.Container, want bool) {
				t.Helper()
				timeout := 3 * time.Second
				if !want {
					timeout = 200 * time.Millisecond
				}
				for _, addr := range []netip.Addr{to.Addr.Addr(), to.Addr6.Addr()} {
					r, err := testenv.Ping(w.ctx, from.NS, addr, testenv.PingOptions{Count: 5, Interval: 2 * time.Millisecond, Timeout: timeout})
					w.must(err)
					if want && !r.OK() || !want && r.Received != 0 {
						t.Errorf("ping from %s to %s: %s, want it to get through: %v", from.NS.Name(), addr, r, want)
					}
				}
			}
			// path: all of the traffic of a port, or none of it, on the fast path, but for what
			// the other containers say unasked.
			path := func(c *testenv.Container, fast bool) {
				t.Helper()
				if kernel {
					w.echo(c.NS, far.NS, far.Addr.Addr(), 200, 100)
					return
				}
				w.small(c, far)
				if fast {
					w.know("h1", c.MAC, far.MAC)
				}
				time.Sleep(50 * time.Millisecond) // vx_hold_ns
				w.each([]string{"h1"}, "mgmt", func() { w.echo(c.NS, far.NS, far.Addr.Addr(), 200, 100) }, func(_ string, sent, received share) {
					if fast {
						w.mostly(c.HostEnd+" sent", sent, 200)
						w.mostly(c.HostEnd+" received", received, 200)
					} else if sent.Fast+received.Fast > 10 || sent.Total < 200 || received.Total < 200 {
						t.Errorf("%s: sent %+v, received %+v, want none of them on the fast path", c.HostEnd, sent, received)
					}
				})
			}

			says(a.HostEnd, "")
			path(a, true)

			// Isolated ports reach those that are not, such as the vxlan port.
			isolate(a.HostEnd, true)
			says(a.HostEnd, "")
			reach(a, far, true)
			reach(far, a, true)
			reach(a, b, true)
			path(a, true)
			path(b, true)

			isolate(b.HostEnd, true)
			says(b.HostEnd, "")
			reach(a, b, false)
			reach(b, far, true)
			isolate(b.HostEnd, false)
			says(b.HostEnd, "")

			// With the vxlan port isolated too, only those that are not get out.
			isolate("encap-mgmt", true)
			says(a.HostEnd, a.HostEnd+" and encap-mgmt are isolated from each other")
			reach(a, far, false)
			reach(far, a, false)
			reach(b, far, true)
			path(b, true)
			isolate("encap-mgmt", false)
			isolate(a.HostEnd, false)
			says(a.HostEnd, "")
			says(b.HostEnd, "")
			path(a, true)

			state(a.HostEnd, portDisabled)
			says(a.HostEnd, a.HostEnd+" is not in forwarding state")
			reach(a, far, false)
			reach(far, a, false)
			reach(b, far, true)
			path(b, true)
			state(a.HostEnd, portForwarding)
			says(a.HostEnd, "")
			path(a, true)

			state("encap-mgmt", portDisabled)
			says(a.HostEnd, "encap-mgmt is not in forwarding state")
			reach(a, far, false)
			reach(a, b, true)
			state("encap-mgmt", portForwarding)
			says(a.HostEnd, "")
			path(a, true)
		})
	}
}
