/* What the families of effects share: a table of rows, memory to read into, and a third process, without the drop-in,
 * that changes files and tells what it sees of them.
 *
 *     FAMILY ROW DIRECTORY
 *
 * A row prints what it finds, in words and numbers that do not depend on the machine or the moment. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "say.h"
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { PAGE = 4096, PAGES = 256, SIZE = PAGES * PAGE + 123 };

struct row {
    const char *name;
    void (*run)(void);
};

/* Orders to the third process. A path is relative to the row's directory. */
enum order { MAKE, WRITE, TRUNCATE, REWRITE, APPEND, UNLINK, REPLACE, SUM, SIZES, LOCK, FLOCK, PEEK, POKE, OPEN_NOW, STOPPED_WRITE, LIMIT };

struct command {
    enum order order;
    long at, len;
    unsigned seed;
    pid_t pid;
    char path[64];
};

struct answer {
    long result;
    int error;
    unsigned long long sum;
};

static int line_to_third;
static pid_t third_process;

/* Fresh private memory of so many bytes, page aligned. */
static inline unsigned char *memory(size_t len) {
    return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Bytes of a file are those of its seed, wherever they are. */
static inline void bytes_at(void *to, size_t len, long at, unsigned seed) {
    unsigned char *bytes = to;
    for (size_t i = 0; i < len;) {
        unsigned place = (unsigned)(at + i), x = ((place / 16 + 1) * 2654435761u + seed * 40503u) >> 13;
        for (size_t end = i + 16 - place % 16; i < len && i < end; i++)
            bytes[i] = x ^ place++;
    }
}

static inline unsigned long long digest(const void *bytes, size_t len) {
    unsigned long long sum = len, word;
    for (size_t i = 0; i + 8 <= len; i += 8) {
        memcpy(&word, (const char *)bytes + i, 8);
        sum = (sum ^ word) * 1099511628211ull;
        sum ^= sum >> 29;
    }
    return sum ^ sum_of((const char *)bytes + len / 8 * 8, len % 8);
}

static inline int are_bytes(const void *is, size_t len, long at, unsigned seed) {
    unsigned char want[PAGE];
    for (size_t done = 0; done < len; done += PAGE) {
        size_t now = len - done < PAGE ? len - done : PAGE;
        bytes_at(want, now, at + done, seed);
        if (memcmp((const char *)is + done, want, now))
            return 0;
    }
    return 1;
}

static inline long do_write(int fd, long at, long len, unsigned seed) {
    unsigned char *bytes = malloc(len + 1);
    bytes_at(bytes, len, at, seed);
    long done = at < 0 ? write(fd, bytes, len) : pwrite(fd, bytes, len, at);
    free(bytes);
    return done;
}

static inline void wait_until_stopped(pid_t pid) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    do {
        usleep(100);
        int fd = open(path, O_RDONLY);
        text[read(fd, text, sizeof text - 1)] = 0;
        close(fd);
    } while (!strstr(text, ") T"));
}

static inline long obey(const struct command *c, unsigned long long *sum) {
    long result = 0;
    int fd = -1;
    struct stat st;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = c->at, .l_len = c->len};
    unsigned char *bytes = NULL;
    struct iovec here, there = {(void *)c->at, c->len};
    switch (c->order) {
    case MAKE:
        fd = open(c->path, O_WRONLY | O_CREAT | O_EXCL, 0600);
        return fd < 0 ? -1 : do_write(fd, 0, c->len, c->seed) | close(fd);
    case WRITE:
        /* What there is to write is there before the file is open. */
        bytes = malloc(c->len + 1);
        bytes_at(bytes, c->len, c->at, c->seed);
        fd = open(c->path, O_WRONLY);
        result = fd < 0 ? -1 : pwrite(fd, bytes, c->len, c->at) | close(fd);
        free(bytes);
        return result;
    case TRUNCATE:
        return truncate(c->path, c->len);
    case LIMIT: /* Only a process that does not have the drop-in can keep it from the drop-in. */
        return prlimit(c->pid, RLIMIT_AS, &(struct rlimit){c->len, RLIM_INFINITY}, NULL);
    case REWRITE:
        fd = open(c->path, O_WRONLY | O_TRUNC);
        return fd < 0 ? -1 : do_write(fd, 0, c->len, c->seed) | close(fd);
    case APPEND:
        fd = open(c->path, O_WRONLY | O_APPEND);
        fstat(fd, &st);
        bytes = malloc(c->len);
        bytes_at(bytes, c->len, st.st_size, c->seed);
        result = write(fd, bytes, c->len);
        free(bytes);
        close(fd);
        return result;
    case UNLINK:
        return unlink(c->path);
    case REPLACE:
        fd = open("replacement", O_WRONLY | O_CREAT | O_TRUNC, 0600);
        do_write(fd, 0, c->len, c->seed);
        close(fd);
        return rename("replacement", c->path);
    case SUM:
        fd = open(c->path, O_RDONLY);
        if (fd < 0)
            return -1;
        fstat(fd, &st);
        bytes = malloc(st.st_size + 1);
        result = pread(fd, bytes, st.st_size + 1, 0);
        *sum = digest(bytes, result < 0 ? 0 : result);
        free(bytes);
        close(fd);
        return result;
    case SIZES:
        result = stat(c->path, &st);
        *sum = result ? 0 : st.st_size;
        return result;
    case LOCK:
        fd = open(c->path, O_RDWR);
        result = fcntl(fd, F_OFD_SETLK, &lock);
        close(fd);
        return result;
    case FLOCK:
        fd = open(c->path, O_RDONLY);
        result = flock(fd, (c->seed ? LOCK_SH : LOCK_EX) | LOCK_NB);
        close(fd);
        return result;
    case PEEK:
        bytes = malloc(c->len);
        here = (struct iovec){bytes, c->len};
        result = process_vm_readv(c->pid, &here, 1, &there, 1, 0);
        *sum = digest(bytes, result < 0 ? 0 : result);
        free(bytes);
        return result;
    case POKE:
        bytes = malloc(c->len);
        bytes_at(bytes, c->len, 0, c->seed);
        here = (struct iovec){bytes, c->len};
        result = process_vm_writev(c->pid, &here, 1, &there, 1, 0);
        free(bytes);
        return result;
    case STOPPED_WRITE:
        /* While who asks is stopped. */
        kill(c->pid, SIGSTOP);
        wait_until_stopped(c->pid);
        fd = open(c->path, O_WRONLY);
        result = fd < 0 ? -1 : do_write(fd, c->at, c->len, c->seed) | close(fd);
        kill(c->pid, SIGCONT);
        return result;
    case OPEN_NOW:
        fd = open(c->path, O_WRONLY | O_NONBLOCK);
        return fd < 0 ? -1 : close(fd);
    }
    return -1;
}

static inline int serve(void) {
    struct command c;
    while (read(0, &c, sizeof c) == sizeof c) {
        struct answer a = {0};
        a.result = obey(&c, &a.sum);
        a.error = a.result < 0 ? errno : 0;
        if (write(0, &a, sizeof a) != sizeof a)
            return 1;
    }
    return 0;
}

static inline void third_is_gone(void) {
    printf("the third process is gone\n");
    exit(3);
}

/* Asks, without a word. */
static inline void ask(enum order order, const char *path, long at, long len, unsigned seed) {
    struct command c = {.order = order, .at = at, .len = len, .seed = seed, .pid = getpid()};
    snprintf(c.path, sizeof c.path, "%s", path);
    if (write(line_to_third, &c, sizeof c) != sizeof c)
        third_is_gone();
}

/* Waits until that is done. */
static inline struct answer answer(void) {
    struct answer a = {.result = -1};
    if (read(line_to_third, &a, sizeof a) != sizeof a)
        third_is_gone();
    return a;
}

static inline struct answer asked(enum order order, const char *path, long at, long len, unsigned seed) {
    ask(order, path, at, len, seed);
    return answer();
}

static inline int on_xfs(const char *path) {
    struct statfs fs;
    return statfs(path, &fs) == 0 && fs.f_type == 0x58465342;
}

/* Asks, and prints what came back. */
#define THIRD(...)                                                                                               \
    do {                                                                                                         \
        struct answer answer = asked(__VA_ARGS__);                                                               \
        printf("%d: third " #__VA_ARGS__ " = %ld%s%s, %llx\n", __LINE__, answer.result,                          \
               answer.error ? " " : "", answer.error ? strerror(answer.error) : "", answer.sum);                 \
    } while (0)

#define TELL(what) printf("%d: %s: %s\n", __LINE__, #what, (what) ? "yes" : "no")

static inline void start_third(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0)
        exit(3);
    third_process = fork();
    if (third_process == 0) {
        dup2(pair[1], 0);
        close(pair[0]);
        close(pair[1]);
        char *arguments[] = {"third", "third", NULL}, *environment[] = {NULL};
        execve("/proc/self/exe", arguments, environment);
        _exit(3);
    }
    close(pair[1]);
    line_to_third = pair[0];
    /* It may look into our memory, where only descendants are looked into by default. Said past the drop-in, which would
     * defer nothing in a program that names a tracer. */
    long result = SYS_prctl;
    register long unused __asm__("r10") = 0;
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"((long)PR_SET_PTRACER), "S"((long)third_process), "d"(0l), "r"(unused)
                     : "rcx", "r11", "memory");
}

/* Goes on as an ordinary user, from the beginning, in a process that may be looked into by its like. */
static inline void as_ordinary_user(const char *row) {
    if (geteuid() != 0)
        return;
    close(line_to_third);
    if (setresgid(61234, 61234, 61234) != 0 || setresuid(61234, 61234, 61234) != 0)
        exit(3);
    execl("/proc/self/exe", "again", row, ".", NULL);
    exit(3);
}

static inline int run_row(int count, char **arguments, const struct row *rows) {
    if (count == 2 && !strcmp(arguments[1], "third"))
        return serve();
    setvbuf(stdout, NULL, _IOLBF, 0);
    umask(022);
    for (; count == 3 && rows->name; rows++) {
        if (strcmp(rows->name, arguments[1]))
            continue;
        if (chdir(arguments[2]) != 0)
            return 3;
        start_third();
        rows->run();
        return 0;
    }
    return 2;
}
