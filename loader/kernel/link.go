// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// extSkipStats keeps the counters, two thirds of the message, out of link
// answers (RTEXT_FILTER_SKIP_STATS).
const extSkipStats = 1 << 3

// parseLink reads the payload of an RTM_NEWLINK or RTM_DELLINK message of
// family AF_UNSPEC.
func parseLink(b []byte) (Link, error) {
	var d decoder
	head, rest := d.header(b, unix.SizeofIfInfomsg)
	flags := native.Uint32(head[8:])
	l := Link{
		Index:   int(int32(native.Uint32(head[4:]))),
		Up:      flags&unix.IFF_UP != 0,
		Carrier: flags&unix.IFF_LOWER_UP != 0,
	}
	var data, slaveData []byte
	var slaveKind string
	var peer int
	var elsewhere bool
	var peerNS int
	for typ, v := range d.attrs(rest) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = d.str(v)
		case unix.IFLA_IFALIAS:
			l.Alias = d.str(v)
		case unix.IFLA_MTU:
			l.MTU = int(d.u32(v))
		case unix.IFLA_MASTER:
			l.Master = d.index(v)
		case unix.IFLA_LINK:
			peer = d.index(v)
		case unix.IFLA_LINK_NETNSID:
			elsewhere, peerNS = true, int(int32(d.u32(v)))
		case unix.IFLA_ADDRESS:
			if len(v) == 6 { // tunnels have 4 bytes, InfiniBand 20, neither is an Ethernet address
				l.MAC = fdb.MAC(v)
			}
		case unix.IFLA_XDP:
			for typ, v := range d.attrs(v) {
				switch typ {
				case unix.IFLA_XDP_PROG_ID, unix.IFLA_XDP_DRV_PROG_ID, unix.IFLA_XDP_SKB_PROG_ID, unix.IFLA_XDP_HW_PROG_ID:
					l.XDP = d.u32(v)
				}
			}
		case unix.IFLA_LINKINFO:
			for typ, v := range d.attrs(v) {
				switch typ {
				case unix.IFLA_INFO_KIND:
					l.Kind = d.str(v)
				case unix.IFLA_INFO_DATA:
					data = v
				case unix.IFLA_INFO_SLAVE_KIND:
					slaveKind = d.str(v)
				case unix.IFLA_INFO_SLAVE_DATA:
					slaveData = v
				}
			}
		}
	}
	switch l.Kind {
	case "veth":
		l.Peer, l.PeerElsewhere, l.PeerNS = peer, elsewhere, peerNS
	case "bridge":
		l.Bridge = d.bridge(data)
	case "vxlan":
		l.VXLAN = d.vxlan(data)
	}
	if slaveKind == "bridge" {
		l.Port = d.port(slaveData)
	}
	if d.err != nil {
		return Link{}, fmt.Errorf("parse link %d: %w", l.Index, d.err)
	}
	return l, nil
}

func (d *decoder) bridge(b []byte) *Bridge {
	br := new(Bridge)
	for typ, v := range d.attrs(b) {
		switch typ {
		case unix.IFLA_BR_STP_STATE:
			br.STP = d.u32(v) != 0
		case unix.IFLA_BR_FORWARD_DELAY:
			br.ForwardDelay = d.ticks(v)
		case unix.IFLA_BR_AGEING_TIME:
			br.Ageing = d.ticks(v)
		case unix.IFLA_BR_VLAN_FILTERING:
			br.VLANFiltering = d.flag(v)
		case unix.IFLA_BR_NF_CALL_IPTABLES:
			br.NFCallIPTables = d.flag(v)
		case unix.IFLA_BR_NF_CALL_IP6TABLES:
			br.NFCallIP6Tables = d.flag(v)
		case unix.IFLA_BR_NF_CALL_ARPTABLES:
			br.NFCallARPTables = d.flag(v)
		case unix.IFLA_BR_GROUP_FWD_MASK:
			br.GroupFwdMask = d.u16(v)
		}
	}
	return br
}

func (d *decoder) vxlan(b []byte) *VXLAN {
	vx := new(VXLAN)
	for typ, v := range d.attrs(b) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			vx.VNI = fdb.VNI(d.u32(v))
		case unix.IFLA_VXLAN_LINK:
			vx.Device = d.index(v)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			vx.Local = d.specified(v)
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6:
			vx.Group = d.specified(v)
		case unix.IFLA_VXLAN_PORT:
			vx.Port = d.be16(v)
		case unix.IFLA_VXLAN_TTL:
			vx.TTL = int(d.u8(v))
		case unix.IFLA_VXLAN_TTL_INHERIT:
			vx.TTLInherit = d.flag(v)
		case unix.IFLA_VXLAN_TOS:
			vx.TOS = int(d.u8(v))
		case unix.IFLA_VXLAN_DF:
			vx.DF = int(d.u8(v))
		case unix.IFLA_VXLAN_LABEL:
			vx.FlowLabel = uint32(d.be16(v))<<16 | uint32(d.be16(d.fixed(v, 4)[2:]))
		case unix.IFLA_VXLAN_LABEL_POLICY: // enum ifla_vxlan_label_policy
			vx.LabelInherit = d.u32(v) == labelInherit
		case unix.IFLA_VXLAN_LIMIT:
			vx.MaxAddresses = d.u32(v)
		case unix.IFLA_VXLAN_LOCALBYPASS:
			vx.NoLocalBypass = !d.flag(v)
		case unix.IFLA_VXLAN_LEARNING:
			vx.Learning = d.flag(v)
		case unix.IFLA_VXLAN_AGEING:
			if s := d.u32(v); s != vxlanNever {
				vx.Ageing = time.Duration(s) * time.Second
			}
		case unix.IFLA_VXLAN_PORT_RANGE: // struct ifla_vxlan_port_range, big endian
			vx.SrcLow = d.be16(v)
			vx.SrcHigh = d.be16(d.fixed(v, 4)[2:])
		case unix.IFLA_VXLAN_UDP_CSUM:
			vx.UDPCsum = d.flag(v)
		case unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX:
			vx.UDPZeroCsum6TX = d.flag(v)
		case unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX:
			vx.UDPZeroCsum6RX = d.flag(v)
		case unix.IFLA_VXLAN_REMCSUM_TX, unix.IFLA_VXLAN_REMCSUM_RX:
			vx.RemCsum = vx.RemCsum || d.flag(v)
		case unix.IFLA_VXLAN_COLLECT_METADATA:
			vx.External = d.flag(v)
		case unix.IFLA_VXLAN_VNIFILTER:
			vx.VNIFilter = d.flag(v)
		case unix.IFLA_VXLAN_PROXY:
			vx.Proxy = d.flag(v)
		case unix.IFLA_VXLAN_RSC:
			vx.RSC = d.flag(v)
		case unix.IFLA_VXLAN_L2MISS:
			vx.L2Miss = d.flag(v)
		case unix.IFLA_VXLAN_L3MISS:
			vx.L3Miss = d.flag(v)
		case unix.IFLA_VXLAN_GBP: // present is on
			vx.GBP = true
		case unix.IFLA_VXLAN_GPE:
			vx.GPE = true
		}
	}
	return vx
}

func (d *decoder) port(b []byte) *Port {
	p := new(Port)
	for typ, v := range d.attrs(b) {
		switch typ {
		case nl.IFLA_BRPORT_STATE:
			p.State = PortState(d.u8(v))
		case nl.IFLA_BRPORT_MODE:
			p.Hairpin = d.flag(v)
		case nl.IFLA_BRPORT_LEARNING:
			p.Learning = d.flag(v)
		case nl.IFLA_BRPORT_UNICAST_FLOOD:
			p.UnicastFlood = d.flag(v)
		case nl.IFLA_BRPORT_ISOLATED:
			p.Isolated = d.flag(v)
		case nl.IFLA_BRPORT_LOCKED:
			p.Locked = d.flag(v)
		case nl.IFLA_BRPORT_MAB:
			p.MAB = d.flag(v)
		case nl.IFLA_BRPORT_NEIGH_SUPPRESS:
			p.NeighSuppress = d.flag(v)
		case nl.IFLA_BRPORT_VLAN_TUNNEL:
			p.VLANTunnel = d.flag(v)
		case nl.IFLA_BRPORT_BACKUP_PORT:
			p.BackupPort = d.index(v)
		}
	}
	return p
}

func skipStats() *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(extSkipStats)) }

// Links returns every link of the namespace in the order of the kernel.
func (h *Handle) Links() ([]Link, error) {
	msgs, err := h.request(unix.RTM_GETLINK, unix.NLM_F_DUMP, unix.RTM_NEWLINK, ifInfo(0, 0, 0), skipStats())
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links := make([]Link, 0, len(msgs))
	for _, m := range msgs {
		l, err := parseLink(m)
		if err != nil {
			return nil, fmt.Errorf("list links: %w", err)
		}
		links = append(links, l)
	}
	return links, nil
}

// LinkByName returns the link of that name, false if there is none. Names are
// at most 15 bytes long (IFNAMSIZ); a longer one names no link.
func (h *Handle) LinkByName(name string) (Link, bool, error) {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return Link{}, false, nil
	}
	l, ok, err := h.link(ifInfo(0, 0, 0), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err != nil {
		return Link{}, false, fmt.Errorf("get link %s: %w", name, err)
	}
	return l, ok, nil
}

// LinkByIndex returns the link with that ifindex, false if there is none.
func (h *Handle) LinkByIndex(index int) (Link, bool, error) {
	if index <= 0 {
		return Link{}, false, nil
	}
	l, ok, err := h.link(ifInfo(index, 0, 0))
	if err != nil {
		return Link{}, false, fmt.Errorf("get link %d: %w", index, err)
	}
	return l, ok, nil
}

func (h *Handle) link(parts ...nl.NetlinkRequestData) (Link, bool, error) {
	m, err := h.get(unix.RTM_GETLINK, unix.RTM_NEWLINK, append(parts, skipStats())...)
	if errors.Is(err, unix.ENODEV) {
		return Link{}, false, nil
	}
	if err != nil {
		return Link{}, false, err
	}
	l, err := parseLink(m)
	return l, err == nil, err
}

// PeerMAC reads the address of a veth's other end in another namespace, which
// sends no events here. ok is false if it has gone.
func (h *Handle) PeerMAC(l Link) (mac fdb.MAC, ok bool, err error) {
	peer, ok, err := h.PeerLink(l)
	return peer.MAC, ok, err
}

// PeerLink is all of it, Index and Master as numbers of its own namespace.
func (h *Handle) PeerLink(l Link) (peer Link, ok bool, err error) {
	ns := nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(l.PeerNS)))
	peer, ok, err = h.link(ifInfo(l.Peer, 0, 0), ns)
	if err != nil {
		return Link{}, false, fmt.Errorf("get peer of %s: %w", l.Name, err)
	}
	return peer, ok, nil
}

// created reads back a link that was just made.
func (h *Handle) created(name string) (Link, error) {
	l, ok, err := h.LinkByName(name)
	if err == nil && !ok {
		err = fmt.Errorf("get link %s: gone as soon as created: %w", name, unix.ENODEV)
	}
	return l, err
}

// DeleteLink removes a virtual link. A link that is not there is no error.
// A physical one is: the error wraps unix.EOPNOTSUPP.
func (h *Handle) DeleteLink(index int) error {
	if index <= 0 {
		return fmt.Errorf("delete link %d: no such ifindex", index) // 0 would mean "by name" to the kernel
	}
	if err := h.change(unix.RTM_DELLINK, 0, ifInfo(index, 0, 0)); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %d: %w", index, err)
	}
	return nil
}

// SetMaster makes a link a port of a bridge, and takes it from the bridge it
// was a port of. A port of this very bridge stays one, with its entries.
func (h *Handle) SetMaster(index, bridge int) error {
	l, ok, err := h.LinkByIndex(index)
	if err == nil && !ok {
		err = unix.ENODEV
	}
	if err == nil && l.Master != bridge { // the kernel would detach and attach again, losing the FDB of the port
		err = h.setLink(index, 0, 0, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	}
	if err != nil {
		return fmt.Errorf("set master of link %d to bridge %d: %w", index, bridge, err)
	}
	return nil
}

// ClearMaster takes a link from its bridge. A link without one is no error.
func (h *Handle) ClearMaster(index int) error {
	if err := h.setLink(index, 0, 0, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(0))); err != nil {
		return fmt.Errorf("clear master of link %d: %w", index, err)
	}
	return nil
}

// SetUp sets IFF_UP. For a vxlan device that opens its UDP socket, which fails
// with unix.EADDRINUSE if something else has the port.
func (h *Handle) SetUp(index int) error {
	if err := h.setLink(index, unix.IFF_UP, unix.IFF_UP); err != nil {
		return fmt.Errorf("set link %d up: %w", index, err)
	}
	return nil
}

// SetDown clears IFF_UP. The kernel forgets the IPv6 addresses of the link.
func (h *Handle) SetDown(index int) error {
	if err := h.setLink(index, 0, unix.IFF_UP); err != nil {
		return fmt.Errorf("set link %d down: %w", index, err)
	}
	return nil
}

// SetMTU sets the MTU in bytes, Ethernet header excluded. The error wraps
// unix.EINVAL if the device does not take it. A bridge that is given one stops
// following the smallest of its ports.
func (h *Handle) SetMTU(index, mtu int) error {
	if err := h.setLink(index, 0, 0, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))); err != nil {
		return fmt.Errorf("set mtu of link %d to %d: %w", index, mtu, err)
	}
	return nil
}

// SetMAC sets the Ethernet address. It must be a unicast address and not zero;
// else the error wraps unix.EADDRNOTAVAIL. A bridge that is given one stops
// taking the smallest of its ports'.
func (h *Handle) SetMAC(index int, mac fdb.MAC) error {
	if err := h.setLink(index, 0, 0, nl.NewRtAttr(unix.IFLA_ADDRESS, mac[:])); err != nil {
		return fmt.Errorf("set mac of link %d to %s: %w", index, mac, err)
	}
	return nil
}

// Rename gives a link another name. Kernels before 6.2 want it down for that.
func (h *Handle) Rename(index int, name string) error {
	if err := h.setLink(index, 0, 0, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))); err != nil {
		return fmt.Errorf("rename link %d to %s: %w", index, name, err)
	}
	return nil
}

// SetAlias writes the free text that `ip link` shows as alias, at most 255
// bytes; "" clears it.
func (h *Handle) SetAlias(index int, alias string) error {
	if err := h.setLink(index, 0, 0, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias))); err != nil {
		return fmt.Errorf("set alias of link %d: %w", index, err)
	}
	return nil
}

// setLink changes an existing link; without NLM_F_CREATE the kernel answers
// ENODEV for one that is not there.
func (h *Handle) setLink(index int, flags, change uint32, attrs ...nl.NetlinkRequestData) error {
	if index <= 0 {
		return unix.ENODEV
	}
	return h.change(unix.RTM_NEWLINK, 0, append([]nl.NetlinkRequestData{ifInfo(index, flags, change)}, attrs...)...)
}

// Counters of a port, as the bridge sees it.
type Counters struct {
	FromPackets, FromBytes uint64 // came from whoever is behind the port
	ToPackets, ToBytes     uint64 // went there
}

// PortCounters reads what went through a bridge port. A veth's other end in another namespace is asked: a packet that
// bpf_redirect_peer hands over never passes this end, and only that one counts it. Where it cannot be asked (its
// namespace has no number here, or is another user's), this end's counters have to do. ok is false if the link has gone.
func (h *Handle) PortCounters(l Link) (c Counters, ok bool, err error) {
	if l.PeerElsewhere && l.Peer > 0 && l.PeerNS >= 0 {
		ns := nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(l.PeerNS)))
		m, err := h.get(unix.RTM_GETLINK, unix.RTM_NEWLINK, ifInfo(l.Peer, 0, 0), ns)
		if err == nil {
			c, err := parseCounters(m)
			// What its end received, went to it.
			return Counters{FromPackets: c.ToPackets, FromBytes: c.ToBytes, ToPackets: c.FromPackets, ToBytes: c.FromBytes}, err == nil, err
		}
	}
	m, err := h.get(unix.RTM_GETLINK, unix.RTM_NEWLINK, ifInfo(l.Index, 0, 0))
	if errors.Is(err, unix.ENODEV) {
		return Counters{}, false, nil
	}
	if err != nil {
		return Counters{}, false, fmt.Errorf("get counters of %s: %w", l.Name, err)
	}
	c, err = parseCounters(m)
	return c, err == nil, err
}

// parseCounters reads struct rtnl_link_stats64 of an RTM_NEWLINK message: packets and bytes received, and sent.
func parseCounters(b []byte) (c Counters, err error) {
	var d decoder
	_, rest := d.header(b, unix.SizeofIfInfomsg)
	for typ, v := range d.attrs(rest) {
		if typ == unix.IFLA_STATS64 && len(v) >= 32 {
			return Counters{FromPackets: native.Uint64(v), ToPackets: native.Uint64(v[8:]), FromBytes: native.Uint64(v[16:]), ToBytes: native.Uint64(v[24:])}, nil
		}
	}
	if d.err != nil {
		return c, fmt.Errorf("parse link counters: %w", d.err)
	}
	return c, errors.New("the kernel sent no counters of the link")
}
