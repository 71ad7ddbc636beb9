// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Traffic is tested between two hosts on the underlay.
func underlay(t *testing.T) (a, b *Host) {
	t.Helper()
	l := up(t, Spec{Name: "u", Hosts: []HostSpec{{Name: "a"}, {Name: "b"}}})
	return l.Host("a"), l.Host("b")
}

func TestStream(t *testing.T) {
	a, b := underlay(t)
	s, err := StartStream(t.Context(), a.NS, b.NS, b.Address, StreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	r := s.Stop()
	t.Log(r)
	if r.Lost != r.ReceiverDrops || r.Duplicates != 0 || r.Reordered != 0 || r.Received < 300 || r.Sent > 6000 {
		t.Errorf("%+v", r)
	}
	if again := s.Stop(); again != r {
		t.Errorf("second Stop: %+v", again)
	}

	// A hole of 200 ms shows as a gap. How many packets it costs is the kernel's
	// affair: some wait for ARP, and it may take a second until the link is back.
	if s, err = StartStream(t.Context(), a.NS, b.NS, b.Address, StreamOptions{Rate: 1000}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	setLink(t, b.NS, "eth2", false)
	time.Sleep(200 * time.Millisecond)
	setLink(t, b.NS, "eth2", true)
	before := s.Received()
	for end := time.Now().Add(5 * time.Second); s.Received() == before && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	r = s.Stop()
	t.Log(r)
	if r.LongestLoss > r.Lost || r.LongestGap < 150*time.Millisecond || r.Received == 0 {
		t.Errorf("%+v", r)
	}

	ctx, cancel := context.WithCancel(t.Context())
	if s, err = StartStream(ctx, a.NS, b.NS, b.Address, StreamOptions{Rate: 1000}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if r := s.Stop(); r.Lost != 0 {
		t.Errorf("%+v", r)
	}
}

// Bookkeeping without a network.
func TestStreamCount(t *testing.T) {
	s := &Stream{o: StreamOptions{Rate: 1000, MaxDuration: time.Second}}
	now := time.Now()
	for i, seq := range []uint64{0, 1, 3, 2, 2, 6, 1 << 40} {
		s.count(seq, now.Add(time.Duration(i)*time.Second))
	}
	if r := s.res; r.Received != 5 || r.Reordered != 1 || r.Duplicates != 1 || r.LongestGap != 2*time.Second {
		t.Errorf("%+v", r)
	}
}

func TestTransferFails(t *testing.T) {
	a, b := underlay(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	setLink(t, b.NS, "eth2", false)
	start := time.Now()
	if r, err := Transfer(ctx, a.NS, b.NS, b.Address, 1<<20, 1); err == nil || r.Match {
		t.Errorf("over a dead link: %+v, %v", r, err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("gave up after %s", d)
	}
	// Cut while it runs. The kernel may take a second to notice that the link is back.
	setLink(t, b.NS, "eth2", true)
	for range 50 {
		if r, err := Ping(t.Context(), a.NS, b.Address, PingOptions{Count: 1, Timeout: 100 * time.Millisecond}); err == nil && r.OK() {
			break
		}
	}
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if r, err := Transfer(ctx, a.NS, b.NS, b.Address, 1<<40, 1); !errors.Is(err, context.DeadlineExceeded) || r.Match || r.Bytes == 0 {
		t.Errorf("cut off: %+v, %v", r, err)
	}
	if r, err := Transfer(t.Context(), a.NS, b.NS, b.Address, 0, 1); err != nil || !r.Match {
		t.Errorf("empty: %+v, %v", r, err)
	}
	one, _ := Transfer(t.Context(), a.NS, b.NS, b.Address, 1000, 1)
	two, _ := Transfer(t.Context(), a.NS, b.NS, b.Address, 1000, 2)
	if !one.Match || !two.Match || one.SentSHA256 == two.SentSHA256 {
		t.Error("two seeds give the same data")
	}
}

func TestPingCancelled(t *testing.T) {
	a, b := underlay(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err := Ping(ctx, a.NS, b.Address, PingOptions{Count: 65535, Interval: 10 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) || r.Sent == 0 || r.Sent > 20 {
		t.Errorf("%v, %v", r, err)
	}
	// No route at all.
	r, err = Ping(t.Context(), a.NS, netip.MustParseAddr("203.0.113.1"), PingOptions{Count: 1, Timeout: time.Millisecond})
	if err != nil || len(r.Errors) != 1 || r.OK() {
		t.Errorf("%v, %v", r, err)
	}
}

// ethernet builds a frame from b's view: to b, from a, local experimental type.
func ethernet(a, b *Host, payload []byte) []byte {
	f := append(append([]byte{}, b.MAC[:]...), a.MAC[:]...)
	return append(binary.BigEndian.AppendUint16(f, 0x88b5), payload...)
}

func TestFrames(t *testing.T) {
	a, b := underlay(t)
	c, err := PacketSocket(b.NS, "eth2")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rec, err := Capture(t.Context(), b.NS, "eth2", func(f []byte) bool { return binary.BigEndian.Uint16(f[12:]) == 0x8100 })
	if err != nil {
		t.Fatal(err)
	}
	plain := ethernet(a, b, bytes.Repeat([]byte{0xab}, 100))
	tagged := append(append(append([]byte{}, plain[:12]...), 0x81, 0, 0x60, 7), plain[12:]...)
	for _, f := range [][]byte{plain, tagged} {
		if err := SendFrame(a.NS, "eth2", f); err != nil {
			t.Fatal(err)
		}
		for {
			got, err := c.Recv(time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Data[:6], b.MAC[:]) {
				continue // a multicast of the kernel's own
			}
			if !bytes.Equal(got.Data, f) || got.Outgoing {
				t.Errorf("sent %x, received %x, outgoing %t", f, got.Data, got.Outgoing)
			}
			break
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := rec.Wait(ctx, 1); err != nil {
		t.Error(err)
	}
	if frames, err := rec.Stop(); err != nil || len(frames) != 1 || !bytes.Equal(frames[0].Data, tagged) {
		t.Errorf("recorded %v, %v; want the tagged frame only", frames, err)
	}
	for {
		if _, err = c.Recv(20 * time.Millisecond); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silence ends with %v", err)
	}

	// ctx ends a recording too, and Wait notices.
	ctx, cancel = context.WithCancel(t.Context())
	if rec, err = Capture(ctx, b.NS, "eth2", nil); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := rec.Wait(t.Context(), 1000); err == nil {
		t.Error("Wait got what never came")
	}
	if _, err := rec.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := PacketSocket(a.NS, "eth7"); err == nil {
		t.Error("a socket on a link that is not there")
	}
}

func TestDatagrams(t *testing.T) {
	l := up(t, small(P2P, HostSpec{Name: "a", KernelVXLAN: true}, HostSpec{Name: "b", KernelVXLAN: true}))
	a, b := l.Container("a", "mgmt-1"), l.Container("b", "mgmt-1")
	for name, o := range map[string]DatagramOptions{
		"plain":       {Sizes: []int{8, 100, 1422, 1423, 9000}, Count: 200},
		"no checksum": {NoChecksum: true},
		"segments":    {Sizes: []int{1000, 100}, Segments: 10, Count: 95},
		"aggregates":  {Sizes: []int{1000}, Segments: 10, GRO: true},
	} {
		for _, to := range []netip.Addr{b.Addr.Addr(), b.Addr6.Addr()} {
			r, err := Datagrams(t.Context(), a.NS, b.NS, to, o)
			if err != nil || !r.OK() || (r.Aggregates > 0) != o.GRO {
				t.Errorf("%s to %s: %s, %v", name, to, r, err)
			}
			if want := map[string]int{"plain": 200, "segments": 100}[name]; want != 0 && r.Received != want {
				t.Errorf("%s to %s: %s, want %d", name, to, r, want)
			}
		}
	}
	// The other end must be able to see what is wrong.
	r := datagramReceiver{o: DatagramOptions{Sizes: []int{64}, Count: 3}, got: make([]bool, 3)}
	for _, seq := range []int{2, 1, 1} {
		r.take(r.o.payload(seq))
	}
	bad := r.o.payload(0)
	bad[63] ^= 1
	r.take(bad)
	r.take(r.o.payload(0)[:63])
	if r.res.Received != 2 || r.res.Reordered != 1 || r.res.Duplicates != 1 || len(r.res.Errors) != 2 {
		t.Errorf("%s", r.res)
	}
	// A path that takes nothing: lost, and soon.
	if err := l.Host("b").NS.delLinks("eth2"); err != nil {
		t.Fatal(err)
	}
	lost, err := Datagrams(t.Context(), a.NS, b.NS, b.Addr.Addr(), DatagramOptions{Count: 5, Timeout: 100 * time.Millisecond})
	if err != nil || lost.OK() || lost.Received != 0 {
		t.Errorf("%s, %v", lost, err)
	}
}

// A flow whose packets go astray for a second stands still for a second and is
// intact afterwards; one whose receiver is gone is an error.
func TestFlow(t *testing.T) {
	a, b := underlay(t)
	f, err := StartFlow(t.Context(), a.NS, b.NS, b.Address)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	// A link that is down would take the carrier away at the sender, which then may not even try.
	misdirect(t, a.NS, "eth2", b.Address, true)
	time.Sleep(time.Second)
	misdirect(t, a.NS, "eth2", b.Address, false)
	time.Sleep(2 * time.Second)
	r, err := f.Stop()
	if err != nil || !r.Match || r.Bytes < flowRate/10 || r.LongestStall < time.Second || r.Retransmits == 0 {
		t.Errorf("with a pause: %s, %v", r, err)
	}
	if f, err = StartFlow(t.Context(), a.NS, b.NS, b.Address); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if r, err := f.Stop(); err != nil || !r.Match || r.LongestStall > time.Second {
		t.Errorf("undisturbed: %s, %v", r, err)
	}
}

// misdirect has packets to addr go to a MAC address that nobody has, until it is taken back.
func misdirect(t *testing.T, ns NS, dev string, addr netip.Addr, on bool) {
	t.Helper()
	err := ns.withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(dev)
		if err != nil {
			return err
		}
		n := netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice(), State: unix.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0xde, 0xad}}
		if on {
			return h.NeighSet(&n)
		}
		return h.NeighDel(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
}
