// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"serverless.xyz/outrigger/preloader/quantity"
)

// Report is what a run has to say at its end.
type Report struct {
	// Files and Bytes count what is in place now.
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
	// Fetched counts bytes that came over the network.
	Fetched int64 `json:"fetched"`
	// Resumed counts bytes of unfinished files that an earlier run had brought.
	Resumed int64 `json:"resumed"`
	// Reused counts bytes that came from the node's cache.
	Reused int64 `json:"reused,omitempty"`
	// Skipped counts files that were complete already.
	Skipped int `json:"skipped"`
	// LeftOut counts files that the selection left out.
	LeftOut *Amount `json:"leftOut,omitempty"`
	// Retries counts requests that were made again.
	Retries int64 `json:"retries"`
	// Overtaken counts slow or silent requests whose rest came over another
	// connection.
	Overtaken int64 `json:"overtaken,omitempty"`
	// Seconds is the wall time.
	Seconds float64 `json:"seconds"`
	// IO is how bytes were written.
	IO IOMode `json:"io,omitempty"`
	// Cached counts bytes of files in place that are in the page cache, of files
	// of 1 MiB or more; absent if there are none, or the kernel does not tell.
	Cached *int64 `json:"cached,omitempty"`
	// cacheable is of how many bytes Cached tells.
	cacheable int64
	// Digests name the content that is in place for each source from S3.
	Digests []string `json:"digests,omitempty"`
	// Evidence counts files by why they are believed, for all files in place.
	Evidence map[Evidence]int `json:"evidence,omitempty"`
	// GPU is the verdict on the pod's GPUs, if one was asked for.
	GPU *GPUVerdict `json:"gpu,omitempty"`
	// JITCache is what came of compiled kernels, if any were asked for.
	JITCache *CacheReport `json:"jitCache,omitempty"`
}

// add takes the report of a further pair in.
func (r *Report) add(o Report) {
	r.Files += o.Files
	r.Bytes += o.Bytes
	r.Fetched += o.Fetched
	r.Resumed += o.Resumed
	r.Reused += o.Reused
	r.Skipped += o.Skipped
	if o.LeftOut != nil {
		if r.LeftOut == nil {
			r.LeftOut = &Amount{}
		}
		r.LeftOut.Files += o.LeftOut.Files
		r.LeftOut.Bytes += o.LeftOut.Bytes
	}
	r.Digests = append(r.Digests, o.Digests...)
	r.Retries += o.Retries
	r.Overtaken += o.Overtaken
	r.Seconds += o.Seconds
	if o.IO != "" {
		r.IO = o.IO
	}
	if o.Cached != nil {
		sum := *o.Cached
		if r.Cached != nil {
			sum += *r.Cached
		}
		r.Cached = &sum
		r.cacheable += o.cacheable
	}
	for e, n := range o.Evidence {
		r.believe(e, n)
	}
}

func (r *Report) believe(e Evidence, n int) {
	if r.Evidence == nil {
		r.Evidence = map[Evidence]int{}
	}
	r.Evidence[e] += n
}

// rungs lists the evidence that files stand on, the best first, with how many of them do
// if there is more than one kind.
func (r *Report) rungs() string {
	var texts []string
	for _, e := range slices.SortedFunc(maps.Keys(r.Evidence), func(a, b Evidence) int { return a.rank() - b.rank() }) {
		if len(r.Evidence) == 1 {
			return string(e)
		}
		texts = append(texts, fmt.Sprintf("%s %d", e, r.Evidence[e]))
	}
	return strings.Join(texts, ", ")
}

// countOf counts things of which one is called that.
func countOf(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

// summary is the report as a sentence.
func (r *Report) summary() string {
	if r.Files == 0 && r.Digests == nil {
		return "nothing was to be fetched"
	}
	text := fmt.Sprintf("%s, %s in place after %s", countOf(r.Files, "file"), quantity.FormatBytes(r.Bytes),
		time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond))
	if r.Fetched > 0 && r.Seconds > 0 {
		text += fmt.Sprintf(
			", %s fetched at %s/s",
			quantity.FormatBytes(r.Fetched),
			quantity.FormatBytes(int64(float64(r.Fetched)/r.Seconds)),
		)
	}
	if r.Reused > 0 {
		text += fmt.Sprintf(", %s taken from this node's cache", quantity.FormatBytes(r.Reused))
	}
	if r.Resumed > 0 {
		text += fmt.Sprintf(", %s were left of an earlier run", quantity.FormatBytes(r.Resumed))
	}
	if r.Skipped > 0 {
		text += fmt.Sprintf(", %s there already", countOf(r.Skipped, "file"))
	}
	if r.LeftOut != nil {
		text += fmt.Sprintf(", %s with %s left out", countOf(r.LeftOut.Files, "file"), quantity.FormatBytes(r.LeftOut.Bytes))
	}
	if r.Cached != nil && r.cacheable > 0 {
		text += fmt.Sprintf(", %d %% in the page cache", percent(*r.Cached, r.cacheable))
	}
	if len(r.Evidence) > 0 {
		text += ", checked by " + r.rungs()
	}
	if r.JITCache != nil {
		text += "; " + strings.TrimSuffix(r.JITCache.String(), ".")
	}
	return text
}

// longestMessage is below what Kubernetes keeps of a termination message.
const longestMessage = 2048

// lastWord is the JSON line that ends a termination message.
type lastWord struct {
	Code   ExitCode `json:"code"`
	Reason string   `json:"reason"`
	*Report
}

// terminationMessage returns a sentence for people and a line for programs, in
// at most longestMessage bytes.
func terminationMessage(r *Report, f *ExitError) string {
	word := lastWord{Reason: "Completed", Report: r}
	var text string
	if f != nil {
		word.Code, word.Reason = f.Code, f.Reason
		text = sentence(f)
	} else {
		text = "Model ready: " + r.summary() + "."
		if r.GPU != nil {
			text += " " + r.GPU.Summary
		}
	}
	line, err := json.Marshal(word)
	if len(line) > longestMessage/2 && len(r.Digests) > 1 { // of many sources
		short := *r
		short.Digests, word.Report = nil, &short
		line, err = json.Marshal(word)
	}
	if err != nil {
		line = nil
	}
	if room := max(longestMessage-len(line)-1, len("…")); len(text) > room {
		text = strings.ToValidUTF8(text[:room-len("…")], "") + "…"
	}
	return text + "\n" + string(line)
}

// sentence words a failure: cause, detail, advice.
func sentence(f *ExitError) string {
	text := strings.TrimSuffix(oneLine(f.Error()), ".") + "."
	if f.Advice != "" {
		text += " " + f.Advice
	}
	return shown(text)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// writeTermination leaves the last word where Kubernetes reads it. Outside of a
// pod the default file does not exist, and is not made.
func writeTermination(path, message string) error {
	flags := os.O_WRONLY | os.O_TRUNC
	if path != DefaultTerminationLog {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, fileMode)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing the termination message: %w", err)
	}
	if _, err := f.WriteString(message); err != nil {
		_ = f.Close()
		return fmt.Errorf("writing the termination message: %w", err)
	}
	return f.Close()
}
