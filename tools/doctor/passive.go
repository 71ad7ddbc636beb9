// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

func (h *host) load() string { return "vxbpf load " + h.snap.State.Config }

func (h *host) checkDaemon(context.Context) error {
	if h.snap.Daemon == 0 && !h.snap.State.Once {
		h.find(Finding{Check: "daemon", Severity: Warning, Object: "instance " + h.snap.State.Instance,
			Evidence:    "no process holds the instance, and it was not loaded with --once",
			Consequence: "the data path goes on; MAC addresses learnt from now on, static entries and the host's own traffic take the kernel's way",
			Fix:         []string{h.load()}})
	}
	return nil
}

// checkSlow sorts what the daemon says about networks and ports.
func (h *host) checkSlow(context.Context) error {
	told := map[string]bool{}
	say := func(object, reason string) {
		if told[reason] {
			return
		}
		told[reason] = true
		f := Finding{Check: "slow_path", Severity: Warning, Object: object, Evidence: reason,
			Consequence: "its packets take the kernel's way: they arrive, at the kernel's speed",
			Fix:         []string{"vxbpf show ports; ip -d link show"}}
		switch {
		case strings.Contains(reason, "bypass_netfilter"):
			f.Check = "netfilter"
			f.Fix = []string{"config: bypass_netfilter: true, if the rules need not see overlay traffic; else delete or narrow them: nft list ruleset; iptables-save"}
		case strings.Contains(reason, "carries another"):
			f.Check = "tc_owner"
			dev, _, _ := strings.Cut(reason, " ")
			f.Fix = []string{fmt.Sprintf("tc qdisc show dev %s; tc filter show dev %s ingress; tc filter show dev %s egress; bpftool net show dev %s", dev, dev, dev, dev)}
		case strings.Contains(reason, "sends UDP checksums"):
			f.Check = "udp_checksum"
			f.Consequence += "; and a NIC that gets checksums of encapsulated packets wrong loses TCP and DNS while ping works"
			f.Fix = []string{"config: udp_checksum: false"}
		case strings.Contains(reason, " is down"):
			f.Severity = Problem
			f.Consequence = "nothing of it passes"
			for _, l := range h.links {
				if strings.HasSuffix(reason, l.Name+" is down") {
					f.Fix = []string{fmt.Sprintf("ip link set %s up", l.Name)}
					if l.VXLAN == nil || !h.taken(l.VXLAN.Port) {
						f.actions = []Action{{Kind: "up", Object: l.Name, New: "up", Old: "down"}}
					}
				}
			}
		case strings.Contains(reason, "is gone"), strings.Contains(reason, "is not a port of"):
			f.Severity = Problem
			f.Consequence = "nothing of it passes to the other hosts"
			f.Fix = []string{h.load()}
		case strings.Contains(reason, "isolated"):
			f.Severity = Problem
			f.Consequence = "the bridge does not forward between isolated ports: containers behind it do not reach the other hosts"
			f.Fix = []string{"bridge link set dev PORT isolated off"}
		}
		h.find(f)
	}
	for _, n := range h.snap.State.Networks {
		if n.Reason != "" && n.Wanted != config.Kernel {
			say("network "+n.Name, n.Reason)
		}
		for _, p := range n.Ports {
			if !p.Fast && p.Reason != n.Reason {
				say("port "+p.Name, p.Reason)
			}
		}
	}
	// Without a daemon nobody has told what happened since.
	if h.snap.Daemon == 0 {
		for _, n := range h.snap.State.Networks {
			for _, name := range []string{n.Link, n.Bridge} {
				switch l, ok := h.link(name); {
				case !ok:
					say("network "+n.Name, name+" is gone")
				case !l.Up && (l.VXLAN == nil || !h.taken(l.VXLAN.Port)): // else that is why
					say("network "+n.Name, name+" is down")
				}
			}
		}
	}
	return nil
}

func (h *host) checkAttachments(context.Context) error {
	at, err := h.snap.Attachments(h.opt.Options)
	if err != nil {
		return err
	}
	for _, a := range at {
		if a.State == "missing" {
			h.find(Finding{Check: "attachment", Severity: Warning, Object: fmt.Sprintf("%s %s", a.Device, a.Direction),
				Evidence:    a.Program + " is not there; another tool took it off, and no daemon has put it back",
				Consequence: "packets at this hook take the kernel's way, and a MAC address that moves is noticed later",
				Fix:         []string{h.load()}})
		}
	}
	return nil
}

func (h *host) checkPins(context.Context) error {
	if h.snap.State.Pins == "" {
		return nil
	}
	dirs, err := filepath.Glob(filepath.Join(filepath.Dir(h.snap.State.Pins), "maps-*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if d != h.snap.State.Pins {
			h.find(Finding{Check: "pins", Severity: Warning, Object: d, Evidence: "maps of another layout are pinned beside those in use",
				Consequence: "they take memory; an upgrade did not end",
				Fix:         []string{h.load() + "    # takes over, and removes what nothing uses"}})
		}
	}
	return nil
}

func (h *host) checkDrops(context.Context) error {
	for _, n := range h.snap.Networks {
		for hook, byReason := range h.snap.Counts[n.Name] {
			if c := byReason[bpf.DropBroken]; c.Packets > 0 {
				h.find(Finding{Check: "drops", Severity: Problem, Object: "network " + n.Name,
					Evidence:    fmt.Sprintf("%d packets at %v: a helper failed after the packet was changed (drop_broken)", c.Packets, hook),
					Consequence: "these packets are lost; this is a bug of vxbpf or of the kernel",
					Fix:         []string{"config: datapath: kernel    # for this network, until it is mended; report it with `uname -a` and `vxbpf show reasons -o json`"}})
			}
		}
	}
	return nil
}

func (h *host) checkFull(context.Context) error {
	if n, size := h.full(); size > 0 && n >= size*9/10 {
		h.find(Finding{Check: "fdb_full", Severity: Warning, Object: "FDB map", Evidence: fmt.Sprintf("%d of %d entries", n, size),
			Consequence: "MAC addresses that do not fit stay on the slow path",
			Fix:         []string{"vxbpf show fdb    # who has so many? Shorten `ageing` of that network"}})
	}
	return nil
}

func (h *host) checkFlood(context.Context) error {
	if h.cfg == nil {
		return errors.New("the config that is loaded cannot be read")
	}
	for i := range h.cfg.Networks {
		n := &h.cfg.Networks[i]
		vx, ok := h.link(n.Link)
		if !ok {
			continue
		}
		for _, r := range n.Remotes {
			if !slices.ContainsFunc(h.fdb, func(e kernel.FDBEntry) bool { return e.Self && e.Link == vx.Index && e.MAC.IsZero() && e.Dst == r }) {
				h.find(Finding{Check: "flood_list", Severity: Problem, Object: fmt.Sprintf("network %s, VTEP %s", n.Name, r),
					Evidence:    fmt.Sprintf("the config names the remote, and %s has no default destination for it", n.Link),
					Consequence: "ARP and broadcast do not reach that host: new connections to it fail, old ones may go on",
					Fix:         []string{fmt.Sprintf("bridge fdb append 00:00:00:00:00:00 dev %s dst %s self permanent", n.Link, r)},
					actions:     []Action{{Kind: "remote", Object: n.Link, New: r.String()}}})
			}
		}
	}
	return nil
}

func (h *host) checkMTU(context.Context) error {
	for _, n := range h.snap.State.Networks {
		vx, ok1 := h.link(n.Link)
		dev, ok2 := h.link(n.Device)
		if !ok1 || !ok2 {
			continue
		}
		if most := dev.MTU - overhead(n); vx.MTU > most {
			f := Finding{Check: "mtu", Severity: Problem, Object: "network " + n.Name,
				Evidence:    fmt.Sprintf("%s has MTU %d; %s has %d, less %d bytes of outer headers leaves %d", vx.Name, vx.MTU, dev.Name, dev.MTU, overhead(n), most),
				Consequence: "larger packets are fragmented on the underlay, or lost where fragments are dropped: large transfers hang, small ones work",
				Fix:         []string{fmt.Sprintf("ip link set %s mtu %d", dev.Name, vx.MTU+overhead(n)), "or, if the underlay cannot:"}}
			for _, name := range []string{vx.Name, n.Bridge} {
				if l, ok := h.link(name); ok && l.MTU > most {
					f.Fix = append(f.Fix, fmt.Sprintf("ip link set %s mtu %d", name, most))
					f.actions = append(f.actions, Action{Kind: "mtu", Object: name, New: strconv.Itoa(most), Old: strconv.Itoa(l.MTU)})
				}
			}
			h.find(f)
		}
	}
	return nil
}

func (h *host) checkPortMTU(context.Context) error {
	for _, n := range h.snap.State.Networks {
		vx, ok1 := h.link(n.Link)
		br, ok2 := h.link(n.Bridge)
		if !ok1 || !ok2 || h.clamps(n.Name) {
			continue
		}
		for _, l := range h.links {
			if l.Master != br.Index || l.Index == vx.Index || !l.PeerElsewhere {
				continue
			}
			peer, ok, err := h.h.PeerLink(l)
			if err != nil || !ok {
				continue // its namespace is none of our business, or has gone
			}
			if peer.MTU > vx.MTU {
				h.find(Finding{Check: "port_mtu", Severity: Warning, Object: "port " + l.Name,
					Evidence:    fmt.Sprintf("its other end (%s) has MTU %d, network %s carries %d", peer.Name, peer.MTU, n.Name, vx.MTU),
					Consequence: "the container sends packets that do not fit; where the answer \"too big\" is filtered or ignored, its transfers hang",
					Fix: []string{fmt.Sprintf("ip link set %s mtu %d    # in the container", peer.Name, vx.MTU),
						fmt.Sprintf("or config: mss_clamp: auto    # for network %s: TCP at least", n.Name)}})
			}
		}
	}
	return nil
}

// clamps reports whether SYNs of a network are clamped.
func (h *host) clamps(network string) bool {
	if h.cfg == nil {
		return false
	}
	n := h.cfg.Network(network)
	return n != nil && n.MSSClamp != config.MSSOff
}

// setting is a finding that one sysctl mends.
func setting(f Finding, name, old, value string) Finding {
	if strings.ContainsAny(value, " \t") {
		value = strings.Join(strings.Fields(value), " ")
	}
	f.Fix = append(f.Fix, fmt.Sprintf("sysctl -w %s=\"%s\"", strings.ReplaceAll(name, "/", "."), value))
	f.actions = append(f.actions, Action{Kind: "sysctl", Object: name, New: value, Old: old})
	return f
}

func (h *host) checkPMTU(context.Context) error {
	if v, ok := h.number("net/ipv4/ip_no_pmtu_disc"); ok && v != 0 {
		h.find(setting(Finding{Check: "pmtu_off", Severity: Warning, Object: "net.ipv4.ip_no_pmtu_disc", Evidence: fmt.Sprintf("it is %d", v),
			Consequence: "this host ignores \"fragmentation needed\" and fragments at 552 bytes what a router says is too large"},
			"net/ipv4/ip_no_pmtu_disc", strconv.Itoa(v), "0"))
	}
	return nil
}

func (h *host) checkRPFilter(context.Context) error {
	all, ok := h.number("net/ipv4/conf/all/rp_filter")
	if !ok {
		return errors.New("net.ipv4.conf.all.rp_filter cannot be read")
	}
	for _, dev := range h.devices() {
		own, _ := h.number("net/ipv4/conf/" + dev.Name + "/rp_filter")
		if max(all, own) != 1 {
			continue
		}
		for _, r := range h.remotes() {
			if r.Is6() {
				continue
			}
			route, err := h.h.RouteTo(r, kernel.RouteOptions{})
			if err != nil || route.Local || route.Device == dev.Index {
				continue
			}
			other, _ := h.linkAt(route.Device)
			h.find(setting(Finding{Check: "rp_filter", Severity: Problem, Object: "VTEP " + r.String(),
				Evidence:    fmt.Sprintf("the route there leads out of %s, and reverse path filtering on %s is strict", other.Name, dev.Name),
				Consequence: fmt.Sprintf("what comes from there by %s and is for the kernel is dropped: ARP, broadcast, all that BPF does not carry", dev.Name)},
				"net/ipv4/conf/"+dev.Name+"/rp_filter", strconv.Itoa(own), "2"))
		}
	}
	return nil
}

func (h *host) checkSourcePorts(context.Context) error {
	const least = 256
	s, ok := h.sysctl("net/ipv4/ip_local_port_range")
	if !ok {
		return errors.New("net.ipv4.ip_local_port_range cannot be read")
	}
	var lo, hi int
	if _, err := fmt.Sscan(s, &lo, &hi); err != nil {
		return fmt.Errorf("read ip_local_port_range %q: %w", s, err)
	}
	system := false
	for _, n := range h.snap.State.Networks {
		vx, ok := h.link(n.Link)
		if !ok || vx.VXLAN == nil {
			continue
		}
		if x := vx.VXLAN; x.SrcLow < x.SrcHigh {
			if n := int(x.SrcHigh) - int(x.SrcLow); n < least {
				h.find(Finding{Check: "source_ports", Severity: Warning, Object: vx.Name, Evidence: fmt.Sprintf("it sends from %d UDP ports (%d to %d)", n, x.SrcLow, x.SrcHigh-1),
					Consequence: "few flows can be told apart: the other host's NIC puts them on one queue, and one core",
					Fix:         []string{"config: source_ports: [32768, 61000]    # then: vxbpf load --recreate"}})
			}
		} else {
			system = true
		}
	}
	if system && hi-lo < least {
		h.find(setting(Finding{Check: "source_ports", Severity: Warning, Object: "net.ipv4.ip_local_port_range", Evidence: fmt.Sprintf("it leaves %d UDP source ports (%d to %d)", hi-lo, lo, hi),
			Consequence: "few flows can be told apart: the other host's NIC puts them on one queue, and one core"},
			"net/ipv4/ip_local_port_range", s, "32768 60999"))
	}
	return nil
}

func (h *host) checkAgeing(context.Context) error {
	for _, n := range h.snap.State.Networks {
		vx, ok1 := h.link(n.Link)
		br, ok2 := h.link(n.Bridge)
		if !ok1 || !ok2 || vx.VXLAN == nil || br.Bridge == nil || br.Bridge.Ageing == 0 || br.Bridge.Ageing == vx.VXLAN.Ageing || vx.VXLAN.Ageing == 0 || !vx.VXLAN.Learning {
			continue
		}
		h.find(Finding{Check: "ageing", Severity: Warning, Object: "network " + n.Name,
			Evidence:    fmt.Sprintf("%s forgets after %s, %s after %s", br.Name, br.Bridge.Ageing, vx.Name, vx.VXLAN.Ageing),
			Consequence: "between the two, one table knows a MAC address and the other does not: its frames are flooded to all hosts",
			Fix:         []string{fmt.Sprintf("ip link set %s type bridge ageing_time %d", br.Name, vx.VXLAN.Ageing.Milliseconds()/10)},
			actions:     []Action{{Kind: "ageing", Object: br.Name, New: vx.VXLAN.Ageing.String(), Old: br.Bridge.Ageing.String()}}})
	}
	return nil
}

func (h *host) checkOffloads(context.Context) error {
	for _, dev := range h.devices() {
		driver, on, err := h.features(dev.Name)
		if err != nil {
			h.unknown("offloads", dev.Name, oneLine(err))
			continue
		}
		// A veth has nothing to aggregate: it gets what the other end has put together.
		if _, can := on["rx-gro"]; can && !on["rx-gro"] && driver != "veth" {
			h.find(offload(dev.Name, "gro", "rx-gro", true, "generic-receive-offload is off", "no aggregates, inside the tunnel neither: TCP at half its throughput or less"))
		}
		if on["rx-lro"] {
			h.find(offload(dev.Name, "lro", "rx-lro", false, "large-receive-offload is on", "native XDP is refused, and packets that a bridge forwards are put together for good"))
		}
		if on["rx-gro-list"] {
			h.find(offload(dev.Name, "rx-gro-list", "rx-gro-list", false, "rx-gro-list is on",
				"with peers that send outer UDP checksums, containers may count TCP packets with wrong checksums and get them again"))
		}
	}
	return nil
}

func offload(dev, flag, feature string, on bool, evidence, consequence string) Finding {
	word := map[bool]string{true: "on", false: "off"}
	return Finding{Check: "offloads", Severity: Warning, Object: dev, Evidence: evidence, Consequence: consequence,
		Fix:     []string{fmt.Sprintf("ethtool -K %s %s %s", dev, flag, word[on])},
		actions: []Action{{Kind: "offload", Object: dev + "/" + feature, New: word[on], Old: word[!on]}}}
}

func (h *host) checkXDP(context.Context) error {
	for _, dev := range h.devices() {
		if dev.XDP == 0 || h.ours(dev.XDP) {
			continue
		}
		h.find(Finding{Check: "xdp_owner", Severity: Warning, Object: dev.Name, Evidence: fmt.Sprintf("XDP program %d of someone else is attached (bpftool prog show id %d)", dev.XDP, dev.XDP),
			Consequence: "it sees packets first and may drop or redirect them; vxbpf does not take its place",
			Fix:         []string{fmt.Sprintf("ip link set %s xdp off    # if nobody needs it", dev.Name)}})
	}
	return nil
}

// taken reports whether a UDP port is held by a process, which is not the kernel.
func (h *host) taken(port uint16) bool { return len(portHolders(port)) > 0 }

// portHolders names the processes of this namespace that hold a UDP port. The
// kernel's own sockets are in no process.
func portHolders(port uint16) (out []string) {
	inodes := map[string]bool{}
	for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil || !inodes[to] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		if who := fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid); !slices.Contains(out, who) {
			out = append(out, who)
		}
	}
	return out
}

func (h *host) checkPort(context.Context) error {
	seen := map[uint16]bool{}
	for _, n := range h.snap.State.Networks {
		if seen[n.Port] {
			continue
		}
		seen[n.Port] = true
		for _, who := range portHolders(n.Port) {
			h.find(Finding{Check: "port_conflict", Severity: Problem, Object: fmt.Sprintf("UDP port %d", n.Port),
				Evidence:    who + " has a socket on it",
				Consequence: "a vxlan link on this port cannot be set up (EADDRINUSE) as long as it is there",
				Fix:         []string{"stop that process, then: ip link set " + n.Link + " up"}})
		}
		for _, l := range h.links {
			if l.VXLAN != nil && l.VXLAN.External && l.VXLAN.Port == n.Port && l.Up {
				h.find(Finding{Check: "port_conflict", Severity: Warning, Object: fmt.Sprintf("UDP port %d", n.Port),
					Evidence:    l.Name + " is a metadata (external) vxlan device on the same port, up",
					Consequence: "one of the two cannot be set up",
					Fix:         []string{"give " + l.Name + " another port, or delete it: ip link del " + l.Name}})
			}
		}
	}
	return nil
}

func (h *host) checkJIT(context.Context) error {
	if v, ok := h.number("net/core/bpf_jit_enable"); ok && v == 0 {
		h.find(setting(Finding{Check: "jit", Severity: Warning, Object: "net.core.bpf_jit_enable", Evidence: "it is 0",
			Consequence: "programs loaded from now on are interpreted, several times slower: the fast path may be slower than the kernel's"},
			"net/core/bpf_jit_enable", "0", "1"))
	}
	return nil
}

func (h *host) checkNeighbourTable(context.Context) error {
	most, ok := h.number("net/ipv4/neigh/default/gc_thresh3")
	if !ok {
		return nil // only the first network namespace has it
	}
	all, err := h.table()
	if err != nil {
		return err
	}
	n := 0
	for _, e := range all {
		if e.IP.Is4() && !e.Permanent {
			n++
		}
	}
	if n*10 >= most*9 {
		h.find(setting(Finding{Check: "neighbours", Severity: Warning, Object: "net.ipv4.neigh.default.gc_thresh3", Evidence: fmt.Sprintf("%d neighbours, room for %d", n, most),
			Consequence: "next hops that do not fit are forgotten: packets to VTEPs and containers are lost at random"},
			"net/ipv4/neigh/default/gc_thresh3", strconv.Itoa(most), strconv.Itoa(4*most)))
	}
	return nil
}

func (h *host) checkLocal(context.Context) error {
	seen := map[netip.Addr]bool{}
	for _, n := range h.snap.State.Networks {
		if !n.Local.IsValid() || seen[n.Local] {
			continue
		}
		seen[n.Local] = true
		i := slices.IndexFunc(h.addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == n.Local })
		switch {
		case i < 0:
			h.find(Finding{Check: "local_address", Severity: Problem, Object: n.Local.String(), Evidence: "it is on no link of this host",
				Consequence: "the other hosts' packets do not arrive, and what is sent from it is dropped",
				Fix:         []string{fmt.Sprintf("ip address add %s/PREFIX dev %s", n.Local, n.Device)}})
		case h.addresses[i].Tentative:
			h.find(Finding{Check: "local_address", Severity: Problem, Object: n.Local.String(), Evidence: "it is tentative, or duplicate address detection has failed (ip -6 address show)",
				Consequence: "the kernel does not send from it",
				Fix:         []string{fmt.Sprintf("ip -6 address show dev %s    # dadfailed: another host has the address; change one of the two", n.Device)}})
		}
	}
	return nil
}

func (h *host) checkRoutes(context.Context) error {
	neighbours, err := h.h.Neighbours()
	if err != nil {
		return err
	}
	for _, r := range h.remotes() {
		nets := h.towards(r)
		if len(nets) == 0 || !slices.ContainsFunc(h.addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == nets[0].Local }) {
			continue // another finding, and the route goes with the address
		}
		route, err := h.h.RouteTo(r, kernel.RouteOptions{})
		if err != nil {
			h.find(Finding{Check: "route", Severity: Problem, Object: "VTEP " + r.String(), Evidence: oneLine(err),
				Consequence: "nothing reaches the containers behind it",
				Fix:         []string{fmt.Sprintf("ip route get %s; ip route show", r)}})
			continue
		}
		if route.Local {
			h.find(Finding{Check: "route", Severity: Warning, Object: "VTEP " + r.String(), Evidence: "it is an address of this host",
				Consequence: "a copy of each broadcast goes to nowhere",
				Fix:         []string{"config: take it from remotes"}})
			continue
		}
		for _, e := range neighbours {
			if e.Link == route.Device && e.IP == route.NextHop && !e.Valid && !e.MAC.IsZero() {
				h.unknown("route", "VTEP "+r.String(), "its next hop "+e.IP.String()+" is just being looked for")
			}
		}
	}
	return nil
}

func (h *host) checkMoves(context.Context) error {
	for _, m := range h.moves {
		if m.times < 2 {
			continue // a container that moved
		}
		h.find(Finding{Check: "mac_moves", Severity: Problem, Object: m.mac, Evidence: fmt.Sprintf("moved %d times within %s, between %s", m.times, sampleTime, strings.Join(m.where, " and ")),
			Consequence: "a loop, or two containers with one MAC address: each loses the other's packets",
			Fix:         []string{fmt.Sprintf("vxbpf show fdb --mac %s; give one of the two another address", m.mac)}})
	}
	return nil
}

// known behind a VTEP: how many MAC addresses the data path or the kernel has seen from there.
func (h *host) known(v netip.Addr) (n int, youngest float64) {
	youngest = -1
	for _, e := range h.snap.FDB() {
		if e.VTEP == v {
			n++
			if !e.Static && (youngest < 0 || e.Age < youngest) {
				youngest = e.Age
			}
		}
	}
	return n, youngest
}

// ours reports whether a program belongs to vxbpf.
func (h *host) ours(id uint32) bool {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return false
	}
	defer p.Close()
	info, err := p.Info()
	return err == nil && strings.HasPrefix(info.Name, "vx_")
}
