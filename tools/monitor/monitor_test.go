// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/observe"
)

const (
	br = 3 + iota
	vx
	v1
	v2
)

var (
	mac   = fdb.MAC{2, 0, 0, 0, 0, 1}
	far   = netip.MustParseAddr("192.0.2.12")
	other = netip.MustParseAddr("192.0.2.13")
)

func snapshot(second int) *observe.Snapshot {
	return &observe.Snapshot{Mono: time.Duration(second) * time.Second, Daemon: 7,
		State: &loader.State{Instance: "i", Networks: []loader.NetworkState{{Name: "mgmt", VNI: 236, Bridge: "br-mgmt", Link: "encap-mgmt", Mode: config.TC,
			Ports: []loader.PortState{{Name: "v1", Index: v1, Fast: true}}}}},
		Networks: []observe.Network{{Name: "mgmt", VNI: 236}},
		VTEPs:    []observe.VTEP{{Remote: far, Index: 1, State: "ready", MTU: 1500}},
		Counts:   map[string]maps.Counts{"mgmt": {}},
	}
}

// follow is a follower on a bridge with two ports, and what it says.
func follow() (*follower, *[]string) {
	said := &[]string{}
	f := newFollower(snapshot(0), func(e Event) error {
		_, line, _ := strings.Cut(e.Text(), "  ")
		*said = append(*said, strings.Join(strings.Fields(line), " "))
		return nil
	}, 0)
	f.links = map[int]kernel.Link{br: {Index: br, Name: "br-mgmt"}, vx: {Index: vx, Name: "encap-mgmt", Master: br}, v1: {Index: v1, Name: "v1", Master: br}, v2: {Index: v2, Name: "v2", Master: br}}
	f.bridge, f.vxlan = map[int]map[fdb.MAC]int{}, map[int]map[fdb.MAC]netip.Addr{}
	return f, said
}

func at(port int) kernel.FDBEntry { return kernel.FDBEntry{MAC: mac, Link: port, Bridge: br} }

func behind(v netip.Addr) kernel.FDBEntry {
	return kernel.FDBEntry{MAC: mac, Link: vx, Self: true, Dst: v}
}

func wants(t *testing.T, said *[]string, want ...string) {
	t.Helper()
	if got := strings.Join(*said, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("said\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	*said = nil
}

// The kernel tells of a MAC behind a VTEP in two halves, in either order: one event, when both are there.
func TestFDB(t *testing.T) {
	f, said := follow()
	feed := func(events ...kernel.Event) {
		t.Helper()
		for _, e := range events {
			if err := f.event(nil, e); err != nil {
				t.Fatal(err)
			}
		}
	}
	feed(kernel.FDBChanged{FDBEntry: at(v1)}, kernel.FDBChanged{FDBEntry: at(v1)})
	wants(t, said, "fdb_learned mgmt 02:00:00:00:00:01 v1")
	feed(kernel.FDBChanged{FDBEntry: at(v2)})
	wants(t, said, "fdb_moved mgmt 02:00:00:00:00:01 v1 -> v2")
	feed(kernel.FDBChanged{FDBEntry: behind(far)})
	wants(t, said)
	feed(kernel.FDBChanged{FDBEntry: at(vx)})
	wants(t, said, "fdb_moved mgmt 02:00:00:00:00:01 v2 -> 192.0.2.12")
	feed(kernel.FDBChanged{FDBEntry: behind(other)})
	wants(t, said, "fdb_moved mgmt 02:00:00:00:00:01 192.0.2.12 -> 192.0.2.13")
	feed(kernel.FDBGone{FDBEntry: behind(other)}, kernel.FDBGone{FDBEntry: at(vx)})
	wants(t, said, "fdb_gone mgmt 02:00:00:00:00:01 was 192.0.2.13")
	// Not ours: another bridge, a group, the flood list, a port's own address.
	feed(kernel.FDBChanged{FDBEntry: kernel.FDBEntry{MAC: mac, Link: v1, Bridge: 99}}, kernel.FDBChanged{FDBEntry: kernel.FDBEntry{MAC: fdb.MAC{1}, Link: v1, Bridge: br}},
		kernel.FDBChanged{FDBEntry: kernel.FDBEntry{Link: vx, Self: true, Dst: far}}, kernel.FDBChanged{FDBEntry: kernel.FDBEntry{MAC: fdb.MAC{2, 9}, Link: v1, Bridge: br, Local: true}})
	wants(t, said)
}

func TestLooks(t *testing.T) {
	f, said := follow()
	next := 0
	look := func(change func(*observe.Snapshot)) {
		t.Helper()
		next++
		s := snapshot(next)
		change(s)
		if err := f.look(s); err != nil {
			t.Fatal(err)
		}
	}
	same := func(*observe.Snapshot) {}
	look(same)
	wants(t, said)
	look(func(s *observe.Snapshot) { s.Daemon = 0 })
	wants(t, said, "daemon pid 7 -> none the data path goes on; new MAC addresses take the kernel's way")
	look(same)
	wants(t, said, "daemon pid 7")
	const why = "vxlan link encap-mgmt is down"
	look(func(s *observe.Snapshot) {
		n := &s.State.Networks[0]
		n.Reason, n.Ports[0].Fast, n.Ports[0].Reason = why, false, why
	})
	wants(t, said, "mode mgmt tc -> slow "+why)
	look(same)
	wants(t, said, "mode mgmt slow -> tc")
	look(func(s *observe.Snapshot) {
		s.State.Networks[0].Ports[0].Fast, s.State.Networks[0].Ports[0].Reason = false, "v1 is locked"
	})
	wants(t, said, "mode mgmt v1 fast -> slow v1 is locked")
	look(same)
	*said = nil
	look(func(s *observe.Snapshot) { s.VTEPs[0].State = "down" })
	wants(t, said, "vtep_down 192.0.2.12 no way there; see `vxbpf doctor`")
	look(func(s *observe.Snapshot) { s.VTEPs[0].State = "resolving" })
	wants(t, said, "vtep_up 192.0.2.12 path MTU 1500")
	look(func(s *observe.Snapshot) { s.VTEPs = nil })
	wants(t, said, "vtep_down 192.0.2.12 no MAC address is known behind it any more")
	look(same)
	wants(t, said, "vtep_up 192.0.2.12 path MTU 1500")
	look(func(s *observe.Snapshot) { s.State.Repairs.Repaired = 2 })
	wants(t, said, "repaired 2 somebody changed what the config says; the daemon's log says what")
	look(same)
	f.rate = 10
	look(func(s *observe.Snapshot) {
		s.Counts["mgmt"] = maps.Counts{bpf.HookDecap: {bpf.DropBroken: {Packets: 10}}}
	})
	wants(t, said)
	look(func(s *observe.Snapshot) {
		s.Counts["mgmt"] = maps.Counts{bpf.HookDecap: {bpf.DropBroken: {Packets: 50}}}
	})
	wants(t, said, "drops mgmt 40.0/s 40 drop_broken: DROPPED: a helper failed after the packet was changed")
	look(func(s *observe.Snapshot) { s.State.Networks, s.Networks = nil, nil })
	wants(t, said, "mode mgmt tc -> gone")
}

func TestJSON(t *testing.T) {
	vni := fdb.VNI(236)
	b, err := json.Marshal(Event{Time: time.Unix(0, 0).UTC(), Kind: Learned, Network: "mgmt", VNI: &vni, MAC: &mac, VTEP: far})
	if want := `{"time":"1970-01-01T00:00:00Z","kind":"fdb_learned","network":"mgmt","vni":236,"mac":"02:00:00:00:00:01","vtep":"192.0.2.12"}`; err != nil || string(b) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, b, want)
	}
}
