// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"serverless.xyz/outrigger/preloader/crc"
	"serverless.xyz/outrigger/preloader/safetensors"
)

// shard is one file of a model.
type shard struct {
	path string
	file *os.File
	size int64
	// header is what the file says about its tensors.
	header *safetensors.Header
	// check is the kind of check that the file's bytes get.
	check *crc.Kind
	// want is the check that the pull noted, and proven whether there is one.
	want   uint64
	proven bool
	// head is the check of the bytes before the tensors, which stay on the host.
	head uint64
}

// openModel opens the safetensors files of the arguments: files themselves, and of
// folders the files that their index names, or else all *.safetensors in them.
func openModel(paths []string) (shards []*shard, err error) {
	defer func() {
		if err != nil {
			closeModel(shards)
		}
	}()
	for _, path := range paths {
		files, err := filesOf(path)
		if err != nil {
			return shards, err
		}
		for _, f := range files {
			s, err := openShard(f)
			if err != nil {
				return shards, err
			}
			shards = append(shards, s)
		}
	}
	if len(shards) == 0 {
		return nil, noModel(fmt.Errorf("no safetensors file in %s", strings.Join(paths, ", ")))
	}
	return shards, nil
}

func closeModel(shards []*shard) {
	for _, s := range shards {
		_ = s.file.Close()
	}
}

func noModel(err error) error {
	return &modelError{
		code: ExitNotFound, reason: "NoModel", err: err,
		advice: "Name a folder with safetensors files, or the files; other formats are not loaded.",
	}
}

// filesOf lists what one argument stands for.
func filesOf(path string) ([]string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noModel(err)
	}
	if err != nil {
		return nil, unreadable(err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	raw, err := os.ReadFile(filepath.Join(path, safetensors.IndexName))
	if errors.Is(err, fs.ErrNotExist) {
		files, err := filepath.Glob(filepath.Join(escaped(path), "*.safetensors"))
		slices.Sort(files)
		return files, err
	}
	if err != nil {
		return nil, unreadable(err)
	}
	index, err := safetensors.ParseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(path, safetensors.IndexName), err)
	}
	var files []string
	for _, f := range index.Files {
		files = append(files, filepath.Join(path, f))
	}
	return files, nil
}

// escaped keeps a folder's name from being taken for a pattern.
func escaped(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func unreadable(err error) error {
	return &modelError{
		code:   ExitNoInput,
		reason: "Unreadable",
		err:    err,
		advice: "Check the volume and the permissions of the container's user.",
	}
}

// openShard opens a file, reads its header and looks up what the pull noted about it.
func openShard(path string) (*shard, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noModel(err)
	}
	if err != nil {
		return nil, unreadable(err)
	}
	s := &shard{path: path, file: f, check: crc.NVME}
	if err := s.read(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return s, nil
}

func (s *shard) read() error {
	info, err := s.file.Stat()
	if err != nil {
		return unreadable(err)
	}
	s.size = info.Size()
	if s.header, err = safetensors.Read(s.file, s.size); err != nil {
		if errors.Is(err, safetensors.ErrMalformed) {
			return fmt.Errorf("%s: %w", s.path, err)
		}
		return unreadable(err)
	}
	s.lookUp()
	head := make([]byte, s.header.Start)
	if _, err := s.file.ReadAt(head, 0); err != nil {
		return unreadable(err)
	}
	s.head = s.check.Update(0, head)
	return nil
}

// pulled is what this package needs of the marker that a pull leaves in the folder.
type pulled struct {
	Files []struct {
		Path string `json:"path"`
		Size int64  `json:"size"`
		CRC  string `json:"crc"`
		Sum  string `json:"sum"`
	} `json:"files"`
}

// markerName is the file that a pull leaves when it is complete.
const markerName = ".preloader.json"

// lookUp finds the check that a pull noted for the file, in the marker of its folder or
// of a folder above. Without one, the bytes are checked against themselves only.
func (s *shard) lookUp() {
	absolute, err := filepath.Abs(s.path)
	if err != nil {
		return
	}
	for dir := filepath.Dir(absolute); ; dir = filepath.Dir(dir) {
		if raw, err := os.ReadFile(filepath.Join(dir, markerName)); err == nil {
			s.believe(raw, absolute[len(strings.TrimSuffix(dir, "/"))+1:])
			return
		}
		if dir == "/" {
			return
		}
	}
}

// believe takes the check of the file at rel from a marker.
func (s *shard) believe(marker []byte, rel string) {
	var noted pulled
	if json.Unmarshal(marker, &noted) != nil {
		return
	}
	for _, f := range noted.Files {
		kind := crc.ByName(f.CRC)
		if f.Path != rel || kind == nil || f.Size != s.size {
			continue
		}
		if want, err := kind.Decode(f.Sum); err == nil {
			s.check, s.want, s.proven = kind, want, true
		}
	}
}

// verify compares the check of the whole file, from those of its pieces, with what the
// pull noted. sums are in the order of the pieces.
func (s *shard) verify(pieces []*chunk) error {
	slices.SortFunc(pieces, func(a, b *chunk) int { return cmp.Compare(a.offset, b.offset) })
	sum := s.head
	for _, c := range pieces {
		sum = s.check.Combine(sum, c.sum, int64(c.n))
	}
	if !s.proven || sum == s.want {
		return nil
	}
	return &modelError{
		code: ExitIntegrity, reason: "WrongBytes",
		err: fmt.Errorf("%s does not hold what was pulled: its %s is %s, want %s",
			s.path, s.check.Name, s.check.Encode(sum), s.check.Encode(s.want)),
		advice: "Remove the file and pull again.",
	}
}
