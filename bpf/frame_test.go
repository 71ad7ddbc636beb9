// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// outerLen is what VXLAN over IPv4 adds: Ethernet, IPv4, UDP, VXLAN.
const outerLen = 14 + 20 + 8 + 8

const (
	ethHdr = 14
	ip4Hdr = 20
	ip6Hdr = 40
	udpHdr = 8
)

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
		ip := &layers.IPv6{Version: 6, TrafficClass: i.tos, FlowLabel: 0x12345, HopLimit: 64, NextHeader: i.l4,
			SrcIP: addr("2001:db8::a").AsSlice(), DstIP: addr("2001:db8::b").AsSlice()}
		stack, network = append(stack, ip), ip
		if i.extension {
			ip.NextHeader = layers.IPProtocolIPv6Destination
			// RFC 8200 section 4.6: next header, length in 8 bytes less one, and a PadN of 4.
			stack = append(stack, gopacket.Payload{byte(i.l4), 0, 1, 4, 0, 0, 0, 0})
		}
	} else {
		ip := &layers.IPv4{Version: 4, TOS: i.tos, TTL: 64, Id: 77, Flags: layers.IPv4DontFragment, Protocol: i.l4,
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

// outer is what VXLAN puts in front of a frame (RFC 7348 section 5). Everything
// in it is as the layers say; wrap makes lengths and the IP checksum right.
type outer struct {
	eth   layers.Ethernet
	ip    layers.IPv4
	udp   layers.UDP
	vxlan layers.VXLAN
	// udpSum fills the UDP checksum in; without it the field is 0.
	udpSum bool
	patch  func([]byte) // last change, after lengths and checksums are right
}

func newOuter(dst, src fdb.MAC, to, from netip.Addr, vni fdb.VNI) outer {
	return outer{
		eth: layers.Ethernet{DstMAC: dst[:], SrcMAC: src[:], EthernetType: layers.EthernetTypeIPv4},
		ip: layers.IPv4{Version: 4, TTL: 5, Id: 0x4711, Protocol: layers.IPProtocolUDP,
			SrcIP: from.AsSlice(), DstIP: to.AsSlice()},
		udp:   layers.UDP{SrcPort: 45000, DstPort: 4789},
		vxlan: layers.VXLAN{ValidIDFlag: true, VNI: uint32(vni)},
	}
}

func (o outer) wrap(frame []byte) []byte {
	must(o.udp.SetNetworkLayerForChecksum(&o.ip))
	datagram := serialize(o.udpSum, &o.udp, &o.vxlan, gopacket.Payload(frame))
	b := serialize(true, &o.eth, &o.ip, gopacket.Payload(datagram))
	if o.patch != nil {
		o.patch(b)
	}
	return b
}

func serialize(checksums bool, l ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	must(gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: checksums}, l...))
	return append([]byte{}, buf.Bytes()...)
}

// fixLengths makes the outer lengths tell the truth about a frame that was cut.
func fixLengths(b []byte) {
	binary.BigEndian.PutUint16(b[ethHdr+2:], uint16(len(b)-ethHdr))
	binary.BigEndian.PutUint16(b[ethHdr+ip4Hdr+4:], uint16(len(b)-ethHdr-ip4Hdr))
	fixIPSum(b)
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
	for _, i := range []inner{
		{}, {tcp: true}, {v6: true}, {v6: true, tcp: true, extension: true},
		{tcp: true, ipOptions: 8, tcpOptions: 12}, {tos: 0xb9}, {payload: -1},
	} {
		i.dst, i.src = bob, alice
		b := newOuter(underlayMAC, routerMAC, local, vtep1, vni).wrap(i.frame())
		p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
		if e := p.ErrorLayer(); e != nil {
			t.Errorf("%+v: %v", i, e.Error())
		}
		if sum(b[ethHdr:ethHdr+ip4Hdr]) != 0xffff {
			t.Errorf("%+v: outer IP checksum is wrong", i)
		}
		x, ok := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
		if !ok || x.VNI != uint32(vni) || len(x.LayerPayload()) != len(b)-outerLen {
			t.Errorf("%+v: no VXLAN with VNI %v and %d bytes in %v", i, vni, len(b)-outerLen, p)
		}
	}
	for _, n := range []int{42, 43, 59, 60, 61, 1465} {
		if got := len(inner{}.sized(n)); got != n {
			t.Errorf("sized(%d) makes %d bytes", n, got)
		}
	}
}
