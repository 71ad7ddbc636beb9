// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Owned is the record of what vxbpf made or changed on this host, so that
// Unload removes exactly that and puts back what it changed. Links are named
// by name and ifindex together: a link that someone else deleted and made
// again has another ifindex and is not ours any more. Ifindexes mean nothing
// after a reboot, so keep the record where a reboot clears it (/run).
//
// An entry whose object does not exist does no harm; it is dropped by the next
// plan.
type Owned struct {
	Links     []OwnedLink    `json:"links,omitempty"`
	Ports     []OwnedPort    `json:"ports,omitempty"`
	Addresses []OwnedAddress `json:"addresses,omitempty"`
	Remotes   []OwnedRemote  `json:"remotes,omitempty"`
	Statics   []OwnedStatic  `json:"statics,omitempty"`
	Changes   []OwnedChange  `json:"changes,omitempty"`
}

// OwnedLink is a link that vxbpf made.
type OwnedLink struct {
	Name string `json:"name"`
	// Index is the ifindex. 0: about to be made, or made by a process that was
	// killed before it could write the ifindex down; then name, kind, VNI and
	// UDP port tell.
	Index int     `json:"index"`
	Kind  string  `json:"kind"`
	VNI   fdb.VNI `json:"vni,omitempty"`  // of a vxlan link
	Port  uint16  `json:"port,omitempty"` // of a vxlan link
	// Replaced is the link of that name that was there before and was
	// recreated on request (Options.Recreate). Unload makes it again.
	Replaced *LinkState `json:"replaced,omitempty"`
}

// OwnedPort is a link that vxbpf put into a bridge.
type OwnedPort struct {
	Link        string `json:"link"`
	Index       int    `json:"index"`
	Bridge      string `json:"bridge"`
	BridgeIndex int    `json:"bridge_index"`
}

// OwnedAddress is an address that vxbpf added.
type OwnedAddress struct {
	Link   string       `json:"link"`
	Index  int          `json:"index"`
	Prefix netip.Prefix `json:"prefix"`
}

// OwnedRemote is a default remote that vxbpf added.
type OwnedRemote struct {
	Link   string     `json:"link"`
	Index  int        `json:"index"`
	Remote netip.Addr `json:"remote"`
}

// OwnedStatic is a static entry that vxbpf added.
type OwnedStatic struct {
	Link  string     `json:"link"`
	Index int        `json:"index"`
	MAC   fdb.MAC    `json:"mac"`
	VTEP  netip.Addr `json:"vtep"`
	// Previous is where someone else's static entry for this MAC pointed
	// before; invalid if there was none.
	Previous netip.Addr `json:"previous"`
}

// OwnedChange is an attribute that vxbpf changed on a link it did not make.
type OwnedChange struct {
	Link  string `json:"link"`
	Index int    `json:"index"`
	Attr  Attr   `json:"attr"`
	Old   string `json:"old"` // what to put back
	New   string `json:"new"` // what vxbpf set; if it is something else now, it is not ours to put back
}

// Empty reports that vxbpf made and changed nothing.
func (o Owned) Empty() bool {
	return len(o.Links)+len(o.Ports)+len(o.Addresses)+len(o.Remotes)+len(o.Statics)+len(o.Changes) == 0
}

// Clone returns a copy that shares nothing.
func (o Owned) Clone() Owned {
	c := Owned{
		Links: slices.Clone(o.Links), Ports: slices.Clone(o.Ports), Addresses: slices.Clone(o.Addresses),
		Remotes: slices.Clone(o.Remotes), Statics: slices.Clone(o.Statics), Changes: slices.Clone(o.Changes),
	}
	for i := range c.Links {
		c.Links[i].Replaced = copied(c.Links[i].Replaced)
	}
	return c
}

// Made returns the record of a link if vxbpf made it.
func (o Owned) Made(l kernel.Link) (OwnedLink, bool) {
	for _, r := range o.Links {
		if r.is(l) {
			return r, true
		}
	}
	return OwnedLink{}, false
}

func (r OwnedLink) is(l kernel.Link) bool {
	if r.Name != l.Name || r.Kind != l.Kind || r.Replaced != nil && r.Replaced.Index == l.Index {
		return false
	}
	if r.Index != 0 || l.VXLAN == nil {
		return r.Index == l.Index || r.Index == 0
	}
	return r.VNI == l.VXLAN.VNI && r.Port == l.VXLAN.Port
}

func (o Owned) port(l kernel.Link) (OwnedPort, bool) {
	return first(o.Ports, func(r OwnedPort) bool {
		return r.Link == l.Name && r.Index == l.Index && r.BridgeIndex == l.Master
	})
}

func (o Owned) change(l kernel.Link, a Attr) (OwnedChange, bool) {
	return first(o.Changes, func(r OwnedChange) bool { return r.Link == l.Name && r.Index == l.Index && r.Attr == a })
}

func (o Owned) static(l kernel.Link, m fdb.MAC) (OwnedStatic, bool) {
	return first(o.Statics, func(r OwnedStatic) bool { return r.Link == l.Name && r.Index == l.Index && r.MAC == m })
}

func first[T any](s []T, f func(T) bool) (T, bool) {
	if i := slices.IndexFunc(s, f); i >= 0 {
		return s[i], true
	}
	var zero T
	return zero, false
}

// prune returns the record without what is not there any more, or is not what
// vxbpf set.
func (o Owned) prune(s Snapshot) Owned {
	live := func(name string, index int) (kernel.Link, bool) {
		l, ok := s.Link(name)
		return l, ok && l.Index == index
	}
	var n Owned
	for _, r := range o.Links {
		l, ok := s.Link(r.Name)
		switch {
		case ok && r.is(l):
			r.Index = l.Index
		case !ok && r.Index == 0 && r.Replaced != nil: // killed between delete and create
		default:
			continue
		}
		// Killed while rolling back, it may be there twice, from before and from after.
		i := slices.IndexFunc(n.Links, func(q OwnedLink) bool { return q.Name == r.Name && q.Kind == r.Kind })
		switch {
		case i < 0:
			n.Links = append(n.Links, r)
		case n.Links[i].Replaced == nil:
			n.Links[i] = r
		}
	}
	for _, r := range o.Ports {
		b, ok := s.ByIndex(r.BridgeIndex)
		if l, live := live(r.Link, r.Index); ok && live && l.Master == r.BridgeIndex && b.Name == r.Bridge {
			n.Ports = append(n.Ports, r)
		}
	}
	for _, r := range o.Addresses {
		if l, ok := live(r.Link, r.Index); ok && slices.Contains(s.AddressesOf(l.Index), r.Prefix) {
			n.Addresses = append(n.Addresses, r)
		}
	}
	for _, r := range o.Remotes {
		if l, ok := live(r.Link, r.Index); ok && slices.Contains(s.RemotesOf(l.Index), r.Remote) {
			n.Remotes = append(n.Remotes, r)
		}
	}
	for _, r := range o.Statics {
		if l, ok := live(r.Link, r.Index); ok && slices.Contains(s.StaticsOf(l.Index), Static{r.MAC, r.VTEP}) {
			n.Statics = append(n.Statics, r)
		}
	}
	for _, r := range o.Changes {
		if l, ok := live(r.Link, r.Index); ok && sameValue(r.Attr, s.attr(l, r.Attr), r.New) {
			n.Changes = append(n.Changes, r)
		}
	}
	return n
}

// dropLink forgets a link and everything recorded about it or on it.
func (o *Owned) dropLink(name string, index int) {
	o.Links = slices.DeleteFunc(o.Links, func(r OwnedLink) bool { return r.Name == name && r.Index == index })
	o.dropParts(name, index)
}

// dropParts forgets what is recorded on a link, but not the link.
func (o *Owned) dropParts(name string, index int) {
	o.Ports = slices.DeleteFunc(o.Ports, func(r OwnedPort) bool {
		return r.Link == name && r.Index == index || r.Bridge == name && r.BridgeIndex == index
	})
	o.Addresses = slices.DeleteFunc(o.Addresses, func(r OwnedAddress) bool { return r.Link == name && r.Index == index })
	o.Remotes = slices.DeleteFunc(o.Remotes, func(r OwnedRemote) bool { return r.Link == name && r.Index == index })
	o.Statics = slices.DeleteFunc(o.Statics, func(r OwnedStatic) bool { return r.Link == name && r.Index == index })
	o.Changes = slices.DeleteFunc(o.Changes, func(r OwnedChange) bool { return r.Link == name && r.Index == index })
}

// reindex follows links that got another ifindex because they were deleted
// and, when that was rolled back, made again.
func (o *Owned) reindex(moved map[int]int) {
	set := func(i *int) {
		if n, ok := moved[*i]; ok {
			*i = n
		}
	}
	for i := range o.Links {
		set(&o.Links[i].Index)
	}
	for i := range o.Ports {
		set(&o.Ports[i].Index)
		set(&o.Ports[i].BridgeIndex)
	}
	for i := range o.Addresses {
		set(&o.Addresses[i].Index)
	}
	for i := range o.Remotes {
		set(&o.Remotes[i].Index)
	}
	for i := range o.Statics {
		set(&o.Statics[i].Index)
	}
	for i := range o.Changes {
		set(&o.Changes[i].Index)
	}
}

// merge adds the records of p that o does not have.
func (o *Owned) Merge(p Owned) {
	for _, r := range p.Links {
		if !slices.ContainsFunc(o.Links, func(q OwnedLink) bool { return q.Name == r.Name && q.Index == r.Index }) {
			o.Links = append(o.Links, r)
		}
	}
	o.Ports = union(o.Ports, p.Ports)
	o.Addresses = union(o.Addresses, p.Addresses)
	o.Remotes = union(o.Remotes, p.Remotes)
	o.Statics = union(o.Statics, p.Statics)
	o.Changes = union(o.Changes, p.Changes)
}

func union[T comparable](a, b []T) []T {
	for _, x := range b {
		if !slices.Contains(a, x) {
			a = append(a, x)
		}
	}
	return a
}

// sort gives the record one order, so that equal records have equal JSON.
func (o *Owned) sort() {
	slices.SortFunc(o.Links, func(a, b OwnedLink) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Index, b.Index))
	})
	slices.SortFunc(o.Ports, func(a, b OwnedPort) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Index, b.Index))
	})
	slices.SortFunc(o.Addresses, func(a, b OwnedAddress) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Index, b.Index), a.Prefix.Compare(b.Prefix))
	})
	slices.SortFunc(o.Remotes, func(a, b OwnedRemote) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Index, b.Index), a.Remote.Compare(b.Remote))
	})
	slices.SortFunc(o.Statics, func(a, b OwnedStatic) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Index, b.Index), cmp.Compare(a.MAC.String(), b.MAC.String()))
	})
	slices.SortFunc(o.Changes, func(a, b OwnedChange) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Attr, b.Attr))
	})
}
