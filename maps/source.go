// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Sources is vx_source: who may send to which network, and this host's own
// addresses.
type Sources struct{ m *ebpf.Map }

// Source is one entry: what comes from the prefix may go to the network.
type Source struct {
	Net    fdb.NetID // or SourceUnion, SourceLocal
	Prefix netip.Prefix
}

// What Source.Net may be besides a network.
const (
	SourceUnion = fdb.NetID(bpf.SourceUnion) // may send to at least one network
	SourceLocal = fdb.NetID(bpf.SourceLocal) // an address of this host
)

func (s Source) key() bpf.SourceKey {
	p := s.Prefix.Masked()
	var v6 uint16
	if p.Addr().Is6() {
		v6 = 1
	}
	return bpf.SourceKey{Prefixlen: bpf.SourcePrefixMin + uint32(p.Bits()), Net: uint16(s.Net), V6: v6, Addr: words(p.Addr())}
}

func (s *Sources) all() (map[bpf.SourceKey]bool, error) {
	out := map[bpf.SourceKey]bool{}
	var k bpf.SourceKey
	var v uint32
	it := s.m.Iterate()
	for it.Next(&k, &v) {
		out[k] = true
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read source map: %w", err)
	}
	return out, nil
}

// Has asks whether an address is listed for a network.
func (s *Sources) Has(net fdb.NetID, a netip.Addr) (bool, error) {
	k := Source{Net: net, Prefix: netip.PrefixFrom(a, a.BitLen())}.key()
	var v uint32
	switch err := s.m.Lookup(k, &v); {
	case err == nil:
		return true, nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look up source %v of network %d: %w", a, net, err)
	}
}

// Set makes the map hold exactly these: what is new goes in before what is old
// goes out. A full map is an error that names its size.
func (s *Sources) Set(want []Source) error {
	have, err := s.all()
	if err != nil {
		return err
	}
	for _, w := range want {
		k := w.key()
		if _, ok := have[k]; !ok {
			if err := s.m.Put(k, uint32(1)); err != nil {
				return fmt.Errorf("put source %v of network %d (map holds %d): %w", w.Prefix, w.Net, s.m.MaxEntries(), err)
			}
		}
		have[k] = false
	}
	for k, old := range have {
		if !old {
			continue
		}
		if err := s.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete source of network %d: %w", k.Net, err)
		}
	}
	return nil
}

// Strangers is vx_stranger: what was dropped, by network and prefix.
type Strangers struct{ m *ebpf.Map }

// Stranger is what was dropped from one prefix since the maps were made.
type Stranger struct {
	Net     fdb.NetID     `json:"-"`
	Prefix  netip.Prefix  `json:"prefix"` // a /24 or /64; invalid: too many to tell apart
	Last    netip.Addr    `json:"last"`   // source of the last packet
	Seen    time.Duration `json:"-"`      // when that was, as Now
	Packets uint64        `json:"packets"`
	Bytes   uint64        `json:"bytes"` // of whole frames
}

// All reads the map, most packets first.
func (s *Strangers) All() ([]Stranger, error) {
	var out []Stranger
	var k bpf.StrangerKey
	var cpus []bpf.Stranger
	it := s.m.Iterate()
	for it.Next(&k, &cpus) {
		v6 := k.V6 != 0
		e := Stranger{Net: fdb.NetID(k.Net)}
		for _, c := range cpus {
			e.Packets += c.Packets
			e.Bytes += c.Bytes
			if seen := time.Duration(c.Seen); c.Packets > 0 && seen >= e.Seen {
				// Where the prefix is unknown, so is the family: an IPv4 address has no other words.
				e.Seen, e.Last = seen, addr(c.Last, v6 || c.Last[1]|c.Last[2]|c.Last[3] != 0)
			}
		}
		if k.Prefix != ([2]uint32{}) {
			a := addr([4]uint32{k.Prefix[0], k.Prefix[1]}, v6)
			e.Prefix = netip.PrefixFrom(a, map[bool]int{false: 24, true: 64}[v6])
		}
		out = append(out, e)
	}
	// The LRU may drop an element under the iterator; what was read is good.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("read strangers: %w", err)
	}
	slices.SortFunc(out, func(a, b Stranger) int {
		switch {
		case a.Packets != b.Packets && a.Packets > b.Packets:
			return -1
		case a.Packets != b.Packets:
			return 1
		}
		return a.Prefix.Addr().Compare(b.Prefix.Addr())
	})
	return out, nil
}
