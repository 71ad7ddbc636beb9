/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every struct and number that C and Go share. bpf2go turns them into Go
 * types; the asserts keep keys free of unnamed padding. Must not know maps.
 */
#pragma once

#include "kernel.h"

/* Where packets are looked at; the second index of a network's counters. */
enum hook {
	HOOK_ENCAP,     /* ingress of a bridge port, or egress of the bridge device */
	HOOK_DECAP,     /* ingress of the underlay device */
	HOOK_DELIVER,   /* ingress of the vxlan device, after the kernel decapsulated */
	HOOK_XDP_DECAP, /* the underlay device's driver, before there is an skb */
	HOOK_XDP_ENCAP, /* the driver of a bridge port that delivers raw frames */
	HOOK_MAX = 8,
};

/*
 * What became of a packet. Append only: the numbers are the first index of a
 * network's counters, the lower-case names are metric labels and the words in
 * `vxbpf status`. All but FAST and DROP_* return the packet to the kernel.
 */
enum reason {
	FAST,            /* carried by BPF */
	BUM,             /* broadcast, multicast: the kernel floods */
	SRC_UNKNOWN,     /* the kernel has the inner source MAC to learn */
	SRC_MOVED,       /* the inner source MAC was known elsewhere */
	REFRESH,         /* due: the kernel must see a frame of this MAC to keep its entry young */
	DST_UNKNOWN,     /* no FDB entry for the inner destination */
	DST_LOCAL,       /* from a port of this bridge to another: the bridge's own work */
	DST_REMOTE,      /* from a VTEP to a VTEP: the kernel never forwards that */
	DST_AGED,        /* the entry outlived the ageing time with no frame from that MAC */
	NO_LEASE,        /* static entry and no living daemon to vouch for it */
	NOT_IP,          /* inner frame is neither IPv4 nor IPv6 (ARP, 802.1Q, LLC) */
	VLAN_TAG,        /* a tag in the packet's metadata */
	MTU,             /* a segment is larger than the path, the link or the port takes */
	GSO_HEADERS,     /* headers of a GSO packet could not be measured */
	TOO_LONG,        /* outer packet over 65535 bytes */
	NESTED,          /* a GSO packet that is encapsulated already */
	ADJUST_FAILED,   /* bpf_skb_adjust_room refused, packet unchanged */
	NO_VTEP,         /* entry without a usable outer header */
	OUTER_CSUM,      /* outer UDP checksum that nobody has verified yet */
	OUTER_MALFORMED, /* outer lengths, header checksum, or VXLAN flags that the kernel must judge */
	OUTER_ECN,       /* outer ECN over which RFC 6040 drops, logs or makes ECT(0) ECT(1): the kernel's */
	OUTER_NOT_LOCAL, /* our VNI, but not sent to our VTEP address */
	AGGREGATE,       /* GRO aggregate: the vxlan device splits the tunnel state off */
	IN_ORDER,        /* a frame of this MAC took the slow path a moment ago: do not overtake */
	PORT_KIND,       /* this port is served from the vxlan device */
	TRUNCATED,       /* headers not there */
	NOT_READY,       /* the daemon keeps this port or network on the slow path, `vxbpf status` says why */
	DROP_BROKEN,     /* a helper failed after the packet was changed: cannot be returned */
	SRC_STATIC,      /* the same, where the kernel does not let it move: it drops the frame, or does not learn */
	ND,              /* IPv6 neighbour discovery: the bridge may answer in the neighbour's place */
	PORT_GONE,       /* the destination's port is gone, and no daemon is there to say so */
	DROP_STRANGER,   /* the outer source may not send to this network: dropped before the kernel decapsulates */
	MSS,             /* XDP: a SYN whose MSS may have to be lowered, which only a tc program does */
	INNER_CSUM,      /* XDP: the inner transport checksum is not right (yet) */
	REASON_MAX = 64,
};

/*
 * A VTEP's share of the packets, by direction and way: the index of its
 * counters. Sent: towards a known MAC behind it. Received: from a MAC
 * that is known to live there, and counted where its way ends, so once.
 */
enum way {
	WAY_SENT_FAST,
	WAY_SENT_SLOW,
	WAY_RECEIVED_FAST,
	WAY_RECEIVED_SLOW,
	WAY_MAX,
};

enum entry_kind {
	KIND_REMOTE = 1,
	KIND_PEER = 2,
	KIND_EGRESS = 3,
	KIND_HOST = 4,
};

enum entry_flag {
	ENTRY_STATIC = 1,   /* never ages; the daemon vouches for it */
	ENTRY_STICKY = 2,   /* no frame from another port moves it: sticky in the bridge, or the bridge's own */
	ENTRY_PINNED = 4,   /* no frame from another VTEP moves it: static in the vxlan device, which may not learn */
	ENTRY_RAW = 16,     /* the port takes raw frames: XDP may deliver all but TCP */
	ENTRY_RAW_TCP = 32, /* and TCP: nobody behind it would have it in larger packets */
	ENTRY_RAW_SG = 64,  /* frames in several buffers too */
	ENTRY_PENDING = 8,  /* the daemon has yet to ask the kernel again: shows moves, carries nothing */
};

/* vx_fdb: one compare of 8 bytes. */
struct fdb_key {
	__u64 word; /* network in the lower 16 bits, then the MAC address as its bytes lie in a frame */
};

/* The first 8 bytes are read as one: the element may be given to another key under a running program. */
struct fdb_entry {
	__u8 kind;  /* enum entry_kind */
	__u8 flags; /* enum entry_flag */
	__u16 mtu;  /* bytes after the Ethernet header that the port takes; local kinds */
	__u32 to;   /* ifindex of the port, or of the bridge device for KIND_HOST; index into vx_vtep for KIND_REMOTE */
	__u64 seen; /* ns, CLOCK_MONOTONIC_COARSE: when the kernel last had a frame from this MAC */
	__u64 slow; /* ns, same clock: when a received unicast frame of this MAC last took the slow path */
};

/* vx_vni: UDP port too, since the kernel tells networks apart by both. */
struct vni_key {
	__u32 vni;   /* host order, 24 bits */
	__be16 port; /* UDP destination port */
	__u16 pad;
};

enum place_flag {
	PLACE_OFF = 1,     /* count, but leave every packet to the kernel */
	PLACE_V6 = 2,      /* network: the outer packets are IPv6 */
	PLACE_ZERO6 = 4,   /* network: an outer UDP checksum of 0 is fine over IPv6 (RFC 6935) */
	PLACE_ANY = 8,     /* network: whoever reaches us may send to it */
	PLACE_FOLLOW = 16, /* network: vx_source follows the kernel's FDB, so it counts while a daemon does that */
	PLACE_GUARD = 32,  /* network on the kernel path: only the source check is ours */
	PLACE_SOFT = 64,   /* XDP: frames may lack a transport checksum that a device was to fill in */
	PLACE_SG = 128,    /* port: XDP: the underlay device takes frames in several buffers */
};

struct network {
	__u16 net;
	__u16 flags; /* enum place_flag */
	__u16 mss;   /* as in struct port */
	__u16 pad;
	__be32 local[4]; /* address of our VTEP; IPv4 in the first word, the others 0 */
	__u64 refresh;   /* ns: show the kernel a frame of each MAC this often */
	__u64 ageing;    /* ns: the kernel's ageing time; 0: never */
	__u64 mac;       /* of the underlay device, as its bytes lie in a frame, upper 16 bits 0; 0: not for XDP */
};

/* vx_port: by ifindex; bridge ports, the bridge device, the vxlan device. */
struct port {
	__u16 net;
	__u16 mtu;   /* bytes after the Ethernet header that the vxlan device takes */
	__be32 vni;  /* as on the wire: upper 24 bits */
	__u32 flags; /* enum place_flag */
	__u16 mss;   /* bytes: largest TCP segment plus its IP and TCP headers that a SYN may announce; 0: any */
	__u16 pad;
	__u64 refresh;
	__u64 ageing;
};

enum vtep_flag {
	VTEP_READY = 1,       /* the template may be used */
	VTEP_MACS = 2,        /* both Ethernet addresses are right while the lease lasts */
	VTEP_V6 = 4,          /* the outer packet is IPv6 */
	VTEP_TTL_INHERIT = 8, /* TTL, TOS, don't-fragment from the inner packet */
	VTEP_TOS_INHERIT = 16,
	VTEP_DF_INHERIT = 32,
	VTEP_TTL_AUTO = 64,  /* the TTL is the system's or the route's; for the daemon that takes the map over */
	VTEP_SRC_AUTO = 128, /* so is the source address */
	VTEP_KNOWN = 256,    /* `remote` is right, whether the template may be used or not */
};

/* vx_vtep: by index. Over IPv4, the first cache line's worth is what encapsulation reads. */
struct vtep {
	__u16 flags;      /* enum vtep_flag */
	__u16 mtu;        /* path MTU in bytes, outer IP header included */
	__u16 port_min;   /* UDP source port range, host order */
	__u16 port_range; /* maximum less minimum */
	__u32 ifindex;    /* egress device */
	__u16 csum;       /* folded one's complement sum of the template's IPv4 header, TOS and TTL taken as 0 */
	__u8 tos;         /* outer TOS or traffic class where it is not inherited; the ECN bits are 0 */
	__u8 ttl;         /* where it is not inherited, or the inner packet has 0 */
	__u8 outer[62]; /* Ethernet, IP and UDP of struct outer6, or 42 bytes of struct outer4: all that is constant */
	__u16 pad;
	__be32 remote[4]; /* as network.local */
	__u32 oif;        /* the device that the route was asked for, 0: any; for the daemon that takes the map over */
	__u32 pad2;
};

enum control_key {
	CONTROL_LEASE,   /* the daemon writes: until then it vouches for MACs and static entries */
	CONTROL_TOO_BIG, /* programs write: when the underlay last said that a packet was too big */
	CONTROL_REMOVED, /* programs write: when one last removed an entry */
	CONTROL_MAX,
};

struct control {
	__u64 at; /* ns, CLOCK_MONOTONIC_COARSE */
};

/* What became of a captured packet. */
enum fate {
	FATE_KERNEL, /* on to the kernel, unchanged */
	FATE_FAST,   /* carried by BPF */
	FATE_DROP,
};

/* Longest part of a packet that a capture keeps, bytes. */
#define CAPTURE_SNAP 65535

/* The hook number of vx_tc_moved, which counts nothing and so is no `enum hook`. */
#define CAPTURE_MOVED 31

/* vx_capture: a packet at a hook, `had` bytes of it as it came, then `got` bytes as BPF sent it on (FATE_FAST only). */
struct capture_event {
	__u64 at; /* ns, CLOCK_MONOTONIC */
	__u32 ifindex;
	__u32 len_in; /* bytes of the packet as it came */
	__u32 len_out;
	__u32 had;
	__u32 got;
	__u32 segments; /* of a GSO packet, else 0 */
	__u16 net;
	__u16 vlan;  /* tag control information in the metadata; 0: none */
	__u8 hook;   /* enum hook, or CAPTURE_MOVED */
	__u8 reason; /* enum reason; 0 at CAPTURE_MOVED */
	__u8 fate;   /* enum fate */
	__u8 pad;
};

/* vx_capture_ctl: what the capturing process and the programs tell each other. */
struct capture_control {
	__u64 until; /* ns, CLOCK_MONOTONIC_COARSE: the process is alive and wants packets; it renews this */
};

struct capture_cpu {
	__u64 seen;  /* packets that the capture asked for */
	__u64 lost;  /* of these: vx_capture was full */
	__u32 armed; /* `event` and `bytes` hold the packet as it came */
	__u32 pad;
	struct capture_event event;
	__u8 bytes[2 * CAPTURE_SNAP]; /* as in vx_capture */
};

/* vx_source: the longest prefix of network and address. */
struct source_key {
	__u32 prefixlen; /* bits of what follows; never less than the 32 of net and v6 */
	__u16 net;       /* or enum source_net */
	__u16 v6;        /* 1: the address is IPv6 */
	__be32 addr[4];  /* as network.local */
};

/* What stands in vx_source besides networks. */
enum source_net {
	SOURCE_UNION = 0,       /* whoever may send to at least one network */
	SOURCE_LOCAL = 0xffff,  /* this host's own addresses, broadcast addresses of its subnets included */
	SOURCE_PREFIX_MIN = 32, /* bits of net and v6 */
};

/*
 * What vx_vni holds besides networks, under a VNI that none has: each of our
 * UDP ports, and port 0 for all of them. The value's flags are those with which
 * a source in none of the port's networks is barred.
 */
enum vni_none {
	VNI_PORT = 1 << 24,
};

/* vx_stranger: packets dropped, by network and where they say they come from. All 0 but net: too many to tell apart. */
struct stranger_key {
	__u16 net;
	__u16 v6;
	__be32 prefix[2]; /* IPv4: a /24 in the first word; IPv6: a /64 */
};

struct stranger {
	__u64 packets;
	__u64 bytes;
	__u64 seen;     /* ns, CLOCK_MONOTONIC_COARSE: the last packet */
	__be32 last[4]; /* its source */
};

/* vx_budget: how many prefixes may still be added to vx_stranger in this moment. */
struct budget {
	__u64 tick;
	__u64 left;
};

struct counter {
	__u64 packets; /* wire packets: a GSO packet counts its segments */
	__u64 bytes;   /* inner frame bytes where known, else the frame as met */
};

/*
 * vx_count. By reason first: what the fast path adds to, at whichever hook, lies side by side in one or two cache
 * lines.
 */
struct net_count {
	struct counter by[REASON_MAX][HOOK_MAX];
};

/* vx_vtep_count: one cache line. */
struct vtep_count {
	struct counter by[WAY_MAX];
};

/* The largest value of a per-CPU map (PCPU_MIN_UNIT_SIZE). */
_Static_assert(sizeof(struct net_count) <= 32768, "net_count is too large for a per-CPU map");
_Static_assert(sizeof(struct fdb_key) == 8, "fdb_key has padding");
_Static_assert(sizeof(struct vni_key) == 8, "vni_key has padding");
_Static_assert(sizeof(struct fdb_entry) == 24, "fdb_entry layout");
_Static_assert(sizeof(struct ethhdr) == 14 && sizeof(struct iphdr) == 20 && sizeof(struct ipv6hdr) == 40 &&
                       sizeof(struct udphdr) == 8 && sizeof(struct vxlanhdr) == 8,
               "headers as on the wire");
_Static_assert(sizeof(struct capture_event) == 40, "capture_event has padding");
_Static_assert(sizeof(struct source_key) == 24, "source_key has padding");
_Static_assert(sizeof(struct stranger_key) == 12, "stranger_key has padding");
_Static_assert(sizeof(struct network) == 48, "network layout");
_Static_assert(sizeof(struct vtep) == 104, "vtep layout");
_Static_assert(__builtin_offsetof(struct __sk_buff, gso_size) == 176, "tc context as in linux/bpf.h");
