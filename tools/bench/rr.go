// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rrSize of requests and of responses, bytes.
const rrSize = 64

// stalled is how long a request may stay unanswered until it counts as lost.
const stalled = 400 * time.Millisecond

// watch waits for a crew whose progress is counted in n. The threads wait in
// the kernel without a timeout, since a timer per packet would be measured too;
// so what gets stuck is set free here.
func watch(ctx context.Context, c *crew, n *atomic.Uint64, release func()) (stuck bool, err error) {
	done := make(chan struct{})
	go func() {
		err = c.wait()
		close(done)
	}()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last, since, cancel := n.Load(), time.Now(), ctx.Done()
	for {
		select {
		case <-done:
			return stuck, err
		case <-cancel:
			cancel = nil
			release()
		case now := <-tick.C:
			if v := n.Load(); v != last {
				last, since = v, now
			} else if now.Sub(since) > stalled {
				stuck, since = true, now
				release()
			}
		}
	}
}

// rr is request/response: one client, one server, one request under way.
// clientCPU and serverCPU may be the same: then the figure is the cost of the path.
func rr(ctx context.Context, s slot, tcp bool, clientCPU, serverCPU int) (r Round, err error) {
	var fa, fb int
	if tcp {
		l, err := listenTCP(s.bed.b, s.port, 0)
		if err != nil {
			return r, err
		}
		fa, fb, err = tcpPair(s.bed.a, s.bed.b, l, s.port)
		unix.Close(l)
		if err != nil {
			return r, err
		}
	} else if fa, fb, err = udpPair(s.bed.a, s.bed.b, s.port); err != nil {
		return r, err
	}
	defer unix.Close(fa)
	defer unix.Close(fb)

	c := newCrew()
	var n, served atomic.Uint64
	var h histogram
	var used CPU
	var elapsed time.Duration
	const stop = 0xff
	client := func() error {
		buf := make([]byte, rrSize)
		before := c.mark()
		last := time.Now()
		t0 := last
		for {
			if _, e := rawWrite(fa, buf); e != 0 {
				return fmt.Errorf("send request: %w", e)
			}
			got := 0
			for got < rrSize {
				m, e := rawRead(fa, buf[got:])
				if e == unix.EINTR {
					continue
				}
				if e != 0 {
					return fmt.Errorf("receive response: %w", e)
				}
				if m == 0 { // released by watch
					return nil
				}
				got += m
			}
			now := time.Now()
			h.add(now.Sub(last))
			last = now
			n.Add(1)
			if now.Sub(t0) >= s.dur {
				break
			}
		}
		elapsed = last.Sub(t0)
		used = c.mark().since(before)
		buf[0] = stop
		_, _ = rawWrite(fa, buf) // if it is lost, watch ends the server
		return nil
	}
	server := func() error {
		buf := make([]byte, rrSize)
		for {
			got := 0
			for got < rrSize {
				m, e := rawRead(fb, buf[got:])
				if e == unix.EINTR {
					continue
				}
				if e != 0 {
					return fmt.Errorf("receive request: %w", e)
				}
				if m == 0 {
					return nil
				}
				got += m
			}
			if buf[0] == stop {
				return nil
			}
			served.Add(1)
			if _, e := rawWrite(fb, buf); e != 0 {
				return fmt.Errorf("send response: %w", e)
			}
		}
	}
	if err := errors.Join(c.add(s.bed.b.NS, serverCPU, server), c.add(s.bed.a.NS, clientCPU, client)); err != nil {
		c.goAhead()
		return r, err
	}
	c.goAhead()
	stuck, err := watch(ctx, c, &n, func() {
		_ = unix.Shutdown(fa, unix.SHUT_RDWR)
		_ = unix.Shutdown(fb, unix.SHUT_RDWR)
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return r, err
	}
	r.Sent, r.Received = n.Load(), n.Load()
	if stuck {
		return r, fmt.Errorf("packet lost: no answer for %s after %d requests", stalled, n.Load())
	}
	if served.Load() < n.Load() {
		return r, fmt.Errorf("%d answers to %d requests: fewer arrived than claimed", n.Load(), served.Load())
	}
	r.Seconds = elapsed.Seconds()
	r.Value = float64(r.Received) / r.Seconds
	r.Bytes = 2 * rrSize * r.Received
	r.CPU, r.Latency = used, h.latency()
	r.Cost = used.Seconds / float64(r.Received) * 1e9
	return r, nil
}

// crr is connect, request, response, close, on one CPU.
func crr(ctx context.Context, s slot, cpu int) (r Round, err error) {
	l, err := listenTCP(s.bed.b, s.port, 0)
	if err != nil {
		return r, err
	}
	defer unix.Close(l)
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: uint16(s.port>>8 | s.port&0xff<<8), Addr: s.bed.b.Addr}
	c := newCrew()
	var n atomic.Uint64
	var stop atomic.Bool
	var open atomic.Int64 // the descriptor to be shut down if the client is stuck
	open.Store(-1)
	var h histogram
	var used CPU
	var elapsed time.Duration
	client := func() error {
		buf := make([]byte, rrSize)
		before := c.mark()
		last := time.Now()
		t0 := last
		for !stop.Load() {
			fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if e != 0 {
				return fmt.Errorf("make TCP socket: %w", e)
			}
			open.Store(int64(fd))
			_, _, e = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&to)), unix.SizeofSockaddrInet4)
			if e == 0 {
				_, e = rawWrite(int(fd), buf)
			}
			got := 0
			if e == 0 {
				got, e = readFull(int(fd), buf)
			}
			open.Store(-1)
			_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
			if stop.Load() {
				break
			}
			if e != 0 || got < rrSize {
				return fmt.Errorf("transaction %d: %d bytes of %d: %w", n.Load(), got, rrSize, e)
			}
			now := time.Now()
			h.add(now.Sub(last))
			last = now
			n.Add(1)
			if now.Sub(t0) >= s.dur {
				break
			}
		}
		elapsed = last.Sub(t0)
		used = c.mark().since(before)
		stop.Store(true)
		_ = unix.Shutdown(l, unix.SHUT_RDWR) // the server waits in accept
		return nil
	}
	server := func() error {
		buf := make([]byte, rrSize)
		for {
			fd, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(l), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
			if e == unix.EINTR {
				continue
			}
			if e != 0 {
				if stop.Load() {
					return nil
				}
				return fmt.Errorf("accept: %w", e)
			}
			if got, _ := readFull(int(fd), buf); got == rrSize {
				_, _ = rawWrite(int(fd), buf)
				_, _ = rawRead(int(fd), buf) // the client closes first
			}
			_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
		}
	}
	if err := errors.Join(c.add(s.bed.b.NS, cpu, server), c.add(s.bed.a.NS, cpu, client)); err != nil {
		stop.Store(true)
		_ = unix.Shutdown(l, unix.SHUT_RDWR)
		c.goAhead()
		return r, err
	}
	c.goAhead()
	stuck, err := watch(ctx, c, &n, func() {
		stop.Store(true)
		if fd := open.Load(); fd >= 0 {
			_ = unix.Shutdown(int(fd), unix.SHUT_RDWR)
		}
		_ = unix.Shutdown(l, unix.SHUT_RDWR)
	})
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && stuck {
		err = fmt.Errorf("packet lost: no progress for %s after %d connections", stalled, n.Load())
	}
	if err != nil {
		return r, err
	}
	r.Sent, r.Received = n.Load(), n.Load()
	r.Seconds = elapsed.Seconds()
	r.Value = float64(r.Received) / r.Seconds
	r.Bytes = 2 * rrSize * r.Received
	r.CPU, r.Latency = used, h.latency()
	r.Cost = used.Seconds / float64(max(r.Received, 1)) * 1e9
	return r, nil
}
