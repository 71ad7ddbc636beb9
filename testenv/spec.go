// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// DefaultYAML is the reference lab file: every key, commented.
//
//go:embed default.yaml
var DefaultYAML []byte

// Spec describes a lab. Its YAML form is default.yaml. Up completes and checks
// a Spec made in Go the same way ParseSpec does one from a file.
type Spec struct {
	Name     string   `yaml:"name"`
	Underlay Underlay `yaml:"underlay"`
	// Networks may be empty: hosts and an underlay only.
	Networks []Network  `yaml:"networks,omitempty"`
	Hosts    []HostSpec `yaml:"hosts"`
	// Containers on each host and network, 0..99. ParseSpec takes 2 if the key is absent.
	Containers int `yaml:"containers_per_host_and_network"`
	// ContainerMTU of eth0 in the containers, bytes. 0: the network's MTU.
	ContainerMTU int `yaml:"container_mtu,omitempty"`
	// HostAddresses names the networks on which each host's bridge has an address.
	HostAddresses []string `yaml:"host_addresses,omitempty"`
}

// The kinds of underlay.
const (
	P2P    = "p2p"    // one veth pair between exactly two hosts
	Switch = "switch" // a bridge in a namespace of its own
	Routed = "routed" // a router in a namespace of its own, each host in a subnet of one address
)

// The datapath of a HostSpec.
const (
	Auto   = "auto"
	TC     = "tc"
	XDP    = "xdp"
	Kernel = "kernel"
	None   = "none" // no overlay is configured on this host
)

// Underlay is the network that carries the outer packets.
type Underlay struct {
	Kind    string       `yaml:"kind,omitempty"`     // P2P, Switch or Routed; empty: P2P for two hosts
	Prefix  netip.Prefix `yaml:"prefix,omitempty"`   // zero: 192.0.2.0/24
	Device  string       `yaml:"device,omitempty"`   // empty: eth2
	MTU     int          `yaml:"mtu,omitempty"`      // bytes; 0: 1500
	PathMTU int          `yaml:"path_mtu,omitempty"` // of the hop behind a Routed underlay's router, bytes; 0: MTU
	Config  Keys         `yaml:"config,omitempty"`   // for the section underlay of every host's vxbpf config
}

// Keys are further keys of the vxbpf config, as a YAML mapping, for example
// "{df: set, mss_clamp: auto}". They go before what the lab would write itself.
type Keys string

// UnmarshalYAML keeps the text: what it means is for vxbpf to say.
func (k *Keys) UnmarshalYAML(b []byte) error {
	*k = Keys(b)
	_, err := k.parse()
	return err
}

func (k Keys) parse() (m yaml.MapSlice, err error) {
	if err := yaml.UnmarshalWithOptions([]byte(k), &m, yaml.UseOrderedMap()); err != nil {
		return nil, fmt.Errorf("config %q: want a YAML mapping: %w", string(k), err)
	}
	return m, nil
}

// merge sets the keys of over in m, mappings key by key.
func merge(m, over yaml.MapSlice) yaml.MapSlice {
	for _, o := range over {
		i := slices.IndexFunc(m, func(it yaml.MapItem) bool { return it.Key == o.Key })
		if i < 0 {
			m = append(m, o)
			continue
		}
		old, ok := m[i].Value.(yaml.MapSlice)
		if add, both := o.Value.(yaml.MapSlice); ok && both {
			m[i].Value = merge(old, add)
		} else {
			m[i].Value = o.Value
		}
	}
	return m
}

// Network is one overlay segment of a lab.
type Network struct {
	Name    string       `yaml:"name"` // at most 9 characters: encap-<name> is a link
	VNI     fdb.VNI      `yaml:"vni"`
	Bridge  string       `yaml:"bridge,omitempty"`  // empty: br-<name>
	Subnet  netip.Prefix `yaml:"subnet"`            // IPv4, of the containers
	Subnet6 netip.Prefix `yaml:"subnet6,omitempty"` // zero: no IPv6 addresses
	Group   netip.Addr   `yaml:"group,omitempty"`   // zero: unicast copies to all other hosts
	MTU     int          `yaml:"mtu,omitempty"`     // of bridge and vxlan link, bytes; 0: the underlay's less the overhead
	Config  Keys         `yaml:"config,omitempty"`  // for this network in every host's vxbpf config
}

// HostSpec is one host of a lab.
type HostSpec struct {
	Name    string     `yaml:"name"`
	Address netip.Addr `yaml:"address,omitempty"` // on the underlay; zero: the prefix's 11th, 12th, ... address
	// Datapath is Auto (also if empty), XDP, TC, Kernel or None.
	Datapath string `yaml:"datapath,omitempty"`
	// KernelVXLAN makes the overlay with rtnetlink; vxbpf does not run here.
	KernelVXLAN bool `yaml:"kernel_vxlan,omitempty"`
	// Stranger is on the underlay only: no VTEP and in nobody's remotes.
	Stranger bool `yaml:"stranger,omitempty"`
	// Config is for the top level of this host's vxbpf config.
	Config Keys `yaml:"config,omitempty"`
}

// DefaultSpec is the checked default.yaml.
func DefaultSpec() Spec {
	s, err := ParseSpec(DefaultYAML)
	if err != nil {
		panic(err) // the embedded file; a test parses it
	}
	return s
}

// ReadSpec reads and checks a lab file.
func ReadSpec(file string) (Spec, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Spec{}, err
	}
	s, err := ParseSpec(b)
	if err != nil {
		return Spec{}, fmt.Errorf("parse %s: %w", file, err)
	}
	return s, nil
}

// ParseSpec reads a lab file, strictly: an unknown key is an error with line,
// column and caret. The result is complete: defaults are filled in.
func ParseSpec(b []byte) (Spec, error) {
	s := Spec{Containers: 2}
	dec := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict())
	if err := dec.Decode(&s); errors.Is(err, io.EOF) {
		return Spec{}, errors.New("lab file is empty")
	} else if err != nil {
		return Spec{}, err
	}
	if err := dec.Decode(new(Spec)); !errors.Is(err, io.EOF) {
		return Spec{}, errors.New("lab file holds more than one document")
	}
	return s.check()
}

// Network returns the network of that name.
func (s Spec) Network(name string) (Network, error) {
	for _, n := range s.Networks {
		if n.Name == name {
			return n, nil
		}
	}
	return Network{}, fmt.Errorf("lab %s has no network %q", s.Name, name)
}

var (
	validName   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	validIfname = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,14}$`)
)

func checkName(what, name string, longest int) error {
	if len(name) > longest || !validName.MatchString(name) {
		return fmt.Errorf("%s %q: want at most %d of a-z, 0-9 and inner hyphens", what, name, longest)
	}
	return nil
}

func checkIfname(what, name string) error {
	if !validIfname.MatchString(name) {
		return fmt.Errorf("%s %q: not a link name of 1 to 15 characters", what, name)
	}
	return nil
}

func checkMTU(what string, mtu, least int) error {
	if mtu < least || mtu > 65535 {
		return fmt.Errorf("%s %d: want %d to 65535", what, mtu, least)
	}
	return nil
}

// check returns s with the defaults filled in. It does not change s's slices.
func (s Spec) check() (Spec, error) {
	if err := checkName("lab name", s.Name, 32); err != nil {
		return s, err
	}
	if err := s.checkUnderlay(); err != nil {
		return s, err
	}
	if s.Containers < 0 || s.Containers > 99 {
		return s, fmt.Errorf("containers_per_host_and_network %d: want 0 to 99", s.Containers)
	}
	if err := s.checkHosts(); err != nil {
		return s, err
	}
	if err := s.checkNetworks(); err != nil {
		return s, err
	}
	if s.ContainerMTU != 0 {
		if err := checkMTU("container_mtu", s.ContainerMTU, 1280); err != nil {
			return s, err
		}
	}
	for _, n := range s.HostAddresses {
		if _, err := s.Network(n); err != nil {
			return s, fmt.Errorf("host_addresses: %w", err)
		}
	}
	return s, s.checkConfig()
}

func (s Spec) checkConfig() error {
	_, err := s.Underlay.Config.parse()
	if err != nil {
		return fmt.Errorf("underlay: %w", err)
	}
	for _, n := range s.Networks {
		if _, err := n.Config.parse(); err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	for _, h := range s.Hosts {
		if _, err := h.Config.parse(); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
	}
	return nil
}

func (s *Spec) checkUnderlay() error {
	u := &s.Underlay
	if u.Kind == "" {
		u.Kind = Switch
		if len(s.Hosts) == 2 {
			u.Kind = P2P
		}
	}
	switch {
	case u.Kind != P2P && u.Kind != Switch && u.Kind != Routed:
		return fmt.Errorf("underlay kind %q: want p2p, switch or routed", u.Kind)
	case u.PathMTU != 0 && u.Kind != Routed:
		return fmt.Errorf("underlay path_mtu %d needs kind routed", u.PathMTU)
	case len(s.Hosts) == 0:
		return errors.New("lab has no hosts")
	case u.Kind == P2P && len(s.Hosts) != 2:
		return fmt.Errorf("underlay kind p2p joins two hosts, not %d: use switch", len(s.Hosts))
	}
	if !u.Prefix.IsValid() {
		u.Prefix = netip.MustParsePrefix("192.0.2.0/24")
	}
	u.Prefix = u.Prefix.Masked()
	if u.Device == "" {
		u.Device = "eth2"
	}
	if err := checkIfname("underlay device", u.Device); err != nil {
		return err
	}
	if u.MTU == 0 {
		u.MTU = 1500
	}
	if u.PathMTU != 0 {
		if err := checkMTU("underlay path_mtu", u.PathMTU, 1280); err != nil {
			return err
		}
	}
	return checkMTU("underlay mtu", u.MTU, 1280+s.overhead())
}

// overhead of encapsulation, bytes per packet (RFC 7348 section 5).
func (s Spec) overhead() int {
	if s.Underlay.Prefix.Addr().Is6() {
		return 70
	}
	return 50
}

func (s *Spec) checkHosts() error {
	s.Hosts = slices.Clone(s.Hosts)
	if len(s.Hosts) > 200 {
		return fmt.Errorf("lab has %d hosts: want at most 200", len(s.Hosts))
	}
	names, addrs := map[string]bool{}, map[netip.Addr]bool{}
	for i := range s.Hosts {
		h := &s.Hosts[i]
		// p-<name> is a port of the switch.
		if err := checkName("host name", h.Name, 13); err != nil {
			return err
		}
		if names[h.Name] {
			return fmt.Errorf("host %s: name used twice", h.Name)
		}
		names[h.Name] = true

		if !h.Address.IsValid() {
			a, err := nth(s.Underlay.Prefix, 11+i)
			if err != nil {
				return fmt.Errorf("host %s: underlay %w", h.Name, err)
			}
			h.Address = a
		}
		if !s.Underlay.Prefix.Contains(h.Address) {
			return fmt.Errorf("host %s: address %s is not in underlay prefix %s", h.Name, h.Address, s.Underlay.Prefix)
		}
		if addrs[h.Address] {
			return fmt.Errorf("host %s: address %s used twice", h.Name, h.Address)
		}
		addrs[h.Address] = true

		if h.KernelVXLAN || h.Stranger {
			if h.Datapath != "" && h.Datapath != None {
				return fmt.Errorf("host %s: datapath %s contradicts kernel_vxlan or stranger", h.Name, h.Datapath)
			}
			if h.KernelVXLAN && h.Stranger {
				return fmt.Errorf("host %s: a stranger has no kernel_vxlan", h.Name)
			}
			h.Datapath = None
		}
		switch h.Datapath {
		case "":
			h.Datapath = Auto
		case Auto, XDP, TC, Kernel, None:
		default:
			return fmt.Errorf("host %s: datapath %q: want auto, xdp, tc, kernel or none", h.Name, h.Datapath)
		}
	}
	return nil
}

func (s *Spec) checkNetworks() error {
	s.Networks = slices.Clone(s.Networks)
	if len(s.Networks) > 200 {
		return fmt.Errorf("lab has %d networks: want at most 200", len(s.Networks))
	}
	seen := map[string]bool{}
	once := func(what, v string) error {
		if seen[what+v] {
			return fmt.Errorf("%s %s used twice", what, v)
		}
		seen[what+v] = true
		return nil
	}
	for i := range s.Networks {
		n := &s.Networks[i]
		if err := checkName("network name", n.Name, 9); err != nil {
			return err
		}
		if n.Bridge == "" {
			n.Bridge = "br-" + n.Name
		}
		if n.MTU == 0 {
			n.MTU = s.Underlay.MTU - s.overhead()
		}
		var err error
		switch last := len(s.Hosts)*s.stride() + s.Containers; {
		case n.VNI == 0 || n.VNI > fdb.MaxVNI:
			err = fmt.Errorf("vni %d: want 1 to %d", n.VNI, fdb.MaxVNI)
		case !n.Subnet.IsValid() || !n.Subnet.Addr().Is4():
			err = fmt.Errorf("subnet %s: want an IPv4 prefix", n.Subnet)
		case n.Subnet6.IsValid() && !n.Subnet6.Addr().Is6():
			err = fmt.Errorf("subnet6 %s: want an IPv6 prefix", n.Subnet6)
		case n.Group.IsValid() && !n.Group.IsMulticast():
			err = fmt.Errorf("group %s: not a multicast address", n.Group)
		case n.Group.IsValid() && n.Group.Is4() != s.Underlay.Prefix.Addr().Is4():
			err = fmt.Errorf("group %s: not of the underlay's family", n.Group)
		default:
			n.Subnet = n.Subnet.Masked()
			if _, err = nth(n.Subnet, last); err == nil && n.Subnet6.IsValid() {
				n.Subnet6 = n.Subnet6.Masked()
				_, err = nth(n.Subnet6, last)
			}
		}
		err = errors.Join(err,
			checkMTU("mtu", n.MTU, 1280),
			checkIfname("bridge", n.Bridge),
			once("name", n.Name), once("vni", n.VNI.String()), once("bridge", n.Bridge))
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	return nil
}

// stride is the distance between the addresses of two hosts' containers.
func (s Spec) stride() int {
	if s.Containers > 9 {
		return 100
	}
	return 10
}

// nth is the address that reads as network + n: in IPv6 the decimal digits
// stand in hexadecimal, so that 172.29.236.21 goes with fd00:29:236::21.
func nth(p netip.Prefix, n int) (netip.Addr, error) {
	p = p.Masked()
	off := big.NewInt(int64(n))
	if p.Addr().Is6() {
		off.SetString(strconv.Itoa(n), 16)
	}
	sum := off.Add(off, new(big.Int).SetBytes(p.Addr().AsSlice()))
	b := make([]byte, p.Addr().BitLen()/8)
	if sum.BitLen() > len(b)*8 {
		return netip.Addr{}, fmt.Errorf("prefix %s has no room for address %d", p, n)
	}
	a, _ := netip.AddrFromSlice(sum.FillBytes(b))
	// The last IPv4 address of a subnet is its broadcast address.
	if !p.Contains(a) || a.Is4() && !p.Contains(a.Next()) {
		return netip.Addr{}, fmt.Errorf("prefix %s has no room for address %d", p, n)
	}
	return a, nil
}
