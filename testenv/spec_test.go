// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestDefaultSpec(t *testing.T) {
	s := DefaultSpec()
	var names []string
	for _, n := range s.Networks {
		names = append(names, n.Name+" "+n.VNI.String()+" "+n.Bridge)
	}
	want := []string{"flat 232 br-flat", "mgmt 236 br-mgmt", "storage 244 br-storage", "repl 248 br-repl", "vxlan 240 br-vxlan"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
	if n := s.Networks[1]; n.MTU != 1450 || n.Subnet.String() != "172.29.236.0/24" || n.Subnet6.String() != "fd00:29:236::/64" {
		t.Errorf("mgmt: %+v", n)
	}
	if h := s.Hosts[1]; h.Address.String() != "192.0.2.12" || h.Datapath != Auto {
		t.Errorf("h2: %+v", h)
	}
	again, err := s.check()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, again, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Errorf("check is not idempotent: %s", d)
	}
}

func TestParseSpecErrors(t *testing.T) {
	const hosts = "\nhosts: [{name: a}, {name: b}]\n"
	for name, tc := range map[string]struct{ in, want string }{
		"empty":              {"", "empty"},
		"two documents":      {"name: x" + hosts + "---\nname: y\n", "more than one"},
		"unknown key":        {"name: x\nunderlay: {mut: 1500}" + hosts, `[2:12] unknown field "mut"`},
		"duplicate key":      {"name: x\nname: y" + hosts, "name"},
		"no hosts":           {"name: x", "no hosts"},
		"bad name":           {"name: x_y" + hosts, `lab name "x_y"`},
		"dot":                {"name: x.y" + hosts, `lab name "x.y"`},
		"p2p with three":     {"name: x\nunderlay: {kind: p2p}\nhosts: [{name: a}, {name: b}, {name: c}]", "not 3"},
		"path mtu":           {"name: x\nunderlay: {path_mtu: 1400}" + hosts, "needs kind routed"},
		"kind":               {"name: x\nunderlay: {kind: hub}" + hosts, `"hub"`},
		"prefix":             {"name: x\nunderlay: {prefix: 192.0.2.0/33}" + hosts, "33"},
		"small mtu":          {"name: x\nunderlay: {mtu: 1300}" + hosts, "underlay mtu 1300"},
		"same host":          {"name: x\nhosts: [{name: a}, {name: a}]", "used twice"},
		"same address":       {"name: x\nhosts: [{name: a}, {name: b, address: 192.0.2.11}]", "used twice"},
		"foreign address":    {"name: x\nhosts: [{name: a}, {name: b, address: 198.51.100.1}]", "not in underlay"},
		"datapath":           {"name: x\nhosts: [{name: a, datapath: xdp9}, {name: b}]", `"xdp9"`},
		"contradiction":      {"name: x\nhosts: [{name: a, datapath: tc, kernel_vxlan: true}, {name: b}]", "contradicts"},
		"kernel stranger":    {"name: x\nhosts: [{name: a, stranger: true, kernel_vxlan: true}, {name: b}]", "stranger"},
		"prefix too small":   {"name: x\nunderlay: {prefix: 192.0.2.0/29}" + hosts, "no room"},
		"vni 0":              {"name: x\nnetworks: [{name: n, subnet: 10.0.0.0/24}]" + hosts, "vni 0"},
		"vni 2^24":           {"name: x\nnetworks: [{name: n, vni: 16777216, subnet: 10.0.0.0/24}]" + hosts, "vni 16777216"},
		"same vni":           {"name: x\nnetworks: [{name: n, vni: 1, subnet: 10.0.0.0/24}, {name: m, vni: 1, subnet: 10.0.1.0/24}]" + hosts, "vni 1 used twice"},
		"no subnet":          {"name: x\nnetworks: [{name: n, vni: 1}]" + hosts, "want an IPv4 prefix"},
		"subnet6 is 4":       {"name: x\nnetworks: [{name: n, vni: 1, subnet: 10.0.0.0/24, subnet6: 10.0.0.0/24}]" + hosts, "subnet6"},
		"subnet too small":   {"name: x\nnetworks: [{name: n, vni: 1, subnet: 10.0.0.0/28}]" + hosts, "no room"},
		"long network":       {"name: x\nnetworks: [{name: management, vni: 1, subnet: 10.0.0.0/24}]" + hosts, "network name"},
		"unicast group":      {"name: x\nnetworks: [{name: n, vni: 1, subnet: 10.0.0.0/24, group: 10.1.1.1}]" + hosts, "not a multicast"},
		"group family":       {"name: x\nnetworks: [{name: n, vni: 1, subnet: 10.0.0.0/24, group: ff05::1}]" + hosts, "family"},
		"host address where": {"name: x\nhost_addresses: [storage]" + hosts, `no network "storage"`},
		"config":             {"name: x\nunderlay: {config: [df]}" + hosts, "want a YAML mapping"},
		"containers":         {"name: x\ncontainers_per_host_and_network: 100" + hosts, "0 to 99"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSpec([]byte(tc.in))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	s := DefaultSpec()
	l, err := plan("x", s)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(l.Namespaces()); n != 22 {
		t.Errorf("%d namespaces, want 2 hosts and 20 containers", n)
	}
	c := l.Container("h2", "mgmt-2")
	if c == nil {
		t.Fatal("no container mgmt-2 on h2")
	}
	got := []string{c.NS.Name(), c.HostEnd, c.Addr.String(), c.Addr6.String(), c.MAC.String()}
	if d := cmp.Diff([]string{"x-h2-mgmt-2", "v-mgmt-2", "172.29.236.22/24", "fd00:29:236::22/64", "02:c0:00:02:02:02"}, got); d != "" {
		t.Error(d)
	}
	seen := map[string]string{}
	for _, h := range l.Hosts {
		for _, c := range h.Containers {
			for _, v := range []string{c.MAC.String(), c.Addr.String(), c.NS.Name()} {
				if o := seen[v]; o != "" {
					t.Errorf("%s and %s share %s", o, c.NS.Name(), v)
				}
				seen[v] = c.NS.Name()
			}
			if len(c.HostEnd) > 15 {
				t.Errorf("link name %s is too long", c.HostEnd)
			}
		}
	}

	s = Spec{Name: "x", Networks: []Network{{Name: "n", VNI: 1, Subnet: netip.MustParsePrefix("10.0.0.0/24")}}, Containers: 1,
		Hosts: []HostSpec{{Name: "a"}, {Name: "a-n-1"}}}
	if s, err = s.check(); err != nil {
		t.Fatal(err)
	}
	if _, err := plan("x", s); err == nil || !strings.Contains(err.Error(), "x-a-n-1") {
		t.Errorf("error %v, want one about x-a-n-1", err)
	}
}

func TestConfig(t *testing.T) {
	s := DefaultSpec()
	s.Networks = s.Networks[1:3]
	s.Networks[0].Group = netip.MustParseAddr("239.1.1.236")
	s.Hosts = append(s.Hosts, HostSpec{Name: "h3", KernelVXLAN: true}, HostSpec{Name: "evil", Stranger: true})
	s.Underlay.Kind = Switch
	s, err := s.check()
	if err != nil {
		t.Fatal(err)
	}
	l, err := plan("x", s)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := yaml.Unmarshal(l.Host("h1").Config(s), &got); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(`
underlay: {device: eth2, ttl: 5}
datapath: auto
networks:
  - {name: mgmt, vni: 236, bridge: br-mgmt, group: 239.1.1.236, mtu: 1450}
  - name: storage
    vni: 244
    bridge: {name: br-storage, addresses: [172.29.244.10/24, "fd00:29:244::10/64"]}
    remotes: [192.0.2.12, 192.0.2.13]
    mtu: 1450
`), &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	s.Hosts[0].Datapath = Kernel
	if c := string(l.Host("h1").Config(s)); !strings.Contains(c, "datapath: kernel\n") {
		t.Errorf("a changed spec does not show:\n%s", c)
	}

	// Keys from outside replace and join what the lab writes.
	s, err = ParseSpec([]byte(`
name: x
underlay:
  prefix: 2001:db8:12::/64
  config:
    ttl: inherit
    df: set
networks: [{name: n, vni: 7, subnet: 10.0.0.0/24, config: {mss_clamp: auto, mtu: 1300}}]
hosts: [{name: h1, config: {underlay: {flow_label: 0x12345}, bypass_netfilter: true}}, {name: h2}]
`))
	if err != nil {
		t.Fatal(err)
	}
	if l, err = plan("x", s); err != nil {
		t.Fatal(err)
	}
	got, want = nil, nil
	if err := yaml.Unmarshal(l.Host("h1").Config(s), &got); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(`
underlay: {device: eth2, ttl: inherit, df: set, flow_label: 0x12345}
datapath: auto
networks: [{name: n, vni: 7, bridge: br-n, remotes: ["2001:db8:12::12"], mtu: 1300, mss_clamp: auto}]
bypass_netfilter: true
`), &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if c := string(l.Host("h2").Config(s)); strings.Contains(c, "bypass_netfilter") || !strings.Contains(c, "df: set") {
		t.Errorf("h2:\n%s", c)
	}
}
