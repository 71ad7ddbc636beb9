// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/vxbpf/vxbpf/testenv/need"
)

// attachedBy is how vxbpf attaches on this kernel when it may choose.
func attachedBy(t testing.TB) string {
	t.Helper()
	if need.Have(t, need.TCX) {
		return "tcx"
	}
	return "clsact"
}

// needMode skips a test of one way of attaching where the kernel has only the other.
func needMode(t testing.TB, modes ...string) {
	t.Helper()
	for _, m := range modes {
		if m == "tcx" {
			need.Kernel(t, need.TCX)
		}
	}
}

// tcxPrograms lists what is attached by tcx; before 6.6 nothing is, and a question about it is an invalid argument.
func tcxPrograms(t testing.TB, ifindex int, at ebpf.AttachType) ([]link.AttachedProgram, error) {
	t.Helper()
	if !need.Have(t, need.TCX) {
		return nil, nil
	}
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: at})
	if err != nil {
		return nil, err
	}
	return r.Programs, nil
}

// scale is a number of bytes for a CPU of today, less on an emulated one.
func scale(bytes int64) int64 {
	if need.VM() {
		return bytes / 16
	}
	return bytes
}

// patience is how long to wait for something, longer on an emulated CPU.
func patience(d time.Duration) time.Duration {
	if need.VM() {
		return 3 * d
	}
	return d
}

// attached waits, on a kernel without tcx, until all ports carry their programs:
// a port's clsact qdisc costs the packet that is sent in the moment when it comes.
func (w *world) attached(host string) {
	w.t.Helper()
	if attachedBy(w.t) == "tcx" {
		return
	}
	w.settle(func() bool {
		s, _ := w.status(host)
		ports := map[string]bool{}
		for _, n := range s.Networks {
			if n.Datapath != "tc" {
				return true
			}
			for _, p := range n.Ports {
				ports[p.Name] = true
			}
		}
		for _, c := range w.Host(host).Containers {
			if !ports[c.HostEnd] {
				return false
			}
		}
		return true
	})
}
