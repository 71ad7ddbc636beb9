// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

// Repairs counts what others changed of what the config says.
type Repairs struct {
	Repaired uint64 `json:"repaired"` // put back
	Reported uint64 `json:"reported"` // not ours to put back
	// Foreign is what differs now and is not ours to put back, a line each.
	Foreign []string `json:"foreign,omitempty"`
	// Last is the most recent repair.
	Last string    `json:"last,omitempty"`
	When time.Time `json:"when,omitzero"`
}

// Times of the look at the links.
const (
	// glance is how long the daemon waits after a suspicious event: what changes one thing mostly changes more.
	glance = 200 * time.Millisecond
	// patience is the longest pause between two repairs, where somebody keeps changing what we put back.
	patience = 30 * time.Second
	// lookShare bounds what looking at the links costs: a thousandth of a core.
	lookShare = 1000
)

// drift is what the loop knows of the links of the config, to see from events
// whether somebody changed one.
type drift struct {
	names   map[string]bool // of the config: bridges, vxlan links, underlay devices
	indexes map[int]bool    // of these, as they were when last looked at
	lost    reconcile.Owned // all that has been ours since the config was loaded, there or not
	pause   time.Duration   // until the next look
	done    []string        // what the last look put back
	next    time.Time       // not before
}

// know sets what to watch: the links of the config in force.
func (d *Daemon) know(links []kernel.Link) {
	names := map[string]bool{}
	for i := range d.cfg.Networks {
		n := &d.cfg.Networks[i]
		names[n.Bridge.Name], names[n.Link], names[n.Underlay.Device] = true, true, true
	}
	d.drift.names, d.drift.indexes = names, map[int]bool{}
	for _, l := range links {
		if names[l.Name] {
			d.drift.indexes[l.Index] = true
		}
	}
}

// suspicious reports whether an event is about a link of the config, or about an
// entry that somebody put there.
func (d *Daemon) suspicious(e kernel.Event) bool {
	switch e := e.(type) {
	case kernel.LinkChanged:
		if !d.drift.names[e.Name] && !d.drift.indexes[e.Index] {
			return false
		}
		old, known := d.view.links[e.Index]
		return d.dp == nil || !known || !sameLink(old, e.Link)
	case kernel.LinkGone:
		return d.drift.names[e.Name] || d.drift.indexes[e.Index]
	case kernel.PortGone:
		return d.drift.indexes[e.Index]
	case kernel.PortChanged:
		return d.drift.indexes[e.Index]
	case kernel.AddressChanged:
		return d.drift.indexes[e.Link]
	case kernel.FDBChanged:
		return e.Self && d.drift.indexes[e.Link] && (e.MAC.IsZero() || e.Static)
	case kernel.FDBGone:
		return e.Self && d.drift.indexes[e.Link] && (e.MAC.IsZero() || e.Static)
	case kernel.Overrun:
		return true
	}
	return false
}

// repair puts back what is ours of what somebody changed, and reports the rest
// once. It returns when to look again, 0 for not before somebody changes something.
func (d *Daemon) repair(ctx context.Context) time.Duration {
	began := time.Now()
	again := func(done []string) time.Duration {
		d.drift.next = time.Now().Add(lookShare * time.Since(began) / 10)
		same := len(done) > 0 && slices.Equal(done, d.drift.done)
		switch d.drift.done = done; {
		case len(done) == 0:
			d.drift.pause = 0
			return 0
		case same: // somebody undoes what we do, a program perhaps: no race with it
			d.drift.pause = min(2*d.drift.pause, patience)
		default:
			d.drift.pause = 2 * glance
		}
		return d.drift.pause
	}
	links, err := d.h.Links()
	if err != nil {
		d.tell("look at the links", err)
		return patience
	}
	var done []string
	if !d.opt.LeaveDrift {
		done = d.nameBack(links)
	}
	d.know(links)
	mine := d.drift.lost.Clone()
	mine.Merge(d.state.Owned)
	d.drift.lost = mine
	snap, err := Snapshot(d.h)
	if err != nil {
		d.tell("look at the links", err)
		return patience
	}
	plan, err := reconcile.NewPlan(d.cfg, snap, d.state.Owned, reconcile.Options{
		Position: d.cfg, Repair: &mine, InPlace: inPlace,
	})
	if err != nil {
		// Something stands in the way of what the config says.
		d.foreign([]string{oneLine(err)})
		return again(done)
	}
	var lines []string
	for _, a := range plan.Foreign {
		lines = append(lines, a.String())
	}
	if d.opt.LeaveDrift {
		for _, a := range plan.Actions {
			if a.Verb != reconcile.Keep {
				lines = append(lines, a.String())
			}
		}
		d.foreign(lines)
		return again(nil)
	}
	d.foreign(lines)
	if !plan.Changes() {
		return again(done)
	}
	for _, a := range plan.Actions {
		if a.Verb != reconcile.Keep {
			done = append(done, a.String())
			d.repaired(a.String())
		}
	}
	if err := d.carryOut(ctx, plan); err != nil {
		d.log.Error("repair", "err", err)
	}
	return again(done)
}

// nameBack gives links that we made and somebody renamed their names again.
func (d *Daemon) nameBack(links []kernel.Link) (done []string) {
	for _, r := range d.state.Owned.Links {
		i := slices.IndexFunc(links, func(l kernel.Link) bool { return l.Index == r.Index && l.Kind == r.Kind })
		taken := slices.ContainsFunc(links, func(l kernel.Link) bool { return l.Name == r.Name })
		if i < 0 || r.Index == 0 || links[i].Name == r.Name || taken {
			continue
		}
		l := &links[i]
		err := d.h.Rename(l.Index, r.Name)
		if errors.Is(err, unix.EBUSY) && l.Up {
			err = errors.Join(d.h.SetDown(l.Index), d.h.Rename(l.Index, r.Name), d.h.SetUp(l.Index))
		}
		if err != nil {
			d.log.Error("repair", "err", err)
			continue
		}
		what := "rename " + l.Name + " to " + r.Name
		d.repaired(what)
		done = append(done, what)
		l.Name = r.Name
	}
	return done
}

// repaired counts and tells.
func (d *Daemon) repaired(what string) {
	d.state.Repairs.Repaired++
	d.state.Repairs.Last, d.state.Repairs.When = what, time.Now().UTC().Truncate(time.Second)
	d.dirty = true
	d.log.Warn("somebody changed what is vxbpf's, put back", "repair", what)
}

// foreign tells of what differs and is not ours: each once.
func (d *Daemon) foreign(lines []string) {
	r := &d.state.Repairs
	for _, l := range lines {
		if !slices.Contains(r.Foreign, l) {
			r.Reported++
			why := "differs from the config and is not vxbpf's to change; `vxbpf load` does it"
			if d.opt.LeaveDrift {
				why = "differs from the config and is left as it is (--repair=false); `vxbpf load` changes it"
			}
			d.log.Warn(why, "drift", l)
		}
	}
	if !slices.Equal(r.Foreign, lines) {
		r.Foreign, d.dirty = lines, true
	}
}
