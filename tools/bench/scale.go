// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// The FDB size series: the product's own vx_tc_decap over private maps, filled
// with addresses, half of them behind the VTEP, half on the container's port.
// Injected frames take source and destination at random and end in the
// container's sink: once out of 256 addresses spread over the table, which is
// what a host with a large network and its own few talkers sees, and once out of
// all of them, so that each costs two lookups of cold keys: the worst case. All sizes are loaded at once and
// take turns; the generator, random numbers included, is measured beside them.
// The kernel's own `repeat` would find one key hot in the cache, and on an
// encapsulating program it would encapsulate its own output.

func (r *run) scaleSizes() []fill {
	if r.Quick {
		return []fill{{10, 10}, {100_000, scaleActive}, {100_000, 100_000}}
	}
	return []fill{{10, 10}, {1_000, scaleActive}, {1_000, 1_000}, {100_000, scaleActive}, {100_000, 100_000},
		{1_000_000, scaleActive}, {1_000_000, 1_000_000}}
}

// fill is how many addresses a table holds, and how many of them are in use.
type fill struct{ entries, active int }

const scaleActive = 256

// scaleSteps is rounds of all sizes and of the generator, and one run of each with statistics.
func (r *run) scaleSteps() int {
	n := len(r.scaleSizes())
	return (r.Rounds+1)*(n+1) + n
}

// scaleMap is the least size of vx_fdb: what the daemon makes it (loader).
const scaleMap = 1 << 17

const (
	scaleSource = 0x5e
	scaleDest   = 0xde
)

func scaleMAC(kind byte, i int) (m fdb.MAC) {
	m[0], m[1] = 0x02, kind
	binary.BigEndian.PutUint32(m[2:], uint32(i))
	return m
}

// varyScale writes random addresses: the last four bytes are one of active
// numbers, stride apart.
func varyScale(active, stride int) variation {
	return func(inner int16) asm.Instructions {
		var out asm.Instructions
		for _, off := range []int16{inner + 2, inner + 8} {
			out = append(out,
				asm.FnGetPrandomU32.Call(),
				asm.Mod.Imm32(asm.R0, int32(active)),
				asm.Mul.Imm32(asm.R0, int32(stride)),
				asm.HostTo(asm.BE, asm.R0, asm.Word),
				asm.Mov.Reg(asm.R1, asm.R0),
				asm.RSh.Imm(asm.R1, 16),
				asm.StoreMem(asm.R8, off, asm.R0, asm.Half),
				asm.StoreMem(asm.R8, off+2, asm.R1, asm.Half),
			)
		}
		return out
	}
}

// table is one size of the series.
type table struct {
	fill
	objs bpf.Objects
	in   *injector // into the bed
	gen  *injector // into the generator's bed
}

func (t *table) close() error {
	errs := []error{t.objs.Close()}
	for _, i := range []*injector{t.in, t.gen} {
		if i != nil {
			errs = append(errs, i.close())
		}
	}
	return errors.Join(errs...)
}

func newTable(b, gen *bed, f fill) (t *table, err error) {
	t = &table{fill: f}
	entries := f.entries
	spec, err := bpf.Load()
	if err != nil {
		return nil, err
	}
	spec.Maps["vx_fdb"].MaxEntries = uint32(max(entries, scaleMap))
	if err := spec.LoadAndAssign(&t.objs, nil); err != nil {
		return nil, fmt.Errorf("load programs with an FDB of %d entries: %w", entries, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	set := maps.New(t.objs.MapSet())
	ha, hb := b.host(0), b.host(1)
	c := hb.Containers[0]
	port, err := ifindex(hb.NS, c.HostEnd)
	if err != nil {
		return t, err
	}
	under, err := ifindex(hb.NS, underlayDev)
	if err != nil {
		return t, err
	}
	const net, vtep = 1, 1
	const never = 24 * time.Hour
	now := maps.Now()
	err = errors.Join(
		set.Networks.Put(maps.NetworkKey{VNI: bedVNI, Port: vxlanPort}, maps.Network{Net: net, Local: hb.Address, Refresh: never}),
		set.VTEPs.Put(vtep, maps.VTEP{
			VTEPKey: maps.VTEPKey{Local: hb.Address, Remote: ha.Address, Port: vxlanPort, TTL: 5, Low: 32768, High: 61000},
			Src:     hb.Address, Device: uint32(under), SrcMAC: hb.MAC, DstMAC: ha.MAC, MACs: true, MTU: uint16(b.mtu),
		}),
		set.Control.SetLease(maps.Forever))
	if err != nil {
		return t, err
	}
	half := entries / 2
	for i := range half {
		err := errors.Join(
			set.FDB.Put(fdb.Key{Net: net, MAC: scaleMAC(scaleSource, i)}, fdb.Entry{Kind: fdb.Remote, VTEP: ha.Address, Seen: now}, vtep),
			set.FDB.Put(fdb.Key{Net: net, MAC: scaleMAC(scaleDest, i)}, fdb.Entry{Kind: fdb.Peer, Port: uint32(port), MTU: uint16(c.MTU), Seen: now}, 0))
		if err != nil {
			return t, err
		}
	}
	frame := encapsulate(udpFrame(innerLen, scaleMAC(scaleSource, 0), scaleMAC(scaleDest, 0), b.a.Addr, b.b.Addr),
		bedVNI, ha.MAC, hb.MAC, ha.Address.As4(), hb.Address.As4())
	vary := varyScale(f.active/2, entries/f.active)
	if t.in, err = newInjector(ha.NS, underlayDev, frame, overhead, vary); err != nil {
		return t, err
	}
	t.gen, err = newInjector(gen.host(0).NS, underlayDev, frame, overhead, vary)
	return t, err
}

func (r *run) scale(ctx context.Context) (err error) {
	r.bar.say("building the topology of " + scaleName)
	bedOpts := bedOptions{prefix: r.prefix + "s-", binary: r.Binary, log: r.Log}
	b, err := newBed(ctx, genBed, 1500, bedOpts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.down()) }()
	bedOpts.prefix = r.prefix + "g-"
	gen, err := newBed(ctx, genBed, 1500, bedOpts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gen.down()) }()

	real, alone := &injection{}, &injection{}
	defer func() { err = errors.Join(err, real.close(), alone.close()) }()
	ns := b.host(1).NS
	err = errors.Join(
		real.gro(ns, underlayDev),
		real.count(b.host(1).Containers[0].NS, "eth0", offDstPort),
		alone.gro(gen.host(1).NS, underlayDev))
	if err != nil {
		return err
	}
	if err := alone.dropInDriver(gen.host(1).NS, underlayDev); err != nil {
		return err
	}
	var tables []*table
	defer func() {
		for _, t := range tables {
			err = errors.Join(err, t.close())
		}
	}()
	for _, n := range r.scaleSizes() {
		r.bar.say("filling an FDB with " + strconv.Itoa(n.entries) + " addresses")
		if err := ctx.Err(); err != nil {
			return err
		}
		t, err := newTable(b, gen, n)
		if err != nil {
			return err
		}
		tables = append(tables, t)
	}
	points := make([]Scale, len(tables))
	defer func() {
		for _, p := range points {
			if len(p.Rounds) > 0 {
				r.report.Scale = append(r.report.Scale, p)
			}
		}
	}()
	for i := range r.Rounds + 1 {
		s := r.slot(b, profiles[0], i == 0)
		r.bar.step(scaleName + " generator")
		var g Round
		quiet(func() { g, err = tables[0].gen.run(ctx, s.dur, s.frames, s.pathCPU, alone.received) })
		if err != nil {
			return fmt.Errorf("%s: generator: %w", scaleName, err)
		}
		for k, t := range tables {
			r.bar.step(scaleName + " entries " + strconv.Itoa(t.entries))
			points[k].Entries, points[k].Active = t.entries, t.active
			x, _, err := t.measure(ctx, r.slot(b, profiles[0], i == 0), real)
			if err == nil {
				err = x.net(g.Gross)
			}
			if err != nil {
				return fmt.Errorf("%s: %d entries: %w", scaleName, t.entries, err)
			}
			if x.Round = i; i > 0 {
				points[k].Rounds = append(points[k].Rounds, x)
			}
		}
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return fmt.Errorf("enable program statistics: %w", err)
	}
	defer stats.Close()
	for k, t := range tables {
		r.bar.step(scaleName + " statistics " + strconv.Itoa(t.entries))
		s := r.slot(b, profiles[0], true)
		_, ns, err := t.measure(ctx, s, real)
		if err != nil {
			return fmt.Errorf("%s: %d entries: %w", scaleName, t.entries, err)
		}
		points[k].NS = ns
	}
	return nil
}

// measure puts the table's program before the underlay and sends through it. It
// returns the program's own time per run too, where statistics are on.
func (t *table) measure(ctx context.Context, s slot, x *injection) (r Round, ns float64, err error) {
	detach, err := attachTCX(s.bed.host(1).NS, underlayDev, t.objs.VxTcDecap)
	if err != nil {
		return r, 0, err
	}
	defer func() { err = errors.Join(err, detach()) }()
	before, err := t.objs.VxTcDecap.Stats()
	if err != nil {
		return r, 0, err
	}
	quiet(func() { r, err = t.in.run(ctx, s.dur, s.frames, s.pathCPU, x.received) })
	if err != nil {
		return r, 0, err
	}
	if float64(r.Lost) > 0.01*float64(r.Sent) {
		// The sink is behind the program: a frame that is not fast goes to a host without a bridge.
		return r, 0, fmt.Errorf("only %d of %d frames took the fast path", r.Received, r.Sent)
	}
	after, err := t.objs.VxTcDecap.Stats()
	if err != nil {
		return r, 0, err
	}
	if n := after.RunCount - before.RunCount; n > 0 {
		ns = float64((after.Runtime - before.Runtime).Nanoseconds()) / float64(n)
	}
	return r, ns, nil
}
