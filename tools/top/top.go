// SPDX-License-Identifier: Apache-2.0

// Package top is the live view of a data path. What it shows is a pure function
// of two looks at it, the size of the terminal, and what the person chose.
package top

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/lipgloss"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/tools/observe"
)

// Views and orders, as on the command line.
var (
	views  = []string{"networks", "vteps", "ports", "reasons"}
	orders = []string{"packets", "bits", "fast", "name"}
)

// Model is the state of the view.
type Model struct {
	opt         observe.Options
	every       time.Duration
	view, order string
	width       int
	height      int
	from        int // first row shown
	still       bool
	last        *observe.Snapshot
	rates       *observe.Rates
	err         error
	read        func(observe.Options) (*observe.Snapshot, error)
}

// New refuses views and orders that there are not.
func New(o observe.Options, every time.Duration, view, order string) (*Model, error) {
	if !slices.Contains(views, view) {
		return nil, fmt.Errorf("unknown view %q: want %s", view, strings.Join(views, ", "))
	}
	if !slices.Contains(orders, order) {
		return nil, fmt.Errorf("unknown order %q: want %s", order, strings.Join(orders, ", "))
	}
	return &Model{opt: o, every: every, view: view, order: order, width: 80, height: 24, read: observe.Read}, nil
}

// First looks for the first time, so that what is wrong is said before the screen is taken.
func (m *Model) First() (err error) {
	m.last, err = m.read(m.opt)
	return err
}

// Once measures one interval and prints all views as text.
func (m *Model) Once(ctx context.Context, w io.Writer) error {
	if err := m.First(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(m.every):
	}
	s, err := m.read(m.opt)
	if err != nil {
		return err
	}
	m.take(s)
	fmt.Fprintln(w, m.title())
	for _, v := range views {
		m.view = v
		fmt.Fprintln(w)
		for _, row := range layout(m.table(), 0) {
			fmt.Fprintln(w, strings.TrimRight(row, " "))
		}
	}
	return nil
}

func (m *Model) take(s *observe.Snapshot) {
	m.rates = s.Since(m.last)
	m.last, m.err = s, nil
}

type tick struct{}

type look struct {
	s   *observe.Snapshot
	err error
}

func (m *Model) wait() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg { return tick{} })
}

// Init is for bubbletea.
func (m *Model) Init() tea.Cmd { return m.wait() }

// Update is for bubbletea.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tick:
		if m.still {
			return m, m.wait()
		}
		return m, func() tea.Msg {
			s, err := m.read(m.opt)
			return look{s, err}
		}
	case look:
		if msg.err != nil {
			m.err = msg.err
		} else {
			m.take(msg.s)
		}
		return m, m.wait()
	case tea.KeyMsg:
		return m.key(msg.String())
	}
	return m, nil
}

func (m *Model) key(k string) (tea.Model, tea.Cmd) {
	switch k {
	case "q", "ctrl+c", "esc":
		return m, tea.Quit
	case "n", "v", "p", "r":
		m.view = map[string]string{"n": "networks", "v": "vteps", "p": "ports", "r": "reasons"}[k]
		m.from = 0
	case "tab":
		m.view = views[(slices.Index(views, m.view)+1)%len(views)]
		m.from = 0
	case "s":
		m.order = orders[(slices.Index(orders, m.order)+1)%len(orders)]
	case " ":
		m.still = !m.still
	case "+":
		m.every = min(2*m.every, time.Minute)
	case "-":
		m.every = max(m.every/2, 100*time.Millisecond)
	case "down", "j":
		m.from++
	case "up", "k":
		m.from = max(m.from-1, 0)
	case "pgdown":
		m.from += max(m.rows()-1, 1)
	case "pgup":
		m.from = max(m.from-max(m.rows()-1, 1), 0)
	}
	return m, nil
}

// rows is how many fit: the rest is a title, problems, a head and a line of keys.
func (m *Model) rows() int { return max(m.height-len(m.problems())-5, 1) }

// problems that fit: at most a quarter of the screen.
func (m *Model) problems() []string {
	if m.last == nil {
		return nil
	}
	all := m.last.Problems()
	if m.err != nil {
		all = append([]string{m.err.Error()}, all...)
	}
	if most := max(m.height/4, 1); len(all) > most {
		more := len(all) - most + 1
		all = append(all[:most-1:most-1], fmt.Sprintf("%d more: vxbpf status", more))
	}
	return all
}

func (m *Model) title() string {
	s := m.last
	daemon := "daemon up"
	switch {
	case s.Daemon == 0 && s.State.Once:
		daemon = "--once"
	case s.Daemon == 0:
		daemon = "NO DAEMON"
	}
	var all observe.Flow
	if m.rates != nil {
		for _, f := range m.rates.Networks {
			all.Sent, all.Received = plus(all.Sent, f.Sent), plus(all.Received, f.Received)
		}
	}
	both := all.All()
	return fmt.Sprintf("vxbpf %s  fast %s  out %s/s %sbit/s  in %s/s %sbit/s  %s", s.State.Instance, both,
		m.si(all.Sent.Total), m.bits(all.Sent), m.si(all.Received.Total), m.bits(all.Received), daemon)
}

func plus(a, b observe.Share) observe.Share {
	return observe.Share{Fast: a.Fast + b.Fast, Total: a.Total + b.Total, FastBytes: a.FastBytes + b.FastBytes, Bytes: a.Bytes + b.Bytes}
}

func (m *Model) si(n uint64) string { return observe.SI(m.rates.PerSecond(n)) }

func (m *Model) bits(s observe.Share) string { return observe.SI(8 * m.rates.PerSecond(s.Bytes)) }

// row is one line, with what it is sorted by.
type row struct {
	cells         []string
	name          string
	packets, bits uint64
	fast          float64
}

func flowRow(m *Model, name string, f observe.Flow, before, after []string) row {
	both := f.All()
	r := row{name: name, packets: both.Total, bits: both.Bytes, fast: -1}
	if both.Total > 0 {
		r.fast = float64(both.Fast) / float64(both.Total)
	}
	r.cells = append(append(slices.Clone(before), m.si(f.Sent.Total), m.bits(f.Sent), f.Sent.String(), m.si(f.Received.Total), m.bits(f.Received), f.Received.String()), after...)
	return r
}

// table is the view's rows, sorted, the head first.
func (m *Model) table() [][]string {
	var head []string
	var rows []row
	s := m.last
	switch m.view {
	case "networks":
		head = []string{"NETWORK", "VNI", "PATH", "MACS", "OUT/s", "bit/s", "FAST", "IN/s", "bit/s", "FAST"}
		for _, n := range s.Networks {
			path := string(n.Datapath)
			if n.Datapath != config.Kernel && n.Reason != "" {
				path = "slow"
			}
			rows = append(rows, flowRow(m, n.Name, m.flowOf(n.Name), []string{n.Name, n.VNI.String(), path, fmt.Sprintf("%d+%d", n.FDBLocal, n.FDBRemote)}, nil))
		}
	case "vteps":
		head = []string{"VTEP", "STATE", "MACS", "OUT/s", "bit/s", "FAST", "IN/s", "bit/s", "FAST"}
		for i := range s.VTEPs {
			v := &s.VTEPs[i]
			var f observe.Flow
			if m.rates != nil {
				f = m.rates.VTEPs[v.Key()]
			}
			rows = append(rows, flowRow(m, v.Remote.String(), f, []string{v.Remote.String(), v.State, fmt.Sprint(v.MACs)}, nil))
		}
	case "ports":
		// What BPF carried of it is not known by port: PATH says whether it may.
		head = []string{"PORT", "NETWORK", "PATH", "MACS", "OUT/s", "bit/s", "IN/s", "bit/s"}
		for i := range s.Ports {
			p := &s.Ports[i]
			if p.Role != "port" {
				continue
			}
			var t observe.PortTraffic
			if m.rates != nil {
				t = m.rates.Ports[p.Index]
			}
			path := "slow"
			if p.Fast {
				path = "fast"
			}
			r := row{name: p.Name, packets: t.Sent.Packets + t.Received.Packets, bits: t.Sent.Bytes + t.Received.Bytes}
			if p.Fast {
				r.fast = 1
			}
			r.cells = []string{p.Name, p.Network, path, fmt.Sprint(p.MACs), m.si(t.Sent.Packets), observe.SI(8 * m.rates.PerSecond(t.Sent.Bytes)),
				m.si(t.Received.Packets), observe.SI(8 * m.rates.PerSecond(t.Received.Bytes))}
			rows = append(rows, r)
		}
	case "reasons":
		head = []string{"NETWORK", "HOOK", "REASON", "pkt/s", "bit/s", "MEANING"}
		if m.rates == nil {
			break
		}
		for k, c := range m.rates.Reasons {
			// What the underlay hook leaves to the kernel is counted again where it arrives.
			if k.Hook == bpf.HookDecap && k.Reason != bpf.Fast && !strings.HasPrefix(k.Reason.String(), "drop_") {
				continue
			}
			r := row{name: k.Network + k.Hook.String() + k.Reason.String(), packets: c.Packets, bits: c.Bytes}
			if k.Reason == bpf.Fast {
				r.fast = 1
			}
			r.cells = []string{k.Network, k.Hook.String(), k.Reason.String(), m.si(c.Packets), observe.SI(8 * m.rates.PerSecond(c.Bytes)), observe.Meaning(k.Reason)}
			rows = append(rows, r)
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		by := 0
		switch m.order {
		case "packets":
			by = cmp.Compare(b.packets, a.packets)
		case "bits":
			by = cmp.Compare(b.bits, a.bits)
		case "fast": // what is slow first: that is what is looked for
			by = cmp.Compare(a.fast, b.fast)
		}
		return cmp.Or(by, cmp.Compare(a.name, b.name))
	})
	out := [][]string{head}
	for _, r := range rows {
		out = append(out, r.cells)
	}
	return out
}

func (m *Model) flowOf(network string) observe.Flow {
	if m.rates == nil {
		return observe.Flow{}
	}
	return m.rates.Networks[network]
}

// numeric columns are those whose head says a rate, a share or a count.
func numeric(head string) bool {
	return strings.HasSuffix(head, "/s") || head == "FAST" || head == "VNI" || head == "MACS"
}

// layout puts cells into columns, and cuts lines at a width; 0: none.
func layout(table [][]string, width int) (lines []string) {
	widths := make([]int, len(table[0]))
	for _, r := range table {
		for i, c := range r {
			widths[i] = max(widths[i], len([]rune(c)))
		}
	}
	for _, r := range table {
		var b strings.Builder
		for i, c := range r {
			pad := strings.Repeat(" ", widths[i]-len([]rune(c)))
			if numeric(table[0][i]) {
				c = pad + c
			} else {
				c += pad
			}
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(c)
		}
		lines = append(lines, cut(b.String(), width))
	}
	return lines
}

func cut(s string, width int) string {
	if r := []rune(s); width > 0 && len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return s
}

var (
	bold   = lipgloss.NewStyle().Bold(true)
	inTurn = lipgloss.NewStyle().Reverse(true)
	alarm  = lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Color("9"))
)

// View is for bubbletea: exactly as many lines as the terminal has.
func (m *Model) View() string {
	if m.last == nil {
		return ""
	}
	lines := []string{bold.Render(cut(m.title(), m.width))}
	for _, p := range m.problems() {
		lines = append(lines, alarm.Render(cut("! "+p, m.width)))
	}
	lines = append(lines, "")
	table := layout(m.table(), m.width)
	head, body := table[0], table[1:]
	most := m.rows()
	m.from = max(min(m.from, len(body)-most), 0)
	shown := body[m.from:min(m.from+most, len(body))]
	lines = append(lines, inTurn.Render(head+strings.Repeat(" ", max(m.width-len([]rune(head)), 0))))
	lines = append(lines, shown...)
	if m.rates == nil {
		lines = append(lines, "measuring ...")
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	state := m.every.String()
	if m.still {
		state = "STOPPED"
	}
	if len(body) > most {
		state += fmt.Sprintf(", %d-%d of %d", m.from+1, m.from+len(shown), len(body))
	}
	foot := fmt.Sprintf("n nets  v VTEPs  p ports  r reasons  s sort: %s  +- %s  space stop  q quit", m.order, state)
	return strings.Join(append(lines[:max(m.height-1, 1)], cut(foot, m.width)), "\n")
}
