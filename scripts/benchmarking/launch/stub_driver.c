/* A stand-in for libcuda.so.1 that computes nothing.
 *
 * Triton's JIT and its launchers run on it as they run on NVIDIA's driver: kernels are compiled, loaded and launched,
 * and each launch is recorded instead of run. So what a launch costs Python can be timed, and what is launched can be
 * compared, where there is no GPU. It reports an H100: compute capability 9.0, 132 multiprocessors. It has what Triton
 * 3.6 and 3.7 call. One thread at a time launches. stub.py builds it and reads the records.
 */

#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define EXPORTED __attribute__((visibility("default")))
#define KEPT 64        /* launches; older ones are forgotten */
#define PARAMETERS 64  /* recorded of a kernel, whatever it has */

/* What a function handle points to. A kernel's parameters have no count and no sizes in a launch: they are read from
 * the cubin, as the driver does. */
typedef struct {
    char name[128];
    uint32_t count;
    uint32_t sizes[PARAMETERS];
} Function;

/* The fields of stub.py's _Record, in that order. */
typedef struct {
    uint64_t function;
    uint64_t stream;
    uint32_t grid[3];
    uint32_t block[3];
    uint32_t shared;
    uint32_t count;
    uint64_t parameters[PARAMETERS];
} Record;

static uint64_t launches;
static Record records[KEPT];
static CUcontext current;
static int something; /* contexts are its address */

/* How many launches there have been. */
EXPORTED uint64_t stub_launches(void) { return launches; }

/* The record of a launch, counted from 0; NULL where it is not kept, or has not been. */
EXPORTED const Record *stub_record(uint64_t number) {
    return number < launches && number + KEPT >= launches ? &records[number % KEPT] : NULL;
}

EXPORTED const char *stub_name(const Function *function) { return function->name; }

/* The sizes of a kernel's parameters: entries of the section .nv.info.NAME, each a format, an attribute, and a value of
 * two bytes or, where the format is 4, so many bytes behind it. */
enum { SIZED = 0x04, PARAMETER = 0x17 };

static void read_parameters(const uint8_t *info, uint64_t length, Function *function) {
    for (uint64_t at = 0; at + 4 <= length;) {
        uint16_t value;
        memcpy(&value, info + at + 2, sizeof value);
        if (info[at] == SIZED && info[at + 1] == PARAMETER && value >= 12) {
            /* uint32 index, uint16 ordinal, uint16 offset, uint32 whose upper 14 bits are the size */
            uint16_t ordinal;
            uint32_t flags;
            memcpy(&ordinal, info + at + 8, sizeof ordinal);
            memcpy(&flags, info + at + 12, sizeof flags);
            if (ordinal < PARAMETERS) {
                function->sizes[ordinal] = flags >> 18;
                if (function->count <= ordinal) function->count = ordinal + 1;
            }
        }
        at += 4 + (info[at] == SIZED ? value : 0);
    }
}

static void read_cubin(const uint8_t *image, Function *function) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)image;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG)) return;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(image + header->e_shoff);
    const char *names = (const char *)image + sections[header->e_shstrndx].sh_offset;
    char wanted[sizeof function->name + 16];
    snprintf(wanted, sizeof wanted, ".nv.info.%s", function->name);
    for (int i = 0; i < header->e_shnum; ++i)
        if (!strcmp(names + sections[i].sh_name, wanted))
            read_parameters(image + sections[i].sh_offset, sections[i].sh_size, function);
}

EXPORTED CUresult CUDAAPI cuInit(unsigned int flags) { return CUDA_SUCCESS; }

EXPORTED CUresult CUDAAPI cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuGetErrorString(CUresult error, const char **text) {
    *text = "an error of the stub driver";
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuDeviceGetCount(int *count) {
    *count = 1;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 49152; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 232448; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 233472; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)&something;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuCtxGetCurrent(CUcontext *context) {
    *context = current;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
    current = context;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 0;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

EXPORTED CUresult CUDAAPI cuModuleLoadData(CUmodule *module, const void *image) {
    *module = (CUmodule)image; /* Triton keeps the cubin as long as the kernel */
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuModuleGetFunction(CUfunction *handle, CUmodule module, const char *name) {
    Function *function = calloc(1, sizeof *function);
    if (!function) return CUDA_ERROR_OUT_OF_MEMORY;
    snprintf(function->name, sizeof function->name, "%s", name);
    read_cubin((const uint8_t *)module, function);
    *handle = (CUfunction)function;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

EXPORTED CUresult CUDAAPI cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

EXPORTED CUresult CUDAAPI cuOccupancyMaxActiveClusters(int *clusters, CUfunction function,
                                                       const CUlaunchConfig *config) {
    *clusters = 132;
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads,
                                                                      size_t shared) {
    *blocks = threads > 0 ? 2048 / threads : 0;
    return CUDA_SUCCESS;
}

/* All memory counts as the device's. */
EXPORTED CUresult CUDAAPI cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return CUDA_ERROR_NOT_SUPPORTED;
    memcpy(value, &pointer, sizeof pointer);
    return CUDA_SUCCESS;
}

EXPORTED CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction handle, void **parameters,
                                           void **extra) {
    const Function *function = (const Function *)handle;
    Record *record = &records[launches % KEPT];
    record->function = (uint64_t)handle;
    record->stream = (uint64_t)config->hStream;
    record->grid[0] = config->gridDimX;
    record->grid[1] = config->gridDimY;
    record->grid[2] = config->gridDimZ;
    record->block[0] = config->blockDimX;
    record->block[1] = config->blockDimY;
    record->block[2] = config->blockDimZ;
    record->shared = config->sharedMemBytes;
    record->count = function->count;
    for (uint32_t i = 0; i < function->count; ++i) {
        record->parameters[i] = 0;
        memcpy(&record->parameters[i], parameters[i], function->sizes[i] < 8 ? function->sizes[i] : 8);
    }
    ++launches;
    return CUDA_SUCCESS;
}

/* What only tensor descriptors need. */
EXPORTED CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                                 void *address, const cuuint64_t *sizes, const cuuint64_t *strides,
                                                 const cuuint32_t *box, const cuuint32_t *steps,
                                                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                                 CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    memset(map, 0, sizeof *map);
    return CUDA_SUCCESS;
}
