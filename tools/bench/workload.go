// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// profile is how the underlay carries packets.
type profile struct {
	name  string
	mtu   int  // of the underlay, bytes
	wire  bool // real packets of that size cross, not super-packets
	about string
}

// The profiles. GRO and TSO are set on the underlay devices alone.
var profiles = []profile{
	{"veth", 1500, false, "underlay MTU 1500, super-packets cross the veth as they are"},
	{"wire", 1500, true, "underlay MTU 1500, the sender segments (TSO, GSO off), the receiver merges (GRO on); TCP windows limited"},
	{"veth-9000", 9000, false, "as veth, underlay MTU 9000"},
	{"wire-9000", 9000, true, "as wire, underlay MTU 9000"},
}

// slot is where and how one round runs.
type slot struct {
	bed     *bed
	profile profile
	dur     time.Duration
	frames  uint64 // injected per round; 0: as many as dur takes
	port    int    // fresh for each round
	// pathCPU runs both ends where the cost of the path is asked for; the two
	// CPU workloads have the other end on farCPU.
	pathCPU, farCPU int
	inject          *injection
	generator       float64 // ns per frame, of this round
	gross           bool    // the generator is not to be taken off
	started         func()  // called when a stream has begun; may be nil
}

// workload is one thing that is measured.
type workload struct {
	name, about string
	unit        string
	cpuUnit     string
	lower       bool     // less is better
	profiles    []string // where it says something
	oneSide     bool     // also with one host accelerated
	twoCPUs     bool     // needs two
	fullOnly    bool     // not with Quick, unless named
	aggregates  bool     // packets on the underlay are not what sockets count
	lossLimit   float64  // share of packets that may be lost
	prepare     func(ctx context.Context, b *bed) (*injection, error)
	run         func(ctx context.Context, s slot) (Round, error)
}

const (
	perSecond = "transactions/s"
	packets   = "packets/s"
	gigabits  = "Gb/s"
	nsPacket  = "ns/packet"
	nsGB      = "ns/GB"
	nsTrans   = "ns/transaction"
)

var vethOnly = []string{"veth"}

// workloads in the order in which they run. raw_decap_64 and raw_encap_64
// (raw-frame ports, datapath xdp) have their place before many_flows: they are
// injections like decap_64 and encap_64, with other beds.
var workloads = []*workload{
	{
		name: "udp_rr", about: "UDP request/response of 64 bytes, client and server on one CPU: the cost of the path",
		unit: perSecond, cpuUnit: nsTrans, profiles: vethOnly, oneSide: true,
		run: func(ctx context.Context, s slot) (Round, error) { return rr(ctx, s, false, s.pathCPU, s.pathCPU) },
	},
	{
		name: "tcp_rr", about: "TCP request/response of 64 bytes, client and server on one CPU: the cost of the path",
		unit: perSecond, cpuUnit: nsTrans, profiles: vethOnly, oneSide: true,
		run: func(ctx context.Context, s slot) (Round, error) { return rr(ctx, s, true, s.pathCPU, s.pathCPU) },
	},
	{
		name: "udp_rr_2cpu", about: "udp_rr with client and server on two CPUs: wake-ups across CPUs included",
		unit: perSecond, cpuUnit: nsTrans, profiles: vethOnly, oneSide: true, twoCPUs: true,
		run: func(ctx context.Context, s slot) (Round, error) { return rr(ctx, s, false, s.pathCPU, s.farCPU) },
	},
	{
		name: "tcp_rr_2cpu", about: "tcp_rr with client and server on two CPUs",
		unit: perSecond, cpuUnit: nsTrans, profiles: vethOnly, oneSide: true, twoCPUs: true,
		run: func(ctx context.Context, s slot) (Round, error) { return rr(ctx, s, true, s.pathCPU, s.farCPU) },
	},
	{
		name: "tcp_crr", about: "TCP connect, request/response of 64 bytes, close; one CPU",
		unit: perSecond, cpuUnit: nsTrans, profiles: vethOnly, oneSide: true,
		run: func(ctx context.Context, s slot) (Round, error) { return crr(ctx, s, s.pathCPU) },
	},
	{
		name: "tcp_stream_1", about: "TCP bulk, 1 flow, sender and receiver on two CPUs where there are two",
		unit: gigabits, cpuUnit: nsGB, profiles: []string{"veth", "wire", "veth-9000", "wire-9000"}, oneSide: true, aggregates: true, lossLimit: 0.005,
		run: func(ctx context.Context, s slot) (Round, error) { return stream(ctx, s, 1, s.pathCPU, s.farCPU) },
	},
	{
		name: "tcp_stream_4", about: "TCP bulk, 4 flows, senders and receivers on two CPUs where there are two",
		unit: gigabits, cpuUnit: nsGB, profiles: []string{"veth", "wire", "veth-9000", "wire-9000"}, oneSide: true, aggregates: true, lossLimit: 0.005,
		run: func(ctx context.Context, s slot) (Round, error) { return stream(ctx, s, 4, s.pathCPU, s.farCPU) },
	},
	{
		name: "udp_app_64", about: "UDP datagrams of 64 bytes payload, socket to socket, received per second; one thread at both ends",
		unit: packets, cpuUnit: nsPacket, profiles: vethOnly, oneSide: true, lossLimit: 0.01,
		run: func(ctx context.Context, s slot) (Round, error) { return udpFlood(ctx, s, 64, s.pathCPU, false) },
	},
	{
		name: "udp_app_1400", about: "UDP datagrams of 1400 bytes payload, socket to socket, received per second; one thread at both ends",
		unit: packets, cpuUnit: nsPacket, profiles: vethOnly, oneSide: true, lossLimit: 0.01,
		run: func(ctx context.Context, s slot) (Round, error) { return udpFlood(ctx, s, 1400, s.pathCPU, false) },
	},
	{
		name: "udp_gso", about: "UDP_SEGMENT: 44 datagrams of 1400 bytes per call, taken by UDP_GRO; one thread at both ends",
		unit: gigabits, cpuUnit: nsGB, profiles: vethOnly, oneSide: true, aggregates: true, lossLimit: 0.01,
		run: func(ctx context.Context, s slot) (Round, error) { return udpFlood(ctx, s, gsoSize, s.pathCPU, true) },
	},
	{
		name: "decap_64", about: "frames of 64 bytes from the underlay into a container, CPU per packet net of the generator; dropped on the container's eth0",
		unit: nsPacket, cpuUnit: nsPacket, lower: true, profiles: vethOnly, lossLimit: 0.01,
		prepare: func(ctx context.Context, b *bed) (*injection, error) { return b.prepareDecap(ctx, innerLen, false) },
		run:     runInjection,
	},
	{
		name: "encap_64", about: "frames of 64 bytes from a container to the underlay, CPU per packet net of the generator; dropped at the far end",
		unit: nsPacket, cpuUnit: nsPacket, lower: true, profiles: vethOnly, lossLimit: 0.01,
		prepare: func(_ context.Context, b *bed) (*injection, error) { return b.prepareEncap(innerLen) },
		run:     runInjection,
	},
	{
		name: "decap_1400", about: "decap_64 with frames of 1400 bytes (not with --quick)",
		unit: nsPacket, cpuUnit: nsPacket, lower: true, profiles: vethOnly, lossLimit: 0.01, fullOnly: true,
		prepare: func(ctx context.Context, b *bed) (*injection, error) { return b.prepareDecap(ctx, largeLen, false) },
		run:     runInjection,
	},
	{
		name: "encap_1400", about: "encap_64 with frames of 1400 bytes (not with --quick)",
		unit: nsPacket, cpuUnit: nsPacket, lower: true, profiles: vethOnly, lossLimit: 0.01, fullOnly: true,
		prepare: func(_ context.Context, b *bed) (*injection, error) { return b.prepareEncap(largeLen) },
		run:     runInjection,
	},
	{
		name: "many_flows", about: fmt.Sprintf("decap_64 with %d flows over %d MAC addresses and %d VNIs (bare: one network), none of them the container device's own, as behind a nested bridge", manyFlows, 2*manyMACs*bedNetworks, bedNetworks),
		unit: nsPacket, cpuUnit: nsPacket, lower: true, profiles: vethOnly, lossLimit: 0.01,
		prepare: func(ctx context.Context, b *bed) (*injection, error) { return b.prepareDecap(ctx, innerLen, true) },
		run:     runInjection,
	},
}

// scaleName selects the FDB size series, floodName the flood of forged packets,
// programsName the cost of each program.
const (
	scaleName    = "fdb_scale"
	floodName    = "flood"
	programsName = "programs"
)

// Names lists all workloads with what they do, for --list.
func Names() (out [][2]string) {
	for _, w := range workloads {
		out = append(out, [2]string{w.name, w.about})
	}
	return append(out,
		[2]string{scaleName, "cost of a received packet against the size of the FDB, random addresses"},
		[2]string{floodName, "a TCP stream while forged VXLAN packets from random sources arrive at its receiver: what the source check keeps of it (not with --quick)"},
		[2]string{programsName, "ns per run of each BPF program (kernel.bpf_stats), run counts checked against packets"})
}

// Profiles lists the underlay profiles.
func Profiles() (out [][2]string) {
	for _, p := range profiles {
		out = append(out, [2]string{p.name, p.about})
	}
	return out
}

// kinds are the beds that a workload runs on, in the order of a round.
func (w *workload) kinds() []bedKind {
	var out []bedKind
	if w.prepare != nil {
		out = append(out, genBed)
	}
	out = append(out, bareBed, kernelBed, tcBed)
	if w.oneSide {
		out = append(out, tcOneBed)
	}
	return out
}

func (w *workload) in(p profile) bool { return slices.Contains(w.profiles, p.name) }

func runInjection(ctx context.Context, s slot) (Round, error) {
	r, err := s.inject.in.run(ctx, s.dur, s.frames, s.pathCPU, s.inject.received)
	if err != nil {
		return r, err
	}
	if s.bed.datapath == genBed.datapath || s.gross {
		r.Value, r.Cost = r.Gross, r.Gross
		return r, nil
	}
	if s.generator == 0 {
		return r, errors.New("the generator was not measured in this round")
	}
	return r, r.net(s.generator)
}
