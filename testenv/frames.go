// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a Recorder keeps at most.
const (
	maxFrames = 100_000
	maxBytes  = 256 << 20
)

// Frame is one Ethernet frame as a packet socket saw it. A VLAN tag that the
// kernel keeps beside the packet stands in Data, where it was on the wire.
type Frame struct {
	Data []byte
	Time time.Time // when this process read it
	// Outgoing: transmitted on the link, not received from it.
	Outgoing bool
	// PartialChecksum: the transport checksum was left to the hardware, its
	// field holds only the pseudo header's sum.
	PartialChecksum bool
}

// PacketConn sends and receives whole Ethernet frames on one link.
type PacketConn struct {
	f      *os.File // on the runtime's poller, for deadlines
	rc     syscall.RawConn
	ifname string
	buf    []byte
	oob    []byte
}

// PacketSocket opens an AF_PACKET socket on a link of a namespace. It sees
// frames of all protocols and both directions, except those that it sends.
func PacketSocket(ns NS, ifname string) (*PacketConn, error) {
	var fd int
	err := ns.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		// Protocol 0 receives nothing: no frame of another link before bind.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		// The default buffer drops frames in bursts. Privileged, hence best effort.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index})
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s in %s: %w", ifname, ns.name, err)
	}
	c := &PacketConn{f: os.NewFile(uintptr(fd), "packet:"+ifname), ifname: ifname, buf: make([]byte, 1<<17), oob: make([]byte, 256)}
	if c.rc, err = c.f.SyscallConn(); err != nil {
		c.f.Close()
		return nil, err
	}
	return c, nil
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Close closes the socket; a Recv that waits returns.
func (c *PacketConn) Close() error { return c.f.Close() }

// Send transmits a frame, Ethernet header first, no FCS.
func (c *PacketConn) Send(frame []byte) error {
	if err := c.f.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.f.Write(frame); err != nil {
		return fmt.Errorf("send frame of %d bytes on %s: %w", len(frame), c.ifname, err)
	}
	return nil
}

// Recv returns the next frame. The error wraps os.ErrDeadlineExceeded if none
// came in time. Not for several goroutines at once.
func (c *PacketConn) Recv(timeout time.Duration) (Frame, error) {
	if err := c.f.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return Frame{}, err
	}
	return c.recv()
}

func (c *PacketConn) recv() (Frame, error) {
	var n, oobn int
	var from unix.Sockaddr
	var err error
	rerr := c.rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), c.buf, c.oob, 0)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if rerr != nil {
		// Either the deadline or an error of the poller's own for "closed".
		if err = rerr; !errors.Is(err, os.ErrDeadlineExceeded) {
			err = os.ErrClosed
		}
	}
	if err != nil {
		return Frame{}, fmt.Errorf("receive frame on %s: %w", c.ifname, err)
	}
	fr := Frame{Time: time.Now()}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		fr.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
	}
	fr.Data = append(make([]byte, 0, n+4), c.buf[:n]...)
	cmsgs, err := unix.ParseSocketControlMessage(c.oob[:oobn])
	if err != nil {
		return fr, nil
	}
	for _, m := range cmsgs {
		var aux unix.TpacketAuxdata
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < int(unsafe.Sizeof(aux)) {
			continue
		}
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &aux); err != nil {
			continue
		}
		fr.PartialChecksum = aux.Status&unix.TP_STATUS_CSUMNOTREADY != 0
		if aux.Status&unix.TP_STATUS_VLAN_VALID != 0 && n >= 12 {
			tpid := uint16(unix.ETH_P_8021Q)
			if aux.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
				tpid = aux.Vlan_tpid
			}
			tag := binary.BigEndian.AppendUint16(nil, tpid)
			tag = binary.BigEndian.AppendUint16(tag, aux.Vlan_tci)
			fr.Data = append(fr.Data[:12], append(tag, c.buf[12:n]...)...)
		}
	}
	return fr, nil
}

// SendFrame transmits one frame on a link of a namespace.
func SendFrame(ns NS, ifname string, frame []byte) error {
	c, err := PacketSocket(ns, ifname)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Send(frame)
}

// Recorder keeps the frames that pass a link.
type Recorder struct {
	c    *PacketConn
	stop func() bool
	done chan struct{}

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each frame
	frames  []Frame
	err     error
}

// Capture records frames of both directions that filter accepts (nil: all)
// until Stop, until ctx ends, or until it has 100,000 frames or 256 MiB. It records
// when it returns.
func Capture(ctx context.Context, ns NS, ifname string, filter func([]byte) bool) (*Recorder, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := PacketSocket(ns, ifname)
	if err != nil {
		return nil, err
	}
	r := &Recorder{c: c, done: make(chan struct{}), changed: make(chan struct{})}
	r.stop = context.AfterFunc(ctx, func() { c.Close() })
	go r.run(filter)
	return r, nil
}

func (r *Recorder) run(filter func([]byte) bool) {
	defer close(r.done)
	defer r.c.Close()
	size := 0
	for {
		f, err := r.c.recv()
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once; the socket goes on when the link is up again
		}
		if err == nil && filter != nil && !filter(f.Data) {
			continue
		}
		r.mu.Lock()
		switch {
		case err == nil:
			r.frames = append(r.frames, f)
			size += len(f.Data)
		case !errors.Is(err, os.ErrClosed):
			r.err = err
		}
		close(r.changed)
		r.changed = make(chan struct{})
		full := len(r.frames) >= maxFrames || size >= maxBytes
		r.mu.Unlock()
		if err != nil || full {
			return
		}
	}
}

// Frames recorded so far.
func (r *Recorder) Frames() []Frame {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.frames[:len(r.frames):len(r.frames)]
}

// Wait returns when n frames are there, or with ctx's error, or when the
// recording has ended short of n.
func (r *Recorder) Wait(ctx context.Context, n int) error {
	for {
		r.mu.Lock()
		have, changed := len(r.frames), r.changed
		r.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-r.done:
			if len(r.Frames()) < n {
				return fmt.Errorf("recording on %s ended with %d frames, want %d", r.c.ifname, have, n)
			}
		case <-ctx.Done():
			return fmt.Errorf("recorded %d frames on %s, want %d: %w", have, r.c.ifname, n, ctx.Err())
		}
	}
}

// Stop ends the recording and returns its frames. The error is the socket's.
func (r *Recorder) Stop() ([]Frame, error) {
	r.stop()
	r.c.Close()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.frames, r.err
}
