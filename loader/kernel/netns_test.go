// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// The main goroutine keeps the main thread, so that no test runs there: Go
// parks a locked main thread instead of ending it, and its namespace with it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	home, _ := os.Readlink("/proc/self/ns/net")
	code := m.Run()
	if left := leftovers(home); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "network namespaces left behind: %q\n", left)
		code = 1
	}
	os.Exit(code)
}

// leftovers lists what still holds another network namespace than home. The
// threads of finished tests end a moment after their goroutines.
func leftovers(home string) (left []string) {
	for range 100 {
		left = nil
		tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
		fds, _ := filepath.Glob("/proc/self/fd/*")
		for _, p := range append(tasks, fds...) {
			if l, err := os.Readlink(p); err == nil && strings.HasPrefix(l, "net:[") && l != home {
				left = append(left, p+" -> "+l)
			}
		}
		if len(left) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return left
}

// privileged ends a test that cannot make namespaces.
func privileged(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VXBPF_TEST_UNPRIVILEGED") == "1" {
		t.Skip("needs root to make network namespaces; VXBPF_TEST_UNPRIVILEGED=1 lets it pass without")
	}
	t.Fatal("needs root to make network namespaces; set VXBPF_TEST_UNPRIVILEGED=1 to skip")
}

// newNS moves the test to a fresh network namespace, on a thread that ends
// with the test, and returns a Handle to it.
func newNS(t *testing.T) *Handle {
	t.Helper()
	privileged(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	return openUp(t)
}

func openUp(t *testing.T) *Handle {
	t.Helper()
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	lo := mustLink(t, h, "lo")
	must(t, h.SetUp(lo.Index))
	return h
}

// otherNS makes a second namespace, whose Handle works from the test's thread.
func otherNS(t *testing.T) *Handle {
	t.Helper()
	type result struct {
		h   *Handle
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		var h *Handle
		if err == nil {
			h, err = Open()
		}
		c <- result{h, err}
	}()
	r := <-c
	must(t, r.err)
	t.Cleanup(func() { r.h.Close() })
	must(t, r.h.SetUp(mustLink(t, r.h, "lo").Index))
	return r.h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustLink(t *testing.T, h *Handle, name string) Link {
	t.Helper()
	l, ok, err := h.LinkByName(name)
	if err != nil || !ok {
		t.Fatalf("link %s: found %v, %v", name, ok, err)
	}
	return l
}

// veth makes a pair a, b, both up; b in the namespace of peer if that is not nil.
func veth(t *testing.T, h *Handle, a, b string, peer *Handle) (Link, Link) {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a, TxQLen: -1}, PeerName: b}
	other := h
	if peer != nil {
		v.PeerNamespace, other = netlink.NsFd(peer.ns.Fd()), peer
	}
	must(t, netlink.LinkAdd(v))
	la, lb := mustLink(t, h, a), mustLink(t, other, b)
	must(t, h.SetUp(la.Index))
	must(t, other.SetUp(lb.Index))
	return mustLink(t, h, a), mustLink(t, other, b)
}

func mustBridge(t *testing.T, h *Handle, name string) Link {
	t.Helper()
	l, err := h.CreateBridge(name, BridgeSpec{})
	must(t, err)
	if need.Have(t, need.VLANFiltering) {
		// Such a bridge holds local and static entries for its default VLAN as well, though it does not filter.
		run(t, "ip", "link", "set", name, "type", "bridge", "vlan_default_pvid", "0")
	}
	must(t, h.SetUp(l.Index))
	return l
}

// attach makes links ports and waits until they forward: the bridge hears of a
// carrier some time after the device has it.
func attach(t *testing.T, h *Handle, bridge Link, ports ...Link) {
	t.Helper()
	for _, p := range ports {
		must(t, h.SetMaster(p.Index, bridge.Index))
	}
	forwarding(t, h, ports...)
}

func forwarding(t *testing.T, h *Handle, ports ...Link) {
	t.Helper()
	for _, p := range ports {
		eventually(t, p.Name+" forwarding", func() bool { return mustLink(t, h, p.Name).Port.State == PortForwarding })
	}
}

func mustVXLAN(t *testing.T, h *Handle, s VXLANSpec) Link {
	t.Helper()
	l, err := h.CreateVXLAN(s)
	must(t, err)
	must(t, h.SetUp(l.Index))
	return l
}

// sendFrame puts a broadcast frame from src on a link of the test's namespace.
func sendFrame(t *testing.T, link int, src fdb.MAC) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, src[:]...)
	f = binary.BigEndian.AppendUint16(f, 0x88b5) // IEEE 802 local experimental
	f = append(f, make([]byte, 46)...)
	must(t, unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link}))
}

// run executes a command in the test's namespace: a child inherits that of the
// thread that forks it.
func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

func needIproute(t *testing.T) {
	t.Helper()
	for _, c := range []string{"ip", "bridge"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Fatalf("compares with iproute2: %v; install it", err)
		}
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

// watch subscribes and returns a function that waits for an event that match
// accepts, and gives all the events up to it.
func watch(t *testing.T, h *Handle) func(what string, match func(Event) bool) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	s, err := h.Subscribe(ctx, SubscribeOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()); cancel() })
	var queue []Event
	return func(what string, match func(Event) bool) []Event {
		t.Helper()
		var seen []Event
		for {
			for i, e := range queue {
				seen = append(seen, e)
				if match(e) {
					queue = queue[i+1:]
					return seen
				}
			}
			var err error
			if queue, err = s.Next(); err != nil {
				t.Fatalf("waiting for %s: %v; saw %+v", what, err, seen)
			}
		}
	}
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func mac(s string) fdb.MAC {
	m, err := fdb.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func wantErr(t *testing.T, err, want error, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
		return
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

func ptr[T any](v T) *T { return &v }
