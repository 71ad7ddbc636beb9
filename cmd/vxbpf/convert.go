// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/tools/convert"
)

func formatWords(first ...string) []string {
	for _, f := range convert.Formats {
		first = append(first, string(f))
	}
	return first
}

func (a *app) importCommand() *cobra.Command {
	var o convert.ImportOptions
	var from string
	var live bool
	c := &cobra.Command{
		Use:   "import [FILE...]",
		Short: "Write a config.yaml from ifupdown, netplan, networkd or ip commands, or off the running host",
		Long: `Reads how VXLAN networks are set up on this host and writes a config.yaml to standard output.

Without FILE it reads the usual files of the format. Source lines of ifupdown are followed. --live reads the running host over rtnetlink.
Nothing is run and nothing is changed.

What a config cannot say, and what would be otherwise than it was, becomes a comment in the config, with file and line, and a line on
standard error. What comes out always passes ` + "`vxbpf validate`" + `.`,
		Example: `  vxbpf import > config.yaml                                 what /etc/network/interfaces and its like say
  vxbpf import --live > config.yaml                          what runs now
  vxbpf import --from iproute2 /root/setup.sh > config.yaml`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			o.From = convert.Format(from)
			if from == "live" {
				live, o.From = true, convert.Auto
			}
			var r *convert.Result
			var err error
			if live {
				if len(args) > 0 {
					return usage(errors.New("--live reads the running host, not files (see `vxbpf import --help`)"))
				}
				var h *kernel.Handle
				if h, err = kernel.Open(); err != nil {
					return err
				}
				r, err = convert.Live(h, o)
				err = errors.Join(err, h.Close())
			} else {
				r, err = convert.Import(args, o)
			}
			if r != nil {
				for _, n := range r.Notes {
					fmt.Fprintln(a.stderr, "vxbpf: warning:", n)
				}
			}
			if err != nil {
				return usage(err)
			}
			_, err = a.stdout.Write(r.Config)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&from, "from", "auto", "what the files are: auto, live, ifupdown, ifupdown2, netplan, networkd or iproute2 (a script of ip commands)")
	f.BoolVar(&live, "live", false, "read the running host, not files")
	f.StringVar(&o.Device, "device", "", "underlay device of vxlan links that name none")
	_ = c.RegisterFlagCompletionFunc("from", cobra.FixedCompletions(formatWords("auto", "live"), cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) exportCommand() *cobra.Command {
	var to, dir string
	c := &cobra.Command{
		Use:   "export --to FORMAT CONFIG",
		Short: "Write the networks of a config as ifupdown, netplan or networkd files, or as ip commands",
		Long: `The way back: writes files with which the kernel alone makes the networks of CONFIG, as ` + "`vxbpf load`" + ` would make them.
CONFIG "-" is standard input.

Files go to standard output, each under a comment with its path, or with --dir into a directory under that path.
What a format cannot say becomes a comment in the file, and a line on standard error.`,
		Example: `  vxbpf export --to ifupdown /etc/vxbpf/config.yaml > /etc/network/interfaces.d/vxlan
  vxbpf export --to networkd --dir / /etc/vxbpf/config.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := config.Load(args[0])
			if err != nil {
				return usage(err)
			}
			if to == "" {
				return usage(errors.New("export to what? say --to (see `vxbpf export --help`)"))
			}
			files, notes, err := convert.Export(cfg, convert.Format(to))
			if err != nil {
				return usage(err)
			}
			for _, n := range notes {
				fmt.Fprintln(a.stderr, "vxbpf: warning:", n)
			}
			if dir != "" {
				return writeFiles(dir, files)
			}
			var b bytes.Buffer
			for _, f := range files {
				if len(files) > 1 {
					fmt.Fprintf(&b, "# file %s\n", f.Path)
				}
				b.Write(f.Text)
				if len(files) > 1 {
					b.WriteString("\n")
				}
			}
			_, err = a.stdout.Write(b.Bytes())
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&to, "to", "", "ifupdown, ifupdown2, netplan, networkd or iproute2")
	f.StringVar(&dir, "dir", "", "write the files under this directory, where the tool looks for them; / is this host")
	_ = c.RegisterFlagCompletionFunc("to", cobra.FixedCompletions(formatWords(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

func writeFiles(dir string, files []convert.OutFile) error {
	for _, f := range files {
		name := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		switch {
		case f.Script:
			mode = 0o755
		case filepath.Ext(name) == ".yaml":
			mode = 0o600 // netplan warns of more
		}
		if err := os.WriteFile(name, f.Text, mode); err != nil {
			return err
		}
	}
	return nil
}
