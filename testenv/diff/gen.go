// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// World is what frames are made of: who is where, the same in both topologies.
type World struct {
	Hosts    []WorldHost
	Stranger WorldHost
	MTU      int // of the network
	Port     int // of the containers
	Underlay int
}

// WorldHost is one host's addresses.
type WorldHost struct {
	Name          string
	MAC           fdb.MAC // of the underlay device
	Addr          netip.Addr
	Bridge, VXLAN fdb.MAC
	Containers    []fdb.MAC
	HostEnds      []fdb.MAC
}

// World reads the addresses of a topology.
func (t *Topology) World() (w World, err error) {
	n := t.Lab.Spec.Networks[0]
	w.MTU, w.Underlay = n.MTU, t.Lab.Spec.Underlay.MTU
	for _, h := range t.Lab.Hosts {
		wh := WorldHost{Name: h.Name, MAC: h.MAC, Addr: h.Address}
		if h.Stranger {
			w.Stranger = wh
			continue
		}
		err := t.netlink(h.NS, func(nh *netlink.Handle) error {
			mac := func(dev string) (m fdb.MAC, err error) {
				l, err := nh.LinkByName(dev)
				if err == nil {
					m = fdb.MAC(l.Attrs().HardwareAddr)
				}
				return m, err
			}
			if wh.Bridge, err = mac(bridgeDev); err != nil {
				return err
			}
			if wh.VXLAN, err = mac(vxlanDev); err != nil {
				return err
			}
			if wh.Bridge != bridgeMAC(h) {
				return fmt.Errorf("bridge of %s has address %s", h.Name, wh.Bridge)
			}
			for _, c := range h.Containers {
				m, err := mac(c.HostEnd)
				if err != nil {
					return err
				}
				wh.HostEnds = append(wh.HostEnds, m)
				wh.Containers = append(wh.Containers, c.MAC)
				w.Port = c.MTU
			}
			return nil
		})
		if err != nil {
			return w, err
		}
		w.Hosts = append(w.Hosts, wh)
	}
	return w, nil
}

// endpoint is a MAC that stays where it is.
type endpoint struct {
	mac    fdb.MAC
	host   int
	at     Point
	v4, v6 netip.Addr
}

// endpoints of a host: the containers, two more MACs behind the port of each,
// as of a router or of nested containers, and the host itself.
func endpoints(host string, containers []fdb.MAC, bridge fdb.MAC) (out []endpoint) {
	i := int(host[1] - '0')
	add := func(mac fdb.MAC, dev string, n int) {
		out = append(out, endpoint{mac: mac, at: Point{host, dev}, v4: netip.AddrFrom4([4]byte{172, 29, 236, byte(10*i + n)}),
			v6: netip.MustParseAddr(fmt.Sprintf("fd00:29:236::%x:%x", i, n))})
	}
	for j, m := range containers {
		dev := fmt.Sprintf("%s-%d", network, j+1)
		add(m, dev, j+1)
		add(fdb.MAC{0x02, 0xaa, 0, byte(i - 1), byte(j), 1}, dev, j+4)
		add(fdb.MAC{0x02, 0xaa, 0, byte(i - 1), byte(j), 2}, dev, j+6)
	}
	add(bridge, bridgeDev, 0)
	return out
}

func containerMACs(h *testenv.Host) (out []fdb.MAC) {
	for _, c := range h.Containers {
		out = append(out, c.MAC)
	}
	return out
}

// bridgeMAC as KernelVXLAN gives it; New checks that.
func bridgeMAC(h *testenv.Host) fdb.MAC { return fdb.MAC{0x02, 0xb0, 0, h.Name[1] - '0', 1, 0} }

func markerMAC(host string, dev int) fdb.MAC {
	return fdb.MAC{0x02, 0xdd, 0, host[1], 0, byte(dev)}
}

var broadcast = fdb.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Generator makes batches of frames. The same seed makes the same batches.
type Generator struct {
	w         World
	seed      uint64
	endpoints []endpoint
	*rand.Rand
	serial uint32
	kinds  []kind
}

// NewGenerator for a world. weights are other weights for kinds of frames, 0 leaves one out.
func NewGenerator(w World, seed uint64, weights map[string]int) *Generator {
	g := &Generator{w: w, seed: seed, kinds: slices.Clone(kinds)}
	for i, k := range g.kinds {
		if n, ok := weights[k.name]; ok {
			g.kinds[i].weight = n
		}
	}
	for i, h := range w.Hosts {
		for _, e := range endpoints(h.Name, h.Containers, h.Bridge) {
			e.host = i
			g.endpoints = append(g.endpoints, e)
		}
	}
	return g
}

// MACs that stay on a host, and so should be known to all.
func (g *Generator) MACs() []fdb.MAC {
	var out []fdb.MAC
	for _, e := range g.endpoints {
		out = append(out, e.mac)
	}
	return out
}

// Queries make bridges believe in a querier, after a tenth of a second: from
// then on they send multicast only to those who asked for it.
func (g *Generator) Queries() []Step {
	e := g.endpoints[0]
	igmp := []byte{0x11, 1, 0, 0, 0, 0, 0, 0}
	be.PutUint16(igmp[2:], fold(sum(igmp, 0)))
	h4 := ip{src: e.v4, dst: netip.MustParseAddr("224.0.0.1"), ttl: 1, proto: 2, options: []byte{0x94, 4, 0, 0}}
	h6 := ip{src: netip.MustParseAddr("fe80::1"), dst: netip.MustParseAddr("ff02::1"), ttl: 1, proto: protoICMP6, options: []byte{protoICMP6, 0, 5, 2, 0, 0, 1, 0}}
	mld := make([]byte, 24)
	mld[0], mld[5] = 130, 100
	return []Step{
		{At: e.at, Kind: "igmp", Frame: ethernet(fdb.MAC{1, 0, 0x5e, 0, 0, 1}, e.mac, typeIPv4, h4.wrap(igmp))},
		{At: e.at, Kind: "mld", Frame: ethernet(fdb.MAC{0x33, 0x33, 0, 0, 0, 1}, e.mac, typeIPv6, h6.wrap(h6.checksum(mld, 2, csumRight)))},
	}
}

// Announce makes every endpoint known everywhere.
func (g *Generator) Announce() []Step {
	var out []Step
	for _, e := range g.endpoints {
		out = append(out, g.announce(e))
	}
	return out
}

func (g *Generator) announce(e endpoint) Step {
	return Step{At: e.at, Kind: "announce", Frame: ethernet(broadcast, e.mac, typeProbe, make([]byte, 46))}
}

// Batch is the n-th batch: about size frames.
func (g *Generator) Batch(n, size int) []Step {
	g.Rand = rand.New(rand.NewPCG(g.seed, uint64(n)))
	g.serial = uint32(n) << 16
	total := 0
	for _, k := range g.kinds {
		total += k.weight
	}
	var out []Step
	for len(out) < size {
		at := g.IntN(total)
		for _, k := range g.kinds {
			if at -= k.weight; at < 0 {
				for _, s := range k.make(g) {
					if s.Kind == "" {
						s.Kind = k.name
					}
					out = append(out, s)
				}
				break
			}
		}
	}
	// Who was impersonated says where it is.
	return append(out, g.Announce()...)
}

// GSO makes n packets to be cut up whose segments fit everywhere, and that come out at one place.
func (g *Generator) GSO(n int) []Step {
	g.Rand = rand.New(rand.NewPCG(g.seed, 0))
	var out []Step
	for len(out) < n {
		src, dst := g.apart()
		// The kernel refuses to cut up what is one segment already.
		if s := g.gso(src, dst); int(s.Hdr.GSOSize) < g.w.MTU-100 && len(s.Frame) > int(s.Hdr.HdrLen+s.Hdr.GSOSize) {
			out = append(out, s)
		}
	}
	return out
}

// pick is one of them.
func pick[T any](g *Generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *Generator) chance(percent int) bool { return g.IntN(100) < percent }

// pair is two endpoints that are not the same.
func (g *Generator) pair() (src, dst endpoint) {
	src = pick(g, g.endpoints...)
	for dst = src; dst.mac == src.mac; {
		dst = pick(g, g.endpoints...)
	}
	return src, dst
}

// apart is two endpoints on different hosts.
func (g *Generator) apart() (src, dst endpoint) {
	for src.host == dst.host {
		src, dst = g.pair()
	}
	return src, dst
}

// payload of n bytes; it begins with a serial number if there is room.
func (g *Generator) payload(n int) []byte {
	g.serial++
	b := make([]byte, n)
	if n >= 4 {
		be.PutUint32(b, g.serial)
	}
	for i := 4; i < n; i++ {
		b[i] = byte(i)
	}
	return b
}

// header is an inner IP header between two endpoints, right but various.
func (g *Generator) header(src, dst endpoint) ip {
	h := ip{src: src.v4, dst: dst.v4, ttl: 64, id: uint16(g.Uint32())}
	if g.chance(35) {
		h.src, h.dst = src.v6, dst.v6
		if g.chance(30) {
			h.label = g.Uint32() & 0xfffff
		}
	} else if g.chance(50) {
		h.frag = 0x4000
	}
	if h.src.Is6() {
		h.frag = 0
	}
	if g.chance(40) {
		h.tos = byte(g.Uint32())
	}
	if g.chance(10) {
		h.ttl = pick(g, byte(0), 1, 2, 255)
	}
	return h
}

// size of an IP packet's transport payload: small, anything, or at an edge.
func (g *Generator) size() int {
	switch g.IntN(10) {
	case 0, 1, 2, 3:
		return g.IntN(100)
	case 4, 5, 6:
		return g.IntN(g.w.MTU - 100)
	case 7:
		return g.w.MTU - 20 - 8 - g.IntN(80)
	case 8:
		return g.w.MTU - 48 + g.IntN(60)
	default:
		return max(0, g.w.Port-48-20+g.IntN(24))
	}
}

// ports of a transport flow: few, so that flows repeat.
func (g *Generator) ports() (uint16, uint16) {
	return uint16(40000 + g.IntN(4)), pick(g, uint16(53), 80, 5201, 5202)
}

// packet is a sound IP packet between two endpoints, as an Ethernet frame.
func (g *Generator) packet(src, dst endpoint) []byte {
	h := g.header(src, dst)
	return ethernet(dst.mac, src.mac, h.typ(), g.fill(h, g.size()))
}

// fill puts a sound transport packet of n bytes of payload into a header.
func (g *Generator) fill(h ip, n int) []byte {
	sp, dp := g.ports()
	switch g.IntN(8) {
	case 0, 1, 2, 3:
		h.proto = protoUDP
		return h.wrap(h.udp(sp, dp, csumRight, 0, g.payload(n)))
	case 4, 5, 6:
		h.proto = protoTCP
		return h.wrap(h.tcp(sp, dp, g.Uint32(), pick(g, byte(0x10), 0x18, 0x02, 0x11, 0x04), nil, csumRight, g.payload(max(0, n-12))))
	default:
		typ := byte(8)
		h.proto = protoICMP
		if h.src.Is6() {
			h.proto, typ = protoICMP6, 128
		}
		return h.wrap(h.icmp(typ, 0, csumRight, g.payload(n)))
	}
}
