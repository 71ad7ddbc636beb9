// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Line writes a line for each packet: for a person, or JSON.
type Line struct {
	w       *bufio.Writer
	json    bool
	flushed time.Time
}

// NewLine writes to w.
func NewLine(w io.Writer, asJSON bool) *Line { return &Line{w: bufio.NewWriter(w), json: asJSON} }

// Event is the JSON form of a packet. Keys are added, never renamed.
type Event struct {
	Time     time.Time `json:"time"`
	Network  string    `json:"network"`
	VNI      fdb.VNI   `json:"vni"`
	Hook     string    `json:"hook"`
	Device   string    `json:"device"`
	Fate     string    `json:"fate"`
	Reason   string    `json:"reason,omitempty"`
	Length   uint32    `json:"length"`                // as it came, bytes
	Sent     uint32    `json:"sent_length,omitempty"` // as BPF sent it on
	Segments uint32    `json:"segments,omitempty"`
	Inner    *Headers  `json:"inner,omitempty"`
	Outer    *Headers  `json:"outer,omitempty"`
}

// Headers of one frame.
type Headers struct {
	SrcMAC   fdb.MAC     `json:"src_mac"`
	DstMAC   fdb.MAC     `json:"dst_mac"`
	VLAN     uint16      `json:"vlan,omitempty"`
	Type     string      `json:"ethertype"`
	Src      *netip.Addr `json:"src,omitempty"`
	Dst      *netip.Addr `json:"dst,omitempty"`
	Protocol int         `json:"protocol,omitempty"` // IP protocol number
	SrcPort  int         `json:"src_port,omitempty"`
	DstPort  int         `json:"dst_port,omitempty"`
	Text     string      `json:"text"`

	EtherType uint16 `json:"-"`
	Length    int    `json:"-"` // bytes on the wire
}

func headers(x part, vlan uint16) *Headers {
	if len(x.data) < 14 {
		return nil
	}
	f := parse(x.data, x.length, vlan)
	h := &Headers{SrcMAC: fdb.MAC(x.data[6:12]), DstMAC: fdb.MAC(x.data[:6]), Type: fmt.Sprintf("0x%04x", f.ether), Text: f.text(),
		EtherType: f.ether, Length: x.length}
	if len(f.tags) > 0 {
		h.VLAN = f.tags[0]
	}
	if f.src.IsValid() {
		h.Src, h.Dst = &f.src, &f.dst
	}
	h.Protocol = max(f.proto, 0)
	h.SrcPort, h.DstPort = max(f.sport, 0), max(f.dport, 0)
	return h
}

// NewEvent takes a packet apart.
func NewEvent(p *loader.Captured) Event {
	inner, outer := parts(p)
	vin, vout := p.Vlan, uint16(0)
	if comesOuter(p.Hook) {
		vin, vout = 0, p.Vlan
	}
	return Event{Time: p.Time, Network: p.Network.Name, VNI: p.Network.VNI, Hook: HookName(p.Hook), Device: p.Device,
		Fate: bpf.Fate(p.Fate).String(), Reason: Reason(p), Length: p.LenIn, Sent: p.LenOut, Segments: p.Segments,
		Inner: headers(inner, vin), Outer: headers(outer, vout)}
}

// Packet writes one line.
func (l *Line) Packet(p *loader.Captured) error {
	e := NewEvent(p)
	var err error
	if l.json {
		enc := json.NewEncoder(l.w)
		enc.SetEscapeHTML(false) // "a > b" stays legible
		err = enc.Encode(e)
	} else {
		_, err = fmt.Fprintln(l.w, e)
	}
	if err != nil {
		return fmt.Errorf("write packet: %w", err)
	}
	if p.Time.Sub(l.flushed) > flushEvery {
		l.flushed = p.Time
		return l.Idle()
	}
	return nil
}

func (e Event) String() string {
	verdict := e.Fate
	if e.Reason != "" && e.Reason != e.Fate {
		verdict += "(" + e.Reason + ")"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s@%s %s", e.Time.Format("15:04:05.000000"), e.Network, e.Hook, e.Device, verdict)
	if e.Inner != nil {
		fmt.Fprintf(&b, " %s > %s", e.Inner.SrcMAC, e.Inner.DstMAC)
		if e.Inner.VLAN != 0 {
			fmt.Fprintf(&b, " vlan %d", e.Inner.VLAN)
		}
		fmt.Fprintf(&b, " %s", e.Inner.Text)
	}
	if e.Outer != nil && e.Outer.Src != nil {
		fmt.Fprintf(&b, " [%s > %s]", e.Outer.Src, e.Outer.Dst)
	}
	fmt.Fprintf(&b, " %d", e.Length)
	if e.Sent != 0 && e.Sent != e.Length {
		fmt.Fprintf(&b, "->%d", e.Sent)
	}
	b.WriteString(" bytes")
	if e.Segments > 1 {
		fmt.Fprintf(&b, " in %d segments", e.Segments)
	}
	return b.String()
}

// text is what is in a frame, in a few words.
func (f *frame) text() string {
	ends := func() string {
		if f.sport < 0 {
			return fmt.Sprintf("%s > %s", f.src, f.dst)
		}
		return fmt.Sprintf("%s > %s", netip.AddrPortFrom(f.src, uint16(f.sport)), netip.AddrPortFrom(f.dst, uint16(f.dport)))
	}
	switch {
	case f.ether == etherARP && f.src.IsValid() && len(f.data) >= f.l3+8:
		if f.data[f.l3+7] == 1 {
			return fmt.Sprintf("ARP who has %s, tell %s", f.dst, f.src)
		}
		return fmt.Sprintf("ARP %s is here, to %s", f.src, f.dst)
	case f.ether == 0 && f.l3 > 0:
		return "LLC"
	case f.proto < 0:
		return fmt.Sprintf("ethertype 0x%04x", f.ether)
	case f.later:
		return ends() + fmt.Sprintf(" protocol %d, later fragment", f.proto)
	}
	var b []byte
	if f.l4 > 0 {
		b = f.data[f.l4:]
	}
	switch {
	case f.proto == protoTCP && len(b) >= 14:
		flags := ""
		for i, c := range "FSRP.UEW" {
			if b[13]&(1<<i) != 0 {
				flags += string(c)
			}
		}
		return fmt.Sprintf("%s tcp [%s] seq %d", ends(), flags, binary.BigEndian.Uint32(b[4:]))
	case f.proto == protoUDP:
		return ends() + " udp"
	case f.proto == protoICMP && len(b) >= 8, f.proto == protoICMPv6 && len(b) >= 8:
		names := map[byte]string{8: "echo request", 0: "echo reply", 3: "unreachable", 11: "time exceeded"}
		if f.proto == protoICMPv6 {
			names = map[byte]string{128: "echo request", 129: "echo reply", 1: "unreachable", 2: "too big", 3: "time exceeded",
				133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation", 136: "neighbour advertisement"}
		}
		name := names[b[0]]
		switch {
		case name == "":
			name = fmt.Sprintf("type %d code %d", b[0], b[1])
		case strings.HasPrefix(name, "echo"):
			name += fmt.Sprintf(" id %d seq %d", binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]))
		case f.proto == protoICMP && b[0] == 3 && b[1] == 4:
			name = fmt.Sprintf("too big, mtu %d", binary.BigEndian.Uint16(b[6:]))
		}
		return ends() + " icmp " + name
	}
	return fmt.Sprintf("%s protocol %d", ends(), f.proto)
}

// Idle shows what is there.
func (l *Line) Idle() error {
	if err := l.w.Flush(); err != nil {
		return fmt.Errorf("write packet: %w", err)
	}
	return nil
}

// Close is Idle; the count of what was lost is said elsewhere.
func (l *Line) Close(uint64) error { return l.Idle() }
