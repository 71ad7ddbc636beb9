// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"strconv"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Tables is what Live reads; *kernel.Handle is one.
type Tables interface {
	Links() ([]kernel.Link, error)
	Addresses() ([]kernel.Address, error)
	FDB() ([]kernel.FDBEntry, error)
}

// Live imports what runs in the network namespace of t.
func Live(t Tables, o ImportOptions) (*Result, error) {
	links, err := t.Links()
	if err != nil {
		return nil, err
	}
	addresses, err := t.Addresses()
	if err != nil {
		return nil, err
	}
	entries, err := t.FDB()
	if err != nil {
		return nil, err
	}
	h := newHost(nil)
	h.live(links, addresses, entries)
	return h.build("the running host", o.Device)
}

func (h *host) live(links []kernel.Link, addresses []kernel.Address, entries []kernel.FDBEntry) {
	byIndex := map[int]kernel.Link{}
	for _, l := range links {
		byIndex[l.Index] = l
	}
	for _, l := range links {
		at := Place{File: "live, " + l.Name}
		switch {
		case l.VXLAN != nil:
			h.liveVXLAN(l, byIndex, at)
		case l.Bridge != nil:
			b := h.bridge(l.Name, at)
			b.set.put("stp", strconv.FormatBool(l.Bridge.STP), at)
			b.time("forward_delay", seconds(l.Bridge.ForwardDelay), at)
			if l.Bridge.Ageing != config.DefaultAgeing {
				b.time("ageing", seconds(l.Bridge.Ageing), at)
			}
			if l.Bridge.VLANFiltering {
				b.note(at, "no equivalent: it filters VLANs; such a bridge stays on the kernel's path")
			}
			if l.Bridge.GroupFwdMask != 0 {
				b.note(at, "no equivalent: group_fwd_mask %#x", l.Bridge.GroupFwdMask)
			}
		default:
			h.other(l.Name).mtu = l.MTU
		}
	}
	for _, l := range links {
		if m := byIndex[l.Master]; m.Bridge != nil && l.VXLAN == nil && l.Kind != "veth" && l.Kind != "tun" {
			h.bridge(m.Name, Place{}).port(l.Name, Place{File: "live, " + l.Name})
		}
	}
	for _, a := range addresses {
		if l := byIndex[a.Link]; a.LinkLocal() && a.Prefix.Addr().Is6() {
			continue // the kernel's own
		} else if l.Name != "lo" {
			h.address(l.Name, a.Prefix.String(), Place{File: "live, " + l.Name})
		}
	}
	for _, e := range entries {
		h.liveEntry(e, byIndex[e.Link])
	}
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

func (h *host) liveVXLAN(l kernel.Link, byIndex map[int]kernel.Link, at Place) {
	v := h.vxlan(l.Name, at)
	x := l.VXLAN
	v.maker = "live"
	switch {
	case x.External:
		v.skip = "it carries every VNI (external), and vxbpf wants one link per VNI"
	case x.GBP, x.GPE:
		v.skip = "it speaks gbp or gpe, extensions that vxbpf does not"
	}
	v.set.put("vni", x.VNI.String(), at)
	v.set.put("port", strconv.Itoa(int(x.Port)), at)
	device, ok := byIndex[x.Device]
	if ok {
		v.set.put("device", device.Name, at)
	}
	if x.Local.IsValid() {
		v.set.put("local", x.Local.String(), at)
	}
	if x.Group.IsValid() {
		v.remote(x.Group.String(), at)
	}
	switch {
	case x.TTLInherit:
		v.set.put("ttl", "inherit", at)
	case x.TTL != 0:
		v.set.put("ttl", strconv.Itoa(x.TTL), at)
	}
	if x.TOS != 0 {
		v.tos(fmt.Sprintf("0x%02x", x.TOS), at)
	}
	if df := []string{"", "set", "inherit"}; x.DF > 0 && x.DF < len(df) {
		v.set.put("df", df[x.DF], at)
	}
	if x.FlowLabel != 0 {
		v.set.put("flow_label", strconv.Itoa(int(x.FlowLabel)), at)
	}
	if x.SrcLow < x.SrcHigh {
		v.set.put("source_ports", fmt.Sprintf("[%d, %d]", x.SrcLow, x.SrcHigh), at)
	}
	if !x.Learning {
		v.set.put("learning", "false", at)
	}
	if x.Ageing != config.DefaultAgeing {
		v.set.put("ageing", seconds(x.Ageing), at)
	}
	if x.V6() {
		v.set.put("udp_checksum", strconv.FormatBool(!x.UDPZeroCsum6TX), at)
	} else if !x.UDPCsum {
		v.set.put("udp_checksum", "false", at)
	}
	if !ok || l.MTU != device.MTU-config.Overhead(x.V6()) {
		v.set.put("mtu", strconv.Itoa(l.MTU), at)
	}
	for _, o := range []struct {
		on   bool
		what string
	}{
		{x.Proxy, "proxy"}, {x.RSC, "rsc"}, {x.L2Miss, "l2miss"}, {x.L3Miss, "l3miss"}, {x.RemCsum, "remote checksum offload"}, {x.VNIFilter, "vnifilter"},
		{x.LabelInherit, "flowlabel inherit"}, {x.MaxAddresses != 0, "maxaddress"}, {x.NoLocalBypass, "nolocalbypass"},
	} {
		if o.on {
			v.note(at, "no equivalent: %s", o.what)
		}
	}
	if m, ok := byIndex[l.Master]; ok {
		v.master = m.Name
	}
	if !l.Up {
		v.note(at, "it is down now; vxbpf sets it up")
	}
	if p := l.Port; p != nil {
		for _, o := range []struct {
			on   bool
			what string
		}{
			{p.Isolated, "isolated"}, {p.Hairpin, "hairpin"}, {!p.Learning, "learning off at the bridge port"}, {!p.UnicastFlood, "flood off"},
			{p.Locked, "locked"}, {p.NeighSuppress, "neigh_suppress"}, {p.VLANTunnel, "vlan_tunnel"}, {p.BackupPort != 0, "a backup port"},
		} {
			if o.on {
				v.note(at, "no equivalent: bridge port option %s; vxbpf leaves it as found", o.what)
			}
		}
	}
}

// liveEntry takes what was configured, and leaves what the kernel or a control plane has learnt.
func (h *host) liveEntry(e kernel.FDBEntry, l kernel.Link) {
	v := h.findVXLAN(l.Name)
	if v == nil || !e.Self || !e.Static && !e.MAC.IsZero() || !e.Dst.IsValid() && e.NextHop == 0 {
		return
	}
	at := v.at
	switch {
	case e.Extern:
		v.note(at, "%s -> %s comes from a control plane, which goes on writing it: not in the config", e.MAC, e.Dst)
	case e.NextHop != 0:
		v.note(at, "no equivalent: %s goes to next hop %d", e.MAC, e.NextHop)
	case e.VNI != 0 || e.Port != 0 || e.IfIndex != 0 && e.IfIndex != l.VXLAN.Device:
		v.note(at, "no equivalent: %s -> %s with a VNI, port or device of its own", e.MAC, e.Dst)
	case e.MAC.IsMulticast():
		v.note(at, "no equivalent: %s -> %s, an entry of a group address", e.MAC, e.Dst)
	default:
		v.static(e.MAC.String(), e.Dst.String(), at)
	}
}
