// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/reconcile"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Difference is one thing that is not as it should be.
type Difference struct {
	// Where it shows: "link" (config against the kernel's links and entries),
	// "hook" (programs), "pin", "fdb", "vtep", "port" or "network" (the BPF maps against the kernel).
	Where  string `json:"where"`
	Object string `json:"object"`
	Have   string `json:"have"`
	Want   string `json:"want"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s: %s: %s, want %s", d.Where, d.Object, d.Have, d.Want)
}

// verifyPasses and verifyPause: what changes all the time differs for a moment
// between two reads. A difference counts if it is there each time.
const (
	verifyPasses = 4
	verifyPause  = 250 * time.Millisecond
)

// Verify compares config, links, the kernel's FDBs, BPF maps and attachments,
// and changes nothing. It needs no daemon; without one, what the maps lack is no
// difference, since nobody follows.
func Verify(ctx context.Context, opt Options) ([]Difference, error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var lasting []Difference
	for pass := range verifyPasses {
		now, err := verifyOnce(h, opt)
		if err != nil {
			return nil, err
		}
		if pass == 0 {
			lasting = now
		} else {
			lasting = slices.DeleteFunc(lasting, func(d Difference) bool { return !slices.Contains(now, d) })
		}
		if len(lasting) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(verifyPause):
		}
	}
	slices.SortFunc(lasting, func(a, b Difference) int { return strings.Compare(a.String(), b.String()) })
	return lasting, nil
}

func verifyOnce(h *kernel.Handle, opt Options) (out []Difference, err error) {
	st, err := ReadState(opt.runDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("verify instance %q: %w", opt.Instance, ErrNothingLoaded)
	}
	if err != nil {
		return nil, err
	}
	doc, err := active(opt.runDir())
	if err != nil {
		return nil, err
	}
	cfg, err := doc.parse()
	if err != nil {
		return nil, err
	}
	pid, err := Holder(opt.runDir())
	if err != nil {
		return nil, err
	}
	add := func(where, object, have, want string) { out = append(out, Difference{where, object, have, want}) }

	// The config against the host: what a load would do.
	plan, err := newPlan(h, cfg, st.Owned, false)
	if err != nil {
		add("link", "config", oneLine(err), "a host that the config fits")
		return out, nil
	}
	for _, a := range plan.Actions {
		if a.Verb == reconcile.Keep {
			continue
		}
		have, want := a.Old, a.New
		switch a.Verb {
		case reconcile.Create, reconcile.Add:
			have, want = "missing", "there"
		case reconcile.Delete, reconcile.Remove:
			have, want = "there", "not there"
		}
		object := a.Object
		if a.Attr != "" {
			object += " " + string(a.Attr)
		}
		add("link", object, have, want)
	}
	if st.Pins == "" {
		for _, p := range leftPins(opt.pinDir()) {
			add("pin", p, "there", "no pins, nothing runs on BPF")
		}
		return out, nil
	}

	// The data path against the kernel.
	m, done, err := vxmaps.OpenPinned(st.Pins)
	if errors.Is(err, os.ErrNotExist) {
		add("pin", st.Pins, "a map's pin is missing", "all maps pinned")
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }() // only file descriptors
	d := &Daemon{opt: opt, log: slog.New(slog.DiscardHandler), h: h, cfg: cfg, state: *st, view: newView(), mirror: newMirror()}
	if st.Attach == "clsact" {
		c, err := d.newClsact()
		if err != nil {
			return nil, err
		}
		d.at = c
	} else {
		d.at = &tcx{dir: filepath.Join(opt.pinDir(), "links")}
	}
	if d.watch, err = d.newClsact(); err != nil {
		return nil, err
	}
	defer func() { _ = d.mirror.close() }() // only sockets
	d.recall(plan)
	if err := d.look(); err != nil {
		return nil, err
	}
	w, err := d.want(true)
	if err != nil {
		return nil, err
	}
	if err := d.verifyHooks(w, add); err != nil {
		return nil, err
	}
	if err := verifyMaps(m, w, add); err != nil {
		return nil, err
	}
	return out, d.verifyFDB(m, w, pid != 0, add)
}

// recall takes the networks as the state says they are in the maps.
func (d *Daemon) recall(plan *reconcile.Plan) {
	for i := range plan.Resolved {
		r := &plan.Resolved[i]
		n := &network{cfg: *r.Config, local: r.Local}
		n.cfg.Underlay.Device = r.Device.Name
		n.fallback = "not loaded"
		for _, s := range d.state.Networks {
			if s.Name == n.cfg.Name && s.ID != 0 {
				n.id = s.ID
				if n.fallback = ""; s.Mode == config.Kernel {
					n.fallback = s.Reason
				}
			}
		}
		d.nets = append(d.nets, n)
	}
}

type differ func(where, object, have, want string)

func (d *Daemon) verifyHooks(w *wanted, add differ) error {
	have, err := Attachments(d.opt, &d.state)
	if err != nil {
		return err
	}
	hooks := maps.Clone(w.hooks)
	// Where XDP can run is found out when it is attached: the daemon's word counts.
	for _, x := range d.state.XDP {
		if dev, ok := d.view.linkByName(x.Device); ok && x.Program != "" {
			hooks[hook{program: x.Program, ifindex: dev.Index}] = x.Device
		}
	}
	seen := map[hook]bool{}
	for _, a := range have {
		h := hook{a.Program, a.Index, a.Direction == "egress"}
		seen[h] = true
		object := fmt.Sprintf("%s at %s of %s", h.program, h.direction(), d.devName(h.ifindex))
		if _, ok := hooks[h]; !ok {
			add("hook", object, "attached", "no program there")
		} else if !a.Attached {
			add("hook", object, "detached", "attached")
		}
	}
	for h, dev := range hooks {
		if !seen[h] {
			add("hook", fmt.Sprintf("%s at %s of %s", h.program, h.direction(), dev), "missing", "attached")
		}
	}
	for _, p := range leftPins(d.opt.pinDir()) {
		if p != d.state.Pins && p != filepath.Join(d.opt.pinDir(), "links") {
			add("pin", p, "there", "only the maps in use")
		}
	}
	return nil
}

// leftPins are the directories below an instance's.
func leftPins(dir string) (out []string) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []string{dir + ": " + err.Error()}
	}
	for _, f := range files {
		out = append(out, filepath.Join(dir, f.Name()))
	}
	return out
}

func verifyMaps(m *vxmaps.Set, w *wanted, add differ) error {
	ports, err := m.Ports.All()
	if err != nil {
		return err
	}
	for i, want := range w.ports {
		switch have, ok := ports[i]; {
		case !ok:
			add("port", fmt.Sprintf("interface %d", i), "missing", fmt.Sprintf("%+v", want))
		case have != want:
			add("port", fmt.Sprintf("interface %d", i), fmt.Sprintf("%+v", have), fmt.Sprintf("%+v", want))
		}
	}
	for i := range ports {
		if _, ok := w.ports[i]; !ok {
			add("port", fmt.Sprintf("interface %d", i), "there", "not there")
		}
	}
	networks, err := m.Networks.All()
	if err != nil {
		return err
	}
	for k, want := range w.networks {
		have, ok := networks[k]
		want.Check = have.Check // the daemon's to say: it depends on who may send
		switch {
		case !ok:
			add("network", fmt.Sprintf("VNI %s port %d", k.VNI, k.Port), "missing", fmt.Sprintf("%+v", want))
		case have != want:
			add("network", fmt.Sprintf("VNI %s port %d", k.VNI, k.Port), fmt.Sprintf("%+v", have), fmt.Sprintf("%+v", want))
		}
	}
	for k := range networks {
		if _, ok := w.networks[k]; !ok {
			add("network", fmt.Sprintf("VNI %s port %d", k.VNI, k.Port), "there", "not there")
		}
	}
	return nil
}

// verifyFDB compares the FDB map with the kernel's tables, and the outer headers
// that its entries point to with the neighbours. What a map lacks counts only
// with a daemon that should have put it there.
func (d *Daemon) verifyFDB(m *vxmaps.Set, w *wanted, followed bool, add differ) error {
	vteps, err := m.VTEPs.All()
	if err != nil {
		return err
	}
	table, err := m.FDB.All(func(i uint32) netip.Addr { return vteps[i].Remote })
	if err != nil {
		return err
	}
	name := func(k fdb.Key) string {
		if n := d.byID(k.Net); n != nil {
			return k.MAC.String() + " of " + n.cfg.Name
		}
		return fmt.Sprintf("%s of network number %d", k.MAC, k.Net)
	}
	for k, have := range table {
		want, ok := w.fdb[k]
		switch {
		case have.Pending:
		case !ok && followed:
			add("fdb", name(k), where(have), "not in the map: the kernel has no such entry that can be repeated")
		case ok && (have.Kind != want.Kind || have.Port != want.Port || have.VTEP != want.VTEP || have.Static != want.Static):
			if followed || have.Kind != fdb.Egress && have.Kind != fdb.Peer || want.Kind != fdb.Egress && want.Kind != fdb.Peer {
				add("fdb", name(k), where(have), where(want))
			}
		}
	}
	if !followed {
		return nil
	}
	for k, want := range w.fdb {
		if _, ok := table[k]; !ok {
			add("fdb", name(k), "missing", where(want))
		}
	}
	for _, v := range vteps {
		for key, n := range d.view.neighbours {
			if key.ip == v.Remote && uint32(key.dev) == v.Device && n.Valid && v.MACs && v.DstMAC != n.MAC {
				add("vtep", v.Remote.String(), "MAC "+v.DstMAC.String(), n.MAC.String())
			}
		}
	}
	return nil
}

// where an entry sends frames, for people.
func where(e fdb.Entry) string {
	s := e.Kind.String()
	if e.Kind == fdb.Remote {
		s += " " + e.VTEP.String()
	} else {
		s += fmt.Sprintf(" interface %d", e.Port)
	}
	if e.Static {
		s += ", static"
	}
	return s
}
