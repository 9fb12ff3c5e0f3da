// One buffer in a family of processes, and a file that changes: how much memory do all of them take, in KiB?
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "helper.h"

#define LEN (48 << 20)
#define MOST 16
#define CHILDREN 4

// Shared by all: who is alive, and how far they are.
static struct { pid_t members[MOST]; int count, settled, changed, touched; } *all;
static const char *when, *how;
static unsigned char *bytes;
static int altered = -1;

static int is(const char *a, const char *b) { return !strcmp(a, b); }

static void await(int *word, int value) {
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) < value)
        usleep(500);
}
static void count(int *word) { __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST); }

// No page is like its neighbours.
static unsigned char original(size_t at) { return at / 4096 * 37 + at / 512 % 8; }

static void make_file(void) {
    unsigned char *p = memory(LEN);
    for (size_t at = 0; at < LEN; at++)
        p[at] = original(at);
    int fd = open("file", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    need(write(fd, p, LEN) == LEN, "write");
    close(fd);
    munmap(p, LEN);
}

static int is_original(const unsigned char *p, size_t from, size_t to) {
    for (size_t at = from; at < to; at += 512)
        if (p[at] != original(at))
            return 0;
    return 1;
}

static int as_expected(void) {
    const size_t part = LEN / 8;
    for (int i = 0; i < 8; i++)
        if (!(i == altered ? bytes[i * part] == 7 : is_original(bytes, i * part, (i + 1) * part)))
            return 0;
    return 1;
}

// Alters an eighth of the buffer.
static void alter(int which) {
    if (is(how, "altered"))
        memset(bytes + LEN / 8 * (altered = which), 7, LEN / 8);
}

static int all_are(const unsigned char *from, size_t len, int value) {
    for (size_t at = 0; at < len; at++)
        if (from[at] != value)
            return 0;
    return 1;
}

// What is shared behaves as memory of one's own.
static int reshaped(void) {
    const size_t part = LEN / 8;
    int status;
    unsigned char *moved;
    if (madvise(bytes, part, MADV_DONTNEED) || !all_are(bytes, part, 0))
        return 0;
    memset(bytes + part, 9, part);
    moved = mremap(bytes, LEN, LEN + part, MREMAP_MAYMOVE);
    if (moved == MAP_FAILED || !all_are(moved + LEN, part, 0))
        return 0;
    pid_t child = fork();
    if (!child) {
        memset(moved + 2 * part, 1, part);
        _exit(!all_are(moved + 2 * part, part, 1) || !is_original(moved, 3 * part, LEN));
    }
    if (waitpid(child, &status, 0) != child || status)
        return 0;
    return all_are(moved, part, 0) && all_are(moved + part, part, 9) && is_original(moved, 2 * part, LEN);
}

static void join(void) { all->members[__atomic_fetch_add(&all->count, 1, __ATOMIC_SEQ_CST)] = getpid(); }

// Waits until the file has changed, touches every page, and waits until memory was measured.
static void stay(void) {
    join();
    count(&all->settled);
    await(&all->changed, 1);
    int good = as_expected();
    count(&all->touched);
    await(&all->changed, 2);
    _exit(!good || (is(how, "reshaped") && !reshaped()));
}

static void change(void) {
    int fd = open("file", O_WRONLY), second = 9;
    need(pwrite(fd, &second, 1, 12345) == 1 && !ftruncate(fd, 0), "a change");
    close(fd);
}

static void *changes(void *none) {
    change();
    return none;
}

static int passed(pid_t child) {
    int status;
    return waitpid(child, &status, 0) == child && status == 0;
}

// Reads, and has children. Those of the row "generations" have children themselves.
static void parent(void) {
    pid_t children[CHILDREN];
    int fd = open("file", O_RDONLY), good = 1;
    bytes = memory(LEN);
    need(read(fd, bytes, LEN) == LEN, "read");
    close(fd);
    volatile unsigned char sum = 0;
    for (size_t at = 0; at < LEN / 2; at += 4096)
        sum += bytes[at];
    if (is(when, "before"))
        count(&all->settled), await(&all->changed, 1);
    if (is(when, "during"))
        count(&all->settled);
    for (int i = 0; i < CHILDREN; i++)
        if (!(children[i] = fork())) {
            alter(i);
            if (!is(how, "generations"))
                stay();
            join();
            pid_t child = fork();
            if (!child)
                stay();
            _exit(!passed(child));
        }
    if (is(how, "orphans"))
        _exit(0);
    alter(CHILDREN);
    join();
    count(&all->settled);
    for (int i = 0; i < CHILDREN; i++)
        good &= passed(children[i]);
    _exit(!good || !as_expected());
}

// What a process and its relatives have of their own, each page counted once.
static long own_memory(pid_t process) {
    char path[64], line[200];
    long sum = 0;
    sprintf(path, "/proc/%d/smaps_rollup", process);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "Pss_Anon:", 9) || !strncmp(line, "Pss_Shmem:", 10))
            sum += atol(strchr(line, ':') + 1);
    need(file != NULL, path);
    fclose(file);
    return sum;
}

int main(int arguments, char **words) {
    alarm(60);
    when = words[1], how = words[arguments - 1];
    make_file();
    all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t first = fork();
    if (!first)
        parent();
    int rest = is(how, "orphans") ? CHILDREN : CHILDREN + 1;
    pthread_t other = 0;
    if (!is(when, "after")) {
        await(&all->settled, 1), rest++;
        pthread_create(&other, NULL, changes, NULL);
        if (is(when, "before"))
            pthread_join(other, NULL), other = 0;
        count(&all->changed);
    }
    if (is(how, "orphans"))
        need(passed(first), "the parent");
    await(&all->settled, rest);
    if (other)
        pthread_join(other, NULL);
    if (is(when, "after")) {
        pid_t one = is(how, "killed") ? helper(first, 0) : 0;
        pthread_create(&other, NULL, changes, NULL);
        if (one)
            kill(one, SIGKILL);
        pthread_join(other, NULL);
        count(&all->changed);
    }
    await(&all->touched, CHILDREN);
    long sum = 0;
    for (int i = 0; i < all->count; i++)
        sum += own_memory(all->members[i]);
    count(&all->changed);
    printf("%ld\n", sum);
    if (!is(how, "orphans"))
        need(passed(first), "a byte, or a child");
    return 0;
}
