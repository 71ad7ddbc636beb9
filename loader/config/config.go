// SPDX-License-Identifier: Apache-2.0

// Package config turns the bytes of a config.yaml into a checked Config. It
// touches bytes only: whether a device exists is for the packages that look at
// the host.
package config

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Config is one host's configuration, checked: every value is in range and no
// two networks contradict each other. Load and Parse make it; one built by
// hand is unchecked, and its ErrorAt knows the file only.
type Config struct {
	// Underlay holds the defaults that each network may override.
	Underlay Underlay
	Datapath Datapath
	// VLANTags, MSSClamp and BypassNetfilter are defaults that each network may override.
	VLANTags        int
	MSSClamp        int
	BypassNetfilter bool
	// Metrics is where the daemon serves metrics: "HOST:PORT" with an address
	// literal or no host, or "unix:PATH". Empty: nowhere.
	Metrics string
	// Sources is the default of those networks that have the family of its prefixes.
	Sources Sources
	Log     Log
	// Networks in the order of the file. At least one.
	Networks []Network
	// File is where the bytes came from, for messages.
	File string

	src *source // nil in a Config built by hand
}

// Text is the file's content as it was read, nil in a Config built by hand.
func (c *Config) Text() []byte {
	if c.src == nil {
		return nil
	}
	return bytes.Clone(c.src.bytes)
}

// Network returns the network of that name, nil if there is none.
func (c *Config) Network(name string) *Network {
	for i := range c.Networks {
		if c.Networks[i].Name == name {
			return &c.Networks[i]
		}
	}
	return nil
}

// Underlay says how outer packets leave the host.
type Underlay struct {
	// Device is the link that leads to the other hosts. Never empty in a
	// Network; empty in Config.Underlay when each network names its own.
	Device string
	// Local is the outer source address. Invalid: the first address of Device
	// in the family of the network's remotes or group.
	Local netip.Addr
	Port  uint16 // UDP destination port, host order
	// TTL is the outer TTL or hop limit, 1..255. 0: auto, the kernel's default
	// for unicast, unless TTLInherit. A Network with a Group never has 1, and 0
	// only with TTLInherit: the kernel would send with 1, so auto becomes
	// DefaultGroupTTL.
	TTL        int
	TTLInherit bool // copied from the inner IP packet; TTL is 0
	// TOS is the outer TOS or traffic class, 0..255, its ECN bits 0.
	TOS        int
	TOSInherit bool // DSCP copied from the inner IP packet; TOS is 0
	DF         DF   // not DFUnset over IPv4 only
	FlowLabel  uint32
	// SourceLow, SourceHigh bound the UDP source port, host order: the kernel
	// takes SourceLow up to SourceHigh-1. 0, 0: the system's local port range.
	SourceLow, SourceHigh uint16
	// UDPChecksum: send an outer UDP checksum. nil: not given.
	UDPChecksum *bool
	// MTU of the underlay path in bytes. 0: the device's.
	MTU int
	// Given tells a default that the file spells out, which an adopted link
	// gets, from one that nobody wrote, which leaves the link as found.
	Given Given
}

// Given is a set of keys of an Underlay.
type Given uint8

// The keys whose zero value may be given.
const (
	GivenTOS Given = 1 << iota
	GivenDF
	GivenFlowLabel
)

// DF says which outer IPv4 packets must not be fragmented on their way.
type DF string

// The values of DF.
const (
	DFUnset   DF = "unset"   // none
	DFSet     DF = "set"     // all
	DFInherit DF = "inherit" // those of inner IPv4 packets that say so, and of all inner IPv6 packets
)

// Values of MSSClamp other than a size.
const (
	MSSOff  = 0
	MSSAuto = -1
)

// Datapath is what may carry the known unicast of a network.
type Datapath string

// The datapaths.
const (
	Auto   Datapath = "auto"   // BPF where it loads, else kernel, and say so
	TC     Datapath = "tc"     // BPF at tc hooks; an error if it does not load
	XDP    Datapath = "xdp"    // TC, and XDP wherever a driver runs it, at whatever cost
	Kernel Datapath = "kernel" // plain vxlan links
)

// Log says how the daemon logs.
type Log struct {
	Level  string // debug, info, warn, error
	Format string // text, json
}

// Network is one overlay segment: a VNI, the bridge it belongs to, the vxlan
// link that joins the two.
type Network struct {
	Name   string
	VNI    fdb.VNI
	Bridge Bridge
	Link   string // name of the vxlan device, default encap-<name>
	// Underlay is complete: the network's own values over those of the host.
	Underlay Underlay
	// Datapath is complete too, and so are the next three.
	Datapath Datapath
	// VLANTags is how many 802.1Q or 802.1ad tags inner frames may carry, 0..2.
	VLANTags int
	// MSSClamp is the largest TCP MSS in bytes that SYN packets may announce over inner
	// IPv4, 536..65495; over inner IPv6 it is 20 less. MSSOff, or MSSAuto: what the MTU leaves.
	MSSClamp int
	// BypassNetfilter lets BPF carry packets past rules that they would meet on
	// the kernel's way.
	BypassNetfilter bool
	// Sources are who may send to the network, besides Remotes and the VTEPs of FDB.
	Sources Sources
	// Group is a multicast group for BUM traffic, invalid if unused.
	Group netip.Addr
	// Remotes get a copy of each BUM frame (head-end replication). Group and
	// Remotes may both be given (a migration), or neither (static entries, or a
	// control plane that fills the kernel's FDB). One family per network.
	Remotes []netip.Addr
	FDB     []StaticEntry
	// MTU of vxlan link and bridge in bytes. 0: the underlay's MTU less Overhead.
	MTU      int
	Learning bool
	// Ageing of learned entries, in the bridge and in the vxlan device, whole
	// seconds. 0 means "never". The vxlan driver reads 0 the same way; a bridge
	// does not: to it 0 means "at once", so never write 0 to one.
	Ageing time.Duration
}

// Overhead is what encapsulation adds to an inner IP packet, in bytes, with the
// VLAN tags before it, and the same for people.
func (n *Network) Overhead(v6 bool) (bytes int, text string) {
	bytes = Overhead(v6)
	switch n.VLANTags {
	case 0:
		return bytes, fmt.Sprintf("%d bytes of encapsulation", bytes)
	case 1:
		return bytes + vlanTag, fmt.Sprintf("%d + %d bytes of encapsulation and VLAN tag", bytes, vlanTag)
	}
	tags := n.VLANTags * vlanTag
	return bytes + tags, fmt.Sprintf("%d + %d bytes of encapsulation and VLAN tags", bytes, tags)
}

const vlanTag = 4 // bytes, IEEE 802.1Q

// V6 reports whether outer packets of the network are IPv6. False when nothing
// in the file says so.
func (n *Network) V6() bool { return n.outer().Is6() }

// outer is an outer address of the network, invalid if the file has none.
func (n *Network) outer() netip.Addr {
	switch {
	case n.Group.IsValid():
		return n.Group
	case len(n.Remotes) > 0:
		return n.Remotes[0]
	case n.Underlay.Local.IsValid():
		return n.Underlay.Local
	case len(n.FDB) > 0:
		return n.FDB[0].VTEP
	}
	return netip.Addr{}
}

// Sources says which outer sources may send to a network: packets from others
// are dropped before the kernel decapsulates them.
type Sources struct {
	// Given: Prefixes is the whole list. Else the group, or a control plane,
	// adds to the remotes: see the loader.
	Given    bool
	Any      bool           // whoever reaches us: no check
	Prefixes []netip.Prefix // masked
}

// Bridge says what the ifupdown stanza of the bridge said.
type Bridge struct {
	Name string
	// Addresses of this host on the bridge, host part kept.
	Addresses    []netip.Prefix
	STP          *bool          // nil: leave as found, off on a bridge that we make
	ForwardDelay *time.Duration // multiple of 10 ms; nil: leave as found, 0 on a bridge that we make
}

// What a key means that is not given.
const (
	DefaultPort     = 4789 // UDP, RFC 7348 section 5; the kernel's own default is 8472
	DefaultGroupTTL = 5    // with a multicast group
	DefaultAgeing   = 300 * time.Second
)

// StaticEntry is a configured forwarding entry: frames to MAC go to VTEP.
type StaticEntry struct {
	MAC  fdb.MAC
	VTEP netip.Addr
}

// Overhead is what encapsulation adds to an inner IP packet, in bytes: inner
// Ethernet 14, VXLAN 8, UDP 8, and the outer IP header (RFC 7348 section 5).
func Overhead(v6 bool) int {
	if v6 {
		return 70
	}
	return 50
}
