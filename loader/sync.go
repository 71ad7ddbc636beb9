// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// sysctls are the defaults that the vxlan device reads per packet.
type sysctls struct {
	low, high uint16
}

func readSysctls(h *kernel.Handle) (s sysctls, err error) {
	s.low, s.high, err = h.LocalPortRange()
	return s, err
}

// wanted is what maps and hooks should hold.
type wanted struct {
	ports    map[uint32]vxmaps.Port
	networks map[vxmaps.NetworkKey]vxmaps.Network
	hooks    map[hook]string // with the name of the device
	fdb      fdb.Table
}

// want reckons that from the view and from what stands at our devices, with the
// FDB or, where nobody needs it, without.
func (d *Daemon) want(withFDB bool) (*wanted, error) {
	now := vxmaps.Now()
	wantPorts := map[uint32]vxmaps.Port{}
	wantNets := map[vxmaps.NetworkKey]vxmaps.Network{}
	wantHooks := map[hook]string{}
	wantFDB := fdb.Table{}
	if err := d.readTC(); err != nil {
		return nil, err
	}
	for _, n := range slices.Concat(d.fast(), d.guarded()) {
		n.resolve(d.view)
	}
	if d.dp != nil { // else only somebody who compares
		d.captured, d.captureStamp = capturing(d.opt.runDir(), d.dp.pins)
		if err := d.syncSources(); err != nil {
			return nil, err
		}
	} else {
		for _, n := range slices.Concat(d.fast(), d.guarded()) {
			n.from = n.senders(d.view)
		}
	}
	if d.xdpTold == nil {
		d.xdpPorts, d.xdpTold = map[int]xdpPort{}, map[int]string{}
	}
	if err := d.planXDP(); err != nil {
		return nil, err
	}
	for _, n := range d.guarded() {
		wantNets[n.key()] = vxmaps.Network{Net: n.id, Local: n.local, Guard: true, Off: true, Check: n.from.check, MAC: d.underlayMAC(n)}
		if dev, ok := d.view.linkByName(n.cfg.Underlay.Device); ok && !n.from.check.Off {
			wantHooks[hook{"vx_tc_guard", dev.Index, false}] = dev.Name
		}
	}
	for _, n := range d.fast() {
		for _, l := range d.view.ports(n) {
			if _, err := d.readPeer(l); err != nil {
				return nil, err
			}
		}
		if n.off != n.told {
			n.told = n.off
			d.log.Info("network changed", "vni", n.cfg.VNI, "mode", n.mode(), "err", n.off)
		}
		off := n.off != ""
		if n.bridge.Index == 0 || n.link.Index == 0 {
			// Its links are gone: nothing to attach to, and packets are the kernel's.
			wantNets[n.key()] = vxmaps.Network{Net: n.id, Local: n.local, Off: true, Check: n.from.check, MAC: d.underlayMAC(n)}
			continue
		}
		age := n.ageing()
		wantNets[n.key()] = vxmaps.Network{Net: n.id, Local: n.local, Ageing: age, Refresh: refresh(age), Off: off,
			MSS: n.mss(), ZeroCsum6: n.link.VXLAN.UDPZeroCsum6RX, Check: n.from.check,
			MAC: d.underlayMAC(n), Soft: n.soft}
		port := vxmaps.Port{Net: n.id, VNI: n.cfg.VNI, MTU: mtu16(n.link.MTU), MSS: n.mss(), Ageing: age, Refresh: refresh(age), Off: off}
		for _, l := range d.view.ports(n) {
			p := port
			ok, _ := d.view.fastPort(n, l)
			p.Off = off || !ok
			p.Soft = d.xdpPorts[l.Index].soft
			wantPorts[uint32(l.Index)] = p
			wantHooks[hook{"vx_tc_encap", l.Index, false}] = l.Name
		}
		wantPorts[uint32(n.bridge.Index)] = port
		wantHooks[hook{"vx_tc_encap", n.bridge.Index, true}] = n.bridge.Name
		wantPorts[uint32(n.link.Index)] = port
		wantHooks[hook{"vx_tc_deliver", n.link.Index, false}] = n.link.Name
		wantHooks[hook{"vx_tc_moved", n.link.Index, true}] = n.link.Name
		if dev, ok := d.view.linkByName(n.cfg.Underlay.Device); ok && !dev.MAC.IsZero() {
			wantHooks[hook{"vx_tc_decap", dev.Index, false}] = dev.Name
			delete(wantHooks, hook{"vx_tc_guard", dev.Index, false}) // the other looks at all networks
		}
		if withFDB {
			maps.Copy(wantFDB, d.view.table(n, now))
		}
	}
	return &wanted{wantPorts, wantNets, wantHooks, wantFDB}, nil
}

// sync brings maps and hooks in line with the view. What is new goes into the
// maps before a program can look for it, and what goes is taken off before its
// entries are.
func (d *Daemon) sync() error {
	w, err := d.want(true)
	if err != nil {
		return err
	}
	return d.bring(w)
}

// syncHooks is sync where the FDB cannot have changed: it finds out whether
// something else has of which no event tells, and is a whole sync then.
func (d *Daemon) syncHooks() error {
	tc, raw, named := d.view.tc, d.view.raw, d.view.namesChanged
	w, err := d.want(false)
	if err != nil {
		return err
	}
	if named || !maps.Equal(tc, d.view.tc) || !maps.Equal(raw, d.view.raw) || !maps.Equal(w.ports, d.ports) || !maps.Equal(w.networks, d.networks) {
		return d.sync()
	}
	w.fdb = nil
	return d.bring(w)
}

// bring brings maps and hooks in line with w; the FDB as well, unless it is nil.
func (d *Daemon) bring(w *wanted) error {
	wantPorts, wantNets, wantHooks, wantFDB := w.ports, w.networks, w.hooks, w.fdb
	// Entries that must not be used any more go first.
	for k := range d.fdb {
		if _, ok := wantFDB[k]; !ok && wantFDB != nil {
			if err := d.delEntry(k); err != nil {
				return err
			}
		}
	}
	for k, v := range wantNets {
		if err := d.dp.maps.Networks.Put(k, v); err != nil {
			return err
		}
	}
	for i, v := range wantPorts {
		if old, ok := d.ports[i]; !ok || old != v {
			if err := d.dp.maps.Ports.Put(i, v); err != nil {
				return err
			}
		}
	}
	for k, e := range wantFDB {
		if err := d.putEntry(k, e); err != nil {
			return err
		}
	}
	refused := map[hook]string{}
	for h, dev := range wantHooks {
		if wantFDB == nil && d.at.name() == "tcx" && d.stands(h) {
			continue // pins are watched, and a whole sync looks at them
		}
		// One device that takes no program does not stop the others: its packets are the kernel's.
		if err := d.attach(h, dev); err != nil {
			refused[h] = oneLine(err)
			if d.refused[h] != refused[h] {
				d.log.Warn("stays on the slow path", "dev", dev, "err", err)
			}
		}
	}
	d.refused = refused
	for h := range d.hooks {
		if _, ok := wantHooks[h]; !ok {
			if err := d.at.detach(h); err != nil {
				return err
			}
			delete(d.hooks, h)
		}
	}
	for i := range d.ports {
		if _, ok := wantPorts[i]; !ok {
			if err := d.dp.maps.Ports.Delete(i); err != nil {
				return err
			}
		}
	}
	for k := range d.networks {
		if _, ok := wantNets[k]; !ok {
			if err := d.dp.maps.Networks.Delete(k); err != nil {
				return err
			}
		}
	}
	d.ports, d.networks = wantPorts, wantNets
	if err := d.syncXDP(); err != nil {
		return err
	}
	d.publish()
	return nil
}

// readPeer asks for the address of a port's veth peer. changed: it is another than we knew.
func (d *Daemon) readPeer(l kernel.Link) (changed bool, err error) {
	if !l.PeerElsewhere {
		return false, nil
	}
	old, known := d.view.peers[l.Index]
	mac, ok, err := d.h.PeerMAC(l)
	switch {
	case err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM):
		return false, err
	case err != nil || !ok: // it went, or its namespace did; or is none of our business: then the port is no peer to us
		delete(d.view.peers, l.Index)
		return known, nil
	}
	d.view.peers[l.Index] = mac
	return !known || mac != old, nil
}

// readTC looks for other people's filters, programs and shaping on our devices.
func (d *Daemon) readTC() error {
	byTCX := d.at.name() == "tcx"
	others, err := d.watch.others(byTCX)
	if err != nil {
		return err
	}
	d.view.tc = others
	if t := d.features.get(featureTCX); !t.Have && !t.Unknown {
		return nil // before 6.6 a question about tcx is an invalid argument
	}
	d.found = map[programAt]bool{}
	asked := map[int]bool{}
	for _, n := range d.fast() {
		n.resolve(d.view)
		devs := append(d.view.ports(n), n.link, n.bridge)
		if dev, ok := d.view.linkByName(n.cfg.Underlay.Device); ok {
			devs = append(devs, dev)
		}
		for _, l := range devs {
			if asked[l.Index] { // the underlay device of all
				continue
			}
			asked[l.Index] = true
			look := func(egress bool) (string, error) {
				return after(l.Index, egress, func(id ebpf.ProgramID) bool {
					d.found[programAt{l.Index, egress, id}] = true
					return d.ours(id)
				})
			}
			f := others[l.Index]
			in, err := look(false)
			if err != nil {
				return err
			}
			out, err := look(true)
			if err != nil {
				return err
			}
			if f.ingress, f.egress = cmp.Or(f.ingress, in), cmp.Or(f.egress, out); f != (foreign{}) {
				others[l.Index] = f
			}
		}
	}
	return nil
}

// programAt is a program at a tcx hook, as the last look found it.
type programAt struct {
	ifindex int
	egress  bool
	id      ebpf.ProgramID
}

// stands reports whether the last look found our program at its hook. Only tcx shows that at once.
func (d *Daemon) stands(h hook) bool {
	prog, err := program(d.dp.objs.ProgramSet(), h.program)
	if err != nil || !d.hooks[h] {
		return false
	}
	id, ok := d.known.of(prog)
	return ok && d.found[programAt{h.ifindex, h.egress, id}]
}

// ours reports whether a program is of this instance: of this load, or of an
// earlier one that has not been replaced yet.
func (d *Daemon) ours(id ebpf.ProgramID) bool {
	if d.mine == nil {
		d.mine = map[ebpf.ProgramID]bool{}
	}
	known, ok := d.mine[id]
	if ok {
		return known
	}
	for h := range d.hooks {
		if at, err := d.at.at(h); err == nil && at == id {
			d.mine[id] = true
			return true
		}
	}
	// By number only with CAP_SYS_ADMIN. Without, other instances' programs count as other people's.
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer p.Close()
	info, err := p.Info()
	known = err == nil && (strings.HasPrefix(info.Name, "vx_tc_") || strings.HasPrefix(info.Name, "vx_xdp_"))
	d.mine[id] = known
	return known
}

// attach is done at every sync, not only at new hooks: it finds its program in
// place, or puts it back.
func (d *Daemon) attach(h hook, dev string) error {
	prog, err := program(d.dp.objs.ProgramSet(), h.program)
	if err != nil {
		return err
	}
	// Asked now, not at the beginning of the sync: a capture may have begun since.
	ours, known := d.known.of(prog)
	if id, err := d.at.at(h); err == nil && id != 0 && (!known || id != ours) {
		if programs, _ := capturing(d.opt.runDir(), d.dp.pins); programs[id] {
			d.hooks[h] = true
			return nil // the same over the same maps, and a copy of packets for who captures
		}
	}
	if err := d.at.attach(h, dev, prog); err != nil {
		if l, ok, lerr := d.h.LinkByIndex(h.ifindex); lerr == nil && (!ok || l.Name != dev) {
			return nil // it went or was renamed while we looked: its event is on the way
		}
		return err
	}
	if f, ok := d.at.(interface{ fresh() bool }); ok && f.fresh() && d.hooks[h] {
		d.repaired("attach " + h.program + " to " + dev + " (" + h.direction() + ")")
	}
	d.hooks[h] = true
	return nil
}

// underlayMAC is the address that frames for this host have on the network's underlay device.
func (d *Daemon) underlayMAC(n *network) fdb.MAC {
	dev, _ := d.view.linkByName(n.cfg.Underlay.Device)
	return dev.MAC
}
