// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

func TestParsePin(t *testing.T) {
	a := &tcx{dir: "/x"}
	for _, h := range []hook{{"vx_tc_encap", 12, false}, {"vx_tc_encap", 3, true}, {"vx_tc_decap", 4000000, false}} {
		name := strings.TrimPrefix(a.path(h), "/x/")
		if got, ok := parsePin(name); !ok || got != h {
			t.Errorf("%s reads as %+v, %v", name, got, ok)
		}
		if strings.Contains(name, ".") {
			t.Errorf("%s: bpffs refuses a dot", name)
		}
	}
	for _, s := range []string{"", "vx_tc_encap", "vx_tc_encap-x-ingress", "vx_tc_encap-1-sideways", "a-1-ingress-b"} {
		if _, ok := parsePin(s); ok {
			t.Errorf("%q is taken for a pin of ours", s)
		}
	}
}

func TestLayout(t *testing.T) {
	one := func(change func()) string {
		spec, err := bpf.Load()
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			spec.Maps["vx_fdb"].MaxEntries++
		}
		return layout(spec)
	}
	if a, b := one(nil), one(nil); a != b || len(a) != 12 {
		t.Errorf("the same maps have layouts %q and %q", a, b)
	}
	if one(nil) == one(func() {}) {
		t.Error("a map of another size has the same layout")
	}
}

func TestSizesFor(t *testing.T) {
	for n, want := range map[int]uint32{1: 64, 31: 64, 32: 128, 1000: 2048} {
		if got := sizesFor(n).networks; got != want {
			t.Errorf("%d networks get room for %d, want %d", n, got, want)
		}
	}
}

func TestOptionsCheck(t *testing.T) {
	var o Options
	if err := o.Check(); err != nil || o.Instance != "default" || o.Attach != "auto" || o.PinRoot != DefaultPinRoot {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []Options{{Instance: "a/b"}, {Instance: "a.b"}, {Instance: strings.Repeat("a", 65)}, {Attach: "xdp"}} {
		if err := bad.Check(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// The lock is a POSIX one: between processes, so the other side is a process.
func TestLock(t *testing.T) {
	if dir := os.Getenv("VXBPF_TEST_LOCK"); dir != "" {
		_, err := takeLock(dir, "default")
		var busy *BusyError
		if !errors.As(err, &busy) {
			t.Fatalf("not refused: %v", err)
		}
		if strconv.Itoa(busy.PID) != os.Getenv("VXBPF_TEST_PID") || !strings.Contains(err.Error(), "vxbpf unload") {
			t.Fatalf("wrong refusal: %v", err)
		}
		return
	}
	dir := t.TempDir()
	if pid, err := Holder(dir); pid != 0 || err != nil {
		t.Errorf("holder of nothing: %d, %v", pid, err)
	}
	l, err := takeLock(dir, "default")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLock$")
	cmd.Env = append(os.Environ(), "VXBPF_TEST_LOCK="+dir, "VXBPF_TEST_PID="+strconv.Itoa(os.Getpid()))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if err := l.release(); err != nil {
		t.Fatal(err)
	}
	if pid, err := Holder(dir); pid != 0 || err != nil {
		t.Errorf("holder after release: %d, %v", pid, err)
	}
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadState(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no state: %v", err)
	}
	s := State{Version: StateVersion, Instance: "x", Networks: []NetworkState{
		{Name: "a", Wanted: config.Auto, Mode: config.Kernel}, {Name: "b", Wanted: config.Kernel, Mode: config.Kernel}, {Name: "c", Wanted: config.TC, Mode: config.TC},
		{Name: "d", Wanted: config.TC, Mode: config.TC, Reason: "rules"}, {Name: "e", Wanted: config.Kernel, Mode: config.Kernel, Reason: "rules"},
		{Name: "f", Wanted: config.Auto, Mode: config.Kernel, Reason: "old"}, {Name: "g", Wanted: config.Auto, Mode: config.TC, Reason: "rules"},
	}}
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := ReadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(s)
	b, _ := json.Marshal(got)
	if string(a) != string(b) {
		t.Errorf("wrote %s\nread  %s", a, b)
	}
	// b and e were to be on the kernel path.
	if d := fmt.Sprint(got.Degradations()); d != "[a on the kernel path:  d, g on the kernel path: rules f on the kernel path: old]" {
		t.Errorf("degraded: %v", d)
	}
	if d := fmt.Sprint(got.Degraded()); d != "[a d g f]" {
		t.Errorf("degraded: %v", d)
	}
	// What became ours since it was written, the last line cut short.
	link := func(name string, index int) reconcile.Owned {
		return reconcile.Owned{Links: []reconcile.OwnedLink{{Name: name, Index: index, Kind: "bridge"}}}
	}
	steps := &stepFile{d: &Daemon{opt: Options{RunRoot: filepath.Dir(dir), Instance: filepath.Base(dir)}, state: s}}
	for _, step := range []reconcile.Delta{{Add: link("br-a", 0)}, {Drop: link("br-a", 0), Add: link("br-a", 7)}, {Add: link("br-b", 0)}} {
		if err := steps.write(step); err != nil {
			t.Fatal(err)
		}
	}
	if err := steps.f.Truncate(steps.size - 3); err != nil {
		t.Fatal(err)
	}
	if got, err = ReadState(dir); err != nil || len(got.Owned.Links) != 1 || got.Owned.Links[0].Index != 7 {
		t.Errorf("with steps: %v, %+v", err, got)
	}
	if err := got.write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stepsFile(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("steps beside the state that has them: %v", err)
	}
	if again, err := ReadState(dir); err != nil || !slices.Equal(again.Owned.Links, got.Owned.Links) {
		t.Errorf("written whole: %v, %+v", err, again)
	}
	if err := os.WriteFile(stepsFile(dir), []byte("{}\nnonsense\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(dir); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a step that cannot be read: %v", err)
	}
	s.Version++
	if err := s.write(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(dir); err == nil || !strings.Contains(err.Error(), "use the vxbpf that wrote it") {
		t.Errorf("a newer state: %v", err)
	}
}

// removeTree is what stands between a wrong path and somebody's files.
func TestRemoveTreeOnlyOnBPFFS(t *testing.T) {
	dir := t.TempDir()
	if err := removeTree(dir); err == nil || !strings.Contains(err.Error(), "not on a bpf file system") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error("the directory is gone")
	}
	if err := removeTree(dir + "/nothing"); err != nil {
		t.Errorf("nothing there: %v", err)
	}
}

// Another instance's unload removes directories that it finds empty.
func TestLockWhileOthersUnload(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "vxbpf")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Remove(parent) // fails unless it is empty
			}
		}
	}()
	for range 100 {
		run := filepath.Join(parent, "a")
		l, err := takeLock(run, "a")
		if err != nil {
			t.Error(err)
			break
		}
		if err := errors.Join(removeRunFiles(run), l.release()); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	<-done
}
