// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"io"
	"strings"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// cures are what to do about what keeps a network or a port off the fast path:
// the words of the reason in the state file, and the command.
var cures = []struct{ words, fix string }{
	{"filters VLANs", "ip link set {bridge} type bridge vlan_filtering 0"},
	{"isolated from each other", "bridge link set dev {dev} isolated off"},
	{"is locked", "bridge link set dev {dev} locked off"},
	{"not in forwarding state", "bridge link set dev {dev} state 3 (or wait for STP: bridge link show dev {dev})"},
	{"is down", "ip link set {dev} up"},
	{"ageing 0", "ip link set {bridge} type bridge ageing_time 30000"},
	{"bypass_netfilter", "remove the rule (nft list ruleset), or set bypass_netfilter: true for the network and load again"},
	{"carries another tc filter", "tc filter show dev {dev} ingress, and delete what is not needed"},
	{"carries another", "bpftool net show dev {dev}, and detach what is not needed"},
	{"over IPv6, which only the kernel computes", "set udp_checksum: false, if the other hosts take it, and load again"},
	{"sends UDP checksums", "set udp_checksum: false and load again"},
	{"inherits the flow label", "set flow_label to a number and load again"},
	{"is not a port of", "ip link set {link} master {bridge}"},
	{"is gone", "vxbpf load the config again: it makes what is missing"},
	{"VLAN tunnel or a backup port", "bridge link set dev {dev} vlan_tunnel off; ip link set {dev} type bridge_slave nobackup_port"},
	{"datapath: kernel", "set datapath: auto and load again"},
	{"on no link of this host", "ip address add the VTEP's address, or set underlay.local"},
}

func fixesFor(why string, n *loader.NetworkState, port string) []string {
	for _, c := range cures {
		if strings.Contains(why, c.words) {
			dev := port
			// The reason names its device first: "v-mgmt-1 is locked".
			if w := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(why, "bridge "), "vxlan link ")); len(w) > 0 && dev == "" {
				dev = strings.TrimSuffix(w[0], ":")
			}
			return []string{strings.NewReplacer("{dev}", dev, "{bridge}", n.Bridge, "{link}", n.Link).Replace(c.fix)}
		}
	}
	return []string{"vxbpf status"}
}

// advise says why the packet goes where it goes, and what would change that.
func (a *Answer) advise(w *Walk, to location) (why string, fixes []string) {
	n, x := a.net, a.host
	noDaemon := x.daemon == 0
	load := "vxbpf load " + x.state.Config
	why = observe.MeaningOf(w.Why)
	switch w.Why {
	case "fast":
		return "both addresses are where the kernel's tables say, and the packet fits: BPF carries it", []string{}
	case "not_ready", "":
		port := ""
		why = n.Reason
		for _, p := range n.Ports {
			if p.Name == w.Device && !p.Fast && why == "" {
				why, port = p.Reason, p.Name
			}
		}
		if why == "" {
			why = "the daemon keeps " + w.Device + " on the slow path"
			if noDaemon {
				return why + ", or kept it when it ended", []string{load}
			}
		}
		return why, fixesFor(why, n, port)
	case "mtu":
		fixes = []string{}
		if v := w.VTEP; v != nil {
			over := outerL3v4 + ethHdr
			if v.Remote.Is6() {
				over = outerL3v6 + ethHdr
			}
			most := w.Limit
			if w.Size > a.Length { // with the outer header
				most -= over
			}
			why = fmt.Sprintf("%d bytes do not fit into %d: the kernel fragments, or answers \"too big\"", w.Size, w.Limit)
			fixes = append(fixes, fmt.Sprintf("ip link set eth0 mtu %d in the container, or mss_clamp: auto for the network", most),
				fmt.Sprintf("or ip link set %s mtu %d and more, on all hosts and what is between them", n.Device, a.Length-ethHdr+over))
			return why, fixes
		}
		return fmt.Sprintf("%d bytes do not fit into the %d that the port takes: the kernel drops it, or answers \"too big\"", w.Size, w.Limit),
			[]string{fmt.Sprintf("send smaller packets to %s, or raise the port's MTU", a.To.Given)}
	case "no_vtep":
		remote := to.remote.String()
		if w.VTEP != nil {
			remote = w.VTEP.Remote.String()
		}
		return "the kernel names no usable way to VTEP " + remote + ": it routes by itself, or drops",
			[]string{"ip route get " + remote, "ip neigh show " + remote, "ip link show " + n.Device}
	case "src_unknown":
		return a.unknown("source", a.From.MAC, a.source, w.From != nil, load)
	case "dst_unknown":
		return a.unknown("destination", a.To.MAC, to, w.To != nil, load)
	case "src_moved":
		return why + "; from the next packet on the kernel's decision counts. If this repeats, two hosts use " + a.From.MAC.String(),
			[]string{fmt.Sprintf("bridge monitor fdb | grep -i %s (on both hosts: who else has the address?)", a.From.MAC)}
	case "src_static":
		dev := n.Link + " self"
		if w.From != nil && w.From.Kind != fdb.Remote {
			dev = x.device(w.From.Port) + " master"
		}
		return "a static entry says that the source lives elsewhere: the kernel drops the packet, or forwards it without learning",
			[]string{fmt.Sprintf("bridge fdb del %s dev %s (if the entry is out of date)", a.From.MAC, dev)}
	case "no_lease":
		if noDaemon {
			return "a static entry counts only while a daemon vouches for it, and none runs", []string{load}
		}
		return why + "; the daemon renews it each second: is it stuck?", []string{"vxbpf status", "journalctl -u vxbpf"}
	case "dst_aged", "refresh":
		fixes = []string{}
		if noDaemon && w.Why == "dst_aged" {
			fixes = []string{load}
		}
		return why + ". No fix is needed: the next packets from there make it young again", fixes
	case "port_gone":
		return "the port of the destination is gone and no daemon follows the kernel", []string{load}
	case "vlan_tag":
		return "a VLAN tag: what becomes of it is the bridge's to say", []string{"send untagged; or give the VLAN a bridge and a network of its own"}
	case "outer_not_local":
		return fmt.Sprintf("%s sends to another address than this host's VTEP %v", a.source.remote, n.Local), []string{fmt.Sprintf("set the other host's remote to %v", n.Local)}
	case "drop_stranger":
		return "the outer source is no VTEP of the network: the packet dies before the kernel decapsulates it",
			[]string{"if it is one: add it to the network's remotes, or to underlay.allowed_sources, and load again"}
	case "in_order", "bum", "not_ip", "nd", "dst_local", "dst_remote", "port_kind", "aggregate":
		return why + ". No fix is needed: this is how it should be", []string{}
	}
	if strings.HasPrefix(w.Why, "drop_") {
		return why, []string{"vxbpf status"}
	}
	return why, []string{}
}

// unknown: an address that the programs do not know, and perhaps the kernel.
func (a *Answer) unknown(which string, mac fdb.MAC, at location, pending bool, load string) (string, []string) {
	n, x := a.net, a.host
	show := fmt.Sprintf("bridge fdb show | grep -i %s", mac)
	switch {
	case pending:
		return "the entry of the " + which + " was written a moment ago and is being confirmed: ask again", []string{}
	case at.silent || !at.known:
		why := fmt.Sprintf("neither the kernel nor BPF has heard of the %s %s: it has been silent for the ageing time, or is not there; the kernel floods", which, mac)
		fixes := []string{"let it send something: it is known from then on", show + " (here and on the host where it lives)"}
		if vx, ok := x.link(n.Link); ok && vx.VXLAN != nil && !vx.VXLAN.Learning {
			fixes[0] = n.Link + " does not learn: add it to `fdb:` of the network, or look at the control plane (EVPN)"
		}
		return why, fixes
	case x.daemon == 0:
		return fmt.Sprintf("the kernel knows the %s (%v), and no daemon tells the programs", which, at), []string{load}
	case at.bridge.Waiting:
		return fmt.Sprintf("the %s was seen at the locked port %s and is not let in", which, at.port.Name), []string{"bridge fdb replace " + mac.String() + " dev " + at.port.Name + " master static"}
	case at.vxlan.NextHop != 0:
		return fmt.Sprintf("the %s is behind next hop %d, which stands for several VTEPs, or whose device learns: the kernel chooses per flow", which, at.vxlan.NextHop),
			[]string{fmt.Sprintf("ip nexthop show id %d", at.vxlan.NextHop)}
	case at.vxlan.VNI != 0 && at.vxlan.VNI != n.VNI || at.vxlan.Port != 0 && at.vxlan.Port != n.Port || at.vxlan.IfIndex != 0:
		return fmt.Sprintf("the kernel's entry of the %s names another VNI, port or device than the network's", which), []string{show}
	case at.remote.IsValid() && !at.bridge.MAC.IsMulticast() && at.bridge.Link == 0:
		return fmt.Sprintf("%s knows the %s (%v), and the bridge does not (any more): it floods", n.Link, which, at), []string{"let it send something", show}
	}
	for _, p := range n.Ports {
		if p.Index == at.port.Index && !p.Fast {
			return p.Reason, fixesFor(p.Reason, n, p.Name)
		}
	}
	if n.Reason != "" {
		return n.Reason, fixesFor(n.Reason, n, "")
	}
	return fmt.Sprintf("the kernel knows the %s (%v), and the programs do not yet: the daemon is told within milliseconds. If it stays so, the map is full", which, at),
		[]string{"ask again", "vxbpf status"}
}

// Text is the answer for a person.
func (a *Answer) Text(w io.Writer) error {
	var b strings.Builder
	end := func(e Endpoint) string {
		s := e.MAC.String()
		if e.IP.IsValid() {
			s = e.IP.String() + " (" + s + ")"
		}
		return s + ", " + e.Where
	}
	fmt.Fprintf(&b, "network %s, VNI %v, a frame of %d bytes\n  from %s\n  to   %s\n", a.Network, a.VNI, a.Length, end(a.From), end(a.To))
	for _, x := range a.Walks {
		fmt.Fprintf(&b, "\n%s at %s\n", x.Hook, x.Device)
		for _, s := range x.Steps {
			mark := " "
			if s.Ends {
				mark = ">"
			}
			fmt.Fprintf(&b, "%s %s: %s\n", mark, s.Look, s.Found)
		}
		switch {
		case x.NotOurs:
			fmt.Fprintln(&b, "  left alone: the kernel's")
		case x.Reason == bpf.Fast:
			fmt.Fprintln(&b, "  carried by BPF")
		case x.Reason.Drops():
			fmt.Fprintf(&b, "  DROPPED: %s\n", x.Why)
		default:
			fmt.Fprintf(&b, "  to the kernel: %s\n", x.Why)
		}
	}
	fmt.Fprintf(&b, "\n%s: %s\n", verdictWord(a), a.Why)
	for _, f := range a.Fixes {
		fmt.Fprintf(&b, "  fix: %s\n", f)
	}
	for _, n := range a.Notes {
		fmt.Fprintf(&b, "  note: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func verdictWord(a *Answer) string {
	switch {
	case a.Fate == bpf.FateFast.String() && a.Reason == "fast":
		return "fast"
	case a.Fate == bpf.FateFast.String():
		return "fast from the vxlan device on (" + a.Reason + ")"
	case a.Fate == bpf.FateDrop.String():
		return "dropped (" + a.Reason + ")"
	}
	return "slow path (" + a.Reason + ")"
}
