// SPDX-License-Identifier: Apache-2.0

package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemd says what it does not know on stderr, and exits with 0.
func TestUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is missing: make deps installs it")
	}
	b, err := os.ReadFile("vxbpf.service")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(unit string) string {
		t.Helper()
		dir := t.TempDir()
		bin := filepath.Join(dir, "vxbpf") // it must exist
		if err := os.WriteFile(bin, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "vxbpf.service")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(unit, "/usr/sbin/vxbpf", bin)), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(analyze, "verify", "--man=no", file)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return stderr.String() + err.Error()
		}
		return stderr.String()
	}
	if said := verify(string(b)); said != "" {
		t.Errorf("systemd-analyze verify:\n%s", said)
	}
	if verify(strings.Replace(string(b), "WatchdogSec=", "WatchdogSeconds=", 1)) == "" {
		t.Error("an unknown key goes unnoticed: this test sees nothing")
	}
}
