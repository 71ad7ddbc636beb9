// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/maps/fdb"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// `vxbpf trace` in prepared situations, each against what the programs do with a real frame:
//
//	h1  mgmt-1, mgmt-2 -- br-mgmt -- eth2 ┐
//	h2  mgmt-1, mgmt-2 -- br-mgmt -- eth2 ┼ sw0
//	h3  stranger                     eth2 ┘
//
// traced is what tests read of `vxbpf trace --explain -o json`.
type traced struct {
	Network string   `json:"network"`
	Fate    string   `json:"fate"`
	Reason  string   `json:"reason"`
	Why     string   `json:"why"`
	Fixes   []string `json:"fixes"`
	From    struct {
		MAC   fdb.MAC `json:"mac"`
		Where string  `json:"where"`
		How   string  `json:"how"`
	} `json:"from"`
	To struct {
		MAC   fdb.MAC `json:"mac"`
		Where string  `json:"where"`
	} `json:"to"`
	Hooks []struct {
		Hook   string `json:"hook"`
		Device string `json:"device"`
		Reason string `json:"reason"`
		Steps  []struct {
			Look  string `json:"look"`
			Found string `json:"found"`
			Ends  bool   `json:"ends"`
		} `json:"steps"`
	} `json:"hooks"`
}

func (w *world) explain(host string, args ...string) (a traced) {
	w.t.Helper()
	out, msg, code := w.vxbpf(host, append([]string{"trace", "--explain", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &a); err != nil || code != 0 {
		w.t.Fatalf("trace %s: exit %d: %s%s", strings.Join(args, " "), code, out, msg)
	}
	return a
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// On kernels whose bridges filter VLANs; `make test-kernels` has them.
func TestTraceVLANFiltering(t *testing.T) {
	need.Kernel(t, need.VLANFiltering)
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), true, "--repair=false")
	a, b := w.warm()
	ask := []string{"--from", a.MAC.String(), "--to", b.MAC.String()}
	sock, err := testenv.PacketSocket(a.NS, "eth0")
	w.must(err)
	defer sock.Close()
	w.sh(w.Host("h1").NS, "ip link set br-mgmt type bridge vlan_filtering 1")
	var got traced
	w.wait("the bridge that filters to be told", func() bool { got = w.explain("h1", ask...); return got.Reason != "fast" })
	if got.Reason != "not_ready" || got.Fate != "kernel" || !strings.Contains(got.Why, "bridge br-mgmt filters VLANs") ||
		len(got.Fixes) != 1 || !strings.HasPrefix(got.Fixes[0], "ip link set br-mgmt type bridge vlan_filtering 0") {
		t.Errorf("%+v", got)
	}
	before := w.network("h1", "mgmt").Reasons["encap"]["not_ready"].Packets
	w.must(sock.Send(ether(b.MAC, a.MAC, 0x0800, 98)))
	w.wait("the program's verdict not_ready", func() bool { return w.network("h1", "mgmt").Reasons["encap"]["not_ready"].Packets > before })
	// The fix that it names is one.
	w.sh(w.Host("h1").NS, "ip link set br-mgmt type bridge vlan_filtering 0")
	w.warm()
	if got := w.explain("h1", ask...); got.Fate != "fast" {
		t.Errorf("after the fix: %+v", got)
	}
}

// An entry that outlived the ageing time: with a daemon it is gone by then, so this is one that died.
func TestTraceAged(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.Networks[0].Config = testenv.Keys("ageing: 3s")
	w := up(t, spec, true)
	a, b := w.warm()
	sock, err := testenv.PacketSocket(a.NS, "eth0")
	w.must(err)
	defer sock.Close()
	s, _ := w.status("h1")
	w.must(unix.Kill(s.Daemon, unix.SIGKILL))
	w.wait("the end of the daemon", func() bool { s, _ := w.status("h1"); return s.Daemon == 0 })
	// The kernel has to see the source now and then, else it is the source that is due. It floods this, and nobody answers.
	fresh := func() { w.must(sock.Send(ether(fdb.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, a.MAC, 0x88b5, 60))) }
	var got traced
	w.waitFor(patience(15*time.Second), "the destination to age", func() bool {
		fresh()
		got = w.explain("h1", "--from", a.MAC.String(), "--to", b.MAC.String())
		return got.Reason == "dst_aged"
	})
	if got.Fate != "kernel" || !strings.Contains(got.Why, "ageing time") || len(got.Fixes) == 0 {
		t.Errorf("%+v", got)
	}
	aged := func() uint64 { return w.network("h1", "mgmt").Reasons["encap"]["dst_aged"].Packets }
	before := aged()
	w.wait("the program's verdict dst_aged", func() bool {
		fresh()
		time.Sleep(20 * time.Millisecond)
		w.must(sock.Send(ether(b.MAC, a.MAC, 0x0800, 98)))
		return aged() > before
	})
}

func TestTrace(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}, testenv.HostSpec{Name: "h3", Stranger: true})
	spec.Containers, spec.ContainerMTU = 2, 1500
	w := up(t, spec, true, "--repair=false") // what is prepared by hand stays until it is undone
	a, b := w.warm()
	a2, b2 := w.Container("h1", "mgmt-2"), w.Container("h2", "mgmt-2")
	h1 := w.Host("h1").NS
	sock, err := testenv.PacketSocket(a.NS, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	sh := func(cmds ...string) {
		t.Helper()
		for _, c := range cmds {
			w.sh(h1, c)
		}
	}
	stranger := fdb.MAC{2, 0xc0, 0, 0, 0, 0x77}
	silent := fdb.MAC{2, 0xc0, 0, 0, 0, 0x78}
	everybody := fdb.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	count := func(hook, reason string) uint64 { return w.network("h1", "mgmt").Reasons[hook][reason].Packets }

	for _, c := range []struct {
		name       string
		do, undo   []string // on h1
		ask        []string
		reason     string
		fate       string // "": kernel
		why        string // part of it
		fix        string // beginning of one; "": none is needed
		frame      []byte // what the programs must judge the same, sent by mgmt-1; nil: none
		hook       string // of the verdict; "": encap
		from       testenv.NS
		send       func() // in place of frame
		settlement func() bool
	}{
		{name: "fast", ask: []string{"--from", a.Addr.Addr().String(), "--to", b.Addr.Addr().String()}, reason: "fast", fate: "fast",
			why: "BPF carries it", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "ipv6", ask: []string{"--from", a.Addr6.Addr().String(), "--to", b.Addr6.Addr().String(), "--network", "mgmt"}, reason: "fast", fate: "fast",
			why: "BPF carries it", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "mtu", ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String(), "--size", "1514"}, reason: "mtu",
			why: "1550 bytes do not fit into 1500", fix: "ip link set eth0 mtu 1450", frame: ether(b.MAC, a.MAC, 0x0800, 1472)},
		{name: "unknown destination", ask: []string{"--from", a.MAC.String(), "--to", stranger.String()}, reason: "dst_unknown",
			why: "neither the kernel nor BPF has heard of the destination", fix: "let it send something", frame: ether(stranger, a.MAC, 0x0800, 98)},
		{name: "unknown source", ask: []string{"--from", silent.String(), "--to", b.MAC.String()}, reason: "src_unknown",
			why: "no port of br-mgmt has had a frame from", fix: "let it send something", frame: ether(b.MAC, silent, 0x0800, 98)},
		{name: "broadcast", ask: []string{"--from", a.MAC.String(), "--to", everybody.String()}, reason: "bum",
			why: "the kernel floods", frame: ether(everybody, a.MAC, 0x0800, 98)},
		{name: "not ip", ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String(), "--kind", "arp"}, reason: "not_ip",
			why: "ARP", frame: ether(b.MAC, a.MAC, 0x0806, 98)},
		{name: "vlan tag", ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String(), "--vlan"}, reason: "vlan_tag",
			why: "VLAN tag", fix: "send untagged", frame: slices.Concat(b.MAC[:], a.MAC[:], []byte{0x81, 0, 0, 5}, ether(b.MAC, a.MAC, 0x0800, 98)[12:])},
		{name: "same host", ask: []string{"--from", a.MAC.String(), "--to", a2.MAC.String()}, reason: "dst_local",
			why: "the bridge forwards", frame: ether(a2.MAC, a.MAC, 0x0800, 98)},
		{name: "moved", ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String(), "--at", "v-mgmt-2"}, reason: "src_moved",
			why: "two hosts use " + a.MAC.String(), fix: "bridge monitor fdb | grep -i " + a.MAC.String(), frame: ether(b.MAC, a.MAC, 0x0800, 98), from: a2.NS},
		{name: "isolated port", do: []string{"bridge link set dev v-mgmt-1 isolated on", "bridge link set dev encap-mgmt isolated on"},
			undo: []string{"bridge link set dev v-mgmt-1 isolated off", "bridge link set dev encap-mgmt isolated off"},
			ask:  []string{"--from", a.MAC.String(), "--to", b.MAC.String()}, reason: "not_ready", why: "isolated from each other",
			fix: "bridge link set dev v-mgmt-1 isolated off", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "locked port", do: []string{"bridge link set dev v-mgmt-1 locked on"}, undo: []string{"bridge link set dev v-mgmt-1 locked off"},
			ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String()}, reason: "not_ready", why: "v-mgmt-1 is locked",
			fix: "bridge link set dev v-mgmt-1 locked off", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "port down", do: []string{"ip link set v-mgmt-1 down"}, undo: []string{"ip link set v-mgmt-1 up"},
			ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String()}, reason: "not_ready", why: "v-mgmt-1 is down", fix: "ip link set v-mgmt-1 up"},
		{name: "packet filter", do: []string{"nft add table bridge t", "nft add chain bridge t c { type filter hook forward priority 0 ; }", "nft add rule bridge t c ether type 0x1234 drop"},
			undo: []string{"nft delete table bridge t"}, ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String()}, reason: "not_ready",
			why: "nft bridge t c", fix: "remove the rule (nft list ruleset), or set bypass_netfilter: true", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "no ageing time", do: []string{"ip link set br-mgmt type bridge ageing_time 0"}, undo: []string{"ip link set br-mgmt type bridge ageing_time 30000"},
			ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String()}, reason: "not_ready", why: "forgets at once",
			fix: "ip link set br-mgmt type bridge ageing_time 30000", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "no route to the VTEP", do: []string{"ip link set eth2 down"}, undo: []string{"ip link set eth2 up"},
			ask: []string{"--from", a.MAC.String(), "--to", b.MAC.String()}, reason: "no_vtep", why: "no usable way to VTEP 192.0.2.12",
			fix: "ip route get 192.0.2.12", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "pinned by hand", do: []string{"bridge fdb replace " + a.MAC.String() + " dev v-mgmt-2 master static sticky"},
			undo: []string{"bridge fdb del " + a.MAC.String() + " dev v-mgmt-2 master"},
			ask:  []string{"--from", a.MAC.String(), "--to", b.MAC.String(), "--at", "v-mgmt-1"}, reason: "src_static", why: "a static entry says that the source lives elsewhere",
			fix: "bridge fdb del " + a.MAC.String() + " dev v-mgmt-2 master", frame: ether(b.MAC, a.MAC, 0x0800, 98)},
		{name: "VTEP not allowed", ask: []string{"--from", b.MAC.String(), "--to", a.MAC.String(), "--at", "192.0.2.13"}, reason: "drop_stranger", fate: "drop",
			why: "the outer source is no VTEP of the network", fix: "if it is one: add it to the network's remotes", hook: "decap",
			send: func() { w.inject("h3", 236, ether(a.MAC, b.MAC, 0x0800, 98)) }},
		{name: "way in", ask: []string{"--from", b.MAC.String(), "--to", a.MAC.String()}, reason: "fast", fate: "fast", why: "BPF carries it",
			frame: ether(a.MAC, b.MAC, 0x0800, 98), from: b.NS, hook: "decap"},
		{name: "port in this namespace", do: []string{"ip link add px type veth peer name py", "ip link set px master br-mgmt up", "ip link set py up",
			"ip link set py address 02:c0:00:00:00:79", "ip address add 172.29.236.200/24 dev py"},
			undo: []string{"ip link del px"},
			ask:  []string{"--from", b.MAC.String(), "--to", "02:c0:00:00:00:79"}, reason: "port_kind", fate: "fast", why: "served from the vxlan device",
			frame: ether(fdb.MAC{2, 0xc0, 0, 0, 0, 0x79}, b.MAC, 0x0800, 98), from: b.NS, hook: "decap",
			settlement: func() bool {
				s, err := testenv.PacketSocket(h1, "py")
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				return s.Send(ether(b.MAC, fdb.MAC{2, 0xc0, 0, 0, 0, 0x79}, 0x0800, 98)) == nil
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sh(c.do...)
			defer func() {
				sh(c.undo...)
				if c.do != nil || c.reason == "src_moved" {
					w.warm()
				}
			}()
			want := traced{Fate: c.fate, Reason: c.reason}
			if want.Fate == "" {
				want.Fate = "kernel"
			}
			var got traced
			// The daemon hears of what was done a moment later.
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				if c.settlement != nil {
					c.settlement()
				}
				got = w.explain("h1", c.ask...)
				if got.Reason == want.Reason && strings.Contains(got.Why, c.why) || time.Now().After(deadline) {
					break
				}
			}
			if got.Reason != want.Reason || got.Fate != want.Fate || !strings.Contains(got.Why, c.why) || got.Network != "mgmt" {
				t.Fatalf("%+v\nwant %s, %s: %s", got, want.Fate, want.Reason, c.why)
			}
			if (c.fix == "") != (len(got.Fixes) == 0) || c.fix != "" && !strings.HasPrefix(got.Fixes[0], c.fix) {
				t.Errorf("fixes %q, want %q", got.Fixes, c.fix)
			}
			if text, _, code := w.vxbpf("h1", append([]string{"trace", "--explain"}, c.ask...)...); code != 0 || !strings.Contains(text, c.why) {
				t.Errorf("text: exit %d\n%s", code, text)
			}
			if c.frame == nil && c.send == nil {
				return
			}
			// What the programs do with such a frame.
			hook := c.hook
			if hook == "" {
				hook = "encap"
			}
			s := sock
			if c.from != (testenv.NS{}) {
				if s, err = testenv.PacketSocket(c.from, "eth0"); err != nil {
					t.Fatal(err)
				}
				defer s.Close()
			}
			before := count(hook, c.reason)
			if c.send != nil {
				c.send()
			} else if err := s.Send(c.frame); err != nil {
				t.Fatal(err)
			}
			w.wait("the program's verdict "+c.reason, func() bool { return count(hook, c.reason) > before })
		})
	}

	// From packets as they come by.
	t.Run("live", func(t *testing.T) {
		s, err := testenv.StartStream(w.ctx, a.NS, b.NS, b.Addr.Addr(), testenv.StreamOptions{Rate: 50})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Stop()
		out, msg, code := w.vxbpf("h1", "trace", "--from", a.Addr.Addr().String(), "--to", b.Addr.Addr().String())
		if code != 0 || strings.Count(out, "mgmt encap@v-mgmt-1 fast") != 3 || !strings.Contains(out, "a packet like it now") || !strings.Contains(out, "fast: both addresses") {
			t.Errorf("exit %d\n%s%s", code, out, msg)
		}
		out, msg, code = w.vxbpf("h1", "trace", "--from", b2.MAC.String(), "--to", a2.MAC.String(), "--wait", "300ms", "--network", "mgmt")
		if code != 0 || !strings.Contains(out, "no packet from "+b2.MAC.String()) || !strings.Contains(out, "what would become of one") {
			t.Errorf("exit %d\n%s%s", code, out, msg)
		}
		if n, all := w.copying("h1"); n != 0 {
			t.Errorf("%d of %d programs copy packets", n, all)
		}
	})

	t.Run("questions that cannot be answered", func(t *testing.T) {
		for _, c := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"--from", "172.29.236.99", "--to", b.MAC.String(), "--explain"}, 1, "answers no request on br-mgmt"},
			{[]string{"--from", "172.29.236.99", "--to", b.MAC.String(), "--explain", "--no-probe"}, 1, "in no neighbour table"},
			{[]string{"--from", "nobody", "--to", b.MAC.String()}, 2, "neither an IP nor a MAC address"},
			{[]string{"--from", a.MAC.String()}, 2, "--from and --to are needed"},
			{[]string{"--from", a.MAC.String(), "--to", b.MAC.String(), "--network", "other"}, 1, "there is no such network; there are mgmt"},
			{[]string{"--from", a.MAC.String(), "--to", b.MAC.String(), "--at", "nowhere", "--explain"}, 1, "neither a device of this host"},
		} {
			if _, msg, code := w.vxbpf("h1", append([]string{"trace"}, c.args...)...); code != c.code || !strings.Contains(msg, c.want) {
				t.Errorf("%v: exit %d, %s; want %d, %s", c.args, code, msg, c.code, c.want)
			}
		}
	})

	// With no daemon: static entries lose their voucher, and what the kernel learns stays with the kernel.
	t.Run("no daemon", func(t *testing.T) {
		sh("bridge fdb replace "+b.MAC.String()+" dev encap-mgmt self dst 192.0.2.12 static", "bridge fdb replace "+b.MAC.String()+" dev encap-mgmt master static")
		w.wait("the static entry", func() bool {
			e := w.explain("h1", "--from", a.MAC.String(), "--to", b.MAC.String())
			return len(e.Hooks) == 1 && len(e.Hooks[0].Steps) > 1 && strings.Contains(e.Hooks[0].Steps[1].Found, "static") && e.Reason == "fast"
		})
		w.sh(b2.NS, "ip link set eth0 down") // it must not say a word between here and the end of the daemon
		w.wait("mgmt-2 of h2 to be silent", func() bool { return !w.link("h2", "v-mgmt-2").Carrier })
		for _, table := range []string{"master", "self"} { // it may not have been heard yet
			_ = h1.Command(w.ctx, "bridge", "fdb", "del", b2.MAC.String(), "dev", "encap-mgmt", table).Run()
		}
		w.wait("mgmt-2 of h2 to be forgotten", func() bool {
			return w.explain("h1", "--from", a.MAC.String(), "--to", b2.MAC.String()).Reason == "dst_unknown"
		})
		s, _ := w.status("h1")
		if err := unix.Kill(s.Daemon, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.wait("the end of the daemon", func() bool { s, _ := w.status("h1"); return s.Daemon == 0 })
		w.sh(b2.NS, "ip link set eth0 up")
		w.wait("mgmt-2 of h2 to speak again", func() bool {
			r, err := testenv.Ping(w.ctx, b2.NS, a2.Addr.Addr(), testenv.PingOptions{Count: 1})
			return err == nil && r.OK()
		})
		e := w.explain("h1", "--from", a.MAC.String(), "--to", b2.MAC.String())
		if e.Reason != "dst_unknown" || !strings.Contains(e.Why, "no daemon tells the programs") || len(e.Fixes) != 1 || !strings.HasPrefix(e.Fixes[0], "vxbpf load ") {
			t.Errorf("what the kernel has learnt since: %+v", e)
		}
		w.wait("the end of the lease", func() bool {
			e = w.explain("h1", "--from", a.MAC.String(), "--to", b.MAC.String())
			return e.Reason == "no_lease"
		})
		if !strings.Contains(e.Why, "none runs") || len(e.Fixes) != 1 || !strings.HasPrefix(e.Fixes[0], "vxbpf load ") {
			t.Errorf("no lease: %+v", e)
		}
		before := count("encap", "no_lease")
		if err := sock.Send(ether(b.MAC, a.MAC, 0x0800, 98)); err != nil {
			t.Fatal(err)
		}
		w.wait("the program's verdict no_lease", func() bool { return count("encap", "no_lease") > before })
	})
}
