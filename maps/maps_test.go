// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"github.com/cilium/ebpf/rlimit"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

func mustMAC(t *testing.T, s string) fdb.MAC {
	t.Helper()
	m, err := fdb.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTemplate(t *testing.T) {
	v := VTEP{
		VTEPKey: VTEPKey{Local: netip.MustParseAddr("192.0.2.11"), Remote: netip.MustParseAddr("192.0.2.12"), Port: 4789, TTL: 5, Low: 32768, High: 60999},
		Src:     netip.MustParseAddr("192.0.2.11"), Device: 7, SrcMAC: mustMAC(t, "02:00:00:00:00:01"), DstMAC: mustMAC(t, "02:00:00:00:00:02"), MACs: true, MTU: 1500,
	}
	b := v.Template()
	want := "020000000002" + "020000000001" + "0800" + // Ethernet
		"4500" + "0000" + "0000" + "0000" + "0011" + "0000" + "c000020b" + "c000020c" + // IPv4, RFC 791
		"0000" + "12b5" + "0000" + "0000" + // UDP, RFC 768
		strings.Repeat("00", 20) // an IPv6 header is longer
	if got := hex.EncodeToString(b.Outer[:]); got != want {
		t.Errorf("template\n got %s\nwant %s", got, want)
	}
	if b.Flags != bpf.VTEPKnown|bpf.VTEPReady|bpf.VTEPMACs || b.Mtu != 1500 || b.PortMin != 32768 || b.PortRange != 60999-32768 || b.Ifindex != 7 {
		t.Errorf("template %+v", b)
	}
	// With length, id and checksum in place, RFC 1071 wants all ones.
	ip := append([]byte(nil), b.Outer[14:34]...)
	binary.BigEndian.PutUint16(ip[2:], 1500)
	binary.BigEndian.PutUint16(ip[4:], 0xbeef)
	var words [4]byte
	copy(words[:], ip[2:6])
	sum := uint32(b.Csum) + uint32(sum16(words[:]))
	sum = sum&0xffff + sum>>16
	binary.NativeEndian.PutUint16(ip[10:], ^uint16(sum))
	if got := sum16(ip); got != 0xffff {
		t.Errorf("checksum over the finished header is %#x", got)
	}
	v.MACs = false
	if b := v.Template(); b.Flags != bpf.VTEPKnown|bpf.VTEPReady {
		t.Errorf("flags without MACs: %d", b.Flags)
	}
}

// load makes real maps, not pinned.
func load(t *testing.T) *Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests make BPF maps: run as root")
	}
	spec, err := bpf.Load()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps["vx_fdb"].MaxEntries = 2
	var m bpf.Maps
	// Before 5.11 maps count against RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	if err := spec.LoadAndAssign(&m, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return New(&m)
}

func TestFDBRoundTrip(t *testing.T) {
	s := load(t)
	far := netip.MustParseAddr("192.0.2.12")
	k1 := fdb.Key{Net: 1, MAC: mustMAC(t, "02:00:00:00:00:01")}
	k2 := fdb.Key{Net: 1, MAC: mustMAC(t, "02:00:00:00:00:02")}
	e1 := fdb.Entry{Kind: fdb.Peer, Port: 12, MTU: 1450, Seen: 5 * time.Second}
	e2 := fdb.Entry{Kind: fdb.Remote, VTEP: far, Static: true, Seen: time.Second}
	if err := errors.Join(s.FDB.Put(k1, e1, 0), s.FDB.Put(k2, e2, 3)); err != nil {
		t.Fatal(err)
	}
	got, err := s.FDB.All(func(i uint32) netip.Addr {
		if i != 3 {
			t.Errorf("VTEP index %d", i)
		}
		return far
	})
	if err != nil || !maps.Equal(got, fdb.Table{k1: e1, k2: e2}) {
		t.Errorf("read back %v, %v", got, err)
	}
	err = s.FDB.Put(fdb.Key{Net: 2, MAC: k1.MAC}, e1, 0)
	if err == nil || !strings.Contains(err.Error(), "map holds 2") {
		t.Errorf("a full map says %v", err)
	}
	if err := errors.Join(s.FDB.Delete(k1), s.FDB.Delete(k1)); err != nil {
		t.Errorf("delete twice: %v", err)
	}
	if there, err := s.FDB.Has(k1); there || err != nil {
		t.Errorf("deleted entry: %v, %v", there, err)
	}
	if there, err := s.FDB.Has(k2); !there || err != nil {
		t.Errorf("other entry: %v, %v", there, err)
	}
}

func TestNetworkAndPortRoundTrip(t *testing.T) {
	s := load(t)
	k := NetworkKey{VNI: fdb.MaxVNI, Port: 4789}
	n := Network{Net: 7, Local: netip.MustParseAddr("192.0.2.11"), Ageing: 300 * time.Second, Refresh: 75 * time.Second, Off: true}
	p := Port{Net: 7, VNI: fdb.MaxVNI, MTU: 1450, Ageing: 300 * time.Second, Refresh: 75 * time.Second, Off: true}
	if err := errors.Join(s.Networks.Put(k, n), s.Ports.Put(9, p)); err != nil {
		t.Fatal(err)
	}
	nets, err := s.Networks.All()
	if err != nil || len(nets) != 1 || nets[k] != n {
		t.Errorf("networks %v, %v", nets, err)
	}
	ports, err := s.Ports.All()
	if err != nil || len(ports) != 1 || ports[9] != p {
		t.Errorf("ports %v, %v", ports, err)
	}
	if err := errors.Join(s.Networks.Delete(k), s.Networks.Delete(k), s.Ports.Delete(9), s.Ports.Delete(9)); err != nil {
		t.Errorf("delete twice: %v", err)
	}
}

func TestVTEPRoundTrip(t *testing.T) {
	s := load(t)
	v := VTEP{
		VTEPKey: VTEPKey{Local: netip.MustParseAddr("192.0.2.11"), Remote: netip.MustParseAddr("192.0.2.12"), Port: 8472, TTL: 64, Low: 1024, High: 65535},
		Src:     netip.MustParseAddr("192.0.2.11"), Device: 7, SrcMAC: mustMAC(t, "02:00:00:00:00:01"), DstMAC: mustMAC(t, "02:00:00:00:00:02"), MACs: true, MTU: 9000,
	}
	for _, step := range []func(){func() {}, func() { v.DstMAC[5] = 9 }, func() { v.MACs, v.DstMAC = false, fdb.MAC{} }} {
		step()
		if err := s.VTEPs.Put(4, v); err != nil {
			t.Fatal(err)
		}
		all, err := s.VTEPs.All()
		if err != nil || len(all) != 1 || all[4] != v {
			t.Errorf("read back %+v, %v, want %+v", all, err, v)
		}
	}
	if err := s.VTEPs.Clear(4); err != nil {
		t.Fatal(err)
	}
	if all, err := s.VTEPs.All(); err != nil || len(all) != 0 {
		t.Errorf("after clear: %v, %v", all, err)
	}
	if err := s.VTEPs.Put(s.VTEPs.Len(), v); err == nil {
		t.Error("an index past the end is taken")
	}
}

func TestCountersAndLease(t *testing.T) {
	s := load(t)
	c, err := s.Counters.Read(5)
	if err != nil || len(c) != 0 {
		t.Errorf("fresh counters %v, %v", c, err)
	}
	if _, err := s.Counters.Read(fdb.NetID(s.Counters.Networks())); err == nil {
		t.Error("a network past the end is read")
	}
	n := len(mustCPUs(t, s))
	vals := make([]bpf.NetCount, n)
	for _, r := range []bpf.Reason{bpf.Fast, bpf.DstLocal, bpf.BUM} {
		vals[0].By[r][bpf.HookEncap] = bpf.Counter{Packets: 3, Bytes: 300}
		vals[n-1].By[r][bpf.HookEncap].Packets += 4
	}
	if err := s.Counters.m.Put(uint32(5), vals); err != nil {
		t.Fatal(err)
	}
	if c, err = s.Counters.Read(5); err != nil {
		t.Fatal(err)
	}
	if fast, total := c.Sent(); fast.Packets != 7 || total.Packets != 14 || fast.Bytes == 0 {
		t.Errorf("sent %v of %v, want 7 of 14 packets: traffic inside the host does not count", fast, total)
	}
	if err := s.Counters.Reset(5); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Counters.Read(5); err != nil || len(c) != 0 {
		t.Errorf("after reset %v, %v", c, err)
	}

	if err := s.Control.SetLease(Now() + time.Hour); err != nil {
		t.Fatal(err)
	}
	l, err := s.Control.Lease()
	if left := l - Now(); err != nil || left < 59*time.Minute || left > time.Hour {
		t.Errorf("lease ends in %v, %v", left, err)
	}
	if err := s.Control.SetLease(Forever); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Control.Lease(); err != nil || l != Forever {
		t.Errorf("lease %v, %v", l, err)
	}
}

func mustCPUs(t *testing.T, s *Set) []bpf.NetCount {
	t.Helper()
	var v []bpf.NetCount
	if err := s.Counters.m.Lookup(uint32(0), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestReceivedCountsEachPacketOnce(t *testing.T) {
	c := Counts{
		bpf.HookDecap:   {bpf.Fast: {Packets: 10}, bpf.Aggregate: {Packets: 90}},
		bpf.HookDeliver: {bpf.Fast: {Packets: 88}, bpf.BUM: {Packets: 2}},
	}
	if fast, total := c.Received(); fast.Packets != 98 || total.Packets != 100 {
		t.Errorf("received %v of %v, want 98 of 100 packets", fast, total)
	}
}

func TestOpenPinnedWithoutPins(t *testing.T) {
	if _, _, err := OpenPinned(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
