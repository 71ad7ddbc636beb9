// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const memoryMB = 1536

// boot runs a kernel until it switches itself off or the deadline passes. Each
// line of its console goes to line.
//
// TCG, not KVM: it works wherever tests run, inside virtual machines too. q35,
// not microvm, which boots half a second faster: where a busy host disturbs the
// kernel's measuring of the TSC, microvm has no other clock and hangs.
func boot(ctx context.Context, img image, initrd string, deadline time.Duration, line func(string)) error {
	kernel, err := img.kernel()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", qemuArgs(kernel, initrd)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var msg strings.Builder
	cmd.Stderr = &msg
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := bufio.NewReader(out)
	for {
		text, err := r.ReadString('\n')
		if text != "" {
			line(strings.TrimRight(text, "\r\n"))
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			break // qemu went, as Wait will say
		}
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("run kernel %s: not done after %s", img.name, deadline)
	}
	if err != nil {
		return fmt.Errorf("run kernel %s: %w: %s", img.name, err, strings.TrimSpace(msg.String()))
	}
	return nil
}

func qemuArgs(kernel, initrd string) []string {
	return []string{
		"-accel", "tcg", "-machine", "q35,hpet=off,vmport=off,usb=off", "-cpu", "max,la57=off", "-smp", "1", "-m", strconv.Itoa(memoryMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 loglevel=2 panic=-1 oops=panic mitigations=off random.trust_cpu=on tsc=reliable reboot=t rdinit=/init",
	}
}

// shell gives the caller's terminal to the guest.
func shell(ctx context.Context, img image, initrd string) error {
	kernel, err := img.kernel()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", qemuArgs(kernel, initrd)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}
