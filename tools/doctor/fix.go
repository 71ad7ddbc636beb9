// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/safchain/ethtool"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Action is one change of --fix: safe, since it can be taken back and breaks no
// traffic that works.
type Action struct {
	Kind   string `json:"kind"` // sysctl, mtu, up, ageing, offload, remote
	Object string `json:"object"`
	New    string `json:"new"`
	Old    string `json:"old,omitempty"`
}

func (a Action) String() string {
	switch a.Kind {
	case "sysctl":
		return fmt.Sprintf("sysctl %s: %q, was %q", strings.ReplaceAll(a.Object, "/", "."), a.New, a.Old)
	case "remote":
		return fmt.Sprintf("default destination %s on %s", a.New, a.Object)
	}
	return fmt.Sprintf("%s of %s: %s, was %s", a.Kind, a.Object, a.New, a.Old)
}

func undoFile(o loader.Options) string { return filepath.Join(o.RunDir(), "doctor-undo.json") }

// Fix does what can be done for findings, and writes down how to take it back
// before it does it. It returns what it did.
func Fix(o loader.Options, r *Report) (done []Action, err error) {
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	before, err := readUndo(o)
	if err != nil {
		return nil, err
	}
	seen := map[Action]bool{}
	for _, f := range r.Findings {
		for _, a := range f.actions {
			if seen[a] {
				continue
			}
			seen[a] = true
			if err := writeUndo(o, append(before, append(done, a)...)); err != nil {
				return done, err
			}
			if err := a.apply(h, a.New, false); err != nil {
				return done, errors.Join(fmt.Errorf("fix %s: %w", f.Check, err), writeUndo(o, append(before, done...)))
			}
			done = append(done, a)
		}
	}
	return done, nil
}

// Undo takes back what Fix did, the last first. What cannot be taken back now
// does not stop the others, and may be tried again.
func Undo(o loader.Options) (undone []Action, err error) {
	all, err := readUndo(o)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var left []Action
	var errs []error
	for _, a := range slices.Backward(all) {
		if err := a.apply(h, a.Old, true); err != nil {
			errs = append(errs, fmt.Errorf("take back %s: %w", a, err))
			left = slices.Insert(left, 0, a)
			continue
		}
		undone = append(undone, a)
	}
	return undone, errors.Join(append(errs, writeUndo(o, left))...)
}

func readUndo(o loader.Options) (all []Action, err error) {
	b, err := os.ReadFile(undoFile(o))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was fixed: %w", err)
	}
	return all, nil
}

func writeUndo(o loader.Options, all []Action) error {
	if len(all) == 0 {
		if err := os.Remove(undoFile(o)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("write down what was fixed: %w", err)
		}
		return nil
	}
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	tmp := undoFile(o) + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write down what was fixed: %w", err)
	}
	return os.Rename(tmp, undoFile(o))
}

// apply sets a value; back: it is the old one.
func (a Action) apply(h *kernel.Handle, value string, back bool) error {
	if a.Kind == "sysctl" {
		return os.WriteFile(filepath.Join("/proc/sys", a.Object), []byte(value), 0)
	}
	dev, feature, _ := strings.Cut(a.Object, "/")
	l, ok, err := h.LinkByName(dev)
	if err != nil {
		return err
	}
	if !ok {
		if back {
			return nil // it went, and what was changed with it
		}
		return fmt.Errorf("%s is gone", dev)
	}
	switch a.Kind {
	case "mtu":
		mtu, err := strconv.Atoi(value)
		if err != nil {
			return err
		}
		return h.SetMTU(l.Index, mtu)
	case "up":
		if back {
			return h.SetDown(l.Index)
		}
		return h.SetUp(l.Index)
	case "ageing":
		d, err := time.ParseDuration(value)
		if err != nil {
			return err
		}
		return h.SetBridge(l.Index, kernel.BridgeChange{Ageing: &d})
	case "offload":
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		return e.Change(dev, map[string]bool{feature: value == "on"})
	case "remote":
		dst, err := netip.ParseAddr(a.New)
		if err != nil {
			return err
		}
		if back {
			return h.DelDefaultRemote(l.Index, dst)
		}
		return h.AppendDefaultRemote(l.Index, dst)
	}
	return fmt.Errorf("do %q: no such change", a.Kind)
}
