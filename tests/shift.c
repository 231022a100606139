/* Preloaded into a process, puts the memory of torch's tensors on a CPU RAYPROMPT_TEST_SHIFT bytes behind where its
   allocator would: see tests/shifting.py. Only what libc10 asks for is shifted; a mark in front of it tells free(). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MARK 0x7b1d5e39c04fa286ull
#define HEAD 16 /* bytes of the mark: a constant, and the address that the block was allocated at */

static int (*next_align)(void **, size_t, size_t);
static void (*next_free)(void *);

static size_t shift_of(void)
{
    static long shift = -1;
    if (shift < 0) {
        const char *given = getenv("RAYPROMPT_TEST_SHIFT");
        shift = given ? atol(given) : 0;
    }
    return (size_t)shift;
}

static int from_torch(void *caller)
{
    static void *base;
    Dl_info info;
    if (!dladdr(caller, &info) || !info.dli_fname)
        return 0;
    if (!base && strstr(info.dli_fname, "libc10.so"))
        base = info.dli_fbase;
    return base && info.dli_fbase == base;
}

int posix_memalign(void **result, size_t alignment, size_t size)
{
    char *block, *data;
    uint64_t mark[2];
    int failed;
    if (!next_align)
        next_align = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    if (!shift_of() || !from_torch(__builtin_return_address(0)))
        return next_align(result, alignment, size);
    if (size > SIZE_MAX - 2 * alignment)
        return ENOMEM;
    failed = next_align((void **)&block, alignment, size + 2 * alignment);
    if (failed)
        return failed;
    data = block + alignment + shift_of() % alignment;
    mark[0] = MARK ^ (uint64_t)(uintptr_t)data;
    mark[1] = (uint64_t)(uintptr_t)block;
    memcpy(data - HEAD, mark, HEAD);
    *result = data;
    return 0;
}

void free(void *data)
{
    uint64_t mark[2] = {0, 0};
    if (!next_free)
        next_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    if (data && shift_of()) {
        memcpy(mark, (char *)data - HEAD, HEAD); /* of an ordinary block: what malloc keeps in front of it */
        if (mark[0] == (MARK ^ (uint64_t)(uintptr_t)data)) {
            memset((char *)data - HEAD, 0, HEAD);
            data = (void *)(uintptr_t)mark[1];
        }
    }
    next_free(data);
}
