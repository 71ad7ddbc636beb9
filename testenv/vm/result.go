// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
)

// outcome of one test on one kernel.
type outcome int

const (
	absent    outcome = iota // was not asked for here
	pass                     // all of it
	elsewhere                // another make target runs it, and the test says which
	fallback                 // the kernel lacks what the test is about, and the test says what
	fail
)

// excuses begin the kinds of skip that are no failures; see package testenv/need.
var excuses = map[string]outcome{"fallback: ": fallback, "elsewhere: ": elsewhere}

// excused is what a skip amounts to, fail for one without an excuse.
func excused(words string) (o outcome, reason string) {
	for prefix, o := range excuses {
		if reason, ok := strings.CutPrefix(words, prefix); ok {
			return o, reason
		}
	}
	return fail, "skipped: " + words
}

// cell is what one test did on one kernel.
type cell struct {
	outcome outcome
	reason  string        // of a fallback or a failure
	partial []string      // reasons of the subtests that fell back, in a test that passed
	took    time.Duration // in the guest
}

func (c cell) String() string {
	switch {
	case c.outcome == pass && len(c.partial) > 0:
		return "pass, part fallback: " + strings.Join(c.partial, "; ")
	case c.outcome == pass:
		return "pass"
	case c.outcome == elsewhere:
		return "elsewhere: " + c.reason
	case c.outcome == fallback:
		return "fallback: " + c.reason
	case c.outcome == fail:
		return "FAIL: " + c.reason
	}
	return "-"
}

// column is one kernel: what its console said, taken apart as it comes.
type column struct {
	name  string
	uname string
	took  time.Duration
	cells map[string]*cell // "package TestName"
	order []string
	// fault is why the column as a whole failed.
	fault []string

	pkg     string
	current string              // the test that output belongs to
	said    map[string][]string // last lines of output by test
	running map[string]bool
	done    bool
	echo    io.Writer // nil: quiet
}

func newColumn(name string, echo io.Writer) *column {
	return &column{name: name, cells: map[string]*cell{}, said: map[string][]string{}, running: map[string]bool{}, echo: echo}
}

var (
	runLine    = regexp.MustCompile(`^=== (RUN|NAME|CONT|PAUSE)\s+(\S*)`)
	reportLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)`)
)

// keepLines of a test's output are kept for its reason and for the report.
const keepLines = 60

func (c *column) line(text string) {
	if c.echo != nil {
		fmt.Fprintf(c.echo, "%s| %s\n", c.name, strings.ReplaceAll(text, "\x16", ""))
	}
	// The mark of the testing package and of the guest; output without a newline may stand before it.
	i := strings.LastIndexByte(text, '\x16')
	if i < 0 {
		c.output(text)
		return
	}
	if before := strings.TrimSpace(text[:i]); before != "" {
		c.output(before)
	}
	text = text[i:]
	if word, ok := strings.CutPrefix(text, mark); ok {
		c.guest(word)
		return
	}
	text = text[1:]
	if m := runLine.FindStringSubmatch(text); m != nil {
		c.current = m[2]
		if m[1] == "RUN" {
			c.running[m[2]] = true
		}
	} else if m := reportLine.FindStringSubmatch(text); m != nil {
		c.report(m[1], m[2], m[3])
	}
}

func (c *column) output(text string) {
	if strings.TrimSpace(text) == "" {
		return
	}
	c.said[c.current] = append(c.said[c.current], text)
	if said := c.said[c.current]; len(said) > keepLines {
		c.said[c.current] = said[1:]
	}
}

func (c *column) guest(text string) {
	kind, rest, _ := strings.Cut(text, " ")
	switch kind {
	case markUname:
		c.uname = rest
	case markStart:
		c.pkg, c.current = rest, ""
		clear(c.said)
		clear(c.running)
	case markKmsg:
		c.fault = append(c.fault, c.pkg+": the kernel's log: "+rest)
	case markEnd:
		f := strings.Fields(rest)
		c.broken("ended early")
		// Each test that failed says so itself; this is for what no test stands for.
		if len(f) > 1 && f[1] != "0" && !slices.ContainsFunc(c.order, func(k string) bool {
			return strings.HasPrefix(k, c.pkg+" ") && c.cells[k].outcome == fail
		}) {
			c.fault = append(c.fault, fmt.Sprintf("%s: exit %s: %s", c.pkg, f[1], strings.Join(c.said[""], " / ")))
		}
		c.pkg = ""
	case markDone:
		c.done = true
	}
}

// broken gives the tests that are still running a failure.
func (c *column) broken(why string) {
	for name := range c.running {
		c.said[name] = append(c.said[name], why)
		c.report("FAIL", name, "0")
	}
}

func (c *column) report(result, name, seconds string) {
	delete(c.running, name)
	top, _, sub := strings.Cut(name, "/")
	key := c.pkg + " " + top
	at, known := c.cells[key]
	if !known {
		at = &cell{}
		c.cells[key] = at
		c.order = append(c.order, key)
	}
	last := words(c.said[name], result == "FAIL")
	worse := func(o outcome, reason string) {
		if o > at.outcome {
			at.outcome, at.reason = o, reason
		}
	}
	switch result {
	case "PASS":
		worse(pass, "")
	case "FAIL":
		worse(fail, strings.TrimPrefix(name+": "+last, top+": "))
	case "SKIP":
		o, reason := excused(last)
		switch {
		case o == fail:
			worse(fail, strings.TrimPrefix(name+": "+reason, top+": "))
		case sub && o == elsewhere:
			// The rest of the test counts.
		case sub:
			if !slices.Contains(at.partial, reason) {
				at.partial = append(at.partial, reason)
			}
		default:
			at.outcome, at.reason = o, reason
		}
	}
	if !sub {
		if s, err := time.ParseDuration(seconds + "s"); err == nil {
			at.took = s
		}
	}
}

var logLine = regexp.MustCompile(`^\s*[\w]+\.go:\d+: (.*)`)

// words picks the line that says why: the first or the last that a test
// logged, else the last that it wrote.
func words(said []string, first bool) string {
	found := ""
	for _, s := range said {
		if m := logLine.FindStringSubmatch(s); m != nil {
			if found = m[1]; first {
				break
			}
		}
	}
	if found == "" && len(said) > 0 {
		found = strings.TrimSpace(said[len(said)-1])
	}
	return found
}

// end says how the machine ended; err is qemu's.
func (c *column) end(err error, took time.Duration) {
	c.took = took
	if err != nil {
		c.fault = append(c.fault, err.Error())
	}
	if c.done {
		return
	}
	why := "the machine stopped"
	if err != nil {
		why = err.Error()
	}
	c.broken(why)
	c.fault = append(c.fault, fmt.Sprintf("stopped in %s: %s", c.pkg, strings.Join(c.said[c.current], " / ")))
}

// table prints rows of tests and columns of kernels, and each reason once below.
func table(w io.Writer, cols []*column, markdown bool) {
	var rows []string
	for _, c := range cols {
		for _, k := range c.order {
			if !slices.Contains(rows, k) {
				rows = append(rows, k)
			}
		}
	}
	var notes []string
	note := func(text string) string {
		i := slices.Index(notes, text)
		if i < 0 {
			notes = append(notes, text)
			i = len(notes) - 1
		}
		return fmt.Sprintf("[%d]", i+1)
	}
	grid := [][]string{{"test"}}
	for _, c := range cols {
		grid[0] = append(grid[0], c.name)
	}
	for _, k := range rows {
		row := []string{k}
		for _, c := range cols {
			at := c.cells[k]
			if at == nil {
				at = &cell{}
			}
			text := "-"
			switch {
			case at.outcome == fail:
				text = "FAIL " + note(at.reason)
			case at.outcome == elsewhere:
				text = "elsewhere " + note(at.reason)
			case at.outcome == fallback:
				text = "fallback " + note(at.reason)
			case at.outcome == pass && len(at.partial) > 0:
				text = "pass"
				for _, p := range at.partial {
					text += " " + note("in part fallback: "+p)
				}
			case at.outcome == pass:
				text = "pass"
			}
			row = append(row, text)
		}
		grid = append(grid, row)
	}
	last := []string{"seconds, boot included"}
	for _, c := range cols {
		last = append(last, fmt.Sprintf("%.0f", c.took.Seconds()))
	}
	grid = append(grid, last)
	width := make([]int, len(grid[0]))
	for _, row := range grid {
		for i, s := range row {
			width[i] = max(width[i], len(s))
		}
	}
	for n, row := range grid {
		var b strings.Builder
		for i, s := range row {
			if markdown {
				b.WriteString("| ")
			}
			fmt.Fprintf(&b, "%-*s ", width[i], s)
			if !markdown {
				b.WriteByte(' ')
			}
		}
		line := strings.TrimRight(b.String(), " ")
		if markdown {
			line += " |"
		}
		fmt.Fprintln(w, line)
		if n == 0 && markdown {
			fmt.Fprintln(w, strings.Repeat("|---", len(row))+"|")
		}
	}
	if len(notes) > 0 {
		fmt.Fprintln(w)
	}
	for i, n := range notes {
		fmt.Fprintf(w, "[%d] %s\n", i+1, n)
	}
}
