// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readLegacy reads the tables of ip_tables, ip6_tables and ebtables through
// getsockopt. Tables of arptables judge ARP, which the fast path does not carry.
func readLegacy() ([]*chain, error) {
	var all []*chain
	for _, x := range []*xtables{&ipTables, &ip6Tables} {
		// thread-self: the namespace of this thread, not of the process. Only
		// what is listed may be asked for: asking for a table creates it.
		b, err := os.ReadFile("/proc/thread-self/net/" + x.names)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list legacy %s tables: %w", x.tool, err)
		}
		for _, table := range strings.Fields(string(b)) {
			chains, err := x.read(table)
			if err != nil {
				return nil, fmt.Errorf("read legacy %s table %s: %w", x.tool, table, err)
			}
			all = append(all, chains...)
		}
	}
	// ebtables has no list. Since 5.15 its tables are made in a namespace when
	// they are first asked for; before that, when the module is loaded.
	modules, err := os.ReadFile("/proc/modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, table := range []string{"broute", "filter", "nat"} {
		if !bytes.HasPrefix(modules, []byte("ebtable_"+table+" ")) && !bytes.Contains(modules, []byte("\nebtable_"+table+" ")) {
			continue
		}
		chains, err := readEbtables(table)
		if err != nil {
			return nil, fmt.Errorf("read legacy ebtables table %s: %w", table, err)
		}
		all = append(all, chains...)
	}
	return all, nil
}

// xtables is what differs between iptables and ip6tables; offsets in bytes.
// The structures are ipt_entry of linux/netfilter_ipv4/ip_tables.h and
// ip6t_entry of linux/netfilter_ipv6/ip6_tables.h.
type xtables struct {
	tool   string
	names  string // file in /proc/net
	family uint8
	domain int
	level  int
	addr   int // length of an address: src, dst and their masks come first
	srcAt  uint32
	dstAt  uint32 // in the packet
	proto  int
	// hasProto says with IP6T_F_PROTO whether proto counts; 0: always.
	hasProto int
	inv      int
	offset   int // of target_offset, with next_offset behind it
	size     int
}

var (
	ipTables = xtables{
		tool: "iptables", names: "ip_tables_names", family: unix.NFPROTO_IPV4, domain: unix.AF_INET, level: unix.SOL_IP,
		addr: 4, srcAt: 12, dstAt: 16, proto: 80, inv: 83, offset: 88, size: 112,
	}
	ip6Tables = xtables{
		tool: "ip6tables", names: "ip6_tables_names", family: unix.NFPROTO_IPV6, domain: unix.AF_INET6, level: unix.SOL_IPV6,
		addr: 16, srcAt: 8, dstAt: 24, proto: 128, hasProto: 131, inv: 132, offset: 140, size: 168,
	}
)

// Bits of invflags (IPT_INV_*, IP6T_INV_*).
const (
	invIn    = 0x01
	invOut   = 0x02
	invSrc   = 0x08
	invDst   = 0x10
	invProto = 0x40
)

const (
	xtGetInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	xtGetEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES
	ebGetInfo    = 128
	ebGetEntries = 129

	xtNameLen  = 32
	xtInfoLen  = 84 // struct ipt_getinfo, ip6t_getinfo
	xtGetLen   = 40 // struct ipt_get_entries before the entries
	xtExtLen   = 32 // struct xt_entry_match, xt_entry_target: size, name, revision
	ebGetLen   = 120
	ebHeadLen  = 48  // struct ebt_entries
	ebEntryLen = 112 // struct ebt_entry
)

var errShort = errors.New("entries that do not fit their size")

var hookNames = [...]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "BROUTING"}

func (x *xtables) read(table string) ([]*chain, error) {
	for try := 1; ; try++ {
		info := make([]byte, xtInfoLen)
		copy(info, table)
		if err := getsockopt(x.domain, x.level, xtGetInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[80:])
		get := make([]byte, xtGetLen+int(size))
		copy(get, table)
		binary.NativeEndian.PutUint32(get[xtNameLen:], size)
		err := getsockopt(x.domain, x.level, xtGetEntries, get)
		// The table was replaced between the two.
		if errors.Is(err, unix.EAGAIN) && try < dumpTries {
			continue
		}
		if err != nil {
			return nil, err
		}
		return x.parse(table, info, get[xtGetLen:])
	}
}

// getsockopt asks with a buffer that is question and answer. Any socket of the
// family will do.
func getsockopt(domain, level, name int, b []byte) error {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n := uint32(len(b))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0); errno != 0 {
		return errno
	}
	return nil
}

// xtEntry is one entry of a table.
type xtEntry struct {
	at, next int
	b        []byte
	target   []byte
}

// parse takes a table apart. Its entries lie one behind the other: for each
// chain a head (of those that are no base chain), the rules, the policy or end.
func (x *xtables) parse(table string, info, b []byte) ([]*chain, error) {
	u16, u32 := binary.NativeEndian.Uint16, binary.NativeEndian.Uint32
	var entries []xtEntry
	for at := 0; at < len(b); {
		if len(b)-at < x.size {
			return nil, errShort
		}
		e := b[at:]
		target, next := int(u16(e[x.offset:])), int(u16(e[x.offset+2:]))
		if target < x.size || next < target+xtExtLen+4 || next > len(e) {
			return nil, errShort
		}
		entries = append(entries, xtEntry{at, at + next, e[:next], e[target:next]})
		at += next
	}
	// Where base chains begin, and their policies stand.
	var chains []*chain
	starts, ends := map[int]*chain{}, map[int]*chain{}
	for hook := hookPrerouting; hook <= hookPostrouting; hook++ {
		if u32(info[xtNameLen:])&(1<<hook) == 0 { // valid_hooks
			continue
		}
		c := &chain{tool: x.tool, family: x.family, table: table, name: hookNames[hook], hook: hook}
		chains = append(chains, c)
		starts[int(u32(info[36+4*hook:]))] = c // hook_entry
		ends[int(u32(info[56+4*hook:]))] = c   // underflow
	}
	for i, e := range entries {
		if extName(e.target) == "ERROR" && i+1 < len(entries) {
			c := &chain{tool: x.tool, family: x.family, table: table, name: cString(e.target[xtExtLen:]), hook: notBase}
			chains = append(chains, c)
			starts[e.next] = c
		}
	}
	var cur *chain
	for _, e := range entries {
		if c := starts[e.at]; c != nil {
			cur = c
		}
		switch {
		case extName(e.target) == "ERROR":
			cur = nil
		case ends[e.at] != nil:
			switch v := int32(u32(e.target[xtExtLen:])); v {
			case -nfAccept - 1:
			case -nfDrop - 1:
				ends[e.at].policy = "DROP"
			default:
				ends[e.at].policy = fmt.Sprint(v)
			}
			cur = nil
		case cur != nil:
			r, err := x.rule(e, starts)
			if err != nil {
				return nil, err
			}
			cur.rules = append(cur.rules, r)
		}
	}
	return chains, nil
}

func (x *xtables) rule(e xtEntry, starts map[int]*chain) (rule, error) {
	var r rule
	inv := e.b[x.inv]
	add := func(at field, val, mask []byte, inverted byte) {
		if !slices.ContainsFunc(mask, func(b byte) bool { return b != 0 }) {
			return // the condition is not there
		}
		c := cond{at: at, op: eq, val: val, mask: mask}
		if inv&inverted != 0 {
			c.op = neq
		}
		r.when = append(r.when, c)
	}
	part := func(i, size int) []byte { return e.b[i : i+size] }
	n := x.addr
	add(field{network, x.srcAt}, part(0, n), part(2*n, n), invSrc)
	add(field{network, x.dstAt}, part(n, n), part(3*n, n), invDst)
	add(field{meta, unix.NFT_META_IIFNAME}, part(4*n, 16), part(4*n+32, 16), invIn)
	add(field{meta, unix.NFT_META_OIFNAME}, part(4*n+16, 16), part(4*n+48, 16), invOut)
	if proto := binary.NativeEndian.Uint16(e.b[x.proto:]); proto != 0 && proto < 256 && (x.hasProto == 0 || e.b[x.hasProto]&1 != 0) {
		add(field{meta, unix.NFT_META_L4PROTO}, []byte{byte(proto)}, []byte{0xff}, invProto)
	}
	for at := x.size; at < len(e.b)-len(e.target); {
		m := e.b[at : len(e.b)-len(e.target)]
		if len(m) < xtExtLen {
			return r, errShort
		}
		size := int(binary.NativeEndian.Uint16(m))
		if size < xtExtLen || size > len(m) {
			return r, errShort
		}
		name := extName(m)
		if !slices.Contains(xtLooks, name) {
			r.does = judges
			return r, nil
		}
		if name == "udp" {
			r.when = append(r.when, udpPorts(m[xtExtLen:size])...)
		}
		at += size
	}
	r.does = judges
	if name := extName(e.target); name != "" {
		if slices.Contains(xtTracks, name) {
			r.does = passes
		}
		return r, nil
	}
	switch v := int(int32(binary.NativeEndian.Uint32(e.target[xtExtLen:]))); {
	case v == -nfAccept-1, v == -nfRepeat-1:
		r.does = passes
	case v >= 0:
		// Without a target it "jumps" to the next rule, where no chain begins: it is there for its counter.
		r.does, r.to = jumps, starts[v]
	}
	return r, nil
}

// extName is the name of a match or target.
func extName(b []byte) string { return cString(b[2:31]) }

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// udpPorts are the conditions of the udp match (struct xt_udp).
func udpPorts(info []byte) (out []cond) {
	if len(info) < 9 {
		return nil
	}
	for i, invert := range []byte{1, 2} { // source, destination
		low, high := binary.NativeEndian.Uint16(info[4*i:]), binary.NativeEndian.Uint16(info[4*i+2:])
		c := cond{at: field{transport, uint32(2 * i)}, op: inside}
		if info[8]&invert != 0 {
			c.op = outside
		}
		c.val, c.high = binary.BigEndian.AppendUint16(nil, low), binary.BigEndian.AppendUint16(nil, high)
		out = append(out, c)
	}
	return out
}

// readEbtables reads one table of legacy ebtables (linux/netfilter_bridge/ebtables.h).
func readEbtables(table string) ([]*chain, error) {
	for try := 1; ; try++ {
		get := make([]byte, ebGetLen)
		copy(get, table)
		err := getsockopt(unix.AF_INET, unix.SOL_IP, ebGetInfo, get)
		if unavailable(err) || errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		size := int(binary.NativeEndian.Uint32(get[40:]))
		entries := make([]byte, max(size, 1))
		// No counters wanted; the entries go to where we say.
		binary.NativeEndian.PutUint32(get[96:], 0)
		binary.NativeEndian.PutUint64(get[112:], uint64(uintptr(unsafe.Pointer(&entries[0]))))
		var pin runtime.Pinner
		pin.Pin(&entries[0])
		err = getsockopt(unix.AF_INET, unix.SOL_IP, ebGetEntries, append(get, make([]byte, size)...))
		pin.Unpin()
		if errors.Is(err, unix.EINVAL) && try < dumpTries {
			continue // the table was replaced between the two
		}
		if err != nil {
			return nil, err
		}
		return parseEbtables(table, entries[:size])
	}
}

// parseEbtables lists the base chains; what their rules say is not looked at.
func parseEbtables(table string, b []byte) ([]*chain, error) {
	u32 := binary.NativeEndian.Uint32
	var chains []*chain
	var cur *chain
	for len(b) > 0 {
		if len(b) < ebHeadLen {
			return nil, errShort
		}
		if u32(b) == 0 { // a chain's head, by its distinguisher
			cur = nil
			if hook := slices.Index(hookNames[:], cString(b[4:36])); hook >= 0 {
				cur = &chain{tool: "ebtables", family: unix.NFPROTO_BRIDGE, table: table, name: hookNames[hook], hook: hook}
				switch policy := int32(u32(b[40:])); policy {
				case -1: // EBT_ACCEPT
				case -2:
					cur.policy = "DROP"
				default:
					cur.policy = fmt.Sprint(policy)
				}
				chains = append(chains, cur)
			}
			b = b[ebHeadLen:]
			continue
		}
		if len(b) < ebEntryLen {
			return nil, errShort
		}
		next := int(u32(b[108:]))
		if next < ebEntryLen || next > len(b) {
			return nil, errShort
		}
		if cur != nil {
			cur.rules = append(cur.rules, rule{does: judges})
		}
		b = b[next:]
	}
	return chains, nil
}
