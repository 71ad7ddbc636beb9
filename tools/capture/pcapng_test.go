// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
)

// sent is a packet that encap carried: 100 bytes, 150 with the outer header.
func sent(n int) *loader.Captured {
	return &loader.Captured{
		CaptureEvent: bpf.CaptureEvent{LenIn: 100, LenOut: 150, Had: 60, Got: 60, Net: 7, Hook: uint8(bpf.HookEncap), Fate: uint8(bpf.FateFast)},
		Time:         time.Unix(1000+int64(n), 5), Network: loader.NetworkState{Name: "mgmt", VNI: 236}, Device: "veth1",
		In: bytes.Repeat([]byte{byte(n)}, 60), Out: bytes.Repeat([]byte{byte(n + 100)}, 60),
	}
}

func dropped() *loader.Captured {
	p := sent(9)
	p.Hook, p.Fate, p.Reason, p.Device, p.Out, p.LenOut, p.Vlan = uint8(bpf.HookDecap), uint8(bpf.FateDrop), uint8(bpf.DropBroken), "eth2", nil, 0, 5
	return p
}

func read(t *testing.T, b []byte) (lines []string) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, o, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		i, err := r.Interface(ci.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		if i.LinkType != layers.LinkTypeEthernet || len(o.Verdicts) != 1 || o.PacketID == nil || o.Flags == nil {
			t.Fatalf("packet %+v at %+v", o, i)
		}
		lines = append(lines, fmt.Sprintf("%s #%d %d/%d x%d %v type %d verdict %d dir %d %s", i.Name, *o.PacketID, ci.CaptureLength, ci.Length, data[0],
			ci.Timestamp.Unix(), o.Verdicts[0].Type, int8(o.Verdicts[0].Data[0]), o.Flags.Direction, strings.Join(o.Comments, ";")))
	}
	return lines
}

func TestPcapng(t *testing.T) {
	var b bytes.Buffer
	p, err := NewPcapng(PcapngOptions{Path: "-", Out: &b, Length: 60, Filter: "icmp", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	if b.Len() == 0 {
		t.Error("who reads a pipe sees no header before the first packet")
	}
	for _, c := range []*loader.Captured{sent(1), dropped(), sent(2)} {
		if err := p.Packet(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(3); err != nil {
		t.Fatal(err)
	}
	want := `encap:veth1 #1 60/100 x1 1001 type 1 verdict 7 dir 1 network=mgmt vni=236 hook=encap dev=veth1 fate=fast reason=fast
encap:veth1:out #1 60/150 x101 1001 type 1 verdict 7 dir 2 network=mgmt vni=236 hook=encap dev=veth1 fate=fast reason=fast out
decap:eth2 #2 60/100 x9 1009 type 1 verdict 2 dir 1 network=mgmt vni=236 hook=decap dev=eth2 fate=drop reason=drop_broken vlan=5
encap:veth1 #3 60/100 x2 1002 type 1 verdict 7 dir 1 network=mgmt vni=236 hook=encap dev=veth1 fate=fast reason=fast
encap:veth1:out #3 60/150 x102 1002 type 1 verdict 7 dir 2 network=mgmt vni=236 hook=encap dev=veth1 fate=fast reason=fast out`
	if got := strings.Join(read(t, b.Bytes()), "\n"); got != want {
		t.Errorf("read back\n%s\nwant\n%s", got, want)
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(b.Bytes()), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, _, err = r.ReadPacketData()
	}
	i, err := r.Interface(0)
	if err != nil || i.Statistics.PacketsDropped != 3 || i.Statistics.PacketsReceived != 6 || i.Filter != "icmp" {
		t.Errorf("interface %+v, %v: want 3 of 6 packets dropped", i, err)
	}
}

func TestRotation(t *testing.T) {
	for _, c := range []struct {
		name string
		r    Rotation
		want map[string]int // packets by file
	}{
		{"never", Rotation{}, map[string]int{"x.pcapng": 14}},
		{"count", Rotation{Packets: 3}, map[string]int{"x-00001.pcapng": 6, "x-00002.pcapng": 6, "x-00003.pcapng": 2}},
		{"keep", Rotation{Packets: 3, Keep: 2}, map[string]int{"x-00002.pcapng": 6, "x-00003.pcapng": 2}},
		{"time", Rotation{Every: time.Nanosecond, Keep: 1}, map[string]int{"x-00008.pcapng": 2}},
		{"size", Rotation{Bytes: 1, Packets: 100, Keep: 1}, map[string]int{"x-00007.pcapng": 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			p, err := NewPcapng(PcapngOptions{Path: filepath.Join(dir, "x.pcapng"), Length: 60, Rotation: c.r})
			if err != nil {
				t.Fatal(err)
			}
			for n := range 7 {
				if err := p.Packet(sent(n)); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(0); err != nil {
				t.Fatal(err)
			}
			files, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]int{}
			for _, f := range files {
				b, err := os.ReadFile(filepath.Join(dir, f.Name()))
				if err != nil {
					t.Fatal(err)
				}
				if i, err := f.Info(); err != nil || i.Mode() != 0o600 {
					t.Errorf("%s has mode %v: others can read what is in the packets", f.Name(), i.Mode())
				}
				got[f.Name()] = len(read(t, b))
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("files %v, want %v", got, c.want)
			}
		})
	}
	if _, err := NewPcapng(PcapngOptions{Path: "-", Rotation: Rotation{Packets: 1}}); err == nil {
		t.Error("the standard output was rotated")
	}
	if _, err := NewPcapng(PcapngOptions{Path: "/nowhere/x"}); err == nil {
		t.Error("a file was made in /nowhere")
	}
}

func TestRule(t *testing.T) {
	frames := sampleFrames(t)
	icmp, arp := -1, -1
	for i, f := range frames {
		switch p := parse(f, len(f), 0); {
		case p.proto == protoICMP:
			icmp = i
		case p.ether == etherARP:
			arp = i
		}
	}
	// An outer header in front: IPv4 from 192.0.2.11 to 192.0.2.12 (RFC 7348 section 5).
	outer := func(in []byte) []byte {
		b := append(make([]byte, 12), 0x08, 0)
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 5, 17, 0, 0, 192, 0, 2, 11, 192, 0, 2, 12}
		return append(append(append(b, ip...), 0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 236, 0), in...)
	}
	packet := func(h bpf.Hook, in, out []byte) *loader.Captured {
		return &loader.Captured{CaptureEvent: bpf.CaptureEvent{Hook: uint8(h), LenIn: uint32(len(in)), LenOut: uint32(len(out))}, In: in, Out: out,
			Network: loader.NetworkState{VNI: 236}}
	}
	ping, who := frames[icmp], frames[arp]
	packets := map[string]*loader.Captured{
		"out":     packet(bpf.HookEncap, ping, outer(ping)),
		"in":      packet(bpf.HookDecap, outer(ping), ping),
		"refused": packet(bpf.HookDecap, outer(who), nil),
		"flooded": packet(bpf.HookEncap, who, nil),
		"given":   packet(bpf.HookDeliver, ping, ping),
	}
	for _, c := range []struct{ anywhere, inner, outer, want string }{
		{"", "", "", "flooded given in out refused"},
		{"icmp", "", "", "given in out"},
		{"udp port 4789", "", "", "in out refused"},
		{"", "udp port 4789", "", ""},
		{"", "icmp", "host 192.0.2.12", "in out"},
		{"", "", "host 192.0.2.99", ""},
		{"vni 236 and arp", "", "", "flooded refused"},
		{"", "arp", "src host 192.0.2.11", "refused"},
	} {
		r, err := ParseRule(c.anywhere, c.inner, c.outer)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range []string{"flooded", "given", "in", "out", "refused"} {
			if r.Match(packets[name]) {
				got = append(got, name)
			}
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%q inner %q outer %q: %s, want %s", c.anywhere, c.inner, c.outer, g, c.want)
		}
	}
	e := NewEvent(packets["in"]).String()
	if !strings.Contains(e, "decap@") || !strings.Contains(e, "[192.0.2.11 > 192.0.2.12]") || !strings.Contains(e, "icmp echo") {
		t.Errorf("line %q", e)
	}
}
