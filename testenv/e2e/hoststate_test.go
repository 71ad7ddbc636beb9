// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	enc "encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/kernel"
)

// hostState is all that a host shows of itself, one line per attribute: raw
// rtnetlink dumps of links, addresses, forwarding entries, routes, qdiscs and
// filters, tcx programs, and the pins and run files of its instance. It shares
// no parser with vxbpf, so it sees attributes that vxbpf does not know.
type hostState []string

// volatile are the attributes that change by themselves: counters and timers.
// By dump, as paths of attribute numbers (linux/if_link.h).
var volatile = map[string][]string{
	"link": {
		"7", "23", "35", "47", "48", // statistics, carrier changes
		"26",                                                                   // per family: IPv6 statistics and timers
		"18/3",                                                                 // bridge statistics
		"18/2/bridge/14", "18/2/bridge/15", "18/2/bridge/16", "18/2/bridge/17", // spanning tree timers
		"18/2/bridge/18", "18/2/bridge/19", "18/2/bridge/47", "18/2/bridge/48", // multicast querier, learned entries
		"18/5/21", "18/5/22", "18/5/23", "18/5/37", "18/5/41", // a port's timers and multicast counts
	},
	"address": {"6"},
	"fdb":     {"3"},
	"route":   {"12"},
	"qdisc":   {"3", "7"},
}

// attribute paths below which there are more attributes.
func nested(kind, path string) bool {
	return kind == "link" && (path == "18" || path == "18/2" || path == "18/5")
}

// flatten lists the attributes in b as path=value.
func flatten(kind, prefix, linkKind string, b []byte) (out []string) {
	attrs, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return []string{prefix + "=?" + fmt.Sprintf("%x", b)}
	}
	for _, a := range attrs {
		n := a.Type &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		path := strings.TrimPrefix(fmt.Sprintf("%s/%d", prefix, n), "/")
		if path == "18/1" {
			linkKind = strings.TrimRight(string(a.Data), "\x00")
		}
		if slices.Contains(volatile[kind], path) || slices.Contains(volatile[kind], strings.Replace(path, "18/2/", "18/2/"+linkKind+"/", 1)) {
			continue
		}
		if nested(kind, path) {
			out = append(out, flatten(kind, path, linkKind, a.Data)...)
			continue
		}
		out = append(out, fmt.Sprintf("%s=%x", path, a.Data))
	}
	return out
}

// dump asks rtnetlink in the thread's namespace for everything of one type.
func dump(typ uint16, head []byte) ([]netlink.Message, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | netlink.Dump},
		Data:   head,
	})
}

// links are the names of all links of the thread's namespace by ifindex.
func links() (map[int]string, error) {
	h, err := kernel.Open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	ls, err := h.Links()
	names := map[int]string{}
	for _, l := range ls {
		names[l.Index] = l.Name
	}
	return names, err
}

// state reads a host.
func (w *world) state(host string) hostState {
	w.t.Helper()
	h := w.Host(host)
	var s hostState
	err := h.NS.Do(func() error {
		names, err := links()
		if err != nil {
			return err
		}
		for _, d := range []struct {
			kind string
			typ  uint16
			head []byte
			size int // of the fixed header of an answer
		}{
			{"link", unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), unix.SizeofIfInfomsg},
			{"address", unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), unix.SizeofIfAddrmsg},
			{"fdb", unix.RTM_GETNEIGH, append([]byte{unix.AF_BRIDGE}, make([]byte, unix.SizeofIfInfomsg-1)...), unix.SizeofNdMsg},
			{"route", unix.RTM_GETROUTE, make([]byte, unix.SizeofRtMsg), unix.SizeofRtMsg},
			{"qdisc", unix.RTM_GETQDISC, make([]byte, 20), 20},
		} {
			msgs, err := dump(d.typ, d.head)
			if err != nil {
				return fmt.Errorf("dump %s: %w", d.kind, err)
			}
			for _, m := range msgs {
				head := m.Data[:d.size]
				name := d.kind
				switch d.kind {
				case "link", "qdisc":
					name += " " + names[int(enc.NativeEndian.Uint32(head[4:]))]
				case "fdb":
					if enc.NativeEndian.Uint16(head[8:])&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 {
						continue // learned
					}
					// One state for all remotes of a MAC: whoever adds one sets it for all. Any of these bits means "for good".
					enc.NativeEndian.PutUint16(head[8:], unix.NUD_PERMANENT)
					name += " " + names[int(enc.NativeEndian.Uint32(head[4:]))]
				}
				attrs := flatten(d.kind, "", "", m.Data[d.size:])
				if d.kind == "link" {
					for _, a := range append(attrs, fmt.Sprintf("head=%x", head)) {
						s = append(s, name+" "+a)
					}
					continue
				}
				s = append(s, fmt.Sprintf("%s %x %s", name, head, strings.Join(attrs, " ")))
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatalf("state of %s: %v", host, err)
	}
	for at, progs := range w.programs(host) {
		for _, p := range progs {
			s = append(s, "program "+at+" "+p)
		}
	}
	for _, dir := range []string{w.pinDir(host), w.runDir(host)} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if filepath.Base(path) != "control.sock" { // there while a daemon lives
				s = append(s, "file "+path)
			}
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	slices.Sort(s)
	return s
}

func (w *world) pinDir(host string) string {
	return filepath.Join("/sys/fs/bpf/vxbpf", w.Host(host).Instance())
}

func (w *world) runDir(host string) string {
	return filepath.Join("/run/vxbpf", w.Host(host).Instance())
}

// changes from a to b, "" if there are none.
func (a hostState) changes(b hostState) string {
	var out []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

// same fails the test unless the host looks as it did before. Spanning tree
// and operational states take a moment to settle.
func (w *world) same(host, after string, before hostState) {
	w.t.Helper()
	var diff string
	w.settle(func() bool {
		diff = before.changes(w.state(host))
		return diff == ""
	})
	if diff != "" {
		w.t.Errorf("%s is not as it was, after %s:\n%s", host, after, diff)
	}
}

// programs lists by "device direction" what is attached there: "tcx vx_tc_encap".
func (w *world) programs(host string) map[string][]string {
	w.t.Helper()
	out := map[string][]string{}
	err := w.Host(host).NS.Do(func() error {
		names, err := links()
		if err != nil {
			return err
		}
		for i, dev := range names {
			for at, dir := range map[ebpf.AttachType]string{ebpf.AttachTCXIngress: "ingress", ebpf.AttachTCXEgress: "egress"} {
				attached, err := tcxPrograms(w.t, i, at)
				if err != nil {
					return fmt.Errorf("query tcx %s of %s: %w", dir, dev, err)
				}
				for _, p := range attached {
					name, err := programName(p.ID)
					if err != nil {
						return err
					}
					out[dev+" "+dir] = append(out[dev+" "+dir], "tcx "+name)
				}
			}
			filters, err := clsactFilters(i)
			if err != nil {
				return fmt.Errorf("list filters of %s: %w", dev, err)
			}
			for dir, names := range filters {
				out[dev+" "+dir] = append(out[dev+" "+dir], names...)
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatalf("programs of %s: %v", host, err)
	}
	return out
}

func programName(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

// clsactFilters lists the BPF filters below a link's clsact qdisc by direction.
func clsactFilters(ifindex int) (map[string][]string, error) {
	out := map[string][]string{}
	// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS and TC_H_MIN_EGRESS)
	for parent, dir := range map[uint32]string{0xfffffff2: "ingress", 0xfffffff3: "egress"} {
		head := make([]byte, 20)
		enc.NativeEndian.PutUint32(head[4:], uint32(ifindex))
		enc.NativeEndian.PutUint32(head[12:], parent)
		msgs, err := dump(unix.RTM_GETTFILTER, head)
		if errors.Is(err, unix.EINVAL) {
			continue // no such qdisc
		}
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			attrs, err := netlink.UnmarshalAttributes(m.Data[20:])
			if err != nil {
				return nil, err
			}
			for _, a := range attrs {
				if a.Type&^unix.NLA_F_NESTED != 2 { // TCA_OPTIONS
					continue
				}
				options, err := netlink.UnmarshalAttributes(a.Data)
				if err != nil {
					return nil, err
				}
				for _, o := range options {
					if o.Type == 11 { // TCA_BPF_ID
						name, err := programName(ebpf.ProgramID(enc.NativeEndian.Uint32(o.Data)))
						if err != nil {
							return nil, err
						}
						out[dir] = append(out[dir], "clsact "+name)
					}
				}
			}
		}
	}
	return out, nil
}

// hooks fails the test unless exactly one program of ours is at each hook of
// network mgmt, all attached in that way, and none anywhere else.
func (w *world) hooks(host, mode string) {
	w.t.Helper()
	want := map[string][]string{
		w.Spec.Underlay.Device + " ingress": {mode + " vx_tc_decap"},
		"encap-mgmt ingress":                {mode + " vx_tc_deliver"},
		"encap-mgmt egress":                 {mode + " vx_tc_moved"},
		"br-mgmt egress":                    {mode + " vx_tc_encap"},
	}
	for _, c := range w.Host(host).Containers {
		want[c.HostEnd+" ingress"] = []string{mode + " vx_tc_encap"}
	}
	var got map[string][]string
	w.settle(func() bool {
		got = w.programs(host)
		return maps.EqualFunc(got, want, slices.Equal)
	})
	if !maps.EqualFunc(got, want, slices.Equal) {
		w.t.Errorf("programs on %s: %v, want %v", host, got, want)
	}
}
