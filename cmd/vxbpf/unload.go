// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
)

func (a *app) unload() *cobra.Command {
	var u loader.UnloadOptions
	c := &cobra.Command{
		Use:   "unload",
		Short: "End the daemon, take the data path off, and remove what vxbpf made",
		Long: `Removes exactly what vxbpf made on this host and puts back what it changed. What it found stays.

With --keep-links the bridges and vxlan links stay too, and traffic goes on through the kernel; they are not vxbpf's any more.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := a.logger(config.Log{})
			if err != nil {
				return err
			}
			a.opt.Log = log
			p, err := loader.Unload(c.Context(), a.opt, u)
			if errors.Is(err, loader.ErrNothingLoaded) {
				if a.json() {
					return a.printJSON(map[string]any{"changes": false, "actions": []any{}})
				}
				fmt.Fprintf(a.stdout, "nothing is loaded as instance %q\n", a.opt.Instance)
				return nil
			}
			if err != nil {
				return err
			}
			return a.printPlan(p)
		},
	}
	c.Flags().BoolVar(&u.KeepLinks, "keep-links", false, "leave bridges and vxlan links, traffic goes on through the kernel")
	c.Flags().BoolVar(&u.DryRun, "dry-run", false, "print what would be removed, and remove nothing")
	a.outputFlag(c)
	return c
}
