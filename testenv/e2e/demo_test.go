// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/testenv"
)

//	h1: 2 containers each on br-flat ... br-vxlan -- eth2 ==== eth2 -- the same: h2
//
// What the README's first command shows, in small.
func TestDefaultLab(t *testing.T) {
	w := up(t, testenv.DefaultSpec(), true)
	for _, n := range w.Spec.Networks {
		from, to := w.Container("h1", n.Name+"-1"), w.Container("h2", n.Name+"-1")
		w.ping(from.NS, to.Addr.Addr())
		w.ping(from.NS, to.Addr6.Addr())
		// The daemon has heard of both: on a busy machine that may be after the first packets.
		w.wait("both MAC addresses of "+n.Name+" on the fast path", func() bool {
			sent, received := w.network("h1", n.Name).Sent.Fast, w.network("h2", n.Name).Received.Fast
			w.ping(from.NS, to.Addr.Addr())
			return w.network("h1", n.Name).Sent.Fast >= sent+3 && w.network("h2", n.Name).Received.Fast >= received+3
		})
		sent, received := w.network("h1", n.Name).Sent, w.network("h2", n.Name).Received
		w.transfer(from, to, scale(32<<20))
		sent, received = w.network("h1", n.Name).Sent.less(sent), w.network("h2", n.Name).Received.less(received)
		for side, s := range map[string]share{"sent": sent, "received": received} {
			if s.ratio() < 0.99 || s.Total < uint64(scale(10000)) {
				t.Errorf("network %s: %d of %d %s packets on the fast path", n.Name, s.Fast, s.Total, side)
			}
		}
	}
	// The host's own address on br-storage is an endpoint like a container.
	h := w.Host("h1").BridgeAddresses("storage")
	if len(h) == 0 {
		t.Fatal("the default lab has no address on br-storage")
	}
	before := w.network("h1", "storage")
	w.ping(w.Container("h2", "storage-1").NS, h[0].Addr())
	w.ping(w.Host("h1").NS, w.Container("h2", "storage-1").Addr.Addr())
	after := w.network("h1", "storage")
	if after.Sent.Fast <= before.Sent.Fast || after.Received.Fast <= before.Received.Fast {
		t.Errorf("traffic of the bridge's own address is not on the fast path: sent %+v, received %+v", after.Sent, after.Received)
	}
	if out, _, code := w.vxbpf("h1", "status"); code != 0 || !strings.Contains(out, "br-storage") {
		t.Errorf("status: exit %d\n%s", code, out)
	}
}
