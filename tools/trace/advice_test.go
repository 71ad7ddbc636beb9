// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// What the state file may give as a reason (loader/view.go), and what helps.
func TestCures(t *testing.T) {
	n := &loader.NetworkState{Name: "mgmt", Bridge: "br-mgmt", Link: "encap-mgmt"}
	for why, want := range map[string]string{
		"bridge br-mgmt filters VLANs":                      "ip link set br-mgmt type bridge vlan_filtering 0",
		"veth1 and encap-mgmt are isolated from each other": "bridge link set dev veth1 isolated off",
		"veth1 is locked":                                   "bridge link set dev veth1 locked off",
		"veth1 is not in forwarding state":                  "bridge link set dev veth1 state 3",
		"veth1 is down":                                     "ip link set veth1 up",
		"bridge br-mgmt is down":                            "ip link set br-mgmt up",
		"vxlan link encap-mgmt is down":                     "ip link set encap-mgmt up",
		"bridge br-mgmt forgets at once (ageing 0)":         "ip link set br-mgmt type bridge ageing_time 30000",
		"nft bridge t c has 1 rule; bypass_netfilter: true carries packets past it": "remove the rule (nft list ruleset), or set bypass_netfilter: true",
		"veth1 carries another tc filter bpf pref 1":                                "tc filter show dev veth1 ingress",
		"eth2 carries another tcx program 12":                                       "bpftool net show dev eth2",
		"encap-mgmt sends UDP checksums, which only the kernel computes":            "set udp_checksum: false and load again",
		"encap-mgmt is not a port of br-mgmt":                                       "ip link set encap-mgmt master br-mgmt",
		"bridge br-mgmt is gone":                                                    "vxbpf load the config again",
		"the network runs on kernel vxlan: datapath: kernel in the config":          "set datapath: auto and load again",
		"local address 192.0.2.11 is on no link of this host":                       "ip address add",
		"something new": "vxbpf status",
	} {
		if got := fixesFor(why, n, ""); len(got) != 1 || !strings.HasPrefix(got[0], want) || strings.ContainsAny(got[0], "{}") {
			t.Errorf("%s: fix %q, want %q", why, got, want)
		}
	}
}

// Requests as RFC 826 and RFC 4861 have them, and answers out of them.
func TestNeighbourRequest(t *testing.T) {
	from := fdb.MAC{2, 0, 0, 0, 0, 1}
	arp := request(from, netip.MustParseAddr("172.29.236.99"))
	if len(arp) != 60 || arp[21] != 1 || string(arp[38:42]) != "\xac\x1d\xec\x63" || string(arp[28:32]) != "\x00\x00\x00\x00" {
		t.Errorf("ARP request %x", arp)
	}
	ns := request(from, netip.MustParseAddr("fd00:29:236::99"))
	if len(ns) != 14+40+24 || ns[21] != 255 || ns[54] != 135 || string(ns[:6]) != "\x33\x33\xff\x00\x00\x99" || string(ns[38:54]) != "\xff\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\x00\x00\x99" {
		t.Errorf("neighbour solicitation %x", ns)
	}
	// RFC 1071: with the checksum in place the sum over pseudo header and message is all ones.
	sum := uint32(24 + 58)
	for i := 22; i < len(ns); i += 2 {
		sum += uint32(ns[i])<<8 | uint32(ns[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff {
		t.Errorf("checksum adds up to %#x", sum)
	}
	reply := append([]byte{}, arp...)
	reply[21] = 2
	copy(reply[22:28], "\x02\x00\x00\x00\x00\x99")
	copy(reply[28:32], "\xac\x1d\xec\x63")
	if mac, ok := answer(reply, netip.MustParseAddr("172.29.236.99")); !ok || mac.String() != "02:00:00:00:00:99" {
		t.Errorf("answer %v %v", mac, ok)
	}
	for n := range reply {
		answer(reply[:n], netip.MustParseAddr("172.29.236.99"))
		answer(reply[:n], netip.MustParseAddr("fd00::1"))
	}
	if _, ok := answer(reply, netip.MustParseAddr("172.29.236.98")); ok {
		t.Error("another address's answer was taken")
	}
}
