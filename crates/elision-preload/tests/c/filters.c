// A program under a system call filter that it does not know of.
//
// filters ACTION NUMBERS [LIBRARY]: makes a file, has these system calls kill ("kill") or fail with EPERM ("refuse"), and becomes the program
// itself, with the drop-in if a library is named.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "helper.h"

#define LEN (1 << 20)

static void confine(unsigned action, char *numbers) {
    struct sock_filter filter[64] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    int at = 1;
    for (char *number = strtok(numbers, ","); number && at < 60; number = strtok(NULL, ",")) {
        filter[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(number), 0, 1);
        filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
    }
    filter[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {at, filter};
    need(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
    need(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0), "PR_SET_SECCOMP");
}

static unsigned sum(const unsigned char *p) {
    unsigned sum = 0;
    for (int i = 0; i < LEN; i++)
        sum = sum * 31 + p[i];
    return sum;
}

// By a child of this kind, what was read has to be the same. (A program without the drop-in needs no more of the kernel for this than a big
// read does.)
static void in_a_child(pid_t child, const unsigned char *p, unsigned expected) {
    int status = -1;
    if (!child)
        _exit(sum(p) == expected ? 7 : 8);
    waitpid(child, &status, 0);
    printf("child: %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

static void run(void) {
    unsigned char *p = memory(LEN), *q = memory(LEN);
    int fd = open("file", O_RDONLY);
    printf("%zd", read(fd, p, LEN));
    close(fd);
    unsigned before = sum(p);
    printf(" %u\n", before);
    in_a_child(fork(), p, before);
    fd = open("file", O_RDWR);
    printf("%zd", pread(fd, q, LEN, 0));
    printf(" %u\n", sum(q));
    for (int i = 0; i < 3; i++) {
        q[5000 + 8192 * i] ^= 255;
        printf("%zd\n", pwrite(fd, q, LEN, 0));
    }
    in_a_child(vfork(), q, sum(q));
    q[9] ^= 255;
    printf("%zd\n", pwrite(fd, q, LEN, 0));
    close(fd);
    fd = open("file", O_RDONLY);
    printf("%zd", pread(fd, q, LEN, 0));
    printf(" %u %d\n", sum(q), sum(p) == before);
    fflush(stdout);
}

int main(int count, char **words) {
    if (count == 1) {
        run();
        return 0;
    }
    make("file", LEN, 5);
    if (count > 3)
        setenv("LD_PRELOAD", words[3], 1);
    char *program[] = {words[0], NULL};
    confine(*words[1] == 'k' ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | EPERM, words[2]);
    execv(words[0], program);
    return 9;
}
