// SPDX-License-Identifier: Apache-2.0

// Package reconcile compares the wanted state of a host (config.Config) with
// what is there (Snapshot) and with what vxbpf itself made or changed (Owned),
// says in a Plan what would have to happen, and makes it happen through the
// small interface Kernel. It is pure: it reads no file, opens no socket, and
// knows netlink only as the types of package kernel.
//
// Three promises hold throughout. A link that is not in the config and was
// not made by vxbpf is never touched. Nothing is applied of a plan that has a
// conflict, and an Apply that fails leaves the host as it was. What vxbpf made
// or changed stands in Owned before it is done, so Unload finds it after a kill.
package reconcile

import (
	"net/netip"
	"slices"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// The rtnetlink kinds of link that this package makes.
const (
	kindBridge = "bridge"
	kindVXLAN  = "vxlan"
)

// Snapshot is what the host looks like at one moment.
type Snapshot struct {
	Links     []kernel.Link
	Addresses []kernel.Address
	FDB       []kernel.FDBEntry
}

// Link returns the link of that name.
func (s Snapshot) Link(name string) (kernel.Link, bool) {
	if l := s.find(name); l != nil {
		return *l, true
	}
	return kernel.Link{}, false
}

// ByIndex returns the link with that ifindex.
func (s Snapshot) ByIndex(index int) (kernel.Link, bool) {
	for _, l := range s.Links {
		if l.Index == index && index != 0 {
			return l, true
		}
	}
	return kernel.Link{}, false
}

// Name returns the name of the link with that ifindex, "" if there is none.
func (s Snapshot) Name(index int) string {
	l, _ := s.ByIndex(index)
	return l.Name
}

// Ports returns the names of the ports of a bridge, sorted.
func (s Snapshot) Ports(bridge int) []string {
	var names []string
	for _, l := range s.Links {
		if bridge != 0 && l.Master == bridge {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return names
}

// AddressesOf returns the addresses of a link in the order of the kernel.
func (s Snapshot) AddressesOf(index int) []netip.Prefix {
	var ps []netip.Prefix
	for _, a := range s.Addresses {
		if a.Link == index {
			ps = append(ps, a.Prefix)
		}
	}
	return ps
}

// HasAddress reports whether any link has the IP address.
func (s Snapshot) HasAddress(ip netip.Addr) bool {
	return slices.ContainsFunc(s.Addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == ip })
}

// RemotesOf returns the default remotes of a vxlan link: the destinations
// under the all-zero MAC, without the one that is the link's own group or
// remote attribute when that is a multicast group.
func (s Snapshot) RemotesOf(index int) []netip.Addr {
	l, _ := s.ByIndex(index)
	var rs []netip.Addr
	for _, e := range s.FDB {
		if e.Link != index || !e.Self || !e.MAC.IsZero() || !e.Dst.IsValid() || e.Dst.IsMulticast() || !plain(l, e) {
			continue
		}
		rs = append(rs, e.Dst)
	}
	return rs
}

// StaticsOf returns the static entries of a vxlan link that someone put there
// by hand: not learned, not from a control plane, not the default remotes.
func (s Snapshot) StaticsOf(index int) []Static {
	l, _ := s.ByIndex(index)
	var es []Static
	for _, e := range s.FDB {
		if e.Link != index || !e.Self || e.MAC.IsZero() || !e.Static || e.Extern || !e.Dst.IsValid() || !plain(l, e) {
			continue
		}
		es = append(es, Static{MAC: e.MAC, VTEP: e.Dst})
	}
	return es
}

// plain reports an FDB entry that sends with the VNI, UDP port and device of
// its own link. Only such entries can be what a config asks for.
func plain(l kernel.Link, e kernel.FDBEntry) bool {
	if e.NextHop != 0 {
		return false
	}
	if l.VXLAN == nil {
		return e.Port == 0 && e.VNI == 0 && e.IfIndex == 0
	}
	return (e.Port == 0 || e.Port == l.VXLAN.Port) && (e.VNI == 0 || e.VNI == l.VXLAN.VNI) &&
		(e.IfIndex == 0 || e.IfIndex == l.VXLAN.Device)
}

func (s Snapshot) find(name string) *kernel.Link {
	for i := range s.Links {
		if s.Links[i].Name == name {
			return &s.Links[i]
		}
	}
	return nil
}

// clone makes a copy that can be changed without the original noticing.
func (s Snapshot) clone() Snapshot {
	c := Snapshot{Links: slices.Clone(s.Links), Addresses: slices.Clone(s.Addresses), FDB: slices.Clone(s.FDB)}
	for i := range c.Links {
		l := &c.Links[i]
		l.Bridge, l.VXLAN, l.Port = copied(l.Bridge), copied(l.VXLAN), copied(l.Port)
	}
	return c
}

func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// Static is a static entry of a vxlan link: frames to MAC go to VTEP.
type Static struct {
	MAC  fdb.MAC    `json:"mac"`
	VTEP netip.Addr `json:"vtep"`
}

// LinkState is what it takes to make a link again after it was deleted, as
// far as Kernel can set it. Learned entries and bridge port flags are not in it.
type LinkState struct {
	Index     int            `json:"index"` // ifindex it had
	Kind      string         `json:"kind"`
	MAC       fdb.MAC        `json:"mac"`
	MTU       int            `json:"mtu"`
	Up        bool           `json:"up"`
	Master    string         `json:"master,omitempty"` // name of the bridge it was a port of
	Bridge    *kernel.Bridge `json:"bridge,omitempty"`
	VXLAN     *kernel.VXLAN  `json:"vxlan,omitempty"`
	Ports     []string       `json:"ports,omitempty"` // of a bridge
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Remotes   []netip.Addr   `json:"remotes,omitempty"`
	Statics   []Static       `json:"statics,omitempty"`
}

// state captures a link. IPv6 link-local addresses are left out: the kernel
// makes them itself when the link comes up.
func (s Snapshot) state(l kernel.Link) LinkState {
	st := LinkState{
		Index: l.Index, Kind: l.Kind, MAC: l.MAC, MTU: l.MTU, Up: l.Up, Master: s.Name(l.Master),
		Bridge: copied(l.Bridge), VXLAN: copied(l.VXLAN), Statics: s.StaticsOf(l.Index),
	}
	if l.Kind == kindBridge {
		st.Ports = s.Ports(l.Index)
	}
	for _, p := range s.AddressesOf(l.Index) {
		if p.Addr().Is4() || !p.Addr().IsLinkLocalUnicast() {
			st.Addresses = append(st.Addresses, p)
		}
	}
	for _, r := range s.RemotesOf(l.Index) {
		if l.VXLAN == nil || r != l.VXLAN.Group {
			st.Remotes = append(st.Remotes, r)
		}
	}
	return st
}
