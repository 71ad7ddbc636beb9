// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/probe"
)

// featuresVersion is the version of the JSON form. Keys are added, never renamed.
const featuresVersion = 1

type featuresDoc struct {
	Version  int             `json:"version"`
	Kernel   string          `json:"kernel"`
	FastPath bool            `json:"fast_path"`
	Reason   string          `json:"reason,omitempty"` // why not
	Attach   string          `json:"attach,omitempty"` // tcx or clsact, with the fast path
	Features loader.Features `json:"features"`
}

func (a *app) features() *cobra.Command {
	c := &cobra.Command{
		Use:   "features",
		Short: "Show what this kernel has of what the data path uses, and what is lost without it",
		Long: `Tries each thing by loading, running or attaching it, and undoes it; traffic is not touched. It needs root, and no config.

Exit codes: 0 the fast path can run here, 1 this could not be found out, 3 it cannot: networks run on kernel vxlan.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			fs := loader.Probe()
			doc := featuresDoc{Version: featuresVersion, Kernel: probe.Release(), Features: fs, Attach: fs.Attach()}
			why := fs.FastPath()
			if doc.FastPath = why == nil; !doc.FastPath {
				doc.Reason, doc.Attach = why.Error(), ""
			}
			if a.json() {
				if err := a.printJSON(doc); err != nil {
					return err
				}
			} else if err := a.printFeatures(doc); err != nil {
				return err
			}
			switch {
			case why == nil:
				return nil
			case errors.Is(why, ebpf.ErrNotSupported):
				return exit{code: exitDegraded}
			}
			return exit{code: exitError}
		},
	}
	a.outputFlag(c)
	return c
}

func (a *app) printFeatures(doc featuresDoc) error {
	if doc.FastPath {
		fmt.Fprintf(a.stdout, "kernel %s: the fast path runs here, by %s\n\n", doc.Kernel, doc.Attach)
	} else {
		fmt.Fprintf(a.stdout, "no fast path: %s\n\n", doc.Reason)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FEATURE\tHERE\tSINCE\tUSED FOR\tWITHOUT IT")
	for _, f := range doc.Features {
		here := "no"
		switch {
		case f.Have:
			here = "yes"
		case f.Unknown:
			here = "unknown"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", f.Name, here, f.Kernel, f.For, f.Without)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range doc.Features {
		if f.Unknown {
			fmt.Fprintf(a.stdout, "\n%s: %s\n", f.Name, f.Error)
		}
	}
	return nil
}
