// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// small is a lab with one network and one container on each host.
func small(kind string, hosts ...HostSpec) Spec {
	return Spec{
		Name:     "s",
		Underlay: Underlay{Kind: kind},
		Networks: []Network{{Name: "mgmt", VNI: 236, Subnet: netip.MustParsePrefix("172.29.236.0/24"), Subnet6: netip.MustParsePrefix("fd00:29:236::/64")}},
		Hosts:    hosts, Containers: 1,
	}
}

// TestDefaultLab: the default lab as it is before vxbpf has come.
func TestDefaultLab(t *testing.T) {
	l := up(t, DefaultSpec())
	if out, err := exec.Command("ip", "netns", "list").Output(); err == nil {
		for _, n := range l.Namespaces() {
			if !strings.Contains(string(out), n) {
				t.Errorf("ip netns list does not show %s", n)
			}
		}
	} else {
		t.Logf("ip netns list not compared: %v", err)
	}

	h1, h2 := l.Host("h1"), l.Host("h2")
	r, err := Ping(t.Context(), h1.NS, h2.Address, PingOptions{Interval: time.Millisecond})
	if err != nil || !r.OK() {
		t.Errorf("underlay: %v, %v", r, err)
	}
	err = h1.NS.Do(func() error {
		for _, name := range []string{"lo", "eth2", "v-mgmt-1", "v-vxlan-2"} {
			ifi, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			if ifi.Flags&net.FlagUp == 0 {
				t.Errorf("%s is down", name)
			}
		}
		for _, name := range []string{"br-mgmt", "encap-mgmt"} {
			if _, err := net.InterfaceByName(name); err == nil {
				t.Errorf("the lab made %s, which is vxbpf's to make", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	c := l.Container("h1", "storage-1")
	err = c.NS.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if ifi.MTU != 1450 || ifi.HardwareAddr.String() != c.MAC.String() {
			t.Errorf("eth0 has mtu %d, mac %s", ifi.MTU, ifi.HardwareAddr)
		}
		addrs, err := ifi.Addrs()
		got := []string{}
		for _, a := range addrs {
			got = append(got, a.String())
		}
		if !slices.Contains(got, "172.29.244.11/24") || !slices.Contains(got, "fd00:29:244::11/64") {
			t.Errorf("eth0 has addresses %v", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}

	if _, err := Up(t.Context(), l.Spec, Options{Prefix: testPrefix}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Up of the same lab: %v", err)
	}
	if r, err := Ping(t.Context(), h1.NS, h2.Address, PingOptions{Count: 1}); err != nil || !r.OK() {
		t.Errorf("second Up has hurt the first: %v, %v", r, err)
	}

	infos, err := List()
	i := slices.IndexFunc(infos, func(in Info) bool { return in.Name == l.Name })
	if err != nil || i < 0 {
		t.Fatalf("List: %+v, %v", infos, err)
	}
	if in := infos[i]; in.Phase != "up" || in.Stale || in.Creator != os.Getpid() || !slices.Equal(in.Hosts, []string{"h1", "h2"}) {
		t.Errorf("List: %+v", in)
	}

	// Another process takes it down; then Down has nothing to do.
	if out, err := exec.Command(self(t), "lab-down", l.Name).CombinedOutput(); err != nil {
		t.Errorf("lab-down: %v: %s", err, out)
	}
	checkGone(t, l)
	if err := l.Down(); err != nil {
		t.Errorf("second Down: %v", err)
	}
	if _, err := Open(l.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a removed lab: %v", err)
	}
}

// a-mgmt-1 ── br-mgmt ── encap-mgmt ── eth2 ──(veth)── eth2 ── encap-mgmt ── br-mgmt ── b-mgmt-1
func TestKernelVXLANUnicast(t *testing.T) {
	s := small(P2P, HostSpec{Name: "a", KernelVXLAN: true}, HostSpec{Name: "b", KernelVXLAN: true})
	s.HostAddresses = []string{"mgmt"}
	l := up(t, s)
	ctx := t.Context()
	a, b := l.Container("a", "mgmt-1"), l.Container("b", "mgmt-1")

	rec, err := Capture(ctx, l.Host("b").NS, "eth2", isVXLAN(236))
	if err != nil {
		t.Fatal(err)
	}
	for _, dst := range []netip.Addr{b.Addr.Addr(), b.Addr6.Addr(), l.Host("b").BridgeAddresses("mgmt")[0].Addr()} {
		r, err := Ping(ctx, a.NS, dst, PingOptions{Interval: time.Millisecond})
		if err != nil || !r.OK() || len(r.RTTs) != 3 {
			t.Errorf("ping %s: %v, %v", dst, r, err)
		}
	}
	frames, err := rec.Stop()
	if err != nil || len(frames) < 18 {
		t.Fatalf("%d frames on the underlay, want 18 or more: %v", len(frames), err)
	}
	out := 0
	for _, f := range frames {
		if f.Outgoing {
			out++
		}
		if ttl := f.Data[22]; ttl != 5 {
			t.Errorf("outer ttl %d, want 5", ttl)
		}
		if binary.BigEndian.Uint16(f.Data[40:]) == 0 {
			t.Error("outer UDP checksum is 0")
		}
	}
	if out == 0 || out == len(frames) {
		t.Errorf("%d of %d frames are outgoing, want both directions", out, len(frames))
	}

	for _, dst := range []netip.Addr{b.Addr.Addr(), b.Addr6.Addr()} {
		r, err := Transfer(ctx, a.NS, b.NS, dst, 4<<20, 7)
		if err != nil || !r.Match || r.Bytes != 4<<20 {
			t.Errorf("transfer to %s: %+v, %v", dst, r, err)
		}
		if r.MSS == 0 || r.MSS > 1410 || r.PathMTU != 1450 {
			t.Errorf("transfer to %s: MSS %d, path MTU %d", dst, r.MSS, r.PathMTU)
		}
	}
	// 1450 is the largest packet, with and without permission to fragment.
	for _, tc := range []struct {
		size int
		df   bool
		ok   bool
	}{{1422, true, true}, {1423, true, false}, {3000, false, true}} {
		r, err := Ping(ctx, a.NS, b.Addr.Addr(), PingOptions{Count: 1, Size: tc.size, DontFragment: tc.df, Timeout: 300 * time.Millisecond})
		if err != nil || r.OK() != tc.ok {
			t.Errorf("ping of %d bytes, df %t: %v, %v", tc.size, tc.df, r, err)
		}
		if !tc.ok && len(r.Errors) == 0 {
			t.Errorf("ping of %d bytes, df %t: no reason given", tc.size, tc.df)
		}
	}
	// Nobody there: the stack's own ICMP error is reported.
	r, err := Ping(ctx, a.NS, netip.MustParseAddr("172.29.236.200"), PingOptions{Count: 1, Timeout: 50 * time.Millisecond})
	if err != nil || r.Received != 0 || r.Sent != 1 {
		t.Errorf("ping of nobody: %v, %v", r, err)
	}
}

// isVXLAN accepts IPv4 VXLAN of one VNI.
func isVXLAN(vni fdb.VNI) func([]byte) bool {
	return func(f []byte) bool {
		return len(f) > 50 && binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == 17 &&
			binary.BigEndian.Uint16(f[36:]) == 4789 && fdb.VNI(binary.BigEndian.Uint32(f[46:])>>8) == vni
	}
}

// Three hosts on a switch, BUM by multicast group over IPv4 and IPv6.
func TestKernelVXLANMulticast(t *testing.T) {
	for _, tc := range []struct{ prefix, group string }{{"192.0.2.0/24", "239.1.1.236"}, {"2001:db8::/64", "ff05::236"}} {
		t.Run(tc.group, func(t *testing.T) {
			s := small(Switch, HostSpec{Name: "a", KernelVXLAN: true}, HostSpec{Name: "b", KernelVXLAN: true}, HostSpec{Name: "c", KernelVXLAN: true})
			s.Underlay.Prefix = netip.MustParsePrefix(tc.prefix)
			s.Networks[0].Group = netip.MustParseAddr(tc.group)
			l := up(t, s)
			for _, from := range l.Hosts {
				for _, to := range l.Hosts {
					if from == to {
						continue
					}
					for _, dst := range []netip.Addr{to.Containers[0].Addr.Addr(), to.Containers[0].Addr6.Addr()} {
						r, err := Ping(t.Context(), from.Containers[0].NS, dst, PingOptions{Count: 2, Interval: time.Millisecond})
						if err != nil || !r.OK() {
							t.Errorf("%s to %s: %v, %v", from.Name, dst, r, err)
						}
					}
				}
			}
			a, c := l.Container("a", "mgmt-1"), l.Container("c", "mgmt-1")
			if r, err := Transfer(t.Context(), c.NS, a.NS, a.Addr.Addr(), 1<<20, 1); err != nil || !r.Match {
				t.Errorf("transfer: %+v, %v", r, err)
			}
		})
	}
}

// TestKernelVXLANIPv6Unicast: head-end replication over an IPv6 underlay.
func TestKernelVXLANIPv6Unicast(t *testing.T) {
	s := small(P2P, HostSpec{Name: "a", KernelVXLAN: true}, HostSpec{Name: "b", KernelVXLAN: true})
	s.Underlay.Prefix = netip.MustParsePrefix("2001:db8::/64")
	l := up(t, s)
	b := l.Container("b", "mgmt-1")
	if b.MTU != 1430 {
		t.Errorf("container mtu %d, want 1430", b.MTU)
	}
	if r, err := Ping(t.Context(), l.Container("a", "mgmt-1").NS, b.Addr.Addr(), PingOptions{Interval: time.Millisecond, Size: 1402, DontFragment: true}); err != nil || !r.OK() {
		t.Errorf("%v, %v", r, err)
	}
}

// The helpers on their own: kernel VXLAN without checksum, removed, then bare,
// removed, on the same two hosts; a third is a stranger.
func TestKernelVXLANThenBare(t *testing.T) {
	l := up(t, small(Switch, HostSpec{Name: "a", Datapath: None}, HostSpec{Name: "b", Datapath: None}, HostSpec{Name: "evil", Stranger: true}))
	ctx := t.Context()
	a, b := l.Container("a", "mgmt-1"), l.Container("b", "mgmt-1")
	if n := len(l.Host("evil").Containers); n != 0 {
		t.Errorf("the stranger has %d containers", n)
	}
	if err := kernelVXLANError(l, "a", "nix"); err == nil {
		t.Error("KernelVXLAN made a network that is not there")
	}

	var undo []func() error
	for _, h := range []string{"a", "b"} {
		remove, err := l.KernelVXLAN(ctx, h, "mgmt", KernelVXLANOptions{NoChecksum: true, TTL: 9})
		if err != nil {
			t.Fatal(err)
		}
		undo = append(undo, remove)
		if err := kernelVXLANError(l, h, "mgmt"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("second KernelVXLAN: %v", err)
		}
	}
	rec, err := Capture(ctx, l.Host("a").NS, "eth2", isVXLAN(236))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Ping(ctx, a.NS, b.Addr.Addr(), PingOptions{Interval: time.Millisecond}); err != nil || !r.OK() {
		t.Errorf("kernel vxlan: %v, %v", r, err)
	}
	if err := rec.Wait(ctx, 6); err != nil {
		t.Error(err)
	}
	frames, _ := rec.Stop()
	for _, f := range frames {
		if f.Data[22] != 9 || binary.BigEndian.Uint16(f.Data[40:]) != 0 {
			t.Errorf("outer ttl %d, checksum %x; want 9 and none", f.Data[22], f.Data[40:42])
		}
		if dst := netip.AddrFrom4([4]byte(f.Data[30:34])); dst == l.Host("evil").Address {
			t.Error("a stranger is among the remotes")
		}
	}
	for _, u := range undo {
		if err := errors.Join(u(), u()); err != nil {
			t.Errorf("remove, twice: %v", err)
		}
	}
	if r, err := Ping(ctx, a.NS, b.Addr.Addr(), PingOptions{Count: 1, Timeout: 50 * time.Millisecond}); err != nil || r.Received != 0 {
		t.Errorf("without an overlay: %v, %v", r, err)
	}

	undo = nil
	for _, h := range []string{"a", "b"} {
		remove, err := l.Bare(ctx, h, "mgmt")
		if err != nil {
			t.Fatal(err)
		}
		undo = append(undo, remove)
	}
	if r, err := Ping(ctx, a.NS, b.Addr.Addr(), PingOptions{Interval: time.Millisecond}); err != nil || !r.OK() {
		t.Errorf("bare: %v, %v", r, err)
	}
	for _, u := range undo {
		if err := u(); err != nil {
			t.Error(err)
		}
	}
	if r, err := Ping(ctx, l.Host("a").NS, l.Host("b").Address, PingOptions{Interval: time.Millisecond}); err != nil || !r.OK() {
		t.Errorf("underlay after bare: %v, %v", r, err)
	}
}

// The same over IPv6: copies to each and a group, with and without a UDP checksum, and any attribute there is.
func TestKernelVXLANOverIPv6(t *testing.T) {
	for name, group := range map[string]netip.Addr{"remotes": {}, "group": netip.MustParseAddr("ff05::236")} {
		t.Run(name, func(t *testing.T) {
			s := small(Switch, HostSpec{Name: "a", Datapath: None}, HostSpec{Name: "b", Datapath: None})
			s.Underlay.Prefix = netip.MustParsePrefix("2001:db8:12::/64")
			s.Networks[0].Group = group
			l := up(t, s)
			if mtu := l.Spec.Networks[0].MTU; mtu != 1430 {
				t.Errorf("mtu %d, want 1500 less 70", mtu)
			}
			for _, h := range []string{"a", "b"} {
				_, err := l.KernelVXLAN(t.Context(), h, "mgmt", KernelVXLANOptions{NoChecksum: h == "a", Attributes: map[int][]byte{
					unix.IFLA_VXLAN_TTL: {9}, unix.IFLA_VXLAN_TOS: {0x28}, unix.IFLA_VXLAN_LABEL: binary.BigEndian.AppendUint32(nil, 0x12345),
				}})
				if err != nil {
					t.Fatal(err)
				}
			}
			rec, err := Capture(t.Context(), l.Host("a").NS, "eth2", func(b []byte) bool {
				return len(b) > 70 && b[12] == 0x86 && b[20] == 17 && binary.BigEndian.Uint16(b[56:]) == 4789
			})
			if err != nil {
				t.Fatal(err)
			}
			a, b := l.Container("a", "mgmt-1"), l.Container("b", "mgmt-1")
			if r, err := Ping(t.Context(), a.NS, b.Addr.Addr(), PingOptions{Interval: time.Millisecond, Size: 1430 - 28, DontFragment: true}); err != nil || !r.OK() {
				t.Errorf("%v, %v", r, err)
			}
			if r, err := Transfer(t.Context(), a.NS, b.NS, b.Addr.Addr(), 1<<20, 1); err != nil || !r.Match || r.PathMTU != 1430 {
				t.Errorf("%+v, %v", r, err)
			}
			frames, err := rec.Stop()
			if err != nil || len(frames) < 10 {
				t.Errorf("%d frames, %v", len(frames), err)
			}
			for _, f := range frames {
				if first := binary.BigEndian.Uint32(f.Data[14:]); first != 0x62812345 || f.Data[21] != 9 {
					t.Errorf("outer header starts with %08x, hop limit %d", first, f.Data[21])
				}
				if zero := binary.BigEndian.Uint16(f.Data[60:]) == 0; zero != f.Outgoing {
					t.Errorf("sent by a: %v, zero checksum: %v", f.Outgoing, zero)
				}
			}
		})
	}
}

// A router with a smaller hop behind it: hosts hear of it, and learn.
func TestRoutedUnderlay(t *testing.T) {
	for _, prefix := range []string{"192.0.2.0/24", "2001:db8:12::/64"} {
		t.Run(prefix, func(t *testing.T) {
			s := small(Routed, HostSpec{Name: "a", KernelVXLAN: true}, HostSpec{Name: "b", KernelVXLAN: true}, HostSpec{Name: "c"})
			s.Underlay.Prefix, s.Underlay.PathMTU = netip.MustParsePrefix(prefix), 1400
			l := up(t, s)
			from, to := l.Host("a").NS, l.Host("c").Address
			over := 28
			if to.Is6() {
				over = 48
			}
			ping := func(size int) PingResult {
				r, err := Ping(t.Context(), from, to, PingOptions{Count: 1, Size: size - over, DontFragment: true, Timeout: time.Second})
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			if r := ping(1400); !r.OK() {
				t.Errorf("1400 bytes: %s", r)
			}
			if r := ping(1401); r.Received != 0 || len(r.Errors) != 1 || !strings.Contains(r.Errors[0], l.gateway().String()) {
				t.Errorf("1401 bytes, first: %s", r)
			}
			if r := ping(1401); r.Received != 0 || len(r.Errors) == 0 || !strings.Contains(r.Errors[0], "message too long") {
				t.Errorf("1401 bytes, then: %s", r)
			}
			if r, err := Transfer(t.Context(), l.Container("a", "mgmt-1").NS, l.Container("b", "mgmt-1").NS, l.Container("b", "mgmt-1").Addr.Addr(), 1<<20, 1); err != nil || !r.Match {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// kernelVXLANError is KernelVXLAN where an error is expected.
func kernelVXLANError(l *Lab, host, network string) error {
	_, err := l.KernelVXLAN(context.Background(), host, network, KernelVXLANOptions{})
	return err
}

func TestAttachContainers(t *testing.T) {
	l := up(t, small(P2P, HostSpec{Name: "a"}, HostSpec{Name: "b"}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.AttachContainers(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a bridge: %v", err)
	}
	attached := make(chan error, 2)
	for _, h := range []string{"a", "b"} {
		go func() { attached <- l.AttachContainers(t.Context(), h) }()
	}
	for _, h := range []string{"a", "b"} {
		if _, err := l.KernelVXLAN(t.Context(), h, "mgmt", KernelVXLANOptions{NoContainers: true}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := <-attached; err != nil {
			t.Fatal(err)
		}
	}
	b := l.Container("b", "mgmt-1")
	if r, err := Ping(t.Context(), l.Container("a", "mgmt-1").NS, b.Addr.Addr(), PingOptions{Interval: time.Millisecond}); err != nil || !r.OK() {
		t.Errorf("%v, %v", r, err)
	}
}

// Up is cancelled at every kind of step, and leaves nothing.
func TestUpCancelled(t *testing.T) {
	needRoot(t)
	for _, step := range []int{0, 1, 2, 3, 5, 9, 12} {
		t.Run(strconv.Itoa(step), func(t *testing.T) {
			n := step
			ctx := stallingCtx{t.Context(), &n, func() error { return context.Canceled }}
			s := small(Switch, HostSpec{Name: "a", KernelVXLAN: true}, HostSpec{Name: "b", KernelVXLAN: true}, HostSpec{Name: "c"})
			s.Name = "cancel"
			l, err := Up(ctx, s, Options{Prefix: testPrefix})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v at step %d, want Canceled", err, step)
			}
			if l != nil {
				t.Error("a lab in spite of an error")
			}
			if left := leftovers(links()); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// Up meets a namespace that is somebody else's: it must survive.
func TestUpForeignNamespace(t *testing.T) {
	needRoot(t)
	if err := prepareNetnsDir(); err != nil {
		t.Fatal(err)
	}
	foreign := NamedNS(testPrefix + "f-b")
	if err := foreign.create(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = foreign.remove() }()
	ino := foreign.inode()
	s := small(P2P, HostSpec{Name: "a"}, HostSpec{Name: "b"})
	s.Name = "f"
	if _, err := Up(t.Context(), s, Options{Prefix: testPrefix}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want one about the namespace", err)
	}
	if foreign.inode() != ino {
		t.Error("somebody else's namespace was removed")
	}
	if NamedNS(testPrefix + "f-a").Exists() {
		t.Error("the rest was left")
	}
}

// The process that builds is killed in the middle; another one cleans up.
func TestDownAfterKill(t *testing.T) {
	needRoot(t)
	for _, step := range []string{"1", "4", "20"} {
		name := testPrefix + "k" + step
		cmd := exec.Command(self(t), "lab-up", name, step)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		if line != "stalled\n" {
			t.Errorf("the builder says %q", line)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()

		infos, err := List()
		if i := slices.IndexFunc(infos, func(in Info) bool { return in.Name == name }); step != "1" && (err != nil || i < 0 || !infos[i].Stale) {
			t.Errorf("List: %+v, %v; want %s, stale", infos, err, name)
		}
		l, err := Open(name)
		if step == "1" && errors.Is(err, fs.ErrNotExist) {
			continue // it had not begun
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		checkGone(t, l)
	}
}

// Killed between two system calls: a directory without state, a namespace
// file without a namespace.
func TestDownHalfMade(t *testing.T) {
	needRoot(t)
	d, err := makeStateDir(testPrefix + "half")
	if err != nil {
		t.Fatal(err)
	}
	d.unlock()
	l, err := Open(testPrefix + "half")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	checkGone(t, l)

	if d, err = makeStateDir(testPrefix + "half"); err != nil {
		t.Fatal(err)
	}
	n := NamedNS(testPrefix + "half-x")
	if err := prepareNetnsDir(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.Path(), nil, 0); err != nil {
		t.Fatal(err)
	}
	st := &state{Version: 1, Name: testPrefix + "half", BootID: bootID(), Phase: phaseCreating, Namespaces: []nsRecord{{Name: n.Name()}}}
	if err := d.write(st); err != nil {
		t.Fatal(err)
	}
	d.unlock()
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	if n.Exists() {
		t.Error("the file is left")
	}
	checkGone(t, l)
}

// Down says who keeps a namespace alive.
func TestDownReportsProcess(t *testing.T) {
	l := up(t, small(P2P, HostSpec{Name: "a"}, HostSpec{Name: "b"}))
	cmd := l.Host("a").NS.Command(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err := l.Down()
	if err == nil || !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)+" (sleep 60)") {
		t.Errorf("error %v, want one with the process", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	checkGone(t, l)
}

func TestNS(t *testing.T) {
	l := up(t, small(P2P, HostSpec{Name: "a"}, HostSpec{Name: "b"}))
	ns := l.Host("a").NS
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	inside := "net:[" + strconv.FormatUint(ns.inode(), 10) + "]"

	if out, err := ns.Command(t.Context(), "readlink", "/proc/self/ns/net").Output(); err != nil || strings.TrimSpace(string(out)) != inside {
		t.Errorf("a command runs in %s, %v; want %s", out, err, inside)
	}
	var exit *exec.ExitError
	if _, err := ns.Command(t.Context(), "ls", "/no-such-file").Output(); !errors.As(err, &exit) || !strings.Contains(string(exit.Stderr), "no-such-file") {
		t.Errorf("error %v, want an exit with its message", err)
	}
	if err := ns.Sysctl("net.ipv4.conf.eth2.rp_filter", "2"); err != nil {
		t.Error(err)
	}
	if v, err := ns.ReadSysctl("net/ipv4/conf/eth2/rp_filter"); err != nil || v != "2" {
		t.Errorf("rp_filter is %q, %v", v, err)
	}
	if v, err := ns.ReadSysctl("net.ipv6.conf.eth2.accept_dad"); err != nil || v != "0" {
		t.Errorf("accept_dad is %q, %v", v, err)
	}
	if _, err := ns.Dial(t.Context(), "tcp", "localhost:1"); err == nil || !strings.Contains(err.Error(), "literal") {
		t.Errorf("dial by name: %v", err)
	}
	if _, err := ns.Dial(t.Context(), "tcp", "[fe80::1%eth2]:1"); err == nil || !strings.Contains(err.Error(), "index") {
		t.Errorf("dial with a named zone: %v", err)
	}

	// Errors, nesting, FailNow: the thread comes back or dies.
	want := errors.New("mine")
	if err := ns.Do(func() error { return want }); err != want { //nolint:errorlint // unwrapped is the point
		t.Errorf("error %v, want it unchanged", err)
	}
	err = ns.Do(func() error {
		err := l.Host("b").NS.Do(func() error { return nil })
		now, _ := os.Readlink(threadNS)
		if now != inside {
			t.Errorf("after a nested Do in %s, want %s", now, inside)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error after Goexit")
	}
	for range 50 {
		done := make(chan string)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			now, _ := os.Readlink(threadNS)
			done <- now
		}()
		if now := <-done; now != home {
			t.Fatalf("a goroutine finds itself in %s, want %s", now, home)
		}
	}
	if err := NamedNS(testPrefix + "none").Do(func() error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Do where there is nothing: %v", err)
	}
}

func TestDaemon(t *testing.T) {
	l := up(t, small(P2P, HostSpec{Name: "a"}, HostSpec{Name: "b"}))
	ctx := t.Context()
	h := l.Host("a")
	inside := "net:[" + strconv.FormatUint(h.NS.inode(), 10) + "]"

	d, err := h.StartVXBPF(ctx, self(t), "--metrics", "none")
	if err != nil {
		t.Fatal(err)
	}
	if d.Status() != "five networks, all tc" {
		t.Errorf("status %q", d.Status())
	}
	log := string(d.Log())
	if !strings.Contains(log, inside) || !strings.Contains(log, "[--instance "+l.Name+"-a --metrics none "+l.Dir()+"/a.yaml]") {
		t.Errorf("log: %s", log)
	}
	if b, err := os.ReadFile(l.Dir() + "/a.yaml"); err != nil || string(b) != string(h.Config(l.Spec)) {
		t.Errorf("config: %s, %v", b, err)
	}
	infos, _ := List()
	i := slices.IndexFunc(infos, func(in Info) bool { return in.Name == l.Name })
	if i < 0 || len(infos[i].Daemons) != 1 || infos[i].Daemons[0] != (DaemonInfo{"a", l.Name + "-a", d.Pid, true}) {
		t.Errorf("List: %+v", infos)
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if err := d.Stop(); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	if !strings.HasSuffix(string(d.Log()), "stopped\n") {
		t.Errorf("log: %s", d.Log())
	}

	// It ends early: the error has the log of this start only.
	_, err = h.StartVXBPF(ctx, self(t), "--fail")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "the reason it fails") || strings.Contains(err.Error(), "stopped") {
		t.Errorf("error %v", err)
	}
	// It never gets ready: by deadline, and by ctx.
	if _, err = h.Start(ctx, StartOptions{Binary: self(t), Args: []string{"--silent"}, Timeout: 100 * time.Millisecond}); err == nil || !strings.Contains(err.Error(), "not ready within 100ms") {
		t.Errorf("error %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err = h.StartVXBPF(short, self(t), "--silent"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if _, err = h.StartVXBPF(ctx, "/no/such/vxbpf"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if p := processesIn(h.NS.inode()); len(p) != 0 {
		t.Errorf("still running: %v", p)
	}

	d, err = h.StartVXBPF(ctx, self(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(); err != nil {
		t.Error(err)
	}
	select {
	case <-d.Done():
	default:
		t.Error("killed, but not done")
	}

	// Another process takes the lab down: it stops the daemon and unloads.
	mark := filepath.Join(t.TempDir(), "unloaded")
	d, err = h.Start(ctx, StartOptions{Binary: self(t), UnloadArgs: []string{mark}})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(self(t), "lab-down", l.Name).CombinedOutput(); err != nil {
		t.Errorf("lab-down: %v: %s", err, out)
	}
	select {
	case <-d.Done():
	case <-time.After(5 * time.Second):
		t.Error("the daemon lives on")
	}
	if b, err := os.ReadFile(mark); err != nil || string(b) != inside+" "+l.Name+"-a\n" {
		t.Errorf("unload left %q, %v", b, err)
	}
	if err := d.Stop(); err != nil {
		t.Errorf("Stop after the lab is gone: %v", err)
	}
}

// A pid that came round again is somebody else: Down must leave it alone. A
// daemon whose pid was never written down is found by its command line.
func TestDownVerifiesProcess(t *testing.T) {
	l := up(t, small(P2P, HostSpec{Name: "a"}, HostSpec{Name: "b"}))
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	p, err := processOf(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p.Start--
	d, err := l.Host("b").StartVXBPF(t.Context(), self(t))
	if err != nil {
		t.Fatal(err)
	}
	err = l.update(func(st *state) error {
		st.Daemons[0].Process = process{}
		st.Daemons = append(st.Daemons, daemonRecord{ID: 9, Host: "a", Instance: l.Name + "-a", Argv: []string{"/no/such/vxbpf"}, Process: p})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	if now, err := processOf(other.Process.Pid); err != nil || now.Start != p.Start+1 {
		t.Errorf("Down ended a process that was not its: %v", err)
	}
	select {
	case <-d.Done():
	case <-time.After(5 * time.Second):
		t.Error("the daemon without a pid lives on")
	}
}

// Several labs at once, with the same addresses.
func TestParallelLabs(t *testing.T) {
	for i := range 4 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			s := small(P2P, HostSpec{Name: "a", KernelVXLAN: true}, HostSpec{Name: "b", KernelVXLAN: true})
			s.Name = "p" + strconv.Itoa(i)
			l := up(t, s)
			r, err := Ping(t.Context(), l.Container("a", "mgmt-1").NS, l.Container("b", "mgmt-1").Addr.Addr(), PingOptions{Interval: time.Millisecond})
			if err != nil || !r.OK() {
				t.Errorf("%v, %v", r, err)
			}
		})
	}
}

func setLink(t *testing.T, ns NS, name string, up bool) {
	t.Helper()
	err := ns.withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if up {
			return h.LinkSetUp(link)
		}
		return h.LinkSetDown(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}
