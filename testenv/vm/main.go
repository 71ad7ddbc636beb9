// SPDX-License-Identifier: Apache-2.0

// Command vm runs the project's tests in virtual machines with the kernels
// that users run, and prints one table: tests down, kernels across.
//
//	go run ./testenv/vm -kernels 6.1,6.12 -run TestInterop testenv/e2e
//
// The kernels are Debian's, from its archive, with apt directories of their
// own below the user's cache directory. A guest is a kernel, an initramfs made
// of busybox, the wanted modules, the tests' static binaries and the commands
// that they call, and this program as its first process. It reports over the
// serial line. The host needs qemu, and no KVM.
//
// A test that is skipped has failed, unless it says with package testenv/need
// that this kernel lacks what it is about: then its cell reads "fallback".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// packages whose tests need a kernel to say something.
var packages = []string{"bpf", "maps", "loader", "loader/kernel", "loader/netfilter", "testenv/need", "testenv", "testenv/diff", "testenv/e2e"}

type options struct {
	kernels  string
	run      string
	short    bool
	jobs     int
	deadline time.Duration
	mirror   string
	shell    bool
	verbose  bool
	logs     string
	markdown string
}

func main() {
	if os.Getpid() == 1 {
		guest()
	}
	var o options
	var names []string
	for _, r := range releases {
		names = append(names, r.name)
	}
	flag.StringVar(&o.kernels, "kernels", strings.Join(names, ","), "kernels, separated by commas")
	flag.StringVar(&o.run, "run", "", "only tests that match, as in go test")
	flag.BoolVar(&o.short, "short", false, "as in go test")
	flag.IntVar(&o.jobs, "j", runtime.NumCPU(), "machines at a time, of one CPU each")
	flag.DurationVar(&o.deadline, "deadline", 30*time.Minute, "for each machine")
	flag.StringVar(&o.mirror, "mirror", "http://deb.debian.org", "where debian and debian-security are")
	flag.BoolVar(&o.shell, "shell", false, "a shell in one kernel, instead of tests; ctrl-a x is not caught: type exit")
	flag.BoolVar(&o.verbose, "v", false, "show the guests' consoles as they come")
	flag.StringVar(&o.logs, "logs", "", "directory for the guests' consoles, one file each")
	flag.StringVar(&o.markdown, "markdown", "", "file for the table in Markdown")
	flag.Parse()
	if flag.NArg() > 0 {
		packages = flag.Args()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := runAll(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "test-kernels:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func runAll(ctx context.Context, o options) (ok bool, err error) {
	if runtime.GOARCH != "amd64" {
		return false, fmt.Errorf("run on %s: the guests are amd64 and take their commands from this machine", runtime.GOARCH)
	}
	var want []release
	for _, name := range strings.FieldsFunc(o.kernels, func(r rune) bool { return r == ',' || r == ' ' }) {
		i := slices.IndexFunc(releases, func(r release) bool { return r.name == name })
		if i < 0 {
			return false, fmt.Errorf("unknown kernel %q", name)
		}
		want = append(want, releases[i])
	}
	began := time.Now()
	cache, err := os.UserCacheDir()
	if err != nil {
		return false, err
	}
	cache = filepath.Join(cache, "vxbpf", "kernels")
	a, err := openArchive(ctx, cache, o.mirror)
	if err != nil {
		return false, err
	}
	var images []image
	for _, r := range want {
		img, err := a.get(ctx, cache, r)
		if err != nil {
			return false, err
		}
		images = append(images, img)
	}

	tmp, err := os.MkdirTemp("", "vxbpf-vm-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(tmp)
	common, err := buildCommon(ctx, tmp)
	if err != nil {
		return false, err
	}
	fmt.Printf("prepared in %.0f s: kernels, tests of %s\n", time.Since(began).Seconds(), strings.Join(packages, ", "))

	cols := make([]*column, len(images))
	gate := make(chan struct{}, max(o.jobs, 1))
	var wg sync.WaitGroup
	for i, img := range images {
		var echo io.Writer
		if o.verbose {
			echo = os.Stdout
		}
		cols[i] = newColumn(img.name, echo)
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			began := time.Now()
			err := one(ctx, o, tmp, common, img, cols[i])
			cols[i].end(err, time.Since(began))
			fmt.Printf("kernel %s (%s): %.0f s\n", img.name, cols[i].uname, cols[i].took.Seconds())
		})
	}
	wg.Wait()
	if o.shell {
		return true, nil
	}
	fmt.Println()
	ok = summary(os.Stdout, cols)
	fmt.Printf("\n%d kernels in %.0f s\n", len(cols), time.Since(began).Seconds())
	if o.markdown != "" {
		f, err := os.Create(o.markdown)
		if err != nil {
			return false, err
		}
		defer f.Close()
		table(f, cols, true)
		if err := f.Close(); err != nil {
			return false, err
		}
	}
	return ok, nil
}

func summary(w io.Writer, cols []*column) bool {
	table(w, cols, false)
	ok := true
	for _, c := range cols {
		for _, k := range c.order {
			if c.cells[k].outcome == fail {
				ok = false
			}
		}
		for _, f := range c.fault {
			ok = false
			fmt.Fprintf(w, "FAIL on %s: %s\n", c.name, f)
		}
		if len(c.order) == 0 && len(c.fault) == 0 {
			ok = false
			fmt.Fprintf(w, "FAIL on %s: no test matched\n", c.name)
		}
	}
	return ok
}

// buildCommon makes the part of the initramfs that all kernels share.
func buildCommon(ctx context.Context, tmp string) (string, error) {
	root, err := run(exec.CommandContext(ctx, "go", "env", "GOMOD"))
	if err != nil {
		return "", err
	}
	self := filepath.Join(tmp, "init")
	s := staging{filepath.Join(tmp, "common")}
	root = filepath.Dir(strings.TrimSpace(root))
	cmd := exec.CommandContext(ctx, "go", "build", "-o", self, "-ldflags=-s -w", "./testenv/vm")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if _, err := run(cmd); err != nil {
		return "", err
	}
	if err := userland(ctx, s, root, self, packages); err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(tmp, "common.cpio"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := s.pack(ctx, f); err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// one boots one kernel.
func one(ctx context.Context, o options, tmp, common string, img image, c *column) error {
	p := plan{Kernel: img.name, Env: []string{"VXBPF_BIN=" + guestBin, "VXBPF_TEST_VM=" + img.name}, Shell: o.shell}
	for _, pkg := range packages {
		bin := testBinary(pkg)
		argv := []string{bin, "-test.v=test2json", "-test.timeout=" + o.deadline.String()}
		if o.run != "" {
			argv = append(argv, "-test.run="+o.run)
		}
		if o.short {
			argv = append(argv, "-test.short")
		}
		p.Suites = append(p.Suites, suite{Package: pkg, Dir: filepath.Dir(bin), Argv: argv})
	}
	initrd := filepath.Join(tmp, img.name+".cpio")
	if err := initramfs(ctx, initrd, common, img, p); err != nil {
		return err
	}
	if o.shell {
		return shell(ctx, img, initrd)
	}
	line := c.line
	if o.logs != "" {
		f, err := os.Create(filepath.Join(o.logs, img.name+".log"))
		if err != nil {
			return err
		}
		defer f.Close()
		line = func(text string) {
			fmt.Fprintln(f, strings.ReplaceAll(text, "\x16", ""))
			c.line(text)
		}
	}
	err := boot(ctx, img, initrd, o.deadline, line)
	if err == nil && !c.done {
		err = errors.New("the guest went away")
	}
	return err
}
