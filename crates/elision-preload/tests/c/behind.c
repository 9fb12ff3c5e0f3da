/* A library that makes its mappings through syscall, as tcmalloc does: loaded behind the drop-in, it is what the drop-in's calls are
 * passed on to, and calls the drop-in's syscall in its turn. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset) {
    return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset) {
    return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

int munmap(void *addr, size_t len) { return syscall(SYS_munmap, addr, len); }

int mprotect(void *addr, size_t len, int prot) { return syscall(SYS_mprotect, addr, len, prot); }

int madvise(void *addr, size_t len, int advice) { return syscall(SYS_madvise, addr, len, advice); }

int mlock(const void *addr, size_t len) { return syscall(SYS_mlock, addr, len); }

void *mremap(void *old, size_t old_len, size_t len, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    void *new = flags & MREMAP_FIXED ? va_arg(arguments, void *) : NULL;
    va_end(arguments);
    return (void *)syscall(SYS_mremap, old, old_len, len, flags, new);
}
