// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader/config"
)

func (a *app) validate() *cobra.Command {
	var show bool
	c := &cobra.Command{
		Use:   "validate CONFIG",
		Short: "Check a config file without looking at the host",
		Long: `Reads the file and says everything that is wrong with it, with line and column. CONFIG "-" is standard input.
Whether devices exist is for ` + "`vxbpf load --dry-run`" + `.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if show {
				_, err := a.stdout.Write(config.Reference)
				return err
			}
			if len(args) == 0 {
				return usage(fmt.Errorf("validate what? give a config file, or --reference to see every key"))
			}
			cfg, err := config.Load(args[0])
			if a.json() {
				return a.validateJSON(cfg, err)
			}
			if err != nil {
				return usage(err)
			}
			fmt.Fprintf(a.stdout, "%s: ok, %d networks\n", cfg.File, len(cfg.Networks))
			return nil
		},
	}
	c.Flags().BoolVar(&show, "reference", false, "print the reference config: every key, commented")
	a.outputFlag(c)
	return c
}

// validateJSON prints the problems as data; the exit code is the same.
func (a *app) validateJSON(cfg *config.Config, err error) error {
	v := struct {
		OK       bool             `json:"ok"`
		Networks int              `json:"networks"`
		Problems []config.Problem `json:"problems"`
	}{OK: err == nil, Problems: []config.Problem{}}
	if cfg != nil {
		v.Networks = len(cfg.Networks)
	}
	var bad *config.Error
	if errors.As(err, &bad) {
		v.Problems = bad.Problems
	} else if err != nil {
		return err
	}
	if perr := a.printJSON(v); perr != nil {
		return perr
	}
	if err != nil {
		return exit{code: exitUsage}
	}
	return nil
}
