// SPDX-License-Identifier: Apache-2.0

// Package packaging holds what packages install; its tests check those files.
package packaging
