/* A library that counts what is asked of the heap, and finds its successors by dlsym, when it first needs them or each time; and a program that
 * says what was counted, and whether somebody has left an error of dlsym's behind. */
#define _GNU_SOURCE
#include "say.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifdef LIBRARY
static unsigned long counted;
unsigned long calls_of_the_heap(void) { return counted; }

#ifdef EACH
#define KEPT
#define KNOWN(next) 0
#else
#define KEPT static
#define KNOWN(next) next
#endif
#define SUCCESSOR(type, name)                                                                                    \
    KEPT type next;                                                                                              \
    counted++;                                                                                                   \
    if (!KNOWN(next))                                                                                            \
        next = (type)dlsym(RTLD_NEXT, name);

typedef void *(*of_one)(size_t);
typedef void *(*of_two)(size_t, size_t);
typedef void *(*of_old)(void *, size_t);
typedef void (*of_none)(void *);
void *malloc(size_t size) {
    SUCCESSOR(of_one, "malloc")
    return next(size);
}
void *calloc(size_t n, size_t size) {
    SUCCESSOR(of_two, "calloc")
    return next(n, size);
}
void *realloc(void *old, size_t size) {
    SUCCESSOR(of_old, "realloc")
    return next(old, size);
}
void free(void *p) {
    SUCCESSOR(of_none, "free")
    next(p);
}
#else
extern char **environ;
#define LEN (1 << 20)

static unsigned long count(void) {
    unsigned long (*counted)(void) = (unsigned long (*)(void))dlsym(RTLD_DEFAULT, "calls_of_the_heap");
    dlerror();
    return counted ? counted() : 0;
}

static void exits(int number) {
    (void)number;
    _exit(3);
}

int main(void) {
    char *error = dlerror();
    unsigned long before = count();
    printf("%s, %lu calls\n", error ? error : "no error", before);

    static char some[LEN];
    fill(some, LEN, 1);
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600), status;
    write(fd, some, LEN);
    before = count();
    char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pread(fd, p, LEN, 0);
    p[5000] ^= 1;
    pwrite(fd, p, LEN, 0);
    struct iovec v[] = {{p, LEN / 2}, {p + LEN / 2, LEN / 2}};
    preadv(fd, v, 2, 0);
    close(open("file", O_RDONLY | O_TRUNC));
    ftruncate(fd, LEN);
    fcntl(fd, F_SETLK, &(struct flock){.l_type = F_WRLCK});
    pid_t child = fork();
    if (child == 0) {
        signal(SIGALRM, exits);
        raise(SIGALRM);
    }
    waitpid(child, &status, 0);
    char *arguments[] = {"true", NULL};
    posix_spawnp(&child, "true", NULL, NULL, arguments, environ);
    waitpid(child, &status, 0);
    setuid(getuid());
    shm_open("/no such memory", O_RDONLY, 0);
    dprintf(fd, "%d", 5);
    madvise(p, LEN, MADV_DONTNEED);
    munmap(p, LEN);
    close(fd);
    printf("%lu calls\n", count() - before);
    error = dlerror();
    printf("%s\n", error ? error : "no error");
    return 0;
}
#endif
