// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps"
)

// paths is what vteps asks the kernel; *kernel.Handle answers.
type paths interface {
	RouteTo(dst netip.Addr, o kernel.RouteOptions) (kernel.Route, error)
	ProbeNeighbour(dev int, ip netip.Addr) error
	DefaultTTL() (int, error)
	HopLimit(device string) (int, error)
}

// vteps keeps the outer headers right: one per VTEP and set of tunnel options,
// counted by the FDB entries that point to it.
type vteps struct {
	m     *maps.VTEPs
	count *maps.VTEPCounters
	ask   paths
	index map[maps.VTEPKey]uint32
	byIdx map[uint32]*vtep
	hops  map[string]int // by device, "" for IPv4, while all are updated; else nil
	// free is a queue, so that an index rests before it serves another VTEP: a
	// packet under way may still hold the old one.
	free []uint32
}

type vtep struct {
	key    maps.VTEPKey
	refs   int
	mtuCap int // configured underlay MTU, 0 for none
	route  kernel.Route
	why    string // why it cannot be used, "" if it can
	macs   bool   // the template's MACs are right
}

// newVTEPs takes over what the map holds from an earlier run.
func newVTEPs(set *maps.Set, ask paths) (*vteps, error) {
	m := set.VTEPs
	t := &vteps{m: m, count: set.ByVTEP, ask: ask, index: map[maps.VTEPKey]uint32{}, byIdx: map[uint32]*vtep{}}
	have, err := m.All()
	if err != nil {
		return nil, err
	}
	for i := uint32(1); i < m.Len(); i++ {
		v, used := have[i]
		if _, twice := t.index[v.VTEPKey]; !used || twice {
			t.free = append(t.free, i)
			continue
		}
		t.index[v.VTEPKey] = i
		t.byIdx[i] = &vtep{key: v.VTEPKey}
	}
	return t, nil
}

// acquire returns the index of a VTEP, one more reference on it.
func (t *vteps) acquire(k maps.VTEPKey, mtuCap int, v *view) (uint32, error) {
	i, ok := t.index[k]
	if !ok {
		if len(t.free) == 0 {
			return 0, fmt.Errorf("add VTEP %v: all %d places are taken", k.Remote, t.m.Len()-1)
		}
		i = t.free[0]
		if err := t.count.Reset(i); err != nil {
			return 0, err
		}
		t.free = t.free[1:]
		t.index[k] = i
		t.byIdx[i] = &vtep{key: k}
	}
	e := t.byIdx[i]
	fresh := e.refs == 0
	e.refs++
	if fresh || e.mtuCap != mtuCap {
		e.mtuCap = mtuCap
		if err := t.update(i, v); err != nil {
			return 0, err
		}
	}
	return i, nil
}

// release gives one reference back. The last one empties the index.
func (t *vteps) release(k maps.VTEPKey) error {
	i, ok := t.index[k]
	if !ok {
		return nil
	}
	e := t.byIdx[i]
	if e.refs--; e.refs > 0 {
		return nil
	}
	return t.drop(i)
}

func (t *vteps) drop(i uint32) error {
	delete(t.index, t.byIdx[i].key)
	delete(t.byIdx, i)
	t.free = append(t.free, i)
	return t.m.Clear(i)
}

// sweep empties what an earlier run left and nobody took over.
func (t *vteps) sweep() error {
	var errs []error
	for i, e := range t.byIdx {
		if e.refs <= 0 {
			errs = append(errs, t.drop(i))
		}
	}
	return errors.Join(errs...)
}

// update builds the outer header anew from the route and the neighbour of now.
func (t *vteps) update(i uint32, v *view) error {
	e := t.byIdx[i]
	e.why, e.macs = "", false
	// As the vxlan device asks. A TOS that is inherited is known per packet only: such packets all go the way of TOS 0.
	r, err := t.ask.RouteTo(e.key.Remote, kernel.RouteOptions{Src: e.key.Local, Device: int(e.key.OIF), TOS: e.key.TOS, Port: e.key.Port})
	if err != nil {
		e.route = kernel.Route{}
		e.why = err.Error()
		return t.m.Put(i, maps.VTEP{VTEPKey: e.key, Src: e.key.Local, Off: true})
	}
	e.route = r
	dev, ok := v.links[r.Device]
	switch {
	case !ok:
		e.why = fmt.Sprintf("route leads to interface %d, which is gone", r.Device)
	case r.Local:
		e.why = "is an address of this host"
	case !dev.Up:
		e.why = dev.Name + " is down"
	case dev.MAC.IsZero():
		e.why = dev.Name + " has no Ethernet header"
	}
	if e.why == "" && (!r.Src.IsValid() || r.Src.Is6() != e.key.Remote.Is6()) {
		e.why = "no source address for " + e.key.Remote.String()
	}
	if e.why != "" {
		return t.m.Put(i, maps.VTEP{VTEPKey: e.key, Src: e.key.Local, Off: true})
	}
	mtu := dev.MTU
	if r.MTU > 0 && r.MTU < mtu {
		mtu = r.MTU
	}
	if e.mtuCap > 0 && e.mtuCap < mtu {
		mtu = e.mtuCap
	}
	hops := r.HopLimit
	if hops == 0 {
		hops, err = t.defaultHops(e.key.Remote.Is6(), dev.Name)
	}
	if err != nil {
		e.why = err.Error()
		return t.m.Put(i, maps.VTEP{VTEPKey: e.key, Src: e.key.Local, Off: true})
	}
	val := maps.VTEP{VTEPKey: e.key, Src: r.Src, HopLimit: uint8(hops), Device: uint32(dev.Index), SrcMAC: dev.MAC, MTU: mtu16(mtu)}
	if n, ok := v.neighbours[neighbourKey{r.Device, r.NextHop}]; ok && n.Valid && !n.MAC.IsZero() {
		val.DstMAC, val.MACs = n.MAC, true
	}
	e.macs = val.MACs
	return t.m.Put(i, val)
}

// defaultHops is the TTL or hop limit of packets whose sender and route name none.
func (t *vteps) defaultHops(v6 bool, device string) (hops int, err error) {
	if !v6 {
		device = ""
	}
	if h, ok := t.hops[device]; ok {
		return h, nil
	}
	if v6 {
		hops, err = t.ask.HopLimit(device)
	} else {
		hops, err = t.ask.DefaultTTL()
	}
	if err == nil && t.hops != nil {
		t.hops[device] = hops
	}
	return hops, err
}

// capMTU follows the configured underlay MTU, 0 for none; updateAll comes after it.
func (t *vteps) capMTU(mtu int) {
	for _, e := range t.byIdx {
		e.mtuCap = mtu
	}
}

// updateAll follows a change of routes, links or addresses.
func (t *vteps) updateAll(v *view) error {
	var errs []error
	t.hops = map[string]int{}
	defer func() { t.hops = nil }()
	for i := range t.byIdx {
		errs = append(errs, t.update(i, v))
	}
	return errors.Join(errs...)
}

// neighbour follows one change of the neighbour table.
func (t *vteps) neighbour(k neighbourKey, v *view) error {
	var errs []error
	for i, e := range t.byIdx {
		if e.route.Device == k.dev && e.route.NextHop == k.ip {
			errs = append(errs, t.update(i, v))
		}
	}
	return errors.Join(errs...)
}

// keepAlive does for the neighbour table what packets would have done: packets
// of the fast path do not touch it, so nothing else would confirm an entry or
// notice that a neighbour has gone.
func (t *vteps) keepAlive(v *view) error {
	var errs []error
	asked := map[neighbourKey]bool{}
	for _, e := range t.byIdx {
		k := neighbourKey{e.route.Device, e.route.NextHop}
		if e.why != "" || asked[k] {
			continue
		}
		asked[k] = true
		if n, ok := v.neighbours[k]; ok && (n.Permanent || n.Valid && !n.Stale) {
			continue
		}
		if err := t.ask.ProbeNeighbour(k.dev, k.ip); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
