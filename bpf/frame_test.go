// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

const (
	ethHdr   = 14
	ip4Hdr   = 20
	ip6Hdr   = 40
	udpHdr   = 8
	tcpHdr   = 20
	vxlanHdr = 8
)

// underlay is the addresses of one family in the drawing of prog_test.go.
type underlay struct {
	local, vtep1, vtep2, stranger, group netip.Addr
}

var (
	under4 = underlay{addr("192.0.2.11"), addr("192.0.2.12"), addr("192.0.2.13"), addr("192.0.2.66"), addr("239.1.2.3")}
	under6 = underlay{addr("2001:db8:1::11"), addr("2001:db8:1::12"), addr("2001:db8:1::13"), addr("2001:db8:1::66"), addr("ff0e::1:2")}
)

func (u underlay) v6() bool { return u.local.Is6() }

// ipLen is the length of the outer IP header.
func (u underlay) ipLen() int { return map[bool]int{false: ip4Hdr, true: ip6Hdr}[u.v6()] }

// len is what VXLAN adds: Ethernet, IP, UDP, VXLAN.
func (u underlay) len() int { return ethHdr + u.ipLen() + udpHdr + vxlanHdr }

// scene is the families of one packet: outside, and inside where a case does not ask for one.
type scene struct {
	underlay
	in6 bool
}

var scenes = []scene{{under4, false}, {under4, true}, {under6, false}, {under6, true}}

func (s scene) String() string {
	family := map[bool]string{false: "4", true: "6"}
	return family[s.in6] + "in" + family[s.v6()]
}

// inLen is the length of the inner IP header.
func (s scene) inLen() int { return map[bool]int{false: ip4Hdr, true: ip6Hdr}[s.in6] }

// sent is a frame from alice to bob, if it does not say otherwise.
func (s scene) sent(i inner) []byte {
	if i.src == (fdb.MAC{}) {
		i.src = alice
	}
	if i.dst == (fdb.MAC{}) {
		i.dst = bob
	}
	i.v6 = i.v6 || s.in6
	return i.frame()
}

// arrived is a frame from bob to alice, if it does not say otherwise.
func (s scene) arrived(i inner) inner {
	if i.src == (fdb.MAC{}) {
		i.src = bob
	}
	if i.dst == (fdb.MAC{}) {
		i.dst = alice
	}
	i.v6 = i.v6 || s.in6
	return i
}

// wrap puts the outer header of a packet from vtep1 to us around a frame.
func (s scene) wrap(frame []byte, change ...func(*outer)) []byte {
	o := newOuter(underlayMAC, routerMAC, s.local, s.vtep1, vni)
	for _, f := range change {
		f(&o)
	}
	return o.wrap(frame)
}

func (s scene) received(i inner, change ...func(*outer)) []byte {
	return s.wrap(s.arrived(i).frame(), change...)
}

// ECN codepoints (RFC 3168 section 5).
const (
	notECT uint8 = iota
	ect1
	ect0
	ce
)

var ecnName = [...]string{"not-ect", "ect1", "ect0", "ce"}

// inner is a frame of the overlay. The zero value of all but the addresses is
// a UDP datagram over IPv4 with 64 bytes of payload.
type inner struct {
	dst, src   fdb.MAC
	v6         bool
	tos        uint8 // TOS or traffic class
	ttl        int   // TTL or hop limit; 0: 64, -1: 0
	noDF       bool  // IPv4 without don't fragment
	tcp        bool
	l4         layers.IPProtocol // 0: UDP, or TCP if tcp
	ipOptions  int               // bytes of IPv4 options, a multiple of 4
	tcpOptions int               // bytes of TCP options, a multiple of 4
	extension  bool              // IPv6 destination options before the transport header
	sport      uint16            // 0: 40000
	payload    int               // bytes after the transport header; 0: 64, -1: none
	patch      func([]byte)      // last change, after lengths and checksums are right
}

func (i inner) frame() []byte {
	if i.sport == 0 {
		i.sport = 40000
	}
	flags := layers.IPv4DontFragment
	if i.noDF {
		flags = 0
	}
	switch i.ttl {
	case 0:
		i.ttl = 64
	case -1:
		i.ttl = 0
	}
	switch i.payload {
	case 0:
		i.payload = 64
	case -1:
		i.payload = 0
	}
	body := make([]byte, i.payload)
	for n := range body {
		body[n] = byte(n*7 + 1)
	}
	if i.l4 == 0 {
		i.l4 = layers.IPProtocolUDP
		if i.tcp {
			i.l4 = layers.IPProtocolTCP
		}
	}
	var stack []gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	etherType := layers.EthernetTypeIPv4
	if i.v6 {
		etherType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, TrafficClass: i.tos, FlowLabel: 0x12345, HopLimit: uint8(i.ttl), NextHeader: i.l4,
			SrcIP: addr("2001:db8::a").AsSlice(), DstIP: addr("2001:db8::b").AsSlice()}
		stack, network = append(stack, ip), ip
		if i.extension {
			ip.NextHeader = layers.IPProtocolIPv6Destination
			// RFC 8200 section 4.6: next header, length in 8 bytes less one, and a PadN of 4.
			stack = append(stack, gopacket.Payload{byte(i.l4), 0, 1, 4, 0, 0, 0, 0})
		}
	} else {
		ip := &layers.IPv4{Version: 4, TOS: i.tos, TTL: uint8(i.ttl), Id: 77, Flags: flags, Protocol: i.l4,
			SrcIP: addr("172.29.236.11").AsSlice(), DstIP: addr("172.29.236.21").AsSlice()}
		for range i.ipOptions {
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1})
		}
		stack, network = append(stack, ip), ip
	}
	switch i.l4 {
	case layers.IPProtocolTCP:
		tcp := &layers.TCP{SrcPort: layers.TCPPort(i.sport), DstPort: 5201, Seq: 1, Ack: 1, ACK: true, Window: 512}
		for range i.tcpOptions {
			tcp.Options = append(tcp.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop})
		}
		must(tcp.SetNetworkLayerForChecksum(network))
		stack = append(stack, tcp)
	case layers.IPProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(i.sport), DstPort: 5201}
		must(udp.SetNetworkLayerForChecksum(network))
		stack = append(stack, udp)
	}
	// Not a layer of gopacket's: it would pad to 60 bytes, which a veth does not.
	b := append(append([]byte{}, i.dst[:]...), i.src[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(etherType))
	b = append(b, serialize(true, append(stack, gopacket.Payload(body))...)...)
	if i.patch != nil {
		i.patch(b)
	}
	return b
}

// sized pads the frame's payload so that it is n bytes long in all.
func (i inner) sized(n int) []byte {
	i.payload = -1
	least := len(i.frame())
	if n < least {
		panic("frame does not fit")
	}
	if i.payload = n - least; i.payload == 0 {
		i.payload = -1
	}
	return i.frame()
}

// arp is a request from src for an address that nobody has.
func arp(src fdb.MAC) []byte {
	return serialize(true,
		&layers.Ethernet{DstMAC: broadcast[:], SrcMAC: src[:], EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: src[:], SourceProtAddress: addr("172.29.236.11").AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: addr("172.29.236.99").AsSlice()})
}

// tagged puts an 802.1Q tag into the frame itself.
func tagged(b []byte, vid uint16) []byte {
	out := append([]byte{}, b[:12]...)
	out = binary.BigEndian.AppendUint16(out, 0x8100)
	out = binary.BigEndian.AppendUint16(out, vid)
	return append(out, b[12:]...)
}

// outer is what VXLAN puts in front of a frame (RFC 7348 section 5), over IPv4
// or IPv6. Everything in it is as the layers say; wrap makes lengths and the IP
// checksum right.
type outer struct {
	eth   layers.Ethernet
	v6    bool
	ip    layers.IPv4
	ip6   layers.IPv6 // RFC 8200
	udp   layers.UDP
	vxlan layers.VXLAN
	// extension is what stands between the IPv6 and the UDP header.
	extension []byte
	// udpSum fills the UDP checksum in; without it the field is 0.
	udpSum bool
	patch  func([]byte) // last change, after lengths and checksums are right
}

func newOuter(dst, src fdb.MAC, to, from netip.Addr, vni fdb.VNI) outer {
	o := outer{
		eth:   layers.Ethernet{DstMAC: dst[:], SrcMAC: src[:], EthernetType: layers.EthernetTypeIPv4},
		v6:    to.Is6(),
		ip:    layers.IPv4{Version: 4, TTL: 5, Id: 0x4711, Protocol: layers.IPProtocolUDP},
		ip6:   layers.IPv6{Version: 6, HopLimit: 5, NextHeader: layers.IPProtocolUDP},
		udp:   layers.UDP{SrcPort: 45000, DstPort: 4789},
		vxlan: layers.VXLAN{ValidIDFlag: true, VNI: uint32(vni)},
	}
	if o.v6 {
		o.eth.EthernetType = layers.EthernetTypeIPv6
	}
	o.to(to)
	o.from(from)
	return o
}

func (o *outer) from(a netip.Addr) { o.ip.SrcIP, o.ip6.SrcIP = a.AsSlice(), a.AsSlice() }

func (o *outer) to(a netip.Addr) { o.ip.DstIP, o.ip6.DstIP = a.AsSlice(), a.AsSlice() }

// tos is the traffic class over IPv6.
func (o *outer) tos(v uint8) { o.ip.TOS, o.ip6.TrafficClass = v, v }

func (o outer) wrap(frame []byte) []byte {
	var network gopacket.SerializableLayer = &o.ip
	if o.v6 {
		network = &o.ip6
	}
	must(o.udp.SetNetworkLayerForChecksum(network.(gopacket.NetworkLayer)))
	datagram := serialize(o.udpSum, &o.udp, &o.vxlan, gopacket.Payload(frame))
	b := serialize(true, &o.eth, network, gopacket.Payload(append(append([]byte{}, o.extension...), datagram...)))
	if o.patch != nil {
		o.patch(b)
	}
	return b
}

// extend puts an extension header (RFC 8200 section 4) between IPv6 and UDP; b[0] is made to say UDP.
func extend(next layers.IPProtocol, b ...byte) func(*outer) {
	return func(o *outer) {
		b[0] = byte(layers.IPProtocolUDP)
		o.ip6.NextHeader, o.extension = next, b
	}
}

func serialize(checksums bool, l ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: checksums}, l...))
	return append([]byte{}, buf.Bytes()...)
}

// outerIP is the length of the outer IP header by EtherType.
func outerIP(b []byte) int {
	if binary.BigEndian.Uint16(b[12:]) == 0x86dd {
		return ip6Hdr
	}
	return ip4Hdr
}

// fixLengths makes the outer lengths tell the truth about a frame that was cut.
func fixLengths(b []byte) {
	ip := outerIP(b)
	if ip == ip6Hdr {
		binary.BigEndian.PutUint16(b[ethHdr+4:], uint16(len(b)-ethHdr-ip))
	} else {
		binary.BigEndian.PutUint16(b[ethHdr+2:], uint16(len(b)-ethHdr))
		fixIPSum(b)
	}
	binary.BigEndian.PutUint16(b[ethHdr+ip+4:], uint16(len(b)-ethHdr-ip))
}

// fixIPSum makes the checksum of a 20-byte IPv4 header after Ethernet right (RFC 791).
func fixIPSum(b []byte) {
	ip := b[ethHdr : ethHdr+ip4Hdr]
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip))
}

// sum is the one's complement sum of RFC 1071: 0xffff over a header whose checksum is right.
func sum(b []byte) uint16 {
	var s uint32
	for n := 0; n+1 < len(b); n += 2 {
		s += uint32(binary.BigEndian.Uint16(b[n:]))
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// checksums finds the first layer whose checksum is wrong, up to the transport
// header: what is behind it, gopacket guesses from the ports. Inner frames are
// looked at by themselves.
func checksums(b []byte) error {
	var network gopacket.NetworkLayer
	for _, l := range gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default).Layers() {
		if n, ok := l.(gopacket.NetworkLayer); ok {
			network = n
		}
		if x, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := x.SetNetworkLayerForChecksum(network); err != nil {
				return err
			}
		}
		if x, ok := l.(gopacket.LayerWithChecksum); ok {
			err, got := x.VerifyChecksum()
			if err != nil {
				return err
			}
			if !got.Valid {
				return fmt.Errorf("checksum of %v is %#x, want %#x", l.LayerType(), got.Actual, got.Correct)
			}
		}
		if _, ok := l.(gopacket.TransportLayer); ok {
			break
		}
	}
	return nil
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func mac(s string) fdb.MAC {
	m, err := fdb.ParseMAC(s)
	must(err)
	return m
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// The builder is the ruler of all other tests: what it calls right, an independent decoder must find right.
func TestFrameBuilder(t *testing.T) {
	for _, s := range scenes {
		for _, i := range []inner{
			{}, {tcp: true}, {v6: true}, {v6: true, tcp: true, extension: true},
			{tcp: true, ipOptions: 8, tcpOptions: 12}, {tos: 0xb9}, {payload: -1}, {ttl: 255, noDF: true},
		} {
			for _, udpSum := range []bool{false, true} {
				b := s.received(i, func(o *outer) { o.udpSum = udpSum })
				p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
				if e := p.ErrorLayer(); e != nil {
					t.Errorf("%v %+v: %v", s, i, e.Error())
				}
				for _, b := range [][]byte{b, b[s.len():]} {
					if err := checksums(b); err != nil {
						t.Errorf("%v %+v: %v", s, i, err)
					}
				}
				bad := append([]byte{}, b...)
				bad[len(bad)-1] ^= 0x10
				if checksums(bad[s.len():]) == nil || udpSum && checksums(bad) == nil {
					t.Errorf("%v %+v: no checksum covers the last byte", s, i)
				}
				if x, ok := p.NetworkLayer().(*layers.IPv6); ok != s.v6() || ok && (x.Version != 6 || int(x.Length) != len(b)-ethHdr-ip6Hdr) {
					t.Errorf("%v %+v: outer header %+v", s, i, p.NetworkLayer())
				}
				if got := binary.BigEndian.Uint16(b[s.len()-10:]) != 0; got != udpSum {
					t.Errorf("%v %+v: has a UDP checksum %v, want %v", s, i, got, udpSum)
				}
				x, ok := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
				if !ok || x.VNI != uint32(vni) || len(x.LayerPayload()) != len(b)-s.len() {
					t.Errorf("%v %+v: no VXLAN with VNI %v and %d bytes in %v", s, i, vni, len(b)-s.len(), p)
				}
			}
		}
		for n := s.len() + ethHdr + ip4Hdr; n < s.len()+100; n++ {
			whole := s.received(inner{})
			b := append([]byte{}, whole[:n]...)
			fixLengths(b)
			if want := s.wrap(whole[s.len():n]); string(b) != string(want) {
				t.Errorf("%v cut to %d bytes: lengths %x, want %x", s, n, b[:s.len()], want[:s.len()])
			}
		}
	}
	for _, n := range []int{42, 43, 59, 60, 61, 1465} {
		if got := len(inner{}.sized(n)); got != n {
			t.Errorf("sized(%d) makes %d bytes", n, got)
		}
	}
}
