// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Attr names an attribute of a link. Its values are text: in plans, in Owned,
// and between the two.
type Attr string

// The attributes. Those up to AttrFlowLabel can always be changed in place, a
// ttl but to and from inherit; AttrGroup, AttrLocal and AttrDevice only where
// Options.InPlace says so; the rest never.
const (
	AttrSTP          Attr = "stp"           // bridge: on, off
	AttrForwardDelay Attr = "forward_delay" // bridge: a duration
	AttrAgeing       Attr = "ageing"        // bridge, vxlan: a duration
	AttrMTU          Attr = "mtu"           // bytes
	AttrState        Attr = "state"         // up, down
	AttrLearning     Attr = "learning"      // vxlan: on, off
	AttrMaster       Attr = "bridge"        // the bridge a link is a port of
	AttrTTL          Attr = "ttl"           // vxlan: a number, 0 is the kernel's default, or inherit
	AttrTOS          Attr = "tos"           // vxlan: a number, or inherit
	AttrDF           Attr = "df"            // vxlan: unset, set, inherit
	AttrFlowLabel    Attr = "flow_label"    // vxlan: a number, or inherit

	AttrGroup  Attr = "group"  // vxlan: address, or none
	AttrLocal  Attr = "local"  // vxlan: address, or none
	AttrDevice Attr = "device" // vxlan: name of the underlay device, or none

	AttrVNI         Attr = "vni"
	AttrPort        Attr = "port"
	AttrSourcePorts Attr = "source_ports"   // [low, high], or system
	AttrUDPChecksum Attr = "udp_checksum"   // on, off: what is sent
	AttrZeroCsumRX  Attr = "udp6zerocsumrx" // on: IPv6 packets without a UDP checksum are taken
	AttrExternal    Attr = "external"
	AttrGBP         Attr = "gbp"
	AttrGPE         Attr = "gpe"
)

const (
	none    = "none"
	inherit = "inherit"
	system  = "system"
)

// The kernel's numbers for what has names here.
const tosInherit = 1

var dfNames = []string{string(config.DFUnset), string(config.DFSet), string(config.DFInherit)}

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

// numberText is the text of a number that may be inherited instead.
func numberText(n int, inherited bool) string {
	if inherited {
		return inherit
	}
	return fmt.Sprintf("%#x", n)
}

// parseNumber undoes numberText.
func parseNumber(text string) (n int, inherited bool, err error) {
	if text == inherit {
		return 0, true, nil
	}
	v, err := strconv.ParseInt(text, 0, 32)
	return int(v), false, err
}

func portsText(low, high uint16) string {
	if low >= high { // to the kernel too
		return system
	}
	return fmt.Sprintf("[%d, %d]", low, high)
}

// vxlan is the vxlan link that a network asks for, defaults where the config
// says nothing.
func (t *target) vxlan() kernel.VXLAN {
	n, u := t.net, t.net.Underlay
	checksum := deref(u.UDPChecksum, t.v6)
	v := kernel.VXLAN{
		VNI: n.VNI, Device: t.device.Index, Local: t.local, Group: n.Group, Port: u.Port, Learning: n.Learning, Ageing: n.Ageing,
		TTL: u.TTL, TTLInherit: u.TTLInherit, TOS: u.TOS, DF: max(slices.Index(dfNames, string(u.DF)), 0), FlowLabel: u.FlowLabel,
		SrcLow: u.SourceLow, SrcHigh: u.SourceHigh,
		UDPCsum: !t.v6 && checksum, UDPZeroCsum6TX: t.v6 && !checksum, UDPZeroCsum6RX: t.acceptZero,
	}
	if u.TOSInherit {
		v.TOS = tosInherit
	}
	return v
}

// attr returns the text of an attribute, "" if the link has no such attribute.
func (t *table) attr(l kernel.Link, a Attr) string {
	switch a {
	case AttrMTU:
		return strconv.Itoa(l.MTU)
	case AttrState:
		return upDown(l.Up)
	case AttrMaster:
		return nameText(t.name(l.Master))
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
		case AttrTOS:
			return numberText(v.TOS, v.TOS == tosInherit)
		case AttrDF:
			if v.DF < len(dfNames) {
				return dfNames[v.DF]
			}
			return strconv.Itoa(v.DF)
		case AttrFlowLabel:
			return numberText(int(v.FlowLabel), v.LabelInherit)
		case AttrSourcePorts:
			return portsText(v.SrcLow, v.SrcHigh)
		case AttrUDPChecksum:
			return onOff(v.V6() && !v.UDPZeroCsum6TX || !v.V6() && v.UDPCsum)
		case AttrZeroCsumRX:
			return onOff(v.UDPZeroCsum6RX)
		case AttrLearning:
			return onOff(v.Learning)
		case AttrGroup:
			return addrText(v.Group)
		case AttrLocal:
			return addrText(v.Local)
		case AttrDevice:
			return nameText(t.name(v.Device))
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
