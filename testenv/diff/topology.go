// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// Point is where frames go in and come out: the eth0 of a container, a host's
// bridge, or an underlay device.
type Point struct {
	Host string
	Dev  string // mgmt-1, br-mgmt, eth2
}

func (p Point) String() string { return p.Host + ":" + p.Dev }

func (p Point) underlay() bool { return p.Dev == underlayDev }

const (
	underlayDev = "eth2"
	bridgeDev   = "br-mgmt"
	vxlanDev    = "encap-mgmt"
	network     = "mgmt"
	stranger    = "x1"
)

// Step is one frame to be sent.
type Step struct {
	At    Point
	Kind  string // of what sort it is, for reports
	Hdr   VNetHdr
	Frame []byte
}

// Run is what came out of one topology.
type Run struct {
	Frames  []Norm
	Started []time.Time // when each step was sent
	Errors  []error     // what the kernel answered to each step
}

// Topology is a lab with a socket at each point.
type Topology struct {
	Lab     *testenv.Lab
	Profile Profile

	taps    []*tap
	in      map[Point]int // sockets to send on
	forget  []int         // see forgetRoutes
	reached map[string]bool
	markers int
}

// Hosts are the VTEPs' names.
var Hosts = []string{"h1", "h2", "h3"}

// perHost is how many containers each host has.
const perHost = 2

// Spec of the lab, the same for both topologies.
func (p Profile) spec(name string) testenv.Spec {
	s := testenv.Spec{
		Name:         name,
		Underlay:     testenv.Underlay{Kind: testenv.Switch, MTU: p.UnderlayMTU, Device: underlayDev},
		Networks:     []testenv.Network{{Name: network, VNI: VNI, Subnet: netip.MustParsePrefix("172.29.236.0/24"), MTU: p.MTU, Group: p.Group}},
		Containers:   perHost,
		ContainerMTU: p.ContainerMTU,
	}
	if p.IPv6 {
		s.Underlay.Prefix = netip.MustParsePrefix("2001:db8:1::/64")
	}
	for _, h := range Hosts {
		s.Hosts = append(s.Hosts, testenv.HostSpec{Name: h, Datapath: testenv.None})
	}
	s.Hosts = append(s.Hosts, testenv.HostSpec{Name: stranger, Stranger: true})
	return s
}

// New builds the hosts with plain kernel VXLAN. start, if not nil, then makes
// vxbpf take over a host; it gets the config.
func New(ctx context.Context, name string, p Profile, start func(*testenv.Host, []byte) error) (t *Topology, err error) {
	t = &Topology{Profile: p, in: map[Point]int{}}
	if t.Lab, err = testenv.Up(ctx, p.spec(name), testenv.Options{}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if err := t.quiet(); err != nil {
		return nil, err
	}
	for _, h := range Hosts {
		if _, err := t.Lab.KernelVXLAN(ctx, h, network, testenv.KernelVXLANOptions{NoChecksum: true, Attributes: p.VXLAN}); err != nil {
			return nil, err
		}
		if err := t.configure(h); err != nil {
			return nil, err
		}
	}
	if start != nil {
		for _, h := range Hosts {
			host := t.Lab.Host(h)
			if err := start(host, p.config(host, t.Lab.Spec)); err != nil {
				return nil, err
			}
		}
	}
	if p.After != nil {
		for _, h := range Hosts {
			if err := t.netlink(t.Lab.Host(h).NS, func(nh *netlink.Handle) error { return p.After(t, h, nh) }); err != nil {
				return nil, fmt.Errorf("profile %s on %s: %w", p.Name, h, err)
			}
		}
	}
	if err := t.open(); err != nil {
		return nil, err
	}
	if p.KeepsRoutes || p.IPv6 {
		return t, nil
	}
	return t, t.openForget()
}

func (t *Topology) netlink(ns testenv.NS, fn func(*netlink.Handle) error) error {
	return ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
}

// quiet takes away what would send frames of its own, and the limits on
// answers that would make them depend on time.
func (t *Topology) quiet() error {
	set := func(ns testenv.NS, kv ...string) error {
		for i := 0; i < len(kv); i += 2 {
			if err := ns.Sysctl(kv[i], kv[i+1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}
	// br_netfilter is on by default where the kernel has it, and drops bad IP headers: that is another test's.
	common := []string{
		"net.bridge.bridge-nf-call-iptables", "0", "net.bridge.bridge-nf-call-ip6tables", "0", "net.bridge.bridge-nf-call-arptables", "0",
		"net.ipv4.icmp_ratemask", "0", "net.ipv6.icmp.ratelimit", "0", "net.ipv6.icmp.ratemask", "",
		// Fragments wait for good: what a host says when their time is over would come at any time.
		"net.ipv4.ipfrag_time", "100000", "net.ipv6.ip6frag_time", "100000",
	}
	noIPv6 := []string{"net.ipv6.conf.all.disable_ipv6", "1", "net.ipv6.conf.default.disable_ipv6", "1"}
	for _, h := range t.Lab.Hosts {
		errs := []error{set(h.NS, common...)}
		if !t.Profile.IPv6 {
			errs = append(errs, set(h.NS, noIPv6...))
		} else {
			errs = append(errs, set(h.NS, noIPv6[2:]...))
			for _, c := range h.Containers {
				errs = append(errs, set(h.NS, "net/ipv6/conf/"+c.HostEnd+"/disable_ipv6", "1"))
			}
		}
		for _, c := range h.Containers {
			errs = append(errs, set(c.NS, noIPv6...), t.netlink(c.NS, func(nh *netlink.Handle) error {
				eth0, err := nh.LinkByName("eth0")
				if err != nil {
					return err
				}
				addrs, err := nh.AddrList(eth0, unix.AF_INET)
				for _, a := range addrs {
					err = errors.Join(err, nh.AddrDel(eth0, &a))
				}
				return errors.Join(err, nh.LinkSetARPOff(eth0))
			}))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return errors.Join(set(t.Lab.SwitchNS(), append(common, noIPv6...)...), t.netlink(t.Lab.SwitchNS(), func(nh *netlink.Handle) error {
		for _, h := range t.Lab.Hosts {
			port, err := nh.LinkByName("p-" + h.Name)
			if err != nil {
				return err
			}
			err = errors.Join(nh.LinkSetLearning(port, false), nh.NeighSet(&netlink.Neigh{
				LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, State: unix.NUD_NOARP, Flags: unix.NTF_MASTER,
				HardwareAddr: net.HardwareAddr(h.MAC[:]),
			}))
			if err != nil {
				return fmt.Errorf("port of %s: %w", h.Name, err)
			}
		}
		return nil
	}))
}

func (t *Topology) configure(host string) error {
	return t.netlink(t.Lab.Host(host).NS, func(nh *netlink.Handle) error {
		if err := patientMulticast(nh); err != nil || t.Profile.Before == nil {
			return err
		}
		return t.Profile.Before(t, host, nh)
	})
}

// open puts a socket at each point.
func (t *Topology) open() error {
	add := func(ns testenv.NS, dev string, at Point, outgoing bool) error {
		p, err := openTap(ns, dev, at, outgoing)
		if err != nil {
			return err
		}
		t.taps = append(t.taps, p)
		fd, err := openPacket(ns, dev, 0)
		if err != nil {
			return err
		}
		t.in[at] = fd
		return nil
	}
	for _, h := range t.Lab.Hosts {
		if err := add(h.NS, underlayDev, Point{h.Name, underlayDev}, !h.Stranger); err != nil {
			return err
		}
		if h.Stranger {
			continue
		}
		if err := add(h.NS, bridgeDev, Point{h.Name, bridgeDev}, false); err != nil {
			return err
		}
		for _, c := range h.Containers {
			if err := add(c.NS, "eth0", Point{h.Name, c.Name}, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close takes the lab down.
func (t *Topology) Close() error {
	for _, p := range t.taps {
		unix.Close(p.fd)
	}
	for _, fd := range t.in {
		unix.Close(fd)
	}
	for _, fd := range t.forget {
		unix.Close(fd)
	}
	t.taps, t.in, t.forget = nil, nil, nil
	return t.Lab.Down()
}

// openForget opens what forgetRoutes writes to.
func (t *Topology) openForget() error {
	for _, h := range Hosts {
		err := t.Lab.Host(h).NS.Do(func() error {
			fd, err := unix.Open("/proc/sys/net/ipv4/route/flush", unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				t.forget = append(t.forget, fd)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("open the routes of %s: %w", h, err)
		}
	}
	return nil
}

// forgetRoutes makes the hosts look up every route anew. See Avoided.
func (t *Topology) forgetRoutes() error {
	for _, fd := range t.forget {
		if _, err := unix.Pwrite(fd, []byte("1"), 0); err != nil {
			return fmt.Errorf("flush cached routes: %w", err)
		}
	}
	return nil
}

// pin keeps the calling goroutine on one CPU, so that one frame is through
// with before the next is sent. unpin lets it go.
func pin() (unpin func(), err error) {
	runtime.LockOSThread()
	var old, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		return nil, err
	}
	for cpu := range 1024 {
		if old.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, err
	}
	return func() {
		if unix.SchedSetaffinity(0, &old) == nil {
			runtime.UnlockOSThread()
		}
	}, nil
}

// Run sends a batch and returns what came out, once it is all there.
func (t *Topology) Run(ctx context.Context, steps []Step) (Run, error) {
	unpin, err := pin()
	if err != nil {
		return Run{}, err
	}
	defer unpin()
	r := Run{Started: make([]time.Time, 0, len(steps)), Errors: make([]error, len(steps))}
	var seen []Sighting
	for i, s := range steps {
		if err := t.forgetRoutes(); err != nil {
			return r, err
		}
		r.Started = append(r.Started, now())
		r.Errors[i] = inject(t.in[s.At], s.Hdr, s.Frame)
		if i%64 == 63 {
			if seen, err = t.drain(seen); err != nil {
				return r, err
			}
		}
	}
	if seen, err = t.settle(ctx, seen); err != nil {
		return r, err
	}
	for _, s := range seen {
		if t.background(s) {
			continue
		}
		r.Frames = append(r.Frames, Normalise(s)...)
	}
	return r, nil
}

// now is the clock that the kernel stamps frames with.
func now() time.Time {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME, &ts) != nil {
		return time.Time{}
	}
	return time.Unix(ts.Unix())
}

func (t *Topology) drain(seen []Sighting) ([]Sighting, error) {
	var err error
	for _, p := range t.taps {
		if seen, err = p.drain(seen); err != nil {
			return seen, err
		}
	}
	return seen, nil
}

// settle sends a broadcast from every container and every host, and waits until
// these markers are where the first ones were, and nothing else comes.
func (t *Topology) settle(ctx context.Context, seen []Sighting) ([]Sighting, error) {
	t.markers++
	var err error
	if seen, err = t.drain(seen); err != nil {
		return seen, err
	}
	mark := len(seen)
	for _, h := range t.Lab.Hosts {
		if h.Stranger {
			continue
		}
		for dev := range perHost + 1 {
			at := Point{h.Name, bridgeDev}
			if dev > 0 {
				at.Dev = h.Containers[dev-1].Name
			}
			mac := markerMAC(h.Name, dev)
			frame := slices.Concat(bytes.Repeat([]byte{0xff}, 6), mac[:], []byte{typeProbe >> 8, typeProbe & 0xff},
				[]byte(fmt.Sprintf("marker %d of %s", t.markers, at)))
			frame = append(frame, make([]byte, max(0, 60-len(frame)))...)
			if err := inject(t.in[at], VNetHdr{}, frame); err != nil {
				return seen, fmt.Errorf("send marker at %s: %w", at, err)
			}
		}
	}
	suffix := fmt.Sprintf("marker %d of ", t.markers)
	reached := map[string]bool{}
	deadline := time.Now().Add(5 * time.Second)
	for quiet := 0; ; {
		before := len(seen)
		if seen, err = t.drain(seen); err != nil {
			return seen, err
		}
		for _, s := range seen[mark:] {
			if i := bytes.Index(s.Data, []byte(suffix)); i >= 0 {
				from, _, _ := strings.Cut(string(s.Data[i+len(suffix):]), "\x00")
				reached[fmt.Sprintf("%s at %s %v", from, s.At, s.Out)] = true
			}
		}
		mark = len(seen)
		if len(seen) != before {
			quiet = 0
			continue
		}
		quiet++
		// The first time nobody knows where they go: wait for longer.
		if t.reached == nil && quiet > 50 || t.reached != nil && len(reached) >= len(t.reached) && quiet > 1 {
			break
		}
		if time.Now().After(deadline) {
			var missing []string
			for m := range t.reached {
				if !reached[m] {
					missing = append(missing, m)
				}
			}
			return seen, fmt.Errorf("%s: markers did not come out: %v", t.Lab.Name, missing)
		}
		select {
		case <-ctx.Done():
			return seen, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	if t.reached == nil {
		t.reached = reached
	}
	return seen, nil
}

// background is what the hosts say to each other about the underlay itself, or
// at times of their own choice.
func (t *Topology) background(s Sighting) bool {
	b := s.Data
	if len(b) < 42 {
		return false
	}
	if ls, _, _, _ := walk(b, -1); s.At.underlay() && len(ls) > 1 && ls[1].kind == 'u' {
		return t.background(Sighting{At: Point{Dev: "inside"}, Data: b[ls[1].off+udpHdr+vxlanHdr:]})
	}
	src := fdb.MAC(b[6:12])
	i := slices.IndexFunc(t.Lab.Hosts, func(h *testenv.Host) bool { return h.MAC == src })
	switch typ := be.Uint16(b[12:]); {
	case i >= 0 && typ == 0x0806 && s.At.underlay():
		a, _ := netip.AddrFromSlice(b[28:32])
		return a == t.Lab.Hosts[i].Address
	case typ == typeIPv4 && b[23] == 2 && bytes.Contains(b[30:], []byte{224, 0, 0, 106}):
		// Bridges are in the group of all snooping routers, and say so when they come up and when they are asked.
		return true
	case i >= 0 && s.At.underlay() && typ == typeIPv4 && b[23] == 2:
		// A host joins the group of a network.
		a, _ := netip.AddrFromSlice(b[26:30])
		return a == t.Lab.Hosts[i].Address
	case i >= 0 && typ == typeIPv6 && s.At.underlay() && len(b) > 54:
		a, _ := netip.AddrFromSlice(b[22:38])
		proto, l4 := b[20], 54
		if proto == 0 && len(b) > 62 { // MLD has a router alert
			proto, l4 = b[54], 62
		}
		return proto == protoICMP6 && len(b) > l4 && b[l4] >= 130 && (b[l4] <= 136 || b[l4] == 143) && (a == t.Lab.Hosts[i].Address || a.IsLinkLocalUnicast() || a.IsUnspecified())
	}
	return false
}

// FDB lists what a host's bridge and vxlan device know, as `bridge fdb show` does.
func (t *Topology) FDB(host string) (lines []string, err error) {
	err = t.netlink(t.Lab.Host(host).NS, func(nh *netlink.Handle) error {
		links, err := nh.LinkList()
		if err != nil {
			return err
		}
		name := map[int]string{0: "-"}
		for _, l := range links {
			name[l.Attrs().Index] = l.Attrs().Name
		}
		ns, err := nh.NeighList(0, unix.AF_BRIDGE)
		if err != nil {
			return err
		}
		for _, n := range ns {
			if name[n.LinkIndex] == underlayDev {
				continue
			}
			line := fmt.Sprintf("%s: %s dev %s master %s dst %v state %#x flags %#x vlan %d",
				host, n.HardwareAddr, name[n.LinkIndex], name[n.MasterIndex], n.IP, n.State, n.Flags, n.Vlan)
			lines = append(lines, line)
		}
		return nil
	})
	slices.Sort(lines)
	return lines, err
}

// FDBs is FDB of all hosts.
func (t *Topology) FDBs() ([]string, error) {
	var all []string
	for _, h := range Hosts {
		lines, err := t.FDB(h)
		if err != nil {
			return nil, err
		}
		all = append(all, lines...)
	}
	return all, nil
}

// Reached is where markers came out.
func (t *Topology) Reached() []string {
	var out []string
	for m := range t.reached {
		out = append(out, m)
	}
	slices.Sort(out)
	return out
}
