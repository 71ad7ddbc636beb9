// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// The demo's own bar: a TCP transfer whose data packets are on the fast path to
// this share, on both hosts.
const demoShare = 0.99

func (a *app) labDemo() *cobra.Command {
	var mib int64
	var name string
	c := &cobra.Command{
		Use:   "demo [LABFILE]",
		Short: "Build a lab, send traffic through it, show what BPF carried, remove it",
		Long: `Builds the lab, runs ` + "`vxbpf load`" + ` on each host, pings between every pair of containers of a network, moves data over TCP
with a checksum at both ends, prints status, and fails if anything was lost, altered, or less than 99 % on the fast path.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			spec, err := readSpec(args)
			if err != nil {
				return err
			}
			spec.Name = name
			if name == "" {
				spec.Name = "demo" + strconv.Itoa(os.Getpid())
			}
			start := time.Now()
			fmt.Fprintf(a.stdout, "building lab %s: %d hosts, %d networks, %d containers per host and network\n",
				spec.Name, len(spec.Hosts), len(spec.Networks), spec.Containers)
			l, err := a.up(c.Context(), spec)
			if err != nil {
				return err
			}
			defer func() {
				// A second ctrl-C must not stop the removal half way.
				signal.Ignore(os.Interrupt, unix.SIGTERM)
				if derr := l.Down(); derr != nil {
					err = errors.Join(err, derr)
					return
				}
				fmt.Fprintf(a.stdout, "lab %s removed after %.1f s\n", l.Name, time.Since(start).Seconds())
			}()
			return a.demo(c.Context(), l, mib<<20)
		},
	}
	c.Flags().Int64Var(&mib, "mib", 256, "size of each TCP transfer, MiB")
	c.Flags().StringVar(&name, "name", "", "name of the lab (default demo<pid>)")
	return c
}

func (a *app) demo(ctx context.Context, l *testenv.Lab, size int64) error {
	if err := a.demoPing(ctx, l); err != nil {
		return err
	}
	if err := a.demoTransfer(ctx, l, size); err != nil {
		return err
	}
	for _, h := range l.Hosts {
		fmt.Fprintf(a.stdout, "\n== %s: vxbpf --instance %s status\n", h.Name, h.Instance())
		s, err := a.statusOf(ctx, h)
		if err != nil {
			return err
		}
		if err := s.text(a.stdout, 0); err != nil {
			return err
		}
	}
	return nil
}

// demoPing pings between every pair of endpoints of a network: containers and
// bridges, on the same host and across, over IPv4 and IPv6.
func (a *app) demoPing(ctx context.Context, l *testenv.Lab) error {
	type endpoint struct {
		name  string
		ns    testenv.NS
		addrs []netip.Addr
	}
	pairs, lost := 0, 0
	for _, n := range l.Spec.Networks {
		var ends []endpoint
		for _, h := range l.Hosts {
			for _, c := range h.Containers {
				if c.Network != n.Name {
					continue
				}
				e := endpoint{name: h.Name + "/" + c.Name, ns: c.NS, addrs: []netip.Addr{c.Addr.Addr()}}
				if c.Addr6.IsValid() {
					e.addrs = append(e.addrs, c.Addr6.Addr())
				}
				ends = append(ends, e)
			}
			if p := h.BridgeAddresses(n.Name); len(p) > 0 {
				e := endpoint{name: h.Name + "/" + n.Bridge, ns: h.NS}
				for _, p := range p {
					e.addrs = append(e.addrs, p.Addr())
				}
				ends = append(ends, e)
			}
		}
		for _, from := range ends {
			for _, to := range ends {
				if from.name == to.name {
					continue
				}
				for _, dst := range to.addrs {
					r, err := testenv.Ping(ctx, from.ns, dst, testenv.PingOptions{Count: 2, Interval: 2 * time.Millisecond})
					if err != nil {
						return fmt.Errorf("ping from %s to %s (%s): %w", from.name, to.name, dst, err)
					}
					pairs++
					if !r.OK() {
						lost++
						fmt.Fprintf(a.stdout, "ping from %s to %s (%s): %s\n", from.name, to.name, dst, r)
					}
				}
			}
		}
	}
	fmt.Fprintf(a.stdout, "ping: %d pairs on %d networks, %d failed\n", pairs, len(l.Spec.Networks), lost)
	if lost > 0 {
		return fmt.Errorf("%d of %d pairs do not talk", lost, pairs)
	}
	return nil
}

// demoTransfer sends data over TCP on each network, from the first host's first
// container to the last host's, and reads the counters on both sides.
func (a *app) demoTransfer(ctx context.Context, l *testenv.Lab, size int64) error {
	first, last := l.Hosts[0], l.Hosts[len(l.Hosts)-1]
	fmt.Fprintf(a.stdout, "\nTCP, %d MiB from %s to %s on each network, SHA-256 compared at both ends:\n", size>>20, first.Name, last.Name)
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "NETWORK\tDATA\tGb/s\tRESENT\tPACKETS OUT OF %s\tFAST\tPACKETS INTO %s\tFAST\n", first.Name, last.Name)
	var errs []error
	for i, n := range l.Spec.Networks {
		from, to := l.Container(first.Name, n.Name+"-1"), l.Container(last.Name, n.Name+"-1")
		if from == nil || to == nil {
			continue
		}
		before, err := a.shares(ctx, first, last, n.Name)
		if err != nil {
			return err
		}
		r, err := testenv.Transfer(ctx, from.NS, to.NS, to.Addr.Addr(), size, uint64(i)+1)
		if err != nil {
			return err
		}
		after, err := a.shares(ctx, first, last, n.Name)
		if err != nil {
			return err
		}
		data := "intact"
		if !r.Match {
			data = "ALTERED"
			errs = append(errs, fmt.Errorf("network %s: data altered: sent %s, received %s", n.Name, r.SentSHA256, r.ReceivedSHA256))
		}
		sent, received := after[0].Less(before[0]), after[1].Less(before[1])
		fmt.Fprintf(t, "%s\t%s\t%.1f\t%d\t%d\t%s\t%d\t%s\n", n.Name, data, float64(r.Bytes)*8/r.Duration.Seconds()/1e9, r.Retransmits,
			sent.Total, sent, received.Total, received)
		for h, s := range map[*testenv.Host]share{first: sent, last: received} {
			if h.KernelVXLAN || h.Datapath == testenv.Kernel {
				continue // no fast path was asked for
			}
			if float64(s.Fast) < demoShare*float64(s.Total) || s.Total == 0 {
				errs = append(errs, fmt.Errorf("network %s: %s of %d packets on the fast path at %s, want %.0f%%", n.Name, s, s.Total, h.Name, 100*demoShare))
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// shares are what the first host sent on a network and what the last one received.
func (a *app) shares(ctx context.Context, first, last *testenv.Host, network string) (out [2]share, err error) {
	for i, h := range []*testenv.Host{first, last} {
		if h.KernelVXLAN {
			continue
		}
		s, err := a.statusOf(ctx, h)
		if err != nil {
			return out, err
		}
		for _, n := range s.Networks {
			if n.Name == network {
				out[i] = []share{n.Sent, n.Received}[i]
			}
		}
	}
	return out, nil
}

// statusOf runs the real `vxbpf status` on a host.
func (a *app) statusOf(ctx context.Context, h *testenv.Host) (*statusDoc, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	out, err := h.NS.Command(ctx, self, "--instance", h.Instance(), "status", "-o", "json").Output()
	var s statusDoc
	if jerr := json.Unmarshal(out, &s); jerr != nil {
		return nil, fmt.Errorf("status of %s: %w", h.Name, errors.Join(err, jerr))
	}
	return &s, nil
}
