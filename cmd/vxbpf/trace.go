// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/capture"
	"github.com/vxbpf/vxbpf/tools/observe"
	"github.com/vxbpf/vxbpf/tools/trace"
)

func (a *app) trace() *cobra.Command {
	var (
		q       trace.Question
		explain bool
		noProbe bool
		kind    string
		count   int
		wait    time.Duration
	)
	c := &cobra.Command{
		Use:   "trace --from ADDRESS --to ADDRESS",
		Short: "Follow one flow through the data path: fast or not, why, and what would change it",
		Long: `Shows each step of the programs for a packet from one address to the other, on this host: the map entries met, the
reason, and what to do about it. Where the packet is sent from this host that is the way out, else the way in.

With --explain from state alone: what would become of such a packet now. Without it, from packets of the flow as they come by
(by ` + "`vxbpf capture`" + `'s means), with the explanation of the last one that was not fast; where none comes by, as with --explain.

Addresses are IP or MAC addresses. An IP address that no table of this host knows is asked for on the bridge by ARP or
neighbour discovery, as a probe that nobody learns from; --no-probe does without.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if q.From == "" || q.To == "" {
				return usage(errors.New("--from and --to are needed (see `vxbpf trace --help`)"))
			}
			for _, s := range []string{q.From, q.To} {
				_, merr := fdb.ParseMAC(s)
				if _, err := netip.ParseAddr(s); err != nil && merr != nil {
					return usage(fmt.Errorf("%q is neither an IP nor a MAC address", s))
				}
			}
			var ok bool
			if q.EtherType, ok = map[string]uint16{"": 0, "ip": 0x0800, "ip6": 0x86dd, "arp": 0x0806}[kind]; !ok {
				return usage(fmt.Errorf("unknown kind %q: want ip, ip6 or arp", kind))
			}
			if q.Length != 0 && (q.Length < 60 || q.Length > 65535) {
				return usage(fmt.Errorf("a frame of %d bytes: want 60 to 65535", q.Length))
			}
			q.Probe = !noProbe
			answer, err := trace.Ask(c.Context(), a.opt, q)
			if err != nil {
				// Packets that come by tell their MAC addresses themselves.
				if explain || errors.Is(err, loader.ErrNotPermitted) || a.json() {
					return a.notLoaded(err)
				}
			}
			if explain || a.json() {
				return a.printAnswer(answer)
			}
			if answer != nil && len(answer.Walks) == 0 {
				return a.printAnswer(answer) // no program sees it
			}
			return a.traceLive(c.Context(), q, answer, err, count, wait)
		},
	}
	f := c.Flags()
	f.StringVar(&q.From, "from", "", "IP or MAC address of the sender")
	f.StringVar(&q.To, "to", "", "IP or MAC address of the receiver")
	f.StringVar(&q.Network, "network", "", "the network (default: the one that both are on)")
	f.BoolVar(&explain, "explain", false, "from state alone, without waiting for packets")
	f.IntVar(&q.Length, "size", 0, "length of the frame in bytes, Ethernet header included (default 98, a ping)")
	f.StringVar(&kind, "kind", "", "ip, ip6 or arp (default: that of the addresses)")
	f.BoolVar(&q.VLAN, "vlan", false, "with a VLAN tag")
	f.StringVar(&q.At, "at", "", "where the packet comes from, if it is not where the kernel has the sender: a device, or the address of a VTEP")
	f.BoolVar(&noProbe, "no-probe", false, "do not ask the network for a MAC address")
	f.IntVarP(&count, "count", "c", 3, "end after so many packets at hooks")
	f.DurationVar(&wait, "wait", 10*time.Second, "wait for packets at most this long")
	a.outputFlag(c)
	return c
}

func (a *app) printAnswer(t *trace.Answer) error {
	if a.json() {
		return a.printJSON(t)
	}
	return t.Text(a.stdout)
}

// traceLive shows packets of the flow as they come by.
func (a *app) traceLive(ctx context.Context, q trace.Question, answer *trace.Answer, unresolved error, count int, wait time.Duration) error {
	want := loader.CaptureOptions{Length: 256, Buffer: 1 << 20, Network: q.Network}
	expr := func(dir, s string) string {
		if _, err := fdb.ParseMAC(s); err == nil {
			return "ether " + dir + " " + s
		}
		return dir + " host " + s
	}
	rule, err := capture.ParseRule("", expr("src", q.From)+" and "+expr("dst", q.To), "")
	if err != nil {
		return err
	}
	if answer != nil {
		// Let the programs choose: a busy host has many packets.
		want.Network = answer.Network
		want.Src, want.Dst = answer.From.MAC, answer.To.MAC
	}
	var last *loader.Captured
	seen := 0
	c, err := loader.OpenCapture(a.opt, want)
	if err != nil {
		return a.notLoaded(err)
	}
	fmt.Fprintf(a.stderr, "waiting up to %v for packets from %s to %s\n", wait, q.From, q.To)
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = c.Run(bounded, func(p *loader.Captured) error {
		if p == nil || !rule.Match(p) {
			return nil
		}
		seen++
		fmt.Fprintln(a.stdout, capture.NewEvent(p))
		if last == nil || bpf.Fate(last.Fate) == bpf.FateFast || bpf.Fate(p.Fate) != bpf.FateFast {
			if p.Hook != bpf.CaptureMoved {
				keep := *p
				keep.In, keep.Out = bytes.Clone(p.In), bytes.Clone(p.Out)
				last = &keep
			}
		}
		if seen >= count {
			return io.EOF
		}
		return nil
	})
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	if last == nil {
		fmt.Fprintf(a.stdout, "no packet from %s to %s came by\n", q.From, q.To)
		if answer == nil {
			return unresolved
		}
		fmt.Fprint(a.stdout, "what would become of one:\n\n")
		return answer.Text(a.stdout)
	}
	// The packet has the MAC addresses, its size and its kind: ask about one like it.
	e := capture.NewEvent(last)
	if e.Inner == nil {
		return nil
	}
	q.From, q.To, q.Network, q.Probe = e.Inner.SrcMAC.String(), e.Inner.DstMAC.String(), last.Network.Name, false
	q.EtherType = e.Inner.EtherType
	q.VLAN = last.Vlan != 0
	q.Length = e.Inner.Length
	verdict := e.Fate
	if e.Reason != e.Fate {
		verdict += ", " + e.Reason
	}
	fmt.Fprintf(a.stdout, "\nat %s: %s: %s\n", e.Hook, verdict, observe.MeaningOf(e.Reason))
	now, err := trace.Ask(ctx, a.opt, q)
	if err != nil {
		return err
	}
	fmt.Fprint(a.stdout, "\na packet like it now:\n\n")
	return now.Text(a.stdout)
}
