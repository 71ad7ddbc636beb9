// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// statusVersion is the version of the JSON form. Keys are added, never renamed.
const statusVersion = 1

type statusDoc struct {
	Version  int             `json:"version"`
	Instance string          `json:"instance"`
	Config   string          `json:"config"`
	Since    time.Time       `json:"since"`
	Daemon   int             `json:"daemon_pid"` // 0: none
	Once     bool            `json:"once"`
	Attach   string          `json:"attach"`
	Degraded bool            `json:"degraded"`
	Reason   string          `json:"reason,omitempty"`
	Networks []networkStatus `json:"networks"`
}

type networkStatus struct {
	loader.NetworkState
	VTEPs    []string                         `json:"vteps"`
	FDBLocal int                              `json:"fdb_local"`
	FDBFar   int                              `json:"fdb_remote"`
	Sent     share                            `json:"sent"`
	Received share                            `json:"received"`
	Reasons  map[string]map[string]maps.Count `json:"reasons"` // by hook, by reason
}

// share is how many packets there were, and how many of them BPF carried.
type share struct {
	Fast  uint64 `json:"fast"`
	Total uint64 `json:"total"`
}

func (s share) String() string {
	if s.Total == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(s.Fast)/float64(s.Total))
}

func (a *app) status() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show networks, their datapath and why, and how much of the traffic is on the fast path",
		Long: `Reads the pinned maps and the state file, so it works with no daemon running.

Exit codes: 0 ok, 1 nothing is loaded or it cannot be read, 3 degraded: a network that was to run on BPF is on kernel vxlan.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := a.readStatus()
			if err != nil {
				return err
			}
			if a.json() {
				err = a.printJSON(s)
			} else {
				err = s.text(a.stdout)
			}
			if err == nil && s.Degraded {
				err = exit{code: exitDegraded}
			}
			return err
		},
	}
	a.outputFlag(c)
	return c
}

func (a *app) readStatus() (*statusDoc, error) {
	st, err := loader.ReadState(a.opt.RunDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("nothing is loaded as instance %q; start it with `vxbpf load CONFIG`", a.opt.Instance)
	}
	if err != nil {
		return nil, err
	}
	s := &statusDoc{Version: statusVersion, Instance: st.Instance, Config: st.Config, Since: st.Since, Once: st.Once,
		Attach: st.Attach, Reason: st.Reason, Degraded: len(st.Degraded()) > 0}
	if s.Daemon, err = loader.Holder(a.opt.RunDir()); err != nil {
		return nil, err
	}
	var set *maps.Set
	var table fdb.Table
	if st.Pins != "" && st.Attach != "" {
		var done func() error
		if set, done, err = maps.OpenPinned(st.Pins); errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("%w; run as root", err)
		} else if err != nil {
			return nil, err
		}
		defer func() { _ = done() }() // only file descriptors
		vteps, err := set.VTEPs.All()
		if err != nil {
			return nil, err
		}
		if table, err = set.FDB.All(func(i uint32) netip.Addr { return vteps[i].Remote }); err != nil {
			return nil, err
		}
	}
	for _, n := range st.Networks {
		ns := networkStatus{NetworkState: n, VTEPs: []string{}, Reasons: map[string]map[string]maps.Count{}}
		if n.Mode != config.Kernel && set != nil {
			counts, err := set.Counters.Read(n.ID)
			if err != nil {
				return nil, err
			}
			ns.Sent.Fast, ns.Sent.Total = counts.Sent()
			ns.Received.Fast, ns.Received.Total = counts.Received()
			for h, byReason := range counts {
				ns.Reasons[h.String()] = map[string]maps.Count{}
				for r, c := range byReason {
					ns.Reasons[h.String()][r.String()] = c
				}
			}
			for k, e := range table {
				switch {
				case k.Net != n.ID || e.Pending:
				case e.Kind == fdb.Remote:
					ns.FDBFar++
					if v := e.VTEP.String(); !slices.Contains(ns.VTEPs, v) {
						ns.VTEPs = append(ns.VTEPs, v)
					}
				default:
					ns.FDBLocal++
				}
			}
			slices.Sort(ns.VTEPs)
		}
		s.Networks = append(s.Networks, ns)
	}
	return s, nil
}

// text is status for a person: problems first.
func (s *statusDoc) text(w io.Writer) error {
	daemon := fmt.Sprintf("daemon %d", s.Daemon)
	switch {
	case s.Daemon == 0 && s.Once:
		daemon = "no daemon (--once)"
	case s.Daemon == 0:
		daemon = "NO DAEMON: the data path goes on, new MAC addresses take the kernel's way; start `vxbpf load` again"
	}
	attach := s.Attach
	if attach == "" {
		attach = "not attached"
	}
	fmt.Fprintf(w, "instance %s, %s, %s, config %s, since %s\n", s.Instance, daemon, attach, s.Config, s.Since.Format(time.RFC3339))
	if s.Degraded {
		fmt.Fprintf(w, "DEGRADED: %s\n", cmp.Or(s.Reason, "some networks are on kernel vxlan, see below"))
	}
	for _, n := range s.Networks {
		if n.Reason != "" && (n.Wanted != config.Kernel) {
			fmt.Fprintf(w, "%s: %s\n", n.Name, n.Reason)
		}
		for _, p := range n.Ports {
			if !p.Fast && p.Reason != n.Reason {
				fmt.Fprintf(w, "%s: port %s is on the slow path: %s\n", n.Name, p.Name, p.Reason)
			}
		}
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NETWORK\tVNI\tBRIDGE\tLINK\tDATAPATH\tPORTS\tVTEPS\tMACS\tSENT\tFAST\tRECEIVED\tFAST")
	for _, n := range s.Networks {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d\t%d\t%d+%d\t%d\t%s\t%d\t%s\n", n.Name, n.VNI, n.Bridge, n.Link, n.Mode, len(n.Ports),
			len(n.VTEPs), n.FDBLocal, n.FDBFar, n.Sent.Total, n.Sent, n.Received.Total, n.Received)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "MACS: on this host + behind VTEPs. SENT, RECEIVED: packets since the maps were made; FAST: the share that BPF carried.")
	return s.slow(w)
}

// slow names why packets took the kernel's way, the most frequent first.
func (s *statusDoc) slow(w io.Writer) error {
	type row struct {
		net, hook, reason string
		n                 uint64
	}
	var rows []row
	for _, n := range s.Networks {
		for h, byReason := range n.Reasons {
			for r, c := range byReason {
				if r != bpf.Fast.String() {
					rows = append(rows, row{n.Name, h, r, c.Packets})
				}
			}
		}
	}
	if len(rows) == 0 {
		return nil
	}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(cmp.Compare(b.n, a.n), strings.Compare(a.net+a.hook+a.reason, b.net+b.hook+b.reason))
	})
	const most = 8
	fmt.Fprintln(w, "\nTaken by the kernel:")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows[:min(most, len(rows))] {
		fmt.Fprintf(t, "  %d\t%s\t%s\t%s\n", r.n, r.net, r.hook, r.reason)
	}
	if len(rows) > most {
		fmt.Fprintf(t, "  (%d more rows with -o json)\n", len(rows)-most)
	}
	return t.Flush()
}
