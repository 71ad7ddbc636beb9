/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Encapsulation over IPv4: make 50 bytes of room in front of an inner frame and
 * write the outer header from a ready template (RFC 7348 section 5). Knows no
 * map and chooses no verdict; returns 0 or a negative enum reason.
 */
#pragma once

#include "ecn.h"
#include "parse.h"

#define OUTER4_LEN ((__u32)sizeof(struct outer4))
/* Outer IP, UDP and VXLAN headers: what the inner frame, its Ethernet header included, grows by at the outer IP layer.
 */
#define OUTER4_L3 (OUTER4_LEN - (__u32)sizeof(struct ethhdr))

/* Makes the packet an encapsulated one for GSO and checksum offload, per-segment size unchanged. */
#define ENCAP_FLAGS                                                                                                    \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |                       \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)))

/* UDP source port from the flow hash as the kernel does it (udp_flow_src_port). */
static __always_inline __be16 source_port(struct __sk_buff *skb, const struct vtep *v)
{
	__u32 hash = skb->hash ?: bpf_get_hash_recalc(skb);

	hash ^= hash << 16;
	return bpf_htons((__u16)(((__u64)hash * v->port_range) >> 32) + v->port_min);
}

static __always_inline __sum16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/*
 * Up to the first change the packet is the kernel's; after it, a failure is
 * DROP_BROKEN and the packet cannot be returned.
 */
static __always_inline int encap4(struct __sk_buff *skb, struct frame *f, const struct vtep *v, __be32 vni, __u8 tos,
                                  __u32 gso_size)
{
	__u32 len = skb->len;
	__be16 sport = source_port(skb, v);
	struct ethhdr inner;
	struct outer4 *o;
	long err;

	if (len + OUTER4_L3 > 65535)
		return -TOO_LONG;
	if (f->data + sizeof(inner) > f->end)
		return -TRUNCATED;
	__builtin_memcpy(&inner, f->data, sizeof(inner));

	err = bpf_skb_adjust_room(skb, OUTER4_LEN, BPF_ADJ_ROOM_MAC, ENCAP_FLAGS);
	if (err == -EALREADY) {
		/*
		 * The packet came decapsulated from another tunnel and still says
		 * "encapsulated" (or is a tunnel packet of the container's own).
		 * A single packet needs no GSO state: prepend without it. But
		 * without ENCAP_L3_IPV4 skb->protocol would stay IPv6 on what is
		 * IPv4 now, and bpf_redirect_neigh would route it so.
		 */
		if (gso_size || inner.h_proto == bpf_htons(ETH_P_IPV6))
			return -NESTED;
		err = bpf_skb_adjust_room(skb, OUTER4_LEN, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	}
	if (err)
		return -ADJUST_FAILED;

	frame_read(skb, f);
	o = f->data;
	if (f->data + sizeof(*o) + sizeof(inner) > f->end)
		return -DROP_BROKEN;
	__builtin_memcpy(o, v->outer, sizeof(*o));
	__builtin_memcpy(f->data + sizeof(*o), &inner, sizeof(inner));

	o->ip.tos |= ecn_encap(tos);
	o->ip.tot_len = bpf_htons(len + OUTER4_L3);
	/* RFC 6864: an id must not repeat among fragments in flight, and DF may be clear. */
	o->ip.id = bpf_get_prandom_u32();
	o->ip.check = csum_fold(v->csum + bpf_htons(ecn_encap(tos)) + o->ip.tot_len + o->ip.id);
	o->udp.source = sport;
	o->udp.len = bpf_htons(len + OUTER4_L3 - sizeof(struct iphdr));
	o->vxlan.vni = vni;
	return 0;
}
