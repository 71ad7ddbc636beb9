// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// unitFile is a .netdev or .network file of systemd-networkd.
type unitFile struct {
	name     string
	sections []*unitSection
}

type unitSection struct {
	name string
	at   Place
	keys []option
}

func (s *unitSection) get(key string) (option, bool) {
	var found option
	ok := false
	for _, k := range s.keys { // the last one counts
		if k.key == key {
			found, ok = k, true
		}
	}
	return found, ok
}

// named returns the sections of that name.
func (u *unitFile) named(name string) (out []*unitSection) {
	for _, s := range u.sections {
		if s.name == name {
			out = append(out, s)
		}
	}
	return out
}

// value of a key in the last section that has it.
func (u *unitFile) value(section, key string) (option, bool) {
	var found option
	ok := false
	for _, s := range u.named(section) {
		if o, has := s.get(key); has {
			found, ok = o, true
		}
	}
	return found, ok
}

func parseUnit(name string, b []byte) (*unitFile, error) {
	u := &unitFile{name: name}
	var cur *unitSection
	lines := strings.Split(string(b), "\n")
	for i := 0; i < len(lines); i++ {
		at := Place{name, i + 1}
		line := strings.TrimSpace(lines[i])
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		for strings.HasSuffix(line, "\\") && i+1 < len(lines) {
			i++
			line = strings.TrimSpace(line[:len(line)-1]) + " " + strings.TrimSpace(lines[i])
		}
		if line[0] == '[' && strings.HasSuffix(line, "]") {
			cur = &unitSection{name: line[1 : len(line)-1], at: at}
			u.sections = append(u.sections, cur)
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || cur == nil {
			return nil, fmt.Errorf("read %s: want [Section] or Key=value, not %q", at, short(line))
		}
		cur.keys = append(cur.keys, option{strings.TrimSpace(key), strings.TrimSpace(value), at})
	}
	return u, nil
}

// networkd takes one file in. A .network file waits until all links are known.
func (h *host) networkd(name string, b []byte) error {
	u, err := parseUnit(name, b)
	if err != nil {
		return err
	}
	switch path.Ext(name) {
	case ".link":
		return nil // names and offloads of hardware
	case ".conf": // a drop-in belongs to the file that its directory names
		base := strings.TrimSuffix(path.Base(path.Dir(name)), ".d")
		if path.Ext(base) == ".netdev" {
			if main := h.netdevs[base]; main != nil {
				main.sections = append(main.sections, u.sections...)
			} else {
				h.netdevs[base] = u
			}
			return nil
		}
		u.name = base
		h.networks = append(h.networks, u)
		return nil
	}
	if len(u.named("NetDev")) > 0 {
		base := path.Base(name)
		if main := h.netdevs[base]; main != nil {
			u.sections = append(u.sections, main.sections...)
		}
		h.netdevs[base] = u
		return nil
	}
	h.networks = append(h.networks, u)
	return nil
}

// finish puts together what needs all files.
func (h *host) finish() error {
	bases := make([]string, 0, len(h.netdevs))
	for base := range h.netdevs {
		bases = append(bases, base)
	}
	slices.Sort(bases)
	for _, base := range bases {
		h.netdev(h.netdevs[base])
	}
	// A drop-in has no [Match] of its own: it has that of the file it belongs to.
	match := map[string]string{}
	for _, u := range h.networks {
		if m, ok := u.value("Match", "Name"); ok {
			match[path.Base(u.name)] = m.value
		}
	}
	for _, u := range h.networks {
		m, ok := match[path.Base(u.name)]
		if !ok {
			m, ok = netplanDropIn(u.name), netplanDropIn(u.name) != ""
		}
		if !ok {
			if len(u.sections) > 0 && about.MatchString(strings.ToLower(sectionNames(u))) {
				h.note(u.sections[0].at, "no [Match] Name=: what it says about vxlan links and bridges is not read")
			}
			continue
		}
		h.network(u, m)
	}
	if len(h.vxlans)+len(h.bridges)+len(h.links) > maxLinks {
		return fmt.Errorf("read links: more than %d", maxLinks)
	}
	return nil
}

func sectionNames(u *unitFile) string {
	var b strings.Builder
	for _, s := range u.sections {
		b.WriteString(s.name + " ")
		for _, k := range s.keys {
			b.WriteString(k.key + " ")
		}
	}
	return b.String()
}

// netplanDropIn: netplan calls its files for networkd 10-netplan-<link>.network.
func netplanDropIn(base string) string {
	name, ok := strings.CutPrefix(path.Base(base), "10-netplan-")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(name, ".network")
}

func (h *host) netdev(u *unitFile) {
	name, ok := u.value("NetDev", "Name")
	kind, _ := u.value("NetDev", "Kind")
	if !ok || name.value == "" {
		return
	}
	switch kind.value {
	case "vxlan":
		v := h.vxlan(name.value, name.at)
		v.maker = "networkd"
		for _, s := range u.sections {
			v.unit(s)
		}
	case "bridge":
		b := h.bridge(name.value, name.at)
		for _, s := range u.sections {
			b.unit(s)
		}
	default:
		h.other(name.value)
	}
}

func (v *vxlan) unit(s *unitSection) {
	for _, k := range s.keys {
		switch s.name {
		case "NetDev":
			switch k.key {
			case "Name", "Kind", "Description":
			case "MTUBytes":
				v.bytes(k)
			default:
				v.note(k.at, "no equivalent: %s=%s", k.key, short(k.value))
			}
		case "VXLAN":
			v.networkd(k)
		case "Match":
			v.note(k.at, "no equivalent: [Match] %s=%s", k.key, short(k.value))
		default:
			v.note(k.at, "no equivalent: [%s] %s=%s", s.name, k.key, short(k.value))
		}
	}
}

// sizes: networkd takes K, M and G, to the base of 1024.
func size(text string) (string, bool) {
	mult := 1
	switch {
	case strings.HasSuffix(text, "K"):
		mult, text = 1<<10, strings.TrimSuffix(text, "K")
	case strings.HasSuffix(text, "M"):
		mult, text = 1<<20, strings.TrimSuffix(text, "M")
	}
	n, err := strconv.ParseUint(text, 10, 20)
	return strconv.Itoa(int(n) * mult), err == nil
}

func (v *vxlan) bytes(k option) {
	if n, ok := size(k.value); ok {
		v.set.put("mtu", n, k.at)
	} else {
		v.note(k.at, "MTUBytes=%s is not a number", short(k.value))
	}
}

func (v *vxlan) networkd(k option) {
	num := func(key string) {
		if n, ok := number(k.value); ok {
			v.set.put(key, n, k.at)
		} else {
			v.note(k.at, "%s=%s is not a number", k.key, short(k.value))
		}
	}
	boolean := func() (on, ok bool) {
		if on, ok = yesNo(k.value); !ok {
			v.note(k.at, "%s=%s is neither yes nor no", k.key, short(k.value))
		}
		return on, ok
	}
	switch k.key {
	case "VNI", "Id":
		num("vni")
	case "Remote", "Group":
		v.remote(k.value, k.at)
	case "Local":
		if _, err := netip.ParseAddr(k.value); err != nil {
			v.note(k.at, "no equivalent: Local=%s; without local, vxbpf takes the first address of the device", short(k.value))
			return
		}
		v.set.put("local", k.value, k.at)
	case "TTL":
		v.ttl(k.value, k.at)
	case "TOS":
		if n, err := strconv.ParseUint(k.value, 10, 8); err == nil {
			v.tos(fmt.Sprintf("0x%02x", n), k.at)
		} else {
			v.note(k.at, "TOS=%s is not a number", short(k.value))
		}
	case "MacLearning":
		if on, ok := boolean(); ok {
			v.set.put("learning", strconv.FormatBool(on), k.at)
		}
	case "FDBAgeingSec":
		if s, ok := span(k.value); ok && s != "0" {
			v.set.put("ageing", s, k.at)
		} else {
			v.note(k.at, "FDBAgeingSec=%s: the kernel's default of 300 s applies", short(k.value))
		}
	case "UDPChecksum", "UDPCheckSum":
		if on, ok := boolean(); ok {
			v.set.put("udp_checksum", strconv.FormatBool(on), k.at)
		}
	case "UDP6ZeroChecksumTx", "UDP6ZeroCheckSumTx":
		if on, ok := boolean(); ok && on {
			v.set.put("udp_checksum", "false", k.at)
		}
	case "UDP6ZeroChecksumRx", "UDP6ZeroCheckSumRx":
		_, _ = boolean() // links made by vxbpf take such packets
	case "DestinationPort":
		num("port")
	case "PortRange":
		lo, hi, ok := strings.Cut(k.value, "-")
		if !ok {
			v.note(k.at, "PortRange=%s is not low-high", short(k.value))
			return
		}
		v.set.put("source_ports", fmt.Sprintf("[%s, %s]", clean(strings.TrimSpace(lo)), clean(strings.TrimSpace(hi))), k.at)
	case "FlowLabel":
		num("flow_label")
	case "IPDoNotFragment":
		switch on, ok := yesNo(k.value); {
		case k.value == "inherit":
			v.set.put("df", "inherit", k.at)
		case ok:
			v.set.put("df", map[bool]string{true: "set", false: "unset"}[on], k.at)
		default:
			v.note(k.at, "IPDoNotFragment=%s is not known", short(k.value))
		}
	case "GroupPolicyExtension", "GenericProtocolExtension":
		if on, ok := boolean(); ok && on {
			v.skip = "it speaks " + k.key + ", which vxbpf does not"
		}
	case "External", "VNIFilter":
		if on, ok := boolean(); ok && on {
			v.skip = "it carries every VNI (" + k.key + "), and vxbpf wants one link per VNI"
		}
	case "Independent":
		_, _ = boolean()
	case "ReduceARPProxy", "ARPProxy", "L2MissNotification", "L3MissNotification", "RouteShortCircuit", "RemoteChecksumTx", "RemoteChecksumRx":
		if on, ok := boolean(); ok && on {
			v.note(k.at, "no equivalent: %s=%s", k.key, short(k.value))
		}
	default:
		v.note(k.at, "no equivalent: %s=%s", k.key, short(k.value))
	}
}

var spanPart = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) *([a-zA-Zµμ]*) *`)

// span reads a time span of systemd.time(7) as seconds.
func span(text string) (string, bool) {
	text = strings.TrimSpace(text)
	if text == "" {
		return "", false
	}
	total := 0.0
	for text != "" {
		m := spanPart.FindStringSubmatch(text)
		if m == nil {
			return "", false
		}
		f, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return "", false
		}
		unit := map[string]float64{"": 1, "s": 1, "sec": 1, "second": 1, "seconds": 1, "ms": 1e-3, "msec": 1e-3, "m": 60, "min": 60, "minute": 60, "minutes": 60,
			"h": 3600, "hr": 3600, "hour": 3600, "hours": 3600, "d": 86400, "day": 86400, "days": 86400, "us": 1e-6, "usec": 1e-6}
		u, ok := unit[m[2]]
		if !ok {
			return "", false
		}
		total += f * u
		text = text[len(m[0]):]
	}
	if total != float64(int64(total)) {
		return strconv.FormatFloat(total, 'f', -1, 64), true
	}
	return strconv.FormatInt(int64(total), 10), true
}

func (b *bridge) unit(s *unitSection) {
	for _, k := range s.keys {
		switch s.name + " " + k.key {
		case "NetDev Name", "NetDev Kind", "NetDev Description":
		case "NetDev MTUBytes":
			b.bytes(k)
		case "Bridge STP":
			b.stp(k.value, k.at)
		case "Bridge ForwardDelaySec", "Bridge AgeingTimeSec":
			key := map[string]string{"ForwardDelaySec": "forward_delay", "AgeingTimeSec": "ageing"}[k.key]
			if t, ok := span(k.value); ok {
				b.time(key, t, k.at)
			} else {
				b.note(k.at, "%s=%s is not a time", k.key, short(k.value))
			}
		case "Bridge VLANFiltering":
			if on, ok := yesNo(k.value); !ok || on {
				b.note(k.at, "no equivalent: %s=%s%s", k.key, short(k.value), because["bridge-vlan-aware"])
			}
		default:
			b.note(k.at, "no equivalent: [%s] %s=%s", s.name, k.key, short(k.value))
		}
	}
}

func (b *bridge) bytes(k option) {
	if n, ok := size(k.value); ok {
		b.set.put("mtu", n, k.at)
	} else {
		b.note(k.at, "MTUBytes=%s is not a number", short(k.value))
	}
}

// network applies a .network file to the links that it matches.
func (h *host) network(u *unitFile, match string) {
	patterns := strings.Fields(match)
	hit := func(name string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := path.Match(p, name)
			return p == name || err == nil && ok
		})
	}
	ours := false
	for _, v := range h.vxlans {
		if hit(v.name) {
			ours = true
			h.networkVXLAN(u, v)
		}
	}
	for _, b := range h.bridges {
		if hit(b.name) {
			ours = true
			h.networkBridge(u, b)
		}
	}
	if !ours {
		for _, p := range patterns {
			h.networkOther(u, p)
		}
	}
}

func (h *host) networkVXLAN(u *unitFile, v *vxlan) {
	for _, s := range u.sections {
		switch s.name {
		case "Match":
		case "BridgeFDB":
			mac, _ := s.get("MACAddress")
			dst, ok := s.get("Destination")
			extra := ""
			for _, k := range s.keys {
				switch k.key {
				case "MACAddress", "Destination":
				case "AssociatedWith":
					if k.value == "master" {
						extra = "AssociatedWith=master"
					}
				default:
					extra = k.key + "=" + k.value
				}
			}
			switch {
			case !ok || mac.value == "":
				v.note(s.at, "no equivalent: [BridgeFDB] without Destination= or MACAddress=")
			case extra != "":
				v.note(s.at, "no equivalent: [BridgeFDB] with %s", short(extra))
			default:
				v.static(mac.value, dst.value, s.at)
			}
		default:
			for _, k := range s.keys {
				switch s.name + " " + k.key {
				case "Network Bridge":
					v.master = k.value
				case "Link MTUBytes":
					v.bytes(k)
				case "Network LinkLocalAddressing", "Link RequiredForOnline", "Network DHCP", "Network IPv6AcceptRA", "Network ConfigureWithoutCarrier", "Network Description":
					if on, ok := yesNo(k.value); k.key == "DHCP" && (!ok || on) {
						v.note(k.at, "no equivalent: [Network] DHCP=%s", short(k.value))
					}
				case "Network Address", "Address Address":
					h.address(v.name, k.value, k.at)
				default:
					v.note(k.at, "no equivalent: [%s] %s=%s", s.name, k.key, short(k.value))
				}
			}
		}
	}
}

func (h *host) networkBridge(u *unitFile, b *bridge) {
	for _, s := range u.sections {
		for _, k := range s.keys {
			switch s.name + " " + k.key {
			case "Network Address", "Address Address":
				h.address(b.name, withLength(k.value), k.at)
			case "Link MTUBytes":
				b.bytes(k)
			case "Network LinkLocalAddressing", "Link RequiredForOnline", "Network IPv6AcceptRA", "Network ConfigureWithoutCarrier", "Network Description", "Match Name":
			case "Network DHCP":
				if on, ok := yesNo(k.value); !ok || on {
					b.note(k.at, "no equivalent: DHCP=%s; an address that is not in the file is not vxbpf's to give", short(k.value))
				}
			default:
				b.note(k.at, "no equivalent: [%s] %s=%s%s", s.name, k.key, short(k.value), map[string]string{"Gateway": because["gateway"], "DNS": because["dns-nameservers"]}[k.key])
			}
		}
	}
}

func (h *host) networkOther(u *unitFile, name string) {
	if strings.ContainsAny(name, "*?[") {
		return
	}
	o := h.other(name)
	for _, s := range u.sections {
		for _, k := range s.keys {
			switch s.name + " " + k.key {
			case "Network VXLAN":
				if v := h.findVXLAN(k.value); v != nil {
					v.set.put("device", name, k.at)
				}
			case "Network Bridge":
				if b := h.findBridge(k.value); b != nil {
					b.port(name, k.at)
				}
			case "Network Address", "Address Address":
				h.address(name, k.value, k.at)
			case "Link MTUBytes":
				if n, ok := size(k.value); ok {
					o.mtu, _ = strconv.Atoi(n)
				}
			}
		}
	}
}
