// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"bytes"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/vxbpf/vxbpf/testenv"
)

// VNI of the network under test.
const VNI = 236

// Profile is a way to set up both topologies.
type Profile struct {
	Name         string
	IPv6         bool // of the underlay
	UnderlayMTU  int  // bytes; 0: 1500
	MTU          int  // of bridge and vxlan device, bytes; 0: what fits
	ContainerMTU int  // bytes; 0: as MTU
	// Before changes a host before vxbpf takes it over, After when it runs.
	Before, After func(t *Topology, host string, nh *netlink.Handle) error
	// Underlay and Network are further lines of config.yaml.
	Underlay, Network string
	// MinSent and MinReceived are the least shares of packets that vxbpf must
	// have carried: with less the comparison would compare the kernel with itself.
	MinSent, MinReceived float64
}

// Profiles are all of them, the default first.
var Profiles = []Profile{
	{Name: "ipv4", ContainerMTU: 1500, MinSent: 0.3, MinReceived: 0.3},
}

// config is the host's config.yaml. What it does not say, the kernel's default
// or KernelVXLAN has said.
func (p Profile) config(h *testenv.Host, s testenv.Spec) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "underlay:\n  device: %s\n  ttl: 5\n%s", underlayDev, p.Underlay)
	n := s.Networks[0]
	fmt.Fprintf(&b, "networks:\n  - name: %s\n    vni: %d\n    bridge: %s\n    mtu: %d\n    remotes:\n", n.Name, n.VNI, n.Bridge, n.MTU)
	for _, other := range s.Hosts {
		if other.Name != h.Name && !other.Stranger {
			fmt.Fprintf(&b, "      - %q\n", other.Address)
		}
	}
	b.WriteString(p.Network)
	return b.Bytes()
}
