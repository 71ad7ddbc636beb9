// SPDX-License-Identifier: Apache-2.0

// Package maps is typed access to the loaded BPF maps, one map per file: domain
// values in, C keys and values inside.
package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
)

// Set is every map of one loaded data path.
type Set struct {
	FDB      *FDB
	Networks *Networks
	Ports    *Ports
	VTEPs    *VTEPs
	Control  *Control
	Counters *Counters
	ByVTEP   *VTEPCounters

	Sources   *Sources
	Strangers *Strangers
	Raw       *Raw
}

// New wraps the maps of a loaded collection. The Set does not own them.
func New(m *bpf.Maps) *Set {
	return &Set{
		FDB:      &FDB{m: m.VxFdb},
		Networks: &Networks{m: m.VxVni},
		Ports:    &Ports{m: m.VxPort},
		VTEPs:    &VTEPs{m: m.VxVtep},
		Control:  &Control{m: m.VxControl},
		Counters: &Counters{m: m.VxCount},
		ByVTEP:   &VTEPCounters{m: m.VxVtepCount},

		Sources:   &Sources{m: m.VxSource},
		Strangers: &Strangers{m: m.VxStranger},
		Raw:       &Raw{m: m.VxRaw},
	}
}

// OpenPinned opens the maps pinned in dir for reading, with no daemon needed.
// The error wraps os.ErrNotExist where nothing is pinned. Close the Set's maps
// with the returned function.
func OpenPinned(dir string) (*Set, func() error, error) {
	var m bpf.Maps
	for name, dst := range ByName(&m) {
		p, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), &ebpf.LoadPinOptions{})
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("open pinned map %s: %w", filepath.Join(dir, name), err), closeAll(&m))
		}
		*dst = p
	}
	return New(&m), func() error { return closeAll(&m) }, nil
}

// ByName lists the pinned maps by the names of their pins.
func ByName(m *bpf.Maps) map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		"vx_fdb": &m.VxFdb, "vx_vni": &m.VxVni, "vx_port": &m.VxPort,
		"vx_vtep": &m.VxVtep, "vx_control": &m.VxControl, "vx_count": &m.VxCount, "vx_vtep_count": &m.VxVtepCount,
		"vx_source": &m.VxSource, "vx_stranger": &m.VxStranger, "vx_budget": &m.VxBudget, "vx_raw": &m.VxRaw,
	}
}

func closeAll(m *bpf.Maps) (err error) {
	for _, p := range ByName(m) {
		if *p != nil {
			err = errors.Join(err, (*p).Close())
		}
	}
	return err
}

// Now reads the clock that the programs read: CLOCK_MONOTONIC_COARSE.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		panic("clock_gettime(CLOCK_MONOTONIC_COARSE): " + err.Error()) // there since Linux 2.6.32
	}
	return time.Duration(ts.Nano())
}

// words is an address as its bytes lie in memory; IPv4 has the first word.
func words(a netip.Addr) (w [4]uint32) {
	var b [16]byte
	copy(b[:], a.AsSlice())
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func addr(w [4]uint32, v6 bool) netip.Addr {
	var b [16]byte
	for i := range w {
		binary.NativeEndian.PutUint32(b[4*i:], w[i])
	}
	if v6 {
		return netip.AddrFrom16(b)
	}
	return netip.AddrFrom4([4]byte(b[:4]))
}

func be16(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
