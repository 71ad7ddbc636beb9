// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// MayDiffer is all that the two topologies may do differently. Normalise blanks
// these fields, after it has checked of them what can be checked.
var MayDiffer = []struct{ Field, Why string }{
	{"outer UDP source port", "each data path has a hash of its own; the port must be in the range, and one flow keeps one port (Flows)"},
	{"outer IPv4 id and header checksum", "the id is random or a counter (RFC 6864); the checksum must be right"},
	{"outer UDP checksum, where there is one", "it follows from the source port; it must be right"},
	{"what the sender of a packet that is dropped is told", "ENOMEM or ENOBUFS where a GSO packet cannot be cut up, or nothing: it depends on the device at which that is tried (SameError)"},
	{"the same in an outer packet that an ICMP error of the underlay quotes, and that error's id and checksums", "they follow from the fields above"},
}

// Avoided is what no batch does, since two kernels that got the same frames differ
// there, by what one of them happened to send itself before.
var Avoided = []struct{ What, Why, How string }{
	{"ageing", "when a bridge forgets depends on the phase of its timer", "the usual 300 s, in batches of less than that"},
	{"sending to a MAC that has moved between VTEPs by the route to the old one",
		"vxlan_snoop changes the address of an entry, and leaves the route that the entry has cached when the kernel last sent to it. " +
			"Between plain routes on the link that makes no difference. An exception (IPv4: a path MTU, learnt from a router or, " +
			"with DF set, from the host itself) leads to the old VTEP's MAC address; a route to the host's own address would have " +
			"come back through the vxlan device (vxlan_encap_bypass), and does not, or the other way round; over IPv6 the source address is cached, too. " +
			"TestStaleRoute shows it, kernel against kernel. The fast path sends to the new VTEP",
		"over IPv4 routes are flushed before each frame (KeepsRoutes: nothing moves then); a MAC learnt from an address that is no " +
			"other host's on the link, is one that nobody sends to"},
}

// SameError compares what the kernel said to the sender of one frame.
func SameError(k, x error) bool {
	dropped := func(err error) bool { return errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) }
	return dropped(k) && x == nil || dropped(x) && k == nil || errors.Is(k, x)
}

// Norm is one frame as it is on the wire.
type Norm struct {
	At   Point
	Out  bool
	Type byte
	Note string // what is wrong with it, or cannot be seen from its bytes
	Data string // blanked
	// Port is the outer UDP source port of a VXLAN packet, 0 where there is none.
	Port uint16
	Time time.Time
}

// key is what must be equal.
func (n Norm) key() string {
	dir := "in"
	if n.Out {
		dir = "out"
	}
	return fmt.Sprintf("%s %s %d %s|%s", n.At, dir, n.Type, n.Note, n.Data)
}

const (
	ethHdr     = 14
	udpHdr     = 8
	vxlanHdr   = 8
	vxlanPort  = 4789
	typeIPv4   = 0x0800
	typeIPv6   = 0x86dd
	typeVLAN   = 0x8100
	typeQinQ   = 0x88a8
	typeProbe  = 0x88b5 // IEEE 802 local experimental
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
)

var be = binary.BigEndian

// layer is an IP or a tunnel's UDP header in a frame.
type layer struct {
	kind byte // 4, 6 or 'u'
	off  int
}

// walk finds the IP and tunnel headers from the outside in, up to the transport
// header at stop, or as far as it understands. l4 is where the last IP header's
// payload begins and proto what it is; ok says that it got to stop.
func walk(b []byte, stop int) (ls []layer, proto byte, l4 int, ok bool) {
	off := 0
	for {
		if len(b) < off+ethHdr {
			return ls, 0, off, false
		}
		typ := be.Uint16(b[off+12:])
		off += ethHdr
		for typ == typeVLAN || typ == typeQinQ {
			if len(b) < off+4 {
				return ls, 0, off, false
			}
			typ = be.Uint16(b[off+2:])
			off += 4
		}
		switch {
		case typ == typeIPv4 && len(b) >= off+20 && b[off]>>4 == 4 && b[off]&15 >= 5:
			ls = append(ls, layer{4, off})
			proto = b[off+9]
			frag := be.Uint16(b[off+6:])&0x3fff != 0
			off += int(b[off]&15) * 4
			if frag {
				return ls, proto, off, false
			}
		case typ == typeIPv6 && len(b) >= off+40 && b[off]>>4 == 6:
			ls = append(ls, layer{6, off})
			proto = b[off+6]
			off += 40
			for (proto == 0 || proto == 43 || proto == 60) && len(b) >= off+8 && off != stop {
				proto = b[off]
				off += 8 + int(b[off+1])*8
			}
		default:
			return ls, 0, off, false
		}
		if off == stop {
			return ls, proto, off, true
		}
		if proto != protoUDP || len(b) < off+udpHdr+vxlanHdr || be.Uint16(b[off+2:]) != vxlanPort {
			return ls, proto, off, false
		}
		ls = append(ls, layer{'u', off})
		off += udpHdr + vxlanHdr
	}
}

func sum(b []byte, s uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
		if s >= 1<<31 {
			s = s&0xffff + s>>16
		}
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	return ^uint16(s)
}

// pseudo is the sum of the pseudo header for n bytes of transport.
func pseudo(b []byte, ip layer, proto byte, n int) uint32 {
	s := uint32(proto) + uint32(n)
	if ip.kind == 4 {
		return sum(b[ip.off+12:ip.off+20], s)
	}
	return sum(b[ip.off+8:ip.off+40], s)
}

// Segments cuts a GSO packet into the frames that segmentation makes of it and
// fills in what checksum offload has left. A single packet comes back as one
// frame. It does what the kernel does (tcp_gso_segment, __udp_gso_segment,
// inet_gso_segment, skb_checksum_help), for every layer of a tunnel.
func Segments(data []byte, h VNetHdr) ([][]byte, error) {
	if h.GSOType&^GSOECN == 0 {
		if !h.partial() {
			return [][]byte{data}, nil
		}
		start, at := int(h.CsumStart), int(h.CsumStart)+int(h.CsumOffset)
		if at+2 > len(data) {
			return nil, fmt.Errorf("checksum at %d of %d bytes", at, len(data))
		}
		b := append([]byte{}, data...)
		be.PutUint16(b[at:], unzero(fold(sum(b[start:], 0))))
		return [][]byte{b}, nil
	}
	l4 := int(h.CsumStart)
	ls, proto, _, ok := walk(data, l4)
	if !ok || !h.partial() {
		return nil, fmt.Errorf("gso packet whose headers are not understood")
	}
	hdr, field := l4+udpHdr, 6
	if proto == protoTCP {
		if len(data) < l4+20 {
			return nil, fmt.Errorf("gso packet of %d bytes", len(data))
		}
		hdr, field = l4+int(data[l4+12]>>4)*4, 16
	}
	size := int(h.GSOSize)
	if hdr > len(data) || size == 0 {
		return nil, fmt.Errorf("gso packet with %d bytes of headers of %d, segments of %d", hdr, len(data), size)
	}
	payload := data[hdr:]
	var out [][]byte
	for i := 0; i == 0 || i*size < len(payload); i++ {
		last := (i+1)*size >= len(payload)
		b := append(append([]byte{}, data[:hdr]...), payload[i*size:min((i+1)*size, len(payload))]...)
		if proto == protoTCP {
			be.PutUint32(b[l4+4:], be.Uint32(b[l4+4:])+uint32(i*size))
			if !last {
				b[l4+13] &^= 0x09 // FIN, PSH
			}
			if i > 0 {
				b[l4+13] &^= 0x80 // CWR
			}
		} else {
			be.PutUint16(b[l4+4:], uint16(len(b)-l4))
		}
		innermost := len(ls) - 1
		for j, l := range ls {
			switch l.kind {
			case 4:
				be.PutUint16(b[l.off+2:], uint16(len(b)-l.off))
				if j == innermost {
					be.PutUint16(b[l.off+4:], be.Uint16(b[l.off+4:])+uint16(i))
				}
				be.PutUint16(b[l.off+10:], 0)
				be.PutUint16(b[l.off+10:], fold(sum(b[l.off:l.off+int(b[l.off]&15)*4], 0)))
			case 6:
				be.PutUint16(b[l.off+4:], uint16(len(b)-l.off-40))
			case 'u':
				be.PutUint16(b[l.off+4:], uint16(len(b)-l.off))
			}
		}
		be.PutUint16(b[l4+field:], 0)
		be.PutUint16(b[l4+field:], unzero(fold(sum(b[l4:], pseudo(b, ls[innermost], proto, len(b)-l4)))))
		// From the inside out: the outer checksum covers the inner one.
		for j := innermost - 1; j > 0; j-- {
			if l := ls[j]; l.kind == 'u' && be.Uint16(b[l.off+6:]) != 0 {
				be.PutUint16(b[l.off+6:], 0)
				be.PutUint16(b[l.off+6:], unzero(fold(sum(b[l.off:], pseudo(b, ls[j-1], protoUDP, len(b)-l.off)))))
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// unzero: a UDP checksum of 0 would mean "none" (RFC 768).
func unzero(c uint16) uint16 {
	if c == 0 {
		return 0xffff
	}
	return c
}

// Normalise turns what a socket saw into what a wire would have carried.
func Normalise(s Sighting) []Norm {
	n := Norm{At: s.At, Out: s.Out, Type: s.Type, Time: s.Time}
	if s.Opaque {
		n.Note = "gso of an unknown kind"
		return []Norm{n}
	}
	frames, err := Segments(s.Data, s.Hdr)
	if err != nil {
		n.Note = fmt.Sprintf("%v, gso type %d size %d", err, s.Hdr.GSOType, s.Hdr.GSOSize)
		frames = [][]byte{s.Data}
	}
	out := make([]Norm, 0, len(frames))
	for _, f := range frames {
		n := n
		if s.At.underlay() {
			f = append([]byte{}, f...)
			n.Port = blank(f, ethHdr)
			if s.Out && n.Port != 0 && (n.Port < portMin || n.Port > portMax) {
				n.Note += fmt.Sprintf(" source port %d out of range", n.Port)
			}
		} else if s.Hdr.vouched() && badTransport(f) {
			n.Note += " a wrong transport checksum that the kernel would take for right"
		}
		n.Data = string(f)
		out = append(out, n)
	}
	return out
}

// net.ipv4.ip_local_port_range of the hosts, the vxlan device's default.
const (
	portMin = 32768
	portMax = 60999
)

// What a field holds after blanking, if it was right.
const right = 0

// blank applies MayDiffer to the outer IP packet at off.
func blank(b []byte, off int) (port uint16) {
	typ := be.Uint16(b[12:])
	var l4 int
	var proto byte
	ip := layer{off: off}
	first := true
	switch {
	case typ == typeIPv4 && len(b) >= off+20:
		ip.kind = 4
		ihl := int(b[off]&15) * 4
		if ihl < 20 || len(b) < off+ihl {
			return 0
		}
		if fold(sum(b[off:off+ihl], 0)) == 0 {
			be.PutUint16(b[off+10:], right)
		}
		be.PutUint16(b[off+4:], 0)
		proto, l4 = b[off+9], off+ihl
		first = be.Uint16(b[off+6:])&0x1fff == 0
	case typ == typeIPv6 && len(b) >= off+40:
		ip.kind = 6
		proto, l4 = b[off+6], off+40
	default:
		return 0
	}
	switch {
	case !first:
	case proto == protoUDP && len(b) >= l4+udpHdr && be.Uint16(b[l4+2:]) == vxlanPort:
		port = be.Uint16(b[l4:])
		n := int(be.Uint16(b[l4+4:]))
		if be.Uint16(b[l4+6:]) != 0 && n >= udpHdr && l4+n <= len(b) && fold(sum(b[l4:l4+n], pseudo(b, ip, protoUDP, n))) == 0 {
			be.PutUint16(b[l4+6:], 0xffff)
		}
		be.PutUint16(b[l4:], 0)
	case proto == protoICMP && ip.kind == 4 && len(b) >= l4+8+28 && (b[l4] == 3 || b[l4] == 11 || b[l4] == 12),
		proto == protoICMP6 && ip.kind == 6 && len(b) >= l4+8+48 && b[l4] < 128:
		s := uint32(0)
		if ip.kind == 6 {
			s = pseudo(b, ip, protoICMP6, len(b)-l4)
		}
		if fold(sum(b[l4:], s)) == 0 {
			be.PutUint16(b[l4+2:], right)
		}
		blank(b, l4+8) // its port is not this packet's
	}
	return port
}

// badTransport says that a frame is a whole TCP, UDP or ICMP packet with a wrong checksum.
func badTransport(b []byte) bool {
	ls, proto, l4, _ := walk(b, -1)
	if len(ls) == 0 {
		return false
	}
	// What is inside a tunnel is none of the receiver's business yet.
	ip := ls[0]
	var end int
	if ip.kind == 4 {
		if be.Uint16(b[ip.off+6:])&0x3fff != 0 {
			return false
		}
		if len(ls) > 1 {
			proto, l4 = protoUDP, ip.off+int(b[ip.off]&15)*4
		}
		end = ip.off + int(be.Uint16(b[ip.off+2:]))
	} else {
		if len(ls) > 1 {
			return false
		}
		end = ip.off + 40 + int(be.Uint16(b[ip.off+4:]))
	}
	if end > len(b) || end < l4 {
		return false
	}
	t := b[l4:end]
	s := uint32(0)
	switch {
	case proto == protoTCP && len(t) >= 20:
		s = pseudo(b, ip, proto, len(t))
	case proto == protoUDP && len(t) >= udpHdr:
		if be.Uint16(t[6:]) == 0 { // none: over IPv6 the socket refuses it, whatever is vouched for
			return false
		}
		s = pseudo(b, ip, proto, len(t))
	case proto == protoICMP && len(t) >= 8:
	case proto == protoICMP6 && len(t) >= 8:
		s = pseudo(b, ip, proto, len(t))
	default:
		return false
	}
	return fold(sum(t, s)) != 0
}

// packetTypes as in linux/if_packet.h.
var packetTypes = map[byte]string{
	unix.PACKET_HOST: "host", unix.PACKET_BROADCAST: "broadcast", unix.PACKET_MULTICAST: "multicast",
	unix.PACKET_OTHERHOST: "other host", unix.PACKET_OUTGOING: "outgoing",
}
