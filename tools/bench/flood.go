// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// The flood: forged VXLAN packets arrive at the receiver's underlay device at a
// fixed rate while a TCP stream runs. They are for a network of ours and for a
// container's MAC address; the outer source is random in 198.18.0.0/15 (RFC
// 2544), the inner source MAC a new one in each. Kernel vxlan believes them all,
// learns an address from each and delivers it.
//
// Stream, flood and both hosts' softirq work share one CPU, so what the flood
// costs is what the stream loses. A round is three streams on one bed: alone;
// beside the same generator, whose packets go to the generator's bed and end in
// the driver there; and under the flood. Flooded against the second is the
// host's loss, without what the generator takes. The injecting thread is a
// real-time one, since a network card does not wait for its turn either: it
// wakes up for each burst and offers the next whatever became of the last.

const (
	floodRate  = 500_000 // packets/s
	floodBurst = 8192    // packets per system call, each of which costs 1.4 ms for its set-up
	floodLate  = 50 * time.Millisecond
	floodSrc   = 0xc6120000 // 198.18.0.0
	// floodSample is how many of the forged MAC addresses are looked for in the kernel's table.
	floodSample = 64
)

var floodKinds = []bedKind{kernelBed, checkedBed, tcBed, xdpBed}

func (r *run) floodKinds() (out []bedKind) {
	for _, k := range floodKinds {
		if r.only == nil || slices.Contains(r.only, k) {
			out = append(out, k)
		}
	}
	return out
}

func (r *run) floodSteps() int { return (r.Rounds + 1) * len(r.floodKinds()) * 3 }

// checkedAt says where a bed's receiver checks sources.
func (k bedKind) checkedAt() string {
	switch {
	case k.datapath == XDP:
		return XDP
	case k.datapath == TC || k.checked:
		return TC
	}
	return "none"
}

func forgedMAC(n uint32) (m fdb.MAC) {
	m[0], m[1] = 0x02, 0xf1
	binary.BigEndian.PutUint32(m[2:], n)
	return m
}

// varyForged writes a random outer source address with the header checksum that
// belongs to it, a random source port, and the frame's number as the inner
// source MAC's last four bytes.
func varyForged(base uint32) variation {
	return func(inner int16) asm.Instructions {
		return asm.Instructions{
			asm.FnGetPrandomU32.Call(),
			asm.Mov.Reg(asm.R6, asm.R0),
			asm.RSh.Imm(asm.R6, 17),
			asm.StoreMem(asm.R8, offSrcPort, asm.R6, asm.Half),
			asm.And.Imm(asm.R0, 0x1ffff),
			// RFC 1071: the sum of what does not change, and of the two halves of what does.
			asm.Mov.Reg(asm.R2, asm.R0),
			asm.RSh.Imm(asm.R2, 16),
			asm.Mov.Reg(asm.R3, asm.R0),
			asm.And.Imm(asm.R3, 0xffff),
			asm.Add.Reg(asm.R2, asm.R3),
			asm.Add.Imm(asm.R2, int32(base)),
			asm.Mov.Reg(asm.R3, asm.R2),
			asm.RSh.Imm(asm.R3, 16),
			asm.And.Imm(asm.R2, 0xffff),
			asm.Add.Reg(asm.R2, asm.R3),
			asm.Xor.Imm(asm.R2, 0xffff),
			asm.HostTo(asm.BE, asm.R2, asm.Half),
			asm.StoreMem(asm.R8, offIPSum, asm.R2, asm.Half),
			asm.LoadImm(asm.R2, floodSrc, asm.DWord),
			asm.Or.Reg(asm.R0, asm.R2),
			asm.HostTo(asm.BE, asm.R0, asm.Word),
			asm.StoreMem(asm.R8, offIPSrc, asm.R0, asm.Half),
			asm.RSh.Imm(asm.R0, 16),
			asm.StoreMem(asm.R8, offIPSrc+2, asm.R0, asm.Half),
			asm.HostTo(asm.BE, asm.R7, asm.Word),
			asm.StoreMem(asm.R8, inner+8, asm.R7, asm.Half),
			asm.RSh.Imm(asm.R7, 16),
			asm.StoreMem(asm.R8, inner+10, asm.R7, asm.Half),
		}
	}
}

// newForger sends forged packets of real to the underlay device of a bed's host
// b: the same work for the generator's bed as for the flooded one.
func newForger(real, at *bed) (*injector, error) {
	ha, hb := real.host(0), real.host(1)
	inner := udpFrame(innerLen, forgedMAC(0), hb.Containers[0].MAC, real.a.Addr, real.b.Addr)
	var src [4]byte
	binary.BigEndian.PutUint32(src[:], floodSrc)
	frame := encapsulate(inner, bedVNI, ha.MAC, hb.MAC, src, hb.Address.As4())
	base := uint32(^binary.BigEndian.Uint16(frame[offIPSum:]))
	return newInjector(at.host(0).NS, underlayDev, frame, overhead, varyForged(base))
}

// forge injects at floodRate until stop.
func (in *injector) forge(stop *atomic.Bool) error {
	const every = floodBurst * time.Second / floodRate
	next := time.Now()
	for !stop.Load() {
		_, err := in.prog.Run(&ebpf.RunOptions{Data: in.frame, Repeat: floodBurst, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
		if err != nil {
			return fmt.Errorf("inject forged packets: %w", err)
		}
		next = next.Add(every)
		wait := time.Until(next)
		if wait < -floodLate {
			next = time.Now() // more than the CPU can take: what a card would have dropped is not offered later
			continue
		}
		if wait > 0 {
			ts := unix.NsecToTimespec(int64(wait))
			_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
		}
	}
	return nil
}

// realTime makes the calling thread one that the scheduler prefers to all others,
// and ends it after fn. The kernel's limit for such threads stays as it is.
func realTime(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fifo := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	if err := unix.SchedSetAttr(0, &fifo, 0); err != nil {
		return fmt.Errorf("make the injecting thread a real-time one: %w", err)
	}
	err := fn()
	normal := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	return errors.Join(err, unix.SchedSetAttr(0, &normal, 0))
}

// flooded is a stream on s with a flood beside it; in may be nil: alone.
func flooded(ctx context.Context, s slot, in *injector) (r Round, sent uint64, seconds float64, err error) {
	if in == nil {
		r, err = stream(ctx, s, 1, s.pathCPU, s.pathCPU)
		return r, 0, 0, err
	}
	before, err := in.read(0)
	if err != nil {
		return r, 0, 0, err
	}
	var stop atomic.Bool
	c := newCrew()
	if err := c.add(in.ns, s.pathCPU, func() error { return realTime(func() error { return in.forge(&stop) }) }); err != nil {
		return r, 0, 0, err
	}
	var begun time.Time
	s.started = func() {
		begun = time.Now()
		c.goAhead()
	}
	r, err = stream(ctx, s, 1, s.pathCPU, s.pathCPU)
	stop.Store(true)
	if begun.IsZero() {
		c.goAhead()
	}
	err = errors.Join(err, c.wait())
	seconds = time.Since(begun).Seconds()
	after, rerr := in.read(0)
	return r, after - before, seconds, errors.Join(err, rerr)
}

// strangers is what the source check of host b has dropped.
func (b *bed) strangers() (n uint64, err error) {
	for _, f := range slices.Concat(b.fast, b.guards) {
		if f.Host != b.host(1) {
			continue
		}
		c, err := f.maps.Counters.Read(f.ids[bedNetwork])
		if err != nil {
			return 0, fmt.Errorf("host %s: %w", f.Name, err)
		}
		n += c[bpf.HookDecap][bpf.DropStranger].Packets + c[bpf.HookXDPDecap][bpf.DropStranger].Packets
	}
	return n, nil
}

// vxlanLink is the name of the first network's vxlan device on host b.
func (b *bed) vxlanLink() (string, error) {
	st, err := loader.ReadState(filepath.Join(loader.DefaultRunDir, b.host(1).Instance()))
	if err != nil {
		return "", err
	}
	for _, n := range st.Networks {
		if n.Name == bedNetwork {
			return n.Link, nil
		}
	}
	return "", fmt.Errorf("host %s has no network %s", b.host(1).Name, bedNetwork)
}

// learnt looks for some of the MAC addresses of the forged packets from to to in
// the table of host b's vxlan device, and says which share is there.
func (b *bed) learnt(from, to uint64) (share float64, err error) {
	name, err := b.vxlanLink()
	if err != nil {
		return 0, err
	}
	err = b.host(1).NS.Do(func() error {
		dev, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		h, err := kernel.Open()
		if err != nil {
			return err
		}
		defer h.Close()
		found := 0
		for i := range uint64(floodSample) {
			_, ok, err := h.VXLANEntry(dev.Index, forgedMAC(uint32(from+1+i*(to-from)/floodSample)))
			if err != nil {
				return err
			}
			if ok {
				found++
			}
		}
		share = float64(found) / floodSample
		return nil
	})
	return share, err
}

// forget makes host b's kernel forget what it has learnt from the underlay: a
// vxlan device that goes down drops its table, and the bridge that of the port.
func (b *bed) forget(ctx context.Context) error {
	name, err := b.vxlanLink()
	if err != nil {
		return err
	}
	for _, up := range []bool{false, true} {
		if err := setUp(b.host(1).NS, name, up); err != nil {
			return err
		}
	}
	return b.settle(ctx)
}

// floodBed is a bed with its injectors.
type floodBed struct {
	*bed
	in, beside *injector
}

func (f *floodBed) close() error {
	var errs []error
	for _, i := range []*injector{f.in, f.beside} {
		if i != nil {
			errs = append(errs, i.close())
		}
	}
	return errors.Join(errs...)
}

func (r *run) flood(ctx context.Context) (err error) {
	kinds := r.floodKinds()
	r.bar.say("building the topologies of " + floodName)
	beds, err := r.build(ctx, append([]bedKind{genBed}, kinds...), 1500)
	defer func() { err = errors.Join(err, downAll(beds)) }()
	if err != nil {
		return err
	}
	wire := profiles[1]
	for _, b := range beds {
		if err := b.setProfile(wire); err != nil {
			return err
		}
	}
	gen := beds[genBed]
	drop := &injection{}
	defer func() { err = errors.Join(err, drop.close()) }()
	if err := drop.dropInDriver(gen.host(1).NS, underlayDev); err != nil {
		return err
	}
	rows := make([]Flood, len(kinds))
	all := make([]*floodBed, len(kinds))
	defer func() {
		for i, f := range all {
			if f != nil {
				err = errors.Join(err, f.close())
			}
			if len(rows[i].Rounds) > 0 {
				r.report.Flood = append(r.report.Flood, rows[i])
			}
		}
	}()
	for i, k := range kinds {
		all[i] = &floodBed{bed: beds[k]}
		if all[i].in, err = newForger(beds[k], beds[k]); err != nil {
			return err
		}
		if all[i].beside, err = newForger(beds[k], gen); err != nil {
			return err
		}
		rows[i] = Flood{Datapath: k.datapath, Check: k.checkedAt(), Wanted: floodRate}
	}
	failed := map[int]bool{}
	for i := range r.Rounds + 1 {
		for k, f := range all {
			if failed[k] {
				for range 3 {
					r.bar.step("")
				}
				continue
			}
			var x FloodRound
			var err error
			n := 0
			for n < tries && ctx.Err() == nil {
				n++
				if x, err = r.floodRound(ctx, f, wire, i == 0, n == 1); err == nil {
					break
				}
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				r.report.Problems = append(r.report.Problems, fmt.Sprintf("%s, %s: refused %d times: %v", floodName, f.bedKind, n, err))
				failed[k] = true
				continue
			}
			if x.Round = i; i > 0 {
				rows[k].Rounds = append(rows[k].Rounds, x)
				rows[k].Retried += n - 1
			}
		}
	}
	return nil
}

// floodRound is three streams and what proves that the flood was one.
func (r *run) floodRound(ctx context.Context, f *floodBed, p profile, warmup, steps bool) (x FloodRound, err error) {
	step := func(what string) {
		if steps {
			r.bar.step(floodName + " " + f.String() + " " + what)
		}
	}
	one := func(in *injector) (v Round, sent uint64, seconds float64, err error) {
		quiet(func() { v, sent, seconds, err = flooded(ctx, r.slot(f.bed, p, warmup), in) })
		return v, sent, seconds, err
	}
	step("alone")
	if err := f.look(); err != nil {
		return x, err
	}
	v, _, _, err := one(nil)
	if err != nil {
		return x, fmt.Errorf("the stream alone: %w", err)
	}
	x.Alone = v.Value
	step("generator")
	v, sent, seconds, err := one(f.beside)
	if err != nil {
		return x, fmt.Errorf("the stream beside the generator: %w", err)
	}
	x.Generator, x.Beside = v.Value, float64(sent)/seconds

	step("flooded")
	before, err := f.tally()
	if err != nil {
		return x, err
	}
	checked, err := f.strangers()
	if err != nil {
		return x, err
	}
	first, err := f.in.read(0)
	if err != nil {
		return x, err
	}
	v, x.Sent, x.Seconds, err = one(f.in)
	if x.Stalled = errors.Is(err, errStalled); err != nil && !x.Stalled {
		return x, fmt.Errorf("the flooded stream: %w", err)
	}
	if !x.Stalled {
		x.Flood = v.Value
	}
	after, err := f.tally()
	if err != nil {
		return x, err
	}
	now, err := f.strangers()
	if err != nil {
		return x, err
	}
	x.Checked = now - checked
	x.Dropped, _ = after.dropsSince(before)
	if f.datapath == Kernel {
		if x.Learnt, err = f.learnt(first, first+x.Sent); err != nil {
			return x, err
		}
	}
	if f.checkedAt() == "none" {
		if err := f.forget(ctx); err != nil {
			return x, err
		}
	}
	return x, f.judgeFlood(x)
}

// judgeFlood: the check has counted what arrived, or the kernel has believed it.
func (b *bed) judgeFlood(x FloodRound) error {
	switch {
	case x.Sent == 0:
		return errors.New("no forged packet was injected")
	case b.checkedAt() != "none" && x.Checked < x.Sent/2:
		return fmt.Errorf("the source check counted %d of %d forged packets", x.Checked, x.Sent)
	case b.checkedAt() != "none" && float64(x.Checked+x.Dropped) < 0.98*float64(x.Sent):
		return fmt.Errorf("of %d forged packets the source check counted %d and devices dropped %d: where is the rest?", x.Sent, x.Checked, x.Dropped)
	case x.Checked > x.Sent:
		return fmt.Errorf("the source check counted %d packets of %d", x.Checked, x.Sent)
	case b.checkedAt() != "none" && x.Learnt > 0:
		return fmt.Errorf("the kernel learnt %.0f %% of the forged addresses behind a source check", 100*x.Learnt)
	case b.checkedAt() == "none" && x.Checked > 0:
		return fmt.Errorf("a source check dropped %d packets where none should be", x.Checked)
	case b.checkedAt() == "none" && x.Learnt == 0:
		return errors.New("the kernel learnt none of the forged addresses: the flood did not reach it")
	}
	return nil
}

// setUp is `ip link set up` and `down`.
func setUp(ns testenv.NS, dev string, up bool) error {
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq(dev)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
			return err
		}
		flags := req.Uint16() &^ unix.IFF_UP
		if up {
			flags |= unix.IFF_UP
		}
		req.SetUint16(flags)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
	})
	if err != nil {
		return fmt.Errorf("set %s in %s up %t: %w", dev, ns.Name(), up, err)
	}
	return nil
}
