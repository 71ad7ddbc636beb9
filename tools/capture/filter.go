// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// FilterHelp says what a filter expression may be.
const FilterHelp = `Filters are tcpdump's (pcap-filter(7)), this much of it:
  host ADDR, net PREFIX, port N, portrange N-M      with "ip", "ip6", "arp", "tcp", "udp", "sctp" and
                                                    "src", "dst", "src or dst", "src and dst" before
  ether host MAC, ether src MAC, ether dst MAC, ether proto N, ether broadcast, ether multicast
  ip, ip6, arp, rarp, tcp, udp, sctp, icmp, icmp6, proto N, ip proto N, ip6 proto N
  broadcast, multicast, ip multicast, ip6 multicast, less N, greater N, vlan [N], vni N
  len > N, tcp[13] & 2 != 0, ether[12:2] == 0x800   with + - * / % & | ^ << >> and == != < > <= >=
  not, and, or, parentheses                         "and" and "or" bind alike, from the left
"port 80 or 443" repeats what stood before. Other than in tcpdump, VLAN tags and IPv6 extension headers are looked past,
tcp[13] and the like look into IPv6, too, "vni" is the network's, and names of hosts are not looked up.`

// verdict of a filter on a frame.
type verdict int8

const (
	no verdict = iota
	yes
	reject // it looked behind the end of the frame: no, whatever else holds
)

func is(b bool) verdict {
	if b {
		return yes
	}
	return no
}

// node is one condition.
type node func(f *frame, vni uint32) verdict

// Filter is a compiled expression. The zero value matches everything.
type Filter struct{ match node }

// FilterError says where an expression is wrong.
type FilterError struct {
	Expr string
	At   int // in bytes
	What string
}

func (e *FilterError) Error() string {
	return fmt.Sprintf("filter: %s\n    %s\n    %s^", e.What, e.Expr, strings.Repeat(" ", e.At))
}

// ParseFilter compiles an expression; "" matches everything.
func ParseFilter(expr string) (Filter, error) {
	p := &parser{expr: expr}
	if err := p.lex(); err != nil {
		return Filter{}, err
	}
	if len(p.toks) == 1 {
		return Filter{}, nil
	}
	n, err := p.expression(0)
	if err != nil {
		return Filter{}, err
	}
	if t := p.peek(); t.text != "" {
		return Filter{}, p.fail(t, "%q is left over", t.text)
	}
	return Filter{n}, nil
}

// Match asks whether an Ethernet frame fits. length is that on the wire, vlan a
// tag in the packet's metadata, vni the network's.
func (f Filter) Match(data []byte, length int, vlan uint16, vni uint32) bool {
	if f.match == nil {
		return true
	}
	fr := parse(data, length, vlan)
	return f.match(&fr, vni) == yes
}

// Empty filters match everything.
func (f Filter) Empty() bool { return f.match == nil }

type token struct {
	text string // "" at the end
	at   int
}

type parser struct {
	expr string
	toks []token
	pos  int
	last qualifiers // of the primitive before, for "port 80 or 443"
}

func (p *parser) fail(t token, format string, args ...any) error {
	return &FilterError{p.expr, t.at, fmt.Sprintf(format, args...)}
}

const punctuation = "()[]+-*/%&|^<>=!"

func (p *parser) lex() error {
	s := p.expr
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n':
			i++
		case c < ' ' || c > '~':
			return p.fail(token{at: i}, "byte %#x is not allowed", c)
		case strings.IndexByte(punctuation, c) >= 0:
			n := 1
			if i+1 < len(s) && slices.Contains([]string{"&&", "||", "<<", ">>", "==", "!=", "<=", ">="}, s[i:i+2]) {
				n = 2
			}
			p.toks = append(p.toks, token{s[i : i+n], i})
			i += n
		default:
			j := i
			// In words: addresses, prefixes, ranges, names as tcp-syn; the brackets take their expressions apart again.
			for j < len(s) && s[j] > ' ' && s[j] <= '~' && (strings.IndexByte(punctuation, s[j]) < 0 || s[j] == '-' || s[j] == '/') {
				j++
			}
			p.toks = append(p.toks, token{s[i:j], i})
			i = j
		}
	}
	p.toks = append(p.toks, token{at: len(s)})
	return nil
}

func (p *parser) peek() token { return p.toks[p.pos] }

func (p *parser) next() token {
	t := p.toks[p.pos]
	if t.text != "" {
		p.pos++
	}
	return t
}

func (p *parser) accept(words ...string) bool {
	if slices.Contains(words, p.peek().text) {
		p.pos++
		return true
	}
	return false
}

const deepest = 100 // parentheses and "not"

// expression: and, or have equal precedence and associate from the left.
func (p *parser) expression(depth int) (node, error) {
	if depth > deepest {
		return nil, p.fail(p.peek(), "nested deeper than %d", deepest)
	}
	left, err := p.term(depth)
	if err != nil {
		return nil, err
	}
	for {
		and := p.accept("and", "&&")
		if !and && !p.accept("or", "||") {
			return left, nil
		}
		right, err := p.term(depth)
		if err != nil {
			return nil, err
		}
		l := left
		left = func(f *frame, vni uint32) verdict {
			v := l(f, vni)
			if v == reject || (v == yes) != and {
				return v
			}
			return right(f, vni)
		}
	}
}

func (p *parser) term(depth int) (node, error) {
	if depth > deepest {
		return nil, p.fail(p.peek(), "nested deeper than %d", deepest)
	}
	switch {
	case p.accept("not", "!"):
		n, err := p.term(depth + 1)
		if err != nil {
			return nil, err
		}
		return func(f *frame, vni uint32) verdict {
			switch n(f, vni) {
			case yes:
				return no
			case no:
				return yes
			}
			return reject
		}, nil
	case p.peek().text == "(" && !p.arithmeticAhead():
		p.next()
		n, err := p.expression(depth + 1)
		if err != nil {
			return nil, err
		}
		if !p.accept(")") {
			return nil, p.fail(p.peek(), "a parenthesis is not closed")
		}
		return n, nil
	case p.arithmeticAhead():
		return p.relation(depth)
	}
	return p.primitive()
}

// arithmeticAhead: does a comparison of numbers begin here?
func (p *parser) arithmeticAhead() bool {
	i := p.pos
	for p.toks[i].text == "(" {
		i++
	}
	t := p.toks[i].text
	after := ""
	if t != "" {
		after = p.toks[i+1].text
	}
	if _, known := sections[t]; known && after == "[" {
		return true
	}
	operator := after != "" && strings.ContainsAny(after[:1], "+-*/%&|^<>=!") && after != "&&" && after != "||" && after != "!"
	if t == "len" {
		return true
	}
	_, err := number(t)
	return err == nil && operator
}

type qualifiers struct {
	proto, dir, typ string
	proto2          bool // proto stood there
}

var (
	protocols  = []string{"ether", "ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6"}
	types      = []string{"host", "net", "port", "portrange", "proto"}
	ipProtocol = map[string]int{"icmp": protoICMP, "tcp": protoTCP, "udp": protoUDP, "icmp6": protoICMPv6, "sctp": protoSCTP,
		"igmp": 2, "igrp": 9, "esp": 50, "ah": 51, "pim": 103, "vrrp": 112}
	etherTypes = map[string]uint16{"ip": etherIPv4, "ip6": etherIPv6, "arp": etherARP, "rarp": etherRARP}
)

func (p *parser) primitive() (node, error) {
	start := p.peek()
	var q qualifiers
	if slices.Contains(protocols, start.text) {
		q.proto, q.proto2 = p.next().text, true
	}
	switch t := p.peek(); {
	case p.accept("broadcast"):
		if q.proto2 && q.proto != "ether" {
			return nil, p.fail(t, "broadcast is of ether only")
		}
		return func(f *frame, _ uint32) verdict {
			return is(len(f.data) >= 6 && string(f.data[:6]) == "\xff\xff\xff\xff\xff\xff")
		}, nil
	case p.accept("multicast"):
		switch q.proto {
		case "", "ether":
			return func(f *frame, _ uint32) verdict { return is(len(f.data) > 0 && f.data[0]&1 == 1) }, nil
		case "ip", "ip6":
			v6 := q.proto == "ip6"
			return func(f *frame, _ uint32) verdict {
				return is(f.proto >= 0 && f.dst.Is6() == v6 && f.dst.IsMulticast())
			}, nil
		}
		return nil, p.fail(t, "multicast is of ether, ip or ip6")
	}
	if !q.proto2 {
		switch t := p.peek(); {
		case p.accept("less", "greater"):
			n, err := p.number("a length")
			if err != nil {
				return nil, err
			}
			if t.text == "less" {
				return func(f *frame, _ uint32) verdict { return is(f.length <= n) }, nil
			}
			return func(f *frame, _ uint32) verdict { return is(f.length >= n) }, nil
		case p.accept("vlan"):
			id := -1
			if v, err := number(p.peek().text); err == nil {
				if v > 4095 {
					return nil, p.fail(p.peek(), "%d is no VLAN: want 0 to 4095", v)
				}
				p.next()
				id = int(v)
			}
			return func(f *frame, _ uint32) verdict {
				return is(len(f.tags) > 0 && (id < 0 || slices.Contains(f.tags, uint16(id))))
			}, nil
		case p.accept("vni"):
			n, err := p.number("a VNI")
			if err != nil {
				return nil, err
			}
			return func(_ *frame, vni uint32) verdict { return is(int(vni) == n) }, nil
		}
	}
	dir := p.peek()
	if p.accept("src", "dst") {
		q.dir = dir.text
		if t := p.peek(); (t.text == "or" || t.text == "and") && p.toks[p.pos+1].text == map[string]string{"src": "dst", "dst": "src"}[dir.text] {
			p.pos += 2
			q.dir = t.text
		}
	}
	typ := p.peek()
	if slices.Contains(types, typ.text) {
		q.typ = p.next().text
	}
	value := p.peek()
	if q == (qualifiers{}) {
		// "host A or B", "port 80 or 443"
		if p.last == (qualifiers{}) || value.text == "" || strings.ContainsAny(value.text, punctuation[:4]) {
			return nil, p.fail(value, "%s", want(value, "an expression"))
		}
		q = p.last
	} else if q.proto2 && q.dir == "" && q.typ == "" && (value.text == "" || value.text == ")" || isConnective(value.text)) {
		if q.proto == "ether" {
			return nil, p.fail(value, "%s", want(value, "host, src, dst, proto, broadcast or multicast after ether"))
		}
		p.last = qualifiers{}
		return isProtocol(q.proto), nil
	}
	if q.typ == "" {
		q.typ = "host"
		if strings.Contains(value.text, "/") {
			q.typ = "net"
		}
	}
	if value.text == "" || isConnective(value.text) || value.text == "(" || value.text == ")" {
		return nil, p.fail(value, "%s", want(value, "a value for "+q.typ))
	}
	p.next()
	n, what := q.compile(value.text)
	if n == nil {
		return nil, p.fail(value, "%s", what)
	}
	p.last = q
	return n, nil
}

func want(t token, what string) string {
	if t.text == "" {
		return "it ends, want " + what
	}
	return fmt.Sprintf("%q, want %s", t.text, what)
}

func isConnective(s string) bool {
	return s == "and" || s == "or" || s == "not" || s == "&&" || s == "||" || s == "!"
}

func (p *parser) number(what string) (int, error) {
	t := p.next()
	n, err := number(t.text)
	if err != nil {
		return 0, p.fail(t, "%s", want(t, what))
	}
	return int(n), nil
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	return uint32(n), err
}

func isProtocol(name string) node {
	if e, ok := etherTypes[name]; ok {
		return func(f *frame, _ uint32) verdict { return is(f.ether == e) }
	}
	n := ipProtocol[name]
	switch name {
	case "icmp":
		return func(f *frame, _ uint32) verdict { return is(f.ether == etherIPv4 && f.proto == n) }
	case "icmp6":
		return func(f *frame, _ uint32) verdict { return is(f.ether == etherIPv6 && f.proto == n) }
	}
	return func(f *frame, _ uint32) verdict { return is(f.proto == n) }
}

// either makes a condition on one end one on the ends that dir names.
func either[T any](dir string, ends func(f *frame) (src, dst T, ok bool), holds func(T) bool) node {
	return func(f *frame, _ uint32) verdict {
		src, dst, ok := ends(f)
		if !ok {
			return no
		}
		switch dir {
		case "src":
			return is(holds(src))
		case "dst":
			return is(holds(dst))
		case "and":
			return is(holds(src) && holds(dst))
		}
		return is(holds(src) || holds(dst))
	}
}

// compile makes the condition; what says why there is none.
func (q qualifiers) compile(v string) (n node, what string) {
	switch q.typ {
	case "host":
		return q.host(v)
	case "net":
		return q.net(v)
	case "port", "portrange":
		return q.port(v)
	}
	if q.dir != "" {
		return nil, "proto has no direction"
	}
	num, err := number(v)
	switch q.proto {
	case "ether":
		if e, ok := etherTypes[v]; ok {
			return func(f *frame, _ uint32) verdict { return is(f.ether == e) }, ""
		}
		if err != nil || num > 0xffff {
			return nil, fmt.Sprintf("%q is no EtherType", v)
		}
		return func(f *frame, _ uint32) verdict { return is(f.ether == uint16(num)) }, ""
	case "", "ip", "ip6":
		if p, ok := ipProtocol[v]; ok {
			num, err = uint32(p), nil
		}
		if err != nil || num > 255 {
			return nil, fmt.Sprintf("%q is no IP protocol", v)
		}
		return func(f *frame, _ uint32) verdict {
			return is(f.proto == int(num) && (q.proto == "" || f.ether == etherTypes[q.proto]))
		}, ""
	}
	return nil, "proto is of ether, ip or ip6, not of " + q.proto
}

func (q qualifiers) host(v string) (node, string) {
	if q.proto == "ether" {
		mac, err := fdb.ParseMAC(v)
		if err != nil {
			return nil, fmt.Sprintf("%q is no MAC address", v)
		}
		return either(q.dir, func(f *frame) (src, dst fdb.MAC, ok bool) {
			if len(f.data) < 12 {
				return src, dst, false
			}
			return fdb.MAC(f.data[6:12]), fdb.MAC(f.data[:6]), true
		}, func(m fdb.MAC) bool { return m == mac }), ""
	}
	a, err := netip.ParseAddr(v)
	if err != nil || a.Zone() != "" {
		return nil, fmt.Sprintf("%q is no IP address (names are not looked up; a MAC address needs \"ether host\")", v)
	}
	return q.addresses(a.Is6(), func(b netip.Addr) bool { return a == b })
}

func (q qualifiers) net(v string) (node, string) {
	pre, err := netip.ParsePrefix(v)
	if err != nil {
		if a, aerr := netip.ParseAddr(v); aerr == nil {
			pre, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
	}
	if err != nil || q.proto == "ether" {
		return nil, fmt.Sprintf("%q is no network: want 192.0.2.0/24 or 2001:db8::/32", v)
	}
	if pre != pre.Masked() {
		return nil, fmt.Sprintf("%q has bits of a host: want %s", v, pre.Masked())
	}
	return q.addresses(pre.Addr().Is6(), pre.Contains)
}

// addresses is a condition on IP addresses, in IP or, of IPv4, in ARP.
func (q qualifiers) addresses(v6 bool, holds func(netip.Addr) bool) (node, string) {
	switch q.proto {
	case "ip", "arp", "rarp":
		if v6 {
			return nil, "an IPv6 address after " + q.proto
		}
	case "ip6":
		if !v6 {
			return nil, "an IPv4 address after ip6"
		}
	case "":
	default:
		return nil, fmt.Sprintf("%s does not go with an address: write \"%s and host ...\"", q.proto, q.proto)
	}
	e := etherTypes[q.proto]
	return either(q.dir, func(f *frame) (netip.Addr, netip.Addr, bool) {
		return f.src, f.dst, f.src.IsValid() && f.src.Is6() == v6 && (e == 0 || f.ether == e)
	}, holds), ""
}

func (q qualifiers) port(v string) (node, string) {
	want := -1
	switch q.proto {
	case "", "ip", "ip6":
	case "tcp", "udp", "sctp":
		want = ipProtocol[q.proto]
	default:
		return nil, q.typ + " is of ip, ip6, tcp, udp or sctp, not of " + q.proto
	}
	first, last := v, v
	if a, b, isRange := strings.Cut(v, "-"); isRange && q.typ == "portrange" {
		first, last = a, b
	}
	low, of, ok := portNumber(first)
	high, _, ok2 := portNumber(last)
	if !ok || !ok2 || low > high {
		return nil, fmt.Sprintf("%q is no %s", v, q.typ)
	}
	if want < 0 {
		want = of
	}
	e := etherTypes[q.proto]
	return either(q.dir, func(f *frame) (int, int, bool) {
		return f.sport, f.dport, f.sport >= 0 && (want < 0 || f.proto == want) && (e == 0 || f.ether == e)
	}, func(n int) bool { return n >= low && n <= high }), ""
}

// portNumber reads a number or a name of /etc/services; of is the protocol that
// alone has a service of this name, -1 for any.
func portNumber(s string) (n, of int, ok bool) {
	if n, err := strconv.ParseUint(s, 10, 16); err == nil {
		return int(n), -1, true
	}
	tcp, terr := net.LookupPort("tcp", s)
	udp, uerr := net.LookupPort("udp", s)
	switch {
	case terr == nil && uerr == nil && tcp == udp:
		return tcp, -1, true
	case terr == nil && uerr != nil:
		return tcp, protoTCP, true
	case uerr == nil && terr != nil:
		return udp, protoUDP, true
	}
	return 0, -1, false
}

// value is a number that depends on the frame. ok is false behind its end.
type value func(f *frame) (n uint32, ok bool)

// sections of a frame that can be indexed: where they start, and whether it has them.
var sections = map[string]func(f *frame) (off int, has bool){
	"ether": func(*frame) (int, bool) { return 0, true },
	"ip":    func(f *frame) (int, bool) { return f.l3, f.ether == etherIPv4 },
	"ip6":   func(f *frame) (int, bool) { return f.l3, f.ether == etherIPv6 },
	"arp":   func(f *frame) (int, bool) { return f.l3, f.ether == etherARP },
	"tcp":   func(f *frame) (int, bool) { return f.l4, f.proto == protoTCP && f.l4 > 0 },
	"udp":   func(f *frame) (int, bool) { return f.l4, f.proto == protoUDP && f.l4 > 0 },
	"icmp":  func(f *frame) (int, bool) { return f.l4, f.ether == etherIPv4 && f.proto == protoICMP && f.l4 > 0 },
	"icmp6": func(f *frame) (int, bool) { return f.l4, f.ether == etherIPv6 && f.proto == protoICMPv6 && f.l4 > 0 },
}

// named numbers of pcap-filter(7).
var named = map[string]uint32{
	"tcpflags": 13, "tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32, "tcp-ece": 64, "tcp-cwr": 128,
	"icmptype": 0, "icmpcode": 1, "icmp-echoreply": 0, "icmp-unreach": 3, "icmp-redirect": 5, "icmp-echo": 8, "icmp-timxceed": 11,
	"icmp6type": 0, "icmp6code": 1, "icmp6-echo": 128, "icmp6-echoreply": 129, "icmp6-packettoobig": 2,
	"icmp6-neighborsolicit": 135, "icmp6-neighboradvert": 136,
}

func (p *parser) relation(depth int) (node, error) {
	l, err := p.arithmetic(0, depth)
	if err != nil {
		return nil, err
	}
	op := p.next()
	holds := map[string]func(a, b uint32) bool{
		"==": func(a, b uint32) bool { return a == b }, "=": func(a, b uint32) bool { return a == b },
		"!=": func(a, b uint32) bool { return a != b },
		"<":  func(a, b uint32) bool { return a < b }, ">": func(a, b uint32) bool { return a > b },
		"<=": func(a, b uint32) bool { return a <= b }, ">=": func(a, b uint32) bool { return a >= b },
	}[op.text]
	if holds == nil {
		return nil, p.fail(op, "%s", want(op, "a comparison"))
	}
	r, err := p.arithmetic(0, depth)
	if err != nil {
		return nil, err
	}
	return func(f *frame, _ uint32) verdict {
		a, ok := l(f)
		if !ok {
			return reject
		}
		b, ok := r(f)
		if !ok {
			return reject
		}
		return is(holds(a, b))
	}, nil
}

// Binary operators, the loosest first.
var operators = []map[string]func(a, b uint32) (uint32, bool){
	{"|": func(a, b uint32) (uint32, bool) { return a | b, true }},
	{"^": func(a, b uint32) (uint32, bool) { return a ^ b, true }},
	{"&": func(a, b uint32) (uint32, bool) { return a & b, true }},
	{"<<": func(a, b uint32) (uint32, bool) { return a << b, true }, ">>": func(a, b uint32) (uint32, bool) { return a >> b, true }},
	{"+": func(a, b uint32) (uint32, bool) { return a + b, true }, "-": func(a, b uint32) (uint32, bool) { return a - b, true }},
	{"*": func(a, b uint32) (uint32, bool) { return a * b, true },
		"/": func(a, b uint32) (uint32, bool) { return a / max(b, 1), b != 0 }, "%": func(a, b uint32) (uint32, bool) { return a % max(b, 1), b != 0 }},
}

func (p *parser) arithmetic(level, depth int) (value, error) {
	if depth > deepest {
		return nil, p.fail(p.peek(), "nested deeper than %d", deepest)
	}
	if level == len(operators) {
		return p.operand(depth)
	}
	l, err := p.arithmetic(level+1, depth)
	if err != nil {
		return nil, err
	}
	for {
		op := operators[level][p.peek().text]
		if op == nil {
			return l, nil
		}
		p.next()
		r, err := p.arithmetic(level+1, depth)
		if err != nil {
			return nil, err
		}
		left := l
		l = func(f *frame) (uint32, bool) {
			a, ok := left(f)
			if !ok {
				return 0, false
			}
			b, ok := r(f)
			if !ok {
				return 0, false
			}
			return op(a, b)
		}
	}
}

func (p *parser) operand(depth int) (value, error) {
	t := p.next()
	switch {
	case t.text == "(":
		v, err := p.arithmetic(0, depth+1)
		if err == nil && !p.accept(")") {
			err = p.fail(p.peek(), "a parenthesis is not closed")
		}
		return v, err
	case t.text == "len":
		return func(f *frame) (uint32, bool) { return uint32(f.length), true }, nil
	case sections[t.text] != nil && p.accept("["):
		return p.index(t.text, depth)
	}
	n, known := named[t.text]
	if !known {
		var err error
		if n, err = number(t.text); err != nil {
			return nil, p.fail(t, "%s", want(t, "a number, len, or bytes of a header as in tcp[13]"))
		}
	}
	return func(*frame) (uint32, bool) { return n, true }, nil
}

// index reads [offset] or [offset:size]; the opening bracket is read.
func (p *parser) index(section string, depth int) (value, error) {
	size := uint32(1)
	// "12:2" came as one word.
	if t := p.peek(); strings.Contains(t.text, ":") {
		off, n, _ := strings.Cut(t.text, ":")
		p.toks = slices.Replace(p.toks, p.pos, p.pos+1, token{off, t.at}, token{":", t.at + len(off)}, token{n, t.at + len(off) + 1})
		if n == "" {
			p.toks = slices.Delete(p.toks, p.pos+2, p.pos+3)
		}
	}
	off, err := p.arithmetic(0, depth+1)
	if err != nil {
		return nil, err
	}
	if p.accept(":") {
		t := p.next()
		if size, err = number(t.text); err != nil || size != 1 && size != 2 && size != 4 {
			return nil, p.fail(t, "%s", want(t, "1, 2 or 4 bytes"))
		}
	}
	if !p.accept("]") {
		return nil, p.fail(p.peek(), "a bracket is not closed")
	}
	at := sections[section]
	return func(f *frame) (uint32, bool) {
		start, has := at(f)
		n, ok := off(f)
		if !has || !ok || uint64(start)+uint64(n)+uint64(size) > uint64(len(f.data)) {
			return 0, false
		}
		b := f.data[start+int(n):]
		switch size {
		case 1:
			return uint32(b[0]), true
		case 2:
			return uint32(binary.BigEndian.Uint16(b)), true
		}
		return binary.BigEndian.Uint32(b), true
	}, nil
}
