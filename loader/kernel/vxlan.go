// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// This file writes the vxlan attributes itself: netlink v1.3.1 can send
// neither "no UDP checksum" nor DF, and fills in a port and a learning mode of
// its own.

// vxlanNever is the ageing in seconds that stands for "never". The kernel takes
// 0 for "the default, 300 s" and has no value for never; this is 136 years.
const vxlanNever = math.MaxUint32

// labelInherit is VXLAN_LABEL_INHERIT; 0 is VXLAN_LABEL_FIXED.
const labelInherit = 1

// VXLANSpec says how a new vxlan device shall be. Of VXLAN, Local or Group
// makes the device IPv4 or IPv6, with neither it is IPv4; a multicast Group
// needs Device; Port 0 is the kernel's 8472. RemCsum, which does not say which
// way, is not written.
type VXLANSpec struct {
	Name string
	VXLAN
	MTU int // bytes, Ethernet header excluded. 0: Device's less the overhead, else 1500
}

// VXLANChange says what to change of a vxlan device; nil leaves a value alone.
type VXLANChange struct {
	TTL          *int
	TOS          *int
	DF           *int
	FlowLabel    *uint32
	LabelInherit *bool
	Ageing       *time.Duration // in steps of 1 s. 0: never
	Learning     *bool
	Local        *netip.Addr // invalid: unset
	Group        *netip.Addr // invalid: none
	Device       *int        // ifindex, not 0
}

// CreateVXLAN makes a vxlan device, administratively down. The error wraps
// unix.EEXIST if a link of that name, or a vxlan device with that VNI and port
// in the way, exists; unix.EADDRNOTAVAIL or unix.EINVAL tell of addresses and
// devices that do not fit.
func (h *Handle) CreateVXLAN(s VXLANSpec) (Link, error) {
	data, err := s.data()
	if err == nil {
		err = h.createLink(s.Name, "vxlan", s.MTU, data)
	}
	if errors.Is(err, unix.EEXIST) {
		why := "a vxlan link with this VNI and port exists"
		if _, named, _ := h.LinkByName(s.Name); named {
			why = "a link of this name exists"
		}
		err = fmt.Errorf("%s: %w", why, err)
	}
	if err != nil {
		return Link{}, fmt.Errorf("create vxlan link %s (vni %d, port %d): %w", s.Name, s.VNI, s.Port, err)
	}
	return h.created(s.Name)
}

func (s VXLANSpec) data() (*nl.RtAttr, error) {
	if s.VNI > fdb.MaxVNI {
		return nil, fmt.Errorf("vni %d: want at most %d: %w", s.VNI, fdb.MaxVNI, unix.ERANGE)
	}
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	if !s.External {
		data.AddRtAttr(unix.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(s.VNI)))
	}
	if s.Port != 0 {
		data.AddRtAttr(unix.IFLA_VXLAN_PORT, nl.BEUint16Attr(s.Port))
	}
	if s.SrcLow != 0 || s.SrcHigh != 0 {
		r := binary.BigEndian.AppendUint16(nil, s.SrcLow)
		data.AddRtAttr(unix.IFLA_VXLAN_PORT_RANGE, binary.BigEndian.AppendUint16(r, s.SrcHigh))
	}
	data.AddRtAttr(unix.IFLA_VXLAN_UDP_CSUM, boolByte(s.UDPCsum))
	// What is off by default is left out: an older kernel need not know it.
	for _, o := range []struct {
		typ   int
		on    bool
		value []byte // nil: a flag, its presence means on
	}{
		{unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, s.UDPZeroCsum6TX, boolByte(true)},
		{unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, s.UDPZeroCsum6RX, boolByte(true)},
		{unix.IFLA_VXLAN_TTL_INHERIT, s.TTLInherit, nil},
		{unix.IFLA_VXLAN_COLLECT_METADATA, s.External, boolByte(true)},
		{unix.IFLA_VXLAN_VNIFILTER, s.VNIFilter, boolByte(true)},
		{unix.IFLA_VXLAN_GBP, s.GBP, nil},
		{unix.IFLA_VXLAN_GPE, s.GPE, nil},
		{unix.IFLA_VXLAN_PROXY, s.Proxy, boolByte(true)},
		{unix.IFLA_VXLAN_RSC, s.RSC, boolByte(true)},
		{unix.IFLA_VXLAN_L2MISS, s.L2Miss, boolByte(true)},
		{unix.IFLA_VXLAN_L3MISS, s.L3Miss, boolByte(true)},
		{unix.IFLA_VXLAN_LIMIT, s.MaxAddresses != 0, nl.Uint32Attr(s.MaxAddresses)},
		{unix.IFLA_VXLAN_LOCALBYPASS, s.NoLocalBypass, boolByte(false)},
	} {
		if o.on {
			data.AddRtAttr(o.typ, o.value)
		}
	}
	c := VXLANChange{TTL: &s.TTL, TOS: &s.TOS, Ageing: &s.Ageing, Learning: &s.Learning}
	if s.DF != 0 {
		c.DF = &s.DF
	}
	if s.FlowLabel != 0 {
		c.FlowLabel = &s.FlowLabel
	}
	if s.LabelInherit {
		c.LabelInherit = &s.LabelInherit
	}
	if s.Device != 0 {
		c.Device = &s.Device
	}
	if s.Local.IsValid() {
		c.Local = &s.Local
	}
	if s.Group.IsValid() {
		c.Group = &s.Group
	}
	return data, c.put(data, false)
}

// put adds the attributes of a change; v6 is the family in which an unset
// address is written.
func (c VXLANChange) put(data *nl.RtAttr, v6 bool) error {
	octet := func(typ int, v *int) error {
		if v == nil {
			return nil
		}
		if *v < 0 || *v > 255 {
			return fmt.Errorf("value %d: want 0 to 255: %w", *v, unix.ERANGE)
		}
		data.AddRtAttr(typ, nl.Uint8Attr(uint8(*v)))
		return nil
	}
	addr := func(typ4, typ6 int, p *netip.Addr) {
		if p == nil {
			return
		}
		a := p.Unmap()
		if !a.IsValid() {
			a = netip.IPv4Unspecified()
			if v6 {
				a = netip.IPv6Unspecified()
			}
		}
		typ := typ4
		if a.Is6() {
			typ = typ6
		}
		data.AddRtAttr(typ, a.AsSlice())
	}
	err := errors.Join(
		octet(unix.IFLA_VXLAN_TTL, c.TTL),
		octet(unix.IFLA_VXLAN_TOS, c.TOS),
		octet(unix.IFLA_VXLAN_DF, c.DF),
	)
	if c.FlowLabel != nil {
		if *c.FlowLabel > 0xfffff {
			err = errors.Join(err, fmt.Errorf("flow label %#x: want 20 bits: %w", *c.FlowLabel, unix.ERANGE))
		}
		data.AddRtAttr(unix.IFLA_VXLAN_LABEL, binary.BigEndian.AppendUint32(nil, *c.FlowLabel))
	}
	if c.LabelInherit != nil {
		data.AddRtAttr(unix.IFLA_VXLAN_LABEL_POLICY, nl.Uint32Attr(uint32(boolByte(*c.LabelInherit)[0])))
	}
	if c.Ageing != nil {
		seconds := uint32(*c.Ageing / time.Second)
		if *c.Ageing == 0 {
			seconds = vxlanNever
		}
		data.AddRtAttr(unix.IFLA_VXLAN_AGEING, nl.Uint32Attr(seconds))
	}
	if c.Learning != nil {
		data.AddRtAttr(unix.IFLA_VXLAN_LEARNING, boolByte(*c.Learning))
	}
	addr(unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6, c.Local)
	addr(unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6, c.Group)
	if c.Device != nil {
		data.AddRtAttr(unix.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(*c.Device)))
	}
	return err
}

// SetVXLAN changes a vxlan device in place: its entries, its master and its
// traffic stay. What kernel 6.18 takes from a device that is up, tried one
// attribute at a time:
//
//	ttl, tos, df, ageing, learning   yes; a ttl is stored but has no effect on a device with ttl inherit
//	flow label                       yes, on an IPv6 device; so is the flow label policy
//	local                            yes, within its address family, and to unset
//	group                            yes, within its address family, and to none; the
//	                                 multicast group is left and joined (before 6.15
//	                                 not until the device is set down and up)
//	device                           yes, to another; not to none
//	vni, port, source port range,    no: EOPNOTSUPP, and the kernel's sentence says
//	udp checksums, ttl inherit, gbp, which; delete and create the device
//	gpe, external, proxy, rsc,
//	l2miss, l3miss, max addresses
//
// When the device of a group changes and the group does not, the kernel keeps
// sending unknown destinations out of the old device, because the default
// entry holds its own ifindex. SetVXLAN puts that entry right.
func (h *Handle) SetVXLAN(index int, c VXLANChange) error {
	if err := h.setVXLAN(index, c); err != nil {
		return fmt.Errorf("set vxlan link %d: %w", index, err)
	}
	return nil
}

func (h *Handle) setVXLAN(index int, c VXLANChange) error {
	if c == (VXLANChange{}) {
		return nil
	}
	if c.Device != nil && *c.Device <= 0 {
		return fmt.Errorf("device %d: the kernel takes another device but not none: %w", *c.Device, unix.EINVAL)
	}
	l, ok, err := h.LinkByIndex(index)
	switch {
	case err != nil:
		return err
	case !ok:
		return unix.ENODEV
	case l.VXLAN == nil:
		return fmt.Errorf("%s is a %q link: %w", l.Name, l.Kind, unix.EINVAL)
	}
	data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
	if err := c.put(data, l.VXLAN.V6()); err != nil {
		return err
	}
	if err := h.setLink(index, 0, 0, linkInfo("vxlan", data)); err != nil {
		return err
	}
	group := l.VXLAN.Group
	if c.Device == nil || *c.Device == l.VXLAN.Device || !group.IsValid() || c.Group != nil && c.Group.Unmap() != group {
		return nil
	}
	if err := h.changeRemote(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND, index, fdb.MAC{}, group, *c.Device, unix.NUD_PERMANENT); err != nil {
		return fmt.Errorf("move default destination %s to device %d: %w", group, *c.Device, err)
	}
	err = h.changeRemote(unix.RTM_DELNEIGH, 0, index, fdb.MAC{}, group, l.VXLAN.Device, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove default destination %s from device %d: %w", group, l.VXLAN.Device, err)
	}
	return nil
}
