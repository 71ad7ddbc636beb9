// SPDX-License-Identifier: Apache-2.0

// Package loader makes a host match its config and keeps the data path right:
// specs become loaded programs, loaded programs become attached hooks, and what
// the kernel decides goes into the maps.
package loader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/netfilter"
	"github.com/vxbpf/vxbpf/loader/reconcile"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Options of an instance.
type Options struct {
	// Instance tells the data paths of one host apart, for example by network
	// namespace. Letters, digits, '-' and '_'.
	Instance string
	PinRoot  string // DefaultPinRoot
	RunRoot  string // DefaultRunDir
	// Attach is "tcx", "clsact", or "auto": tcx where the kernel has it.
	Attach string
	// Recreate allows deleting a vxlan link that vxbpf did not make, where it cannot be changed in place.
	Recreate bool
	// Once leaves the data path without a daemon: leases do not end.
	Once bool
	Log  *slog.Logger
	// Ready is called when the data path is up, with a line for a person; nil for nobody.
	Ready func(status string)
}

func (o Options) runDir() string { return filepath.Join(o.RunRoot, o.Instance) }
func (o Options) pinDir() string { return filepath.Join(o.PinRoot, o.Instance) }

// Check fills in defaults and refuses what cannot be a name.
func (o *Options) Check() error {
	if o.Instance == "" {
		o.Instance = "default"
	}
	for _, r := range o.Instance {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
			return fmt.Errorf("use instance %q: %q is not allowed; use letters, digits, '-' and '_'", o.Instance, r)
		}
	}
	if len(o.Instance) > 64 {
		return fmt.Errorf("use instance %q: longer than 64 characters", o.Instance)
	}
	if o.PinRoot == "" {
		o.PinRoot = DefaultPinRoot
	}
	if o.RunRoot == "" {
		o.RunRoot = DefaultRunDir
	}
	switch o.Attach {
	case "":
		o.Attach = "auto"
	case "auto", "tcx", "clsact":
	default:
		return fmt.Errorf("attach by %q: want auto, tcx or clsact", o.Attach)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// RunDir is where the instance keeps its state; PinDir where its maps are pinned.
func (o Options) RunDir() string { return o.runDir() }

// Daemon is one loaded instance.
type Daemon struct {
	opt   Options
	log   *slog.Logger
	lock  *lock
	h     *kernel.Handle
	plan  *reconcile.Plan
	state State
	dirty bool // the state file is behind
	fresh bool // no state of an earlier run was there
	bare  bool // no pins of an earlier run were there

	view *view
	nets []*network
	sys  sysctls

	// Below: nil or empty when no network runs on BPF.
	dp    *datapath
	at    attacher
	vteps *vteps
	// What the maps and hooks hold as far as we know.
	fdb      map[fdb.Key]placed
	ports    map[uint32]vxmaps.Port
	networks map[vxmaps.NetworkKey]vxmaps.Network
	hooks    map[hook]bool
	watch    *clsact                 // looks at other people's tc
	mine     map[ebpf.ProgramID]bool // programs known to be ours or not
	refused  map[hook]string         // why a program could not be attached
	full     bool                    // the FDB map refused an entry: said once
	pending  map[fdb.Key]bool        // entries to confirm
	removed  time.Duration           // when a program last removed an entry, as far as we followed it
	tooBig   time.Duration           // when the underlay last said that a packet was too big, as far as we followed it
}

// placed is an entry of the FDB map, with the outer header that it points to.
type placed struct {
	fdb.Entry
	vtep vxmaps.VTEPKey // of a remote entry
	// found: an earlier run's. It holds no reference on its VTEP.
	found bool
	since time.Duration // when it was written, of a pending entry
}

const (
	// The lease outlives several missed renewals, so that a busy host does not
	// lose its cached headers, and ends soon after the daemon has.
	leaseTime   = 5 * time.Second
	leaseRenew  = time.Second
	resyncEvery = 30 * time.Second
	// settle is how long a frame may be under way between a program that finds
	// no entry for its source and the kernel that learns from it.
	settle = 10 * time.Millisecond
	// fewPending is how many entries are asked for one by one; more cost less in a dump.
	fewPending = 64
)

// ErrNotPermitted is wrapped by errors that a capable process would not get.
var ErrNotPermitted = errors.New("not permitted")

// NetAdmin returns an error if the process may not change network links.
func NetAdmin() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("change network links: %w: CAP_NET_ADMIN is missing; run as root", ErrNotPermitted)
	}
	return nil
}

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
	var owned reconcile.Owned
	if s, err := ReadState(opt.runDir()); err == nil {
		owned = s.Owned
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return newPlan(h, cfg, owned, opt)
}

func newPlan(h *kernel.Handle, cfg *config.Config, owned reconcile.Owned, opt Options) (*reconcile.Plan, error) {
	snap, err := Snapshot(h)
	if err != nil {
		return nil, err
	}
	return reconcile.NewPlan(cfg, snap, owned, reconcile.Options{
		Recreate: opt.Recreate,
		Position: cfg,
		InPlace:  []reconcile.Attr{reconcile.AttrGroup, reconcile.AttrLocal, reconcile.AttrDevice},
	})
}

// Load makes the host match the config and brings the data path up. On an
// error the host is as it was. Run must follow, or Close.
func Load(ctx context.Context, cfg *config.Config, opt Options) (_ *Daemon, err error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	if err := NetAdmin(); err != nil {
		return nil, err
	}
	d := &Daemon{opt: opt, log: opt.Log, view: newView(), hooks: map[hook]bool{}, fdb: map[fdb.Key]placed{}, pending: map[fdb.Key]bool{},
		ports: map[uint32]vxmaps.Port{}, networks: map[vxmaps.NetworkKey]vxmaps.Network{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.abandon())
		}
	}()
	if d.lock, err = takeLock(opt.runDir(), opt.Instance); err != nil {
		return nil, err
	}
	old, err := ReadState(opt.runDir())
	// A state that cannot be read is one all the same: what it speaks of must stay.
	d.fresh = errors.Is(err, os.ErrNotExist)
	_, statErr := os.Stat(opt.pinDir())
	d.bare = errors.Is(statErr, os.ErrNotExist)
	switch {
	case err == nil:
		d.state.Owned, d.state.Qdiscs = old.Owned, old.Qdiscs
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	if d.h, err = kernel.Open(); err != nil {
		return nil, err
	}
	if d.plan, err = newPlan(d.h, cfg, d.state.Owned, opt); err != nil {
		return nil, err
	}

	// The programs first: where they must load and do not, nothing has changed yet.
	why, err := d.open(cfg)
	if err != nil {
		return nil, err
	}
	if err := d.number(cfg, why); err != nil {
		return nil, err
	}
	d.state.Version, d.state.Instance, d.state.Config = StateVersion, opt.Instance, cfg.File
	d.state.Since, d.state.Once, d.state.Reason = time.Now().UTC().Truncate(time.Second), opt.Once, why
	d.state.Networks = []NetworkState{}
	if old != nil {
		d.state.Networks = old.Networks // until the new ones stand
	}
	if d.dp != nil {
		d.state.Pins = d.dp.pins
	}
	for _, a := range d.plan.Actions {
		if a.Verb != reconcile.Keep {
			d.log.Info(a.String())
		}
	}
	for _, n := range d.plan.Notices {
		d.log.Warn(n)
	}
	d.state.Owned, err = reconcile.Apply(ctx, d.plan, host{d.h}, func(o reconcile.Owned) error {
		d.state.Owned = o
		return d.state.write(opt.runDir())
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// open loads the programs if any network wants them. why is the reason for
// running without although some network would have liked to.
func (d *Daemon) open(cfg *config.Config) (why string, err error) {
	wanted, forced := 0, false
	for i := range cfg.Networks {
		if cfg.Networks[i].Datapath != config.Kernel {
			wanted++
		}
		forced = forced || cfg.Networks[i].Datapath == config.TC
	}
	if wanted == 0 {
		return "", nil
	}
	d.dp, err = openDatapath(d.opt.pinDir(), sizesFor(len(cfg.Networks)))
	if err == nil {
		d.at, err = d.newAttacher()
	}
	if err == nil {
		return "", nil
	}
	if forced {
		return "", fmt.Errorf("datapath tc: %w (datapath auto would fall back to kernel vxlan)", err)
	}
	if !cannotRun(err) {
		return "", err
	}
	if d.dp != nil {
		err = errors.Join(err, d.dp.close())
		d.dp = nil
	}
	return oneLine(err), nil
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

func (d *Daemon) newAttacher() (attacher, error) {
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
	err := haveTCX(1, d.dp.objs.VxTcEncap) // loopback, in every namespace
	if err == nil {
		return &tcx{dir: links}, nil
	}
	if d.opt.Attach == "tcx" || !errors.Is(err, ebpf.ErrNotSupported) {
		return nil, fmt.Errorf("try tcx: %w", err)
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
func (d *Daemon) number(cfg *config.Config, why string) error {
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
	for i := range d.plan.Resolved {
		r := &d.plan.Resolved[i]
		n := &network{cfg: *r.Config, local: r.Local}
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
			continue
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

// Run brings the hooks up, says ready, and follows the kernel until ctx ends.
// With Once it returns as soon as the data path stands. The data path stays.
func (d *Daemon) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sub *kernel.Subscription
	var rules <-chan struct{}
	if d.dp != nil {
		var err error
		// Before the first dump: what happens meanwhile is in the queue.
		if sub, err = d.h.Subscribe(ctx, kernel.SubscribeOptions{}); err != nil {
			return err
		}
		defer sub.Close()
		if rules, err = netfilter.Watch(ctx); err != nil {
			return err
		}
		if err := d.start(); err != nil {
			return err
		}
	} else {
		// An earlier run may have left programs: they would go on with maps that nobody keeps.
		d.tell("take left-over programs off", d.takeOff())
	}
	d.publish()
	if err := d.state.write(d.opt.runDir()); err != nil {
		return err
	}
	if d.state.Reason != "" {
		d.log.Warn("BPF is not in use, all networks run on kernel vxlan", "mode", config.Kernel, "err", d.state.Reason)
	}
	if d.opt.Ready != nil {
		d.opt.Ready(d.summary())
	}
	if d.opt.Once {
		if d.dp != nil {
			return d.dp.maps.Control.SetLease(vxmaps.Forever)
		}
		return nil
	}
	if d.dp == nil {
		<-ctx.Done()
		return nil
	}
	events := make(chan []kernel.Event)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			e, err := sub.Next()
			if err != nil {
				return err
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	g.Go(func() error { return d.follow(ctx, events, rules) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// start fills the maps, then attaches: a program never runs over maps that are not there yet.
func (d *Daemon) start() error {
	var err error
	if d.vteps, err = newVTEPs(d.dp.maps.VTEPs, d.h); err != nil {
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

func (d *Daemon) renew() error { return d.dp.maps.Control.SetLease(vxmaps.Now() + leaseTime) }

// follow is the mirror's loop.
func (d *Daemon) follow(ctx context.Context, events <-chan []kernel.Event, rules <-chan struct{}) error {
	lease := time.NewTicker(leaseRenew)
	defer lease.Stop()
	full := time.NewTicker(resyncEvery)
	defer full.Stop()
	soon := make(<-chan time.Time) // a dump that was asked for, after a pause
	ripe := make(<-chan time.Time) // pending entries, when they can be confirmed
	var look <-chan time.Time      // at the packet filter
	waiting := false
	pending := false
	for {
		again := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case batch := <-events:
			var err error
			if again, err = d.handle(batch); err != nil {
				return err
			}
		case _, ok := <-rules:
			if !ok {
				rules = nil // until the next resync looks
			} else if look == nil {
				look = time.After(100 * time.Millisecond) // some tools change rules many times in a row
			}
		case <-look:
			look = nil
			d.readRules(d.view)
			if err := d.sync(); err != nil {
				return err
			}
		case <-lease.C:
			if err := d.renew(); err != nil {
				return err
			}
			d.tell("probe neighbours", d.vteps.keepAlive(d.view))
			if err := d.followPathMTU(); err != nil {
				return err
			}
			if err := d.mend(); err != nil {
				return err
			}
		case <-full.C:
			// Path MTUs are learnt without an event, and entries that a program
			// removed may be right after all.
			again = true
		case <-ripe:
			waiting = false
			if err := d.confirm(); err != nil {
				return err
			}
		case <-soon:
			pending = false
			if err := d.resync(); err != nil {
				return err
			}
		}
		if again && !pending {
			pending = true
			soon = time.After(100 * time.Millisecond)
		}
		if len(d.pending) > 0 && !waiting {
			waiting = true
			ripe = time.After(settle)
		}
		if d.dirty {
			d.dirty = false
			d.tell("write state", d.state.write(d.opt.runDir()))
		}
	}
}

// followPathMTU asks for the routes again when the underlay said that a packet
// was too big: the kernel learns a path MTU without an event.
func (d *Daemon) followPathMTU() error {
	at, err := d.dp.maps.Control.TooBig()
	if err != nil || at == d.tooBig {
		return err
	}
	d.tooBig = at
	return d.vteps.updateAll(d.view)
}

func (d *Daemon) readAddresses() (map[netip.Addr]bool, error) {
	all, err := d.h.Addresses()
	if err != nil {
		return nil, err
	}
	set := make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		set[a.Prefix.Addr()] = true
	}
	return set, nil
}

// readRules looks at the packet filter. Rules that cannot be read may be any, so nothing goes around them.
func (d *Daemon) readRules(v *view) {
	r, err := netfilter.Read(v.rules)
	v.rules, v.unread = r, ""
	if err != nil {
		v.unread = oneLine(err)
		d.log.Warn("networks without bypass_netfilter stay on the slow path", "err", err)
	}
}

// tell logs an error that the next round may well mend.
func (d *Daemon) tell(what string, err error) {
	if err != nil {
		d.log.Warn(what, "err", err)
	}
}

// handle takes a batch of events into the view, then brings the maps in line.
// again asks for a full dump.
func (d *Daemon) handle(batch []kernel.Event) (again bool, err error) {
	links, paths := false, false
	macs := map[*network]map[fdb.MAC]bool{}
	touch := func(e kernel.FDBEntry) {
		for _, n := range d.fast() {
			if e.Self && n.link.Index == e.Link || !e.Self && n.bridge.Index == e.Bridge {
				if macs[n] == nil {
					macs[n] = map[fdb.MAC]bool{}
				}
				macs[n][e.MAC] = true
			}
		}
	}
	for _, e := range batch {
		switch e := e.(type) {
		case kernel.LinkChanged:
			if old, ok := d.view.links[e.Index]; !ok || !sameLink(old, e.Link) {
				links = true
			}
			d.view.links[e.Index] = e.Link
		case kernel.LinkGone:
			delete(d.view.peers, e.Index)
			delete(d.view.links, e.Index)
			delete(d.view.bridgeFDB, e.Index)
			delete(d.view.vxlanFDB, e.Index)
			links = true
		case kernel.PortChanged:
			l, ok, err := d.h.LinkByIndex(e.Index)
			if err != nil {
				return again, err
			}
			if ok {
				d.view.links[e.Index] = l
			}
			links = true
		case kernel.PortGone:
			if l, ok := d.view.links[e.Index]; ok && l.Master == e.Bridge {
				l.Master, l.Port = 0, nil
				d.view.links[e.Index] = l
			}
			links = true
		case kernel.FDBChanged:
			d.view.setFDB(e.FDBEntry)
			touch(e.FDBEntry)
			// A new address at a port: its peer may have been given it.
			if l, ok := d.view.links[e.Link]; ok && !e.Self && l.PeerElsewhere && e.MAC != d.view.peers[l.Index] {
				changed, err := d.readPeer(l)
				if err != nil {
					return again, err
				}
				links = links || changed
			}
		case kernel.FDBGone:
			d.view.delFDB(e.FDBEntry)
			touch(e.FDBEntry)
		case kernel.NeighbourChanged:
			k := neighbourKey{e.Link, e.IP}
			d.view.neighbours[k] = e.Neighbour
			if err := d.vteps.neighbour(k, d.view); err != nil {
				return again, err
			}
		case kernel.NeighbourGone:
			k := neighbourKey{e.Link, e.IP}
			delete(d.view.neighbours, k)
			if err := d.vteps.neighbour(k, d.view); err != nil {
				return again, err
			}
		case kernel.RouteChanged:
			paths = true
		case kernel.AddressChanged:
			if d.view.addresses, err = d.readAddresses(); err != nil {
				return again, err
			}
			links = true
		case kernel.QdiscChanged:
			links = true
		case kernel.NextHopChanged:
			if d.view.nextHops, err = d.h.NextHops(); err != nil {
				return again, err
			}
			links = true
		case kernel.Overrun:
			d.log.Warn("rtnetlink events were lost, reading everything again", "err", e.Err)
			again = true
		}
	}
	if links || paths {
		if err := d.vteps.updateAll(d.view); err != nil {
			return again, err
		}
	}
	if links {
		return again, d.sync()
	}
	now := vxmaps.Now()
	for n, set := range macs {
		for mac := range set {
			if err := d.syncMAC(n, mac, now); err != nil {
				return again, err
			}
		}
	}
	return again, nil
}

// sameLink ignores what the data path does not depend on.
func sameLink(a, b kernel.Link) bool {
	a.Carrier, b.Carrier, a.Alias, b.Alias = false, false, "", ""
	return a.Index == b.Index && a.Name == b.Name && a.Kind == b.Kind && a.MAC == b.MAC && a.MTU == b.MTU && a.Up == b.Up &&
		a.Master == b.Master && a.PeerElsewhere == b.PeerElsewhere && a.Peer == b.Peer && a.PeerNS == b.PeerNS && same(a.Bridge, b.Bridge) && same(a.VXLAN, b.VXLAN) && same(a.Port, b.Port)
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// resync reads everything from the kernel and from the FDB map, and mends what differs.
func (d *Daemon) resync() error {
	v := newView()
	links, err := d.h.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		v.links[l.Index] = l
	}
	entries, err := d.h.FDB()
	if err != nil {
		return err
	}
	v.replaceFDB(entries)
	neighbours, err := d.h.Neighbours()
	if err != nil {
		return err
	}
	for _, n := range neighbours {
		v.neighbours[neighbourKey{n.Link, n.IP}] = n
	}
	if v.nextHops, err = d.h.NextHops(); err != nil {
		return err
	}
	if v.addresses, err = d.readAddresses(); err != nil {
		return err
	}
	v.peers = d.view.peers // sync asks again
	v.rules = d.view.rules
	d.readRules(v)
	d.view = v
	if d.sys, err = readSysctls(d.h); err != nil {
		return err
	}

	byIndex, err := d.dp.maps.VTEPs.All()
	if err != nil {
		return err
	}
	table, err := d.dp.maps.FDB.All(func(i uint32) netip.Addr { return byIndex[i].Remote })
	if err != nil {
		return err
	}
	return d.adopt(table)
}

// adopt replaces what we believe of the FDB map by what it holds, then syncs.
func (d *Daemon) adopt(table fdb.Table) error {
	for k := range d.fdb {
		if _, still := table[k]; !still {
			if err := d.forget(k); err != nil { // a program removed it
				return err
			}
		}
	}
	for k, e := range table {
		if _, known := d.fdb[k]; !known {
			d.fdb[k] = placed{Entry: e, found: true}
		}
	}
	if err := d.vteps.updateAll(d.view); err != nil {
		return err
	}
	return d.sync()
}

// mend puts back what programs removed and the kernel did not move: it dropped
// the frame that showed the MAC elsewhere, or the MAC is back already.
func (d *Daemon) mend() error {
	at, err := d.dp.maps.Control.Removed()
	if err != nil || at == d.removed {
		return err
	}
	d.removed = at
	now := vxmaps.Now()
	for k := range d.fdb {
		there, err := d.dp.maps.FDB.Has(k)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		if err := d.forget(k); err != nil {
			return err
		}
		if n := d.byID(k.Net); n != nil {
			if err := d.syncMAC(n, k.MAC, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// confirm asks the kernel again about the entries that were written a moment
// ago. An event tells what was true when it was sent: were its entry used at
// once, a MAC that has moved on since would be sent to its old place, and the
// source check would hide from the kernel that it came back there.
func (d *Daemon) confirm() (err error) {
	now := vxmaps.Now()
	due := make([]fdb.Key, 0, len(d.pending))
	for k := range d.pending {
		if old, known := d.fdb[k]; !known || !old.Pending {
			delete(d.pending, k)
		} else if now-old.since >= settle {
			due = append(due, k)
		}
	}
	ask := func(n *network, mac fdb.MAC) error {
		b, ok, err := d.h.BridgeEntry(n.bridge.Index, mac)
		if err != nil {
			return err
		}
		delete(d.view.bridgeFDB[n.bridge.Index], mac)
		if ok {
			d.view.setFDB(b)
		}
		x, ok, err := d.h.VXLANEntry(n.link.Index, mac)
		if err != nil {
			return err
		}
		delete(d.view.vxlanFDB[n.link.Index], mac)
		if ok {
			d.view.setFDB(x)
		}
		return nil
	}
	if len(due) > fewPending {
		all, err := d.h.FDB()
		if err != nil {
			return err
		}
		d.view.replaceFDB(all)
		ask = func(*network, fdb.MAC) error { return nil }
	}
	for _, k := range due {
		delete(d.pending, k)
		n := d.byID(k.Net)
		if n == nil {
			continue
		}
		if err := ask(n, k.MAC); err != nil {
			return err
		}
		want, ok := d.view.entry(n, k.MAC, now)
		old := d.fdb[k]
		if !ok || !old.Same(want) || old.vtep != d.vtepOf(n, want) {
			if ok {
				err = d.putEntry(k, want)
			} else {
				err = d.delEntry(k)
			}
			if err != nil {
				return err
			}
			continue
		}
		old.Pending = false
		there, err := d.dp.maps.FDB.Replace(k, want, d.vteps.index[old.vtep])
		switch {
		case err != nil:
			return err
		case there:
			d.fdb[k] = old
		default: // a program saw it elsewhere: ask once more, the kernel may have dropped that frame and send no event
			if err = d.forget(k); err == nil {
				err = d.putEntry(k, want)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Daemon) byID(id fdb.NetID) *network {
	for _, n := range d.nets {
		if n.id == id && id != 0 {
			return n
		}
	}
	return nil
}

// vtepKey is the outer header that a network uses towards a remote, as its vxlan link would make it.
func (d *Daemon) vtepKey(n *network, remote netip.Addr) vxmaps.VTEPKey {
	x := n.link.VXLAN
	k := vxmaps.VTEPKey{Local: x.Local, Remote: remote, OIF: uint32(x.Device), Port: x.Port, Low: x.SrcLow, High: x.SrcHigh,
		TTL: uint8(x.TTL), TTLInherit: x.TTLInherit, TOS: uint8(x.TOS) &^ 3, TOSInherit: x.TOS == tosInherit}
	if remote.Is6() {
		k.FlowLabel = x.FlowLabel
	} else {
		k.DF = vxmaps.DF(x.DF)
	}
	if k.Low >= k.High {
		k.Low, k.High = d.sys.low, d.sys.high
	}
	return k
}

// tosInherit is how the kernel writes "from the inner packet" into a TOS (IFLA_VXLAN_TOS).
const tosInherit = 1

// sysctls are the defaults that the vxlan device reads per packet.
type sysctls struct {
	low, high uint16
}

func readSysctls(h *kernel.Handle) (s sysctls, err error) {
	s.low, s.high, err = h.LocalPortRange()
	return s, err
}

// sync brings maps and hooks in line with the view. What is new goes into the
// maps before a program can look for it, and what goes is taken off before its
// entries are.
func (d *Daemon) sync() error {
	now := vxmaps.Now()
	wantPorts := map[uint32]vxmaps.Port{}
	wantNets := map[vxmaps.NetworkKey]vxmaps.Network{}
	wantHooks := map[hook]string{}
	wantFDB := fdb.Table{}
	if err := d.readTC(); err != nil {
		return err
	}
	for _, n := range d.fast() {
		n.resolve(d.view)
		for _, l := range d.view.ports(n) {
			if _, err := d.readPeer(l); err != nil {
				return err
			}
		}
		if n.off != n.told {
			n.told = n.off
			d.log.Info("network changed", "vni", n.cfg.VNI, "mode", n.mode(), "err", n.off)
		}
		off := n.off != ""
		if n.bridge.Index == 0 || n.link.Index == 0 {
			// Its links are gone: nothing to attach to, and packets are the kernel's.
			wantNets[n.key()] = vxmaps.Network{Net: n.id, Local: n.local, Off: true}
			continue
		}
		age := n.ageing()
		wantNets[n.key()] = vxmaps.Network{Net: n.id, Local: n.local, Ageing: age, Refresh: refresh(age), Off: off,
			MSS: n.mss(), ZeroCsum6: n.link.VXLAN.UDPZeroCsum6RX}
		port := vxmaps.Port{Net: n.id, VNI: n.cfg.VNI, MTU: mtu16(n.link.MTU), MSS: n.mss(), Ageing: age, Refresh: refresh(age), Off: off}
		for _, l := range d.view.ports(n) {
			p := port
			ok, _ := d.view.fastPort(n, l)
			p.Off = off || !ok
			wantPorts[uint32(l.Index)] = p
			wantHooks[hook{"vx_tc_encap", l.Index, false}] = l.Name
		}
		wantPorts[uint32(n.bridge.Index)] = port
		wantHooks[hook{"vx_tc_encap", n.bridge.Index, true}] = n.bridge.Name
		wantPorts[uint32(n.link.Index)] = port
		wantHooks[hook{"vx_tc_deliver", n.link.Index, false}] = n.link.Name
		wantHooks[hook{"vx_tc_moved", n.link.Index, true}] = n.link.Name
		if dev, ok := d.view.linkByName(n.cfg.Underlay.Device); ok {
			wantHooks[hook{"vx_tc_decap", dev.Index, false}] = dev.Name
		}
		maps.Copy(wantFDB, d.view.table(n, now))
	}

	// Entries that must not be used any more go first.
	for k := range d.fdb {
		if _, ok := wantFDB[k]; !ok {
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
	for _, n := range d.fast() {
		n.resolve(d.view)
		devs := append(d.view.ports(n), n.link, n.bridge)
		if dev, ok := d.view.linkByName(n.cfg.Underlay.Device); ok {
			devs = append(devs, dev)
		}
		for _, l := range devs {
			f := others[l.Index]
			in, err := after(l.Index, false, d.ours)
			if err != nil {
				return err
			}
			out, err := after(l.Index, true, d.ours)
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
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer p.Close()
	info, err := p.Info()
	known = err == nil && strings.HasPrefix(info.Name, "vx_tc_")
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
	if err := d.at.attach(h, dev, prog); err != nil {
		if l, ok, lerr := d.h.LinkByIndex(h.ifindex); lerr == nil && (!ok || l.Name != dev) {
			return nil // it went or was renamed while we looked: its event is on the way
		}
		return err
	}
	d.hooks[h] = true
	return nil
}

// syncMAC is sync for one MAC: what most events come down to.
func (d *Daemon) syncMAC(n *network, mac fdb.MAC, now time.Duration) error {
	k := fdb.Key{Net: n.id, MAC: mac}
	want, ok := d.view.entry(n, mac, now)
	if !ok {
		return d.delEntry(k)
	}
	if have, known := d.fdb[k]; known && have.Same(want) {
		// The kernel speaks of it, so a program may have removed it.
		there, err := d.dp.maps.FDB.Has(k)
		if err != nil || there {
			return err
		}
		if err := d.delEntry(k); err != nil {
			return err
		}
	}
	return d.putEntry(k, want)
}

// putEntry writes an entry: one of a new place pending, until it is confirmed.
func (d *Daemon) putEntry(k fdb.Key, e fdb.Entry) error {
	n := d.byID(k.Net)
	want := placed{Entry: e, vtep: d.vtepOf(n, e), since: vxmaps.Now()}
	old, known := d.fdb[k]
	if known && !old.found && old.Same(e) && old.vtep == want.vtep {
		return nil
	}
	var index uint32
	if e.Kind == fdb.Remote {
		var err error
		if index, err = d.vteps.acquire(want.vtep, n.cfg.Underlay.MTU, d.view); err != nil {
			return d.refuse(k, err)
		}
	}
	err := error(nil)
	done := false
	if known && !old.Pending && old.Kind == e.Kind && old.Port == e.Port && old.VTEP == e.VTEP {
		done, err = d.dp.maps.FDB.Replace(k, e, index)
	}
	if err == nil && !done {
		want.Pending = true
		err = d.dp.maps.FDB.Put(k, want.Entry, index)
	}
	if err != nil {
		if e.Kind == fdb.Remote {
			err = errors.Join(err, d.vteps.release(want.vtep))
		}
		return d.refuse(k, err)
	}
	d.fdb[k] = want
	if want.Pending {
		d.pending[k] = true
	}
	if known && !old.found && old.Kind == fdb.Remote {
		return d.vteps.release(old.vtep)
	}
	return nil
}

// vtepOf is vtepKey for a remote entry, else zero.
func (d *Daemon) vtepOf(n *network, e fdb.Entry) vxmaps.VTEPKey {
	if e.Kind != fdb.Remote {
		return vxmaps.VTEPKey{}
	}
	return d.vtepKey(n, e.VTEP)
}

// refuse: what does not fit stays with the kernel, which has room. Said once.
func (d *Daemon) refuse(k fdb.Key, err error) error {
	if !d.full {
		d.full = true
		d.log.Warn("entries stay on the slow path", "mac", k.MAC, "err", err)
	}
	return d.delEntry(k)
}

func (d *Daemon) delEntry(k fdb.Key) error {
	if _, known := d.fdb[k]; !known {
		return nil
	}
	if err := d.dp.maps.FDB.Delete(k); err != nil {
		return err
	}
	return d.forget(k)
}

// forget drops what we hold for an entry that is not in the map any more.
func (d *Daemon) forget(k fdb.Key) error {
	old := d.fdb[k]
	delete(d.fdb, k)
	delete(d.pending, k)
	if old.Kind == fdb.Remote && !old.found {
		return d.vteps.release(old.vtep)
	}
	return nil
}

func (n *network) mode() config.Datapath {
	if n.fallback != "" {
		return config.Kernel
	}
	return config.TC
}

// publish writes down what status shows.
func (d *Daemon) publish() {
	d.state.Attach = ""
	if d.at != nil {
		d.state.Attach = d.at.name()
	}
	nets := []NetworkState{}
	for _, n := range d.nets {
		s := NetworkState{
			Name: n.cfg.Name, ID: n.id, VNI: n.cfg.VNI, Port: n.cfg.Underlay.Port, Bridge: n.cfg.Bridge.Name, Link: n.cfg.Link,
			Local: n.local, Device: n.cfg.Underlay.Device, Wanted: n.cfg.Datapath, Mode: n.mode(), Reason: n.fallback, Ports: []PortState{},
		}
		if s.Reason == "" {
			s.Reason = n.off
		}
		if dev, ok := d.view.linkByName(n.cfg.Underlay.Device); ok && s.Reason == "" {
			s.Reason = d.refused[hook{"vx_tc_decap", dev.Index, false}]
		}
		if n.fallback == "" {
			for _, l := range d.view.ports(n) {
				ok, why := d.view.fastPort(n, l)
				if ok && n.off != "" {
					ok, why = false, n.off
				}
				if r := d.refused[hook{"vx_tc_encap", l.Index, false}]; ok && r != "" {
					ok, why = false, r
				}
				s.Ports = append(s.Ports, PortState{Name: l.Name, Index: l.Index, Fast: ok, Reason: why})
			}
		}
		nets = append(nets, s)
	}
	if !slices.EqualFunc(nets, d.state.Networks, func(a, b NetworkState) bool {
		pa, pb := a.Ports, b.Ports
		a.Ports, b.Ports = nil, nil
		return a.equal(b) && slices.Equal(pa, pb)
	}) {
		d.state.Networks = nets
		d.dirty = true
	}
}

func (s NetworkState) equal(o NetworkState) bool {
	return s.Name == o.Name && s.ID == o.ID && s.VNI == o.VNI && s.Port == o.Port && s.Bridge == o.Bridge && s.Link == o.Link &&
		s.Local == o.Local && s.Device == o.Device && s.Wanted == o.Wanted && s.Mode == o.Mode && s.Reason == o.Reason
}

// State is what the instance would tell status.
func (d *Daemon) State() State { return d.state }

func (d *Daemon) summary() string {
	fast := len(d.fast())
	s := strconv.Itoa(len(d.nets)) + " networks, " + strconv.Itoa(fast) + " on BPF"
	if fast > 0 {
		s += " (" + d.state.Attach + ")"
	}
	if names := d.state.Degraded(); len(names) > 0 {
		s += ", degraded: " + d.state.Reason
	}
	return s
}

func (d *Daemon) devName(ifindex int) string {
	if l, ok := d.view.links[ifindex]; ok {
		return l.Name
	}
	return strconv.Itoa(ifindex)
}

// abandon undoes what a failed Load has prepared; what an earlier one left stays.
func (d *Daemon) abandon() error {
	var errs []error
	if d.lock != nil && d.fresh && d.state.Owned.Empty() {
		if d.bare {
			errs = append(errs, removeTree(d.opt.pinDir()))
		}
		errs = append(errs, removeRunFiles(d.opt.runDir()))
	}
	return errors.Join(append(errs, d.Close())...)
}

// Close gives back file descriptors and the lock. The data path stays.
func (d *Daemon) Close() error {
	var errs []error
	if d.at != nil {
		errs = append(errs, d.at.close())
	}
	if d.watch != nil {
		errs = append(errs, d.watch.close())
	}
	if d.dp != nil {
		errs = append(errs, d.dp.close())
	}
	if d.h != nil {
		errs = append(errs, d.h.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.release())
	}
	return errors.Join(errs...)
}
