// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// NextHop is one object of `ip nexthop`, as FDBEntry.NextHop names it.
type NextHop struct {
	ID uint32
	// Gateway is the VTEP of a plain next hop, invalid for a group.
	Gateway netip.Addr
	// Group lists the ids of the members, empty for a plain next hop.
	Group []uint32
	FDB   bool // made for forwarding entries (NHA_FDB)
}

const nhaFDB = 11 // linux/nexthop.h

// parseNextHop reads the payload of an RTM_NEWNEXTHOP message.
func parseNextHop(b []byte) (NextHop, bool, error) {
	var d decoder
	_, rest := d.header(b, 8) // struct nhmsg
	var n NextHop
	for typ, v := range d.attrs(rest) {
		switch typ {
		case unix.NHA_ID:
			n.ID = d.u32(v)
		case unix.NHA_GATEWAY:
			n.Gateway = d.addr(v)
		case unix.NHA_GROUP: // struct nexthop_grp: id, weight, weight, reserved
			for ; len(v) >= 8; v = v[8:] {
				n.Group = append(n.Group, d.u32(v))
			}
		case nhaFDB:
			n.FDB = true
		}
	}
	if d.err != nil {
		return NextHop{}, false, fmt.Errorf("parse next hop: %w", d.err)
	}
	return n, true, nil
}

// NextHops returns the next hop objects of the namespace by id.
func (h *Handle) NextHops() (map[uint32]NextHop, error) {
	ns, err := dump(h, unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, make(raw, 8), parseNextHop)
	if err != nil {
		return nil, fmt.Errorf("list next hops: %w", err)
	}
	out := make(map[uint32]NextHop, len(ns))
	for _, n := range ns {
		out[n.ID] = n
	}
	return out, nil
}
