// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/vxbpf/vxbpf/testenv"
)

// The small programs of the benchmark are written in BPF assembly, so that
// building it needs no clang and vxbpf carries no second object.

// Offsets into the program contexts (linux/bpf.h).
const (
	skbData, skbDataEnd = 76, 80 // struct __sk_buff
	xdpData, xdpDataEnd = 0, 4   // struct xdp_md
	tcxNext, tcxDrop    = -1, 2
	xdpAborted, xdpDrop = 0, 1
)

// Offsets into frames without VLAN tag or IP options.
const (
	offEtherType = 12
	offProtocol  = 23
	offIPSum     = 24
	offIPSrc     = 26
	offSrcPort   = 34
	offDstPort   = 36
	offVNI       = 46
	vxlanPort    = 4789
	discard      = 9 // UDP destination port of injected packets
)

// counterProg is a program with per-CPU counters.
type counterProg struct {
	prog   *ebpf.Program
	counts *ebpf.Map
}

func (p *counterProg) close() error { return errors.Join(p.prog.Close(), p.counts.Close()) }

// read sums up one counter over the CPUs.
func (p *counterProg) read(i uint32) (sum uint64, err error) {
	var v []uint64
	if err := p.counts.Lookup(i, &v); err != nil {
		return 0, fmt.Errorf("read counter: %w", err)
	}
	for _, n := range v {
		sum += n
	}
	return sum, nil
}

// newCounterProg loads a program that build makes around a map of counters.
func newCounterProg(name string, typ ebpf.ProgramType, counters uint32, build func(m *ebpf.Map) asm.Instructions) (*counterProg, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: counters})
	if err != nil {
		return nil, fmt.Errorf("make counters of %s: %w", name, err)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: typ, License: "Dual BSD/GPL", Instructions: build(m)})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load %s: %w", name, err), m.Close())
	}
	return &counterProg{p, m}, nil
}

// countAt adds one to a counter and leaves the new value of this CPU in R7. It
// changes R0 to R5.
func countAt(m *ebpf.Map, index int32, label string) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, int64(index), asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.Mov.Imm(asm.R7, 0),
		asm.JEq.Imm(asm.R0, 0, label),
		asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R7, 1),
		asm.StoreMem(asm.R0, 0, asm.R7, asm.DWord),
		asm.Mov.Imm(asm.R1, 0).WithSymbol(label),
	}
}

// be16 is a 16-bit number as a program finds it when it loads it from a frame.
func be16(v uint16) int32 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return int32(binary.NativeEndian.Uint16(b[:]))
}

// newSink counts and drops packets that carry UDP to the discard port at an
// offset (plain or encapsulated), and lets all others pass.
func newSink(off int32) (*counterProg, error) {
	return newCounterProg("bench_sink", ebpf.SchedCLS, 1, func(m *ebpf.Map) asm.Instructions {
		insns := asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, skbData, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, skbDataEnd, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, off+2),
			asm.JGT.Reg(asm.R4, asm.R3, "pass"),
			asm.LoadMem(asm.R5, asm.R2, int16(off), asm.Half),
			asm.JNE.Imm(asm.R5, be16(discard), "pass"),
		}
		insns = append(insns, countAt(m, 0, "counted")...)
		return append(insns,
			asm.Mov.Imm(asm.R0, tcxDrop),
			asm.Return(),
			asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
			asm.Return(),
		)
	})
}

// Counters of newSniffer.
const (
	sniffOuter = iota // VXLAN, outer UDP checksum 0
	sniffSum          // VXLAN, outer UDP checksum there
	sniffPlain        // other IPv4
	sniffCounters
)

// newSniffer counts encapsulated and plain IPv4 packets and lets all pass.
func newSniffer() (*counterProg, error) {
	return newCounterProg("bench_sniff", ebpf.SchedCLS, sniffCounters, func(m *ebpf.Map) asm.Instructions {
		insns := asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, skbData, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, skbDataEnd, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, 42),
			asm.JGT.Reg(asm.R4, asm.R3, "pass"),
			asm.LoadMem(asm.R5, asm.R2, offEtherType, asm.Half),
			asm.JNE.Imm(asm.R5, be16(0x0800), "pass"),
			asm.LoadMem(asm.R5, asm.R2, offProtocol, asm.Byte),
			asm.JNE.Imm(asm.R5, 17, "plain"),
			asm.LoadMem(asm.R5, asm.R2, offDstPort, asm.Half),
			asm.JNE.Imm(asm.R5, be16(vxlanPort), "plain"),
			asm.LoadMem(asm.R5, asm.R2, offDstPort+4, asm.Half),
			asm.JNE.Imm(asm.R5, 0, "sum"),
		}
		insns = append(insns, countAt(m, sniffOuter, "n1")...)
		insns = append(insns, asm.Ja.Label("pass"))
		sum := countAt(m, sniffSum, "n2")
		sum[0] = sum[0].WithSymbol("sum")
		insns = append(append(insns, sum...), asm.Ja.Label("pass"))
		plain := countAt(m, sniffPlain, "n3")
		plain[0] = plain[0].WithSymbol("plain")
		insns = append(insns, plain...)
		return append(insns,
			asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
			asm.Return(),
		)
	})
}

// newXDPDrop counts and drops everything: the end of the generator when it is
// measured alone.
func newXDPDrop() (*counterProg, error) {
	return newCounterProg("bench_drop", ebpf.XDP, 1, func(m *ebpf.Map) asm.Instructions {
		return append(countAt(m, 0, "counted"), asm.Mov.Imm(asm.R0, xdpDrop), asm.Return())
	})
}

// newLossy drops one packet of n: for the tests of the self-checks.
func newLossy(n int32) (*counterProg, error) {
	return newCounterProg("bench_lossy", ebpf.SchedCLS, 1, func(m *ebpf.Map) asm.Instructions {
		insns := append(countAt(m, 0, "counted"),
			asm.Mod.Imm(asm.R7, n),
			asm.JEq.Imm(asm.R7, 0, "drop"),
			asm.Mov.Imm(asm.R0, tcxNext),
			asm.Return(),
			asm.Mov.Imm(asm.R0, tcxDrop).WithSymbol("drop"),
			asm.Return(),
		)
		return insns
	})
}

// attachTCX puts a program before all others on a link's ingress.
func attachTCX(ns testenv.NS, dev string, p *ebpf.Program) (detach func() error, err error) {
	index, err := ifindex(ns, dev)
	if err != nil {
		return nil, err
	}
	var l link.Link
	err = ns.Do(func() error {
		l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach %s to %s in %s: %w", p, dev, ns.Name(), err)
	}
	return l.Close, nil
}

// attachXDP puts a native XDP program on a link.
func attachXDP(ns testenv.NS, dev string, p *ebpf.Program) (detach func() error, err error) {
	index, err := ifindex(ns, dev)
	if err != nil {
		return nil, err
	}
	var l link.Link
	err = ns.Do(func() error {
		l, err = link.AttachXDP(link.XDPOptions{Interface: index, Program: p, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach %s to %s in %s: %w", p, dev, ns.Name(), err)
	}
	return l.Close, nil
}
