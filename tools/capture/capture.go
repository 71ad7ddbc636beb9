// SPDX-License-Identifier: Apache-2.0

// Package capture says which packets at vxbpf's hooks are wanted and writes them
// down: as pcapng, as lines for a person, or as JSON. It gets them from
// loader.Capture and attaches nothing itself.
package capture

import (
	"fmt"
	"strings"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
)

// HookName is what a hook is called here: as in `vxbpf status`, and "moved" for
// egress of the vxlan device.
func HookName(h uint8) string {
	if h == bpf.CaptureMoved {
		return "moved"
	}
	return bpf.Hook(h).String()
}

// Hooks are all hooks by name.
func Hooks() map[string]bpf.Hook {
	all := map[string]bpf.Hook{"moved": bpf.CaptureMoved}
	for h := range bpf.Hook(bpf.HookMax) {
		if n := h.String(); !strings.HasPrefix(n, "hook_") {
			all[n] = h
		}
	}
	return all
}

// comesOuter: packets come to this hook with their outer header on.
func comesOuter(h uint8) bool { return strings.HasSuffix(HookName(h), "decap") }

// isXDP: the program there is one of XDP, not of tc.
func isXDP(h uint8) bool { return strings.HasPrefix(HookName(h), "xdp") }

// Reason is why the packet went where it did, "" where nobody judged.
func Reason(p *loader.Captured) string {
	if p.Hook == bpf.CaptureMoved {
		return ""
	}
	return bpf.Reason(p.Reason).String()
}

// Rule says which packets are wanted, besides what the programs ask themselves.
type Rule struct {
	Any   Filter // of the inner frame or the outer packet
	Inner Filter
	Outer Filter
}

// ParseRule compiles the three; "" matches everything.
func ParseRule(anywhere, inner, outer string) (r Rule, err error) {
	for _, f := range []struct {
		to   *Filter
		expr string
	}{{&r.Any, anywhere}, {&r.Inner, inner}, {&r.Outer, outer}} {
		if *f.to, err = ParseFilter(f.expr); err != nil {
			return r, err
		}
	}
	return r, nil
}

// part is a frame with its length on the wire.
type part struct {
	data   []byte
	length int
}

// parts takes a packet apart: the inner frame, and the outer packet if there is
// one, as it came or as it was sent on.
func parts(p *loader.Captured) (inner, outer part) {
	in, out := part{p.In, int(p.LenIn)}, part{p.Out, int(p.LenOut)}
	if comesOuter(p.Hook) {
		f := parse(in.data, in.length, p.Vlan)
		if off, _, ok := f.tunnel(); ok {
			return part{in.data[off:], in.length - off}, in
		}
		return out, in // cut short of the inner frame: what was sent on is it
	}
	if len(out.data) > 0 && out.length != in.length {
		return in, out
	}
	return in, part{}
}

// Match asks all filters. One on the outer packet does not match where there is none.
func (r Rule) Match(p *loader.Captured) bool {
	if r.Any.Empty() && r.Inner.Empty() && r.Outer.Empty() {
		return true
	}
	inner, outer := parts(p)
	vni := uint32(p.Network.VNI)
	match := func(f Filter, x part, vlan uint16) bool {
		return len(x.data) > 0 && f.Match(x.data, x.length, vlan, vni)
	}
	in := func(f Filter) bool {
		vlan := p.Vlan
		if comesOuter(p.Hook) {
			vlan = 0 // the tag was the outer packet's
		}
		return match(f, inner, vlan)
	}
	out := func(f Filter) bool { return match(f, outer, 0) }
	return (r.Any.Empty() || in(r.Any) || out(r.Any)) && (r.Inner.Empty() || in(r.Inner)) && (r.Outer.Empty() || out(r.Outer))
}

// Sink takes the packets that are wanted.
type Sink interface {
	Packet(p *loader.Captured) error
	// Idle is called when there are none for a moment.
	Idle() error
	// Close writes what is left, with how many packets were lost before they came here.
	Close(lost uint64) error
}

// Limits end a capture.
type Limits struct {
	Packets  uint64        // 0: none
	Duration time.Duration // 0: none
}

// describe is the line that stands with a packet in a file: key=value, for tools too.
func describe(p *loader.Captured) string {
	var b strings.Builder
	name := p.Network.Name
	if name == "" {
		name = fmt.Sprintf("#%d", p.Net)
	}
	fmt.Fprintf(&b, "network=%s vni=%v hook=%s dev=%s fate=%v", name, p.Network.VNI, HookName(p.Hook), p.Device, bpf.Fate(p.Fate))
	if r := Reason(p); r != "" {
		fmt.Fprintf(&b, " reason=%s", r)
	}
	if p.Vlan != 0 {
		fmt.Fprintf(&b, " vlan=%d", p.Vlan&0xfff)
	}
	if p.Segments > 1 {
		fmt.Fprintf(&b, " segments=%d", p.Segments)
	}
	return b.String()
}
