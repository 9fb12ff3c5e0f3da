// What a program meets while its threads are held still again and again; and while its helper is gone.
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "helper.h"

#define LEN (1 << 20)

// Each turn gives pages memory of their own, for which all threads are held still.
static atomic_int over, turns;
static void turn_once(unsigned char *p) {
    int fd = open("turned", O_RDONLY);
    need(pread(fd, p, LEN, 0) == LEN, "pread");
    close(fd), close(open("turned", O_RDWR));
    turns++;
}
static void *turn(void *unused) {
    unsigned char *p = memory(LEN);
    while (!over)
        turn_once(p);
    return unused;
}

// Calls that end early when a signal is on its way.
static void whole(void) {
    const int size = 8 << 20, times = 40;
    make("from", size, 5);
    unsigned char *p = memory(size);
    int from = open("from", O_RDONLY), to = open("to", O_RDWR | O_CREAT, 0644);
    int zero = open("/dev/zero", O_RDONLY), urandom = open("/dev/urandom", O_RDONLY);
    int cut[8] = {0};
    unsigned char *ends = memory(size);
    need(munmap(ends + size / 2, size / 2) == 0, "munmap");
    for (int i = 0; i < times; i++) {
        off_t at = 0, into = 0;
        lseek(to, 0, SEEK_SET), lseek(from, 0, SEEK_SET);
        cut[0] += sendfile(to, from, &at, size) != size || at != size || lseek(to, 0, SEEK_CUR) != size;
        at = 0;
        cut[1] += copy_file_range(from, &at, to, &into, size, 0) != size || at != size || into != size;
        cut[2] += syscall(SYS_copy_file_range, from, NULL, to, (into = 0, &into), size, 0) != size;
        // Not more than there is.
        at = size - 5000;
        cut[3] += sendfile(to, from, &at, size) != 5000;
        cut[4] += getrandom(p, size / 4, 0) != size / 4 || syscall(SYS_getrandom, p, size / 4, 0) != size / 4;
        cut[5] += read(urandom, p, size / 4) != size / 4 || read(urandom, p, 64 << 10) != 64 << 10;
        memset(p, 1, size);
        cut[6] += read(zero, p, size) != size || memchr(p, 1, size);
        // What is short in any case is no failure, and leaves errno alone.
        errno = 7777;
        cut[7] += read(zero, ends, size) != size / 2 || errno != 7777;
        cut[7] += getrandom(ends + size / 4, size, 0) != size / 4 || errno != 7777;
    }
    for (int i = 0; i < 8; i++)
        printf("%d: %d\n", i, cut[i]);
}

// Waits that come to an end though threads are held still more often than they would take.
static void waits(void) {
    struct epoll_event event;
    struct timespec time = {0, 200000000};
    struct timeval limit = {0, 200000};
    struct sembuf take = {0, -1, 0};
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigprocmask(SIG_BLOCK, &set, NULL);
    int ends[2], semaphore = semget(IPC_PRIVATE, 1, 0600), queue = epoll_create1(0);
    need(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
    setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    for (int i = 0; i < 3; i++) {
        printf("%d\n", epoll_wait(queue, &event, 1, 200));
        printf("%d\n", epoll_pwait(queue, &event, 1, 200, NULL));
        printf("%d\n", (int)syscall(SYS_epoll_pwait2, queue, &event, 1, &time, NULL, 0));
        printf("%d %s\n", sigtimedwait(&set, NULL, &time), strerror(errno));
        printf("%d %s\n", semtimedop(semaphore, &take, 1, &time), strerror(errno));
        printf("%zd %s\n", recv(ends[0], &event, 1, 0), strerror(errno));
        printf("%zd %s\n", read(ends[0], &event, 1), strerror(errno));
        printf("%ld %ld\n", (long)time.tv_sec, time.tv_nsec);
    }
    // What does come, comes.
    need(write(ends[1], "x", 1) == 1, "write");
    struct epoll_event wanted = {.events = EPOLLIN};
    epoll_ctl(queue, EPOLL_CTL_ADD, ends[0], &wanted);
    printf("%d\n", epoll_wait(queue, &event, 1, 60000));
    printf("%zd\n", recv(ends[0], &event, 1, 0));
    raise(SIGUSR1);
    printf("%d\n", sigtimedwait(&set, NULL, &time));
    semctl(semaphore, 0, IPC_RMID);
}

// Every register of a thread but the stack pointer, in the order that `raw_call` has.
struct registers {
    long rax, rdi, rsi, rdx, r10, r8, r9, rbx, rbp, r12, r13, r14, r15;
};
// Makes a system call with exactly these registers, and says what they are afterwards.
void raw_call(struct registers *);
__asm__(".text\n.globl raw_call\nraw_call:\n"
        "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n push %rdi\n"
        "mov (%rdi), %rax\n mov 16(%rdi), %rsi\n mov 24(%rdi), %rdx\n mov 32(%rdi), %r10\n mov 40(%rdi), %r8\n"
        "mov 48(%rdi), %r9\n mov 56(%rdi), %rbx\n mov 64(%rdi), %rbp\n mov 72(%rdi), %r12\n mov 80(%rdi), %r13\n"
        "mov 88(%rdi), %r14\n mov 96(%rdi), %r15\n mov 8(%rdi), %rdi\n"
        "syscall\n"
        "push %rdi\n mov 8(%rsp), %rdi\n mov %rax, (%rdi)\n mov %rsi, 16(%rdi)\n mov %rdx, 24(%rdi)\n mov %r10, 32(%rdi)\n"
        "mov %r8, 40(%rdi)\n mov %r9, 48(%rdi)\n mov %rbx, 56(%rdi)\n mov %rbp, 64(%rdi)\n mov %r12, 72(%rdi)\n"
        "mov %r13, 80(%rdi)\n mov %r14, 88(%rdi)\n mov %r15, 96(%rdi)\n pop %rax\n mov %rax, 8(%rdi)\n"
        "add $8, %rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

// Calls that are interrupted and made again: afterwards the program's registers are what they were.
static void registers(void) {
    struct epoll_event event;
    struct timespec time = {0, 200000000}, until;
    struct timeval limit = {0, 200000};
    struct sembuf take = {0, -1, 0};
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    int ends[2], full[2], word = 5, size = 4096, status;
    int semaphore = semget(IPC_PRIVATE, 1, 0600), queue = epoll_create1(0), listens = socket(AF_UNIX, SOCK_STREAM, 0);
    need(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends) && !socketpair(AF_UNIX, SOCK_STREAM, 0, full), "socketpair");
    sa_family_t family = AF_UNIX;
    need(!bind(listens, (void *)&family, sizeof family) && !listen(listens, 1), "listen");
    for (int i = 0; i < 3; i++)
        setsockopt((int[]){ends[0], full[0], listens}[i], SOL_SOCKET, i == 1 ? SO_SNDTIMEO : SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(full[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    static char bytes[1 << 20];
    while (send(full[0], bytes, 512, MSG_DONTWAIT) > 0)
        ;
    struct pollfd polled = {ends[0], POLLIN, 0};
    fd_set selected;
    FD_ZERO(&selected);
    struct iovec part = {&event, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int locked = open("locked", O_RDWR | O_CREAT, 0644);
    // A child that holds a lock, and ends when the calls that have no limit of their own have waited for a while.
    struct {
        const char *name;
        long number, a[6];
        int child;
    } calls[] = {
        {"epoll_wait", SYS_epoll_wait, {queue, (long)&event, 1, 200}, 0},
        {"epoll_pwait", SYS_epoll_pwait, {queue, (long)&event, 1, 200, 0, 8}, 0},
        {"epoll_pwait2", SYS_epoll_pwait2, {queue, (long)&event, 1, (long)&time, 0, 8}, 0},
        {"rt_sigtimedwait", SYS_rt_sigtimedwait, {(long)&set, 0, (long)&time, 8}, 0},
        {"semtimedop", SYS_semtimedop, {semaphore, (long)&take, 1, (long)&time}, 0},
        {"recvfrom", SYS_recvfrom, {ends[0], (long)&event, 1}, 0},
        {"recvmsg", SYS_recvmsg, {ends[0], (long)&message}, 0},
        {"read", SYS_read, {ends[0], (long)&event, 1}, 0},
        {"readv", SYS_readv, {ends[0], (long)&part, 1}, 0},
        {"accept4", SYS_accept4, {listens}, 0},
        {"sendto", SYS_sendto, {full[0], (long)bytes, sizeof bytes}, 0},
        {"write", SYS_write, {full[0], (long)bytes, sizeof bytes}, 0},
        {"poll", SYS_poll, {(long)&polled, 1, 200}, 0},
        {"ppoll", SYS_ppoll, {(long)&polled, 1, (long)&time, 0, 8}, 0},
        {"select", SYS_select, {ends[0] + 1, (long)&selected, 0, 0, (long)&limit}, 0},
        {"nanosleep", SYS_nanosleep, {(long)&time}, 0},
        {"clock_nanosleep", SYS_clock_nanosleep, {CLOCK_MONOTONIC, 0, (long)&time}, 0},
        {"futex", SYS_futex, {(long)&word, 0, 5, (long)&time}, 0},
        {"wait4", SYS_wait4, {-1, (long)&status}, 1},
        {"fcntl", SYS_fcntl, {locked, F_SETLKW, (long)&lock}, 1},
    };
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        pid_t child = 0;
        if (calls[i].child) {
            int ready[2];
            need(!pipe(ready), "pipe");
            if (!(child = fork())) {
                need(!fcntl(locked, F_SETLKW, &lock), "lock");
                close(ready[0]), close(ready[1]);
                // For so long the call waits.
                usleep(200000);
                _exit(0);
            }
            close(ready[1]);
            need(read(ready[0], &word, 1) == 0, "read"), close(ready[0]);
        }
        FD_SET(ends[0], &selected);
        word = 5;
        limit = (struct timeval){0, 200000}, time = (struct timespec){0, 200000000};
        clock_gettime(CLOCK_MONOTONIC, &until);
        long *a = calls[i].a;
        struct registers before = {calls[i].number, a[0], a[1], a[2], a[3], a[4], a[5], 11, 22, 33, 44, 55, 66}, after = before;
        int interrupted = turns;
        raw_call(&after);
        interrupted = turns - interrupted;
        if (child && calls[i].number != SYS_wait4)
            waitpid(child, &status, 0);
        // One that was never interrupted shows nothing.
        need(!getenv("LD_PRELOAD") || interrupted > 0, calls[i].name);
        printf("%s: %ld\n", calls[i].name, calls[i].child && after.rax > 0 ? 1 : after.rax);
        after.rax = before.rax;
        for (size_t at = 0; at < sizeof after / sizeof(long); at++)
            if (((long *)&after)[at] != ((long *)&before)[at])
                printf("register %zu was %#lx, is %#lx\n", at, ((long *)&before)[at], ((long *)&after)[at]);
    }
    semctl(semaphore, 0, IPC_RMID);
}

static atomic_int waiting, ended, signalled;
static void *waits_for(void *seconds) {
    struct timespec time = {(long)seconds, 0}, begun, done;
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    clock_gettime(CLOCK_MONOTONIC, &begun);
    waiting++;
    int signal = sigtimedwait(&set, NULL, &time);
    clock_gettime(CLOCK_MONOTONIC, &done);
    if (signal == SIGUSR1)
        signalled++;
    else if (errno == EAGAIN && done.tv_sec - begun.tv_sec + (done.tv_nsec - begun.tv_nsec) / 1e9 >= time.tv_sec)
        ended++;
    return NULL;
}

// More threads than anybody would think of, each with a wait of its own.
static void crowd(int count) {
    pthread_t *threads = calloc(count, sizeof *threads);
    pthread_attr_t small;
    pthread_attr_init(&small), pthread_attr_setstacksize(&small, 16384);
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigprocmask(SIG_BLOCK, &set, NULL);
    unsigned char *p = memory(LEN);
    make("file", LEN, 5);
    int fd = open("file", O_RDONLY);
    // Whoever helps is there before.
    need(pread(fd, p, LEN, 0) == LEN, "pread");
    for (int i = 0; i < count; i++)
        if ((errno = pthread_create(&threads[i], &small, waits_for, (void *)(i % 2 ? 2L : 3600L)))) {
            printf("skipped: %d threads: %s\n", i, strerror(errno));
            return;
        }
    while (waiting < count)
        usleep(1000);
    need(pread(fd, p, LEN, 0) == LEN, "pread");
    need(!truncate("file", 0), "truncate");
    for (int at = 0; at < LEN; at += 4096)
        need(p[at] == 5, "a byte");
    while (ended < count / 2) {
        turn_once(p);
        usleep(100000);
    }
    for (int i = 0; i < count; i += 2)
        pthread_kill(threads[i], SIGUSR1);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    printf("%d %d\n", (int)ended, (int)signalled);
}

static void *reads(void *unused) {
    unsigned char *p = memory(64 << 10);
    int fd = open("turned", O_RDONLY);
    while (!over) {
        need(pread(fd, p, 64 << 10, 0) == 64 << 10, "pread");
        p[5] = 1;
    }
    return unused;
}

// The helper is killed, and while another thread has the next one started a file is cut off of which something was deferred.
static void noticed(unsigned seed, int rounds) {
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, reads, NULL);
    for (int round = 0; round < rounds; round++) {
        make("cut", LEN, 5);
        int fd = open("cut", O_RDWR);
        unsigned char *p = memory(LEN);
        need(pread(fd, p, LEN, 0) == LEN, "pread");
        pid_t killed = helper(getpid(), 0);
        if (killed) {
            if (round % 2)
                kill(supervisor(getpid()), SIGKILL);
            kill(killed, SIGKILL);
            // No event tells of the moments that matter: some are tried.
            usleep(rand_r(&seed) % 400);
        }
        need(ftruncate(fd, 0) == 0, "ftruncate");
        for (int at = 0; at < LEN; at += 4096)
            need(p[at] == 5, "a byte");
        munmap(p, LEN), close(fd);
    }
    over = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

static atomic_int starter, spinning;
static void *starts(void *unused) {
    starter = gettid();
    return reads(unused);
}
static void *spins(void *unused) {
    while (spinning)
        ;
    return unused;
}

static int is_mapped(const char *path) {
    static char text[1 << 20];
    FILE *maps = fopen("/proc/self/maps", "r");
    text[fread(text, 1, sizeof text - 1, maps)] = 0;
    fclose(maps);
    return strstr(text, path) != NULL;
}

// The same with the very first one, before whoever has started it sees that it is ready.
static void first(void) {
    make("cut", LEN, 5);
    int fd = open("cut", O_RDWR), elided = getenv("LD_PRELOAD") != NULL;
    unsigned char *p = memory(LEN);
    pthread_t starting, others[6];
    pthread_create(&starting, NULL, starts, NULL);
    pid_t killed = 0;
    while (elided && !(killed = helper(getpid(), 0)))
        ;
    // He has to wait for a processor.
    struct sched_param none = {0};
    need(!elided || !sched_setscheduler(starter, SCHED_IDLE, &none), "sched_setscheduler");
    spinning = 1;
    for (int i = 0; i < 6; i++)
        pthread_create(&others[i], NULL, spins, NULL);
    do
        need(pread(fd, p, LEN, 0) == LEN, "pread");
    while (elided && !is_mapped("/cut"));
    if (elided)
        kill(killed, SIGKILL);
    spinning = 0;
    need(ftruncate(fd, 0) == 0, "ftruncate");
    for (int at = 0; at < LEN; at += 4096)
        need(p[at] == 5, "a byte");
    over = 1;
    pthread_join(starting, NULL);
    for (int i = 0; i < 6; i++)
        pthread_join(others[i], NULL);
}

static void each_first(void) {
    for (int round = 0; round < 20; round++) {
        pid_t child = fork();
        int status;
        if (!child) {
            first();
            _exit(0);
        }
        need(waitpid(child, &status, 0) == child, "waitpid");
        if (status) {
            printf("round %d: a child ended with %#x\n", round, status);
            exit(1);
        }
    }
}

static int is_gone(pid_t pid) {
    char path[64], text[512];
    sprintf(path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return 1;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return strstr(text, "(zombie)") != NULL;
}

// Nobody is there to answer, and the program itself wants the file. `alone`: nor can another helper be started.
static void wanted(const char *how, int alone) {
    make("file", LEN, 5);
    int fd = open("file", strstr(how, "written") ? O_RDWR : O_RDONLY);
    unsigned char *p = memory(LEN), *other = memory(LEN);
    need(pread(fd, p, LEN, 0) == LEN, "pread");
    p[5 * 4096] = 6;
    pid_t killed = helper(getpid(), 0);
    if (alone)
        need(!setrlimit(RLIMIT_NPROC, &(struct rlimit){1, 1}), "setrlimit");
    if (killed)
        kill(supervisor(getpid()), SIGKILL), kill(killed, SIGKILL);
    while (killed && !is_gone(killed))
        usleep(100);
    if (!strcmp(how, "written, cut"))
        need(ftruncate(fd, 0) == 0, how);
    else if (!strcmp(how, "truncate"))
        need(truncate("file", LEN / 2) == 0, how);
    else if (!strcmp(how, "truncate by number"))
        need(syscall(SYS_truncate, "file", LEN / 2) == 0, how);
    else if (!strcmp(how, "stream"))
        need(fclose(fopen("file", "r+")) == 0, how);
    else if (!strcmp(how, "fork")) {
        pid_t child = fork();
        if (!child)
            _exit(open("file", O_RDWR) < 0);
        int status;
        need(waitpid(child, &status, 0) == child && !status, how);
    } else
        need(close(open("file", O_RDWR)) == 0, how);
    need(p[5 * 4096] == 6, "an altered byte");
    p[5 * 4096] = 5;
    for (int at = 0; at < LEN; at += 4096)
        need(p[at] == 5, "a byte");
    // And so it goes on.
    make("other", LEN, 7);
    fd = open("other", O_RDWR);
    need(pread(fd, other, LEN, 0) == LEN && pwrite(fd, other, LEN, 0) == LEN && !ftruncate(fd, 0), "another file");
    for (int at = 0; at < LEN; at += 4096)
        need(other[at] == 7, "another byte");
}

// Goes on as an ordinary user, from the beginning, if it is not one: others' processes do not count.
static void as_ordinary_user(char **words) {
    if (geteuid() != 0)
        return;
    need(!chown(".", 61234, 61234) && !setresgid(61234, 61234, 61234) && !setresuid(61234, 61234, 61234), "setresuid");
    execv("/proc/self/exe", words);
    need(0, "exec");
}

// Stops the helper, its parent, or both.
static void hold_helpers(const char *how) {
    pid_t parent = supervisor(getpid()), child = helper(getpid(), 0);
    if (!child)
        return;
    if (strstr(how, "parent") || strstr(how, "both"))
        kill(parent, SIGSTOP);
    if (strstr(how, "helper") || strstr(how, "both"))
        kill(child, SIGSTOP);
}

// The helper, or its parent, is stopped: calls come to an end, and do what they would do.
static void stopped(const char *how) {
    make("file", LEN, 5), make("other", LEN, 7);
    int fd = open("file", O_RDWR), other = open("other", O_RDWR);
    unsigned char *p = memory(LEN), *q = memory(LEN);
    need(pread(fd, p, LEN, 0) == LEN, "pread");
    p[5 * 4096] = 6;
    hold_helpers(how);
    need(pread(other, q, LEN, 0) == LEN, "pread");
    for (int i = 0; i < 4; i++) {
        hold_helpers(how);
        q[i * 4096] = i;
        need(pwrite(other, q, LEN, 0) == LEN, "pwrite");
    }
    hold_helpers(how);
    need(!ftruncate(fd, 0), "ftruncate");
    hold_helpers(how);
    need(!close(fd) && !close(open("other", O_RDWR | O_TRUNC)), "close");
    for (int at = 0; at < LEN; at += 4096)
        need(p[at] == (at == 5 * 4096 ? 6 : 5) && q[at] == (at < 4 * 4096 ? at / 4096 : 7), "a byte");
    hold_helpers(how);
}

// Reads again and again, until a signal ends it.
static void reads_on(void) {
    make("turned", LEN, 5);
    unsigned char *p = memory(LEN);
    for (;;) {
        int fd = open("turned", O_RDONLY);
        need(pread(fd, p, LEN, 0) == LEN && p[4096] == 5, "pread");
        close(fd);
        if (turns++ == 0)
            write(1, "ready\n", 6);
    }
}

// A mapping of the program's own keeps a description that was closed, and with it whatever lease there is.
static void mapped(void) {
    make("file", LEN, 5);
    int fd = open("file", O_RDWR);
    unsigned char *p = memory(LEN);
    need(pread(fd, p, LEN, 0) == LEN, "pread");
    unsigned char *own = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 8192);
    memset(p, 3, LEN);
    close(fd);
    need(close(open("file", O_RDWR)) == 0, "open");
    printf("%d %d\n", own[0], p[0]);
}

// Two threads end deferral while the helper cannot answer. (Without the drop-in nothing is mapped, and nobody stopped.)
static atomic_int were_mapped;
static void *ends(void *unused) {
    syscall(SYS_io_uring_setup, 1u, NULL);
    were_mapped += is_mapped("/cut");
    return unused;
}
static void ended_by_two(void) {
    make("cut", LEN, 5);
    int fd = open("cut", O_RDONLY);
    unsigned char *p = memory(LEN);
    need(pread(fd, p, LEN, 0) == LEN, "pread");
    pid_t stopped = helper(getpid(), 0);
    need(!stopped || is_mapped("/cut"), "nothing is deferred");
    if (stopped)
        kill(stopped, SIGSTOP);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, ends, NULL);
    // No event tells that a thread does not go on: so long may one that does have to be seen.
    usleep(400000);
    if (stopped)
        kill(stopped, SIGCONT);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    printf("mapped: %d\n", were_mapped);
}

// A fork waits for the lock of the list of streams, whose holder reads, writes, or has a file changed.
static atomic_int held, preparing;
static unsigned char *saved, *read_only;
static int saved_to, read_from;
static void prepare(void) { preparing = 1; }
static ssize_t flushed(void *how, const char *unused, size_t len) {
    (void)unused;
    held = 1;
    while (!preparing)
        usleep(100);
    // No event tells that the helper rests, and that the fork waits.
    usleep(50000);
    if (!strcmp(how, "read"))
        need(pread(read_from, memory(LEN), LEN, 0) == LEN, how);
    else if (!strcmp(how, "write"))
        need(pwrite(saved_to, saved, LEN, 0) == LEN && pwrite(saved_to, saved, LEN, LEN) == LEN, how);
    else if (!strcmp(how, "truncate"))
        need(ftruncate(saved_to, 0) == 0, how);
    else if (!strcmp(how, "open"))
        need(close(open("read", O_RDWR | O_TRUNC)) == 0, how);
    else
        read_only = mremap(read_only, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, memory(LEN));
    return len;
}
static void *flushes(void *how) {
    FILE *stream = fopencookie(how, "w", (cookie_io_functions_t){.write = flushed});
    fputc('x', stream);
    need(fflush(NULL) == 0, "fflush");
    return NULL;
}
static void forked(char *how) {
    pthread_t holder;
    pthread_atfork(prepare, NULL, NULL);
    make("saved", LEN, 5), make("read", LEN, 6);
    saved = memory(LEN), read_only = memory(LEN);
    saved_to = open("saved", O_RDWR), read_from = open("read", O_RDONLY);
    need(pread(saved_to, saved, LEN, 0) == LEN && pread(read_from, read_only, LEN, 0) == LEN, "pread");
    saved[9] = 7;
    pthread_create(&holder, NULL, flushes, how);
    while (!held)
        usleep(100);
    int status = -1;
    pid_t pid = fork();
    if (!pid || waitpid(pid, &status, 0) == pid) {
        for (int at = 0; at < LEN; at++)
            need(saved[at] == (at == 9 ? 7 : 5) && read_only[at] == 6, "a byte");
        if (!pid)
            _exit(0);
    }
    pthread_join(holder, NULL);
    printf("%s %d\n", how, status);
}

int main(int count, char **words) {
    // Whoever waits for a lease waits for 45 s.
    alarm(30);
    const char *row = count > 1 ? words[1] : "";
    pthread_t turning;
    int turned = !strcmp(row, "whole") || !strcmp(row, "waits") || !strcmp(row, "registers");
    if (turned) {
        make("turned", LEN, 5);
        pthread_create(&turning, NULL, turn, NULL);
        while (!turns)
            usleep(100);
    }
    if (!strcmp(row, "whole"))
        whole();
    else if (!strcmp(row, "waits"))
        waits();
    else if (!strcmp(row, "registers"))
        registers();
    else if (!strcmp(row, "noticed"))
        make("turned", LEN, 5), noticed(1, 60);
    else if (!strcmp(row, "first"))
        make("turned", LEN, 5), each_first();
    else if (!strcmp(row, "crowd"))
        make("turned", LEN, 5), crowd(count > 2 ? atoi(words[2]) : 6000);
    else if (!strcmp(row, "mapped"))
        mapped();
    else if (!strncmp(row, "stopped", 7))
        stopped(row);
    else if (!strcmp(row, "reads on"))
        reads_on();
    else if (!strncmp(row, "alone: ", 7))
        as_ordinary_user(words), wanted(row + 7, 1);
    else if (!strncmp(row, "forked: ", 8))
        forked(words[1] + 8);
    else if (!strcmp(row, "ended by two"))
        ended_by_two();
    else
        wanted(row, 0);
    if (turned) {
        over = 1;
        pthread_join(turning, NULL);
    }
    printf("done\n");
    return 0;
}
