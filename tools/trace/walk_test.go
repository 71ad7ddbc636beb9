// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// The programs, loaded and attached nowhere, in a namespace with the devices
// that their contexts name. BPF_PROG_TEST_RUN takes a frame; the counters tell
// what reason the program gave.
type rig struct {
	run                           chan func()
	obj                           bpf.Objects
	set                           *maps.Set
	port, bridge, vxlan, underlay uint32
}

const (
	rigNet   fdb.NetID     = 7
	rigVNI   fdb.VNI       = 236
	rigHold  time.Duration = 10 * time.Second
	rigGone  uint32        = 1 << 30
	rigSlots uint32        = 16
)

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("loads BPF programs: run as root")
	}
	r := &rig{run: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends, and the namespace with it
		ready <- r.build()
		for f := range r.run {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.Load()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps["vx_vtep"].MaxEntries = rigSlots
	if err := spec.Variables["vx_hold_ns"].Set(uint64(rigHold)); err != nil {
		t.Fatal(err)
	}
	if err := spec.LoadAndAssign(&r.obj, nil); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		close(r.run)
		if err := r.obj.Close(); err != nil {
			t.Error(err)
		}
	})
	r.set = maps.New(r.obj.MapSet())
	return r
}

func (rig *rig) build() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	for _, p := range []struct {
		a, b   string
		ia, ib *uint32
	}{{"port", "br", &rig.port, &rig.bridge}, {"link", "under", &rig.vxlan, &rig.underlay}} {
		la := netlink.NewLinkAttrs()
		la.Name = p.a
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: p.b, PeerHardwareAddr: underMAC[:]}); err != nil {
			return err
		}
		for name, to := range map[string]*uint32{p.a: p.ia, p.b: p.ib} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			*to = uint32(l.Attrs().Index)
		}
	}
	return nil
}

var (
	underMAC = fdb.MAC{2, 0, 0, 0, 1, 2} // of the underlay device: other packets are another host's

	macA = fdb.MAC{2, 0, 0, 0, 0, 0xa}
	macB = fdb.MAC{2, 0, 0, 0, 0, 0xb}
)

// one picks one.
func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// often is true in most cases.
func often(r *rand.Rand) bool { return r.IntN(6) > 0 }

type scene struct {
	s     State
	p     Packet
	o     Outer
	hook  bpf.Hook
	dev   uint32
	frame []byte
	table map[fdb.Key]maps.Placed
}

// scene makes a random state, in the maps and for the walk, and a packet.
func (rig *rig) scene(t *testing.T, r *rand.Rand) *scene {
	t.Helper()
	now := maps.Now()
	v6 := r.IntN(2) == 0
	a := func(n string) netip.Addr {
		if v6 {
			return netip.MustParseAddr("fd00::" + n)
		}
		return netip.MustParseAddr("192.0.2." + n)
	}
	sc := &scene{hook: one(r, bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver), table: map[fdb.Key]maps.Placed{}}
	sc.s = State{Now: now, Hold: rigHold, Slots: rigSlots, VTEPs: map[uint32]maps.VTEP{},
		Lease:  one(r, now-time.Second, now+time.Hour, now+time.Hour, now+time.Hour, maps.Forever),
		TooBig: one(r, 0, 0, 0, now-time.Second, now-5*time.Second, max(now-20*time.Minute, 1)),
		Exists: func(i uint32) bool { return i != rigGone }, Device: func(i uint32) string { return strconv.Itoa(int(i)) },
		Entry: func(k fdb.Key) (maps.Placed, bool) { e, ok := sc.table[k]; return e, ok }}
	must(t, rig.set.Control.SetLease(sc.s.Lease))
	must(t, rig.obj.VxControl.Put(bpf.ControlTooBig, bpf.Control{At: uint64(sc.s.TooBig)}))

	for i, remote := range map[uint32]netip.Addr{1: a("12"), 2: a("13")} {
		v := maps.VTEP{VTEPKey: maps.VTEPKey{Local: a("11"), Remote: remote, Port: 4789, TTL: 5, Low: 32768, High: 61000}, Src: a("11"),
			Device: rig.underlay, MACs: often(r), MTU: one[uint16](r, 1500, 1500, 600, 400), Off: !often(r)}
		must(t, rig.set.VTEPs.Put(i, v))
		sc.s.VTEPs[i] = v
	}
	times := maps.Network{Net: rigNet, Local: a("11"), Ageing: one(r, 0, 300*time.Second, 300*time.Second), Refresh: 75 * time.Second, Off: !often(r), ZeroCsum6: true}
	times.Check = maps.Check{Off: r.IntN(3) == 0, Follow: r.IntN(2) == 0}
	times.Guard = r.IntN(8) == 0
	times.Off = times.Off || times.Guard
	key := maps.NetworkKey{VNI: rigVNI, Port: 4789}
	must(t, rig.set.Networks.Put(key, times))
	listed := []maps.Source{}
	for _, x := range []maps.Source{{Net: rigNet, Prefix: netip.PrefixFrom(a("12"), a("12").BitLen())}, {Net: rigNet, Prefix: netip.PrefixFrom(a("13"), a("13").BitLen())},
		{Net: maps.SourceLocal, Prefix: netip.PrefixFrom(a("99"), a("99").BitLen())}, {Net: rigNet, Prefix: netip.MustParsePrefix("10.0.0.0/8")}} {
		if r.IntN(2) == 0 {
			listed = append(listed, x)
		}
	}
	must(t, rig.set.Sources.Set(listed))
	sc.s.Listed = func(net fdb.NetID, a netip.Addr) bool {
		return slices.ContainsFunc(listed, func(s maps.Source) bool { return s.Net == net && s.Prefix.Contains(a) })
	}
	sc.s.Networks = map[maps.NetworkKey]maps.Network{key: times}
	port := maps.Port{Net: rigNet, VNI: rigVNI, MTU: one[uint16](r, 1450, 1450, 300), Ageing: times.Ageing, Refresh: times.Refresh, Off: !often(r)}
	sc.s.Ports = map[uint32]maps.Port{}
	for _, i := range []uint32{rig.port, rig.bridge, rig.vxlan} {
		must(t, rig.set.Ports.Put(i, port))
		sc.s.Ports[i] = port
	}
	put := func(mac fdb.MAC, local bool) {
		k := fdb.Key{Net: rigNet, MAC: mac}
		must(t, rig.set.FDB.Delete(k))
		if r.IntN(10) == 0 {
			return
		}
		if !often(r) {
			local = !local
		}
		e := maps.Placed{Entry: fdb.Entry{Kind: fdb.Remote, Static: !often(r), Sticky: !often(r), Pinned: !often(r), Pending: r.IntN(12) == 0,
			Seen: now - one(r, time.Second, time.Second, time.Second, time.Second, 150*time.Second, 1000*time.Second)}}
		if !often(r) {
			e.Slow = now
		}
		raw := bpf.FDBEntry{Seen: uint64(e.Seen), Slow: uint64(e.Slow)}
		if local {
			e.Kind = one(r, fdb.Peer, fdb.Peer, fdb.Egress, fdb.Host)
			e.Port, e.MTU = one(r, rig.port, rig.port, rig.port, rig.bridge, rigGone), one[uint16](r, 1450, 1450, 300)
			raw.To = e.Port
		} else {
			e.Index = one[uint32](r, 1, 1, 1, 2, 3, rigSlots+5)
			raw.To = e.Index
		}
		raw.Kind, raw.Mtu = uint8(e.Kind), e.MTU
		for bit, on := range map[uint8]bool{bpf.EntryStatic: e.Static, bpf.EntrySticky: e.Sticky, bpf.EntryPinned: e.Pinned, bpf.EntryPending: e.Pending} {
			if on {
				raw.Flags |= bit
			}
		}
		must(t, rig.obj.VxFdb.Put(bpf.NewFDBKey(uint16(k.Net), k.MAC), raw))
		sc.table[k] = e
	}
	put(macA, sc.hook == bpf.HookEncap)
	put(macB, sc.hook != bpf.HookEncap)

	sc.p = Packet{Src: macA, Dst: macB, EtherType: one[uint16](r, etherIPv4, etherIPv4, etherIPv6, etherIPv6, etherARP), Length: one(r, 98, 98, 400, 540, 900, 1464, 1600)}
	if r.IntN(12) == 0 {
		sc.p.Dst = one(r, fdb.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, fdb.MAC{1, 0, 0x5e, 0, 0, 1})
	}
	sc.p.ND = r.IntN(8) == 0
	sc.frame = sc.p.frame(t)
	switch sc.hook {
	case bpf.HookEncap:
		sc.dev = one(r, rig.port, rig.port, rig.port, rig.bridge, rig.underlay)
	case bpf.HookDeliver:
		sc.dev = one(r, rig.vxlan, rig.vxlan, rig.vxlan, rig.underlay)
	default:
		sc.dev = rig.underlay
		sc.o = Outer{From: one(r, a("12"), a("12"), a("12"), a("13"), a("66")), To: a("11"), Key: key}
		if !often(r) {
			sc.o.To = a("99")
		}
		if r.IntN(12) == 0 {
			sc.o.Key.VNI++
		}
		if r.IntN(12) == 0 { // the other family
			sc.o.From, sc.o.To = netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("192.0.2.11")
			if !v6 {
				sc.o.From, sc.o.To = netip.MustParseAddr("fd00::12"), netip.MustParseAddr("fd00::11")
			}
		}
		sc.frame = sc.o.wrap(t, sc.frame)
	}
	return sc
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func serialize(t *testing.T, sums bool, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: sums}, l...))
	return append([]byte{}, buf.Bytes()...)
}

// frame makes the packet's bytes.
func (p Packet) frame(t *testing.T) []byte {
	t.Helper()
	b := append(append([]byte{}, p.Dst[:]...), p.Src[:]...)
	b = binary.BigEndian.AppendUint16(b, p.EtherType)
	body := gopacket.Payload(make([]byte, p.Length))
	switch p.EtherType {
	case etherIPv4:
		b = append(b, serialize(t, true, &layers.IPv4{Version: 4, TTL: 9, Protocol: 17, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}}, body)...)
	case etherIPv6:
		ip := &layers.IPv6{Version: 6, HopLimit: 9, NextHeader: 17, SrcIP: net.ParseIP("fd01::1"), DstIP: net.ParseIP("fd01::2")}
		if p.ND {
			ip.NextHeader, body[0] = 58, 135
		}
		b = append(b, serialize(t, true, ip, body)...)
	default:
		b = append(b, body...)
	}
	return b[:p.Length]
}

// wrap puts the outer header in front.
func (o Outer) wrap(t *testing.T, in []byte) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 1, 1}, DstMAC: underMAC[:], EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer = &layers.IPv4{Version: 4, TTL: 5, Protocol: 17, SrcIP: o.From.AsSlice(), DstIP: o.To.AsSlice()}
	if o.From.Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip = &layers.IPv6{Version: 6, HopLimit: 5, NextHeader: 17, SrcIP: o.From.AsSlice(), DstIP: o.To.AsSlice()}
	}
	datagram := serialize(t, false, &layers.UDP{SrcPort: 45000, DstPort: layers.UDPPort(o.Key.Port)}, &layers.VXLAN{ValidIDFlag: true, VNI: uint32(o.Key.VNI)}, gopacket.Payload(in))
	return serialize(t, true, eth, ip, gopacket.Payload(datagram))
}

func (sc *scene) walk() *Walk {
	switch sc.hook {
	case bpf.HookEncap:
		return sc.s.Encap(sc.dev, sc.p)
	case bpf.HookDecap:
		return sc.s.Decap("under", sc.o, sc.p)
	}
	return sc.s.Deliver(sc.dev, sc.p)
}

// judge runs the program and says what reason it gave; none if it left the packet alone.
func (rig *rig) judge(t *testing.T, sc *scene) (reason bpf.Reason, none bool) {
	t.Helper()
	for _, n := range []fdb.NetID{0, rigNet} {
		must(t, rig.set.Counters.Reset(n))
	}
	p := map[bpf.Hook]*ebpf.Program{bpf.HookEncap: rig.obj.VxTcEncap, bpf.HookDecap: rig.obj.VxTcDecap, bpf.HookDeliver: rig.obj.VxTcDeliver}[sc.hook]
	// struct __sk_buff of linux/bpf.h: ifindex is its eleventh word.
	ctx := make([]byte, 192)
	binary.NativeEndian.PutUint32(ctx[40:], sc.dev)
	var err error
	done := make(chan struct{})
	rig.run <- func() {
		defer close(done)
		_, err = p.Run(&ebpf.RunOptions{Data: sc.frame, Context: ctx})
	}
	<-done
	must(t, err)
	c, err := rig.set.Counters.Read(rigNet)
	must(t, err)
	if len(c) == 0 {
		return 0, true
	}
	for r := range c[sc.hook] {
		reason = r
	}
	return reason, false
}

// The walk and the programs give the same reason, whatever stands in the maps.
func TestWalkAsPrograms(t *testing.T) {
	rig := newRig(t)
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("VXBPF_TRACE_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	r := rand.New(rand.NewPCG(seed, 1))
	const enough, most = 2500, 30000
	reached := map[string]int{}
	bad := 0
	for i := range most {
		if i >= enough && i%100 == 0 && len(unreached(reached)) == 0 {
			break
		}
		sc := rig.scene(t, r)
		w := sc.walk()
		got, none := rig.judge(t, sc)
		name := got.String()
		if none {
			name = "none"
		}
		reached[fmt.Sprintf("%v/%s", sc.hook, name)]++
		if none != w.NotOurs || !none && got != w.Reason {
			t.Errorf("round %d of seed %d: %v at %d says %s, the walk %q (not ours: %v)\npacket %+v, outer %+v, state %+v\nsteps %+v", i, seed, sc.hook, sc.dev, name, w.Why, w.NotOurs,
				sc.p, sc.o, sc.table, w.Steps)
			if bad++; bad > 5 {
				t.Fatal("and more")
			}
		}
		if !w.NotOurs && w.Reason != bpf.Fast && (len(w.Steps) == 0 || !w.Steps[len(w.Steps)-1].Ends) {
			t.Errorf("round %d of seed %d: nothing says what decided: %+v", i, seed, w)
		}
	}
	if missing := unreached(reached); len(missing) > 0 {
		t.Errorf("%d rounds never reached %v (seed %d)", most, missing, seed)
	}
}

// unreached are the reasons that have not occurred of those that such states can
// bring about; the others lie in the packet, not in a map.
func unreached(reached map[string]int) (missing []string) {
	for hook, names := range map[string][]string{
		"encap": {"fast", "bum", "src_unknown", "src_moved", "src_static", "nd", "refresh", "dst_unknown", "dst_local", "dst_aged", "no_lease", "not_ip", "mtu",
			"no_vtep", "not_ready", "none"},
		"decap": {"fast", "bum", "src_unknown", "src_moved", "src_static", "nd", "refresh", "dst_unknown", "dst_remote", "dst_aged", "no_lease", "not_ip", "mtu",
			"outer_not_local", "in_order", "port_kind", "port_gone", "drop_stranger", "not_ready", "none"},
		"deliver": {"fast", "bum", "src_unknown", "src_moved", "src_static", "nd", "refresh", "dst_unknown", "dst_remote", "dst_aged", "no_lease", "not_ip", "mtu",
			"port_gone", "not_ready", "none"},
	} {
		for _, n := range names {
			if reached[hook+"/"+n] == 0 {
				missing = append(missing, hook+"/"+n)
			}
		}
	}
	return missing
}

func TestReasonNames(t *testing.T) {
	for r := range bpf.Reason(bpf.Reasons) {
		if reason(r.String()) != r {
			t.Errorf("reason %v", r)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a reason that there is not was found")
		}
	}()
	reason("no such")
}
