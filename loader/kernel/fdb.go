// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// parseFDB reads the payload of an RTM_NEWNEIGH or RTM_DELNEIGH message of
// family AF_BRIDGE. Three tables share that family:
//
//   - a bridge's: NDA_MASTER names the bridge, NTF_SELF is clear. Link is the
//     port, or the bridge itself for an address of the host.
//   - a vxlan device's: NTF_SELF, and NDA_CACHEINFO.
//   - the receive filter of any other device: NTF_SELF without NDA_CACHEINFO.
//     It forwards nothing; the result is false.
func parseFDB(b []byte) (FDBEntry, bool, error) {
	var d decoder
	head, rest := d.header(b, unix.SizeofNdMsg)
	if d.err == nil && head[0] != unix.AF_BRIDGE {
		return FDBEntry{}, false, nil
	}
	state, flags := native.Uint16(head[8:]), head[10]
	e := FDBEntry{
		Link:   int(int32(native.Uint32(head[4:]))),
		Self:   flags&unix.NTF_SELF != 0,
		Sticky: flags&ntfSticky != 0,
		Extern: flags&unix.NTF_EXT_LEARNED != 0,
		Static: state&unix.NUD_NOARP != 0,
	}
	if e.Self {
		e.Static = e.Static || state&unix.NUD_PERMANENT != 0
	} else {
		e.Local = state&unix.NUD_PERMANENT != 0
	}
	var aged bool
	for typ, v := range d.attrs(rest) {
		switch typ {
		case unix.NDA_LLADDR:
			e.MAC = d.mac(v)
		case unix.NDA_MASTER:
			e.Bridge = d.index(v)
		case unix.NDA_DST:
			e.Dst = d.addr(v)
		case unix.NDA_VLAN:
			e.VLAN = d.u16(v)
		case unix.NDA_VNI, unix.NDA_SRC_VNI:
			// An external device has both: the VNI sent (NDA_VNI) decides.
			if typ == unix.NDA_VNI || e.VNI == 0 {
				e.VNI = fdb.VNI(d.u32(v))
			}
		case unix.NDA_PORT:
			e.Port = d.be16(v)
		case unix.NDA_IFINDEX:
			e.IfIndex = d.index(v)
		case ndaNHID:
			e.NextHop = d.u32(v)
		case ndaFlagsExt:
			e.Waiting = d.u32(v)&ntfExtLocked != 0
		case unix.NDA_CACHEINFO: // struct nda_cacheinfo: confirmed, used, updated, refcnt
			aged = true
			e.Used = d.ticks(d.fixed(v, 8)[4:])
			e.Age = d.ticks(d.fixed(v, 12)[8:])
		}
	}
	if d.err != nil {
		return FDBEntry{}, false, fmt.Errorf("parse forwarding entry of link %d: %w", e.Link, d.err)
	}
	if e.Self {
		return e, aged, nil
	}
	return e, e.Bridge != 0, nil
}

// FDB returns the entries of every bridge and of every vxlan device in the
// namespace: what `bridge fdb show` prints, less the receive filters of other
// devices. A vxlan device has one entry per remote of a MAC.
//
// The kernel continues a long dump by position and does not say that the table
// changed: an entry is missing if others were deleted meanwhile (7 % of a table
// of 11,000 in a flush of the other half), and comes twice if others were
// added. So FDB watches for deletions, and lists again and merges if there were
// any. What it returns may then include entries just deleted; a Subscription
// opened before tells of those.
func (h *Handle) FDB() ([]FDBEntry, error) {
	es, err := h.fdb()
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	return es, nil
}

// BridgeEntry asks a bridge where it would send frames to a MAC without a VLAN.
// ok is false if it has no entry, or is gone.
func (h *Handle) BridgeEntry(bridge int, mac fdb.MAC) (e FDBEntry, ok bool, err error) {
	return h.fdbEntry(ndMsg(unix.AF_BRIDGE, 0, 0, 0),
		nl.NewRtAttr(unix.NDA_MASTER, nl.Uint32Attr(uint32(bridge))), nl.NewRtAttr(unix.NDA_LLADDR, mac[:]))
}

// VXLANEntry asks a vxlan device the same about its own table. Of a MAC with
// several remotes it names one.
func (h *Handle) VXLANEntry(vxlan int, mac fdb.MAC) (e FDBEntry, ok bool, err error) {
	return h.fdbEntry(ndMsg(unix.AF_BRIDGE, vxlan, 0, unix.NTF_SELF), nl.NewRtAttr(unix.NDA_LLADDR, mac[:]))
}

func (h *Handle) fdbEntry(parts ...nl.NetlinkRequestData) (e FDBEntry, ok bool, err error) {
	m, err := h.get(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, parts...)
	if err == nil {
		e, ok, err = parseFDB(m)
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return FDBEntry{}, false, nil
	}
	if err != nil {
		return FDBEntry{}, false, fmt.Errorf("get forwarding entry: %w", err)
	}
	return e, ok, nil
}

// fdbTries bounds how often a table that does not come to rest is listed.
const fdbTries = 8

func (h *Handle) fdb() ([]FDBEntry, error) {
	fd := -1
	err := h.inside(func() (err error) {
		fd, err = openGroups(256<<10, []uint{unix.RTNLGRP_NEIGH})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var merged map[fdbKey]FDBEntry
	for range fdbTries {
		es, err := dump(h, unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, ndMsg(unix.AF_BRIDGE, 0, 0, 0), parseFDB)
		if err != nil {
			return nil, err
		}
		quiet, err := noDeletion(fd)
		if err != nil {
			return nil, err
		}
		if quiet {
			return es, nil // complete by itself
		}
		if merged == nil {
			merged = make(map[fdbKey]FDBEntry, len(es))
		}
		for _, e := range es {
			merged[keyOf(e)] = e // the later list is right about a MAC that moved
		}
	}
	return slices.Collect(maps.Values(merged)), nil
}

// fdbKey is what a table holds at most one entry for.
type fdbKey struct {
	self   bool
	table  int // ifindex of the bridge or the vxlan device
	mac    fdb.MAC
	vlan   uint16
	vni    fdb.VNI
	remote FDBEntry // of a MAC that has several
}

func keyOf(e FDBEntry) fdbKey {
	k := fdbKey{self: e.Self, table: e.Bridge, mac: e.MAC, vlan: e.VLAN}
	if e.Self {
		k.table, k.vni = e.Link, e.VNI
		if e.MAC.IsZero() || e.MAC.IsMulticast() {
			k.remote = FDBEntry{Dst: e.Dst, Port: e.Port, IfIndex: e.IfIndex, NextHop: e.NextHop}
		}
	}
	return k
}

// noDeletion reports whether fd has heard of no deleted entry since it was
// last asked.
func noDeletion(fd int) (bool, error) {
	quiet := true
	buf := make([]byte, 16<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return quiet, nil
		case errors.Is(err, unix.ENOBUFS):
			quiet = false // it missed something: assume the worst
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("watch for deletions: %w", err)
		}
		var d decoder
		for m := range d.messages(buf[:n]) {
			if m.typ == unix.RTM_DELNEIGH && len(m.data) > 0 && m.data[0] == unix.AF_BRIDGE {
				quiet = false
			}
		}
	}
}

// changeRemote adds or deletes an entry of a vxlan device's own table. device
// is the egress device that the entry names, 0 for none.
func (h *Handle) changeRemote(typ, flags, vxlan int, mac fdb.MAC, dst netip.Addr, device int, state uint16) error {
	if !dst.IsValid() {
		return fmt.Errorf("no destination: %w", unix.EINVAL)
	}
	parts := []nl.NetlinkRequestData{
		ndMsg(unix.AF_BRIDGE, vxlan, state, unix.NTF_SELF),
		nl.NewRtAttr(unix.NDA_LLADDR, mac[:]),
		nl.NewRtAttr(unix.NDA_DST, dst.Unmap().AsSlice()),
	}
	if device != 0 {
		parts = append(parts, nl.NewRtAttr(unix.NDA_IFINDEX, nl.Uint32Attr(uint32(device))))
	}
	return h.change(typ, flags, parts...)
}

// changePort adds or deletes an entry of the table of the bridge that port is
// in.
func (h *Handle) changePort(typ, flags, port int, mac fdb.MAC, state uint16) error {
	return h.change(typ, flags,
		ndMsg(unix.AF_BRIDGE, port, state, unix.NTF_MASTER),
		nl.NewRtAttr(unix.NDA_LLADDR, mac[:]))
}

// floodState is what `bridge fdb append` sends. The state is one for all remotes
// of a MAC, so another would show on those that someone else has put there.
const floodState = unix.NUD_NOARP | unix.NUD_PERMANENT

// AppendDefaultRemote adds dst to the flood list of a vxlan device: the
// all-zero MAC, permanent. A remote that is already there is no error. The
// error wraps unix.EAFNOSUPPORT if dst has not the address family of the
// device.
func (h *Handle) AppendDefaultRemote(vxlan int, dst netip.Addr) error {
	if err := h.changeRemote(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND, vxlan, fdb.MAC{}, dst, 0, floodState); err != nil {
		return fmt.Errorf("add default remote %s to link %d: %w", dst, vxlan, err)
	}
	return nil
}

// DelDefaultRemote takes dst from the flood list of a vxlan device. A remote
// that is not there is no error.
func (h *Handle) DelDefaultRemote(vxlan int, dst netip.Addr) error {
	err := h.changeRemote(unix.RTM_DELNEIGH, 0, vxlan, fdb.MAC{}, dst, 0, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete default remote %s from link %d: %w", dst, vxlan, err)
	}
	return nil
}

// AddStatic says that mac lives behind dst: a static entry in the vxlan
// device's own table, and one in its bridge's that points at the device, so
// that neither ages nor moves. An entry that is there, learned or static, to
// whatever destination or port, is replaced. A device that is no bridge port
// has the first only. If the bridge refuses, the device's own entry stands, and
// calling again is safe.
func (h *Handle) AddStatic(vxlan int, mac fdb.MAC, dst netip.Addr) error {
	// What `bridge fdb add ... static` sends. A vxlan device wants REACHABLE, a
	// bridge looks at NOARP.
	const static = unix.NUD_NOARP | unix.NUD_REACHABLE
	const flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	if mac.IsZero() || mac.IsMulticast() {
		return fmt.Errorf("add static entry %s via %s to link %d: not a unicast address: %w", mac, dst, vxlan, unix.EINVAL)
	}
	if err := h.changeRemote(unix.RTM_NEWNEIGH, flags, vxlan, mac, dst, 0, static); err != nil {
		return fmt.Errorf("add static entry %s via %s to link %d: %w", mac, dst, vxlan, err)
	}
	l, ok, err := h.LinkByIndex(vxlan)
	if err == nil && ok && l.Master != 0 {
		err = h.changePort(unix.RTM_NEWNEIGH, flags, vxlan, mac, static)
	}
	if err != nil {
		return fmt.Errorf("add static entry %s of link %d to its bridge: %w", mac, vxlan, err)
	}
	return nil
}

// DelStatic takes back AddStatic. Entries that are not there are no error; the
// bridge's entry stays if the device has since sent mac elsewhere.
func (h *Handle) DelStatic(vxlan int, mac fdb.MAC, dst netip.Addr) error {
	err := h.changeRemote(unix.RTM_DELNEIGH, 0, vxlan, mac, dst, 0, 0)
	if err == nil {
		// The kernel also says yes when mac goes elsewhere than to dst.
		_, err = h.get(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH,
			ndMsg(unix.AF_BRIDGE, vxlan, 0, unix.NTF_SELF), nl.NewRtAttr(unix.NDA_LLADDR, mac[:]))
		if err == nil {
			return nil
		}
	}
	if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete static entry %s via %s from link %d: %w", mac, dst, vxlan, err)
	}
	l, ok, err := h.LinkByIndex(vxlan)
	if err == nil && ok && l.Master != 0 {
		err = h.changePort(unix.RTM_DELNEIGH, 0, vxlan, mac, 0)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete static entry %s of link %d from its bridge: %w", mac, vxlan, err)
	}
	return nil
}
