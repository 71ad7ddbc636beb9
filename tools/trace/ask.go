// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Question is a packet to follow.
type Question struct {
	From, To string // IP or MAC addresses
	Network  string // "": the one that both are on
	Length   int    // of the inner frame in bytes, Ethernet header included; 0: 98, a ping
	// EtherType of the frame; 0: that of the addresses, IPv4 for MAC addresses.
	EtherType uint16
	VLAN      bool // with a tag
	// At is where the packet comes from, if not from where the kernel has the
	// sender: a device of this host, or the address of a VTEP.
	At string
	// Probe asks the network for the MAC address of an IP address that no table
	// of this host knows: an ARP or neighbour request, sent from the bridge.
	Probe bool
}

// Endpoint is one end of it.
type Endpoint struct {
	Given string     `json:"given"`
	IP    netip.Addr `json:"ip,omitzero"`
	MAC   fdb.MAC    `json:"mac"`
	How   string     `json:"how,omitempty"` // its MAC address was found
	Where string     `json:"where"`         // the kernel says it is
}

// Answer says what becomes of the packet, and why. The JSON keys are added to, never renamed.
type Answer struct {
	Version int      `json:"version"`
	Network string   `json:"network"`
	VNI     fdb.VNI  `json:"vni"`
	From    Endpoint `json:"from"`
	To      Endpoint `json:"to"`
	Length  int      `json:"length"`
	Walks   []*Walk  `json:"hooks"`
	Fate    string   `json:"fate"`   // fast, kernel, drop
	Reason  string   `json:"reason"` // of the hook that decided
	Why     string   `json:"why"`
	Fixes   []string `json:"fixes"`
	// Notes are what a walk through the tc programs cannot tell.
	Notes []string `json:"notes,omitempty"`

	host   *host
	net    *loader.NetworkState
	source location
}

// host is what was read of this one.
type host struct {
	opt        loader.Options
	state      *loader.State
	daemon     int
	links      map[int]kernel.Link
	fdb        []kernel.FDBEntry
	neighbours []kernel.Neighbour
	nextHops   map[uint32]kernel.NextHop
	h          *kernel.Handle
}

// location is where the kernel has a MAC address.
type location struct {
	known  bool
	local  bool // of the bridge itself
	port   kernel.Link
	remote netip.Addr // behind the vxlan link
	bridge kernel.FDBEntry
	vxlan  kernel.FDBEntry
	silent bool // at a port whose peer it is, and the bridge has not seen it
}

func readHost(opt loader.Options) (_ *host, err error) {
	x := &host{opt: opt, links: map[int]kernel.Link{}}
	if x.state, err = loader.ReadState(opt.RunDir()); err != nil {
		return nil, err
	}
	if x.daemon, err = loader.Holder(opt.RunDir()); err != nil {
		return nil, err
	}
	if x.h, err = kernel.Open(); err != nil {
		return nil, err
	}
	links, err := x.h.Links()
	if err == nil {
		for _, l := range links {
			x.links[l.Index] = l
		}
		x.fdb, err = x.h.FDB()
	}
	if err == nil {
		x.neighbours, err = x.h.Neighbours()
	}
	if err == nil {
		x.nextHops, err = x.h.NextHops()
	}
	if err != nil {
		return nil, errors.Join(err, x.h.Close())
	}
	return x, nil
}

func (x *host) link(name string) (kernel.Link, bool) {
	for _, l := range x.links {
		if l.Name == name {
			return l, true
		}
	}
	return kernel.Link{}, false
}

func (x *host) device(i uint32) string {
	if l, ok := x.links[int(i)]; ok {
		return l.Name
	}
	return fmt.Sprintf("interface %d", i)
}

// locate asks the kernel's tables, then the peers of the ports.
func (x *host) locate(n *loader.NetworkState, mac fdb.MAC) (l location) {
	br, _ := x.link(n.Bridge)
	vx, _ := x.link(n.Link)
	for _, e := range x.fdb {
		switch {
		case e.MAC != mac || e.VLAN != 0:
		case e.Self && e.Link == vx.Index && vx.Index != 0:
			l.vxlan, l.remote = e, e.Dst
		case !e.Self && e.Bridge == br.Index && br.Index != 0:
			l.bridge, l.known, l.local = e, true, e.Local
			l.port = x.links[e.Link]
		}
	}
	if l.local || l.known && l.port.Index != vx.Index {
		l.remote = netip.Addr{}
		return l
	}
	if !l.known {
		for _, p := range x.links {
			if br.Index == 0 || p.Master != br.Index || !p.PeerElsewhere {
				continue
			}
			if m, ok, err := x.h.PeerMAC(p); err == nil && ok && m == mac {
				return location{known: true, silent: true, port: p}
			}
		}
	}
	l.known = l.known || l.remote.IsValid()
	return l
}

// at is a location that the operator names.
func (x *host) at(s string) (l location, err error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return location{known: true, remote: ip}, nil
	}
	p, ok := x.link(s)
	if !ok {
		return l, fmt.Errorf("trace from %q: neither a device of this host nor an IP address", s)
	}
	return location{known: true, port: p}, nil
}

func (l location) String() string {
	switch {
	case !l.known:
		return "unknown to the kernel"
	case l.local:
		return "this host's own on " + l.port.Name
	case l.silent:
		return "at " + l.port.Name + ", not heard yet"
	case l.remote.IsValid():
		return "behind VTEP " + l.remote.String()
	case l.vxlan.NextHop != 0:
		return fmt.Sprintf("behind next hop %d", l.vxlan.NextHop)
	}
	return "at " + l.port.Name
}

// resolve finds the MAC address of an end.
func (x *host) resolve(ctx context.Context, n *loader.NetworkState, given string, probe bool) (e Endpoint, err error) {
	e.Given = given
	if mac, err := fdb.ParseMAC(given); err == nil {
		e.MAC = mac
		return e, nil
	}
	if e.IP, err = netip.ParseAddr(given); err != nil {
		return e, fmt.Errorf("trace %q: neither an IP nor a MAC address", given)
	}
	br, ok := x.link(n.Bridge)
	if !ok {
		return e, fmt.Errorf("trace on network %s: bridge %s is gone", n.Name, n.Bridge)
	}
	addresses, err := x.h.Addresses()
	if err != nil {
		return e, err
	}
	for _, a := range addresses {
		if a.Link == br.Index && a.Prefix.Addr() == e.IP {
			e.MAC, e.How = br.MAC, "address of "+br.Name
			return e, nil
		}
	}
	vx, _ := x.link(n.Link)
	for _, nb := range x.neighbours {
		if (nb.Link == br.Index || nb.Link == vx.Index) && nb.IP == e.IP && nb.Valid {
			e.MAC, e.How = nb.MAC, "neighbour table of "+x.device(uint32(nb.Link))
			return e, nil
		}
	}
	if probe {
		mac, ok, err := askNeighbour(ctx, br, e.IP)
		if err != nil {
			return e, err
		}
		if ok {
			e.MAC, e.How = mac, "it answered on "+br.Name
			return e, nil
		}
		return e, fmt.Errorf("trace %v on network %s: it is in no table of this host and answers no request on %s; give its MAC address", e.IP, n.Name, br.Name)
	}
	return e, fmt.Errorf("trace %v on network %s: it is in no neighbour table of this host; give its MAC address, or let it be asked (without --no-probe)", e.IP, n.Name)
}

// Ask follows a packet through the state of this host. The error wraps
// os.ErrNotExist if nothing is loaded.
func Ask(ctx context.Context, opt loader.Options, q Question) (*Answer, error) {
	x, err := readHost(opt)
	if err != nil {
		return nil, err
	}
	defer x.h.Close()
	if q.Length == 0 {
		q.Length = 98
	}
	a := &Answer{Version: 1, Length: q.Length, Walks: []*Walk{}, Fixes: []string{}, host: x}
	if err := a.choose(ctx, q); err != nil {
		return nil, err
	}
	n := a.net
	a.Network, a.VNI = n.Name, n.VNI
	to := x.locate(n, a.To.MAC)
	a.source = x.locate(n, a.From.MAC)
	a.From.Where, a.To.Where = a.source.String(), to.String()
	if a.To.MAC.IsMulticast() {
		a.To.Where = "everybody"
	}
	if n.Mode == config.Kernel || n.ID == 0 || x.state.Pins == "" || x.state.Attach == "" {
		a.Fate, a.Reason = bpf.FateKernel.String(), "not_ready"
		a.Why = "the network runs on kernel vxlan: " + firstOf(n.Reason, x.state.Reason, "datapath: kernel")
		a.Fixes = fixesFor(a.Why, n, "")
		return a, nil
	}
	set, done, err := maps.OpenPinned(x.state.Pins)
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }() // only file descriptors
	s, err := x.readState(set)
	if err != nil {
		return nil, err
	}
	p := Packet{Src: a.From.MAC, Dst: a.To.MAC, EtherType: q.EtherType, Length: q.Length, VLAN: q.VLAN}
	if p.EtherType == 0 {
		p.EtherType = etherIPv4
		if a.From.IP.Is6() || a.To.IP.Is6() {
			p.EtherType = etherIPv6
		}
	}
	vx, _ := x.link(n.Link)
	from := a.source
	if q.At != "" {
		if from, err = x.at(q.At); err != nil {
			return nil, err
		}
		a.From.Where += ", asked as coming from " + q.At
	}
	switch l := from; {
	case l.known && (l.local || !l.remote.IsValid() && l.port.Index != vx.Index):
		a.Walks = append(a.Walks, s.Encap(uint32(l.port.Index), p))
	case l.remote.IsValid():
		w := s.Decap(n.Device, Outer{From: l.remote, To: n.Local, Key: maps.NetworkKey{VNI: n.VNI, Port: n.Port}}, p)
		a.Walks = append(a.Walks, w)
		if w.Reason != bpf.Fast && !w.Reason.Drops() {
			a.Walks = append(a.Walks, s.Deliver(uint32(vx.Index), p))
		}
	default:
		a.Fate, a.Reason = bpf.FateKernel.String(), "src_unknown"
		a.Why = fmt.Sprintf("no port of %s has had a frame from %s, and no veth peer has this address: it has not spoken, or lives elsewhere", n.Bridge, a.From.MAC)
		a.Fixes = []string{"let it send something (a ping), and ask again", fmt.Sprintf("bridge fdb show br %s | grep %s", n.Bridge, a.From.MAC)}
		return a, nil
	}
	a.conclude(to)
	return a, nil
}

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// choose finds the network, and both ends on it.
func (a *Answer) choose(ctx context.Context, q Question) error {
	x := a.host
	var names []string
	var errs []error
	var fits []*loader.NetworkState
	for i := range x.state.Networks {
		n := &x.state.Networks[i]
		names = append(names, n.Name)
		if q.Network != "" && q.Network != n.Name {
			continue
		}
		fits = append(fits, n)
	}
	if len(fits) == 0 {
		return fmt.Errorf("trace on network %q: there is no such network; there are %s", q.Network, strings.Join(names, ", "))
	}
	// Tables first, requests only where they do not tell: a request is heard by a whole network.
	for _, probe := range []bool{false, true} {
		if probe && !q.Probe {
			break
		}
		errs = nil
		for _, n := range fits {
			if len(fits) > 1 && !x.on(n, q) {
				continue
			}
			from, err := x.resolve(ctx, n, q.From, probe)
			var to Endpoint
			if err == nil {
				to, err = x.resolve(ctx, n, q.To, probe)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			a.net, a.From, a.To = n, from, to
			return nil
		}
	}
	if len(errs) == 0 {
		return fmt.Errorf("trace from %s to %s: on which network? say --network; there are %s", q.From, q.To, strings.Join(names, ", "))
	}
	return errors.Join(errs...)
}

// on: may the two be on this network? MAC addresses must be in its tables; of IP addresses nothing is known yet.
func (x *host) on(n *loader.NetworkState, q Question) bool {
	macs := 0
	for _, s := range []string{q.From, q.To} {
		mac, err := fdb.ParseMAC(s)
		if err != nil {
			continue
		}
		macs++
		if x.locate(n, mac).known {
			return true
		}
	}
	return macs < 2
}

func (x *host) readState(set *maps.Set) (*State, error) {
	s := &State{Now: maps.Now(), Hold: 20 * time.Millisecond, Device: x.device, Slots: set.VTEPs.Len(),
		Exists: func(i uint32) bool { _, ok := x.links[int(i)]; return ok }}
	var err error
	if s.Lease, err = set.Control.Lease(); err != nil {
		return nil, err
	}
	if s.TooBig, err = set.Control.TooBig(); err != nil {
		return nil, err
	}
	if s.Networks, err = set.Networks.All(); err != nil {
		return nil, err
	}
	if s.Ports, err = set.Ports.All(); err != nil {
		return nil, err
	}
	if s.VTEPs, err = set.VTEPs.All(); err != nil {
		return nil, err
	}
	s.Listed = func(net fdb.NetID, a netip.Addr) bool {
		ok, err := set.Sources.Has(net, a)
		return ok || err != nil // what cannot be read must not look like a stranger
	}
	// A walk looks up each address once or twice: read now, while the map is open.
	got := map[fdb.Key]maps.Placed{}
	s.Entry = func(k fdb.Key) (maps.Placed, bool) {
		if e, ok := got[k]; ok {
			return e, true
		}
		e, ok, err := set.FDB.Get(k)
		if err != nil || !ok {
			return e, false
		}
		got[k] = e
		return e, true
	}
	return s, nil
}

// conclude finds the hook that decided, and what to say about it.
func (a *Answer) conclude(to location) {
	last := a.Walks[len(a.Walks)-1]
	w := last
	// Where the second hook carries on, the first one's reason is what there is to know.
	if last.Reason == bpf.Fast && !last.NotOurs {
		w = a.Walks[0]
		a.Fate = bpf.FateFast.String()
	} else if a.Fate = bpf.FateKernel.String(); w.Reason.Drops() {
		a.Fate = bpf.FateDrop.String()
	}
	a.Reason = w.Why
	if w.NotOurs {
		a.Reason = "not_ready"
	}
	a.Why, a.Fixes = a.advise(w, to)
	for _, x := range a.host.state.XDP {
		for _, w := range a.Walks {
			if w.Device == x.Device && x.Program != "" {
				a.Notes = append(a.Notes, fmt.Sprintf("%s looks at each packet of %s before this and is not walked here: what is for ports that take raw frames it "+
					"may carry itself, the rest comes as told; a live trace and `vxbpf capture` show it", x.Program, x.Device))
			}
		}
	}
}

// askNeighbour sends one request from the bridge and waits for who answers: ARP
// with no sender address (RFC 5227 section 2.1.1), or a neighbour solicitation
// from the unspecified address (RFC 4862 section 5.4.2), so that nobody's
// neighbour table changes.
func askNeighbour(ctx context.Context, br kernel.Link, ip netip.Addr) (mac fdb.MAC, ok bool, err error) {
	fail := func(err error) (fdb.MAC, bool, error) {
		return mac, false, fmt.Errorf("ask for %v on %s: %w", ip, br.Name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(swap16(unix.ETH_P_ALL)))
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: swap16(unix.ETH_P_ALL), Ifindex: br.Index}
	if err := unix.Bind(fd, to); err != nil {
		return fail(err)
	}
	if ip.Is6() {
		// The answer to an unspecified address goes to all nodes.
		m := &unix.PacketMreq{Ifindex: int32(br.Index), Type: unix.PACKET_MR_ALLMULTI}
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, m); err != nil {
			return fail(err)
		}
	}
	buf := make([]byte, 256)
	for range 2 {
		if err := unix.Sendto(fd, request(br.MAC, ip), 0, to); err != nil {
			return fail(err)
		}
		for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); {
			if ctx.Err() != nil {
				return fail(ctx.Err())
			}
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds())+1)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fail(err)
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return fail(err)
			}
			if mac, ok := answer(buf[:n], ip); ok {
				return mac, true, nil
			}
		}
	}
	return mac, false, nil
}

func swap16(v uint16) uint16 { return v>>8 | v<<8 }

func request(from fdb.MAC, ip netip.Addr) []byte {
	if ip.Is4() {
		b := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from[:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, from[:], make([]byte, 10), ip.AsSlice())
		return append(b, make([]byte, 60-len(b))...)
	}
	a := ip.As16()
	node := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]}) // RFC 4291 section 2.7.1
	n := node.As16()
	icmp := slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, a[:])
	// The checksum covers a pseudo header (RFC 8200 section 8.1).
	sum := uint32(len(icmp)) + 58
	for _, part := range [][]byte{n[:], icmp} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	icmp[2], icmp[3] = byte(^sum>>8), byte(^sum)
	return slices.Concat([]byte{0x33, 0x33, 0xff, a[13], a[14], a[15]}, from[:], []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255}, make([]byte, 16), n[:], icmp)
}

// answer reads the MAC address out of an ARP reply or a neighbour advertisement.
func answer(b []byte, ip netip.Addr) (mac fdb.MAC, ok bool) {
	switch {
	case len(b) >= 42 && b[12] == 8 && b[13] == 6 && b[21] == 2 && ip.Is4() && netip.AddrFrom4([4]byte(b[28:32])) == ip:
		return fdb.MAC(b[22:28]), true
	case len(b) >= 78 && b[12] == 0x86 && b[13] == 0xdd && b[20] == 58 && b[54] == 136 && ip.Is6() && netip.AddrFrom16([16]byte(b[62:78])) == ip:
		return fdb.MAC(b[6:12]), true
	}
	return mac, false
}
