// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

// Three hosts go from kernel VXLAN to vxbpf and back, one at a time, while numbered packets flow between all pairs of containers.
//
//	h1 mgmt-1 ─ br-mgmt ─ encap-mgmt ─ eth2 ─┐
//	h2 mgmt-1 ─ br-mgmt ─ encap-mgmt ─ eth2 ─┼─ switch
//	h3 mgmt-1 ─ br-mgmt ─ encap-mgmt ─ eth2 ─┘

// pairRate is packets per second of each of the six streams.
const pairRate = 1000

// whileFlowing runs do while packets flow between all pairs, and returns how many the network lost and the longest run lost in a row.
func (w *world) whileFlowing(what string, do func()) (lost, run uint64) {
	w.t.Helper()
	type pair struct{ from, to string }
	streams := map[pair]*testenv.Stream{}
	for _, a := range w.Hosts {
		for _, b := range w.Hosts {
			if a == b {
				continue
			}
			from, to := w.Container(a.Name, "mgmt-1"), w.Container(b.Name, "mgmt-1")
			w.ping(from.NS, to.Addr.Addr())
			s, err := testenv.StartStream(w.ctx, from.NS, to.NS, to.Addr.Addr(), testenv.StreamOptions{Rate: pairRate})
			w.check(err)
			w.t.Cleanup(func() { s.Stop() })
			streams[pair{a.Name, b.Name}] = s
		}
	}
	flow := func(when string) {
		w.t.Helper()
		for p, s := range streams {
			before := s.Received()
			w.wait(fmt.Sprintf("packets from %s to %s %s %s", p.from, p.to, when, what), func() bool { return s.Received() > before+pairRate/2 })
		}
	}
	flow("before")
	do()
	flow("after")
	for p, s := range streams {
		r := s.Stop()
		if r.Duplicates > 0 || r.SendErrors > 0 {
			w.t.Errorf("%s, %s to %s: %s", what, p.from, p.to, r)
		}
		if r.Lost > r.ReceiverDrops {
			lost += r.Lost - r.ReceiverDrops
			run = max(run, r.LongestLoss)
		}
	}
	w.t.Logf("%s: %d lost of all, at most %d in a row of one stream, which is %s", what, lost, run, time.Duration(run)*time.Second/pairRate)
	return lost, run
}

// reconfigure is what an administrator runs without vxbpf to make a vxlan link again without UDP checksums: one ip process, and one bridge.
func (w *world) reconfigure(host string) {
	w.t.Helper()
	h := w.Host(host)
	var remotes strings.Builder
	for _, o := range w.Hosts {
		if o != h {
			fmt.Fprintf(&remotes, "fdb append 00:00:00:00:00:00 dev encap-mgmt dst %s\n", o.Address)
		}
	}
	script := fmt.Sprintf("printf 'link del encap-mgmt\\nlink add encap-mgmt mtu 1450 type vxlan id 236 dev eth2 local %s ttl 5 dstport 4789 noudpcsum\\nlink set encap-mgmt master br-mgmt\\nlink set encap-mgmt up\\n' | ip -batch - && printf '%s' | bridge -batch -", h.Address, remotes.String())
	out, err := h.NS.Command(w.ctx, "bash", "-c", script).CombinedOutput()
	if err != nil {
		w.t.Fatalf("reconfigure %s: %v\n%s", host, err, out)
	}
}

func TestMigration(t *testing.T) {
	three := func() *world {
		t.Helper()
		spec := oneNetwork(testenv.HostSpec{Name: "h1", Datapath: testenv.None}, testenv.HostSpec{Name: "h2", Datapath: testenv.None}, testenv.HostSpec{Name: "h3", Datapath: testenv.None})
		w := up(t, spec, false)
		w.patience(6 * time.Minute)
		return w
	}
	kernel := func(w *world, noChecksum bool) {
		t.Helper()
		for _, h := range w.Hosts {
			_, err := w.KernelVXLAN(w.ctx, h.Name, "mgmt", testenv.KernelVXLANOptions{NoChecksum: noChecksum})
			w.check(err)
		}
	}
	on := func(w *world, host string) {
		t.Helper()
		if n := w.network(host, "mgmt"); n.Datapath != "tc" {
			t.Errorf("%s after its migration: datapath %s, %s", host, n.Datapath, n.Reason)
		}
	}

	// Links that fit are adopted: nothing may be lost, there and back.
	t.Run("adopted", func(t *testing.T) {
		w := three()
		kernel(w, true)
		for _, h := range w.Hosts {
			if lost, _ := w.whileFlowing("load on "+h.Name, func() { w.start(h.Name); on(w, h.Name) }); lost > 0 {
				t.Errorf("load on %s lost %d packets", h.Name, lost)
			}
		}
		for _, h := range w.Hosts {
			if lost, _ := w.whileFlowing("unload on "+h.Name, func() {
				if _, errOut, code := w.vxbpf(h.Name, "unload"); code != 0 {
					t.Fatalf("unload on %s: exit %d: %s", h.Name, code, errOut)
				}
			}); lost > 0 {
				t.Errorf("unload on %s lost %d packets", h.Name, lost)
			}
		}
	})

	// Links made by ip link send checksums and must be made again: no more may be lost than when ip does that.
	t.Run("recreated", func(t *testing.T) {
		if !full() {
			need.Elsewhere(t, "test-install", "measures loss")
		}
		w := three()
		kernel(w, false)
		var byKernel, byUs, runKernel, runUs, worst uint64
		for _, h := range w.Hosts {
			lost, run := w.whileFlowing("plain reconfiguration of "+h.Name, func() { w.reconfigure(h.Name) })
			byKernel, runKernel, worst = byKernel+lost, max(runKernel, run), max(worst, lost)
		}
		for _, h := range w.Hosts { // back to what ip link makes
			out, err := h.NS.Command(w.ctx, "ip", "link", "del", "encap-mgmt").CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			out, err = h.NS.Command(w.ctx, "ip", "link", "del", "br-mgmt").CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		kernel(w, false)
		for i := range w.Spec.Networks {
			w.Spec.Networks[i].Config = "{udp_checksum: false}"
		}
		for _, h := range w.Hosts {
			lost, run := w.whileFlowing("load --recreate on "+h.Name, func() { w.start(h.Name, "--recreate"); on(w, h.Name) })
			byUs, runUs = byUs+lost, max(runUs, run)
			if lost > worst {
				t.Errorf("load on %s lost %d packets, plain kernel reconfiguration of a host at most %d", h.Name, lost, worst)
			}
		}
		t.Logf("three hosts, one at a time, six streams of %d packets/s: plain kernel reconfiguration lost %d (at most %d in a row), vxbpf %d (at most %d in a row)",
			pairRate, byKernel, runKernel, byUs, runUs)
		for _, h := range w.Hosts {
			if lost, _ := w.whileFlowing("unload --keep-links on "+h.Name, func() {
				if _, errOut, code := w.vxbpf(h.Name, "unload", "--keep-links"); code != 0 {
					t.Fatalf("unload on %s: exit %d: %s", h.Name, code, errOut)
				}
			}); lost > 0 {
				t.Errorf("unload --keep-links on %s lost %d packets", h.Name, lost)
			}
		}
	})
}
