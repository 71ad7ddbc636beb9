// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/tools/bench"
)

func (a *app) bench() *cobra.Command {
	var o bench.Options
	var list bool
	var out benchFiles
	c := &cobra.Command{
		Use:   "bench",
		Short: "Compare vxbpf with kernel VXLAN and with no overlay, on this machine",
		Long: `Builds hosts in network namespaces and runs each workload on bare (containers bridged without encapsulation), kernel (bridge
and vxlan device) and vxbpf, on both hosts and on one, round by round side by side. Nothing needs to be installed, and
nothing touches the machine's own network.

A round counts only if counters prove that it was what it says. If one does not, the exit code is 1 and the table says why.
ctrl-C ends early, removes everything and prints what was measured.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if list {
				return a.benchList()
			}
			return a.runBench(c.Context(), o, out)
		},
	}
	f := c.Flags()
	f.BoolVar(&list, "list", false, "list workloads and profiles")
	f.BoolVar(&o.Quick, "quick", false, "shorter rounds, MTU 1500 only: under 2 minutes instead of under 20")
	f.IntVar(&o.Rounds, "rounds", 0, "rounds per row, after one of warm-up (default 10, with --quick 5)")
	f.DurationVar(&o.RoundTime, "round-time", 0, "length of a round (default 800ms, with --quick 150ms)")
	f.StringSliceVar(&o.Workloads, "workload", nil, "only these workloads (see --list)")
	f.StringSliceVar(&o.Profiles, "profile", nil, "only these underlay profiles (see --list)")
	f.StringVar(&out.html, "html", "", "write the report as one self-contained page to this file")
	f.StringVar(&out.json, "json", "", "write the report as JSON to this file, beside what -o prints")
	f.StringVar(&out.old, "compare", "", "compare with the JSON report of an earlier run")
	a.outputFlag(c)
	return c
}

// benchFiles are the files that a run reads and writes.
type benchFiles struct{ html, json, old string }

func (a *app) benchList() error {
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WORKLOAD\t")
	for _, w := range bench.Names() {
		fmt.Fprintf(t, "%s\t%s\n", w[0], w[1])
	}
	fmt.Fprintln(t, "\t\nPROFILE\t")
	for _, p := range bench.Profiles() {
		fmt.Fprintf(t, "%s\t%s\n", p[0], p[1])
	}
	return t.Flush()
}

func (a *app) runBench(ctx context.Context, o bench.Options, files benchFiles) error {
	var old *bench.Report
	if files.old != "" {
		var err error
		if old, err = bench.ReadReport(files.old); err != nil {
			return usage(err) // before minutes of work
		}
	}
	if err := o.Check(); err != nil {
		return usage(err)
	}
	if err := needRoot(); err != nil {
		return err
	}
	o.Command = "vxbpf " + strings.Join(os.Args[1:], " ")
	o.Commit = commit()
	o.Progress = a.stderr
	if f, ok := a.stderr.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		o.Terminal = err == nil
	}
	// A second ctrl-C must not stop the removal half way.
	stop := context.AfterFunc(ctx, func() { signal.Ignore(os.Interrupt, unix.SIGTERM) })
	defer stop()
	r, err := bench.Run(ctx, o)
	if err != nil {
		return err
	}
	if a.json() {
		err = r.WriteJSON(a.stdout)
	} else {
		err = r.WriteTable(a.stdout)
	}
	if old != nil && err == nil {
		w := a.stdout
		if a.json() {
			w = a.stderr
		}
		fmt.Fprintln(w)
		err = bench.WriteComparison(w, old, r)
	}
	if files.json != "" {
		err = errors.Join(err, writeFile(files.json, r.WriteJSON))
	}
	if files.html != "" {
		err = errors.Join(err, writeFile(files.html, r.WriteHTML))
	}
	if err != nil {
		return err
	}
	switch {
	case len(r.Problems) > 0:
		return errors.New("self-checks failed:\n  " + strings.Join(r.Problems, "\n  "))
	case r.Interrupted:
		return errors.New("interrupted")
	}
	return nil
}

func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// commit is what this binary was built from.
func commit() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return version
	}
	var rev, dirty string
	for _, s := range b.Settings {
		switch s.Key {
		case "vcs.revision":
			rev = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	if rev == "" {
		return version // built without the repository's history
	}
	return rev + dirty
}
