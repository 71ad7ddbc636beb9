// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader/kernel"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

const eth2Index = 20

var (
	eth2MAC  = fdb.MAC{2, 0, 0, 0, 0, 20}
	farNIC   = fdb.MAC{2, 0, 0, 0, 0, 22}
	hereV4   = netip.MustParseAddr("192.0.2.11")
	gateway  = netip.MustParseAddr("192.0.2.1")
	farVTEP6 = netip.MustParseAddr("2001:db8::12")
	hereV6   = netip.MustParseAddr("2001:db8::11")
)

// asked answers in the kernel's place.
type asked struct {
	routes map[netip.Addr]kernel.Route
	with   kernel.RouteOptions // of the last question
	probed []string
	broken error // what every question about system defaults ends with
}

func (a *asked) RouteTo(dst netip.Addr, o kernel.RouteOptions) (kernel.Route, error) {
	a.with = o
	r, ok := a.routes[dst]
	if !ok {
		return r, errors.New("no route to " + dst.String())
	}
	return r, nil
}

func (a *asked) ProbeNeighbour(dev int, ip netip.Addr) error {
	a.probed = append(a.probed, fmt.Sprint(dev, " ", ip))
	return nil
}

func (a *asked) DefaultTTL() (int, error)     { return 64, a.broken }
func (a *asked) HopLimit(string) (int, error) { return 63, a.broken }

// newTestVTEPs has room for so many VTEPs, on a host with eth2 and a way to both families' VTEPs.
func newTestVTEPs(t *testing.T, room uint32) (*vteps, *vxmaps.Set, *view, *asked) {
	t.Helper()
	spec, err := bpf.Load()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps["vx_vtep"].MaxEntries = room + 1 // 0 stays empty
	spec.Maps["vx_vtep_count"].MaxEntries = room + 1
	var m bpf.Maps
	if err := spec.LoadAndAssign(&m, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	set := vxmaps.New(&m)
	v := newView()
	v.setLink(kernel.Link{Index: eth2Index, Name: "eth2", MAC: eth2MAC, MTU: 1500, Up: true})
	v.neighbours[neighbourKey{eth2Index, farVTEP}] = kernel.Neighbour{Link: eth2Index, IP: farVTEP, MAC: farNIC, Valid: true}
	a := &asked{routes: map[netip.Addr]kernel.Route{
		farVTEP:  {Device: eth2Index, Src: hereV4, NextHop: farVTEP},
		elseV:    {Device: eth2Index, Src: hereV4, NextHop: gateway},
		farVTEP6: {Device: eth2Index, Src: hereV6, NextHop: farVTEP6},
	}}
	vt, err := newVTEPs(set, a)
	if err != nil {
		t.Fatal(err)
	}
	return vt, set, v, a
}

func keyTo(remote netip.Addr) vxmaps.VTEPKey {
	return vxmaps.VTEPKey{Remote: remote, Port: 4789, Low: 32768, High: 61000}
}

func inMap(t *testing.T, set *vxmaps.Set) map[uint32]vxmaps.VTEP {
	t.Helper()
	all, err := set.VTEPs.All()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func mustAcquire(t *testing.T, vt *vteps, k vxmaps.VTEPKey, v *view) uint32 {
	t.Helper()
	i, err := vt.acquire(k, 0, v)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// What a template says follows route, link and neighbour.
func TestVTEPTemplate(t *testing.T) {
	link := func(f func(*kernel.Link)) func(*vteps, *view, *asked) {
		return func(_ *vteps, v *view, _ *asked) { l := v.links[eth2Index]; f(&l); v.setLink(l) }
	}
	route := func(dst netip.Addr, f func(*kernel.Route)) func(*vteps, *view, *asked) {
		return func(_ *vteps, _ *view, a *asked) { r := a.routes[dst]; f(&r); a.routes[dst] = r }
	}
	usual := vxmaps.VTEP{VTEPKey: keyTo(farVTEP), Src: hereV4, HopLimit: 64, Device: eth2Index, SrcMAC: eth2MAC, DstMAC: farNIC, MACs: true, MTU: 1500}
	with := func(f func(*vxmaps.VTEP)) vxmaps.VTEP { v := usual; f(&v); return v }
	noMACs := with(func(v *vxmaps.VTEP) { v.MACs, v.DstMAC = false, fdb.MAC{} })
	for _, c := range []struct {
		name   string
		key    vxmaps.VTEPKey
		cap    int
		change func(*vteps, *view, *asked)
		want   vxmaps.VTEP
		why    string // of a VTEP that cannot be used
	}{
		{name: "on the link", want: usual},
		{name: "no neighbour yet", change: func(_ *vteps, v *view, _ *asked) { clear(v.neighbours) }, want: noMACs},
		{name: "a neighbour that failed", change: func(_ *vteps, v *view, _ *asked) {
			v.neighbours[neighbourKey{eth2Index, farVTEP}] = kernel.Neighbour{Link: eth2Index, IP: farVTEP, MAC: farNIC}
		}, want: noMACs},
		{name: "a neighbour without an address", change: func(_ *vteps, v *view, _ *asked) {
			v.neighbours[neighbourKey{eth2Index, farVTEP}] = kernel.Neighbour{Link: eth2Index, IP: farVTEP, Valid: true}
		}, want: noMACs},
		{name: "the neighbour of another device", change: func(_ *vteps, v *view, _ *asked) {
			clear(v.neighbours)
			v.neighbours[neighbourKey{eth2Index + 1, farVTEP}] = kernel.Neighbour{Link: eth2Index + 1, IP: farVTEP, MAC: farNIC, Valid: true}
		}, want: noMACs},
		{name: "behind a gateway", key: keyTo(elseV), change: func(_ *vteps, v *view, _ *asked) {
			v.neighbours[neighbourKey{eth2Index, gateway}] = kernel.Neighbour{Link: eth2Index, IP: gateway, MAC: hereMAC, Valid: true}
		}, want: with(func(v *vxmaps.VTEP) { v.VTEPKey, v.DstMAC = keyTo(elseV), hereMAC })},
		{name: "a route with less", change: route(farVTEP, func(r *kernel.Route) { r.MTU = 1400 }), want: with(func(v *vxmaps.VTEP) { v.MTU = 1400 })},
		{name: "a route with more than the device", change: route(farVTEP, func(r *kernel.Route) { r.MTU = 9000 }), want: usual},
		{name: "an underlay mtu", cap: 1300, want: with(func(v *vxmaps.VTEP) { v.MTU = 1300 })},
		{name: "an underlay mtu above the route's", cap: 1450, change: route(farVTEP, func(r *kernel.Route) { r.MTU = 1400 }), want: with(func(v *vxmaps.VTEP) { v.MTU = 1400 })},
		{name: "a route's hop limit", change: route(farVTEP, func(r *kernel.Route) { r.HopLimit = 7 }), want: with(func(v *vxmaps.VTEP) { v.HopLimit = 7 })},
		{name: "IPv6", key: keyTo(farVTEP6), want: with(func(v *vxmaps.VTEP) {
			v.VTEPKey, v.Src, v.HopLimit, v.MACs, v.DstMAC = keyTo(farVTEP6), hereV6, 63, false, fdb.MAC{}
		})},

		{name: "no route", change: func(_ *vteps, _ *view, a *asked) { clear(a.routes) }, why: "no route to 192.0.2.12"},
		{name: "this host", change: route(farVTEP, func(r *kernel.Route) { r.Local = true }), why: "is an address of this host"},
		{name: "device gone", change: func(_ *vteps, v *view, _ *asked) { delete(v.links, eth2Index) }, why: "interface 20, which is gone"},
		{name: "device down", change: link(func(l *kernel.Link) { l.Up = false }), why: "eth2 is down"},
		{name: "no Ethernet", change: link(func(l *kernel.Link) { l.MAC = fdb.MAC{} }), why: "eth2 has no Ethernet header"},
		{name: "no source", change: route(farVTEP, func(r *kernel.Route) { r.Src = netip.Addr{} }), why: "no source address for 192.0.2.12"},
		{name: "a source of the other family", change: route(farVTEP, func(r *kernel.Route) { r.Src = hereV6 }), why: "no source address for 192.0.2.12"},
		{name: "no default TTL", change: func(_ *vteps, _ *view, a *asked) { a.broken = errors.New("no sysctl") }, why: "no sysctl"},
	} {
		t.Run(c.name, func(t *testing.T) {
			vt, set, v, a := newTestVTEPs(t, 2)
			if !c.key.Remote.IsValid() {
				c.key = keyTo(farVTEP)
			}
			if c.change != nil {
				c.change(vt, v, a)
			}
			i, err := vt.acquire(c.key, c.cap, v)
			if err != nil {
				t.Fatal(err)
			}
			got := inMap(t, set)[i]
			if c.why != "" {
				// What comes from there is its all the same, so the address stays.
				if !got.Off || got.MACs || got.Remote != c.key.Remote || !strings.Contains(vt.byIdx[i].why, c.why) {
					t.Errorf("%+v, because of %q, want %q", got, vt.byIdx[i].why, c.why)
				}
				return
			}
			if got != c.want || vt.byIdx[i].why != "" || vt.byIdx[i].macs != c.want.MACs {
				t.Errorf("%+v, %q\nwant %+v", got, vt.byIdx[i].why, c.want)
			}
		})
	}
}

// The route is asked for as the vxlan device asks.
func TestVTEPRouteQuestion(t *testing.T) {
	vt, _, v, a := newTestVTEPs(t, 1)
	k := keyTo(farVTEP)
	k.Local, k.OIF, k.TOS = hereV4, eth2Index, 0x50
	mustAcquire(t, vt, k, v)
	if want := (kernel.RouteOptions{Src: hereV4, Device: eth2Index, TOS: 0x50, Port: 4789}); a.with != want {
		t.Errorf("asked %+v, want %+v", a.with, want)
	}
}

// An index is a VTEP's as long as an entry points to it, and then rests as long as it can.
func TestVTEPReferences(t *testing.T) {
	vt, set, v, _ := newTestVTEPs(t, 3)
	far, other := keyTo(farVTEP), keyTo(elseV)
	i := mustAcquire(t, vt, far, v)
	if j := mustAcquire(t, vt, far, v); j != i {
		t.Errorf("the same VTEP is at %d and %d", i, j)
	}
	j := mustAcquire(t, vt, other, v)
	if i == 0 || j == 0 || i == j {
		t.Errorf("indexes %d and %d", i, j)
	}
	apart := far
	apart.TTL = 9 // another network's options: another header
	l := mustAcquire(t, vt, apart, v)
	if _, err := vt.acquire(keyTo(farVTEP6), 0, v); err == nil || !strings.Contains(err.Error(), "all 3 places are taken") {
		t.Errorf("a fourth of three: %v", err)
	}
	if err := vt.release(far); err != nil || len(inMap(t, set)) != 3 {
		t.Errorf("one of two references given back: %v, %v", err, inMap(t, set))
	}
	if err := errors.Join(vt.release(far), vt.release(other)); err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(inMap(t, set))); !slices.Equal(got, []uint32{l}) {
		t.Errorf("in the map: %v, want %d alone", got, l)
	}
	if err := vt.release(far); err != nil {
		t.Errorf("one that nobody has: %v", err)
	}
	// The one that has rested longest serves next.
	if got := mustAcquire(t, vt, keyTo(farVTEP6), v); got != i {
		t.Errorf("the next VTEP is at %d, want %d, which has rested longer than %d", got, i, j)
	}
}

// What a kept map holds is taken over with its indexes; what nobody wants any more goes.
func TestVTEPTakeover(t *testing.T) {
	old, set, v, a := newTestVTEPs(t, 4)
	i, j := mustAcquire(t, old, keyTo(farVTEP), v), mustAcquire(t, old, keyTo(elseV), v)
	vt, err := newVTEPs(set, a)
	if err != nil {
		t.Fatal(err)
	}
	if got := mustAcquire(t, vt, keyTo(elseV), v); got != j {
		t.Errorf("taken over at %d, was at %d: FDB entries point there", got, j)
	}
	if err := vt.sweep(); err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(inMap(t, set))); !slices.Equal(got, []uint32{j}) {
		t.Errorf("after the sweep: %v, want %d without %d", got, j, i)
	}
	seen := map[uint32]bool{j: true}
	for n := range 3 {
		k := keyTo(farVTEP)
		k.TTL = uint8(n + 1)
		seen[mustAcquire(t, vt, k, v)] = true
	}
	if len(seen) != 4 {
		t.Errorf("places given: %v, want all 4 once", seen)
	}
}

// A change is written where it matters, and nowhere else.
func TestVTEPFollows(t *testing.T) {
	vt, set, v, a := newTestVTEPs(t, 2)
	i, j := mustAcquire(t, vt, keyTo(farVTEP), v), mustAcquire(t, vt, keyTo(elseV), v)
	k := neighbourKey{eth2Index, gateway}
	v.neighbours[k] = kernel.Neighbour{Link: eth2Index, IP: gateway, MAC: hereMAC, Valid: true}
	a.routes[farVTEP] = kernel.Route{} // who asks for it now is wrong
	if err := vt.neighbour(k, v); err != nil {
		t.Fatal(err)
	}
	m := inMap(t, set)
	if m[j].DstMAC != hereMAC || !m[j].MACs || m[i].DstMAC != farNIC {
		t.Errorf("after the gateway's answer: %+v", m)
	}
	a.routes[farVTEP] = kernel.Route{Device: eth2Index, Src: hereV4, NextHop: gateway, MTU: 1200}
	if err := vt.updateAll(v); err != nil {
		t.Fatal(err)
	}
	if m = inMap(t, set); m[i].DstMAC != hereMAC || m[i].MTU != 1200 {
		t.Errorf("after a change of routes: %+v", m[i])
	}
	delete(v.neighbours, k)
	if err := vt.neighbour(k, v); err != nil {
		t.Fatal(err)
	}
	for n, e := range inMap(t, set) {
		if e.MACs {
			t.Errorf("after the gateway has gone the MACs of %d are still right: %+v", n, e)
		}
	}
}

// Next hops that packets of the fast path would have confirmed are probed, each once.
func TestVTEPKeepAlive(t *testing.T) {
	vt, _, v, a := newTestVTEPs(t, 5)
	for n, remote := range []netip.Addr{farVTEP, elseV, farVTEP6} {
		mustAcquire(t, vt, keyTo(remote), v)
		if n == 1 { // a second header over the same gateway
			k := keyTo(remote)
			k.TTL = 3
			mustAcquire(t, vt, k, v)
		}
	}
	lost := keyTo(netip.MustParseAddr("198.51.100.1")) // no route
	mustAcquire(t, vt, lost, v)
	v.neighbours[neighbourKey{eth2Index, farVTEP6}] = kernel.Neighbour{MAC: farNIC, Valid: true, Stale: true}
	probed := func() []string {
		a.probed = nil
		if err := vt.keepAlive(v); err != nil {
			t.Fatal(err)
		}
		slices.Sort(a.probed)
		return a.probed
	}
	// The valid one is not asked, the missing gateway and the stale neighbour are.
	if got := probed(); !slices.Equal(got, []string{"20 192.0.2.1", "20 2001:db8::12"}) {
		t.Errorf("probed %v", got)
	}
	v.neighbours[neighbourKey{eth2Index, gateway}] = kernel.Neighbour{MAC: farNIC, Permanent: true}
	v.neighbours[neighbourKey{eth2Index, farVTEP}] = kernel.Neighbour{MAC: farNIC}
	v.neighbours[neighbourKey{eth2Index, farVTEP6}] = kernel.Neighbour{MAC: farNIC, Valid: true}
	if got := probed(); !slices.Equal(got, []string{"20 192.0.2.12"}) {
		t.Errorf("probed %v", got)
	}
}
