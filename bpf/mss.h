/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * MSS clamping: a SYN that announces larger segments than the overlay carries is
 * made to announce less (RFC 9293 section 3.7.1, RFC 6691), so that endpoints
 * with a too large MTU need neither fragments nor "too big" messages. Knows no
 * map and chooses no verdict.
 */
#pragma once

#include "parse.h"

enum {
	TCP_SYN = 0x02,
	TCPOPT_END = 0,
	TCPOPT_NOP = 1,
	TCPOPT_MSS = 2,
	TCPOLEN_MSS = 4,
	TCP_CHECK = 16, /* offset of the checksum */
};

/*
 * `mtu` is the largest inner IP packet; the packet starts with the inner
 * Ethernet header. Anything that is not a plain SYN with a larger MSS stays as
 * it is. Packet pointers must be read again afterwards.
 */
static __always_inline void mss_clamp(struct __sk_buff *skb, __u32 mtu)
{
	__u32 off = sizeof(struct ethhdr), pos, end, max;
	__u8 opt[4], head[2];
	struct frame f;
	struct ethhdr *eth;

	if (frame_need(skb, &f, sizeof(*eth) + sizeof(struct iphdr)))
		return;
	eth = f.data;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = f.data + sizeof(*eth);

		if (ip->protocol != IPPROTO_TCP || (ip->frag_off & bpf_htons(IP_FRAGMENT)) ||
		    (ip->version_ihl & 15) < 5)
			return;
		off += (ip->version_ihl & 15) * 4;
		max = mtu - sizeof(struct iphdr) - 20;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6;

		if (frame_need(skb, &f, sizeof(*eth) + sizeof(*ip6)))
			return;
		ip6 = f.data + sizeof(*eth);
		if (ip6->nexthdr != IPPROTO_TCP)
			return;
		off += sizeof(*ip6);
		max = mtu - sizeof(*ip6) - 20;
	} else {
		return;
	}
	if (bpf_skb_load_bytes(skb, off + 12, head, sizeof(head)) || !(head[1] & TCP_SYN))
		return;
	end = off + (head[0] >> 4) * 4;
	pos = off + 20;
	/* 40 bytes of options: at worst NOPs up to an MSS in the last 4. */
	for (int i = 0; i <= 40 - TCPOLEN_MSS; i++) {
		__u16 was, now;

		if (pos + TCPOLEN_MSS > end || bpf_skb_load_bytes(skb, pos, opt, sizeof(opt)))
			return;
		if (opt[0] == TCPOPT_END)
			return;
		if (opt[0] == TCPOPT_NOP) {
			pos++;
			continue;
		}
		if (opt[0] != TCPOPT_MSS) {
			if (opt[1] < 2)
				return;
			pos += opt[1];
			continue;
		}
		if (opt[1] != TCPOLEN_MSS || (__u32)(opt[2] << 8 | opt[3]) <= max)
			return;
		__builtin_memcpy(&was, opt + 2, sizeof(was));
		now = bpf_htons(max);
		if (bpf_skb_store_bytes(skb, pos + 2, &now, sizeof(now), 0))
			return;
		/* The checksum is over aligned words: at an odd place the bytes lie the other way round. */
		if ((pos - off) & 1) {
			was = (__u16)(was << 8 | was >> 8);
			now = (__u16)(now << 8 | now >> 8);
		}
		bpf_l4_csum_replace(skb, off + TCP_CHECK, was, now, sizeof(now));
		return;
	}
}
