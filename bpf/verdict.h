/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counting, and the clock. The only place that touches vx_count and vx_vtep_count, so
 * no packet that an entry point has an opinion on goes uncounted.
 */
#pragma once

#include "config.h"
#include "maps.h"

/* ns */
#define LEASE_FOREVER 0x7fffffffffffffffULL
#define TOO_BIG_HOLD 3000000000LL
#define TOO_BIG_EXPIRES 600000000000LL

/* Reasons (negative) for which a packet goes nowhere. All others return it to the kernel. */
static __always_inline int drops(int ret)
{
	return ret == -DROP_BROKEN || ret == -DROP_STRANGER;
}

static __always_inline void add(struct counter *c, __u32 packets, __u32 bytes)
{
	c->packets += packets ?: 1;
	c->bytes += bytes;
}

static __always_inline void count(__u32 net, enum hook hook, __u32 reason, __u32 packets, __u32 bytes)
{
	struct net_count *n;

	if (vx_counting < 1)
		return;
	n = bpf_map_lookup_elem(&vx_count, &net);
	if (n)
		add(&n->by[reason & (REASON_MAX - 1)][hook], packets, bytes);
}

/* `vtep` 0: behind no VTEP that we know. */
static __always_inline void count_vtep(__u32 vtep, enum way way, __u32 packets, __u32 bytes)
{
	struct vtep_count *v;

	if (vx_counting < 2 || !vtep)
		return;
	v = bpf_map_lookup_elem(&vx_vtep_count, &vtep);
	if (v)
		add(&v->by[way], packets, bytes);
}

/* The lease is good: a daemon followed the kernel within the last seconds. */
static __always_inline int lease_fresh(__u64 now)
{
	__u32 key = CONTROL_LEASE;
	struct control *c = bpf_map_lookup_elem(&vx_control, &key);

	return c && now < c->at;
}

/* A daemon follows the kernel now. It does not where `load --once` left a lease without end. */
static __always_inline int followed(__u64 now)
{
	__u32 key = CONTROL_LEASE;
	struct control *c = bpf_map_lookup_elem(&vx_control, &key);

	return c && now < c->at && c->at < LEASE_FOREVER;
}

static __always_inline void note(enum control_key what, __u64 now)
{
	__u32 key = what;
	struct control *c = bpf_map_lookup_elem(&vx_control, &key);

	if (c)
		c->at = now;
}

/*
 * The kernel's decision is another one, or will be: forget ours. Should it stay
 * as it was (it drops the frame that showed the MAC elsewhere), it sends no
 * event, so the daemon looks for what is missing.
 */
static __always_inline void fdb_remove(const struct fdb_key *key)
{
	if (!bpf_map_delete_elem(&vx_fdb, key))
		note(CONTROL_REMOVED, bpf_ktime_get_coarse_ns());
}

/*
 * May a path's MTU be smaller than its template says? The kernel learns it from
 * the ICMP message, for 10 minutes (net.ipv4.route.mtu_expires); a living daemon
 * asks for it within a second.
 */
static __always_inline int too_big_lately(__u64 now)
{
	__u32 key = CONTROL_TOO_BIG;
	struct control *c = bpf_map_lookup_elem(&vx_control, &key);
	__s64 age;

	if (!c || !c->at)
		return 0;
	age = now - c->at;
	return age < TOO_BIG_HOLD || (age < TOO_BIG_EXPIRES && !lease_fresh(now));
}
