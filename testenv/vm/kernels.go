// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// release is a kernel that users run, and where Debian keeps its newest build.
type release struct {
	name    string         // what -kernels takes
	sources []string       // apt: mirror path, suite
	image   *regexp.Regexp // the package
}

// The -cloud- flavour: the same network code, far fewer modules to unpack.
var releases = []release{
	{"5.10", []string{"debian-security bullseye-security"}, regexp.MustCompile(`^linux-image-5\.10\.0-\d+-cloud-amd64$`)},
	{"6.1", []string{"debian bookworm", "debian-security bookworm-security"}, regexp.MustCompile(`^linux-image-6\.1\.0-\d+-cloud-amd64$`)},
	{"6.12", []string{"debian-security bookworm-security"}, regexp.MustCompile(`^linux-image-6\.12\.\d+\+deb12-cloud-amd64$`)},
	{"7.3", []string{"debian trixie-backports"}, regexp.MustCompile(`^linux-image-7\.3\.\d+\+deb13-cloud-amd64$`)},
}

// keyring is from package debian-archive-keyring, which Ubuntu has as well.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// fresh is how long a look at the archive counts. Later builds of a kernel are wanted, but not by every run.
const fresh = 7 * 24 * time.Hour

// image is one build of a release, unpacked.
type image struct {
	release
	version string // of the package, for the table
	dir     string // lib/modules/*, and the kernel in either place
}

func (i image) one(patterns ...string) (string, error) {
	var found []string
	for _, p := range patterns {
		m, err := filepath.Glob(filepath.Join(i.dir, p))
		if err != nil {
			return "", err
		}
		found = append(found, m...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("find %s in %s: %d files match", strings.Join(patterns, " or "), i.dir, len(found))
	}
	return found[0], nil
}

func (i image) kernel() (string, error) { return i.one("boot/vmlinuz-*", "lib/modules/*/vmlinuz") }

// archive is apt with directories of its own: the machine's sources, lists and
// packages are neither read nor changed, only its proxy settings are used.
type archive struct{ dir string }

func (a archive) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C")
	cmd.Dir = a.dir
	return cmd
}

func run(cmd *exec.Cmd) (string, error) {
	var msg strings.Builder
	cmd.Stderr = &msg
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(msg.String()))
	}
	return string(out), nil
}

// open writes apt's configuration and fetches the package lists of all
// releases, unless that was done a short time ago.
func openArchive(ctx context.Context, cache, mirror string) (archive, error) {
	a := archive{filepath.Join(cache, "apt")}
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return a, err
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return a, fmt.Errorf("check Debian's signatures: %w; install debian-archive-keyring", err)
	}
	var list []string
	for _, r := range releases {
		for _, s := range r.sources {
			line := fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s/%s main\n", keyring, mirror, s)
			if !slices.Contains(list, line) {
				list = append(list, line)
			}
		}
	}
	sources := strings.Join(list, "")
	stamp := filepath.Join(a.dir, "updated")
	old, _ := os.ReadFile(filepath.Join(a.dir, "sources.list"))
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < fresh && string(old) == sources {
		return a, nil
	}
	conf := fmt.Sprintf(`Dir::State %[1]q;
Dir::State::status "%[1]s/status";
Dir::Cache %[1]q;
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "-";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Get::List-Cleanup "true";
`, a.dir)
	for name, text := range map[string]string{"apt.conf": conf, "sources.list": sources, "status": ""} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return a, err
		}
	}
	// Any: a list that cannot be fetched is an error, not a warning.
	if _, err := run(a.command(ctx, "apt-get", "update", "-q", "--error-on=any")); err != nil {
		return a, err
	}
	return a, os.WriteFile(stamp, nil, 0o644)
}

// get finds the newest build of a release, downloads it and unpacks it.
func (a archive) get(ctx context.Context, cache string, r release) (image, error) {
	fail := func(err error) (image, error) { return image{}, fmt.Errorf("get kernel %s: %w", r.name, err) }
	out, err := run(a.command(ctx, "apt-cache", "pkgnames", "linux-image-"))
	if err != nil {
		return fail(err)
	}
	var names []string
	for name := range strings.Lines(out) {
		if name = strings.TrimSpace(name); r.image.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fail(fmt.Errorf("no package %s in %s", r.image, strings.Join(r.sources, ", ")))
	}
	slices.SortFunc(names, compareNumbers)
	pkg := names[len(names)-1]
	out, err = run(a.command(ctx, "apt-cache", "show", "--no-all-versions", pkg))
	if err != nil {
		return fail(err)
	}
	version := field(out, "Version")
	img := image{release: r, version: version, dir: filepath.Join(cache, pkg+"_"+version)}
	if _, err := os.Stat(img.dir); err == nil {
		return img, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fail(err)
	}
	pkgs := []string{pkg}
	// Of late the image is an empty package that depends on its parts.
	for _, dep := range strings.Split(field(out, "Depends"), ",") {
		if name, _, _ := strings.Cut(strings.TrimSpace(dep), " "); strings.HasSuffix(name, strings.TrimPrefix(pkg, "linux-image")) {
			pkgs = append(pkgs, name)
		}
	}
	tmp, err := os.MkdirTemp(cache, "unpack-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(tmp)
	cmd := a.command(ctx, "apt-get", append([]string{"download", "-q"}, pkgs...)...)
	cmd.Dir = tmp
	if _, err := run(cmd); err != nil {
		return fail(err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != len(pkgs) {
		return fail(fmt.Errorf("download %s: %d files came", strings.Join(pkgs, " "), len(debs)))
	}
	for _, deb := range debs {
		if _, err := run(exec.CommandContext(ctx, "dpkg", "-x", deb, filepath.Join(tmp, "root"))); err != nil {
			return fail(err)
		}
	}
	// From bullseye to trixie, /lib is a link to /usr/lib, and a package may name either.
	if usr := filepath.Join(tmp, "root/usr/lib/modules"); exists(usr) {
		if err := os.MkdirAll(filepath.Join(tmp, "root/lib"), 0o755); err != nil {
			return fail(err)
		}
		if err := os.Rename(usr, filepath.Join(tmp, "root/lib/modules")); err != nil {
			return fail(err)
		}
	}
	if err := os.Rename(filepath.Join(tmp, "root"), img.dir); err != nil {
		return fail(err)
	}
	return img, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// field is a field of a package's record.
func field(record, name string) string {
	for line := range strings.Lines(record) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

var number = regexp.MustCompile(`\d+|\D+`)

// compareNumbers orders names with numbers in them: 6.1.0-9 comes before 6.1.0-10.
func compareNumbers(a, b string) int {
	pa, pb := number.FindAllString(a, -1), number.FindAllString(b, -1)
	return slices.CompareFunc(pa, pb, func(x, y string) int {
		if x[0] >= '0' && x[0] <= '9' && y[0] >= '0' && y[0] <= '9' && len(x) != len(y) {
			return len(x) - len(y)
		}
		return strings.Compare(x, y)
	})
}
