// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/testenv"
)

func (a *app) lab() *cobra.Command {
	c := &cobra.Command{
		Use:   "lab",
		Short: "Build hosts and containers in network namespaces and run vxbpf on them",
		Long: `A lab is a set of hosts, each a network namespace with an underlay device, bridges and containers. Nothing of it touches
the machine's own network. Without a file it is two hosts with the five networks flat, mgmt, storage, repl and vxlan.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.labUp(), a.labDown(), a.labExec(), a.labList(), a.labDemo())
	return c
}

func readSpec(args []string) (testenv.Spec, error) {
	if len(args) == 0 {
		return testenv.DefaultSpec(), nil
	}
	s, err := testenv.ReadSpec(args[0])
	if err != nil {
		return s, usage(err)
	}
	return s, nil
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("make network namespaces: not permitted; run as root")
	}
	return loader.NetAdmin()
}

func (a *app) labUp() *cobra.Command {
	var name string
	var reference bool
	c := &cobra.Command{
		Use:   "up [LABFILE]",
		Short: "Build a lab, run vxbpf on its hosts, and leave it running",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if reference {
				_, err := a.stdout.Write(testenv.DefaultYAML)
				return err
			}
			spec, err := readSpec(args)
			if err != nil {
				return err
			}
			if name != "" {
				spec.Name = name
			}
			l, err := a.up(c.Context(), spec)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "lab %s is up: %s\n", l.Name, strings.Join(l.Namespaces(), " "))
			h := l.Hosts[0]
			fmt.Fprintf(a.stdout, "try: vxbpf lab exec %s %s -- vxbpf --instance %s status\n", l.Name, h.Name, h.Instance())
			fmt.Fprintf(a.stdout, "     vxbpf lab down %s\n", l.Name)
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the lab, instead of the file's")
	c.Flags().BoolVar(&reference, "reference", false, "print the default lab file: every key, commented")
	return c
}

// up builds the lab and starts vxbpf on every host that wants it. On an error nothing is left.
func (a *app) up(ctx context.Context, spec testenv.Spec) (_ *testenv.Lab, err error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	log, err := a.logger(config.Log{Level: "warn"})
	if err != nil {
		return nil, err
	}
	l, err := testenv.Up(ctx, spec, testenv.Options{Log: log})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Down())
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, h := range l.Hosts {
		if h.KernelVXLAN || h.Stranger || h.Datapath == testenv.None {
			continue
		}
		g.Go(func() error {
			if _, err := h.StartVXBPF(ctx, self); err != nil {
				return fmt.Errorf("host %s: %w", h.Name, err)
			}
			return l.AttachContainers(ctx, h.Name)
		})
	}
	return l, g.Wait()
}

func (a *app) labDown() *cobra.Command {
	all := false
	c := &cobra.Command{
		Use:               "down [NAME...]",
		Short:             "Remove labs: daemons, namespaces, pins",
		ValidArgsFunction: completeLabs,
		Args:              cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if all {
				labs, err := testenv.List()
				if err != nil {
					return err
				}
				args = nil
				for _, l := range labs {
					args = append(args, l.Name)
				}
			} else if len(args) == 0 {
				args = []string{testenv.DefaultSpec().Name}
			}
			var errs []error
			for _, n := range args {
				l, err := testenv.Open(n)
				if err == nil {
					err = l.Down()
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(a.stdout, "lab %s is gone\n", n)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every lab on this machine")
	return c
}

func (a *app) labList() *cobra.Command {
	c := &cobra.Command{
		Use:   "list",
		Short: "List labs, their hosts and daemons",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			labs, err := testenv.List()
			if err != nil {
				return err
			}
			if a.json() {
				if labs == nil {
					labs = []testenv.Info{}
				}
				return a.printJSON(labs)
			}
			t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "LAB\tSTATE\tHOSTS\tDAEMONS\tCREATED")
			for _, l := range labs {
				state := l.Phase
				if l.Stale {
					state += " (stale: take it down)"
				}
				var ds []string
				for _, d := range l.Daemons {
					s := d.Host + "=" + strconv.Itoa(d.Pid)
					if !d.Running {
						s += " (ended)"
					}
					ds = append(ds, s)
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", l.Name, state, strings.Join(l.Hosts, ","), strings.Join(ds, ","), l.Created.Format(time.RFC3339))
			}
			return t.Flush()
		},
	}
	a.outputFlag(c)
	return c
}

func (a *app) labExec() *cobra.Command {
	c := &cobra.Command{
		Use:   "exec LAB HOST[/CONTAINER] -- COMMAND [ARG...]",
		Short: "Run a command in the network namespace of a host or container",
		Long: `Enters the network namespace only, so /sys, with pinned maps, stays what it is. The exit code is the command's.

  vxbpf lab exec lab h1 -- bridge fdb show
  vxbpf lab exec lab h1/mgmt-1 -- ping 172.29.236.21`,
		ValidArgsFunction: completeLabs,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 2 && args[2] == "--" {
				args = slices.Delete(slices.Clone(args), 2, 3)
			}
			if len(args) < 3 {
				return errors.New("want a lab, a host or host/container, and a command")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			// Flags end at the first argument, so that the command keeps its own; then "--" is an argument too.
			if args[2] == "--" {
				args = slices.Delete(args, 2, 3)
			}
			if err := needRoot(); err != nil {
				return err
			}
			l, err := testenv.Open(args[0])
			if err != nil {
				return err
			}
			ns, err := findNS(l, args[1])
			if err != nil {
				return usage(err)
			}
			cmd := ns.Command(c.Context(), args[2], args[3:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
			err = cmd.Run()
			var failed *exec.ExitError
			if errors.As(err, &failed) {
				return exit{code: max(failed.ExitCode(), exitError)}
			}
			return err
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

func findNS(l *testenv.Lab, name string) (testenv.NS, error) {
	host, container, inside := strings.Cut(name, "/")
	h := l.Host(host)
	if h == nil {
		var have []string
		for _, h := range l.Hosts {
			have = append(have, h.Name)
		}
		return testenv.NS{}, fmt.Errorf("lab %s has no host %q; it has %s", l.Name, host, strings.Join(have, ", "))
	}
	if !inside {
		return h.NS, nil
	}
	c := l.Container(host, container)
	if c == nil {
		var have []string
		for _, c := range h.Containers {
			have = append(have, c.Name)
		}
		return testenv.NS{}, fmt.Errorf("host %s has no container %q; it has %s", host, container, strings.Join(have, ", "))
	}
	return c.NS, nil
}

func completeLabs(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	labs, err := testenv.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, l := range labs {
		names = append(names, l.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
