// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"

	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/reconcile"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// host makes a kernel.Handle into what reconcile.Apply needs.
type host struct{ *kernel.Handle }

func (h host) CreateBridge(name string, s reconcile.BridgeSpec) (int, error) {
	l, err := h.Handle.CreateBridge(name, kernel.BridgeSpec{STP: s.STP, ForwardDelay: s.ForwardDelay, Ageing: s.Ageing})
	if err != nil {
		return 0, err
	}
	return l.Index, h.restoreMAC(l, s.MAC)
}

func (h host) CreateVXLAN(name string, s reconcile.VXLANSpec) (int, error) {
	l, err := h.Handle.CreateVXLAN(kernel.VXLANSpec{Name: name, VXLAN: s.VXLAN, MTU: s.MTU})
	if err != nil {
		return 0, err
	}
	return l.Index, h.restoreMAC(l, s.MAC)
}

// restoreMAC gives a link that is made again the address it had.
func (h host) restoreMAC(l kernel.Link, mac fdb.MAC) error {
	if mac.IsZero() || mac == l.MAC {
		return nil
	}
	if err := h.SetMAC(l.Index, mac); err != nil {
		return errors.Join(err, h.DeleteLink(l.Index))
	}
	return nil
}
