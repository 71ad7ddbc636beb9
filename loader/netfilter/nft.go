// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What x/sys/unix lacks of linux/netfilter/nf_tables.h.
const (
	nftaHookDevs     = 4 // NFTA_HOOK_DEVS
	nftaDeviceName   = 1 // NFTA_DEVICE_NAME
	nftaDevicePrefix = 2 // NFTA_DEVICE_PREFIX
)

// Verdicts of linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
	nfRepeat = 4 // -nfRepeat-1 is a legacy table's RETURN
)

// dumpTries is how often a dump is begun again because the rules changed under it.
const dumpTries = 5

// unavailable: the kernel has no nfnetlink, or no nf_tables behind it (EINVAL, which
// these requests have no other cause for).
func unavailable(err error) bool {
	for _, e := range []unix.Errno{unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// readNFT dumps the chains, and the rules only if a chain that can count has any.
func readNFT(last Rules) (Rules, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if unavailable(err) {
		return Rules{}, nil
	}
	if err != nil {
		return Rules{}, err
	}
	defer c.Close()
	gen, err := generation(c)
	if unavailable(err) {
		return Rules{}, nil
	}
	if err != nil {
		return Rules{}, err
	}
	if gen == last.generation && gen != 0 {
		return Rules{generation: gen, nft: last.nft, atDevices: last.atDevices}, nil
	}
	for try := 1; ; try++ {
		chains, err := dumpNFT(c)
		if err != nil {
			return Rules{}, err
		}
		after, err := generation(c)
		if err != nil {
			return Rules{}, err
		}
		if after == gen {
			return newRules(gen, chains), nil
		}
		if gen = after; try == dumpTries {
			// Somebody changes rules without a pause. This is of some moment; the next look reads again.
			return newRules(0, chains), nil
		}
	}
}

func newRules(gen uint32, chains []*chain) Rules {
	r := Rules{generation: gen, nft: chains}
	for _, c := range chains {
		if len(c.devs) > 0 {
			r.atDevices = append(r.atDevices, c)
		}
	}
	return r
}

// ask sends one nf_tables request for all families.
func ask(c *netlink.Conn, msg uint16, flags netlink.HeaderFlags) ([]netlink.Message, error) {
	return c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg), Flags: netlink.Request | flags},
		Data:   make([]byte, sizeofGenMsg),
	})
}

// sizeofGenMsg is that of struct nfgenmsg, whose first byte is the family.
const sizeofGenMsg = 4

func generation(c *netlink.Conn) (gen uint32, err error) {
	msgs, err := ask(c, unix.NFT_MSG_GETGEN, 0)
	if err != nil {
		return 0, err
	}
	for _, m := range msgs {
		err = attrs(m, func(typ int, val []byte) {
			if typ == unix.NFTA_GEN_ID {
				gen = u32(val)
			}
		})
	}
	return gen, err
}

func familyOf(m netlink.Message) uint8 {
	if len(m.Data) == 0 {
		return unix.NFPROTO_UNSPEC
	}
	return m.Data[0]
}

// attrs calls f for each attribute of a message.
func attrs(m netlink.Message, f func(typ int, val []byte)) error {
	if len(m.Data) < sizeofGenMsg {
		return fmt.Errorf("message of %d bytes", len(m.Data))
	}
	return nested(m.Data[sizeofGenMsg:], f)
}

// nested calls f for each attribute in b. It copies nothing: there may be
// hundreds of thousands.
func nested(b []byte, f func(typ int, val []byte)) error {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlAttr {
			return errors.New("attribute cut off")
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return errors.New("attribute that does not fit its size")
		}
		f(int(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)), b[unix.SizeofNlAttr:size])
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// u32 reads a number, which nf_tables sends in network byte order.
func u32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// name identifies a table (chain left empty) or chain among all families.
type name struct {
	family       uint8
	table, chain string
}

func dumpNFT(c *netlink.Conn) ([]*chain, error) {
	tables, err := ask(c, unix.NFT_MSG_GETTABLE, netlink.Dump)
	if err != nil {
		return nil, err
	}
	dormant := map[name]bool{}
	for _, m := range tables {
		var flags uint32
		n := name{family: familyOf(m)}
		err := attrs(m, func(typ int, val []byte) {
			switch typ {
			case unix.NFTA_TABLE_NAME:
				n.table = cString(val)
			case unix.NFTA_TABLE_FLAGS:
				flags = u32(val)
			}
		})
		if err != nil {
			return nil, err
		}
		dormant[n] = flags&unix.NFT_TABLE_F_DORMANT != 0
	}
	dump, err := ask(c, unix.NFT_MSG_GETCHAIN, netlink.Dump)
	if err != nil {
		return nil, err
	}
	var chains []*chain
	byName := map[name]*chain{}
	filled := false
	for _, m := range dump {
		ch, uses, err := parseChain(m)
		if err != nil {
			return nil, err
		}
		if dormant[name{family: ch.family, table: ch.table}] || ch.family == unix.NFPROTO_ARP {
			continue
		}
		chains = append(chains, ch)
		byName[name{ch.family, ch.table, ch.name}] = ch
		filled = filled || ch.hook != notBase && uses > 0 // nothing else uses a base chain but its rules
	}
	if !filled {
		return chains, nil
	}
	rules, err := ask(c, unix.NFT_MSG_GETRULE, netlink.Dump)
	if err != nil {
		return nil, err
	}
	for _, m := range rules {
		n := name{family: familyOf(m)}
		var exprs []byte
		err := attrs(m, func(typ int, val []byte) {
			switch typ {
			case unix.NFTA_RULE_TABLE:
				n.table = cString(val)
			case unix.NFTA_RULE_CHAIN:
				n.chain = cString(val)
			case unix.NFTA_RULE_EXPRESSIONS:
				exprs = val
			}
		})
		if err != nil {
			return nil, err
		}
		ch := byName[n]
		if ch == nil {
			continue
		}
		r, err := parseRule(exprs, func(target string) *chain { return byName[name{n.family, n.table, target}] })
		if err != nil {
			return nil, err
		}
		ch.rules = append(ch.rules, r)
	}
	return chains, nil
}

var nftFamilies = map[uint8]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_ARP: "arp",
	unix.NFPROTO_NETDEV: "netdev", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_IPV6: "ip6",
}

// parseChain: uses is the number of rules in it and of references to it.
func parseChain(m netlink.Message) (c *chain, uses uint32, err error) {
	c = &chain{hook: notBase}
	var bad error
	err = attrs(m, func(typ int, val []byte) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			c.table = cString(val)
		case unix.NFTA_CHAIN_NAME:
			c.name = cString(val)
		case unix.NFTA_CHAIN_USE:
			uses = u32(val)
		case unix.NFTA_CHAIN_POLICY:
			switch policy := u32(val); policy {
			case nfAccept:
			case nfDrop:
				c.policy = "drop"
			default:
				c.policy = fmt.Sprint(policy)
			}
		case unix.NFTA_CHAIN_HOOK:
			bad = errors.Join(bad, nested(val, func(typ int, val []byte) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					c.hook = int(u32(val))
				case unix.NFTA_HOOK_DEV:
					c.devs = append(c.devs, cString(val))
				case nftaHookDevs:
					bad = errors.Join(bad, nested(val, func(typ int, val []byte) {
						switch typ {
						case nftaDeviceName:
							c.devs = append(c.devs, cString(val))
						case nftaDevicePrefix:
							c.devs = append(c.devs, cString(val)+"*")
						}
					}))
				}
			}))
		}
	})
	err = errors.Join(err, bad)
	if err == nil {
		c.family = familyOf(m)
		c.tool = "nft " + nftFamilies[c.family]
	}
	return c, uses, err
}

// What expressions of nftables do. Those that have forms of either kind are
// looked at one by one in parser.take; any other has an effect.
var (
	nftLooks  = []string{"connlimit", "counter", "limit", "quota"}                                      // writes no register
	nftLoads  = []string{"byteorder", "fib", "hash", "numgen", "osf", "rt", "socket", "tunnel", "xfrm"} // writes one
	nftTracks = []string{"flow_offload", "notrack"}                                                     // concerns connection tracking or flowtables alone
)

// The same of extensions of legacy rules.
var (
	xtLooks = []string{
		"addrtype", "comment", "connmark", "conntrack", "devgroup", "dscp", "ecn", "helper", "icmp", "icmp6", "iprange", "length", "limit", "mac", "mark",
		"multiport", "owner", "physdev", "pkttype", "policy", "rpfilter", "sctp", "set", "state", "statistic", "tcp", "tcpmss", "ttl", "udp",
	}
	xtTracks = []string{"CT", "NOTRACK"}
)

// expr is one expression of a rule: its attributes by number, nil for those that it has not.
type expr struct {
	kind string
	attr [16][]byte
}

func (e *expr) u32(attr int) uint32 { return u32(e.attr[attr]) }

// reg is the first 32-bit slot of a register, whose numbers have two forms.
func (e *expr) reg(attr int) int {
	r := int(e.u32(attr))
	if r >= unix.NFT_REG32_00 {
		return r - unix.NFT_REG32_00
	}
	return (r - unix.NFT_REG_1) * 4
}

// value unwraps NFTA_DATA_VALUE.
func (e *expr) value(attr int) (v []byte) {
	_ = nested(e.attr[attr], func(typ int, val []byte) {
		if typ == unix.NFTA_DATA_VALUE {
			v = bytes.Clone(val) // of the little that outlives the dump
		}
	})
	return v
}

// parser follows the expressions of one rule.
type parser struct {
	rule
	chain  func(name string) *chain
	regs   map[int]load // by first slot; those that are not here hold what is not followed
	done   bool         // after a verdict, or something with an effect
	counts bool
	tracks bool
}

// load is what a register holds.
type load struct {
	at   field
	size int // bytes
	mask []byte
}

// parseRule reads NFTA_RULE_EXPRESSIONS.
func parseRule(exprs []byte, chain func(string) *chain) (rule, error) {
	p := parser{chain: chain, regs: map[int]load{}}
	var errs error
	err := nested(exprs, func(typ int, val []byte) {
		if p.done {
			return
		}
		var e expr
		errs = errors.Join(errs, nested(val, func(typ int, val []byte) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				e.kind = cString(val)
			case unix.NFTA_EXPR_DATA:
				errs = errors.Join(errs, nested(val, func(typ int, val []byte) {
					if typ < len(e.attr) {
						e.attr[typ] = val
					}
				}))
			}
		}))
		p.take(&e)
	})
	if !p.done && p.counts && !p.tracks {
		p.does = judges // its counter is what it is there for
	}
	return p.rule, errors.Join(err, errs)
}

func (p *parser) end(does effect) { p.done, p.does = true, does }

// write notes what a register holds now, and forgets what overlaps it.
func (p *parser) write(reg int, l load) {
	for r, old := range p.regs {
		if r*4 < reg*4+l.size && reg*4 < r*4+old.size {
			delete(p.regs, r)
		}
	}
	p.regs[reg] = l
}

// take goes one expression further.
func (p *parser) take(e *expr) {
	switch e.kind {
	case "meta":
		if e.attr[unix.NFTA_META_SREG] != nil {
			p.end(judges)
			return
		}
		p.write(e.reg(unix.NFTA_META_DREG), load{at: field{meta, e.u32(unix.NFTA_META_KEY)}, size: unix.IFNAMSIZ})
	case "payload":
		if e.attr[unix.NFTA_PAYLOAD_SREG] != nil {
			p.end(judges)
			return
		}
		p.write(e.reg(unix.NFTA_PAYLOAD_DREG), load{
			at:   field{base(e.u32(unix.NFTA_PAYLOAD_BASE)), e.u32(unix.NFTA_PAYLOAD_OFFSET)},
			size: int(e.u32(unix.NFTA_PAYLOAD_LEN)),
		})
	case "ct", "exthdr":
		if e.kind == "ct" && e.attr[unix.NFTA_CT_SREG] != nil || e.kind == "exthdr" && e.attr[unix.NFTA_EXTHDR_SREG] != nil {
			p.end(judges)
			return
		}
		clear(p.regs)
	case "bitwise":
		p.bitwise(e)
	case "cmp":
		if op := operator(e.u32(unix.NFTA_CMP_OP)); op <= gte {
			p.compare(e.reg(unix.NFTA_CMP_SREG), op, e.value(unix.NFTA_CMP_DATA), nil)
		}
	case "range":
		op := inside
		if e.u32(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ {
			op = outside
		}
		p.compare(e.reg(unix.NFTA_RANGE_SREG), op, e.value(unix.NFTA_RANGE_FROM_DATA), e.value(unix.NFTA_RANGE_TO_DATA))
	case "lookup":
		switch dreg := e.attr[unix.NFTA_LOOKUP_DREG]; {
		case dreg != nil && e.u32(unix.NFTA_LOOKUP_DREG) == unix.NFT_REG_VERDICT:
			p.end(judges) // its verdicts stand in the elements of a map
		case dreg != nil:
			clear(p.regs)
		}
	case "immediate":
		if e.u32(unix.NFTA_IMMEDIATE_DREG) == unix.NFT_REG_VERDICT {
			p.verdict(e.attr[unix.NFTA_IMMEDIATE_DATA])
		} else {
			clear(p.regs)
		}
	case "match":
		switch ext := cString(e.attr[unix.NFTA_MATCH_NAME]); {
		case !slices.Contains(xtLooks, ext):
			p.end(judges)
		case ext == "udp":
			p.when = append(p.when, udpPorts(e.attr[unix.NFTA_MATCH_INFO])...)
		}
	case "target":
		if slices.Contains(xtTracks, cString(e.attr[unix.NFTA_TARGET_NAME])) {
			p.end(passes)
		} else {
			p.end(judges)
		}
	default:
		switch {
		case slices.Contains(nftLooks, e.kind):
			p.counts = p.counts || e.kind == "counter"
		case slices.Contains(nftLoads, e.kind):
			clear(p.regs)
		case slices.Contains(nftTracks, e.kind):
			p.tracks = true
		default:
			p.end(judges)
		}
	}
}

// bitwise follows a mask put over a register; anything else makes the result unknown.
func (p *parser) bitwise(e *expr) {
	l, known := p.regs[e.reg(unix.NFTA_BITWISE_SREG)]
	mask := e.value(unix.NFTA_BITWISE_MASK)
	changes := slices.ContainsFunc(e.value(unix.NFTA_BITWISE_XOR), func(b byte) bool { return b != 0 })
	if !known || l.mask != nil || mask == nil || changes {
		clear(p.regs)
		return
	}
	l.mask = mask
	p.write(e.reg(unix.NFTA_BITWISE_DREG), l)
}

func (p *parser) compare(reg int, op operator, val, high []byte) {
	l, known := p.regs[reg]
	if !known || len(val) == 0 || len(val) > l.size || l.mask != nil && len(l.mask) < len(val) || op >= inside && len(high) != len(val) {
		return
	}
	c := cond{at: l.at, op: op, val: val, high: high}
	if l.mask != nil {
		c.mask = l.mask[:len(val)]
	}
	p.when = append(p.when, c)
}

func (p *parser) verdict(b []byte) {
	var code int32
	var target string
	known := false
	_ = nested(b, func(typ int, val []byte) {
		if typ != unix.NFTA_DATA_VERDICT {
			return
		}
		_ = nested(val, func(typ int, val []byte) {
			switch typ {
			case unix.NFTA_VERDICT_CODE:
				code, known = int32(u32(val)), true
			case unix.NFTA_VERDICT_CHAIN:
				target = cString(val)
			}
		})
	})
	switch {
	case !known:
		p.end(judges)
	case code == nfAccept || code == unix.NFT_RETURN || code == unix.NFT_CONTINUE || code == unix.NFT_BREAK:
		p.end(passes)
	case code == unix.NFT_JUMP || code == unix.NFT_GOTO:
		p.to = p.chain(target)
		p.end(jumps)
	default:
		p.end(judges)
	}
}

// Watch ticks whenever nftables rules of the calling thread's namespace have
// changed, until ctx ends; ticks that nobody took are one. Legacy tables change
// without an event. The channel is nil where the kernel has no nftables, and
// closed when ctx has ended or events cannot be had any more.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if unavailable(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", allowed(err))
	}
	ticks := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	go func() {
		defer close(ticks)
		defer func() {
			if stop() {
				c.Close()
			}
		}()
		for {
			// Lost events are a change as well.
			if _, err := c.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			select {
			case ticks <- struct{}{}:
			default:
			}
		}
	}()
	return ticks, nil
}
