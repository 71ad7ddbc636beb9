// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/netfilter"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

func (d *Daemon) renew() error { return d.dp.maps.Control.SetLease(vxmaps.Now() + leaseTime) }

// follow is the loop that owns everything: it takes the kernel's events, what is
// asked over the control socket, and the time.
func (d *Daemon) follow(ctx context.Context, events <-chan []kernel.Event, rules <-chan struct{}) error {
	tick := time.NewTicker(leaseRenew)
	defer tick.Stop()
	check, full := time.NewTimer(checkEvery), time.NewTimer(rest(resyncEvery, d.upCost/2))
	defer check.Stop()
	defer full.Stop()
	soon := make(<-chan time.Time) // a dump that was asked for, after a pause
	ripe := make(<-chan time.Time) // pending entries, when they can be confirmed
	var look <-chan time.Time      // at the packet filter
	var links <-chan time.Time     // when the links are to be looked at
	suspect := func(after time.Duration) {
		if links == nil && after > 0 {
			links = time.After(max(after, time.Until(d.drift.next)))
		}
	}
	var unpinned <-chan time.Time // when pins that were removed are to be put back
	tries := 0
	pins, stop, err := watchPins(d.opt.pinDir())
	if err != nil {
		d.tell("watch pins: one that is removed is put back within half a minute", err)
	} else {
		defer stop()
	}
	waiting := false
	pending := false
	for {
		again := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case batch := <-events:
			for _, e := range batch {
				if d.suspicious(e) {
					suspect(max(glance, d.drift.pause))
					break
				}
			}
			if again, err = d.handle(batch); err != nil {
				return err
			}
		case <-links:
			links = nil
			suspect(d.repair(ctx))
		case <-pins:
			// A link without its pin is detached a moment later, and until then its place is taken.
			if unpinned == nil {
				unpinned, tries = time.After(unpinnedWait), 10
			}
		case <-unpinned:
			unpinned = nil
			if d.dp == nil {
				break
			}
			d.tell("put pins back", d.repin())
			if err := d.sync(); err != nil {
				return err
			}
			if tries--; len(d.refused) > 0 && tries > 0 {
				unpinned = time.After(2 * unpinnedWait)
			}
		case c := <-d.calls:
			c.do(ctx)
			close(c.done)
		case <-d.opt.Hangup:
			d.reread(ctx)
		case _, ok := <-rules:
			if !ok {
				rules = nil // until the next resync looks
			} else if look == nil {
				look = time.After(100 * time.Millisecond) // some tools change rules many times in a row
			}
		case <-look:
			look = nil
			if d.dp == nil {
				break
			}
			d.readRules(d.view)
			if err := d.sync(); err != nil {
				return err
			}
		case <-tick.C:
			d.alive()
			if _, err := os.Stat(stateFile(d.opt.runDir())); errors.Is(err, os.ErrNotExist) {
				d.tell("write state", errors.Join(os.MkdirAll(d.opt.runDir(), 0o755), writeActive(d.opt.runDir(), d.cfg)))
				d.repaired("write state.json")
			}
			if d.window != nil && d.window.left() <= 0 && time.Since(d.expired) > expireAgain {
				if err := d.expire(ctx); err != nil {
					return err
				}
			}
			if err := d.vouch(); err != nil {
				return err
			}
		case <-check.C:
			began := processTime()
			if err := d.check(); err != nil {
				return err
			}
			check.Reset(rest(checkEvery, processTime()-began))
		case <-full.C:
			// Events tell of everything that this finds, but for what went wrong.
			began := processTime()
			if d.dp != nil {
				if err := d.resync(); err != nil {
					return err
				}
			}
			suspect(d.repair(ctx))
			if d.unsettled {
				d.tell("put the last good config back", d.goBack(ctx, d.cfg, d.mirror))
			}
			full.Reset(rest(resyncEvery, processTime()-began))
		case <-ripe:
			waiting = false
			if err := d.confirm(); err != nil {
				return err
			}
		case <-soon:
			pending = false
			if d.dp == nil {
				break
			}
			if err := d.resync(); err != nil {
				return err
			}
		}
		if again && !pending {
			pending = true
			soon = time.After(100 * time.Millisecond)
		}
		if len(d.pending) > 0 && !waiting {
			waiting = true
			ripe = time.After(settle)
		}
		if d.dirty {
			d.dirty = false
			d.tell("write state", d.state.write(d.opt.runDir()))
		}
	}
}

// rest is how long to wait before the next look, when one costs that much CPU time.
func rest(least, cost time.Duration) time.Duration { return max(least, restShare*cost) }

// processTime is the CPU time of this process so far.
func processTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return 0 // not on Linux
	}
	return time.Duration(ts.Nano())
}

// check looks at what the kernel changes without an event: learnt path MTUs,
// sysctls, legacy packet filter rules, programs that others attach by tcx.
func (d *Daemon) check() (err error) {
	if d.dp == nil {
		return nil
	}
	d.readRules(d.view)
	sys, err := readSysctls(d.h)
	if err != nil {
		return err
	}
	changed := sys != d.sys
	d.sys = sys
	if err := d.vteps.updateAll(d.view); err != nil {
		return err
	}
	if changed { // outer headers are made from them
		return d.sync()
	}
	return d.syncHooks()
}

// followCapture puts our programs back where a capture has ended, or was killed.
func (d *Daemon) followCapture() error {
	now, stamp := capturing(d.opt.runDir(), d.dp.pins)
	if len(now) == 0 && (len(d.captured) > 0 || stamp != d.captureStamp) {
		return d.sync()
	}
	d.captured, d.captureStamp = now, stamp
	return nil
}

// unpinnedWait is more than the kernel takes to detach a link that nobody refers to.
const unpinnedWait = 50 * time.Millisecond

// vouch is what the daemon owes the programs each second.
func (d *Daemon) vouch() error {
	if d.dp == nil {
		return nil
	}
	if err := d.renew(); err != nil {
		return err
	}
	d.tell("probe neighbours", d.vteps.keepAlive(d.view))
	if err := d.followPathMTU(); err != nil {
		return err
	}
	if err := d.mend(); err != nil {
		return err
	}
	if err := d.followXDP(); err != nil {
		return err
	}
	return d.followCapture()
}

// followPathMTU asks for the routes again when the underlay said that a packet
// was too big: the kernel learns a path MTU without an event.
func (d *Daemon) followPathMTU() error {
	at, err := d.dp.maps.Control.TooBig()
	if err != nil || at == d.tooBig {
		return err
	}
	d.tooBig = at
	return d.vteps.updateAll(d.view)
}

func (d *Daemon) readAddresses(v *view) error {
	all, err := d.h.Addresses()
	if err != nil {
		return err
	}
	v.subnets, v.addresses = all, make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		v.addresses[a.Prefix.Addr()] = true
	}
	return nil
}

// readRules looks at the packet filter. Rules that cannot be read may be any, so nothing goes around them.
func (d *Daemon) readRules(v *view) {
	r, err := netfilter.Read(v.rules)
	v.rules, v.unread = r, ""
	if err != nil {
		v.unread = oneLine(err)
		d.log.Warn("networks without bypass_netfilter stay on the slow path", "err", err)
	}
}

// handle takes a batch of events into the view, then brings the maps in line.
// again asks for a full dump.
func (d *Daemon) handle(batch []kernel.Event) (again bool, err error) {
	if d.dp == nil {
		return false, nil
	}
	links, paths := false, false
	macs := map[*network]map[fdb.MAC]bool{}
	var of map[int][]*network // by the ifindex of the vxlan link and of the bridge
	touch := func(e kernel.FDBEntry) {
		if of == nil {
			of = map[int][]*network{}
			for _, n := range d.fast() {
				of[n.link.Index], of[n.bridge.Index] = append(of[n.link.Index], n), append(of[n.bridge.Index], n)
			}
		}
		table := e.Bridge
		if e.Self {
			table = e.Link
		}
		for _, n := range of[table] {
			if table == 0 || e.Self != (table == n.link.Index) {
				continue
			}
			if macs[n] == nil {
				macs[n] = map[fdb.MAC]bool{}
			}
			macs[n][e.MAC] = true
		}
	}
	for _, e := range batch {
		switch e := e.(type) {
		case kernel.LinkChanged:
			if old, ok := d.view.links[e.Index]; !ok || !sameLink(old, e.Link) {
				links = true
			}
			d.view.setLink(e.Link)
		case kernel.LinkGone:
			delete(d.view.peers, e.Index)
			d.view.delLink(e.Index)
			delete(d.view.bridgeFDB, e.Index)
			delete(d.view.vxlanFDB, e.Index)
			links = true
		case kernel.PortChanged:
			l, ok, err := d.h.LinkByIndex(e.Index)
			if err != nil {
				return again, err
			}
			if ok {
				d.view.setLink(l)
			}
			links = true
		case kernel.PortGone:
			if l, ok := d.view.links[e.Index]; ok && l.Master == e.Bridge {
				l.Master, l.Port = 0, nil
				d.view.setLink(l)
			}
			links = true
		case kernel.FDBChanged:
			d.stats.FDBChanged.Add(1)
			d.view.setFDB(e.FDBEntry)
			touch(e.FDBEntry)
			// A new address at a port: its peer may have been given it.
			if l, ok := d.view.links[e.Link]; ok && !e.Self && l.PeerElsewhere && e.MAC != d.view.peers[l.Index] {
				changed, err := d.readPeer(l)
				if err != nil {
					return again, err
				}
				links = links || changed
			}
		case kernel.FDBGone:
			d.stats.FDBGone.Add(1)
			d.view.delFDB(e.FDBEntry)
			touch(e.FDBEntry)
		case kernel.NeighbourChanged:
			k := neighbourKey{e.Link, e.IP}
			d.view.neighbours[k] = e.Neighbour
			if err := d.vteps.neighbour(k, d.view); err != nil {
				return again, err
			}
		case kernel.NeighbourGone:
			k := neighbourKey{e.Link, e.IP}
			delete(d.view.neighbours, k)
			if err := d.vteps.neighbour(k, d.view); err != nil {
				return again, err
			}
		case kernel.RouteChanged:
			paths = true
		case kernel.AddressChanged:
			if err := d.readAddresses(d.view); err != nil {
				return again, err
			}
			links = true
		case kernel.QdiscChanged:
			links = true
		case kernel.NextHopChanged:
			if d.view.nextHops, err = d.h.NextHops(); err != nil {
				return again, err
			}
			links = true
		case kernel.Overrun:
			d.stats.Overruns.Add(1)
			d.log.Warn("rtnetlink events were lost, reading everything again", "err", e.Err)
			again = true
		}
	}
	if links || paths {
		if err := d.vteps.updateAll(d.view); err != nil {
			return again, err
		}
	}
	// Entries rely on who may send.
	if links || d.view.namesChanged {
		return again, d.sync()
	}
	now := vxmaps.Now()
	for n, set := range macs {
		for mac := range set {
			if err := d.syncMAC(n, mac, now); err != nil {
				return again, err
			}
		}
	}
	return again, nil
}

// sameLink ignores what the data path does not depend on.
func sameLink(a, b kernel.Link) bool {
	a.Carrier, b.Carrier, a.Alias, b.Alias = false, false, "", ""
	return a.Index == b.Index && a.Name == b.Name && a.Kind == b.Kind && a.MAC == b.MAC && a.MTU == b.MTU && a.Up == b.Up &&
		a.Master == b.Master && a.PeerElsewhere == b.PeerElsewhere && a.Peer == b.Peer && a.PeerNS == b.PeerNS && same(a.Bridge, b.Bridge) && same(a.VXLAN, b.VXLAN) && same(a.Port, b.Port)
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }
