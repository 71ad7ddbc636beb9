// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

// ErrNothingLoaded: the instance has neither state nor pins.
var ErrNothingLoaded = errors.New("nothing is loaded")

// UnloadOptions are the choices of Unload.
type UnloadOptions struct {
	// KeepLinks leaves bridges and vxlan links: traffic goes on at the kernel's
	// speed, and the links are not vxbpf's any more.
	KeepLinks bool
	DryRun    bool // plan only
}

// stopTimeout bounds the wait for a daemon that was asked to end.
const stopTimeout = 10 * time.Second

// Unload ends the daemon of an instance, takes its programs off, and removes
// exactly what vxbpf made. It returns what it did, or with DryRun would do.
func Unload(ctx context.Context, opt Options, u UnloadOptions) (*reconcile.Plan, error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	st, err := ReadState(opt.runDir())
	switch {
	case errors.Is(err, os.ErrNotExist):
		if _, err := os.Stat(opt.pinDir()); err != nil {
			return nil, fmt.Errorf("unload instance %q: %w", opt.Instance, ErrNothingLoaded)
		}
		st = &State{Version: StateVersion, Instance: opt.Instance}
	case err != nil:
		return nil, err
	}
	if err := NetAdmin(); err != nil {
		return nil, err
	}
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if u.DryRun {
		snap, err := Snapshot(h)
		if err != nil {
			return nil, err
		}
		return reconcile.Unload(st.Owned, snap, reconcile.UnloadOptions{KeepLinks: u.KeepLinks}), nil
	}
	if err := stopHolder(ctx, opt.runDir()); err != nil {
		return nil, err
	}
	l, err := takeLock(opt.runDir(), opt.Instance)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.release() }() // the end of the process releases it too
	// Once more: what the daemon was about when it ended it has undone.
	if now, err := ReadState(opt.runDir()); err == nil {
		st = now
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}

	st.Qdiscs = append(st.Qdiscs, inherited(opt.runDir())...)
	d := &Daemon{opt: opt, log: opt.Log, h: h, state: *st}
	return d.teardown(ctx, u.KeepLinks)
}

// teardown takes the programs off, then removes what is ours and puts back what we changed.
func (d *Daemon) teardown(ctx context.Context, keepLinks bool) (*reconcile.Plan, error) {
	// The programs first: without them the kernel carries everything, links or not.
	if err := d.takeOff(); err != nil {
		return nil, err
	}
	if err := d.bequeath(); err != nil {
		return nil, err
	}
	snap, err := Snapshot(d.h)
	if err != nil {
		return nil, err
	}
	plan := reconcile.Unload(d.state.Owned, snap, reconcile.UnloadOptions{KeepLinks: keepLinks})
	if err := d.carryOut(ctx, plan); err != nil {
		return nil, err
	}
	return plan, removeRunFiles(d.opt.runDir())
}

// takeOff detaches every program of the instance, however attached, and removes its pins.
func (d *Daemon) takeOff() error {
	var errs []error
	cls, err := d.newClsact()
	if err != nil {
		return err
	}
	defer cls.close()
	for _, a := range []attacher{&tcx{dir: filepath.Join(d.opt.pinDir(), "links")}, cls} {
		hooks, err := a.present()
		errs = append(errs, err)
		for _, h := range hooks {
			errs = append(errs, a.detach(h))
		}
	}
	// XDP links go with their pins.
	errs = append(errs, removeTree(d.opt.pinDir()))
	_ = os.Remove(d.opt.PinRoot) // fails while another instance has pins
	return errors.Join(errs...)
}

// bequeath leaves the qdiscs that we made, and that other instances still use, to
// them: who unloads last removes them.
func (d *Daemon) bequeath() error {
	cls, err := d.newClsact()
	if err != nil {
		return err
	}
	defer cls.close()
	for _, i := range d.state.Qdiscs {
		run := filepath.Join(d.opt.RunRoot, cls.heir(i))
		if _, err := os.Stat(stateFile(run)); err != nil {
			continue // nobody of ours
		}
		if err := os.WriteFile(inheritance(run, strconv.Itoa(i)), nil, 0o644); err != nil {
			return fmt.Errorf("leave the clsact qdisc of interface %d to another instance: %w", i, err)
		}
	}
	return nil
}

func inheritance(run, ifindex string) string { return filepath.Join(run, "qdisc-"+ifindex) }

// inherited are the interfaces whose qdisc another instance made and left to this one.
func inherited(run string) (out []int) {
	files, err := filepath.Glob(inheritance(run, "*"))
	if err != nil {
		return nil // only a bad pattern errs
	}
	for _, f := range files {
		if i, err := strconv.Atoi(strings.TrimPrefix(f, inheritance(run, ""))); err == nil {
			out = append(out, i)
		}
	}
	return out
}

// stopHolder ends the daemon that holds the instance, if there is one, and waits for it.
func stopHolder(ctx context.Context, run string) error { return endHolder(ctx, run, unix.SIGTERM) }

func endHolder(ctx context.Context, run string, signal unix.Signal) error {
	pid, err := Holder(run)
	if err != nil || pid == 0 {
		return err
	}
	// By pidfd: a pid can be another process by the time the signal is sent.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop daemon %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if still, err := Holder(run); err != nil || still != pid {
		return err
	}
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop daemon %d: %w", pid, err)
	}
	deadline := time.Now().Add(stopTimeout)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for daemon %d: %w", pid, err)
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("stop daemon %d: still running %v after the signal; end it with `kill -9 %d`, then try again", pid, stopTimeout, pid)
		}
	}
}

// removeRunFiles removes what we keep in the run directory, but for some files, and the directory if that leaves it empty.
func removeRunFiles(run string, but ...string) error {
	var errs []error
	// The lock last: while it is there, others wait for it.
	files := []string{}
	for _, f := range []string{controlFile(run), activeFile(run), windowFile(run), rejectedFile(run), captureFile(run), stepsFile(run), stateFile(run)} {
		files = append(files, f, f+".new")
	}
	files = append(files, lockFile(run))
	for _, i := range inherited(run) {
		files = append(files, inheritance(run, strconv.Itoa(i)))
	}
	for _, f := range files {
		if slices.Contains(but, f) {
			continue
		}
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove run file: %w", err))
		}
	}
	// Another instance may use the parent: both fail quietly when not empty.
	if os.Remove(run) == nil {
		_ = os.Remove(filepath.Dir(run))
	}
	return errors.Join(errs...)
}
