// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tools are the commands that tests run, taken from this machine with the
// libraries that they are linked to. sh, because busybox's takes its own ip for ip.
var tools = []string{"sh", "ip", "bridge", "tc", "nft", "iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy", "ebtables-legacy", "ebtables-nft", "wg"}

// The file system of the guest. Everything is in memory.
const (
	guestSrc  = "/src" // packages: their test binary and testdata, as in the source tree
	guestBin  = "/bin/vxbpf"
	guestPlan = "/plan.json"
)

// staging is a directory that becomes an archive for the kernel to unpack.
type staging struct{ dir string }

func (s staging) path(name string) string { return filepath.Join(s.dir, name) }

func (s staging) write(name string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(s.path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(s.path(name), data, mode)
}

func (s staging) copy(from, name string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return s.write(name, b, 0o755)
}

// pack appends the directory to an archive in the format that the kernel
// takes. Not compressed: unpacking costs an emulated CPU more than copying.
func (s staging) pack(ctx context.Context, archive *os.File) error {
	var names bytes.Buffer
	err := filepath.WalkDir(s.dir, func(path string, _ fs.DirEntry, err error) error {
		if rel, rerr := filepath.Rel(s.dir, path); err == nil && rerr == nil {
			fmt.Fprintf(&names, "%s\x00", rel)
		}
		return err
	})
	if err != nil {
		return err
	}
	var msg strings.Builder
	cmd := exec.CommandContext(ctx, "cpio", "--create", "--format=newc", "--null", "--owner=0:0", "--quiet")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = s.dir, &names, archive, &msg
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("pack the initramfs: %w: %s", err, msg.String())
	}
	return nil
}

// tool copies a command and its libraries to where it expects them.
func (s staging) tool(ctx context.Context, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	// iptables-legacy is a name of xtables-legacy-multi, which looks at the name.
	if err := s.copy(path, filepath.Join("/bin", name)); err != nil {
		return err
	}
	return s.libraries(ctx, path)
}

func (s staging) libraries(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return nil // static
	}
	for _, f := range strings.Fields(string(out)) {
		if strings.HasPrefix(f, "/") && !exists(s.path(f)) {
			if err := s.copy(f, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// suite is one package's tests, as the guest runs them.
type suite struct {
	Package string   // as a path in the source tree
	Dir     string   // to run in
	Argv    []string // the test binary and its arguments
}

// plan is what a guest is to do.
type plan struct {
	Kernel string
	Early  []string // modules
	Env    []string
	Suites []suite
	// Shell gives a shell on the console instead.
	Shell bool
}

// userland builds and collects what is the same for all kernels.
func userland(ctx context.Context, s staging, root, self string, packages []string) error {
	for name, text := range map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
		"/etc/group":  "root:x:0:\n",
		"/etc/hosts":  "127.0.0.1 localhost\n::1 localhost\n",
	} {
		if err := s.write(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "root", "var", "usr/bin", "usr/sbin"} {
		if err := os.MkdirAll(s.path(d), 0o755); err != nil {
			return err
		}
	}
	if err := s.copy(self, "/init"); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w; install busybox-static", err)
	}
	if out, err := exec.CommandContext(ctx, "ldd", busybox).CombinedOutput(); err == nil {
		return fmt.Errorf("%s is linked to libraries; install busybox-static\n%s", busybox, out)
	}
	if err := s.copy(busybox, "/bin/busybox"); err != nil {
		return err
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox applets: %w", err)
	}
	for _, a := range strings.Fields(string(applets)) {
		if slices.Contains(tools, a) || a == "busybox" {
			continue
		}
		if err := os.Symlink("/bin/busybox", s.path("/bin/"+a)); err != nil {
			return err
		}
	}
	// What names protocols for ebtables and iptables.
	for _, f := range []string{"/etc/ethertypes", "/etc/protocols", "/etc/services"} {
		if exists(f) {
			if err := s.copy(f, f); err != nil {
				return err
			}
		}
	}
	// The kernel starts this one when it misses a module.
	if err := s.write("/sbin/.keep", nil, 0o644); err != nil {
		return err
	}
	if err := os.Symlink("/bin/busybox", s.path("/sbin/modprobe")); err != nil {
		return err
	}
	for _, t := range tools {
		if err := s.tool(ctx, t); err != nil {
			return err
		}
	}
	// What iptables loads for a match or a target.
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/xtables", "/lib/x86_64-linux-gnu/ebtables"} {
		plugins, err := filepath.Glob(filepath.Join(dir, "*.so"))
		if err != nil {
			return err
		}
		for _, p := range plugins {
			if err := s.copy(p, p); err != nil {
				return err
			}
		}
	}

	build := func(out string, args ...string) error {
		cmd := exec.CommandContext(ctx, "go", append(args[:1:1], append([]string{"-o", s.path(out), "-ldflags=-s -w"}, args[1:]...)...)...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if b, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, b)
		}
		return nil
	}
	if err := build(guestBin, "build", "./cmd/vxbpf"); err != nil {
		return err
	}
	for _, p := range packages {
		if err := build(testBinary(p), "test", "-c", "./"+p); err != nil {
			return err
		}
		if !exists(s.path(testBinary(p))) {
			return fmt.Errorf("build the tests of %s: it has none", p)
		}
		data := filepath.Join(root, p, "testdata")
		if !exists(data) {
			continue
		}
		if err := os.CopyFS(s.path(filepath.Join(guestSrc, p, "testdata")), os.DirFS(data)); err != nil {
			return err
		}
	}
	return nil
}

func testBinary(pkg string) string {
	return filepath.Join(guestSrc, pkg, filepath.Base(pkg)+".test")
}

// modulesInto lays a kernel's modules out as modprobe wants them.
func modulesInto(s staging, release string, mods []module) error {
	dir := filepath.Join("/lib/modules", release)
	var dep, alias strings.Builder
	have := map[string]module{}
	for _, m := range mods {
		have[m.name] = m
	}
	for _, m := range mods {
		if err := s.write(filepath.Join(dir, m.name+".ko"), m.object, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&dep, "%s.ko:", m.name)
		need := map[string]bool{}
		var walk func(module)
		walk = func(m module) {
			for _, d := range m.depends {
				if d = canonical(d); have[d].name != "" && !need[d] {
					need[d] = true
					walk(have[d])
				}
			}
		}
		walk(m)
		for _, o := range slices.Backward(mods) { // modprobe starts at the end
			if need[o.name] {
				fmt.Fprintf(&dep, " %s.ko", o.name)
			}
		}
		dep.WriteByte('\n')
		for _, a := range m.aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.name)
		}
	}
	return errors.Join(
		s.write(filepath.Join(dir, "modules.dep"), []byte(dep.String()), 0o644),
		s.write(filepath.Join(dir, "modules.alias"), []byte(alias.String()), 0o644),
		s.write(filepath.Join(dir, "modules.symbols"), nil, 0o644))
}

// initramfs writes the archive that a kernel boots with: userland (already
// packed), its modules, its plan.
func initramfs(ctx context.Context, path, common string, img image, p plan) error {
	release, err := img.one("lib/modules/*")
	if err != nil {
		return err
	}
	mods, err := modules(ctx, img)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), "modules-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := staging{dir}
	if err := modulesInto(s, filepath.Base(release), mods); err != nil {
		return err
	}
	// What is built in needs no loading.
	p.Early = slices.DeleteFunc(slices.Clone(early), func(name string) bool {
		return !slices.ContainsFunc(mods, func(m module) bool { return m.name == name })
	})
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := s.write(guestPlan, b, 0o644); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := os.ReadFile(common)
	if err != nil {
		return err
	}
	if _, err := f.Write(all); err != nil {
		return err
	}
	if err := s.pack(ctx, f); err != nil {
		return err
	}
	return f.Close()
}
