// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/testenv"
)

// Commands of the ethtool ioctl that turn one offload on or off (linux/ethtool.h).
const (
	setTSO = unix.ETHTOOL_STSO
	setGSO = unix.ETHTOOL_SGSO
	setGRO = unix.ETHTOOL_SGRO
)

// offload turns one offload of a link on or off, as `ethtool -K` does. One that
// is as it should be is left alone: a driver may have it fixed, as veth has TSO beside native XDP.
func offload(ns testenv.NS, dev string, cmd uint32, on bool) error {
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		value := struct{ cmd, data uint32 }{cmd: cmd - 1} // the command that reads stands before the one that writes
		// struct ifreq: the name, then a pointer in a union of 24 bytes.
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(req.name[:unix.IFNAMSIZ-1], dev)
		ioctl := func() error {
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
				return e
			}
			return nil
		}
		if err := ioctl(); err != nil || (value.data != 0) == on {
			return err
		}
		value.cmd, value.data = cmd, 0
		if on {
			value.data = 1
		}
		return ioctl()
	})
	if err != nil {
		return fmt.Errorf("set offload %#x of %s in %s: %w", cmd, dev, ns.Name(), err)
	}
	return nil
}
