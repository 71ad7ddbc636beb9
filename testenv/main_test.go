// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testPrefix makes the labs of this run distinct from all others.
var testPrefix = fmt.Sprintf("t%05x-", rand.IntN(1<<20))

// TestMain is also three other programs: the fake vxbpf (load, unload), and
// the "other process" of the tests (lab-up, lab-down).
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "load":
			os.Exit(fakeLoad(os.Args[2:]))
		case "unload":
			os.Exit(fakeUnload(os.Args[2:]))
		case "lab-up":
			os.Exit(labUp(os.Args[2:]))
		case "lab-down":
			os.Exit(labDown(os.Args[2]))
		}
	}
	before := links()
	_, hadState := os.Stat("/run/vxbpf")
	code := m.Run()
	for _, left := range leftovers(before) {
		fmt.Fprintln(os.Stderr, "FAIL: left behind:", left)
		code = 1
	}
	// Another session's lab may have come meanwhile, then it stays.
	if labs, err := List(); hadState != nil && err == nil && len(labs) == 0 {
		if entries, err := os.ReadDir("/run/vxbpf"); err == nil && len(entries) == 0 {
			fmt.Fprintln(os.Stderr, "FAIL: left behind: an empty /run/vxbpf")
			code = 1
		}
	}
	os.Exit(code)
}

func links() []string {
	var names []string
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		names = append(names, i.Name)
	}
	return names
}

// leftovers of the labs of this run, and new links that could be one's.
func leftovers(before []string) []string {
	var out []string
	for _, dir := range []string{netnsDir, stateDir} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), testPrefix) {
				out = append(out, dir+"/"+e.Name())
			}
		}
	}
	for _, l := range links() {
		for _, ours := range []string{"v-", "p-", "br-", "encap-", "eth2", "sw0"} {
			if !slices.Contains(before, l) && strings.HasPrefix(l, ours) {
				out = append(out, "link "+l)
			}
		}
	}
	return out
}

// fakeLoad behaves as vxbpf does towards its starter: the flags make it misbehave.
func fakeLoad(args []string) int {
	ns, _ := os.Readlink("/proc/self/ns/net")
	fmt.Println("fake vxbpf in", ns, args)
	b, err := os.ReadFile(args[len(args)-1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("config: %d bytes\n", len(b))
	if slices.Contains(args, "--fail") {
		fmt.Println("attach vx_tc_encap: the reason it fails")
		return 3
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if !slices.Contains(args, "--silent") {
		c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Fprintf(c, "STATUS=five networks, all tc\nREADY=1\n")
	}
	select {
	case <-term:
		fmt.Println("stopped")
	case <-time.After(2 * time.Minute): // never outlive a broken test for long
	}
	return 0
}

// fakeUnload writes where it ran to the file named by its last argument.
func fakeUnload(args []string) int {
	ns, _ := os.Readlink("/proc/self/ns/net")
	if len(args) == 3 {
		if err := os.WriteFile(args[2], []byte(ns+" "+args[1]+"\n"), 0o600); err != nil {
			return 1
		}
	}
	return 0
}

// stallingCtx calls f at the n-th look at Err, which Up takes between resources.
type stallingCtx struct {
	context.Context
	left *int
	f    func() error
}

func (c stallingCtx) Err() error {
	if *c.left--; *c.left < 0 {
		return c.f()
	}
	return nil
}

// labUp builds the default lab as name and stops in the middle, at step n,
// until it is killed; n 0: builds it whole and ends.
func labUp(args []string) int {
	n, _ := strconv.Atoi(args[1])
	ctx := context.Background()
	if n > 0 {
		ctx = stallingCtx{ctx, &n, func() error {
			fmt.Println("stalled")
			time.Sleep(time.Minute)
			return nil
		}}
	}
	s := DefaultSpec()
	s.Name = args[0]
	if _, err := Up(ctx, s, Options{}); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func labDown(name string) int {
	l, err := Open(name)
	if err == nil {
		err = l.Down()
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("makes network namespaces: run as root")
	}
}

// up builds a lab for one test, and takes it down and looks for leftovers after it.
func up(t *testing.T, s Spec) *Lab {
	t.Helper()
	needRoot(t)
	l, err := Up(t.Context(), s, Options{Prefix: testPrefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		checkGone(t, l)
	})
	return l
}

func checkGone(t *testing.T, l *Lab) {
	t.Helper()
	for _, n := range l.Namespaces() {
		if NamedNS(n).Exists() {
			t.Errorf("namespace %s is left", n)
		}
	}
	if _, err := os.Stat(l.Dir()); err == nil {
		t.Errorf("%s is left", l.Dir())
	}
}

// self is this test binary, in the role of vxbpf.
func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}
