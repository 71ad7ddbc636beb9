// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"strconv"

	"github.com/cilium/ebpf"
)

// What C and Go share; see types.h for the meaning, unit and byte order of each field.
type (
	FDBKey   = vxFdbKey
	FDBEntry = vxFdbEntry
	VNIKey   = vxVniKey
	Network  = vxNetwork
	Port     = vxPort
	VTEP     = vxVtep
	Control  = vxControl

	SourceKey   = vxSourceKey
	StrangerKey = vxStrangerKey
	Stranger    = vxStranger

	Counter = vxCounter
	// The counters of a network: vx_count's value.
	NetCount = vxNetCount
	// The counters of a VTEP: vx_vtep_count's value.
	VTEPCount = vxVtepCount
	Hook      = vxHook
	Reason    = vxReason
)

// Maps and Programs are the loaded objects.
type (
	Maps     = vxMaps
	Programs = vxPrograms
	Objects  = vxObjects
)

// NewFDBKey makes the key of a MAC address in a network.
func NewFDBKey(net uint16, mac [6]byte) FDBKey {
	var b [8]byte
	binary.LittleEndian.PutUint16(b[:], net)
	copy(b[2:], mac[:])
	return FDBKey{Word: binary.LittleEndian.Uint64(b[:])}
}

// Net is the network of a key.
func (k vxFdbKey) Net() uint16 { return uint16(k.Word) }

// MAC is the MAC address of a key.
func (k vxFdbKey) MAC() (mac [6]byte) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], k.Word)
	return [6]byte(b[2:])
}

// Kinds of FDB entries.
const (
	KindRemote = uint8(vxEntryKindKIND_REMOTE)
	KindPeer   = uint8(vxEntryKindKIND_PEER)
	KindEgress = uint8(vxEntryKindKIND_EGRESS)
	KindHost   = uint8(vxEntryKindKIND_HOST)
)

// Flags.
const (
	EntryStatic  = uint8(vxEntryFlagENTRY_STATIC)
	EntrySticky  = uint8(vxEntryFlagENTRY_STICKY)
	EntryPinned  = uint8(vxEntryFlagENTRY_PINNED)
	EntryPending = uint8(vxEntryFlagENTRY_PENDING)
	PlaceOff     = uint32(vxPlaceFlagPLACE_OFF)
	PlaceV6      = uint32(vxPlaceFlagPLACE_V6)
	PlaceZero6   = uint32(vxPlaceFlagPLACE_ZERO6)
	PlaceAny     = uint32(vxPlaceFlagPLACE_ANY)
	PlaceFollow  = uint32(vxPlaceFlagPLACE_FOLLOW)
	PlaceGuard   = uint32(vxPlaceFlagPLACE_GUARD)
	PlaceSoft    = uint32(vxPlaceFlagPLACE_SOFT)
	PlaceSG      = uint32(vxPlaceFlagPLACE_SG)
	EntryRaw     = uint8(vxEntryFlagENTRY_RAW)
	EntryRawTCP  = uint8(vxEntryFlagENTRY_RAW_TCP)
	EntryRawSG   = uint8(vxEntryFlagENTRY_RAW_SG)

	VTEPReady      = uint16(vxVtepFlagVTEP_READY)
	VTEPMACs       = uint16(vxVtepFlagVTEP_MACS)
	VTEPV6         = uint16(vxVtepFlagVTEP_V6)
	VTEPTTLInherit = uint16(vxVtepFlagVTEP_TTL_INHERIT)
	VTEPTOSInherit = uint16(vxVtepFlagVTEP_TOS_INHERIT)
	VTEPDFInherit  = uint16(vxVtepFlagVTEP_DF_INHERIT)
	VTEPTTLAuto    = uint16(vxVtepFlagVTEP_TTL_AUTO)
	VTEPSrcAuto    = uint16(vxVtepFlagVTEP_SRC_AUTO)
	VTEPKnown      = uint16(vxVtepFlagVTEP_KNOWN)
)

// Hooks, and how many there may be.
const (
	HookEncap   = vxHookHOOK_ENCAP
	HookDecap   = vxHookHOOK_DECAP
	HookDeliver = vxHookHOOK_DELIVER

	HookXDPDecap = vxHookHOOK_XDP_DECAP
	HookXDPEncap = vxHookHOOK_XDP_ENCAP

	HookMax   = uint32(vxHookHOOK_MAX)
	ReasonMax = uint32(vxReasonREASON_MAX)
)

// Ways of a VTEP's packets, the index of its counters.
const (
	WaySentFast     = uint32(vxWayWAY_SENT_FAST)
	WaySentSlow     = uint32(vxWayWAY_SENT_SLOW)
	WayReceivedFast = uint32(vxWayWAY_RECEIVED_FAST)
	WayReceivedSlow = uint32(vxWayWAY_RECEIVED_SLOW)
	WayMax          = uint32(vxWayWAY_MAX)
)

// Indexes of vx_control.
const (
	ControlLease   = uint32(vxControlKeyCONTROL_LEASE)
	ControlTooBig  = uint32(vxControlKeyCONTROL_TOO_BIG)
	ControlRemoved = uint32(vxControlKeyCONTROL_REMOVED)
)

// Networks of vx_source that are none, and the VNI of vx_vni that is none.
const (
	SourceUnion     = uint16(vxSourceNetSOURCE_UNION)
	SourceLocal     = uint16(vxSourceNetSOURCE_LOCAL)
	SourcePrefixMin = uint32(vxSourceNetSOURCE_PREFIX_MIN)
	VNIPort         = uint32(vxVniNoneVNI_PORT)
)

// Reasons that other packages speak of by name.
const (
	Fast       = vxReasonFAST
	Aggregate  = vxReasonAGGREGATE
	DropBroken = vxReasonDROP_BROKEN
	BUM        = vxReasonBUM
	DstLocal   = vxReasonDST_LOCAL
	SrcStatic  = vxReasonSRC_STATIC

	DropStranger = vxReasonDROP_STRANGER
)

// reasonNames are metric labels and part of the interface: append only.
var reasonNames = [...]string{
	"fast", "bum", "src_unknown", "src_moved", "refresh", "dst_unknown", "dst_local", "dst_remote", "dst_aged",
	"no_lease", "not_ip", "vlan_tag", "mtu", "gso_headers", "too_long", "nested", "adjust_failed", "no_vtep",
	"outer_csum", "outer_malformed", "outer_ecn", "outer_not_local", "aggregate", "in_order", "port_kind",
	"truncated", "not_ready", "drop_broken", "src_static", "nd", "port_gone", "drop_stranger", "mss", "inner_csum",
}

// Reasons is how many reasons there are.
const Reasons = len(reasonNames)

// Drops reports that a packet of this reason goes nowhere, not to the kernel either.
func (r vxReason) Drops() bool { return r == DropBroken || r == DropStranger }

func (r vxReason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "reason_" + strconv.Itoa(int(r))
}

func (h vxHook) String() string {
	switch h {
	case HookEncap:
		return "encap"
	case HookDecap:
		return "decap"
	case HookDeliver:
		return "deliver"
	case HookXDPDecap:
		return "xdp_decap"
	case HookXDPEncap:
		return "xdp_encap"
	}
	return "hook_" + strconv.Itoa(int(h))
}

// XDPHasFrags is the load flag of an XDP program that takes frames in several buffers (BPF_F_XDP_HAS_FRAGS, 5.18).
// All programs that share vx_raw must have it, or none.
const XDPHasFrags = 1 << 5

// Load returns the programs and maps as they stand in the object, before the
// kernel has seen them.
func Load() (*ebpf.CollectionSpec, error) { return loadVx() }

// MapSet is the maps among the loaded objects.
func (o *vxObjects) MapSet() *Maps { return &o.vxMaps }

// ProgramSet is the programs among the loaded objects.
func (o *vxObjects) ProgramSet() *Programs { return &o.vxPrograms }
