// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"net/netip"
)

// EtherTypes and IP protocols that are looked into.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherRARP = 0x8035
	ether8021 = 0x8100
	etherQinQ = 0x88a8
	etherIPv6 = 0x86dd

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// frame is what a filter and a printed line need to know of an Ethernet frame.
// What is not there, or was cut off, is zero.
type frame struct {
	data     []byte
	length   int // on the wire
	tags     []uint16
	ether    uint16 // EtherType behind the tags; 0: 802.3 length
	l3, l4   int    // offsets; 0: not there
	l3len    int    // length of the IP header, extension headers left out
	proto    int    // IP protocol behind extension headers; -1: not IP
	next     int    // IPv6: the next header of the fixed header
	src, dst netip.Addr
	later    bool // a fragment that is not the first: has no transport header
	sport    int  // -1: has none
	dport    int
}

// parse reads a frame. vlan is a tag that stood in the packet's metadata, 0 for none.
func parse(data []byte, length int, vlan uint16) frame {
	f := frame{data: data, length: length, proto: -1, next: -1, sport: -1, dport: -1}
	if vlan != 0 {
		f.tags = append(f.tags, vlan&0xfff)
	}
	if len(data) < 14 {
		return f
	}
	off := 12
	typ := binary.BigEndian.Uint16(data[off:])
	for (typ == ether8021 || typ == etherQinQ) && len(data) >= off+6 {
		f.tags = append(f.tags, binary.BigEndian.Uint16(data[off+2:])&0xfff)
		off += 4
		typ = binary.BigEndian.Uint16(data[off:])
	}
	if typ >= 0x600 {
		f.ether = typ
	}
	f.l3 = off + 2
	b := data[f.l3:]
	switch f.ether {
	case etherIPv4:
		f.ip4(b)
	case etherIPv6:
		f.ip6(b)
	case etherARP, etherRARP:
		// Ethernet and IPv4 (RFC 826).
		if len(b) >= 28 && b[4] == 6 && b[5] == 4 {
			f.src, f.dst = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
		}
	}
	return f
}

func (f *frame) ip4(b []byte) {
	if len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 {
		return
	}
	f.l3len = int(b[0]&15) * 4
	f.proto = int(b[9])
	f.src, f.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	f.later = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
	f.transport(f.l3len)
}

func (f *frame) ip6(b []byte) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return
	}
	f.l3len = 40
	f.src, f.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	f.next, f.proto = int(b[6]), int(b[6])
	off := 40
	// Hop-by-hop, routing, fragment, authentication, destination options (RFC 8200 section 4, RFC 4302).
	for len(b) >= off+8 {
		switch f.proto {
		case 0, 43, 60:
			f.proto, off = int(b[off]), off+8+int(b[off+1])*8
		case 44:
			f.later = f.later || binary.BigEndian.Uint16(b[off+2:])&0xfff8 != 0
			f.proto, off = int(b[off]), off+8
		case 51:
			f.proto, off = int(b[off]), off+8+int(b[off+1])*4
		default:
			f.transport(off)
			return
		}
	}
	f.transport(off)
}

// transport reads the ports; off is from the IP header on.
func (f *frame) transport(off int) {
	if f.later || f.l3+off > len(f.data) {
		return
	}
	f.l4 = f.l3 + off
	if b := f.data[f.l4:]; len(b) >= 4 && (f.proto == protoTCP || f.proto == protoUDP || f.proto == protoSCTP) {
		f.sport, f.dport = int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
	}
}

// tunnel is where the inner frame of a VXLAN packet begins, and its VNI; ok is
// false where the packet does not hold one (RFC 7348 section 5).
func (f *frame) tunnel() (off int, vni uint32, ok bool) {
	if f.proto != protoUDP || f.l4 == 0 || len(f.data) < f.l4+16+14 || f.data[f.l4+8]&0x08 == 0 {
		return 0, 0, false
	}
	return f.l4 + 16, binary.BigEndian.Uint32(f.data[f.l4+12:]) >> 8, true
}
