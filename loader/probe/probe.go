// SPDX-License-Identifier: Apache-2.0

// Package probe asks the running kernel what its BPF can do, by doing it: a
// version number says nothing of backports, a build's configuration and what a
// container may do. Each function returns nil, an error that wraps
// ebpf.ErrNotSupported where the kernel lacks the thing, or any other error
// where that could not be found out. It must not know what the answers are for.
package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Flags of bpf_skb_adjust_room (linux/bpf.h).
const (
	FixedGSO    = 1 << 0
	EncapL3IPv4 = 1 << 1
	EncapL4UDP  = 1 << 4
	EncapL2Eth  = 1 << 6
	DecapL3IPv4 = 1 << 7
	DecapL3IPv6 = 1 << 8
	DecapL4UDP  = 1 << 10
)

// EncapL2 is the flag that gives the length of the inner Ethernet header.
func EncapL2(n int) uint64 { return uint64(n) << 56 }

// Release of the kernel, as uname has it. For people: nothing is decided by it.
func Release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "?" // it has no way to fail
	}
	return unix.ByteSliceToString(u.Release[:])
}

// licence of the programs: some helpers are for GPL programs only.
const licence = "GPL"

// tc makes a program for the tc hooks.
func tc(ins asm.Instructions) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "vx_probe", Type: ebpf.SchedCLS, License: licence, Instructions: ins})
	if err != nil {
		return nil, fmt.Errorf("load a tc program: %w", err)
	}
	return p, nil
}

// next is a program that leaves the packet alone (TC_ACT_UNSPEC).
func next() asm.Instructions { return asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()} }

// AdjustRoom runs bpf_skb_adjust_room on a VXLAN packet over IPv4: bytes more
// (or less) behind the Ethernet header.
func AdjustRoom(bytes int32, flags uint64) error {
	const mac = 1 // BPF_ADJ_ROOM_MAC
	p, err := tc(asm.Instructions{
		asm.Mov.Imm(asm.R2, bytes),
		asm.Mov.Imm(asm.R3, mac),
		asm.LoadImm(asm.R4, int64(flags), asm.DWord),
		asm.FnSkbAdjustRoom.Call(),
		asm.Return(),
	})
	if err != nil {
		return err
	}
	defer p.Close()
	ret, err := p.Run(&ebpf.RunOptions{Data: packet(), DataOut: make([]byte, 1024)})
	if err != nil {
		return fmt.Errorf("run a tc program: %w", err)
	}
	switch errno := unix.Errno(-int32(ret)); {
	case ret == 0:
		return nil
	case errno == unix.EINVAL, errno == unix.EOPNOTSUPP: // what it answers to a flag that it does not know
		return fmt.Errorf("adjust_room(%d, %#x): %w: %w", bytes, flags, errno, ebpf.ErrNotSupported)
	default:
		return fmt.Errorf("adjust_room(%d, %#x): %w", bytes, flags, errno)
	}
}

// packet is an Ethernet frame in UDP port 4789 in IPv4, long enough for anything.
func packet() []byte {
	b := make([]byte, 14+20+8+8+14+20+100)
	be := binary.BigEndian
	be.PutUint16(b[12:], unix.ETH_P_IP)
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	be.PutUint16(ip[2:], uint16(len(ip)))
	udp := ip[20:]
	be.PutUint16(udp[0:], 49152)
	be.PutUint16(udp[2:], 4789)
	be.PutUint16(udp[4:], uint16(len(udp)))
	udp[8] = 8
	be.PutUint16(udp[8+8+12:], unix.ETH_P_IP)
	udp[8+8+14] = 0x45
	return b
}

// Helpers tries whether programs of a type may call all of these.
func Helpers(t ebpf.ProgramType, helpers ...asm.BuiltinFunc) error {
	for _, h := range helpers {
		if err := features.HaveProgramHelper(t, h); err != nil {
			return fmt.Errorf("call %v: %w", h, err)
		}
	}
	return nil
}

// Maps makes a map of each type.
func Maps(types ...ebpf.MapType) error {
	for _, t := range types {
		if err := features.HaveMapType(t); err != nil {
			return fmt.Errorf("make a map of type %v: %w", t, err)
		}
	}
	return nil
}

// XDP loads an XDP program; with frags one that takes packets in several pieces.
func XDP(frags bool) error {
	spec := &ebpf.ProgramSpec{Name: "vx_probe", Type: ebpf.XDP, License: licence, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}}
	if frags {
		spec.Flags = unix.BPF_F_XDP_HAS_FRAGS
	}
	p, err := ebpf.NewProgram(spec)
	switch {
	case err == nil:
		return p.Close()
	case errors.Is(err, unix.EINVAL): // what it answers to a flag that it does not know
		err = errors.Join(err, ebpf.ErrNotSupported)
	}
	return fmt.Errorf("load an XDP program: %w", err)
}

// TCX attaches a program that leaves packets alone to the loopback device of a
// network namespace of its own, or of this one where none can be made.
func TCX() error {
	try := func() error {
		p, err := tc(next())
		if err != nil {
			return err
		}
		defer p.Close()
		l, err := link.AttachTCX(link.TCXOptions{Interface: 1, Program: p, Attach: ebpf.AttachTCXEgress, Anchor: link.Tail()})
		if err != nil {
			return fmt.Errorf("attach by tcx: %w", err)
		}
		return l.Close()
	}
	err := Apart(try)
	if errors.Is(err, errNotApart) {
		return try()
	}
	return err
}

var errNotApart = errors.New("make a network namespace")

// Apart runs try in a new network namespace with nothing but a loopback
// device, so that what it makes disturbs nobody and goes by itself.
func Apart(try func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the runtime ends the thread, and the namespace goes with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("%w: %w", errNotApart, err)
			return
		}
		done <- try()
	}()
	return <-done
}
