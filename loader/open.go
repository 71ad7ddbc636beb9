// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/reconcile"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// open returns programs and maps for the networks of cfg that want them: those
// at work, where they do, else new ones. why is the reason for having none
// although some network would have liked to.
func (d *Daemon) open(cfg *config.Config) (_ *mirror, why string, err error) {
	wanted, guarded, forced := 0, 0, false
	for i := range cfg.Networks {
		if !cfg.Networks[i].Sources.Any {
			guarded++
		}
		if cfg.Networks[i].Datapath != config.Kernel {
			wanted++
		}
		forced = forced || cfg.Networks[i].Datapath == config.TC || cfg.Networks[i].Datapath == config.XDP
	}
	if wanted == 0 && guarded == 0 {
		return newMirror(), "", nil
	}
	if d.dp != nil && len(cfg.Networks) < int(d.dp.maps.Counters.Networks())-1 {
		return d.mirror, "", nil
	}
	m := newMirror()
	d.features, d.unchecked = Probe(), ""
	if err = d.features.FastPath(); err == nil {
		m.dp, err = openDatapath(d.opt.pinDir(), sizesFor(len(cfg.Networks)), d.features)
	}
	if err == nil {
		m.at, err = d.newAttacher(m.known)
	}
	if err == nil {
		return m, "", nil
	}
	if forced {
		err = fmt.Errorf("datapath tc: %w (datapath auto would fall back to kernel vxlan)", err)
	}
	if forced || !cannotRun(err) && wanted > 0 {
		return nil, "", errors.Join(err, m.close())
	}
	d.unchecked = oneLine(err)
	if wanted == 0 {
		d.log.Warn("outer sources are not checked: whoever reaches this host may send to its networks", "err", d.unchecked)
		return newMirror(), "", m.close()
	}
	return newMirror(), oneLine(err), m.close()
}

// cannotRun: this host does not let BPF run, as opposed to something being wrong with it.
func cannotRun(err error) bool {
	var verifier *ebpf.VerifierError
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) ||
		errors.Is(err, unix.ENOSYS) || errors.As(err, &verifier) || errors.Is(err, unix.ENODEV)
}

// oneLine is for status and the log; a verifier's whole log is for -v.
func oneLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

func (d *Daemon) newAttacher(known programIDs) (attacher, error) {
	links := filepath.Join(d.opt.pinDir(), "links")
	byClsact := func() (attacher, error) {
		c, err := d.newClsact()
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	if d.opt.Attach == "clsact" {
		return byClsact()
	}
	switch f := d.features.get(featureTCX); {
	case f.Have:
		return &tcx{dir: links, known: known}, nil
	case f.Unknown:
		return nil, fmt.Errorf("try tcx: %s", f.Error)
	case d.opt.Attach == "tcx":
		return nil, fmt.Errorf("attach by tcx: %w: %s", ebpf.ErrNotSupported, f.Error)
	}
	return byClsact()
}

func (d *Daemon) newClsact() (*clsact, error) {
	return newClsact(d.opt.Instance,
		func(i int) bool { return slices.Contains(d.state.Qdiscs, i) },
		func(i int, made bool) error {
			have := slices.Contains(d.state.Qdiscs, i)
			if have == made {
				return nil
			}
			d.state.Qdiscs = slices.DeleteFunc(d.state.Qdiscs, func(q int) bool { return q == i })
			if made {
				d.state.Qdiscs = append(d.state.Qdiscs, i)
			}
			return d.state.write(d.opt.runDir())
		})
}

// number gives each network its place in the maps: the one it has there already, or a free one.
func (d *Daemon) number(plan *reconcile.Plan, why string) error {
	taken := map[fdb.NetID]bool{}
	ids := map[vxmaps.NetworkKey]fdb.NetID{}
	if d.dp != nil {
		have, err := d.dp.maps.Networks.All()
		if err != nil {
			return err
		}
		d.networks = have
		for k, n := range have {
			ids[k] = n.Net
			taken[n.Net] = true
		}
	}
	next := fdb.NetID(1)
	told := map[string]string{}
	for _, n := range d.nets {
		told[n.cfg.Name] = n.told
	}
	d.nets, d.numbers = nil, nil
	for i := range plan.Resolved {
		r := &plan.Resolved[i]
		n := &network{cfg: *r.Config, local: r.Local, told: told[r.Config.Name]}
		n.cfg.Underlay.Device = r.Device.Name
		d.nets = append(d.nets, n)
		switch {
		case n.cfg.Datapath == config.Kernel:
			n.fallback = "datapath: kernel in the config"
		case d.dp == nil:
			n.fallback = why
		}
		if n.fallback != "" {
			if n.cfg.MSSClamp != config.MSSOff {
				d.log.Warn("mss_clamp has no effect: only BPF clamps", "vni", n.cfg.VNI, "err", n.fallback)
			}
			// On the kernel path only the source check needs a place.
			if d.dp == nil || n.cfg.Sources.Any {
				continue
			}
		}
		id, ok := ids[n.key()]
		if !ok {
			for taken[next] {
				next++
			}
			if uint32(next) >= d.dp.maps.Counters.Networks() {
				return fmt.Errorf("number network %s: the maps hold %d networks", n.cfg.Name, d.dp.maps.Counters.Networks()-1)
			}
			id = next
			taken[id] = true
			if err := d.dp.maps.Counters.Reset(id); err != nil {
				return err
			}
		}
		n.id = id
	}
	return nil
}

// fast are the networks on BPF.
func (d *Daemon) fast() (out []*network) {
	for _, n := range d.nets {
		if n.fallback == "" {
			out = append(out, n)
		}
	}
	return out
}

// start fills the maps, then attaches: a program never runs over maps that are not there yet.
func (d *Daemon) start() error {
	var err error
	if d.vteps, err = newVTEPs(d.dp.maps, d.h); err != nil {
		return err
	}
	if d.ports, err = d.dp.maps.Ports.All(); err != nil {
		return err
	}
	if d.watch, err = d.newClsact(); err != nil {
		return err
	}
	have, err := d.at.present()
	if err != nil {
		return err
	}
	for _, h := range have {
		d.hooks[h] = true
	}
	if err := d.resync(); err != nil {
		return err
	}
	for range 5 { // what moves all the time comes later
		if len(d.pending) == 0 {
			break
		}
		time.Sleep(settle)
		if err := d.confirm(); err != nil {
			return err
		}
	}
	// Only now: what an earlier run left in the maps may have been wrong for long.
	if err := d.renew(); err != nil {
		return err
	}
	if err := d.vteps.sweep(); err != nil {
		return err
	}
	return errors.Join(d.detachOther(), d.dp.prune())
}

// detachOther takes off what an earlier run attached in the other way, tcx or
// clsact: attached twice, a packet would be looked at twice.
func (d *Daemon) detachOther() error {
	var other attacher = &tcx{dir: filepath.Join(d.opt.pinDir(), "links")}
	if d.at.name() == "tcx" {
		c, err := d.newClsact()
		if err != nil {
			return err
		}
		other = c
	}
	defer other.close()
	hooks, err := other.present()
	if err != nil {
		return err
	}
	for _, h := range hooks {
		if err := other.detach(h); err != nil {
			return err
		}
		d.log.Info("left-over program taken off", "program", h.program, "dev", d.devName(h.ifindex), "mode", other.name())
	}
	return nil
}

func (d *Daemon) byID(id fdb.NetID) *network {
	if len(d.numbers) == 0 {
		d.numbers = make(map[fdb.NetID]*network, len(d.nets))
		for _, n := range d.nets {
			if n.id != 0 {
				d.numbers[n.id] = n
			}
		}
	}
	return d.numbers[id]
}
