// SPDX-License-Identifier: Apache-2.0

package testbed

// StorageInitializerImage is the image of KServe's own storage initializer in the testbed's KServe. No testbed has it:
// a pod that still asks for it was not taken over.
const StorageInitializerImage = "kserve/storage-initializer:v0.20.0"
