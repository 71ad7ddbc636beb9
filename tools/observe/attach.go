// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"cmp"
	"slices"
	"strings"

	"github.com/vxbpf/vxbpf/loader"
)

// Attachment is one place where a program of this instance is, or should be.
type Attachment struct {
	Device    string   `json:"device"`
	Index     int      `json:"ifindex"`
	Direction string   `json:"direction"` // ingress, egress
	Program   string   `json:"program"`
	ID        uint32   `json:"id"`  // of the program; 0: missing
	Tag       string   `json:"tag"` // of its instructions
	Mode      string   `json:"mode"`
	Networks  []string `json:"networks"`
	// Runs and RunTime count while kernel.bpf_stats_enabled is 1.
	Runs    uint64  `json:"runs"`
	RunTime float64 `json:"run_seconds"`
	// State is "attached"; "missing": the device is there and the program is
	// not; "stale": the device that it was attached to is gone.
	State string `json:"state"`
}

func (s *Snapshot) mode(xdp bool) string {
	if xdp {
		return "xdp"
	}
	return s.State.Attach
}

// Attachments lists where programs are, and where they are missed.
func (s *Snapshot) Attachments(o Options) ([]Attachment, error) {
	out := []Attachment{}
	have, err := loader.Attachments(o.Options, s.State)
	if err != nil {
		return nil, err
	}
	type place struct {
		program, direction string
		index              int
	}
	wanted := map[place][]string{}
	want := func(network, program, direction string, index int) {
		p := place{program, direction, index}
		wanted[p] = append(wanted[p], network)
	}
	decap := map[int]bool{} // devices where vx_tc_decap looks at the networks on the kernel path too
	for _, n := range s.State.Networks {
		if l, ok := s.link(n.Device); ok && s.Counts[n.Name] != nil {
			decap[l.Index] = true
		}
	}
	for _, n := range s.State.Networks {
		if s.Counts[n.Name] == nil {
			if l, ok := s.link(n.Device); ok && n.ID != 0 {
				want(n.Name, map[bool]string{true: "vx_tc_decap", false: "vx_tc_guard"}[decap[l.Index]], "ingress", l.Index)
			}
			continue
		}
		for _, p := range s.Ports {
			if p.Network != n.Name {
				continue
			}
			if _, there := s.links[p.Index]; !there {
				continue
			}
			switch p.Role {
			case "port":
				want(n.Name, "vx_tc_encap", "ingress", p.Index)
			case "bridge":
				want(n.Name, "vx_tc_encap", "egress", p.Index)
			case "vxlan":
				want(n.Name, "vx_tc_deliver", "ingress", p.Index)
				want(n.Name, "vx_tc_moved", "egress", p.Index)
			}
		}
		if l, ok := s.link(n.Device); ok {
			want(n.Name, "vx_tc_decap", "ingress", l.Index)
		}
	}
	for _, x := range s.State.XDP {
		l, ok := s.link(x.Device)
		if !ok || x.Program == "" {
			continue
		}
		for _, n := range s.State.Networks {
			if n.ID != 0 && (n.Device == x.Device || slices.ContainsFunc(n.Ports, func(p loader.PortState) bool { return p.Name == x.Device })) {
				want(n.Name, x.Program, "ingress", l.Index)
			}
		}
	}
	for _, a := range have {
		p := place{a.Program, a.Direction, a.Index}
		row := Attachment{Device: s.name(a.Index), Index: a.Index, Direction: a.Direction, Program: a.Program, ID: a.ID, Tag: a.Tag,
			Mode: s.mode(a.XDP), Runs: a.Runs, RunTime: a.RunTime.Seconds(), State: "attached", Networks: wanted[p]}
		if _, there := s.links[a.Index]; !there || !a.Attached {
			row.State = "stale"
		} else {
			delete(wanted, p)
		}
		if row.Networks == nil {
			row.Networks = []string{}
		}
		out = append(out, row)
	}
	for p, networks := range wanted {
		out = append(out, Attachment{Device: s.name(p.index), Index: p.index, Direction: p.direction, Program: p.program,
			Mode: s.mode(strings.HasPrefix(p.program, "vx_xdp_")), State: "missing", Networks: networks})
	}
	slices.SortFunc(out, func(a, b Attachment) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Program, b.Program))
	})
	return out, nil
}
