// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine is a host of a lab with files, processes and BPF pins of its own: the
// files are this machine's, copied when written to. What is installed, written
// or started there stays there, and vanishes with Close or with the process
// that made it. /tmp, /run and /sys/fs/bpf begin empty.
type Machine struct {
	host  *Host
	init  *Cmd
	stdin io.Closer
	dir   string // mount point, in the machine's own mount namespace only
}

// machineInit is the first process of a machine. It ends with its standard
// input, and takes all other processes of the machine with it.
const machineInit = `set -e
R=$1
mount --make-rprivate /
mount -t tmpfs -o size=2g none "$R"
mkdir "$R/upper" "$R/work" "$R/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$R/upper,workdir=$R/work" "$R/root"
cd "$R/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t bpf bpf sys/fs/bpf
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs none run
mount -t tmpfs none tmp
chmod 1777 tmp
mkdir -p run/lock run/network usr/sbin
# Packages must not start what they install, as in any chroot.
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
echo ready
cat >/dev/null || true
`

// StartMachine gives the host files and processes of its own. The host's
// network namespace stays what it is.
func (h *Host) StartMachine(ctx context.Context) (_ *Machine, err error) {
	dir, err := os.MkdirTemp("", "vxbpf-machine-")
	if err != nil {
		return nil, err
	}
	m := &Machine{host: h, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start machine %s: %w", h.Name, err), m.Close())
		}
	}()
	// Not bound to ctx: the machine lives until Close.
	m.init = h.NS.Command(context.WithoutCancel(ctx), "/bin/sh", "-c", machineInit, "machine", dir)
	m.init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC}
	in, err := m.init.StdinPipe()
	if err != nil {
		return nil, err
	}
	m.stdin = in
	out, err := m.init.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var msg strings.Builder
	m.init.Stderr = &msg
	if err := m.init.Start(); err != nil {
		return nil, err
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		return nil, fmt.Errorf("set up its files: %s", strings.TrimSpace(msg.String()))
	}
	return m, nil
}

// Command prepares a process to be started in the machine.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	argv := append([]string{"-t", strconv.Itoa(m.init.Process.Pid), "-m", "-p", "-n", "-i", "--", "chroot", filepath.Join(m.dir, "root"), name}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", argv...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	cmd.WaitDelay = 5 * time.Second // a daemon that the command leaves behind may hold the pipe
	return cmd
}

// Run runs a shell script in the machine and returns all that it wrote.
func (m *Machine) Run(ctx context.Context, script string) (string, error) {
	out, err := m.Command(ctx, "/bin/sh", "-ec", script).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("on machine %s: %w\n%s", m.host.Name, err, out)
	}
	return string(out), err
}

// Path of a file of the machine, as this process can open it while the machine lives.
func (m *Machine) Path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.init.Process.Pid), "root", m.dir, "root", name)
}

// Pid of the machine's first process, and Root, its root directory as that process sees it: what nsenter and chroot take.
func (m *Machine) Pid() int { return m.init.Process.Pid }

// Root is described at Pid.
func (m *Machine) Root() string { return filepath.Join(m.dir, "root") }

// Changed lists the files that were written on the machine and are still there.
// What lies in /tmp, /run and other file systems of their own is not among them.
func (m *Machine) Changed() (files []string, err error) {
	upper := filepath.Join("/proc", strconv.Itoa(m.init.Process.Pid), "root", m.dir, "upper")
	err = filepath.WalkDir(upper, func(path string, d fs.DirEntry, err error) error {
		// A character device stands for a file that was removed.
		if err == nil && !d.IsDir() && d.Type()&fs.ModeCharDevice == 0 {
			files = append(files, strings.TrimPrefix(path, upper))
		}
		return err
	})
	return files, err
}

// Write makes a file of the machine, and its directory.
func (m *Machine) Write(name string, b []byte, mode os.FileMode) error {
	p := m.Path(name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(p, b, mode); err != nil {
		return err
	}
	return os.Chmod(p, mode)
}

// Close ends all processes of the machine and drops its files.
func (m *Machine) Close() error {
	var err error
	if m.init != nil && m.init.Process != nil {
		err = m.stdin.Close()
		done := make(chan struct{})
		go func() { _ = m.init.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			err = errors.Join(err, m.init.Process.Kill())
			<-done
		}
	}
	return errors.Join(err, os.Remove(m.dir))
}
