// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"github.com/vxbpf/vxbpf/loader/probe"
)

// Feature is something of the kernel's that the data path uses.
type Feature struct {
	Name string `json:"name"`
	// Kernel is the release that brought it. For people: what counts is Have.
	Kernel string `json:"kernel"`
	// For is what it is used for, Without what is lost where it is missing.
	For     string `json:"for"`
	Without string `json:"without"`
	// Required: no fast path without it.
	Required bool `json:"required"`
	Have     bool `json:"have"`
	// Unknown: it could not be tried, and so is not used.
	Unknown bool `json:"unknown,omitempty"`
	// Error is the answer to the try, of what is not had.
	Error string `json:"error,omitempty"`

	try func() error
	err error
}

// Names of features that decide something.
const (
	featureTCX     = "tcx"
	featureClsact  = "clsact"
	featureDecapL3 = "decap_l3"

	featureXDPFrags = "xdp_frags"
)

const noFastPath = "no fast path"

// allFeatures is the table of `vxbpf features`. A feature is added here, with the try
// that finds it; what it decides asks Features by name.
func allFeatures() []Feature {
	const overIPv4 = 50
	return []Feature{
		{Name: "encap_l2_eth", Kernel: "5.13", Required: true, For: "encapsulation that keeps segmentation offload", Without: noFastPath,
			try: func() error {
				return probe.AdjustRoom(overIPv4, probe.FixedGSO|probe.EncapL3IPv4|probe.EncapL4UDP|probe.EncapL2Eth|probe.EncapL2(14))
			}},
		{Name: "decap", Kernel: "5.1", Required: true, For: "decapsulation at the underlay", Without: noFastPath,
			try: func() error { return probe.AdjustRoom(-overIPv4, probe.FixedGSO) }},
		{Name: featureDecapL3, Kernel: "6.3", For: "the same of IPv6 in IPv4, and of IPv4 in IPv6", Without: "the vxlan device decapsulates these, BPF delivers them",
			try: func() error { return probe.AdjustRoom(-overIPv4, probe.FixedGSO|probe.DecapL3IPv6) }},
		{Name: "redirect_peer", Kernel: "5.10", Required: true, For: "delivery into containers", Without: noFastPath,
			try: func() error { return probe.Helpers(ebpf.SchedCLS, asm.FnRedirectPeer) }},
		{Name: "redirect_neigh", Kernel: "5.10", Required: true, For: "the way out while no daemon vouches for next hops", Without: noFastPath,
			try: func() error { return probe.Helpers(ebpf.SchedCLS, asm.FnRedirectNeigh) }},
		{Name: "coarse_clock", Kernel: "5.11", Required: true, For: "ageing, and the order of packets", Without: noFastPath,
			try: func() error { return probe.Helpers(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs) }},
		{Name: "check_mtu", Kernel: "5.12", Required: true, For: "seeing that a port is gone while no daemon runs", Without: noFastPath,
			try: func() error { return probe.Helpers(ebpf.SchedCLS, asm.FnCheckMtu) }},
		{Name: "checksums", Kernel: "5.7", Required: true, For: "packets whose outer checksum the device verified; congestion marks", Without: noFastPath,
			try: func() error {
				return probe.Helpers(ebpf.SchedCLS, asm.FnCsumLevel, asm.FnCsumUpdate, asm.FnSkbEcnSetCe)
			}},
		{Name: "maps", Kernel: "4.6", Required: true, For: "FDB, ports, VTEPs, counters", Without: noFastPath,
			try: func() error { return probe.Maps(ebpf.Hash, ebpf.Array, ebpf.PerCPUArray) }},
		{Name: "xdp", Kernel: "5.4", For: "raw frames past the stack, and the source check at the driver", Without: "tc programs do both",
			try: func() error { return probe.XDP(false) }},
		{Name: featureXDPFrags, Kernel: "5.18", For: "the same of frames larger than a page", Without: "no XDP at devices with a large MTU",
			try: func() error { return probe.XDP(true) }},
		{Name: featureTCX, Kernel: "6.6", For: "programs at devices, swapped in one step and kept by a pin", Without: "clsact filters instead",
			try: probe.TCX},
		{Name: featureClsact, Kernel: "4.5", For: "the same where there is no tcx, and seeing other people's filters", Without: "no fast path where there is no tcx either",
			try: haveClsact},
	}
}

// Features is what the kernel that vxbpf runs on has.
type Features []Feature

// Probe tries everything. It attaches nothing where packets pass.
func Probe() Features {
	// Before 5.11 maps and programs count against RLIMIT_MEMLOCK; a try that lacks this right says so itself.
	_ = rlimit.RemoveMemlock()
	all := allFeatures()
	for i := range all {
		f := &all[i]
		err := f.try()
		if f.Have = err == nil; !f.Have {
			f.err, f.Error = err, oneLine(err)
			f.Unknown = !errors.Is(err, ebpf.ErrNotSupported)
		}
	}
	return all
}

// Have reports whether a feature was found.
func (fs Features) Have(name string) bool { return fs.get(name).Have }

func (fs Features) get(name string) Feature {
	i := slices.IndexFunc(fs, func(f Feature) bool { return f.Name == name })
	if i < 0 {
		return Feature{Name: name, Error: "not tried"}
	}
	return fs[i]
}

// Attach is how programs would be attached: "tcx" or "clsact".
func (fs Features) Attach() string {
	if fs.Have(featureTCX) {
		return featureTCX
	}
	return featureClsact
}

// FastPath is nil where the fast path can run, and says why where it cannot:
// an error that wraps ebpf.ErrNotSupported, or what kept a feature from being tried.
func (fs Features) FastPath() error {
	var lacks []string
	var unknown error
	for _, f := range fs {
		switch {
		case !f.Required || f.Have:
		case f.Unknown:
			if unknown == nil {
				unknown = fmt.Errorf("try what kernel %s can do: %s: %w", probe.Release(), f.Name, f.err)
			}
		default:
			lacks = append(lacks, fmt.Sprintf("%s (%s)", f.Name, f.Kernel))
		}
	}
	if len(lacks) > 0 {
		return fmt.Errorf("kernel %s lacks %s: %w", probe.Release(), strings.Join(lacks, ", "), ebpf.ErrNotSupported)
	}
	if unknown != nil {
		return unknown
	}
	// A clsact qdisc that could not be tried (no right to make a namespace for it) may well be there.
	if c := fs.get(featureClsact); !fs.Have(featureTCX) && !c.Have && !c.Unknown {
		return fmt.Errorf("kernel %s has neither tcx nor clsact: %w", probe.Release(), ebpf.ErrNotSupported)
	}
	return nil
}
