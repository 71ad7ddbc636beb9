// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// A capture puts programs that also copy packets in the place of the ordinary
// ones, over the same maps, hook by hook and without a gap, and puts the
// ordinary ones back when it ends. It holds the lock on a file of its own in the
// run directory, which says what programs are its. The daemon leaves those where
// they are while the lock is held, and puts its own back within a second when it
// is not, however the capture ended. With no daemon, the capture puts ordinary
// programs back itself; one that was killed then leaves programs that copy
// nothing (captureLease), for the next capture or load to replace.
const (
	captureLease = 5 * time.Second // how long programs copy packets without hearing from their process
	captureTend  = 500 * time.Millisecond
	captureQuit  = 5 * time.Second // how long the daemon may take to put its programs back
)

// CaptureOptions say what packets a capture wants. The zero value: all of them.
type CaptureOptions struct {
	Length  int          // bytes to keep of each packet, before and after; 0: 2048
	Buffer  int          // bytes between programs and reader, rounded up to a power of two; 0: 8 MiB
	Hooks   []bpf.Hook   // also bpf.CaptureMoved
	Fates   []bpf.Fate   // what became of them
	Reasons []bpf.Reason // why
	Network string       // by name
	// Src and Dst are MAC addresses of the inner frame; zero: any.
	Src, Dst fdb.MAC
	Nth      uint32 // one in so many, by chance; 0: each
}

// Captured is a packet at a hook.
type Captured struct {
	bpf.CaptureEvent
	Time    time.Time
	Network NetworkState // as the state file has it; the zero value if the network is not in it
	Device  string       // of the hook
	// In is the packet as it came, Out as BPF sent it on; both cut at the length asked for. Valid until the next one.
	In, Out []byte
}

// Capture is a running one.
type Capture struct {
	opt   Options
	lock  *os.File
	state *State
	coll  *ebpf.Collection
	ids   map[ebpf.ProgramID]bool
	at    attacher
	xdp   xdpLinks
	noXDP bool // the kernel refuses such programs
	r     *ringbuf.Reader
	// rodata are the constants that the programs in place were loaded with.
	rodata  map[string][]byte
	devices map[uint32]string
	hooks   int
	clock   time.Time     // the time at
	boot    time.Duration // this time of CLOCK_MONOTONIC
}

// captureFile names what a capture holds locked: JSON of captureNote.
func captureFile(run string) string { return filepath.Join(run, "capture") }

type captureNote struct {
	Pins     string           `json:"pins"` // over whose maps the programs run
	Programs []ebpf.ProgramID `json:"programs"`
}

// capturing are the programs of a capture that runs over these maps, none if
// none does. stamp is another one when a capture has begun or ended since.
func capturing(run, pins string) (programs map[ebpf.ProgramID]bool, stamp time.Time) {
	f, err := os.OpenFile(captureFile(run), os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, stamp
	}
	defer f.Close()
	if i, err := f.Stat(); err == nil {
		stamp = i.ModTime()
	}
	if pid, err := holder(f); err != nil || pid == 0 {
		return nil, stamp
	}
	return noted(f, pins), stamp
}

func noted(f io.Reader, pins string) map[ebpf.ProgramID]bool {
	var n captureNote
	if json.NewDecoder(f).Decode(&n) != nil || n.Pins != pins {
		return nil
	}
	set := map[ebpf.ProgramID]bool{}
	for _, id := range n.Programs {
		set[id] = true
	}
	return set
}

// Capturer is the pid of the process that captures, 0 for none.
func Capturer(run string) (int, error) {
	f, err := os.OpenFile(captureFile(run), os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open capture lock: %w", err)
	}
	defer f.Close()
	return holder(f)
}

// OpenCapture loads the programs that copy packets and puts them in place. The
// error wraps os.ErrNotExist if nothing is loaded. Close must follow.
func OpenCapture(opt Options, want CaptureOptions) (_ *Capture, err error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	if err := NetAdmin(); err != nil {
		return nil, err
	}
	c := &Capture{opt: opt, devices: map[uint32]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.open(); err != nil {
		return nil, err
	}
	spec, err := bpf.LoadCapture()
	if err != nil {
		return nil, fmt.Errorf("read the embedded programs: %w", err)
	}
	if err := c.ask(spec, want); err != nil {
		return nil, err
	}
	if c.coll, err = c.load(spec); err != nil {
		return nil, err
	}
	note := captureNote{Pins: c.state.Pins}
	c.ids = map[ebpf.ProgramID]bool{}
	for _, p := range c.coll.Programs {
		if id, ok := programID(p); ok {
			c.ids[id] = true
			note.Programs = append(note.Programs, id)
		}
	}
	b, err := json.Marshal(note)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", c.lock.Name(), err)
	}
	if err := errors.Join(c.lock.Truncate(0), writeAt(c.lock, b)); err != nil {
		return nil, fmt.Errorf("write %s: %w", c.lock.Name(), err)
	}
	if c.r, err = ringbuf.NewReader(c.coll.Maps["vx_capture"]); err != nil {
		return nil, fmt.Errorf("read vx_capture: %w", err)
	}
	if err := c.sync(); err != nil {
		return nil, err
	}
	return c, c.tend()
}

func writeAt(f *os.File, b []byte) error {
	_, err := f.WriteAt(b, 0)
	return err
}

// open takes the lock and reads what is in place.
func (c *Capture) open() (err error) {
	run := c.opt.runDir()
	if c.state, err = ReadState(run); err != nil {
		return err
	}
	if c.state.Pins == "" || c.state.Attach == "" {
		return fmt.Errorf("capture on instance %q: no network of it runs on BPF (%s); tcpdump sees what the kernel carries",
			c.opt.Instance, cmp.Or(c.state.Reason, "datapath: kernel"))
	}
	if c.lock, err = os.OpenFile(captureFile(run), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("make capture lock: %w", err)
	}
	if err := unix.FcntlFlock(c.lock.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("lock %s: %w", c.lock.Name(), err)
		}
		pid, herr := holder(c.lock)
		if herr != nil {
			return herr
		}
		err := errors.Join(fmt.Errorf("capture on instance %q: process %d does it already; one at a time", c.opt.Instance, pid), c.lock.Close())
		c.lock = nil
		return err
	}
	c.xdp = xdpLinks{filepath.Join(c.opt.pinDir(), "links")}
	if c.at, err = c.attacher(); err != nil {
		return err
	}
	hooks, err := c.at.present()
	if err != nil {
		return err
	}
	for _, h := range hooks {
		id, err := c.at.at(h)
		if err != nil {
			return err
		}
		if id == 0 {
			continue
		}
		c.rodata, err = constants(id)
		return err
	}
	return fmt.Errorf("capture on instance %q: no program is attached; see `vxbpf status`", c.opt.Instance)
}

// attacher is the way that the programs in place were attached.
func (c *Capture) attacher() (attacher, error) {
	if c.state.Attach == "tcx" {
		return &tcx{dir: filepath.Join(c.opt.pinDir(), "links")}, nil
	}
	return newClsact(c.opt.Instance, func(int) bool { return false }, func(int, bool) error {
		return errors.New("a capture makes no qdisc")
	})
}

// ask writes what is wanted into the constants and sizes the maps of the capture.
func (c *Capture) ask(spec *ebpf.CollectionSpec, want CaptureOptions) error {
	if want.Length == 0 {
		want.Length = 2048
	}
	if want.Length < 1 || want.Length > bpf.CaptureSnap {
		return fmt.Errorf("keep %d bytes of each packet: want 1 to %d", want.Length, bpf.CaptureSnap)
	}
	if want.Buffer == 0 {
		want.Buffer = 8 << 20
	}
	// The kernel refuses more than 2 GiB, and one packet with the longest part before and after must fit.
	if want.Buffer < 4*want.Length || want.Buffer > 1<<30 {
		return fmt.Errorf("buffer %d bytes: want %d (four times the length) to %d", want.Buffer, 4*want.Length, 1<<30)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	spec.Maps["vx_capture"].MaxEntries = uint32(max(1<<bits.Len(uint(want.Buffer-1)), os.Getpagesize()))
	spec.Maps["vx_capture_cpu"].MaxEntries = uint32(cpus)
	set := map[string]any{"vx_capture_len": uint32(want.Length), "vx_capture_nth": max(want.Nth, 1)}
	if len(want.Hooks) > 0 {
		set["vx_capture_at"] = mask[uint32](want.Hooks)
	}
	if len(want.Fates) > 0 {
		set["vx_capture_fates"] = mask[uint32](want.Fates)
	}
	if len(want.Reasons) > 0 {
		set["vx_capture_why"] = mask[uint64](want.Reasons)
	}
	if want.Network != "" {
		var id fdb.NetID
		var names []string
		for _, n := range c.state.Networks {
			names = append(names, n.Name)
			if n.Name == want.Network {
				id = n.ID
			}
		}
		if !slices.Contains(names, want.Network) {
			return fmt.Errorf("capture on network %q: there is no such network; there are %s", want.Network, strings.Join(names, ", "))
		}
		if id == 0 {
			return fmt.Errorf("capture on network %q: it runs on kernel vxlan; tcpdump sees what the kernel carries", want.Network)
		}
		set["vx_capture_net"] = uint16(id)
	}
	for name, mac := range map[string]fdb.MAC{"vx_capture_src": want.Src, "vx_capture_dst": want.Dst} {
		if !mac.IsZero() {
			set[name] = bpf.NewFDBKey(0, mac).Word
		}
	}
	for name, v := range set {
		if err := spec.Variables[name].Set(v); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func mask[M uint32 | uint64, B ~uint32](list []B) (m M) {
	for _, b := range list {
		m |= 1 << b
	}
	return m
}

// load loads programs over the maps in place, with the constants of the programs in place.
func (c *Capture) load(spec *ebpf.CollectionSpec) (_ *ebpf.Collection, err error) {
	have := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range have {
			err = errors.Join(err, m.Close())
		}
	}()
	for name, m := range spec.Maps {
		if !strings.HasPrefix(name, "vx_") || bpf.OfCapture(name) {
			continue
		}
		p, err := ebpf.LoadPinnedMap(filepath.Join(c.state.Pins, name), nil)
		if err != nil {
			return nil, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		have[name] = p
		m.MaxEntries = p.MaxEntries()
	}
	if want := "maps-" + layout(spec); want != filepath.Base(c.state.Pins) {
		return nil, fmt.Errorf("capture on instance %q: the maps are %s and this vxbpf's %s: use the vxbpf that loaded it, or `vxbpf load` with this one first",
			c.opt.Instance, filepath.Base(c.state.Pins), want)
	}
	for name, v := range spec.Variables {
		if b := c.rodata[name]; len(b) == len(v.Value) && !bpf.OfCapture(name) {
			v.Value = b
		}
	}
	// Programs that share a device map have this flag, or none of them has: EINVAL else.
	if b := c.rodata["vx_have_frags"]; len(b) == 1 && b[0] == 1 {
		for _, p := range spec.Programs {
			if p.Type == ebpf.XDP {
				p.Flags |= bpf.XDPHasFrags
			}
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: have})
	var refused *ebpf.VerifierError
	if hooks, herr := c.xdp.list(); errors.As(err, &refused) && herr == nil && len(hooks) == 0 {
		// As in loadPrograms: no XDP program is in place, so none is needed.
		if tc, terr := ebpf.NewCollectionWithOptions(withoutXDP(spec), ebpf.CollectionOptions{MapReplacements: have}); terr == nil {
			coll, err = tc, nil
			c.noXDP = true
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load BPF programs: %w", err)
	}
	return coll, nil
}

// constants reads what a program was loaded with, by name.
func constants(id ebpf.ProgramID) (map[string][]byte, error) {
	fail := func(err error) (map[string][]byte, error) {
		return nil, fmt.Errorf("read constants of program %d: %w", id, err)
	}
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fail(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return fail(err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return fail(err)
		}
		defer m.Close()
		mi, err := m.Info()
		if err != nil {
			return fail(err)
		}
		if mi.Type != ebpf.Array || !strings.HasSuffix(mi.Name, ".rodata") {
			continue
		}
		b, err := m.LookupBytes(uint32(0))
		if err != nil {
			return fail(err)
		}
		h, err := m.Handle()
		if err != nil {
			return fail(err)
		}
		defer h.Close()
		types, err := h.Spec(nil)
		if err != nil {
			return fail(err)
		}
		var sec *btf.Datasec
		if err := types.TypeByName(".rodata", &sec); err != nil {
			return fail(err)
		}
		out := map[string][]byte{}
		for _, v := range sec.Vars {
			if uint64(v.Offset)+uint64(v.Size) <= uint64(len(b)) {
				out[v.Type.TypeName()] = b[v.Offset : v.Offset+v.Size]
			}
		}
		return out, nil
	}
	return nil, nil
}

// tend puts the programs where they are missing (a port came, or the daemon was
// quicker than we with its own), and says to them that we are there.
func (c *Capture) tend() error {
	until := vxmaps.Now() + captureLease
	if err := c.coll.Maps["vx_capture_ctl"].Put(uint32(0), bpf.CaptureControl{Until: uint64(until)}); err != nil {
		return fmt.Errorf("renew the capture: %w", err)
	}
	// A load with another layout of the maps, or an unload, ends it.
	if s, err := ReadState(c.opt.runDir()); err != nil || s.Pins != c.state.Pins || s.Attach != c.state.Attach {
		return ErrReplaced
	}
	return c.swap(c.coll)
}

// ErrReplaced ends a capture: `load` or `unload` has changed what it looked at.
var ErrReplaced = errors.New("the data path was unloaded or replaced")

func (c *Capture) swap(to *ebpf.Collection) error {
	hooks, err := c.places()
	if err != nil {
		return err
	}
	c.hooks = 0
	for _, h := range hooks {
		p := to.Programs[h.program]
		if p == nil {
			return fmt.Errorf("replace %s at interface %d: no such program in this build", h.program, h.ifindex)
		}
		if err := h.replace(h.hook, p); err != nil {
			if _, nerr := net.InterfaceByIndex(h.ifindex); nerr != nil {
				continue // the device went while we looked
			}
			return err
		}
		c.hooks++
	}
	return nil
}

// place is a hook with the way that its program is changed and asked for: XDP's, or that of all others.
type place struct {
	hook
	replace func(hook, *ebpf.Program) error
	at      func(hook) (ebpf.ProgramID, error)
}

// places are all hooks that carry a program of the instance.
func (c *Capture) places() (out []place, err error) {
	tc, err := c.at.present()
	if err != nil {
		return nil, err
	}
	var xdp []hook
	if !c.noXDP {
		if xdp, err = c.xdp.list(); err != nil {
			return nil, err
		}
	}
	for _, h := range tc {
		out = append(out, place{h, c.at.replace, c.at.at})
	}
	for _, h := range xdp {
		out = append(out, place{h, c.xdp.replace, c.xdp.at})
	}
	return out, nil
}

// Hooks is how many hooks are looked at.
func (c *Capture) Hooks() int { return c.hooks }

// State is the instance's, as it was when the capture began.
func (c *Capture) State() *State { return c.state }

func (c *Capture) device(ifindex uint32) string {
	name, ok := c.devices[ifindex]
	if !ok {
		name = fmt.Sprintf("if%d", ifindex)
		if i, err := net.InterfaceByIndex(int(ifindex)); err == nil {
			name = i.Name
		}
		c.devices[ifindex] = name
	}
	return name
}

// sync relates the clock of the programs to the time of day.
func (c *Capture) sync() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return fmt.Errorf("read clock: %w", err)
	}
	c.clock, c.boot = time.Now(), time.Duration(ts.Nano())
	return nil
}

// Run hands over packets until ctx ends or each returns an error, which it
// returns; io.EOF from each ends it without one. Ten times a second while there
// are none, each gets nil.
func (c *Capture) Run(ctx context.Context, each func(*Captured) error) error {
	var rec ringbuf.Record
	next := time.Now()
	for ctx.Err() == nil {
		if now := time.Now(); !now.Before(next) {
			next = now.Add(captureTend)
			if err := errors.Join(c.sync(), c.tend()); err != nil {
				return err
			}
		}
		c.r.SetDeadline(time.Now().Add(100 * time.Millisecond))
		err := c.r.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if err := each(nil); err != nil {
				return eof(err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read vx_capture: %w", err)
		}
		p, err := c.parse(rec.RawSample)
		if err != nil {
			return err
		}
		if err := each(&p); err != nil {
			return eof(err)
		}
	}
	return c.drain(each)
}

// drain hands over what was captured before now: it is counted, so it is shown.
func (c *Capture) drain(each func(*Captured) error) error {
	var end unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &end); err != nil {
		return fmt.Errorf("read clock: %w", err)
	}
	c.r.SetDeadline(time.Now()) // what is there is read all the same
	for {
		var rec ringbuf.Record
		err := c.r.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read vx_capture: %w", err)
		}
		p, err := c.parse(rec.RawSample)
		if err != nil {
			return err
		}
		if int64(p.At) > end.Nano() {
			return nil // packets may come faster than they are read
		}
		if err := each(&p); err != nil {
			return eof(err)
		}
	}
}

func eof(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (c *Capture) parse(b []byte) (p Captured, err error) {
	if p.CaptureEvent, p.In, p.Out, err = bpf.ParseCapture(b); err != nil {
		return p, err
	}
	p.Time = c.clock.Add(time.Duration(p.At) - c.boot)
	p.Device = c.device(p.Ifindex)
	for _, n := range c.state.Networks {
		if n.ID == fdb.NetID(p.Net) && n.ID != 0 {
			p.Network = n
		}
	}
	return p, nil
}

// Counts are how many packets the capture asked for, and how many of them it
// lost because the reader was too slow.
func (c *Capture) Counts() (seen, lost uint64, err error) {
	m := c.coll.Maps["vx_capture_cpu"]
	b := make([]byte, m.ValueSize())
	for cpu := range m.MaxEntries() {
		if err := m.Lookup(cpu, &b); err != nil {
			return 0, 0, fmt.Errorf("read vx_capture_cpu: %w", err)
		}
		seen += binary.NativeEndian.Uint64(b)
		lost += binary.NativeEndian.Uint64(b[8:])
	}
	return seen, lost, nil
}

// Close ends the capture: ordinary programs are in place when it returns.
func (c *Capture) Close() error {
	var errs []error
	if c.coll != nil && c.ids != nil {
		errs = append(errs, c.restore())
	}
	if c.r != nil {
		errs = append(errs, c.r.Close())
	}
	if c.coll != nil {
		c.coll.Close()
	}
	if c.at != nil {
		errs = append(errs, c.at.close())
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close())
	}
	return errors.Join(errs...)
}

// restore puts ordinary programs in the place of ours, or waits until the daemon has.
func (c *Capture) restore() error {
	// Programs that copy no more, whatever happens from here on.
	err := c.coll.Maps["vx_capture_ctl"].Put(uint32(0), bpf.CaptureControl{})
	// From now on the daemon takes our programs for strangers'.
	err = errors.Join(err, c.lock.Truncate(0))
	for deadline := time.Now().Add(captureQuit); ; time.Sleep(50 * time.Millisecond) {
		left, lerr := c.left()
		switch {
		case lerr != nil:
			return errors.Join(err, lerr)
		case left == 0:
			return err
		case time.Now().After(deadline):
			return errors.Join(err, fmt.Errorf("put ordinary programs back: the daemon has not done it at %d hooks within %v; they copy nothing any more", left, captureQuit))
		}
		if s, serr := ReadState(c.opt.runDir()); serr != nil || s.Pins != c.state.Pins {
			return err // unloaded, or a load is about to replace them
		}
		l, lerr := takeLock(c.opt.runDir(), c.opt.Instance)
		var busy *BusyError
		switch {
		case errors.As(lerr, &busy):
			continue // the daemon does it
		case lerr != nil:
			return errors.Join(err, lerr)
		}
		spec, lerr := bpf.Load()
		if lerr == nil {
			var plain *ebpf.Collection
			if plain, lerr = c.load(spec); lerr == nil {
				lerr = c.swap(plain)
				plain.Close()
			}
		}
		return errors.Join(err, lerr, l.release())
	}
}

// left counts the hooks that carry a program of ours.
func (c *Capture) left() (n int, err error) {
	hooks, err := c.places()
	if err != nil {
		return 0, err
	}
	for _, h := range hooks {
		id, err := h.at(h.hook)
		if err != nil {
			return 0, err
		}
		if c.ids[id] {
			n++
		}
	}
	return n, nil
}

// EndCapture puts ordinary programs in the place of those that a killed capture
// left behind where no daemon did it. It returns how many hooks there were.
func EndCapture(opt Options) (n int, err error) {
	if err := opt.Check(); err != nil {
		return 0, err
	}
	if err := NetAdmin(); err != nil {
		return 0, err
	}
	c := &Capture{opt: opt, devices: map[uint32]string{}}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.open(); err != nil {
		return 0, err
	}
	c.ids = noted(c.lock, c.state.Pins)
	if n, err = c.left(); err != nil || n == 0 {
		return n, err
	}
	l, err := takeLock(opt.runDir(), opt.Instance)
	if err != nil {
		return n, err
	}
	defer func() { err = errors.Join(err, l.release()) }()
	spec, err := bpf.Load()
	if err != nil {
		return n, fmt.Errorf("read the embedded programs: %w", err)
	}
	plain, err := c.load(spec)
	if err != nil {
		return n, err
	}
	defer plain.Close()
	return n, errors.Join(c.swap(plain), c.lock.Truncate(0))
}
