// SPDX-License-Identifier: Apache-2.0

// Command etcd is etcd's own server; the upstream main package is not part of a module that can be required.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
