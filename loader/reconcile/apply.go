// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// BridgeSpec is a bridge to be made.
type BridgeSpec struct {
	kernel.Bridge
	MAC fdb.MAC // zero: the kernel's choice
}

// BridgeChange and VXLANChange change what is not nil, in place. Group, Local
// and Device only if Options.InPlace has them.
type (
	BridgeChange = kernel.BridgeChange
	VXLANChange  = kernel.VXLANChange
)

// VXLANSpec is a vxlan link to be made.
type VXLANSpec struct {
	kernel.VXLAN
	MAC fdb.MAC // zero: the kernel's choice
	MTU int     // bytes, always given
}

// Kernel is what Apply needs to be able to do. A call that returns an error has
// left the host as it was. Links are made administratively down.
type Kernel interface {
	CreateBridge(name string, s BridgeSpec) (ifindex int, err error)
	CreateVXLAN(name string, s VXLANSpec) (ifindex int, err error)
	DeleteLink(ifindex int) error
	SetBridge(ifindex int, c BridgeChange) error
	SetVXLAN(ifindex int, c VXLANChange) error
	// SetMaster makes the link a port of the bridge, taking it out of another.
	SetMaster(ifindex, bridge int) error
	ClearMaster(ifindex int) error
	SetUp(ifindex int) error
	SetDown(ifindex int) error
	SetMTU(ifindex, mtu int) error
	// AddAddress is content if the link has the address already.
	AddAddress(ifindex int, p netip.Prefix) error
	DelAddress(ifindex int, p netip.Prefix) error
	// AppendDefaultRemote adds a destination to the all-zero MAC.
	AppendDefaultRemote(ifindex int, remote netip.Addr) error
	DelDefaultRemote(ifindex int, remote netip.Addr) error
	// AddStatic makes a static entry in the vxlan link's own table, and
	// replaces whatever is there for the MAC. The link need not be in a bridge.
	AddStatic(ifindex int, mac fdb.MAC, vtep netip.Addr) error
	DelStatic(ifindex int, mac fdb.MAC, vtep netip.Addr) error
}

// Journal writes a step of the record down, for good, before it returns: played
// over the record that the plan was made with (Owned.Amend), they give what is
// ours. It is called before each change that makes or changes something, again
// when the ifindex of a new link is known, and at the end, so that what Apply
// returns is what was written.
type Journal func(Delta) error

// Apply carries a plan out: first it removes what goes, then come bridges,
// vxlan links, ports, MTUs, addresses, remotes, static entries, and last the
// links go up. If a step or the journal fails, or ctx ends, what was done is
// undone in reverse order, and the record returned is the one from before
// (with the new ifindex of a link that had to be made again). What cannot be
// undone is joined to the error and stays in the record. journal may be nil.
func Apply(ctx context.Context, p *Plan, k Kernel, journal Journal) (Owned, error) {
	if journal == nil {
		journal = func(Delta) error { return nil }
	}
	r := &run{k: k, host: newTable(p.snap.clone()), owned: p.start.Clone(), journal: journal, statics: map[staticKey]int{}, moved: map[int]int{}}
	for _, s := range r.owned.Statics {
		r.statics[s.key()]++
	}
	steps := slices.Clone(p.steps)
	slices.SortStableFunc(steps, func(a, b step) int { return int(a.phase) - int(b.phase) })
	var err error
	for _, s := range steps {
		if err = ctx.Err(); err == nil {
			err = s.do(r)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", s.what, err)
			break
		}
	}
	if err == nil {
		r.owned.sort()
		if !r.journaled && reflect.DeepEqual(r.owned, p.before) {
			return r.owned, nil
		}
		if err = r.end(p, r.owned); err == nil {
			return r.owned, nil
		}
		err = fmt.Errorf("write journal: %w", err)
	}
	left := r.rollBack(p.before)
	after := p.before.Clone()
	after.reindex(r.moved)
	if left != nil {
		after.Merge(r.owned)
		err = errors.Join(err, fmt.Errorf("roll back: %w", left))
	}
	if r.journaled {
		if jerr := r.end(p, after); jerr != nil {
			err = errors.Join(err, fmt.Errorf("write journal: %w", jerr))
		}
	}
	return after, err
}

// end writes what takes the written record to the last one.
func (r *run) end(p *Plan, last Owned) error {
	written := p.before.Clone()
	written.append(r.written) // whatever of it was dropped since
	return r.journal(Delta{Drop: written.minus(last), Add: last})
}

// run is one Apply under way. host is what the host must look like by now.
type run struct {
	k         Kernel
	host      *table
	owned     Owned
	statics   map[staticKey]int // records of each in owned
	journal   Journal
	journaled bool
	unwritten Delta // settled, for the next claim to write
	written   Owned // all that was ever claimed
	undo      []func() error
	undoing   bool
	moved     map[int]int // ifindex before -> now, of links made again
}

// claim records what is about to be done, and writes it down.
func (r *run) claim(d Delta) error {
	r.settle(d)
	r.journaled = true
	if err := r.journal(r.unwritten); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	r.unwritten = Delta{}
	return nil
}

// settle records what has been done. The next claim, or the end, writes it down.
func (r *run) settle(d Delta) {
	for _, s := range d.Drop.Statics {
		r.statics[s.key()]--
	}
	for _, s := range d.Add.Statics {
		r.statics[s.key()]++
	}
	r.owned.drop(d.Drop)
	r.owned.append(d.Add)
	r.written.append(d.Add)
	r.unwritten.then(d)
}

// linksOf are the records of a link by name and kind, ifindex 0 included.
func (r *run) linksOf(name, kind string) (o Owned) {
	for _, q := range r.owned.Links {
		if q.Name == name && q.Kind == kind {
			o.Links = append(o.Links, q)
		}
	}
	return o
}

func (r *run) push(f func() error) {
	if !r.undoing {
		r.undo = append(r.undo, f)
	}
}

func (r *run) rollBack(before Owned) error {
	r.undoing = true
	var errs []error
	if len(r.undo) > 0 {
		// What was ours and is gone comes back now, so it is claimed again.
		errs = append(errs, r.claim(Delta{Add: before.minus(r.owned)}))
	}
	for _, f := range slices.Backward(r.undo) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (r *run) link(name string) (*kernel.Link, error) {
	if l := r.host.find(name); l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("link %s is not there", name)
}

// The primitives: one call of Kernel, the same on host, and the way back.

func (r *run) create(name string, st LinkState) (int, error) {
	var index int
	var err error
	l := kernel.Link{Name: name, Kind: st.Kind, MAC: st.MAC, MTU: st.MTU, Bridge: copied(st.Bridge), VXLAN: copied(st.VXLAN)}
	switch {
	case st.Bridge != nil:
		index, err = r.k.CreateBridge(name, BridgeSpec{Bridge: *st.Bridge, MAC: st.MAC})
	case st.VXLAN != nil:
		index, err = r.k.CreateVXLAN(name, VXLANSpec{VXLAN: *st.VXLAN, MAC: st.MAC, MTU: st.MTU})
	default:
		err = fmt.Errorf("cannot make a link of kind %q", st.Kind)
	}
	if err != nil {
		return 0, err
	}
	l.Index = index
	r.host.add(&l)
	r.push(func() error { return r.delete(name) })
	return index, nil
}

func (r *run) delete(name string) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	st := r.host.state(*l)
	var journal error
	if rec, _ := r.owned.Made(*l); rec.Replaced != nil && rec.Index != 0 {
		// Ifindex 0 says that it is we who delete it: what it replaced has to
		// come back, also after a kill in between.
		var d Delta
		for _, q := range r.owned.Links {
			if q.Name == name && q.Index == st.Index {
				d.Drop.Links = append(d.Drop.Links, q)
				q.Index = 0
				d.Add.Links = append(d.Add.Links, q)
			}
		}
		journal = r.claim(d)
		if journal != nil && !r.undoing {
			return journal
		}
	}
	if err := r.k.DeleteLink(st.Index); err != nil {
		return errors.Join(journal, err)
	}
	r.host.remove(st.Index)
	r.push(func() error { return r.rebuild(name, st) })
	return journal
}

// rebuild makes a deleted link again with all that was on it. While rolling
// back it does as much of that as it can.
func (r *run) rebuild(name string, st LinkState) error {
	var errs []error
	if r.undoing {
		// Its ifindex will be another one. Until all is done its name stands for it.
		d := Delta{Drop: r.linksOf(name, st.Kind)}
		for _, q := range d.Drop.Links {
			q.Index = 0
			if st.VXLAN != nil {
				q.VNI, q.Port = st.VXLAN.VNI, st.VXLAN.Port
			}
			d.Add.Links = append(d.Add.Links, q)
		}
		errs = append(errs, r.claim(d))
	}
	index, err := r.create(name, st)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	r.moved[st.Index] = index
	try := func(err error) bool {
		errs = append(errs, err)
		return err == nil || r.undoing
	}
	if st.Kind == kindBridge && !try(r.set(name, AttrMTU, strconv.Itoa(st.MTU))) {
		return errors.Join(errs...)
	}
	if b := r.host.find(st.Master); b != nil && b.Kind == kindBridge && !try(r.setMaster(name, st.Master)) {
		return errors.Join(errs...)
	}
	for _, p := range st.Ports {
		if l := r.host.find(p); l != nil && l.Master == 0 && !try(r.setMaster(p, name)) {
			return errors.Join(errs...)
		}
	}
	for _, p := range st.Addresses {
		if !try(r.addAddress(name, p)) {
			return errors.Join(errs...)
		}
	}
	for _, a := range st.Remotes {
		if !try(r.addRemote(name, a)) {
			return errors.Join(errs...)
		}
	}
	for _, e := range st.Statics {
		if !try(r.putStatic(name, e)) {
			return errors.Join(errs...)
		}
	}
	if st.Up {
		try(r.set(name, AttrState, "up"))
	}
	return errors.Join(errs...)
}

func (r *run) setMaster(name, bridge string) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	was := r.host.name(l.Master)
	if bridge == "" {
		if err := r.k.ClearMaster(l.Index); err != nil {
			return err
		}
		r.host.enslave(l, 0)
	} else {
		b, err := r.link(bridge)
		if err != nil {
			return err
		}
		if err := r.k.SetMaster(l.Index, b.Index); err != nil {
			return err
		}
		r.host.enslave(l, b.Index)
	}
	r.push(func() error { return r.setMaster(name, was) })
	return nil
}

// value is an attribute value ready to be set.
type value struct {
	send   func(Kernel) error
	assign func() // the same on the copy of the host
}

// parse turns the text of an attribute value into a value.
func parse(s *table, l *kernel.Link, a Attr, text string) (value, error) {
	index := l.Index
	bad := fmt.Errorf("set %s of %s: bad value %q", a, l.Name, text)
	flag := text == "on" || text == "up"
	num, numErr := strconv.Atoi(text)
	dur, durErr := time.ParseDuration(text)
	var addr netip.Addr
	var addrErr error
	if text != none {
		addr, addrErr = netip.ParseAddr(text)
	}
	bridge := func(c BridgeChange) func(Kernel) error {
		return func(k Kernel) error { return k.SetBridge(index, c) }
	}
	vxlan := func(c VXLANChange) func(Kernel) error {
		return func(k Kernel) error { return k.SetVXLAN(index, c) }
	}
	switch a {
	case AttrMTU:
		if numErr != nil {
			return value{}, bad
		}
		return value{func(k Kernel) error { return k.SetMTU(index, num) }, func() { l.MTU = num }}, nil
	case AttrState:
		return value{func(k Kernel) error {
			if flag {
				return k.SetUp(index)
			}
			return k.SetDown(index)
		}, func() { l.Up = flag }}, nil
	}
	switch {
	case l.Bridge != nil && a == AttrSTP:
		return value{bridge(BridgeChange{STP: &flag}), func() { l.Bridge.STP = flag }}, nil
	case l.Bridge != nil && a == AttrForwardDelay && durErr == nil:
		return value{bridge(BridgeChange{ForwardDelay: &dur}), func() { l.Bridge.ForwardDelay = dur }}, nil
	case l.Bridge != nil && a == AttrAgeing && durErr == nil:
		return value{bridge(BridgeChange{Ageing: &dur}), func() { l.Bridge.Ageing = dur }}, nil
	case l.VXLAN != nil && a == AttrTTL && numErr == nil:
		return value{vxlan(VXLANChange{TTL: &num}), func() { l.VXLAN.TTL = num }}, nil
	case l.VXLAN != nil && a == AttrTOS:
		tos, inherited, err := parseNumber(text)
		if err != nil {
			return value{}, bad
		}
		if inherited {
			tos = tosInherit
		}
		return value{vxlan(VXLANChange{TOS: &tos}), func() { l.VXLAN.TOS = tos }}, nil
	case l.VXLAN != nil && a == AttrDF:
		df := slices.Index(dfNames, text)
		if df < 0 {
			return value{}, bad
		}
		return value{vxlan(VXLANChange{DF: &df}), func() { l.VXLAN.DF = df }}, nil
	case l.VXLAN != nil && a == AttrFlowLabel:
		n, inherited, err := parseNumber(text)
		if err != nil {
			return value{}, bad
		}
		label := uint32(n)
		c := VXLANChange{FlowLabel: &label}
		if inherited != l.VXLAN.LabelInherit { // else a kernel that has no such attribute is not asked
			c.LabelInherit = &inherited
		}
		return value{vxlan(c), func() { l.VXLAN.FlowLabel, l.VXLAN.LabelInherit = label, inherited }}, nil
	case l.VXLAN != nil && a == AttrLearning:
		return value{vxlan(VXLANChange{Learning: &flag}), func() { l.VXLAN.Learning = flag }}, nil
	case l.VXLAN != nil && a == AttrAgeing && durErr == nil:
		return value{vxlan(VXLANChange{Ageing: &dur}), func() { l.VXLAN.Ageing = dur }}, nil
	case l.VXLAN != nil && a == AttrGroup && addrErr == nil:
		return value{vxlan(VXLANChange{Group: &addr}), func() { l.VXLAN.Group = addr }}, nil
	case l.VXLAN != nil && a == AttrLocal && addrErr == nil:
		return value{vxlan(VXLANChange{Local: &addr}), func() { l.VXLAN.Local = addr }}, nil
	case l.VXLAN != nil && a == AttrDevice:
		d := s.find(text)
		if d == nil {
			return value{}, bad
		}
		i := d.Index
		return value{vxlan(VXLANChange{Device: &i}), func() { l.VXLAN.Device = i }}, nil
	}
	return value{}, bad
}

func (r *run) set(name string, a Attr, text string) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	was := r.host.attr(*l, a)
	v, err := parse(r.host, l, a, text)
	if err != nil {
		return err
	}
	if err := v.send(r.k); err != nil {
		return err
	}
	v.assign()
	r.push(func() error { return r.set(name, a, was) })
	return nil
}

func (r *run) addAddress(name string, p netip.Prefix) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	if err := r.k.AddAddress(l.Index, p); err != nil {
		return err
	}
	r.host.addAddress(kernel.Address{Link: l.Index, Prefix: p})
	r.push(func() error { return r.delAddress(name, p) })
	return nil
}

// delAddress removes an address but not its siblings: when the first IPv4
// address of a subnet goes, the kernel drops the others of that subnet with it
// (unless promote_secondaries is set), so they are added again.
func (r *run) delAddress(name string, p netip.Prefix) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	index := l.Index
	var siblings []netip.Prefix
	for _, q := range r.host.addressesOf(index) {
		if q != p && q.Addr().Is4() && q.Masked() == p.Masked() {
			siblings = append(siblings, q)
		}
	}
	if err := r.k.DelAddress(index, p); err != nil {
		return err
	}
	r.host.delAddress(index, p)
	r.push(func() error {
		errs := []error{r.addAddress(name, p)}
		for _, q := range siblings {
			l, err := r.link(name)
			if err == nil {
				err = r.k.AddAddress(l.Index, q)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	var errs []error
	for _, q := range siblings {
		err := r.k.AddAddress(index, q)
		if err != nil && !r.undoing {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r *run) addRemote(name string, a netip.Addr) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	if err := r.k.AppendDefaultRemote(l.Index, a); err != nil {
		return err
	}
	r.host.addEntry(kernel.FDBEntry{Link: l.Index, Self: true, Static: true, Dst: a})
	r.push(func() error { return r.delRemote(name, a) })
	return nil
}

func (r *run) delRemote(name string, a netip.Addr) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	index := l.Index
	if err := r.k.DelDefaultRemote(index, a); err != nil {
		return err
	}
	r.host.delEntries(index, fdb.MAC{}, func(e kernel.FDBEntry) bool { return e.Dst == a })
	r.push(func() error { return r.addRemote(name, a) })
	return nil
}

// putStatic sets where a MAC lives. Whatever stood there for the MAC before, if
// it was static, comes back on the way back.
func (r *run) putStatic(name string, e Static) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	index := l.Index
	was, there := r.host.staticOf(index, e.MAC)
	if err := r.k.AddStatic(index, e.MAC, e.VTEP); err != nil {
		if !there {
			// It may be half done. There is nothing to do about an error here.
			_ = r.k.DelStatic(index, e.MAC, e.VTEP)
		}
		return err
	}
	r.host.delEntries(index, e.MAC, func(kernel.FDBEntry) bool { return true })
	r.host.addEntry(kernel.FDBEntry{MAC: e.MAC, Link: index, Self: true, Static: true, Dst: e.VTEP})
	r.push(func() error {
		if there {
			return r.putStatic(name, was)
		}
		return r.delStatic(name, e)
	})
	return nil
}

func (r *run) delStatic(name string, e Static) error {
	l, err := r.link(name)
	if err != nil {
		return err
	}
	index := l.Index
	if err := r.k.DelStatic(index, e.MAC, e.VTEP); err != nil {
		return err
	}
	r.host.delEntries(index, e.MAC, func(kernel.FDBEntry) bool { return true })
	r.push(func() error { return r.putStatic(name, e) })
	return nil
}
