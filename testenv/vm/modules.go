// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Loaded before anything runs. The rest is loaded when the kernel asks for it,
// as on a real host.
var early = []string{"virtio_pci", "virtio_net", "bridge", "vxlan", "veth", "br_netfilter", "ip_tables", "ip6_tables"}

// wanted is what the tests may make the kernel ask for, without dependencies.
var wanted = append([]string{
	// links
	"8021q", "bonding", "dummy", "geneve", "ifb", "ipip", "macvlan", "sit", "tun", "vrf", "wireguard",
	// tc
	"act_gact", "act_mirred", "cls_basic", "cls_bpf", "cls_flower", "cls_matchall", "cls_u32", "sch_fq_codel", "sch_htb", "sch_ingress", "sch_netem", "sch_prio", "sch_tbf",
	// packet filters
	"arp_tables", "ebt_among", "ebt_arp", "ebt_dnat", "ebt_snat", "ebt_redirect", "ebt_mark", "ebt_ip", "ebt_ip6", "ebt_limit", "ebt_mark_m", "ebt_nflog", "ebt_pkttype", "ebt_stp", "ebt_vlan", "ebtable_broute", "ebtable_filter", "ebtable_nat", "ebtables",
	"ip6_tables", "ip6table_filter", "ip6table_mangle", "ip6table_nat", "ip6table_raw",
	"ip_tables", "iptable_filter", "iptable_mangle", "iptable_nat", "iptable_raw",
	"nf_conntrack", "nf_conntrack_bridge", "nf_log_ipv4", "nf_log_ipv6", "nf_log_syslog", "nf_tables", "nf_reject_ipv4", "nf_reject_ipv6",
	"nft_chain_nat", "nft_compat", "nft_counter", "nft_ct", "nft_fib", "nft_fib_inet", "nft_hash", "nft_limit", "nft_log", "nft_masq", "nft_meta_bridge",
	"nft_nat", "nft_quota", "nft_reject", "nft_reject_bridge", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_dup_netdev", "nft_fwd_netdev",
	"xt_CT", "xt_LOG", "xt_NFLOG", "xt_addrtype", "xt_comment", "xt_conntrack", "xt_length", "xt_limit", "xt_mark", "xt_multiport", "xt_physdev", "xt_set", "xt_state", "xt_tcpmss", "xt_tcpudp", "xt_u32", "xt_TCPMSS",
	// diagnosis
	"inet_diag", "tcp_diag", "udp_diag", "af_packet_diag", "netlink_diag", "unix_diag", "nfnetlink_log",
	// encryption for wireguard
	"libchacha20poly1305", "libcurve25519",
}, early...)

// lacks names what a release has not, by Debian's configuration or by age. What
// is wanted, not there and not here is a mistake in these lists.
var lacks = map[string][]string{
	"5.10": {"nf_log_syslog"},
	"6.1":  {"nf_log_ipv4", "nf_log_ipv6", "nft_counter"}, // nf_log_syslog; part of nf_tables
	"6.12": {"nf_log_ipv4", "nf_log_ipv6", "nft_counter"},
	"7.3":  {"nf_log_ipv4", "nf_log_ipv6", "nft_counter", "ebtable_broute", "ebtable_filter", "ebtable_nat", "ebtables"},
}

// module is one file of /lib/modules.
type module struct {
	name    string
	object  []byte // uncompressed
	depends []string
	soft    []string // "pre: a b post: c": good to have
	aliases []string
}

// modules reads the wanted modules of a kernel and all that they depend on, in
// an order in which they can be loaded.
func modules(ctx context.Context, img image) ([]module, error) {
	root, err := img.one("lib/modules/*")
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(d.Name(), ".ko"); ok && err == nil && d.Type().IsRegular() {
			files[canonical(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(root, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	builtin := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		builtin[canonical(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))] = true
	}

	var out []module
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if name = canonical(name); done[name] || builtin[name] {
			return nil
		}
		done[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("find module %s of kernel %s: neither a file nor built in", name, img.name)
		}
		m, err := readModule(ctx, name, path)
		if err != nil {
			return err
		}
		for _, d := range m.depends {
			if err := add(d); err != nil {
				return err
			}
		}
		for _, d := range m.soft {
			if files[canonical(d)] == "" {
				continue
			}
			if err := add(d); err != nil {
				return err
			}
		}
		out = append(out, m)
		return nil
	}
	for _, name := range wanted {
		if _, ok := files[canonical(name)]; !ok && slices.Contains(lacks[img.name], name) {
			continue
		}
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

func readModule(ctx context.Context, name, path string) (m module, err error) {
	m = module{name: name}
	switch filepath.Ext(path) {
	case ".xz":
		m.object, err = exec.CommandContext(ctx, "xz", "-dc", path).Output()
	case ".zst":
		m.object, err = exec.CommandContext(ctx, "zstd", "-dc", path).Output()
	default:
		m.object, err = os.ReadFile(path)
	}
	if err != nil {
		return m, fmt.Errorf("read module %s: %w", path, err)
	}
	f, err := elf.NewFile(bytes.NewReader(m.object))
	if err != nil {
		return m, fmt.Errorf("read module %s: %w", path, err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return m, fmt.Errorf("read module %s: no .modinfo", path)
	}
	info, err := s.Data()
	if err != nil {
		return m, fmt.Errorf("read module %s: %w", path, err)
	}
	for _, kv := range strings.Split(string(info), "\x00") {
		switch k, v, _ := strings.Cut(kv, "="); k {
		case "depends":
			m.depends = append(m.depends, strings.FieldsFunc(v, func(r rune) bool { return r == ',' })...)
		case "softdep":
			m.soft = append(m.soft, strings.Fields(v)...)
		case "alias":
			m.aliases = append(m.aliases, v)
		}
	}
	return m, nil
}
