// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"net/netip"

	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// resync reads everything from the kernel and from the FDB map, and mends what differs.
func (d *Daemon) resync() error {
	d.stats.Resyncs.Add(1)
	if err := d.look(); err != nil {
		return err
	}
	byIndex, err := d.dp.maps.VTEPs.All()
	if err != nil {
		return err
	}
	table, err := d.dp.maps.FDB.All(func(i uint32) netip.Addr { return byIndex[i].Remote })
	if err != nil {
		return err
	}
	return d.adopt(table)
}

// look reads everything from the kernel.
func (d *Daemon) look() error {
	v := newView()
	links, err := d.h.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		v.setLink(l)
	}
	entries, err := d.h.FDB()
	if err != nil {
		return err
	}
	v.replaceFDB(entries)
	neighbours, err := d.h.Neighbours()
	if err != nil {
		return err
	}
	for _, n := range neighbours {
		v.neighbours[neighbourKey{n.Link, n.IP}] = n
	}
	if v.nextHops, err = d.h.NextHops(); err != nil {
		return err
	}
	if err := d.readAddresses(v); err != nil {
		return err
	}
	v.peers = d.view.peers // sync asks again
	v.rules = d.view.rules
	d.readRules(v)
	d.view = v
	d.sys, err = readSysctls(d.h)
	return err
}

// adopt replaces what we believe of the FDB map by what it holds, then syncs.
func (d *Daemon) adopt(table fdb.Table) error {
	for k := range d.fdb {
		if _, still := table[k]; !still {
			if err := d.forget(k); err != nil { // a program removed it
				return err
			}
		}
	}
	for k, e := range table {
		if _, known := d.fdb[k]; !known {
			d.fdb[k] = placed{Entry: e, found: true}
		}
	}
	if err := d.vteps.updateAll(d.view); err != nil {
		return err
	}
	return d.sync()
}

// mend puts back what programs removed and the kernel did not move: it dropped
// the frame that showed the MAC elsewhere, or the MAC is back already.
func (d *Daemon) mend() error {
	at, err := d.dp.maps.Control.Removed()
	if err != nil || at == d.removed {
		return err
	}
	d.removed = at
	now := vxmaps.Now()
	for k := range d.fdb {
		there, err := d.dp.maps.FDB.Has(k)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		if err := d.forget(k); err != nil {
			return err
		}
		if n := d.byID(k.Net); n != nil {
			if err := d.syncMAC(n, k.MAC, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// confirm asks the kernel again about the entries that were written a moment
// ago. An event tells what was true when it was sent: were its entry used at
// once, a MAC that has moved on since would be sent to its old place, and the
// source check would hide from the kernel that it came back there.
func (d *Daemon) confirm() (err error) {
	now := vxmaps.Now()
	due := make([]fdb.Key, 0, len(d.pending))
	for k := range d.pending {
		if old, known := d.fdb[k]; !known || !old.Pending {
			delete(d.pending, k)
		} else if now-old.since >= settle {
			due = append(due, k)
		}
	}
	ask := func(n *network, mac fdb.MAC) error {
		b, ok, err := d.h.BridgeEntry(n.bridge.Index, mac)
		if err != nil {
			return err
		}
		delete(d.view.bridgeFDB[n.bridge.Index], mac)
		if ok {
			d.view.setFDB(b)
		}
		x, ok, err := d.h.VXLANEntry(n.link.Index, mac)
		if err != nil {
			return err
		}
		delete(d.view.vxlanFDB[n.link.Index], mac)
		if ok {
			d.view.setFDB(x)
		}
		return nil
	}
	if len(due) > fewPending {
		all, err := d.h.FDB()
		if err != nil {
			return err
		}
		d.view.replaceFDB(all)
		ask = func(*network, fdb.MAC) error { return nil }
	}
	for _, k := range due {
		delete(d.pending, k)
		n := d.byID(k.Net)
		if n == nil {
			continue
		}
		if err := ask(n, k.MAC); err != nil {
			return err
		}
		want, ok := d.view.entry(n, k.MAC, now)
		old := d.fdb[k]
		if !ok || !old.Same(want) || old.vtep != d.vtepOf(n, want) {
			if ok {
				err = d.putEntry(k, want)
			} else {
				err = d.delEntry(k)
			}
			if err != nil {
				return err
			}
			continue
		}
		old.Pending = false
		there, err := d.dp.maps.FDB.Replace(k, want, d.vteps.index[old.vtep])
		switch {
		case err != nil:
			return err
		case there:
			d.fdb[k] = old
		default: // a program saw it elsewhere: ask once more, the kernel may have dropped that frame and send no event
			if err = d.forget(k); err == nil {
				err = d.putEntry(k, want)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
