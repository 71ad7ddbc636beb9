/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What vx_fdb says of a MAC address, and how far it may be relied on: the source
 * check, ageing, the lease, the VTEP behind an entry. The same at every hook.
 */
#pragma once

#include "config.h"
#include "maps.h"
#include "parse.h"
#include "types.h"
#include "verdict.h"

/* The half of an entry that says where a MAC lives, as it was at one moment. */
struct place {
	__u8 kind;
	__u8 flags;
	__u16 mtu;
	__u32 to;
};

static __always_inline struct place place_of(const struct fdb_entry *e)
{
	union {
		__u64 word;
		struct place place;
	} u = {.word = *(const volatile __u64 *)e};

	return u.place;
}

/* Clocks of two CPUs may differ by a tick, so a stamp may lie ahead. */
static __always_inline int older(__u64 stamp, __u64 now, __u64 age)
{
	return (__s64)(now - stamp) > (__s64)age;
}

/* So lately that a frame of then may still be on its way through the slow path. */
static __always_inline int recent(__u64 stamp, __u64 now)
{
	return (__s64)(now - stamp) < (__s64)vx_hold_ns;
}

/*
 * The source check: the fast path carries only frames from which the kernel has
 * nothing to learn. `here` says that the frame came from where the entry says
 * its source lives, `keeps` is the flag with which the kernel would leave the
 * entry there all the same. Every frame of a known source passes this, BUM too,
 * so a move shows at the first frame from the new place.
 */
static __always_inline int source_check(struct fdb_key *key, struct place at, int here, __u8 keeps)
{
	if (here)
		return at.flags & ENTRY_PENDING ? -SRC_UNKNOWN : 0;
	if (at.flags & keeps)
		return -SRC_STATIC;
	fdb_remove(key);
	return -SRC_MOVED;
}

/*
 * Is it time that the kernel sees a frame of this source? From then on all of
 * them go its way, until one has proven that it took it: vx_tc_moved stamps
 * `seen` for what the bridge forwards, vx_tc_deliver for what the vxlan device
 * decapsulates. So where the kernel takes none any more (a port that left the
 * bridge while no daemon looked), it decides.
 */
static __always_inline int due(const struct fdb_entry *src, struct place at, __u64 now, __u64 refresh)
{
	if (at.flags & ENTRY_STATIC)
		return lease_fresh(now) ? 0 : -NO_LEASE;
	return older(src->seen, now, refresh) ? -REFRESH : 0;
}

/* May the kernel's entry behind this one have aged out, or its writer be dead? */
static __always_inline int usable(const struct fdb_entry *e, struct place at, __u64 now, __u64 ageing)
{
	if (at.flags & ENTRY_STATIC)
		return lease_fresh(now) ? 0 : -NO_LEASE;
	return ageing && older(e->seen, now, ageing) ? -DST_AGED : 0;
}

static __always_inline int is_ip(__be16 proto)
{
	return proto == bpf_htons(ETH_P_IP) || proto == bpf_htons(ETH_P_IPV6);
}

/* The smallest path MTU that the kernel learns: ip_rt_min_pmtu, IPV6_MIN_MTU. */
#define MTU_SURE(v6) ((v6) ? 1280 : 552)

/* Is this the address of the VTEP that the entry names? `v6` is a constant; one word of address over IPv4. */
static __always_inline int at_vtep(struct place at, const __be32 *addr, const int v6)
{
	struct vtep *v;

	if (at.kind != KIND_REMOTE)
		return 0;
	v = bpf_map_lookup_elem(&vx_vtep, &at.to);
	/* An empty place holds address 0, and an IPv4 address is the first word of an IPv6 one. */
	if (!v || (v->flags & (VTEP_KNOWN | VTEP_V6)) != (VTEP_KNOWN | (v6 ? VTEP_V6 : 0)))
		return 0;
	return v->remote[0] == addr[0] &&
	       (!v6 || (v->remote[1] == addr[1] && v->remote[2] == addr[2] && v->remote[3] == addr[3]));
}

static __always_inline int from_vtep(struct fdb_key *key, struct place at, int here)
{
	return source_check(key, at, here, at.kind == KIND_REMOTE ? ENTRY_PINNED : ENTRY_STICKY);
}
