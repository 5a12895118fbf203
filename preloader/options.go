// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"serverless.xyz/outrigger/preloader/jitcache"
	"serverless.xyz/outrigger/preloader/quantity"
)

// VerifyMode says how much evidence a file needs before it gets its final name.
type VerifyMode string

const (
	// VerifyAuto checks against the best evidence that costs no second pass
	// over the bytes, and reports which it was.
	VerifyAuto VerifyMode = "auto"
	// VerifyRequire fails where no checksum of the content can be had.
	VerifyRequire VerifyMode = "require"
	// VerifyOff checks sizes and versions only.
	VerifyOff VerifyMode = "off"
)

// Options is everything that steers a pull. The zero value is not usable; see
// [OptionsFromEnv].
type Options struct {
	// Endpoint is the S3 endpoint URL; empty means AWS by region.
	Endpoint string
	// Region is the region to sign for. It is corrected once if the store
	// names another.
	Region string
	// AccessKeyID and SecretAccessKey are set if STORAGE_CONFIG holds them;
	// otherwise the AWS default chain finds credentials.
	AccessKeyID     string
	SecretAccessKey string
	// Anonymous leaves requests unsigned.
	Anonymous bool
	// VirtualHosted puts the bucket into the host name at custom endpoints too.
	VirtualHosted bool
	// Accelerate uses the S3 transfer acceleration endpoint.
	Accelerate bool
	// VerifyTLS is false only if the user turned certificate checks off.
	VerifyTLS bool
	// CABundle is a PEM file that replaces the system's trust store.
	CABundle string
	// ConnectTimeout bounds one TCP and TLS handshake.
	ConnectTimeout time.Duration
	// ReadTimeout bounds the wait for response headers.
	ReadTimeout time.Duration
	// Attempts is how often one range, or one listing, is tried without any
	// progress before the run fails. At least 1.
	Attempts int
	// FileConcurrency bounds how many files are open at once; 0 means no bound.
	FileConcurrency int

	// Filter selects files by relative path.
	Filter Filter
	// SiblingPrefixes restores KServe's matching, where a source of `llama`
	// fetches `llama-70b/` too.
	SiblingPrefixes bool

	// Select says which files are left out because others hold the same.
	Select SelectMode
	// Lint checks the headers of safetensors files before they are fetched.
	Lint bool

	// Verify is the evidence that a file needs.
	Verify VerifyMode
	// IO is how written bytes relate to memory.
	IO IOMode
	// Conns is how many requests run at once; 0 means automatic.
	Conns int
	// more is how many may be added to an automatic number, and buffer is what each of
	// the first holds in memory. They are settled by cpus, how many processors' worth of
	// time there is.
	more, buffer int
	cpus         float64
	// PartSize is how many bytes one request asks for; 0 means automatic.
	PartSize int64
	// Memory bounds the buffers, in bytes.
	Memory int64
	// Stall ends a request that moved no byte for this long.
	Stall time.Duration
	// Deadline bounds the whole run; 0 means none.
	Deadline time.Duration
	// Wait bounds the wait for another preloader in the same directory; 0 means none.
	Wait time.Duration
	// Resume goes on with what an earlier run left. If false, every file is
	// fetched again.
	Resume bool

	// Pins are digests of the content that is asked for, by pair; empty for any.
	Pins []string
	// RequesterPays has the requests paid by whoever makes them, and BucketOwner is the
	// account that must own the bucket; empty for any.
	RequesterPays bool
	BucketOwner   string

	// ArchiveSize bounds what a model that is one archive may come to when it is
	// unpacked, in bytes; 0 stands for a hundred times its own length, and 1 GiB at
	// least. ArchiveFiles bounds its files, folders and links together.
	ArchiveSize  int64
	ArchiveFiles int

	// VolumeSize bounds what all directories of a pull may hold together, in bytes; 0 leaves it to their file systems.
	VolumeSize int64
	// filled are these directories.
	filled []string

	// NodeCache is a directory that pods of this node share; empty for none.
	NodeCache string
	// NodeCacheSize bounds it, in bytes; 0 stands for half of its file system.
	NodeCacheSize int64
	// NodeCacheWait is how long a pod waits for another one of its node that fetches
	// the same source, before it fetches beside it; 0 is not at all.
	NodeCacheWait time.Duration

	// JIT says which compiled kernels are brought beside the models.
	JIT JITCacheOptions

	// Meter, if not nil, counts what the run does for whoever watches.
	Meter *Meter
	// Metrics are the addresses and files at which Prometheus finds metrics.
	Metrics []string

	// GPU is what is done about the pod's GPUs.
	GPU GPUMode
	// GPUFail lets an unhealthy GPU fail the pull.
	GPUFail bool
	// GPUGrace is how long a pull that is done waits for the check.
	GPUGrace time.Duration
	// GPUHostMemory is what must be left of the container's memory for the check, in bytes, where it
	// would take the pull along if that were used up; with less it is not run.
	GPUHostMemory int64

	// TerminationLog is the file that takes the last word for Kubernetes.
	TerminationLog string
	// JSONLogs selects JSON log lines in place of plain ones.
	JSONLogs bool
}

// DefaultTerminationLog is where Kubernetes looks for a container's last word.
const DefaultTerminationLog = "/dev/termination-log"

// OptionsFromEnv reads the environment that KServe sets, and PRELOADER_*.
// Every error names the variable and what it should hold.
func OptionsFromEnv(getenv func(string) string) (Options, error) {
	env, err := overlayStorageConfig(getenv)
	if err != nil {
		return Options{}, err
	}
	if isTrue(env.get("CONFIDENTIAL_ENABLED")) {
		return Options{}, configFailure("Use KServe's own storage initializer for confidential models.",
			"CONFIDENTIAL_ENABLED asks for decryption, which this preloader does not do")
	}
	opts := Options{
		Region:          firstOf(env.get("AWS_DEFAULT_REGION"), env.get("AWS_REGION"), "us-east-1"),
		Anonymous:       isTrue(env.get("awsAnonymousCredential")),
		VirtualHosted:   isTrue(env.get("S3_USER_VIRTUAL_BUCKET")),
		Accelerate:      isTrue(env.get("S3_USE_ACCELERATE")),
		AccessKeyID:     env.overlay["AWS_ACCESS_KEY_ID"],
		SecretAccessKey: env.overlay["AWS_SECRET_ACCESS_KEY"],
		Filter: Filter{
			Allow:  parsePatterns(env.get("STORAGE_ALLOW_PATTERNS")),
			Ignore: parsePatterns(env.get("STORAGE_IGNORE_PATTERNS")),
		},
		BucketOwner:    strings.TrimSpace(env.get("PRELOADER_BUCKET_OWNER")),
		NodeCache:      env.get("PRELOADER_NODE_CACHE"),
		TerminationLog: firstOf(env.get("PRELOADER_TERMINATION_LOG"), DefaultTerminationLog),
	}
	opts.Endpoint = env.endpoint()
	if err := checkEndpoint(opts.Endpoint); err != nil {
		return Options{}, err
	}
	opts.VerifyTLS = !isFalse(env.get("S3_VERIFY_SSL"))
	if opts.VerifyTLS {
		opts.CABundle = env.caBundle()
	}
	if err := env.readNumbers(&opts); err != nil {
		return Options{}, err
	}
	if err := env.readJITCache(&opts.JIT); err != nil {
		return Options{}, configFailure("Correct it or leave it out.", "%v", err)
	}
	if opts.Metrics, err = parseMetrics(env.get("PRELOADER_METRICS")); err != nil {
		return Options{}, configFailure("Correct it or leave it out.", "environment variable PRELOADER_METRICS: %v", err)
	}
	if opts.Pins, err = parsePins(env.get("PRELOADER_PIN")); err != nil {
		return Options{}, configFailure("Correct it or leave it out.", "environment variable PRELOADER_PIN: %v", err)
	}
	err = env.readWords(&opts)
	return opts, err
}

// environment is the process environment below the values that STORAGE_CONFIG
// lays over it.
type environment struct {
	getenv  func(string) string
	overlay map[string]string
}

func (e environment) get(name string) string {
	if v, ok := e.overlay[name]; ok {
		return v
	}
	return e.getenv(name)
}

// overlayStorageConfig merges STORAGE_CONFIG and STORAGE_OVERRIDE_CONFIG, which
// replace variables if their type is s3, as in KServe.
func overlayStorageConfig(getenv func(string) string) (environment, error) {
	env := environment{getenv: getenv, overlay: map[string]string{}}
	config := map[string]any{}
	for _, name := range []string{"STORAGE_CONFIG", "STORAGE_OVERRIDE_CONFIG"} {
		text := strings.TrimSpace(getenv(name))
		if text == "" {
			continue
		}
		// Unmarshal fills the map that is already there, so the second wins.
		if err := json.Unmarshal([]byte(text), &config); err != nil {
			// The text holds a secret, and a JSON error may quote it.
			return env, configFailure("Set it to the JSON object of the storage secret.",
				"environment variable %s is not a JSON object", name)
		}
	}
	if config["type"] != "s3" {
		return env, nil
	}
	for key, name := range map[string]string{ //nolint:gosec // names, not secrets
		"endpoint_url": "AWS_ENDPOINT_URL", "access_key_id": "AWS_ACCESS_KEY_ID",
		"secret_access_key": "AWS_SECRET_ACCESS_KEY", "region": "AWS_DEFAULT_REGION",
		"ca_bundle": "AWS_CA_BUNDLE", "verify_ssl": "S3_VERIFY_SSL", "anonymous": "awsAnonymousCredential",
	} {
		if v, ok := config[key]; ok && v != nil {
			env.overlay[name] = jsonText(v)
		}
	}
	return env, nil
}

// endpoint returns the endpoint URL. KServe's webhook sets AWS_ENDPOINT_URL;
// S3_ENDPOINT, a host without a scheme, counts only where that is missing. The
// legacy global address stands for AWS itself, which routes by region.
func (e environment) endpoint() string {
	at := firstOf(e.get("AWS_ENDPOINT_URL"), e.get("AWS_ENDPOINT_URL_S3"))
	if host := e.get("S3_ENDPOINT"); at == "" && host != "" {
		scheme := "https://"
		if isFalse(e.get("S3_USE_HTTPS")) {
			scheme = "http://"
		}
		at = scheme + host
		if strings.Contains(host, "://") {
			at = host
		}
	}
	if strings.TrimSuffix(at, "/") == "https://s3.amazonaws.com" {
		return ""
	}
	return at
}

// checkEndpoint refuses what is no address. One may hold a password, which S3 has no use
// for, and which is not shown.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	const advice = "Write it as https://host:port."
	if at := strings.LastIndex(endpoint, "@"); at >= 0 {
		return configFailure(advice, "the endpoint …%s (AWS_ENDPOINT_URL) names a user", endpoint[at:])
	}
	at, err := url.Parse(endpoint)
	if err != nil || at.Host == "" || at.Scheme != "http" && at.Scheme != "https" {
		return configFailure(advice, "the endpoint %q (AWS_ENDPOINT_URL) is no address", endpoint)
	}
	return nil
}

func (e environment) caBundle() string {
	if path := e.get("AWS_CA_BUNDLE"); path != "" {
		return path
	}
	if e.get("CA_BUNDLE_CONFIGMAP_NAME") != "" {
		return firstOf(e.get("CA_BUNDLE_VOLUME_MOUNT_POINT"), "/etc/ssl/custom-certs") + "/cabundle.crt"
	}
	return ""
}

func (e environment) readNumbers(opts *Options) error {
	var stall string
	if v := e.get("S3_READ_TIMEOUT"); v != "" {
		stall = v
	}
	numbers := []struct {
		name, fallback string
		set            func(string) error
	}{
		{"S3_CONNECT_TIMEOUT", "15", intoDuration(&opts.ConnectTimeout, time.Millisecond)},
		{"S3_READ_TIMEOUT", "30", intoDuration(&opts.ReadTimeout, time.Millisecond)},
		{"S3_MAX_ATTEMPTS", "8", intoCount(&opts.Attempts, 1, 1000)},
		{"S3_MAX_FILE_CONCURRENCY", "0", intoCount(&opts.FileConcurrency, 0, 10000)},
		{"PRELOADER_CONNS", "auto", orAuto(intoCount(&opts.Conns, 1, maxConns))},
		{"PRELOADER_PARTSIZE", "auto", orAuto(intoBytes(&opts.PartSize, mebibyte))},
		{"PRELOADER_MEM", "64Mi", intoBytes(&opts.Memory, mebibyte)},
		{"PRELOADER_STALL", firstOf(stall, "20s"), intoDuration(&opts.Stall, time.Millisecond)},
		{"PRELOADER_ARCHIVE_SIZE", "auto", orAuto(intoBytes(&opts.ArchiveSize, 1))},
		{"PRELOADER_ARCHIVE_FILES", "100000", intoCount(&opts.ArchiveFiles, 1, 100_000_000)},
		{"PRELOADER_VOLUME_SIZE", "auto", orAuto(intoBytes(&opts.VolumeSize, 1))},
		{"PRELOADER_NODE_CACHE_SIZE", "auto", orAuto(intoBytes(&opts.NodeCacheSize, mebibyte))},
		{"PRELOADER_NODE_CACHE_WAIT", "5m", intoDuration(&opts.NodeCacheWait, 0)},
		{"PRELOADER_DEADLINE", "0", intoDuration(&opts.Deadline, 0)},
		{"PRELOADER_WAIT", "30m", intoDuration(&opts.Wait, 0)},
		{"PRELOADER_GPU_GRACE", "60s", intoDuration(&opts.GPUGrace, 0)},
		{"PRELOADER_GPU_HOST_MEMORY", "512Mi", intoBytes(&opts.GPUHostMemory, 0)},
		{"PRELOADER_JIT_CACHE_SIZE", "16Gi", intoBytes(&opts.JIT.Size, mebibyte)},
		{"PRELOADER_JIT_CACHE_DEADLINE", "2m", intoDuration(&opts.JIT.Deadline, time.Millisecond)},
	}
	for _, n := range numbers {
		if err := n.set(firstOf(strings.TrimSpace(e.get(n.name)), n.fallback)); err != nil {
			return configFailure("Correct it or leave it out.", "environment variable %s: %v", n.name, err)
		}
	}
	return nil
}

// readJITCache reads what is neither a number nor a choice.
func (e environment) readJITCache(jit *JITCacheOptions) error {
	jit.Key = jitcache.Key{}
	jit.Dir = firstOf(e.get("PRELOADER_JIT_CACHE_DIR"), "/mnt/jit-cache")
	for dir := range strings.SplitSeq(firstOf(e.get("PRELOADER_JIT_CACHE_MODEL"), "/mnt/models"), ",") {
		jit.Models = append(jit.Models, strings.TrimSpace(dir))
	}
	if jit.URI = e.get("PRELOADER_JIT_CACHE_URI"); jit.URI == "" {
		return nil // no key is asked for then, and a wrong one is nobody's trouble
	}
	if rest, ok := strings.CutPrefix(jit.URI, "s3://"); !ok || strings.Trim(rest, "/") == "" {
		return fmt.Errorf("environment variable PRELOADER_JIT_CACHE_URI is %q, want s3://bucket/path", jit.URI)
	}
	var err error
	if jit.Key, err = jitcache.ParseKey(e.get("PRELOADER_JIT_CACHE_KEY")); err != nil {
		return fmt.Errorf("environment variable PRELOADER_JIT_CACHE_KEY: %w", err)
	}
	return nil
}

func (e environment) readWords(opts *Options) error {
	words := []struct {
		name    string
		choices []string // the first is the default
		set     func(string)
	}{
		{"PRELOADER_VERIFY", []string{"auto", "require", "off"}, func(v string) { opts.Verify = VerifyMode(v) }},
		{"PRELOADER_IO", []string{"auto", "warm", "bounded", "direct"}, func(v string) { opts.IO = IOMode(v) }},
		{"PRELOADER_PREFIX_MODE", []string{"directory", "kserve"}, func(v string) { opts.SiblingPrefixes = v == "kserve" }},
		{"PRELOADER_REQUESTER_PAYS", []string{"off", "on"}, func(v string) { opts.RequesterPays = v == "on" }},
		{"PRELOADER_RESUME", []string{"on", "off"}, func(v string) { opts.Resume = v == "on" }},
		{"PRELOADER_SELECT", []string{"all", "safetensors"}, func(v string) { opts.Select = SelectMode(v) }},
		{"PRELOADER_LINT", []string{"on", "off"}, func(v string) { opts.Lint = v == "on" }},
		{"PRELOADER_GPU", []string{"off", "preflight", "load"}, func(v string) { opts.GPU = GPUMode(v) }},
		{"PRELOADER_GPU_FAIL", []string{"false", "true"}, func(v string) { opts.GPUFail = v == "true" }},
		{"PRELOADER_LOG", []string{"kserve", "json"}, func(v string) { opts.JSONLogs = v == "json" }},
	}
	for _, w := range words {
		got := strings.ToLower(firstOf(strings.TrimSpace(e.get(w.name)), w.choices[0]))
		found := false
		for _, c := range w.choices {
			found = found || c == got
		}
		if !found {
			return configFailure("Correct it or leave it out.",
				"environment variable %s is %q, want one of %s", w.name, got, strings.Join(w.choices, ", "))
		}
		w.set(got)
	}
	return nil
}

func intoDuration(into *time.Duration, least time.Duration) func(string) error {
	return func(text string) error {
		d, err := quantity.ParseSeconds(text)
		if err != nil {
			return err
		}
		if d < least {
			return fmt.Errorf("%v is less than %v", d, least)
		}
		*into = d
		return nil
	}
}

func intoBytes(into *int64, least int64) func(string) error {
	return func(text string) error {
		n, err := quantity.ParseBytes(text)
		if err != nil {
			return err
		}
		if n < least {
			return fmt.Errorf("%d bytes is less than %d", n, least)
		}
		*into = n
		return nil
	}
}

func intoCount(into *int, least, most int) func(string) error {
	return func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < least || n > most {
			return fmt.Errorf("%q is not a whole number from %d to %d", text, least, most)
		}
		*into = n
		return nil
	}
}

// orAuto leaves the field at zero for the word auto.
func orAuto(set func(string) error) func(string) error {
	return func(text string) error {
		if strings.EqualFold(text, "auto") {
			return nil
		}
		return set(text)
	}
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func isTrue(v string) bool { return strings.EqualFold(v, "true") }

func isFalse(v string) bool { return v == "0" || strings.EqualFold(v, "false") }
