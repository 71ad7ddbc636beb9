// SPDX-License-Identifier: Apache-2.0

// Package control is the daemon's unix socket: JSON over HTTP, who may speak,
// and what an error looks like. It knows no request by name, and nothing of
// the data path.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Version of the protocol: the first part of each path ("/v1/load"). Fields
// are added to it, never renamed; what an older side does not know it ignores.
const Version = 1

// Header says which protocol the server speaks, on every answer.
const Header = "Vxbpf-Protocol"

// maxBody bounds a request: a config file has at most 1 MiB, and JSON may
// double it.
const maxBody = 4 << 20

// Error is an error as it crosses the socket.
type Error struct {
	Message string `json:"message"`
	// Kind tells what the caller's exit code depends on: "config" for what the
	// writer of the config has to mend, "denied", "busy", "" for the rest.
	Kind string `json:"kind,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Kinds of Error.
const (
	KindConfig = "config"
	KindDenied = "denied"
	KindBusy   = "busy"
)

// Peer is the process at the other end, as the kernel says.
type Peer struct {
	PID int
	UID uint32
	GID uint32
}

type peerKey struct{}

// PeerOf returns who sent a request.
func PeerOf(ctx context.Context) Peer {
	p, _ := ctx.Value(peerKey{}).(Peer)
	return p
}

// Listen makes the socket, in place of one that a killed daemon left. The
// caller holds the instance's lock, so nobody listens on that one.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old control socket: %w", err)
	}
	// Bound under another name: nobody connects before the mode is right, and
	// who finds the path finds somebody listening.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	// The group may read; it is the daemon's own until somebody changes it.
	if err := errors.Join(os.Chmod(tmp, 0o660), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("make control socket: %w", err), l.Close())
	}
	return l, nil
}

// Serve answers until ctx ends, then waits a moment for requests in flight.
// Root and the daemon's own user may change things; who else the mode of the
// socket lets in may read.
func Serve(ctx context.Context, l *net.UnixListener, h http.Handler, log *slog.Logger) error {
	own := uint32(os.Geteuid())
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(Header, strconv.Itoa(Version))
			p := PeerOf(r.Context())
			if r.Method != http.MethodGet && p.UID != 0 && p.UID != own {
				Fail(w, &Error{Kind: KindDenied, Message: fmt.Sprintf("user %d may not change this instance: run as root", p.UID)})
				return
			}
			if r.Method != http.MethodGet {
				log.Info("control request", "path", r.URL.Path, "pid", p.PID, "uid", p.UID)
			}
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			h.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			p, err := peer(c)
			if err != nil {
				// Nobody: may read at most.
				p = Peer{UID: ^uint32(0), GID: ^uint32(0)}
			}
			return context.WithValue(ctx, peerKey{}, p)
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve control socket: %w", err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.Shutdown(bound); err != nil {
		_ = s.Close() // a stream of events has no end of its own
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

func peer(c net.Conn) (Peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return Peer{}, err
	}
	if cerr != nil {
		return Peer{}, cerr
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}

// Reply answers with v as JSON.
func Reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the other side may have gone
}

// Fail answers with an error. One that is an *Error keeps its kind.
func Fail(w http.ResponseWriter, err error) {
	e := &Error{}
	if !errors.As(err, &e) {
		e = &Error{Message: err.Error()}
	}
	code := http.StatusInternalServerError
	switch e.Kind {
	case KindConfig:
		code = http.StatusUnprocessableEntity
	case KindDenied:
		code = http.StatusForbidden
	case KindBusy:
		code = http.StatusConflict
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(struct {
		Error *Error `json:"error"`
	}{e})
}

// Read takes a request's JSON body. Unknown fields are ignored: they are a newer client's.
func Read(r *http.Request, v any) error {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		return &Error{Message: "read request: " + err.Error()}
	}
	return nil
}

// ErrNoDaemon says that nobody listens on the socket.
var ErrNoDaemon = errors.New("no daemon listens on the control socket")

// Client speaks to the daemon behind one socket.
type Client struct {
	path string
	http *http.Client
}

// Dial returns a client; whether somebody listens shows at the first request.
func Dial(path string) *Client {
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}}
}

// Close forgets idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get asks for path ("/v1/info") and reads the answer into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.exchange(ctx, http.MethodGet, path, nil, out)
}

// Post sends in and reads the answer into out; out may be nil.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	return c.exchange(ctx, http.MethodPost, path, in, out)
}

func (c *Client) exchange(ctx context.Context, method, path string, in, out any) error {
	body, err := c.Open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read answer of the daemon at %s: %w", c.path, err)
	}
	return nil
}

// Open sends a request and returns the body of the answer, which may be a
// stream without end. The caller closes it.
func (c *Client) Open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	pr, pw := io.Pipe()
	go func() {
		if in == nil {
			pw.Close()
			return
		}
		pw.CloseWithError(json.NewEncoder(pw).Encode(in))
	}()
	req, err := http.NewRequestWithContext(ctx, method, "http://vxbpf"+path, pr)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		_ = pr.Close() // lets the writer above end
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
			return nil, fmt.Errorf("%w: %s", ErrNoDaemon, c.path)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("connect to the daemon at %s: %w; run as root", c.path, err)
		}
		return nil, fmt.Errorf("ask the daemon at %s: %w", c.path, err)
	}
	if v := res.Header.Get(Header); v != strconv.Itoa(Version) && res.StatusCode == http.StatusNotFound {
		res.Body.Close()
		return nil, fmt.Errorf("the daemon at %s speaks protocol %q, this vxbpf %d: restart the daemon with this version", c.path, v, Version)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		var a struct {
			Error *Error `json:"error"`
		}
		if err := json.NewDecoder(io.LimitReader(res.Body, maxBody)).Decode(&a); err != nil || a.Error == nil {
			return nil, fmt.Errorf("the daemon at %s refuses %s: %s", c.path, path, res.Status)
		}
		return nil, a.Error
	}
	return res.Body, nil
}
