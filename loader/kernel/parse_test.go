// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write testdata/messages.want anew; read the diff")

// captured reads testdata/messages.txt: messages of a 6.18 kernel on a
// little-endian machine, one a line, as "what hex".
func captured(t testing.TB) (kinds []string, msgs [][]byte) {
	t.Helper()
	b, err := os.ReadFile("testdata/messages.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		kind, h, _ := strings.Cut(strings.TrimSpace(line), " ")
		m, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		kinds, msgs = append(kinds, kind), append(msgs, m)
	}
	return kinds, msgs
}

// parseAny parses a message with the parser of its kind, into text.
func parseAny(kind string, b []byte) (string, error) {
	text := func(v any, ok bool, err error) (string, error) {
		if !ok && err == nil {
			return "none", nil
		}
		return fmt.Sprintf("%+v", v), err
	}
	switch kind {
	case "link":
		l, err := parseLink(b)
		s := fmt.Sprintf("%d %s %s mac %s mtu %d up %v carrier %v master %d elsewhere %v peer %d",
			l.Index, l.Name, l.Kind, l.MAC, l.MTU, l.Up, l.Carrier, l.Master, l.PeerElsewhere, l.Peer)
		for _, part := range []string{fmt.Sprintf("%+v", l.Bridge), fmt.Sprintf("%+v", l.VXLAN), fmt.Sprintf("%+v", l.Port)} {
			if part != "<nil>" {
				s += " " + part
			}
		}
		return s, err
	case "fdb":
		return text(parse3(parseFDB(b)))
	case "neighbour":
		return text(parse3(parseNeighbour(b)))
	case "address":
		return text(parse3(parseAddress(b)))
	case "nexthop":
		return text(parse3(parseNextHop(b)))
	case "route":
		r, err := parseRoute(b)
		return text(r, true, err)
	case "datagram":
		var d decoder
		var out []string
		for m := range d.messages(b) {
			e, err := parseEvent(m)
			if err != nil {
				return "", err
			}
			out = append(out, fmt.Sprintf("%T%+v", e, e))
		}
		return strings.Join(out, " "), d.err
	}
	return "", fmt.Errorf("kind %q", kind)
}

func parse3[T any](v T, ok bool, err error) (any, bool, error) { return v, ok, err }

func TestParseCaptured(t *testing.T) {
	kinds, msgs := captured(t)
	var got strings.Builder
	for i := range msgs {
		s, err := parseAny(kinds[i], msgs[i])
		if err != nil {
			t.Errorf("message %d: %v", i, err)
		}
		fmt.Fprintf(&got, "%s %s\n", kinds[i], s)
	}
	if *update {
		if err := os.WriteFile("testdata/messages.want", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/messages.want")
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("parsed\n%s\nwant\n%s", got.String(), want)
	}
}

// TestParseTruncated cuts each message at every length. The slice has no
// capacity beyond the cut, so reading past it panics.
func TestParseTruncated(t *testing.T) {
	kinds, msgs := captured(t)
	for i, m := range msgs {
		for n := range len(m) {
			_, err := parseAny(kinds[i], bytes.Clone(m[:n:n])[:n:n])
			if n%4 != 0 && err == nil && kinds[i] != "datagram" && n != len(m) {
				// Attributes are aligned: a cut inside one must show, unless only padding is gone.
				if rest := m[n : (n+3)&^3]; len(bytes.Trim(rest, "\x00")) > 0 {
					t.Errorf("message %d (%s) cut to %d of %d bytes parses", i, kinds[i], n, len(m))
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	kinds, msgs := captured(f)
	all := []string{"link", "fdb", "neighbour", "address", "nexthop", "route", "datagram"}
	for i := range msgs {
		for k, kind := range all {
			if kind == kinds[i] {
				f.Add(uint8(k), msgs[i])
			}
		}
	}
	types := []uint16{
		unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, unix.RTM_NEWADDR,
		unix.RTM_DELADDR, unix.RTM_NEWROUTE, unix.RTM_NEWNEXTHOP, unix.RTM_GETNEIGH,
	}
	f.Fuzz(func(t *testing.T, k uint8, b []byte) {
		b = bytes.Clone(b)
		b = b[:len(b):len(b)]
		_, _ = parseAny(all[int(k)%len(all)], b)
		for _, typ := range types {
			if e, err := parseEvent(message{typ, b}); err != nil && e != nil {
				t.Errorf("event %+v with error %v", e, err)
			}
		}
	})
}

// TestEventKinds: what a message type and its family mean.
func TestEventKinds(t *testing.T) {
	link := func(family uint8) []byte {
		b := ifInfo(7, 0, 0)
		b[0] = family
		b = append(b, 8, 0, unix.IFLA_MASTER, 0, 4, 0, 0, 0)
		return append(b, 7, 0, unix.IFLA_IFNAME, 0, 'p', '0', 0, 0)
	}
	mac := []byte{10, 0, unix.NDA_LLADDR, 0, 2, 0, 0, 0, 0, 1, 0, 0}
	filter := append(ndMsg(unix.AF_BRIDGE, 7, unix.NUD_PERMANENT, unix.NTF_SELF), mac...)
	bridge := append(append(ndMsg(unix.AF_BRIDGE, 7, unix.NUD_REACHABLE, 0), mac...), 8, 0, unix.NDA_MASTER, 0, 4, 0, 0, 0)
	neigh := append(ndMsg(unix.AF_INET, 7, unix.NUD_FAILED, 0), 8, 0, unix.NDA_DST, 0, 10, 9, 0, 2)
	addr := append([]byte{unix.AF_INET, 24, 0, 0, 7, 0, 0, 0}, 8, 0, unix.IFA_ADDRESS, 0, 10, 9, 0, 1)
	for _, tc := range []struct {
		typ  uint16
		data []byte
		want string
	}{
		{unix.RTM_NEWLINK, link(unix.AF_UNSPEC), "kernel.LinkChanged"},
		{unix.RTM_DELLINK, link(unix.AF_UNSPEC), "kernel.LinkGone{Index:7 Name:p0}"},
		{unix.RTM_NEWLINK, link(unix.AF_BRIDGE), "kernel.PortChanged{Index:7 Bridge:4}"},
		{unix.RTM_DELLINK, link(unix.AF_BRIDGE), "kernel.PortGone{Index:7 Bridge:4}"},
		{unix.RTM_NEWLINK, link(unix.AF_INET6), "<nil>"},
		{unix.RTM_NEWNEIGH, bridge, "kernel.FDBChanged"},
		{unix.RTM_DELNEIGH, bridge, "kernel.FDBGone"},
		{unix.RTM_NEWNEIGH, filter, "<nil>"},
		{unix.RTM_GETNEIGH, neigh, "<nil>"}, // a miss that the kernel asks user space about
		{unix.RTM_NEWNEIGH, neigh, "kernel.NeighbourChanged{Neighbour:{Link:7 IP:10.9.0.2 MAC:00:00:00:00:00:00 Valid:false Stale:false Permanent:false}}"},
		{unix.RTM_DELNEIGH, neigh, "kernel.NeighbourGone"},
		{unix.RTM_NEWADDR, addr, "kernel.AddressChanged{Link:7}"},
		{unix.RTM_DELADDR, addr, "kernel.AddressChanged{Link:7}"},
		{unix.RTM_NEWROUTE, nil, "kernel.RouteChanged{}"},
		{unix.RTM_DELNEXTHOP, nil, "kernel.NextHopChanged{}"},
		{unix.RTM_NEWRULE, nil, "<nil>"},
	} {
		e, err := parseEvent(message{tc.typ, tc.data})
		if err != nil {
			t.Errorf("type %d: %v", tc.typ, err)
			continue
		}
		got := "<nil>"
		if e != nil {
			got = fmt.Sprintf("%T%+v", e, e)
		}
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("type %d: %s, want %s", tc.typ, got, tc.want)
		}
	}
}
