// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Event is one change that the kernel reported: one of the types below.
type Event interface{ event() }

type (
	// LinkChanged: a link was made or changed; this is what it is now.
	LinkChanged struct{ Link }
	// LinkGone: a link was deleted, or left for another namespace.
	LinkGone struct {
		Index int
		Name  string
	}
	// PortChanged: something of a bridge port changed, its spanning tree state
	// for one. The caller reads the link again: these messages also come from
	// drivers, which fill in but a part of the attributes.
	PortChanged struct{ Index, Bridge int }
	// PortGone: the link left the bridge. The link itself lives on unless
	// LinkGone says otherwise.
	PortGone struct{ Index, Bridge int }
	// FDBChanged: an entry was made, moved (its Link or Dst is new; for a
	// bridge there is no FDBGone of the old place) or changed.
	FDBChanged struct{ FDBEntry }
	// FDBGone: this entry is no more.
	FDBGone struct{ FDBEntry }
	// NeighbourChanged: resolved, confirmed, gone stale or failed.
	NeighbourChanged struct{ Neighbour }
	// NeighbourGone: the entry is no more.
	NeighbourGone struct{ Neighbour }
	// RouteChanged: some route came or went. A learned path MTU is not told.
	RouteChanged struct{}
	// AddressChanged: some address came, went or changed.
	AddressChanged struct{ Link int }
	// NextHopChanged: a next hop object came, went or changed.
	NextHopChanged struct{}
	// QdiscChanged: a queueing discipline or filter of the link came, went or changed.
	QdiscChanged struct{ Link int }
	// Overrun: events were lost, and everything older was thrown away. The
	// caller lists anew what it follows, then goes on with Next: every event
	// from here on is newer than the loss.
	Overrun struct{ Err error } // unix.ENOBUFS, or what was wrong with a message
)

func (LinkChanged) event()      {}
func (LinkGone) event()         {}
func (PortChanged) event()      {}
func (PortGone) event()         {}
func (FDBChanged) event()       {}
func (FDBGone) event()          {}
func (NeighbourChanged) event() {}
func (NeighbourGone) event()    {}
func (RouteChanged) event()     {}
func (AddressChanged) event()   {}
func (NextHopChanged) event()   {}
func (QdiscChanged) event()     {}
func (Overrun) event()          {}

// parseEvent turns one rtnetlink message into the event that it reports, nil
// if it reports none.
func parseEvent(m message) (Event, error) {
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return parseLinkEvent(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		gone := m.typ == unix.RTM_DELNEIGH
		e, ok, err := parseFDB(m.data)
		if err != nil {
			return nil, err
		}
		if ok {
			if gone {
				return FDBGone{e}, nil
			}
			return FDBChanged{e}, nil
		}
		n, ok, err := parseNeighbour(m.data)
		if err != nil || !ok {
			return nil, err
		}
		if gone {
			return NeighbourGone{n}, nil
		}
		return NeighbourChanged{n}, nil
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return RouteChanged{}, nil
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return NextHopChanged{}, nil
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
		// struct tcmsg: family, three bytes of padding, ifindex.
		var d decoder
		head, _ := d.header(m.data, 20)
		if d.err != nil {
			return nil, d.err
		}
		return QdiscChanged{d.index(head[4:8])}, nil
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, ok, err := parseAddress(m.data)
		if err != nil || !ok {
			return nil, err
		}
		return AddressChanged{a.Link}, nil
	}
	return nil, nil
}

func parseLinkEvent(m message) (Event, error) {
	var d decoder
	head, rest := d.header(m.data, unix.SizeofIfInfomsg)
	if d.err != nil {
		return nil, fmt.Errorf("parse link: %w", d.err)
	}
	switch head[0] {
	case unix.AF_UNSPEC:
		l, err := parseLink(m.data)
		if err != nil {
			return nil, err
		}
		if m.typ == unix.RTM_DELLINK {
			return LinkGone{Index: l.Index, Name: l.Name}, nil
		}
		return LinkChanged{l}, nil
	case unix.AF_BRIDGE:
		index, bridge := int(int32(native.Uint32(head[4:]))), 0
		for typ, v := range d.attrs(rest) {
			if typ == unix.IFLA_MASTER {
				bridge = d.index(v)
			}
		}
		if d.err != nil {
			return nil, fmt.Errorf("parse bridge port %d: %w", index, d.err)
		}
		if m.typ == unix.RTM_DELLINK {
			return PortGone{index, bridge}, nil
		}
		return PortChanged{index, bridge}, nil
	}
	return nil, nil
}

// SubscribeOptions tune a Subscription.
type SubscribeOptions struct {
	// ReceiveBuffer is the size in bytes of the socket's receive buffer. 0: 4 MiB,
	// some 10,000 forwarding entries at once, as the kernel counts memory.
	ReceiveBuffer int
}

// Subscription delivers the changes of one namespace in the kernel's order.
// Next belongs to one goroutine.
type Subscription struct {
	ctx    context.Context
	stop   func() bool
	file   *os.File
	conn   syscall.RawConn
	closed atomic.Bool
	rcvbuf int
	buf    []byte
}

// groups are the multicast groups of rtnetlink that a Subscription joins.
var groups = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_TC, unix.RTNLGRP_NEXTHOP,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
}

// Subscribe begins to collect the changes of links, bridge ports, forwarding
// entries, neighbours, routes, addresses and next hops in the Handle's
// namespace. To follow a table, subscribe, then list it, then call Next: an
// event that the list already shows does no harm when it is applied again.
// When ctx ends, Next returns its error. The caller calls Close.
func (h *Handle) Subscribe(ctx context.Context, o SubscribeOptions) (*Subscription, error) {
	if o.ReceiveBuffer == 0 {
		o.ReceiveBuffer = 4 << 20
	}
	var fd int
	err := h.inside(func() (err error) { fd, err = openGroups(o.ReceiveBuffer, groups); return err })
	if err != nil {
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	s := &Subscription{ctx: ctx, file: os.NewFile(uintptr(fd), "rtnetlink"), buf: make([]byte, 64<<10)}
	s.rcvbuf, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err == nil {
		s.conn, err = s.file.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to rtnetlink: %w", err), s.file.Close())
	}
	// A deadline in the past wakes a Next that waits, and every later one: the
	// cancellation cannot fall between a check and a wait.
	s.stop = context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	return s, nil
}

// openGroups opens a socket in the thread's namespace.
func openGroups(buffer int, groups []uint) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
	if errors.Is(err, unix.EPERM) { // without CAP_NET_ADMIN: as much as net.core.rmem_max lets
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err != nil {
		return -1, fmt.Errorf("set receive buffer to %d: %w", buffer, err)
	}
	sa := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range groups {
		sa.Groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, sa); err != nil {
		return -1, fmt.Errorf("join groups: %w", err)
	}
	return fd, nil
}

// Close ends the subscription; a Next that waits returns os.ErrClosed. A
// second Close does nothing.
func (s *Subscription) Close() error {
	s.stop()
	s.closed.Store(true)
	if err := s.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close rtnetlink subscription: %w", err)
	}
	return nil
}

// batch bounds how many datagrams one Next reads, so that a flood of changes
// still reaches the caller in pieces.
const batch = 512

// Next waits for changes and returns them in order, at least one. Its error is
// the context's once that has ended, else os.ErrClosed after Close, else the
// socket's; each is final.
func (s *Subscription) Next() ([]Event, error) {
	for {
		var events []Event
		var failed error
		err := s.conn.Read(func(fd uintptr) bool {
			var wait bool
			events, wait, failed = s.collect(int(fd))
			return !wait
		})
		switch {
		case s.ctx.Err() != nil:
			return nil, s.ctx.Err()
		case s.closed.Load():
			return nil, os.ErrClosed // SyscallConn's own error for it does not wrap that
		case err == nil:
			err = failed
		}
		if err != nil {
			return nil, fmt.Errorf("receive rtnetlink events: %w", err)
		}
		if len(events) > 0 {
			return events, nil
		}
	}
}

// collect reads what is queued. wait reports that nothing was.
func (s *Subscription) collect(fd int) (events []Event, wait bool, err error) {
	for i := range batch {
		b, err := s.receive(fd)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return events, i == 0, nil
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EMSGSIZE):
			return s.overrun(fd, err)
		case err != nil:
			return nil, false, err
		}
		var d decoder
		for m := range d.messages(b) {
			e, err := parseEvent(m)
			if err != nil {
				return s.overrun(fd, err)
			}
			if e != nil {
				events = append(events, e)
			}
		}
		if d.err != nil {
			return s.overrun(fd, d.err)
		}
	}
	return events, false, nil
}

// overrun throws away what is queued. It is older than the loss, and applied
// after the caller's resync it would bring back what a lost event had removed.
// The kernel queues nothing behind a loss until the queue is empty, so one
// buffer's worth is all there can be of it.
func (s *Subscription) overrun(fd int, cause error) ([]Event, bool, error) {
	for read := 0; read <= s.rcvbuf; {
		b, err := s.receive(fd)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return []Event{Overrun{cause}}, false, nil
		case errors.Is(err, unix.ENOBUFS): // lost again while draining
			read = 0
		case err != nil && !errors.Is(err, unix.EMSGSIZE):
			return nil, false, err
		}
		read += max(len(b), 1)
	}
	return []Event{Overrun{cause}}, false, nil
}

// receive returns the next datagram of the kernel, empty if it was someone
// else's. EMSGSIZE means that it was longer than the buffer.
func (s *Subscription) receive(fd int) ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(fd, s.buf, unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n > len(s.buf) {
			return nil, unix.EMSGSIZE
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			return nil, nil
		}
		return s.buf[:n], nil
	}
}
