/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Decapsulation from IPv4: is this outer header one that the kernel would accept
 * without a second thought, and taking it off. Knows no map and chooses no
 * verdict; returns 0 or a negative enum reason.
 */
#pragma once

#include "config.h"
#include "ecn.h"
#include "encap.h"
#include "parse.h"

#define VXLAN_FLAG_I bpf_htonl(0x08000000)

/*
 * RFC 791: the sum over the whole header is all ones. The kernel drops what
 * fails here; we let it.
 */
static __always_inline int ip_csum_ok(const struct iphdr *ip)
{
	const __u16 *w = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += w[i];
	return csum_fold(sum) == 0;
}

/*
 * Everything that the kernel's IP, UDP and VXLAN receive paths check on a single
 * packet (RFC 7348 section 4.1 and 5), for a packet that is known to be VXLAN
 * for a VNI of ours. What they would not simply accept is theirs to judge.
 */
static __always_inline int outer4_check(struct __sk_buff *skb, const struct outer4 *o, __u32 len, __u32 gso_size)
{
	__u32 tot = bpf_ntohs(o->ip.tot_len);

	if (o->vxlan.flags != VXLAN_FLAG_I || (o->vxlan.vni & bpf_htonl(0xff)))
		return -OUTER_MALFORMED;
	/* GRO has checked these, and rewritten the lengths. The vxlan device takes its tunnel state off; adjust_room
	 * cannot. */
	if (gso_size)
		return -AGGREGATE;
	if (tot + sizeof(struct ethhdr) != len || bpf_ntohs(o->udp.len) + sizeof(struct iphdr) != tot)
		return -OUTER_MALFORMED;
	if (!ip_csum_ok(&o->ip))
		return -OUTER_MALFORMED;
	/* A checksum that the device verified shows as a level; any other state is opaque to BPF. */
	if (o->udp.check && bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0)
		return -OUTER_CSUM;
	return 0;
}

/*
 * Take the outer 50 bytes off, so that the inner frame starts the packet. A
 * checksum level that the device verified goes down with them, as when the
 * kernel's UDP takes a packet with checksum 0: what is left is checked anew.
 */
static __always_inline int decap4(struct __sk_buff *skb, struct frame *f, const struct ethhdr *inner)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (inner->h_proto == bpf_htons(ETH_P_IPV6)) {
		if (!vx_have_decap6)
			return -ADJUST_FAILED;
		flags |= BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	}
	if (bpf_skb_adjust_room(skb, -(__s32)OUTER4_LEN, BPF_ADJ_ROOM_MAC, flags))
		return -ADJUST_FAILED;
	frame_read(skb, f);
	if (f->data + sizeof(*inner) > f->end)
		return -DROP_BROKEN;
	/* The room is taken behind the MAC header: put the inner one over the outer one. */
	__builtin_memcpy(f->data, inner, sizeof(*inner));
	return 0;
}
