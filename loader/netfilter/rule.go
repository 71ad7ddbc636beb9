// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// chain of nftables or of a legacy table.
type chain struct {
	tool   string // "nft ip", "iptables": what an operator lists it with
	family uint8  // NFPROTO_*
	table  string
	name   string
	hook   int      // notBase if it is only jumped to
	policy string   // of a base chain that does not accept, as its tool writes it
	devs   []string // of a netdev or ingress chain; a last '*' stands for any rest
	rules  []rule
}

func (c *chain) String() string { return c.tool + " " + c.table + " " + c.name }

func (c *chain) covers(dev string) bool {
	return slices.ContainsFunc(c.devs, func(d string) bool {
		if prefix, ok := strings.CutSuffix(d, "*"); ok {
			return strings.HasPrefix(dev, prefix)
		}
		return d == dev
	})
}

// judges returns how many rules of a chain may do something to such a packet.
// That an earlier rule may have let it pass is not looked at. known is by chain
// for one packet: chains are jumped to from many places.
func (c *chain) judges(p packet, known map[*chain]int) int {
	n, ok := known[c]
	if ok {
		return n
	}
	known[c] = 0 // the kernel allows no loops
	for i := range c.rules {
		r := &c.rules[i]
		if r.does == passes || r.never(p) {
			continue
		}
		if r.does == judges || r.to == nil || r.to.judges(p, known) > 0 {
			n++
		}
	}
	known[c] = n
	return n
}

// rule is what matters of one.
type rule struct {
	// when: conditions that come before anything that has an effect. There may
	// be others, which are not understood and so may hold.
	when []cond
	does effect
	to   *chain // of jumps
}

// never reports that the rule cannot match such a packet.
func (r *rule) never(p packet) bool {
	return slices.ContainsFunc(r.when, func(c cond) bool { return c.never(p) })
}

type effect uint8

const (
	passes effect = iota // lets the packet go on, at most to the next chain
	judges               // anything else
	jumps                // as its target does
)

// cond compares what is at a place with a value.
type cond struct {
	at   field
	op   operator
	mask []byte // applied to the packet's value; nil for all ones
	val  []byte
	high []byte // of inside and outside, which include both ends
}

type operator uint8

// In the order of enum nft_cmp_ops, then those of a range.
const (
	eq operator = iota
	neq
	lt
	lte
	gt
	gte
	inside
	outside
)

// field is a place in a packet or something that the kernel knows of it.
type field struct {
	base   base
	offset uint32 // bytes; of meta the key, NFT_META_*
}

type base uint8

const (
	network   base = unix.NFT_PAYLOAD_NETWORK_HEADER
	transport base = unix.NFT_PAYLOAD_TRANSPORT_HEADER
	meta      base = 0xff
)

// packet is what is known of the packets in question.
type packet struct {
	in, out []Dev  // one of these; nil: not known
	bridge  string // that both ports belong to
	l3      uint8  // NFPROTO_IPV4 or 6, 0 not known
	l4      uint8  // IP protocol, 0 not known
	port    uint16 // destination, 0 not known
	net     [40]byte
	netSet  [40]byte // which bits of net are known
}

var none Dev

func (p *packet) setNet(offset int, b []byte) {
	copy(p.net[offset:], b)
	copy(p.netSet[offset:], bytes.Repeat([]byte{0xff}, len(b)))
}

// bits is a value of which those in set are known.
type bits struct{ val, set []byte }

func whole(b []byte, size int) bits {
	b = append(bytes.Clone(b), make([]byte, max(0, size-len(b)))...)
	return bits{b[:size], bytes.Repeat([]byte{0xff}, size)}
}

// values are all that can stand at a place, size bytes as a register holds
// them; nil if it may be anything.
func (p packet) values(f field, size int) (out []bits) {
	switch f.base {
	case meta:
		return p.meta(f.offset, size)
	case network:
		if end := int(f.offset) + size; end <= len(p.net) {
			return []bits{{p.net[f.offset:end], p.netSet[f.offset:end]}}
		}
	case transport:
		var b, set [8]byte
		if p.port != 0 {
			binary.BigEndian.PutUint16(b[2:], p.port)
			set[2], set[3] = 0xff, 0xff
		}
		if end := int(f.offset) + size; end <= len(b) {
			return []bits{{b[f.offset:end], set[f.offset:end]}}
		}
	}
	return nil
}

func (p packet) meta(key uint32, size int) (out []bits) {
	name := func(s string) { out = append(out, whole([]byte(s), size)) }
	switch key {
	case unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME, unix.NFT_META_IIF, unix.NFT_META_OIF:
		devs := p.in
		if key == unix.NFT_META_OIFNAME || key == unix.NFT_META_OIF {
			devs = p.out
		}
		for _, d := range devs {
			if key == unix.NFT_META_IIFNAME || key == unix.NFT_META_OIFNAME {
				name(d.Name)
				continue
			}
			if d != none && d.Index == 0 {
				return nil
			}
			out = append(out, whole(binary.NativeEndian.AppendUint32(nil, uint32(d.Index)), size))
		}
	case unix.NFT_META_BRI_IIFNAME, unix.NFT_META_BRI_OIFNAME:
		if p.bridge != "" {
			name(p.bridge)
			name("")
		}
	case unix.NFT_META_NFPROTO:
		if p.l3 != 0 {
			out = append(out, whole([]byte{p.l3}, size))
		}
	case unix.NFT_META_L4PROTO:
		if p.l4 != 0 {
			out = append(out, whole([]byte{p.l4}, size))
		}
	}
	return out
}

// never reports that the condition cannot hold for such a packet.
func (c cond) never(p packet) bool {
	vals := p.values(c.at, len(c.val))
	return vals != nil && !slices.ContainsFunc(vals, func(b bits) bool { return !c.fails(b) })
}

// fails reports that the condition does not hold whatever the unknown bits are.
func (c cond) fails(b bits) bool {
	known, same := true, true
	got := bytes.Clone(b.val)
	for i := range got {
		m := byte(0xff)
		if c.mask != nil {
			m = c.mask[i]
		}
		known = known && b.set[i]&m == m
		same = same && (got[i]^c.val[i])&m&b.set[i] == 0
		got[i] &= m
	}
	switch c.op {
	case eq:
		return !same
	case neq:
		return known && same
	}
	if !known {
		return false
	}
	d := bytes.Compare(got, c.val)
	switch c.op {
	case lt:
		return d >= 0
	case lte:
		return d > 0
	case gt:
		return d <= 0
	case gte:
		return d < 0
	case inside:
		return d < 0 || bytes.Compare(got, c.high) > 0
	case outside:
		return d >= 0 && bytes.Compare(got, c.high) <= 0
	}
	return false
}
