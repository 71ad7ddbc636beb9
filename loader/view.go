// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/netfilter"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// view is what the kernel told us: the mirror's input. Events change it, a
// resync replaces it, and what the maps should hold is a pure function of it.
type view struct {
	links     map[int]kernel.Link // changed by setLink and delLink
	byName    map[string]int      // the same by name; nil: to be made
	byMaster  map[int][]kernel.Link
	bridgeFDB map[int]map[fdb.MAC]kernel.FDBEntry // by bridge; entries without a VLAN
	// vxlanFDB, by vxlan device: unicast MACs, which have one destination each;
	// only the flood entries of the device, not looked at here, have several.
	vxlanFDB   map[int]map[fdb.MAC]kernel.FDBEntry
	neighbours map[neighbourKey]kernel.Neighbour
	nextHops   map[uint32]kernel.NextHop
	// peers are the addresses of veth peers in other namespaces, by the ifindex of our end.
	peers map[int]fdb.MAC
	// tc is what others have put on devices that packets of the fast path would
	// go around; by ifindex.
	tc        map[int]foreign
	raw       map[int]rawPort     // ports that take raw frames
	addresses map[netip.Addr]bool // of this host
	subnets   []kernel.Address    // the same, with what is around them
	// named are the VTEPs that somebody wrote into the table of a vxlan device, by
	// its ifindex, with the number of entries.
	named        map[int]map[netip.Addr]int
	namedEntries map[namedKey]bool
	namesChanged bool // since the sources were last brought in line
	// rules are the packet filter's.
	rules  netfilter.Rules
	unread string // why they could not be read, "" if they were
}

// foreign names what someone else has at the hooks of a device, "" for nothing.
type foreign struct{ ingress, egress string }

type neighbourKey struct {
	dev int
	ip  netip.Addr
}

func newView() *view {
	return &view{
		links:      map[int]kernel.Link{},
		bridgeFDB:  map[int]map[fdb.MAC]kernel.FDBEntry{},
		vxlanFDB:   map[int]map[fdb.MAC]kernel.FDBEntry{},
		neighbours: map[neighbourKey]kernel.Neighbour{},
		nextHops:   map[uint32]kernel.NextHop{},
		peers:      map[int]fdb.MAC{},
		addresses:  map[netip.Addr]bool{},

		named:        map[int]map[netip.Addr]int{},
		namedEntries: map[namedKey]bool{},
	}
}

func (v *view) setLink(l kernel.Link) {
	v.links[l.Index] = l
	v.byName, v.byMaster = nil, nil
}

func (v *view) delLink(index int) {
	delete(v.links, index)
	v.byName, v.byMaster = nil, nil
}

func (v *view) order() {
	if v.byName != nil {
		return
	}
	v.byName, v.byMaster = make(map[string]int, len(v.links)), map[int][]kernel.Link{}
	for i, l := range v.links {
		v.byName[l.Name] = i
		if l.Master != 0 {
			v.byMaster[l.Master] = append(v.byMaster[l.Master], l)
		}
	}
	for _, ports := range v.byMaster {
		slices.SortFunc(ports, func(a, b kernel.Link) int { return a.Index - b.Index })
	}
}

func (v *view) linkByName(name string) (kernel.Link, bool) {
	v.order()
	i, ok := v.byName[name]
	return v.links[i], ok
}

// setFDB takes one entry of a dump or an event.
func (v *view) setFDB(e kernel.FDBEntry) {
	v.unname(e)
	v.name(e, 1)
	switch {
	case e.VLAN != 0 || e.MAC.IsZero() || e.MAC.IsMulticast():
	case e.Self:
		if v.vxlanFDB[e.Link] == nil {
			v.vxlanFDB[e.Link] = map[fdb.MAC]kernel.FDBEntry{}
		}
		v.vxlanFDB[e.Link][e.MAC] = e
	default:
		if v.bridgeFDB[e.Bridge] == nil {
			v.bridgeFDB[e.Bridge] = map[fdb.MAC]kernel.FDBEntry{}
		}
		v.bridgeFDB[e.Bridge][e.MAC] = e
	}
}

func (v *view) delFDB(e kernel.FDBEntry) {
	v.unname(e)
	v.name(e, -1)
	switch {
	case e.VLAN != 0:
	case e.Self:
		delete(v.vxlanFDB[e.Link], e.MAC)
	default:
		delete(v.bridgeFDB[e.Bridge], e.MAC)
	}
}

// replaceFDB takes a whole dump.
func (v *view) replaceFDB(all []kernel.FDBEntry) {
	v.bridgeFDB, v.vxlanFDB = map[int]map[fdb.MAC]kernel.FDBEntry{}, map[int]map[fdb.MAC]kernel.FDBEntry{}
	v.named, v.namedEntries, v.namesChanged = map[int]map[netip.Addr]int{}, map[namedKey]bool{}, true
	for _, e := range all {
		v.setFDB(e)
	}
}

// network is one configured network as it stands on this host.
type network struct {
	cfg   config.Network
	id    fdb.NetID
	local netip.Addr // outer source
	// fallback is why this network runs on the kernel path for good; "" if it is on BPF.
	fallback string

	// Resolved from the view by resolve().
	bridge, link kernel.Link
	off          string // why every packet goes the kernel's way just now; "" if the fast path is on
	told         string // the value of off that was logged last
	from         senders
	soft         bool // frames from the underlay device may lack checksums
}

func (n *network) key() maps.NetworkKey {
	return maps.NetworkKey{VNI: n.cfg.VNI, Port: n.cfg.Underlay.Port}
}

// resolve finds the network's links by name and says whether the kernel's state
// lets the fast path repeat its decisions.
func (n *network) resolve(v *view) {
	n.bridge, n.link, n.off = kernel.Link{}, kernel.Link{}, ""
	br, ok := v.linkByName(n.cfg.Bridge.Name)
	if !ok || br.Bridge == nil {
		n.off = "bridge " + n.cfg.Bridge.Name + " is gone"
		return
	}
	n.bridge = br
	l, ok := v.linkByName(n.cfg.Link)
	if !ok || l.VXLAN == nil {
		n.off = "vxlan link " + n.cfg.Link + " is gone"
		return
	}
	n.link = l
	x := l.VXLAN
	if x.Local.IsValid() {
		n.local = x.Local
	}
	switch {
	case l.Master != br.Index:
		n.off = l.Name + " is not a port of " + br.Name
	case !br.Up:
		n.off = "bridge " + br.Name + " is down"
	case !l.Up:
		n.off = "vxlan link " + l.Name + " is down"
	case br.Bridge.Ageing == 0:
		n.off = "bridge " + br.Name + " forgets at once (ageing 0)"
	case br.Bridge.VLANFiltering:
		n.off = "bridge " + br.Name + " filters VLANs"
	case x.External || x.GBP || x.GPE || x.RemCsum || x.VNIFilter || x.RSC:
		n.off = l.Name + " is in external, gbp, gpe, remcsum, rsc or vnifilter mode"
	case x.VNI != n.cfg.VNI || x.Port != n.cfg.Underlay.Port:
		n.off = l.Name + " has another VNI or port than the config"
	case !v.addresses[n.local]:
		n.off = "local address " + n.local.String() + " is on no link of this host"
	case n.v6() && !x.UDPZeroCsum6TX:
		n.off = l.Name + " sends UDP checksums over IPv6, which only the kernel computes (udp_checksum: false is carried by BPF)"
	case n.v6() && x.LabelInherit:
		n.off = l.Name + " inherits the flow label"
	case !n.v6() && x.UDPCsum:
		n.off = l.Name + " sends UDP checksums, which only the kernel computes"
	default:
		if ok, why := forwards(l); !ok {
			n.off = why
		}
	}
	// Encapsulation goes around the vxlan device's egress, decapsulation around its ingress and what follows us at the underlay's.
	// WireGuard and other tunnels: nothing that a template could start with, and nothing that vx_tc_decap could read.
	if dev, ok := v.linkByName(n.cfg.Underlay.Device); ok && n.off == "" && dev.MAC.IsZero() {
		n.off = dev.Name + " has no Ethernet header"
	}
	if n.off == "" {
		if f := v.tc[l.Index]; f != (foreign{}) {
			n.off = l.Name + " carries another " + cmp.Or(f.ingress, f.egress)
		} else if dev, ok := v.linkByName(n.cfg.Underlay.Device); ok && v.tc[dev.Index].ingress != "" {
			n.off = dev.Name + " carries another " + v.tc[dev.Index].ingress
		}
	}
	if n.off == "" {
		if why := n.judged(v); why != "" {
			n.off = why + wayPast(why)
		}
	}
}

func device(l kernel.Link) netfilter.Dev { return netfilter.Dev{Name: l.Name, Index: l.Index} }

// wayPast says what to do where a rule is not meant for the network's packets:
// those of Docker and libvirt mostly are not, and see bridged packets all the same.
func wayPast(why string) string {
	s := "; if it is not meant for them: bypass_netfilter: true"
	for _, tables := range []string{"iptables", "ip6tables"} {
		if strings.Contains(why, "(bridge-nf-call-"+tables+" is 1)") {
			s += ", or sysctl -w net.bridge.bridge-nf-call-" + tables + "=0"
		}
	}
	return s
}

// judged names packet filter rules that see the network's packets on the
// kernel's way and would not on the fast path, "" if there are none or the
// config says that they may be passed by.
func (n *network) judged(v *view) string {
	if n.cfg.BypassNetfilter {
		return ""
	}
	if v.unread != "" {
		return v.unread
	}
	b := netfilter.Bridge{Dev: device(n.bridge), IPTables: n.bridge.Bridge.NFCallIPTables, IP6Tables: n.bridge.Bridge.NFCallIP6Tables,
		Ports: []netfilter.Dev{device(n.link)}}
	for _, l := range v.ports(n) {
		b.Ports = append(b.Ports, device(l))
	}
	if why := v.rules.Inner(b); why != "" {
		return why
	}
	u := netfilter.Underlay{Local: n.local, Port: n.cfg.Underlay.Port}
	dev, ok := v.linkByName(n.cfg.Underlay.Device)
	if ok && dev.Master == 0 && n.link.VXLAN.Device == dev.Index {
		u.Dev = device(dev)
	}
	return cmp.Or(v.rules.Outer(u), v.rules.Ingress(device(dev)), v.rules.Ingress(device(n.link)), v.rules.Egress(device(n.link)), v.rules.Egress(device(dev)))
}

// v6 reports the family of the outer packets.
func (n *network) v6() bool { return n.local.Is6() }

// fastPort reports whether packets between a port and the vxlan link may take the fast path.
func (v *view) fastPort(n *network, l kernel.Link) (bool, string) {
	if ok, why := forwards(l); !ok {
		return false, why
	}
	if l.Port.Isolated && n.link.Port != nil && n.link.Port.Isolated {
		return false, l.Name + " and " + n.link.Name + " are isolated from each other"
	}
	if f := v.tc[l.Index].ingress; f != "" {
		return false, l.Name + " carries another " + f
	}
	if !n.cfg.BypassNetfilter {
		if why := cmp.Or(v.rules.Ingress(device(l)), v.rules.Egress(device(l))); why != "" {
			return false, why + wayPast(why)
		}
	}
	return true, ""
}

// forwards reports whether the bridge forwards to and learns from a port without conditions.
func forwards(l kernel.Link) (bool, string) {
	p := l.Port
	switch {
	case p == nil:
		return false, l.Name + " is not a bridge port"
	case !l.Up:
		return false, l.Name + " is down"
	case p.State != kernel.PortForwarding:
		return false, l.Name + " is not in forwarding state"
	case p.Locked || p.MAB:
		return false, l.Name + " is locked"
	case p.VLANTunnel || p.BackupPort != 0:
		return false, l.Name + " has a VLAN tunnel or a backup port"
	}
	return true, ""
}

// mss is what the programs take for mss_clamp: the largest TCP segment with
// headers of 40 bytes over IPv4, 60 over IPv6. 0: do not clamp.
func (n *network) mss() uint16 {
	switch n.cfg.MSSClamp {
	case config.MSSOff:
		return 0
	case config.MSSAuto:
		return mtu16(n.link.MTU)
	}
	return mtu16(n.cfg.MSSClamp + 40)
}

// ageing of learned entries: the shorter of the bridge's and the vxlan device's (there, 0 is never).
func (n *network) ageing() time.Duration {
	b, x := n.bridge.Bridge.Ageing, n.link.VXLAN.Ageing
	if x != 0 && x < b {
		return x
	}
	return b
}

// refresh is how often the kernel must see a frame of each MAC: often enough
// that an entry in use never comes near its end.
func refresh(ageing time.Duration) time.Duration {
	return ageing / 4
}

// entry is where the kernel would send frames to this MAC, if that is something
// the fast path can repeat. now is what Seen is reckoned from.
func (v *view) entry(n *network, mac fdb.MAC, now time.Duration) (fdb.Entry, bool) {
	if n.off != "" {
		return fdb.Entry{}, false
	}
	b, ok := v.bridgeFDB[n.bridge.Index][mac]
	if !ok || b.Waiting {
		return fdb.Entry{}, false
	}
	seen := max(now-b.Age, 0)
	if b.Local {
		// The bridge takes frames to any of its ports' addresses for the host;
		// only its own is one that hosts answer from.
		if mac != n.bridge.MAC {
			return fdb.Entry{}, false
		}
		if v.tc[b.Bridge].egress != "" {
			return fdb.Entry{}, false
		}
		return fdb.Entry{Kind: fdb.Host, Port: uint32(n.bridge.Index), MTU: mtu16(n.bridge.MTU), Static: true, Sticky: true, Seen: now}, true
	}
	if b.Link == n.link.Index {
		d, ok := v.vxlanFDB[n.link.Index][mac]
		if d.NextHop != 0 {
			// A learning vxlan device drops whatever comes from such a MAC (vxlan_snoop).
			if n.link.VXLAN.Learning {
				return fdb.Entry{}, false
			}
			d.Dst = v.gateway(d.NextHop)
		}
		if !ok || !d.Dst.IsValid() || d.Dst.Is6() != n.v6() || d.IfIndex != 0 || d.VNI != 0 && d.VNI != n.cfg.VNI || d.Port != 0 && d.Port != n.cfg.Underlay.Port {
			return fdb.Entry{}, false
		}
		// The programs take it that who is behind an entry may send.
		if !n.from.allow(d.Dst) {
			return fdb.Entry{}, false
		}
		// Only where neither table ages: else the kernel must see a frame now and then.
		static := (b.Static || b.Extern) && (d.Static || d.Extern)
		return fdb.Entry{Kind: fdb.Remote, VTEP: d.Dst, Static: static, Sticky: b.Sticky, Pinned: d.Static || !n.link.VXLAN.Learning, Seen: seen}, true
	}
	p, ok := v.links[b.Link]
	if !ok || p.Master != n.bridge.Index {
		return fdb.Entry{}, false
	}
	if ok, _ := v.fastPort(n, p); !ok {
		return fdb.Entry{}, false
	}
	e := fdb.Entry{Kind: fdb.Egress, Port: uint32(p.Index), MTU: mtu16(p.MTU), Static: b.Static || b.Extern, Sticky: b.Sticky, Seen: seen}
	// bpf_redirect_peer drops where the other end is in this namespace, and goes
	// around filters and shaping at the port's egress.
	if p.Kind == "veth" && p.PeerElsewhere && v.tc[p.Index].egress == "" {
		// What lives behind the peer, in a nested bridge for example, must arrive
		// as another host's, which the redirect cannot say since 6.15.
		if peer, known := v.peers[p.Index]; known && mac == peer {
			e.Kind = fdb.Peer
		}
	}
	v.rawOf(&e)
	return e, true
}

// gateway is the one VTEP that a next hop object stands for, invalid if there
// are several: then the kernel chooses per flow.
func (v *view) gateway(id uint32) netip.Addr {
	h := v.nextHops[id]
	if len(h.Group) == 1 {
		h = v.nextHops[h.Group[0]]
	}
	if !h.FDB {
		return netip.Addr{}
	}
	return h.Gateway
}

// table is entry for every MAC of a network.
func (v *view) table(n *network, now time.Duration) fdb.Table {
	t := fdb.Table{}
	for mac := range v.bridgeFDB[n.bridge.Index] {
		if e, ok := v.entry(n, mac, now); ok {
			t[fdb.Key{Net: n.id, MAC: mac}] = e
		}
	}
	return t
}

// ports are the links of the network that carry a program, the vxlan link left out, by ifindex.
func (v *view) ports(n *network) []kernel.Link {
	v.order()
	var out []kernel.Link
	for _, l := range v.byMaster[n.bridge.Index] {
		if l.Index != n.link.Index {
			out = append(out, l)
		}
	}
	return out
}

func mtu16(n int) uint16 { return uint16(min(max(n, 0), 65535)) }
