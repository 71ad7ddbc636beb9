// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

type edit = func(*config.Config, *config.Network)

var plainBridge = kernel.Bridge{STP: false, ForwardDelay: 15 * time.Second, Ageing: 300 * time.Second}

func TestPlanText(t *testing.T) {
	tests := []struct {
		name string
		host []func(*host)
		edit edit
		opts Options
		want string
	}{
		{name: "empty host", want: `
create bridge br-mgmt: stp off, forward_delay 0s, ageing 5m0s, mtu 1450 (not there)
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, mtu 1450 (not there)
add port encap-mgmt of br-mgmt
add remote 192.0.2.12 on encap-mgmt
`},
		{name: "everything given", edit: func(c *config.Config, n *config.Network) {
			n.Underlay.TTL, n.MTU, n.Ageing = 5, 1400, 0
			n.Underlay.Local = ip("192.0.2.111")
			n.Bridge = config.Bridge{Name: "br-mgmt", Addresses: []netip.Prefix{prefix("172.29.236.1/24")}, STP: ptr(true), ForwardDelay: ptr(4 * time.Second)}
			n.Remotes, n.Group = nil, ip("239.1.1.236")
			n.FDB = []config.StaticEntry{{MAC: mac("02:00:00:00:00:0c"), VTEP: ip("192.0.2.12")}}
		}, want: `
create bridge br-mgmt: stp on, forward_delay 4s, ageing 8760h0m0s, mtu 1400 (not there)
add address 172.29.236.1/24 on br-mgmt
create vxlan encap-mgmt: vni 236, local 192.0.2.111, device eth2, port 4789, group 239.1.1.236, ttl 5, mtu 1400 (not there)
add port encap-mgmt of br-mgmt
add static 02:00:00:00:00:0c -> 192.0.2.12 on encap-mgmt
`},
		{name: "stp without a forward delay", edit: func(c *config.Config, n *config.Network) {
			n.Bridge.STP, n.Remotes = ptr(true), nil
		}, want: `
create bridge br-mgmt: stp on, forward_delay 15s, ageing 5m0s, mtu 1450 (not there)
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, mtu 1450 (not there)
add port encap-mgmt of br-mgmt
`},
		{name: "adopt as it is", host: []func(*host){
			withBridge("br-mgmt", plainBridge, "172.29.236.1/24"), withVXLAN("encap-mgmt", "br-mgmt", nil),
			withFDB("encap-mgmt", "00:00:00:00:00:00", "192.0.2.12", false), up,
		}, edit: func(c *config.Config, n *config.Network) {
			n.Bridge.Addresses = []netip.Prefix{prefix("172.29.236.1/24")}
		}, want: `
keep bridge br-mgmt (adopted)
keep address 172.29.236.1/24 on br-mgmt
keep vxlan encap-mgmt (adopted)
keep port encap-mgmt of br-mgmt
keep remote 192.0.2.12 on encap-mgmt
`},
		{name: "adopt and change", host: []func(*host){
			withBridge("br-mgmt", kernel.Bridge{STP: true, ForwardDelay: 15 * time.Second, Ageing: 20 * time.Second}),
			withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.TTL, v.Learning, v.Ageing = 1, false, 0 }),
			withFDB("encap-mgmt", "00:00:00:00:00:00", "192.0.2.99", false),
			withFDB("encap-mgmt", "02:00:00:00:00:0c", "192.0.2.98", false),
			withFDB("encap-mgmt", "02:00:00:00:00:0d", "192.0.2.98", false),
			withFDB("encap-mgmt", "02:00:00:00:00:0e", "192.0.2.98", true),
		}, edit: func(c *config.Config, n *config.Network) {
			n.Bridge.STP, n.Bridge.ForwardDelay, n.Underlay.TTL, n.MTU = ptr(false), ptr(time.Duration(0)), 5, 1300
			n.FDB = []config.StaticEntry{{MAC: mac("02:00:00:00:00:0c"), VTEP: ip("192.0.2.12")}, {MAC: mac("02:00:00:00:00:0e"), VTEP: ip("192.0.2.12")}}
		}, want: `
change bridge br-mgmt stp: on -> off
change bridge br-mgmt forward_delay: 15s -> 0s
change bridge br-mgmt ageing: 20s -> 5m0s
change bridge br-mgmt mtu: 1500 -> 1300
change bridge br-mgmt state: down -> up
change vxlan encap-mgmt ttl: 1 -> 5
change vxlan encap-mgmt learning: off -> on
change vxlan encap-mgmt ageing: 0s -> 5m0s
change vxlan encap-mgmt mtu: 1400 -> 1300
change vxlan encap-mgmt state: down -> up
add port encap-mgmt of br-mgmt
keep remote 192.0.2.99 on encap-mgmt (not made by vxbpf)
add remote 192.0.2.12 on encap-mgmt
keep static 02:00:00:00:00:0d -> 192.0.2.98 on encap-mgmt (not made by vxbpf)
change static 02:00:00:00:00:0c on encap-mgmt: 192.0.2.98 -> 192.0.2.12 (not made by vxbpf; put back on unload)
add static 02:00:00:00:00:0e -> 192.0.2.12 on encap-mgmt
`},
		{name: "recreate what others made", opts: Options{Recreate: true}, host: []func(*host){
			withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", func(v *kernel.VXLAN) { v.Port, v.VNI = 8472, 10 }),
			withFDB("encap-mgmt", "00:00:00:00:00:00", "192.0.2.99", false), up,
		}, want: `
keep bridge br-mgmt (adopted)
recreate vxlan encap-mgmt: vni 10, port 8472 -> vni 236, port 4789 (cannot be changed in place; 1 forwarding entry not made by vxbpf is lost)
add port encap-mgmt of br-mgmt
add remote 192.0.2.12 on encap-mgmt
`},
		{name: "in place where the kernel can", opts: Options{InPlace: []Attr{AttrGroup, AttrLocal, AttrDevice}}, host: []func(*host){
			withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", func(v *kernel.VXLAN) {
				v.Group, v.Local, v.Device = ip("239.0.0.1"), ip("198.51.100.7"), 2
			}), up,
		}, edit: func(c *config.Config, n *config.Network) {
			n.Remotes, n.Group, n.Underlay.Local = nil, ip("239.0.0.2"), ip("192.0.2.11")
		}, want: `
keep bridge br-mgmt (adopted)
change vxlan encap-mgmt device: eth0 -> eth2
change vxlan encap-mgmt group: 239.0.0.1 -> 239.0.0.2
change vxlan encap-mgmt local: 198.51.100.7 -> 192.0.2.11
keep port encap-mgmt of br-mgmt
`},
		{name: "a local address left to the kernel is the first one", host: []func(*host){
			withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", nil), up,
		}, edit: func(c *config.Config, n *config.Network) { n.Underlay.Local, n.Remotes = ip("192.0.2.11"), nil }, want: `
keep bridge br-mgmt (adopted)
keep vxlan encap-mgmt (adopted)
keep port encap-mgmt of br-mgmt
`},
		{name: "IPv6 underlay", edit: func(c *config.Config, n *config.Network) { n.Remotes = []netip.Addr{ip("2001:db8:2::12")} }, want: `
create bridge br-mgmt: stp off, forward_delay 0s, ageing 5m0s, mtu 1430 (not there)
create vxlan encap-mgmt: vni 236, local 2001:db8:2::11, device eth2, port 4789, mtu 1430 (not there)
add port encap-mgmt of br-mgmt
add remote 2001:db8:2::12 on encap-mgmt
`},
		{name: "every outer header field", edit: func(c *config.Config, n *config.Network) {
			n.Underlay.TTLInherit, n.Underlay.TOS, n.Underlay.DF, n.Underlay.UDPChecksum = true, 16, config.DFInherit, ptr(true)
			n.Underlay.SourceLow, n.Underlay.SourceHigh, n.Remotes = 40000, 50000, nil
		}, want: `
create bridge br-mgmt: stp off, forward_delay 0s, ageing 5m0s, mtu 1450 (not there)
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, ttl inherit, tos 0x10, df inherit, source_ports [40000, 50000], udp_checksum on, mtu 1450 (not there)
add port encap-mgmt of br-mgmt
`},
		{name: "every outer header field of IPv6", edit: func(c *config.Config, n *config.Network) {
			n.Remotes, n.Underlay.UDPChecksum, n.Underlay.FlowLabel, n.Underlay.TOSInherit = []netip.Addr{ip("2001:db8:2::12")}, ptr(false), 0x12345, true
		}, want: `
create bridge br-mgmt: stp off, forward_delay 0s, ageing 5m0s, mtu 1430 (not there)
create vxlan encap-mgmt: vni 236, local 2001:db8:2::11, device eth2, port 4789, tos inherit, flow_label 0x12345, udp_checksum off, mtu 1430 (not there)
add port encap-mgmt of br-mgmt
add remote 2001:db8:2::12 on encap-mgmt
`},
		{name: "what is not given is left as found", host: []func(*host){withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", unusual), up},
			edit: func(c *config.Config, n *config.Network) { n.Remotes = nil }, want: `
keep bridge br-mgmt (adopted)
keep vxlan encap-mgmt (adopted)
keep port encap-mgmt of br-mgmt
`},
		{name: "what is given as found", host: []func(*host){withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", unusual), up},
			edit: func(c *config.Config, n *config.Network) {
				n.Remotes, n.Underlay.TTLInherit, n.Underlay.TOS, n.Underlay.DF, n.Underlay.UDPChecksum = nil, true, 16, config.DFSet, ptr(true)
				n.Underlay.SourceLow, n.Underlay.SourceHigh, n.Underlay.Given = 100, 200, config.GivenTOS|config.GivenDF
			}, want: `
keep bridge br-mgmt (adopted)
keep vxlan encap-mgmt (adopted)
keep port encap-mgmt of br-mgmt
`},
		{name: "zero is given", host: []func(*host){withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", unusual), up},
			edit: func(c *config.Config, n *config.Network) {
				n.Remotes, n.Underlay.DF, n.Underlay.Given = nil, config.DFUnset, config.GivenTOS|config.GivenDF|config.GivenFlowLabel
			}, want: `
keep bridge br-mgmt (adopted)
change vxlan encap-mgmt tos: 0x10 -> 0x0
change vxlan encap-mgmt df: set -> unset
keep port encap-mgmt of br-mgmt
`},
		{name: "recreate for what cannot be changed in place", opts: Options{Recreate: true},
			host: []func(*host){withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", unusual), up},
			edit: func(c *config.Config, n *config.Network) {
				n.Remotes, n.Underlay.TTL, n.Underlay.UDPChecksum, n.Underlay.SourceLow, n.Underlay.SourceHigh = nil, 9, ptr(false), 1, 2
			}, want: `
keep bridge br-mgmt (adopted)
recreate vxlan encap-mgmt: ttl inherit, source_ports [100, 200], udp_checksum on -> ttl 9, source_ports [1, 2], udp_checksum off (cannot be changed in place)
add port encap-mgmt of br-mgmt
`},
		{name: "flow label in place", host: []func(*host){withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", func(v *kernel.VXLAN) {
			v.Local, v.LabelInherit, v.TOS = ip("2001:db8:2::11"), true, tosInherit
		}), up}, edit: func(c *config.Config, n *config.Network) {
			n.Remotes, n.Underlay.Local, n.Underlay.FlowLabel, n.Underlay.TOS = nil, ip("2001:db8:2::11"), 7, 32
			n.Underlay.Given = config.GivenTOS | config.GivenFlowLabel
		}, want: `
keep bridge br-mgmt (adopted)
change vxlan encap-mgmt tos: inherit -> 0x20
change vxlan encap-mgmt flow_label: inherit -> 0x7
keep port encap-mgmt of br-mgmt
`},
		{name: "no checksum over IPv6 takes both ways", opts: Options{Recreate: true}, host: []func(*host){
			withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", func(v *kernel.VXLAN) { v.Local = ip("2001:db8:2::11") }), up,
		}, edit: func(c *config.Config, n *config.Network) {
			n.Remotes, n.Underlay.Local, n.Underlay.UDPChecksum = nil, ip("2001:db8:2::11"), ptr(false)
		}, want: `
keep bridge br-mgmt (adopted)
recreate vxlan encap-mgmt: udp_checksum on, udp6zerocsumrx off -> udp_checksum off, udp6zerocsumrx on (cannot be changed in place)
add port encap-mgmt of br-mgmt
`},
		{name: "someone else refuses zero checksums", host: []func(*host){withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.VNI, v.Local = 9, ip("2001:db8:2::11") }), up},
			edit: func(c *config.Config, n *config.Network) { n.Remotes = []netip.Addr{ip("2001:db8:2::12")} }, want: `
create bridge br-mgmt: stp off, forward_delay 0s, ageing 5m0s, mtu 1430 (not there)
create vxlan encap-mgmt: vni 236, local 2001:db8:2::11, device eth2, port 4789, mtu 1430 (not there)
add port encap-mgmt of br-mgmt
add remote 2001:db8:2::12 on encap-mgmt
notice: vxlan link vx0 on UDP port 4789 refuses IPv6 packets without a UDP checksum, so encap-mgmt must too: make it again with udp6zerocsumrx, change port, or delete vx0 (ip link del vx0)
`},
		{name: "ports too large", host: []func(*host){
			withBridge("br-mgmt", plainBridge), withLink("veth1", "veth", "br-mgmt"), withLink("veth0", "veth", "br-mgmt"), withLink("veth2", "veth", ""),
			func(h *host) {
				b, _ := h.s.Link("br-mgmt")
				h.must(kernel.Link{Name: "tap0", Kind: "tun", MTU: 9000, Master: b.Index})
				h.must(kernel.Link{Name: "tap1", Kind: "tun", MTU: 1450, Master: b.Index})
			}, up,
		}, edit: func(c *config.Config, n *config.Network) { n.Remotes = nil }, want: `
keep bridge br-mgmt (adopted)
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, mtu 1450 (not there)
add port encap-mgmt of br-mgmt
notice: ports veth0, veth1 have MTU 1500, network mgmt carries 1450: lower them, raise the underlay, or set mss_clamp: auto
notice: port tap0 has MTU 9000, network mgmt carries 1450: lower it, raise the underlay, or set mss_clamp: auto
`},
		{name: "ports too large for a tag", host: []func(*host){withBridge("br-mgmt", plainBridge), func(h *host) {
			b, _ := h.s.Link("br-mgmt")
			h.must(kernel.Link{Name: "tap0", Kind: "tun", MTU: 1450, Master: b.Index})
			h.must(kernel.Link{Name: "tap1", Kind: "tun", MTU: 1446, Master: b.Index})
		}, up}, edit: func(c *config.Config, n *config.Network) { n.Remotes, n.VLANTags = nil, 1 }, want: `
keep bridge br-mgmt (adopted)
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, mtu 1446 (not there)
add port encap-mgmt of br-mgmt
notice: port tap0 has MTU 1450, network mgmt carries 1446: lower it, raise the underlay, or set mss_clamp: auto
`},
		{name: "ports too large, clamped", host: []func(*host){withBridge("br-mgmt", plainBridge), withLink("veth1", "veth", "br-mgmt"), up},
			edit: func(c *config.Config, n *config.Network) { n.Remotes, n.MSSClamp = nil, 1410 }, want: `
keep bridge br-mgmt (adopted)
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, mtu 1450 (not there)
add port encap-mgmt of br-mgmt
`},
		{name: "ports too large, clamped too high", host: []func(*host){withBridge("br-mgmt", plainBridge), withLink("veth1", "veth", "br-mgmt"), up},
			edit: func(c *config.Config, n *config.Network) { n.Remotes, n.MSSClamp = nil, 1411 }, want: `
keep bridge br-mgmt (adopted)
create vxlan encap-mgmt: vni 236, local 192.0.2.11, device eth2, port 4789, mtu 1450 (not there)
add port encap-mgmt of br-mgmt
notice: port veth1 has MTU 1500, network mgmt carries 1450: lower it, raise the underlay, or set mss_clamp: auto
`},
		{name: "a device with IPv6 only", host: []func(*host){func(h *host) {
			h.must(kernel.Link{Name: "eth6", MTU: 9000}, "fe80::6/64", "2001:db8:6::11/64")
		}}, edit: func(c *config.Config, n *config.Network) { n.Underlay.Device, n.Remotes = "eth6", nil }, want: `
create bridge br-mgmt: stp off, forward_delay 0s, ageing 5m0s, mtu 8930 (not there)
create vxlan encap-mgmt: vni 236, local 2001:db8:6::11, device eth6, port 4789, mtu 8930 (not there)
add port encap-mgmt of br-mgmt
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(tt.host...)
			before := h.text()
			c := mgmt()
			if tt.edit != nil {
				tt.edit(c, &c.Networks[0])
			}
			p := plan(t, h, c, Owned{}, tt.opts)
			same(t, "plan", p.String(), strings.TrimPrefix(tt.want, "\n"))
			o := apply(t, h, p)
			if again := plan(t, h, c, o, tt.opts); again.Changes() {
				t.Fatalf("not idempotent:\n%s", again)
			}
			extern := slices.ContainsFunc(newHost(tt.host...).s.FDB, func(e kernel.FDBEntry) bool { return e.Extern })
			if o = apply(t, h, Unload(o, h.s, UnloadOptions{})); !o.Empty() {
				t.Fatalf("owned after unload: %+v", o)
			}
			if !extern { // a control plane puts its entries back itself
				same(t, "host after unload", h.text(), before)
			}
		})
	}
}

// unusual has no outer header field as a new link would.
func unusual(v *kernel.VXLAN) {
	v.TTLInherit, v.TOS, v.DF, v.SrcLow, v.SrcHigh, v.UDPCsum = true, 16, 1, 100, 200, true
}

func up(h *host) {
	for i := range h.s.Links {
		h.s.Links[i].Up = true
	}
}

func TestConflicts(t *testing.T) {
	tests := []struct {
		name string
		host []func(*host)
		edit edit
		opts Options
		want string
	}{
		{name: "VNI in use", host: []func(*host){withVXLAN("vx0", "", nil)},
			want: "networks[0].vni: vxlan link vx0 already uses VNI 236 on UDP port 4789; set link: vx0 to adopt it, change vni or port, or delete it (ip link del vx0)"},
		{name: "same VNI on another port is fine", host: []func(*host){withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.Port = 8472 })}},
		{name: "external link on the port", host: []func(*host){withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.External, v.VNI = true, 0 })},
			want: "networks[0].port: vxlan link vx0 already takes every VNI on UDP port 4789 (external); change port, or delete it (ip link del vx0)"},
		{name: "bridge name taken", host: []func(*host){withLink("br-mgmt", "dummy", "")},
			want: "networks[0].bridge: link br-mgmt is in the way: its kind is dummy, not bridge; rename or delete it, or choose another bridge name"},
		{name: "bridge is hardware", edit: func(c *config.Config, n *config.Network) { n.Bridge.Name = "eth0" },
			want: "networks[0].bridge: link eth0 is in the way: its kind is hardware, not bridge; rename or delete it, or choose another bridge name"},
		{name: "link name taken", host: []func(*host){withLink("encap-mgmt", "dummy", "")},
			want: "networks[0].link: link encap-mgmt is in the way: its kind is dummy, not vxlan; rename or delete it, or set link: to another name"},
		{name: "port of another bridge", host: []func(*host){withBridge("br-old", plainBridge), withVXLAN("encap-mgmt", "br-old", nil)},
			want: "networks[0].bridge: vxlan link encap-mgmt is a port of br-old, not of br-mgmt; take it out (ip link set encap-mgmt nomaster), or set bridge: br-old"},
		{name: "no underlay device", edit: func(c *config.Config, n *config.Network) { c.Underlay.Device, n.Underlay.Device = "eth9", "eth9" },
			want: "underlay.device: underlay device eth9 does not exist; interfaces with an IPv4 address: eth0, eth2"},
		{name: "no underlay device of the network", edit: func(c *config.Config, n *config.Network) { n.Underlay.Device = "eth9" },
			want: "networks[0].device: underlay device eth9 does not exist; interfaces with an IPv4 address: eth0, eth2"},
		{name: "no address", host: []func(*host){withLink("eth9", "", "")}, edit: func(c *config.Config, n *config.Network) { n.Underlay.Device = "eth9" },
			want: "networks[0].device: underlay device eth9 has no usable IPv4 address; wait for its address (is DHCP up?), or set underlay.local"},
		{name: "tentative address", host: []func(*host){func(h *host) {
			i := h.must(kernel.Link{Name: "eth9", MTU: 1500})
			h.s.Addresses = append(h.s.Addresses, kernel.Address{Link: i, Prefix: prefix("2001:db8:9::1/64"), Tentative: true})
		}}, edit: func(c *config.Config, n *config.Network) {
			n.Underlay.Device, n.Remotes = "eth9", []netip.Addr{ip("2001:db8:9::2")}
		}, want: "networks[0].device: underlay device eth9 has no usable IPv6 address; wait for its address (is DHCP up?), or set underlay.local"},
		{name: "local address elsewhere", edit: func(c *config.Config, n *config.Network) { n.Underlay.Local = ip("192.0.2.1") },
			want: "networks[0].local: local address 192.0.2.1 is on no interface of this host; eth2 has 192.0.2.11, 192.0.2.111, fe80::11, 2001:db8:2::11"},
		{name: "families", edit: func(c *config.Config, n *config.Network) { n.Underlay.Local = ip("2001:db8:2::11") },
			want: "networks[0].local: local address 2001:db8:2::11 and 192.0.2.12 of network mgmt are of different families; give the network a local address of its own"},
		{name: "remote is local", edit: func(c *config.Config, n *config.Network) { n.Remotes = append(n.Remotes, ip("192.0.2.11")) },
			want: "networks[0].remotes[1]: remote 192.0.2.11 is this host's own local address; remove it from the list"},
		{name: "static goes to local", edit: func(c *config.Config, n *config.Network) {
			n.FDB = []config.StaticEntry{{MAC: mac("02:00:00:00:00:0c"), VTEP: ip("192.0.2.11")}}
		}, want: "networks[0].fdb[0].remote: static entry 02:00:00:00:00:0c goes to 192.0.2.11, this host's own local address; remove it, or name the host where the MAC lives"},
		{name: "mtu", edit: func(c *config.Config, n *config.Network) { n.MTU = 1500 },
			want: "networks[0].mtu: mtu 1500 does not fit: the underlay eth2 carries 1500, less 50 bytes of encapsulation leaves 1450; set mtu: 1450 or less, or raise the MTU of eth2"},
		{name: "mtu with tags", edit: func(c *config.Config, n *config.Network) { n.MTU, n.VLANTags = 1443, 2 },
			want: "networks[0].mtu: mtu 1443 does not fit: the underlay eth2 carries 1500, less 50 + 8 bytes of encapsulation and VLAN tags leaves 1442; set mtu: 1442 or less, or raise the MTU of eth2"},
		{name: "underlay mtu", edit: func(c *config.Config, n *config.Network) { n.Underlay.MTU = 9000 },
			want: "underlay.mtu: underlay mtu 9000 is more than eth2 has: 1500; set mtu: 1500 or less, or raise the MTU of eth2"},
		{name: "forward delay with stp", edit: func(c *config.Config, n *config.Network) {
			n.Bridge.STP, n.Bridge.ForwardDelay = ptr(true), ptr(time.Duration(0))
		}, want: "networks[0].bridge.forward_delay: forward_delay 0s of br-mgmt is impossible while STP is on; set 2s to 30s, or stp: false"},
		{name: "needs recreation", host: []func(*host){withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.VNI, v.Port = 10, 8472 })},
			want: "networks[0].vni: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: vni is 10, the config wants 236; port is 8472, the config wants 4789; load with --recreate to replace it, or change the config"},
		{name: "group needs recreation", host: []func(*host){withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.Group = ip("239.0.0.1") })},
			want: "networks[0].group: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: group is 239.0.0.1, the config wants none; load with --recreate to replace it, or change the config"},
		{name: "a group cannot be taken away in place", opts: Options{InPlace: []Attr{AttrGroup}},
			host: []func(*host){withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.Group = ip("239.0.0.1") })},
			want: "networks[0].group: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: group is 239.0.0.1, the config wants none; load with --recreate to replace it, or change the config"},
		{name: "local needs recreation", host: []func(*host){withVXLAN("encap-mgmt", "", nil)},
			edit: func(c *config.Config, n *config.Network) { n.Underlay.Local = ip("192.0.2.111") },
			want: "networks[0].local: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: local is none, the config wants 192.0.2.111; load with --recreate to replace it, or change the config"},
		{name: "local of the link is gone", host: []func(*host){withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.Local = ip("192.0.2.77") })},
			want: "networks[0].local: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: local is 192.0.2.77, the config wants 192.0.2.11; load with --recreate to replace it, or change the config"},
		{name: "ttl inherit", host: []func(*host){withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.TTLInherit = true })},
			edit: func(c *config.Config, n *config.Network) { n.Underlay.TTL = 5 },
			want: "networks[0].ttl: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: ttl is inherit, the config wants 5; load with --recreate to replace it, or change the config"},
		{name: "ttl inherit wanted", host: []func(*host){withVXLAN("encap-mgmt", "", nil)},
			edit: func(c *config.Config, n *config.Network) { n.Underlay.TTLInherit = true },
			want: "networks[0].ttl: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: ttl is 0, the config wants inherit; load with --recreate to replace it, or change the config"},
		{name: "source ports", host: []func(*host){withVXLAN("encap-mgmt", "", nil)},
			edit: func(c *config.Config, n *config.Network) { n.Underlay.SourceLow, n.Underlay.SourceHigh = 1, 2 },
			want: "networks[0].source_ports: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: source_ports is system, the config wants [1, 2]; load with --recreate to replace it, or change the config"},
		{name: "udp checksum", host: []func(*host){withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.UDPCsum = true })},
			edit: func(c *config.Config, n *config.Network) { n.Underlay.UDPChecksum = ptr(false) },
			want: "networks[0].udp_checksum: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: udp_checksum is on, the config wants off; load with --recreate to replace it, or change the config"},
		{name: "df where the host says IPv6", host: []func(*host){withLink("eth6", "", ""), func(h *host) {
			h.s.Addresses = append(h.s.Addresses, kernel.Address{Link: h.next, Prefix: prefix("2001:db8:6::11/64")})
		}}, edit: func(c *config.Config, n *config.Network) {
			n.Underlay.Device, n.Remotes, n.Underlay.DF = "eth6", nil, config.DFSet
		}, want: "networks[0].df: df set is for an IPv4 underlay, and that of network mgmt is IPv6; give the network df: unset"},
		{name: "flow label where the host says IPv4", edit: func(c *config.Config, n *config.Network) {
			n.Remotes, n.Underlay.FlowLabel = nil, 5
		}, want: "networks[0].flow_label: flow_label 0x5 is for an IPv6 underlay, and that of network mgmt is IPv4; give the network flow_label: 0"},
		{name: "zero checksums are refused", host: []func(*host){withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.VNI, v.Local = 9, ip("2001:db8:2::11") }), up},
			edit: func(c *config.Config, n *config.Network) {
				n.Remotes, n.Underlay.UDPChecksum = []netip.Addr{ip("2001:db8:2::12")}, ptr(false)
			},
			want: "networks[0].udp_checksum: vxlan link vx0 on UDP port 4789 refuses IPv6 packets without a UDP checksum; make it again with udp6zerocsumrx, change port, or delete vx0 (ip link del vx0)"},
		{name: "a link that is down refuses nothing", host: []func(*host){withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.VNI, v.Local = 9, ip("2001:db8:2::11") })},
			edit: func(c *config.Config, n *config.Network) {
				n.Remotes, n.Underlay.UDPChecksum = []netip.Addr{ip("2001:db8:2::12")}, ptr(false)
			}},
		{name: "adopted links that cannot both be up", host: []func(*host){
			withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.VNI, v.Local = 9, ip("2001:db8:2::11") }), up,
			withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.Local, v.UDPZeroCsum6RX = ip("2001:db8:2::11"), true }),
		}, edit: func(c *config.Config, n *config.Network) { n.Remotes, n.Underlay.Local = nil, ip("2001:db8:2::11") },
			want: "networks[0].port: of vxlan links encap-mgmt and vx0 on UDP port 4789, one takes IPv6 packets without a UDP checksum and one does not; change port, or delete vx0 (ip link del vx0)"},
		{name: "gbp on the port", host: []func(*host){withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.VNI, v.GBP = 9, true }), up},
			want: "networks[0].port: vxlan link vx0 on UDP port 4789 is in gbp mode, and links on one port must agree; change port, or delete vx0 (ip link del vx0)"},
		{name: "external under our name", host: []func(*host){withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.External, v.VNI = true, 0 })},
			want: "networks[0].link: vxlan link encap-mgmt was not made by vxbpf and cannot be changed in place: external is on, the config wants off; load with --recreate to replace it, or change the config"},
		{name: "all at once", host: []func(*host){withLink("br-mgmt", "dummy", ""), withVXLAN("vx0", "", nil)},
			edit: func(c *config.Config, n *config.Network) { n.MTU = 1500 },
			want: `networks[0].mtu: mtu 1500 does not fit: the underlay eth2 carries 1500, less 50 bytes of encapsulation leaves 1450; set mtu: 1450 or less, or raise the MTU of eth2
networks[0].bridge: link br-mgmt is in the way: its kind is dummy, not bridge; rename or delete it, or choose another bridge name
networks[0].vni: vxlan link vx0 already uses VNI 236 on UDP port 4789; set link: vx0 to adopt it, change vni or port, or delete it (ip link del vx0)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(tt.host...)
			c := mgmt()
			if tt.edit != nil {
				tt.edit(c, &c.Networks[0])
			}
			p, err := NewPlan(c, h.s, Owned{}, tt.opts)
			got := ""
			if err != nil {
				got = err.Error()
				if p != nil {
					t.Error("a plan beside an error")
				}
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

type position struct{}

func (position) ErrorAt(path, message, hint string) error {
	return fmt.Errorf("%s|%s|%s", path, message, hint)
}

func TestPosition(t *testing.T) {
	c := full()
	c.Underlay.Device = "eth9"
	for i := range c.Networks {
		c.Networks[i].Underlay.Device = "eth9"
	}
	_, err := NewPlan(c, newHost().s, Owned{}, Options{Position: position{}})
	want := "underlay.device|underlay device eth9 does not exist|interfaces with an IPv4 address: eth0, eth2"
	if err == nil || err.Error() != want { // once, not once a network
		t.Errorf("got  %v\nwant %s", err, want)
	}
	var _ Positioner = c
}

func TestJSON(t *testing.T) {
	h := newHost()
	p := plan(t, h, mgmt(), Owned{}, Options{})
	got, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"changes":true,"actions":[` +
		`{"verb":"create","object":"bridge br-mgmt","new":"stp off, forward_delay 0s, ageing 5m0s, mtu 1450","reason":"not there","network":"mgmt"},` +
		`{"verb":"create","object":"vxlan encap-mgmt","new":"vni 236, local 192.0.2.11, device eth2, port 4789, mtu 1450","reason":"not there","network":"mgmt"},` +
		`{"verb":"add","object":"port encap-mgmt of br-mgmt","network":"mgmt"},` +
		`{"verb":"add","object":"remote 192.0.2.12 on encap-mgmt","network":"mgmt"}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	empty, err := json.Marshal(Unload(Owned{}, h.s, UnloadOptions{}))
	if err != nil || string(empty) != `{"changes":false,"actions":[]}` {
		t.Errorf("%s, %v", empty, err)
	}

	h = newHost(withVXLAN("encap-flat", "", func(v *kernel.VXLAN) { v.VNI = 9 }), withFDB("encap-flat", "02:00:00:00:00:0c", "192.0.2.98", false))
	o := load(t, h, full(), Owned{}, Options{Recreate: true})
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var back Owned
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	same(t, "record through JSON", h.names(back), h.names(o))
	before := newHost(withVXLAN("encap-flat", "", func(v *kernel.VXLAN) { v.VNI = 9 }), withFDB("encap-flat", "02:00:00:00:00:0c", "192.0.2.98", false)).text()
	apply(t, h, Unload(back, h.s, UnloadOptions{}))
	same(t, "host", h.text(), before)
}

func TestResolved(t *testing.T) {
	h := newHost(withBridge("br-flat", plainBridge), withVXLAN("encap-flat", "br-flat", func(v *kernel.VXLAN) {
		v.VNI, v.Group, v.Local = 240, ip("239.1.1.240"), ip("192.0.2.111")
	}))
	c := full()
	p := plan(t, h, c, Owned{}, Options{})
	if len(p.Resolved) != 2 {
		t.Fatalf("%d networks", len(p.Resolved))
	}
	a, b := p.Resolved[0], p.Resolved[1]
	if a.Config != &c.Networks[0] || a.Local != ip("192.0.2.11") || a.MTU != 1450 || a.Device.Name != "eth2" || a.V6 {
		t.Errorf("made: %+v", a)
	}
	// What an adopted link has, and nobody said otherwise, stays.
	if b.Local != ip("192.0.2.111") || b.MTU != 1400 {
		t.Errorf("adopted: %+v", b)
	}
}

func TestUDPChecksumOff(t *testing.T) {
	h := newHost()
	load(t, h, mgmt(), Owned{}, Options{})
	if l, _ := h.s.Link("encap-mgmt"); l.VXLAN.UDPCsum || l.VXLAN.UDPZeroCsum6RX || !l.Up || l.VXLAN.Local != ip("192.0.2.11") {
		t.Errorf("%+v", l.VXLAN)
	}
	six := mgmt(func(c *config.Config, n *config.Network) { n.Remotes = []netip.Addr{ip("2001:db8:2::12")} })
	h = newHost()
	o := load(t, h, six, Owned{}, Options{})
	if l, _ := h.s.Link("encap-mgmt"); l.VXLAN.UDPZeroCsum6TX || !l.VXLAN.UDPZeroCsum6RX {
		t.Errorf("%+v", l.VXLAN)
	}
	six.Networks[0].Underlay.UDPChecksum = ptr(false)
	if p := plan(t, h, six, o, Options{}); !strings.Contains(p.String(), "recreate vxlan encap-mgmt: udp_checksum on -> udp_checksum off (cannot be changed in place)\n") {
		t.Errorf("plan:\n%s", p)
	}
	// A link of ours from before it took both.
	h.s.find("encap-mgmt").VXLAN.UDPZeroCsum6RX = false
	six.Networks[0].Underlay.UDPChecksum = nil
	if p := plan(t, h, six, o, Options{}); !strings.Contains(p.String(), "recreate vxlan encap-mgmt: udp6zerocsumrx off -> udp6zerocsumrx on (cannot be changed in place)\n") {
		t.Errorf("plan:\n%s", p)
	}
}

// TestOuterHeaders goes from any set of outer header fields to any other, on a
// link of ours: the result is that of a fresh load.
func TestOuterHeaders(t *testing.T) {
	sets := []func(*config.Underlay){
		func(u *config.Underlay) {},
		func(u *config.Underlay) { u.TTL, u.TOS, u.DF = 9, 16, config.DFSet },
		func(u *config.Underlay) { u.TTLInherit, u.TOSInherit, u.DF = true, true, config.DFInherit },
		func(u *config.Underlay) { u.SourceLow, u.SourceHigh, u.UDPChecksum = 100, 200, ptr(true) },
		func(u *config.Underlay) { u.SourceLow, u.SourceHigh, u.UDPChecksum = 100, 300, ptr(false) },
	}
	with := func(i int) *config.Config {
		return mgmt(func(c *config.Config, n *config.Network) { sets[i](&n.Underlay) })
	}
	for i := range sets {
		fresh := newHost()
		load(t, fresh, with(i), Owned{}, Options{})
		for j := range sets {
			h := newHost()
			o := load(t, h, with(j), Owned{}, Options{})
			o = load(t, h, with(i), o, Options{})
			same(t, fmt.Sprintf("host after %d then %d", j, i), h.text(), fresh.text())
			if p := plan(t, h, with(i), o, Options{}); p.Changes() {
				t.Errorf("%d then %d is not idempotent:\n%s", j, i, p)
			}
		}
	}
}

func TestApplyOrder(t *testing.T) {
	h := newHost()
	load(t, h, full(), Owned{}, Options{})
	got := strings.Join(h.log, "\n")
	want := `create bridge br-mgmt
create bridge br-flat
create vxlan encap-mgmt
create vxlan encap-flat
set master of encap-mgmt to br-mgmt
set master of encap-flat to br-flat
set mtu of br-mgmt to 1450
set mtu of br-flat to 1450
add address 172.29.236.1/24 to br-mgmt
add address 172.29.236.2/24 to br-mgmt
append remote 192.0.2.12 to encap-mgmt
append remote 192.0.2.13 to encap-mgmt
add static 02:00:00:00:00:0c -> 192.0.2.12 to encap-mgmt
set up br-mgmt
set up encap-mgmt
set up br-flat
set up encap-flat`
	same(t, "calls", got, want)
}

func TestReload(t *testing.T) {
	h := newHost()
	start := h.text()
	o := load(t, h, full(), Owned{}, Options{})
	withLink("veth1", "veth", "br-flat")(h)
	withLink("veth2", "veth", "br-flat")(h)
	withFDB("encap-mgmt", "00:00:00:00:00:00", "192.0.2.99", false)(h)
	c := mgmt(func(c *config.Config, n *config.Network) {
		n.Bridge.Addresses = []netip.Prefix{prefix("172.29.236.2/24")}
		n.FDB = []config.StaticEntry{{MAC: mac("02:00:00:00:00:0c"), VTEP: ip("192.0.2.14")}}
		n.Remotes = []netip.Addr{ip("192.0.2.13"), ip("192.0.2.14")}
	})
	p := plan(t, h, c, o, Options{})
	same(t, "plan", p.String(), `delete vxlan encap-flat (no longer in the config, made by vxbpf)
delete bridge br-flat (no longer in the config, made by vxbpf; ports veth1, veth2 lose their bridge)
keep bridge br-mgmt (made by vxbpf)
remove address 172.29.236.1/24 on br-mgmt (no longer in the config)
keep address 172.29.236.2/24 on br-mgmt
change vxlan encap-mgmt ttl: 5 -> 0
keep port encap-mgmt of br-mgmt
remove remote 192.0.2.12 on encap-mgmt (no longer in the config)
keep remote 192.0.2.99 on encap-mgmt (not made by vxbpf)
keep remote 192.0.2.13 on encap-mgmt
add remote 192.0.2.14 on encap-mgmt
change static 02:00:00:00:00:0c on encap-mgmt: 192.0.2.12 -> 192.0.2.14
`)
	o = apply(t, h, p)
	// The address that stays was the second of its subnet, which the kernel
	// drops with the first.
	br, _ := h.s.Link("br-mgmt")
	if got := h.s.AddressesOf(br.Index); !slices.Equal(got, c.Networks[0].Bridge.Addresses) {
		t.Errorf("addresses %v", got)
	}
	if again := plan(t, h, c, o, Options{}); again.Changes() {
		t.Errorf("not idempotent:\n%s", again)
	}
	apply(t, h, Unload(o, h.s, UnloadOptions{}))
	h.s.Links = slices.DeleteFunc(h.s.Links, func(l kernel.Link) bool { return l.Kind == "veth" })
	same(t, "host after unload", h.text(), start)
}

func TestRecreateOurs(t *testing.T) {
	h := newHost()
	o := load(t, h, full(), Owned{}, Options{})
	c := full()
	// The two networks swap their VNIs: both links go before either comes.
	c.Networks[0].VNI, c.Networks[1].VNI = 240, 236
	p := plan(t, h, c, o, Options{})
	if !strings.Contains(p.String(), "recreate vxlan encap-mgmt: vni 236 -> vni 240 (cannot be changed in place)\n") {
		t.Errorf("plan:\n%s", p)
	}
	o = apply(t, h, p)
	fresh := newHost()
	load(t, fresh, c, Owned{}, Options{})
	same(t, "host", h.text(), fresh.text())
	if again := plan(t, h, c, o, Options{}); again.Changes() {
		t.Errorf("not idempotent:\n%s", again)
	}
}

func TestNotOursAnyMore(t *testing.T) {
	h := newHost()
	o := load(t, h, mgmt(), Owned{}, Options{})
	// Someone deletes our link and makes one of the same name.
	l, _ := h.s.Link("encap-mgmt")
	if err := h.DeleteLink(l.Index); err != nil {
		t.Fatal(err)
	}
	withVXLAN("encap-mgmt", "", nil)(h)
	p := Unload(o, h.s, UnloadOptions{})
	same(t, "unload", p.String(), "delete bridge br-mgmt (unload, made by vxbpf)\n")
	apply(t, h, p)
	if _, ok := h.s.Link("encap-mgmt"); !ok {
		t.Error("the link of someone else is gone")
	}
}

func TestOthersChangedItSince(t *testing.T) {
	h := newHost(withBridge("br-mgmt", kernel.Bridge{STP: true, ForwardDelay: 15 * time.Second, Ageing: 300 * time.Second}), up)
	c := mgmt(func(c *config.Config, n *config.Network) { n.Bridge.STP, n.MTU = ptr(false), 1400 })
	o := load(t, h, c, Owned{}, Options{})
	l, _ := h.s.Link("br-mgmt")
	if err := h.SetMTU(l.Index, 1280); err != nil {
		t.Fatal(err)
	}
	p := Unload(o, h.s, UnloadOptions{})
	if !strings.Contains(p.String(), "change bridge br-mgmt stp: off -> on (unload: as found)\n") || strings.Contains(p.String(), "mtu") {
		t.Errorf("unload:\n%s", p)
	}
}

func TestKernelRoundsTimes(t *testing.T) {
	c := mgmt(func(c *config.Config, n *config.Network) { n.Bridge.ForwardDelay = ptr(2010 * time.Millisecond) })
	h := newHost(withBridge("br-mgmt", plainBridge), up)
	o := load(t, h, c, Owned{}, Options{})
	h.s.find("br-mgmt").Bridge.ForwardDelay = 2 * time.Second
	if p := plan(t, h, c, o, Options{}); p.Changes() {
		t.Errorf("plan:\n%s", p)
	}
	if p := Unload(o, h.s, UnloadOptions{}); !strings.Contains(p.String(), "forward_delay: 2.01s -> 15s (unload: as found)\n") {
		t.Errorf("unload:\n%s", p)
	}
}

func TestGivenUpAttributes(t *testing.T) {
	h := newHost(withBridge("br-mgmt", plainBridge), withVXLAN("encap-mgmt", "br-mgmt", func(v *kernel.VXLAN) { v.TTL = 9 }), up)
	c := mgmt(func(c *config.Config, n *config.Network) { n.Underlay.TTL, n.MTU = 5, 1300 })
	o := load(t, h, c, Owned{}, Options{})
	p := plan(t, h, mgmt(), o, Options{})
	same(t, "plan", p.String(), `change bridge br-mgmt mtu: 1300 -> 1500
change vxlan encap-mgmt ttl: 5 -> 9
change vxlan encap-mgmt mtu: 1300 -> 1400
keep port encap-mgmt of br-mgmt
keep remote 192.0.2.12 on encap-mgmt
`)
	if p.Resolved[0].MTU != 1400 {
		t.Errorf("mtu %d", p.Resolved[0].MTU)
	}
	if o = apply(t, h, p); len(o.Changes) != 0 {
		t.Errorf("changes left: %+v", o.Changes)
	}
}

func TestKeepLinks(t *testing.T) {
	h := newHost()
	o := load(t, h, full(), Owned{}, Options{})
	before := h.text()
	p := Unload(o, h.s, UnloadOptions{KeepLinks: true})
	if p.Changes() || !strings.HasPrefix(p.String(), "keep bridge br-flat (unload: left on the host, no longer vxbpf's)\n") {
		t.Errorf("plan:\n%s", p)
	}
	written := o.Clone()
	o, err := Apply(t.Context(), p, h, func(d Delta) error { written.Amend(d); return nil })
	if err != nil || !o.Empty() || !written.Empty() {
		t.Errorf("%+v, %v, written %v", o, err, written)
	}
	same(t, "host", h.text(), before)
}

func TestUnloadNamesVXLANOnTop(t *testing.T) {
	h := newHost()
	o := load(t, h, mgmt(), Owned{}, Options{})
	br, _ := h.s.Link("br-mgmt")
	withVXLAN("vxlan-77", "", func(v *kernel.VXLAN) { v.VNI, v.Device = 77, br.Index })(h)
	p := Unload(o, h.s, UnloadOptions{})
	same(t, "unload", p.String(), `delete vxlan encap-mgmt (unload, made by vxbpf)
delete bridge br-mgmt (unload, made by vxbpf; vxlan link vxlan-77 runs over it, the kernel deletes it too)
`)
}

func TestUnderlayWouldGo(t *testing.T) {
	h := newHost()
	c := mgmt(func(c *config.Config, n *config.Network) {
		n.Bridge.Addresses = []netip.Prefix{prefix("192.0.2.50/32")}
	})
	o := load(t, h, c, Owned{}, Options{})
	d := mgmt(func(c *config.Config, n *config.Network) {
		n.Underlay.Device, n.Bridge.Name, n.Link, n.VNI = "br-mgmt", "br-b", "encap-b", 5
	})
	_, err := NewPlan(d, h.s, o, Options{})
	want := "networks[0].device: underlay device br-mgmt would be deleted by this very config; use a device that vxbpf does not make, or load in two steps"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestReplacedCannotComeBack(t *testing.T) {
	h := newHost(withVXLAN("encap-mgmt", "", func(v *kernel.VXLAN) { v.VNI = 10 }))
	o := load(t, h, mgmt(), Owned{}, Options{Recreate: true})
	c := mgmt(func(c *config.Config, n *config.Network) { n.Link, n.VNI = "encap-b", 10 })
	p := plan(t, h, c, o, Options{})
	if !strings.Contains(p.String(), "delete record of vxlan encap-mgmt (the link that vxbpf replaced cannot come back: network mgmt has its VNI 10)\n") {
		t.Errorf("plan:\n%s", p)
	}
	o = apply(t, h, p)
	if again := plan(t, h, c, o, Options{}); again.Changes() {
		t.Errorf("not idempotent:\n%s", again)
	}
}

// TestReplacedWouldNotComeUp: the socket that it would share has become another.
func TestReplacedWouldNotComeUp(t *testing.T) {
	for name, f := range map[string]func(*kernel.VXLAN){
		"external": func(v *kernel.VXLAN) { v.External, v.VNI = true, 0 },
		"gbp":      func(v *kernel.VXLAN) { v.GBP, v.VNI = true, 10 },
		"zero":     func(v *kernel.VXLAN) { v.UDPZeroCsum6RX, v.VNI = true, 10 },
	} {
		h := newHost(withVXLAN("encap-mgmt", "", f), up)
		before := h.text()
		o := load(t, h, mgmt(), Owned{}, Options{Recreate: true})
		c := mgmt(func(c *config.Config, n *config.Network) { n.Link = "encap-b" })
		p := plan(t, h, c, o, Options{})
		if !strings.Contains(p.String(), "cannot come back: network mgmt has its UDP port 4789 in another mode)\n") {
			t.Errorf("%s: plan:\n%s", name, p)
		}
		apply(t, h.clone(), p)
		apply(t, h, Unload(o, h.s, UnloadOptions{}))
		same(t, name+": unloaded", h.text(), before)
	}
}

func TestNamesChangeKind(t *testing.T) {
	h := newHost()
	start := h.text()
	a := mgmt(func(c *config.Config, n *config.Network) { n.Bridge.Name, n.Link = "x", "y" })
	b := mgmt(func(c *config.Config, n *config.Network) { n.Bridge.Name, n.Link = "y", "x" })
	o := load(t, h, a, Owned{}, Options{})
	o = load(t, h, b, o, Options{})
	fresh := newHost()
	load(t, fresh, b, Owned{}, Options{})
	same(t, "host", h.text(), fresh.text())
	apply(t, h, Unload(o, h.s, UnloadOptions{}))
	same(t, "host after unload", h.text(), start)
}

func TestCancel(t *testing.T) {
	h := newHost()
	before := h.text()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, err := Apply(ctx, plan(t, h, full(), Owned{}, Options{}), h, func(Delta) error {
		if n++; n == 5 {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	same(t, "host", h.text(), before)
}

// reloads are pairs of hosts and configs that together use every step.
func reloads() map[string]struct {
	host []func(*host)
	a, b *config.Config
	opts Options
} {
	type r = struct {
		host []func(*host)
		a, b *config.Config
		opts Options
	}
	empty := &config.Config{}
	changed := full()
	changed.Networks[0].VNI = 99
	changed.Networks[0].Bridge.Addresses = changed.Networks[0].Bridge.Addresses[1:]
	changed.Networks[0].Bridge.STP = ptr(true)
	changed.Networks[1].Remotes = []netip.Addr{ip("192.0.2.14")}
	changed.Networks[1].MTU = 1300
	foreign := []func(*host){
		withBridge("br-mgmt", kernel.Bridge{STP: true, ForwardDelay: 15 * time.Second, Ageing: 20 * time.Second}, "172.29.236.9/24"),
		withLink("veth1", "veth", "br-mgmt"),
		withVXLAN("encap-mgmt", "br-mgmt", func(v *kernel.VXLAN) { v.TTL = 3 }),
		withFDB("encap-mgmt", "00:00:00:00:00:00", "192.0.2.99", false),
		withFDB("encap-mgmt", "02:00:00:00:00:0c", "192.0.2.98", false),
	}
	stpOff := full()
	stpOff.Networks[0].Bridge.STP, stpOff.Networks[0].Bridge.ForwardDelay, stpOff.Networks[0].MTU = ptr(false), ptr(time.Duration(0)), 1300
	other := full()
	other.Networks[0].VNI = 99
	moved := full()
	moved.Networks[0].Bridge.Name = "br-new"
	return map[string]r{
		"fresh":          {nil, empty, full(), Options{}},
		"change":         {nil, full(), changed, Options{}},
		"unload":         {nil, full(), empty, Options{}},
		"adopt":          {foreign, empty, stpOff, Options{}},
		"adopted, leave": {foreign, stpOff, empty, Options{}},
		"recreate":       {foreign, stpOff, other, Options{Recreate: true}},
		"recreated, go":  {foreign, other, empty, Options{Recreate: true}},
		"move":           {nil, full(), moved, Options{}},
	}
}

func TestRollBack(t *testing.T) {
	for name, tt := range reloads() {
		t.Run(name, func(t *testing.T) {
			start := newHost(tt.host...)
			owned := load(t, start, tt.a, Owned{}, tt.opts)
			withLink("veth9", "veth", "br-flat")(start)
			before, ownedBefore := start.text(), start.names(owned)
			done := start.clone()
			load(t, done, tt.b, owned, tt.opts)
			for k := 1; ; k++ {
				h := start.clone()
				h.failAt = k
				written := owned.Clone()
				got, err := Apply(t.Context(), plan(t, h, tt.b, owned, tt.opts), h, func(d Delta) error { written.Amend(d); return nil })
				if h.calls < k {
					if err != nil {
						t.Fatal(err)
					}
					same(t, "host", h.text(), done.text())
					same(t, "written record", h.names(written), h.names(got))
					break
				}
				if !errors.Is(err, errInjected) {
					t.Fatalf("call %d: error %v", k, err)
				}
				same(t, fmt.Sprintf("host after call %d (%s) failed", k, h.log[k-1]), h.text(), before)
				same(t, "record", h.names(got), ownedBefore)
				same(t, "written record", h.names(written), ownedBefore)
			}
			// The same for the journal.
			for k := 1; ; k++ {
				h := start.clone()
				n := 0
				got, err := Apply(t.Context(), plan(t, h, tt.b, owned, tt.opts), h, func(Delta) error {
					if n++; n == k {
						return errInjected
					}
					return nil
				})
				if n < k {
					break
				}
				if !errors.Is(err, errInjected) {
					t.Fatalf("journal %d: error %v", k, err)
				}
				same(t, fmt.Sprintf("host after journal %d failed", k), h.text(), before)
				same(t, "record", h.names(got), ownedBefore)
			}
		})
	}
}

// killed stops everything after a number of calls, as SIGKILL does.
type killed struct{}

func TestKilled(t *testing.T) {
	for name, tt := range reloads() {
		t.Run(name, func(t *testing.T) {
			start := newHost(tt.host...)
			initial := start.text()
			owned := load(t, start, tt.a, Owned{}, tt.opts)
			// Killed after call k; the second time also after an earlier call
			// failed, so in the middle of rolling back.
			for k := 1; ; k++ {
				reached := false
				for fail := range k {
					h := start.clone()
					h.failAt = fail
					var deltas []Delta
					reached = die(t, h, k, plan(t, h, tt.b, owned, tt.opts), func(d Delta) error { deltas = append(deltas, d); return nil }) || reached
					written := owned.Clone()
					written.Amend(deltas...)
					// Killed between writing the whole record and forgetting the steps to it.
					twice := written.Clone()
					twice.Amend(deltas...)
					same(t, fmt.Sprintf("record after call %d failed, killed after call %d, played twice", fail, k), h.names(twice), h.names(written))
					h.failAt = 0
					o := apply(t, h, Unload(written, h.s, UnloadOptions{}))
					if !o.Empty() {
						t.Fatalf("call %d: record after unload %+v", k, o)
					}
					same(t, fmt.Sprintf("host after call %d failed, killed after call %d and unloaded", fail, k), h.text(), initial)
				}
				if !reached {
					break
				}
			}
		})
	}
}

// die applies a plan until the host has had k calls. It reports whether it came to that.
func die(t *testing.T, h *host, k int, p *Plan, j Journal) (reached bool) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil && r != (killed{}) {
			panic(r)
		}
		reached = h.calls >= k
	}()
	if _, err := Apply(t.Context(), p, &dying{host: h, calls: k}, j); err != nil && !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	return false
}

// dying panics right after the call with a number was carried out.
type dying struct {
	*host
	calls int
}

func (d *dying) CreateBridge(n string, s BridgeSpec) (int, error) {
	defer d.check()
	return d.host.CreateBridge(n, s)
}

func (d *dying) CreateVXLAN(n string, s VXLANSpec) (int, error) {
	defer d.check()
	return d.host.CreateVXLAN(n, s)
}
func (d *dying) DeleteLink(i int) error { defer d.check(); return d.host.DeleteLink(i) }
func (d *dying) SetBridge(i int, c BridgeChange) error {
	defer d.check()
	return d.host.SetBridge(i, c)
}
func (d *dying) SetVXLAN(i int, c VXLANChange) error { defer d.check(); return d.host.SetVXLAN(i, c) }
func (d *dying) SetMaster(i, b int) error            { defer d.check(); return d.host.SetMaster(i, b) }
func (d *dying) ClearMaster(i int) error             { defer d.check(); return d.host.ClearMaster(i) }
func (d *dying) SetUp(i int) error                   { defer d.check(); return d.host.SetUp(i) }
func (d *dying) SetDown(i int) error                 { defer d.check(); return d.host.SetDown(i) }
func (d *dying) SetMTU(i, m int) error               { defer d.check(); return d.host.SetMTU(i, m) }
func (d *dying) AddAddress(i int, p netip.Prefix) error {
	defer d.check()
	return d.host.AddAddress(i, p)
}

func (d *dying) AppendDefaultRemote(i int, r netip.Addr) error {
	defer d.check()
	return d.host.AppendDefaultRemote(i, r)
}

func (d *dying) DelAddress(i int, p netip.Prefix) error {
	defer d.check()
	return d.host.DelAddress(i, p)
}

func (d *dying) DelDefaultRemote(i int, r netip.Addr) error {
	defer d.check()
	return d.host.DelDefaultRemote(i, r)
}

func (d *dying) AddStatic(i int, m fdb.MAC, v netip.Addr) error {
	defer d.check()
	return d.host.AddStatic(i, m, v)
}

func (d *dying) DelStatic(i int, m fdb.MAC, v netip.Addr) error {
	defer d.check()
	return d.host.DelStatic(i, m, v)
}

func (d *dying) check() {
	if d.host.calls >= d.calls {
		panic(killed{})
	}
}

// randomConfig picks networks that do not contradict each other.
func randomConfig(r *rand.Rand) *config.Config {
	u := config.Underlay{Device: "eth2", Port: 4789, TTL: r.IntN(3) * 5, DF: config.DFUnset}
	c := &config.Config{Underlay: u}
	vnis, bridges, links := r.Perm(6), r.Perm(5), r.Perm(5)
	remotes := func(first, n int) (as []netip.Addr) {
		for _, i := range r.Perm(5)[:n] {
			as = append(as, netip.AddrFrom4([4]byte{192, 0, 2, byte(first + i)}))
		}
		return as
	}
	for i := range r.IntN(4) {
		n := config.Network{
			Name: fmt.Sprintf("net%d", i), VNI: fdb.VNI(100 + vnis[i]), Underlay: u,
			Bridge: config.Bridge{Name: fmt.Sprintf("br%d", bridges[i])}, Link: fmt.Sprintf("vx%d", links[i]),
			Learning: r.IntN(2) == 0, Ageing: time.Duration(r.IntN(3)) * 150 * time.Second, Remotes: remotes(20, r.IntN(4)),
		}
		if links[i] == 0 { // the adopted one
			n.VNI = 90
		} else {
			if r.IntN(3) == 0 {
				n.Underlay.Local = ip("192.0.2.111")
			}
			if r.IntN(3) == 0 {
				n.Group = netip.AddrFrom4([4]byte{239, 0, 0, byte(r.IntN(3))})
			}
		}
		if r.IntN(2) == 0 {
			n.Underlay.TOS, n.Underlay.Given = r.IntN(3)*4, config.GivenTOS
		}
		if r.IntN(2) == 0 {
			n.Underlay.DF = []config.DF{config.DFUnset, config.DFSet, config.DFInherit}[r.IntN(3)]
			n.Underlay.Given |= config.GivenDF
		}
		if links[i] != 0 && r.IntN(2) == 0 { // the adopted one is not recreated
			n.Underlay.TTLInherit, n.Underlay.TTL = true, 0
			n.Underlay.SourceLow, n.Underlay.SourceHigh = 1000, uint16(1001+r.IntN(2))
			n.Underlay.UDPChecksum = ptr(r.IntN(2) == 0)
		}
		if r.IntN(2) == 0 {
			n.MTU = 1300 + r.IntN(3)*50
		}
		if r.IntN(2) == 0 {
			n.Bridge.STP = ptr(r.IntN(2) == 0)
		}
		if r.IntN(3) == 0 {
			n.Bridge.ForwardDelay = ptr(time.Duration(2+r.IntN(4)) * time.Second)
		}
		for j, a := range r.Perm(4)[:r.IntN(4)] {
			n.Bridge.Addresses = append(n.Bridge.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 29, byte(bridges[i]), byte(1 + a)}), 24))
			if j < 2 {
				n.FDB = append(n.FDB, config.StaticEntry{MAC: mac(fmt.Sprintf("02:00:00:00:00:%02x", a)), VTEP: remotes(20, 1)[0]})
			}
		}
		c.Networks = append(c.Networks, n)
	}
	return c
}

func TestRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		start := newHost(
			withBridge("br0", kernel.Bridge{STP: r.IntN(2) == 0, ForwardDelay: time.Duration(2+r.IntN(20)) * time.Second, Ageing: 300 * time.Second}, "172.29.0.1/24", "172.29.0.9/24"),
			withLink("veth0", "veth", "br0"),
			withVXLAN("vx0", "", func(v *kernel.VXLAN) { v.VNI, v.TTL, v.TOS, v.DF = 90, 7, 4*r.IntN(3), r.IntN(3) }),
			withFDB("vx0", "00:00:00:00:00:00", "192.0.2.21", false),
			withFDB("vx0", "02:00:00:00:00:01", "192.0.2.22", false),
		)
		initial := start.text()
		a, b := randomConfig(r), randomConfig(r)
		h := start.clone()
		o := load(t, h, a, Owned{}, Options{})
		if p := plan(t, h, a, o, Options{}); p.Changes() {
			t.Fatalf("A is not idempotent:\n%s", p)
		}
		afterA, ownedA := h.clone(), h.names(o)
		p := plan(t, h, b, o, Options{})

		// A failure anywhere leaves A.
		broken := afterA.clone()
		broken.failAt = 1 + r.IntN(20)
		ob, err := Apply(t.Context(), p, broken, nil)
		if err != nil {
			same(t, "host after a failure", broken.text(), afterA.text())
			same(t, "record after a failure", broken.names(ob), ownedA)
		}

		o = apply(t, h, p)
		fresh := start.clone()
		of := load(t, fresh, b, Owned{}, Options{})
		same(t, "A then B", h.text(), fresh.text())
		same(t, "record of A then B", h.names(o), fresh.names(of))
		if p := plan(t, h, b, o, Options{}); p.Changes() {
			t.Fatalf("B is not idempotent:\n%s", p)
		}
		if o = apply(t, h, Unload(o, h.s, UnloadOptions{})); !o.Empty() {
			t.Fatalf("record after unload: %+v", o)
		}
		same(t, "unloaded", h.text(), initial)
	}
}
