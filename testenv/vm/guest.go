// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the guest writes on its console between the tests' own output. The host
// takes a line for one of these only with the mark in front.
const (
	mark      = "\x16@@ "
	markUname = "uname" // the running kernel's release
	markStart = "start" // package
	markEnd   = "end"   // package, exit code, seconds
	markKmsg  = "kmsg"  // a line of the kernel's log that speaks of a fault
	markDone  = "done"
)

func say(kind string, args ...any) {
	fmt.Fprintln(os.Stdout, "\n"+mark+kind, fmt.Sprint(args...))
}

// guest is the first process of the virtual machine: it runs the plan and
// switches the machine off, whatever happens.
func guest() {
	err := work()
	if err != nil {
		fmt.Fprintln(os.Stdout, "guest:", err)
	} else {
		say(markDone)
	}
	unix.Sync()
	// With -no-reboot qemu ends at this, on every kernel and with no driver.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func work() error {
	for _, m := range []struct{ what, where, kind, opt string }{
		{"proc", "/proc", "proc", ""},
		{"sysfs", "/sys", "sysfs", ""},
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"devpts", "/dev/pts", "devpts", ""},
		{"tmpfs", "/dev/shm", "tmpfs", ""},
		{"tmpfs", "/run", "tmpfs", "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", ""},
		{"bpf", "/sys/fs/bpf", "bpf", "mode=700"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", ""},
		{"tracefs", "/sys/kernel/tracing", "tracefs", ""},
	} {
		if err := os.MkdirAll(m.where, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.what, m.where, m.kind, 0, m.opt); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	if err := os.Setenv("PATH", "/sbin:/bin"); err != nil {
		return err
	}
	if err := os.Setenv("HOME", "/root"); err != nil {
		return err
	}
	b, err := os.ReadFile(guestPlan)
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	say(markUname, unix.ByteSliceToString(u.Release[:]))
	if err := unix.Sethostname([]byte("vxbpf-" + strings.ReplaceAll(p.Kernel, ".", "-"))); err != nil {
		return err
	}
	for _, m := range p.Early {
		if out, err := exec.Command("modprobe", m).CombinedOutput(); err != nil {
			return fmt.Errorf("load module %s: %w: %s", m, err, out)
		}
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("set lo up: %w: %s", err, out)
	}
	log, err := openKmsg()
	if err != nil {
		return err
	}
	if p.Shell {
		sh := exec.Command("setsid", "cttyhack", "sh")
		sh.Stdin, sh.Stdout, sh.Stderr = os.Stdin, os.Stdout, os.Stderr
		return sh.Run()
	}
	for _, s := range p.Suites {
		began := time.Now()
		say(markStart, s.Package)
		cmd := exec.Command(s.Argv[0], s.Argv[1:]...)
		cmd.Dir, cmd.Env = s.Dir, append(os.Environ(), p.Env...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		code := 0
		if err := cmd.Run(); err != nil {
			code = -1
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else {
				fmt.Fprintln(os.Stdout, err)
			}
		}
		for _, line := range log.faults() {
			say(markKmsg, line)
		}
		say(markEnd, s.Package, " ", code, " ", int(time.Since(began).Seconds()))
	}
	return nil
}

// kmsg is the kernel's log, read up to some point.
type kmsg struct{ r *bufio.Reader }

func openKmsg() (*kmsg, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's log: %w", err)
	}
	return &kmsg{bufio.NewReaderSize(kmsgFile(fd), 1<<16)}, nil
}

// kmsgFile reads records without waiting for more; one that was overwritten is passed over.
type kmsgFile int

func (f kmsgFile) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), b)
		switch {
		case errors.Is(err, unix.EPIPE):
			continue
		case err != nil || n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// faults are the lines since the last call that say that the kernel itself, or
// what it was made to do, went wrong.
func (k *kmsg) faults() (out []string) {
	for {
		line, err := k.r.ReadString('\n')
		if err != nil {
			return out
		}
		_, text, _ := strings.Cut(strings.TrimSpace(line), ";")
		for _, sign := range []string{"WARNING:", "BUG:", "Oops", "general protection", "UBSAN:", "KASAN:", "Call Trace:", "hung_task", "blocked for more than", "stall", "unregister_netdevice: waiting"} {
			if strings.Contains(text, sign) {
				out = append(out, text)
				break
			}
		}
	}
}
