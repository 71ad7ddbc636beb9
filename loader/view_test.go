// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

const (
	brIndex   = 10
	vxIndex   = 11
	vethIndex = 12
	tapIndex  = 13
)

var (
	brMAC   = fdb.MAC{2, 0, 0, 0, 0, 10}
	hereMAC = fdb.MAC{2, 0, 0, 0, 0, 1}
	farMAC  = fdb.MAC{2, 0, 0, 0, 0, 2}
	farVTEP = netip.MustParseAddr("192.0.2.12")
	elseV   = netip.MustParseAddr("192.0.2.13")
)

// sample is a host as it should be: a bridge with a container, a tap and a vxlan link.
func sample() (*view, *network) {
	v := newView()
	port := func() *kernel.Port { return &kernel.Port{State: kernel.PortForwarding, Learning: true} }
	for _, l := range []kernel.Link{
		{Index: brIndex, Name: "br-mgmt", Kind: "bridge", MAC: brMAC, MTU: 1450, Up: true, Bridge: &kernel.Bridge{Ageing: 300 * time.Second}},
		{Index: vxIndex, Name: "encap-mgmt", Kind: "vxlan", MTU: 1450, Up: true, Master: brIndex, Port: port(),
			VXLAN: &kernel.VXLAN{VNI: 236, Port: 4789, TTL: 5, Learning: true, Ageing: 300 * time.Second}},
		{Index: vethIndex, Name: "veth1", Kind: "veth", MTU: 1450, Up: true, Master: brIndex, PeerElsewhere: true, Port: port()},
		{Index: tapIndex, Name: "tap1", Kind: "tun", MTU: 1400, Up: true, Master: brIndex, Port: port()},
	} {
		v.setLink(l)
	}
	v.setFDB(kernel.FDBEntry{MAC: brMAC, Link: brIndex, Bridge: brIndex, Local: true})
	v.setFDB(kernel.FDBEntry{MAC: hereMAC, Link: vethIndex, Bridge: brIndex, Age: 3 * time.Second})
	v.setFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Bridge: brIndex})
	v.setFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Self: true, Dst: farVTEP})
	v.peers[vethIndex] = hereMAC
	for _, a := range []string{"192.0.2.11", "2001:db8::11"} {
		v.addresses[netip.MustParseAddr(a)] = true
	}
	n := &network{id: 1, local: netip.MustParseAddr("192.0.2.11"), from: senders{check: maps.Check{Off: true}}}
	n.cfg = config.Network{Name: "mgmt", VNI: 236, Link: "encap-mgmt", Bridge: config.Bridge{Name: "br-mgmt"}, Underlay: config.Underlay{Port: 4789}}
	return v, n
}

func TestEntry(t *testing.T) {
	const now = 1000 * time.Second
	noLearning := func(v *view) { v.links[vxIndex].VXLAN.Learning = false }
	link := func(v *view, i int, f func(*kernel.Link)) { l := v.links[i]; f(&l); v.setLink(l) }
	port := func(v *view, i int, f func(*kernel.Port)) {
		link(v, i, func(l *kernel.Link) { p := *l.Port; f(&p); l.Port = &p })
	}
	edit := func(v *view, f func(*kernel.FDBEntry)) { e := v.vxlanFDB[vxIndex][farMAC]; f(&e); v.setFDB(e) }
	for _, c := range []struct {
		name   string
		change func(*view)
		mac    fdb.MAC
		want   fdb.Entry // zero: the kernel's way
	}{
		{"container", nil, hereMAC, fdb.Entry{Kind: fdb.Peer, Port: vethIndex, MTU: 1450, Seen: now - 3*time.Second}},
		{"behind a VTEP", nil, farMAC, fdb.Entry{Kind: fdb.Remote, VTEP: farVTEP, Seen: now}},
		{"the bridge's own address", nil, brMAC, fdb.Entry{Kind: fdb.Host, Port: brIndex, MTU: 1450, Static: true, Sticky: true, Seen: now}},
		{"unknown", nil, fdb.MAC{2}, fdb.Entry{}},
		{"a port's own address", func(v *view) {
			v.setFDB(kernel.FDBEntry{MAC: fdb.MAC{2, 9}, Link: vethIndex, Bridge: brIndex, Local: true})
		}, fdb.MAC{2, 9}, fdb.Entry{}},
		{"behind a container's device", func(v *view) { v.peers[vethIndex] = fdb.MAC{2, 7} }, hereMAC,
			fdb.Entry{Kind: fdb.Egress, Port: vethIndex, MTU: 1450, Seen: now - 3*time.Second}},
		{"container's device unknown", func(v *view) { v.peers = nil }, hereMAC,
			fdb.Entry{Kind: fdb.Egress, Port: vethIndex, MTU: 1450, Seen: now - 3*time.Second}},
		{"peer in this namespace", func(v *view) { link(v, vethIndex, func(l *kernel.Link) { l.PeerElsewhere = false }) }, hereMAC,
			fdb.Entry{Kind: fdb.Egress, Port: vethIndex, MTU: 1450, Seen: now - 3*time.Second}},
		{"tap", func(v *view) { v.setFDB(kernel.FDBEntry{MAC: hereMAC, Link: tapIndex, Bridge: brIndex}) }, hereMAC,
			fdb.Entry{Kind: fdb.Egress, Port: tapIndex, MTU: 1400, Seen: now}},
		{"static on both tables", func(v *view) {
			v.setFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Bridge: brIndex, Static: true})
			v.setFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Self: true, Dst: farVTEP, Extern: true})
		}, farMAC, fdb.Entry{Kind: fdb.Remote, VTEP: farVTEP, Static: true, Seen: now}},
		{"static in the bridge only: the vxlan device's entry ages", func(v *view) {
			v.setFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Bridge: brIndex, Static: true})
		}, farMAC, fdb.Entry{Kind: fdb.Remote, VTEP: farVTEP, Seen: now}},
		{"not in the vxlan table", func(v *view) { v.delFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Self: true, Dst: farVTEP}) }, farMAC, fdb.Entry{}},
		{"not in the bridge table", func(v *view) { v.delFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Bridge: brIndex}) }, farMAC, fdb.Entry{}},
		{"moved to another VTEP", func(v *view) {
			v.setFDB(kernel.FDBEntry{MAC: farMAC, Link: vxIndex, Self: true, Static: true, Dst: elseV})
		},
			farMAC, fdb.Entry{Kind: fdb.Remote, VTEP: elseV, Pinned: true, Seen: now}},
		{"next hop that is gone", func(v *view) { edit(v, func(e *kernel.FDBEntry) { e.NextHop = 7 }) }, farMAC, fdb.Entry{}},
		{"next hop, learning", func(v *view) {
			edit(v, func(e *kernel.FDBEntry) { e.NextHop, e.Dst = 7, netip.Addr{} })
			v.nextHops = map[uint32]kernel.NextHop{7: {ID: 7, Gateway: elseV, FDB: true}}
		}, farMAC, fdb.Entry{}},
		{"next hop", func(v *view) {
			noLearning(v)
			edit(v, func(e *kernel.FDBEntry) { e.NextHop, e.Dst = 7, netip.Addr{} })
			v.nextHops = map[uint32]kernel.NextHop{7: {ID: 7, Gateway: elseV, FDB: true}}
		}, farMAC, fdb.Entry{Kind: fdb.Remote, VTEP: elseV, Pinned: true, Seen: now}},
		{"next hop group of one", func(v *view) {
			noLearning(v)
			edit(v, func(e *kernel.FDBEntry) { e.NextHop, e.Dst = 9, netip.Addr{} })
			v.nextHops = map[uint32]kernel.NextHop{7: {ID: 7, Gateway: elseV, FDB: true}, 9: {ID: 9, Group: []uint32{7}, FDB: true}}
		}, farMAC, fdb.Entry{Kind: fdb.Remote, VTEP: elseV, Pinned: true, Seen: now}},
		{"next hop group of two", func(v *view) {
			noLearning(v)
			edit(v, func(e *kernel.FDBEntry) { e.NextHop, e.Dst = 9, netip.Addr{} })
			v.nextHops = map[uint32]kernel.NextHop{7: {ID: 7, Gateway: elseV, FDB: true}, 8: {ID: 8, Gateway: farVTEP, FDB: true},
				9: {ID: 9, Group: []uint32{7, 8}, FDB: true}}
		}, farMAC, fdb.Entry{}},
		{"another VNI", func(v *view) { edit(v, func(e *kernel.FDBEntry) { e.VNI = 7 }) }, farMAC, fdb.Entry{}},
		{"another UDP port", func(v *view) { edit(v, func(e *kernel.FDBEntry) { e.Port = 7 }) }, farMAC, fdb.Entry{}},
		{"through another device", func(v *view) { edit(v, func(e *kernel.FDBEntry) { e.IfIndex = 7 }) }, farMAC, fdb.Entry{}},
		{"IPv6 remote", func(v *view) { edit(v, func(e *kernel.FDBEntry) { e.Dst = netip.MustParseAddr("2001:db8::1") }) }, farMAC, fdb.Entry{}},
		{"waiting on a locked port", func(v *view) {
			v.setFDB(kernel.FDBEntry{MAC: hereMAC, Link: vethIndex, Bridge: brIndex, Waiting: true})
		}, hereMAC, fdb.Entry{}},
		{"port blocking", func(v *view) { port(v, vethIndex, func(p *kernel.Port) { p.State = kernel.PortBlocking }) }, hereMAC, fdb.Entry{}},
		{"port isolated", func(v *view) { port(v, vethIndex, func(p *kernel.Port) { p.Isolated = true }) }, hereMAC,
			fdb.Entry{Kind: fdb.Peer, Port: vethIndex, MTU: 1450, Seen: now - 3*time.Second}},
		{"port and vxlan link isolated from each other", func(v *view) {
			port(v, vethIndex, func(p *kernel.Port) { p.Isolated = true })
			port(v, vxIndex, func(p *kernel.Port) { p.Isolated = true })
		}, hereMAC, fdb.Entry{}},
		{"sticky", func(v *view) { v.setFDB(kernel.FDBEntry{MAC: hereMAC, Link: vethIndex, Bridge: brIndex, Sticky: true}) }, hereMAC,
			fdb.Entry{Kind: fdb.Peer, Port: vethIndex, MTU: 1450, Sticky: true, Seen: now}},
		{"port locked", func(v *view) { port(v, vethIndex, func(p *kernel.Port) { p.Locked = true }) }, hereMAC, fdb.Entry{}},
		{"port down", func(v *view) { link(v, vethIndex, func(l *kernel.Link) { l.Up = false }) }, hereMAC, fdb.Entry{}},
		{"port of another bridge", func(v *view) { link(v, vethIndex, func(l *kernel.Link) { l.Master = 99 }) }, hereMAC, fdb.Entry{}},
		{"port gone", func(v *view) { delete(v.links, vethIndex) }, hereMAC, fdb.Entry{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, n := sample()
			if c.change != nil {
				c.change(v)
			}
			n.resolve(v)
			if n.off != "" {
				t.Fatalf("network is off: %s", n.off)
			}
			got, ok := v.entry(n, c.mac, now)
			if got != c.want || ok != (c.want != fdb.Entry{}) {
				t.Errorf("got %+v, %v\nwant %+v", got, ok, c.want)
			}
		})
	}
}

// Each state in which the fast path cannot repeat the kernel's decision names itself.
func TestResolve(t *testing.T) {
	set := func(i int, f func(*kernel.Link)) func(*view) {
		return func(v *view) {
			l := v.links[i]
			if l.Bridge != nil {
				b := *l.Bridge
				l.Bridge = &b
			}
			if l.VXLAN != nil {
				x := *l.VXLAN
				l.VXLAN = &x
			}
			if l.Port != nil {
				p := *l.Port
				l.Port = &p
			}
			f(&l)
			v.setLink(l)
		}
	}
	for want, change := range map[string]func(*view){
		"bridge br-mgmt is gone":          func(v *view) { delete(v.links, brIndex) },
		"vxlan link encap-mgmt is gone":   func(v *view) { delete(v.links, vxIndex) },
		"encap-mgmt is not a port":        set(vxIndex, func(l *kernel.Link) { l.Master = 0 }),
		"bridge br-mgmt is down":          set(brIndex, func(l *kernel.Link) { l.Up = false }),
		"vxlan link encap-mgmt is down":   set(vxIndex, func(l *kernel.Link) { l.Up = false }),
		"forgets at once":                 set(brIndex, func(l *kernel.Link) { l.Bridge.Ageing = 0 }),
		"filters VLANs":                   set(brIndex, func(l *kernel.Link) { l.Bridge.VLANFiltering = true }),
		"external":                        set(vxIndex, func(l *kernel.Link) { l.VXLAN.External = true }),
		"another VNI or port":             set(vxIndex, func(l *kernel.Link) { l.VXLAN.VNI = 1 }),
		"is on no link":                   func(v *view) { delete(v.addresses, netip.MustParseAddr("192.0.2.11")) },
		"sends UDP checksums":             set(vxIndex, func(l *kernel.Link) { l.VXLAN.UDPCsum = true }),
		"sends UDP checksums over IPv6":   set(vxIndex, func(l *kernel.Link) { l.VXLAN.Local = netip.MustParseAddr("2001:db8::11") }),
		"encap-mgmt is not in forwarding": set(vxIndex, func(l *kernel.Link) { l.Port.State = kernel.PortLearning }),
	} {
		v, n := sample()
		change(v)
		n.resolve(v)
		if !strings.Contains(n.off, want) {
			t.Errorf("off is %q, want %q in it", n.off, want)
		}
		if len(v.table(n, 0)) != 0 {
			t.Errorf("%s: entries are left: %v", want, v.table(n, 0))
		}
	}
	v, n := sample()
	n.resolve(v)
	if got := len(v.table(n, 0)); got != 3 {
		t.Errorf("%d entries, want 3", got)
	}
}

// What stands for a network as a whole: not entries of one VLAN, not the flood list.
func TestSetFDBLeavesOut(t *testing.T) {
	v := newView()
	for _, e := range []kernel.FDBEntry{
		{MAC: farMAC, Bridge: brIndex, Link: vxIndex, VLAN: 7},
		{MAC: fdb.MAC{}, Link: vxIndex, Self: true, Dst: farVTEP},
		{MAC: fdb.MAC{1, 0, 0x5e}, Link: vxIndex, Self: true, Dst: farVTEP},
		{MAC: fdb.MAC{0x33, 0x33}, Bridge: brIndex, Link: vxIndex},
	} {
		v.setFDB(e)
	}
	if len(v.bridgeFDB[brIndex])+len(v.vxlanFDB[vxIndex]) != 0 {
		t.Errorf("%v %v", v.bridgeFDB, v.vxlanFDB)
	}
}

func TestAgeingIsTheShorter(t *testing.T) {
	for _, c := range []struct{ bridge, vxlan, want time.Duration }{
		{300 * time.Second, 300 * time.Second, 300 * time.Second},
		{300 * time.Second, 10 * time.Second, 10 * time.Second},
		{10 * time.Second, 300 * time.Second, 10 * time.Second},
		{300 * time.Second, 0, 300 * time.Second}, // a vxlan device never ages with 0
	} {
		n := &network{}
		n.bridge.Bridge, n.link.VXLAN = &kernel.Bridge{Ageing: c.bridge}, &kernel.VXLAN{Ageing: c.vxlan}
		if got := n.ageing(); got != c.want {
			t.Errorf("bridge %v, vxlan %v: %v, want %v", c.bridge, c.vxlan, got, c.want)
		}
	}
}
