// SPDX-License-Identifier: Apache-2.0

// A FAKE of NVIDIA's libnvidia-ml.so.1, for machines without a GPU. Built with
// -DWITH_HEADERS and NVIDIA's nvml.h, the compiler compares the prototypes; built with
// -DOLD, it lacks the functions of recent years.
//
// The environment tells it what to say: FAKE_NVML_FAIL (function=code, many by commas),
// FAKE_NVML_HANG (a function that never returns), FAKE_NVML_ECC (a number),
// FAKE_NVML_ROWS (pending or failed), FAKE_NVML_PAGES (1), FAKE_NVML_RECOVERY (a
// number), FAKE_NVML_FABRIC (state,status,mask), FAKE_NVML_PROCESSES (pid:bytes, many by
// commas), FAKE_NVML_XID (numbers by commas), FAKE_NVML_PERSISTENCE (0 or 1),
// FAKE_NVML_PCIE (gen,maxgen,width,maxwidth).

#ifdef WITH_HEADERS
#include <nvml.h>
#else
typedef int nvmlReturn_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t, nvmlEnableState_t;
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef struct nvmlEventSet_st *nvmlEventSet_t;
typedef struct { unsigned int fieldId, scopeId; long long timestamp, latencyUsec; int valueType, nvmlReturn; union { unsigned int uiVal; unsigned long long ullVal; } value; } nvmlFieldValue_t;
typedef struct { nvmlDevice_t device; unsigned long long eventType, eventData; unsigned int gpuInstanceId, computeInstanceId; } nvmlEventData_t;
typedef struct { unsigned int pid; unsigned long long usedGpuMemory; unsigned int gpuInstanceId, computeInstanceId; } nvmlProcessInfo_t;
typedef struct { unsigned int version; unsigned char clusterUuid[16]; nvmlReturn_t status; unsigned int cliqueId; unsigned char state; unsigned int healthMask; } nvmlGpuFabricInfoV_t;
#define nvmlGpuFabricInfo_v2 (unsigned int)(sizeof(nvmlGpuFabricInfoV_t) | 2u << 24)
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7
#define TIMEOUT 10
#define ARGUMENT_VERSION_MISMATCH 25

struct nvmlDevice_st { int events; };
struct nvmlEventSet_st { nvmlDevice_t device; };
static struct nvmlDevice_st device;

static int number(const char *name, int otherwise) {
  const char *v = getenv(name);
  return v && *v ? atoi(v) : otherwise;
}

static nvmlReturn_t ordered(const char *function) {
  const char *hang = getenv("FAKE_NVML_HANG"), *rule = getenv("FAKE_NVML_FAIL");
  if (hang && !strcmp(hang, function)) for (;;) pause();
  size_t length = strlen(function);
  while (rule && *rule) {
    if (!strncmp(rule, function, length) && rule[length] == '=') return atoi(rule + length + 1);
    rule = strchr(rule, ',');
    if (rule) rule++;
  }
  return 0;
}

#define BEGIN do { nvmlReturn_t wanted = ordered(__func__); if (wanted) return wanted; } while (0)

nvmlReturn_t nvmlInit_v2(void) { BEGIN; return 0; }
nvmlReturn_t nvmlShutdown(void) { BEGIN; return 0; }

const char *nvmlErrorString(nvmlReturn_t code) {
  switch ((int)code) {
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    case 999: return "Unknown Error";
  }
  return "an error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int n) {
  BEGIN;
  snprintf(version, n, "570.00.fake");
  return 0;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *out) {
  BEGIN;
  if (strlen(id) != strlen("0000:10:00.0")) return INVALID_ARGUMENT;
  *out = &device;
  return 0;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, nvmlMemoryErrorType_t kind, nvmlEccCounterType_t counter, unsigned long long *n) {
  BEGIN;
  if (d != &device || kind != 1 || counter != 0) return INVALID_ARGUMENT;
  *n = number("FAKE_NVML_ECC", 0);
  return 0;
}

#ifndef OLD
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failed) {
  BEGIN;
  const char *rows = getenv("FAKE_NVML_ROWS");
  if (d != &device) return INVALID_ARGUMENT;
  *corrected = *uncorrected = 0;
  *pending = rows && !strcmp(rows, "pending");
  *failed = rows && !strcmp(rows, "failed");
  return 0;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t d, nvmlGpuFabricInfoV_t *info) {
  BEGIN;
  if (d != &device) return INVALID_ARGUMENT;
  if (info->version != nvmlGpuFabricInfo_v2) return ARGUMENT_VERSION_MISMATCH;
  int state = 0, status = 0;
  unsigned int mask = 0;
  const char *fabric = getenv("FAKE_NVML_FABRIC");
  if (fabric) sscanf(fabric, "%d,%d,%u", &state, &status, &mask);
  info->state = state;
  info->status = status;
  info->healthMask = mask;
  return 0;
}
#endif

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t d, nvmlEnableState_t *pending) {
  BEGIN;
  if (d != &device) return INVALID_ARGUMENT;
  *pending = number("FAKE_NVML_PAGES", 0);
  return 0;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int n, nvmlFieldValue_t *values) {
  BEGIN;
  if (d != &device || n != 1 || values->fieldId != 230) return INVALID_ARGUMENT;
  const char *action = getenv("FAKE_NVML_RECOVERY");
  values->nvmlReturn = action && !strcmp(action, "unsupported") ? NOT_SUPPORTED : 0;
  values->value.uiVal = number("FAKE_NVML_RECOVERY", 0);
  return 0;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *n, nvmlProcessInfo_t *infos) {
  BEGIN;
  if (d != &device) return INVALID_ARGUMENT;
  const char *p = getenv("FAKE_NVML_PROCESSES");
  unsigned int found = 0;
  for (; p && *p; found++) {
    if (found < *n && sscanf(p, "%u:%llu", &infos[found].pid, &infos[found].usedGpuMemory) != 2) return INVALID_ARGUMENT;
    p = strchr(p, ',');
    if (p) p++;
  }
  int fits = found <= *n;
  *n = found;
  return fits ? 0 : INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t d, nvmlEnableState_t *mode) {
  BEGIN;
  if (d != &device) return INVALID_ARGUMENT;
  *mode = number("FAKE_NVML_PERSISTENCE", 1);
  return 0;
}

static unsigned int pcie(int which) {
  unsigned int v[4] = {1, 5, 1, 1}; // slower than any machine's memory
  const char *set = getenv("FAKE_NVML_PCIE");
  if (set) sscanf(set, "%u,%u,%u,%u", v, v + 1, v + 2, v + 3);
  return v[which];
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t d, unsigned int *v) { BEGIN; (void)d; *v = pcie(0); return 0; }
nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t d, unsigned int *v) { BEGIN; (void)d; *v = pcie(1); return 0; }
nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t d, unsigned int *v) { BEGIN; (void)d; *v = pcie(2); return 0; }
nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t d, unsigned int *v) { BEGIN; (void)d; *v = pcie(3); return 0; }

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
  BEGIN;
  *set = calloc(1, sizeof **set);
  return 0;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long kinds, nvmlEventSet_t set) {
  BEGIN;
  if (d != &device || kinds != 8) return INVALID_ARGUMENT;
  set->device = d;
  return 0;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int milliseconds) {
  BEGIN;
  if (milliseconds != 0 || set->device != &device) return INVALID_ARGUMENT;
  const char *xid = getenv("FAKE_NVML_XID");
  for (int i = 0; xid && i < device.events; i++) {
    xid = strchr(xid, ',');
    if (xid) xid++;
  }
  if (!xid) return TIMEOUT;
  device.events++;
  memset(data, 0, sizeof *data);
  data->device = &device;
  data->eventType = 8;
  data->eventData = atoi(xid);
  return 0;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
  BEGIN;
  free(set);
  return 0;
}
