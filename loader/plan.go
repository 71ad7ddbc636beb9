// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

// Snapshot lists what the host has now.
func Snapshot(h *kernel.Handle) (s reconcile.Snapshot, err error) {
	if s.Links, err = h.Links(); err != nil {
		return s, err
	}
	if s.Addresses, err = h.Addresses(); err != nil {
		return s, err
	}
	s.FDB, err = h.FDB()
	return s, err
}

// Plan says what Load would do, and does nothing.
func Plan(cfg *config.Config, opt Options) (*reconcile.Plan, error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	d := &Daemon{opt: opt, log: opt.Log, h: h}
	if s, err := ReadState(opt.runDir()); err == nil {
		d.state = *s
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if d.state.NetNS, err = ownNetNS(); err != nil {
		return nil, err
	}
	if doc, err := active(opt.runDir()); err == nil {
		if d.cfg, err = doc.parse(); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return d.planFor(cfg, opt.Recreate)
}

// planFor compares cfg with the host, with what is ours there, and with the config in force.
func (d *Daemon) planFor(cfg *config.Config, recreate bool) (*reconcile.Plan, error) {
	if err := d.apart(cfg); err != nil {
		return nil, err
	}
	plan, err := newPlan(d.h, cfg, d.state.Owned, recreate)
	if err != nil {
		return nil, err
	}
	if d.cfg != nil {
		for i := range cfg.Networks {
			n := &cfg.Networks[i]
			if old := d.cfg.Network(n.Name); old != nil {
				describe(plan, old, n)
			}
		}
	}
	return plan, nil
}

// describe adds to a plan what changes of a network without any link that does.
func describe(plan *reconcile.Plan, old, n *config.Network) {
	for _, c := range []struct {
		attr     reconcile.Attr
		old, new string
	}{
		{"datapath", string(old.Datapath), string(n.Datapath)},
		{"mss_clamp", mssText(old.MSSClamp), mssText(n.MSSClamp)},
		{"bypass_netfilter", strconv.FormatBool(old.BypassNetfilter), strconv.FormatBool(n.BypassNetfilter)},
		{"underlay mtu", strconv.Itoa(old.Underlay.MTU), strconv.Itoa(n.Underlay.MTU)},
	} {
		if c.old != c.new {
			plan.Add(reconcile.Action{Verb: reconcile.Change, Object: "network " + n.Name, Attr: c.attr, Old: c.old, New: c.new,
				Reason: "in place, no link changes", Net: n.Name})
		}
	}
}

func mssText(n int) string {
	switch n {
	case config.MSSOff:
		return "off"
	case config.MSSAuto:
		return "auto"
	}
	return strconv.Itoa(n)
}

// apart refuses a config that names what another instance of this host has: two
// daemons would take turns at one link.
func (d *Daemon) apart(cfg *config.Config) error {
	files, err := filepath.Glob(stateFile(filepath.Join(d.opt.RunRoot, "*")))
	if err != nil {
		return nil // only a bad pattern errs
	}
	for _, f := range files {
		other := filepath.Base(filepath.Dir(f))
		if other == d.opt.Instance {
			continue
		}
		st, err := ReadState(filepath.Dir(f))
		if err != nil || st.NetNS != d.state.NetNS {
			continue // of another version or host; what it has shows as a link in the way
		}
		for _, n := range st.Networks {
			for i := range cfg.Networks {
				m := &cfg.Networks[i]
				if m.Link == n.Link || m.VNI == n.VNI && m.Underlay.Port == n.Port {
					pid, _ := Holder(filepath.Dir(f)) // 0 if it cannot be told
					if _, there, err := d.h.LinkByName(n.Link); pid == 0 && err == nil && !there {
						continue // left over: numbers of namespaces are used again
					}
					return cfg.ErrorAt(fmt.Sprintf("networks[%d]", i),
						fmt.Sprintf("network %s (link %s, VNI %s) belongs to instance %q (process %d)", m.Name, n.Link, n.VNI, other, pid),
						"unload it there first: vxbpf --instance "+other+" unload, or choose another link and VNI")
				}
			}
		}
	}
	return nil
}

func newPlan(h *kernel.Handle, cfg *config.Config, owned reconcile.Owned, recreate bool) (*reconcile.Plan, error) {
	snap, err := Snapshot(h)
	if err != nil {
		return nil, err
	}
	return reconcile.NewPlan(cfg, snap, owned, reconcile.Options{
		Recreate: recreate,
		Position: cfg,
		InPlace:  inPlace,
	})
}

// inPlace are the attributes of a vxlan link that every kernel that we run on changes while it is up.
var inPlace = []reconcile.Attr{reconcile.AttrGroup, reconcile.AttrLocal, reconcile.AttrDevice}
