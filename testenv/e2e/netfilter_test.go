// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
)

//	h1: mgmt-1 -- v-mgmt-1 -- br-mgmt -- encap-mgmt -- eth2 ==== eth2: h2
//	                 ^           ^           ^          ^
//	                       packet filter rules of h1
//
// A rule that would see the network's packets keeps them on the kernel path, so
// it does what it says; without it they are fast again, with no restart. A rule
// that is not for them changes nothing.

// filtered is a world with a packet filter on h1.
type filtered struct {
	*world
	a, b *testenv.Container
}

func newFiltered(t *testing.T, h1 testenv.HostSpec) filtered {
	h1.Name = "h1"
	w := up(t, oneNetwork(h1, testenv.HostSpec{Name: "h2"}), true)
	f := filtered{w, w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")}
	// No ARP between them: it is the kernel's to carry, also past rules that BPF goes around.
	for _, p := range [][2]*testenv.Container{{f.a, f.b}, {f.b, f.a}} {
		if err := p[0].NS.Command(w.ctx, "ip", "neigh", "replace", p[1].Addr.Addr().String(), "lladdr", p[1].MAC.String(), "dev", "eth0", "nud", "permanent").Run(); err != nil {
			t.Fatal(err)
		}
	}
	w.wait("the fast path", f.fast)
	return f
}

// sh runs commands on h1.
func (f filtered) sh(script string) string {
	f.t.Helper()
	out, err := f.Host("h1").NS.Command(f.ctx, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		f.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func (f filtered) talk(to netip.Prefix) bool {
	r, err := testenv.Ping(f.ctx, f.a.NS, to.Addr(), testenv.PingOptions{Count: 1, Timeout: 50 * time.Millisecond})
	return err == nil && r.OK()
}

// fast: an echo over IPv4 went through BPF on h1 in both directions.
func (f filtered) fast() bool {
	before := f.network("h1", "mgmt")
	if !f.talk(f.b.Addr) {
		return false
	}
	after := f.network("h1", "mgmt")
	return after.Sent.Fast > before.Sent.Fast && after.Received.Fast > before.Received.Fast
}

// dead: one lost packet may be chance; eight in a row did not go around the rule.
func (f filtered) dead(to netip.Prefix) bool {
	for range 8 {
		if f.talk(to) {
			return false
		}
	}
	return true
}

// reasons are why the network or its port is not fast.
func (f filtered) reasons() string {
	n := f.network("h1", "mgmt")
	s := n.Reason
	for _, p := range n.Ports {
		s += "\n" + p.Reason
	}
	return s
}

var packetsCounted = regexp.MustCompile(`counter packets (\d+)`)

// counted is the sum of all counters of h1's rules.
func (f filtered) counted() (sum int) {
	for _, m := range packetsCounted.FindAllStringSubmatch(f.sh("nft list ruleset"), -1) {
		n, _ := strconv.Atoi(m[1])
		sum += n
	}
	return sum
}

// rule is an nftables script for one chain with one rule.
func rule(family, hook, rule string) string {
	return "nft -f - <<-END\ntable " + family + " t {\nchain c {\ntype filter hook " + hook + "\n" + rule + "\n}\n}\nEND"
}

func TestNetfilter(t *testing.T) {
	f := newFiltered(t, testenv.HostSpec{})
	const flush = "nft flush ruleset"
	for _, c := range []struct {
		name, set, unset string
		want             string // in a reason
		v6               bool
		bound            time.Duration // until it is found; 0 for what sends an event
	}{
		{name: "ip forward", set: rule("ip", "forward priority 0", "meta l4proto icmp drop"), want: "nft ip t c has 1 rule (bridge-nf-call-iptables is 1)"},
		{name: "policy", set: rule("inet", "forward priority 0", "policy drop;"), want: "nft inet t c has policy drop"},
		{name: "ip6 forward", set: rule("ip6", "forward priority 0", "meta l4proto ipv6-icmp icmpv6 type echo-request drop"), want: "nft ip6 t c has 1 rule", v6: true},
		{name: "bridge forward", set: rule("bridge", "forward priority -200", "iifname v-mgmt-1 meta l4proto icmp drop"), want: "nft bridge t c has 1 rule"},
		{name: "bridge prerouting", set: rule("bridge", "prerouting priority -200", "meta l4proto icmp drop"), want: "nft bridge t c has 1 rule"},
		{name: "underlay input", set: rule("ip", "input priority 0", "udp dport 4789 drop"), want: "nft ip t c has 1 rule"},
		{name: "underlay prerouting", set: rule("inet", "prerouting priority 0", "iifname eth2 udp dport 4789 drop"), want: "nft inet t c has 1 rule"},
		{name: "underlay output", set: rule("inet", "output priority 0", "udp dport 4789 drop"), want: "nft inet t c has 1 rule"},
		{name: "underlay postrouting", set: rule("ip", "postrouting priority 0", "oifname eth2 drop"), want: "nft ip t c has 1 rule"},
		{name: "underlay ingress", set: rule("netdev", "ingress device eth2 priority 0", "udp dport 4789 drop"), want: "nft netdev t c has 1 rule"},
		{name: "underlay egress", set: rule("netdev", "egress device eth2 priority 0", "udp dport 4789 drop"), want: "nft netdev t c has 1 rule"},
		{name: "vxlan link egress", set: rule("netdev", "egress device encap-mgmt priority 0", "meta l4proto icmp drop"), want: "nft netdev t c has 1 rule"},
		{name: "vxlan link ingress", set: rule("netdev", "ingress device encap-mgmt priority 0", "meta l4proto icmp drop"), want: "nft netdev t c has 1 rule"},
		{name: "port ingress", set: rule("netdev", "ingress device v-mgmt-1 priority 0", "meta l4proto icmp drop"), want: "nft netdev t c has 1 rule"},
		{name: "port egress", set: rule("netdev", "egress device v-mgmt-1 priority 0", "meta l4proto icmp drop"), want: "nft netdev t c has 1 rule"},
		{name: "iptables-nft", set: "iptables-nft -A FORWARD -p icmp -j DROP", want: "nft ip filter FORWARD has 1 rule"},
		// Legacy tables send no event: the next full look finds them.
		{name: "iptables-legacy", set: "iptables-legacy -A FORWARD -p icmp -j DROP", unset: "iptables-legacy -F", want: "iptables filter FORWARD has 1 rule", bound: 45 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.t = t
			if c.bound == 0 {
				c.bound = 15 * time.Second
			}
			if c.unset == "" {
				c.unset = flush
			}
			to := f.b.Addr
			if c.v6 {
				to = f.b.Addr6
			}
			f.sh(c.set)
			f.waitFor(c.bound, "the rule to bite", func() bool { return f.dead(to) })
			f.wait("the reason in status", func() bool { return strings.Contains(f.reasons(), c.want) })
			f.sh(c.unset)
			f.waitFor(c.bound, "the fast path without the rule", f.fast)
			f.wait("no reason in status", func() bool { return strings.TrimSpace(f.reasons()) == "" })
		})
	}

	// A rule that only counts gets to see all packets, and they go through.
	t.Run("counter", func(t *testing.T) {
		f.t = t
		f.sh(rule("ip", "forward priority 0", "meta l4proto icmp counter"))
		f.wait("the reason in status", func() bool { return strings.Contains(f.reasons(), "nft ip t c has 1 rule") })
		before := f.counted()
		f.ping(f.a.NS, f.b.Addr.Addr()) // three echoes, there and back
		if n := f.counted() - before; n != 6 {
			t.Errorf("the rule counted %d of 6 packets", n)
		}
		f.sh(flush)
		f.wait("the fast path without the rule", f.fast)
	})

	// What is on many hosts and is not for these packets leaves them fast.
	t.Run("for others", func(t *testing.T) {
		f.t = t
		f.sh(`iptables-nft -A INPUT -i virbr0 -p udp --dport 53 -j DROP
			iptables-nft -A INPUT -p tcp --dport 22 -j DROP
			iptables-nft -A INPUT -p udp --dport 4789 -j ACCEPT
			iptables-nft -A FORWARD -o docker0 -j DROP
			iptables-nft -t nat -A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 8080`)
		// They have been looked at when a rule that does count has come and gone in status.
		f.sh("nft add table bridge z; nft 'add chain bridge z c { type filter hook forward priority -200; policy drop; }'")
		f.wait("the reason in status", func() bool { return strings.Contains(f.reasons(), "nft bridge z c has policy drop") })
		f.sh("nft delete table bridge z")
		f.wait("the fast path beside rules for others", f.fast)
		if why := strings.TrimSpace(f.reasons()); why != "" {
			t.Errorf("not fast: %s", why)
		}
		f.sh(flush)
	})
}

// TestNetfilterAtStart: rules that are there before the daemon keep the network
// off the fast path from the first packet on.
func TestNetfilterAtStart(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	f := filtered{w, w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")}
	f.sh(rule("ip", "forward priority 0", "meta l4proto icmp drop"))
	w.start("h1")
	w.start("h2")
	f.wait("the reason in status", func() bool { return strings.Contains(f.reasons(), "nft ip t c has 1 rule") })
	f.wait("the rule to bite", func() bool { return f.dead(f.b.Addr) })
	if n := f.network("h1", "mgmt"); n.Sent.Fast+n.Received.Fast != 0 {
		t.Errorf("BPF carried %d and %d packets past the rule", n.Sent.Fast, n.Received.Fast)
	}
	f.sh("nft flush ruleset")
	f.wait("the fast path without the rule", f.fast)
}

// TestNetfilterDocker: Docker's rules are for its own networks, and its policy
// drops what is bridged on any bridge: so it does here. status says so, exits
// as degraded, and what it advises helps.
func TestNetfilterDocker(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	f := filtered{w, w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")}
	f.sh(`iptables-nft -P FORWARD DROP
		iptables-nft -N DOCKER-USER
		iptables-nft -A DOCKER-USER -j RETURN
		iptables-nft -A FORWARD -j DOCKER-USER
		iptables-nft -A FORWARD -o docker0 -j ACCEPT
		iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT`)
	const advice = "sysctl -w net.bridge.bridge-nf-call-iptables=0"
	line := "\n! DEGRADED: mgmt on the kernel path: nft ip filter FORWARD has policy drop (bridge-nf-call-iptables is 1); " +
		"if it is not meant for them: bypass_netfilter: true, or " + advice + "\n"

	out, stderr, code := w.vxbpf("h1", "load", "--once", w.config("h1"))
	if code != 3 || !strings.Contains(stderr, strings.TrimPrefix(strings.ToLower(line), "\n! ")[:40]) {
		t.Errorf("load --once: exit %d\n%s%s", code, out, stderr)
	}
	w.start("h1")
	w.start("h2")
	out, _, code = w.vxbpf("h1", "status")
	if code != 3 || !strings.Contains(out, line) {
		t.Errorf("status: exit %d\n%s\nwant 3, and%s", code, out, line)
	}
	if !f.dead(f.b.Addr) {
		t.Error("the policy does not bite")
	}
	f.sh(advice)
	f.sh("nft add table ip x; nft delete table ip x") // a sysctl sends no event; the next look may be 30 s away
	f.wait("the fast path after the advice", f.fast)
	if out, _, code = w.vxbpf("h1", "status"); code != 0 || strings.Contains(out, "DEGRADED") {
		t.Errorf("status: exit %d\n%s", code, out)
	}
}

// TestNetfilterSwitchedOff: with bridge netfilter off, ip rules are not for
// inner frames. The sysctl sends no event; the bridge's attribute does.
func TestNetfilterSwitchedOff(t *testing.T) {
	f := newFiltered(t, testenv.HostSpec{})
	f.sh("echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables")
	f.sh(rule("ip", "forward priority 0", "meta l4proto icmp drop"))
	f.wait("the fast path with bridge netfilter off", f.fast)
	f.sh("ip link set br-mgmt type bridge nf_call_iptables 1")
	f.wait("the rule to bite", func() bool { return f.dead(f.b.Addr) })
	f.wait("the reason in status", func() bool {
		return strings.Contains(f.reasons(), "nft ip t c has 1 rule (nf_call_iptables of br-mgmt is 1)")
	})
	f.sh("ip link set br-mgmt type bridge nf_call_iptables 0")
	f.wait("the fast path with bridge netfilter off again", f.fast)
}

// TestNetfilterBypass: who asks for it gets the fast path past all rules.
func TestNetfilterBypass(t *testing.T) {
	f := newFiltered(t, testenv.HostSpec{Config: "{bypass_netfilter: true}"})
	f.sh(rule("ip", "forward priority 0", "meta l4proto icmp drop"))
	f.sh("nft add table netdev n; nft 'add chain netdev n c { type filter hook ingress device v-mgmt-1 priority 0; }'; nft add rule netdev n c meta l4proto icmp drop")
	f.sh("nft add table ip u; nft 'add chain ip u c { type filter hook input priority 0; }'; nft add rule ip u c udp dport 4789 drop")
	// Longer than the daemon takes to look at rules.
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		first, second := f.talk(f.b.Addr), f.talk(f.b.Addr)
		if !first && !second {
			t.Fatal("a rule stops packets that were to go past it")
		}
	}
	f.wait("the fast path past the rules", f.fast)
	if why := strings.TrimSpace(f.reasons()); why != "" {
		t.Errorf("not fast: %s", why)
	}
}
