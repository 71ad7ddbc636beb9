// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/control"
)

// window is the time within which a config must be confirmed, or the one before
// comes back. It is written down before anything changes, so that it holds
// whoever dies: the daemon itself, the one that a service manager starts in its
// place, or the guard, a process of its own, ends it.
type window struct {
	// Deadline by CLOCK_BOOTTIME: nobody sets that clock. Until is the same for people.
	Deadline time.Duration `json:"deadline_boottime_ns"`
	Until    time.Time     `json:"until"`
	Config   document      `json:"config"`
	// Previous is what comes back; nil: nothing was loaded before.
	Previous *document `json:"previous,omitempty"`
}

// ErrNotConfirmed ends a daemon whose first config nobody confirmed.
var ErrNotConfirmed = errors.New("the config was not confirmed in time and is rolled back")

// ErrRejected refuses a config at an unattended start.
var ErrRejected = errors.New("this config was rolled back because nobody confirmed it; load it by hand, with --confirm")

func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // there since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

func (w *window) left() time.Duration { return w.Deadline - bootTime() }

// readWindow returns nil where nothing waits for a confirmation.
func readWindow(run string) (*window, error) {
	b, err := os.ReadFile(windowFile(run))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var w window
	if err == nil {
		err = json.Unmarshal(b, &w)
	}
	if err != nil {
		return nil, fmt.Errorf("read what waits for a confirmation: %w", err)
	}
	return &w, nil
}

// Unconfirmed is until when the instance's config must be confirmed; the zero time if it need not be.
func Unconfirmed(opt Options) (time.Time, error) {
	w, err := readWindow(opt.runDir())
	if err != nil || w == nil {
		return time.Time{}, err
	}
	return w.Until, nil
}

// openWindow begins the wait for a confirmation of cfg, in place of one that is under way.
func (d *Daemon) openWindow(cfg *config.Config, length time.Duration) error {
	if d.opt.Guard == nil {
		return errors.New("load with a confirmation: there is no guard to end it")
	}
	w := &window{Deadline: bootTime() + length, Until: time.Now().UTC().Add(length).Truncate(time.Second), Config: documentOf(cfg)}
	switch {
	case d.window != nil:
		w.Previous = d.window.Previous
	case d.cfg != nil:
		doc := documentOf(d.cfg)
		w.Previous = &doc
	case !d.fresh:
		doc, err := active(d.opt.runDir())
		if err != nil {
			return fmt.Errorf("load with a confirmation: find the config to go back to: %w; load it once without --confirm", err)
		}
		w.Previous = doc
	}
	if err := d.keepWindow(w); err != nil {
		return err
	}
	if err := d.opt.Guard(); err != nil {
		return errors.Join(fmt.Errorf("start the guard of the confirmation: %w", err), d.closeWindow())
	}
	return nil
}

// keepWindow makes w, which may be nil, what waits for a confirmation.
func (d *Daemon) keepWindow(w *window) error {
	if w == nil {
		return d.closeWindow()
	}
	b, err := json.Marshal(w)
	if err == nil {
		err = writeFile(windowFile(d.opt.runDir()), b, 0o600)
	}
	if err != nil {
		return err
	}
	d.window = w
	return nil
}

func (d *Daemon) closeWindow() error {
	d.window = nil
	if err := os.Remove(windowFile(d.opt.runDir())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end the wait for a confirmation: %w", err)
	}
	return nil
}

// confirmConfig ends the wait: the config stays.
func (d *Daemon) confirmConfig() error {
	switch {
	case d.window == nil:
		why := "nothing waits for a confirmation"
		if r := d.state.RolledBack; r != nil {
			why += ": " + r.Why + " at " + r.When.Format(time.RFC3339)
		}
		return errors.New(why)
	case d.window.left() <= 0:
		return errors.New("too late: the config is being rolled back")
	}
	if err := d.closeWindow(); err != nil {
		return err
	}
	d.log.Info("config confirmed", "config", d.state.Config)
	return nil
}

// judge looks at what an earlier load left waiting, and says which config to
// take up: usually the one given. A start is never a confirmation.
func (d *Daemon) judge(ctx context.Context, cfg *config.Config) (*config.Config, error) {
	w, err := readWindow(d.opt.runDir())
	if err != nil {
		return nil, err
	}
	if w == nil {
		return d.unlessRejected(cfg)
	}
	d.window = w
	switch {
	case d.opt.Confirm > 0: // a new window, with the way back of this one
		return cfg, nil
	case w.Config.Text != string(cfg.Text()):
		d.log.Warn("another config than the one that waits for a confirmation is loaded, and takes its place", "config", cfg.File)
		return cfg, d.closeWindow()
	case w.left() > 0:
		d.log.Warn("the config is not confirmed yet", "until", w.Until)
		return cfg, nil
	case w.Previous == nil:
		return nil, errors.Join(ErrNotConfirmed, d.leaveNothing(ctx))
	}
	d.log.Warn("the config was not confirmed in time, the one before is loaded", "config", w.Previous.File)
	if cfg, err = w.Previous.parse(); err != nil {
		return nil, err
	}
	d.rolledBack(w)
	return cfg, d.closeWindow()
}

// expire takes an unconfirmed config back. ErrNotConfirmed: nothing is left to follow.
func (d *Daemon) expire(ctx context.Context) error {
	w := d.window
	d.log.Error("nobody confirmed the config in time, it is rolled back", "config", w.Config.File)
	if w.Previous == nil {
		return errors.Join(ErrNotConfirmed, d.leaveNothing(ctx))
	}
	cfg, err := w.Previous.parse()
	if err == nil {
		_, err = d.reload(ctx, cfg, true)
	}
	if err != nil {
		d.log.Error("roll back", "err", err) // the loop tries again
		d.expired = time.Now()
		return nil
	}
	d.rolledBack(w)
	return errors.Join(d.closeWindow(), d.state.write(d.opt.runDir()))
}

// leaveNothing rolls back to a host that vxbpf has not touched.
func (d *Daemon) leaveNothing(ctx context.Context) error {
	w := d.window
	if _, err := d.teardown(context.WithoutCancel(ctx), false); err != nil {
		return err
	}
	if err := os.MkdirAll(d.opt.runDir(), 0o755); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	d.rolledBack(w)
	return nil
}

// RolledBack says that, and when, an instance went back to the config before.
type RolledBack struct {
	When time.Time `json:"when"`
	Why  string    `json:"why"`
}

// rejected is a config that a service manager must not load again by itself.
type rejected struct {
	Sum string `json:"sha256"`
	RolledBack
}

func sum(text string) string {
	h := sha256.Sum256([]byte(text))
	return hex.EncodeToString(h[:])
}

// rolledBack remembers a roll-back for status and for the next unattended start.
func (d *Daemon) rolledBack(w *window) {
	r := RolledBack{When: time.Now().UTC().Truncate(time.Second), Why: w.Config.File + " was not confirmed in time and rolled back"}
	d.state.RolledBack = &r
	b, err := json.Marshal(rejected{sum(w.Config.Text), r})
	if err == nil {
		err = writeFile(rejectedFile(d.opt.runDir()), b, 0o600)
	}
	d.tell("remember what was rolled back", err)
}

// unlessRejected is cfg, unless it was rolled back and nobody has decided since
// to try it again: a service manager that restarts the daemon, or a reload of the
// same file by habit, is no decision.
func (d *Daemon) unlessRejected(cfg *config.Config) (*config.Config, error) {
	b, err := os.ReadFile(rejectedFile(d.opt.runDir()))
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, nil
	}
	var r rejected
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was rolled back: %w", err)
	}
	if !d.opt.Unattended || r.Sum != sum(string(cfg.Text())) {
		d.state.RolledBack = nil
		if err := os.Remove(rejectedFile(d.opt.runDir())); err != nil {
			return nil, fmt.Errorf("forget what was rolled back: %w", err)
		}
		return cfg, nil
	}
	doc, err := active(d.opt.runDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("load %s: %w", cfg.File, ErrRejected)
	}
	if err != nil {
		return nil, err
	}
	d.log.Error("this config was rolled back, the last good one is loaded; `vxbpf load --confirm` tries it again", "config", cfg.File)
	if cfg, err = doc.parse(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// Confirm keeps the config that an instance has loaded with a confirmation.
func Confirm(ctx context.Context, opt Options) error {
	return decide(ctx, opt, "/v1/confirm", (*Daemon).confirmConfig)
}

// Reject rolls it back now instead of at the end of its time.
func Reject(ctx context.Context, opt Options) error {
	return decide(ctx, opt, "/v1/rollback", (*Daemon).rejectConfig)
}

// rejectConfig lets the time for a confirmation end now.
func (d *Daemon) rejectConfig() error {
	if d.window == nil {
		return errors.New("nothing waits for a confirmation")
	}
	d.window.Deadline = min(d.window.Deadline, bootTime())
	return d.keepWindow(d.window)
}

// decide asks the daemon, or does it itself where there is none.
func decide(ctx context.Context, opt Options, path string, do func(*Daemon) error) error {
	if err := opt.Check(); err != nil {
		return err
	}
	if err := ask(ctx, opt, path, struct{}{}, nil); !errors.Is(err, control.ErrNoDaemon) {
		return err
	}
	st, err := ReadState(opt.runDir())
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("confirm the config of instance %q: %w", opt.Instance, ErrNothingLoaded)
	}
	if err != nil {
		return err
	}
	l, err := takeLock(opt.runDir(), opt.Instance)
	if err != nil {
		return err
	}
	defer func() { _ = l.release() }() // the end of the process releases it too
	d := &Daemon{opt: opt, log: opt.Log, state: *st}
	if d.window, err = readWindow(opt.runDir()); err != nil {
		return err
	}
	return do(d)
}

// Times of the guard, and between two tries of the daemon.
const (
	expireAgain = 10 * time.Second
	guardPoll   = 200 * time.Millisecond
	// guardGrace is what the daemon gets to roll back by itself before the guard looks whether one lives.
	guardGrace = time.Second
	// guardPatience is what a daemon that lives, and may be at it, gets before the guard ends it.
	guardPatience = 30 * time.Second
)

// Guard waits for the end of the confirmation of an instance. Where it does not
// come and no daemon rolls back, because it is dead or stuck, it does that
// itself, and leaves a data path that nobody follows.
func Guard(ctx context.Context, opt Options) error {
	if err := opt.Check(); err != nil {
		return err
	}
	for {
		w, err := readWindow(opt.runDir())
		if err != nil {
			opt.Log.Warn("guard", "err", err)
		} else if w == nil {
			return nil
		} else if late := -w.left(); late >= guardGrace {
			pid, err := Holder(opt.runDir())
			switch {
			case err != nil:
				opt.Log.Warn("guard", "err", err)
			case pid == 0:
				if err := revert(ctx, opt); err == nil {
					continue
				} else if !errors.As(err, new(*BusyError)) {
					opt.Log.Error("roll back an unconfirmed config", "err", err)
				}
			case late >= guardPatience:
				opt.Log.Error("the daemon does not roll back, the guard ends it", "pid", pid)
				if err := endHolder(ctx, opt.runDir(), unix.SIGKILL); err != nil {
					opt.Log.Error("roll back an unconfirmed config", "err", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(guardPoll):
		}
	}
}

// revert rolls an instance without a daemon back.
func revert(ctx context.Context, opt Options) error {
	w, err := readWindow(opt.runDir())
	if err != nil || w == nil || w.left() > 0 {
		return err
	}
	cfg, err := w.Config.parse()
	if err != nil {
		return err
	}
	opt.Confirm, opt.leave, opt.Unattended, opt.Recreate = 0, true, true, true
	d, err := Load(ctx, cfg, opt) // judge finds the window
	if errors.Is(err, ErrNotConfirmed) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Run(ctx), d.Close())
}
