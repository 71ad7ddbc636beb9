// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// MIGRATION.md, its commands as they stand there, on three hosts that ifupdown gave the five networks, with groups.
//
//	h1 flat-1 ... vxlan-1 ─ br-* ─ encap-* ─ eth2 ─┐
//	h2 the same                                    ├─ switch
//	h3 the same                                   ─┘

// guide is MIGRATION.md: section -> commands, one block of them per element.
func guide(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	section, in := "", false
	code := regexp.MustCompile(`^ {4,7}[a-z]`)
	for _, line := range strings.Split(string(readFile(t, "../../tools/convert/MIGRATION.md")), "\n") {
		if s, ok := strings.CutPrefix(line, "## "); ok {
			section = s
		}
		if !code.MatchString(line) {
			in = false
			continue
		}
		blocks := out[section]
		if in {
			blocks[len(blocks)-1] += "\n" + strings.TrimSpace(line)
		} else {
			blocks = append(blocks, strings.TrimSpace(line))
		}
		out[section], in = blocks, true
	}
	return out
}

// systemctl of machines: what the unit does, by hand.
const systemctl = `#!/bin/sh
set -e
pid() { vxbpf status -o json 2>/dev/null | sed -n 's/.*"daemon_pid": \([1-9][0-9]*\).*/\1/p'; }
stop() { p=$(pid); [ -z "$p" ] || { kill "$p"; while kill -0 "$p" 2>/dev/null; do sleep 0.05; done; }; }
start() {
	setsid vxbpf load /etc/vxbpf/config.yaml >>/var/log/vxbpf.log 2>&1 </dev/null &
	for i in $(seq 200); do [ -z "$(pid)" ] || exit 0; kill -0 $! || break; sleep 0.1; done
	cat /var/log/vxbpf.log; exit 1
}
case "$*" in
"enable --now vxbpf" | "start vxbpf") start ;;
"disable --now vxbpf") stop ;;
"reload vxbpf") vxbpf load --reload /etc/vxbpf/config.yaml ;;
*) echo "systemctl $*: not here"; exit 1 ;;
esac
`

// boot is what is left of a machine's networks after a restart, and ifupdown, and with vxbpf its unit.
func (m *machine) boot(vxbpf bool) {
	m.w.t.Helper()
	m.run(`p=$(vxbpf status -o json 2>/dev/null | sed -n 's/.*"daemon_pid": \([1-9][0-9]*\).*/\1/p'); [ -z "$p" ] || kill -9 $p
find /sys/fs/bpf/vxbpf -type f -delete 2>/dev/null || true
rm -rf /sys/fs/bpf/vxbpf /run/vxbpf /run/network/*
for l in $(ip -br link | sed -n 's/^\(encap-[a-z]*\|br-[a-z]*\).*/\1/p'); do ip link del $l; done
ip addr flush dev eth2
ifup -a`)
	if vxbpf {
		m.run("systemctl start vxbpf")
	}
	m.w.check(m.w.AttachContainers(m.w.ctx, m.host))
}

func TestMigrationGuide(t *testing.T) {
	if !full() {
		need.Elsewhere(t, "test-install", "builds a package")
	}
	deb, _ := makePackage(t, "0.0.4")
	spec := fiveNetworks(1)
	spec.Underlay.Kind = testenv.Switch
	spec.Hosts = []testenv.HostSpec{{Name: "h1"}, {Name: "h2"}, {Name: "h3"}}
	w := up(t, spec, false)
	w.patience(10 * time.Minute)
	g := guide(t)
	step := func(m *machine, section string, n int, want string) {
		t.Helper()
		if n >= len(g[section]) || !strings.Contains(g[section][n], want) {
			t.Fatalf("MIGRATION.md, %s: block %d is not about %q: %q", section, n, want, g[section])
		}
		out := m.run("cd /root; " + g[section][n])
		t.Logf("%s# %s\n%s", m.host, g[section][n], out)
	}
	traffic := func(when string) {
		t.Helper()
		for _, n := range w.Spec.Networks {
			for _, a := range w.Hosts {
				for _, b := range w.Hosts {
					if a != b {
						to := w.Container(b.Name, n.Name+"-1").Addr.Addr()
						w.wait(fmt.Sprintf("an answer from %s to %s over %s %s", a.Name, b.Name, n.Name, when), func() bool {
							r, err := testenv.Ping(w.ctx, w.Container(a.Name, n.Name+"-1").NS, to, testenv.PingOptions{Count: 1, Timeout: time.Second})
							return err == nil && r.OK()
						})
					}
				}
			}
		}
	}
	onBPF := func(m *machine) {
		t.Helper()
		w.wait("five networks of "+m.host+" on BPF", func() bool {
			out, _ := m.Run(w.ctx, "vxbpf status -o json")
			return strings.Count(out, `"datapath": "tc"`) == len(w.Spec.Networks)
		})
	}

	var hosts []*machine
	for i, h := range w.Hosts {
		m := w.machine(h.Name, "ifupdown", "bridge-utils")
		m.copy(deb, "/root/vxbpf_0.0.4_amd64.deb")
		w.check(m.Write("/usr/local/sbin/systemctl", []byte(systemctl), 0o755))
		interfaces(m, 11+i)
		m.write("/etc/network/interfaces.d/vxlan", stanzas(w.Spec, 11+i))
		m.run("ip addr flush dev eth2; ifup -a")
		w.check(w.AttachContainers(w.ctx, h.Name))
		hosts = append(hosts, m)
	}
	traffic("before")

	const one = "One host, kernel to vxbpf"
	for _, m := range hosts {
		step(m, one, 0, "dpkg -i")
		step(m, one, 1, "vxbpf import")
		step(m, one, 2, "--dry-run")
		step(m, one, 3, "--recreate")
		onBPF(m)
		traffic("with vxbpf on " + m.host)
		if m.host == "h3" { // leaves the old stanzas for a while, as the guide allows
			m.run(`sed -i 's/type vxlan .*/& noudpcsum/' /etc/network/interfaces.d/vxlan`)
			m.boot(true)
			onBPF(m)
			traffic("after a restart of h3 with the old stanzas")
		}
		m.run(`sed -i '/^auto encap-/,/post-down/d' /etc/network/interfaces.d/vxlan; no grep -q "type vxlan" /etc/network/interfaces.d/vxlan`)
		m.boot(true)
		onBPF(m)
		traffic("after a restart of " + m.host)
	}

	const unicast = "Multicast to unicast"
	for _, edit := range []string{`s/^    group: .*/&\n    remotes: [OTHERS]/`, `/^    group:/d`} {
		for i, m := range hosts {
			var others []string
			for j, o := range w.Hosts {
				if i != j {
					others = append(others, o.Address.String())
				}
			}
			m.run("sed -i '" + strings.ReplaceAll(edit, "OTHERS", strings.Join(others, ", ")) + "' /etc/vxbpf/config.yaml")
			s := w.stream("h1", "h2")
			step(m, unicast, 0, "reload")
			w.whole(s, "reload on "+m.host)
			onBPF(m)
			traffic("after the reload of " + m.host)
		}
	}

	const back = "Back"
	for _, m := range hosts {
		s := w.stream("h1", "h2")
		step(m, back, 0, "export --to ifupdown")
		w.whole(s, "the way back on "+m.host)
		traffic("without vxbpf on " + m.host)
		step(m, back, 1, "ifup --force")
		traffic("with encap-mgmt made by ifup on " + m.host)
		m.boot(false)
		traffic("after a restart of " + m.host + " without vxbpf")
	}
}
