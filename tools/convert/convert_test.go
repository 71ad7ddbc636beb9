// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

var update = flag.Bool("update", false, "write what Import returns into testdata")

// tree is a file system in memory.
type tree map[string]string

func (t tree) ReadFile(name string) ([]byte, error) {
	s, ok := t[path.Clean(name)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(s), nil
}

func (t tree) Glob(pattern string) (out []string, err error) {
	for name := range t {
		ok, err := path.Match(path.Clean(pattern), name)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// sample is one of testdata/<format>.txtar: files under its name, and `want`, which is the config, or the error.
type sample struct {
	name  string
	files tree
	order []string // those that Import is given: all but what lies in a directory, unless there is nothing else
	want  string
}

// samples reads testdata/<format>.txtar. Files are called <sample>/<path>; <sample>/want is what Import makes of them.
func samples(t testing.TB, format Format) (out []*sample, a *txtar.Archive) {
	t.Helper()
	a, err := txtar.ParseFile("testdata/" + string(format) + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*sample{}
	for _, f := range a.Files {
		name, file, ok := strings.Cut(f.Name, "/")
		if !ok {
			t.Fatalf("%s: %s is not <sample>/<file>", format, f.Name)
		}
		s := byName[name]
		if s == nil {
			s = &sample{name: name, files: tree{}}
			byName[name] = s
			out = append(out, s)
		}
		if file == "want" {
			s.want = string(f.Data)
			continue
		}
		s.files[file] = string(f.Data)
		if !strings.Contains(file, "/") || format == Networkd || format == Netplan {
			s.order = append(s.order, file)
		}
	}
	return out, a
}

func (s *sample) run(format Format) string {
	o := ImportOptions{From: format, Files: s.files}
	if strings.HasPrefix(s.name, "device-option") {
		o.Device = "eth2"
	}
	r, err := Import(s.order, o)
	if err != nil {
		out := "error: " + err.Error() + "\n"
		if r != nil {
			for _, n := range r.Notes {
				out += "note: " + n.String() + "\n"
			}
		}
		return out
	}
	return string(r.Config)
}

// TestImport: the samples of each format, and what becomes of them.
func TestImport(t *testing.T) {
	for _, format := range Formats {
		t.Run(string(format), func(t *testing.T) {
			list, a := samples(t, format)
			if len(list) < 30 {
				t.Errorf("%d samples, want at least 30", len(list))
			}
			if *update {
				writeSamples(t, format, list, a)
			}
			for _, s := range list {
				t.Run(s.name, func(t *testing.T) {
					got := s.run(format)
					if got != s.want {
						t.Errorf("differs from testdata (run with -update, and read the diff):\n%s", cmp.Diff(s.want, got))
					}
					// Each file tells its own format, but for the two kinds of ifupdown where no key differs.
					for _, name := range s.order {
						f := detect(name, []byte(s.files[name]))
						if f != format && (format != Ifupdown && format != Ifupdown2 || f != Ifupdown && f != Ifupdown2) && !strings.HasPrefix(got, "error") {
							t.Errorf("%s: taken for %q", name, f)
						}
					}
					if strings.HasPrefix(got, "error") {
						return
					}
					if _, err := config.Parse("config.yaml", []byte(got)); err != nil {
						t.Errorf("does not validate: %v", err)
					}
				})
			}
		})
	}
}

func writeSamples(t *testing.T, format Format, list []*sample, old *txtar.Archive) {
	t.Helper()
	a := &txtar.Archive{Comment: old.Comment}
	for _, s := range list {
		s.want = s.run(format)
		for _, f := range old.Files {
			if name, file, _ := strings.Cut(f.Name, "/"); name == s.name && file != "want" {
				a.Files = append(a.Files, f)
			}
		}
		a.Files = append(a.Files, txtar.File{Name: s.name + "/want", Data: []byte(s.want)})
	}
	if err := os.WriteFile("testdata/"+string(format)+".txtar", txtar.Format(a), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestNotesAreComments: what is told on standard error stands in the config too, with its place.
func TestNotesAreComments(t *testing.T) {
	for _, format := range Formats {
		list, _ := samples(t, format)
		for _, s := range list {
			r, err := Import(s.order, ImportOptions{From: format, Files: s.files})
			if err != nil {
				continue
			}
			for _, n := range r.Notes {
				if n.File == "" || n.Line == 0 {
					t.Errorf("%s %s: a note without a place: %q", format, s.name, n)
				}
				if !strings.Contains(string(r.Config), "#   "+comment(n.String())) {
					t.Errorf("%s %s: not in the config: %s", format, s.name, n)
				}
			}
		}
	}
}

// same compares what two configs mean, spelled-out defaults aside.
func same(a, b *config.Config) string {
	norm := func(c *config.Config) []config.Network {
		out := slices.Clone(c.Networks)
		for i := range out {
			n := &out[i]
			n.Underlay.Given = 0
			if off := false; n.Underlay.UDPChecksum == nil && !n.V6() {
				n.Underlay.UDPChecksum = &off
			}
			if on := true; n.Underlay.UDPChecksum == nil {
				n.Underlay.UDPChecksum = &on
			}
			if n.Underlay.MTU != 0 && n.MTU == 0 {
				n.MTU = n.Underlay.MTU - config.Overhead(n.V6())
			}
			n.Underlay.MTU = 0
			n.FDB = slices.Clone(n.FDB)
			slices.SortFunc(n.FDB, func(a, b config.StaticEntry) int { return bytes.Compare(a.MAC[:], b.MAC[:]) })
			if off := false; n.Bridge.STP == nil {
				n.Bridge.STP = &off
			}
			if n.Bridge.ForwardDelay == nil {
				d := time.Duration(0)
				if *n.Bridge.STP {
					d = 15 * time.Second
				}
				n.Bridge.ForwardDelay = &d
			}
			if n.Ageing == 0 {
				n.Ageing = never
			}
			n.Datapath, n.MSSClamp, n.BypassNetfilter, n.VLANTags, n.Sources = "", 0, false, 0, config.Sources{}
		}
		return out
	}
	return cmp.Diff(norm(a), norm(b), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmpopts.EquateEmpty(), cmp.Comparer(func(a, b fdb.MAC) bool { return a == b }))
}

// exported writes a config in a format and reads it again.
func exported(t testing.TB, cfg *config.Config, f Format) (*config.Config, []OutFile, *Result) {
	t.Helper()
	files, _, err := Export(cfg, f)
	if err != nil {
		t.Fatal(err)
	}
	in := tree{}
	var names []string
	for _, o := range files {
		in[o.Path] = string(o.Text)
		names = append(names, o.Path)
	}
	if f == Networkd { // that of the host itself, to which our drop-ins belong
		for _, n := range cfg.Networks {
			name := "/etc/systemd/network/" + n.Underlay.Device + ".network"
			if in[name] == "" {
				in[name] = "[Match]\nName=" + n.Underlay.Device + "\n"
				names = append(names, name)
			}
		}
	}
	from := f
	if f == Netplan { // its drop-ins are networkd's
		from = Auto
	}
	r, err := Import(names, ImportOptions{From: from, Files: in})
	if err != nil {
		t.Fatalf("import what was exported to %s: %v\n%s", f, err, in)
	}
	again, err := config.Parse("again.yaml", r.Config)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.Config)
	}
	return again, files, r
}

const roundTrip = `
underlay: {device: eth2, local: 192.0.2.11, ttl: 5}
networks:
  - {name: flat, vni: 232, bridge: br-flat, remotes: [192.0.2.12, 192.0.2.13]}
  - {name: mgmt, vni: 236, bridge: {name: br-mgmt, addresses: [172.29.236.11/22, "fd00:29:236::11/64"]}, group: 239.1.1.236}
  - {name: storage, vni: 244, bridge: {name: br-storage, stp: true, forward_delay: 4}, remotes: [192.0.2.12], port: 8472, mtu: 1400, ageing: 100}
  - {name: repl, vni: 248, bridge: br-repl, group: 239.1.1.248, remotes: [192.0.2.12], learning: false}
  - {name: vxlan, vni: 240, bridge: br-vxlan, fdb: [{mac: "02:00:00:00:00:0c", remote: 192.0.2.12}], udp_checksum: true}
  - {name: six, vni: 6, bridge: br-six, local: "2001:db8::11", remotes: ["2001:db8::12", "2001:db8::13"], udp_checksum: false}
  - {name: six-csum, vni: 7, bridge: br-six-csum, local: "2001:db8::11", remotes: ["2001:db8::12"]}
`

// full has what ip link, and so ifupdown and iproute2, and networkd can say and the others cannot.
const full = `
underlay: {device: eth2, mtu: 9000}
networks:
  - {name: a, vni: 1, bridge: br-a, remotes: [192.0.2.12], tos: 0x10, df: set, source_ports: [40000, 50000], ttl: inherit}
  - {name: b, vni: 2, bridge: br-b, remotes: ["2001:db8::12"], flow_label: 0x12345, tos: inherit, device: eth3}
  - {name: c, vni: 3, bridge: {name: bridge0, addresses: [10.0.0.1/24]}, link: vxlan3, group: "ff05::3", ttl: 9, ageing: 0}
  - {name: d, vni: 16777215, bridge: br-d, df: inherit, remotes: [198.51.100.1], mtu: 8000}
`

// TestRoundTrip: config -> format -> config says the same.
func TestRoundTrip(t *testing.T) {
	for _, f := range Formats {
		for name, text := range map[string]string{"five networks": roundTrip, "all options": full} {
			if name == "all options" && (f == Ifupdown2 || f == Netplan) {
				continue
			}
			t.Run(string(f)+" "+name, func(t *testing.T) {
				cfg, err := config.Parse("config.yaml", []byte(text))
				if err != nil {
					t.Fatal(err)
				}
				want, _ := config.Parse("config.yaml", []byte(text))
				for i := range want.Networks {
					n := &want.Networks[i]
					// ifupdown2 sends UDP checksums, as ip link does, and cannot be told not to; import says false for that.
					if f == Ifupdown2 && n.Underlay.UDPChecksum != nil && !n.V6() || f == Ifupdown2 && n.V6() {
						n.Underlay.UDPChecksum = nil
					}
					// ifupdown2 has an MTU of its own where none is given.
					if f == Ifupdown2 && n.MTU == 0 && n.Underlay.MTU == 0 {
						n.MTU = ifupdown2MTU - config.Overhead(n.V6())
					}
					if n.Name == "c" {
						n.Name = "vxlan3" // neither link nor bridge says "c"
					}
				}
				got, files, r := exported(t, cfg, f)
				if f == Networkd || f == Netplan { // by the order of their files
					slices.SortFunc(got.Networks, func(a, b config.Network) int { return int(a.VNI) - int(b.VNI) })
					slices.SortFunc(want.Networks, func(a, b config.Network) int { return int(a.VNI) - int(b.VNI) })
				}
				if d := same(want, got); d != "" {
					t.Errorf("-want +got\n%s\n%s\n%s", d, files[0].Text, r.Config)
				}
			})
		}
	}
}

// TestExportSaysWhatItCannot: a key without an equivalent is a note and a comment.
func TestExportSaysWhatItCannot(t *testing.T) {
	cfg, err := config.Parse("config.yaml", []byte(`
vlan_tags: 1
underlay: {device: eth2, allowed_sources: [192.0.2.0/24], ttl: inherit, tos: 0x10, df: inherit, source_ports: [40000, 50000]}
mss_clamp: auto
networks:
  - {name: mgmt, vni: 236, bridge: br-mgmt, remotes: [192.0.2.12, 192.0.2.13], ageing: 0}
`))
	if err != nil {
		t.Fatal(err)
	}
	for f, wants := range map[Format][]string{
		Ifupdown:  {"mss_clamp", "vlan_tags", "allowed_sources"},
		IPRoute2:  {"mss_clamp"},
		Networkd:  {"mss_clamp", "drop-in"},
		Netplan:   {"mss_clamp", "ttl inherit", "df inherit", "one remote"},
		Ifupdown2: {"mss_clamp", "ttl inherit", "tos", "df", "source_ports", "4096", "vxlan-local-tunnelip", "udp_checksum", "mtu 1446"},
	} {
		files, notes, err := Export(cfg, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range wants {
			if !slices.ContainsFunc(notes, func(n Note) bool { return strings.Contains(n.Text, w) }) {
				t.Errorf("%s: no note about %s in %v", f, w, notes)
			}
			if !bytes.Contains(files[0].Text, []byte(w)) {
				t.Errorf("%s: no comment about %s in\n%s", f, w, files[0].Text)
			}
		}
	}
	if _, _, err := Export(cfg, "rpm"); err == nil {
		t.Error("export to a format that is none: no error")
	}
}

// TestExportQuotes: a link may be called what a shell would act upon.
func TestExportQuotes(t *testing.T) {
	cfg, err := config.Parse("config.yaml", []byte(`
underlay: {device: "e$(id)"}
networks:
  - {name: mgmt, vni: 236, bridge: "b;reboot", link: "v&x|y", remotes: [192.0.2.12]}
`))
	if err != nil {
		t.Fatal(err)
	}
	got, files, _ := exported(t, cfg, IPRoute2)
	if n := got.Networks[0]; n.Bridge.Name != "b;reboot" || n.Link != "v&x|y" || n.Underlay.Device != "e$(id)" {
		t.Errorf("read back as %q %q %q from\n%s", n.Bridge.Name, n.Link, n.Underlay.Device, files[0].Text)
	}
}

func TestImportErrors(t *testing.T) {
	for name, c := range map[string]struct {
		files tree
		names []string
		from  Format
		want  string
	}{
		"no such file":     {tree{}, []string{"interfaces"}, Auto, "read interfaces: file does not exist"},
		"no usual files":   {tree{}, nil, Netplan, "find files to import from netplan"},
		"no such format":   {tree{}, []string{"x"}, "toml", `import from "toml"`},
		"unknown text":     {tree{"x": "hello\n"}, []string{"x"}, Auto, "tell the format of x"},
		"binary":           {tree{"x": "auto \x00\n"}, []string{"x"}, Auto, "not a text file"},
		"not UTF-8":        {tree{"x": "auto \xff\n"}, []string{"x"}, Auto, "not a text file"},
		"sourced itself":   {tree{"/i": "source /i\n"}, []string{"/i"}, Ifupdown, "nested too deeply"},
		"sourced, missing": {tree{"/i": "source /x/*\n"}, []string{"/i"}, Ifupdown, ErrNothing.Error()},
		"no networks":      {tree{"i": "auto lo\niface lo inet loopback\n"}, []string{"i"}, Auto, ErrNothing.Error()},
		"large":            {tree{"i": strings.Repeat("#\n", maxFile)}, []string{"i"}, Ifupdown, "larger than"},
		"outside a stanza": {tree{"i": "address 192.0.2.1\n"}, []string{"i"}, Ifupdown, `i:1: "address" stands in no stanza`},
		"broken shell":     {tree{"s.sh": "ip link add (\n"}, []string{"s.sh"}, Auto, "s.sh:1"},
		"broken unit":      {tree{"a.netdev": "Name=x\n"}, []string{"a.netdev"}, Auto, "a.netdev:1"},
		"broken YAML":      {tree{"a.yaml": "network: {\n"}, []string{"a.yaml"}, Auto, "read a.yaml"},
		"deep":             {tree{"s.sh": "ip " + strings.Repeat("$(", 100000)}, []string{"s.sh"}, Auto, "nested too deeply"},
		"endless":          {tree{"s.sh": "f() { ip link; f; f; }\nf\n"}, []string{"s.sh"}, Auto, errSteps.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Import(c.names, ImportOptions{From: c.from, Files: c.files})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestBraces: what a few characters can ask for is bounded.
func TestBraces(t *testing.T) {
	for _, text := range []string{
		"for i in {1..1000000000}; do ip link add v$i type vxlan id $i dev eth2; done\n",
		"ip link add {a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b} type vxlan id 1\n",
		"A={1..99999999}; ip link add v type vxlan id $A\n",
	} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := Import([]string{"s.sh"}, ImportOptions{Files: tree{"s.sh": text}})
			if !errors.Is(err, ErrNothing) {
				t.Errorf("%s: error %v", text, err)
			}
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("still at it after 20 s: %s", text)
		}
	}
}

// FuzzImport: no input makes Import panic, hang, or write a config that does not validate, and what it wrote exports and comes back.
func FuzzImport(f *testing.F) {
	for i, format := range Formats {
		list, _ := samples(f, format)
		for _, s := range list {
			for _, file := range s.order {
				f.Add(uint8(i), s.files[file])
			}
		}
	}
	names := []string{"interfaces", "interfaces", "a.yaml", "a.netdev", "a.sh"}
	f.Fuzz(func(t *testing.T, kind uint8, text string) {
		i := int(kind) % len(Formats)
		in := tree{names[i]: text}
		if Formats[i] == Networkd { // a pair of files in one text
			if a, b, ok := strings.Cut(text, "[Match]"); ok {
				in = tree{"a.netdev": a, "a.network": "[Match]" + b}
			}
		}
		list := make([]string, 0, len(in))
		for n := range in {
			list = append(list, n)
		}
		slices.Sort(list)
		r, err := Import(list, ImportOptions{From: Formats[i], Files: in, Device: "eth2"})
		if err != nil {
			if strings.Contains(err.Error(), "write a config") {
				t.Fatalf("%v\nfrom\n%s", err, text)
			}
			return
		}
		cfg, err := config.Parse("config.yaml", r.Config)
		if err != nil {
			t.Fatalf("%v\n%s\nfrom\n%s", err, r.Config, text)
		}
		again, files, _ := exported(t, cfg, IPRoute2)
		for i := range again.Networks { // names follow from links
			if i < len(cfg.Networks) {
				again.Networks[i].Name = cfg.Networks[i].Name
			}
		}
		if d := same(cfg, again); d != "" {
			t.Fatalf("exported to iproute2 and back:\n%s\n%s\nfrom\n%s", d, files[0].Text, text)
		}
	})
}

func ExampleNote() {
	fmt.Println(Note{Place{"interfaces", 12}, "no equivalent: bridge-waitport 0"})
	// Output: interfaces:12: no equivalent: bridge-waitport 0
}
