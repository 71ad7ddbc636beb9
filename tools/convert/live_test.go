// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vxbpf/vxbpf/loader/config"
	"github.com/vxbpf/vxbpf/loader/kernel"
)

// inNamespace runs f in a network namespace of its own, with eth2 and eth3 as underlays.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and the namespace with it
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

const underlays = `
ip link add eth2 type bridge
ip link add eth3 type bridge
ip addr add 192.0.2.11/24 dev eth2
ip addr add 198.51.100.11/24 dev eth3
ip -6 addr add 2001:db8::11/64 dev eth2 nodad
ip link set lo up; ip link set eth2 up; ip link set eth3 up
`

func sh1(text string) error {
	out, err := exec.Command("bash", "-c", "set -e\n"+text).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestLive runs the scripts among the samples: what is then on the host is what the text was read as.
func TestLive(t *testing.T) {
	list, _ := samples(t, IPRoute2)
	ran := 0
	for _, s := range list {
		text := s.files["setup.sh"]
		head, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(text, "#!/bin/sh\n"), "#!/bin/bash\n"), "\n")
		if head != "# runs" {
			continue
		}
		ran++
		t.Run(s.name, func(t *testing.T) {
			inNamespace(t, func() error {
				if err := errors.Join(sh1(underlays), sh1(text)); err != nil {
					return err
				}
				h, err := kernel.Open()
				if err != nil {
					return err
				}
				defer h.Close()
				live, err := Live(h, ImportOptions{})
				if strings.HasPrefix(s.want, "error") {
					if !errors.Is(err, ErrNothing) {
						return fmt.Errorf("live: error %w, want %w", err, ErrNothing)
					}
					return nil
				}
				if err != nil {
					return err
				}
				want, err := config.Parse("text", []byte(s.want))
				if err != nil {
					return err
				}
				got, err := config.Parse("live", live.Config)
				if err != nil {
					return err
				}
				// That a checksum was asked for and not just the default does not show on the host.
				for i := range want.Networks {
					if c := want.Networks[i].Underlay.UDPChecksum; c != nil && *c && !want.Networks[i].V6() {
						want.Networks[i].Underlay.UDPChecksum = nil
					}
				}
				// The running host spells out what a script leaves to the kernel.
				for i := range want.Networks {
					if i < len(got.Networks) && want.Networks[i].Bridge.ForwardDelay == nil {
						got.Networks[i].Bridge.ForwardDelay = nil
					}
				}
				if d := same(want, got); d != "" {
					return fmt.Errorf("the text says (-), the kernel says (+)\n%s\n%s", d, live.Config)
				}
				return nil
			})
		})
	}
	if ran < 30 {
		t.Errorf("%d samples ran, want at least 30", ran)
	}
}

// TestScriptRuns: what export writes as a script makes the links that the config asks for, and takes them away.
func TestScriptRuns(t *testing.T) {
	for name, text := range map[string]string{"five networks": roundTrip, "all options": strings.ReplaceAll(strings.ReplaceAll(full, ", mtu: 8000", ""), "mtu: 9000", "mtu: 1500")} {
		t.Run(name, func(t *testing.T) {
			cfg, err := config.Parse("config.yaml", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			files, _, err := Export(cfg, IPRoute2)
			if err != nil {
				t.Fatal(err)
			}
			inNamespace(t, func() error {
				if err := errors.Join(sh1(underlays), sh1(string(files[0].Text))); err != nil {
					return err
				}
				h, err := kernel.Open()
				if err != nil {
					return err
				}
				defer h.Close()
				live, err := Live(h, ImportOptions{})
				if err != nil {
					return err
				}
				got, err := config.Parse("live", live.Config)
				if err != nil {
					return err
				}
				for i := range got.Networks {
					if i < len(cfg.Networks) {
						if c := cfg.Networks[i].Underlay.UDPChecksum; c != nil && *c && !cfg.Networks[i].V6() {
							cfg.Networks[i].Underlay.UDPChecksum = nil // live cannot tell it from the default
						}
						got.Networks[i].Name = cfg.Networks[i].Name
						if cfg.Networks[i].MTU == 0 && got.Networks[i].MTU == 1500-config.Overhead(got.Networks[i].V6()) {
							got.Networks[i].MTU = 0
						}
						if cfg.Networks[i].Underlay.MTU == 1500 {
							cfg.Networks[i].Underlay.MTU = 0
						}
					}
				}
				if d := same(cfg, got); d != "" {
					return fmt.Errorf("config (-), kernel (+)\n%s\n%s", d, live.Config)
				}
				if err := sh1("set -- down\n" + string(files[0].Text)); err != nil {
					return err
				}
				if _, err := Live(h, ImportOptions{}); !errors.Is(err, ErrNothing) {
					return fmt.Errorf("after down: %w", err)
				}
				return nil
			})
		})
	}
}
