// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	vxmaps "github.com/vxbpf/vxbpf/maps"
)

// watchPins tells when something below an instance's pins was removed. The
// directories must be there; new ones are not followed.
func watchPins(dir string) (<-chan struct{}, func(), error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("watch pins: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	// A new instance has none yet; its own directory shows the first ones.
	for _, d := range append(layouts(dir), filepath.Join(dir, "links"), dir) {
		if _, err := unix.InotifyAddWatch(fd, d, unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_ONLYDIR); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, errors.Join(fmt.Errorf("watch %s: %w", d, err), f.Close())
		}
	}
	c := make(chan struct{}, 1)
	go func() {
		buf := make([]byte, 16<<10)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			select {
			case c <- struct{}{}:
			default: // one is enough
			}
		}
	}()
	return c, func() { _ = f.Close() }, nil
}

// repin pins what somebody unpinned of our maps: without its pin a map ends with
// the daemon and the last program. Links that lost theirs are detached by then;
// sync attaches anew.
func (d *Daemon) repin() error {
	var errs []error
	for _, p := range []string{d.dp.pins, filepath.Join(d.dp.dir, "links")} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			errs = append(errs, fmt.Errorf("make pin directory: %w", err))
		}
	}
	for name, m := range vxmaps.ByName(d.dp.objs.MapSet()) {
		path, m := filepath.Join(d.dp.pins, name), *m
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := pinAgain(m, path); err != nil {
			errs = append(errs, fmt.Errorf("pin %s: %w", name, err))
			continue
		}
		d.repaired("pin map " + name)
	}
	return errors.Join(errs...)
}

// pinAgain pins a map that believes to be pinned there already.
func pinAgain(m *ebpf.Map, path string) error {
	c, err := m.Clone() // knows of no pin
	if err != nil {
		return err
	}
	return errors.Join(c.Pin(path), c.Close())
}
