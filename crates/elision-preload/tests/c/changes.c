/* A file that changes while memory stands for it: by another process, by this one, through the very descriptor. What was
 * read stays, and what is written back afterwards is all there. */
#include "effects.h"
#include <sys/sendfile.h>

/* Reads, has it changed by `change`, looks at what was read, and writes it back. */
static void around(int number, void (*change)(int number, int fd), int count, int flags) {
    for (number = 0; number < count; number++) {
        unlink("file");
        THIRD(MAKE, "file", 0, SIZE, 1);
        unsigned char *p = memory(SIZE), *q = memory(SIZE);
        int fd = open("file", flags);
        printf("change %d\n", number);
        SAY(pread(fd, p, SIZE, 0));
        SAY(pread(fd, q, 100 * PAGE, 50 * PAGE));
        p[60 * PAGE] ^= 1, q[20 * PAGE] ^= 1;
        change(number, fd);
        THIRD(SUM, "file", 0, 0, 0);
        p[60 * PAGE] ^= 1, q[20 * PAGE] ^= 1;
        TELL(are_bytes(p, SIZE, 0, 1) && are_bytes(q, 100 * PAGE, 50 * PAGE, 1));
        WHERE(fd);
        SAY(pread(fd, q, SIZE, 0));
        printf("%llx\n", digest(q, SIZE));
        if (flags == O_RDWR) {
            p[70 * PAGE] ^= 1;
            for (int i = 0; i < 3; i++)
                SAY(pwrite(fd, p, SIZE, 0));
            struct stat st;
            fstat(fd, &st);
            printf("%ld bytes, %ld links\n", (long)st.st_size, (long)st.st_nlink);
            SAY(pread(fd, q, SIZE, 0));
            TELL(!memcmp(p, q, SIZE));
        }
        close(fd);
        THIRD(SUM, "file", 0, 0, 0);
        munmap(p, SIZE), munmap(q, SIZE);
    }
}

static void others(int number, int fd) {
    (void)fd;
    switch (number) {
    case 0: THIRD(WRITE, "file", 55 * PAGE + 7, 30 * PAGE, 2); break;
    case 1: THIRD(TRUNCATE, "file", 0, 20 * PAGE + 5, 0); break;
    case 2: THIRD(TRUNCATE, "file", 0, 0, 0); break;
    case 3: THIRD(TRUNCATE, "file", 0, 2 * SIZE, 0); break;
    case 4: THIRD(REWRITE, "file", 0, 100 * PAGE, 2); break;
    case 5: THIRD(APPEND, "file", 0, 10 * PAGE, 2); break;
    case 6: THIRD(UNLINK, "file", 0, 0, 0); break;
    case 7: THIRD(REPLACE, "file", 0, SIZE, 2); break;
    case 8: /* in turn */
        THIRD(REWRITE, "file", 0, 100 * PAGE, 2);
        THIRD(APPEND, "file", 0, 10 * PAGE, 3);
        THIRD(TRUNCATE, "file", 0, PAGE, 0);
        THIRD(UNLINK, "file", 0, 0, 0);
        break;
    }
}

static void ours_by_name(int number, int fd) {
    (void)fd;
    int other = -1;
    unsigned char some[5000];
    bytes_at(some, sizeof some, 0, 2);
    switch (number) {
    case 0:
        other = open("file", O_WRONLY);
        SAY(pwrite(other, some, sizeof some, 60 * PAGE));
        SAY(pwrite(other, "small", 5, 70 * PAGE));
        break;
    case 1: SAY(truncate("file", 55 * PAGE + 5)); break;
    case 2: SAY(truncate("file", 0)); break;
    case 3: SAY((other = open("file", O_WRONLY | O_TRUNC)) >= 0); break;
    case 4: SAY((other = open("file", O_RDONLY | O_TRUNC)) >= 0); break;
    case 5: SAY((other = creat("file", 0600)) >= 0); break;
    case 6: SAY(rename("file", "elsewhere")); break;
    case 7: SAY(unlink("file")); break;
    case 8: SAY(link("file", "second")); SAY(truncate("second", PAGE)); SAY(unlink("second")); break;
    case 9: {
        FILE *stream = fopen("file", "r+");
        fseek(stream, 60 * PAGE, SEEK_SET);
        SAY(fwrite(some, 1, sizeof some, stream));
        fclose(stream);
        break;
    }
    case 10:
        other = open("file", O_RDWR);
        unsigned char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
        memcpy(map + 60 * PAGE, some, sizeof some);
        munmap(map, SIZE);
        break;
    }
    if (other >= 0)
        close(other);
}

static void ours_by_descriptor(int number, int fd) {
    unsigned char some[5000];
    bytes_at(some, sizeof some, 0, 2);
    int other = open("other", O_RDWR | O_CREAT | O_TRUNC, 0600);
    write(other, some, sizeof some);
    loff_t from = 0, to = 60 * PAGE;
    switch (number) {
    case 0: SAY(pwrite(fd, some, sizeof some, 60 * PAGE)); break;
    case 1: SAY(pwrite(fd, "small", 5, 60 * PAGE + 5)); break;
    case 2: SAY(ftruncate(fd, 60 * PAGE + 5)); break;
    case 3: SAY(ftruncate(fd, 0)); SAY(ftruncate(fd, SIZE)); break;
    case 4: SAY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 55 * PAGE, 10 * PAGE) <= 0); break;
    case 5: SAY(fallocate(fd, 0, 0, 2 * SIZE) <= 0); break;
    case 6: SAY(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 16 * PAGE, 16 * PAGE) <= 0); break;
    case 7: SAY(fallocate(fd, FALLOC_FL_ZERO_RANGE, 55 * PAGE, 10 * PAGE) <= 0); break;
    case 8: SAY(copy_file_range(other, &from, fd, &to, sizeof some, 0)); break;
    case 9:
        from = 0, to = 100 * PAGE;
        SAY(copy_file_range(fd, &from, fd, &to, 50 * PAGE, 0));
        break;
    case 10:
        SAY(lseek(fd, 60 * PAGE, SEEK_SET));
        SAY(sendfile(fd, other, &from, sizeof some));
        SAY(lseek(fd, 0, SEEK_SET));
        break;
    case 11: {
        unsigned char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        memcpy(map + 60 * PAGE, some, sizeof some);
        munmap(map, SIZE);
        break;
    }
    case 12:
        SAY(dprintf(fd, "%d at the position", 12));
        SAY(lseek(fd, 0, SEEK_SET));
        break;
    case 13: {
        struct iovec v[2] = {{some, 1000}, {some + 3000, 2000}};
        SAY(pwritev(fd, v, 2, 60 * PAGE));
        break;
    }
    case 14: SAY(syscall(SYS_pwrite64, fd, some, sizeof some, (long)60 * PAGE)); break;
    case 15: {
        int ends[2];
        pipe(ends);
        write(ends[1], some, 4000);
        SAY(splice(ends[0], NULL, fd, &to, 4000, 0));
        close(ends[0]), close(ends[1]);
        break;
    }
    case 16: {
        int copy = dup(fd);
        SAY(pwrite(copy, some, sizeof some, 60 * PAGE));
        close(copy);
        break;
    }
    case 17: {
        pid_t child = fork();
        if (child == 0) {
            pwrite(fd, some, sizeof some, 60 * PAGE);
            _exit(0);
        }
        waitpid(child, NULL, 0);
        break;
    }
    }
    close(other);
}

static void by_others(void) { around(0, others, 9, O_RDONLY); }
static void by_others_of_writer(void) { around(0, others, 9, O_RDWR); }
static void by_name(void) { around(0, ours_by_name, 11, O_RDONLY); }
static void by_name_of_writer(void) { around(0, ours_by_name, 11, O_RDWR); }
static void by_descriptor(void) { around(0, ours_by_descriptor, 18, O_RDWR); }

/* What a third process sees of the file at each step. */
static void seen(void) {
    THIRD(MAKE, "file", 0, SIZE, 1);
    unsigned char *p = memory(SIZE);
    int fd = open("file", O_RDWR);
    SAY(pread(fd, p, SIZE, 0));
    THIRD(SUM, "file", 0, 0, 0);
    p[5 * PAGE] ^= 1;
    THIRD(SUM, "file", 0, 0, 0);
    for (int round = 0; round < 3; round++) {
        SAY(pwrite(fd, p, SIZE, 0));
        THIRD(SUM, "file", 0, 0, 0);
        p[(6 + round) * PAGE] ^= 1;
        THIRD(SUM, "file", 0, 0, 0);
        if (round == 1)
            THIRD(WRITE, "file", 100 * PAGE, 10 * PAGE, 2);
        SAY(pwrite(fd, p, SIZE, 0));
        THIRD(SUM, "file", 0, 0, 0);
        THIRD(SIZES, "file", 0, 0, 0);
        SAY(pwrite(fd, p, SIZE, SIZE));
        THIRD(SIZES, "file", 0, 0, 0);
        SAY(ftruncate(fd, SIZE));
        THIRD(SUM, "file", 0, 0, 0);
        SAY(pread(fd, p, SIZE, 0));
    }
    SAY(unlink("file"));
    THIRD(SUM, "file", 0, 0, 0);
    SAY(pwrite(fd, p, SIZE, 0));
    SAY(pread(fd, p, SIZE, 0));
    printf("%llx\n", digest(p, SIZE));
}

static const struct row rows[] = {
    {"by_others", by_others}, {"by_others_of_writer", by_others_of_writer}, {"by_name", by_name},
    {"by_name_of_writer", by_name_of_writer}, {"by_descriptor", by_descriptor}, {"seen", seen}, {0},
};

int main(int count, char **arguments) { return run_row(count, arguments, rows); }
