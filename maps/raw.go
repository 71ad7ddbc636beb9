// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Raw is vx_raw: the devices that take raw frames. The kernel takes out what goes.
type Raw struct{ m *ebpf.Map }

// Put adds a device of the calling thread's network namespace.
func (r *Raw) Put(ifindex uint32) error {
	if err := r.m.Put(ifindex, ifindex); err != nil {
		return fmt.Errorf("put device %d that takes raw frames: %w", ifindex, err)
	}
	return nil
}

// Delete removes a device; one that is not there is fine.
func (r *Raw) Delete(ifindex uint32) error {
	if err := r.m.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete device %d that takes raw frames: %w", ifindex, err)
	}
	return nil
}

// All reads the map.
func (r *Raw) All() (map[uint32]bool, error) {
	out := map[uint32]bool{}
	var k, v uint32
	it := r.m.Iterate()
	for it.Next(&k, &v) {
		out[k] = true
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read devices that take raw frames: %w", err)
	}
	return out, nil
}
