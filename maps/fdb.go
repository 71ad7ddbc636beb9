// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// FDB is vx_fdb: (network, MAC) -> where it lives.
type FDB struct{ m *ebpf.Map }

// Put writes one entry, pending or not; vtep is the index of its VTEP for a
// remote entry. The entry starts with e.Seen as the time the kernel last had a
// frame of the MAC. A full map is an error that names its size.
func (f *FDB) Put(k fdb.Key, e fdb.Entry, vtep uint32) error {
	return f.put(k, e, vtep, ebpf.UpdateAny)
}

// Replace writes an entry that is there. ok is false if it is not: a program
// removed it, since its MAC was seen elsewhere.
func (f *FDB) Replace(k fdb.Key, e fdb.Entry, vtep uint32) (ok bool, err error) {
	err = f.put(k, e, vtep, ebpf.UpdateExist)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (f *FDB) put(k fdb.Key, e fdb.Entry, vtep uint32, how ebpf.MapUpdateFlags) error {
	// Frames of this MAC may be on the slow path just now: the first ones stay behind them.
	v := bpf.FDBEntry{Kind: uint8(e.Kind), Mtu: e.MTU, To: e.Port, Seen: uint64(max(e.Seen, 0)), Slow: uint64(Now())}
	if e.Kind == fdb.Remote {
		v.To = vtep
	}
	for _, f := range flags(&e) {
		if *f.on {
			v.Flags |= f.bit
		}
	}
	if err := f.m.Update(fdbKey(k), v, how); err != nil {
		return fmt.Errorf("put FDB entry %v (map holds %d): %w", k, f.m.MaxEntries(), err)
	}
	return nil
}

type flag struct {
	bit uint8
	on  *bool
}

func flags(e *fdb.Entry) []flag {
	return []flag{{bpf.EntryStatic, &e.Static}, {bpf.EntrySticky, &e.Sticky}, {bpf.EntryPinned, &e.Pinned},
		{bpf.EntryPending, &e.Pending}, {bpf.EntryRaw, &e.Raw}, {bpf.EntryRawTCP, &e.RawTCP}, {bpf.EntryRawSG, &e.RawSG}}
}

// Delete removes an entry. One that is not there is fine: programs remove moved
// entries on their own.
func (f *FDB) Delete(k fdb.Key) error {
	if err := f.m.Delete(fdbKey(k)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete FDB entry %v: %w", k, err)
	}
	return nil
}

// Has reports whether an entry is in the map: programs remove what has moved.
func (f *FDB) Has(k fdb.Key) (bool, error) {
	var v bpf.FDBEntry
	switch err := f.m.Lookup(fdbKey(k), &v); {
	case err == nil:
		return true, nil
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look up FDB entry %v: %w", k, err)
	}
}

// Placed is an entry as the programs find it.
type Placed struct {
	fdb.Entry
	Index uint32        // of a remote entry's VTEP; Entry.VTEP is not set
	Slow  time.Duration // when a received unicast frame of the MAC last took the slow path
}

// Get reads one entry.
func (f *FDB) Get(k fdb.Key) (p Placed, ok bool, err error) {
	var v bpf.FDBEntry
	if err := f.m.Lookup(fdbKey(k), &v); errors.Is(err, ebpf.ErrKeyNotExist) {
		return p, false, nil
	} else if err != nil {
		return p, false, fmt.Errorf("look up FDB entry %v: %w", k, err)
	}
	p = Placed{Entry: entry(v), Slow: time.Duration(v.Slow)}
	if p.Kind == fdb.Remote {
		p.Index, p.Port = v.To, 0
	}
	return p, true, nil
}

func entry(v bpf.FDBEntry) fdb.Entry {
	e := fdb.Entry{Kind: fdb.Kind(v.Kind), Port: v.To, MTU: v.Mtu, Seen: time.Duration(v.Seen)}
	for _, f := range flags(&e) {
		*f.on = v.Flags&f.bit != 0
	}
	return e
}

// All reads the whole table. vtep turns an index into an address.
func (f *FDB) All(vtep func(uint32) netip.Addr) (fdb.Table, error) {
	t := fdb.Table{}
	var k bpf.FDBKey
	var v bpf.FDBEntry
	it := f.m.Iterate()
	for it.Next(&k, &v) {
		e := entry(v)
		if e.Kind == fdb.Remote {
			e.VTEP, e.Port = vtep(v.To), 0
		}
		t[fdb.Key{Net: fdb.NetID(k.Net()), MAC: k.MAC()}] = e
	}
	// An iteration that programs disturb by deletes may restart: what was read is a state that was true moments ago.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("read FDB map: %w", err)
	}
	return t, nil
}

// Len is how many entries the map has room for.
func (f *FDB) Len() int { return int(f.m.MaxEntries()) }

func fdbKey(k fdb.Key) bpf.FDBKey { return bpf.NewFDBKey(uint16(k.Net), k.MAC) }
