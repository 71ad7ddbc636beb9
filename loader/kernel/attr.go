// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Attribute types that golang.org/x/sys/unix v0.49 has no name for
// (linux/neighbour.h, linux/if_link.h).
const (
	ndaNHID      = 13
	ndaFlagsExt  = 15
	ntfSticky    = 1 << 6
	ntfExtLocked = 1 << 1

	nudValid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE |
		unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

	attrTypeMask = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// clockTick is the kernel's USER_HZ, 100 on every architecture Go runs on: the
// unit of bridge timers and of NDA_CACHEINFO.
const clockTick = 10 * time.Millisecond

var native = binary.NativeEndian

// decoder reads the fields of one message and remembers the first thing that
// did not fit, so that a parser reads straight through and checks once.
type decoder struct{ err error }

func (d *decoder) fail(format string, a ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, a...)
	}
}

// header splits off the first n bytes. The result has n bytes even if b has
// not.
func (d *decoder) header(b []byte, n int) (head, rest []byte) {
	if len(b) < n {
		d.fail("header of %d bytes, want %d", len(b), n)
		return make([]byte, n), nil
	}
	return b[:n], b[n:]
}

// attrs walks a run of netlink attributes. nl.ParseRouteAttr is not used: it
// indexes past the end when the padding of the last attribute is missing.
func (d *decoder) attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(native.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				d.fail("attribute of %d bytes in the %d left", n, len(b))
				return
			}
			if !yield(native.Uint16(b[2:])&attrTypeMask, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
		if len(b) > 0 {
			d.fail("%d stray bytes after the last attribute", len(b))
		}
	}
}

// fixed returns the first n bytes of a value, zeroes if there are fewer.
func (d *decoder) fixed(v []byte, n int) []byte {
	if len(v) < n {
		d.fail("attribute value of %d bytes, want %d", len(v), n)
		return make([]byte, n)
	}
	return v[:n]
}

func (d *decoder) u8(v []byte) uint8    { return d.fixed(v, 1)[0] }
func (d *decoder) flag(v []byte) bool   { return d.u8(v) != 0 }
func (d *decoder) u16(v []byte) uint16  { return native.Uint16(d.fixed(v, 2)) }
func (d *decoder) be16(v []byte) uint16 { return binary.BigEndian.Uint16(d.fixed(v, 2)) }
func (d *decoder) u32(v []byte) uint32  { return native.Uint32(d.fixed(v, 4)) }
func (d *decoder) index(v []byte) int   { return int(int32(d.u32(v))) }
func (d *decoder) mac(v []byte) fdb.MAC { return fdb.MAC(d.fixed(v, 6)) }
func (d *decoder) str(v []byte) string  { s, _, _ := bytes.Cut(v, []byte{0}); return string(s) }
func (d *decoder) ticks(v []byte) time.Duration {
	return time.Duration(d.u32(v)) * clockTick
}

// addr reads 4 or 16 bytes in network order.
func (d *decoder) addr(v []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(v)
	if !ok {
		d.fail("address of %d bytes, want 4 or 16", len(v))
	}
	return a
}

// specified is addr, with the unspecified address as the invalid Addr: the
// kernel writes 0.0.0.0 for "unset" in some places and nothing in others.
func (d *decoder) specified(v []byte) netip.Addr {
	if a := d.addr(v); !a.IsUnspecified() {
		return a
	}
	return netip.Addr{}
}

// message is one netlink message without its header.
type message struct {
	typ  uint16
	data []byte
}

// messages walks one datagram.
func (d *decoder) messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := int(native.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				d.fail("message of %d bytes in the %d left", n, len(b))
				return
			}
			if !yield(message{native.Uint16(b[4:]), b[unix.SizeofNlMsghdr:n]}) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
		if len(b) > 0 {
			d.fail("%d stray bytes after the last message", len(b))
		}
	}
}

// raw is a fixed header of a request; it satisfies nl.NetlinkRequestData.
type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

// ifInfo is struct ifinfomsg.
func ifInfo(index int, flags, change uint32) raw {
	b := make(raw, unix.SizeofIfInfomsg)
	native.PutUint32(b[4:], uint32(index))
	native.PutUint32(b[8:], flags)
	native.PutUint32(b[12:], change)
	return b
}

// ndMsg is struct ndmsg.
func ndMsg(family uint8, index int, state uint16, flags uint8) raw {
	b := make(raw, unix.SizeofNdMsg)
	b[0] = family
	native.PutUint32(b[4:], uint32(index))
	native.PutUint16(b[8:], state)
	b[10] = flags
	return b
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func boolByte(b bool) []byte {
	if b {
		return []byte{1}
	}
	return []byte{0}
}
