// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// node is a value of a YAML file, with its key.
type node struct {
	key string
	at  Place
	v   ast.Node
}

// pairs of a mapping, nil if the node is none.
func pairs(file string, n ast.Node) []node {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	case *ast.TagNode:
		return pairs(file, m.Value)
	case *ast.AnchorNode:
		return pairs(file, m.Value)
	}
	out := make([]node, 0, len(values))
	for _, p := range values {
		key := p.Key.GetToken().Value
		out = append(out, node{key, Place{file, p.Key.GetToken().Position.Line}, p.Value})
	}
	return out
}

// text of a single value.
func (n node) text() (string, bool) {
	switch v := n.v.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return v.GetToken().Value, true
	case *ast.LiteralNode:
		return v.Value.Value, true
	}
	return "", false
}

// list of single values; one value is a list of one.
func (n node) list() (out []node) {
	switch v := n.v.(type) {
	case *ast.SequenceNode:
		for _, item := range v.Values {
			at := n.at
			if t := item.GetToken(); t != nil && t.Position != nil {
				at.Line = t.Position.Line
			}
			out = append(out, node{n.key, at, item})
		}
	case nil, *ast.NullNode:
	default:
		out = append(out, n)
	}
	return out
}

// netplan reads one file. Keys of the same link in a later file win, lists grow, as netplan merges them.
func (h *host) netplan(name string, b []byte) (err error) {
	defer func() {
		if r := recover(); r != nil { // the parser, on odd bytes
			err = fmt.Errorf("read %s: not YAML that can be read", name)
		}
	}()
	f, err := parser.ParseBytes(b, 0)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	for _, doc := range f.Docs {
		for _, top := range pairs(name, doc.Body) {
			if top.key != "network" {
				h.note(top.at, "not netplan's: %s", top.key)
				continue
			}
			h.netplanNetwork(name, top)
		}
	}
	return nil
}

func (h *host) netplanNetwork(file string, top node) {
	groups := pairs(file, top.v)
	renderer := ""
	for _, g := range groups {
		if g.key == "renderer" {
			renderer, _ = g.text()
		}
	}
	// Links first: a bridge names its ports.
	for _, g := range groups {
		if g.key != "tunnels" {
			continue
		}
		for _, t := range pairs(file, g.v) {
			h.netplanTunnel(file, t, renderer)
		}
	}
	for _, g := range groups {
		if g.key == "bridges" {
			for _, b := range pairs(file, g.v) {
				h.netplanBridge(file, b)
			}
		}
	}
	for _, g := range groups {
		switch g.key {
		case "tunnels", "bridges", "version", "renderer":
			continue
		}
		for _, l := range pairs(file, g.v) {
			o := h.other(l.key)
			for _, k := range pairs(file, l.v) {
				switch k.key {
				case "addresses":
					for _, a := range k.list() {
						h.netplanAddress(file, l.key, a)
					}
				case "mtu":
					if t, ok := k.text(); ok {
						o.mtu, _ = strconv.Atoi(t)
					}
				}
			}
		}
	}
}

func (h *host) netplanTunnel(file string, t node, renderer string) {
	keys := pairs(file, t.v)
	vxlanMode := h.findVXLAN(t.key) != nil
	for _, k := range keys {
		if text, _ := k.text(); k.key == "mode" {
			vxlanMode = text == "vxlan"
		}
	}
	if !vxlanMode {
		h.other(t.key)
		return
	}
	v := h.vxlan(t.key, t.at)
	v.maker = "netplan"
	if renderer == "NetworkManager" {
		v.note(t.at, "renderer NetworkManager: defaults are read as networkd's")
	}
	for _, k := range keys {
		text, single := k.text()
		num := func(key string) {
			if n, ok := number(text); single && ok {
				v.set.put(key, n, k.at)
			} else {
				v.note(k.at, "%s: %s is not a number", k.key, short(text))
			}
		}
		switch k.key {
		case "mode", "optional", "critical":
		case "id":
			num("vni")
		case "link":
			v.set.put("device", text, k.at)
		case "local":
			v.set.put("local", text, k.at)
		case "remote":
			v.remote(text, k.at)
		case "ttl":
			v.ttl(text, k.at)
		case "type-of-service", "tos":
			if n, err := strconv.ParseUint(text, 0, 8); err == nil {
				v.tos(fmt.Sprintf("0x%02x", n), k.at)
			} else {
				v.note(k.at, "%s: %s is not a number", k.key, short(text))
			}
		case "port":
			num("port")
		case "mtu":
			num("mtu")
		case "ageing", "aging":
			num("ageing")
		case "flow-label":
			num("flow_label")
		case "mac-learning":
			if on, ok := yesNo(text); ok {
				v.set.put("learning", strconv.FormatBool(on), k.at)
			} else {
				v.note(k.at, "mac-learning: %s is neither true nor false", short(text))
			}
		case "do-not-fragment":
			if on, ok := yesNo(text); ok {
				v.set.put("df", map[bool]string{true: "set", false: "unset"}[on], k.at)
			} else {
				v.note(k.at, "do-not-fragment: %s is neither true nor false", short(text))
			}
		case "port-range":
			var ports []string
			for _, p := range k.list() {
				s, _ := p.text()
				ports = append(ports, clean(s))
			}
			v.set.put("source_ports", "["+strings.Join(ports, ", ")+"]", k.at)
		case "checksums":
			for _, c := range k.list() {
				switch s, _ := c.text(); s {
				case "udp":
					v.set.put("udp_checksum", "true", c.at)
				case "zero-udp6-tx":
					v.set.put("udp_checksum", "false", c.at)
				case "zero-udp6-rx":
				default:
					v.note(c.at, "no equivalent: checksums: %s", short(s))
				}
			}
		case "extensions":
			for _, c := range k.list() {
				s, _ := c.text()
				v.skip = "it speaks " + short(s) + ", an extension that vxbpf does not"
			}
		case "link-local", "accept-ra", "dhcp4", "dhcp6":
			if on, ok := yesNo(text); ok && on {
				v.note(k.at, "no equivalent: %s: %s", k.key, text)
			}
		case "addresses":
			for _, a := range k.list() {
				h.netplanAddress(file, t.key, a)
			}
		default:
			v.note(k.at, "no equivalent: %s%s", k.key, tail(text))
		}
	}
}

func tail(text string) string {
	if text == "" {
		return ""
	}
	return ": " + short(text)
}

// netplanAddress takes an address, or a mapping from it to a label and a lifetime.
func (h *host) netplanAddress(file, link string, a node) {
	if text, ok := a.text(); ok {
		h.address(link, text, a.at)
		return
	}
	for _, p := range pairs(file, a.v) {
		h.address(link, p.key, p.at)
		for _, o := range pairs(file, p.v) {
			s, _ := o.text()
			h.noteOn(link, o.at, "no equivalent: %s%s of address %s", o.key, tail(s), p.key)
		}
	}
}

func (h *host) netplanBridge(file string, n node) {
	b := h.bridge(n.key, n.at)
	for _, k := range pairs(file, n.v) {
		text, _ := k.text()
		switch k.key {
		case "interfaces":
			for _, p := range k.list() {
				s, _ := p.text()
				b.port(s, p.at)
			}
		case "addresses":
			for _, a := range k.list() {
				h.netplanAddress(file, n.key, a)
			}
		case "mtu":
			if s, ok := number(text); ok {
				b.set.put("mtu", s, k.at)
			} else {
				b.note(k.at, "mtu: %s is not a number", short(text))
			}
		case "parameters":
			b.parameters(file, k)
		case "optional", "critical", "link-local":
		case "dhcp4", "dhcp6", "accept-ra":
			if on, ok := yesNo(text); !ok || on {
				b.note(k.at, "no equivalent: %s: %s; an address that is not in the file is not vxbpf's to give", k.key, short(text))
			}
		case "gateway4", "gateway6", "routes":
			b.note(k.at, "no equivalent: %s%s; routes stay with netplan", k.key, tail(text))
		case "nameservers":
			b.note(k.at, "no equivalent: nameservers; resolvers stay with netplan")
		default:
			b.note(k.at, "no equivalent: %s%s", k.key, tail(text))
		}
	}
}

func (b *bridge) parameters(file string, n node) {
	keys := pairs(file, n.v)
	stp := false
	for _, k := range keys {
		text, _ := k.text()
		switch k.key {
		case "stp":
			stp = true
			b.stp(text, k.at)
		case "forward-delay", "ageing-time", "aging-time":
			key := "ageing"
			if k.key == "forward-delay" {
				key = "forward_delay"
			}
			if t, ok := span(text); ok {
				b.time(key, t, k.at)
			} else {
				b.note(k.at, "%s: %s is not a time", k.key, short(text))
			}
		default:
			b.note(k.at, "no equivalent: parameters: %s%s", k.key, tail(text))
		}
	}
	if !stp && len(keys) > 0 {
		b.set["stp"] = setting{text: "true", at: n.at, why: "not written there; netplan's default where a bridge has parameters"}
	}
}
