// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/testenv"
)

// Names under which this test binary is a vxbpf that may not use BPF. They
// stand beside a link called vxbpf to the real one.
const (
	withoutBPF   = "vxbpf-without-bpf"   // no CAP_BPF, CAP_SYS_ADMIN, CAP_PERFMON; CAP_NET_ADMIN stays
	withoutBPFFS = "vxbpf-without-bpffs" // no bpf file system and no right to mount one
	withoutRoot  = "vxbpf-without-root"  // user nobody with neededCapabilities
)

// init makes a process called by one of those names a vxbpf with fewer rights.
// The name does it and not the environment, because `lab down` calls unload by name.
func init() {
	name := filepath.Base(os.Args[0])
	if name != withoutBPF && name != withoutBPFFS && name != withoutRoot {
		return
	}
	runtime.LockOSThread()
	err := func() error {
		if name == withoutRoot {
			if err := becomeNobody(neededCapabilities...); err != nil {
				return err
			}
			real := filepath.Join(filepath.Dir(os.Args[0]), "vxbpf")
			return syscall.Exec(real, append([]string{real}, os.Args[1:]...), os.Environ())
		}
		drop := []int{unix.CAP_SYS_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON}
		if name == withoutBPFFS {
			drop = drop[:1]
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("unshare mounts: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			for err := error(nil); err == nil; { // it may be mounted several times over
				err = unix.Unmount("/sys/fs/bpf", unix.MNT_DETACH)
			}
		}
		if err := dropCapabilities(drop...); err != nil {
			return err
		}
		real := filepath.Join(filepath.Dir(os.Args[0]), "vxbpf")
		return syscall.Exec(real, append([]string{real}, os.Args[1:]...), os.Environ())
	}()
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	os.Exit(120)
}

// dropCapabilities takes capabilities away from the thread and from all that it
// executes: a root process gets at exec what is in the bounding set.
func dropCapabilities(drop ...int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range drop {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_LOWER, uintptr(c), 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop ambient capability %d: %w", c, err)
		}
		d, bit := &data[c/32], uint32(1)<<(c%32)
		d.Effective &^= bit
		d.Permitted &^= bit
		d.Inheritable &^= bit
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// neededCapabilities are all that a daemon needs which is not root. ARCHITECTURE.md,
// "Capabilities", says what each is for.
var neededCapabilities = []int{unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH}

const nobodyID = 65534

// becomeNobody gives up root, and keeps these capabilities over the next exec.
func becomeNobody(keep ...int) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	// This thread only: it is the one that executes.
	for _, call := range []struct{ nr, a uintptr }{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, nobodyID}, {unix.SYS_SETRESUID, nobodyID}} {
		b, c := call.a, call.a
		if _, _, err := unix.RawSyscall(call.nr, call.a, b, c); err != 0 {
			return fmt.Errorf("become user %d: %w", nobodyID, err)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range keep {
		d, bit := &data[c/32], uint32(1)<<(c%32)
		d.Effective |= bit
		d.Permitted |= bit
		d.Inheritable |= bit
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	for _, c := range keep {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("keep capability %d: %w", c, err)
		}
	}
	return nil
}

// restricted is the path of a vxbpf with fewer rights.
func (w *world) restricted(name string) string {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	real, err := filepath.Abs(w.bin)
	if err != nil {
		w.t.Fatal(err)
	}
	// In the lab's directory: it lives until after the last unload.
	dir := filepath.Join(w.Dir(), "restricted")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	for link, target := range map[string]string{name: self, "vxbpf": real} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil && !errors.Is(err, os.ErrExist) {
			w.t.Fatal(err)
		}
	}
	return filepath.Join(dir, name)
}

// startRestricted is start with a vxbpf that may not use BPF.
func (w *world) startRestricted(host, name string) *testenv.Daemon {
	w.t.Helper()
	d, err := w.Host(host).StartVXBPF(w.ctx, w.restricted(name))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.AttachContainers(w.ctx, host); err != nil {
		w.t.Fatal(err)
	}
	return d
}

// run runs any binary as vxbpf on a host.
func (w *world) run(bin, host string, args ...string) (out string, code int) {
	w.t.Helper()
	h := w.Host(host)
	b, err := h.NS.Command(w.ctx, bin, append([]string{"--instance", h.Instance()}, args...)...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("%s %s: %v", bin, strings.Join(args, " "), err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return string(b), code
}

// config writes a host's config with some words replaced, and returns its path.
func (w *world) config(host string, oldnew ...string) string {
	w.t.Helper()
	c := strings.NewReplacer(oldnew...).Replace(string(w.Host(host).Config(w.Spec)))
	file := filepath.Join(w.t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(c), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// settle polls until ok, or gives up: the caller says what was wrong.
func (w *world) settle(ok func() bool) {
	for deadline := time.Now().Add(10 * time.Second); !ok() && time.Now().Before(deadline) && w.ctx.Err() == nil; {
		time.Sleep(50 * time.Millisecond)
	}
}

// allTraffic sends what the demo sends: between containers, and to and from
// the bridges' own addresses.
func (w *world) allTraffic() {
	w.t.Helper()
	w.containerTraffic()
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	for _, p := range w.Host("h1").BridgeAddresses("mgmt") {
		w.ping(a.NS, p.Addr())
		w.ping(b.NS, p.Addr())
		w.ping(w.Host("h2").NS, p.Addr())
	}
	w.ping(w.Host("h1").NS, b.Addr.Addr())
}

// containerTraffic pings over both families and moves data over TCP between
// containers of two hosts, both ways, and of one host.
func (w *world) containerTraffic() {
	w.t.Helper()
	a, b, c := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1"), w.Container("h1", "mgmt-2")
	for _, p := range [][2]*testenv.Container{{a, b}, {b, a}, {a, c}} {
		w.ping(p[0].NS, p[1].Addr.Addr())
		w.ping(p[0].NS, p[1].Addr6.Addr())
		if r := w.transfer(p[0], p[1], 8<<20); r.Bytes != 8<<20 {
			w.t.Errorf("%d bytes from %s to %s", r.Bytes, p[0].NS.Name(), p[1].NS.Name())
		}
	}
}

func twoHosts() testenv.Spec {
	s := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	s.Containers = 2
	s.HostAddresses = []string{"mgmt"}
	return s
}

//	h1 (may not use BPF): mgmt-1, mgmt-2 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// A host that refuses BPF gets plain kernel VXLAN, and says so wherever one looks.
func TestFallback(t *testing.T) {
	w := up(t, twoHosts(), false)
	bare := w.state("h1")

	d := w.startRestricted("h1", withoutBPF)
	w.startRestricted("h2", withoutBPFFS)
	w.allTraffic()

	for host, reason := range map[string]string{"h1": "operation not permitted", "h2": "mount bpf file system"} {
		s, code := w.status(host)
		if code != 3 || !s.Degraded || s.Daemon == 0 || s.Attach != "" || !strings.Contains(s.Reason, reason) || strings.Contains(s.Reason, "\n") {
			t.Errorf("status of %s: exit %d, %+v, want 3, degraded because of %q", host, code, s, reason)
		}
		for _, n := range s.Networks {
			if n.Datapath != "kernel" || n.Reason != s.Reason {
				t.Errorf("network %s of %s: datapath %s because of %q", n.Name, host, n.Datapath, n.Reason)
			}
		}
		out, _, code := w.vxbpf(host, "status")
		if code != 3 || !strings.Contains(out, "\n! DEGRADED: ") || !strings.Contains(out, " on the kernel path: "+s.Reason+"\n") {
			t.Errorf("status of %s: exit %d\n%s", host, code, out)
		}
		if p := w.programs(host); len(p) > 0 {
			t.Errorf("programs on %s: %v", host, p)
		}
		if _, err := os.Stat(w.pinDir(host)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("pins of %s: %v", host, err)
		}
	}
	reason := []byte("operation not permitted")
	if n := bytes.Count(d.Log(), reason); n != 2 { // the warning, and the status in the line that says ready
		t.Errorf("%d log lines give the reason, want the warning and the ready line:\n%s", n, d.Log())
	}
	if n := bytes.Count(d.Log(), []byte("BPF is not in use")); n != 1 {
		t.Errorf("%d warnings in the log, want 1:\n%s", n, d.Log())
	}
	if !strings.Contains(d.Status(), "degraded") {
		t.Errorf("the service manager is told %q", d.Status())
	}

	// The daemon's end changes nothing, and neither does a run with --once.
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	bin := w.restricted(withoutBPF)
	out, code := w.run(bin, "h1", "load", "--once", w.config("h1"))
	if code != 3 || !strings.Contains(out, "degraded: mgmt") || !strings.Contains(out, "not permitted") {
		t.Errorf("load --once: exit %d\n%s", code, out)
	}
	w.allTraffic()
	if out, code := w.run(bin, "h1", "unload"); code != 0 {
		t.Errorf("unload: exit %d\n%s", code, out)
	}
	w.same("h1", "fallback and unload", bare)

	// Who insists on BPF gets an error, and a host that nothing was done to.
	bare = w.state("h1")
	for _, name := range []string{withoutBPF, withoutBPFFS} {
		out, code = w.run(w.restricted(name), "h1", "load", w.config("h1", "datapath: auto", "datapath: tc"))
		if code != 1 || !strings.Contains(out, "datapath tc:") || !strings.Contains(out, "not permitted") || !strings.Contains(out, "datapath auto") {
			t.Errorf("load with datapath tc as %s: exit %d\n%s", name, code, out)
		}
		if diff := bare.changes(w.state("h1")); diff != "" {
			t.Errorf("load with datapath tc failed as %s, and left:\n%s", name, diff)
		}
	}

	// Who asks for the kernel has what was asked for.
	if out, code = w.run(bin, "h1", "load", "--once", w.config("h1", "datapath: auto", "datapath: kernel")); code != 0 {
		t.Errorf("load --once with datapath kernel: exit %d\n%s", code, out)
	}
	if s, code := w.status("h1"); code != 0 || s.Degraded || len(s.Networks) != 1 || s.Networks[0].Datapath != "kernel" {
		t.Errorf("status with datapath kernel: exit %d, %+v", code, s)
	}
	if err := w.AttachContainers(w.ctx, "h1"); err != nil {
		t.Fatal(err)
	}
	// Not the bridge's own address: it was made again with another MAC, which
	// the others' ARP tables take seconds to find out.
	w.containerTraffic()
}

//	h1 (may not use BPF): mgmt-1, mgmt-2 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same, with BPF: h2
//
// A fast host and a fallback host understand each other; and a host that lost
// the right to BPF between two runs leaves no program with maps that nobody keeps.
func TestFallbackMixed(t *testing.T) {
	w := up(t, twoHosts(), false)
	w.startRestricted("h1", withoutBPF)
	d := w.start("h2")
	w.allTraffic()
	// A MAC address is fast as soon as it is confirmed: the transfers below are short.
	w.ping(w.Container("h2", "mgmt-2").NS, w.Container("h1", "mgmt-2").Addr.Addr())
	overlay{world: w}.know("h2", w.Container("h1", "mgmt-1").MAC, w.Container("h1", "mgmt-2").MAC, w.Container("h2", "mgmt-1").MAC, w.Container("h2", "mgmt-2").MAC)
	before := w.network("h2", "mgmt")
	w.transfer(w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1"), 16<<20)
	w.transfer(w.Container("h2", "mgmt-2"), w.Container("h1", "mgmt-2"), 16<<20)
	after := w.network("h2", "mgmt")
	for side, s := range map[string]share{"sent": after.Sent.less(before.Sent), "received": after.Received.less(before.Received)} {
		if s.ratio() < 0.99 || s.Total < 5000 {
			t.Errorf("%d of %d %s packets on the fast path of h2", s.Fast, s.Total, side)
		}
	}
	if _, code := w.status("h1"); code != 3 {
		t.Errorf("status of h1: exit %d", code)
	}
	if _, code := w.status("h2"); code != 0 {
		t.Errorf("status of h2: exit %d", code)
	}

	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	w.hooks("h2", attachedBy(t))
	w.startRestricted("h2", withoutBPF)
	if p := w.programs("h2"); len(p) > 0 {
		t.Errorf("programs of the earlier run: %v", p)
	}
	w.allTraffic()
}

//	h1 (user nobody): mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same, by root: h2
//
// With the capabilities that ARCHITECTURE.md lists and no others the daemon
// carries traffic on BPF, and verify and unload work. Its directories are made for
// it, as systemd makes RuntimeDirectory.
func TestWithoutRoot(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	h := w.Host("h1")
	bin := w.restricted(withoutRoot)
	pins, run := filepath.Join(filepath.Dir(loader.DefaultPinRoot), h.Instance()), filepath.Join(loader.DefaultRunDir, h.Instance())
	for _, dir := range []string{pins, run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobodyID, nobodyID); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
	}
	cfg := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(cfg, h.Config(w.Spec), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := h.NS.Command(w.ctx, bin, "--instance", h.Instance(), "--pin-root", pins, "load", cfg)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon: %v\n%s", err, log.String())
		}
	}
	defer stop()
	w.wait("the data path", func() bool {
		_, _, code := w.vxbpf("h1", "status")
		return code == 0
	})
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "Uid:\t65534\t65534\t65534\t65534") {
		t.Fatalf("the daemon is not user nobody:\n%s", b)
	}
	if err := w.AttachContainers(w.ctx, "h1"); err != nil {
		t.Fatal(err)
	}
	w.start("h2")
	from, to := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.wait("the fast path both ways", func() bool {
		before := w.network("h1", "mgmt")
		w.ping(from.NS, to.Addr.Addr())
		after := w.network("h1", "mgmt")
		return after.Sent.Fast >= before.Sent.Fast+3 && after.Received.Fast >= before.Received.Fast+3
	})
	if out, code := w.run(bin, "h1", "--pin-root", pins, "verify"); code != 0 {
		t.Errorf("verify: exit %d\n%s", code, out)
	}
	stop()
	if out, code := w.run(bin, "h1", "--pin-root", pins, "unload"); code != 0 {
		t.Errorf("unload: exit %d\n%s", code, out)
	}
}
