// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// sound is a host on which nothing is wrong. testenv/e2e makes most faults for
// real; here are those whose settings belong to the machine or to a real NIC.
func sound() *host {
	local := netip.MustParseAddr("2001:db8::11")
	bridge, vx := &kernel.Bridge{Ageing: config.DefaultAgeing}, &kernel.VXLAN{VNI: 236, Port: 4789, Ageing: config.DefaultAgeing, Learning: true}
	return &host{
		snap: &observe.Snapshot{Daemon: 1, State: &loader.State{Instance: "i", Networks: []loader.NetworkState{
			{Name: "mgmt", VNI: 236, Port: 4789, Bridge: "br-mgmt", Link: "encap-mgmt", Device: "eth2", Local: local, Wanted: config.Auto, Mode: config.TC}}}},
		links: []kernel.Link{{Index: 2, Name: "eth2", MTU: 1500, Up: true}, {Index: 3, Name: "br-mgmt", Kind: "bridge", MTU: 1430, Up: true, Bridge: bridge},
			{Index: 4, Name: "encap-mgmt", Kind: "vxlan", MTU: 1430, Up: true, Master: 3, VXLAN: vx}},
		addresses: []kernel.Address{{Link: 2, Prefix: netip.PrefixFrom(local, 64)}},
		sysctl: func(name string) (string, bool) {
			v, ok := map[string]string{"net/core/bpf_jit_enable": "1", "net/ipv4/neigh/default/gc_thresh3": "10", "net/ipv4/ip_no_pmtu_disc": "0",
				"net/ipv4/ip_local_port_range": "32768\t60999", "net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/eth2/rp_filter": "0"}[name]
			return v, ok
		},
		features: func(string) (string, map[string]bool, error) {
			return "ixgbe", map[string]bool{"rx-gro": true, "rx-lro": false, "rx-gro-list": false}, nil
		},
		full:  func() (int, int) { return 10, 100 },
		table: func() ([]kernel.Neighbour, error) { return neighbours(3), nil },
	}
}

func neighbours(n int) (out []kernel.Neighbour) {
	for i := range n {
		out = append(out, kernel.Neighbour{Link: 2, IP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), MAC: fdb.MAC{2}, Valid: true})
	}
	return out
}

// tables are the checks that look at what a host has.
var tables = []string{"daemon", "slow_path", "fdb_full", "mtu", "pmtu_off", "source_ports", "ageing", "offloads", "port_conflict", "jit", "neighbours", "local_address"}

func examine(t *testing.T, h *host) (out []string) {
	t.Helper()
	for _, c := range checks {
		if !slices.Contains(tables, c.name) {
			continue
		}
		if err := c.run(h, t.Context()); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	for _, f := range h.findings {
		out = append(out, f.Check+" "+f.Object)
	}
	return out
}

func TestFaults(t *testing.T) {
	sysctl := func(key, value string) func(*host) {
		return func(h *host) {
			old := h.sysctl
			h.sysctl = func(name string) (string, bool) {
				if name == key {
					return value, true
				}
				return old(name)
			}
		}
	}
	feature := func(name string, on bool, driver string) func(*host) {
		return func(h *host) {
			_, have, _ := h.features("")
			have[name] = on
			h.features = func(string) (string, map[string]bool, error) { return driver, have, nil }
		}
	}
	for _, c := range []struct {
		name  string
		fault func(*host)
		want  string // "check object", "" for none
		fix   string // in the first line of the fix
	}{
		{"nothing", func(*host) {}, "", ""},
		{"interpreter", sysctl("net/core/bpf_jit_enable", "0"), "jit net.core.bpf_jit_enable", `sysctl -w net.core.bpf_jit_enable="1"`},
		{"neighbour table", func(h *host) { h.table = func() ([]kernel.Neighbour, error) { return neighbours(9), nil } },
			"neighbours net.ipv4.neigh.default.gc_thresh3", `gc_thresh3="40"`},
		{"full map", func(h *host) { h.full = func() (int, int) { return 90, 100 } }, "fdb_full FDB map", "vxbpf show fdb"},
		{"GRO off", feature("rx-gro", false, "ixgbe"), "offloads eth2", "ethtool -K eth2 gro on"},
		{"GRO off on veth", feature("rx-gro", false, "veth"), "", ""},
		{"LRO on", feature("rx-lro", true, "ixgbe"), "offloads eth2", "ethtool -K eth2 lro off"},
		{"duplicate IPv6 address", func(h *host) { h.addresses[0].Tentative = true }, "local_address 2001:db8::11", "ip -6 address show dev eth2"},
		{"IPv6 overhead", func(h *host) { h.links[2].MTU = 1450 }, "mtu network mgmt", "ip link set eth2 mtu 1520"},
		{"source ports of a link", func(h *host) { h.links[2].VXLAN.SrcLow, h.links[2].VXLAN.SrcHigh = 40000, 40010 }, "source_ports encap-mgmt", "source_ports:"},
		{"external device", func(h *host) {
			h.links = append(h.links, kernel.Link{Index: 9, Name: "vxlan_sys", Up: true, VXLAN: &kernel.VXLAN{Port: 4789, External: true}})
		}, "port_conflict UDP port 4789", "ip link del vxlan_sys"},
		{"an external device on another port", func(h *host) {
			h.links = append(h.links, kernel.Link{Index: 9, Name: "vxlan_sys", Up: true, VXLAN: &kernel.VXLAN{Port: 8472, External: true}})
		}, "", ""},
		{"ageing never", func(h *host) { h.links[2].VXLAN.Ageing = 0 }, "", ""},
		{"isolated", func(h *host) { h.snap.State.Networks[0].Reason = "v1 and encap-mgmt are isolated from each other" }, "slow_path network mgmt", "isolated off"},
		{"kernel by choice", func(h *host) {
			h.snap.State.Networks[0].Wanted, h.snap.State.Networks[0].Reason = config.Kernel, "datapath: kernel in the config"
		}, "", ""},
		{"--once", func(h *host) { h.snap.Daemon, h.snap.State.Once = 0, true }, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := sound()
			c.fault(h)
			var want []string
			if c.want != "" {
				want = []string{c.want}
			}
			got := examine(t, h)
			if !slices.Equal(got, want) {
				t.Fatalf("found %q, want %q", got, want)
			}
			if c.fix != "" && !strings.Contains(h.findings[0].Fix[0], c.fix) {
				t.Errorf("fix %q, want %q", h.findings[0].Fix, c.fix)
			}
		})
	}
}

// Offloads that cannot be asked for are no fault, and said.
func TestUnknown(t *testing.T) {
	h := sound()
	h.features = func(string) (string, map[string]bool, error) { return "", nil, errors.New("ask eth2: no such ioctl") }
	if got := examine(t, h); len(got) != 0 {
		t.Errorf("found %q", got)
	}
	if len(h.unknowns) != 1 || h.unknowns[0].Check != "offloads" {
		t.Errorf("unknown: %+v", h.unknowns)
	}
}

func TestReport(t *testing.T) {
	h := sound()
	h.links[2].MTU = 1450
	h.full = func() (int, int) { return 100, 100 }
	examine(t, h)
	r := &Report{Version: 1, Checks: tables, Findings: h.findings, Unknown: []Unknown{{"path_mtu", "VTEP 192.0.2.12", "it does not answer ICMP echo"}}, Facts: map[string]string{"kernel": "6.18"}}
	if r.Worst() != Problem || (&Report{}).Worst() != "" {
		t.Errorf("worst %q", r.Worst())
	}
	var b strings.Builder
	r.Text(&b)
	for _, want := range []string{"PROBLEM  mtu  network mgmt\n  seen   encap-mgmt has MTU 1450; eth2 has 1500, less 70 bytes of outer headers leaves 1430\n", "WARNING  fdb_full  FDB map\n",
		": 1 problem, 1 warning\n", "What cannot be known from here:\n  path_mtu  VTEP 192.0.2.12: it does not answer ICMP echo\n", "  kernel: 6.18\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	text, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(text), `"severity":"problem"`) {
		t.Errorf("%v %s", err, text)
	}
}

// Names are interface, and each is one question.
func TestChecks(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Checks() {
		if seen[c[0]] || c[1] == "" {
			t.Errorf("check %q twice, or without words", c[0])
		}
		seen[c[0]] = true
	}
	if _, err := Run(t.Context(), Options{Only: []string{"none"}}); err == nil || !strings.Contains(err.Error(), `there is no check "none"`) {
		t.Errorf("a check that is not there: %v", err)
	}
}
