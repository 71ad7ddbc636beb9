// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// switchBridge is the bridge of a switch underlay.
const switchBridge = "sw0"

// containerIf is the link in every container.
const containerIf = "eth0"

func attrs(name string, mtu int, mac fdb.MAC) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	a.MTU = mtu
	a.HardwareAddr = net.HardwareAddr(mac[:])
	return a
}

func setUp(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// awaitUp waits until links are operational. The kernel activates a link's
// queue some time after it has got a carrier, and what is sent before is lost
// without a trace: the first ARP request, say, and with it one second. A link
// that stays down, for example a bridge that waits for spanning tree, is not
// waited for longer than 2 s.
func (n NS) awaitUp(ctx context.Context, names ...string) error {
	return n.withNetlink(func(h *netlink.Handle) error {
		for end := time.Now().Add(2 * time.Second); len(names) > 0; {
			link, err := h.LinkByName(names[0])
			if err != nil {
				return fmt.Errorf("find %s in %s: %w", names[0], n.name, err)
			}
			// A driver without a carrier stays unknown.
			if op := link.Attrs().OperState; op == netlink.OperUp || op == netlink.OperUnknown || time.Now().After(end) {
				names = names[1:]
				continue
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(2 * time.Millisecond):
			}
		}
		return nil
	})
}

// setAddr adds addresses and brings the link up. Without IPv6 in the kernel
// the IPv6 addresses are left out.
func (n NS) setAddr(link string, prefixes ...netip.Prefix) error {
	v6 := n.hasIPv6()
	return n.withNetlink(func(h *netlink.Handle) error {
		if err := setUp(h, link); err != nil {
			return err
		}
		dev, err := h.LinkByName(link)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", link, n.name, err)
		}
		for _, p := range prefixes {
			if !p.IsValid() || p.Addr().Is6() && !v6 {
				continue
			}
			a := &netlink.Addr{IPNet: &net.IPNet{
				IP:   p.Addr().AsSlice(),
				Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
			}}
			if p.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := h.AddrAdd(dev, a); err != nil {
				return fmt.Errorf("add address %s to %s in %s: %w", p, link, n.name, err)
			}
		}
		return nil
	})
}

// vethEnd is one side of a veth pair.
type vethEnd struct {
	ns   NS
	name string
	mac  fdb.MAC
}

// makeVeth makes a pair, each end born in its namespace: moved links would
// show up elsewhere for a moment.
func makeVeth(a, b vethEnd, mtu int) error {
	target, err := netns.GetFromPath(b.ns.Path())
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", b.ns.name, err)
	}
	defer target.Close()
	v := netlink.NewVeth(attrs(a.name, mtu, a.mac))
	v.PeerName = b.name
	v.PeerHardwareAddr = net.HardwareAddr(b.mac[:])
	v.PeerNamespace = netlink.NsFd(int(target))
	err = a.ns.withNetlink(func(h *netlink.Handle) error { return h.LinkAdd(v) })
	if err != nil {
		return fmt.Errorf("make veth %s in %s to %s in %s: %w", a.name, a.ns.name, b.name, b.ns.name, err)
	}
	return nil
}

// makeBridge makes a bridge without spanning tree, up.
func makeBridge(h *netlink.Handle, name string, mtu int, mac fdb.MAC) error {
	br := &netlink.Bridge{LinkAttrs: attrs(name, mtu-1, mac)}
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	// Given at creation the MTU follows the ports, and bridge netfilter fragments
	// to 1500; changed, it stays, and fragments fit.
	if err := h.LinkSetMTU(br, mtu); err != nil {
		return fmt.Errorf("set mtu of bridge %s: %w", name, err)
	}
	return setUp(h, name)
}

func enslave(h *netlink.Handle, port, bridge string) error {
	p, err := h.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find %s: %w", port, err)
	}
	br, err := h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	if err := h.LinkSetMaster(p, br); err != nil {
		return fmt.Errorf("attach %s to bridge %s: %w", port, bridge, err)
	}
	return nil
}

// delLinks deletes links, the last first; one that is gone already is no error.
func (n NS) delLinks(names ...string) error {
	return n.withNetlink(func(h *netlink.Handle) error {
		var errs []error
		for _, name := range slices.Backward(names) {
			link, err := h.LinkByName(name)
			if errors.As(err, new(netlink.LinkNotFoundError)) {
				continue
			}
			if err == nil {
				err = h.LinkDel(link)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("delete %s in %s: %w", name, n.name, err))
			}
		}
		return errors.Join(errs...)
	})
}

// makeMiddle turns the middle namespace into a switch or a router.
func (l *Lab) makeMiddle() error {
	if l.Spec.Underlay.Kind == Routed {
		err := l.SwitchNS().Sysctl("net.ipv4.ip_forward", "1")
		if err == nil && l.SwitchNS().hasIPv6() {
			err = l.SwitchNS().Sysctl("net.ipv6.conf.all.forwarding", "1")
		}
		return err
	}
	return l.SwitchNS().withNetlink(func(h *netlink.Handle) error {
		return makeBridge(h, switchBridge, l.Spec.Underlay.MTU, mac(macSwitch, 0, 0, 0))
	})
}

func (l *Lab) makeUnderlay(ctx context.Context) error {
	u := l.Spec.Underlay
	if u.Kind == P2P {
		a, b := l.Hosts[0], l.Hosts[1]
		if err := makeVeth(vethEnd{a.NS, u.Device, a.MAC}, vethEnd{b.NS, u.Device, b.MAC}, u.MTU); err != nil {
			return err
		}
	}
	for _, h := range l.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		port := "p-" + h.Name
		if u.Kind != P2P {
			if err := makeVeth(vethEnd{l.SwitchNS(), port, mac(macSwitch, h.index, 0, 0)}, vethEnd{h.NS, u.Device, h.MAC}, u.MTU); err != nil {
				return err
			}
		}
		if err := h.NS.setAddr(u.Device, h.Prefix); err != nil {
			return err
		}
		var err error
		switch u.Kind {
		case Switch:
			err = l.SwitchNS().withNetlink(func(nh *netlink.Handle) error {
				return errors.Join(enslave(nh, port, switchBridge), setUp(nh, port))
			})
		case Routed:
			err = l.route(h, port)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// gateway is the router's address on a routed underlay.
func (l *Lab) gateway() netip.Addr { return l.Spec.Underlay.Prefix.Addr().Next() }

// route makes the router's port the host's way to everybody. That the hop
// behind it is smaller is an attribute of the router's route, locked: without
// that an IPv6 router would go by the size of its device.
func (l *Lab) route(h *Host, port string) error {
	u, gateway := l.Spec.Underlay, l.gateway()
	only := netip.PrefixFrom(gateway, gateway.BitLen())
	if err := l.SwitchNS().setAddr(port, only); err != nil {
		return err
	}
	add := func(n NS, dev string, r netlink.Route) error {
		return n.withNetlink(func(nh *netlink.Handle) error {
			link, err := nh.LinkByName(dev)
			if err == nil {
				r.LinkIndex = link.Attrs().Index
				err = nh.RouteAdd(&r)
			}
			if err != nil {
				return fmt.Errorf("add route by %s in %s: %w", dev, n.name, err)
			}
			return nil
		})
	}
	net4or6 := func(p netip.Prefix) *net.IPNet {
		return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	}
	return errors.Join(
		add(l.SwitchNS(), port, netlink.Route{Dst: net4or6(h.Prefix), Scope: netlink.SCOPE_LINK, MTU: u.PathMTU, MTULock: u.PathMTU != 0}),
		add(h.NS, u.Device, netlink.Route{Dst: net4or6(only), Scope: netlink.SCOPE_LINK}),
		add(h.NS, u.Device, netlink.Route{Dst: net4or6(u.Prefix), Gw: gateway.AsSlice()}),
	)
}

func (h *Host) makeContainer(c *Container) error {
	end := c.MAC
	end[1] = macHostEnd
	if err := makeVeth(vethEnd{h.NS, c.HostEnd, end}, vethEnd{c.NS, containerIf, c.MAC}, c.MTU); err != nil {
		return err
	}
	if err := c.NS.setAddr(containerIf, c.Addr, c.Addr6); err != nil {
		return err
	}
	return h.NS.withNetlink(func(nh *netlink.Handle) error { return setUp(nh, c.HostEnd) })
}

func (l *Lab) hostAndNetwork(host, network string) (*Host, Network, error) {
	h := l.Host(host)
	if h == nil {
		return nil, Network{}, fmt.Errorf("lab %s has no host %q", l.Name, host)
	}
	n, err := l.Spec.Network(network)
	return h, n, err
}

// AttachContainers plugs a host's containers into the bridges of their
// networks. It waits until the bridges appear, 10 s or until ctx ends. A host
// without containers has nothing to wait for.
func (l *Lab) AttachContainers(ctx context.Context, host string) error {
	h := l.Host(host)
	if h == nil {
		return fmt.Errorf("lab %s has no host %q", l.Name, host)
	}
	if len(h.Containers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var bridges []string
	err := h.NS.withNetlink(func(nh *netlink.Handle) error {
		for _, n := range l.Spec.Networks {
			bridges = append(bridges, n.Bridge)
			if err := waitLink(ctx, nh, n.Bridge); err != nil {
				return fmt.Errorf("host %s: %w", host, err)
			}
			if err := h.attach(nh, n); err != nil {
				return fmt.Errorf("host %s: %w", host, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return h.NS.awaitUp(ctx, bridges...)
}

func (h *Host) attach(nh *netlink.Handle, n Network) error {
	for _, c := range h.Containers {
		if c.Network == n.Name {
			if err := enslave(nh, c.HostEnd, n.Bridge); err != nil {
				return err
			}
		}
	}
	return nil
}

func waitLink(ctx context.Context, nh *netlink.Handle, name string) error {
	for {
		_, err := nh.LinkByName(name)
		if !errors.As(err, new(netlink.LinkNotFoundError)) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for bridge %s: %w", name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// KernelVXLANOptions of KernelVXLAN. The zero value is the network as the
// Spec has it, and the kernel's own habits.
type KernelVXLANOptions struct {
	// Link is the vxlan device. Empty: encap-<network>.
	Link string
	// Remotes get a copy of each BUM frame. nil: the network's group, or all other hosts.
	Remotes []netip.Addr
	// NoLearning turns off source learning in the vxlan device.
	NoLearning bool
	// NoChecksum sends zero as outer UDP checksum. The kernel's default, and ours, is to compute it.
	// Over IPv6 zero is taken from the others in any case, unless Attributes say no.
	NoChecksum bool
	// Attributes are IFLA_VXLAN_* in wire format, in place of what the options above stand for:
	// {unix.IFLA_VXLAN_DF: {1}}. A nil value leaves an attribute out, an empty one is a flag.
	Attributes map[int][]byte
	// TTL of outer packets. 0: 5.
	TTL uint8
	// MTU of vxlan device and bridge, bytes. 0: the network's.
	MTU int
	// NoContainers leaves the host's containers unattached.
	NoContainers bool
}

// KernelVXLAN makes a network on a host the way the kernel has always done it:
// a bridge, a vxlan device as its port, the containers' host ends as further
// ports. The returned function deletes bridge and vxlan device again.
func (l *Lab) KernelVXLAN(ctx context.Context, host, network string, o KernelVXLANOptions) (remove func() error, err error) {
	h, n, err := l.hostAndNetwork(host, network)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.Link == "" {
		o.Link = "encap-" + n.Name
	}
	if o.Remotes == nil && !n.Group.IsValid() {
		o.Remotes = remotes(l.Spec, h.Name)
	}
	if o.TTL == 0 {
		o.TTL = 5
	}
	if o.MTU == 0 {
		o.MTU = n.MTU
	}
	index := l.networkIndex(network)
	var made []string // what was there before is not ours to delete
	remove = func() error { return h.NS.delLinks(made...) }
	err = h.NS.withNetlink(func(nh *netlink.Handle) error {
		if err := makeBridge(nh, n.Bridge, o.MTU, mac(macBridge, h.index, index, 0)); err != nil {
			return err
		}
		made = append(made, n.Bridge)
		dev, err := nh.LinkByName(l.Spec.Underlay.Device)
		if err != nil {
			return fmt.Errorf("find %s: %w", l.Spec.Underlay.Device, err)
		}
		v := vxlan{name: o.Link, network: n, local: h.Address, device: dev.Attrs().Index, mac: mac(macVXLAN, h.index, index, 0), o: o}
		if err := h.NS.Do(v.add); err != nil {
			return fmt.Errorf("make vxlan link %s: %w", o.Link, err)
		}
		made = append(made, o.Link)
		if err := v.addRemotes(nh); err != nil {
			return err
		}
		if err := errors.Join(enslave(nh, o.Link, n.Bridge), setUp(nh, o.Link)); err != nil {
			return err
		}
		if o.NoContainers {
			return nil
		}
		return h.attach(nh, n)
	})
	if err == nil {
		err = h.NS.setAddr(n.Bridge, h.BridgeAddresses(network)...)
	}
	if err == nil {
		err = h.NS.awaitUp(ctx, n.Bridge)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kernel vxlan %s on host %s: %w", network, host, err), remove())
	}
	return remove, nil
}

// vxlan is a vxlan device to be made. Every attribute is sent explicitly,
// which package netlink cannot do: it has no way to say "no UDP checksum".
type vxlan struct {
	name    string
	network Network
	local   netip.Addr
	device  int
	mac     fdb.MAC
	o       KernelVXLANOptions
}

func (v vxlan) add() error {
	u8 := func(on bool) []byte {
		if on {
			return []byte{1}
		}
		return []byte{0}
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.o.MTU))))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, v.mac[:]))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	local, group := nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_GROUP
	if v.local.Is6() {
		local, group = nl.IFLA_VXLAN_LOCAL6, nl.IFLA_VXLAN_GROUP6
	}
	attributes := map[int][]byte{
		nl.IFLA_VXLAN_ID:       nl.Uint32Attr(uint32(v.network.VNI)),
		nl.IFLA_VXLAN_LINK:     nl.Uint32Attr(uint32(v.device)),
		nl.IFLA_VXLAN_TTL:      {v.o.TTL},
		nl.IFLA_VXLAN_LEARNING: u8(!v.o.NoLearning),
		nl.IFLA_VXLAN_PORT:     binary.BigEndian.AppendUint16(nil, 4789),
		local:                  v.local.AsSlice(),
	}
	if v.local.Is6() {
		attributes[nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX] = u8(v.o.NoChecksum)
		// Take both: the other side chooses.
		attributes[nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX] = u8(true)
	} else {
		attributes[nl.IFLA_VXLAN_UDP_CSUM] = u8(!v.o.NoChecksum)
	}
	if v.network.Group.IsValid() && v.o.Remotes == nil {
		attributes[group] = v.network.Group.AsSlice()
	}
	maps.Copy(attributes, v.o.Attributes)
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	for typ, value := range attributes {
		if value != nil {
			data.AddRtAttr(typ, value)
		}
	}
	req.AddData(info)
	// The socket is opened here, so add must run inside the namespace.
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// addRemotes is `bridge fdb append 00:00:00:00:00:00 dev <link> dst <remote>`.
func (v vxlan) addRemotes(h *netlink.Handle) error {
	link, err := h.LinkByName(v.name)
	if err != nil {
		return fmt.Errorf("find %s: %w", v.name, err)
	}
	for _, r := range v.o.Remotes {
		err := h.NeighAppend(&netlink.Neigh{
			LinkIndex:    link.Attrs().Index,
			Family:       unix.AF_BRIDGE,
			State:        unix.NUD_PERMANENT | unix.NUD_NOARP,
			Flags:        unix.NTF_SELF,
			IP:           r.AsSlice(),
			HardwareAddr: make(net.HardwareAddr, 6),
		})
		if err != nil {
			return fmt.Errorf("append remote %s to %s: %w", r, v.name, err)
		}
	}
	return nil
}

// Bare bridges a network's containers straight onto the underlay device: no
// encapsulation at all, the yardstick of the benchmarks. Meanwhile the host's
// own address on the underlay is deaf, because the bridge takes every frame.
// The returned function undoes it.
func (l *Lab) Bare(ctx context.Context, host, network string) (remove func() error, err error) {
	h, n, err := l.hostAndNetwork(host, network)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var made []string
	remove = func() error { return h.NS.delLinks(made...) }
	err = h.NS.withNetlink(func(nh *netlink.Handle) error {
		if err := makeBridge(nh, n.Bridge, l.Spec.Underlay.MTU, mac(macBridge, h.index, l.networkIndex(network), 0)); err != nil {
			return err
		}
		made = append(made, n.Bridge)
		if err := enslave(nh, l.Spec.Underlay.Device, n.Bridge); err != nil {
			return err
		}
		return h.attach(nh, n)
	})
	if err == nil {
		err = h.NS.awaitUp(ctx, n.Bridge)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bare bridge %s on host %s: %w", network, host, err), remove())
	}
	return remove, nil
}
