/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Decapsulation: is this outer header one that the kernel would accept
 * without a second thought, and taking it off. Knows no map and chooses no
 * verdict; returns 0 or a negative enum reason.
 */
#pragma once

#include "config.h"
#include "ecn.h"
#include "encap.h"
#include "parse.h"

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
 * What the kernel's IP, UDP and VXLAN receive paths check in the bytes of a single
 * packet (RFC 7348 section 4.1 and 5), checksums over the payload left out. `v6`
 * is a constant.
 */
static __always_inline int outer_bytes(const void *outer, __u32 len, const int v6)
{
	const struct vxlanhdr *vx = outer + OUTER_LEN(v6) - sizeof(*vx);
	const struct udphdr *udp = (const void *)vx - sizeof(*udp);
	const struct ipv6hdr *ip6 = outer + sizeof(struct ethhdr);
	const struct iphdr *ip4 = outer + sizeof(struct ethhdr);
	__u32 l4 = bpf_ntohs(udp->len);

	if (vx->flags != VXLAN_FLAG_I || (vx->vni & bpf_htonl(0xff)))
		return -OUTER_MALFORMED;
	if (l4 + OUTER_LEN(v6) - sizeof(*udp) - sizeof(*vx) != len)
		return -OUTER_MALFORMED;
	if (v6 ? bpf_ntohs(ip6->payload_len) != l4 : bpf_ntohs(ip4->tot_len) != l4 + sizeof(struct iphdr))
		return -OUTER_MALFORMED;
	if (!v6 && !ip_csum_ok(ip4))
		return -OUTER_MALFORMED;
	return 0;
}

/*
 * Everything that they check on a packet that is known to be VXLAN for a VNI of
 * ours. What they would not simply accept is theirs to judge. `v6` is a constant;
 * `zero6`: this network takes a zero checksum over IPv6.
 */
static __always_inline int outer_check(struct __sk_buff *skb, const void *outer, __u32 len, __u32 gso_size, int zero6,
                                       const int v6)
{
	const struct vxlanhdr *vx = outer + OUTER_LEN(v6) - sizeof(*vx);
	const struct udphdr *udp = (const void *)vx - sizeof(*udp);
	int err;

	/* GRO has checked the lengths, and rewritten them. The vxlan device takes its tunnel state off; adjust_room
	 * cannot. */
	if (gso_size)
		return vx->flags != VXLAN_FLAG_I || (vx->vni & bpf_htonl(0xff)) ? -OUTER_MALFORMED : -AGGREGATE;
	err = outer_bytes(outer, len, v6);
	if (err)
		return err;
	/* A checksum that the device verified shows as a level; any other state is opaque to BPF. */
	if (udp->check ? bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0 : v6 && !zero6)
		return -OUTER_CSUM;
	return 0;
}

/*
 * Take the outer 50 or 70 bytes off, so that the inner frame starts the packet. A
 * checksum level that the device verified goes down with them, as when the
 * kernel's UDP takes a packet with checksum 0: what is left is checked anew.
 */
static __always_inline int decap_pull(struct __sk_buff *skb, struct frame *f, struct l2 inner, const int v6)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	if (inner.proto != (v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP))) {
		if (!vx_have_decap_l3)
			return -ADJUST_FAILED;
		flags |= v6 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	}
	if (bpf_skb_adjust_room(skb, -(__s32)OUTER_LEN(v6), BPF_ADJ_ROOM_MAC, flags))
		return -ADJUST_FAILED;
	frame_read(skb, f);
	if (f->data + sizeof(struct ethhdr) > f->end)
		return -DROP_BROKEN;
	/* The room is taken behind the MAC header: put the inner one over the outer one. */
	l2_write(f->data, inner);
	return 0;
}
