// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/capture"
)

func (a *app) capture() *cobra.Command {
	var (
		want               loader.CaptureOptions
		limit              capture.Limits
		rot                capture.Rotation
		write              string
		inner, outer       string
		hooks, fates, whys []string
		src, dst           string
		rotateMB           int64
		stop               bool
	)
	c := &cobra.Command{
		Use:   "capture [FILTER]",
		Short: "Show or write packets at vxbpf's hooks, as they come and as BPF sends them on, with verdict and reason",
		Long: `Shows what tcpdump cannot see: packets at vxbpf's hooks, what became of them and why.

Programs that also copy packets take the place of the ordinary ones while this runs; without it there is no cost. FILTER
is asked of the inner frame and of the outer packet, and either may fit; --inner and --outer ask one of them. Flags that
programs can decide (--hook, --network, --fate, --reason, --src-mac, --dst-mac, --sample) are cheaper on a busy host.

In a file each hook of each device is an interface (` + "`encap:veth1`" + `), and what BPF sent on one more (` + "`encap:veth1:out`" + `). Each
packet has a comment: network, VNI, hook, device, fate (fast, kernel, drop) and reason. One GSO packet is one packet, and
checksums that a device would fill in are not there yet.

    vxbpf capture -w - | wireshark -k -i -
    vxbpf capture -w /var/tmp/mgmt.pcapng --network mgmt --fate kernel
    vxbpf capture icmp and host 172.29.236.11
    vxbpf capture --reason src_moved,src_static

` + capture.FilterHelp,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if stop {
				n, err := loader.EndCapture(a.opt)
				if err != nil {
					return a.notLoaded(err)
				}
				fmt.Fprintf(a.stderr, "ordinary programs put back at %d hooks\n", n)
				return nil
			}
			rule, err := capture.ParseRule(strings.Join(args, " "), inner, outer)
			if err != nil {
				return usage(err)
			}
			all := capture.Hooks()
			for _, h := range hooks {
				v, ok := all[h]
				if !ok {
					return usage(fmt.Errorf("unknown hook %q: want some of %s", h, strings.Join(sortedKeys(all), ", ")))
				}
				want.Hooks = append(want.Hooks, v)
			}
			if want.Fates, err = pick("fate", fates, bpf.Fates); err != nil {
				return err
			}
			var reasons []bpf.Reason
			for r := range bpf.Reason(bpf.Reasons) {
				reasons = append(reasons, r)
			}
			if want.Reasons, err = pick("reason", whys, reasons); err != nil {
				return err
			}
			for _, m := range []struct {
				to *fdb.MAC
				s  string
			}{{&want.Src, src}, {&want.Dst, dst}} {
				if m.s == "" {
					continue
				}
				if *m.to, err = fdb.ParseMAC(m.s); err != nil {
					return usage(err)
				}
			}
			if rot.Bytes = rotateMB << 20; write == "" && rot != (capture.Rotation{}) {
				return usage(errors.New("rotation needs --write FILE"))
			}
			if write == "-" && a.json() {
				return usage(errors.New("-o json and --write - both want the standard output"))
			}
			return a.runCapture(c.Context(), want, rule, limit, func() (capture.Sink, error) {
				if write == "" {
					return capture.NewLine(a.stdout, a.json()), nil
				}
				return capture.NewPcapng(capture.PcapngOptions{Path: write, Out: a.stdout, Rotation: rot, Length: want.Length,
					Filter: strings.Join(args, " "), Version: version})
			})
		},
	}
	f := c.Flags()
	f.StringVarP(&write, "write", "w", "", "write pcapng to a file, \"-\" for the standard output, instead of a line for each packet")
	f.IntVarP(&want.Length, "snaplen", "s", 2048, fmt.Sprintf("bytes to keep of each packet, 1 to %d", bpf.CaptureSnap))
	f.IntVar(&want.Buffer, "buffer", 8<<20, "bytes of the ring buffer between programs and this process")
	f.Uint64VarP(&limit.Packets, "count", "c", 0, "end after so many packets (0: none)")
	f.DurationVar(&limit.Duration, "duration", 0, "end after this time (0: none)")
	f.StringVar(&inner, "inner", "", "filter on the inner frame")
	f.StringVar(&outer, "outer", "", "filter on the outer packet; does not match where there is none")
	f.StringSliceVar(&hooks, "hook", nil, "only these hooks: "+strings.Join(sortedKeys(capture.Hooks()), ", "))
	f.StringSliceVar(&fates, "fate", nil, "only packets that went this way: fast, kernel, drop")
	f.StringSliceVar(&whys, "reason", nil, "only packets with these reasons")
	f.StringVar(&want.Network, "network", "", "only this network")
	f.StringVar(&src, "src-mac", "", "only inner frames from this MAC address")
	f.StringVar(&dst, "dst-mac", "", "only inner frames to this MAC address")
	f.Uint32Var(&want.Nth, "sample", 1, "only one in so many packets, by chance")
	f.Int64Var(&rotateMB, "rotate-size", 0, "begin a new file after so many MiB")
	f.DurationVar(&rot.Every, "rotate-time", 0, "begin a new file after this time")
	f.Uint64Var(&rot.Packets, "rotate-count", 0, "begin a new file after so many packets")
	f.IntVar(&rot.Keep, "keep", 0, "keep the newest so many files (0: all)")
	f.BoolVar(&stop, "stop", false, "put ordinary programs back where a capture was killed and no daemon runs")
	a.outputFlag(c)
	return c
}

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// pick finds values by name.
func pick[T fmt.Stringer](what string, names []string, all []T) (out []T, err error) {
	for _, n := range names {
		i := slices.IndexFunc(all, func(v T) bool { return v.String() == n })
		if i < 0 {
			var known []string
			for _, v := range all {
				known = append(known, v.String())
			}
			return nil, usage(fmt.Errorf("unknown %s %q: want some of %s", what, n, strings.Join(known, ", ")))
		}
		out = append(out, all[i])
	}
	return out, nil
}

func (a *app) notLoaded(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nothing is loaded as instance %q; start it with `vxbpf load CONFIG`", a.opt.Instance)
	}
	return err
}

func (a *app) runCapture(ctx context.Context, want loader.CaptureOptions, rule capture.Rule, limit capture.Limits, open func() (capture.Sink, error)) (err error) {
	if limit.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit.Duration)
		defer cancel()
	}
	c, err := loader.OpenCapture(a.opt, want)
	if err != nil {
		return a.notLoaded(err)
	}
	var sink capture.Sink
	var fit uint64
	defer func() {
		seen, lost, cerr := c.Counts()
		// Ordinary programs first: a full disk must not keep ours in place.
		err = errors.Join(err, cerr, c.Close())
		if sink == nil {
			return
		}
		if cerr := sink.Close(lost); !errors.Is(cerr, unix.EPIPE) {
			err = errors.Join(err, cerr)
		}
		fmt.Fprintf(a.stderr, "%d packets fit the filter, of %d looked at; %d lost because the buffer was full", fit, seen-lost, lost)
		if lost > 0 {
			fmt.Fprint(a.stderr, " (--buffer, --snaplen, --sample, or flags that the programs decide)")
		}
		fmt.Fprintln(a.stderr)
	}()
	if sink, err = open(); err != nil {
		sink = nil
		return err
	}
	fmt.Fprintf(a.stderr, "capturing at %d hooks, %d bytes of each packet; end it with ctrl-C\n", c.Hooks(), want.Length)
	return c.Run(ctx, func(p *loader.Captured) error {
		if p == nil {
			if err := sink.Idle(); !errors.Is(err, unix.EPIPE) {
				return err
			}
			return io.EOF
		}
		if !rule.Match(p) {
			return nil
		}
		fit++
		if err := sink.Packet(p); errors.Is(err, unix.EPIPE) {
			return io.EOF // who looked on has gone
		} else if err != nil {
			return err
		}
		if fit == limit.Packets {
			return io.EOF
		}
		return nil
	})
}
