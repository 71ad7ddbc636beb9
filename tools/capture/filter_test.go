// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// frames of all kinds that tcpdump and we are to judge alike. Seeded: every run has the same.
func sampleFrames(t testing.TB) (all [][]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	mac := func() net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(r.IntN(3))} }
	ip4 := func() net.IP { return net.IP{10, byte(r.IntN(2)), 0, byte(r.IntN(3))} }
	ip6 := func() net.IP {
		return net.IP{0xfd, byte(r.IntN(2)), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(r.IntN(3))}
	}
	ports := []uint16{22, 53, 80, 443, 4789}
	port := func() uint16 { return ports[r.IntN(len(ports))] }
	add := func(l ...gopacket.SerializableLayer) {
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, l...); err != nil {
			t.Fatal(err)
		}
		all = append(all, bytes.Clone(buf.Bytes()))
	}
	payload := func() gopacket.Payload { return make([]byte, r.IntN(200)) }
	for range 400 {
		eth := &layers.Ethernet{SrcMAC: mac(), DstMAC: mac(), EthernetType: layers.EthernetTypeIPv4}
		switch r.IntN(10) {
		case 0:
			eth.DstMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		case 1:
			eth.DstMAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}
		}
		var l3 gopacket.SerializableLayer
		var proto *layers.IPProtocol
		v4 := &layers.IPv4{Version: 4, TTL: 9, SrcIP: ip4(), DstIP: ip4()}
		v6 := &layers.IPv6{Version: 6, HopLimit: 9, SrcIP: ip6(), DstIP: ip6()}
		is6 := r.IntN(2) == 0
		if is6 {
			eth.EthernetType, l3, proto = layers.EthernetTypeIPv6, v6, &v6.NextHeader
		} else {
			if r.IntN(8) == 0 {
				v4.DstIP = net.IP{224, 0, 0, 5}
			}
			if r.IntN(8) == 0 {
				v4.FragOffset = 100
			} else if r.IntN(8) == 0 {
				v4.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
			}
			l3, proto = v4, &v4.Protocol
		}
		switch r.IntN(8) {
		case 0, 1:
			*proto = layers.IPProtocolTCP
			add(eth, l3, &layers.TCP{SrcPort: layers.TCPPort(port()), DstPort: layers.TCPPort(port()), SYN: r.IntN(2) == 0, ACK: r.IntN(2) == 0}, payload())
		case 2, 3:
			*proto = layers.IPProtocolUDP
			add(eth, l3, &layers.UDP{SrcPort: layers.UDPPort(port()), DstPort: layers.UDPPort(port())}, payload())
		case 4:
			if is6 {
				*proto = layers.IPProtocolICMPv6
				add(eth, l3, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(uint8(128+r.IntN(9)), 0)}, payload())
			} else {
				*proto = layers.IPProtocolICMPv4
				add(eth, l3, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(uint8(8*r.IntN(2)), 0)}, payload())
			}
		case 5:
			*proto = layers.IPProtocol([]byte{47, 132, 2, 50}[r.IntN(4)])
			add(eth, l3, append(gopacket.Payload{0, 22, 0, 80, 0, 0, 0, 0}, payload()...))
		case 6:
			eth.EthernetType = layers.EthernetTypeARP
			add(eth, &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
				Operation: uint16(1 + r.IntN(2)), SourceHwAddress: eth.SrcMAC, DstHwAddress: mac(), SourceProtAddress: ip4(), DstProtAddress: ip4()})
		case 7:
			eth.EthernetType = 0x88cc
			add(eth, gopacket.Payload(make([]byte, 60)))
		}
	}
	return all
}

// Expressions on which tcpdump and we must agree. Not here, and different on
// purpose: VLAN tags, extension headers, frames that are cut off.
var agreed = []string{
	"icmp", "icmp6", "tcp", "udp", "sctp", "arp", "rarp", "ip", "ip6", "proto 47", "ip proto 47", "ip6 proto 47",
	"host 10.0.0.1", "src host 10.0.0.1", "dst host 10.0.0.1", "dst 10.0.0.1", "host fd00::1", "ip6 host fd01::2", "ip host 10.1.0.1", "arp host 10.0.0.2",
	"src or dst host 10.0.0.1", "src and dst host 10.0.0.1", "src and dst port 80", "src or dst port 80",
	"net 10.0.0.0/16", "src net 10.1.0.0/16", "net fd00::/16", "dst net fd01::/16", "ip net 10.0.0.0/8", "net 10.0.0.0/8 and not arp",
	"port 80", "src port 80", "dst port 53", "tcp port 80", "udp port 53", "tcp dst port 22", "sctp port 22", "ip6 and port 443",
	"portrange 22-80", "tcp portrange 50-90", "src portrange 53-53", "port 80 or 443", "host 10.0.0.1 or 10.0.0.2", "port http", "port domain",
	"ether host 02:00:00:00:00:01", "ether src 02:00:00:00:00:01", "ether dst 02:00:00:00:00:02", "ether proto 0x88cc",
	"ether broadcast", "broadcast", "ether multicast", "multicast", "ip multicast", "ip6 multicast",
	"less 100", "greater 150", "len > 120", "len <= 90", "len = 98 or len != 98", "len % 2 = 0", "len * 2 > 200", "(len + 3) / 2 < 60",
	"not tcp", "! tcp", "not (tcp or udp)", "tcp and port 80", "tcp or udp and port 53", "udp and port 53 or tcp", "not tcp and not udp",
	"not not arp", "((icmp))", "icmp or arp or ip6 and tcp",
	"ip and tcp[13] & 2 != 0", "ip and tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn", "ip && tcp[tcpflags] == tcp-ack", "icmp[icmptype] == icmp-echo",
	"ip[8] = 9", "ip[9] == 6", "ip6[6] == 17", "ether[12:2] == 0x800", "ether[0] & 1 = 1", "ip and udp[4:2] > 50", "ip[16:4] == 0x0a000001",
	"ether[6:4] + 1 = 0x02000001", "ip[2:2] - 20 > 60", "ip and tcp[0:2] >= 80 and tcp[2:2] <= 80", "1 << 3 == 8", "12 >> 2 = 3 && arp", "5 ^ 1 = 4 || arp",
	"arp[6:2] = 1", "icmp6 and ip6[40] = 135", "host 10.0.0.1 && !port 22", "tcp && host fd00::1 || icmp",
}

// The oracle is tcpdump itself, over a file with all frames.
func TestFilterAsTcpdump(t *testing.T) {
	if _, err := exec.LookPath("tcpdump"); err != nil {
		t.Fatal("tcpdump is missing: make deps installs it")
	}
	frames := sampleFrames(t)
	file := filepath.Join(t.TempDir(), "all.pcap")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for i, b := range frames {
		// The number of the frame is its time stamp, which tcpdump leaves alone.
		ci := gopacket.CaptureInfo{CaptureLength: len(b), Length: len(b)}
		ci.Timestamp = ci.Timestamp.AddDate(1969, 0, 0)
		if err := w.WritePacket(ci, b); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, expr := range agreed {
		filter, err := ParseFilter(expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		var want [][]byte
		out, err := exec.Command("tcpdump", "-r", file, "-w", "-", expr).Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Errorf("tcpdump does not know %q: %s", expr, exit.Stderr)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		r, err := pcapgo.NewReader(bytes.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		for {
			b, _, err := r.ReadPacketData()
			if err != nil {
				break
			}
			want = append(want, bytes.Clone(b))
		}
		var got [][]byte
		for _, b := range frames {
			if filter.Match(b, len(b), 0, 0) {
				got = append(got, b)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d frames, tcpdump has %d", expr, len(got), len(want))
			continue
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%s: match %d is %x, tcpdump's %x", expr, i, got[i], want[i])
				break
			}
		}
	}
}

func TestFilterOwn(t *testing.T) {
	frame := sampleFrames(t)[0]
	tag := append(append(bytes.Clone(frame[:12]), 0x81, 0, 0, 5), frame[12:]...)
	for _, c := range []struct {
		expr  string
		data  []byte
		vlan  uint16
		vni   uint32
		match bool
	}{
		{"vni 236", frame, 0, 236, true},
		{"vni 236", frame, 0, 237, false},
		{"vlan", frame, 0, 0, false},
		{"vlan", tag, 0, 0, true},
		{"vlan 5", tag, 0, 0, true},
		{"vlan 6", tag, 0, 0, false},
		{"vlan 5", frame, 5, 0, true},
		{"vlan 5 and (ip or ip6 or arp or ether proto 0x88cc)", tag, 0, 0, true},
		{"not ether[500] = 0", frame, 0, 0, false}, // it looks behind the end: no, as tcpdump says
		{"", frame, 0, 0, true},
		{"tcp", nil, 0, 0, false},
		{"not tcp", frame[:10], 0, 0, true},
	} {
		f, err := ParseFilter(c.expr)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := f.Match(c.data, len(c.data), c.vlan, c.vni); got != c.match {
			t.Errorf("%q: %v, want %v", c.expr, got, c.match)
		}
	}
}

// A mistake is named, with its place.
func TestFilterErrors(t *testing.T) {
	for expr, want := range map[string]string{
		"host":                           "it ends, want a value for host\n    host\n        ^",
		"foo":                            "\"foo\", want an expression",
		"tcp port 99999":                 "\"99999\" is no port\n    tcp port 99999\n             ^",
		"host example.org":               "names are not looked up",
		"host 02:00:00:00:00:01":         "is no IP address",
		"ether host 10.0.0.1":            "is no MAC address",
		"net 10.0.0.1/8":                 "has bits of a host: want 10.0.0.0/8",
		"(tcp":                           "a parenthesis is not closed",
		"tcp)":                           "\")\" is left over",
		"tcp and":                        "it ends, want an expression",
		"tcp udp":                        "\"udp\" is no IP address",
		"tcp host 10.0.0.1":              "tcp does not go with an address: write \"tcp and host ...\"",
		"tcp[13":                         "a bracket is not closed",
		"tcp[0:3] = 1":                   "want 1, 2 or 4 bytes",
		"len >":                          "it ends, want a number",
		"len":                            "it ends, want a comparison",
		"vlan 5000":                      "5000 is no VLAN",
		"ip host fd00::1":                "an IPv6 address after ip",
		"ether":                          "after ether",
		"icmp port 5":                    "not of icmp",
		"src proto 5":                    "proto has no direction",
		"tcp broadcast":                  "broadcast is of ether only",
		"port 80-90":                     "\"80-90\" is no port",
		"portrange 90-80":                "is no portrange",
		"tcp \x01":                       "byte 0x1 is not allowed",
		"less x":                         "\"x\", want a length",
		strings.Repeat("(", 200) + "tcp": "nested deeper than 100",
		strings.Repeat("not ", 200):      "nested deeper than 100",
	} {
		_, err := ParseFilter(expr)
		var fe *FilterError
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v\nwant %s", expr, err, want)
		}
	}
}

// No expression and no frame makes it panic.
func FuzzFilter(f *testing.F) {
	frames := sampleFrames(f)
	for i, e := range agreed {
		f.Add(e, frames[i], uint16(i))
	}
	f.Fuzz(func(t *testing.T, expr string, frame []byte, vlan uint16) {
		x, err := ParseFilter(expr)
		if err != nil {
			_ = err.Error()
			return
		}
		x.Match(frame, len(frame), vlan, uint32(vlan))
		fr := parse(frame, len(frame), vlan)
		_ = fr.text()
		if off, vni, ok := fr.tunnel(); ok && (off > len(frame) || vni != binary.BigEndian.Uint32(frame[off-4:])>>8) {
			t.Errorf("tunnel at %d of %d, VNI %d", off, len(frame), vni)
		}
	})
}
