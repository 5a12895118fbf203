// SPDX-License-Identifier: Apache-2.0

package podwebhook_test

// equipment is what a pod is expected to get.
type equipment int

const (
	nothing equipment = iota
	cacheOnly
	preloadOnly
	preloadAndCache
	gpuAndCache
)

// kserveService is an InferenceService, and what the pods of its Deployments are expected to get under a policy that
// asks for both, by the end of the Deployment's name.
type kserveService struct {
	name        string
	annotations string
	labels      string
	spec        string
	want        map[string]equipment
}

// of expects one Deployment, the predictor's.
func of(e equipment) map[string]equipment { return map[string]equipment{"predictor": e} }

// kserveServices are InferenceServices of all kinds that KServe has.
var kserveServices = []kserveService{
	// Frameworks, in the form of a field of their own.
	{name: "sklearn", spec: `predictor: {sklearn: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "xgboost", spec: `predictor: {xgboost: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "lightgbm", spec: `predictor: {lightgbm: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "pmml", spec: `predictor: {pmml: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "paddle", spec: `predictor: {paddle: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "tensorflow", spec: `predictor: {tensorflow: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "pytorch", spec: `predictor: {pytorch: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "onnx", spec: `predictor: {onnx: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "triton", spec: `predictor: {triton: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	{name: "huggingface", spec: `predictor: {huggingface: {storageUri: "s3://b/m"}}`, want: of(preloadAndCache)},
	// Frameworks, in the form of a model format.
	{
		name: "model-sklearn",
		spec: `predictor: {model: {modelFormat: {name: sklearn}, storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name: "model-mlflow",
		spec: `predictor: {model: {modelFormat: {name: mlflow}, protocolVersion: v2, storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name: "model-autogluon",
		spec: `predictor: {model: {modelFormat: {name: autogluon}, storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name: "model-tensorrt",
		spec: `predictor: {model: {modelFormat: {name: tensorrt}, protocolVersion: v2, storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name: "model-runtime",
		spec: `predictor: {model: {modelFormat: {name: sklearn}, runtime: kserve-mlserver, protocolVersion: v2, storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	// Where models come from.
	{name: "from-hf", spec: `predictor: {huggingface: {storageUri: "hf://org/m"}}`, want: of(cacheOnly)},
	{name: "from-gs", spec: `predictor: {sklearn: {storageUri: "gs://b/m"}}`, want: of(cacheOnly)},
	{name: "from-https", spec: `predictor: {sklearn: {storageUri: "https://example.com/m.tar.gz"}}`, want: of(cacheOnly)},
	{name: "from-pvc", spec: `predictor: {sklearn: {storageUri: "pvc://models/m"}}`, want: of(cacheOnly)},
	{name: "from-oci", spec: `predictor: {sklearn: {storageUri: "oci://registry.example/m:1"}}`, want: of(cacheOnly)},
	{name: "from-nowhere", spec: `predictor: {huggingface: {args: [--model_id=org/m]}}`, want: of(cacheOnly)},
	{name: "from-key", spec: `predictor: {sklearn: {storage: {key: mine, path: m}}}`, want: of(preloadAndCache)},
	{name: "from-key-of-hdfs", spec: `predictor: {sklearn: {storage: {key: hdfs, path: m}}}`, want: of(cacheOnly)},
	// By a LocalModelCache: KServe mounts a claim in place of fetching.
	{name: "from-cache", spec: `predictor: {sklearn: {storageUri: "s3://cached/m"}}`, want: of(cacheOnly)},
	{
		name:        "from-cache-not",
		annotations: `{serving.kserve.io/disable-localmodel: "true"}`,
		spec:        `predictor: {sklearn: {storageUri: "s3://cached/m"}}`,
		want:        of(preloadAndCache),
	},
	{
		name: "from-many",
		spec: `predictor: {storageUris: [{uri: "s3://b/m", mountPath: /mnt/models/a}, {uri: "s3://b/n", mountPath: /mnt/models/b}], model: {modelFormat: {name: sklearn}}}`,
		want: of(preloadAndCache),
	},
	{
		name: "from-many-kinds",
		spec: `predictor: {storageUris: [{uri: "s3://b/m", mountPath: /mnt/models/a}, {uri: "gs://b/n", mountPath: /mnt/models/b}], model: {modelFormat: {name: sklearn}}}`,
		want: of(cacheOnly),
	},
	// Containers of one's own.
	{name: "custom", spec: `predictor: {containers: [{name: kserve-container, image: own}]}`, want: of(cacheOnly)},
	{
		name: "custom-uri",
		spec: `predictor: {containers: [{name: kserve-container, image: own, env: [{name: STORAGE_URI, value: "s3://b/m"}]}]}`,
		want: of(preloadAndCache),
	},
	{
		name: "custom-helpers",
		spec: `predictor: {containers: [{name: kserve-container, image: own}, {name: helper, image: helper}], initContainers: [{name: prepare, image: prepare}]}`,
		want: of(cacheOnly),
	},
	{
		name: "custom-memcached",
		spec: `predictor: {containers: [{name: kserve-container, image: own}, {name: memcached, image: memcached, ports: [{containerPort: 11211}]}]}`,
		want: of(nothing),
	},
	{
		name: "custom-name",
		spec: `predictor: {containers: [{name: kserve-container, image: own}, {name: feature-cache, image: own}]}`,
		want: of(nothing),
	},
	{
		name: "custom-addr",
		spec: `predictor: {containers: [{name: kserve-container, image: own, env: [{name: FEATURE_CACHE_ADDR, value: "own:1"}]}]}`,
		want: of(cacheOnly),
	},
	// The shape of the pod.
	{name: "host-network", spec: `predictor: {hostNetwork: true, sklearn: {storageUri: "s3://b/m"}}`, want: of(preloadOnly)},
	{
		name: "root",
		spec: `predictor: {securityContext: {runAsUser: 0}, sklearn: {storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name: "own-volume",
		spec: `predictor: {volumes: [{name: kserve-provision-location, emptyDir: {medium: Memory, sizeLimit: 1Gi}}], sklearn: {storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name: "logger",
		spec: `predictor: {logger: {mode: all, url: "http://log"}, sklearn: {storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name: "batcher",
		spec: `predictor: {batcher: {maxBatchSize: 8}, sklearn: {storageUri: "s3://b/m"}}`,
		want: of(preloadAndCache),
	},
	{
		name:        "multi-node",
		annotations: `serving.kserve.io/autoscalerClass: none`,
		spec:        `predictor: {model: {modelFormat: {name: huggingface}, runtime: kserve-huggingfaceserver-multinode, storageUri: "pvc://models/m"}, workerSpec: {pipelineParallelSize: 2, tensorParallelSize: 1}}`,
		want:        map[string]equipment{"predictor": cacheOnly, "predictor-worker": cacheOnly},
	},
	// Several components.
	{
		name: "transformer",
		spec: `{predictor: {sklearn: {storageUri: "s3://b/m"}}, transformer: {containers: [{name: kserve-container, image: own}]}}`,
		want: map[string]equipment{"predictor": preloadAndCache, "transformer": cacheOnly},
	},
	{
		name: "transformer-uri",
		spec: `{predictor: {sklearn: {storageUri: "s3://b/m"}}, transformer: {containers: [{name: kserve-container, image: own, env: [{name: STORAGE_URI, value: "s3://b/t"}]}]}}`,
		want: map[string]equipment{"predictor": preloadAndCache, "transformer": preloadAndCache},
	},
	{
		name: "collocated",
		spec: `predictor: {model: {modelFormat: {name: sklearn}, storageUri: "s3://b/m"}, containers: [{name: transformer-container, image: own, ports: [{containerPort: 8080}]}]}`,
		want: of(preloadAndCache),
	},
	{
		name: "explainer",
		spec: `{predictor: {sklearn: {storageUri: "s3://b/m"}}, explainer: {containers: [{name: kserve-container, image: own, env: [{name: STORAGE_URI, value: "s3://b/e"}]}]}}`,
		want: map[string]equipment{"predictor": preloadAndCache, "explainer": nothing},
	},
	// What annotations say.
	{
		name:        "out",
		annotations: `outrigger.serverless.xyz/sidecar-policy: none`,
		spec:        `predictor: {sklearn: {storageUri: "s3://b/m"}}`,
		want:        of(nothing),
	},
	{
		name: "out-but-cache",
		annotations: `{outrigger.serverless.xyz/sidecar-policy: none, ` +
			`outrigger.serverless.xyz/feature-cache: features}`,
		spec: `predictor: {sklearn: {storageUri: "s3://b/m"}}`,
		want: of(cacheOnly),
	},
	{
		name:        "no-preload",
		annotations: `outrigger.serverless.xyz/preload: "false"`,
		spec:        `predictor: {sklearn: {storageUri: "s3://b/m"}}`,
		want:        of(cacheOnly),
	},
	{
		name:        "no-cache",
		annotations: `outrigger.serverless.xyz/feature-cache: none`,
		spec:        `predictor: {sklearn: {storageUri: "s3://b/m"}}`,
		want:        of(preloadOnly),
	},
	{name: "not-selected", labels: `team: red`, spec: `predictor: {sklearn: {storageUri: "s3://b/m"}}`, want: of(nothing)},
	{
		name:        "annotated",
		labels:      `team: red`,
		annotations: `{outrigger.serverless.xyz/preload: "true", outrigger.serverless.xyz/feature-cache: features}`,
		spec:        `predictor: {sklearn: {storageUri: "s3://b/m"}}`,
		want:        of(preloadAndCache),
	},
	{
		name:        "gpu",
		annotations: `outrigger.serverless.xyz/warm-gpu: "true"`,
		spec: `{predictor: {sklearn: {storageUri: "s3://b/m", resources: {limits: {nvidia.com/gpu: "2"}}}}, ` +
			`transformer: {containers: [{name: kserve-container, image: own}]}}`,
		want: map[string]equipment{"predictor": gpuAndCache, "transformer": cacheOnly},
	},
	{
		name:        "gpu-of-many",
		annotations: `outrigger.serverless.xyz/warm-gpu: load`,
		spec: `predictor: {storageUris: [{uri: "s3://b/m", mountPath: /mnt/models/a}, {uri: "s3://b/n", mountPath: /mnt/models/b}], ` +
			`model: {modelFormat: {name: sklearn}, resources: {limits: {nvidia.com/mig-1g.10gb: "1"}}}}`,
		want: of(gpuAndCache),
	},
	{
		name:        "gpu-of-nobody",
		annotations: `outrigger.serverless.xyz/warm-gpu: "true"`,
		spec:        `predictor: {sklearn: {storageUri: "s3://b/m"}}`,
		want:        of(preloadAndCache),
	},
	{
		name: "predictor-only",
		spec: `{predictor: {annotations: {outrigger.serverless.xyz/preload: "false"}, sklearn: {storageUri: "s3://b/m"}}, transformer: {containers: [{name: kserve-container, image: own, env: [{name: STORAGE_URI, value: "s3://b/t"}]}]}}`,
		want: map[string]equipment{"predictor": cacheOnly, "transformer": preloadAndCache},
	},
}
