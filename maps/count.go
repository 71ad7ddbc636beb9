// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Counters is vx_count: packets and bytes by network, hook and reason.
type Counters struct{ m *ebpf.Map }

// Count is the sum over all CPUs since the maps were made.
type Count struct {
	Packets uint64 `json:"packets"` // wire packets: a GSO packet counts its segments
	Bytes   uint64 `json:"bytes"`   // inner frame bytes
}

// Counts holds the non-zero counters of one network.
type Counts map[bpf.Hook]map[bpf.Reason]Count

// Networks is how many networks the map has room for, network 0 included.
func (c *Counters) Networks() uint32 { return c.m.MaxEntries() }

// Read sums up one network's counters.
func (c *Counters) Read(net fdb.NetID) (Counts, error) {
	out := Counts{}
	var cpus []bpf.NetCount
	if err := c.m.Lookup(uint32(net), &cpus); err != nil {
		return nil, fmt.Errorf("read counters of network %d: %w", net, err)
	}
	for hook := range bpf.Hook(bpf.HookMax) {
		for reason := range bpf.Reason(bpf.Reasons) {
			var n Count
			for i := range cpus {
				n.Packets += cpus[i].By[reason][hook].Packets
				n.Bytes += cpus[i].By[reason][hook].Bytes
			}
			if n.Packets == 0 {
				continue
			}
			if out[hook] == nil {
				out[hook] = map[bpf.Reason]Count{}
			}
			out[hook][reason] = n
		}
	}
	return out, nil
}

// Reset zeroes one network's counters, for an id that is given to another network.
func (c *Counters) Reset(net fdb.NetID) error {
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("reset counters of network %d: %w", net, err)
	}
	if err := c.m.Put(uint32(net), make([]bpf.NetCount, n)); err != nil {
		return fmt.Errorf("reset counters of network %d: %w", net, err)
	}
	return nil
}

// all sums one hook.
func (c Counts) all(h bpf.Hook) (n Count) {
	for _, v := range c[h] {
		n = n.plus(v)
	}
	return n
}

func (n Count) plus(o Count) Count  { return Count{n.Packets + o.Packets, n.Bytes + o.Bytes} }
func (n Count) minus(o Count) Count { return Count{n.Packets - o.Packets, n.Bytes - o.Bytes} }

// Sent is what of the traffic from ports towards VTEPs the fast path carried, and
// how much of it there was that it could have: known unicast and flood alike, but
// not what the bridge delivers on the same host.
func (c Counts) Sent() (fast, total Count) {
	// What XDP carries comes to no other hook; what it lets up is counted there.
	x := c[bpf.HookXDPEncap][bpf.Fast]
	return c[bpf.HookEncap][bpf.Fast].plus(x), c.all(bpf.HookEncap).minus(c[bpf.HookEncap][bpf.DstLocal]).plus(x)
}

// Received is the same for packets from VTEPs. What the underlay hooks did not
// carry comes by the vxlan device, where the last hook has its chance.
func (c Counts) Received() (fast, total Count) {
	d := c[bpf.HookDecap][bpf.Fast].plus(c[bpf.HookXDPDecap][bpf.Fast])
	return d.plus(c[bpf.HookDeliver][bpf.Fast]), d.plus(c.all(bpf.HookDeliver))
}
