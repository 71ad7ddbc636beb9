// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vxbpf/vxbpf/testenv/need"
)

// What `vxbpf export` writes, brought up by the tools that read it, on two machines with the five networks.
//
//	h1 flat-1 ... vxlan-1 ─ br-* ─ encap-* ─ eth2 ══ eth2 ─ encap-* ─ br-* ─ flat-1 ... vxlan-1 h2

// setup is the script of a host that has its networks from iproute2: a group, remotes, both, static entries, and values that are nobody's default.
func setup(w *world, host string, n int) string {
	var b strings.Builder
	other := w.Hosts[0]
	if other.Name == host {
		other = w.Hosts[1]
	}
	static := w.Container(other.Name, "storage-1")
	link := func(name string, vni, mtu int, options, bridge string) {
		fmt.Fprintf(&b, "ip link add br-%[1]s mtu %[3]d type bridge stp_state 0 forward_delay 0%[5]s\n"+
			"ip link add encap-%[1]s mtu %[3]d type vxlan id %[2]d dev eth2 %[4]s dstport 4789 noudpcsum\n"+
			"ip link set encap-%[1]s master br-%[1]s\n"+
			"ip addr add 172.30.%[2]d.%[6]d/22 dev br-%[1]s\n", name, vni, mtu, options, bridge, n)
	}
	up := func(name string) {
		fmt.Fprintf(&b, "ip link set br-%[1]s up\nip link set encap-%[1]s up\n", name)
	}
	remote := func(name string) {
		fmt.Fprintf(&b, "bridge fdb append 00:00:00:00:00:00 dev encap-%s dst %s\n", name, other.Address)
	}
	local := fmt.Sprintf("local %s ttl 5", w.Host(host).Address)
	link("flat", 232, 1450, "group 239.1.1.232 "+local, "")
	up("flat")
	link("mgmt", 236, 1450, local, "")
	remote("mgmt")
	up("mgmt")
	link("storage", 244, 1450, local, "")
	remote("storage")
	fmt.Fprintf(&b, "bridge fdb add %[1]s dev encap-storage dst %[2]s self static\nbridge fdb replace %[1]s dev encap-storage master static\n", static.MAC, other.Address)
	up("storage")
	link("repl", 248, 1400, local+" ageing 100", " ageing_time 10000")
	remote("repl")
	up("repl")
	link("vxlan", 240, 1450, "group 239.1.1.240 "+local, "")
	remote("vxlan")
	up("vxlan")
	return b.String()
}

// picture is what rtnetlink says of the networks of a host, without what differs from boot to boot: object and attribute -> value.
type picture map[string]string

// takePicture reads links, addresses and tables.
func (m *machine) takePicture() picture {
	m.w.t.Helper()
	decode := func(command string) (out []map[string]any) {
		text := m.run(command)
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			m.w.t.Fatalf("%s on %s: %v\n%s", command, m.host, err, text)
		}
		return out
	}
	ours := func(name any) bool {
		s, _ := name.(string)
		return strings.HasPrefix(s, "br-") || strings.HasPrefix(s, "encap-")
	}
	p := picture{}
	for _, l := range decode("ip -json -details address show") {
		if !ours(l["ifname"]) {
			continue
		}
		name := l["ifname"].(string)
		for _, k := range []string{"mtu", "master"} {
			if v, ok := l[k]; ok {
				p[name+" "+k] = fmt.Sprint(v)
			}
		}
		flags, _ := l["flags"].([]any)
		p[name+" up"] = fmt.Sprint(slices.Contains(flags, any("UP")))
		info, _ := l["linkinfo"].(map[string]any)
		data, _ := info["info_data"].(map[string]any)
		for k, v := range data {
			if !slices.ContainsFunc([]string{"_timer", "_id", "root_", "topology_", "designated"}, func(s string) bool { return strings.Contains(k, s) }) || k == "id" {
				p[name+" "+fmt.Sprint(info["info_kind"])+" "+k] = fmt.Sprint(v)
			}
		}
		addresses, _ := l["addr_info"].([]any)
		for _, a := range addresses {
			if a := a.(map[string]any); a["scope"] != "link" {
				p[fmt.Sprintf("%s address %v/%v", name, a["local"], a["prefixlen"])] = "there"
			}
		}
	}
	for _, e := range decode("bridge -json fdb show") {
		if name, _ := e["ifname"].(string); ours(name) && (e["dst"] != nil && e["state"] == "permanent" || e["state"] == "static") {
			// "permanent" and "static" are the same in a vxlan device's table: learning changes neither, and they do not age.
			if e["dst"] != nil {
				p[fmt.Sprintf("%s fdb %v to %v", name, e["mac"], e["dst"])] = "there"
			} else {
				p[fmt.Sprintf("%s fdb %v in the bridge", name, e["mac"])] = fmt.Sprint(e["state"])
			}
		}
	}
	return p
}

// but is the picture without the attributes that may differ.
func (p picture) but(may map[string]string) picture {
	out := maps.Clone(p)
	maps.DeleteFunc(out, func(k, _ string) bool {
		for end := range may {
			if strings.HasSuffix(k, end) {
				return true
			}
		}
		return false
	})
	return out
}

// exporter is a tool that `vxbpf export` writes for.
type exporter struct {
	format string
	// packages that the machines get, from `make debs`.
	packages []string
	// prepare writes what the host has besides: the underlay.
	prepare func(m *machine, n int)
	// up brings up what the files say that `vxbpf export --dir /` has put in place.
	up string
	// down takes it away again; empty: the tool has no such thing.
	down string
	// may differ: the end of a picture's key -> why.
	may map[string]string
}

func interfaces(m *machine, n int) {
	m.write("/etc/network/interfaces", fmt.Sprintf("auto lo\niface lo inet loopback\n\nauto eth2\niface eth2 inet static\n    address 192.0.2.%d/24\n\nsource /etc/network/interfaces.d/*\n", n))
	m.run("mkdir -p /etc/network/interfaces.d")
}

// networkd cannot be sent what udev knows here, so it is told that there is no udev: /sys is read-only.
const startNetworkd = `mount -o remount,bind,ro /sys
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /run/udev
chown -R systemd-network: /run/systemd/netif
SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console setsid /lib/systemd/systemd-networkd >/var/log/networkd.log 2>&1 </dev/null &`

var noStatic = map[string]string{" in the bridge": "networkd would make a local entry of it; export says so"}

var exporters = []exporter{
	{
		format: "ifupdown", packages: []string{"ifupdown", "bridge-utils"}, prepare: interfaces,
		up: "ifup -a", down: "ifdown -a",
	},
	{
		format: "ifupdown2", packages: []string{"ifupdown2"}, prepare: interfaces,
		up: "ifup -a", down: "ifdown -a",
		may: map[string]string{"vxlan udp_csum": "it cannot say noudpcsum, and export says so"},
	},
	{
		format: "iproute2",
		prepare: func(m *machine, n int) {
			m.write("/etc/rc.underlay", fmt.Sprintf("ip addr add 192.0.2.%d/24 dev eth2\n", n))
		},
		up: "sh -e /etc/rc.underlay; vxlan-networks", down: "vxlan-networks down",
	},
	{
		format: "networkd", packages: []string{"netplan.io"},
		prepare: func(m *machine, n int) {
			m.write("/etc/systemd/network/eth2.network", fmt.Sprintf("[Match]\nName=eth2\n\n[Network]\nAddress=192.0.2.%d/24\n", n))
		},
		up:  startNetworkd,
		may: noStatic,
	},
	{
		format: "netplan", packages: []string{"netplan.io"},
		prepare: func(m *machine, n int) {
			m.write("/etc/netplan/50-underlay.yaml", fmt.Sprintf("network:\n  version: 2\n  renderer: networkd\n  ethernets:\n    eth2:\n      addresses: [192.0.2.%d/24]\n", n))
		},
		up:  "netplan generate\n" + startNetworkd,
		may: map[string]string{" in the bridge": noStatic[" in the bridge"], "vxlan remote": "a single remote is the link's own; the table has the same entry"},
	},
}

// TestExport: the networks of a host are imported and exported, and what the other tool then makes of them is what was there: the same links,
// bridges, addresses and tables, and traffic between the containers.
func TestExport(t *testing.T) {
	if !full() {
		need.Elsewhere(t, "test-install", "fetches and runs five tools")
	}
	for _, e := range exporters {
		t.Run(e.format, func(t *testing.T) {
			w := up(t, fiveNetworks(1), false)
			w.patience(5 * time.Minute)
			var hosts []*machine
			var before []picture
			for i, h := range []string{"h1", "h2"} {
				m := w.machine(h, e.packages...)
				m.binary()
				m.write("/etc/machine-id", fmt.Sprintf("%032x\n", 11+i)) // from which networkd makes MAC addresses
				e.prepare(m, 11+i)
				m.write("/root/setup.sh", setup(w, h, 11+i))
				m.run("sh -e /root/setup.sh")
				hosts, before = append(hosts, m), append(before, m.takePicture())
			}
			traffic := func() {
				t.Helper()
				for _, m := range hosts {
					w.check(w.AttachContainers(w.ctx, m.host))
				}
				for _, n := range w.Spec.Networks {
					w.both(n.Name)
				}
			}
			traffic()
			for _, m := range hosts {
				m.run("mkdir -p /etc/vxbpf; vxbpf import --from iproute2 /root/setup.sh >/etc/vxbpf/config.yaml")
				m.run("for l in flat mgmt storage repl vxlan; do ip link del encap-$l; ip link del br-$l; done; ip addr flush dev eth2")
				m.run("vxbpf export --to " + e.format + " --dir / /etc/vxbpf/config.yaml")
				m.run(e.up)
			}
			for i, m := range hosts {
				// A daemon takes its time; the last picture counts.
				expect, got := before[i].but(e.may), picture{}
				for end := time.Now().Add(patience(20 * time.Second)); time.Now().Before(end) && !cmp.Equal(expect, got); time.Sleep(200 * time.Millisecond) {
					got = m.takePicture().but(e.may)
				}
				if d := cmp.Diff(expect, got); d != "" {
					t.Errorf("%s on %s: before (-), after (+)\n%s", e.format, m.host, d)
				}
			}
			traffic()
			if e.down != "" {
				for _, m := range hosts {
					m.run(e.down + "\nfor l in flat mgmt storage repl vxlan; do no ip link show encap-$l; no ip link show br-$l; done")
				}
			}
		})
	}
}
