// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vxbpf/vxbpf/loader/config"
)

// What an instance keeps in its run directory besides state and lock.
func controlFile(run string) string  { return filepath.Join(run, "control.sock") }
func activeFile(run string) string   { return filepath.Join(run, "config.yaml") } // a copy of what is loaded
func windowFile(run string) string   { return filepath.Join(run, "window.json") }
func rejectedFile(run string) string { return filepath.Join(run, "rejected.json") }

// writeFile puts a file of the run directory down in one step: aside, then renamed.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// document is a config file as it was when it was read.
type document struct {
	File string `json:"file"`
	Text string `json:"text"`
}

func documentOf(cfg *config.Config) document {
	return document{File: absolute(cfg.File), Text: string(cfg.Text())}
}

// absolute is a config's path for a process with another working directory.
func absolute(file string) string {
	if file == stdin || file == "" {
		return file
	}
	if abs, err := filepath.Abs(file); err == nil {
		return abs
	}
	return file
}

func (c document) parse() (*config.Config, error) { return config.Parse(c.File, []byte(c.Text)) }

func writeActive(run string, cfg *config.Config) error {
	return writeFile(activeFile(run), cfg.Text(), 0o600)
}

// Active is the config that the instance has loaded, as it was then: the file may
// have changed since. The error wraps os.ErrNotExist where nothing is loaded.
func Active(opt Options) (*config.Config, error) {
	doc, err := active(opt.runDir())
	if err != nil {
		return nil, err
	}
	return doc.parse()
}

func active(run string) (*document, error) {
	st, err := ReadState(run)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(activeFile(run))
	if err != nil {
		return nil, fmt.Errorf("read the config that is loaded: %w", err)
	}
	return &document{File: st.Config, Text: string(b)}, nil
}
