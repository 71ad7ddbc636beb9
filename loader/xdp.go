// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// xdpLinks attaches XDP programs in native mode by bpf_link, pinned as
// <program>-<ifindex>-xdp. Another program's place is never taken: the kernel
// refuses a link where one is attached.
type xdpLinks struct{ dir string }

const (
	xdpSuffix = "-xdp"
	xdpPass   = 2 // linux/bpf.h
)

func (x xdpLinks) path(program string, ifindex int) string {
	return filepath.Join(x.dir, program+"-"+strconv.Itoa(ifindex)+xdpSuffix)
}

// attach puts a program at a device's driver. One of ours that is there is
// replaced in place, be it another version or another program; the same one with copies of packets for a capture stays.
func (x xdpLinks) attach(program string, dev kernel.Link, prog *ebpf.Program, captured map[ebpf.ProgramID]bool) error {
	fail := func(err error) error { return fmt.Errorf("attach %s to %s (native XDP): %w", program, dev.Name, err) }
	have, err := x.list()
	if err != nil {
		return fail(err)
	}
	for _, h := range have {
		name, index := h.program, h.ifindex
		if index != dev.Index {
			continue
		}
		old, err := link.LoadPinnedLink(x.path(name, index), nil)
		if err != nil {
			return fail(fmt.Errorf("open pinned link: %w", err))
		}
		info, err := old.Info()
		if err != nil {
			return fail(errors.Join(err, old.Close()))
		}
		at := info.XDP()
		if at == nil || int(at.Ifindex) != dev.Index {
			// The device that this link was made for is gone; another has its number now.
			if err := errors.Join(old.Close(), os.Remove(x.path(name, index))); err != nil {
				return fail(err)
			}
			continue
		}
		if id, ok := programID(prog); (!ok || id != info.Program) && (name != program || !captured[info.Program]) {
			err = old.Update(prog)
		}
		if err == nil && name != program {
			err = os.Rename(x.path(name, index), x.path(program, index))
		}
		if err = errors.Join(err, old.Close()); err != nil {
			return fail(fmt.Errorf("replace %s: %w", name, err))
		}
		return nil
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Index, Flags: link.XDPDriverMode})
	if err != nil {
		if why := kernel.ExplainXDP(dev, prog.FD()); why != "" && !errors.Is(err, unix.EBUSY) {
			return fail(fmt.Errorf("%w (%s)", err, why))
		}
		return fail(err)
	}
	defer l.Close()
	if err := l.Pin(x.path(program, dev.Index)); err != nil {
		return fail(fmt.Errorf("pin the link: %w", err))
	}
	return nil
}

// replace puts the program in the place of the one of ours at the hook. Where there is none (any more) it does nothing.
func (x xdpLinks) replace(h hook, prog *ebpf.Program) error {
	return x.with(h, func(l link.Link, info *link.Info) error {
		if id, ok := programID(prog); ok && id == info.Program {
			return nil
		}
		return l.Update(prog)
	})
}

// at is the program of ours at a hook, 0 if there is none.
func (x xdpLinks) at(h hook) (id ebpf.ProgramID, err error) {
	err = x.with(h, func(_ link.Link, info *link.Info) error { id = info.Program; return nil })
	return id, err
}

// with calls do with a link that still leads to its device.
func (x xdpLinks) with(h hook, do func(link.Link, *link.Info) error) error {
	l, err := link.LoadPinnedLink(x.path(h.program, h.ifindex), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pinned link %s: %w", x.path(h.program, h.ifindex), err)
	}
	info, err := l.Info()
	if err == nil {
		if at := info.XDP(); at != nil && int(at.Ifindex) == h.ifindex {
			err = do(l, info)
		}
	}
	if err = errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("pinned link %s: %w", x.path(h.program, h.ifindex), err)
	}
	return nil
}

func (x xdpLinks) detach(program string, ifindex int) error {
	// The pin is the last reference: without it the kernel detaches.
	if err := os.Remove(x.path(program, ifindex)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("detach %s from interface %d (native XDP): %w", program, ifindex, err)
	}
	return nil
}

// driver is what is known of native XDP in a driver. Sources: the drivers in
// Linux 6.12 and 6.18, and ARCHITECTURE.md "XDP", which has the whole table.
type driver struct {
	// auto: native XDP takes away nothing that the device does without it, so that `datapath: auto` may use it.
	auto bool
	// mtu is the largest that one buffer holds, bytes; 0: unknown. Frames in several buffers go beyond, where the driver has them.
	mtu     int
	several bool
	cost    string // what it takes away, or why auto leaves it alone
	soft    bool   // frames may lack a transport checksum that a device was to fill in
}

var drivers = map[string]driver{
	"mlx5_core":    {auto: true, mtu: 3498, several: true, cost: "needs LRO off"},
	"ice":          {auto: true, mtu: 3046, several: true, cost: "resets the queues when it is attached"},
	"i40e":         {auto: true, mtu: 3046, several: true, cost: "resets the queues when it is attached"},
	"ixgbe":        {auto: true, mtu: 3046, cost: "resets the queues when it is attached; at most 64 CPUs have a queue of their own"},
	"ena":          {mtu: 3498, cost: "halves the number of queues that the device may have"},
	"gve":          {mtu: 2032, cost: "halves the number of queues that the device may have, and not in every queue format"},
	"hv_netvsc":    {mtu: 3506, cost: "takes LRO away, and does not see what the accelerated VF receives unless that has XDP"},
	"xen-netfront": {mtu: 3840, cost: "needs the backend's headroom, and gives up receive offloads"},
	"vif":          {mtu: 3840, cost: "needs the backend's headroom, and gives up receive offloads"},
	"virtio_net":   {auto: true, mtu: 3506, several: true, cost: "takes the guest's receive offloads away (GRO in hardware, checksums, large frames)", soft: true},
	"veth":         {mtu: 3520, several: true, cost: "turns segmentation offload across the pair off and copies packets: TCP falls to a third", soft: true},
	"tun":          {mtu: 3520, cost: "makes the large frames that a VM sends linear, so TCP from it becomes slower", soft: true},
}

// xdpDevice is what the choice depends on.
type xdpDevice struct {
	name, kind string
	mtu        int
	kernel.XDP
}

func (d xdpDevice) driver() (driver, bool) {
	name := cmp.Or(d.Driver, d.kind)
	k, ok := drivers[name]
	if !ok {
		k = driver{cost: "is a driver that nobody has looked at", soft: true}
	}
	return k, ok
}

// chooseXDP says whether XDP runs at a device, and why or why not. `force`: the
// config says datapath xdp. frags: the kernel has frames in several buffers.
func chooseXDP(d xdpDevice, force, frags bool) (use bool, why string) {
	k, known := d.driver()
	name := cmp.Or(d.Driver, d.kind, "unknown")
	switch {
	case d.kind == "bridge" || d.kind == "vlan" || d.kind == "bond":
		return false, fmt.Sprintf("%s is a %s, which has no native XDP of its own", d.name, d.kind)
	case d.Known && !d.Native:
		return false, fmt.Sprintf("driver %s has no native XDP", name)
	case !d.Known && !known:
		return false, fmt.Sprintf("driver %s %s", name, k.cost)
	case k.mtu != 0 && d.mtu > k.mtu && !(frags && k.several):
		return false, fmt.Sprintf("MTU %d: native XDP of %s takes %d", d.mtu, name, k.mtu)
	case force:
		why = "datapath: xdp; it " + k.cost
		if d.HidesTags {
			why += "; and " + d.name + " hides VLAN tags from programs: tagged VXLAN packets count as untagged (ethtool -K " + d.name + " rxvlan off)"
		}
		return true, why
	case !k.auto:
		return false, fmt.Sprintf("native XDP of %s %s", name, k.cost)
	case d.HidesTags:
		return false, fmt.Sprintf("%s hides VLAN tags from XDP programs; `ethtool -K %s rxvlan off` shows them", d.name, d.name)
	case d.Merges:
		return false, fmt.Sprintf("%s receives merged frames (LRO or hardware GRO), which native XDP would end", d.name)
	}
	return true, "native XDP of " + name
}

// XDPState is a device where XDP could run.
type XDPState struct {
	Device  string `json:"device"`
	Program string `json:"program"` // "": none
	Reason  string `json:"reason"`
}

// xdpWant is what should be attached at a device.
type xdpWant struct {
	program string
	link    kernel.Link
	force   bool
	why     string
}

// rawPort is what a port takes by XDP.
type rawPort struct{ all, tcp, several bool }

// planXDP decides what runs at which device, before entries are made: they say
// which ports take raw frames.
func (d *Daemon) planXDP() error {
	d.view.raw, d.xdpWant, d.xdpStates = map[int]rawPort{}, map[int]xdpWant{}, nil
	frags := d.dp == nil || d.dp.frags // nil: somebody who only compares
	underlays := map[int]*xdpWant{}
	for _, n := range slices.Concat(d.fast(), d.guarded()) {
		dev, ok := d.view.linkByName(n.cfg.Underlay.Device)
		if !ok || n.fallback != "" && n.from.check.Off {
			continue
		}
		w := underlays[dev.Index]
		if w == nil {
			w = &xdpWant{link: dev, program: "vx_xdp_guard"}
			underlays[dev.Index] = w
		}
		w.force = w.force || n.cfg.Datapath == config.XDP
		if n.fallback == "" {
			w.program = "vx_xdp_decap"
		}
	}
	facts := map[int]xdpDevice{}
	look := func(l kernel.Link) (xdpDevice, error) {
		if f, ok := facts[l.Index]; ok {
			return f, nil
		}
		x, err := d.h.XDPOf(l)
		f := xdpDevice{name: l.Name, kind: l.Kind, mtu: l.MTU, XDP: x}
		facts[l.Index] = f
		return f, err
	}
	defer func() {
		d.xdpFacts = map[int]kernel.XDP{}
		for i, f := range facts {
			d.xdpFacts[i] = f.XDP
		}
	}()
	on := map[int]bool{}
	for i, w := range underlays {
		f, err := look(w.link)
		if err != nil {
			return err
		}
		use, why := chooseXDP(f, w.force, frags)
		if use && d.dp != nil && d.dp.noXDP != "" {
			use, why = false, d.dp.noXDP
		}
		if use && f.Program != 0 && !d.ours(ebpf.ProgramID(f.Program)) {
			use, why = false, fmt.Sprintf("%s carries another XDP program (%d)", f.name, f.Program)
		}
		if use && f.Generic != 0 {
			use, why = false, fmt.Sprintf("%s carries another XDP program in generic mode (%d)", f.name, f.Generic)
		}
		w.why = why
		if on[i] = use; !use {
			w.program = ""
		}
		d.xdpWant[i] = *w
	}
	// What ports take is of use only where frames come in raw.
	for _, n := range d.fast() {
		dev, ok := d.view.linkByName(n.cfg.Underlay.Device)
		if !ok || !on[dev.Index] || n.off != "" {
			continue
		}
		k, _ := facts[dev.Index].driver()
		n.soft = k.soft
		for _, l := range d.view.ports(n) {
			if ok, _ := d.view.fastPort(n, l); !ok || d.view.tc[l.Index].egress != "" {
				continue
			}
			f, err := look(l)
			if err != nil {
				return err
			}
			raw, err := d.rawPort(l, f)
			if err != nil {
				return err
			}
			if raw.all {
				d.view.raw[l.Index] = raw
			}
			if l.Kind == "veth" {
				continue // its far end is a stack's, with segmentation to lose
			}
			w := xdpWant{program: "vx_xdp_encap", link: l, force: n.cfg.Datapath == config.XDP}
			use, why := chooseXDP(f, w.force, frags)
			if use && d.dp != nil && d.dp.noXDP != "" {
				use, why = false, d.dp.noXDP
			}
			if use && f.Program != 0 && !d.ours(ebpf.ProgramID(f.Program)) {
				use, why = false, fmt.Sprintf("%s carries another XDP program (%d)", f.name, f.Program)
			}
			if w.why = why; !use {
				w.program = ""
			}
			pk, _ := f.driver()
			d.xdpPorts[l.Index] = xdpPort{soft: pk.soft}
			d.xdpWant[l.Index] = w
		}
	}
	return nil
}

// followXDP looks where XDP is on whether ports still take raw frames: a container
// that turns GRO off sends no event here.
func (d *Daemon) followXDP() error {
	on := slices.ContainsFunc(d.xdpStates, func(s XDPState) bool { return s.Program == "vx_xdp_decap" })
	if !on {
		return nil
	}
	for i, old := range d.xdpFacts {
		l, ok := d.view.links[i]
		if !ok {
			continue
		}
		now, err := d.h.XDPOf(l)
		if err != nil {
			return err
		}
		// Our own program shows in the next look too.
		now.Program, old.Program = 0, 0
		if now != old {
			return d.sync()
		}
	}
	return nil
}

// rawPort says what a port takes.
func (d *Daemon) rawPort(l kernel.Link, f xdpDevice) (rawPort, error) {
	switch l.Kind {
	case "veth":
		// The kernel says of this end whether the far one takes frames: with GRO on, or a program there.
		if !l.PeerElsewhere || !f.Known || !f.Takes {
			return rawPort{}, nil
		}
		tcp, err := d.h.PeerXDP(l)
		return rawPort{all: true, tcp: tcp, several: f.Several}, err
	case "tun":
		// A VM that takes large segments has them from GRO.
		return rawPort{all: !f.Known || f.Takes, tcp: !f.Segments}, nil
	}
	return rawPort{all: f.Known && f.Takes, tcp: true, several: f.Several}, nil
}

type xdpPort struct{ soft bool }

// syncXDP attaches and detaches, and says which devices take raw frames.
func (d *Daemon) syncXDP() error {
	x := xdpLinks{filepath.Join(d.opt.pinDir(), "links")}
	have, err := x.list()
	if err != nil {
		return err
	}
	progs := d.dp.objs.ProgramSet()
	// Asked now, not at the beginning of the sync: a capture may have begun since.
	captured, _ := capturing(d.opt.runDir(), d.dp.pins)
	byName := map[string]*ebpf.Program{"vx_xdp_decap": progs.VxXdpDecap, "vx_xdp_guard": progs.VxXdpGuard, "vx_xdp_encap": progs.VxXdpEncap}
	for _, i := range slices.Sorted(maps.Keys(d.xdpWant)) {
		w := d.xdpWant[i]
		if w.program != "" {
			if err := x.attach(w.program, w.link, byName[w.program], captured); err != nil {
				w.program, w.why = "", oneLine(err)
			}
		}
		if old := d.xdpTold[i]; old != w.program+w.why {
			if d.xdpTold[i] = w.program + w.why; w.force {
				d.log.Warn("XDP is forced", "dev", w.link.Name, "mode", cmp.Or(w.program, "tc"), "err", w.why)
			} else {
				d.log.Info("XDP", "dev", w.link.Name, "mode", cmp.Or(w.program, "tc"), "err", w.why)
			}
		}
		d.xdpWant[i] = w
		d.xdpStates = append(d.xdpStates, XDPState{Device: w.link.Name, Program: w.program, Reason: w.why})
	}
	for _, h := range have {
		if w, ok := d.xdpWant[h.ifindex]; !ok || w.program != h.program {
			if err := x.detach(h.program, h.ifindex); err != nil {
				return err
			}
		}
	}
	// Only now: some drivers take raw frames only while they run a program.
	want := map[uint32]bool{}
	for i := range d.view.raw {
		want[uint32(i)] = true
	}
	for i, w := range d.xdpWant {
		if w.program == "vx_xdp_decap" {
			if f, err := d.h.XDPOf(w.link); err == nil && (f.Takes || !f.Known) {
				want[uint32(i)] = true
			}
		}
	}
	on, err := d.dp.maps.Raw.All()
	if err != nil {
		return err
	}
	for i := range want {
		if !on[i] {
			if err := d.dp.maps.Raw.Put(i); err != nil {
				d.tell("take raw frames", err)
			}
		}
	}
	for i := range on {
		if !want[i] {
			if err := d.dp.maps.Raw.Delete(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// list are the hooks that carry a program of ours.
func (x xdpLinks) list() (out []hook, err error) {
	names, err := os.ReadDir(x.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list pinned links: %w", err)
	}
	for _, e := range names {
		part := strings.Split(e.Name(), "-")
		if len(part) == 3 && "-"+part[2] == xdpSuffix {
			if n, err := strconv.Atoi(part[1]); err == nil {
				out = append(out, hook{program: part[0], ifindex: n})
			}
		}
	}
	return out, nil
}

// onXDP: the network's underlay runs the program that decapsulates.
func (d *Daemon) onXDP(n *network) bool {
	dev, ok := d.view.linkByName(n.cfg.Underlay.Device)
	return ok && d.xdpWant[dev.Index].program == "vx_xdp_decap"
}

// rawOf says how an entry's port takes raw frames.
func (v *view) rawOf(e *fdb.Entry) {
	r := v.raw[int(e.Port)]
	// A frame for what lives behind a container's device, in a nested bridge, goes the old way.
	if !r.all || e.Kind != fdb.Peer && v.links[int(e.Port)].Kind == "veth" {
		return
	}
	e.Raw, e.RawTCP, e.RawSG = r.all, r.tcp, r.several
}
