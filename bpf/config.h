/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Load-time constants: the loader writes them before the verifier looks, so a
 * branch on one that is off vanishes. What changes in the life of a load is in
 * a map instead.
 */
#pragma once

#include "kernel.h"

/*
 * How long a MAC's received frames stay on the slow path after one of them had
 * to take it: gro_cells hands that one on later in the same softirq, and the
 * next must not overtake it. A bulk flow renews this with each aggregate and so
 * stays in order; where it runs out, at most one frame is overtaken. The loader
 * sets two ticks of the coarse clock, 2 to 20 ms.
 */
volatile const __u64 vx_hold_ns = 20000000;

/* Makes flow hashes of this host its own; the loader sets a random number. */
volatile const __u64 vx_hash_seed = 0;

/* bpf_skb_adjust_room knows BPF_F_ADJ_ROOM_DECAP_L3_* (6.3): an inner packet of another family than the outer one. */
volatile const __u8 vx_have_decap_l3 = 1;

/* 2: count by network, hook and reason, and by VTEP. 1: the former only. 0: nothing; to measure what counting costs. */
volatile const __u8 vx_counting = 2;

/* What a capture asks for (capture.h). */
#ifdef VX_CAPTURE
volatile const __u32 vx_capture_len = 2048;  /* bytes to keep of each packet, before and after; 1 to CAPTURE_SNAP */
volatile const __u32 vx_capture_at = ~0U;    /* bit of each hook */
volatile const __u32 vx_capture_fates = 7;   /* bit of each enum fate */
volatile const __u64 vx_capture_why = ~0ULL; /* bit of each reason */
volatile const __u16 vx_capture_net = 0;     /* network; 0: all */
volatile const __u32 vx_capture_nth = 1;     /* one in so many packets, by chance */
volatile const __u64 vx_capture_src = 0;     /* inner source MAC as in fdb_key, without the network; 0: any */
volatile const __u64 vx_capture_dst = 0;     /* inner destination MAC, the same */
#endif

/* bpf_ktime_get_coarse_ns (5.11); without it only vx_tc_guard and vx_xdp_guard load. */
volatile const __u8 vx_have_coarse = 1;

/* The kernel has XDP with several buffers, and so bpf_xdp_get_buff_len (5.18). */
volatile const __u8 vx_have_frags = 1;
