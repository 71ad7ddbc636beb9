// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/tools/doctor"
)

//	h1: daemon ----+                  mgmt  VNI 236, remotes
//	h2: --once ----+-- br-sw          alt   VNI 244, UDP 4790, remotes
//	h3: stranger --+                  grp   VNI 248, group 239.1.1.248
//
// Each check of `vxbpf doctor`: the fault is made, exactly it is found, and with
// it gone nothing is. What needs the daemon is done on h1; h2 has none, so that
// nobody repairs what the others break there.
func TestDoctor(t *testing.T) {
	w := up(t, testenv.Spec{
		Underlay: testenv.Underlay{Kind: testenv.Switch},
		Networks: []testenv.Network{
			{Name: "mgmt", VNI: 236, Subnet: netip.MustParsePrefix("172.29.236.0/24"), Subnet6: netip.MustParsePrefix("fd00:29:236::/64")},
			{Name: "alt", VNI: 244, Subnet: netip.MustParsePrefix("172.29.244.0/24"), Subnet6: netip.MustParsePrefix("fd00:29:244::/64"), Config: "port: 4790"},
			{Name: "grp", VNI: 248, Subnet: netip.MustParsePrefix("172.29.248.0/24"), Subnet6: netip.MustParsePrefix("fd00:29:248::/64"), Group: netip.MustParseAddr("239.1.1.248")},
		},
		Hosts:      []testenv.HostSpec{{Name: "h1"}, {Name: "h2"}, {Name: "h3", Stranger: true}},
		Containers: 1,
	}, false)
	d := w.start("h1")
	once := w.config("h2")
	defer func() { // the lab knows of daemons only, and a Cleanup comes after the end of the context
		if out, errOut, code := w.vxbpf("h2", "unload"); code != 0 {
			t.Errorf("unload: exit %d\n%s%s", code, out, errOut)
		}
	}()
	for range 2 { // the second time with the containers
		if out, errOut, code := w.vxbpf("h2", "load", "--once", once); code != 0 {
			t.Fatalf("load --once: exit %d\n%s%s", code, out, errOut)
		}
		if err := w.AttachContainers(w.ctx, "h2"); err != nil {
			t.Fatal(err)
		}
	}
	w.script(w.Host("h1").NS, "ip address add 172.29.236.201/24 dev br-mgmt")
	for _, n := range w.Spec.Networks {
		w.ping(w.Container("h1", n.Name+"-1").NS, w.Container("h2", n.Name+"-1").Addr.Addr())
	}
	for _, h := range []string{"h1", "h2"} {
		w.healthy(h)
	}
	if t.Failed() {
		t.FailNow()
	}
	t.Run("tables", func(t *testing.T) { w.in(t).doctorTables(once) })
	t.Run("fix", func(t *testing.T) { w.in(t).doctorFix() })
	t.Run("slow", func(t *testing.T) { w.in(t).doctorSlow() })
	t.Run("probes", func(t *testing.T) { w.in(t).doctorProbes() })
	t.Run("dead", func(t *testing.T) { w.in(t).doctorDead(d) })
	if t.Failed() {
		return
	}
	// A check whose fault nobody makes may be one that cannot fail. These have theirs in tools/doctor: the settings are the machine's.
	elsewhere := []string{"fdb_full", "jit", "neighbours"}
	for _, c := range doctor.Checks() {
		if !doctorFound[c[0]] && !slices.Contains(elsewhere, c[0]) {
			t.Errorf("no fault for check %s", c[0])
		}
	}
}

// doctorFound are the checks that have found something.
var doctorFound = map[string]bool{}

// sh runs a shell script in a namespace.
func (w *world) script(ns testenv.NS, script string) {
	w.t.Helper()
	if b, err := ns.Command(w.ctx, "sh", "-ec", script).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %s: %v\n%s", ns.Name(), script, err, b)
	}
}

// examine runs doctor and checks its exit code.
func (w *world) examine(host string, args ...string) (r doctor.Report) {
	w.t.Helper()
	out, errOut, code := w.vxbpf(host, append([]string{"doctor", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		w.t.Fatalf("doctor on %s: exit %d, %v\n%s%s", host, code, err, out, errOut)
	}
	want := map[doctor.Severity]int{"": 0, doctor.Warning: 3, doctor.Problem: 5}[r.Worst()]
	if code != want {
		w.t.Errorf("doctor on %s: exit %d, want %d for %q", host, code, want, r.Worst())
	}
	for _, f := range r.Findings {
		if f.Object == "" || f.Evidence == "" || f.Consequence == "" || len(f.Fix) == 0 || f.Fix[0] == "" {
			w.t.Errorf("a finding without words: %+v", f)
		}
	}
	return r
}

// healthy wants no finding, and nothing that could not be answered.
func (w *world) healthy(host string, args ...string) {
	w.t.Helper()
	var r doctor.Report
	for range 3 { // a neighbour may just be asked for
		if r = w.examine(host, args...); len(r.Findings)+len(r.Unknown) == 0 {
			return
		}
	}
	w.t.Errorf("a healthy host: %+v\n%+v", r.Findings, r.Unknown)
}

// found wants these findings, "check object", and no other.
func (w *world) found(r doctor.Report, want ...string) {
	w.t.Helper()
	var got []string
	for _, f := range r.Findings {
		got = append(got, f.Check+" "+f.Object)
		doctorFound[f.Check] = true
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("found %q\nwant  %q\n%+v\nunknown: %+v", got, want, r.Findings, r.Unknown)
	}
}

// quiet are the flags for all checks that send nothing, less the one that listens for a second.
func quiet() (args []string) {
	args = append(args, "--passive")
	for _, c := range doctor.Checks() {
		if c[0] != "mac_moves" {
			args = append(args, "--check", c[0])
		}
	}
	return args
}

// doctorTables: faults in what the host itself shows.
func (w *world) doctorTables(config string) {
	h := w.Host("h2")
	file := filepath.Join(loader.DefaultPinRoot, h.Instance())
	count := func(packets uint64) {
		st, err := loader.ReadState(w.runDir("h2"))
		if err != nil {
			w.t.Fatal(err)
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(st.Pins, "vx_count"), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		defer m.Close()
		var cpus []bpf.NetCount
		id := uint32(st.Networks[0].ID)
		if err := m.Lookup(id, &cpus); err != nil {
			w.t.Fatal(err)
		}
		cpus[0].By[bpf.DropBroken][bpf.HookEncap].Packets = packets
		if err := m.Put(id, cpus); err != nil {
			w.t.Fatal(err)
		}
	}
	port := "v-mgmt-1"
	pin := ""
	for _, p := range w.showJSON("h2", "ports").Ports {
		if p["name"] == port {
			pin = filepath.Join(file, "links", fmt.Sprintf("vx_tc_encap-%v-ingress", p["ifindex"]))
		}
	}
	var xdp link.Link
	var socket net.PacketConn
	for _, f := range []struct {
		name, put, take string
		do, undo        func()
		want            []string
	}{
		{name: "pmtu_off", put: "sysctl -w net.ipv4.ip_no_pmtu_disc=1", take: "sysctl -w net.ipv4.ip_no_pmtu_disc=0", want: []string{"pmtu_off net.ipv4.ip_no_pmtu_disc"}},
		{name: "source_ports", put: "sysctl -w net.ipv4.ip_local_port_range='32768 32800'", take: "sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
			want: []string{"source_ports net.ipv4.ip_local_port_range"}},
		{name: "ageing", put: "ip link set br-mgmt type bridge ageing_time 6000", take: "ip link set br-mgmt type bridge ageing_time 30000", want: []string{"ageing network mgmt"}},
		{name: "flood_list", put: "bridge fdb del 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.11", take: "bridge fdb append 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.11",
			want: []string{"flood_list network mgmt, VTEP 192.0.2.11"}},
		{name: "offloads", put: "ethtool -K eth2 rx-gro-list on", take: "ethtool -K eth2 rx-gro-list off", want: []string{"offloads eth2"}},
		{name: "pins", put: "mkdir " + file + "/maps-0123456789ab", take: "rmdir " + file + "/maps-0123456789ab", want: []string{"pins " + file + "/maps-0123456789ab"}},
		{name: "drops", do: func() { count(7) }, undo: func() { count(0) }, want: []string{"drops network mgmt"}},
		{name: "port_mtu", put: "ip netns exec " + w.Container("h2", "mgmt-1").NS.Name() + " ip link set eth0 mtu 1500",
			take: "ip netns exec " + w.Container("h2", "mgmt-1").NS.Name() + " ip link set eth0 mtu 1450", want: []string{"port_mtu port v-mgmt-1"}},
		{name: "mtu", put: "ip link set eth2 mtu 1480", take: "ip link set eth2 mtu 1500", want: []string{"mtu network alt", "mtu network grp", "mtu network mgmt"}},
		{name: "slow_path, a link down", put: "ip link set encap-alt down", take: "ip link set encap-alt up", want: []string{"slow_path network alt"}},
		{name: "port_conflict", put: "ip link set encap-alt down", do: func() {
			var err error
			if socket, err = h.NS.ListenPacket(w.ctx, "udp", "0.0.0.0:4790"); err != nil {
				w.t.Fatal(err)
			}
		}, undo: func() { socket.Close() }, take: "ip link set encap-alt up", want: []string{"port_conflict UDP port 4790"}},
		{name: "xdp_owner", do: func() {
			err := h.NS.Do(func() error {
				prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.XDP, License: "GPL",
					Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
				if err != nil {
					return err
				}
				defer prog.Close()
				dev, err := net.InterfaceByName("eth2")
				if err != nil {
					return err
				}
				xdp, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Index, Flags: link.XDPGenericMode})
				return err
			})
			if err != nil {
				w.t.Fatal(err)
			}
		}, undo: func() { xdp.Close() }, want: []string{"xdp_owner eth2"}},
		{name: "rp_filter", put: `ip link add eth3 type veth peer name eth3p; ip link set eth3 up; ip link set eth3p up; ip address add 198.51.100.1/24 dev eth3
ip route add 192.0.2.11 via 198.51.100.2 dev eth3; sysctl -w net.ipv4.conf.eth2.rp_filter=1`,
			take: "ip link del eth3; sysctl -w net.ipv4.conf.eth2.rp_filter=0", want: []string{"rp_filter VTEP 192.0.2.11"}},
		{name: "route", put: "ip route add unreachable 192.0.2.11", take: "ip route del unreachable 192.0.2.11", want: []string{"route VTEP 192.0.2.11"}},
		{name: "local_address", put: "ip address del 192.0.2.12/24 dev eth2", take: "ip address add 192.0.2.12/24 dev eth2", want: []string{"local_address 192.0.2.12"}},
		// Last: the program does not come back.
		{name: "attachment", put: "rm " + pin, want: []string{"attachment v-mgmt-1 ingress"}},
	} {
		if f.put != "" {
			w.script(h.NS, f.put)
		}
		if f.do != nil {
			f.do()
		}
		sub := *w
		w.t.Run(f.name, func(t *testing.T) {
			sub.t = t
			sub.found(sub.examine("h2", quiet()...), f.want...)
		})
		if f.undo != nil {
			f.undo()
		}
		if f.take != "" {
			w.script(h.NS, f.take)
		}
	}
	if out, errOut, code := w.vxbpf("h2", "load", "--once", config); code != 0 {
		w.t.Fatalf("load --once: exit %d\n%s%s", code, out, errOut)
	}
	w.healthy("h2", quiet()...)
}

// doctorFix: what can be mended is, and comes back as it was.
func (w *world) doctorFix() {
	h := w.Host("h2")
	w.script(h.NS, `sysctl -w net.ipv4.ip_no_pmtu_disc=1; ip link set br-mgmt type bridge ageing_time 6000; ethtool -K eth2 rx-gro-list on
ip link set encap-alt down; bridge fdb del 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.11`)
	all := []string{"pmtu_off net.ipv4.ip_no_pmtu_disc", "ageing network mgmt", "offloads eth2", "slow_path network alt", "flood_list network mgmt, VTEP 192.0.2.11"}
	w.found(w.examine("h2", append(quiet(), "--fix")...), all...)
	w.healthy("h2", quiet()...)
	if out, errOut, code := w.vxbpf("h2", "doctor", "--undo"); code != 0 || strings.Count(out, "taken back: ") != len(all) {
		w.t.Errorf("undo: exit %d\n%s%s", code, out, errOut)
	}
	w.found(w.examine("h2", quiet()...), all...)
	if out, _, code := w.vxbpf("h2", "doctor", "--undo"); code != 0 || out != "nothing to take back\n" {
		w.t.Errorf("undo of nothing: exit %d, %q", code, out)
	}
	w.examine("h2", append(quiet(), "--fix")...)
	if err := os.Remove(filepath.Join(w.runDir("h2"), "doctor-undo.json")); err != nil {
		w.t.Fatal(err)
	}
	w.healthy("h2", quiet()...)

	// The sum is right then, and the containers' is next; while the underlay is small there is no way back.
	w.script(h.NS, "ip link set eth2 mtu 1480")
	w.examine("h2", append(quiet(), "--fix")...)
	w.found(w.examine("h2", quiet()...), "port_mtu port v-alt-1", "port_mtu port v-grp-1", "port_mtu port v-mgmt-1")
	if _, errOut, code := w.vxbpf("h2", "doctor", "--undo"); code != 1 || !strings.Contains(errOut, "take back mtu of encap-") {
		w.t.Errorf("undo that the kernel refuses: exit %d\n%s", code, errOut)
	}
	w.script(h.NS, "ip link set eth2 mtu 1500")
	if out, errOut, code := w.vxbpf("h2", "doctor", "--undo"); code != 0 || !strings.Contains(out, "mtu of encap-mgmt") {
		w.t.Errorf("undo, once more: exit %d\n%s%s", code, out, errOut)
	}
	w.healthy("h2", quiet()...)
}

// doctorSlow: what the daemon keeps on the slow path, by who is in the way.
func (w *world) doctorSlow() {
	h := w.Host("h1")
	var qdisc *netlink.Clsact
	for _, f := range []struct {
		put, take string
		do, undo  func() error
		want      string
	}{
		{put: table("iifname v-mgmt-1 ip protocol icmp drop"), take: "nft delete table bridge t", want: "netfilter network mgmt"},
		{put: "bridge link set dev v-mgmt-1 locked on", take: "bridge link set dev v-mgmt-1 locked off", want: "slow_path port v-mgmt-1"},
		{want: "tc_owner port v-mgmt-1", do: func() error {
			l, err := netlink.LinkByName("v-mgmt-1")
			if err != nil {
				return err
			}
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.SchedCLS, License: "GPL",
				Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
			if err != nil {
				return err
			}
			defer prog.Close()
			i := l.Attrs().Index
			qdisc = &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: i, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
			if err := netlink.QdiscAdd(qdisc); err != nil {
				return err
			}
			return netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: i, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 50000, Protocol: unix.ETH_P_ALL},
				Fd: prog.FD(), Name: "stranger", DirectAction: true})
		}, undo: func() error { return netlink.QdiscDel(qdisc) }},
	} {
		act := func(script string, do func() error) {
			if script != "" {
				w.script(h.NS, script)
			}
			if do != nil {
				if err := h.NS.Do(do); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		act(f.put, f.do)
		// The daemon says so within a moment.
		w.settle(func() bool { return len(w.examine("h1", quiet()...).Findings) > 0 })
		w.found(w.examine("h1", quiet()...), f.want)
		act(f.take, f.undo)
		w.settle(func() bool { return len(w.examine("h1", quiet()...).Findings) == 0 })
	}
	w.healthy("h1", quiet()...)
}

// doctorProbes: faults on the way to the other hosts.
func (w *world) doctorProbes() {
	h1, h3, sw := w.Host("h1").NS, w.Host("h3").NS, w.SwitchNS()

	// A remote without VXLAN, a remote that is not there, an address in use elsewhere, a MAC address at two places.
	w.script(h1, "bridge fdb append 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.13; bridge fdb append 00:00:00:00:00:00 dev encap-alt dst 192.0.2.99")
	w.script(w.Container("h2", "mgmt-1").NS, "ip address add 172.29.236.201/32 dev eth0")
	stop := w.twin("grp", "02:dd:00:00:00:01")
	r := w.examine("h1")
	stop()
	w.found(r, "vtep_port VTEP 192.0.2.13", "vtep_reach VTEP 192.0.2.99", "duplicate_address 172.29.236.201 on br-mgmt", "mac_moves 02:dd:00:00:00:01")
	w.script(h1, "bridge fdb del 00:00:00:00:00:00 dev encap-alt dst 192.0.2.99")
	w.script(w.Container("h2", "mgmt-1").NS, "ip address del 172.29.236.201/32 dev eth0")

	// A remote with the other port; large VXLAN packets lost; UDP lost inside VXLAN, as with wrong checksums; no multicast.
	w.script(h3, "ip link add vx0 type vxlan id 236 dstport 8472 dev eth2; ip link set vx0 up")
	w.script(sw, table("ip daddr 239.1.1.248 drop", "ip protocol udp udp dport 4789 @th,96,24 236 meta length > 1300 drop",
		"ip protocol udp udp dport 4790 @th,96,24 244 @th,288,8 17 drop"))
	w.script(h1, "ip link set encap-grp down; ip link set encap-grp up")
	r = w.examine("h1")
	w.found(r, "vtep_port VTEP 192.0.2.13", "overlay_size network mgmt, VTEP 192.0.2.12", "checksum network alt", "multicast network grp, group 239.1.1.248")
	for _, f := range r.Findings {
		if f.Check == "vtep_port" && !strings.Contains(f.Evidence, "does not refuse 8472") {
			w.t.Errorf("the other port is not named: %s", f.Evidence)
		}
	}
	w.script(sw, "nft delete table bridge t")
	w.script(h1, "bridge fdb del 00:00:00:00:00:00 dev encap-mgmt dst 192.0.2.13")
	w.ping(w.Container("h1", "grp-1").NS, w.Container("h2", "grp-1").Addr.Addr())

	// A hop that takes less and says nothing.
	w.script(sw, "ip link set p-h2 mtu 1400")
	r = w.examine("h1")
	w.found(r, "path_mtu VTEP 192.0.2.12")
	if len(r.Findings) == 1 && !strings.Contains(r.Findings[0].Evidence, "1400 bytes come back and 1401 do not") {
		w.t.Errorf("the path's MTU is 1400: %s", r.Findings[0].Evidence)
	}
	w.script(sw, "ip link set p-h2 mtu 1500")
	w.healthy("h1")
}

// table is a script that makes rules in a bridge's forward chain, to go with `nft delete table bridge t`.
func table(rules ...string) string {
	return "nft -f - <<END\ntable bridge t {\nchain c {\ntype filter hook forward priority 0\n" + strings.Join(rules, "\n") + "\n}\n}\nEND"
}

// twin lets two containers of a network, on both hosts, send with one MAC address until the returned function is called.
func (w *world) twin(network, mac string) (stop func()) {
	src, err := net.ParseMAC(mac)
	if err != nil {
		w.t.Fatal(err)
	}
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, src...)
	frame = append(frame, 0x88, 0xb5) // IEEE 802 local experimental
	frame = append(frame, make([]byte, 46)...)
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			for _, h := range []string{"h1", "h2"} {
				if err := testenv.SendFrame(w.Container(h, network+"-1").NS, "eth0", frame); err != nil {
					w.t.Error(err)
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// doctorDead: no daemon; and a network whose outer checksums only the kernel computes.
func (w *world) doctorDead(d *testenv.Daemon) {
	if err := d.Kill(); err != nil {
		w.t.Fatal(err)
	}
	w.found(w.examine("h1", quiet()...), "daemon instance "+w.Host("h1").Instance())
	cfg := strings.Replace(string(w.Host("h1").Config(w.Spec)), "port: 4790", "port: 4790\n  udp_checksum: true", 1)
	if _, err := w.Host("h1").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: []byte(cfg), Args: []string{"--recreate"}}); err != nil {
		w.t.Fatal(err)
	}
	w.found(w.examine("h1", quiet()...), "udp_checksum network alt")
}
