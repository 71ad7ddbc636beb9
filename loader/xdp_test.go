// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// Where XDP runs by itself, where by force, and what is said of it.
func TestChooseXDP(t *testing.T) {
	native := func(driver string) kernel.XDP { return kernel.XDP{Driver: driver, Known: true, Native: true} }
	merging := native("virtio_net")
	merging.Merges = true
	hiding := native("mlx5_core")
	hiding.HidesTags = true
	for _, tt := range []struct {
		name        string
		dev         xdpDevice
		auto, force bool
		noFrags     bool
		why         string // of auto
	}{
		{"veth", xdpDevice{name: "eth2", kind: "veth", mtu: 1500, XDP: native("veth")}, false, true, false, "segmentation"},
		{"tap", xdpDevice{name: "tap0", kind: "tun", mtu: 1500, XDP: native("tun")}, false, true, false, "linear"},
		{"virtio-net without offloads", xdpDevice{name: "eth2", mtu: 1500, XDP: native("virtio_net")}, true, true, false, "virtio_net"},
		{"virtio-net with them", xdpDevice{name: "eth2", mtu: 1500, XDP: merging}, false, true, false, "merged"},
		{"virtio-net, jumbo frames", xdpDevice{name: "eth2", mtu: 9000, XDP: native("virtio_net")}, true, true, false, "virtio_net"},
		{"the same before 5.18", xdpDevice{name: "eth2", mtu: 9000, XDP: native("virtio_net")}, false, false, true, "MTU 9000"},
		{"ixgbe, jumbo frames", xdpDevice{name: "eth2", mtu: 9000, XDP: native("ixgbe")}, false, false, false, "MTU 9000"},
		{"tags that it hides", xdpDevice{name: "eth2", mtu: 1500, XDP: hiding}, false, true, false, "rxvlan off"},
		{"mlx5", xdpDevice{name: "eth2", mtu: 1500, XDP: native("mlx5_core")}, true, true, false, "mlx5_core"},
		{"ena", xdpDevice{name: "eth2", mtu: 1500, XDP: native("ena")}, false, true, false, "queues"},
		{"gve, MTU of its own", xdpDevice{name: "eth2", mtu: 8896, XDP: native("gve")}, false, false, false, "MTU 8896"},
		{"an unknown driver that has it", xdpDevice{name: "eth2", mtu: 1500, XDP: native("new")}, false, true, false, "nobody has looked at"},
		{"a driver without", xdpDevice{name: "eth2", mtu: 1500, XDP: kernel.XDP{Driver: "dull", Known: true}}, false, false, false, "no native XDP"},
		{"an unknown driver on an old kernel", xdpDevice{name: "eth2", mtu: 1500, XDP: kernel.XDP{Driver: "new"}}, false, false, false, "nobody has looked at"},
		{"a bridge", xdpDevice{name: "br0", kind: "bridge", mtu: 1500, XDP: native("bridge")}, false, false, false, "is a bridge"},
		{"a VLAN", xdpDevice{name: "eth2.5", kind: "vlan", mtu: 1500, XDP: kernel.XDP{Known: true}}, false, false, false, "is a vlan"},
	} {
		use, why := chooseXDP(tt.dev, false, !tt.noFrags)
		if use != tt.auto || !strings.Contains(why, tt.why) {
			t.Errorf("%s: auto %v, %q; want %v, %q", tt.name, use, why, tt.auto, tt.why)
		}
		if use, why := chooseXDP(tt.dev, true, !tt.noFrags); use != tt.force || use && !strings.HasPrefix(why, "datapath: xdp") {
			t.Errorf("%s: force %v, %q; want %v", tt.name, use, why, tt.force)
		}
	}
}

// A verifier that refuses an XDP program costs the host XDP, not its tc programs.
func TestXDPRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("loading programs needs root")
	}
	refused := asm.Instructions{asm.Return()} // R0 was never set
	for _, tc := range []struct {
		program string
		only    bool // the error is no reason to do without XDP
	}{{program: "vx_xdp_decap"}, {program: "vx_xdp_guard"}, {program: "vx_tc_encap", only: true}} {
		t.Run(tc.program, func(t *testing.T) {
			spec, err := bpf.Load()
			if err != nil {
				t.Fatal(err)
			}
			spec.Programs[tc.program].Instructions = refused
			var objs bpf.Objects
			why, err := loadPrograms(spec, &objs, nil)
			if tc.only {
				if err == nil || why != "" || !strings.Contains(err.Error(), tc.program) {
					t.Fatalf("error %v, no XDP because %q: want an error that names %s", err, why, tc.program)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer objs.Close()
			if !strings.Contains(why, tc.program) || strings.Contains(why, "\n") {
				t.Errorf("reason %q: want one line that names %s", why, tc.program)
			}
			if p := objs.ProgramSet(); p.VxTcDecap == nil || p.VxXdpDecap == nil {
				t.Error("programs are missing")
			}
		})
	}
}
