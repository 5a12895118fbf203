// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"iter"
	"path"
	"slices"
	"strings"
)

// SelectMode says which files of a model are left out because others hold the
// same weights.
type SelectMode string

const (
	// SelectAll leaves nothing out.
	SelectAll SelectMode = "all"
	// SelectSafetensors leaves out what safetensors files beside it make superfluous.
	SelectSafetensors SelectMode = "safetensors"
)

// otherForms are endings of files that hold weights in another form.
var otherForms = []string{".bin", ".pth", ".pt", ".h5", ".msgpack", ".ot", ".bin.index.json"}

// superfluous returns a function that tells why a file may be left out because
// safetensors files make it superfluous, or nothing. Every folder is judged by
// itself, but for a folder named original, which repeats the one above it. shards
// holds what each index names.
func superfluous(files iter.Seq[string], shards map[string][]string) (why func(file string) string) {
	folders := map[string][]string{} // of safetensors, without those for another loader
	for f := range files {
		if strings.HasSuffix(f, ".safetensors") && !isConsolidated(f) {
			folders[path.Dir(f)] = append(folders[path.Dir(f)], f)
		}
	}
	unnamed := unnamedShards(folders, shards)
	return func(f string) string {
		if index, ok := unnamed[f]; ok {
			return "not named by " + index
		}
		if above, ok := original(f); ok && len(folders[above]) > 0 {
			return "a copy in the original form"
		}
		switch {
		case len(folders[path.Dir(f)]) == 0:
		case isConsolidated(f):
			return "a copy for another loader"
		case slices.ContainsFunc(otherForms, func(form string) bool { return strings.HasSuffix(f, form) }):
			return "weights in another form"
		}
		return ""
	}
}

// unnamedShards returns the files of folders that an index should name and does not,
// with that index.
func unnamedShards(folders, shards map[string][]string) map[string]string {
	out := map[string]string{}
	for index, names := range shards {
		if isConsolidated(index) {
			continue
		}
		needed := map[string]bool{}
		for _, name := range names {
			needed[path.Join(path.Dir(index), name)] = true
		}
		stem := strings.TrimSuffix(index, indexSuffix)
		for _, f := range folders[path.Dir(index)] {
			if belongs(f, stem) && !needed[f] {
				out[f] = index
			}
		}
	}
	return out
}

// isConsolidated reports whether a file is for loaders of Mistral's or Meta's own form.
func isConsolidated(f string) bool {
	name := path.Base(f)
	return strings.HasPrefix(name, "consolidated.") || strings.HasPrefix(name, "consolidated-")
}

// belongs reports whether a file is of the set that the stem of an index names:
// the stem itself, or the stem with a number or a variant behind it. Others,
// such as adapters, stay.
func belongs(f, stem string) bool {
	rest, ok := strings.CutPrefix(f, stem)
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "-"))
}

// original returns the folder above the first folder of a path that is named original.
func original(f string) (above string, ok bool) {
	elements := strings.Split(path.Dir(f), "/")
	at := slices.Index(elements, "original")
	if at < 0 {
		return "", false
	}
	return path.Join(".", path.Join(elements[:at]...)), true
}

// missingShards returns what the indexes name but nothing holds, as paths.
func missingShards(have func(string) bool, shards map[string][]string) []string {
	var missing []string
	for index, needed := range shards {
		for _, name := range needed {
			if f := path.Join(path.Dir(index), name); !have(f) {
				missing = append(missing, f)
			}
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}
