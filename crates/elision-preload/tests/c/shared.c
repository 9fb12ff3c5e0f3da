// What was read from one file is written to another.
//
// shared history SEED STEPS   random reads, changes, copies, renames; prints what calls return and what files are
// shared copy HOW FROM TO     one copy: whole, pieces, edited (every tenth part of it), vector, synchronous, appended, over
// shared again FROM TO ROUNDS the first pages of one, to the end of the other, again and again
// shared full FROM TO         the same where there is no room for what was edited
#define _GNU_SOURCE
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096
#define MOST (64 * PAGE)
#define FILES 5
#define BUFFERS 3

static unsigned long long state;
static unsigned dice(unsigned n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % n;
}

static unsigned long long sum(unsigned long long sum, const unsigned char *p, size_t len) {
    for (size_t i = 0; i < len; i++)
        sum = (sum ^ p[i]) * 1099511628211ull;
    return sum;
}

// In pieces too small to be deferred.
static unsigned long long contents(int fd) {
    unsigned char part[4000];
    unsigned long long all = 1469598103934665603ull;
    off_t at = 0;
    for (ssize_t n; (n = pread(fd, part, sizeof part, at)) > 0; at += n)
        all = sum(all, part, n);
    return all;
}

static const char *name(unsigned file) {
    static char names[FILES][8];
    sprintf(names[file], "file%u", file);
    return names[file];
}

static void say_file(const char *path) {
    struct stat stat;
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        printf("  %s: %s\n", path, strerror(errno));
        return;
    }
    fstat(fd, &stat);
    printf("  %s: %lld bytes, mode %o, %llx\n", path, (long long)stat.st_size, stat.st_mode, contents(fd));
    close(fd);
}

static unsigned char *buffers[BUFFERS];

static void create(const char *path) {
    static unsigned char bytes[MOST];
    size_t len = dice(MOST) + 1, at = dice(3) ? 0 : dice(len);
    for (size_t i = 0; i < len; i++)
        bytes[i] = dice(256);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    // Sometimes behind a hole, in small pieces: nothing is associated.
    for (ssize_t n; at < len; at += n)
        need((n = pwrite(fd, bytes + at, len - at < 4000 ? len - at : 4000, at)) > 0, "pwrite");
    if (dice(5))
        fsync(fd);
    close(fd);
}

static void copy(const char *path, unsigned char *buffer) {
    static const int modes[] = {0, 0, 0, O_APPEND, O_DSYNC, O_SYNC, O_DIRECT};
    static const int truncates[] = {O_TRUNC, O_TRUNC, 0, O_EXCL};
    int extra = modes[dice(7)], truncate = truncates[dice(4)];
    size_t from = dice(2) ? 0 : dice(4) * PAGE + (dice(2) ? 0 : dice(PAGE)), len = dice(3) ? MOST - from : dice(MOST - from) + 1;
    // (ext4 may write a part of what it refuses.)
    if (extra == O_DIRECT)
        from = 0, len = len / PAGE * PAGE;
    if (dice(4) == 0)
        chmod(path, 06755);
    struct timespec old[2] = {{1000000000, 0}, {1000000000, 0}};
    utimensat(AT_FDCWD, path, old, 0);
    int fd = open(path, (dice(2) ? O_WRONLY : O_RDWR) | O_CREAT | truncate | extra, 0644);
    printf("copy to %s from %zu of %zu, flags %x: %d\n", path, from, len, extra | truncate, fd < 0 ? errno : 0);
    if (fd < 0)
        return;
    struct stat before, after;
    fstat(fd, &before);
    off_t at = truncate == O_TRUNC ? 0 : dice(2) ? before.st_size : dice(2) ? dice(8) * PAGE : dice(MOST);
    if (dice(4) == 0 || extra == O_DIRECT)
        at = at / PAGE * PAGE;
    lseek(fd, at, SEEK_SET);
    int other = dice(12) == 0 ? dup(fd) : dice(12) == 0 ? open(path, O_RDWR) : -1;
    unsigned char *map = dice(12) == 0 ? mmap(NULL, MOST, PROT_READ, MAP_SHARED, other < 0 ? fd : other, 0) : MAP_FAILED;
    struct rlimit limit = {dice(10) ? RLIM_INFINITY : dice(MOST), RLIM_INFINITY};
    setrlimit(RLIMIT_FSIZE, &limit);
    int pieces = dice(3) ? 1 : dice(4) + 1, how = dice(4);
    if (extra == O_DIRECT)
        pieces = 1, how = 2, limit.rlim_cur = RLIM_INFINITY, setrlimit(RLIMIT_FSIZE, &limit);
    long long written = 0;
    for (size_t done = 0; done < len;) {
        size_t part = pieces > 1 && len / pieces + 1 < len - done ? len / pieces + 1 : len - done;
        if (dice(2) && part > PAGE)
            part = part / PAGE * PAGE;
        struct iovec vector[2] = {{buffer + from + done, part / 2}, {buffer + from + done + part / 2, part - part / 2}};
        ssize_t n = how == 0   ? pwrite(fd, buffer + from + done, part, at + done)
                    : how == 1 ? writev(fd, vector, 2)
                               : write(fd, buffer + from + done, part);
        if (n < 0) {
            printf("  %s\n", strerror(errno));
            break;
        }
        done += n, written += n;
        if ((size_t)n < part)
            printf("  short: %zd of %zu\n", n, part);
    }
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    fstat(fd, &after);
    printf("  %lld bytes, position %lld, %lld bytes long, mode %o, times %s\n", written, (long long)lseek(fd, 0, SEEK_CUR),
           (long long)after.st_size, after.st_mode,
           after.st_mtim.tv_sec == 1000000000 ? "stand" : after.st_ctim.tv_sec < after.st_mtim.tv_sec ? "differ" : "moved");
    if (map != MAP_FAILED) {
        off_t most = after.st_size < MOST ? after.st_size : MOST;
        printf("  mapped: %llx\n", sum(0, map, most)), munmap(map, MOST);
    }
    if (dice(3) == 0)
        printf("  fsync: %d\n", fsync(fd));
    if (other >= 0)
        close(other);
    close(fd);
    say_file(path);
}

static void history(int steps) {
    signal(SIGXFSZ, SIG_IGN);
    for (int i = 0; i < BUFFERS; i++)
        buffers[i] = memory(MOST + PAGE);
    for (int i = 0; i < FILES; i++)
        create(name(i));
    for (int i = 0; i < steps; i++) {
        unsigned file = dice(FILES);
        unsigned char *buffer = buffers[dice(BUFFERS)];
        switch (dice(12)) {
        case 0: create(name(file)); break;
        case 1:
        case 2:
        case 3: {
            int fd = open(name(file), dice(4) ? O_RDONLY : O_RDWR);
            off_t at = dice(2) ? 0 : dice(16) * PAGE;
            size_t place = dice(4) ? at % PAGE : dice(PAGE);
            ssize_t n = fd < 0 ? -1 : pread(fd, buffer + place, MOST, at);
            printf("read %zd at %lld of %s\n", n, (long long)at, name(file));
            if (fd >= 0)
                close(fd);
            break;
        }
        case 4:
            for (int n = dice(6); n > 0; n--)
                buffer[dice(MOST)]++;
            break;
        case 5: rename(name(file), name(dice(FILES))); break;
        case 6:
            if (dice(4) == 0)
                unlink(name(file));
            else
                truncate(name(file), dice(MOST));
            break;
        case 7: printf("buffer %llx\n", sum(0, buffer, MOST)); break;
        default: {
            copy(name(file), buffer);
            if (dice(4) == 0)
                rename(name(file), name(dice(FILES)));
        }
        }
    }
    for (int i = 0; i < FILES; i++)
        say_file(name(i));
}

static int copies(const char *how, const char *from, const char *to) {
    struct stat stat;
    int in = open(from, O_RDONLY);
    need(in >= 0 && !fstat(in, &stat), from);
    size_t len = stat.st_size, piece = strcmp(how, "pieces") ? len : 4 << 20;
    int flags = !strcmp(how, "synchronous") ? O_DSYNC : !strcmp(how, "appended") ? O_APPEND : 0;
    int out = open(to, O_WRONLY | O_CREAT | (strcmp(how, "over") ? O_TRUNC : 0) | flags, 0644);
    // The write drops these bits (not for root), and moves the times.
    struct timespec old[2] = {{1000000000, 0}, {1000000000, 0}};
    need(out >= 0 && !fchmod(out, 06755) && !futimens(out, old), to);
    unsigned char *p = memory(piece);
    for (size_t at = 0; at < len; at += piece) {
        size_t part = piece < len - at ? piece : len - at;
        need(read(in, p, part) == (ssize_t)part, "read");
        if (!strcmp(how, "edited") || !strcmp(how, "full"))
            for (size_t i = len / 20; i < len; i += len / 10)
                p[i]++;
        struct iovec vector[2] = {{p, part / 2 / PAGE * PAGE}, {p + part / 2 / PAGE * PAGE, part - part / 2 / PAGE * PAGE}};
        ssize_t n = strcmp(how, "vector") ? write(out, p, part) : writev(out, vector, 2);
        if (strcmp(how, "full")) {
            need(n == (ssize_t)part, "write");
        } else {
            // As far as it came, all is right.
            ssize_t rest = n < 0 ? -1 : write(out, p + n, part - n);
            need(n < (ssize_t)part && (n < 0 || rest < 0 || n + rest < (ssize_t)part), "there was room");
            off_t size = lseek(out, 0, SEEK_END);
            need(size == (n < 0 ? 0 : n) + (rest < 0 ? 0 : rest), "size");
            int back = open(to, O_RDONLY);
            unsigned char *q = memory(len);
            for (off_t i = 0; i < size; i += 4000)
                need(pread(back, q + i, size - i < 4000 ? size - i : 4000, i) > 0, "pread");
            need(!memcmp(p, q, size), "bytes");
            printf("%lld of %zu bytes\n", (long long)size, len);
        }
    }
    return close(out);
}

static void again(const char *from, const char *to, int rounds) {
    unsigned char *p = memory(MOST), part[4000];
    for (int i = 0; i < rounds; i++) {
        int in = open(from, O_RDONLY), out = open(to, O_RDWR | O_CREAT | O_TRUNC, 0644);
        need(in >= 0 && out >= 0 && read(in, p, MOST) == MOST, "read");
        p[dice(MOST)] ^= i, p[dice(MOST)] ^= i;
        need(write(out, p, MOST) == MOST, "write");
        for (size_t at = 0; at < MOST; at += sizeof part) {
            ssize_t n = pread(out, part, sizeof part, at);
            need(n > 0 && !memcmp(p + at, part, n), "bytes");
        }
        close(in), close(out);
    }
}

int main(int count, char **arguments) {
    if (count == 4 && !strcmp(arguments[1], "history")) {
        state = 88172645463325252ull + atoll(arguments[2]) * 2654435761u;
        history(atoi(arguments[3]));
        return 0;
    }
    if (count == 5 && !strcmp(arguments[1], "copy"))
        return copies(arguments[2], arguments[3], arguments[4]);
    if (count == 5 && !strcmp(arguments[1], "again")) {
        state = 88172645463325252ull;
        again(arguments[2], arguments[3], atoi(arguments[4]));
        return 0;
    }
    if (count == 4 && !strcmp(arguments[1], "full"))
        return copies("full", arguments[2], arguments[3]);
    return 2;
}
