/* A stand-in for NVIDIA's driver library, libcuda.so.1, on a machine that has none.
 *
 * It answers what embedding_learning/runtime/gpus.py asks, from environment variables:
 *     DRIVER_VERSION       as cuDriverGetVersion gives it, 11020 for CUDA 11.2 (default: 11080)
 *     DRIVER_STATUS        what cuInit returns (default: 0)
 *     GPU_CAPABILITIES     one for each GPU, such as 7.5,8.6 (default: no GPU)
 *     GPU_MEMORY           bytes of each (default: 8 GiB)
 * and has the other symbols that MXNet's GPU build needs to be loaded, which only fail.
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_SUPPORTED = 801 };
enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

static int count_gpus(void) {
    const char *text = setting("GPU_CAPABILITIES", "");
    int count = *text != '\0';
    for (; *text; text++) count += *text == ',';
    return count;
}

int cuDriverGetVersion(int *version) {
    *version = atoi(setting("DRIVER_VERSION", "11080"));
    return SUCCESS;
}

int cuInit(unsigned int flags) {
    int status = atoi(setting("DRIVER_STATUS", "0"));
    (void)flags;
    return status || count_gpus() ? status : NO_DEVICE;
}

int cuGetErrorString(int error, const char **text) {
    *text = error == 999 ? "unknown error" : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetCount(int *count) {
    *count = count_gpus();
    return SUCCESS;
}

/* Handles differ from numbers, so that one is not taken for the other. */
int cuDeviceGet(int *device, int number) {
    if (number < 0 || number >= count_gpus()) return INVALID_DEVICE;
    *device = 1000 + number;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Stand-in %d", device - 1000);
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *text = setting("GPU_CAPABILITIES", "");
    int major = 0, minor = 0;
    for (int left = device - 1000; left > 0 && text; left--) {
        text = strchr(text, ',');
        if (text) text++;
    }
    if (!text || sscanf(text, "%d.%d", &major, &minor) != 2) return INVALID_DEVICE;
    if (attribute == CAPABILITY_MAJOR) *value = major;
    if (attribute == CAPABILITY_MINOR) *value = minor;
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    *bytes = strtoull(setting("GPU_MEMORY", "8589934592"), NULL, 10);
    return SUCCESS;
}

/* Further functions that libmxnet.so names. */
int cuDevicePrimaryCtxRetain(void) { return NOT_SUPPORTED; }
int cuGraphKernelNodeGetParams(void) { return NOT_SUPPORTED; }
int cuGraphNodeGetType(void) { return NOT_SUPPORTED; }
int cuLaunchKernel(void) { return NOT_SUPPORTED; }
int cuModuleGetFunction(void) { return NOT_SUPPORTED; }
int cuModuleLoadData(void) { return NOT_SUPPORTED; }
int cuModuleLoadDataEx(void) { return NOT_SUPPORTED; }
int cuModuleUnload(void) { return NOT_SUPPORTED; }
