// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"mvdan.cc/sh/v3/syntax"

	"github.com/vxbpf/vxbpf/loader/config"
)

// OutFile is one file of an export.
type OutFile struct {
	// Path where the tool looks for it.
	Path string
	Text []byte
	// Script: to be run, not read.
	Script bool
}

// Export writes the networks of cfg as files of another tool: what `vxbpf load`
// would make, made by the kernel alone. The notes tell what those files cannot
// say; they are comments there, too.
func Export(cfg *config.Config, to Format) ([]OutFile, []Note, error) {
	e := &exporter{cfg: cfg}
	e.features()
	switch to {
	case Ifupdown:
		return e.ifupdown(), e.notes, nil
	case Ifupdown2:
		return e.ifupdown2(), e.notes, nil
	case Netplan:
		return e.netplan(), e.notes, nil
	case Networkd:
		return e.networkd(), e.notes, nil
	case IPRoute2:
		return e.iproute2(), e.notes, nil
	}
	return nil, nil, fmt.Errorf("export to %q: want one of %s", to, formatList())
}

type exporter struct {
	cfg   *config.Config
	notes []Note
	heads int // files begun
}

func (e *exporter) note(format string, args ...any) {
	n := Note{Place{File: e.cfg.File}, fmt.Sprintf(format, args...)}
	if !slices.Contains(e.notes, n) {
		e.notes = append(e.notes, n)
	}
}

// features are what only vxbpf has.
func (e *exporter) features() {
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		if outerV6(n) && !n.Group.IsValid() && !n.Underlay.Local.IsValid() && len(n.Remotes) == 0 {
			e.note("network %s: nothing but its entries says that the underlay is IPv6; add local, or the link is made for IPv4", n.Name)
		}
		if n.VLANTags > 0 && n.MTU == 0 && n.Underlay.MTU == 0 {
			e.note("network %s: vlan_tags has no equivalent, and its MTU is the kernel's, without room for tags; give containers that send tags %d bytes less", n.Name, 4*n.VLANTags)
		}
		if n.Sources.Given && !n.Sources.Any {
			e.note("network %s: allowed_sources has no equivalent; the kernel takes packets from any sender, so filter UDP port %d by source", n.Name, n.Underlay.Port)
		}
		if n.MSSClamp != config.MSSOff {
			e.note("network %s: mss_clamp has no equivalent; containers with a larger MTU than the network's need it, or a smaller MTU", n.Name)
		}
	}
}

// head is the comment at the top of each file; the first has the notes of all.
func (e *exporter) head(b *bytes.Buffer) {
	fmt.Fprintf(b, "# Written by vxbpf export from %s: plain kernel VXLAN, as it is after vxbpf unload.\n", comment(e.cfg.File))
	if e.heads++; e.heads == 1 && len(e.notes) > 0 {
		b.WriteString("# Not as vxbpf has it:\n")
		for _, n := range e.notes {
			fmt.Fprintf(b, "#   %s\n", comment(n.Text))
		}
	}
}

// outerV6: the outer packets are IPv6.
func outerV6(n *config.Network) bool { return n.V6() }

// sh quotes a name for a shell: a link may be called almost anything.
func sh(name string) string {
	q, err := syntax.Quote(name, syntax.LangPOSIX)
	if err != nil {
		return "''" // config.Parse lets no such name pass
	}
	return q
}

// mtu of vxlan link and bridge: 0 where the tool comes to the same.
func (e *exporter) mtu(n *config.Network) int {
	if n.MTU == 0 && n.Underlay.MTU != 0 {
		over, _ := n.Overhead(outerV6(n))
		return n.Underlay.MTU - over
	}
	return n.MTU
}

// noChecksum: links made by vxbpf send none over IPv4 unless told.
func noChecksum(n *config.Network) bool {
	c := n.Underlay.UDPChecksum
	if outerV6(n) {
		return c != nil && !*c
	}
	return c == nil || !*c
}

// vxlanOptions are those of `ip link add ... type vxlan`.
func vxlanOptions(n *config.Network) string {
	u := n.Underlay
	o := []string{"id " + n.VNI.String(), "dev " + sh(u.Device)}
	if n.Group.IsValid() {
		o = append(o, "group "+n.Group.String())
	}
	if r := firstRemote(n); r.IsValid() {
		o = append(o, "remote "+r.String())
	}
	if u.Local.IsValid() {
		o = append(o, "local "+u.Local.String())
	}
	switch {
	case u.TTLInherit:
		o = append(o, "ttl inherit")
	case u.TTL != 0:
		o = append(o, "ttl "+strconv.Itoa(u.TTL))
	}
	switch {
	case u.TOSInherit:
		o = append(o, "tos inherit")
	case u.TOS != 0:
		o = append(o, fmt.Sprintf("tos 0x%02x", u.TOS))
	}
	if u.DF != "" && u.DF != config.DFUnset {
		o = append(o, "df "+string(u.DF))
	}
	if u.FlowLabel != 0 {
		o = append(o, fmt.Sprintf("flowlabel 0x%05x", u.FlowLabel))
	}
	if u.SourceLow != 0 {
		o = append(o, fmt.Sprintf("srcport %d %d", u.SourceLow, u.SourceHigh))
	}
	o = append(o, "dstport "+strconv.Itoa(int(u.Port)))
	if !n.Learning {
		o = append(o, "nolearning")
	}
	if n.Ageing != config.DefaultAgeing {
		o = append(o, "ageing "+kernelAgeing(n))
	}
	switch {
	case outerV6(n) && noChecksum(n):
		o = append(o, "udp6zerocsumtx", "udp6zerocsumrx")
	case outerV6(n):
		o = append(o, "udp6zerocsumrx")
	case noChecksum(n):
		o = append(o, "noudpcsum")
	default:
		o = append(o, "udpcsum")
	}
	return strings.Join(o, " ")
}

// firstRemote is the remote that makes the link an IPv6 one where nothing else does; invalid elsewhere.
func firstRemote(n *config.Network) netip.Addr {
	if outerV6(n) && !n.Group.IsValid() && !n.Underlay.Local.IsValid() && len(n.Remotes) > 0 {
		return n.Remotes[0]
	}
	return netip.Addr{}
}

// moreRemotes are those that entries of the table stand for.
func moreRemotes(n *config.Network) []netip.Addr {
	if firstRemote(n).IsValid() {
		return n.Remotes[1:]
	}
	return n.Remotes
}

// never stands for an ageing of 0: a year, which is what the daemon writes to bridges.
const never = 365 * 24 * time.Hour

func ageing(n *config.Network) time.Duration {
	if n.Ageing == 0 {
		return never
	}
	return n.Ageing
}

func kernelAgeing(n *config.Network) string { return strconv.Itoa(int(ageing(n) / time.Second)) }

func stp(n *config.Network) bool { return n.Bridge.STP != nil && *n.Bridge.STP }

// forwardDelay in seconds, 0 unless the config says more, as vxbpf makes bridges.
func forwardDelay(n *config.Network) time.Duration {
	if n.Bridge.ForwardDelay != nil {
		return *n.Bridge.ForwardDelay
	}
	if stp(n) {
		return 15 * time.Second
	}
	return 0
}

func secondsText(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// fdbCommands are those that fill the vxlan device's own table.
func fdbCommands(n *config.Network) (out []string) {
	for _, r := range moreRemotes(n) {
		out = append(out, fmt.Sprintf("bridge fdb append 00:00:00:00:00:00 dev %s dst %s", sh(n.Link), r))
	}
	for _, s := range n.FDB {
		out = append(out, fmt.Sprintf("bridge fdb add %s dev %s dst %s self static", s.MAC, sh(n.Link), s.VTEP))
	}
	return out
}

// staticPorts: static entries stand in the bridge's table too, once the link is a port.
func staticPorts(n *config.Network) (out []string) {
	for _, s := range n.FDB {
		out = append(out, fmt.Sprintf("bridge fdb replace %s dev %s master static", s.MAC, sh(n.Link)))
	}
	return out
}

// ifupdown writes the stanzas that the hosts had before.
func (e *exporter) ifupdown() []OutFile {
	var b bytes.Buffer
	e.head(&b)
	b.WriteString("# It needs bridge-utils, and goes to /etc/network/interfaces.d. The stanza of the underlay device must come before it.\n")
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		fmt.Fprintf(&b, "\n# network %s\nauto %s\niface %s inet manual\n", n.Name, n.Link, n.Link)
		fmt.Fprintf(&b, "    pre-up ip link add %s type vxlan %s\n", sh(n.Link), vxlanOptions(n))
		if m := e.mtu(n); m != 0 {
			fmt.Fprintf(&b, "    pre-up ip link set %s mtu %d\n", sh(n.Link), m)
		}
		fmt.Fprintf(&b, "    up ip link set %s up\n", sh(n.Link))
		for _, c := range fdbCommands(n) {
			fmt.Fprintf(&b, "    up %s\n", c)
		}
		fmt.Fprintf(&b, "    down ip link set %s down\n    post-down ip link del %s\n", sh(n.Link), sh(n.Link))

		fmt.Fprintf(&b, "\nauto %s\n", n.Bridge.Name)
		method := func(p netip.Prefix) string {
			if p.Addr().Is6() {
				return "inet6 static"
			}
			return "inet static"
		}
		first := "inet manual"
		if len(n.Bridge.Addresses) > 0 {
			first = method(n.Bridge.Addresses[0])
		}
		fmt.Fprintf(&b, "iface %s %s\n", n.Bridge.Name, first)
		if len(n.Bridge.Addresses) > 0 {
			fmt.Fprintf(&b, "    address %s\n", n.Bridge.Addresses[0])
		}
		if first == "inet6 static" {
			b.WriteString("    dad-attempts 0\n")
		}
		fmt.Fprintf(&b, "    bridge_stp %s\n    bridge_waitport 0\n    bridge_fd %s\n", map[bool]string{true: "on", false: "off"}[stp(n)], secondsText(forwardDelay(n)))
		if n.Ageing != config.DefaultAgeing {
			fmt.Fprintf(&b, "    bridge_ageing %s\n", kernelAgeing(n))
		}
		fmt.Fprintf(&b, "    bridge_ports %s\n", n.Link)
		for _, c := range staticPorts(n) {
			fmt.Fprintf(&b, "    up %s\n", c)
		}
		for _, a := range n.Bridge.Addresses[min(1, len(n.Bridge.Addresses)):] {
			fmt.Fprintf(&b, "iface %s %s\n    address %s\n", n.Bridge.Name, method(a), a)
			if a.Addr().Is6() {
				b.WriteString("    dad-attempts 0\n")
			}
		}
	}
	return []OutFile{{Path: "/etc/network/interfaces.d/vxbpf", Text: b.Bytes()}}
}

// ifupdown2MTU is what ifupdown2 sets where no mtu is given, on vxlan links and bridges too.
const ifupdown2MTU = 1500

// ifupdown2 has keys for most of it.
func (e *exporter) ifupdown2() []OutFile {
	var nets bytes.Buffer
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		u := n.Underlay
		b := &nets
		fmt.Fprintf(b, "\n# network %s\nauto %s\niface %s\n    vxlan-id %s\n    vxlan-physdev %s\n    vxlan-port %d\n", n.Name, n.Link, n.Link, n.VNI, u.Device, u.Port)
		switch {
		case u.Local.IsValid():
			fmt.Fprintf(b, "    vxlan-local-tunnelip %s\n", u.Local)
		default:
			e.note("network %s: ifupdown2 wants vxlan-local-tunnelip; add the address of %s", n.Name, u.Device)
		}
		if n.Group.IsValid() {
			fmt.Fprintf(b, "    vxlan-mcastgrp%s %s\n", map[bool]string{true: "6"}[n.Group.Is6()], n.Group)
		}
		for _, r := range n.Remotes {
			fmt.Fprintf(b, "    vxlan-remoteip %s\n", r)
		}
		switch {
		case u.TTLInherit:
			e.note("network %s: ifupdown2 has no ttl inherit; the kernel's default applies", n.Name)
		case u.TTL != 0:
			fmt.Fprintf(b, "    vxlan-ttl %d\n", u.TTL)
		}
		fmt.Fprintf(b, "    vxlan-learning %s\n", map[bool]string{true: "on", false: "off"}[n.Learning])
		if n.Ageing != config.DefaultAgeing {
			fmt.Fprintf(b, "    vxlan-ageing %s\n", kernelAgeing(n))
			if ageing(n) > 4096*time.Second {
				e.note("network %s: ifupdown2 takes an ageing of at most 4096 s", n.Name)
			}
		}
		// Without mtu it sets both links to 1500, whatever the kernel had made of the underlay.
		mtu := e.mtu(n)
		if mtu == 0 {
			over, _ := n.Overhead(outerV6(n))
			mtu = ifupdown2MTU - over
			e.note("network %s: ifupdown2 sets links without mtu to %d; mtu %d is for an underlay of %d: change it where %s has another", n.Name, ifupdown2MTU, mtu, ifupdown2MTU, u.Device)
		}
		fmt.Fprintf(b, "    mtu %d\n", mtu)
		for _, o := range []struct {
			on   bool
			what string
		}{
			{u.TOS != 0 || u.TOSInherit, "tos"}, {u.DF != "" && u.DF != config.DFUnset, "df"}, {u.FlowLabel != 0, "flow_label"}, {u.SourceLow != 0, "source_ports"},
			{noChecksum(n), "udp_checksum: false (hosts of both kinds understand each other over IPv4)"},
		} {
			if o.on {
				e.note("network %s: ifupdown2 cannot say %s", n.Name, o.what)
			}
		}
		for _, s := range n.FDB {
			fmt.Fprintf(b, "    post-up bridge fdb replace %s dev %s dst %s self static\n", s.MAC, sh(n.Link), s.VTEP)
		}
		fmt.Fprintf(b, "\nauto %s\niface %s\n", n.Bridge.Name, n.Bridge.Name)
		for _, a := range n.Bridge.Addresses {
			fmt.Fprintf(b, "    address %s\n", a)
		}
		fmt.Fprintf(b, "    mtu %d\n    bridge-ports %s\n    bridge-stp %s\n    bridge-fd %s\n", mtu, n.Link, map[bool]string{true: "on", false: "off"}[stp(n)], secondsText(forwardDelay(n)))
		if n.Ageing != config.DefaultAgeing {
			fmt.Fprintf(b, "    bridge-ageing %s\n", kernelAgeing(n))
		}
		for _, c := range staticPorts(n) {
			fmt.Fprintf(b, "    post-up %s\n", c)
		}
	}
	var b bytes.Buffer
	e.head(&b)
	b.Write(nets.Bytes())
	return []OutFile{{Path: "/etc/network/interfaces.d/vxbpf", Text: b.Bytes()}}
}

// iproute2 writes a script: up by default, `down` takes away.
func (e *exporter) iproute2() []OutFile {
	var b bytes.Buffer
	b.WriteString("#!/bin/sh\n")
	e.head(&b)
	b.WriteString("set -e\n\nif [ \"$1\" = down ]; then\n")
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		fmt.Fprintf(&b, "\tip link del %s || true\n\tip link del %s || true\n", sh(n.Link), sh(n.Bridge.Name))
	}
	b.WriteString("\texit 0\nfi\n")
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		mtu := ""
		if m := e.mtu(n); m != 0 {
			mtu = fmt.Sprintf(" mtu %d", m)
		}
		fmt.Fprintf(&b, "\n# network %s\n", n.Name)
		// The kernel refuses short delays with STP on, and takes them before it is on.
		fmt.Fprintf(&b, "ip link add %s%s type bridge stp_state %d forward_delay %d ageing_time %d\n", sh(n.Bridge.Name), mtu,
			map[bool]int{true: 1}[stp(n)], forwardDelay(n)/(10*time.Millisecond), ageing(n)/(10*time.Millisecond))
		fmt.Fprintf(&b, "ip link add %s%s type vxlan %s\n", sh(n.Link), mtu, vxlanOptions(n))
		fmt.Fprintf(&b, "ip link set %s master %s\n", sh(n.Link), sh(n.Bridge.Name))
		for _, c := range append(fdbCommands(n), staticPorts(n)...) {
			fmt.Fprintf(&b, "%s\n", c)
		}
		for _, a := range n.Bridge.Addresses {
			fmt.Fprintf(&b, "ip address add %s dev %s\n", a, sh(n.Bridge.Name))
		}
		fmt.Fprintf(&b, "ip link set %s up\nip link set %s up\n", sh(n.Bridge.Name), sh(n.Link))
	}
	return []OutFile{{Path: "/usr/local/sbin/vxlan-networks", Text: b.Bytes(), Script: true}}
}

// vxlanUnit is the [VXLAN] section.
func vxlanUnit(n *config.Network) string {
	var b strings.Builder
	u := n.Underlay
	line := func(k, v string) { fmt.Fprintf(&b, "%s=%s\n", k, v) }
	b.WriteString("\n[VXLAN]\n")
	line("VNI", n.VNI.String())
	if n.Group.IsValid() {
		line("Group", n.Group.String())
	}
	if r := firstRemote(n); r.IsValid() {
		line("Remote", r.String())
	}
	if u.Local.IsValid() {
		line("Local", u.Local.String())
	}
	switch {
	case u.TTLInherit:
		line("TTL", "inherit")
	case u.TTL != 0:
		line("TTL", strconv.Itoa(u.TTL))
	}
	if u.TOSInherit {
		line("TOS", "1")
	} else if u.TOS != 0 {
		line("TOS", strconv.Itoa(u.TOS))
	}
	switch u.DF {
	case config.DFSet:
		line("IPDoNotFragment", "yes")
	case config.DFInherit:
		line("IPDoNotFragment", "inherit")
	}
	if u.FlowLabel != 0 {
		line("FlowLabel", strconv.Itoa(int(u.FlowLabel)))
	}
	if u.SourceLow != 0 {
		line("PortRange", fmt.Sprintf("%d-%d", u.SourceLow, u.SourceHigh))
	}
	line("DestinationPort", strconv.Itoa(int(u.Port)))
	line("MacLearning", strconv.FormatBool(n.Learning))
	if n.Ageing != config.DefaultAgeing {
		line("FDBAgeingSec", kernelAgeing(n))
	}
	if outerV6(n) {
		line("UDP6ZeroChecksumTx", strconv.FormatBool(noChecksum(n)))
		line("UDP6ZeroChecksumRx", "true")
	} else {
		line("UDPChecksum", strconv.FormatBool(!noChecksum(n)))
	}
	return b.String()
}

func fdbUnits(n *config.Network) string {
	var b strings.Builder
	for _, r := range moreRemotes(n) {
		fmt.Fprintf(&b, "\n[BridgeFDB]\nMACAddress=00:00:00:00:00:00\nDestination=%s\n", r)
	}
	for _, s := range n.FDB {
		fmt.Fprintf(&b, "\n[BridgeFDB]\nMACAddress=%s\nDestination=%s\n", s.MAC, s.VTEP)
	}
	return b.String()
}

func (e *exporter) staticNote(n *config.Network, tool string) {
	if len(n.FDB) > 0 {
		e.note("network %s: %s writes static entries to the vxlan device only; the bridge learns these addresses as any other", n.Name, tool)
	}
}

func (e *exporter) networkd() []OutFile {
	const dir = "/etc/systemd/network/"
	devices := map[string][]string{}
	var order []string
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		e.staticNote(n, "networkd")
		if d := n.Underlay.Device; devices[d] == nil {
			order = append(order, d)
		}
		devices[n.Underlay.Device] = append(devices[n.Underlay.Device], n.Link)
	}
	for _, d := range order {
		e.note("the drop-in for %s goes to the directory of the .network file that you have for it: rename it if that is not %s.network", d, d)
	}
	var out []OutFile
	file := func(name, text string) {
		var b bytes.Buffer
		e.head(&b)
		b.WriteString("\n" + text)
		out = append(out, OutFile{Path: dir + name, Text: b.Bytes()})
	}
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		mtu := ""
		if m := e.mtu(n); m != 0 {
			mtu = fmt.Sprintf("MTUBytes=%d\n", m)
		}
		file("30-"+n.Link+".netdev", fmt.Sprintf("[NetDev]\nName=%s\nKind=vxlan\n%s%s", n.Link, mtu, vxlanUnit(n)))
		file("30-"+n.Link+".network", fmt.Sprintf("[Match]\nName=%s\n\n[Network]\nBridge=%s\nLinkLocalAddressing=no\n%s", n.Link, n.Bridge.Name, fdbUnits(n)))
		age := ""
		if n.Ageing != config.DefaultAgeing {
			age = fmt.Sprintf("AgeingTimeSec=%s\n", kernelAgeing(n))
		}
		file("30-"+n.Bridge.Name+".netdev", fmt.Sprintf("[NetDev]\nName=%s\nKind=bridge\n%s\n[Bridge]\nSTP=%t\nForwardDelaySec=%s\n%s", n.Bridge.Name, mtu, stp(n), secondsText(forwardDelay(n)), age))
		var as strings.Builder
		for _, a := range n.Bridge.Addresses {
			fmt.Fprintf(&as, "Address=%s\n", a)
		}
		file("30-"+n.Bridge.Name+".network", fmt.Sprintf("[Match]\nName=%s\n\n[Network]\nConfigureWithoutCarrier=yes\n%s", n.Bridge.Name, as.String()))
	}
	for _, d := range order {
		var text strings.Builder
		text.WriteString("[Network]\n")
		for _, l := range devices[d] {
			fmt.Fprintf(&text, "VXLAN=%s\n", l)
		}
		file(d+".network.d/vxbpf.conf", text.String())
	}
	return out
}

// netplan says what it can; the list of remotes goes to networkd by a drop-in for the file that netplan writes.
func (e *exporter) netplan() []OutFile {
	const dropIn = "/etc/systemd/network/10-netplan-%s.network.d/vxbpf.conf"
	var drops []OutFile
	var tunnels, bridges bytes.Buffer
	for i := range e.cfg.Networks {
		n := &e.cfg.Networks[i]
		u := n.Underlay
		b := &tunnels
		line := func(k, v string) { fmt.Fprintf(b, "      %s: %s\n", k, v) }
		fmt.Fprintf(b, "    %s:\n", quote(n.Link))
		line("mode", "vxlan")
		line("id", n.VNI.String())
		line("link", quote(u.Device))
		if u.Local.IsValid() {
			line("local", quote(u.Local.String()))
		}
		fdb := fdbUnits(n)
		switch {
		case n.Group.IsValid():
			line("remote", quote(n.Group.String()))
		case firstRemote(n).IsValid():
			line("remote", quote(n.Remotes[0].String()))
		case len(n.Remotes) == 1 && len(n.FDB) == 0:
			line("remote", quote(n.Remotes[0].String()))
			fdb = ""
		}
		if fdb != "" {
			e.note("network %s: netplan takes one remote; the others and static entries are in a drop-in for networkd", n.Name)
			e.staticNote(n, "networkd")
			drops = append(drops, OutFile{Path: fmt.Sprintf(dropIn, n.Link), Text: []byte(strings.TrimPrefix(fdb, "\n"))})
		}
		line("port", strconv.Itoa(int(u.Port)))
		line("mac-learning", strconv.FormatBool(n.Learning))
		switch {
		case u.TTLInherit:
			e.note("network %s: netplan has no ttl inherit; the kernel's default applies", n.Name)
		case u.TTL != 0:
			line("ttl", strconv.Itoa(u.TTL))
		}
		if u.TOSInherit {
			line("type-of-service", "1")
		} else if u.TOS != 0 {
			line("type-of-service", strconv.Itoa(u.TOS))
		}
		switch u.DF {
		case config.DFSet:
			line("do-not-fragment", "true")
		case config.DFInherit:
			e.note("network %s: netplan has no df inherit; it is unset", n.Name)
		}
		if u.FlowLabel != 0 {
			line("flow-label", strconv.Itoa(int(u.FlowLabel)))
		}
		if u.SourceLow != 0 {
			line("port-range", fmt.Sprintf("[%d, %d]", u.SourceLow, u.SourceHigh))
		}
		if n.Ageing != config.DefaultAgeing {
			line("ageing", kernelAgeing(n))
		}
		switch {
		case outerV6(n) && noChecksum(n):
			line("checksums", "[zero-udp6-tx, zero-udp6-rx]")
		case outerV6(n):
			line("checksums", "[zero-udp6-rx]")
		case !noChecksum(n):
			line("checksums", "[udp]")
		}
		if m := e.mtu(n); m != 0 {
			line("mtu", strconv.Itoa(m))
		}

		b = &bridges
		fmt.Fprintf(b, "    %s:\n", quote(n.Bridge.Name))
		line("interfaces", "["+quote(n.Link)+"]")
		if len(n.Bridge.Addresses) > 0 {
			var as []string
			for _, a := range n.Bridge.Addresses {
				as = append(as, quote(a.String()))
			}
			line("addresses", "["+strings.Join(as, ", ")+"]")
		}
		if m := e.mtu(n); m != 0 {
			line("mtu", strconv.Itoa(m))
		}
		p := fmt.Sprintf("{stp: %t, forward-delay: %s", stp(n), secondsText(forwardDelay(n)))
		if n.Ageing != config.DefaultAgeing {
			p += ", ageing-time: " + kernelAgeing(n)
		}
		line("parameters", p+"}")
	}
	var b bytes.Buffer
	e.head(&b)
	fmt.Fprintf(&b, "# The underlay device must be in netplan's files too.\nnetwork:\n  version: 2\n  renderer: networkd\n  tunnels:\n%s  bridges:\n%s", tunnels.Bytes(), bridges.Bytes())
	out := []OutFile{{Path: "/etc/netplan/60-vxbpf.yaml", Text: b.Bytes()}}
	for i := range drops {
		var d bytes.Buffer
		e.head(&d)
		d.WriteString("\n")
		d.Write(drops[i].Text)
		drops[i].Text = d.Bytes()
	}
	return append(out, drops...)
}
