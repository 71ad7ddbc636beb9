// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"
)

// MaxSize is the largest config file that is read, in bytes.
const MaxSize = 1 << 20

// Stdin is the path that makes Load read standard input.
const Stdin = "-"

// Load reads and checks the config file at path; "-" is standard input. Every
// error is an *Error that names the file; one about an unreadable file wraps
// the reason.
func Load(path string) (*Config, error) {
	f, name := os.Stdin, "<stdin>"
	if path != Stdin {
		name = path
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, unreadable(name, err)
		}
		defer f.Close()
	}
	// A device or a pipe has no size, so the limit on the reader is the one
	// that counts; Stat only lets us name the size.
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > MaxSize {
		return nil, tooLarge(name, fmt.Sprintf("%d bytes", st.Size()))
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, unreadable(name, err)
	}
	if len(b) > MaxSize {
		return nil, tooLarge(name, fmt.Sprintf("more than %d bytes", MaxSize))
	}
	return Parse(name, b)
}

// Parse checks the bytes of a config file. File is the name for messages.
// Every error is an *Error with all the problems that could be found at once.
func Parse(file string, b []byte) (*Config, error) {
	if len(b) > MaxSize {
		return nil, tooLarge(file, fmt.Sprintf("%d bytes", len(b)))
	}
	text := strings.TrimPrefix(string(b), "\ufeff")
	text = strings.ReplaceAll(text, "\r\n", "\n")
	text = strings.ReplaceAll(text, "\r", "\n")
	src := &source{file: file, bytes: bytes.Clone(b), lines: strings.Split(text, "\n"), at: map[string]pos{}}
	ps := &problems{src: src}

	if !checkText(ps) {
		return nil, ps.err()
	}
	body, ok := parseYAML(ps)
	if !ok {
		return nil, ps.err()
	}
	if body == nil {
		ps.add(pos{}, "", smallestHint, "the file is empty")
		return nil, ps.err()
	}
	var raw rawConfig
	d := decoder{ps: ps}
	if d.root(body, &raw); len(ps.list) > 0 && !raw.set {
		return nil, ps.err()
	}
	c := (&checker{ps: ps}).config(&raw)
	if err := ps.err(); err != nil {
		return nil, err
	}
	c.File, c.src = file, src
	return c, nil
}

// checkText refuses what is not text, before anything tries to read it.
func checkText(ps *problems) bool {
	for i, line := range ps.src.lines {
		col := 0
		for j, r := range line {
			col++
			at := pos{i + 1, col}
			switch {
			case r == utf8.RuneError && !strings.HasPrefix(line[j:], "\ufffd"):
				ps.add(at, "", "is this the right file? save it as UTF-8 if it is",
					fmt.Sprintf("byte 0x%02x is not UTF-8: a config is a text file", line[j]))
				return false
			case r < ' ' && r != '\t' || r == 0x7f || r == colon:
				ps.add(at, "", "is this the right file? delete the character if it is",
					fmt.Sprintf("control character U+%04X: a config is a text file", r))
				return false
			}
		}
	}
	return true
}

func unreadable(file string, err error) error {
	reason := err
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		reason = pe.Err
	}
	if file == "" {
		file = `""`
	}
	return &Error{cause: err, Problems: []Problem{{
		File: file, Message: "cannot be read: " + reason.Error(),
		Hint: `give the path of a config file, or "-" for standard input`,
	}}}
}

func tooLarge(file, size string) error {
	return &Error{Problems: []Problem{{
		File: file, Message: fmt.Sprintf("is %s, and a config has at most %d (1 MiB)", size, MaxSize),
		Hint: "is this the right file?",
	}}}
}
