/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Encapsulation: make 50 (IPv4) or 70 (IPv6) bytes of room in front of an inner
 * frame and write the outer header from a ready template (RFC 7348 section 5).
 * Knows no map and chooses no verdict; returns 0 or a negative enum reason.
 */
#pragma once

#include "config.h"
#include "ecn.h"
#include "parse.h"

/* The bytes that encapsulation adds in front (RFC 7348 section 5): 50 over IPv4, 70 over IPv6. */
#define OUTER_IP(v6) ((__u32)((v6) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)))
#define OUTER_LEN(v6) ((__u32)(sizeof(struct ethhdr) + OUTER_IP(v6) + sizeof(struct udphdr) + sizeof(struct vxlanhdr)))
/* Outer IP, UDP and VXLAN headers: what a frame, its Ethernet header included, grows by as an IP packet. */
#define OUTER_L3(v6) (OUTER_LEN(v6) - (__u32)sizeof(struct ethhdr))

#define VXLAN_FLAG_I bpf_htonl(0x08000000)

/* Makes the packet an encapsulated one for GSO and checksum offload, per-segment size unchanged. */
#define ENCAP_FLAGS                                                                                                    \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |                        \
	 BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)))

/* `n` is a constant and even; both sides are an array of bytes to clang, which would copy them one by one. */
static __always_inline void copy(void *dst, const void *src, const __u32 n)
{
	__u32 i = 0;

#pragma unroll
	for (; i + 8 <= n; i += 8)
		*(__u64 *)(dst + i) = *(const __u64 *)(src + i);
	if (n & 4) {
		*(__u32 *)(dst + i) = *(const __u32 *)(src + i);
		i += 4;
	}
	if (n & 2)
		*(__u16 *)(dst + i) = *(const __u16 *)(src + i);
}

/* What tells flows apart: addresses and protocol, and where their ports are (0: nowhere). */
struct flow {
	__u64 a, b;
	__u32 off;
	__u8 l4;
};

static __always_inline int flow_read(const struct frame *f, __be16 proto, struct flow *w)
{
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = f->data + sizeof(struct ethhdr);

		if ((void *)(ip + 1) > f->end)
			return -TRUNCATED;
		w->a = ip->saddr;
		w->b = ip->daddr;
		w->l4 = ip->protocol;
		w->off = sizeof(struct ethhdr) + sizeof(*ip);
		/* All fragments of a packet go one way, so none counts its ports; no more does a header with options.
		 */
		if (ip->version_ihl != 0x45 || (ip->frag_off & bpf_htons(IP_FRAGMENT)))
			w->off = 0;
	} else {
		struct ipv6hdr *ip6 = f->data + sizeof(struct ethhdr);
		__u64 addr[4]; /* source, destination */

		if ((void *)(ip6 + 1) > f->end)
			return -TRUNCATED;
		copy(addr, ip6->saddr, sizeof(addr));
		w->a = addr[0] ^ (addr[1] * 0x9e3779b97f4a7c15ULL);
		w->b = addr[2] ^ (addr[3] * 0x9e3779b97f4a7c15ULL);
		w->l4 = ip6->nexthdr;
		w->off = sizeof(struct ethhdr) + sizeof(*ip6);
	}
	if (w->l4 != IPPROTO_TCP && w->l4 != IPPROTO_UDP)
		w->off = 0;
	return 0;
}

static __always_inline __u32 flow_mix(const struct flow *w, __u32 ports)
{
	__u64 a = (w->a ^ vx_hash_seed) * 0x9e3779b97f4a7c15ULL;
	__u64 b = (w->b ^ ((__u64)ports << 32 | w->l4)) * 0xc2b2ae3d27d4eb4fULL;

	a ^= (b << 31 | b >> 33);
	a ^= a >> 32;
	a *= 0xd6e8feb86659fd93ULL;
	return a >> 32;
}

/*
 * The inner flow's hash: what the sender's socket or the device gave the packet,
 * else one over addresses, protocol and ports. bpf_get_hash_recalc would do, but
 * its flow dissector and siphash are a third of the program's time. The packet
 * keeps the hash: the choice of a transmit queue asks for one next.
 */
static __always_inline __u32 flow_hash(struct __sk_buff *skb, const struct frame *f, __be16 proto)
{
	__u32 hash = skb->hash, ports = 0;
	struct flow w;

	if (hash)
		return hash;
	if (flow_read(f, proto, &w))
		return bpf_get_hash_recalc(skb);
	if (w.off) {
		if (f->data + w.off + sizeof(ports) <= f->end)
			ports = *(__u32 *)(f->data + w.off);
		else if (bpf_skb_load_bytes(skb, w.off, &ports, sizeof(ports)))
			ports = 0;
	}
	hash = flow_mix(&w, ports);
	bpf_set_hash(skb, hash);
	return hash;
}

/* The same of a frame that has no skb. */
static __always_inline int flow_hash_raw(const struct frame *f, __be16 proto, __u32 *hash)
{
	__u32 ports = 0;
	struct flow w;
	int err = flow_read(f, proto, &w);

	if (err)
		return err;
	if (w.off && f->data + w.off + sizeof(ports) <= f->end)
		ports = *(__u32 *)(f->data + w.off);
	*hash = flow_mix(&w, ports);
	return 0;
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
 * The outer header, from the template, at `data`: OUTER_LEN(v6) bytes, which the
 * caller has checked. `len` is that of the inner frame. `v6` is a constant: the
 * family of the outer packet.
 */
static __always_inline void outer_write(void *data, const struct vtep *v, __u16 flags, __be32 vni,
                                        const struct inner *in, __u32 len, __be16 sport, const int v6)
{
	__u8 tos = (flags & VTEP_TOS_INHERIT ? in->tos & ~ECN_MASK : v->tos) | ecn_encap(in->tos);
	__u8 ttl = flags & VTEP_TTL_INHERIT && in->ttl ? in->ttl : v->ttl;
	struct vxlanhdr *vx = data + OUTER_LEN(v6) - sizeof(*vx);
	struct udphdr *udp = (void *)vx - sizeof(*udp);

	copy(data, v->outer, OUTER_LEN(v6) - sizeof(*vx));
	if (v6) {
		struct ipv6hdr *ip = data + sizeof(struct ethhdr);

		ip->version_class_label |= bpf_htonl((__u32)tos << 20);
		ip->payload_len = bpf_htons(len + sizeof(*udp) + sizeof(*vx));
		ip->hop_limit = ttl;
	} else {
		struct iphdr *ip = data + sizeof(struct ethhdr);
		__u16 df = flags & VTEP_DF_INHERIT && in->df ? bpf_htons(IP_DF) : 0;

		ip->tos = tos;
		ip->tot_len = bpf_htons(len + OUTER_L3(0));
		/* RFC 6864: an id must not repeat among fragments in flight, and DF may be clear. */
		ip->id = bpf_get_prandom_u32();
		ip->frag_off |= df;
		ip->ttl = ttl;
		ip->check = csum_fold(v->csum + bpf_htons(tos) + ip->tot_len + ip->id + df + bpf_htons(ttl << 8));
	}
	udp->source = sport;
	udp->len = bpf_htons(len + sizeof(*udp) + sizeof(*vx));
	vx->flags = VXLAN_FLAG_I;
	vx->vni = vni;
}

/*
 * Up to the first change the packet is the kernel's; after it, a failure is
 * DROP_BROKEN and the packet cannot be returned. `v6` is a constant: the family
 * of the outer packet.
 */
static __always_inline int encap_push(struct __sk_buff *skb, struct frame *f, const struct vtep *v, __u16 flags,
                                      __be32 vni, __be16 proto, const struct inner *in, __u32 gso_size, const int v6)
{
	__be16 sport = source_port(flow_hash(skb, f, proto), v);
	__u32 len = skb->len;
	struct l2 inner;
	long err;

	if (len + OUTER_L3(v6) > 65535)
		return -TOO_LONG;
	if (f->data + sizeof(struct ethhdr) > f->end)
		return -TRUNCATED;
	inner = l2_read(f->data);

	err = bpf_skb_adjust_room(skb, OUTER_LEN(v6), BPF_ADJ_ROOM_MAC,
	                          ENCAP_FLAGS | (v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4));
	if (err == -EALREADY) {
		/*
		 * The packet came decapsulated from another tunnel and still says
		 * "encapsulated" (or is a tunnel packet of the container's own).
		 * A single packet needs no GSO state: prepend without it. But
		 * without ENCAP_L3_* skb->protocol would stay that of the inner
		 * packet, and bpf_redirect_neigh would route it so.
		 */
		if (gso_size || proto != (v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP)))
			return -NESTED;
		err = bpf_skb_adjust_room(skb, OUTER_LEN(v6), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	}
	if (err)
		return -ADJUST_FAILED;

	frame_read(skb, f);
	if (f->data + OUTER_LEN(v6) + sizeof(struct ethhdr) > f->end)
		return -DROP_BROKEN;
	l2_write(f->data + OUTER_LEN(v6), inner);
	outer_write(f->data, v, flags, vni, in, len, sport, v6);
	return 0;
}
