// SPDX-License-Identifier: Apache-2.0

// Package testenv builds hosts, containers and underlays out of network
// namespaces: for tests, for `vxbpf lab`, for the demo and for the benchmarks.
// It needs root and a Linux kernel, and no external command.
//
// A lab is described by a Spec (default.yaml is the reference), built by Up,
// found again by Open and removed by Lab.Down, from any process. The default
// lab, one of its five networks drawn:
//
//	namespace lab-h1                                        namespace lab-h2
//	┌───────────────────────────────────┐                   ┌───────────────────────────────────┐
//	│ (br-mgmt) ── (encap-mgmt) ─── eth2├────── veth ───────┤eth2 ─── (encap-mgmt) ── (br-mgmt) │
//	│  │      │        192.0.2.11/24    │                   │    192.0.2.12/24        │      │  │
//	│ v-mgmt-1 v-mgmt-2                 │                   │                 v-mgmt-1 v-mgmt-2 │
//	└──│──────│─────────────────────────┘                   └─────────────────────────│──────│──┘
//	  eth0   eth0   172.29.236.11, .12                         172.29.236.21, .22    eth0   eth0
//	  lab-h1-mgmt-1, lab-h1-mgmt-2                                 lab-h2-mgmt-1, lab-h2-mgmt-2
//
// With underlay kind switch, any number of hosts hang on one bridge:
//
//	lab-h1 eth2 ── p-h1 ┐ namespace ┌ p-h3 ── eth2 lab-h3
//	lab-h2 eth2 ── p-h2 ┴── sw0 ────┴ ...     (lab-sw)
//
// With underlay kind routed that namespace is a router, .1 at every port, and
// the hop behind it may be smaller than the links (path_mtu).
//
// What stands in parentheses is not the lab's: on a host with datapath auto,
// tc or kernel, `vxbpf load` makes bridge and vxlan link from Host.Config, and
// AttachContainers then plugs the containers in. On a host with kernel_vxlan
// the lab makes both with rtnetlink alone; such a host shares no code with
// vxbpf and is the oracle of the interoperability tests. On a host with
// datapath none nothing is made: KernelVXLAN, Bare and the tests do as they like.
//
// Every link lives in a namespace of the lab, so removing the namespaces
// removes the links; nothing is ever made in the caller's own namespace. What
// a lab owns is written to /run/vxbpf/lab/<name>/state.json before it is made.
package testenv
