// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// programWorkloads are run once more with the kernel's program statistics on: a
// phase of its own, since they cost about 20 ns per run.
var programWorkloads = []string{"udp_rr", "decap_64", "encap_64", "udp_gso"}

// expect names the program, and its host, that must run once for each packet of
// a workload.
var expect = map[string][2]string{
	"udp_rr":   {"vx_tc_encap", "a"},
	"decap_64": {"vx_tc_decap", "b"},
	"encap_64": {"vx_tc_encap", "a"},
}

// attached finds the programs of an accelerated host by its pinned links. Those
// attached by clsact have none, and are not listed.
func (f *fastHost) attached() (map[string]*ebpf.Program, error) {
	dir := filepath.Join(filepath.Dir(f.pins), "links")
	names, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list links of host %s: %w", f.Name, err)
	}
	out := map[string]*ebpf.Program{}
	for _, e := range names {
		name, _, _ := strings.Cut(e.Name(), "-")
		if out[name] != nil {
			continue // attached in several places, but one program
		}
		p, err := programOf(filepath.Join(dir, e.Name()))
		if err != nil {
			return out, fmt.Errorf("host %s: %w", f.Name, err)
		}
		out[name] = p
	}
	return out, nil
}

func programOf(pin string) (*ebpf.Program, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", pin, err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return nil, fmt.Errorf("read link %s: %w", pin, err)
	}
	return ebpf.NewProgramFromID(info.Program)
}

func (r *run) programs(ctx context.Context, b *bed, p profile) (err error) {
	if b == nil || len(b.fast) == 0 {
		return nil
	}
	if err := b.setProfile(p); err != nil {
		return err
	}
	type place struct{ host, program string }
	progs := map[place]*ebpf.Program{}
	defer func() {
		for _, p := range progs {
			err = errors.Join(err, p.Close())
		}
	}()
	for _, f := range b.fast {
		m, err := f.attached()
		for name, p := range m {
			progs[place{f.Name, name}] = p
		}
		if err != nil {
			return err
		}
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Errorf("enable program statistics: %w", err)
	}
	defer stats.Close()
	for _, name := range programWorkloads {
		r.bar.step(programsName + " " + name)
		w := workloads[slices.IndexFunc(workloads, func(w *workload) bool { return w.name == name })]
		s := r.slot(b, p, true)
		s.gross = true
		if w.prepare != nil {
			if s.inject, err = w.prepare(ctx, b); err != nil {
				return fmt.Errorf("prepare %s: %w", name, err)
			}
		}
		before := map[place]ebpf.ProgramStats{}
		for k, p := range progs {
			st, err := p.Stats()
			if err != nil {
				return fmt.Errorf("read statistics of %s: %w", k.program, err)
			}
			before[k] = *st
		}
		var x Round
		quiet(func() { x, err = w.run(ctx, s) })
		if s.inject != nil {
			err = errors.Join(err, s.inject.close())
		}
		if err != nil {
			return fmt.Errorf("%s with statistics: %w", name, err)
		}
		for k, p := range progs {
			st, err := p.Stats()
			if err != nil {
				return fmt.Errorf("read statistics of %s: %w", k.program, err)
			}
			runs := st.RunCount - before[k].RunCount
			if runs < 100 {
				continue // not on this workload's way
			}
			r.report.Programs = append(r.report.Programs, Program{Name: k.program, Host: k.host, Workload: name, Runs: runs, Packets: x.Sent,
				NS: float64((st.Runtime-before[k].Runtime)/time.Nanosecond) / float64(runs)})
			if e := expect[name]; e == [2]string{k.program, k.host} && (float64(runs) < 0.99*float64(x.Sent) || float64(runs) > 1.01*float64(x.Sent)+200) {
				r.report.Problems = append(r.report.Problems, fmt.Sprintf("%s ran %d times on host %s for %d packets of %s", k.program, runs, k.host, x.Sent, name))
			}
		}
	}
	slices.SortFunc(r.report.Programs, func(a, b Program) int {
		return strings.Compare(a.Name+a.Host+a.Workload, b.Name+b.Host+b.Workload)
	})
	return nil
}
