// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// words takes a command apart.
type words []string

func (w *words) next() string {
	if len(*w) == 0 {
		return ""
	}
	s := (*w)[0]
	*w = (*w)[1:]
	return s
}

// is reports an abbreviation as ip takes it.
func is(word, full string) bool { return word != "" && strings.HasPrefix(full, word) }

// ip reads the arguments of one ip command. A foreign one is about links that are none of ours, as a rule.
func (h *host) ip(args []string, at Place, foreign bool) {
	w := words(args)
	whole := "ip " + short(strings.Join(args, " "))
	for len(w) > 0 && strings.HasPrefix(w[0], "-") {
		switch o := w.next(); {
		case o == "-n" || strings.HasPrefix(o, "-net"):
			h.note(at, "in another network namespace, not read: %s", whole)
			return
		case strings.HasPrefix(o, "-b") && !is(o, "-brief"):
			h.note(at, "a batch file is not read; import it by itself: %s", whole)
			return
		case o == "-f" || is(o, "-family") && len(o) > 2:
			w.next()
		}
	}
	switch obj := w.next(); {
	case is(obj, "link"):
		h.ipLink(w, at, whole, foreign)
	case is(obj, "address"):
		h.ipAddress(w, at, whole)
	case obj == "":
	default:
		// Routes, rules and neighbours stay what they are; those of our links are worth a word.
		for _, a := range w {
			if h.noteOn(a, at, "no equivalent, keep it where it is: %s", whole) {
				return
			}
		}
		if !foreign && !slices.Contains(w, "show") && !slices.Contains(w, "list") {
			h.note(at, "no equivalent, keep it where it is: %s", whole)
		}
	}
}

func (h *host) ipLink(w words, at Place, whole string, foreign bool) {
	switch verb := w.next(); {
	case is(verb, "add"):
		h.linkAdd(w, at, whole)
	case is(verb, "set"), is(verb, "change"), is(verb, "replace"):
		h.linkSet(w, at, whole, foreign)
	case is(verb, "delete"):
		for _, a := range w {
			h.forget(a)
		}
	}
}

// forget drops a link that a script deletes: what counts is what stands at the end.
func (h *host) forget(name string) {
	if v := h.findVXLAN(name); v != nil {
		v.gone = true
	}
	if b := h.findBridge(name); b != nil {
		b.gone = true
	}
}

// linkAdd reads `ip link add [link DEV] [name] NAME [attributes] type KIND [options]`.
func (h *host) linkAdd(w words, at Place, whole string) {
	var name, device, kind string
	generic := words{}
	for len(w) > 0 && kind == "" {
		switch a := w.next(); a {
		case "link":
			device = w.next()
		case "name", "dev":
			name = w.next()
		case "type":
			kind = w.next()
		case "up", "down", "multicast", "arp", "dynamic":
			if a == "down" {
				w.next()
			}
		case "mtu", "address", "master", "txqueuelen", "alias", "broadcast", "numtxqueues", "numrxqueues", "index", "netns", "group", "qlen", "promisc":
			generic = append(generic, a, w.next())
		default:
			if name != "" {
				generic = append(generic, a)
				continue
			}
			name = a
		}
	}
	switch kind {
	case "vxlan":
		if name == "" {
			h.note(at, "a vxlan link without a name: %s", whole)
			return
		}
		v := h.vxlan(name, at)
		v.maker = "ip link"
		if device != "" {
			v.note(at, "link %s has no effect on a vxlan link: dev names the underlay device", device)
		}
		h.attributes(name, generic, at)
		v.options(w, at)
	case "bridge":
		if name != "" {
			b := h.bridge(name, at)
			h.attributes(name, generic, at)
			b.options(w, at)
		}
	}
}

// attributes are those of any link.
func (h *host) attributes(name string, w words, at Place) {
	for len(w) > 0 {
		switch a := w.next(); a {
		case "mtu":
			h.mtu(name, w.next(), at)
		case "master":
			h.master(name, w.next(), at)
		case "netns":
			if v := h.findVXLAN(name); v != nil {
				v.skip = fmt.Sprintf("it lives in another network namespace, %s", w.next())
			}
		case "up", "down", "nomaster", "dev":
		case "alias", "address", "txqueuelen", "qlen", "addrgenmode", "multicast", "arp", "promisc", "allmulticast", "group", "index", "numtxqueues", "numrxqueues", "broadcast", "xdp", "gso_max_size", "gro_max_size":
			h.noteOn(name, at, "no equivalent: %s %s", a, w.next())
		default:
			h.noteOn(name, at, "no equivalent: %s", a)
		}
	}
}

func (h *host) mtu(name, text string, at Place) {
	n, ok := number(text)
	if !ok {
		h.noteOn(name, at, "mtu %s is not a number", text)
		return
	}
	if v := h.findVXLAN(name); v != nil {
		v.set.put("mtu", n, at)
	} else if b := h.findBridge(name); b != nil {
		b.set.put("mtu", n, at)
	} else {
		h.other(name).mtu, _ = strconv.Atoi(n)
	}
}

// master makes a link a port of a bridge, which may come later in the file.
func (h *host) master(name, master string, at Place) {
	if v := h.findVXLAN(name); v != nil {
		v.master = master
		return
	}
	if b := h.findBridge(master); b != nil {
		b.port(name, at)
	}
}

// linkSet reads `ip link set [dev] NAME attributes [type KIND options]`.
func (h *host) linkSet(w words, at Place, whole string, foreign bool) {
	var name string
	if len(w) > 0 && (w[0] == "dev" || w[0] == "group") {
		w.next()
	}
	name = w.next()
	if h.findVXLAN(name) == nil && h.findBridge(name) == nil {
		for i, a := range w {
			if (a == "master" || a == "mtu") && i+1 < len(w) {
				h.attributes(name, words{a, w[i+1]}, at)
			}
		}
		return
	}
	if i := slices.Index(w, "type"); i >= 0 {
		h.attributes(name, w[:i], at)
		rest := w[min(i+2, len(w)):]
		if i+1 < len(w) && w[i+1] == "bridge_slave" {
			h.noteOn(name, at, "no equivalent: bridge port option %s; vxbpf leaves it as found", strings.Join(rest, " "))
			return
		}
		if v := h.findVXLAN(name); v != nil {
			v.options(rest, at)
		} else {
			h.findBridge(name).options(rest, at)
		}
		return
	}
	h.attributes(name, w, at)
}

// options reads what stands behind `type vxlan`.
func (v *vxlan) options(w words, at Place) {
	num := func(key, word, text string) {
		n, ok := number(text)
		if !ok {
			v.note(at, "%s %s is not a number", word, text)
			return
		}
		v.set.put(key, n, at)
	}
	for len(w) > 0 {
		switch a := w.next(); a {
		case "id", "vni":
			num("vni", a, w.next())
		case "dev":
			v.set.put("device", w.next(), at)
		case "group", "remote":
			v.remote(w.next(), at)
		case "local":
			text := w.next()
			if ip, err := netip.ParseAddr(text); err != nil || !ip.IsUnspecified() {
				v.set.put("local", text, at)
			}
		case "ttl", "hoplimit":
			v.ttl(w.next(), at)
		case "tos", "dsfield":
			v.tos(w.next(), at)
		case "df":
			v.set.put("df", w.next(), at)
		case "flowlabel":
			text := w.next()
			if text == "inherit" {
				v.note(at, "no equivalent: flowlabel inherit")
				continue
			}
			num("flow_label", a, text)
		case "dstport":
			num("port", a, w.next())
		case "srcport":
			lo, hi := w.next(), w.next()
			v.set.put("source_ports", fmt.Sprintf("[%s, %s]", clean(lo), clean(hi)), at)
		case "learning":
			v.set.put("learning", "true", at)
		case "nolearning":
			v.set.put("learning", "false", at)
		case "ageing":
			text := w.next()
			if text == "0" {
				v.note(at, "ageing 0 means the default of 300 s to the kernel")
				continue
			}
			num("ageing", a, text)
		case "udpcsum":
			v.checksum(true, at)
		case "noudpcsum":
			v.checksum(false, at)
		case "udp6zerocsumtx":
			v.set.put("udp_checksum", "false", at)
		case "noudp6zerocsumtx":
			v.set.put("udp_checksum", "true", at)
		case "udp6zerocsumrx", "noudp6zerocsumrx":
			if a == "noudp6zerocsumrx" {
				v.note(at, "no equivalent: %s; links made by vxbpf take IPv6 packets without a UDP checksum", a)
			}
		case "external", "vnifilter":
			v.skip = "it carries every VNI (" + a + "), and vxbpf wants one link per VNI"
		case "gbp", "gpe":
			v.skip = "it speaks " + a + ", an extension that vxbpf does not"
		case "nogbp", "nogpe", "noexternal", "noproxy", "norsc", "nol2miss", "nol3miss", "noremcsumtx", "noremcsumrx", "localbypass", "nomcroute", "novnifilter":
		case "maxaddress", "reserved_bits":
			v.note(at, "no equivalent: %s %s", a, w.next())
		case "proxy", "rsc", "l2miss", "l3miss", "remcsumtx", "remcsumrx", "nolocalbypass", "mcroute":
			v.note(at, "no equivalent: %s", a)
		default:
			v.note(at, "unknown option: %s", a)
		}
	}
}

func (v *vxlan) ttl(text string, at Place) {
	switch text {
	case "auto", "0":
		v.set.put("ttl", "auto", at)
	case "inherit":
		v.set.put("ttl", "inherit", at)
	default:
		if n, ok := number(text); ok {
			v.set.put("ttl", n, at)
		} else {
			v.note(at, "ttl %s is not a number", text)
		}
	}
}

// tos: ip reads hexadecimal, with or without 0x.
func (v *vxlan) tos(text string, at Place) {
	n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 8)
	switch {
	case text == "inherit" || err == nil && n == 1:
		v.set.put("tos", "inherit", at)
	case err != nil:
		v.note(at, "tos %s: names of classes are not read; write the byte, as 0x10", text)
	default:
		if n&3 != 0 {
			v.note(at, "tos 0x%02x: its two ECN bits are taken from each packet (RFC 6040)", n)
		}
		v.set.put("tos", fmt.Sprintf("0x%02x", n&^3), at)
	}
}

func (v *vxlan) checksum(on bool, at Place) {
	if v.v6() {
		v.note(at, "udpcsum is for an IPv4 underlay: no effect over IPv6")
		return
	}
	v.set.put("udp_checksum", strconv.FormatBool(on), at)
}

// clean makes text that cannot break out of a YAML flow list.
func clean(s string) string {
	if s == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, s)
}

// options reads what stands behind `type bridge`. Its times are hundredths of a second.
func (b *bridge) options(w words, at Place) {
	for len(w) > 0 {
		a := w.next()
		switch a {
		case "stp_state", "stp":
			b.stp(w.next(), at)
		case "forward_delay":
			b.hundredths("forward_delay", w.next(), at)
		case "ageing_time", "ageing":
			b.hundredths("ageing", w.next(), at)
		case "vlan_filtering":
			if text := w.next(); text != "0" {
				b.note(at, "no equivalent: vlan_filtering %s; a bridge that filters VLANs stays on the kernel's path", text)
			}
		default:
			b.note(at, "no equivalent: %s %s", a, w.next())
		}
	}
}

func (b *bridge) stp(text string, at Place) {
	on, ok := yesNo(text)
	if !ok {
		b.note(at, "stp %s is neither on nor off", text)
		return
	}
	b.set.put("stp", strconv.FormatBool(on), at)
}

func (b *bridge) hundredths(key, text string, at Place) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		b.note(at, "%s %s is not a number", key, text)
		return
	}
	b.time(key, strconv.FormatFloat(float64(n)/100, 'f', -1, 64), at)
}

// time takes seconds, with or without a fraction.
func (b *bridge) time(key, seconds string, at Place) {
	f, err := strconv.ParseFloat(seconds, 64)
	switch {
	case err != nil || !(f >= 0 && f < 1e9):
		b.note(at, "%s %s is not a number of seconds", key, seconds)
	case key == "ageing" && f == 0:
		b.note(at, "no equivalent: ageing 0, with which a bridge forgets at once and floods; to vxbpf 0 means never")
	case f == float64(int64(f)):
		b.set.put(key, strconv.FormatInt(int64(f), 10), at)
	default:
		b.set.put(key, strconv.FormatInt(int64(f*1000+0.5), 10)+"ms", at)
	}
}

// ipAddress reads `ip address add ADDRESS/LENGTH [brd +] dev NAME`.
func (h *host) ipAddress(w words, at Place, whole string) {
	verb := w.next()
	if !is(verb, "add") && !is(verb, "replace") && !is(verb, "change") {
		return
	}
	var address, dev string
	var rest []string
	for len(w) > 0 {
		switch a := w.next(); a {
		case "dev":
			dev = w.next()
		case "local":
			address = w.next()
		case "brd", "broadcast", "scope", "noprefixroute", "nodad", "home", "mngtmpaddr", "autojoin":
			if a == "brd" || a == "broadcast" || a == "scope" {
				w.next()
			}
		case "label", "peer", "metric", "preferred_lft", "valid_lft", "anycast":
			rest = append(rest, a+" "+w.next())
		default:
			if address == "" {
				address = a
			} else {
				rest = append(rest, a)
			}
		}
	}
	if address == "" {
		return // of a variable that is empty: ip would refuse it
	}
	h.address(dev, withLength(address), at)
	for _, r := range rest {
		h.noteOn(dev, at, "no equivalent: %s of address %s", r, address)
	}
}

// withLength gives an address without a length that of a single host, as ip does.
func withLength(text string) string {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen()).String()
	}
	return text
}

// bridgeCommand reads `bridge fdb append MAC dev NAME dst ADDRESS` and notes the rest.
func (h *host) bridgeCommand(args []string, at Place) {
	w := words(args)
	whole := "bridge " + short(strings.Join(args, " "))
	for len(w) > 0 && strings.HasPrefix(w[0], "-") {
		if o := w.next(); o == "-n" || strings.HasPrefix(o, "-net") {
			h.note(at, "in another network namespace, not read: %s", whole)
			return
		}
	}
	obj, verb := w.next(), w.next()
	if verb == "" || is(verb, "show") || is(verb, "list") {
		return
	}
	if !is(obj, "fdb") {
		if len(w) > 1 {
			h.noteOn(w[1], at, "no equivalent, keep it where it is: %s", whole)
		}
		return
	}
	if is(verb, "delete") {
		h.note(at, "an entry that a script takes away is not followed: %s", whole)
		return
	}
	var mac, dev string
	var dst []string
	var rest []string
	for len(w) > 0 {
		switch a := w.next(); a {
		case "dev":
			dev = w.next()
		case "dst":
			dst = append(dst, w.next())
		case "via", "vni", "src_vni", "port", "nhid", "vlan":
			rest = append(rest, a+" "+w.next())
		case "self", "permanent", "static", "local", "to", "lladdr":
		case "master", "dynamic", "extern_learn", "sticky", "router", "use":
			rest = append(rest, a)
		default:
			if mac == "" {
				mac = a
			}
		}
	}
	v := h.findVXLAN(dev)
	if v == nil {
		h.noteOn(dev, at, "no equivalent: %s", whole)
		return
	}
	// By the device that the link has anyway.
	rest = slices.DeleteFunc(rest, func(r string) bool { return r == "via "+v.set["device"].text })
	switch {
	case len(dst) == 0:
		// The bridge's half of a static entry, which vxbpf writes by itself.
		if !slices.Contains(rest, "master") || !slices.ContainsFunc(v.fdb, func(e entry) bool { return e.mac == strings.ToLower(mac) }) {
			v.note(at, "no equivalent: %s", whole)
		}
	case len(rest) > 0:
		v.note(at, "no equivalent, %s: %s", strings.Join(rest, ", "), whole)
	default:
		for _, d := range dst {
			v.static(mac, d, at)
		}
	}
}

// brctl reads bridge-utils' commands.
func (h *host) brctl(args []string, at Place) {
	w := words(args)
	verb, name := w.next(), w.next()
	switch verb {
	case "addbr":
		h.bridge(name, at)
	case "delbr":
		h.forget(name)
	case "addif":
		b := h.bridge(name, at)
		for len(w) > 0 {
			b.port(w.next(), at)
		}
	case "delif", "show", "showmacs", "showstp":
	case "stp", "setfd", "setageing":
		b := h.findBridge(name)
		if b == nil {
			return
		}
		switch verb {
		case "stp":
			b.stp(w.next(), at)
		case "setfd":
			b.time("forward_delay", w.next(), at)
		default:
			b.time("ageing", w.next(), at)
		}
	default:
		h.noteOn(name, at, "no equivalent: brctl %s", short(strings.Join(args, " ")))
	}
}
