// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/tools/monitor"
	"github.com/vxbpf/vxbpf/tools/observe"
)

func (a *app) monitor() *cobra.Command {
	var o monitor.Options
	var only []string
	var network string
	c := &cobra.Command{
		Use:   "monitor",
		Short: "Print what happens, as it happens: MAC addresses, VTEPs, paths, repairs, drops",
		Long: `Prints one line per event until it is ended or nothing is loaded any more. With -o json each line is an object; its keys are
added to, never renamed. It follows the kernel itself, so it needs no daemon, and says when that comes or goes.

Kinds: ` + strings.Join(monitor.Kinds, ", ") + `.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, k := range only {
				if !slices.Contains(monitor.Kinds, k) {
					return usage(fmt.Errorf("unknown kind %q: want %s", k, strings.Join(monitor.Kinds, ", ")))
				}
			}
			if o.Every < 50*time.Millisecond || o.Every > time.Minute {
				return usage(fmt.Errorf("interval %s: want 50ms to 1m", o.Every))
			}
			o.Options = observe.Options{Options: a.opt}
			o.Ready = func() { fmt.Fprintln(a.stderr, "vxbpf: following") }
			enc := json.NewEncoder(a.stdout)
			return monitor.Run(c.Context(), o, func(e monitor.Event) error {
				if len(only) > 0 && !slices.Contains(only, e.Kind) || network != "" && e.Network != network {
					return nil
				}
				if a.json() {
					return enc.Encode(e)
				}
				_, err := fmt.Fprintln(a.stdout, e.Text())
				return err
			})
		},
	}
	f := c.Flags()
	f.StringSliceVar(&only, "kind", nil, "only these kinds")
	f.StringVar(&network, "network", "", "only what belongs to this network")
	f.DurationVar(&o.Every, "interval", 500*time.Millisecond, "how often state and counters are looked at")
	f.Float64Var(&o.DropRate, "drop-rate", 0, "packets per second that may be dropped before it is an event")
	a.outputFlag(c)
	return c
}
