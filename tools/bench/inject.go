// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// Frames are injected by BPF_PROG_TEST_RUN in live mode: the kernel runs an XDP
// program over pages of its own, and the program redirects each to a veth, whose
// other end receives them as a NIC's driver would. So no sender's socket layer
// limits or colours what is measured. The receiving end needs GRO on: without
// it, and without an XDP program, a veth drops redirected frames (trap 1 of
// MEASURED.md).

// repeat is how many frames one system call injects. The kernel writes the
// frame into a page only when it takes a fresh one; later rounds find what the
// path left there, so the program writes all of it anew (trap 14), and runs are
// long enough for the set-up of the pages not to count.
const repeat = 100_000

// Lengths of injected frames without encapsulation, bytes.
const (
	innerLen = 64
	largeLen = 1400
)

// udpFrame is an Ethernet frame with a UDP datagram to the discard port, UDP
// checksum 0 (none), padded to length.
func udpFrame(length int, src, dst fdb.MAC, from, to [4]byte) []byte {
	b := make([]byte, length)
	copy(b[0:], dst[:])
	copy(b[6:], src[:])
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ipv4Header(b[14:], from, to, length-14, 64)
	udpHeader(b[34:], 40000, discard, length-34)
	return b
}

// encapsulate puts outer headers around a frame (RFC 7348 section 5).
func encapsulate(inner []byte, vni fdb.VNI, src, dst fdb.MAC, from, to [4]byte) []byte {
	b := make([]byte, overhead, overhead+len(inner))
	copy(b[0:], dst[:])
	copy(b[6:], src[:])
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ipv4Header(b[14:], from, to, overhead-14+len(inner), 5)
	udpHeader(b[34:], 49152, vxlanPort, overhead-34+len(inner))
	b[42] = 0x08 // the VNI is valid
	binary.BigEndian.PutUint32(b[offVNI:], uint32(vni)<<8)
	return append(b, inner...)
}

func ipv4Header(b []byte, from, to [4]byte, length int, ttl byte) {
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	binary.BigEndian.PutUint16(b[4:], 0xbeef) // RFC 791: not 0 where fragmenting is allowed
	b[8], b[9] = ttl, unix.IPPROTO_UDP
	copy(b[12:], from[:])
	copy(b[16:], to[:])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum&0xffff+sum>>16))
}

func udpHeader(b []byte, src, dst uint16, length int) {
	binary.BigEndian.PutUint16(b[0:], src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint16(b[4:], uint16(length))
}

// storeFrame writes a whole frame over the packet at R8.
func storeFrame(frame []byte) asm.Instructions {
	var out asm.Instructions
	i := 0
	for ; i+4 <= len(frame); i += 4 {
		out = append(out, asm.StoreImm(asm.R8, int16(i), int64(int32(binary.NativeEndian.Uint32(frame[i:]))), asm.Word))
	}
	for ; i < len(frame); i++ {
		out = append(out, asm.StoreImm(asm.R8, int16(i), int64(frame[i]), asm.Byte))
	}
	return out
}

// variation of injected frames: what changes from frame to frame. The frame's
// number is in R7; R8 is the packet; R6 and R9 are kept.
type variation func(inner int16) asm.Instructions

// injector is a program that fills in a frame and redirects it to a link.
type injector struct {
	*counterProg
	frame  []byte
	length int // of the overlay frame in it, bytes
	ns     testenv.NS
}

// newInjector sends frame to the link dev of ns. vary may be nil; inner is
// where in the frame the overlay's Ethernet header is.
func newInjector(ns testenv.NS, dev string, frame []byte, inner int16, vary variation) (*injector, error) {
	index, err := ifindex(ns, dev)
	if err != nil {
		return nil, err
	}
	p, err := newCounterProg("bench_inject", ebpf.XDP, 1, func(m *ebpf.Map) asm.Instructions {
		insns := asm.Instructions{
			asm.LoadMem(asm.R8, asm.R1, xdpData, asm.Word),
			asm.LoadMem(asm.R9, asm.R1, xdpDataEnd, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R8),
			asm.Add.Imm(asm.R4, int32(len(frame))),
			asm.JGT.Reg(asm.R4, asm.R9, "short"),
		}
		insns = append(insns, countAt(m, 0, "counted")...)
		insns = append(insns, storeFrame(frame)...)
		if vary != nil {
			insns = append(insns, vary(inner)...)
		}
		return append(insns,
			asm.Mov.Imm(asm.R1, int32(index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
			asm.Mov.Imm(asm.R0, xdpAborted).WithSymbol("short"),
			asm.Return(),
		)
	})
	if err != nil {
		return nil, err
	}
	return &injector{p, frame, len(frame) - int(inner), ns}, nil
}

// run injects until time is up, or count frames if that is not 0, on one CPU,
// and waits until received stands still. It returns the CPU time that all of it
// took, the frames sent, and how many arrived by the count of received.
func (in *injector) run(ctx context.Context, d time.Duration, count uint64, cpu int, received func() (uint64, error)) (r Round, err error) {
	sent0, err := in.read(0)
	if err != nil {
		return r, err
	}
	got0, err := received()
	if err != nil {
		return r, err
	}
	c := newCrew()
	var used CPU
	var elapsed time.Duration
	var over atomic.Bool
	stop := context.AfterFunc(ctx, func() { over.Store(true) })
	defer stop()
	err = c.add(in.ns, cpu, func() error {
		before := c.mark()
		for n := uint64(0); !over.Load(); {
			chunk := uint64(repeat)
			if count > 0 {
				chunk = min(chunk, count-n)
			}
			_, err := in.prog.Run(&ebpf.RunOptions{Data: in.frame, Repeat: uint32(chunk), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
			if err != nil {
				return fmt.Errorf("inject frames: %w", err)
			}
			if n += chunk; count > 0 && n >= count || count == 0 && time.Since(before.at) >= d {
				break
			}
		}
		after := c.mark()
		used, elapsed = after.since(before), after.at.Sub(before.at)
		return nil
	})
	c.goAhead()
	if err := errors.Join(err, c.wait(), ctx.Err()); err != nil {
		return r, err
	}
	last := got0
	for range 50 {
		now, err := received()
		if err != nil {
			return r, err
		}
		if now == last && now != got0 {
			break
		}
		last = now
		time.Sleep(time.Millisecond)
	}
	sent1, err := in.read(0)
	if err != nil {
		return r, err
	}
	r.Sent, r.Received, r.CPU, r.Seconds = sent1-sent0, last-got0, used, elapsed.Seconds()
	// A host may speak for itself meanwhile (ND, MLD, ARP), and a sink in the driver counts that too.
	const strays = 16
	if r.Received > r.Sent && r.Received <= r.Sent+strays {
		r.Received = r.Sent
	}
	if r.Received > r.Sent {
		return r, fmt.Errorf("%d frames arrived of %d sent", r.Received, r.Sent)
	}
	r.Lost = r.Sent - r.Received
	if r.Received == 0 {
		return r, fmt.Errorf("none of %d injected frames arrived", r.Sent)
	}
	r.Bytes = r.Received * uint64(in.length)
	r.Gross = used.Seconds / float64(r.Received) * 1e9
	return r, nil
}

// net turns a round's gross cost into what is left when the generator's own
// cost per frame is taken off.
func (r *Round) net(generator float64) error {
	r.Gen = generator
	r.Value = (r.CPU.Seconds*1e9 - generator*float64(r.Sent)) / float64(r.Received)
	r.Cost = r.Value
	if r.Value <= 0 {
		return fmt.Errorf("%.0f ns per frame is less than the generator's own %.0f ns", r.Gross, generator)
	}
	return nil
}

// injection is one kind of injected traffic, made ready on a bed.
type injection struct {
	in   *injector
	sink []*counterProg
	undo []func() error
}

func (x *injection) received() (sum uint64, err error) {
	for _, s := range x.sink {
		n, err := s.read(0)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

func (x *injection) close() error {
	var errs []error
	for i := len(x.undo) - 1; i >= 0; i-- {
		errs = append(errs, x.undo[i]())
	}
	if x.in != nil {
		errs = append(errs, x.in.close())
	}
	for _, s := range x.sink {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// gro turns GRO on for a link, and off again when the injection is over: off
// is a veth's default.
func (x *injection) gro(ns testenv.NS, dev string) error {
	if err := offload(ns, dev, setGRO, true); err != nil {
		return err
	}
	x.undo = append(x.undo, func() error { return offload(ns, dev, setGRO, false) })
	return nil
}

// count puts a sink on a link's ingress.
func (x *injection) count(ns testenv.NS, dev string, off int32) error {
	s, err := newSink(off)
	if err != nil {
		return err
	}
	x.sink = append(x.sink, s)
	detach, err := attachTCX(ns, dev, s.prog)
	if err == nil {
		x.undo = append(x.undo, detach)
	}
	return err
}

// The many_flows workload: this many flows over all networks of the bed, with
// this many MAC addresses on each side of each network.
const (
	manyFlows = 10_000
	manyMACs  = 500
)

func manySource(network, i int) fdb.MAC {
	return fdb.MAC{0x02, 0x5c, byte(network), 0, byte(i >> 8), byte(i)}
}

func manyDest(network, i int) fdb.MAC {
	return fdb.MAC{0x02, 0xdc, byte(network), 0, byte(i >> 8), byte(i)}
}

// varyFlows picks one of the flows by the frame's number, in an order without
// neighbours: network, both MAC addresses and both source ports follow from it.
func varyFlows(inner int16) asm.Instructions {
	low16 := func(off int16, reg asm.Register) asm.Instructions { // big endian, changes R2
		return asm.Instructions{
			asm.Mov.Reg(asm.R2, reg),
			asm.HostTo(asm.BE, asm.R2, asm.Half),
			asm.StoreMem(asm.R8, off, asm.R2, asm.Half),
		}
	}
	insns := asm.Instructions{
		asm.Mul.Imm(asm.R7, 7919), // a prime: all flows in turn, far apart
		asm.Mod.Imm(asm.R7, manyFlows),
		// Network: the VNI's low byte, and a byte of each MAC address.
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.And.Imm(asm.R3, bedNetworks-1),
		asm.StoreMem(asm.R8, inner+2, asm.R3, asm.Byte),
		asm.StoreMem(asm.R8, inner+8, asm.R3, asm.Byte),
	}
	if inner > 0 {
		insns = append(insns,
			asm.Add.Imm(asm.R3, bedVNI),
			asm.StoreMem(asm.R8, offVNI+2, asm.R3, asm.Byte),
			asm.Mov.Reg(asm.R3, asm.R7),
			asm.Or.Imm(asm.R3, 0xc000),
		)
		insns = append(insns, low16(offSrcPort, asm.R3)...)
	}
	insns = append(insns, asm.Mov.Reg(asm.R3, asm.R7), asm.Mod.Imm(asm.R3, manyMACs))
	insns = append(insns, low16(inner+10, asm.R3)...)
	insns = append(insns, asm.Mov.Reg(asm.R3, asm.R7), asm.Div.Imm(asm.R3, manyFlows/manyMACs))
	insns = append(insns, low16(inner+4, asm.R3)...)
	insns = append(insns, asm.Add.Imm(asm.R7, 1024))
	return append(insns, low16(inner+offSrcPort, asm.R7)...)
}

// prepareDecap readies frames that arrive at host b's underlay device and end
// in the container. On the generator's bed they end in the driver.
func (b *bed) prepareDecap(ctx context.Context, length int, many bool) (x *injection, err error) {
	x = &injection{}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close())
		}
	}()
	ha, hb := b.host(0), b.host(1)
	ca, cb := ha.Containers[0], hb.Containers[0]
	frame := udpFrame(length, ca.MAC, cb.MAC, b.a.Addr, b.b.Addr)
	var vary variation
	if many {
		frame = udpFrame(length, manySource(0, 0), manyDest(0, 0), b.a.Addr, b.b.Addr)
		vary = varyFlows
	}
	inner := int16(0)
	if b.datapath != Bare {
		frame = encapsulate(frame, bedVNI, ha.MAC, hb.MAC, ha.Address.As4(), hb.Address.As4())
		inner = overhead
	}
	if err := x.gro(hb.NS, underlayDev); err != nil {
		return x, err
	}
	if b.datapath == genBed.datapath {
		if err := x.dropInDriver(hb.NS, underlayDev); err != nil {
			return x, err
		}
	} else {
		n := 1
		if many && b.datapath != Bare {
			n = bedNetworks
		}
		for _, c := range hb.Containers[:n] {
			if err := x.count(c.NS, "eth0", offDstPort); err != nil {
				return x, err
			}
		}
		if many {
			if err := b.train(ctx); err != nil {
				return x, err
			}
		}
	}
	x.in, err = newInjector(ha.NS, underlayDev, frame, inner, vary)
	return x, err
}

func (x *injection) dropInDriver(ns testenv.NS, dev string) error {
	s, err := newXDPDrop()
	if err != nil {
		return err
	}
	x.sink = append(x.sink, s)
	detach, err := attachXDP(ns, dev, s.prog)
	if err == nil {
		x.undo = append(x.undo, detach)
	}
	return err
}

// prepareEncap readies frames that come out of container a and end at the far
// end of the underlay.
func (b *bed) prepareEncap(length int) (x *injection, err error) {
	x = &injection{}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close())
		}
	}()
	ha, hb := b.host(0), b.host(1)
	ca, cb := ha.Containers[0], hb.Containers[0]
	if err := x.gro(ha.NS, ca.HostEnd); err != nil {
		return x, err
	}
	switch b.datapath {
	case genBed.datapath:
		err = x.dropInDriver(ha.NS, ca.HostEnd)
	case Bare:
		err = x.count(hb.NS, underlayDev, offDstPort)
	default:
		err = x.count(hb.NS, underlayDev, overhead+offDstPort)
	}
	if err != nil {
		return x, err
	}
	x.in, err = newInjector(ca.NS, "eth0", udpFrame(length, ca.MAC, cb.MAC, b.a.Addr, b.b.Addr), 0, nil)
	return x, err
}

// train shows the kernel of host b all MAC addresses of many_flows: sources as
// frames from the other host, destinations as frames from its own containers.
// On vxbpf's hosts it waits until their map knows them too.
func (b *bed) train(ctx context.Context) error {
	if b.trained {
		return nil
	}
	ha, hb := b.host(0), b.host(1)
	under, err := testenv.PacketSocket(ha.NS, underlayDev)
	if err != nil {
		return err
	}
	defer under.Close()
	for try := 0; ; try++ {
		for n := range bedNetworks {
			c := n
			if b.datapath == Bare {
				c = 0 // without encapsulation there is one network, and all addresses are in it
			}
			ca, cb := ha.Containers[c], hb.Containers[c]
			from, err := testenv.PacketSocket(cb.NS, "eth0")
			if err != nil {
				return err
			}
			for i := range manyMACs {
				out := udpFrame(innerLen, manySource(n, i), cb.MAC, b.a.Addr, b.b.Addr)
				if b.datapath != Bare {
					out = encapsulate(out, fdb.VNI(bedVNI+n), ha.MAC, hb.MAC, ha.Address.As4(), hb.Address.As4())
				}
				err := errors.Join(under.Send(out), from.Send(udpFrame(innerLen, manyDest(n, i), ca.MAC, b.b.Addr, b.a.Addr)))
				if err != nil {
					return errors.Join(err, from.Close())
				}
			}
			if err := from.Close(); err != nil {
				return err
			}
		}
		missing := 0
		for range 40 {
			if missing, err = b.missing(); err != nil {
				return err
			}
			if missing == 0 {
				b.trained = true
				return nil
			}
			if !sleep(ctx, 50*time.Millisecond) {
				return ctx.Err()
			}
		}
		if try == 2 {
			return fmt.Errorf("%d of %d MAC addresses are not in the FDB map of host %s", missing, 2*manyMACs*bedNetworks, hb.Name)
		}
	}
}

// missing counts the addresses of many_flows that host b's map lacks.
func (b *bed) missing() (n int, err error) {
	for _, f := range b.fast {
		if f.Host != b.host(1) {
			continue
		}
		for i, net := range b.lab.Spec.Networks {
			for k := range manyMACs {
				for _, mac := range []fdb.MAC{manySource(i, k), manyDest(i, k)} {
					there, err := f.maps.FDB.Has(fdb.Key{Net: f.ids[net.Name], MAC: mac})
					if err != nil {
						return 0, err
					}
					if !there {
						n++
					}
				}
			}
		}
	}
	return n, nil
}
