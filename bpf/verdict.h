/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counting, and the clock. The only place that touches vx_count, so no packet
 * that an entry point has an opinion on goes uncounted.
 */
#pragma once

#include "maps.h"

static __always_inline void count(__u32 net, enum hook hook, __u32 reason, __u32 packets, __u32 bytes)
{
	__u32 key = (net * HOOK_MAX + hook) * REASON_MAX + (reason & (REASON_MAX - 1));
	struct counter *c = bpf_map_lookup_elem(&vx_count, &key);

	if (c) {
		c->packets += packets ?: 1;
		c->bytes += bytes;
	}
}

/* The lease is good: a daemon followed the kernel within the last seconds. */
static __always_inline int lease_fresh(__u64 now)
{
	__u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&vx_control, &zero);

	return c && now < c->lease;
}
