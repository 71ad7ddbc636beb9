// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// `vxbpf capture`, with tshark as the reader of what it writes:
//
//	h1  mgmt-1 -- br-mgmt -- eth2 ┐
//	h2  mgmt-1 -- br-mgmt -- eth2 ┼ sw0
//	h3  stranger             eth2 ┘
//
// capturer is a running `vxbpf capture`.
type capturer struct {
	w    *world
	host string
	cmd  *testenv.Cmd
	mu   sync.Mutex
	out  bytes.Buffer
	err  bytes.Buffer
	done chan error
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// capture starts one and returns when its programs are in place.
func (w *world) capture(host string, args ...string) *capturer {
	w.t.Helper()
	h := w.Host(host)
	c := &capturer{w: w, host: host, done: make(chan error, 1)}
	c.cmd = h.NS.Command(w.ctx, w.bin, append([]string{"--instance", h.Instance(), "capture"}, args...)...)
	c.cmd.Stdout, c.cmd.Stderr = lockedWriter{&c.mu, &c.out}, lockedWriter{&c.mu, &c.err}
	if err := c.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { c.done <- c.cmd.Wait() }()
	w.wait("the capture's programs", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return strings.Contains(c.err.String(), "capturing at")
	})
	return c
}

// stop ends it with a signal and returns what it wrote.
func (c *capturer) stop(s os.Signal) (stdout []byte, stderr string, err error) {
	c.w.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.w.t.Fatal(err)
	}
	select {
	case err = <-c.done:
	case <-time.After(15 * time.Second):
		c.w.t.Fatal("the capture does not end")
	}
	return c.out.Bytes(), c.err.String(), err
}

// tshark reads fields of all packets of a file, a line for each.
func tshark(t *testing.T, file, filter string, fields ...string) (lines [][]string) {
	t.Helper()
	args := []string{"-r", file, "-T", "fields", "-E", "occurrence=a", "-E", "separator=|"}
	if filter != "" {
		args = append(args, "-Y", filter)
	}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "tshark", args...).Output()
	if err != nil {
		t.Fatalf("tshark %s: %v", strings.Join(args, " "), err)
	}
	for l := range strings.Lines(string(out)) {
		lines = append(lines, strings.Split(strings.TrimRight(l, "\n"), "|"))
	}
	return lines
}

// copying counts the hooks of a host whose program copies packets, and all.
func (w *world) copying(host string) (n, all int) {
	w.t.Helper()
	err := w.Host(host).NS.Do(func() error {
		dir := filepath.Join("/sys/fs/bpf/vxbpf", w.Host(host).Instance(), "links")
		files, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			l, err := link.LoadPinnedLink(filepath.Join(dir, f.Name()), nil)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			info, err := l.Info()
			if err := errors.Join(err, l.Close()); err != nil {
				return err
			}
			p, err := ebpf.NewProgramFromID(info.Program)
			if err != nil {
				continue // replaced while we looked
			}
			pi, err := p.Info()
			if err := errors.Join(err, p.Close()); err != nil {
				return err
			}
			all++
			ids, _ := pi.MapIDs()
			for _, id := range ids {
				m, err := ebpf.NewMapFromID(id)
				if err != nil {
					continue
				}
				mi, err := m.Info()
				if err := errors.Join(err, m.Close()); err != nil {
					return err
				}
				if mi.Name == "vx_capture" {
					n++
				}
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n, all
}

// sh runs a command of words in a namespace.
func (w *world) sh(ns testenv.NS, command string) {
	w.t.Helper()
	f := strings.Fields(command)
	if out, err := ns.Command(w.ctx, f[0], f[1:]...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v: %s", command, err, out)
	}
}

// inject sends a VXLAN packet to h1 from a host's own address.
func (w *world) inject(host string, vni byte, inner []byte) {
	w.t.Helper()
	c, err := w.Host(host).NS.Dial(w.ctx, "udp", net.JoinHostPort(w.Host("h1").Address.String(), "4789"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(append([]byte{8, 0, 0, 0, 0, 0, vni, 0}, inner...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) ordinary(when, host string) {
	w.t.Helper()
	if n, all := w.copying(host); n != 0 || all == 0 {
		w.t.Errorf("%s: %d of %d programs of %s copy packets", when, n, all, host)
	}
}

// warm waits until pings between the containers are on the fast path both ways.
func (w *world) warm() (from, to *testenv.Container) {
	w.t.Helper()
	from, to = w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.wait("both MAC addresses on the fast path", func() bool {
		a, b := w.network("h1", "mgmt").Sent.Fast, w.network("h1", "mgmt").Received.Fast
		w.ping(from.NS, to.Addr.Addr())
		n := w.network("h1", "mgmt")
		return n.Sent.Fast >= a+3 && n.Received.Fast >= b+3
	})
	return from, to
}

// repinged waits until pings are on the fast path again, as warm does, without a capture of them being of interest.
func (w *world) repinged(from testenv.NS, to *testenv.Container) {
	w.t.Helper()
	w.wait("the fast path again", func() bool {
		n := w.network("h1", "mgmt")
		if r, err := testenv.Ping(w.ctx, from, to.Addr.Addr(), testenv.PingOptions{Count: 3, Interval: time.Millisecond}); err != nil || !r.OK() {
			return false
		}
		m := w.network("h1", "mgmt")
		return m.Sent.Fast >= n.Sent.Fast+3 && m.Received.Fast >= n.Received.Fast+3
	})
}

func TestCapture(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Fatal("tshark is missing: make deps installs it")
	}
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}, testenv.HostSpec{Name: "h3", Stranger: true}), true)
	from, to := w.warm()

	// Every echo at each hook once, as it comes and as it goes, inner and outer decoded, with the verdict.
	t.Run("ping", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "x.pcapng")
		c := w.capture("h1", "-w", file, "--network", "mgmt", "icmp")
		const pings = 20
		r, err := testenv.Ping(w.ctx, from.NS, to.Addr.Addr(), testenv.PingOptions{Count: pings, Interval: 5 * time.Millisecond})
		if err != nil || !r.OK() {
			t.Fatalf("ping while capturing: %s %v", r, err)
		}
		_, msg, err := c.stop(os.Interrupt)
		if err != nil || !strings.Contains(msg, "0 lost") {
			t.Errorf("capture: %v\n%s", err, msg)
		}
		w.ordinary("capture has ended", "h1")

		type seen struct{ dev, typ, seq string }
		times := map[seen]int{}
		port := "v-mgmt-1"
		for _, f := range tshark(t, file, "", "frame.interface_name", "icmp.type", "icmp.seq", "ip.src", "vxlan.vni", "frame.comment", "frame.packet_flags_direction") {
			dev, typ, seq, src, vni, comment := f[0], f[1], f[2], f[3], f[4], f[5]
			times[seen{dev, typ, seq}]++
			outer := dev == "encap:"+port+":out" || dev == "decap:eth2"
			wantSrc := map[string]string{"8": from.Addr.Addr().String(), "0": to.Addr.Addr().String()}[typ]
			if outer {
				wantSrc = map[string]string{"8": "192.0.2.11", "0": "192.0.2.12"}[typ] + "," + wantSrc
			}
			if src != wantSrc || (vni == "236") != outer {
				t.Errorf("%s: sources %s, VNI %q; want %s", dev, src, vni, wantSrc)
			}
			hook, _, _ := strings.Cut(dev, ":")
			want := fmt.Sprintf("network=mgmt vni=236 hook=%s dev=%s fate=fast reason=fast", hook, map[string]string{"encap": port, "decap": "eth2"}[hook])
			if strings.HasSuffix(dev, ":out") {
				want += " out"
			}
			if comment != want {
				t.Errorf("%s: comment %q, want %q", dev, comment, want)
			}
		}
		if len(times) != 4*pings {
			t.Errorf("%d different packets, want %d: %v", len(times), 4*pings, times)
		}
		for s, n := range times {
			if n != 1 {
				t.Errorf("%+v was captured %d times", s, n)
			}
		}
	})

	// What the kernel takes, with its reason; on the standard output, which closes early.
	t.Run("slow path", func(t *testing.T) {
		c := w.capture("h1", "-w", "-", "--fate", "kernel", "--hook", "encap,moved", "arp")
		s, err := testenv.PacketSocket(from.NS, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		arp := append(bytes.Repeat([]byte{0xff}, 6), from.MAC[:]...)
		arp = append(arp, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
		arp = append(append(arp, from.MAC[:]...), 172, 29, 236, 11, 0, 0, 0, 0, 0, 0, 172, 29, 236, 99)
		if err := s.Send(arp); err != nil {
			t.Fatal(err)
		}
		w.wait("the packet", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return bytes.Contains(c.out.Bytes(), []byte("moved:encap-mgmt"))
		})
		out, msg, err := c.stop(unix.SIGTERM)
		if err != nil {
			t.Errorf("capture: %v\n%s", err, msg)
		}
		file := filepath.Join(t.TempDir(), "x.pcapng")
		if err := os.WriteFile(file, out, 0o600); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range tshark(t, file, "arp.dst.proto_ipv4 == 172.29.236.99", "frame.interface_name", "frame.comment") {
			got = append(got, strings.Join(f, " "))
		}
		want := []string{
			"encap:v-mgmt-1 network=mgmt vni=236 hook=encap dev=v-mgmt-1 fate=kernel reason=bum",
			"moved:encap-mgmt network=mgmt vni=236 hook=moved dev=encap-mgmt fate=kernel",
		}
		if !slices.Equal(got, want) {
			t.Errorf("captured\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})

	// A packet that a host forges which is no VTEP: dropped, and seen with its reason, inner and outer.
	t.Run("forged", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "x.pcapng")
		c := w.capture("h1", "-w", file, "--fate", "drop")
		const packets = 3
		for range packets {
			w.inject("h3", 236, ether(from.MAC, to.MAC, 0x88b5, 60))
		}
		w.wait("the drops", func() bool { return w.network("h1", "mgmt").Reasons["decap"]["drop_stranger"].Packets >= packets })
		if _, msg, err := c.stop(os.Interrupt); err != nil || !strings.Contains(msg, "0 lost") {
			t.Errorf("capture: %v\n%s", err, msg)
		}
		var got []string
		for _, f := range tshark(t, file, "", "frame.interface_name", "ip.src", "ip.dst", "vxlan.vni", "eth.src", "frame.comment") {
			got = append(got, strings.Join(f, " "))
		}
		h3, h1 := w.Host("h3"), w.Host("h1")
		want := fmt.Sprintf("decap:eth2 %v %v 236 %s,%v network=mgmt vni=236 hook=decap dev=eth2 fate=drop reason=drop_stranger", h3.Address, h1.Address, "*", to.MAC)
		if len(got) != packets {
			t.Errorf("captured %d packets, want %d:\n%s", len(got), packets, strings.Join(got, "\n"))
		}
		for _, g := range got {
			// The outer source MAC is the device's: not of interest.
			f := strings.Fields(g)
			if len(f) > 4 {
				_, inner, _ := strings.Cut(f[4], ",")
				f[4] = "*," + inner
			}
			if strings.Join(f, " ") != want {
				t.Errorf("captured\n%s\nwant\n%s", g, want)
			}
		}
	})

	t.Run("lines and limits", func(t *testing.T) {
		c := w.capture("h2", "--count", "2", "--duration", "20s", "--inner", "icmp", "--outer", "host 192.0.2.11")
		w.ping(from.NS, to.Addr.Addr())
		if err := <-c.done; err != nil {
			t.Errorf("capture: %v\n%s", err, c.err.String())
		}
		c.done <- nil
		out, _, _ := c.stop(os.Interrupt)
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "decap@eth2 fast") || !strings.Contains(lines[0], "172.29.236.11 > 172.29.236.21 icmp echo request") ||
			!strings.Contains(lines[0], "[192.0.2.11 > 192.0.2.12]") {
			t.Errorf("printed\n%s", out)
		}
		w.ordinary("the count was reached", "h2")
	})

	// One at a time; and the daemon leaves its programs alone for more than a few of its rounds, also at a new port.
	t.Run("beside the daemon", func(t *testing.T) {
		c := w.capture("h1")
		if _, msg, code := w.vxbpf("h1", "capture"); code != 1 || !strings.Contains(msg, "one at a time") {
			t.Errorf("a second capture: exit %d, %s", code, msg)
		}
		if n, all := w.copying("h1"); n != all || n < 5 {
			t.Errorf("%d of %d programs copy packets", n, all)
		}
		w.sh(w.Host("h1").NS, "ip link add extra type veth peer name extra2")
		w.sh(w.Host("h1").NS, "ip link set extra master br-mgmt up")
		w.wait("the new port's program to copy packets", func() bool {
			n, all := w.copying("h1")
			return n == all && n >= 6
		})
		w.sh(w.Host("h1").NS, "ip link del extra")
		time.Sleep(1500 * time.Millisecond)
		if n, all := w.copying("h1"); n != all || n < 5 {
			t.Errorf("after a while %d of %d programs copy packets", n, all)
		}
		if _, msg, err := c.stop(os.Interrupt); err != nil {
			t.Errorf("capture: %v\n%s", err, msg)
		}
		w.ordinary("capture has ended", "h1")
	})

	// A running capture is no drift, and nothing that the daemon does breaks it: verify, a repair, another config, its
	// own end and the next one's start. After each of them a ping shows as before.
	t.Run("through repair, reload, restart", func(t *testing.T) {
		w := w.in(t)
		c := w.capture("h1", "--network", "mgmt", "icmp")
		lines := func(what string) int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return strings.Count(c.out.String(), what)
		}
		seen := func(when string) {
			t.Helper()
			w.wait("the capture's programs at each hook "+when, func() bool { n, all := w.copying("h1"); return n == all && n >= 5 })
			const request, reply = "encap@v-mgmt-1 fast", "decap@eth2 fast"
			// What was captured before is still being written.
			a, b := lines(request), lines(reply)
			for still := 0; still < 5; still++ {
				time.Sleep(100 * time.Millisecond)
				if n, m := lines(request), lines(reply); n != a || m != b {
					a, b, still = n, m, 0
				}
			}
			w.ping(from.NS, to.Addr.Addr())
			w.wait("the echoes "+when, func() bool { return lines(request) >= a+3 && lines(reply) >= b+3 })
			if out, msg, code := w.vxbpf("h1", "verify"); code != 0 {
				t.Errorf("verify %s: exit %d\n%s%s", when, code, out, msg)
			}
			if n, m := lines(request), lines(reply); n != a+3 || m != b+3 {
				t.Errorf("%s 3 echoes were seen %d and %d times", when, n-a, m-b)
			}
		}
		before, _ := w.status("h1")
		seen("at first")
		time.Sleep(1200 * time.Millisecond) // a round of the daemon
		if s, _ := w.status("h1"); s.Repairs.Repaired != before.Repairs.Repaired || s.Repairs.Reported != before.Repairs.Reported {
			t.Errorf("the daemon takes a capture for drift: %+v, before %+v", s.Repairs, before.Repairs)
		}

		w.sh(w.Host("h1").NS, "ip link set encap-mgmt nomaster")
		w.wait("the repair of the port", func() bool { s, _ := w.status("h1"); return s.Repairs.Repaired > before.Repairs.Repaired })
		w.repinged(from.NS, to)
		seen("after a repair of links")

		// Somebody takes a program off: the daemon attaches its own, and the capture takes its place.
		h := w.Host("h1")
		w.must(os.Remove(filepath.Join("/sys/fs/bpf/vxbpf", h.Instance(), "links", fmt.Sprintf("vx_tc_encap-%d-ingress", w.link("h1", "v-mgmt-1").Index))))
		w.wait("the hook", func() bool { n, all := w.copying("h1"); return n == all && n >= 5 })
		w.repinged(from.NS, to)
		seen("after a repair of hooks")

		file := filepath.Join(t.TempDir(), "other.yaml")
		config := bytes.Replace(h.Config(w.Spec), []byte("ttl: 5"), []byte("ttl: 9"), 1)
		if err := os.WriteFile(file, config, 0o600); err != nil {
			t.Fatal(err)
		}
		if l := w.reload("h1", file); !l.Changes {
			t.Error("the reload changed nothing")
		}
		w.repinged(from.NS, to)
		seen("after a reload")

		if err := w.daemons["h1"].Stop(); err != nil {
			t.Fatal(err)
		}
		w.ping(from.NS, to.Addr.Addr())
		w.start("h1")
		w.repinged(from.NS, to)
		seen("after a restart")

		if _, msg, err := c.stop(os.Interrupt); err != nil || !strings.Contains(msg, "0 lost") {
			t.Errorf("capture: %v\n%s", err, msg)
		}
		w.ordinary("capture has ended", "h1")
		if out, msg, code := w.vxbpf("h1", "verify"); code != 0 {
			t.Errorf("verify after it all: exit %d\n%s%s", code, out, msg)
		}
	})

	// However it ends, ordinary programs come back, and no packet is lost on the way there or back.
	t.Run("killed", func(t *testing.T) {
		s, err := testenv.StartStream(w.ctx, from.NS, to.NS, to.Addr.Addr(), testenv.StreamOptions{Rate: 2000})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			c := w.capture("h1", "-w", filepath.Join(t.TempDir(), "x.pcapng"))
			_, _, _ = c.stop(unix.SIGKILL)
			w.waitFor(4*time.Second, "the daemon's programs", func() bool { n, _ := w.copying("h1"); return n == 0 })
			c = w.capture("h1", "-s", "96", "--fate", "drop")
			_, _, _ = c.stop(os.Interrupt)
			w.ordinary("capture has ended", "h1")
		}
		if r := s.Stop(); r.Lost > 0 || r.Reordered > 0 || r.Received < 1000 {
			t.Errorf("stream through six captures: %v", r)
		}
	})

	// Without a daemon the capture does it all by itself; a killed one leaves programs that copy nothing.
	t.Run("no daemon", func(t *testing.T) {
		s, _ := w.status("h1")
		if err := unix.Kill(s.Daemon, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.wait("the end of the daemon", func() bool { s, _ := w.status("h1"); return s.Daemon == 0 })
		c := w.capture("h1", "icmp")
		w.ping(from.NS, to.Addr.Addr())
		if out, msg, err := c.stop(os.Interrupt); err != nil || bytes.Count(out, []byte("echo request")) != 3 {
			t.Errorf("capture: %v\n%s%s", err, out, msg)
		}
		w.ordinary("capture has ended", "h1")
		c = w.capture("h1", "icmp")
		_, _, _ = c.stop(unix.SIGKILL)
		if n, all := w.copying("h1"); n != all {
			t.Errorf("%d of %d programs are the killed capture's", n, all)
		}
		w.ping(from.NS, to.Addr.Addr())
		if _, msg, code := w.vxbpf("h1", "capture", "--stop"); code != 0 || !strings.Contains(msg, "ordinary programs put back at") {
			t.Errorf("capture --stop: exit %d, %s", code, msg)
		}
		w.ordinary("capture --stop", "h1")
		// A load takes a killed capture's place, too.
		c = w.capture("h1")
		_, _, _ = c.stop(unix.SIGKILL)
		w.start("h1")
		w.ordinary("load", "h1")
		w.ping(from.NS, to.Addr.Addr())
	})

	t.Run("unload", func(t *testing.T) {
		c := w.capture("h2")
		if _, msg, code := w.vxbpf("h2", "unload"); code != 0 {
			t.Errorf("unload: exit %d, %s", code, msg)
		}
		select {
		case err := <-c.done:
			if err == nil || !strings.Contains(c.err.String(), "unloaded or replaced") {
				t.Errorf("capture ended with %v\n%s", err, c.err.String())
			}
		case <-time.After(10 * time.Second):
			t.Error("capture goes on without a data path")
			_ = c.cmd.Process.Kill()
		}
		if _, msg, code := w.vxbpf("h2", "capture"); code != 1 || !strings.Contains(msg, "nothing is loaded") {
			t.Errorf("capture after unload: exit %d, %s", code, msg)
		}
	})
}

// XDP programs look at packets before all others: capture shows them there too, show attachments lists them, and trace
// says that it does not walk through them.
func TestCaptureXDP(t *testing.T) {
	t.Parallel()
	w := up(t, xdpSpec(), true)
	from, to := w.warm()
	attached := func() (a attachRow) {
		for _, row := range w.showJSON("h1", "attachments").Attachments {
			if row.Program == "vx_xdp_decap" {
				a = row
			}
		}
		return a
	}
	ordinary := attached()
	if ordinary.Device != "eth2" || ordinary.Mode != "xdp" || ordinary.State != "attached" || !slices.Equal(ordinary.Networks, []string{"mgmt"}) || ordinary.ID == 0 {
		t.Errorf("show attachments: %+v", ordinary)
	}
	c := w.capture("h1", "--network", "mgmt")
	if a := attached(); a.ID == ordinary.ID || a.State != "attached" {
		t.Errorf("while a capture runs: %+v, before %+v", a, ordinary)
	}
	time.Sleep(1500 * time.Millisecond) // rounds of the daemon
	w.ping(from.NS, to.Addr.Addr())
	w.inject("x", 236, ether(from.MAC, to.MAC, 0x88b5, 60))
	var out string
	count := func(what string) int { return strings.Count(out, what) }
	w.wait("the echoes and the forged packet", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		out = c.out.String()
		return count("xdp_decap@eth2 drop") > 0 && count("encap@v-mgmt-1 fast") >= 3
	})
	if _, msg, err := c.stop(os.Interrupt); err != nil || !strings.Contains(msg, "0 lost") {
		t.Errorf("capture: %v\n%s", err, msg)
	}
	out = c.out.String()
	// A veth without GRO behind it takes no raw frames: XDP lets the reply up, and tc carries it.
	echoes := map[string]int{}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "icmp echo reply") {
			f := strings.Fields(line)
			echoes[strings.Join(f[2:4], " ")]++
		}
	}
	if echoes["xdp_decap@eth2 kernel(port_kind)"] != 3 || echoes["decap@eth2 fast"] != 3 || len(echoes) != 2 {
		t.Errorf("3 replies were seen %v\n%s", echoes, out)
	}
	if n := count("xdp_decap@eth2 drop"); n != 1 || count("drop_stranger") != 1 {
		t.Errorf("the forged packet was seen %d times\n%s", n, out)
	}
	w.ordinary("capture has ended", "h1")
	if a := attached(); a.ID != ordinary.ID {
		t.Errorf("after the capture: %+v, before %+v", a, ordinary)
	}
	text, msg, code := w.vxbpf("h1", "trace", "--explain", "--from", to.MAC.String(), "--to", from.MAC.String())
	if code != 0 || !strings.Contains(text, "vx_xdp_decap looks at each packet of eth2 before this") {
		t.Errorf("trace: exit %d\n%s%s", code, text, msg)
	}
	if out, msg, code := w.vxbpf("h1", "verify"); code != 0 {
		t.Errorf("verify: exit %d\n%s%s", code, out, msg)
	}
}

// The same by clsact, and on a host whose network BPF does not carry.
func TestCaptureClsact(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2", Datapath: testenv.Kernel}), false)
	w.start("h1", "--attach", "clsact")
	w.start("h2")
	from, to := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.wait("the fast path", func() bool {
		a := w.network("h1", "mgmt").Sent.Fast
		w.ping(from.NS, to.Addr.Addr())
		return w.network("h1", "mgmt").Sent.Fast >= a+3
	})
	c := w.capture("h1", "icmp")
	w.ping(from.NS, to.Addr.Addr())
	time.Sleep(1500 * time.Millisecond) // rounds of the daemon
	w.ping(from.NS, to.Addr.Addr())
	if out, msg, err := c.stop(os.Interrupt); err != nil || bytes.Count(out, []byte("encap@v-mgmt-1 fast")) != 6 {
		t.Errorf("capture: %v\n%s%s", err, out, msg)
	}
	c = w.capture("h1", "icmp")
	w.ping(from.NS, to.Addr.Addr())
	if out, msg, err := c.stop(os.Interrupt); err != nil || bytes.Count(out, []byte("encap@v-mgmt-1 fast")) != 3 {
		t.Errorf("a second capture: %v\n%s%s", err, out, msg)
	}
	// There only the source check is ours, at the underlay.
	if _, msg, code := w.vxbpf("h2", "capture", "--duration", "100ms"); code != 0 || !strings.Contains(msg, "capturing at 1 hooks") {
		t.Errorf("capture on kernel vxlan: exit %d, %s", code, msg)
	}
}
