// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/control"
	"github.com/vxbpf/vxbpf/loader/reconcile"
)

// call is something to be done by the loop.
type call struct {
	do   func(ctx context.Context)
	done chan struct{}
}

// inLoop has f done by the loop, which owns everything, and waits for it. It
// does not begin once ctx has ended.
func (d *Daemon) inLoop(ctx context.Context, f func(ctx context.Context)) error {
	c := call{do: f, done: make(chan struct{})}
	select {
	case d.calls <- c:
		<-c.done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Info says who listens on a control socket.
type Info struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	Instance string `json:"instance"`
	PID      int    `json:"pid"`
	Config   string `json:"config"`
}

// LoadRequest hands a config to a running daemon.
type LoadRequest struct {
	File     string `json:"file"`
	Text     string `json:"text"`
	Recreate bool   `json:"recreate,omitempty"`
	Attach   string `json:"attach,omitempty"`
	// LeaveDrift is Options.LeaveDrift.
	LeaveDrift bool          `json:"leave_drift,omitempty"`
	Confirm    time.Duration `json:"confirm_ns,omitempty"`
	// NetNS is the caller's network namespace: a config is for the host it is loaded on.
	NetNS uint64 `json:"netns"`
}

// LoadResult is what the daemon made of it.
type LoadResult struct {
	PID     int             `json:"pid"`
	Plan    json.RawMessage `json:"plan"`
	Text    string          `json:"text"` // the plan for people
	Changes bool            `json:"changes"`
	Summary string          `json:"summary"`
	// Degraded says which networks are on the kernel's way and why, a line each.
	Degraded []string `json:"degraded,omitempty"`
	// Until is when the config is rolled back unless it is confirmed.
	Until *time.Time `json:"until,omitempty"`
}

// handlers are the requests of the control socket.
func (d *Daemon) handlers() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/info", func(w http.ResponseWriter, r *http.Request) {
		i := Info{Protocol: control.Version, Version: d.opt.Version, Instance: d.opt.Instance, PID: os.Getpid()}
		if err := d.inLoop(r.Context(), func(context.Context) { i.Config = d.state.Config }); err != nil {
			control.Fail(w, err)
			return
		}
		control.Reply(w, i)
	})
	m.HandleFunc("GET /v1/state", func(w http.ResponseWriter, r *http.Request) {
		var b []byte
		var err error
		if lerr := d.inLoop(r.Context(), func(context.Context) { b, err = json.Marshal(d.state) }); lerr != nil {
			err = lerr
		}
		if err != nil {
			control.Fail(w, err)
			return
		}
		control.Reply(w, json.RawMessage(b))
	})
	m.HandleFunc("POST /v1/load", func(w http.ResponseWriter, r *http.Request) {
		var req LoadRequest
		if err := control.Read(r, &req); err != nil {
			control.Fail(w, err)
			return
		}
		var res *LoadResult
		var err error
		lerr := d.inLoop(r.Context(), func(ctx context.Context) {
			// A caller that goes away stops what it asked for; so does the end of the daemon.
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(r.Context(), cancel)()
			res, err = d.load(ctx, req)
		})
		if err := errors.Join(lerr, err); err != nil {
			control.Fail(w, wire(err))
			return
		}
		control.Reply(w, res)
	})
	m.HandleFunc("POST /v1/confirm", func(w http.ResponseWriter, r *http.Request) {
		var err error
		lerr := d.inLoop(r.Context(), func(context.Context) { err = d.confirmConfig() })
		if err := errors.Join(lerr, err); err != nil {
			control.Fail(w, err)
			return
		}
		control.Reply(w, struct{}{})
	})
	m.HandleFunc("POST /v1/rollback", func(w http.ResponseWriter, r *http.Request) {
		var err error
		lerr := d.inLoop(r.Context(), func(context.Context) { err = d.rejectConfig() })
		if err := errors.Join(lerr, err); err != nil {
			control.Fail(w, err)
			return
		}
		control.Reply(w, struct{}{})
	})
	return m
}

// wire gives an error the kind that the caller's exit code depends on.
func wire(err error) error {
	var bad *config.Error
	if errors.As(err, &bad) {
		return &control.Error{Message: err.Error(), Kind: control.KindConfig}
	}
	return err
}

// load takes up a config that came over the socket.
func (d *Daemon) load(ctx context.Context, req LoadRequest) (*LoadResult, error) {
	if req.NetNS != d.state.NetNS {
		return nil, &control.Error{Kind: control.KindBusy, Message: fmt.Sprintf(
			"instance %q runs in another network namespace (process %d): give this one a name of its own with --instance", d.opt.Instance, os.Getpid())}
	}
	if req.Attach != "" && req.Attach != "auto" && d.at != nil && req.Attach != d.at.name() {
		return nil, &control.Error{Kind: control.KindBusy, Message: fmt.Sprintf(
			"process %d attaches by %s: end it and load again to attach by %s (`vxbpf unload` removes it, `kill %d` ends it and leaves the data path)",
			os.Getpid(), d.at.name(), req.Attach, os.Getpid())}
	}
	cfg, err := config.Parse(req.File, []byte(req.Text))
	if err != nil {
		return nil, err
	}
	plan, err := d.change(ctx, cfg, req.Recreate, req.Confirm)
	if err != nil {
		return nil, err
	}
	d.opt.LeaveDrift = req.LeaveDrift
	b, err := json.Marshal(plan)
	if err != nil {
		return nil, fmt.Errorf("write plan: %w", err)
	}
	res := &LoadResult{PID: os.Getpid(), Plan: b, Text: plan.String(), Changes: plan.Changes(), Summary: d.summary()}
	for _, w := range d.state.Degradations() {
		res.Degraded = append(res.Degraded, w.String())
	}
	if d.window != nil {
		res.Until = &d.window.Until
	}
	return res, nil
}

// change reloads on somebody's word. Only a confirmation confirms: the same
// text again leaves its window as it is, another one takes its place.
func (d *Daemon) change(ctx context.Context, cfg *config.Config, recreate bool, confirm time.Duration) (plan *reconcile.Plan, err error) {
	if d.opt.Reloading != nil {
		d.opt.Reloading()
		defer func() {
			if err != nil {
				d.ready() // the service goes on
			}
		}()
	}
	before := d.window
	if confirm > 0 {
		if err := d.openWindow(cfg, confirm); err != nil {
			return nil, err
		}
	}
	if plan, err = d.reload(ctx, cfg, recreate); err != nil {
		if confirm > 0 {
			err = errors.Join(err, d.keepWindow(before))
		}
		return nil, err
	}
	if confirm == 0 && d.window != nil && d.window.Config.Text != string(cfg.Text()) {
		d.log.Warn("another config than the one that waited for a confirmation is loaded, and takes its place", "config", cfg.File)
		if err := d.closeWindow(); err != nil {
			return nil, err
		}
	}
	if os.Remove(rejectedFile(d.opt.runDir())) == nil {
		d.state.RolledBack, d.dirty = nil, true
	}
	return plan, nil
}

// reread takes up the config file as it is now: SIGHUP.
func (d *Daemon) reread(ctx context.Context) {
	cfg, err := config.Load(d.state.Config)
	if d.state.Config == stdin {
		err = errors.New("the config came from standard input: load it again")
	}
	if err == nil {
		var plan *reconcile.Plan
		if plan, err = d.change(ctx, cfg, d.opt.Recreate, 0); err == nil {
			d.log.Info("config read again", "config", cfg.File, "changes", plan.Changes())
			return
		}
	}
	d.log.Error("read the config again: the one that is loaded stays", "err", err)
}

// stdin is what a config from standard input is called.
const stdin = "<stdin>"

// Times of HandOver.
const (
	handOverWait = 5 * time.Second
	handOverPoll = 50 * time.Millisecond
)

// HandOver gives a config to the daemon that runs the instance. The error
// wraps control.ErrNoDaemon if there is none, and is a *BusyError if a process
// holds the instance and does not answer.
func HandOver(ctx context.Context, cfg *config.Config, opt Options) (*LoadResult, error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	if err := NetAdmin(); err != nil {
		return nil, err
	}
	ns, err := ownNetNS()
	if err != nil {
		return nil, err
	}
	req := LoadRequest{File: absolute(cfg.File), Text: string(cfg.Text()), Recreate: opt.Recreate, Attach: opt.Attach, LeaveDrift: opt.LeaveDrift, Confirm: opt.Confirm, NetNS: ns}
	var res LoadResult
	if err := ask(ctx, opt, "/v1/load", req, &res); err != nil {
		return nil, err
	}
	return &res, nil
}

// ask waits for a daemon that is starting: it holds the lock and listens soon.
func ask(ctx context.Context, opt Options, path string, in, out any) error {
	c := control.Dial(controlFile(opt.runDir()))
	defer c.Close()
	for deadline := time.Now().Add(handOverWait); ; {
		pid, err := Holder(opt.runDir())
		if err != nil {
			return err
		}
		if pid == 0 {
			return fmt.Errorf("instance %q: %w", opt.Instance, control.ErrNoDaemon)
		}
		if err := c.Post(ctx, path, in, out); !errors.Is(err, control.ErrNoDaemon) {
			return err
		}
		if time.Now().After(deadline) {
			return &BusyError{Instance: opt.Instance, PID: pid}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(handOverPoll):
		}
	}
}

// Dial returns a client of the instance's daemon.
func Dial(opt Options) (*control.Client, error) {
	if err := opt.Check(); err != nil {
		return nil, err
	}
	return control.Dial(controlFile(opt.runDir())), nil
}

// ownNetNS names the network namespace of the calling thread.
func ownNetNS() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("find own network namespace: %w", err)
	}
	return st.Ino, nil
}
