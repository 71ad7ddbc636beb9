// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps"
)

// DefaultPinRoot is where pins stand: <root>/<instance>/maps-<layout>/ and
// <root>/<instance>/links/.
const DefaultPinRoot = "/sys/fs/bpf/vxbpf"

// sizes of the maps. What does not fit goes the kernel's way, and is logged.
type sizes struct {
	networks uint32 // power of two, network 0 ("none") included
	fdb      uint32
	ports    uint32
	vteps    uint32
}

func sizesFor(networks int) sizes {
	s := sizes{networks: 64, fdb: 1 << 17, ports: 1 << 13, vteps: 1 << 12}
	for int(s.networks) < 2*(networks+1) {
		s.networks *= 2
	}
	return s
}

// datapath is the programs and maps as the kernel holds them.
type datapath struct {
	objs bpf.Objects
	maps *maps.Set
	dir  string // of the instance
	pins string // of the maps
	// before: pins of this layout were there, of an earlier run.
	before bool
	// frags: the XDP programs take frames in several buffers.
	frags bool
	// noXDP is why this kernel refuses the XDP programs, "" if it takes them.
	noXDP string
}

// openDatapath loads the programs, with the pinned maps of an earlier run where
// their layout is the same. Nothing is attached. An error that wraps
// *ebpf.VerifierError, ebpf.ErrNotSupported or EPERM means that this host cannot run them.
func openDatapath(dir string, want sizes, has Features) (*datapath, error) {
	if err := mountBPFFS(filepath.Dir(filepath.Dir(dir))); err != nil {
		return nil, err
	}
	// Before 5.11 maps count against RLIMIT_MEMLOCK; later this does nothing.
	if err := rlimit.RemoveMemlock(); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("lift memlock limit: %w", err)
	}
	spec, err := bpf.Load()
	if err != nil {
		return nil, fmt.Errorf("read the embedded programs: %w", err)
	}
	spec.Maps["vx_fdb"].MaxEntries = want.fdb
	spec.Maps["vx_port"].MaxEntries = want.ports
	spec.Maps["vx_vtep"].MaxEntries = want.vteps
	spec.Maps["vx_vtep_count"].MaxEntries = want.vteps
	spec.Maps["vx_vni"].MaxEntries = want.networks
	spec.Maps["vx_count"].MaxEntries = want.networks

	// Two ticks of the clock that stamps are taken from: a stamp of "now" may be one tick old.
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return nil, fmt.Errorf("read clock resolution: %w", err)
	}
	if err := spec.Variables["vx_hold_ns"].Set(uint64(2 * tick.Nano())); err != nil {
		return nil, fmt.Errorf("set vx_hold_ns: %w", err)
	}
	var decapL3 uint8
	if has.Have(featureDecapL3) {
		decapL3 = 1
	}
	if err := spec.Variables["vx_have_decap_l3"].Set(decapL3); err != nil {
		return nil, fmt.Errorf("set vx_have_decap_l3: %w", err)
	}
	if err := spec.Variables["vx_hash_seed"].Set(rand.Uint64()); err != nil {
		return nil, fmt.Errorf("set vx_hash_seed: %w", err)
	}

	d := &datapath{dir: dir, pins: filepath.Join(dir, "maps-"+layout(spec)), frags: has.Have(featureXDPFrags)}
	if d.frags {
		// All or none: programs of both kinds cannot share a device map.
		for _, name := range []string{"vx_xdp_decap", "vx_xdp_guard", "vx_xdp_encap"} {
			spec.Programs[name].Flags |= bpf.XDPHasFrags
		}
	} else if err := spec.Variables["vx_have_frags"].Set(uint8(0)); err != nil {
		return nil, fmt.Errorf("set vx_have_frags: %w", err)
	}
	for name, m := range spec.Maps {
		if strings.HasPrefix(name, "vx_") {
			m.Pinning = ebpf.PinByName
		}
	}
	d.before = slices.Contains(layouts(dir), d.pins)
	for _, p := range []string{d.pins, filepath.Join(dir, "links")} {
		err := os.MkdirAll(p, 0o700)
		for range 5 { // another instance that unloads takes empty directories away under us
			if !errors.Is(err, os.ErrNotExist) {
				break
			}
			err = os.MkdirAll(p, 0o700)
		}
		if err != nil {
			return nil, fmt.Errorf("make pin directory: %w", err)
		}
	}
	if d.noXDP, err = loadPrograms(spec, &d.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: d.pins}}); err != nil {
		err = fmt.Errorf("load BPF programs: %w", err)
		if !d.before {
			// What was pinned on the way and never filled must not look like a data path.
			err = errors.Join(err, removeTree(d.pins))
		}
		return nil, err
	}
	d.maps = maps.New(d.objs.MapSet())
	return d, nil
}

// loadPrograms loads them all, or all but the XDP programs: a verifier that
// refuses those, as an older one may, must not cost the host its tc programs.
// noXDP is then the reason, and programs that let all pass are in their place.
func loadPrograms(spec *ebpf.CollectionSpec, objs *bpf.Objects, o *ebpf.CollectionOptions) (noXDP string, err error) {
	err = spec.LoadAndAssign(objs, o)
	var refused *ebpf.VerifierError
	if !errors.As(err, &refused) {
		return "", err
	}
	if withoutXDP(spec).LoadAndAssign(objs, o) != nil {
		return "", err
	}
	return "this kernel refuses the XDP programs: " + oneLine(err), nil
}

// withoutXDP has programs that let all pass in the place of the XDP programs.
func withoutXDP(spec *ebpf.CollectionSpec) *ebpf.CollectionSpec {
	spec = spec.Copy()
	for _, p := range spec.Programs {
		if p.Type == ebpf.XDP {
			p.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}
		}
	}
	return spec
}

// layout names what the maps look like, so that a program never meets a map of
// another shape: pins of another layout stand beside and are swapped out.
func layout(spec *ebpf.CollectionSpec) string {
	var lines []string
	for name, m := range spec.Maps {
		if !strings.HasPrefix(name, "vx_") || bpf.OfCapture(name) {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %v %d %d %d %s %s", name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, shape(m.Key), shape(m.Value)))
	}
	slices.Sort(lines)
	h := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return hex.EncodeToString(h[:6])
}

// shape spells out the fields of a key or value: the same size can hold other fields.
func shape(t btf.Type) string {
	s, ok := btf.UnderlyingType(t).(*btf.Struct)
	if !ok {
		return ""
	}
	var b strings.Builder
	for _, m := range s.Members {
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			size = -1 // the offsets of the others tell
		}
		fmt.Fprintf(&b, "%s@%d+%d,", m.Name, m.Offset, size)
	}
	return b.String()
}

// layouts lists the pinned map directories of an instance.
func layouts(dir string) []string {
	m, err := filepath.Glob(filepath.Join(dir, "maps-*"))
	if err != nil {
		return nil // only a bad pattern errs
	}
	return m
}

// prune removes pins of other layouts, once nothing attached uses them.
func (d *datapath) prune() error {
	var errs []error
	for _, p := range layouts(d.dir) {
		if p != d.pins {
			errs = append(errs, removeTree(p))
		}
	}
	return errors.Join(errs...)
}

// close forgets the file descriptors; what is pinned or attached stays.
func (d *datapath) close() error { return d.objs.Close() }

// removeTree unpins everything below a directory of ours. It refuses anything
// that does not lie on a bpf file system.
func removeTree(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove pins %s: %w", dir, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("remove pins %s: not on a bpf file system", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// mountBPFFS makes sure that root lies on a bpf file system, mounting one at
// /sys/fs/bpf where the host has none yet.
func mountBPFFS(root string) error {
	var st unix.Statfs_t
	probe := root
	for {
		if err := unix.Statfs(probe, &st); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) || probe == "/" {
			return fmt.Errorf("find bpf file system for %s: %w", root, err)
		}
		probe = filepath.Dir(probe)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	const at = "/sys/fs/bpf"
	if root != at && !strings.HasPrefix(root, at+"/") {
		return fmt.Errorf("pin below %s: not on a bpf file system; mount one there (mount -t bpf bpf %s) or use the default", root, root)
	}
	if err := unix.Mount("bpf", at, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=700"); err != nil {
		return fmt.Errorf("mount bpf file system at %s: %w", at, err)
	}
	return nil
}
