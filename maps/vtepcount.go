// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
)

// VTEPCounters is vx_vtep_count: packets and bytes by VTEP, direction and way.
type VTEPCounters struct{ m *ebpf.Map }

// Traffic is what went between this host and one VTEP. Sent is what was for a
// MAC that is known behind it; Received came from one. What the kernel floods
// or still has to learn from is nobody's.
type Traffic struct {
	SentFast     Count `json:"sent_fast"`
	SentSlow     Count `json:"sent_slow"`
	ReceivedFast Count `json:"received_fast"`
	ReceivedSlow Count `json:"received_slow"`
}

func (t *Traffic) way(w uint32) *Count {
	return [...]*Count{bpf.WaySentFast: &t.SentFast, bpf.WaySentSlow: &t.SentSlow,
		bpf.WayReceivedFast: &t.ReceivedFast, bpf.WayReceivedSlow: &t.ReceivedSlow}[w]
}

// Read sums up the counters of the VTEP at an index of VTEPs.
func (c *VTEPCounters) Read(index uint32) (t Traffic, err error) {
	var cpus []bpf.VTEPCount
	if err := c.m.Lookup(index, &cpus); err != nil {
		return t, fmt.Errorf("read counters of VTEP %d: %w", index, err)
	}
	for _, cpu := range cpus {
		for w, v := range cpu.By {
			t.way(uint32(w)).Packets += v.Packets
			t.way(uint32(w)).Bytes += v.Bytes
		}
	}
	return t, nil
}

// Reset zeroes the counters of an index that is given to another VTEP.
func (c *VTEPCounters) Reset(index uint32) error {
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("reset counters of VTEP %d: %w", index, err)
	}
	if err := c.m.Put(index, make([]bpf.VTEPCount, n)); err != nil {
		return fmt.Errorf("reset counters of VTEP %d: %w", index, err)
	}
	return nil
}
