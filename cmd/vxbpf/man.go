// SPDX-License-Identifier: Apache-2.0

//go:build man

package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Only `make package` builds with this tag: what writes manual pages is no part of the product.
func init() {
	extra = append(extra, func(a *app) *cobra.Command {
		return &cobra.Command{
			Use:    "man DIRECTORY",
			Short:  "Write the manual pages",
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				if err := os.MkdirAll(args[0], 0o755); err != nil {
					return err
				}
				h := &doc.GenManHeader{Section: "8", Source: "vxbpf", Manual: "System Administration"}
				if s, err := strconv.ParseInt(a.getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
					t := time.Unix(s, 0).UTC()
					h.Date = &t
				}
				quiet(c.Root())
				return doc.GenManTree(c.Root(), h, args[0])
			},
		}
	})
}

// quiet keeps the day of the build out of the pages, and what cobra adds by itself.
func quiet(c *cobra.Command) {
	c.DisableAutoGenTag = true
	if strings.HasPrefix(c.Name(), "completion") || c.Name() == "help" {
		c.Hidden = true
	}
	for _, s := range c.Commands() {
		quiet(s)
	}
}
