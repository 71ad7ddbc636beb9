// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock is held by the one process that may change an instance. The kernel
// gives it up when the process ends, however it ends.
type lock struct{ f *os.File }

// BusyError says which process holds an instance.
type BusyError struct {
	Instance string
	PID      int
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("instance %q is in use by process %d (vxbpf status shows it; stop it with `kill %d` or `vxbpf unload`)",
		e.Instance, e.PID, e.PID)
}

func lockFile(run string) string { return filepath.Join(run, "lock") }

// takeLock returns a *BusyError if another process has it.
func takeLock(run, instance string) (*lock, error) {
	var f *os.File
	var err error
	// An unload removes directories that are empty, its own and the one of all instances: also between our steps.
	for range 100 {
		if err = os.MkdirAll(run, 0o755); err == nil {
			f, err = os.OpenFile(lockFile(run), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
		}
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make lock: %w", err)
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if err == nil {
		// An unload may have removed the file between our open and our lock.
		if a, aerr := f.Stat(); aerr == nil {
			if b, berr := os.Stat(f.Name()); berr == nil && os.SameFile(a, b) {
				return &lock{f}, nil
			}
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
		return takeLock(run, instance)
	}
	defer f.Close()
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	pid, err := holder(f)
	if err != nil {
		return nil, err
	}
	return nil, &BusyError{Instance: instance, PID: pid}
}

func (l *lock) release() error { return l.f.Close() }

// Holder is the pid of the process that holds the instance, 0 if none does. The
// holder itself must not ask: closing the file would give up its lock.
func Holder(run string) (int, error) {
	f, err := os.OpenFile(lockFile(run), os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open lock: %w", err)
	}
	defer f.Close()
	return holder(f)
}

func holder(f *os.File) (int, error) {
	q := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &q); err != nil {
		return 0, fmt.Errorf("ask who holds %s: %w", f.Name(), err)
	}
	if q.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(q.Pid), nil
}
