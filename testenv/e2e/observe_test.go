// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
)

//	h1: mgmt-1 -- br-mgmt -- eth2 ==== eth2 -- br-mgmt -- mgmt-1 :h2
//
// What an operator looks at, against what is known to have happened.
func TestObserve(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "metrics.sock")
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1", Config: testenv.Keys("metrics: unix:" + socket)}, testenv.HostSpec{Name: "h2"}), false)
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
	t.Run("metrics", func(t *testing.T) { w.in(t).metrics(socket, a, b) })
	t.Run("top", func(t *testing.T) { w.in(t).topOnce() })
	t.Run("monitor", func(t *testing.T) { w.in(t).monitored() })
	// Last: it takes programs off.
	t.Run("dead", func(t *testing.T) { w.in(t).dead(d) })
}

// in is the same world for a subtest.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	return &sub
}

// showDoc is what `vxbpf show <noun> -o json` prints.
type showDoc struct {
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
	Device, Direction, Program, State, Mode string
	ID                                      uint32
	Networks                                []string
}

func (w *world) showJSON(host string, args ...string) (out showDoc) {
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

// scrape asks the daemon, as Prometheus would, and returns each series by its text.
func (w *world) scrape(socket string) map[string]float64 {
	w.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, "http://host/metrics", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return series(w.t, string(b))
}

func series(t *testing.T, text string) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out[line[:i]] = v
	}
	return out
}

// shown: all that dashboard and alert rules ask for, metric and label, is in a real scrape.
func (w *world) shown(scrape map[string]float64) {
	w.t.Helper()
	have := map[string]string{} // all label texts of a metric
	for s := range scrape {
		name, labels, _ := strings.Cut(s, "{")
		have[name] += "," + strings.TrimSuffix(labels, "}")
	}
	asked := 0
	for _, file := range []string{"vxbpf.json", "vxbpf.rules.yml"} {
		b, err := os.ReadFile(filepath.Join("../../tools/dashboards", file))
		if err != nil {
			w.t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\b(vxbpf_[a-z_]+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(strings.ReplaceAll(string(b), `\"`, `"`), -1) {
			asked++
			labels, ok := have[m[1]]
			if !ok {
				w.t.Errorf("%s asks for %s, which a scrape does not have", file, m[1])
			}
			for _, l := range regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`).FindAllStringSubmatch(m[2], -1) {
				if l[1] != "instance" && !strings.Contains(labels, ","+l[1]+"=") {
					w.t.Errorf("%s asks for %s by %s, which a scrape does not have: %s", file, m[1], l[1], labels)
				}
			}
		}
	}
	if asked < 40 {
		w.t.Errorf("only %d questions found", asked)
	}
}

// metrics: what a scrape shows of a known number of packets is that number, exactly.
func (w *world) metrics(socket string, a, b *testenv.Container) {
	t := w.t
	const n, size = 250, 14 + 20 + 8 + 100
	frame := make([]byte, size)
	copy(frame, b.MAC[:])
	copy(frame[6:], a.MAC[:])
	frame[12] = 0x08
	ip := frame[14:]
	ip[0], ip[3], ip[6], ip[8], ip[9] = 0x45, size-14, 0x40, 64, 17
	copy(ip[12:], a.Addr.Addr().AsSlice())
	copy(ip[16:], b.Addr.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum&0xffff + sum>>16
	sum = ^(sum + sum>>16)
	ip[10], ip[11] = byte(sum>>8), byte(sum)
	// UDP to a port where nobody is, no checksum.
	ip[20], ip[21], ip[22], ip[23], ip[25] = 0x90, 0x01, 0x90, 0x02, 108
	// Within the first quarter of the ageing time: none of them is a refresh.
	w.ping(a.NS, b.Addr.Addr())
	before := w.scrape(socket)
	received := 0.0
	for _, p := range w.showJSON("h2", "ports").Ports {
		if traffic, ok := p["traffic"].(map[string]any); ok && p["name"] == "v-mgmt-1" {
			received = traffic["received"].(map[string]any)["packets"].(float64)
		}
	}
	if received == 0 {
		t.Error("h2 does not say what its port has received")
	}
	c, err := testenv.PacketSocket(a.NS, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range n {
		if err := c.Send(frame); err != nil {
			t.Fatal(err)
		}
	}
	after := w.scrape(socket)
	for name, want := range map[string]float64{
		`vxbpf_reason_packets_total{hook="encap",network="mgmt",reason="fast"}`:                                       n,
		`vxbpf_network_packets_total{direction="sent",network="mgmt",path="fast"}`:                                    n,
		`vxbpf_network_bytes_total{direction="sent",network="mgmt",path="fast"}`:                                      n * size,
		`vxbpf_vtep_packets_total{direction="sent",path="fast",vtep="192.0.2.12"}`:                                    n,
		`vxbpf_vtep_bytes_total{direction="sent",path="fast",vtep="192.0.2.12"}`:                                      n * size,
		`vxbpf_reason_packets_total{hook="encap",network="mgmt",reason="drop_broken"}`:                                0,
		`vxbpf_network_info{bridge="br-mgmt",datapath="tc",link="encap-mgmt",network="mgmt",vni="236",wanted="auto"}`: 0,
	} {
		if got := after[name] - before[name]; got != want {
			t.Errorf("%s grew by %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]float64{
		`vxbpf_up`: 1, `vxbpf_daemon_up`: 1, `vxbpf_network_fast{network="mgmt"}`: 1, `vxbpf_network_degraded{network="mgmt"}`: 0,
		`vxbpf_vtep_up{vtep="192.0.2.12"}`: 1, `vxbpf_vtep_path_mtu_bytes{vtep="192.0.2.12"}`: 1500,
		`vxbpf_attachments{program="vx_tc_encap",state="attached"}`: 2, `vxbpf_attachments{program="vx_tc_encap",state="missing"}`: 0,
		`vxbpf_network_ports{network="mgmt",path="fast"}`: 1, `vxbpf_netlink_overruns_total`: 0,
	} {
		if got, ok := after[name]; !ok || got != want {
			t.Errorf("%s is %v (%t), want %v", name, got, ok, want)
		}
	}
	// By port, as the containers at both ends count: what BPF hands into one passes its veth's other end uncounted. A
	// neighbour solicitation may be among them.
	if got := after[`vxbpf_port_packets_total{direction="sent",network="mgmt",port="v-mgmt-1"}`] - before[`vxbpf_port_packets_total{direction="sent",network="mgmt",port="v-mgmt-1"}`]; got < n || got > n+5 {
		t.Errorf("port v-mgmt-1 sent %v packets, want %v", got, n)
	}
	w.wait("h2's port to have received them", func() bool {
		for _, p := range w.showJSON("h2", "ports").Ports {
			if traffic, ok := p["traffic"].(map[string]any); ok && p["name"] == "v-mgmt-1" {
				return traffic["received"].(map[string]any)["packets"].(float64)-received >= n
			}
		}
		return false
	})
	w.shown(after)
	if after["vxbpf_netlink_resyncs_total"] < 1 || after[`vxbpf_fdb_events_total{event="changed"}`] < 1 {
		t.Error("the daemon's own metrics are missing")
	}
	// A scrape inside the daemon must not cost it its lock.
	if st, _ := w.status("h1"); st.Daemon == 0 {
		t.Error("after a scrape the daemon does not hold its instance")
	}
	// The command prints the same, less the daemon's own.
	text, errOut, code := w.vxbpf("h1", "metrics")
	if code != 0 {
		t.Fatalf("metrics: exit %d\n%s", code, errOut)
	}
	printed := series(t, text)
	for name, v := range after {
		own := strings.HasPrefix(name, "vxbpf_fdb_events") || strings.HasPrefix(name, "vxbpf_netlink")
		if _, ok := printed[name]; ok == own {
			t.Errorf("%s %v is printed: %t", name, v, ok)
		}
	}
	file := filepath.Join(t.TempDir(), "vxbpf.prom")
	if _, errOut, code := w.vxbpf("h1", "metrics", "--textfile", file); code != 0 {
		t.Fatalf("metrics --textfile: exit %d\n%s", code, errOut)
	}
	if b, err := os.ReadFile(file); err != nil || len(series(t, string(b))) < len(after)-6 {
		t.Errorf("textfile: %v\n%s", err, b)
	}
}

// topOnce: the plain form has all three tables.
func (w *world) topOnce() {
	out, errOut, code := w.vxbpf("h1", "top", "--once", "--interval", "200ms")
	if code != 0 {
		w.t.Fatalf("top --once: exit %d\n%s", code, errOut)
	}
	for _, want := range []string{"\nNETWORK ", "\nmgmt ", "\nVTEP ", "\n192.0.2.12 ", "REASON"} {
		if !strings.Contains(out, want) {
			w.t.Errorf("top --once has no %q:\n%s", want, out)
		}
	}
}

// monitored: what happens is said, in order, a line of JSON each.
func (w *world) monitored() {
	h := w.Host("h1")
	cmd := h.NS.Command(w.ctx, w.bin, "--instance", h.Instance(), "monitor", "-o", "json", "--interval", "50ms")
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	ready, err := cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	if line, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		w.t.Fatalf("monitor: %q, %v", line, err)
	}
	type event struct{ Kind, MAC, Port, VTEP, From, To, Reason string }
	events := make(chan event, 64)
	go func() {
		defer close(events)
		for d := json.NewDecoder(out); ; {
			var e event
			if d.Decode(&e) != nil {
				return
			}
			events <- e
		}
	}()
	await := func(what string, is func(event) bool) {
		w.t.Helper()
		bound := time.After(10 * time.Second)
		for {
			select {
			case e, ok := <-events:
				if !ok {
					w.t.Fatalf("monitor ended before %s", what)
				}
				if is(e) {
					return
				}
			case <-bound:
				w.t.Fatalf("monitor did not tell: %s", what)
			}
		}
	}
	run := func(command string) {
		w.t.Helper()
		f := strings.Fields(command)
		if b, err := h.NS.Command(w.ctx, f[0], f[1:]...).CombinedOutput(); err != nil {
			w.t.Fatalf("%s: %v\n%s", command, err, b)
		}
	}
	const mac = "02:ee:00:00:00:01"
	run("bridge fdb add " + mac + " dev v-mgmt-1 master static")
	await("learned", func(e event) bool { return e.Kind == "fdb_learned" && e.MAC == mac && e.Port == "v-mgmt-1" })
	run("bridge fdb add " + mac + " dev encap-mgmt self static dst 192.0.2.12")
	run("bridge fdb replace " + mac + " dev encap-mgmt master static")
	await("moved", func(e event) bool {
		return e.Kind == "fdb_moved" && e.MAC == mac && e.From == "v-mgmt-1" && e.To == "192.0.2.12"
	})
	run("bridge fdb del " + mac + " dev encap-mgmt master")
	await("gone", func(e event) bool { return e.Kind == "fdb_gone" && e.MAC == mac && e.From == "192.0.2.12" })
	run("bridge fdb del " + mac + " dev encap-mgmt self")
	run("bridge link set dev v-mgmt-1 locked on")
	await("a slow port", func(e event) bool {
		return e.Kind == "mode" && e.Port == "v-mgmt-1" && e.To == "slow" && strings.Contains(e.Reason, "locked")
	})
	run("bridge link set dev v-mgmt-1 locked off")
	await("a fast port", func(e event) bool { return e.Kind == "mode" && e.Port == "v-mgmt-1" && e.To == "fast" })
	// ctrl-C is how it ends.
	if err := errors.Join(cmd.Process.Signal(os.Interrupt), cmd.Wait()); err != nil {
		w.t.Errorf("monitor: %v", err)
	}
}
