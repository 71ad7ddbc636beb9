/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Encapsulation over IPv4: make 50 bytes of room in front of an inner frame and
 * write the outer header from a ready template (RFC 7348 section 5). Knows no
 * map and chooses no verdict; returns 0 or a negative enum reason.
 */
#pragma once

#include "config.h"
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

/*
 * The inner flow's hash: what the sender's socket or the device gave the packet,
 * else one over addresses, protocol and ports. bpf_get_hash_recalc would do, but
 * its flow dissector and siphash are a third of the program's time. The packet
 * keeps the hash: the choice of a transmit queue asks for one next.
 */
static __always_inline __u32 flow_hash(struct __sk_buff *skb, const struct frame *f, __be16 proto)
{
	__u32 hash = skb->hash, ports = 0, off;
	__u64 a, b;
	__u8 l4;

	if (hash)
		return hash;
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = f->data + sizeof(struct ethhdr);

		if ((void *)(ip + 1) > f->end)
			return bpf_get_hash_recalc(skb);
		a = ip->saddr;
		b = ip->daddr;
		l4 = ip->protocol;
		off = sizeof(struct ethhdr) + sizeof(*ip);
		/* All fragments of a packet go one way, so none counts its ports; no more does a header with options.
		 */
		if (ip->version_ihl != 0x45 || (ip->frag_off & bpf_htons(0x3fff)))
			off = 0;
	} else {
		struct ipv6hdr *ip6 = f->data + sizeof(struct ethhdr);
		__u64 addr[4];

		if ((void *)(ip6 + 1) > f->end)
			return bpf_get_hash_recalc(skb);
		__builtin_memcpy(addr, ip6->saddr, sizeof(addr));
		a = addr[0] ^ (addr[1] * 0x9e3779b97f4a7c15ULL);
		b = addr[2] ^ (addr[3] * 0x9e3779b97f4a7c15ULL);
		l4 = ip6->nexthdr;
		off = sizeof(struct ethhdr) + sizeof(*ip6);
	}
	if (off && (l4 == IPPROTO_TCP || l4 == IPPROTO_UDP)) {
		if (f->data + off + sizeof(ports) <= f->end)
			ports = *(__u32 *)(f->data + off);
		else if (bpf_skb_load_bytes(skb, off, &ports, sizeof(ports)))
			ports = 0;
	}
	a = (a ^ vx_hash_seed) * 0x9e3779b97f4a7c15ULL;
	b = (b ^ ((__u64)ports << 32 | l4)) * 0xc2b2ae3d27d4eb4fULL;
	a ^= (b << 31 | b >> 33);
	a ^= a >> 32;
	a *= 0xd6e8feb86659fd93ULL;
	hash = a >> 32;
	bpf_set_hash(skb, hash);
	return hash;
}

/* UDP source port from the flow hash as the kernel does it (udp_flow_src_port). */
static __always_inline __be16 source_port(__u32 hash, const struct vtep *v)
{
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
static __always_inline int encap4(struct __sk_buff *skb, struct frame *f, const struct vtep *v, __be32 vni,
                                  __be16 proto, __u8 tos, __u32 gso_size)
{
	__u32 len = skb->len;
	__be16 sport = source_port(flow_hash(skb, f, proto), v);
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
