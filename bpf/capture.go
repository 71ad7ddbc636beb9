// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// What the capturing programs and Go share; see types.h.
type (
	CaptureEvent   = capCaptureEvent
	CaptureControl = capCaptureControl
	CaptureCPU     = capCaptureCpu
	Fate           = capFate
)

// What became of a captured packet.
const (
	FateKernel = capFateFATE_KERNEL
	FateFast   = capFateFATE_FAST
	FateDrop   = capFateFATE_DROP
)

// Fates are all of them, in order.
var Fates = []Fate{FateKernel, FateFast, FateDrop}

func (f capFate) String() string {
	switch f {
	case FateKernel:
		return "kernel"
	case FateFast:
		return "fast"
	case FateDrop:
		return "drop"
	}
	return "fate_" + strconv.Itoa(int(f))
}

const (
	// CaptureSnap is the longest part of a packet that a capture keeps, bytes.
	CaptureSnap = 65535
	// CaptureMoved is the hook number of vx_tc_moved in a CaptureEvent: it counts nothing and so is no Hook.
	CaptureMoved = 31
	// eventSize is the fixed part of an event.
	eventSize = 40
)

// LoadCapture returns the programs that capture, as they stand in the object:
// those of Load under the same names and over the same maps, and maps of their own.
func LoadCapture() (*ebpf.CollectionSpec, error) { return loadCap() }

// OfCapture reports whether a map belongs to the capturing programs alone.
func OfCapture(name string) bool { return strings.HasPrefix(name, "vx_capture") }

// ErrShortEvent says that bytes from vx_capture are no event.
var ErrShortEvent = errors.New("capture event is too short")

// ParseCapture splits what vx_capture holds into the event, the packet as it
// came, and the packet as it was sent on. Both are parts of b.
func ParseCapture(b []byte) (e CaptureEvent, in, out []byte, err error) {
	if len(b) < eventSize {
		return e, nil, nil, ErrShortEvent
	}
	n := binary.NativeEndian
	e = CaptureEvent{At: n.Uint64(b), Ifindex: n.Uint32(b[8:]), LenIn: n.Uint32(b[12:]), LenOut: n.Uint32(b[16:]), Had: n.Uint32(b[20:]),
		Got: n.Uint32(b[24:]), Segments: n.Uint32(b[28:]), Net: n.Uint16(b[32:]), Vlan: n.Uint16(b[34:]), Hook: b[36], Reason: b[37], Fate: b[38]}
	b = b[eventSize:]
	// The kernel rounds a record up to 8 bytes.
	if uint64(e.Had)+uint64(e.Got) > uint64(len(b)) {
		return e, nil, nil, ErrShortEvent
	}
	return e, b[:e.Had], b[e.Had : e.Had+e.Got], nil
}
