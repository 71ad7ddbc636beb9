// SPDX-License-Identifier: Apache-2.0

// Package convert reads VXLAN networks out of the files of other tools, or off
// the running host, into a config.yaml, and writes them back into such files.
//
// It guesses nothing silently. What a config cannot say becomes a comment at the
// network it belongs to and a Note, with file and line; so does a default of the
// other tool that differs from vxbpf's. What Import returns always passes
// config.Parse. The package touches no host except to read in Live.
package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Format is a way to write networks down.
type Format string

// The formats.
const (
	Auto      Format = "auto" // by name and content, each file by itself
	Ifupdown  Format = "ifupdown"
	Ifupdown2 Format = "ifupdown2"
	Netplan   Format = "netplan"
	Networkd  Format = "networkd"
	IPRoute2  Format = "iproute2" // a shell script of ip, bridge and brctl commands
)

// Formats are those that files have.
var Formats = []Format{Ifupdown, Ifupdown2, Netplan, Networkd, IPRoute2}

// Place is where something was read. Line 0: the file as a whole.
type Place struct {
	File string
	Line int
}

func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Note tells of something that the result does not say as the source did.
type Note struct {
	Place
	Text string
}

func (n Note) String() string {
	if n.File == "" {
		return n.Text
	}
	return n.Place.String() + ": " + n.Text
}

// Result of an import.
type Result struct {
	// Config is a config.yaml that passes config.Parse.
	Config []byte
	// Notes are also comments in Config.
	Notes []Note
}

// Files is where Import reads, os files by default. Paths are those that the
// caller gave, and what source lines name.
type Files interface {
	ReadFile(name string) ([]byte, error)
	Glob(pattern string) ([]string, error)
}

// OS reads the files of this host.
type OS struct{}

// ReadFile is os.ReadFile with a limit.
func (OS) ReadFile(name string) ([]byte, error) {
	st, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case st.IsDir():
		return nil, fmt.Errorf("read %s: is a directory", name)
	case st.Mode().IsRegular() && st.Size() > maxFile:
		return nil, tooLarge(name)
	}
	return os.ReadFile(name)
}

// Glob is filepath.Glob, sorted.
func (OS) Glob(pattern string) ([]string, error) {
	names, err := filepath.Glob(pattern)
	slices.Sort(names)
	return names, err
}

// Bounds of what is read: such files are written by people and by Ansible.
const (
	maxFile  = 256 << 10 // bytes
	maxFiles = 1000
	maxLinks = 10000
)

func tooLarge(name string) error {
	return fmt.Errorf("read %s: larger than %d KiB: is this the right file?", name, maxFile>>10)
}

// ImportOptions of Import. The zero value reads os files of any format.
type ImportOptions struct {
	From  Format // empty: Auto
	Files Files  // nil: OS
	// Device is the underlay device of vxlan links that name none and whose source does not show it.
	Device string
}

// ErrNothing: there is no network that vxbpf could carry. The notes of the
// Result that comes with it say why.
var ErrNothing = errors.New("no VXLAN network that vxbpf can carry")

// Import reads files, or with none the usual ones of the format, as one host's set-up.
func Import(names []string, o ImportOptions) (*Result, error) {
	if o.Files == nil {
		o.Files = OS{}
	}
	if o.From == "" {
		o.From = Auto
	}
	if o.From != Auto && !slices.Contains(Formats, o.From) {
		return nil, fmt.Errorf("import from %q: want auto, %s", o.From, formatList())
	}
	h := newHost(o.Files)
	if len(names) == 0 {
		var err error
		if names, err = usual(o); err != nil {
			return nil, err
		}
	}
	// The networkd files of a link lie in several directories and are ordered by
	// their own names, and so are netplan's.
	for _, name := range names {
		b, err := h.read(name)
		if err != nil {
			return nil, err
		}
		f := o.From
		if f == Auto {
			if f = detect(name, b); f == "" {
				return nil, fmt.Errorf("tell the format of %s: it looks like none of %s; say --from", name, formatList())
			}
		}
		if err := h.add(f, name, b); err != nil {
			return nil, err
		}
	}
	if err := h.finish(); err != nil {
		return nil, err
	}
	return h.build(strings.Join(names, ", "), o.Device)
}

func formatList() string {
	var s []string
	for _, f := range Formats {
		s = append(s, string(f))
	}
	return strings.Join(s, ", ")
}

// usual are the files that a host has for a format.
func usual(o ImportOptions) ([]string, error) {
	patterns := map[Format][]string{
		Ifupdown:  {"/etc/network/interfaces"},
		Ifupdown2: {"/etc/network/interfaces"},
		Netplan:   {"/etc/netplan/*.yaml", "/run/netplan/*.yaml", "/lib/netplan/*.yaml"},
		Networkd: {"/etc/systemd/network/*.net*", "/etc/systemd/network/*.network.d/*.conf", "/etc/systemd/network/*.netdev.d/*.conf",
			"/run/systemd/network/*.net*", "/usr/lib/systemd/network/*.net*"},
	}
	try := []Format{o.From}
	if o.From == Auto {
		try = []Format{Ifupdown, Netplan, Networkd}
	}
	var names []string
	for _, f := range try {
		for _, p := range patterns[f] {
			found, err := o.Files.Glob(p)
			if err != nil {
				return nil, err
			}
			for _, n := range found {
				if !strings.HasSuffix(n, ".d") {
					names = append(names, n)
				}
			}
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("find files to import from %s: none where they usually are; name them, or use --live", o.From)
	}
	return names, nil
}

var (
	stanza    = regexp.MustCompile(`(?m)^[ \t]*(auto|allow-\S+|iface|source|source-directory|mapping)[ \t]+\S`)
	vxlanKey  = regexp.MustCompile(`(?m)^[ \t]+(vxlan-|bridge-vlan-)\S`)
	netplanAt = regexp.MustCompile(`(?m)^[ \t{]*["']?network["']?[ \t]*:`)
	section   = regexp.MustCompile(`(?m)^\[[A-Za-z0-9]+\][ \t]*$`)
	command   = regexp.MustCompile(`(?m)(^|[\s;&|(])(/\S*/)?(ip|bridge|brctl)[ \t]+(-\S+[ \t]+)*\S`)
)

// detect tells a file's format by its name and content, "" if neither does.
func detect(name string, b []byte) Format {
	switch ext := path.Ext(name); {
	case ext == ".netdev" || ext == ".network" || ext == ".link":
		return Networkd
	case ext == ".conf" && section.Match(b):
		return Networkd
	case (ext == ".yaml" || ext == ".yml") && netplanAt.Match(b):
		return Netplan
	case ext == ".sh":
		return IPRoute2
	case strings.HasPrefix(string(b), "#!") && command.Match(b):
		return IPRoute2
	case stanza.Match(b):
		if vxlanKey.Match(b) {
			return Ifupdown2
		}
		return Ifupdown
	case netplanAt.Match(b):
		return Netplan
	case section.Match(b):
		return Networkd
	case command.Match(b):
		return IPRoute2
	}
	return ""
}

// read counts and limits what is read.
func (h *host) read(name string) ([]byte, error) {
	if h.files++; h.files > maxFiles {
		return nil, fmt.Errorf("read %s: more than %d files", name, maxFiles)
	}
	b, err := h.fs.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
	case err != nil:
		return nil, err
	case len(b) > maxFile:
		return nil, tooLarge(name)
	case !utf8.Valid(b) || strings.ContainsRune(string(b), 0):
		return nil, fmt.Errorf("read %s: not a text file", name)
	}
	return []byte(strings.ReplaceAll(string(b), "\r\n", "\n")), nil
}

func (h *host) add(f Format, name string, b []byte) error {
	switch f {
	case Ifupdown, Ifupdown2:
		return h.interfaces(f, name, b, 0)
	case Netplan:
		return h.netplan(name, b)
	case Networkd:
		return h.networkd(name, b)
	case IPRoute2:
		return h.script(name, b)
	}
	return fmt.Errorf("import from %q: no such format", f)
}
