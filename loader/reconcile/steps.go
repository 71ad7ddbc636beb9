// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"slices"

	"github.com/vxbpf/vxbpf/loader/config"
)

type staticEntry = config.StaticEntry

// The steps of a plan. Each ties a primitive of run to the record of what is
// ours: what comes is claimed before, what goes is dropped from the record
// after. A record that replaces another is claimed beside it and the other
// dropped afterwards; prune keeps the one that is true.

// create makes a link. Until its ifindex is known the claim stands with 0.
func create(rec OwnedLink, st LinkState) func(*run) error {
	return func(r *run) error {
		rec := rec
		same := func(q OwnedLink) bool { return q.Name == rec.Name && q.Kind == rec.Kind }
		err := r.claim(func(o *Owned) { o.Links = append(slices.DeleteFunc(o.Links, same), rec) })
		if err != nil {
			return err
		}
		index, err := r.create(rec.Name, st)
		if err != nil {
			return err
		}
		rec.Index = index
		return r.claim(func(o *Owned) { o.Links = append(slices.DeleteFunc(o.Links, same), rec) })
	}
}

// displace deletes a vxlan link that will be made again according to rec. The
// claim stands with ifindex 0 from before the deletion, so that a kill in
// between does not lose what the link was before us.
func displace(rec OwnedLink) func(*run) error {
	return func(r *run) error {
		l, err := r.link(rec.Name)
		if err != nil {
			return err
		}
		index := l.Index
		pending := rec
		if old, ours := r.owned.Made(*l); ours {
			// Still the old link until it is deleted.
			pending.VNI, pending.Port = old.VNI, old.Port
		}
		err = r.claim(func(o *Owned) {
			o.Links = slices.DeleteFunc(o.Links, func(q OwnedLink) bool { return q.Name == rec.Name && q.Kind == rec.Kind })
			o.Links = append(o.Links, pending)
		})
		if err != nil {
			return err
		}
		if err := r.delete(rec.Name); err != nil {
			return err
		}
		r.settle(func(o *Owned) { o.dropParts(rec.Name, index) })
		return nil
	}
}

// remove deletes a link that we made.
func remove(name string) func(*run) error {
	return func(r *run) error {
		l, err := r.link(name)
		if err != nil {
			return err
		}
		index := l.Index
		if err := r.delete(name); err != nil {
			return err
		}
		r.settle(func(o *Owned) { o.dropLink(name, index) })
		return nil
	}
}

// restore makes a link again that we had replaced. It is not ours, except that
// until it is complete the record says so: after a kill in between it is made
// once more.
func restore(name string, st LinkState) func(*run) error {
	return func(r *run) error {
		rec := OwnedLink{Name: name, Kind: st.Kind, Replaced: &st}
		if st.VXLAN != nil {
			rec.VNI, rec.Port = st.VXLAN.VNI, st.VXLAN.Port
		}
		same := func(q OwnedLink) bool { return q.Name == name && q.Kind == st.Kind }
		pending := func() error {
			return r.claim(func(o *Owned) { o.Links = append(slices.DeleteFunc(o.Links, same), rec) })
		}
		if err := pending(); err != nil {
			return err
		}
		if err := r.rebuild(name, st); err != nil {
			return err
		}
		r.push(pending) // on the way back it is incomplete again
		r.settle(func(o *Owned) { o.Links = slices.DeleteFunc(o.Links, same) })
		return nil
	}
}

// set changes an attribute, and keeps the old value if the link is not ours.
func set(name string, a Attr, text string, record bool) func(*run) error {
	return func(r *run) error {
		if !record {
			return r.set(name, a, text)
		}
		l, err := r.link(name)
		if err != nil {
			return err
		}
		rec := OwnedChange{Link: name, Index: l.Index, Attr: a, Old: r.host.attr(*l, a), New: text}
		before, changed := r.owned.change(*l, a)
		if changed {
			rec.Old = before.Old
		}
		if rec.Old != rec.New {
			if err := r.claim(func(o *Owned) { o.Changes = append(o.Changes, rec) }); err != nil {
				return err
			}
		}
		if err := r.set(name, a, text); err != nil {
			return err
		}
		if changed {
			r.settle(func(o *Owned) {
				o.Changes = slices.DeleteFunc(o.Changes, func(q OwnedChange) bool { return q == before })
			})
		}
		return nil
	}
}

func enslave(name, bridge string) func(*run) error {
	return func(r *run) error {
		l, err := r.link(name)
		if err != nil {
			return err
		}
		b, err := r.link(bridge)
		if err != nil {
			return err
		}
		rec := OwnedPort{Link: name, Index: l.Index, Bridge: bridge, BridgeIndex: b.Index}
		if err := r.claim(func(o *Owned) { o.Ports = append(o.Ports, rec) }); err != nil {
			return err
		}
		if err := r.setMaster(name, bridge); err != nil {
			return err
		}
		r.settle(func(o *Owned) {
			o.Ports = slices.DeleteFunc(o.Ports, func(q OwnedPort) bool { return q.Link == name && q != rec })
		})
		return nil
	}
}

func leave(rec OwnedPort) func(*run) error {
	return func(r *run) error {
		if err := r.setMaster(rec.Link, ""); err != nil {
			return err
		}
		r.settle(func(o *Owned) {
			o.Ports = slices.DeleteFunc(o.Ports, func(q OwnedPort) bool { return q == rec })
		})
		return nil
	}
}

func addAddress(name string, p netip.Prefix) func(*run) error {
	return func(r *run) error {
		l, err := r.link(name)
		if err != nil {
			return err
		}
		rec := OwnedAddress{name, l.Index, p}
		if err := r.claim(func(o *Owned) { o.Addresses = append(o.Addresses, rec) }); err != nil {
			return err
		}
		return r.addAddress(name, p)
	}
}

func delAddress(rec OwnedAddress) func(*run) error {
	return func(r *run) error {
		if err := r.delAddress(rec.Link, rec.Prefix); err != nil {
			return err
		}
		r.settle(func(o *Owned) {
			o.Addresses = slices.DeleteFunc(o.Addresses, func(q OwnedAddress) bool { return q == rec })
		})
		return nil
	}
}

func addRemote(name string, a netip.Addr) func(*run) error {
	return func(r *run) error {
		l, err := r.link(name)
		if err != nil {
			return err
		}
		rec := OwnedRemote{name, l.Index, a}
		if err := r.claim(func(o *Owned) { o.Remotes = append(o.Remotes, rec) }); err != nil {
			return err
		}
		return r.addRemote(name, a)
	}
}

func delRemote(rec OwnedRemote) func(*run) error {
	return func(r *run) error {
		if err := r.delRemote(rec.Link, rec.Remote); err != nil {
			return err
		}
		r.settle(func(o *Owned) {
			o.Remotes = slices.DeleteFunc(o.Remotes, func(q OwnedRemote) bool { return q == rec })
		})
		return nil
	}
}

// putStatic sets a static entry. previous is where someone else's entry for
// the MAC pointed.
func putStatic(name string, e Static, previous netip.Addr) func(*run) error {
	return func(r *run) error {
		l, err := r.link(name)
		if err != nil {
			return err
		}
		rec := OwnedStatic{Link: name, Index: l.Index, MAC: e.MAC, VTEP: e.VTEP, Previous: previous}
		if previous != e.VTEP { // else it is as found again
			if err := r.claim(func(o *Owned) { o.Statics = append(o.Statics, rec) }); err != nil {
				return err
			}
		}
		if err := r.putStatic(name, e); err != nil {
			return err
		}
		r.settle(func(o *Owned) {
			o.Statics = slices.DeleteFunc(o.Statics, func(q OwnedStatic) bool {
				return q.Link == rec.Link && q.Index == rec.Index && q.MAC == rec.MAC && q != rec
			})
		})
		return nil
	}
}

// delStatic removes a static entry, or puts back the one that it took the
// place of.
func delStatic(rec OwnedStatic) func(*run) error {
	return func(r *run) error {
		var err error
		if rec.Previous.IsValid() {
			err = r.putStatic(rec.Link, Static{rec.MAC, rec.Previous})
		} else {
			err = r.delStatic(rec.Link, Static{rec.MAC, rec.VTEP})
		}
		if err != nil {
			return err
		}
		r.settle(func(o *Owned) {
			o.Statics = slices.DeleteFunc(o.Statics, func(q OwnedStatic) bool { return q == rec })
		})
		return nil
	}
}
