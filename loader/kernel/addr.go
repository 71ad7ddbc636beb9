// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// parseAddress reads the payload of an RTM_NEWADDR or RTM_DELADDR message. The
// result is false for other families than IPv4 and IPv6.
func parseAddress(b []byte) (Address, bool, error) {
	var d decoder
	head, rest := d.header(b, unix.SizeofIfAddrmsg)
	if d.err == nil && head[0] != unix.AF_INET && head[0] != unix.AF_INET6 {
		return Address{}, false, nil
	}
	a := Address{Link: int(native.Uint32(head[4:]))}
	flags := uint32(head[2])
	var local, address netip.Addr
	for typ, v := range d.attrs(rest) {
		switch typ {
		case unix.IFA_LOCAL:
			local = d.addr(v)
		case unix.IFA_ADDRESS:
			address = d.addr(v)
		case unix.IFA_FLAGS:
			flags = d.u32(v)
		}
	}
	if !local.IsValid() { // IPv6 without a peer has IFA_ADDRESS only; with a peer that is the peer's
		local = address
	}
	a.Tentative = flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0
	a.Prefix = netip.PrefixFrom(local, int(head[1]))
	if d.err == nil && !a.Prefix.IsValid() {
		d.fail("address %v with prefix length %d", local, head[1])
	}
	if d.err != nil {
		return Address{}, false, fmt.Errorf("parse address of link %d: %w", a.Link, d.err)
	}
	return a, true, nil
}

// Addresses returns the IPv4 and IPv6 addresses of every link, tentative ones
// included.
func (h *Handle) Addresses() ([]Address, error) {
	as, err := dump(h, unix.RTM_GETADDR, unix.RTM_NEWADDR, make(raw, unix.SizeofIfAddrmsg), parseAddress)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return as, nil
}

// AddAddress gives a link an address. One that it has already is no error.
func (h *Handle) AddAddress(index int, p netip.Prefix) error {
	err := h.changeAddress(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, p)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to link %d: %w", p, index, err)
	}
	return nil
}

// DelAddress takes an address from a link. One that it has not is no error.
func (h *Handle) DelAddress(index int, p netip.Prefix) error {
	err := h.changeAddress(unix.RTM_DELADDR, 0, index, p)
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("delete address %s from link %d: %w", p, index, err)
	}
	return nil
}

func (h *Handle) changeAddress(typ, flags, index int, p netip.Prefix) error {
	if !p.IsValid() || p.Addr().Is4In6() {
		return fmt.Errorf("not a prefix: %w", unix.EINVAL)
	}
	head := make(raw, unix.SizeofIfAddrmsg)
	head[0] = family(p.Addr())
	head[1] = uint8(p.Bits())
	if p.Addr().IsLinkLocalUnicast() {
		head[3] = unix.RT_SCOPE_LINK
	}
	native.PutUint32(head[4:], uint32(index))
	b := p.Addr().WithZone("").AsSlice()
	return h.change(typ, flags, head, nl.NewRtAttr(unix.IFA_LOCAL, b), nl.NewRtAttr(unix.IFA_ADDRESS, b))
}
