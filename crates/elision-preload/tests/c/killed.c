// The helper is killed at a point that is chosen: so many system calls and so many instructions after something is asked of it. A second
// process, of which nothing is deferred, has it run as far as that.
//
// killed ROUNDS [SEED]: what is done takes turns, and where the helper is killed is left to chance.
// killed ROUNDS SEED full: the same where there is room for no mapping, always with what needs one.
// killed ROUNDS SEED own: the same, between two instructions at which the kernel is called, beside a mapping of the program's own.
// killed ROUNDS SEED walk ROW CALLS: always the same is done, and the helper is killed an instruction later each time.
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include "helper.h"

#define LEN (64 << 10)
#define ROWS 14

struct plan {
    pid_t helper;
    // Its parent, if that is to be killed before, so that the program itself has to see to the next one.
    pid_t before;
    int calls, steps;
    // The next one, too, as soon as it is there; and so many more, at sight.
    int again;
};
static int plans[2], answers[2];

static long ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

// Lets it go on until it stops again. False: it has died, or sleeps, having done what it was asked.
static int on(int how, pid_t pid, int *status) {
    int signal = WSTOPSIG(*status) & 0x7f, got;
    if (signal == SIGTRAP || *status >> 16)
        signal = 0;
    if (ptrace(how, pid, NULL, signal))
        return 0;
    long begun = ms();
    while (!(got = waitpid(pid, status, __WALL | WNOHANG)) && ms() - begun < 250)
        sched_yield();
    return got == pid && WIFSTOPPED(*status);
}

static int seize(pid_t pid, int *status) {
    return !ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACESYSGOOD) && !ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) &&
           waitpid(pid, status, __WALL) == pid && WIFSTOPPED(*status);
}

static void lead(struct plan plan, int status) {
    int alive = 1;
    if (plan.before)
        kill(plan.before, SIGKILL);
    // Each call is two stops.
    for (int i = 0; alive && i < 2 * plan.calls; i++)
        alive = on(PTRACE_SYSCALL, plan.helper, &status);
    for (int i = 0; alive && i < plan.steps; i++)
        alive = on(PTRACE_SINGLESTEP, plan.helper, &status);
    kill(plan.helper, SIGKILL);
    // Until it is no more: one who is about to die is not missed yet.
    while (waitpid(plan.helper, &status, __WALL) == plan.helper && WIFSTOPPED(status))
        ;
}

static void killer(void) {
    struct plan plan;
    while (read(plans[0], &plan, sizeof plan) == sizeof plan) {
        int status = 0;
        char good = seize(plan.helper, &status);
        write(answers[1], &good, 1);
        if (!good)
            continue;
        lead(plan, status);
        pid_t next = 0, last = plan.helper;
        plan.before = 0;
        // Who waits for an answer looks ten times a second whether there is still somebody who gives it.
        for (long begun = ms(); plan.again == 1 && !next && ms() - begun < 250;)
            next = helper(getppid(), last);
        plan.helper = next;
        if (next && seize(next, &status))
            lead(plan, status);
        for (long begun = ms(); plan.again > 1 && ms() - begun < 250;) {
            pid_t youngest = helper(getppid(), last);
            if (youngest)
                kill(last = youngest, SIGKILL), plan.again--;
        }
        // Before the next plan is made.
        write(answers[1], &good, 1);
    }
    _exit(0);
}

// The round, and what is done in it.
static char what[200];
static const char *at;

static void ended(int signal) {
    char text[300];
    int len = snprintf(text, sizeof text, "%s, %s: signal %d\n", what, at, signal);
    write(1, text, len);
    _exit(1);
}

// There is room for no mapping.
static int full;

static void same(const volatile unsigned char *p, int first, int byte) {
    // Where pages are exchanged one by one, the one that a helper had in hand reads as zeroes until the next one is there.
    for (int i = 0; i < LEN; i++) {
        for (long begun = ms(); full && !p[i] && ms() - begun < 10000;)
            sched_yield();
        if (p[i] != (i == 4096 ? first : byte)) {
            printf("%s, %s: %d is %d\n", what, at, i, p[i]);
            exit(1);
        }
    }
}

// Leaves no room for another mapping. Every second page has another protection, so each is one of its own.
static size_t filler_len;
static unsigned char *fill(void) {
    long limit = 65530;
    FILE *setting = fopen("/proc/sys/vm/max_map_count", "r");
    fscanf(setting, "%ld", &limit);
    fclose(setting);
    filler_len = (limit + 2) * 4096;
    unsigned char *filler = mmap(NULL, filler_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (size_t at = 0; at < filler_len && !mprotect(filler + at, 4096, PROT_READ); at += 8192)
        ;
    return filler;
}

int main(int count, char **words) {
    full = count > 3 && !strcmp(words[3], "full");
    int own_mapping = count > 3 && !strcmp(words[3], "own");
    int walk = count > 5 && !strcmp(words[3], "walk");
    int rounds = count > 1 ? atoi(words[1]) : 0;
    unsigned seed = count > 2 ? atoi(words[2]) : 1;
    int killed = 0;
    signal(SIGBUS, ended), signal(SIGSEGV, ended), signal(SIGALRM, ended);
    need(!pipe(plans) && !pipe(answers), "pipe");
    pid_t other = fork();
    if (!other) {
        close(plans[1]);
        killer();
    }
    close(plans[0]);
    make("other", LEN, 7);
    int from = open("other", O_RDONLY), own = open("other", O_RDONLY);
    unsigned char *always = memory(LEN);
    for (int round = 0; round < rounds; round++) {
        // Whoever waits for a lease waits for 45 s.
        alarm(30);
        at = "begun";
        int row = full ? 3 : walk ? atoi(words[4]) : round % ROWS, alone = round / ROWS % 2;
        make("cut", LEN, 5);
        int fd = open("cut", row == 1 ? O_RDONLY : O_RDWR);
        unsigned char *p = row == 10 ? malloc(LEN) : memory(LEN);
        volatile unsigned char *look = NULL;
        if (own_mapping) {
            // Twice what the file has now.
            look = mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
            need(look != MAP_FAILED && look[0] == 5, "mmap");
        }
        if (row > 1)
            need(pread(fd, p, LEN, 0) == LEN, "pread");
        if (row > 2)
            p[4096] = 9;
        // There is one, and in some rounds nothing else that depends on it.
        need(pread(from, always, LEN, 0) == LEN, "pread");
        if (alone)
            munmap(always, LEN);
        struct plan plan = {helper(getpid(), 0), 0, rand_r(&seed) % 24, 1 << rand_r(&seed) % 10, 0};
        plan.steps = rand_r(&seed) % plan.steps;
        int chance = rand_r(&seed) % 32;
        plan.again = chance < 2 ? 1 : chance == 2 ? 6 : 0;
        if (own_mapping)
            plan.steps = 0;
        if (walk)
            plan.calls = atoi(words[5]), plan.steps = round, plan.again = 0;
        if (rand_r(&seed) % 2)
            plan.before = supervisor(getpid());
        sprintf(what, "round %d, %d calls, %d steps, again %d, %s", round, plan.calls, plan.steps, plan.again,
                plan.before ? "both" : "one");
        at = "asked";
        unsigned char *filler = NULL;
        if (full)
            filler = fill(), plan.calls *= 3;
        char good = 0;
        if (plan.helper) {
            write(plans[1], &plan, sizeof plan);
            need(read(answers[0], &good, 1) == 1, "read");
            if (!good) {
                printf("skipped: this user may not trace what is not his child\n");
                return 0;
            }
            killed++;
        }
        switch (row) {
        case 0:
        case 1:
            need(pread(fd, p, LEN, 0) == LEN, what);
            break;
        case 2:
        case 3:
            need(!ftruncate(fd, LEN / 2), what);
            break;
        case 4:
            need(pwrite(fd, p, LEN, 0) == LEN, what);
            break;
        case 5:
            need(!mprotect(p + 4096, 4096, PROT_READ), what);
            break;
        case 6: {
            pid_t child = fork();
            if (!child) {
                close(plans[1]);
                same(p, 9, 5);
                _exit(0);
            }
            int status;
            need(waitpid(child, &status, 0) == child && !status, what);
            break;
        }
        case 7: {
            unsigned char *place = memory(LEN);
            p = mremap(p, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, place);
            need(p == place, what);
            break;
        }
        case 8:
            // (A mapping of the program's own keeps the description, and its lease, for as long as the kernel waits.)
            if (!look)
                close(fd), fd = -1;
            break;
        case 9:
            munmap(p, LEN);
            p = NULL;
            break;
        case 10:
            p = realloc(p, 4 * LEN);
            break;
        case 11:
            need(!madvise(p, LEN / 2, MADV_DONTNEED), what);
            for (int i = 0; i < LEN / 2; i++)
                need(!p[i], what), p[i] = i == 4096 ? 9 : 5;
            break;
        case 12:
            need(!setresuid(-1, -1, -1), what);
            break;
        case 13:
            need(execl("none", "none", NULL) < 0, what);
        }
        at = "answered";
        if (plan.helper) {
            // What was asked for may be done in fewer steps.
            kill(plan.helper, SIGKILL);
            need(read(answers[0], &good, 1) == 1, what);
        }
        if (full)
            munmap(filler, filler_len);
        if (p)
            same(p, row > 2 ? 9 : 5, 5);
        if (row == 4) {
            unsigned char *now = memory(LEN);
            for (int i = 0; i < LEN; i += 1000)
                pread(fd, now + i, i + 1000 > LEN ? LEN - i : 1000, i);
            same(now, 9, 5);
            munmap(now, LEN);
        }
        if (alone)
            always = memory(LEN);
        else
            same(always, 7, 7);
        at = "cut";
        need(!truncate("cut", 0), what);
        if (p)
            same(p, row > 2 ? 9 : 5, 5);
        else
            p = memory(LEN);
        if (look) {
            at = "made anew";
            make("cut", LEN, 6);
            need(!truncate("cut", 2 * LEN), what);
            for (int i = 0; i < 2 * LEN; i += 4096)
                if (look[i] != (i < LEN ? 6 : 0)) {
                    printf("%s: the program's own mapping has %d at %d\n", what, look[i], i);
                    return 1;
                }
            munmap((void *)look, 2 * LEN);
        }
        need(pread(own, p, row == 5 ? 4096 : LEN, 0) > 0 && p[0] == 7, what);
        if (row == 10)
            free(p);
        else
            munmap(p, LEN);
        if (fd >= 0)
            close(fd);
    }
    close(plans[1]);
    need(waitpid(other, NULL, 0) == other, "wait");
    printf("done %d\n", killed);
    return 0;
}
