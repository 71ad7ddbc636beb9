// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

func (a *app) load() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use:   "load CONFIG",
		Short: "Make the host match the config, bring the data path up, and follow the kernel",
		Long: `Makes bridges and vxlan links as the config says (what exists and fits is adopted), loads and attaches the programs,
and stays as the daemon that keeps their maps right. CONFIG "-" is standard input.

When the daemon ends, however it ends, the data path stays: links and maps are pinned. ` + "`vxbpf unload`" + ` removes it.

With --once nobody follows the kernel: MAC addresses learnt later go the kernel's way, which suits static entries, and
packet filter rules, filters of others and routes that come later are not seen by the fast path: run it again after them.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if dry && a.opt.Once {
				return usage(errors.New("--once and --dry-run exclude each other (see `vxbpf load --help`)"))
			}
			cfg, err := config.Load(args[0])
			if err != nil {
				return usage(err)
			}
			log, err := a.logger(cfg.Log)
			if err != nil {
				return err
			}
			a.opt.Log = log
			if dry {
				p, err := loader.Plan(cfg, a.opt)
				if err != nil {
					return planError(err)
				}
				return a.printPlan(p)
			}
			a.opt.Ready = func(status string) {
				log.Info("ready", "status", status)
				// No socket, no systemd: nothing to tell.
				if _, err := daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS="+status); err != nil {
					log.Warn("notify service manager", "err", err)
				}
			}
			d, err := loader.Load(c.Context(), cfg, a.opt)
			if err != nil {
				return planError(err)
			}
			defer func() { err = errors.Join(err, d.Close()) }()
			defer a.serveMetrics(c.Context(), cfg, d, log)()
			if err := d.Run(c.Context()); err != nil {
				return err
			}
			if a.opt.Once {
				s := d.State()
				var errs []error
				for _, what := range s.Degradations() {
					errs = append(errs, fmt.Errorf("degraded: %v", what))
				}
				if len(errs) > 0 {
					return exit{exitDegraded, errors.Join(errs...)}
				}
				return nil
			}
			log.Info("daemon ends, the data path stays", "status", "vxbpf unload removes it")
			return nil
		},
	}
	f := c.Flags()
	f.BoolVar(&a.opt.Once, "once", false, "bring the data path up and exit")
	f.BoolVar(&dry, "dry-run", false, "print what would change, and change nothing")
	f.BoolVar(&a.opt.Recreate, "recreate", false, "allow deleting and making again a vxlan link that cannot be changed in place")
	f.StringVar(&a.opt.Attach, "attach", "auto", "how programs are attached: auto, tcx or clsact")
	a.outputFlag(c)
	return c
}

// planError: a contradiction between config and host is for the person who wrote the config.
func planError(err error) error {
	var bad *config.Error
	if errors.As(err, &bad) {
		return usage(err)
	}
	return err
}

func (a *app) printPlan(p *reconcile.Plan) error {
	if a.json() {
		return a.printJSON(p)
	}
	fmt.Fprint(a.stdout, p.String())
	if !p.Changes() {
		fmt.Fprintln(a.stdout, "nothing to change")
	}
	return nil
}
