// SPDX-License-Identifier: Apache-2.0

package reconcile

import "net/netip"

// The steps of a plan. Each ties a primitive of run to the record of what is
// ours: what comes is claimed before, what goes is dropped from the record
// after. A record that replaces another is claimed beside it and the other
// dropped afterwards; prune keeps the one that is true.

// create makes a link. Until its ifindex is known the claim stands with 0.
func create(rec OwnedLink, st LinkState) func(*run) error {
	return func(r *run) error {
		rec := rec
		if err := r.claim(Delta{Drop: r.linksOf(rec.Name, rec.Kind), Add: Owned{Links: []OwnedLink{rec}}}); err != nil {
			return err
		}
		index, err := r.create(rec.Name, st)
		if err != nil {
			return err
		}
		pending := Owned{Links: []OwnedLink{rec}}
		rec.Index = index
		return r.claim(Delta{Drop: pending, Add: Owned{Links: []OwnedLink{rec}}})
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
		err = r.claim(Delta{Drop: r.linksOf(rec.Name, rec.Kind), Add: Owned{Links: []OwnedLink{pending}}})
		if err != nil {
			return err
		}
		if err := r.delete(rec.Name); err != nil {
			return err
		}
		r.settle(Delta{Drop: r.owned.parts(rec.Name, index)})
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
		r.settle(Delta{Drop: r.owned.of(name, index)})
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
		pending := func() error {
			return r.claim(Delta{Drop: r.linksOf(name, st.Kind), Add: Owned{Links: []OwnedLink{rec}}})
		}
		if err := pending(); err != nil {
			return err
		}
		if err := r.rebuild(name, st); err != nil {
			return err
		}
		r.push(pending) // on the way back it is incomplete again
		r.settle(Delta{Drop: r.linksOf(name, st.Kind)})
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
			if err := r.claim(Delta{Add: Owned{Changes: []OwnedChange{rec}}}); err != nil {
				return err
			}
		}
		if err := r.set(name, a, text); err != nil {
			return err
		}
		if changed && before != rec {
			r.settle(Delta{Drop: Owned{Changes: []OwnedChange{before}}})
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
		if err := r.claim(Delta{Add: Owned{Ports: []OwnedPort{rec}}}); err != nil {
			return err
		}
		if err := r.setMaster(name, bridge); err != nil {
			return err
		}
		var others []OwnedPort
		for _, q := range r.owned.Ports {
			if q.Link == name && q != rec {
				others = append(others, q)
			}
		}
		r.settle(Delta{Drop: Owned{Ports: others}})
		return nil
	}
}

func leave(rec OwnedPort) func(*run) error {
	return func(r *run) error {
		if err := r.setMaster(rec.Link, ""); err != nil {
			return err
		}
		r.settle(Delta{Drop: Owned{Ports: []OwnedPort{rec}}})
		return nil
	}
}

func addAddress(name string, p netip.Prefix) func(*run) error {
	return func(r *run) error {
		l, err := r.link(name)
		if err != nil {
			return err
		}
		if err := r.claim(Delta{Add: Owned{Addresses: []OwnedAddress{{name, l.Index, p}}}}); err != nil {
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
		r.settle(Delta{Drop: Owned{Addresses: []OwnedAddress{rec}}})
		return nil
	}
}

func addRemote(name string, a netip.Addr) func(*run) error {
	return func(r *run) error {
		l, err := r.link(name)
		if err != nil {
			return err
		}
		if err := r.claim(Delta{Add: Owned{Remotes: []OwnedRemote{{name, l.Index, a}}}}); err != nil {
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
		r.settle(Delta{Drop: Owned{Remotes: []OwnedRemote{rec}}})
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
		before := r.statics[rec.key()] > 0
		if previous != e.VTEP { // else it is as found again
			if err := r.claim(Delta{Add: Owned{Statics: []OwnedStatic{rec}}}); err != nil {
				return err
			}
		}
		if err := r.putStatic(name, e); err != nil {
			return err
		}
		if before {
			var others []OwnedStatic
			for _, q := range r.owned.Statics {
				if q.key() == rec.key() && q != rec {
					others = append(others, q)
				}
			}
			r.settle(Delta{Drop: Owned{Statics: others}})
		}
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
		r.settle(Delta{Drop: Owned{Statics: []OwnedStatic{rec}}})
		return nil
	}
}
