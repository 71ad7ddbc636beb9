// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * The data path once more, with a copy of each packet for `vxbpf capture` and
 * `vxbpf trace` (capture.h). Attached only while one of them runs, over the same
 * maps: the ordinary programs pay nothing for it.
 */
#define VX_CAPTURE
#include "vxlan.bpf.c"
