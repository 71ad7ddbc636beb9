// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
)

//	h1: mgmt-1 -- br-mgmt -- eth2 ==== eth2 -- br-mgmt -- mgmt-1 :h2
//
// What an operator looks at, against what is known to have happened.
func TestObserve(t *testing.T) {
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	d := w.start("h1")
	w.start("h2")
	a, b := w.Container("h1", "mgmt-1"), w.Container("h2", "mgmt-1")
	w.wait("the fast path", func() bool {
		before := w.network("h1", "mgmt")
		w.ping(a.NS, b.Addr.Addr())
		after := w.network("h1", "mgmt")
		return after.Sent.Fast == before.Sent.Fast+3 && after.Received.Fast == before.Received.Fast+3
	})

	t.Run("show", func(t *testing.T) { w.in(t).show(a, b) })
	t.Run("narrow", func(t *testing.T) { w.in(t).narrow() })
	t.Run("vteps", func(t *testing.T) { w.in(t).byVTEP(a, b) })
	// Last: it takes programs off.
	t.Run("dead", func(t *testing.T) { w.in(t).dead(d) })
}

// in is the same world for a subtest.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	return &sub
}

// table is what `vxbpf show <noun> -o json` prints.
type table struct {
	Version     int
	Instance    string
	Networks    []map[string]any
	Ports       []map[string]any
	FDB         []map[string]any
	VTEPs       []vtepRow
	Reasons     []map[string]any
	Attachments []attachRow
}

type vtepRow struct {
	VTEP         string
	State        string
	MACs         int
	Networks     []string
	Flood        []string
	SentFast     packets `json:"sent_fast"`
	SentSlow     packets `json:"sent_slow"`
	ReceivedFast packets `json:"received_fast"`
	ReceivedSlow packets `json:"received_slow"`
}

type packets struct{ Packets, Bytes uint64 }

type attachRow struct {
	Device, Direction, Program, State string
	ID                                uint32
}

func (w *world) showJSON(host string, args ...string) (out table) {
	w.t.Helper()
	text, errOut, code := w.vxbpf(host, append([]string{"show", "-o", "json"}, args...)...)
	if code != 0 {
		w.t.Fatalf("show %v: exit %d\n%s%s", args, code, text, errOut)
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		w.t.Fatalf("show %v: %v\n%s", args, err, text)
	}
	if out.Version != 1 || out.Instance != w.Host(host).Instance() {
		w.t.Errorf("show %v: version %d, instance %q", args, out.Version, out.Instance)
	}
	return out
}

func (w *world) show(a, b *testenv.Container) {
	t := w.t
	if n := w.showJSON("h1", "networks").Networks; len(n) != 1 || n[0]["name"] != "mgmt" || n[0]["vni"] != 236.0 || n[0]["datapath"] != "tc" || n[0]["mtu"] != 1450.0 {
		t.Errorf("networks: %v", n)
	}
	roles := map[any]string{}
	for _, p := range w.showJSON("h1", "ports").Ports {
		roles[p["role"]] = p["name"].(string)
		if p["fast"] != true {
			t.Errorf("port %v is not fast", p)
		}
	}
	if roles["bridge"] != "br-mgmt" || roles["vxlan"] != "encap-mgmt" || roles["port"] == "" {
		t.Errorf("ports: %v", roles)
	}
	for mac, where := range map[string]string{a.MAC.String(): "port", b.MAC.String(): "vtep"} {
		rows := w.showJSON("h1", "fdb", "--mac", mac).FDB
		if len(rows) != 1 || rows[0]["fast"] != true || rows[0][where] == nil {
			t.Errorf("fdb --mac %s: %v", mac, rows)
		}
	}
	// What only the kernel knows is there too, and is not called fast.
	out, err := w.Host("h1").NS.Command(w.ctx, "bridge", "fdb", "add", "02:aa:00:00:00:01", "dev", roles["port"], "master", "static", "vlan", "7").CombinedOutput()
	if err != nil {
		t.Logf("no VLAN entry here: %v %s", err, out)
	} else if rows := w.showJSON("h1", "fdb", "--mac", "02:aa:00:00:00:01").FDB; len(rows) != 1 || rows[0]["fast"] != false {
		t.Errorf("an entry that only the kernel has: %v", rows)
	}
	v := w.showJSON("h1", "vteps").VTEPs
	if len(v) != 1 || v[0].VTEP != "192.0.2.12" || v[0].State != "ready" || !slices.Equal(v[0].Networks, []string{"mgmt"}) || !slices.Equal(v[0].Flood, []string{"mgmt"}) {
		t.Errorf("vteps: %+v", v)
	}
	fast := w.showJSON("h1", "reasons", "--hook", "encap", "--reason", "fast").Reasons
	if len(fast) != 1 || fast[0]["packets"].(float64) < 3 || fast[0]["meaning"] == "" {
		t.Errorf("reasons: %v", fast)
	}
	var at []string
	for _, r := range w.showJSON("h1", "attachments").Attachments {
		if r.State != "attached" || r.ID == 0 {
			t.Errorf("attachment %+v", r)
		}
		at = append(at, r.Program+" "+r.Direction)
	}
	slices.Sort(at)
	if want := []string{"vx_tc_decap ingress", "vx_tc_deliver ingress", "vx_tc_encap egress", "vx_tc_encap ingress", "vx_tc_moved egress"}; !slices.Equal(at, want) {
		t.Errorf("attachments %v, want %v", at, want)
	}
	if text, _, code := w.vxbpf("h1", "show", "config"); code != 0 || !strings.Contains(text, "name: mgmt") {
		t.Errorf("config: exit %d\n%s", code, text)
	}
	for _, noun := range []string{"networks", "ports", "fdb", "vteps", "reasons", "attachments"} {
		if text, errOut, code := w.vxbpf("h1", "show", noun); code != 0 || strings.Count(text, "\n") < 2 {
			t.Errorf("show %s: exit %d\n%s%s", noun, code, text, errOut)
		}
	}
}

// narrow: filters take away what does not match, and a name that is not there is said.
func (w *world) narrow() {
	t := w.t
	if n := w.showJSON("h1", "fdb", "--vtep", "192.0.2.99").FDB; len(n) != 0 {
		t.Errorf("fdb of a VTEP that is not there: %v", n)
	}
	for _, row := range w.showJSON("h1", "fdb", "--vtep", "192.0.2.12").FDB {
		if row["vtep"] != "192.0.2.12" {
			t.Errorf("fdb --vtep lists %v", row)
		}
	}
	if all, some := len(w.showJSON("h1", "attachments").Attachments), len(w.showJSON("h1", "attachments", "--port", "eth2").Attachments); some != 1 || all <= some {
		t.Errorf("%d attachments, %d at eth2", all, some)
	}
	_, errOut, code := w.vxbpf("h1", "show", "fdb", "--vni", "237")
	if code != 1 || !strings.Contains(errOut, "no such network here: there are mgmt (vni 236)") {
		t.Errorf("show of a VNI that is not there: exit %d\n%s", code, errOut)
	}
}

// byVTEP: a known number of packets is counted for the VTEP that they went to and came from.
func (w *world) byVTEP(a, b *testenv.Container) {
	before := w.showJSON("h1", "vteps", "--vtep", "192.0.2.12").VTEPs[0]
	const n = 50
	r, err := testenv.Ping(w.ctx, a.NS, b.Addr.Addr(), testenv.PingOptions{Count: n, Interval: time.Millisecond, Timeout: 2 * time.Second})
	if err != nil || !r.OK() {
		w.t.Fatal(r, err)
	}
	after := w.showJSON("h1", "vteps", "--vtep", "192.0.2.12").VTEPs[0]
	sent := after.SentFast.Packets + after.SentSlow.Packets - before.SentFast.Packets - before.SentSlow.Packets
	received := after.ReceivedFast.Packets + after.ReceivedSlow.Packets - before.ReceivedFast.Packets - before.ReceivedSlow.Packets
	// Neighbours may ask for each other meanwhile.
	if sent < n || sent > n+4 || received < n || received > n+4 {
		w.t.Errorf("%d echo requests: %d sent, %d received", n, sent, received)
	}
}

// dead: all of it works without a daemon, which is said, and what is missing is named.
func (w *world) dead(d *testenv.Daemon) {
	t := w.t
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if out, _, code := w.vxbpf("h1", "status"); code != 0 || !strings.Contains(out, "\n! NO DAEMON") {
		t.Errorf("status: exit %d\n%s", code, out)
	}
	link := ""
	for _, p := range w.showJSON("h1", "ports").Ports {
		if p["role"] == "port" {
			link = p["name"].(string)
			pin := fmt.Sprintf("vx_tc_encap-%v-ingress", p["ifindex"])
			if err := os.Remove(filepath.Join(w.pinDir("h1"), "links", pin)); err != nil {
				t.Fatal(err)
			}
		}
	}
	rows := w.showJSON("h1", "attachments", "--port", link).Attachments
	if len(rows) != 1 {
		t.Errorf("attachments of %s: %+v", link, rows)
	}
	for _, r := range rows {
		if r.State != "missing" || r.ID != 0 || r.Program != "vx_tc_encap" {
			t.Errorf("a program that somebody took off: %+v", r)
		}
	}
}
