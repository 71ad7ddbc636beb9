// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sockets are made here and used with raw system calls: a thread that waits in
// one keeps its place in Go's scheduler, so no handover is part of the path.
// That needs more places than threads (see Run) and no garbage collection
// meanwhile (see quiet).

func inNS[T any](e Endpoint, fn func() (T, error)) (v T, err error) {
	err = e.NS.Do(func() error {
		v, err = fn()
		return err
	})
	return v, err
}

func sockaddr(e Endpoint, port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: e.Addr, Port: port}
}

// boundUDP is a UDP socket with a port of its own on e.
func boundUDP(e Endpoint, port int) (int, error) {
	return inNS(e, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("make UDP socket: %w", err)
		}
		if err := unix.Bind(fd, sockaddr(e, port)); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("bind UDP port %d: %w", port, err)
		}
		return fd, nil
	})
}

// udpPair is two UDP sockets that are connected to each other.
func udpPair(a, b Endpoint, port int) (fa, fb int, err error) {
	if fa, err = boundUDP(a, port); err != nil {
		return -1, -1, err
	}
	if fb, err = boundUDP(b, port); err != nil {
		unix.Close(fa)
		return -1, -1, err
	}
	for _, s := range []struct {
		fd int
		to Endpoint
	}{{fa, b}, {fb, a}} {
		if err := unix.Connect(s.fd, sockaddr(s.to, port)); err != nil {
			unix.Close(fa)
			unix.Close(fb)
			return -1, -1, fmt.Errorf("connect UDP socket: %w", err)
		}
	}
	return fa, fb, nil
}

// listenTCP listens on e. window limits what may be in flight to each accepted
// socket, bytes; 0: the kernel's own choice.
func listenTCP(e Endpoint, port, window int) (int, error) {
	return inNS(e, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("make TCP socket: %w", err)
		}
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		if err == nil && window > 0 {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, window)
		}
		if err == nil {
			err = unix.Bind(fd, sockaddr(e, port))
		}
		if err == nil {
			err = unix.Listen(fd, 512)
		}
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("listen on TCP port %d: %w", port, err)
		}
		return fd, nil
	})
}

// tcpPair is one connection from a to the listener of b.
func tcpPair(a, b Endpoint, listener, port int) (fa, fb int, err error) {
	fa, err = inNS(a, func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("make TCP socket: %w", err)
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if err == nil {
			// Bounds connect: without a path it would take two minutes.
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 3000)
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 2)
		}
		if err == nil {
			err = unix.Connect(fd, sockaddr(b, port))
		}
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("connect to TCP port %d: %w", port, err)
		}
		return fd, nil
	})
	if err != nil {
		return -1, -1, err
	}
	// It is in the queue already: this does not wait.
	if fb, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
		unix.Close(fa)
		return -1, -1, fmt.Errorf("accept: %w", err)
	}
	return fa, fb, nil
}

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

func rawWrite(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

// readFull reads len(b) bytes of a stream, or fewer at its end.
func readFull(fd int, b []byte) (int, unix.Errno) {
	got := 0
	for got < len(b) {
		n, e := rawRead(fd, b[got:])
		if e == unix.EINTR {
			continue
		}
		if e != 0 || n == 0 {
			return got, e
		}
		got += n
	}
	return got, 0
}

// mmsghdr of sendmmsg(2) and recvmmsg(2); Go pads its end as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// batch is buffers and headers for sendmmsg and recvmmsg.
type batch struct {
	msgs []mmsghdr
	iov  []unix.Iovec
	bufs []byte
}

func newBatch(n, size int) *batch {
	b := &batch{msgs: make([]mmsghdr, n), iov: make([]unix.Iovec, n), bufs: make([]byte, n*size)}
	for i := range n {
		b.iov[i].Base = &b.bufs[i*size]
		b.iov[i].SetLen(size)
		b.msgs[i].hdr.Iov = &b.iov[i]
		b.msgs[i].hdr.SetIovlen(1)
	}
	return b
}

func (b *batch) call(trap uintptr, fd int, flags uintptr) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(len(b.msgs)), flags, 0, 0)
	return int(n), e
}
