// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv/need"
)

var cmpAddr = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestBridge(t *testing.T) {
	h := newNS(t)
	l, err := h.CreateBridge("br-test", BridgeSpec{ForwardDelay: 0, Ageing: 42 * time.Second, MTU: 1450})
	must(t, err)
	if l.Kind != "bridge" || l.Up || l.MTU != 1450 || l.Name != "br-test" {
		t.Errorf("created %+v", l)
	}
	if want := (Bridge{Ageing: 42 * time.Second}); l.Bridge == nil || l.Bridge.STP != want.STP ||
		l.Bridge.ForwardDelay != want.ForwardDelay || l.Bridge.Ageing != want.Ageing || l.Bridge.VLANFiltering {
		t.Errorf("bridge %+v, want %+v", l.Bridge, want)
	}
	_, err = h.CreateBridge("br-test", BridgeSpec{})
	wantErr(t, err, unix.EEXIST, "create bridge br-test: a link of this name exists")
	_, err = h.CreateBridge("br-stp", BridgeSpec{STP: true, ForwardDelay: time.Second})
	wantErr(t, err, unix.ERANGE, "create bridge br-stp: forward delay 1s")
	_, err = h.CreateBridge("a-name-too-long-", BridgeSpec{})
	wantErr(t, err, unix.EINVAL)

	d, err := h.CreateBridge("br-default", BridgeSpec{STP: true, ForwardDelay: 4 * time.Second})
	must(t, err)
	if d.Bridge.Ageing != 300*time.Second || !d.Bridge.STP || d.Bridge.ForwardDelay != 4*time.Second || d.MTU != 1500 {
		t.Errorf("default bridge %+v %+v", d, d.Bridge)
	}

	// With STP on the kernel refuses a forward delay of 0; off and 0 in one
	// change must still work, and so must the way back.
	for _, c := range []BridgeChange{
		{STP: ptr(true), ForwardDelay: ptr(15 * time.Second)},
		{STP: ptr(false), ForwardDelay: ptr(time.Duration(0)), Ageing: ptr(10 * time.Second)},
		{STP: ptr(true), ForwardDelay: ptr(2500 * time.Millisecond)},
		{ForwardDelay: ptr(3 * time.Second)},
		{Ageing: ptr(AgeingNever)},
		{Ageing: ptr(time.Duration(0))},
		{},
	} {
		must(t, h.SetBridge(l.Index, c))
		got := mustLink(t, h, "br-test").Bridge
		if c.STP != nil && got.STP != *c.STP || c.ForwardDelay != nil && got.ForwardDelay != *c.ForwardDelay ||
			c.Ageing != nil && got.Ageing != *c.Ageing {
			t.Errorf("after %+v: %+v", c, got)
		}
	}
	wantErr(t, h.SetBridge(l.Index, BridgeChange{ForwardDelay: ptr(time.Duration(0))}), unix.ERANGE, "set bridge")
	wantErr(t, h.SetBridge(9999, BridgeChange{STP: ptr(true)}), unix.ENODEV)

	must(t, h.DeleteLink(l.Index))
	must(t, h.DeleteLink(l.Index)) // gone is fine
	if _, ok, err := h.LinkByIndex(l.Index); ok || err != nil {
		t.Errorf("deleted bridge: found %v, %v", ok, err)
	}
	if err := h.DeleteLink(0); err == nil {
		t.Error("DeleteLink(0) succeeded")
	}
}

func TestLinks(t *testing.T) {
	h := newNS(t)
	o := otherNS(t)
	br := mustBridge(t, h, "br0")
	near, far := veth(t, h, "near", "far", o)
	here, there := veth(t, h, "here", "there", nil)

	if near.Kind != "veth" || !near.PeerElsewhere || !far.PeerElsewhere || near.Peer != far.Index {
		t.Errorf("veth across namespaces: %+v, %+v", near, far)
	}
	if here.PeerElsewhere || here.Peer != there.Index || !here.Up || here.MAC.IsZero() || here.MTU != 1500 {
		t.Errorf("veth within: %+v", here)
	}
	if m, ok, err := h.PeerMAC(near); m != far.MAC || !ok || err != nil {
		t.Errorf("peer of near has %v, %v, %v, want %v", m, ok, err, far.MAC)
	}
	attach(t, h, br, near, here)
	l := mustLink(t, h, "near")
	want := &Port{State: PortForwarding, Learning: true, UnicastFlood: true}
	if diff := cmp.Diff(want, l.Port); diff != "" || l.Master != br.Index {
		t.Errorf("port of %d (-want +got):\n%s", l.Master, diff)
	}

	// A port that is put where it is keeps its entries.
	m := mac("02:00:00:00:00:0a")
	must(t, h.changePort(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, near.Index, m, unix.NUD_REACHABLE))
	must(t, h.SetMaster(near.Index, br.Index))
	if !slices.ContainsFunc(fdbOf(t, h), func(e FDBEntry) bool { return e.MAC == m }) {
		t.Error("SetMaster to the same bridge lost an entry")
	}
	wantErr(t, h.SetMaster(9999, br.Index), unix.ENODEV, "set master of link 9999")
	if err := h.SetMaster(near.Index, here.Index); err == nil {
		t.Error("SetMaster to a veth succeeded")
	}

	own := mac("02:12:34:56:78:9a")
	must(t, h.SetMAC(here.Index, own))
	must(t, h.SetMAC(br.Index, own))
	if a, b := mustLink(t, h, "here"), mustLink(t, h, "br0"); a.MAC != own || b.MAC != own {
		t.Errorf("addresses %s, %s, want %s", a.MAC, b.MAC, own)
	}
	wantErr(t, h.SetMAC(here.Index, mac("ff:ff:ff:ff:ff:ff")), unix.EADDRNOTAVAIL, "set mac of link")
	wantErr(t, h.SetMAC(here.Index, fdb.MAC{}), unix.EADDRNOTAVAIL)
	must(t, h.SetMTU(here.Index, 1400))
	must(t, h.SetAlias(here.Index, "for a test"))
	must(t, h.SetDown(here.Index))
	if l := mustLink(t, h, "here"); l.MTU != 1400 || l.Up || l.Alias != "for a test" {
		t.Errorf("changed link %+v", l)
	}
	must(t, h.SetAlias(here.Index, ""))
	if l := mustLink(t, h, "here"); l.Alias != "" || l.Port.State != PortDisabled {
		t.Errorf("changed link %+v %+v", l, l.Port)
	}
	wantErr(t, h.SetMTU(here.Index, 1<<20), unix.EINVAL, "set mtu of link")
	must(t, h.SetUp(here.Index))
	forwarding(t, h, here)

	must(t, h.ClearMaster(near.Index))
	must(t, h.ClearMaster(near.Index))
	if l := mustLink(t, h, "near"); l.Master != 0 || l.Port != nil {
		t.Errorf("detached port %+v", l)
	}

	all, err := h.Links()
	must(t, err)
	var names []string
	for _, l := range all {
		names = append(names, l.Name)
		one, ok, err := h.LinkByIndex(l.Index)
		if err != nil || !ok {
			t.Fatalf("link %d: %v, %v", l.Index, ok, err)
		}
		if diff := cmp.Diff(l, one, cmpAddr); diff != "" {
			t.Errorf("dump and get of %s differ:\n%s", l.Name, diff)
		}
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "br0 here lo near there" {
		t.Errorf("links %s", got)
	}
	for _, name := range []string{"absent", "", "a-name-that-is-far-too-long"} {
		if _, ok, err := h.LinkByName(name); ok || err != nil {
			t.Errorf("link %q: found %v, %v", name, ok, err)
		}
	}
}

func TestPortFlags(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	br := mustBridge(t, h, "br0")
	p, _ := veth(t, h, "p0", "p1", nil)
	q, _ := veth(t, h, "q0", "q1", nil)
	attach(t, h, br, p, q)
	for _, tc := range []struct {
		args string
		want Port
	}{
		{"isolated on", Port{State: PortForwarding, Learning: true, UnicastFlood: true, Isolated: true}},
		{"isolated off hairpin on", Port{State: PortForwarding, Learning: true, UnicastFlood: true, Hairpin: true}},
		{"hairpin off learning off", Port{State: PortForwarding, UnicastFlood: true}},
		{"learning on flood off", Port{State: PortForwarding, Learning: true}},
		{"flood on locked on", Port{State: PortForwarding, Learning: true, UnicastFlood: true, Locked: true}},
		{"locked off neigh_suppress on", Port{State: PortForwarding, Learning: true, UnicastFlood: true, NeighSuppress: true}},
		{"neigh_suppress off vlan_tunnel on", Port{State: PortForwarding, Learning: true, UnicastFlood: true, VLANTunnel: true}},
		{"vlan_tunnel off backup_port q0", Port{State: PortForwarding, Learning: true, UnicastFlood: true, BackupPort: q.Index}},
		// Without STP the kernel makes a blocking port forward again.
		{"nobackup_port state 1", Port{State: PortListening, Learning: true, UnicastFlood: true}},
		{"state 2", Port{State: PortLearning, Learning: true, UnicastFlood: true}},
		{"state 0", Port{State: PortDisabled, Learning: true, UnicastFlood: true}},
	} {
		args := strings.Fields("bridge link set dev p0 " + strings.Replace(tc.args, "nobackup_port ", "", 1))
		if strings.HasPrefix(tc.args, "nobackup_port") {
			run(t, "bridge", "link", "set", "dev", "p0", "nobackup_port")
		}
		run(t, args...)
		tc.want.Locked = tc.want.Locked && need.Have(t, need.PortLocked)
		if diff := cmp.Diff(&tc.want, mustLink(t, h, "p0").Port); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.args, diff)
		}
	}
}

func TestVXLAN(t *testing.T) {
	h := newNS(t)
	u, _ := veth(t, h, "u0", "u1", nil)
	must(t, h.AddAddress(u.Index, prefix("10.9.0.1/24")))
	must(t, h.AddAddress(u.Index, prefix("fd00::1/64")))

	for _, tc := range []struct {
		name string
		VXLAN
		mtu  int // given where above 0
		want int
	}{
		{"plain", VXLAN{VNI: 1, Port: 4789}, 0, 1500},
		{"full", VXLAN{VNI: 236, Device: u.Index, Local: addr("10.9.0.1"), Group: addr("239.1.1.1"), Port: 4790, TTL: 5, TOS: 1, DF: 1,
			SrcLow: 40000, SrcHigh: 50000, Learning: true, Ageing: 90 * time.Second, UDPCsum: true}, 1400, 1400},
		{"six", VXLAN{VNI: 16777215, Device: u.Index, Local: addr("fd00::1"), Group: addr("fd00::2"), Port: 4789}, 0, 1430},
		{"mapped", VXLAN{VNI: 7, Device: u.Index, Local: addr("::ffff:10.9.0.1"), Port: 4789, DF: 2}, 0, 1450},
		{"label", VXLAN{VNI: 8, Local: addr("fd00::1"), Port: 4791, LabelInherit: true, UDPZeroCsum6TX: true, UDPZeroCsum6RX: true}, 0, 1500},
		{"bypass", VXLAN{VNI: 9, Port: 4789, TTLInherit: true, NoLocalBypass: true, MaxAddresses: 7}, 0, 1500},
	} {
		l, err := h.CreateVXLAN(VXLANSpec{Name: tc.name, VXLAN: tc.VXLAN, MTU: tc.mtu})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		tc.Local = tc.Local.Unmap()
		tc.LabelInherit = tc.LabelInherit && need.Have(t, need.LabelInherit)
		tc.NoLocalBypass = tc.NoLocalBypass && need.Have(t, need.NoLocalBypass)
		if diff := cmp.Diff(&tc.VXLAN, l.VXLAN, cmpAddr); diff != "" || l.MTU != tc.want || l.Kind != "vxlan" || l.Up {
			t.Errorf("%s: %+v (-want +got):\n%s", tc.name, l, diff)
		}
		must(t, h.SetUp(l.Index))
	}

	_, err := h.CreateVXLAN(VXLANSpec{Name: "encap-mgmt", VXLAN: VXLAN{VNI: 1, Port: 4789}})
	wantErr(t, err, unix.EEXIST, "create vxlan link encap-mgmt (vni 1, port 4789): a vxlan link with this VNI and port exists: ",
		"A VXLAN device with the specified VNI already exists")
	_, err = h.CreateVXLAN(VXLANSpec{Name: "plain", VXLAN: VXLAN{VNI: 99, Port: 4789}})
	wantErr(t, err, unix.EEXIST, "a link of this name exists")
	_, err = h.CreateVXLAN(VXLANSpec{Name: "big", VXLAN: VXLAN{VNI: 1 << 24, Port: 4789}})
	wantErr(t, err, unix.ERANGE)
	_, err = h.CreateVXLAN(VXLANSpec{Name: "ttl", VXLAN: VXLAN{VNI: 50, Port: 4789, TTL: 256}})
	wantErr(t, err, unix.ERANGE)
	_, err = h.CreateVXLAN(VXLANSpec{Name: "label4", VXLAN: VXLAN{VNI: 52, Port: 4789, FlowLabel: 5}})
	wantErr(t, err, unix.EINVAL, "IPv6")
	_, err = h.CreateVXLAN(VXLANSpec{Name: "label21", VXLAN: VXLAN{VNI: 53, Port: 4789, Local: addr("fd00::1"), FlowLabel: 1 << 20}})
	wantErr(t, err, unix.ERANGE, "20 bits")
	_, err = h.CreateVXLAN(VXLANSpec{Name: "turned", VXLAN: VXLAN{VNI: 54, Port: 4789, SrcLow: 2, SrcHigh: 1}})
	wantErr(t, err, unix.EINVAL, "port range")
	_, err = h.CreateVXLAN(VXLANSpec{Name: "mixed", VXLAN: VXLAN{VNI: 51, Port: 4789, Local: addr("10.9.0.1"), Group: addr("fd00::2")}})
	if err == nil {
		t.Error("a link of two address families was made")
	}
}

// TestVXLANFlags reads what iproute2 sets, and makes the same device again.
func TestVXLANFlags(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	for i, tc := range []struct {
		args string
		want VXLAN
	}{
		{"id 1 dstport 4789 ttl inherit tos inherit df inherit", VXLAN{VNI: 1, TTLInherit: true, TOS: 1, DF: 2, UDPCsum: true, Learning: true, Ageing: 300 * time.Second}},
		{"id 2 dstport 4789 nolearning proxy rsc l2miss l3miss ageing 4294967295", VXLAN{VNI: 2, Proxy: true, RSC: true, L2Miss: true, L3Miss: true, UDPCsum: true}},
		{"id 3 dstport 4789 local ::1 noudpcsum udp6zerocsumtx udp6zerocsumrx flowlabel 0x12345", VXLAN{VNI: 3, Local: addr("::1"), UDPZeroCsum6TX: true, UDPZeroCsum6RX: true, FlowLabel: 0x12345, Learning: true, Ageing: 300 * time.Second}},
		{"id 5 dstport 4789 local 127.0.0.1 tos 0x10 ttl 7 df set srcport 100 200 maxaddress 9 noudpcsum", VXLAN{VNI: 5, Local: addr("127.0.0.1"), TOS: 16, TTL: 7, DF: 1, SrcLow: 100, SrcHigh: 200, MaxAddresses: 9, Learning: true, Ageing: 300 * time.Second}},
		{"id 6 dstport 4789 gbp", VXLAN{VNI: 6, GBP: true, UDPCsum: true, Learning: true, Ageing: 300 * time.Second}},
		{"id 4 dstport 4789 gbp remcsumtx", VXLAN{VNI: 4, GBP: true, RemCsum: true, UDPCsum: true, Learning: true, Ageing: 300 * time.Second}},
		{"dstport 4790 external gpe", VXLAN{Port: 4790, External: true, GPE: true, UDPCsum: true, Ageing: 300 * time.Second}},
		{"dstport 4791 external vnifilter", VXLAN{Port: 4791, External: true, VNIFilter: true, UDPCsum: true, Ageing: 300 * time.Second}},
	} {
		if tc.want.Port == 0 {
			tc.want.Port = 4789
		}
		tc.want.VNIFilter = tc.want.VNIFilter && need.Have(t, need.VNIFilter)
		name := fmt.Sprintf("vx%d", i)
		run(t, append([]string{"ip", "link", "add", name, "type", "vxlan"}, strings.Fields(tc.args)...)...)
		l := mustLink(t, h, name)
		if diff := cmp.Diff(&tc.want, l.VXLAN, cmpAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.args, diff)
		}
		if l.VXLAN.RemCsum {
			continue
		}
		shown := func() string {
			s := run(t, "ip", "-d", "link", "show", name)
			_, s, _ = strings.Cut(s, "vxlan ")
			return s
		}
		want := shown()
		must(t, h.DeleteLink(l.Index))
		if _, err := h.CreateVXLAN(VXLANSpec{Name: name, VXLAN: *l.VXLAN}); err != nil {
			t.Errorf("%s: make it again: %v", tc.args, err)
		} else if got := shown(); got != want {
			t.Errorf("%s: made again\n%s, was\n%s", tc.args, got, want)
		}
	}
}

// TestSetVXLAN keeps the table in the comment of SetVXLAN true.
func TestSetVXLAN(t *testing.T) {
	h := newNS(t)
	u, _ := veth(t, h, "u0", "u1", nil)
	w, _ := veth(t, h, "w0", "w1", nil)
	must(t, h.AddAddress(u.Index, prefix("10.9.0.1/24")))
	must(t, h.AddAddress(u.Index, prefix("10.9.0.9/24")))
	must(t, h.AddAddress(u.Index, prefix("fd00::1/64")))
	vx := mustVXLAN(t, h, VXLANSpec{Name: "vx", VXLAN: VXLAN{VNI: 236, Device: u.Index, Local: addr("10.9.0.1"), Port: 4789, Ageing: time.Minute}})
	state := func() VXLAN { return *mustLink(t, h, "vx").VXLAN }
	want := state()
	step := func(name string, c VXLANChange, f func(*VXLAN)) {
		t.Helper()
		if err := h.SetVXLAN(vx.Index, c); err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		f(&want)
		if diff := cmp.Diff(want, state(), cmpAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	step("nothing", VXLANChange{}, func(v *VXLAN) {})
	step("ttl", VXLANChange{TTL: ptr(9)}, func(v *VXLAN) { v.TTL = 9 })
	step("tos", VXLANChange{TOS: ptr(16)}, func(v *VXLAN) { v.TOS = 16 })
	step("tos inherit", VXLANChange{TOS: ptr(1)}, func(v *VXLAN) { v.TOS = 1 })
	step("no tos", VXLANChange{TOS: ptr(0)}, func(v *VXLAN) { v.TOS = 0 })
	step("df", VXLANChange{DF: ptr(1)}, func(v *VXLAN) { v.DF = 1 })
	step("df inherit", VXLANChange{DF: ptr(2)}, func(v *VXLAN) { v.DF = 2 })
	step("no df", VXLANChange{DF: ptr(0)}, func(v *VXLAN) { v.DF = 0 })
	step("ageing", VXLANChange{Ageing: ptr(time.Duration(0))}, func(v *VXLAN) { v.Ageing = 0 })
	step("learning on", VXLANChange{Learning: ptr(true)}, func(v *VXLAN) { v.Learning = true })
	step("learning off", VXLANChange{Learning: ptr(false)}, func(v *VXLAN) { v.Learning = false })
	step("local", VXLANChange{Local: ptr(addr("10.9.0.9"))}, func(v *VXLAN) { v.Local = addr("10.9.0.9") })
	step("device", VXLANChange{Device: ptr(w.Index)}, func(v *VXLAN) { v.Device = w.Index })
	step("remote", VXLANChange{Group: ptr(addr("10.9.0.4"))}, func(v *VXLAN) { v.Group = addr("10.9.0.4") })
	step("device of remote", VXLANChange{Device: ptr(u.Index)}, func(v *VXLAN) { v.Device = u.Index })
	if e := only(t, fdbOf(t, h), isSelf(vx.Index)); e.Dst != addr("10.9.0.4") || e.IfIndex != u.Index {
		t.Errorf("default destination %+v, want one over %d", e, u.Index)
	}
	step("device again", VXLANChange{Device: ptr(u.Index)}, func(v *VXLAN) {})
	if e := only(t, fdbOf(t, h), isSelf(vx.Index)); e.Dst != addr("10.9.0.4") {
		t.Errorf("default destination %+v", e)
	}
	step("group and device", VXLANChange{Group: ptr(addr("239.1.1.1")), Device: ptr(w.Index)},
		func(v *VXLAN) { v.Group, v.Device = addr("239.1.1.1"), w.Index })
	if e := only(t, fdbOf(t, h), isSelf(vx.Index)); e.Dst != addr("239.1.1.1") || e.IfIndex != w.Index {
		t.Errorf("default destination %+v", e)
	}
	step("another group", VXLANChange{Group: ptr(addr("239.1.1.2"))}, func(v *VXLAN) { v.Group = addr("239.1.1.2") })
	if b, err := os.ReadFile("/proc/thread-self/net/igmp"); err != nil || !strings.Contains(string(b), "020101EF") || strings.Contains(string(b), "010101EF") {
		t.Errorf("multicast membership does not follow the group: %v\n%s", err, b)
	}
	step("no group", VXLANChange{Group: &netip.Addr{}}, func(v *VXLAN) { v.Group = netip.Addr{} })
	step("no local", VXLANChange{Local: &netip.Addr{}}, func(v *VXLAN) { v.Local = netip.Addr{} })
	if e := slices.IndexFunc(fdbOf(t, h), isSelf(vx.Index)); e >= 0 {
		t.Errorf("default destination left: %+v", fdbOf(t, h)[e])
	}

	wantErr(t, h.SetVXLAN(vx.Index, VXLANChange{Local: ptr(addr("fd00::1"))}), unix.EOPNOTSUPP, "set vxlan link", "family")
	wantErr(t, h.SetVXLAN(vx.Index, VXLANChange{Device: ptr(0)}), unix.EINVAL)
	wantErr(t, h.SetVXLAN(u.Index, VXLANChange{TTL: ptr(1)}), unix.EINVAL, `u0 is a "veth" link`)
	wantErr(t, h.SetVXLAN(9999, VXLANChange{TTL: ptr(1)}), unix.ENODEV)
	wantErr(t, h.SetVXLAN(vx.Index, VXLANChange{FlowLabel: ptr(uint32(5))}), unix.EINVAL, "IPv6")
	if diff := cmp.Diff(want, state(), cmpAddr); diff != "" {
		t.Errorf("refused changes changed (-want +got):\n%s", diff)
	}

	vx = mustVXLAN(t, h, VXLANSpec{Name: "vx6", VXLAN: VXLAN{VNI: 6, Local: addr("fd00::1"), Port: 4789, TTLInherit: true}})
	state = func() VXLAN { return *mustLink(t, h, "vx6").VXLAN }
	want = state()
	step("flow label", VXLANChange{FlowLabel: ptr(uint32(0xfffff))}, func(v *VXLAN) { v.FlowLabel = 0xfffff })
	step("label inherit", VXLANChange{LabelInherit: ptr(true)}, func(v *VXLAN) { v.LabelInherit = need.Have(t, need.LabelInherit) })
	step("label fixed", VXLANChange{LabelInherit: ptr(false), FlowLabel: ptr(uint32(0))}, func(v *VXLAN) { v.LabelInherit, v.FlowLabel = false, 0 })
	step("ttl that inherit hides", VXLANChange{TTL: ptr(9)}, func(v *VXLAN) { v.TTL = 9 })
	step("df over IPv6", VXLANChange{DF: ptr(1)}, func(v *VXLAN) { v.DF = 1 })
	// What has no field in VXLANChange, because no device takes it.
	for what, a := range map[string]struct {
		typ   int
		value []byte
	}{
		"port range":        {unix.IFLA_VXLAN_PORT_RANGE, []byte{0, 1, 0, 2}},
		"UDP_CSUM":          {unix.IFLA_VXLAN_UDP_CSUM, boolByte(true)},
		"UDP_ZERO_CSUM6_TX": {unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, boolByte(true)},
		"UDP_ZERO_CSUM6_RX": {unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, boolByte(true)},
		"TTL_INHERIT":       {unix.IFLA_VXLAN_TTL_INHERIT, nil},
		"limit":             {unix.IFLA_VXLAN_LIMIT, nl.Uint32Attr(5)},
	} {
		data := nl.NewRtAttr(unix.IFLA_INFO_DATA, nil)
		data.AddRtAttr(a.typ, a.value)
		err := h.setLink(vx.Index, 0, 0, linkInfo("vxlan", data))
		wantErr(t, err, unix.EOPNOTSUPP, "annot change "+what)
	}
	if diff := cmp.Diff(want, state(), cmpAddr); diff != "" {
		t.Errorf("refused changes changed (-want +got):\n%s", diff)
	}
}

// TestOneSocket: vxlan devices of one family share the UDP socket of their
// port, so those that are up must agree on what it accepts.
func TestOneSocket(t *testing.T) {
	h := newNS(t)
	must(t, h.AddAddress(mustLink(t, h, "lo").Index, prefix("fd00::1/128")))
	first := VXLAN{VNI: 1, Port: 4789, Local: addr("fd00::1"), UDPZeroCsum6RX: true}
	mustVXLAN(t, h, VXLANSpec{Name: "vx", VXLAN: first})
	for name, f := range map[string]func(*VXLAN){
		"zerorx": func(v *VXLAN) { v.UDPZeroCsum6RX = false },
		"gbp":    func(v *VXLAN) { v.GBP = true },
	} {
		s := VXLANSpec{Name: name, VXLAN: first}
		s.VNI = 2
		f(&s.VXLAN)
		l, err := h.CreateVXLAN(s)
		must(t, err)
		wantErr(t, h.SetUp(l.Index), unix.EADDRINUSE)
		must(t, h.DeleteLink(l.Index))
	}
	// What is sent is each device's own, and so is the other family's socket.
	mustVXLAN(t, h, VXLANSpec{Name: "zerotx", VXLAN: VXLAN{VNI: 2, Port: 4789, Local: addr("fd00::1"), UDPZeroCsum6RX: true, UDPZeroCsum6TX: true}})
	mustVXLAN(t, h, VXLANSpec{Name: "four", VXLAN: VXLAN{VNI: 3, Port: 4789, GBP: true}})
}

func fdbOf(t *testing.T, h *Handle) []FDBEntry {
	t.Helper()
	es, err := h.FDB()
	must(t, err)
	return es
}

func isSelf(link int) func(FDBEntry) bool {
	return func(e FDBEntry) bool { return e.Self && e.Link == link }
}

// only returns the one entry that f accepts.
func only(t *testing.T, es []FDBEntry, f func(FDBEntry) bool) FDBEntry {
	t.Helper()
	es = slices.DeleteFunc(slices.Clone(es), func(e FDBEntry) bool { return !f(e) })
	if len(es) != 1 {
		t.Fatalf("%d entries, want 1: %+v", len(es), es)
	}
	return es[0]
}

// overlay makes a vxlan device on a bridge, with a veth port beside it.
//
//	p1 -- p0 -- br0 -- vx (vni 236) -- u0 10.9.0.1/24 -- u1
func overlay(t *testing.T, h *Handle) (br, vx, port, u Link) {
	t.Helper()
	u, _ = veth(t, h, "u0", "u1", nil)
	must(t, h.AddAddress(u.Index, prefix("10.9.0.1/24")))
	br = mustBridge(t, h, "br0")
	vx = mustVXLAN(t, h, VXLANSpec{Name: "vx", VXLAN: VXLAN{VNI: 236, Device: u.Index, Local: addr("10.9.0.1"), Port: 4789, Learning: true, Ageing: time.Minute}})
	port, _ = veth(t, h, "p0", "p1", nil)
	attach(t, h, br, vx, port)
	return br, vx, port, u
}

func TestFloodList(t *testing.T) {
	h := newNS(t)
	_, vx, _, _ := overlay(t, h)
	remotes := func() (out []string) {
		for _, e := range fdbOf(t, h) {
			if e.Self && e.MAC.IsZero() {
				if !e.Static || e.Local || e.Link != vx.Index || e.Bridge != 0 {
					t.Errorf("entry %+v", e)
				}
				out = append(out, e.Dst.String())
			}
		}
		slices.Sort(out)
		return out
	}
	for range 2 {
		must(t, h.AppendDefaultRemote(vx.Index, addr("10.9.0.2")))
		must(t, h.AppendDefaultRemote(vx.Index, addr("10.9.0.3")))
	}
	if got := remotes(); !slices.Equal(got, []string{"10.9.0.2", "10.9.0.3"}) {
		t.Errorf("remotes %v", got)
	}
	for range 2 {
		must(t, h.DelDefaultRemote(vx.Index, addr("10.9.0.2")))
	}
	if got := remotes(); !slices.Equal(got, []string{"10.9.0.3"}) {
		t.Errorf("remotes %v", got)
	}
	must(t, h.DelDefaultRemote(vx.Index, addr("10.9.0.3")))
	must(t, h.DelDefaultRemote(vx.Index, addr("10.9.0.3")))
	if got := remotes(); len(got) != 0 {
		t.Errorf("remotes %v", got)
	}
	wantErr(t, h.AppendDefaultRemote(vx.Index, addr("fd00::2")), unix.EAFNOSUPPORT, "add default remote fd00::2 to link")
	wantErr(t, h.AppendDefaultRemote(vx.Index, netip.Addr{}), unix.EINVAL)
	wantErr(t, h.AppendDefaultRemote(9999, addr("10.9.0.2")), unix.ENODEV)
}

func TestStatic(t *testing.T) {
	h := newNS(t)
	br, vx, port, _ := overlay(t, h)
	m := mac("02:00:00:00:00:01")
	of := func() (vxlan, bridge []FDBEntry) {
		for _, e := range fdbOf(t, h) {
			if e.MAC != m {
				continue
			}
			e.Age, e.Used = 0, 0
			if e.Self {
				vxlan = append(vxlan, e)
			} else {
				bridge = append(bridge, e)
			}
		}
		return vxlan, bridge
	}
	check := func(dst string) {
		t.Helper()
		var wantV, wantB []FDBEntry
		if dst != "" {
			wantV = []FDBEntry{{MAC: m, Link: vx.Index, Self: true, Static: true, Dst: addr(dst)}}
			wantB = []FDBEntry{{MAC: m, Link: vx.Index, Bridge: br.Index, Static: true}}
		}
		v, b := of()
		if diff := cmp.Diff([][]FDBEntry{wantV, wantB}, [][]FDBEntry{v, b}, cmpAddr); diff != "" {
			t.Errorf("entries (-want +got):\n%s", diff)
		}
	}
	// A learned entry on another port is replaced.
	must(t, h.changePort(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, port.Index, m, unix.NUD_REACHABLE))
	for range 2 {
		must(t, h.AddStatic(vx.Index, m, addr("10.9.0.2")))
		check("10.9.0.2")
	}
	must(t, h.AddStatic(vx.Index, m, addr("10.9.0.3"))) // moves
	check("10.9.0.3")
	must(t, h.DelStatic(vx.Index, m, addr("10.9.0.2"))) // not to there any more
	check("10.9.0.3")
	for range 2 {
		must(t, h.DelStatic(vx.Index, m, addr("10.9.0.3")))
		check("")
	}
	// Half of it is missing: the rest goes.
	must(t, h.AddStatic(vx.Index, m, addr("10.9.0.2")))
	must(t, h.changeRemote(unix.RTM_DELNEIGH, 0, vx.Index, m, addr("10.9.0.2"), 0, 0))
	must(t, h.DelStatic(vx.Index, m, addr("10.9.0.2")))
	check("")
	must(t, h.AddStatic(vx.Index, m, addr("10.9.0.2")))
	must(t, h.ClearMaster(vx.Index))
	must(t, h.DelStatic(vx.Index, m, addr("10.9.0.2")))
	check("")
	// Without a bridge there is one table.
	must(t, h.AddStatic(vx.Index, m, addr("10.9.0.2")))
	must(t, h.DelStatic(vx.Index, m, addr("10.9.0.2")))
	check("")
	wantErr(t, h.AddStatic(vx.Index, fdb.MAC{}, addr("10.9.0.2")), unix.EINVAL)
	wantErr(t, h.AddStatic(vx.Index, mac("01:00:5e:00:00:01"), addr("10.9.0.2")), unix.EINVAL)
}

// bridgeCommand is one entry of `bridge -j -s fdb show`.
type bridgeCommand struct {
	MAC     string   `json:"mac"`
	Link    string   `json:"ifname"`
	Dst     string   `json:"dst"`
	Port    uint16   `json:"port"`
	VNI     uint32   `json:"vni"`
	SrcVNI  uint32   `json:"src_vni"`
	Via     string   `json:"viaIf"`
	NHID    uint32   `json:"nhid"`
	VLAN    uint16   `json:"vlan"`
	Master  string   `json:"master"`
	Flags   []string `json:"flags"`
	State   string   `json:"state"`
	Used    int      `json:"used"`
	Updated int      `json:"updated"`
}

// TestFDBAgainstIproute compares every field with what iproute2 makes of the
// same tables.
func TestFDBAgainstIproute(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	br, _, _, u := overlay(t, h)
	group := mustVXLAN(t, h, VXLANSpec{Name: "vxg", VXLAN: VXLAN{VNI: 9, Device: u.Index, Group: addr("239.1.1.1"), Port: 4789, Learning: true}})
	six := mustVXLAN(t, h, VXLANSpec{Name: "vx6", VXLAN: VXLAN{VNI: 10, Local: addr("::1"), Port: 4789}})
	run(t, "ip", "link", "set", "br0", "address", "02:11:11:11:11:11")
	run(t, "ip", "link", "add", "vxe", "type", "vxlan", "external", "dstport", "4790")
	run(t, "ip", "nexthop", "add", "id", "10", "via", "10.9.0.7", "fdb")
	run(t, "ip", "nexthop", "add", "id", "12", "via", "10.9.0.8", "fdb")
	run(t, "ip", "nexthop", "add", "id", "11", "group", "10/12", "fdb")
	for _, line := range strings.Split(strings.TrimSpace(`
append 00:00:00:00:00:00 dev vx dst 10.9.0.2 self permanent
append 00:00:00:00:00:00 dev vx dst 10.9.0.3 self permanent
append 00:00:00:00:00:00 dev vx6 dst fd00::9 self permanent
add 02:00:00:00:00:01 dev vx dst 10.9.0.2 self static
add 02:00:00:00:00:01 dev vx master static
add 02:00:00:00:00:02 dev p0 master static
add 02:00:00:00:00:03 dev p0 master dynamic
add 02:00:00:00:00:04 dev p0 master dynamic extern_learn
add 02:00:00:00:00:05 dev p0 master static sticky
add 02:00:00:00:00:06 dev p0 master local
add 02:00:00:00:00:07 dev vx dst 10.9.0.4 self extern_learn port 4790 vni 77 via u0
add 02:00:00:00:00:08 dev vx nhid 11 self extern_learn
add 02:00:00:00:00:09 dev vx dst 10.9.0.4 self dynamic
add 02:00:00:00:00:0a dev vxe dst 10.9.0.4 src_vni 500 vni 600 self static
add 02:00:00:00:00:0b dev br0 self local
`), "\n") {
		run(t, append([]string{"bridge", "fdb"}, strings.Fields(line)...)...)
	}
	time.Sleep(1100 * time.Millisecond) // so that ages are told apart from zero

	links, err := h.Links()
	must(t, err)
	name, kind := map[int]string{}, map[string]string{}
	for _, l := range links {
		name[l.Index], kind[l.Name] = l.Name, l.Kind
	}
	// A line for each entry, to its ages in seconds.
	type ages struct{ used, updated int }
	put := func(m map[string]ages, c bridgeCommand) {
		slices.Sort(c.Flags)
		key := fmt.Sprintf("%s dev %s dst %s port %d vni %d via %s nhid %d vlan %d master %s %v %s",
			c.MAC, c.Link, c.Dst, c.Port, c.VNI, c.Via, c.NHID, c.VLAN, c.Master, c.Flags, c.State)
		m[key] = ages{c.Used, c.Updated}
	}
	ours := func() map[string]ages {
		m := map[string]ages{}
		for _, e := range fdbOf(t, h) {
			c := bridgeCommand{MAC: e.MAC.String(), Link: name[e.Link], Port: e.Port, VNI: uint32(e.VNI),
				Via: name[e.IfIndex], NHID: e.NextHop, VLAN: e.VLAN, Master: name[e.Bridge],
				Used: int(e.Used / time.Second), Updated: int(e.Age / time.Second)}
			if e.Dst.IsValid() {
				c.Dst = e.Dst.String()
			}
			for flag, on := range map[string]bool{"self": e.Self, "extern_learn": e.Extern, "sticky": e.Sticky} {
				if on {
					c.Flags = append(c.Flags, flag)
				}
			}
			switch {
			case e.Local:
				c.State = "permanent"
			case e.Static:
				c.State = "static"
			}
			put(m, c)
		}
		return m
	}
	theirs := func() map[string]ages {
		m := map[string]ages{}
		var all []bridgeCommand
		must(t, json.Unmarshal([]byte(run(t, "bridge", "-j", "-s", "fdb", "show")), &all))
		for _, c := range all {
			self := slices.Contains(c.Flags, "self")
			if self && kind[c.Link] != "vxlan" {
				continue // a receive filter
			}
			if c.VNI == 0 {
				c.VNI = c.SrcVNI
			}
			if self && c.State == "permanent" {
				c.State = "static" // for a vxlan device both mean that it does not age
			}
			put(m, c)
		}
		return m
	}
	// Ages move on: those of iproute2 lie between two lists of ours, unless a
	// packet has just set one back.
	var before, between map[string]ages
	same := func() bool {
		before, between = ours(), theirs()
		after := ours()
		for k, b := range between {
			lo, ok := before[k]
			hi := after[k]
			if !ok || b.used < lo.used || b.used > hi.used || b.updated < lo.updated || b.updated > hi.updated {
				return false
			}
		}
		return len(before) == len(between)
	}
	for end := time.Now().Add(3 * time.Second); !same(); {
		if time.Now().After(end) {
			t.Fatalf("FDB (-bridge fdb show +FDB):\n%s", cmp.Diff(between, before, cmp.AllowUnexported(ages{})))
		}
	}
	if len(between) < 20 {
		t.Errorf("%d entries, want all that were made", len(between))
	}
	entries := fdbOf(t, h)
	host := only(t, entries, func(e FDBEntry) bool { return e.MAC == mac("02:11:11:11:11:11") })
	if !host.Local || host.Link != br.Index || host.Bridge != br.Index || host.Static {
		t.Errorf("the bridge's own address %+v", host)
	}
	if e := only(t, entries, isSelf(group.Index)); e.Dst != addr("239.1.1.1") || e.IfIndex != u.Index {
		t.Errorf("group %+v", e)
	}
	if e := only(t, entries, isSelf(six.Index)); e.Dst != addr("fd00::9") {
		t.Errorf("v6 %+v", e)
	}

	hops, err := h.NextHops()
	must(t, err)
	if hops[10].Gateway != addr("10.9.0.7") || !hops[10].FDB || !slices.Equal(hops[11].Group, []uint32{10, 12}) || len(hops) != 3 {
		t.Errorf("next hops %+v", hops)
	}
}

func TestAddresses(t *testing.T) {
	h := newNS(t)
	u, _ := veth(t, h, "u0", "u1", nil)
	for range 2 {
		must(t, h.AddAddress(u.Index, prefix("10.9.0.1/24")))
		must(t, h.AddAddress(u.Index, prefix("fd00::1/64")))
		must(t, h.AddAddress(u.Index, prefix("169.254.3.4/16")))
	}
	list := func() (out []string) {
		as, err := h.Addresses()
		must(t, err)
		for _, a := range as {
			if a.Link == u.Index && !a.Prefix.Addr().Is6() || a.Prefix == prefix("fd00::1/64") {
				out = append(out, fmt.Sprint(a.Prefix, a.LinkLocal()))
			}
		}
		slices.Sort(out)
		return out
	}
	if got := list(); !slices.Equal(got, []string{"10.9.0.1/24 false", "169.254.3.4/16 true", "fd00::1/64 false"}) {
		t.Errorf("addresses %q", got)
	}
	for range 2 {
		must(t, h.DelAddress(u.Index, prefix("10.9.0.1/24")))
		must(t, h.DelAddress(u.Index, prefix("fd00::1/64")))
	}
	if got := list(); !slices.Equal(got, []string{"169.254.3.4/16 true"}) {
		t.Errorf("addresses %q", got)
	}
	wantErr(t, h.AddAddress(9999, prefix("10.9.0.1/24")), unix.ENODEV, "add address 10.9.0.1/24 to link 9999")
	wantErr(t, h.AddAddress(u.Index, netip.Prefix{}), unix.EINVAL)
	eventually(t, "fe80 address no longer tentative", func() bool {
		as, err := h.Addresses()
		must(t, err)
		return slices.ContainsFunc(as, func(a Address) bool {
			return a.Link == u.Index && a.LinkLocal() && a.Prefix.Addr().Is6() && !a.Tentative
		})
	})
}

func TestRouteTo(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	u, _ := veth(t, h, "u0", "u1", nil)
	w, _ := veth(t, h, "w0", "w1", nil)
	for _, s := range []string{"10.9.0.1/24", "10.9.0.9/24"} {
		must(t, h.AddAddress(u.Index, prefix(s)))
	}
	must(t, h.AddAddress(w.Index, prefix("10.8.0.1/24")))
	run(t, "ip", "addr", "add", "fd00::1/64", "dev", "u0", "nodad")
	run(t, "ip", "route", "add", "10.1.0.0/16", "via", "10.9.0.254", "mtu", "1400")
	run(t, "ip", "route", "add", "10.2.0.0/16", "via", "10.9.0.254")
	run(t, "ip", "route", "add", "10.2.0.0/16", "via", "10.8.0.254", "metric", "10")
	run(t, "ip", "route", "add", "10.3.0.0/16", "via", "inet6", "fd00::fe", "dev", "u0")
	run(t, "ip", "route", "add", "unreachable", "10.4.0.0/16")
	run(t, "ip", "route", "add", "prohibit", "10.5.0.0/16")
	run(t, "ip", "route", "add", "blackhole", "10.6.0.0/16")
	run(t, "ip", "route", "add", "fd01::/64", "via", "fd00::fe", "mtu", "1380")

	for _, tc := range []struct {
		dst  string
		o    RouteOptions
		want Route
	}{
		{"10.9.0.5", RouteOptions{}, Route{Device: u.Index, Src: addr("10.9.0.1"), NextHop: addr("10.9.0.5")}},
		{"::ffff:10.9.0.5", RouteOptions{}, Route{Device: u.Index, Src: addr("10.9.0.1"), NextHop: addr("10.9.0.5")}},
		{"10.9.0.5", RouteOptions{Src: addr("10.9.0.9")}, Route{Device: u.Index, Src: addr("10.9.0.9"), NextHop: addr("10.9.0.5")}},
		{"10.1.2.3", RouteOptions{}, Route{Device: u.Index, Src: addr("10.9.0.1"), NextHop: addr("10.9.0.254"), MTU: 1400}},
		{"10.2.2.3", RouteOptions{}, Route{Device: u.Index, Src: addr("10.9.0.1"), NextHop: addr("10.9.0.254")}},
		{"10.2.2.3", RouteOptions{Device: w.Index}, Route{Device: w.Index, Src: addr("10.8.0.1"), NextHop: addr("10.8.0.254")}},
		{"10.3.2.3", RouteOptions{}, Route{Device: u.Index, Src: addr("10.9.0.1"), NextHop: addr("fd00::fe")}},
		{"10.9.0.1", RouteOptions{}, Route{Device: 1, Src: addr("10.9.0.1"), NextHop: addr("10.9.0.1"), Local: true}},
		{"fd00::5", RouteOptions{}, Route{Device: u.Index, Src: addr("fd00::1"), NextHop: addr("fd00::5")}},
		{"fd01::5", RouteOptions{}, Route{Device: u.Index, Src: addr("fd00::1"), NextHop: addr("fd00::fe"), MTU: 1380}},
		{"239.1.1.1", RouteOptions{Device: u.Index}, Route{Device: u.Index, Src: addr("10.9.0.1"), NextHop: addr("239.1.1.1")}},
	} {
		got, err := h.RouteTo(addr(tc.dst), tc.o)
		if err != nil {
			t.Errorf("%s: %v", tc.dst, err)
			continue
		}
		if diff := cmp.Diff(tc.want, got, cmpAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.dst, diff)
		}
	}
	for dst, errno := range map[string]error{
		"10.77.0.1": unix.ENETUNREACH, "10.4.1.1": unix.EHOSTUNREACH, "fd77::1": unix.ENETUNREACH,
	} {
		_, err := h.RouteTo(addr(dst), RouteOptions{})
		wantErr(t, err, ErrNoRoute, "get route to "+dst)
		wantErr(t, err, errno)
	}
	for dst, errno := range map[string]error{"10.5.1.1": unix.EACCES, "10.6.1.1": unix.EINVAL} {
		_, err := h.RouteTo(addr(dst), RouteOptions{})
		wantErr(t, err, errno)
		if errors.Is(err, ErrNoRoute) {
			t.Errorf("%s: %v", dst, err)
		}
	}
	_, err := h.RouteTo(netip.Addr{}, RouteOptions{})
	wantErr(t, err, unix.EINVAL)
}

// TestLearnedPathMTU: an ICMP "fragmentation needed" shows in RouteTo.
//
//	u0 10.9.0.1 --- u1 10.9.0.2 (other namespace), which reports MTU 1200
func TestLearnedPathMTU(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	u, _ := veth(t, h, "u0", "u1", nil)
	must(t, h.AddAddress(u.Index, prefix("10.9.0.1/24")))
	run(t, "ip", "route", "add", "10.1.0.0/16", "via", "10.9.0.2")
	// The ICMP message must quote a socket of ours, so connect one and forge
	// the router's answer on the other end of the wire.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Connect(fd, &unix.SockaddrInet4{Port: 4789, Addr: [4]byte{10, 1, 0, 1}}))
	sa, err := unix.Getsockname(fd)
	must(t, err)
	port := sa.(*unix.SockaddrInet4).Port
	inner := []byte{0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 1, 0, 1,
		byte(port >> 8), byte(port), 4789 >> 8, 4789 & 255, 0, 8, 0, 0}
	icmp := append([]byte{3, 4, 0, 0, 0, 0, 1200 >> 8, 1200 & 255}, inner...)
	checksum(icmp, 2)
	ip := []byte{0x45, 0, 0, byte(20 + len(icmp)), 0, 1, 0, 0, 64, 1, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1}
	checksum(ip, 10)
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(raw)
	src := mustLink(t, h, "u1")
	f := append(append(append([]byte{}, u.MAC[:]...), src.MAC[:]...), 8, 0)
	f = append(append(f, ip...), icmp...)
	must(t, unix.Sendto(raw, f, 0, &unix.SockaddrLinklayer{Ifindex: src.Index}))
	eventually(t, "path MTU 1200", func() bool {
		r, err := h.RouteTo(addr("10.1.0.1"), RouteOptions{})
		must(t, err)
		return r.MTU == 1200
	})
}

// checksum fills in the Internet checksum (RFC 1071) at off.
func checksum(b []byte, off int) {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	b[off], b[off+1] = byte(^s>>8), byte(^s)
}

func TestNeighbours(t *testing.T) {
	needIproute(t)
	h := newNS(t)
	o := otherNS(t)
	u, far := veth(t, h, "u0", "u1", o)
	must(t, h.AddAddress(u.Index, prefix("10.9.0.1/24")))
	must(t, o.AddAddress(far.Index, prefix("10.9.0.2/24")))
	ip := addr("10.9.0.2")

	if _, ok, err := h.Neighbour(u.Index, ip); ok || err != nil {
		t.Fatalf("neighbour before use: %v, %v", ok, err)
	}
	must(t, h.ProbeNeighbour(u.Index, ip))
	eventually(t, "resolved", func() bool {
		n, ok, err := h.Neighbour(u.Index, ip)
		must(t, err)
		return ok && n.Valid && !n.Stale && !n.Permanent && n.MAC == far.MAC && n.IP == ip && n.Link == u.Index
	})
	ns, err := h.Neighbours()
	must(t, err)
	if !slices.ContainsFunc(ns, func(n Neighbour) bool { return n.IP == ip && n.MAC == far.MAC && n.Valid }) {
		t.Errorf("neighbours %+v", ns)
	}

	// A stale one is confirmed by being used.
	must(t, os.WriteFile("/proc/sys/net/ipv4/neigh/u0/delay_first_probe_time", []byte("0"), 0o644))
	run(t, "ip", "neigh", "replace", "10.9.0.2", "lladdr", far.MAC.String(), "dev", "u0", "nud", "stale")
	if n, ok, err := h.Neighbour(u.Index, ip); err != nil || !ok || !n.Valid || !n.Stale {
		t.Errorf("stale neighbour %+v %v %v", n, ok, err)
	}
	must(t, h.ProbeNeighbour(u.Index, ip))
	eventually(t, "confirmed", func() bool {
		n, _, err := h.Neighbour(u.Index, ip)
		must(t, err)
		return n.Valid && !n.Stale
	})

	// One that nobody answers for is there, and not valid.
	must(t, h.ProbeNeighbour(u.Index, addr("10.9.0.77")))
	if n, ok, err := h.Neighbour(u.Index, addr("10.9.0.77")); err != nil || !ok || n.Valid {
		t.Errorf("unanswered neighbour %+v %v %v", n, ok, err)
	}
	// A permanent one is not touched.
	run(t, "ip", "neigh", "add", "10.9.0.5", "lladdr", "02:00:00:00:00:05", "dev", "u0", "nud", "permanent")
	must(t, h.ProbeNeighbour(u.Index, addr("10.9.0.5")))
	if n, ok, err := h.Neighbour(u.Index, addr("10.9.0.5")); err != nil || !ok || !n.Permanent || n.MAC != mac("02:00:00:00:00:05") {
		t.Errorf("permanent neighbour %+v %v %v", n, ok, err)
	}
	// A proxy entry resolves nothing.
	run(t, "ip", "neigh", "add", "proxy", "10.9.0.6", "dev", "u0")
	ns, err = h.Neighbours()
	must(t, err)
	if slices.ContainsFunc(ns, func(n Neighbour) bool { return n.IP == addr("10.9.0.6") }) {
		t.Errorf("proxy entry among %+v", ns)
	}
	wantErr(t, h.ProbeNeighbour(9999, ip), unix.ENODEV, "probe neighbour 10.9.0.2 on link 9999")
	_, _, err = h.Neighbour(u.Index, netip.Addr{})
	wantErr(t, err, unix.EINVAL)
}

func TestSysctls(t *testing.T) {
	h := newNS(t)
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 30001"), 0o644))
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_default_ttl", []byte("77"), 0o644))
	check := func() {
		lo, hi, err := h.LocalPortRange()
		if lo != 20000 || hi != 30001 || err != nil {
			t.Errorf("range %d-%d, %v", lo, hi, err)
		}
		if ttl, err := h.DefaultTTL(); ttl != 77 || err != nil {
			t.Errorf("ttl %d, %v", ttl, err)
		}
	}
	check()
	var wg sync.WaitGroup
	wg.Go(check) // another thread, in the namespace the test began in
	wg.Wait()
}

// TestHandleFromOtherThreads: a Handle stays in the namespace of Open.
func TestHandleFromOtherThreads(t *testing.T) {
	h := newNS(t)
	mustBridge(t, h, "br-only-here")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprintf("br%d", i)
			l, err := h.CreateBridge(name, BridgeSpec{})
			if err != nil {
				t.Error(err)
				return
			}
			if _, ok, err := h.LinkByName("br-only-here"); !ok || err != nil {
				t.Errorf("found %v, %v", ok, err)
			}
			if _, err := h.FDB(); err != nil {
				t.Error(err)
			}
			if err := h.DeleteLink(l.Index); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestClosed(t *testing.T) {
	h := newNS(t)
	must(t, h.Close())
	must(t, h.Close())
	_, err := h.Links()
	wantErr(t, err, os.ErrClosed)
	_, err = h.FDB()
	wantErr(t, err, os.ErrClosed)
	_, _, err = h.LocalPortRange()
	wantErr(t, err, os.ErrClosed)
	_, err = h.Subscribe(t.Context(), SubscribeOptions{})
	wantErr(t, err, os.ErrClosed)
}

// TestFDBDuringDeletes lists a table while half of it is being deleted: none
// of the other half may be missing.
func TestFDBDuringDeletes(t *testing.T) {
	h := newNS(t)
	br := mustBridge(t, h, "br0")
	p, _ := veth(t, h, "p0", "p1", nil)
	attach(t, h, br, p)
	nth := func(i int) fdb.MAC { return fdb.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)} }
	const n = 8000
	for i := range n {
		must(t, h.changePort(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, p.Index, nth(i), unix.NUD_REACHABLE))
	}
	other, err := Open()
	must(t, err)
	defer other.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; i < n; i += 2 {
			if err := other.changePort(unix.RTM_DELNEIGH, 0, p.Index, nth(i), 0); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 5 {
		seen := map[fdb.MAC]bool{}
		for _, e := range fdbOf(t, h) {
			seen[e.MAC] = true
		}
		missing := 0
		for i := 0; i < n; i += 2 {
			if !seen[nth(i)] {
				missing++
			}
		}
		if missing > 0 {
			t.Errorf("%d of %d steady entries missing", missing, n/2)
		}
	}
	wg.Wait()
	if got := len(slices.DeleteFunc(fdbOf(t, h), func(e FDBEntry) bool { return !followed(e) })); got != n/2 {
		t.Errorf("%d entries in the end, want %d", got, n/2)
	}
}
