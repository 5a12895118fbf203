// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"serverless.xyz/outrigger/preloader/jitcache"
)

func defaults() Options {
	return Options{
		Region:         "us-east-1",
		VerifyTLS:      true,
		ConnectTimeout: 15 * time.Second,
		ReadTimeout:    30 * time.Second,
		Attempts:       8,
		Select:         SelectAll,
		Lint:           true,
		Verify:         VerifyAuto,
		IO:             IOAuto,
		Memory:         64 * mebibyte,
		Stall:          20 * time.Second,
		ArchiveFiles:   100_000,
		Wait:           30 * time.Minute,
		NodeCacheWait:  5 * time.Minute,
		Resume:         true,
		GPU:            GPUOff,
		GPUGrace:       time.Minute,
		GPUHostMemory:  512 * mebibyte,
		JIT: JITCacheOptions{
			Dir:      "/mnt/jit-cache",
			Key:      jitcache.Key{},
			Size:     16 << 30,
			Deadline: 2 * time.Minute,
			Models:   []string{"/mnt/models"},
		},
		TerminationLog: DefaultTerminationLog,
	}
}

func TestOptionsFromEnv(t *testing.T) {
	cases := map[string]struct {
		env  settings
		want func(*Options)
	}{
		"nothing set": {nil, func(*Options) {}},
		"what KServe's webhook sets for a secret": {
			settings{
				"AWS_ENDPOINT_URL": "http://minio:9000", "S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0", "S3_VERIFY_SSL": "0",
				"AWS_DEFAULT_REGION": "eu-west-1", "S3_USER_VIRTUAL_BUCKET": "true", "S3_USE_ACCELERATE": "True",
				"awsAnonymousCredential": "TRUE", "AWS_CA_BUNDLE": "/certs/ca.crt",
			},
			func(o *Options) {
				o.Endpoint, o.Region, o.VirtualHosted, o.Accelerate, o.Anonymous = "http://minio:9000", "eu-west-1", true, true, true
				o.VerifyTLS = false // and no bundle: it may not even exist
			},
		},
		"S3_ENDPOINT counts where nothing else does": {
			settings{"S3_ENDPOINT": "minio:9000", "S3_USE_HTTPS": "0"},
			func(o *Options) { o.Endpoint = "http://minio:9000" },
		},
		"S3_ENDPOINT is HTTPS unless said otherwise": {
			settings{"S3_ENDPOINT": "minio:9000"}, func(o *Options) { o.Endpoint = "https://minio:9000" },
		},
		"the legacy global endpoint is AWS itself": {
			settings{"AWS_ENDPOINT_URL": "https://s3.amazonaws.com", "AWS_DEFAULT_REGION": "eu-west-1"},
			func(o *Options) { o.Region = "eu-west-1" },
		},
		"AWS_REGION is second to AWS_DEFAULT_REGION": {
			settings{"AWS_REGION": "us-west-2"}, func(o *Options) { o.Region = "us-west-2" },
		},
		"the service's own CA bundle comes first": {
			settings{"AWS_CA_BUNDLE": "/own.crt", "CA_BUNDLE_CONFIGMAP_NAME": "global", "CA_BUNDLE_VOLUME_MOUNT_POINT": "/certs"},
			func(o *Options) { o.CABundle = "/own.crt" },
		},
		"the cluster's CA bundle": {
			settings{"CA_BUNDLE_CONFIGMAP_NAME": "global", "CA_BUNDLE_VOLUME_MOUNT_POINT": "/certs"},
			func(o *Options) { o.CABundle = "/certs/cabundle.crt" },
		},
		"STORAGE_CONFIG replaces variables, and its override replaces it": {
			settings{
				"AWS_ENDPOINT_URL": "http://other",
				"AWS_CA_BUNDLE":    "/other.crt",
				"STORAGE_CONFIG": `{"type":"s3","endpoint_url":"http://minio:9000","access_key_id":"id","secret_access_key":"secret",
					"region":"eu-central-1","ca_bundle":"/ca.crt","verify_ssl":"1","bucket":"models"}`,
				"STORAGE_OVERRIDE_CONFIG": `{"region":"eu-north-1","anonymous":"true"}`,
			},
			func(o *Options) {
				o.Endpoint, o.Region, o.AccessKeyID, o.SecretAccessKey = "http://minio:9000", "eu-north-1", "id", "secret"
				o.CABundle, o.Anonymous = "/ca.crt", true
			},
		},
		"STORAGE_CONFIG of another type changes nothing": {
			settings{"STORAGE_CONFIG": `{"type":"hdfs","region":"x"}`}, func(*Options) {},
		},
		"values of STORAGE_CONFIG that are no strings": {
			settings{"STORAGE_CONFIG": `{"type":"s3","verify_ssl":false,"anonymous":true,"region":null}`},
			func(o *Options) { o.VerifyTLS, o.Anonymous = false, true },
		},
		"KServe's limits": {
			settings{"S3_CONNECT_TIMEOUT": "5", "S3_READ_TIMEOUT": "7", "S3_MAX_ATTEMPTS": "2", "S3_MAX_FILE_CONCURRENCY": "3"},
			func(o *Options) {
				o.ConnectTimeout, o.ReadTimeout, o.Stall = 5*time.Second, 7*time.Second, 7*time.Second
				o.Attempts, o.FileConcurrency = 2, 3
			},
		},
		"our own": {
			settings{
				"PRELOADER_VERIFY":          "Require",
				"PRELOADER_IO":              "bounded",
				"PRELOADER_CONNS":           "12",
				"PRELOADER_PARTSIZE":        "16Mi",
				"PRELOADER_MEM":             "32Mi",
				"PRELOADER_STALL":           "3s",
				"PRELOADER_DEADLINE":        "10m",
				"PRELOADER_RESUME":          "off",
				"PRELOADER_SELECT":          "safetensors",
				"PRELOADER_LINT":            "off",
				"PRELOADER_GPU":             "load",
				"PRELOADER_GPU_FAIL":        "true",
				"PRELOADER_LOG":             "json",
				"PRELOADER_PREFIX_MODE":     "kserve",
				"PRELOADER_TERMINATION_LOG": "/tmp/last",
				"S3_READ_TIMEOUT":           "30",
			},
			func(o *Options) {
				o.IO, o.Select, o.Lint = IOBounded, SelectSafetensors, false
				o.Verify, o.Conns, o.PartSize, o.Memory = VerifyRequire, 12, 16*mebibyte, 32*mebibyte
				o.Stall, o.Deadline, o.Resume, o.JSONLogs = 3*time.Second, 10*time.Minute, false, true
				o.SiblingPrefixes, o.TerminationLog = true, "/tmp/last"
				o.GPU, o.GPUFail = GPULoad, true
			},
		},
		"auto is the default": {settings{"PRELOADER_CONNS": "auto", "PRELOADER_PARTSIZE": "Auto"}, func(*Options) {}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := OptionsFromEnv(func(name string) string { return tc.env[name] })
			if err != nil {
				t.Fatal(err)
			}
			want := defaults()
			tc.want(&want)
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(Options{})); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOptionsFromEnvNameTheVariableThatIsWrong(t *testing.T) {
	wrong := settings{
		"PRELOADER_VERIFY":        "sometimes",
		"PRELOADER_IO":            "memory",
		"PRELOADER_CONNS":         "0",
		"PRELOADER_PARTSIZE":      "12",
		"PRELOADER_MEM":           "lots",
		"PRELOADER_STALL":         "0",
		"PRELOADER_DEADLINE":      "-1s",
		"PRELOADER_RESUME":        "maybe",
		"PRELOADER_LOG":           "xml",
		"PRELOADER_GPU":           "on",
		"PRELOADER_GPU_FAIL":      "perhaps",
		"PRELOADER_PREFIX_MODE":   "x",
		"S3_MAX_ATTEMPTS":         "0",
		"S3_CONNECT_TIMEOUT":      "soon",
		"S3_READ_TIMEOUT":         "0",
		"S3_MAX_FILE_CONCURRENCY": "-1",
		"STORAGE_CONFIG":          "{",
		"STORAGE_OVERRIDE_CONFIG": "[]",
		"CONFIDENTIAL_ENABLED":    "true",

		"PRELOADER_NODE_CACHE_WAIT": "-1s",
		"PRELOADER_ARCHIVE_SIZE":    "huge",
		"PRELOADER_ARCHIVE_FILES":   "0",
		"PRELOADER_GPU_GRACE":       "soon",
		"PRELOADER_GPU_HOST_MEMORY": "some",
		"PRELOADER_REQUESTER_PAYS":  "perhaps",
		"PRELOADER_PIN":             "sha256:short",
		"AWS_ENDPOINT_URL":          "minio:9000",
	}
	for name, value := range wrong {
		_, err := OptionsFromEnv(func(n string) string { return settings{name: value}[n] })
		if err == nil {
			t.Errorf("%s=%s is accepted", name, value)
			continue
		}
		if f := asFailure(err); f.Code != ExitConfig || !strings.Contains(f.Error(), name) || f.Advice == "" {
			t.Errorf("%s=%s: exit code %d, message %q, advice %q", name, value, f.Code, f.Error(), f.Advice)
		}
	}
}

// TestAWrongKeyOfKernelsThatNobodyAsksFor: what is not asked for fails no pull.
func TestAWrongKeyOfKernelsThatNobodyAsksFor(t *testing.T) {
	env := settings{"PRELOADER_JIT_CACHE_KEY": "engine"}
	get := func(n string) string { return env[n] }
	if _, err := OptionsFromEnv(get); err != nil {
		t.Errorf("without a URI: %v", err)
	}
	env["PRELOADER_JIT_CACHE_URI"] = "s3://models/jit"
	if _, err := OptionsFromEnv(get); err == nil || !strings.Contains(err.Error(), "PRELOADER_JIT_CACHE_KEY") {
		t.Errorf("with a URI: %v, want the variable named", err)
	}
}
