// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"time"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Link is one network interface as the kernel reports it.
type Link struct {
	Index  int
	Name   string
	Kind   string // rtnetlink kind: "bridge", "vxlan", "veth", "tun", "" for hardware
	MAC    fdb.MAC
	MTU    int  // bytes, Ethernet header excluded
	Up     bool // IFF_UP, the administrative state
	Master int  // ifindex of the bridge it is a port of, 0 if none
	// PeerElsewhere: a veth whose other end lives in another network namespace
	// (IFLA_LINK_NETNSID present).
	PeerElsewhere bool
	// PeerNS is this namespace's number for the one of the peer, where PeerElsewhere.
	PeerNS int
	// Peer is the ifindex of a veth's other end, in the namespace of that end. 0 if not a veth.
	Peer    int
	Carrier bool   // IFF_LOWER_UP
	Alias   string // IFLA_IFALIAS
	// XDP is the id of an XDP program on the link, 0 for none; of several, one.
	XDP uint32

	Bridge *Bridge // set when Kind is "bridge"
	VXLAN  *VXLAN  // set when Kind is "vxlan"
	Port   *Port   // set when the link is a bridge port
}

// Bridge holds the attributes of a bridge device.
type Bridge struct {
	STP           bool
	ForwardDelay  time.Duration
	Ageing        time.Duration
	VLANFiltering bool
	// NFCallIPTables, NFCallIP6Tables, NFCallARPTables: this bridge hands its
	// frames to the layer 3 netfilter hooks whatever the sysctls say.
	NFCallIPTables  bool
	NFCallIP6Tables bool
	NFCallARPTables bool
	// GroupFwdMask is the set of 01:80:c2:00:00:0X addresses that the bridge
	// forwards although they are link-local, bit X for address X.
	GroupFwdMask uint16
}

// VXLAN holds the attributes of a vxlan device.
type VXLAN struct {
	VNI      fdb.VNI
	Device   int        // ifindex of the underlay device, 0 if none
	Local    netip.Addr // outer source address, invalid if unset
	Group    netip.Addr // multicast group or single remote, invalid if unset
	Port     uint16     // UDP destination port, host order
	TTL      int        // 0: kernel default (1 for multicast, route default for unicast)
	TOS      int        // 1: inherit
	DF       int        // 0 unset, 1 set, 2 inherit; of outer IPv4 packets
	Learning bool
	Ageing   time.Duration // in steps of 1 s. 0: never
	// SrcLow, SrcHigh are the UDP source port range, host order: SrcLow up to
	// SrcHigh-1. Where that is empty, as in 0,0: the system's local port range.
	SrcLow   uint16
	SrcHigh  uint16
	UDPCsum  bool // outer UDP checksum on an IPv4 underlay
	External bool // collect-metadata: it has no VNI of its own
	GBP      bool
	GPE      bool
	// TTLInherit: the outer TTL is copied from the inner packet, TTL is 0.
	TTLInherit bool
	// UDPZeroCsum6TX, UDPZeroCsum6RX: no outer UDP checksum sent, none wanted, on an IPv6 underlay (RFC 6935).
	UDPZeroCsum6TX bool
	UDPZeroCsum6RX bool
	Proxy          bool // the device answers ARP and ND from its neighbour table
	RSC            bool // route short circuit: it rewrites inner MACs
	L2Miss, L3Miss bool // misses are told to user space
	RemCsum        bool // remote checksum offload, either way: a VXLAN header bit in use
	VNIFilter      bool // External with a list of VNIs
	FlowLabel      uint32
	LabelInherit   bool   // the flow label is copied from the inner IPv6 packet (6.8)
	MaxAddresses   uint32 // of the forwarding table. 0: no limit
	NoLocalBypass  bool   // what is for a VTEP on this host is sent like the rest (6.5)
}

// V6 reports an IPv6 underlay.
func (v *VXLAN) V6() bool { return v.Local.Is6() || v.Group.Is6() }

// Port holds the attributes of a bridge port.
type Port struct {
	State         PortState
	Isolated      bool
	Hairpin       bool
	Learning      bool
	UnicastFlood  bool
	Locked        bool
	NeighSuppress bool
	MAB           bool // MAC authentication bypass: entries learned on the locked port wait for leave
	VLANTunnel    bool // VLAN to tunnel id mapping in use
	BackupPort    int  // ifindex of the port that takes over without carrier, 0 if none
}

// PortState is the spanning tree state of a bridge port (linux/if_bridge.h).
type PortState uint8

// Port states as in linux/if_bridge.h.
const (
	PortDisabled PortState = iota
	PortListening
	PortLearning
	PortForwarding
	PortBlocking
)

// FDBEntry is one line of `bridge fdb show`.
type FDBEntry struct {
	MAC    fdb.MAC
	Link   int // ifindex of the bridge port or vxlan device
	Bridge int // ifindex of the bridge, 0 if none
	// Self: the entry stands in the vxlan device's own table (NTF_SELF), and
	// Dst says where the MAC lives. Not Self: it stands in the bridge's table.
	Self bool
	Dst  netip.Addr
	// Local: the bridge takes frames to this MAC for the host itself (NUD_PERMANENT in the bridge's table).
	Local bool
	// Static entries never age (NUD_NOARP, or NUD_PERMANENT in a vxlan device's table).
	Static  bool
	Sticky  bool
	Extern  bool    // NTF_EXT_LEARNED: put there by a control plane
	Waiting bool    // NTF_EXT_LOCKED: seen on a locked port, frames to it are not forwarded
	VLAN    uint16  // 0 if none
	VNI     fdb.VNI // NDA_VNI or NDA_SRC_VNI if it differs from the device's, 0 if absent
	Port    uint16  // NDA_PORT, UDP port in host order if it differs from the device's, 0 if absent
	IfIndex int     // NDA_IFINDEX: a different egress device, 0 if absent
	NextHop uint32  // NDA_NH_ID, 0 if none
	// Age is the time since the kernel last had a frame from this MAC
	// (NDA_CACHEINFO ndm_updated for a bridge).
	Age time.Duration
	// Used is the time since the kernel last looked the MAC up to send to it (NDA_CACHEINFO ndm_used).
	Used time.Duration
}

// Address is one IP address of a link.
type Address struct {
	Link   int
	Prefix netip.Prefix // the address with the length of its subnet
	// Tentative: duplicate address detection has not ended or has failed; the kernel does not send from it.
	Tentative bool
}

// LinkLocal reports an address of 169.254.0.0/16 or fe80::/10.
func (a Address) LinkLocal() bool { return a.Prefix.Addr().IsLinkLocalUnicast() }

// Neighbour is one entry of the ARP or ND table.
type Neighbour struct {
	Link  int
	IP    netip.Addr
	MAC   fdb.MAC
	Valid bool // the kernel would send to this MAC now (NUD_VALID)
	Stale bool // valid but unconfirmed (NUD_STALE): using it starts a probe
	// Permanent: set by hand; the kernel never probes it (NUD_PERMANENT).
	Permanent bool
}

// Route is the kernel's answer to "how do I reach this VTEP".
type Route struct {
	Device int        // ifindex of the egress device
	Src    netip.Addr // preferred source
	// NextHop is the address to resolve: the gateway, or the destination itself when it is on link.
	NextHop netip.Addr
	MTU     int // route or learnt path MTU in bytes, outer IP header included; 0: the device's
	// HopLimit is the TTL that the route asks for; 0: the system's.
	HopLimit int
	Local    bool // the destination is an address of this host
}
