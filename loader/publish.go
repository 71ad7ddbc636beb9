// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/vxbpf/vxbpf/loader/config"
)

func (n *network) mode() config.Datapath {
	if n.fallback != "" {
		return config.Kernel
	}
	return config.TC
}

// mode is the network's, with XDP where that decapsulates.
func (d *Daemon) mode(n *network) config.Datapath {
	if n.fallback == "" && d.onXDP(n) {
		return config.XDP
	}
	return n.mode()
}

// publish writes down what status shows.
func (d *Daemon) publish() {
	d.state.Attach = ""
	if d.at != nil {
		d.state.Attach = d.at.name()
	}
	if !slices.Equal(d.xdpStates, d.state.XDP) {
		d.state.XDP, d.dirty = slices.Clone(d.xdpStates), true
	}
	nets := []NetworkState{}
	for _, n := range d.nets {
		s := NetworkState{
			Name: n.cfg.Name, ID: n.id, VNI: n.cfg.VNI, Port: n.cfg.Underlay.Port, Bridge: n.cfg.Bridge.Name, Link: n.cfg.Link,
			Local: n.local, Device: n.cfg.Underlay.Device, Wanted: n.cfg.Datapath, Mode: d.mode(n), Reason: n.fallback, Ports: []PortState{},
		}
		if s.Reason == "" {
			s.Reason = n.off
		}
		if dev, ok := d.view.linkByName(n.cfg.Underlay.Device); ok && s.Reason == "" {
			s.Reason = d.refused[hook{"vx_tc_decap", dev.Index, false}]
		}
		if n.fallback == "" {
			for _, l := range d.view.ports(n) {
				ok, why := d.view.fastPort(n, l)
				if ok && n.off != "" {
					ok, why = false, n.off
				}
				if r := d.refused[hook{"vx_tc_encap", l.Index, false}]; ok && r != "" {
					ok, why = false, r
				}
				s.Ports = append(s.Ports, PortState{Name: l.Name, Index: l.Index, Fast: ok, Reason: why})
			}
		}
		s.Unchecked = n.from.why
		if n.id == 0 {
			s.Unchecked = cmp.Or(d.unchecked, "allowed_sources: any")
		}
		s.Sources = []string{}
		for _, p := range n.from.prefixes {
			if p.IsSingleIP() {
				s.Sources = append(s.Sources, p.Addr().String())
			} else {
				s.Sources = append(s.Sources, p.String())
			}
		}
		nets = append(nets, s)
	}
	if !slices.EqualFunc(nets, d.state.Networks, func(a, b NetworkState) bool {
		pa, pb := a.Ports, b.Ports
		a.Ports, b.Ports = nil, nil
		return a.equal(b) && slices.Equal(pa, pb)
	}) {
		d.state.Networks = nets
		d.dirty = true
	}
}

func (s NetworkState) equal(o NetworkState) bool {
	return s.Name == o.Name && s.ID == o.ID && s.VNI == o.VNI && s.Port == o.Port && s.Bridge == o.Bridge && s.Link == o.Link &&
		s.Local == o.Local && s.Device == o.Device && s.Wanted == o.Wanted && s.Mode == o.Mode && s.Reason == o.Reason &&
		s.Unchecked == o.Unchecked && slices.Equal(s.Sources, o.Sources)
}

// State is what the instance would tell status.
func (d *Daemon) State() State { return d.state }

func (d *Daemon) summary() string {
	fast := len(d.fast())
	s := strconv.Itoa(len(d.nets)) + " networks, " + strconv.Itoa(fast) + " on BPF"
	if fast > 0 {
		s += " (" + d.state.Attach + ")"
	}
	for _, what := range d.state.Degradations() {
		s += ", degraded: " + what.String()
	}
	return s
}

func (d *Daemon) devName(ifindex int) string {
	if l, ok := d.view.links[ifindex]; ok {
		return l.Name
	}
	return strconv.Itoa(ifindex)
}
