// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vxbpf/vxbpf/testenv"
)

// fromEnv is a number from the environment, or what it is without.
func fromEnv(t *testing.T, key string, otherwise int) int {
	t.Helper()
	s := os.Getenv(key)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s=%s: %v", key, s, err)
	}
	return n
}

//	h1: mgmt-1 on br-mgmt -- encap-mgmt -- eth2
//
// kill -9 at a random moment of a load, a reload or an unload. The next load
// converges, verify is clean, and after an unload the host is as it was.
// $VXBPF_KILLS is how often (make test-kill: 200), $VXBPF_SEED repeats a run.
func TestKillAtAnyMoment(t *testing.T) {
	kills := fromEnv(t, "VXBPF_KILLS", 6)
	seed := fromEnv(t, "VXBPF_SEED", int(time.Now().UnixNano()&0x7fffffff))
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	w := up(t, oneNetwork(testenv.HostSpec{Name: "h1"}, testenv.HostSpec{Name: "h2"}), false)
	w.ctx = t.Context() // 200 take longer than other tests
	bare := w.steady("h1")
	text := string(read(t, w.config("h1")))
	more := filepath.Join(t.TempDir(), "more.yaml")
	for i := range 3 {
		text += fmt.Sprintf("- {name: n%d, vni: %d, bridge: br-n%d, remotes: [192.0.2.%d], fdb: [{mac: \"02:00:00:00:00:%02x\", remote: 192.0.2.77}]}\n", i, 300+i, i, 50+i, i)
	}
	if err := os.WriteFile(more, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	configs := [][]byte{read(t, w.config("h1")), []byte(text)}
	files := []string{w.config("h1"), more}
	var d *testenv.Daemon
	counts := map[string]int{}
	for i := range kills {
		which := r.IntN(2)
		op := []string{"load", "reload", "unload"}[r.IntN(3)]
		if op == "load" && d != nil {
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
			d = nil
		}
		if op != "load" && d == nil {
			op = "load"
		}
		counts[op]++
		args := []string{"--instance", w.Host("h1").Instance(), "load", files[which]}
		switch op {
		case "reload":
			args = append(args, "--reload") // else it would take a dead daemon's place
		case "unload":
			args = append(args[:2:2], "unload")
		}
		cmd := w.Host("h1").NS.Command(w.ctx, w.bin, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(r.Int64N(int64(200 * time.Millisecond)))
		time.Sleep(after)
		// Of a reload it is the daemon that does the work; of an unload both have a part.
		if op == "reload" || op == "unload" && r.IntN(2) == 0 {
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
			if op == "unload" {
				_ = cmd.Process.Kill() // it may have ended
			}
			d = nil
		} else {
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait() // killed, or refused by a daemon that is gone
		if d != nil {
			if err := d.Kill(); err != nil {
				t.Fatal(err)
			}
			d = nil
		}
		what := fmt.Sprintf("kill %d (seed %d): %s of config %d, after %s", i, seed, op, which, after)
		var err error
		if d, err = w.Host("h1").Start(w.ctx, testenv.StartOptions{Binary: w.bin, Config: configs[r.IntN(2)]}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			out, code := w.verify("h1")
			if code == 0 {
				break
			}
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s: verify: exit %d\n%s", what, code, out)
			}
		}
		if i == kills-1 || r.IntN(3) == 0 {
			if out, errOut, code := w.vxbpf("h1", "unload"); code != 0 {
				t.Fatalf("%s: unload: exit %d\n%s%s", what, code, out, errOut)
			}
			<-d.Done()
			d = nil
			w.same("h1", what, bare)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills: %v", kills, counts)
}
