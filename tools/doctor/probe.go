// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/tools/observe"
)

const (
	// answerTime is how long an answer is waited for. Longer paths than this are none that VXLAN is run over.
	answerTime = 400 * time.Millisecond
	smallEcho  = 84 // bytes of an IP packet, as ping sends
)

// pinger sends ICMP echo requests to one address, with DF, whatever path MTU the kernel has learnt.
type pinger struct {
	conn   *net.IPConn
	dst    netip.Addr
	zone   string
	id     uint16
	seq    uint16
	tooBig int // what a router said that fits, 0: none did
	// bound is how long an answer is waited for: less once it is known how long one takes.
	bound time.Duration
}

func newPinger(src, dst netip.Addr) (*pinger, error) {
	network, level, opt, value := "ip4:icmp", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if dst.Is6() {
		network, level, opt, value = "ip6:ipv6-icmp", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	conn, err := net.ListenIP(network, &net.IPAddr{IP: src.AsSlice(), Zone: src.Zone()})
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var serr error
		err = raw.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), level, opt, value)
			if dst.Is6() {
				serr = errors.Join(serr, unix.SetsockoptInt(int(fd), level, unix.IPV6_DONTFRAG, 1), unix.SetsockoptInt(int(fd), level, unix.IPV6_MULTICAST_LOOP, 0))
			}
		})
		err = errors.Join(err, serr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up ICMP socket: %w", err), conn.Close())
	}
	return &pinger{conn: conn, dst: dst, zone: dst.Zone(), id: uint16(rand.N(1 << 16)), bound: answerTime}, nil
}

func (p *pinger) close() { _ = p.conn.Close() }

func headers(v6 bool) int {
	if v6 {
		return 40 + 8
	}
	return 20 + 8
}

// send sends an echo request that is size bytes as an IP packet.
func (p *pinger) send(size int) error {
	p.seq++
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(p.id), Seq: int(p.seq), Data: make([]byte, max(size-headers(p.dst.Is6()), 0))}}
	if p.dst.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = p.conn.WriteTo(b, &net.IPAddr{IP: p.dst.WithZone("").AsSlice(), Zone: p.zone})
	return err
}

// receive calls got for each answer to this request until it is content or time is over.
func (p *pinger) receive(bound time.Duration, got func(from netip.Addr, size int) (done bool)) error {
	if err := p.conn.SetReadDeadline(time.Now().Add(bound)); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, addr, err := p.conn.ReadFromIP(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		from, _ := netip.AddrFromSlice(addr.IP)
		from = from.Unmap()
		proto := ipv4.ICMPTypeEcho.Protocol()
		if p.dst.Is6() {
			proto = ipv6.ICMPTypeEchoRequest.Protocol()
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue
		}
		switch m.Type {
		case ipv4.ICMPTypeEchoReply, ipv6.ICMPTypeEchoReply:
			e, ok := m.Body.(*icmp.Echo)
			if ok && e.ID == int(p.id) && e.Seq == int(p.seq) && got(from, n) {
				return nil
			}
		case ipv4.ICMPTypeDestinationUnreachable:
			// RFC 792 and 1191: the MTU, then the header of what was too big.
			if m.Code == 4 && n >= 28 && netip.AddrFrom4([4]byte(buf[24:28])) == p.dst {
				p.tooBig = int(binary.BigEndian.Uint16(buf[6:8]))
			}
		case ipv6.ICMPTypePacketTooBig:
			if b, ok := m.Body.(*icmp.PacketTooBig); ok && len(b.Data) >= 40 && netip.AddrFrom16([16]byte(b.Data[24:40])) == p.dst {
				p.tooBig = b.MTU
			}
		}
	}
}

// echo reports whether a packet of that size comes back. One loss is no evidence.
func (p *pinger) echo(size int) (ok bool, err error) {
	for range 2 {
		if err := p.send(size); err != nil {
			if errors.Is(err, unix.EMSGSIZE) {
				return false, nil
			}
			return false, err
		}
		start := time.Now()
		if err := p.receive(p.bound, func(netip.Addr, int) bool { ok = true; return true }); err != nil {
			return false, err
		}
		if ok {
			p.bound = min(max(10*time.Since(start), 60*time.Millisecond), answerTime)
			return true, nil
		}
	}
	return false, nil
}

// refused reports whether a UDP port says that nobody is there (ICMP port unreachable).
func refused(ctx context.Context, src, dst netip.Addr, port uint16, payload []byte, bound time.Duration) (bool, error) {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0))}
	c, err := d.DialContext(ctx, "udp", netip.AddrPortFrom(dst, port).String())
	if err != nil {
		return false, err
	}
	defer c.Close()
	for range 2 {
		if _, err := c.Write(payload); errors.Is(err, unix.ECONNREFUSED) {
			return true, nil
		} else if err != nil {
			return false, err
		}
		if err := c.SetReadDeadline(time.Now().Add(bound)); err != nil {
			return false, err
		}
		_, err := c.Read(make([]byte, 1))
		if errors.Is(err, unix.ECONNREFUSED) {
			return true, nil
		}
	}
	return false, nil
}

// closedPort is one where nobody is; a host that answers for it would answer for the VXLAN port, too.
func closedPort() uint16 { return 40000 + uint16(rand.N(9000)) }

// errMuted: the host does not refuse what it must refuse.
var errMuted = errors.New("it does not refuse closed UDP ports")

// listens reports whether a port is not refused where a closed one is. Hosts
// answer with so many ICMP errors per second only (RFC 1812 section 4.3.2.8): a
// port that was not refused is believed if a closed one is right after it.
func listens(ctx context.Context, src, dst netip.Addr, port uint16, bound time.Duration) (bool, error) {
	// Without the I flag: no VXLAN device takes it (RFC 7348 section 5).
	empty := make([]byte, 8)
	for range 4 {
		no, err := refused(ctx, src, dst, port, empty, bound)
		if err != nil || no {
			return false, err
		}
		control, err := refused(ctx, src, dst, closedPort(), empty, bound)
		if err != nil || control {
			return control, err
		}
		if err := pause(ctx, icmpPause); err != nil {
			return false, err
		}
	}
	return false, errMuted
}

// icmpPause is after which a host that limits its ICMP errors sends one again.
const icmpPause = 1100 * time.Millisecond

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// checkVTEPs asks each VTEP on the underlay: is it there, on this port, and how large may packets be.
func (h *host) checkVTEPs(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(16)
	for _, r := range h.remotes() {
		g.Go(func() error {
			if err := h.checkVTEP(ctx, r); err != nil {
				h.unknown("vtep_reach", "VTEP "+r.String(), oneLine(err))
			}
			return nil
		})
	}
	return g.Wait()
}

// towards are the networks that send to a VTEP: by the config, the flood list, or a MAC address.
func (h *host) towards(r netip.Addr) (out []loader.NetworkState) {
	for _, n := range h.snap.State.Networks {
		if !n.Local.IsValid() || n.Local.Is6() != r.Is6() {
			continue
		}
		sends := slices.ContainsFunc(h.snap.VTEPs, func(v observe.VTEP) bool {
			return v.Remote == r && v.UDPPort == n.Port && (slices.Contains(v.Networks, n.Name) || slices.Contains(v.Flood, n.Name))
		})
		if h.cfg != nil && !sends {
			c := h.cfg.Network(n.Name)
			sends = c != nil && slices.Contains(c.Remotes, r)
		}
		if sends {
			out = append(out, n)
		}
	}
	return out
}

func (h *host) checkVTEP(ctx context.Context, r netip.Addr) error {
	object := "VTEP " + r.String()
	nets := h.towards(r)
	if len(nets) == 0 || h.found("route", object) || h.found("rp_filter", object) || h.found("local_address", nets[0].Local.String()) {
		return nil // said already, and no answer could say more
	}
	src := nets[0].Local
	p, err := newPinger(src, r)
	if err != nil {
		return err
	}
	defer p.close()
	alive, err := p.echo(smallEcho)
	if err != nil && !errors.Is(err, unix.EHOSTUNREACH) {
		return err
	}
	closed, err := refused(ctx, src, r, closedPort(), []byte{0}, p.bound)
	if err != nil && !errors.Is(err, unix.EHOSTUNREACH) {
		return err
	}
	// It may have used up what it may say in this second, see listens.
	for try := 0; err == nil && alive && !closed && try < 2; try++ {
		if err := pause(ctx, icmpPause); err != nil {
			return err
		}
		if closed, err = refused(ctx, src, r, closedPort(), []byte{0}, p.bound); err != nil {
			return err
		}
	}
	macs, age := h.known(r)
	if !alive && !closed {
		route, err := h.h.RouteTo(r, kernel.RouteOptions{})
		if err != nil {
			return err
		}
		hop, ok, err := h.h.Neighbour(route.Device, route.NextHop)
		if err != nil {
			return err
		}
		dev, _ := h.linkAt(route.Device)
		switch {
		case !ok || !hop.Valid:
			h.find(Finding{Check: "vtep_reach", Severity: Problem, Object: object, Evidence: fmt.Sprintf("%s does not answer ARP or ND on %s", route.NextHop, dev.Name),
				Consequence: "nothing reaches the containers behind it, and each broadcast waits for it",
				Fix:         []string{fmt.Sprintf("is the host up, is %s on %s? ip neigh show %s; ping %s; else config: take it from remotes", dev.Name, "its network", route.NextHop, r)}})
		case age >= 0 && age < 30:
			h.unknown("path_mtu", object, fmt.Sprintf("it answers neither echo nor closed ports; packets came from it %.0f s ago", age))
		default:
			h.unknown("vtep_reach", object, fmt.Sprintf("it answers neither echo nor closed ports: a filter, or it is down; its next hop is there, %d MAC addresses are known behind it", macs))
		}
		return nil
	}
	h.checkVXLANPorts(ctx, r, nets, closed, p.bound)
	if alive {
		return h.checkPathMTU(p, r, nets)
	}
	h.unknown("path_mtu", object, "it does not answer ICMP echo")
	return nil
}

// checkVXLANPorts: VXLAN answers nothing, so only a refusal says something.
func (h *host) checkVXLANPorts(ctx context.Context, r netip.Addr, nets []loader.NetworkState, closed bool, bound time.Duration) {
	object := "VTEP " + r.String()
	seen := map[uint16]bool{}
	for _, n := range nets {
		if seen[n.Port] {
			continue
		}
		seen[n.Port] = true
		there, err := false, errMuted
		if closed {
			there, err = listens(ctx, n.Local, r, n.Port, bound)
		}
		if err != nil {
			h.unknown("vtep_port", object, fmt.Sprintf("%s, so that it does not refuse %d says nothing", oneLine(err), n.Port))
			continue
		}
		if there {
			continue
		}
		f := Finding{Check: "vtep_port", Severity: Problem, Object: object, Evidence: fmt.Sprintf("it refuses UDP port %d: no VXLAN there", n.Port),
			Consequence: "nothing reaches the containers behind it",
			Fix:         []string{fmt.Sprintf("on %s: ip -d link show type vxlan; is vxbpf loaded, is the link up?", r)}}
		for _, other := range []uint16{4789, 8472} {
			if other == n.Port {
				continue
			}
			if there, err := listens(ctx, n.Local, r, other, bound); err == nil && there {
				f.Evidence += fmt.Sprintf("; it does not refuse %d", other)
				f.Consequence = "the two hosts use different ports: nothing passes between them"
				f.Fix = []string{fmt.Sprintf("config: port: %d    # on this host, or %d on %s; plain `ip link` takes 8472 when it is not told", other, n.Port, r)}
			}
		}
		h.find(f)
	}
}

// checkPathMTU tries the largest packet that a network may send, then looks for what passes.
func (h *host) checkPathMTU(p *pinger, r netip.Addr, nets []loader.NetworkState) error {
	want, who := 0, ""
	for _, n := range nets {
		vx, ok1 := h.link(n.Link)
		dev, ok2 := h.link(n.Device)
		if !ok1 || !ok2 {
			continue
		}
		// What the device itself does not take is another finding.
		if size := min(vx.MTU+overhead(n), dev.MTU); size > want {
			want, who = size, n.Name
		}
	}
	if want <= smallEcho {
		return nil
	}
	ok, err := p.echo(want)
	if err != nil || ok {
		return err
	}
	lo, hi := smallEcho, want // lo passes, hi does not
	if p.tooBig > lo && p.tooBig < hi {
		if ok, err := p.echo(p.tooBig); err != nil {
			return err
		} else if ok {
			lo = p.tooBig
			if ok, err = p.echo(lo + 1); err != nil {
				return err
			} else if !ok {
				hi = lo + 1
			}
		}
	}
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		ok, err := p.echo(mid)
		if err != nil {
			return err
		}
		if ok {
			lo = mid
		} else {
			hi = mid
		}
	}
	evidence := fmt.Sprintf("with DF, %d bytes come back and %d do not; network %s sends up to %d", lo, lo+1, who, want)
	severity, consequence := Warning, "larger packets are fragmented by a router, or answered with \"too big\" to the sender"
	if p.tooBig == 0 {
		severity, consequence = Problem, "larger packets vanish without an answer: large transfers hang, small ones work"
		evidence += "; no router says why"
	} else {
		evidence += fmt.Sprintf("; a router says %d", p.tooBig)
	}
	h.find(Finding{Check: "path_mtu", Severity: severity, Object: "VTEP " + r.String(), Evidence: evidence, Consequence: consequence,
		Fix: []string{fmt.Sprintf("config: underlay: {mtu: %d}    # networks then carry %d; containers the same, or mss_clamp: auto", lo, lo-overhead(nets[0]))}})
	return nil
}

// checkDuplicates sends ARP probes (RFC 5227) for this host's own addresses: nobody else may answer.
func (h *host) checkDuplicates(ctx context.Context) error {
	type own struct {
		link kernel.Link
		addr netip.Addr
	}
	var all []own
	ours := map[fdb.MAC]bool{}
	for _, l := range h.links {
		ours[l.MAC] = true
	}
	for _, n := range h.snap.State.Networks {
		for _, name := range []string{n.Device, n.Bridge} {
			l, ok := h.link(name)
			if !ok || !l.Up {
				continue
			}
			for _, a := range h.addresses {
				o := own{l, a.Prefix.Addr()}
				if a.Link == l.Index && o.addr.Is4() && !slices.Contains(all, o) {
					all = append(all, o)
				}
			}
		}
	}
	var g errgroup.Group
	for _, o := range all {
		g.Go(func() error {
			other, err := arpProbe(ctx, o.link, o.addr, ours)
			if err != nil {
				h.unknown("duplicate_address", o.addr.String(), oneLine(err))
			}
			if !other.IsZero() {
				h.find(Finding{Check: "duplicate_address", Severity: Problem, Object: fmt.Sprintf("%s on %s", o.addr, o.link.Name),
					Evidence:    "another host answers ARP for it, with MAC " + other.String(),
					Consequence: "packets go to the one or the other, as ARP caches have it",
					Fix:         []string{fmt.Sprintf("find %s and change its address, or this host's: ip neigh; vxbpf show fdb --mac %s", other, other)}})
			}
			return nil
		})
	}
	return g.Wait()
}

// arpProbe returns the MAC of somebody else who answers for an address.
func arpProbe(ctx context.Context, l kernel.Link, addr netip.Addr, ours map[fdb.MAC]bool) (other fdb.MAC, err error) {
	proto := uint16(unix.ETH_P_ARP)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto<<8|proto>>8))
	if err != nil {
		return other, fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(fd)
	at := &unix.SockaddrLinklayer{Protocol: proto<<8 | proto>>8, Ifindex: l.Index, Halen: 6}
	if err := unix.Bind(fd, at); err != nil {
		return other, fmt.Errorf("bind packet socket to %s: %w", l.Name, err)
	}
	frame := make([]byte, 0, 60)
	frame = append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	frame = append(frame, l.MAC[:]...)
	frame = append(frame, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	frame = append(frame, l.MAC[:]...)
	frame = append(frame, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) // from nobody, so that no cache learns
	frame = append(frame, addr.AsSlice()...)
	frame = append(frame, make([]byte, 60-len(frame))...)
	buf := make([]byte, 2048)
	for range 2 {
		if err := unix.Sendto(fd, frame, 0, at); err != nil {
			return other, fmt.Errorf("send ARP probe on %s: %w", l.Name, err)
		}
		for end := time.Now().Add(answerTime); ctx.Err() == nil; {
			left := time.Until(end)
			if left <= 0 {
				break
			}
			tv := unix.NsecToTimeval(left.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
				return other, err
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return other, err
			}
			// An ARP reply whose sender has the address.
			if n < 42 || buf[12] != 0x08 || buf[13] != 0x06 || buf[21] != 2 || netip.AddrFrom4([4]byte(buf[28:32])) != addr {
				continue
			}
			if mac := fdb.MAC(buf[22:28]); !ours[mac] {
				return mac, nil
			}
		}
	}
	return other, nil
}

// checkOverlay asks all nodes of each network through the tunnel (RFC 4291 section 2.7.1):
// only what is in the overlay can answer.
func (h *host) checkOverlay(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(8)
	for _, n := range h.snap.State.Networks {
		g.Go(func() error {
			if err := h.checkNetwork(ctx, n); err != nil {
				h.unknown("overlay_size", "network "+n.Name, oneLine(err))
			}
			return nil
		})
	}
	return g.Wait()
}

func (h *host) checkNetwork(ctx context.Context, n loader.NetworkState) error {
	object := "network " + n.Name
	br, ok1 := h.link(n.Bridge)
	vx, ok2 := h.link(n.Link)
	if !ok1 || !ok2 || !br.Up || !vx.Up {
		return nil // said already
	}
	var src netip.Addr
	for _, a := range h.addresses {
		if a.Link == br.Index && a.Prefix.Addr().Is6() && a.LinkLocal() && !a.Tentative {
			src = a.Prefix.Addr()
		}
	}
	if !src.IsValid() {
		for _, c := range []string{"overlay_size", "checksum"} {
			h.unknown(c, object, n.Bridge+" has no IPv6 link-local address to ask from; containers can: ping -M do -s SIZE")
		}
		return nil
	}
	zone := strconv.Itoa(br.Index)
	p, err := newPinger(src.WithZone(zone), netip.IPv6LinkLocalAllNodes().WithZone(zone))
	if err != nil {
		return err
	}
	defer p.close()
	// The set of those who answer a size; a broadcast may be lost once.
	bound := answerTime
	ask := func(size int) (map[netip.Addr]bool, error) {
		who := map[netip.Addr]bool{}
		for range 2 {
			if err := p.send(size); err != nil {
				return nil, err
			}
			if err := p.receive(bound, func(from netip.Addr, _ int) bool { who[from.WithZone("")] = true; return false }); err != nil {
				return nil, err
			}
			bound = answerTime / 2 // they know our address by now
		}
		return who, nil
	}
	small, err := ask(smallEcho)
	if err != nil {
		return err
	}
	large, err := ask(min(br.MTU, vx.MTU))
	if err != nil {
		return err
	}
	// Where they live: they have asked for our address, so that theirs is known.
	behind, err := h.places(br, vx)
	if err != nil {
		return err
	}
	far := map[netip.Addr][2]int{} // by VTEP: answers to small, to large
	var local, remote []netip.Addr
	for a := range small {
		v := behind[a]
		if !v.IsValid() {
			local = append(local, a)
			continue
		}
		remote = append(remote, a)
		count := far[v]
		count[0]++
		if large[a] {
			count[1]++
		}
		far[v] = count
	}
	for v, count := range far {
		if count[1] > 0 || h.found("path_mtu", "VTEP "+v.String()) || h.found("mtu", object) {
			continue
		}
		h.find(Finding{Check: "overlay_size", Severity: Problem, Object: fmt.Sprintf("%s, VTEP %s", object, v),
			Evidence:    fmt.Sprintf("%d containers behind it answer an echo of %d bytes through the tunnel, none one of %d", count[0], smallEcho, min(br.MTU, vx.MTU)),
			Consequence: "large packets in VXLAN are lost on the way, although packets of that size as such pass: a filter or hypervisor that treats UDP port " + strconv.Itoa(int(n.Port)) + " otherwise",
			Fix:         []string{fmt.Sprintf("tcpdump -ni %s udp port %d and greater 1000    # on both hosts: which side loses them?", n.Device, n.Port), "until then, config: mtu: 1200    # for this network"}})
	}
	if len(remote) == 0 {
		h.nobody(n, vx)
	}
	return h.checkChecksum(ctx, n, src.WithZone(zone), zone, local, remote)
}

// nobody: no container on another host has answered.
func (h *host) nobody(n loader.NetworkState, vx kernel.Link) {
	known := 0
	for _, e := range h.snap.FDB() {
		if e.Network == n.Name && e.VTEP.IsValid() {
			known++
		}
	}
	object := "network " + n.Name
	if group := vx.VXLAN.Group; group.IsValid() && group.IsMulticast() && known == 0 {
		h.find(Finding{Check: "multicast", Severity: Problem, Object: fmt.Sprintf("%s, group %s", object, group),
			Evidence:    "nobody answers an echo to all nodes, and nothing has come from any VTEP",
			Consequence: "ARP does not reach the other hosts: nothing can talk. Clouds and switches without an IGMP querier do not carry multicast",
			Fix: []string{"config: remotes: [OTHER HOSTS] instead of group",
				fmt.Sprintf("or see where it ends: ip maddr show dev %s; tcpdump -ni %s dst %s    # on another host", n.Device, n.Device, group)}})
		return
	}
	for _, c := range []string{"overlay_size", "checksum"} {
		h.unknown(c, object, fmt.Sprintf("no container on another host answers an echo to all nodes over IPv6 (%d MAC addresses known there)", known))
	}
}

// places maps neighbours on a bridge to the VTEP that they are behind, invalid for local ones.
func (h *host) places(br, vx kernel.Link) (map[netip.Addr]netip.Addr, error) {
	neighbours, err := h.h.Neighbours()
	if err != nil {
		return nil, err
	}
	entries, err := h.h.FDB()
	if err != nil {
		return nil, err
	}
	dst := map[fdb.MAC]netip.Addr{}
	for _, e := range entries {
		if e.Self && e.Link == vx.Index && !e.MAC.IsZero() {
			dst[e.MAC] = e.Dst
		}
	}
	// A MAC that the bridge has at another port is local, whatever the vxlan device remembers.
	for _, e := range entries {
		if !e.Self && e.Bridge == br.Index && e.Link != vx.Index {
			delete(dst, e.MAC)
		}
	}
	out := map[netip.Addr]netip.Addr{}
	for _, e := range neighbours {
		if e.Link == br.Index {
			out[e.IP] = dst[e.MAC]
		}
	}
	return out, nil
}

// checkChecksum sends UDP to a closed port: the stack leaves the checksum to be
// filled in behind the outer header, and who gets a good one refuses it.
func (h *host) checkChecksum(ctx context.Context, n loader.NetworkState, src netip.Addr, zone string, local, remote []netip.Addr) error {
	if len(remote) == 0 {
		return nil
	}
	refuses := func(all []netip.Addr) (count int, err error) {
		var mu sync.Mutex
		var g errgroup.Group
		g.SetLimit(8)
		slices.SortFunc(all, netip.Addr.Compare)
		for _, a := range all[:min(len(all), 8)] {
			g.Go(func() error {
				no, err := refused(ctx, src, a.WithZone(zone), closedPort(), make([]byte, 512), answerTime/2)
				if no {
					mu.Lock()
					count++
					mu.Unlock()
				}
				return err
			})
		}
		return count, g.Wait()
	}
	far, err := refuses(remote)
	if err != nil || far > 0 {
		return err
	}
	near, err := refuses(local)
	if err != nil {
		return err
	}
	if near == 0 {
		h.unknown("checksum", "network "+n.Name, "no container refuses a closed UDP port, so that those on other hosts do not says nothing")
		return nil
	}
	h.find(Finding{Check: "checksum", Severity: Problem, Object: "network " + n.Name,
		Evidence:    fmt.Sprintf("%d containers on other hosts answer ICMP echo through the tunnel, and none of them a UDP packet to a closed port; %d on this host do", len(remote), near),
		Consequence: "UDP and TCP checksums are probably wrong on arrival: a NIC that cannot compute them inside VXLAN. DNS and TCP are dead, ping works",
		Fix: []string{fmt.Sprintf("ethtool -K %s tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off; if that does not do, ethtool -K %s tx-checksum-ip-generic off", n.Device, n.Device),
			"nstat -az UdpInCsumErrors TcpInCsumErrors    # in a container on the other host: do they grow?"}})
	return nil
}
