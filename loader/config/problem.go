// SPDX-License-Identifier: Apache-2.0

package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Problem is one thing wrong with a config file, and the way out.
type Problem struct {
	File string
	// Line and Column count from 1, Column in characters. 0: no place in the
	// file to point at.
	Line, Column int
	// Path is the key, such as networks[0].vni. Empty: the file as a whole.
	Path string
	// Message is lower case and names the value.
	Message string
	// Hint says what to write instead. May be empty, may have several lines.
	Hint string
	// Snippet is the source line and a caret under the column: two lines
	// without a final newline, safe to print on a terminal. May be empty.
	Snippet string
}

// String is file:line:column: path: message, then the snippet and the hint,
// without a final newline.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(printable(p.File))
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	if p.Snippet != "" {
		b.WriteString("\n" + p.Snippet)
	}
	if p.Hint != "" {
		b.WriteString("\n  hint: " + strings.ReplaceAll(p.Hint, "\n", "\n    "))
	}
	return b.String()
}

// Error is everything found wrong with one file, in the order of the file.
type Error struct {
	Problems []Problem // at least one
	// Omitted counts further problems, left out after the first hundred.
	Omitted int

	cause error // why the file could not be read
}

// maxShown is how many problems Error prints; the rest is a number.
const maxShown = 20

func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i == maxShown {
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(p.String())
	}
	if n := max(len(e.Problems)-maxShown, 0) + e.Omitted; n > 0 {
		fmt.Fprintf(&b, "\n%s: and %d more", printable(e.Problems[0].File), n)
	}
	return b.String()
}

// Unwrap gives the reason why a file could not be read, for errors.Is with
// fs.ErrNotExist and the like. nil when the file was read.
func (e *Error) Unwrap() error { return e.cause }

// ErrorAt is an error about the value at path, in the format of the errors of
// Load: for checks that need the host, such as a device that does not exist.
// Path is written as in the file: "underlay.device", "networks[1].remotes[0]",
// "networks[1].bridge.addresses[0]". A network's key that was inherited points
// at the underlay's or the host's; a key that was defaulted points at the
// nearest thing around it. A path that fits nothing names the file only.
func (c *Config) ErrorAt(path, message, hint string) error {
	p := Problem{File: c.File, Path: path, Message: message, Hint: hint}
	if c.src != nil {
		if at, ok := c.src.find(path); ok {
			p.Line, p.Column, p.Snippet = at.line, at.col, c.src.snippet(at)
		}
	}
	return &Error{Problems: []Problem{p}}
}

// Source returns the bytes that were parsed, nil for a Config built by hand.
// Standard input can be read once only, so this is how they are handed on.
func (c *Config) Source() []byte {
	if c.src == nil {
		return nil
	}
	return slices.Clone(c.src.bytes)
}

// pos is a place in the file, both from 1, columns in characters. The zero pos
// is no place.
type pos struct{ line, col int }

// source is the text of a file and where in it each key's value stands. After
// parsing it is only read.
type source struct {
	file  string
	bytes []byte
	lines []string
	at    map[string]pos

	last struct{ line, runes, tabs int } // the line that place looked at
}

// inherited names the keys of a network that fall back to the host's.
var inherited = map[string]string{
	"device": "underlay.device", "local": "underlay.local", "port": "underlay.port",
	"ttl": "underlay.ttl", "tos": "underlay.tos", "df": "underlay.df", "flow_label": "underlay.flow_label",
	"source_ports": "underlay.source_ports", "udp_checksum": "underlay.udp_checksum",
	"datapath": "datapath", "mss_clamp": "mss_clamp", "bypass_netfilter": "bypass_netfilter",
}

func (s *source) find(path string) (pos, bool) {
	if i := strings.Index(path, "]."); i >= 0 && strings.HasPrefix(path, "networks[") {
		network, key := path[:i+1], strings.TrimPrefix(path[i+2:], "underlay.")
		path = network + "." + key
		if top, ok := inherited[key]; ok {
			if at, ok := s.at[path]; ok {
				return at, true
			}
			if at, ok := s.at[top]; ok {
				return at, true
			}
		}
	}
	for path != "" {
		if at, ok := s.at[path]; ok {
			return at, true
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return pos{}, false
}

// width is how much of a source line a snippet shows, in characters.
const width = 100

// snippet is the line and the caret. The caret line repeats the tabs before
// the column, so both lines bend alike at any tab width.
func (s *source) snippet(at pos) string {
	if at.line < 1 || at.line > len(s.lines) {
		return ""
	}
	line := []rune(s.lines[at.line-1])
	col := min(max(at.col-1, 0), len(line))
	from, to, dots := 0, len(line), ""
	if len(line) > width {
		if from = max(0, col-width/2); from > 0 {
			dots = "..."
		}
		to = min(len(line), from+width)
	}
	var text, pad strings.Builder
	for i, r := range line[from:to] {
		if r != '\t' && !unicode.IsPrint(r) {
			r = unicode.ReplacementChar
		}
		text.WriteRune(r)
		switch {
		case from+i >= col || unicode.In(r, unicode.Mn, unicode.Me):
		case r == '\t':
			pad.WriteByte('\t')
		case wide(r):
			pad.WriteString("  ")
		default:
			pad.WriteByte(' ')
		}
	}
	tail := ""
	if to < len(line) {
		tail = "..."
	}
	return fmt.Sprintf("%5d | %s%s%s\n      | %s%s^", at.line, dots, text.String(), tail,
		strings.Repeat(" ", len(dots)), pad.String())
}

// wide reports the characters that terminals draw two columns wide.
func wide(r rune) bool {
	switch {
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
		r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
		r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return true
	}
	return false
}

// printable escapes what could move the cursor or hide text.
func printable(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			q := strconv.Quote(s)
			return q[1 : len(q)-1]
		}
	}
	return s
}

// show is a value of the file inside a message: short, on one line.
func show(s string) string {
	if s == "" {
		return `""`
	}
	const most = 48
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	if strings.ContainsAny(s, " \t\n\"") || printable(s) != s {
		return strconv.Quote(s)
	}
	return s
}

// maxProblems bounds what one file can make us remember.
const maxProblems = 100

// problems collects what is wrong with one source.
type problems struct {
	src  *source
	list []Problem
	seen map[Problem]bool
	more int
}

// add keeps a problem. The same words at the same place, which aliases can
// bring about, count once.
func (ps *problems) add(at pos, path, hint, message string) {
	key := Problem{Line: at.line, Column: at.col, Message: message}
	switch {
	case ps.seen[key]:
		return
	case len(ps.list) == maxProblems:
		ps.more++
		return
	case ps.seen == nil:
		ps.seen = map[Problem]bool{}
	}
	ps.seen[key] = true
	ps.list = append(ps.list, Problem{
		File: ps.src.file, Line: at.line, Column: at.col, Path: path,
		Message: message, Hint: hint, Snippet: ps.src.snippet(at),
	})
}

func (ps *problems) err() error {
	if len(ps.list) == 0 {
		return nil
	}
	slices.SortStableFunc(ps.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Error{Problems: ps.list, Omitted: ps.more}
}
