// SPDX-License-Identifier: Apache-2.0

package reconcile

// UnloadOptions are the choices of Unload.
type UnloadOptions struct {
	// KeepLinks leaves the host as it is and only gives up ownership: the
	// links go on at the kernel's speed, and nothing of vxbpf will touch them.
	KeepLinks bool
}

// Unload plans the removal of all that vxbpf made and the return of what it
// changed. Apply carries it out; the record is empty then.
func Unload(owned Owned, snap Snapshot, opts UnloadOptions) *Plan {
	b := newBuilder(snap, owned)
	b.why = "unload"
	if opts.KeepLinks {
		for _, r := range b.owned.Links {
			if _, ok := b.snap.Link(r.Name); ok {
				b.act(Action{Verb: Keep, Object: r.Kind + " " + r.Name, Reason: "unload: left on the host, no longer vxbpf's"})
			}
		}
		b.plan.start = Owned{}
		return b.plan
	}
	b.doom()
	b.release()
	return b.plan
}
