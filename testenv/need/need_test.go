// SPDX-License-Identifier: Apache-2.0

package need

import (
	"os"
	"testing"
)

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"5.10.0-46-cloud-amd64", "5.13", true},
		{"5.13.0", "5.13", false},
		{"6.1.0-56", "6.12", true},
		{"6.12.117+deb12", "6.3", false},
		{"7.3.4", "6.18", false},
		{"odd", "5.10", false},
	} {
		if got := older(c.a, c.b); got != c.want {
			t.Errorf("%s older than %s: %v", c.a, c.b, got)
		}
	}
}

// TestTries: every try has an answer here, and in the virtual machines the right one.
func TestTries(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root: makes network namespaces")
	}
	for _, f := range []Feature{FastPath, DecapL3, TCX, XDPFrags, Bond, Dummy, Geneve, Macvlan, VRF, WireGuard, VLAN, VLANFiltering, Ebtables, NetdevEgress, Netem} {
		t.Run(f.Name, func(t *testing.T) {
			t.Logf("%s: %v", f.Name, Have(t, f))
		})
	}
}
