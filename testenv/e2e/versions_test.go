// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/testenv"
	"github.com/vxbpf/vxbpf/testenv/need"
)

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2 ==== eth2 -- the same: h2
//
// Another version runs, this one takes over, and the other one once more: under
// a stream of 10,000 packets a second and a TCP connection the other way. $VXBPF_OTHER lists the
// binaries of other versions (make test-upgrade builds them).
func TestVersions(t *testing.T) {
	others := filepath.SplitList(os.Getenv("VXBPF_OTHER"))
	if len(others) == 0 {
		need.Elsewhere(t, "test-upgrade", "$VXBPF_OTHER names no binary of another version")
	}
	for _, other := range others {
		t.Run(filepath.Base(other), func(t *testing.T) {
			w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
			this := w.bin
			daemons := map[string]*testenv.Daemon{}
			layouts := map[string]bool{}
			swap := func(bin string) {
				t.Helper()
				for _, h := range w.Hosts {
					if d := daemons[h.Name]; d != nil {
						if err := d.Stop(); err != nil {
							t.Error(err)
						}
					}
					d, err := h.Start(w.ctx, testenv.StartOptions{Binary: bin})
					if err != nil {
						t.Fatal(err)
					}
					daemons[h.Name] = d
					if err := w.AttachContainers(w.ctx, h.Name); err != nil {
						t.Fatal(err)
					}
				}
				w.bin = bin // a status of the same version: another one may not know its maps
				dirs, err := filepath.Glob(filepath.Join(w.pinDir("h1"), "maps-*"))
				if err != nil || len(dirs) != 1 {
					t.Errorf("map directories after the swap: %v, %v", dirs, err)
				}
				layouts[strings.Join(dirs, " ")] = true
			}
			step := func(what, bin string) {
				t.Helper()
				w.unbroken(what, func() {
					w.flowing("before the " + what)
					swap(bin)
					w.flowing("after the " + what)
				})
			}
			swap(other)
			step("upgrade", this)
			for _, h := range w.Hosts {
				w.hooks(h.Name, "tcx")
				w.wait("verify to be clean", func() bool { _, code := w.verify(h.Name); return code == 0 })
			}
			step("downgrade", other)
			step("second upgrade", this)
			for _, h := range w.Hosts {
				w.hooks(h.Name, "tcx")
			}
			t.Logf("layouts of the maps: %d", len(layouts))
			if strings.HasSuffix(other, "changed") && len(layouts) != 2 {
				t.Errorf("%d layouts, want 2: this test swaps nothing", len(layouts))
			}
		})
	}
}
