// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
)

// hook is one place where a program of ours belongs.
type hook struct {
	program string // vx_tc_encap, vx_tc_decap, vx_tc_deliver
	ifindex int
	egress  bool
}

func (h hook) direction() string {
	if h.egress {
		return "egress"
	}
	return "ingress"
}

// attacher puts programs at hooks. tcx is one way, clsact the other.
type attacher interface {
	// attach puts the program at the hook. Where an older program of ours is
	// there already, it is replaced without a packet passing in between.
	attach(h hook, dev string, prog *ebpf.Program) error
	// replace puts the program in the place of the one of ours at the hook. Where
	// there is none (any more) it does nothing.
	replace(h hook, prog *ebpf.Program) error
	// detach takes our program off. One that is not there is fine, and so is a
	// device that is gone.
	detach(h hook) error
	// at is the program of ours at a hook, 0 if there is none.
	at(h hook) (ebpf.ProgramID, error)
	// present lists the hooks that carry a program of this instance.
	present() ([]hook, error)
	// name says how, for status: "tcx" or "clsact".
	name() string
	close() error
}

func program(p *bpf.Programs, name string) (*ebpf.Program, error) {
	switch name {
	case "vx_tc_encap":
		return p.VxTcEncap, nil
	case "vx_tc_decap":
		return p.VxTcDecap, nil
	case "vx_tc_deliver":
		return p.VxTcDeliver, nil
	case "vx_tc_guard":
		return p.VxTcGuard, nil
	case "vx_tc_moved":
		return p.VxTcMoved, nil
	}
	return nil, fmt.Errorf("find program %q: no such program in this build", name)
}
