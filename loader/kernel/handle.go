// SPDX-License-Identifier: Apache-2.0

// Package kernel shows and changes the links, bridges, forwarding entries,
// neighbours, addresses and routes of one network namespace over rtnetlink,
// and reports their changes. It keeps no state: what it returns is what the
// kernel said at that moment. It must not know what the daemon wants.
//
// Adding what is there and deleting what is not there succeed, except that
// creating a link under a name or a VNI in use is an error (it wraps
// unix.EEXIST): whether to adopt it is for the caller. Every error of the
// kernel is wrapped as its unix.Errno, with the kernel's own sentence behind
// it where it gives one.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries is how often a dump is begun again because the tables changed
// under it (NLM_F_DUMP_INTR).
const dumpTries = 20

// requestTimeout bounds the wait for an answer; the kernel answers at once
// unless something holds its rtnl lock.
var requestTimeout = unix.Timeval{Sec: 60}

// Handle is an rtnetlink connection to the network namespace that the thread
// calling Open was in. It may be used from any goroutine and thread;
// concurrent requests wait for each other.
type Handle struct {
	mu      sync.Mutex
	sockets map[int]*nl.SocketHandle // nil once closed
	ns      *os.File                 // the namespace, for sockets opened later
}

// Open connects to the network namespace of the calling thread. A caller that
// moves between namespaces locks its goroutine to the thread first.
func Open() (_ *Handle, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	// Subscribe with no groups is a plain socket in the thread's namespace.
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink socket: %w", err), ns.Close())
	}
	if err := errors.Join(s.SetExtAck(true), s.SetSendTimeout(&requestTimeout), s.SetReceiveTimeout(&requestTimeout)); err != nil {
		s.Close()
		return nil, errors.Join(fmt.Errorf("set up rtnetlink socket: %w", err), ns.Close())
	}
	return &Handle{
		sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}},
		ns:      ns,
	}, nil
}

// Close waits for the request in flight and ends the connection. Requests
// after it fail with os.ErrClosed. Subscriptions are not affected. A second
// Close does nothing.
func (h *Handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sockets == nil {
		return nil
	}
	h.sockets[unix.NETLINK_ROUTE].Close()
	h.sockets = nil
	return h.ns.Close()
}

// request sends one message and returns the answers of type want (0: any).
// flags are added to NLM_F_REQUEST.
func (h *Handle) request(typ, flags int, want uint16, parts ...nl.NetlinkRequestData) ([][]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sockets == nil {
		return nil, os.ErrClosed
	}
	for try := 1; ; try++ {
		req := nl.NewNetlinkRequest(typ, flags)
		req.Sockets = h.sockets
		for _, p := range parts {
			req.AddData(p)
		}
		msgs, err := req.Execute(unix.NETLINK_ROUTE, want)
		if errors.Is(err, nl.ErrDumpInterrupted) && try < dumpTries {
			continue
		}
		if err != nil {
			return nil, err
		}
		return msgs, nil
	}
}

// change sends one message that changes something and waits for the kernel's
// verdict.
func (h *Handle) change(typ, flags int, parts ...nl.NetlinkRequestData) error {
	_, err := h.request(typ, flags|unix.NLM_F_ACK, 0, parts...)
	return err
}

// get asks for one object and returns the first answer.
func (h *Handle) get(typ int, want uint16, parts ...nl.NetlinkRequestData) ([]byte, error) {
	msgs, err := h.request(typ, 0, want, parts...)
	if err != nil {
		return nil, err
	}
	if len(msgs) == 0 {
		return nil, errors.New("no answer")
	}
	return msgs[0], nil
}

// dump lists a table and parses each message of it; parse says whether the
// message counts.
func dump[T any](h *Handle, typ int, want uint16, head raw, parse func([]byte) (T, bool, error)) ([]T, error) {
	msgs, err := h.request(typ, unix.NLM_F_DUMP, want, head)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(msgs))
	for _, m := range msgs {
		v, ok, err := parse(m)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, v)
		}
	}
	return out, nil
}

// inside runs f on a thread that is in the Handle's namespace. A thread that
// cannot be moved back stays locked to its goroutine and ends with it.
func (h *Handle) inside(f func() error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sockets == nil {
		return os.ErrClosed
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err, home := h.enter(f)
		if home {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// enter runs f in the Handle's namespace; home reports whether the thread is
// where it was before.
func (h *Handle) enter(f func() error) (err error, home bool) {
	before, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err), true
	}
	defer before.Close()
	a, errA := before.Stat()
	b, errB := h.ns.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return fmt.Errorf("compare network namespaces: %w", err), true
	}
	if os.SameFile(a, b) {
		return f(), true // the usual case: needs no CAP_SYS_ADMIN
	}
	if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err), true
	}
	err = f()
	return err, unix.Setns(int(before.Fd()), unix.CLONE_NEWNET) == nil
}

// LocalPortRange returns the UDP source ports, both included, that the kernel
// gives to a vxlan device without a range of its own
// (net.ipv4.ip_local_port_range; udp_flow_src_port uses it for IPv6 too).
func (h *Handle) LocalPortRange() (lo, hi uint16, err error) {
	n, err := h.sysctl("net/ipv4/ip_local_port_range", 2)
	if err != nil {
		return 0, 0, fmt.Errorf("read local port range: %w", err)
	}
	return n[0], n[1], nil
}

// DefaultTTL returns the TTL of IPv4 packets whose sender and route ask for
// none (net.ipv4.ip_default_ttl).
func (h *Handle) DefaultTTL() (int, error) {
	n, err := h.sysctl("net/ipv4/ip_default_ttl", 1)
	if err != nil {
		return 0, fmt.Errorf("read default ttl: %w", err)
	}
	return int(n[0]), nil
}

// HopLimit returns the hop limit of IPv6 packets that leave by the device,
// where sender and route ask for none (net.ipv6.conf.<device>.hop_limit; a
// router's advertisement may have set it).
func (h *Handle) HopLimit(device string) (int, error) {
	n, err := h.sysctl("net/ipv6/conf/"+device+"/hop_limit", 1)
	if err != nil {
		return 0, fmt.Errorf("read hop limit of %s: %w", device, err)
	}
	return int(n[0]), nil
}

// sysctl reads a file of n 16-bit numbers under /proc/sys.
func (h *Handle) sysctl(name string, n int) ([]uint16, error) {
	var text []byte
	// /proc/sys/net shows the namespace of the thread that opens the file.
	if err := h.inside(func() (err error) { text, err = os.ReadFile("/proc/sys/" + name); return err }); err != nil {
		return nil, err
	}
	fields := strings.Fields(string(text))
	if len(fields) != n {
		return nil, fmt.Errorf("%s holds %q, want %d numbers", name, text, n)
	}
	out := make([]uint16, n)
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[i] = uint16(v)
	}
	return out, nil
}
