// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteTable writes the report for a person at a terminal.
func (r *Report) WriteTable(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "%s, %d CPUs, kernel %s, %d rounds of %.2g s per row, veth underlay\n\n", m.CPU, m.CPUs, m.Kernel, r.Rounds, r.RoundTime)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WORKLOAD\tPROFILE\tDATAPATH\tMEDIAN\tMIN - MAX\tUNIT\tKERNEL\tBARE\tP50/P99/P99.9 us\tCPU\tFAST\tLOST\t")
	last := ""
	for _, x := range r.Results {
		name := x.Workload + "\t" + x.Profile
		if name == last {
			name = "\t"
		} else {
			last = name
		}
		lat, fast := "-", "-"
		if l := x.Latency; l != nil {
			lat = fmt.Sprintf("%.1f/%.1f/%.1f", l.P50, l.P99, l.P999)
		}
		if x.FastShare != nil {
			fast = fmt.Sprintf("%.1f%%", 100**x.FastShare)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s - %s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", name, x.Path(), number(x.Median), number(x.Min), number(x.Max),
			x.Unit, ratio(x.RatioToKernel), ratio(x.RatioToBare), lat, cost(x.CPU, x.CPUUnit), fast, x.Lost, x.Note)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "KERNEL, BARE: how many times better than kernel vxlan, than no overlay (median over rounds that ran side by side).")
	if len(r.Scale) > 0 {
		fmt.Fprintln(w, "\nCost of a received packet against FDB size:")
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  ENTRIES\tIN USE\tNS/PACKET\tMIN - MAX\tTO SMALLEST\tPROGRAM NS")
		for _, s := range r.Scale {
			fmt.Fprintf(t, "  %d\t%d\t%s\t%s - %s\t%.2f\t%s\n", s.Entries, s.Active, number(s.Median), number(s.Min), number(s.Max), s.Ratio, number(s.NS))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(r.Flood) > 0 {
		fmt.Fprintln(w, "\nA TCP stream (Gb/s) while forged VXLAN packets arrive at its receiver, all on one CPU:")
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  DATAPATH\tCHECK\tALONE\tGENERATOR ONLY\tFLOODED\tKEPT\tMIN - MAX\tOF ALONE\tFORGED/S\tFORGED\tCHECKED")
		for _, f := range r.Flood {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%.0f%%\t%.0f%% - %.0f%%\t%.0f%%\t%s\t%d\t%d\n", f.Datapath, f.Check, number(f.Alone), number(f.Generator), number(f.Flood),
				100*f.Kept, 100*f.KeptMin, 100*f.KeptMax, 100*f.KeptAlone, number(f.Offered), f.Packets, f.Checked)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w, "KEPT: of the rate beside the same generator, whose packets another driver drops (median over rounds that ran side by side).")
	}
	if len(r.Programs) > 0 {
		fmt.Fprintln(w, "\nns per run of each program (the kernel's statistics, about 20 ns, included):")
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  PROGRAM\tHOST\tWORKLOAD\tNS\tRUNS\tPACKETS")
		for _, p := range r.Programs {
			fmt.Fprintf(t, "  %s\t%s\t%s\t%.0f\t%d\t%d\n", p.Name, p.Host, p.Workload, p.NS, p.Runs, p.Packets)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if r.Interrupted {
		fmt.Fprintln(w, "\nInterrupted: rows are missing or have fewer rounds.")
	}
	if len(r.Problems) > 0 {
		fmt.Fprintf(w, "\nFAILED SELF-CHECKS, these figures are no evidence:\n  %s\n", strings.Join(r.Problems, "\n  "))
	}
	return nil
}

// number prints three significant digits, or whole thousands.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func ratio(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}

// cost prints CPU time in the unit that suits it.
func cost(v float64, unit string) string {
	_, per, _ := strings.Cut(unit, "/")
	switch {
	case v == 0:
		return "-"
	case v >= 1e9:
		return fmt.Sprintf("%.2f s/%s", v/1e9, per)
	case v >= 1e7:
		return fmt.Sprintf("%.0f ms/%s", v/1e6, per)
	case v >= 1e4:
		return fmt.Sprintf("%.1f us/%s", v/1e3, per)
	}
	return fmt.Sprintf("%.0f ns/%s", v, per)
}
