// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	bits "encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"

	"github.com/vxbpf/vxbpf/testenv"
)

// Real sockets over every mixture of offloads, MTUs, families and kinds of peer.
//
//	h1 (vxbpf)                                                          h2 (vxbpf, or kernel VXLAN)
//	mgmt-1 eth0 -- v-mgmt-1 - br-mgmt - encap-mgmt - eth2 == eth2 - encap-mgmt - br-mgmt - v-mgmt-1 -- eth0 mgmt-1
//	       |           |         |           |        |       |         |           |         |         |
//	       each with one of the settings below, TCP and UDP in both directions, IPv4 and IPv6
//
// The full product has 10^10 rows. A row is one setting for each device; rows
// are chosen so that as many pairs of settings as possible come together, by a
// seed that is printed. VXBPF_TEST_FULL=1 takes more rows, in all environments.

// settings are what `ethtool -K` calls tx, rx, sg and so on, by the kernel's names.
var settings = map[string]map[string]bool{
	"default": {},
	"tx off":  {"tx-checksum-ip-generic": false},
	"rx off":  {"rx-checksum": false},
	"sg off":  {"tx-scatter-gather": false, "tx-scatter-gather-fraglist": false},
	"tso off": {"tx-tcp-segmentation": false, "tx-tcp6-segmentation": false, "tx-tcp-ecn-segmentation": false, "tx-tcp-mangleid-segmentation": false},
	"gso off": {"tx-generic-segmentation": false},
	"gro off": {"rx-gro": false},
	// A veth pair has it off, so here it is the exception.
	"gro on":       {"rx-gro": true},
	"gro list":     {"rx-gro": true, "rx-gro-list": true},
	"udp gro":      {"rx-gro": true, "rx-udp-gro-forwarding": true},
	"uso off":      {"tx-udp-segmentation": false},
	"tunnels off":  {"tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false},
	"all off":      {"tx-checksum-ip-generic": false, "rx-checksum": false, "tx-scatter-gather": false, "tx-generic-segmentation": false, "tx-tcp-segmentation": false, "tx-tcp6-segmentation": false, "tx-udp-segmentation": false, "rx-gro": false},
	"checked":      {"tx-checksum-ip-generic": false, "rx-checksum": false},
	"partial only": {"rx-checksum": false, "tx-udp_tnl-segmentation": false, "tx-udp_tnl-csum-segmentation": false, "tx-udp-segmentation": false},
}

// device is one link on the way between the two containers.
type device struct {
	name string // in test output
	ns   testenv.NS
	link string
	// found are the features before the test, now those at this moment.
	found, now map[string]bool
}

func (w overlay) devices(a, b *testenv.Container) []*device {
	w.t.Helper()
	var out []*device
	for _, s := range []struct {
		host string
		c    *testenv.Container
	}{{"h1", a}, {"h2", b}} {
		ns := w.Host(s.host).NS
		for _, d := range []device{{"eth0", s.c.NS, "eth0", nil, nil}, {"port", ns, s.c.HostEnd, nil, nil}, {"bridge", ns, "br-mgmt", nil, nil},
			{"vxlan", ns, "encap-mgmt", nil, nil}, {"eth2", ns, "eth2", nil, nil}} {
			d.name = s.host + " " + d.name
			d.found = w.features(d.ns, d.link)
			d.now = maps.Clone(d.found)
			out = append(out, &d)
		}
	}
	return out
}

// tool runs fn with an ethtool socket of the namespace.
func (w overlay) tool(ns testenv.NS, fn func(e *ethtool.Ethtool) error) {
	w.t.Helper()
	w.must(ns.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		return fn(e)
	}))
}

func (w overlay) features(ns testenv.NS, link string) (out map[string]bool) {
	w.t.Helper()
	w.tool(ns, func(e *ethtool.Ethtool) (err error) {
		out, err = e.Features(link)
		return err
	})
	return out
}

// set gives the device a setting; what a driver has fixed stays as it is.
func (w overlay) set(d *device, setting string) {
	w.t.Helper()
	want := map[string]bool{}
	for _, s := range settings {
		for f := range s {
			if found, there := d.found[f]; there {
				want[f] = found
			}
		}
	}
	for f, v := range settings[setting] {
		if _, there := d.found[f]; there {
			want[f] = v
		}
	}
	change := map[string]bool{}
	for f, v := range want {
		if d.now[f] != v {
			change[f] = v
		}
	}
	if len(change) == 0 {
		return
	}
	w.tool(d.ns, func(e *ethtool.Ethtool) error { return e.Change(d.link, change) })
	maps.Copy(d.now, change)
}

// environment is what cannot be changed while the hosts run.
type environment struct {
	outer     string // v4 or v6, and who sends UDP checksums
	under     int    // MTU of the underlay
	container int    // MTU of the containers, 0: what is left
	kernel    bool   // h2 runs plain kernel VXLAN
}

func (e environment) String() string {
	peer := "vxbpf"
	if e.kernel {
		peer = "kernel"
	}
	return fmt.Sprintf("%s, %d over %d, to %s", e.outer, e.container, e.under, peer)
}

// The values of environment.outer.
var outers = []string{"v4", "v4, h2 sends checksums", "v4, both send checksums", "v6", "v6, h2 sends checksums", "v6, both send checksums"}

func (e environment) v6() bool { return strings.HasPrefix(e.outer, "v6") }

// sums: the host sends UDP checksums.
func (e environment) sums(host string) bool {
	return strings.Contains(e.outer, "both") || strings.Contains(e.outer, host)
}

// fast are the hosts on which BPF carries what it can.
func (e environment) fast() (out []string) {
	for _, h := range []string{"h1", "h2"} {
		if !e.sums(h) && !(e.kernel && h == "h2") {
			out = append(out, h)
		}
	}
	return out
}

// up makes the environment.
func (e environment) up(t *testing.T) overlay {
	t.Helper()
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	if e.kernel {
		spec.Hosts[1].Datapath = testenv.None
	}
	for i, h := range spec.Hosts {
		spec.Hosts[i].Config = testenv.Keys(fmt.Sprintf("underlay: {udp_checksum: %v}", e.sums(h.Name)))
	}
	if e.v6() {
		spec.Underlay.Prefix = netip.MustParsePrefix("2001:db8:12::/64")
	}
	spec.Underlay.MTU, spec.ContainerMTU = e.under, e.container
	w := newOverlay(t, spec, true)
	if e.kernel {
		_, err := w.KernelVXLAN(w.ctx, "h2", "mgmt", testenv.KernelVXLANOptions{NoChecksum: !e.sums("h2")})
		w.must(err)
	}
	return w
}

var environments = func() (out []environment) {
	for _, mtu := range [][2]int{{1500, 0}, {1500, 1280}, {9000, 1500}, {9000, 0}} {
		for _, outer := range outers {
			for _, kernel := range []bool{false, true} {
				out = append(out, environment{outer, mtu[0], mtu[1], kernel})
			}
		}
	}
	return out
}()

// pairs chooses rows of settings, one for each of n devices. It knows which
// pairs have been together, and takes the best of some random rows.
type pairs struct {
	random *rand.Rand
	names  []string
	seen   map[[4]int]bool
}

func (p *pairs) row(n int) []int {
	var best []int
	most := -1
	for range 20 {
		row := make([]int, n)
		for i := range row {
			row[i] = p.random.IntN(len(p.names))
		}
		fresh := 0
		for i := range row {
			for j := range i {
				if !p.seen[[4]int{i, row[i], j, row[j]}] {
					fresh++
				}
			}
		}
		if fresh > most {
			best, most = row, fresh
		}
	}
	for i := range best {
		for j := range i {
			p.seen[[4]int{i, best[i], j, best[j]}] = true
		}
	}
	return best
}

// seed of a random test, printed so that it can be had again.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("VXBPF_TEST_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("VXBPF_TEST_SEED: %v", err)
		}
	}
	t.Logf("VXBPF_TEST_SEED=%d", s)
	return s
}

func full() bool { return os.Getenv("VXBPF_TEST_FULL") == "1" }

// TestMatrix: what one container sends arrives at the other as it was, whatever
// the devices between them leave to each other.
func TestMatrix(t *testing.T) {
	random := rand.New(rand.NewPCG(seed(t), 0))
	p := &pairs{random: random, names: slices.Sorted(maps.Keys(settings)), seen: map[[4]int]bool{}}
	chosen, rows := slices.Clone(environments), 24
	random.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	if !full() {
		// One of each kind of outer packet and peer, at different sizes.
		kinds := map[string]bool{}
		chosen = slices.DeleteFunc(chosen, func(e environment) bool {
			kind := fmt.Sprint(e.outer, e.kernel)
			known := kinds[kind]
			kinds[kind] = true
			return known
		})
		rows = 4
	}
	for _, e := range chosen {
		t.Run(e.String(), func(t *testing.T) {
			w := e.up(t)
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			devices := w.devices(a, b)
			w.small(a, b)
			for _, h := range e.fast() {
				w.know(h, a.MAC, b.MAC)
			}
			w.matrixRow("default", e.fast(), a, b, nil)
			for range rows {
				row := p.row(len(devices))
				var what []string
				for i, d := range devices {
					w.set(d, p.names[row[i]])
					what = append(what, d.name+" "+p.names[row[i]])
				}
				// A packet socket shares the packets with the stack, which is a case of its own: now and then.
				// In a list of datagrams each has its own checksum, which the socket does not show.
				var looked *testenv.Container
				if random.IntN(3) == 0 && !strings.Contains(strings.Join(what, ""), "gro list") {
					looked = []*testenv.Container{a, b}[random.IntN(2)]
				}
				w.matrixRow(strings.Join(what, ", "), e.fast(), a, b, looked)
				if t.Failed() {
					return // the rest would say the same
				}
			}
		})
	}
	t.Logf("%d pairs of settings in %d environments", len(p.seen), len(chosen))
}

// matrixRow sends everything in both directions. looked is the container at
// which the checksums of what arrives are looked at, nil: none.
func (w overlay) matrixRow(what string, fast []string, a, b, looked *testenv.Container) {
	w.t.Helper()
	before := map[string]map[string]uint64{}
	spaces := []testenv.NS{a.NS, b.NS, w.Host("h1").NS, w.Host("h2").NS}
	for _, ns := range spaces {
		before[ns.Name()] = w.snmp(ns)
	}
	var rec *testenv.Recorder
	if looked != nil {
		var err error
		rec, err = testenv.Capture(w.ctx, looked.NS, "eth0", nil)
		w.must(err)
	}
	w.each(fast, "mgmt", func() {
		for _, p := range [][2]*testenv.Container{{a, b}, {b, a}} {
			for _, addr := range []netip.Addr{p[1].Addr.Addr(), p[1].Addr6.Addr()} {
				w.flows(what, p[0].NS, p[1].NS, addr, a.MTU, 256<<10)
			}
		}
	}, func(h string, sent, received share) {
		if sent.Fast == 0 || received.Fast == 0 {
			w.t.Errorf("%s: %s sent %+v, received %+v, want some on the fast path", what, h, sent, received)
		}
	})
	if rec != nil {
		frames, err := rec.Stop()
		w.must(err)
		w.checked(what, frames, looked)
	}
	for _, ns := range spaces {
		for k, v := range w.snmp(ns) {
			if strings.Contains(k, "Csum") && v != before[ns.Name()][k] {
				w.t.Errorf("%s: %s counted %d times in %s", what, k, v-before[ns.Name()][k], ns.Name())
			}
		}
	}
}

// flows is TCP in bulk and UDP of each kind, every byte compared.
func (w overlay) flows(what string, from, to testenv.NS, addr netip.Addr, mtu int, bulk int64) {
	w.t.Helper()
	r, err := testenv.Transfer(w.ctx, from, to, addr, bulk, uint64(mtu))
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	if !r.Match {
		w.t.Errorf("%s: tcp to %s: %d bytes arrived, altered", what, addr, r.Bytes)
	}
	most := mtu - 28
	if addr.Is6() {
		most = mtu - 48
	}
	for name, o := range map[string]testenv.DatagramOptions{
		"udp":             {Sizes: []int{8, 19, most, most - 1, 1000, most + 1, 2*most + 13}, Count: 70},
		"udp, no sum":     {Sizes: []int{33, most}, Count: 10, NoChecksum: true},
		"udp in segments": {Sizes: []int{most, 500}, Segments: 6, Count: 96},
		"udp aggregates":  {Sizes: []int{most, 500}, Segments: 6, Count: 96, GRO: true},
	} {
		r, err := testenv.Datagrams(w.ctx, from, to, addr, o)
		w.must(err)
		if !r.OK() {
			w.t.Errorf("%s: %s from %s to %s: %s", what, name, from.Name(), addr, r)
		}
	}
}

// snmp are the protocol counters of a namespace.
func (w overlay) snmp(ns testenv.NS) map[string]uint64 {
	w.t.Helper()
	out := map[string]uint64{}
	w.must(ns.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := 1; j < len(names) && j < len(values); j++ {
				v, _ := strconv.ParseUint(values[j], 10, 64)
				out[names[0]+names[j]] = v
			}
		}
		b, err = os.ReadFile("/proc/thread-self/net/snmp6")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 2 {
				out[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
			}
		}
		return err
	}))
	return out
}

// checked looks at what arrived at a container: each transport checksum must be
// right, or hold the sum of the pseudo header and say that the rest is to come.
func (w overlay) checked(what string, frames []testenv.Frame, c *testenv.Container) {
	w.t.Helper()
	n := 0
	for _, f := range frames {
		if f.Outgoing || len(f.Data) < 14+40 {
			continue
		}
		var pseudo, l4 []byte
		var proto byte
		switch ip := f.Data[14:]; {
		case f.Data[12] == 8 && f.Data[13] == 0 && bits.BigEndian.Uint16(ip[6:])&0x3fff == 0:
			l4, proto = ip[20:bits.BigEndian.Uint16(ip[2:])], ip[9]
			pseudo = ip[12:20]
		case f.Data[12] == 0x86 && f.Data[13] == 0xdd:
			l4, proto = ip[40:40+bits.BigEndian.Uint16(ip[4:])], ip[6]
			pseudo = ip[8:40]
		}
		at := map[byte]int{6: 16, 17: 6}[proto]
		if at == 0 || len(l4) < at+2 {
			continue
		}
		field := bits.BigEndian.Uint16(l4[at:])
		if proto == 17 && field == 0 && !f.PartialChecksum {
			continue
		}
		pseudo = append(slices.Clone(pseudo), 0, proto, byte(len(l4)>>8), byte(len(l4)))
		n++
		if f.PartialChecksum {
			if onesSum(pseudo) != uint32(field) {
				w.t.Errorf("%s: at %s: checksum to be completed is %04x, the pseudo header's sum %04x: %x", what, c.NS.Name(), field, onesSum(pseudo), f.Data[:74])
			}
			continue
		}
		if len(l4)%2 == 1 {
			l4 = append(slices.Clone(l4), 0)
		}
		if onesSum(append(pseudo, l4...)) != 0xffff {
			w.t.Errorf("%s: at %s: wrong checksum %04x in %d bytes: %x", what, c.NS.Name(), field, len(f.Data), f.Data[:74])
		}
	}
	if n < 50 {
		w.t.Errorf("%s: at %s: %d checksums to look at, of %d frames", what, c.NS.Name(), n, len(frames))
	}
}
