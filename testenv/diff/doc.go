// SPDX-License-Identifier: Apache-2.0

// Package diff sends the same frames into two identical topologies, one of
// plain kernel VXLAN (K) and one that runs vxbpf (X), and compares everything
// that comes out, frame by frame. Each topology:
//
//	mgmt-1 mgmt-2   mgmt-1 mgmt-2   mgmt-1 mgmt-2      containers: raw frames in and out, no addresses
//	   └─┬────┘        └─┬────┘        └─┬────┘
//	  br-mgmt         br-mgmt         br-mgmt          what the host itself sends and gets
//	  (encap)         (encap)         (encap)
//	h1 eth2         h2 eth2         h3 eth2     x1 eth2   x1 is no VTEP: it forges outer frames of anybody
//	     └──────────────┴──── sw0 ──────┴──────────┘   sw0 has static entries: it learns nothing from forgeries
//
// A batch of frames is made from a seed (Generator), sent in one order by one
// thread on one CPU (Topology.Run), normalised (Normalise: aggregates are cut
// up, checksums filled in, and the few fields of MayDiffer blanked) and
// compared as a multiset (Compare), and so are the FDBs of all hosts. Avoided
// is what no batch does, since kernels differ there among themselves.
package diff
