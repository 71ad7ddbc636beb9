// SPDX-License-Identifier: Apache-2.0

// Package doctor looks at a host for what is known to break or slow VXLAN, and
// says what it saw, what that means, and the command that mends it. It reads,
// and sends a few small packets; it changes nothing but by Fix.
//
// A check says nothing where nothing is wrong, and says so where it cannot know.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vxbpf/vxbpf/tools/observe"
)

// Severity of a finding. Problem: traffic is lost, or will be. Warning: it
// works, and worse than it could, or not for long.
type Severity string

// The severities.
const (
	Warning Severity = "warning"
	Problem Severity = "problem"
)

// Finding is one thing that is wrong.
type Finding struct {
	Check       string   `json:"check"`
	Severity    Severity `json:"severity"`
	Object      string   `json:"object"`   // network, device or VTEP
	Evidence    string   `json:"evidence"` // what was seen
	Consequence string   `json:"consequence"`
	Fix         []string `json:"fix"`     // commands, or lines of the config behind "config:"
	Fixable     bool     `json:"fixable"` // by --fix
	actions     []Action
}

// Unknown is a question that this host cannot answer.
type Unknown struct {
	Check  string `json:"check"`
	Object string `json:"object"`
	Why    string `json:"why"`
}

// Report is what a run found.
type Report struct {
	Version  int               `json:"version"` // of this form; keys are added, never renamed
	Instance string            `json:"instance"`
	Facts    map[string]string `json:"facts"`
	Checks   []string          `json:"checks"` // that were made
	Findings []Finding         `json:"findings"`
	Unknown  []Unknown         `json:"unknown"`
	Seconds  float64           `json:"seconds"`
}

// Options of Run.
type Options struct {
	observe.Options
	// Passive sends no packet.
	Passive bool
	// Only these checks; empty: all.
	Only []string
}

// check is one question to the host.
type check struct {
	name  string
	what  string // for a person
	phase int    // 0: it sends no packet; 1: on the underlay; 2: through the tunnel. Each relies on what those before found
	run   func(*host, context.Context) error
}

var checks = []check{
	{"daemon", "does a daemon follow the kernel", 0, (*host).checkDaemon},
	{"netfilter", "do packet filter rules keep a network off the fast path", 0, (*host).checkSlow},
	{"tc_owner", "do other people's tc filters or programs keep packets off the fast path", 0, (*host).checkSlow},
	{"udp_checksum", "are outer UDP checksums asked for, which only the kernel computes and some NICs get wrong", 0, (*host).checkSlow},
	{"slow_path", "is a network or port kept on the slow path for another reason", 0, (*host).checkSlow},
	{"attachment", "is a program missing from its hook", 0, (*host).checkAttachments},
	{"pins", "are there pins that nothing uses", 0, (*host).checkPins},
	{"drops", "did BPF have to drop packets", 0, (*host).checkDrops},
	{"fdb_full", "is the FDB map full", 0, (*host).checkFull},
	{"flood_list", "does BUM traffic go to all remotes of the config", 0, (*host).checkFlood},
	{"mtu", "does the overhead fit: underlay MTU less 50 or 70 bytes against the links' MTU", 0, (*host).checkMTU},
	{"port_mtu", "do containers send larger packets than their network carries", 0, (*host).checkPortMTU},
	{"pmtu_off", "is path MTU discovery switched off", 0, (*host).checkPMTU},
	{"rp_filter", "would strict reverse path filtering drop what VTEPs send", 0, (*host).checkRPFilter},
	{"source_ports", "are there enough UDP source ports to spread flows over queues", 0, (*host).checkSourcePorts},
	{"ageing", "do bridge and vxlan link forget MAC addresses at the same time", 0, (*host).checkAgeing},
	{"offloads", "does the underlay NIC aggregate: GRO on; LRO and fraglist GRO off", 0, (*host).checkOffloads},
	{"xdp_owner", "has someone else an XDP program on the underlay device", 0, (*host).checkXDP},
	{"port_conflict", "does another process hold the VXLAN port", 0, (*host).checkPort},
	{"jit", "are BPF programs compiled, not interpreted", 0, (*host).checkJIT},
	{"neighbours", "is the neighbour table large enough", 0, (*host).checkNeighbourTable},
	{"local_address", "is the VTEP address usable: there, not tentative, not duplicate", 0, (*host).checkLocal},
	{"route", "is there a way to each VTEP", 0, (*host).checkRoutes},
	{"mac_moves", "do MAC addresses move to and fro: a loop, or one address at two places", 0, (*host).checkMoves},
	{"duplicate_address", "does another host use this host's addresses (ARP probe)", 1, (*host).checkDuplicates},
	{"vtep_reach", "does each VTEP answer on the underlay", 1, (*host).checkVTEPs},
	{"vtep_port", "does somebody listen on the VXLAN port of each VTEP, or on 4789 and 8472 the wrong way round", 1, (*host).checkVTEPs},
	{"path_mtu", "do packets of full size with DF reach each VTEP", 1, (*host).checkVTEPs},
	{"overlay_size", "do packets of full size come back through the tunnel", 2, (*host).checkOverlay},
	{"multicast", "does the multicast group reach anybody", 2, (*host).checkOverlay},
	{"checksum", "do UDP packets whose checksum is filled in late arrive intact through the tunnel", 2, (*host).checkOverlay},
}

// Checks lists names and questions.
func Checks() (out [][2]string) {
	for _, c := range checks {
		out = append(out, [2]string{c.name, c.what})
	}
	return out
}

// Run makes the checks.
func Run(ctx context.Context, o Options) (*Report, error) {
	for _, n := range o.Only {
		if !slices.ContainsFunc(checks, func(c check) bool { return c.name == n }) {
			return nil, fmt.Errorf("there is no check %q (see `vxbpf doctor --list`)", n)
		}
	}
	start := time.Now()
	o.Kernel = true
	listen := len(o.Only) == 0 || slices.Contains(o.Only, "mac_moves")
	h, err := newHost(ctx, o, listen)
	if err != nil {
		return nil, err
	}
	defer h.close()
	r := &Report{Version: 1, Instance: h.snap.State.Instance, Facts: h.facts(), Checks: []string{}, Findings: []Finding{}, Unknown: []Unknown{}}
	// Some functions answer several questions.
	done := map[string]bool{}
	var g errgroup.Group
	for phase := range 3 {
		for _, c := range checks {
			if c.phase != phase || phase > 0 && o.Passive || len(o.Only) > 0 && !slices.Contains(o.Only, c.name) {
				continue
			}
			r.Checks = append(r.Checks, c.name)
			key := fmt.Sprintf("%p", c.run)
			if done[key] {
				continue
			}
			done[key] = true
			g.Go(func() error {
				if err := c.run(h, ctx); err != nil {
					h.unknown(c.name, "", oneLine(err))
				}
				return nil
			})
		}
		_ = g.Wait()
	}
	for _, f := range h.findings {
		if slices.Contains(r.Checks, f.Check) {
			f.Fixable = len(f.actions) > 0
			r.Findings = append(r.Findings, f)
		}
	}
	for _, u := range h.unknowns {
		if slices.Contains(r.Checks, u.Check) {
			r.Unknown = append(r.Unknown, u)
		}
	}
	order := func(name string) int { return slices.IndexFunc(checks, func(c check) bool { return c.name == name }) }
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(order(a.Check), order(b.Check)), cmp.Compare(a.Object, b.Object))
	})
	slices.SortStableFunc(r.Unknown, func(a, b Unknown) int {
		return cmp.Or(cmp.Compare(order(a.Check), order(b.Check)), cmp.Compare(a.Object, b.Object))
	})
	r.Seconds = time.Since(start).Seconds()
	return r, ctx.Err()
}

func oneLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// Worst is the highest severity, "" for none.
func (r *Report) Worst() Severity {
	worst := Severity("")
	for _, f := range r.Findings {
		if f.Severity == Problem || worst == "" {
			worst = f.Severity
		}
	}
	return worst
}

// Text writes the report for a person: problems first.
func (r *Report) Text(w io.Writer) {
	counts := map[Severity]int{}
	for _, f := range r.Findings {
		counts[f.Severity]++
		fmt.Fprintf(w, "%s  %s  %s\n", strings.ToUpper(string(f.Severity)), f.Check, f.Object)
		fmt.Fprintf(w, "  seen   %s\n  means  %s\n", f.Evidence, f.Consequence)
		for i, fix := range f.Fix {
			head := "       "
			if i == 0 {
				head = "  fix  "
			}
			fmt.Fprintf(w, "%s  %s\n", head, fix)
		}
		if f.Fixable {
			fmt.Fprintln(w, "         (vxbpf doctor --fix does that, --undo takes it back)")
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%d checks in %.1f s: %s, %s\n", len(r.Checks), r.Seconds, plural(counts[Problem], "problem"), plural(counts[Warning], "warning"))
	if len(r.Unknown) > 0 {
		fmt.Fprintln(w, "What cannot be known from here:")
		for _, u := range r.Unknown {
			fmt.Fprintf(w, "  %s  %s: %s\n", u.Check, cmp.Or(u.Object, "all"), u.Why)
		}
	}
	var facts []string
	for k := range r.Facts {
		facts = append(facts, k)
	}
	slices.Sort(facts)
	for i, k := range facts {
		if i == 0 {
			fmt.Fprintln(w, "This host:")
		}
		fmt.Fprintf(w, "  %s: %s\n", k, r.Facts[k])
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
