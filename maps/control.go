// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
)

// Control is vx_control: the daemon's word that it is alive.
type Control struct{ m *ebpf.Map }

// Forever is a lease that does not end: nobody follows the kernel, and the
// operator asked for that.
const Forever = time.Duration(math.MaxInt64)

// SetLease vouches for MAC addresses and static entries until the given time of
// CLOCK_MONOTONIC_COARSE.
func (c *Control) SetLease(until time.Duration) error {
	if err := c.m.Put(uint32(0), bpf.Control{Lease: uint64(max(until, 0))}); err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	return nil
}

// Lease is when the daemon's word ends.
func (c *Control) Lease() (time.Duration, error) {
	var v bpf.Control
	if err := c.m.Lookup(uint32(0), &v); err != nil {
		return 0, fmt.Errorf("read lease: %w", err)
	}
	return time.Duration(min(v.Lease, math.MaxInt64)), nil
}
