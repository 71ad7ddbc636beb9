// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

//	h1: mgmt-1 -- v-mgmt-1 -- br-mgmt -- encap-mgmt -- eth2 ==== eth2: h2
//	                 ^                       ^          ^
//	                 other people's filters, programs and shaping
//
// What stands at a device before vxbpf or comes after it keeps its say: a filter
// that drops still drops, with tcx and with clsact.
func TestForeignTC(t *testing.T) {
	drop, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "drop", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer drop.Close()

	index := func(dev string) int {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Index
	}
	// filter puts a clsact filter that drops all at a device, in the caller's namespace.
	filter := func(dev string, parent uint32) (remove func() error) {
		i := index(dev)
		q := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: i, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		made := true
		if err := netlink.QdiscAdd(q); err != nil {
			made = false // vxbpf's own, in clsact mode
		}
		f := &netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: i, Parent: parent, Handle: 1, Priority: 50000, Protocol: unix.ETH_P_ALL},
			Fd:          drop.FD(), Name: "other", DirectAction: true,
		}
		if err := netlink.FilterAdd(f); err != nil {
			t.Fatal(err)
		}
		return func() error {
			if made {
				return netlink.QdiscDel(q)
			}
			return netlink.FilterDel(f)
		}
	}
	program := func(dev string, at ebpf.AttachType) (remove func() error) {
		l, err := link.AttachTCX(link.TCXOptions{Interface: index(dev), Program: drop, Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		return l.Close
	}
	for _, mode := range []string{"tcx", "clsact"} {
		t.Run(mode, func(t *testing.T) {
			needMode(t, mode)
			w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
			w.start("h1", "--attach", mode)
			w.start("h2")
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			// No ARP between them: its packets are the kernel's, and would find the filter by themselves.
			for _, p := range [][2]*testenv.Container{{a, b}, {b, a}} {
				if err := p[0].NS.Do(func() error {
					mac := p[1].MAC
					return netlink.NeighSet(&netlink.Neigh{LinkIndex: index("eth0"), State: netlink.NUD_PERMANENT, IP: p[1].Addr.Addr().AsSlice(), HardwareAddr: mac[:]})
				}); err != nil {
					t.Fatal(err)
				}
			}
			talk := func() bool {
				r, err := testenv.Ping(w.ctx, a.NS, b.Addr.Addr(), testenv.PingOptions{Count: 1, Timeout: 50 * time.Millisecond})
				return err == nil && r.OK()
			}
			// dead: one lost packet may have gone the kernel's way; eight in a row did not go around the filter.
			dead := func() bool {
				for range 8 {
					if talk() {
						return false
					}
				}
				return true
			}
			fast := func() bool {
				before := w.network("h1", "mgmt")
				if !talk() {
					return false
				}
				after := w.network("h1", "mgmt")
				return after.Sent.Fast > before.Sent.Fast && after.Received.Fast > before.Received.Fast
			}
			w.wait("the fast path", fast)
			for _, c := range []struct {
				name string
				put  func() func() error
				ours string // in status while it stands, "" for nothing
			}{
				{"filter at the port's ingress", func() func() error { return filter(a.HostEnd, netlink.HANDLE_MIN_INGRESS) }, "another tc filter bpf"},
				{"filter at the port's egress", func() func() error { return filter(a.HostEnd, netlink.HANDLE_MIN_EGRESS) }, ""},
				{"filter at the vxlan link's ingress", func() func() error { return filter("encap-mgmt", netlink.HANDLE_MIN_INGRESS) }, "encap-mgmt carries another"},
				{"filter at the vxlan link's egress", func() func() error { return filter("encap-mgmt", netlink.HANDLE_MIN_EGRESS) }, "encap-mgmt carries another"},
				{"filter at the underlay's ingress", func() func() error { return filter("eth2", netlink.HANDLE_MIN_INGRESS) }, "eth2 carries another"},
				{"filter at the underlay's egress", func() func() error { return filter("eth2", netlink.HANDLE_MIN_EGRESS) }, ""},
			} {
				var remove func() error
				if err := w.Host("h1").NS.Do(func() error { remove = c.put(); return nil }); err != nil {
					t.Fatal(err)
				}
				w.wait(c.name+" to bite", dead)
				if c.ours != "" {
					out, _, _ := w.vxbpf("h1", "status")
					if !strings.Contains(out, c.ours) {
						t.Errorf("%s: status does not say %q:\n%s", c.name, c.ours, out)
					}
				}
				if err := w.Host("h1").NS.Do(remove); err != nil {
					t.Fatal(err)
				}
				w.wait("the fast path after "+c.name, fast)
			}
			if mode == "tcx" {
				// A program before ours, and at a port's egress: no event tells of these, but the first needs none.
				var remove func() error
				if err := w.Host("h1").NS.Do(func() error {
					l, err := link.AttachTCX(link.TCXOptions{Interface: index(a.HostEnd), Program: drop, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
					if err == nil {
						remove = l.Close
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if talk() {
					t.Error("a program before ours has lost its say")
				}
				if err := remove(); err != nil {
					t.Fatal(err)
				}
				w.wait("the fast path after a program before ours", fast)
				if err := w.Host("h1").NS.Do(func() error { remove = program(a.HostEnd, ebpf.AttachTCXEgress); return nil }); err != nil {
					t.Fatal(err)
				}
				// tcx sends no event: the next full look finds it.
				w.waitFor(45*time.Second, "a program at the port's egress to bite", dead)
				if err := remove(); err != nil {
					t.Fatal(err)
				}
			}
			// Shaping at the port: packets come through the qdisc, still on the fast path.
			tbf := &netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}, Rate: 125000, Limit: 100000, Buffer: 20000}
			if err := w.Host("h1").NS.Do(func() error { tbf.LinkIndex = index(a.HostEnd); return netlink.QdiscAdd(tbf) }); err != nil {
				t.Fatal(err)
			}
			w.wait("packets in the shaper", func() bool {
				if !talk() {
					return false
				}
				var sent uint64
				if err := w.Host("h1").NS.Do(func() error {
					qs, err := netlink.QdiscList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: tbf.LinkIndex}})
					for _, q := range qs {
						if q.Type() == "tbf" && q.Attrs().Statistics != nil {
							sent = uint64(q.Attrs().Statistics.Basic.Packets)
						}
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
				return sent > 0
			})
		})
	}
}
