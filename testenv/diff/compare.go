// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Difference is a frame that came out more often in one topology than in the other.
type Difference struct {
	Norm
	K, X int // how often
}

// Compare returns where two runs of the same batch differ, in the order of time.
func Compare(k, x []Norm) []Difference {
	seen := map[string]*Difference{}
	count := func(ns []Norm, inX int) {
		for _, n := range ns {
			key := n.key()
			d := seen[key]
			if d == nil {
				d = &Difference{Norm: n}
				seen[key] = d
			}
			d.X += inX
			d.K += 1 - inX
		}
	}
	count(k, 0)
	count(x, 1)
	out := []Difference{}
	for d := range maps.Values(seen) {
		if d.K != d.X {
			out = append(out, *d)
		}
	}
	slices.SortFunc(out, func(a, b Difference) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.key(), b.key()))
	})
	return out
}

// Mutants are what frames could have become on a bad path, by its name.
func Mutants(frames []Norm, r *rand.Rand) map[string][]Norm {
	i := r.IntN(len(frames))
	for len(frames[i].Data) == 0 {
		i = r.IntN(len(frames))
	}
	flipped, moved := frames[i], frames[i]
	b := []byte(flipped.Data)
	b[r.IntN(len(b))] ^= 1 << r.IntN(8)
	flipped.Data = string(b)
	moved.At.Host += "x"
	with := func(n ...Norm) []Norm { return slices.Concat(frames[:i], n, frames[i+1:]) }
	return map[string][]Norm{
		"a changed bit": with(flipped), "a lost frame": with(), "a frame that came twice": with(frames[i], frames[i]), "a frame delivered elsewhere": with(moved),
	}
}

// CompareSets returns the lines that only one of them has, with a sign: - is K's alone, + is X's.
func CompareSets(k, x []string) []string {
	var out []string
	for _, s := range k {
		if !slices.Contains(x, s) {
			out = append(out, "- "+s)
		}
	}
	for _, s := range x {
		if !slices.Contains(k, s) {
			out = append(out, "+ "+s)
		}
	}
	return out
}

// Flows watches that a flow keeps its outer source port: another port is
// another queue and another path, on which packets overtake each other.
type Flows map[string]map[uint16]bool

// Add looks at what a host put on the underlay.
func (f Flows) Add(ns []Norm) {
	for _, n := range ns {
		if !n.Out || n.Port == 0 {
			continue
		}
		if key, ok := flowOf(n); ok {
			if f[key] == nil {
				f[key] = map[uint16]bool{}
			}
			f[key][n.Port] = true
		}
	}
}

// Spread lists flows with more than most ports.
func (f Flows) Spread(most int) []string {
	var out []string
	for key, ports := range f {
		if len(ports) > most {
			out = append(out, fmt.Sprintf("%s: %v", key, slices.Sorted(maps.Keys(ports))))
		}
	}
	slices.Sort(out)
	return out
}

// flowOf names the inner flow of a VXLAN packet that is plain TCP or UDP.
func flowOf(n Norm) (string, bool) {
	b := []byte(n.Data)
	ls, _, _, _ := walk(b, -1)
	if len(ls) != 3 || ls[1].kind != 'u' || ls[2].off != ls[1].off+udpHdr+vxlanHdr+ethHdr { // a tag is part of the hash
		return "", false
	}
	in := ls[2]
	var addrs, ports []byte
	var label uint32
	var proto byte
	if in.kind == 4 {
		if len(b) < in.off+24 || b[in.off] != 0x45 || be.Uint16(b[in.off+6:])&0x3fff != 0 {
			return "", false
		}
		proto, addrs, ports = b[in.off+9], b[in.off+12:in.off+20], b[in.off+20:in.off+24]
	} else {
		if len(b) < in.off+44 {
			return "", false
		}
		label = be.Uint32(b[in.off:]) & 0xfffff
		proto, addrs, ports = b[in.off+6], b[in.off+8:in.off+40], b[in.off+40:in.off+44]
	}
	if proto != protoTCP && proto != protoUDP {
		return "", false
	}
	// The outer addresses tell copies of a flooded frame apart.
	return fmt.Sprintf("%s outer %x inner %x %x proto %d label %x", n.At, b[26:34], addrs, ports, proto, label), true
}

// Report explains differences frame by frame: what was injected, and where it
// came out in K and in X. started holds the time at which each step was sent.
func Report(steps []Step, k, x Run, most int) string {
	diffs := Compare(k.Frames, x.Frames)
	type cause struct{ only []Difference }
	causes := map[int]*cause{}
	for _, d := range diffs {
		started := k.Started
		if d.X > d.K {
			started = x.Started
		}
		i := attribute(started, d.Time)
		if causes[i] == nil {
			causes[i] = &cause{}
		}
		causes[i].only = append(causes[i].only, d)
	}
	var b strings.Builder
	for n, i := range slices.Sorted(maps.Keys(causes)) {
		if n == most {
			fmt.Fprintf(&b, "... and %d more injected frames with differences\n", len(causes)-n)
			break
		}
		if i >= 0 && i < len(steps) {
			s := steps[i]
			fmt.Fprintf(&b, "frame %d, %s, sent at %s%s\n  %x\n%s", i, s.Kind, s.At, s.Hdr, s.Frame, indent(Decode(s.Frame)))
			for _, line := range spoken(steps[:i], s) {
				fmt.Fprintf(&b, "  its destination was heard before: %s\n", line)
			}
		} else {
			fmt.Fprintf(&b, "frame %d: before the batch, or one of the closing markers\n", i)
		}
		for _, d := range causes[i].only {
			dir := packetTypes[d.Type]
			fmt.Fprintf(&b, "  K %d times, X %d times: at %s, %s, %d bytes %s\n    %x\n", d.K, d.X, d.At, dir, len(d.Data), d.Note, d.Data)
		}
		for _, side := range []struct {
			name string
			run  Run
		}{{"K", k}, {"X", x}} {
			var at []string
			for _, f := range side.run.Frames {
				if attribute(side.run.Started, f.Time) == i {
					at = append(at, fmt.Sprintf("%s %s (%d)", f.At, packetTypes[f.Type], len(f.Data)))
				}
			}
			fmt.Fprintf(&b, "  in %s it came by: %s\n", side.name, strings.Join(at, ", "))
		}
	}
	return b.String()
}

// Related are the steps that could be enough to show the difference at step i:
// it alone, or with all before it that have to do with the addresses in it.
func Related(steps []Step, i int) [][]Step {
	b, _, ok := inner(steps[i])
	if !ok {
		return [][]Step{{steps[i]}}
	}
	var with []Step
	for _, s := range steps[:i] {
		p, _, ok := inner(s)
		if ok && (string(p[6:12]) == string(b[:6]) || string(p[6:12]) == string(b[6:12])) {
			with = append(with, s)
		}
	}
	return [][]Step{{steps[i]}, append(with, steps[i])}
}

// First is the first step to which Compare's differences belong, -1 if there is none.
func First(steps []Step, k, x Run) int {
	first := -1
	for _, d := range Compare(k.Frames, x.Frames) {
		started := k.Started
		if d.X > d.K {
			started = x.Started
		}
		if i := attribute(started, d.Time); i >= 0 && i < len(steps) && (first < 0 || i < first) {
			first = i
		}
	}
	return first
}

// spoken lists the last frames before a step that came from its inner destination.
func spoken(steps []Step, s Step) []string {
	_, dst, ok := inner(s)
	if !ok {
		return nil
	}
	var out []string
	for i, p := range slices.Backward(steps) {
		b, _, ok := inner(p)
		if ok && string(b[6:12]) == dst {
			out = append(out, fmt.Sprintf("frame %d, %s, at %s: %x", i, p.Kind, p.At, p.Frame[:min(len(p.Frame), 120)]))
			if len(out) == 4 {
				break
			}
		}
	}
	return out
}

// inner is a step's frame without an outer header, and its destination.
func inner(s Step) (b []byte, dst string, ok bool) {
	b = s.Frame
	if s.At.underlay() {
		ls, _, _, _ := walk(b, -1)
		switch {
		case len(ls) > 1 && ls[1].kind == 'u':
			b = b[ls[1].off+udpHdr+vxlanHdr:]
		case len(ls) > 0 && ls[0].kind == 4 && be.Uint16(b[ls[0].off+6:])&0x1fff == 0: // the first fragment
			b = b[min(len(b), ls[0].off+int(b[ls[0].off]&15)*4+udpHdr+vxlanHdr):]
		default:
			return nil, "", false
		}
	}
	if len(b) < ethHdr {
		return nil, "", false
	}
	return b, string(b[:6]), true
}

// attribute finds the step that was being sent at a time.
func attribute(started []time.Time, at time.Time) int {
	i, found := slices.BinarySearchFunc(started, at, time.Time.Compare)
	if !found {
		i--
	}
	return i
}

func (h VNetHdr) String() string {
	if h == (VNetHdr{}) {
		return ""
	}
	return fmt.Sprintf(", %+v", struct {
		Partial   bool
		GSO       uint8
		Size      uint16
		CsumStart uint16
	}{h.partial(), h.GSOType, h.GSOSize, h.CsumStart})
}

// Decode is a frame for people.
func Decode(b []byte) string {
	return gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: false, NoCopy: true}).String()
}

func indent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if len(line) > 300 {
			line = line[:300] + "...\n"
		}
		b.WriteString("    " + line)
	}
	return b.String()
}
