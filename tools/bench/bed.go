// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// bedKind is what joins the containers of a bed.
type bedKind struct {
	datapath, sides string
	// checked: kernel vxlan behind vxbpf's source check. Without it nothing of
	// vxbpf is in the kernel's way; the fast paths always check.
	checked bool
}

var (
	bareBed    = bedKind{datapath: Bare, sides: Both}
	kernelBed  = bedKind{datapath: Kernel, sides: Both}
	checkedBed = bedKind{datapath: Kernel, sides: Both, checked: true}
	tcBed      = bedKind{datapath: TC, sides: Both}
	tcOneBed   = bedKind{datapath: TC, sides: One}
	xdpBed     = bedKind{datapath: XDP, sides: Both}
	// genBed has no overlay: what the injector costs by itself.
	genBed = bedKind{datapath: "generator"}
)

func (k bedKind) String() string {
	switch {
	case k.datapath == TC || k.datapath == XDP:
		return k.datapath + " " + k.sides
	case k.checked:
		return k.datapath + " checked"
	}
	return k.datapath
}

// The networks of a bed: socket workloads run on the first, many_flows on all.
const (
	bedNetworks = 4
	bedVNI      = 236
	bedNetwork  = "mgmt"
	underlayDev = "eth2"
	overhead    = 50 // bytes of encapsulation over IPv4 (RFC 7348)
)

// bed is two hosts with one kind of datapath between their containers:
//
//	container a/mgmt-1 ── host a ── eth2 ── veth ── eth2 ── host b ── container b/mgmt-1
//
// Beds of all kinds stand side by side, each a lab of its own, so that rounds
// can be interleaved without building anything in between.
type bed struct {
	bedKind
	mtu  int
	lab  *testenv.Lab
	a, b Endpoint // of the first network's containers
	fast []*fastHost
	// guards are the hosts of a checked bed, whose maps count strangers.
	guards []*fastHost

	daemons [2]*testenv.Daemon // by host, nil without vxbpf

	undo    []func() error
	ping    *pinger
	sniff   *counterProg
	trained bool // many_flows' addresses are known
}

// fastHost is a host whose data path is vxbpf's.
type fastHost struct {
	*testenv.Host
	pins  string
	ids   map[string]fdb.NetID // by network
	maps  *maps.Set
	close func() error
}

func bedSpec(name string, mtu int) testenv.Spec {
	s := testenv.Spec{
		Name:       name,
		Underlay:   testenv.Underlay{Kind: testenv.P2P, Device: underlayDev, MTU: mtu},
		Hosts:      []testenv.HostSpec{{Name: "a", Datapath: testenv.None}, {Name: "b", Datapath: testenv.None}},
		Containers: 1,
	}
	for i := range bedNetworks {
		n := bedNetwork
		if i > 0 {
			n = "net" + strconv.Itoa(i+1)
		}
		s.Networks = append(s.Networks, testenv.Network{Name: n, VNI: fdb.VNI(bedVNI + i),
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 29, byte(bedVNI + i), 0}), 24)})
	}
	return s
}

// bedOptions of newBed.
type bedOptions struct {
	prefix string // of the lab's name
	binary string
	log    *slog.Logger
	// actual is what the bed is, if not what it says: for the tests of the self-checks.
	actual *bedKind
}

func newBed(ctx context.Context, kind bedKind, mtu int, o bedOptions) (_ *bed, err error) {
	name := o.prefix + strings.ReplaceAll(kind.String(), " ", "-") + "-" + strconv.Itoa(mtu)
	l, err := testenv.Up(ctx, bedSpec(name, mtu), testenv.Options{Log: o.log})
	if err != nil {
		return nil, err
	}
	b := &bed{bedKind: kind, mtu: mtu, lab: l}
	if o.actual != nil {
		b.bedKind = *o.actual
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("build the %s topology: %w", kind, errors.Join(err, b.down()))
		}
	}()
	for i, e := range []*Endpoint{&b.a, &b.b} {
		c := l.Hosts[i].Containers[0]
		*e = Endpoint{NS: c.NS, Addr: c.Addr.Addr().As4()}
	}
	for _, h := range l.Hosts {
		for _, c := range h.Containers {
			// Each connection of tcp_crr would else leave a socket that waits for a minute.
			if err := c.NS.Sysctl("net.ipv4.tcp_max_tw_buckets", "1"); err != nil {
				return b, err
			}
		}
	}
	switch b.datapath {
	case Bare:
		for _, h := range l.Hosts {
			if _, err := l.Bare(ctx, h.Name, bedNetwork); err != nil {
				return b, err
			}
		}
	case Kernel, TC, XDP:
		if err := b.load(ctx, o.binary); err != nil {
			return b, err
		}
	}
	b.bedKind = kind
	if b.datapath == genBed.datapath {
		return b, nil
	}
	if err := b.openFast(); err != nil {
		return b, err
	}
	if b.ping, err = newPinger(b.a, b.b); err != nil {
		return b, err
	}
	if b.sniff, err = newSniffer(); err != nil {
		return b, err
	}
	return b, b.settle(ctx)
}

// load runs `vxbpf load` on both hosts, kernel vxlan included: the same config
// but for the datapath.
func (b *bed) load(ctx context.Context, binary string) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, h := range b.lab.Hosts {
		datapath := b.datapath
		if b.sides == One && i == 1 {
			datapath = Kernel
		}
		g.Go(func() error {
			d, err := h.Start(ctx, testenv.StartOptions{Binary: binary, Config: b.config(h, datapath), Args: []string{"--log-level", "warn"}})
			if err != nil {
				return err
			}
			b.daemons[i] = d
			if err := b.lab.AttachContainers(ctx, h.Name); err != nil {
				return err
			}
			if datapath == Kernel && !b.checked {
				return b.strip(i)
			}
			return nil
		})
	}
	return g.Wait()
}

// strip leaves of vxbpf on a host only the kernel's own links: neither a program
// of the source check before kernel vxlan, nor a daemon that hears what it learns.
func (b *bed) strip(i int) error {
	h := b.host(i)
	st, err := loader.ReadState(filepath.Join(loader.DefaultRunDir, h.Instance()))
	if err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	err = b.daemons[i].Kill()
	b.daemons[i] = nil
	if err != nil || st.Pins == "" {
		return err
	}
	if err := os.RemoveAll(filepath.Join(filepath.Dir(st.Pins), "links")); err != nil {
		return fmt.Errorf("take the programs off host %s: %w", h.Name, err)
	}
	return nil
}

// openFast opens the maps of the hosts that should be accelerated: to claim a
// datapath that is not there is an error here already.
func (b *bed) openFast() error {
	for i, h := range b.lab.Hosts {
		fast := (b.datapath == TC || b.datapath == XDP) && (b.sides == Both || i == 0)
		if !fast && !b.checked {
			continue
		}
		f, err := openHost(h, fast)
		if err != nil {
			return err
		}
		if fast {
			b.fast = append(b.fast, f)
		} else {
			b.guards = append(b.guards, f)
		}
	}
	return nil
}

// ageing is long, so that no entry grows old in the course of a run, and no
// packet has to show the kernel that a MAC address is still in use. At the
// default of 300 s that is one packet of each address every 75 s.
const ageing = "1h"

func (b *bed) config(h *testenv.Host, datapath string) []byte {
	var c bytes.Buffer
	sources := ""
	if datapath == Kernel && !b.checked {
		// What vxbpf is compared with: the kernel's own way, without our source check in front.
		sources = ", allowed_sources: any"
	}
	fmt.Fprintf(&c, "underlay: {device: %s, ttl: 5%s}\ndatapath: %s\nnetworks:\n", underlayDev, sources, datapath)
	for _, n := range b.lab.Spec.Networks {
		fmt.Fprintf(&c, "  - {name: %s, vni: %d, bridge: %s, mtu: %d, ageing: %s, remotes: [", n.Name, n.VNI, n.Bridge, n.MTU, ageing)
		for _, r := range b.lab.Hosts {
			if r.Name != h.Name {
				fmt.Fprintf(&c, "%q", r.Address)
			}
		}
		fmt.Fprintln(&c, "]}")
	}
	return c.Bytes()
}

// openHost opens the maps of a host; with fast it must be on BPF.
func openHost(h *testenv.Host, fast bool) (*fastHost, error) {
	st, err := loader.ReadState(filepath.Join(loader.DefaultRunDir, h.Instance()))
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	// Pins are no sign of it: the source check of datapath: kernel has some too.
	for _, n := range st.Networks {
		if fast && n.Mode == config.Kernel {
			return nil, fmt.Errorf("host %s: vxbpf is on kernel vxlan, not on BPF: %s", h.Name, cmp.Or(n.Reason, st.Reason, "as configured"))
		}
	}
	f := &fastHost{Host: h, pins: st.Pins, ids: map[string]fdb.NetID{}}
	for _, n := range st.Networks {
		f.ids[n.Name] = n.ID
	}
	if f.maps, f.close, err = maps.OpenPinned(st.Pins); err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return f, nil
}

// settle sends until the path carries packets as it should: addresses learnt,
// and on vxbpf's hosts on the fast path.
func (b *bed) settle(ctx context.Context) error {
	end := time.Now().Add(10 * time.Second)
	for {
		before, err := b.counts()
		if err != nil {
			return err
		}
		lost, err := b.ping.exchange(20)
		if err != nil {
			return err
		}
		after, err := b.counts()
		if err != nil {
			return err
		}
		share := after.less(before).share()
		if lost == 0 && (share == nil || *share == 1) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(end) {
			if lost > 0 {
				return fmt.Errorf("no path: %d of 20 packets lost", lost)
			}
			return nil // the rounds will say how much is fast
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (b *bed) down() error {
	var errs []error
	for i := len(b.undo) - 1; i >= 0; i-- {
		errs = append(errs, b.undo[i]())
	}
	b.undo = nil
	if b.ping != nil {
		b.ping.close()
	}
	if b.sniff != nil {
		errs = append(errs, b.sniff.close())
	}
	for _, f := range slices.Concat(b.fast, b.guards) {
		errs = append(errs, f.close())
	}
	return errors.Join(append(errs, b.lab.Down())...)
}

// host a or b.
func (b *bed) host(i int) *testenv.Host { return b.lab.Hosts[i] }

// counts is vxbpf's counters on the accelerated hosts, all networks together.
func (b *bed) counts() (fastCounts, error) {
	c := fastCounts{hosts: len(b.fast)}
	for _, f := range b.fast {
		for _, id := range f.ids {
			n, err := f.maps.Counters.Read(id)
			if err != nil {
				return c, fmt.Errorf("host %s: %w", f.Name, err)
			}
			fast, total := n.Sent()
			c.fast, c.total = c.fast+fast.Packets, c.total+total.Packets
			fast, total = n.Received()
			c.fast, c.total = c.fast+fast.Packets, c.total+total.Packets
			c.dropped += n[bpf.HookEncap][bpf.DropBroken].Packets + n[bpf.HookDecap][bpf.DropBroken].Packets
		}
	}
	return c, nil
}

// fastCounts sums packets sent and received on the accelerated hosts.
type fastCounts struct {
	hosts                int
	fast, total, dropped uint64
}

func (c fastCounts) less(o fastCounts) fastCounts {
	return fastCounts{c.hosts, c.fast - o.fast, c.total - o.total, c.dropped - o.dropped}
}

// share of the packets that BPF carried; nil where no host is accelerated.
func (c fastCounts) share() *float64 {
	if c.hosts == 0 {
		return nil
	}
	s := 0.0
	if c.total > 0 {
		s = float64(c.fast) / float64(c.total)
	}
	return &s
}

// tally is all counters that a round is judged by.
type tally struct {
	vx    fastCounts
	drops map[string]uint64 // by host or container and device
	rx    uint64            // packets that host b's eth2 received
	bytes uint64            // of them, Ethernet headers included
}

func (b *bed) tally() (tally, error) {
	t := tally{drops: map[string]uint64{}}
	var err error
	if t.vx, err = b.counts(); err != nil {
		return t, err
	}
	for _, h := range b.lab.Hosts {
		spaces := []testenv.NS{h.NS, h.Containers[0].NS}
		for _, ns := range spaces {
			devs, err := readDevices(ns)
			if err != nil {
				return t, err
			}
			for name, d := range devs {
				t.drops[ns.Name()+" "+name] = d.dropped
				if h == b.host(1) && ns == h.NS && name == underlayDev {
					t.rx, t.bytes = d.rx, d.bytes
				}
			}
		}
	}
	return t, nil
}

// dropsSince lists the devices that dropped, and how many in all.
func (t tally) dropsSince(o tally) (n uint64, where []string) {
	for k, v := range t.drops {
		if d := v - o.drops[k]; d > 0 {
			n += d
			where = append(where, fmt.Sprintf("%s dropped %d", k, d))
		}
	}
	return n, where
}

type device struct{ bytes, rx, dropped uint64 }

// readDevices reads /proc/net/dev of a namespace.
func readDevices(ns testenv.NS) (map[string]device, error) {
	var b []byte
	err := ns.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read device counters of %s: %w", ns.Name(), err)
	}
	out := map[string]device{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(rest)
		if !ok || len(f) < 16 || strings.TrimSpace(name) == "lo" {
			continue
		}
		num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
		out[strings.TrimSpace(name)] = device{bytes: num(0), rx: num(1), dropped: num(3) + num(11)}
	}
	return out, sc.Err()
}

// ifindex of a link in a namespace.
func ifindex(ns testenv.NS, name string) (index int, err error) {
	err = ns.Do(func() error {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", name, ns.Name(), err)
		}
		index = ifi.Index
		return nil
	})
	return index, err
}

// pinger exchanges single datagrams between the containers, outside of what is
// measured: to learn addresses, and to look at the path.
type pinger struct{ a, b int }

func newPinger(a, b Endpoint) (*pinger, error) {
	fa, fb, err := udpPair(a, b, 7)
	if err != nil {
		return nil, err
	}
	p := &pinger{fa, fb}
	tv := unix.NsecToTimeval(int64(200 * time.Millisecond))
	for _, fd := range []int{fa, fb} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			p.close()
			return nil, fmt.Errorf("set receive timeout: %w", err)
		}
	}
	return p, nil
}

func (p *pinger) close() {
	unix.Close(p.a)
	unix.Close(p.b)
}

// exchange sends n requests and their answers, one after the other.
func (p *pinger) exchange(n int) (lost int, err error) {
	buf := make([]byte, 64)
	for range n {
		for _, d := range [][2]int{{p.a, p.b}, {p.b, p.a}} {
			if _, err := unix.Write(d[0], buf); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return lost, fmt.Errorf("send: %w", err)
			}
			if _, err := readRetry(d[1], buf); err != nil {
				lost++
				break
			}
		}
		if lost > 3 {
			return n, nil
		}
	}
	return lost, nil
}

func readRetry(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
