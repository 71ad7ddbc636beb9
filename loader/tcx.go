// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// tcx attaches by bpf_link (kernel 6.6), pinned as <program>-<ifindex>-<direction>,
// so that the data path outlives the daemon.
type tcx struct {
	dir   string
	made  bool
	known programIDs
}

// fresh reports that the last attach found nothing of ours at its hook.
func (t *tcx) fresh() bool { return t.made }

func (t *tcx) name() string { return "tcx" }
func (t *tcx) close() error { return nil }

func (t *tcx) path(h hook) string {
	return filepath.Join(t.dir, fmt.Sprintf("%s-%d-%s", h.program, h.ifindex, h.direction()))
}

func (t *tcx) attach(h hook, dev string, prog *ebpf.Program) error {
	fail := func(err error) error {
		return fmt.Errorf("attach %s to %s (tcx %s): %w", h.program, dev, h.direction(), err)
	}
	path := t.path(h)
	t.made = false
	old, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		defer old.Close()
		info, err := old.Info()
		if err != nil {
			return fail(err)
		}
		if x := info.TCX(); x != nil && int(x.Ifindex) == h.ifindex {
			if id, ok := t.known.of(prog); ok && id == info.Program {
				return nil
			}
			if err := old.Update(prog); err != nil {
				return fail(fmt.Errorf("replace the program of the pinned link %s: %w", path, err))
			}
			return nil
		}
		// The device that this link was made for is gone; another has its number now.
		if err := os.Remove(path); err != nil {
			return fail(err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fail(fmt.Errorf("open pinned link %s: %w", path, err))
	}

	at := ebpf.AttachTCXIngress
	if h.egress {
		at = ebpf.AttachTCXEgress
	}
	// At the tail: programs that were there first keep their say.
	l, err := link.AttachTCX(link.TCXOptions{Interface: h.ifindex, Program: prog, Attach: at, Anchor: link.Tail()})
	if err != nil {
		return fail(err)
	}
	defer l.Close()
	t.made = true
	if err := l.Pin(path); err != nil {
		return fail(fmt.Errorf("pin the link: %w", err))
	}
	return nil
}

func (t *tcx) detach(h hook) error {
	path := t.path(h)
	// The pin is the last reference: without it the kernel detaches.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("detach %s from interface %d (tcx %s): %w", h.program, h.ifindex, h.direction(), err)
	}
	return nil
}

func (t *tcx) replace(h hook, prog *ebpf.Program) error {
	l, err := link.LoadPinnedLink(t.path(h), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link %s: %w", t.path(h), err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("read pinned link %s: %w", t.path(h), err)
	}
	if x := info.TCX(); x != nil && int(x.Ifindex) != h.ifindex {
		return nil // its device is gone
	}
	if id, ok := programID(prog); ok && id == info.Program {
		return nil
	}
	if err := l.Update(prog); err != nil && !gone(err) && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("replace the program of the pinned link %s: %w", t.path(h), err)
	}
	return nil
}

func (t *tcx) at(h hook) (ebpf.ProgramID, error) {
	l, err := link.LoadPinnedLink(t.path(h), nil)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open pinned link %s: %w", t.path(h), err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("read pinned link %s: %w", t.path(h), err)
	}
	return info.Program, nil
}

func (t *tcx) present() ([]hook, error) {
	names, err := os.ReadDir(t.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	var hooks []hook
	for _, e := range names {
		if h, ok := parsePin(e.Name()); ok {
			hooks = append(hooks, h)
		}
	}
	return hooks, nil
}

func parsePin(name string) (hook, bool) {
	part := strings.Split(name, "-")
	if len(part) != 3 || part[2] != "ingress" && part[2] != "egress" {
		return hook{}, false
	}
	n, err := strconv.Atoi(part[1])
	if err != nil {
		return hook{}, false
	}
	return hook{program: part[0], ifindex: n, egress: part[2] == "egress"}, true
}

// programIDs remembers the ids of programs, which a sync asks for at each of its
// hooks; the question costs a dozen system calls. nil remembers nothing.
type programIDs map[*ebpf.Program]ebpf.ProgramID

func (known programIDs) of(p *ebpf.Program) (ebpf.ProgramID, bool) {
	if id, ok := known[p]; ok {
		return id, true
	}
	id, ok := programID(p)
	if ok && known != nil {
		known[p] = id
	}
	return id, ok
}

func programID(p *ebpf.Program) (ebpf.ProgramID, bool) {
	info, err := p.Info()
	if err != nil {
		return 0, false
	}
	return info.ID()
}

// after names a program of someone else at a tcx hook that ours would keep
// packets from. Programs before ours have had their say; at egress a redirect
// goes around all of them.
func after(ifindex int, egress bool, ours func(ebpf.ProgramID) bool) (string, error) {
	at := ebpf.AttachTCXIngress
	if egress {
		at = ebpf.AttachTCXEgress
	}
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
	if errors.Is(err, ebpf.ErrNotSupported) || gone(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list tcx programs of interface %d: %w", ifindex, err)
	}
	past := egress
	for _, p := range r.Programs {
		if ours(p.ID) {
			past = true
		} else if past {
			return fmt.Sprintf("tcx program %d", p.ID), nil
		}
	}
	return "", nil
}

func gone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) }
