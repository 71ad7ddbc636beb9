// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// host is what the checks look at.
type host struct {
	opt       Options
	snap      *observe.Snapshot
	cfg       *config.Config // as loaded; nil if it cannot be read
	h         *kernel.Handle
	links     []kernel.Link
	fdb       []kernel.FDBEntry
	addresses []kernel.Address
	moves     []move

	// What tests put something else in place of.
	sysctl   func(name string) (string, bool)
	features func(dev string) (driver string, on map[string]bool, err error)
	full     func() (entries, size int)
	table    func() ([]kernel.Neighbour, error)

	mu       sync.Mutex
	findings []Finding
	unknowns []Unknown
}

// sampleTime is how long the host is listened to.
const sampleTime = time.Second

func newHost(ctx context.Context, o Options, listen bool) (_ *host, err error) {
	if err := loader.NetAdmin(); err != nil {
		return nil, err
	}
	h := &host{opt: o, sysctl: readSysctl, features: readFeatures}
	if h.snap, err = observe.Read(o.Options); err != nil {
		return nil, err
	}
	if h.h, err = kernel.Open(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	h.table = h.h.Neighbours
	if listen {
		if err := h.listen(ctx); err != nil {
			return nil, err
		}
		// By now the daemon has told, too, what it made of a change of a moment ago.
		if h.snap, err = observe.Read(o.Options); err != nil {
			return nil, err
		}
	}
	if h.links, err = h.h.Links(); err != nil {
		return nil, err
	}
	if h.fdb, err = h.h.FDB(); err != nil {
		return nil, err
	}
	if h.addresses, err = h.h.Addresses(); err != nil {
		return nil, err
	}
	h.full = h.snap.FDBEntries
	if cfg, err := loader.Active(o.Options.Options); err == nil {
		h.cfg = cfg
	}
	return h, nil
}

func (h *host) close() { _ = h.h.Close() } // reads only

func (h *host) find(f Finding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.findings = append(h.findings, f)
}

func (h *host) unknown(check, object, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unknowns = append(h.unknowns, Unknown{check, object, why})
}

// found reports a finding of an earlier check.
func (h *host) found(check, object string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.findings, func(f Finding) bool { return f.Check == check && (object == "" || f.Object == object) })
}

func (h *host) link(name string) (kernel.Link, bool) {
	for _, l := range h.links {
		if l.Name == name {
			return l, true
		}
	}
	return kernel.Link{}, false
}

func (h *host) linkAt(index int) (kernel.Link, bool) {
	for _, l := range h.links {
		if l.Index == index {
			return l, true
		}
	}
	return kernel.Link{}, false
}

// devices are the underlay devices, once each.
func (h *host) devices() (out []kernel.Link) {
	for _, n := range h.snap.State.Networks {
		if l, ok := h.link(n.Device); ok && !slices.ContainsFunc(out, func(o kernel.Link) bool { return o.Index == l.Index }) {
			out = append(out, l)
		}
	}
	return out
}

// remotes are the other hosts' addresses: from the config, the kernel's tables
// and the maps, without groups.
func (h *host) remotes() (out []netip.Addr) {
	add := func(a netip.Addr) {
		if a.IsValid() && !a.IsMulticast() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, v := range h.snap.VTEPs {
		add(v.Remote)
	}
	if h.cfg != nil {
		for i := range h.cfg.Networks {
			for _, r := range h.cfg.Networks[i].Remotes {
				add(r)
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// overhead of a network, in bytes of IP packets.
func overhead(n loader.NetworkState) int { return config.Overhead(n.Local.Is6()) }

func readSysctl(name string) (string, bool) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	return strings.TrimSpace(string(b)), err == nil
}

func (h *host) number(name string) (int, bool) {
	s, ok := h.sysctl(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

func readFeatures(dev string) (string, map[string]bool, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return "", nil, fmt.Errorf("ask %s for its offloads: %w", dev, err)
	}
	defer e.Close()
	driver, err := e.DriverName(dev)
	if err != nil {
		return "", nil, fmt.Errorf("ask %s for its driver: %w", dev, err)
	}
	on, err := e.Features(dev)
	if err != nil {
		return driver, nil, fmt.Errorf("ask %s for its offloads: %w", dev, err)
	}
	return driver, on, nil
}

// facts are what is no fault, and worth knowing beside one.
func (h *host) facts() map[string]string {
	out := map[string]string{"attached by": h.snap.State.Attach}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		out["kernel"] = unix.ByteSliceToString(u.Release[:])
	}
	for _, l := range h.devices() {
		driver, on, err := h.features(l.Name)
		if err != nil {
			continue
		}
		var has []string
		for _, f := range []string{"rx-gro", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-checksum-ip-generic"} {
			state := "off"
			if on[f] {
				state = "on"
			}
			has = append(has, f+" "+state)
		}
		out["underlay "+l.Name] = fmt.Sprintf("driver %s, MTU %d, %s", driver, l.MTU, strings.Join(append(queues(l.Name), has...), ", "))
	}
	return out
}

// queues of a device; native XDP wants one to send per CPU on many NICs. Nothing in a namespace that /sys does not show.
func queues(dev string) []string {
	var out []string
	for _, kind := range []string{"rx", "tx"} {
		if q, err := filepath.Glob(filepath.Join("/sys/class/net", dev, "queues", kind+"-*")); err == nil && len(q) > 0 {
			out = append(out, fmt.Sprintf("%d %s queues", len(q), kind))
		}
	}
	return out
}

// move is a MAC address that came from somewhere else than before.
type move struct {
	mac   string
	where []string
	times int
}

// listen takes the kernel's forwarding events for a second.
func (h *host) listen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sampleTime)
	defer cancel()
	sub, err := h.h.Subscribe(ctx, kernel.SubscribeOptions{})
	if err != nil {
		return err
	}
	defer sub.Close()
	type key struct {
		bridge int
		mac    string
	}
	at, moved := map[key]string{}, map[key]*move{}
	for {
		events, err := sub.Next()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			return err
		}
		for _, e := range events {
			c, ok := e.(kernel.FDBChanged)
			if !ok || c.Self || c.MAC.IsMulticast() {
				continue
			}
			k := key{c.Bridge, c.MAC.String()}
			where := strconv.Itoa(c.Link)
			if l, ok, err := h.h.LinkByIndex(c.Link); err == nil && ok {
				where = l.Name
			}
			if old, known := at[k]; known && old != where {
				if moved[k] == nil {
					moved[k] = &move{mac: k.mac}
				}
				m := moved[k]
				m.times++
				for _, w := range []string{old, where} {
					if !slices.Contains(m.where, w) {
						m.where = append(m.where, w)
					}
				}
			}
			at[k] = where
		}
	}
	for _, m := range moved {
		slices.Sort(m.where)
		h.moves = append(h.moves, *m)
	}
	return nil
}
