// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/maps/fdb"
)

// Two topologies of plain kernel VXLAN, as package doc draws them. A MAC is
// learnt behind h2, then behind h3 or an address of h1's own, and then h1 sends
// to it. The only difference: in one of them h1 has sent to it before the move,
// too. What becomes of the last frame must not depend on that, and does.
func TestStaleRoute(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces need root")
	}
	wanderer := fdb.MAC{0x02, 0x3a, 0, 0, 0, 1}
	for _, c := range []struct {
		name   string
		p      Profile
		moves  func(World) netip.Addr // where to
		tooBig bool                   // h1 has learnt a smaller path MTU to h2
	}{
		{"exception", Profile{Name: "stale", KeepsRoutes: true}, func(w World) netip.Addr { return w.Hosts[2].Addr }, true},
		{"exception, routes flushed", Profile{Name: "fresh"}, func(w World) netip.Addr { return w.Hosts[2].Addr }, true},
		// There is no such flush over IPv6: the generator lets nobody send to such a MAC.
		{"own address", Profile{Name: "stale6", IPv6: true}, func(w World) netip.Addr { return w.Hosts[0].Addr }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			// last is what came out of the last frame, and what h1 has learnt from it.
			last := func(sendsBefore bool) (frames []Norm, table []string) {
				top, err := New(t.Context(), fmt.Sprintf("s%06x", rand.N(1<<24)), c.p, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := top.Close(); err != nil {
						t.Error(err)
					}
				}()
				w, err := top.World()
				if err != nil {
					t.Fatal(err)
				}
				g := NewGenerator(w, 1, nil)
				g.Rand = rand.New(rand.NewPCG(1, 1))
				run := func(steps ...Step) []Norm {
					r, err := top.Run(t.Context(), steps)
					if err != nil {
						t.Fatal(err)
					}
					return r.Frames
				}
				learn := func(addr netip.Addr) Step {
					o := g.outer(1, 0)
					o.ip.src = addr
					return g.forged(o.wrap(ethernet(broadcast, wanderer, typeProbe, make([]byte, 46))))[0]
				}
				talk := g.sent(Point{"h1", "mgmt-1"}, ethernet(wanderer, w.Hosts[0].Containers[0], typeProbe, make([]byte, 46)))

				run(append(g.Announce(), learn(w.Hosts[1].Addr))...)
				if c.tooBig {
					quoted := g.outer(0, 1).wrap(make([]byte, 100))[ethHdr:]
					router := ip{src: w.Stranger.Addr, dst: w.Hosts[0].Addr, ttl: 64, proto: protoICMP}
					b := router.checksum(append([]byte{3, 4, 0, 0, 0, 0, 1400 >> 8, 1400 & 0xff}, quoted...), 2, csumRight)
					run(g.forged(ethernet(w.Hosts[0].MAC, w.Stranger.MAC, typeIPv4, router.wrap(b)))...)
				}
				if sendsBefore {
					time.Sleep(20 * time.Millisecond) // in the tick of the entry's making a route is not kept
					run(talk)
				}
				run(learn(c.moves(w)))
				for _, f := range run(talk) {
					if in, dst, ok := inner(Step{At: f.At, Frame: []byte(f.Data)}); ok && len(in) >= ethHdr && dst == string(wanderer[:]) {
						frames = append(frames, f)
					}
				}
				if table, err = top.FDB("h1"); err != nil {
					t.Fatal(err)
				}
				return frames, table
			}
			f1, t1 := last(false)
			f2, t2 := last(true)
			d := Compare(f1, f2)
			for _, x := range d {
				t.Logf("with nothing sent before the move %d times, with something %d times at %s:\n%s", x.K, x.X, x.At, indent(Decode([]byte(x.Data))))
			}
			lines := CompareSets(t1, t2)
			for _, l := range lines {
				t.Logf("- with nothing sent before the move, + with something: %s", l)
			}
			differ := len(d)+len(lines) > 0
			if differ && !c.p.KeepsRoutes && !c.p.IPv6 {
				t.Error("the kernel remembers the route after a flush: TestDiff will show differences that are the kernel's own")
			}
			if !differ && (c.p.KeepsRoutes || c.p.IPv6) {
				t.Log("this kernel forgets the route of a MAC that moves: Avoided says more than is so here")
			}
		})
	}
}
