// SPDX-License-Identifier: Apache-2.0

// Package bpf is the data path: the C programs, their maps, and the Go types
// generated from them. It imports cilium/ebpf only.
//
// The objects are committed, so a build needs no clang. After a change of the
// C files run `make generate` and commit both.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -go-package bpf -target bpfel -type fdb_key -type fdb_entry -type vni_key -type network -type port -type vtep -type control -type source_key -type stranger_key -type stranger -type counter -type net_count -type vtep_count vx vxlan.bpf.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -Wno-compare-distinct-pointer-types
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -go-package bpf -target bpfel -type capture_event -type capture_control -type capture_cpu cap capture.bpf.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -Wno-compare-distinct-pointer-types
