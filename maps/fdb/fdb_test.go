// SPDX-License-Identifier: Apache-2.0

package fdb

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func TestParseVNI(t *testing.T) {
	for s, want := range map[string]VNI{"0": 0, "236": 236, "16777215": MaxVNI, "0xffffff": MaxVNI} {
		if got, err := ParseVNI(s); got != want || err != nil {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "-1", "16777216", "x", "1.5"} {
		if _, err := ParseVNI(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestParseMAC(t *testing.T) {
	m, err := ParseMAC("02:00:5E-10:00:fF")
	if err != nil || m.String() != "02:00:5e:10:00:ff" {
		t.Errorf("%v, %v", m, err)
	}
	for _, s := range []string{"", "02:00:5e:10:00", "02:00:5e:10:00:gg", "0200.5e10.00ff", "02:00:5e:10:00:ff:00", "02 00 5e 10 00 ff"} {
		if _, err := ParseMAC(s); !errors.Is(err, ErrNotMAC) {
			t.Errorf("%q: %v", s, err)
		}
	}
	var back MAC
	if b, err := m.MarshalText(); err != nil || back.UnmarshalText(b) != nil || back != m {
		t.Errorf("text round trip: %v, %v", back, err)
	}
	if !(MAC{1}).IsMulticast() || (MAC{2}).IsMulticast() || !(MAC{}).IsZero() || m.IsZero() {
		t.Error("group bit or zero")
	}
}

func TestKindString(t *testing.T) {
	for k, want := range map[Kind]string{Remote: "remote", Peer: "peer", Egress: "egress", Host: "host", 0: "kind(0)", 9: "kind(9)"} {
		if got := k.String(); got != want {
			t.Errorf("%d is %q, want %q", k, got, want)
		}
	}
}

func TestSameIgnoresAge(t *testing.T) {
	a := Entry{Kind: Remote, VTEP: netip.MustParseAddr("192.0.2.12"), Seen: time.Second}
	b := a
	b.Seen = time.Hour
	if !a.Same(b) {
		t.Error("an older entry is another one")
	}
	for what, change := range map[string]func(*Entry){
		"kind": func(e *Entry) { e.Kind = Peer }, "port": func(e *Entry) { e.Port = 1 }, "mtu": func(e *Entry) { e.MTU = 1 },
		"vtep": func(e *Entry) { e.VTEP = netip.MustParseAddr("192.0.2.13") }, "static": func(e *Entry) { e.Static = true },
	} {
		b := a
		change(&b)
		if a.Same(b) {
			t.Errorf("another %s is the same entry", what)
		}
	}
}
