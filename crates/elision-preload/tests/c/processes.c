/* Descriptors shared with, or lost to, others. */
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { BIG = 1 << 20 };
extern char **environ;
static unsigned char *bytes, *buf;

static int wait_for(pid_t child) {
    int status = -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static int in_clone(void *argument) {
    int fd = *(int *)argument;
    return pwrite(fd, "clone", 5, 300) == 5 && read(fd, buf, 1000) == 1000 ? 21 : 22;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    bytes = malloc(BIG), buf = malloc(BIG);
    fill(bytes, BIG, 3);
    int fd = open("data", O_RDWR | O_CREAT | O_TRUNC, 0600);
    SAY(write(fd, bytes, BIG));
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(read(fd, buf, BIG));
    SAY(lseek(fd, 0, SEEK_SET));

    pid_t child = fork();
    if (child == 0) {
        ssize_t got = read(fd, buf, 100000);
        pwrite(fd, "fork", 4, 0);
        _exit(got == 100000 ? 11 : 12);
    }
    SAY(wait_for(child));
    WHERE(fd);
    SUM(buf, BIG);
    SAY(pread(fd, buf, BIG, 0));
    SUM(buf, BIG);

    child = _Fork();
    if (child == 0)
        _Exit(pwrite(fd, bytes, BIG, 4096) == BIG ? 13 : 14);
    SAY(wait_for(child));
    child = syscall(SYS_fork);
    if (child == 0)
        syscall(SYS_exit_group, pwrite(fd, "raw", 3, 10) == 3 ? 15 : 16);
    SAY(wait_for(child));
    SAY(lseek(fd, 0, SEEK_SET));
    char *stack = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SAY(wait_for(clone(in_clone, stack + BIG, SIGCHLD, &fd)));
    SAY(wait_for(clone(in_clone, stack + BIG, CLONE_VM | CLONE_VFORK | SIGCHLD, &fd)));
    WHERE(fd);

    /* vfork: an exec, a failing exec, values kept on the stack, and descriptors rearranged in the child. */
    for (volatile int round = 0; round < 3; round++) {
        volatile int seen = 0;
        char keep[64];
        memset(keep, 'k', sizeof keep);
        child = vfork();
        if (child == 0) {
            seen = 1;
            int other = open("data", O_RDWR);
            dup2(other, 50);
            close(other);
            if (round == 0)
                execl("/bin/sh", "sh", "-c", "exit 31", NULL);
            if (round == 1)
                execl("/none", "none", NULL);
            _exit(32 + round);
        }
        printf("vfork %d %d %c\n", seen, wait_for(child), keep[63]);
        SAY(fcntl(50, F_GETFD));
    }

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 1);
    char *arguments[] = {"sh", "-c", "echo spawned; exit 33", NULL};
    SAY(lseek(fd, 500, SEEK_SET));
    SAY(posix_spawn(&child, "/bin/sh", &actions, NULL, arguments, environ));
    SAY(wait_for(child));
    WHERE(fd);
    arguments[2] = "exit 36"; /* Nothing said: it would be said while we say something, too. */
    SAY(posix_spawnp(&child, "sh", NULL, NULL, arguments, environ));
    SAY(wait_for(child));
    SAY(posix_spawnp(&child, "no such program", NULL, NULL, arguments, environ));
    fflush(stdout);
    SAY(WEXITSTATUS(system("echo from system; exit 34")));
    FILE *stream = popen("echo from popen; exit 35", "r");
    SAY(fread(buf, 1, BIG, stream));
    SAY(WEXITSTATUS(pclose(stream)));

    /* Duplicates and their ends. */
    int copy = dup(fd), high = fcntl(fd, F_DUPFD, 100), closed = fcntl(fd, F_DUPFD_CLOEXEC, 200);
    SAY(copy);
    SAY(high);
    SAY(closed);
    SAY(fcntl(closed, F_GETFD));
    SAY(dup2(high, 60));
    SAY(dup3(high, 61, O_CLOEXEC));
    SAY(dup3(high, high, 0));
    SAY(dup2(high, high));
    SAY(dup2(999, 60));
    SAY(read(60, buf, 1000));
    int other = open("other", O_RDWR | O_CREAT, 0600);
    SAY(write(other, bytes, 50000));
    SAY(dup2(other, 60));
    SAY(pread(60, buf, BIG, 0));
    SAY(pwrite(60, "over", 4, 0));
    SAY(close(60));
    SAY(close(60));
    SAY(read(60, buf, BIG));
    SAY(close_range(100, 150, 0));
    SAY(read(high, buf, BIG));
    SAY(close_range(200, 210, CLOSE_RANGE_CLOEXEC));
    SAY(fcntl(closed, F_GETFD));
    SAY(close_range(10, 5, 0));
    closefrom(61);
    SAY(read(61, buf, 1));
    SAY(read(closed, buf, 1));
    SAY(fcntl(fd, F_GETFL) & O_ACCMODE);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    SAY(fcntl(fd, F_SETLK, &lock));

    /* A descriptor sent and received. */
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    char control[CMSG_SPACE(sizeof(int))] = {0};
    char byte = 'b';
    struct iovec v = {&byte, 1};
    struct msghdr message = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    SAY(sendmsg(pair[0], &message, 0));
    SAY(recvmsg(pair[1], &message, 0));
    int received;
    memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof received);
    SAY(pwrite(received, "received", 8, 700));
    SAY(pread(fd, buf, BIG, 0));
    SUM(buf, BIG);
    SAY(sendmsg(pair[0], (void *)16, 0));
    SAY(sendmsg(pair[0], NULL, 0));

    /* The same calls by number. */
    SAY(syscall(SYS_pread64, fd, buf, (size_t)BIG, 0l));
    SAY(syscall(SYS_lseek, fd, 10l, SEEK_SET));
    SAY(syscall(SYS_read, fd, buf, (size_t)BIG));
    SAY(syscall(SYS_write, fd, bytes, (size_t)5000));
    SAY(syscall(SYS_pwrite64, fd, bytes, (size_t)BIG, 4096l));
    struct iovec two[2] = {{buf, 100000}, {buf + 200000, 300000}};
    SAY(syscall(SYS_preadv, fd, two, 2l, 0l, 0l));
    SAY(syscall(SYS_pwritev, fd, two, 2l, 100l, 0l));
    SAY(syscall(SYS_writev, fd, two, 2l));
    SAY(syscall(SYS_readv, fd, two, 2l));
    SAY(syscall(SYS_read, -1l, buf, (size_t)BIG));
    SAY(syscall(SYS_openat, AT_FDCWD, "by number", O_CREAT | O_RDWR, 0600) > 0);
    SAY(syscall(SYS_open, "by number", O_RDWR, 0) > 0);
    int duplicate = syscall(SYS_dup, fd);
    SAY(syscall(SYS_ftruncate, duplicate, (long)BIG / 2));
    SAY(syscall(SYS_close, duplicate));
    SAY(syscall(SYS_close, duplicate));
    SAY(syscall(SYS_getpid) == getpid());
    SAY(syscall(9999));
    void *mapped = (void *)syscall(SYS_mmap, 0l, (long)BIG, (long)(PROT_READ | PROT_WRITE),
                                   (long)(MAP_PRIVATE | MAP_ANONYMOUS), -1l, 0l);
    SAY(pread(fd, mapped, BIG, 0));
    SUM(mapped, BIG);
    SAY(syscall(SYS_madvise, mapped, (long)BIG, (long)MADV_DONTNEED));
    SUM(mapped, BIG);
    SAY(syscall(SYS_munmap, mapped, (long)BIG));

    int terminal;
    child = forkpty(&terminal, NULL, NULL, NULL);
    if (child == 0)
        _exit(pwrite(fd, "pty", 3, 900) == 3 ? 41 : 42);
    SAY(wait_for(child));
    SAY(pread(fd, buf, BIG, 0));
    SUM(buf, BIG);

    /* A lease of the program's own: the last of all, since nothing is deferred from then on. */
    SAY(fcntl(fd, F_SETLEASE, F_RDLCK));
    SAY(fcntl(fd, F_GETLEASE));
    return 0;
}
