// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// The raw structs mirror the YAML. Every value stays text until the checker
// reads it, so one wrong value hides no other.
type (
	rawConfig struct {
		where
		Underlay rawUnderlay  `yaml:"underlay"`
		Datapath scalar       `yaml:"datapath"`
		VLANTags scalar       `yaml:"vlan_tags"`
		MSSClamp scalar       `yaml:"mss_clamp"`
		Bypass   scalar       `yaml:"bypass_netfilter"`
		Metrics  scalar       `yaml:"metrics"`
		Log      rawLog       `yaml:"log"`
		Networks []rawNetwork `yaml:"networks"`
	}
	rawUnderlay struct {
		where
		Device scalar `yaml:"device"`
		Local  scalar `yaml:"local"`
		Port   scalar `yaml:"port"`
		TTL    scalar `yaml:"ttl"`
		rawHeader
		MTU     scalar     `yaml:"mtu"`
		Sources rawSources `yaml:"allowed_sources"`
	}
	// rawHeader are the values of outer headers that most hosts never need.
	rawHeader struct {
		TOS         scalar   `yaml:"tos"`
		DF          scalar   `yaml:"df"`
		FlowLabel   scalar   `yaml:"flow_label"`
		SourcePorts []scalar `yaml:"source_ports"`
		UDPChecksum scalar   `yaml:"udp_checksum"`
	}
	rawLog struct {
		where
		Level  scalar `yaml:"level"`
		Format scalar `yaml:"format"`
	}
	rawNetwork struct {
		where
		Name     scalar     `yaml:"name"`
		VNI      scalar     `yaml:"vni"`
		Bridge   rawBridge  `yaml:"bridge"`
		Link     scalar     `yaml:"link"`
		Group    scalar     `yaml:"group"`
		Remotes  []scalar   `yaml:"remotes"`
		FDB      []rawEntry `yaml:"fdb"`
		MTU      scalar     `yaml:"mtu"`
		Learning scalar     `yaml:"learning"`
		Ageing   scalar     `yaml:"ageing"`
		Datapath scalar     `yaml:"datapath"`
		VLANTags scalar     `yaml:"vlan_tags"`
		MSSClamp scalar     `yaml:"mss_clamp"`
		Bypass   scalar     `yaml:"bypass_netfilter"`
		Device   scalar     `yaml:"device"`
		Local    scalar     `yaml:"local"`
		Port     scalar     `yaml:"port"`
		TTL      scalar     `yaml:"ttl"`
		rawHeader
		Sources rawSources `yaml:"allowed_sources"`
	}
	// rawSources is a list, or one word.
	rawSources struct {
		where
		word scalar
		list []scalar
	}
	rawBridge struct {
		where
		Name         scalar   `yaml:"name"` // all there is when bridge is one value
		Addresses    []scalar `yaml:"addresses"`
		STP          scalar   `yaml:"stp"`
		ForwardDelay scalar   `yaml:"forward_delay"`
	}
	rawEntry struct {
		where
		MAC    scalar `yaml:"mac"`
		Remote scalar `yaml:"remote"`
	}
)

// where is the place of a mapping: its key, or its start as a list item.
type where struct {
	at   pos
	path string
	set  bool
}

// scalar is one value as written, quotes removed. A key with nothing after it
// is not set, but has a place.
type scalar struct {
	where
	text string
}

// synonyms are the words of `ip link`, ifupdown and others for keys of ours.
var synonyms = map[string]string{
	"id": "vni", "vxlan_id": "vni", "dev": "device", "interface": "device", "dstport": "port",
	"aging": "ageing", "ageing_time": "ageing", "src": "local", "source": "local", "dst": "remote",
	"vtep": "remote", "remote": "remotes", "peers": "remotes", "multicast": "group", "fd": "forward_delay",
	"forward-delay": "forward_delay", "lladdr": "mac", "ports": "port", "address": "addresses", "hops": "ttl",
	"flowlabel": "flow_label", "srcport": "source_ports", "source_port": "source_ports", "udpcsum": "udp_checksum",
	"hop_limit": "ttl", "mss": "mss_clamp", "vlans": "vlan_tags", "tags": "vlan_tags",
	"sources": "allowed_sources", "allowed-sources": "allowed_sources",
	"allow": "allowed_sources",
}

// maxExpanded bounds what aliases may stand for, in values.
const maxExpanded = 1 << 16

// decoder fills the raw structs from the syntax tree.
type decoder struct {
	ps       *problems
	anchors  map[string]ast.Node
	expanded int // values read through aliases
	depth    int // aliases we are inside of
	full     bool
}

// root decodes the whole file. Raw stays unset when that is not a mapping, so
// that nothing further is worth saying.
func (d *decoder) root(n ast.Node, raw *rawConfig) {
	d.anchors = map[string]ast.Node{}
	d.value(n, "", pos{}, reflect.ValueOf(raw).Elem())
}

func (d *decoder) fail(at pos, path, hint, format string, args ...any) {
	d.ps.add(at, path, hint, fmt.Sprintf(format, args...))
}

// start is where a reader would say that the node begins. The parser gives a
// block mapping the position of its first colon.
func (d *decoder) start(n ast.Node) pos {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return d.start(m.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return d.start(m.Key)
	}
	return d.ps.src.place(n.GetToken())
}

// value decodes n into v, a scalar, a slice or a raw struct. Key is the place
// of the key in front of n; zero for list items.
func (d *decoder) value(n ast.Node, path string, key pos, v reflect.Value) {
	if d.depth > 0 {
		if d.expanded++; d.expanded > maxExpanded {
			if !d.full {
				d.full = true
				d.fail(d.start(n), path, "write the values out", "the aliases of this file stand for more than %d values", maxExpanded)
			}
			return
		}
	}
	switch m := n.(type) {
	case *ast.AnchorNode:
		d.value(m.Value, path, key, v)
		// Only now: an alias inside its own anchor finds nothing, so there are no loops.
		d.anchors[text(m.Name.GetToken())] = m.Value
		return
	case *ast.AliasNode:
		name := text(m.Value.GetToken())
		if target, ok := d.anchors[name]; ok {
			d.depth++
			d.value(target, path, key, v)
			d.depth--
		} else {
			d.ps.src.at[path] = d.start(n)
			d.fail(d.start(n), path, fmt.Sprintf("write `key: &%s value` on the first use, further up", name),
				"the alias *%s has no anchor &%s before it", show(name), show(name))
		}
		return
	}

	at := d.start(n)
	w := where{at: at, path: path, set: true}
	if key != (pos{}) {
		w.at = key
	}
	_, null := n.(*ast.NullNode)
	if null {
		w.set = false
		d.ps.src.at[path] = w.at
	}

	switch dst := v.Addr().Interface().(type) {
	case *scalar:
		written, ok := scalarText(n)
		switch {
		case null:
			dst.where = w
		case !ok:
			d.ps.src.at[path] = at
			d.fail(at, path, "write `"+lastKey(path)+": value`", "is %s, want one value", kind(n))
		default:
			w.at = at
			d.ps.src.at[path] = at
			*dst = scalar{where: w, text: written}
		}
		return
	case *rawSources:
		if _, ok := scalarText(n); ok && !null {
			d.value(n, path, key, reflect.ValueOf(&dst.word).Elem())
			dst.where = dst.word.where
			return
		}
		d.value(n, path, key, reflect.ValueOf(&dst.list).Elem())
		w.set = dst.list != nil
		if !w.set && !null {
			w.path = "" // reported
		}
		dst.where = w
		return
	case *rawBridge:
		if _, ok := scalarText(n); ok && !null {
			d.value(n, path+".name", pos{}, reflect.ValueOf(&dst.Name).Elem())
			dst.Name.path = path
			dst.where = dst.Name.where
			d.ps.src.at[path] = dst.at
			return
		}
	}

	if v.Kind() == reflect.Slice {
		d.ps.src.at[path] = w.at
		seq, ok := n.(*ast.SequenceNode)
		if !ok && !null {
			hint := "write a list: [a, b, c]"
			if written, ok := scalarText(n); ok {
				hint = "write [" + written + "]"
			}
			d.fail(at, path, hint, "is %s, want a list", kind(n))
		}
		if !ok {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
		for i, item := range seq.Values {
			if _, empty := item.(*ast.NullNode); empty {
				d.fail(d.start(item), fmt.Sprintf("%s[%d]", path, i), "delete it, or write the value", "an empty list item")
				continue
			}
			d.value(item, fmt.Sprintf("%s[%d]", path, i), pos{}, v.Index(i))
		}
		return
	}

	*v.Addr().Interface().(interface{ self() *where }).self() = w
	d.ps.src.at[path] = w.at
	var pairs []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		pairs = m.Values
	case *ast.MappingValueNode: // one pair as a list item: [a: 1]
		pairs = []*ast.MappingValueNode{m}
	default:
		self := v.Addr().Interface().(interface{ self() *where }).self()
		self.set = false
		if !null {
			self.path = "" // reported here, so the checker has nothing to add
			what := "is"
			if path == "" {
				what = "the file is"
			}
			d.fail(at, path, "the keys here are "+strings.Join(keys(v.Type()), ", "), what+" %s, want keys with values", kind(n))
		}
		return
	}
	given := map[string]pos{}
	for _, pair := range pairs {
		name, keyAt := text(pair.Key.GetToken()), d.start(pair.Key)
		sub := name
		if path != "" {
			sub = path + "." + name
		}
		if first, twice := given[name]; twice {
			d.fail(keyAt, printable(sub), "keep one of them", "given twice, first in line %d", first.line)
			continue
		}
		field, ok := fieldOf(v, name)
		if !ok {
			d.fail(keyAt, path, unknownHint(name, v.Type()), "unknown key %s", show(name))
			continue
		}
		given[name] = keyAt
		d.value(pair.Value, sub, keyAt, field)
	}
}

// self lets the decoder set the place of any raw struct.
func (w *where) self() *where { return w }

// scalarText is the text of a single value, as written.
func scalarText(n ast.Node) (string, bool) {
	switch n.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return text(n.GetToken()), true
	}
	return "", false
}

func kind(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	if written, ok := scalarText(n); ok {
		return "the value " + show(written)
	}
	return "something else"
}

func lastKey(path string) string {
	return strings.TrimRight(path[strings.LastIndexByte(path, '.')+1:], "[]0123456789")
}

func keys(t reflect.Type) []string {
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		if name, ok := f.Tag.Lookup("yaml"); ok {
			names = append(names, name)
		}
	}
	return names
}

func fieldOf(v reflect.Value, name string) (reflect.Value, bool) {
	for _, f := range reflect.VisibleFields(v.Type()) {
		if tag, ok := f.Tag.Lookup("yaml"); ok && tag == name {
			return v.FieldByIndex(f.Index), true
		}
	}
	return reflect.Value{}, false
}

func unknownHint(name string, t reflect.Type) string {
	all := keys(t)
	list := "the keys here are " + strings.Join(all, ", ")
	if s := synonyms[name]; slices.Contains(all, s) {
		return "write " + s + "; " + list
	}
	best, least := "", 3
	for _, k := range all {
		if n := distance(name, k); n < least && n < len(k)-1 {
			best, least = k, n
		}
	}
	if best != "" {
		return "did you mean " + best + "? " + list
	}
	return list
}

// distance is how many letters to insert, delete or change to turn a into b,
// as far as names of keys go: what is longer is far away.
func distance(a, b string) int {
	if len(a) > 32 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
