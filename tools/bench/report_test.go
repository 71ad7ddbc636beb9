// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample is a report as a run on two profiles could give it.
func sample(factor float64) *Report {
	r := &Report{Version: ReportVersion, Date: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), Command: "vxbpf bench --quick", Commit: "0123456789abcdef",
		Machine: Machine{Hostname: "h", Kernel: "6.18.0", Arch: "amd64", CPU: "Fast <CPU> & Co", CPUs: 2, Memory: 24 << 30, Hypervisor: true, Clocksource: "tsc"},
		Rounds:  5, RoundTime: 0.15, Seconds: 80, Notes: notes(), Problems: []string{}, Programs: []Program{{"vx_tc_encap", "udp_rr", "a", 1000, 1000, 151}}}
	add := func(workload, profile, datapath, sides, unit, better string, wobble, base float64) {
		x := Result{Workload: workload, Profile: profile, MTU: 1500, Datapath: datapath, Sides: sides, Unit: unit, Better: better, CPUUnit: nsTrans}
		for i := range 5 {
			d := Round{Round: i + 1, Value: base * (1 + wobble*float64(i-2)), Seconds: 0.15, Sent: 1000, Received: 1000, Cost: 1e9 / base}
			if datapath == TC {
				share := 0.999
				d.Fast = &share
			}
			if unit == perSecond {
				var h histogram
				for k := range 1000 {
					h.add(time.Duration(5000+k*k/20) * time.Nanosecond)
				}
				d.Latency = h.latency()
			}
			x.Raw = append(x.Raw, d)
		}
		r.Results = append(r.Results, x)
	}
	for _, p := range []string{"veth", "wire"} {
		add("udp_rr", p, Bare, Both, perSecond, Higher, 0.01, 1300)
		add("udp_rr", p, Kernel, Both, perSecond, Higher, 0.01, 1000)
		add("udp_rr", p, TC, Both, perSecond, Higher, 0.01, 1600*factor)
		add("udp_rr", p, TC, One, perSecond, Higher, 0.12, 1200)
		add("decap_64", p, Bare, Both, nsPacket, Lower, 0.01, 500)
		add("decap_64", p, Kernel, Both, nsPacket, Lower, 0.01, 750)
		add("decap_64", p, TC, Both, nsPacket, Lower, 0.01, 250)
	}
	for i, n := range []int{10, 1000, 100000} {
		s := Scale{Entries: n, Active: n, NS: 90 + 20*float64(i)}
		for k := range 5 {
			s.Rounds = append(s.Rounds, Round{Round: k + 1, Value: 250 + 50*float64(i) + float64(k)})
		}
		r.Scale = append(r.Scale, s)
	}
	r.summarize()
	return r
}

func TestSummary(t *testing.T) {
	r := sample(1)
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-6 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	x := r.Find("udp_rr", "veth", TC, Both)
	near("ratio to kernel", x.RatioToKernel, 1.6)
	near("ratio to bare", x.RatioToBare, 1600./1300)
	near("CPU against kernel", x.CPUKernel, 1000./1600)
	near("spread", x.Spread, 0.04)
	if !x.Conclusive || x.Note != "" || *x.FastShare != 0.999 {
		t.Errorf("%+v", x)
	}
	// Less is better: three times cheaper is 3.
	near("decap ratio", r.Find("decap_64", "veth", TC, Both).RatioToKernel, 3)
	if one := r.Find("udp_rr", "veth", TC, One); one.Conclusive || !strings.Contains(one.Note, "not conclusive") || !strings.Contains(one.Note, "%") {
		t.Errorf("a row with a spread of %v says %q", one.Spread, one.Note)
	}
	near("scale", r.Scale[2].Ratio, median([]float64{350. / 250, 351. / 251, 352. / 252, 353. / 253, 354. / 254}))
}

// TestRatioPairsRounds: drift that both share must not show in the ratio.
func TestRatioPairsRounds(t *testing.T) {
	var k, x Result
	for i, drift := range []float64{1, 2, 4, 8, 16} {
		k.Raw = append(k.Raw, Round{Round: i + 1, Value: 100 * drift})
		if i != 2 { // a round that was refused has no partner
			x.Raw = append(x.Raw, Round{Round: i + 1, Value: 150 * drift})
		}
	}
	x.Datapath, x.Better = TC, Higher
	x.summarize(&k, nil)
	if x.RatioToKernel != 1.5 || x.RatioMin != 1.5 || x.RatioMax != 1.5 || !x.Conclusive {
		t.Errorf("%+v", x)
	}
}

func TestInterval(t *testing.T) {
	for n, k := range map[int]int{1: 0, 3: 0, 5: 0, 8: 0, 9: 1, 10: 1, 20: 5} {
		var v []float64
		for i := range n {
			v = append(v, float64((i*7)%n))
		}
		slices.Sort(v)
		if lo, hi := interval(v); lo != v[k] || hi != v[n-1-k] {
			t.Errorf("interval of %d values: %v to %v, want the values number %d from both ends", n, lo, hi, k)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for i := 1; i <= 100_000; i++ {
		h.add(time.Duration(i) * 10) // 10 ns to 1 ms, evenly
	}
	for q, want := range map[float64]float64{0.5: 500, 0.99: 990, 0.999: 999} {
		if got := h.quantile(q); got < want*0.999 || got > want*1.035 {
			t.Errorf("quantile %v is %v µs, want %v", q, got, want)
		}
	}
	for _, ns := range []uint64{0, 1, 31, 32, 33, 63, 64, 1000, 123456789, math.MaxUint64} {
		i := histIndex(ns)
		if up := histUpper(i); i < histSteps*40-1 && (up < ns || float64(up) > float64(ns)*1.04+1) {
			t.Errorf("%d ns is in a bucket up to %d", ns, up)
		}
	}
	if (&histogram{}).quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
}

// TestJSONKeys: the schema, key by key. Keys are added, never renamed.
func TestJSONKeys(t *testing.T) {
	var b bytes.Buffer
	if err := sample(1).WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc["version"] != 1.0 {
		t.Errorf("version %v", doc["version"])
	}
	keys := func(v any) []string { return slices.Sorted(maps.Keys(v.(map[string]any))) }
	results := doc["results"].([]any)
	row := results[0].(map[string]any)
	var got strings.Builder
	fmt.Fprintf(&got, "report: %s\nmachine: %s\nresults[]: %s\nrounds[]: %s\ncpu: %s\nlatency: %s\nprograms[]: %s\nscale[]: %s\n", keys(doc), keys(doc["machine"]),
		keys(row), keys(row["rounds"].([]any)[0]), keys(row["rounds"].([]any)[0].(map[string]any)["cpu"]), keys(row["latency"]),
		keys(doc["programs"].([]any)[0]), keys(doc["scale"].([]any)[0]))
	golden(t, "keys.txt", []byte(got.String()))
	// The words that the issue names, and null where nothing is accelerated.
	for _, k := range []string{"workload", "profile", "datapath", "sides", "unit", "median", "min", "max", "ratio_to_kernel", "ratio_to_bare", "fast_share"} {
		if _, ok := row[k]; !ok {
			t.Errorf("results[] has no %s", k)
		}
	}
	if row["fast_share"] != nil {
		t.Errorf("fast_share of bare is %v", row["fast_share"])
	}
	file := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	back, err := ReadReport(file)
	if err != nil || back.Find("udp_rr", "veth", TC, Both).RatioToKernel != 1.6 {
		t.Errorf("read back: %v", err)
	}
	if err := os.WriteFile(file, bytes.Replace(b.Bytes(), []byte(`"version": 1`), []byte(`"version": 7`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadReport(file); err == nil || !strings.Contains(err.Error(), "version 7") {
		t.Errorf("another version: %v", err)
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	r := sample(1)
	r.Problems = []string{"udp_rr, veth, tc both: refused 3 times: only 3.0 % of 1000 packets took the fast path"}
	r.Interrupted = true
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", b.Bytes())
}

func TestCompare(t *testing.T) {
	old, now := sample(1), sample(1.25)
	now.Results = slices.DeleteFunc(now.Results, func(x Result) bool { return x.Workload == "decap_64" && x.Profile == "wire" })
	all := Compare(old, now)
	if len(all) != len(now.Results) {
		t.Fatalf("%d rows, want %d", len(all), len(now.Results))
	}
	for _, c := range all {
		want := 1.0
		if c.Workload == "udp_rr" && c.Datapath == TC && c.Sides == Both {
			want = 1.25
		}
		if math.Abs(c.Factor-want) > 1e-6 || c.Significant != (want != 1) {
			t.Errorf("%s %s: factor %v, significant %t", c.Workload, c.Path(), c.Factor, c.Significant)
		}
	}
	for _, c := range Compare(now, old) {
		if c.Workload == "udp_rr" && c.Datapath == TC && c.Sides == Both && (math.Abs(c.Factor-0.8) > 1e-6 || !c.Significant) {
			t.Errorf("the other way round: %v", c.Factor)
		}
	}
	var b bytes.Buffer
	if err := WriteComparison(&b, old, now); err != nil {
		t.Fatal(err)
	}
	golden(t, "compare.txt", b.Bytes())
}

// TestHTML: well-formed, self-contained, every plot in it.
func TestHTML(t *testing.T) {
	r := sample(1)
	r.Problems = []string{"a <problem> & more"}
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	dec := xml.NewDecoder(bytes.NewReader(b.Bytes()))
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
		e, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		count[e.Name.Local]++
		for _, a := range e.Attr {
			if a.Name.Local == "class" {
				count[e.Name.Local+"."+a.Value]++
			}
			if a.Name.Local == "src" || a.Name.Local == "href" {
				t.Errorf("%s refers to %s", e.Name.Local, a.Value)
			}
			if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || strings.Contains(a.Value, "ZgotmplZ") {
				t.Errorf("%s %s=%q", e.Name.Local, a.Name.Local, a.Value)
			}
		}
	}
	for what, want := range map[string]int{
		"svg.plot-bars": 2, "svg.plot-line": 3, // two profiles; latency of udp_rr in both, and the scale
		"rect.fill-kernel": 4 + 2 + 1, // a bar per workload and profile, a legend per curve
		"polyline.line-tc": 3, "script": 0, "link": 0, "img": 0,
	} {
		if count[what] != want {
			t.Errorf("%d of %s, want %d", count[what], what, want)
		}
	}
	for _, s := range []string{"Fast &lt;CPU&gt; &amp; Co", "a &lt;problem&gt; &amp; more", "not conclusive", "0123456789ab", "vx_tc_encap"} {
		if !strings.Contains(b.String(), s) {
			t.Errorf("the page lacks %q", s)
		}
	}
	// Nothing measured: still a page.
	b.Reset()
	if err := (&Report{Version: 1, Interrupted: true}).WriteHTML(&b); err != nil || !strings.Contains(b.String(), "Interrupted") {
		t.Errorf("empty report: %v", err)
	}
}

func TestJudge(t *testing.T) {
	w := &workload{name: "w", unit: packets, lossLimit: 0.01}
	good := func() (Round, tally, tally) {
		return Round{Sent: 1000, Received: 1000}, tally{drops: map[string]uint64{"a eth2": 5}},
			tally{vx: fastCounts{1, 1000, 1000, 0}, drops: map[string]uint64{"a eth2": 5}, rx: 1000}
	}
	for _, tc := range []struct {
		name   string
		change func(r *Round, before, after *tally)
		want   string
	}{
		{"as it should be", func(*Round, *tally, *tally) {}, ""},
		{"slow path", func(_ *Round, _, a *tally) { a.vx.fast = 980 }, "98.0 %"},
		{"nothing counted", func(_ *Round, _, a *tally) { a.vx.fast, a.vx.total = 0, 0 }, "counted 0 packets"},
		{"fewer arrived", func(_ *Round, _, a *tally) { a.rx = 900 }, "900 packets arrived by the underlay, 1000 are claimed"},
		{"lost", func(r *Round, _, _ *tally) { r.Received, r.Lost = 980, 20 }, "20 of 1000 packets lost"},
		{"dropped by a device", func(_ *Round, _, a *tally) { a.drops["a eth2"] = 105 }, "a eth2 dropped 100"},
		{"super-packets", func(_ *Round, _, a *tally) { a.bytes = 2000 * a.rx }, "super-packets of 2000 bytes"},
		{"dropped by vxbpf", func(_ *Round, _, a *tally) { a.vx.dropped = 1 }, "drop_broken"},
	} {
		r, before, after := good()
		tc.change(&r, &before, &after)
		err := (&bed{bedKind: tcBed}).judge(w, profiles[1], &r, before, after)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	b := &bed{bedKind: kernelBed}
	for _, tc := range []struct {
		kind bedKind
		lost int
		seen [sniffCounters]uint64
		ok   bool
	}{
		{kernelBed, 0, [sniffCounters]uint64{20, 0, 0}, true},
		{kernelBed, 0, [sniffCounters]uint64{0, 20, 0}, false},
		{kernelBed, 0, [sniffCounters]uint64{0, 0, 20}, false},
		{kernelBed, 1, [sniffCounters]uint64{20, 0, 0}, false},
		{bareBed, 0, [sniffCounters]uint64{0, 0, 20}, true},
		{bareBed, 0, [sniffCounters]uint64{20, 0, 0}, false},
		{bareBed, 0, [sniffCounters]uint64{}, false},
	} {
		b.bedKind = tc.kind
		if err := b.judgeLook(20, tc.lost, tc.seen); (err == nil) != tc.ok {
			t.Errorf("%s, %d lost, seen %v: %v", tc.kind, tc.lost, tc.seen, err)
		}
	}
}

// TestFrames: what is injected is what the kernel would take without a second thought.
func TestFrames(t *testing.T) {
	src, dst := manySource(1, 2), manyDest(1, 3)
	in := udpFrame(innerLen, src, dst, [4]byte{10, 0, 0, 1}, [4]byte{10, 0, 0, 2})
	out := encapsulate(in, 0x123456, src, dst, [4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 2})
	if len(in) != innerLen || len(out) != innerLen+overhead || !bytes.Equal(out[overhead:], in) {
		t.Fatalf("lengths %d and %d", len(in), len(out))
	}
	for _, h := range [][]byte{in[14:34], out[14:34]} {
		sum := uint32(0)
		for i := 0; i < 20; i += 2 {
			sum += uint32(h[i])<<8 | uint32(h[i+1])
		}
		if sum = sum&0xffff + sum>>16; sum != 0xffff {
			t.Errorf("IP checksum: sum %#x", sum)
		}
	}
	if l := int(out[16])<<8 | int(out[17]); l != len(out)-14 {
		t.Errorf("outer IP length %d", l)
	}
	if l := int(out[38])<<8 | int(out[39]); l != len(out)-34 || out[40] != 0 || out[41] != 0 {
		t.Errorf("outer UDP length %d, checksum %x", l, out[40:42])
	}
	if !bytes.Equal(out[42:50], []byte{8, 0, 0, 0, 0x12, 0x34, 0x56, 0}) {
		t.Errorf("VXLAN header %x", out[42:50])
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", file, got)
	}
}
