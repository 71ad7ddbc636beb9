// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Somebody changes something after a load. What vxbpf made or set comes back, also
// where the object is gone and with it its place in a pruned record; what it found is
// reported, and stays as somebody made it.
func TestRepair(t *testing.T) {
	// A bridge and a vxlan link that were there, with a remote of their own, and a network of ours.
	adopt := []func(*host){
		withBridge("br-mgmt", kernel.Bridge{Ageing: plainBridge.Ageing, ForwardDelay: plainBridge.ForwardDelay}, "172.29.236.9/24"),
		withVXLAN("encap-mgmt", "br-mgmt", func(v *kernel.VXLAN) { v.TTL = 1 }),
		withFDB("encap-mgmt", "00:00:00:00:00:00", "192.0.2.12", false), up,
	}
	wants := func(c *config.Config, n *config.Network) {
		n.Underlay.TTL, n.MTU = 5, 1400
		n.Bridge.Addresses = []netip.Prefix{prefix("172.29.236.1/24"), prefix("172.29.236.9/24")}
		n.Remotes = append(n.Remotes, ip("192.0.2.13"))
		n.FDB = []config.StaticEntry{{MAC: mac("02:00:00:00:00:0c"), VTEP: ip("192.0.2.12")}}
	}
	delFDB := func(h *host, link string, f func(kernel.FDBEntry) bool) {
		l, _ := h.s.Link(link)
		var left []kernel.FDBEntry
		for _, e := range h.s.FDB {
			if e.Link != l.Index || !f(e) {
				left = append(left, e)
			}
		}
		if len(left) == len(h.s.FDB) {
			t.Fatalf("no such entry on %s", link)
		}
		h.s.FDB = left
	}
	remote := func(a string) func(kernel.FDBEntry) bool {
		return func(e kernel.FDBEntry) bool { return e.MAC.IsZero() && e.Dst == ip(a) }
	}
	static := func(e kernel.FDBEntry) bool { return e.MAC == mac("02:00:00:00:00:0c") }
	delLink := func(h *host, name string) {
		l, _ := h.s.Link(name)
		if err := h.DeleteLink(l.Index); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name          string
		host          []func(*host)
		broken        func(h *host)
		want, foreign string // actions, without those that keep
	}{
		{name: "nothing", host: adopt, broken: func(*host) {}},
		{name: "link of ours deleted", broken: func(h *host) { delLink(h, "encap-mgmt") }, want: `
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, ttl 5, mtu 1400 (not there)
add port encap-mgmt of br-mgmt
add remote 192.0.2.12 on encap-mgmt
add remote 192.0.2.13 on encap-mgmt
add static 02:00:00:00:00:0c -> 192.0.2.12 on encap-mgmt
`},
		{name: "ttl of a link of ours", broken: func(h *host) { h.s.find("encap-mgmt").VXLAN.TTL = 3 }, want: "\nchange vxlan encap-mgmt ttl: 3 -> 5\n"},
		{name: "what was never set of a link of ours", broken: func(h *host) { h.s.find("encap-mgmt").VXLAN.Learning = false }, want: "\nchange vxlan encap-mgmt learning: off -> on\n"},
		{name: "link that was there deleted", host: adopt, broken: func(h *host) { delLink(h, "encap-mgmt") }, foreign: `
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, ttl 5, mtu 1400 (not there)
`},
		{name: "ttl that we changed", host: adopt, broken: func(h *host) { h.s.find("encap-mgmt").VXLAN.TTL = 3 }, want: "\nchange vxlan encap-mgmt ttl: 3 -> 5\n"},
		{name: "learning that we found", host: adopt, broken: func(h *host) { h.s.find("encap-mgmt").VXLAN.Learning = false },
			foreign: "\nchange vxlan encap-mgmt learning: off -> on\n"},
		{name: "remote that we added", host: adopt, broken: func(h *host) { delFDB(h, "encap-mgmt", remote("192.0.2.13")) }, want: "\nadd remote 192.0.2.13 on encap-mgmt\n"},
		{name: "remote that we found", host: adopt, broken: func(h *host) { delFDB(h, "encap-mgmt", remote("192.0.2.12")) },
			foreign: "\nadd remote 192.0.2.12 on encap-mgmt\n"},
		{name: "static entry removed", host: adopt, broken: func(h *host) { delFDB(h, "encap-mgmt", static) },
			want: "\nadd static 02:00:00:00:00:0c -> 192.0.2.12 on encap-mgmt\n"},
		{name: "static entry moved", host: adopt, broken: func(h *host) {
			delFDB(h, "encap-mgmt", static)
			withFDB("encap-mgmt", "02:00:00:00:00:0c", "192.0.2.99", false)(h)
		}, want: "\nchange static 02:00:00:00:00:0c on encap-mgmt: 192.0.2.99 -> 192.0.2.12 (not made by vxbpf; put back on unload)\n"},
		{name: "address that we added", host: adopt, broken: func(h *host) {
			if err := h.DelAddress(h.s.find("br-mgmt").Index, prefix("172.29.236.1/24")); err != nil {
				t.Fatal(err)
			}
		}, want: "\nadd address 172.29.236.1/24 on br-mgmt\n"},
		{name: "address that we found", host: adopt, broken: func(h *host) {
			if err := h.DelAddress(h.s.find("br-mgmt").Index, prefix("172.29.236.9/24")); err != nil {
				t.Fatal(err)
			}
			// The kernel takes the others of a subnet away with its first address.
		}, want: "\nadd address 172.29.236.1/24 on br-mgmt\n", foreign: "\nadd address 172.29.236.9/24 on br-mgmt\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(tt.host...)
			c := mgmt(wants)
			owned := load(t, h, c, Owned{}, Options{})
			record := owned.Clone()
			tt.broken(h)
			was := h.text()
			p := plan(t, h, c, owned, Options{Repair: &record})
			text := func(actions []Action) string {
				var lines []string
				for _, a := range actions {
					if a.Verb != Keep {
						lines = append(lines, a.String())
					}
				}
				return strings.Join(lines, "\n")
			}
			same(t, "actions", text(p.Actions), strings.Trim(tt.want, "\n"))
			same(t, "foreign", text(p.Foreign), strings.Trim(tt.foreign, "\n"))
			if tt.want == "" {
				if p.Changes() {
					t.Error("the plan changes the host")
				}
				apply(t, h, p)
				same(t, "host", h.text(), was)
			}
		})
	}
}
