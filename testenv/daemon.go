// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"
)

// Bounds of a daemon's life.
const (
	readyTimeout  = 30 * time.Second
	stopGrace     = 10 * time.Second
	unloadTimeout = 30 * time.Second
	logTail       = 4 << 10 // bytes of log in an error
)

// Config is the config.yaml with which `vxbpf load` makes this host's part of
// the lab. spec is the lab's, or a changed copy of it.
func (h *Host) Config(spec Spec) []byte {
	type m = yaml.MapSlice
	hs := h.HostSpec
	for _, s := range spec.Hosts {
		if s.Name == h.Name {
			hs = s
		}
	}
	if hs.Datapath == None || hs.Datapath == "" {
		hs.Datapath = Auto
	}
	var networks []m
	for _, n := range spec.Networks {
		c := m{{Key: "name", Value: n.Name}, {Key: "vni", Value: uint32(n.VNI)}}
		if addrs := bridgeAddresses(spec, n, h.index); len(addrs) > 0 {
			c = append(c, yaml.MapItem{Key: "bridge", Value: m{{Key: "name", Value: n.Bridge}, {Key: "addresses", Value: texts(addrs)}}})
		} else {
			c = append(c, yaml.MapItem{Key: "bridge", Value: n.Bridge})
		}
		if n.Group.IsValid() {
			c = append(c, yaml.MapItem{Key: "group", Value: n.Group.String()})
		} else if rs := remotes(spec, h.Name); len(rs) > 0 {
			c = append(c, yaml.MapItem{Key: "remotes", Value: texts(rs)})
		}
		networks = append(networks, mergeKeys(append(c, yaml.MapItem{Key: "mtu", Value: n.MTU}), n.Config))
	}
	// IPv4 or IPv6 shows in the remotes or the group.
	underlay := m{{Key: "device", Value: spec.Underlay.Device}, {Key: "ttl", Value: 5}}
	b, err := yaml.Marshal(mergeKeys(m{
		{Key: "underlay", Value: mergeKeys(underlay, spec.Underlay.Config)},
		{Key: "datapath", Value: hs.Datapath},
		{Key: "networks", Value: networks},
	}, hs.Config))
	if err != nil {
		panic(err) // texts and numbers
	}
	return append(fmt.Appendf(nil, "# Host %s of lab %s. Written by vxbpf lab.\n", h.Name, h.lab.Name), b...)
}

// mergeKeys panics at keys that check would have refused.
func mergeKeys(m yaml.MapSlice, k Keys) yaml.MapSlice {
	over, err := k.parse()
	if err != nil {
		panic(err)
	}
	return merge(m, over)
}

func texts[T fmt.Stringer](list []T) (out []string) {
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// Instance is what the host's daemon is called: <lab>-<host>.
func (h *Host) Instance() string { return h.NS.name }

// StartOptions of Start.
type StartOptions struct {
	// Binary to run: a path, or a name to be found in PATH.
	Binary string
	// Config is the text of config.yaml. nil: Host.Config of the lab's Spec.
	Config []byte
	// Args go between `load --instance <lab>-<host>` and the config's path.
	Args []string
	// UnloadArgs go after `unload --instance <lab>-<host>` when the lab is taken down.
	UnloadArgs []string
	// Env is added to the environment.
	Env []string
	// Timeout until the daemon must be ready. 0: 30 s.
	Timeout time.Duration
}

// Daemon is a running `vxbpf load`.
type Daemon struct {
	Pid int

	host    *Host
	id      int
	cmd     *Cmd
	proc    process
	logFile string
	logFrom int64 // where this daemon's part of the log begins
	notify  *net.UnixConn

	ready     chan struct{}
	done      chan struct{} // closed when the process has been reaped
	err       error         // from Wait, valid after done
	mu        sync.Mutex
	isReady   bool
	status    string
	forgotten bool
}

// StartVXBPF runs `<binary> load --instance <lab>-<host> <extraArgs> <config>`
// in the host's namespace, in a session of its own, and returns when it is ready.
func (h *Host) StartVXBPF(ctx context.Context, binary string, extraArgs ...string) (*Daemon, error) {
	return h.Start(ctx, StartOptions{Binary: binary, Args: extraArgs})
}

// Start is StartVXBPF with more to choose. ctx bounds the wait for readiness
// only: the daemon outlives it, and the calling process. If the daemon does not
// get ready it is killed, and the error shows the end of its log.
func (h *Host) Start(ctx context.Context, o StartOptions) (*Daemon, error) {
	d, err := h.start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start vxbpf on host %s: %w", h.Name, err)
	}
	return d, nil
}

func (h *Host) start(ctx context.Context, o StartOptions) (*Daemon, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	binary, err := exec.LookPath(o.Binary)
	if err != nil {
		return nil, err
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return nil, err
	}
	if o.Config == nil {
		o.Config = h.Config(h.lab.Spec)
	}
	if o.Timeout == 0 {
		o.Timeout = readyTimeout
	}
	file := filepath.Join(h.lab.dir, h.Name)
	if err := os.WriteFile(file+".yaml", o.Config, 0o600); err != nil {
		return nil, err
	}

	d := &Daemon{host: h, logFile: file + ".log", ready: make(chan struct{}), done: make(chan struct{})}
	argv := slices.Concat([]string{binary, "load", "--instance", h.Instance()}, o.Args, []string{file + ".yaml"})
	err = h.lab.update(func(st *state) error {
		for _, r := range st.Daemons {
			d.id = max(d.id, r.ID+1)
		}
		st.Daemons = append(st.Daemons, daemonRecord{ID: d.id, Host: h.Name, Instance: h.Instance(), Argv: argv, UnloadArgs: o.UnloadArgs})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := d.run(argv, o.Env); err != nil {
		return nil, errors.Join(err, d.forget())
	}
	// From here on the process exists.
	err = h.lab.update(func(st *state) error {
		for i := range st.Daemons {
			if st.Daemons[i].ID == d.id {
				st.Daemons[i].Process = d.proc
			}
		}
		return nil
	})
	if err == nil {
		err = d.waitReady(ctx, o.Timeout)
	}
	if err != nil {
		log := d.Log()
		err = fmt.Errorf("%w; the end of its log:\n%s", err, bytes.TrimRight(log[max(0, len(log)-logTail):], "\n"))
		return nil, errors.Join(err, d.Kill())
	}
	return d, nil
}

func (d *Daemon) run(argv, env []string) error {
	log, err := os.OpenFile(d.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if d.logFrom, err = log.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	// A path, not an abstract name: those belong to one network namespace.
	sock := filepath.Join(d.host.lab.dir, d.host.Name+"-"+strconv.Itoa(d.id)+".sock")
	d.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		return err
	}
	d.cmd = d.host.NS.Command(context.Background(), argv[0], argv[1:]...)
	d.cmd.Env = append(append(os.Environ(), env...), "NOTIFY_SOCKET="+sock)
	d.cmd.Stdout = log
	d.cmd.Stderr = log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		d.closeNotify()
		return err
	}
	d.Pid = d.cmd.Process.Pid
	if d.proc, err = processOf(d.Pid); err != nil {
		// It has ended already, and waitReady will say so: nothing to stop later.
		d.proc = process{Pid: d.Pid}
	}
	go d.listen()
	go func() {
		d.err = d.cmd.Wait()
		d.closeNotify()
		close(d.done)
	}()
	return nil
}

// listen takes sd_notify messages until the socket is closed.
func (d *Daemon) listen() {
	buf := make([]byte, 64<<10)
	for {
		n, err := d.notify.Read(buf)
		if err != nil {
			return
		}
		d.mu.Lock()
		for line := range strings.Lines(string(buf[:n])) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			switch {
			case key == "STATUS":
				d.status = value
			case key == "READY" && value == "1" && !d.isReady:
				d.isReady = true
				close(d.ready)
			}
		}
		d.mu.Unlock()
	}
}

func (d *Daemon) closeNotify() {
	name := d.notify.LocalAddr().String()
	d.notify.Close()
	// Not unlinked by Close if the lab was moved or removed meanwhile.
	_ = os.Remove(name)
}

func (d *Daemon) waitReady(ctx context.Context, timeout time.Duration) error {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-d.ready:
		return nil
	case <-d.done:
		if d.err == nil {
			return errors.New("it ended (exit status 0) before it was ready")
		}
		return fmt.Errorf("it ended before it was ready: %w", d.err)
	case <-ctx.Done():
		return fmt.Errorf("wait until it is ready: %w", ctx.Err())
	case <-t.C:
		return fmt.Errorf("it was not ready within %s", timeout)
	}
}

// Status is the last STATUS= that the daemon reported.
func (d *Daemon) Status() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

// Done is closed when the daemon has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Log is what the daemon has written so far.
func (d *Daemon) Log() []byte {
	b, err := os.ReadFile(d.logFile)
	if err != nil || int64(len(b)) < d.logFrom {
		return nil
	}
	return b[d.logFrom:]
}

// Stop sends SIGTERM and waits; SIGKILL follows after 10 s and is an error, as
// is an exit status other than 0. Death by our own SIGTERM is a normal end.
func (d *Daemon) Stop() error {
	killed, err := d.proc.terminate(stopGrace)
	if err != nil {
		return fmt.Errorf("stop vxbpf on host %s: %w", d.host.Name, err)
	}
	<-d.done
	if err := d.forget(); err != nil {
		return err
	}
	if killed {
		return fmt.Errorf("stop vxbpf on host %s: killed, it ignored SIGTERM for %s", d.host.Name, stopGrace)
	}
	var exit *exec.ExitError
	if errors.As(d.err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled() {
		return nil
	}
	if d.err != nil {
		return fmt.Errorf("stop vxbpf on host %s: %w", d.host.Name, d.err)
	}
	return nil
}

// Kill sends SIGKILL and waits: what a crash leaves behind, stays.
func (d *Daemon) Kill() error {
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill vxbpf on host %s: %w", d.host.Name, err)
	}
	<-d.done
	return d.forget()
}

// forget marks the daemon as stopped. Its record stays: unload is still due.
func (d *Daemon) forget() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.forgotten {
		return nil
	}
	err := d.host.lab.update(func(st *state) error {
		for i := range st.Daemons {
			if st.Daemons[i].ID == d.id {
				st.Daemons[i].Stopped = true
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errGone) {
		return err
	}
	d.forgotten = true
	return nil
}

// update changes the state file under the lab's lock.
func (l *Lab) update(change func(*state) error) error {
	dir, err := lockDir(l.dir, 10*time.Second)
	if err != nil {
		return err
	}
	defer dir.unlock()
	st, err := readState(l.dir)
	if err != nil {
		return err
	}
	if st.Phase != phaseUp {
		return fmt.Errorf("lab %s is %s", l.Name, st.Phase)
	}
	if err := change(st); err != nil {
		return err
	}
	return dir.write(st)
}

func runningDaemons(st *state) []daemonRecord {
	if st.BootID != bootID() {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(st.Daemons), func(r daemonRecord) bool { return r.Stopped })
}

// stopDaemons ends the daemons that st lists and calls `vxbpf unload` once per
// host. That unload fails is logged and no error: the namespace goes anyway.
func (l *Lab) stopDaemons(st *state) []error {
	var errs []error
	unload := map[string]daemonRecord{} // the last binary started on each host
	for i := range st.Daemons {
		r := &st.Daemons[i]
		unload[r.Host] = *r
		if r.Stopped {
			continue
		}
		targets := []process{r.Process}
		if r.Process.Pid == 0 {
			targets = lost(*r)
		}
		r.Stopped = true
		for _, p := range targets {
			killed, err := p.terminate(stopGrace)
			if err != nil {
				r.Stopped = false
				errs = append(errs, fmt.Errorf("stop vxbpf on host %s: %w", r.Host, err))
			} else if killed {
				l.log.Warn("vxbpf ignored SIGTERM and was killed", "host", r.Host, "pid", p.Pid)
			}
		}
	}
	for host, r := range unload {
		ns := NS{r.Instance}
		if !ns.Exists() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), unloadTimeout)
		args := append([]string{"unload", "--instance", r.Instance}, r.UnloadArgs...)
		cmd := ns.Command(ctx, r.Argv[0], args...)
		cmd.WaitDelay = time.Second // a child of it may hold the pipe
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			l.log.Warn("unload was not possible", "host", host, "err", err, "output", string(out[max(0, len(out)-logTail):]))
		}
	}
	return errs
}

// lost finds a daemon whose starter was killed before it could write down the
// pid: same namespace, same command line to the last argument.
func lost(r daemonRecord) []process {
	ino := NS{r.Instance}.inode()
	var out []process
	for pid, p := range allProcesses() {
		if p.netns == ino && slices.Equal(p.argv, r.Argv) {
			if proc, err := processOf(pid); err == nil {
				out = append(out, proc)
			}
		}
	}
	return out
}
