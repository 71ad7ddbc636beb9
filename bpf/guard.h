/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The outer source check: who may send to a network of ours. What may not is
 * dropped before the kernel decapsulates it, since the kernel would believe
 * anybody. Other VNIs and ports, and what is not for this host, are not
 * touched. Chooses no verdict.
 */
#pragma once

#include "config.h"
#include "headers/bpf_endian.h"
#include "maps.h"
#include "verdict.h"

/* Prefixes that one CPU may add to vx_stranger in 2^22 ns, about 4 ms. */
#define NEW_PREFIXES 8
#define NEW_PREFIXES_SHIFT 22

static __always_inline __u64 guard_clock(void)
{
	return vx_have_coarse ? bpf_ktime_get_coarse_ns() : bpf_ktime_get_ns();
}

static __always_inline int source_listed(__u16 net, const __be32 *addr, const int v6)
{
	struct source_key key = {.prefixlen = SOURCE_PREFIX_MIN + (v6 ? 128 : 32), .net = net, .v6 = !!v6};

	key.addr[0] = addr[0];
	if (v6) {
		key.addr[1] = addr[1];
		key.addr[2] = addr[2];
		key.addr[3] = addr[3];
	}
	return !!bpf_map_lookup_elem(&vx_source, &key);
}

/* Is a packet with this destination for this host, so that its vxlan device gets it? */
static __always_inline int for_us(const struct network *n, const __be32 *to, const int v6)
{
	__u32 top = bpf_ntohl(to[0]);

	if (v6) {
		if (to[0] == n->local[0] && to[1] == n->local[1] && to[2] == n->local[2] && to[3] == n->local[3])
			return 1;
		if (top >> 24 == 0xff)
			return 1;
	} else {
		if (to[0] == n->local[0] || top >> 28 == 0xe || top == 0xffffffff)
			return 1;
	}
	/* The vxlan device's socket takes packets to any of our addresses. */
	return source_listed(SOURCE_LOCAL, to, v6);
}

/* May `from` not send to the network? */
static __always_inline int barred(const struct network *n, const __be32 *from, const int v6)
{
	if ((n->flags & PLACE_ANY) || source_listed(n->net, from, v6))
		return 0;
	/* A list that nobody keeps right any more bars nobody. */
	return !(n->flags & PLACE_FOLLOW) || followed(guard_clock());
}

/*
 * One more packet from there. A flood from random addresses must not cost an
 * insertion per packet, nor push out who sent before: where a CPU has added its
 * share in this tick, the packet counts for the key of all others.
 */
static __always_inline void stranger_note(__u16 net, const __be32 *from, __u32 bytes, const int v6)
{
	struct stranger_key key = {.net = net, .v6 = !!v6};
	struct stranger *s, fresh = {};
	__u64 now = guard_clock();
	struct budget *b;
	__u32 zero = 0;

	key.prefix[0] = v6 ? from[0] : from[0] & bpf_htonl(0xffffff00);
	key.prefix[1] = v6 ? from[1] : 0;
	s = bpf_map_lookup_elem(&vx_stranger, &key);
	if (!s) {
		b = bpf_map_lookup_elem(&vx_budget, &zero);
		if (!b)
			return;
		if (b->tick != now >> NEW_PREFIXES_SHIFT) {
			b->tick = now >> NEW_PREFIXES_SHIFT;
			b->left = NEW_PREFIXES;
		}
		if (b->left) {
			b->left--;
		} else {
			key = (struct stranger_key){.net = net};
			s = bpf_map_lookup_elem(&vx_stranger, &key);
		}
	}
	if (!s) {
		/* Another CPU may have been faster. */
		bpf_map_update_elem(&vx_stranger, &key, &fresh, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&vx_stranger, &key);
		if (!s)
			return;
	}
	s->packets++;
	s->bytes += bytes;
	s->seen = now;
	s->last[0] = from[0];
	if (v6) {
		s->last[1] = from[1];
		s->last[2] = from[2];
		s->last[3] = from[3];
	}
}

/* The whole check for a packet to network `n`. Returns 0, or the reason to drop it. */
static __always_inline int stranger_check(const struct network *n, const __be32 *from, const __be32 *to, __u32 bytes,
                                          const int v6)
{
	if (!barred(n, from, v6) || !for_us(n, to, v6))
		return 0;
	stranger_note(n->net, from, bytes, v6);
	return -DROP_STRANGER;
}

/*
 * A packet that does not show its VNI, and of which the kernel may make one that
 * does: the first fragment of a datagram, cut before the VNI, or more headers
 * than are looked at. No VTEP sends such. `port` 0: not even that is known.
 */
static __always_inline int undecided_check(__be16 port, const __be32 *from, const __be32 *to, __u32 bytes, const int v6)
{
	struct vni_key key = {.vni = VNI_PORT, .port = port};
	struct network *n = bpf_map_lookup_elem(&vx_vni, &key);

	return n ? stranger_check(n, from, to, bytes, v6) : 0;
}
