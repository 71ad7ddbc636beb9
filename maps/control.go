// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
)

// Control is vx_control: the daemon's word that it is alive, and the underlay's that a packet was too big.
type Control struct{ m *ebpf.Map }

// Forever is a lease that does not end: nobody follows the kernel, and the
// operator asked for that.
const Forever = time.Duration(math.MaxInt64)

// SetLease vouches for MAC addresses and static entries until the given time of
// CLOCK_MONOTONIC_COARSE.
func (c *Control) SetLease(until time.Duration) error {
	if err := c.m.Put(bpf.ControlLease, bpf.Control{At: uint64(max(until, 0))}); err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	return nil
}

// Lease is when the daemon's word ends.
func (c *Control) Lease() (time.Duration, error) {
	return c.at(bpf.ControlLease, "lease")
}

// TooBig is when the underlay last said that a packet was too big, 0 for never:
// the kernel has learnt a path MTU since.
func (c *Control) TooBig() (time.Duration, error) {
	return c.at(bpf.ControlTooBig, "time of the last \"too big\"")
}

// Removed is when a program last removed an entry from the FDB map, 0 for
// never: its MAC was seen elsewhere, or its port was gone.
func (c *Control) Removed() (time.Duration, error) {
	return c.at(bpf.ControlRemoved, "time of the last removal")
}

func (c *Control) at(key uint32, what string) (time.Duration, error) {
	var v bpf.Control
	if err := c.m.Lookup(key, &v); err != nil {
		return 0, fmt.Errorf("read %s: %w", what, err)
	}
	return time.Duration(min(v.At, math.MaxInt64)), nil
}
