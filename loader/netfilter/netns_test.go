// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

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

// leftovers lists threads that are still in another namespace than home. Those
// of finished tests end a moment after their goroutines.
func leftovers(home string) (left []string) {
	for range 100 {
		left = nil
		tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
		for _, p := range tasks {
			if l, err := os.Readlink(p); err == nil && l != home {
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

// newNS moves the test to a fresh network namespace, on a thread that ends with the test.
func newNS(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("VXBPF_TEST_UNPRIVILEGED") == "1" {
			t.Skip("needs root to make network namespaces; VXBPF_TEST_UNPRIVILEGED=1 lets it pass without")
		}
		t.Fatal("needs root to make network namespaces; set VXBPF_TEST_UNPRIVILEGED=1 to skip")
	}
	for _, c := range []string{"ip", "nft", "iptables-legacy", "iptables-nft"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Fatalf("compares with %s: install iproute2, nftables and iptables", c)
		}
	}
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	sh(t, "ip link set lo up")
}

// sh runs commands, one a line, in the namespace of the calling thread: a child
// inherits that of the thread that forks it.
func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// far makes a namespace at the other end of a veth pair, and returns what runs
// a function there.
//
//	192.0.2.1, 2001:db8::1  u0 ---- u1  192.0.2.2, 2001:db8::2
func far(t *testing.T) (there func(func())) {
	t.Helper()
	work, done := make(chan func()), make(chan struct{})
	t.Cleanup(func() { close(work) })
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
			done <- struct{}{}
		}
	}()
	there = func(f func()) {
		work <- f
		<-done
	}
	var ns *os.File
	var err error
	there(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
	})
	must(t, err)
	defer ns.Close()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "u0", TxQLen: -1}, PeerName: "u1", PeerNamespace: netlink.NsFd(ns.Fd())}))
	sh(t, "ip link set u0 up; ip addr add 192.0.2.1/24 dev u0; ip addr add 2001:db8::1/64 dev u0 nodad")
	there(func() {
		out, e := exec.Command("sh", "-ec", "ip link set u1 up; ip addr add 192.0.2.2/24 dev u1; ip addr add 2001:db8::2/64 dev u1 nodad").CombinedOutput()
		if e != nil {
			err = fmt.Errorf("%w\n%s", e, out)
		}
	})
	must(t, err)
	return there
}

// needEgress skips a test on kernels before 5.16, which have no egress hook.
func needEgress(t *testing.T) {
	t.Helper()
	need.Kernel(t, need.NetdevEgress)
}

func look(t *testing.T) Rules {
	t.Helper()
	r, err := Read(Rules{})
	must(t, err)
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
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

func index(t *testing.T, dev string) Dev {
	t.Helper()
	i, err := net.InterfaceByName(dev)
	must(t, err)
	return Dev{dev, i.Index}
}

// tick waits for a change.
func tick(t *testing.T, ticks <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	select {
	case _, ok := <-ticks:
		if !ok {
			t.Fatal("the watch has ended")
		}
	case <-ctx.Done():
		t.Fatal("no tick within 20 s")
	}
}
