// SPDX-License-Identifier: Apache-2.0

package testbed

import "fmt"

// network is the addresses of a slot, out of 198.18.0.0/15: the range kept for tests of network devices, which no real
// network uses.
type network struct{ slot int }

func (in *instance) network() network { return network{slot: in.slot} }

// hostIP and nodeIP are the two ends of the link between this machine and the node.
func (n network) hostIP() string { return fmt.Sprintf("198.19.%d.1", n.slot) }
func (n network) nodeIP() string { return fmt.Sprintf("198.19.%d.2", n.slot) }

// pods is the range of pod addresses.
func (n network) pods() string { return fmt.Sprintf("198.18.%d.0/24", n.slot) }

// services is the range of Services' cluster addresses.
func (n network) services() string { return fmt.Sprintf("198.19.%d.0/24", 128+n.slot) }

func (n network) serviceIP(number int) string { return fmt.Sprintf("198.19.%d.%d", 128+n.slot, number) }

// virtualServices is the range of Services' cluster addresses where no node routes them, and many tests share one API
// server; virtualServiceIP is the API server's own in it.
const (
	virtualServices  = "198.18.0.0/16"
	virtualServiceIP = "198.18.0.1"
)

// linkName is the name of this machine's end of the link.
func (n network) linkName() string { return fmt.Sprintf("outrigger%d", n.slot) }
