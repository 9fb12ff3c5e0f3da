// A program that confines itself to the system calls that it makes, and is killed when it makes another.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LEN (1 << 20)
#define ALLOW(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

// What libc needs for the calls below, and no more: no fstat for lseek, no statx for open, no clone; and for its heap brk alone, as set below.
static struct sock_filter filter[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    ALLOW(read), ALLOW(pread64), ALLOW(write), ALLOW(openat), ALLOW(lseek), ALLOW(close), ALLOW(ftruncate),
    ALLOW(brk), ALLOW(exit_group),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
};

static unsigned long sum(const unsigned char *block, long len) {
    unsigned long sum = 0;
    for (long i = 0; i < len; i++)
        sum = sum * 31 + block[i];
    return sum;
}

// Arguments: by which call; whether something is deferred already.
int main(int count, char **words) {
    if (count < 3)
        return 2;
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    unsigned char *block = aligned_alloc(4096, LEN), *other = aligned_alloc(4096, LEN);
    for (long i = 0; i < LEN; i++)
        block[i] = i * 7 + i / 4096;
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (write(fd, block, LEN) != LEN)
        return 3;
    if (*words[2] == 'y')
        printf("%zd\n", pread(fd, other, LEN, 0));

    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    // What a library does to find out: it must change nothing.
    printf("%d\n", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL, 0, 0));
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    fflush(stdout);
    if (*words[1] == 's' ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)
                         : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0))
        return 4;

    int again = open("file", O_RDWR);
    printf("%zd", read(again, block, LEN));
    printf(" %lu", sum(block, LEN));
    block[5000] ^= 255;
    printf(" %ld", (long)lseek(again, 0, SEEK_SET));
    printf(" %zd", write(again, block, LEN));
    unsigned char *big = malloc(3 * LEN);
    printf(" %zd", pread(fd, big, LEN, 0));
    printf(" %lu", sum(big, LEN));
    free(big);
    block = realloc(block, 2 * LEN);
    if (ftruncate(fd, 100))
        return 5;
    printf(" %lu %lu\n", sum(block, LEN), *words[2] == 'y' ? sum(other, LEN) : 0);
    free(block), free(other);
    close(again);
    close(fd);
    return 0;
}
