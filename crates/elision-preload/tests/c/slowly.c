// Rights change while the helper takes its time: another process holds it, or its parent, by ptrace.
//
// slowly threads: two threads change rights, and the helper that is told to go is held.
// slowly next: the helper has been killed, and its parent is held, which would start the next one.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include "helper.h"

#define LEN (1 << 20)

static int orders[2], answers[2];

// Holds the process whose number it is given, until the next order.
static void holder(void) {
    pid_t pid, none;
    while (read(orders[0], &pid, sizeof pid) == sizeof pid) {
        int status;
        char good = !ptrace(PTRACE_SEIZE, pid, NULL, NULL) && !ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) &&
                    waitpid(pid, &status, __WALL) == pid;
        write(answers[1], &good, 1);
        if (read(orders[0], &none, sizeof none) != sizeof none)
            break;
        ptrace(PTRACE_DETACH, pid, NULL, NULL);
    }
    _exit(0);
}

static void hold(pid_t pid) {
    char good = 0;
    write(orders[1], &pid, sizeof pid), read(answers[0], &good, 1);
    if (!good) {
        printf("skipped: the helper cannot be traced\n");
        exit(0);
    }
}

static void let_go(void) {
    pid_t none = 0;
    write(orders[1], &none, sizeof none);
}

// A process that was killed and not waited for yet does nothing more.
static int lives(pid_t pid) {
    char path[40], text[512] = "";
    sprintf(path, "/proc/%d/stat", pid);
    FILE *stat = fopen(path, "r");
    if (!stat)
        return 0;
    text[fread(text, 1, sizeof text - 1, stat)] = 0;
    fclose(stat);
    char *end = strrchr(text, ')');
    return end && end[2] != 'Z' && end[2] != 'X';
}

static pid_t old;

static void *changes(void *there) {
    need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
    *(int *)there = lives(old);
    return NULL;
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need(count == 2 && !pipe(orders) && !pipe(answers), "pipe");
    if (!fork()) {
        close(orders[1]);
        holder();
    }
    close(orders[0]);
    make("file", LEN, 5);
    unsigned char *p = memory(LEN);
    int fd = open("file", O_RDONLY), there[2] = {0, 0};
    need(read(fd, p, LEN) == LEN, "read");
    close(fd);
    p[9] = 6;
    old = *words[1] == 't' ? helper(getpid(), 0) : supervisor(getpid());
    need(old != 0, "no helper");
    pid_t other = helper(getpid(), 0);
    hold(old);
    if (*words[1] == 't') {
        pthread_t threads[2];
        for (int i = 0; i < 2; i++)
            need(!pthread_create(&threads[i], NULL, changes, &there[i]), "pthread_create");
        // As long as a helper might take that has much to load. (No event says that somebody waits for nothing.)
        struct timespec time = {4, 0};
        nanosleep(&time, NULL);
        let_go();
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
    } else {
        need(!kill(other, SIGKILL), "kill");
        changes(&there[0]);
        let_go();
    }
    printf("there when rights had changed: %d %d\n", there[0], there[1]);
    for (int i = 0; i < LEN; i++)
        need(p[i] == (i == 9 ? 6 : 5), "a byte");
    if (*words[1] == 't')
        return 0;
    // The next one has the new rights. (Those of another thread are its own.)
    fd = open("file", O_RDONLY);
    need(read(fd, p, LEN) == LEN && p[9] == 5, "read");
    char line[100], path[40];
    sprintf(path, "/proc/%d/status", helper(getpid(), 0));
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "NoNewPrivs:", 11))
            printf("%s", line);
    return 0;
}
