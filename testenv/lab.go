// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Options of Up.
type Options struct {
	// Prefix goes before the lab's name in everything that the machine shows.
	Prefix string
	// Log gets a line for each host built or removed. nil: none.
	Log *slog.Logger
}

// Lab is a built Spec.
type Lab struct {
	Name string // Options.Prefix + Spec.Name
	Spec Spec   // complete: defaults filled in
	// Hosts in the order of the Spec.
	Hosts []*Host

	log *slog.Logger
	dir string
}

// Host is a namespace with an underlay device.
type Host struct {
	HostSpec
	NS     NS
	MAC    fdb.MAC      // of the underlay device
	Prefix netip.Prefix // its address with the underlay's length, or its own subnet's on a routed one
	// Containers, network by network in the order of the Spec.
	Containers []*Container

	lab   *Lab
	index int // from 1
}

// Container is a namespace with one link, eth0, whose other end waits in the
// host to become a bridge port.
type Container struct {
	Name    string // <network>-<n>
	Network string
	NS      NS
	HostEnd string // link in the host's namespace
	MAC     fdb.MAC
	MTU     int
	Addr    netip.Prefix
	Addr6   netip.Prefix // invalid: none
}

// Host returns the host of that name, nil if there is none.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.Hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Container returns a host's container, nil if there is none.
func (l *Lab) Container(host, name string) *Container {
	if h := l.Host(host); h != nil {
		for _, c := range h.Containers {
			if c.Name == name {
				return c
			}
		}
	}
	return nil
}

// Namespaces are the names of all namespaces of the lab.
func (l *Lab) Namespaces() []string {
	var names []string
	if l.Spec.Underlay.Kind != P2P {
		names = append(names, l.SwitchNS().name)
	}
	for _, h := range l.Hosts {
		names = append(names, h.NS.name)
		for _, c := range h.Containers {
			names = append(names, c.NS.name)
		}
	}
	return names
}

// Dir is where state, configs and logs of the lab are.
func (l *Lab) Dir() string { return l.dir }

// SwitchNS is the namespace of a switch or router underlay; the port of a host is p-<host>.
func (l *Lab) SwitchNS() NS { return NS{l.Name + "-sw"} }

// BridgeAddresses are the addresses that the host has on the network itself.
func (h *Host) BridgeAddresses(network string) []netip.Prefix {
	n, err := h.lab.Spec.Network(network)
	if err != nil {
		return nil
	}
	return bridgeAddresses(h.lab.Spec, n, h.index)
}

func bridgeAddresses(s Spec, n Network, host int) []netip.Prefix {
	if !slices.Contains(s.HostAddresses, n.Name) {
		return nil
	}
	return memberAddresses(s, n, host, 0)
}

// memberAddresses of container c (0: the bridge) of a host, both families.
func memberAddresses(s Spec, n Network, host, c int) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{n.Subnet, n.Subnet6} {
		if p.IsValid() {
			a, _ := nth(p, host*s.stride()+c) // check has seen that it fits
			out = append(out, netip.PrefixFrom(a, p.Bits()))
		}
	}
	return out
}

// remotes of one host: the other hosts, strangers excepted.
func remotes(s Spec, host string) []netip.Addr {
	var out []netip.Addr
	for _, h := range s.Hosts {
		if h.Name != host && !h.Stranger {
			out = append(out, h.Address)
		}
	}
	return out
}

// mac is a locally administered address that can be read: what it is, host,
// network, container. Labs do not meet, so equal addresses in two are fine.
func mac(kind byte, host, network, c int) fdb.MAC {
	return fdb.MAC{0x02, kind, 0, byte(host), byte(network), byte(c)}
}

// The second octet of the lab's MAC addresses.
const (
	macUnderlay  = 0xe2
	macContainer = 0xc0
	macHostEnd   = 0xa0
	macBridge    = 0xb0
	macVXLAN     = 0xf0
	macSwitch    = 0x50
)

// plan computes all names and addresses of a lab; it touches nothing.
func plan(name string, s Spec) (*Lab, error) {
	l := &Lab{Name: name, Spec: s, dir: filepath.Join(stateDir, name), log: slog.New(slog.DiscardHandler)}
	for i, hs := range s.Hosts {
		h := &Host{
			HostSpec: hs,
			NS:       NS{name + "-" + hs.Name},
			MAC:      mac(macUnderlay, i+1, 0, 0),
			Prefix:   netip.PrefixFrom(hs.Address, s.Underlay.Prefix.Bits()),
			lab:      l,
			index:    i + 1,
		}
		if s.Underlay.Kind == Routed {
			h.Prefix = netip.PrefixFrom(hs.Address, hs.Address.BitLen())
		}
		l.Hosts = append(l.Hosts, h)
		if hs.Stranger {
			continue
		}
		for j, n := range s.Networks {
			for k := 1; k <= s.Containers; k++ {
				c := &Container{
					Name:    n.Name + "-" + strconv.Itoa(k),
					Network: n.Name,
					MAC:     mac(macContainer, i+1, j+1, k),
					MTU:     s.ContainerMTU,
				}
				if c.MTU == 0 {
					c.MTU = n.MTU
				}
				c.NS = NS{h.NS.name + "-" + c.Name}
				c.HostEnd = "v-" + c.Name
				addrs := memberAddresses(s, n, i+1, k)
				c.Addr = addrs[0]
				if len(addrs) > 1 {
					c.Addr6 = addrs[1]
				}
				h.Containers = append(h.Containers, c)
			}
		}
	}
	seen := map[string]bool{}
	for _, n := range l.Namespaces() {
		if seen[n] {
			return nil, fmt.Errorf("two namespaces of the lab would be called %s: rename a host", n)
		}
		seen[n] = true
	}
	return l, nil
}

// networkIndex counts from 1.
func (l *Lab) networkIndex(name string) int {
	return 1 + slices.IndexFunc(l.Spec.Networks, func(n Network) bool { return n.Name == name })
}

// Up builds a lab. On an error, and when ctx ends, it takes down what it has
// built. Only one lab of a name exists on a machine.
func Up(ctx context.Context, spec Spec, o Options) (*Lab, error) {
	spec, err := spec.check()
	if err != nil {
		return nil, err
	}
	name := o.Prefix + spec.Name
	if err := checkName("lab name", name, 32); err != nil {
		return nil, err
	}
	l, err := plan(name, spec)
	if err != nil {
		return nil, err
	}
	if o.Log != nil {
		l.log = o.Log.With("lab", name)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("make namespaces: %w: run as root", fs.ErrPermission)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	me, err := processOf(os.Getpid())
	if err != nil {
		return nil, err
	}
	dir, err := makeStateDir(name)
	if err != nil {
		return nil, err
	}
	defer dir.unlock()
	st := &state{Version: 1, Name: name, BootID: bootID(), Phase: phaseCreating,
		Created: time.Now().Truncate(time.Second), Creator: me, Spec: spec}
	b := builder{l, dir, st}
	if err = dir.write(st); err == nil {
		err = b.build(ctx)
	}
	if err == nil {
		st.Phase = phaseUp
		err = dir.write(st)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", name, err), l.remove(dir, st))
	}
	return l, nil
}

// builder is Up at work, the lab's directory locked.
type builder struct {
	*Lab
	dir *lockedDir
	st  *state
}

// namespace records, then makes one.
func (b builder) namespace(ctx context.Context, n NS) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.Exists() {
		// Before it is recorded: what is not ours must not be removed with the lab.
		return fmt.Errorf("namespace %s: %w", n.name, fs.ErrExist)
	}
	b.st.Namespaces = append(b.st.Namespaces, nsRecord{Name: n.name})
	if err := b.dir.write(b.st); err != nil {
		return err
	}
	if err := n.create(); err != nil {
		if errors.Is(err, fs.ErrExist) {
			b.st.Namespaces = b.st.Namespaces[:len(b.st.Namespaces)-1]
		}
		return err
	}
	b.st.Namespaces[len(b.st.Namespaces)-1].Inode = n.inode()
	return b.dir.write(b.st)
}

func (b builder) build(ctx context.Context) error {
	if err := prepareNetnsDir(); err != nil {
		return err
	}
	if b.Spec.Underlay.Kind != P2P {
		if err := b.namespace(ctx, b.SwitchNS()); err != nil {
			return err
		}
		if err := b.makeMiddle(); err != nil {
			return err
		}
	}
	for _, h := range b.Hosts {
		if err := b.namespace(ctx, h.NS); err != nil {
			return err
		}
	}
	if err := b.makeUnderlay(ctx); err != nil {
		return err
	}
	for _, h := range b.Hosts {
		for _, c := range h.Containers {
			if err := b.namespace(ctx, c.NS); err != nil {
				return err
			}
			if err := h.makeContainer(c); err != nil {
				return err
			}
		}
		if h.KernelVXLAN {
			for _, n := range b.Spec.Networks {
				if err := ctx.Err(); err != nil {
					return err
				}
				if _, err := b.KernelVXLAN(ctx, h.Name, n.Name, KernelVXLANOptions{}); err != nil {
					return err
				}
			}
		}
		b.log.Info("host built", "host", h.Name, "address", h.Address, "containers", len(h.Containers))
	}
	return b.awaitUp(ctx)
}

// awaitUp waits until every link of the lab carries packets.
func (l *Lab) awaitUp(ctx context.Context) error {
	for _, h := range l.Hosts {
		ends := []string{l.Spec.Underlay.Device}
		for _, c := range h.Containers {
			ends = append(ends, c.HostEnd)
			if err := c.NS.awaitUp(ctx, containerIf); err != nil {
				return err
			}
		}
		if err := h.NS.awaitUp(ctx, ends...); err != nil {
			return err
		}
		if l.Spec.Underlay.Kind != P2P {
			if err := l.SwitchNS().awaitUp(ctx, "p-"+h.Name); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// Open finds a lab that this or another process built, or began to build. The
// error wraps fs.ErrNotExist if there is none.
func Open(name string) (*Lab, error) {
	if err := checkName("lab name", name, 32); err != nil {
		return nil, err
	}
	dir := filepath.Join(stateDir, name)
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	st, err := readState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		// Killed before the first word: nothing but a directory to take down.
		st, err = &state{Name: name}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open lab %s: %w", name, err)
	}
	return plan(name, st.Spec)
}

// SetLog sends the lab's log lines to log.
func (l *Lab) SetLog(log *slog.Logger) { l.log = log.With("lab", l.Name) }

// Info is what List says about a lab.
type Info struct {
	Name    string
	Phase   string // creating, up, removing
	Created time.Time
	Creator int  // pid of the process that called Up
	Stale   bool // not up, and the process that worked on it is gone: take it down
	Hosts   []string
	Daemons []DaemonInfo
}

// DaemonInfo is a vxbpf daemon of a lab.
type DaemonInfo struct {
	Host     string
	Instance string
	Pid      int
	Running  bool
}

// List returns the labs of this machine, by name.
func List() ([]Info, error) {
	entries, err := os.ReadDir(stateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []Info
	var errs []error
	for _, e := range entries {
		st, err := readState(filepath.Join(stateDir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			if _, gone := os.Stat(filepath.Join(stateDir, e.Name())); gone != nil {
				continue
			}
			st, err = &state{Name: e.Name(), Phase: phaseCreating}, nil
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		same := st.BootID == bootID()
		in := Info{Name: st.Name, Phase: st.Phase, Created: st.Created, Creator: st.Creator.Pid,
			Stale: !same || st.Phase != phaseUp && !st.Creator.alive()}
		for _, h := range st.Spec.Hosts {
			in.Hosts = append(in.Hosts, h.Name)
		}
		for _, d := range st.Daemons {
			if !d.Stopped {
				in.Daemons = append(in.Daemons, DaemonInfo{d.Host, d.Instance, d.Process.Pid, same && d.Process.alive()})
			}
		}
		out = append(out, in)
	}
	return out, errors.Join(errs...)
}

// Down removes the lab: daemons, data paths, namespaces, state. It may be
// called again, and from any process. The error names what is left.
func (l *Lab) Down() error {
	dir, err := lockDir(l.dir, 30*time.Second)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take down lab %s: %w", l.Name, err)
	}
	defer dir.unlock()
	st, err := readState(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		st, err = &state{Version: 1, Name: l.Name}, nil
	}
	if err != nil {
		return fmt.Errorf("take down lab %s: %w", l.Name, err)
	}
	return l.remove(dir, st)
}

// remove takes down what st lists, in reverse order. What cannot be removed
// stays in the state, so that a later Down tries again.
func (l *Lab) remove(dir *lockedDir, st *state) error {
	var errs []error
	st.Phase = phaseRemoving
	if me, err := processOf(os.Getpid()); err == nil {
		st.Creator = me
	}
	if err := dir.write(st); err != nil {
		errs = append(errs, err)
	}
	if st.BootID == bootID() {
		errs = append(errs, l.stopDaemons(st)...)
	}
	var left []nsRecord
	for i := len(st.Namespaces) - 1; i >= 0; i-- {
		r := st.Namespaces[i]
		n := NS{r.Name}
		now := n.inode()
		if r.Inode != 0 && now != 0 && now != r.Inode && st.BootID == bootID() {
			l.log.Warn("namespace was replaced by somebody else's, left alone", "namespace", r.Name)
			continue
		}
		if err := n.remove(); err != nil {
			errs = append(errs, err)
			left = append(left, r)
			continue
		}
		if now != 0 {
			for _, p := range processesIn(now) {
				errs = append(errs, fmt.Errorf("namespace %s has lost its name but lives on: process %s is in it", r.Name, p))
			}
		}
	}
	if len(left) == 0 && len(runningDaemons(st)) == 0 {
		if err := removeStateDir(dir.path); err != nil {
			errs = append(errs, err)
		}
	} else {
		slices.Reverse(left)
		st.Namespaces = left
		if err := dir.write(st); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take down lab %s: %w", l.Name, err)
	}
	l.log.Info("lab removed")
	return nil
}

// processesIn lists the other processes in a namespace, as "pid (command)".
func processesIn(inode uint64) []string {
	var out []string
	for pid, p := range allProcesses() {
		if pid == os.Getpid() || p.netns != inode {
			continue
		}
		out = append(out, fmt.Sprintf("%d (%s)", pid, strings.Join(p.argv, " ")))
	}
	slices.Sort(out)
	return out
}

type procInfo struct {
	netns uint64
	argv  []string
}

func allProcesses() map[int]procInfo {
	out := map[int]procInfo{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/net"))
		if err != nil {
			continue // ended meanwhile, or a zombie
		}
		ino, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(target, "net:["), "]"), 10, 64)
		if err != nil {
			continue
		}
		b, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		var argv []string
		for _, a := range bytes.Split(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
			argv = append(argv, string(a))
		}
		out[pid] = procInfo{ino, argv}
	}
	return out
}
