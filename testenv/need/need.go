// SPDX-License-Identifier: Apache-2.0

// Package need says for a test what the kernel must have for it.
//
//	func TestVLANs(t *testing.T) {
//		need.Kernel(t, need.VLANFiltering)
//
// The thing is tried. Where it is missing the test is skipped, with the words
// "fallback: ..." and what is missing. What every kernel has since some release
// must be there: the test fails instead. In the virtual machines of `make
// test-kernels` (VXBPF_TEST_VM is set) that is so for everything, and a skip
// fails that is neither a fallback nor left to another target (Elsewhere).
package need

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/probe"
)

// Feature of a kernel.
type Feature struct {
	// Name for a person, as in "no bridge VLAN filtering".
	Name string
	// Since is the release from which on Debian's kernels have it: "5.10" is the oldest that is tested.
	Since string
	// Until is the first release of Debian's that has it no more; empty: none.
	Until string
	// BuiltIn is in every kernel since then, whatever modules that has: where it is missing all the same, the test fails.
	BuiltIn bool
	try     func() error
}

// What tests need. All of Debian's kernels have the links and qdiscs, as modules.
var (
	// FastPath is the youngest of what the programs cannot do without.
	FastPath = Feature{Name: "fast path in BPF", Since: "5.13", BuiltIn: true, try: func() error {
		return probe.AdjustRoom(50, probe.FixedGSO|probe.EncapL3IPv4|probe.EncapL4UDP|probe.EncapL2Eth|probe.EncapL2(14))
	}}
	// DecapL3 is decapsulation of IPv6 in IPv4, and the other way round, at the underlay.
	DecapL3 = Feature{Name: "BPF_F_ADJ_ROOM_DECAP_L3_*", Since: "6.3", BuiltIn: true, try: func() error { return probe.AdjustRoom(-50, probe.FixedGSO|probe.DecapL3IPv6) }}
	TCX     = Feature{Name: "tcx", Since: "6.6", BuiltIn: true, try: probe.TCX}
	// XDPFrags is XDP programs for packets in several pieces.
	XDPFrags = Feature{Name: "XDP frags", Since: "5.18", BuiltIn: true, try: func() error { return probe.XDP(true) }}

	Bond      = Feature{Name: "bonding", Since: "5.10", try: link(netlink.NewLinkBond(named("try0")))}
	Dummy     = Feature{Name: "dummy device", Since: "5.10", try: link(&netlink.Dummy{LinkAttrs: named("try0")})}
	Geneve    = Feature{Name: "geneve device", Since: "5.10", try: link(&netlink.Geneve{LinkAttrs: named("try0"), ID: 1, Remote: []byte{127, 0, 0, 1}})}
	Macvlan   = Feature{Name: "macvlan device", Since: "5.10", try: on(func(lo int) netlink.Link { return &netlink.Macvlan{LinkAttrs: below("try0", lo)} })}
	VRF       = Feature{Name: "VRF", Since: "5.10", try: link(&netlink.Vrf{LinkAttrs: named("try0"), Table: 10})}
	WireGuard = Feature{Name: "WireGuard", Since: "5.10", try: link(&netlink.Wireguard{LinkAttrs: named("try0")})}
	// VLAN is 802.1Q devices.
	VLAN = Feature{Name: "802.1Q device", Since: "5.10", try: on(func(lo int) netlink.Link { return &netlink.Vlan{LinkAttrs: below("try0", lo), VlanId: 5} })}
	// VLANFiltering is bridges that look at VLAN tags.
	VLANFiltering = Feature{Name: "bridge VLAN filtering", Since: "5.10", try: link(&netlink.Bridge{LinkAttrs: named("try0"), VlanFiltering: ptr(true)})}

	// What rtnetlink knows of bridges and vxlan links. An older kernel ignores the attribute.
	PortLocked    = Feature{Name: "locked bridge ports", Since: "5.16", try: since("5.16")}
	VNIFilter     = Feature{Name: "vxlan vnifilter", Since: "5.18", try: since("5.18")}
	NoLocalBypass = Feature{Name: "vxlan nolocalbypass", Since: "6.5", try: since("6.5")}
	LabelInherit  = Feature{Name: "vxlan flowlabel inherit", Since: "6.8", try: since("6.8")}
	// NetdevEgress is netfilter's hook there.
	NetdevEgress = Feature{Name: "netdev egress hook", Since: "5.16", try: func() error {
		return probe.Apart(func() error {
			out, err := exec.Command("nft", "table netdev try { chain c { type filter hook egress device lo priority 0; }; }").CombinedOutput()
			if err != nil {
				return fmt.Errorf("nft: %w: %w: %s", ebpf.ErrNotSupported, err, strings.TrimSpace(string(out)))
			}
			return nil
		})
	}}

	// Ebtables is its legacy form, and the command for it.
	Ebtables = Feature{Name: "legacy ebtables", Since: "5.10", Until: "7.3", try: func() error {
		return probe.Apart(func() error {
			if out, err := exec.Command("ebtables-legacy", "-t", "filter", "-L").CombinedOutput(); err != nil {
				return fmt.Errorf("ebtables-legacy: %w: %w: %s", ebpf.ErrNotSupported, err, strings.TrimSpace(string(out)))
			}
			return nil
		})
	}}

	// Netem is loss, delay and reordering.
	Netem = Feature{Name: "netem", Since: "5.10", try: qdisc(func(a netlink.QdiscAttrs) netlink.Qdisc {
		return netlink.NewNetem(a, netlink.NetemQdiscAttrs{Limit: 10})
	})}
)

// since goes by the version: for what is not there shows only by comparing what was set with what is read, as the test does.
func since(version string) func() error {
	return func() error {
		if older(probe.Release(), version) {
			return ebpf.ErrNotSupported
		}
		return nil
	}
}

func ptr[T any](v T) *T { return &v }

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func below(name string, parent int) netlink.LinkAttrs {
	a := named(name)
	a.ParentIndex = parent
	return a
}

// link tries to make a link.
func link(l netlink.Link) func() error {
	return func() error { return add(func(h *netlink.Handle) error { return h.LinkAdd(l) }) }
}

// on tries to make a link on a veth: the loopback device takes none.
func on(make func(parent int) netlink.Link) func() error {
	return func() error {
		return add(func(h *netlink.Handle) error {
			if err := h.LinkAdd(&netlink.Veth{LinkAttrs: named("below0"), PeerName: "below1"}); err != nil {
				return err
			}
			l, err := h.LinkByName("below0")
			if err != nil {
				return err
			}
			return h.LinkAdd(make(l.Attrs().Index))
		})
	}
}

// qdisc tries to make a root qdisc.
func qdisc(make func(netlink.QdiscAttrs) netlink.Qdisc) func() error {
	return func() error {
		return add(func(h *netlink.Handle) error {
			return h.QdiscAdd(make(netlink.QdiscAttrs{LinkIndex: 1, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}))
		})
	}
}

// add runs try where what it makes disturbs nobody.
func add(try func(h *netlink.Handle) error) error {
	return probe.Apart(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		err = try(h)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("%w: %w", err, ebpf.ErrNotSupported)
		}
		return err
	})
}

// VM reports whether the test runs in a virtual machine of `make test-kernels`.
func VM() bool { return os.Getenv("VXBPF_TEST_VM") != "" }

// Elsewhere leaves a test to a make target of its own, and says so.
func Elsewhere(t testing.TB, target, why string) {
	t.Helper()
	t.Skipf("elsewhere: make %s: %s", target, why)
}

// Have reports whether the kernel has a feature. A try that says nothing fails the test.
func Have(t testing.TB, f Feature) bool {
	t.Helper()
	return missing(t, f) == ""
}

// Kernel skips the test where the kernel lacks one of these.
func Kernel(t testing.TB, all ...Feature) {
	t.Helper()
	for _, f := range all {
		if why := missing(t, f); why != "" {
			t.Skipf("fallback: %s", why)
		}
	}
}

func missing(t testing.TB, f Feature) string {
	t.Helper()
	err := f.try()
	if err == nil {
		return ""
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		t.Fatalf("try whether this kernel has %s: %v", f.Name, err)
	}
	running := probe.Release()
	if (VM() || f.BuiltIn) && !older(running, f.Since) && (f.Until == "" || older(running, f.Until)) {
		t.Fatalf("kernel %s should have %s, since %s: %v", running, f.Name, f.Since, err)
	}
	if VM() && f.Until != "" && !older(running, f.Until) {
		return fmt.Sprintf("no %s any more, from %s on", f.Name, f.Until)
	}
	if VM() {
		return fmt.Sprintf("no %s, since %s", f.Name, f.Since)
	}
	return fmt.Sprintf("kernel %s has no %s: %v", running, f.Name, err)
}

var release = regexp.MustCompile(`^(\d+)\.(\d+)`)

// older: 5.10.0-46-cloud-amd64 is older than 5.13.
func older(a, b string) bool {
	ma, mb := release.FindStringSubmatch(a), release.FindStringSubmatch(b)
	if ma == nil || mb == nil {
		return false
	}
	for i := 1; i <= 2; i++ {
		x, errX := strconv.Atoi(ma[i])
		y, errY := strconv.Atoi(mb[i])
		if errX != nil || errY != nil || x != y {
			return x < y
		}
	}
	return false
}
