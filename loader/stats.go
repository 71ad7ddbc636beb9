// SPDX-License-Identifier: Apache-2.0

package loader

import "sync/atomic"

// Stats is what the daemon has done since it started. Any goroutine may read it.
type Stats struct {
	FDBChanged atomic.Uint64 // entries of the kernel's tables made, moved or changed
	FDBGone    atomic.Uint64 // entries of the kernel's tables removed
	Overruns   atomic.Uint64 // times that netlink events were lost
	Resyncs    atomic.Uint64 // full reads of the kernel's tables, the regular ones among them
}

// Stats are the daemon's.
func (d *Daemon) Stats() *Stats { return &d.stats }
