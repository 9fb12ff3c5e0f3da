// Transfers that are declined, one reason each.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define LEN (64 << 10)

static unsigned char *block;

static void need(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void no_helper(void) {
    need(waitpid(-1, NULL, __WALL | WNOHANG) == -1 && errno == ECHILD, "a helper was started");
}

// Reads of a pipe, which are no reads of a file.
static void pipes(int times) {
    int ends[2];
    need(!pipe(ends), "pipe");
    while (times--) {
        need(write(ends[1], "line\n", 5) == 5, "write");
        need(read(ends[0], block, LEN) == 5, "read");
    }
    close(ends[0]);
    close(ends[1]);
}

// How processes end that never needed a helper.
static void ends(const char *how) {
    if (!strcmp(how, "fork")) {
        pipes(1);
        pid_t child = fork();
        if (!child) {
            pipes(2);
            _exit(0);
        }
        int status;
        need(waitpid(child, &status, 0) == child && !status, "child");
    } else if (!strcmp(how, "vfork")) {
        pipes(1);
        // The child's ending is not its parent's.
        if (!vfork())
            _exit(0);
        need(wait(NULL) > 0, "wait");
        pipes(2);
    } else if (!strcmp(how, "rights")) {
        pipes(1);
        // The file of statistics may be beyond reach from there on.
        need(!setgid(getgid()) && !setuid(getuid()), "setuid");
        pipes(2);
    } else if (!strcmp(how, "exec")) {
        pipes(2);
        need(execl("/none", "none", NULL), "an exec that fails");
        pipes(1);
        no_helper();
        execl("/proc/self/exe", "declines", "ends", "nothing", NULL);
    } else if (!strcmp(how, "limit")) {
        pipes(1);
        // There is no room for a line then, and the attempt would be SIGXFSZ.
        need(!setrlimit(RLIMIT_FSIZE, &(struct rlimit){0, 0}), "setrlimit");
    } else if (!strcmp(how, "deepbind")) {
        need(dlopen("libm.so.6", RTLD_NOW | RTLD_DEEPBIND) != NULL, "dlopen");
    } else if (!strcmp(how, "stack")) {
        unsigned char here[LEN];
        need(read(0, here, LEN) >= 0, "read");
    } else if (!strcmp(how, "nothing")) {
        need(read(0, block, 100) >= 0, "read");
    } else {
        pipes(3);
    }
    no_helper();
    if (!strcmp(how, "_exit"))
        _exit(0);
}

// Past libc, so that the drop-in does not see it.
static long unseen(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static void made(const char *path, size_t len) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    memset(block, 7, LEN);
    for (size_t at = 0; at < len; at += LEN)
        need(write(fd, block, len - at < LEN ? len - at : LEN) > 0, "write");
    close(fd);
}

static int whole(int fd) { return pread(fd, block, LEN, 0) == LEN; }

static void not_a_regular_file(void) { pipes(1); }

static void file_system(void) {
    // Said to be as long as a page.
    int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
    if (fd < 0) {
        printf("skipped: no /sys\n");
        return;
    }
    need(pread(fd, block, LEN, 0) > 0, "pread");
}

static void open_flags(void) { need(pread(open("file", O_WRONLY), block, LEN, 0) < 0 && errno == EBADF, "pread"); }

static void phase(void) { need(pread(open("file", O_RDONLY), block, LEN, 16) == LEN - 16, "pread"); }

static void odd_phase(void) { need(pread(open("file", O_RDONLY), block, LEN, 1) == LEN - 1, "pread"); }

static void small(void) { need(pread(open("file", O_RDONLY), block, LEN, LEN - 100) == 100, "pread"); }

static void memory(void) {
    need(!unseen(SYS_mprotect, (long)block, 4096, PROT_READ, 0), "mprotect");
    need(pread(open("file", O_RDONLY), block, LEN, 0) < 0 && errno == EFAULT, "pread");
}

static void lease_refused(void) {
    need(open("file", O_WRONLY) >= 0, "open");
    need(whole(open("file", O_RDONLY)), "pread");
}

static void own_writer(void) {
    // The standard descriptors are anybody's.
    need(dup2(open("file", O_RDWR), 0) == 0 && whole(0), "pread");
}

static void not_sole_opener(void) {
    need(open("file", O_RDONLY) >= 0, "open");
    need(whole(open("file", O_RDWR)), "pread");
}

static void limit(void) {
    // The helper has descriptors of its own, and no more of them.
    need(!setrlimit(RLIMIT_NOFILE, &(struct rlimit){16, 16}), "setrlimit");
    unsigned char *blocks = mmap(NULL, 16 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 16; i++) {
        char name[16];
        sprintf(name, "file%d", i);
        made(name, LEN);
        int fd = open(name, O_RDONLY);
        need(pread(fd, blocks + i * LEN, LEN, 0) == LEN, "pread");
        close(fd);
    }
}

static void holes(void) {
    int fd = open("sparse", O_RDWR | O_CREAT | O_TRUNC, 0644);
    struct statfs system;
    need(!fstatfs(fd, &system) && !ftruncate(fd, LEN), "ftruncate");
    if (system.f_type != TMPFS_MAGIC) {
        printf("skipped: not tmpfs\n");
        return;
    }
    close(fd);
    need(whole(open("sparse", O_RDONLY)), "pread");
}

// A filter that refuses to make processes, without a word to anybody.
static void unavailable(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    need(!unseen(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0), "prctl");
    need(!unseen(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, (long)&program, 0), "seccomp");
    need(whole(open("file", O_RDONLY)), "pread");
}

// A child that borrows the memory, and was not seen to be made, has no helper.
static int borrowed;

static void borrow(void) {
    int good = pread(borrowed, block, LEN, 0) == LEN;
    unseen(SYS_exit, !good, 0, 0, 0);
}

static void helper(void) {
    static char stack[64 << 10] __attribute__((aligned(16)));
    // Where the child returns to, on a stack of its own.
    void **top = (void **)(stack + sizeof stack - 56);
    *top = borrow;
    borrowed = open("file", O_RDONLY);
    long child, flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "pop %%rax\n\t"
                     "call *%%rax\n\t"
                     "hlt\n\t"
                     "1:"
                     : "=a"(child)
                     : "a"(SYS_clone), "D"(flags), "S"(top), "d"(0L)
                     : "rcx", "r11", "memory");
    int status = -1;
    need(child > 0 && waitpid(child, &status, 0) == child && !status, "child");
}

static void mostly_altered(void) {
    for (int i = 0; i < 3; i++) {
        int fd = open("file", O_RDWR);
        need(whole(fd), "pread");
        for (int at = 0; at < LEN; at += 4096)
            block[at]++;
        need(pwrite(fd, block, LEN, 0) == LEN, "pwrite");
        close(fd);
    }
}

// What was read has to be loaded each time, because the file is changed in a way that is no save.
static void changing_file(void) {
    for (int i = 0; i < 3; i++) {
        int fd = open("file", O_RDWR);
        need(whole(fd), "pread");
        need(!ftruncate(fd, LEN), "ftruncate");
        close(fd);
    }
}

static volatile int done;

static void *change(void *path) {
    while (!done) {
        unseen(SYS_truncate, (long)path, LEN / 2, 0, 0);
        unseen(SYS_truncate, (long)path, LEN, 0, 0);
    }
    return NULL;
}

// Until it has happened, which whoever reads our standard error knows.
// Memory that is shared: a store would tell.
static void emptied(void) {
    mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int fd = open("file", O_RDONLY);
    pread(fd, block, LEN, 0);
    close(fd);
    fd = open("file", O_WRONLY | O_TRUNC);
    write(fd, block, LEN);
    close(fd);
}

static void raced(void) {
    pthread_t thread;
    char byte;
    need(!pthread_create(&thread, NULL, change, "file"), "pthread_create");
    fcntl(0, F_SETFL, O_NONBLOCK);
    while (read(0, &byte, 1) < 0) {
        int fd = open("file", O_RDONLY);
        pread(fd, block, LEN, 0);
        close(fd);
        // Nothing stands for the file any more.
        memset(block, 0, LEN);
        madvise(block, LEN, MADV_DONTNEED);
    }
    done = 1;
    pthread_join(thread, NULL);
}

#define ROW(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(void);
} rows[] = {
    ROW(not_a_regular_file), ROW(file_system), ROW(open_flags), ROW(phase), ROW(odd_phase), ROW(small), ROW(memory),
    ROW(lease_refused), ROW(own_writer), ROW(not_sole_opener), ROW(limit), ROW(holes), ROW(unavailable),
    ROW(helper), ROW(mostly_altered), ROW(changing_file), ROW(raced), ROW(emptied),
};

int main(int count, char **words) {
    if (count < 2)
        return 2;
    block = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(block != MAP_FAILED, "mmap");
    if (!strcmp(words[1], "ends") && count > 2) {
        ends(words[2]);
        return 0;
    }
    made("file", LEN);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strcmp(words[1], rows[i].name)) {
            rows[i].run();
            return 0;
        }
    return 2;
}
