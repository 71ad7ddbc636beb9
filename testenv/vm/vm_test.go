// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// console is what a guest writes, as a column takes it.
func console(lines string, end error) *column {
	c := newColumn("6.1", nil)
	for line := range strings.Lines(strings.ReplaceAll(lines, "^V", "\x16")) {
		c.line(strings.TrimRight(line, "\n"))
	}
	c.end(end, time.Second)
	return c
}

// A table that says "pass" where something went wrong is worth less than none.
func TestColumn(t *testing.T) {
	const boot = "^V@@ uname 6.1.0\n^V@@ start bpf\n"
	const off = "^V@@ end bpf 0 3\n^V@@ done\n"
	for _, c := range []struct {
		name, lines string
		end         error
		want        map[string]string
		fault       string // in one of the column's faults, "" for none
	}{
		{"pass", boot + "^V=== RUN   TestA\n    a_test.go:1: words\n^V--- PASS: TestA (1.50s)\n" + off, nil, map[string]string{"bpf TestA": "pass"}, ""},
		{"output without a newline before the mark", boot + "^V=== RUN   TestA\nhalf a line^V--- PASS: TestA (0.00s)\n" + off, nil, map[string]string{"bpf TestA": "pass"}, ""},
		{"fail says why", boot + "^V=== RUN   TestA\n    a_test.go:1: first\n    a_test.go:2: second\n^V--- FAIL: TestA (0.00s)\n^V@@ end bpf 1 3\n^V@@ done\n", nil,
			map[string]string{"bpf TestA": "FAIL: first"}, ""},
		{"fallback", boot + "^V=== RUN   TestA\n    a_test.go:1: fallback: no tcx, since 6.6\n^V--- SKIP: TestA (0.00s)\n" + off, nil,
			map[string]string{"bpf TestA": "fallback: no tcx, since 6.6"}, ""},
		{"elsewhere", boot + "^V=== RUN   TestA\n    a_test.go:1: elsewhere: make x: long\n^V--- SKIP: TestA (0.00s)\n" + off, nil,
			map[string]string{"bpf TestA": "elsewhere: make x: long"}, ""},
		{"any other skip", boot + "^V=== RUN   TestA\n    a_test.go:1: not today\n^V--- SKIP: TestA (0.00s)\n" + off, nil,
			map[string]string{"bpf TestA": "FAIL: skipped: not today"}, ""},
		{"a skip without words", boot + "^V=== RUN   TestA\n^V--- SKIP: TestA (0.00s)\n" + off, nil, map[string]string{"bpf TestA": "FAIL: skipped: "}, ""},
		{"part fallback", boot + "^V=== RUN   TestA\n^V=== RUN   TestA/x\n    a_test.go:1: fallback: no tcx\n    ^V--- SKIP: TestA/x (0.00s)\n^V--- PASS: TestA (0.00s)\n" + off, nil,
			map[string]string{"bpf TestA": "pass, part fallback: no tcx"}, ""},
		{"part skipped", boot + "^V=== RUN   TestA\n^V=== RUN   TestA/x\n    a_test.go:1: no\n    ^V--- SKIP: TestA/x (0.00s)\n^V--- PASS: TestA (0.00s)\n" + off, nil,
			map[string]string{"bpf TestA": "FAIL: TestA/x: skipped: no"}, ""},
		{"the binary dies", boot + "^V=== RUN   TestA\npanic: oh\n^V@@ end bpf 2 3\n^V@@ done\n", nil, map[string]string{"bpf TestA": "FAIL: ended early"}, ""},
		{"the binary fails with no test to blame", boot + "FAIL: left behind: link x\n^V=== RUN   TestA\n^V--- PASS: TestA (0.00s)\n^V@@ end bpf 1 3\n^V@@ done\n", nil,
			map[string]string{"bpf TestA": "pass"}, "bpf: exit 1: FAIL: left behind"},
		{"the kernel complains", boot + "^V=== RUN   TestA\n^V--- PASS: TestA (0.00s)\n^V@@ kmsg WARNING: CPU: 0\n" + off, nil, map[string]string{"bpf TestA": "pass"}, "WARNING: CPU: 0"},
		{"the kernel panics", boot + "^V=== RUN   TestA\nKernel panic - not syncing: oh\n", nil, map[string]string{"bpf TestA": "FAIL: the machine stopped"}, "Kernel panic"},
		{"deadline", boot + "^V=== RUN   TestA\n", errors.New("not done after 5m"), map[string]string{"bpf TestA": "FAIL: not done after 5m"}, "not done after 5m"},
		{"it never boots", "", errors.New("not done after 5m"), map[string]string{}, "not done after 5m"},
	} {
		t.Run(c.name, func(t *testing.T) {
			col := console(c.lines, c.end)
			got := map[string]string{}
			for k, v := range col.cells {
				got[k] = v.String()
			}
			for k, want := range c.want {
				if got[k] != want {
					t.Errorf("%s: %q, want %q", k, got[k], want)
				}
				delete(got, k)
			}
			if len(got) > 0 {
				t.Errorf("also %v", got)
			}
			if c.fault == "" && len(col.fault) > 0 || c.fault != "" && !slices.ContainsFunc(col.fault, func(s string) bool { return strings.Contains(s, c.fault) }) {
				t.Errorf("faults %q, want %q", col.fault, c.fault)
			}
			var out strings.Builder
			bad := c.fault != "" || slices.ContainsFunc([]string{c.want["bpf TestA"]}, func(s string) bool { return strings.HasPrefix(s, "FAIL") })
			if ok := summary(&out, []*column{col}); ok == bad {
				t.Errorf("the run as a whole: ok %v\n%s", ok, out.String())
			}
		})
	}
	var out strings.Builder
	if summary(&out, []*column{console("^V@@ start bpf\n^V@@ end bpf 0 1\n^V@@ done\n", nil)}) {
		t.Errorf("a run of no test at all is taken for good:\n%s", out.String())
	}
}

func TestNewest(t *testing.T) {
	names := []string{"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-10-cloud-amd64"}
	slices.SortFunc(names, compareNumbers)
	if got := names[len(names)-1]; got != "linux-image-6.1.0-56-cloud-amd64" {
		t.Errorf("newest is %s of %v", got, names)
	}
	for name, want := range map[string]string{
		"linux-image-5.10.0-46-cloud-amd64": "5.10", "linux-image-6.1.0-56-cloud-amd64": "6.1", "linux-image-6.12.117+deb12-cloud-amd64": "6.12",
		"linux-image-7.3.4+deb13-cloud-amd64": "7.3", "linux-image-6.1.0-0.deb11.52-cloud-amd64": "", "linux-image-6.1.0-56-amd64": "",
		"linux-image-7.3.4+deb13-cloud-amd64-dbg": "",
	} {
		got := ""
		for _, r := range releases {
			if r.image.MatchString(name) {
				got = r.name
			}
		}
		if got != want {
			t.Errorf("%s is taken for %q, want %q", name, got, want)
		}
	}
}
