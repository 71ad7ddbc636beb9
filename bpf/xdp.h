/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The short way for raw frames: at the driver, before there is an skb. From the
 * underlay to ports that take raw frames, and from ports that deliver them to the
 * underlay. The same checks as at the tc hooks; what does not pass all of them goes
 * up unchanged, to GRO and the tc programs, which have their own say. Returns a
 * verdict (> 0) or a negative enum reason; 0: not ours.
 */
#pragma once

#include "config.h"
#include "decap.h"
#include "encap.h"
#include "guard.h"
#include "known.h"

static __always_inline struct frame xdp_frame(const struct xdp_md *xdp)
{
	return (struct frame){(void *)(long)xdp->data, (void *)(long)xdp->data_end};
}

/* Of the whole packet, in bytes; a frame larger than a page lies in several buffers. */
static __always_inline __u32 xdp_len(struct xdp_md *xdp)
{
	return vx_have_frags ? (__u32)bpf_xdp_get_buff_len(xdp) : xdp->data_end - xdp->data;
}

/* Does a packet of `len` bytes go on in further buffers? 6.1's verifier adds nothing without a bound to a pointer. */
static __always_inline int in_several(const struct frame *f, __u32 len)
{
	return len > (__u32)(f->end - f->data);
}

/* Words of 4 bytes of the longest packet that is summed up. */
#define SUM_WORDS 376

/*
 * Is the transport checksum of this frame filled in? What a stack on this machine
 * or in a VM sends may leave that to the device (CHECKSUM_PARTIAL), XDP shows no
 * sign of it, and a frame that is redirected would never get it. A sum that is
 * right is filled in; all else goes up. Also what may hide another packet with
 * a sum of its own: UDP without one, other protocols. `off` is where the inner
 * IP header starts.
 */
__noinline int summed(struct xdp_md *xdp, __u32 off, __be16 proto)
{
	struct frame f = xdp_frame(xdp);
	__u64 sum = 0;
	__u32 len;
	void *p;
	__u8 l4;

	/* Not static: the verifier looks at it once, without any bound, and not on each way to it (570,000
	 * instructions). */
	if (off > OUTER_LEN(1) + sizeof(struct ethhdr))
		return 0;
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = f.data + off;

		if ((void *)(ip + 1) > f.end || ip->version_ihl != 0x45 || (ip->frag_off & bpf_htons(IP_FRAGMENT)))
			return 0;
		len = bpf_ntohs(ip->tot_len) - sizeof(*ip);
		sum = (__u64)ip->saddr + ip->daddr;
		l4 = ip->protocol;
		p = ip + 1;
	} else {
		struct ipv6hdr *ip = f.data + off;

		if ((void *)(ip + 1) > f.end)
			return 0;
		len = bpf_ntohs(ip->payload_len);
		for (int i = 0; i < 4; i++)
			sum += (__u64)ip->saddr[i] + ip->daddr[i];
		l4 = ip->nexthdr;
		p = ip + 1;
	}
	if (l4 == IPPROTO_UDP) {
		struct udphdr *udp = p;

		if ((void *)(udp + 1) > f.end || !udp->check)
			return 0;
	} else if (l4 != IPPROTO_TCP) {
		return 0;
	}
	if (len < sizeof(struct udphdr) || len > 4 * (SUM_WORDS - 1))
		return 0;
	sum += bpf_htons(l4) + bpf_htons(len);
	for (int i = 0; i < SUM_WORDS && len >= 4; i++) {
		/* Else clang counts down from the end, which the verifier does not follow. */
		asm volatile("" : "+r"(p));
		if (p + 4 > f.end)
			return 0;
		sum += *(__u32 *)p;
		p += 4;
		len -= 4;
	}
	if (len & 2) {
		if (p + 2 > f.end)
			return 0;
		sum += *(__u16 *)p;
		p += 2;
	}
	if (len & 1) {
		if (p + 1 > f.end)
			return 0;
		sum += *(__u8 *)p;
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return csum_fold(sum) == 0;
}

/* What the way of an inner packet depends on. `off`: where its IP header starts. Returns 0 or a reason. */
static __always_inline int xdp_inner(const struct frame *f, __u32 off, __be16 proto, struct inner *in, __u8 *l4,
                                     __u32 *l4_off)
{
	int err = inner_read(f, off, proto, in);

	if (err)
		return err;
	if (proto == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = f->data + off;

		if ((void *)(ip + 1) > f->end)
			return -TRUNCATED;
		*l4 = ip->protocol;
		*l4_off = ip->version_ihl == 0x45 && !(ip->frag_off & bpf_htons(IP_OFFSET)) ? off + sizeof(*ip) : 0;
		return 0;
	}
	*l4 = in->next;
	*l4_off = off + sizeof(struct ipv6hdr);
	if (*l4 == IPPROTO_ICMPV6) {
		const __u8 *type = f->data + *l4_off;

		if ((void *)(type + 1) > f->end)
			return -TRUNCATED;
		/* Neighbour discovery, as in is_nd. */
		if (*type >= 133 && *type <= 137)
			return -ND;
	}
	return 0;
}

/* A SYN, whose MSS would have to be looked at? What cannot be seen may be one. */
static __always_inline int xdp_syn(const struct frame *f, __u8 l4, __u32 l4_off)
{
	const __u8 *flags = f->data + l4_off + 13; /* RFC 9293 */

	if (l4 != IPPROTO_TCP)
		return 0;
	if (!l4_off || (void *)(flags + 1) > f->end)
		return 1;
	return *flags & TCP_SYN;
}

/* RFC 6040: the inner packet gets the mark that the outer one met. RFC 1624 for IPv4's checksum. */
static __always_inline void set_ce(void *ip, __be16 proto)
{
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip4 = ip;
		__u16 old = *(__u16 *)ip4;

		ip4->tos |= ECN_CE;
		ip4->check = csum_fold((__u32)(__u16)~ip4->check + (__u16)~old + *(__u16 *)ip4);
	} else {
		((__u8 *)ip)[1] |= ECN_CE << 4;
	}
}

/*
 * From the underlay. `guard` and `v6` are constants; with `guard` only the outer
 * source check. `net` is set when the packet is one to be counted.
 */
static __always_inline int xdp_decap(struct xdp_md *xdp, __u32 *net, __u32 *vtep, const int guard, const int v6)
{
	int err, here = 0, local, marks = 0;
	struct frame f = xdp_frame(xdp);
	const struct ipv6hdr *ip6;
	const struct udphdr *udp;
	const struct iphdr *ip4;
	struct vni_key vkey = {};
	struct fdb_entry *src, *dst;
	const struct vxlanhdr *vx;
	struct l2 outer, inner;
	struct inner in = {};
	struct place at = {};
	__u32 len, l4_off = 0;
	struct network *n;
	struct fdb_key key;
	__u8 outer_tos, l4 = 0;
	__u64 now;

	/* What is short, or cut, or has more headers than that, is looked at behind GRO. */
	if (f.data + OUTER_LEN(v6) + sizeof(struct ethhdr) > f.end)
		return 0;
	outer = l2_read(f.data);
	ip4 = f.data + sizeof(struct ethhdr);
	ip6 = f.data + sizeof(struct ethhdr);
	vx = f.data + OUTER_LEN(v6) - sizeof(*vx);
	udp = (const void *)vx - sizeof(*udp);
	if (v6) {
		if ((ip6->version_class_label & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000) ||
		    ip6->nexthdr != IPPROTO_UDP)
			return 0;
	} else {
		if (ip4->protocol != IPPROTO_UDP || ip4->version_ihl != 0x45 || (ip4->frag_off & ~bpf_htons(IP_DF)))
			return 0;
	}
	if (!(vx->flags & VXLAN_FLAG_I))
		return 0;
	vkey.vni = bpf_ntohl(vx->vni) >> 8;
	vkey.port = udp->dest;
	n = bpf_map_lookup_elem(&vx_vni, &vkey);
	if (!n || !(n->flags & PLACE_V6) != !v6)
		return 0;
	/* A device that hears everything shows us what is for others. */
	if ((outer.dst & MAC_MASK) != n->mac && !l2_is_multicast(outer))
		return 0;
	len = xdp_len(xdp);
	inner = l2_read(f.data + OUTER_LEN(v6));
	if (guard) {
		err = stranger_check(n, v6 ? ip6->saddr : &ip4->saddr, v6 ? ip6->daddr : &ip4->daddr, len, v6);
		if (err)
			*net = n->net;
		return err;
	}
	key = key_of_src(n->net, inner);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (src) {
		at = place_of(src);
		here = at_vtep(at, v6 ? ip6->saddr : &ip4->saddr, v6);
	}
	if (!here) {
		err = stranger_check(n, v6 ? ip6->saddr : &ip4->saddr, v6 ? ip6->daddr : &ip4->daddr, len, v6);
		if (err) {
			*net = n->net;
			return err;
		}
	}
	if (v6)
		local = ip6->daddr[0] == n->local[0] && ip6->daddr[1] == n->local[1] && ip6->daddr[2] == n->local[2] &&
		        ip6->daddr[3] == n->local[3];
	else
		local = ip4->daddr == n->local[0];
	if ((n->flags & PLACE_OFF) || !local || l2_is_multicast(outer))
		return 0;
	*net = n->net;
	if (outer_bytes(f.data, len, v6))
		return -OUTER_MALFORMED;
	/* Nobody has verified it; behind the driver the device's word may count. */
	if (udp->check || (v6 && !(n->flags & PLACE_ZERO6)))
		return -OUTER_CSUM;
	if (!src)
		return -SRC_UNKNOWN;
	if (!here)
		return -SRC_MOVED; /* behind GRO the entry is removed, or the frame refused */
	if (at.flags & ENTRY_PENDING)
		return -SRC_UNKNOWN;
	*vtep = at.to;
	if (l2_is_multicast(inner))
		return -BUM;
	if (!is_ip(inner.proto))
		return -NOT_IP;
	err = xdp_inner(&f, OUTER_LEN(v6) + sizeof(struct ethhdr), inner.proto, &in, &l4, &l4_off);
	if (err)
		return err;

	key = key_of_dst(n->net, inner);
	dst = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!dst)
		return -DST_UNKNOWN;
	now = bpf_ktime_get_coarse_ns();
	err = due(src, at, now, n->refresh);
	at = place_of(dst);
	if (at.flags & ENTRY_PENDING)
		return -DST_UNKNOWN;
	if (at.kind == KIND_REMOTE)
		return -DST_REMOTE;
	/* TCP into a stack goes up to GRO, which makes a few large packets of it. */
	if (!(at.flags & (l4 == IPPROTO_TCP ? ENTRY_RAW_TCP : ENTRY_RAW)))
		return -PORT_KIND;
	outer_tos = v6 ? bpf_ntohl(ip6->version_class_label) >> 20 : ip4->tos;
	if (ecn_decap_judged(outer_tos, in.tos))
		err = err ?: -OUTER_ECN;
	marks = ecn_decap_marks(outer_tos, in.tos);
	if (err)
		goto slow;
	if (recent(src->slow, now))
		return -IN_ORDER;
	err = usable(dst, at, now, n->ageing);
	if (err)
		return err;
	/* Whether a container still takes raw frames only a living daemon knows. */
	if (at.kind == KIND_PEER && !followed(now))
		return -NO_LEASE;
	if (!bpf_map_lookup_elem(&vx_raw, &at.to))
		return -PORT_GONE;
	if (len - OUTER_LEN(v6) - sizeof(struct ethhdr) > at.mtu)
		return -MTU;
	if (in_several(&f, len) && !(at.flags & ENTRY_RAW_SG))
		return -PORT_KIND;
	if (n->mss && xdp_syn(&f, l4, l4_off)) {
		err = -MSS;
		goto slow;
	}
	if ((n->flags & PLACE_SOFT) && !summed(xdp, OUTER_LEN(v6) + sizeof(struct ethhdr), inner.proto)) {
		err = -INNER_CSUM;
		goto slow;
	}
	if (marks) {
		f = xdp_frame(xdp);
		if (f.data + OUTER_LEN(v6) + sizeof(struct ethhdr) + sizeof(struct iphdr) > f.end)
			return -TRUNCATED;
		set_ce(f.data + OUTER_LEN(v6) + sizeof(struct ethhdr), inner.proto);
	}
	if (bpf_xdp_adjust_head(xdp, OUTER_LEN(v6)))
		return marks ? -DROP_BROKEN : -ADJUST_FAILED;
	return bpf_redirect_map(&vx_raw, at.to, 0) == XDP_REDIRECT ? XDP_REDIRECT : -DROP_BROKEN;

slow:
	if (src->slow != now)
		src->slow = now;
	return err;
}

/* The outer header in front, and out. `v6` is a constant. */
static __always_inline int xdp_send(struct xdp_md *xdp, const struct port *port, struct vtep *v, __u16 flags,
                                    const struct inner *in, __u32 len, __u32 hash, const int v6)
{
	struct frame f;

	if (len + OUTER_L3(v6) > v->mtu)
		return -MTU;
	if (len + OUTER_L3(v6) > MTU_SURE(v6) && too_big_lately(bpf_ktime_get_coarse_ns()))
		return -MTU;
	if (bpf_xdp_adjust_head(xdp, -(int)OUTER_LEN(v6)))
		return -ADJUST_FAILED;
	f = xdp_frame(xdp);
	if (f.data + OUTER_LEN(v6) + sizeof(struct ethhdr) > f.end)
		return -DROP_BROKEN;
	outer_write(f.data, v, flags, port->vni, in, len, source_port(hash, v), v6);
	/* Both before and after the template was copied: its writer clears the flag around a change. */
	if (!(flags & *(volatile __u16 *)&v->flags & VTEP_MACS)) {
		/* The frame itself is as it was. */
		if (bpf_xdp_adjust_head(xdp, OUTER_LEN(v6)))
			return -DROP_BROKEN;
		return -NO_LEASE;
	}
	return bpf_redirect_map(&vx_raw, v->ifindex, 0) == XDP_REDIRECT ? XDP_REDIRECT : -DROP_BROKEN;
}

/* From a port that delivers raw frames towards a VTEP. */
static __always_inline int xdp_encap(struct xdp_md *xdp, const struct port *port, __u32 *vtep)
{
	__u32 len = xdp_len(xdp), l4_off = 0, hash, dev;
	struct frame f = xdp_frame(xdp);
	struct fdb_entry *src, *dst;
	struct inner in = {};
	struct fdb_key key;
	struct place at;
	struct vtep *v;
	struct l2 eth;
	__u16 flags;
	__u8 l4 = 0;
	__u64 now;
	int err, show;

	if (f.data + sizeof(struct ethhdr) > f.end)
		return -TRUNCATED;
	eth = l2_read(f.data);
	if (port->flags & PLACE_OFF)
		return -NOT_READY;
	key = key_of_src(port->net, eth);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!src)
		return -SRC_UNKNOWN;
	at = place_of(src);
	if (at.kind == KIND_REMOTE || at.to != xdp->ingress_ifindex)
		return -SRC_MOVED; /* at the tc hook the entry is removed, or the frame refused */
	if (at.flags & ENTRY_PENDING)
		return -SRC_UNKNOWN;
	if (l2_is_multicast(eth))
		return -BUM;
	if (!is_ip(eth.proto))
		return -NOT_IP;
	now = bpf_ktime_get_coarse_ns();
	show = due(src, at, now, port->refresh);

	key = key_of_dst(port->net, eth);
	dst = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!dst)
		return -DST_UNKNOWN;
	at = place_of(dst);
	if (at.flags & ENTRY_PENDING)
		return -DST_UNKNOWN;
	if (at.kind != KIND_REMOTE)
		return -DST_LOCAL;
	*vtep = at.to;
	err = show ?: usable(dst, at, now, port->ageing);
	if (err)
		goto slow;
	/* The frame before this one may still be in the stack. */
	if (recent(src->slow, now))
		return -IN_ORDER;
	v = bpf_map_lookup_elem(&vx_vtep, &at.to);
	if (!v)
		return -NO_VTEP;
	flags = *(volatile __u16 *)&v->flags;
	if (!(flags & VTEP_READY))
		return -NO_VTEP;
	/* There is no neighbour table here. */
	if (!(flags & VTEP_MACS) || !lease_fresh(now))
		return -NO_LEASE;
	dev = v->ifindex;
	if (!bpf_map_lookup_elem(&vx_raw, &dev))
		return -PORT_KIND;
	err = xdp_inner(&f, sizeof(struct ethhdr), eth.proto, &in, &l4, &l4_off);
	if (err)
		return err;
	if (len - sizeof(struct ethhdr) > port->mtu)
		return -MTU;
	if (in_several(&f, len) && !(port->flags & PLACE_SG))
		return -PORT_KIND;
	if (port->mss && xdp_syn(&f, l4, l4_off)) {
		err = -MSS;
		goto slow;
	}
	if (flow_hash_raw(&f, eth.proto, &hash))
		return -TRUNCATED;
	if ((port->flags & PLACE_SOFT) && !summed(xdp, sizeof(struct ethhdr), eth.proto)) {
		err = -INNER_CSUM;
		goto slow;
	}
	if (flags & VTEP_V6)
		return xdp_send(xdp, port, v, flags, &in, len, hash, 1);
	return xdp_send(xdp, port, v, flags, &in, len, hash, 0);

slow:
	if (src->slow != now)
		src->slow = now;
	return err;
}
