// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"fmt"

	"github.com/vxbpf/vxbpf/bpf"
)

// Problems says in one line each what a person should know first. `vxbpf doctor`
// looks further.
func (s *Snapshot) Problems() []string {
	out := []string{}
	if s.Daemon == 0 && !s.State.Once {
		out = append(out, "NO DAEMON: the data path goes on, new MAC addresses take the kernel's way; start `vxbpf load` again")
	}
	for _, d := range s.State.Degradations() {
		out = append(out, fmt.Sprintf("DEGRADED: %v", d))
	}
	for _, n := range s.State.Networks {
		if n.Unchecked != "" && n.Unchecked != "allowed_sources: any" && n.Unchecked != s.State.Reason {
			out = append(out, n.Name+": whoever reaches this host may send to it: "+n.Unchecked)
		}
		for _, p := range n.Ports {
			if !p.Fast && p.Reason != n.Reason {
				out = append(out, fmt.Sprintf("%s: port %s is on the slow path: %s", n.Name, p.Name, p.Reason))
			}
		}
		for h, byReason := range s.Counts[n.Name] {
			if c := byReason[bpf.DropBroken]; c.Packets > 0 {
				out = append(out, fmt.Sprintf("%s: %d packets were DROPPED at %v (drop_broken): this is a bug of vxbpf, report it", n.Name, c.Packets, h))
			}
		}
	}
	for _, v := range s.VTEPs {
		if v.State == "down" && v.MACs > 0 {
			out = append(out, fmt.Sprintf("VTEP %s: no way there, %d MAC addresses behind it", v.Remote, v.MACs))
		}
	}
	if n, size := s.FDBEntries(); size > 0 && n >= size*9/10 {
		out = append(out, fmt.Sprintf("the FDB map holds %d of %d entries: what does not fit stays on the slow path", n, size))
	}
	return out
}
