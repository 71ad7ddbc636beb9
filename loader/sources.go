// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"slices"

	"github.com/vxbpf/vxbpf/loader/kernel"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// senders is who may send to a network.
type senders struct {
	prefixes []netip.Prefix // sorted
	check    vxmaps.Check
	why      string // why nobody is barred, "" if strangers are
}

func (s senders) allow(a netip.Addr) bool {
	return s.check.Off || slices.ContainsFunc(s.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

func host32(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// senders says who may send to the network: the VTEPs that the config names, and
// either the config's list, or whom else the set-up speaks of. The VTEPs of
// learned entries are not among them: those the kernel has from frames that anybody may have sent.
func (n *network) senders(v *view) senders {
	cfg := n.cfg.Sources
	if cfg.Any {
		return senders{check: vxmaps.Check{Off: true}, why: "allowed_sources: any"}
	}
	var s senders
	for _, a := range n.cfg.Remotes {
		s.prefixes = append(s.prefixes, host32(a))
	}
	for _, e := range n.cfg.FDB {
		s.prefixes = append(s.prefixes, host32(e.VTEP))
	}
	if cfg.Given {
		s.prefixes = append(s.prefixes, cfg.Prefixes...)
	} else {
		for a := range v.named[n.link.Index] {
			if a.Is6() == n.v6() {
				s.prefixes = append(s.prefixes, host32(a))
			}
		}
		for mac, e := range v.vxlanFDB[n.link.Index] {
			if e.NextHop != 0 && !mac.IsZero() {
				s.prefixes = append(s.prefixes, v.gateways(e.NextHop, n.v6())...)
			}
		}
		if n.cfg.Group.IsValid() || len(n.cfg.Remotes) == 0 {
			near := v.connected(n)
			if len(near) == 0 {
				return senders{check: vxmaps.Check{Off: true}, why: n.cfg.Underlay.Device + " has no subnet to take for the other hosts'; write allowed_sources"}
			}
			s.prefixes = append(s.prefixes, near...)
			// Who joins a group is seen by nobody; who a control plane names is seen while somebody follows.
			s.check.Follow = !n.cfg.Group.IsValid()
		}
	}
	slices.SortFunc(s.prefixes, netip.Prefix.Compare)
	s.prefixes = slices.Compact(s.prefixes)
	return s
}

// connected are the subnets of the underlay device in the network's family.
func (v *view) connected(n *network) (out []netip.Prefix) {
	dev, ok := v.linkByName(n.cfg.Underlay.Device)
	for _, a := range v.subnets {
		// A link-local subnet is on every link: it says nothing of this one, unless we use it.
		if ok && a.Link == dev.Index && a.Prefix.Addr().Is6() == n.v6() && a.Prefix.Bits() < a.Prefix.Addr().BitLen() &&
			a.Prefix.Addr().IsLinkLocalUnicast() == n.local.IsLinkLocalUnicast() {
			out = append(out, a.Prefix.Masked())
		}
	}
	return out
}

// gateways are the VTEPs behind a next hop object.
func (v *view) gateways(id uint32, v6 bool) (out []netip.Prefix) {
	h := v.nextHops[id]
	for _, id := range append([]uint32{id}, h.Group...) {
		if g := v.nextHops[id].Gateway; g.IsValid() && g.Is6() == v6 {
			out = append(out, host32(g))
		}
	}
	return out
}

// names: somebody wrote this entry into a vxlan device's table, a flood entry for
// example; it was not learnt.
func names(e kernel.FDBEntry) bool {
	return e.Self && e.Dst.IsValid() && !e.Dst.IsMulticast() && (e.Static || e.Extern || e.MAC.IsZero())
}

// name counts the entries that name a VTEP: one more with n 1, one less with -1.
func (v *view) name(e kernel.FDBEntry, n int) {
	if !names(e) {
		return
	}
	k := namedKey{e.Link, e.MAC, e.Dst}
	if v.namedEntries[k] == (n > 0) {
		return
	}
	if v.named[e.Link] == nil {
		v.named[e.Link] = map[netip.Addr]int{}
	}
	vteps := v.named[e.Link]
	before := vteps[e.Dst]
	vteps[e.Dst] += n
	if n > 0 {
		v.namedEntries[k] = true
		v.namesChanged = v.namesChanged || before == 0
		return
	}
	delete(v.namedEntries, k)
	if vteps[e.Dst] <= 0 {
		delete(vteps, e.Dst)
		v.namesChanged = true
	}
}

type namedKey struct {
	link int
	mac  fdb.MAC
	dst  netip.Addr
}

// unname forgets what a unicast entry named before it changed.
func (v *view) unname(e kernel.FDBEntry) {
	if old, ok := v.vxlanFDB[e.Link][e.MAC]; ok && e.Self {
		v.name(old, -1)
	}
}

// local are the addresses that packets to this host may have, broadcast addresses included.
func (v *view) local() (out []netip.Prefix) {
	for _, a := range v.subnets {
		p := a.Prefix
		out = append(out, host32(p.Addr().WithZone("")))
		if p.Addr().Is4() && p.Bits() < 31 {
			b := p.Masked().Addr().As4()
			for i := p.Bits(); i < 32; i++ {
				b[i/8] |= 0x80 >> (i % 8)
			}
			out = append(out, host32(netip.AddrFrom4(b)))
		}
	}
	return out
}

// guarded are the networks on the kernel path; their outer sources are checked, unless the config says any.
func (d *Daemon) guarded() (out []*network) {
	for _, n := range d.nets {
		if n.fallback != "" && n.id != 0 {
			out = append(out, n)
		}
	}
	return out
}

// syncSources brings the source map in line with the view. It goes before what
// relies on it: a network that is checked, an entry whose VTEP may send.
func (d *Daemon) syncSources() error {
	d.view.namesChanged = false
	var list []vxmaps.Source
	ports := map[uint16]vxmaps.Check{}
	for _, p := range d.view.local() {
		list = append(list, vxmaps.Source{Net: vxmaps.SourceLocal, Prefix: p})
	}
	for _, n := range slices.Concat(d.fast(), d.guarded()) {
		n.from = n.senders(d.view)
		for _, p := range n.from.prefixes {
			list = append(list, vxmaps.Source{Net: n.id, Prefix: p}, vxmaps.Source{Net: vxmaps.SourceUnion, Prefix: p})
		}
		// The most generous network of a port decides about what does not show its VNI.
		c := ports[n.cfg.Underlay.Port]
		c.Off, c.Follow = c.Off || n.from.check.Off, c.Follow || n.from.check.Follow
		ports[n.cfg.Underlay.Port] = c
		d.warnBarred(n)
	}
	if err := d.dp.maps.Sources.Set(list); err != nil {
		// Half a list would bar VTEPs: then nobody is.
		d.tell("check outer sources", err)
		for _, n := range slices.Concat(d.fast(), d.guarded()) {
			n.from.check, n.from.why = vxmaps.Check{Off: true}, oneLine(err)
		}
		for p := range ports {
			ports[p] = vxmaps.Check{Off: true}
		}
	}
	return d.dp.maps.Networks.SetPorts(ports)
}

// warnBarred names, once, the VTEPs that the kernel has learnt from and that may not send.
func (d *Daemon) warnBarred(n *network) {
	for _, e := range d.view.vxlanFDB[n.link.Index] {
		k := barredKey{n.id, e.Dst}
		if !e.Dst.IsValid() || n.from.allow(e.Dst) || d.barred[k] {
			continue
		}
		if d.barred == nil {
			d.barred = map[barredKey]bool{}
		}
		d.barred[k] = true
		d.log.Warn("the kernel knows a VTEP that may not send: what comes from it is dropped; allowed_sources can let it in", "vni", n.cfg.VNI, "vtep", e.Dst)
	}
}

type barredKey struct {
	net  fdb.NetID
	vtep netip.Addr
}
