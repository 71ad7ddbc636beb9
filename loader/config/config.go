// SPDX-License-Identifier: Apache-2.0

// Package config turns the bytes of a config.yaml into a checked Config. It
// touches bytes only: whether a device exists is for the packages that look at
// the host.
package config

import (
	"net/netip"
	"time"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Config is one host's configuration, checked: every value is in range and no
// two networks contradict each other.
type Config struct {
	// Underlay holds the defaults that each network may override.
	Underlay Underlay
	Datapath Datapath
	Log      Log
	// Networks in the order of the file. At least one.
	Networks []Network
	// File is where the bytes came from, for messages.
	File string
}

// Underlay says how outer packets leave the host.
type Underlay struct {
	Device string
	// Local is the outer source address. Invalid: the first address of Device
	// in the family of the network's remotes or group.
	Local netip.Addr
	Port  uint16 // UDP destination port, host order
	// TTL is the outer TTL or hop limit, 1..255. 0: the kernel's default (1 for a multicast group).
	TTL int
	// MTU of the underlay path in bytes. 0: the device's.
	MTU int
}

// Datapath is what may carry the known unicast of a network.
type Datapath string

// The datapaths.
const (
	Auto   Datapath = "auto"   // BPF where it loads, else kernel, and say so
	TC     Datapath = "tc"     // BPF at tc hooks; an error if it does not load
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
	Name     string
	VNI      fdb.VNI
	Bridge   Bridge
	Link     string // name of the vxlan device, default encap-<name>
	Underlay Underlay
	Datapath Datapath
	// Group is a multicast group for BUM traffic, invalid if unused.
	Group netip.Addr
	// Remotes get a copy of each BUM frame (head-end replication).
	Remotes []netip.Addr
	FDB     []StaticEntry
	// MTU of vxlan link and bridge in bytes. 0: the underlay's MTU less the encapsulation overhead.
	MTU      int
	Learning bool
	// Ageing of learned entries, in the bridge and in the vxlan device. 0 in the file means "never".
	Ageing time.Duration
}

// Bridge says what the ifupdown stanza of the bridge said.
type Bridge struct {
	Name         string
	Addresses    []netip.Prefix
	STP          *bool          // nil: leave as found, off on a bridge that we make
	ForwardDelay *time.Duration // nil: leave as found, 0 on a bridge that we make
}

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
