/* What a program does while it, or its helper, is killed, stopped or short of memory. */
#include "effects.h"
#include <glob.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>

/* Asks the third process and goes on working meanwhile, as a program does that has no part in what the other does. */
static void meanwhile(enum order order, const char *path, long at, long len, unsigned seed) {
    static unsigned char *p;
    struct command c = {.order = order, .at = at, .len = len, .seed = seed, .pid = getpid()};
    struct answer a;
    struct pollfd wait = {.fd = line_to_third, .events = POLLIN};
    int other = open("other", O_RDONLY);
    p = p ? p : memory(16 * PAGE);
    snprintf(c.path, sizeof c.path, "%s", path);
    write(line_to_third, &c, sizeof c);
    while (poll(&wait, 1, 5) == 0)
        if (pread(other, p, 16 * PAGE, 0) != 16 * PAGE)
            exit(1);
    close(other);
    if (read(line_to_third, &a, sizeof a) != sizeof a || a.result < 0)
        exit(1);
}

static void check(const char *what, int round, const unsigned char *is, const unsigned char *want, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (is[i] != want[i]) {
            printf("%s differs at %zu in round %d\n", what, i, round);
            exit(1);
        }
}

/* Reads, alters and writes, with another process that writes as well, until its input ends. Its model says what must be
 * where. The test kills the helper at any moment. */
static void edits(void) {
    static unsigned char model[SIZE], kept[SIZE], some[4000];
    unsigned state = 1;
    THIRD(MAKE, "file", 0, SIZE, 1);
    THIRD(MAKE, "other", 0, SIZE, 9);
    bytes_at(model, SIZE, 0, 1);
    printf("ready\n");
    struct pollfd input = {.fd = 0, .events = POLLIN};
    int round = 0;
    for (; poll(&input, 1, 0) == 0; round++) {
        unsigned char *p = memory(SIZE), *q = memory(SIZE);
        int fd = open("file", round % 3 ? O_RDWR : O_RDONLY);
        memcpy(kept, model, SIZE);
        if (read(fd, p, SIZE) != SIZE || pread(fd, q, SIZE, 0) != SIZE)
            exit(1);
        for (int i = 0; i < 20; i++) {
            size_t at = rand_r(&state) % SIZE;
            p[at] ^= 1, kept[at] ^= 1;
        }
        if (round % 4 == 2) {
            size_t at = rand_r(&state) % (200 * PAGE);
            meanwhile(WRITE, "file", at, 50 * PAGE, round);
            bytes_at(model + at, 50 * PAGE, at, round);
        }
        check("what was read", round, p, kept, SIZE);
        for (int i = 0; i < 3 && round % 3; i++) {
            if (pwrite(fd, p, SIZE, 0) != SIZE)
                exit(1);
            memcpy(model, kept, SIZE);
            size_t at = rand_r(&state) % SIZE;
            p[at] ^= 1, kept[at] ^= 1;
        }
        check("what was altered", round, p, kept, SIZE);
        for (size_t at = 0; at < SIZE; at += sizeof some) {
            size_t now = SIZE - at < sizeof some ? SIZE - at : sizeof some;
            if (pread(fd, some, now, at) != (ssize_t)now)
                exit(1);
            check("the file", round, some, model + at, now);
        }
        close(fd);
        munmap(p, SIZE), munmap(q, SIZE);
    }
    printf("done %d\n", round > 0);
}

/* Saves the same buffer over and over, each time with other bytes in every third page: of seed 1, then of seed 2. The test
 * kills it in the middle of that. */
static void saves(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR);
    if (read(fd, p, SIZE) != SIZE)
        exit(1);
    printf("ready\n");
    for (unsigned round = 1;; round++) {
        for (long page = round / 2 % 3; page < PAGES; page += 3)
            bytes_at(p + page * PAGE, PAGE, page * PAGE, 1 + round % 2);
        if (pwrite(fd, p, SIZE, 0) != SIZE)
            exit(1);
    }
}

/* Reads and waits; the test stops it, has another write, and lets it go on. */
static void holds(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDONLY);
    if (read(fd, p, SIZE) != SIZE)
        exit(1);
    p[5 * PAGE] ^= 1;
    printf("ready\n");
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    p[5 * PAGE] ^= 1;
    TELL(are_bytes(p, SIZE, 0, 1));
}

/* Saves, waits while another process changes the file, and saves again: the file is then what the memory is. */
static void saves_after_another(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE), *q = memory(SIZE);
    int fd = open("file", O_RDWR);
    bytes_at(p, SIZE, 0, 1);
    for (int i = 0; i < 3; i++) {
        p[9 * PAGE] ^= 1;
        if (pwrite(fd, p, SIZE, 0) != SIZE)
            exit(1);
    }
    printf("ready\n");
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    p[9 * PAGE] ^= 1;
    if (pwrite(fd, p, SIZE, 0) != SIZE)
        exit(1);
    close(fd);
    fd = open("file", O_RDONLY);
    for (long at = 0; at < SIZE; at += PAGE)
        pread(fd, q + at, at + PAGE < SIZE ? PAGE : SIZE - at, at);
    TELL(memcmp(p, q, SIZE) == 0);
}

/* Reads; the helper is killed; then somebody else writes, while this goes on with other files. */
static void orphaned(int flags) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    THIRD(MAKE, "other", 0, SIZE, 9);
    unsigned char *p = memory(SIZE);
    int fd = open("file", flags);
    char byte;
    if (read(fd, p, SIZE) != SIZE)
        exit(1);
    printf("ready\n");
    read(0, &byte, 1);
    meanwhile(WRITE, "file", 0, SIZE, 2);
    TELL(are_bytes(p, SIZE, 0, 1));
}

/* Reads a file and closes it. */
static void closed(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDONLY);
    if (read(fd, p, SIZE) != SIZE)
        exit(1);
    close(fd);
    printf("ready\n");
    char byte;
    read(0, &byte, 1);
    TELL(are_bytes(p, SIZE, 0, 1));
}

static void orphaned_reader(void) { orphaned(O_RDONLY); }
static void orphaned_writer(void) { orphaned(O_RDWR); }

/* Alters all of what it has read, and then somebody else writes to the file. */
static void altered(void) {
    enum { MUCH = 10240 * PAGE };
    THIRD(MAKE, "file", 0, MUCH, 1);
    unsigned char *p = memory(MUCH);
    int fd = open("file", O_RDONLY);
    if (read(fd, p, MUCH) != MUCH)
        exit(1);
    long many = 0;
    for (size_t at = 0; at < MUCH; at += PAGE)
        p[at] ^= 1;
    printf("ready\n");
    THIRD(TRUNCATE, "file", 0, PAGE, 0);
    for (size_t at = 0; at < MUCH; at += PAGE)
        p[at] ^= 1;
    /* What was one mapping is one. */
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        sscanf(line, "%lx-%lx", &from, &to);
        many += from < (unsigned long)p + MUCH && (unsigned long)p < to;
    }
    printf("%ld mappings\n", many);
    TELL(are_bytes(p, MUCH, 0, 1));
}

/* Alters all of a block that was read into, and makes it so long that it has to move. */
static void grown(void) {
    enum { MUCH = 10240 * PAGE, MORE = 18000 * PAGE };
    THIRD(MAKE, "file", 0, MUCH, 1);
    unsigned char *p = malloc(MUCH);
    int fd = open("file", O_RDONLY);
    if (read(fd, p, MUCH) != MUCH)
        exit(1);
    for (size_t at = 0; at < MUCH; at += PAGE)
        p[at] ^= 1;
    printf("ready\n");
    p = realloc(p, MORE);
    for (size_t at = 0; at < MUCH; at += PAGE)
        p[at] ^= 1;
    TELL(are_bytes(p, MUCH, 0, 1));
    free(p);
}

static sigjmp_buf out_of_there;
static void leave(int signal) { siglongjmp(out_of_there, signal); }

/* Prints what the pages of a buffer are, as runs: as the file was (=), altered since (+), a SIGBUS (!), or wrong (?). Of
 * `changed` pages the first byte is another. */
static void tell_pages(const char *when, const unsigned char *p, const int *changed) {
    static volatile long page;
    static volatile char last;
    last = 0;
    printf("%s:", when);
    for (page = 0; page < PAGES; page++) {
        volatile char is = '!';
        if (!sigsetjmp(out_of_there, 1)) {
            unsigned char copy[PAGE];
            memcpy(copy, p + page * PAGE, PAGE);
            int altered = 0;
            for (const int *one = changed; *one >= 0; one++)
                altered |= *one == page;
            copy[0] ^= altered;
            is = !are_bytes(copy, PAGE, page * PAGE, 1) ? '?' : altered ? '+' : '=';
        }
        if (is != last)
            printf(" %ld%c", page, is);
        last = is;
    }
    printf("\n");
}

/* The test has spoiled pages 40, 41 and 100 on the device. */
enum { BAD = 40 };
static const int changed[] = {3, 99, -1};

static unsigned char *read_and_alter(int fd) {
    signal(SIGBUS, leave);
    unsigned char *p = memory(SIZE);
    if (read(fd, p, SIZE) != SIZE)
        exit(1);
    p[3 * PAGE] ^= 1, p[99 * PAGE] ^= 1;
    printf("ready\n");
    return p;
}

/* Pages that the device does not deliver, of a file that somebody else then writes to. */
static void unreadable(void) {
    unsigned char *p = read_and_alter(open("file", O_RDONLY));
    int line[2];
    pipe(line);
    errno = 0;
    printf("to a pipe: %zd", write(line[1], p + BAD * PAGE, PAGE));
    printf(" %s\n", strerror(errno));
    THIRD(WRITE, "file", 0, SIZE, 2);
    tell_pages("written", p, changed);
    THIRD(TRUNCATE, "file", 0, 0, 0);
    tell_pages("truncated", p, changed);
    TELL(are_bytes(p + PAGES * PAGE, SIZE - PAGES * PAGE, PAGES * PAGE, 1));
    /* The memory is good for something else. */
    THIRD(MAKE, "other", 0, SIZE, 9);
    TELL(read(open("other", O_RDONLY), p, SIZE) == SIZE && are_bytes(p, SIZE, 0, 9));
}

/* The same where they were touched before; and what becomes of the memory when it is given back. */
static void unreadable_touched(void) {
    static const unsigned char zeroes[SIZE];
    int fd = open("file", O_RDONLY);
    unsigned char *block = malloc(SIZE);
    TELL(read(fd, block, SIZE) == SIZE);
    lseek(fd, 0, SEEK_SET);
    unsigned char *p = read_and_alter(fd);
    tell_pages("touched", p, changed);
    THIRD(TRUNCATE, "file", 0, 0, 0);
    tell_pages("truncated", p, changed);
    TELL(madvise(p, PAGES * PAGE, MADV_DONTNEED) == 0 && memcmp(p, zeroes, PAGES * PAGE) == 0);
    free(block);
    block = malloc(SIZE);
    if (!sigsetjmp(out_of_there, 1))
        memset(block, 1, SIZE);
    TELL(block[BAD * PAGE] == 1);
}

/* Pages that the device does not deliver, in a buffer that is saved: to its place, to a file that can share the blocks, to one that
 * cannot; and in the end one of them is written to by other means. */
static void unreadable_saved(void) {
    static unsigned char other[PAGE];
    int fd = open("file", O_RDWR);
    int copy = open("copy", O_RDWR | O_CREAT, 0600), shifted = open("shifted", O_RDWR | O_CREAT, 0600);
    unsigned char *p = read_and_alter(fd);
    TELL(pwrite(fd, p, SIZE, 0) == SIZE);
    TELL(pwrite(copy, p, SIZE, 0) == SIZE);
    TELL(pread(copy, other, PAGE, BAD * PAGE) == -1 && errno == EIO);
    TELL(pread(copy, other, PAGE, 0) == PAGE && memcmp(other, p, PAGE) == 0);
    long done = pwrite(shifted, p, SIZE, 1);
    printf("to another file: %s\n", done < 0 ? strerror(errno) : done <= BAD * PAGE ? "not beyond" : "too much");
    bytes_at(other, PAGE, BAD * PAGE, 2);
    TELL(pwrite(fd, other, PAGE, BAD * PAGE) == PAGE);
    tell_pages("written", p, changed);
    memset(other, 0, PAGE);
    TELL(pread(fd, other, PAGE, BAD * PAGE) == PAGE && are_bytes(other, PAGE, BAD * PAGE, 2));
    TELL(pread(fd, other, PAGE, (BAD + 1) * PAGE) == -1 && errno == EIO);
    for (const int *one = changed; *one >= 0; one++) {
        TELL(pread(fd, other, PAGE, *one * PAGE) == PAGE && memcmp(other, p + *one * PAGE, PAGE) == 0);
    }
}

static atomic_int over;

static void *reads_and_frees(void *unused) {
    while (!over) {
        int fd = open("file", O_RDONLY | O_CLOEXEC);
        unsigned char *p = malloc(SIZE);
        if (read(fd, p, SIZE) != SIZE || !are_bytes(p, SIZE, 0, 1))
            exit(1);
        free(p);
        close(fd);
    }
    return unused;
}

/* Have all children of the name in /proc/PROCESS/task, and of their children those that are helpers, this effective group? */
static int children_have_group(const char *process, const char *called, gid_t group, int *helpers) {
    glob_t lists = {0};
    int good = 1;
    char pattern[64];
    snprintf(pattern, sizeof pattern, "/proc/%s/task/*/children", process);
    glob(pattern, 0, NULL, &lists);
    for (size_t i = 0; i < lists.gl_pathc; i++) {
        FILE *children = fopen(lists.gl_pathv[i], "r");
        for (int pid; children && fscanf(children, "%d", &pid) == 1;) {
            char path[64], line[256], name[32] = "";
            snprintf(path, sizeof path, "/proc/%d/status", pid);
            FILE *status = fopen(path, "r");
            unsigned real, effective;
            while (status && fgets(line, sizeof line, status)) {
                sscanf(line, "Name: %31s", name);
                if (sscanf(line, "Gid: %u %u", &real, &effective) == 2 && !strcmp(name, called))
                    good &= effective == group, ++*helpers;
            }
            if (status)
                fclose(status);
            int below = 0;
            snprintf(path, sizeof path, "%d", pid);
            if (!strcmp(name, "elision-watch"))
                good &= children_have_group(path, "elision", group, &below);
        }
        if (children)
            fclose(children);
    }
    globfree(&lists);
    return good;
}

/* Has the helper, if there is one, this effective group? Its parent is a child of the thread that needed it first. Counts in `helpers`
 * how many there are, dead ones included. */
static int helpers;
static int helper_has_group(gid_t group) {
    helpers = 0;
    return children_have_group("self", "elision-watch", group, &helpers);
}

/* Rights change again and again, in two threads, while others need a helper. */
static void *changes_rights(void *unused) {
    for (int i = 0; i < 60; i++)
        setgid(getgid());
    return unused;
}

static void rights(void) {
    pthread_t threads[4];
    gid_t group = getegid(), other = geteuid() == 0 ? 1 : group;
    THIRD(MAKE, "file", 0, SIZE, 1);
    printf("ready\n");
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, reads_and_frees, NULL);
    int good = 1;
    for (int i = 0; i < 60; i++) {
        gid_t now = i % 2 ? group : other;
        good &= setegid(now) == 0 && helper_has_group(now);
    }
    TELL(good);
    TELL(setegid(group) == 0);
    pthread_create(&threads[3], NULL, changes_rights, NULL);
    changes_rights(NULL);
    pthread_join(threads[3], NULL);
    over = 1;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    /* There is a helper again, afterwards. */
    unsigned char *p = memory(SIZE);
    TELL(read(open("file", O_RDONLY), p, SIZE) == SIZE && are_bytes(p, SIZE, 0, 1));
}

static atomic_int saves_done;

/* Saves "other" over and over, as `saves` does. */
static void *saves_another(void *buffer) {
    unsigned char *p = buffer;
    int fd = open("other", O_RDWR | O_CLOEXEC);
    if (pread(fd, p, SIZE, 0) != SIZE)
        exit(1);
    for (unsigned round = 1; !over; round++) {
        for (long page = round / 2 % 3; page < PAGES; page += 3)
            bytes_at(p + page * PAGE, PAGE, page * PAGE, 1 + round % 2);
        if (pwrite(fd, p, SIZE, 0) != SIZE)
            exit(1);
        saves_done++;
    }
    return NULL;
}

static void *becomes_itself(void *unused) {
    /* At any time, but not always before the first save. */
    for (int saves = rand() % 4; saves_done < saves;)
        usleep(100);
    usleep(rand() % 3000);
    close(line_to_third);
    execl("/proc/self/exe", "faults", "execs", ".", (char *)NULL);
    perror("exec");
    exit(1);
    return unused;
}

/* Puts itself in its own place again and again, from one thread or another, while others read and write. */
static void execs(void) {
    enum { TIMES = 40 };
    const char *before = getenv("FAULTS_TIMES");
    int times = before ? atoi(before) : 0;
    char now[16];
    snprintf(now, sizeof now, "%d", times + 1);
    setenv("FAULTS_TIMES", now, 1);
    srand(times);
    if (times == 0) {
        THIRD(MAKE, "file", 0, SIZE, 1);
        THIRD(MAKE, "other", 0, SIZE, 1);
        printf("ready\n");
    }
    /* Each page of what was being saved is of one save or the other. */
    unsigned char *p = memory(SIZE);
    int fd = open("other", O_RDONLY);
    TELL(read(fd, p, SIZE) == SIZE);
    close(fd);
    int good = 1;
    for (long page = 0; page < PAGES; page++)
        good &= are_bytes(p + page * PAGE, PAGE, page * PAGE, 1) || are_bytes(p + page * PAGE, PAGE, page * PAGE, 2);
    TELL(good);
    if (times == TIMES) {
        /* Nobody holds a lease that was taken before. */
        THIRD(WRITE, "file", 0, SIZE, 2);
        THIRD(WRITE, "other", 0, SIZE, 2);
        /* Nor is any of their helpers left. */
        helper_has_group(getegid());
        TELL(helpers <= 1);
        printf("%d times\n", times);
        return;
    }
    pthread_t threads[4];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, reads_and_frees, NULL);
    pthread_create(&threads[2], NULL, saves_another, p);
    if (times % 2)
        becomes_itself(NULL);
    pthread_create(&threads[3], NULL, becomes_itself, NULL);
    pthread_join(threads[3], NULL);
}

static const struct row rows[] = {{"edits", edits},
                                  {"saves", saves},
                                  {"holds", holds},
                                  {"closed", closed},
                                  {"saves_after_another", saves_after_another},
                                  {"orphaned_reader", orphaned_reader},
                                  {"orphaned_writer", orphaned_writer},
                                  {"altered", altered},
                                  {"grown", grown},
                                  {"rights", rights},
                                  {"execs", execs},
                                  {"unreadable", unreadable},
                                  {"unreadable_touched", unreadable_touched},
                                  {"unreadable_saved", unreadable_saved},
                                  {0}};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
