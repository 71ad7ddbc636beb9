// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// What the kernel sends out of the vxlan device: where each frame came in shows
// where its source lives, and that the kernel has seen it.
//
//	alice ─► port ─┐
//	          tap ─┼─► bridge ─► vxlan link ─► vx_tc_moved
//	  vxlan link ──┘   (hairpin)
func TestMoved(t *testing.T) {
	l := newLab(t, nil)
	for _, s := range scenes {
		l.on = s.underlay
		for _, c := range []struct {
			name    string
			src     fdb.MAC
			in      func() uint32 // ingress device
			prepare func(*lab)
			check   func(*testing.T, *lab, []byte)
		}{
			{"where it lives", alice, func() uint32 { return l.port }, nil, kept(alice)},
			{"from another port", alice, func() uint32 { return l.bridge }, nil, gone(alice)},
			{"a remote source from a port", bob, func() uint32 { return l.port }, nil, gone(bob)},
			{"a remote source comes back out of the vxlan link", bob, func() uint32 { return l.vxlan }, nil, kept(bob)},
			{"a local source from the vxlan link", alice, func() uint32 { return l.vxlan }, nil, gone(alice)},
			{"sticky", alice, func() uint32 { return l.bridge }, flags(alice, bpf.EntrySticky), kept(alice)},
			{"pinned in the vxlan link, not in the bridge", alice, func() uint32 { return l.bridge }, flags(alice, bpf.EntryPinned), gone(alice)},
			{"the kernel has seen it", alice, func() uint32 { return l.port }, aged(alice, refresh+time.Second), stampedNow(alice)},
			{"not a device of ours", alice, func() uint32 { return l.bridge }, func(l *lab) { must(l.set.Ports.Delete(l.vxlan)) }, kept(alice)},
		} {
			t.Run(s.String()+"/"+c.name, func(t *testing.T) {
				l.reset(t)
				if c.prepare != nil {
					c.prepare(l)
				}
				verdict, out, err := l.exec(l.obj.VxTcMoved, s.sent(inner{src: c.src}), skBuff{Ifindex: l.vxlan, IngressIfindex: c.in()}, 1)
				if err != nil || verdict != actUnspec {
					t.Fatalf("verdict %d, %v", verdict, err)
				}
				c.check(t, l, out)
			})
		}
		// A stamp that is young enough is left alone: one store per refresh.
		t.Run(s.String()+"/young", func(t *testing.T) {
			l.reset(t)
			aged(alice, refresh/2)(l)
			before := l.entry(alice).Seen
			if _, _, err := l.exec(l.obj.VxTcMoved, s.sent(inner{}), skBuff{Ifindex: l.vxlan, IngressIfindex: l.port}, 1); err != nil {
				t.Fatal(err)
			}
			if now := l.entry(alice).Seen; now != before {
				t.Errorf("stamped %d, was %d", now, before)
			}
		})
	}
}
