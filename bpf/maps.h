/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map: key -> value, who writes, who reads, what a miss means. Sizes are
 * the defaults; the loader sets them from the config before loading.
 */
#pragma once

#include "headers/bpf_helpers.h"
#include "types.h"

/*
 * (network, MAC) -> where it lives. The daemon writes what the kernel's FDBs
 * say; programs remove a moved entry and stamp `seen` and `slow`. A miss means
 * "ask the kernel". A plain hash: an LRU would evict what a control plane put in.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fdb_key);
	__type(value, struct fdb_entry);
} vx_fdb SEC(".maps");

/*
 * (VNI, UDP port) -> network. The daemon writes. A miss means "not ours, do not
 * touch". (VNI_PORT, UDP port) -> that the port is ours.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct vni_key);
	__type(value, struct network);
} vx_vni SEC(".maps");

/* ifindex -> network. The daemon writes an entry only while the kernel would forward. A miss means "not ready". */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct port);
} vx_port SEC(".maps");

/* index -> outer header. The daemon writes; entry 0 stays empty. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct vtep);
} vx_vtep SEC(".maps");

/* enum control_key -> time. The daemon renews the lease every second; an old one means "no daemon". */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CONTROL_MAX);
	__type(key, __u32);
	__type(value, struct control);
} vx_control SEC(".maps");

/* (network, outer source) -> it may send there. The daemon writes. A miss means "a stranger" (guard.h). */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u32);
} vx_source SEC(".maps");

/* (network, prefix) -> what was dropped from there. Programs write; the prefix that was silent longest makes room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct stranger_key);
	__type(value, struct stranger);
} vx_stranger SEC(".maps");

/* One per CPU: bounds what a flood from random addresses costs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct budget);
} vx_budget SEC(".maps");

/*
 * ifindex -> the device takes raw frames (XDP redirect). The daemon writes; the
 * kernel takes out what goes. A miss means "not by XDP".
 */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} vx_raw SEC(".maps");

/*
 * network -> its counters, one set per CPU. Programs add; the daemon empties what it gives to another network. One
 * element holds them all, so that the kernel's table of elements is one cache line for all that a packet adds to.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct net_count);
} vx_count SEC(".maps");

/* index into vx_vtep -> its counters, one set per CPU. Programs add; the daemon empties what it gives to another VTEP.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct vtep_count);
} vx_vtep_count SEC(".maps");

/* Only for the programs that capture (capture.bpf.c). Never pinned: they live as long as such a program is attached. */
#ifdef VX_CAPTURE
/* struct capture_event, one after the other. Programs write, the capturing process reads. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} vx_capture SEC(".maps");

/* One element. A miss cannot be. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct capture_control);
} vx_capture_ctl SEC(".maps");

/* CPU -> the packet being looked at there; larger than a per-CPU map's value may be. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct capture_cpu);
} vx_capture_cpu SEC(".maps");
#endif
