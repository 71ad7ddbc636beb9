// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader"
)

func (a *app) verify() *cobra.Command {
	c := &cobra.Command{
		Use:   "verify",
		Short: "Compare config, links, forwarding entries, BPF maps and programs, and print each difference",
		Long: `Compares what is loaded with the host, and changes nothing: the config with bridges, vxlan links, addresses, remotes and
static entries; the programs with the hooks they belong to; the BPF maps with the kernel's forwarding and neighbour tables.
What changes all the time is looked at several times, within a second; only what differs each time counts. Without a daemon the
maps may lack what was learnt since: that is no difference.

The daemon puts back what is vxbpf's by itself; what it does not, ` + "`vxbpf load`" + ` does.

Exit codes: 0 no difference, 1 it cannot be told, 4 differences.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ds, err := loader.Verify(c.Context(), a.opt)
			if err != nil {
				return err
			}
			if a.json() {
				if ds == nil {
					ds = []loader.Difference{}
				}
				err = a.printJSON(struct {
					Differences []loader.Difference `json:"differences"`
				}{ds})
			} else {
				for _, d := range ds {
					fmt.Fprintln(a.stdout, d)
				}
				if len(ds) == 0 {
					fmt.Fprintln(a.stdout, "no differences")
				}
			}
			if err == nil && len(ds) > 0 {
				err = exit{code: exitDrift}
			}
			return err
		},
	}
	a.outputFlag(c)
	return c
}
