// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

var errInjected = errors.New("injected")

// host is a Kernel in memory, as strict as the real one where order matters.
type host struct {
	s      Snapshot
	next   int
	calls  int
	failAt int      // the call with this number fails, from 1; 0: none
	log    []string // calls since the start
}

func (h *host) call(format string, args ...any) error {
	h.calls++
	h.log = append(h.log, fmt.Sprintf(format, args...))
	if h.calls == h.failAt {
		return errInjected
	}
	return nil
}

func (h *host) clone() *host { return &host{s: h.s.clone(), next: h.next} }

func (h *host) at(i int) *kernel.Link {
	for n := range h.s.Links {
		if h.s.Links[n].Index == i {
			return &h.s.Links[n]
		}
	}
	return nil
}

func (h *host) link(i int) (*kernel.Link, error) {
	if l := h.at(i); l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("no such device %d", i)
}

func (h *host) add(l kernel.Link) (int, error) {
	if _, ok := h.s.Link(l.Name); ok {
		return 0, fmt.Errorf("%s: file exists", l.Name)
	}
	h.next++
	l.Index = h.next
	h.s.Links = append(h.s.Links, l)
	return l.Index, nil
}

func (h *host) CreateBridge(name string, s BridgeSpec) (int, error) {
	if err := h.call("create bridge %s", name); err != nil {
		return 0, err
	}
	b := s.Bridge
	return h.add(kernel.Link{Name: name, Kind: kindBridge, MTU: 1500, MAC: s.MAC, Bridge: &b})
}

func (h *host) CreateVXLAN(name string, s VXLANSpec) (int, error) {
	if err := h.call("create vxlan %s", name); err != nil {
		return 0, err
	}
	for _, l := range h.s.Links {
		if l.VXLAN != nil && l.VXLAN.VNI == s.VNI && l.VXLAN.Port == s.Port {
			return 0, fmt.Errorf("%s: VNI %s in use", name, s.VNI)
		}
	}
	if h.at(s.Device) == nil {
		return 0, fmt.Errorf("%s: no device %d", name, s.Device)
	}
	v := s.VXLAN
	i, err := h.add(kernel.Link{Name: name, Kind: kindVXLAN, MTU: s.MTU, MAC: s.MAC, VXLAN: &v})
	if err == nil && v.Group.IsValid() {
		h.s.FDB = append(h.s.FDB, kernel.FDBEntry{Link: i, Self: true, Static: true, Dst: v.Group, IfIndex: v.Device})
	}
	return i, err
}

func (h *host) DeleteLink(i int) error {
	if err := h.call("delete %s", h.s.Name(i)); err != nil {
		return err
	}
	if _, err := h.link(i); err != nil {
		return err
	}
	h.s.Links = slices.DeleteFunc(h.s.Links, func(l kernel.Link) bool { return l.Index == i })
	h.s.Addresses = slices.DeleteFunc(h.s.Addresses, func(a kernel.Address) bool { return a.Link == i })
	h.s.FDB = slices.DeleteFunc(h.s.FDB, func(e kernel.FDBEntry) bool { return e.Link == i })
	for n := range h.s.Links {
		if h.s.Links[n].Master == i {
			h.s.Links[n].Master = 0
		}
	}
	return nil
}

func (h *host) SetBridge(i int, c BridgeChange) error {
	l, err := h.link(i)
	if err = errors.Join(err, h.call("set bridge %s", h.s.Name(i))); err != nil {
		return err
	}
	b := l.Bridge
	if c.ForwardDelay != nil {
		if b.STP && (*c.ForwardDelay < minForwardDelay || *c.ForwardDelay > maxForwardDelay) {
			return errors.New("forward delay: numerical result out of range")
		}
		b.ForwardDelay = *c.ForwardDelay
	}
	if c.Ageing != nil {
		b.Ageing = *c.Ageing
	}
	if c.STP != nil {
		b.STP = *c.STP
		if b.STP {
			b.ForwardDelay = min(max(b.ForwardDelay, minForwardDelay), maxForwardDelay)
		}
	}
	return nil
}

func (h *host) SetVXLAN(i int, c VXLANChange) error {
	l, err := h.link(i)
	if err = errors.Join(err, h.call("set vxlan %s", h.s.Name(i))); err != nil {
		return err
	}
	v := l.VXLAN
	assign(&v.TTL, c.TTL)
	assign(&v.TOS, c.TOS)
	assign(&v.DF, c.DF)
	assign(&v.FlowLabel, c.FlowLabel)
	assign(&v.LabelInherit, c.LabelInherit)
	assign(&v.Learning, c.Learning)
	assign(&v.Ageing, c.Ageing)
	if c.Group != nil {
		for n, e := range h.s.FDB {
			if e.Link == i && e.MAC.IsZero() && e.Dst == v.Group {
				h.s.FDB[n].Dst = *c.Group
			}
		}
		v.Group = *c.Group
	}
	assign(&v.Local, c.Local)
	assign(&v.Device, c.Device)
	return nil
}

func assign[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func (h *host) SetMaster(i, bridge int) error {
	l, err := h.link(i)
	if err = errors.Join(err, h.call("set master of %s to %s", h.s.Name(i), h.s.Name(bridge))); err != nil {
		return err
	}
	if b := h.at(bridge); b == nil || b.Bridge == nil {
		return errors.New("not a bridge")
	}
	l.Master = bridge
	return nil
}

func (h *host) ClearMaster(i int) error {
	l, err := h.link(i)
	if err = errors.Join(err, h.call("clear master of %s", h.s.Name(i))); err != nil {
		return err
	}
	l.Master = 0
	return nil
}

func (h *host) SetUp(i int) error {
	l, err := h.link(i)
	if err = errors.Join(err, h.call("set up %s", h.s.Name(i))); err != nil {
		return err
	}
	for _, o := range h.s.Links {
		if x, v := o.VXLAN, l.VXLAN; x != nil && v != nil && o.Up && o.Index != i && x.Port == v.Port && x.V6() == v.V6() &&
			(x.UDPZeroCsum6RX != v.UDPZeroCsum6RX || x.GBP != v.GBP || x.External != v.External) { // one socket
			return fmt.Errorf("%s: address already in use", l.Name)
		}
	}
	l.Up = true
	return nil
}

func (h *host) SetDown(i int) error {
	l, err := h.link(i)
	if err = errors.Join(err, h.call("set down %s", h.s.Name(i))); err != nil {
		return err
	}
	l.Up = false
	return nil
}

func (h *host) SetMTU(i, mtu int) error {
	l, err := h.link(i)
	if err = errors.Join(err, h.call("set mtu of %s to %d", h.s.Name(i), mtu)); err != nil {
		return err
	}
	l.MTU = mtu
	return nil
}

func (h *host) AddAddress(i int, p netip.Prefix) error {
	_, err := h.link(i)
	if err = errors.Join(err, h.call("add address %s to %s", p, h.s.Name(i))); err != nil {
		return err
	}
	if !slices.Contains(h.s.AddressesOf(i), p) {
		h.s.Addresses = append(h.s.Addresses, kernel.Address{Link: i, Prefix: p})
	}
	return nil
}

func (h *host) DelAddress(i int, p netip.Prefix) error {
	_, err := h.link(i)
	if err = errors.Join(err, h.call("del address %s from %s", p, h.s.Name(i))); err != nil {
		return err
	}
	all := h.s.AddressesOf(i)
	if !slices.Contains(all, p) {
		return errors.New("cannot assign requested address")
	}
	subnet := slices.DeleteFunc(all, func(q netip.Prefix) bool { return q.Masked() != p.Masked() })
	primary := subnet[0] == p && p.Addr().Is4()
	h.s.Addresses = slices.DeleteFunc(h.s.Addresses, func(a kernel.Address) bool {
		return a.Link == i && (a.Prefix == p || primary && a.Prefix.Masked() == p.Masked())
	})
	return nil
}

func (h *host) AppendDefaultRemote(i int, r netip.Addr) error {
	_, err := h.link(i)
	if err = errors.Join(err, h.call("append remote %s to %s", r, h.s.Name(i))); err != nil {
		return err
	}
	if slices.Contains(h.s.RemotesOf(i), r) {
		return errors.New("file exists")
	}
	h.s.FDB = append(h.s.FDB, kernel.FDBEntry{Link: i, Self: true, Static: true, Dst: r})
	return nil
}

func (h *host) DelDefaultRemote(i int, r netip.Addr) error {
	if err := h.call("del remote %s from %s", r, h.s.Name(i)); err != nil {
		return err
	}
	return h.delFDB(i, fdb.MAC{}, r)
}

func (h *host) delFDB(i int, m fdb.MAC, dst netip.Addr) error {
	n := len(h.s.FDB)
	h.s.FDB = slices.DeleteFunc(h.s.FDB, func(e kernel.FDBEntry) bool { return e.Link == i && e.MAC == m && e.Dst == dst })
	if len(h.s.FDB) == n {
		return errors.New("no such file or directory")
	}
	return nil
}

func (h *host) AddStatic(i int, m fdb.MAC, vtep netip.Addr) error {
	_, err := h.link(i)
	if err = errors.Join(err, h.call("add static %s -> %s to %s", m, vtep, h.s.Name(i))); err != nil {
		return err
	}
	h.s.FDB = slices.DeleteFunc(h.s.FDB, func(e kernel.FDBEntry) bool { return e.Link == i && e.MAC == m })
	h.s.FDB = append(h.s.FDB, kernel.FDBEntry{Link: i, MAC: m, Self: true, Static: true, Dst: vtep})
	return nil
}

func (h *host) DelStatic(i int, m fdb.MAC, vtep netip.Addr) error {
	if err := h.call("del static %s -> %s from %s", m, vtep, h.s.Name(i)); err != nil {
		return err
	}
	return h.delFDB(i, m, vtep)
}

// text is the state of the host without ifindexes, sorted.
func (h *host) text() string {
	var lines []string
	for _, l := range h.s.Links {
		t := fmt.Sprintf("%s kind=%s mac=%s mtu=%d up=%t master=%s", l.Name, l.Kind, l.MAC, l.MTU, l.Up, h.s.Name(l.Master))
		if l.Bridge != nil {
			t += fmt.Sprintf(" %+v", *l.Bridge)
		}
		if l.VXLAN != nil {
			v := *l.VXLAN
			t += " dev=" + h.s.Name(v.Device)
			v.Device = 0
			t += fmt.Sprintf(" %+v", v)
		}
		lines = append(lines, t)
	}
	for _, a := range h.s.Addresses {
		lines = append(lines, fmt.Sprintf("%s addr %s", h.s.Name(a.Link), a.Prefix))
	}
	for _, e := range h.s.FDB {
		lines = append(lines, fmt.Sprintf("%s fdb %s dst %s static=%t extern=%t", h.s.Name(e.Link), e.MAC, e.Dst, e.Static, e.Extern))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// names replaces ifindexes of a record by whether they are those of the host.
func (h *host) names(o Owned) string {
	o.sort()
	n := func(name string, i int) string {
		if h.s.Name(i) != name {
			return name + "(stale)"
		}
		return name
	}
	var b strings.Builder
	for _, r := range o.Links {
		fmt.Fprintf(&b, "link %s %s replaced=%t\n", r.Kind, n(r.Name, r.Index), r.Replaced != nil)
	}
	for _, r := range o.Ports {
		fmt.Fprintf(&b, "port %s of %s\n", n(r.Link, r.Index), n(r.Bridge, r.BridgeIndex))
	}
	for _, r := range o.Addresses {
		fmt.Fprintf(&b, "address %s on %s\n", r.Prefix, n(r.Link, r.Index))
	}
	for _, r := range o.Remotes {
		fmt.Fprintf(&b, "remote %s on %s\n", r.Remote, n(r.Link, r.Index))
	}
	for _, r := range o.Statics {
		fmt.Fprintf(&b, "static %s -> %s (%s) on %s\n", r.MAC, r.VTEP, addrText(r.Previous), n(r.Link, r.Index))
	}
	for _, r := range o.Changes {
		fmt.Fprintf(&b, "change %s of %s: %s -> %s\n", r.Attr, n(r.Link, r.Index), r.Old, r.New)
	}
	return b.String()
}

func ip(s string) netip.Addr       { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func ptr[T any](v T) *T            { return &v }
func mac(s string) fdb.MAC {
	m, err := fdb.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// newHost has eth0 and eth2 (underlay), and what the options add.
func newHost(opts ...func(*host)) *host {
	h := &host{}
	h.must(kernel.Link{Name: "lo", MTU: 65536, Up: true}, "127.0.0.1/8")
	h.must(kernel.Link{Name: "eth0", MTU: 1500, Up: true}, "198.51.100.7/24", "fe80::7/64", "2001:db8::7/64")
	h.must(kernel.Link{Name: "eth2", MTU: 1500, Up: true}, "192.0.2.11/24", "192.0.2.111/24", "fe80::11/64", "2001:db8:2::11/64")
	for _, o := range opts {
		o(h)
	}
	return h
}

func (h *host) must(l kernel.Link, addrs ...string) int {
	i, err := h.add(l)
	if err != nil {
		panic(err)
	}
	for _, a := range addrs {
		h.s.Addresses = append(h.s.Addresses, kernel.Address{Link: i, Prefix: prefix(a)})
	}
	return i
}

func withBridge(name string, b kernel.Bridge, addrs ...string) func(*host) {
	return func(h *host) { h.must(kernel.Link{Name: name, Kind: kindBridge, MTU: 1500, Bridge: &b}, addrs...) }
}

func withLink(name, kind, master string) func(*host) {
	return func(h *host) {
		m, _ := h.s.Link(master)
		h.must(kernel.Link{Name: name, Kind: kind, MTU: 1500, Up: true, Master: m.Index})
	}
}

// withVXLAN adds a vxlan link that fits the network mgmt until f changes it.
func withVXLAN(name, master string, f func(*kernel.VXLAN)) func(*host) {
	return func(h *host) {
		m, _ := h.s.Link(master)
		d, _ := h.s.Link("eth2")
		v := kernel.VXLAN{VNI: 236, Device: d.Index, Port: 4789, Learning: true, Ageing: 300 * time.Second}
		if f != nil {
			f(&v)
		}
		i := h.must(kernel.Link{Name: name, Kind: kindVXLAN, MTU: 1400, Master: m.Index, VXLAN: &v})
		if v.Group.IsValid() {
			h.s.FDB = append(h.s.FDB, kernel.FDBEntry{Link: i, Self: true, Static: true, Dst: v.Group, IfIndex: v.Device})
		}
	}
}

func withFDB(link, m, dst string, extern bool) func(*host) {
	return func(h *host) {
		l, _ := h.s.Link(link)
		h.s.FDB = append(h.s.FDB, kernel.FDBEntry{Link: l.Index, Self: true, MAC: mac(m), Dst: ip(dst), Static: true, Extern: extern})
	}
}

// mgmt is the smallest useful config, changed by f.
func mgmt(f ...func(*config.Config, *config.Network)) *config.Config {
	u := config.Underlay{Device: "eth2", Port: 4789}
	c := &config.Config{Underlay: u, Networks: []config.Network{{
		Name: "mgmt", VNI: 236, Bridge: config.Bridge{Name: "br-mgmt"}, Link: "encap-mgmt", Underlay: u,
		Remotes: []netip.Addr{ip("192.0.2.12")}, Learning: true, Ageing: 300 * time.Second,
	}}}
	for _, g := range f {
		g(c, &c.Networks[0])
	}
	return c
}

// full has one of everything.
func full() *config.Config {
	return mgmt(func(c *config.Config, n *config.Network) {
		n.Underlay.TTL = 5
		n.Bridge.Addresses = []netip.Prefix{prefix("172.29.236.1/24"), prefix("172.29.236.2/24")}
		n.Remotes = append(n.Remotes, ip("192.0.2.13"))
		n.FDB = []config.StaticEntry{{MAC: mac("02:00:00:00:00:0c"), VTEP: ip("192.0.2.12")}}
		g := *n
		g.Name, g.VNI, g.Bridge, g.Link = "flat", 240, config.Bridge{Name: "br-flat"}, "encap-flat"
		g.Remotes, g.FDB, g.Group = nil, nil, ip("239.1.1.240")
		c.Networks = append(c.Networks, g)
	})
}

func plan(t *testing.T, h *host, c *config.Config, o Owned, opts Options) *Plan {
	t.Helper()
	p, err := NewPlan(c, h.s, o, opts)
	if err != nil {
		t.Fatalf("plan: %v\n%s", err, h.text())
	}
	return p
}

func apply(t *testing.T, h *host, p *Plan) Owned {
	t.Helper()
	o, err := Apply(t.Context(), p, h, nil)
	if err != nil {
		t.Fatalf("apply: %v\n%s", err, p)
	}
	return o
}

func load(t *testing.T, h *host, c *config.Config, o Owned, opts Options) Owned {
	t.Helper()
	return apply(t, h, plan(t, h, c, o, opts))
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	var d strings.Builder
	for _, l := range g {
		if !slices.Contains(w, l) {
			d.WriteString("+ " + l + "\n")
		}
	}
	for _, l := range w {
		if !slices.Contains(g, l) {
			d.WriteString("- " + l + "\n")
		}
	}
	t.Fatalf("%s: got (+), want (-):\n%s\ngot:\n%s", what, d.String(), got)
}
