/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Capture: a copy of each packet at each hook, as it came and as it went, with
 * the verdict. Every entry point says when a packet comes (capture_enter, before
 * anything changes it) and what became of it (capture_leave). Both are empty
 * unless VX_CAPTURE is defined, as it is in capture.bpf.c: the programs that
 * run otherwise hold no trace of it, not even the look at a constant.
 *
 * Chooses no verdict and changes no packet.
 */
#pragma once

#include "config.h"
#include "encap.h"
#include "maps.h"
#include "parse.h"

/* At these hooks a packet comes with its outer header on. */
#ifndef CAPTURE_OUTER
#define CAPTURE_OUTER(hook) ((hook) == HOOK_DECAP || (hook) == HOOK_XDP_DECAP)
#endif

#ifdef VX_CAPTURE

static __always_inline struct capture_cpu *capture_here(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&vx_capture_cpu, &cpu);
}

/* `xdp` is a constant: which kind of context this is. */
static __always_inline __u32 capture_length(void *ctx, const int xdp)
{
	return xdp ? (__u32)bpf_xdp_get_buff_len(ctx) : ((struct __sk_buff *)ctx)->len;
}

/* Copies up to vx_capture_len bytes of the packet; returns how many. */
static __always_inline __u32 capture_copy(void *ctx, __u8 *to, __u32 len, const int xdp)
{
	__u32 n = vx_capture_len;

	if (len < n)
		n = len;
	/* What the verifier has to know, and clang would take away. */
	asm volatile("" : "+r"(n));
	if (n == 0 || n > CAPTURE_SNAP)
		return 0;
	if (xdp ? bpf_xdp_load_bytes(ctx, 0, to, n) : bpf_skb_load_bytes(ctx, 0, to, n))
		return 0;
	return n;
}

/* Is the inner frame from and to whom the capture asks for? */
static __always_inline int capture_wanted(const struct capture_cpu *c, const int outer)
{
	__u32 off = 0;
	struct l2 eth;

	if (!vx_capture_src && !vx_capture_dst)
		return 1;
	if (outer)
		off = *(__be16 *)(c->bytes + 12) == bpf_htons(ETH_P_IPV6) ? OUTER_LEN(1) : OUTER_LEN(0);
	if (c->event.had < off + sizeof(struct ethhdr))
		return 0;
	eth = l2_read(c->bytes + off);
	return (!vx_capture_src || key_of_src(0, eth).word == vx_capture_src) &&
	       (!vx_capture_dst || key_of_dst(0, eth).word == vx_capture_dst);
}

static __always_inline void capture_in(void *ctx, const __u32 hook, const int xdp)
{
	struct capture_cpu *c = capture_here();
	struct capture_control *ctl;
	__u32 zero = 0;

	if (!c)
		return;
	c->armed = 0;
	if (!(vx_capture_at & 1U << hook))
		return;
	if (vx_capture_nth > 1 && bpf_get_prandom_u32() % vx_capture_nth)
		return;
	/* Nobody reads any more: the process died, and the daemon has not put the ordinary programs back yet. */
	ctl = bpf_map_lookup_elem(&vx_capture_ctl, &zero);
	if (!ctl || bpf_ktime_get_coarse_ns() >= ctl->until)
		return;
	c->event = (struct capture_event){.len_in = capture_length(ctx, xdp), .hook = hook};
	if (xdp) {
		c->event.ifindex = ((struct xdp_md *)ctx)->ingress_ifindex;
	} else {
		struct __sk_buff *skb = ctx;

		c->event.ifindex = skb->ifindex;
		c->event.segments = skb->gso_segs;
		if (skb->vlan_present)
			c->event.vlan = skb->vlan_tci;
	}
	c->event.had = capture_copy(ctx, c->bytes, c->event.len_in, xdp);
	c->armed = c->event.had && capture_wanted(c, CAPTURE_OUTER(hook));
	/* Last: reading the exact clock can cost as much as all the rest. */
	if (c->armed)
		c->event.at = bpf_ktime_get_ns();
}

/* `ret` as the entry points have it: a verdict (>= 0), or a negative reason. */
static __always_inline void capture_out(void *ctx, __u32 net, int ret, int dropped, const int xdp)
{
	struct capture_cpu *c = capture_here();
	__u32 had, got = 0;

	if (!c || !c->armed)
		return;
	c->armed = 0;
	c->event.net = net;
	c->event.reason = ret < 0 ? -ret : FAST;
	c->event.fate = dropped ? FATE_DROP : ret < 0 ? FATE_KERNEL : FATE_FAST;
	/* At this hook there is no verdict: all of it is the kernel's. */
	if (c->event.hook == CAPTURE_MOVED)
		c->event.fate = FATE_KERNEL;
	if (vx_capture_net && vx_capture_net != net)
		return;
	if (!(vx_capture_fates & 1U << (c->event.fate & 3)) || !(vx_capture_why & 1ULL << (c->event.reason & 63)))
		return;
	had = c->event.had;
	asm volatile("" : "+r"(had));
	if (had > CAPTURE_SNAP)
		return;
	if (c->event.fate == FATE_FAST) {
		c->event.len_out = capture_length(ctx, xdp);
		got = capture_copy(ctx, c->bytes + had, c->event.len_out, xdp);
	}
	c->event.got = got;
	c->seen++;
	if (bpf_ringbuf_output(&vx_capture, &c->event, sizeof(c->event) + had + got, 0))
		c->lost++;
}

#define CAPTURE(...) __VA_ARGS__
#else
#define CAPTURE(...)
#endif

static __always_inline void capture_enter(struct __sk_buff *skb, const __u32 hook)
{
	(void)skb, (void)hook;
	CAPTURE(capture_in(skb, hook, 0);)
}

static __always_inline void capture_leave(struct __sk_buff *skb, __u32 net, int ret, int dropped)
{
	(void)skb, (void)net, (void)ret, (void)dropped;
	CAPTURE(capture_out(skb, net, ret, dropped, 0);)
}

static __always_inline void capture_enter_xdp(struct xdp_md *xdp, const __u32 hook)
{
	(void)xdp, (void)hook;
	CAPTURE(capture_in(xdp, hook, 1);)
}

static __always_inline void capture_leave_xdp(struct xdp_md *xdp, __u32 net, int ret, int dropped)
{
	(void)xdp, (void)net, (void)ret, (void)dropped;
	CAPTURE(capture_out(xdp, net, ret, dropped, 1);)
}
