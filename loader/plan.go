// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

// Snapshot lists what the host has now.
func Snapshot(h *kernel.Handle) (s reconcile.Snapshot, err error) {
	if s.Links, err = h.Links(); err != nil {
		return s, err
	}
	if s.Addresses, err = h.Addresses(); err != nil {
		return s, err
	}
	s.FDB, err = h.FDB()
	return s, err
}

// Plan says what Load would do, and does nothing.
func Plan(cfg *config.Config, opt Options) (*reconcile.Plan, error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	var owned reconcile.Owned
	if s, err := ReadState(opt.runDir()); err == nil {
		owned = s.Owned
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return newPlan(h, cfg, owned, opt)
}

func newPlan(h *kernel.Handle, cfg *config.Config, owned reconcile.Owned, opt Options) (*reconcile.Plan, error) {
	snap, err := Snapshot(h)
	if err != nil {
		return nil, err
	}
	return reconcile.NewPlan(cfg, snap, owned, reconcile.Options{
		Recreate: opt.Recreate,
		Position: cfg,
		InPlace:  []reconcile.Attr{reconcile.AttrGroup, reconcile.AttrLocal, reconcile.AttrDevice},
	})
}
