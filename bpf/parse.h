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

/* An Ethernet header in registers. */
struct l2 {
	__u64 dst; /* destination, then the first two bytes of the source */
	__u32 src; /* the other four */
	__be16 proto;
};

static __always_inline struct l2 l2_read(const void *p)
{
	return (struct l2){*(const __u64 *)p, *(const __u32 *)(p + 8), *(const __be16 *)(p + 12)};
}

static __always_inline void l2_write(void *p, struct l2 e)
{
	*(__u64 *)p = e.dst;
	*(__u32 *)(p + 8) = e.src;
	*(__be16 *)(p + 12) = e.proto;
}

/* The address part of l2.dst. */
#define MAC_MASK 0xffffffffffffULL

static __always_inline int l2_is_multicast(struct l2 e)
{
	return e.dst & 1;
}

static __always_inline struct fdb_key key_of_src(__u16 net, struct l2 e)
{
	return (struct fdb_key){.word = net | (e.dst >> 48) << 16 | (__u64)e.src << 32};
}

static __always_inline struct fdb_key key_of_dst(__u16 net, struct l2 e)
{
	return (struct fdb_key){.word = net | e.dst << 16};
}

/* What the outer header may take from the inner packet. */
struct inner {
	__u8 tos;  /* or traffic class */
	__u8 ttl;  /* or hop limit */
	__u8 df;   /* IPv6 never fragments on the way */
	__u8 next; /* next header, IPv6 only */
};

/* `off` is where the inner IP header starts. */
static __always_inline int inner_read(const struct frame *f, __u32 off, __be16 proto, struct inner *in)
{
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = f->data + off;

		if ((void *)(ip + 1) > f->end)
			return -TRUNCATED;
		in->tos = ip->tos;
		in->ttl = ip->ttl;
		in->df = !!(ip->frag_off & bpf_htons(IP_DF));
		in->next = 0;
		return 0;
	}
	struct ipv6hdr *ip6 = f->data + off;

	if ((void *)(ip6 + 1) > f->end)
		return -TRUNCATED;
	in->tos = bpf_ntohl(ip6->version_class_label) >> 20;
	in->ttl = ip6->hop_limit;
	in->df = 1;
	in->next = ip6->nexthdr;
	return 0;
}

/*
 * Neighbour discovery (RFC 4861: types 133 to 137)? A bridge that suppresses
 * neighbour traffic answers in the neighbour's place, as it does for ARP.
 */
static __always_inline int is_nd(struct __sk_buff *skb, __u32 off, const struct inner *in)
{
	__u8 type;

	if (in->next != IPPROTO_ICMPV6)
		return 0;
	return !bpf_skb_load_bytes(skb, off + sizeof(struct ipv6hdr), &type, 1) && type >= 133 && type <= 137;
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
