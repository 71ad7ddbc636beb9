// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// iface is one stanza of interfaces(5).
type iface struct {
	name, family, method string
	at                   Place
	options              []option
}

type option struct {
	key, value string // the key with - for _
	at         Place
}

// interfaces reads a file of stanzas, and those that it names.
func (h *host) interfaces(f Format, name string, b []byte, depth int) error {
	if depth > 10 {
		return fmt.Errorf("read %s: source lines are nested too deeply", name)
	}
	var stanzas []*iface
	auto := map[string]bool{}
	var cur *iface
	lines := strings.Split(string(b), "\n")
	for i := 0; i < len(lines); i++ {
		at := Place{name, i + 1}
		line := strings.TrimLeft(lines[i], " \t")
		if strings.HasPrefix(line, "#") {
			continue
		}
		for strings.HasSuffix(line, "\\") && i+1 < len(lines) {
			i++
			line = line[:len(line)-1] + lines[i]
		}
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		word, rest := cut(line)
		switch {
		case word == "auto" || strings.HasPrefix(word, "allow-"):
			for _, n := range strings.Fields(rest) {
				auto[n] = true
			}
			cur = nil
		case word == "iface":
			fields := strings.Fields(rest)
			if len(fields) == 0 {
				return fmt.Errorf("read %s: iface without a name", at)
			}
			cur = &iface{name: fields[0], at: at}
			if len(fields) > 1 {
				cur.family = fields[1]
			}
			if len(fields) > 2 {
				cur.method = fields[2]
			}
			if k := slices.Index(fields, "inherits"); k > 0 && k+1 < len(fields) {
				for _, s := range stanzas {
					if s.name == fields[k+1] {
						cur.options = append(cur.options, s.options...)
					}
				}
			}
			stanzas = append(stanzas, cur)
		case word == "source" || word == "source-directory":
			cur = nil
			if err := h.source(f, word, rest, at, depth); err != nil {
				return err
			}
		case word == "mapping" || word == "template":
			h.note(at, "no equivalent: %s", short(line))
			cur = nil
			if word == "mapping" {
				cur = &iface{name: "", at: at} // its lines are nobody's
			}
		case word == "no-auto-down" || word == "no-scripts" || word == "rename":
			if word == "rename" {
				h.note(at, "no equivalent: %s", short(line))
			}
			cur = nil
		case cur == nil:
			return fmt.Errorf("read %s: %q stands in no stanza", at, short(word))
		default:
			cur.options = append(cur.options, option{strings.ReplaceAll(word, "_", "-"), rest, at})
		}
	}
	// A stanza may refer to links of one that comes later, so the links first.
	for _, s := range stanzas {
		h.declare(s)
	}
	for _, s := range stanzas {
		if err := h.stanza(f, s); err != nil {
			return err
		}
	}
	for _, s := range stanzas {
		hand := !auto[s.name] && !auto["/"+s.name] && !auto["/*"]
		if v := h.findVXLAN(s.name); v != nil {
			v.hand = hand
		}
		if br := h.findBridge(s.name); br != nil {
			br.hand = hand
		}
	}
	return nil
}

func cut(line string) (word, rest string) {
	i := strings.IndexAny(line, " \t")
	if i < 0 {
		return line, ""
	}
	return line[:i], strings.TrimSpace(line[i:])
}

func (h *host) source(f Format, word, pattern string, at Place, depth int) error {
	pattern = strings.TrimPrefix(pattern, "file://")
	if !filepath.IsAbs(pattern) {
		pattern = path.Join(path.Dir(at.File), pattern)
	}
	if word == "source-directory" {
		pattern = path.Join(pattern, "*")
	}
	names, err := h.fs.Glob(pattern)
	if err != nil {
		return fmt.Errorf("read %s: pattern %s: %w", at, pattern, err)
	}
	if len(names) == 0 {
		h.note(at, "%s names no file here", short(pattern))
	}
	for _, n := range names {
		b, err := h.read(n)
		if err != nil {
			return fmt.Errorf("%w (named in %s)", err, at)
		}
		if err := h.interfaces(f, n, b, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// declare makes the link that a stanza is for, as far as its options show it.
func (h *host) declare(s *iface) {
	if s.name == "" {
		return
	}
	for _, o := range s.options {
		switch {
		case s.name == "lo":
			if o.key == "vxlan-local-tunnelip" {
				h.tunnelIP = setting{text: o.value, at: o.at, why: "from lo"}
			}
			continue
		case strings.HasPrefix(o.key, "vxlan-"):
			v := h.vxlan(s.name, s.at)
			v.maker = "ifupdown2"
		}
		switch o.key {
		case "bridge-ports", "bridge-stp", "bridge-fd", "bridge-vlan-aware":
			h.bridge(s.name, s.at)
		}
	}
	// The idiom of classic ifupdown: the link is made by the stanza's own commands.
	for _, o := range s.options {
		if hooks[o.key] == 1 && strings.Contains(o.value, "vxlan") && strings.Contains(o.value, "add") {
			_ = h.hook(s, o, &host{fs: h.fs, netdevs: map[string]*unitFile{}}, h)
		}
	}
}

// hooks: 1 on the way up, 2 on the way down.
var hooks = map[string]int{"pre-up": 1, "up": 1, "post-up": 1, "down": 2, "pre-down": 2, "post-down": 2}

// hook follows the command of a stanza. With declare it only notes there which
// vxlan links the command makes.
func (h *host) hook(s *iface, o option, on, declare *host) error {
	env := map[string]string{"IFACE": s.name, "LOGICAL": s.name, "ADDRFAM": s.family, "METHOD": s.method, "MODE": "start", "PHASE": o.key}
	for _, x := range s.options {
		env["IF_"+strings.ToUpper(strings.ReplaceAll(x.key, "-", "_"))] = x.value
	}
	sh := &shell{h: on, file: o.at.File, line: o.at.Line, env: env, unknown: map[string]bool{}, funcs: map[string]*syntax.Stmt{},
		foreign: h.findVXLAN(s.name) == nil && h.findBridge(s.name) == nil}
	err := sh.run(o.value)
	if declare != h || on == h {
		return err
	}
	for _, v := range on.vxlans {
		declare.vxlan(v.name, v.at)
	}
	return err
}

func (h *host) stanza(f Format, s *iface) error {
	if s.name == "" {
		return nil
	}
	v, b := h.findVXLAN(s.name), h.findBridge(s.name)
	if v == nil && b == nil && s.name != "lo" {
		h.other(s.name)
	}
	if f == Ifupdown && v != nil && v.maker == "ifupdown2" {
		v.note(s.at, "vxlan-* keys are ifupdown2's: classic ifupdown ignores them")
	}
	// netmask belongs to the address before it.
	for i, o := range s.options {
		if o.key != "address" {
			continue
		}
		text := o.value
		if _, err := netip.ParseAddr(text); err == nil {
			for _, m := range s.options[i+1:] {
				if m.key == "address" {
					break
				}
				if m.key == "netmask" {
					text += "/" + prefixLength(m.value)
					break
				}
			}
		}
		h.address(s.name, withLength(text), o.at)
	}
	if b != nil && (s.method == "dhcp" || s.method == "auto") {
		b.note(s.at, "no equivalent: method %s; an address that is not in the file is not vxbpf's to give", s.method)
	}
	for _, o := range s.options {
		switch {
		case hooks[o.key] == 1:
			if err := h.hook(s, o, h, nil); err != nil {
				h.hookError(s, o, err)
			}
		case hooks[o.key] == 2:
			h.down(s, o)
		case o.key == "address", o.key == "netmask":
		case o.key == "mtu":
			h.mtu(s.name, o.value, o.at)
		case v != nil && strings.HasPrefix(o.key, "vxlan-"):
			v.ifupdown2(o)
		case v != nil:
			v.note(o.at, "no equivalent: %s %s%s", o.key, short(o.value), because[o.key])
		case b != nil && strings.HasPrefix(o.key, "bridge-"):
			h.bridgeOption(b, o)
		case b != nil:
			b.note(o.at, "no equivalent: %s %s%s", o.key, short(o.value), why(o.key))
		}
	}
	return nil
}

// hookError: text that is no shell is no reason to give up, where it is about something else.
func (h *host) hookError(s *iface, o option, err error) {
	if !h.noteOn(s.name, o.at, "not read, %v", err) && about.MatchString(o.value) {
		h.note(o.at, "not read, %v", err)
	}
}

// down reads a command of the way down: what takes away or sets down a link of
// ours is the other half of what was read already.
func (h *host) down(s *iface, o option) {
	fields := strings.Fields(o.value)
	for i, w := range fields {
		if w == "ip" || strings.HasSuffix(w, "/ip") || w == "brctl" || strings.HasSuffix(w, "/brctl") || w == "ifconfig" {
			rest := fields[i+1:]
			for _, x := range rest {
				if is(x, "delete") && len(x) > 2 || x == "down" || x == "delbr" || x == "delif" || x == "nomaster" || x == "flush" {
					return
				}
			}
		}
		if w == "bridge" && slices.Contains(fields[i+1:], "fdb") {
			return
		}
	}
	h.noteOn(s.name, o.at, "no equivalent: %s %s", o.key, short(o.value))
}

// because explains keys that people would miss.
var because = map[string]string{
	"hwaddress":         "; keep it with `ip link set`",
	"gateway":           "; routes stay what they are",
	"dns-nameservers":   "; resolvers stay what they are",
	"dns-search":        "; resolvers stay what they are",
	"bridge-waitport":   "; vxbpf waits for no port",
	"bridge-maxwait":    "; vxbpf waits for no port",
	"bridge-hw":         "; a bridge made by vxbpf has an address that stays",
	"bridge-vlan-aware": "; a bridge that filters VLANs stays on the kernel's path",
	"alias":             "",
	"broadcast":         "; it follows from the address",
	"network":           "; it follows from the address",
}

func why(key string) string {
	if strings.HasPrefix(key, "offload-") {
		return "; it is ethtool's, keep it where the bridge's stanza is"
	}
	return because[key]
}

func prefixLength(mask string) string {
	a, err := netip.ParseAddr(mask)
	if err != nil || !a.Is4() {
		return mask // a length already, or wrong: config.Parse says so
	}
	b := a.As4()
	n, zero := 0, false
	for _, x := range b {
		for i := 7; i >= 0; i-- {
			switch {
			case x>>i&1 == 0:
				zero = true
			case zero:
				return mask
			default:
				n++
			}
		}
	}
	return strconv.Itoa(n)
}

func (h *host) bridgeOption(b *bridge, o option) {
	switch o.key {
	case "bridge-ports":
		fields := strings.Fields(o.value)
		for i := 0; i < len(fields); i++ {
			switch p := fields[i]; p {
			case "none":
			case "regex", "glob", "noregex":
				if i+1 < len(fields) {
					i++
					b.note(o.at, "no equivalent: ports by %s %s; keep what attaches them", p, fields[i])
				}
			default:
				b.port(p, o.at)
			}
		}
	case "bridge-stp":
		b.stp(o.value, o.at)
	case "bridge-fd":
		b.time("forward_delay", o.value, o.at)
	case "bridge-ageing":
		b.time("ageing", o.value, o.at)
	case "bridge-vlan-aware", "bridge-mcsnoop", "bridge-mcquerier":
		if on, ok := yesNo(o.value); ok && !on && o.key == "bridge-vlan-aware" {
			return
		}
		fallthrough
	default:
		b.note(o.at, "no equivalent: %s %s%s", o.key, short(o.value), why(o.key))
	}
}

// ifupdown2 reads one of its keys.
func (v *vxlan) ifupdown2(o option) {
	text := strings.TrimSpace(o.value)
	put := func(key string) {
		if n, ok := number(text); ok {
			v.set.put(key, n, o.at)
		} else {
			v.note(o.at, "%s %s is not a number", o.key, text)
		}
	}
	switch o.key {
	case "vxlan-id", "vxlan-vni":
		if o.key == "vxlan-vni" || strings.ContainsAny(text, " \t,") {
			v.skip = "it carries several VNIs, and vxbpf wants one link per VNI"
			return
		}
		put("vni")
	case "vxlan-local-tunnelip":
		v.set.put("local", text, o.at)
	case "vxlan-svcnodeip", "vxlan-svcnodeip6", "vxlan-mcastgrp", "vxlan-mcastgrp6":
		v.remote(text, o.at)
	case "vxlan-remoteip", "vxlan-remoteip6":
		for _, r := range strings.Fields(text) {
			v.remote(r, o.at)
		}
	case "vxlan-physdev":
		v.set.put("device", text, o.at)
	case "vxlan-port":
		put("port")
	case "vxlan-ttl":
		v.ttl(text, o.at)
	case "vxlan-tos":
		v.tos(text, o.at)
	case "vxlan-ageing":
		if text != "0" {
			put("ageing")
		}
	case "vxlan-learning", "vxlan-udp-csum":
		on, ok := yesNo(text)
		switch {
		case !ok:
			v.note(o.at, "%s %s is neither on nor off", o.key, text)
		case o.key == "vxlan-learning":
			v.set.put("learning", strconv.FormatBool(on), o.at)
		default:
			v.checksum(on, o.at)
		}
	case "vxlan-mcastgrp-map", "vxlan-remoteip-map":
		v.skip = "it carries several VNIs (" + o.key + "), and vxbpf wants one link per VNI"
	default:
		v.note(o.at, "no equivalent: %s %s", o.key, short(text))
	}
}
