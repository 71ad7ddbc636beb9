// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// head starts most tables: line 1 is a good underlay, so the case's own lines
// begin at 2.
const head = "underlay: {device: eth2}\n"

// one is head and a good network to which a case adds keys, from line 4 on.
const one = head + "networks:\n- {name: mgmt, vni: 236, bridge: br-mgmt"

func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("config.yaml", []byte(text))
	if err != nil {
		t.Fatalf("parse\n%s\n%v", text, err)
	}
	return c
}

func TestParse(t *testing.T) {
	c := parse(t, string(Reference))
	stp, fd := false, time.Duration(0)
	yes, no := true, false
	given := GivenTOS | GivenDF | GivenFlowLabel
	host := Underlay{Device: "eth2", Local: netip.MustParseAddr("192.0.2.11"), Port: 4789, TTL: 5, DF: DFUnset,
		SourceLow: 32768, SourceHigh: 61000, UDPChecksum: &no, MTU: 1500, Given: given}
	hosts := []netip.Addr{netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("192.0.2.13")}
	near := netip.MustParsePrefix("192.0.2.0/24")
	want := &Config{
		File: "config.yaml", Underlay: host, Datapath: Auto, Metrics: "127.0.0.1:9879",
		Log:     Log{Level: "info", Format: "text"},
		Sources: Sources{Given: true, Prefixes: []netip.Prefix{near, netip.MustParsePrefix("2001:db8:1::/64")}},
		Networks: []Network{
			{
				Name: "mgmt", VNI: 236, Link: "encap-mgmt", Underlay: host, Datapath: Kernel,
				Bridge:  Bridge{Name: "br-mgmt", Addresses: []netip.Prefix{netip.MustParsePrefix("172.29.236.11/22")}, STP: &stp, ForwardDelay: &fd},
				Remotes: hosts, MTU: 1446, VLANTags: 1, Learning: true, Ageing: 300 * time.Second, MSSClamp: MSSAuto, BypassNetfilter: true,
				FDB:     []StaticEntry{{MAC: fdb.MAC{2, 0, 0, 0, 0, 12}, VTEP: hosts[0]}},
				Sources: Sources{Given: true, Prefixes: []netip.Prefix{near}},
			},
			{
				Name: "storage", VNI: 244, Link: "encap-storage", Datapath: Auto, Bridge: Bridge{Name: "br-storage"},
				Underlay: Underlay{Device: "eth3", Local: netip.MustParseAddr("198.51.100.11"), Port: 8472, TTLInherit: true, TOSInherit: true,
					DF: DFInherit, SourceLow: 40000, SourceHigh: 50000, UDPChecksum: &yes, MTU: 1500, Given: given},
				Group: netip.MustParseAddr("239.1.1.244"), Learning: true, Ageing: DefaultAgeing,
				Sources: Sources{Given: true, Any: true},
			},
			{
				Name: "flat", VNI: 1, Link: "encap-flat", Datapath: Auto, Bridge: Bridge{Name: "br-flat"},
				Underlay: host, Remotes: hosts, Learning: true, Ageing: DefaultAgeing,
				Sources: Sources{Given: true, Prefixes: []netip.Prefix{near}},
			},
		},
	}
	addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	prefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, c, addr, prefix, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
	if c.Network("storage") != &c.Networks[1] || c.Network("nope") != nil {
		t.Error("Network does not find by name")
	}
	if string(c.Source()) != string(Reference) || (&Config{}).Source() != nil {
		t.Error("Source is not what was parsed")
	}
}

func TestDefaults(t *testing.T) {
	c := parse(t, Smallest)
	n := c.Networks[0]
	if c.Underlay.Port != DefaultPort || c.Datapath != Auto || c.Log != (Log{"info", "text"}) ||
		n.Link != "encap-mgmt" || !n.Learning || n.Ageing != DefaultAgeing || n.MTU != 0 || n.Datapath != Auto ||
		n.Bridge.STP != nil || n.Bridge.ForwardDelay != nil || n.Underlay != c.Underlay ||
		c.Underlay != (Underlay{Device: "eth2", Port: DefaultPort, TTL: 5, DF: DFUnset}) || n.MSSClamp != MSSOff || n.BypassNetfilter {
		t.Errorf("%+v", c)
	}
}

// TestAccepts holds what must not be refused, and what it means.
func TestAccepts(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		is         func(*Config) bool
	}{
		{"group without ttl", one + ", group: 239.1.1.236}", func(c *Config) bool {
			return c.Networks[0].Underlay.TTL == DefaultGroupTTL && c.Underlay.TTL == 0
		}},
		{"group ttl 2", one + ", group: 239.1.1.236, ttl: 2}", func(c *Config) bool { return c.Networks[0].Underlay.TTL == 2 }},
		{"ttl auto", "underlay: {device: e, ttl: 9}\nnetworks: [{name: a, vni: 1, bridge: b, ttl: auto}]", func(c *Config) bool {
			return c.Underlay.TTL == 9 && c.Networks[0].Underlay.TTL == 0
		}},
		{"group ttl auto", one + ", group: 239.1.1.236, ttl: auto}", func(c *Config) bool { return c.Networks[0].Underlay.TTL == DefaultGroupTTL }},
		{"group ttl inherit", one + ", group: 239.1.1.236, ttl: inherit}", func(c *Config) bool {
			return c.Networks[0].Underlay.TTL == 0 && c.Networks[0].Underlay.TTLInherit
		}},
		{"ttl instead of inherit", "underlay: {device: e, ttl: inherit}\nnetworks: [{name: a, vni: 1, bridge: b, ttl: 7}]", func(c *Config) bool {
			return c.Underlay.TTLInherit && c.Networks[0].Underlay.TTL == 7 && !c.Networks[0].Underlay.TTLInherit
		}},
		{"hex tos", one + ", tos: 0xfc}", func(c *Config) bool {
			return c.Networks[0].Underlay.TOS == 252 && c.Networks[0].Underlay.Given == GivenTOS && c.Underlay.Given == 0
		}},
		{"tos 0 instead of inherit", "underlay: {device: e, tos: inherit}\nnetworks: [{name: a, vni: 1, bridge: b, tos: 0}]", func(c *Config) bool {
			return c.Underlay.TOSInherit && !c.Networks[0].Underlay.TOSInherit
		}},
		{"df of IPv4", "underlay: {device: e, df: set}\nnetworks: [{name: a, vni: 1, bridge: b, remotes: [192.0.2.1]}, {name: c, vni: 2, bridge: d, df: unset, remotes: ['2001:db8::1']}]", func(c *Config) bool {
			return c.Networks[0].Underlay.DF == DFSet && c.Networks[1].Underlay.DF == DFUnset
		}},
		{"df without addresses", one + ", df: inherit, flow_label: 5}", func(c *Config) bool { return c.Networks[0].Underlay.DF == DFInherit }},
		{"flow label", one + ", flow_label: 0xfffff, remotes: [2001:db8::12]}", func(c *Config) bool { return c.Networks[0].Underlay.FlowLabel == 0xfffff }},
		{"no flow label on IPv4", one + ", flow_label: 0, remotes: [192.0.2.12]}", func(c *Config) bool { return c.Networks[0].Underlay.Given == GivenFlowLabel }},
		{"source ports", "underlay: {device: e, source_ports: [1, 65535]}\nnetworks: [{name: a, vni: 1, bridge: b}, {name: c, vni: 2, bridge: d, source_ports: [5, 6]}]", func(c *Config) bool {
			a, b := c.Networks[0].Underlay, c.Networks[1].Underlay
			return a.SourceLow == 1 && a.SourceHigh == 65535 && b.SourceLow == 5 && b.SourceHigh == 6
		}},
		{"udp checksum", "underlay: {device: e, udp_checksum: true}\nnetworks: [{name: a, vni: 1, bridge: b}, {name: c, vni: 2, bridge: d, udp_checksum: false}]", func(c *Config) bool {
			return *c.Networks[0].Underlay.UDPChecksum && !*c.Networks[1].Underlay.UDPChecksum
		}},
		{"mtu auto", "underlay: {device: e, mtu: auto}\nnetworks: [{name: a, vni: 1, bridge: b, mtu: auto}]", func(c *Config) bool { return c.Underlay.MTU == 0 && c.Networks[0].MTU == 0 }},
		{"vlan tags", head + "vlan_tags: 2\nnetworks: [{name: a, vni: 1, bridge: b}, {name: c, vni: 2, bridge: d, vlan_tags: 0}, {name: e, vni: 3, bridge: f, vlan_tags: 1}]", func(c *Config) bool {
			return c.VLANTags == 2 && c.Networks[0].VLANTags == 2 && c.Networks[1].VLANTags == 0 && c.Networks[2].VLANTags == 1
		}},
		{"vlan tags that fit", "underlay: {device: e, mtu: 1500}\nnetworks: [{name: a, vni: 1, bridge: b, mtu: 1442, vlan_tags: 2}]", func(c *Config) bool { return c.Networks[0].MTU == 1442 }},
		{"mss clamp", head + "mss_clamp: auto\nnetworks: [{name: a, vni: 1, bridge: b}, {name: c, vni: 2, bridge: d, mss_clamp: off}, {name: e, vni: 3, bridge: f, mss_clamp: 1360}]", func(c *Config) bool {
			return c.MSSClamp == MSSAuto && c.Networks[0].MSSClamp == MSSAuto && c.Networks[1].MSSClamp == MSSOff && c.Networks[2].MSSClamp == 1360
		}},
		{"bypass netfilter", head + "bypass_netfilter: true\nnetworks: [{name: a, vni: 1, bridge: b}, {name: c, vni: 2, bridge: d, bypass_netfilter: false}]", func(c *Config) bool {
			return c.BypassNetfilter && c.Networks[0].BypassNetfilter && !c.Networks[1].BypassNetfilter
		}},
		{"sources", "underlay: {device: e, allowed_sources: [192.0.2.7, 10.0.0.0/8, '2001:db8::/32']}\nnetworks: [{name: a, vni: 1, bridge: b, remotes: ['2001:db8::1']}, {name: c, vni: 2, bridge: d, group: 239.1.1.1, allowed_sources: any}, {name: e, vni: 3, bridge: f}]", func(c *Config) bool {
			a, b, e := c.Networks[0].Sources, c.Networks[1].Sources, c.Networks[2].Sources
			return a.Given && len(a.Prefixes) == 1 && a.Prefixes[0].Bits() == 32 && b.Any && len(b.Prefixes) == 0 && len(e.Prefixes) == 3 && e.Prefixes[0].IsSingleIP()
		}},
		{"xdp", head + "datapath: xdp\nnetworks: [{name: a, vni: 1, bridge: b}, {name: c, vni: 2, bridge: d, datapath: tc}]", func(c *Config) bool {
			return c.Datapath == XDP && c.Networks[0].Datapath == XDP && c.Networks[1].Datapath == TC
		}},
		{"no sources but the remotes", one + ", remotes: [192.0.2.1], allowed_sources: []}", func(c *Config) bool {
			s := c.Networks[0].Sources
			return s.Given && !s.Any && len(s.Prefixes) == 0 && !c.Sources.Given
		}},
		{"unicast without ttl", one + ", remotes: [192.0.2.12]}", func(c *Config) bool { return c.Networks[0].Underlay.TTL == 0 }},
		{"group and remotes", one + ", group: 239.1.1.236, remotes: [192.0.2.12]}", func(c *Config) bool {
			return c.Networks[0].Group.IsValid() && len(c.Networks[0].Remotes) == 1
		}},
		{"no remotes", one + "}", func(c *Config) bool { return c.Networks[0].Remotes == nil && !c.Networks[0].V6() }},
		{"empty remotes", one + ", remotes: [], fdb: }", func(c *Config) bool { return len(c.Networks[0].Remotes) == 0 }},
		{"static only", one + ", fdb: [{mac: 02-00-00-00-00-01, remote: 2001:db8::2}]}", func(c *Config) bool { return c.Networks[0].V6() }},
		{"IPv6", one + ", remotes: [2001:db8::12, ::5], local: 2001:db8::1}", func(c *Config) bool { return c.Networks[0].V6() }},
		{"IPv6 in braces", one + ", remotes: [2001:db8::12, '2001:db8::13', \"::5\", 2001:db8::], local: ::7}", func(c *Config) bool {
			n := c.Networks[0]
			return len(n.Remotes) == 4 && n.Remotes[3] == netip.MustParseAddr("2001:db8::") && n.Underlay.Local == netip.MustParseAddr("::7")
		}},
		{"IPv6 group", one + ", group: ff05::236}", func(c *Config) bool { return c.Networks[0].V6() }},
		{"VNI 0", head + "networks: [{name: a, vni: 0, bridge: b}]", func(c *Config) bool { return c.Networks[0].VNI == 0 }},
		{"largest VNI", head + "networks: [{name: a, vni: 16777215, bridge: b}]", func(c *Config) bool { return c.Networks[0].VNI == fdb.MaxVNI }},
		{"hex VNI", head + "networks: [{name: a, vni: 0xEC, bridge: b}]", func(c *Config) bool { return c.Networks[0].VNI == 236 }},
		{"quoted VNI", head + "networks: [{name: a, vni: '236', bridge: b}]", func(c *Config) bool { return c.Networks[0].VNI == 236 }},
		{"number as name", head + "networks: [{name: 7, vni: 7, bridge: 007}]", func(c *Config) bool {
			return c.Networks[0].Name == "7" && c.Networks[0].Bridge.Name == "007"
		}},
		{"same VNI, other port", one + "}\n- {name: b, vni: 236, bridge: b, port: 8472}", func(c *Config) bool { return c.Networks[1].VNI == 236 }},
		{"ageing in seconds", one + ", ageing: 60}", func(c *Config) bool { return c.Networks[0].Ageing == time.Minute }},
		{"ageing as duration", one + ", ageing: 5m30s}", func(c *Config) bool { return c.Networks[0].Ageing == 330*time.Second }},
		{"ageing never", one + ", ageing: 0}", func(c *Config) bool { return c.Networks[0].Ageing == 0 }},
		{"forward delay", head + "networks: [{name: a, vni: 1, bridge: {name: b, stp: true, forward_delay: 2500ms}}]", func(c *Config) bool {
			return *c.Networks[0].Bridge.ForwardDelay == 2500*time.Millisecond && *c.Networks[0].Bridge.STP
		}},
		{"addresses", head + "networks: [{name: a, vni: 1, bridge: {name: b, addresses: [10.0.0.0/31, 10.0.1.1/32, 2001:db8::1/64]}}]", func(c *Config) bool {
			return len(c.Networks[0].Bridge.Addresses) == 3
		}},
		{"mtu that just fits", "underlay: {device: eth2, mtu: 1500}\nnetworks: [{name: a, vni: 1, bridge: b, mtu: 1450}]", func(c *Config) bool { return c.Networks[0].MTU == 1450 }},
		{"device per network only", "networks: [{name: a, vni: 1, bridge: b, device: eth9}]", func(c *Config) bool {
			return c.Networks[0].Underlay.Device == "eth9" && c.Underlay.Device == ""
		}},
		{"learning off", one + ", learning: false}", func(c *Config) bool { return !c.Networks[0].Learning }},
		{"long link name given", head + "networks: [{name: management-net, vni: 1, bridge: b, link: vx1}]", func(c *Config) bool { return c.Networks[0].Link == "vx1" }},
		{"alias of a list", one + ", remotes: &r [192.0.2.12]}\n- {name: b, vni: 2, bridge: b, remotes: *r}", func(c *Config) bool {
			return c.Networks[1].Remotes[0] == netip.MustParseAddr("192.0.2.12")
		}},
		{"byte order mark, CRLF", "\ufeff" + strings.ReplaceAll(Smallest, "\n", "\r\n"), func(c *Config) bool { return len(c.Networks) == 1 }},
		{"metrics off", head + "metrics: off\nnetworks: [{name: a, vni: 1, bridge: b}]", func(c *Config) bool { return c.Metrics == "" }},
		{"metrics everywhere", head + "metrics: ':9879'\nnetworks: [{name: a, vni: 1, bridge: b}]", func(c *Config) bool { return c.Metrics == ":9879" }},
		{"metrics over IPv6", head + "metrics: '[::1]:9879'\nnetworks: [{name: a, vni: 1, bridge: b}]", func(c *Config) bool { return c.Metrics == "[::1]:9879" }},
		{"metrics socket", head + "metrics: unix:/run/x.sock\nnetworks: [{name: a, vni: 1, bridge: b}]", func(c *Config) bool { return c.Metrics == "unix:/run/x.sock" }},
		{"document markers", "---\n" + Smallest + "...\n", func(c *Config) bool { return len(c.Networks) == 1 }},
		{"JSON with tabs", "{\n\t\"underlay\": {\"device\":\t\"eth2\"},\n\t\"networks\": [\n\t\t{\"name\": \"a\", \"vni\": 1, \"bridge\": \"b\"}\n\t]\n}\n", func(c *Config) bool { return c.Networks[0].VNI == 1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c := parse(t, tt.text); !tt.is(c) {
				t.Errorf("%s\nparsed to %+v", tt.text, c)
			}
		})
	}
}

// TestProblems asserts place and words of every rule. Want is what the first
// line of a problem contains, from the line number on; words stands for what
// message and hint contain. More problems than wanted is a failure.
func TestProblems(t *testing.T) {
	second := one + "}\n- {name: b, vni: 7, bridge: br-b" // goes on in line 4
	for _, tt := range []struct{ name, text, want, words string }{
		// The file as a whole.
		{"empty", "", "config.yaml: the file is empty", "networks:|br-mgmt"},
		{"comments only", "# nothing\n---\n", "config.yaml: the file is empty", "smallest"},
		{"null", "~\n", "config.yaml: the file is empty", "smallest"},
		{"anchored null", "&a\n", "1:1: not valid YAML", ""},
		{"not UTF-8", "underlay: {}\nü: \xff\n", "2:4: byte 0xff", "UTF-8"},
		{"NUL", "underlay: \x00\n", "1:11: control character U+0000", "right file"},
		{"noncharacter", "a: \uffff\n", "1:4: control character U+FFFF", "text file"},
		{"escape character", "a: \x1b[31m\n", "1:4: control character U+001B", "text file"},
		{"several documents", Smallest + "---\n" + Smallest, "4:1: a second YAML document", "one file is one host"},
		{"list at the top", "- a\n", "1:1: the file is a list", "underlay"},
		{"text at the top", "hello\n", "1:1: the file is the value hello", "underlay"},
		{"blank lines", strings.Repeat("\n", 200), "101:1: more than 100 empty lines", "delete"},

		// YAML.
		{"tab indent", "underlay:\n\tdevice: eth2\n", "2:1: not valid YAML: a tab", "spaces"},
		{"tab after spaces", "underlay:\n  device: eth2\n  \tttl: 5\n", "3:3: not valid YAML: a tab", "spaces"},
		{"open brace", "underlay: {device: eth2\n", "1:11: not valid YAML: the mapping that starts here", "}"},
		{"open bracket", one + ", remotes: [192.0.2.12}\n", "3:63: not valid YAML: a list in [ ] lacks", "[a, b, c]"},
		{"open quote", "underlay: {device: \"eth2}\n", "1:20: not valid YAML: the text that starts here", "\""},
		{"deeper key", "underlay:\n  device: eth2\n   ttl: 5\n", "3:4: not valid YAML: a key that stands deeper", "column"},
		{"key in value", "underlay: a: b\n", "1:11: not valid YAML: a key inside a value", "quotes"},
		{"reserved character", "underlay: {device: @eth2}\n", "1:20: not valid YAML: a value cannot start", "quotes"},
		{"no space after colon", "underlay:\n  device:eth2\n  ttl: 5\n", "2:3: not valid YAML: no key", "space after the colon"},
		{"block text", "underlay:\n  device: |\n    eth2\n", "2:11: no key takes a text of several lines", "line of its key"},
		{"tag", "underlay: !!map {device: eth2}\n", "1:11: a YAML tag", "delete"},
		{"directive", "%YAML 1.2\n---\n" + Smallest, "1:1: a YAML directive", "delete"},
		{"explicit key", "? underlay\n: {device: eth2}\n", "1:1: a key after ?", "key: value"},
		{"merge key", one + ", <<: *x}", "3:43: merge keys", "alias"},
		{"unknown alias", one + ", remotes: *hosts}", "3:52: networks[0].remotes: the alias *hosts", "&hosts"},
		{"alias in its anchor", one + ", remotes: &h [*h]}", "3:56: networks[0].remotes[0]: the alias *h", "&h"},
		{"deep", strings.Repeat("[", 100), "1:32: nested more than 32", ""},
		{"many keys", "underlay:\n" + numbered(100, "  k%d: 1\n"), "66:6: more than 64 keys", "right file"},
		{"many keys in braces", "underlay: {" + numbered(100, "k: 1, ") + "}", "1:400: more than 64 keys", ""},
		{"many empty values", "networks:\n" + numbered(300, "- a:\n"), "257:4: more than 256 empty", ""},
		{"many anchors", "networks:\n" + numbered(300, "- &a b\n"), "258:3: more than 256 anchors", ""},
		{"empty item", head + "networks:\n-\n", "3:1: an empty list item", "delete"},
		{"null item", one + ", remotes: [~]}", "3:53: networks[0].remotes[0]: an empty list item", "delete"},

		// Keys and types.
		{"unknown key", head + "network: []\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:1: unknown key network", "did you mean networks?"},
		{"unknown key of a network", one + ", vxlan: 2}", "3:43: networks[0]: unknown key vxlan", "the keys here are name, vni"},
		{"word of ip link", one + ", dstport: 4789}", "3:43: networks[0]: unknown key dstport", "write port"},
		{"key twice", "underlay:\n  device: eth2\n  device: eth3\nnetworks: [{name: a, vni: 1, bridge: b}]", "3:3: underlay.device: given twice, first in line 2", "keep one"},
		{"list for a value", one + ", mtu: [1500]}", "3:48: networks[0].mtu: is a list, want one value", "mtu: value"},
		{"value for a list", one + ", remotes: 192.0.2.12}", "3:52: networks[0].remotes: is the value 192.0.2.12, want a list", "[192.0.2.12]"},
		{"value for a mapping", "underlay: eth2\nnetworks: [{name: a, vni: 1, bridge: b, device: c}]", "1:11: underlay: is the value eth2", "device, local"},
		{"list for a bridge", head + "networks: [{name: a, vni: 1, bridge: [b]}]", "2:38: networks[0].bridge: is a list", "name, addresses"},
		{"sources as a word", one + ", allowed_sources: all}", "3:60: networks[0].allowed_sources: all is neither a list nor the word any", "any, or a list"},
		{"empty sources", one + ", allowed_sources: }", "3:43: networks[0].allowed_sources: is empty", "any, or a list"},
		{"any in a list", one + ", allowed_sources: [any]}", "3:61: networks[0].allowed_sources[0]: any is no address", "without a list"},
		{"a name as source", one + ", allowed_sources: [host1]}", "3:61: networks[0].allowed_sources[0]: host1 is neither an address nor a prefix", "192.0.2.0/24"},
		{"source with host bits", one + ", allowed_sources: [192.0.2.9/24]}", "3:61: networks[0].allowed_sources[0]: 192.0.2.9/24 has bits set", "192.0.2.0/24"},
		{"every source", one + ", allowed_sources: [0.0.0.0/0]}", "3:61: networks[0].allowed_sources[0]: 0.0.0.0/0 is every address", "allowed_sources: any"},
		{"source twice", one + ", allowed_sources: [192.0.2.9, 192.0.2.9/32]}", "3:72: networks[0].allowed_sources[1]: 192.0.2.9/32 is listed twice", "delete"},
		{"group as source", one + ", allowed_sources: [239.1.1.0/24]}", "3:61: networks[0].allowed_sources[0]: 239.1.1.0/24 is a multicast group", "192.0.2.0/24"},
		{"source of the other family", one + ", remotes: [192.0.2.1], allowed_sources: ['2001:db8::/32']}", "3:65: networks[0].allowed_sources: 2001:db8::/32 is IPv6", "delete"},
		{"mapping as sources", one + ", allowed_sources: {a: b}}", "3:60: networks[0].allowed_sources: is a mapping, want a list", "[a, b, c]"},

		{"value for a network", head + "networks: [a]", "2:12: networks[0]: is the value a", "name, vni"},

		// The host.
		{"no networks", head, "1:1: no networks", "smallest"},
		{"networks without any", head + "networks:\n", "2:1: networks: no networks", "smallest"},
		{"no device", "underlay: {ttl: 5}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:1: underlay: device is missing", "device: eth2"},
		{"empty device", "underlay: {device: , ttl: 5}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:12: underlay.device: is empty", "eth2"},
		{"underlay is a value", "underlay: eth2\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:11: underlay: is the value eth2", "device"},
		{"no underlay", "networks: [{name: a, vni: 1, bridge: b}]", "1:1: underlay: device is missing", "device: eth2"},
		{"device name", "underlay: {device: eth0:1}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:20: underlay.device: eth0:1 contains :", "15 bytes"},
		{"port 0", "underlay: {device: e, port: 0}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:29: underlay.port: 0 is out of range", "1 to 65535"},
		{"port 65536", one + ", port: 65536}", "3:49: networks[0].port: 65536 is out of range", "1 to 65535"},
		{"ttl 0", "underlay: {device: e, ttl: 0}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:28: underlay.ttl: 0 is out of range", "1 to 255"},
		{"ttl 256", one + ", ttl: 256}", "3:48: networks[0].ttl: 256 is out of range", "1 to 255"},
		{"ttl word", one + ", ttl: copy}", "3:48: networks[0].ttl: copy is not a number", "a ttl is auto, inherit or a number from 1 to 255"},
		{"tos 256", one + ", tos: 0x100}", "3:48: networks[0].tos: 0x100 is out of range", "a tos is inherit or a number from 0 to 255"},
		{"tos auto", one + ", tos: auto}", "3:48: networks[0].tos: auto is not a number", "inherit"},
		{"tos with ECN", one + ", tos: 0x13}", "3:48: networks[0].tos: 0x13 has an ECN bit set", "write 0x10"},
		{"tos 1", "underlay: {device: e, tos: 1}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:28: underlay.tos: 1 means inherit to the kernel", "write inherit"},
		{"df", one + ", df: on}", "3:47: networks[0].df: on is not known here", "unset, set, inherit"},
		{"df on IPv6", one + ", df: set, remotes: [2001:db8::12]}", "3:47: networks[0].df: set is for an IPv4 underlay, and that of network mgmt is IPv6 (2001:db8::12)", "delete it"},
		{"df from above on IPv6", "underlay: {device: e, df: inherit}\nnetworks:\n- {name: a, vni: 1, bridge: b, group: 'ff05::1'}\n- {name: c, vni: 2, bridge: d, group: 'ff05::2'}", "1:27: underlay.df: inherit is for an IPv4 underlay, and that of network a is IPv6 (ff05::1)", "give network a `df: unset`|the networks over IPv4"},
		{"flow label 21 bits", one + ", flow_label: 0x100000}", "3:55: networks[0].flow_label: 0x100000 is out of range: a flow label is a number from 0 to 1048575", "20 bits"},
		{"flow label on IPv4", one + ", flow_label: 7, group: 239.1.1.1}", "3:55: networks[0].flow_label: 7 is for an IPv6 underlay, and that of network mgmt is IPv4 (239.1.1.1)", "delete it"},
		{"flow label from above on IPv4", "underlay: {device: e, local: 192.0.2.1, flow_label: 7}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:53: underlay.flow_label: 7 is for an IPv6 underlay", "`flow_label: 0`"},
		{"one source port", one + ", source_ports: 5}", "3:57: networks[0].source_ports: is the value 5, want a list", "[5]"},
		{"one source port in a list", one + ", source_ports: [5]}", "3:43: networks[0].source_ports: 1 values, want two", "[low, high]"},
		{"no source ports", one + ", source_ports: []}", "3:43: networks[0].source_ports: 0 values", "low to high-1"},
		{"source port 0", one + ", source_ports: [0, 5]}", "3:58: networks[0].source_ports[0]: 0 is out of range", "1 to 65535"},
		{"source port 65536", one + ", source_ports: [5, 65536]}", "3:61: networks[0].source_ports[1]: 65536 is out of range", "1 to 65535"},
		{"source ports equal", one + ", source_ports: [500, 500]}", "3:63: networks[0].source_ports[1]: 500 is not above 500", "low to high-1"},
		{"source ports turned round", "underlay: {device: e, source_ports: [6, 5]}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:41: underlay.source_ports[1]: 5 is not above 6", "[low, high]"},
		{"source port empty", one + ", source_ports: [~, 5]}", "3:58: networks[0].source_ports[0]: an empty list item", ""},
		{"udp checksum", one + ", udp_checksum: off}", "3:57: networks[0].udp_checksum: off is neither", "write false"},
		{"word of ip link for the checksum", one + ", udpcsum: false}", "3:43: networks[0]: unknown key udpcsum", "write udp_checksum"},
		{"mss clamp small", one + ", mss_clamp: 535}", "3:54: networks[0].mss_clamp: 535 is out of range: mss_clamp is off, auto or a number from 536 to 65495", "what the MTU leaves"},
		{"mss clamp large", head + "mss_clamp: 65496\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:12: mss_clamp: 65496 is out of range", "65495"},
		{"mss clamp word", one + ", mss_clamp: on}", "3:54: networks[0].mss_clamp: on is not a number", "off, auto or a number"},
		{"bypass netfilter", head + "bypass_netfilter: yes\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:19: bypass_netfilter: yes is neither", "write true"},
		{"mtu word", one + ", mtu: max}", "3:48: networks[0].mtu: max is not a number", "an MTU is auto or a number from 68 to 65535"},
		{"datapath", head + "datapath: fast\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:11: datapath: fast is not known", "auto, xdp, tc, kernel"},
		{"metrics without a port", head + "metrics: 127.0.0.1\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:10: metrics: 127.0.0.1 is no address with a port", "unix:"},
		{"metrics at a name", head + "metrics: 'localhost:9879'\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:10: metrics: localhost is no address", "127.0.0.1:9879"},
		{"metrics port", head + "metrics: '127.0.0.1:99999'\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:10: metrics: 99999 is no port", "off"},
		{"metrics path", head + "metrics: 'unix:metrics.sock'\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:10: metrics: metrics.sock is no absolute path", "unix:"},
		{"log level", head + "log: {level: loud}\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:14: log.level: loud is not known", "debug, info, warn, error"},
		{"log format", head + "log: {format: xml}\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:15: log.format: xml is not known", "text, json"},
		{"local multicast", "underlay: {device: e, local: 239.1.1.1}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:30: underlay.local: 239.1.1.1 is a multicast", "this host"},

		// Names.
		{"no name", head + "networks:\n- vni: 1\n  bridge: b\n", "3:3: networks[0]: name is missing", "name: mgmt"},
		{"empty name", head + "networks:\n- vni: 1\n  name:\n  bridge: b\n", "4:3: networks[0].name: is empty", "name: mgmt"},
		{"network name", head + "networks: [{name: a/b, vni: 1, bridge: b}]", "2:19: networks[0].name: a/b is not a network name", "a-z"},
		{"long network name", head + "networks: [{name: " + strings.Repeat("a", 33) + ", vni: 1, bridge: b, link: l}]", "2:19: networks[0].name: aaa", "32"},
		{"dot name", head + "networks: [{name: .., vni: 1, bridge: b}]", "2:19: networks[0].name: .. is not", ""},
		{"duplicate name", one + "}\n- {name: mgmt, vni: 7, bridge: br-b}", "4:10: networks[1].name: mgmt is also the name of networks[0] (line 3)", "own name"},
		{"duplicate bridge", one + "}\n- {name: b, vni: 7, bridge: br-mgmt}", "4:29: networks[1].bridge: br-mgmt is also the bridge of network mgmt (line 3)", "merge"},
		{"duplicate link", one + ", link: vx1}\n- {name: b, vni: 7, bridge: br-b, link: vx1}", "4:41: networks[1].link: vx1 is also the link of network mgmt (line 3)", "own name"},
		{"duplicate default link", one + ", link: encap-b}\n- {name: b, vni: 7, bridge: br-b}", "4:10: networks[1].link: encap-b is also the link of network mgmt (line 3)", "link:"},
		{"bridge is own link", one + ", link: br-mgmt}", "3:49: networks[0].link: br-mgmt is also the bridge of network mgmt (line 3)", "own name"},
		{"bridge is earlier link", one + "}\n- {name: b, vni: 7, bridge: encap-mgmt}", "4:29: networks[1].bridge: encap-mgmt is also the link of network mgmt (line 3)", "own name"},
		{"bridge is the device", head + "networks: [{name: a, vni: 1, bridge: eth2}]", "2:38: networks[0].bridge: eth2 is also the underlay device of the host (line 1)", "own name"},
		{"link is a later device", one + ", link: eth9}\n- {name: b, vni: 7, bridge: br-b, device: eth9}", "3:49: networks[0].link: eth9 is also the underlay device of network b (line 4)", "own name"},
		{"no bridge", head + "networks: [{name: a, vni: 1}]", "2:12: networks[0]: bridge is missing", "br-mgmt"},
		{"empty bridge", head + "networks: [{name: a, vni: 1, bridge: }]", "2:30: networks[0].bridge: is empty", "br-mgmt"},
		{"bridge without name", head + "networks: [{name: a, vni: 1, bridge: {stp: false}}]", "2:30: networks[0].bridge: name is missing", "br-mgmt"},
		{"empty bridge name", head + "networks: [{name: a, vni: 1, bridge: ''}]", `2:38: networks[0].bridge: "" is empty`, "15 bytes"},
		{"long bridge name", head + "networks: [{name: a, vni: 1, bridge: br-management-net}]", "2:38: networks[0].bridge: br-management-net is 17 bytes", "at most 15"},
		{"slash", head + "networks: [{name: a, vni: 1, bridge: a/b}]", "2:38: networks[0].bridge: a/b contains /", ""},
		{"white space", head + "networks: [{name: a, vni: 1, bridge: a b}]", `2:38: networks[0].bridge: "a b" contains white space`, ""},
		{"percent", head + "networks: [{name: a, vni: 1, bridge: br%d}]", "2:38: networks[0].bridge: br%d contains %", ""},
		{"dots", head + "networks: [{name: a, vni: 1, bridge: ..}]", "2:38: networks[0].bridge: .. is not a link name", ""},
		{"default link too long", head + "networks: [{name: management, vni: 1, bridge: b}]", "2:19: networks[0].name: the default link name encap-management is 16 bytes", "link:"},

		// VNI.
		{"no vni", head + "networks: [{name: a, bridge: b}]", "2:12: networks[0]: vni is missing", "vni: 236"},
		{"large vni", "underlay: {device: eth2}\nnetworks:\n  - name: mgmt\n    bridge: b\n    vni: 16777216\n", "5:10: networks[0].vni: 16777216 is out of range: a VNI is a number from 0 to 16777215", ""},
		{"huge vni", head + "networks: [{name: a, vni: 99999999999999999999, bridge: b}]", "2:27: networks[0].vni: 99999999999999999999 is out of range", ""},
		{"negative vni", head + "networks: [{name: a, vni: -1, bridge: b}]", "2:27: networks[0].vni: -1 is out of range", ""},
		{"text vni", head + "networks: [{name: a, vni: mgmt, bridge: b}]", "2:27: networks[0].vni: mgmt is not a number", "0 to 16777215"},
		{"fraction", head + "networks: [{name: a, vni: 1.5, bridge: b}]", "2:27: networks[0].vni: 1.5 is not a number", ""},
		{"underscore", head + "networks: [{name: a, vni: 1_000, bridge: b}]", "2:27: networks[0].vni: 1_000 is not a number", ""},
		{"leading zero", head + "networks: [{name: a, vni: 0236, bridge: b}]", "2:27: networks[0].vni: 0236 has a leading zero", "write 236"},
		{"tab before", head + "networks: [{name: a, vni:\t16777216, bridge: b}]", "2:27: networks[0].vni: 16777216", ""},
		{"UTF-8 before", head + "networks: [{\"name\": \"ü\", vni: 1, bridge: b}, {name: b, vni: x, bridge: c}]", "2:21: networks[0].name: ü|2:61: networks[1].vni: x is", ""},
		{"duplicate vni", one + "}\n- {name: b, vni: 236, bridge: br-b}", "4:18: networks[1].vni: 236 is also the vni of network mgmt (line 3), on the same port 4789", "own vni"},

		// Where packets go.
		{"group unicast", one + ", group: 192.0.2.12}", "3:50: networks[0].group: 192.0.2.12 is not a multicast group", "remotes"},
		{"remote multicast", one + ", remotes: [239.1.1.1]}", "3:53: networks[0].remotes[0]: 239.1.1.1 is a multicast group", "group:"},
		{"remote unspecified", one + ", remotes: [0.0.0.0]}", "3:53: networks[0].remotes[0]: 0.0.0.0 is the unspecified", "192.0.2.12"},
		{"remote loopback", one + ", remotes: ['::1']}", "3:53: networks[0].remotes[0]: ::1 is a loopback", ""},
		{"remote broadcast", one + ", remotes: [255.255.255.255]}", "3:53: networks[0].remotes[0]: 255.255.255.255 is the broadcast", ""},
		{"remote twice", one + ", remotes: [192.0.2.12, 192.0.2.13, 192.0.2.12]}", "3:77: networks[0].remotes[2]: 192.0.2.12 is listed twice, first in line 3", "delete"},
		{"remote name", one + ", remotes: [host2]}", "3:53: networks[0].remotes[0]: host2 is not an IP address", "names are not looked up"},
		{"remote prefix", one + ", remotes: [192.0.2.12/24]}", "3:53: networks[0].remotes[0]: 192.0.2.12/24 has a prefix", "write 192.0.2.12"},
		{"remote typo", one + ", remotes: [2001:db8::g]}", "3:53: networks[0].remotes[0]: 2001:db8::g is not an IP address", "192.0.2.12"},
		{"remote zone", one + ", remotes: [fe80::1%eth2]}", "3:53: networks[0].remotes[0]: fe80::1%eth2 has a zone", "write fe80::1"},
		{"remote mapped", one + ", remotes: ['::ffff:192.0.2.1']}", "3:53: networks[0].remotes[0]: ::ffff:192.0.2.1 is an IPv4", "write 192.0.2.1"},
		{"remote is local", one + ", local: 192.0.2.12, remotes: [192.0.2.12]}", "3:72: networks[0].remotes[0]: 192.0.2.12 is local", "other hosts"},
		{"remote is the host's local", "underlay: {device: eth2, local: 192.0.2.12}\nnetworks: [{name: a, vni: 1, bridge: b, remotes: [192.0.2.12]}]", "2:51: networks[0].remotes[0]: 192.0.2.12 is local", ""},
		{"families of remotes", one + ", remotes: [192.0.2.12, 2001:db8::1]}", "3:65: networks[0].remotes[1]: 2001:db8::1 is IPv6, and 192.0.2.12 (line 3) is IPv4", "one family"},
		{"families of group and remotes", one + ", remotes: [192.0.2.12], group: ff05::1}", "3:53: networks[0].remotes[0]: 192.0.2.12 is IPv4, and ff05::1 (line 3) is IPv6", "one family"},
		{"families of local and remotes", "underlay: {device: eth2, local: 192.0.2.1}\nnetworks: [{name: a, vni: 1, bridge: b, remotes: [2001:db8::1, 2001:db8::2]}]", "2:51: networks[0].remotes[0]: 2001:db8::1 is IPv6, and local 192.0.2.1 (line 1) is IPv4", "local"},
		{"family of fdb", one + ", remotes: [192.0.2.12], fdb: [{mac: 02:00:00:00:00:01, remote: 2001:db8::1}]}", "3:105: networks[0].fdb[0].remote: 2001:db8::1 is IPv6", "one family"},
		{"group ttl 1", one + ", group: 239.1.1.236, ttl: 1}", "3:68: networks[0].ttl: 1 is too low for a multicast group (239.1.1.236, line 3)", "write 5"},
		{"group host ttl 1", "underlay: {device: eth2, ttl: 1}\nnetworks:\n- {name: a, vni: 1, bridge: b, group: 239.1.1.1}\n- {name: c, vni: 2, bridge: d, group: 239.1.1.2}", "1:31: underlay.ttl: 1 is too low for a multicast group (239.1.1.1, line 3)", "write 5"},

		// Static entries.
		{"mac", one + ", fdb: [{mac: 2:0:0:0:0:1, remote: 192.0.2.12}]}", "3:55: networks[0].fdb[0].mac: 2:0:0:0:0:1 is not a MAC", "02:00"},
		{"mac zero", one + ", fdb: [{mac: 00:00:00:00:00:00, remote: 192.0.2.12}]}", "3:55: networks[0].fdb[0].mac: 00:00:00:00:00:00 is no station", "remotes"},
		{"mac group", one + ", fdb: [{mac: ff:ff:ff:ff:ff:ff, remote: 192.0.2.12}]}", "3:55: networks[0].fdb[0].mac: ff:ff:ff:ff:ff:ff is a group address", ""},
		{"mac twice", one + ", fdb: [{mac: 02:00:00:00:00:01, remote: 192.0.2.12}, {mac: 02-00-00-00-00-01, remote: 192.0.2.13}]}", "3:101: networks[0].fdb[1].mac: 02:00:00:00:00:01 is listed twice, first in line 3", "one place"},
		{"mac missing", one + ", fdb: [{remote: 192.0.2.12}]}", "3:49: networks[0].fdb[0]: mac is missing", ""},
		{"fdb remote missing", one + ", fdb: [{mac: 02:00:00:00:00:01}]}", "3:49: networks[0].fdb[0]: remote is missing", ""},
		{"fdb remote is local", one + ", local: 192.0.2.1, fdb: [{mac: 02:00:00:00:00:01, remote: 192.0.2.1}]}", "3:100: networks[0].fdb[0].remote: 192.0.2.1 is local", ""},
		{"fdb remote multicast", one + ", fdb: [{mac: 02:00:00:00:00:01, remote: 239.1.1.1}]}", "3:82: networks[0].fdb[0].remote: 239.1.1.1 is a multicast", "one host"},

		// The bridge's addresses.
		{"address without length", bridge("172.29.236.11"), "2:63: networks[0].bridge.addresses[0]: 172.29.236.11 is not an address with", "/24"},
		{"network address", bridge("172.29.236.0/22"), "2:63: networks[0].bridge.addresses[0]: 172.29.236.0/22 is the network", "172.29.236.1/22"},
		{"IPv6 network address", bridge("'2001:db8::/64'"), "2:63: networks[0].bridge.addresses[0]: 2001:db8::/64 is the network", "2001:db8::1/64"},
		{"broadcast address", bridge("172.29.239.255/22"), "2:63: networks[0].bridge.addresses[0]: 172.29.239.255/22 is the broadcast", ""},
		{"everything", bridge("172.29.236.1/0"), "2:63: networks[0].bridge.addresses[0]: 172.29.236.1/0 would send everything", ""},
		{"multicast address", bridge("239.1.1.1/24"), "2:63: networks[0].bridge.addresses[0]: 239.1.1.1/24 is a multicast", ""},
		{"address twice", bridge("10.0.0.1/24, 10.0.0.1/16"), "2:76: networks[0].bridge.addresses[1]: 10.0.0.1 is also an address", "once"},
		{"address on two bridges", head + "networks:\n- {name: a, vni: 1, bridge: {name: b, addresses: [10.0.0.1/24]}}\n- {name: c, vni: 2, bridge: {name: d, addresses: [10.0.0.1/16]}}", "4:51: networks[1].bridge.addresses[0]: 10.0.0.1 is also an address on the bridge of network a (line 3)", "one bridge"},
		{"address is local", "underlay: {device: eth2, local: 10.0.0.1}\nnetworks: [{name: a, vni: 1, bridge: {name: b, addresses: [10.0.0.1/24]}}]", "2:60: networks[0].bridge.addresses[0]: 10.0.0.1 is also the local of the host (line 1)", "underlay device"},
		{"local is address", head + "networks:\n- {name: a, vni: 1, bridge: {name: b, addresses: [10.0.0.1/24]}}\n- {name: c, vni: 2, bridge: d, local: 10.0.0.1}", "4:39: networks[1].local: 10.0.0.1 is also an address on the bridge of network a (line 3)", "underlay device"},

		// Numbers.
		{"small mtu", one + ", mtu: 67}", "3:48: networks[0].mtu: 67 is out of range", "68 to 65535"},
		{"large mtu", "underlay: {device: e, mtu: 65536}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:28: underlay.mtu: 65536 is out of range", "68 to 65535"},
		{"mtu sum", "underlay: {device: e, mtu: 1500}\nnetworks: [{name: a, vni: 1, bridge: b, mtu: 1500}]", "2:46: networks[0].mtu: 1500 + 50 bytes of encapsulation = 1550, more than the 1500 of underlay.mtu (line 1)", "1450 or less"},
		{"mtu sum IPv6", "underlay: {device: e, mtu: 1500}\nnetworks: [{name: a, vni: 1, bridge: b, mtu: 1450, remotes: [2001:db8::1]}]", "2:46: networks[0].mtu: 1450 + 70 bytes of encapsulation = 1520, more than the 1500", "1430 or less"},
		{"mtu sum with a tag", "underlay: {device: e, mtu: 1500}\nvlan_tags: 1\nnetworks: [{name: a, vni: 1, bridge: b, mtu: 1447}]", "3:46: networks[0].mtu: 1447 + 50 + 4 bytes of encapsulation and VLAN tag = 1501, more than the 1500", "1446 or less"},
		{"no room for tags", "underlay: {device: e, mtu: 125}\nnetworks: [{name: a, vni: 1, bridge: b, vlan_tags: 2}]", "1:28: underlay.mtu: 125 - 50 - 8 bytes of encapsulation and VLAN tags = 67, less than", "path"},
		{"vlan tags", one + ", vlan_tags: 3}", "3:54: networks[0].vlan_tags: 3 is out of range: vlan_tags is a number from 0 to 2", "2 for QinQ"},
		{"vlan tags, a word", head + "vlan_tags: true\nnetworks: [{name: a, vni: 1, bridge: b}]", "2:12: vlan_tags: true is not a number", "0 to 2"},
		{"no room", "underlay: {device: e, mtu: 100}\nnetworks: [{name: a, vni: 1, bridge: b}]", "1:28: underlay.mtu: 100 - 50 bytes of encapsulation = 50, less than", "path"},
		{"learning", one + ", learning: off}", "3:53: networks[0].learning: off is neither true nor false", "write false"},
		{"stp", head + "networks: [{name: a, vni: 1, bridge: {name: b, stp: yes}}]", "2:53: networks[0].bridge.stp: yes is neither", "write true"},
		{"ageing text", one + ", ageing: never}", "3:51: networks[0].ageing: never is not a time", "0 means never"},
		{"ageing negative", one + ", ageing: -1}", "3:51: networks[0].ageing: -1 is out of range", ""},
		{"ageing huge", one + ", ageing: 99999999999999999999}", "3:51: networks[0].ageing: 99999999999999999999 is out of range", "1000000 seconds"},
		{"ageing fraction", one + ", ageing: 1500ms}", "3:51: networks[0].ageing: 1500ms is not a multiple of 1s", ""},
		{"forward delay long", head + "networks: [{name: a, vni: 1, bridge: {name: b, forward_delay: 31}}]", "2:63: networks[0].bridge.forward_delay: 31 is out of range", "30 seconds"},
		{"forward delay with stp", head + "networks: [{name: a, vni: 1, bridge: {name: b, stp: true, forward_delay: 0}}]", "2:74: networks[0].bridge.forward_delay: 0 is too short with stp", "2s to 30s"},

		// Several at once, in the order of the file.
		{"several", second + ", mtu: 1, group: x, color: red}\n- {name: c}\n", "4:40: networks[1].mtu: 1|4:50: networks[1].group: x|4:53: networks[1]: unknown key color|5:3: networks[2]: bridge is missing|5:3: networks[2]: vni is missing", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("config.yaml", []byte(tt.text))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("want an *Error, got %v", err)
			}
			wants := strings.Split(tt.want, "|")
			if len(wants) != len(e.Problems) {
				t.Errorf("want %d problems, got %d:\n%v", len(wants), len(e.Problems), err)
			}
			for i, p := range e.Problems {
				if i < len(wants) {
					want := strings.TrimPrefix(wants[i], "config.yaml")
					if want == wants[i] {
						want = ":" + want
					}
					if !strings.HasPrefix(p.String(), "config.yaml"+want) {
						t.Errorf("want %q, got\n%s", want, p)
					}
				}
				checkCaret(t, tt.text, p)
			}
			for w := range strings.SplitSeq(tt.words, "|") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("want %q in\n%v", w, err)
				}
			}
		})
	}
}

func bridge(address string) string {
	return head + "networks: [{name: mgmt, vni: 1, bridge: {name: b, addresses: [" + address + "]}}]"
}

func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		if strings.Contains(format, "%") {
			fmt.Fprintf(&b, format, i)
		} else {
			b.WriteString(format)
		}
	}
	return b.String()
}

// checkCaret asserts that the snippet is the line of the problem and a caret
// under its column: the characters before both agree in tabs, so they line up
// wherever the terminal puts its tab stops.
func checkCaret(t *testing.T, text string, p Problem) {
	t.Helper()
	if p.Line == 0 {
		if p.Snippet != "" {
			t.Errorf("a snippet without a place: %q", p.Snippet)
		}
		return
	}
	source, caret, ok := strings.Cut(p.Snippet, "\n")
	if !ok || strings.Contains(caret, "\n") || strings.Count(caret, "^") != 1 || !strings.HasSuffix(caret, "^") {
		t.Fatalf("want a line and a caret, got\n%s", p.Snippet)
	}
	line := []rune(strings.Split(text, "\n")[p.Line-1])
	under := []rune(source)
	n := len([]rune(caret)) - 1 // characters before the caret; none here is wide
	if n > len(under) || p.Column-1 > len(line) {
		t.Fatalf("the caret is off the line:\n%s", p.Snippet)
	}
	if p.Column-1 < len(line) && n < len(under) && line[p.Column-1] != under[n] && under[n] != '\ufffd' {
		t.Errorf("column %d is %q, but the caret is under %q:\n%s", p.Column, line[p.Column-1], under[n], p.Snippet)
	}
	for i, r := range []rune(caret)[:n] {
		if i >= len("    1 | ") && (r == '\t') != (under[i] == '\t') {
			t.Errorf("tabs of line and caret disagree:\n%q", p.Snippet)
		}
	}
}

func TestSnippet(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		col        int
		want       string
	}{
		{"plain", "vni: 5", 6, "    1 | vni: 5\n      |      ^"},
		{"tab", "vni:\t5", 6, "    1 | vni:\t5\n      |     \t^"},
		{"wide", "名: 5", 4, "    1 | 名: 5\n      |     ^"},
		{"combining", "e\u0301: 5", 5, "    1 | e\u0301: 5\n      |    ^"},
		{"escape", "\x1b[1m: 5", 7, "    1 | \ufffd[1m: 5\n      |       ^"},
		{"bidi", "\u202ea: 5", 5, "    1 | \ufffda: 5\n      |     ^"},
		{"end", "a", 9, "    1 | a\n      |  ^"},
		{"long", strings.Repeat("a", 200) + "X" + strings.Repeat("b", 200), 201,
			"    1 | ..." + strings.Repeat("a", 50) + "X" + strings.Repeat("b", 49) + "...\n      |    " + strings.Repeat(" ", 50) + "^"},
	} {
		s := source{lines: []string{tt.line}}
		if got := s.snippet(pos{1, tt.col}); got != tt.want {
			t.Errorf("%s: want\n%s\ngot\n%s", tt.name, tt.want, got)
		}
	}
}

func TestErrorText(t *testing.T) {
	_, err := Parse("etc/a.yaml", []byte("underlay:\n  device: eth2\nnetworks:\n  - name: mgmt\n    bridge: br-mgmt\n    vni:\t16777216\n"))
	const want = "etc/a.yaml:6:10: networks[0].vni: 16777216 is out of range: a VNI is a number from 0 to 16777215\n" +
		"    6 |     vni:\t16777216\n" +
		"      |         \t^\n" +
		"  hint: use the number that the other hosts have for this network"
	if err == nil || err.Error() != want {
		t.Errorf("want\n%s\ngot\n%v", want, err)
	}
}

func TestManyProblems(t *testing.T) {
	_, err := Parse("c", []byte(one+", remotes: ["+numbered(300, "h%d, ")+"]}"))
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != maxProblems || e.Omitted != 200 {
		t.Fatalf("want 100 problems and 200 left out, got %v", err)
	}
	if !strings.HasSuffix(err.Error(), "\nc: and 280 more") {
		t.Errorf("want the rest counted, got\n%v", err)
	}
}

func TestErrorAt(t *testing.T) {
	c := parse(t, "underlay: {device: eth2, ttl: 5}\n"+
		"networks:\n"+
		"- name: mgmt\n"+
		"  vni: 236\n"+
		"  bridge: br-mgmt\n"+
		"  remotes: [192.0.2.12, 192.0.2.13]\n"+
		"- {name: b, vni: 7, bridge: {name: br-b, addresses: [10.0.0.1/8]}, device: eth3}\n")
	for path, want := range map[string]string{
		"underlay.device":                  "1:20",
		"underlay.local":                   "1:1",
		"networks[0].remotes[1]":           "6:25",
		"networks[0].remotes[7]":           "6:3",
		"networks[0].device":               "1:20", // inherited
		"networks[0].underlay.device":      "1:20",
		"networks[0].ttl":                  "1:31",
		"networks[0].df":                   "3:3",
		"networks[0].local":                "3:3", // defaulted
		"networks[0].link":                 "3:3",
		"networks[0].bridge":               "5:11",
		"networks[0].bridge.name":          "5:11",
		"networks[0].bridge.stp":           "5:11",
		"networks[1].device":               "7:76",
		"networks[1].bridge":               "7:21",
		"networks[1].bridge.addresses[0]":  "7:54",
		"networks[1].bridge.forward_delay": "7:21",
		"log.level":                        "",
		"":                                 "",
	} {
		err := c.ErrorAt(path, "no such thing", "look again")
		var e *Error
		if !errors.As(err, &e) || len(e.Problems) != 1 {
			t.Fatalf("%s: %v", path, err)
		}
		p, at := e.Problems[0], ""
		if p.Line > 0 {
			at = fmt.Sprintf("%d:%d", p.Line, p.Column)
		}
		if at != want || p.Path != path || !strings.HasPrefix(err.Error(), "config.yaml:") ||
			!strings.Contains(err.Error(), "no such thing") || !strings.Contains(err.Error(), "look again") {
			t.Errorf("%q: want %q, got\n%v", path, want, err)
		}
		checkCaret(t, string(c.Source()), p)
	}
	hand := &Config{File: "x.yaml"}
	if err := hand.ErrorAt("underlay.device", "m", ""); err.Error() != "x.yaml: underlay.device: m" {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.yaml", Smallest)
	if c, err := Load(good); err != nil || c.File != good {
		t.Errorf("%+v, %v", c, err)
	}
	missing := filepath.Join(dir, "none.yaml")
	if _, err := Load(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing+": cannot be read: no such file") {
		t.Error(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), dir+": cannot be read: is a directory") {
		t.Error(err)
	}
	if _, err := Load(""); err == nil || !strings.HasPrefix(err.Error(), `"": cannot be read`) {
		t.Error(err)
	}
	noise := file("noise", strings.Repeat("\x1b\x00\xffnoise", 10<<20/8))
	if _, err := Load(noise); err == nil || !strings.HasPrefix(err.Error(), noise+": is 10485760 bytes, and a config has at most 1048576") || len(err.Error()) > 300 {
		t.Error(err)
	}
	// No size to ask for: the reader's limit counts.
	if _, err := Load("/dev/zero"); err == nil || !strings.Contains(err.Error(), "/dev/zero: is more than 1048576 bytes") {
		t.Error(err)
	}
	if _, err := Parse("big", make([]byte, MaxSize+1)); err == nil || !strings.Contains(err.Error(), "big: is 1048577 bytes") {
		t.Error(err)
	}

	old := os.Stdin
	defer func() { os.Stdin = old }()
	var err error
	if os.Stdin, err = os.Open(good); err != nil {
		t.Fatal(err)
	}
	defer os.Stdin.Close()
	if c, err := Load(Stdin); err != nil || c.File != "<stdin>" || string(c.Source()) != Smallest {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestHostileFiles has files that a parser without limits chokes on, for hours:
// each must be answered, with an error of bounded length. The test binary's own
// time limit is what a hang runs into.
func TestHostileFiles(t *testing.T) {
	fill := func(start, more string) string { return start + strings.Repeat(more, (MaxSize/2-len(start))/len(more)) }
	for name, text := range map[string]string{
		"noise":          fill("", "\x8a\x01\xf0"),
		"brackets":       fill("", "["),
		"dashes":         fill("", "- "),
		"braces":         fill("", "{a: "),
		"keys":           numbered(40000, "k%d: 1\n"),
		"empty items":    fill("a:\n", "- \n"),
		"empty values":   fill("a:\n", "- a:\n"),
		"empty in flow":  fill("a: [", "{a: }, "),
		"documents":      fill("", "a\n---\n"),
		"explicit keys":  fill("a:\n", "- ? a\n"),
		"block text":     fill("a: |\n", " a\n") + "\n",
		"blank lines":    fill("a: |\n", "\n"),
		"one long line":  fill("networks: [", "{remotes: [1.1.1.1]}, "),
		"aliases":        fill("networks:\n- {remotes: &a ["+strings.Repeat("1.1.1.1,", 30000)+"]}\n", "- {remotes: *a}\n"),
		"nested aliases": "a: &a [x, x]\n" + numbered(100, "b: &b [*a, *a]\n"),
	} {
		_, err := Parse("config.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), "config.yaml") || len(err.Error()) > 20000 {
			t.Errorf("%s: %.500v", name, err)
		}
	}
}

// TestReferenceIsComplete fails when a key is added and not documented: each
// key must stand in the reference, under a comment.
func TestReferenceIsComplete(t *testing.T) {
	if !strings.Contains(string(Reference), "# ") {
		t.Fatal("the reference has no comments")
	}
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ == reflect.TypeFor[scalar]() {
			return
		}
		for _, f := range reflect.VisibleFields(typ) {
			key, ok := f.Tag.Lookup("yaml")
			if !ok {
				continue
			}
			if !regexp.MustCompile(`(?m)^[ -]*` + key + `:`).Match(Reference) {
				t.Errorf("%s%s is not in reference.yaml", path, key)
			}
			walk(f.Type, path+key+".")
		}
	}
	walk(reflect.TypeFor[rawConfig](), "")
}

func TestOverhead(t *testing.T) {
	if Overhead(false) != 50 || Overhead(true) != 70 {
		t.Error("RFC 7348: 14 + 8 + 8 + 20 or 40")
	}
	for tags, want := range []string{"70 bytes of encapsulation", "70 + 4 bytes of encapsulation and VLAN tag", "70 + 8 bytes of encapsulation and VLAN tags"} {
		n, text := (&Network{VLANTags: tags}).Overhead(true)
		if n != 70+4*tags || text != want {
			t.Errorf("%d tags: %d, %s", tags, n, text)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "~", "&a ~", Smallest, string(Reference), one + ", remotes: &r [192.0.2.12, *r]}", "a: |\n b\n", "? a\n: b", "- -\n-\n",
		"{\n\t\"a\":\t[1, {b}, ,]}", "a: &a\nb: *a\n", "---\n---\n", "%YAML 1.2\n", "'", "\"\\x", "a: !!x b", "\xff", "\ufeff\r\n\r",
		one + ", bridge: {name: b, stp: x, forward_delay: 1e9h, addresses: [1/1, ::/0]}, fdb: [{mac: x}], ttl: 0x1, ageing: -0}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("config.yaml", b)
		if err == nil {
			for i, n := range c.Networks {
				if n.Name == "" || n.Bridge.Name == "" || n.Link == "" || n.Underlay.Device == "" || n.Underlay.Port == 0 || n.VNI > fdb.MaxVNI {
					t.Errorf("accepted an incomplete network: %+v", n)
				}
				if !strings.Contains(c.ErrorAt(fmt.Sprintf("networks[%d].vni", i), "m", "").Error(), "^") {
					t.Error("no place for a VNI")
				}
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) || len(e.Problems) == 0 {
			t.Fatalf("not an *Error: %v", err)
		}
		for _, p := range e.Problems {
			if p.File != "config.yaml" || p.Message == "" {
				t.Errorf("incomplete problem %+v", p)
			}
		}
		for _, r := range err.Error() {
			if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
				t.Errorf("control character %U in %q", r, err.Error())
			}
		}
	})
}
