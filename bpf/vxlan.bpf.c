// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * The data path. Repeats for known unicast what the kernel's bridge and vxlan
 * device have decided; returns everything else to them untouched, with a
 * counted reason.
 *
 *   port --> vx_tc_encap ----------------------------> underlay
 *   underlay --> vx_tc_decap -- single packets ------> port
 *                     '-- kernel vxlan device --> vx_tc_deliver --> port
 *   raw frames: port --> vx_xdp_encap --> underlay --> vx_xdp_decap --> port
 *
 * The one thing that it drops: what a stranger sends to a network of ours (guard.h).
 */
#include "capture.h"
#include "config.h"
#include "decap.h"
#include "encap.h"
#include "guard.h"
#include "headers/bpf_endian.h"
#include "headers/bpf_helpers.h"
#include "kernel.h"
#include "known.h"
#include "maps.h"
#include "mss.h"
#include "parse.h"
#include "types.h"
#include "verdict.h"
#include "xdp.h"

/* The outer header on, and out. `v6` is a constant. Returns a tc verdict (>= 0) or a negative reason. */
static __always_inline int send(struct __sk_buff *skb, struct frame *f, const struct port *port, struct vtep *v,
                                __u16 flags, __be16 proto, __u32 gso_size, __u64 now, const int v6)
{
	struct inner in;
	__u32 len;
	int err;

	err = inner_read(f, sizeof(struct ethhdr), proto, &in);
	if (err)
		return err;
	if (is_nd(skb, sizeof(struct ethhdr), &in))
		return -ND;
	len = skb->len;
	if (gso_size) {
		err = gso_frame_len(skb, f, proto, gso_size, &len);
		if (err)
			return err;
	}
	/* What does not fit is the kernel's to fragment or to answer with "too big". */
	if (len + OUTER_L3(v6) > v->mtu || len - sizeof(struct ethhdr) > port->mtu)
		return -MTU;
	if (len + OUTER_L3(v6) > MTU_SURE(v6) && too_big_lately(now))
		return -MTU;
	if (port->mss && !gso_size) {
		mss_clamp(skb, port->mss);
		frame_read(skb, f);
	}
	err = encap_push(skb, f, v, flags, port->vni, proto, &in, gso_size, v6);
	if (err)
		return err;
	/* Both before and after the template was copied: its writer clears the flag around a change. */
	flags &= *(volatile __u16 *)&v->flags;
	if ((flags & VTEP_MACS) && lease_fresh(now))
		return bpf_redirect(v->ifindex, 0);
	/* Nobody vouches for the template's MAC addresses: the neighbour table is always right. */
	return bpf_redirect_neigh(v->ifindex, 0, 0, 0);
}

/*
 * From a bridge port towards a VTEP. `vtep` is set as soon as it is known. Returns a tc verdict (>= 0) or a negative
 * reason.
 */
static __always_inline int encap(struct __sk_buff *skb, const struct port *port, __u32 *vtep)
{
	__u32 gso_size = skb->gso_size; /* once: clang would keep a pointer to the field, which the verifier refuses */
	struct fdb_entry *src, *dst;
	struct fdb_key key;
	struct place at;
	struct vtep *v;
	struct frame f;
	struct l2 eth;
	__u16 flags;
	__u64 now;
	int err, show;

	err = frame_need(skb, &f, sizeof(struct ethhdr));
	if (err)
		return err;
	eth = l2_read(f.data);
	now = bpf_ktime_get_coarse_ns();

	key = key_of_src(port->net, eth);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	/* Before anything else: the kernel learns from every frame, from a port that is off and with a tag, too. */
	if (src) {
		at = place_of(src);
		err = source_check(&key, at, at.kind != KIND_REMOTE && at.to == skb->ifindex, ENTRY_STICKY);
	}
	if (port->flags & PLACE_OFF)
		return -NOT_READY;
	if (skb->vlan_present)
		return -VLAN_TAG;
	if (!src)
		return -SRC_UNKNOWN;
	if (err)
		return err;
	err = frame_need(skb, &f, sizeof(struct ethhdr) + sizeof(struct iphdr));
	if (err)
		return err;
	if (l2_is_multicast(eth))
		return -BUM;
	if (!is_ip(eth.proto))
		return -NOT_IP;
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
		return err;
	v = bpf_map_lookup_elem(&vx_vtep, &at.to);
	if (!v)
		return -NO_VTEP;
	flags = *(volatile __u16 *)&v->flags;
	if (!(flags & VTEP_READY))
		return -NO_VTEP;

	if (eth.proto == bpf_htons(ETH_P_IPV6)) {
		err = frame_need(skb, &f, sizeof(struct ethhdr) + sizeof(struct ipv6hdr));
		if (err)
			return err;
	}
	if (flags & VTEP_V6)
		return send(skb, &f, port, v, flags, eth.proto, gso_size, now, 1);
	return send(skb, &f, port, v, flags, eth.proto, gso_size, now, 0);
}

/*
 * Where nobody follows the kernel, a port may be gone, or made again with
 * another number: what is redirected to it would vanish.
 */
static __always_inline int there(struct __sk_buff *skb, struct fdb_key *key, struct place at, __u64 now)
{
	__u32 any = 0;

	if (followed(now) || bpf_check_mtu(skb, at.to, &any, 0, 0) != -ENODEV)
		return 0;
	fdb_remove(key);
	return -PORT_GONE;
}

/* Hand a decapsulated frame to a local port. Returns a tc verdict. */
static __always_inline int deliver(struct __sk_buff *skb, struct place at)
{
	if (at.kind == KIND_PEER) {
		/* The frame is for the container's device, not for us: a stack drops what says "other host". 6.15 does
		 * this. */
		if (skb->pkt_type != PACKET_HOST)
			bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(at.to, 0);
	}
	return bpf_redirect(at.to, at.kind == KIND_HOST ? BPF_F_INGRESS : 0);
}

/* Does a router or the other host say that a packet of ours was too big (RFC 792, RFC 4443)? `outer` is an IP packet.
 */
static __always_inline int is_too_big(const void *outer, const int v6)
{
	/* Type and code stand where UDP has its source port. */
	const struct udphdr *l4 = outer + sizeof(struct ethhdr) + OUTER_IP(v6);
	const struct ipv6hdr *ip6 = outer + sizeof(struct ethhdr);
	const struct iphdr *ip4 = outer + sizeof(struct ethhdr);

	if (v6)
		return ip6->nexthdr == IPPROTO_ICMPV6 && l4->source == bpf_htons(0x0200);
	return ip4->version_ihl == 0x45 && ip4->protocol == IPPROTO_ICMP && l4->source == bpf_htons(0x0304);
}

/* Hop-by-hop, routing, fragment, destination options (RFC 8200 section 4). */
static __always_inline int is_extension(__u8 next)
{
	return next == 0 || next == 43 || next == 44 || next == 60;
}

/* Headers and tags that are looked past on the way to UDP; nobody sends as many. */
#define ODD_TAGS 8
#define ODD_HEADERS 16

/*
 * A packet that only the kernel takes apart: with IP options or extension
 * headers, the first fragment of a datagram, or with priority tags (VLAN 0) in
 * front. The kernel will decapsulate and learn, so both sources are checked all
 * the same. Of later fragments nothing is known; without the first they are never
 * put together. Returns 0, or with *net set the reason to drop it. `guard`: only
 * the outer source check.
 */
static __noinline int odd(struct __sk_buff *skb, __u32 *net, int guard)
{
	__u32 off = sizeof(struct ethhdr) - sizeof(__be16), bytes = skb->len;
	struct {
		struct udphdr udp;
		struct vxlanhdr vxlan;
		__u8 eth[16]; /* 14, and room */
	} h = {};
	__be32 from[4] = {}, to[4] = {};
	struct vni_key vkey = {};
	struct fdb_entry *src;
	int tags, headers, v6, cut = 0;
	struct network *n;
	struct fdb_key key;
	struct place at;
	__be16 proto = 0;
	__u8 next;

	/* Packets with a VLAN belong to another device, or to none. */
	if (skb->vlan_present && (skb->vlan_tci & VLAN_VID_MASK))
		return 0;
	for (tags = 0; tags < ODD_TAGS; tags++) {
		__be16 tci;

		if (bpf_skb_load_bytes(skb, off, &proto, sizeof(proto)))
			return 0;
		off += sizeof(proto);
		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		if (bpf_skb_load_bytes(skb, off, &tci, sizeof(tci)) || (tci & bpf_htons(VLAN_VID_MASK)))
			return 0;
		off += sizeof(tci);
	}
	if (tags == ODD_TAGS)
		return undecided_check(0, from, to, bytes, 0);
	if (proto == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) || ip.protocol != IPPROTO_UDP ||
		    (ip.frag_off & bpf_htons(IP_OFFSET)))
			return 0;
		cut = !!(ip.frag_off & bpf_htons(IP_MF));
		off += (ip.version_ihl & 15) * 4;
		from[0] = ip.saddr;
		to[0] = ip.daddr;
		v6 = 0;
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return 0;
		off += sizeof(ip);
		next = ip.nexthdr;
		copy(from, ip.saddr, sizeof(from));
		copy(to, ip.daddr, sizeof(to));
		v6 = 1;
		for (headers = 0; headers < ODD_HEADERS; headers++) {
			__u8 e[4];

			if (!is_extension(next))
				break;
			if (bpf_skb_load_bytes(skb, off, e, sizeof(e)))
				return cut ? undecided_check(0, from, to, bytes, 1) : 0;
			if (next == 44) {
				if (e[2] || (e[3] & 0xf8))
					return 0;
				cut = cut || (e[3] & 1);
			}
			off += next == 44 ? 8 : 8 + e[1] * 8;
			next = e[0];
		}
		if (headers == ODD_HEADERS)
			return undecided_check(0, from, to, bytes, 1);
		if (next != IPPROTO_UDP)
			return 0;
	} else {
		return 0;
	}
	if (bpf_skb_load_bytes(skb, off, &h.udp, sizeof(h.udp)))
		return cut ? undecided_check(0, from, to, bytes, v6) : 0;
	if (bpf_skb_load_bytes(skb, off + sizeof(h.udp), &h.vxlan, sizeof(h.vxlan)))
		return cut ? undecided_check(h.udp.dest, from, to, bytes, v6) : 0;
	if (!(h.vxlan.flags & VXLAN_FLAG_I))
		return 0;
	vkey.vni = bpf_ntohl(h.vxlan.vni) >> 8;
	vkey.port = h.udp.dest;
	n = bpf_map_lookup_elem(&vx_vni, &vkey);
	if (!n || !(n->flags & PLACE_V6) != !v6)
		return 0;
	if (stranger_check(n, from, to, bytes, v6)) {
		*net = n->net;
		return -DROP_STRANGER;
	}
	if (guard || bpf_skb_load_bytes(skb, off + sizeof(h.udp) + sizeof(h.vxlan), h.eth, sizeof(struct ethhdr)))
		return 0;
	key = key_of_src(n->net, l2_read(h.eth));
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (src) {
		at = place_of(src);
		from_vtep(&key, at, at_vtep(at, from, v6));
	}
	return 0;
}

/*
 * From the underlay. `net` is set as soon as the packet is known to be ours.
 * Returns a tc verdict (>= 0) or a negative reason; with `net` still 0 the
 * packet is not VXLAN of ours, and not counted unless it is dropped. `vtep` is set as soon as the
 * packet is known to come from there. `v6` is a constant: the family of the
 * outer packet.
 */
static __always_inline int decap(struct __sk_buff *skb, __u32 *net, __u32 *vtep, const int v6)
{
	__u32 gso_size = skb->gso_size, len = skb->len;
	int err, outer, multicast, marks = 0;
	struct fdb_entry *src, *dst;
	struct vni_key vkey = {};
	struct vxlanhdr *vx;
	struct udphdr *udp;
	struct inner in = {};
	struct ipv6hdr *ip6;
	struct network *n;
	struct fdb_key key;
	struct iphdr *ip4;
	struct l2 inner;
	__u8 outer_tos;
	struct place at = {};
	struct frame f;
	__u64 now;
	int local, here;

	multicast = skb->pkt_type == PACKET_MULTICAST || skb->pkt_type == PACKET_BROADCAST;
	if (skb->pkt_type != PACKET_HOST && !multicast)
		return 0;
	if (skb->vlan_present)
		return odd(skb, net, 0);
	/* Too short for VXLAN, but not for the first fragment of it. */
	if (frame_need(skb, &f, OUTER_LEN(v6) + sizeof(struct ethhdr)))
		return odd(skb, net, 0);
	ip4 = f.data + sizeof(struct ethhdr);
	ip6 = f.data + sizeof(struct ethhdr);
	vx = f.data + OUTER_LEN(v6) - sizeof(*vx);
	udp = (void *)vx - sizeof(*udp);
	if (is_too_big(f.data, v6)) {
		note(CONTROL_TOO_BIG, bpf_ktime_get_coarse_ns());
		return 0;
	}
	if (v6) {
		if ((ip6->version_class_label & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
			return 0;
		if (ip6->nexthdr != IPPROTO_UDP)
			return is_extension(ip6->nexthdr) ? odd(skb, net, 0) : 0;
	} else {
		if (ip4->protocol != IPPROTO_UDP)
			return 0;
		/* Options; reserved bit, more fragments, offset. */
		if (ip4->version_ihl != 0x45 || (ip4->frag_off & ~bpf_htons(IP_DF)))
			return odd(skb, net, 0);
	}
	if (!(vx->flags & VXLAN_FLAG_I))
		return 0;
	vkey.vni = bpf_ntohl(vx->vni) >> 8;
	vkey.port = udp->dest;
	n = bpf_map_lookup_elem(&vx_vni, &vkey);
	if (!n)
		return 0;
	*net = n->net;
	/* The kernel has a socket of one family for it. */
	if (!(n->flags & PLACE_V6) != !v6)
		return n->flags & PLACE_OFF ? -NOT_READY : -OUTER_NOT_LOCAL;
	inner = l2_read(f.data + OUTER_LEN(v6));
	key = key_of_src(n->net, inner);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	here = 0;
	if (src) {
		at = place_of(src);
		here = at_vtep(at, v6 ? ip6->saddr : &ip4->saddr, v6);
	}
	/* An entry's VTEP may send: the daemon sees to it. Before all else, what a stranger shows must move nothing. */
	if (!here) {
		err = stranger_check(n, v6 ? ip6->saddr : &ip4->saddr, v6 ? ip6->daddr : &ip4->daddr, len, v6);
		if (err)
			return err;
	}
	if (n->flags & PLACE_OFF) {
		if (n->flags & PLACE_GUARD)
			*net = 0;
		return -NOT_READY;
	}
	if (v6)
		local = ip6->daddr[0] == n->local[0] && ip6->daddr[1] == n->local[1] && ip6->daddr[2] == n->local[2] &&
		        ip6->daddr[3] == n->local[3];
	else
		local = ip4->daddr == n->local[0];
	/* To a group: the kernel's anyway. But every frame of a known source shows where it lives. */
	if (!local && !multicast)
		outer = -OUTER_NOT_LOCAL;
	else
		outer = outer_check(skb, f.data, len, gso_size, n->flags & PLACE_ZERO6, v6);

	now = bpf_ktime_get_coarse_ns();
	if (!src)
		return outer == -OUTER_MALFORMED || outer == -OUTER_NOT_LOCAL ? outer : -SRC_UNKNOWN;
	err = from_vtep(&key, at, here);
	if (err)
		return err;
	*vtep = at.to;
	/* The source is checked first: what we would not take, the kernel may. */
	if (outer == -OUTER_MALFORMED || outer == -OUTER_NOT_LOCAL)
		return outer;
	if (multicast || l2_is_multicast(inner))
		return -BUM;
	err = outer ?: due(src, at, now, n->refresh);
	if (err)
		goto slow;
	if (!is_ip(inner.proto))
		return -NOT_IP;
	outer_tos = v6 ? bpf_ntohl(ip6->version_class_label) >> 20 : ip4->tos;
	if ((outer_tos & ECN_MASK) || inner.proto == bpf_htons(ETH_P_IPV6)) {
		__u8 *ip = f.data + OUTER_LEN(v6) + sizeof(struct ethhdr);

		/* Both families have what matters in the first bytes: TOS or class; IPv6's next header. */
		if ((void *)(ip + 7) > f.end)
			return -TRUNCATED;
		in.tos = inner.proto == bpf_htons(ETH_P_IP) ? ip[1] : ip[0] << 4 | ip[1] >> 4;
		if (ecn_decap_judged(outer_tos, in.tos)) {
			err = -OUTER_ECN;
			goto slow;
		}
		marks = ecn_decap_marks(outer_tos, in.tos);
		in.next = inner.proto == bpf_htons(ETH_P_IPV6) ? ip[6] : 0;
		if (is_nd(skb, OUTER_LEN(v6) + sizeof(struct ethhdr), &in))
			return -ND;
	}
	if (recent(src->slow, now))
		return -IN_ORDER;

	key = key_of_dst(n->net, inner);
	dst = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!dst)
		return -DST_UNKNOWN;
	at = place_of(dst);
	if (at.flags & ENTRY_PENDING)
		return -DST_UNKNOWN;
	if (at.kind == KIND_REMOTE)
		return -DST_REMOTE;
	if (at.kind == KIND_EGRESS)
		return -PORT_KIND;
	err = usable(dst, at, now, n->ageing) ?: there(skb, &key, at, now);
	if (err)
		return err;
	if (len - OUTER_LEN(v6) - sizeof(struct ethhdr) > at.mtu)
		return -MTU;

	err = decap_pull(skb, &f, inner, v6);
	if (err)
		return err;
	/* Cannot fail on an ECT packet whose header is linear and unshared, as adjust_room left it. */
	if (marks && bpf_skb_ecn_set_ce(skb) != 1)
		return -DROP_BROKEN;
	if (n->mss)
		mss_clamp(skb, n->mss);
	return deliver(skb, at);

slow:
	/* One store per tick: aggregates of a bulk flow come much faster than that. */
	if (src->slow != now)
		src->slow = now;
	return err;
}

/*
 * May a stack believe what an aggregate says about its checksum? GRO that merges leaves a checksum to be filled in
 * (CHECKSUM_PARTIAL). GRO that strings packets together (rx-gro-list) leaves what it knew of the first: verified, which
 * holds for all of them; a sum (COMPLETE), which is that of the first alone; or, where the sum of the outer UDP header
 * has used up what was verified, nothing (NONE), and the stack would sum up the string as if it were one packet. The
 * bridge takes the string apart again.
 */
static __always_inline int sum_of_whole(struct __sk_buff *skb)
{
	if (bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0)
		return 1;
	if (bpf_csum_update(skb, 0) >= 0)
		return 0;
	/* No helper tells PARTIAL from NONE, but only the latter can be raised to "verified". */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_INC);
	if (bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0)
		return 1;
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return 0;
}

/* After the kernel decapsulated: skip the bridge. `vtep` as in decap. Returns a tc verdict (>= 0) or a negative reason.
 */
static __always_inline int from_vxlan(struct __sk_buff *skb, const struct port *port, __u32 *vtep)
{
	struct fdb_entry *src, *dst;
	struct fdb_key key;
	struct place at = {}; /* clang reads it early */
	struct frame f;
	struct l2 eth;
	__u64 now;
	int err, show;

	if (port->mss && !skb->gso_size && !skb->vlan_present)
		mss_clamp(skb, port->mss);
	err = frame_need(skb, &f, sizeof(struct ethhdr));
	if (err)
		return err;
	eth = l2_read(f.data);
	now = bpf_ktime_get_coarse_ns();

	key = key_of_src(port->net, eth);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	/* Which VTEP it came from, the vxlan device has learnt or refused already. */
	if (src) {
		at = place_of(src);
		err = source_check(&key, at, at.kind == KIND_REMOTE, ENTRY_STICKY);
	}
	if (port->flags & PLACE_OFF)
		return -NOT_READY;
	if (skb->vlan_present)
		return -VLAN_TAG;
	if (!src)
		return -SRC_UNKNOWN;
	if (err)
		return err;
	*vtep = at.to;
	show = due(src, at, now, port->refresh);
	if (show == -REFRESH)
		src->seen = now;
	if (l2_is_multicast(eth))
		return -BUM;
	if (!is_ip(eth.proto))
		return -NOT_IP;
	key = key_of_dst(port->net, eth);
	if (eth.proto == bpf_htons(ETH_P_IPV6)) {
		struct inner in;

		/* A truncated header is the bridge's as well: it looks for neighbour discovery, too. */
		err = bpf_skb_load_bytes(skb, sizeof(struct ethhdr) + __builtin_offsetof(struct ipv6hdr, nexthdr),
		                         &in.next, 1);
		if (err)
			return -TRUNCATED;
		if (is_nd(skb, sizeof(struct ethhdr), &in))
			return -ND;
	}

	dst = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!dst)
		return -DST_UNKNOWN;
	at = place_of(dst);
	if (at.flags & ENTRY_PENDING)
		return -DST_UNKNOWN;
	if (at.kind == KIND_REMOTE)
		return -DST_REMOTE;
	err = show ?: usable(dst, at, now, port->ageing) ?: there(skb, &key, at, now);
	if (err)
		return err;
	if (skb->gso_size && !sum_of_whole(skb))
		return -AGGREGATE;
	/* The bridge lets an aggregate pass whatever its segments' size (is_skb_forwardable). */
	if (!skb->gso_size && skb->len - sizeof(struct ethhdr) > at.mtu)
		return -MTU;
	return deliver(skb, at);
}

/* Verdict and counter for what encap, decap and from_vxlan return. */
static __always_inline int conclude(struct __sk_buff *skb, __u32 net, enum hook hook, int ret, __u32 packets,
                                    __u32 bytes)
{
	count(net, hook, ret < 0 ? -ret : FAST, packets, bytes);
	capture_leave(skb, net, ret, drops(ret));
	if (ret >= 0)
		return ret;
	return drops(ret) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* tc ingress of each bridge port, tc egress of the bridge device (the host's own packets). */
SEC("tc")
int vx_tc_encap(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, packets = skb->gso_segs, bytes = skb->len, vtep = 0;
	struct port *port = bpf_map_lookup_elem(&vx_port, &ifindex);
	int ret;

	if (!port)
		return TC_ACT_UNSPEC;
	capture_enter(skb, HOOK_ENCAP);
	ret = encap(skb, port, &vtep);
	count_vtep(vtep, ret < 0 ? WAY_SENT_SLOW : WAY_SENT_FAST, packets, bytes);
	return conclude(skb, port->net, HOOK_ENCAP, ret, packets, bytes);
}

/* tc ingress of the underlay device. */
SEC("tc")
int vx_tc_decap(struct __sk_buff *skb)
{
	__u32 packets = skb->gso_segs, bytes = skb->len, net = 0, vtep = 0;
	__be16 proto = skb->protocol;
	int ret;

	capture_enter(skb, HOOK_DECAP);
	if (proto == bpf_htons(ETH_P_IP)) {
		ret = decap(skb, &net, &vtep, 0);
		bytes -= OUTER_LEN(0);
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		ret = decap(skb, &net, &vtep, 1);
		bytes -= OUTER_LEN(1);
	} else if (skb->vlan_present && skb->pkt_type != PACKET_OTHERHOST) {
		ret = odd(skb, &net, 0);
	} else {
		return TC_ACT_UNSPEC;
	}
	if (!net && ret != -DROP_STRANGER)
		return TC_ACT_UNSPEC;
	/* What the kernel decapsulates is counted at its device. */
	if (ret >= 0)
		count_vtep(vtep, WAY_RECEIVED_FAST, packets, bytes);
	return conclude(skb, net, HOOK_DECAP, ret, packets, bytes);
}

/*
 * tc ingress of an underlay device all of whose networks are on the kernel path:
 * the outer source check alone.
 */
SEC("tc")
int vx_tc_guard(struct __sk_buff *skb)
{
	__u32 packets = skb->gso_segs, bytes = skb->len, net = 0;

	capture_enter(skb, HOOK_DECAP);
	if (skb->pkt_type == PACKET_OTHERHOST || odd(skb, &net, 1) != -DROP_STRANGER)
		return TC_ACT_UNSPEC;
	return conclude(skb, net, HOOK_DECAP, -DROP_STRANGER, packets, bytes);
}

/* tc ingress of each vxlan device. */
SEC("tc")
int vx_tc_deliver(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, packets = skb->gso_segs, bytes = skb->len, vtep = 0;
	struct port *port = bpf_map_lookup_elem(&vx_port, &ifindex);
	int ret;

	if (!port)
		return TC_ACT_UNSPEC;
	capture_enter(skb, HOOK_DELIVER);
	ret = from_vxlan(skb, port, &vtep);
	count_vtep(vtep, ret < 0 ? WAY_RECEIVED_SLOW : WAY_RECEIVED_FAST, packets, bytes);
	return conclude(skb, port->net, HOOK_DELIVER, ret, packets, bytes);
}

/*
 * tc egress of each vxlan device: what the kernel forwards to the other hosts
 * comes from here. SYNs are clamped, as vx_tc_encap does to its own. That the
 * kernel took a frame of a local source shows here, too. A frame from a port that carries no program (yet:
 * the daemon is busy, or dead) shows only here that its source has moved. Counts nothing: where there is a program at
 * the port, that has.
 */
SEC("tc")
int vx_tc_moved(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&vx_port, &ifindex);
	struct fdb_entry *src;
	struct fdb_key key;
	struct place at;
	struct frame f;
	struct l2 eth;
	__u64 now;

	if (!port)
		return TC_ACT_UNSPEC;
	capture_enter(skb, CAPTURE_MOVED);
	capture_leave(skb, port->net, 0, 0);
	if (port->mss && !skb->gso_size && !skb->vlan_present)
		mss_clamp(skb, port->mss);
	if (frame_need(skb, &f, sizeof(struct ethhdr)))
		return TC_ACT_UNSPEC;
	eth = l2_read(f.data);
	key = key_of_src(port->net, eth);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!src)
		return TC_ACT_UNSPEC;
	at = place_of(src);
	/* In hairpin mode a flooded frame of a remote source comes back out of the device that it came in by. */
	if ((at.kind == KIND_REMOTE ? ifindex : at.to) != skb->ingress_ifindex) {
		if (!(at.flags & ENTRY_STICKY))
			fdb_remove(&key);
	} else if (at.kind != KIND_REMOTE) {
		now = bpf_ktime_get_coarse_ns();
		if (older(src->seen, now, port->refresh))
			src->seen = now;
	}
	return TC_ACT_UNSPEC;
}

/* The family of the outer packet, or of the frame, by its EtherType. */
static __always_inline __be16 xdp_proto(const struct xdp_md *xdp)
{
	struct frame f = xdp_frame(xdp);

	return f.data + sizeof(struct ethhdr) > f.end ? 0 : l2_read(f.data).proto;
}

/* Verdict and counter for what xdp_decap and xdp_encap return. */
static __always_inline int xdp_conclude(struct xdp_md *xdp, __u32 net, enum hook hook, int ret, __u32 bytes)
{
	count(net, hook, ret < 0 ? -ret : FAST, 1, bytes);
	capture_leave_xdp(xdp, net, ret, drops(ret));
	if (ret >= 0)
		return ret;
	return drops(ret) ? XDP_DROP : XDP_PASS;
}

/* The underlay device's driver. */
SEC("xdp")
int vx_xdp_decap(struct xdp_md *xdp)
{
	__u32 bytes = xdp_len(xdp), net = 0, vtep = 0;
	__be16 proto = xdp_proto(xdp);
	int ret;

	capture_enter_xdp(xdp, HOOK_XDP_DECAP);
	if (proto == bpf_htons(ETH_P_IP)) {
		ret = xdp_decap(xdp, &net, &vtep, 0, 0);
		bytes -= OUTER_LEN(0);
	} else if (proto == bpf_htons(ETH_P_IPV6)) {
		ret = xdp_decap(xdp, &net, &vtep, 0, 1);
		bytes -= OUTER_LEN(1);
	} else {
		return XDP_PASS;
	}
	if (!net)
		return XDP_PASS;
	if (ret > 0)
		count_vtep(vtep, WAY_RECEIVED_FAST, 1, bytes);
	return xdp_conclude(xdp, net, HOOK_XDP_DECAP, ret, bytes);
}

/* The same place, for the outer source check alone. */
SEC("xdp")
int vx_xdp_guard(struct xdp_md *xdp)
{
	__u32 bytes = xdp_len(xdp), net = 0, vtep = 0;
	__be16 proto = xdp_proto(xdp);
	int ret;

	capture_enter_xdp(xdp, HOOK_XDP_DECAP);
	if (proto == bpf_htons(ETH_P_IP))
		ret = xdp_decap(xdp, &net, &vtep, 1, 0);
	else if (proto == bpf_htons(ETH_P_IPV6))
		ret = xdp_decap(xdp, &net, &vtep, 1, 1);
	else
		return XDP_PASS;
	if (!net)
		return XDP_PASS;
	return xdp_conclude(xdp, net, HOOK_XDP_DECAP, ret, bytes);
}

/* The driver of a bridge port that delivers raw frames: a tap, a physical port, a representor. */
SEC("xdp")
int vx_xdp_encap(struct xdp_md *xdp)
{
	__u32 ifindex = xdp->ingress_ifindex, bytes = xdp_len(xdp), vtep = 0;
	struct port *port = bpf_map_lookup_elem(&vx_port, &ifindex);
	int ret;

	if (!port)
		return XDP_PASS;
	capture_enter_xdp(xdp, HOOK_XDP_ENCAP);
	ret = xdp_encap(xdp, port, &vtep);
	/* What goes up is counted there. */
	if (ret > 0)
		count_vtep(vtep, WAY_SENT_FAST, 1, bytes);
	return xdp_conclude(xdp, port->net, HOOK_XDP_ENCAP, ret, bytes);
}

/* Types that only appear as constants would be missing from BTF, and so from Go. */
volatile const enum entry_kind vx_btf_kind;
volatile const enum entry_flag vx_btf_entry_flag;
volatile const enum place_flag vx_btf_place_flag;
volatile const enum vtep_flag vx_btf_vtep_flag;
volatile const enum control_key vx_btf_control_key;
volatile const enum source_net vx_btf_source_net;
volatile const enum vni_none vx_btf_vni_none;
volatile const enum hook vx_btf_hook;
volatile const enum way vx_btf_way;
volatile const enum reason vx_btf_reason;
#ifdef VX_CAPTURE
volatile const enum fate vx_btf_fate;
#endif

char _license[] SEC("license") = "Dual BSD/GPL";
