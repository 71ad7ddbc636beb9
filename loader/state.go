// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/reconcile"
	"github.com/vxbpf/vxbpf/maps/fdb"
)

// DefaultRunDir is where an instance keeps its lock and state: <dir>/<instance>/.
const DefaultRunDir = "/run/vxbpf"

// StateVersion is the version of the State format.
const StateVersion = 1

// State is what an instance leaves for `status`, `unload` and the next `load`.
// It stands in a directory that a reboot clears, as links and pins do.
type State struct {
	Version  int             `json:"version"`
	Instance string          `json:"instance"`
	Config   string          `json:"config"` // path of the file that was loaded
	Since    time.Time       `json:"since"`  // when it was loaded
	Once     bool            `json:"once"`   // no daemon by choice
	Pins     string          `json:"pins"`   // directory of the pinned maps, "" if BPF is not in use
	Attach   string          `json:"attach"` // tcx, clsact, "" if BPF is not in use
	Reason   string          `json:"reason"` // why BPF is not in use
	Qdiscs   []int           `json:"qdiscs"` // ifindexes whose clsact qdisc we made
	XDP      []XDPState      `json:"xdp"`    // devices where XDP runs, or could
	Networks []NetworkState  `json:"networks"`
	Owned    reconcile.Owned `json:"owned"`
	// NetNS is the inode of the network namespace; 0 in the state of an older version.
	NetNS uint64 `json:"netns,omitempty"`
	// RolledBack says that the config before this one came back by itself.
	RolledBack *RolledBack `json:"rolled_back,omitempty"`
	Repairs    Repairs     `json:"repairs"`
}

// NetworkState is one network of a State.
type NetworkState struct {
	Name   string          `json:"name"`
	ID     fdb.NetID       `json:"id"` // in the maps; 0 if it is not in them
	VNI    fdb.VNI         `json:"vni"`
	Port   uint16          `json:"port"`
	Bridge string          `json:"bridge"`
	Link   string          `json:"link"`
	Local  netip.Addr      `json:"local"`
	Device string          `json:"device"`
	Wanted config.Datapath `json:"wanted"`           // as configured
	Mode   config.Datapath `json:"datapath"`         // tc or kernel
	Reason string          `json:"reason,omitempty"` // why the mode is not what BPF could do
	Ports  []PortState     `json:"ports"`
	// Sources are who may send to the network. Unchecked is why anybody may, "" if not so.
	Sources   []string `json:"allowed_sources"`
	Unchecked string   `json:"unchecked,omitempty"`
}

// PortState is one port of a network.
type PortState struct {
	Name   string `json:"name"`
	Index  int    `json:"ifindex"`
	Fast   bool   `json:"fast"`
	Reason string `json:"reason,omitempty"` // why not fast
}

// Degraded names the networks that were to run on BPF and of which BPF carries nothing.
func (s *State) Degraded() (names []string) {
	for _, d := range s.Degradations() {
		names = append(names, d.Networks...)
	}
	return names
}

// Degradation is why networks that were to run on BPF are on the kernel's way.
type Degradation struct {
	Networks []string
	Reason   string
}

func (d Degradation) String() string {
	return strings.Join(d.Networks, ", ") + " on the kernel path: " + d.Reason
}

// Degradations puts together networks with the same reason, in the order of the
// file. Whether the programs cannot run here or must not just now (rules, a link
// that is down) makes no difference to what the networks' packets get.
func (s *State) Degradations() []Degradation {
	var out []Degradation
	for _, n := range s.Networks {
		if n.Wanted == config.Kernel || n.Mode != config.Kernel && n.Reason == "" {
			continue
		}
		i := slices.IndexFunc(out, func(d Degradation) bool { return d.Reason == n.Reason })
		if i < 0 {
			i = len(out)
			out = append(out, Degradation{Reason: n.Reason})
		}
		out[i].Networks = append(out[i].Networks, n.Name)
	}
	return out
}

func stateFile(run string) string { return filepath.Join(run, "state.json") }

// ReadState reads the state of an instance. The error wraps os.ErrNotExist if
// nothing is loaded.
func ReadState(run string) (*State, error) {
	b, err := os.ReadFile(stateFile(run))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read state %s: %w", stateFile(run), err)
	}
	if s.Version != StateVersion {
		return nil, fmt.Errorf("read state %s: it has version %d, this vxbpf knows %d; use the vxbpf that wrote it", stateFile(run), s.Version, StateVersion)
	}
	steps, err := readSteps(run)
	if err != nil {
		return nil, err
	}
	s.Owned.Amend(steps...)
	return &s, nil
}

// write puts the state down in one step: aside, then renamed. The steps that led
// to it go after that: played over it they change nothing.
func (s *State) write(run string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := writeFile(stateFile(run), append(b, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.Remove(stepsFile(run)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// stepsFile has what became ours since the state was written, a line for each
// step: the whole state before each of some thousand changes would take minutes.
func stepsFile(run string) string { return filepath.Join(run, "steps.jsonl") }

// stepFile is the file while a plan is carried out. It begins with a state that
// it starts from.
type stepFile struct {
	d    *Daemon
	f    *os.File
	size int64
}

func (s *stepFile) write(step reconcile.Delta) error {
	s.d.alive() // a large plan takes a while
	if s.f == nil {
		run := s.d.opt.runDir()
		if err := s.d.state.write(run); err != nil {
			return err
		}
		f, err := os.OpenFile(stepsFile(run), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("write state: %w", err)
		}
		s.f = f
	}
	b, err := json.Marshal(step)
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	n, err := s.f.Write(append(b, '\n'))
	if err != nil {
		// Half a line would spoil the next one.
		return errors.Join(fmt.Errorf("write state: %w", err), s.f.Truncate(s.size))
	}
	s.size += int64(n)
	return nil
}

// readSteps reads them. The last line may be cut short: then what it announces was not done.
func readSteps(run string) (steps []reconcile.Delta, err error) {
	b, err := os.ReadFile(stepsFile(run))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	for n, l := range slices.Collect(bytes.Lines(b)) {
		if !bytes.HasSuffix(l, []byte("\n")) {
			break
		}
		var d reconcile.Delta
		if err := json.Unmarshal(l, &d); err != nil {
			return nil, fmt.Errorf("read state %s, line %d: %w", stepsFile(run), n+1, err)
		}
		steps = append(steps, d)
	}
	return steps, nil
}
