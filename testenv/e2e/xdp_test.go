// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// XDP where the config forces it. The underlay is a veth pair, where native XDP
// costs more than it gives: what is tested is that it is right.
//
//	h1  mgmt-1, mgmt-2, tap -- br-mgmt -- eth2 (vx_xdp_decap) -- p-h1 ┐
//	h2  mgmt-1, mgmt-2      -- br-mgmt -- eth2 (vx_xdp_decap) -- p-h2 ┼ sw0
//	x   stranger                          eth2               -- p-x  ┘
func xdpSpec() testenv.Spec {
	s := strangerSpec(false)
	for i := range s.Hosts[:2] {
		s.Hosts[i].Datapath = testenv.XDP
	}
	return s
}

// xdpOf is what status says of XDP at a device of a host.
func (w *world) xdpOf(host, device string) (program, reason string) {
	w.t.Helper()
	s, _ := w.status(host)
	for _, x := range s.XDP {
		if x.Device == device {
			return x.Program, x.Reason
		}
	}
	return "", "status does not name " + device
}

func (w *world) gro(ns testenv.NS, dev string, on bool) {
	w.t.Helper()
	err := ns.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		return e.Change(dev, map[string]bool{"rx-gro": on})
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// tapOn makes a tap and plugs it into br-mgmt; what is read from it came out of the bridge.
func (w *world) tapOn(host, name string) *os.File {
	w.t.Helper()
	var f *os.File
	err := w.Host(host).NS.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { f.Close() })
	for _, args := range [][]string{{"link", "set", name, "mtu", "1450", "master", "br-mgmt", "up"}} {
		if out, err := w.Host(host).NS.Command(w.ctx, "ip", args...).CombinedOutput(); err != nil {
			w.t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
	return f
}

func (w *world) hook(host, hook, reason string) uint64 {
	w.t.Helper()
	return w.network(host, "mgmt").Reasons[hook][reason].Packets
}

func TestXDP(t *testing.T) {
	t.Parallel()
	w := up(t, xdpSpec(), true)
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	for _, h := range []string{"h1", "h2"} {
		if n := w.network(h, "mgmt"); n.Datapath != "xdp" {
			t.Errorf("%s is on %s: %s", h, n.Datapath, n.Reason)
		}
		if p, why := w.xdpOf(h, "eth2"); p != "vx_xdp_decap" || !strings.Contains(why, "datapath: xdp; it turns segmentation") {
			t.Errorf("XDP on eth2 of %s: %q, %q", h, p, why)
		}
	}
	w.allTraffic()

	// Sockets leave their checksums to the device: no such frame takes the short way, and each arrives.
	w.gro(b.NS, "eth0", true)
	w.gro(a.NS, "eth0", true)
	w.wait("the ports to take raw frames", func() bool {
		r, err := testenv.Datagrams(w.ctx, a.NS, b.NS, b.Addr.Addr(), testenv.DatagramOptions{Count: 50, Sizes: []int{300}})
		if err != nil || !r.OK() {
			t.Fatalf("datagrams: %v %v", r, err)
		}
		return w.hook("h2", "xdp_decap", "inner_csum") > 0
	})
	w.allTraffic()

	// A VM sends and receives frames that are complete. A veth takes raw frames where its far end has GRO.
	w.gro(w.SwitchNS(), "p-h1", true)
	tap := w.tapOn("h1", "tap0")
	vm := fdb.MAC{2, 0, 0, 0, 7, 7}
	var program, reason string
	w.settle(func() bool { program, reason = w.xdpOf("h1", "tap0"); return program != "" })
	if program != "vx_xdp_encap" {
		t.Fatalf("XDP on the tap: %q, %q", program, reason)
	}
	arrived := func(rec *testenv.Recorder, n uint32) int {
		got := 0
		for _, f := range rec.Frames() {
			if bytes.Contains(f.Data, marked(n)) {
				got++
			}
		}
		return got
	}
	rec, err := testenv.Capture(w.ctx, b.NS, "eth0", func(b []byte) bool { return bytes.Contains(b, mark) })
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	w.wait("frames of the tap by XDP", func() bool {
		frame := udpFrame(b.MAC, vm, sent)
		if _, err := tap.Write(frame); err != nil {
			t.Fatal(err)
		}
		sent++
		time.Sleep(10 * time.Millisecond)
		return w.hook("h1", "xdp_encap", "fast") >= 20
	})
	w.settle(func() bool { return arrived(rec, 7) >= sent })
	if got := arrived(rec, 7); got != sent {
		t.Errorf("%d of %d frames of the tap arrived", got, sent)
	}
	if _, err := rec.Stop(); err != nil {
		t.Fatal(err)
	}
	// And back: into the tap, from a raw socket, whose frames are complete.
	sent = 0
	got := 0
	buf := make([]byte, 4096)
	read := func() {
		for {
			n, err := tap.Read(buf)
			if err != nil {
				return
			}
			if bytes.Contains(buf[:n], marked(7)) {
				got++
			}
		}
	}
	if err := tap.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Logf("tap: %v", err)
	}
	w.wait("frames into the tap by XDP", func() bool {
		if err := testenv.SendFrame(b.NS, "eth0", udpFrame(vm, b.MAC, sent)); err != nil {
			t.Fatal(err)
		}
		sent++
		_ = tap.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		read()
		return w.hook("h1", "xdp_decap", "fast") >= 20
	})
	_ = tap.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	read()
	if got != sent {
		t.Errorf("%d of %d frames came out of the tap", got, sent)
	}

	// The forged packet dies first.
	plain := map[string][][]byte{"plain": w.ways(236, b.MAC)["plain"]}
	if got := w.forge(plain); len(got) != 0 || w.hook("h1", "xdp_decap", "drop_stranger") != 1 {
		t.Errorf("a forged packet arrived %v, XDP dropped %d", got, w.hook("h1", "xdp_decap", "drop_stranger"))
	}
	if got := w.forge(w.ways(236, b.MAC)); len(got) != 0 {
		t.Errorf("forged packets arrived: %q", got)
	}

	// Without a daemon it goes on; a new one replaces the programs in place; unload takes them off.
	d := w.daemonOf("h1")
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	w.allTraffic()
	if got := w.forge(plain); len(got) != 0 {
		t.Errorf("a forged packet arrived after the daemon's death")
	}
	w.start("h1")
	w.allTraffic()
	if out, errOut, code := w.vxbpf("h1", "unload"); code != 0 {
		t.Fatalf("unload: exit %d\n%s%s", code, out, errOut)
	}
	w.kernel(w.Host("h1").NS, func(h *kernel.Handle) error {
		ls, err := h.Links()
		for _, l := range ls {
			if x, xerr := h.XDPOf(l); xerr == nil && x.Program != 0 {
				t.Errorf("%s still carries XDP program %d", l.Name, x.Program)
			}
		}
		return err
	})
}

// udpFrame is a datagram whose checksum is right.
func udpFrame(dst, src fdb.MAC, n int) []byte {
	b := ether(dst, src, 0x0800, 100)
	_, after, _ := bytes.Cut(b, mark)
	copy(b[len(b)-len(after)-len(mark):], marked(7))
	b[len(b)-1] = byte(n)
	ip, udp := b[14:34], b[34:]
	sum := onesSum(ip[12:20]) + 17 + uint32(len(udp)) + onesSum(udp)
	if len(udp)%2 == 1 {
		sum += uint32(udp[len(udp)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	udp[6], udp[7] = byte(^sum>>8), byte(^sum)
	return b
}

// auto leaves a veth alone, says why, and never takes another program's place, not by force either.
func TestXDPLeavesAlone(t *testing.T) {
	t.Parallel()
	spec := xdpSpec()
	spec.Hosts[0].Datapath = testenv.Auto
	w := up(t, spec, false)
	var other link.Link
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "other", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	w.kernel(w.Host("h2").NS, func(h *kernel.Handle) error {
		l, ok, err := h.LinkByName("eth2")
		if err == nil && !ok {
			err = errors.New("find eth2: not there")
		}
		if err != nil {
			return err
		}
		other, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: l.Index, Flags: link.XDPDriverMode})
		return err
	})
	w.start("h1")
	w.start("h2")
	w.containerTraffic()
	if p, why := w.xdpOf("h1", "eth2"); p != "" || !strings.Contains(why, "segmentation") {
		t.Errorf("auto on a veth: %q, %q", p, why)
	}
	if n := w.network("h1", "mgmt"); n.Datapath != "tc" {
		t.Errorf("h1 is on %s", n.Datapath)
	}
	p, why := w.xdpOf("h2", "eth2")
	if p != "" || !strings.Contains(why, "another XDP program") {
		t.Errorf("force, with another program there: %q, %q", p, why)
	}
	info, err := other.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := prog.Info()
	if pid, ok := id.ID(); !ok || info.Program != pid {
		t.Errorf("the other program was replaced: %v, want %v", info.Program, pid)
	}
	// Its place is free: ours takes it at the next look.
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	w.waitFor(40*time.Second, "XDP on eth2 of h2", func() bool { p, _ := w.xdpOf("h2", "eth2"); return p == "vx_xdp_decap" })
	w.containerTraffic()
}
