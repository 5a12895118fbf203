// SPDX-License-Identifier: Apache-2.0

package testbed

import "slices"

// program is one executable that the testbed builds.
type program struct {
	name   string
	module string   // Folder below modules; empty for a package of this repository.
	pkg    string   // Package to build.
	stamp  bool     // Carries Kubernetes' version, without which clients see v0.0.0.
	tags   string   // Build tags.
	cgo    bool     // Needs a C compiler.
	from   string   // The module whose version is the program's.
	about  string   // How long the first build takes on two cores.
	inputs []string // For a package of this repository: the folders that it is built from.
}

const kubernetesModule = "k8s.io/kubernetes"

var (
	etcdProgram = program{name: "etcd", module: "etcd", pkg: ".", from: "go.etcd.io/etcd/server/v3", about: "20 s"}

	apiServerProgram         = kubernetesProgram("kube-apiserver", "4 minutes")
	controllerManagerProgram = kubernetesProgram("kube-controller-manager", "30 s")
	schedulerProgram         = kubernetesProgram("kube-scheduler", "15 s")
	kubectlProgram           = kubernetesProgram("kubectl", "20 s")
	kubeletProgram           = kubernetesProgram("kubelet", "30 s")
	proxyProgram             = kubernetesProgram("kube-proxy", "15 s")

	kserveProgram = program{
		name: "kserve-manager", module: "kserve", pkg: "github.com/kserve/kserve/cmd/manager",
		from: "github.com/kserve/kserve", about: "2 minutes",
	}
	istiodProgram = program{
		name: "pilot-discovery", module: "istio", pkg: "istio.io/istio/pilot/cmd/pilot-discovery",
		from: "istio.io/istio", about: "4 minutes",
	}
	s3Program = program{
		name: "versitygw", module: "versitygw", pkg: "github.com/versity/versitygw/cmd/versitygw",
		from: "github.com/versity/versitygw", about: "1 minute",
	}
	runcProgram = program{
		name: "runc", module: "runc", pkg: "github.com/opencontainers/runc",
		from: "github.com/opencontainers/runc", tags: "seccomp", cgo: true, about: "20 s",
	}
	dnsProgram = program{
		name: "coredns", module: "coredns", pkg: ".", from: "github.com/coredns/coredns", about: "1 minute",
	}
	knativeControllerProgram = program{
		name: "knative-controller", module: "knative", pkg: ".", from: "knative.dev/serving", about: "1 minute",
	}
	knativeWebhookProgram = program{
		name: "knative-webhook", module: "knative", pkg: "knative.dev/serving/cmd/webhook", from: "knative.dev/serving",
		about: "20 s",
	}
	keeperProgram = program{
		name: "keeper", pkg: "./test/testbed/keeper", about: "2 s",
		inputs: []string{"test/testbed/keeper", "test/testbed/internal/keep"},
	}
	pauseProgram = program{
		name: "pause", pkg: "./test/testbed/pause", about: "1 s", inputs: []string{"test/testbed/pause"},
	}
)

func kubernetesProgram(name, about string) program {
	return program{
		name: name, module: "kubernetes", pkg: kubernetesModule + "/cmd/" + name, from: kubernetesModule,
		stamp: true, about: about,
	}
}

// partPrograms is what each part needs beside the programs of size API.
var partPrograms = map[Part][]program{
	ControllerManager: {controllerManagerProgram},
	Scheduler:         {schedulerProgram},
	S3:                {s3Program},
	Istio:             {istiodProgram},
	KServe:            {kserveProgram},
	Knative:           {knativeControllerProgram, knativeWebhookProgram},
	Pods:              {kubeletProgram, proxyProgram, runcProgram, dnsProgram, pauseProgram},
}

// programsFor returns what a testbed with these parts needs.
func programsFor(parts []Part) []program {
	programs := []program{keeperProgram, etcdProgram, apiServerProgram, kubectlProgram}
	for _, p := range parts {
		programs = append(programs, partPrograms[p]...)
	}
	return programs
}

// manifestSet is a selection of the YAML files that a module carries, kept beside its programs.
type manifestSet struct {
	name   string
	module string // Folder below modules that pins the version.
	from   string // The module that has the files.
	files  []string
}

var (
	kserveManifests = manifestSet{
		name: "kserve", module: "kserve", from: "github.com/kserve/kserve",
		files: []string{
			"config/crd/full/serving*.yaml", "config/crd/full/clusterstoragecontainer/serving*.yaml",
			"config/configmap/inferenceservice.yaml", "config/webhook/manifests.yaml",
			"config/storagecontainers/default.yaml",
		},
	}
	istioManifests = manifestSet{
		name: "istio", module: "istio", from: "istio.io/istio",
		files: []string{"manifests/charts/base/files/crd-all.gen.yaml"},
	}
	knativeManifests = manifestSet{
		name: "knative", module: "knative", from: "knative.dev/serving",
		files: []string{
			"config/core/300-resources/*.yaml", "config/core/configmaps/*.yaml", "config/core/webhooks/*.yaml",
		},
	}
	knativeNetworking = manifestSet{
		name: "knative-networking", module: "knative", from: "knative.dev/networking",
		files: []string{
			"config/certificate.yaml", "config/domain-claim.yaml", "config/ingress.yaml", "config/serverlessservice.yaml",
			"config/config-network.yaml",
		},
	}
	knativeCaching = manifestSet{
		name: "knative-caching", module: "knative", from: "knative.dev/caching", files: []string{"config/image.yaml"},
	}
	gatewayManifests = manifestSet{
		name: "gateway-api", module: "kserve", from: "sigs.k8s.io/gateway-api",
		files: []string{"config/crd/standard/gateway*.yaml"},
	}
)

var partManifests = map[Part][]manifestSet{
	KServe:     {kserveManifests},
	Istio:      {istioManifests},
	GatewayAPI: {gatewayManifests},
	Knative:    {knativeManifests, knativeNetworking, knativeCaching},
}

func manifestsFor(parts []Part) []manifestSet {
	var sets []manifestSet
	for _, p := range parts {
		for _, m := range partManifests[p] {
			if !slices.ContainsFunc(sets, func(s manifestSet) bool { return s.name == m.name }) {
				sets = append(sets, m)
			}
		}
	}
	return sets
}
