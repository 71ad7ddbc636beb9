// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces.
const netnsDir = "/run/netns"

// threadNS is the namespace of the calling thread; /proc/self would be the
// main thread's.
const threadNS = "/proc/thread-self/ns/net"

// NS is a named network namespace, as `ip netns list` shows it. It holds no
// resource: it stays valid, and useless, after the namespace is gone.
type NS struct{ name string }

// NamedNS refers to the namespace of that name, made by anybody.
func NamedNS(name string) NS { return NS{name} }

// Name as in `ip netns exec <name>`.
func (n NS) Name() string { return n.name }

// Path of the file that holds the namespace.
func (n NS) Path() string { return filepath.Join(netnsDir, n.name) }

// Do runs fn inside the namespace, on an OS thread of its own; goroutines that
// fn starts are outside. A thread that cannot be brought back is discarded.
func (n NS) Do(fn func() error) error {
	target, err := netns.GetFromPath(n.Path())
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", n.name, err)
	}
	defer target.Close()
	return onThread(func() error {
		if err := netns.Set(target); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.name, err)
		}
		return fn()
	})
}

// onThread runs fn on a locked OS thread whose network namespace fn may
// change, and puts the thread back, or lets the runtime end it.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		// What the caller sees if fn leaves by runtime.Goexit, as t.FailNow does.
		err := errors.New("function ended its goroutine")
		defer func() { done <- err }()

		runtime.LockOSThread()
		home, herr := netns.GetFromPath(threadNS)
		if herr != nil {
			runtime.UnlockOSThread()
			err = herr
			return
		}
		defer home.Close()
		defer func() {
			// Still locked when the goroutine ends: the runtime ends the thread with it.
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
		}()
		err = fn()
	}()
	return <-done
}

// netlink opens an rtnetlink socket in the namespace. The caller closes it.
func (n NS) netlink() (h *netlink.Handle, err error) {
	err = n.Do(func() error {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", n.name, err)
	}
	return h, nil
}

func (n NS) withNetlink(fn func(h *netlink.Handle) error) error {
	h, err := n.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// Sysctl writes /proc/sys/<key>. The key may be dotted, or a path where a link
// name has dots in it.
func (n NS) Sysctl(key, value string) error {
	err := n.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("set %s=%s in %s: %w", key, value, n.name, err)
	}
	return nil
}

// ReadSysctl reads /proc/sys/<key>, without the newline.
func (n NS) ReadSysctl(key string) (value string, err error) {
	err = n.Do(func() error {
		b, err := os.ReadFile(sysctlPath(key))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return filepath.Join("/proc/sys", key)
}

// Cmd is an exec.Cmd that is started inside a network namespace. Nothing else
// is unshared: /sys and the mounts are the caller's.
type Cmd struct {
	*exec.Cmd
	ns NS
}

// Command prepares a process to be started in the namespace.
func (n NS) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{exec.CommandContext(ctx, name, args...), n}
}

// Start is exec.Cmd.Start, inside the namespace: a child is born in the
// namespace of the thread that forks.
func (c *Cmd) Start() error { return c.ns.Do(c.Cmd.Start) }

// Run is exec.Cmd.Run, inside the namespace.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is what the process wrote to its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out, msg strings.Builder
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &msg
	}
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		exit.Stderr = []byte(msg.String())
	}
	return []byte(out.String()), err
}

// CombinedOutput is what the process wrote, errors included.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out strings.Builder
	c.Stdout = &out
	c.Stderr = &out
	err := c.Run()
	return []byte(out.String()), err
}

// literal rejects host names, whose resolution would leave the thread, and
// named zones, which package net looks up in one cache for all namespaces.
func literal(network, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if host == "" {
		return nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("address %s: want an address literal", address)
	}
	if strings.Trim(a.Zone(), "0123456789") != "" {
		return fmt.Errorf("address %s: want the zone as an interface index", address)
	}
	if !strings.HasPrefix(network, "tcp") && !strings.HasPrefix(network, "udp") {
		return fmt.Errorf("network %s: want tcp or udp", network)
	}
	return nil
}

// Dial connects from inside the namespace. The address is a literal with a
// port; an IPv6 zone is an interface index.
func (n NS) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if err := literal(network, address); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen is net.Listen inside the namespace.
func (n NS) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	if err := literal(network, address); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		l, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenPacket inside the namespace.
func (n NS) ListenPacket(ctx context.Context, network, address string) (p net.PacketConn, err error) {
	if err := literal(network, address); err != nil {
		return nil, err
	}
	err = n.Do(func() error {
		p, err = (&net.ListenConfig{}).ListenPacket(ctx, network, address)
		return err
	})
	return p, err
}

// Exists reports whether the namespace is there.
func (n NS) Exists() bool {
	_, err := os.Lstat(n.Path())
	return err == nil
}

// inode identifies the namespace behind the name: 0 if there is none, or only
// an empty file because somebody was killed between file and mount.
func (n NS) inode() uint64 {
	var st unix.Stat_t
	var fsst unix.Statfs_t
	if unix.Statfs(n.Path(), &fsst) != nil || fsst.Type != unix.NSFS_MAGIC || unix.Stat(n.Path(), &st) != nil {
		return 0
	}
	return st.Ino
}

// prepareNetnsDir makes /run/netns a shared mount point, as `ip netns add`
// does: namespaces made later must appear in mount namespaces made earlier.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	// iproute2 takes the same lock, so that only one of us stacks the mount.
	lock, err := os.Open(netnsDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", netnsDir, err)
	}
	return nil
}

// create makes the namespace: lo up, IPv6 on and without duplicate address
// detection, so that addresses can be used at once.
func (n NS) create() error {
	f, err := os.OpenFile(n.Path(), os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("create namespace: %w", err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(threadNS, n.Path(), "none", unix.MS_BIND, "")
	})
	if err != nil {
		return fmt.Errorf("create namespace %s: %w", n.name, errors.Join(err, n.remove()))
	}
	for _, kv := range [][2]string{
		{"net.ipv6.conf.all.disable_ipv6", "0"},
		{"net.ipv6.conf.default.disable_ipv6", "0"},
		// The kernel takes the larger of all and interface.
		{"net.ipv6.conf.all.accept_dad", "0"},
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.dad_transmits", "0"},
	} {
		// A kernel without IPv6 has no such file.
		if err := n.Sysctl(kv[0], kv[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return n.withNetlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("set lo up in %s: %w", n.name, err)
		}
		return nil
	})
}

// hasIPv6 reports whether addresses of that family can be given.
func (n NS) hasIPv6() bool {
	_, err := n.ReadSysctl("net.ipv6.conf.default.disable_ipv6")
	return err == nil
}

// remove takes the name away; the kernel destroys the namespace when nothing
// uses it any more. Nothing there is no error.
func (n NS) remove() error {
	// EINVAL: a file without a mount on it.
	err := unix.Unmount(n.Path(), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount namespace %s: %w", n.name, err)
	}
	if err := os.Remove(n.Path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}
