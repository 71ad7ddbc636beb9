// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/bpf"
)

// Whatever comes, in whatever state of the maps. What must hold stands in
// malformed_test.go, at lab.try.
//
//	go test ./bpf -run '^$' -fuzz FuzzDecap -fuzztime 100s -parallel 1
//
// testdata/fuzz holds what earlier runs found to be different: at least one
// frame for each reason, family and option, and those that once went wrong.

// fits makes fuzzed bytes a frame that the kernel takes as a test input.
func fits(b []byte) bool { return len(b) > ethHdr && len(b) <= frameMax }

// refused says that the kernel would not make a test packet of the bytes (an IP
// EtherType with no room for the header), so no program has seen them.
func refused(err error) bool { return errors.Is(err, unix.EINVAL) }

type fuzzSeed struct {
	hook    bpf.Hook
	frame   []byte
	gsoSize uint16
	knobs   knobs
}

// fuzzSeeds are the frames of all tables.
func fuzzSeeds() (out []fuzzSeed) {
	for _, s := range scenes {
		var k knobs
		if s.v6() {
			k = knobIPv6
		}
		// A table's TTL is 5, its class and label are 0.
		k |= 5 << knobTTL
		for _, c := range slices.Concat(encapCases(s), decapCases(s), mtuCases(s)) {
			if fits(c.frame) {
				out = append(out, fuzzSeed{c.hook, c.frame, uint16(c.gsoSize), k})
			}
		}
		for _, i := range []inner{
			inner{}.segment(tcpSYN, mss(1460)), inner{}.segment(tcpSYN|tcpACK, cat(nops(1), mss(9000))),
			inner{ipOptions: 12}.segment(tcpSYN, cat([]byte{3, 3, 7}, mss(1460), []byte{4, 2})),
		} {
			k := k | knobClamp | 1000<<knobMSS
			out = append(out, fuzzSeed{bpf.HookEncap, s.sent(i), 0, k}, fuzzSeed{bpf.HookDecap, s.received(i), 0, k})
		}
		out = append(out,
			fuzzSeed{bpf.HookEncap, s.sent(inner{tos: ce}), 0, k | knobTOSInherit | knobTTLInherit | knobDF*2 | 0xabcde<<knobLabel},
			fuzzSeed{bpf.HookDecap, s.received(inner{tos: ect0}, func(o *outer) { o.tos(ce) }), 0, k},
			fuzzSeed{bpf.HookDecap, s.received(inner{}, func(o *outer) { o.udpSum = true }), 0, k | knobVerified},
			fuzzSeed{bpf.HookDecap, complaint(s.underlay, map[bool]byte{false: 3, true: 2}[s.v6()], map[bool]byte{false: 4, true: 0}[s.v6()]), 0, k})
	}
	return out
}

func FuzzDecap(f *testing.F) { fuzz(f, bpf.HookDecap) }

func FuzzEncap(f *testing.F) { fuzz(f, bpf.HookEncap) }

func fuzz(f *testing.F, h bpf.Hook) {
	for _, s := range fuzzSeeds() {
		if s.hook == h {
			f.Add(s.frame, s.gsoSize, uint64(s.knobs))
		}
	}
	l := newLab(f, nil)
	f.Fuzz(func(t *testing.T, b []byte, gsoSize uint16, k uint64) {
		if !fits(b) {
			return
		}
		l.try(t, h, knobs(k), b, gsoSize)
	})
}
