// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
)

// Change is one row of two reports.
type Change struct {
	Result            // of the new report
	OldMedian float64 // of the old one
	OldRatio  float64 // to kernel vxlan; 0: not known
	// Factor is how many times better the new is: by the ratios to the kernel
	// where both know one, since another day's machine is another machine, else
	// by the medians.
	Factor float64
	// Significant: the change is more than either report's own spread.
	Significant bool
}

// Compare pairs the rows of two reports; rows that one of them lacks are left out.
func Compare(old, now *Report) []Change {
	var out []Change
	for _, x := range now.Results {
		o := old.Find(x.Workload, x.Profile, x.Datapath, x.Sides)
		if o == nil || o.Median == 0 || x.Median == 0 {
			continue
		}
		c := Change{Result: x, OldMedian: o.Median, OldRatio: o.RatioToKernel}
		spread := max(o.Spread, x.Spread)
		if x.Datapath != Kernel && o.RatioToKernel > 0 && x.RatioToKernel > 0 {
			c.Factor = x.RatioToKernel / o.RatioToKernel
			spread = max((o.RatioHigh-o.RatioLow)/o.RatioToKernel, (x.RatioHigh-x.RatioLow)/x.RatioToKernel)
		} else if c.Factor = x.Median / o.Median; x.Better == Lower {
			c.Factor = 1 / c.Factor
		}
		c.Significant = math.Abs(c.Factor-1) > spread/2
		out = append(out, c)
	}
	return out
}

// WriteComparison writes what changed since an older report.
func WriteComparison(w io.Writer, old, now *Report) error {
	fmt.Fprintf(w, "compared with %s, commit %.12s, %s, kernel %s\n\n", old.Date.Format("2006-01-02 15:04"), old.Commit, old.Machine.CPU, old.Machine.Kernel)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WORKLOAD\tPROFILE\tDATAPATH\tOLD\tNEW\tUNIT\tOLD/KERNEL\tNEW/KERNEL\tCHANGE\t")
	for _, c := range Compare(old, now) {
		word := "within the spread"
		if c.Significant {
			word = "better"
			if c.Factor < 1 {
				word = "WORSE"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%+.0f %%\t%s\n", c.Workload, c.Profile, c.Path(), number(c.OldMedian), number(c.Median),
			c.Unit, ratio(c.OldRatio), ratio(c.RatioToKernel), 100*(c.Factor-1), word)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "CHANGE: of the ratio to kernel vxlan, and of the median for kernel vxlan itself; + is better.")
	return nil
}

// Path is datapath and sides for a person.
func (x *Result) Path() string {
	if x.Sides == One {
		return x.Datapath + " (one)"
	}
	return x.Datapath
}
