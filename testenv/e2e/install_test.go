// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// Installation by package and by Ansible, on h1 and h2 as machines of their own.
//
//	h1 ─ mgmt-1, br-mgmt, encap-mgmt, eth2 ══ eth2, encap-mgmt, br-mgmt, mgmt-1 ─ h2

// makePackage builds a deb and an rpm of some version and returns their paths.
func makePackage(t *testing.T, version string) (deb, rpm string) {
	t.Helper()
	cmd := exec.Command("make", "-s", "-C", "../..", "package", "PKG_VERSION="+version)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make package: %v\n%s", err, out)
	}
	find := func(pattern string) string {
		found, err := filepath.Glob("../../dist/" + pattern)
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		return found[0]
	}
	return find("vxbpf_" + version + "_*.deb"), find("vxbpf-" + version + "-*.rpm")
}

func (m *machine) copy(file, to string) {
	m.w.t.Helper()
	b, err := os.ReadFile(file)
	m.w.check(err)
	m.w.check(m.Write(to, b, 0o644))
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPackage: installed on a machine that never had it, config edited, loaded, upgraded under traffic, removed under traffic, purged: nothing left.
// VXBPF_TEST_FULL=1: the packages are built first.
func TestPackage(t *testing.T) {
	if !full() {
		need.Elsewhere(t, "test-install", "builds packages")
	}
	oldDeb, oldRPM := makePackage(t, "0.0.1")
	saved := readFile(t, oldDeb)
	newDeb, rpm := makePackage(t, "0.0.2")
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	w.patience(6 * time.Minute)
	w.start("h2")
	m := w.machine("h1")
	w.check(m.Write("/tmp/old.deb", saved, 0o644))
	m.copy(newDeb, "/tmp/new.deb")

	m.run("dpkg --force-unsafe-io -i /tmp/old.deb")
	if out := m.run("vxbpf version; vxbpf status 2>&1 || true; ls /usr/share/man/man8/vxbpf-load.8.gz /usr/share/bash-completion/completions/vxbpf /usr/lib/systemd/system/vxbpf.service"); !strings.Contains(out, "0.0.1") {
		t.Errorf("after the installation:\n%s", out)
	}
	m.run("no vxbpf validate /etc/vxbpf/config.yaml; man -l /usr/share/man/man8/vxbpf-import.8.gz 2>/dev/null | head -5 || true")
	m.run(`no sh -c "ldd /usr/sbin/vxbpf | grep -q '=>'"`)
	m.write("/etc/vxbpf/config.yaml", string(w.Host("h1").Config(w.Spec)))
	m.load("")
	w.check(w.AttachContainers(w.ctx, "h1"))
	w.both("mgmt")

	stream := func(what string, do func()) {
		t.Helper()
		s := w.stream("h1", "h2")
		do()
		w.whole(s, what)
	}
	stream("upgrade", func() {
		out := m.run("dpkg --force-unsafe-io -i /tmp/new.deb 2>&1; vxbpf version")
		if !strings.Contains(out, "0.0.2") || !strings.Contains(out, "end the daemon and run") {
			t.Errorf("upgrade:\n%s", out)
		}
		m.run("pid=$(vxbpf status -o json | sed -n 's/.*\"daemon_pid\": \\([0-9]*\\).*/\\1/p'); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.1; done")
		m.load("")
	})
	if out := m.run("cat /etc/vxbpf/config.yaml"); !strings.Contains(out, "vni: 236") {
		t.Errorf("the upgrade took the edited config away:\n%s", out)
	}
	stream("removal", func() { m.run("dpkg -r vxbpf") })
	m.run("ip link show encap-mgmt >/dev/null && test -e /etc/vxbpf/config.yaml && no test -e /usr/sbin/vxbpf")
	m.run("dpkg --purge vxbpf")
	// All that was ever written to on this machine, but what dpkg, man-db and this test keep.
	files, err := m.Changed()
	w.check(err)
	for _, f := range files {
		if !slices.ContainsFunc([]string{"/var/lib/dpkg/", "/var/log/dpkg.log", "/var/log/vxbpf.log", "/var/cache/man/", "/usr/sbin/policy-rc.d"}, func(p string) bool { return strings.HasPrefix(f, p) }) {
			t.Errorf("left after purge: %s", f)
		}
	}
	m.run("no ip link show encap-mgmt; no ip link show br-mgmt; no test -e /sys/fs/bpf/vxbpf; no test -e /etc/vxbpf; no test -e /run/vxbpf; no sh -c 'tc filter show dev eth2 ingress | grep vx_'; no dpkg -s vxbpf")

	if _, err := exec.LookPath("rpm"); err != nil {
		t.Fatal("rpm is missing: make deps")
	}
	m.copy(oldRPM, "/tmp/old.rpm")
	m.copy(rpm, "/tmp/new.rpm")
	m.run("rpm --initdb && rpm -i --nodeps --ignoreos /tmp/old.rpm && rpm -q vxbpf && vxbpf version | grep 0.0.1")
	m.write("/etc/vxbpf/config.yaml", string(w.Host("h1").Config(w.Spec)))
	m.load("")
	w.check(w.AttachContainers(w.ctx, "h1"))
	stream("upgrade by rpm", func() { m.run("rpm -U --nodeps --ignoreos /tmp/new.rpm && vxbpf version | grep 0.0.2") })
	m.run("grep -q 'vni: 236' /etc/vxbpf/config.yaml")
	stream("removal by rpm", func() { m.run("rpm -e --nodeps vxbpf") })
	m.run("ip link show encap-mgmt >/dev/null; no test -e /usr/sbin/vxbpf; no sh -c 'find /sys/fs/bpf/vxbpf -type f | grep vx'; no sh -c 'tc filter show dev eth2 ingress | grep vx_'")
}

// TestPackageScripts: what a package does at its removal and at purge, with the binary under test in the package's place: traffic goes on
// when it is removed, and nothing is left when it is purged.
func TestPackageScripts(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	w.start("h2")
	m := w.machine("h1")
	m.binary()
	m.write("/etc/vxbpf/config.yaml", string(w.Host("h1").Config(w.Spec)))
	for _, s := range []string{"postinstall", "preremove", "postremove"} {
		m.copy("../../tools/packaging/scripts/"+s, "/tmp/"+s)
	}
	m.run("sh /tmp/postinstall configure")
	m.load("")
	w.check(w.AttachContainers(w.ctx, "h1"))
	w.both("mgmt")
	if out := m.run("sh /tmp/preremove upgrade 2; sh /tmp/postinstall configure 1"); !strings.Contains(out, "end the daemon and run 'vxbpf load'") {
		t.Errorf("an upgrade without systemd says nothing about the daemon that runs:\n%s", out)
	}
	s := w.stream("h1", "h2")
	out := m.run("sh /tmp/preremove remove; sh /tmp/postremove remove")
	w.whole(s, "removal")
	if !strings.Contains(out, "encap-mgmt br-mgmt") && !strings.Contains(out, "br-mgmt encap-mgmt") {
		t.Errorf("the removal does not say which links stay:\n%s", out)
	}
	m.run("ip link show encap-mgmt >/dev/null; no vxbpf status")
	m.run("sh /tmp/postremove purge; no ip link show encap-mgmt; no ip link show br-mgmt; no test -e /sys/fs/bpf/vxbpf; no test -e /etc/vxbpf; no test -e /run/vxbpf")
}

// ansible runs the role on h1 and h2 and returns what it printed, and the recap by host.
func (w *world) ansible(dir string, args ...string) (out string, recap map[string]map[string]string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.ctx, "ansible-playbook", append([]string{"-i", "inventory.yml", "playbook.yml", "--diff"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "ANSIBLE_CONFIG="+filepath.Join(dir, "ansible.cfg"), "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1")
	b, err := cmd.CombinedOutput()
	out = string(b)
	recap = map[string]map[string]string{}
	_, tail, ok := strings.Cut(out, "PLAY RECAP")
	if !ok {
		w.t.Fatalf("ansible-playbook: %v\n%s", err, out)
	}
	for _, line := range strings.Split(tail, "\n") {
		host, counts, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		c := map[string]string{}
		for _, f := range regexp.MustCompile(`(\w+)=(\d+)`).FindAllStringSubmatch(counts, -1) {
			c[f[1]] = f[2]
		}
		recap[strings.TrimSpace(host)] = c
	}
	return out, recap
}

// TestAnsible: the role on two hosts. The first run changes, the second does not; --check --diff tells the truth and changes nothing; a config
// that cuts one host off is rolled back there by itself, and the other host is not touched.
func TestAnsible(t *testing.T) {
	if !full() {
		need.Elsewhere(t, "test-install", "seven runs of ansible-playbook")
	}
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Fatal("ansible-playbook is missing: make deps")
	}
	spec := fiveNetworks(1)
	w := up(t, spec, false)
	w.patience(25 * time.Minute)
	roles, err := filepath.Abs("../../tools/ansible/roles")
	w.check(err)
	plugin, err := os.ReadFile("testdata/machine.py")
	w.check(err)
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		w.check(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		w.check(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	put("ansible.cfg", "[defaults]\nroles_path = "+roles+"\nconnection_plugins = "+dir+"/connection\nretry_files_enabled = false\ninterpreter_python = /usr/bin/python3\npipelining = true\ngather_subset = !all,network\nlocal_tmp = "+dir+"/tmp\n")
	put("connection/machine.py", string(plugin))
	put("playbook.yml", `---
- name: VXLAN networks
  hosts: vxbpf
  gather_facts: true
  roles: [vxbpf]
`)
	deb, _ := makePackage(t, "0.0.3")
	pkg, err := filepath.Abs(deb)
	w.check(err)
	hosts := map[string]*machine{}
	inventory := "---\nvxbpf:\n  hosts:\n"
	for i, h := range []string{"h1", "h2"} {
		m := w.machine(h)
		m.run("mkdir -p /etc/network/interfaces.d; no test -e /etc/vxbpf; no command -v vxbpf")
		hosts[h] = m
		inventory += fmt.Sprintf("    %s: {ansible_connection: machine, machine_pid: %d, machine_root: %s, host_number: %d}\n", h, m.Pid(), m.Root(), 11+i)
	}
	put("inventory.yml", inventory)
	vars := func(extra string) {
		t.Helper()
		text := "---\nvxbpf_package: " + pkg + "\nvxbpf_service_manager: none\nvxbpf_confirm_seconds: 45\n" + extra + "vxbpf_networks:\n"
		for _, n := range spec.Networks {
			text += fmt.Sprintf("  - {name: %s, vni: %d, address: \"172.30.%d.{{ host_number }}/22\"}\n", n.Name, n.VNI, n.Subnet.Addr().As4()[2])
		}
		put("group_vars/vxbpf.yml", text)
	}
	vars("")
	files := "md5sum /etc/vxbpf/config.yaml /etc/network/interfaces.d/* 2>/dev/null; vxbpf status 2>/dev/null | head -1 | cut -d, -f1-3; ip -br link | grep -c encap || true"
	state := func() (s string) {
		for _, h := range []string{"h1", "h2"} {
			s += hosts[h].run("(" + files + ") || true")
		}
		return s
	}

	before := state()
	out, recap := w.ansible(dir, "--check")
	for h, c := range recap {
		if c["failed"] != "0" || c["changed"] == "0" {
			t.Errorf("check mode on %s: %v, want changes that would be made", h, c)
		}
	}
	// What it shows as the file to be is the file that the run then writes.
	shown := map[string]bool{}
	for _, line := range strings.Split(out, "\n") {
		if text, ok := strings.CutPrefix(line, "+"); ok && !strings.HasPrefix(text, "++") {
			shown[strings.TrimSpace(text)] = true
		}
	}
	if now := state(); now != before {
		t.Errorf("check mode changed the hosts from\n%s\nto\n%s", before, now)
	}

	out, recap = w.ansible(dir)
	for h, c := range recap {
		if c["failed"] != "0" || c["changed"] == "0" {
			t.Fatalf("first run on %s: %v\n%s", h, c, out)
		}
	}
	for h := range hosts {
		w.check(w.AttachContainers(w.ctx, h))
		for _, line := range strings.Split(strings.TrimSpace(hosts[h].run("cat /etc/vxbpf/config.yaml /etc/network/interfaces.d/eth2.cfg")), "\n") {
			if !shown[strings.TrimSpace(line)] {
				t.Errorf("check mode did not show this line, which %s now has: %q", h, line)
			}
		}
	}
	for _, n := range spec.Networks {
		w.both(n.Name)
	}
	if out := hosts["h1"].run("cat /etc/network/interfaces.d/eth2.cfg"); !strings.Contains(out, "address 192.0.2.11") {
		t.Errorf("the underlay's address was not made static:\n%s", out)
	}

	before = state()
	out, recap = w.ansible(dir)
	for h, c := range recap {
		if c["failed"] != "0" || c["changed"] != "0" {
			t.Errorf("second run on %s: %v\n%s", h, c, out)
		}
	}
	if now := state(); now != before {
		t.Errorf("the second run changed the hosts from\n%s\nto\n%s", before, now)
	}

	// A group in place of the list of hosts.
	vars("vxbpf_multicast: true\n")
	out, recap = w.ansible(dir, "--check", "--limit", "h1")
	for _, n := range spec.Networks {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^\+ +group: 239\.1\.1\.%d$`, n.VNI)).MatchString(out) {
			t.Errorf("with vxbpf_multicast network %s has no group: %v\n%s", n.Name, recap, out)
		}
	}

	// A change: check mode says what the run then does.
	vars("vxbpf_ttl: 9\n")
	out, recap = w.ansible(dir, "--check")
	if recap["h1"]["changed"] != "1" || !strings.Contains(out, "+  ttl: 9") || !strings.Contains(out, "-  ttl: 5") {
		t.Errorf("check mode before a change: %v\n%s", recap, out)
	}
	out, recap = w.ansible(dir)
	if recap["h1"]["failed"] != "0" || recap["h1"]["changed"] == "0" {
		t.Errorf("a change: %v\n%s", recap, out)
	}
	hosts["h1"].run("ip -d link show encap-" + spec.Networks[0].Name + " | grep -q 'ttl 9'")

	// h2's config is wrong in a way that only shows when it is in force: its check fails, as when it cannot be reached.
	before = hosts["h2"].run("md5sum /etc/vxbpf/config.yaml")
	vars("vxbpf_ttl: 7\nvxbpf_check_command: \"{{ 'false' if inventory_hostname == 'h2' else 'true' }}\"\n")
	out, recap = w.ansible(dir)
	if recap["h1"]["failed"] != "0" || recap["h2"]["failed"] != "1" {
		t.Errorf("a wrong config on h2: %v\n%s", recap, out)
	}
	if now := hosts["h2"].run("md5sum /etc/vxbpf/config.yaml; no test -e /etc/vxbpf/config.yaml.new"); now != before {
		t.Errorf("the config file of h2 was %s and is %s", before, now)
	}
	first := spec.Networks[0].Name
	w.waitFor(2*time.Minute, "h2 to roll back by itself", func() bool {
		_, err := hosts["h2"].Run(w.ctx, "ip -d link show encap-"+first+" | grep -q 'ttl 9'")
		return err == nil
	})
	hosts["h1"].run("ip -d link show encap-" + first + " | grep -q 'ttl 7'")
	for _, n := range spec.Networks {
		w.both(n.Name)
	}
}

// TestAnsibleLint: the role and its example are clean YAML; ansible-lint has its say where it is installed.
func TestAnsibleLint(t *testing.T) {
	const dir = "../../tools/ansible"
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	run("yamllint", "-s", "-c", ".yamllint", ".")
	run("ansible-playbook", "-i", "examples/osa/inventory.yml", "examples/osa/playbook.yml", "--syntax-check")
	if _, err := exec.LookPath("ansible-lint"); err == nil {
		run("ansible-lint", "--offline", "-q", ".")
	}
}
