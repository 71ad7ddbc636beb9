// SPDX-License-Identifier: Apache-2.0

// Command vxbpf is an eBPF-accelerated VXLAN data path for Linux bridges.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
)

// Exit codes. They are interface: see `vxbpf help`.
const (
	exitOK       = 0
	exitError    = 1
	exitUsage    = 2 // usage or config
	exitDegraded = 3 // running, on the kernel fallback; doctor: warnings
	exitDrift    = 4 // verify found differences
	exitProblem  = 5 // doctor: traffic is lost, or will be
)

func main() {
	// A closed pipe behind stdout or stderr is no reason to die: the daemon goes on, the lab is taken down.
	// Caught, not ignored: what `lab exec` starts would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	code := run(ctx, env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}, os.Args[1:])
	stop()
	os.Exit(code)
}

// env is what a command gets from outside, so that tests can call run in process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
}

// extra are commands of builds with tags.
var extra []func(*app) *cobra.Command

// app is the state that commands share.
type app struct {
	env
	opt      loader.Options
	output   string // text or json
	logLevel string
	logForm  string
}

// exit carries a code through cobra.
type exit struct {
	code int
	err  error
}

func (e exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}
func (e exit) Unwrap() error { return e.err }

func usage(err error) error { return exit{exitUsage, err} }

func run(ctx context.Context, e env, args []string) int {
	a := &app{env: e}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var x exit
	code := exitError
	if errors.As(err, &x) {
		code = x.code
		if x.err == nil {
			return code
		}
	}
	var bad *config.Error
	if errors.As(err, &bad) {
		code = exitUsage
	}
	fmt.Fprintln(e.stderr, "vxbpf:", err)
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vxbpf",
		Short: "eBPF-accelerated VXLAN for Linux bridges",
		Long: `vxbpf carries the known unicast of VXLAN networks in BPF and leaves all else to the kernel.

Bridges, containers and the kernel's FDB stay what they are: the fast path only repeats what the kernel has decided.

Exit codes: 0 ok, 1 error, 2 usage or config, 3 running degraded: a network that was to run on BPF is on the kernel path,
4 verify found differences.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage(fmt.Errorf("%w (see `%s --help`)", err, c.CommandPath()))
	})
	root.AddCommand(a.features(), a.trace())
	f := root.PersistentFlags()
	f.StringVar(&a.opt.Instance, "instance", "", "name of this data path, where a host runs several (default $VXBPF_INSTANCE, else \"default\")")
	f.StringVar(&a.opt.PinRoot, "pin-root", loader.DefaultPinRoot, "directory on a bpf file system for pinned maps and links")
	f.StringVar(&a.opt.RunRoot, "run-root", loader.DefaultRunDir, "directory for state and lock")
	f.StringVar(&a.logLevel, "log-level", "", "debug, info, warn or error (default: the config's)")
	f.StringVar(&a.logForm, "log-format", "", "text or json (default: the config's)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.opt.Instance == "" {
			a.opt.Instance = a.getenv("VXBPF_INSTANCE")
		}
		if a.output != "" && a.output != "text" && a.output != "json" {
			return usage(fmt.Errorf("unknown output %q: want text or json", a.output))
		}
		if err := a.opt.Check(); err != nil {
			return usage(err)
		}
		return nil
	}
	root.AddCommand(a.load(), a.confirm(), a.guard(), a.verify(), a.unload(), a.status(), a.show(), a.validate(), a.lab(), a.bench(), a.version())
	root.AddCommand(a.importCommand(), a.exportCommand())
	root.AddCommand(a.metrics(), a.doctor(), a.top(), a.monitor())
	root.AddCommand(a.capture())
	for _, command := range extra {
		root.AddCommand(command(a))
	}
	// Now and not in Execute, so that it is treated like the others; without
	// something to run it would take any word for a request for help.
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if !c.Runnable() {
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
	// Unknown words are usage errors, and what a command takes is checked by cobra.
	wrapArgs(root)
	return root
}

// wrapArgs makes a wrong number of arguments a usage error, with the way out.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage(fmt.Errorf("%w (see `%s --help`)", err, c.CommandPath()))
			}
			return nil
		}
	}
	for _, s := range c.Commands() {
		wrapArgs(s)
	}
}

// outputFlag adds -o to a command that reads.
func (a *app) outputFlag(c *cobra.Command) {
	c.Flags().StringVarP(&a.output, "output", "o", "text", "text or json")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

func (a *app) json() bool { return a.output == "json" }

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// logger writes to stderr: under systemd that is the journal.
func (a *app) logger(c config.Log) (*slog.Logger, error) {
	if a.logLevel != "" {
		c.Level = a.logLevel
	}
	if a.logForm != "" {
		c.Format = a.logForm
	}
	var level slog.Level
	if c.Level == "" {
		c.Level = "info"
	}
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, usage(fmt.Errorf("unknown log level %q: want debug, info, warn or error", c.Level))
	}
	o := &slog.HandlerOptions{Level: level}
	switch c.Format {
	case "json":
		return slog.New(slog.NewJSONHandler(a.stderr, o)), nil
	case "", "text":
		return slog.New(slog.NewTextHandler(a.stderr, o)), nil
	}
	return nil, usage(fmt.Errorf("unknown log format %q: want text or json", c.Format))
}
