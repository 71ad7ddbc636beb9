// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv/need"
)

func is[T Event](f func(T) bool) func(Event) bool {
	return func(e Event) bool {
		v, ok := e.(T)
		return ok && f(v)
	}
}

func every[T Event](T) bool { return true }

func TestEventsOfPorts(t *testing.T) {
	h := newNS(t)
	br := mustBridge(t, h, "br0")
	p, _ := veth(t, h, "p0", "p1", nil)
	wait := watch(t, h)

	must(t, h.SetMaster(p.Index, br.Index))
	wait("the link with its master", is(func(e LinkChanged) bool { return e.Index == p.Index && e.Master == br.Index && e.Port != nil }))
	wait("the state of the port", is(func(e PortChanged) bool { return e.Index == p.Index }))
	forwarding(t, h, p)

	must(t, h.ClearMaster(p.Index))
	seen := wait("the port's leave", is(func(e PortGone) bool { return e.Index == p.Index && e.Bridge == br.Index }))
	seen = append(seen, wait("the link without a master", is(func(e LinkChanged) bool { return e.Index == p.Index && e.Master == 0 }))...)
	for _, e := range seen {
		if _, ok := e.(LinkGone); ok {
			t.Errorf("a port that left its bridge was reported as %T%+v", e, e)
		}
	}

	must(t, h.SetMaster(p.Index, br.Index))
	must(t, h.DeleteLink(p.Index))
	wait("the port's leave", is(func(e PortGone) bool { return e.Index == p.Index }))
	wait("the link's end", is(func(e LinkGone) bool { return e.Index == p.Index && e.Name == "p0" }))
	must(t, h.DeleteLink(br.Index))
	wait("the bridge's end", is(func(e LinkGone) bool { return e.Index == br.Index && e.Name == "br0" }))
}

func TestEventsOfFlags(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	br := mustBridge(t, h, "br0")
	p, _ := veth(t, h, "p0", "p1", nil)
	attach(t, h, br, p)
	wait := watch(t, h)
	locked := need.Have(t, need.PortLocked)
	for _, f := range []string{"isolated", "hairpin", "locked", "neigh_suppress"} {
		if f == "locked" && !locked {
			continue
		}
		run(t, "bridge", "link", "set", "dev", "p0", f, "on")
		wait(f, func(e Event) bool {
			switch e := e.(type) {
			case PortChanged:
				return e.Index == p.Index && e.Bridge == br.Index
			case LinkChanged:
				return e.Index == p.Index && e.Port != nil
			}
			return false
		})
	}
	run(t, "bridge", "link", "set", "dev", "p0", "state", "2")
	wait("learning state", is(func(e PortChanged) bool { return e.Index == p.Index }))
	if s := mustLink(t, h, "p0").Port; s.State != PortLearning || !s.Isolated || !s.Hairpin || s.Locked != locked || !s.NeighSuppress {
		t.Errorf("port %+v", s)
	}
}

func TestEventsOfBridgeFDB(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	br := mustBridge(t, h, "br0")
	p, p1 := veth(t, h, "p0", "p1", nil)
	q, q1 := veth(t, h, "q0", "q1", nil)
	attach(t, h, br, p, q)
	m := mac("02:00:00:00:00:aa")
	at := func(port int) func(Event) bool {
		return is(func(e FDBChanged) bool {
			return e.MAC == m && e.Link == port && e.Bridge == br.Index && !e.Self && !e.Static && !e.Local
		})
	}
	gone := is(func(e FDBGone) bool { return e.MAC == m && !e.Self })
	wait := watch(t, h)

	sendFrame(t, p1.Index, m)
	wait("learned", at(p.Index))
	sendFrame(t, q1.Index, m)
	for _, e := range wait("moved", at(q.Index)) {
		if gone(e) {
			t.Errorf("a move was reported with %T%+v", e, e)
		}
	}
	must(t, h.changePort(unix.RTM_DELNEIGH, 0, q.Index, m, 0))
	wait("deleted", gone)
	sendFrame(t, p1.Index, m)
	wait("learned again", at(p.Index))
	run(t, "ip", "link", "set", "br0", "type", "bridge", "fdb_flush")
	wait("flushed", gone)
	sendFrame(t, p1.Index, m)
	wait("learned a third time", at(p.Index))
	must(t, h.SetDown(p.Index))
	wait("gone with its port", gone)
}

func TestEventsOfVXLAN(t *testing.T) {
	h := newNS(t)
	_, vx, _, _ := overlay(t, h)
	m := mac("02:00:00:00:00:01")
	to := func(dst string) func(Event) bool {
		return is(func(e FDBChanged) bool {
			return e.Self && e.MAC == m && e.Link == vx.Index && e.Dst == addr(dst) && e.Static
		})
	}
	wait := watch(t, h)
	must(t, h.AddStatic(vx.Index, m, addr("10.9.0.2")))
	wait("added", to("10.9.0.2"))
	wait("added to the bridge", is(func(e FDBChanged) bool { return !e.Self && e.MAC == m && e.Link == vx.Index && e.Static }))
	must(t, h.AddStatic(vx.Index, m, addr("10.9.0.3")))
	wait("moved", to("10.9.0.3"))
	must(t, h.DelStatic(vx.Index, m, addr("10.9.0.3")))
	wait("deleted", is(func(e FDBGone) bool { return e.Self && e.MAC == m && e.Dst == addr("10.9.0.3") }))
	must(t, h.AppendDefaultRemote(vx.Index, addr("10.9.0.7")))
	wait("flood list", is(func(e FDBChanged) bool { return e.Self && e.MAC.IsZero() && e.Dst == addr("10.9.0.7") }))
	must(t, h.DelDefaultRemote(vx.Index, addr("10.9.0.7")))
	wait("flood list", is(func(e FDBGone) bool { return e.Self && e.MAC.IsZero() && e.Dst == addr("10.9.0.7") }))
	must(t, h.SetVXLAN(vx.Index, VXLANChange{TTL: ptr(77)}))
	wait("ttl", is(func(e LinkChanged) bool { return e.Index == vx.Index && e.VXLAN.TTL == 77 }))
}

func TestEventsOfLayer3(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	o := otherNS(t)
	u, far := veth(t, h, "u0", "u1", o)
	must(t, o.AddAddress(far.Index, prefix("10.9.0.2/24")))
	wait := watch(t, h)
	must(t, h.AddAddress(u.Index, prefix("10.9.0.1/24")))
	// The kernel tells of the address and of its subnet's route in either order.
	var route, address bool
	wait("address and route", func(e Event) bool {
		route = route || is(every[RouteChanged])(e)
		address = address || is(func(e AddressChanged) bool { return e.Link == u.Index })(e)
		return route && address
	})
	must(t, h.ProbeNeighbour(u.Index, addr("10.9.0.2")))
	wait("neighbour", is(func(e NeighbourChanged) bool { return e.Valid && e.IP == addr("10.9.0.2") && e.MAC == far.MAC }))
	run(t, "ip", "neigh", "del", "10.9.0.2", "dev", "u0")
	wait("neighbour's end", is(func(e NeighbourGone) bool { return e.IP == addr("10.9.0.2") }))
	run(t, "ip", "route", "add", "10.1.0.0/16", "via", "10.9.0.2")
	wait("route", is(every[RouteChanged]))
	run(t, "ip", "nexthop", "add", "id", "10", "via", "10.9.0.7", "fdb")
	wait("next hop", is(every[NextHopChanged]))
	must(t, h.DelAddress(u.Index, prefix("10.9.0.1/24")))
	wait("address", is(func(e AddressChanged) bool { return e.Link == u.Index }))
}

// follow is what a caller does: it keeps a table of the bridge's entries from
// a list and the events after it.
type follow map[fdb.MAC]int

func (f follow) list(t *testing.T, h *Handle) {
	clear(f)
	for _, e := range fdbOf(t, h) {
		if followed(e) {
			f[e.MAC] = e.Link
		}
	}
}

// followed leaves out what the veths' own IPv6 chatter teaches the bridge.
func followed(e FDBEntry) bool { return !e.Self && !e.Local && e.MAC[0] == 2 && e.MAC[1] == 0 }

func (f follow) apply(e Event) {
	switch e := e.(type) {
	case FDBChanged:
		if followed(e.FDBEntry) {
			f[e.MAC] = e.Link
		}
	case FDBGone:
		if followed(e.FDBEntry) {
			delete(f, e.MAC)
		}
	}
}

func TestOverrun(t *testing.T) {
	h := newNS(t)
	br := mustBridge(t, h, "br0")
	p, _ := veth(t, h, "p0", "p1", nil)
	attach(t, h, br, p)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := h.Subscribe(ctx, SubscribeOptions{ReceiveBuffer: 1})
	must(t, err)
	defer s.Close()

	nth := func(i int) (m fdb.MAC) {
		m[0] = 2
		binary.BigEndian.PutUint32(m[2:], uint32(i))
		return m
	}
	const n = 500
	// Every second entry is deleted again after the queue has filled: an
	// event from before the loss, applied after the list, would bring it back.
	for i := range n {
		must(t, h.changePort(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, p.Index, nth(i), unix.NUD_REACHABLE))
	}
	for i := 0; i < n; i += 2 {
		must(t, h.changePort(unix.RTM_DELNEIGH, 0, p.Index, nth(i), 0))
	}
	events, err := s.Next()
	must(t, err)
	if len(events) != 1 {
		t.Fatalf("%d events, want the overrun alone", len(events))
	}
	o, ok := events[0].(Overrun)
	if !ok || !errors.Is(o.Err, unix.ENOBUFS) {
		t.Fatalf("event %T%+v, want Overrun", events[0], events[0])
	}
	table := follow{}
	table.list(t, h)
	if len(table) != n/2 {
		t.Fatalf("%d entries, want %d", len(table), n/2)
	}
	// From here on events arrive again; a buffer as small as this may still
	// overrun, which calls for the list once more.
	last := nth(n)
	must(t, h.changePort(unix.RTM_DELNEIGH, 0, p.Index, nth(1), 0))
	must(t, h.changePort(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, p.Index, last, unix.NUD_REACHABLE))
	for table[last] == 0 {
		events, err := s.Next()
		must(t, err)
		for _, e := range events {
			if _, ok := e.(Overrun); ok {
				table.list(t, h)
			}
			table.apply(e)
		}
	}
	fresh := follow{}
	fresh.list(t, h)
	if len(fresh) != n/2 || len(table) != len(fresh) {
		t.Errorf("%d entries followed, %d in the kernel, want %d", len(table), len(fresh), n/2)
	}
	for m, link := range fresh {
		if table[m] != link {
			t.Errorf("entry %s at %d, want %d", m, table[m], link)
		}
	}
}

// TestLargeBurst: the default buffer takes a few thousand changes at once.
func TestLargeBurst(t *testing.T) {
	h := newNS(t)
	br := mustBridge(t, h, "br0")
	p, _ := veth(t, h, "p0", "p1", nil)
	attach(t, h, br, p)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	s, err := h.Subscribe(ctx, SubscribeOptions{})
	must(t, err)
	defer s.Close()
	const n = 3000
	for i := range n {
		m := fdb.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		must(t, h.changePort(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, p.Index, m, unix.NUD_REACHABLE))
	}
	for got := 0; got < n; {
		events, err := s.Next()
		must(t, err)
		for _, e := range events {
			switch e := e.(type) {
			case FDBChanged:
				if followed(e.FDBEntry) {
					got++
				}
			case Overrun:
				t.Fatalf("overrun after %d events: %v", got, e.Err)
			}
		}
	}
}

func TestSubscriptionEnds(t *testing.T) {
	h := newNS(t)
	end := func(what string, stop func(*Subscription, context.CancelCauseFunc), want error) {
		for _, early := range []bool{true, false} {
			ctx, cancel := context.WithCancelCause(context.Background())
			s, err := h.Subscribe(ctx, SubscribeOptions{})
			must(t, err)
			done := make(chan error, 1)
			if early {
				stop(s, cancel)
			}
			go func() {
				for {
					if _, err := s.Next(); err != nil {
						done <- err
						return
					}
				}
			}()
			if !early {
				time.Sleep(20 * time.Millisecond) // so that it waits in Next, most likely
				stop(s, cancel)
			}
			select {
			case err := <-done:
				if !errors.Is(err, want) {
					t.Errorf("%s, early %v: %v, want %v", what, early, err, want)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s, early %v: Next still waits", what, early)
			}
			if _, err := s.Next(); !errors.Is(err, want) {
				t.Errorf("%s: a second Next gives %v, want %v", what, err, want)
			}
			must(t, s.Close())
			must(t, s.Close())
			cancel(nil)
		}
	}
	end("cancel", func(_ *Subscription, cancel context.CancelCauseFunc) { cancel(nil) }, context.Canceled)
	end("close", func(s *Subscription, _ context.CancelCauseFunc) { must(t, s.Close()) }, os.ErrClosed)

	// The subscription lives on without its Handle.
	s, err := h.Subscribe(t.Context(), SubscribeOptions{})
	must(t, err)
	defer s.Close()
	h2, err := Open()
	must(t, err)
	defer h2.Close()
	must(t, h.Close())
	mustBridge(t, h2, "br0")
	for {
		events, err := s.Next()
		must(t, err)
		if slices.ContainsFunc(events, is(func(e LinkChanged) bool { return e.Name == "br0" })) {
			return
		}
	}
}
