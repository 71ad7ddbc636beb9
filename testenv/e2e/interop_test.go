// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	bits "encoding/binary" // "binary" is the program under test
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// Hosts that run vxbpf among hosts that run the kernel's VXLAN driver alone.
//
//	TestInteropPair:     h1 vxbpf    mgmt-1 -- br-mgmt -- eth2 ==== eth2 -- br-mgmt -- mgmt-1    h2 kernel
//
//	TestInteropThree:    h1 vxbpf    mgmt-1 -- br-mgmt -- eth2 -- p-h1 ┐
//	                     h2 vxbpf    mgmt-1 -- br-mgmt -- eth2 -- p-h2 ┼─ sw0    by copies to each, or by 239.1.1.236
//	                     h3 kernel   mgmt-1 -- br-mgmt -- eth2 -- p-h3 ┘
//
//	TestInteropNested:   h1 vxbpf    vxlan-1 -- br-vxlan -- eth2 ==== eth2 -- br-vxlan -- vxlan-1   h2 vxbpf, or kernel
//	                                 └ vx99 (VNI 99, over eth0) = = = = = = = = = (VNI 99) vx99 ┘

// bulk is what a transfer moves: some 6,000 packets at an MTU of 1450.
const bulk = 8 << 20

// overlay is a world with the eyes of these tests: on counters, pinned maps and
// the underlay.
type overlay struct {
	*world
	rtnl map[testenv.NS]*netlink.Handle
}

// newOverlay is up for these tests.
func newOverlay(t *testing.T, spec testenv.Spec, start bool, args ...string) overlay {
	t.Helper()
	return overlay{up(t, spec, start, args...), map[testenv.NS]*netlink.Handle{}}
}

// handle is an rtnetlink socket in a namespace, closed when the test ends.
func (w overlay) handle(ns testenv.NS) *netlink.Handle {
	w.t.Helper()
	if h := w.rtnl[ns]; h != nil {
		return h
	}
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(h.Close)
	w.rtnl[ns] = h
	return h
}

// must fails the test at the first error.
func (w overlay) must(errs ...error) {
	w.t.Helper()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
}

// pinDir is where a host's data path is pinned.
func (w overlay) pinDir(host string) string {
	return filepath.Join(loader.DefaultPinRoot, w.Host(host).Instance())
}

// pinned opens the maps of a host for fn.
func (w overlay) pinned(host string, fn func(*maps.Set)) {
	w.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(w.pinDir(host), "maps-*"))
	if err != nil || len(dirs) != 1 {
		w.t.Fatalf("pinned maps of %s: %v %v", host, dirs, err)
	}
	set, done, err := maps.OpenPinned(dirs[0])
	if err != nil {
		w.t.Fatal(err)
	}
	fn(set)
	if err := done(); err != nil {
		w.t.Error(err)
	}
}

// table is what a host's FDB map holds, by MAC: the tests with few networks
// have different MACs in each.
func (w overlay) table(host string) map[fdb.MAC]fdb.Entry {
	w.t.Helper()
	out := map[fdb.MAC]fdb.Entry{}
	w.pinned(host, func(s *maps.Set) {
		vteps, err := s.VTEPs.All()
		if err != nil {
			w.t.Fatal(err)
		}
		t, err := s.FDB.All(func(i uint32) netip.Addr { return vteps[i].Remote })
		if err != nil {
			w.t.Fatal(err)
		}
		for k, e := range t {
			if !e.Pending {
				out[k.MAC] = e
			}
		}
	})
	return out
}

// know waits until a host's fast path knows the MACs.
func (w overlay) know(host string, macs ...fdb.MAC) {
	w.t.Helper()
	w.wait(fmt.Sprintf("%v in the FDB map of %s", macs, host), func() bool {
		t := w.table(host)
		return !slices.ContainsFunc(macs, func(m fdb.MAC) bool { _, ok := t[m]; return !ok })
	})
}

// mostly fails the test if fewer than 99 % of at least so many packets were on
// the fast path. Ten more are free: address resolution and multicast reports
// come when they like.
func (w overlay) mostly(what string, s share, atLeast uint64) {
	w.t.Helper()
	if s.Fast*100 < atLeast*99 || s.Total-s.Fast > s.Total/100+10 {
		w.t.Errorf("%s: %d of %d packets on the fast path, want 99 %% of at least %d", what, s.Fast, s.Total, atLeast)
	}
}

// echo sends datagrams one after the other and wants each back as it was.
func (w overlay) echo(from, to testenv.NS, addr netip.Addr, rounds, size int) {
	w.t.Helper()
	server, err := to.ListenPacket(w.ctx, "udp", netip.AddrPortFrom(addr, 0).String())
	w.must(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return // closed below
			}
			// An error shows as an answer that does not come.
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	defer func() {
		server.Close()
		<-done
	}()
	w.echoed(from, server.LocalAddr().String(), rounds, size)
}

// echoed is the client of echo.
func (w overlay) echoed(from testenv.NS, addr string, rounds, size int) {
	w.t.Helper()
	client, err := from.Dial(w.ctx, "udp", addr)
	w.must(err)
	defer client.Close()
	w.must(client.SetDeadline(time.Now().Add(30 * time.Second)))
	data, got := make([]byte, size), make([]byte, 1<<16)
	random := rand.NewChaCha8([32]byte{byte(size)})
	for i := range rounds {
		_, _ = random.Read(data)
		_, err := client.Write(data)
		n := 0
		if err == nil {
			n, err = client.Read(got)
		}
		if err != nil {
			w.t.Errorf("udp from %s to %s: datagram %d of %d: %v", from.Name(), addr, i, rounds, err)
			return
		}
		if !bytes.Equal(got[:n], data) {
			w.t.Errorf("udp from %s to %s: datagram %d came back altered (%d bytes of %d)", from.Name(), addr, i, n, size)
			return
		}
	}
}

// small is a little of everything between two containers, both families.
func (w overlay) small(a, b *testenv.Container) {
	w.t.Helper()
	w.ping(a.NS, b.Addr.Addr())
	w.ping(b.NS, a.Addr.Addr())
	if a.Addr6.IsValid() {
		w.ping(a.NS, b.Addr6.Addr())
		w.ping(b.NS, a.Addr6.Addr())
		w.echo(a.NS, b.NS, b.Addr6.Addr(), 20, 700)
	}
	w.echo(a.NS, b.NS, b.Addr.Addr(), 20, 18)
	w.echo(b.NS, a.NS, a.Addr.Addr(), 20, a.MTU-28)
}

// interop moves traffic of all kinds between a container of a vxbpf host and
// one of another host, and judges the vxbpf hosts by their counters.
func (w overlay) interop(host string, a *testenv.Container, other string, b *testenv.Container, fast ...string) {
	w.t.Helper()
	w.small(a, b) // who is where
	for _, h := range fast {
		w.know(h, a.MAC, b.MAC)
	}
	time.Sleep(50 * time.Millisecond) // longer than vx_hold_ns: the first packets of a MAC are the kernel's

	for _, addr := range []netip.Addr{b.Addr.Addr(), b.Addr6.Addr()} {
		w.each(fast, a.Network, func() { w.echo(a.NS, b.NS, addr, 200, 200) }, func(h string, sent, received share) {
			w.mostly(fmt.Sprintf("%s, udp from %s to %s, sent", h, host, addr), sent, 200)
			w.mostly(fmt.Sprintf("%s, udp from %s to %s, received", h, host, addr), received, 200)
		})
	}
	w.each(fast, a.Network, func() { w.transfer(a, b, bulk) }, func(h string, sent, received share) {
		data, acks := sent, received
		if h != host {
			data, acks = received, sent
		}
		w.mostly(fmt.Sprintf("%s, tcp from %s to %s", h, host, other), data, 5000)
		if acks.ratio() < 0.9 {
			w.t.Errorf("%s, acknowledgements from %s: %d of %d on the fast path", h, other, acks.Fast, acks.Total)
		}
	})
	w.each(fast, a.Network, func() { w.transfer(b, a, bulk) }, func(h string, sent, received share) {
		data, acks := received, sent
		if h != host {
			data, acks = sent, received
		}
		w.mostly(fmt.Sprintf("%s, tcp from %s to %s", h, other, host), data, 5000)
		if acks.ratio() < 0.9 {
			w.t.Errorf("%s, acknowledgements from %s: %d of %d on the fast path", h, host, acks.Fast, acks.Total)
		}
	})
}

// each gives judge what the counters of a network gained on each host while fn ran.
func (w overlay) each(hosts []string, network string, fn func(), judge func(host string, sent, received share)) {
	w.t.Helper()
	before := make([]networkStatus, len(hosts))
	for i, h := range hosts {
		before[i] = w.network(h, network)
	}
	fn()
	for i, h := range hosts {
		after := w.network(h, network)
		judge(h, after.Sent.less(before[i].Sent), after.Received.less(before[i].Received))
	}
}

// outerHeader is what a VXLAN packet says outside of the inner frame.
type outerHeader struct {
	ethSrc, ethDst fdb.MAC
	src, dst       netip.Addr
	ttl            uint8
	sport, dport   uint16
	csum           uint16
	vni            fdb.VNI
	inner          []byte
}

// decodeOuter reads a VXLAN packet over IPv4 and finds what is wrong with it by
// RFC 791, RFC 768 and RFC 7348 alone.
func decodeOuter(b []byte) (o outerHeader, err error) {
	if len(b) < 50+14 || bits.BigEndian.Uint16(b[12:]) != 0x0800 {
		return o, fmt.Errorf("%d bytes, EtherType %x: no VXLAN over IPv4", len(b), b[12:14])
	}
	o.ethDst, o.ethSrc = fdb.MAC(b[0:6]), fdb.MAC(b[6:12])
	ip, udp, vx := b[14:34], b[34:42], b[42:50]
	o.src, o.dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	o.ttl = ip[8]
	o.sport, o.dport = bits.BigEndian.Uint16(udp), bits.BigEndian.Uint16(udp[2:])
	o.csum = bits.BigEndian.Uint16(udp[6:])
	o.vni = fdb.VNI(bits.BigEndian.Uint32(vx[4:]) >> 8)
	o.inner = b[50:]
	switch {
	case ip[0] != 0x45:
		err = fmt.Errorf("IPv4 header starts with %#x", ip[0])
	case ip[9] != 17:
		err = fmt.Errorf("IP protocol %d", ip[9])
	case int(bits.BigEndian.Uint16(ip[2:])) != len(b)-14:
		err = fmt.Errorf("IP length %d in a frame of %d", bits.BigEndian.Uint16(ip[2:]), len(b))
	case bits.BigEndian.Uint16(ip[6:])&0x3fff != 0:
		err = errors.New("fragment")
	case onesSum(ip) != 0xffff:
		err = fmt.Errorf("IP header checksum %x is wrong", ip[10:12])
	case int(bits.BigEndian.Uint16(udp[4:])) != len(b)-34:
		err = fmt.Errorf("UDP length %d in a frame of %d", bits.BigEndian.Uint16(udp[4:]), len(b))
	case bits.BigEndian.Uint32(vx) != 0x08000000 || vx[7] != 0:
		err = fmt.Errorf("VXLAN header %x", vx)
	case o.inner[6]&1 != 0:
		err = fmt.Errorf("inner source %x is a group", o.inner[6:12])
	}
	return o, err
}

// onesSum is the Internet checksum before it is inverted.
func onesSum(b []byte) uint32 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(bits.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return s
}

// captured judges what passed a host's underlay device: each IPv4 packet must
// be VXLAN of ours, with outer fields that fit. It counts what the host sent and
// received with a zero and with a non-zero UDP checksum.
func (w overlay) captured(host string, n testenv.Network, frames []testenv.Frame) (sent, received struct{ zero, set int }) {
	w.t.Helper()
	h := w.Host(host)
	hosts := map[netip.Addr]*testenv.Host{}
	for _, o := range w.Hosts {
		hosts[o.Address] = o
	}
	portRange, err := h.NS.ReadSysctl("net.ipv4.ip_local_port_range")
	w.must(err)
	var low, high uint16
	_, err = fmt.Sscan(portRange, &low, &high)
	w.must(err)
	bad := 0
	for _, f := range frames {
		if f.Data[14+9] == 2 {
			continue // IGMP
		}
		o, err := decodeOuter(f.Data)
		group := n.Group.IsValid() && o.dst == n.Group
		switch {
		case err != nil:
		case o.dport != 4789:
			err = fmt.Errorf("UDP destination port %d", o.dport)
		case o.sport < low || o.sport > high:
			err = fmt.Errorf("UDP source port %d is not in %s", o.sport, portRange)
		case o.vni != n.VNI:
			err = fmt.Errorf("VNI %d", o.vni)
		case o.ttl != 5:
			err = fmt.Errorf("TTL %d", o.ttl)
		case hosts[o.src] == nil || hosts[o.src].MAC != o.ethSrc || f.Outgoing != (o.src == h.Address):
			err = fmt.Errorf("comes from %s, %s", o.src, o.ethSrc)
		case group && o.inner[0]&1 == 0 && !w.unknown(o.inner):
			err = errors.New("known unicast to the group")
		case !group && (hosts[o.dst] == nil || hosts[o.dst].MAC != o.ethDst):
			err = fmt.Errorf("goes to %s, %s", o.dst, o.ethDst)
		}
		if err != nil {
			if bad++; bad <= 5 {
				w.t.Errorf("on the underlay of %s: %v\n%x", host, err, f.Data[:min(len(f.Data), 110)])
			}
			continue
		}
		side := &received
		if f.Outgoing {
			side = &sent
		}
		if o.csum == 0 {
			side.zero++
		} else {
			side.set++
		}
	}
	return sent, received
}

// unknown: an inner destination that is none of the lab's containers.
func (w overlay) unknown(inner []byte) bool {
	for _, h := range w.Hosts {
		for _, c := range h.Containers {
			if bytes.Equal(c.MAC[:], inner[:6]) {
				return false
			}
		}
	}
	return true
}

// record captures IPv4 on a host's underlay while fn runs.
func (w overlay) record(host string, fn func()) []testenv.Frame {
	w.t.Helper()
	r, err := testenv.Capture(w.ctx, w.Host(host).NS, w.Spec.Underlay.Device, func(b []byte) bool {
		return len(b) > 34 && bits.BigEndian.Uint16(b[12:]) == 0x0800
	})
	w.must(err)
	fn()
	frames, err := r.Stop()
	w.must(err)
	return frames
}

func TestInteropPair(t *testing.T) {
	for name, noChecksum := range map[string]bool{"kernel sends UDP checksums": false, "kernel sends none": true} {
		t.Run(name, func(t *testing.T) {
			w := newOverlay(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2", Datapath: testenv.None}), true)
			_, err := w.KernelVXLAN(w.ctx, "h2", "mgmt", testenv.KernelVXLANOptions{NoChecksum: noChecksum})
			w.must(err)
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			w.interop("h1", a, "h2", b, "h1")
			frames := w.record("h1", func() {
				w.small(a, b)
				w.transfer(a, b, 1<<20)
				w.transfer(b, a, 1<<20)
			})
			sent, received := w.captured("h1", w.Spec.Networks[0], frames)
			if sent.zero < 40 || sent.set != 0 {
				t.Errorf("h1 sent %d packets without and %d with UDP checksum, want all without", sent.zero, sent.set)
			}
			if noChecksum && (received.set != 0 || received.zero < 40) || !noChecksum && (received.zero != 0 || received.set < 40) {
				t.Errorf("h2 sent %d packets without and %d with UDP checksum", received.zero, received.set)
			}
			// A checksum that nobody has verified is the kernel's: then the packet is ours behind the vxlan device.
			n := w.network("h1", "mgmt")
			decap, deliver := n.Reasons["decap"], n.Reasons["deliver"]
			taken := decap["fast"].Packets
			if !need.Have(t, need.DecapL3) {
				taken += decap["adjust_failed"].Packets // IPv6, left to the vxlan device
			}
			if noChecksum && taken < 500 || !noChecksum && (decap["outer_csum"].Packets < 500 || deliver["fast"].Packets < 500) {
				t.Errorf("decap %v, deliver %v", decap, deliver)
			}
		})
	}
}

func TestInteropThree(t *testing.T) {
	for name, group := range map[string]netip.Addr{"remotes": {}, "group": netip.MustParseAddr("239.1.1.236")} {
		t.Run(name, func(t *testing.T) {
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}, testenv.HostSpec{Name: "h3", KernelVXLAN: true})
			spec.Networks[0].Group = group
			w := newOverlay(t, spec, true)
			c := map[string]*testenv.Container{}
			for _, h := range []string{"h1", "h2", "h3"} {
				c[h] = w.Container(h, "mgmt-1")
			}
			w.interop("h1", c["h1"], "h2", c["h2"], "h1", "h2")
			w.interop("h1", c["h1"], "h3", c["h3"], "h1")
			w.interop("h2", c["h2"], "h3", c["h3"], "h2")
			for _, h := range []string{"h1", "h2"} {
				if n := w.network(h, "mgmt"); len(n.VTEPs) != 2 || n.Local < 1 || n.Remote < 2 {
					t.Errorf("%s: VTEPs %v, %d local and %d remote MACs", h, n.VTEPs, n.Local, n.Remote)
				}
			}
			// Unicast and BUM at h1, which has a vxbpf and a kernel neighbour.
			frames := w.record("h1", func() {
				w.small(c["h1"], c["h2"])
				w.small(c["h1"], c["h3"])
				w.transfer(c["h1"], c["h3"], 1<<20)
				w.transfer(c["h2"], c["h1"], 1<<20)
				for _, h := range []string{"h1", "h2", "h3"} {
					w.flood(h)
				}
			})
			sent, received := w.captured("h1", w.Spec.Networks[0], frames)
			if sent.zero < 40 || sent.set != 0 || received.zero < 100 || received.set < 20 {
				t.Errorf("without and with UDP checksum: sent %+v, received %+v", sent, received)
			}
			to := map[netip.Addr]int{}
			for _, f := range frames {
				if o, err := decodeOuter(f.Data); err == nil && f.Outgoing && isProbe(o.inner) {
					to[o.dst]++
				}
			}
			want := map[netip.Addr]int{w.Host("h2").Address: 1, w.Host("h3").Address: 1}
			if group.IsValid() {
				want = map[netip.Addr]int{group: 1}
			}
			if fmt.Sprint(to) != fmt.Sprint(want) {
				t.Errorf("h1's broadcast went to %v, want %v", to, want)
			}
		})
	}
}

// probeFrame is a broadcast that nobody answers: EtherType 0x88b5 is for experiments.
func probeFrame(from fdb.MAC) []byte {
	return slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from[:], []byte{0x88, 0xb5}, bytes.Repeat([]byte{from[3]}, 60))
}

func isProbe(b []byte) bool {
	return len(b) > 14 && b[0] == 0xff && bits.BigEndian.Uint16(b[12:]) == 0x88b5
}

// flood sends one broadcast from a host's container: each other host's gets it once.
func (w overlay) flood(from string) {
	w.t.Helper()
	got := map[string]*testenv.Recorder{}
	for _, h := range w.Hosts {
		r, err := testenv.Capture(w.ctx, h.Containers[0].NS, "eth0", isProbe)
		w.must(err)
		got[h.Name] = r
	}
	c := w.Host(from).Containers[0]
	w.must(testenv.SendFrame(c.NS, "eth0", probeFrame(c.MAC)))
	for name, r := range got {
		want := 1
		if name == from {
			want = 0
		}
		ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
		_ = r.Wait(ctx, want)
		cancel()
	}
	time.Sleep(10 * time.Millisecond) // a second copy comes right behind
	for name, r := range got {
		frames, err := r.Stop()
		w.must(err)
		in := 0
		for _, f := range frames {
			if !f.Outgoing {
				in++
				if !bytes.Equal(f.Data, probeFrame(c.MAC)) {
					w.t.Errorf("broadcast from %s reached %s altered: %x", from, name, f.Data)
				}
			}
		}
		if name == from && in != 0 || name != from && in != 1 {
			w.t.Errorf("broadcast from %s reached %s %d times", from, name, in)
		}
	}
}

// nested makes a vxlan device inside a container, over its eth0.
func (w overlay) nested(c, peer *testenv.Container, addrs ...string) {
	w.t.Helper()
	// The vxlan driver opens its socket in the namespace of the caller.
	w.must(c.NS.Do(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		vx := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: "vx99", MTU: c.MTU - 50, TxQLen: -1},
			VxlanId:   99, VtepDevIndex: eth0.Attrs().Index, Port: 4789, Learning: true,
			SrcAddr: net.IP(c.Addr.Addr().AsSlice()), Group: net.IP(peer.Addr.Addr().AsSlice()),
		}
		if err := netlink.LinkAdd(vx); err != nil {
			return fmt.Errorf("make vx99 in %s: %w", c.NS.Name(), err)
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if !strings.Contains(s, ":") {
				a.Flags = 0
			}
			if err := netlink.AddrAdd(vx, a); err != nil {
				return fmt.Errorf("add %s to vx99: %w", s, err)
			}
		}
		return netlink.LinkSetUp(vx)
	}))
}

func TestInteropNested(t *testing.T) {
	for _, other := range []testenv.HostSpec{{Name: "h2"}, {Name: "h2", KernelVXLAN: true}} {
		t.Run("with kernel "+strconv.FormatBool(other.KernelVXLAN), func(t *testing.T) {
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, other)
			spec.Networks[0].Name, spec.Networks[0].VNI = "vxlan", 240
			w := newOverlay(t, spec, true)
			a, b := w.Container("h1", "vxlan-1"), w.Container("h2", "vxlan-1")
			w.nested(a, b, "10.99.0.1/24", "fd99::1/64")
			w.nested(b, a, "10.99.0.2/24", "fd99::2/64")
			fast := []string{"h1"}
			if !other.KernelVXLAN {
				fast = append(fast, "h2")
			}
			inner, inner6 := netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd99::2")
			back, back6 := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd99::1")
			w.ping(a.NS, inner)
			for _, h := range fast {
				w.know(h, a.MAC, b.MAC)
			}
			time.Sleep(50 * time.Millisecond) // vx_hold_ns
			for _, p := range []struct {
				from, to testenv.NS
				addr     netip.Addr
			}{{a.NS, b.NS, inner}, {b.NS, a.NS, back}, {a.NS, b.NS, inner6}, {b.NS, a.NS, back6}} {
				w.ping(p.from, p.addr)
				w.each(fast, "vxlan", func() { w.echo(p.from, p.to, p.addr, 200, 200) }, func(h string, sent, received share) {
					w.mostly(fmt.Sprintf("%s, nested udp to %s, sent", h, p.addr), sent, 200)
					w.mostly(fmt.Sprintf("%s, nested udp to %s, received", h, p.addr), received, 200)
				})
				// A GSO packet that is a tunnel packet already cannot become one twice, nor in the kernel:
				// it is cut up first. So what the container sends in bulk is the kernel's; the rest is not.
				cut := map[string]uint64{}
				for _, h := range fast {
					cut[h] = w.network(h, "vxlan").Reasons["encap"]["nested"].Packets
				}
				w.each(fast, "vxlan", func() {
					r, err := testenv.Transfer(w.ctx, p.from, p.to, p.addr, bulk, 1)
					w.must(err)
					if !r.Match || r.MSS > uint32(a.MTU-50-40) {
						t.Errorf("nested tcp to %s: match %v, MSS %d", p.addr, r.Match, r.MSS)
					}
				}, func(h string, sent, received share) {
					sent.Fast += w.network(h, "vxlan").Reasons["encap"]["nested"].Packets - cut[h]
					what := fmt.Sprintf("%s, nested tcp to %s, ", h, p.addr)
					if (h == "h1") == (p.from == a.NS) {
						w.mostly(what+"sent, or cut up by the kernel", sent, 5000)
					} else {
						w.mostly(what+"received", received, 5000)
						if sent.ratio() < 0.9 {
							t.Errorf("%sacknowledgements: %d of %d on the fast path", what, sent.Fast, sent.Total)
						}
					}
				})
			}
			// Two VXLAN headers on the wire, the outer one the host's, the inner one the container's own.
			frames := w.record("h1", func() {
				w.ping(a.NS, inner)
				_, err := testenv.Transfer(w.ctx, a.NS, b.NS, inner, 1<<20, 2)
				w.must(err)
			})
			w.captured("h1", w.Spec.Networks[0], frames)
			twice := 0
			for _, f := range frames {
				o, err := decodeOuter(f.Data)
				if err != nil || !f.Outgoing || !bytes.Equal(o.inner[:6], b.MAC[:]) || o.inner[12] != 8 || o.inner[13] != 0 {
					continue
				}
				i, err := decodeOuter(o.inner)
				if err != nil || i.vni != 99 || i.dport != 4789 || i.src != a.Addr.Addr() || i.dst != b.Addr.Addr() {
					t.Fatalf("inside of VNI %d: %+v, %v\n%x", o.vni, i, err, o.inner[:min(len(o.inner), 80)])
				}
				twice++
			}
			if twice < 10 {
				t.Errorf("%d nested packets among %d", twice, len(frames))
			}
		})
	}
}
