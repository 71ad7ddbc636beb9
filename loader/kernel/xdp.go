// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// XDP is what a device says of raw frames.
type XDP struct {
	Driver string // as ethtool names it: veth, tun, virtio_net, ice; "" if it does not say
	// Known: the kernel tells the next three (6.3).
	Known bool
	// Native: the driver runs XDP programs.
	Native bool
	// Takes: frames may be redirected to the device now; Several: also those in several buffers.
	Takes, Several bool
	// Program is the id of the program in native mode, 0 if there is none; Generic of one in generic mode.
	Program, Generic uint32
	// Segments: the device takes TCP segments larger than its MTU; for a tap, the VM behind it does.
	Segments bool
	// Merges: the device makes larger frames of those that it receives (LRO, hardware GRO).
	Merges bool
	// HidesTags: the device takes VLAN tags out of the frames that it receives, so that a program does not see them.
	HidesTags bool
	Queues    int // to receive; 0: unknown
}

// Attributes of the netdev family (linux/netdev.h).
const (
	netdevDevGet         = 1
	netdevDevIfindex     = 1
	netdevDevXDPFeatures = 3

	genlHeader = 4 // bytes: command, version, reserved

	xdpBasic     = 1 << 0
	xdpNDOXmit   = 1 << 2
	xdpNDOXmitSG = 1 << 6
)

// XDPOf asks for a device. It is asked in the network namespace of the calling thread.
func (h *Handle) XDPOf(l Link) (x XDP, err error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return x, fmt.Errorf("open ethtool socket: %w", err)
	}
	defer e.Close()
	// A device without ethtool has no driver name, and that is an answer.
	x.Driver, _ = e.DriverName(l.Name)
	if f, err := e.Features(l.Name); err == nil {
		x.Segments = f["tx-tcp-segmentation"]
		x.HidesTags = f["rx-vlan-hw-parse"]
		x.Merges = f["rx-lro"] || f["rx-gro-hw"]
	}
	if c, err := e.GetChannels(l.Name); err == nil {
		x.Queues = int(max(c.RxCount, c.CombinedCount))
	}
	link, err := netlink.LinkByIndex(l.Index)
	if err != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			return x, nil
		}
		return x, fmt.Errorf("get %s: %w", l.Name, err)
	}
	if p := link.Attrs().Xdp; p != nil && p.Attached {
		switch p.AttachMode {
		case nl.XDP_ATTACHED_SKB:
			x.Generic = p.ProgId
		default:
			x.Program = p.ProgId
		}
	}
	features, ok, err := xdpFeatures(l.Index)
	if err != nil {
		return x, fmt.Errorf("get XDP features of %s: %w", l.Name, err)
	}
	x.Known = ok
	x.Native, x.Takes, x.Several = features&xdpBasic != 0, features&xdpNDOXmit != 0, features&xdpNDOXmitSG != 0
	return x, nil
}

// xdpFeatures are what the driver can do, and does now. ok is false where the kernel does not tell.
func xdpFeatures(index int) (features uint64, ok bool, err error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			return 0, false, nil
		}
		return 0, false, err
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	// Not nl.Genlmsg: it sends two bytes of whatever lies behind it as the reserved ones, which must be 0.
	req.AddData(raw{netdevDevGet, 1, 0, 0})
	req.AddData(nl.NewRtAttr(netdevDevIfindex, nl.Uint32Attr(uint32(index))))
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if errors.Is(err, unix.ENODEV) {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, err
	}
	for _, m := range msgs {
		if len(m) < genlHeader {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[genlHeader:])
		if err != nil {
			return 0, false, err
		}
		for _, a := range attrs {
			if a.Attr.Type == netdevDevXDPFeatures && len(a.Value) == 8 {
				return nl.NativeEndian().Uint64(a.Value), true, nil
			}
		}
	}
	return 0, false, nil
}

// PeerXDP reports whether a veth's other end, in another namespace, runs an XDP program.
func (h *Handle) PeerXDP(l Link) (bool, error) {
	ns := nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(l.PeerNS)))
	b, err := h.get(unix.RTM_GETLINK, unix.RTM_NEWLINK, ifInfo(l.Peer, 0, 0), ns)
	if err != nil {
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			return false, nil
		}
		return false, fmt.Errorf("get peer of %s: %w", l.Name, err)
	}
	if len(b) < unix.SizeofIfInfomsg {
		return false, nil
	}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return false, fmt.Errorf("parse peer of %s: %w", l.Name, err)
	}
	for _, a := range attrs {
		if a.Attr.Type&^unix.NLA_F_NESTED != unix.IFLA_XDP {
			continue
		}
		nested, err := nl.ParseRouteAttr(a.Value)
		if err != nil {
			return false, fmt.Errorf("parse peer of %s: %w", l.Name, err)
		}
		for _, n := range nested {
			if n.Attr.Type == nl.IFLA_XDP_ATTACHED && len(n.Value) > 0 {
				return n.Value[0] == nl.XDP_ATTACHED_DRV, nil
			}
		}
	}
	return false, nil
}

// ExplainXDP is the kernel's own sentence on why a device does not take a
// program, "" if it has none. BPF links do not carry it, so the program is offered
// once more over rtnetlink; should it be taken there, it is taken off again.
func ExplainXDP(l Link, fd int) string {
	const driver, notOver = 1 << 2, 1 << 0 // XDP_FLAGS_DRV_MODE, XDP_FLAGS_UPDATE_IF_NOEXIST
	link, err := netlink.LinkByIndex(l.Index)
	if err != nil {
		return ""
	}
	nl.EnableErrorMessageReporting = true
	err = netlink.LinkSetXdpFdWithFlags(link, fd, driver|notOver)
	if err == nil {
		_ = netlink.LinkSetXdpFdWithFlags(link, -1, driver)
		return ""
	}
	return err.Error()
}
