// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// showVersion is the version of the JSON form of all nouns. Keys are added, never renamed.
const showVersion = 1

// filter narrows what a noun lists. A zero field lets everything pass.
type filter struct {
	network, port, reason, hook, program string
	vni                                  string
	mac, vtep                            string

	wantVNI  fdb.VNI
	wantMAC  fdb.MAC
	wantVTEP netip.Addr
}

// parse refuses what can match nothing.
func (f *filter) parse() (err error) {
	if f.vni != "" {
		if f.wantVNI, err = fdb.ParseVNI(f.vni); err != nil {
			return err
		}
	}
	if f.mac != "" {
		if f.wantMAC, err = fdb.ParseMAC(f.mac); err != nil {
			return err
		}
	}
	if f.vtep != "" {
		if f.wantVTEP, err = netip.ParseAddr(f.vtep); err != nil {
			return fmt.Errorf("parse VTEP %q: want an address", f.vtep)
		}
	}
	return nil
}

// networks are the names that --network and --vni leave.
func (f *filter) networks(s *observe.Snapshot) (map[string]bool, error) {
	keep := map[string]bool{}
	for _, n := range s.Networks {
		if (f.network == "" || n.Name == f.network) && (f.vni == "" || n.VNI == f.wantVNI) {
			keep[n.Name] = true
		}
	}
	if len(keep) == 0 && (f.network != "" || f.vni != "") {
		var have []string
		for _, n := range s.Networks {
			have = append(have, fmt.Sprintf("%s (vni %d)", n.Name, n.VNI))
		}
		return nil, fmt.Errorf("no such network here: there are %s", strings.Join(have, ", "))
	}
	return keep, nil
}

func among(keep map[string]bool, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return keep[n] })
}

// noun is one thing that show lists.
type noun struct {
	name, short string
	flags       []string // of filter
	kernel      bool     // reads the kernel's forwarding tables
	rows        func(s *observe.Snapshot, f *filter, o observe.Options) (any, [][]string, error)
}

var flagHelp = map[string]string{
	"network": "only this network, by name",
	"vni":     "only this network, by VNI",
	"mac":     "only this MAC address",
	"vtep":    "only what belongs to this VTEP",
	"port":    "only this device",
	"reason":  "only this reason",
	"hook":    "only this hook: encap, decap, deliver",
	"program": "only this program",
}

func (f *filter) flag(name string) *string {
	return map[string]*string{"network": &f.network, "vni": &f.vni, "mac": &f.mac, "vtep": &f.vtep, "port": &f.port, "reason": &f.reason,
		"hook": &f.hook, "program": &f.program}[name]
}

func (a *app) show() *cobra.Command {
	c := &cobra.Command{
		Use:   "show",
		Short: "List networks, ports, MAC addresses, VTEPs, counters, attached programs, or the config",
		Long: `Reads the pinned maps, the state file and the kernel's tables, so it works with no daemon running.

With -o json each noun is an object {"version": 1, "instance": ..., "<noun>": [...]}; keys are added to it, never renamed.`,
		Args: cobra.NoArgs,
	}
	for _, n := range nouns {
		c.AddCommand(a.showNoun(n))
	}
	c.AddCommand(a.showConfig())
	return c
}

func (a *app) showNoun(n noun) *cobra.Command {
	f := new(filter)
	c := &cobra.Command{
		Use:   n.name,
		Short: n.short,
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := f.parse(); err != nil {
				return usage(err)
			}
			o := observe.Options{Options: a.opt, Kernel: n.kernel, Traffic: n.name == "ports"}
			s, err := observe.Read(o)
			if err != nil {
				return err
			}
			doc, rows, err := n.rows(s, f, o)
			if err != nil {
				return err
			}
			if a.json() {
				return a.printJSON(map[string]any{"version": showVersion, "instance": s.State.Instance, n.name: doc})
			}
			return a.table(rows)
		},
	}
	for _, name := range n.flags {
		c.Flags().StringVar(f.flag(name), name, "", flagHelp[name])
	}
	a.outputFlag(c)
	return c
}

// table prints rows, the first of which is the head.
func (a *app) table(rows [][]string) error {
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func addrOr(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func list(names []string) string { return dash(strings.Join(names, ",")) }

func path(fast bool) string {
	if fast {
		return "fast"
	}
	return "slow"
}

var nouns = []noun{
	{"networks", "List the networks of the config, as they stand", []string{"network", "vni", "vtep"}, false, showNetworks},
	{"ports", "List bridge ports, bridges and vxlan links, and whether their packets may take the fast path", []string{"network", "vni", "port"}, false, showPorts},
	{"fdb", "List MAC addresses and where they live: what the data path knows, and what only the kernel does", []string{"network", "vni", "mac", "vtep", "port"}, true, showFDB},
	{"vteps", "List the other hosts: the way there, what lives behind them, and their traffic", []string{"network", "vni", "vtep"}, true, showVTEPs},
	{"reasons", "List why packets took the way they took, with counts", []string{"network", "vni", "hook", "reason"}, false, showReasons},
	{"attachments", "List where programs are attached, and where they are missed", []string{"network", "vni", "port", "program"}, false, showAttachments},
}

func showNetworks(s *observe.Snapshot, f *filter, _ observe.Options) (any, [][]string, error) {
	keep, err := f.networks(s)
	if err != nil {
		return nil, nil, err
	}
	out := []observe.Network{}
	rows := [][]string{{"NETWORK", "VNI", "UDP", "BRIDGE", "LINK", "DEVICE", "LOCAL", "MTU", "DATAPATH", "PORTS", "VTEPS", "MACS", "SENT", "FAST", "RECEIVED", "FAST", "REASON"}}
	for _, n := range s.Networks {
		if !keep[n.Name] || f.wantVTEP.IsValid() && !slices.Contains(n.VTEPs, f.wantVTEP) {
			continue
		}
		out = append(out, n)
		rows = append(rows, []string{n.Name, n.VNI.String(), fmt.Sprint(n.UDPPort), n.Bridge, n.Link, n.Device, addrOr(n.Local), fmt.Sprint(n.MTU), string(n.Datapath),
			fmt.Sprint(n.Ports), fmt.Sprint(len(n.VTEPs)), fmt.Sprintf("%d+%d", n.FDBLocal, n.FDBRemote), fmt.Sprint(n.Sent.Total), n.Sent.String(),
			fmt.Sprint(n.Received.Total), n.Received.String(), dash(n.Reason)})
	}
	return out, rows, nil
}

func showPorts(s *observe.Snapshot, f *filter, _ observe.Options) (any, [][]string, error) {
	keep, err := f.networks(s)
	if err != nil {
		return nil, nil, err
	}
	out := []observe.Port{}
	rows := [][]string{{"NETWORK", "PORT", "IFINDEX", "ROLE", "KIND", "MTU", "MACS", "SENT", "RECEIVED", "PATH", "REASON"}}
	for _, p := range s.Ports {
		if !keep[p.Network] || f.port != "" && p.Name != f.port {
			continue
		}
		out = append(out, p)
		sent, received := "-", "-"
		if t := p.Traffic; t != nil {
			sent, received = fmt.Sprint(t.Sent.Packets), fmt.Sprint(t.Received.Packets)
		}
		rows = append(rows, []string{p.Network, p.Name, fmt.Sprint(p.Index), p.Role, dash(p.Kind), fmt.Sprint(p.MTU), fmt.Sprint(p.MACs), sent, received, path(p.Fast), dash(p.Reason)})
	}
	return out, rows, nil
}

func showFDB(s *observe.Snapshot, f *filter, _ observe.Options) (any, [][]string, error) {
	keep, err := f.networks(s)
	if err != nil {
		return nil, nil, err
	}
	out := []observe.Entry{}
	rows := [][]string{{"NETWORK", "VNI", "MAC", "WHERE", "KIND", "PATH", "AGE"}}
	for _, e := range s.FDB() {
		if !keep[e.Network] || f.mac != "" && e.MAC != f.wantMAC || f.wantVTEP.IsValid() && e.VTEP != f.wantVTEP || f.port != "" && e.Port != f.port {
			continue
		}
		out = append(out, e)
		where, age := e.Port, fmt.Sprintf("%.1fs", e.Age)
		if e.VTEP.IsValid() {
			where = e.VTEP.String()
		}
		if e.Static {
			age = "static"
		}
		rows = append(rows, []string{e.Network, e.VNI.String(), e.MAC.String(), dash(where), e.Kind, path(e.Fast), age})
	}
	return out, rows, nil
}

func showVTEPs(s *observe.Snapshot, f *filter, _ observe.Options) (any, [][]string, error) {
	keep, err := f.networks(s)
	if err != nil {
		return nil, nil, err
	}
	out := []observe.VTEP{}
	rows := [][]string{{"VTEP", "UDP", "LOCAL", "DEVICE", "MTU", "NEXT HOP", "STATE", "MACS", "SENT", "FAST", "RECEIVED", "FAST", "NETWORKS", "FLOOD"}}
	for _, v := range s.VTEPs {
		if f.wantVTEP.IsValid() && v.Remote != f.wantVTEP {
			continue
		}
		if (f.network != "" || f.vni != "") && !among(keep, v.Networks) && !among(keep, v.Flood) {
			continue
		}
		out = append(out, v)
		mtu := dash("")
		if v.MTU > 0 {
			mtu = fmt.Sprint(v.MTU)
		}
		rows = append(rows, []string{v.Remote.String(), fmt.Sprint(v.UDPPort), addrOr(v.Local), dash(v.Device), mtu, dash(v.MAC), v.State, fmt.Sprint(v.MACs),
			fmt.Sprint(v.Sent().Total), v.Sent().String(), fmt.Sprint(v.Received().Total), v.Received().String(), list(v.Networks), list(v.Flood)})
	}
	return out, rows, nil
}

func showReasons(s *observe.Snapshot, f *filter, _ observe.Options) (any, [][]string, error) {
	keep, err := f.networks(s)
	if err != nil {
		return nil, nil, err
	}
	out := []observe.Reason{}
	rows := [][]string{{"NETWORK", "HOOK", "REASON", "PACKETS", "BYTES", "MEANING"}}
	for _, r := range s.Reasons() {
		if !keep[r.Network] || f.hook != "" && r.Hook != f.hook || f.reason != "" && r.Reason != f.reason {
			continue
		}
		out = append(out, r)
		rows = append(rows, []string{r.Network, r.Hook, r.Reason, fmt.Sprint(r.Packets), fmt.Sprint(r.Bytes), r.Meaning})
	}
	return out, rows, nil
}

func showAttachments(s *observe.Snapshot, f *filter, o observe.Options) (any, [][]string, error) {
	keep, err := f.networks(s)
	if err != nil {
		return nil, nil, err
	}
	all, err := s.Attachments(o)
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w; run as root", err)
	}
	if err != nil {
		return nil, nil, err
	}
	out := []observe.Attachment{}
	rows := [][]string{{"DEVICE", "IFINDEX", "DIRECTION", "PROGRAM", "ID", "TAG", "MODE", "STATE", "NETWORKS"}}
	for _, at := range all {
		if (f.network != "" || f.vni != "") && !among(keep, at.Networks) || f.port != "" && at.Device != f.port || f.program != "" && at.Program != f.program {
			continue
		}
		out = append(out, at)
		id := dash("")
		if at.ID != 0 {
			id = fmt.Sprint(at.ID)
		}
		rows = append(rows, []string{at.Device, fmt.Sprint(at.Index), at.Direction, at.Program, id, dash(at.Tag), at.Mode, at.State, list(at.Networks)})
	}
	return out, rows, nil
}

func (a *app) showConfig() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Print the config file that is loaded",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := observe.Read(observe.Options{Options: a.opt})
			if err != nil {
				return err
			}
			cfg, err := loader.Active(a.opt)
			if err != nil {
				return err
			}
			text := cfg.Text()
			now, err := os.ReadFile(s.State.Config)
			changed := err == nil && !bytes.Equal(now, text)
			if a.json() {
				return a.printJSON(map[string]any{"version": showVersion, "instance": s.State.Instance, "config": map[string]any{
					"file": s.State.Config, "since": s.State.Since, "changed": changed, "text": string(text)}})
			}
			if changed {
				fmt.Fprintf(a.stderr, "vxbpf: %s is another one by now\n", s.State.Config)
			}
			_, err = a.stdout.Write(text)
			return err
		},
	}
	a.outputFlag(c)
	return c
}
