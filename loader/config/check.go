// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// checker turns the raw structs into a Config. It reports every problem it
// meets and goes on, so the Config is only good if there was none.
type checker struct {
	ps  *problems
	raw *rawConfig

	// What must be unique on a host, each with the place that took it first.
	names, bridges, links, devices map[string]taken
	vnis                           map[vniPort]taken
	addresses, locals              map[netip.Addr]taken
	said                           map[pos]bool // values that do not suit some network: reported once
}

// taken says who has a name.
type taken struct {
	by string // `network "mgmt"`
	at pos
}

// vniPort is what the kernel tells vxlan devices apart by.
type vniPort struct {
	vni  fdb.VNI
	port uint16
}

func (c *checker) fail(s where, hint, format string, args ...any) {
	c.ps.add(s.at, s.path, hint, fmt.Sprintf(format, args...))
}

func (c *checker) config(raw *rawConfig) *Config {
	c.raw = raw
	c.names, c.bridges, c.links, c.devices = map[string]taken{}, map[string]taken{}, map[string]taken{}, map[string]taken{}
	c.vnis, c.said = map[vniPort]taken{}, map[pos]bool{}
	c.addresses, c.locals = map[netip.Addr]taken{}, map[netip.Addr]taken{}

	u := &raw.Underlay
	cfg := &Config{
		Underlay: Underlay{
			Device: c.linkName(u.Device),
			Local:  c.local(u.Local),
			Port:   c.port(u.Port, DefaultPort),
			DF:     DFUnset,
			MTU:    c.mtu(u.MTU),
		},
		Datapath:        c.datapath(raw.Datapath, Auto),
		VLANTags:        c.vlanTags(raw.VLANTags, 0),
		MSSClamp:        c.mssClamp(raw.MSSClamp, MSSOff),
		BypassNetfilter: c.boolean(raw.Bypass, false),
		Metrics:         c.metrics(raw.Metrics),
		Log: Log{
			Level:  c.word(raw.Log.Level, "info", "debug", "info", "warn", "error"),
			Format: c.word(raw.Log.Format, "text", "text", "json"),
		},
	}
	c.header(&cfg.Underlay, u.TTL, &u.rawHeader, "underlay")
	cfg.Sources = c.sources(&u.Sources)
	if len(raw.Networks) == 0 {
		if at, ok := c.ps.src.at["networks"]; ok {
			c.ps.add(at, "networks", smallestHint, "no networks")
		} else {
			c.ps.add(raw.at, "", smallestHint, "no networks: nothing would be done")
		}
	}
	if l := cfg.Underlay.Local; l.IsValid() {
		c.locals[l] = taken{"the host", u.Local.at}
	}
	// Devices first: a bridge or link may bear the name of the device of a
	// network further down.
	if d := cfg.Underlay.Device; d != "" {
		c.devices[d] = taken{"the host", u.Device.at}
	}
	for i := range raw.Networks {
		n := &raw.Networks[i]
		if _, ok := c.devices[n.Device.text]; !ok && n.Device.set {
			c.devices[n.Device.text] = taken{c.who(i), n.Device.at}
		}
	}
	wrong := u.at != (pos{}) && u.path == "" // not a mapping: reported
	if !wrong && slices.ContainsFunc(raw.Networks, func(n rawNetwork) bool { return n.set && !n.Device.set }) {
		at := where{at: raw.at, path: "underlay"}
		if u.at != (pos{}) {
			at.at = u.at
		}
		c.need(u.Device, at, "device", "write `underlay: {device: eth2}`, with the link that leads to the other hosts")
	}
	for i := range raw.Networks {
		if raw.Networks[i].set {
			cfg.Networks = append(cfg.Networks, c.network(i, cfg))
		}
	}
	return cfg
}

// who names a network in messages about another.
func (c *checker) who(i int) string {
	if name := c.raw.Networks[i].Name.text; name != "" {
		return "network " + show(name)
	}
	return fmt.Sprintf("networks[%d]", i)
}

func (c *checker) network(i int, cfg *Config) Network {
	raw := &c.raw.Networks[i]
	n := Network{
		Name:     c.networkName(raw, i),
		Bridge:   c.bridge(&raw.Bridge, raw.where, i),
		Underlay: c.underlay(raw, cfg.Underlay),
		Datapath: c.datapath(raw.Datapath, cfg.Datapath),
		VLANTags: c.vlanTags(raw.VLANTags, cfg.VLANTags),
		MSSClamp: c.mssClamp(raw.MSSClamp, cfg.MSSClamp),
		MTU:      c.mtu(raw.MTU),
		Learning: c.boolean(raw.Learning, true),
		Ageing:   c.seconds(raw.Ageing, DefaultAgeing, maxAgeing, time.Second, "0 means never"),
	}
	n.BypassNetfilter = c.boolean(raw.Bypass, cfg.BypassNetfilter)
	n.Link = c.link(raw, n.Name, i)
	if l := n.Underlay.Local; raw.Local.set && l.IsValid() {
		if t, ok := c.addresses[l]; ok {
			c.fail(raw.Local.where, "local is this host's address on the underlay device", "%s is also an address on the bridge of %s (line %d)", l, t.by, t.at.line)
		}
		c.locals[l] = taken{c.who(i), raw.Local.at}
	}

	if c.need(raw.VNI, raw.where, "vni", "write `vni: 236`, the number that all hosts use for this network") {
		if v, ok := c.number(raw.VNI, "a VNI", 0, int64(fdb.MaxVNI), "use the number that the other hosts have for this network"); ok {
			n.VNI = fdb.VNI(v)
			key := vniPort{n.VNI, n.Underlay.Port}
			if t, ok := c.vnis[key]; ok {
				c.fail(raw.VNI.where, "give each network its own vni", "%d is also the vni of %s (line %d), on the same port %d", v, t.by, t.at.line, key.port)
			} else {
				c.vnis[key] = taken{c.who(i), raw.VNI.at}
			}
		}
	}
	c.destinations(raw, &n)
	c.sourcesOf(raw, &n, cfg.Sources)
	c.groupTTL(raw, &n)
	c.headerFits(raw, &n)
	c.mtuFits(raw, &n)
	return n
}

// need reports a value that is not there.
func (c *checker) need(s scalar, in where, key, hint string) bool {
	switch {
	case s.set:
		return true
	case s.path != "":
		c.fail(s.where, hint, "is empty")
	case c.ps.src.at[in.path+"."+key] == pos{}: // else it was there, and wrong in a way already reported
		c.fail(in, hint, "%s is missing", key)
	}
	return false
}

// claim takes a name for network i, unless something of the same kind has it.
func (c *checker) claim(table map[string]taken, name, key string, at where, i int, hint string) bool {
	if !c.free(table, name, key, at, hint) {
		return false
	}
	table[name] = taken{c.who(i), at.at}
	return true
}

// free reports a name that is taken.
func (c *checker) free(table map[string]taken, name, key string, at where, hint string) bool {
	t, ok := table[name]
	if ok {
		c.fail(at, hint, "%s is also the %s of %s (line %d)", show(name), key, t.by, t.at.line)
	}
	return !ok
}

var networkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$`)

func (c *checker) networkName(raw *rawNetwork, i int) string {
	if !c.need(raw.Name, raw.where, "name", "write `name: mgmt`, the word for this network in messages and metrics") {
		return ""
	}
	name := raw.Name.text
	if !networkName.MatchString(name) {
		c.fail(raw.Name.where, "use 1 to 32 of a-z, 0-9, dot, underscore and hyphen, with a letter or digit first", "%s is not a network name", show(name))
		return ""
	}
	if t, ok := c.names[name]; ok {
		c.fail(raw.Name.where, "give each network its own name", "%s is also the name of %s (line %d)", name, t.by, t.at.line)
		return "" // else its default link name would be a second problem
	}
	c.names[name] = taken{raw.path, raw.Name.at}
	return name
}

// maxLinkName is IFNAMSIZ less the final zero byte.
const maxLinkName = 15

// badLinkName applies the kernel's dev_valid_name, and what registering a
// device adds to it: % is a pattern there.
func badLinkName(s string) string {
	switch {
	case s == "":
		return "is empty"
	case s == "." || s == "..":
		return "is not a link name"
	case len(s) > maxLinkName:
		return fmt.Sprintf("is %d bytes, and a link name has at most %d", len(s), maxLinkName)
	}
	for _, r := range s {
		switch {
		case r == '/' || r == ':' || r == '%':
			return fmt.Sprintf("contains %c, which a link name must not", r)
		case unicode.IsSpace(r):
			return "contains white space, which a link name must not"
		case !unicode.IsPrint(r):
			return "contains an unprintable character"
		}
	}
	return ""
}

func (c *checker) linkName(s scalar) string {
	if !s.set {
		return ""
	}
	if why := badLinkName(s.text); why != "" {
		c.fail(s.where, "a link name has 1 to 15 bytes without slash, colon, percent and white space", "%s %s", show(s.text), why)
		return ""
	}
	return s.text
}

func (c *checker) bridge(raw *rawBridge, network where, i int) Bridge {
	const hint = "write `bridge: br-mgmt`, the bridge that the containers of this network are in"
	if raw.path == "" || !raw.set {
		c.need(scalar{where: raw.where}, network, "bridge", hint)
		return Bridge{}
	}
	b := Bridge{}
	if c.need(raw.Name, raw.where, "name", hint) {
		b.Name = c.linkName(raw.Name)
	}
	if b.Name != "" && c.claim(c.bridges, b.Name, "bridge", raw.Name.where, i, "a bridge joins one network: merge the two, or name another bridge") {
		const hint = "give each bridge, link and device its own name"
		c.free(c.links, b.Name, "link", raw.Name.where, hint)
		c.free(c.devices, b.Name, "underlay device", raw.Name.where, hint)
	}
	if raw.STP.set {
		stp := c.boolean(raw.STP, false)
		b.STP = &stp
	}
	if raw.ForwardDelay.set {
		d := c.seconds(raw.ForwardDelay, 0, maxForwardDelay, 10*time.Millisecond, "ifupdown's bridge_fd 0 is 0")
		b.ForwardDelay = &d
		// The kernel refuses less with STP on (BR_MIN_FORWARD_DELAY).
		if b.STP != nil && *b.STP && d < minForwardDelay {
			c.fail(raw.ForwardDelay.where, "write 2 or more, or `stp: false`", "%s is too short with stp: the kernel takes %s to %s", show(raw.ForwardDelay.text), minForwardDelay, maxForwardDelay)
		}
	}
	for _, s := range raw.Addresses {
		if a, ok := c.hostPrefix(s, i); ok {
			b.Addresses = append(b.Addresses, a)
		}
	}
	return b
}

// hostPrefix reads an address with its prefix length.
func (c *checker) hostPrefix(s scalar, i int) (netip.Prefix, bool) {
	if !s.set {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s.text)
	if err != nil {
		hint := "write an address and its prefix length, such as 172.29.236.11/22"
		if a, err := netip.ParseAddr(s.text); err == nil {
			hint = fmt.Sprintf("write %s/%d, with the length that fits", a.WithZone(""), map[bool]int{true: 24, false: 64}[a.Is4()])
		}
		c.fail(s.where, hint, "%s is not an address with a prefix length", show(s.text))
		return p, false
	}
	a := p.Addr()
	if why := notUnicast(a); why != "" {
		c.fail(s.where, "write this host's address on the bridge", "%s %s", s.text, why)
		return p, false
	}
	few := p.Bits() < a.BitLen()-1 // RFC 3021, RFC 6164: in a network of two, both are hosts
	switch {
	case p.Bits() == 0:
		c.fail(s.where, "write the prefix length of the container network", "%s would send everything into the bridge", s.text)
		return p, false
	case few && a == p.Masked().Addr():
		c.fail(s.where, "write this host's address in that network, such as "+netip.PrefixFrom(a.Next(), p.Bits()).String(), "%s is the network, not a host in it", s.text)
		return p, false
	case few && a.Is4() && !p.Contains(a.Next()):
		c.fail(s.where, "write this host's address in that network", "%s is the broadcast address of the network", s.text)
		return p, false
	}
	if t, ok := c.addresses[a]; ok {
		c.fail(s.where, "an address belongs on one bridge, once", "%s is also an address on the bridge of %s (line %d)", a, t.by, t.at.line)
		return p, false
	}
	if t, ok := c.locals[a]; ok {
		c.fail(s.where, "local is this host's address on the underlay device", "%s is also the local of %s (line %d)", a, t.by, t.at.line)
		return p, false
	}
	c.addresses[a] = taken{c.who(i), s.at}
	return p, true
}

// link is the name of the vxlan device, given or made from the network's name.
func (c *checker) link(raw *rawNetwork, name string, i int) string {
	at, hint := raw.Link.where, "give each bridge, link and device its own name"
	link := c.linkName(raw.Link)
	if !raw.Link.set {
		if name == "" {
			return ""
		}
		link = "encap-" + name
		at = where{at: raw.Name.at, path: raw.path + ".link"}
		if why := badLinkName(link); why != "" {
			c.fail(raw.Name.where, fmt.Sprintf("add a `link:` of at most %d bytes, or shorten the name to %d", maxLinkName, maxLinkName-len("encap-")), "the default link name %s %s", link, why)
			return ""
		}
		hint = "add a `link:` with another name"
	}
	if link != "" && c.claim(c.links, link, "link", at, i, hint) {
		c.free(c.bridges, link, "bridge", at, hint)
		c.free(c.devices, link, "underlay device", at, hint)
	}
	return link
}

// underlay lays the network's own values over the host's.
func (c *checker) underlay(raw *rawNetwork, u Underlay) Underlay {
	if raw.Device.set {
		u.Device = c.linkName(raw.Device)
	}
	if raw.Local.set {
		u.Local = c.local(raw.Local)
	}
	u.Port = c.port(raw.Port, u.Port)
	c.header(&u, raw.TTL, &raw.rawHeader, raw.path)
	return u
}

// header reads what shapes outer headers, and leaves what is not given as it is
// in u. Path is that of the mapping.
func (c *checker) header(u *Underlay, ttl scalar, raw *rawHeader, path string) {
	if ttl.set {
		var word string
		u.TTL, word = c.ttl(ttl)
		u.TTLInherit = word == inherit
	}
	if raw.TOS.set {
		var word string
		u.TOS, word = c.tos(raw.TOS)
		u.TOSInherit = word == inherit
		u.Given |= GivenTOS
	}
	if raw.DF.set {
		u.DF = DF(c.word(raw.DF, string(DFUnset), string(DFUnset), string(DFSet), string(DFInherit)))
		u.Given |= GivenDF
	}
	if raw.FlowLabel.set {
		v, _ := c.number(raw.FlowLabel, "a flow label", 0, 0xfffff, "write 20 bits, such as 0x12345")
		u.FlowLabel = uint32(v)
		u.Given |= GivenFlowLabel
	}
	if raw.SourcePorts != nil {
		u.SourceLow, u.SourceHigh = c.sourcePorts(raw.SourcePorts, path+".source_ports")
	}
	if raw.UDPChecksum.set {
		on := c.boolean(raw.UDPChecksum, false)
		u.UDPChecksum = &on
	}
}

func (c *checker) sourcePorts(raw []scalar, path string) (low, high uint16) {
	const hint = "write [low, high], such as [32768, 61000]: ports from low to high-1 are used"
	if len(raw) != 2 {
		c.fail(where{at: c.ps.src.at[path], path: path}, hint, "%d values, want two", len(raw))
		return 0, 0
	}
	var v [2]int64
	for i, s := range raw {
		if !s.set {
			return 0, 0 // reported
		}
		var ok bool
		if v[i], ok = c.number(s, "a UDP source port", 1, math.MaxUint16, hint); !ok {
			return 0, 0
		}
	}
	if v[0] >= v[1] {
		c.fail(raw[1].where, hint, "%d is not above %d: no port would be left", v[1], v[0])
		return 0, 0
	}
	return uint16(v[0]), uint16(v[1])
}

// destinations reads group, remotes and fdb, which must be of one family and
// fit the local address.
func (c *checker) destinations(raw *rawNetwork, n *Network) {
	var first netip.Addr // decides the family
	var firstAt where
	// accept checks what group, remotes and static entries have in common.
	accept := func(s scalar, a netip.Addr) bool {
		if !first.IsValid() {
			first, firstAt = a, s.where
			if l := n.Underlay.Local; l.IsValid() && l.Is4() != a.Is4() {
				at := raw.Local.at
				if !raw.Local.set {
					at = c.raw.Underlay.Local.at
				}
				c.fail(s.where, "one network has one family: write a local of that family for it", "%s is %s, and local %s (line %d) is %s", a, family(a), l, at.line, family(l))
				return false
			}
		} else if first.Is4() != a.Is4() {
			c.fail(s.where, "one network has one family: its packets have one size of outer header", "%s is %s, and %s (line %d) is %s", a, family(a), first, firstAt.at.line, family(first))
			return false
		}
		if a == n.Underlay.Local {
			c.fail(s.where, "list the other hosts only", "%s is local, this host's own address", a)
			return false
		}
		return true
	}

	if a, ok := c.addr(raw.Group, "write a multicast group, such as 239.1.1.236"); ok {
		if !a.IsMulticast() {
			c.fail(raw.Group.where, "write a group from 224.0.0.0/4 or ff00::/8, or list single hosts under remotes", "%s is not a multicast group", a)
		} else if accept(raw.Group, a) {
			n.Group = a
		}
	}
	remotes := map[netip.Addr]pos{}
	for _, s := range raw.Remotes {
		a, ok := c.vtep(s, "write one multicast address as `group:`, and other hosts under remotes")
		if !ok {
			continue
		}
		if at, ok := remotes[a]; ok {
			c.fail(s.where, "delete one: each remote gets one copy", "%s is listed twice, first in line %d", a, at.line)
			continue
		}
		remotes[a] = s.at
		if accept(s, a) {
			n.Remotes = append(n.Remotes, a)
		}
	}
	macs := map[fdb.MAC]pos{}
	for i := range raw.FDB {
		e := &raw.FDB[i]
		if !e.set {
			continue
		}
		m, ok := c.mac(e)
		if ok {
			if at, twice := macs[m]; twice {
				c.fail(e.MAC.where, "a MAC address is in one place: delete one entry", "%s is listed twice, first in line %d", m, at.line)
				ok = false
			} else {
				macs[m] = e.MAC.at
			}
		}
		if !c.need(e.Remote, e.where, "remote", "write `remote:` with the address of the host that has the MAC") {
			continue
		}
		if a, good := c.vtep(e.Remote, "write the address of the one host that has the MAC"); good && accept(e.Remote, a) && ok {
			n.FDB = append(n.FDB, StaticEntry{MAC: m, VTEP: a})
		}
	}
}

// sources reads allowed_sources: any, or a list of addresses and prefixes.
func (c *checker) sources(raw *rawSources) (out Sources) {
	const hint = "write any, or a list of addresses and prefixes, such as [192.0.2.0/24, 198.51.100.7]"
	switch {
	case raw.word.set && raw.word.text == anyone:
		return Sources{Given: true, Any: true}
	case raw.word.set:
		c.fail(raw.word.where, hint, "%s is neither a list nor the word any", show(raw.word.text))
		return out
	case !raw.set:
		if raw.path != "" {
			c.fail(raw.where, hint, "is empty")
		}
		return out
	}
	out.Given = true
	for _, s := range raw.list {
		if !s.set {
			continue
		}
		p, err := netip.ParsePrefix(s.text)
		if err != nil {
			if a, aerr := netip.ParseAddr(s.text); aerr == nil && a.Zone() == "" {
				p, err = netip.PrefixFrom(a, a.BitLen()), nil
			}
		}
		switch {
		case err != nil && s.text == anyone:
			c.fail(s.where, "write `allowed_sources: any`, without a list", "any is no address")
		case err != nil:
			c.fail(s.where, hint, "%s is neither an address nor a prefix", show(s.text))
		case p.Addr().Is4In6():
			c.fail(s.where, "write the IPv4 address", "%s is an IPv4 address written as IPv6", show(s.text))
		case p != p.Masked():
			c.fail(s.where, fmt.Sprintf("write %s, or %s for the one host", p.Masked(), p.Addr()), "%s has bits set behind its prefix", show(s.text))
		case p.Bits() == 0:
			c.fail(s.where, "write `allowed_sources: any` if that is meant", "%s is every address", show(s.text))
		case p.Addr().IsMulticast():
			c.fail(s.where, hint, "%s is a multicast group, and nobody sends from one", p)
		case slices.Contains(out.Prefixes, p):
			c.fail(s.where, "delete one", "%s is listed twice", p)
		default:
			out.Prefixes = append(out.Prefixes, p)
		}
	}
	return out
}

// sourcesOf gives a network its own list, or those of the host's that are of its family.
func (c *checker) sourcesOf(raw *rawNetwork, n *Network, host Sources) {
	n.Sources = host
	own := raw.Sources.path != "" || raw.Sources.word.set
	if own {
		n.Sources = c.sources(&raw.Sources)
	}
	outer := n.outer()
	if !outer.IsValid() || len(n.Sources.Prefixes) == 0 {
		return
	}
	fits := []netip.Prefix{}
	for _, p := range n.Sources.Prefixes {
		switch {
		case p.Addr().Is4() == outer.Is4():
			fits = append(fits, p)
		case own:
			c.fail(raw.Sources.where, "delete it", "%s is %s, and the underlay of this network is %s (%s)", p, family(p.Addr()), family(outer), outer)
		}
	}
	n.Sources.Prefixes = fits
}

func (c *checker) mac(e *rawEntry) (fdb.MAC, bool) {
	const hint = "write a MAC address such as 02:00:00:00:00:0c"
	if !c.need(e.MAC, e.where, "mac", hint) {
		return fdb.MAC{}, false
	}
	m, err := fdb.ParseMAC(e.MAC.text)
	switch {
	case err != nil:
		c.fail(e.MAC.where, hint, "%s is not a MAC address", show(e.MAC.text))
	case m.IsZero():
		c.fail(e.MAC.where, "to send unknown destinations somewhere, list it under remotes", "%s is no station's address", m)
	case m.IsMulticast():
		c.fail(e.MAC.where, "group addresses go to all remotes: delete the entry", "%s is a group address, not a station's", m)
	default:
		return m, true
	}
	return fdb.MAC{}, false
}

// groupTTL makes sure that multicast gets past the first router.
func (c *checker) groupTTL(raw *rawNetwork, n *Network) {
	s := c.raw.Underlay.TTL
	if raw.TTL.set {
		s = raw.TTL
	}
	switch {
	case !n.Group.IsValid():
	case !s.set || s.text == auto:
		n.Underlay.TTL = DefaultGroupTTL
	case n.Underlay.TTL == 1 && !c.said[s.at]:
		c.said[s.at] = true
		c.fail(s.where, "write 5, or what crosses your data centre; or leave it out for 5", "1 is too low for a multicast group (%s, line %d): its packets never leave the first segment", n.Group, raw.Group.at.line)
	}
}

// headerFits refuses what one IP version has no field for. Where the file does
// not say which version it is, the host will.
func (c *checker) headerFits(raw *rawNetwork, n *Network) {
	outer := n.outer()
	refuse := func(own, top scalar, want, neutral string) {
		s, hint := own, "delete it"
		if !own.set {
			s, hint = top, fmt.Sprintf("give network %s `%s`, or move the key to the networks over %s", show(n.Name), neutral, want)
		}
		if !c.said[s.at] {
			c.said[s.at] = true
			c.fail(s.where, hint, "%s is for an %s underlay, and that of network %s is %s (%s)", show(s.text), want, show(n.Name), family(outer), outer)
		}
	}
	switch top := &c.raw.Underlay; {
	case !outer.IsValid():
	case outer.Is6() && n.Underlay.DF != DFUnset:
		refuse(raw.DF, top.DF, "IPv4", "df: unset")
	case outer.Is4() && n.Underlay.FlowLabel != 0:
		refuse(raw.FlowLabel, top.FlowLabel, "IPv6", "flow_label: 0")
	}
}

// mtuFits compares what the file says about both sizes.
func (c *checker) mtuFits(raw *rawNetwork, n *Network) {
	u := n.Underlay.MTU
	over, what := n.Overhead(n.V6())
	switch {
	case u == 0:
	case n.MTU+over > u && n.MTU > 0:
		hint := fmt.Sprintf("write %d or less, or raise underlay.mtu if the path carries more", u-over)
		if u-over < minMTU {
			hint = "raise underlay.mtu if the path carries more"
		}
		c.fail(raw.MTU.where, hint, "%d + %s = %d, more than the %d of underlay.mtu (line %d)", n.MTU, what, n.MTU+over, u, c.raw.Underlay.MTU.at.line)
	case n.MTU == 0 && u-over < minMTU:
		c.fail(c.raw.Underlay.MTU.where, "write the MTU of the path between the hosts", "%d - %s = %d, less than the smallest MTU of a network, %d", u, strings.ReplaceAll(what, "+", "-"), u-over, minMTU)
	}
}

// The values.

// Words that several keys take.
const (
	auto    = "auto"
	anyone  = "any"
	inherit = "inherit"
	off     = "off"
)

const (
	minMTU          = 68 // RFC 791
	maxMTU          = 65535
	minMSS          = 536                   // RFC 9293 section 3.7.1: what every host takes
	maxMSS          = maxMTU - 40           // IPv4 and TCP header
	maxAgeing       = 1000000 * time.Second // IEEE 802.1Q, table 8-6
	minForwardDelay = 2 * time.Second
	maxForwardDelay = 30 * time.Second
)

var decimal = regexp.MustCompile(`^[+-]?[0-9]+$`)

// number reads a decimal or 0x number. What names it in the message, with the
// words that the key takes besides; hint is the way out when it is out of range.
func (c *checker) number(s scalar, what string, lo, hi int64, hint string, words ...string) (int64, bool) {
	other := strings.Join(words, ", ")
	if other != "" {
		other += " or "
	}
	want := fmt.Sprintf("%s is %sa number from %d to %d", what, other, lo, hi)
	digits := strings.TrimLeft(s.text, "+-")
	if decimal.MatchString(s.text) && len(digits) > 1 && digits[0] == '0' {
		bare := strings.TrimLeft(digits[:len(digits)-1], "0") + digits[len(digits)-1:]
		c.fail(s.where, "write "+bare, "%s has a leading zero, which some readers of YAML take for octal", show(s.text))
		return 0, false
	}
	v, err := strconv.ParseInt(s.text, 10, 64)
	if strings.HasPrefix(s.text, "0x") && !strings.Contains(s.text, "_") {
		v, err = strconv.ParseInt(s.text, 0, 64)
	}
	switch {
	case errors.Is(err, strconv.ErrSyntax):
		c.fail(s.where, want, "%s is not a number", show(s.text))
	case err != nil || v < lo || v > hi:
		c.fail(s.where, hint, "%s is out of range: %s", show(s.text), want)
	default:
		return v, true
	}
	return 0, false
}

func (c *checker) port(s scalar, def uint16) uint16 {
	if !s.set {
		return def
	}
	v, _ := c.number(s, "a UDP port", 1, math.MaxUint16, "leave it out for 4789")
	return uint16(v)
}

// ttl gives a number, or the word that stands in its place.
func (c *checker) ttl(s scalar) (int, string) {
	if s.text == auto || s.text == inherit {
		return 0, s.text
	}
	v, _ := c.number(s, "a ttl", 1, 255, "leave it out for the default", auto, inherit)
	return int(v), ""
}

// tos gives a number, or the word that stands in its place.
func (c *checker) tos(s scalar) (int, string) {
	if s.text == inherit {
		return 0, s.text
	}
	v, _ := c.number(s, "a tos", 0, 255, "write the whole byte: DSCP times 4", inherit)
	const ecn = 3 // the two bits of RFC 3168
	switch {
	case v == 1:
		c.fail(s.where, "write inherit", "1 means inherit to the kernel")
		v = 0
	case v&ecn != 0:
		c.fail(s.where, fmt.Sprintf("write %#x", v&^ecn), "%s has an ECN bit set, and those two bits are taken from each packet (RFC 6040)", s.text)
		v = 0
	}
	return int(v), ""
}

func (c *checker) mtu(s scalar) int {
	if !s.set || s.text == auto {
		return 0
	}
	v, _ := c.number(s, "an MTU", minMTU, maxMTU, "leave it out to take it from the underlay device", auto)
	return int(v)
}

func (c *checker) vlanTags(s scalar, def int) int {
	if !s.set {
		return def
	}
	v, _ := c.number(s, "vlan_tags", 0, 2, "write how many tags a frame may carry: 1 for 802.1Q, 2 for QinQ")
	return int(v)
}

func (c *checker) mssClamp(s scalar, def int) int {
	switch {
	case !s.set:
		return def
	case s.text == off:
		return MSSOff
	case s.text == auto:
		return MSSAuto
	}
	v, _ := c.number(s, "mss_clamp", minMSS, maxMSS, "write auto for what the MTU leaves", off, auto)
	return int(v)
}

func (c *checker) boolean(s scalar, def bool) bool {
	switch {
	case !s.set:
		return def
	case s.text == "true" || s.text == "false":
		return s.text == "true"
	}
	hint := "write true or false"
	switch strings.ToLower(s.text) {
	case "yes", "on", "y", "1", "true":
		hint = "write true"
	case "no", "off", "n", "0", "false":
		hint = "write false"
	}
	c.fail(s.where, hint, "%s is neither true nor false", show(s.text))
	return def
}

// seconds reads a number of seconds or a duration with units, in multiples of
// step.
func (c *checker) seconds(s scalar, def, most, step time.Duration, hint string) time.Duration {
	if !s.set {
		return def
	}
	hint = "write seconds, or a duration such as 300s or 5m; " + hint
	text := s.text
	if decimal.MatchString(text) {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil && !decimal.MatchString(s.text):
		c.fail(s.where, hint, "%s is not a time", show(s.text))
	case err != nil || d < 0 || d > most:
		c.fail(s.where, hint, "%s is out of range: at least 0, at most %.0f seconds", show(s.text), most.Seconds())
	case d%step != 0:
		c.fail(s.where, hint, "%s is not a multiple of %s", show(s.text), step)
	default:
		return d
	}
	return def
}

func (c *checker) word(s scalar, def string, words ...string) string {
	switch {
	case !s.set:
		return def
	case slices.Contains(words, s.text):
		return s.text
	}
	c.fail(s.where, "write one of "+strings.Join(words, ", "), "%s is not known here", show(s.text))
	return def
}

// metrics reads where metrics are served.
func (c *checker) metrics(s scalar) string {
	const hint = "write an address and a port, such as 127.0.0.1:9879, or unix:/run/vxbpf/metrics.sock, or off"
	if !s.set || s.text == "off" {
		return ""
	}
	if path, unix := strings.CutPrefix(s.text, "unix:"); unix {
		// sun_path has 108 bytes with the closing 0 (unix(7)).
		if !strings.HasPrefix(path, "/") || len(path) > 107 {
			c.fail(s.where, hint, "%s is no absolute path of at most 107 bytes", show(path))
			return ""
		}
		return s.text
	}
	host, port, err := net.SplitHostPort(s.text)
	if err != nil {
		c.fail(s.where, hint, "%s is no address with a port", show(s.text))
		return ""
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		c.fail(s.where, hint, "%s is no port", show(port))
		return ""
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" {
		c.fail(s.where, hint, "%s is no address: names are not looked up", show(host))
		return ""
	}
	return s.text
}

func (c *checker) datapath(s scalar, def Datapath) Datapath {
	return Datapath(c.word(s, string(def), string(Auto), string(XDP), string(TC), string(Kernel)))
}

// addr reads an address literal.
func (c *checker) addr(s scalar, hint string) (netip.Addr, bool) {
	if !s.set {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s.text)
	switch p, perr := netip.ParsePrefix(s.text); {
	case err != nil && perr == nil:
		c.fail(s.where, fmt.Sprintf("write %s", p.Addr()), "%s has a prefix length, want one address", show(s.text))
	case err != nil:
		c.fail(s.where, hint+": names are not looked up", "%s is not an IP address", show(s.text))
	case a.Zone() != "":
		c.fail(s.where, "write "+a.WithZone("").String()+": the device says the link", "%s has a zone", show(s.text))
	case a.Is4In6():
		c.fail(s.where, "write "+a.Unmap().String(), "%s is an IPv4 address written as IPv6", show(s.text))
	default:
		return a, true
	}
	return netip.Addr{}, false
}

// vtep reads the address of another host.
func (c *checker) vtep(s scalar, groupHint string) (netip.Addr, bool) {
	const hint = "write the underlay address of another host, such as 192.0.2.12"
	a, ok := c.addr(s, hint)
	if !ok {
		return a, false
	}
	if why := notUnicast(a); why != "" {
		if a.IsMulticast() {
			c.fail(s.where, groupHint, "%s %s", a, why)
		} else {
			c.fail(s.where, hint, "%s %s", a, why)
		}
		return a, false
	}
	return a, true
}

func (c *checker) local(s scalar) netip.Addr {
	const hint = "write this host's address on the underlay device, or leave local out"
	a, ok := c.addr(s, hint)
	if ok {
		if why := notUnicast(a); why != "" {
			c.fail(s.where, hint, "%s %s", a, why)
			return netip.Addr{}
		}
	}
	return a
}

// notUnicast says why no single host has the address.
func notUnicast(a netip.Addr) string {
	switch {
	case a.IsMulticast():
		return "is a multicast group, not one host"
	case a.IsUnspecified():
		return "is the unspecified address"
	case a.IsLoopback():
		return "is a loopback address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the broadcast address"
	case a.Is4In6():
		return "is an IPv4 address written as IPv6"
	}
	return ""
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
