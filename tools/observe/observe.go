// SPDX-License-Identifier: Apache-2.0

// Package observe reads what a data path is and does: the state file, the
// pinned maps, and the kernel's own tables. It needs no daemon and changes
// nothing. The JSON keys of its types are interface: keys are added, never
// renamed.
package observe

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// ErrNothingLoaded: there is no such instance.
var ErrNothingLoaded = errors.New("nothing is loaded")

// Snapshot is one look at a data path.
type Snapshot struct {
	At     time.Time
	Mono   time.Duration // the same on the clock of the programs
	State  *loader.State
	Daemon int           // pid of the daemon, 0: none
	Lease  time.Duration // how long the daemon still vouches for what it knows; 0: no more. maps.Forever: --once

	Networks []Network
	VTEPs    []VTEP
	Ports    []Port
	Counts   map[string]maps.Counts // by network
	// Guarded are the counters of networks on the kernel path, whose outer sources alone are BPF's business.
	Guarded   map[string]maps.Counts
	Strangers []maps.Stranger // whose packets were dropped

	entries fdb.Table // of the FDB map
	vteps   map[uint32]maps.VTEP
	fdbSize int
	links   map[int]kernel.Link
	traffic map[int]PortTraffic // by ifindex
	kernel  []kernel.FDBEntry
	ids     map[fdb.NetID]string
}

// Share is how much traffic there was, and how much of it BPF carried.
type Share struct {
	Fast      uint64 `json:"fast"`  // packets
	Total     uint64 `json:"total"` // packets
	FastBytes uint64 `json:"fast_bytes"`
	Bytes     uint64 `json:"bytes"`
}

// Less is what came since o.
func (s Share) Less(o Share) Share {
	return Share{less(s.Fast, o.Fast), less(s.Total, o.Total), less(s.FastBytes, o.FastBytes), less(s.Bytes, o.Bytes)}
}

// less: counters that began anew begin at 0.
func less(a, b uint64) uint64 {
	if a < b {
		return a
	}
	return a - b
}

func share(fast, total maps.Count) Share {
	return Share{fast.Packets, total.Packets, fast.Bytes, total.Bytes}
}

func (s Share) String() string {
	if s.Total == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(s.Fast)/float64(s.Total))
}

// Network is one network of the config, as it stands.
type Network struct {
	Name      string          `json:"name"`
	ID        fdb.NetID       `json:"id"` // in the maps; 0: not in them
	VNI       fdb.VNI         `json:"vni"`
	UDPPort   uint16          `json:"udp_port"`
	Bridge    string          `json:"bridge"`
	Link      string          `json:"link"`
	Device    string          `json:"device"`
	Local     netip.Addr      `json:"local"`
	MTU       int             `json:"mtu"`              // of the vxlan link; 0: it is gone
	Wanted    config.Datapath `json:"wanted"`           // as configured
	Datapath  config.Datapath `json:"datapath"`         // tc or kernel
	Reason    string          `json:"reason,omitempty"` // why packets take the kernel's way; "": they need not
	Ports     int             `json:"ports"`
	VTEPs     []netip.Addr    `json:"vteps"` // behind which a MAC is known
	FDBLocal  int             `json:"fdb_local"`
	FDBRemote int             `json:"fdb_remote"`
	Sent      Share           `json:"sent"`
	Received  Share           `json:"received"`
}

// Fast reports a network whose packets may take the fast path.
func (n *Network) Fast() bool { return n.Datapath != config.Kernel && n.Reason == "" }

// VTEP is another host, as this one sees it.
type VTEP struct {
	Remote  netip.Addr `json:"vtep"`
	UDPPort uint16     `json:"udp_port"`
	Local   netip.Addr `json:"local"`
	Index   uint32     `json:"index"` // in the maps; 0: not in them
	Device  string     `json:"device"`
	MAC     string     `json:"mac"` // of the next hop; "": not resolved
	MTU     int        `json:"mtu"` // of the path, outer IP header included; 0: unknown
	// State is "ready"; "resolving": the next hop's MAC is asked for per packet;
	// "down": no way there; "idle": no MAC is known behind it.
	State    string   `json:"state"`
	Networks []string `json:"networks"` // with MACs behind it
	Flood    []string `json:"flood"`    // whose BUM traffic goes there
	MACs     int      `json:"macs"`
	maps.Traffic
	mac fdb.MAC
}

// Sent and Received are its traffic as shares.
func (v *VTEP) Sent() Share { return sum(v.SentFast, v.SentSlow) }

// Received is the other direction.
func (v *VTEP) Received() Share { return sum(v.ReceivedFast, v.ReceivedSlow) }

func sum(fast, slow maps.Count) Share {
	return Share{fast.Packets, fast.Packets + slow.Packets, fast.Bytes, fast.Bytes + slow.Bytes}
}

// Port is a bridge port, or the bridge or vxlan device itself.
type Port struct {
	Network string `json:"network"`
	Name    string `json:"name"`
	Index   int    `json:"ifindex"`
	// Role is "port", "bridge" (the host's own traffic) or "vxlan".
	Role   string `json:"role"`
	Kind   string `json:"kind"` // as in `ip -d link`
	MTU    int    `json:"mtu"`
	MACs   int    `json:"macs"`
	Fast   bool   `json:"fast"`
	Reason string `json:"reason,omitempty"` // why not
	// Traffic is what the kernel counts at the port, traffic inside the host included; with Options.Traffic, and only
	// where Role is "port".
	Traffic *PortTraffic `json:"traffic,omitempty"`
}

// PortTraffic is as whoever sits behind the port would say: what it sent, and what it received.
type PortTraffic struct {
	Sent     maps.Count `json:"sent"`
	Received maps.Count `json:"received"`
}

// Entry is a MAC address and where it lives.
type Entry struct {
	Network string     `json:"network"`
	VNI     fdb.VNI    `json:"vni"`
	MAC     fdb.MAC    `json:"mac"`
	Kind    string     `json:"kind"`           // remote, peer, egress, host; for one that only the kernel has: remote or local
	Port    string     `json:"port,omitempty"` // where it is local
	VTEP    netip.Addr `json:"vtep,omitzero"`
	Static  bool       `json:"static"`
	// Age is the time since the kernel last had a frame of it, in seconds. Static entries have none.
	Age float64 `json:"age_seconds"`
	// Fast: the data path has it. Else only the kernel knows it, and its frames take the kernel's way.
	Fast bool `json:"fast"`
}

// Reason is how often packets took a way, and why.
type Reason struct {
	Network string `json:"network"`
	Hook    string `json:"hook"`
	Reason  string `json:"reason"`
	maps.Count
	Meaning string `json:"meaning"`
}

// Options of Read.
type Options struct {
	loader.Options
	// Kernel reads the kernel's forwarding tables too: entries that only it has, and flood lists.
	Kernel bool
	// Traffic reads the kernel's counters of each bridge port.
	Traffic bool
	// Daemon is the daemon's pid where the caller knows it. The daemon itself must
	// say so: asking who holds the lock would give up its own (fcntl(2)).
	Daemon int
}

// Read looks at an instance. The error wraps ErrNothingLoaded if there is none.
func Read(o Options) (*Snapshot, error) {
	st, err := loader.ReadState(o.RunDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w as instance %q; start it with `vxbpf load CONFIG`", ErrNothingLoaded, o.Instance)
	}
	if err != nil {
		return nil, err
	}
	s := &Snapshot{At: time.Now(), Mono: maps.Now(), State: st, Counts: map[string]maps.Counts{}, Guarded: map[string]maps.Counts{}, links: map[int]kernel.Link{}, traffic: map[int]PortTraffic{},
		ids: map[fdb.NetID]string{}, Networks: []Network{}, VTEPs: []VTEP{}, Ports: []Port{}}
	if s.Daemon = o.Daemon; s.Daemon == 0 {
		if s.Daemon, err = loader.Holder(o.RunDir()); err != nil {
			return nil, err
		}
	}
	if err := s.readMaps(); err != nil {
		return nil, err
	}
	if err := s.readKernel(o); err != nil {
		return nil, err
	}
	s.build()
	return s, nil
}

func (s *Snapshot) readMaps() (err error) {
	if s.State.Pins == "" || s.State.Attach == "" {
		return nil
	}
	set, done, err := maps.OpenPinned(s.State.Pins)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w; run as root", err)
	}
	if err != nil {
		return err
	}
	defer func() { _ = done() }() // only file descriptors
	if s.vteps, err = set.VTEPs.All(); err != nil {
		return err
	}
	if s.entries, err = set.FDB.All(func(i uint32) netip.Addr { return s.vteps[i].Remote }); err != nil {
		return err
	}
	s.fdbSize = set.FDB.Len()
	until, err := set.Control.Lease()
	if err != nil {
		return err
	}
	if s.Lease = max(until-s.Mono, 0); until == maps.Forever {
		s.Lease = maps.Forever
	}
	for _, n := range s.State.Networks {
		if n.Mode == config.Kernel {
			if n.ID != 0 {
				if s.Guarded[n.Name], err = set.Counters.Read(n.ID); err != nil {
					return err
				}
			}
			continue
		}
		s.ids[n.ID] = n.Name
		if s.Counts[n.Name], err = set.Counters.Read(n.ID); err != nil {
			return err
		}
	}
	if s.Strangers, err = set.Strangers.All(); err != nil {
		return err
	}
	for i, v := range s.vteps {
		t, err := set.ByVTEP.Read(i)
		if err != nil {
			return err
		}
		s.VTEPs = append(s.VTEPs, VTEP{Remote: v.Remote, UDPPort: v.Port, Local: v.Src, Index: i, MTU: int(v.MTU), State: vtepState(v),
			Networks: []string{}, Flood: []string{}, Traffic: t, mac: v.DstMAC, Device: fmt.Sprint(v.Device)})
	}
	return nil
}

func vtepState(v maps.VTEP) string {
	switch {
	case v.Off:
		return "down"
	case !v.MACs:
		return "resolving"
	}
	return "ready"
}

// readKernel never fails for want of rights: what it shows is an addition.
func (s *Snapshot) readKernel(o Options) error {
	h, err := kernel.Open()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		s.links[l.Index] = l
	}
	if o.Traffic {
		for _, n := range s.State.Networks {
			for _, p := range n.Ports {
				l, ok := s.links[p.Index]
				if !ok {
					continue
				}
				c, ok, err := h.PortCounters(l)
				if err != nil {
					return err
				}
				if !ok {
					continue // it went just now
				}
				s.traffic[p.Index] = PortTraffic{Sent: maps.Count{Packets: c.FromPackets, Bytes: c.FromBytes}, Received: maps.Count{Packets: c.ToPackets, Bytes: c.ToBytes}}
			}
		}
	}
	if o.Kernel {
		s.kernel, err = h.FDB()
	}
	return err
}

func (s *Snapshot) link(name string) (kernel.Link, bool) {
	for _, l := range s.links {
		if l.Name == name {
			return l, true
		}
	}
	return kernel.Link{}, false
}

func (s *Snapshot) build() {
	byIndex := map[uint32]*VTEP{}
	for i := range s.VTEPs {
		v := &s.VTEPs[i]
		byIndex[v.Index] = v
		if l, ok := s.links[int(s.vteps[v.Index].Device)]; ok {
			v.Device = l.Name
		}
		if v.State == "down" {
			v.Device = ""
		}
		if !v.mac.IsZero() && v.State == "ready" {
			v.MAC = v.mac.String()
		}
	}
	type home struct {
		net  fdb.NetID
		port uint32
	}
	local := map[home]int{}
	behind := map[fdb.NetID]map[netip.Addr]int{}
	for k, e := range s.entries {
		if e.Pending {
			continue
		}
		if e.Kind != fdb.Remote {
			local[home{k.Net, e.Port}]++
			continue
		}
		if behind[k.Net] == nil {
			behind[k.Net] = map[netip.Addr]int{}
		}
		behind[k.Net][e.VTEP]++
	}
	for _, n := range s.State.Networks {
		net := Network{Name: n.Name, ID: n.ID, VNI: n.VNI, UDPPort: n.Port, Bridge: n.Bridge, Link: n.Link, Device: n.Device, Local: n.Local,
			Wanted: n.Wanted, Datapath: n.Mode, Reason: n.Reason, Ports: len(n.Ports), VTEPs: []netip.Addr{}}
		vx, ok := s.link(n.Link)
		if ok {
			net.MTU = vx.MTU
		}
		if counts := s.Counts[n.Name]; counts != nil {
			net.Sent, net.Received = share(counts.Sent()), share(counts.Received())
			for v, macs := range behind[n.ID] {
				net.FDBRemote += macs
				net.VTEPs = append(net.VTEPs, v)
				for i := range s.VTEPs {
					if t := &s.VTEPs[i]; t.Remote == v && t.UDPPort == n.Port && !slices.Contains(t.Networks, n.Name) {
						t.Networks = append(t.Networks, n.Name)
						t.MACs += macs
					}
				}
			}
			slices.SortFunc(net.VTEPs, netip.Addr.Compare)
		}
		for _, p := range n.Ports {
			port := Port{Network: n.Name, Name: p.Name, Index: p.Index, Role: "port", Fast: p.Fast, Reason: p.Reason,
				MACs: local[home{n.ID, uint32(p.Index)}]}
			if l, ok := s.links[p.Index]; ok {
				port.Kind, port.MTU = l.Kind, l.MTU
			}
			if t, ok := s.traffic[p.Index]; ok {
				port.Traffic = &t
			}
			net.FDBLocal += port.MACs
			s.Ports = append(s.Ports, port)
		}
		for role, name := range map[string]string{"bridge": n.Bridge, "vxlan": n.Link} {
			l, ok := s.link(name)
			if !ok || s.Counts[n.Name] == nil {
				continue
			}
			p := Port{Network: n.Name, Name: name, Index: l.Index, Role: role, Kind: l.Kind, MTU: l.MTU, Fast: n.Reason == "", Reason: n.Reason,
				MACs: local[home{n.ID, uint32(l.Index)}]}
			net.FDBLocal += p.MACs
			s.Ports = append(s.Ports, p)
		}
		s.Networks = append(s.Networks, net)
	}
	s.floods()
	for i := range s.VTEPs {
		slices.Sort(s.VTEPs[i].Networks)
		slices.Sort(s.VTEPs[i].Flood)
	}
	slices.SortFunc(s.VTEPs, func(a, b VTEP) int {
		return cmp.Or(a.Remote.Compare(b.Remote), cmp.Compare(a.UDPPort, b.UDPPort), cmp.Compare(a.Index, b.Index))
	})
	roles := []string{"port", "bridge", "vxlan"}
	slices.SortStableFunc(s.Ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(s.order(a.Network), s.order(b.Network)), cmp.Compare(slices.Index(roles, a.Role), slices.Index(roles, b.Role)),
			cmp.Compare(a.Name, b.Name))
	})
}

// floods adds the VTEPs that get copies of what is for everybody.
func (s *Snapshot) floods() {
	for i := range s.State.Networks {
		n := &s.State.Networks[i]
		vx, ok := s.link(n.Link)
		if !ok {
			continue
		}
		for _, e := range s.kernel {
			if !e.Self || e.Link != vx.Index || !e.MAC.IsZero() || !e.Dst.IsValid() {
				continue
			}
			at := slices.IndexFunc(s.VTEPs, func(v VTEP) bool { return v.Remote == e.Dst && v.UDPPort == n.Port })
			if at < 0 {
				s.VTEPs = append(s.VTEPs, VTEP{Remote: e.Dst, UDPPort: n.Port, Local: n.Local, State: "idle", Networks: []string{}, Flood: []string{}})
				at = len(s.VTEPs) - 1
			}
			if v := &s.VTEPs[at]; !slices.Contains(v.Flood, n.Name) {
				v.Flood = append(v.Flood, n.Name)
			}
		}
	}
}

func (s *Snapshot) order(network string) int {
	return slices.IndexFunc(s.State.Networks, func(n loader.NetworkState) bool { return n.Name == network })
}

// Network is the network of that name, nil if there is none.
func (s *Snapshot) Network(name string) *Network {
	for i := range s.Networks {
		if s.Networks[i].Name == name {
			return &s.Networks[i]
		}
	}
	return nil
}

// FDBEntries is how many entries the FDB map holds, and how many it could.
func (s *Snapshot) FDBEntries() (n, size int) { return len(s.entries), s.fdbSize }

// FDB lists what the data path knows, and what only the kernel knows.
func (s *Snapshot) FDB() []Entry {
	out := []Entry{}
	for i := range s.State.Networks {
		n := &s.State.Networks[i]
		have := map[fdb.MAC]bool{}
		for k, e := range s.entries {
			if n.ID == 0 || k.Net != n.ID || e.Pending {
				continue
			}
			have[k.MAC] = true
			row := Entry{Network: n.Name, VNI: n.VNI, MAC: k.MAC, Kind: e.Kind.String(), VTEP: e.VTEP, Static: e.Static, Fast: n.Reason == ""}
			if e.Kind != fdb.Remote {
				row.Port = s.name(int(e.Port))
			}
			if !e.Static {
				row.Age = max(s.Mono-e.Seen, 0).Round(time.Millisecond).Seconds()
			}
			out = append(out, row)
		}
		out = append(out, s.onlyKernel(n, have)...)
	}
	slices.SortStableFunc(out, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(s.order(a.Network), s.order(b.Network)), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	return out
}

// onlyKernel are the entries of a network's bridge that the data path has not.
func (s *Snapshot) onlyKernel(n *loader.NetworkState, have map[fdb.MAC]bool) (out []Entry) {
	br, ok1 := s.link(n.Bridge)
	vx, ok2 := s.link(n.Link)
	if !ok1 || !ok2 {
		return nil
	}
	dst := map[fdb.MAC]netip.Addr{}
	for _, e := range s.kernel {
		if e.Self && e.Link == vx.Index && !e.MAC.IsZero() {
			dst[e.MAC] = e.Dst
		}
	}
	for _, e := range s.kernel {
		// The addresses of the ports themselves are the bridge's own affair.
		if e.Self || e.Bridge != br.Index || have[e.MAC] || e.MAC.IsMulticast() || e.Local && e.MAC != br.MAC {
			continue
		}
		have[e.MAC] = true // one line, whatever the number of VLANs
		row := Entry{Network: n.Name, VNI: n.VNI, MAC: e.MAC, Kind: "local", Static: e.Static || e.Extern || e.Local, Age: e.Age.Seconds()}
		if e.Link == vx.Index {
			row.Kind, row.VTEP = "remote", dst[e.MAC]
		} else {
			row.Port = s.name(e.Link)
		}
		if row.Static {
			row.Age = 0
		}
		out = append(out, row)
	}
	return out
}

func (s *Snapshot) name(ifindex int) string {
	if l, ok := s.links[ifindex]; ok {
		return l.Name
	}
	return fmt.Sprintf("if%d", ifindex)
}

// Reasons lists all counters that are not 0, in the order of the networks, the most frequent first.
func (s *Snapshot) Reasons() []Reason {
	out := []Reason{}
	for _, n := range s.Networks {
		counts := s.Counts[n.Name]
		if counts == nil {
			counts = s.Guarded[n.Name]
		}
		for h, byReason := range counts {
			for r, c := range byReason {
				out = append(out, Reason{Network: n.Name, Hook: h.String(), Reason: r.String(), Count: c, Meaning: Meaning(r)})
			}
		}
	}
	slices.SortFunc(out, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(s.order(a.Network), s.order(b.Network)), cmp.Compare(b.Packets, a.Packets),
			cmp.Compare(a.Hook, b.Hook), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

// From are the strangers of one network; SourceUnion: those whose packets did not show their network.
func (s *Snapshot) From(net fdb.NetID) []maps.Stranger {
	out := []maps.Stranger{}
	for _, e := range s.Strangers {
		if e.Net == net {
			out = append(out, e)
		}
	}
	return out
}

// Degraded names the networks that were to run on BPF and do not.
func (s *Snapshot) Degraded() []string { return s.State.Degraded() }

// meanings say what became of a packet, for a person who has not read the architecture.
var meanings = map[string]string{
	"fast":            "carried by BPF",
	"bum":             "broadcast, multicast: the kernel floods",
	"src_unknown":     "the kernel has the source MAC to learn",
	"src_moved":       "the source MAC was known elsewhere: the kernel learns its new place",
	"refresh":         "due: the kernel must see a frame of this MAC to keep its entry young",
	"dst_unknown":     "the destination MAC is not known: the kernel floods or forwards",
	"dst_local":       "from a port of this bridge to another: the bridge forwards",
	"dst_remote":      "from a VTEP to a MAC behind a VTEP: the bridge does not forward that",
	"dst_aged":        "the destination has been silent for the ageing time: the kernel floods or forwards",
	"no_lease":        "static entry, and no daemon to vouch for it",
	"not_ip":          "ARP, 802.1Q, LLC: the kernel's",
	"vlan_tag":        "VLAN tag in the packet's metadata: the bridge decides",
	"mtu":             "larger than path, link or port takes: the kernel fragments or answers \"too big\"",
	"gso_headers":     "headers of a GSO packet cannot be measured: the kernel segments",
	"too_long":        "over 65535 bytes with the outer header: the kernel segments",
	"nested":          "still marked as encapsulated by another tunnel: the kernel encapsulates",
	"adjust_failed":   "the kernel refused to make or take room for the header: it does it itself",
	"no_vtep":         "no usable outer header, for example no route: the kernel routes or drops",
	"outer_csum":      "outer UDP checksum that nobody has verified: the kernel does",
	"outer_malformed": "outer lengths, header checksum or VXLAN flags: the kernel judges",
	"outer_ecn":       "outer ECN that RFC 6040 drops or rewrites: the kernel's",
	"outer_not_local": "our VNI, not our VTEP address: the kernel judges",
	"aggregate":       "GRO aggregate: the vxlan device decapsulates, BPF carries on from there",
	"in_order":        "an earlier frame of this MAC is on the slow path: not to be overtaken",
	"port_kind":       "the port is served from the vxlan device",
	"truncated":       "headers are not there: the kernel judges",
	"not_ready":       "network or port is kept on the slow path: see `vxbpf status`",
	"mss":             "XDP: a SYN whose MSS may be lowered: the tc program looks at it",
	"inner_csum":      "XDP: the inner checksum is not filled in yet, or wrong: by GRO and tc",
	"drop_stranger":   "DROPPED: its outer source may not send to the network (allowed_sources)",
	"drop_broken":     "DROPPED: a helper failed after the packet was changed",
	"src_static":      "the source MAC is static elsewhere: the kernel drops it or does not learn",
	"nd":              "IPv6 neighbour discovery: the bridge may answer",
	"port_gone":       "the destination's port is gone: the kernel floods or forwards",
}

// Meaning says in a few words what a reason means.
func Meaning(r bpf.Reason) string { return MeaningOf(r.String()) }

// MeaningOf is Meaning by name.
func MeaningOf(reason string) string { return meanings[reason] }
