// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Positioner makes an error that points at a place in the config file, such as
// "networks[1].bridge". *config.Config is one.
type Positioner interface {
	ErrorAt(path, message, hint string) error
}

// Options are the choices of NewPlan.
type Options struct {
	// Recreate allows deleting and making again a vxlan link that vxbpf did
	// not make, where what differs cannot be changed in place.
	Recreate bool
	// InPlace are those of AttrGroup, AttrLocal and AttrDevice that this
	// kernel changes in place. Other attributes here have no effect.
	InPlace []Attr
	// Position places errors in the config file. nil: plain errors.
	Position Positioner
	// Repair plans only what puts back what is in this record, by name: links that
	// somebody deleted are in no record of what is there any more. What else
	// differs from the config stands in Plan.Foreign. nil: everything.
	Repair *Owned
}

// NewPlan compares what cfg wants with the host and with what vxbpf made
// there. All conflicts are reported, joined into one error; then there is no
// plan. The Config pointers in the plan point into cfg.
func NewPlan(cfg *config.Config, snap Snapshot, owned Owned, opts Options) (*Plan, error) {
	b := newBuilder(snap, owned)
	b.opts, b.cfg, b.why = opts, cfg, "no longer in the config"
	for i := range cfg.Networks {
		n := &cfg.Networks[i]
		b.wanted[n.Bridge.Name] = kindBridge
		b.wanted[n.Link] = kindVXLAN
	}
	b.doom()
	for i := range cfg.Networks {
		b.targets = append(b.targets, b.resolve(i))
	}
	for _, t := range b.targets {
		b.share(t)
	}
	for _, t := range b.targets {
		b.collide(t)
	}
	if len(b.errs) > 0 {
		return nil, errors.Join(b.errs...)
	}
	b.release()
	for _, t := range b.targets {
		b.build(t)
	}
	return b.plan, nil
}

// builder collects a plan. Its methods come in two rounds: resolve and collide
// look and complain, release and build write actions and steps.
type builder struct {
	cfg     *config.Config
	snap    Snapshot // indexed
	owned   Owned    // pruned
	rec     *records // the same, to look things up
	vxlans  []*kernel.Link
	foreign []*kernel.Link // those of them that we did not make
	repair  *mine          // of opts.Repair, once somebody asked
	opts    Options
	why     string            // reason for removing what is not wanted
	wanted  map[string]string // name -> kind of the links of the config
	doomed  map[string]bool   // existing links that the plan deletes, to make them again or not
	targets []*target
	bridges map[string]bool // those that build has dealt with
	errs    []error
	said    map[string]bool
	plan    *Plan
	network string // name of the network that actions are for
}

func newBuilder(snap Snapshot, owned Owned) *builder {
	snap = snap.indexed()
	pruned := owned.prune(snap)
	rec := pruned.index()
	var vxlans, foreign []*kernel.Link
	for i := range snap.Links {
		l := &snap.Links[i]
		if l.VXLAN == nil {
			continue
		}
		vxlans = append(vxlans, l)
		if _, made := rec.made(*l); !made {
			foreign = append(foreign, l)
		}
	}
	return &builder{
		snap: snap, owned: pruned, rec: rec, vxlans: vxlans, foreign: foreign,
		wanted: map[string]string{}, doomed: map[string]bool{}, bridges: map[string]bool{}, said: map[string]bool{},
		plan: &Plan{snap: snap, before: owned.Clone(), start: pruned},
	}
}

// fate is what becomes of a link that the config names.
type fate int

const (
	absent   fate = iota // make it
	ours                 // we made it
	adopted              // someone else made it, it fits
	replaced             // delete it and make it again
	blocked              // there is a conflict
)

// target is one network on its way to a ResolvedNetwork.
type target struct {
	net    *config.Network
	path   string
	device kernel.Link
	found  bool // the device exists
	local  netip.Addr
	v6     bool
	fits   int // the largest MTU that fits the underlay, bytes
	mtu    int // explicit, or fits

	// acceptZero: the link's socket takes IPv6 packets without a UDP checksum.
	acceptZero bool

	bridgeFate, linkFate fate
	bridge, link         kernel.Link // as found
	differs              []diff      // of link, what takes recreation
	inPlace              []diff      // of link, what does not, thanks to Options.InPlace
}

type diff struct {
	attr       Attr
	have, want string
}

// fail notes a conflict, once.
func (b *builder) fail(path, message, hint string) {
	if key := path + message; !b.said[key] {
		b.said[key] = true
		if b.opts.Position != nil {
			b.errs = append(b.errs, b.opts.Position.ErrorAt(path, message, hint))
		} else {
			b.errs = append(b.errs, fmt.Errorf("%s: %s; %s", path, message, hint))
		}
	}
}

// doom marks the links that we made and that the config does not want.
func (b *builder) doom() {
	for _, r := range b.owned.Links {
		if _, ok := b.snap.Link(r.Name); ok && b.wanted[r.Name] != r.Kind {
			b.doomed[r.Name] = true
		}
	}
}

// resolve finds the underlay and the two links of a network.
func (b *builder) resolve(i int) *target {
	n := &b.cfg.Networks[i]
	t := &target{net: n, path: fmt.Sprintf("networks[%d].", i)}
	b.resolveUnderlay(t)
	b.resolveBridge(t)
	b.resolveLink(t)
	for j, r := range n.Remotes {
		if t.local.IsValid() && r == t.local {
			b.fail(fmt.Sprintf("%sremotes[%d]", t.path, j), fmt.Sprintf("remote %s is this host's own local address", r),
				"remove it from the list")
		}
	}
	for j, e := range n.FDB {
		if t.local.IsValid() && e.VTEP == t.local {
			b.fail(fmt.Sprintf("%sfdb[%d].remote", t.path, j), fmt.Sprintf("static entry %s goes to %s, this host's own local address", e.MAC, e.VTEP),
				"remove it, or name the host where the MAC lives")
		}
	}
	return t
}

// underlayPath is the key of an underlay value: the global one unless the
// network has its own.
func (t *target) underlayPath(key string, same bool) string {
	if same {
		return "underlay." + key
	}
	return t.path + key
}

func (b *builder) resolveUnderlay(t *target) {
	n, u := t.net, t.net.Underlay
	wantFamily := n.Group
	if !wantFamily.IsValid() && len(n.Remotes) > 0 {
		wantFamily = n.Remotes[0]
	}
	if !wantFamily.IsValid() && len(n.FDB) > 0 {
		wantFamily = n.FDB[0].VTEP
	}
	t.v6 = wantFamily.Is6()

	if u.Local.IsValid() {
		path := t.underlayPath("local", u.Local == b.cfg.Underlay.Local)
		if wantFamily.IsValid() && wantFamily.Is6() != u.Local.Is6() {
			b.fail(path, fmt.Sprintf("local address %s and %s of network %s are of different families", u.Local, wantFamily, n.Name),
				"give the network a local address of its own")
		} else {
			t.v6 = u.Local.Is6()
		}
		if b.snap.HasAddress(u.Local) {
			t.local = u.Local
		} else {
			b.fail(path, fmt.Sprintf("local address %s is on no interface of this host", u.Local), b.addressHint(u.Device))
		}
	}

	path := t.underlayPath("device", u.Device == b.cfg.Underlay.Device)
	t.device, t.found = b.snap.Link(u.Device)
	if !t.found {
		b.fail(path, fmt.Sprintf("underlay device %s does not exist", u.Device), b.deviceHint(t.v6))
		return
	}
	if !u.Local.IsValid() {
		if !wantFamily.IsValid() {
			t.v6 = !usable(b.snap, t.device.Index, false).IsValid() && usable(b.snap, t.device.Index, true).IsValid()
		}
		if t.local = usable(b.snap, t.device.Index, t.v6); !t.local.IsValid() {
			b.fail(path, fmt.Sprintf("underlay device %s has no usable %s address", u.Device, family(t.v6)),
				"wait for its address (is DHCP up?), or set underlay.local")
		}
	}

	if t.v6 && u.DF != "" && u.DF != config.DFUnset {
		b.fail(t.underlayPath("df", u.DF == b.cfg.Underlay.DF), fmt.Sprintf("df %s is for an IPv4 underlay, and that of network %s is IPv6", u.DF, n.Name),
			"give the network df: unset")
	}
	if !t.v6 && u.FlowLabel != 0 {
		b.fail(t.underlayPath("flow_label", u.FlowLabel == b.cfg.Underlay.FlowLabel),
			fmt.Sprintf("flow_label %#x is for an IPv6 underlay, and that of network %s is IPv4", u.FlowLabel, n.Name), "give the network flow_label: 0")
	}

	t.acceptZero = t.v6
	under := t.device.MTU
	if u.MTU > 0 {
		if u.MTU > under {
			b.fail("underlay.mtu", fmt.Sprintf("underlay mtu %d is more than %s has: %d", u.MTU, u.Device, under),
				fmt.Sprintf("set mtu: %d or less, or raise the MTU of %s", under, u.Device))
		}
		under = min(under, u.MTU)
	}
	over, what := n.Overhead(t.v6)
	t.fits = under - over
	t.mtu = t.fits
	if n.MTU > 0 {
		t.mtu = n.MTU
		if n.MTU > t.fits {
			b.fail(t.path+"mtu", fmt.Sprintf("mtu %d does not fit: the underlay %s carries %d, less %s leaves %d",
				n.MTU, u.Device, under, what, t.fits),
				fmt.Sprintf("set mtu: %d or less, or raise the MTU of %s", t.fits, u.Device))
		}
	}
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// usable returns the first address of a link that can be an outer source
// address, invalid if there is none.
func usable(s Snapshot, index int, v6 bool) netip.Addr {
	for _, p := range s.table().addresses[index] {
		a := p.Prefix.Addr()
		if p.Tentative || a.Is6() != v6 || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || v6 && a.IsLinkLocalUnicast() {
			continue
		}
		return a
	}
	return netip.Addr{}
}

// deviceHint names the links that could be the underlay.
func (b *builder) deviceHint(v6 bool) string {
	var names []string
	for _, l := range b.snap.Links {
		if l.Kind != kindVXLAN && l.Master == 0 && usable(b.snap, l.Index, v6).IsValid() {
			names = append(names, l.Name)
		}
	}
	if len(names) == 0 {
		return "no interface has an " + family(v6) + " address yet"
	}
	slices.Sort(names)
	return "interfaces with an " + family(v6) + " address: " + strings.Join(names, ", ")
}

func (b *builder) addressHint(device string) string {
	d, _ := b.snap.Link(device)
	var addrs []string
	for _, p := range b.snap.AddressesOf(d.Index) {
		addrs = append(addrs, p.Addr().String())
	}
	if d.Index == 0 || len(addrs) == 0 {
		return "correct it, or leave it out to use the first address of the underlay device"
	}
	return fmt.Sprintf("%s has %s", device, strings.Join(addrs, ", "))
}

func kindText(l kernel.Link) string {
	if l.Kind == "" {
		return "hardware"
	}
	return l.Kind
}

func (b *builder) resolveBridge(t *target) {
	name := t.net.Bridge.Name
	l, ok := b.snap.Link(name)
	if !ok || b.doomed[name] {
		b.forwardDelay(t)
		return
	}
	t.bridge = l
	if l.Kind != kindBridge || l.Bridge == nil {
		t.bridgeFate = blocked
		b.fail(t.path+"bridge", fmt.Sprintf("link %s is in the way: its kind is %s, not bridge", name, kindText(l)),
			"rename or delete it, or choose another bridge name")
		return
	}
	t.bridgeFate = adopted
	if _, made := b.rec.made(l); made {
		t.bridgeFate = ours
	}
	b.forwardDelay(t)
}

func (b *builder) resolveLink(t *target) {
	n := t.net
	l, ok := b.snap.Link(n.Link)
	if !ok || b.doomed[n.Link] {
		return
	}
	t.link = l
	if l.Kind != kindVXLAN || l.VXLAN == nil {
		t.linkFate = blocked
		b.fail(t.path+"link", fmt.Sprintf("link %s is in the way: its kind is %s, not vxlan", n.Link, kindText(l)),
			"rename or delete it, or set link: to another name")
		return
	}
	t.linkFate = adopted
	_, made := b.rec.made(l)
	if made {
		t.linkFate = ours
	}
	if _, byUs := b.rec.port(l); l.Master != 0 && b.snap.Name(l.Master) != n.Bridge.Name && !byUs {
		t.linkFate = blocked
		was := b.snap.Name(l.Master)
		b.fail(t.path+"bridge", fmt.Sprintf("vxlan link %s is a port of %s, not of %s", n.Link, was, n.Bridge.Name),
			fmt.Sprintf("take it out (ip link set %s nomaster), or set bridge: %s", n.Link, was))
	}
	b.compare(t, made)
	if len(t.differs) == 0 || t.linkFate == blocked {
		return
	}
	if !made && !b.opts.Recreate {
		t.linkFate = blocked
		var ds []string
		for _, d := range t.differs {
			ds = append(ds, fmt.Sprintf("%s is %s, the config wants %s", d.attr, d.have, d.want))
		}
		b.fail(t.path+differKey(t.differs[0].attr),
			fmt.Sprintf("vxlan link %s was not made by vxbpf and cannot be changed in place: %s", n.Link, strings.Join(ds, "; ")),
			"load with --recreate to replace it, or change the config")
		return
	}
	t.linkFate = replaced
	b.doomed[n.Link] = true
}

func differKey(a Attr) string {
	switch a {
	case AttrVNI, AttrPort, AttrDevice, AttrLocal, AttrGroup, AttrTTL, AttrSourcePorts, AttrUDPChecksum:
		return string(a)
	case AttrZeroCsumRX:
		return string(AttrUDPChecksum)
	}
	return "link"
}

// compare finds what of an existing vxlan link cannot be changed by a plain
// attribute change.
func (b *builder) compare(t *target, made bool) {
	n, l := t.net, t.link
	v := l.VXLAN
	check := func(a Attr, want string, inPlace bool) {
		have := b.snap.at.attr(l, a)
		switch {
		case have == want:
		case inPlace && slices.Contains(b.opts.InPlace, a):
			t.inPlace = append(t.inPlace, diff{a, have, want})
		default:
			t.differs = append(t.differs, diff{a, have, want})
		}
	}
	// The kernel cannot change an address to one of the other family, nor to none.
	sameFamily := func(x, y netip.Addr) bool { return x.IsValid() && y.IsValid() && x.Is6() == y.Is6() }

	check(AttrExternal, "off", false)
	if !v.External {
		check(AttrVNI, n.VNI.String(), false)
	}
	check(AttrPort, strconv.Itoa(int(n.Underlay.Port)), false)
	check(AttrGBP, "off", false)
	check(AttrGPE, "off", false)
	// What is not given leaves an adopted link as found.
	u, want := n.Underlay, t.vxlan()
	fixed := func(a Attr, given bool) {
		if made || given {
			check(a, b.snap.at.attr(kernel.Link{VXLAN: &want}, a), false)
		}
	}
	if v.TTLInherit != want.TTLInherit {
		fixed(AttrTTL, givenTTL(u))
	}
	fixed(AttrSourcePorts, u.SourceLow != 0)
	if v.V6() == t.v6 {
		fixed(AttrUDPChecksum, u.UDPChecksum != nil)
	}
	if t.v6 && !made && u.UDPChecksum != nil && !*u.UDPChecksum { // made: see share
		check(AttrZeroCsumRX, "on", false)
	}
	if t.found {
		check(AttrDevice, t.device.Name, v.Device != 0)
	}
	// A unicast "remote" attribute is a default remote like others. Only a
	// multicast group that is not wanted, or another than wanted, differs.
	if n.Group.IsValid() || v.Group.IsMulticast() {
		check(AttrGroup, addrText(n.Group), sameFamily(v.Group, n.Group))
	}
	if !t.local.IsValid() {
		return
	}
	explicit := n.Underlay.Local.IsValid()
	switch unset := addrText(v.Local) == none; {
	case made || explicit && !unset:
	case !explicit && !unset:
		// Found with a source address of its own, and we were given none: any
		// that the host has will do.
		old := v.Local
		if c, ok := b.rec.change(l, AttrLocal); ok {
			if a, err := netip.ParseAddr(c.Old); err == nil {
				old = a
			}
		}
		if b.snap.HasAddress(old) && old.Is6() == t.v6 {
			t.local = old
		}
	case t.found && t.local == usable(b.snap, t.device.Index, t.v6):
		// Left to the kernel, which takes this very address.
		return
	}
	check(AttrLocal, t.local.String(), sameFamily(v.Local, t.local))
}

func givenTTL(u config.Underlay) bool { return u.TTL > 0 || u.TTLInherit }

// share makes links agree. The vxlan links of one family and UDP port have one
// socket, so those that are up must accept the same, or the last does not come
// up (EADDRINUSE). Links of ours over IPv6 take packets without a UDP checksum,
// unless a link that stays and is not ours refuses them.
func (b *builder) share(t *target) {
	if t.linkFate == blocked {
		return
	}
	for _, l := range b.foreign {
		x := l.VXLAN
		if l.Name == t.net.Link || b.doomed[l.Name] || x.External || x.Port != t.net.Underlay.Port || x.V6() != t.v6 {
			continue
		}
		if !l.Up && b.wanted[l.Name] != kindVXLAN {
			continue
		}
		const without = "IPv6 packets without a UDP checksum"
		remedy := fmt.Sprintf("change port, or delete %s (ip link del %s)", l.Name, l.Name)
		switch zero := x.UDPZeroCsum6RX; {
		case x.GBP:
			b.fail(t.path+"port", fmt.Sprintf("vxlan link %s on UDP port %d is in gbp mode, and links on one port must agree", l.Name, x.Port), remedy)
		case t.linkFate == adopted && zero != t.link.VXLAN.UDPZeroCsum6RX:
			b.fail(t.path+"port", fmt.Sprintf("of vxlan links %s and %s on UDP port %d, one takes %s and one does not", t.net.Link, l.Name, x.Port, without), remedy)
		case t.linkFate == adopted || zero == t.acceptZero:
		case t.v6 && !deref(t.net.Underlay.UDPChecksum, true):
			b.fail(t.underlayPath(string(AttrUDPChecksum), t.net.Underlay.UDPChecksum == b.cfg.Underlay.UDPChecksum), fmt.Sprintf("vxlan link %s on UDP port %d refuses %s", l.Name, x.Port, without), "make it again with udp6zerocsumrx, "+remedy)
		default:
			t.acceptZero = zero
			if t.v6 {
				b.note(fmt.Sprintf("vxlan link %s on UDP port %d refuses %s, so %s must too: make it again with udp6zerocsumrx, %s", l.Name, x.Port, without, t.net.Link, remedy))
			}
		}
	}
	if t.linkFate == ours && t.link.VXLAN.UDPZeroCsum6RX != t.acceptZero {
		t.differs = append(t.differs, diff{AttrZeroCsumRX, onOff(!t.acceptZero), onOff(t.acceptZero)})
		t.linkFate = replaced
		b.doomed[t.net.Link] = true
	}
}

// collide looks for links that hold what a network needs.
func (b *builder) collide(t *target) {
	if d := t.net.Underlay.Device; t.found && b.doomed[d] {
		b.fail(t.underlayPath("device", d == b.cfg.Underlay.Device), fmt.Sprintf("underlay device %s would be deleted by this very config", d),
			"use a device that vxbpf does not make, or load in two steps")
	}
	for _, l := range b.foreign {
		if b.doomed[l.Name] || b.wanted[l.Name] == kindVXLAN || l.VXLAN.Port != t.net.Underlay.Port {
			continue
		}
		remedy := fmt.Sprintf("or delete it (ip link del %s)", l.Name)
		switch {
		case l.VXLAN.External && (t.linkFate == absent || t.linkFate == replaced):
			b.fail(t.path+"port", fmt.Sprintf("vxlan link %s already takes every VNI on UDP port %d (external)", l.Name, l.VXLAN.Port),
				"change port, "+remedy)
		case !l.VXLAN.External && l.VXLAN.VNI == t.net.VNI:
			b.fail(t.path+"vni", fmt.Sprintf("vxlan link %s already uses VNI %s on UDP port %d", l.Name, l.VXLAN.VNI, l.VXLAN.Port),
				fmt.Sprintf("set link: %s to adopt it, change vni or port, %s", l.Name, remedy))
		}
	}
}
