// SPDX-License-Identifier: Apache-2.0

package loader

// Repairs counts what others changed of what the config says.
type Repairs struct {
	Repaired uint64 `json:"repaired"` // put back
	Reported uint64 `json:"reported"` // not ours to put back
}
