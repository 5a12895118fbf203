// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Engine is one tree that an engine fills.
type Engine struct {
	// Name is the tree's folder in a cache directory.
	Name string
	// Variable is the environment variable by which the engine finds the tree.
	Variable string
}

// Engines returns the trees that are known by a variable.
func Engines() []Engine {
	return []Engine{
		{"vllm", "VLLM_CACHE_ROOT"},
		{"triton", "TRITON_CACHE_DIR"},
		{"inductor", "TORCHINDUCTOR_CACHE_DIR"},
		{"cuda", "CUDA_CACHE_PATH"},
		{"flashinfer", "FLASHINFER_WORKSPACE_BASE"},
		{"deepgemm", "DG_JIT_CACHE_DIR"},
		{"tilelang", "TILELANG_CACHE_DIR"},
		{"torch-extensions", "TORCH_EXTENSIONS_DIR"},
	}
}

// Tree is a folder to pack, by the name under which it is unpacked again.
type Tree struct {
	Name string `json:"name"`
	// Path is where the tree is, absolute. Some engines note paths in their caches, and
	// then only find again what is unpacked to the same place.
	Path string `json:"path"`
}

// FindTrees returns the trees that the arguments name: NAME=PATH, or a directory whose
// folders are trees. Without arguments they are those below dir, if it is not empty, and
// those that the engines' variables name. Trees that are not there are left out, unless
// an argument names them.
func FindTrees(args []string, dir string, getenv func(string) string) ([]Tree, error) {
	var found []Tree
	var err error
	for _, arg := range args {
		if name, path, named := strings.Cut(arg, "="); named && !strings.Contains(name, "/") {
			found, err = addTree(found, name, path)
		} else {
			found, err = addBelow(found, arg)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(args) > 0 {
		return found, nil
	}
	for _, e := range Engines() {
		path := getenv(e.Variable)
		if path == "" || !isFolder(path) {
			continue
		}
		if found, err = addTree(found, e.Name, path); err != nil {
			return nil, err
		}
	}
	if dir == "" || !isFolder(dir) {
		return found, nil
	}
	return addOthers(found, dir)
}

// addOthers adds the folders of dir that are not among the trees already.
func addOthers(found []Tree, dir string) ([]Tree, error) {
	below, err := addBelow(nil, dir)
	if err != nil {
		return nil, err
	}
	for _, tree := range below {
		if !slices.ContainsFunc(found, func(t Tree) bool { return t.Name == tree.Name }) {
			found = append(found, tree)
		}
	}
	return found, nil
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// addTree adds the folder at path under a name.
func addTree(found []Tree, name, path string) ([]Tree, error) {
	if !isTreeName(name) {
		return nil, fmt.Errorf("%q is no name for a tree: want lower case letters, digits and hyphens, a letter first", name)
	}
	if slices.ContainsFunc(found, func(t Tree) bool { return t.Name == name }) {
		return nil, fmt.Errorf("tree %q comes twice", name)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("looking for tree %q: %w", name, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("looking for tree %q: %w", name, &fs.PathError{Op: "open", Path: path, Err: fs.ErrInvalid})
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("looking for tree %q: %w", name, err)
	}
	return append(found, Tree{Name: name, Path: path}), nil
}

// addBelow adds every folder of dir that has a tree's name.
func addBelow(found []Tree, dir string) ([]Tree, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for trees: %w", err)
	}
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); isTreeName(e.Name()) && isFolder(path) {
			if found, err = addTree(found, e.Name(), path); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

const longestTreeName = 64

func isTreeName(name string) bool { return isName(name) && len(name) <= longestTreeName }
