// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	streamChunk = 128 << 10 // bytes per write and read
	// ringPackets is how many packets the window leaves under way on a wire
	// profile: a veth's ring takes 256, and what is beyond that is lost (trap 13
	// of MEASURED.md).
	ringPackets = 180
)

// errStalled: a stream stood still until it was given up.
var errStalled = errors.New("packets lost")

// stream is bulk TCP over some connections from a to b.
func stream(ctx context.Context, s slot, flows, sendCPU, recvCPU int) (r Round, err error) {
	window := 0
	if s.profile.wire {
		window = ringPackets * (s.profile.mtu - overhead - 40) / flows
	}
	l, err := listenTCP(s.bed.b, s.port, window)
	if err != nil {
		return r, err
	}
	defer unix.Close(l)
	c := newCrew()
	var received, progress atomic.Uint64
	var stop atomic.Bool
	var senders, all []int
	defer func() {
		for _, fd := range all {
			unix.Close(fd)
		}
	}()
	for range flows {
		fa, fb, err := tcpPair(s.bed.a, s.bed.b, l, s.port)
		if err != nil {
			stop.Store(true)
			release(all)
			c.goAhead()
			return r, errors.Join(err, c.wait())
		}
		senders, all = append(senders, fa), append(all, fa, fb)
		send := func() error {
			buf := make([]byte, streamChunk)
			for !stop.Load() {
				if _, e := rawWrite(fa, buf); e != 0 && e != unix.EINTR {
					if stop.Load() {
						return nil
					}
					return fmt.Errorf("send: %w", e)
				}
			}
			// One that was given up is shut down already.
			if err := unix.Shutdown(fa, unix.SHUT_WR); !errors.Is(err, unix.ENOTCONN) {
				return err
			}
			return nil
		}
		recv := func() error {
			buf := make([]byte, streamChunk)
			for {
				n, e := rawRead(fb, buf)
				switch {
				case e == unix.EINTR:
				case e != 0 && !stop.Load():
					return fmt.Errorf("receive: %w", e)
				case e != 0 || n == 0:
					return nil
				default:
					received.Add(uint64(n))
				}
			}
		}
		if err := errors.Join(c.add(s.bed.b.NS, recvCPU, recv), c.add(s.bed.a.NS, sendCPU, send)); err != nil {
			stop.Store(true)
			release(all)
			c.goAhead()
			return r, errors.Join(err, c.wait())
		}
	}
	c.goAhead()
	if s.started != nil {
		s.started()
	}

	// The first quarter is slow start and window growth.
	measured := make(chan struct{})
	go func() {
		defer close(measured)
		defer stop.Store(true)
		if !sleep(ctx, s.dur/4) {
			return
		}
		before, n0 := c.mark(), received.Load()
		sleep(ctx, s.dur-s.dur/4)
		n1, after := received.Load(), c.mark()
		r.Bytes, r.CPU, r.Seconds = n1-n0, after.since(before), after.at.Sub(before.at).Seconds()
		for _, fd := range senders {
			if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				r.Resent += uint64(info.Total_retrans)
				// Two CPUs transmit for one connection, so segments overtake each other
				// and TCP resends what was not lost: the receiver reports it twice there.
				r.Lost += uint64(max(info.Total_retrans, info.Dsack_dups) - info.Dsack_dups)
				r.Sent += uint64(info.Segs_out)
			}
		}
		progress.Store(1)
	}()
	stuck, err := watch(ctx, c, &received, func() {
		stop.Store(true)
		release(all)
	})
	<-measured
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && (stuck || progress.Load() == 0) {
		err = fmt.Errorf("%w: no byte arrived for %s", errStalled, stalled)
	}
	if err != nil {
		return r, err
	}
	r.Received = r.Sent - r.Lost
	r.Value = float64(r.Bytes) * 8 / r.Seconds / 1e9
	r.Cost = r.CPU.Seconds / float64(r.Bytes) * 1e18 // ns per GB of 1e9 bytes
	return r, nil
}

func release(fds []int) {
	for _, fd := range fds {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	}
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

const (
	udpBatch   = 64
	udpBuffer  = 32 << 20 // bytes; a batch fits many times, even if ksoftirqd delivers it late
	gsoSize    = 1400
	gsoPackets = 44 // 61,600 bytes per sendmsg
)

// udpFlood is datagrams of one size, socket to socket: one thread sends a batch
// and then takes what has arrived, so no scheduling is part of the figure, and
// nothing is lost because a receiver did not get its turn. With gso each
// datagram given to the kernel is gsoPackets of them (UDP_SEGMENT), taken whole
// at the other end (UDP_GRO).
func udpFlood(ctx context.Context, s slot, size, cpu int, gso bool) (r Round, err error) {
	fa, fb, err := udpPair(s.bed.a, s.bed.b, s.port)
	if err != nil {
		return r, err
	}
	defer unix.Close(fa)
	defer unix.Close(fb)
	for _, o := range []struct{ fd, opt int }{{fa, unix.SO_SNDBUFFORCE}, {fb, unix.SO_RCVBUFFORCE}} {
		if err := unix.SetsockoptInt(o.fd, unix.SOL_SOCKET, o.opt, udpBuffer); err != nil {
			return r, fmt.Errorf("size socket buffer: %w", err)
		}
	}
	n, sendSize, recvSize := udpBatch, size, size+1
	per := uint64(1)
	if gso {
		n, sendSize, recvSize, per = 4, gsoSize*gsoPackets, 65536, gsoPackets
		err = errors.Join(
			unix.SetsockoptInt(fa, unix.SOL_UDP, unix.UDP_SEGMENT, gsoSize),
			unix.SetsockoptInt(fb, unix.SOL_UDP, unix.UDP_GRO, 1))
		if err != nil {
			return r, fmt.Errorf("turn on UDP GSO: %w", err)
		}
	}
	c := newCrew()
	var over atomic.Bool
	defer context.AfterFunc(ctx, func() { over.Store(true) })()
	flood := func() error {
		out, in := newBatch(n, sendSize), newBatch(n, recvSize)
		take := func() error {
			for r.Bytes < r.Sent*uint64(size) {
				m, e := in.call(unix.SYS_RECVMMSG, fb, unix.MSG_DONTWAIT)
				switch e {
				case unix.EINTR:
					continue
				case unix.EAGAIN:
					return nil
				case 0:
				default:
					return fmt.Errorf("receive: %w", e)
				}
				for i := range in.msgs[:m] {
					r.Bytes += uint64(in.msgs[i].len)
				}
			}
			return nil
		}
		before := c.mark()
		for !over.Load() && time.Since(before.at) < s.dur {
			m, e := out.call(unix.SYS_SENDMMSG, fa, 0)
			if e == unix.EINTR {
				continue
			}
			if e != 0 {
				return fmt.Errorf("send: %w", e)
			}
			r.Sent += uint64(m) * per
			if err := take(); err != nil {
				return err
			}
		}
		// The rest may be in the hands of ksoftirqd. What does not come is lost.
		for range 50 {
			if r.Bytes == r.Sent*uint64(size) {
				break
			}
			time.Sleep(time.Millisecond)
			if err := take(); err != nil {
				return err
			}
		}
		after := c.mark()
		r.CPU, r.Seconds = after.since(before), after.at.Sub(before.at).Seconds()
		return nil
	}
	err = c.add(s.bed.a.NS, cpu, flood)
	c.goAhead()
	if err := errors.Join(err, c.wait(), ctx.Err()); err != nil {
		return r, err
	}
	r.Received = r.Bytes / uint64(size)
	r.Lost = r.Sent - r.Received
	if r.Received == 0 {
		return r, fmt.Errorf("none of %d datagrams arrived", r.Sent)
	}
	if gso {
		r.Value = float64(r.Bytes) * 8 / r.Seconds / 1e9
		r.Cost = r.CPU.Seconds / float64(r.Bytes) * 1e18
	} else {
		r.Value = float64(r.Received) / r.Seconds
		r.Cost = r.CPU.Seconds / float64(r.Received) * 1e9
	}
	return r, nil
}
