// SPDX-License-Identifier: Apache-2.0

// Package monitor says what happens to a data path, as it happens: what the
// kernel learns and forgets, and what the daemon makes of it. It follows
// rtnetlink and looks at state file and maps itself, so it needs no daemon, and
// says when that dies.
package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// Kinds of events. They are interface: added, never renamed.
const (
	Learned  = "fdb_learned" // the kernel knows a MAC address
	Moved    = "fdb_moved"   // it lives elsewhere now
	Aged     = "fdb_gone"    // the kernel has forgotten it, or somebody removed it
	VTEPUp   = "vtep_up"     // there is a way to it
	VTEPDown = "vtep_down"   // there is none
	Mode     = "mode"        // a network's or port's path has changed, or its reason
	Daemon   = "daemon"      // it came or went
	Loaded   = "loaded"      // another config is in force
	Repaired = "repaired"    // somebody changed what the config says: it was put back
	Drift    = "drift"       // the same, where it is not vxbpf's to put back
	Drops    = "drops"       // BPF dropped more packets per second than the limit
	Lost     = "events_lost" // the kernel had more to say than could be read
	Unloaded = "unloaded"    // nothing is loaded any more
)

// Kinds lists them.
var Kinds = []string{Learned, Moved, Aged, VTEPUp, VTEPDown, Mode, Daemon, Loaded, Repaired, Drift, Drops, Lost, Unloaded}

// Event is one thing that happened. As JSON it is one line.
type Event struct {
	Time    time.Time  `json:"time"`
	Kind    string     `json:"kind"`
	Network string     `json:"network,omitempty"`
	VNI     *fdb.VNI   `json:"vni,omitempty"`
	MAC     *fdb.MAC   `json:"mac,omitempty"`
	Port    string     `json:"port,omitempty"`
	VTEP    netip.Addr `json:"vtep,omitzero"`
	From    string     `json:"from,omitempty"` // port, VTEP, path or file before
	To      string     `json:"to,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Count   uint64     `json:"count,omitempty"` // packets, repairs
	Rate    float64    `json:"rate,omitempty"`  // per second
}

// Text is the event for a person.
func (e Event) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-11s", e.Time.Format("15:04:05.000"), e.Kind)
	word := func(format string, a ...any) { fmt.Fprintf(&b, "  "+format, a...) }
	if e.Network != "" {
		word("%s", e.Network)
	}
	if e.MAC != nil {
		word("%s", e.MAC)
	}
	switch {
	case e.Port != "":
		word("%s", e.Port)
	case e.VTEP.IsValid():
		word("%s", e.VTEP)
	}
	switch {
	case e.From != "" && e.To != "":
		word("%s -> %s", e.From, e.To)
	case e.To != "":
		word("%s", e.To)
	case e.From != "":
		word("was %s", e.From)
	}
	if e.Rate > 0 {
		word("%.1f/s", e.Rate)
	}
	if e.Count > 0 {
		word("%d", e.Count)
	}
	if e.Reason != "" {
		word("%s", e.Reason)
	}
	return b.String()
}

// Options of Run.
type Options struct {
	observe.Options
	// Every is how often state and counters are looked at. 0: 500 ms.
	Every time.Duration
	// DropRate is how many packets per second BPF may drop before that is an event. 0: any.
	DropRate float64
	// Ready is called when nothing more can be missed; nil for nobody.
	Ready func()
}

// place is where the kernel has a MAC address.
type place struct {
	port string
	vtep netip.Addr
}

func (p place) String() string {
	if p.vtep.IsValid() {
		return p.vtep.String()
	}
	return p.port
}

type key struct {
	network string
	mac     fdb.MAC
}

// follower turns what the kernel says and what looks show into events.
type follower struct {
	emit   func(Event) error
	now    func() time.Time
	rate   float64
	snap   *observe.Snapshot
	links  map[int]kernel.Link
	bridge map[int]map[fdb.MAC]int        // port by bridge and MAC
	vxlan  map[int]map[fdb.MAC]netip.Addr // by link and MAC
	known  map[key]place
	ways   map[observe.VTEPKey]bool
}

// Run calls emit for each event until ctx ends or nothing is loaded any more.
func Run(ctx context.Context, o Options, emit func(Event) error) error {
	first, err := observe.Read(o.Options)
	if err != nil {
		return err
	}
	h, err := kernel.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sub, err := h.Subscribe(ctx, kernel.SubscribeOptions{})
	if err != nil {
		return err
	}
	defer sub.Close()
	f := newFollower(first, emit, o.DropRate)
	if err := f.list(h, false); err != nil {
		return err
	}
	if o.Ready != nil {
		o.Ready()
	}
	events := make(chan []kernel.Event)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			e, err := sub.Next()
			if err != nil {
				return err
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	g.Go(func() error {
		defer cancel()
		t := time.NewTicker(cmp.Or(o.Every, 500*time.Millisecond))
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case batch := <-events:
				for _, e := range batch {
					if err := f.event(h, e); err != nil {
						return err
					}
				}
			case <-t.C:
				s, err := observe.Read(o.Options)
				if errors.Is(err, observe.ErrNothingLoaded) {
					return f.say(Event{Kind: Unloaded})
				}
				if err != nil {
					continue // between two steps of a load
				}
				if err := f.look(s); err != nil {
					return err
				}
			}
		}
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func newFollower(s *observe.Snapshot, emit func(Event) error, rate float64) *follower {
	f := &follower{emit: emit, now: time.Now, rate: rate, snap: s, links: map[int]kernel.Link{}, known: map[key]place{}, ways: map[observe.VTEPKey]bool{}}
	for i := range s.VTEPs {
		if v := &s.VTEPs[i]; v.Index != 0 {
			f.ways[v.Key()] = v.State != "down"
		}
	}
	return f
}

func (f *follower) say(e Event) error {
	e.Time = f.now()
	return f.emit(e)
}

// list reads links and forwarding tables; loud says what has changed since the last time.
func (f *follower) list(h *kernel.Handle, loud bool) error {
	links, err := h.Links()
	if err != nil {
		return err
	}
	entries, err := h.FDB()
	if err != nil {
		return err
	}
	f.links, f.bridge, f.vxlan = map[int]kernel.Link{}, map[int]map[fdb.MAC]int{}, map[int]map[fdb.MAC]netip.Addr{}
	for _, l := range links {
		f.links[l.Index] = l
	}
	touched := map[key]bool{}
	for k := range f.known {
		touched[k] = true
	}
	for _, e := range entries {
		for _, k := range f.set(e) {
			touched[k] = true
		}
	}
	for k := range touched {
		if err := f.settle(k, loud); err != nil {
			return err
		}
	}
	return nil
}

// set takes an entry into the tables, and says whose it is.
func (f *follower) set(e kernel.FDBEntry) []key {
	if e.MAC.IsZero() || e.MAC.IsMulticast() || e.VLAN != 0 || e.Local {
		return nil
	}
	if e.Self {
		if f.vxlan[e.Link] == nil {
			f.vxlan[e.Link] = map[fdb.MAC]netip.Addr{}
		}
		f.vxlan[e.Link][e.MAC] = e.Dst
	} else {
		if f.bridge[e.Bridge] == nil {
			f.bridge[e.Bridge] = map[fdb.MAC]int{}
		}
		f.bridge[e.Bridge][e.MAC] = e.Link
	}
	return f.keys(e)
}

func (f *follower) clear(e kernel.FDBEntry) []key {
	if e.VLAN != 0 {
		return nil
	}
	if e.Self {
		delete(f.vxlan[e.Link], e.MAC)
	} else {
		delete(f.bridge[e.Bridge], e.MAC)
	}
	return f.keys(e)
}

// keys are the networks that an entry belongs to.
func (f *follower) keys(e kernel.FDBEntry) (out []key) {
	for _, n := range f.snap.State.Networks {
		if l := f.links[e.Link]; e.Self && l.Name == n.Link {
			out = append(out, key{n.Name, e.MAC})
		}
		if l := f.links[e.Bridge]; !e.Self && l.Name == n.Bridge {
			out = append(out, key{n.Name, e.MAC})
		}
	}
	return out
}

// where is a MAC's place by the tables: what the bridge says, and behind the vxlan link, which VTEP.
func (f *follower) where(k key) (place, bool) {
	i := slices.IndexFunc(f.snap.State.Networks, func(n loader.NetworkState) bool { return n.Name == k.network })
	if i < 0 {
		return place{}, false
	}
	n := &f.snap.State.Networks[i]
	for index, l := range f.links {
		if l.Name != n.Bridge {
			continue
		}
		port, ok := f.bridge[index][k.mac]
		if !ok {
			return place{}, false
		}
		at := f.links[port]
		if at.Name != n.Link {
			return place{port: at.Name}, true
		}
		dst, ok := f.vxlan[port][k.mac]
		if !ok || !dst.IsValid() {
			return place{}, false // the other half of the event is on the way
		}
		return place{vtep: dst}, true
	}
	return place{}, false
}

// settle compares a MAC's place with the one that was told last.
func (f *follower) settle(k key, loud bool) error {
	old, was := f.known[k]
	now, is := f.where(k)
	switch {
	case is:
		f.known[k] = now
	case was:
		delete(f.known, k)
	}
	if !loud || was == is && old == now {
		return nil
	}
	e := Event{Network: k.network, MAC: &k.mac, Port: now.port, VTEP: now.vtep}
	if n := f.snap.Network(k.network); n != nil {
		e.VNI = &n.VNI
	}
	switch {
	case is && was:
		e.Kind, e.From, e.To = Moved, old.String(), now.String()
		e.Port, e.VTEP = "", netip.Addr{}
	case is:
		e.Kind = Learned
	default:
		e.Kind, e.From = Aged, old.String()
	}
	return f.say(e)
}

// event takes one of the kernel's.
func (f *follower) event(h *kernel.Handle, e kernel.Event) error {
	var touched []key
	switch e := e.(type) {
	case kernel.LinkChanged:
		f.links[e.Index] = e.Link
	case kernel.LinkGone:
		delete(f.links, e.Index)
	case kernel.FDBChanged:
		touched = f.set(e.FDBEntry)
	case kernel.FDBGone:
		touched = f.clear(e.FDBEntry)
	case kernel.Overrun:
		if err := f.say(Event{Kind: Lost, Reason: "everything is read again"}); err != nil {
			return err
		}
		return f.list(h, true)
	}
	for _, k := range touched {
		if err := f.settle(k, true); err != nil {
			return err
		}
	}
	return nil
}

// look compares a new look with the last one.
func (f *follower) look(s *observe.Snapshot) error {
	old := f.snap
	f.snap = s
	var out []Event
	add := func(e Event) { out = append(out, e) }
	switch {
	case old.Daemon != 0 && s.Daemon == 0:
		add(Event{Kind: Daemon, From: fmt.Sprintf("pid %d", old.Daemon), To: "none", Reason: "the data path goes on; new MAC addresses take the kernel's way"})
	case old.Daemon != s.Daemon:
		add(Event{Kind: Daemon, To: fmt.Sprintf("pid %d", s.Daemon)})
	}
	if !old.State.Since.Equal(s.State.Since) || old.State.Config != s.State.Config {
		add(Event{Kind: Loaded, To: s.State.Config})
	}
	if a, b := old.State.Repairs, s.State.Repairs; b.Repaired > a.Repaired {
		add(Event{Kind: Repaired, Count: b.Repaired - a.Repaired, Reason: "somebody changed what the config says; the daemon's log says what"})
	}
	if a, b := old.State.Repairs, s.State.Repairs; b.Reported > a.Reported {
		add(Event{Kind: Drift, Count: b.Reported - a.Reported, Reason: "somebody changed what is not vxbpf's to put back; the daemon's log says what"})
	}
	out = append(out, f.modes(old, s)...)
	for i := range s.VTEPs {
		v := &s.VTEPs[i]
		if v.Index == 0 {
			continue
		}
		up, known := f.ways[v.Key()]
		f.ways[v.Key()] = v.State != "down"
		switch {
		case v.State == "down" && (up || !known):
			add(Event{Kind: VTEPDown, VTEP: v.Remote, Reason: "no way there; see `vxbpf doctor`"})
		case v.State != "down" && !up:
			add(Event{Kind: VTEPUp, VTEP: v.Remote, Reason: fmt.Sprintf("path MTU %d", v.MTU)})
		}
	}
	for k := range f.ways {
		if !slices.ContainsFunc(s.VTEPs, func(v observe.VTEP) bool { return v.Key() == k }) {
			delete(f.ways, k)
			add(Event{Kind: VTEPDown, VTEP: k.Remote, Reason: "no MAC address is known behind it any more"})
		}
	}
	out = append(out, f.drops(old, s)...)
	for _, e := range out {
		if err := f.say(e); err != nil {
			return err
		}
	}
	return nil
}

func modeOf(mode, reason string) string {
	if mode != "kernel" && reason != "" {
		return "slow"
	}
	return mode
}

// modes are the changes of networks' and ports' paths.
func (f *follower) modes(old, s *observe.Snapshot) (out []Event) {
	for _, n := range s.State.Networks {
		var was *loader.NetworkState
		for i := range old.State.Networks {
			if old.State.Networks[i].Name == n.Name {
				was = &old.State.Networks[i]
			}
		}
		vni := n.VNI
		if was == nil {
			out = append(out, Event{Kind: Mode, Network: n.Name, VNI: &vni, To: modeOf(string(n.Mode), n.Reason), Reason: n.Reason})
			continue
		}
		if was.Mode != n.Mode || was.Reason != n.Reason {
			out = append(out, Event{Kind: Mode, Network: n.Name, VNI: &vni, From: modeOf(string(was.Mode), was.Reason), To: modeOf(string(n.Mode), n.Reason), Reason: n.Reason})
		}
		for _, p := range n.Ports {
			for _, o := range was.Ports {
				// What the whole network does is said already.
				if o.Index == p.Index && (o.Fast != p.Fast || o.Reason != p.Reason) && (p.Reason != n.Reason || o.Reason != was.Reason) {
					path := map[bool]string{true: "fast", false: "slow"}
					out = append(out, Event{Kind: Mode, Network: n.Name, VNI: &vni, Port: p.Name, From: path[o.Fast], To: path[p.Fast], Reason: p.Reason})
				}
			}
		}
	}
	for _, o := range old.State.Networks {
		if s.Network(o.Name) == nil {
			vni := o.VNI
			out = append(out, Event{Kind: Mode, Network: o.Name, VNI: &vni, From: modeOf(string(o.Mode), o.Reason), To: "gone"})
		}
	}
	return out
}

// drops are the packets that BPF dropped, by network and reason.
func (f *follower) drops(old, s *observe.Snapshot) (out []Event) {
	r := s.Since(old)
	sum := map[observe.ReasonKey]uint64{}
	for k, c := range r.Reasons {
		if strings.HasPrefix(k.Reason.String(), "drop_") {
			sum[observe.ReasonKey{Network: k.Network, Reason: k.Reason}] += c.Packets
		}
	}
	for k, n := range sum {
		rate := r.PerSecond(n)
		if n == 0 || rate <= f.rate {
			continue
		}
		e := Event{Kind: Drops, Network: k.Network, Count: n, Rate: rate, Reason: k.Reason.String() + ": " + observe.Meaning(k.Reason)}
		if net := s.Network(k.Network); net != nil {
			e.VNI = &net.VNI
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}
