// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Who may send, by what the config and the kernel's tables say.
func TestSenders(t *testing.T) {
	const eth2 = 20
	mac := func(b byte) fdb.MAC { return fdb.MAC{2, 0, 0, 0, 9, b} }
	a := netip.MustParseAddr
	flood := func(dst string) kernel.FDBEntry {
		return kernel.FDBEntry{Link: vxIndex, Self: true, Static: true, Dst: a(dst)}
	}
	extern := func(m byte, dst string) kernel.FDBEntry {
		return kernel.FDBEntry{MAC: mac(m), Link: vxIndex, Self: true, Extern: true, Dst: a(dst)}
	}
	list := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	remotes := func(n *network) { n.cfg.Remotes = []netip.Addr{a("192.0.2.12"), a("192.0.2.13")} }
	for _, tt := range []struct {
		name   string
		change func(*view, *network)
		want   []netip.Prefix
		follow bool
		off    bool
	}{
		{"remotes", func(_ *view, n *network) { remotes(n) }, list("192.0.2.12/32", "192.0.2.13/32"), false, false},
		{"remotes and static entries", func(_ *view, n *network) {
			remotes(n)
			n.cfg.FDB = []config.StaticEntry{{MAC: mac(1), VTEP: a("198.51.100.1")}, {MAC: mac(2), VTEP: a("192.0.2.12")}}
		}, list("192.0.2.12/32", "192.0.2.13/32", "198.51.100.1/32"), false, false},
		{"a list replaces what the kernel's table says", func(v *view, n *network) {
			remotes(n)
			v.setFDB(flood("198.51.100.2"))
			n.cfg.Sources = config.Sources{Given: true, Prefixes: list("203.0.113.0/24")}
		}, list("192.0.2.12/32", "192.0.2.13/32", "203.0.113.0/24"), false, false},
		{"any", func(_ *view, n *network) { n.cfg.Sources = config.Sources{Given: true, Any: true} }, nil, false, true},
		{"written into the table", func(v *view, n *network) {
			remotes(n)
			v.setFDB(flood("198.51.100.2"))
			v.setFDB(extern(3, "198.51.100.3"))
			v.setFDB(extern(4, "198.51.100.3"))
		}, list("192.0.2.12/32", "192.0.2.13/32", "198.51.100.2/32", "198.51.100.3/32"), false, false},
		{"and taken out again", func(v *view, n *network) {
			remotes(n)
			v.setFDB(flood("198.51.100.2"))
			v.delFDB(flood("198.51.100.2"))
			v.setFDB(extern(3, "198.51.100.3"))
			v.setFDB(extern(4, "198.51.100.3"))
			v.delFDB(extern(3, "198.51.100.3"))
		}, list("192.0.2.12/32", "192.0.2.13/32", "198.51.100.3/32"), false, false},
		{"and changed", func(v *view, n *network) {
			remotes(n)
			v.setFDB(extern(3, "198.51.100.3"))
			v.setFDB(extern(3, "198.51.100.4"))
		}, list("192.0.2.12/32", "192.0.2.13/32", "198.51.100.4/32"), false, false},
		{"a learnt entry names nobody", func(v *view, n *network) {
			remotes(n)
			v.setFDB(kernel.FDBEntry{MAC: mac(5), Link: vxIndex, Self: true, Dst: a("198.51.100.5")})
		}, list("192.0.2.12/32", "192.0.2.13/32"), false, false},
		{"a flood entry to a group names nobody", func(v *view, n *network) {
			remotes(n)
			v.setFDB(flood("239.1.1.1"))
		}, list("192.0.2.12/32", "192.0.2.13/32"), false, false},
		{"next hops", func(v *view, n *network) {
			remotes(n)
			v.nextHops[7] = kernel.NextHop{Group: []uint32{8, 9}, FDB: true}
			v.nextHops[8] = kernel.NextHop{Gateway: a("198.51.100.8"), FDB: true}
			v.nextHops[9] = kernel.NextHop{Gateway: a("198.51.100.9"), FDB: true}
			v.setFDB(kernel.FDBEntry{MAC: mac(6), Link: vxIndex, Self: true, Extern: true, NextHop: 7})
		}, list("192.0.2.12/32", "192.0.2.13/32", "198.51.100.8/32", "198.51.100.9/32"), false, false},
		{"a group", func(_ *view, n *network) { n.cfg.Group = a("239.1.1.236") }, list("192.0.2.0/24"), false, false},
		{"a control plane", func(v *view, _ *network) { v.setFDB(extern(3, "198.51.100.3")) }, list("192.0.2.0/24", "198.51.100.3/32"), true, false},
		{"a group without a subnet", func(v *view, n *network) {
			n.cfg.Group = a("239.1.1.236")
			v.subnets = []kernel.Address{{Link: eth2, Prefix: netip.MustParsePrefix("192.0.2.11/32")}}
		}, nil, false, true},
		{"IPv6", func(_ *view, n *network) { n.local = a("2001:db8::11"); n.cfg.Group = a("ff05::1") }, list("2001:db8::/64"), false, false},
		{"IPv6 link-local", func(_ *view, n *network) { n.local = a("fe80::11"); n.cfg.Group = a("ff02::1") }, list("fe80::/64"), false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, n := sample()
			n.cfg.Underlay.Device = "eth2"
			v.setLink(kernel.Link{Index: eth2, Name: "eth2"})
			for i, p := range []string{"192.0.2.11/24", "2001:db8::11/64", "fe80::11/64", "10.0.0.1/8"} {
				link := eth2
				if i == 3 {
					link = brIndex
				}
				v.subnets = append(v.subnets, kernel.Address{Link: link, Prefix: netip.MustParsePrefix(p)})
			}
			n.resolve(v)
			tt.change(v, n)
			got := n.senders(v)
			if !slices.Equal(got.prefixes, tt.want) || got.check.Follow != tt.follow || got.check.Off != tt.off || (got.why != "") != tt.off {
				t.Errorf("got %+v, want %v, follow %v, off %v", got, tt.want, tt.follow, tt.off)
			}
		})
	}
}

func TestLocalAddresses(t *testing.T) {
	v := newView()
	for _, p := range []string{"192.0.2.11/24", "198.51.100.5/31", "203.0.113.1/32", "2001:db8::11/64", "10.1.2.3/9"} {
		v.subnets = append(v.subnets, kernel.Address{Prefix: netip.MustParsePrefix(p)})
	}
	want := "[192.0.2.11/32 192.0.2.255/32 198.51.100.5/32 203.0.113.1/32 2001:db8::11/128 10.1.2.3/32 10.127.255.255/32]"
	if got := fmt.Sprint(v.local()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
