// SPDX-License-Identifier: Apache-2.0

// Package loader makes a host match its config and keeps the data path right:
// specs become loaded programs, loaded programs become attached hooks, and what
// the kernel decides goes into the maps.
package loader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/control"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/netfilter"
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
	// LeaveDrift only reports what others change of what vxbpf made, and puts nothing back.
	LeaveDrift bool
	// Once leaves the data path without a daemon: leases do not end.
	Once bool
	Log  *slog.Logger
	// Ready is called when the data path is up, and after each reload, with a line for a person; nil for nobody.
	Ready func(status string)
	// Reloading is called when another config is taken up; Ready follows. Alive is called about once a second by the
	// loop that follows the kernel: what watches over the daemon should hear of it. Nil for nobody.
	Reloading, Alive func()
	// Relog makes the logger that another config asks for. nil: the logger stays.
	Relog func(config.Log) (*slog.Logger, error)
	// Reloaded is called when another config is in force. nil: nobody asks.
	Reloaded func(*config.Config)
	// Hangup asks to read the config file again. nil: never.
	Hangup <-chan os.Signal
	// Confirm rolls the load back unless a confirmation comes within that time. 0: it counts at once.
	Confirm time.Duration
	// Guard starts a process that outlives this one and calls Guard; needed with Confirm.
	Guard func() error
	// Unattended: a service manager starts us, not a person who has just decided so.
	Unattended bool
	// Version of the program, for whoever asks over the control socket.
	Version string

	// leave brings the data path up and leaves it as a daemon that ended would.
	leave bool
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

// Daemon is one loaded instance. Everything but its control socket runs in one
// goroutine: first the caller's of Load and Run, then the loop in follow.
type Daemon struct {
	opt   Options
	log   *slog.Logger
	lock  *lock
	h     *kernel.Handle
	cfg   *config.Config // what the host is to match
	state State
	dirty bool // the state file is behind
	fresh bool // no state of an earlier run was there
	bare  bool // no pins of an earlier run were there

	window *window   // until when the config must be confirmed, nil if it need not be
	calls  chan call // what others ask of the loop
	stats  Stats
	// unsettled: the last good config could not be put back after a reload that
	// went wrong. The loop tries again.
	unsettled bool
	upCost    time.Duration // CPU time of reading everything and bringing the data path up
	drift     drift
	expired   time.Time // when an unconfirmed config was last tried to be rolled back

	view    *view
	nets    []*network
	numbers map[fdb.NetID]*network // the same; empty: to be made
	sys     sysctls

	unchecked string   // why outer sources are not checked although the config asks for it
	features  Features // of the kernel

	*mirror
}

// mirror is a set of programs and maps, and what maps and hooks hold as far as
// we know. Empty when no network runs on BPF.
type mirror struct {
	dp    *datapath
	at    attacher
	known programIDs // of dp
	// found are the programs at tcx hooks, as the last sync found them.
	found map[programAt]bool
	vteps *vteps

	fdb       map[fdb.Key]placed
	ports     map[uint32]vxmaps.Port
	networks  map[vxmaps.NetworkKey]vxmaps.Network
	hooks     map[hook]bool
	watch     *clsact                 // looks at other people's tc
	mine      map[ebpf.ProgramID]bool // programs known to be ours or not
	refused   map[hook]string         // why a program could not be attached
	xdpWant   map[int]xdpWant         // by ifindex
	xdpFacts  map[int]kernel.XDP
	xdpPorts  map[int]xdpPort
	xdpStates []XDPState
	xdpTold   map[int]string          // what was logged last
	barred    map[barredKey]bool      // VTEPs that may not send: said once
	full      bool                    // the FDB map refused an entry: said once
	pending   map[fdb.Key]bool        // entries to confirm
	captured  map[ebpf.ProgramID]bool // programs of a capture that runs: they may stay in the place of ours
	// captureStamp is the time of the last change of who captures, as far as we followed it.
	captureStamp time.Time
	removed      time.Duration // when a program last removed an entry, as far as we followed it
	tooBig       time.Duration // when the underlay last said that a packet was too big, as far as we followed it
}

func newMirror() *mirror {
	return &mirror{known: programIDs{}, hooks: map[hook]bool{}, fdb: map[fdb.Key]placed{}, pending: map[fdb.Key]bool{},
		ports: map[uint32]vxmaps.Port{}, networks: map[vxmaps.NetworkKey]vxmaps.Network{}}
}

// close forgets the file descriptors. The data path stays.
func (m *mirror) close() error {
	var errs []error
	if m.at != nil {
		errs = append(errs, m.at.close())
	}
	if m.watch != nil {
		errs = append(errs, m.watch.close())
	}
	if m.dp != nil {
		errs = append(errs, m.dp.close())
	}
	return errors.Join(errs...)
}

const (
	// The lease outlives several missed renewals, so that a busy host does not
	// lose its cached headers, and ends soon after the daemon has.
	leaseTime  = 5 * time.Second
	leaseRenew = time.Second
	// checkEvery and resyncEvery are how often the daemon looks by itself: at what
	// sends no events, and at everything. Where that costs more than a share of a
	// core it looks less often.
	checkEvery  = 30 * time.Second
	resyncEvery = 30 * time.Second
	restShare   = 2000
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

// Load makes the host match the config and brings the data path up. On an
// error the host is as it was. Run must follow, or Close.
func Load(ctx context.Context, cfg *config.Config, opt Options) (_ *Daemon, err error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	if err := NetAdmin(); err != nil {
		return nil, err
	}
	d := &Daemon{opt: opt, log: opt.Log, view: newView(), calls: make(chan call), mirror: newMirror()}
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
		d.state.Config = old.Config
		d.state.Owned, d.state.Qdiscs, d.state.Networks = old.Owned, old.Qdiscs, old.Networks // networks: until the new ones stand
		d.state.Repairs, d.state.RolledBack = old.Repairs, old.RolledBack
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	if d.h, err = kernel.Open(); err != nil {
		return nil, err
	}
	if d.state.NetNS, err = ownNetNS(); err != nil {
		return nil, err
	}
	d.state.Version, d.state.Instance = StateVersion, opt.Instance
	if cfg, err = d.judge(ctx, cfg); err != nil {
		return nil, err
	}
	if opt.Confirm > 0 {
		if err := d.openWindow(cfg, opt.Confirm); err != nil {
			return nil, err
		}
	}
	if _, err := d.apply(ctx, cfg, opt.Recreate); err != nil {
		if opt.Confirm > 0 {
			err = errors.Join(err, d.closeWindow())
		}
		return nil, err
	}
	return d, nil
}

// Run brings the hooks up, says ready, and follows the kernel until ctx ends.
// With Once it returns as soon as the data path stands. The data path stays.
func (d *Daemon) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Before the first dump: what happens meanwhile is in the queue.
	sub, err := d.h.Subscribe(ctx, kernel.SubscribeOptions{})
	if err != nil {
		return err
	}
	defer sub.Close()
	rules, err := netfilter.Watch(ctx)
	if err != nil {
		return err
	}
	began := processTime()
	if err := d.up(); err != nil {
		return err
	}
	d.upCost = processTime() - began
	if err := d.settleOn(d.cfg); err != nil {
		return err
	}
	if d.opt.Once || d.opt.leave {
		d.ready()
		if d.opt.Once && d.dp != nil {
			return d.dp.maps.Control.SetLease(vxmaps.Forever)
		}
		return nil
	}
	socket, err := control.Listen(controlFile(d.opt.runDir()))
	if err != nil {
		return err
	}
	defer func() {
		_ = socket.Close()
		_ = os.Remove(controlFile(d.opt.runDir())) // whoever finds it would find nobody
	}()
	d.ready()
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
	g.Go(func() error { return control.Serve(ctx, socket, d.handlers(), d.log) })
	g.Go(func() error { return d.follow(ctx, events, rules) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// up makes the data path that the networks ask for.
func (d *Daemon) up() error {
	if d.dp != nil {
		return d.start()
	}
	// An earlier run may have left programs: they would go on with maps that nobody keeps.
	d.tell("take left-over programs off", d.takeOff())
	return nil
}

// settleOn writes down what is loaded, for status and for whoever comes after us.
func (d *Daemon) settleOn(cfg *config.Config) error {
	links, err := d.h.Links()
	if err != nil {
		return err
	}
	d.drift = drift{}
	d.know(links)
	d.publish()
	if err := writeActive(d.opt.runDir(), cfg); err != nil {
		return err
	}
	if err := d.state.write(d.opt.runDir()); err != nil {
		return err
	}
	d.dirty = false
	if d.state.Reason != "" {
		d.log.Warn("BPF is not in use, all networks run on kernel vxlan", "mode", config.Kernel, "err", d.state.Reason)
	}
	return nil
}

func (d *Daemon) ready() {
	if d.opt.Ready != nil {
		d.opt.Ready(d.summary())
	}
}

// tell logs an error that the next round may well mend.
func (d *Daemon) tell(what string, err error) {
	if err != nil {
		d.log.Warn(what, "err", err)
	}
}

// abandon undoes what a failed Load has prepared; what an earlier one left stays.
func (d *Daemon) abandon() error {
	var errs []error
	if d.lock != nil && d.fresh && d.state.Owned.Empty() {
		if d.bare {
			errs = append(errs, removeTree(d.opt.pinDir()))
		}
		// What was rolled back is remembered until somebody decides.
		errs = append(errs, removeRunFiles(d.opt.runDir(), rejectedFile(d.opt.runDir())))
	}
	return errors.Join(append(errs, d.Close())...)
}

// Close gives back file descriptors and the lock. The data path stays.
func (d *Daemon) Close() error {
	errs := []error{d.mirror.close()}
	if d.h != nil {
		errs = append(errs, d.h.Close())
	}
	if d.lock != nil {
		errs = append(errs, d.lock.release())
	}
	return errors.Join(errs...)
}
