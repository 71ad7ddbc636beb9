// SPDX-License-Identifier: Apache-2.0

// Package trace follows a packet through the decisions of the data path: from
// the state that the programs look at, in the order in which they look. A test
// holds it against the programs themselves over random states.
package trace

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Reasons as bpf/types.h has them, by name: Go knows only some as constants.
func reason(name string) bpf.Reason {
	for r := range bpf.Reason(bpf.Reasons) {
		if r.String() == name {
			return r
		}
	}
	panic("no reason is called " + name) // a test walks through all
}

// State is what the programs look at.
type State struct {
	Now      time.Duration // of the programs' clock
	Hold     time.Duration // vx_hold_ns
	Lease    time.Duration
	TooBig   time.Duration
	Entry    func(fdb.Key) (maps.Placed, bool) // vx_fdb
	Listed   func(fdb.NetID, netip.Addr) bool  // vx_source
	Networks map[maps.NetworkKey]maps.Network
	Ports    map[uint32]maps.Port
	VTEPs    map[uint32]maps.VTEP // those in use; TemplateSlots says how many there could be
	Slots    uint32
	Exists   func(ifindex uint32) bool
	Device   func(ifindex uint32) string // its name, for the words
}

// Packet is a single packet, no aggregate: what of it the programs decide by.
type Packet struct {
	Src, Dst  fdb.MAC
	EtherType uint16
	Length    int  // of the inner frame, Ethernet header included
	VLAN      bool // a tag in the packet's metadata
	ND        bool // IPv6 neighbour discovery
}

const (
	ethHdr = 14
	// What VXLAN adds to an inner frame as an outer IP packet (RFC 7348 section 5).
	outerL3v4, outerL3v6 = 36, 56
	// The smallest path MTUs that the kernel learns.
	sureMTU4, sureMTU6 = 552, 1280
	tooBigHold         = 3 * time.Second
	tooBigExpires      = 10 * time.Minute
	etherIPv4          = 0x0800
	etherIPv6          = 0x86dd
	etherARP           = 0x0806
)

// Step is one look of a program, in words.
type Step struct {
	Look  string `json:"look"`
	Found string `json:"found"`
	// Ends: this decided.
	Ends bool `json:"ends,omitempty"`
}

// Walk is what one program does with the packet.
type Walk struct {
	Hook   string     `json:"hook"`
	Device string     `json:"device"`
	Reason bpf.Reason `json:"-"`
	Why    string     `json:"reason"`
	Steps  []Step     `json:"steps"`
	// What was met on the way, as far as the walk went.
	From, To *maps.Placed `json:"-"`
	VTEP     *maps.VTEP   `json:"-"`
	Net      fdb.NetID    `json:"-"`
	// NotOurs: the program does not touch the packet, nor count it.
	NotOurs bool `json:"not_ours,omitempty"`
	// Limits met where the packet is too large, bytes.
	Size, Limit int `json:"-"`
}

type walker struct {
	s *State
	p Packet
	w *Walk
}

func (w *walker) step(look, found string, args ...any) {
	w.w.Steps = append(w.w.Steps, Step{Look: look, Found: fmt.Sprintf(found, args...)})
}

func (w *walker) end(r bpf.Reason) bpf.Reason {
	if n := len(w.w.Steps); n > 0 {
		w.w.Steps[n-1].Ends = true
	}
	return r
}

// ended says with which reason a program was done; ok is false while it goes on.
type ended struct {
	reason bpf.Reason
	ok     bool
}

func (w *walker) is(name string) ended { return ended{w.end(reason(name)), true} }

func (s *State) fresh() bool { return s.Now < s.Lease }

// followed: a daemon follows the kernel, as opposed to a lease without end.
func (s *State) followed() bool { return s.fresh() && s.Lease != maps.Forever }

func (s *State) tooBigLately() bool {
	if s.TooBig == 0 {
		return false
	}
	age := s.Now - s.TooBig
	return age < tooBigHold || age < tooBigExpires && !s.fresh()
}

func (s *State) older(stamp, age time.Duration) bool { return s.Now-stamp > age }

// place says where an entry is, in words.
func (s *State) place(e maps.Placed) string {
	t := ""
	if e.Kind == fdb.Remote {
		t = "behind a VTEP that has no entry"
		if v, ok := s.VTEPs[e.Index]; ok {
			t = "behind VTEP " + v.Remote.String()
		}
	} else {
		t = "at " + s.Device(e.Port) + " (" + e.Kind.String() + ")"
	}
	for _, f := range []struct {
		on   bool
		name string
	}{{e.Static, "static"}, {e.Sticky, "sticky"}, {e.Pinned, "pinned"}, {e.Pending, "not confirmed yet"}} {
		if f.on {
			t += ", " + f.name
		}
	}
	if !e.Static {
		t += fmt.Sprintf(", last seen by the kernel %v ago", (s.Now - e.Seen).Round(100*time.Millisecond))
	}
	return t
}

// source is the source check of all programs. here says whether the entry is
// where the packet comes from, keeps whether the kernel would leave it there.
func (w *walker) source(net fdb.NetID, here func(maps.Placed) (bool, string), keeps func(maps.Placed) bool) (e maps.Placed, known bool, err ended) {
	look := "source " + w.p.Src.String() + " in vx_fdb"
	e, known = w.s.Entry(fdb.Key{Net: net, MAC: w.p.Src})
	if !known {
		w.step(look, "no entry")
		return e, false, ended{}
	}
	w.w.From = &e
	ok, from := here(e)
	switch {
	case ok && e.Pending:
		w.step(look, "%s", w.s.place(e))
		return e, true, ended{reason("src_unknown"), true}
	case ok:
		w.step(look, "%s: the packet comes from there", w.s.place(e))
		return e, true, ended{}
	case keeps(e):
		w.step(look, "%s; the packet comes from %s, and the entry stays", w.s.place(e), from)
		return e, true, ended{reason("src_static"), true}
	}
	w.step(look, "%s; the packet comes from %s: the entry is removed", w.s.place(e), from)
	return e, true, ended{reason("src_moved"), true}
}

// due: must the kernel see a frame of this source?
func (w *walker) due(e maps.Placed, refresh time.Duration) ended {
	switch {
	case e.Static && !w.s.fresh():
		w.step("the daemon's lease", "has run out: nobody vouches for the static source")
		return ended{reason("no_lease"), true}
	case !e.Static && w.s.older(e.Seen, refresh):
		w.step("when the kernel last saw the source", "more than %v ago", refresh)
		return ended{reason("refresh"), true}
	}
	return ended{}
}

// usable: may frames be sent where this entry says?
func (w *walker) usable(e maps.Placed, ageing time.Duration) ended {
	switch {
	case e.Static && !w.s.fresh():
		w.step("the daemon's lease", "has run out: nobody vouches for the static destination")
		return ended{reason("no_lease"), true}
	case !e.Static && ageing > 0 && w.s.older(e.Seen, ageing):
		w.step("when the kernel last saw the destination", "more than the ageing time of %v ago", ageing)
		return ended{reason("dst_aged"), true}
	}
	return ended{}
}

func (w *walker) destination(net fdb.NetID) (e maps.Placed, err ended) {
	look := "destination " + w.p.Dst.String() + " in vx_fdb"
	e, ok := w.s.Entry(fdb.Key{Net: net, MAC: w.p.Dst})
	if !ok {
		w.step(look, "no entry")
		return e, w.is("dst_unknown")
	}
	w.step(look, "%s", w.s.place(e))
	w.w.To = &e
	if e.Pending {
		return e, w.is("dst_unknown")
	}
	return e, ended{}
}

func (w *walker) multicast() bool {
	if !w.p.Dst.IsMulticast() {
		return false
	}
	w.step("destination "+w.p.Dst.String(), "broadcast or multicast")
	return true
}

func (w *walker) notIP() bool {
	if w.p.EtherType == etherIPv4 || w.p.EtherType == etherIPv6 {
		return false
	}
	w.step("EtherType", "%#04x, neither IPv4 nor IPv6", w.p.EtherType)
	return true
}

func (w *walker) nd() bool {
	if !w.p.ND || w.p.EtherType != etherIPv6 {
		return false
	}
	w.step("ICMPv6 type", "neighbour discovery")
	return true
}

// there: is the port still there, where nobody would have said that it is not?
func (w *walker) there(e maps.Placed) ended {
	if w.s.followed() || w.s.Exists(e.Port) {
		return ended{}
	}
	w.step("interface "+w.s.Device(e.Port), "is gone, and no daemon follows")
	return w.is("port_gone")
}

func (w *walker) off(flag bool, what string) bool {
	if flag {
		w.step(what, "kept on the slow path")
	}
	return flag
}

// Encap is vx_tc_encap at an interface: a bridge port, or the bridge device.
func (s *State) Encap(ifindex uint32, p Packet) *Walk {
	w := &walker{s, p, &Walk{Hook: bpf.HookEncap.String(), Device: s.Device(ifindex)}}
	return w.done(w.encap(ifindex))
}

func (w *walker) done(r ended) *Walk {
	w.w.Reason = r.reason
	if w.w.NotOurs {
		return w.w
	}
	w.w.Why = r.reason.String()
	return w.w
}

func (w *walker) encap(ifindex uint32) ended {
	s := w.s
	port, ok := s.Ports[ifindex]
	if !ok {
		w.step("interface "+s.Device(ifindex)+" in vx_port", "no entry: no port of a network on BPF")
		w.w.NotOurs = true
		return ended{}
	}
	w.w.Net = port.Net
	src, known, err := w.source(port.Net, func(e maps.Placed) (bool, string) {
		return e.Kind != fdb.Remote && e.Port == ifindex, s.Device(ifindex)
	}, func(e maps.Placed) bool { return e.Sticky })
	switch {
	case w.off(port.Off, "interface "+s.Device(ifindex)+" in vx_port"):
		return w.is("not_ready")
	case w.p.VLAN:
		w.step("VLAN tag", "there is one")
		return w.is("vlan_tag")
	case !known:
		return w.is("src_unknown")
	case err.ok:
		w.end(err.reason)
		return err
	case w.multicast():
		return w.is("bum")
	case w.notIP():
		return w.is("not_ip")
	}
	dst, e := w.destination(port.Net)
	if e.ok {
		return e
	}
	if dst.Kind != fdb.Remote {
		return w.is("dst_local")
	}
	if e := w.due(src, port.Refresh); e.ok {
		w.end(e.reason)
		return e
	}
	if e := w.usable(dst, port.Ageing); e.ok {
		w.end(e.reason)
		return e
	}
	v, ok := s.VTEPs[dst.Index]
	if !ok || v.Off {
		w.step("outer header in vx_vtep", "not usable: the kernel names no way to the VTEP")
		if ok {
			w.w.VTEP = &v
		}
		return w.is("no_vtep")
	}
	w.w.VTEP = &v
	w.step("outer header in vx_vtep", "from %v to %v by %s, path MTU %d", v.Src, v.Remote, s.Device(v.Device), v.MTU)
	if w.nd() {
		return w.is("nd")
	}
	outer, sure := outerL3v4, sureMTU4
	if v.Remote.Is6() {
		outer, sure = outerL3v6, sureMTU6
	}
	switch size := w.p.Length; {
	case size+outer > int(v.MTU):
		w.step("size", "%d bytes of outer IP packet, the path takes %d", size+outer, v.MTU)
		w.w.Size, w.w.Limit = size+outer, int(v.MTU)
		return w.is("mtu")
	case size-ethHdr > int(port.MTU):
		w.step("size", "%d bytes of inner IP packet, the vxlan link takes %d", size-ethHdr, port.MTU)
		w.w.Size, w.w.Limit = size-ethHdr, int(port.MTU)
		return w.is("mtu")
	case size+outer > sure && s.tooBigLately():
		w.step("size", "%d bytes of outer IP packet, and the underlay said \"too big\" just now", size+outer)
		w.w.Size, w.w.Limit = size+outer, sure
		return w.is("mtu")
	case size+outer > 65535:
		w.step("size", "over 65535 bytes with the outer header")
		return w.is("too_long")
	}
	how := "cached MAC addresses"
	if !v.MACs || !s.fresh() {
		how = "MAC addresses from the neighbour table"
	}
	w.step("send", "by %s, with %s", s.Device(v.Device), how)
	return ended{bpf.Fast, true}
}

// Outer is what the underlay hook sees of the outer packet. Its headers are taken to be as they should be.
type Outer struct {
	From, To netip.Addr
	Key      maps.NetworkKey
}

// Decap is vx_tc_decap at the underlay device.
func (s *State) Decap(device string, o Outer, p Packet) *Walk {
	w := &walker{s, p, &Walk{Hook: bpf.HookDecap.String(), Device: device}}
	return w.done(w.decap(o))
}

func (w *walker) decap(o Outer) ended {
	s := w.s
	n, ok := s.Networks[o.Key]
	if !ok {
		w.step(fmt.Sprintf("VNI %v, UDP port %d in vx_vni", o.Key.VNI, o.Key.Port), "no entry: no network on BPF")
		w.w.NotOurs = true
		return ended{}
	}
	w.w.Net = n.Net
	what := fmt.Sprintf("VNI %v, UDP port %d in vx_vni", o.Key.VNI, o.Key.Port)
	if o.From.Is6() != n.Local.Is6() {
		if w.off(n.Off || n.Guard, what) {
			return w.is("not_ready")
		}
		w.step("outer packet", "of another family than the network's VTEP %v", n.Local)
		return w.is("outer_not_local")
	}
	local := o.To == n.Local
	at := func(e maps.Placed) (bool, string) {
		v, ok := s.VTEPs[e.Index]
		return e.Kind == fdb.Remote && ok && v.Remote == o.From, o.From.String()
	}
	e, known := s.Entry(fdb.Key{Net: n.Net, MAC: w.p.Src})
	if here, _ := at(e); (!known || !here) && s.barred(n, o.From) && s.forUs(n, o.To) {
		w.step("outer source "+o.From.String()+" in vx_source", "not listed: no VTEP of this network")
		return w.is("drop_stranger")
	}
	if w.off(n.Off || n.Guard, what) {
		w.w.NotOurs = n.Guard
		return w.is("not_ready")
	}
	src, known, err := w.source(n.Net, at, func(e maps.Placed) bool {
		if e.Kind == fdb.Remote {
			return e.Pinned
		}
		return e.Sticky
	})
	notLocal := func() ended {
		w.step("outer destination "+o.To.String(), "is not our VTEP address %v", n.Local)
		return w.is("outer_not_local")
	}
	if !known {
		if !local {
			return notLocal()
		}
		return w.is("src_unknown")
	}
	if err.ok {
		w.end(err.reason)
		return err
	}
	if !local {
		return notLocal()
	}
	if w.multicast() {
		return w.is("bum")
	}
	if e := w.due(src, n.Refresh); e.ok {
		w.end(e.reason)
		return e
	}
	if w.notIP() {
		return w.is("not_ip")
	}
	if w.nd() {
		return w.is("nd")
	}
	if s.Now-src.Slow < s.Hold {
		w.step("a frame of the source on the slow path", "a moment ago: this one does not overtake it")
		return w.is("in_order")
	}
	dst, miss := w.destination(n.Net)
	if miss.ok {
		return miss
	}
	switch dst.Kind {
	case fdb.Remote:
		return w.is("dst_remote")
	case fdb.Egress:
		return w.is("port_kind")
	}
	if e := w.usable(dst, n.Ageing); e.ok {
		w.end(e.reason)
		return e
	}
	if e := w.there(dst); e.ok {
		return e
	}
	if w.tooLargeFor(dst) {
		return w.is("mtu")
	}
	w.step("deliver", "to %s", s.Device(dst.Port))
	return ended{bpf.Fast, true}
}

// barred: may this outer source not send to the network?
func (s *State) barred(n maps.Network, from netip.Addr) bool {
	if n.Check.Off || s.Listed(n.Net, from) {
		return false
	}
	return !n.Check.Follow || s.followed()
}

// forUs: does this host's vxlan device get packets to this address?
func (s *State) forUs(n maps.Network, to netip.Addr) bool {
	return to == n.Local || to.IsMulticast() || to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || s.Listed(maps.SourceLocal, to)
}

func (w *walker) tooLargeFor(dst maps.Placed) bool {
	size := w.p.Length - ethHdr
	if size <= int(dst.MTU) {
		return false
	}
	w.step("size", "%d bytes of inner IP packet, %s takes %d", size, w.s.Device(dst.Port), dst.MTU)
	w.w.Size, w.w.Limit = size, int(dst.MTU)
	return true
}

// Deliver is vx_tc_deliver at a vxlan device, after the kernel decapsulated.
func (s *State) Deliver(ifindex uint32, p Packet) *Walk {
	w := &walker{s, p, &Walk{Hook: bpf.HookDeliver.String(), Device: s.Device(ifindex)}}
	return w.done(w.deliver(ifindex))
}

func (w *walker) deliver(ifindex uint32) ended {
	s := w.s
	port, ok := s.Ports[ifindex]
	if !ok {
		w.step("interface "+s.Device(ifindex)+" in vx_port", "no entry: no vxlan device of a network on BPF")
		w.w.NotOurs = true
		return ended{}
	}
	w.w.Net = port.Net
	src, known, err := w.source(port.Net, func(e maps.Placed) (bool, string) { return e.Kind == fdb.Remote, s.Device(ifindex) },
		func(e maps.Placed) bool { return e.Sticky })
	switch {
	case w.off(port.Off, "interface "+s.Device(ifindex)+" in vx_port"):
		return w.is("not_ready")
	case w.p.VLAN:
		w.step("VLAN tag", "there is one")
		return w.is("vlan_tag")
	case !known:
		return w.is("src_unknown")
	case err.ok:
		w.end(err.reason)
		return err
	case w.multicast():
		return w.is("bum")
	case w.notIP():
		return w.is("not_ip")
	case w.nd():
		return w.is("nd")
	}
	dst, e := w.destination(port.Net)
	if e.ok {
		return e
	}
	if dst.Kind == fdb.Remote {
		return w.is("dst_remote")
	}
	if e := w.due(src, port.Refresh); e.ok {
		w.end(e.reason)
		return e
	}
	if e := w.usable(dst, port.Ageing); e.ok {
		w.end(e.reason)
		return e
	}
	if e := w.there(dst); e.ok {
		return e
	}
	if w.tooLargeFor(dst) {
		return w.is("mtu")
	}
	w.step("deliver", "to %s", s.Device(dst.Port))
	return ended{bpf.Fast, true}
}
