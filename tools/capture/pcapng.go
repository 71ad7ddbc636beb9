// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/vxbpf/vxbpf/bpf"
	"github.com/vxbpf/vxbpf/loader"
)

// Rotation begins a new file when one of its bounds is reached. The zero value: never.
type Rotation struct {
	Bytes   int64 // a buffer's worth more may be in the file
	Every   time.Duration
	Packets uint64 // of the hooks; each is one or two in the file
	Keep    int    // the newest so many files stay; 0: all
}

func (r Rotation) on() bool { return r.Bytes > 0 || r.Every > 0 || r.Packets > 0 }

// PcapngOptions of NewPcapng.
type PcapngOptions struct {
	// Path of the file, "-" for Out. With a Rotation, -00001 and so on goes before its extension.
	Path     string
	Out      io.Writer
	Rotation Rotation
	Length   int    // bytes kept of each packet
	Filter   string // as the operator wrote it, for the reader of the file
	Version  string // of vxbpf
}

// Pcapng writes packets as pcapng: an interface for each hook and device and, of
// what BPF sent on, one more with ":out". Each packet has a comment with network,
// hook, fate and reason, its direction, the program's verdict, and an id that the
// packet as it came and as it was sent on share.
type Pcapng struct {
	o       PcapngOptions
	w       *pcapgo.NgWriter
	file    *os.File
	written counting
	ids     map[at]int
	begun   time.Time
	packets uint64 // in this file
	files   []string
	n       int    // of the file
	id      uint64 // of the packet
	flushed time.Time
}

// flushEvery is how long a packet waits at most while others come.
const flushEvery = 100 * time.Millisecond

// at is what one interface of a file stands for.
type at struct {
	hook uint8
	dev  string
	out  bool
}

// counting knows how much went through.
type counting struct {
	w io.Writer
	n int64
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// NewPcapng opens the first file, so that a path that cannot be written to shows at once.
func NewPcapng(o PcapngOptions) (*Pcapng, error) {
	p := &Pcapng{o: o}
	if o.Path == "-" && o.Rotation.on() {
		return nil, errors.New("rotate the standard output: files only")
	}
	return p, p.open()
}

func (p *Pcapng) open() error {
	p.n++
	to, path := p.o.Out, p.o.Path
	if path != "-" {
		if p.o.Rotation.on() {
			ext := filepath.Ext(path)
			path = fmt.Sprintf("%s-%05d%s", strings.TrimSuffix(path, ext), p.n, ext)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return fmt.Errorf("write capture: %w", err)
		}
		p.file, to = f, f
		p.files = append(p.files, path)
	}
	p.written = counting{w: to}
	// The writer wants an interface to begin with. This one stands for what was lost on the way from all hooks.
	w, err := pcapgo.NewNgWriterInterface(&p.written, pcapgo.NgInterface{
		Name: "vxbpf", Description: "no packets: its statistics are those of the whole capture", Filter: p.o.Filter,
		LinkType: layers.LinkTypeEthernet, SnapLength: uint32(p.o.Length),
	}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "vxbpf " + p.o.Version, OS: "linux"}})
	if err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	p.w, p.ids, p.begun, p.packets = w, map[at]int{}, time.Now(), 0
	return p.flush()
}

func (p *Pcapng) flush() error {
	if err := p.w.Flush(); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

// port gives the number of an interface, made when its first packet comes.
func (p *Pcapng) port(k at) (int, error) {
	if id, ok := p.ids[k]; ok {
		return id, nil
	}
	name := HookName(k.hook) + ":" + k.dev
	what := map[bool]string{true: "XDP", false: "tc"}[isXDP(k.hook)] + " hook " + HookName(k.hook) + " at " + k.dev + ": packets as they come"
	if k.out {
		name += ":out"
		what = strings.Replace(what, "as they come", "as BPF sends them on", 1)
	}
	id, err := p.w.AddInterface(pcapgo.NgInterface{Name: name, Description: what, LinkType: layers.LinkTypeEthernet, SnapLength: uint32(p.o.Length)})
	if err != nil {
		return 0, fmt.Errorf("write capture: %w", err)
	}
	p.ids[k] = id
	return id, nil
}

// What tc and XDP programs return (linux/pkt_cls.h, linux/bpf.h), by fate.
var (
	tcVerdict  = map[bpf.Fate]int64{bpf.FateKernel: -1, bpf.FateFast: 7, bpf.FateDrop: 2}
	xdpVerdict = map[bpf.Fate]int64{bpf.FateKernel: 2, bpf.FateFast: 4, bpf.FateDrop: 1}
)

// Packet writes one packet, as it came and, if BPF sent it on, as it left.
func (p *Pcapng) Packet(c *loader.Captured) error {
	r := p.o.Rotation
	if r.Packets > 0 && p.packets >= r.Packets || r.Bytes > 0 && p.packets > 0 && p.written.n >= r.Bytes || r.Every > 0 && time.Since(p.begun) >= r.Every {
		if err := p.rotate(); err != nil {
			return err
		}
	}
	p.id++
	p.packets++
	kind, verdict := pcapgo.NgEpbVerdictTypeLinuxeBPFTC, tcVerdict[bpf.Fate(c.Fate)]
	if isXDP(c.Hook) {
		kind, verdict = pcapgo.NgEpbVerdictTypeLinuxeBPFXDP, xdpVerdict[bpf.Fate(c.Fate)]
	}
	write := func(k at, data []byte, length uint32) error {
		id, err := p.port(k)
		if err != nil {
			return err
		}
		packet := p.id
		comment, dir := describe(c), pcapgo.NgEpbFlagDirectionInbound
		if k.out {
			comment += " out"
		}
		if k.out || k.hook == bpf.CaptureMoved {
			dir = pcapgo.NgEpbFlagDirectionOutbound
		}
		err = p.w.WritePacketWithOptions(
			gopacket.CaptureInfo{Timestamp: c.Time, CaptureLength: len(data), Length: max(int(length), len(data)), InterfaceIndex: id}, data,
			pcapgo.NgPacketOptions{Comments: []string{comment}, Flags: &pcapgo.NgEpbFlags{Direction: dir}, PacketID: &packet,
				Verdicts: []pcapgo.NgEpbVerdict{{Type: kind, Data: binary.LittleEndian.AppendUint64(nil, uint64(verdict))}}})
		if err != nil {
			return fmt.Errorf("write capture: %w", err)
		}
		return nil
	}
	k := at{hook: c.Hook, dev: c.Device}
	err := write(k, c.In, c.LenIn)
	if err == nil && len(c.Out) > 0 {
		k.out = true
		err = write(k, c.Out, c.LenOut)
	}
	// Somebody may look on.
	if err == nil && c.Time.Sub(p.flushed) > flushEvery {
		p.flushed = c.Time
		err = p.flush()
	}
	return err
}

// Idle flushes, so that who reads the file sees what is there.
func (p *Pcapng) Idle() error { return p.flush() }

func (p *Pcapng) rotate() error {
	if err := p.end(nil); err != nil {
		return err
	}
	if keep := p.o.Rotation.Keep; keep > 0 && len(p.files) >= keep {
		if err := os.Remove(p.files[0]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the oldest file of the capture: %w", err)
		}
		p.files = p.files[1:]
	}
	return p.open()
}

func (p *Pcapng) end(lost *uint64) error {
	var errs []error
	if lost != nil {
		s := pcapgo.NgInterfaceStatistics{LastUpdate: time.Now(), StartTime: p.begun, EndTime: time.Now(),
			PacketsReceived: p.id + *lost, PacketsDropped: *lost}
		errs = append(errs, p.w.WriteInterfaceStats(0, s))
	}
	errs = append(errs, p.w.Flush())
	if p.file != nil {
		errs = append(errs, p.file.Close())
		p.file = nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

// Close ends the file with what was lost.
func (p *Pcapng) Close(lost uint64) error { return p.end(&lost) }

// Files are those that are there.
func (p *Pcapng) Files() []string { return p.files }
