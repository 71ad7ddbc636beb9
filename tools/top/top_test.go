// SPDX-License-Identifier: Apache-2.0

package top

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// at is a data path of n networks at second t: network i sends (i+1)*100 packets a second, network 0 all of them slow.
func at(n, t int) *observe.Snapshot {
	s := &observe.Snapshot{Mono: time.Duration(t) * time.Second, Daemon: 7, State: &loader.State{Instance: "default"}, Counts: map[string]maps.Counts{}}
	for i := range n {
		name := string(rune('a'+i%26)) + strings.Repeat("x", i/26)
		packets := uint64((i + 1) * 100 * t)
		fast := packets
		if i == 0 {
			fast = 0
		}
		s.Networks = append(s.Networks, observe.Network{Name: name, ID: 1, VNI: fdb.VNI(16000000 + i), Datapath: config.TC, FDBLocal: 2, FDBRemote: 4,
			Sent: observe.Share{Fast: fast, Total: packets, FastBytes: 100 * fast, Bytes: 100 * packets}})
		s.Counts[name] = maps.Counts{bpf.HookEncap: {bpf.Fast: {Packets: fast, Bytes: 100 * fast}, bpf.BUM: {Packets: packets - fast}},
			bpf.HookDecap: {bpf.Aggregate: {Packets: packets}}}
		s.Ports = append(s.Ports, observe.Port{Network: name, Name: "v" + name, Index: i + 1, Role: "port", Fast: i > 0, Traffic: &observe.PortTraffic{
			Sent: maps.Count{Packets: uint64(1000 + 10*(i+1)*t), Bytes: 1}, Received: maps.Count{Packets: uint64(t), Bytes: uint64(100 * t)}}},
			observe.Port{Network: name, Name: "br" + name, Index: 1000 + i, Role: "bridge"})
		s.State.Networks = append(s.State.Networks, loader.NetworkState{Name: name, Mode: config.TC})
	}
	s.VTEPs = []observe.VTEP{{Remote: netip.MustParseAddr("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"), State: "resolving", MACs: 100000, Index: 1,
		Traffic: maps.Traffic{SentFast: maps.Count{Packets: uint64(1e9 * t), Bytes: uint64(1e11 * t)}}}}
	return s
}

func model(t *testing.T, n int, view, order string) *Model {
	t.Helper()
	m, err := New(observe.Options{}, time.Second, view, order)
	if err != nil {
		t.Fatal(err)
	}
	sec := 0
	m.read = func(observe.Options) (*observe.Snapshot, error) { sec++; return at(n, sec), nil }
	if err := m.First(); err != nil {
		t.Fatal(err)
	}
	s, _ := m.read(observe.Options{})
	m.Update(look{s: s})
	return m
}

// Whatever there is, the screen is as large as the terminal: a line more, and it scrolls at each look.
func TestFits(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {200, 50}, {40, 10}, {20, 4}} {
		for _, view := range views {
			for _, n := range []int{1, 5, 60} {
				m := model(t, n, view, "packets")
				m.last.Daemon = 0 // a problem of more than 80 characters
				m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
				lines := strings.Split(m.View(), "\n")
				if len(lines) != size[1] {
					t.Errorf("%v %s of %d: %d lines", size, view, n, len(lines))
				}
				if foot := lines[len(lines)-1]; size[0] >= 80 && n == 1 && !strings.HasSuffix(foot, "q quit") {
					t.Errorf("%v: the keys do not fit: %q", size, foot)
				}
				for _, l := range lines {
					if len([]rune(l)) > size[0] {
						t.Errorf("%v %s of %d: %d columns: %q", size, view, n, len([]rune(l)), l)
					}
				}
			}
		}
	}
}

func column(m *Model, i int) (out []string) {
	for _, r := range m.table()[1:] {
		out = append(out, r[i])
	}
	return out
}

func TestOrder(t *testing.T) {
	for order, want := range map[string]string{"packets": "c b a", "bits": "c b a", "name": "a b c", "fast": "a b c"} {
		if got := strings.Join(column(model(t, 3, "networks", order), 0), " "); got != want {
			t.Errorf("by %s: %s, want %s", order, got, want)
		}
	}
	m := model(t, 3, "networks", "packets")
	if got := strings.Join(column(m, 4), " "); got != "300 200 100" {
		t.Errorf("packets per second: %s", got)
	}
	if got := strings.Join(column(m, 6), " "); got != "100.0% 100.0% 0.0%" {
		t.Errorf("shares: %s", got)
	}
	// Ports have rates only between two looks: port i sends 10*(i+1) and receives 1 packet a second. The bridge is none.
	m = model(t, 2, "ports", "packets")
	if got := strings.Join(column(m, 0), " ") + " " + strings.Join(column(m, 4), " ") + " " + strings.Join(column(m, 7), " "); got != "vb va 20 10 800 800" {
		t.Errorf("ports, packets out and bits in: %s", got)
	}
	// What the underlay hook leaves to the kernel is not shown twice.
	if got := strings.Join(column(model(t, 2, "reasons", "name"), 2), " "); got != "bum fast" {
		t.Errorf("reasons: %s", got)
	}
}

func TestKeys(t *testing.T) {
	m := model(t, 60, "networks", "packets")
	press := func(keys ...string) {
		for _, k := range keys {
			msg := tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune(k)}
			switch k {
			case "tab":
				msg = tea.KeyMsg{Type: tea.KeyTab}
			case "down":
				msg = tea.KeyMsg{Type: tea.KeyDown}
			case "pgdown":
				msg = tea.KeyMsg{Type: tea.KeyPgDown}
			}
			m.Update(msg)
		}
	}
	press("v")
	if !strings.Contains(m.View(), "2001:db8") {
		t.Error("v shows no VTEP")
	}
	press("tab", "tab", "s")
	if m.view != "reasons" || m.order != "bits" {
		t.Errorf("view %s, order %s", m.view, m.order)
	}
	press("n", "down")
	if strings.Contains(m.View(), "16000059") || m.from != 1 {
		t.Errorf("scrolled to %d:\n%s", m.from, m.View())
	}
	press("pgdown", "pgdown", "pgdown", "pgdown", "pgdown")
	if v := m.View(); !strings.Contains(v, "16000000") || !strings.Contains(v, "of 60") {
		t.Errorf("the end:\n%s", v)
	}
	press("+", "+", "-")
	if m.every != 2*time.Second {
		t.Errorf("interval %s", m.every)
	}
	press(" ")
	before := m.last
	if _, cmd := m.Update(tick{}); cmd == nil || m.last != before || !strings.Contains(m.View(), "STOPPED") {
		t.Error("it does not stop")
	}
	if _, cmd := m.Update(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("q")}); cmd == nil {
		t.Error("q does not end it")
	}
}

// A look that fails is said, and does not end it.
func TestError(t *testing.T) {
	m := model(t, 1, "networks", "packets")
	m.Update(look{err: errors.New("open pinned map: no such file")})
	if !strings.Contains(m.View(), "no such file") || !strings.Contains(m.View(), "16000000") {
		t.Errorf("\n%s", m.View())
	}
	s, _ := m.read(observe.Options{})
	m.Update(look{s: s})
	if strings.Contains(m.View(), "no such file") {
		t.Error("the error stays")
	}
}

func TestOnce(t *testing.T) {
	m := model(t, 2, "vteps", "name")
	m.every = time.Millisecond
	var b strings.Builder
	if err := m.Once(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nNETWORK", "\nVTEP", "REASON", "1.0G", "daemon up"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	for _, bad := range [][2]string{{"x", "name"}, {"vteps", "x"}} {
		if _, err := New(observe.Options{}, time.Second, bad[0], bad[1]); err == nil {
			t.Errorf("New takes %v", bad)
		}
	}
}
