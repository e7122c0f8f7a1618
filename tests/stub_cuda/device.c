/* A CUDA device that computes nothing: what torch asks of the CUDA runtime and of the driver is answered as by one idle
 * GPU whose kernels take no time and write nothing, and whose memory holds zeros whatever is written to it.
 *
 * Streams, events and captures follow CUDA's rules: who waits for the device, or allocates, where a stream is being
 * captured, gets the error that CUDA gives. So what runs on the host can be tested, and what is computed cannot.
 *
 * With IDLE_GPU_REPLAY_MICROSECONDS each replay of a graph takes so long, and who waits for the device waits for it.
 *
 * It is loaded before torch (LD_PRELOAD), whose packages bring the headers. */

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "answers.h"

#define NAME "idle device"
#define MULTIPROCESSORS 132
#define THREADS 2048
#define BLOCK_THREADS 1024
#define SHARED_MEMORY (227 << 10)
#define MEMORY ((size_t)64 << 30) /* as much as is asked for: pages that nobody writes to take no room */
#define MAX_ALLOCATIONS 65536
#define SECOND 1000000000L /* in nanoseconds */

/* --- counts, for tests to read ------------------------------------------------------------------ */

static struct {
    long launches; /* kernels, and what libraries launch, outside of captures */
    long captured; /* the same inside, which replays repeat */
    long replays;
    long waits; /* of the host for the device */
    long copies;
    long stray; /* launches on another stream while one was being captured */
} counts;

void *idle_gpu_counts(void) { return &counts; }

/* --- errors ------------------------------------------------------------------------------------- */

static __thread cudaError_t last_error;

static cudaError_t failed(cudaError_t error) { return last_error = error; }

cudaError_t cudaPeekAtLastError(void) { return last_error; }

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorName(cudaError_t error) { return error ? "cudaError" : "cudaSuccess"; }

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        default: return "an error of the idle device";
    }
}

/* --- streams and captures ----------------------------------------------------------------------- */

struct CUgraph_st { size_t nodes; };
struct CUstream_st {
    enum cudaStreamCaptureStatus status;
    unsigned long long capture;
    cudaGraph_t graph;
};

static struct CUstream_st default_stream;
static unsigned long long captures;
static cudaStream_t capturing; /* torch captures one at a time */
static enum cudaStreamCaptureMode capture_mode;
static pthread_t capturing_thread;
static __thread enum cudaStreamCaptureMode own_mode = cudaStreamCaptureModeGlobal;

static cudaStream_t named(cudaStream_t stream) {
    return stream == NULL || stream == cudaStreamLegacy || stream == cudaStreamPerThread ? &default_stream : stream;
}

/* Whether this thread may not do what no capture can hold: to wait, to allocate, to ask. */
static int is_forbidden(void) {
    if (capturing == NULL || own_mode == cudaStreamCaptureModeRelaxed) return 0;
    return capture_mode == cudaStreamCaptureModeGlobal ||
           (capture_mode == cudaStreamCaptureModeThreadLocal && pthread_equal(capturing_thread, pthread_self()));
}

static cudaError_t invalidated(void) {
    if (capturing != NULL) capturing->status = cudaStreamCaptureStatusInvalidated;
    return failed(cudaErrorStreamCaptureUnsupported);
}

static cudaError_t asked(cudaStream_t stream) {
    return named(stream)->status || is_forbidden() ? invalidated() : cudaSuccess;
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

static int64_t busy_until;

static cudaError_t waited(cudaStream_t stream) {
    struct timespec until = {busy_until / SECOND, busy_until % SECOND};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL)) continue;
    counts.waits++;
    return asked(stream);
}

/* Whether a capture takes in what goes to this stream; -1 where it is broken. */
static int is_captured(cudaStream_t stream) {
    stream = named(stream);
    if (stream->status == cudaStreamCaptureStatusInvalidated) return -1;
    if (stream->status == cudaStreamCaptureStatusActive) stream->graph->nodes++;
    return stream->status == cudaStreamCaptureStatusActive;
}

cudaError_t idle_gpu_launched(cudaStream_t stream) {
    switch (is_captured(stream)) {
        case -1: return failed(cudaErrorStreamCaptureInvalidated);
        case 1: counts.captured++; return cudaSuccess;
        default:
            counts.launches++;
            counts.stray += capturing != NULL;
            return cudaSuccess;
    }
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = calloc(1, sizeof **stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return cudaStreamCreate(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waited(stream); }

cudaError_t cudaStreamQuery(cudaStream_t stream) { return asked(stream); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    if (named(stream) == &default_stream || capturing != NULL) return failed(cudaErrorStreamCaptureUnsupported);
    *stream = (struct CUstream_st){cudaStreamCaptureStatusActive, ++captures, calloc(1, sizeof *stream->graph)};
    capturing = stream;
    capture_mode = mode;
    capturing_thread = pthread_self();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    int is_whole = stream->status == cudaStreamCaptureStatusActive;
    *graph = is_whole ? stream->graph : NULL;
    stream->status = cudaStreamCaptureStatusNone;
    capturing = NULL;
    return is_whole ? cudaSuccess : failed(cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = named(stream)->status;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *capture, cudaGraph_t *graph,
    const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges, size_t *count
) {
    *status = named(stream)->status;
    if (capture != NULL) *capture = named(stream)->capture;
    if (graph != NULL) *graph = named(stream)->graph;
    if (dependencies != NULL) *dependencies = NULL;
    if (edges != NULL) *edges = NULL;
    if (count != NULL) *count = 0;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = own_mode;
    own_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

MAKES(cudaGraphInstantiate)
MAKES(cudaGraphInstantiateWithFlags)
SUCCEEDS(cudaGraphExecDestroy)

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    const char *microseconds = getenv("IDLE_GPU_REPLAY_MICROSECONDS");
    int64_t now = nanoseconds();
    if (microseconds != NULL) busy_until = (busy_until > now ? busy_until : now) + 1000 * atol(microseconds);
    counts.replays++;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = graph->nodes;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    free(graph);
    return cudaSuccess;
}

/* --- events ------------------------------------------------------------------------------------- */

struct CUevent_st {
    int64_t at;
    cudaStream_t captured_in;
};

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = calloc(1, sizeof **event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->at = nanoseconds();
    event->captured_in = named(stream)->status ? named(stream) : NULL;
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}

/* A stream that waits for one that is being captured is captured with it, which the default stream cannot be. */
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    cudaStream_t of = event->captured_in;
    if (of == NULL || of->status != cudaStreamCaptureStatusActive || named(stream) == of) return cudaSuccess;
    if (named(stream) == &default_stream) return invalidated();
    *stream = *of;
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) { return asked(NULL); }

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return waited(NULL); }

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = (to->at - from->at) / 1e6f;
    return cudaSuccess;
}

/* --- the device --------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice); }

cudaError_t cudaDeviceSynchronize(void) { return waited(NULL); }

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

ANSWERS(cudaGetDriverEntryPointByVersion, cudaErrorNotSupported)
SUCCEEDS(cudaProfilerStart)
SUCCEEDS(cudaProfilerStop)

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    if (device != 0) return failed(cudaErrorInvalidDevice);
    *found = (struct cudaDeviceProp){
        .name = NAME,
        .major = 9,
        .totalGlobalMem = MEMORY,
        .multiProcessorCount = MULTIPROCESSORS,
        .maxThreadsPerMultiProcessor = THREADS,
        .maxThreadsPerBlock = BLOCK_THREADS,
        .maxThreadsDim = {BLOCK_THREADS, BLOCK_THREADS, 64},
        .maxGridSize = {2147483647, 65535, 65535},
        .warpSize = 32,
        .regsPerBlock = 65536,
        .regsPerMultiprocessor = 65536,
        .sharedMemPerBlock = 48 << 10,
        .sharedMemPerBlockOptin = SHARED_MEMORY,
        .sharedMemPerMultiprocessor = SHARED_MEMORY,
        .l2CacheSize = 50 << 20,
        .textureAlignment = 512,
        .concurrentKernels = 1,
        .unifiedAddressing = 1,
    };
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrMultiProcessorCount: *value = MULTIPROCESSORS; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = BLOCK_THREADS; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_MEMORY; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

/* --- memory ------------------------------------------------------------------------------------- */

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static struct allocation {
    char *start;
    size_t bytes;
    enum cudaMemoryType type;
} allocations[MAX_ALLOCATIONS];
static int highest; /* as many of them may be in use */
static size_t used;

static struct allocation *around(const void *pointer) {
    const char *at = pointer;
    for (struct allocation *each = allocations; each < allocations + highest; each++)
        if (each->start != NULL && at >= each->start && at < each->start + each->bytes) return each;
    return NULL;
}

static struct allocation *unused(void) {
    for (int i = 0; i < highest; i++)
        if (allocations[i].start == NULL) return &allocations[i];
    return highest < MAX_ALLOCATIONS ? &allocations[highest++] : NULL;
}

static void *mapped(size_t bytes, enum cudaMemoryType type) {
    struct allocation *place = unused();
    if (place == NULL || (type == cudaMemoryTypeDevice && bytes > MEMORY - used)) return NULL;
    void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return NULL;
    *place = (struct allocation){start, bytes, type};
    if (type == cudaMemoryTypeDevice) used += bytes;
    return start;
}

static cudaError_t allocated(void **pointer, size_t bytes, enum cudaMemoryType type) {
    if (is_forbidden()) return invalidated();
    pthread_mutex_lock(&memory_lock);
    *pointer = bytes ? mapped(bytes, type) : NULL;
    pthread_mutex_unlock(&memory_lock);
    return *pointer != NULL || bytes == 0 ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

static cudaError_t freed(void *pointer) {
    if (is_forbidden()) return invalidated();
    if (pointer == NULL) return cudaSuccess;
    pthread_mutex_lock(&memory_lock);
    struct allocation *of = around(pointer);
    int is_known = of != NULL && of->start == pointer;
    if (is_known) {
        munmap(of->start, of->bytes);
        if (of->type == cudaMemoryTypeDevice) used -= of->bytes;
        of->start = NULL;
    }
    pthread_mutex_unlock(&memory_lock);
    return is_known ? cudaSuccess : failed(cudaErrorInvalidValue);
}

cudaError_t cudaMalloc(void **pointer, size_t bytes) { return allocated(pointer, bytes, cudaMemoryTypeDevice); }

cudaError_t cudaFree(void *pointer) { return freed(pointer); }

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    return allocated(pointer, bytes, cudaMemoryTypeHost);
}

cudaError_t cudaFreeHost(void *pointer) { return freed(pointer); }

cudaError_t cudaMemGetInfo(size_t *left, size_t *all) {
    *left = MEMORY - used;
    *all = MEMORY;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *of = around(pointer);
    *found = (struct cudaPointerAttributes){.type = of != NULL ? of->type : cudaMemoryTypeUnregistered};
    if (of != NULL) found->devicePointer = (void *)pointer;
    if (of != NULL && of->type == cudaMemoryTypeHost) found->hostPointer = (void *)pointer;
    pthread_mutex_unlock(&memory_lock);
    return cudaSuccess;
}

static int is_on_the_device(const void *pointer) {
    pthread_mutex_lock(&memory_lock);
    struct allocation *of = around(pointer);
    int is_there = of != NULL && of->type == cudaMemoryTypeDevice;
    pthread_mutex_unlock(&memory_lock);
    return is_there;
}

/* What comes from the device are zeros, and what goes there is lost. Kept, it would turn up again in the results of
 * kernels that write nothing to the memory that they are given. */
static void copy(void *to, const void *from, size_t bytes) {
    if (is_on_the_device(to)) return;
    if (is_on_the_device(from))
        memset(to, 0, bytes);
    else
        memmove(to, from, bytes);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    counts.copies++;
    switch (is_captured(stream)) {
        case -1: return failed(cudaErrorStreamCaptureInvalidated);
        case 0: copy(to, from, bytes);
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    cudaError_t error = waited(NULL);
    return error ? error : cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return is_captured(stream) < 0 ? failed(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, NULL); }

/* --- kernels ------------------------------------------------------------------------------------ */

/* The compiler hands a launch's shape over in two calls, which other launches cannot come between. */
static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} pushed;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared = shared;
    pushed.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, cudaStream_t *stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *stream = pushed.stream;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(
    const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream
) {
    size_t threads = (size_t)block.x * block.y * block.z;
    int is_possible = grid.x && grid.y && grid.z && grid.y <= 65535 && grid.z <= 65535 && threads &&
                      threads <= BLOCK_THREADS && shared <= SHARED_MEMORY;
    return is_possible ? idle_gpu_launched(stream) : failed(cudaErrorInvalidConfiguration);
}

cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream
) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *shape, const void *kernel, void **arguments) {
    return cudaLaunchKernel(
        kernel, shape->gridDim, shape->blockDim, arguments, shape->dynamicSmemBytes, shape->stream
    );
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
    *found = (struct cudaFuncAttributes){
        .maxThreadsPerBlock = BLOCK_THREADS, .numRegs = 32, .ptxVersion = 90, .binaryVersion = 90,
        .maxDynamicSharedSizeBytes = 48 << 10,
    };
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads, size_t shared) {
    *blocks = THREADS / threads;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks, const void *kernel, int threads, size_t shared, unsigned flags
) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared);
}

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    return &handle;
}

SUCCEEDS(__cudaRegisterFatBinaryEnd)
SUCCEEDS(__cudaRegisterFunction)
SUCCEEDS(__cudaRegisterVar)
SUCCEEDS(__cudaUnregisterFatBinary)
SUCCEEDS(cudaFuncSetAttribute)

/* --- the driver --------------------------------------------------------------------------------- */

/* Torch wants all of these to be there when it first differentiates; the refused ones are for kernels that are
 * compiled while a program runs. */

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = "an error of the idle device";
    return CUDA_SUCCESS;
}

MAKES(cuCtxGetCurrent)
MAKES(cuDevicePrimaryCtxRetain)
SUCCEEDS(cuCtxSetCurrent)

#define REFUSES(name) ANSWERS(name, CUDA_ERROR_NOT_SUPPORTED)
REFUSES(cuDeviceGetAttribute)
REFUSES(cuFuncGetAttribute)
REFUSES(cuFuncSetAttribute)
REFUSES(cuFuncSetCacheConfig)
REFUSES(cuLaunchCooperativeKernel)
REFUSES(cuLaunchKernel)
REFUSES(cuLinkAddData_v2)
REFUSES(cuLinkComplete)
REFUSES(cuLinkCreate_v2)
REFUSES(cuModuleGetFunction)
REFUSES(cuModuleLoad)
REFUSES(cuModuleLoadData)
REFUSES(cuModuleLoadDataEx)
REFUSES(cuModuleUnload)
REFUSES(cuOccupancyMaxActiveBlocksPerMultiprocessor)
REFUSES(cuPointerGetAttribute)
REFUSES(cuTensorMapEncodeTiled)
