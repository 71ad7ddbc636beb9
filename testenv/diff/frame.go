// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"net/netip"
	"slices"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Frames are put together byte by byte: a library that makes only right ones
// would be in the way.

func ethernet(dst, src fdb.MAC, typ uint16, payload []byte) []byte {
	b := slices.Concat(dst[:], src[:])
	return append(be.AppendUint16(b, typ), payload...)
}

// tagged puts a VLAN tag behind the addresses of a frame.
func tagged(frame []byte, tpid, tci uint16) []byte {
	tag := be.AppendUint16(be.AppendUint16(nil, tpid), tci)
	return slices.Concat(frame[:12], tag, frame[12:])
}

// ip is an IP header of either family.
type ip struct {
	src, dst netip.Addr
	tos, ttl byte
	proto    byte
	id       uint16
	frag     uint16 // v4: flags and offset as on the wire; v6: fragment header if not 0
	options  []byte // v4: a multiple of 4; v6: extension headers, their first is extension
	extension,
	version, // instead of the right one
	ihl byte // instead of the right one
	label   uint32
	length  int  // added to the right length
	badSum  bool // of the v4 header
	reserve int  // room at the end
}

func (h ip) wrap(payload []byte) []byte {
	if h.src.Is4() {
		n := 20 + len(h.options)
		b := make([]byte, n, n+len(payload)+h.reserve)
		b[0] = 4<<4 | byte(n/4)
		if h.version != 0 {
			b[0] = h.version<<4 | b[0]&15
		}
		if h.ihl != 0 {
			b[0] = b[0]&0xf0 | h.ihl&15
		}
		b[1] = h.tos
		be.PutUint16(b[2:], uint16(n+len(payload)+h.length))
		be.PutUint16(b[4:], h.id)
		be.PutUint16(b[6:], h.frag)
		b[8], b[9] = h.ttl, h.proto
		copy(b[12:], h.src.AsSlice())
		copy(b[16:], h.dst.AsSlice())
		copy(b[20:], h.options)
		be.PutUint16(b[10:], fold(sum(b, 0)))
		if h.badSum {
			b[10] ^= 0x5a
		}
		return append(b, payload...)
	}
	next, ext := h.proto, h.options
	if len(ext) > 0 {
		next = h.extension
	}
	if h.frag != 0 {
		f := []byte{next, 0, 0, 0, 0, 0, 0, 0}
		be.PutUint16(f[2:], h.frag)
		be.PutUint32(f[4:], uint32(h.id))
		next, ext = 44, append(f, ext...)
	}
	b := make([]byte, 40, 40+len(ext)+len(payload)+h.reserve)
	be.PutUint32(b, 6<<28|uint32(h.tos)<<20|h.label&0xfffff)
	if h.version != 0 {
		b[0] = h.version<<4 | b[0]&15
	}
	be.PutUint16(b[4:], uint16(len(ext)+len(payload)+h.length))
	b[6], b[7] = next, h.ttl
	copy(b[8:], h.src.AsSlice())
	copy(b[24:], h.dst.AsSlice())
	return slices.Concat(b, ext, payload)
}

// typ is the EtherType that goes with the addresses.
func (h ip) typ() uint16 {
	if h.src.Is4() {
		return typeIPv4
	}
	return typeIPv6
}

// pseudo is the sum of the pseudo header for n bytes of transport.
func (h ip) pseudo(n int) uint32 {
	return sum(h.dst.AsSlice(), sum(h.src.AsSlice(), uint32(h.proto)+uint32(n)))
}

// csum says what stands in a transport checksum field.
type csum byte

const (
	csumRight csum = iota
	csumZero
	csumWrong
	csumPseudo // what checksum offload wants: the pseudo header's sum
)

func (h ip) checksum(b []byte, field int, c csum) []byte {
	be.PutUint16(b[field:], 0)
	s := uint32(0)
	if h.proto != protoICMP {
		s = h.pseudo(len(b))
	}
	switch c {
	case csumRight:
		be.PutUint16(b[field:], unzero(fold(sum(b, s))))
	case csumWrong:
		be.PutUint16(b[field:], unzero(fold(sum(b, s))^0x1234))
	case csumPseudo:
		be.PutUint16(b[field:], ^fold(s))
	}
	return b
}

func (h ip) udp(sport, dport uint16, c csum, lie int, payload []byte) []byte {
	b := make([]byte, udpHdr, udpHdr+len(payload))
	be.PutUint16(b, sport)
	be.PutUint16(b[2:], dport)
	be.PutUint16(b[4:], uint16(udpHdr+len(payload)+lie))
	return h.checksum(append(b, payload...), 6, c)
}

func (h ip) tcp(sport, dport uint16, seq uint32, flags byte, options []byte, c csum, payload []byte) []byte {
	n := 20 + len(options)
	b := make([]byte, n, n+len(payload))
	be.PutUint16(b, sport)
	be.PutUint16(b[2:], dport)
	be.PutUint32(b[4:], seq)
	be.PutUint32(b[8:], 0x01020304)
	b[12], b[13] = byte(n/4)<<4, flags
	be.PutUint16(b[14:], 512)
	copy(b[20:], options)
	return h.checksum(append(b, payload...), 16, c)
}

func (h ip) icmp(typ, code byte, c csum, payload []byte) []byte {
	return h.checksum(append([]byte{typ, code, 0, 0, 0x12, 0x34, 0, 1}, payload...), 2, c)
}

// outer is a VXLAN packet on the underlay; the zero value of what is left out is right.
type outer struct {
	ethDst, ethSrc fdb.MAC
	ip             ip
	sport, dport   uint16
	csum           csum
	udpLen         int // added to the right length
	flags          uint32
	vni            uint32
	reserved       byte
	ethType        uint16
}

func (o outer) wrap(inner []byte) []byte {
	v := make([]byte, vxlanHdr, vxlanHdr+len(inner))
	be.PutUint32(v, o.flags)
	be.PutUint32(v[4:], o.vni<<8|uint32(o.reserved))
	return o.packet(append(v, inner...))
}

// packet is wrap with a VXLAN header that is there already.
func (o outer) packet(payload []byte) []byte {
	if o.ethType == 0 {
		o.ethType = o.ip.typ()
	}
	o.ip.proto = protoUDP
	return ethernet(o.ethDst, o.ethSrc, o.ethType, o.ip.wrap(o.ip.udp(o.sport, o.dport, o.csum, o.udpLen, payload)))
}
