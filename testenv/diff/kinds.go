// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"net/netip"
	"slices"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// kind is a sort of frame.
type kind struct {
	name   string
	weight int
	make   func(*Generator) []Step
}

// kinds of frames, with how many of them there are among all. Most are sane
// unicast between hosts, or there would be nothing on the fast path.
var kinds = []kind{
	{"unicast between endpoints", 60, func(g *Generator) []Step { return g.from(g.pair()) }},
	{"unicast between hosts", 300, func(g *Generator) []Step { return g.from(g.apart()) }},
	{"the same flow again", 60, func(g *Generator) []Step {
		src, dst := g.apart()
		h := g.header(src, dst)
		h.proto = protoUDP
		sp, dp := g.ports()
		var out []Step
		for range 2 + g.IntN(4) {
			out = append(out, g.sent(src.at, ethernet(dst.mac, src.mac, h.typ(), h.wrap(h.udp(sp, dp, csumRight, 0, g.payload(g.size()))))))
		}
		return out
	}},
	{"checksum left to the device", 60, func(g *Generator) []Step {
		src, dst := g.apart()
		return one(g.partial(src, dst))
	}},
	{"gso", 60, func(g *Generator) []Step {
		src, dst := g.apart()
		return one(g.gso(src, dst))
	}},
	{"vxlan from a vtep", 120, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		return g.forged(o.wrap(g.packet(src, dst)))
	}},
	{"vxlan from a vtep, checksum left to the device", 15, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		if g.chance(50) { // the inner one
			s := g.partial(src, dst)
			s.At, s.Frame = g.stranger(), o.wrap(s.Frame)
			s.Hdr.CsumStart += uint16(len(o.wrap(nil)))
			return g.short(s)
		}
		o.csum = csumPseudo
		b := o.wrap(g.packet(src, dst))
		start := len(o.wrap(nil)) - udpHdr - vxlanHdr
		return g.short(Step{At: g.stranger(), Frame: b, Hdr: VNetHdr{Flags: NeedsCsum, CsumStart: uint16(start), CsumOffset: 6}})
	}},

	{"ip fragment", 12, func(g *Generator) []Step {
		src, dst := g.apart()
		h := g.header(src, dst)
		off, more := uint16(g.IntN(200)), uint16(g.IntN(2))
		if g.chance(40) {
			off = 0
		}
		h.frag = off | more*0x2000
		if h.src.Is6() {
			h.frag = off<<3 | more
			if h.frag == 0 {
				h.frag = 6 // reserved bits: an atomic fragment all the same
			}
		}
		return g.from1(src, dst, h.typ(), g.fill(h, g.size()))
	}},
	{"ip options or extension headers", 12, func(g *Generator) []Step {
		src, dst := g.apart()
		h := g.header(src, dst)
		g.options(&h)
		return g.from1(src, dst, h.typ(), g.fill(h, g.size()))
	}},
	{"bad ip header", 20, func(g *Generator) []Step {
		src, dst := g.apart()
		return g.from1(src, dst, 0, g.badIP(src, dst))
	}},
	{"bad transport", 15, func(g *Generator) []Step {
		src, dst := g.apart()
		h := g.header(src, dst)
		return g.from1(src, dst, h.typ(), g.badTransport(h))
	}},
	{"cut off", 15, func(g *Generator) []Step {
		src, dst := g.apart()
		b := g.packet(src, dst)
		return one(g.sent(src.at, b[:ethHdr+g.IntN(min(len(b), 90)-ethHdr+1)]))
	}},
	{"too long", 15, func(g *Generator) []Step {
		src, dst := g.apart()
		h := g.header(src, dst)
		return g.from1(src, dst, h.typ(), g.fill(h, g.w.Port-48-g.IntN(g.w.Port-g.w.MTU+20)))
	}},
	{"own vxlan", 6, func(g *Generator) []Step {
		src, dst := g.apart()
		h := g.header(src, dst)
		h.proto = protoUDP
		in := append([]byte{8, 0, 0, 0, 0, 0, 99, 0}, g.packet(src, dst)...)
		return g.from1(src, dst, h.typ(), h.wrap(h.udp(40000, vxlanPort, pick(g, csumRight, csumZero), 0, in)))
	}},
	{"arp", 12, func(g *Generator) []Step {
		src, dst := g.pair()
		return one(g.sent(src.at, g.arp(src, dst)))
	}},
	{"neighbour discovery and multicast membership", 20, func(g *Generator) []Step {
		src, dst := g.pair()
		return one(g.sent(src.at, g.icmp6(src, dst)))
	}},
	{"igmp", 6, func(g *Generator) []Step {
		src, _ := g.pair()
		return one(g.sent(src.at, g.igmp(src)))
	}},
	{"link-local group", 10, func(g *Generator) []Step {
		src, _ := g.pair()
		dst := fdb.MAC{0x01, 0x80, 0xc2, 0, 0, pick(g, byte(0), 1, 2, 3, 0x0e, 0x0f, 0x10, byte(g.IntN(0x30)))}
		if g.chance(50) { // a BPDU
			return one(g.sent(src.at, ethernet(dst, src.mac, 38, append([]byte{0x42, 0x42, 3}, make([]byte, 43)...))))
		}
		return one(g.sent(src.at, ethernet(dst, src.mac, pick(g, uint16(0x88cc), 0x888e, 0x8809, 0x8808), g.payload(g.IntN(100)))))
	}},
	{"broadcast and multicast", 15, func(g *Generator) []Step {
		src, dst := g.pair()
		return one(g.sent(src.at, g.group(src, dst)))
	}},
	{"unknown destination", 10, func(g *Generator) []Step {
		src, dst := g.pair()
		dst.mac = g.fresh()
		return g.from(src, dst)
	}},
	{"unknown source", 10, func(g *Generator) []Step {
		src, dst := g.pair()
		src.mac = g.fresh()
		return g.from(src, dst)
	}},
	{"vlan", 15, func(g *Generator) []Step {
		src, dst := g.pair()
		b := g.packet(src, dst)
		if g.chance(30) {
			b = g.group(src, dst)
		}
		b = tagged(b, pick(g, uint16(typeVLAN), typeVLAN, typeQinQ), pick(g, uint16(0), 1, 5, 0x0fff, 0xe000, uint16(g.Uint32())))
		if g.chance(30) {
			b = tagged(b, pick(g, uint16(typeVLAN), typeQinQ), uint16(g.Uint32()))
		}
		return one(g.sent(src.at, b[:min(len(b), ethHdr+g.IntN(200))]))
	}},
	{"other ether types", 12, func(g *Generator) []Step {
		src, dst := g.pair()
		typ := pick(g, uint16(0), 1, 46, 0x5dc, 0x5dd, 0x5ff, 0x600, 0x8847, 0x8864, 0x88e5, 0x8137, 0x0806, 0x88f7, 0xffff, uint16(g.Uint32()))
		return one(g.sent(src.at, ethernet(dst.mac, src.mac, typ, g.payload(g.IntN(120)))))
	}},
	{"own and odd addresses", 20, func(g *Generator) []Step { return g.oddAddresses() }},
	{"wanderer", 25, func(g *Generator) []Step { return g.wander() }},
	{"impersonation", 4, func(g *Generator) []Step { return g.impersonate() }},

	{"vxlan, any inner frame", 40, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		return g.forged(o.wrap(g.anyInner(src, dst)))
	}},
	{"vxlan, ecn", 25, func(g *Generator) []Step {
		src, dst := g.apart()
		h := g.header(src, dst)
		h.tos = byte(g.Uint32())
		o := g.outer(src.host, dst.host)
		o.ip.tos = byte(g.Uint32())
		in := g.fill(h, g.IntN(100))
		if g.chance(10) {
			h.badSum = true
			in = h.wrap(g.payload(30))
		}
		return g.forged(o.wrap(ethernet(dst.mac, src.mac, h.typ(), in)))
	}},
	{"vxlan, flags and reserved bits", 15, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		switch g.IntN(4) {
		case 0:
			o.flags = g.Uint32()
		case 1:
			o.flags |= 1 << g.IntN(32)
		case 2:
			o.flags = 0
		default:
			o.reserved = byte(g.Uint32())
		}
		return g.forged(o.wrap(g.packet(src, dst)))
	}},
	{"vxlan, vni and ports", 12, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		switch g.IntN(3) {
		case 0:
			o.vni = pick(g, uint32(0), 1, VNI-1, VNI+1, 1<<24-1, g.Uint32()&0xffffff)
		case 1:
			o.dport = pick(g, uint16(0), 53, 4788, 4790, 8472, 65535)
		default:
			o.sport = pick(g, uint16(0), 1, vxlanPort, 65535)
		}
		return g.forged(o.wrap(g.packet(src, dst)))
	}},
	{"vxlan, outer ip header", 30, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		var pad []byte
		switch g.IntN(9) {
		case 0:
			o.ip.ttl = pick(g, byte(0), 1, 2, 255)
		case 1:
			g.options(&o.ip)
		case 2:
			o.ip.badSum = true
		case 3:
			o.ip.version = byte(g.IntN(16))
		case 4:
			o.ip.ihl = byte(g.IntN(16))
		case 5:
			o.ip.length = g.IntN(200) - 100
		case 6:
			pad = g.payload(1 + g.IntN(60))
		case 7:
			o.ethType = pick(g, uint16(typeIPv6), typeIPv4, 0x0806, 0x8100)
		default:
			o.ip.frag = pick(g, uint16(0x4000), 0x8000, 0xc000)
		}
		return g.forged(append(o.wrap(g.packet(src, dst)), pad...))
	}},
	{"vxlan, udp length and checksum", 20, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		o.csum = pick(g, csumRight, csumRight, csumWrong, csumZero)
		if g.chance(30) {
			o.udpLen = g.IntN(100) - 50
		}
		return g.forged(o.wrap(g.anyInner(src, dst)))
	}},
	{"vxlan, cut off", 15, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		b := o.wrap(g.packet(src, dst))
		n := g.IntN(min(len(b), 130)-ethHdr) + ethHdr
		if g.chance(50) { // lengths follow
			in := g.packet(src, dst)
			in = in[:g.IntN(min(len(in), 60))]
			if g.chance(30) {
				return g.forged(o.packet([]byte{8, 0, 0, 0, 0, 0, VNI, 0}[:g.IntN(9)]))
			}
			return g.forged(o.wrap(in))
		}
		return g.forged(b[:n])
	}},
	{"vxlan, outer fragments", 12, func(g *Generator) []Step {
		src, dst := g.apart()
		if g.chance(30) {
			src, _ = g.apart() // perhaps a move
		}
		return g.fragments(g.outer(src.host, dst.host), g.anyInner(src, dst))
	}},
	{"vxlan, addresses", 30, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		other := pick(g, g.w.Hosts...)
		switch g.IntN(7) {
		case 6:
			if o.ip.src.Is4() {
				o.ip.dst, o.ethDst = netip.MustParseAddr("239.1.1.236"), fdb.MAC{1, 0, 0x5e, 1, 1, 236}
				if g.chance(50) {
					dst.mac = broadcast
				}
			}
		case 0:
			o.ip.dst = pick(g, g.addresses(dst.host)...)
		case 1:
			o.ip.src = pick(g, g.addresses(dst.host)...)
		case 2:
			o.ethDst = pick(g, broadcast, fdb.MAC{0x01, 0, 0x5e, 1, 1, 1}, fdb.MAC{0x33, 0x33, 0, 0, 0, 1}, g.fresh(), fdb.MAC{}, other.MAC)
		case 3:
			o.ethSrc = pick(g, g.w.Stranger.MAC, broadcast, fdb.MAC{}, o.ethDst, g.fresh())
		case 4:
			o.ip.src = other.Addr
		default:
			o.ethDst, o.ip.dst = broadcast, pick(g, g.addresses(dst.host)...)
		}
		// Nobody sends to this MAC: see Avoided. IPv4 lets no packet in that is from the host's own address.
		if !onLink(o.ip.src) || o.ip.src == o.ip.dst || o.ip.dst.Is6() && o.ip.dst.IsMulticast() {
			src.mac = fdb.MAC{0x02, 0xef, 0, 0, 0, byte(g.IntN(8))}
		}
		return g.again(src, g.forged(o.wrap(g.packet(src, dst))))
	}},
	{"vxlan, inner addresses", 25, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		real := src
		switch g.IntN(5) {
		case 0:
			src = pick(g, g.endpoints...) // of another host, or of the receiver
		case 1:
			dst = pick(g, g.endpoints...)
		case 2:
			dst.mac = pick(g, g.own()...)
		case 3:
			src.mac = pick(g, g.own()...)
		default:
			src.mac = g.fresh()
		}
		return g.again(src, g.again(real, g.forged(o.wrap(g.packet(src, dst)))))
	}},
	{"vxlan, vlan", 6, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		if g.chance(50) {
			return g.forged(tagged(o.wrap(g.packet(src, dst)), typeVLAN, pick(g, uint16(0), 1, 7)))
		}
		return g.forged(o.wrap(tagged(g.packet(src, dst), pick(g, uint16(typeVLAN), typeQinQ), pick(g, uint16(0), 1, 7, 0xffff))))
	}},
	// Only where a profile says so: afterwards little fits any more.
	{"too big", 0, func(g *Generator) []Step { return g.tooBig() }},
	{"underlay traffic of another kind", 8, func(g *Generator) []Step {
		src, dst := g.apart()
		o := g.outer(src.host, dst.host)
		h := o.ip
		switch g.IntN(4) {
		case 0:
			h.proto = protoTCP
			return g.forged(ethernet(o.ethDst, o.ethSrc, h.typ(), h.wrap(h.tcp(40000, vxlanPort, 1, 2, nil, csumRight, nil))))
		case 1:
			h.proto = pick(g, byte(2), 4, 41, 47, 50, 132, 255)
			return g.forged(ethernet(o.ethDst, o.ethSrc, h.typ(), h.wrap(g.payload(40))))
		case 2:
			h.proto = protoICMP
			typ := byte(8)
			if h.src.Is6() {
				h.proto, typ = protoICMP6, 128
			}
			return g.forged(ethernet(o.ethDst, o.ethSrc, h.typ(), h.wrap(h.icmp(typ, 0, csumRight, g.payload(40)))))
		default:
			o.dport = uint16(40000 + g.IntN(4))
			return g.forged(o.packet(g.payload(g.IntN(100))))
		}
	}},
}

// tooBig says to a host that its VXLAN packets to another do not fit, or says so of something else.
func (g *Generator) tooBig() []Step {
	src, dst := g.apart()
	o := g.outer(src.host, dst.host)
	o.ip.proto = protoUDP
	if g.chance(20) {
		o.vni = pick(g, uint32(0), VNI+1)
	}
	quoted := o.wrap(g.packet(src, dst))[ethHdr:]
	quoted = quoted[:min(len(quoted), pick(g, 28, 36, 60, 548))]
	router := ip{src: pick(g, g.w.Stranger.Addr, o.ip.dst), dst: o.ip.src, ttl: 64, proto: protoICMP}
	mtu := pick(g, 1499, 1460, 1400, 1300, 1290)
	var b []byte
	if router.src.Is4() {
		b = append([]byte{3, pick(g, byte(4), 4, 3, 1), 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, quoted...)
	} else {
		router.proto = protoICMP6
		b = append([]byte{pick(g, byte(2), 2, 1), 0, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, quoted...)
	}
	return g.forged(ethernet(o.ethSrc, g.w.Stranger.MAC, router.typ(), router.wrap(router.checksum(b, 2, csumRight))))
}

func one(s Step) []Step { return []Step{s} }

// sent is a frame from a container or a host, cut to what the device takes: a
// longer one would be refused at once.
func (g *Generator) sent(at Point, frame []byte) Step {
	most := g.w.Port
	if at.Dev == bridgeDev {
		most = g.w.MTU
	}
	s := Step{At: at, Frame: frame[:min(len(frame), most+ethHdr)]}
	// How much of it the driver has put into the linear part of the packet.
	if g.chance(30) {
		s.Hdr.HdrLen = uint16(g.IntN(len(s.Frame) + 1))
	}
	return s
}

// from is a sound packet between two endpoints.
func (g *Generator) from(src, dst endpoint) []Step {
	return one(g.sent(src.at, g.packet(src, dst)))
}

func (g *Generator) from1(src, dst endpoint, typ uint16, packet []byte) []Step {
	if typ == 0 {
		typ = typeIPv4
		if packet[0]>>4 == 6 {
			typ = typeIPv6
		}
	}
	return one(g.sent(src.at, ethernet(dst.mac, src.mac, typ, packet)))
}

func (g *Generator) stranger() Point { return Point{stranger, underlayDev} }

// forged is a frame that x1 puts on the underlay.
func (g *Generator) forged(frame []byte) []Step {
	return g.short(Step{At: g.stranger(), Frame: frame})
}

// short leaves out what the underlay would not take.
func (g *Generator) short(s Step) []Step {
	if len(s.Frame) > g.w.Underlay+ethHdr {
		if s.Hdr.partial() {
			return nil
		}
		s.Frame = s.Frame[:g.w.Underlay+ethHdr]
	}
	return one(s)
}

// outer is a sound outer header from one VTEP to another.
func (g *Generator) outer(from, to int) outer {
	a, b := g.w.Hosts[from], g.w.Hosts[to]
	return outer{ethDst: b.MAC, ethSrc: a.MAC, ip: ip{src: a.Addr, dst: b.Addr, ttl: 5, id: uint16(g.Uint32())},
		sport: uint16(portMin + g.IntN(1000)), dport: vxlanPort, csum: csumZero, flags: 0x08000000, vni: VNI}
}

// again lets who was impersonated say where it is, most times.
func (g *Generator) again(e endpoint, steps []Step) []Step {
	if g.chance(80) && e.at != (Point{}) {
		steps = append(steps, g.announce(e))
	}
	return steps
}

// fresh is a MAC that nobody has, or that was used before like this.
func (g *Generator) fresh() fdb.MAC { return fdb.MAC{0x02, 0xee, 0, 0, 0, byte(g.IntN(64))} }

// own addresses of hosts, ports and devices, and ones that nobody may have.
func (g *Generator) own() []fdb.MAC {
	macs := []fdb.MAC{{}, broadcast, {0x01, 0, 0x5e, 1, 2, 3}, {0x33, 0x33, 0, 0, 0, 1}, {0x03, 0, 0, 0, 0, 1}, {0x01, 0x80, 0xc2, 0, 0, 2}}
	for _, h := range g.w.Hosts {
		macs = append(append(macs, h.Bridge, h.VXLAN, h.MAC), h.HostEnds...)
	}
	return macs
}

func (g *Generator) oddAddresses() []Step {
	src, dst := g.pair()
	real := src
	switch g.IntN(3) {
	case 0:
		dst.mac = pick(g, append(g.own(), src.mac)...)
	case 1:
		src.mac = pick(g, append(g.own(), dst.mac)...)
	default:
		src.mac, dst.mac = pick(g, g.own()...), pick(g, g.own()...)
	}
	out := one(g.sent(real.at, g.packet(src, dst)))
	// Bridges have addresses of their own, which others may now be believed to have.
	for _, e := range g.endpoints {
		if e.mac == src.mac && e.at != real.at {
			out = g.again(e, out)
		}
	}
	return out
}

// wander makes one of few MACs appear somewhere, and others talk to it.
func (g *Generator) wander() []Step {
	w := endpoint{mac: fdb.MAC{0x02, 0x3a, 0, 0, 0, byte(g.IntN(6))},
		v4: netip.MustParseAddr("172.29.236.99"), v6: netip.MustParseAddr("fd00:29:236::99")}
	var out []Step
	for range 1 + g.IntN(3) {
		peer := pick(g, g.endpoints...)
		place := pick(g, g.endpoints...)
		if g.chance(40) { // by the underlay
			for peer.host == place.host {
				peer = pick(g, g.endpoints...)
			}
			o := g.outer(place.host, peer.host)
			if g.chance(20) {
				o.ip.src, o.ethSrc = g.w.Stranger.Addr, g.w.Stranger.MAC
			}
			in := g.packet(w, peer)
			switch g.IntN(4) {
			case 0:
				in = ethernet(broadcast, w.mac, typeProbe, g.payload(46))
			case 1:
				in = g.arp(w, peer)
			}
			switch g.IntN(6) {
			case 0:
				out = append(out, g.fragments(o, in)...)
			case 1: // the kernel learns from it all the same
				out = append(out, g.forged(append(o.wrap(in), g.payload(8)...))...)
			case 2:
				g.options(&o.ip)
				out = append(out, g.forged(o.wrap(in))...)
			default:
				out = append(out, g.forged(o.wrap(in))...)
			}
		} else {
			w.at = place.at
			switch g.IntN(3) {
			case 0:
				out = append(out, g.announce(w))
			case 1:
				out = append(out, g.sent(w.at, g.arp(w, peer)))
			default:
				out = append(out, g.from(w, peer)...)
			}
		}
		for range g.IntN(4) {
			other := pick(g, g.endpoints...)
			if g.chance(30) {
				to := pick(g, g.endpoints...)
				if to.host != other.host {
					out = append(out, g.forged(g.outer(other.host, to.host).wrap(g.packet(other, w)))...)
				}
			} else {
				out = append(out, g.from(other, w)...)
			}
		}
	}
	return out
}

// impersonate sends with another's source address.
func (g *Generator) impersonate() []Step {
	victim := pick(g, g.endpoints...)
	place, dst := g.pair()
	src := victim
	src.at = place.at
	out := g.from(src, dst)
	for range g.IntN(3) {
		other := pick(g, g.endpoints...)
		out = append(out, g.from(other, victim)...)
	}
	return g.again(victim, out)
}

// addresses that an outer packet may claim to come from or go to.
func (g *Generator) addresses(host int) []netip.Addr {
	out := []netip.Addr{g.w.Hosts[host].Addr, g.w.Stranger.Addr}
	for _, h := range g.w.Hosts {
		out = append(out, h.Addr)
	}
	more := []string{"192.0.2.77", "192.0.2.255", "192.0.2.0", "0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1", "239.1.1.1", "203.0.113.9", "172.29.236.11"}
	if g.w.Stranger.Addr.Is6() {
		more = []string{"2001:db8:1::77", "::", "::1", "ff02::1", "ff05::1", "fe80::1", "2001:db8:9::9", "fd00:29:236::1"}
	}
	for _, s := range more {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// onLink says that a host would send there by its underlay device, and to one host.
func onLink(a netip.Addr) bool {
	return a.As16()[15] != 0 && a.As16()[15] != 255 &&
		(netip.MustParsePrefix("192.0.2.0/24").Contains(a) || netip.MustParsePrefix("2001:db8:1::/64").Contains(a))
}

// options puts IPv4 options or IPv6 extension headers into a header.
func (g *Generator) options(h *ip) {
	if h.src.Is4() {
		h.options = pick(g,
			[]byte{1, 1, 1, 1},
			[]byte{0x94, 4, 0, 0},                      // router alert
			[]byte{7, 7, 4, 0, 0, 0, 0, 0},             // record route
			[]byte{0x83, 7, 4, 192, 0, 2, 12, 0},       // loose source route
			[]byte{0x44, 8, 5, 0, 0, 0, 0, 0},          // timestamp
			[]byte{7, 39, 4, 1},                        // longer than there is room
			[]byte{1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1}, // data behind the end
			make([]byte, 40))                           // as long as can be
		return
	}
	if h.proto == 0 {
		h.proto = protoUDP
	}
	next := h.proto
	pad := []byte{next, 0, 1, 4, 0, 0, 0, 0}
	switch g.IntN(4) {
	case 0:
		h.extension, h.options = 60, pad
	case 1:
		h.extension, h.options = 0, pad
	case 2:
		h.extension, h.options = 43, []byte{next, 2, 0, 1, 0, 0, 0, 0, 0xfd, 0, 0, 0x29, 2, 0x36, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
	default:
		h.extension, h.options = 60, []byte{next, 9, 1, 4, 0, 0, 0, 0} // longer than it is
	}
}

// badIP is a packet with one thing wrong in its IP header.
func (g *Generator) badIP(src, dst endpoint) []byte {
	h := g.header(src, dst)
	switch g.IntN(5) {
	case 0:
		h.badSum = true
	case 1:
		h.version = byte(1 + g.IntN(15))
	case 2:
		h.ihl = byte(1 + g.IntN(15))
	case 3:
		h.length = g.IntN(300) - 150
	default:
		h.src, h.dst = pick(g, h.dst, h.src), pick(g, h.src, h.dst)
		h.proto = byte(g.Uint32())
		return h.wrap(g.payload(g.IntN(100)))
	}
	return g.fill(h, g.IntN(200))
}

func (g *Generator) badTransport(h ip) []byte {
	sp, dp := g.ports()
	n := g.IntN(300)
	switch g.IntN(4) {
	case 0:
		h.proto = protoUDP
		return h.wrap(h.udp(sp, dp, pick(g, csumWrong, csumZero, csumPseudo), 0, g.payload(n)))
	case 1:
		h.proto = protoTCP
		return h.wrap(h.tcp(sp, dp, 1, 0x10, nil, pick(g, csumWrong, csumZero), g.payload(n)))
	case 2:
		h.proto = protoUDP
		return h.wrap(h.udp(sp, dp, csumRight, g.IntN(200)-100, g.payload(n)))
	default:
		h.proto = protoTCP
		b := h.tcp(sp, dp, 1, byte(g.Uint32()), nil, csumRight, g.payload(n))
		b[12] = byte(g.Uint32())
		if g.chance(30) {
			b = b[:g.IntN(len(b))]
		}
		return h.wrap(b)
	}
}

func (g *Generator) arp(src, dst endpoint) []byte {
	op := pick(g, byte(1), 1, 2)
	b := []byte{0, 1, 8, 0, 6, 4, 0, op}
	b = append(append(b, src.mac[:]...), src.v4.AsSlice()...)
	target := pick(g, dst.v4, src.v4, g.w.Hosts[0].Addr, netip.MustParseAddr("172.29.236.200"))
	if !target.Is4() {
		target = dst.v4
	}
	b = append(append(b, dst.mac[:]...), target.AsSlice()...)
	to := broadcast
	if op == 2 && g.chance(70) || g.chance(30) {
		to = dst.mac
	}
	return ethernet(to, src.mac, 0x0806, append(b, make([]byte, g.IntN(2)*18)...))
}

// icmp6 is neighbour discovery, or MLD.
func (g *Generator) icmp6(src, dst endpoint) []byte {
	h := ip{src: src.v6, dst: dst.v6, ttl: 255, proto: protoICMP6}
	to := dst.mac
	target := dst.v6.As16()
	body := append([]byte{0, 0, 0, 0}, target[:]...)
	typ := pick(g, byte(135), 135, 136, 133, 134, 137, 130, 131, 132, 143)
	switch typ {
	case 135:
		body = append(append(body, 1, 1), src.mac[:]...)
		if g.chance(70) {
			h.dst = netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]})
			to = fdb.MAC{0x33, 0x33, 0xff, target[13], target[14], target[15]}
		}
	case 136:
		self := src.v6.As16()
		body = append(append(append([]byte{0x60, 0, 0, 0}, self[:]...), 2, 1), src.mac[:]...)
	default:
		if g.chance(70) {
			h.dst = netip.MustParseAddr(pick(g, "ff02::1", "ff02::2", "ff02::16", "ff05::1:3", "ff0e::77"))
			d := h.dst.As16()
			to = fdb.MAC{0x33, 0x33, d[12], d[13], d[14], d[15]}
		}
		if typ >= 130 && typ <= 132 || typ == 143 {
			h.src, h.ttl = netip.MustParseAddr("fe80::1"), 1
			group := netip.MustParseAddr(pick(g, "ff0e::77", "ff05::1:3")).As16()
			body = append([]byte{0, 0, 0, 0}, group[:]...)
			if typ == 143 {
				body = append([]byte{0, 0, 0, 1, 4, 0, 0, 0}, group[:]...)
			}
			h.extension, h.options = 0, []byte{protoICMP6, 0, 5, 2, 0, 0, 1, 0}
		}
	}
	b := append([]byte{typ, 0, 0, 0}, body...)
	return ethernet(to, src.mac, typeIPv6, h.wrap(h.checksum(b, 2, csumRight)))
}

func (g *Generator) igmp(src endpoint) []byte {
	group := pick(g, []byte{239, 1, 1, 7}, []byte{239, 1, 1, 8}, []byte{224, 0, 0, 251}, []byte{0, 0, 0, 0})
	typ := pick(g, byte(0x11), 0x16, 0x16, 0x17, 0x22)
	b := append([]byte{typ, 100, 0, 0}, group...)
	dst := netip.AddrFrom4([4]byte(group))
	switch {
	case typ == 0x22:
		b = append([]byte{typ, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0}, group...)
		dst = netip.MustParseAddr("224.0.0.22")
	case group[0] == 0 || typ == 0x11:
		dst = netip.MustParseAddr("224.0.0.1")
	}
	be.PutUint16(b[2:], fold(sum(b, 0)))
	h := ip{src: src.v4, dst: dst, ttl: 1, proto: 2, options: []byte{0x94, 4, 0, 0}}
	if g.chance(20) {
		h.options = nil
	}
	d := dst.As4()
	return ethernet(fdb.MAC{1, 0, 0x5e, d[1] & 0x7f, d[2], d[3]}, src.mac, typeIPv4, h.wrap(b))
}

// group is a frame for many.
func (g *Generator) group(src, dst endpoint) []byte {
	h := g.header(src, dst)
	to := broadcast
	switch {
	case g.chance(30):
		return ethernet(to, src.mac, pick(g, uint16(typeProbe), 0x8863, 0x0806), g.payload(g.IntN(100)))
	case h.src.Is6():
		h.dst = netip.MustParseAddr(pick(g, "ff02::1", "ff0e::77", "ff05::1:3", "ff02::fb"))
		d := h.dst.As16()
		to = fdb.MAC{0x33, 0x33, d[12], d[13], d[14], d[15]}
	case g.chance(50):
		h.dst = netip.MustParseAddr(pick(g, "224.0.0.1", "239.1.1.7", "239.1.1.8", "224.0.0.251", "239.9.9.9"))
		d := h.dst.As4()
		to = fdb.MAC{1, 0, 0x5e, d[1] & 0x7f, d[2], d[3]}
	default:
		h.dst = netip.MustParseAddr(pick(g, "255.255.255.255", "172.29.236.255"))
	}
	h.frag = 0
	return ethernet(to, src.mac, h.typ(), g.fill(h, g.size()))
}

// anyInner is a frame of any sort, as a container would have sent it.
func (g *Generator) anyInner(src, dst endpoint) []byte {
	h := g.header(src, dst)
	switch g.IntN(11) {
	case 0:
		return g.arp(src, dst)
	case 1:
		return g.icmp6(src, dst)
	case 2:
		return g.igmp(src)
	case 3:
		return g.group(src, dst)
	case 4:
		b := g.badIP(src, dst)
		return ethernet(dst.mac, src.mac, h.typ(), b)
	case 5:
		return ethernet(dst.mac, src.mac, h.typ(), g.badTransport(h))
	case 6:
		g.options(&h)
		return ethernet(dst.mac, src.mac, h.typ(), g.fill(h, g.size()))
	case 7:
		b := g.packet(src, dst)
		return b[:ethHdr+g.IntN(min(len(b), 90)-ethHdr+1)]
	case 8:
		return ethernet(fdb.MAC{0x01, 0x80, 0xc2, 0, 0, byte(g.IntN(0x30))}, src.mac, 38, append([]byte{0x42, 0x42, 3}, make([]byte, 43)...))
	case 9:
		return ethernet(dst.mac, src.mac, uint16(g.Uint32()), g.payload(g.IntN(100)))
	default:
		return g.packet(src, dst)
	}
}

// partial is a packet whose checksum is left to the device.
func (g *Generator) partial(src, dst endpoint) Step {
	h := g.header(src, dst)
	sp, dp := g.ports()
	n := min(g.size(), g.w.MTU-80)
	h.proto = pick(g, byte(protoUDP), protoTCP)
	field := uint16(6)
	l4 := h.udp(sp, dp, csumPseudo, 0, g.payload(n))
	if h.proto == protoTCP {
		l4, field = h.tcp(sp, dp, g.Uint32(), 0x18, nil, csumPseudo, g.payload(n)), 16
	}
	b := ethernet(dst.mac, src.mac, h.typ(), h.wrap(l4))
	return Step{At: src.at, Frame: b, Hdr: VNetHdr{Flags: NeedsCsum, CsumStart: uint16(len(b) - len(l4)), CsumOffset: field, HdrLen: uint16(g.IntN(2) * len(b))}}
}

// gso is a packet that the device or the kernel has to cut up.
func (g *Generator) gso(src, dst endpoint) Step {
	h := g.header(src, dst)
	h.ttl = 64
	sp, dp := g.ports()
	// No longer than what eth0 takes: no stack makes such a packet, and whether
	// a bridge drops it depends on whether GRO has merged it with the next.
	size := pick(g, 1, 8, 100, 536, 1000, 1200, g.w.MTU-60, g.w.MTU-40, g.w.MTU-28, g.w.MTU-48, g.w.MTU-20-8-g.IntN(60), g.w.Port-40, 1+g.IntN(1400))
	size = min(size, g.w.Port-40-12-20)
	if h.src.Is4() && g.chance(30) {
		size = min(size+20, g.w.Port-40-12)
	}
	n := min(size*(1+g.IntN(12))+g.IntN(size+1), 60000)
	hdr := VNetHdr{Flags: NeedsCsum, GSOSize: uint16(size), GSOType: GSOUDPL4, CsumOffset: 6}
	var l4 []byte
	if h.proto = protoUDP; g.chance(65) {
		h.proto = protoTCP
		var opts []byte
		if g.chance(50) {
			opts = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
		}
		hdr.CsumOffset, hdr.GSOType = 16, GSOTCPv4
		if h.src.Is6() {
			hdr.GSOType = GSOTCPv6
		}
		flags := pick(g, byte(0x10), 0x18, 0x11, 0x19)
		if g.chance(20) {
			flags |= 0x80
			hdr.GSOType |= GSOECN
		}
		l4 = h.tcp(sp, dp, g.Uint32(), flags, opts, csumPseudo, g.payload(n))
		hdr.HdrLen = uint16(len(l4) - n)
	} else {
		l4 = h.udp(sp, dp, csumPseudo, 0, g.payload(n))
		hdr.HdrLen = udpHdr
	}
	b := ethernet(dst.mac, src.mac, h.typ(), h.wrap(l4))
	hdr.CsumStart = uint16(len(b) - len(l4))
	hdr.HdrLen += hdr.CsumStart
	return Step{At: src.at, Frame: b, Hdr: hdr}
}

// fragments cuts an outer packet up: in order, turned round, or with one missing.
func (g *Generator) fragments(o outer, inner []byte) []Step {
	// What waits for the missing one waits for good: real packets between the hosts must not be put together with it.
	missing := g.chance(10)
	if missing {
		o.ip.src = g.w.Stranger.Addr
	}
	whole := o.wrap(inner)
	head := len(o.ip.wrap(nil)) + ethHdr
	if o.ip.src.Is6() {
		head = ethHdr + 40
	}
	l4 := whole[head:]
	var out []Step
	for off := 0; off < len(l4); {
		n := min(8*(1+g.IntN(100)), len(l4)-off)
		h := o.ip
		h.proto = protoUDP
		more := off+n < len(l4)
		if h.src.Is6() {
			h.frag = uint16(off)
			if more {
				h.frag |= 1
			}
			if h.frag == 0 {
				h.frag = 6
			}
		} else {
			h.frag = uint16(off / 8)
			if more {
				h.frag |= 0x2000
			}
		}
		out = append(out, g.forged(ethernet(o.ethDst, o.ethSrc, h.typ(), h.wrap(l4[off:off+n])))...)
		off += n
	}
	if g.chance(20) {
		slices.Reverse(out)
	}
	if missing && len(out) > 1 {
		out = out[1:]
	}
	return out
}
