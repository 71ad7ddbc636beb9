// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	bits "encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader"
	vxmaps "github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// What people do to bridges, with the kernel as the oracle: the same lab stands
// twice, once with the kernel's VXLAN driver alone and once with vxbpf on the
// same hosts. Both see the same commands and the same frames, and must answer
// with the same frames at the same places and the same forwarding entries.
//
//	h1  a1 = mgmt-1 -- v-mgmt-1 ┐                              ┌ v-mgmt-1 -- mgmt-1 = b1  h2
//	    a2 = mgmt-2 -- v-mgmt-2 ┼ br-mgmt -- eth2 == eth2 -- br-mgmt
//	                      A = ──┘                              └── = B
//
// A and B are the hosts themselves, at br-mgmt. Nobody says anything unasked:
// there is no IPv6, and the frames are for addresses that nobody answers for.

// twin is one lab built twice.
type twin struct {
	t             *testing.T
	kernel, vxbpf lab
	daemons       map[string]*testenv.Daemon
}

// lab is an overlay with eyes everywhere.
type lab struct {
	overlay
	eyes map[string]*eye
	macs map[string]fdb.MAC // of bridges, by host
}

// eye sees and sends at a link; one with another ifindex than the link's is blind.
type eye struct {
	ifindex int
	rec     *testenv.Recorder
	conn    *testenv.PacketConn
}

// node is a place where frames start and end.
type node struct {
	name string
	ns   testenv.NS
	dev  string
	mac  fdb.MAC
}

// newTwin builds both labs and starts vxbpf in one. config has words of all
// hosts' configs and what stands for them.
func newTwin(t *testing.T, spec testenv.Spec, config ...string) *twin {
	t.Helper()
	tw := buildTwin(t, spec, func(l lab, h *testenv.Host) []byte {
		c := string(h.Config(l.Spec))
		if len(config) > 0 && !strings.Contains(c, config[0]) {
			t.Fatalf("no %q in the config\n%s", config[0], c)
		}
		return []byte(strings.NewReplacer(config...).Replace(c))
	})
	if len(config) == 0 { // else it may be that not all can be learned
		tw.settle()
	}
	return tw
}

// buildTwin is newTwin with a config for each host, made when all hosts stand.
func buildTwin(t *testing.T, spec testenv.Spec, config func(lab, *testenv.Host) []byte) *twin {
	t.Helper()
	tw := &twin{t: t, daemons: map[string]*testenv.Daemon{}}
	for i, l := range []*lab{&tw.kernel, &tw.vxbpf} {
		s := spec
		s.Hosts = slices.Clone(spec.Hosts)
		s.Underlay.Config = "allowed_sources: any" // the kernel believes strangers too
		for j := range s.Hosts {
			s.Hosts[j].KernelVXLAN = i == 0 && !s.Hosts[j].Stranger
		}
		*l = lab{newOverlay(t, s, false), map[string]*eye{}, map[string]fdb.MAC{}}
		for _, h := range l.Hosts {
			for _, ns := range append([]testenv.NS{h.NS}, namespaces(h)...) {
				l.must(ns.Sysctl("net.ipv6.conf.all.disable_ipv6", "1"), ns.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"))
			}
			if h.Stranger {
				continue
			}
			if c := config(*l, h); i == 1 {
				// What a test changes by hand in both labs is to stay changed in both.
				d, err := h.Start(l.ctx, testenv.StartOptions{Binary: l.bin, Config: c, Args: []string{"--repair=false"}})
				l.must(err, l.AttachContainers(l.ctx, h.Name))
				tw.daemons[h.Name] = d
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("log of %s:\n%s", h.Name, d.Log())
					}
				})
			}
			l.setMAC(h.Name, fdb.MAC{0x02, 0xb0, 0, 0, 0xaa, h.Name[1]})
			// A bridge's MTU follows its ports until somebody changes it, and bridge netfilter fragments to it: the same on both.
			l.sh(h.Name, "ip link set br-mgmt mtu 1440", "ip link set br-mgmt mtu 1450")
			// Before IPv6 was off, something may have been said and learned.
			l.sh(h.Name, "ip link set encap-mgmt down", "ip link set encap-mgmt up", "ip link set br-mgmt type bridge fdb_flush")
		}
	}
	return tw
}

func namespaces(h *testenv.Host) (out []testenv.NS) {
	for _, c := range h.Containers {
		out = append(out, c.NS)
	}
	return out
}

// setMAC is what the bridge of a host answers to.
func (l lab) setMAC(host string, mac fdb.MAC) {
	l.t.Helper()
	l.sh(host, "ip link set br-mgmt address "+mac.String())
	l.macs[host] = mac
}

// sh runs commands of iproute2 in a host's namespace.
func (l lab) sh(host string, commands ...string) {
	l.t.Helper()
	for _, c := range commands {
		f := strings.Fields(c)
		if out, err := l.Host(host).NS.Command(l.ctx, f[0], f[1:]...).CombinedOutput(); err != nil {
			l.t.Fatalf("on %s: %s: %v\n%s", host, c, err, out)
		}
	}
}

// both runs commands in both labs.
func (tw *twin) both(host string, commands ...string) {
	tw.t.Helper()
	tw.kernel.sh(host, commands...)
	tw.vxbpf.sh(host, commands...)
}

// nodes by name: a1, a2, A of h1, b1 ... of h2, and so on.
func (l lab) nodes() map[string]node {
	out := map[string]node{}
	for i, h := range l.Hosts {
		if h.Stranger {
			continue
		}
		for j, c := range h.Containers {
			name := fmt.Sprintf("%c%d", 'a'+i, j+1)
			out[name] = node{name, c.NS, "eth0", c.MAC}
		}
		name := string(rune('A' + i))
		out[name] = node{name, h.NS, "br-mgmt", l.macs[h.Name]}
	}
	return out
}

// mark is in every frame of these tests, followed by a number.
var mark = []byte("vxbpf-probe:")

// probe is a frame to be sent. Its number is at the end of its mark.
type probe struct {
	name  string
	from  string
	frame []byte
	skip  int // bytes of an outer header that it brings along
}

// ether is a frame without the number. The IPv4 addresses are nobody's.
func ether(dst, src fdb.MAC, proto uint16, size int) []byte {
	b := bits.BigEndian.AppendUint16(slices.Concat(dst[:], src[:]), proto)
	body := append(slices.Clone(mark), make([]byte, 8)...)
	body = append(body, make([]byte, max(0, size-len(body)))...)
	switch proto {
	case 0x0800:
		ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 198, 18, 0, src[5], 198, 18, 1, dst[5]}
		bits.BigEndian.PutUint16(ip[2:], uint16(28+len(body)))
		bits.BigEndian.PutUint16(ip[10:], ^uint16(onesSum(ip)))
		udp := []byte{0x80, src[5], 0x90, dst[5], 0, 0, 0, 0} // no checksum
		bits.BigEndian.PutUint16(udp[4:], uint16(8+len(body)))
		return slices.Concat(b, ip, udp, body)
	case 0x86dd:
		ip := append([]byte{0x60, 0, 0, 0, 0, 0, 59, 64}, make([]byte, 32)...) // no next header
		bits.BigEndian.PutUint16(ip[4:], uint16(len(body)))
		ip[8], ip[9], ip[23], ip[24], ip[25], ip[39] = 0x20, 0x01, src[5], 0x20, 0x01, dst[5]
		return slices.Concat(b, ip, body)
	}
	return append(b, body...)
}

// Destinations of a probe that are no node's.
var (
	broadcast = fdb.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	multicast = fdb.MAC{0x01, 0x00, 0x5e, 0x01, 0x02, 0x03}
	nobody    = fdb.MAC{0x02, 0xde, 0xad, 0, 0, 1}
	spanTree  = fdb.MAC{0x01, 0x80, 0xc2, 0, 0, 0x00}
	pause     = fdb.MAC{0x01, 0x80, 0xc2, 0, 0, 0x01}
	lldp      = fdb.MAC{0x01, 0x80, 0xc2, 0, 0, 0x0e}
)

// probes is every kind of frame from every node to every other.
func (l lab) probes() (out []probe) {
	nodes := l.nodes()
	names := slices.Sorted(maps.Keys(nodes))
	for _, from := range names {
		src := nodes[from].mac
		add := func(what string, dst fdb.MAC, proto uint16, size int) {
			out = append(out, probe{name: from + " to " + what, from: from, frame: ether(dst, src, proto, size)})
		}
		for _, to := range names {
			if to != from {
				add(to, nodes[to].mac, 0x0800, 100)
			}
		}
		if len(from) == 2 && from[1] == '1' { // the first container of each host
			for _, to := range names {
				if to != from {
					add(to+", ipv6", nodes[to].mac, 0x86dd, 100)
					add(to+", not ip", nodes[to].mac, 0x88b5, 100)
					add(to+", 1400 bytes", nodes[to].mac, 0x0800, 1372)
					add(to+", 1450 bytes", nodes[to].mac, 0x0800, 1422)
				}
			}
			add("spanning tree", spanTree, 60, 60)
			add("pause", pause, 0x8808, 60)
			add("lldp", lldp, 0x88cc, 60)
		}
		add("broadcast", broadcast, 0x0800, 100)
		add("multicast", multicast, 0x0800, 100)
		add("nobody", nobody, 0x0800, 100)
	}
	return out
}

// look has a recorder and a sender on each node's link and a recorder on the
// underlay of all hosts. A link that was made anew gets new ones.
func (l lab) look() {
	l.t.Helper()
	known := map[testenv.NS]map[string]int{}
	index := func(ns testenv.NS, dev string) int {
		if known[ns] == nil {
			known[ns] = map[string]int{}
			l.must(ns.Do(func() error {
				names, err := links()
				for i, name := range names {
					known[ns][name] = i
				}
				return err
			}))
		}
		return known[ns][dev]
	}
	open := func(name string, ns testenv.NS, dev string) {
		if l.eyes[name] != nil && dev == "eth0" {
			return // containers keep theirs
		}
		i := index(ns, dev)
		if i == 0 || l.eyes[name] != nil && l.eyes[name].ifindex == i {
			return
		}
		r, err := testenv.Capture(l.ctx, ns, dev, func(b []byte) bool { return bytes.Contains(b, mark) })
		l.must(err)
		c, err := testenv.PacketSocket(ns, dev)
		l.must(err)
		l.t.Cleanup(func() { c.Close() })
		l.eyes[name] = &eye{i, r, c}
	}
	for name, n := range l.nodes() {
		open(name, n.ns, n.dev)
	}
	for _, h := range l.Hosts {
		open("wire "+h.Name, h.NS, l.Spec.Underlay.Device)
	}
}

// send sends a frame with a number from a node, or from "wire h1" and the like.
func (l lab) send(from string, frame []byte, number uint64) {
	l.t.Helper()
	if l.eyes[from] == nil {
		l.look()
	}
	f := slices.Clone(frame)
	if i := bytes.Index(f, mark); i >= 0 {
		bits.BigEndian.PutUint64(f[i+len(mark):], number)
	}
	_ = l.eyes[from].conn.Send(f) // a link that is down or gone sends nothing, in both labs
}

// numbers of probes, for all labs of this process.
var numbers = make(chan uint64)

func init() {
	go func() {
		for n := uint64(1); ; n++ {
			numbers <- n
		}
	}()
}

// numberOf finds a probe's number.
func numberOf(b []byte) uint64 {
	if i := bytes.Index(b, mark); i >= 0 && len(b) >= i+len(mark)+8 {
		return bits.BigEndian.Uint64(b[i+len(mark):])
	}
	return 0
}

// seen sends probes one after the other and tells where each came out, unchanged
// or not, and between which VTEPs it travelled.
func (l lab) seen(probes []probe) map[string]string {
	l.t.Helper()
	l.look()
	from := map[string]int{}
	for name, e := range l.eyes {
		from[name] = len(e.rec.Frames())
	}
	byNumber := map[uint64]probe{}
	for _, p := range probes {
		n := <-numbers
		byNumber[n] = p
		l.send(p.from, p.frame, n)
	}
	l.quiet()
	places := map[string][]string{}
	for name, e := range l.eyes {
		for _, f := range e.rec.Frames()[from[name]:] {
			number := numberOf(f.Data)
			p, ok := byNumber[number]
			if !ok {
				continue
			}
			place, inner := name, f.Data
			if strings.HasPrefix(name, "wire") {
				if !f.Outgoing || f.Data[23] == 1 { // ICMP "port unreachable" comes as often as the rate limit allows
					continue
				}
				o, err := decodeOuter(f.Data)
				if err != nil {
					l.t.Errorf("%s: %v", name, err)
				}
				place, inner = fmt.Sprintf("%s>%s vni %s port %d", o.src, o.dst, o.vni, o.dport), o.inner
			} else if f.Outgoing {
				continue
			}
			want := slices.Clone(p.frame[p.skip:])
			bits.BigEndian.PutUint64(want[bytes.Index(want, mark)+len(mark):], number)
			if !bytes.Equal(inner, want) {
				place += fmt.Sprintf(" altered (%d bytes of %d)", len(inner), len(want))
			}
			places[p.name] = append(places[p.name], place)
		}
	}
	out := map[string]string{}
	for name, at := range places {
		slices.Sort(at)
		out[name] = strings.Join(at, ", ")
	}
	return out
}

// quiet waits until no more probes arrive.
func (l lab) quiet() {
	count := func() (n int) {
		for _, e := range l.eyes {
			n += len(e.rec.Frames())
		}
		return n
	}
	last := count()
	for still := 0; still < 3; {
		time.Sleep(5 * time.Millisecond)
		if n := count(); n == last {
			still++
		} else {
			last, still = n, 0
		}
	}
}

// fdb is what `bridge fdb show` says of the nodes' MACs and others of ours. The
// bridge's addresses and those of its ports are left out: vxbpf chooses some.
func (l lab) fdb(host string) []string {
	l.t.Helper()
	want := map[string]bool{}
	for _, n := range l.nodes() {
		want[n.mac.String()] = true
	}
	want[nobody.String()], want[roamer.String()] = true, true
	out, err := l.Host(host).NS.Command(l.ctx, "bridge", "fdb", "show").CombinedOutput()
	if err != nil {
		l.t.Fatalf("bridge fdb show on %s: %v\n%s", host, err, out)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		mac, _, _ := strings.Cut(line, " ")
		if want[mac] {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	slices.Sort(lines)
	return lines
}

// differ lists what two maps do not agree on.
func differ(kernel, vxbpf map[string]string) (out []string) {
	keys := maps.Clone(kernel)
	maps.Copy(keys, vxbpf)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if kernel[k] != vxbpf[k] {
			out = append(out, fmt.Sprintf("%s:\n\tkernel %s\n\tvxbpf  %s", k, orNowhere(kernel[k]), orNowhere(vxbpf[k])))
		}
	}
	return out
}

func orNowhere(s string) string {
	if s == "" {
		return "nowhere"
	}
	return s
}

// same sends all probes in both labs and compares what comes out, then the
// forwarding entries. A frame may be late on a busy machine: a difference counts
// when it stays.
func (tw *twin) same(when string) {
	tw.t.Helper()
	tw.sameProbes(when, lab.probes, 3)
}

// strictly is same for the very first frames after a change.
func (tw *twin) strictly(when string, probes func(lab) []probe) {
	tw.t.Helper()
	tw.sameProbes(when, probes, 1)
}

func (tw *twin) sameProbes(when string, probes func(lab) []probe, tries int) {
	tw.t.Helper()
	var diff []string
	for range tries {
		k := tw.kernel.seen(probes(tw.kernel))
		v := tw.vxbpf.seen(probes(tw.vxbpf))
		if len(k) == 0 {
			tw.t.Fatalf("%s: no frame arrives anywhere", when)
		}
		if diff = differ(k, v); len(diff) == 0 {
			break
		}
		if tries > 1 {
			tw.t.Logf("%s, once more, because of\n%s", when, strings.Join(diff[:min(4, len(diff))], "\n"))
		}
	}
	if len(diff) > 0 {
		tw.t.Errorf("%s: %d frames go elsewhere\n%s", when, len(diff), strings.Join(diff[:min(12, len(diff))], "\n"))
	}
	for _, h := range tw.kernel.Hosts {
		if h.Stranger {
			continue
		}
		if k, v := tw.kernel.fdb(h.Name), tw.vxbpf.fdb(h.Name); !slices.Equal(k, v) {
			tw.t.Errorf("%s: forwarding entries of %s differ\nkernel\n\t%s\nvxbpf\n\t%s", when, h.Name, strings.Join(k, "\n\t"), strings.Join(v, "\n\t"))
		}
	}
}

// counts is what vxbpf has counted on a host for a network, "" for all, by
// "host hook reason".
func (l lab) counts(host, network string) map[string]uint64 {
	l.t.Helper()
	st, err := loader.ReadState(l.runDir(host))
	l.must(err)
	out := map[string]uint64{}
	l.pinned(host, func(s *vxmaps.Set) {
		for _, n := range st.Networks {
			if network != "" && n.Name != network {
				continue
			}
			c, err := s.Counters.Read(n.ID)
			l.must(err)
			for hook, reasons := range c {
				for reason, v := range reasons {
					out[fmt.Sprintf("%s %s %s", host, hook, reason)] += v.Packets
				}
			}
		}
	})
	return out
}

// path sends a few frames from one node to another, and tells what vxbpf counted
// on all hosts: "h1 encap fast, h2 decap fast".
func (l lab) path(from, to string) string {
	l.t.Helper()
	nodes := l.nodes()
	return l.pathOf(from, ether(nodes[to].mac, nodes[from].mac, 0x0800, 100))
}

func (l lab) pathOf(from string, frame []byte) string {
	l.t.Helper()
	all := func() map[string]uint64 {
		out := map[string]uint64{}
		for _, h := range l.Hosts {
			if !h.Stranger {
				maps.Copy(out, l.counts(h.Name, ""))
			}
		}
		return out
	}
	before := all()
	for range 5 {
		l.send(from, frame, 0)
	}
	time.Sleep(2 * time.Millisecond) // who wants a certain path asks again
	var out []string
	for k, v := range all() {
		if v != before[k] {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// usual are the paths when nothing is in the way.
var usual = map[string]string{
	"a1>b1": "h1 encap fast, h2 decap fast",
	"a2>b1": "h1 encap fast, h2 decap fast",
	"b1>a1": "h1 decap fast, h2 encap fast",
	"b1>a2": "h1 decap fast, h2 encap fast",
	"A>b1":  "h1 encap fast, h2 decap fast",
	"b1>A":  "h1 decap fast, h2 encap fast",
	"A>B":   "h1 encap fast, h2 decap fast",
	"a1>a2": "h1 encap dst_local",
}

// paths waits until the given flows, and all others as usual, take their paths.
func (tw *twin) paths(when string, other map[string]string) {
	tw.t.Helper()
	want := maps.Clone(usual)
	maps.Copy(want, other)
	tw.pathsOnly(when, want)
}

// pathsOnly waits until the given flows take their paths.
func (tw *twin) pathsOnly(when string, want map[string]string) {
	tw.t.Helper()
	got := map[string]string{}
	tw.vxbpf.settle(func() bool {
		for flow := range want {
			from, to, _ := strings.Cut(flow, ">")
			got[flow] = tw.vxbpf.path(from, to)
		}
		return maps.Equal(got, want)
	})
	for _, flow := range slices.Sorted(maps.Keys(want)) {
		if got[flow] != want[flow] {
			tw.t.Errorf("%s: %s takes %q, want %q", when, flow, got[flow], want[flow])
		}
		// The same in the other lab, which learns from it.
		from, to, _ := strings.Cut(flow, ">")
		nodes := tw.kernel.nodes()
		tw.kernel.send(from, ether(nodes[to].mac, nodes[from].mac, 0x0800, 100), 0)
	}
}

// announce sends a frame from everybody to everybody.
func (tw *twin) announce() {
	tw.t.Helper()
	for _, l := range []lab{tw.kernel, tw.vxbpf} {
		l.look()
		nodes := l.nodes()
		for _, from := range slices.Sorted(maps.Keys(nodes)) {
			l.send(from, ether(broadcast, nodes[from].mac, 0x88b5, 60), 0)
		}
	}
}

// settle makes all known to all.
func (tw *twin) settle() {
	tw.t.Helper()
	tw.announce()
	for _, h := range tw.vxbpf.Hosts {
		if h.Stranger {
			continue
		}
		var macs []fdb.MAC
		for _, n := range tw.vxbpf.nodes() {
			macs = append(macs, n.mac)
		}
		tw.vxbpf.know(h.Name, macs...)
	}
}

// says waits until status of h1 gives the reason for a port; "" is "fast".
func (tw *twin) says(when string, want map[string]string) {
	tw.t.Helper()
	for port, reason := range want {
		var fast bool
		var why string
		tw.vxbpf.settle(func() bool {
			fast, why, _ = tw.vxbpf.port("h1", port)
			return fast == (reason == "") && strings.Contains(why, reason)
		})
		if fast != (reason == "") || !strings.Contains(why, reason) {
			tw.t.Errorf("%s: status says of %s fast %v, reason %q, want %q", when, port, fast, why, reason)
		}
	}
}

func bridgeSpec() testenv.Spec { return twoEach(testenv.HostSpec{}) }

// step is a change at h1 and what it does to paths.
type step struct {
	name    string
	on, off string // commands, one a line
	// says is status' reason by port, while it is on.
	says map[string]string
	// paths that are not the usual ones, while it is on.
	paths map[string]string
	loops bool // which path depends on who spoke last
}

func lines(s string) (out []string) {
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}

// network is the reason of all ports.
func network(reason string) map[string]string {
	return map[string]string{"v-mgmt-1": reason, "v-mgmt-2": reason}
}

// Paths when a port or all of the network is the kernel's.
var (
	a1Slow = map[string]string{
		"a1>b1": "h1 encap not_ready, h2 decap fast",
		"a1>a2": "h1 encap not_ready",
		"b1>a1": "h1 decap dst_unknown, h1 deliver dst_unknown, h2 encap fast",
	}
	h1Slow = map[string]string{
		"a1>b1": "h1 encap not_ready, h2 decap fast",
		"a2>b1": "h1 encap not_ready, h2 decap fast",
		"A>b1":  "h1 encap not_ready, h2 decap fast",
		"A>B":   "h1 encap not_ready, h2 decap fast",
		"b1>a1": "h1 decap not_ready, h1 deliver not_ready, h2 encap fast",
		"b1>a2": "h1 decap not_ready, h1 deliver not_ready, h2 encap fast",
		"b1>A":  "h1 decap not_ready, h1 deliver not_ready, h2 encap fast",
		"a1>a2": "h1 encap not_ready",
	}
)

// with is a copy of some paths with others in it.
func with(paths map[string]string, other ...string) map[string]string {
	out := maps.Clone(paths)
	if out == nil {
		out = map[string]string{}
	}
	for i := 0; i < len(other); i += 2 {
		out[other[i]] = other[i+1]
	}
	return out
}

func TestBridgePorts(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, bridgeSpec())
	tw.same("at first")
	tw.paths("at first", nil)
	for _, s := range []step{
		{
			name: "one port isolated",
			on:   "bridge link set dev v-mgmt-1 isolated on", off: "bridge link set dev v-mgmt-1 isolated off",
		},
		{
			name: "both ports isolated",
			on:   "bridge link set dev v-mgmt-1 isolated on\nbridge link set dev v-mgmt-2 isolated on",
			off:  "bridge link set dev v-mgmt-1 isolated off\nbridge link set dev v-mgmt-2 isolated off",
		},
		{
			name:  "a port and the vxlan port isolated",
			on:    "bridge link set dev v-mgmt-1 isolated on\nbridge link set dev encap-mgmt isolated on",
			off:   "bridge link set dev v-mgmt-1 isolated off\nbridge link set dev encap-mgmt isolated off",
			says:  map[string]string{"v-mgmt-1": "v-mgmt-1 and encap-mgmt are isolated from each other", "v-mgmt-2": ""},
			paths: with(a1Slow, "a1>b1", "h1 encap not_ready"),
		},
		{
			name: "hairpin on a port",
			on:   "bridge link set dev v-mgmt-1 hairpin on", off: "bridge link set dev v-mgmt-1 hairpin off",
		},
		{
			name: "learning off on a port, entries stay",
			on:   "bridge link set dev v-mgmt-1 learning off", off: "bridge link set dev v-mgmt-1 learning on",
		},
		{
			name: "learning off on a port, entry gone",
			on:   "bridge link set dev v-mgmt-1 learning off\nbridge fdb del 02:c0:00:01:01:01 dev v-mgmt-1 master",
			off:  "bridge link set dev v-mgmt-1 learning on",
			paths: map[string]string{
				"a1>b1": "h1 encap src_unknown, h2 decap fast",
				"a1>a2": "h1 encap src_unknown",
				"b1>a1": "h1 decap dst_unknown, h1 deliver dst_unknown, h2 encap fast",
			},
		},
		{
			name: "learning off on the vxlan port, entry gone",
			on:   "bridge link set dev encap-mgmt learning off\nbridge fdb del 02:c0:00:02:01:01 dev encap-mgmt master",
			off:  "bridge link set dev encap-mgmt learning on",
			paths: map[string]string{
				"a1>b1": "h1 encap dst_unknown, h2 decap fast",
				"a2>b1": "h1 encap dst_unknown, h2 decap fast",
				"A>b1":  "h1 encap dst_unknown, h2 decap fast",
				"b1>a1": "h1 decap src_unknown, h1 deliver src_unknown, h2 encap fast",
				"b1>a2": "h1 decap src_unknown, h1 deliver src_unknown, h2 encap fast",
				"b1>A":  "h1 decap src_unknown, h1 deliver src_unknown, h2 encap fast",
			},
		},
		{
			name: "no flooding to a port",
			on:   "bridge link set dev v-mgmt-2 flood off\nbridge link set dev v-mgmt-2 mcast_flood off\nbridge link set dev v-mgmt-2 bcast_flood off",
			off:  "bridge link set dev v-mgmt-2 flood on\nbridge link set dev v-mgmt-2 mcast_flood on\nbridge link set dev v-mgmt-2 bcast_flood on",
		},
		{
			name: "no unknown unicast to the vxlan port",
			on:   "bridge link set dev encap-mgmt flood off", off: "bridge link set dev encap-mgmt flood on",
		},
		{
			name: "no multicast to the vxlan port",
			on:   "bridge link set dev encap-mgmt mcast_flood off", off: "bridge link set dev encap-mgmt mcast_flood on",
		},
		{
			name: "no broadcast to the vxlan port",
			on:   "bridge link set dev encap-mgmt bcast_flood off", off: "bridge link set dev encap-mgmt bcast_flood on",
		},
		{
			name: "a locked port, its entry stays",
			on:   "bridge link set dev v-mgmt-1 locked on", off: "bridge link set dev v-mgmt-1 locked off",
			says: map[string]string{"v-mgmt-1": "v-mgmt-1 is locked", "v-mgmt-2": ""}, paths: a1Slow,
		},
		{
			name: "a locked port, its entry gone",
			on: "ip link set br-mgmt type bridge no_linklocal_learn 1\nbridge link set dev v-mgmt-1 locked on\n" +
				"bridge fdb del 02:c0:00:01:01:01 dev v-mgmt-1 master",
			off:   "bridge link set dev v-mgmt-1 locked off\nip link set br-mgmt type bridge no_linklocal_learn 0",
			says:  map[string]string{"v-mgmt-1": "v-mgmt-1 is locked", "v-mgmt-2": ""},
			paths: with(a1Slow, "a1>b1", "h1 encap not_ready"),
		},
		{
			name: "a disabled port",
			on:   "bridge link set dev v-mgmt-1 state 0", off: "bridge link set dev v-mgmt-1 state 3",
			says:  map[string]string{"v-mgmt-1": "v-mgmt-1 is not in forwarding state", "v-mgmt-2": ""},
			paths: with(a1Slow, "a1>b1", "h1 encap not_ready"),
		},
		{
			name: "the vxlan port disabled",
			on:   "bridge link set dev encap-mgmt state 0", off: "bridge link set dev encap-mgmt state 3",
			says: network("encap-mgmt is not in forwarding state"),
			paths: map[string]string{
				"a1>b1": "h1 encap not_ready", "a2>b1": "h1 encap not_ready", "A>b1": "h1 encap not_ready", "A>B": "h1 encap not_ready",
				"a1>a2": "h1 encap not_ready",
				"b1>a1": h1Slow["b1>a1"], "b1>a2": h1Slow["b1>a2"], "b1>A": h1Slow["b1>A"],
			},
		},
		{
			name: "a backup port",
			on:   "bridge link set dev v-mgmt-1 backup_port v-mgmt-2", off: "bridge link set dev v-mgmt-1 nobackup_port",
			says: map[string]string{"v-mgmt-1": "backup port", "v-mgmt-2": ""}, paths: a1Slow,
		},
		{
			name: "a static entry where the MAC is",
			on:   "bridge fdb replace 02:c0:00:01:01:01 dev v-mgmt-1 master static",
			off:  "bridge fdb replace 02:c0:00:01:01:01 dev v-mgmt-1 master dynamic",
		},
		{
			name: "a sticky entry where the MAC is",
			on:   "bridge fdb replace 02:c0:00:01:01:01 dev v-mgmt-1 master static sticky",
			off:  "bridge fdb del 02:c0:00:01:01:01 dev v-mgmt-1 master",
		},
		{
			name: "a static entry where the MAC is not: the bridge moves it",
			on:   "bridge fdb replace 02:c0:00:01:01:01 dev v-mgmt-2 master static",
			off:  "bridge fdb replace 02:c0:00:01:01:01 dev v-mgmt-1 master dynamic",
		},
		{
			name: "a local entry",
			on:   "bridge fdb replace 02:c0:00:01:01:01 dev v-mgmt-1 master local",
			off:  "bridge fdb del 02:c0:00:01:01:01 dev v-mgmt-1 master local",
			paths: map[string]string{
				"a1>b1": "h1 encap src_unknown, h2 decap fast",
				"a1>a2": "h1 encap src_unknown",
				"b1>a1": "h1 decap dst_unknown, h1 deliver dst_unknown, h2 encap fast",
			},
		},
		{
			name: "LLDP forwarded",
			on:   "ip link set br-mgmt type bridge group_fwd_mask 0x4000", off: "ip link set br-mgmt type bridge group_fwd_mask 0",
		},
		{
			name: "a port of a smaller MTU",
			on:   "ip link set v-mgmt-1 mtu 1300", off: "ip link set v-mgmt-1 mtu 1450",
		},
		{
			name: "the vxlan link of a smaller MTU",
			on:   "ip link set encap-mgmt mtu 1300", off: "ip link set encap-mgmt mtu 1450",
		},
		{
			name: "the bridge of a smaller MTU",
			on:   "ip link set br-mgmt mtu 1300", off: "ip link set br-mgmt mtu 1450",
		},
		{
			name: "no ageing",
			on:   "ip link set br-mgmt type bridge ageing_time 0", off: "ip link set br-mgmt type bridge ageing_time 30000",
			says: network("forgets at once"), paths: with(h1Slow, "a1>a2", "h1 encap not_ready, h2 decap dst_remote, h2 deliver dst_remote"),
		},
		{
			name: "everything forgotten",
			on:   "ip link set br-mgmt type bridge fdb_flush",
		},
		{
			name: "a port down and up again",
			on:   "ip link set v-mgmt-1 down", off: "ip link set v-mgmt-1 up",
			says:  map[string]string{"v-mgmt-1": "v-mgmt-1 is down", "v-mgmt-2": ""},
			paths: with(a1Slow, "a1>b1", "", "a1>a2", ""),
		},
		{
			name: "the bridge down and up again",
			on:   "ip link set br-mgmt down", off: "ip link set br-mgmt up",
			says:  network("is not in forwarding state"),
			paths: with(h1Slow, "a1>b1", "h1 encap not_ready", "a2>b1", "h1 encap not_ready", "A>b1", "", "A>B", ""),
		},
		{
			name: "the vxlan link down and up again",
			on:   "ip link set encap-mgmt down", off: "ip link set encap-mgmt up",
			says: network("vxlan link encap-mgmt is down"),
			paths: with(h1Slow, "a1>b1", "h1 encap not_ready", "a2>b1", "h1 encap not_ready", "A>b1", "h1 encap not_ready", "A>B", "h1 encap not_ready",
				"b1>a1", "h1 decap not_ready, h2 encap fast", "b1>a2", "h1 decap not_ready, h2 encap fast", "b1>A", "h1 decap not_ready, h2 encap fast"),
		},
		{
			name: "a port out of the bridge and back",
			on:   "ip link set v-mgmt-1 nomaster", off: "ip link set v-mgmt-1 master br-mgmt",
			paths: map[string]string{"a1>b1": "", "a1>a2": "", "b1>a1": a1Slow["b1>a1"]},
		},
		{
			name: "the vxlan port out of the bridge and back",
			on:   "ip link set encap-mgmt nomaster", off: "ip link set encap-mgmt master br-mgmt",
			says:  network("encap-mgmt is not a port of br-mgmt"),
			paths: with(h1Slow, "a1>b1", "h1 encap not_ready", "a2>b1", "h1 encap not_ready", "A>b1", "h1 encap not_ready", "A>B", "h1 encap not_ready"),
		},
		{
			// What comes from h2 for everybody goes back to it: there, all are at h1 until they speak again.
			name: "hairpin on the vxlan port", loops: true,
			on: "bridge link set dev encap-mgmt hairpin on", off: "bridge link set dev encap-mgmt hairpin off",
		},
	} {
		tw.both("h1", lines(s.on)...)
		tw.says(s.name, s.says)
		tw.same(s.name)
		if !s.loops {
			tw.paths(s.name, s.paths)
		}
		tw.both("h1", lines(s.off)...)
		tw.says("after "+s.name, network(""))
		tw.same("after " + s.name)
		tw.paths("after "+s.name, nil)
	}
	// Frames from the address of before first: then its packets are the kernel's.
	tw.both("h1", "ip link set br-mgmt address 02:b0:00:00:bb:01")
	tw.paths("the host has another MAC, the old one speaks", map[string]string{
		"A>b1": "h1 encap src_unknown, h2 decap fast", "A>B": "h1 encap src_unknown, h2 decap fast",
		"b1>A": "h1 decap dst_unknown, h1 deliver dst_unknown, h2 encap fast",
	})
	tw.same("the host has another MAC, the old one speaks")
	for _, l := range []lab{tw.kernel, tw.vxbpf} {
		l.setMAC("h1", fdb.MAC{0x02, 0xb0, 0, 0, 0xbb, 1})
	}
	tw.settle()
	tw.paths("the host has another MAC", nil)
	tw.same("the host has another MAC")
}

// arp is a1's question for an address: to everybody, or to the one that it knows.
func arp(dst, src fdb.MAC, from, to netip.Addr) []byte {
	return slices.Concat(dst[:], src[:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, src[:], from.AsSlice(), make([]byte, 6), to.AsSlice())
}

// solicit is the same for IPv6 (RFC 4861 section 4.3).
func solicit(dst, src fdb.MAC, from, to netip.Addr) []byte {
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	t := to.As16()
	copy(group[13:], t[13:])
	if dst == broadcast {
		dst = fdb.MAC{0x33, 0x33, group[12], group[13], group[14], group[15]}
	} else {
		group = t
	}
	icmp := slices.Concat([]byte{135, 0, 0, 0, 0, 0, 0, 0}, t[:], []byte{1, 1}, src[:])
	pseudo := slices.Concat(from.AsSlice(), group[:], []byte{0, 0, 0, byte(len(icmp)), 0, 0, 0, 58})
	bits.BigEndian.PutUint16(icmp[2:], ^uint16(onesSum(slices.Concat(pseudo, icmp))))
	return slices.Concat(dst[:], src[:], []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255}, from.AsSlice(), group[:], icmp)
}

// all records every frame of some nodes' links while fn runs, as text, sorted;
// IGMP and MLD, which bridges send when they like, left out.
func (l lab) all(names []string, fn func()) (out []string) {
	l.t.Helper()
	recs := map[string]*testenv.Recorder{}
	for _, name := range names {
		n := l.nodes()[name]
		r, err := testenv.Capture(l.ctx, n.ns, n.dev, func(b []byte) bool {
			return !bytes.HasPrefix(b, []byte{0x01, 0x00, 0x5e, 0, 0}) && !bytes.HasPrefix(b, []byte{0x33, 0x33, 0, 0, 0, 0x16})
		})
		l.must(err)
		recs[name] = r
	}
	fn()
	time.Sleep(30 * time.Millisecond)
	for name, r := range recs {
		frames, err := r.Stop()
		l.must(err)
		for _, f := range frames {
			way := "in "
			if f.Outgoing {
				way = "out"
			}
			out = append(out, fmt.Sprintf("%s %s %x", name, way, f.Data))
		}
	}
	slices.Sort(out)
	return out
}

// The bridge answers ARP and ND for a neighbour behind the vxlan port from its
// own table, once the port says neigh_suppress, and asks nobody.
func TestBridgeNeighSuppress(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, bridgeSpec())
	c, far := tw.kernel.Container("h1", "mgmt-1"), tw.kernel.Container("h2", "mgmt-1")
	mac := far.MAC.String()
	ask := func(when string) (answers int) {
		t.Helper()
		var got [2][]string
		for range 3 {
			for i, l := range []lab{tw.kernel, tw.vxbpf} {
				got[i] = l.all([]string{"a1", "a2", "b1", "b2", "A", "B"}, func() {
					for _, dst := range []fdb.MAC{broadcast, far.MAC} {
						l.must(testenv.SendFrame(l.Container("h1", "mgmt-1").NS, "eth0", arp(dst, c.MAC, c.Addr.Addr(), far.Addr.Addr())))
						l.must(testenv.SendFrame(l.Container("h1", "mgmt-1").NS, "eth0", solicit(dst, c.MAC, c.Addr6.Addr(), far.Addr6.Addr())))
					}
				})
			}
			if slices.Equal(got[0], got[1]) {
				break
			}
			t.Logf("%s, once more, because of\n%s", when, hostState(got[0]).changes(got[1]))
		}
		if !slices.Equal(got[0], got[1]) {
			t.Errorf("%s: from the kernel's frames to vxbpf's\n%s", when, hostState(got[0]).changes(got[1]))
		}
		for _, f := range got[1] {
			if strings.HasPrefix(f, "a1 in ") {
				answers++
			}
		}
		return answers
	}
	for _, l := range []lab{tw.kernel, tw.vxbpf} {
		// A neighbour table, but no address: nothing is said unasked.
		l.must(l.Host("h1").NS.Sysctl("net/ipv6/conf/br-mgmt/addr_gen_mode", "1"), l.Host("h1").NS.Sysctl("net/ipv6/conf/br-mgmt/disable_ipv6", "0"))
	}
	// b1 speaks IPv4 only: it answers ARP both times.
	if n := ask("no suppression"); n != 2 {
		t.Errorf("no suppression: %d answers, want 2", n)
	}
	tw.both("h1", "bridge link set dev encap-mgmt neigh_suppress on")
	if n := ask("suppression, nothing known"); n != 2 {
		t.Errorf("suppression, nothing known: %d answers, want 2", n)
	}
	for _, how := range []struct{ name, neigh, entry string }{
		{"by hand", "nud permanent", "static"},
		{"by a control plane", "nud noarp extern_learn", "extern_learn"},
	} {
		tw.both("h1",
			"ip neigh replace "+far.Addr.Addr().String()+" lladdr "+mac+" dev br-mgmt "+how.neigh,
			"ip neigh replace "+far.Addr6.Addr().String()+" lladdr "+mac+" dev br-mgmt "+how.neigh,
			"bridge fdb replace "+mac+" dev encap-mgmt master "+how.entry,
			"bridge fdb replace "+mac+" dev encap-mgmt dst 192.0.2.12 self "+how.entry)
		// The bridge answers what is for everybody, b1 what is for it alone.
		if n := ask("suppression, neighbour set " + how.name); n != 3 {
			t.Errorf("suppression, neighbour set %s: %d answers, want 3", how.name, n)
		}
		tw.paths("suppression, neighbour set "+how.name, nil)
		if got := tw.vxbpf.pathOf("a1", solicit(far.MAC, c.MAC, c.Addr6.Addr(), far.Addr6.Addr())); !strings.HasPrefix(got, "h1 encap nd") {
			t.Errorf("a neighbour solicitation to b1 takes %q, want h1 encap nd", got)
		}
		tw.same("suppression, neighbour set " + how.name)
	}
}

// portState is the spanning tree state of a port of h1, by name.
func (l lab) portState(port string) string {
	l.t.Helper()
	out, err := l.Host("h1").NS.Command(l.ctx, "bridge", "link", "show", "dev", port).CombinedOutput()
	l.must(err)
	_, state, _ := strings.Cut(string(out), " state ")
	state, _, _ = strings.Cut(state, " ")
	return state
}

// With spanning tree on, each port listens for a while, then learns, then
// forwards. In each state both labs do the same.
func TestBridgeSTP(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, bridgeSpec())
	// The least that the kernel takes is two seconds in each state; more, so that a busy machine finds time to look.
	tw.both("h1", "ip link set br-mgmt type bridge forward_delay 300")
	// Ports that forward go on; they begin anew with the bridge.
	tw.both("h1", "ip link set br-mgmt type bridge stp_state 1", "ip link set br-mgmt down", "ip link set br-mgmt up")
	seen := [2]map[string]map[string]string{{}, {}}
	for _, state := range []string{"listening", "learning", "forwarding"} {
		for i, l := range []lab{tw.kernel, tw.vxbpf} {
			l.wait("a port to be "+state, func() bool { return l.portState("v-mgmt-1") == state && l.portState("encap-mgmt") == state })
			if i == 1 && state != "forwarding" {
				tw.says(state, network("is not in forwarding state"))
			} else if i == 1 {
				tw.says(state, network(""))
			}
			seen[i][state] = l.seen(l.probes())
			if now := l.portState("v-mgmt-1"); now != state {
				t.Errorf("the port was %s, and %s when all frames were sent: nothing shown", state, now)
			}
		}
	}
	for state := range seen[0] {
		if diff := differ(seen[0][state], seen[1][state]); len(diff) > 0 {
			t.Errorf("%s: %d frames go elsewhere\n%s", state, len(diff), strings.Join(diff[:min(12, len(diff))], "\n"))
		}
	}
	if n := len(seen[0]["forwarding"]); n <= len(seen[0]["learning"]) {
		t.Errorf("%d frames arrive while forwarding, %d while learning", n, len(seen[0]["learning"]))
	}
	tw.same("spanning tree, forwarding")
	tw.paths("spanning tree, forwarding", nil)
	tw.both("h1", "ip link set br-mgmt type bridge stp_state 0")
	tw.same("spanning tree off again")
	tw.paths("spanning tree off again", nil)
}

// stream is numbered packets between containers, both of which know the other's MAC address.
func (l lab) stream(from, to string) *testenv.Stream {
	l.t.Helper()
	nodes := l.nodes()
	addr := func(name string) netip.Addr {
		for _, h := range l.Hosts {
			for _, c := range h.Containers {
				if c.NS == nodes[name].ns {
					return c.Addr.Addr()
				}
			}
		}
		return netip.Addr{}
	}
	for _, p := range [][2]string{{from, to}, {to, from}} {
		c := fmt.Sprintf("ip neigh replace %s lladdr %s dev eth0 nud permanent", addr(p[1]), nodes[p[1]].mac)
		f := strings.Fields(c)
		out, err := nodes[p[0]].ns.Command(l.ctx, f[0], f[1:]...).CombinedOutput()
		if err != nil {
			l.t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
	s, err := testenv.StartStream(l.ctx, nodes[from].ns, nodes[to].ns, addr(to), testenv.StreamOptions{Rate: 1000})
	l.must(err)
	l.t.Cleanup(func() { s.Stop() })
	l.wait("the stream from "+from+" to flow", func() bool { return s.Received() > 50 })
	return s
}

// leaseOver waits until the programs know that no daemon follows the kernel.
func (l lab) leaseOver(host string) {
	l.t.Helper()
	l.wait("the lease of "+host+" to end", func() (over bool) {
		l.pinned(host, func(s *vxmaps.Set) {
			until, err := s.Control.Lease()
			l.must(err)
			over = until < vxmaps.Now()
		})
		return over
	})
}

// What is taken away and put back, by hand.
var awayAndBack = []struct{ name, away, back string }{
	{"a port out of the bridge and back", "ip link set v-mgmt-1 nomaster", "ip link set v-mgmt-1 master br-mgmt"},
	{
		"the vxlan link deleted and made again", "ip link del encap-mgmt",
		"ip link add encap-mgmt mtu 1450 type vxlan id 236 dev eth2 local 192.0.2.11 dstport 4789 ttl 5 noudpcsum\n" +
			"bridge fdb append 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.12\n" +
			"ip link set encap-mgmt master br-mgmt up",
	},
	{
		"the bridge deleted and made again", "ip link del br-mgmt",
		"ip link add br-mgmt address 02:b0:00:00:aa:31 mtu 1450 type bridge\n" +
			"ip link set encap-mgmt master br-mgmt\nip link set v-mgmt-1 master br-mgmt\nip link set v-mgmt-2 master br-mgmt\n" +
			"ip link set br-mgmt up",
	},
}

// Ports, the vxlan link and the bridge go and come back while packets flow.
func TestBridgeAwayAndBack(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, bridgeSpec())
	l := tw.vxbpf
	tw.same("at first")
	for i, c := range awayAndBack {
		streams := []*testenv.Stream{l.stream("a1", "b1")}
		if i == 0 {
			streams = append(streams, l.stream("a2", "b1"))
		}
		tw.both("h1", lines(c.away)...)
		tw.same(c.name + ", away")
		got := streams[0].Received()
		tw.both("h1", lines(c.back)...)
		l.wait("packets after "+c.name, func() bool { return streams[0].Received() > got+100 })
		if i == 0 {
			l.whole(streams[1], "another port out of the bridge and back")
		}
		streams[0].Stop()
		tw.settle()
		tw.paths(c.name, nil)
		tw.same(c.name + ", back")
		for _, h := range l.Hosts {
			l.hooks(h.Name, attachedBy(t))
		}
	}
}

// The same with nobody there to follow. While a link is away the fast path may go
// on for a while, since nobody tells it; once it is back, all that the kernel
// delivers arrives.
func TestBridgeAwayAndBackWithoutDaemon(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, bridgeSpec())
	l := tw.vxbpf
	tw.same("at first")
	for host, d := range tw.daemons {
		if err := d.Kill(); err != nil {
			t.Fatal(err)
		}
		l.leaseOver(host)
	}
	for _, c := range awayAndBack {
		s := l.stream("a1", "b1")
		tw.both("h1", lines(c.away)...)
		got := s.Received()
		tw.both("h1", lines(c.back)...)
		l.wait("packets after "+c.name, func() bool { return s.Received() > got+100 })
		s.Stop()
		tw.announce() // the kernel has forgotten, and floods until it hears of all
		tw.same(c.name + ", back")
	}
	// A container that says nothing gets another link: the kernel floods to it.
	for _, l := range []lab{tw.kernel, tw.vxbpf} {
		c := l.Container("h1", "mgmt-1")
		l.unlink(l.Host("h1").NS, c.HostEnd)
		l.veth(l.Host("h1").NS, c.HostEnd, c.NS, "eth0", c.MAC, c.MTU, "br-mgmt")
		delete(l.eyes, "a1")
	}
	tw.strictly("another link of a container", func(l lab) (out []probe) {
		for _, from := range []string{"b1", "b2", "B"} {
			out = append(out, probe{name: from + " to a1", from: from, frame: ether(l.nodes()["a1"].mac, l.nodes()[from].mac, 0x0800, 100)})
		}
		return out
	})
}

// A container that is taken off its network while nobody follows is off it as
// soon as the bridge's entries would have aged.
func TestBridgePortGoneWithoutDaemon(t *testing.T) {
	t.Parallel()
	tw := newTwin(t, bridgeSpec())
	l := tw.vxbpf
	tw.ageing(2)
	s, back := l.stream("a1", "b1"), l.stream("b1", "a1")
	tw.vxbpf.flowing("before")
	for _, d := range tw.daemons {
		if err := d.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	l.flowing("without daemon")
	l.sh("h1", "ip link set v-mgmt-1 nomaster")
	for name, s := range map[string]*testenv.Stream{"from": s, "to": back} {
		l.waitFor(30*time.Second, "packets "+name+" the container to stop", func() bool {
			got := s.Received()
			time.Sleep(500 * time.Millisecond)
			return s.Received() == got
		})
	}
	l.sh("h1", "ip link set v-mgmt-1 master br-mgmt")
	for _, s := range []*testenv.Stream{s, back} {
		got := s.Received()
		l.wait("packets once the container is back", func() bool { return s.Received() > got+100 })
	}
}
