// SPDX-License-Identifier: Apache-2.0

// Package netfilter says which packet filter rules of a network namespace the
// fast path would go around: nftables, legacy iptables, ip6tables and ebtables.
// It reads, and decides from what it read; it must not know what the daemon
// makes of the answer.
//
// A base chain counts if its policy is not accept, or if one of its rules may
// do something to the packets in question: drop, change, log or count them. A
// rule that cannot match them does not count (another interface, protocol,
// address or port), nor one that can only accept. What is not understood
// counts. Connection tracking and flowtables alone do not count.
//
// Not seen are netfilter programs in BPF (BPF_LINK_TYPE_NETFILTER): the kernel
// does not tell their namespace.
package netfilter

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Rules is what one look found. The zero value has no rules.
type Rules struct {
	generation uint32 // of the nftables rules, 0 if they changed while we read
	nft        []*chain
	atDevices  []*chain // those of nft that stand at devices: few, and asked about often
	legacy     []*chain
	// The sysctls of bridge netfilter; all false where the kernel has none.
	bridgeNF       bool
	callIP, callV6 bool
}

// Dev is a network device. The zero value as an argument means that it is not known.
type Dev struct {
	Name  string
	Index int
}

// Bridge is a network's bridge with all its ports, the vxlan device among them.
type Bridge struct {
	Dev
	Ports []Dev
	// IPTables, IP6Tables: the bridge's own nf_call_iptables and
	// nf_call_ip6tables. The namespace's sysctls are in Rules.
	IPTables, IP6Tables bool
}

// Underlay is what is known of a network's outer packets.
type Underlay struct {
	Local netip.Addr // of this VTEP
	Port  uint16     // UDP destination port, host order
	// Dev that they come and go by. Zero if it may be any, or if it is
	// enslaved (VRF): then the hooks see the master too.
	Dev Dev
}

// Read looks at the calling thread's namespace. last is what an earlier look at
// this same namespace found, or the zero value: nftables rules that have not
// changed since are not read again.
//
// A kernel without nftables, iptables or ebtables has no rules of that kind. To
// look is not to change: no table is created. It may load the nf_tables module,
// which does nothing by itself. Legacy ebtables cannot be asked without side
// effects, so they are looked at only where one of their modules is loaded.
func Read(last Rules) (Rules, error) {
	r, err := readNFT(last)
	if err != nil {
		return Rules{}, fmt.Errorf("read nftables rules: %w", allowed(err))
	}
	if r.legacy, err = readLegacy(); err != nil {
		return Rules{}, allowed(err)
	}
	for file, to := range map[string]*bool{"iptables": &r.callIP, "ip6tables": &r.callV6} {
		b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Rules{}, fmt.Errorf("read bridge netfilter's sysctls: %w", err)
		}
		r.bridgeNF = true
		*to = strings.TrimSpace(string(b)) != "0"
	}
	return r, nil
}

func allowed(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: run as root, or with CAP_NET_ADMIN and, for /proc/net/*_tables_names, CAP_DAC_READ_SEARCH", err)
	}
	return err
}

// Hooks as in linux/netfilter.h; those of the bridge family have the same numbers.
const (
	hookPrerouting = iota
	hookInput
	hookForward
	hookOutput
	hookPostrouting
	hookInetIngress // of the inet family; BROUTING of ebtables
	notBase         = -1

	hookNetdevIngress = 0
	hookNetdevEgress  = 1
)

// Inner names a chain that judges frames which the fast path takes past this
// bridge: "nft bridge filter forward has 3 rules". Where it judges them only because of
// bridge netfilter, the switch to that is named too. "" if there is none.
func (r Rules) Inner(b Bridge) string {
	// What a hook has no device for is "none" to it.
	devs := append([]Dev{none, b.Dev}, b.Ports...)
	p := packet{in: devs, out: devs, bridge: b.Name}
	if why := find(p, at(unix.NFPROTO_BRIDGE, hookPrerouting, hookInput, hookForward, hookOutput, hookPostrouting, hookInetIngress), r.nft, r.legacy); why != "" {
		return why
	}
	if !r.bridgeNF {
		return ""
	}
	// Bridge netfilter shows the bridge, not its ports, at these hooks and no others.
	p.in = []Dev{none, b.Dev}
	p.out = p.in
	for _, f := range []struct {
		l3       uint8
		all, own bool
		tables   string
	}{
		{unix.NFPROTO_IPV4, r.callIP, b.IPTables, "iptables"},
		{unix.NFPROTO_IPV6, r.callV6, b.IP6Tables, "ip6tables"},
	} {
		if !f.all && !f.own {
			continue
		}
		p.l3 = f.l3
		why := find(p, at(p.l3, hookPrerouting, hookForward, hookPostrouting), r.nft, r.legacy)
		if why != "" && f.all {
			return why + " (bridge-nf-call-" + f.tables + " is 1)"
		}
		if why != "" {
			return why + " (nf_call_" + f.tables + " of " + b.Name + " is 1)"
		}
	}
	return ""
}

// Outer names a chain that judges the network's encapsulated packets, on their
// way out or in. "" if there is none.
func (r Rules) Outer(u Underlay) string {
	out, in := u.packets()
	if why := find(out, at(out.l3, hookOutput, hookPostrouting), r.nft, r.legacy); why != "" {
		return why
	}
	return find(in, at(in.l3, hookPrerouting, hookInput), r.nft, r.legacy)
}

// packets are what is known of those on the way out and in.
func (u Underlay) packets() (out, in packet) {
	p := packet{l3: unix.NFPROTO_IPV4, l4: unix.IPPROTO_UDP, port: u.Port}
	proto, src, dst := 9, 12, 16
	if u.Local.Is6() && !u.Local.Is4In6() {
		p.l3 = unix.NFPROTO_IPV6
		proto, src, dst = 6, 8, 24
	}
	p.setNet(proto, []byte{unix.IPPROTO_UDP})
	out, in = p, p
	out.setNet(src, u.Local.Unmap().AsSlice())
	in.setNet(dst, u.Local.Unmap().AsSlice())
	if u.Dev != none {
		// Where it came in is open on the way out: postrouting may see the vxlan device there.
		out.out = []Dev{u.Dev}
		in.in, in.out = []Dev{u.Dev}, []Dev{none}
	}
	return out, in
}

// Ingress names a chain at the ingress hook of a device, which comes after tc's:
// what a program there redirects never gets to it. "" if there is none.
func (r Rules) Ingress(d Dev) string {
	return find(packet{in: []Dev{d}, out: []Dev{none}}, func(c *chain) bool {
		return c.covers(d.Name) && (c.family == unix.NFPROTO_NETDEV && c.hook == hookNetdevIngress || c.family == unix.NFPROTO_INET && c.hook == hookInetIngress)
	}, r.atDevices)
}

// Egress names a chain at the egress hook of a device. The kernel skips that
// hook for packets that a tc program redirected to the device
// (NETFILTER_SKIP_EGRESS). "" if there is none.
func (r Rules) Egress(d Dev) string {
	return find(packet{out: []Dev{d}}, func(c *chain) bool {
		return c.covers(d.Name) && c.family == unix.NFPROTO_NETDEV && c.hook == hookNetdevEgress
	}, r.atDevices)
}

// at accepts base chains that see packets of a family at these hooks.
func at(family uint8, hooks ...int) func(*chain) bool {
	return func(c *chain) bool {
		inet := c.family == unix.NFPROTO_INET && (family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_IPV6)
		if c.family != family && !inet {
			return false
		}
		for _, h := range hooks {
			// An inet chain at 5 hangs at a device.
			if c.hook == h && !(inet && h == hookInetIngress) {
				return true
			}
		}
		return false
	}
}

// find says why the first of these chains counts; a policy, which judges every packet, before any rule.
func find(p packet, where func(*chain) bool, lists ...[]*chain) string {
	var chains []*chain
	for _, l := range lists {
		for _, c := range l {
			if c.hook == notBase || !where(c) {
				continue
			}
			if c.policy != "" {
				return c.String() + " has policy " + c.policy
			}
			chains = append(chains, c)
		}
	}
	known := map[*chain]int{}
	for _, c := range chains {
		switch n := c.judges(p, known); n {
		case 0:
		case 1:
			return c.String() + " has 1 rule"
		default:
			return c.String() + " has " + strconv.Itoa(n) + " rules"
		}
	}
	return ""
}
