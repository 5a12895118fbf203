// SPDX-License-Identifier: Apache-2.0

// A FAKE of NVIDIA's libcuda.so.1, for machines without a GPU. It computes nothing: GPU
// memory is ordinary memory. What it is strict about is what a real driver is strict
// about too, or gets wrong silently: the current context belongs to the thread,
// asynchronous copies happen as late as they may, memory in use must not be freed, and
// everything is counted.
//
// Built with -DWITH_HEADERS and NVIDIA's cuda.h, the compiler compares the prototypes.
//
// The environment tells it what to do:
//
//   FAKE_CUDA_DEVICES, FAKE_CUDA_TOTAL, FAKE_CUDA_FREE, FAKE_CUDA_VERSION  what it has
//   FAKE_CUDA_FAIL     function=code, or function=code@first-last for some of the calls; many by commas
//   FAKE_CUDA_HANG     a function that never returns
//   FAKE_CUDA_CRASH    a function that ends in a segmentation fault
//   FAKE_CUDA_FLIP     the number of the copy to a GPU that flips a bit, from 1
//   FAKE_CUDA_FLIP_BACK  the same for copies from a GPU
//   FAKE_JOURNAL       a file that takes a line for all that is taken (+), given back (-) and misused (!)
//   FAKE_STATE         a folder that remembers calls from process to process

#ifdef WITH_HEADERS
#include <cuda.h>
#else
#include <stddef.h>
typedef int CUresult, CUdevice, CUdevice_attribute;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct { char bytes[16]; } CUuuid;
#endif

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INVALID_VALUE 1
#define OUT_OF_MEMORY 2
#define NOT_INITIALIZED 3
#define INVALID_DEVICE 101
#define INVALID_CONTEXT 201

struct CUctx_st { int device; };

struct block { char *at; size_t n; char kind; int device; int busy; };
struct copy { char *to, *from; size_t n; struct block *a, *b; int back; };
struct CUstream_st { int device; size_t done, made; struct copy copies[4096]; };
struct CUevent_st { CUstream stream; size_t upto; };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static __thread CUcontext current;
static struct CUctx_st contexts[64];
static int retained[64], initialized;
static struct block blocks[4096];
static size_t used[64], copies_there, copies_back;

static void journal(const char *format, ...) {
  const char *path = getenv("FAKE_JOURNAL");
  if (!path) return;
  char line[256];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(line, sizeof line - 1, format, args);
  va_end(args);
  line[n++] = '\n';
  int f = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (f < 0 || write(f, line, n) != n) abort();
  close(f);
}

static size_t number(const char *name, size_t otherwise) {
  const char *v = getenv(name);
  return v && *v ? strtoull(v, NULL, 10) : otherwise;
}

// How often the function was called, over all processes if there is a folder for that.
static long count(const char *function) {
  static struct { const char *name; long n; } seen[64];
  const char *dir = getenv("FAKE_STATE");
  if (dir) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, function);
    int f = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    struct stat s;
    if (f < 0 || write(f, ".", 1) != 1 || fstat(f, &s)) abort();
    close(f);
    return s.st_size;
  }
  for (int i = 0; i < 64; i++) {
    if (!seen[i].name) seen[i].name = function;
    if (!strcmp(seen[i].name, function)) return ++seen[i].n;
  }
  abort();
}

static int is(const char *variable, const char *function) {
  const char *v = getenv(variable);
  return v && !strcmp(v, function);
}

// What the environment wants the function to return; 0 for what it should.
static CUresult ordered(const char *function) {
  if (is("FAKE_CUDA_HANG", function)) for (;;) pause();
  if (is("FAKE_CUDA_CRASH", function)) *(volatile int *)8 = 1;
  const char *rule = getenv("FAKE_CUDA_FAIL");
  size_t length = strlen(function);
  while (rule && *rule) {
    if (!strncmp(rule, function, length) && rule[length] == '=') {
      int code = 0, first = 1, last = 1 << 30;
      if (sscanf(rule + length, "=%d@%d-%d", &code, &first, &last) == 1) return code;
      pthread_mutex_lock(&mutex);
      long n = count(function);
      pthread_mutex_unlock(&mutex);
      if (n >= first && n <= last) return code;
    }
    rule = strchr(rule, ',');
    if (rule) rule++;
  }
  return 0;
}

#define BEGIN do { CUresult wanted = ordered(__func__); if (wanted) return wanted; } while (0)
#define INITIALIZED do { BEGIN; if (!initialized) return misuse(__func__, NOT_INITIALIZED); } while (0)
#define CONTEXT do { INITIALIZED; if (!current) return misuse(__func__, INVALID_CONTEXT); } while (0)

static CUresult misuse(const char *function, CUresult code) {
  journal("!%s: misused, %d", function, code);
  return code;
}

static struct block *find(const void *p, size_t n) {
  for (int i = 0; i < 4096; i++) {
    struct block *b = &blocks[i];
    if (b->at && (char *)p >= b->at && (char *)p + n <= b->at + b->n) return b;
  }
  return NULL;
}

static CUresult take(char kind, size_t n, void **out) {
  pthread_mutex_lock(&mutex);
  struct block *b = NULL;
  for (int i = 0; i < 4096 && !b; i++) if (!blocks[i].at) b = &blocks[i];
  size_t total = number("FAKE_CUDA_TOTAL", (size_t)1 << 30), available = number("FAKE_CUDA_FREE", total);
  if (!b || (kind == 'm' && used[current->device] + n > available)) {
    pthread_mutex_unlock(&mutex);
    return OUT_OF_MEMORY;
  }
  *b = (struct block){malloc(n), n, kind, current->device, 0};
  memset(b->at, 0x5a, n);
  if (kind == 'm') used[b->device] += n;
  *out = b->at;
  journal("+%c", kind);
  pthread_mutex_unlock(&mutex);
  return 0;
}

static CUresult give(const char *function, char kind, void *p) {
  pthread_mutex_lock(&mutex);
  struct block *b = p ? find(p, 0) : NULL;
  if (!b || b->kind != kind || b->at != p || b->device != current->device) {
    pthread_mutex_unlock(&mutex);
    return misuse(function, INVALID_VALUE);
  }
  if (b->busy) journal("!%s: memory is freed while a copy uses it", function);
  if (kind == 'm') used[b->device] -= b->n;
  free(b->at);
  b->at = NULL;
  journal("-%c", kind);
  pthread_mutex_unlock(&mutex);
  return 0;
}

// Copies are made when somebody waits for them, and not before.
static void run(CUstream s, size_t upto) {
  for (; s->done < upto; s->done++) {
    struct copy *c = &s->copies[s->done % 4096];
    memcpy(c->to, c->from, c->n);
    size_t *made = c->back ? &copies_back : &copies_there;
    if (++*made == number(c->back ? "FAKE_CUDA_FLIP_BACK" : "FAKE_CUDA_FLIP", 0)) c->to[c->n / 2] ^= 0x10;
    c->a->busy--;
    c->b->busy--;
  }
}

static CUresult copy(const char *function, void *to, const void *from, size_t n, CUstream s, int back) {
  pthread_mutex_lock(&mutex);
  struct block *a = find(to, n), *b = find(from, n);
  struct block *memory = back ? b : a, *host = back ? a : b;
  if (!a || !b || memory->kind != 'm' || host->kind != 'p' || memory->device != current->device || s->device != current->device) {
    pthread_mutex_unlock(&mutex);
    return misuse(function, INVALID_VALUE);
  }
  a->busy++;
  b->busy++;
  if (s->made - s->done == 4096) run(s, s->done + 1);
  s->copies[s->made++ % 4096] = (struct copy){to, (char *)from, n, a, b, back};
  pthread_mutex_unlock(&mutex);
  return 0;
}

CUresult cuInit(unsigned int flags) {
  BEGIN;
  if (flags) return misuse(__func__, INVALID_VALUE);
  initialized = 1;
  return 0;
}

CUresult cuDriverGetVersion(int *version) {
  BEGIN;
  *version = number("FAKE_CUDA_VERSION", 12080);
  return 0;
}

static const struct { int code; const char *name, *text; } errors[] = {
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
};

CUresult cuGetErrorName(CUresult code, const char **name) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == (int)code) return *name = errors[i].name, 0;
  *name = NULL;
  return INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult code, const char **text) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == (int)code) return *text = errors[i].text, 0;
  *text = NULL;
  return INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *n) {
  INITIALIZED;
  *n = number("FAKE_CUDA_DEVICES", 1);
  return 0;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  INITIALIZED;
  if (ordinal < 0 || ordinal >= (int)number("FAKE_CUDA_DEVICES", 1)) return misuse(__func__, INVALID_DEVICE);
  *device = ordinal;
  return 0;
}

CUresult cuDeviceGetName(char *name, int n, CUdevice device) {
  INITIALIZED;
  (void)device;
  snprintf(name, n, "FAKE GPU");
  return 0;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
  INITIALIZED;
  memset(uuid, 0xfa, sizeof *uuid);
  ((char *)uuid)[15] = device;
  return 0;
}

CUresult cuDeviceGetPCIBusId(char *id, int n, CUdevice device) {
  INITIALIZED;
  snprintf(id, n, "0000:%02X:00.0", 0x10 + device);
  return 0;
}

CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice device) {
  INITIALIZED;
  (void)device;
  *n = number("FAKE_CUDA_TOTAL", (size_t)1 << 30);
  return 0;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  INITIALIZED;
  (void)device;
  *value = attribute == 75 ? 9 : attribute == 32;
  return 0;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  INITIALIZED;
  contexts[device].device = device;
  retained[device]++;
  *context = &contexts[device];
  journal("+c");
  return 0;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  INITIALIZED;
  if (retained[device]-- < 1) return misuse(__func__, INVALID_CONTEXT);
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < 4096; i++)
    if (blocks[i].at && blocks[i].device == device) journal("!%s: %c memory is left", __func__, blocks[i].kind);
  pthread_mutex_unlock(&mutex);
  journal("-c");
  return 0;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  INITIALIZED;
  current = context;
  return 0;
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *total) {
  CONTEXT;
  *total = number("FAKE_CUDA_TOTAL", (size_t)1 << 30);
  *available = number("FAKE_CUDA_FREE", *total) - used[current->device];
  return 0;
}

CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
  CONTEXT;
  void *at = NULL;
  CUresult r = take('m', n, &at);
  *p = (CUdeviceptr)(uintptr_t)at;
  return r;
}

CUresult cuMemFree_v2(CUdeviceptr p) {
  CONTEXT;
  return give(__func__, 'm', (void *)(uintptr_t)p);
}

CUresult cuMemHostAlloc(void **p, size_t n, unsigned int flags) {
  CONTEXT;
  (void)flags;
  return take('p', n, p);
}

CUresult cuMemFreeHost(void *p) {
  CONTEXT;
  return give(__func__, 'p', p);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream stream) {
  CONTEXT;
  return copy(__func__, (void *)(uintptr_t)to, from, n, stream, 0);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream stream) {
  CONTEXT;
  return copy(__func__, to, (void *)(uintptr_t)from, n, stream, 1);
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
  CONTEXT;
  (void)flags;
  *stream = calloc(1, sizeof **stream);
  (*stream)->device = current->device;
  journal("+s");
  return 0;
}

CUresult cuStreamSynchronize(CUstream stream) {
  CONTEXT;
  pthread_mutex_lock(&mutex);
  run(stream, stream->made);
  pthread_mutex_unlock(&mutex);
  return 0;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
  CONTEXT;
  if (stream->done != stream->made) journal("!%s: copies are left", __func__);
  free(stream);
  journal("-s");
  return 0;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
  CONTEXT;
  (void)flags;
  *event = calloc(1, sizeof **event);
  journal("+e");
  return 0;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
  CONTEXT;
  pthread_mutex_lock(&mutex);
  event->stream = stream;
  event->upto = stream->made;
  pthread_mutex_unlock(&mutex);
  return 0;
}

CUresult cuEventSynchronize(CUevent event) {
  CONTEXT;
  pthread_mutex_lock(&mutex);
  if (event->stream) run(event->stream, event->upto);
  pthread_mutex_unlock(&mutex);
  return 0;
}

CUresult cuEventDestroy_v2(CUevent event) {
  CONTEXT;
  free(event);
  journal("-e");
  return 0;
}
