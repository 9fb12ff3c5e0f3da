/* What a program has: descriptors, processes, threads, mappings, memory; and what it gets when there is little of it. */
#include "effects.h"
#include <dirent.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/time.h>

static int entries(const char *path, const char *show) {
    int numbers[64], count = 0;
    DIR *directory = opendir(path);
    for (struct dirent *entry; (entry = readdir(directory)) && count < 64;)
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(directory))
            numbers[count++] = atoi(entry->d_name);
    closedir(directory);
    for (int i = 0; show && i < count; i++)
        printf("%s%d%s", i ? " " : show, numbers[i], i == count - 1 ? "\n" : "");
    return count;
}

static long status(const char *field) {
    char line[256];
    long value = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, field, strlen(field)))
            value = atol(line + strlen(field) + 1);
    fclose(file);
    return value;
}

static long mappings(void) {
    long count = 0;
    FILE *file = fopen("/proc/self/maps", "r");
    for (int c; (c = getc(file)) != EOF;)
        count += c == '\n';
    fclose(file);
    return count;
}

static volatile int children_ended;
static void on_child(int number) { (void)number, children_ended++; }

static void numbers(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    signal(SIGCHLD, on_child);
    pid_t session = getsid(0), group = getpgrp(), pid = getpid(), parent = getppid();
    int fd, other;
    entries("/proc/self/fd", "descriptors ");
    for (int round = 0; round < 3; round++) {
        SAY(fd = open("file", round ? O_RDWR : O_RDONLY));
        SAY(pread(fd, p, SIZE, 0));
        entries("/proc/self/fd", "descriptors ");
        SAY(other = open("other", O_RDWR | O_CREAT, 0600));
        SAY(pwrite(other, p, SIZE, 0));
        if (round)
            SAY(pwrite(fd, p, SIZE, 0));
        close(fd);
        SAY(fd = dup(other));
        SAY(entries("/proc/self/task", NULL));
        SAY(status("Threads:"));
        SAY(waitpid(-1, NULL, WNOHANG));
        close(fd);
        close(other);
        entries("/proc/self/fd", "descriptors ");
    }
    TELL(getsid(0) == session && getpgrp() == group && getpid() == pid && getppid() == parent);
    printf("%d children ended\n", children_ended);
    /* Descriptors that a program does not know are closed without asking. */
    fd = open("file", O_RDWR);
    SAY(pread(fd, p, SIZE, 0));
    SAY(dup2(line_to_third, 40));
    line_to_third = 40;
    SAY(close_range(3, 39, 0));
    SAY(close_range(41, ~0u, 0));
    for (int i = 41; i < 300; i++)
        close(i);
    TELL(are_bytes(p, SIZE, 0, 1));
    THIRD(WRITE, "file", 0, SIZE, 2);
    TELL(are_bytes(p, SIZE, 0, 1));
    SAY(fd = open("file", O_RDWR));
    SAY(pread(fd, p, SIZE, 0));
    SAY(dup2(1, fd));
    TELL(are_bytes(p, SIZE, 0, 2));
    entries("/proc/self/fd", "descriptors ");
}

/* What was read and let go leaves nothing behind. */
static void released(void) {
    enum { MUCH = 2048 * PAGE };
    THIRD(MAKE, "file", 0, MUCH, 1);
    long resident = 0, many = 0, size = 0, sum = 0;
    for (int round = 0; round < 12; round++) {
        if (round == 4)
            resident = status("VmRSS:"), many = mappings(), size = status("VmSize:");
        unsigned char *p = round % 2 ? memory(MUCH) : malloc(MUCH);
        int fd = open("file", round % 3 ? O_RDWR : O_RDONLY);
        read(fd, p, MUCH);
        for (size_t at = 0; at < MUCH; at += PAGE)
            sum += p[at];
        p[5] ^= 1;
        if (round % 3)
            pwrite(fd, p, MUCH, 0), pwrite(fd, p, MUCH, 0);
        if (round % 4 == 1)
            THIRD(SUM, "file", 0, 0, 0);
        close(fd);
        round % 2 ? (void)munmap(p, MUCH) : free(p);
    }
    printf("%ld\n", sum);
    /* Of what was there after the first few: a megabyte, that is an eighth of one buffer. */
    TELL(status("VmRSS:") < resident + 1024);
    TELL(status("VmSize:") < size + 1024);
    TELL(mappings() < many + 4);
}

/* While it is held, memory that is looked at costs no more than memory that was read. */
static void held(void) {
    enum { MUCH = 2048 * PAGE };
    THIRD(MAKE, "file", 0, MUCH, 1);
    long resident = status("VmRSS:");
    unsigned char *p = memory(MUCH);
    int fd = open("file", O_RDWR);
    SAY(read(fd, p, MUCH));
    printf("%llx\n", digest(p, MUCH));
    TELL(status("VmRSS:") < resident + MUCH / 1024 + 2048);
    memset(p, 1, MUCH);
    SAY(pwrite(fd, p, MUCH, 0));
    TELL(status("VmRSS:") < resident + MUCH / 1024 + 2048);
    SAY(pread(fd, p, MUCH, 0));
    THIRD(WRITE, "file", 0, PAGE, 1);
    TELL(status("VmRSS:") < resident + MUCH / 1024 + 2048);
    THIRD(SUM, "file", 0, 0, 0);
}

/* As many descriptors as are open, and one. */
static void few_descriptors(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int lowest = dup(0);
    close(lowest);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = lowest + 1;
    SAY(setrlimit(RLIMIT_NOFILE, &limit));
    for (int round = 0; round < 4; round++) {
        if (round == 3)
            limit.rlim_max = lowest + 1;
        SAY(setrlimit(RLIMIT_NOFILE, &limit));
        int fd = open("file", round ? O_RDWR : O_RDONLY);
        SAY(fd == lowest);
        SAY(dup(fd));
        SAY(open("file", O_RDONLY));
        SAY(pread(fd, p, SIZE, 0));
        TELL(are_bytes(p, SIZE, 0, 1));
        if (round) {
            SAY(pwrite(fd, p, SIZE, 0));
            SAY(pwrite(fd, p, SIZE, 0));
        }
        SAY(dup(fd));
        THIRD(WRITE, "file", 0, PAGE, 1);
        TELL(are_bytes(p, SIZE, 0, 1));
        close(fd);
    }
    THIRD(SUM, "file", 0, 0, 0);
}

/* Hardly any address space is left: reads and writes need none, traditionally. In the last round the program itself sees to that. */
static void little_space(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE), *q = memory(SIZE);
    int fd = open("file", O_RDWR);
    for (int round = 0; round < 5; round++) {
        if (round == 0)
            SAY(pread(fd, q, SIZE, 0));
        struct rlimit limit = {(status("VmSize:") + 60) * 1024, RLIM_INFINITY};
        if (round == 4)
            setrlimit(RLIMIT_AS, &limit);
        else
            TELL(asked(LIMIT, "", 0, limit.rlim_cur, 0).result == 0);
        SAY(lseek(fd, 0, SEEK_SET));
        SAY(read(fd, p, SIZE));
        TELL(are_bytes(p, SIZE, 0, 1));
        SAY(pwrite(fd, p, SIZE, 0));
        THIRD(WRITE, "file", 0, PAGE, 1);
        THIRD(TRUNCATE, "file", 0, 10 * PAGE, 0);
        TELL(are_bytes(p, SIZE, 0, 1));
        SAY(pwrite(fd, p, SIZE, 0));
        limit.rlim_cur = RLIM_INFINITY;
        setrlimit(RLIMIT_AS, &limit);
        TELL(are_bytes(q, SIZE, 0, 1));
    }
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

/* No further process may be started, so nobody can hold guards: everything is as it ever was. */
static void no_processes(void) {
    as_ordinary_user("no_processes");
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    struct rlimit limit = {1, 1};
    SAY(setrlimit(RLIMIT_NPROC, &limit));
    SAY(fork());
    for (int round = 0; round < 3; round++) {
        int fd = open("file", O_RDWR);
        SAY(read(fd, p, SIZE));
        TELL(are_bytes(p, SIZE, 0, 1));
        SAY(pwrite(fd, p, SIZE, 0));
        SAY(pwrite(fd, p, SIZE, 0));
        THIRD(WRITE, "file", 0, SIZE, 1);
        SAY(fork());
        close(fd);
    }
    THIRD(SUM, "file", 0, 0, 0);
}

pid_t __fork(void);

/* Who wanted a file after a fork that had made no child waited for five seconds. */
static void failed_fork(void) {
    as_ordinary_user("failed_fork");
    for (int round = 0; round < 3; round++) {
        char name[2] = {'a' + round};
        THIRD(MAKE, name, 0, SIZE, 1);
        unsigned char *p = memory(SIZE);
        int fd = open(name, O_RDONLY);
        SAY(read(fd, p, SIZE));
        struct rlimit before, limit;
        getrlimit(RLIMIT_NPROC, &before);
        limit = (struct rlimit){1, before.rlim_max};
        SAY(setrlimit(RLIMIT_NPROC, &limit));
        SAY(round == 0 ? fork() : round == 1 ? __fork() : (int)syscall(SYS_fork));
        SAY(setrlimit(RLIMIT_NPROC, &before));
        alarm(4);
        THIRD(WRITE, name, 0, SIZE, 2);
        alarm(0);
        TELL(are_bytes(p, SIZE, 0, 1));
        close(fd);
    }
}

/* And so did who wanted it after a child was killed before it could take leases of its own. */
static void killed_child(void) {
    unsigned char *p = memory(SIZE);
    int failed = 0;
    alarm(4);
    for (int round = 0; round < 20; round++) {
        char name[8];
        sprintf(name, "%d", round);
        failed += asked(MAKE, name, 0, SIZE, 1).result != SIZE;
        int fd = open(name, O_RDONLY);
        failed += read(fd, p, SIZE) != SIZE;
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        kill(child, SIGKILL);
        failed += waitpid(child, NULL, 0) != child;
        failed += asked(WRITE, name, 0, SIZE, 2).result != SIZE;
        failed += !are_bytes(p, SIZE, 0, 1);
        close(fd);
    }
    alarm(0);
    SAY(failed);
}

/* A child that was stopped, or had to wait for a processor, for more than five seconds before it could take them lost what had not been loaded. */
static void slow_child(void) {
    unsigned char *p = memory(SIZE);
    THIRD(MAKE, "file", 0, SIZE, 1);
    int fd = open("file", O_RDONLY);
    SAY(read(fd, p, SIZE));
    pid_t child = fork();
    if (child == 0)
        _exit(!are_bytes(p, SIZE, 0, 1));
    kill(child, SIGSTOP);
    if (fork() == 0) {
        usleep(6500000);
        kill(child, SIGCONT);
        _exit(0);
    }
    THIRD(WRITE, "file", 0, SIZE, 2);
    int status;
    SAY(waitpid(child, &status, 0) == child && status == 0);
    SAY(wait(&status) > 0 && status == 0);
    TELL(are_bytes(p, SIZE, 0, 1));
}

static int queue;
static volatile int waits, failures;
static volatile pid_t waiter;

/* Waits for what never comes. */
static void *waits_for_ever(void *unused) {
    struct epoll_event event;
    for (waiter = syscall(SYS_gettid);; waits++)
        failures += epoll_wait(queue, &event, 1, -1) < 0 && errno == EINTR;
    return unused;
}

/* Until the thread is asleep. */
static void wait_until_asleep(pid_t tid) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    do {
        sched_yield();
        int fd = open(path, O_RDONLY);
        text[fd < 0 ? 0 : read(fd, text, sizeof text - 1)] = 0;
        close(fd);
    } while (!strstr(text, ") S"));
}

/* A call that fails with EINTR because the program was stopped fails still if somebody wants a file meanwhile, for which its
 * threads are held; and one that was not going to goes on. */
static void stopped(void) {
    pthread_t thread;
    queue = epoll_create1(0);
    pthread_create(&thread, NULL, waits_for_ever, NULL);
    while (!waiter)
        sched_yield();
    unsigned char *p = memory(SIZE);
    for (int round = 0; round < 6; round++) {
        char name[2] = {'a' + round};
        THIRD(MAKE, name, 0, SIZE, round);
        int fd = open(name, O_RDONLY);
        SAY(read(fd, p, SIZE));
        close(fd);
        wait_until_asleep(waiter);
        if (round % 2)
            THIRD(WRITE, name, 0, 9, 99);
        else
            THIRD(STOPPED_WRITE, name, 0, 9, 99);
        wait_until_asleep(waiter);
        SAY(waits);
        SAY(failures);
        TELL(are_bytes(p, SIZE, 0, round));
    }
}

/* Nearly as many mappings as a process may have: so many are left. */
static void mappings_left(int left) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE), *q = memory(SIZE);
    int fd = open("file", O_RDWR), limit_fd = open("/proc/sys/vm/max_map_count", O_RDONLY);
    char text[32] = "";
    read(limit_fd, text, sizeof text - 1);
    long limit = atol(text);
    if (limit > 200000) {
        printf("skipped: this machine allows %ld mappings\n", limit);
        return;
    }
    SAY(pread(fd, p, SIZE, 0));
    /* Every second page of a range has another protection, so each is a mapping of its own. */
    unsigned char *filler = mmap(NULL, (limit + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    long at = 0;
    while (at < limit && mprotect(filler + at * PAGE, PAGE, PROT_READ) == 0)
        at += 2;
    TELL(at < limit);
    /* Given back its protection, a page becomes one mapping with its neighbours: two are gained. */
    for (int i = 0; i < left; i += 2)
        at -= 2, mprotect(filler + at * PAGE, PAGE, PROT_NONE);
    TELL(are_bytes(p, SIZE, 0, 1));
    SAY(pread(fd, q, SIZE, 0));
    SAY(pread(fd, q + 10 * PAGE, 100 * PAGE, 10 * PAGE));
    TELL(are_bytes(q, SIZE, 0, 1));
    p[70 * PAGE] ^= 1;
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(pwrite(fd, p, SIZE, 0));
    THIRD(WRITE, "file", 0, 20 * PAGE, 2);
    p[70 * PAGE] ^= 1;
    TELL(are_bytes(p, SIZE, 0, 1) && are_bytes(q, SIZE, 0, 1));
    SAY(pread(fd, q, SIZE, 0));
    THIRD(REWRITE, "file", 0, SIZE, 1);
    TELL(are_bytes(q, 20 * PAGE, 0, 2));
    munmap(filler, (limit + 2) * PAGE);
    SAY(pread(fd, q, SIZE, 0));
    TELL(are_bytes(q, SIZE, 0, 1));
    close(fd);
    THIRD(SUM, "file", 0, 0, 0);
}

static void few_mappings(void) { mappings_left(4); }
static void no_mappings(void) { mappings_left(0); }

/* Threads that are cancelled anywhere in reads and writes: they unwind, and what they used can be used. */
static int in_thread;
static unsigned char *of_thread;
static void *again_and_again(void *unused) {
    for (;;) {
        pread(in_thread, of_thread, SIZE, 0);
        pwrite(in_thread, of_thread, SIZE, 0);
    }
    return unused;
}

static void cancelled(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    of_thread = memory(SIZE);
    in_thread = open("file", O_RDWR);
    SAY(pread(in_thread, of_thread, SIZE, 0));
    for (int round = 0; round < 10; round++) {
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, again_and_again, NULL);
        usleep(1000 + 700 * round);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        TELL(result == PTHREAD_CANCELED && are_bytes(of_thread, SIZE, 0, 1));
        SAY(pread(in_thread, of_thread, SIZE, 0));
    }
    THIRD(WRITE, "file", 0, SIZE, 2);
    TELL(are_bytes(of_thread, SIZE, 0, 1));
    SAY(pread(in_thread, of_thread, SIZE, 0));
    TELL(are_bytes(of_thread, SIZE, 0, 2));
}

/* A signal's handler reads and writes the same files into the same memory as what it interrupts. */
static int of_handler;
static unsigned char *in_handler;
static volatile long handled, wrong;
static void on_timer(int number) {
    int kept = errno;
    (void)number;
    wrong += pread(of_handler, in_handler, SIZE, 0) != SIZE;
    in_handler[7 * PAGE]++;
    wrong += pwrite(of_handler, in_handler, SIZE, 0) != SIZE;
    handled++;
    errno = kept;
}

static void interrupted(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    THIRD(MAKE, "other", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    in_handler = memory(SIZE);
    of_handler = open("other", O_RDWR);
    int fd = open("file", O_RDWR);
    signal(SIGALRM, on_timer);
    struct itimerval often = {{0, 2000}, {0, 2000}}, never = {0};
    setitimer(ITIMER_REAL, &often, NULL);
    for (int round = 0; handled < 20; round++) {
        wrong += pread(fd, p, SIZE, 0) != SIZE || !are_bytes(p + 100 * PAGE, 20 * PAGE, 100 * PAGE, 1);
        p[round % 50 * PAGE] ^= 1;
        wrong += pwrite(fd, p, SIZE, 0) != SIZE;
    }
    setitimer(ITIMER_REAL, &never, NULL);
    printf("%ld wrong\n", wrong);
    SAY(pread(of_handler, in_handler, SIZE, 0));
    unsigned char first[PAGE];
    bytes_at(first, PAGE, 7 * PAGE, 1);
    TELL((unsigned char)(first[0] + handled) == in_handler[7 * PAGE]);
    TELL(are_bytes(in_handler + 8 * PAGE, SIZE - 8 * PAGE, 8 * PAGE, 1));
}

static const struct row rows[] = {
    {"numbers", numbers}, {"released", released}, {"held", held}, {"few_descriptors", few_descriptors},
    {"little_space", little_space}, {"no_processes", no_processes}, {"failed_fork", failed_fork}, {"killed_child", killed_child}, {"slow_child", slow_child}, {"stopped", stopped}, {"few_mappings", few_mappings}, {"no_mappings", no_mappings},
    {"cancelled", cancelled}, {"interrupted", interrupted}, {0},
};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
