// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// The world that all programs run in. Nothing is attached: BPF_PROG_TEST_RUN
// takes a frame, says what device it came from, and shows what is left of it.
//
//	alice ── port ──┐                             ┌── vtep1 ── bob (static: sam)
//	tap ──── port   ├─ network 7, VNI 236 ── local ┤
//	bridge's own ───┘      (link: vxlan)          └── vtep2 ── dave
//
// Network 8, VNI 237, is somebody else's, with an alice and a bob of its own in
// the same places: what a packet of network 7 must never be taken for.
const (
	netID        fdb.NetID = 7
	vni          fdb.VNI   = 236
	otherID      fdb.NetID = 8
	otherVNI     fdb.VNI   = 237
	ageing                 = 300 * time.Second
	refresh                = 30 * time.Second
	hold                   = 200 * time.Millisecond // vx_hold_ns; long, since an emulated CPU takes its time between two steps
	overlayMTU             = 1450
	underlayMTU            = 1500
	srcLow                 = 32768
	srcHigh                = 61000
	actUnspec              = -1
	actRedirect            = 7
	frameMax               = 3500 // one page less what the kernel wants around a test frame
	indexVTEP1             = 1
	indexVTEP2             = 2
	indexVTEPBad           = 3
)

var (
	broadcast   = mac("ff:ff:ff:ff:ff:ff")
	group       = mac("01:00:5e:01:02:03")
	alice       = mac("02:00:00:00:00:0a") // container behind a veth
	bob         = mac("02:00:00:00:00:0b") // at vtep1, learnt
	sam         = mac("02:00:00:00:00:05") // at vtep1, static
	sue         = mac("02:00:00:00:00:06") // container behind a veth, static
	dave        = mac("02:00:00:00:00:0d") // at vtep2
	lost        = mac("02:00:00:00:00:0e") // at a VTEP without an outer header
	tap         = mac("02:00:00:00:00:07") // port to transmit on
	hostMAC     = mac("02:00:00:00:00:01") // the bridge's own
	nobody      = mac("02:00:00:00:00:99") // in no table
	portMAC     = mac("02:00:00:00:01:01")
	underlayMAC = mac("02:00:00:00:01:02")
	vxlanMAC    = mac("02:00:00:00:01:03")
	bridgeMAC   = mac("02:00:00:00:01:04")
	routerMAC   = mac("02:00:00:00:01:99")
)

// world is a network namespace of one thread, with the devices that contexts name.
type world struct {
	run                           chan func()
	port, underlay, vxlan, bridge uint32 // ifindexes
}

// theWorld lives as long as the process; the kernel clears it away with the thread.
var theWorld = sync.OnceValues(func() (*world, error) {
	w := &world{run: make(chan func())}
	ready := make(chan error)
	go func() {
		// Never unlocked: the runtime ends the thread, and the namespace with it.
		runtime.LockOSThread()
		ready <- w.build()
		for f := range w.run {
			f()
		}
	}()
	return w, <-ready
})

func (w *world) build() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network namespace: %w", err)
	}
	for _, p := range []struct {
		a, b       string
		macA, macB fdb.MAC
		idxA, idxB *uint32
	}{
		{"vxport", "vxbr", portMAC, bridgeMAC, &w.port, &w.bridge},
		{"vxunder", "vxlink", underlayMAC, vxlanMAC, &w.underlay, &w.vxlan},
	} {
		la := netlink.NewLinkAttrs()
		la.Name, la.HardwareAddr = p.a, net.HardwareAddr(p.macA[:])
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: p.b, PeerHardwareAddr: p.macB[:]}); err != nil {
			return fmt.Errorf("add veth %s: %w", p.a, err)
		}
		for name, idx := range map[string]*uint32{p.a: p.idxA, p.b: p.idxB} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return fmt.Errorf("find %s: %w", name, err)
			}
			*idx = uint32(l.Attrs().Index)
		}
	}
	return nil
}

// do runs f where the devices are.
func (w *world) do(f func()) {
	done := make(chan struct{})
	w.run <- func() { defer close(done); f() }
	<-done
}

// lab is one load of the data path in the world.
type lab struct {
	*world
	on  underlay // what reset puts into the maps
	obj struct {
		bpf.Maps
		bpf.Programs
	}
	set   *maps.Set
	shims map[shim]*shimmed
	// decapL3: the kernel, and this load, take an inner packet out of one of the other family.
	decapL3 bool
	// nil in the ordinary programs
	capture, captureCtl, captureCPU *ebpf.Map
}

func newLab(t testing.TB, constants map[string]any, frags ...string) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root: loads BPF programs and makes a network namespace")
	}
	return newLabOf(t, bpf.Load, constants, frags...)
}

// newLabOf loads the ordinary programs (bpf.Load) or those that capture.
func newLabOf(t testing.TB, load func() (*ebpf.CollectionSpec, error), constants map[string]any, frags ...string) *lab {
	t.Helper()
	w, err := theWorld()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := load()
	if err != nil {
		t.Fatal(err)
	}
	need.Kernel(t, need.FastPath)
	l := &lab{world: w, on: under4, shims: map[shim]*shimmed{}, decapL3: need.Have(t, need.DecapL3)}
	if err := spec.Variables["vx_hold_ns"].Set(uint64(hold)); err != nil {
		t.Fatal(err)
	}
	if !l.decapL3 {
		// As the loader does.
		if err := spec.Variables["vx_have_decap_l3"].Set(uint8(0)); err != nil {
			t.Fatal(err)
		}
	}
	for name, v := range constants {
		if err := spec.Variables[name].Set(v); err != nil {
			t.Fatalf("set %s: %v", name, err)
		}
	}
	for _, name := range frags {
		spec.Programs[name].Flags |= bpf.XDPHasFrags
	}
	coll, err := ebpf.NewCollection(spec)
	if err == nil {
		defer coll.Close() // what is not assigned
		err = coll.Assign(&l.obj)
		l.capture, l.captureCtl, l.captureCPU = coll.DetachMap("vx_capture"), coll.DetachMap("vx_capture_ctl"), coll.DetachMap("vx_capture_cpu")
	}
	if err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			t.Fatalf("verifier: %+v", ve)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range l.shims {
			s.close()
		}
		for _, c := range []interface{ Close() error }{&l.obj.Programs, &l.obj.Maps, l.capture, l.captureCtl, l.captureCPU} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	l.set = maps.New(&l.obj.Maps)
	l.reset(t)
	return l
}

// takes reports whether vx_tc_decap takes the inner packet out: before 6.3 only one of the outer packet's family.
func (l *lab) takes(s scene) bool { return l.decapL3 || s.in6 == s.v6() }

// decapScenes are those.
func (l *lab) decapScenes(t testing.TB) (out []scene) {
	for _, s := range scenes {
		if l.takes(s) {
			out = append(out, s)
		} else {
			t.Logf("%v is the kernel's here: no DECAP_L3", s)
		}
	}
	return out
}

// needMixed skips a test where the inner packet is of the other family, and the kernel leaves such to the vxlan device.
func needMixed(t testing.TB, mixed bool) {
	t.Helper()
	if mixed {
		need.Kernel(t, need.DecapL3)
	}
}

// mixed: the inner packet is of another family than the outer one.
func mixed(b []byte) bool {
	at := ethHdr + outerIP(b) + udpHdr + vxlanHdr + 12
	return len(b) >= at+2 && binary.BigEndian.Uint16(b[12:]) != binary.BigEndian.Uint16(b[at:])
}

// settled is an age at which an entry is neither due for a refresh nor just refreshed.
const settled = time.Second

func (l *lab) entries() (fdb.Table, map[fdb.Key]uint32) {
	seen := maps.Now() - settled
	k := func(m fdb.MAC) fdb.Key { return fdb.Key{Net: netID, MAC: m} }
	otherAlice, otherBob := fdb.Key{Net: otherID, MAC: alice}, fdb.Key{Net: otherID, MAC: bob}
	return fdb.Table{
		otherAlice: {Kind: fdb.Peer, Port: l.port, MTU: overlayMTU, Seen: seen},
		otherBob:   {Kind: fdb.Remote, VTEP: l.on.vtep1, Seen: seen},
		k(alice):   {Kind: fdb.Peer, Port: l.port, MTU: overlayMTU, Seen: seen},
		k(sue):     {Kind: fdb.Peer, Port: l.port, MTU: overlayMTU, Seen: seen, Static: true, Sticky: true},
		k(tap):     {Kind: fdb.Egress, Port: l.port, MTU: overlayMTU, Seen: seen},
		k(hostMAC): {Kind: fdb.Host, Port: l.bridge, MTU: overlayMTU, Seen: seen, Static: true, Sticky: true},
		k(bob):     {Kind: fdb.Remote, VTEP: l.on.vtep1, Seen: seen},
		k(sam):     {Kind: fdb.Remote, VTEP: l.on.vtep1, Seen: seen, Static: true, Sticky: true, Pinned: true},
		k(dave):    {Kind: fdb.Remote, VTEP: l.on.vtep2, Seen: seen},
		k(lost):    {Kind: fdb.Remote, Seen: seen},
	}, map[fdb.Key]uint32{otherBob: indexVTEP1, k(bob): indexVTEP1, k(sam): indexVTEP1, k(dave): indexVTEP2, k(lost): indexVTEPBad}
}

func (l *lab) vtep(remote netip.Addr) maps.VTEP {
	v := maps.VTEP{Device: l.underlay, SrcMAC: underlayMAC, DstMAC: routerMAC, MACs: true, MTU: underlayMTU}
	v.Src, v.Local, v.Remote, v.Port, v.TTL, v.Low, v.High = l.on.local, l.on.local, remote, 4789, 5, srcLow, srcHigh
	return v
}

func (l *lab) portAt() maps.Port {
	return maps.Port{Net: netID, VNI: vni, MTU: overlayMTU, Ageing: ageing, Refresh: refresh}
}

func (l *lab) network() maps.Network {
	return maps.Network{Net: netID, Local: l.on.local, Ageing: ageing, Refresh: refresh, ZeroCsum6: true, Check: maps.Check{Off: true}}
}

func (l *lab) resetFDB() {
	var k bpf.FDBKey
	var v bpf.FDBEntry
	var have []bpf.FDBKey
	for it := l.obj.VxFdb.Iterate(); it.Next(&k, &v); {
		have = append(have, k)
	}
	for _, k := range have {
		must(l.obj.VxFdb.Delete(k))
	}
	table, index := l.entries()
	for k, e := range table {
		must(l.set.FDB.Put(k, e, index[k]))
		// A new entry holds its MAC on the slow path for a moment; these are old.
		l.editKey(bpf.NewFDBKey(uint16(k.Net), k.MAC), func(v *bpf.FDBEntry) { v.Slow = 0 })
	}
}

// reset brings every map to the state that the drawing shows, counters to 0.
func (l *lab) reset(t testing.TB) {
	t.Helper()
	l.resetFDB()
	nets, err := l.set.Networks.All()
	must(err)
	for k := range nets {
		must(l.set.Networks.Delete(k))
	}
	must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, l.network()))
	other := l.network()
	other.Net = otherID
	must(l.set.Networks.Put(maps.NetworkKey{VNI: otherVNI, Port: 4789}, other))
	for _, dev := range []uint32{l.port, l.vxlan, l.bridge} {
		must(l.set.Ports.Put(dev, l.portAt()))
	}
	must(l.set.VTEPs.Put(indexVTEP1, l.vtep(l.on.vtep1)))
	must(l.set.VTEPs.Put(indexVTEP2, l.vtep(l.on.vtep2)))
	must(l.set.VTEPs.Clear(indexVTEPBad))
	must(l.set.Control.SetLease(maps.Now() + time.Hour))
	must(l.obj.VxControl.Put(bpf.ControlTooBig, bpf.Control{}))
	must(l.set.Networks.SetPorts(map[uint16]maps.Check{4789: {Off: true}}))
	must(l.set.Sources.Set(nil))
	for _, n := range []fdb.NetID{0, netID, otherID} {
		must(l.set.Counters.Reset(n))
	}
	for i := range uint32(indexVTEPBad + 1) {
		must(l.set.ByVTEP.Reset(i))
	}
}

// traffic sums up what was counted for all VTEPs.
func (l *lab) traffic() (sum maps.Traffic) {
	for i := range uint32(indexVTEPBad + 1) {
		one, err := l.set.ByVTEP.Read(i)
		must(err)
		for _, p := range [][2]*maps.Count{{&sum.SentFast, &one.SentFast}, {&sum.SentSlow, &one.SentSlow},
			{&sum.ReceivedFast, &one.ReceivedFast}, {&sum.ReceivedSlow, &one.ReceivedSlow}} {
			p[0].Packets += p[1].Packets
			p[0].Bytes += p[1].Bytes
		}
	}
	return sum
}

func key(m fdb.MAC) bpf.FDBKey { return bpf.NewFDBKey(uint16(netID), m) }

// entry reads an FDB entry; nil if there is none.
func (l *lab) entry(m fdb.MAC) *bpf.FDBEntry {
	var e bpf.FDBEntry
	if err := l.obj.VxFdb.Lookup(key(m), &e); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else {
		must(err)
	}
	return &e
}

// edit changes an FDB entry.
func (l *lab) edit(m fdb.MAC, f func(*bpf.FDBEntry)) { l.editKey(key(m), f) }

func (l *lab) editKey(k bpf.FDBKey, f func(*bpf.FDBEntry)) {
	var e bpf.FDBEntry
	must(l.obj.VxFdb.Lookup(k, &e))
	f(&e)
	must(l.obj.VxFdb.Put(k, e))
}

func ago(d time.Duration) uint64 { return uint64(maps.Now() - d) }

// skBuff is struct __sk_buff of linux/bpf.h, 192 bytes. The kernel takes mark,
// priority, ingress_ifindex, ifindex, cb, tstamp, wire_len, gso_segs, gso_size
// and hwtstamp from it, and refuses anything else that is not 0.
type skBuff struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TCIndex                                  uint32
	CB                                                                          [5]uint32
	Hash, TCClassid, Data, DataEnd, NAPIID, Family, RemoteIP4, LocalIP4         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GSOSegs                                                            uint32
	SK                                                                          uint64
	GSOSize                                                                     uint32
	TstampType                                                                  uint8
	_                                                                           [3]uint8
	HWTstamp                                                                    uint64
}

func TestContextLayout(t *testing.T) {
	if got := binary.Size(skBuff{}); got != 192 {
		t.Errorf("__sk_buff has %d bytes, want 192", got)
	}
}

func (l *lab) program(h bpf.Hook) *ebpf.Program {
	switch h {
	case bpf.HookEncap:
		return l.obj.VxTcEncap
	case bpf.HookDecap:
		return l.obj.VxTcDecap
	default:
		return l.obj.VxTcDeliver
	}
}

// device is where a hook's packets usually come from.
func (l *lab) device(h bpf.Hook) uint32 {
	switch h {
	case bpf.HookEncap:
		return l.port
	case bpf.HookDecap:
		return l.underlay
	default:
		return l.vxlan
	}
}

// exec runs a program over one frame, as it is or after a shim.
func (l *lab) exec(p *ebpf.Program, in []byte, ctx skBuff, repeat uint32) (verdict int, out []byte, err error) {
	opts := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256), Context: ctx, Repeat: repeat}
	var ret uint32
	l.do(func() { ret, err = p.Run(&opts) })
	return int(int32(ret)), opts.DataOut, err
}

func (l *lab) frame(t testing.TB, h bpf.Hook, in []byte) (int, []byte) {
	t.Helper()
	verdict, out, err := l.exec(l.program(h), in, skBuff{Ifindex: l.device(h)}, 1)
	if err != nil {
		t.Fatalf("run vx_tc_%v over %d bytes: %v", h, len(in), err)
	}
	return verdict, out
}

// shim is packet state that the test context cannot carry. A small program sets
// it with helpers and tail-calls the one under test.
type shim struct {
	vlan         bool   // a tag in the packet's metadata
	priority     int    // as many tags of VLAN 0, the first in the metadata
	verified     bool   // CHECKSUM_UNNECESSARY: the device has verified the outermost checksum
	encapsulated uint16 // EtherType of the frame, if it is to look like one from another tunnel
	hash         uint32 // skb->hash
	etherType    uint16 // written into the frame, which the kernel takes for one of another protocol
}

// seen is what a packet looks like after the program under test.
type seen struct {
	Protocol, PktType, VLAN, Hash uint32
	CSum                          int32 // checksum level; negative: not verified
	Len                           uint32
}

type shimmed struct {
	*ebpf.Program
	calls, state *ebpf.Map
}

func (s *shimmed) close() {
	must(errors.Join(s.Program.Close(), s.calls.Close(), s.state.Close()))
}

// through makes the shim. The first run over a packet sets the state up and
// calls the program; every further run (Repeat keeps the packet) records what
// became of it.
func (l *lab) through(t testing.TB, s shim, h bpf.Hook) *shimmed {
	t.Helper()
	return l.before(t, s, l.program(h))
}

func (l *lab) before(t testing.TB, s shim, p *ebpf.Program) *shimmed {
	t.Helper()
	if l.shims[s] == nil {
		var err error
		out := &shimmed{}
		if out.calls, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
			t.Fatal(err)
		}
		if out.state, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1}); err != nil {
			t.Fatal(err)
		}
		if out.Program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "test_shim", Type: ebpf.SchedCLS, License: "GPL",
			Instructions: s.code(out)}); err != nil {
			t.Fatalf("load shim %+v: %+v", s, err)
		}
		l.shims[s] = out
	}
	if err := l.shims[s].calls.Put(uint32(0), p); err != nil {
		t.Fatal(err)
	}
	return l.shims[s]
}

func (s shim) code(maps *shimmed) asm.Instructions {
	const (
		cb           = 48
		modeMAC      = 1
		fixedGSO     = 1 << 0
		encapL3v4    = 1 << 1
		encapL3v6    = 1 << 2
		levelInc     = 1
		room         = 40
		tailFailed   = 99
		probed       = 98
		offPktType   = 4
		offProtocol  = 16
		offVLAN      = 20
		offHash      = 68
		offEtherType = 12
		bigEndianTag = 0x0081 // ETH_P_8021Q on the wire
	)
	call := func(f asm.BuiltinFunc, args ...int32) asm.Instructions {
		i := asm.Instructions{asm.Mov.Reg(asm.R1, asm.R6)}
		for n, a := range args {
			i = append(i, asm.Mov.Imm(asm.R2+asm.Register(n), a))
		}
		return append(i, f.Call())
	}
	i := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R0, asm.R6, cb, asm.Word),
		asm.JNE.Imm(asm.R0, 0, "probe"),
		asm.Mov.Imm(asm.R0, 1),
		asm.StoreMem(asm.R6, cb, asm.R0, asm.Word),
	}
	if s.vlan {
		i = append(i, call(asm.FnSkbVlanPush, bigEndianTag, 5)...)
	}
	for range s.priority {
		i = append(i, call(asm.FnSkbVlanPush, bigEndianTag, 0)...)
	}
	if s.verified {
		i = append(i, call(asm.FnCsumLevel, levelInc)...)
	}
	if s.encapsulated != 0 {
		flags := int32(encapL3v4)
		if s.encapsulated == 0x86dd {
			flags = encapL3v6
		}
		i = append(i, call(asm.FnSkbAdjustRoom, room, modeMAC, fixedGSO|flags)...)
		i = append(i, call(asm.FnSkbAdjustRoom, -room, modeMAC, fixedGSO)...)
	}
	if s.hash != 0 {
		i = append(i, call(asm.FnSetHash, int32(s.hash))...)
	}
	if s.etherType != 0 {
		i = append(i,
			asm.StoreImm(asm.RFP, -2, int64(bits.ReverseBytes16(s.etherType)), asm.Half),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, offEtherType),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -2),
			asm.Mov.Imm(asm.R4, 2),
			asm.Mov.Imm(asm.R5, 0),
			asm.FnSkbStoreBytes.Call())
	}
	i = append(i,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, maps.calls.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, tailFailed),
		asm.Return(),

		asm.Mov.Imm(asm.R0, 0).WithSymbol("probe"),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
		asm.LoadMapPtr(asm.R1, maps.state.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R7, asm.R0),
	)
	for n, off := range []int16{offProtocol, offPktType, offVLAN, offHash} {
		i = append(i, asm.LoadMem(asm.R0, asm.R6, off, asm.Word), asm.StoreMem(asm.R7, int16(n*4), asm.R0, asm.Word))
	}
	i = append(i, call(asm.FnCsumLevel, 0)...)
	return append(i,
		asm.StoreMem(asm.R7, 16, asm.R0, asm.Word),
		asm.LoadMem(asm.R0, asm.R6, 0, asm.Word),
		asm.StoreMem(asm.R7, 20, asm.R0, asm.Word),
		asm.Mov.Imm(asm.R0, probed).WithSymbol("out"),
		asm.Return(),
	)
}

// probe runs the program and tells what the packet looks like behind it.
func (l *lab) probe(t testing.TB, s shim, h bpf.Hook, in []byte, ctx skBuff) (state seen) {
	t.Helper()
	p := l.through(t, s, h)
	if verdict, _, err := l.exec(p.Program, in, ctx, 2); err != nil || verdict != 98 {
		t.Fatalf("probe: verdict %d, %v", verdict, err)
	}
	if err := p.state.Lookup(uint32(0), &state); err != nil {
		t.Fatal(err)
	}
	return state
}

// progCase is one frame through one program.
type progCase struct {
	name    string
	hook    bpf.Hook
	prepare func(*lab) // from the state in the drawing
	frame   []byte
	ifindex uint32 // 0: the hook's usual device
	gsoSize uint32
	gsoSegs uint32
	shim    shim
	reason  bpf.Reason
	foreign bool // not ours: untouched and not counted; reason does not count
	check   func(t *testing.T, l *lab, out []byte)
}

func (c progCase) run(t *testing.T, l *lab) {
	l.reset(t)
	// Without DECAP_L3 (before 6.3) the kernel gets these, untouched.
	if c.hook == bpf.HookDecap && c.reason == bpf.Fast && !l.decapL3 && mixed(c.frame) {
		c.reason, c.check = reason("adjust_failed"), nil
	}
	if c.prepare != nil {
		c.prepare(l)
	}
	ctx := skBuff{Ifindex: c.ifindex, GSOSize: c.gsoSize, GSOSegs: c.gsoSegs}
	if ctx.Ifindex == 0 {
		ctx.Ifindex = l.device(c.hook)
	}
	p := l.program(c.hook)
	if c.shim != (shim{}) {
		p = l.through(t, c.shim, c.hook).Program
	}
	verdict, out, err := l.exec(p, c.frame, ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	l.judge(t, c, verdict, out)
	if c.check != nil {
		c.check(t, l, out)
	}
}

// judge compares verdict, frame and counters with what the reason demands.
func (l *lab) judge(t testing.TB, c progCase, verdict int, out []byte) {
	t.Helper()
	want := maps.Counts{}
	if !c.foreign {
		n := maps.Count{Packets: uint64(max(c.gsoSegs, 1)), Bytes: uint64(len(c.frame))}
		if c.hook == bpf.HookDecap {
			n.Bytes -= uint64(ethHdr + outerIP(c.frame) + udpHdr + vxlanHdr)
		}
		want[c.hook] = map[bpf.Reason]maps.Count{c.reason: n}
	}
	got, err := l.set.Counters.Read(netID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("counters (-want +got):\n%s", d)
	}
	for _, n := range []fdb.NetID{0, otherID} {
		if none, err := l.set.Counters.Read(n); err != nil || len(none) != 0 {
			t.Errorf("network %d counted: %v %v", n, none, err)
		}
	}
	// A VTEP's packet is counted once: what is fast where it was met, what is not where it goes on to the bridge.
	n, by, none := maps.Count{}, l.traffic(), maps.Traffic{}
	if !c.foreign {
		n = want[c.hook][c.reason]
	}
	switch {
	case c.foreign, c.hook == bpf.HookDecap && c.reason != bpf.Fast:
		if by != none {
			t.Errorf("counted for a VTEP: %+v", by)
		}
	case c.reason == bpf.Fast && c.hook == bpf.HookEncap && by != maps.Traffic{SentFast: n},
		c.reason == bpf.Fast && c.hook != bpf.HookEncap && by != maps.Traffic{ReceivedFast: n},
		c.reason != bpf.Fast && c.hook == bpf.HookEncap && by != none && by != maps.Traffic{SentSlow: n},
		c.reason != bpf.Fast && c.hook == bpf.HookDeliver && by != none && by != maps.Traffic{ReceivedSlow: n}:
		t.Errorf("by VTEP: %+v, for %v %v of %+v", by, c.hook, c.reason, n)
	}
	if c.foreign || c.reason != bpf.Fast {
		if verdict != actUnspec {
			t.Errorf("verdict %d, want %d (to the kernel)", verdict, actUnspec)
		}
		if c.shim.vlan {
			return // the kernel may put a tag that was in the metadata into the bytes it shows
		}
		if c.shim.etherType != 0 {
			c.frame = bytes.Clone(c.frame)
			binary.BigEndian.PutUint16(c.frame[12:], c.shim.etherType)

		}
		if !bytes.Equal(out, c.frame) {
			t.Errorf("the kernel gets another frame (-in +out):\n%s", cmp.Diff(c.frame, out))
		}
		return
	}
	if verdict != actRedirect {
		t.Errorf("verdict %d, want %d (redirect)", verdict, actRedirect)
	}
	switch c.hook {
	case bpf.HookEncap:
		checkEncap(t, l.vtep(l.on.vtep1), vni, c.frame, out)
	case bpf.HookDecap:
		if !bytes.Equal(out, c.frame[l.on.len():]) {
			t.Errorf("decapsulated frame (-want +got):\n%s", cmp.Diff(c.frame[l.on.len():], out))
		}
	case bpf.HookDeliver:
		if !bytes.Equal(out, c.frame) {
			t.Errorf("delivered frame (-want +got):\n%s", cmp.Diff(c.frame, out))
		}
	}
}

// checkEncap builds the outer header anew as the vxlan device would (RFC 7348
// section 5) and compares all bytes. IP id and UDP source port are the program's
// choice within limits.
func checkEncap(t testing.TB, v maps.VTEP, n fdb.VNI, in, out []byte) {
	t.Helper()
	o := newOuter(v.DstMAC, v.SrcMAC, v.Remote, v.Src, n)
	l4 := ethHdr + ip4Hdr
	if o.v6 {
		l4 = ethHdr + ip6Hdr
	}
	if len(out) != len(in)+l4+udpHdr+vxlanHdr {
		t.Errorf("encapsulated frame has %d bytes, want %d", len(out), len(in)+l4+udpHdr+vxlanHdr)
		return
	}
	tos, ttl, df := innerFacts(in)
	if !v.TTLInherit || ttl == 0 {
		ttl = v.TTL
	}
	if ttl == 0 {
		ttl = v.HopLimit
	}
	// RFC 6040 section 4.1, compatibility aside: congestion inside is not news outside.
	ecn := [...]uint8{notECT, ect1, ect0, ect0}[tos&3]
	if !v.TOSInherit {
		tos = v.TOS
	}
	o.tos(tos&^3 | ecn)
	o.ip.TTL, o.ip6.HopLimit, o.ip6.FlowLabel = ttl, ttl, v.FlowLabel
	if v.DF == maps.DFSet || v.DF == maps.DFInherit && df {
		o.ip.Flags = layers.IPv4DontFragment
	}
	o.ip.Id = binary.BigEndian.Uint16(out[ethHdr+4:])
	sport := binary.BigEndian.Uint16(out[l4:])
	o.udp.SrcPort, o.udp.DstPort = layers.UDPPort(sport), layers.UDPPort(v.Port)
	if sport < v.Low || sport >= v.High && sport != v.Low {
		t.Errorf("source port %d is outside of %d up to %d", sport, v.Low, v.High)
	}
	if want := o.wrap(in); !bytes.Equal(out, want) {
		t.Errorf("encapsulated frame (-want +got):\n%s", cmp.Diff(want, out))
	}
}

// innerFacts is what the outer header may take from the inner one. IPv6 counts as "don't fragment".
func innerFacts(b []byte) (tos, ttl uint8, df bool) {
	if binary.BigEndian.Uint16(b[12:]) == 0x86dd {
		return uint8(binary.BigEndian.Uint16(b[ethHdr:]) >> 4), b[ethHdr+7], true
	}
	return b[ethHdr+1], b[ethHdr+8], b[ethHdr+6]&0x40 != 0
}

// icmp6 is an ICMPv6 message of a type (RFC 4443, RFC 4861).
func icmp6(typ byte) inner {
	return inner{v6: true, l4: layers.IPProtocolICMPv6, patch: func(b []byte) { b[ethHdr+ip6Hdr] = typ }}
}

func gone(m fdb.MAC) func(*testing.T, *lab, []byte) {
	return func(t *testing.T, l *lab, _ []byte) {
		if e := l.entry(m); e != nil {
			t.Errorf("entry of %v is still there: %+v", m, e)
		}
	}
}

func kept(m fdb.MAC) func(*testing.T, *lab, []byte) {
	return func(t *testing.T, l *lab, _ []byte) {
		if l.entry(m) == nil {
			t.Errorf("entry of %v is gone", m)
		}
	}
}

func aged(m fdb.MAC, d time.Duration) func(*lab) {
	return func(l *lab) { l.edit(m, func(e *bpf.FDBEntry) { e.Seen = ago(d) }) }
}

func flags(m fdb.MAC, f uint8) func(*lab) {
	return func(l *lab) { l.edit(m, func(e *bpf.FDBEntry) { e.Flags = f }) }
}

// unfollowed: the port of the MAC is gone, and nobody has noticed.
func unfollowed(m fdb.MAC) func(*lab) {
	return func(l *lab) {
		must(l.set.Control.SetLease(maps.Forever))
		l.edit(m, func(e *bpf.FDBEntry) { e.To = 1 << 30 })
	}
}

func stampedNow(m fdb.MAC) func(*testing.T, *lab, []byte) {
	return func(t *testing.T, l *lab, _ []byte) {
		if d := time.Duration(ago(0) - l.entry(m).Seen); d < 0 || d > time.Second {
			t.Errorf("seen is %v ago, want now", d)
		}
	}
}

func noLease(l *lab) { must(l.set.Control.SetLease(maps.Now())) }

func portOff(dev func(*lab) uint32) func(*lab) {
	return func(l *lab) {
		p := l.portAt()
		p.Off = true
		must(l.set.Ports.Put(dev(l), p))
	}
}

func encapCases(s scene) []progCase {
	const h = bpf.HookEncap
	sent := s.sent
	short := func(n int, v6 bool) []byte { return scene{}.sent(inner{v6: v6})[:n] }
	fragment := inner{patch: func(b []byte) { b[20] = 0x20; fixIPSum(b) }}
	return []progCase{
		{name: "udp4", hook: h, frame: sent(inner{}), reason: bpf.Fast},
		{name: "udp6", hook: h, frame: sent(inner{v6: true}), reason: bpf.Fast},
		{name: "tcp4 with options", hook: h, frame: sent(inner{tcp: true, ipOptions: 8, tcpOptions: 12}), reason: bpf.Fast},
		{name: "tcp6", hook: h, frame: sent(inner{v6: true, tcp: true}), reason: bpf.Fast},
		{name: "icmp", hook: h, frame: sent(inner{l4: layers.IPProtocolICMPv4}), reason: bpf.Fast},
		{name: "router solicitation", hook: h, frame: sent(icmp6(133)), reason: reason("nd")},
		{name: "neighbour solicitation", hook: h, frame: sent(icmp6(135)), reason: reason("nd")},
		{name: "redirect", hook: h, frame: sent(icmp6(137)), reason: reason("nd")},
		{name: "echo request over IPv6", hook: h, frame: sent(icmp6(128)), reason: bpf.Fast},
		{name: "ICMPv6 next to neighbour discovery", hook: h, frame: sent(icmp6(138)), reason: bpf.Fast},
		{name: "extension header", hook: h, frame: sent(inner{v6: true, extension: true}), reason: bpf.Fast},
		{name: "inner fragment", hook: h, frame: scene{}.sent(fragment), reason: bpf.Fast},
		{name: "static source and destination", hook: h, frame: sent(inner{src: sue, dst: sam}), reason: bpf.Fast},
		{name: "static never due for refresh", hook: h, prepare: aged(sue, time.Hour), frame: sent(inner{src: sue}), reason: bpf.Fast},
		{name: "the host's own", hook: h, prepare: func(l *lab) { l.edit(hostMAC, func(e *bpf.FDBEntry) { e.To = l.port }) },
			frame: sent(inner{src: hostMAC}), reason: bpf.Fast},
		{name: "no fresh MACs", hook: h, frame: sent(inner{}), reason: bpf.Fast, prepare: func(l *lab) {
			v := l.vtep(l.on.vtep1)
			v.MACs = false
			must(l.set.VTEPs.Put(indexVTEP1, v))
		}},
		{name: "learnt destination needs no lease", hook: h, prepare: noLease, frame: sent(inner{}), reason: bpf.Fast},
		// Without its GSO state the packet would keep the protocol of the inner one, and bpf_redirect_neigh would route it so.
		{name: "ipv4 from another tunnel", hook: h, shim: shim{encapsulated: 0x0800}, frame: scene{}.sent(inner{}),
			reason: map[bool]bpf.Reason{false: bpf.Fast, true: reason("nested")}[s.v6()]},
		{name: "ipv6 from another tunnel", hook: h, shim: shim{encapsulated: 0x86dd}, frame: sent(inner{v6: true}),
			reason: map[bool]bpf.Reason{true: bpf.Fast, false: reason("nested")}[s.v6()]},

		{name: "broadcast", hook: h, frame: sent(inner{dst: broadcast}), reason: bpf.BUM},
		{name: "multicast", hook: h, frame: sent(inner{dst: group}), reason: bpf.BUM},
		{name: "arp request", hook: h, frame: arp(alice), reason: bpf.BUM},
		{name: "unknown source", hook: h, frame: sent(inner{src: nobody}), reason: reason("src_unknown")},
		{name: "source that the kernel has yet to confirm", hook: h, prepare: flags(alice, bpf.EntryPending), frame: sent(inner{}), reason: reason("src_unknown"), check: kept(alice)},
		{name: "destination that the kernel has yet to confirm", hook: h, prepare: flags(bob, bpf.EntryPending), frame: sent(inner{}), reason: reason("dst_unknown"), check: kept(bob)},
		{name: "source moved from a VTEP", hook: h, frame: sent(inner{src: dave}), reason: reason("src_moved"), check: gone(dave)},
		{name: "source moved from a port", hook: h, prepare: func(l *lab) { l.edit(alice, func(e *bpf.FDBEntry) { e.To = l.bridge }) },
			frame: sent(inner{}), reason: reason("src_moved"), check: gone(alice)},
		{name: "source moved, seen by a broadcast", hook: h, frame: arp(dave), reason: reason("src_moved"), check: gone(dave)},
		{name: "static source elsewhere that may move", hook: h, prepare: flags(sam, bpf.EntryStatic|bpf.EntryPinned), frame: sent(inner{src: sam}), reason: reason("src_moved"), check: gone(sam)},
		{name: "static source elsewhere", hook: h, frame: sent(inner{src: sam}), reason: reason("src_static"), check: kept(sam)},
		{name: "refresh due", hook: h, prepare: aged(alice, refresh+time.Second), frame: sent(inner{}), reason: reason("refresh")},
		{name: "refresh not yet due", hook: h, prepare: aged(alice, refresh-time.Second), frame: sent(inner{}), reason: bpf.Fast},
		{name: "static source without lease", hook: h, prepare: noLease, frame: sent(inner{src: sue}), reason: reason("no_lease")},
		{name: "unknown destination", hook: h, frame: sent(inner{dst: nobody}), reason: reason("dst_unknown")},
		{name: "destination on another port", hook: h, frame: sent(inner{dst: tap}), reason: bpf.DstLocal},
		{name: "destination is the host", hook: h, frame: sent(inner{dst: hostMAC}), reason: bpf.DstLocal},
		{name: "destination aged", hook: h, prepare: aged(bob, ageing+time.Second), frame: sent(inner{}), reason: reason("dst_aged")},
		{name: "destination almost aged", hook: h, prepare: aged(bob, ageing-time.Second), frame: sent(inner{}), reason: bpf.Fast},
		{name: "destination seen by a CPU one tick ahead", hook: h, prepare: aged(bob, -10*time.Millisecond), frame: sent(inner{}), reason: bpf.Fast},
		{name: "ageing off", hook: h, frame: sent(inner{}), reason: bpf.Fast, prepare: func(l *lab) {
			aged(bob, 24*time.Hour)(l)
			p := l.portAt()
			p.Ageing = 0
			must(l.set.Ports.Put(l.port, p))
		}},
		{name: "static destination without lease", hook: h, prepare: noLease, frame: sent(inner{dst: sam}), reason: reason("no_lease")},
		{name: "llc", hook: h, frame: sent(inner{patch: func(b []byte) { b[12], b[13] = 0, 50 }}), reason: reason("not_ip")},
		{name: "tag in the frame", hook: h, frame: tagged(sent(inner{}), 5), reason: reason("not_ip")},
		{name: "tag in the metadata", hook: h, shim: shim{vlan: true}, frame: sent(inner{}), reason: reason("vlan_tag")},
		{name: "gso of an unknown protocol", hook: h, frame: sent(inner{l4: layers.IPProtocolSCTP}), gsoSize: 500, gsoSegs: 3, reason: reason("gso_headers")},
		{name: "gso behind an extension header", hook: h, frame: sent(inner{v6: true, tcp: true, extension: true}), gsoSize: 500, gsoSegs: 3, reason: reason("gso_headers")},
		{name: "gso with half a tcp header", hook: h, frame: sent(inner{tcp: true})[:ethHdr+s.inLen()+12], gsoSize: 500, gsoSegs: 3, reason: reason("gso_headers")},
		// The test context cannot say what kind of GSO it is, and adjust_room refuses one that is of no kind.
		{name: "gso of no kind", hook: h, frame: sent(inner{tcp: true, payload: 1200}), gsoSize: 500, gsoSegs: 3, reason: reason("adjust_failed")},
		{name: "no outer header", hook: h, frame: sent(inner{dst: lost}), reason: reason("no_vtep")},
		// The kernel refuses test frames that say IP and have no IP header, so another protocol stands in.
		{name: "too short for anything", hook: h, reason: reason("truncated"),
			frame: sent(inner{patch: func(b []byte) { b[12], b[13] = 0x88, 0xcc }})[:ethHdr+ip4Hdr-1]},
		{name: "just an ipv4 header", hook: h, frame: short(ethHdr+ip4Hdr, false), reason: bpf.Fast},
		{name: "just an ipv6 header", hook: h, frame: short(ethHdr+ip6Hdr, true), reason: bpf.Fast},
		{name: "port off", hook: h, prepare: portOff(func(l *lab) uint32 { return l.port }), frame: sent(inner{}), reason: reason("not_ready")},
		{name: "not a port of ours", hook: h, prepare: func(l *lab) { must(l.set.Ports.Delete(l.port)) }, frame: sent(inner{}), foreign: true},
	}
}

func decapCases(s scene) []progCase {
	const h = bpf.HookDecap
	arrived, received, stranger := s.arrived, s.received, s.stranger
	on := func(f func(*outer)) func(*outer) { return f }
	fragment := inner{patch: func(b []byte) { b[20] = 0x20; fixIPSum(b) }}
	cases := []progCase{
		{name: "udp4", hook: h, frame: received(inner{}), reason: bpf.Fast},
		{name: "udp6", hook: h, frame: received(inner{v6: true}), reason: bpf.Fast},
		{name: "tcp4", hook: h, frame: received(inner{tcp: true, tcpOptions: 12}), reason: bpf.Fast},
		{name: "tcp6", hook: h, frame: received(inner{v6: true, tcp: true}), reason: bpf.Fast},
		{name: "to the host", hook: h, frame: received(inner{dst: hostMAC}), reason: bpf.Fast},
		{name: "router solicitation", hook: h, frame: received(icmp6(133)), reason: reason("nd")},
		{name: "neighbour solicitation", hook: h, frame: received(icmp6(135)), reason: reason("nd")},
		{name: "redirect", hook: h, frame: received(icmp6(137)), reason: reason("nd")},
		{name: "echo request over IPv6", hook: h, frame: received(icmp6(128)), reason: bpf.Fast},
		{name: "ICMPv6 next to neighbour discovery", hook: h, frame: received(icmp6(138)), reason: bpf.Fast},
		{name: "to the host without lease", hook: h, prepare: noLease, frame: received(inner{dst: hostMAC}), reason: reason("no_lease")},
		{name: "from a static source without lease", hook: h, prepare: noLease, frame: received(inner{src: sam}), reason: reason("no_lease")},
		{name: "port is gone, nobody follows", hook: h, prepare: unfollowed(alice), frame: received(inner{}), reason: reason("port_gone"), check: gone(alice)},
		{name: "port is there, nobody follows", hook: h, prepare: noLease, frame: received(inner{}), reason: bpf.Fast},
		{name: "static source and destination", hook: h, frame: received(inner{src: sam, dst: sue}), reason: bpf.Fast},
		{name: "verified udp checksum", hook: h, shim: shim{verified: true}, frame: received(inner{}, on(func(o *outer) { o.udpSum = true })), reason: bpf.Fast},
		{name: "inner fragment", hook: h, frame: scene{underlay: s.underlay}.received(fragment), reason: bpf.Fast},

		{name: "inner broadcast", hook: h, frame: received(inner{dst: broadcast}), reason: bpf.BUM},
		{name: "inner multicast", hook: h, frame: received(inner{dst: group}), reason: bpf.BUM},
		{name: "outer multicast", hook: h, reason: bpf.BUM, frame: received(inner{}, on(func(o *outer) {
			o.eth.DstMAC = net.HardwareAddr(group[:])
			o.to(s.group)
		}))},
		{name: "unknown source", hook: h, frame: received(inner{src: nobody}), reason: reason("src_unknown")},
		{name: "source that the kernel has yet to confirm", hook: h, prepare: flags(bob, bpf.EntryPending), frame: received(inner{}), reason: reason("src_unknown"), check: kept(bob)},
		{name: "destination that the kernel has yet to confirm", hook: h, prepare: flags(alice, bpf.EntryPending), frame: received(inner{}), reason: reason("dst_unknown"), check: kept(alice)},
		{name: "source moved to another VTEP", hook: h, frame: received(inner{src: dave}), reason: reason("src_moved"), check: gone(dave)},
		{name: "source from no VTEP", hook: h, frame: received(inner{}, on(func(o *outer) { o.from(stranger) })), reason: reason("src_moved"), check: gone(bob)},
		{name: "source moved from a port", hook: h, frame: received(inner{src: tap}), reason: reason("src_moved"), check: gone(tap)},
		{name: "source moved, seen by a broadcast", hook: h, frame: received(inner{src: dave, dst: broadcast}), reason: reason("src_moved"), check: gone(dave)},
		{name: "static source at another VTEP, may move there", hook: h, prepare: flags(sam, bpf.EntryStatic|bpf.EntrySticky), frame: received(inner{src: sam}, on(func(o *outer) { o.from(stranger) })), reason: reason("src_moved"), check: gone(sam)},
		{name: "static local source that may move", hook: h, prepare: flags(sue, bpf.EntryStatic|bpf.EntryPinned), frame: received(inner{src: sue}), reason: reason("src_moved"), check: gone(sue)},
		{name: "static source elsewhere", hook: h, frame: received(inner{src: sam}, on(func(o *outer) { o.from(stranger) })), reason: reason("src_static"), check: kept(sam)},
		{name: "static local source", hook: h, frame: received(inner{src: sue}), reason: reason("src_static"), check: kept(sue)},
		{name: "refresh due", hook: h, prepare: aged(bob, refresh+time.Second), frame: received(inner{}), reason: reason("refresh")},
		{name: "refresh not yet due", hook: h, prepare: aged(bob, refresh-time.Second), frame: received(inner{}), reason: bpf.Fast},
		{name: "unknown destination", hook: h, frame: received(inner{dst: nobody}), reason: reason("dst_unknown")},
		{name: "destination behind a VTEP", hook: h, frame: received(inner{dst: dave}), reason: reason("dst_remote")},
		{name: "destination aged", hook: h, prepare: aged(alice, ageing+time.Second), frame: received(inner{}), reason: reason("dst_aged")},
		{name: "static destination without lease", hook: h, prepare: noLease, frame: received(inner{dst: sue}), reason: reason("no_lease")},
		{name: "inner llc", hook: h, frame: received(inner{patch: func(b []byte) { b[12], b[13] = 0, 50 }}), reason: reason("not_ip")},
		{name: "inner tag", hook: h, reason: reason("not_ip"),
			frame: s.wrap(tagged(arrived(inner{}).frame(), 5))},
		{name: "inner header ends before its next header", hook: h, frame: s.wrap(arrived(inner{v6: true}).frame()[:ethHdr+6]), reason: reason("truncated")},
		{name: "inner header ends before its TOS", hook: h, reason: reason("truncated"),
			frame: s.wrap(arrived(inner{}).frame()[:ethHdr+6], on(func(o *outer) { o.tos(ect0) }))},
		{name: "largest that the port takes", hook: h, reason: bpf.Fast,
			frame: s.wrap(arrived(inner{}).sized(overlayMTU + ethHdr))},
		{name: "one more than the port takes", hook: h, reason: reason("mtu"),
			frame: s.wrap(arrived(inner{}).sized(overlayMTU + ethHdr + 1))},
		{name: "half an inner header", hook: h, reason: reason("adjust_failed"),
			frame: s.wrap(arrived(inner{}).frame()[:ethHdr+s.inLen()-1])},
		{name: "udp checksum that nobody verified", hook: h, frame: received(inner{}, on(func(o *outer) { o.udpSum = true })), reason: reason("outer_csum"), check: slowNow(bob)},
		{name: "trailing byte", hook: h, frame: append(received(inner{}), 0), reason: reason("outer_malformed")},
		{name: "reserved flag", hook: h, frame: received(inner{}, on(func(o *outer) { o.patch = func(b []byte) { b[s.len()-vxlanHdr] |= 4 } })), reason: reason("outer_malformed")},
		{name: "group policy", hook: h, frame: received(inner{}, on(func(o *outer) { o.vxlan.GBPExtension, o.vxlan.GBPGroupPolicyID = true, 5 })), reason: reason("outer_malformed")},
		{name: "outer congestion", hook: h, frame: received(inner{tos: 0}, on(func(o *outer) { o.tos(ce) })), reason: reason("outer_ecn"), check: slowNow(bob)},
		{name: "another of our addresses", hook: h, frame: received(inner{}, on(func(o *outer) { o.to(stranger) })), reason: reason("outer_not_local")},
		{name: "aggregate", hook: h, frame: received(inner{tcp: true, payload: 1200}), gsoSize: 500, gsoSegs: 3, reason: bpf.Aggregate, check: slowNow(bob)},
		{name: "behind an aggregate", hook: h, prepare: func(l *lab) { l.edit(bob, func(e *bpf.FDBEntry) { e.Slow = ago(0) }) }, frame: received(inner{}), reason: reason("in_order")},
		{name: "after the hold", hook: h, prepare: func(l *lab) { l.edit(bob, func(e *bpf.FDBEntry) { e.Slow = ago(hold + hold/10) }) }, frame: received(inner{}), reason: bpf.Fast},
		{name: "to a port to transmit on", hook: h, frame: received(inner{dst: tap}), reason: reason("port_kind")},
		{name: "network off", hook: h, frame: received(inner{}), reason: reason("not_ready"), prepare: func(l *lab) {
			n := l.network()
			n.Off = true
			must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
		}},

		{name: "foreign vni", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.vxlan.VNI = 9 }))},
		{name: "foreign port", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.udp.DstPort = 8472 }))},
		{name: "not vxlan on our port", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.vxlan.ValidIDFlag = false }))},
		{name: "for another host", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.eth.DstMAC = net.HardwareAddr(routerMAC[:]) }))},
		{name: "tag in the frame", hook: h, foreign: true, frame: tagged(received(inner{}), 5)},
		{name: "tag in the metadata", hook: h, foreign: true, shim: shim{vlan: true}, frame: received(inner{})},
		{name: "plain udp", hook: h, foreign: true, frame: inner{dst: underlayMAC, src: routerMAC}.frame()},
		{name: "plain tcp6", hook: h, foreign: true, frame: inner{dst: underlayMAC, src: routerMAC, v6: true, tcp: true}.frame()},
		{name: "arp", hook: h, foreign: true, frame: arp(routerMAC)},
		{name: "no inner frame", hook: h, foreign: true, frame: s.wrap(arrived(inner{}).frame()[:ethHdr-1])},
	}
	if !s.v6() {
		return append(cases, []progCase{
			{name: "dont fragment", hook: h, frame: received(inner{}, on(func(o *outer) { o.ip.Flags = layers.IPv4DontFragment })), reason: bpf.Fast},
			{name: "wrong ip checksum", hook: h, frame: received(inner{}, on(func(o *outer) { o.patch = func(b []byte) { b[24] ^= 0xff } })), reason: reason("outer_malformed")},
			{name: "first fragment", hook: h, foreign: true, frame: received(inner{src: dave}, on(func(o *outer) { o.ip.Flags = layers.IPv4MoreFragments })), check: gone(dave)},
			{name: "last fragment", hook: h, foreign: true, frame: received(inner{src: dave}, on(func(o *outer) { o.ip.FragOffset = 100 })), check: kept(dave)},
			{name: "ip options", hook: h, foreign: true, check: gone(dave), frame: received(inner{src: dave}, on(func(o *outer) {
				for range 4 {
					o.ip.Options = append(o.ip.Options, layers.IPv4Option{OptionType: 1})
				}
			}))},
			{name: "no udp checksum, over IPv6 refused", hook: h, prepare: noZero6, frame: received(inner{}), reason: bpf.Fast},
		}...)
	}
	lie := func(at int, d byte) []byte {
		return received(inner{}, func(o *outer) { o.patch = func(b []byte) { b[at+1] += d } })
	}
	return append(cases, []progCase{
		{name: "no udp checksum, which is refused", hook: h, prepare: noZero6, frame: received(inner{}), reason: reason("outer_csum"), check: slowNow(bob)},
		{name: "verified udp checksum where 0 is refused", hook: h, prepare: noZero6, shim: shim{verified: true},
			frame: received(inner{}, on(func(o *outer) { o.udpSum = true })), reason: bpf.Fast},
		{name: "udp checksum that nobody verified where 0 is refused", hook: h, prepare: noZero6,
			frame: received(inner{}, on(func(o *outer) { o.udpSum = true })), reason: reason("outer_csum")},
		{name: "flow label and class", hook: h, frame: received(inner{}, on(func(o *outer) { o.ip6.FlowLabel, o.ip6.TrafficClass = 0xfffff, 0xb8 })), reason: bpf.Fast},
		{name: "payload length one more", hook: h, frame: lie(ethHdr+4, 1), reason: reason("outer_malformed")},
		{name: "payload length one less", hook: h, frame: lie(ethHdr+4, 0xff), reason: reason("outer_malformed")},
		// RFC 2675: a jumbogram says 0.
		{name: "payload length 0", hook: h, reason: reason("outer_malformed"),
			frame: received(inner{}, on(func(o *outer) { o.patch = func(b []byte) { b[ethHdr+4], b[ethHdr+5] = 0, 0 } }))},
		{name: "udp length one more", hook: h, frame: lie(ethHdr+ip6Hdr+4, 1), reason: reason("outer_malformed")},
		{name: "udp length one less", hook: h, frame: lie(ethHdr+ip6Hdr+4, 0xff), reason: reason("outer_malformed")},
		{name: "both lengths one less", hook: h, reason: reason("outer_malformed"),
			frame: received(inner{}, on(func(o *outer) { o.patch = func(b []byte) { b[ethHdr+5]--; b[ethHdr+ip6Hdr+5]-- } }))},
		{name: "both lengths one more", hook: h, reason: reason("outer_malformed"),
			frame: received(inner{}, on(func(o *outer) { o.patch = func(b []byte) { b[ethHdr+5]++; b[ethHdr+ip6Hdr+5]++ } }))},

		{name: "version 4 in an IPv6 header", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.patch = func(b []byte) { b[ethHdr] = 0x40 } }))},
		{name: "version 7", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.patch = func(b []byte) { b[ethHdr] |= 0x10 } }))},
		// The kernel learns from what is inside of these all the same, so a move shows here, too.
		{name: "hop-by-hop options", hook: h, foreign: true, frame: received(inner{src: dave}, extend(0, 0, 0, 1, 4, 0, 0, 0, 0)), check: gone(dave)},
		{name: "routing header", hook: h, foreign: true, frame: received(inner{src: dave}, extend(43, 0, 0, 4, 0, 0, 0, 0, 0)), check: gone(dave)},
		{name: "routing header of 24 bytes", hook: h, foreign: true, frame: received(inner{src: dave}, extend(43, append([]byte{0, 2, 4, 0}, make([]byte, 20)...)...)), check: gone(dave)},
		{name: "destination options", hook: h, foreign: true, frame: received(inner{src: dave}, extend(60, 0, 0, 1, 4, 0, 0, 0, 0)), check: gone(dave)},
		{name: "first fragment", hook: h, foreign: true, frame: received(inner{src: dave}, extend(44, 0, 0, 0, 1, 1, 2, 3, 4)), check: gone(dave)},
		{name: "first fragment with a reserved byte set", hook: h, foreign: true, frame: received(inner{src: dave}, extend(44, 0, 9, 0, 1, 1, 2, 3, 4)), check: gone(dave)},
		{name: "second fragment", hook: h, foreign: true, frame: received(inner{src: dave}, extend(44, 0, 0, 0, 0x09, 1, 2, 3, 4)), check: kept(dave)},
		{name: "last fragment", hook: h, foreign: true, frame: received(inner{src: dave}, extend(44, 0, 0, 0x01, 0x00, 1, 2, 3, 4)), check: kept(dave)},
		{name: "atomic fragment", hook: h, foreign: true, frame: received(inner{src: dave}, extend(44, 0, 0, 0, 0, 1, 2, 3, 4)), check: gone(dave)},
		{name: "destination options, the source is where it was", hook: h, foreign: true, frame: received(inner{}, extend(60, 0, 0, 1, 4, 0, 0, 0, 0)), check: kept(bob)},
		// The header that follows is one of UDP all the same.
		{name: "fragment header that is a udp header too", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.ip6.NextHeader = 44 }))},
		{name: "udp lite", hook: h, foreign: true, frame: received(inner{}, on(func(o *outer) { o.ip6.NextHeader = 136 }))},
	}...)
}

// noZero6 is a vxlan device without udp6zerocsumrx.
func noZero6(l *lab) {
	n := l.network()
	n.ZeroCsum6 = false
	must(l.set.Networks.Put(maps.NetworkKey{VNI: vni, Port: 4789}, n))
}

func deliverCases(s scene) []progCase {
	const h = bpf.HookDeliver
	arrived := s.arrived
	got := func(i inner) []byte { return arrived(i).frame() }
	return []progCase{
		{name: "to a container", hook: h, frame: got(inner{}), reason: bpf.Fast},
		{name: "to a container, ipv6", hook: h, frame: got(inner{v6: true}), reason: bpf.Fast},
		{name: "router solicitation", hook: h, frame: got(icmp6(133)), reason: reason("nd")},
		{name: "neighbour solicitation", hook: h, frame: got(icmp6(135)), reason: reason("nd")},
		{name: "redirect", hook: h, frame: got(icmp6(137)), reason: reason("nd")},
		{name: "echo request over IPv6", hook: h, frame: got(icmp6(128)), reason: bpf.Fast},
		{name: "ICMPv6 next to neighbour discovery", hook: h, frame: got(icmp6(138)), reason: bpf.Fast},
		{name: "to a port to transmit on", hook: h, frame: got(inner{dst: tap}), reason: bpf.Fast},
		{name: "to the host", hook: h, frame: got(inner{dst: hostMAC}), reason: bpf.Fast},
		{name: "to the host without lease", hook: h, prepare: noLease, frame: got(inner{dst: hostMAC}), reason: reason("no_lease")},
		{name: "port is gone, nobody follows", hook: h, prepare: unfollowed(alice), frame: got(inner{}), reason: reason("port_gone"), check: gone(alice)},
		{name: "static source and destination", hook: h, frame: got(inner{src: sam, dst: sue}), reason: bpf.Fast},
		// One whose checksum is to be filled in cannot be had here; the end-to-end tests have little else.
		{name: "aggregate, verified", hook: h, shim: shim{verified: true}, frame: got(inner{tcp: true, payload: 3000}), gsoSize: 1400, gsoSegs: 3, reason: bpf.Fast},
		{name: "aggregate that nobody has verified", hook: h, frame: got(inner{tcp: true, payload: 3000}), gsoSize: 1400, gsoSegs: 3, reason: bpf.Aggregate},
		{name: "largest that the port takes", hook: h, frame: arrived(inner{}).sized(overlayMTU + ethHdr), reason: bpf.Fast},

		{name: "broadcast", hook: h, frame: got(inner{dst: broadcast}), reason: bpf.BUM},
		{name: "arp request", hook: h, frame: arp(bob), reason: bpf.BUM},
		{name: "unknown source", hook: h, frame: got(inner{src: nobody}), reason: reason("src_unknown")},
		{name: "source that the kernel has yet to confirm", hook: h, prepare: flags(bob, bpf.EntryPending), frame: got(inner{}), reason: reason("src_unknown"), check: kept(bob)},
		{name: "destination that the kernel has yet to confirm", hook: h, prepare: flags(alice, bpf.EntryPending), frame: got(inner{}), reason: reason("dst_unknown"), check: kept(alice)},
		{name: "source moved from a port", hook: h, frame: got(inner{src: tap}), reason: reason("src_moved"), check: gone(tap)},
		{name: "static local source", hook: h, frame: got(inner{src: sue}), reason: reason("src_static"), check: kept(sue)},
		{name: "refresh due", hook: h, prepare: aged(bob, refresh+time.Second), frame: got(inner{}), reason: reason("refresh"), check: stampedNow(bob)},
		{name: "refreshed before the hold", hook: h, prepare: aged(bob, 2*hold), frame: got(inner{}), reason: bpf.Fast},
		{name: "unknown destination", hook: h, frame: got(inner{dst: nobody}), reason: reason("dst_unknown")},
		{name: "destination behind a VTEP", hook: h, frame: got(inner{dst: dave}), reason: reason("dst_remote")},
		{name: "destination aged", hook: h, prepare: aged(alice, ageing+time.Second), frame: got(inner{}), reason: reason("dst_aged")},
		{name: "static destination without lease", hook: h, prepare: noLease, frame: got(inner{dst: sue}), reason: reason("no_lease")},
		{name: "llc", hook: h, frame: got(inner{patch: func(b []byte) { b[12], b[13] = 0, 50 }}), reason: reason("not_ip")},
		{name: "tag in the frame", hook: h, frame: tagged(got(inner{}), 5), reason: reason("not_ip")},
		{name: "tag in the metadata", hook: h, shim: shim{vlan: true}, frame: got(inner{}), reason: reason("vlan_tag")},
		// The kernel refuses test frames that say IP and have no IP header: the shim says so later.
		{name: "header ends before its next header", hook: h, shim: shim{etherType: 0x86dd}, reason: reason("truncated"),
			frame: got(inner{patch: func(b []byte) { b[12], b[13] = 0x88, 0xcc }})[:ethHdr+6]},
		{name: "one more than the port takes", hook: h, frame: arrived(inner{}).sized(overlayMTU + ethHdr + 1), reason: reason("mtu")},
		{name: "device off", hook: h, prepare: portOff(func(l *lab) uint32 { return l.vxlan }), frame: got(inner{}), reason: reason("not_ready")},
		{name: "not a device of ours", hook: h, prepare: func(l *lab) { must(l.set.Ports.Delete(l.vxlan)) }, frame: got(inner{}), foreign: true},
	}
}

// mtuCases are the boundaries: what just fits, and one byte more. A segment of a
// GSO packet that fits gets as far as adjust_room, which refuses it here (see
// "gso of no kind"), so adjust_failed says "passed the MTU check".
func mtuCases(s scene) (out []progCase) {
	path := underlayMTU - (s.len() - ethHdr) // longest inner frame
	wide := func(l *lab) {
		p := l.portAt()
		p.MTU = 9000
		must(l.set.Ports.Put(l.port, p))
	}
	from := inner{src: alice, dst: bob, v6: s.in6}
	for _, d := range []int{-1, 0, 1} {
		want := map[bool]bpf.Reason{false: bpf.Fast, true: reason("mtu")}[d > 0]
		out = append(out,
			progCase{name: fmt.Sprintf("path %+d", d), hook: bpf.HookEncap, prepare: wide, frame: from.sized(path + d), reason: want},
			progCase{name: fmt.Sprintf("link %+d", d), hook: bpf.HookEncap, frame: from.sized(overlayMTU + ethHdr + d), reason: want,
				prepare: func(l *lab) {
					v := l.vtep(l.on.vtep1)
					v.MTU = 9000
					must(l.set.VTEPs.Put(indexVTEP1, v))
				}})
		for _, g := range []struct {
			name    string
			i       inner
			headers int
		}{
			{"tcp4", inner{tcp: true}, ethHdr + ip4Hdr + 20},
			{"tcp4 with options", inner{tcp: true, ipOptions: 8, tcpOptions: 12}, ethHdr + ip4Hdr + 8 + 20 + 12},
			{"tcp6", inner{v6: true, tcp: true, tcpOptions: 12}, ethHdr + ip6Hdr + 20 + 12},
			{"udp4", inner{}, ethHdr + ip4Hdr + udpHdr},
			{"udp6", inner{v6: true}, ethHdr + ip6Hdr + udpHdr},
		} {
			want := map[bool]bpf.Reason{false: reason("adjust_failed"), true: reason("mtu")}[d > 0]
			g.i.src, g.i.dst, g.i.payload = alice, bob, 3000
			out = append(out, progCase{name: fmt.Sprintf("gso %s %+d", g.name, d), hook: bpf.HookEncap, prepare: wide, frame: g.i.frame(),
				gsoSize: uint32(path - g.headers + d), gsoSegs: 3, reason: want})
		}
	}
	return out
}

func slowNow(m fdb.MAC) func(*testing.T, *lab, []byte) {
	return func(t *testing.T, l *lab, _ []byte) {
		if d := time.Duration(ago(0) - l.entry(m).Slow); d < 0 || d > time.Second {
			t.Errorf("slow is %v ago, want now", d)
		}
	}
}

// reason finds a reason by its name, which is the interface.
func reason(name string) bpf.Reason {
	for r := range bpf.Reason(bpf.Reasons) {
		if r.String() == name {
			return r
		}
	}
	panic("no reason " + name)
}

// where says at which hooks a reason can occur. elsewhere are the ones that
// BPF_PROG_TEST_RUN cannot reach, and why.
var where = map[string][]bpf.Hook{
	"fast":            {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"bum":             {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"src_unknown":     {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"src_moved":       {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"src_static":      {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"refresh":         {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"port_gone":       {bpf.HookDecap, bpf.HookDeliver},
	"nd":              {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"dst_unknown":     {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"dst_local":       {bpf.HookEncap},
	"dst_remote":      {bpf.HookDecap, bpf.HookDeliver},
	"dst_aged":        {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"no_lease":        {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"not_ip":          {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"vlan_tag":        {bpf.HookEncap, bpf.HookDeliver},
	"mtu":             {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"gso_headers":     {bpf.HookEncap},
	"adjust_failed":   {bpf.HookEncap, bpf.HookDecap},
	"no_vtep":         {bpf.HookEncap},
	"outer_csum":      {bpf.HookDecap},
	"outer_malformed": {bpf.HookDecap},
	"outer_ecn":       {bpf.HookDecap},
	"outer_not_local": {bpf.HookDecap},
	"aggregate":       {bpf.HookDecap, bpf.HookDeliver},
	"in_order":        {bpf.HookDecap},
	"port_kind":       {bpf.HookDecap},
	"nested":          {bpf.HookEncap},
	"truncated":       {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
	"not_ready":       {bpf.HookEncap, bpf.HookDecap, bpf.HookDeliver},
}

var elsewhere = map[string]string{
	"too_long":      "needs a GSO packet over 65499 bytes; a test frame fits one page",
	"drop_stranger": "the tables above check no sources; TestSourceCheck does",
	"mss":           "XDP only; the tables above are of tc programs, TestXDP has it",
	"inner_csum":    "XDP only; the tables above are of tc programs, TestXDP has it",
	"drop_broken":   "needs adjust_room to succeed and leave fewer linear bytes than it promises: no input does",
}

func TestPrograms(t *testing.T) {
	l := newLab(t, nil)
	type place struct {
		hook   bpf.Hook
		reason bpf.Reason
	}
	reached := map[place]bool{}
	for _, s := range scenes {
		l.on = s.underlay
		for _, c := range slices.Concat(encapCases(s), decapCases(s), deliverCases(s), mtuCases(s)) {
			t.Run(fmt.Sprintf("%v/%v/%s", s, c.hook, c.name), func(t *testing.T) { c.run(t, l) })
			if !c.foreign {
				reached[place{c.hook, c.reason}] = true
			}
		}
	}
	for r := range bpf.Reason(bpf.Reasons) {
		hooks, why := where[r.String()], elsewhere[r.String()]
		if (len(hooks) == 0) == (why == "") {
			t.Errorf("reason %v: say either where it can occur or why it cannot be tested here", r)
		}
		for _, h := range hooks {
			if !reached[place{h, r}] {
				t.Errorf("no case reaches %v at %v", r, h)
			}
		}
		if why != "" {
			t.Logf("%v needs real devices: %s", r, why)
		}
	}
	for p := range reached {
		found := false
		for _, h := range where[p.reason.String()] {
			found = found || h == p.hook
		}
		if !found {
			t.Errorf("%v at %v is not in the list of what can occur", p.reason, p.hook)
		}
	}
}

// One MAC after another event: what the second packet does depends on the first.
func TestSequences(t *testing.T) {
	l := newLab(t, nil)
	// step runs a frame and returns its reason, by what the counters gained.
	step := func(t *testing.T, h bpf.Hook, b []byte, gso bool) string {
		t.Helper()
		must(l.set.Counters.Reset(netID))
		ctx := skBuff{Ifindex: l.device(h)}
		if gso {
			ctx.GSOSize, ctx.GSOSegs = 500, 2
		}
		if _, _, err := l.exec(l.program(h), b, ctx, 1); err != nil {
			t.Fatal(err)
		}
		c, err := l.set.Counters.Read(netID)
		must(err)
		if len(c[h]) != 1 {
			t.Fatalf("counters %v, want one reason at %v", c, h)
		}
		for r := range c[h] {
			return r.String()
		}
		return ""
	}
	type move struct {
		hook  bpf.Hook
		frame []byte
		gso   bool
		sleep time.Duration // before
		took  fdb.MAC       // before: the kernel forwarded a frame of it, and vx_tc_moved stamped that
		want  string
	}
	tcp := inner{tcp: true, payload: 900}
	for _, s := range []scene{{under4, false}, {under6, false}} {
		l.on = s.underlay
		sent, received, arrived := s.sent, s.received, s.arrived
		for _, c := range []struct {
			name    string
			prepare func(*lab)
			moves   []move
		}{
			{"encap: packets refresh until the kernel has taken one", aged(alice, refresh+time.Second), []move{
				{hook: bpf.HookEncap, frame: sent(inner{}), want: "refresh"},
				{hook: bpf.HookEncap, frame: sent(inner{}), want: "refresh"},
				{hook: bpf.HookEncap, took: alice, frame: sent(inner{}), want: "fast"},
			}},
			{"decap: packets behind a refresh stay in order", aged(bob, refresh+time.Second), []move{
				{hook: bpf.HookDecap, frame: received(inner{}), want: "refresh"},
				{hook: bpf.HookDecap, frame: received(inner{}), want: "refresh"},
				{hook: bpf.HookDeliver, frame: arrived(inner{}).frame(), want: "refresh"},
				{hook: bpf.HookDecap, frame: received(inner{}), want: "in_order"},
				{hook: bpf.HookDecap, frame: received(inner{}), sleep: 2 * hold, want: "fast"},
				{hook: bpf.HookDeliver, frame: arrived(inner{}).frame(), want: "fast"},
			}},
			{"decap: single packets stay behind aggregates", nil, []move{
				{hook: bpf.HookDecap, frame: received(inner{}), want: "fast"},
				{hook: bpf.HookDecap, frame: received(tcp), gso: true, want: "aggregate"},
				{hook: bpf.HookDecap, frame: received(inner{}), want: "in_order"},
				{hook: bpf.HookDecap, frame: received(inner{}), sleep: 2 * hold, want: "fast"},
			}},
			{"deliver: a refresh due is stamped", aged(bob, refresh+time.Second), []move{
				{hook: bpf.HookDeliver, frame: arrived(inner{}).frame(), want: "refresh"},
				{hook: bpf.HookDeliver, frame: arrived(inner{}).frame(), want: "fast"},
			}},
			{"a moved source is unknown from then on", nil, []move{
				{hook: bpf.HookDecap, frame: received(inner{src: dave}), want: "src_moved"},
				{hook: bpf.HookDecap, frame: received(inner{src: dave}), want: "src_unknown"},
				{hook: bpf.HookEncap, frame: sent(inner{dst: dave}), want: "dst_unknown"},
			}},
			{"a static source elsewhere stays refused", nil, []move{
				{hook: bpf.HookDecap, frame: received(inner{src: sue}), want: "src_static"},
				{hook: bpf.HookDecap, frame: received(inner{src: sue}), want: "src_static"},
				{hook: bpf.HookEncap, frame: sent(inner{src: sue}), want: "fast"},
			}},
			{"a silent destination comes back when it speaks", aged(alice, ageing+time.Second), []move{
				{hook: bpf.HookDecap, frame: received(inner{}), want: "dst_aged"},
				{hook: bpf.HookEncap, frame: sent(inner{}), want: "refresh"},
				{hook: bpf.HookDecap, took: alice, frame: received(inner{}), want: "fast"},
			}},
			// types.h: `slow` is when a *unicast* frame took the slow path; floods need no order with it, and every ARP
			// request of a host would cost all its flows the fast path for a while.
			{"decap: a flood does not hold unicast back", nil, []move{
				{hook: bpf.HookDecap, frame: received(inner{dst: broadcast}), want: "bum"},
				{hook: bpf.HookDecap, frame: received(inner{}), want: "fast"},
			}},
		} {
			t.Run(s.String()+"/"+c.name, func(t *testing.T) {
				l.reset(t)
				if c.prepare != nil {
					c.prepare(l)
				}
				for n, m := range c.moves {
					time.Sleep(m.sleep)
					if !m.took.IsZero() {
						l.edit(m.took, func(e *bpf.FDBEntry) { e.Seen = ago(0) })
					}
					if got := step(t, m.hook, m.frame, m.gso); got != m.want {
						t.Errorf("step %d: %s, want %s", n+1, got, m.want)
					}
				}
			})
		}
	}
}

// What a packet says about itself besides its bytes.
func TestPacketState(t *testing.T) {
	l := newLab(t, nil)
	const host, other = 0, 3
	type want struct {
		name     string
		hook     bpf.Hook
		frame    []byte
		shim     shim
		v6       bool // skb->protocol: bpf_redirect_neigh and drivers go by it
		pktType  uint32
		verified bool // checksum level still says so
		gso      uint32
	}
	for _, s := range scenes {
		l.on = s.underlay
		out, in := s.v6(), s.in6
		family := map[bool]uint16{false: 0x0800, true: 0x86dd}[s.in6]
		for _, c := range []want{
			{"encap", bpf.HookEncap, s.sent(inner{}), shim{}, out, other, false, 0},
			{"encap from another tunnel", bpf.HookEncap, s.sent(inner{}), shim{encapsulated: family}, out, other, false, 0},
			{"encap verified", bpf.HookEncap, s.sent(inner{}), shim{verified: true}, out, other, false, 0},
			{"decap", bpf.HookDecap, s.received(inner{}), shim{}, in, host, false, 0},
			{"decap with one verified checksum", bpf.HookDecap, s.received(inner{}), shim{verified: true}, in, host, false, 0},
			{"decap with a checksum that was verified", bpf.HookDecap, s.received(inner{}, func(o *outer) { o.udpSum = true }), shim{verified: true}, in, host, false, 0},
			{"deliver to a container", bpf.HookDeliver, s.arrived(inner{}).frame(), shim{}, in, host, false, 0},
			{"deliver to a port to transmit on", bpf.HookDeliver, s.arrived(inner{dst: tap}).frame(), shim{}, in, other, false, 0},
			{"deliver keeps the checksum state", bpf.HookDeliver, s.arrived(inner{}).frame(), shim{verified: true}, in, host, true, 0},
			{"deliver keeps the checksum state of an aggregate", bpf.HookDeliver, s.arrived(inner{tcp: true, payload: 1200}).frame(), shim{verified: true}, in, host, true, 500},
			{"an aggregate that nobody verified stays like that", bpf.HookDeliver, s.arrived(inner{tcp: true, payload: 1200}).frame(), shim{}, in, other, false, 500},
		} {
			t.Run(s.String()+"/"+c.name, func(t *testing.T) {
				l.reset(t)
				needMixed(t, c.hook == bpf.HookDecap && s.in6 != s.v6())
				p := l.program(c.hook)
				if c.shim != (shim{}) {
					p = l.through(t, c.shim, c.hook).Program
				}
				ctx := skBuff{Ifindex: l.device(c.hook), GSOSize: c.gso, GSOSegs: min(c.gso, 3)}
				verdict, out, err := l.exec(p, c.frame, ctx, 1)
				if err != nil {
					t.Fatal(err)
				}
				if c.shim.encapsulated != 0 && s.in6 != s.v6() {
					l.judge(t, progCase{hook: c.hook, frame: c.frame, reason: reason("nested")}, verdict, out)
					return
				}
				want := bpf.Fast
				if c.gso != 0 && !c.verified {
					want = bpf.Aggregate
				}
				l.judge(t, progCase{hook: c.hook, frame: c.frame, reason: want, gsoSize: ctx.GSOSize, gsoSegs: ctx.GSOSegs}, verdict, out)
				state := l.probe(t, c.shim, c.hook, c.frame, ctx)
				// EtherTypes as skb->protocol shows them: network order as the host reads it.
				if want := map[bool]uint32{false: 0x0008, true: 0xdd86}[c.v6]; state.Protocol != want {
					t.Errorf("protocol %#04x, want %#04x", state.Protocol, want)
				}
				if state.PktType != c.pktType {
					t.Errorf("packet type %d, want %d", state.PktType, c.pktType)
				}
				if got := state.CSum >= 0; got != c.verified {
					t.Errorf("checksum verified: %v, want %v", got, c.verified)
				}
				if int(state.Len) != len(out) {
					t.Errorf("length %d, want %d", state.Len, len(out))
				}
			})
		}
	}
}

// Code behind a constant that is off has not been verified (STYLE.md): load each way, and run it.
func TestConstants(t *testing.T) {
	for _, c := range []struct {
		name      string
		constants map[string]any
		mixed     bpf.Reason // inner and outer packet of different families
		held      bpf.Reason // what comes right behind an aggregate
	}{
		{"as built", nil, bpf.Fast, reason("in_order")},
		{"no DECAP_L3", map[string]any{"vx_have_decap_l3": uint8(0)}, reason("adjust_failed"), reason("in_order")},
		{"no hold", map[string]any{"vx_hold_ns": uint64(0)}, bpf.Fast, bpf.Fast},
		{"neither", map[string]any{"vx_hold_ns": uint64(0), "vx_have_decap_l3": uint8(0)}, reason("adjust_failed"), bpf.Fast},
		{"a long hold", map[string]any{"vx_hold_ns": uint64(time.Second)}, bpf.Fast, reason("in_order")},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, c.constants)
			for _, s := range scenes {
				l.on = s.underlay
				want, held := bpf.Fast, c.held
				if s.in6 != s.v6() {
					want = c.mixed
				}
				if held == bpf.Fast {
					held = want
				}
				in := s.received(inner{})
				progCase{hook: bpf.HookDecap, frame: in, reason: want}.run(t, l)
				progCase{hook: bpf.HookDecap, frame: in, reason: held,
					prepare: func(l *lab) { l.edit(bob, func(e *bpf.FDBEntry) { e.Slow = ago(0) }) }}.run(t, l)
				progCase{hook: bpf.HookEncap, frame: s.sent(inner{}), reason: bpf.Fast}.run(t, l)
			}
			for name, p := range map[string]*ebpf.Program{"encap": l.obj.VxTcEncap, "decap": l.obj.VxTcDecap, "deliver": l.obj.VxTcDeliver, "moved": l.obj.VxTcMoved} {
				info, err := p.Info()
				if err != nil {
					t.Fatal(err)
				}
				insns, err := info.Instructions()
				if err != nil {
					t.Fatal(err)
				}
				verified, ok := info.VerifiedInstructions()
				if !ok {
					t.Error("the kernel does not say how much it verified")
				}
				t.Logf("vx_tc_%s: %d instructions, the verifier looked at %d", name, len(insns), verified)
			}
		})
	}
}
