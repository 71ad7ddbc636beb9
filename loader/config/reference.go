// SPDX-License-Identifier: Apache-2.0

package config

import (
	_ "embed"
	"strings"
)

// Reference is the commented reference config: every key, with its default.
//
//go:embed reference.yaml
var Reference []byte

// Smallest is the smallest useful config.
const Smallest = `underlay: {device: eth2, ttl: 5}
networks:
  - {name: mgmt, vni: 236, bridge: br-mgmt, remotes: [192.0.2.12, 192.0.2.13]}
`

// smallestHint is the way out of a file with nothing in it.
var smallestHint = "the smallest useful config is\n" + strings.TrimSpace(Smallest)
