// SPDX-License-Identifier: Apache-2.0

// Package fdb is the vocabulary of the overlay: network identifiers, MAC
// addresses, forwarding entries. It imports the standard library only and is
// the leaf that every other package may use.
package fdb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// VNI is a VXLAN Network Identifier in host order, 24 bits wide (RFC 7348
// section 5).
type VNI uint32

// MaxVNI is the largest VNI that fits the 24 bits of the VXLAN header.
const MaxVNI VNI = 1<<24 - 1

// ParseVNI reads a decimal or 0x-prefixed VNI. The error names the value and
// the range.
func ParseVNI(s string) (VNI, error) {
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil || n > uint64(MaxVNI) {
		return 0, fmt.Errorf("parse VNI %q: want a number from 0 to %d", s, MaxVNI)
	}
	return VNI(n), nil
}

func (v VNI) String() string { return strconv.FormatUint(uint64(v), 10) }

// MAC is an IEEE 802 MAC address in transmission order.
type MAC [6]byte

// ErrNotMAC is what ParseMAC wraps.
var ErrNotMAC = errors.New("not a MAC address")

// ParseMAC reads six colon- or hyphen-separated hexadecimal octets.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) != 17 {
		return m, fmt.Errorf("parse %q: %w, want aa:bb:cc:dd:ee:ff", s, ErrNotMAC)
	}
	for i := range m {
		if i > 0 && s[i*3-1] != ':' && s[i*3-1] != '-' {
			return MAC{}, fmt.Errorf("parse %q: %w, want aa:bb:cc:dd:ee:ff", s, ErrNotMAC)
		}
		if _, err := hex.Decode(m[i:i+1], []byte(s[i*3:i*3+2])); err != nil {
			return MAC{}, fmt.Errorf("parse %q: %w, want aa:bb:cc:dd:ee:ff", s, ErrNotMAC)
		}
	}
	return m, nil
}

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// MarshalText makes a MAC a JSON string.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (m *MAC) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMAC(string(b))
	return err
}

// IsZero reports the all-zero address, which the kernel's vxlan FDB uses as
// the key of its default destination.
func (m MAC) IsZero() bool { return m == MAC{} }

// IsMulticast reports a group address, broadcast included (IEEE 802, I/G bit).
func (m MAC) IsMulticast() bool { return m[0]&1 == 1 }

// NetID numbers a network inside one host's maps. 0 is "no network".
type NetID uint16

// Kind says how a packet reaches the MAC of an Entry.
type Kind uint8

const (
	// Remote: behind the VTEP of the entry.
	Remote Kind = iota + 1
	// Peer: a veth whose other end is in another network namespace;
	// bpf_redirect_peer hands the packet over without a backlog hop.
	Peer
	// Egress: any other bridge port (tap, physical, veth in this namespace):
	// transmit on the device.
	Egress
	// Host: this host's own address on the bridge: receive on the bridge device.
	Host
)

func (k Kind) String() string {
	switch k {
	case Remote:
		return "remote"
	case Peer:
		return "peer"
	case Egress:
		return "egress"
	case Host:
		return "host"
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// Key is what the FDB is searched by.
type Key struct {
	Net NetID
	MAC MAC
}

func (k Key) String() string { return fmt.Sprintf("%d/%s", k.Net, k.MAC) }

// Entry is where one MAC of one network lives, as the kernel decided.
type Entry struct {
	Kind Kind
	// Port is the ifindex of the bridge port, or of the bridge itself for
	// Host. 0 for Remote.
	Port uint32
	// MTU is the largest payload in bytes, Ethernet header excluded, that the
	// kernel would send out of Port. 0 for Remote.
	MTU uint16
	// VTEP is the remote tunnel endpoint. Invalid unless Kind is Remote.
	VTEP netip.Addr
	// Static entries do not age: configured, or learnt from a control plane.
	Static bool
	// Sticky: no frame from another bridge port moves the entry. Pinned: none
	// from another VTEP does. In the kernel, static alone means neither.
	Sticky, Pinned bool
	// Raw: the port takes raw frames, so XDP may deliver all but TCP; RawTCP: TCP
	// too; RawSG: frames in several buffers as well.
	Raw, RawTCP, RawSG bool
	// Pending: written, and not confirmed by asking the kernel again. Shows
	// moves, carries no packet. Same does not look at it.
	Pending bool
	// Seen is when the kernel last had a frame from this MAC, on
	// CLOCK_MONOTONIC. Same does not look at it: the data path moves it on
	// its own.
	Seen time.Duration
}

// Same reports whether two entries send packets to the same place under the
// same rules. Seen and Pending do not count.
func (e Entry) Same(o Entry) bool {
	e.Seen, o.Seen, e.Pending, o.Pending = 0, 0, false, false
	return e == o
}

// Table is a set of entries.
type Table map[Key]Entry
