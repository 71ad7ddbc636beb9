// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

// apply makes the links match cfg, with programs at hand for the networks that
// want them; hooks and maps follow with up or resync. On an error the host and
// what we hold are as before.
func (d *Daemon) apply(ctx context.Context, cfg *config.Config, recreate bool) (*reconcile.Plan, error) {
	plan, err := d.planFor(cfg, recreate)
	if err != nil {
		return nil, err
	}
	// The programs first: where they must load and do not, nothing has changed yet.
	next, why, err := d.open(cfg)
	if err != nil {
		return nil, err
	}
	old, nets, st := d.mirror, d.nets, d.state
	back := func(err error) error {
		if next != old {
			err = errors.Join(err, next.discard(old))
		}
		d.mirror, d.nets, d.numbers = old, nets, nil
		st.Owned, st.Qdiscs = d.state.Owned, d.state.Qdiscs
		d.state = st
		if _, serr := os.Stat(stateFile(d.opt.runDir())); serr == nil {
			d.tell("write state", d.state.write(d.opt.runDir()))
		}
		return err
	}
	d.mirror = next
	if err := d.number(plan, why); err != nil {
		return nil, back(err)
	}
	d.state.Config, d.state.Reason, d.state.Once = absolute(cfg.File), why, d.opt.Once
	d.state.Since, d.state.Pins = time.Now().UTC().Truncate(time.Second), ""
	if d.state.Networks == nil {
		d.state.Networks = []NetworkState{}
	}
	if d.dp != nil {
		d.state.Pins = d.dp.pins
	}
	for _, a := range plan.Actions {
		if a.Verb != reconcile.Keep {
			d.log.Info(a.String())
		}
	}
	for _, n := range plan.Notices {
		d.log.Warn(n)
	}
	if err := d.carryOut(ctx, plan); err != nil {
		return nil, back(err)
	}
	d.cfg = cfg
	return plan, nil
}

// carryOut applies a plan to the links, and writes down what is ours before it is.
func (d *Daemon) carryOut(ctx context.Context, plan *reconcile.Plan) (err error) {
	steps := &stepFile{d: d}
	d.state.Owned, err = reconcile.Apply(ctx, plan, host{d.h}, steps.write)
	if steps.f == nil {
		return err
	}
	if cerr := steps.f.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("write state: %w", cerr))
	}
	// The whole record takes the steps' place. Until it does, they say the same.
	if werr := d.state.write(d.opt.runDir()); werr != nil {
		d.tell("write state", werr)
		d.dirty = true
	}
	return err
}

func (d *Daemon) alive() {
	if d.opt.Alive != nil {
		d.opt.Alive()
	}
}

// discard forgets a mirror that was opened and not used, with the pins that it has for itself.
func (m *mirror) discard(inUse *mirror) error {
	if m.dp == nil || m.dp.before || inUse.dp != nil && inUse.dp.pins == m.dp.pins {
		return m.close()
	}
	return errors.Join(m.close(), removeTree(m.dp.pins))
}

// reload takes up another config while the data path runs. On an error the last
// good one is back in force.
func (d *Daemon) reload(ctx context.Context, cfg *config.Config, recreate bool) (*reconcile.Plan, error) {
	old, was := d.mirror, d.cfg
	plan, err := d.apply(ctx, cfg, recreate)
	if err != nil {
		return nil, err
	}
	if err = d.takeUp(old); err == nil {
		err = d.settleOn(cfg)
	}
	if err != nil {
		return nil, errors.Join(err, d.goBack(ctx, was, old))
	}
	if d.opt.Relog != nil && cfg.Log != was.Log {
		if log, err := d.opt.Relog(cfg.Log); err == nil {
			d.log = log
		} else {
			d.tell("change the log", err)
		}
	}
	if d.opt.Reloaded != nil {
		d.opt.Reloaded(cfg)
	}
	if old != d.mirror {
		d.tell("close the programs of before", old.close())
	}
	d.ready()
	return plan, nil
}

// takeUp brings hooks and maps in line with networks that have just changed.
func (d *Daemon) takeUp(old *mirror) error {
	if d.mirror != old || d.dp == nil {
		return d.up()
	}
	d.vteps.capMTU(d.cfg.Underlay.MTU)
	return d.resync()
}

// goBack puts the last good config back in force, from the ground up: the
// half-made state of the other one is treated like that of a daemon that died.
func (d *Daemon) goBack(ctx context.Context, was *config.Config, old *mirror) error {
	ctx = context.WithoutCancel(ctx)
	d.log.Error("reload did not succeed, the last good config is put back")
	fallen := d.mirror
	errs := []error{fallen.close()}
	if old != fallen {
		errs = append(errs, old.close())
	}
	d.mirror = newMirror()
	_, err := d.apply(ctx, was, true)
	if err == nil {
		err = d.up()
	}
	if err == nil {
		err = d.settleOn(was)
	}
	d.cfg = was
	d.unsettled = err != nil // the loop tries again
	if err != nil {
		errs = append(errs, fmt.Errorf("put the last good config back: %w", err))
	}
	return errors.Join(errs...)
}
