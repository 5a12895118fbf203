// SPDX-License-Identifier: Apache-2.0

package dropin

import (
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestKernelsTravelThroughARealStore publishes compiled kernels to a real S3 server and
// pulls them, with publishers that race for one key.
func TestKernelsTravelThroughARealStore(t *testing.T) {
	server := startServer(t)
	server.put(t, "llama/config.json", []byte("{}"))
	preloader := buildPreloader(t)
	dir := t.TempDir()
	files := map[string]string{
		"vllm/graph.py": "compiled", "triton/AB/k.cubin": "cubin", "inductor/big.so": string(noise(3, 21*mebibyte)),
	}
	writeFiles(t, filepath.Join(dir, "old"), files)
	do := func(jit string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), preloader.argv[0], args...)
		env := maps.Clone(server.env())
		maps.Copy(env, preloader.env)
		maps.Copy(env, map[string]string{
			"PRELOADER_JIT_CACHE_URI": "s3://models/jit", "PRELOADER_JIT_CACHE_DIR": filepath.Join(dir, jit),
			"PRELOADER_JIT_CACHE_KEY": "engine=test,gpu=none", "PRELOADER_JIT_CACHE_MODEL": filepath.Join(dir, "models"),
		})
		for k, v := range env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v", args, err)
		}
		return string(out)
	}
	pull := func(jit string) string { return do(jit, "s3://models/llama", filepath.Join(dir, "models")) }
	if out := pull("new"); !strings.Contains(out, "none is published for ") {
		t.Errorf("before any was published:\n%s", out)
	}
	outcomes := make(chan string)
	const publishers = 3
	for range publishers {
		go func() { outcomes <- do("old", "publish-cache") }()
	}
	first := 0
	for range publishers {
		out := <-outcomes
		first += strings.Count(out, "Published 3 files")
		if !strings.Contains(out, "ublished") {
			t.Errorf("a publisher says\n%s", out)
		}
	}
	if first == 0 {
		t.Error("nobody published")
	}
	if out := pull("new"); !strings.Contains(out, "Compiled kernels ready for inductor, triton, vllm (3 files, 22.0 MB)") {
		t.Errorf("after it was published:\n%s", out)
	}
	unpacked := tree(t, filepath.Join(dir, "new"))
	const origin = ".preloader-jit.json" // tells that the rest came from a publication
	if _, ok := unpacked[origin]; !ok {
		t.Errorf("there is no %s beside the trees", origin)
	}
	delete(unpacked, origin)
	if diff := cmp.Diff(tree(t, filepath.Join(dir, "old")), unpacked); diff != "" {
		t.Errorf("trees (-packed +unpacked):\n%s", diff)
	}
	writeFiles(t, filepath.Join(dir, "old"), map[string]string{"vllm/more.py": "more"})
	if out := do("old", "publish-cache"); !strings.Contains(out, "nothing was changed") {
		t.Errorf("published once more:\n%s", out)
	}
	if out := do("old", "publish-cache", "--replace=true"); !strings.Contains(out, "Published 4 files") {
		t.Errorf("replaced:\n%s", out)
	}
	if out := pull("newer"); !strings.Contains(out, "(4 files, 22.0 MB)") {
		t.Errorf("after it was replaced:\n%s", out)
	}
}
