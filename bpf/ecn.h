/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ECN across the tunnel (RFC 6040). Pure functions of two octets.
 */
#pragma once

#include "headers/bpf_helpers.h"
#include "kernel.h"

enum {
	ECN_MASK = 3,
	ECN_ECT1 = 1,
	ECN_ECT0 = 2,
	ECN_CE = 3,
};

/* Must the inner packet be marked: congestion met on the way, by a packet that can say so (RFC 6040 section 4.2)? */
static __always_inline int ecn_decap_marks(__u8 outer, __u8 inner)
{
	return (outer & ECN_MASK) == ECN_CE && (inner & ECN_MASK) && (inner & ECN_MASK) != ECN_CE;
}

/* The rest of figure 4 that is not "leave the inner packet as it is": a drop, and ECT(0) that becomes ECT(1). */
static __always_inline int ecn_decap_judged(__u8 outer, __u8 inner)
{
	outer &= ECN_MASK;
	inner &= ECN_MASK;
	return (outer == ECN_CE && !inner) || (outer == ECN_ECT1 && inner == ECN_ECT0);
}

/* Outer ECN field for an inner TOS, as the kernel's INET_ECN_encapsulate: CE inside becomes ECT(0) outside. */
static __always_inline __u8 ecn_encap(__u8 inner)
{
	return (inner & ECN_MASK) == ECN_CE ? ECN_ECT0 : inner & ECN_MASK;
}
