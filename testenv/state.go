// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stateDir holds one directory per lab: state.json, and config and log of each
// daemon.
const stateDir = "/run/vxbpf/lab"

// state is what another process needs to know to take the lab down. Each
// resource is in the file before it is made.
type state struct {
	Version    int            `json:"version"`
	Name       string         `json:"name"`
	BootID     string         `json:"boot_id"` // /run need not be a tmpfs: pids of another boot mean nothing
	Phase      string         `json:"phase"`
	Created    time.Time      `json:"created"`
	Creator    process        `json:"creator"`
	Spec       Spec           `json:"spec"`
	Namespaces []nsRecord     `json:"namespaces"`
	Daemons    []daemonRecord `json:"daemons"`
}

// The phases of a lab.
const (
	phaseCreating = "creating"
	phaseUp       = "up"
	phaseRemoving = "removing"
)

// nsRecord is a namespace that exists or is about to. Inode is 0 until it does.
type nsRecord struct {
	Name  string `json:"name"`
	Inode uint64 `json:"inode"`
}

// daemonRecord is a vxbpf that was started: what to stop, and where to call
// unload even after it stopped, because its data path outlives it.
type daemonRecord struct {
	ID         int      `json:"id"`
	Host       string   `json:"host"`
	Instance   string   `json:"instance"`
	Argv       []string `json:"argv"`
	UnloadArgs []string `json:"unload_args,omitempty"`
	Process    process  `json:"process"` // zero pid: about to be started
	Stopped    bool     `json:"stopped"`
}

// process names a process for good: pids come round again, start times do not.
type process struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, /proc/<pid>/stat field 22
}

func processOf(pid int) (process, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, err
	}
	// The second field is the command in parentheses and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return process{}, fmt.Errorf("parse /proc/%d/stat: short line", pid)
	}
	if f[0] == "Z" || f[0] == "X" {
		return process{}, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	return process{pid, start}, err
}

func (p process) alive() bool {
	if p.Pid == 0 {
		return false
	}
	now, err := processOf(p.Pid)
	return err == nil && now == p
}

// terminate sends SIGTERM, waits, sends SIGKILL and waits again. A process
// that is no longer this one is left alone. killed reports that SIGTERM was
// not enough.
func (p process) terminate(grace time.Duration) (killed bool, err error) {
	// The descriptor holds on to one process, so the check below cannot go stale.
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", p.Pid, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return false, nil
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		killed = sig == unix.SIGKILL
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); errors.Is(err, unix.ESRCH) {
			return killed, nil
		} else if err != nil {
			return killed, fmt.Errorf("signal process %d: %w", p.Pid, err)
		}
		if waitPidfd(fd, grace) {
			return killed, nil
		}
	}
	return true, fmt.Errorf("process %d does not end", p.Pid)
}

// waitPidfd reports whether the process ended in time.
func waitPidfd(fd int, d time.Duration) bool {
	for end := time.Now().Add(d); ; {
		left := max(time.Until(end), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if n == 1 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) || left == 0 {
			return false
		}
	}
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// errGone: the lab's directory was removed, so there is no lab.
var errGone = fmt.Errorf("lab: %w", fs.ErrNotExist)

// lockedDir is a lab's directory, held by one process.
type lockedDir struct {
	path string
	f    *os.File
}

// lockDir takes the lock of a lab's directory. The kernel gives the lock back
// when a process dies, so a lab whose builder was killed is free.
func lockDir(path string, wait time.Duration) (*lockedDir, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errGone
	}
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w (another process is at work on this lab)", path, err)
		}
	}
	// The one before us may have removed the directory while we waited.
	held, err1 := f.Stat()
	named, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(held, named) {
		f.Close()
		return nil, errGone
	}
	return &lockedDir{path, f}, nil
}

func (d *lockedDir) unlock() { d.f.Close() }

func readState(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, "state.json"))
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("parse %s/state.json: %w", dir, err)
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("%s/state.json has version %d, want 1: use the vxbpf that made it", dir, s.Version)
	}
	return s, nil
}

// write replaces the state file in one step.
func (d *lockedDir) write(s *state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(d.path, ".state.json")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(d.path, "state.json"))
}

// removeStateDir also takes away the parents if this was the last lab.
func removeStateDir(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	// Not empty, or gone already: both fine.
	_ = os.Remove(stateDir)
	_ = os.Remove(filepath.Dir(stateDir))
	return nil
}

// makeStateDir makes and locks the directory of a new lab.
func makeStateDir(name string) (*lockedDir, error) {
	path := filepath.Join(stateDir, name)
	var err error
	// The last lab of another process may take the parents away under us.
	for range 10 {
		if err = os.MkdirAll(stateDir, 0o755); err != nil {
			return nil, err
		}
		err = os.Mkdir(path, 0o700)
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("lab %s: %w: take it down first", name, fs.ErrExist)
		}
		if err == nil {
			var d *lockedDir
			if d, err = lockDir(path, time.Second); err == nil {
				return d, nil
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return nil, err
}
