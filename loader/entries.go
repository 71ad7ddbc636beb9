// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"net/netip"
	"time"

	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// placed is an entry of the FDB map, with the outer header that it points to.
type placed struct {
	fdb.Entry
	vtep vxmaps.VTEPKey // of a remote entry
	// found: an earlier run's. It holds no reference on its VTEP.
	found bool
	since time.Duration // when it was written, of a pending entry
}

// vtepKey is the outer header that a network uses towards a remote, as its vxlan link would make it.
func (d *Daemon) vtepKey(n *network, remote netip.Addr) vxmaps.VTEPKey {
	x := n.link.VXLAN
	k := vxmaps.VTEPKey{Local: x.Local, Remote: remote, OIF: uint32(x.Device), Port: x.Port, Low: x.SrcLow, High: x.SrcHigh,
		TTL: uint8(x.TTL), TTLInherit: x.TTLInherit, TOS: uint8(x.TOS) &^ 3, TOSInherit: x.TOS == tosInherit}
	if remote.Is6() {
		k.FlowLabel = x.FlowLabel
	} else {
		k.DF = vxmaps.DF(x.DF)
	}
	if k.Low >= k.High {
		k.Low, k.High = d.sys.low, d.sys.high
	}
	return k
}

// tosInherit is how the kernel writes "from the inner packet" into a TOS (IFLA_VXLAN_TOS).
const tosInherit = 1

// syncMAC is sync for one MAC: what most events come down to.
func (d *Daemon) syncMAC(n *network, mac fdb.MAC, now time.Duration) error {
	k := fdb.Key{Net: n.id, MAC: mac}
	want, ok := d.view.entry(n, mac, now)
	if !ok {
		return d.delEntry(k)
	}
	if have, known := d.fdb[k]; known && have.Same(want) {
		// The kernel speaks of it, so a program may have removed it.
		there, err := d.dp.maps.FDB.Has(k)
		if err != nil || there {
			return err
		}
		if err := d.delEntry(k); err != nil {
			return err
		}
	}
	return d.putEntry(k, want)
}

// putEntry writes an entry: one of a new place pending, until it is confirmed.
func (d *Daemon) putEntry(k fdb.Key, e fdb.Entry) error {
	n := d.byID(k.Net)
	want := placed{Entry: e, vtep: d.vtepOf(n, e), since: vxmaps.Now()}
	old, known := d.fdb[k]
	if known && !old.found && old.Same(e) && old.vtep == want.vtep {
		return nil
	}
	var index uint32
	if e.Kind == fdb.Remote {
		var err error
		if index, err = d.vteps.acquire(want.vtep, n.cfg.Underlay.MTU, d.view); err != nil {
			return d.refuse(k, err)
		}
	}
	err := error(nil)
	done := false
	if known && !old.Pending && old.Kind == e.Kind && old.Port == e.Port && old.VTEP == e.VTEP {
		done, err = d.dp.maps.FDB.Replace(k, e, index)
	}
	if err == nil && !done {
		want.Pending = true
		err = d.dp.maps.FDB.Put(k, want.Entry, index)
	}
	if err != nil {
		if e.Kind == fdb.Remote {
			err = errors.Join(err, d.vteps.release(want.vtep))
		}
		return d.refuse(k, err)
	}
	d.fdb[k] = want
	if want.Pending {
		d.pending[k] = true
	}
	if known && !old.found && old.Kind == fdb.Remote {
		return d.vteps.release(old.vtep)
	}
	return nil
}

// vtepOf is vtepKey for a remote entry, else zero.
func (d *Daemon) vtepOf(n *network, e fdb.Entry) vxmaps.VTEPKey {
	if e.Kind != fdb.Remote {
		return vxmaps.VTEPKey{}
	}
	return d.vtepKey(n, e.VTEP)
}

// refuse: what does not fit stays with the kernel, which has room. Said once.
func (d *Daemon) refuse(k fdb.Key, err error) error {
	if !d.full {
		d.full = true
		d.log.Warn("entries stay on the slow path", "mac", k.MAC, "err", err)
	}
	return d.delEntry(k)
}

func (d *Daemon) delEntry(k fdb.Key) error {
	if _, known := d.fdb[k]; !known {
		return nil
	}
	if err := d.dp.maps.FDB.Delete(k); err != nil {
		return err
	}
	return d.forget(k)
}

// forget drops what we hold for an entry that is not in the map any more.
func (d *Daemon) forget(k fdb.Key) error {
	old := d.fdb[k]
	delete(d.fdb, k)
	delete(d.pending, k)
	if old.Kind == fdb.Remote && !old.found {
		return d.vteps.release(old.vtep)
	}
	return nil
}
