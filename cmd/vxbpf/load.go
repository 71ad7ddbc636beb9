// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/control"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

func (a *app) load() *cobra.Command {
	var dry, reload, repair bool
	c := &cobra.Command{
		Use:   "load CONFIG",
		Short: "Make the host match the config, bring the data path up, and follow the kernel",
		Long: `Makes bridges and vxlan links as the config says (what exists and fits is adopted), loads and attaches the programs,
and stays as the daemon that keeps their maps right. CONFIG "-" is standard input.

Where a daemon runs already, it gets the new config, changes what differs in place where it can, and its plan and errors are
printed here; on an error the last good config stays in force. SIGHUP makes the daemon read its file again. A service manager
that starts a second daemon is refused.

With --confirm 60s the config before comes back unless ` + "`vxbpf confirm`" + ` is run within that time; also when the daemon is killed
meanwhile. On a host where nothing was loaded, nothing is left.

When the daemon ends, however it ends, the data path stays: links and maps are pinned. ` + "`vxbpf unload`" + ` removes it.

With --once nobody follows the kernel: MAC addresses learnt later go the kernel's way, which suits static entries, and
packet filter rules, filters of others and routes that come later are not seen by the fast path: run it again after them.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, bad := range []struct {
				both bool
				text string
			}{{dry && a.opt.Once, "--once and --dry-run"}, {reload && a.opt.Once, "--once and --reload"}, {dry && a.opt.Confirm > 0, "--confirm and --dry-run"}} {
				if bad.both {
					return usage(errors.New(bad.text + " exclude each other (see `vxbpf load --help`)"))
				}
			}
			if a.opt.Confirm < 0 || a.opt.Confirm > 0 && a.opt.Confirm < time.Second {
				return usage(errors.New("--confirm wants a second or more (see `vxbpf load --help`)"))
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
			a.opt.LeaveDrift = !repair
			if dry {
				p, err := loader.Plan(cfg, a.opt)
				if err != nil {
					return planError(err)
				}
				return a.printPlan(p)
			}
			// What a service manager starts is to be the daemon, and not a messenger to another one.
			a.opt.Unattended = a.getenv("NOTIFY_SOCKET") != "" && !reload
			if !a.opt.Once && !a.opt.Unattended {
				res, err := loader.HandOver(c.Context(), cfg, a.opt)
				if err == nil {
					return a.printLoaded(res)
				}
				if reload || !errors.Is(err, control.ErrNoDaemon) {
					return planError(err)
				}
			}
			return a.daemon(c.Context(), cfg, log)
		},
	}
	f := c.Flags()
	f.BoolVar(&a.opt.Once, "once", false, "bring the data path up and exit")
	f.BoolVar(&dry, "dry-run", false, "print what would change, and change nothing")
	f.BoolVar(&reload, "reload", false, "hand the config to the running daemon, and fail if there is none")
	f.DurationVar(&a.opt.Confirm, "confirm", 0, "roll back unless `vxbpf confirm` comes within this time, such as 60s")
	f.BoolVar(&repair, "repair", true, "put back what others change of what vxbpf made; --repair=false only reports it")
	f.BoolVar(&a.opt.Recreate, "recreate", false, "allow deleting and making again a vxlan link that cannot be changed in place")
	f.StringVar(&a.opt.Attach, "attach", "auto", "how programs are attached: auto, tcx or clsact")
	a.outputFlag(c)
	return c
}

// daemon is what `load` becomes where no daemon runs yet.
func (a *app) daemon(ctx context.Context, cfg *config.Config, log *slog.Logger) (err error) {
	notify := func(state string) {
		// No socket, no service manager: nothing to tell.
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("notify service manager", "err", err)
		}
	}
	a.opt.Version = version
	a.opt.Ready = func(status string) {
		log.Info("ready", "status", status)
		notify(daemon.SdNotifyReady + "\nSTATUS=" + status)
	}
	a.opt.Reloading = func() {
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) == nil {
			notify(daemon.SdNotifyReloading + "\nMONOTONIC_USEC=" + strconv.FormatInt(ts.Nano()/1000, 10))
		}
	}
	if interval, err := daemon.SdWatchdogEnabled(false); err == nil && interval > 0 {
		a.opt.Alive = func() { notify(daemon.SdNotifyWatchdog) }
	}
	a.opt.Relog = func(l config.Log) (*slog.Logger, error) {
		next, err := a.logger(l)
		if err == nil {
			log = next
		}
		return next, err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)
	a.opt.Hangup = hangup
	a.opt.Guard = a.startGuard
	metered := make(chan string, 1)
	a.opt.Reloaded = func(c *config.Config) { metered <- c.Metrics }

	d, err := loader.Load(ctx, cfg, a.opt)
	if err != nil {
		return planError(err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	defer a.serveMetrics(ctx, cfg.Metrics, metered, d, log)()
	if until, err := loader.Unconfirmed(a.opt); err == nil && !until.IsZero() {
		log.Warn("the config is rolled back unless `vxbpf confirm` comes", "until", until)
	}
	if err := d.Run(ctx); err != nil {
		return err
	}
	if a.opt.Once {
		s := d.State()
		var what []string
		for _, d := range s.Degradations() {
			what = append(what, d.String())
		}
		return degraded(what)
	}
	notify(daemon.SdNotifyStopping)
	log.Info("daemon ends, the data path stays", "status", "vxbpf unload removes it")
	return nil
}

func degraded(what []string) error {
	if len(what) == 0 {
		return nil
	}
	var errs []error
	for _, w := range what {
		errs = append(errs, errors.New("degraded: "+w))
	}
	return exit{exitDegraded, errors.Join(errs...)}
}

// planError: a contradiction between config and host is for the person who wrote the config.
func planError(err error) error {
	var bad *config.Error
	var told *control.Error
	if errors.As(err, &bad) || errors.As(err, &told) && told.Kind == control.KindConfig || errors.Is(err, loader.ErrRejected) {
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

// printLoaded shows what the running daemon made of a config.
func (a *app) printLoaded(r *loader.LoadResult) error {
	if a.json() {
		if err := a.printJSON(r); err != nil {
			return err
		}
		return degraded(r.Degraded)
	}
	for line := range strings.Lines(r.Text) {
		if !strings.HasPrefix(line, string(reconcile.Keep)+" ") {
			fmt.Fprint(a.stdout, line)
		}
	}
	if !r.Changes {
		fmt.Fprintln(a.stdout, "nothing to change")
	}
	fmt.Fprintf(a.stdout, "loaded by daemon %d: %s\n", r.PID, r.Summary)
	if r.Until != nil {
		fmt.Fprintf(a.stdout, "rolled back at %s unless `vxbpf confirm` comes before\n", r.Until.Local().Format(time.TimeOnly))
	}
	return degraded(r.Degraded)
}

// startGuard starts `vxbpf guard` in a session of its own: it outlives this
// process, the terminal, and the connection to it.
func (a *app) startGuard() error {
	cmd := exec.Command("/proc/self/exe", "guard", "--instance", a.opt.Instance, "--run-root", a.opt.RunRoot, "--pin-root", a.opt.PinRoot,
		"--attach", a.opt.Attach, "--log-level", a.logLevel, "--log-format", a.logForm)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	// It notifies nobody: a service manager would take it for the daemon.
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "WATCHDOG_USEC=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // only so that it is no zombie while we live
	return nil
}

func (a *app) guard() *cobra.Command {
	c := &cobra.Command{
		Use:    "guard",
		Short:  "Roll an unconfirmed config back when the daemon does not",
		Hidden: true, // `load --confirm` starts it
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := a.logger(config.Log{})
			if err != nil {
				return err
			}
			a.opt.Log = log.With("guard", os.Getpid())
			// It belongs to no terminal: Ctrl-C there is not for it, and SIGHUP no reason to end.
			signal.Ignore(unix.SIGHUP, unix.SIGINT)
			return loader.Guard(c.Context(), a.opt)
		},
	}
	c.Flags().StringVar(&a.opt.Attach, "attach", "auto", "how programs are attached")
	return c
}

func (a *app) confirm() *cobra.Command {
	var reject bool
	c := &cobra.Command{
		Use:   "confirm",
		Short: "Keep the config that `load --confirm` has loaded",
		Long: `Ends the wait that ` + "`load --confirm`" + ` began: the config stays. With --reject it is rolled back now.

Exit codes: 0 ok, 1 nothing waits for a confirmation, or it has been rolled back already.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if reject {
				return loader.Reject(c.Context(), a.opt)
			}
			if err := loader.Confirm(c.Context(), a.opt); err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, "confirmed")
			return nil
		},
	}
	c.Flags().BoolVar(&reject, "reject", false, "roll back now")
	return c
}
