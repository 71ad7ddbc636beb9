// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// statusVersion is the version of the JSON form. Keys are added, never renamed.
const statusVersion = 1

type statusDoc struct {
	Version  int       `json:"version"`
	Instance string    `json:"instance"`
	Config   string    `json:"config"`
	Since    time.Time `json:"since"`
	Daemon   int       `json:"daemon_pid"` // 0: none
	Once     bool      `json:"once"`
	Attach   string    `json:"attach"`
	Degraded bool      `json:"degraded"`
	Reason   string    `json:"reason,omitempty"`
	Problems []string  `json:"problems"`
	// Unconfirmed is until when `vxbpf confirm` must come, or the config before does.
	Unconfirmed *time.Time         `json:"unconfirmed_until,omitempty"`
	RolledBack  *loader.RolledBack `json:"rolled_back,omitempty"`
	Repairs     loader.Repairs     `json:"repairs"`
	XDP         []loader.XDPState  `json:"xdp"`
	Networks    []networkStatus    `json:"networks"`
	VTEPs       []observe.VTEP     `json:"vteps"`
	// Unclear are strangers whose packets did not show their network: cut before the VNI, or with too many headers.
	Unclear []maps.Stranger `json:"unclear"`
	FDB     fill            `json:"fdb"`
	// Interval over which rates were taken, in seconds. 0: none were.
	Interval float64 `json:"interval_seconds"`

	rates *observe.Rates
}

// fill is how full a map is.
type fill struct {
	Entries int `json:"entries"`
	Size    int `json:"size"`
}

type networkStatus struct {
	loader.NetworkState
	VTEPs    []string                         `json:"vteps"`
	FDBLocal int                              `json:"fdb_local"`
	FDBFar   int                              `json:"fdb_remote"`
	Sent     share                            `json:"sent"`
	Received share                            `json:"received"`
	Rates    *rates                           `json:"rates,omitempty"`
	Reasons  map[string]map[string]maps.Count `json:"reasons"` // by hook, by reason
	// Strangers are where packets came from that were dropped, since their source may not send to the network.
	Strangers []maps.Stranger `json:"strangers"`
}

// rates are per second, over the interval of the document.
type rates struct {
	Sent     rate `json:"sent"`
	Received rate `json:"received"`
}

type rate struct {
	Packets float64 `json:"packets"`
	Bits    float64 `json:"bits"` // of inner frames
	Fast    float64 `json:"fast"` // packets
}

func rateOf(r *observe.Rates, s observe.Share) rate {
	return rate{Packets: r.PerSecond(s.Total), Bits: 8 * r.PerSecond(s.Bytes), Fast: r.PerSecond(s.Fast)}
}

// share is how many packets there were, and how many of them BPF carried.
type share = observe.Share

func (a *app) status() *cobra.Command {
	var over time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "Show problems first, then networks, their datapath and why, rates, and the share of the fast path",
		Long: `Reads the pinned maps and the state file, so it works with no daemon running. Rates are measured while it runs.

Exit codes: 0 ok, 1 nothing is loaded or it cannot be read, 3 degraded: BPF carries nothing of a network that was to run on it, for the reason shown.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if over < 0 || over > time.Hour {
				return usage(fmt.Errorf("interval %s: want 0 to 1h", over))
			}
			if !c.Flags().Changed("interval") && a.json() {
				over = 0
			}
			s, err := a.readStatus(c.Context(), over)
			if err != nil {
				return err
			}
			if a.json() {
				err = a.printJSON(s)
			} else {
				err = s.text(a.stdout, a.columns())
			}
			if err == nil && s.Degraded {
				err = exit{code: exitDegraded}
			}
			return err
		},
	}
	c.Flags().DurationVar(&over, "interval", 500*time.Millisecond, "how long to measure rates; 0: do not (default with -o json)")
	a.outputFlag(c)
	return c
}

func (a *app) readStatus(ctx context.Context, over time.Duration) (*statusDoc, error) {
	o := observe.Options{Options: a.opt, Kernel: true}
	var r *observe.Rates
	s, err := observe.Read(o)
	if err == nil && over > 0 {
		s, r, err = observe.Sample(ctx, o, over)
	}
	if err != nil {
		return nil, err
	}
	doc := newStatus(s, r)
	doc.RolledBack, doc.Repairs = s.State.RolledBack, s.State.Repairs
	if b := doc.RolledBack; b != nil {
		doc.Problems = append([]string{"ROLLED BACK: " + b.Why + " (" + b.When.Format(time.RFC3339) + ")"}, doc.Problems...)
	}
	until, err := loader.Unconfirmed(a.opt)
	if err != nil {
		return nil, err
	}
	if !until.IsZero() {
		doc.Unconfirmed = &until
		doc.Problems = append([]string{"NOT CONFIRMED: the config before comes back at " + until.Format(time.RFC3339) + " unless `vxbpf confirm` comes"}, doc.Problems...)
	}
	return doc, nil
}

func newStatus(s *observe.Snapshot, r *observe.Rates) *statusDoc {
	st := s.State
	doc := &statusDoc{Version: statusVersion, Instance: st.Instance, Config: st.Config, Since: st.Since, Once: st.Once, Daemon: s.Daemon,
		Attach: st.Attach, XDP: st.XDP, Reason: st.Reason, Degraded: len(st.Degraded()) > 0, VTEPs: s.VTEPs, Problems: s.Problems(), rates: r, Unclear: s.From(maps.SourceUnion)}
	doc.FDB.Entries, doc.FDB.Size = s.FDBEntries()
	if r != nil {
		doc.Interval = r.Over.Seconds()
	}
	for i, n := range st.Networks {
		x := s.Networks[i]
		ns := networkStatus{NetworkState: n, VTEPs: []string{}, FDBLocal: x.FDBLocal, FDBFar: x.FDBRemote, Sent: x.Sent, Received: x.Received,
			Reasons: map[string]map[string]maps.Count{}, Strangers: []maps.Stranger{}}
		if n.ID != 0 {
			ns.Strangers = s.From(n.ID)
		}
		for _, v := range x.VTEPs {
			ns.VTEPs = append(ns.VTEPs, v.String())
		}
		slices.Sort(ns.VTEPs)
		counts := s.Counts[n.Name]
		if counts == nil {
			counts = s.Guarded[n.Name]
		}
		for h, byReason := range counts {
			ns.Reasons[h.String()] = map[string]maps.Count{}
			for reason, c := range byReason {
				ns.Reasons[h.String()][reason.String()] = c
			}
		}
		if r != nil {
			f := r.Networks[n.Name]
			ns.Rates = &rates{rateOf(r, f.Sent), rateOf(r, f.Received)}
		}
		doc.Networks = append(doc.Networks, ns)
	}
	return doc
}

// columns is the width of the terminal, 0 if the output goes elsewhere.
func (a *app) columns() int {
	f, ok := a.stdout.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// text is status for a person: problems first. In a narrow terminal it leaves out what `vxbpf show` has.
func (s *statusDoc) text(w io.Writer, columns int) error {
	narrow := columns > 0 && columns < 100
	daemon := fmt.Sprintf("daemon %d", s.Daemon)
	switch {
	case s.Daemon == 0 && s.Once:
		daemon = "no daemon (--once)"
	case s.Daemon == 0:
		daemon = "NO DAEMON"
	}
	fmt.Fprintf(w, "instance %s, %s, %s, up %s\nconfig %s\n", s.Instance, daemon, cmp.Or(s.Attach, "not attached"), uptime(time.Since(s.Since)), s.Config)
	for i, p := range s.Problems {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "! %s\n", p)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	bridge, flows := "BRIDGE\t", "SENT\tFAST\tRECEIVED\tFAST"
	if s.rates != nil {
		flows = "OUT/s\tbit/s\tFAST\tIN/s\tbit/s\tFAST"
	}
	if narrow {
		bridge = ""
	}
	fmt.Fprintf(t, "NETWORK\tVNI\t%sPATH\tPORTS\tVTEPS\tMACS\t%s\n", bridge, flows)
	for _, n := range s.Networks {
		if !narrow {
			bridge = n.Bridge + "\t"
		}
		fmt.Fprintf(t, "%s\t%d\t%s%s\t%d\t%d\t%d+%d", n.Name, n.VNI, bridge, pathOf(n), len(n.Ports), len(n.VTEPs), n.FDBLocal, n.FDBFar)
		if s.rates == nil {
			fmt.Fprintf(t, "\t%d\t%s\t%d\t%s\n", n.Sent.Total, n.Sent, n.Received.Total, n.Received)
		} else {
			fmt.Fprintf(t, "\t%s\t%s\t%s\t%s\t%s\t%s\n", observe.SI(n.Rates.Sent.Packets), observe.SI(n.Rates.Sent.Bits), n.Sent,
				observe.SI(n.Rates.Received.Packets), observe.SI(n.Rates.Received.Bits), n.Received)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i, x := range s.XDP {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "XDP at %s: %s (%s)\n", x.Device, cmp.Or(x.Program, "none"), x.Reason)
	}
	if err := s.vtepTable(w); err != nil {
		return err
	}
	if err := s.shutOut(w); err != nil {
		return err
	}
	if err := s.slow(w, narrow); err != nil {
		return err
	}
	what := "SENT, RECEIVED: packets since the maps were made."
	if s.rates != nil {
		what = fmt.Sprintf("OUT, IN: over %.1f s.", s.Interval)
	}
	fmt.Fprintf(w, "\nMACS: here + behind VTEPs; the map holds %d of %d. %s\nFAST: the share that BPF carried, since the maps were made.\n", s.FDB.Entries, s.FDB.Size, what)
	return nil
}

// pathOf is a network's way now: what it is on, and whether packets may use it.
func pathOf(n networkStatus) string {
	if n.Mode == config.Kernel {
		return string(n.Mode)
	}
	if n.Reason != "" {
		return "slow"
	}
	return string(n.Mode)
}

func uptime(d time.Duration) string {
	switch d = d.Truncate(time.Second); {
	case d < time.Minute:
		return d.String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// vtepTable lists the other hosts, the busiest first.
func (s *statusDoc) vtepTable(w io.Writer) error {
	if len(s.VTEPs) == 0 {
		return nil
	}
	total := func(v observe.VTEP) uint64 {
		if s.rates != nil {
			f := s.rates.VTEPs[v.Key()]
			return f.All().Total
		}
		return v.Sent().Total + v.Received().Total
	}
	rows := slices.Clone(s.VTEPs)
	slices.SortStableFunc(rows, func(a, b observe.VTEP) int { return cmp.Compare(total(b), total(a)) })
	const most = 8
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if s.rates == nil {
		fmt.Fprintln(t, "VTEP\tSTATE\tMTU\tMACS\tSENT\tFAST\tRECEIVED\tFAST")
	} else {
		fmt.Fprintln(t, "VTEP\tSTATE\tMTU\tMACS\tOUT/s\tbit/s\tFAST\tIN/s\tbit/s\tFAST")
	}
	for _, v := range rows[:min(most, len(rows))] {
		mtu := "-"
		if v.MTU > 0 {
			mtu = fmt.Sprint(v.MTU)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d", v.Remote, v.State, mtu, v.MACs)
		if s.rates == nil {
			fmt.Fprintf(t, "\t%d\t%s\t%d\t%s\n", v.Sent().Total, v.Sent(), v.Received().Total, v.Received())
			continue
		}
		f := s.rates.VTEPs[v.Key()]
		out, in := rateOf(s.rates, f.Sent), rateOf(s.rates, f.Received)
		fmt.Fprintf(t, "\t%s\t%s\t%s\t%s\t%s\t%s\n", observe.SI(out.Packets), observe.SI(out.Bits), v.Sent(), observe.SI(in.Packets), observe.SI(in.Bits), v.Received())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(rows) > most {
		fmt.Fprintf(w, "(%d more: vxbpf show vteps)\n", len(rows)-most)
	}
	return nil
}

// shutOut names who sent to our networks and may not, those that sent most first.
func (s *statusDoc) shutOut(w io.Writer) error {
	const most = 5
	first := true
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := []networkStatus{{NetworkState: loader.NetworkState{Name: "-"}, Strangers: s.Unclear}}
	for _, n := range append(rows, s.Networks...) {
		for i, e := range n.Strangers {
			if first {
				fmt.Fprintln(w, "\nDropped, from strangers (allowed_sources says who may send):")
				first = false
			}
			if i == most {
				fmt.Fprintf(t, "  \t%s\t(%d more prefixes with -o json)\n", n.Name, len(n.Strangers)-most)
				break
			}
			prefix := "all other prefixes"
			if e.Prefix.IsValid() {
				prefix = e.Prefix.String()
			}
			fmt.Fprintf(t, "  %d\t%s\t%s\tlast %s, %s ago\n", e.Packets, n.Name, prefix, e.Last, (maps.Now() - e.Seen).Round(time.Second))
		}
	}
	return t.Flush()
}

// slow names why packets took the kernel's way, the most frequent first.
func (s *statusDoc) slow(w io.Writer, narrow bool) error {
	type row struct {
		net, hook, reason string
		n                 uint64
	}
	var rows []row
	for _, n := range s.Networks {
		for h, byReason := range n.Reasons {
			if h == bpf.HookDecap.String() {
				continue // what is not carried there is counted again where it arrives, at the vxlan device
			}
			for r, c := range byReason {
				if r != bpf.Fast.String() && !strings.HasPrefix(r, "drop_") {
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
	most := 8
	wide := 44
	if narrow {
		wide, most = 36, 3 // what comes first shall not scroll away
	}
	fmt.Fprintln(w, "\nTaken by the kernel since the maps were made:")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows[:min(most, len(rows))] {
		fmt.Fprintf(t, "  %d\t%s\t%s\t%s\t%s\n", r.n, r.net, r.hook, r.reason, short(observe.MeaningOf(r.reason), wide))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(rows) > most {
		fmt.Fprintf(w, "  (%d more rows: vxbpf show reasons)\n", len(rows)-most)
	}
	return nil
}

// short cuts a sentence at its first stop, or at n characters.
func short(s string, n int) string {
	s, _, _ = strings.Cut(s, ":")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
