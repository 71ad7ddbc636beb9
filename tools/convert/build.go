// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/vxbpf/vxbpf/loader/config"
)

// network is one item under networks, in the order of keys.
type network struct {
	v     *vxlan
	b     *bridge
	set   settings // of the network
	notes []Note
}

// networkKeys in the order in which they are written; common are those that may stand under underlay.
var (
	networkKeys = []string{"name", "vni", "link", "group", "mtu", "learning", "ageing"}
	commonKeys  = []string{"device", "local", "port", "ttl", "tos", "df", "flow_label", "source_ports", "udp_checksum"}
)

// build writes config.yaml. Whatever config.Parse refuses is taken out and noted, so that the result passes it.
func (h *host) build(source, device string) (*Result, error) {
	nets := h.pair(device)
	for range 50 {
		if len(nets) == 0 {
			return &Result{Notes: h.allNotes(nets)}, ErrNothing
		}
		text := h.render(source, nets, false)
		_, err := config.Parse("config.yaml", text)
		if err == nil {
			break
		}
		var bad *config.Error
		if !errors.As(err, &bad) || !h.drop(&nets, bad.Problems) {
			return nil, fmt.Errorf("write a config from %s: %w", source, err)
		}
	}
	for _, hoist := range []bool{true, false} {
		text := h.render(source, nets, hoist)
		if _, err := config.Parse("config.yaml", text); err == nil {
			return &Result{Config: text, Notes: h.allNotes(nets)}, nil
		} else if !hoist {
			return nil, fmt.Errorf("write a config from %s: %w", source, err)
		}
	}
	return nil, nil // not reached
}

// pair makes a network of each vxlan link that is in a bridge, and explains the others.
func (h *host) pair(device string) (nets []*network) {
	taken := map[*bridge]string{}
	names := map[string]bool{}
	refuse := func(v *vxlan, format string, args ...any) {
		h.note(v.at, "%s is not in the config: %s", v.name, fmt.Sprintf(format, args...))
		h.notes = append(h.notes, v.notes...)
	}
	for _, v := range h.vxlans {
		if v.gone {
			continue
		}
		b := h.bridgeOf(v)
		switch {
		case v.skip != "":
			refuse(v, "%s", v.skip)
			continue
		case v.set["vni"].text == "":
			refuse(v, "it has no VNI")
			continue
		case b == nil && v.master != "":
			// The bridge is made elsewhere: by LXD, libvirt, or a file that was not given.
			b = &bridge{name: v.master, at: v.at, set: settings{}}
			b.note(v.at, "bridge %s is made elsewhere; vxbpf adopts it, or makes it where it is missing", v.master)
		case b == nil:
			refuse(v, "it is a port of no bridge, and vxbpf carries networks of bridges")
			continue
		case taken[b] != "":
			refuse(v, "%s is a port of the same bridge %s, and a bridge joins one network", taken[b], b.name)
			continue
		}
		taken[b] = v.name
		n := &network{v: v, b: b, set: settings{}, notes: slices.Concat(v.notes, b.notes)}
		for k, s := range v.set {
			n.set[k] = s
		}
		h.defaults(n)
		if !h.device(n, device) {
			refuse(v, "it names no underlay device, and none shows in the files; say --device")
			continue
		}
		if m := n.set["mtu"]; m.text != "" {
			n.mtu(h, m)
		}
		n.set["name"] = setting{text: networkName(v, b, names), at: v.at}
		names[n.set["name"].text] = true
		n.set["link"] = setting{text: v.name, at: v.at}
		for _, p := range b.ports {
			if p.text != v.name {
				n.notes = append(n.notes, Note{p.at, fmt.Sprintf("port %s of %s is not vxbpf's: keep what attaches it", p.text, b.name)})
			}
		}
		if v.hand || b.hand && len(b.addresses) > 0 {
			n.notes = append(n.notes, Note{v.at, "not brought up at boot there (no auto line); vxbpf makes it whenever it is loaded"})
		}
		nets = append(nets, n)
	}
	return nets
}

func (h *host) bridgeOf(v *vxlan) *bridge {
	if b := h.findBridge(v.master); b != nil {
		return b
	}
	for _, b := range h.bridges {
		if !b.gone && slices.ContainsFunc(b.ports, func(s setting) bool { return s.text == v.name }) {
			return b
		}
	}
	return nil
}

// defaults writes down what the source leaves to its tool, where vxbpf's own default is another.
func (h *host) defaults(n *network) {
	v, b := n.v, n.b
	def := func(key, text, why string) {
		if _, ok := n.set[key]; !ok {
			n.set[key] = setting{text: text, at: v.at, why: why}
		}
	}
	if v.maker == "ifupdown2" && h.tunnelIP.text != "" && n.set["local"].text == "" {
		n.set["local"] = h.tunnelIP
	}
	if v.maker == "netplan" || v.maker == "networkd" || v.maker == "ip link" {
		def("port", "8472", "not written there; the kernel's default is 8472")
	}
	if _, ok := n.set["group"]; ok {
		n.notes = append(n.notes, Note{v.at, "the kernel takes packets of a group from any sender; vxbpf takes them from the subnet of the underlay device, or from allowed_sources"})
		switch t := n.set["ttl"]; t.text {
		case "", "auto":
			n.notes = append(n.notes, Note{v.at, "no ttl there, which is 1 for a multicast group; a group of vxbpf needs more: it is 5"})
			n.set["ttl"] = setting{text: strconv.Itoa(config.DefaultGroupTTL), at: v.at, why: "see the notes"}
		case "1":
			n.notes = append(n.notes, Note{t.at, "ttl 1, with which multicast never leaves the first segment; a group of vxbpf needs more: it is 5"})
			n.set["ttl"] = setting{text: strconv.Itoa(config.DefaultGroupTTL), at: v.at, why: "see the notes"}
		}
	} else if n.set["ttl"].text == "auto" {
		delete(n.set, "ttl")
	}
	switch c, ok := n.set["udp_checksum"]; {
	case v.v6() && c.text != "false":
		n.notes = append(n.notes, Note{v.at, "over IPv6 only udp_checksum: false runs on BPF, and then all hosts must accept packets without one"})
	case !v.v6() && !ok && (v.maker == "ip link" || v.maker == "ifupdown2" || v.maker == "live"):
		n.notes = append(n.notes, Note{v.at, "the default there sends an outer UDP checksum; vxbpf sends none, which BPF needs and the other hosts take as well. A link that exists must be made again for that: load --recreate"})
		n.set["udp_checksum"] = setting{text: "false", at: v.at, why: "see the notes"}
	case c.text == "true":
		n.notes = append(n.notes, Note{c.at, "udp_checksum: true keeps the network on the kernel's path; false runs on BPF, and hosts of both kinds understand each other"})
	}
	if p := n.set["port"]; p.text == strconv.Itoa(config.DefaultPort) {
		delete(n.set, "port")
	}
	if l := n.set["learning"]; l.text == "true" {
		delete(n.set, "learning")
	}
	if _, ok := b.set["forward_delay"]; !ok && b.set["stp"].text == "true" {
		b.set["forward_delay"] = setting{text: "15", at: b.at, why: "not written there; the kernel's default"}
	}
	for _, s := range []settings{n.set, b.set} {
		if f, err := strconv.ParseFloat(s["ageing"].text, 64); err == nil && f > maxAgeing {
			n.notes = append(n.notes, Note{s["ageing"].at, fmt.Sprintf("ageing %s is longer than a config can say: never", s["ageing"].text)})
			s["ageing"] = setting{text: "0", at: s["ageing"].at}
		}
	}
	n.one("ageing", b, config.DefaultAgeing.Seconds(), "the shorter counts")
	n.one("mtu", b, 0, "vxbpf gives both the smaller")
	if _, ok := n.set["mtu"]; !ok && v.maker == "ifupdown2" {
		n.notes = append(n.notes, Note{v.at, fmt.Sprintf("no mtu there, for which ifupdown2 sets %d; vxbpf takes what the underlay carries less %d", ifupdown2MTU, config.Overhead(v.v6()))})
	}
}

// maxAgeing is the longest that a config can say, in seconds.
const maxAgeing = 1000000

// one merges a value that vxbpf has once for vxlan link and bridge.
func (n *network) one(key string, b *bridge, def float64, why string) {
	x, okX := n.set[key]
	y, okY := b.set[key]
	delete(b.set, key)
	fx, _ := strconv.ParseFloat(x.text, 64)
	fy, err := strconv.ParseFloat(strings.TrimSuffix(y.text, "ms"), 64)
	if strings.HasSuffix(y.text, "ms") {
		fy /= 1000
	}
	if !okX && def > 0 {
		fx = def
	}
	if key == "ageing" { // 0 is never
		for _, f := range []*float64{&fx, &fy} {
			if *f == 0 {
				*f = 2 * maxAgeing
			}
		}
	}
	switch {
	case !okX && !okY:
	case !okY && (def == 0 || fx == def), okX && okY && fx == fy:
	case !okX && def == 0:
		n.set[key] = y
	case err != nil && okY:
		n.notes = append(n.notes, Note{y.at, fmt.Sprintf("%s %s is not a number", key, y.text)})
	default:
		if !okY {
			fy, y = def, setting{text: strconv.FormatFloat(def, 'f', -1, 64), at: b.at}
		}
		if !okX {
			x = setting{text: strconv.FormatFloat(def, 'f', -1, 64), at: n.v.at}
		}
		s := x
		if fy < fx {
			s = y
		}
		if strings.HasSuffix(s.text, "ms") {
			s.text = strconv.FormatInt(max(1, int64(min(fx, fy))), 10)
		}
		n.notes = append(n.notes, Note{s.at, fmt.Sprintf("%s is %s at %s and %s at %s; %s", key, x.text, n.v.name, y.text, b.name, why)})
		n.set[key] = s
	}
	if s := n.set[key]; def > 0 && s.text == strconv.FormatFloat(def, 'f', -1, 64) {
		delete(n.set, key)
	}
}

// mtu says what the underlay must carry, where that is not sure.
func (n *network) mtu(h *host, m setting) {
	size, err := strconv.Atoi(m.text)
	if err != nil {
		return
	}
	over := config.Overhead(n.v.v6())
	for _, o := range h.links {
		if o.name == n.set["device"].text && o.mtu != 0 {
			if o.mtu < size+over {
				n.notes = append(n.notes, Note{m.at, fmt.Sprintf("mtu %d with %d bytes of encapsulation is %d, and %s has %d: vxbpf refuses that, because such packets would be fragmented or lost; left out, so that it is %d",
					size, over, size+over, o.name, o.mtu, o.mtu-over)})
				delete(n.set, "mtu")
			}
			return
		}
	}
	if size+over > 1500 {
		n.notes = append(n.notes, Note{m.at, fmt.Sprintf("mtu %d needs an underlay that carries %d; load refuses it where %s has less", size, size+over, n.set["device"].text)})
	}
}

// device finds the underlay device: named, or the one that has the local address, or the only one whose subnet holds a remote.
func (h *host) device(n *network, given string) bool {
	if n.set["device"].text != "" {
		return true
	}
	local, _ := netip.ParseAddr(n.set["local"].text)
	for _, o := range h.links {
		for _, p := range o.addresses {
			if local.IsValid() && p.Addr() == local {
				n.set["device"] = setting{text: o.name, at: n.v.at, why: "not written there; it has " + local.String()}
				return true
			}
		}
	}
	if given != "" {
		n.set["device"] = setting{text: given, at: n.v.at, why: "from --device"}
		return true
	}
	found := ""
	for _, o := range h.links {
		for _, p := range o.addresses {
			for _, r := range n.v.remotes {
				if a, err := netip.ParseAddr(r.text); err == nil && p.Contains(a) && p.Bits() > 0 {
					if found != "" && found != o.name {
						return false
					}
					found = o.name
				}
			}
		}
	}
	if found == "" {
		return false
	}
	n.set["device"] = setting{text: found, at: n.v.at, why: "not written there; its subnet holds the remotes"}
	return true
}

var nameOK = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$`)

// networkName is what br-mgmt and encap-mgmt have in common, or the link's own name.
func networkName(v *vxlan, b *bridge, used map[string]bool) string {
	var try []string
	for _, p := range []string{"br-", "br_", "bridge-"} {
		if s, ok := strings.CutPrefix(b.name, p); ok {
			try = append(try, s)
		}
	}
	for _, p := range []string{"encap-", "vxlan-", "vx-", "vxlan_"} {
		if s, ok := strings.CutPrefix(v.name, p); ok {
			try = append(try, s)
		}
	}
	try = append(try, v.name, b.name, "vni"+clean(v.set["vni"].text))
	for _, s := range try {
		if nameOK.MatchString(s) && !used[s] {
			return s
		}
	}
	for i := 2; ; i++ {
		if s := fmt.Sprintf("net%d", i); !used[s] {
			return s
		}
	}
}

var problemPath = regexp.MustCompile(`^networks\[(\d+)\](?:\.([a-z_]+))?(?:\.([a-z_]+))?(?:\[(\d+)\])?`)

// drop takes out what config.Parse does not accept, and says so. False: it is nothing that could be taken out.
func (h *host) drop(nets *[]*network, problems []config.Problem) bool {
	did := false
	gone := map[int]bool{}
	type item struct {
		net, index int
		key        string
	}
	var items []item
	for _, p := range problems {
		m := problemPath.FindStringSubmatch(p.Path)
		if m == nil {
			continue
		}
		i, _ := strconv.Atoi(m[1])
		if i >= len(*nets) || gone[i] {
			continue
		}
		n := (*nets)[i]
		key, sub := m[2], m[3]
		index := -1
		if m[4] != "" {
			index, _ = strconv.Atoi(m[4])
		}
		whole := func() {
			h.note(n.v.at, "%s is not in the config: %s %s", n.v.name, key, p.Message)
			h.notes = append(h.notes, n.notes...)
			gone[i] = true
		}
		lost := func(s setting) {
			n.notes = append(n.notes, Note{s.at, fmt.Sprintf("left out, %s %s", key, p.Message)})
		}
		switch {
		case key == "bridge" && sub == "addresses" && index >= 0 && index < len(n.b.addresses):
			lost(n.b.addresses[index])
			items = append(items, item{i, index, "addresses"})
		case key == "bridge" && (sub == "stp" || sub == "forward_delay"):
			lost(n.b.set[sub])
			delete(n.b.set, sub)
		case key == "remotes" && index >= 0 && index < len(n.v.remotes):
			lost(n.v.remotes[index])
			items = append(items, item{i, index, "remotes"})
		case key == "fdb" && index >= 0 && index < len(n.v.fdb):
			lost(setting{at: n.v.fdb[index].at})
			items = append(items, item{i, index, "fdb"})
		case key == "" || key == "name" || key == "vni" || key == "link" || key == "bridge" || key == "device":
			whole()
		default:
			s, ok := n.set[key]
			if !ok {
				whole()
				break
			}
			lost(s)
			delete(n.set, key)
		}
		did = true
	}
	// From behind, so that indexes stay right; an item with two problems goes once.
	slices.SortFunc(items, func(a, b item) int { return b.index - a.index })
	for _, it := range slices.Compact(items) {
		n := (*nets)[it.net]
		switch it.key {
		case "addresses":
			n.b.addresses = slices.Delete(slices.Clone(n.b.addresses), it.index, it.index+1)
		case "remotes":
			n.v.remotes = slices.Delete(slices.Clone(n.v.remotes), it.index, it.index+1)
		case "fdb":
			n.v.fdb = slices.Delete(slices.Clone(n.v.fdb), it.index, it.index+1)
		}
	}
	var kept []*network
	for i, n := range *nets {
		if !gone[i] {
			kept = append(kept, n)
		}
	}
	*nets = kept
	return did
}

func (h *host) allNotes(nets []*network) []Note {
	out := slices.Clone(h.notes)
	for _, n := range nets {
		out = append(out, n.notes...)
	}
	return out
}

// common finds the keys that all networks have alike.
func common(nets []*network) settings {
	out := settings{}
	for _, k := range commonKeys {
		s, ok := nets[0].set[k]
		for _, n := range nets[1:] {
			ok = ok && n.set[k].text == s.text
		}
		if ok {
			out[k] = s
		}
	}
	return out
}

// render writes config.yaml; with hoist, what networks have in common goes under underlay.
func (h *host) render(source string, nets []*network, hoist bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Written by vxbpf import from %s.\n", comment(source))
	b.WriteString("# See what it would change: vxbpf load --dry-run. All keys: vxbpf validate --reference.\n" +
		"# Only the hosts named under remotes and fdb may send to a network; more of them: allowed_sources.\n")
	var left []string
	for _, o := range h.links {
		if o.name != "lo" && h.findVXLAN(o.name) == nil && h.findBridge(o.name) == nil {
			left = append(left, o.name)
		}
	}
	for _, br := range h.bridges {
		if !br.gone && !slices.ContainsFunc(nets, func(n *network) bool { return n.b == br }) {
			left = append(left, br.name)
		}
	}
	if len(left) > 0 {
		fmt.Fprintf(&b, "# In no network, so left as they are: %s.\n", comment(strings.Join(left, ", ")))
	}
	if len(h.notes) > 0 {
		b.WriteString("#\n# Not carried over:\n")
		writeNotes(&b, "", h.notes)
	}
	shared := settings{}
	if hoist {
		shared = common(nets)
	}
	b.WriteString("\n")
	if len(shared) > 0 {
		b.WriteString("underlay:\n")
		for _, k := range commonKeys {
			if s, ok := shared[k]; ok {
				writeKey(&b, "  ", k, s)
			}
		}
	}
	b.WriteString("\nnetworks:\n")
	for i, n := range nets {
		if i > 0 {
			b.WriteString("\n")
		}
		n.render(&b, shared)
	}
	return b.Bytes()
}

func (n *network) render(b *bytes.Buffer, shared settings) {
	fmt.Fprintf(b, "  # %s and %s: %s\n", comment(n.v.name), comment(n.b.name), comment(places(n.v.at, n.b.at)))
	if len(n.notes) > 0 {
		b.WriteString("  # Not carried over, or not as it was:\n")
		writeNotes(b, "  ", n.notes)
	}
	lead := "  - "
	for _, k := range networkKeys {
		s, ok := n.set[k]
		if !ok || k == "link" && s.text == "encap-"+n.set["name"].text {
			continue
		}
		writeKey(b, lead, k, s)
		lead = "    "
		if k == "vni" {
			n.b.render(b)
		}
		if k == "group" || k == "link" {
			continue
		}
	}
	if len(n.v.remotes) > 0 {
		var rs []string
		for _, r := range n.v.remotes {
			rs = append(rs, quote(r.text))
		}
		fmt.Fprintf(b, "    remotes: [%s]\n", strings.Join(rs, ", "))
	}
	if len(n.v.fdb) > 0 {
		b.WriteString("    fdb:\n")
		for _, e := range n.v.fdb {
			fmt.Fprintf(b, "      - {mac: %s, remote: %s}\n", quote(e.mac), quote(e.remote))
		}
	}
	for _, k := range commonKeys {
		if s, ok := n.set[k]; ok {
			if _, up := shared[k]; !up {
				writeKey(b, "    ", k, s)
			}
		}
	}
}

func places(a, b Place) string {
	if a == b || b.File == "" {
		return a.String()
	}
	return a.String() + ", " + b.String()
}

func (br *bridge) render(b *bytes.Buffer) {
	if len(br.addresses) == 0 && len(br.set) == 0 {
		fmt.Fprintf(b, "    bridge: %s\n", quote(br.name))
		return
	}
	fmt.Fprintf(b, "    bridge:\n      name: %s\n", quote(br.name))
	if len(br.addresses) > 0 {
		var as []string
		for _, a := range br.addresses {
			as = append(as, quote(a.text))
		}
		fmt.Fprintf(b, "      addresses: [%s]\n", strings.Join(as, ", "))
	}
	for _, k := range []string{"stp", "forward_delay"} {
		if s, ok := br.set[k]; ok {
			writeKey(b, "      ", k, s)
		}
	}
}

func writeKey(b *bytes.Buffer, indent, key string, s setting) {
	text := s.text
	if key != "source_ports" { // made by us: a list
		text = quote(text)
	}
	fmt.Fprintf(b, "%s%s: %s", indent, key, text)
	switch {
	case s.why == "see the notes":
		b.WriteString("  # see the notes")
	case s.why != "":
		fmt.Fprintf(b, "  # %s", comment(s.why))
	}
	b.WriteString("\n")
}

func writeNotes(b *bytes.Buffer, indent string, notes []Note) {
	for _, n := range notes {
		fmt.Fprintf(b, "%s#   %s\n", indent, comment(n.String()))
	}
}

var plain = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]*$`)

// words that YAML readers take for something else than text.
var reserved = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null|\.inf|\.nan)$`)

// quote writes a value of YAML. Numbers and true and false stay bare.
func quote(s string) string {
	if s == "true" || s == "false" || plain.MatchString(s) && !reserved.MatchString(s) {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(comment(s)) + `"`
}

// comment makes text that stays in its line and is no control character.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == unicode.ReplacementChar || r == 0xfeff || unicode.IsControl(r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
