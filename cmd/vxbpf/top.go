// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/tools/observe"
	"github.com/vxbpf/vxbpf/tools/top"
)

func (a *app) top() *cobra.Command {
	var once bool
	var every time.Duration
	var sort, view string
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch rates by network, VTEP and port, the share of the fast path, and why packets are not on it",
		Long: `A live view for a terminal of 80x24 or more. Keys: n, v, p, r show networks, VTEPs, ports, reasons; s sorts by the next column;
+ and - change the interval; arrows scroll; space stops and goes on; q ends. --once measures one interval and prints all
four tables as text. It needs no daemon.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond || every > time.Minute {
				return usage(fmt.Errorf("interval %s: want 100ms to 1m", every))
			}
			m, err := top.New(observe.Options{Options: a.opt, Traffic: true}, every, view, sort)
			if err != nil {
				return usage(err)
			}
			if once {
				return m.Once(c.Context(), a.stdout)
			}
			if a.columns() == 0 {
				return usage(fmt.Errorf("top wants a terminal; use --once where there is none"))
			}
			if err := m.First(); err != nil {
				return err
			}
			_, err = tea.NewProgram(m, tea.WithAltScreen(), tea.WithContext(c.Context()), tea.WithInput(a.stdin), tea.WithOutput(a.stdout)).Run()
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&once, "once", false, "measure one interval, print it as text, and exit")
	f.DurationVar(&every, "interval", time.Second, "how often to look")
	f.StringVar(&sort, "sort", "packets", "sort by: packets, bits, fast, name")
	f.StringVar(&view, "view", "networks", "begin with: networks, vteps, ports, reasons")
	return c
}
