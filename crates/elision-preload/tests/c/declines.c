// Transfers that are declined, one reason each.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
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
    } else if (!strcmp(how, "limit")) {
        pipes(1);
        // There is no room for a line then, and the attempt would be SIGXFSZ.
        need(!setrlimit(RLIMIT_FSIZE, &(struct rlimit){0, 0}), "setrlimit");
    } else if (!strcmp(how, "nothing")) {
        need(read(0, block, 100) >= 0, "read");
    } else {
        pipes(3);
    }
    no_helper();
    if (!strcmp(how, "_exit"))
        _exit(0);
}

int main(int count, char **words) {
    if (count < 2)
        return 2;
    block = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(block != MAP_FAILED, "mmap");
    if (!strcmp(words[1], "ends") && count > 2)
        ends(words[2]);
    else
        return 2;
    return 0;
}
