// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/florianl/go-tc"
	"github.com/florianl/go-tc/core"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/probe"
)

// clsact attaches by a direct-action cls_bpf filter below the clsact qdisc, for
// kernels without tcx (before 6.6). The filter lives in the kernel by itself,
// so nothing needs a pin.
type clsact struct {
	added    bool // the last attach found nothing of ours
	rtnl     *tc.Tc
	instance string
	// made says of a device that its qdisc is ours to remove.
	made func(ifindex int) bool
	// note records that we made a device's qdisc, before we do.
	note func(ifindex int, made bool) error
}

// Our filters' place in the chain. A high preference number: filters that
// others put there with ordinary numbers keep their say. Several instances share
// it, each with a handle of its own, and pass on what is not theirs.
const (
	filterPref   = 49200
	filterPrefix = "vxbpf/"
)

func newClsact(instance string, made func(int) bool, note func(int, bool) error) (*clsact, error) {
	rtnl, err := tc.Open(&tc.Config{})
	if err != nil {
		return nil, fmt.Errorf("open tc socket: %w", err)
	}
	return &clsact{rtnl: rtnl, instance: instance, made: made, note: note}, nil
}

// haveClsact tries, apart from all traffic.
func haveClsact() error {
	return probe.Apart(func() error {
		rtnl, err := tc.Open(&tc.Config{})
		if err != nil {
			return fmt.Errorf("open tc socket: %w", err)
		}
		defer rtnl.Close()
		err = rtnl.Qdisc().Add(qdisc(1)) // loopback, in every namespace
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("%w: %w", err, ebpf.ErrNotSupported)
		}
		if err != nil {
			return fmt.Errorf("add a clsact qdisc: %w", err)
		}
		return nil
	})
}

func (c *clsact) name() string { return "clsact" }
func (c *clsact) close() error { return c.rtnl.Close() }
func (c *clsact) fresh() bool  { return c.added }

func (c *clsact) filterName(program string) string { return filterPrefix + c.instance + "/" + program }

func parent(egress bool) uint32 {
	if egress {
		return core.BuildHandle(tc.HandleRoot, tc.HandleMinEgress)
	}
	return core.BuildHandle(tc.HandleRoot, tc.HandleMinIngress)
}

func filterMsg(ifindex int, egress bool, handle uint32) tc.Msg {
	proto := uint16(unix.ETH_P_ALL)
	return tc.Msg{
		Family:  unix.AF_UNSPEC,
		Ifindex: uint32(ifindex),
		Handle:  handle,
		Parent:  parent(egress),
		// Preference in the upper half, protocol in network order in the lower.
		Info: filterPref<<16 | uint32(proto>>8|proto<<8)&0xffff,
	}
}

func qdisc(ifindex int) *tc.Object {
	return &tc.Object{
		Msg:       tc.Msg{Family: unix.AF_UNSPEC, Ifindex: uint32(ifindex), Handle: core.BuildHandle(tc.HandleRoot, 0), Parent: tc.HandleIngress},
		Attribute: tc.Attribute{Kind: "clsact"},
	}
}

func (c *clsact) attach(h hook, dev string, prog *ebpf.Program) error {
	fail := func(err error) error {
		return fmt.Errorf("attach %s to %s (clsact %s): %w", h.program, dev, h.direction(), err)
	}
	has, err := c.hasQdisc(h.ifindex)
	if err != nil {
		return fail(err)
	}
	if !has {
		if err := c.note(h.ifindex, true); err != nil {
			return fail(err)
		}
		if err := c.rtnl.Qdisc().Add(qdisc(h.ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fail(fmt.Errorf("add qdisc: %w", err))
		}
	}
	old, err := c.own(h)
	if err != nil {
		return fail(err)
	}
	c.added = old.BPF == nil
	// Replacing it by itself would be an event that the daemon itself follows.
	if id, ok := programID(prog); ok && old.BPF != nil && old.BPF.ID != nil && ebpf.ProgramID(*old.BPF.ID) == id {
		return nil
	}
	fd, flags, name := uint32(prog.FD()), uint32(tc.BpfActDirect), c.filterName(h.program)
	f := tc.Object{
		Msg:       filterMsg(h.ifindex, h.egress, old.Handle),
		Attribute: tc.Attribute{Kind: "bpf", BPF: &tc.Bpf{FD: &fd, Name: &name, Flags: &flags}},
	}
	// Swaps the program of an existing filter in one step; with handle 0 the kernel makes a new one.
	if err := c.rtnl.Filter().Replace(&f); err != nil {
		return fail(fmt.Errorf("replace filter: %w", err))
	}
	return nil
}

func (c *clsact) detach(h hook) error {
	fail := func(err error) error {
		return fmt.Errorf("detach %s from interface %d (clsact %s): %w", h.program, h.ifindex, h.direction(), err)
	}
	f, err := c.own(h)
	if gone(err) || errors.Is(err, unix.EINVAL) {
		return c.note(h.ifindex, false) // the device or its qdisc went, and the filter with it
	}
	if err != nil {
		return fail(err)
	}
	if f.BPF != nil && *f.BPF.Name == c.filterName(h.program) {
		f := tc.Object{Msg: filterMsg(h.ifindex, h.egress, f.Handle), Attribute: tc.Attribute{Kind: "bpf"}}
		if err := c.rtnl.Filter().Delete(&f); err != nil && !errors.Is(err, unix.ENOENT) && !gone(err) {
			return fail(fmt.Errorf("delete filter: %w", err))
		}
	}
	if !c.made(h.ifindex) {
		return nil
	}
	// The qdisc is ours; it goes with its last filter, whoever's.
	for _, egress := range []bool{false, true} {
		if left, err := c.list(h.ifindex, egress); err == nil && len(left) > 0 {
			return nil
		}
	}
	if err := c.rtnl.Qdisc().Delete(qdisc(h.ifindex)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !gone(err) {
		return fail(fmt.Errorf("delete qdisc: %w", err))
	}
	return c.note(h.ifindex, false)
}

// own is this instance's filter at a hook, the zero object if it has none.
func (c *clsact) own(h hook) (tc.Object, error) {
	all, err := c.list(h.ifindex, h.egress)
	for _, f := range all {
		if c.ours(f) {
			return f, nil
		}
	}
	return tc.Object{}, err
}

func (c *clsact) replace(h hook, prog *ebpf.Program) error {
	if id, err := c.at(h); err != nil || id == 0 {
		return err
	}
	return c.attach(h, strconv.Itoa(h.ifindex), prog)
}

func (c *clsact) at(h hook) (ebpf.ProgramID, error) {
	f, err := c.own(h)
	switch {
	case gone(err) || errors.Is(err, unix.EINVAL):
		return 0, nil // the device or its qdisc went
	case err != nil:
		return 0, err
	case f.BPF == nil || f.BPF.ID == nil:
		return 0, nil
	}
	return ebpf.ProgramID(*f.BPF.ID), nil
}

// heir is another instance that has a filter on the device, "" for none.
func (c *clsact) heir(ifindex int) string {
	for _, egress := range []bool{false, true} {
		all, err := c.list(ifindex, egress)
		if err != nil {
			return "" // the device or its qdisc went
		}
		for _, f := range all {
			if named(f, filterPrefix) && !c.ours(f) {
				instance, _, _ := strings.Cut(strings.TrimPrefix(*f.BPF.Name, filterPrefix), "/")
				return instance
			}
		}
	}
	return ""
}

func (c *clsact) list(ifindex int, egress bool) ([]tc.Object, error) {
	m := filterMsg(ifindex, egress, 0)
	m.Info = 0
	all, err := c.rtnl.Filter().Get(&m)
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	return all, nil
}

func (c *clsact) ours(f tc.Object) bool { return named(f, c.filterName("")) }

func named(f tc.Object, prefix string) bool {
	return f.Info>>16 == filterPref && f.BPF != nil && f.BPF.Name != nil && strings.HasPrefix(*f.BPF.Name, prefix)
}

// harmless are the root qdiscs that the system puts on devices by itself; any
// other was put there to shape.
var harmless = []string{"noqueue", "noop", "pfifo_fast", "mq", "fq_codel", "fq", "pfifo", "bfifo"}

// others says what other people's tc has on the devices of this namespace, that
// a packet on the fast path would go around: by ifindex. Filters of lower
// preference number than ours come first and lose nothing; tcx, where we are
// with byTCX, comes before them all.
func (c *clsact) others(byTCX bool) (map[int]foreign, error) {
	qdiscs, err := c.rtnl.Qdisc().Get()
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	out := map[int]foreign{}
	for _, q := range qdiscs {
		i := int(q.Ifindex)
		f := out[i]
		switch {
		case q.Kind == "clsact" || q.Kind == "ingress":
			for _, egress := range []bool{false, true} {
				if egress && q.Kind == "ingress" {
					continue
				}
				what, err := c.stranger(i, egress, byTCX)
				if err != nil {
					if gone(err) || errors.Is(err, unix.EINVAL) {
						continue // the device or its qdisc went while we looked
					}
					return nil, err
				}
				if egress {
					f.egress = cmp.Or(f.egress, what)
				} else {
					f.ingress = what
				}
			}
		case q.Parent == tc.HandleRoot && !slices.Contains(harmless, q.Kind):
			f.egress = "qdisc " + q.Kind
		}
		if f != (foreign{}) {
			out[i] = f
		}
	}
	return out, nil
}

// stranger names the first filter of someone else that our program would pre-empt.
func (c *clsact) stranger(ifindex int, egress, byTCX bool) (string, error) {
	all, err := c.list(ifindex, egress)
	if err != nil {
		return "", err
	}
	for _, f := range all {
		pref := f.Info >> 16
		// Another instance passes on what is not its own, as we do. Without a program: the head of our chain.
		if named(f, filterPrefix) || pref == filterPref && f.Kind == "bpf" && f.BPF == nil {
			continue
		}
		if !egress && !byTCX && pref < filterPref {
			continue
		}
		return fmt.Sprintf("tc filter %s pref %d", f.Kind, pref), nil
	}
	return "", nil
}

func (c *clsact) hasQdisc(ifindex int) (bool, error) {
	all, err := c.rtnl.Qdisc().Get()
	if err != nil {
		return false, fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range all {
		if int(q.Ifindex) == ifindex && q.Kind == "clsact" {
			return true, nil
		}
	}
	return false, nil
}

// filters lists our programs on one device.
func (c *clsact) filters(ifindex int) ([]hook, error) {
	var hooks []hook
	for _, egress := range []bool{false, true} {
		all, err := c.list(ifindex, egress)
		if err != nil {
			return nil, err
		}
		for _, f := range all {
			if c.ours(f) {
				hooks = append(hooks, hook{program: strings.TrimPrefix(*f.BPF.Name, c.filterName("")), ifindex: ifindex, egress: egress})
			}
		}
	}
	return hooks, nil
}

func (c *clsact) present() ([]hook, error) {
	all, err := c.rtnl.Qdisc().Get()
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var hooks []hook
	for _, q := range all {
		if q.Kind != "clsact" {
			continue
		}
		h, err := c.filters(int(q.Ifindex))
		if err != nil {
			if gone(err) || errors.Is(err, unix.EINVAL) {
				continue
			}
			return nil, err
		}
		hooks = append(hooks, h...)
	}
	return hooks, nil
}
