// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// host is what the sources say about one host, in the words of config.yaml.
type host struct {
	fs    Files
	files int

	vxlans  []*vxlan
	bridges []*bridge
	links   []*other
	notes   []Note // about no link in particular

	// ifupdown2: the outer source of all links that name none.
	tunnelIP setting

	// networkd: .network files wait until all links are known.
	networks []*unitFile
	netdevs  map[string]*unitFile
}

func newHost(f Files) *host { return &host{fs: f, netdevs: map[string]*unitFile{}} }

// setting is the text of a value in config.yaml.
type setting struct {
	text string
	at   Place
	// why stands as a comment behind the value where the source did not write it.
	why string
}

// settings by key of config.yaml.
type settings map[string]setting

func (s settings) put(key, text string, at Place) { s[key] = setting{text: text, at: at} }

// vxlan is a vxlan link. Its settings are keys of a network.
type vxlan struct {
	name    string
	at      Place
	set     settings
	remotes []setting
	fdb     []entry
	master  string
	notes   []Note
	skip    string // why it can be no network of vxbpf
	gone    bool   // deleted further down
	maker   string // "ip link", "networkd": whose defaults apply
	hand    bool   // ifupdown: not brought up by ifup -a
}

type entry struct {
	mac, remote string
	at          Place
}

// bridge is a bridge. Its settings are keys of a network's bridge, and mtu, ageing.
type bridge struct {
	name      string
	at        Place
	set       settings
	ports     []setting
	addresses []setting
	notes     []Note
	gone      bool
	hand      bool
}

// other is any other link.
type other struct {
	name      string
	addresses []netip.Prefix
	mtu       int
}

func (v *vxlan) note(at Place, format string, args ...any) {
	v.notes = append(v.notes, Note{at, fmt.Sprintf(format, args...)})
}

func (b *bridge) note(at Place, format string, args ...any) {
	b.notes = append(b.notes, Note{at, fmt.Sprintf(format, args...)})
}

func (h *host) note(at Place, format string, args ...any) {
	h.notes = append(h.notes, Note{at, fmt.Sprintf(format, args...)})
}

// noteOn puts a note where the link is, if it is one of ours.
func (h *host) noteOn(link string, at Place, format string, args ...any) bool {
	if v := h.findVXLAN(link); v != nil {
		v.note(at, format, args...)
		return true
	}
	if b := h.findBridge(link); b != nil {
		b.note(at, format, args...)
		return true
	}
	return false
}

func (h *host) findVXLAN(name string) *vxlan {
	for _, v := range h.vxlans {
		if v.name == name && !v.gone {
			return v
		}
	}
	return nil
}

func (h *host) findBridge(name string) *bridge {
	for _, b := range h.bridges {
		if b.name == name && !b.gone {
			return b
		}
	}
	return nil
}

func (h *host) vxlan(name string, at Place) *vxlan {
	v := h.findVXLAN(name)
	if v == nil {
		v = &vxlan{name: name, at: at, set: settings{}}
		h.vxlans = append(h.vxlans, v)
	}
	return v
}

func (h *host) bridge(name string, at Place) *bridge {
	b := h.findBridge(name)
	if b == nil {
		b = &bridge{name: name, at: at, set: settings{}}
		h.bridges = append(h.bridges, b)
	}
	return b
}

func (h *host) other(name string) *other {
	for _, o := range h.links {
		if o.name == name {
			return o
		}
	}
	o := &other{name: name}
	h.links = append(h.links, o)
	return o
}

func (b *bridge) port(name string, at Place) {
	if !slices.ContainsFunc(b.ports, func(s setting) bool { return s.text == name }) {
		b.ports = append(b.ports, setting{text: name, at: at})
	}
}

// address notes an address of any link.
func (h *host) address(link, text string, at Place) {
	if b := h.findBridge(link); b != nil {
		if !slices.ContainsFunc(b.addresses, func(s setting) bool { return s.text == text }) {
			b.addresses = append(b.addresses, setting{text: text, at: at})
		}
		return
	}
	if v := h.findVXLAN(link); v != nil {
		v.note(at, "address %s on the vxlan link itself: an address belongs on the bridge", text)
		return
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		o := h.other(link)
		o.addresses = append(o.addresses, p)
	}
}

// remote is a default destination: a group, or one host more.
func (v *vxlan) remote(text string, at Place) {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		v.note(at, "remote %s is not an IP address", text)
	case a.IsUnspecified():
		// "none" to the kernel.
	case a.IsMulticast():
		if g, ok := v.set["group"]; ok && g.text != a.String() {
			v.note(at, "group %s: a network has one, and %s was first", text, g.text)
			return
		}
		v.set.put("group", a.String(), at)
	default:
		if !slices.ContainsFunc(v.remotes, func(s setting) bool { return s.text == a.String() }) {
			v.remotes = append(v.remotes, setting{text: a.String(), at: at})
		}
	}
}

// static is an entry of the vxlan device's own table.
func (v *vxlan) static(mac, remote string, at Place) {
	mac = strings.ToLower(strings.ReplaceAll(mac, "-", ":"))
	switch mac {
	case "00:00:00:00:00:00", "0:0:0:0:0:0":
		v.remote(remote, at)
	default:
		v.fdb = append(v.fdb, entry{mac, remote, at})
	}
}

// v6 tells the family of a link's outer packets, as far as the source shows it.
func (v *vxlan) v6() bool {
	for _, key := range []string{"group", "local"} {
		if a, err := netip.ParseAddr(v.set[key].text); err == nil {
			return a.Is6()
		}
	}
	for _, r := range v.remotes {
		return strings.Contains(r.text, ":")
	}
	for _, e := range v.fdb {
		return strings.Contains(e.remote, ":")
	}
	return false
}

// yesNo reads the words that tools have for yes and no.
func yesNo(text string) (on, ok bool) {
	switch strings.ToLower(text) {
	case "on", "yes", "true", "1", "y", "t", "enabled":
		return true, true
	case "off", "no", "false", "0", "n", "f", "disabled":
		return false, true
	}
	return false, false
}

// number reads a decimal or 0x number, as text of config.yaml.
func number(text string) (string, bool) {
	v, err := strconv.ParseInt(text, 0, 64)
	if err != nil || v < 0 {
		if v, err = strconv.ParseInt(text, 10, 64); err != nil || v < 0 {
			return "", false
		}
	}
	return strconv.FormatInt(v, 10), true
}
