// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vxbpf/vxbpf/maps"
)

// What it costs to drop what a stranger sends, ns per packet, building the skb left out:
//
//	go test ./bpf -run '^$' -bench Stranger -benchtime 2000000x
func BenchmarkStranger(b *testing.B) {
	l := newLab(b, nil)
	s := scene{under4, false}
	for _, c := range []struct {
		name string
		prog *ebpf.Program
		ctx  any
	}{
		{"xdp_guard", l.obj.VxXdpGuard, nil}, {"xdp_decap", l.obj.VxXdpDecap, nil},
		{"tc_guard", l.obj.VxTcGuard, skBuff{Ifindex: l.underlay}}, {"tc_decap", l.obj.VxTcDecap, skBuff{Ifindex: l.underlay}},
	} {
		for _, from := range []string{"stranger", "vtep"} {
			frame := s.received(inner{src: nobody})
			if from == "stranger" {
				frame = s.received(inner{src: nobody}, func(o *outer) { o.from(s.stranger) })
			}
			b.Run(c.name+"/"+from, func(b *testing.B) {
				l.xdpReset(b)
				l.bar(maps.Check{}, func(n *maps.Network) { n.MAC = underlayMAC })
				opts := ebpf.RunOptions{Data: frame, Repeat: uint32(b.N), Context: c.ctx}
				var err error
				b.ResetTimer()
				l.do(func() { _, err = c.prog.Run(&opts) })
				if err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
