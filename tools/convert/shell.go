// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// shell reads commands out of shell text. It runs nothing: it follows
// assignments, loops over words and functions, and reports what it cannot
// follow.
type shell struct {
	h    *host
	file string
	line int // of the first line of the text
	env  map[string]string
	// unknown variables have a value that only running the script would show.
	unknown map[string]bool
	funcs   map[string]*syntax.Stmt
	// foreign: the text stands at a link that is none of ours, so commands about other things are not worth a word.
	foreign bool
	depth   int
	steps   int
}

// Bounds of what a script may make us do.
const (
	maxSteps = 20000
	maxDepth = 50
	maxBrace = 4096
)

var (
	errSteps = errors.New("the script does too much to be followed")
	// about marks text that may make or change a network of ours.
	about = regexp.MustCompile(`vxlan|bridge|brctl|\bmaster\b`)
)

// script reads a file of commands.
func (h *host) script(name string, b []byte) error {
	s := &shell{h: h, file: name, line: 1, env: map[string]string{}, unknown: map[string]bool{}, funcs: map[string]*syntax.Stmt{}}
	return s.run(string(b))
}

func (s *shell) at(n syntax.Node) Place {
	return Place{s.file, s.line - 1 + int(n.Pos().Line())}
}

// run reads a piece of shell text.
func (s *shell) run(text string) error {
	if deep(text) {
		return fmt.Errorf("read %s: nested too deeply to be a set-up script", Place{s.file, s.line})
	}
	f, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), s.file)
	if err != nil {
		var pe syntax.ParseError
		at := Place{s.file, s.line}
		if errors.As(err, &pe) {
			at.Line = s.line - 1 + int(pe.Pos.Line())
			err = errors.New(pe.Text)
		}
		return fmt.Errorf("read %s as shell commands: %w", at, err)
	}
	for _, st := range f.Stmts {
		if err := s.stmt(st); err != nil {
			return fmt.Errorf("read %s: %w", s.file, err)
		}
	}
	return nil
}

// deep reports nesting that would cost the parser its stack.
func deep(text string) bool {
	depth := 0
	for _, r := range text {
		switch r {
		case '(', '{', '`':
			if depth++; depth > 2000 {
				return true
			}
		case ')', '}':
			depth = max(0, depth-1)
		case '\n':
			// A here-document or a comment may hold anything.
			if depth < 100 {
				depth = 0
			}
		}
	}
	return false
}

// unread says that a command was not followed, where that matters.
func (s *shell) unread(n syntax.Node, why string) {
	var b strings.Builder
	_ = syntax.NewPrinter().Print(&b, n)
	line, _, _ := strings.Cut(b.String(), "\n")
	if s.foreign && !about.MatchString(b.String()) {
		return
	}
	s.h.note(s.at(n), "not read, %s: %s", why, short(line))
}

func short(line string) string {
	line = strings.TrimSpace(line)
	if r := []rune(line); len(r) > 100 {
		line = string(r[:100]) + "..."
	}
	return line
}

func (s *shell) stmts(list []*syntax.Stmt) error {
	for _, st := range list {
		if err := s.stmt(st); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) stmt(st *syntax.Stmt) error {
	if s.steps++; s.steps > maxSteps {
		return errSteps
	}
	if s.depth++; s.depth > maxDepth {
		return errSteps
	}
	defer func() { s.depth-- }()
	for _, r := range st.Redirs {
		// echo 1 > /proc/sys/...: a setting that has no command of its own.
		if w := literal(r.Word); r.Op != syntax.RdrIn && (strings.HasPrefix(w, "/proc/") || strings.HasPrefix(w, "/sys/")) {
			s.unread(st, "a setting of the kernel")
			return nil
		}
	}
	switch c := st.Cmd.(type) {
	case nil:
	case *syntax.CallExpr:
		return s.call(st, c)
	case *syntax.BinaryCmd:
		if c.Op == syntax.Pipe || c.Op == syntax.PipeAll {
			s.unread(st, "a pipe")
			return nil
		}
		// `show || add`: what comes second is what makes things so.
		if err := s.stmt(c.X); err != nil {
			return err
		}
		return s.stmt(c.Y)
	case *syntax.Block:
		return s.stmts(c.Stmts)
	case *syntax.Subshell:
		return s.stmts(c.Stmts)
	case *syntax.IfClause:
		return s.ifClause(st, c)
	case *syntax.ForClause:
		return s.forClause(st, c)
	case *syntax.FuncDecl:
		s.funcs[c.Name.Value] = c.Body
	case *syntax.DeclClause:
		for _, a := range c.Args {
			if a.Name != nil {
				s.assign(a)
			}
		}
	case *syntax.TestClause, *syntax.ArithmCmd:
		// Decides nothing by itself.
	default:
		s.unread(st, "only simple commands, if, for and functions are followed")
	}
	return nil
}

// ifClause follows the way that makes things: tests in such scripts ask whether
// a link is there already.
func (s *shell) ifClause(st *syntax.Stmt, c *syntax.IfClause) error {
	if c.Else != nil {
		s.unread(c.Else, "the other branch of an if; the first was followed")
	} else if !asks(c.Cond) {
		s.unread(st, "a condition; what it guards was followed")
	}
	return s.stmts(c.Then)
}

var harmless = regexp.MustCompile(`^!?\s*(\[|\[\[|test\b|(/\S*/)?ip\s+(-\S+\s+)*(l|li|lin|link|a|addr|address)\s+(show|list|ls)\b|(/\S*/)?ip\s+(-\S+\s+)*link\s+show\b|grep\b|command -v|which|true|:)`)

// asks reports a condition that only asks for something.
func asks(cond []*syntax.Stmt) bool {
	for _, st := range cond {
		var b strings.Builder
		_ = syntax.NewPrinter().Print(&b, st)
		if !harmless.MatchString(b.String()) {
			return false
		}
	}
	return true
}

func (s *shell) forClause(st *syntax.Stmt, c *syntax.ForClause) error {
	loop, ok := c.Loop.(*syntax.WordIter)
	if !ok || c.Select {
		s.unread(st, "a loop that counts")
		return nil
	}
	items, err := s.fields(loop.Items)
	if err != nil {
		s.unread(st, err.Error())
		return nil
	}
	for _, item := range items {
		s.env[loop.Name.Value] = item
		delete(s.unknown, loop.Name.Value)
		if err := s.stmts(c.Do); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) assign(a *syntax.Assign) {
	name := a.Name.Value
	delete(s.env, name)
	s.unknown[name] = true
	if a.Array != nil || a.Index != nil || a.Append {
		return
	}
	if a.Value == nil {
		s.env[name] = ""
		delete(s.unknown, name)
		return
	}
	if tooManyBraces(a.Value) {
		return
	}
	if v, err := expand.Literal(s.config(), a.Value); err == nil {
		s.env[name] = v
		delete(s.unknown, name)
	}
}

// environ gives the variables whose value is known.
type environ map[string]string

func (e environ) Get(name string) expand.Variable {
	v, ok := e[name]
	if !ok {
		return expand.Variable{}
	}
	return expand.Variable{Set: true, Kind: expand.String, Str: v}
}

func (e environ) Each(f func(string, expand.Variable) bool) {
	for name := range e {
		if !f(name, e.Get(name)) {
			return
		}
	}
}

func (s *shell) config() *expand.Config {
	return &expand.Config{Env: environ(s.env), NoUnset: true}
}

// fields are the words of a command after expansion.
func (s *shell) fields(words []*syntax.Word) (out []string, err error) {
	for _, w := range words {
		if tooManyBraces(w) {
			return nil, errors.New("braces that stand for very many words")
		}
	}
	// The library panics on some expansions that it does not support.
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("an expansion that only the shell could do")
		}
	}()
	out, err = expand.Fields(s.config(), words...)
	if err != nil {
		var cmd expand.UnexpectedCommandError
		var unset expand.UnsetParameterError
		switch {
		case errors.As(err, &cmd):
			err = errors.New("it needs the output of another command")
		case errors.As(err, &unset):
			err = errors.New("it needs a variable whose value is not in the file")
		default:
			err = errors.New("an expansion that only the shell could do")
		}
	}
	return out, err
}

// tooManyBraces bounds what {1..9} and {a,b}{c,d} stand for.
func tooManyBraces(w *syntax.Word) bool {
	c := *w
	c.Parts = append([]syntax.WordPart(nil), w.Parts...)
	return syntax.SplitBraces(&c) && braces(c.Parts) > maxBrace
}

// braces is how many words the parts of one stand for, maxBrace+1 for more.
func braces(parts []syntax.WordPart) int {
	n := 1
	for _, p := range parts {
		b, ok := p.(*syntax.BraceExp)
		if !ok {
			continue
		}
		size := 0
		for _, e := range b.Elems {
			size = min(maxBrace+1, size+braces(e.Parts))
		}
		if b.Sequence {
			size = maxBrace + 1
			if len(b.Elems) >= 2 {
				from, to := literal(b.Elems[0]), literal(b.Elems[1])
				var x, y int
				if _, err := fmt.Sscanf(from+" "+to, "%d %d", &x, &y); err == nil && len(from) < 8 && len(to) < 8 {
					size = max(x-y, y-x) + 1
				} else if len(from) == 1 && len(to) == 1 {
					size = 256
				}
			}
		}
		n = min(maxBrace+1, n*max(1, size))
	}
	return n
}

// literal is the text of a word without quotes and expansions, as written otherwise.
func literal(w *syntax.Word) string {
	if w == nil {
		return ""
	}
	if l := w.Lit(); l != "" {
		return l
	}
	var b strings.Builder
	_ = syntax.NewPrinter().Print(&b, w)
	return strings.Trim(b.String(), `"'`)
}

// quiet commands change nothing that a config could say.
var quiet = map[string]bool{
	"set": true, "true": true, ":": true, "exit": true, "return": true, "echo": true, "printf": true, "sleep": true, "modprobe": true,
	"logger": true, "test": true, "[": true, "shift": true, "local": true, "trap": true, "cd": true, "umask": true, "wait": true, "false": true,
	"command": true, "which": true, "break": true, "continue": true, "unset": true, "run-parts": true, "date": true,
}

func (s *shell) call(st *syntax.Stmt, c *syntax.CallExpr) error {
	if len(c.Args) == 0 {
		for _, a := range c.Assigns {
			s.assign(a)
		}
		return nil
	}
	args, err := s.fields(c.Args)
	if err != nil {
		if name := literal(c.Args[0]); !quiet[name] {
			s.unread(st, err.Error())
		}
		return nil
	}
	if len(args) == 0 {
		return nil
	}
	for len(args) > 1 && (args[0] == "sudo" || args[0] == "exec" || args[0] == "eval" && len(args) > 2) {
		if args[0] == "eval" {
			s.unread(st, "eval")
			return nil
		}
		args = args[1:]
	}
	if body, ok := s.funcs[args[0]]; ok {
		saved := maps.Clone(s.env)
		for i := range 9 {
			delete(s.env, fmt.Sprint(i+1))
		}
		for i, a := range args[1:] {
			if i < 9 {
				s.env[fmt.Sprint(i+1)] = a
			}
		}
		err := s.stmt(body)
		s.env = saved
		return err
	}
	at := s.at(st)
	switch name := path.Base(args[0]); {
	case name == "ip":
		s.h.ip(args[1:], at, s.foreign)
	case name == "bridge":
		s.h.bridgeCommand(args[1:], at)
	case name == "brctl":
		s.h.brctl(args[1:], at)
	case quiet[name]:
	default:
		for _, a := range linkWords(args[1:]) {
			if s.h.noteOn(a, at, "no equivalent, keep it where it is: %s", short(strings.Join(args, " "))) {
				return nil
			}
		}
		s.unread(st, "not a command about links and addresses")
	}
	return nil
}

// linkWords are what may be names of links, also inside net.ipv4.conf.<link>.rp_filter.
func linkWords(args []string) (out []string) {
	for _, a := range args {
		out = append(out, a)
		out = append(out, strings.FieldsFunc(a, func(r rune) bool { return r == '.' || r == '/' || r == '=' })...)
	}
	return out
}
