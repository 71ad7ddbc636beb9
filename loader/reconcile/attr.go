// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Attr names an attribute of a link. Its values are text: in plans, in Owned,
// and between the two.
type Attr string

// The attributes. The first eight can always be changed in place; AttrGroup,
// AttrLocal and AttrDevice only where Options.InPlace says so; the rest never.
const (
	AttrSTP          Attr = "stp"           // bridge: on, off
	AttrForwardDelay Attr = "forward_delay" // bridge: a duration
	AttrAgeing       Attr = "ageing"        // bridge, vxlan: a duration
	AttrMTU          Attr = "mtu"           // bytes
	AttrState        Attr = "state"         // up, down
	AttrTTL          Attr = "ttl"           // vxlan: 0 is the kernel's default
	AttrLearning     Attr = "learning"      // vxlan: on, off
	AttrMaster       Attr = "bridge"        // the bridge a link is a port of

	AttrGroup  Attr = "group"  // vxlan: address, or none
	AttrLocal  Attr = "local"  // vxlan: address, or none
	AttrDevice Attr = "device" // vxlan: name of the underlay device, or none

	AttrVNI      Attr = "vni"
	AttrPort     Attr = "port"
	AttrExternal Attr = "external"
	AttrGBP      Attr = "gbp"
	AttrGPE      Attr = "gpe"
)

const (
	none    = "none"
	inherit = "inherit"
)

// NeverAges is the ageing time of a bridge whose entries shall never age. A
// bridge with ageing 0 forgets at once (br_fdb.c, has_expired); only a vxlan
// device takes 0 as "never". A year fits the 32 bits of IFLA_BR_AGEING_TIME,
// which counts hundredths of a second.
const NeverAges = 365 * 24 * time.Hour

// Bounds of the forward delay that the kernel enforces while STP is on
// (br_stp.c, br_set_forward_delay), and its default.
const (
	minForwardDelay     = 2 * time.Second
	maxForwardDelay     = 30 * time.Second
	defaultForwardDelay = 15 * time.Second
)

func bridgeAgeing(d time.Duration) time.Duration {
	if d == 0 {
		return NeverAges
	}
	return d
}

// clockTick is the unit of a bridge's times in netlink. The kernel rounds them
// to its own clock, so what is read back may be one less.
const clockTick = 10 * time.Millisecond

// sameValue reports whether two values of an attribute are the same to the kernel.
func sameValue(a Attr, x, y string) bool {
	if x == y || a != AttrForwardDelay && a != AttrAgeing {
		return x == y
	}
	dx, errX := time.ParseDuration(x)
	dy, errY := time.ParseDuration(y)
	return errX == nil && errY == nil && (dx-dy).Abs() <= clockTick
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func upDown(b bool) string {
	if b {
		return "up"
	}
	return "down"
}

func addrText(a netip.Addr) string {
	if !a.IsValid() || a.IsUnspecified() {
		return none
	}
	return a.String()
}

func nameText(n string) string {
	if n == "" {
		return none
	}
	return n
}

// attr returns the text of an attribute, "" if the link has no such attribute.
func (s Snapshot) attr(l kernel.Link, a Attr) string {
	switch a {
	case AttrMTU:
		return strconv.Itoa(l.MTU)
	case AttrState:
		return upDown(l.Up)
	case AttrMaster:
		return nameText(s.Name(l.Master))
	}
	switch {
	case l.Bridge != nil:
		switch a {
		case AttrSTP:
			return onOff(l.Bridge.STP)
		case AttrForwardDelay:
			return l.Bridge.ForwardDelay.String()
		case AttrAgeing:
			return l.Bridge.Ageing.String()
		}
	case l.VXLAN != nil:
		v := l.VXLAN
		switch a {
		case AttrAgeing:
			return v.Ageing.String()
		case AttrTTL:
			if v.TTLInherit {
				return inherit
			}
			return strconv.Itoa(v.TTL)
		case AttrLearning:
			return onOff(v.Learning)
		case AttrGroup:
			return addrText(v.Group)
		case AttrLocal:
			return addrText(v.Local)
		case AttrDevice:
			return nameText(s.Name(v.Device))
		case AttrVNI:
			return v.VNI.String()
		case AttrPort:
			return strconv.Itoa(int(v.Port))
		case AttrExternal:
			return onOff(v.External)
		case AttrGBP:
			return onOff(v.GBP)
		case AttrGPE:
			return onOff(v.GPE)
		}
	}
	return ""
}
