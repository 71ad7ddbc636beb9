// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

const actShot = 2

// bar lets the two VTEPs of the drawing send to network 7, and nobody else.
func (l *lab) bar(check maps.Check, change ...func(*maps.Network)) {
	n := l.network()
	n.Check = check
	for _, f := range change {
		f(&n)
	}
	must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
	must(l.set.Networks.SetPorts(map[uint16]maps.Check{4789: check}))
	var list []maps.Source
	add := func(n fdb.NetID, a netip.Addr) {
		list = append(list, maps.Source{Net: n, Prefix: netip.PrefixFrom(a, a.BitLen())})
	}
	for _, a := range []netip.Addr{l.on.vtep1, l.on.vtep2} {
		add(netID, a)
		add(maps.SourceUnion, a)
	}
	add(maps.SourceLocal, l.on.local)
	add(maps.SourceLocal, second(l.on))
	must(l.set.Sources.Set(list))
	l.clearStrangers()
}

// second is another address of this host, third one of somebody else's.
func second(u underlay) netip.Addr { return u.local.Next().Next().Next().Next().Next() }
func third(u underlay) netip.Addr  { return second(u).Next() }

func (l *lab) clearStrangers() {
	var k bpf.StrangerKey
	var cpus []bpf.Stranger
	var have []bpf.StrangerKey
	for it := l.obj.VxStranger.Iterate(); it.Next(&k, &cpus); {
		have = append(have, k)
	}
	for _, k := range have {
		must(l.obj.VxStranger.Delete(k))
	}
}

type guardCase struct {
	name  string
	frame []byte
	from  netip.Addr // in vx_stranger; invalid: passes
	net   fdb.NetID  // that counts the drop
	shim  shim
	check maps.Check
	lease func(*lab)
	off   bool // the network is off
	gso   uint32
}

func guardCases(s scene) []guardCase {
	stranger := func(o *outer) { o.from(s.stranger) }
	to := func(a netip.Addr) func(*outer) { return func(o *outer) { o.to(a) } }
	forged := func(i inner, more ...func(*outer)) []byte {
		return s.received(i, append([]func(*outer){stranger}, more...)...)
	}
	drop := func(name string, frame []byte) guardCase {
		return guardCase{name: name, frame: frame, from: s.stranger, net: netID}
	}
	pass := func(name string, frame []byte) guardCase { return guardCase{name: name, frame: frame} }
	undecided := func(name string, frame []byte) guardCase {
		return guardCase{name: name, frame: frame, from: s.stranger}
	}
	cases := []guardCase{
		drop("a known MAC from a stranger", forged(inner{})),
		drop("an unknown MAC from a stranger", forged(inner{src: nobody})),
		drop("a static MAC from a stranger", forged(inner{src: sam})),
		drop("a MAC of ours from a stranger", forged(inner{src: alice})),
		drop("a broadcast from a stranger", s.wrap(arp(nobody), stranger)),
		drop("tcp from a stranger", forged(inner{tcp: true})),
		drop("to another address of this host", forged(inner{}, to(second(s.underlay)))),
		drop("to a group", forged(inner{}, to(s.group))),
		drop("reserved bits of the header set", forged(inner{}, func(o *outer) {
			o.patch = func(b []byte) { b[s.len()-1] = 1; b[s.len()-7] = 0xff }
		})),
		{name: "an aggregate from a stranger", frame: forged(inner{tcp: true}), from: s.stranger, net: netID, gso: 50},
		{name: "from a stranger, network off", frame: forged(inner{}), from: s.stranger, net: netID, off: true},
		{name: "from a stranger, while a daemon follows", frame: forged(inner{}), from: s.stranger, net: netID, check: maps.Check{Follow: true}},
		{name: "priority tag", frame: forged(inner{}), from: s.stranger, net: netID, shim: shim{priority: 1}},
		{name: "three priority tags", frame: forged(inner{}), from: s.stranger, net: netID, shim: shim{priority: 3}},

		pass("from the MAC's VTEP", s.received(inner{})),
		pass("an unknown MAC from a VTEP", s.received(inner{src: nobody})),
		pass("a MAC that moved to another VTEP", s.received(inner{}, func(o *outer) { o.from(s.vtep2) })),
		pass("a broadcast from a VTEP", s.wrap(arp(bob))),
		pass("through to somebody else", forged(inner{}, to(third(s.underlay)))),
		pass("another VNI", forged(inner{}, func(o *outer) { o.vxlan.VNI = 99 })),
		pass("another port", forged(inner{}, func(o *outer) { o.udp.DstPort = 8472 })),
		pass("no VNI", forged(inner{}, func(o *outer) { o.vxlan.ValidIDFlag = false })),
		{name: "priority tag from a VTEP", frame: s.received(inner{}), shim: shim{priority: 1}},
		{name: "in a VLAN", frame: forged(inner{}), shim: shim{vlan: true}},
		{name: "check off", frame: forged(inner{}), check: maps.Check{Off: true}},
		{name: "nobody follows any more", frame: forged(inner{}), check: maps.Check{Follow: true}, lease: noLease},
		{name: "nobody ever followed", frame: forged(inner{}), check: maps.Check{Follow: true},
			lease: func(l *lab) { must(l.set.Control.SetLease(maps.Forever)) }},
	}
	if s.v6() {
		options := func(n int) func(*outer) {
			return func(o *outer) {
				o.ip6.NextHeader = 60
				for i := range n {
					next := byte(60)
					if i == n-1 {
						next = 17
					}
					o.extension = append(o.extension, next, 0, 1, 4, 0, 0, 0, 0)
				}
			}
		}
		cut := func(b []byte, n int) []byte {
			b = bytes.Clone(b[:n])
			binary.BigEndian.PutUint16(b[ethHdr+4:], uint16(n-ethHdr-ip6Hdr))
			return b
		}
		first := []byte{0, 0, 0, 1, 1, 2, 3, 4}
		fragment := func(n int) []byte {
			return cut(forged(inner{}, extend(44, bytes.Clone(first)...)), ethHdr+ip6Hdr+8+n)
		}
		return append(cases,
			drop("hop-by-hop options", forged(inner{}, extend(0, 0, 0, 1, 4, 0, 0, 0, 0))),
			drop("destination options", forged(inner{}, extend(60, 0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))),
			drop("15 headers", forged(inner{}, options(15))),
			undecided("40 headers", forged(inner{}, options(40))),
			drop("first fragment", fragment(80)),
			drop("first fragment that ends behind the VNI", fragment(16)),
			undecided("first fragment that ends before the VNI", fragment(8)),
			undecided("first fragment that ends in its headers", fragment(0)),
			pass("first fragment from a VTEP", s.received(inner{}, extend(44, bytes.Clone(first)...))),
			pass("40 headers from a VTEP", s.received(inner{}, options(40))),
			pass("later fragment", forged(inner{}, extend(44, 0, 0, 1, 1, 1, 2, 3, 4))),
			pass("other protocol", forged(inner{}, func(o *outer) { o.ip6.NextHeader = layers.IPProtocolTCP })),
		)
	}
	options := func(o *outer) {
		o.ip.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
	}
	more := func(o *outer) { o.ip.Flags = layers.IPv4MoreFragments }
	cut := func(b []byte, n int) []byte {
		b = bytes.Clone(b[:n])
		binary.BigEndian.PutUint16(b[ethHdr+2:], uint16(n-ethHdr))
		fixIPSum(b)
		return b
	}
	return append(cases,
		drop("to all hosts", forged(inner{}, to(addr("255.255.255.255")))),
		drop("options", forged(inner{}, options)),
		drop("first fragment", forged(inner{}, more)),
		drop("first fragment that ends behind the VNI", cut(forged(inner{}, more), ethHdr+ip4Hdr+16)),
		undecided("first fragment that ends before the VNI", cut(forged(inner{}, more), ethHdr+ip4Hdr+8)),
		pass("first fragment that ends before the VNI, to another port", cut(forged(inner{}, more, func(o *outer) { o.udp.DstPort = 53 }), ethHdr+ip4Hdr+8)),
		pass("first fragment that ends before the VNI, from a VTEP", cut(s.received(inner{}, more), ethHdr+ip4Hdr+8)),
		pass("short, and no fragment", cut(forged(inner{}), ethHdr+ip4Hdr+8)),
		pass("options, from a VTEP", s.received(inner{}, options)),
		pass("later fragment", forged(inner{}, func(o *outer) { o.ip.FragOffset = 2 })),
		pass("other protocol", forged(inner{}, func(o *outer) { o.ip.Protocol = layers.IPProtocolTCP })),
		undecided("9 priority tags", forged(inner{})).tagged(9),
	)
}

func (c guardCase) tagged(n int) guardCase {
	c.shim.priority, c.from = n, netip.IPv4Unspecified()
	return c
}

// What a stranger sends to a network of ours goes nowhere and moves nothing; what the
// kernel would take for anybody else's is not touched.
func TestSourceCheck(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range []scene{{under4, false}, {under6, false}, {under6, true}} {
		l.on = s.underlay
		for _, c := range guardCases(s) {
			for name, p := range map[string]*ebpf.Program{"decap": l.obj.VxTcDecap, "guard": l.obj.VxTcGuard} {
				t.Run(s.String()+"/"+c.name+"/"+name, func(t *testing.T) {
					l.reset(t)
					l.bar(c.check, func(n *maps.Network) { n.Off = c.off || name == "guard"; n.Guard = name == "guard" })
					if c.lease != nil {
						c.lease(l)
					}
					prog := p
					if c.shim != (shim{}) {
						prog = l.before(t, c.shim, p).Program
					}
					before, _ := l.entries()
					verdict, out, err := l.exec(prog, c.frame, skBuff{Ifindex: l.underlay, GSOSize: c.gso}, 1)
					if err != nil {
						t.Fatal(err)
					}
					l.judgeGuard(t, c, verdict, name == "guard")
					if c.shim.priority == 0 && !c.shim.vlan && verdict == actUnspec && !bytes.Equal(out, c.frame) {
						t.Errorf("the kernel gets another frame (-in +out):\n%s", cmp.Diff(c.frame, out))
					}
					for k := range before {
						if c.from.IsValid() && l.entry(k.MAC) == nil && k.Net == netID {
							t.Errorf("entry of %v is gone", k.MAC)
						}
					}
				})
			}
		}
	}
}

func (l *lab) judgeGuard(t *testing.T, c guardCase, verdict int, guard bool) {
	t.Helper()
	have, err := l.set.Strangers.All()
	if err != nil {
		t.Fatal(err)
	}
	total := map[fdb.NetID]uint64{}
	for _, n := range []fdb.NetID{0, netID, otherID} {
		counts, err := l.set.Counters.Read(n)
		if err != nil {
			t.Fatal(err)
		}
		total[n] = counts[bpf.HookDecap][bpf.DropStranger].Packets
		for _, r := range counts[bpf.HookDecap] {
			if guard && r.Packets != total[n] {
				t.Errorf("network %d on the kernel path counts %v", n, counts)
			}
		}
	}
	if !c.from.IsValid() {
		if verdict == actShot || len(have) != 0 || total[0]+total[netID]+total[otherID] != 0 {
			t.Errorf("verdict %d, strangers %+v, counted %v; want no drop", verdict, have, total)
		}
		return
	}
	if verdict != actShot || total[c.net] != 1 || total[0]+total[netID]+total[otherID] != 1 {
		t.Errorf("verdict %d, counted %v; want one drop in network %d", verdict, total, c.net)
	}
	if len(have) != 1 || have[0].Last != c.from || have[0].Packets != 1 || have[0].Net != c.net || maps.Now()-have[0].Seen > time.Second {
		t.Errorf("strangers %+v, want one packet of %v", have, c.from)
	} else if p := have[0].Prefix; !c.from.IsUnspecified() && (!p.Contains(c.from) || p.Bits() != map[bool]int{true: 64, false: 24}[c.from.Is6()]) {
		t.Errorf("prefix %v of %v", p, c.from)
	}
}

// A flood from random addresses is counted to the last packet, and adds few prefixes.
func TestSourceCheckFlood(t *testing.T) {
	l := newLab(t, nil)
	l.on = under4
	l.reset(t)
	l.bar(maps.Check{})
	const n = 5000
	s := scene{under4, false}
	frame := s.received(inner{})
	start := time.Now()
	for i := range n {
		binary.BigEndian.PutUint32(frame[ethHdr+12:], 0x0a000000+uint32(i)<<8)
		if v, _, err := l.exec(l.obj.VxTcDecap, frame, skBuff{Ifindex: l.underlay}, 1); err != nil || v != actShot {
			t.Fatalf("verdict %d, %v", v, err)
		}
	}
	took := time.Since(start)
	have, err := l.set.Strangers.All()
	if err != nil {
		t.Fatal(err)
	}
	sum, others := uint64(0), uint64(0)
	for _, h := range have {
		sum += h.Packets
		if !h.Prefix.IsValid() {
			others = h.Packets
		}
	}
	counts, err := l.set.Counters.Read(netID)
	if err != nil {
		t.Fatal(err)
	}
	// 8 in 4 ms, on each CPU that the test was moved to.
	most := 8 * (int(took/(4*time.Millisecond)) + 2) * 8
	if sum != n || counts[bpf.HookDecap][bpf.DropStranger].Packets != n || len(have) > most || others == 0 {
		t.Errorf("%d packets in %v: %d counted by prefix, %d of those as others, %d prefixes (at most %d), counter %d", n, took, sum, others, len(have), most,
			counts[bpf.HookDecap][bpf.DropStranger].Packets)
	}
}
