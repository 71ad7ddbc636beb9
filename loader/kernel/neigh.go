// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// parseNeighbour reads the payload of an RTM_NEWNEIGH or RTM_DELNEIGH message.
// The result is false for other families than IPv4 and IPv6, and for proxy
// entries, which resolve nothing.
func parseNeighbour(b []byte) (Neighbour, bool, error) {
	var d decoder
	head, rest := d.header(b, unix.SizeofNdMsg)
	if d.err == nil && head[0] != unix.AF_INET && head[0] != unix.AF_INET6 || head[10]&unix.NTF_PROXY != 0 {
		return Neighbour{}, false, nil
	}
	state := native.Uint16(head[8:])
	n := Neighbour{
		Link:      int(int32(native.Uint32(head[4:]))),
		Valid:     state&nudValid != 0,
		Stale:     state&unix.NUD_STALE != 0,
		Permanent: state&unix.NUD_PERMANENT != 0,
	}
	for typ, v := range d.attrs(rest) {
		switch typ {
		case unix.NDA_DST:
			n.IP = d.addr(v)
		case unix.NDA_LLADDR:
			if len(v) == 6 { // other link layers have no MAC
				n.MAC = fdb.MAC(v)
			}
		}
	}
	if d.err != nil {
		return Neighbour{}, false, fmt.Errorf("parse neighbour on link %d: %w", n.Link, d.err)
	}
	return n, n.IP.IsValid(), nil
}

// Neighbours returns the ARP and ND tables of the namespace.
func (h *Handle) Neighbours() ([]Neighbour, error) {
	ns, err := dump(h, unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, ndMsg(unix.AF_UNSPEC, 0, 0, 0), parseNeighbour)
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	return ns, nil
}

// Neighbour returns the entry for one address on one device, false if there is
// none. An entry that is being resolved, or that could not be, is there but
// not Valid.
func (h *Handle) Neighbour(dev int, ip netip.Addr) (Neighbour, bool, error) {
	ip = ip.Unmap().WithZone("")
	fail := func(err error) (Neighbour, bool, error) {
		return Neighbour{}, false, fmt.Errorf("get neighbour %s on link %d: %w", ip, dev, err)
	}
	if !ip.IsValid() {
		return fail(unix.EINVAL)
	}
	m, err := h.get(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, ndMsg(family(ip), dev, 0, 0), nl.NewRtAttr(unix.NDA_DST, ip.AsSlice()))
	if errors.Is(err, unix.ENOENT) {
		return Neighbour{}, false, nil
	}
	if err != nil {
		return fail(err)
	}
	n, ok, err := parseNeighbour(m)
	if err != nil {
		return fail(err)
	}
	return n, ok, nil
}

// ProbeNeighbour makes the kernel treat an address as if a packet had just
// been sent to it: it resolves an entry that is missing or failed, confirms a
// stale one within its delay time (5 s), and keeps one in use from being
// collected. It does not wait for the answer; a Subscription reports it.
//
// A permanent entry is left alone. NTF_USE would turn it into an unresolved
// one: the kernel strips NUD_PERMANENT and, with it, the MAC.
func (h *Handle) ProbeNeighbour(dev int, ip netip.Addr) error {
	n, ok, err := h.Neighbour(dev, ip)
	if err == nil && ok && n.Permanent {
		return nil
	}
	if err == nil {
		ip = ip.Unmap().WithZone("")
		err = h.change(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE,
			ndMsg(family(ip), dev, unix.NUD_NONE, unix.NTF_USE), nl.NewRtAttr(unix.NDA_DST, ip.AsSlice()))
	}
	if err != nil {
		return fmt.Errorf("probe neighbour %s on link %d: %w", ip, dev, err)
	}
	return nil
}
