// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNoRoute is what RouteTo wraps when the kernel knows no way.
var ErrNoRoute = errors.New("no route")

// RouteOptions narrow a route lookup.
type RouteOptions struct {
	Src    netip.Addr // source address, one of the host's. Invalid: any
	Device int        // ifindex the route must leave by. 0: any
	TOS    uint8      // DSCP in the upper 6 bits, for rules and routes that look at it
	Port   uint16     // UDP destination port in host order, for rules that look at it. 0: any protocol
}

// parseRoute reads the payload of the RTM_NEWROUTE message that answers a
// lookup.
func parseRoute(b []byte) (Route, error) {
	var d decoder
	head, rest := d.header(b, unix.SizeofRtMsg)
	r := Route{Local: head[7] == unix.RTN_LOCAL}
	var dst, via netip.Addr
	for typ, v := range d.attrs(rest) {
		switch typ {
		case unix.RTA_DST:
			dst = d.addr(v)
		case unix.RTA_OIF:
			r.Device = d.index(v)
		case unix.RTA_PREFSRC:
			r.Src = d.addr(v)
		case unix.RTA_GATEWAY:
			via = d.addr(v)
		case unix.RTA_VIA: // struct rtvia: a gateway of the other family
			d.fixed(v, 2)
			via = d.addr(v[min(2, len(v)):])
		case unix.RTA_METRICS:
			for typ, v := range d.attrs(v) {
				switch typ {
				case unix.RTAX_MTU:
					r.MTU = int(d.u32(v))
				case unix.RTAX_HOPLIMIT:
					r.HopLimit = int(d.u32(v))
				}
			}
		}
	}
	r.NextHop = dst
	if via.IsValid() {
		r.NextHop = via
	}
	if d.err != nil {
		return Route{}, fmt.Errorf("parse route: %w", d.err)
	}
	return r, nil
}

// RouteTo asks the kernel how it would send to dst now, with the path MTU that
// it has learned, if any. Of several equal paths it names one. The error wraps
// ErrNoRoute and the errno if there is no way (unix.ENETUNREACH,
// unix.EHOSTUNREACH), unix.EACCES for a prohibit route, unix.EINVAL for a
// blackhole route or a source that is not the host's.
func (h *Handle) RouteTo(dst netip.Addr, o RouteOptions) (Route, error) {
	r, err := h.routeTo(dst.Unmap().WithZone(""), o)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		err = fmt.Errorf("%w: %w", ErrNoRoute, err)
	}
	if err != nil {
		return Route{}, fmt.Errorf("get route to %s: %w", dst, err)
	}
	return r, nil
}

func (h *Handle) routeTo(dst netip.Addr, o RouteOptions) (Route, error) {
	if !dst.IsValid() {
		return Route{}, unix.EINVAL
	}
	head := make(raw, unix.SizeofRtMsg)
	head[0] = family(dst)
	head[1] = uint8(dst.BitLen())
	parts := []nl.NetlinkRequestData{head, nl.NewRtAttr(unix.RTA_DST, dst.AsSlice())}
	if src := o.Src.Unmap().WithZone(""); src.IsValid() {
		head[2] = uint8(src.BitLen())
		parts = append(parts, nl.NewRtAttr(unix.RTA_SRC, src.AsSlice()))
	}
	if o.Device != 0 {
		parts = append(parts, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(o.Device))))
	}
	head[3] = o.TOS &^ 3
	if o.Port != 0 {
		port := nl.NewRtAttr(unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, o.Port))
		parts = append(parts, nl.NewRtAttr(unix.RTA_IP_PROTO, []byte{unix.IPPROTO_UDP}), port)
	}
	m, err := h.get(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, parts...)
	if err != nil {
		return Route{}, err
	}
	r, err := parseRoute(m)
	if !r.Src.IsValid() { // the kernel does not repeat the source that was asked for
		r.Src = o.Src.Unmap().WithZone("")
	}
	return r, err
}
