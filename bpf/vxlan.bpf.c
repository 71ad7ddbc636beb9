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
 */
#include "config.h"
#include "decap.h"
#include "encap.h"
#include "headers/bpf_endian.h"
#include "headers/bpf_helpers.h"
#include "kernel.h"
#include "maps.h"
#include "parse.h"
#include "types.h"
#include "verdict.h"

/* The half of an entry that says where a MAC lives, as it was at one moment. */
struct place {
	__u8 kind;
	__u8 flags;
	__u16 mtu;
	__u32 to;
};

static __always_inline struct place place_of(const struct fdb_entry *e)
{
	union {
		__u64 word;
		struct place place;
	} u = {.word = *(const volatile __u64 *)e};

	return u.place;
}

/* Clocks of two CPUs may differ by a tick, so a stamp may lie ahead. */
static __always_inline int older(__u64 stamp, __u64 now, __u64 age)
{
	return (__s64)(now - stamp) > (__s64)age;
}

/* So lately that a frame of then may still be on its way through the slow path. */
static __always_inline int recent(__u64 stamp, __u64 now)
{
	return (__s64)(now - stamp) < (__s64)vx_hold_ns;
}

/*
 * The source check: the fast path carries only frames from which the kernel has
 * nothing to learn. `here` says that the frame came from where the entry says
 * its source lives. Every frame of a known source passes this, BUM too, so a
 * move shows at the first frame from the new place, and `seen` tells truly when
 * the kernel last had one: it is stamped only for a frame that the kernel will
 * take for sure.
 */
static __always_inline int source_check(struct fdb_key *key, struct fdb_entry *src, struct place at, int here, int sure,
                                        __u64 now, __u64 refresh)
{
	if (!here) {
		if (!(at.flags & ENTRY_STATIC))
			bpf_map_delete_elem(&vx_fdb, key);
		return -SRC_MOVED;
	}
	if (sure && !(at.flags & ENTRY_STATIC) && older(src->seen, now, refresh)) {
		src->seen = now;
		return -REFRESH;
	}
	return 0;
}

/* May the kernel's entry behind this one have aged out, or its writer be dead? */
static __always_inline int usable(const struct fdb_entry *e, struct place at, __u64 now, __u64 ageing)
{
	if (at.flags & ENTRY_STATIC)
		return lease_fresh(now) ? 0 : -NO_LEASE;
	return ageing && older(e->seen, now, ageing) ? -DST_AGED : 0;
}

static __always_inline void fdb_key_set(struct fdb_key *key, __u16 net, const __u8 *mac)
{
	key->net = net;
	__builtin_memcpy(key->mac, mac, sizeof(key->mac));
}

static __always_inline int is_ip(__be16 proto)
{
	return proto == bpf_htons(ETH_P_IP) || proto == bpf_htons(ETH_P_IPV6);
}

/* From a bridge port towards a VTEP. Returns a tc verdict (>= 0) or a negative reason. */
static __always_inline int encap(struct __sk_buff *skb, const struct port *port)
{
	__u32 gso_size = skb->gso_size; /* once: clang would keep a pointer to the field, which the verifier refuses */
	struct fdb_entry *src, *dst;
	struct fdb_key key;
	struct ethhdr *eth;
	__u16 flags, mtu;
	struct place at;
	struct vtep *v;
	struct frame f;
	__be16 proto;
	__u64 now;
	__u32 len;
	__u8 tos;
	int err;

	if (port->flags & PLACE_OFF)
		return -NOT_READY;
	if (skb->vlan_present)
		return -VLAN_TAG;
	err = frame_need(skb, &f, sizeof(*eth) + sizeof(struct iphdr));
	if (err)
		return err;
	eth = f.data;
	now = bpf_ktime_get_coarse_ns();

	fdb_key_set(&key, port->net, eth->h_source);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!src)
		return -SRC_UNKNOWN;
	at = place_of(src);
	err = source_check(&key, src, at, at.kind != KIND_REMOTE && at.to == skb->ifindex, 1, now, port->refresh);
	if (err)
		return err;
	if (mac_is_multicast(eth->h_dest))
		return -BUM;
	proto = eth->h_proto;
	if (!is_ip(proto))
		return -NOT_IP;

	fdb_key_set(&key, port->net, eth->h_dest);
	dst = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!dst)
		return -DST_UNKNOWN;
	at = place_of(dst);
	if (at.kind != KIND_REMOTE)
		return -DST_LOCAL;
	err = usable(dst, at, now, port->ageing);
	if (err)
		return err;
	v = bpf_map_lookup_elem(&vx_vtep, &at.to);
	if (!v)
		return -NO_VTEP;
	flags = *(volatile __u16 *)&v->flags;
	if (!(flags & VTEP_READY))
		return -NO_VTEP;

	if (proto == bpf_htons(ETH_P_IPV6)) {
		err = frame_need(skb, &f, sizeof(*eth) + sizeof(struct ipv6hdr));
		if (err)
			return err;
	}
	err = inner_tos(&f, sizeof(*eth), proto, &tos);
	if (err)
		return err;

	len = skb->len;
	if (gso_size) {
		err = gso_frame_len(skb, &f, proto, gso_size, &len);
		if (err)
			return err;
	}
	/* What does not fit is the kernel's to fragment or to answer with "too big". */
	mtu = v->mtu;
	if (len + OUTER4_L3 > mtu || len - sizeof(*eth) > port->mtu)
		return -MTU;

	err = encap4(skb, &f, v, port->vni, proto, tos, gso_size);
	if (err)
		return err;
	/* Both before and after the template was copied: its writer clears the flag around a change. */
	flags &= *(volatile __u16 *)&v->flags;
	if ((flags & VTEP_MACS) && lease_fresh(now))
		return bpf_redirect(v->ifindex, 0);
	/* Nobody vouches for the template's MAC addresses: the neighbour table is always right. */
	return bpf_redirect_neigh(v->ifindex, 0, 0, 0);
}

/* Hand a decapsulated frame to a local port. Returns a tc verdict. */
static __always_inline int deliver(struct __sk_buff *skb, struct place at)
{
	if (at.kind == KIND_PEER) {
		/* The frame is for the container, not for us: a stack drops what says "other host". */
		if (skb->pkt_type != PACKET_HOST)
			bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(at.to, 0);
	}
	return bpf_redirect(at.to, at.kind == KIND_HOST ? BPF_F_INGRESS : 0);
}

/*
 * From the underlay. `net` is set as soon as the packet is known to be ours.
 * Returns a tc verdict (>= 0) or a negative reason; with `net` still 0 the
 * packet is not VXLAN of ours, and not counted.
 */
static __always_inline int decap(struct __sk_buff *skb, __u32 *net)
{
	__u32 gso_size = skb->gso_size, len = skb->len;
	struct fdb_entry *src, *dst;
	int err, outer, multicast;
	struct vni_key vkey = {};
	struct network *n;
	struct ethhdr inner;
	struct fdb_key key;
	struct outer4 *o;
	struct place at;
	struct vtep *v;
	struct frame f;
	__u64 now;
	__u8 tos;

	multicast = skb->pkt_type == PACKET_MULTICAST;
	if (skb->protocol != bpf_htons(ETH_P_IP) || (skb->pkt_type != PACKET_HOST && !multicast) || skb->vlan_present)
		return 0;
	if (frame_need(skb, &f, OUTER4_LEN + sizeof(inner)))
		return 0;
	o = f.data;
	/* Fragments (all but "don't fragment" set) and IP options are reassembled and judged by the kernel. */
	if (o->ip.version_ihl != 0x45 || o->ip.protocol != IPPROTO_UDP || (o->ip.frag_off & ~bpf_htons(0x4000)))
		return 0;
	if (!(o->vxlan.flags & VXLAN_FLAG_I))
		return 0;
	vkey.vni = bpf_ntohl(o->vxlan.vni) >> 8;
	vkey.port = o->udp.dest;
	n = bpf_map_lookup_elem(&vx_vni, &vkey);
	if (!n)
		return 0;
	*net = n->net;
	if (n->flags & PLACE_OFF)
		return -NOT_READY;
	if (o->ip.daddr != n->local && !multicast)
		return -OUTER_NOT_LOCAL;
	outer = outer4_check(skb, o, len, gso_size);
	if (outer == -OUTER_MALFORMED)
		return outer;

	__builtin_memcpy(&inner, f.data + OUTER4_LEN, sizeof(inner));
	now = bpf_ktime_get_coarse_ns();
	fdb_key_set(&key, n->net, inner.h_source);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!src)
		return -SRC_UNKNOWN;
	at = place_of(src);
	v = 0;
	if (at.kind == KIND_REMOTE)
		v = bpf_map_lookup_elem(&vx_vtep, &at.to);
	err = source_check(&key, src, at, v && v->remote == o->ip.saddr, outer == 0, now, n->refresh);
	if (err == -SRC_MOVED)
		return err;
	if (!err && (multicast || mac_is_multicast(inner.h_dest)))
		return -BUM;
	err = err ?: outer;
	if (err)
		goto slow;
	if (!is_ip(inner.h_proto))
		return -NOT_IP;
	if (o->ip.tos & ECN_MASK) {
		/* Both families have what matters in the first two bytes. */
		__u8 *ip = f.data + OUTER4_LEN + sizeof(inner);

		if ((void *)(ip + 2) > f.end)
			return -TRUNCATED;
		tos = inner.h_proto == bpf_htons(ETH_P_IP) ? ip[1] : ip[0] << 4 | ip[1] >> 4;
		if (ecn_decap_changes(o->ip.tos, tos)) {
			err = -OUTER_ECN;
			goto slow;
		}
	}
	if (recent(src->slow, now))
		return -IN_ORDER;

	fdb_key_set(&key, n->net, inner.h_dest);
	dst = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!dst)
		return -DST_UNKNOWN;
	at = place_of(dst);
	if (at.kind == KIND_REMOTE)
		return -DST_REMOTE;
	if (at.kind == KIND_EGRESS)
		return -PORT_KIND;
	if (at.kind == KIND_PEER) {
		err = usable(dst, at, now, n->ageing);
		if (err)
			return err;
	}
	if (len - OUTER4_LEN - sizeof(inner) > at.mtu)
		return -MTU;

	err = decap4(skb, &f, &inner);
	if (err)
		return err;
	return deliver(skb, at);

slow:
	/* One store per tick: aggregates of a bulk flow come much faster than that. */
	if (src->slow != now)
		src->slow = now;
	return err;
}

/* After the kernel decapsulated: skip the bridge. Returns a tc verdict (>= 0) or a negative reason. */
static __always_inline int from_vxlan(struct __sk_buff *skb, const struct port *port)
{
	struct fdb_entry *src, *dst;
	struct fdb_key key;
	struct ethhdr *eth;
	struct place at;
	struct frame f;
	__u64 now;
	int err;

	if (port->flags & PLACE_OFF)
		return -NOT_READY;
	if (skb->vlan_present)
		return -VLAN_TAG;
	err = frame_need(skb, &f, sizeof(*eth));
	if (err)
		return err;
	eth = f.data;
	now = bpf_ktime_get_coarse_ns();

	fdb_key_set(&key, port->net, eth->h_source);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!src)
		return -SRC_UNKNOWN;
	/* Which VTEP it came from, the vxlan device has learnt or refused already. */
	at = place_of(src);
	err = source_check(&key, src, at, at.kind == KIND_REMOTE, 1, now, port->refresh);
	if (err)
		return err;
	/* vx_tc_decap just let a frame through for the kernel's sake: the bridge must see it too. */
	if (!(at.flags & ENTRY_STATIC) && recent(src->seen, now))
		return -REFRESH;
	if (mac_is_multicast(eth->h_dest))
		return -BUM;
	if (!is_ip(eth->h_proto))
		return -NOT_IP;

	fdb_key_set(&key, port->net, eth->h_dest);
	dst = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!dst)
		return -DST_UNKNOWN;
	at = place_of(dst);
	if (at.kind == KIND_REMOTE)
		return -DST_REMOTE;
	if (at.kind != KIND_HOST) {
		err = usable(dst, at, now, port->ageing);
		if (err)
			return err;
	}
	/* The bridge lets an aggregate pass whatever its segments' size (is_skb_forwardable). */
	if (!skb->gso_size && skb->len - sizeof(*eth) > at.mtu)
		return -MTU;
	return deliver(skb, at);
}

/* Verdict and counter for what encap, decap and from_vxlan return. */
static __always_inline int conclude(__u32 net, enum hook hook, int ret, __u32 packets, __u32 bytes)
{
	count(net, hook, ret < 0 ? -ret : FAST, packets, bytes);
	if (ret >= 0)
		return ret;
	return ret == -DROP_BROKEN ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* tc ingress of each bridge port, tc egress of the bridge device (the host's own packets). */
SEC("tc")
int vx_tc_encap(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, packets = skb->gso_segs, bytes = skb->len;
	struct port *port = bpf_map_lookup_elem(&vx_port, &ifindex);

	if (!port)
		return TC_ACT_UNSPEC;
	return conclude(port->net, HOOK_ENCAP, encap(skb, port), packets, bytes);
}

/* tc ingress of the underlay device. */
SEC("tc")
int vx_tc_decap(struct __sk_buff *skb)
{
	__u32 packets = skb->gso_segs, bytes = skb->len, net = 0;
	int ret = decap(skb, &net);

	if (!net)
		return TC_ACT_UNSPEC;
	return conclude(net, HOOK_DECAP, ret, packets, bytes - OUTER4_LEN);
}

/* tc ingress of each vxlan device. */
SEC("tc")
int vx_tc_deliver(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, packets = skb->gso_segs, bytes = skb->len;
	struct port *port = bpf_map_lookup_elem(&vx_port, &ifindex);

	if (!port)
		return TC_ACT_UNSPEC;
	return conclude(port->net, HOOK_DELIVER, from_vxlan(skb, port), packets, bytes);
}

/*
 * tc egress of each vxlan device: what the kernel forwards to the other hosts
 * comes from here. A frame from a port that carries no program (yet: the daemon
 * is busy, or dead) shows only here that its source has moved. Counts nothing:
 * where there is a program at the port, that has.
 */
SEC("tc")
int vx_tc_moved(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct port *port = bpf_map_lookup_elem(&vx_port, &ifindex);
	struct fdb_entry *src;
	struct fdb_key key;
	struct ethhdr *eth;
	struct place at;
	struct frame f;

	if (!port || frame_need(skb, &f, sizeof(*eth)))
		return TC_ACT_UNSPEC;
	eth = f.data;
	fdb_key_set(&key, port->net, eth->h_source);
	src = bpf_map_lookup_elem(&vx_fdb, &key);
	if (!src)
		return TC_ACT_UNSPEC;
	at = place_of(src);
	if ((at.flags & ENTRY_STATIC) || at.kind == KIND_HOST)
		return TC_ACT_UNSPEC;
	if (at.kind == KIND_REMOTE || at.to != skb->ingress_ifindex)
		bpf_map_delete_elem(&vx_fdb, &key);
	return TC_ACT_UNSPEC;
}

/* Types that only appear as constants would be missing from BTF, and so from Go. */
volatile const enum entry_kind vx_btf_kind;
volatile const enum entry_flag vx_btf_entry_flag;
volatile const enum place_flag vx_btf_place_flag;
volatile const enum vtep_flag vx_btf_vtep_flag;
volatile const enum hook vx_btf_hook;
volatile const enum reason vx_btf_reason;

char _license[] SEC("license") = "Dual BSD/GPL";
