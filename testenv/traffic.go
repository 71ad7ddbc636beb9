// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// PingOptions of Ping.
type PingOptions struct {
	// Count of echo requests, 1..65535. 0: 3.
	Count int
	// Interval between requests. 0: 100 ms.
	Interval time.Duration
	// Size of the payload in bytes, without the 8 of the ICMP header. 0: 56.
	Size int
	// Timeout is how long replies are awaited after the last request. 0: 2 s.
	Timeout time.Duration
	// DontFragment forbids fragments on the way and refuses to send what
	// exceeds the known path MTU.
	DontFragment bool
}

// PingResult is what came back.
type PingResult struct {
	Sent, Received, Duplicates int
	RTTs                       []time.Duration // of the first reply to each request, in order of arrival
	// Errors are failed sends, ICMP errors and changed payloads; at most 100.
	Errors []string
}

// OK reports that every request was answered once and unchanged.
func (r PingResult) OK() bool {
	return r.Sent > 0 && r.Received == r.Sent && r.Duplicates == 0 && len(r.Errors) == 0
}

func (r PingResult) String() string {
	s := fmt.Sprintf("%d sent, %d received, %d duplicates", r.Sent, r.Received, r.Duplicates)
	for _, e := range r.Errors {
		s += "; " + e
	}
	return s
}

// pinger is one Ping.
type pinger struct {
	v6      bool
	id      int
	payload []byte

	mu      sync.Mutex
	sentAt  map[int]time.Time
	got     map[int]bool
	settled map[int]bool // got, or could not be sent, or an ICMP error came back
	res     PingResult
	all     chan struct{} // closed when every request is settled
	want    int
}

// Ping sends ICMP echo requests and counts the replies. Lost packets are in
// the result; the error says that Ping could not work at all, or that ctx ended.
func Ping(ctx context.Context, from NS, dst netip.Addr, o PingOptions) (PingResult, error) {
	if o.Count == 0 {
		o.Count = 3
	}
	if o.Interval == 0 {
		o.Interval = 100 * time.Millisecond
	}
	if o.Size == 0 {
		o.Size = 56
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second
	}
	if o.Count < 1 || o.Count > 65535 || o.Size < 0 || o.Size > 65000 {
		return PingResult{}, fmt.Errorf("ping %s: count %d or size %d out of range", dst, o.Count, o.Size)
	}
	dst = dst.Unmap()
	conn, err := listenICMP(from, dst.Is6(), o.DontFragment)
	if err != nil {
		return PingResult{}, fmt.Errorf("ping %s from %s: %w", dst, from.name, err)
	}
	defer conn.Close()

	p := &pinger{
		v6: dst.Is6(), id: rand.IntN(1 << 16), payload: make([]byte, o.Size), want: o.Count,
		sentAt: map[int]time.Time{}, got: map[int]bool{}, settled: map[int]bool{}, all: make(chan struct{}),
	}
	_, _ = rand.NewChaCha8([32]byte{byte(p.id), byte(p.id >> 8)}).Read(p.payload)

	received := make(chan struct{})
	go func() {
		defer close(received)
		p.receive(conn)
	}()
	err = p.send(ctx, conn, dst, o)
	if err == nil {
		wait := time.NewTimer(o.Timeout)
		defer wait.Stop()
		select {
		case <-p.all:
			// A duplicate comes right behind.
			time.Sleep(5 * time.Millisecond)
		case <-wait.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	conn.Close()
	<-received
	return p.res, err
}

func listenICMP(ns NS, v6, dontFragment bool) (c *net.IPConn, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var serr error
		err := rc.Control(func(fd uintptr) {
			mode := unix.IP_PMTUDISC_DONT
			if dontFragment {
				mode = unix.IP_PMTUDISC_DO
			}
			if !v6 {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, mode)
			} else if dontFragment {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, mode)
			}
		})
		return errors.Join(err, serr)
	}}
	network, address := "ip4:icmp", "0.0.0.0"
	if v6 {
		network, address = "ip6:ipv6-icmp", "::"
	}
	err = ns.Do(func() error {
		pc, err := lc.ListenPacket(context.Background(), network, address)
		if err == nil {
			c = pc.(*net.IPConn)
			// Own replies only come through a filter in receive; leave room for others'.
			_ = c.SetReadBuffer(1 << 20)
		}
		return err
	})
	return c, err
}

func (p *pinger) send(ctx context.Context, conn *net.IPConn, dst netip.Addr, o PingOptions) error {
	to := &net.IPAddr{IP: dst.AsSlice(), Zone: dst.Zone()}
	next := time.NewTicker(o.Interval)
	defer next.Stop()
	for seq := range o.Count {
		if seq > 0 {
			select {
			case <-next.C:
			case <-ctx.Done():
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq, Data: p.payload}}
		if p.v6 {
			m.Type = ipv6.ICMPTypeEchoRequest
		}
		b, err := m.Marshal(nil) // the kernel fills in the ICMPv6 checksum
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.sentAt[seq] = time.Now()
		p.res.Sent++
		p.mu.Unlock()
		if _, err := conn.WriteTo(b, to); err != nil {
			p.fail("send request %d: %v", seq, err)
			p.settle(seq)
		}
	}
	return nil
}

func (p *pinger) fail(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.res.Errors) < 100 {
		p.res.Errors = append(p.res.Errors, fmt.Sprintf(format, args...))
	}
}

func (p *pinger) receive(conn *net.IPConn) {
	buf := make([]byte, 1<<16)
	proto := 1
	if p.v6 {
		proto = 58
	}
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.fail("receive: %v", err)
			return
		}
		now := time.Now()
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			continue
		}
		var quoted []byte
		switch body := m.Body.(type) {
		case *icmp.Echo:
			if (m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply) && body.ID == p.id {
				p.reply(body, now)
			}
			continue
		case *icmp.DstUnreach:
			quoted = body.Data
		case *icmp.PacketTooBig:
			quoted = body.Data
		case *icmp.TimeExceeded:
			quoted = body.Data
		}
		if seq, ok := p.quotes(quoted); ok {
			p.fail("request %d: %v (code %d) from %s", seq, m.Type, m.Code, from)
			p.settle(seq)
		}
	}
}

// settle notes that nothing more is to be expected for a request.
func (p *pinger) settle(seq int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.settled[seq] {
		p.settled[seq] = true
		if len(p.settled) == p.want {
			close(p.all)
		}
	}
}

// quotes finds the request of ours that an ICMP error is about.
func (p *pinger) quotes(packet []byte) (seq int, ok bool) {
	header := 40
	if !p.v6 {
		if len(packet) < 20 {
			return 0, false
		}
		header = int(packet[0]&0xf) * 4
	}
	if len(packet) < header+8 {
		return 0, false
	}
	echo := packet[header:]
	return int(binary.BigEndian.Uint16(echo[6:])), int(binary.BigEndian.Uint16(echo[4:])) == p.id
}

func (p *pinger) reply(e *icmp.Echo, now time.Time) {
	same := bytes.Equal(e.Data, p.payload)
	if !same {
		p.fail("reply %d: payload of %d bytes differs from the %d sent", e.Seq, len(e.Data), len(p.payload))
	}
	p.mu.Lock()
	sent, ours := p.sentAt[e.Seq]
	switch {
	case !ours || !same:
		ours = false
	case p.got[e.Seq]:
		p.res.Duplicates++
	default:
		p.got[e.Seq] = true
		p.res.Received++
		p.res.RTTs = append(p.res.RTTs, now.Sub(sent))
	}
	p.mu.Unlock()
	if ours {
		p.settle(e.Seq)
	}
}

// TransferResult of Transfer.
type TransferResult struct {
	Bytes          int64  // that arrived
	SentSHA256     string // of what was written, hexadecimal
	ReceivedSHA256 string // of what was read at the other end
	Match          bool   // all bytes arrived, and the same
	Duration       time.Duration
	Retransmits    uint32 // segments sent again (TCP_INFO of the sender)
	MSS            uint32 // the sender's segment size at the end, bytes
	PathMTU        uint32 // as the sender knows it, bytes
}

// Transfer sends size pseudo-random bytes over one TCP connection to a
// listener on toAddr and checks them by their digests. Without a deadline in
// ctx it gives up after a minute.
func Transfer(ctx context.Context, from, to NS, toAddr netip.Addr, size int64, seed uint64) (TransferResult, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	res, err := transfer(ctx, from, to, toAddr, size, seed)
	if err != nil {
		// What broke the connection was most likely ctx.
		err = fmt.Errorf("transfer from %s to %s: %w", from.name, toAddr, errors.Join(err, ctx.Err()))
	}
	return res, err
}

func transfer(ctx context.Context, from, to NS, toAddr netip.Addr, size int64, seed uint64) (res TransferResult, err error) {
	ln, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(toAddr, 0).String())
	if err != nil {
		return res, err
	}
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()

	type end struct {
		n   int64
		sum hash.Hash
		err error
	}
	server := make(chan end, 1)
	go func() {
		e := end{sum: sha256.New()}
		defer func() { server <- e }()
		conn, err := ln.Accept()
		if err != nil {
			e.err = err
			return
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		if e.n, e.err = io.CopyBuffer(onlyWriter{e.sum}, conn, make([]byte, 256<<10)); e.err == nil {
			// Tells the sender that everything has been read.
			_, e.err = conn.Write([]byte{1})
		}
	}()

	sum := sha256.New()
	start := time.Now()
	res, err = send(ctx, from, ln.Addr().String(), size, seed, sum)
	res.Duration = time.Since(start)
	if err != nil {
		ln.Close() // the server may still wait for a connection
	}
	got := <-server
	res.Bytes = got.n
	res.SentSHA256 = hex.EncodeToString(sum.Sum(nil))
	res.ReceivedSHA256 = hex.EncodeToString(got.sum.Sum(nil))
	res.Match = got.n == size && res.SentSHA256 == res.ReceivedSHA256
	return res, errors.Join(err, got.err)
}

// onlyWriter hides what else a type could do from io.Copy.
type onlyWriter struct{ io.Writer }

// send is the sender's end. It returns when the receiver has read everything.
func send(ctx context.Context, from NS, addr string, size int64, seed uint64, sum hash.Hash) (res TransferResult, err error) {
	conn, err := from.Dial(ctx, "tcp", addr)
	if err != nil {
		return res, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	tcp := conn.(*net.TCPConn)
	defer func() {
		rc, rerr := tcp.SyscallConn()
		if rerr != nil {
			return
		}
		_ = rc.Control(func(fd uintptr) {
			if info, ierr := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); ierr == nil {
				res.Retransmits, res.MSS, res.PathMTU = info.Total_retrans, info.Snd_mss, info.Pmtu
			}
		})
	}()
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	data := io.LimitReader(rand.NewChaCha8(key), size)
	if _, err := io.CopyBuffer(io.MultiWriter(onlyWriter{conn}, sum), data, make([]byte, 256<<10)); err != nil {
		return res, err
	}
	if err := tcp.CloseWrite(); err != nil {
		return res, err
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		return res, fmt.Errorf("wait for the receiver: %w", err)
	}
	return res, nil
}

// DatagramOptions of Datagrams.
type DatagramOptions struct {
	// Sizes of the UDP payloads in bytes, at least 8 each, taken in turn. Empty: 64.
	Sizes []int
	// Count of datagrams. 0: 100.
	Count int
	// Segments that go to the kernel as one packet (UDP_SEGMENT); the last of them has half the size. 0: no segmentation.
	Segments int
	// GRO lets the receiver take several datagrams in one read (UDP_GRO).
	GRO bool
	// NoChecksum sends a zero UDP checksum, and the receiver takes it.
	NoChecksum bool
	// Timeout without an arrival after which the rest counts as lost. 0: 5 s.
	Timeout time.Duration
}

// DatagramResult is what became of the datagrams.
type DatagramResult struct {
	Sent, Received, Duplicates, Reordered int
	// Aggregates are reads that brought more than one datagram.
	Aggregates int
	// Errors are failed sends and altered payloads; at most 100.
	Errors []string
}

// OK reports that every datagram arrived once and unchanged.
func (r DatagramResult) OK() bool {
	return r.Sent > 0 && r.Received == r.Sent && r.Duplicates == 0 && len(r.Errors) == 0
}

func (r DatagramResult) String() string {
	s := fmt.Sprintf("%d sent, %d received, %d duplicates, %d reordered, %d aggregates", r.Sent, r.Received, r.Duplicates, r.Reordered, r.Aggregates)
	for _, e := range r.Errors {
		s += "; " + e
	}
	return s
}

// inFlight is how many datagrams may be on their way: few enough for every
// queue, so that a loss is the path's.
const inFlight = 64

// filler is what datagrams are filled with.
var filler = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<17)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
})

// payload of datagram seq: its number, then bytes that depend on it.
func (o DatagramOptions) payload(seq int) []byte {
	size := o.Sizes[seq/max(1, o.Segments)%len(o.Sizes)]
	if o.Segments > 1 && seq%o.Segments == o.Segments-1 {
		size = max(8, size/2)
	}
	b := append(make([]byte, 0, size), filler()[seq*31%(1<<16):][:size]...)
	binary.BigEndian.PutUint64(b, uint64(seq))
	return b
}

// Datagrams sends numbered UDP datagrams to a receiver on toAddr, no faster
// than they arrive, and compares every byte. Lost and altered ones are in the
// result; the error says that it could not work at all, or that ctx ended.
func Datagrams(ctx context.Context, from, to NS, toAddr netip.Addr, o DatagramOptions) (res DatagramResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("datagrams from %s to %s: %w", from.name, toAddr, err)
		}
	}()
	if len(o.Sizes) == 0 {
		o.Sizes = []int{64}
	}
	if o.Count == 0 {
		o.Count = 100
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if slices.Min(o.Sizes) < 8 || slices.Max(o.Sizes) > 65000 || o.Count < 1 || o.Segments < 0 || o.Segments > inFlight {
		return res, fmt.Errorf("sizes %v, count %d or segments %d out of range", o.Sizes, o.Count, o.Segments)
	}
	o.Count += (o.Segments - o.Count%max(1, o.Segments)) % max(1, o.Segments) // whole packets
	pc, err := to.ListenPacket(ctx, "udp", netip.AddrPortFrom(toAddr, 0).String())
	if err != nil {
		return res, err
	}
	in := pc.(*net.UDPConn)
	defer in.Close()
	conn, err := from.Dial(ctx, "udp", in.LocalAddr().String())
	if err != nil {
		return res, err
	}
	out := conn.(*net.UDPConn)
	defer out.Close()
	err = errors.Join(
		setUDP(in, option{o.GRO, unix.IPPROTO_UDP, unix.UDP_GRO, 1}, option{o.NoChecksum && toAddr.Is6(), unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1},
			option{true, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16 << 20}),
		setUDP(out, option{o.NoChecksum && toAddr.Is6(), unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_TX, 1}, option{o.NoChecksum && toAddr.Is4(), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1}),
	)
	if err != nil {
		return res, err
	}

	r := datagramReceiver{o: o, got: make([]bool, o.Count), arrived: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(in)
	}()
	res.Sent, err = r.send(ctx, out)
	in.Close()
	<-done
	sent := res.Sent
	res = r.res
	res.Sent = sent
	return res, err
}

type option struct {
	want               bool
	level, name, value int
}

func setUDP(c *net.UDPConn, options ...option) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errs []error
	err = rc.Control(func(fd uintptr) {
		for _, o := range options {
			if o.want {
				errs = append(errs, os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o.level, o.name, o.value)))
			}
		}
	})
	return errors.Join(append(errs, err)...)
}

// datagramReceiver is the far end of Datagrams.
type datagramReceiver struct {
	o       DatagramOptions
	arrived chan struct{} // something was received

	mu   sync.Mutex
	got  []bool
	next int
	res  DatagramResult
}

// send returns when all has arrived, or nothing has for the timeout.
func (r *datagramReceiver) send(ctx context.Context, out *net.UDPConn) (sent int, err error) {
	stalled := time.NewTimer(r.o.Timeout)
	defer stalled.Stop()
	step := max(1, r.o.Segments)
	for seq := 0; ; {
		r.mu.Lock()
		received := r.res.Received
		r.mu.Unlock()
		if received >= sent && seq >= r.o.Count {
			time.Sleep(time.Millisecond) // a duplicate comes right behind
			return sent, nil
		}
		if seq < r.o.Count && seq+step-received <= inFlight {
			var b, oob []byte
			for i := range step {
				b = append(b, r.o.payload(seq+i)...)
			}
			if r.o.Segments > 1 {
				oob = make([]byte, unix.CmsgSpace(2))
				h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
				h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
				h.SetLen(unix.CmsgLen(2))
				binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(len(r.o.payload(seq))))
			}
			if _, _, err := out.WriteMsgUDP(b, oob, nil); err != nil {
				r.fail("send %d bytes: %v", len(b), err)
				return sent, ctx.Err()
			}
			seq += step
			sent += step
			continue
		}
		stalled.Reset(r.o.Timeout)
		select {
		case <-r.arrived:
		case <-stalled.C:
			return sent, nil
		case <-ctx.Done():
			return sent, ctx.Err()
		}
	}
}

func (r *datagramReceiver) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.res.Errors) < 100 {
		r.res.Errors = append(r.res.Errors, fmt.Sprintf(format, args...))
	}
}

func (r *datagramReceiver) run(in *net.UDPConn) {
	buf, oob := make([]byte, 1<<17), make([]byte, 64)
	for {
		n, oobn, _, _, err := in.ReadMsgUDP(buf, oob)
		if err != nil {
			return // closed by Datagrams
		}
		size := n
		cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range cmsgs {
			if err == nil && m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4 {
				size = int(binary.NativeEndian.Uint32(m.Data))
			}
		}
		r.mu.Lock()
		if size > 0 && n > size {
			r.res.Aggregates++
		}
		r.mu.Unlock()
		for b := range slices.Chunk(buf[:n], max(1, size)) {
			r.take(b)
		}
		select {
		case r.arrived <- struct{}{}:
		default:
		}
	}
}

func (r *datagramReceiver) take(b []byte) {
	seq := -1
	if len(b) >= 8 {
		seq = int(binary.BigEndian.Uint64(b))
	}
	if seq < 0 || seq >= r.o.Count || !bytes.Equal(b, r.o.payload(seq)) {
		r.fail("datagram %d of %d bytes is not what was sent", seq, len(b))
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.got[seq] {
		r.res.Duplicates++
		return
	}
	r.got[seq] = true
	r.res.Received++
	if seq < r.next {
		r.res.Reordered++
	}
	r.next = max(r.next, seq+1)
}

// StreamOptions of StartStream.
type StreamOptions struct {
	// Rate in packets per second, up to 1,000,000. 0: 10,000.
	Rate int
	// Size of the UDP payload in bytes, at least 8. 0: 64.
	Size int
	// MaxDuration after which sending ends by itself. 0: 10 minutes.
	MaxDuration time.Duration
	// Grace is how long Stop waits for packets on their way. 0: 500 ms.
	Grace time.Duration
}

// StreamResult is what became of a stream.
type StreamResult struct {
	Sent, Received, Lost, Reordered, Duplicates uint64
	// LongestGap is the longest time between two packets that arrived, and
	// LongestPause between two that were sent: a gap no longer than the pause is
	// the sender's, not the network's.
	LongestGap, LongestPause time.Duration
	// LongestLoss is the longest run of packets lost in a row.
	LongestLoss uint64
	// SendErrors are sends that the kernel refused, not counted as sent.
	SendErrors uint64
	// ReceiverDrops are packets that arrived but found the receiver's buffer
	// full; they count as lost.
	ReceiverDrops uint64
}

func (r StreamResult) String() string {
	return fmt.Sprintf("%d sent, %d received, %d lost (longest run %d), %d reordered, %d duplicates, longest gap %s (sender's pause %s)",
		r.Sent, r.Received, r.Lost, r.LongestLoss, r.Reordered, r.Duplicates, r.LongestGap, r.LongestPause)
}

// Stream is a UDP stream of numbered packets on its way. Stop it, also after
// ctx has ended, to give its sockets back.
type Stream struct {
	in, out *net.UDPConn
	o       StreamOptions
	cancel  context.CancelFunc
	sent    chan struct{} // closed when sending has ended
	rcvd    chan struct{} // closed when receiving has ended

	mu   sync.Mutex
	res  StreamResult
	seen []uint64 // bitmap by sequence number
	next uint64   // one above the highest number seen
	last time.Time
	once sync.Once
}

// StartStream sends numbered UDP packets to a receiver on toAddr at a steady
// rate until Stop, or until ctx or MaxDuration end.
func StartStream(ctx context.Context, from, to NS, toAddr netip.Addr, o StreamOptions) (*Stream, error) {
	if o.Rate == 0 {
		o.Rate = 10_000
	}
	if o.Size == 0 {
		o.Size = 64
	}
	if o.MaxDuration == 0 {
		o.MaxDuration = 10 * time.Minute
	}
	if o.Grace == 0 {
		o.Grace = 500 * time.Millisecond
	}
	if o.Rate < 1 || o.Rate > 1_000_000 || o.Size < 8 || o.Size > 65000 {
		return nil, fmt.Errorf("stream: rate %d or size %d out of range", o.Rate, o.Size)
	}
	pc, err := to.ListenPacket(ctx, "udp", netip.AddrPortFrom(toAddr, 0).String())
	if err != nil {
		return nil, fmt.Errorf("stream to %s: %w", toAddr, err)
	}
	in := pc.(*net.UDPConn)
	if rc, err := in.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		})
	}
	out, err := from.Dial(ctx, "udp", in.LocalAddr().String())
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("stream from %s: %w", from.name, err)
	}
	s := &Stream{in: in, out: out.(*net.UDPConn), o: o, sent: make(chan struct{}), rcvd: make(chan struct{})}
	ctx, s.cancel = context.WithTimeout(ctx, o.MaxDuration)
	go s.send(ctx)
	go s.receive()
	return s, nil
}

func (s *Stream) send(ctx context.Context) {
	defer close(s.sent)
	packet := make([]byte, s.o.Size)
	start := time.Now()
	last := start
	var seq, failed uint64
	var pause time.Duration
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.res.Sent, s.res.SendErrors, s.res.LongestPause = seq, failed, pause
	}()
	tick := time.NewTicker(max(time.Second/time.Duration(s.o.Rate), time.Millisecond/2))
	defer tick.Stop()
	var dropped uint64 // packets whose time passed while this process did not run
	for {
		due := uint64(time.Since(start).Seconds()*float64(s.o.Rate)) + 1
		// Not more than 20 ms worth at once: a late burst tests buffers, not paths.
		if burst := max(1, uint64(s.o.Rate/50)); due-dropped-seq-failed > burst {
			dropped = due - seq - failed - burst
		}
		for seq+failed+dropped < due {
			binary.BigEndian.PutUint64(packet, seq)
			if _, err := s.out.Write(packet); err != nil {
				// ECONNREFUSED and the like: the same number is tried next.
				failed++
				continue
			}
			seq++
			now := time.Now()
			pause = max(pause, now.Sub(last))
			last = now
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Stream) receive() {
	defer close(s.rcvd)
	buf := make([]byte, 1<<16)
	for {
		n, err := s.in.Read(buf)
		now := time.Now()
		if err != nil {
			return // closed by finish
		}
		if n == s.o.Size {
			s.count(binary.BigEndian.Uint64(buf), now)
		}
	}
}

func (s *Stream) count(seq uint64, now time.Time) {
	// A stray packet must not blow up the bitmap.
	if float64(seq) > float64(s.o.Rate)*(s.o.MaxDuration.Seconds()+1) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for uint64(len(s.seen)) <= seq/64 {
		s.seen = append(s.seen, 0)
	}
	if s.seen[seq/64]&(1<<(seq%64)) != 0 {
		s.res.Duplicates++
		return
	}
	s.seen[seq/64] |= 1 << (seq % 64)
	s.res.Received++
	if seq < s.next {
		s.res.Reordered++
	}
	s.next = max(s.next, seq+1)
	if !s.last.IsZero() {
		s.res.LongestGap = max(s.res.LongestGap, now.Sub(s.last))
	}
	s.last = now
}

// Received is the number of packets that have arrived so far.
func (s *Stream) Received() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.res.Received
}

// Stop ends the stream, waits for packets on their way and returns the count.
// A second call returns the same.
func (s *Stream) Stop() StreamResult {
	s.once.Do(s.finish)
	return s.res
}

func (s *Stream) finish() {
	s.cancel()
	<-s.sent
	for end := time.Now().Add(s.o.Grace); time.Now().Before(end) && s.Received() < s.res.Sent; {
		time.Sleep(time.Millisecond)
	}
	s.res.ReceiverDrops = socketDrops(s.in)
	s.in.Close()
	s.out.Close()
	<-s.rcvd
	s.res.Lost = s.res.Sent - min(s.res.Sent, s.res.Received)
	var run uint64
	for seq := range s.res.Sent {
		if seq/64 < uint64(len(s.seen)) && s.seen[seq/64]&(1<<(seq%64)) != 0 {
			run = 0
			continue
		}
		run++
		s.res.LongestLoss = max(s.res.LongestLoss, run)
	}
}

// socketDrops reads how many packets found the receive buffer full.
func socketDrops(c *net.UDPConn) (drops uint64) {
	rc, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = rc.Control(func(fd uintptr) {
		var info [unix.SK_MEMINFO_VARS]uint32
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			drops = uint64(info[unix.SK_MEMINFO_DROPS])
		}
	})
	return drops
}

// FlowResult is what became of a Flow.
type FlowResult struct {
	Bytes        int64         // that arrived
	Match        bool          // all that was sent arrived, and the same
	LongestStall time.Duration // between two reads of the receiver
	Retransmits  uint32        // segments sent again (TCP_INFO of the sender)
}

func (r FlowResult) String() string {
	return fmt.Sprintf("%d bytes, intact %t, longest stall %s, %d segments sent again", r.Bytes, r.Match, r.LongestStall.Round(time.Millisecond), r.Retransmits)
}

// Flow is one TCP connection that carries pseudo-random bytes at a steady pace until Stop.
type Flow struct {
	stop context.CancelFunc
	done chan struct{}
	res  FlowResult
	err  error
}

// flowRate is in bytes a second: some thousand full segments, and far from what the machine can do.
const flowRate = 8 << 20

// StartFlow connects to a listener on toAddr and sends until Stop. It returns once
// data arrives. A connection that breaks, or that stands still for ten seconds, is Stop's error.
func StartFlow(ctx context.Context, from, to NS, toAddr netip.Addr) (*Flow, error) {
	ln, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(toAddr, 0).String())
	if err != nil {
		return nil, fmt.Errorf("flow to %s: %w", toAddr, err)
	}
	defer ln.Close()
	dialed, err := from.Dial(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("flow from %s: %w", from.name, err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("flow to %s: %w", toAddr, err), dialed.Close())
	}
	out, in := dialed.(*net.TCPConn), accepted.(*net.TCPConn)
	f := &Flow{done: make(chan struct{})}
	ctx, f.stop = context.WithCancel(ctx)
	began := make(chan struct{})
	sent := make(chan error, 1)
	sum := sha256.New()
	var n int64
	go func() {
		var err error
		n, err = pace(ctx, out, sum)
		sent <- err
	}()
	go func() {
		defer close(f.done)
		got := sha256.New()
		rerr := f.receive(in, got, began)
		f.stop()
		werr := <-sent
		if rc, err := out.SyscallConn(); err == nil {
			_ = rc.Control(func(fd uintptr) {
				if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
					f.res.Retransmits = info.Total_retrans
				}
			})
		}
		f.res.Match = rerr == nil && werr == nil && f.res.Bytes == n && bytes.Equal(sum.Sum(nil), got.Sum(nil))
		if f.err = errors.Join(rerr, werr); f.err != nil {
			f.err = fmt.Errorf("flow from %s to %s: %w", from.name, toAddr, f.err)
		}
		out.Close()
		in.Close()
	}()
	select {
	case <-began:
	case <-f.done:
	}
	return f, nil
}

// flowPatience ends a flow that stands still.
const flowPatience = 10 * time.Second

// pace writes until ctx ends, then says that nothing more comes.
func pace(ctx context.Context, c *net.TCPConn, sum hash.Hash) (n int64, err error) {
	const tick = 2 * time.Millisecond
	data := rand.NewChaCha8([32]byte{1})
	piece := make([]byte, flowRate/int(time.Second/tick))
	for next := time.Now(); ctx.Err() == nil; next = next.Add(tick) {
		_, _ = data.Read(piece) // never fails
		if err := c.SetWriteDeadline(time.Now().Add(flowPatience)); err != nil {
			return n, err
		}
		if _, err := c.Write(piece); err != nil {
			return n, err
		}
		sum.Write(piece)
		n += int64(len(piece))
		time.Sleep(time.Until(next))
	}
	return n, c.CloseWrite()
}

func (f *Flow) receive(c *net.TCPConn, sum hash.Hash, began chan struct{}) error {
	buf := make([]byte, 64<<10)
	for last := time.Now(); ; {
		if err := c.SetReadDeadline(time.Now().Add(flowPatience)); err != nil {
			return err
		}
		n, err := c.Read(buf)
		now := time.Now()
		f.res.LongestStall, last = max(f.res.LongestStall, now.Sub(last)), now
		if f.res.Bytes == 0 && n > 0 {
			close(began)
		}
		f.res.Bytes += int64(n)
		sum.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Stop ends the flow and returns what arrived.
func (f *Flow) Stop() (FlowResult, error) {
	f.stop()
	<-f.done
	return f.res, f.err
}
