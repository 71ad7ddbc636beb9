// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// What sits at the end of the overlay on h1, one at a time in the place of
// mgmt-2; h2 runs vxbpf, or plain kernel VXLAN:
//
//	peer      h1: br-mgmt ─ v-mgmt-2 ═══════════════════════════ eth0 :mgmt-2
//	same      h1: br-mgmt ─ s0 ═ s1 ─ br-in ─ in0 ══════════════ eth0 :mgmt-2   s0, s1 in one namespace
//	physical  h1: br-mgmt ─ phys0 ══ x: up0 ─ br-x ─ down0 ═════ eth0 :mgmt-2   a switch with more hosts behind it
//	tap       h1: br-mgmt ─ tap0 ═ (process) ═══════════════ tap eth0 :mgmt-2   a virtual machine
//	host      h1: br-mgmt's own address
//
// TCP bulk runs both ways between each and a container on h2, over IPv4 and
// IPv6; testenv.Transfer compares hashes.
func TestEndpoints(t *testing.T) {
	for _, kernel := range []bool{false, true} {
		t.Run(fmt.Sprintf("far host kernel %v", kernel), func(t *testing.T) {
			h2 := testenv.HostSpec{Name: "h2"}
			if kernel {
				h2.Datapath = testenv.None
			}
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, h2, testenv.HostSpec{Name: "x", Stranger: true})
			spec.Containers, spec.HostAddresses = 2, []string{"mgmt"}
			w := newOverlay(t, spec, true)
			if kernel {
				_, err := w.KernelVXLAN(w.ctx, "h2", "mgmt", testenv.KernelVXLANOptions{NoChecksum: true})
				w.must(err)
			}
			far, c := w.Container("h2", "mgmt-1"), w.Container("h1", "mgmt-2")
			for _, kind := range []string{"peer", "same", "physical", "tap", "host"} {
				var undo func()
				ns, addrs := c.NS, []netip.Addr{c.Addr.Addr(), c.Addr6.Addr()}
				if kind == "host" {
					ns, addrs = w.Host("h1").NS, nil
					for _, p := range w.Host("h1").BridgeAddresses("mgmt") {
						addrs = append(addrs, p.Addr())
					}
				} else if kind != "peer" {
					undo = w.replug(c, kind)
				}
				for i, a := range addrs {
					back := []netip.Addr{far.Addr.Addr(), far.Addr6.Addr()}[i]
					w.ping(far.NS, a)
					if t.Failed() {
						return
					}
					w.know("h1", far.MAC)
					w.each([]string{"h1"}, "mgmt", func() {
						for _, p := range []struct {
							from, to testenv.NS
							addr     netip.Addr
						}{{far.NS, ns, a}, {ns, far.NS, back}} {
							r, err := testenv.Transfer(w.ctx, p.from, p.to, p.addr, 8<<20, uint64(i))
							if err != nil || !r.Match || r.Bytes != 8<<20 {
								t.Errorf("%s: %s to %s: %+v, %v", kind, p.from.Name(), p.addr, r, err)
							}
						}
					}, func(_ string, sent, received share) {
						// The transfers are short, and a MAC is confirmed only while the first one runs.
						if sent.ratio() < 0.5 || received.ratio() < 0.5 {
							t.Errorf("%s, %s: sent %+v, received %+v on the fast path", kind, a, sent, received)
						}
					})
				}
				if undo != nil {
					undo()
				}
			}
		})
	}
}

// replug takes a container's veth away and connects it in another way.
func (w overlay) replug(c *testenv.Container, kind string) (undo func()) {
	w.t.Helper()
	h1, x := w.Host("h1").NS, w.Host("x").NS
	bridge := func(ns testenv.NS, name string) {
		a := netlink.NewLinkAttrs()
		a.Name, a.MTU = name, c.MTU
		h := w.handle(ns)
		br := &netlink.Bridge{LinkAttrs: a}
		w.must(h.LinkAdd(br), h.LinkSetUp(br))
	}
	join := func(ns testenv.NS, port, br string) {
		h := w.handle(ns)
		l, err := h.LinkByName(port)
		w.must(err)
		b, err := h.LinkByName(br)
		w.must(err)
		w.must(h.LinkSetMaster(l, b))
	}
	if _, err := w.handle(h1).LinkByName(c.HostEnd); err == nil {
		w.unlink(h1, c.HostEnd)
	}
	between := fdb.MAC{0x02, 0xc0, 0, 0, 0xee, 0x05}
	port := ""
	switch kind {
	case "same":
		port = "s0"
		bridge(h1, "br-in")
		w.veth(h1, "s0", h1, "s1", between, c.MTU, "br-mgmt")
		join(h1, "s1", "br-in")
		w.veth(h1, "in0", c.NS, "eth0", c.MAC, c.MTU, "br-in")
		undo = func() { w.unlink(h1, "in0"); w.unlink(h1, "s0"); w.unlink(h1, "br-in") }
	case "physical":
		port = "phys0"
		bridge(x, "br-x")
		w.veth(h1, "phys0", x, "up0", between, c.MTU, "br-mgmt")
		join(x, "up0", "br-x")
		w.veth(x, "down0", c.NS, "eth0", c.MAC, c.MTU, "br-x")
		undo = func() { w.unlink(x, "down0"); w.unlink(h1, "phys0"); w.unlink(x, "br-x") }
	case "tap":
		port = "tap0"
		bridge(c.NS, "br-vm") // what tap() wants one for; eth0 leaves it below
		host, guest := w.tap(h1, "tap0", "br-mgmt"), w.tap(c.NS, "eth0", "br-vm")
		h := w.handle(c.NS)
		l, err := h.LinkByName("eth0")
		w.must(err)
		w.must(h.LinkSetNoMaster(l), h.LinkSetHardwareAddr(l, net.HardwareAddr(c.MAC[:])))
		w.unlink(c.NS, "br-vm")
		done := make(chan struct{}, 2)
		relay := func(to, from *os.File) {
			defer func() { done <- struct{}{} }()
			b := make([]byte, 65536)
			for {
				n, err := from.Read(b)
				if err != nil {
					return
				}
				if _, err := to.Write(b[:n]); err != nil && !os.IsTimeout(err) {
					return
				}
			}
		}
		go relay(guest, host)
		go relay(host, guest)
		undo = func() {
			host.Close()
			guest.Close()
			<-done
			<-done
		}
	}
	h := w.handle(c.NS)
	l, err := h.LinkByName("eth0")
	w.must(err)
	for _, p := range []netip.Prefix{c.Addr, c.Addr6} {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		w.must(h.AddrAdd(l, a))
	}
	w.wait(port+" to be a fast port", func() bool { fast, _, _ := w.port("h1", port); return fast })
	return undo
}
