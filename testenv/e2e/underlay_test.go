// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// Underlay devices that stand over eth2, and what may be done to packets there.
//
//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- DEVICE -- eth2 ==== eth2 -- the same: h2
//
// Most of these need a kernel of `make test-kernels`.

// second is the address of a host on the device over eth2.
func second(host string) netip.Prefix {
	return netip.MustParsePrefix(map[string]string{"h1": "198.51.100.11/24", "h2": "198.51.100.12/24"}[host])
}

func other(host string) string { return map[string]string{"h1": "h2", "h2": "h1"}[host] }

func linkAttrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// address puts the host's second address on a device and brings it up.
func (w overlay) address(host, dev string) {
	w.t.Helper()
	h := w.handle(w.Host(host).NS)
	l, err := h.LinkByName(dev)
	w.must(err)
	p := second(host)
	w.must(h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}), h.LinkSetUp(l))
}

func TestUnderlays(t *testing.T) {
	for _, c := range []struct {
		name   string
		need   need.Feature
		device string
		lacks  string // what status says of a network that is the kernel's; empty: it is fast
		make   func(w overlay, host string)
	}{
		{"802.1Q", need.VLAN, "eth2.5", "", func(w overlay, host string) {
			h := w.handle(w.Host(host).NS)
			a := linkAttrs("eth2.5")
			a.ParentIndex = w.ifindex(host, "eth2")
			w.must(h.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: 5, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}))
			w.address(host, "eth2.5")
		}},
		{"bond", need.Bond, "bond0", "", func(w overlay, host string) {
			h := w.handle(w.Host(host).NS)
			b := netlink.NewLinkBond(linkAttrs("bond0"))
			b.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
			b.Miimon = 100
			w.must(h.LinkAdd(b))
			eth2, err := h.LinkByName("eth2")
			w.must(err)
			bond, err := h.LinkByName("bond0")
			w.must(err)
			w.must(h.LinkSetDown(eth2), h.LinkSetMaster(eth2, bond), h.LinkSetUp(eth2))
			w.address(host, "bond0")
		}},
		{"VRF", need.VRF, "eth2", "", func(w overlay, host string) {
			h := w.handle(w.Host(host).NS)
			w.must(h.LinkAdd(&netlink.Vrf{LinkAttrs: linkAttrs("blue"), Table: 10}))
			eth2, err := h.LinkByName("eth2")
			w.must(err)
			vrf, err := h.LinkByName("blue")
			w.must(err)
			w.must(h.LinkSetUp(vrf), h.LinkSetMaster(eth2, vrf))
			w.address(host, "eth2")
		}},
		{"WireGuard", need.WireGuard, "wg0", "wg0 has no Ethernet header", func(w overlay, host string) {
			h := w.handle(w.Host(host).NS)
			w.must(h.LinkAdd(&netlink.Wireguard{LinkAttrs: linkAttrs("wg0")}))
			w.address(host, "wg0")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			need.Kernel(t, c.need)
			spec := oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"})
			spec.Networks[0].MTU = 1370 // WireGuard takes 80 bytes of it
			spec.Underlay.Config = testenv.Keys(fmt.Sprintf("{device: %s}", c.device))
			for i := range spec.Hosts {
				host := spec.Hosts[i].Name
				spec.Hosts[i].Config = testenv.Keys(fmt.Sprintf("{underlay: {local: %s}}", second(host).Addr()))
			}
			w := newOverlay(t, spec, false)
			for _, h := range w.Hosts {
				c.make(w, h.Name)
			}
			if c.device == "wg0" {
				w.wireGuard()
			}
			for _, h := range w.Hosts {
				config := w.config(h.Name, h.Address.String(), second(h.Name).Addr().String(), w.Host(other(h.Name)).Address.String(), second(other(h.Name)).Addr().String())
				b, err := os.ReadFile(config)
				w.must(err)
				d, err := h.Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: b})
				w.must(err)
				w.must(w.AttachContainers(w.ctx, h.Name))
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("log of %s:\n%s", h.Name, d.Log())
					}
				})
			}
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			if c.lacks != "" {
				for _, h := range w.Hosts {
					n := w.network(h.Name, "mgmt")
					if n.Reason != c.lacks {
						t.Errorf("status of %s: mgmt on %s because of %q, want %q", h.Name, n.Datapath, n.Reason, c.lacks)
					}
				}
				w.ping(a.NS, b.Addr.Addr())
				w.ping(b.NS, a.Addr6.Addr())
				w.transfer(a, b, bulk)
				w.transfer(b, a, bulk)
				return
			}
			w.ping(a.NS, b.Addr.Addr())
			w.ping(b.NS, a.Addr6.Addr())
			w.accelerated(a, b)
			if out, _, code := w.vxbpf("h1", "unload"); code != 0 {
				t.Errorf("unload: exit %d\n%s", code, out)
			}
		})
	}
}

// wireGuard makes a tunnel between the two wg0.
func (w overlay) wireGuard() {
	w.t.Helper()
	key := func(host, what string, stdin string) string {
		cmd := w.Host(host).NS.Command(w.ctx, "wg", what)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		w.must(err)
		return strings.TrimSpace(string(out))
	}
	private, public := map[string]string{}, map[string]string{}
	for _, h := range w.Hosts {
		private[h.Name] = key(h.Name, "genkey", "")
		public[h.Name] = key(h.Name, "pubkey", private[h.Name]+"\n")
	}
	for _, h := range w.Hosts {
		file := filepath.Join(w.t.TempDir(), h.Name)
		w.must(os.WriteFile(file, []byte(private[h.Name]+"\n"), 0o600))
		far := w.Host(other(h.Name))
		out, err := h.NS.Command(w.ctx, "wg", "set", "wg0", "private-key", file, "listen-port", "51820", "peer", public[far.Name],
			"allowed-ips", second(far.Name).Addr().String()+"/32", "endpoint", far.Address.String()+":51820").CombinedOutput()
		if err != nil {
			w.t.Fatalf("wg set: %v\n%s", err, out)
		}
	}
}

// Loss, delay and reordering on the underlay, of single packets (no segmentation
// offload): TCP over vxbpf recovers as over kernel VXLAN. Two labs, interleaved.
func TestNetem(t *testing.T) {
	need.Kernel(t, need.Netem)
	const rounds, size = 4, 6 << 20
	labs := map[string]overlay{}
	for _, name := range []string{"kernel", "vxbpf"} {
		k := name == "kernel"
		w := newOverlay(t, oneNetwork(testenv.HostSpec{Name: "h1", KernelVXLAN: k}, testenv.HostSpec{Name: "h2", KernelVXLAN: k}), true)
		for _, host := range []string{"h1", "h2"} {
			c := w.Container(host, "mgmt-1")
			off := map[string]bool{"tx-generic-segmentation": false}
			for f, on := range w.features(c.NS, "eth0") {
				if _, tso := settings["tso off"][f]; tso && on {
					off[f] = false
				}
			}
			w.tool(c.NS, func(e *ethtool.Ethtool) error { return e.Change("eth0", off) })
		}
		a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
		w.small(a, b)
		if !k {
			w.know("h1", a.MAC, b.MAC)
			w.know("h2", a.MAC, b.MAC)
		}
		labs[name] = w
	}
	for _, c := range []struct {
		name  string
		attrs netlink.NetemQdiscAttrs
	}{
		{"loss", netlink.NetemQdiscAttrs{Limit: 10000, Loss: 1}},
		{"delay and reordering", netlink.NetemQdiscAttrs{Limit: 10000, Latency: 4000, ReorderProb: 2, ReorderCorr: 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			resent, took := map[string]float64{}, map[string]float64{}
			var before networkStatus
			for _, w := range labs {
				for _, host := range []string{"h1", "h2"} {
					h := w.handle(w.Host(host).NS)
					w.must(h.QdiscReplace(netlink.NewNetem(netlink.QdiscAttrs{LinkIndex: w.ifindex(host, "eth2"), Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}, c.attrs)))
				}
			}
			before = labs["vxbpf"].network("h1", "mgmt")
			segments := 0.0
			for range rounds {
				for _, name := range []string{"kernel", "vxbpf"} {
					w := labs[name]
					r := w.transfer(w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1"), size)
					resent[name] += float64(r.Retransmits)
					took[name] += r.Duration.Seconds()
					if name == "kernel" {
						segments += float64(r.Bytes) / float64(r.MSS)
					}
				}
			}
			t.Logf("%.0f segments, sent again %.0f over the kernel, %.0f over vxbpf; %.1f s and %.1f s", segments, resent["kernel"], resent["vxbpf"], took["kernel"], took["vxbpf"])
			if c.attrs.Loss > 0 && (resent["kernel"] < segments/200 || resent["vxbpf"] < segments/200) {
				t.Errorf("of %.0f segments %.0f and %.0f were sent again: nothing is lost here", segments, resent["kernel"], resent["vxbpf"])
			}
			// Some 200 losses vary by 7 %, and what TCP makes of them by as much again.
			if resent["vxbpf"] > 1.4*resent["kernel"]+20 {
				t.Errorf("%.0f segments sent again, %.0f over the kernel", resent["vxbpf"], resent["kernel"])
			}
			// A lost retransmission waits for a timer: some of these more or less are seconds.
			if took["vxbpf"] > 2*took["kernel"]+3 {
				t.Errorf("%.1f s, %.1f s over the kernel", took["vxbpf"], took["kernel"])
			}
			sent := labs["vxbpf"].network("h1", "mgmt").Sent.less(before.Sent)
			if sent.ratio() < 0.9 {
				t.Errorf("%d of %d packets on the fast path", sent.Fast, sent.Total)
			}
		})
	}
}
