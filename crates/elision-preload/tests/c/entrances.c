/* Ways into files, descriptor tables and memory that few programs take, each in a case of its own.
 *
 *     entrances list           the cases; after a name, 1 if something is deferred in it
 *     entrances CASE FILE      prints what it finds, which is the same with the drop-in and without
 *
 * Most cases read FILE whole, take the way in, and look whether what was read is still what was read. Where something is
 * shared with code that nobody sees, a system call that no library has a name for (`raw`) plays that part. */
#define _GNU_SOURCE
#include "say.h"
#include <aio.h>
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/fanotify.h>
#include <sys/fsuid.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <utmp.h>
#include <wordexp.h>

#ifdef LIBRARY /* whose constructor comes before the drop-in's */

__attribute__((constructor)) static void early(void) { syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY); }

#else

enum { SIZE = 256 * 1024, PAGE = 4096 };

/* glibc's other names, for which it has no declaration. */
ssize_t __read(int, void *, size_t);
ssize_t __write(int, const void *, size_t);
ssize_t __pread64(int, void *, size_t, off_t);
ssize_t __pwrite64(int, const void *, size_t, off_t);
ssize_t __send(int, const void *, size_t, int);
int __open(const char *, int, ...);
int __open64(const char *, int, ...);
int __open_2(const char *, int);
int __open64_2(const char *, int);
int __close(int);
int __dup2(int, int);
int __fcntl(int, int, ...);
pid_t __vfork(void);
int __clone(int (*)(void *), void *, int, void *, ...);
FILE *_IO_popen(const char *, const char *);
int pidfd_getfd(int, int, unsigned);
void __libc_free(void *);
void *__libc_realloc(void *, size_t);
struct mallinfo __libc_mallinfo(void);
void __backtrace_symbols_fd(void *const *, int, int);
int __dprintf_chk(int, int, const char *, ...);
int __vdprintf_chk(int, int, const char *, va_list);

int capset(void *, const void *);
int __fxstat(int, int, struct stat *);
int __fxstat64(int, int, struct stat64 *);

extern char **environ;
static const char *path;
static unsigned char *bytes, *expected;

/* A system call that only the kernel sees. */
static long raw(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long raw_pwrite(int fd, const char *text, long offset) {
    return raw(SYS_pwrite64, fd, (long)text, strlen(text), offset, 0, 0);
}

static void die(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

/* The file as it is at first. Not by way of stdio or malloc: some cases are about these. */
static void reset(void) {
    fill(expected, SIZE, 1);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, expected, SIZE) != SIZE)
        die(path);
    close(fd);
}

/* Memory that nothing has been done to. */
static void *fresh(void) {
    return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int whole(int flags) {
    int fd = open(path, flags);
    bytes = fresh();
    if (fd < 0 || pread(fd, bytes, SIZE, 0) != SIZE)
        die(path);
    return fd;
}

/* Somebody else writes to the file, in place. */
static void overwrite(void) {
    int fd = open(path, O_WRONLY);
    static char zeroes[SIZE];
    if (fd < 0 || raw(SYS_pwrite64, fd, (long)zeroes, SIZE, 0, 0, 0) != SIZE)
        die("to overwrite");
    close(fd);
}

static void kept(const char *after) {
    printf("after %s: %s\n", after, memcmp(bytes, expected, SIZE) ? "CHANGED" : "kept");
}

/* Is the file mapped? In a program that does not do it itself, only while something is deferred. */
static int mapped(void) {
    static char text[1 << 20];
    int fd = open("/proc/self/maps", O_RDONLY), found = 0;
    size_t at = 0;
    for (ssize_t got; (got = read(fd, text + at, PAGE - 1)) > 0 && at < sizeof text - 2 * PAGE;)
        at += got;
    text[at] = 0;
    close(fd);
    for (char *line = text; (line = strstr(line, path)); line++)
        found++;
    return found;
}

/* Nothing is deferred any more, nor will be. */
static void over(const char *after, int fd) {
    kept(after);
    printf("after %s: mapped %d", after, mapped());
    if (pread(fd, bytes, SIZE, 0) != SIZE)
        die("pread");
    printf(", then %d\n", mapped());
}

static int wait_for(pid_t child) {
    int status = -1;
    if (child < 0 || waitpid(child, &status, __WALL) != child)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/* ---- What changes a file that is open here. ---- */

static int other; /* another file, which says "other" all through */
static unsigned char page[PAGE];

static void c_write(int fd) { lseek(fd, PAGE, SEEK_SET), write(fd, page, PAGE); }
static void c_old_write(int fd) { lseek(fd, PAGE, SEEK_SET), __write(fd, page, PAGE); }
static void c_pwrite(int fd) { pwrite(fd, page, 100, PAGE), pwrite64(fd, page, 100, PAGE + 100); }
static void c_old_pwrite(int fd) { __pwrite64(fd, page, 100, PAGE); }
static void c_writev(int fd) {
    struct iovec v[2] = {{page, 10}, {page, 20}};
    lseek(fd, PAGE, SEEK_SET);
    writev(fd, v, 2);
}
static void c_pwritev2(int fd) {
    struct iovec v[2] = {{page, 10}, {page, 20}};
    pwritev2(fd, v, 2, PAGE, RWF_DSYNC);
    pwritev64v2(fd, v, 2, PAGE * 2, 0);
    SAY(pwritev2(fd, v, 2, PAGE, RWF_APPEND));
    SAY(syscall(SYS_pwritev2, fd, v, 2l, (long)PAGE * 3, 0l, RWF_DSYNC));
    SAY(preadv2(fd, v, 2, PAGE, RWF_NOWAIT) != 0);
}
static void c_stream(int fd) {
    FILE *file = fdopen(dup(fd), "r+");
    fseek(file, PAGE, SEEK_SET);
    for (int i = 0; i < PAGE; i++)
        putc_unlocked('x', file);
    fputs_unlocked("and more", file);
    fclose(file);
}
static void shown(int fd, int checked, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    SAY(checked ? __vdprintf_chk(fd, 1, format, arguments) : vdprintf(fd, format, arguments));
    va_end(arguments);
}
static void c_dprintf(int fd) { lseek(fd, PAGE, SEEK_SET), dprintf(fd, "%d %f", 1, 2.0); }
static void c_dprintf_chk(int fd) { lseek(fd, PAGE, SEEK_SET), __dprintf_chk(fd, 1, "%d %f", 1, 2.0); }
static void c_vdprintf(int fd) { lseek(fd, PAGE, SEEK_SET), shown(fd, 0, "%d %f", 1, 2.0); }
static void c_vdprintf_chk(int fd) { lseek(fd, PAGE, SEEK_SET), shown(fd, 1, "%d %f", 1, 2.0); }
static void c_backtrace(int fd) {
    void *frames[] = {(void *)c_write, (void *)die};
    lseek(fd, PAGE, SEEK_SET);
    backtrace_symbols_fd(frames, 2, fd);
}
static void c_old_backtrace(int fd) {
    void *frames[] = {(void *)c_write, (void *)die};
    lseek(fd, PAGE, SEEK_SET);
    __backtrace_symbols_fd(frames, 2, fd);
}
static void c_ftruncate(int fd) { ftruncate(fd, PAGE + 7); }
static void c_ftruncate64(int fd) { ftruncate64(fd, PAGE + 7); }
static void c_truncate(int fd) { (void)fd, truncate(path, PAGE + 7); }
static void c_truncate64(int fd) { (void)fd, truncate64(path, PAGE + 7); }
static void c_fallocate(int fd) { fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE); }
static void c_fallocate64(int fd) { fallocate64(fd, FALLOC_FL_ZERO_RANGE, PAGE, PAGE); }
static void c_posix_fallocate(int fd) { posix_fallocate(fd, 0, 2 * SIZE), posix_fallocate64(fd, 0, 3 * SIZE); }
static void c_copy_file_range(int fd) {
    off_t to = PAGE;
    lseek(other, 0, SEEK_SET);
    SAY(copy_file_range(other, NULL, fd, &to, PAGE, 0));
}
static void c_sendfile(int fd) {
    off_t from = 0;
    lseek(fd, PAGE, SEEK_SET);
    SAY(sendfile(fd, other, &from, PAGE));
    SAY(sendfile64(fd, other, &from, PAGE));
}
static void c_splice(int fd) {
    int ends[2];
    off_t to = PAGE;
    pipe(ends);
    write(ends[1], page, PAGE);
    SAY(splice(ends[0], NULL, fd, &to, PAGE, 0));
    close(ends[0]), close(ends[1]);
}
static void c_clone(int fd) {
    struct file_clone_range range = {other, 0, PAGE, PAGE};
    ioctl(fd, FICLONERANGE, &range);
}
static void c_ftruncate_by_number(int fd) { SAY(syscall(SYS_ftruncate, fd, PAGE + 7l)); }
static void c_fallocate_by_number(int fd) {
    SAY(syscall(SYS_fallocate, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (long)PAGE, (long)PAGE));
}
static void c_copy_by_number(int fd) {
    off_t to = PAGE;
    lseek(other, 0, SEEK_SET);
    SAY(syscall(SYS_copy_file_range, other, NULL, fd, &to, (long)PAGE, 0l));
}
static void c_sendfile_by_number(int fd) {
    off_t from = 0;
    lseek(fd, PAGE, SEEK_SET);
    SAY(syscall(SYS_sendfile, fd, other, &from, (long)PAGE));
}
static void c_splice_by_number(int fd) {
    int ends[2];
    off_t to = PAGE;
    pipe(ends);
    write(ends[1], page, PAGE);
    SAY(syscall(SYS_splice, ends[0], NULL, fd, &to, (long)PAGE, 0l));
    close(ends[0]), close(ends[1]);
}
static void c_clone_range_by_number(int fd) {
    struct file_clone_range range = {other, 0, PAGE, PAGE};
    syscall(SYS_ioctl, fd, FICLONERANGE, &range);
}
static void c_shared(int fd) {
    char *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, PAGE);
    memset(shared, 's', PAGE);
    msync(shared, PAGE, MS_SYNC);
    munmap(shared, PAGE);
}
static void c_aio(int fd) {
    struct aiocb request = {.aio_fildes = fd, .aio_buf = page, .aio_nbytes = PAGE, .aio_offset = PAGE};
    struct aiocb64 request64 = {.aio_fildes = fd, .aio_buf = page, .aio_nbytes = PAGE, .aio_offset = 2 * PAGE};
    const struct aiocb *list[] = {&request};
    SAY(aio_write(&request));
    while (aio_error(&request) == EINPROGRESS)
        aio_suspend(list, 1, NULL);
    SAY(aio_return(&request));
    SAY(aio_write64(&request64));
    while (aio_error64(&request64) == EINPROGRESS)
        sched_yield();
    SAY(aio_return64(&request64));
}
static void c_listio(int fd) {
    struct aiocb request = {.aio_fildes = fd, .aio_buf = page, .aio_nbytes = PAGE, .aio_offset = PAGE};
    struct aiocb64 request64 = {.aio_fildes = fd, .aio_buf = page, .aio_nbytes = PAGE, .aio_offset = 2 * PAGE};
    struct aiocb *list[] = {&request};
    struct aiocb64 *list64[] = {&request64};
    request.aio_lio_opcode = request64.aio_lio_opcode = LIO_WRITE;
    SAY(lio_listio(LIO_WAIT, list, 1, NULL));
    SAY(lio_listio64(LIO_WAIT, list64, 1, NULL));
}
static void c_open(int fd) { (void)fd, close(open(path, O_RDONLY | O_TRUNC)); }
static void c_open_to_write(int fd) {
    int again = __open64(path, O_WRONLY);
    raw_pwrite(again, "another description", PAGE);
    __close(again), (void)fd;
}
static void c_received(int fd) {
    char path_of[64];
    sprintf(path_of, "/proc/self/fd/%d", fd);
    int again = __open(path_of, O_RDWR);
    raw_pwrite(again, "the same file", PAGE);
    close(again);
}
static void c_child(int fd) {
    (void)fd;
    char command[500];
    sprintf(command, "echo changed > '%s'", path);
    SAY(system(command));
}

static const struct {
    const char *name;
    void (*change)(int fd);
} changes[] = {
    {"write", c_write},
    {"__write", c_old_write},
    {"pwrite", c_pwrite},
    {"__pwrite64", c_old_pwrite},
    {"writev", c_writev},
    {"pwritev2", c_pwritev2},
    {"a stream", c_stream},
    {"dprintf", c_dprintf},
    {"__dprintf_chk", c_dprintf_chk},
    {"vdprintf", c_vdprintf},
    {"__vdprintf_chk", c_vdprintf_chk},
    {"backtrace_symbols_fd", c_backtrace},
    {"__backtrace_symbols_fd", c_old_backtrace},
    {"ftruncate", c_ftruncate},
    {"ftruncate64", c_ftruncate64},
    {"truncate", c_truncate},
    {"truncate64", c_truncate64},
    {"fallocate", c_fallocate},
    {"fallocate64", c_fallocate64},
    {"posix_fallocate", c_posix_fallocate},
    {"copy_file_range", c_copy_file_range},
    {"sendfile", c_sendfile},
    {"splice", c_splice},
    {"FICLONERANGE", c_clone},
    {"SYS_ftruncate", c_ftruncate_by_number},
    {"SYS_fallocate", c_fallocate_by_number},
    {"SYS_copy_file_range", c_copy_by_number},
    {"SYS_sendfile", c_sendfile_by_number},
    {"SYS_splice", c_splice_by_number},
    {"SYS_ioctl", c_clone_range_by_number},
    {"a shared mapping", c_shared},
    {"open with O_TRUNC", c_open},
    {"another description", c_open_to_write},
    {"/proc/self/fd", c_received},
    {"a child", c_child},
};

static void through(void (*change)(int), const char *name) {
    reset();
    int fd = whole(O_RDWR);
    change(fd);
    kept(name);
    close(fd);
}

static void case_changes(void) {
    memset(page, 'p', PAGE);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++)
        through(changes[i].change, changes[i].name);
}
static void case_aio(void) { through(c_aio, "aio_write"); }
static void case_listio(void) { through(c_listio, "lio_listio"); }

/* ---- What shares a description, or the table of descriptors. ---- */

static int nothing(void *argument) { return argument != NULL; }

enum way { ONE, MANY, ONE_BY_NUMBER, MANY_BY_NUMBER };
static void s_send(int fd, enum way way) {
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 'b';
    struct iovec v = {&byte, 1};
    struct mmsghdr messages = {
        {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control}, 0};
    struct cmsghdr *header = CMSG_FIRSTHDR(&messages.msg_hdr);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (way == ONE)
        SAY(sendmsg(pair[0], &messages.msg_hdr, 0));
    else if (way == MANY)
        SAY(sendmmsg(pair[0], &messages, 1, 0));
    else if (way == ONE_BY_NUMBER)
        SAY(syscall(SYS_sendmsg, pair[0], &messages.msg_hdr, 0l));
    else
        SAY(syscall(SYS_sendmmsg, pair[0], &messages, 1l, 0l));
    close(pair[0]), close(pair[1]);
}
static void s_sendmsg(int fd) { s_send(fd, ONE); }
static void s_sendmmsg(int fd) { s_send(fd, MANY); }
static void s_sendmsg_by_number(int fd) { s_send(fd, ONE_BY_NUMBER); }
static void s_sendmmsg_by_number(int fd) { s_send(fd, MANY_BY_NUMBER); }
static void s_pidfd_getfd(int fd) {
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    int copy = pidfd_getfd(self, fd, 0);
    SAY(copy >= 0);
    close(copy), close(self);
}
static void s_pidfd_getfd_by_number(int fd) {
    int self = syscall(SYS_pidfd_open, getpid(), 0), copy = syscall(SYS_pidfd_getfd, self, fd, 0l);
    SAY(copy >= 0);
    close(copy), close(self);
}
static void s_dup2(int fd) { SAY(dup2(fd, 0)); }
static void s_old_dup2(int fd) { SAY(__dup2(fd, 0)); }
static void s_fork(int fd) {
    (void)fd;
    pid_t child = fork();
    if (child == 0)
        _exit(raw_pwrite(fd, "child", 9000) != 5);
    SAY(wait_for(child));
}
static void s__Fork(int fd) {
    pid_t child = _Fork();
    if (child == 0)
        _Exit(raw_pwrite(fd, "child", 9000) != 5);
    SAY(wait_for(child));
}
static void s_vfork(int fd) {
    pid_t child = vfork();
    if (child == 0)
        _exit(raw_pwrite(fd, "child", 9000) != 5);
    SAY(wait_for(child));
}
static void s_old_vfork(int fd) {
    pid_t child = __vfork();
    if (child == 0)
        _exit(raw_pwrite(fd, "child", 9000) != 5);
    SAY(wait_for(child));
}
static char stack[64 * 1024] __attribute__((aligned(16)));
static int writes(void *argument) { return raw_pwrite(*(int *)argument, "child", 9000) != 5; }
static void s_clone(int fd) { SAY(wait_for(clone(writes, stack + sizeof stack, SIGCHLD, &fd))); }
static void s_old_clone(int fd) { SAY(wait_for(__clone(writes, stack + sizeof stack, SIGCHLD, &fd))); }
static void s_clone_by_number(int fd) {
    (void)fd;
    long child = syscall(SYS_clone, (long)SIGCHLD, 0l, 0l, 0l, 0l);
    if (child == 0)
        raw(SYS_exit_group, 5, 0, 0, 0, 0, 0);
    SAY(wait_for(child));
}
static void s_clone_loan(int fd) {
    SAY(wait_for(clone(writes, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &fd)));
}
static void s_spawn(int fd) {
    pid_t child = -1;
    char command[64], *arguments[] = {"sh", "-c", command, NULL};
    posix_spawn_file_actions_t actions;
    sprintf(command, "echo child >&9; exit 3");
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 9);
    SAY(posix_spawn(&child, "/bin/sh", &actions, NULL, arguments, environ));
    SAY(wait_for(child));
    SAY(posix_spawnp(&child, "sh", &actions, NULL, arguments, environ));
    SAY(wait_for(child));
    posix_spawn_file_actions_destroy(&actions);
}
static void s_pidfd_spawn(int fd) {
    int (*spawn)(int *, const char *, void *, void *, char **, char **) = dlsym(RTLD_DEFAULT, "pidfd_spawn");
    int (*spawnp)(int *, const char *, void *, void *, char **, char **) = dlsym(RTLD_DEFAULT, "pidfd_spawnp");
    char *arguments[] = {"true", NULL};
    int child = -1;
    (void)fd;
    if (spawn && spawn(&child, "/bin/true", NULL, NULL, arguments, environ) == 0)
        waitid(P_PIDFD, child, &(siginfo_t){0}, WEXITED), close(child);
    if (spawnp && spawnp(&child, "true", NULL, NULL, arguments, environ) == 0)
        waitid(P_PIDFD, child, &(siginfo_t){0}, WEXITED), close(child);
}
static void s_system(int fd) {
    char command[64];
    sprintf(command, "echo child >&%d", fd);
    SAY(system(command));
}
static void s_popen(int fd) {
    char command[64];
    sprintf(command, "echo child >&%d", fd);
    SAY(pclose(popen(command, "r")));
}
static void s_old_popen(int fd) {
    char command[64];
    sprintf(command, "echo child >&%d", fd);
    SAY(pclose(_IO_popen(command, "r")));
}
static void s_wordexp(int fd) {
    wordexp_t words;
    char command[64];
    sprintf(command, "$(echo child >&%d)", fd);
    SAY(wordexp(command, &words, 0));
    wordfree(&words);
}
static void s_loop(int fd) { SAY(ioctl(other, 0x4c00, fd)); }
static void s_donor(int fd) {
    (void)fd;
    char argument[64] = {0};
    SAY(ioctl(other, 0xc028660f, argument) <= 0);
}
static void s_fdopendir(int fd) { SAY(fdopendir(fd) != NULL); }
static void s_login_tty(int fd) { SAY(login_tty(fd)); }
static void s_daemon(int fd) {
    int ends[2];
    char byte;
    pipe(ends);
    fflush(stdout);
    if (fork() == 0) {
        daemon(1, 1);
        _exit(raw_pwrite(fd, "daemon", 9000) != 6);
    }
    close(ends[1]);
    SAY(read(ends[0], &byte, 1));
    close(ends[0]);
    while (wait(NULL) > 0)
        ;
}

static const struct {
    const char *name;
    void (*share)(int fd);
} ways[] = {
    {"sendmsg", s_sendmsg},
    {"sendmmsg", s_sendmmsg},
    {"SYS_sendmsg", s_sendmsg_by_number},
    {"SYS_sendmmsg", s_sendmmsg_by_number},
    {"pidfd_getfd", s_pidfd_getfd},
    {"SYS_pidfd_getfd", s_pidfd_getfd_by_number},
    {"dup2 over a standard descriptor", s_dup2},
    {"__dup2", s_old_dup2},
    {"fork", s_fork},
    {"_Fork", s__Fork},
    {"vfork", s_vfork},
    {"__vfork", s_old_vfork},
    {"clone", s_clone},
    {"__clone", s_old_clone},
    {"SYS_clone", s_clone_by_number},
    {"clone as vfork", s_clone_loan},
    {"posix_spawn", s_spawn},
    {"pidfd_spawn", s_pidfd_spawn},
    {"system", s_system},
    {"popen", s_popen},
    {"_IO_popen", s_old_popen},
    {"wordexp", s_wordexp},
    {"LOOP_SET_FD", s_loop},
    {"EXT4_IOC_MOVE_EXT", s_donor},
    {"daemon", s_daemon},
    {"login_tty", s_login_tty},
    {"fdopendir", s_fdopendir},
};

static void shares(void (*share)(int), const char *name) {
    reset();
    int fd = whole(O_RDWR);
    share(fd);
    raw_pwrite(fd, "unseen", PAGE);
    kept(name);
    close(fd);
    int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    close(null);
}

static void case_sharing(void) {
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        shares(ways[i].share, ways[i].name);
}

/* ---- Another program in this one's place. ---- */

static int how_many; /* arguments */

#define TEN(x) x, x, x, x, x, x, x, x, x, x

/* Fails with the path of no program; else there is no return. */
static void replace(int way, const char *program) {
    char *list[] = {"entrances", "replaced", (char *)path, NULL};
    int fd = open(program, O_RDONLY | O_CLOEXEC);
    switch (way) {
    case 0: SAY(execve(program, list, environ)); break;
    case 1: SAY(execv(program, list)); break;
    case 2: SAY(execvp(program, list)); break;
    case 3: SAY(execvpe(program, list, environ)); break;
    case 4: SAY(fexecve(fd, list, environ)); break;
    case 5: SAY(execveat(AT_FDCWD, program, list, environ, 0)); break;
    case 6: SAY(execl(program, "entrances", "replaced", path, NULL)); break;
    case 7: SAY(execle(program, "entrances", "replaced", path, NULL, environ)); break;
    case 8: SAY(execlp(program, "entrances", "replaced", path, TEN("6"), "7", "8", NULL)); break;
    case 9: SAY(execle(program, "entrances", "replaced", path, TEN(TEN("6")), TEN(TEN("7")), TEN(TEN("8")), "9", NULL, environ)); break;
    case 10: SAY(syscall(SYS_execve, program, list, environ)); break;
    case 11: SAY(syscall(SYS_execveat, AT_FDCWD, program, list, environ, 0)); break;
    case 12: SAY(raw(SYS_execve, (long)program, (long)list, (long)environ, 0, 0, 0)); break;
    }
}

static int number_of(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : -1;
}

static void keep_number(const char *name, int number) {
    char text[20];
    sprintf(text, "%d", number);
    setenv(name, text, 1);
}

/* Nobody has a lease on what was open before. */
static void inherited_from_the_last(int fd) {
    for (int i = 0; i < 5000 && raw(SYS_fcntl, fd, F_GETLEASE, 0, 0, 0, 0) != F_UNLCK; i++)
        usleep(1000);
    SAY(raw(SYS_fcntl, fd, F_GETLEASE, 0, 0, 0, 0));
    SAY(raw(SYS_fcntl, fd, F_GETOWN, 0, 0, 0, 0));
    SAY(close(fd));
}

/* Goes from one way to the next, each in the program that the one before has put there. */
static void case_replaced(void) {
    enum { UNSEEN = 12 };
    int way = number_of("REPLACED_WAY") + 1;
    SAY(how_many);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    if (way > 0 && way <= UNSEEN) {
        /* Nor is there a child that the program knows nothing of, whose end it would be told. */
        char name[100];
        sprintf(name, "/proc/self/task/%d/children", getpid());
        int fd = open(name, O_RDONLY);
        SAY(read(fd, name, sizeof name));
        SAY(close(fd));
        struct timespec none = {0};
        SAY(sigtimedwait(&child, NULL, &none));
        SAY(wait(NULL));
    }
    if (way > UNSEEN)
        return;
    for (int i = 0; i < 2; i++) {
        int fd = whole(i ? O_RDWR : O_RDONLY);
        replace(way, "/no such program");
        overwrite();
        kept("a failure");
        SAY(close(fd));
        reset();
    }
    keep_number("REPLACED_WAY", way);
    keep_number("REPLACED_FD", whole(O_RDWR));
    replace(way, "/proc/self/exe");
}

/* ---- After which nothing is deferred. ---- */

static void case_rings(void) {
    int fd = whole(O_RDONLY);
    char parameters[120] = {0};
    SAY(close(syscall(SYS_io_uring_setup, 4, parameters)) <= 0);
    over("io_uring_setup", fd);
}
/* A ring that this process has not made. */
static void case_rings_from_elsewhere(void) {
    int fd = whole(O_RDONLY);
    SAY(syscall(SYS_io_uring_enter, -1, 0l, 0l, 0l, NULL, 0l));
    over("io_uring_enter", fd);
}
static void case_rings_registered(void) {
    int fd = whole(O_RDONLY);
    SAY(syscall(SYS_io_uring_register, -1, 0l, NULL, 0l));
    over("io_uring_register", fd);
}
static void case_rings_library(void) {
    int fd = whole(O_RDONLY);
    const char *names[] = {"io_uring_queue_init",     "io_uring_queue_init_params",
                           "io_uring_queue_init_mem", "io_uring_setup",
                           "io_setup",                "io_queue_init"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int (*init)(long, long, long, long, long, long) = dlsym(RTLD_DEFAULT, names[i]);
        if (init)
            init(0, 0, 0, 0, 0, 0);
    }
    over("a library's rings", fd);
}
static void case_kernel_aio(void) {
    int fd = whole(O_RDONLY);
    unsigned long context = 0;
    SAY(syscall(SYS_io_setup, 4, &context));
    over("io_setup", fd);
}
static void case_own_lease(void) {
    int fd = whole(O_RDONLY);
    SAY(fcntl(fd, F_SETLEASE, F_WRLCK));
    over("F_SETLEASE", fd);
    SAY(fcntl(fd, F_GETLEASE));
    SAY(fcntl(fd, F_SETLEASE, F_UNLCK));
}
static void case_lease_is_not_seen(void) {
    int fd = whole(O_RDWR);
    SAY(fcntl(fd, F_GETFL));
    SAY(syscall(SYS_fcntl, fd, F_GETFL));
    SAY(fcntl(fd, F_GETLEASE));
    SAY(close(fd));
    fd = whole(O_RDWR);
    SAY(fcntl(fd, F_GETOWN));
    SAY(fcntl(fd, F_GETSIG));
    kept("F_GETOWN");
    close(fd);
    /* Nor can it be given up, which only a program does that has one. */
    fd = whole(O_RDWR);
    SAY(fcntl(fd, F_SETLEASE, F_UNLCK));
    kept("F_UNLCK");
}
static void case_clone_memory(void) {
    int fd = whole(O_RDONLY);
    SAY(wait_for(clone(nothing, stack + sizeof stack, CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD, NULL)));
    over("clone with memory and descriptors", fd);
}
static void case_clone_files(void) {
    int fd = whole(O_RDONLY);
    SAY(wait_for(clone(nothing, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL)));
    over("clone with descriptors", fd);
}
static void case_clone_by_number(void) {
    int fd = whole(O_RDONLY);
    struct {
        uint64_t flags, pidfd, child, parent, signal, stack, size, tls, tids, count, cgroup;
    } arguments = {.flags = CLONE_FILES, .signal = SIGCHLD};
    pid_t child = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child == 0)
        raw(SYS_exit_group, 7, 0, 0, 0, 0, 0);
    SAY(wait_for(child));
    over("clone3", fd);
}
static void case_unshare_memory(void) {
    int fd = whole(O_RDONLY);
    SAY(unshare(CLONE_VM));
    over("unshare", fd);
}
static void case_unshare_by_number(void) {
    int fd = whole(O_RDONLY);
    SAY(syscall(SYS_unshare, (long)CLONE_VM));
    over("unshare", fd);
}
static void case_unshare_files(void) {
    int fd = whole(O_RDWR);
    SAY(unshare(CLONE_FILES));
    raw_pwrite(fd, "unseen", PAGE);
    kept("unshare");
    reset();
    fd = whole(O_RDWR);
    raw_pwrite(fd, "unseen", PAGE);
    kept("unshare, later");
}
static void case_close_range_unshares(void) {
    int fd = whole(O_RDWR);
    SAY(close_range(100, 200, CLOSE_RANGE_UNSHARE));
    raw_pwrite(fd, "unseen", PAGE);
    kept("close_range");
}
/* The first process of a namespace is its init, and the namespace ends with it. */
static void case_unshare_processes(void) {
    int fd = whole(O_RDONLY);
    SAY(unshare(CLONE_NEWPID));
    over("unshare", fd);
    pid_t child = fork();
    if (child == 0)
        _exit(raw(SYS_getpid, 0, 0, 0, 0, 0, 0) == 1 ? 41 : 42);
    SAY(wait_for(child));
}
static void case_setns(void) {
    int fd = whole(O_RDONLY), time = open("/proc/self/ns/time", O_RDONLY);
    SAY(setns(time, CLONE_NEWTIME));
    over("setns", fd);
}
static void case_setns_by_number(void) {
    int fd = whole(O_RDONLY), time = open("/proc/self/ns/time", O_RDONLY);
    SAY(syscall(SYS_setns, time, (long)CLONE_NEWTIME));
    over("setns", fd);
}
static void case_traced(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int fd = whole(O_RDONLY);
        SAY(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
        over("ptrace", fd);
        fflush(stdout);
        _exit(17);
    }
    SAY(wait_for(child));
    if ((child = fork()) == 0) {
        int fd = whole(O_RDONLY);
        SAY(syscall(SYS_ptrace, (long)PTRACE_TRACEME, 0l, 0l, 0l));
        over("SYS_ptrace", fd);
        fflush(stdout);
        _exit(18);
    }
    SAY(wait_for(child));
}
static void case_tracer(void) {
    int fd = whole(O_RDONLY);
    SAY(prctl(PR_SET_PTRACER, getppid(), 0, 0, 0) <= 0);
    over("PR_SET_PTRACER", fd);
}
static void case_userfaultfd(void) {
    int fd = whole(O_RDWR), user = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {{(unsigned long)bytes, SIZE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    SAY(user >= 0);
    SAY(ioctl(user, UFFDIO_API, &api));
    SAY(ioctl(user, UFFDIO_REGISTER, &range));
    over("userfaultfd", fd);
}
/* Write tracking is a userfaultfd, too, and a range has but one. */
static void case_userfaultfd_over_tracked(void) {
    int fd = whole(O_RDWR);
    for (int i = 0; i < 3; i++)
        if (pwrite(fd, bytes, SIZE, 0) != SIZE)
            die("pwrite");
    int user = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {{(unsigned long)bytes, SIZE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    SAY(ioctl(user, UFFDIO_API, &api));
    SAY(ioctl(user, UFFDIO_REGISTER, &range));
    kept("userfaultfd");
}
static void case_pinned_by_a_driver(void) {
    int fd = whole(O_RDONLY);
    SAY(ioctl(fd, 0xaf01, 0));
    over("an ioctl that pins", fd);
}
static void case_registered_for_packets(void) {
    int fd = whole(O_RDONLY), pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    SAY(setsockopt(pair[0], 283, 4, bytes, 32));
    over("XDP_UMEM_REG", fd);
}
static void case_registered_by_number(void) {
    int fd = whole(O_RDONLY), pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    SAY(syscall(SYS_setsockopt, pair[0], 283l, 4l, bytes, 32l));
    over("XDP_UMEM_REG", fd);
}
static void *opened(int flags) { return dlopen("libm.so.6", RTLD_NOW | flags); }
static void case_deep_binding(void) {
    int fd = whole(O_RDONLY);
    SAY(opened(0) != NULL);
    printf("an ordinary dlopen leaves it: %d\n", memcmp(bytes, expected, SIZE));
    SAY(opened(RTLD_DEEPBIND) != NULL);
    over("RTLD_DEEPBIND", fd);
}
/* That libc's write leads past every name that comes before it. */
static void case_another_namespace(void) {
    int fd = whole(O_RDWR);
    void *library = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
    ssize_t (*its_pwrite)(int, const void *, size_t, off_t) = library ? dlsym(library, "pwrite") : NULL;
    if (its_pwrite)
        SAY(its_pwrite(fd, "unseen", 6, PAGE));
    kept("dlmopen");
}
/* Who makes any other call than these is killed. */
static void filtered(int by_number) {
#define ALLOW(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_read),
        ALLOW(SYS_pread64),
        ALLOW(SYS_write),
        ALLOW(SYS_pwrite64),
        ALLOW(SYS_writev),
        ALLOW(SYS_lseek),
        ALLOW(SYS_openat),
        ALLOW(SYS_close),
        ALLOW(SYS_exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    int fd = whole(O_RDWR), reads = open(path, O_RDONLY);
    SAY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    fflush(stdout);
    if (by_number)
        SAY(syscall(SYS_seccomp, (long)SECCOMP_SET_MODE_FILTER, 0l, &program));
    else
        SAY(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
    SAY(pread(fd, bytes, SIZE, 0));
    SAY(read(reads, bytes, SIZE));
    kept("a filter");
    SAY(pwrite(fd, bytes, SIZE, 0));
    SAY(write(fd, bytes, SIZE));
    struct iovec v[2] = {{bytes, 100}, {bytes, 20000}};
    SAY(writev(fd, v, 2));
    SAY(lseek(fd, 0, SEEK_SET));
    int again = open(path, O_RDWR);
    SAY(again > 0);
    SAY(pread(again, bytes, SIZE, 0));
    SAY(close(again));
    fflush(stdout);
    _exit(0);
}

static void case_filtered(void) { filtered(0); }
static void case_filtered_by_number(void) { filtered(1); }
/* What libraries do to find out what there is: deferral goes on. */
static void case_asked_for_filters(void) {
    uint32_t action = SECCOMP_RET_ALLOW;
    SAY(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL));
    SAY(syscall(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL));
    SAY(syscall(SYS_seccomp, (long)SECCOMP_SET_MODE_FILTER, 0l, NULL));
    SAY(syscall(SYS_seccomp, (long)SECCOMP_GET_ACTION_AVAIL, 0l, &action));
    whole(O_RDONLY);
    kept("a question");
}

/* ---- Who watches. ---- */

static void events(int watch) {
    _Alignas(struct inotify_event) char buffer[PAGE];
    unsigned seen = 0;
    ssize_t got = read(watch, buffer, sizeof buffer);
    for (ssize_t at = 0; at < got;) {
        struct inotify_event *event = (void *)(buffer + at);
        seen |= event->mask, at += sizeof *event + event->len;
    }
    printf("seen: %#x\n", seen);
}
static void watched(int by_number) {
    int fd = whole(O_RDONLY), watch = inotify_init1(IN_NONBLOCK);
    SAY(inotify_add_watch(watch, "/dev/null", IN_MODIFY | IN_ATTRIB));
    kept("a harmless watch");
    SAY(by_number ? syscall(SYS_inotify_add_watch, watch, path, (long)IN_ALL_EVENTS)
                  : inotify_add_watch(watch, path, IN_ALL_EVENTS));
    over("a watch", fd);
    events(watch);
    close(open(path, O_RDONLY));
    events(watch);
}
static void case_watched(void) { watched(0); }
static void case_watched_by_number(void) { watched(1); }
/* Who reads what nobody but himself may permit to be opened. */
static void permitted(int by_number) {
    const unsigned flags = FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK;
    int fd = whole(O_RDONLY);
    int group = by_number ? syscall(SYS_fanotify_init, flags, O_RDONLY)
                                                : fanotify_init(flags, O_RDONLY);
    SAY(group > 0);
    char name[64];
    sprintf(name, "/proc/self/fd/%d", other);
    int reads = open(name, O_RDONLY);
    SAY(fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_PERM, AT_FDCWD, name));
    SAY(pread(reads, fresh(), 3 * PAGE, 0));
    over("fanotify_init", fd);
}
static void case_permitted(void) { permitted(0); }
static void case_permitted_by_number(void) { permitted(1); }

/* ---- Rights. ---- */

/* What changes nothing, or what an ordinary user may not do. */
static void r_setuid(void) { SAY(setuid(geteuid())); }
static void r_setgid(void) { SAY(setgid(getegid())); }
static void r_seteuid(void) { SAY(seteuid(geteuid())); }
static void r_setegid(void) { SAY(setegid(getegid())); }
static void r_setreuid(void) { SAY(setreuid(-1, geteuid())); }
static void r_setregid(void) { SAY(setregid(-1, getegid())); }
static void r_setresuid(void) { SAY(setresuid(-1, geteuid(), -1)); }
static void r_setresgid(void) { SAY(setresgid(-1, getegid(), -1)); }
static void r_setgroups(void) { SAY(setgroups(0, NULL)); }
static void r_initgroups(void) { SAY(initgroups("root", getegid())); }
static void r_setfsuid(void) { SAY(setfsuid(geteuid())); }
static void r_setfsgid(void) { SAY(setfsgid(getegid())); }
static void r_chroot(void) { SAY(chroot("/")); }
static void r_capset(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    SAY(syscall(SYS_capget, &header, data));
    SAY(capset(&header, data));
}
static void r_prctl(void) { SAY(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)); }
static void n_setuid(void) { SAY(syscall(SYS_setuid, (long)geteuid())); }
static void n_setgid(void) { SAY(syscall(SYS_setgid, (long)getegid())); }
static void n_setreuid(void) { SAY(syscall(SYS_setreuid, -1l, (long)geteuid())); }
static void n_setregid(void) { SAY(syscall(SYS_setregid, -1l, (long)getegid())); }
static void n_setresuid(void) { SAY(syscall(SYS_setresuid, -1l, (long)geteuid(), -1l)); }
static void n_setresgid(void) { SAY(syscall(SYS_setresgid, -1l, (long)getegid(), -1l)); }
static void n_setgroups(void) { SAY(syscall(SYS_setgroups, 0l, NULL)); }
static void n_setfsuid(void) { SAY(syscall(SYS_setfsuid, (long)geteuid())); }
static void n_setfsgid(void) { SAY(syscall(SYS_setfsgid, (long)getegid())); }
static void n_chroot(void) { SAY(syscall(SYS_chroot, "/")); }
static void n_capset(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    SAY(syscall(SYS_capget, &header, data));
    SAY(syscall(SYS_capset, &header, data));
}
static void n_prctl(void) { SAY(syscall(SYS_prctl, (long)PR_SET_DUMPABLE, 1l, 0l, 0l, 0l)); }
static void n_landlock(void) { SAY(syscall(446 /* SYS_landlock_restrict_self */, -1l, 0l)); }

static void giving_up(void (*const *change)(void), size_t count) {
    for (size_t i = 0; i < count; i++) {
        int fd = whole(O_RDONLY);
        change[i]();
        kept("that");
        printf("mapped %d\n", mapped());
        close(fd);
    }
}
static void case_rights(void) {
    static void (*const list[])(void) = {
        r_setuid,    r_setgid,    r_seteuid,   r_setegid,    r_setreuid, r_setregid, r_setresuid,
        r_setresgid, r_setgroups, r_initgroups, r_setfsuid, r_setfsgid, r_chroot,   r_capset,
        r_prctl,
    };
    giving_up(list, sizeof list / sizeof *list);
}
static void case_rights_by_number(void) {
    static void (*const list[])(void) = {
        n_setuid,    n_setgid,   n_setreuid, n_setregid, n_setresuid, n_setresgid, n_setgroups,
        n_setfsuid,  n_setfsgid, n_chroot,   n_capset,   n_prctl,     n_landlock,
    };
    giving_up(list, sizeof list / sizeof *list);
}

/* ---- Memory. ---- */

static void case_process_madvise(void) {
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    for (int i = 0; i < 2; i++) {
        int fd = whole(O_RDONLY);
        struct iovec v = {bytes, SIZE / 2};
        bytes[5] ^= 1;
        errno = 0;
        ssize_t done = i ? syscall(SYS_process_madvise, self, &v, 1l, (long)MADV_DONTNEED, 0l)
                         : process_madvise(self, &v, 1, MADV_DONTNEED, 0);
        printf("%zd %d\n", done, errno);
        SUM(bytes, SIZE);
        close(fd);
    }
}
static void case_sealed(void) {
    int (*mseal_by_name)(void *, size_t, unsigned long) = dlsym(RTLD_DEFAULT, "mseal"); /* glibc 2.43 */
    for (int i = 0; i < 2; i++) {
        reset();
        int fd = whole(O_RDONLY);
        unsigned char *sealed = fresh();
        SAY(pread(fd, sealed, SIZE, 0));
        sealed[7] ^= 1;
        SAY(i && mseal_by_name ? mseal_by_name(sealed, SIZE, 0) : syscall(462 /* SYS_mseal */, sealed, (long)SIZE, 0l));
        c_child(fd);
        SUM(sealed, SIZE);
        SAY(munmap(sealed, SIZE));
        kept("mseal, elsewhere");
    }
}
static void case_barriers(void) {
    int fd = whole(O_RDONLY);
    enum { EXPEDITED = 1 << 3, REGISTER = 1 << 4, REGISTER_CORE = 1 << 6, REGISTRATIONS = 1 << 9 };
    const int then[] = {0, REGISTER_CORE, REGISTER};
    for (int i = 0; i < 3; i++) {
        SAY(syscall(SYS_membarrier, (long)then[i], 0l, 0l) >= 0);
        SAY(syscall(SYS_membarrier, (long)REGISTRATIONS, 0l, 0l));
        SAY(syscall(SYS_membarrier, (long)EXPEDITED, 1l, 0l));
        SAY(syscall(SYS_membarrier, (long)EXPEDITED, 0l, 0l));
    }
    c_child(fd);
    kept("membarrier");
    close(fd);
}
static void case_named(void) {
    int fd = whole(O_RDONLY);
    SAY(prctl(0x53564d41 /* PR_SET_VMA */, 0, bytes, SIZE, "a name") <= 0 ? errno : -1);
    kept("PR_SET_VMA");
    printf("mapped %d\n", mapped());
    close(fd);
}
static void case_bound_to_nodes(void) {
    int fd = whole(O_RDONLY);
    SAY(syscall(SYS_mbind, bytes, (long)SIZE, 0l, NULL, 0l, 0l) <= 0);
    kept("mbind");
    printf("mapped %d\n", mapped());
    close(fd);
}
static void case_spliced_from_memory(void) {
    for (int i = 0; i < 2; i++) {
        reset();
        int fd = whole(O_RDONLY), ends[2];
        struct iovec v = {bytes, 4 * PAGE};
        static unsigned char got[4 * PAGE];
        pipe(ends);
        SAY(i ? syscall(SYS_vmsplice, ends[1], &v, 1l, (long)SPLICE_F_GIFT) : vmsplice(ends[1], &v, 1, 0));
        overwrite();
        SAY(read(ends[0], got, sizeof got));
        printf("in the pipe: %s\n", memcmp(got, expected, sizeof got) ? "CHANGED" : "kept");
        kept("vmsplice");
        close(fd), close(ends[0]), close(ends[1]);
    }
}
/* What waits in the socket is what was sent, whatever becomes of the file. */
static void case_sent_without_a_copy(void) {
    for (int i = 0; i < 5; i++) {
        reset();
        int fd = whole(O_RDONLY), listener = socket(AF_INET, SOCK_STREAM, 0), from = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof address;
        int one = 1;
        if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1) ||
            getsockname(listener, (void *)&address, &len) || connect(from, (void *)&address, sizeof address))
            die("a connection");
        int to = accept(listener, NULL, NULL);
        SAY(setsockopt(from, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one));
        const int flags = MSG_ZEROCOPY | MSG_DONTWAIT;
        struct iovec v = {bytes, SIZE};
        struct mmsghdr messages = {{.msg_iov = &v, .msg_iovlen = 1}, 0};
        ssize_t sent = i == 0   ? send(from, bytes, SIZE, flags)
                       : i == 1 ? sendto(from, bytes, SIZE, flags, NULL, 0)
                       : i == 2 ? sendmsg(from, &messages.msg_hdr, flags)
                       : i == 3 ? __send(from, bytes, SIZE, flags)
                                : syscall(SYS_sendto, from, bytes, (long)SIZE, (long)flags, NULL, 0l);
        printf("sent something: %d\n", sent > 0);
        overwrite();
        static unsigned char got[SIZE];
        ssize_t all = 0, more;
        shutdown(from, SHUT_WR);
        while ((more = read(to, got + all, SIZE - all)) > 0)
            all += more;
        printf("all of it: %d, %s\n", all == sent, memcmp(got, expected, all) ? "CHANGED" : "as sent");
        close(fd), close(listener), close(from), close(to);
    }
}
/* The kernel stores into a buffer like anybody else. */
static void case_stored_by_the_kernel(void) {
    int fd = whole(O_RDONLY), ends[2], memory = open("/proc/self/mem", O_RDWR);
    pipe(ends);
    write(ends[1], "from a pipe", 11);
    SAY(read(ends[0], bytes + PAGE, 11));
    struct iovec from = {"from a process", 14}, to = {bytes + 2 * PAGE, 14};
    SAY(process_vm_writev(getpid(), &from, 1, &to, 1, 0));
    SAY(pwrite(memory, "through /proc", 13, (off_t)(uintptr_t)(bytes + 3 * PAGE)));
    from = (struct iovec){page, PAGE}, to = (struct iovec){bytes + 4 * PAGE, PAGE};
    SAY(process_vm_readv(getpid(), &from, 1, &to, 1, 0));
    SAY(memcmp(page, expected + 4 * PAGE, PAGE));
    c_child(fd);
    SUM(bytes, SIZE);
    printf("%.11s %.14s %.13s\n", bytes + PAGE, bytes + 2 * PAGE, bytes + 3 * PAGE);
}
static void case_advised(void) {
    int fd = whole(O_RDONLY);
    unsigned char vector[SIZE / PAGE];
    SAY(msync(bytes, SIZE, MS_SYNC));
    SAY(posix_madvise(bytes, SIZE, POSIX_MADV_DONTNEED));
    SAY(mincore(bytes, SIZE, vector));
    SAY(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    SAY(readahead(fd, 0, SIZE));
    SAY(remap_file_pages(bytes, PAGE, 0, 1, 0));
    SAY(munlock(bytes, SIZE));
    SAY(sbrk(0) != NULL);
    kept("advice");
}
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
/* What the heap says of itself: more by what was allocated, and as before when that is free again. */
static void account(size_t size) {
    struct mallinfo2 before = mallinfo2();
    int few = mallinfo().hblks + __libc_mallinfo().hblks;
    void *volatile block = malloc(size);
    struct mallinfo2 with = mallinfo2();
    SAY(with.uordblks + with.hblkhd >= before.uordblks + before.hblkhd + size);
    SAY(with.arena + with.hblkhd >= with.uordblks + with.hblkhd);
    SAY((int)(with.hblks - before.hblks));
    SAY(mallinfo().hblks + __libc_mallinfo().hblks - few);
    free(block);
    SAY(mallinfo2().uordblks + mallinfo2().hblkhd == before.uordblks + before.hblkhd);
}
static void accounts(void) {
    for (size_t size = 2000; size < 32 << 20; size *= 20)
        account(size);
}
/* Bytes that count as data (field 6), or that are resident (field 2). */
static long pages_in_use(int field) {
    FILE *file = fopen("/proc/self/statm", "r");
    long value = 0;
    for (int i = 0; i < field; i++)
        fscanf(file, "%ld", &value);
    fclose(file);
    return value;
}

static unsigned char *touched(size_t len) {
    unsigned char *block = memset(malloc(len), 7, len);
    __asm__ volatile("" : : "r"(block) : "memory"); /* so that it is not left out */
    return block;
}

/* What was freed does not count, whatever is kept for later. */
static void case_limited(void) {
    const size_t mib = 1 << 20;
    for (int way = 0; way < 6; way++) {
        fflush(stdout);
        pid_t child = fork();
        if (child) {
            int status;
            SAY(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 0);
            continue;
        }
        unsigned char *held = touched(16 * mib);
        rlim_t most = pages_in_use(6) * PAGE + 20 * mib;
        free(touched(16 * mib));
        struct rlimit limit = {most, RLIM_INFINITY};
        struct rlimit64 limit64 = {most, RLIM_INFINITY};
        int result = way == 0   ? setrlimit(RLIMIT_DATA, &limit)
                     : way == 1 ? setrlimit64(RLIMIT_DATA, &limit64)
                     : way == 2 ? prlimit(0, RLIMIT_DATA, &limit, NULL)
                     : way == 3 ? prlimit64(getpid(), RLIMIT_DATA, &limit64, NULL)
                     : way == 4 ? syscall(SYS_setrlimit, RLIMIT_DATA, &limit)
                                : syscall(SYS_prlimit64, 0l, RLIMIT_DATA, &limit, NULL);
        free(held);
        int count = 0;
        while (count < 50 && mmap(NULL, mib, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
            count++;
        _exit(result != 0 || count < 33 || count > 36);
    }
    /* A block that grows is not there twice. */
    unsigned char *block = touched(60 * mib);
    struct rlimit before, limit;
    getrlimit(RLIMIT_AS, &before);
    limit = (struct rlimit){pages_in_use(1) * PAGE + 20 * mib, before.rlim_max};
    SAY(setrlimit(RLIMIT_AS, &limit));
    block = realloc(block, 70 * mib);
    printf("grown: %d\n", block && block[60 * mib - 1] == 7 && block[70 * mib - 1] == 0);
    free(block);
    SAY(setrlimit(RLIMIT_AS, &before));
}

/* The kernel is asked whether the page is there. */
static void case_freed_when_stopped(void) {
    unsigned char *block = touched(16 << 20), there;
    uintptr_t within = ((uintptr_t)block + PAGE) & -PAGE;
    syscall(SYS_io_uring_setup, 0, NULL);
    SAY(syscall(SYS_mincore, within, PAGE, &there));
    free(block);
    SAY(syscall(SYS_mincore, within, PAGE, &there));
}

static void case_heap(void) {
    unsigned char *block = malloc(SIZE);
    memset(block, 7, SIZE);
    block = __libc_realloc(block, 2 * SIZE);
    printf("%d\n", block[SIZE - 1]);
    __libc_free(block);
    __libc_free(malloc(SIZE));
    free(__libc_realloc(NULL, SIZE));
    const char *frees[] = {"cfree", "free_sized", "free_aligned_sized"};
    for (int i = 0; i < 3; i++) {
        void (*its_free)(void *, size_t, size_t) = dlsym(RTLD_DEFAULT, frees[i]);
        if (its_free)
            its_free(aligned_alloc(64, SIZE), 64, SIZE);
    }
    __libc_free(__libc_realloc(malloc(10), 20));
    accounts();
    block = malloc(24 << 20);
    memset(block, 7, 24 << 20);
    __asm__ volatile("" : : "r"(block) : "memory");
    free(block);
    malloc_trim(0);
    SAY(pages_in_use(2) < (24 << 20) / PAGE);
    SAY(mallopt(M_PERTURB, 0x5a));
    block = malloc(SIZE);
    SAY(block[SIZE / 2]);
    free(block);
}

enum reshaping { MOVE, PROTECT, KEY, LOCK, LOCK2, SEGMENT, MAP, ADVISE, HOME, LOCK_ALL };
static unsigned char *reshape(enum reshaping how, int number) {
    const long half = SIZE / 2, two = 2 * PAGE, both = PROT_READ | PROT_WRITE;
    unsigned char *second = bytes + PAGE;
    switch (how) {
    case MOVE:
        return number ? (void *)syscall(SYS_mremap, bytes, (long)SIZE, 2l * SIZE, (long)MREMAP_MAYMOVE, NULL)
                      : mremap(bytes, SIZE, 2 * SIZE, MREMAP_MAYMOVE);
    case PROTECT:
        SAY(number ? syscall(SYS_mprotect, bytes, half, (long)PROT_READ) : mprotect(bytes, half, PROT_READ));
        break;
    case KEY:
        SAY(number ? syscall(SYS_pkey_mprotect, bytes, half, (long)PROT_READ, -1l)
                   : pkey_mprotect(bytes, half, PROT_READ, -1));
        break;
    case LOCK:
        SAY(number ? syscall(SYS_mlock, bytes, two) : mlock(bytes, two));
        break;
    case LOCK2:
        SAY(number ? syscall(SYS_mlock2, bytes, two, 0l) : mlock2(bytes, two, 0));
        break;
    case SEGMENT: {
        int segment = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
        void *at = number ? (void *)syscall(SYS_shmat, segment, second, (long)SHM_REMAP)
                          : shmat(segment, second, SHM_REMAP);
        SAY(at == second);
        memcpy(second, expected + PAGE, PAGE);
        shmctl(segment, IPC_RMID, NULL);
        break;
    }
    case MAP: {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        SAY(number ? syscall(SYS_munmap, second, (long)PAGE) : munmap(second, PAGE));
        void *at = number ? (void *)syscall(SYS_mmap, second, (long)PAGE, both, (long)flags, -1l, 0l)
                          : mmap64(second, PAGE, both, flags, -1, 0);
        SAY(at == second);
        memcpy(second, expected + PAGE, PAGE);
        break;
    }
    case ADVISE:
        SAY(number ? syscall(SYS_madvise, bytes, (long)SIZE, (long)MADV_DONTFORK)
                   : madvise(bytes, SIZE, MADV_DONTFORK));
        break;
    case HOME:
        SAY(syscall(450 /* SYS_set_mempolicy_home_node */, bytes, (long)SIZE, 0l, 0l) <= 0);
        break;
    case LOCK_ALL:
        /* It may fail for the size of the program, to which the drop-in adds. */
        number ? syscall(SYS_mlockall, (long)MCL_CURRENT) : mlockall(MCL_CURRENT);
        SAY(munlockall());
    }
    return bytes;
}
static void reshaped(int number) {
    for (enum reshaping how = MOVE; how <= LOCK_ALL; how++) {
        reset();
        int fd = whole(O_RDONLY);
        unsigned char *at = reshape(how, number);
        SAY(memcmp(at, expected, SIZE));
        overwrite();
        SAY(memcmp(at, expected, SIZE));
        close(fd);
    }
}
static void case_reshaped(void) { reshaped(0); }
/* Moved away with what was read, and left behind empty. */
static void case_moved_and_left(void) {
    enum { AROUND = 2 * PAGE, ALL = SIZE + 2 * AROUND };
    int fd = open(path, O_RDONLY);
    for (int fixed = 0; fixed < 2; fixed++) {
        unsigned char *p = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        unsigned char *to = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(p, 'p', ALL);
        SAY(pread(fd, p + AROUND, SIZE, 0));
        SAY(mremap(p, ALL, ALL - PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP) == MAP_FAILED);
        SAY(pread(fd, p + AROUND, SIZE, 0));
        p[AROUND + 3] ^= 1, p[AROUND + 3] ^= 1;
        unsigned char *q = mremap(p, ALL, ALL, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | (fixed ? MREMAP_FIXED : 0), to);
        SAY(q == MAP_FAILED);
        SAY(q == p);
        SAY(fixed && q != to);
        bytes = q + AROUND;
        kept("MREMAP_DONTUNMAP");
        int around = 0, left = 0;
        for (int i = 0; i < AROUND; i++)
            around += q[i] == 'p' && q[ALL - 1 - i] == 'p';
        for (int i = 0; i < ALL; i++)
            left += p[i] != 0;
        SAY(around);
        SAY(left);
        SAY(pread(fd, p + AROUND, SIZE, 0));
        bytes = p + AROUND;
        kept("being moved away");
        overwrite();
        kept("being moved away");
        bytes = q + AROUND;
        kept("being moved away");
        reset();
        SAY(munmap(q, ALL));
        SAY(munmap(p, ALL));
    }
    close(fd);
}
/* What was deferred and has memory of its own by now is, to the kernel, another mapping than what lies around it; it moved the one
 * before, and failed then. */
static void case_moved_when_materialised(void) {
    enum { AROUND = 2 * PAGE, ALL = SIZE + 2 * AROUND };
    for (int stays = 0; stays < 2; stays++) {
        int fd = open(path, O_RDONLY);
        unsigned char *p = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        unsigned char *to = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(p, 'p', ALL);
        SAY(pread(fd, p + AROUND, SIZE, 0));
        overwrite();
        /* Refused, and nothing has happened. */
        SAY(mremap(p, ALL, ALL, MREMAP_FIXED, to) == MAP_FAILED);
        SAY(mremap(p, ALL, ALL, MREMAP_MAYMOVE | MREMAP_FIXED, to + 1) == MAP_FAILED);
        SAY(mremap(p, ALL, ALL, MREMAP_MAYMOVE | MREMAP_FIXED, p + 2 * PAGE) == MAP_FAILED);
        SAY(mremap(p, ALL, ALL - PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == MAP_FAILED);
        unsigned char *q = mremap(p, ALL, ALL, MREMAP_MAYMOVE | MREMAP_FIXED | (stays ? MREMAP_DONTUNMAP : 0), to);
        SAY(q == to);
        bytes = q + AROUND;
        kept("being moved");
        int around = 0, left = 0;
        for (int i = 0; i < AROUND; i++)
            around += q[i] == 'p' && q[ALL - 1 - i] == 'p';
        for (int i = 0; stays && i < ALL; i++)
            left += p[i] != 0;
        SAY(around);
        SAY(left);
        reset();
        close(fd);
        SAY(munmap(q, ALL));
        SAY(munmap(p, ALL));
    }
}
/* What was protected or locked for a while is one mapping again to the program; and must not come to more than one where it was never. */
static void case_moved_after_all(void) {
    enum { AROUND = 2 * PAGE, ALL = SIZE + 2 * AROUND };
    for (int way = 0; way < 4; way++) {
        int fd = open(path, O_RDONLY);
        unsigned char *p = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(p, 'p', ALL);
        SAY(pread(fd, p + AROUND, SIZE, 0));
        if (way % 2)
            mlock(p, ALL / 2), munlock(p, ALL / 2);
        else
            mprotect(p, ALL, PROT_READ), mprotect(p, ALL, PROT_READ | PROT_WRITE);
        void *to = way < 2 ? NULL : mmap(NULL, 2 * ALL, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        unsigned char *q = mremap(p, ALL, 2 * ALL, MREMAP_MAYMOVE | (to ? MREMAP_FIXED : 0), to);
        SAY(q != MAP_FAILED);
        bytes = q + AROUND;
        kept("being moved");
        SAY(q[0] == 'p' && q[ALL - 1] == 'p' && q[ALL] == 0 && q[2 * ALL - 1] == 0);
        reset();
        close(fd);
        SAY(munmap(q, 2 * ALL));
    }
}
static void case_reshaped_by_number(void) { reshaped(1); }

/* ---- Descriptors. ---- */

static void case_descriptors(void) {
    int fd = whole(O_RDONLY), copy = fcntl64(fd, F_DUPFD, 100);
    struct stat st;
    struct stat64 st64;
    SAY(copy);
    SAY(fcntl64(copy, F_GETFD));
    SAY(__fxstat(1, fd, &st));
    SAY(st.st_size);
    SAY(__fxstat64(1, fd, &st64));
    SAY(st64.st_size);
    SAY(fstat64(fd, &st64));
    SAY(lseek64(fd, 10, SEEK_SET));
    SAY(pread(copy, fresh(), SIZE, 0));
    FILE *file = fopen64(path, "r+"), *again = freopen64(path, "r+", file);
    SAY(fileno(again));
    SAY(fread(bytes, 1, SIZE, again));
    SAY(fclose(again));
    kept("fopen64");
    SAY(syscall(SYS_dup2, fd, 120l));
    SAY(syscall(SYS_dup3, fd, 121l, (long)O_CLOEXEC));
    SAY(syscall(SYS_fcntl, fd, (long)F_DUPFD, 122l));
    SAY(syscall(SYS_close_range, 120l, 121l, 0l));
    SAY(pread(120, bytes, SIZE, 0));
    SAY(pread(122, bytes, SIZE, 0));
    SAY(syscall(SYS_creat, path, 0600l) > 0);
    SAY(read(122, bytes, SIZE));
    kept("SYS_creat");
}

/* ---- What is opened to read, and cut off. ---- */

static int opened_by_rules(int i, struct open_how *how) {
    int (*by_name)(int, const char *, struct open_how *, size_t) = dlsym(RTLD_DEFAULT, "openat2"); /* glibc 2.43 */
    return i && by_name ? by_name(AT_FDCWD, path, how, sizeof *how) : syscall(SYS_openat2, AT_FDCWD, path, how, sizeof *how);
}
static void case_truncated_by_openat2(void) {
    for (int i = 0; i < 2; i++) {
        reset();
        int fd = whole(O_RDONLY);
        struct open_how how = {.flags = O_RDONLY | O_TRUNC};
        SAY(opened_by_rules(i, &how) > fd);
        SAY(lseek(fd, 0, SEEK_END));
        kept("openat2");
    }
}
/* Who does not wait is turned away by what would break a lease. */
static void case_opened_without_waiting(void) {
    struct open_how how = {.flags = O_WRONLY | O_NONBLOCK};
    for (int i = 0; i < 4; i++) {
        reset();
        int fd = whole(O_RDONLY), mount, opened;
        union {
            struct file_handle handle;
            char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
        } u = {{.handle_bytes = MAX_HANDLE_SZ}};
        SAY(name_to_handle_at(AT_FDCWD, path, &u.handle, &mount, 0));
        SAY((opened = i < 2    ? opened_by_rules(i, &how)
                      : i == 2 ? open_by_handle_at(fd, &u.handle, O_WRONLY | O_NONBLOCK)
                               : syscall(SYS_open_by_handle_at, fd, &u.handle, (long)(O_WRONLY | O_NONBLOCK))) > fd);
        SAY(raw_pwrite(opened, "changed", 0) == 7);
        kept("an open that does not wait");
        close(opened), close(fd);
    }
}
/* By what another process has deferred, too. */
static void case_opened_without_waiting_for_others(void) {
    static const char *const names[] = {"open", "openat", "openat by number", "openat2", "open_by_handle_at"};
    for (int i = 0; i < 5; i++) {
        reset();
        int fd = whole(O_RDONLY), here = open(path, O_RDONLY), mount, opened = -1, done[2], begun[2], flags = O_RDWR | O_NONBLOCK;
        struct open_how how = {.flags = flags};
        union {
            struct file_handle handle;
            char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
        } u = {{.handle_bytes = MAX_HANDLE_SZ}};
        SAY(name_to_handle_at(AT_FDCWD, path, &u.handle, &mount, 0));
        pipe(done), pipe(begun);
        pid_t child = fork();
        if (child == 0) {
            char byte;
            bytes = fresh();
            close(fd), close(here);
            fd = open(path, O_RDONLY);
            int good = pread(fd, bytes, SIZE, 0) == SIZE && write(begun[1], "b", 1) == 1 && read(done[0], &byte, 1) == 1;
            _exit(!good || memcmp(bytes, expected, SIZE));
        }
        char byte;
        SAY(read(begun[0], &byte, 1));
        munmap(bytes, SIZE);
        errno = 7777;
        switch (i) {
        case 0: opened = open(path, flags); break;
        case 1: opened = openat(AT_FDCWD, path, flags); break;
        case 2: opened = syscall(SYS_openat, (long)AT_FDCWD, path, (long)flags); break;
        case 3: opened = opened_by_rules(0, &how); break;
        case 4: opened = open_by_handle_at(here, &u.handle, flags); break;
        }
        printf("%s: %s, errno %s\n", names[i], opened < 0 ? "refused" : "opened", errno == 7777 ? "as it was" : strerror(errno));
        SAY(write(opened, "other", 5));
        SAY(write(done[1], "d", 1));
        SAY(wait_for(child));
        close(done[0]), close(done[1]), close(begun[0]), close(begun[1]), close(opened), close(fd), close(here);
    }
}
static void case_truncated_by_handle(void) {
    for (int i = 0; i < 2; i++) {
        reset();
        int fd = whole(O_RDONLY), mount, directory = open("/", O_RDONLY | O_DIRECTORY);
        char parent[500];
        const char *slash = strrchr(path, '/');
        snprintf(parent, sizeof parent, "%.*s", (int)(slash - path), path);
        int here = open(parent, O_RDONLY | O_DIRECTORY);
        union {
            struct file_handle handle;
            char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
        } u = {{.handle_bytes = MAX_HANDLE_SZ}};
        SAY(name_to_handle_at(AT_FDCWD, path, &u.handle, &mount, 0));
        SAY((i ? syscall(SYS_open_by_handle_at, here, &u.handle, (long)(O_RDONLY | O_TRUNC))
               : open_by_handle_at(here, &u.handle, O_RDONLY | O_TRUNC)) > fd);
        kept("open_by_handle_at");
        close(directory), close(here), close(fd);
    }
}
static void case_truncated_shared_memory(void) {
    static char name[64];
    sprintf(name, "/dev/shm/elision-entrances-%d", getpid());
    path = name;
    reset();
    int fd = whole(O_RDONLY);
    SAY(shm_open(name + 8, O_RDONLY | O_TRUNC, 0) > fd);
    SAY(lseek(fd, 0, SEEK_END));
    kept("shm_open");
    SAY(shm_unlink(name + 8));
}

/* Every way of opening to read what is cut off thereby; what comes of it. */
enum { WAYS = 14 };
static int opened_and_cut_off(int way) {
    int flags = O_RDONLY | O_TRUNC, mount;
    struct open_how how = {.flags = flags};
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } u = {{.handle_bytes = MAX_HANDLE_SZ}};
    if (way >= 12 && name_to_handle_at(AT_FDCWD, path, &u.handle, &mount, 0))
        return -1;
    int here = way < 12 ? -1 : open(path, O_RDONLY), opened = -1;
    switch (way) {
    case 0: return open(path, flags);
    case 1: return open64(path, flags);
    case 2: return openat(AT_FDCWD, path, flags);
    case 3: return openat64(AT_FDCWD, path, flags);
    case 4: return __open(path, flags);
    case 5: return __open64(path, flags);
    case 6: return __open_2(path, flags);
    case 7: return __open64_2(path, flags);
    case 8: return syscall(SYS_open, path, (long)flags);
    case 9: return syscall(SYS_openat, (long)AT_FDCWD, path, (long)flags);
    case 10:
    case 11: return opened_by_rules(way - 10, &how);
    case 12: opened = open_by_handle_at(here, &u.handle, flags); break;
    case 13: opened = syscall(SYS_open_by_handle_at, (long)here, &u.handle, (long)flags); break;
    }
    close(here);
    return opened;
}

/* A process, its child and its grandchild have the same buffer when one of them, the one of that number, cuts the file off. Which of them
 * find it as it was? */
static int among_relatives(int way, int who) {
    int done[2], status, found;
    pid_t child = 0;
    pipe(done);
    int generation = 0;
    while (generation < 2 && (child = fork()) == 0)
        generation++;
    if (generation == who) {
        int opened = opened_and_cut_off(way);
        found = opened >= 0 && lseek(opened, 0, SEEK_END) == 0;
        write(done[1], "done", 2);
        close(opened);
    } else {
        char byte;
        found = read(done[0], &byte, 1) == 1;
    }
    found = (found && memcmp(bytes, expected, SIZE) == 0) << generation;
    if (child > 0)
        found |= waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (generation > 0)
        _exit(found);
    close(done[0]), close(done[1]);
    return found;
}
static void case_truncated_by_relatives(void) {
    for (int way = 0; way < WAYS; way++)
        for (int who = 0; who < 3; who++) {
            reset();
            int fd = whole(O_RDONLY);
            printf("way %d, by generation %d: kept %d\n", way, who, among_relatives(way, who));
            munmap(bytes, SIZE), close(fd);
        }
}

/* What else such an open does, and what it does not. */
static void cut_off(const char *name, int flags) {
    struct stat status;
    int fd = open(name, flags, 0600), first = dup(0);
    printf("%x of %s: %s, ", flags, strrchr(name, '/'), fd < 0 ? strerror(errno) : "opened");
    printf("%d from the next, %s\n", fd < 0 ? 0 : first - fd, stat(path, &status) || status.st_size ? "as it was" : "empty");
    close(first), close(fd);
}
static void case_truncated_as_ever(void) {
    int fd = whole(O_RDONLY), flags = O_RDONLY | O_TRUNC;
    static char other_name[500];
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    struct stat before, after;
    sprintf(other_name, "%s-other", path);
    /* Who closes a file gives up his locks on it. */
    int locked = open(path, O_RDWR), opened;
    SAY(fcntl(locked, F_SETLK, &lock));
    SAY((opened = open(path, flags)) > locked);
    pid_t child = raw(SYS_fork, 0, 0, 0, 0, 0, 0);
    if (child == 0)
        raw(SYS_exit_group, raw(SYS_fcntl, fd, F_GETLK, (long)&lock, 0, 0, 0) ? 2 : lock.l_type == F_WRLCK, 0, 0, 0, 0, 0);
    SAY(wait_for(child));
    SAY(write(locked, expected, SIZE));
    close(opened), close(locked);
    cut_off(path, flags | O_PATH);
    cut_off(path, flags | O_CREAT | O_EXCL);
    cut_off(path, flags | O_DIRECTORY);
    symlink(path, other_name);
    cut_off(other_name, flags | O_NOFOLLOW);
    stat(path, &before);
    cut_off(other_name, flags | O_NONBLOCK);
    stat(path, &after);
    printf("times: %d\n", (after.st_mtim.tv_sec - before.st_mtim.tv_sec) * 1000000000 + after.st_mtim.tv_nsec - before.st_mtim.tv_nsec > 0);
    unlink(other_name);
    kept("being cut off");
    cut_off("/proc/self/exe", flags);
    cut_off("/dev/null", flags);
    SAY(mkfifo(other_name, 0600));
    cut_off(other_name, flags | O_NONBLOCK);
    unlink(other_name);
    cut_off(other_name, flags);
    cut_off(other_name, flags | O_CREAT);
    unlink(other_name);
    char parent[500];
    sprintf(parent, "%.*s", (int)(strrchr(path, '/') - path), path);
    if (getuid() == 0 && chmod(parent, 0711) == 0)
        setresuid(-1, 65534, -1);
    for (int rights = 0; rights < 0700; rights += 0222) {
        seteuid(getuid());
        /* (An ordinary user may not write to the file of the round before.) */
        chmod(path, 0600);
        reset();
        chmod(path, rights);
        if (getuid() == 0)
            seteuid(65534);
        cut_off(path, flags);
    }
    seteuid(getuid());
    chmod(path, 0600);
}

static void case_truncated_by_a_child(void) {
    int fd = whole(O_RDONLY);
    pid_t child;
    char *arguments[] = {"true", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    SAY(posix_spawn_file_actions_addopen(&actions, 9, path, O_RDONLY | O_TRUNC, 0));
    SAY(posix_spawn(&child, "/bin/true", &actions, NULL, arguments, environ));
    SAY(wait_for(child));
    SAY(lseek(fd, 0, SEEK_END));
    kept("a file action");
}

/* ---- Old names that read. ---- */

static void case_old_names(void) {
    int fd = __open(path, O_RDONLY);
    bytes = fresh();
    SAY(__read(fd, bytes, SIZE));
    kept("__read");
    bytes = fresh();
    SAY(__pread64(fd, bytes, SIZE, 0));
    kept("__pread64");
    c_child(fd);
    kept("__pread64");
    SAY(__close(fd));
    SAY(__close(fd));
    SAY(__fcntl(fd, F_GETFD));
}

static const struct {
    const char *name;
    void (*run)(void);
    int defers;
} cases[] = {
    {"changes", case_changes, 1},
    {"aio", case_aio, 1},
    {"listio", case_listio, 1},
    {"sharing", case_sharing, 1},
    {"replaced", case_replaced, 1},
    {"rings", case_rings, 1},
    {"rings_from_elsewhere", case_rings_from_elsewhere, 1},
    {"rings_registered", case_rings_registered, 1},
    {"rings_library", case_rings_library, 1},
    {"kernel_aio", case_kernel_aio, 1},
    {"own_lease", case_own_lease, 1},
    {"lease_is_not_seen", case_lease_is_not_seen, 1},
    {"clone_memory", case_clone_memory, 1},
    {"clone_files", case_clone_files, 1},
    {"clone_by_number", case_clone_by_number, 1},
    {"unshare_memory", case_unshare_memory, 1},
    {"unshare_by_number", case_unshare_by_number, 1},
    {"unshare_files", case_unshare_files, 1},
    {"close_range_unshares", case_close_range_unshares, 1},
    {"unshare_processes", case_unshare_processes, 1},
    {"setns", case_setns, 1},
    {"setns_by_number", case_setns_by_number, 1},
    {"traced", case_traced, 1},
    {"tracer", case_tracer, 1},
    {"userfaultfd", case_userfaultfd, 1},
    {"userfaultfd_over_tracked", case_userfaultfd_over_tracked, 1},
    {"pinned_by_a_driver", case_pinned_by_a_driver, 1},
    {"registered_for_packets", case_registered_for_packets, 1},
    {"registered_by_number", case_registered_by_number, 1},
    {"deep_binding", case_deep_binding, 1},
    {"another_namespace", case_another_namespace, 1},
    {"filtered", case_filtered, 1},
    {"filtered_by_number", case_filtered_by_number, 1},
    {"asked_for_filters", case_asked_for_filters, 1},
    {"watched", case_watched, 1},
    {"watched_by_number", case_watched_by_number, 1},
    {"permitted", case_permitted, 1},
    {"permitted_by_number", case_permitted_by_number, 1},
    {"rights", case_rights, 1},
    {"rights_by_number", case_rights_by_number, 1},
    {"process_madvise", case_process_madvise, 1},
    {"sealed", case_sealed, 1},
    {"barriers", case_barriers, 1},
    {"named", case_named, 1},
    {"bound_to_nodes", case_bound_to_nodes, 1},
    {"spliced_from_memory", case_spliced_from_memory, 1},
    {"sent_without_a_copy", case_sent_without_a_copy, 1},
    {"stored_by_the_kernel", case_stored_by_the_kernel, 1},
    {"advised", case_advised, 1},
    {"reshaped", case_reshaped, 1},
    {"moved_and_left", case_moved_and_left, 1},
    {"moved_when_materialised", case_moved_when_materialised, 1},
    {"moved_after_all", case_moved_after_all, 1},
    {"reshaped_by_number", case_reshaped_by_number, 1},
    {"descriptors", case_descriptors, 1},
    {"heap", case_heap, 0},
    {"limited", case_limited, 0},
    {"freed_when_stopped", case_freed_when_stopped, 0},
    {"truncated_by_openat2", case_truncated_by_openat2, 1},
    {"opened_without_waiting_for_others", case_opened_without_waiting_for_others, 1},
    {"truncated_by_handle", case_truncated_by_handle, 1},
    {"opened_without_waiting", case_opened_without_waiting, 1},
    {"truncated_by_a_child", case_truncated_by_a_child, 1},
    {"truncated_by_relatives", case_truncated_by_relatives, 1},
    {"truncated_as_ever", case_truncated_as_ever, 1},
    {"truncated_shared_memory", case_truncated_shared_memory, 1},
    {"old_names", case_old_names, 1},
};

/* Not in the list: what is found depends on what was there before. */
static void nothing_special(void) { over("nothing", whole(O_RDONLY)); }
static void loads(void) { printf("found: %d\n", dlopen("libearly.so", RTLD_NOW) != NULL); }

int main(int count, char **arguments) {
    enum { CASES = sizeof cases / sizeof *cases };
    if (count == 2)
        for (int i = 0; i < CASES; i++)
            printf("%s %d\n", cases[i].name, cases[i].defers);
    if (count < 3)
        return count != 2;
    how_many = count;
    setvbuf(stdout, NULL, _IOLBF, 0);
    path = arguments[2];
    expected = malloc(SIZE);
    if (number_of("REPLACED_FD") >= 0)
        inherited_from_the_last(number_of("REPLACED_FD"));
    if (!strcmp(arguments[1], "nothing")) {
        reset();
        nothing_special();
        return 0;
    }
    if (!strcmp(arguments[1], "loads")) {
        loads();
        return 0;
    }
    for (int i = 0; i < CASES; i++)
        if (!strcmp(cases[i].name, arguments[1])) {
            static char name[500];
            snprintf(name, sizeof name, "%s.other", path);
            other = open(name, O_RDWR | O_CREAT, 0600);
            memset(page, 'o', PAGE);
            for (int j = 0; j < 3; j++)
                write(other, page, PAGE);
            reset();
            cases[i].run();
            return 0;
        }
    return 2;
}

#endif
