// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
)

// With rx-gro-list on at the underlay, packets that arrive are not merged but
// strung together, each with a checksum of its own, and what is known of the
// first one's is not true of the whole. Where h2 sends outer checksums, their
// check has used up what was verified, and a stack would sum up the string.
// It shows where a container makes its checksums itself, in segments that are
// smaller than the path.
//
//	h1 (vxbpf)                                                 h2 (vxbpf or kernel VXLAN, sends UDP checksums)
//	mgmt-1 eth0 -- v-mgmt-1 - br-mgmt - encap-mgmt - eth2 == eth2 - encap-mgmt - br-mgmt - v-mgmt-1 -- eth0 mgmt-1
//	                                              gro list                                             tx off, all off
func TestGROLists(t *testing.T) {
	for _, e := range []environment{
		{outer: "v4, h2 sends checksums", under: 9000, container: 1500, kernel: true},
		{outer: "v6, h2 sends checksums", under: 1500, container: 1280},
	} {
		t.Run(e.String(), func(t *testing.T) {
			w := e.up(t)
			a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
			devices := map[string]*device{}
			for _, d := range w.devices(a, b) {
				devices[d.name] = d
			}
			w.small(a, b)
			w.know("h1", a.MAC, b.MAC)
			w.set(devices["h1 eth2"], "gro list")
			for _, from := range []string{"tx off", "all off"} {
				for _, at := range []string{"default", "tso off"} {
					w.set(devices["h2 eth0"], from)
					w.set(devices["h2 eth2"], at)
					w.matrixRow(fmt.Sprintf("h1 eth2 gro list, h2 eth0 %s, h2 eth2 %s", from, at), e.fast(), a, b, nil)
				}
			}
		})
	}
}
