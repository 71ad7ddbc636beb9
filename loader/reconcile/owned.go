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

func (o Owned) change(l kernel.Link, a Attr) (OwnedChange, bool) {
	return first(o.Changes, func(r OwnedChange) bool { return r.Link == l.Name && r.Index == l.Index && r.Attr == a })
}

// records is an Owned made for looking things up.
type records struct {
	links     map[string][]OwnedLink
	ports     map[string][]OwnedPort // by the port's name
	addresses map[string][]OwnedAddress
	remotes   map[OwnedRemote]bool
	statics   map[staticKey]OwnedStatic
	changes   map[string][]OwnedChange
}

type staticKey struct {
	link  string
	index int
	mac   fdb.MAC
}

func (r OwnedStatic) key() staticKey { return staticKey{r.Link, r.Index, r.MAC} }

func (o Owned) index() *records {
	x := &records{links: map[string][]OwnedLink{}, ports: map[string][]OwnedPort{}, addresses: map[string][]OwnedAddress{},
		remotes: map[OwnedRemote]bool{}, statics: map[staticKey]OwnedStatic{}, changes: map[string][]OwnedChange{}}
	for _, r := range o.Links {
		x.links[r.Name] = append(x.links[r.Name], r)
	}
	for _, r := range o.Ports {
		x.ports[r.Link] = append(x.ports[r.Link], r)
	}
	for _, r := range o.Addresses {
		x.addresses[r.Link] = append(x.addresses[r.Link], r)
	}
	for _, r := range o.Remotes {
		x.remotes[r] = true
	}
	for _, r := range o.Statics {
		if _, twice := x.statics[r.key()]; !twice {
			x.statics[r.key()] = r
		}
	}
	for _, r := range o.Changes {
		x.changes[r.Link] = append(x.changes[r.Link], r)
	}
	return x
}

func (x *records) made(l kernel.Link) (OwnedLink, bool) { return Owned{Links: x.links[l.Name]}.Made(l) }

func (x *records) port(l kernel.Link) (OwnedPort, bool) {
	return first(x.ports[l.Name], func(r OwnedPort) bool { return r.Index == l.Index && r.BridgeIndex == l.Master })
}

func (x *records) change(l kernel.Link, a Attr) (OwnedChange, bool) {
	return Owned{Changes: x.changes[l.Name]}.change(l, a)
}

func (x *records) static(l kernel.Link, m fdb.MAC) (OwnedStatic, bool) {
	r, ok := x.statics[staticKey{l.Name, l.Index, m}]
	return r, ok
}

func first[T any](s []T, f func(T) bool) (T, bool) {
	if i := slices.IndexFunc(s, f); i >= 0 {
		return s[i], true
	}
	var zero T
	return zero, false
}

// prune returns the record without what is not there any more, or is not what
// vxbpf set. s is indexed.
func (o Owned) prune(s Snapshot) Owned {
	all := map[int]map[netip.Addr]bool{}
	remotes := func(index int) map[netip.Addr]bool {
		if all[index] == nil {
			all[index] = map[netip.Addr]bool{}
			for _, r := range s.RemotesOf(index) {
				all[index][r] = true
			}
		}
		return all[index]
	}
	at := map[[2]string]int{} // name and kind -> where in n.Links
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
		i, twice := at[[2]string{r.Name, r.Kind}]
		switch {
		case !twice:
			at[[2]string{r.Name, r.Kind}] = len(n.Links)
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
		if l, ok := live(r.Link, r.Index); ok && remotes(l.Index)[r.Remote] {
			n.Remotes = append(n.Remotes, r)
		}
	}
	for _, r := range o.Statics {
		if l, ok := live(r.Link, r.Index); ok {
			if is, there := s.at.staticOf(l.Index, r.MAC); there && is.VTEP == r.VTEP {
				n.Statics = append(n.Statics, r)
			}
		}
	}
	for _, r := range o.Changes {
		if l, ok := live(r.Link, r.Index); ok && sameValue(r.Attr, s.at.attr(l, r.Attr), r.New) {
			n.Changes = append(n.Changes, r)
		}
	}
	return n
}

// of is what is recorded of a link: itself and all on it.
func (o Owned) of(name string, index int) Owned {
	p := o.parts(name, index)
	for _, r := range o.Links {
		if r.Name == name && r.Index == index {
			p.Links = append(p.Links, r)
		}
	}
	return p
}

// parts is what is recorded on a link, but not the link.
func (o Owned) parts(name string, index int) (p Owned) {
	for _, r := range o.Ports {
		if r.Link == name && r.Index == index || r.Bridge == name && r.BridgeIndex == index {
			p.Ports = append(p.Ports, r)
		}
	}
	for _, r := range o.Addresses {
		if r.Link == name && r.Index == index {
			p.Addresses = append(p.Addresses, r)
		}
	}
	for _, r := range o.Remotes {
		if r.Link == name && r.Index == index {
			p.Remotes = append(p.Remotes, r)
		}
	}
	for _, r := range o.Statics {
		if r.Link == name && r.Index == index {
			p.Statics = append(p.Statics, r)
		}
	}
	for _, r := range o.Changes {
		if r.Link == name && r.Index == index {
			p.Changes = append(p.Changes, r)
		}
	}
	return p
}

// drop forgets records.
func (o *Owned) drop(d Owned) {
	if len(d.Links) > 0 {
		o.Links = without(o.Links, d.Links, OwnedLink.key)
	}
	if len(d.Ports) > 0 {
		o.Ports = without(o.Ports, d.Ports, self)
	}
	if len(d.Addresses) > 0 {
		o.Addresses = without(o.Addresses, d.Addresses, self)
	}
	if len(d.Remotes) > 0 {
		o.Remotes = without(o.Remotes, d.Remotes, self)
	}
	if len(d.Statics) > 0 {
		o.Statics = without(o.Statics, d.Statics, self)
	}
	if len(d.Changes) > 0 {
		o.Changes = without(o.Changes, d.Changes, self)
	}
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

// Merge adds the records of p that o does not have.
func (o *Owned) Merge(p Owned) { o.append(p.minus(*o)) }

func (o *Owned) append(p Owned) {
	o.Links = append(o.Links, p.Links...)
	o.Ports = append(o.Ports, p.Ports...)
	o.Addresses = append(o.Addresses, p.Addresses...)
	o.Remotes = append(o.Remotes, p.Remotes...)
	o.Statics = append(o.Statics, p.Statics...)
	o.Changes = append(o.Changes, p.Changes...)
}

// minus returns the records of o that p does not have.
func (o Owned) minus(p Owned) Owned {
	return Owned{
		Links: without(o.Links, p.Links, OwnedLink.key), Ports: without(o.Ports, p.Ports, self), Addresses: without(o.Addresses, p.Addresses, self),
		Remotes: without(o.Remotes, p.Remotes, self), Statics: without(o.Statics, p.Statics, self), Changes: without(o.Changes, p.Changes, self),
	}
}

// linkKey is what tells one record of a link from another.
type linkKey struct {
	name, kind string
	index      int
}

func (r OwnedLink) key() linkKey { return linkKey{r.Name, r.Kind, r.Index} }

func self[T any](x T) T { return x }

func without[T any, K comparable](a, b []T, key func(T) K) (out []T) {
	if len(b) == 0 {
		return slices.Clone(a)
	}
	have := make(map[K]bool, len(b))
	for _, x := range b {
		have[key(x)] = true
	}
	for _, x := range a {
		if !have[key(x)] {
			out = append(out, x)
		}
	}
	return out
}

// Delta is one step of the record: what it loses, then what it gains. Deltas can
// be played again over a record that has them already: the last word on each
// object stands.
type Delta struct {
	Drop Owned `json:"drop,omitzero"`
	Add  Owned `json:"add,omitzero"`
}

// Empty reports that it changes nothing.
func (d Delta) Empty() bool { return d.Drop.Empty() && d.Add.Empty() }

// then adds a later step.
func (d *Delta) then(e Delta) {
	d.Add.drop(e.Drop)
	d.Drop.append(e.Drop)
	d.Drop.drop(e.Add)
	d.Add.drop(e.Add) // the later one of a link
	d.Add.append(e.Add)
}

// Amend plays deltas in order.
func (o *Owned) Amend(deltas ...Delta) {
	var links list[linkKey, OwnedLink]
	var ports list[OwnedPort, OwnedPort]
	var addresses list[OwnedAddress, OwnedAddress]
	var remotes list[OwnedRemote, OwnedRemote]
	var statics list[OwnedStatic, OwnedStatic]
	var changes list[OwnedChange, OwnedChange]
	all := append([]Delta{{Add: *o}}, deltas...)
	for _, d := range all {
		links.play(d.Drop.Links, d.Add.Links, OwnedLink.key)
		ports.play(d.Drop.Ports, d.Add.Ports, self)
		addresses.play(d.Drop.Addresses, d.Add.Addresses, self)
		remotes.play(d.Drop.Remotes, d.Add.Remotes, self)
		statics.play(d.Drop.Statics, d.Add.Statics, self)
		changes.play(d.Drop.Changes, d.Add.Changes, self)
	}
	*o = Owned{Links: links.left(), Ports: ports.left(), Addresses: addresses.left(), Remotes: remotes.left(), Statics: statics.left(), Changes: changes.left()}
}

// list is a set in order.
type list[K comparable, T any] struct {
	all []T
	at  map[K]int
	out map[int]bool
}

func (l *list[K, T]) play(drop, add []T, key func(T) K) {
	if l.at == nil {
		l.at, l.out = map[K]int{}, map[int]bool{}
	}
	for _, x := range drop {
		if i, ok := l.at[key(x)]; ok {
			l.out[i] = true
			delete(l.at, key(x))
		}
	}
	for _, x := range add {
		if i, ok := l.at[key(x)]; ok {
			l.all[i] = x
			continue
		}
		l.at[key(x)] = len(l.all)
		l.all = append(l.all, x)
	}
}

func (l *list[K, T]) left() (out []T) {
	for i, x := range l.all {
		if !l.out[i] {
			out = append(out, x)
		}
	}
	return out
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
