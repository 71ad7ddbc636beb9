#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# other-version.sh OUT [REF]: build vxbpf of another version as OUT: of the git ref, or without one this tree's
# with another layout of its maps and one program more (needs clang-19).
set -eu
out=$1 ref=${2:-}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if [ -n "$ref" ]; then
	git archive "$ref" | tar -x -C "$tmp"
else
	git ls-files -z | xargs -0 tar -c | tar -x -C "$tmp"
	# A counter grows by a field: the shape of vx_count changes, and the size of its values.
	awk '{ print } /^struct counter \{/ { print "\t__u64 next_version;"; n++ } END { exit n != 1 }' "$tmp/bpf/types.h" >"$tmp/types.h" || {
		echo "other-version.sh: no struct counter in bpf/types.h" >&2
		exit 1
	}
	mv "$tmp/types.h" "$tmp/bpf/types.h"
	printf 'SEC("tc") int vx_tc_next(struct __sk_buff *skb)\n{\n\treturn skb->len ? -1 : 0;\n}\n' >>"$tmp/bpf/vxlan.bpf.c"
	(cd "$tmp" && ${GO:-go} generate ./bpf)
fi
(cd "$tmp" && ${GO:-go} build -buildvcs=false -ldflags "-X main.version=${ref:-changed}" -o "$out" ./cmd/vxbpf)
