/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few facts of the kernel's user ABI that the data path needs: integer
 * types, the tc context, header layouts, constants. Written here instead of
 * including linux/bpf.h, so that the object is the same on every build machine,
 * whatever its kernel headers. Must not know vxbpf's own types.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;

/* enum bpf_map_type (linux/bpf.h), the ones in use. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_PERCPU_HASH = 10,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_DEVMAP_HASH = 25, /* 5.4 */
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

/* map_flags */
enum {
	BPF_F_NO_PREALLOC = 1,
};

/* The tc program context, up to the last field in use (linux/bpf.h). */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk;
	__u32 gso_size;
};

/* The XDP program context (linux/bpf.h). */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

/* Verdicts of XDP programs (linux/bpf.h). */
enum {
	XDP_DROP = 1,
	XDP_PASS = 2,
	XDP_REDIRECT = 4,
};

/* Verdicts of tc programs (linux/pkt_cls.h, linux/bpf.h). */
enum {
	/* To the next program, then the stack. */
	TC_ACT_UNSPEC = -1,
	TC_ACT_SHOT = 2,
};

/* skb->pkt_type (linux/if_packet.h) */
enum {
	PACKET_HOST = 0,
	PACKET_BROADCAST = 1,
	PACKET_MULTICAST = 2,
	PACKET_OTHERHOST = 3,
};

/* bpf_skb_adjust_room (linux/bpf.h) */
enum {
	BPF_ADJ_ROOM_MAC = 1,
};

enum {
	BPF_F_ADJ_ROOM_FIXED_GSO = 1 << 0,
	BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 = 1 << 1,
	BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 = 1 << 2,
	BPF_F_ADJ_ROOM_ENCAP_L4_UDP = 1 << 4,
	BPF_F_ADJ_ROOM_ENCAP_L2_ETH = 1 << 6,  /* 5.13 */
	BPF_F_ADJ_ROOM_DECAP_L3_IPV4 = 1 << 7, /* 6.3 */
	BPF_F_ADJ_ROOM_DECAP_L3_IPV6 = 1 << 8, /* 6.3 */
};

#define BPF_F_ADJ_ROOM_ENCAP_L2(len) (((__u64)(len) & 0xff) << 56)

/* bpf_redirect */
enum {
	BPF_F_INGRESS = 1,
};

/* bpf_csum_level */
enum {
	BPF_CSUM_LEVEL_QUERY = 0,
	BPF_CSUM_LEVEL_INC = 1,
	BPF_CSUM_LEVEL_DEC = 2,
};

enum {
	ETH_P_IP = 0x0800,
	ETH_P_IPV6 = 0x86dd,
	ETH_P_8021Q = 0x8100,
	ETH_P_8021AD = 0x88a8,
};

enum {
	IPPROTO_ICMP = 1,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_ICMPV6 = 58,
};

/* iphdr.frag_off, host order */
enum {
	IP_DF = 0x4000,
	IP_MF = 0x2000,
	IP_FRAGMENT = 0x3fff, /* more fragments, offset */
	IP_OFFSET = 0x1fff,
};

/* Tag control information of 802.1Q: the VLAN's number; 0 is a priority and no VLAN. */
enum {
	VLAN_VID_MASK = 0x0fff,
};

enum {
	ENODEV = 19,
	EALREADY = 114,
};

/*
 * Headers as on the wire, none of them with padding. Not "packed": to that clang
 * answers with loads and stores of single bytes. The verifier takes unaligned
 * access to packets wherever the CPU does.
 */
struct ethhdr {
	__u8 h_dest[6];
	__u8 h_source[6];
	__be16 h_proto;
};

/* RFC 791. version and ihl share a byte: 0x45 is "IPv4, no options". */
struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

/* RFC 8200 */
struct ipv6hdr {
	__be32 version_class_label;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__sum16 check;
};

/* RFC 7348 section 5: flags and reserved bits, then the VNI in the upper 24 bits. */
struct vxlanhdr {
	__be32 flags;
	__be32 vni;
};
