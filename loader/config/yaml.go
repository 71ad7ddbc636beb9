// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits on the shape of a file. The parser recurses per level and per key of
// a block mapping, and its time grows with the square of the keys, the empty
// values, the documents and blank lines; no config comes near these numbers.
const (
	maxDepth   = 32
	maxKeys    = 64
	maxEmpty   = 256
	maxAnchors = 256
	maxBlank   = 100 // lines in a row: what a | text costs the lexer
)

// parseYAML gives the root node, nil for a file without content. When it
// returns false it has added the problem.
func parseYAML(ps *problems) (body ast.Node, ok bool) {
	// The parser indexes without looking in places; a file that makes it fall
	// over is not YAML that a config needs.
	defer func() {
		if r := recover(); r != nil {
			ps.add(pos{}, "", syntaxHint, "not valid YAML: the reader gave up on it")
			body, ok = nil, false
		}
	}()
	lines, blank := make([]string, len(ps.src.lines)), 0
	for i, line := range ps.src.lines {
		if blank++; strings.TrimLeft(line, " \t") != "" {
			blank = 0
		} else if blank > maxBlank {
			ps.add(pos{i + 1, 1}, "", "delete them", fmt.Sprintf("more than %d empty lines in a row", maxBlank))
			return nil, false
		}
		// The lexer does not count tabs as columns. Between tokens a tab is as
		// good as a space; in the indentation it is an error that we keep.
		indent := len(line) - len(strings.TrimLeft(line, " \t"))
		lines[i] = line[:indent] + protect(strings.ReplaceAll(line[indent:], "\t", " "))
	}
	tokens := lexer.Tokenize(strings.Join(lines, "\n"))
	if bad := tokens.InvalidToken(); bad != nil {
		ps.syntax(bad, bad.Error)
		return nil, false
	}
	if !ps.shape(tokens) {
		return nil, false
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if se := (*yaml.SyntaxError)(nil); errors.As(err, &se) {
		ps.syntax(se.Token, se.Message)
		return nil, false
	} else if err != nil {
		ps.add(pos{}, "", syntaxHint, "not valid YAML: "+printable(err.Error()))
		return nil, false
	}
	for _, doc := range file.Docs {
		if _, null := doc.Body.(*ast.NullNode); doc.Body != nil && !null {
			return doc.Body, true
		}
	}
	return nil, true
}

// colon stands for the colons of an address while the lexer looks, for it takes
// every colon inside { } for the end of a key, even in remotes: [2001:db8::12].
// One character for one, so columns stay. checkText refuses it in a file.
const colon = '\uffff'

// protect replaces the colons of words that have several: addresses, mostly.
// A colon at the end of a word may end a key, unless the word is an address.
func protect(line string) string {
	if strings.Count(line, ":") < 2 {
		return line
	}
	const ends = " ,[]{}\"'"
	var b strings.Builder
	for line != "" {
		n := strings.IndexAny(line, ends)
		if n < 0 {
			n = len(line)
		}
		word := line[:n]
		if strings.Count(word, ":") > 1 {
			_, err := netip.ParseAddr(word)
			if err == nil || !strings.HasSuffix(word, ":") {
				word = strings.ReplaceAll(word, ":", string(colon))
			}
		}
		b.WriteString(word)
		if n < len(line) {
			b.WriteByte(line[n])
			n++
		}
		line = line[n:]
	}
	return b.String()
}

// text is what a token says.
func text(tk *token.Token) string { return strings.ReplaceAll(tk.Value, string(colon), ":") }

func runes(s string) int { return len([]rune(s)) }

// place is where a token starts. Tabs that indent a line inside brackets are
// legal, but the lexer does not count them.
func (s *source) place(tk *token.Token) pos {
	if tk == nil || tk.Position == nil {
		return pos{1, 1}
	}
	line := min(max(tk.Position.Line, 1), len(s.lines))
	if s.last.line != line { // measured once: a line may hold all the tokens of a file
		text := s.lines[line-1]
		indent := text[:len(text)-len(strings.TrimLeft(text, " \t"))]
		s.last.line, s.last.runes, s.last.tabs = line, runes(text), strings.Count(indent, "\t")
	}
	return pos{line, min(max(tk.Position.Column, 1)+s.last.tabs, s.last.runes+1)}
}

const syntaxHint = "one `key: value` a line, a space after the colon, the keys of one mapping in the same column"

// plain says what the parser's terse messages mean. The first that is
// contained in the message counts.
var plain = []struct{ has, message, hint string }{
	{"tab character", "a tab in the indentation", "indent with spaces: YAML does not take tabs"},
	{"character '\t'", "a tab in the indentation", "indent with spaces: YAML does not take tabs"},
	{"end character of double-quoted", "the text that starts here is never closed", `end it with a second "`},
	{"end character of single-quoted", "the text that starts here is never closed", "end it with a second '"},
	{"reserved character", "a value cannot start with this character", "put the value in quotes"},
	{"',' or ']' must be", "a list in [ ] lacks a comma or its closing bracket before this", "write [a, b, c]"},
	{"',' or '}' must be", "a mapping in { } lacks a comma or its closing brace before this", "write {key: value, key: value}"},
	{"end token ']'", "the list that starts here is never closed", "end it with ]"},
	{"end token '}'", "the mapping that starts here is never closed", "end it with }"},
	{"corresponding to ']'", "] closes a list that was never opened", "write [a, b, c]"},
	{"corresponding to '}'", "} closes a mapping that was never opened", "write {key: value, key: value}"},
	{"found ','", "a comma with nothing before it", "delete the comma, or write the value before it"},
	{"could not find flow map content", "a comma with nothing before it", "delete the comma, or write the value before it"},
	{"mapping value is not allowed", "a key inside a value",
		"put each key on its own line, in the column of the keys beside it; a value that contains \": \" needs quotes"},
	{"unexpected key name", "no key with a colon in this line", syntaxHint},
	{"non-map value", "no key with a colon in this line", syntaxHint},
	{"value is not allowed in this context", "a value where a key should be", syntaxHint},
	{"invalid key for this map", "a colon that ends no key", "put a value that contains a colon in quotes"},
	{"unknown escape", "an unknown \\ escape in quoted text", "use single quotes, in which \\ is itself"},
	{"multi-line content", "a text of several lines without the lines", "write the value on the line of its key"},
	{"sequence entries are not allowed", "a list item on the line of its key", "start the list on the next line, or write [a, b, c]"},
}

func (ps *problems) syntax(tk *token.Token, message string) {
	message = strings.ReplaceAll(message, string(colon), ":")
	at := ps.src.place(tk)
	if n := strings.Count(strings.TrimSpace(tk.Origin), "\n"); n > 0 && at.line+n <= len(ps.src.lines) && strings.Contains(message, "mapping value is not allowed") {
		// The value ran on into a line that turned out to have a key.
		at.line += n
		line := ps.src.lines[at.line-1]
		at.col = len(line) - len(strings.TrimLeft(line, " ")) + 1
		ps.add(at, "", "put it in the column of the keys beside it", "not valid YAML: a key that stands deeper than the one before, which has a value already")
		return
	}
	for _, p := range plain {
		if strings.Contains(message, p.has) {
			if i := strings.IndexByte(ps.src.lines[at.line-1], '\t'); i >= 0 && strings.Contains(p.message, "tab") {
				at.col = runes(ps.src.lines[at.line-1][:i]) + 1
			}
			ps.add(at, "", p.hint, "not valid YAML: "+p.message)
			return
		}
	}
	ps.add(at, "", syntaxHint, "not valid YAML: "+printable(message))
}

// A level is an open bracket, mapping or list.
type level struct {
	kind token.Type // of the token that opened it: { [ - or :
	col  int        // of a block level
	keys int
}

func (l level) flow() bool {
	return l.kind == token.MappingStartType || l.kind == token.SequenceStartType
}

// unused says of the parts of YAML that a config has no use for what they are
// and what to write.
var unused = map[token.Type][2]string{
	token.DirectiveType:  {"a YAML directive has no use here", "delete the line"},
	token.TagType:        {"a YAML tag has no use here", "delete it: every key knows the type of its value"},
	token.MappingKeyType: {"a key after ? has no use here", "write `key: value`"},
	token.MergeKeyType:   {"merge keys (<<) are not read", "write the keys out; an alias for a whole value, such as `remotes: *hosts`, works"},
	token.LiteralType:    {"no key takes a text of several lines", "write the value on the line of its key"},
	token.FoldedType:     {"no key takes a text of several lines", "write the value on the line of its key"},
}

// shape refuses what the parser would take long over or read wrongly, and what
// is unused. It sees tokens only, so it runs in one pass.
func (ps *problems) shape(all token.Tokens) bool {
	fail := func(tk *token.Token, message, hint string) bool {
		ps.add(ps.src.place(tk), "", hint, message)
		return false
	}
	tokens := make(token.Tokens, 0, len(all)+2)
	none := &token.Token{Position: &token.Position{Line: math.MaxInt}} // before the first and after the last
	tokens = append(tokens, none)
	for _, tk := range all {
		if tk.Type != token.CommentType {
			tokens = append(tokens, tk)
		}
	}
	tokens = append(tokens, none)

	open := []level{{}} // the lowest is the document
	empty, anchors := 0, 0
	var end *token.Token // of the first document
	for i, tk := range tokens[:len(tokens)-1] {
		if i == 0 {
			continue
		}
		prev, next, top := tokens[i-1], tokens[i+1], &open[len(open)-1]
		if tk.Type == token.DocumentHeaderType || tk.Type == token.DocumentEndType {
			if prev != none && end == nil {
				end = tk
			}
			continue
		}
		if end != nil {
			return fail(end, "a second YAML document starts here", "one file is one host's config: delete what follows, or move it to a file of its own")
		}
		if words, ok := unused[tk.Type]; ok {
			return fail(tk, words[0], words[1])
		}
		counted := false
		switch tk.Type {
		case token.AnchorType:
			anchors++
		case token.MappingStartType, token.SequenceStartType:
			open = append(open, level{kind: tk.Type})
		case token.MappingEndType, token.SequenceEndType:
			if top.flow() {
				open = open[:len(open)-1]
			}
		case token.CollectEntryType:
			counted = top.flow()
		case token.SequenceEntryType, token.MappingValueType:
			if top.flow() {
				if closes(next) {
					empty++
				}
				break
			}
			col := tk.Position.Column
			if tk.Type == token.MappingValueType && prev != none {
				col = prev.Position.Column
			}
			nothing := next.Position.Line > tk.Position.Line && next.Position.Column <= col
			if nothing && tk.Type == token.SequenceEntryType {
				// The parser would take the next line for the item.
				return fail(tk, "an empty list item", "delete it, or write the value behind the dash")
			} else if nothing {
				empty++
			}
			// What stands further left closes what is open; a key also closes a
			// list in its column, but not the other way round.
			for top.col > col || top.col == col && top.kind == token.SequenceEntryType && tk.Type != top.kind {
				open = open[:len(open)-1]
				top = &open[len(open)-1]
			}
			if top.col < col || top.kind != tk.Type {
				open = append(open, level{kind: tk.Type, col: col})
			}
			counted = true
		default:
			if top.kind == token.MappingStartType && closes(next) &&
				(prev.Type == token.MappingStartType || prev.Type == token.CollectEntryType) {
				empty++ // {a, b}
			}
		}
		if top = &open[len(open)-1]; counted && (top.kind == token.MappingStartType || top.kind == token.MappingValueType) {
			top.keys++
		}
		switch {
		case len(open) > maxDepth:
			return fail(tk, fmt.Sprintf("nested more than %d levels deep", maxDepth), "a config has 5 at most")
		case top.keys > maxKeys:
			return fail(tk, fmt.Sprintf("more than %d keys in one mapping", maxKeys), "is this the right file?")
		case empty > maxEmpty:
			return fail(tk, fmt.Sprintf("more than %d empty values", maxEmpty), "give the keys values, or delete them")
		case anchors > maxAnchors:
			return fail(tk, fmt.Sprintf("more than %d anchors", maxAnchors), "write the values out")
		}
	}
	return true
}

// closes reports a token that ends an entry inside brackets.
func closes(tk *token.Token) bool {
	return tk.Type == token.MappingEndType || tk.Type == token.SequenceEndType || tk.Type == token.CollectEntryType
}
