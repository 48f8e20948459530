/*
 * Lets User-mode Linux run on processors with AMX; preloaded into linux.uml.
 *
 * UML hands a guest process its floating-point state with PTRACE_SETREGSET NT_X86_XSTATE, from an area of fixed
 * size. The host's kernel demands exactly the size of its own area, which AMX raises to about 11 KB, and refuses
 * anything shorter: the guest panics with "userspace - ptrace set fp regs failed, errno = 14". So a short area is
 * laid over the whole one that the kernel reports. Tile state is marked absent: UML knows nothing of it, and what
 * another process left there must not leak in. Where the size already fits, every call passes through untouched.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEADER 512                                        /* XSTATE_BV, the feature bits, follows the legacy area */
#define AMX ((UINT64_C(1) << 17) | (UINT64_C(1) << 18))   /* XTILECFG, XTILEDATA */

static long kernel_ptrace(long request, long pid, void *address, void *data)
{
    return syscall(SYS_ptrace, request, pid, address, data);
}

static long set_whole_state(long pid, void *kind, struct iovec *given)
{
    static __thread unsigned char area[1 << 16] __attribute__((aligned(64)));
    struct iovec whole = { area, sizeof area };
    uint64_t features;

    if (kernel_ptrace(PTRACE_GETREGSET, pid, kind, &whole) < 0)
        return -1;
    if (given->iov_len >= whole.iov_len || given->iov_len < HEADER + sizeof features)
        return kernel_ptrace(PTRACE_SETREGSET, pid, kind, given);
    memcpy(area, given->iov_base, given->iov_len);
    memcpy(&features, area + HEADER, sizeof features);
    features &= ~AMX;
    memcpy(area + HEADER, &features, sizeof features);
    return kernel_ptrace(PTRACE_SETREGSET, pid, kind, &whole);
}

/* The system call stores a peeked word where the C library's function returns it. */
static long peek(long request, long pid, void *address)
{
    long word;

    if (kernel_ptrace(request, pid, address, &word) < 0)
        return -1;
    errno = 0;
    return word;
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list rest;
    va_start(rest, request);
    long pid = va_arg(rest, pid_t);
    void *address = va_arg(rest, void *);
    void *data = va_arg(rest, void *);
    va_end(rest);

    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER)
        return peek(request, pid, address);
    if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE)
        return set_whole_state(pid, address, data);
    return kernel_ptrace(request, pid, address, data);
}
