// SPDX-License-Identifier: Apache-2.0

package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"
)

// The page is one file without scripts or references to others: the plots are
// SVG elements that the template fills with coordinates made here.

//go:embed report.html.tmpl
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"number": number, "ratio": ratio, "cost": cost,
	"percent": func(v *float64) string {
		if v == nil {
			return "–"
		}
		return fmt.Sprintf("%.1f %%", 100**v)
	},
	"commit": func(s string) string { return s[:min(len(s), 12)] },
	"seconds": func(v float64) string {
		return time.Duration(v * float64(time.Second)).Round(time.Second).String()
	},
	"gib": func(v uint64) string { return fmt.Sprintf("%.0f GiB", float64(v)/(1<<30)) },
}).Parse(page))

// WriteHTML writes the report as one self-contained page.
func (r *Report) WriteHTML(w io.Writer) error {
	return pageTemplate.Execute(w, struct {
		*Report
		Bars    []barPlot
		CDFs    []linePlot
		Scaling *linePlot
	}{r, r.bars(), r.cdfs(), r.scaling()})
}

// Geometry of the plots, in SVG user units.
const (
	plotWidth   = 760.0
	labelWidth  = 190.0
	barHeight   = 20.0
	groupGap    = 10.0
	valueMargin = 150.0 // at the right, for figures
	axisHeight  = 34.0
	lineHeight  = 300.0
	lineLeft    = 60.0
	lineBottom  = 40.0
)

// barPlot is one profile: a bar for each workload and datapath, as long as its
// ratio to kernel vxlan, with whiskers for the least and greatest ratio of a round.
type barPlot struct {
	Profile       string
	Width, Height float64
	Groups        []barGroup
	Ticks         []tick
	One           float64 // x of ratio 1
	Bottom        float64
}

type barGroup struct {
	Name string
	Y    float64
	Bars []barItem
}

type barItem struct {
	Class          string
	Path           string
	X, Y, W, H     float64
	Low, High, Mid float64 // whisker, and its height
	Text           string
	TextX          float64
}

type tick struct {
	At    float64
	Label string
}

// series is the colour of a row.
func (x *Result) series() string {
	if x.Sides == One {
		return x.Datapath + "-one"
	}
	return x.Datapath
}

func (r *Report) bars() (out []barPlot) {
	for _, p := range profiles {
		top := 1.0
		for _, x := range r.Results {
			if x.Profile == p.name {
				top = max(top, x.RatioMax)
			}
		}
		scale := niceMax(top)
		at := func(v float64) float64 {
			return labelWidth + (plotWidth-labelWidth-valueMargin)*min(v, scale)/scale
		}
		plot := barPlot{Profile: p.name, Width: plotWidth, One: at(1)}
		y := 4.0
		for _, x := range r.Results {
			if x.Profile != p.name || x.RatioToKernel == 0 {
				continue
			}
			if n := len(plot.Groups); n == 0 || plot.Groups[n-1].Name != x.Workload {
				if n > 0 {
					y += groupGap
				}
				plot.Groups = append(plot.Groups, barGroup{Name: x.Workload, Y: y})
			}
			g := &plot.Groups[len(plot.Groups)-1]
			item := barItem{Class: x.series(), Path: x.Path(), X: labelWidth, Y: y, W: at(x.RatioToKernel) - labelWidth, H: barHeight - 4,
				Low: at(x.RatioMin), High: at(x.RatioMax), Mid: y + barHeight/2 - 2, TextX: max(at(x.RatioMax), at(x.RatioToKernel)) + 6,
				Text: fmt.Sprintf("%.2f  (%s %s)", x.RatioToKernel, number(x.Median), x.Unit)}
			if !x.Conclusive {
				item.Text += " ?"
			}
			g.Bars = append(g.Bars, item)
			y += barHeight
		}
		if len(plot.Groups) == 0 {
			continue
		}
		plot.Bottom = y + 4
		plot.Height = plot.Bottom + axisHeight
		for v, step := 0.0, niceStep(scale); v <= scale+1e-9; v += step {
			plot.Ticks = append(plot.Ticks, tick{at(v), fmt.Sprintf("%g", math.Round(v*100)/100)})
		}
		out = append(out, plot)
	}
	return out
}

// linePlot is curves over a logarithmic horizontal axis.
type linePlot struct {
	Title, XLabel, YLabel string
	Width, Height         float64
	Left, Right           float64
	Top, Bottom           float64
	XTicks, YTicks        []tick
	Lines                 []line
}

type line struct {
	Class, Label string
	Points       string
	LabelX       float64
	LabelY       float64
	Whiskers     []whisker
}

type whisker struct{ X, Y, Low, High float64 }

// newLinePlot spans powers of ten in x, and 0 to top in y.
func newLinePlot(title, xlabel, ylabel string, xmin, xmax, top float64) (*linePlot, func(x, y float64) (float64, float64)) {
	p := &linePlot{Title: title, XLabel: xlabel, YLabel: ylabel, Width: plotWidth, Height: lineHeight + lineBottom + 30,
		Left: lineLeft, Right: plotWidth - 20, Top: 24, Bottom: lineHeight + 24}
	lo, hi := math.Log10(xmin), math.Log10(xmax)
	if hi <= lo {
		hi = lo + 1
	}
	place := func(x, y float64) (float64, float64) {
		return p.Left + (math.Log10(x)-lo)/(hi-lo)*(p.Right-p.Left), p.Bottom - y/top*(p.Bottom-p.Top)
	}
	for e := math.Floor(lo); e <= hi+1e-9; e++ {
		// Where few powers of ten are in view, halves and fifths help.
		for _, m := range []float64{1, 2, 5} {
			v := m * math.Pow(10, e)
			if m > 1 && hi-lo > 2.5 || v > xmax*1.001 || v < xmin*0.999 {
				continue
			}
			x, _ := place(v, 0)
			p.XTicks = append(p.XTicks, tick{x, number(v)})
		}
	}
	for v, step := 0.0, niceStep(top); v <= top+1e-9; v += step {
		_, y := place(xmin, v)
		p.YTicks = append(p.YTicks, tick{y, fmt.Sprintf("%g", math.Round(v*1000)/1000)})
	}
	return p, place
}

// cdfs draws the latency distribution of each request workload.
func (r *Report) cdfs() (out []linePlot) {
	for _, w := range workloads {
		for _, p := range profiles {
			var rows []*Result
			lo, hi := math.Inf(1), 0.0
			for i := range r.Results {
				x := &r.Results[i]
				if x.Workload != w.name || x.Profile != p.name || x.Latency == nil || len(x.Latency.CDF) == 0 {
					continue
				}
				rows = append(rows, x)
				cdf := x.Latency.CDF
				lo, hi = min(lo, max(cdf[0][1], 0.1)), max(hi, cdf[len(cdf)-1][1])
			}
			if len(rows) == 0 || hi <= 0 {
				continue
			}
			plot, place := newLinePlot(w.name+", "+p.name, "µs", "share of requests that took no longer", lo*0.9, hi*1.1, 1)
			for i, x := range rows {
				l := line{Class: x.series(), Label: fmt.Sprintf("%s  p50 %s  p99 %s", x.Path(), number(x.Latency.P50), number(x.Latency.P99)),
					LabelX: plot.Left + 10 + (plot.Right-plot.Left)*0.55, LabelY: plot.Bottom - 14 - 18*float64(len(rows)-1-i)}
				var pts []string
				for _, q := range x.Latency.CDF {
					px, py := place(max(q[1], lo*0.9), q[0])
					pts = append(pts, fmt.Sprintf("%.1f,%.1f", px, py))
				}
				l.Points = strings.Join(pts, " ")
				plot.Lines = append(plot.Lines, l)
			}
			out = append(out, *plot)
		}
	}
	return out
}

// scaling draws packet cost against FDB size.
func (r *Report) scaling() *linePlot {
	if len(r.Scale) == 0 {
		return nil
	}
	top := 0.0
	for _, s := range r.Scale {
		top = max(top, s.Max)
	}
	plot, place := newLinePlot("cost of a received packet", "addresses in the FDB", "ns", float64(r.Scale[0].Entries), float64(r.Scale[len(r.Scale)-1].Entries), niceMax(top))
	few := line{Class: TC, Label: "packet, 256 addresses in use"}
	all := line{Class: Bare, Label: "packet, all addresses in use at random"}
	program := line{Class: Kernel, Label: "of that vx_tc_decap (statistics included)"}
	for _, s := range r.Scale {
		for _, l := range []*line{&few, &all} {
			if (l == &all) != (s.Active == s.Entries) && s.Entries != r.Scale[0].Entries {
				continue
			}
			x, y := place(float64(s.Entries), s.Median)
			_, low := place(float64(s.Entries), s.Min)
			_, high := place(float64(s.Entries), s.Max)
			l.Points += fmt.Sprintf("%.1f,%.1f ", x, y)
			l.Whiskers = append(l.Whiskers, whisker{x, y, low, high})
		}
		if s.NS > 0 && s.Active == s.Entries {
			x, y := place(float64(s.Entries), s.NS)
			program.Points += fmt.Sprintf("%.1f,%.1f ", x, y)
			program.Whiskers = append(program.Whiskers, whisker{x, y, y, y})
		}
	}
	plot.Lines = append(plot.Lines, few, all)
	if program.Points != "" {
		plot.Lines = append(plot.Lines, program)
	}
	for i := range plot.Lines {
		plot.Lines[i].LabelX, plot.Lines[i].LabelY = plot.Left+14, plot.Top+16+18*float64(i)
	}
	return plot
}

// niceStep divides a range into 4 to 8 steps of 1, 2 or 5 times a power of ten.
func niceStep(top float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(top/4)))
	for _, m := range []float64{1, 2, 5, 10} {
		if top/(m*p) <= 8 {
			return m * p
		}
	}
	return 10 * p
}

func niceMax(v float64) float64 {
	s := niceStep(v)
	return math.Ceil(v/s-1e-9) * s
}
