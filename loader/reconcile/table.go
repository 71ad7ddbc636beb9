// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// table is a Snapshot made for looking things up and, by Apply, for following
// what it does: a plan of a thousand networks asks some ten thousand times.
type table struct {
	links map[int]*kernel.Link // by ifindex
	names map[string]int
	// ports of each bridge, by ifindex.
	ports     map[int]map[int]bool
	addresses map[int][]kernel.Address // by link, in the kernel's order
	hosts     map[netip.Addr]int       // addresses of the host, with the number of links
	fdb       map[int]*entries         // by link
}

// entries are the FDB of one link.
type entries struct {
	order []fdb.MAC // of the kernel; a MAC that is gone from by stays here
	by    map[fdb.MAC][]kernel.FDBEntry
}

// newTable looks into s: a change of its links shows in both.
func newTable(s Snapshot) *table {
	t := &table{
		links: make(map[int]*kernel.Link, len(s.Links)), names: make(map[string]int, len(s.Links)), ports: map[int]map[int]bool{},
		addresses: map[int][]kernel.Address{}, hosts: map[netip.Addr]int{}, fdb: map[int]*entries{},
	}
	for i := range s.Links {
		t.add(&s.Links[i])
	}
	for _, a := range s.Addresses {
		t.addAddress(a)
	}
	for _, e := range s.FDB {
		t.addEntry(e)
	}
	return t
}

func (t *table) add(l *kernel.Link) {
	t.links[l.Index] = l
	if _, twice := t.names[l.Name]; !twice {
		t.names[l.Name] = l.Index
	}
	t.enslave(l, l.Master)
}

// enslave makes l a port of the bridge with that ifindex, 0 for of none.
func (t *table) enslave(l *kernel.Link, bridge int) {
	delete(t.ports[l.Master], l.Index)
	l.Master = bridge
	if bridge != 0 {
		if t.ports[bridge] == nil {
			t.ports[bridge] = map[int]bool{}
		}
		t.ports[bridge][l.Index] = true
	}
}

// remove forgets a link and what is on it.
func (t *table) remove(index int) {
	l := t.links[index]
	for p := range t.ports[index] {
		t.enslave(t.links[p], 0)
	}
	t.enslave(l, 0)
	for _, a := range t.addresses[index] {
		t.hosts[a.Prefix.Addr()]--
	}
	delete(t.addresses, index)
	delete(t.fdb, index)
	delete(t.names, l.Name)
	delete(t.links, index)
}

func (t *table) addAddress(a kernel.Address) {
	t.addresses[a.Link] = append(t.addresses[a.Link], a)
	t.hosts[a.Prefix.Addr()]++
}

func (t *table) delAddress(index int, p netip.Prefix) {
	before := len(t.addresses[index])
	t.addresses[index] = slices.DeleteFunc(t.addresses[index], func(a kernel.Address) bool { return a.Prefix == p })
	t.hosts[p.Addr()] -= before - len(t.addresses[index])
}

func (t *table) addEntry(e kernel.FDBEntry) {
	f := t.fdb[e.Link]
	if f == nil {
		f = &entries{by: map[fdb.MAC][]kernel.FDBEntry{}}
		t.fdb[e.Link] = f
	}
	if _, there := f.by[e.MAC]; !there {
		f.order = append(f.order, e.MAC)
	}
	f.by[e.MAC] = append(f.by[e.MAC], e)
}

// delEntries forgets entries of one MAC in the link's own table.
func (t *table) delEntries(link int, mac fdb.MAC, which func(kernel.FDBEntry) bool) {
	f := t.fdb[link]
	if f == nil {
		return
	}
	left := slices.DeleteFunc(f.by[mac], func(e kernel.FDBEntry) bool { return e.Self && which(e) })
	if f.by[mac] = left; len(left) == 0 {
		delete(f.by, mac)
	}
}

// find returns the link of that name, nil if there is none.
func (t *table) find(name string) *kernel.Link {
	if i, ok := t.names[name]; ok {
		return t.links[i]
	}
	return nil
}

func (t *table) name(index int) string {
	if l := t.links[index]; l != nil && index != 0 {
		return l.Name
	}
	return ""
}

// portsOf are the names of the ports of a bridge, sorted.
func (t *table) portsOf(bridge int) []string {
	var names []string
	for i := range t.ports[bridge] {
		names = append(names, t.links[i].Name)
	}
	slices.Sort(names)
	return names
}

func (t *table) addressesOf(index int) []netip.Prefix {
	var ps []netip.Prefix
	for _, a := range t.addresses[index] {
		ps = append(ps, a.Prefix)
	}
	return ps
}

// remotesOf is Snapshot.RemotesOf.
func (t *table) remotesOf(index int) []netip.Addr {
	f, l := t.fdb[index], t.links[index]
	if f == nil {
		return nil
	}
	var rs []netip.Addr
	for _, e := range f.by[fdb.MAC{}] {
		if e.Self && e.Dst.IsValid() && !e.Dst.IsMulticast() && plain(l, e) {
			rs = append(rs, e.Dst)
		}
	}
	return rs
}

// staticOf is the static entry of a MAC: not learned, not from a control plane.
func (t *table) staticOf(index int, mac fdb.MAC) (Static, bool) {
	f, l := t.fdb[index], t.links[index]
	if f == nil || mac.IsZero() {
		return Static{}, false
	}
	for _, e := range f.by[mac] {
		if e.Self && e.Static && !e.Extern && e.Dst.IsValid() && plain(l, e) {
			return Static{MAC: e.MAC, VTEP: e.Dst}, true
		}
	}
	return Static{}, false
}

// staticsOf are all of a link, in the kernel's order.
func (t *table) staticsOf(index int) []Static {
	f := t.fdb[index]
	if f == nil {
		return nil
	}
	var es []Static
	seen := make(map[fdb.MAC]bool, len(f.order))
	for _, m := range f.order {
		if s, ok := t.staticOf(index, m); ok && !seen[m] {
			es = append(es, s)
		}
		seen[m] = true
	}
	return es
}

// state captures a link. IPv6 link-local addresses are left out: the kernel
// makes them itself when the link comes up.
func (t *table) state(l kernel.Link) LinkState {
	st := LinkState{
		Index: l.Index, Kind: l.Kind, MAC: l.MAC, MTU: l.MTU, Up: l.Up, Master: t.name(l.Master),
		Bridge: copied(l.Bridge), VXLAN: copied(l.VXLAN), Statics: t.staticsOf(l.Index),
	}
	if l.Kind == kindBridge {
		st.Ports = t.portsOf(l.Index)
	}
	for _, p := range t.addressesOf(l.Index) {
		if p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast() {
			st.Addresses = append(st.Addresses, p)
		}
	}
	for _, r := range t.remotesOf(l.Index) {
		if l.VXLAN == nil || r != l.VXLAN.Group {
			st.Remotes = append(st.Remotes, r)
		}
	}
	return st
}
