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

	at *table // the same, indexed; nil: not yet
}

// indexed returns the snapshot with its index made, for more than a few questions.
func (s Snapshot) indexed() Snapshot {
	s.at = newTable(s)
	return s
}

func (s Snapshot) table() *table {
	if s.at == nil {
		return newTable(s)
	}
	return s.at
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
	if s.at != nil {
		if l := s.at.links[index]; l != nil && index != 0 {
			return *l, true
		}
		return kernel.Link{}, false
	}
	for i := range s.Links {
		if l := &s.Links[i]; l.Index == index && index != 0 {
			return *l, true
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
func (s Snapshot) Ports(bridge int) []string { return s.table().portsOf(bridge) }

// AddressesOf returns the addresses of a link in the order of the kernel.
func (s Snapshot) AddressesOf(index int) []netip.Prefix { return s.table().addressesOf(index) }

// HasAddress reports whether any link has the IP address.
func (s Snapshot) HasAddress(ip netip.Addr) bool { return s.table().hosts[ip] > 0 }

// RemotesOf returns the default remotes of a vxlan link: the destinations
// under the all-zero MAC, without the one that is the link's own group or
// remote attribute when that is a multicast group.
func (s Snapshot) RemotesOf(index int) []netip.Addr { return s.table().remotesOf(index) }

// StaticsOf returns the static entries of a vxlan link that someone put there
// by hand: not learned, not from a control plane, not the default remotes.
func (s Snapshot) StaticsOf(index int) []Static { return s.table().staticsOf(index) }

// plain reports an FDB entry that sends with the VNI, UDP port and device of
// its own link. Only such entries can be what a config asks for.
func plain(l *kernel.Link, e kernel.FDBEntry) bool {
	if e.NextHop != 0 {
		return false
	}
	if l == nil || l.VXLAN == nil {
		return e.Port == 0 && e.VNI == 0 && e.IfIndex == 0
	}
	return (e.Port == 0 || e.Port == l.VXLAN.Port) && (e.VNI == 0 || e.VNI == l.VXLAN.VNI) &&
		(e.IfIndex == 0 || e.IfIndex == l.VXLAN.Device)
}

func (s Snapshot) find(name string) *kernel.Link {
	if s.at != nil {
		return s.at.find(name)
	}
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
