// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/tools/doctor"
	"github.com/vxbpf/vxbpf/tools/observe"
)

func (a *app) doctor() *cobra.Command {
	var o doctor.Options
	var fix, undo, names bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what breaks or slows VXLAN on this host, and say what mends it",
		Long: `Checks the host and the way to each VTEP, and prints for each finding what was seen, what it means, and the command that
mends it. It listens for a second, then sends a few packets: ICMP echo with DF and empty UDP packets to each VTEP, an ARP probe
for each address of this host, an IPv6 echo to all nodes of each network, UDP to closed ports of those who answer. --passive
sends nothing.

What cannot be known from here is said. VXLAN itself answers nothing: only a refused port, or a container that answers through
the tunnel, is evidence.

--fix does what is safe: sysctls, offloads, MTU of overlay links, ageing, links that are down, remotes that are missing. What
was there before is written down first, and --undo puts it back.

Exit codes: 0 nothing found, 1 error, 2 usage, 3 warnings, 5 problems: traffic is lost or will be.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if fix && undo {
				return usage(errors.New("--fix and --undo exclude each other (see `vxbpf doctor --help`)"))
			}
			switch {
			case names:
				t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
				for _, c := range doctor.Checks() {
					fmt.Fprintf(t, "%s\t%s\n", c[0], c[1])
				}
				return t.Flush()
			case undo:
				undone, err := doctor.Undo(a.opt)
				for _, u := range undone {
					fmt.Fprintf(a.stdout, "taken back: %s\n", u)
				}
				if err == nil && len(undone) == 0 {
					fmt.Fprintln(a.stdout, "nothing to take back")
				}
				return err
			}
			o.Options = observe.Options{Options: a.opt}
			r, err := doctor.Run(c.Context(), o)
			if err != nil {
				return err
			}
			if a.json() {
				if err := a.printJSON(r); err != nil {
					return err
				}
			} else {
				r.Text(a.stdout)
			}
			if fix {
				done, err := doctor.Fix(a.opt, r)
				for _, d := range done {
					fmt.Fprintf(a.stderr, "fixed: %s\n", d)
				}
				if err != nil {
					return err
				}
			}
			switch r.Worst() {
			case doctor.Problem:
				return exit{code: exitProblem}
			case doctor.Warning:
				return exit{code: exitDegraded}
			}
			return nil
		},
	}
	f := c.Flags()
	f.BoolVar(&o.Passive, "passive", false, "send no packet")
	f.StringSliceVar(&o.Only, "check", nil, "only this check; may be given several times (see --list)")
	f.BoolVar(&fix, "fix", false, "do what is safe of what was found, and write down how to take it back")
	f.BoolVar(&undo, "undo", false, "take back what --fix did")
	f.BoolVar(&names, "list", false, "list the checks")
	a.outputFlag(c)
	return c
}
