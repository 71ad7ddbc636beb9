/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reading frames: bytes into the linear part, inner IP facts. Knows no map and
 * chooses no verdict; returns 0 or a negative enum reason.
 */
#pragma once

#include "headers/bpf_endian.h"
#include "headers/bpf_helpers.h"
#include "types.h"

struct frame {
	void *data;
	void *end;
};

/* (Re-)read the packet pointers: needed after every helper that may move data. */
static __always_inline void frame_read(struct __sk_buff *skb, struct frame *f)
{
	f->data = (void *)(long)skb->data;
	f->end = (void *)(long)skb->data_end;
}

/* Make the first `need` bytes directly readable; drivers may leave headers in page fragments. */
static __always_inline int frame_need(struct __sk_buff *skb, struct frame *f, __u32 need)
{
	frame_read(skb, f);
	if (f->data + need <= f->end)
		return 0;
	if (skb->len < need || bpf_skb_pull_data(skb, need))
		return -TRUNCATED;
	frame_read(skb, f);
	return f->data + need <= f->end ? 0 : -TRUNCATED;
}

static __always_inline int mac_is_multicast(const __u8 *mac)
{
	return mac[0] & 1;
}

/*
 * What the outer header takes from the inner packet. `off` is where the inner IP
 * header starts. TOS or traffic class, for ECN (RFC 6040).
 */
static __always_inline int inner_tos(struct frame *f, __u32 off, __be16 proto, __u8 *tos)
{
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = f->data + off;

		if ((void *)(ip + 1) > f->end)
			return -TRUNCATED;
		*tos = ip->tos;
		return 0;
	}
	struct ipv6hdr *ip6 = f->data + off;

	if ((void *)(ip6 + 1) > f->end)
		return -TRUNCATED;
	*tos = bpf_ntohl(ip6->version_class_label) >> 20;
	return 0;
}

/*
 * Length in bytes of the longest frame, Ethernet header included, that
 * segmentation will make out of this GSO packet. Needs the TCP header length,
 * so extension headers and unknown protocols are left to the kernel.
 */
static __always_inline int gso_frame_len(struct __sk_buff *skb, struct frame *f, __be16 proto, __u32 gso_size,
                                         __u32 *len)
{
	__u32 off = sizeof(struct ethhdr);
	__u8 l4;

	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = f->data + off;

		if ((void *)(ip + 1) > f->end)
			return -GSO_HEADERS;
		off += (ip->version_ihl & 15) * 4;
		l4 = ip->protocol;
	} else {
		struct ipv6hdr *ip6 = f->data + off;

		if ((void *)(ip6 + 1) > f->end)
			return -GSO_HEADERS;
		off += sizeof(*ip6);
		l4 = ip6->nexthdr;
	}
	if (l4 == IPPROTO_TCP) {
		__u8 doff;

		/* 12: the data offset's place in the TCP header (RFC 9293). */
		if (bpf_skb_load_bytes(skb, off + 12, &doff, 1))
			return -GSO_HEADERS;
		off += (doff >> 4) * 4;
	} else if (l4 == IPPROTO_UDP) {
		off += sizeof(struct udphdr);
	} else {
		return -GSO_HEADERS;
	}
	*len = off + gso_size;
	return 0;
}
