// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	bits "encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
)

// Who is no VTEP and sends VXLAN all the same:
//
//	h1  mgmt-1, mgmt-2 -- br-mgmt -- eth2 -- p-h1 ┐
//	h2  mgmt-1, mgmt-2 -- br-mgmt -- eth2 -- p-h2 ┼ sw0
//	x   stranger                     eth2 -- p-x  ┘
func strangerSpec(v6 bool) testenv.Spec {
	s := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}, testenv.HostSpec{Name: "x", Stranger: true})
	s.Containers = 2
	s.HostAddresses = []string{"mgmt"}
	if v6 {
		s.Underlay.Prefix = netip.MustParsePrefix("2001:db8:1::/64")
		s.Underlay.Config = "udp_checksum: false"
	}
	return s
}

// forger makes packets from one address of the underlay to another.
type forger struct {
	dst, src fdb.MAC
	to, from netip.Addr
	port     uint16
	vni      uint32
	id       byte // of fragments: those of one datagram have one
}

func (f forger) datagram(inner []byte) []byte {
	udp := make([]byte, 16)
	bits.BigEndian.PutUint16(udp, 40000)
	bits.BigEndian.PutUint16(udp[2:], f.port)
	bits.BigEndian.PutUint16(udp[4:], uint16(16+len(inner)))
	udp[8] = 8
	bits.BigEndian.PutUint32(udp[12:], f.vni<<8)
	return append(udp, inner...)
}

// ip puts an IP header in front. frag is IPv4's field, or that of an IPv6 fragment header, which more than 0 makes.
func (f forger) ip(payload []byte, frag uint16, options []byte) []byte {
	if f.to.Is6() {
		next := byte(17)
		var ext []byte
		if frag != 0 {
			// Offset in the upper 13 bits, "more" in the lowest (RFC 8200 section 4.5).
			v := frag<<3 | frag>>13&1
			ext, next = []byte{next, 0, byte(v >> 8), byte(v), 0, 0, 0, f.id}, 44
		}
		if options != nil {
			options[0], next = next, 60
			ext = append(slices.Clone(options), ext...)
		}
		h := []byte{0x60, 0, 0, 0, 0, 0, next, 64}
		bits.BigEndian.PutUint16(h[4:], uint16(len(ext)+len(payload)))
		return slices.Concat(h, f.from.AsSlice(), f.to.AsSlice(), ext, payload)
	}
	h := slices.Concat([]byte{byte(0x45 + len(options)/4), 0, 0, 0, 0, f.id, byte(frag >> 8), byte(frag), 64, 17, 0, 0}, f.from.AsSlice(), f.to.AsSlice(), options)
	bits.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	bits.BigEndian.PutUint16(h[10:], ^uint16(onesSum(h)))
	return append(h, payload...)
}

// frame puts an Ethernet header in front, with n priority tags.
func (f forger) frame(packet []byte, tags int) []byte {
	b := slices.Concat(f.dst[:], f.src[:])
	for range tags {
		b = append(b, 0x81, 0, 0, 0)
	}
	if f.to.Is6() {
		return slices.Concat(b, []byte{0x86, 0xdd}, packet)
	}
	return slices.Concat(b, []byte{8, 0}, packet)
}

// forgeries are the ways of one inner frame into a network: what a host must send for each.
func (f forger) forgeries(inner []byte, second netip.Addr) map[string][][]byte {
	plain := func(f forger) [][]byte { return [][]byte{f.frame(f.ip(f.datagram(inner), 0, nil), 0)} }
	other, nops := f, []byte{1, 1, 1, 1}
	other.to = second
	if f.to.Is6() {
		nops = []byte{0, 0, 1, 4, 0, 0, 0, 0}
	}
	const more = 0x2000
	cut := func(n int) [][]byte {
		f := f
		f.id = byte(n)
		d := f.datagram(inner)
		return [][]byte{f.frame(f.ip(d[:n], more, nil), 0), f.frame(f.ip(d[n:], uint16(n/8), nil), 0)}
	}
	out := map[string][][]byte{
		"plain":                      plain(f),
		"to another address of ours": plain(other),
		"options":                    {f.frame(f.ip(f.datagram(inner), 0, nops), 0)},
		"priority tag":               {f.frame(f.ip(f.datagram(inner), 0, nil), 1)},
		"two priority tags":          {f.frame(f.ip(f.datagram(inner), 0, nil), 2)},
		"fragments":                  cut(48),
		"fragments, the first ends before the VNI": cut(8),
	}
	if !f.to.Is6() {
		b := f
		b.to = netip.MustParseAddr("255.255.255.255")
		b.dst = broadcast
		out["to all hosts"] = plain(b)
	}
	return out
}

func marked(n uint32) []byte {
	return bits.BigEndian.AppendUint32(slices.Clone(mark), n)
}

// claims is an inner frame that says it comes from one MAC address.
func claims(dst, src fdb.MAC, n uint32) []byte {
	return slices.Concat(dst[:], src[:], []byte{0x88, 0xb5}, marked(n), make([]byte, 60))
}

// sent says which of the frames, all from the stranger, come out at h1's first container.
func (w *world) forge(what map[string][][]byte) (arrived []string) {
	w.t.Helper()
	names := []string{}
	rec, err := testenv.Capture(w.ctx, w.Container("h1", "mgmt-1").NS, "eth0", func(b []byte) bool { return bytes.Contains(b, mark) })
	if err != nil {
		w.t.Fatal(err)
	}
	for name, frames := range what {
		names = append(names, name)
		for _, b := range frames {
			if err := testenv.SendFrame(w.Host("x").NS, "eth2", b); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	time.Sleep(300 * time.Millisecond)
	got, err := rec.Stop()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range names {
		for _, g := range got {
			if bytes.Contains(g.Data, marked(number(name))) {
				arrived = append(arrived, name)
				break
			}
		}
	}
	slices.Sort(arrived)
	return arrived
}

// number tells the forgeries apart by name.
func number(name string) (n uint32) {
	for _, c := range name {
		n = n*31 + uint32(c)
	}
	return n
}

// ways are all forgeries, each with an inner frame of its own.
func (w *world) ways(vni uint32, src fdb.MAC) map[string][][]byte {
	h1, x := w.Host("h1"), w.Host("x")
	f := forger{dst: h1.MAC, src: x.MAC, to: h1.Address, from: x.Address, port: 4789, vni: vni}
	// The weak host model: any address of the host's will do.
	second := w.second()
	out := map[string][][]byte{}
	for name := range f.forgeries(claims(fdb.MAC{}, src, 0), second) {
		out[name] = f.forgeries(claims(w.Container("h1", "mgmt-1").MAC, src, number(name)), second)[name]
	}
	return out
}

// second is h1's own address on its bridge, in the family of the underlay.
func (w *world) second() netip.Addr {
	for _, p := range w.Host("h1").BridgeAddresses("mgmt") {
		if p.Addr().Is6() == w.Host("h1").Address.Is6() {
			return p.Addr()
		}
	}
	w.t.Fatal("h1 has no address on its bridge")
	return netip.Addr{}
}

// Forged packets die before the kernel decapsulates them, whichever way it takes
// them, and move nothing. With `allowed_sources: any` each of them arrives: the
// kernel believes anybody.
func TestSourceCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		v6       bool
		datapath string
		args     []string
		program  string
	}{
		{"tcx", false, testenv.TC, nil, "tcx vx_tc_decap"},
		{"clsact", false, testenv.TC, []string{"--attach", "clsact"}, "clsact vx_tc_decap"},
		{"kernel", false, testenv.Kernel, nil, "tcx vx_tc_guard"},
		{"ipv6", true, testenv.TC, nil, "tcx vx_tc_decap"},
		{"kernel over ipv6", true, testenv.Kernel, nil, "tcx vx_tc_guard"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			spec := strangerSpec(c.v6)
			spec.Hosts[0].Datapath = c.datapath
			w := up(t, spec, false)
			w.start("h2")
			b := w.Container("h2", "mgmt-1")
			all := w.ways(236, b.MAC)

			// The kernel believes anybody.
			d, err := w.Host("h1").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Args: c.args,
				Config: bytes.Replace(w.Host("h1").Config(w.Spec), []byte("\nunderlay:\n"), []byte("\nunderlay:\n  allowed_sources: any\n"), 1)})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.AttachContainers(w.ctx, "h1"); err != nil {
				t.Fatal(err)
			}
			// A qdisc that was just made cost a packet.
			w.wait("an answer", func() bool {
				r, err := testenv.Ping(w.ctx, w.Container("h1", "mgmt-1").NS, b.Addr.Addr(), testenv.PingOptions{Count: 1, Timeout: time.Second})
				return err == nil && r.OK()
			})
			w.containerTraffic()
			if got := w.forge(w.ways(236, fdb.MAC{2, 0, 0, 0, 9, 7})); len(got) != len(all) {
				t.Errorf("without a check only %q of %d forgeries arrive: the test is none", got, len(all))
			}
			if a := w.showJSON("h1", "attachments").Attachments; c.datapath == testenv.Kernel && len(a) != 0 {
				t.Errorf("on kernel vxlan, with nothing to check, there are programs: %+v", a)
			}
			if n := w.network("h1", "mgmt"); n.Unchecked != "allowed_sources: any" || len(n.Strangers) != 0 {
				t.Errorf("status without a check: %+v", n)
			}
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}

			if d, err = w.Host("h1").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Args: c.args}); err != nil {
				t.Fatal(err)
			}
			if p := w.programs("h1")["eth2 ingress"]; len(p) != 1 || p[0] != c.program {
				t.Errorf("programs on eth2: %q, want %s", p, c.program)
			}
			w.containerTraffic()
			before := w.fdbOf("h1", b.MAC)
			if got := w.forge(all); len(got) != 0 {
				t.Errorf("arrived in spite of the check: %q", got)
			}
			if after := w.fdbOf("h1", b.MAC); after != before {
				t.Errorf("the kernel's entry of %v was %q, is %q", b.MAC, before, after)
			}
			w.containerTraffic()
			n := w.network("h1", "mgmt")
			// One forgery does not show its network.
			if len(n.Strangers) != 1 || n.Strangers[0].Packets != uint64(len(all)-1) || n.Strangers[0].Last != w.Host("x").Address.String() ||
				n.Reasons["decap"]["drop_stranger"].Packets != uint64(len(all)-1) || n.Unchecked != "" || len(n.Sources) != 1 {
				t.Errorf("status: strangers %+v, drops %+v, sources %v; want %d packets of %v", n.Strangers, n.Reasons["decap"], n.Sources, len(all)-1, w.Host("x").Address)
			}

			// Other networks of the kernel's on the same port are nobody's business.
			w.foreignNetwork("h1")
			other := w.ways(999, fdb.MAC{2, 0, 0, 0, 9, 9})
			got := w.forge(other)
			// The one that does not show its network is dropped to be safe.
			if len(got) != len(other)-1 || slices.Contains(got, "fragments, the first ends before the VNI") {
				t.Errorf("of another network %q of %d arrive", got, len(other))
			}

			// The check outlives the daemon.
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
			if got := w.forge(all); len(got) != 0 {
				t.Errorf("arrived after the daemon's death: %q", got)
			}
			w.containerTraffic()
		})
	}
}

// fdbOf is where the vxlan link of a host says that a MAC is.
func (w *world) fdbOf(host string, mac fdb.MAC) (where string) {
	w.t.Helper()
	w.kernel(w.Host(host).NS, func(h *kernel.Handle) error {
		es, err := h.FDB()
		for _, e := range es {
			if e.MAC == mac && e.Self {
				where = e.Dst.String()
			}
		}
		return err
	})
	return where
}

// foreignNetwork makes a vxlan link that vxbpf has nothing to do with, in the same bridge.
func (w *world) foreignNetwork(host string) {
	w.t.Helper()
	h := w.Host(host)
	family := "udpcsum"
	if h.Address.Is6() {
		family = "udp6zerocsumrx"
	}
	for _, args := range [][]string{
		{"link", "add", "other", "type", "vxlan", "id", "999", "local", h.Address.String(), "dev", "eth2", "dstport", "4789", family},
		{"link", "set", "other", "master", "br-mgmt", "up"},
	} {
		if out, err := h.NS.Command(w.ctx, "ip", args...).CombinedOutput(); err != nil {
			w.t.Fatalf("ip %v: %v\n%s", args, err, out)
		}
	}
}

// Who may send without being named in the config: whoever is in the subnet of a
// group, whom somebody writes into the kernel's FDB while a daemon follows.
func TestSourceCheckDefaults(t *testing.T) {
	t.Parallel()
	spec := strangerSpec(false)
	w := up(t, spec, false)
	h1, h2, x := w.Host("h1"), w.Host("h2"), w.Host("x")
	w.start("h2")
	load := func(keys string) *testenv.Daemon {
		t.Helper()
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, fmt.Appendf(nil, "underlay: {device: eth2, ttl: 5}\nnetworks: [{name: mgmt, vni: 236, bridge: br-mgmt, mtu: 1450, %s}]\n", keys), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d, err := h1.Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: c})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AttachContainers(w.ctx, "h1"); err != nil {
			t.Fatal(err)
		}
		return d
	}
	plain := map[string][][]byte{"plain": w.ways(236, fdb.MAC{2, 0, 0, 0, 9, 8})["plain"]}
	far := plain["plain"][0]
	far = slices.Clone(far)
	copy(far[26:], []byte{198, 51, 100, 7}) // an address outside of the subnet, by way of the stranger
	ip := far[14:34]
	bits.BigEndian.PutUint16(ip[10:], 0)
	bits.BigEndian.PutUint16(ip[10:], ^uint16(onesSum(ip)))
	farther := map[string][][]byte{"plain": {far}}
	check := func(d *testenv.Daemon, when string, near, outside bool) {
		t.Helper()
		for _, c := range []struct {
			name   string
			frames map[string][][]byte
			want   bool
		}{{"in the subnet", plain, near}, {"outside of it", farther, outside}} {
			var got []string
			w.settle(func() bool { got = w.forge(c.frames); return (len(got) == 1) == c.want })
			if (len(got) == 1) != c.want {
				t.Errorf("%s: a sender %s gets through: %v, want %v; sources %v\n%s", when, c.name, len(got) == 1, c.want, w.network("h1", "mgmt").Sources, d.Log())
			}
		}
	}
	stop := func(d *testenv.Daemon) {
		t.Helper()
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	fdb := func(args ...string) {
		t.Helper()
		if out, err := h1.NS.Command(w.ctx, "bridge", append([]string{"fdb"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("bridge fdb %v: %v\n%s", args, err, out)
		}
	}

	// The stranger's route back is not asked for: one way is enough for a forged frame. But a martian source is no test.
	if err := h1.NS.Sysctl("net.ipv4.conf.all.rp_filter", "0"); err != nil {
		t.Fatal(err)
	}
	if err := h1.NS.Sysctl("net.ipv4.conf.eth2.rp_filter", "0"); err != nil {
		t.Fatal(err)
	}
	if out, err := h1.NS.Command(w.ctx, "ip", "route", "replace", "198.51.100.0/24", "via", x.Address.String()).CombinedOutput(); err != nil {
		t.Fatalf("ip route: %v\n%s", err, out)
	}

	d := load("remotes: [" + h2.Address.String() + "]")
	check(d, "remotes", false, false)
	fdb("append", "00:00:00:00:00:00", "dev", "encap-mgmt", "dst", "198.51.100.7", "self", "permanent")
	check(d, "a flood entry by hand", false, true)
	fdb("del", "00:00:00:00:00:00", "dev", "encap-mgmt", "dst", "198.51.100.7", "self")
	check(d, "that removed", false, false)
	stop(d)

	d = load("remotes: [" + h2.Address.String() + "], allowed_sources: [198.51.100.0/28]")
	check(d, "a list", false, true)
	fdb("append", "00:00:00:00:00:00", "dev", "encap-mgmt", "dst", x.Address.String(), "self", "permanent")
	check(d, "a list and a flood entry by hand", false, true)
	fdb("del", "00:00:00:00:00:00", "dev", "encap-mgmt", "dst", x.Address.String(), "self")
	stop(d)

	d = load("group: 239.1.1.236")
	check(d, "group", true, false)
	stop(d)

	d = load("remotes: []")
	check(d, "a control plane", true, false)
	fdb("replace", "02:00:00:00:09:07", "dev", "encap-mgmt", "dst", "198.51.100.7", "self", "extern_learn")
	check(d, "a control plane that names it", true, true)
	fdb("del", "02:00:00:00:09:07", "dev", "encap-mgmt", "self")
	check(d, "a control plane that forgot it", true, false)
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	check(d, "a control plane that nobody follows", true, true)
}
