// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// The main goroutine keeps the main thread, so that no script runs there: Go
// parks a locked main thread instead of ending it, and its namespace with it.
func init() { runtime.LockOSThread() }

// TestMain makes vxbpf a command of the scripts: this binary under another
// name. Two more are vxbpf with fewer rights.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"vxbpf":              main,
		"vxbpf-nobody":       func() { as("nobody", becomeNobody) },
		"vxbpf-no-net-admin": func() { as("root without CAP_NET_ADMIN", dropNetAdmin) },
	})
}

func as(whom string, become func() error) {
	if err := become(); err != nil {
		fmt.Fprintf(os.Stderr, "become %s: %v\n", whom, err)
		os.Exit(120)
	}
	main()
}

func becomeNobody() error {
	const nobody = 65534
	return errors.Join(syscall.Setgroups(nil), syscall.Setresgid(nobody, nobody, nobody), syscall.Setresuid(nobody, nobody, nobody))
}

// dropNetAdmin takes CAP_NET_ADMIN from this thread and executes itself: a
// root process gets at exec what is in the bounding set.
func dropNetAdmin() error {
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_ADMIN, 0, 0, 0); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, append([]string{"vxbpf"}, os.Args[1:]...), os.Environ())
}

// TestScripts runs testdata/*.txt, each in a network namespace of its own with
// nothing but lo, and under an instance name of its own.
func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the scripts run in network namespaces: run as root")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// This goroutine runs the whole script and ends locked, so the
			// runtime ends the thread, and that the namespace.
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make network namespace: %w", err)
			}
			instance := fmt.Sprintf("script-%s-%06x", filepath.Base(e.WorkDir), rand.N(1<<24))
			e.Setenv("VXBPF_INSTANCE", instance)
			e.Setenv("INSTANCE", instance)
			before, err := hostState(instance)
			e.Values[stateKey{}] = before
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":      code,
			"addlink":   addLink,
			"noise":     noise,
			"remember":  remember,
			"unchanged": unchanged,
		},
	})
}

// code N COMMAND [ARG...] runs a command and wants that exit code.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// addLink bridge NAME [ADDRESS/LEN] or addlink vxlan NAME VNI PORT. A bridge
// does for an underlay device as well.
func addLink(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: addlink bridge NAME [ADDRESS/LEN] | addlink vxlan NAME VNI PORT")
	}
	h, err := kernel.Open()
	ts.Check(err)
	defer h.Close()
	var l kernel.Link
	switch args[0] {
	case "bridge":
		l, err = h.CreateBridge(args[1], kernel.BridgeSpec{})
		ts.Check(err)
		for _, a := range args[2:] {
			ts.Check(h.AddAddress(l.Index, netip.MustParsePrefix(a)))
		}
	case "vxlan":
		vni, err := strconv.ParseUint(args[2], 10, 24)
		ts.Check(err)
		port, err := strconv.ParseUint(args[3], 10, 16)
		ts.Check(err)
		l, err = h.CreateVXLAN(kernel.VXLANSpec{Name: args[1], VXLAN: kernel.VXLAN{VNI: fdb.VNI(vni), Port: uint16(port), Learning: true}})
		ts.Check(err)
	default:
		ts.Fatalf("no such kind of link: %s", args[0])
	}
	ts.Check(h.SetUp(l.Index))
}

// noise FILE BYTES writes that much of what is not text. The seed is fixed.
func noise(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: noise FILE BYTES")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}

type stateKey struct{}

// remember takes the host as it is now for what `unchanged` compares with.
func remember(ts *testscript.TestScript, _ bool, _ []string) {
	now, err := hostState(ts.Getenv("INSTANCE"))
	ts.Check(err)
	*ts.Value(stateKey{}).(*state) = *now
}

// unchanged fails unless the host is as it was when the script began, or at
// the last `remember`.
func unchanged(ts *testscript.TestScript, neg bool, _ []string) {
	before := ts.Value(stateKey{}).(*state)
	// A bridge's own entries come a moment after it is up.
	var now *state
	for range 20 {
		var err error
		now, err = hostState(ts.Getenv("INSTANCE"))
		ts.Check(err)
		if slices.Equal(*before, *now) != neg {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	ts.Fatalf("the host was\n%s\nand is\n%s", strings.Join(*before, "\n"), strings.Join(*now, "\n"))
}

// state is what a host shows, a line for each thing.
type state []string

// hostState reads links, IPv4 addresses and forwarding entries of the thread's
// namespace, and the instance's pins and run files.
func hostState(instance string) (*state, error) {
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	s := state{}
	links, err := h.Links()
	for _, l := range links {
		line := fmt.Sprintf("link %d %s %s mtu %d up %t master %d", l.Index, l.Name, l.Kind, l.MTU, l.Up, l.Master)
		if l.Bridge != nil {
			line += fmt.Sprintf(" %+v", *l.Bridge)
		}
		if l.VXLAN != nil {
			line += fmt.Sprintf(" %+v", *l.VXLAN)
		}
		s = append(s, line)
	}
	if err != nil {
		return nil, err
	}
	addresses, err := h.Addresses()
	for _, a := range addresses {
		if a.Prefix.Addr().Is4() {
			s = append(s, fmt.Sprintf("address %d %s", a.Link, a.Prefix))
		}
	}
	if err != nil {
		return nil, err
	}
	entries, err := h.FDB()
	for _, e := range entries {
		if e.Self {
			s = append(s, fmt.Sprintf("fdb %d %s %s", e.Link, e.MAC, e.Dst))
		}
	}
	for _, d := range []string{"/run/vxbpf/" + instance, "/sys/fs/bpf/vxbpf/" + instance} {
		if _, err := os.Lstat(d); err == nil {
			s = append(s, "file "+d)
		}
	}
	slices.Sort(s)
	return &s, err
}
