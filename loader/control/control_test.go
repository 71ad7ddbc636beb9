// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

type note struct {
	Text string `json:"text"`
	Peer Peer   `json:"peer"`
}

func serve(t *testing.T, path string) {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/info", func(w http.ResponseWriter, r *http.Request) { Reply(w, note{"info", PeerOf(r.Context())}) })
	mux.HandleFunc("POST /v1/echo", func(w http.ResponseWriter, r *http.Request) {
		var n note
		if err := Read(r, &n); err != nil {
			Fail(w, err)
			return
		}
		if n.Text == "bad" {
			Fail(w, &Error{Message: "line 1: bad", Kind: KindConfig})
			return
		}
		Reply(w, n)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, mux, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestExchange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	c := Dial(path)
	defer c.Close()
	if err := c.Get(t.Context(), "/v1/info", nil); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("no socket: %v", err)
	}
	// What a killed daemon leaves: a socket that nobody listens on.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	if err := c.Get(t.Context(), "/v1/info", nil); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("a dead socket: %v", err)
	}
	serve(t, path)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v, want mode 0660", st.Mode(), err)
	}
	var n note
	if err := c.Get(t.Context(), "/v1/info", &n); err != nil || n.Peer.PID != os.Getpid() || int(n.Peer.UID) != os.Geteuid() {
		t.Errorf("info: %+v, %v", n, err)
	}
	if err := c.Post(t.Context(), "/v1/echo", note{Text: "hi"}, &n); err != nil || n.Text != "hi" {
		t.Errorf("echo: %+v, %v", n, err)
	}
	err = c.Post(t.Context(), "/v1/echo", note{Text: "bad"}, &n)
	var e *Error
	if !errors.As(err, &e) || e.Kind != KindConfig || e.Message != "line 1: bad" {
		t.Errorf("an error of the config's kind: %v", err)
	}
	if err := c.Post(t.Context(), "/v1/echo", note{Text: strings.Repeat("x", maxBody)}, &n); err == nil {
		t.Error("a request of over 4 MiB is taken")
	}
	if err := c.Get(t.Context(), "/v1/nothing", nil); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("unknown path: %v", err)
	}
}

// A user that the socket's mode lets in may read, and change nothing.
func TestPeers(t *testing.T) {
	if path := os.Getenv("VXBPF_TEST_SOCKET"); path != "" {
		c := Dial(path)
		var n note
		if err := c.Get(t.Context(), "/v1/info", &n); err != nil || n.Peer.UID != 65534 {
			t.Errorf("read: %+v, %v", n, err)
		}
		var e *Error
		if err := c.Post(t.Context(), "/v1/echo", n, nil); !errors.As(err, &e) || e.Kind != KindDenied {
			t.Errorf("change: %v", err)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test becomes another user: run it as root")
	}
	dir, err := os.MkdirTemp("/tmp", "vxbpf-control-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "control.sock")
	serve(t, path)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(path, 0, 65534)); err != nil {
		t.Fatal(err)
	}
	// The test binary lies where only root looks: a copy.
	bin := filepath.Join(dir, "test")
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(bin, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-test.run=^TestPeers$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "VXBPF_TEST_SOCKET="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
