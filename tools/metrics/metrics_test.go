// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/vxbpf/vxbpf/loader"
	"github.com/vxbpf/vxbpf/maps"
	"github.com/vxbpf/vxbpf/tools/observe"
)

var named = regexp.MustCompile(`fqName: "([a-z_]+)".*variableLabels: \{([a-z_,]*)\}`)

// exported is every metric that there can be, with its labels.
func exported(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, d := range descs {
		m := named.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("cannot read %s", d)
		}
		out[m[1]] = strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })
	}
	return out
}

func nothing(t *testing.T) *Collector {
	return &Collector{Options: observe.Options{Options: loader.Options{Instance: "none", RunRoot: t.TempDir()}}, Version: "devel", Stats: new(loader.Stats)}
}

// everything is one sample of each metric: promlint looks at what is gathered.
type everything struct{}

func (everything) Describe(ch chan<- *prometheus.Desc) { (&Collector{}).Describe(ch) }

func (everything) Collect(ch chan<- prometheus.Metric) {
	for _, d := range descs {
		m := named.FindStringSubmatch(d.String())
		labels := strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })
		typ := prometheus.GaugeValue
		if strings.HasSuffix(m[1], "_total") {
			typ = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(d, typ, 1, labels...)
	}
}

func TestLint(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(everything{})
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Where nothing is loaded a scrape says so, and nothing else.
func TestNothingLoaded(t *testing.T) {
	var b strings.Builder
	if err := nothing(t).Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nvxbpf_up 0\n", "\nvxbpf_build_info{version=\"devel\"} 1\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if n := strings.Count(b.String(), "# TYPE"); n != 2 {
		t.Errorf("%d metrics, want 2:\n%s", n, b.String())
	}
}

// However many VTEPs there are, the number of series is bounded, and no packet is lost from the sum.
func TestManyVTEPs(t *testing.T) {
	s := &observe.Snapshot{}
	var sum uint64
	for i := range 40 {
		n := uint64(i + 1)
		sum += n
		s.VTEPs = append(s.VTEPs, observe.VTEP{Index: uint32(n), Remote: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), State: "ready", MTU: 9000 - i, MACs: 1,
			Traffic: maps.Traffic{SentFast: maps.Count{Packets: n}}})
	}
	// Two outer headers towards one host are one VTEP.
	s.VTEPs = append(s.VTEPs, observe.VTEP{Index: 99, Remote: netip.AddrFrom4([4]byte{192, 0, 2, 40}), UDPPort: 8472, State: "down"})
	got := (&Collector{limit: 8}).vteps(s)
	if len(got) != 9 || got[8].name != "other" || got[0].name != "192.0.2.40" {
		t.Fatalf("%d series: %+v", len(got), got)
	}
	if got[0].up {
		t.Error("a host that one network has no way to is up")
	}
	var all uint64
	for _, v := range got {
		all += v.sent.Total
	}
	if all != sum || got[8].macs != 32 || got[8].mtu != 9000-31 {
		t.Errorf("%d packets, want %d; the others: %+v", all, sum, got[8])
	}
}

func get(t *testing.T, c *http.Client, url string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v\n%s", url, resp.Status, err, b)
	}
	return string(b), nil
}

func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	// What a killed daemon leaves.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := tcp.Addr().String()
	tcp.Close()
	over := func(network, address string) *http.Client {
		return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}}}
	}
	for address, client := range map[string]*http.Client{"unix:" + path: over("unix", path), addr: over("tcp", addr)} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			nothing(t).Serve(ctx, address, slog.New(slog.DiscardHandler))
		}()
		var text string
		for range 200 {
			if text, err = get(t, client, "http://host/metrics"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil || !strings.Contains(text, "vxbpf_up 0") {
			t.Errorf("%s: %v\n%s", address, err, text)
		}
		if strings.HasPrefix(address, "unix:") {
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
				t.Errorf("socket: %v %v, want mode 0660", st, err)
			}
			if _, err := listen(t.Context(), address); err == nil || !strings.Contains(err.Error(), "another process answers there") {
				t.Errorf("a socket in use: %v", err)
			}
		}
		cancel()
		<-done
		if _, err := get(t, client, "http://host/metrics"); err == nil {
			t.Errorf("%s answers after its end", address)
		}
	}
}

func TestWriteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vxbpf.prom")
	if err := nothing(t).WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), "vxbpf_up 0") {
		t.Errorf("%v\n%s", err, b)
	}
	if err := nothing(t).WriteFile(filepath.Join(t.TempDir(), "vxbpf.txt")); err == nil {
		t.Error("a name that node_exporter does not read is taken")
	}
}

// expressions of the dashboard, with Grafana's variables filled in.
func expressions(t *testing.T, v any) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if s, ok := x.(string); ok && k == "expr" {
				out = append(out, s)
			} else {
				out = append(out, expressions(t, x)...)
			}
		}
	case []any:
		for _, x := range v {
			out = append(out, expressions(t, x)...)
		}
	}
	return out
}

// check parses an expression and looks up each metric and label of ours in it.
func check(t *testing.T, have map[string][]string, where, expr string) (used []string) {
	t.Helper()
	e, err := parser.ParseExpr(strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$network", ".*").Replace(expr))
	if err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
		return nil
	}
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			used = append(used, n.Name)
			labels, ok := have[n.Name]
			if !ok {
				t.Errorf("%s: there is no metric %s", where, n.Name)
			}
			for _, m := range n.LabelMatchers {
				if m.Name != "__name__" && m.Name != "instance" && !slices.Contains(labels, m.Name) {
					t.Errorf("%s: %s has no label %s", where, n.Name, m.Name)
				}
			}
		case *parser.AggregateExpr:
			for _, l := range n.Grouping {
				ok := l == "instance"
				parser.Inspect(n.Expr, func(n parser.Node, _ []parser.Node) error {
					if v, is := n.(*parser.VectorSelector); is && slices.Contains(have[v.Name], l) {
						ok = true
					}
					return nil
				})
				if !ok {
					t.Errorf("%s: grouped by %s, which nothing in it has", where, l)
				}
			}
		}
		return nil
	})
	return used
}

func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../dashboards/vxbpf.json")
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]any
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	have, shown := exported(t), map[string]bool{}
	all := expressions(t, d)
	for _, e := range all {
		for _, name := range check(t, have, "dashboard", e) {
			shown[name] = true
		}
	}
	for name := range have {
		if !shown[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
	ids, places := map[any]bool{}, map[string]bool{}
	for _, p := range d["panels"].([]any) {
		p := p.(map[string]any)
		at := fmt.Sprint(p["gridPos"])
		if ids[p["id"]] || places[at] {
			t.Errorf("panel %v: its id or its place is another's", p["title"])
		}
		ids[p["id"]], places[at] = true, true
	}
	if len(all) < 20 {
		t.Errorf("only %d expressions found", len(all))
	}
}

func TestAlertRules(t *testing.T) {
	b, err := os.ReadFile("../dashboards/vxbpf.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	// The format of Prometheus' rule files, strictly.
	var doc struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert       string
				Expr        string
				For         string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalWithOptions(b, &doc, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	have, names := exported(t), map[string]bool{}
	for _, g := range doc.Groups {
		for _, r := range g.Rules {
			if names[r.Alert] || r.Alert == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("rule %q: twice, or without a name or words", r.Alert)
			}
			names[r.Alert] = true
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
				t.Errorf("rule %s: severity %q", r.Alert, r.Labels["severity"])
			}
			if len(check(t, have, "rule "+r.Alert, r.Expr)) == 0 {
				t.Errorf("rule %s looks at nothing", r.Alert)
			}
			if r.For != "" {
				if _, err := time.ParseDuration(r.For); err != nil {
					t.Errorf("rule %s: %v", r.Alert, err)
				}
			}
		}
	}
	if len(names) < 10 {
		t.Errorf("%d rules", len(names))
	}
}
