// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// Hosts with files of their own, on which real packages are installed.
//
//	h1 (ifupdown, bridge-utils, vxbpf)            h2 (the same)
//	  mgmt-1 ─ br-mgmt ─ encap-mgmt ─ eth2 ══ eth2 ─ encap-mgmt ─ br-mgmt ─ mgmt-1
//	  ... and flat, storage, repl, vxlan

// debs is the directory of packages that `make debs`, or debs-full with VXBPF_TEST_FULL=1, fetches and nobody installs on this machine.
var debs = sync.OnceValues(func() (string, error) {
	target := "debs"
	if full() {
		target = "debs-full"
	}
	cmd := exec.Command("make", "-s", "-C", "../..", target)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make %s: %w\n%s", target, err, out)
	}
	return filepath.Abs("../../bin/debs")
})

// machine is a host of the lab as a machine of its own.
type machine struct {
	*testenv.Machine
	w    *world
	host string
}

// machine starts one for a host; packages are files of `make debs`, by the name of the package.
func (w *world) machine(host string, packages ...string) *machine {
	w.t.Helper()
	m, err := w.Host(host).StartMachine(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if w.t.Failed() {
			out, _ := m.Run(context.WithoutCancel(w.ctx), "ip -br link; ip -d link show type vxlan; bridge link; bridge fdb show; ip maddr show dev eth2; ip addr show; tc -s filter show dev eth2 ingress")
			w.t.Logf("links of %s:\n%s", host, out)
			if b, err := os.ReadFile(m.Path("/var/log/vxbpf.log")); err == nil {
				w.t.Logf("log of vxbpf on %s:\n%s", host, b)
			}
		}
		if err := m.Close(); err != nil {
			w.t.Errorf("end machine %s: %v", host, err)
		}
	})
	x := &machine{m, w, host}
	if len(packages) > 0 {
		dir, err := debs()
		if err != nil {
			w.t.Fatal(err)
		}
		var files []string
		for _, p := range packages {
			found, err := filepath.Glob(filepath.Join(dir, p+"_*.deb"))
			w.check(err)
			if len(found) != 1 { // with all that it needs and this machine has not; nothing, if it has all
				info, err := os.Stat(filepath.Join(dir, p))
				if err != nil || !info.IsDir() {
					w.t.Fatalf("package %s in %s: %v, and no directory of that name", p, dir, found)
				}
				found, err = filepath.Glob(filepath.Join(dir, p, "*.deb"))
				w.check(err)
			}
			files = append(files, found...)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			w.check(err)
			w.check(m.Write("/tmp/debs/"+filepath.Base(f), b, 0o644))
		}
		if len(files) > 0 {
			x.run("dpkg --force-unsafe-io -i /tmp/debs/*.deb")
		}
	}
	return x
}

// patience is for tests of tools that take their time: the world's is 3 minutes.
func (w *world) patience(d time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	w.t.Cleanup(cancel)
	w.ctx = ctx
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// run fails the test if the script fails, or if a command does not fail that it says `no` to: sh -e goes on after a failing `! command`.
func (m *machine) run(script string) string {
	m.w.t.Helper()
	out, err := m.Run(m.w.ctx, `no() { if "$@" >/dev/null 2>&1; then echo "works, and should not: $*"; exit 1; fi; }`+"\n"+script)
	if err != nil {
		m.w.t.Fatal(err)
	}
	return out
}

// write a file.
func (m *machine) write(name, text string) {
	m.w.t.Helper()
	m.w.check(m.Write(name, []byte(text), 0o644))
}

// binary installs the vxbpf under test.
func (m *machine) binary() {
	m.w.t.Helper()
	b, err := os.ReadFile(m.w.bin)
	m.w.check(err)
	m.w.check(m.Write("/usr/sbin/vxbpf", b, 0o755))
}

// load starts the daemon with /etc/vxbpf/config.yaml and waits until it runs.
func (m *machine) load(args string) {
	m.w.t.Helper()
	m.run("setsid vxbpf load " + args + " /etc/vxbpf/config.yaml >>/var/log/vxbpf.log 2>&1 </dev/null &")
	m.w.wait("vxbpf on "+m.host+" to be ready", func() bool {
		out, err := m.Run(m.w.ctx, `vxbpf status -o json | grep -q '"daemon_pid": [1-9]' && echo yes`)
		if err != nil && strings.Contains(m.log(), "vxbpf: ") {
			m.w.t.Fatalf("vxbpf load on %s:\n%s", m.host, m.log())
		}
		return strings.TrimSpace(out) == "yes"
	})
}

func (m *machine) log() string {
	b, _ := os.ReadFile(m.Path("/var/log/vxbpf.log"))
	return string(b)
}

// both pings and sends data between the first containers of a network, and back.
func (w *world) both(network string) {
	w.t.Helper()
	a, b := w.Container("h1", network+"-1"), w.Container("h2", network+"-1")
	w.wait("an answer over "+network, func() bool {
		r, err := testenv.Ping(w.ctx, a.NS, b.Addr.Addr(), testenv.PingOptions{Count: 1, Timeout: time.Second})
		return err == nil && r.OK()
	})
	w.ping(a.NS, b.Addr.Addr())
	w.ping(b.NS, a.Addr.Addr())
	w.transfer(a, b, 1<<20)
	w.transfer(b, a, 1<<20)
}

// netnsOf gives the namespace of a process of the machine a name, so that traffic can be sent from it.
func (m *machine) netnsOf(name, pid string) testenv.NS {
	m.w.t.Helper()
	ns := testenv.NamedNS(name)
	m.w.check(os.WriteFile(ns.Path(), nil, 0o600))
	m.w.check(unix.Mount(m.Path("/proc/"+pid+"/ns/net"), ns.Path(), "none", unix.MS_BIND, ""))
	m.w.t.Cleanup(func() {
		_ = unix.Unmount(ns.Path(), unix.MNT_DETACH)
		_ = os.Remove(ns.Path())
	})
	return ns
}

// fiveNetworks is the use case: five networks over one underlay, with groups.
func fiveNetworks(containers int) testenv.Spec {
	s := testenv.DefaultSpec()
	s.Containers, s.HostAddresses = containers, nil
	return s
}

// stanzas of /etc/network/interfaces as Ansible wrote them, for the networks of the spec.
func stanzas(s testenv.Spec, host int) string {
	var b strings.Builder
	for _, n := range s.Networks {
		octet := n.Subnet.Addr().As4()[2]
		fmt.Fprintf(&b, `
auto encap-%[1]s
iface encap-%[1]s inet manual
    pre-up ip link add encap-%[1]s type vxlan id %[2]d group 239.1.1.%[3]d dev eth2 ttl 5 dstport 4789
    up ip link set encap-%[1]s up
    down ip link set encap-%[1]s down
    post-down ip link del encap-%[1]s

auto br-%[1]s
iface br-%[1]s inet static
    address 172.30.%[3]d.%[4]d
    netmask 255.255.252.0
    bridge_stp off
    bridge_waitport 0
    bridge_fd 0
    bridge_ports encap-%[1]s
    offload-sg off
`, n.Name, n.VNI, octet, host)
	}
	return b.String()
}

// TestOldSetup: the stanzas of the use case through import, load, unload and export, and up again by the real ifup, with traffic each time.
func TestOldSetup(t *testing.T) {
	spec := fiveNetworks(1)
	if !full() {
		spec.Networks = spec.Networks[1:3]
	}
	w := up(t, spec, false)
	w.patience(6 * time.Minute)
	nets := len(spec.Networks)
	hosts := []*machine{w.machine("h1", "ifupdown", "bridge-utils"), w.machine("h2", "ifupdown", "bridge-utils")}
	attach := func() {
		t.Helper()
		for _, m := range hosts {
			w.check(w.AttachContainers(w.ctx, m.host))
		}
	}
	all := func() {
		t.Helper()
		for _, n := range w.Spec.Networks {
			w.both(n.Name)
		}
	}

	for i, m := range hosts {
		m.binary()
		m.write("/etc/network/interfaces", fmt.Sprintf("auto lo\niface lo inet loopback\n\nauto eth2\niface eth2 inet static\n    address 192.0.2.%d/24\n\nsource interfaces.d/*\n", 11+i))
		m.write("/etc/network/interfaces.d/vxlan", stanzas(w.Spec, 11+i))
		m.run("ip addr flush dev eth2; ifup -a")
	}
	attach()
	all()

	for _, m := range hosts {
		m.run("mkdir -p /etc/vxbpf && vxbpf import >/etc/vxbpf/config.yaml 2>/tmp/import.log && vxbpf validate /etc/vxbpf/config.yaml")
		if out := m.run("cat /tmp/import.log"); strings.Count(out, "offload-sg") != nets || strings.Count(out, "/etc/network/interfaces.d/vxlan:") < nets {
			t.Errorf("import on %s did not say what it left out, with file and line:\n%s", m.host, out)
		}
		m.load("--recreate")
	}
	all()
	for _, m := range hosts {
		out := m.run("vxbpf status -o json")
		if n := strings.Count(out, `"datapath": "tc"`); n < nets {
			t.Errorf("on %s %d networks run on BPF, want %d:\n%s", m.host, n, nets, out)
		}
	}
	// The bridges were ifup's, so they are still there; and what load had made again is as ifup made it.
	for _, m := range hosts {
		m.run("vxbpf unload; ip -d link show encap-mgmt | grep -q ' udpcsum'; ip link show encap-mgmt | grep -q 'master br-mgmt'")
	}
	all()
	for _, m := range hosts {
		m.run("ifdown -a 2>/dev/null || true; ifup eth2; for l in flat mgmt storage repl vxlan; do no ip link show encap-$l; no ip link show br-$l; done")
	}

	for _, m := range hosts {
		m.run("vxbpf export --to ifupdown /etc/vxbpf/config.yaml >/etc/network/interfaces.d/vxlan && ifup -a && ip -d link show encap-mgmt")
	}
	attach()
	all()
	for _, m := range hosts {
		m.run("ifdown -a; for l in flat mgmt storage repl vxlan; do no ip link show encap-$l; no ip link show br-$l; done")
	}
}

// TestIfupdown: bridges whose stanzas say `bridge_ports encap-mgmt` come up as before where vxbpf makes encap-mgmt, whichever is first, and
// ifdown and ifup of such a bridge leave a network that works.
func TestIfupdown(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	w := up(t, spec, false)
	const bridge = `
auto br-mgmt
iface br-mgmt inet static
    address 172.29.236.%d/24
    bridge_stp off
    bridge_waitport 0
    bridge_fd 0
    bridge_ports encap-mgmt
`
	hosts := map[string]*machine{}
	for i, h := range []string{"h1", "h2"} {
		m := w.machine(h, "ifupdown", "bridge-utils")
		m.binary()
		m.write("/etc/network/interfaces", fmt.Sprintf(bridge, 201+i))
		m.write("/etc/vxbpf/config.yaml", string(w.Host(h).Config(w.Spec)))
		hosts[h] = m
	}
	// h1 as at boot: ifup before vxbpf. h2 the other way round.
	hosts["h1"].run("ifup -a")
	hosts["h1"].load("")
	hosts["h2"].load("")
	hosts["h2"].run("ifup -a")
	works := func(when string) {
		t.Helper()
		for h := range hosts {
			w.check(w.AttachContainers(w.ctx, h))
		}
		w.both("mgmt")
		for h, m := range hosts {
			m.run("ip addr show br-mgmt | grep -q 172.29.236.20 && bridge link show dev encap-mgmt | grep -q 'master br-mgmt state forwarding'")
			w.wait("h1's and h2's networks on BPF "+when, func() bool {
				out, _ := m.Run(w.ctx, "vxbpf status -o json")
				return strings.Contains(out, `"datapath": "tc"`)
			})
			_ = h
		}
	}
	works("after ifup -a")
	for _, h := range []string{"h1", "h2"} {
		hosts[h].run("ifdown br-mgmt && ifup br-mgmt")
		works("after ifdown and ifup on " + h)
	}
	hosts["h1"].run("ifdown -a; ifup -a")
	works("after ifdown -a and ifup -a")
}

// TestLXC: containers that lxc-start plugs into br-mgmt are carried by BPF from the moment that their veth is a port.
//
//	h1  lxc one ─ veth ─ br-mgmt ─ encap-mgmt ─ eth2 ══ eth2 ─ encap-mgmt ─ br-mgmt ─ veth ─ lxc two  h2
func TestLXC(t *testing.T) {
	spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
	spec.Containers = 0
	w := up(t, spec, false)
	var ends []testenv.NS
	hosts := []*machine{w.machine("h1"), w.machine("h2")}
	for i, m := range hosts {
		m.binary()
		m.write("/etc/vxbpf/config.yaml", string(w.Host(m.host).Config(w.Spec)))
		m.load("")
		m.write("/tmp/lxc.conf", fmt.Sprintf(`lxc.net.0.type = veth
lxc.net.0.link = br-mgmt
lxc.net.0.flags = up
lxc.net.0.name = eth0
lxc.net.0.mtu = 1450
lxc.net.0.veth.pair = vlxc
lxc.net.0.ipv4.address = 172.29.236.%d/24
lxc.apparmor.profile = unconfined
`, 11+i))
		m.run("lxc-create -n c -t busybox -f /tmp/lxc.conf -P /var/lib/lxc >/tmp/create.log 2>&1 || { cat /tmp/create.log; exit 1; }")
		// Nobody answers its DHCP client, which takes the address away meanwhile.
		m.run("sed -i /udhcpc/d /var/lib/lxc/c/rootfs/etc/init.d/rcS")
		m.run("lxc-start -n c -P /var/lib/lxc -l INFO -o /tmp/start.log || { cat /tmp/start.log; exit 1; }")
		pid := strings.TrimSpace(m.run("lxc-info -n c -P /var/lib/lxc -pH"))
		ends = append(ends, m.netnsOf(fmt.Sprintf("%s-lxc", w.Host(m.host).NS.Name()), pid))
	}
	a, b := ends[0], ends[1]
	target := w.Host("h2")
	_ = target
	addr := w.Spec.Networks[0].Subnet.Addr().Next()
	for range 11 {
		addr = addr.Next()
	}
	w.wait("the containers to answer", func() bool {
		r, err := testenv.Ping(w.ctx, a, addr, testenv.PingOptions{Count: 1, Timeout: time.Second})
		return err == nil && r.OK()
	})
	r, err := testenv.Transfer(w.ctx, a, b, addr, 8<<20, 1)
	w.check(err)
	if !r.Match {
		t.Error("data altered between the containers")
	}
	for _, m := range hosts {
		out := m.run("vxbpf status -o json")
		w.wait("vlxc of "+m.host+" as a fast port", func() bool {
			out = m.run("vxbpf status -o json")
			return strings.Contains(out, `"vlxc"`)
		})
		s := decodeStatus(t, out)
		port := false
		for _, p := range s.Networks[0].Ports {
			port = port || p.Name == "vlxc" && p.Fast
		}
		if !port {
			t.Errorf("on %s vlxc is no fast port: %+v", m.host, s.Networks[0].Ports)
		}
		if f := s.Networks[0].Sent.Fast + s.Networks[0].Received.Fast; f < 100 {
			t.Errorf("on %s BPF carried %d packets of 8 MB between the containers", m.host, f)
		}
		m.run("lxc-stop -k -n c -P /var/lib/lxc")
		w.wait("vlxc of "+m.host+" to go", func() bool { return !strings.Contains(m.run("vxbpf status -o json"), `"vlxc"`) })
	}
}

func decodeStatus(t *testing.T, text string) (s status) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("status: %v\n%s", err, text)
	}
	return s
}
