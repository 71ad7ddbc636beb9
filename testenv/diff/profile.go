// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// VNI of the network under test.
const VNI = 236

// Profile is a way to set up both topologies. In X vxbpf adopts what is there:
// what its config does not say, it leaves as found.
type Profile struct {
	Name         string
	IPv6         bool       // of the underlay
	UnderlayMTU  int        // bytes; 0: 1500
	MTU          int        // of bridge and vxlan device, bytes; 0: what fits
	ContainerMTU int        // bytes; 0: as MTU
	Group        netip.Addr // instead of copies to each host
	// VXLAN are IFLA_VXLAN_* of the vxlan devices that differ from usual.
	VXLAN map[int][]byte
	// Before changes a host before vxbpf takes it over, After when it runs.
	Before, After func(t *Topology, host string, nh *netlink.Handle) error
	// Underlay and Network are further lines of config.yaml.
	Underlay, Network string
	// KeepsRoutes leaves the hosts their cached routes, and what they learnt about paths with them. See Avoided.
	KeepsRoutes bool
	// Kinds sets other weights for kinds of frames.
	Kinds map[string]int
	// MinSent and MinReceived are the least shares of packets that vxbpf must
	// have carried, over all hosts: with less the comparison would compare the kernel with itself.
	MinSent, MinReceived float64
}

// Profiles are all of them, the default first.
var Profiles = []Profile{
	// Containers send more than the network takes: "too big" messages and fragments.
	{Name: "ipv4", ContainerMTU: 1500, MinSent: 0.3, MinReceived: 0.3},
	{Name: "ipv6", IPv6: true, ContainerMTU: 1500, MinSent: 0.3, MinReceived: 0.3},
	{Name: "small", UnderlayMTU: 1400, ContainerMTU: 1500, MinSent: 0.3, MinReceived: 0.3},
	{Name: "jumbo", UnderlayMTU: 9000, MinSent: 0.3, MinReceived: 0.3},
	{Name: "route-mtu", ContainerMTU: 1450, Before: routeMTU, MinSent: 0.2, MinReceived: 0.2},
	{Name: "inherit", ContainerMTU: 1500, MinSent: 0.3, MinReceived: 0.3,
		VXLAN: map[int][]byte{nl.IFLA_VXLAN_TTL: nil, unix.IFLA_VXLAN_TTL_INHERIT: {}, nl.IFLA_VXLAN_TOS: {1}, unix.IFLA_VXLAN_DF: {2}}},
	{Name: "inherit6", IPv6: true, MinSent: 0.3, MinReceived: 0.3,
		VXLAN: map[int][]byte{nl.IFLA_VXLAN_TTL: nil, unix.IFLA_VXLAN_TTL_INHERIT: {}, nl.IFLA_VXLAN_TOS: {1}}},
	{Name: "fixed", MinSent: 0.3, MinReceived: 0.3,
		VXLAN: map[int][]byte{nl.IFLA_VXLAN_TTL: {200}, nl.IFLA_VXLAN_TOS: {0x50}, unix.IFLA_VXLAN_DF: {1}, nl.IFLA_VXLAN_PORT_RANGE: portRange(portMin, portMin+100)}},
	{Name: "checksum", VXLAN: map[int][]byte{nl.IFLA_VXLAN_UDP_CSUM: {1}}},
	{Name: "late", After: lateChange, MinSent: 0.3, MinReceived: 0.3},
	{Name: "static", VXLAN: map[int][]byte{nl.IFLA_VXLAN_LEARNING: {0}}, Network: "    learning: false\n", Before: static, MinSent: 0.2, MinReceived: 0.2},
	{Name: "ports", Before: portFlags},
	{Name: "too-big", ContainerMTU: 1500, KeepsRoutes: true, Kinds: tooBigKinds, MinSent: 0.2, MinReceived: 0.2},
	{Name: "too-big6", IPv6: true, ContainerMTU: 1500, KeepsRoutes: true, Kinds: tooBigKinds, MinSent: 0.2, MinReceived: 0.2},
	{Name: "group", Group: netip.MustParseAddr("239.1.1.236"), MinSent: 0.3, MinReceived: 0.3},
	{Name: "offloads-off", ContainerMTU: 1500, Before: offloadsOff, MinSent: 0.3, MinReceived: 0.3},
	{Name: "gro", ContainerMTU: 1500, Before: gro, MinSent: 0.3, MinReceived: 0.3},
}

func portRange(low, high uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, low), high)
}

// config is the host's config.yaml.
func (p Profile) config(h *testenv.Host, s testenv.Spec) []byte {
	var b bytes.Buffer
	// The kernel decapsulates for anybody, and so must vxbpf here.
	fmt.Fprintf(&b, "underlay:\n  device: %s\n  allowed_sources: any\n%s", underlayDev, p.Underlay)
	n := s.Networks[0]
	fmt.Fprintf(&b, "networks:\n  - name: %s\n    vni: %d\n    bridge: %s\n", n.Name, n.VNI, n.Bridge)
	if p.Group.IsValid() {
		fmt.Fprintf(&b, "    group: %q\n", p.Group)
	} else {
		fmt.Fprintf(&b, "    remotes:\n")
		for _, other := range s.Hosts {
			if other.Name != h.Name && !other.Stranger {
				fmt.Fprintf(&b, "      - %q\n", other.Address)
			}
		}
	}
	b.WriteString(p.Network)
	return b.Bytes()
}

// attr is one attribute of a link.
type attr struct {
	typ  int
	data []byte
}

// changeLink is `ip link set NAME type KIND ...`: everything that package
// netlink has no words for. Kind "bridge_slave" is a port of a bridge.
func changeLink(nh *netlink.Handle, name, kind string, attrs ...attr) error {
	link, err := nh.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	var data *nl.RtAttr
	if kind == "bridge_slave" {
		info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
		data = info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	} else {
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
		data = info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	}
	for _, a := range attrs {
		data.AddRtAttr(a.typ, a.data)
	}
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("change %s %s: %w", kind, name, err)
	}
	return nil
}

// patientMulticast makes the bridge's memory of groups and queriers last: with
// the usual times what is flooded would depend on the second in which it is sent.
func patientMulticast(nh *netlink.Handle) error {
	// In hundredths of a second.
	long := nl.Uint64Attr(1_000_000)
	return changeLink(nh, bridgeDev, "bridge",
		attr{nl.IFLA_BR_MCAST_LAST_MEMBER_INTVL, long}, attr{nl.IFLA_BR_MCAST_MEMBERSHIP_INTVL, long}, attr{nl.IFLA_BR_MCAST_QUERIER_INTVL, long})
}

// routeMTU: the path to the other hosts takes less than the device.
func routeMTU(t *Topology, _ string, nh *netlink.Handle) error {
	dev, err := nh.LinkByName(underlayDev)
	if err != nil {
		return err
	}
	p := t.Lab.Spec.Underlay.Prefix
	return nh.RouteReplace(&netlink.Route{LinkIndex: dev.Attrs().Index, Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_KERNEL, MTU: 1400,
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}})
}

// lateChange alters the live link under the daemon.
func lateChange(_ *Topology, _ string, nh *netlink.Handle) error {
	return changeLink(nh, vxlanDev, "vxlan", attr{nl.IFLA_VXLAN_TTL, []byte{77}}, attr{nl.IFLA_VXLAN_TOS, []byte{1}}, attr{unix.IFLA_VXLAN_DF, []byte{2}})
}

// tooBigKinds leaves out what moves. See Avoided.
var tooBigKinds = map[string]int{"too big": 20, "wanderer": 0, "impersonation": 0, "vxlan, addresses": 0, "vxlan, inner addresses": 0,
	"own and odd addresses": 0, "vxlan, outer fragments": 0}

// static gives every host static entries for the endpoints of the others, in both tables.
func static(t *Topology, host string, nh *netlink.Handle) error {
	link, err := nh.LinkByName(vxlanDev)
	if err != nil {
		return err
	}
	for _, h := range t.Lab.Hosts {
		if h.Name == host || h.Stranger {
			continue
		}
		for _, e := range endpoints(h.Name, containerMACs(h), bridgeMAC(h)) {
			m := net.HardwareAddr(e.mac[:])
			n := netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, State: unix.NUD_NOARP, HardwareAddr: m}
			n.Flags = unix.NTF_MASTER
			if err := nh.NeighSet(&n); err != nil {
				return fmt.Errorf("bridge entry for %s: %w", m, err)
			}
			n.Flags, n.IP, n.State = unix.NTF_SELF, h.Address.AsSlice(), unix.NUD_NOARP|unix.NUD_PERMANENT
			if err := nh.NeighSet(&n); err != nil {
				return fmt.Errorf("vxlan entry for %s: %w", m, err)
			}
		}
	}
	return nil
}

// portFlags gives each host ports of another sort.
func portFlags(_ *Topology, host string, nh *netlink.Handle) error {
	yes, no := []byte{1}, []byte{0}
	var errs []error
	set := func(port string, attrs ...attr) {
		if err := changeLink(nh, port, "bridge_slave", attrs...); err != nil {
			errs = append(errs, err)
		}
	}
	switch host {
	case "h1":
		set("v-mgmt-1", attr{nl.IFLA_BRPORT_MODE, yes}) // hairpin
		set("v-mgmt-2", attr{nl.IFLA_BRPORT_ISOLATED, yes})
		set(vxlanDev, attr{nl.IFLA_BRPORT_ISOLATED, yes})
	case "h2":
		set("v-mgmt-1", attr{nl.IFLA_BRPORT_LEARNING, no})
		set("v-mgmt-2", attr{nl.IFLA_BRPORT_UNICAST_FLOOD, no}, attr{nl.IFLA_BRPORT_MCAST_FLOOD, no})
		set(vxlanDev, attr{nl.IFLA_BRPORT_NEIGH_SUPPRESS, yes})
	case "h3":
		set("v-mgmt-1", attr{nl.IFLA_BRPORT_GUARD, yes}, attr{nl.IFLA_BRPORT_BCAST_FLOOD, no})
		set("v-mgmt-2", attr{nl.IFLA_BRPORT_ISOLATED, yes})
		set(vxlanDev, attr{nl.IFLA_BRPORT_UNICAST_FLOOD, no})
	}
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// offload switches features of every device that frames pass.
func offload(t *Topology, host string, change map[string]bool) error {
	h := t.Lab.Host(host)
	set := func(ns testenv.NS, devs ...string) error {
		return ns.Do(func() error {
			e, err := ethtool.NewEthtool()
			if err != nil {
				return err
			}
			defer e.Close()
			for _, dev := range devs {
				if err := e.Change(dev, change); err != nil {
					return fmt.Errorf("change features of %s in %s: %w", dev, ns.Name(), err)
				}
			}
			return nil
		})
	}
	devs := []string{underlayDev}
	for _, c := range h.Containers {
		devs = append(devs, c.HostEnd)
		if err := set(c.NS, "eth0"); err != nil {
			return err
		}
	}
	return set(h.NS, devs...)
}

// offloadsOff: everything is cut up and summed before it leaves a device.
func offloadsOff(t *Topology, host string, _ *netlink.Handle) error {
	return offload(t, host, map[string]bool{"tx-tcp-segmentation": false, "tx-tcp6-segmentation": false, "tx-udp-segmentation": false,
		"tx-generic-segmentation": false, "tx-checksum-ip-generic": false, "tx-scatter-gather": false})
}

// gro: what arrives cut up is put together again.
func gro(t *Topology, host string, nh *netlink.Handle) error {
	if err := offloadsOff(t, host, nh); err != nil {
		return err
	}
	return offload(t, host, map[string]bool{"rx-gro": true})
}
