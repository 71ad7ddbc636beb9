// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv/need"
)

// The network in question, for which no device need be there:
//
//	v-c1 -- br-mgmt -- encap-mgmt ---- eth2 (192.0.2.1, 2001:db8::1; port 4789)
var (
	bridge = Bridge{Dev: Dev{"br-mgmt", 100}, Ports: []Dev{{"v-c1", 101}, {"encap-mgmt", 102}}}
	eth2   = Dev{"eth2", 103}
	outer4 = Underlay{Local: netip.MustParseAddr("192.0.2.1"), Port: 4789, Dev: eth2}
	outer6 = Underlay{Local: netip.MustParseAddr("2001:db8::1"), Port: 4789, Dev: eth2}
)

// answers are what Rules says of that network.
type answers struct{ inner, outer4, outer6, ingress, egress string }

func ask4(r Rules) answers {
	return answers{r.Inner(bridge), r.Outer(outer4), r.Outer(outer6), r.Ingress(eth2), r.Egress(eth2)}
}

// What others put on a host by default: Docker up to 27, with a published port
// (28 has other forward rules, none without "-o docker0", and rules in raw);
// libvirt and lxc-net with iptables and with nftables.
const (
	off    = "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables"
	docker = `
		iptables -N DOCKER
		iptables -N DOCKER-ISOLATION-STAGE-1
		iptables -N DOCKER-ISOLATION-STAGE-2
		iptables -N DOCKER-USER
		iptables -A FORWARD -j DOCKER-USER
		iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1
		iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		iptables -A FORWARD -o docker0 -j DOCKER
		iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
		iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT
		iptables -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
		iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
		iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN
		iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
		iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN
		iptables -A DOCKER-USER -j RETURN
		iptables -t nat -N DOCKER
		iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
		iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
		iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
		iptables -t nat -A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
		iptables -t nat -A DOCKER -i docker0 -j RETURN
		iptables -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80`
	dockerRaw = `
		iptables -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP`
	dockerPolicy = `
		iptables -P FORWARD DROP`
	libvirt = `
		iptables -N LIBVIRT_INP
		iptables -N LIBVIRT_OUT
		iptables -N LIBVIRT_FWI
		iptables -N LIBVIRT_FWO
		iptables -N LIBVIRT_FWX
		iptables -A INPUT -j LIBVIRT_INP
		iptables -A OUTPUT -j LIBVIRT_OUT
		iptables -A FORWARD -j LIBVIRT_FWX
		iptables -A FORWARD -j LIBVIRT_FWI
		iptables -A FORWARD -j LIBVIRT_FWO
		iptables -A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
		iptables -A LIBVIRT_INP -i virbr0 -p tcp -m tcp --dport 67 -j ACCEPT
		iptables -A LIBVIRT_OUT -o virbr0 -p udp -m udp --dport 68 -j ACCEPT
		iptables -A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
		iptables -A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
		iptables -A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
		iptables -A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
		iptables -A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
		iptables -t nat -N LIBVIRT_PRT
		iptables -t nat -A POSTROUTING -j LIBVIRT_PRT
		iptables -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN
		iptables -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p udp -j MASQUERADE --to-ports 1024-65535
		iptables -t mangle -N LIBVIRT_PRT
		iptables -t mangle -A POSTROUTING -j LIBVIRT_PRT
		iptables -t mangle -A LIBVIRT_PRT -o virbr0 -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill`
	libvirtNFT = `
		nft -f - <<-END
		table ip libvirt_network {
			chain forward { type filter hook forward priority filter; policy accept;
				counter jump guest_cross; counter jump guest_input; counter jump guest_output
			}
			chain guest_output { ip saddr 192.168.122.0/24 iifname "virbr0" counter accept; iifname "virbr0" counter reject; }
			chain guest_input { oifname "virbr0" ip daddr 192.168.122.0/24 ct state established,related counter accept; oifname "virbr0" counter reject; }
			chain guest_cross { iifname "virbr0" oifname "virbr0" counter accept; }
			chain guest_nat { type nat hook postrouting priority srcnat; policy accept;
				ip saddr 192.168.122.0/24 ip daddr 224.0.0.0/24 counter return
				meta l4proto udp ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 counter masquerade to :1024-65535
				ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 counter masquerade
			}
		}
		END`
	lxc = `
		iptables -I INPUT -i lxcbr0 -p udp --dport 67 -j ACCEPT
		iptables -I INPUT -i lxcbr0 -p tcp --dport 53 -j ACCEPT
		iptables -I FORWARD -i lxcbr0 -j ACCEPT
		iptables -I FORWARD -o lxcbr0 -j ACCEPT
		iptables -t nat -A POSTROUTING -s 10.0.3.0/24 ! -d 10.0.3.0/24 -j MASQUERADE
		iptables -t mangle -A POSTROUTING -o lxcbr0 -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill`
	lxcNFT = `
		nft -f - <<-END
		table inet lxc {
			chain input { type filter hook input priority 0; iifname lxcbr0 udp dport { 53, 67 } accept; iifname lxcbr0 tcp dport { 53, 67 } accept; }
			chain forward { type filter hook forward priority 0; iifname lxcbr0 accept; oifname lxcbr0 accept; }
		}
		table ip lxc {
			chain postrouting { type nat hook postrouting priority 100; ip saddr 10.0.3.0/24 ip daddr != 10.0.3.0/24 counter masquerade; }
		}
		END`
)

// TestRules: what counts and what does not. "iptables" in a script stands for
// both its variants; the answers differ only in the tool.
func TestRules(t *testing.T) {
	nft := func(rules string) string { return "nft -f - <<-END\n" + rules + "\nEND" }
	base := func(family, name, hook, rules string) string {
		typ := "type filter hook " + hook
		if !strings.Contains(hook, "priority") {
			typ += " priority 0"
		}
		return nft("table " + family + " t { chain " + name + " { " + typ + "; " + rules + "\n}; }")
	}
	for _, c := range []struct {
		name, script string
		want         answers
	}{
		{"nothing", "", answers{}},
		{"empty chains", base("inet", "c", "forward", "") + "\n" + base("ip", "c", "input", "policy accept;") + "\niptables -L", answers{}},
		{"policy", base("inet", "c", "input", "policy drop;"), answers{outer4: "nft inet t c has policy drop", outer6: "nft inet t c has policy drop"}},
		{"policy of legacy", "iptables -P FORWARD DROP", answers{inner: "iptables filter FORWARD has policy DROP (bridge-nf-call-iptables is 1)"}},
		{"arp", base("arp", "c", "input", "policy drop; drop"), answers{}},
		{"dormant table", "nft 'add table ip t { flags dormant; }'\nnft 'add chain ip t c { type filter hook output priority 0; policy drop; }'", answers{}},
		{"chain that nothing jumps to", nft("table ip t { chain c { drop; }; }"), answers{}},

		// Inner frames.
		{"bridge forward", base("bridge", "f", "forward", "drop; drop; ip saddr 10.0.0.1 drop"), answers{inner: "nft bridge t f has 3 rules"}},
		{"bridge prerouting", base("bridge", "f", "prerouting", "drop"), answers{inner: "nft bridge t f has 1 rule"}},
		{"bridge input", base("bridge", "f", "input", "drop"), answers{inner: "nft bridge t f has 1 rule"}},
		{"bridge output", base("bridge", "f", "output", "drop"), answers{inner: "nft bridge t f has 1 rule"}},
		{"bridge postrouting", base("bridge", "f", "postrouting", "drop"), answers{inner: "nft bridge t f has 1 rule"}},
		{"bridge, this port", base("bridge", "f", "forward", "iifname v-c1 drop"), answers{inner: "nft bridge t f has 1 rule"}},
		{"bridge, another port", base("bridge", "f", "forward", "iifname vnet0 drop; oifname \"vnet*\" drop"), answers{}},
		{"bridge, all but another port", base("bridge", "f", "forward", "iifname != vnet0 drop"), answers{inner: "nft bridge t f has 1 rule"}},
		{"ip forward", base("ip", "f", "forward", "drop"), answers{inner: "nft ip t f has 1 rule (bridge-nf-call-iptables is 1)"}},
		{"ip forward, bridge netfilter off", off + "\n" + base("ip", "f", "forward", "drop"), answers{}},
		{"ip6 forward", base("ip6", "f", "forward", "drop"), answers{inner: "nft ip6 t f has 1 rule (bridge-nf-call-ip6tables is 1)"}},
		{"inet forward, IPv4 off", off + "\n" + base("inet", "f", "forward", "meta nfproto ipv4 drop"), answers{}},
		{"inet forward, IPv6 on", off + "\n" + base("inet", "f", "forward", "meta nfproto ipv6 drop"), answers{inner: "nft inet t f has 1 rule (bridge-nf-call-ip6tables is 1)"}},
		{"forward between others", "iptables -A FORWARD -i eth0 -o br-lan -j DROP\niptables -A FORWARD ! -i br-mgmt -o br-mgmt -j DROP", answers{inner: "iptables filter FORWARD has 1 rule (bridge-nf-call-iptables is 1)"}},
		{"forward from another", "iptables -A FORWARD -i br-lan -j DROP\niptables -A FORWARD -o virbr+ -j DROP\niptables -A FORWARD -i v-c1 -j DROP", answers{}},
		{"physdev", "iptables -A FORWARD -m physdev --physdev-in v-c1 -j DROP", answers{inner: "iptables filter FORWARD has 1 rule (bridge-nf-call-iptables is 1)"}},

		// Outer packets.
		{"this port", base("inet", "c", "input", "udp dport 4789 drop"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"this port, IPv4", base("ip", "c", "input", "udp dport 4789 drop"), answers{outer4: "nft ip t c has 1 rule"}},
		{"this port, IPv6", base("ip6", "c", "prerouting", "udp dport 4789 drop"), answers{inner: "nft ip6 t c has 1 rule (bridge-nf-call-ip6tables is 1)", outer6: "nft ip6 t c has 1 rule"}},
		{"this port, accepted", base("inet", "c", "input", "udp dport 4789 counter accept"), answers{}},
		{"this port, counted", base("inet", "c", "input", "udp dport 4789 counter"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"this port, not tracked", base("inet", "c", "output", "udp dport 4789 notrack"), answers{}},
		{"this port, not tracked, iptables", "iptables -t raw -A OUTPUT -p udp --dport 4789 -j CT --notrack", answers{}},
		{"another port", base("inet", "c", "output", "udp dport 53 drop; udp dport 5000-6000 drop; tcp dport 4789 drop; udp dport != 4789 drop"), answers{}},
		{"another port, iptables", "iptables -A INPUT -p udp --dport 53 -j DROP\niptables -A INPUT -p udp ! --dport 4000:5000 -j DROP\niptables -A INPUT ! -p udp -j DROP", answers{}},
		{"this port, iptables", "iptables -A INPUT -p udp --dport 4000:5000 -j DROP", answers{outer4: "iptables filter INPUT has 1 rule"}},
		{"ports unknown to us", base("inet", "c", "output", "udp dport { 53, 67 } drop"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"source port", base("inet", "c", "output", "udp sport 4789 drop"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"another device", base("inet", "c", "input", "iifname eth0 drop; iifname lo drop; iif lo drop; iifname \"eth0*\" drop"), answers{}},
		{"this device", base("inet", "c", "input", "iifname \"eth*\" drop"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"another address", base("inet", "c", "input", "ip daddr 10.0.0.0/8 drop; ip6 daddr fe80::/10 drop; ip daddr != 192.0.2.0/28 drop"), answers{}},
		{"any source", base("inet", "c", "input", "ip saddr 10.0.0.0/8 drop"), answers{outer4: "nft inet t c has 1 rule"}},
		{"this address", base("inet", "c", "output", "ip saddr 192.0.2.0/28 drop"), answers{outer4: "nft inet t c has 1 rule"}},
		{"forward only", base("inet", "c", "forward", "udp dport 4789 drop"), answers{inner: "nft inet t c has 1 rule (bridge-nf-call-iptables is 1)"}},
		{"mark", base("inet", "c", "output", "udp dport 4789 meta mark set 1"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"ttl", base("inet", "c", "output", "ip ttl set 1"), answers{outer4: "nft inet t c has 1 rule"}},
		{"established", base("inet", "c", "input", "ct state established,related accept; ct state invalid drop"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"verdict map", base("inet", "c", "input", "ct state vmap { established : accept, invalid : drop }"), answers{outer4: "nft inet t c has 1 rule", outer6: "nft inet t c has 1 rule"}},
		{"log", "iptables -A OUTPUT -j LOG", answers{outer4: "iptables filter OUTPUT has 1 rule"}},
		{"accounting", "iptables -A OUTPUT -p udp", answers{outer4: "iptables filter OUTPUT has 1 rule"}},
		{"jumps", nft(`table inet t { chain a { type filter hook output priority 0; jump b; oifname lo jump d;
			}
			chain b { udp dport 53 drop; goto c; }; chain c { tcp dport 1 drop; accept; }; chain d { drop; }; }`), answers{}},
		{"jumps to a drop", nft(`table inet t { chain a { type filter hook output priority 0; jump b; }
			chain b { udp dport 53 drop; goto c; }; chain c { udp dport 4789 drop; }; }`), answers{outer4: "nft inet t a has 1 rule", outer6: "nft inet t a has 1 rule"}},
		{"gotos", "iptables -N b\niptables -N c\niptables -A OUTPUT -j b\niptables -A b -g c\niptables -A c -p udp --dport 4789 -j DROP", answers{outer4: "iptables filter OUTPUT has 1 rule"}},

		// At devices.
		{"ingress", "ip link add eth2 type veth peer name x\n" + base("netdev", "c", "ingress device eth2 priority 0", "drop"), answers{ingress: "nft netdev t c has 1 rule"}},
		{"ingress of inet", "ip link add eth2 type veth peer name x\n" + base("inet", "c", "ingress device eth2 priority 0", "drop"), answers{ingress: "nft inet t c has 1 rule"}},
		{"ingress elsewhere", "ip link add eth2 type veth peer name x\n" + base("netdev", "c", "ingress device x priority 0", "drop"), answers{}},
		{"ingress of two", "ip link add eth2 type veth peer name x\n" + base("netdev", "c", "ingress devices = { x, eth2 } priority 0", "policy drop;"), answers{ingress: "nft netdev t c has policy drop"}},
		{"egress", "ip link add eth2 type veth peer name x\n" + base("netdev", "c", "egress device eth2 priority 0", "drop"), answers{egress: "nft netdev t c has 1 rule"}},

		// What others put on a host.
		{"docker, bridge netfilter off", off + docker + dockerRaw, answers{}},
		{"docker", docker, answers{inner: "iptables nat PREROUTING has 1 rule (bridge-nf-call-iptables is 1)"}},
		{"docker with its policy", docker + dockerPolicy, answers{inner: "iptables filter FORWARD has policy DROP (bridge-nf-call-iptables is 1)"}},
		{"docker with its policy, bridge netfilter off", off + docker + dockerPolicy, answers{}},
		{"libvirt", libvirt, answers{inner: "iptables nat POSTROUTING has 1 rule (bridge-nf-call-iptables is 1)"}},
		{"libvirt, bridge netfilter off", off + libvirt, answers{}},
		{"libvirt, nftables", libvirtNFT, answers{inner: "nft ip libvirt_network guest_nat has 2 rules (bridge-nf-call-iptables is 1)"}},
		{"libvirt, nftables, bridge netfilter off", off + libvirtNFT, answers{}},
		{"lxc-net", lxc, answers{inner: "iptables nat POSTROUTING has 1 rule (bridge-nf-call-iptables is 1)"}},
		{"lxc-net, nftables", lxcNFT, answers{inner: "nft ip lxc postrouting has 1 rule (bridge-nf-call-iptables is 1)"}},
		{"lxc-net, nftables, bridge netfilter off", off + lxcNFT, answers{}},
		{"lxc-net, bridge netfilter off", off + lxc, answers{}},
	} {
		if !strings.Contains(c.script, "iptables -") {
			t.Run(c.name, func(t *testing.T) { rules(t, c.script, c.want) })
			continue
		}
		t.Run(c.name+"/legacy", func(t *testing.T) {
			rules(t, strings.ReplaceAll(c.script, "iptables -", "iptables-legacy -"), c.want)
		})
		t.Run(c.name+"/nft", func(t *testing.T) {
			tool := func(s string) string {
				return strings.NewReplacer("iptables filter", "nft ip filter", "iptables nat", "nft ip nat", "policy DROP", "policy drop").Replace(s)
			}
			rules(t, strings.ReplaceAll(c.script, "iptables -", "iptables-nft -"),
				answers{tool(c.want.inner), tool(c.want.outer4), tool(c.want.outer6), tool(c.want.ingress), tool(c.want.egress)})
		})
	}
}

func rules(t *testing.T, script string, want answers) {
	newNS(t)
	if strings.Contains(script, "hook egress") {
		needEgress(t)
	}
	sh(t, script)
	if got := ask4(look(t)); got != want {
		t.Errorf("got %+v\nwant %+v\n%s", got, want, script)
	}
}

// TestBridgeAttribute: the bridge's own attribute turns bridge netfilter on as the sysctl does.
func TestBridgeAttribute(t *testing.T) {
	newNS(t)
	sh(t, `echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables; echo 0 >/proc/sys/net/bridge/bridge-nf-call-ip6tables
		nft add table ip6 t
		nft 'add chain ip6 t c { type filter hook forward priority 0; policy drop; }'`)
	r, b := look(t), bridge
	for _, c := range []struct {
		v4, v6 bool
		want   string
	}{{false, false, ""}, {true, false, ""}, {false, true, "nft ip6 t c has policy drop (nf_call_ip6tables of br-mgmt is 1)"}} {
		b.IPTables, b.IP6Tables = c.v4, c.v6
		if got := r.Inner(b); got != c.want {
			t.Errorf("nf_call_iptables %v, nf_call_ip6tables %v: %q, want %q", c.v4, c.v6, got, c.want)
		}
	}
}

// TestLookOnly: looking makes no table, and says so of a process that may not look.
func TestLookOnly(t *testing.T) {
	newNS(t)
	sh(t, "iptables-legacy -t mangle -L")
	before := sh(t, "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; nft list ruleset")
	look(t)
	if after := sh(t, "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; nft list ruleset"); after != before || after != "mangle\n" {
		t.Errorf("tables before %q, after %q", before, after)
	}
	// The thread ends with the test, so what it drops stays dropped for nobody else.
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&hdr, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	must(t, unix.Capset(&hdr, &data[0]))
	if _, err := Read(Rules{}); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("without CAP_NET_ADMIN: %v", err)
	}
	if _, err := Watch(t.Context()); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("watch without CAP_NET_ADMIN: %v", err)
	}
}

func TestWatch(t *testing.T) {
	newNS(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ticks, err := Watch(ctx)
	must(t, err)
	sh(t, "nft add table ip t")
	tick(t, ticks)
	sh(t, "nft 'add chain ip t c { type filter hook input priority 0; policy drop; }'")
	eventually(t, "the new chain after a tick", func() bool {
		tick(t, ticks)
		return look(t).Outer(outer4) != ""
	})
	sh(t, "iptables-nft -A INPUT -j DROP")
	tick(t, ticks)
	cancel()
	for range ticks {
		// until it is closed
	}
}

// TestGeneration: rules that have not changed are not read again, those that have are.
func TestGeneration(t *testing.T) {
	newNS(t)
	sh(t, `nft add table ip t
		nft 'add chain ip t c { type filter hook input priority 0; }'
		iptables-legacy -P OUTPUT DROP`)
	var script strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&script, "add rule ip t c ip daddr 10.%d.%d.%d udp dport 53 counter accept\n", i>>16, i>>8&255, i&255)
	}
	f := t.TempDir() + "/rules"
	must(t, os.WriteFile(f, []byte(script.String()), 0o600))
	sh(t, "nft -f "+f)
	first := look(t)
	if n := len(first.nft[0].rules); n != 10000 {
		t.Fatalf("%d rules read", n)
	}
	if got := first.Outer(outer4); got != "iptables filter OUTPUT has policy DROP" {
		t.Errorf("first look: %q", got)
	}
	sh(t, "iptables-legacy -P OUTPUT ACCEPT")
	second, err := Read(first)
	must(t, err)
	if &second.nft[0] != &first.nft[0] {
		t.Error("rules that had not changed were read again")
	}
	if got := second.Outer(outer4); got != "" {
		t.Errorf("second look: %q", got)
	}
	sh(t, "nft add rule ip t c drop")
	third, err := Read(second)
	must(t, err)
	if got := third.Outer(outer4); got != "nft ip t c has 1 rule" {
		t.Errorf("third look: %q", got)
	}
}

func BenchmarkRead(b *testing.B) {
	for b.Loop() {
		if _, err := Read(Rules{}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestEbtables: legacy ebtables, where the kernel still has them.
func TestEbtables(t *testing.T) {
	newNS(t)
	need.Kernel(t, need.Ebtables)
	if why := look(t).Inner(bridge); why != "" {
		t.Errorf("empty tables: %q", why)
	}
	for _, c := range []struct{ set, want, unset string }{
		{"ebtables-legacy -A FORWARD -p IPv4 -j DROP; ebtables-legacy -A FORWARD -j CONTINUE", "ebtables filter FORWARD has 2 rules", "ebtables-legacy -F"},
		{"ebtables-legacy -P OUTPUT DROP", "ebtables filter OUTPUT has policy DROP", "ebtables-legacy -P OUTPUT ACCEPT"},
		{"ebtables-legacy -N mine; ebtables-legacy -A mine -j DROP; ebtables-legacy -A INPUT --among-src 02:00:00:00:00:01, -j mine", "ebtables filter INPUT has 1 rule", "ebtables-legacy -F INPUT"},
		{"ebtables-legacy -t nat -A POSTROUTING -j snat --to-source 02:00:00:00:00:02", "ebtables nat POSTROUTING has 1 rule", "ebtables-legacy -t nat -F"},
		{"ebtables-legacy -t broute -A BROUTING -p ARP -j DROP", "ebtables broute BROUTING has 1 rule", "ebtables-legacy -t broute -F"},
	} {
		sh(t, c.set)
		if why := look(t).Inner(bridge); why != c.want {
			t.Errorf("%s: %q, want %q", c.set, why, c.want)
		}
		sh(t, c.unset)
		if why := look(t).Inner(bridge); why != "" {
			t.Errorf("%s: %q", c.unset, why)
		}
	}
}
