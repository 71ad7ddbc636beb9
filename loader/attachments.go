// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Attachment is one program of an instance at a hook, as the kernel has it.
type Attachment struct {
	Program   string
	Index     int    // ifindex
	Direction string // ingress, egress
	XDP       bool   // in the driver of the device, before tc
	ID        uint32 // of the program
	Tag       string // over its instructions
	// Runs and RunTime count only while kernel.bpf_stats_enabled is 1, which costs some 20 ns per run.
	Runs    uint64
	RunTime time.Duration
	// Attached: the link still leads to the device. It does not after the device was deleted.
	Attached bool
}

// Attachments lists the programs of an instance. It needs no daemon.
func Attachments(opt Options, st *State) ([]Attachment, error) {
	if st.Attach == "" {
		return nil, nil
	}
	out, err := tcAttachments(opt, st)
	if err != nil {
		return nil, err
	}
	x := xdpLinks{filepath.Join(opt.pinDir(), "links")}
	hooks, err := x.list()
	if err != nil {
		return nil, err
	}
	for _, h := range hooks {
		a := attachment(h)
		a.XDP = true
		id, err := x.at(h)
		if err != nil {
			return nil, err
		}
		if a.ID, a.Attached = uint32(id), id != 0; a.Attached {
			a.describe()
		}
		out = append(out, a)
	}
	return out, nil
}

func tcAttachments(opt Options, st *State) ([]Attachment, error) {
	if st.Attach == "tcx" {
		t := &tcx{dir: filepath.Join(opt.pinDir(), "links")}
		hooks, err := t.present()
		if err != nil {
			return nil, err
		}
		var out []Attachment
		for _, h := range hooks {
			a, err := t.read(h)
			if errors.Is(err, os.ErrNotExist) {
				continue // taken off while we looked
			}
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
				return nil, err
			}
			// Any other error: something else has the name of the pin, and a is attached to nothing.
			out = append(out, a)
		}
		return out, nil
	}
	c, err := newClsact(opt.Instance, func(int) bool { return false }, func(int, bool) error { return nil })
	if err != nil {
		return nil, err
	}
	defer c.close()
	hooks, err := c.present()
	if err != nil {
		return nil, err
	}
	var out []Attachment
	for _, h := range hooks {
		a := attachment(h)
		f, err := c.own(h)
		if err != nil {
			return nil, fmt.Errorf("read filter of interface %d: %w", h.ifindex, err)
		}
		if f.BPF == nil || f.BPF.ID == nil {
			continue
		}
		a.ID, a.Attached = *f.BPF.ID, true
		a.describe()
		out = append(out, a)
	}
	return out, nil
}

func attachment(h hook) Attachment {
	return Attachment{Program: h.program, Index: h.ifindex, Direction: h.direction()}
}

func (t *tcx) read(h hook) (Attachment, error) {
	a := attachment(h)
	l, err := link.LoadPinnedLink(t.path(h), &ebpf.LoadPinOptions{})
	if err != nil {
		return a, fmt.Errorf("open pinned link %s: %w", t.path(h), err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return a, fmt.Errorf("read pinned link %s: %w", t.path(h), err)
	}
	a.ID = uint32(info.Program)
	a.describe()
	if x := info.TCX(); x != nil {
		a.Attached = int(x.Ifindex) == h.ifindex
	}
	return a, nil
}

// describe asks for the program; one that is gone, or that the process may not ask for, stays undescribed.
func (a *Attachment) describe() {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(a.ID))
	if err != nil {
		return
	}
	defer p.Close()
	if info, err := p.Info(); err == nil {
		a.Tag = info.Tag
	}
	if st, err := p.Stats(); err == nil {
		a.Runs, a.RunTime = st.RunCount, st.Runtime
	}
}
