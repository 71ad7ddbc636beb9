// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv/need"
)

// These tests ask the kernel whether what this package believes of it is so.

// bridged is two hosts on a bridge, all in one namespace. A frame that goes
// into a0 comes out of b0, for nobody there.
//
//	a0 ---- a1 = br0 = b1 ---- b0
func bridged(t *testing.T) {
	t.Helper()
	newNS(t)
	sh(t, `ip link add br0 type bridge
		ip link add a0 type veth peer name a1
		ip link add b0 type veth peer name b1
		ip link set a1 master br0
		ip link set b1 master br0
		for l in br0 a0 a1 b0 b1; do ip link set $l up; done`)
	eventually(t, "both ports forwarding", func() bool {
		return strings.Count(sh(t, "ip -d link show master br0"), "state forwarding") == 2
	})
}

var stranger = [6]byte{0x02, 0, 0, 0, 0, 0x99}

// datagram is an Ethernet frame with a UDP datagram of family v4 or v6 in it.
func datagram(v6 bool) []byte {
	udp := []byte{0x04, 0, 0x12, 0xb5, 0, 8, 0, 0}
	f := append(append(stranger[:], 0x02, 0, 0, 0, 0, 0x01), 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	if v6 {
		binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IPV6)
		ip = append([]byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}, make([]byte, 32)...)
		ip[8], ip[23], ip[24], ip[39] = 0xfd, 1, 0xfd, 2
		udp[6], udp[7] = 0xff, 0xff // some checksum; the bridge's hooks do not look at it
	} else {
		sum := uint32(0)
		for i := 0; i < 20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	}
	// No padding: bridge netfilter takes it off.
	return append(append(f, ip...), udp...)
}

// through puts a frame on a device and reports how many of it come out of another.
func through(t *testing.T, in, out string, frame []byte) bool {
	t.Helper()
	open := func(dev string) int {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: index(t, dev).Index})) // ETH_P_ALL
		return fd
	}
	rx, tx := open(out), open(in)
	must(t, unix.SetsockoptTimeval(rx, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200000}))
	// A frame that is sure to pass tells when the other is not coming any more.
	mark := append(append(stranger[:], 0x02, 0, 0, 0, 0, 0x01), 0x88, 0xb5)
	mark = append(mark, make([]byte, 46)...)
	_, err := unix.Write(tx, frame)
	must(t, err)
	_, err = unix.Write(tx, mark)
	must(t, err)
	buf := make([]byte, 2048)
	came := false
	eventually(t, "the frame behind the one under test", func() bool {
		n, err := unix.Read(rx, buf)
		if err != nil || n < 14 {
			return false
		}
		came = came || slices.Equal(buf[:n], frame)
		return slices.Equal(buf[:n], mark)
	})
	return came
}

var counterLine = regexp.MustCompile(`counter packets (\d+)`)

// counters are those of a chain's rules, in their order.
func counters(t *testing.T, chain string) (out []int) {
	t.Helper()
	for _, m := range counterLine.FindAllStringSubmatch(sh(t, "nft list chain "+chain), -1) {
		n, err := strconv.Atoi(m[1])
		must(t, err)
		out = append(out, n)
	}
	return out
}

// TestBridgeHooks: which hooks bridge netfilter runs for a bridged frame, and
// with which devices; by itself, and where only the bridge says so.
func TestBridgeHooks(t *testing.T) {
	hooks := []string{"prerouting", "input", "forward", "output", "postrouting"}
	for _, c := range []struct {
		name, set string
		v6        bool
		on        bool
	}{
		{"IPv4, default", "", false, true},
		{"IPv4, sysctl off", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables", false, false},
		{"IPv4, sysctl off, attribute on", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables; ip link set br0 type bridge nf_call_iptables 1", false, true},
		{"IPv6, default", "", true, true},
		{"IPv6, sysctl off", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-ip6tables", true, false},
		{"IPv6, sysctl of IPv4 off", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bridged(t)
			sh(t, "true\n"+c.set)
			for _, family := range []string{"inet", "bridge"} {
				sh(t, "nft add table "+family+" t")
				for _, h := range hooks {
					// Before bridge netfilter, as filters of the bridge family stand: older kernels
					// do not show a chain at its own priority, 0, what it has carried around.
					sh(t, fmt.Sprintf("nft 'add chain %s t %s { type filter hook %s priority -200; }'", family, h, h))
				}
			}
			// Of each pair one counts what we say the hook sees, the other what it would be otherwise.
			sh(t, `
				for h in prerouting forward; do nft add rule inet t $h iifname br0 udp dport 4789 counter; nft add rule inet t $h iifname a1 udp dport 4789 counter; done
				for h in forward postrouting; do nft add rule inet t $h oifname br0 udp dport 4789 counter; nft add rule inet t $h oifname b1 udp dport 4789 counter; done
				nft add rule inet t input udp dport 4789 counter
				nft add rule inet t output udp dport 4789 counter
				nft add rule bridge t prerouting iifname a1 udp dport 4789 counter
				nft add rule bridge t forward iifname a1 oifname b1 udp dport 4789 counter
				nft add rule bridge t postrouting oifname b1 udp dport 4789 counter`)
			if !through(t, "a0", "b0", datagram(c.v6)) {
				t.Error("the frame does not get through")
			}
			one := 0
			if c.on {
				one = 1
			}
			for chain, want := range map[string][]int{
				"inet t prerouting": {one, 0}, "inet t forward": {one, 0, one, 0}, "inet t postrouting": {one, 0},
				"inet t input": {0}, "inet t output": {0},
				"bridge t prerouting": {1}, "bridge t forward": {1}, "bridge t postrouting": {1},
			} {
				if got := counters(t, chain); !slices.Equal(got, want) {
					t.Errorf("%s counts %v, want %v", chain, got, want)
				}
			}
		})
	}
}

// TestBridgeDrop: a rule that Inner names does stop a bridged frame, whichever
// tool made it; without one the frame passes.
func TestBridgeDrop(t *testing.T) {
	for name, rule := range map[string]string{
		"nft ip":          "nft add table ip t; nft 'add chain ip t f { type filter hook forward priority 0; }'; nft add rule ip t f iifname br0 counter drop",
		"nft bridge":      "nft add table bridge t; nft 'add chain bridge t f { type filter hook forward priority -200; }'; nft add rule bridge t f iifname a1 udp dport 4789 drop",
		"nft policy":      "nft add table inet t; nft 'add chain inet t f { type filter hook forward priority 0; policy drop; }'",
		"iptables-legacy": "iptables-legacy -A FORWARD -i br0 -j DROP",
		"legacy policy":   "iptables-legacy -P FORWARD DROP",
		"legacy raw":      "iptables-legacy -t raw -A PREROUTING -i br0 -j DROP",
		"iptables-nft":    "iptables-nft -A FORWARD -m physdev --physdev-in a1 -j DROP",
	} {
		t.Run(name, func(t *testing.T) {
			bridged(t)
			b := Bridge{Dev: index(t, "br0"), Ports: []Dev{index(t, "a1"), index(t, "b1")}}
			if why := look(t).Inner(b); why != "" || !through(t, "a0", "b0", datagram(false)) {
				t.Fatalf("without rules: %q, or nothing gets through", why)
			}
			sh(t, rule)
			if why := look(t).Inner(b); why == "" || through(t, "a0", "b0", datagram(false)) {
				t.Errorf("with %s: %q, or the frame gets through", rule, why)
			} else {
				t.Log(why)
			}
		})
	}
}

// TestEgressSkipped: what a tc program at an ingress hook redirects goes around
// the ingress hook of netfilter there, and around its egress hook at the other device.
//
//	a0 ---- a1 -> tc redirect -> b1 ---- b0
func TestEgressSkipped(t *testing.T) {
	newNS(t)
	needEgress(t)
	sh(t, `ip link add a0 type veth peer name a1
		ip link add b0 type veth peer name b1
		for l in a0 a1 b0 b1; do ip link set $l up; done
		nft add table netdev t
		nft 'add chain netdev t in { type filter hook ingress device a1 priority 0; }'
		nft 'add chain netdev t out { type filter hook egress device b1 priority 0; }'
		nft add rule netdev t in ip daddr 10.0.0.2 counter drop
		nft add rule netdev t out ip daddr 10.0.0.2 counter drop`)
	r := look(t)
	if in, out := r.Ingress(index(t, "a1")), r.Egress(index(t, "b1")); in == "" || out == "" || r.Ingress(index(t, "b1"))+r.Egress(index(t, "a1")) != "" {
		t.Errorf("ingress %q, egress %q, or one of the other device", in, out)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(index(t, "b1").Index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
		},
	})
	must(t, err)
	defer prog.Close()
	need.Kernel(t, need.TCX)
	l, err := link.AttachTCX(link.TCXOptions{Interface: index(t, "a1").Index, Program: prog, Attach: ebpf.AttachTCXIngress})
	must(t, err)
	defer l.Close()
	if !through(t, "a0", "b0", datagram(false)) {
		t.Error("a rule has stopped the redirected frame: it is not gone around, look at Ingress and Egress again")
	}
	if in, out := counters(t, "netdev t in"), counters(t, "netdev t out"); in[0] != 0 || out[0] != 0 {
		t.Errorf("ingress hook saw %d, egress hook %d frames, want none", in[0], out[0])
	}
	// What is sent by b1 itself meets its rule.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	_ = unix.Sendto(fd, datagram(false), 0, &unix.SockaddrLinklayer{Ifindex: index(t, "b1").Index, Protocol: 0x0008}) // ENOBUFS: dropped
	if out := counters(t, "netdev t out"); out[0] != 1 {
		t.Errorf("the egress rule counted %d of a frame that the device sent", out[0])
	}
}

// TestNever makes many rules at random, sends the outer packets of a VXLAN past
// them both ways, and wants no rule to have matched of which we say it never does.
func TestNever(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	not := func() string { return pick("", "", "", "!= ") }
	const each = 250

	// nft wants a rule to speak of one family.
	nftRule := func(hook string) string {
		v, l4 := pick("ip", "ip6"), pick("udp", "udp", "tcp")
		a4, a6 := pick("192.0.2.1", "192.0.2.2", "192.0.2.0/24", "192.0.2.0/31", "192.0.2.3", "10.0.0.0/8", "128.0.0.0/8", "192.0.2.1-192.0.2.9", "192.0.2.4-192.0.2.9"),
			pick("2001:db8::1", "2001:db8::2", "2001:db8::/64", "2001:db8::2/127", "fe80::/10", "2001:d00::/32", "2001:db8::1-2001:db8::9", "2001:db9::-2001:dba::")
		addr := map[string]string{"ip": a4, "ip6": a6}[v]
		dev := "iif"
		if hook == "output" || hook == "postrouting" && rnd.IntN(3) > 0 {
			dev = "oif"
		}
		var terms []string
		for range 1 + rnd.IntN(3) {
			terms = append(terms, pick(
				dev+"name "+not()+pick("u0", "u1", "lo", `"u*"`, `"v*"`),
				dev+" "+not()+pick("u0", "lo"),
				v+" "+pick("saddr", "daddr")+" "+not()+addr,
				v+" saddr "+addr+" "+v+" daddr "+addr,
				l4+" "+pick("dport", "dport", "sport")+" "+pick("", "!= ", "< ", "<= ", "> ", ">= ")+pick("4788", "4789", "4790", "53"),
				l4+" dport "+not()+pick("4000-5000", "4789-4790", "4790-5000", "1-4788"),
				l4+" sport 1024-65535 "+l4+" dport "+pick("4789", "53"),
				l4+" dport { 53, "+pick("4789", "4788")+" }",
				"meta l4proto "+pick("!= udp", "!= tcp", l4),
				"meta nfproto "+map[string]string{"ip": "ipv4", "ip6": "ipv6"}[v],
				"ct state "+pick("new", "established"),
				"meta mark "+not()+"0",
				"@th,16,16 & 0xff00 == "+pick("0x1200", "0x1300"),
			))
		}
		return strings.Join(terms, " ") + " counter"
	}
	xtRule := func(v6 bool, hook string) string {
		not := func(s string) string {
			if rnd.IntN(4) == 0 {
				return " ! " + s
			}
			return " " + s
		}
		addr := func() string {
			if v6 {
				return pick("2001:db8::1", "2001:db8::2", "2001:db8::/64", "2001:db8::2/127", "fe80::/10", "2001:d00::/32")
			}
			return pick("192.0.2.1", "192.0.2.2", "192.0.2.0/24", "192.0.2.0/31", "10.0.0.0/8", "128.0.0.0/8", "0.0.0.2/0.0.0.255")
		}
		r := "-A " + hook
		if rnd.IntN(2) == 0 {
			r += not(pick("-s ", "-d ") + addr())
		}
		if rnd.IntN(2) == 0 {
			dev := "-i "
			if hook == "OUTPUT" || hook == "POSTROUTING" {
				dev = "-o "
			}
			r += not(dev + pick("u0", "u1", "lo", "u+", "v+", "u"))
		}
		switch rnd.IntN(4) {
		case 0:
			r += not("-p " + pick("udp", "tcp", "icmp"))
		case 1:
			r += " -p udp -m udp" + not(pick("--dport ", "--sport ")+pick("4789", "53", "4000:5000", "4790:5000", "1024:65535"))
		case 2:
			r += " -m conntrack --ctstate " + pick("NEW", "ESTABLISHED")
		}
		return r
	}

	newNS(t)
	there := far(t)
	dir := t.TempDir()
	hooks := map[string]int{"prerouting": hookPrerouting, "input": hookInput, "output": hookOutput, "postrouting": hookPostrouting}
	var nft strings.Builder
	nft.WriteString("add table inet t\n")
	xt := map[string]string{"iptables": "*mangle\n", "ip6tables": "*mangle\n"}
	for h := range hooks {
		// Nothing but our packets gets to the rules; the last counts them all.
		fmt.Fprintf(&nft, "add chain inet t %s { type filter hook %s priority 0; }\nadd rule inet t %s udp dport != 4789 counter accept\nadd rule inet t %s meta l4proto != udp counter accept\n", h, h, h, h)
		for range each {
			fmt.Fprintf(&nft, "add rule inet t %s %s\n", h, nftRule(h))
		}
		fmt.Fprintf(&nft, "add rule inet t %s counter\n", h)
		for tool := range xt {
			c := strings.ToUpper(h)
			xt[tool] += "-A " + c + " ! -p udp -j ACCEPT\n-A " + c + " -p udp ! --dport 4789 -j ACCEPT\n"
			for range each {
				xt[tool] += xtRule(tool == "ip6tables", c) + "\n"
			}
			xt[tool] += "-A " + c + "\n"
		}
	}
	must(t, os.WriteFile(dir+"/nft", []byte(nft.String()), 0o600))
	sh(t, "nft -f "+dir+"/nft")
	for tool, rules := range xt {
		must(t, os.WriteFile(dir+"/"+tool, []byte(rules+"COMMIT\n"), 0o600))
		sh(t, tool+"-legacy-restore "+dir+"/"+tool)
	}

	send := func(to string) error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 4789)))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("vxlan"))
		return err
	}
	counted := map[string][]int{}
	eventually(t, "packets of both families at all hooks", func() bool {
		err := errors.Join(send("192.0.2.2"), send("2001:db8::2"))
		there(func() { err = errors.Join(err, send("192.0.2.1"), send("2001:db8::1")) })
		must(t, err)
		all := true
		for h := range hooks {
			counted[h] = counters(t, "inet t "+h)
			all = all && counted[h][len(counted[h])-1] >= 2
			for tool := range xt {
				c := tool + " " + strings.ToUpper(h)
				counted[c] = nil
				for _, m := range savedLine.FindAllStringSubmatch(sh(t, tool+"-legacy-save -c -t mangle"), -1) {
					if m[2] == strings.ToUpper(h) {
						n, err := strconv.Atoi(m[1])
						must(t, err)
						counted[c] = append(counted[c], n)
					}
				}
				all = all && counted[c][len(counted[c])-1] >= 1
			}
		}
		return all
	})

	u0 := index(t, "u0")
	out4, in4 := Underlay{Local: netip.MustParseAddr("192.0.2.1"), Port: 4789, Dev: u0}.packets()
	out6, in6 := Underlay{Local: netip.MustParseAddr("2001:db8::1"), Port: 4789, Dev: u0}.packets()
	r := look(t)
	matched, ruledOut, open := 0, 0, 0
	for _, c := range slices.Concat(r.nft, r.legacy) {
		name := c.name
		if c.table == "mangle" {
			name = c.tool + " " + c.name
		}
		counts, ok := counted[name]
		if !ok {
			continue // FORWARD
		}
		if len(counts) != each+3 || len(c.rules) != each+3 {
			t.Fatalf("%s: %d counters, %d rules, want %d", c, len(counts), len(c.rules), each+3)
		}
		for i := range c.rules[2:] {
			i += 2
			p4, p6 := in4, in6
			if c.hook == hookOutput || c.hook == hookPostrouting {
				p4, p6 = out4, out6
			}
			never := c.rules[i].never(p4) && c.rules[i].never(p6)
			switch c.family {
			case unix.NFPROTO_IPV4:
				never = c.rules[i].never(p4)
			case unix.NFPROTO_IPV6:
				never = c.rules[i].never(p6)
			}
			switch {
			case counts[i] > 0 && never:
				t.Errorf("%s: rule %d matched %d packets, and is said never to", c, i, counts[i])
			case counts[i] > 0:
				matched++
			case never:
				ruledOut++
			default:
				open++
			}
		}
	}
	t.Logf("%d rules matched, %d were ruled out, %d were not", matched, ruledOut, open)
	if ruledOut < open {
		t.Error("more rules are left open than are ruled out")
	}
}

// savedLine is a rule of iptables-save -c.
var savedLine = regexp.MustCompile(`(?m)^\[(\d+):\d+\] -A (\S+)`)
