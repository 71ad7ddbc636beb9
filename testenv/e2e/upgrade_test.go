// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// A host whose kernel had no tcx gets one that has, and nothing remembers the
// clsact filters: the pins are gone, or these and the state. The filters, which
// live in the kernel by themselves, are found and removed; each hook has one
// program. Where the kernel has no tcx, clsact takes its own place again.
func TestLeftOverFilters(t *testing.T) {
	for _, c := range []struct {
		name   string
		forget func(w *world, host string) error
	}{
		{"pins gone", func(w *world, host string) error { return os.RemoveAll(w.pinDir(host)) }},
		{"pins and state gone", func(w *world, host string) error {
			if err := os.RemoveAll(w.pinDir(host)); err != nil {
				return err
			}
			return os.RemoveAll(filepath.Join(loader.DefaultRunDir, w.Host(host).Instance()))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newOverlay(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
			w.start("h2")
			d := w.start("h1", "--attach", "clsact")
			w.hooks("h1", "clsact")
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := c.forget(w.world, "h1"); err != nil {
				t.Fatal(err)
			}
			w.hooks("h1", "clsact") // they are there, and nobody's
			w.start("h1")
			w.hooks("h1", attachedBy(t))
			if s, code := w.status("h1"); code != 0 || s.Attach != attachedBy(t) {
				t.Errorf("status: exit %d, attached by %s, want %s", code, s.Attach, attachedBy(t))
			}
			w.accelerated(w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1"))
			if out, errOut, code := w.vxbpf("h1", "unload"); code != 0 {
				t.Errorf("unload: exit %d\n%s%s", code, out, errOut)
			}
			if p := w.programs("h1"); len(p) > 0 {
				t.Errorf("programs after unload: %v", p)
			}
		})
	}
}

// The share of packets that BPF carries is the same whichever way it is
// attached: over all ways that the kernel has, the same traffic.
func TestFastShare(t *testing.T) {
	for _, mode := range []string{"tcx", "clsact"} {
		t.Run(mode, func(t *testing.T) {
			needMode(t, mode)
			w := newOverlay(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
			for _, h := range w.Hosts {
				w.start(h.Name, "--attach", mode)
			}
			for _, h := range w.Hosts {
				w.hooks(h.Name, mode) // each clsact qdisc costs a packet or two when it comes
			}
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			w.small(a, b)
			for _, h := range w.Hosts {
				w.know(h.Name, a.MAC, b.MAC)
			}
			w.each([]string{"h1", "h2"}, "mgmt", func() {
				w.echo(a.NS, b.NS, b.Addr.Addr(), 2000, 64)
				w.transfer(a, b, bulk)
				w.transfer(b, a, bulk)
			}, func(h string, sent, received share) {
				t.Logf("%s by %s: sent %.2f %% of %d fast, received %.2f %% of %d", h, mode, 100*sent.ratio(), sent.Total, 100*received.ratio(), received.Total)
				if sent.ratio() < 0.98 || received.ratio() < 0.98 {
					t.Errorf("%s: %+v sent, %+v received, want 98 %% of them fast", h, sent, received)
				}
			})
		})
	}
}

//	h1, h2: mgmt-1, mgmt-2 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same
//
// A kernel that is too old for the fast path: `auto` runs on kernel vxlan links
// and says what the kernel lacks, `tc` is an error, and the rest of a life is as
// ever: containers come, the daemon dies and is started again, unload.
func TestOldKernel(t *testing.T) {
	if need.Have(t, need.FastPath) {
		t.Log("this kernel has a fast path; TestFallback takes it away")
		return
	}
	w := upAnyway(t, twoHosts(), false)
	bare := w.state("h1")
	if out, code := w.run(w.bin, "h1", "load", w.config("h1", "datapath: auto", "datapath: tc")); code != 1 {
		t.Errorf("load with datapath tc: exit %d, want 1\n%s", code, out)
	}
	if diff := bare.changes(w.state("h1")); diff != "" {
		t.Errorf("load with datapath tc failed, and left:\n%s", diff)
	}
	features, _, code := w.vxbpf("h1", "features")
	if code != 3 {
		t.Errorf("features: exit %d, want 3\n%s", code, features)
	}
	t.Log(features)
	d := w.start("h1")
	w.start("h2")
	for _, h := range w.Hosts {
		s, code := w.status(h.Name)
		if code != 3 || !s.Degraded || s.Daemon == 0 || s.Attach != "" || len(s.Networks) != 1 || s.Networks[0].Datapath != "kernel" {
			t.Errorf("status of %s: exit %d, %+v, want 3 and kernel vxlan", h.Name, code, s)
		}
		for _, lack := range []string{"encap_l2_eth (5.13)", "coarse_clock (5.11)"} {
			if !strings.Contains(s.Reason, lack) {
				t.Errorf("status of %s: because of %q, want it to name %s", h.Name, s.Reason, lack)
			}
		}
		t.Log(h.Name, ": ", s.Reason)
		if _, err := os.Stat(w.pinDir(h.Name)); !os.IsNotExist(err) {
			t.Errorf("pins of %s: %v", h.Name, err)
		}
	}
	w.allTraffic()
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	w.allTraffic()
	w.start("h1")
	if _, code := w.status("h1"); code != 3 {
		t.Errorf("status after a restart: exit %d, want 3", code)
	}
	w.allTraffic()
	if out, errOut, code := w.vxbpf("h1", "unload"); code != 0 {
		t.Errorf("unload: exit %d\n%s%s", code, out, errOut)
	}
	w.same("h1", "unload", bare)
}
