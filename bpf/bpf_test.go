// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// The names in Go are typed by hand, since they are interface; the object knows the truth.
func TestReasonNamesMatchObject(t *testing.T) {
	spec, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	var e *btf.Enum
	if err := spec.Types.TypeByName("reason", &e); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, v := range e.Values {
		if v.Name == "REASON_MAX" {
			continue
		}
		n++
		if got, want := Reason(v.Value).String(), strings.ToLower(v.Name); got != want {
			t.Errorf("reason %d is %q in Go, %q in C", v.Value, got, want)
		}
	}
	if n != Reasons {
		t.Errorf("%d reasons in Go, %d in C", Reasons, n)
	}
	if got := Reason(ReasonMax - 1).String(); got != "reason_63" {
		t.Errorf("unnamed reason prints %q", got)
	}
}

// bpffs refuses dots and the kernel cuts names at 15 characters: the prefix must survive.
func TestObjectNames(t *testing.T) {
	spec, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Maps {
		if !strings.HasPrefix(name, "vx_") && name != ".rodata" || len(name) > 15 {
			t.Errorf("map %q: want vx_ and at most 15 characters", name)
		}
	}
	for name := range spec.Programs {
		if !strings.HasPrefix(name, "vx_") || len(name) > 15 {
			t.Errorf("program %q: want vx_ and at most 15 characters", name)
		}
	}
}
