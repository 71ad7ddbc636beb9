// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// act adds an action to the plan.
func (b *builder) act(a Action) {
	a.Net = b.network
	b.plan.Actions = append(b.plan.Actions, a)
}

// note adds a notice to the plan, once.
func (b *builder) note(text string) {
	if !slices.Contains(b.plan.Notices, text) {
		b.plan.Notices = append(b.plan.Notices, text)
	}
}

// step adds a change of the host to the plan. what names it in errors.
func (b *builder) step(p phase, what string, do func(*run) error) {
	b.plan.steps = append(b.plan.steps, step{p, what, do})
}

// do adds an action and the one step that carries it out. It reports whether
// the action is part of the plan, and not someone else's to undo.
func (b *builder) do(p phase, a Action, do func(*run) error) bool {
	if !b.mine(a) {
		a.Net = b.network
		b.plan.Foreign = append(b.plan.Foreign, a)
		return false
	}
	b.act(a)
	what := string(a.Verb) + " " + a.Object
	if a.Attr != "" {
		what += " " + string(a.Attr)
	}
	b.step(p, what, do)
	return true
}

// mine is what Options.Repair records, by what an Action says.
type mine struct {
	links   map[string]bool
	changes map[OwnedChange]bool // Link and Attr only
	objects map[string]bool
	moved   map[string]bool // static entries, whatever VTEP they name
}

func newMine(o *Owned) *mine {
	m := &mine{links: map[string]bool{}, changes: map[OwnedChange]bool{}, objects: map[string]bool{}, moved: map[string]bool{}}
	for _, r := range o.Links {
		m.links[r.Name] = true
	}
	for _, r := range o.Changes {
		m.changes[OwnedChange{Link: r.Link, Attr: r.Attr}] = true
	}
	for _, r := range o.Ports {
		m.objects[portObject(r.Link, r.Bridge)] = true
	}
	for _, r := range o.Remotes {
		m.objects[remoteObject(r)] = true
	}
	for _, r := range o.Statics {
		m.objects[staticObject(r.Link, Static{r.MAC, r.VTEP})] = true
		m.moved[staticName(r.Link, r.MAC)] = true
	}
	for _, r := range o.Addresses {
		m.objects[addressObject(r.Link, r.Prefix)] = true
	}
	return m
}

// mine reports whether an action puts back what Options.Repair records. A link
// of ours is ours with all that the config puts on it.
func (b *builder) mine(a Action) bool {
	if b.opts.Repair == nil || a.link == "" {
		return true
	}
	if b.repair == nil {
		b.repair = newMine(b.opts.Repair)
	}
	m := b.repair
	switch {
	case m.links[a.link]:
		return true
	case a.Verb == Change && a.Attr != "":
		return m.changes[OwnedChange{Link: a.link, Attr: a.Attr}]
	case a.Verb == Change:
		return m.objects[a.Object] || m.moved[a.Object]
	}
	return a.Verb == Add && m.objects[a.Object]
}

const byOthers = "not made by vxbpf"

// origin says who made a link that stays.
func origin(f fate) string {
	if f == ours {
		return "made by vxbpf"
	}
	return "adopted"
}

// release plans the end of all that is owned and belongs to links that the
// config does not name. What belongs to links that it names is build's.
func (b *builder) release() {
	b.network = ""
	gone := func(name, kind string) bool { return b.wanted[name] != kind }
	for _, r := range b.owned.Statics {
		if gone(r.Link, kindVXLAN) && !b.doomed[r.Link] {
			b.removeStatic(r)
		}
	}
	for _, r := range b.owned.Remotes {
		if gone(r.Link, kindVXLAN) && !b.doomed[r.Link] {
			b.removeRemote(r)
		}
	}
	for _, r := range b.owned.Addresses {
		if gone(r.Link, kindBridge) && !b.doomed[r.Link] {
			b.removeAddress(r)
		}
	}
	for _, r := range b.owned.Ports {
		if gone(r.Link, kindVXLAN) && !b.doomed[r.Link] {
			b.do(phaseClearMaster, Action{Verb: Remove, Object: portObject(r.Link, r.Bridge), Reason: b.why}, leave(r))
		}
	}
	var links []string
	for _, r := range b.owned.Changes {
		if b.wanted[r.Link] == "" && !b.doomed[r.Link] && !slices.Contains(links, r.Link) {
			links = append(links, r.Link)
		}
	}
	for _, name := range links {
		l, _ := b.snap.Link(name)
		var ws []diff
		for _, r := range b.owned.Changes {
			if r.Link == name && r.Index == l.Index {
				ws = append(ws, diff{r.Attr, r.New, r.Old})
			}
		}
		for _, d := range inOrder(ws) {
			p := phaseRestore
			if d.attr == AttrState {
				p = phaseSetDown
			}
			b.do(p, Action{Verb: Change, Object: l.Kind + " " + name, Attr: d.attr, Old: d.have, New: d.want, Reason: b.why + ": as found"},
				set(name, d.attr, d.want, true))
		}
	}
	b.deleteKind(kindVXLAN)
	b.deleteKind(kindBridge)
}

// deleteKind plans the deletion of links that we made and the config does not
// want, and the return of those that they replaced.
func (b *builder) deleteKind(kind string) {
	for _, r := range b.owned.Links {
		if r.Kind != kind || b.wanted[r.Name] == r.Kind {
			continue
		}
		object := r.Kind + " " + r.Name
		if l, ok := b.snap.Link(r.Name); ok {
			p := phaseDeleteVXLAN
			if kind == kindBridge {
				p = phaseDeleteBridge
				if b.wanted[r.Name] != "" {
					p = phaseDeleteBridgeInTheWay
				}
			}
			b.do(p, Action{Verb: Delete, Object: object, Reason: b.why + ", made by vxbpf" + b.orphans(l)}, remove(r.Name))
		}
		if r.Replaced == nil {
			continue
		}
		switch by := b.taken(r); by {
		case "":
			b.do(phaseRestoreLink, Action{Verb: Create, Object: object, New: stateText(b.snap.at, *r.Replaced), Reason: "as found, before vxbpf replaced it"},
				restore(r.Name, *r.Replaced))
		default:
			b.act(Action{Verb: Delete, Object: "record of " + object, Reason: "the link that vxbpf replaced cannot come back: " + by})
			b.step(phaseRestoreLink, "forget "+object, func(run *run) error {
				run.settle(Delta{Drop: run.linksOf(r.Name, r.Kind)})
				return nil
			})
		}
	}
}

// taken says what stands in the way of a replaced link's return, "" if nothing.
func (b *builder) taken(r OwnedLink) string {
	if b.wanted[r.Name] != "" {
		return "its name is taken"
	}
	for _, t := range b.targets {
		v := r.Replaced.VXLAN
		if v == nil || v.Port != t.net.Underlay.Port {
			continue
		}
		accepts := t.acceptZero
		if t.linkFate == adopted {
			accepts = t.link.VXLAN.UDPZeroCsum6RX
		}
		switch {
		case v.VNI == t.net.VNI && !v.External:
			return fmt.Sprintf("network %s has its VNI %s", t.net.Name, v.VNI)
		case r.Replaced.Up && (v.External || v.V6() == t.v6 && (v.GBP || v.UDPZeroCsum6RX != accepts)): // see share
			return fmt.Sprintf("network %s has its UDP port %d in another mode", t.net.Name, v.Port)
		}
	}
	return ""
}

// orphans says what suffers from the deletion of a link: ports that the plan
// neither deletes nor takes out itself, and vxlan links that run over it.
func (b *builder) orphans(bridge kernel.Link) string {
	var names []string
	for _, p := range b.snap.Ports(bridge.Index) {
		l, _ := b.snap.Link(p)
		if _, byUs := b.rec.port(l); !b.doomed[p] && !byUs {
			names = append(names, p)
		}
	}
	text := ""
	switch len(names) {
	case 0:
	case 1:
		text = "; port " + names[0] + " loses its bridge"
	default:
		text = "; ports " + strings.Join(names, ", ") + " lose their bridge"
	}
	for _, l := range b.vxlans {
		if l.VXLAN.Device == bridge.Index && !b.doomed[l.Name] {
			text += "; vxlan link " + l.Name + " runs over it, the kernel deletes it too"
		}
	}
	return text
}

// build plans one network.
func (b *builder) build(t *target) {
	b.network = t.net.Name
	b.buildBridge(t)
	mtu := b.buildLink(t)
	b.plan.Resolved = append(b.plan.Resolved, ResolvedNetwork{
		Config: t.net, Local: t.local, Device: t.device, MTU: mtu, V6: t.v6,
	})
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// forwardDelay is the forward delay to set on a bridge, false to leave it. It
// complains about one that the kernel would refuse.
func (b *builder) forwardDelay(t *target) (time.Duration, bool) {
	br := t.net.Bridge
	stp, delay, have := deref(br.STP, false), time.Duration(0), t.bridgeFate != adopted
	if t.bridgeFate == adopted {
		delay = t.bridge.Bridge.ForwardDelay
		if br.STP == nil {
			stp = t.bridge.Bridge.STP
			if c, ok := b.rec.change(t.bridge, AttrSTP); ok {
				stp = c.Old == "on"
			}
		}
		if c, ok := b.rec.change(t.bridge, AttrForwardDelay); ok {
			if d, err := time.ParseDuration(c.Old); err == nil {
				delay, have = d, true
			}
		}
	}
	if br.ForwardDelay != nil {
		delay, have = *br.ForwardDelay, true
	}
	if stp && (delay < minForwardDelay || delay > maxForwardDelay) {
		if br.ForwardDelay != nil {
			b.fail(t.path+"bridge.forward_delay", fmt.Sprintf("forward_delay %s of %s is impossible while STP is on", delay, br.Name),
				fmt.Sprintf("set %s to %s, or stp: false", minForwardDelay, maxForwardDelay))
		}
		return defaultForwardDelay, true
	}
	return delay, have
}

// wants is what the attributes of a link should be: those given, those that
// go with a link we made, and otherwise those that we changed and that nobody
// asks for any more.
type wants struct {
	b    *builder
	link kernel.Link
	made bool
	list []diff
}

func (w *wants) add(a Attr, explicit bool, value string) {
	if !explicit && !w.made {
		c, ok := w.b.rec.change(w.link, a)
		if !ok {
			return
		}
		value = c.Old
	}
	if have := w.b.snap.at.attr(w.link, a); !sameValue(a, have, value) {
		w.list = append(w.list, diff{a, have, value})
	}
}

// inOrder puts attribute changes into an order that the kernel takes: it
// refuses a short forward delay while STP is on, and stretches one when STP
// goes on.
func inOrder(ds []diff) []diff {
	rank := func(d diff) int {
		switch d.attr {
		case AttrForwardDelay:
			return 1
		case AttrSTP:
			if d.want == "on" {
				return 2
			}
			return 0
		}
		return 3
	}
	slices.SortStableFunc(ds, func(x, y diff) int { return rank(x) - rank(y) })
	return ds
}

// change plans the attribute changes of a link that stays.
func (b *builder) change(object string, w *wants) {
	for _, d := range inOrder(w.list) {
		p := phaseBridge
		switch {
		case d.attr == AttrMTU:
			p = phaseMTU
		case d.attr == AttrState:
			p = phaseUp
		case w.link.Kind == kindVXLAN:
			p = phaseVXLAN
		}
		b.do(p, Action{Verb: Change, Object: object, link: w.link.Name, Attr: d.attr, Old: d.have, New: d.want}, set(w.link.Name, d.attr, d.want, !w.made))
	}
}

// bridgeMAC is the address of a bridge that we make: the same at each load, so
// that containers' neighbour entries for the host stay right, and no port that
// comes or goes changes it. Locally administered, unique where the underlay
// device's is.
func bridgeMAC(device fdb.MAC, name string) fdb.MAC {
	h := sha256.Sum256(append(device[:], name...))
	mac := fdb.MAC(h[:6])
	mac[0] = mac[0]&^3 | 2
	return mac
}

func (b *builder) buildBridge(t *target) {
	br := t.net.Bridge
	object := "bridge " + br.Name
	if !b.bridges[br.Name] {
		b.bridges[br.Name] = true
		delay, hasDelay := b.forwardDelay(t)
		if t.bridgeFate == absent {
			st := LinkState{Kind: kindBridge, MAC: bridgeMAC(t.device.MAC, br.Name), Bridge: &kernel.Bridge{STP: deref(br.STP, false), ForwardDelay: delay, Ageing: bridgeAgeing(t.net.Ageing)}}
			made := b.do(phaseBridge, Action{Verb: Create, Object: object, link: br.Name, Reason: "not there", New: fmt.Sprintf("stp %s, forward_delay %s, ageing %s, mtu %d",
				onOff(st.Bridge.STP), delay, st.Bridge.Ageing, t.mtu)}, create(OwnedLink{Name: br.Name, Kind: kindBridge}, st))
			if !made {
				return
			}
			// Set even if it is what a new bridge has: a bridge whose MTU was
			// never set follows its smallest port.
			b.step(phaseMTU, "set mtu of "+object, set(br.Name, AttrMTU, strconv.Itoa(t.mtu), false))
			b.step(phaseUp, "set up "+object, set(br.Name, AttrState, "up", false))
		} else {
			w := &wants{b: b, link: t.bridge, made: t.bridgeFate == ours}
			w.add(AttrSTP, br.STP != nil, onOff(deref(br.STP, false)))
			w.add(AttrForwardDelay, hasDelay, delay.String())
			w.add(AttrAgeing, true, bridgeAgeing(t.net.Ageing).String())
			w.add(AttrMTU, t.net.MTU > 0, strconv.Itoa(t.mtu))
			w.add(AttrState, true, "up")
			if len(w.list) == 0 {
				b.act(Action{Verb: Keep, Object: object, Reason: origin(t.bridgeFate)})
			}
			b.change(object, w)
		}
		for _, r := range b.rec.addresses[br.Name] {
			wanted := slices.ContainsFunc(b.targets, func(o *target) bool {
				return o.net.Bridge.Name == r.Link && slices.Contains(o.net.Bridge.Addresses, r.Prefix)
			})
			if !wanted && t.bridgeFate != absent {
				b.removeAddress(r)
			}
		}
	}
	for _, p := range br.Addresses {
		object := addressObject(br.Name, p)
		if t.bridgeFate != absent && slices.Contains(b.snap.AddressesOf(t.bridge.Index), p) {
			b.act(Action{Verb: Keep, Object: object})
			continue
		}
		b.do(phaseAddress, Action{Verb: Add, Object: object, link: br.Name}, addAddress(br.Name, p))
	}
}

// buildLink plans the vxlan link and what hangs on it. It returns the MTU that
// the link will have.
func (b *builder) buildLink(t *target) int {
	n := t.net
	object := "vxlan " + n.Link
	mtu := t.mtu
	old := t.link
	switch t.linkFate {
	case absent, replaced:
		rec := OwnedLink{Name: n.Link, Kind: kindVXLAN, VNI: n.VNI, Port: n.Underlay.Port}
		want := t.vxlan()
		st := LinkState{Kind: kindVXLAN, MTU: mtu, VXLAN: &want}
		if r, ok := first(b.owned.Links, func(r OwnedLink) bool { return r.Name == n.Link && r.Kind == kindVXLAN }); ok {
			rec.Replaced = r.Replaced
		}
		if t.linkFate == absent {
			if !b.do(phaseVXLAN, Action{Verb: Create, Object: object, link: n.Link, Reason: "not there", New: stateText(b.snap.at, st)}, create(rec, st)) {
				return mtu
			}
		} else {
			if _, made := b.rec.made(old); !made {
				orig := b.original(old)
				rec.Replaced = &orig
			}
			var have, want []string
			for _, d := range t.differs {
				have = append(have, string(d.attr)+" "+d.have)
				want = append(want, string(d.attr)+" "+d.want)
			}
			b.act(Action{Verb: Recreate, Object: object, Old: strings.Join(have, ", "), New: strings.Join(want, ", "),
				Reason: "cannot be changed in place" + b.lost(t)})
			b.step(phaseDeleteVXLAN, "delete "+object, displace(rec))
			b.step(phaseVXLAN, "create "+object, create(rec, st))
		}
		b.step(phaseUp, "set up "+object, set(n.Link, AttrState, "up", false))
		old = kernel.Link{}
	case ours, adopted:
		w := &wants{b: b, link: old, made: t.linkFate == ours, list: t.inPlace}
		want := t.vxlan()
		for _, a := range []struct {
			attr  Attr
			given bool
		}{
			{AttrTTL, givenTTL(n.Underlay)},
			{AttrTOS, n.Underlay.Given&config.GivenTOS != 0},
			{AttrDF, n.Underlay.Given&config.GivenDF != 0},
			{AttrFlowLabel, n.Underlay.Given&config.GivenFlowLabel != 0},
		} {
			w.add(a.attr, a.given, b.snap.at.attr(kernel.Link{VXLAN: &want}, a.attr))
		}
		w.add(AttrLearning, true, onOff(n.Learning))
		w.add(AttrAgeing, true, n.Ageing.String())
		w.add(AttrMTU, n.MTU > 0, strconv.Itoa(mtu))
		w.add(AttrState, true, "up")
		if !w.made && n.MTU == 0 {
			mtu = old.MTU
			if c, ok := b.rec.change(old, AttrMTU); ok {
				mtu, _ = strconv.Atoi(c.Old)
			}
		}
		if len(w.list) == 0 {
			b.act(Action{Verb: Keep, Object: object, Reason: origin(t.linkFate)})
		}
		b.change(object, w)
	}
	b.buildPort(t, old)
	b.buildRemotes(t, old)
	b.buildStatics(t, old)
	b.notePorts(t, min(mtu, t.fits))
	return mtu
}

// notePorts notes the ports of the bridge that take larger packets than the
// network carries. What is too long for it is fragmented at best.
func (b *builder) notePorts(t *target, carries int) {
	const headers = 40 // IPv4 and TCP
	clamp := t.net.MSSClamp
	if t.bridge.Index == 0 || clamp == config.MSSAuto || clamp > 0 && clamp+headers <= carries {
		return
	}
	var mtus []int
	names := map[int][]string{}
	for i := range b.snap.at.ports[t.bridge.Index] {
		l := b.snap.at.links[i]
		if l.VXLAN != nil || l.MTU <= carries {
			continue
		}
		if names[l.MTU] == nil {
			mtus = append(mtus, l.MTU)
		}
		names[l.MTU] = append(names[l.MTU], l.Name)
	}
	slices.Sort(mtus)
	for _, mtu := range mtus {
		const most = 5
		ports, have, it := names[mtu], "have", "them"
		slices.Sort(ports)
		text := "ports " + strings.Join(ports[:min(len(ports), most)], ", ")
		switch n := len(ports) - most; {
		case len(ports) == 1:
			text, have, it = "port "+ports[0], "has", "it"
		case n > 0:
			text += fmt.Sprintf(" and %d more", n)
		}
		b.note(fmt.Sprintf("%s %s MTU %d, network %s carries %d: lower %s, raise the underlay, or set mss_clamp: auto", text, have, mtu, t.net.Name, carries, it))
	}
}

func portObject(link, bridge string) string { return "port " + link + " of " + bridge }

func (b *builder) buildPort(t *target, have kernel.Link) {
	n := t.net
	object := portObject(n.Link, n.Bridge.Name)
	switch {
	case have.Master == 0:
		b.do(phaseMaster, Action{Verb: Add, Object: object, link: n.Link}, enslave(n.Link, n.Bridge.Name))
	case b.snap.Name(have.Master) == n.Bridge.Name:
		b.act(Action{Verb: Keep, Object: object})
	default:
		b.do(phaseMaster, Action{Verb: Change, Object: "vxlan " + n.Link, link: n.Link, Attr: AttrMaster, Old: b.snap.Name(have.Master), New: n.Bridge.Name},
			enslave(n.Link, n.Bridge.Name))
	}
}

func (b *builder) buildRemotes(t *target, have kernel.Link) {
	n := t.net
	present, wanted := map[netip.Addr]bool{}, make(map[netip.Addr]bool, len(n.Remotes))
	for _, r := range n.Remotes {
		wanted[r] = true
	}
	for _, r := range b.snap.RemotesOf(have.Index) {
		present[r] = true
		rec := OwnedRemote{n.Link, have.Index, r}
		switch {
		case wanted[r]:
		case b.rec.remotes[rec]:
			b.removeRemote(rec)
		default:
			b.act(Action{Verb: Keep, Object: remoteObject(rec), Reason: byOthers})
		}
	}
	for _, r := range n.Remotes {
		rec := OwnedRemote{n.Link, have.Index, r}
		if present[r] {
			b.act(Action{Verb: Keep, Object: remoteObject(rec)})
			continue
		}
		b.do(phaseRemote, Action{Verb: Add, Object: remoteObject(rec), link: n.Link}, addRemote(n.Link, r))
	}
}

func (b *builder) buildStatics(t *target, have kernel.Link) {
	n := t.net
	wanted := make(map[fdb.MAC]bool, len(n.FDB))
	for _, e := range n.FDB {
		wanted[e.MAC] = true
	}
	for _, s := range b.snap.StaticsOf(have.Index) {
		if wanted[s.MAC] {
			continue
		}
		if r, ok := b.rec.static(have, s.MAC); ok {
			b.removeStatic(r)
			continue
		}
		b.act(Action{Verb: Keep, Object: staticObject(n.Link, s), Reason: byOthers})
	}
	for _, e := range n.FDB {
		want := Static{e.MAC, e.VTEP}
		is, there := b.snap.at.staticOf(have.Index, e.MAC)
		switch {
		case there && is == want:
			b.act(Action{Verb: Keep, Object: staticObject(n.Link, want)})
		case there:
			rec, byUs := b.rec.static(have, e.MAC)
			previous := is.VTEP
			if byUs {
				previous = rec.Previous
			}
			reason := ""
			if !byUs {
				reason = byOthers + "; put back on unload"
			}
			b.do(phaseStatic, Action{Verb: Change, Object: staticName(n.Link, e.MAC), link: n.Link, Old: is.VTEP.String(), New: e.VTEP.String(), Reason: reason},
				putStatic(n.Link, want, previous))
		default:
			b.do(phaseStatic, Action{Verb: Add, Object: staticObject(n.Link, want), link: n.Link}, putStatic(n.Link, want, netip.Addr{}))
		}
	}
}

func remoteObject(r OwnedRemote) string { return fmt.Sprintf("remote %s on %s", r.Remote, r.Link) }

func staticName(link string, mac fdb.MAC) string { return fmt.Sprintf("static %s on %s", mac, link) }

func addressObject(link string, p netip.Prefix) string {
	return fmt.Sprintf("address %s on %s", p, link)
}

func staticObject(link string, s Static) string {
	return fmt.Sprintf("static %s -> %s on %s", s.MAC, s.VTEP, link)
}

func (b *builder) removeAddress(r OwnedAddress) {
	b.do(phaseRemoveAddress, Action{Verb: Remove, Object: addressObject(r.Link, r.Prefix), Reason: b.why}, delAddress(r))
}

func (b *builder) removeRemote(r OwnedRemote) {
	b.do(phaseRemoveRemote, Action{Verb: Remove, Object: remoteObject(r), Reason: b.why}, delRemote(r))
}

func (b *builder) removeStatic(r OwnedStatic) {
	if r.Previous.IsValid() {
		b.do(phaseRemoveStatic, Action{Verb: Change, Object: staticName(r.Link, r.MAC), Old: r.VTEP.String(), New: r.Previous.String(),
			Reason: b.why + ": as found"}, delStatic(r))
		return
	}
	b.do(phaseRemoveStatic, Action{Verb: Remove, Object: staticObject(r.Link, Static{r.MAC, r.VTEP}), Reason: b.why}, delStatic(r))
}

// lost says how many entries of others go with a link that is recreated.
func (b *builder) lost(t *target) string {
	n := 0
	kept := make(map[fdb.MAC]bool, len(t.net.FDB))
	for _, e := range t.net.FDB {
		kept[e.MAC] = true
	}
	for _, s := range b.snap.StaticsOf(t.link.Index) {
		_, byUs := b.rec.static(t.link, s.MAC)
		kept := kept[s.MAC]
		if !byUs && !kept {
			n++
		}
	}
	for _, r := range b.snap.RemotesOf(t.link.Index) {
		if !b.rec.remotes[OwnedRemote{t.link.Name, t.link.Index, r}] && !slices.Contains(t.net.Remotes, r) {
			n++
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return "; 1 forwarding entry not made by vxbpf is lost"
	}
	return fmt.Sprintf("; %d forwarding entries not made by vxbpf are lost", n)
}

// original is the state of a link that we did not make, without what we did to it.
func (b *builder) original(l kernel.Link) LinkState {
	s := newTable(b.snap.clone())
	p := s.find(l.Name)
	if _, ok := b.rec.port(l); ok {
		s.enslave(p, 0)
	}
	for _, c := range b.owned.Changes {
		if c.Link == l.Name && c.Index == l.Index {
			// The value was formatted by us; one that does not parse stays as it is.
			if v, err := parse(s, p, c.Attr, c.Old); err == nil {
				v.assign()
			}
		}
	}
	st := s.state(*p)
	st.Remotes = slices.DeleteFunc(st.Remotes, func(r netip.Addr) bool {
		return b.rec.remotes[OwnedRemote{l.Name, l.Index, r}]
	})
	statics := st.Statics
	st.Statics = nil
	for _, e := range statics {
		r, byUs := b.rec.static(l, e.MAC)
		switch {
		case !byUs:
			st.Statics = append(st.Statics, e)
		case r.Previous.IsValid():
			st.Statics = append(st.Statics, Static{e.MAC, r.Previous})
		}
	}
	return st
}

// stateText is what a link to be made looks like, for people.
func stateText(at *table, st LinkState) string {
	if v := st.VXLAN; v != nil {
		t := fmt.Sprintf("vni %s, local %s, device %s, port %d", v.VNI, addrText(v.Local), nameText(at.name(v.Device)), v.Port)
		if v.Group.IsValid() {
			t += ", group " + v.Group.String()
		}
		// What is not as usual.
		usual := kernel.VXLAN{Local: v.Local, Group: v.Group}
		for _, a := range []Attr{AttrTTL, AttrTOS, AttrDF, AttrFlowLabel, AttrSourcePorts, AttrUDPChecksum} {
			if text := at.attr(kernel.Link{VXLAN: v}, a); text != at.attr(kernel.Link{VXLAN: &usual}, a) {
				t += ", " + string(a) + " " + text
			}
		}
		return t + ", mtu " + strconv.Itoa(st.MTU)
	}
	return "mtu " + strconv.Itoa(st.MTU)
}
