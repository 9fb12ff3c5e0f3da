/* Random histories of one process's files and buffers, against what plain memory says they must be.
 *
 *     histories SEED OPERATIONS DIRECTORY [s][t]
 *
 * s: a timer's signal handler reads and writes, too. t: a second thread, with files and buffers of its own.
 *
 * The oracle's memory is static, and its own reads are smaller than any that could be deferred. Each call's value, errno,
 * file position and file size are compared at once, contents now and then and at the end. The first difference prints the
 * last operations and ends the program with 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, FILES = 3, BUFFERS = 6, SLOTS = 8, MOST = 204 * PAGE, LOG = 30, LINE = 240, SMALL = 4000 };

extern char **environ;

struct file {
    char path[2][512]; /* two names of one inode */
    size_t size;
    unsigned char is[MOST];
};

/* An open file description. */
struct desc {
    int file, flags, refs;
    off_t at;
};

struct slot {
    int fd, desc; /* fd < 0: free */
};

enum kind { MALLOC, CALLOC, MEMALIGN, MMAP, KINDS };

struct buffer {
    enum kind kind;
    unsigned char *p; /* null: none */
    size_t len;
    int pieces; /* perhaps more than one mapping, which mremap refuses */
    unsigned char is[MOST];
    /* Where it was last read from or written to. */
    int file;
    off_t offset;
    size_t start, moved;
};

enum order { PWRITE, FTRUNCATE, TRUNCATE, OPEN_TRUNC, APPEND, HOLD_WRITE, HOLD_READ, LET_GO, SUM, ORDERS };

struct command {
    enum order order;
    int file;
    off_t at;
    size_t len;
    uint32_t seed;
};

/* All that belongs to one thread. */
struct history {
    unsigned long seed;
    uint64_t random;
    long step, steps;
    int child;
    int most_slots; /* descriptors open at a time, for the present */
    struct file files[FILES];
    struct buffer buffers[BUFFERS];
    struct desc descs[SLOTS];
    struct slot slots[SLOTS];
    unsigned char *map; /* a shared mapping of a file */
    int map_file;
    size_t map_len;
    int order[2];
    pid_t helper;
    unsigned char bytes[MOST];
    char log[LOG][LINE];
    long logged;
};

static struct history histories[2];
static const char *directory;

static uint64_t next(struct history *h) {
    h->random ^= h->random >> 12;
    h->random ^= h->random << 25;
    h->random ^= h->random >> 27;
    return h->random * 0x2545f4914f6cdd1dull;
}

static size_t below(struct history *h, size_t n) { return n ? (next(h) >> 11) % n : 0; }
static int chance(struct history *h, int percent) { return below(h, 100) < (size_t)percent; }

static void fill(unsigned char *bytes, size_t len, uint32_t seed) {
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = seed >> 24;
    }
}

static uint64_t sum(const unsigned char *bytes, size_t len, uint64_t so_far) {
    for (size_t i = 0; i < len; i++)
        so_far = (so_far ^ bytes[i]) * 1099511628211ull;
    return so_far;
}

__attribute__((format(printf, 2, 3))) static void say(struct history *h, const char *format, ...) {
    char *line = h->log[h->logged++ % LOG];
    int n = snprintf(line, LINE, "%ld%s: ", h->step, h->child ? " (child)" : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + n, LINE - n, format, arguments);
    va_end(arguments);
}

static void tell(const char *line) {
    ssize_t ignored = write(2, line, strlen(line));
    (void)ignored;
}

__attribute__((noreturn, format(printf, 2, 3))) static void fail(struct history *h, const char *format, ...) {
    char line[2 * LINE];
    for (long i = h->logged > LOG ? h->logged - LOG : 0; i < h->logged; i++) {
        snprintf(line, sizeof line, "  %s\n", h->log[i % LOG]);
        tell(line);
    }
    int n = snprintf(line, sizeof line, "seed %lu, thread %d, operation %ld%s: ", h->seed, (int)(h - histories), h->step,
                     h->child ? " (child)" : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + n, sizeof line - n - 1, format, arguments);
    va_end(arguments);
    strcat(line, "\n");
    tell(line);
    _exit(1);
}

/* A call's value, and its errno if it failed. */
static void expect(struct history *h, const char *call, ssize_t got, ssize_t want, int want_errno) {
    int is = errno;
    if (got != want || (got < 0 && is != want_errno))
        fail(h, "%s = %zd errno %d, not %zd errno %d", call, got, got < 0 ? is : 0, want, want < 0 ? want_errno : 0);
}

static void same(struct history *h, const char *what, int which, size_t from, const unsigned char *is,
                 const unsigned char *wanted, size_t len) {
    if (memcmp(is, wanted, len) == 0)
        return;
    size_t first = 0, last = len - 1;
    while (is[first] == wanted[first])
        first++;
    while (is[last] == wanted[last])
        last--;
    fail(h, "%s %d differs at %#zx..%#zx: first is %02x, not %02x", what, which, from + first, from + last + 1, is[first],
         wanted[first]);
}

/* The state of descriptors. */

static int readable(struct history *h, int s) { return (h->descs[h->slots[s].desc].flags & O_ACCMODE) != O_WRONLY; }
static int writable(struct history *h, int s) { return (h->descs[h->slots[s].desc].flags & O_ACCMODE) != O_RDONLY; }
static struct desc *desc_of(struct history *h, int s) { return &h->descs[h->slots[s].desc]; }
static struct file *file_of(struct history *h, int s) { return &h->files[desc_of(h, s)->file]; }

/* A slot in use, or -1. */
static int any_slot(struct history *h) {
    int from = below(h, SLOTS);
    for (int i = 0; i < SLOTS; i++)
        if (h->slots[(from + i) % SLOTS].fd >= 0)
            return (from + i) % SLOTS;
    return -1;
}

static int free_slot(struct history *h) {
    for (int i = 0; i < SLOTS; i++)
        if (h->slots[i].fd < 0)
            return i;
    return -1;
}

/* A slot that may write anywhere, of any file but one. */
static int writing_slot(struct history *h, int not_file) {
    int from = below(h, SLOTS);
    for (int i = 0; i < SLOTS; i++) {
        int s = (from + i) % SLOTS;
        if (h->slots[s].fd >= 0 && writable(h, s) && !(desc_of(h, s)->flags & O_APPEND) && desc_of(h, s)->file != not_file)
            return s;
    }
    return -1;
}

static int reading_slot(struct history *h, int file) {
    for (int s = 0; s < SLOTS; s++)
        if (h->slots[s].fd >= 0 && readable(h, s) && desc_of(h, s)->file == file)
            return s;
    return -1;
}

/* Position and size are what they must be. */
static void settled(struct history *h, int s) {
    expect(h, "position", lseek(h->slots[s].fd, 0, SEEK_CUR), desc_of(h, s)->at, 0);
    struct stat st;
    fstat(h->slots[s].fd, &st);
    expect(h, "size", st.st_size, file_of(h, s)->size, 0);
}

static void resize_file(struct file *f, size_t size) {
    if (size > f->size)
        memset(f->is + f->size, 0, size - f->size);
    f->size = size;
}

static void put(struct file *f, size_t at, const unsigned char *bytes, size_t len) {
    if (len == 0)
        return;
    if (at + len > f->size)
        resize_file(f, at + len);
    memcpy(f->is + at, bytes, len);
}

/* Checks. */

static void check_file_part(struct history *h, int f, int fd, size_t from, size_t to) {
    unsigned char piece[SMALL];
    struct file *file = &h->files[f];
    for (size_t at = from; at < to; at += SMALL) {
        size_t len = to - at < SMALL ? to - at : SMALL;
        expect(h, "a look at the file", pread(fd, piece, len, at), len, 0);
        same(h, "file", f, at, piece, file->is + at, len);
    }
}

static void check_file(struct history *h, int f) {
    int s = reading_slot(h, f), fd = s >= 0 ? h->slots[s].fd : -1;
    if (fd < 0 && (fd = open(h->files[f].path[0], O_RDONLY | O_CLOEXEC)) < 0)
        fail(h, "no file %d", f);
    struct stat st;
    fstat(fd, &st);
    expect(h, "size", st.st_size, h->files[f].size, 0);
    check_file_part(h, f, fd, 0, h->files[f].size);
    if (s < 0)
        close(fd);
}

static void check_buffer(struct history *h, int b) {
    if (h->buffers[b].p)
        same(h, "buffer", b, 0, h->buffers[b].p, h->buffers[b].is, h->buffers[b].len);
}

static void check_buffers(struct history *h) {
    for (int b = 0; b < BUFFERS; b++)
        check_buffer(h, b);
}

static void check_all(struct history *h) {
    check_buffers(h);
    for (int f = 0; f < FILES; f++)
        check_file(h, f);
}

/* Buffers. */

static size_t some_len(struct history *h) {
    switch (below(h, 4)) {
    case 0: return 1 + below(h, 3 * PAGE);
    case 1: return (1 + below(h, 40)) * PAGE;
    case 2: return PAGE + below(h, 60 * PAGE);
    default: return PAGE + below(h, MOST - PAGE);
    }
}

static void drop_buffer(struct history *h, int i) {
    struct buffer *b = &h->buffers[i];
    if (b->p == NULL)
        return;
    if (b->kind == MMAP)
        munmap(b->p, b->len);
    else
        free(b->p);
    b->p = NULL;
    b->len = 0;
    b->moved = 0;
}

static void make_buffer(struct history *h, int i) {
    struct buffer *b = &h->buffers[i];
    drop_buffer(h, i);
    b->kind = below(h, KINDS);
    b->len = some_len(h);
    void *p = NULL;
    switch (b->kind) {
    case MALLOC: p = malloc(b->len); break;
    case CALLOC: p = calloc(1, b->len); break;
    case MEMALIGN:
        if (posix_memalign(&p, chance(h, 80) ? PAGE : 64, b->len) != 0)
            fail(h, "posix_memalign");
        break;
    default:
        b->len = (b->len + PAGE - 1) / PAGE * PAGE;
        p = mmap(NULL, b->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            fail(h, "mmap");
    }
    b->p = p;
    b->pieces = 0;
    say(h, "buffer %d: kind %d, %p, %#zx bytes", i, b->kind, p, b->len);
    if (b->kind == CALLOC || b->kind == MMAP)
        memset(b->is, 0, b->len);
    else
        memcpy(b->is, b->p, b->len); /* whatever it says, it must go on saying it */
}

static int a_buffer(struct history *h) {
    int i = below(h, BUFFERS);
    if (h->buffers[i].p == NULL)
        make_buffer(h, i);
    return i;
}

/* Its whole pages. */
static int whole_pages(struct buffer *b, size_t *first, size_t *count) {
    size_t skip = -(uintptr_t)b->p % PAGE;
    if (b->len < skip + PAGE)
        return 0;
    *first = skip;
    *count = (b->len - skip) / PAGE;
    return 1;
}

static void store(struct history *h) {
    int i = a_buffer(h);
    struct buffer *b = &h->buffers[i];
    size_t at = below(h, b->len), len = 1;
    switch (below(h, 4)) {
    case 0: break;
    case 1: len = 1 + below(h, 64); break;
    case 2: at = at / PAGE * PAGE, len = PAGE; break;
    default: len = 1 + below(h, b->len - at); break;
    }
    if (len > b->len - at)
        len = b->len - at;
    uint32_t seed = next(h);
    say(h, "store into buffer %d, %#zx bytes at %#zx", i, len, at);
    fill(b->p + at, len, seed);
    fill(b->is + at, len, seed);
}

static void copy(struct history *h) {
    int i = a_buffer(h), j = a_buffer(h);
    struct buffer *from = &h->buffers[i], *to = &h->buffers[j];
    size_t len = from->len < to->len ? from->len : to->len;
    len = chance(h, 50) ? 1 + below(h, len) : len;
    size_t a = below(h, from->len - len + 1), b = below(h, to->len - len + 1);
    say(h, "copy %#zx bytes, buffer %d at %#zx to buffer %d at %#zx", len, i, a, j, b);
    memmove(to->p + b, from->p + a, len);
    memmove(to->is + b, from->is + a, len);
}

static void resize_buffer(struct history *h) {
    int i = a_buffer(h);
    struct buffer *b = &h->buffers[i];
    size_t len = some_len(h), old = b->len;
    if (b->kind == MMAP && b->pieces)
        return;
    if (b->kind == MMAP) {
        len = (len + PAGE - 1) / PAGE * PAGE;
        say(h, "mremap buffer %d, %p from %#zx to %#zx", i, (void *)b->p, old, len);
        void *p = mremap(b->p, old, len, MREMAP_MAYMOVE);
        if (p == MAP_FAILED)
            fail(h, "mremap: errno %d", errno);
        b->p = p;
        if (len > old)
            memset(b->is + old, 0, len - old);
    } else {
        say(h, "realloc buffer %d, %p from %#zx to %#zx", i, (void *)b->p, old, len);
        void *p = realloc(b->p, len);
        if (p == NULL)
            fail(h, "realloc");
        b->p = p;
        if (b->kind == CALLOC)
            b->kind = MALLOC;
        if (len > old)
            memcpy(b->is + old, b->p + old, len - old);
    }
    b->len = len;
    if (b->start + b->moved > len)
        b->moved = 0;
}

static void advise(struct history *h) {
    int i = a_buffer(h);
    struct buffer *b = &h->buffers[i];
    size_t first, count;
    if (!whole_pages(b, &first, &count))
        return;
    size_t at = below(h, count), n = 1 + below(h, count - at);
    unsigned char *p = b->p + first + at * PAGE, *is = b->is + first + at * PAGE;
    switch (below(h, 5)) {
    case 0:
        say(h, "MADV_DONTNEED buffer %d, %zu pages at %#zx", i, n, first + at * PAGE);
        expect(h, "madvise", madvise(p, n * PAGE, MADV_DONTNEED), 0, 0);
        memset(is, 0, n * PAGE);
        break;
    case 1: {
        static const int advice[] = {MADV_WILLNEED, MADV_SEQUENTIAL, MADV_NORMAL, MADV_RANDOM};
        say(h, "madvise buffer %d, %zu pages at %#zx", i, n, first + at * PAGE);
        madvise(p, n * PAGE, advice[below(h, 4)]);
        b->pieces = 1;
        break;
    }
    case 2:
        say(h, "mlock, munlock buffer %d, %zu pages at %#zx", i, n, first + at * PAGE);
        if (mlock(p, n * PAGE) == 0)
            munlock(p, n * PAGE);
        b->pieces = 1;
        break;
    case 3:
        if (b->kind != MMAP)
            return;
        say(h, "mmap over buffer %d, %zu pages at %#zx", i, n, first + at * PAGE);
        if (mmap(p, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != p)
            fail(h, "mmap over");
        b->pieces = 1;
        memset(is, 0, n * PAGE);
        break;
    default: {
        int s = any_slot(h);
        b->pieces = 1;
        say(h, "mprotect buffer %d, %zu pages at %#zx", i, n, first + at * PAGE);
        expect(h, "mprotect", mprotect(p, n * PAGE, PROT_READ), 0, 0);
        if (s >= 0 && readable(h, s)) {
            struct file *f = file_of(h, s);
            off_t from = below(h, f->size + 1);
            errno = 0;
            expect(h, "pread into a read-only buffer", pread(h->slots[s].fd, p, n * PAGE, from),
                   from < (off_t)f->size ? -1 : 0, EFAULT);
        }
        if (chance(h, 50))
            same(h, "buffer", i, first + at * PAGE, p, is, n * PAGE);
        expect(h, "mprotect", mprotect(p, n * PAGE, PROT_READ | PROT_WRITE), 0, 0);
    }
    }
}

static void unmap_part(struct history *h) {
    int i = a_buffer(h);
    struct buffer *b = &h->buffers[i];
    if (b->kind != MMAP || b->len < 3 * PAGE)
        return;
    size_t pages = b->len / PAGE, at = 1 + below(h, pages - 2), n = 1 + below(h, pages - at - 1);
    switch (below(h, 3)) {
    case 0:
        say(h, "munmap buffer %d, the first %zu pages", i, n);
        munmap(b->p, n * PAGE);
        b->p += n * PAGE;
        b->len -= n * PAGE;
        memmove(b->is, b->is + n * PAGE, b->len);
        break;
    case 1:
        say(h, "munmap buffer %d, from page %zu", i, at);
        munmap(b->p + at * PAGE, b->len - at * PAGE);
        b->len = at * PAGE;
        break;
    default: {
        say(h, "munmap buffer %d, %zu pages from page %zu, and then all behind", i, n, at);
        size_t behind = (at + n) * PAGE;
        munmap(b->p + at * PAGE, n * PAGE);
        same(h, "buffer", i, behind, b->p + behind, b->is + behind, b->len - behind);
        munmap(b->p + behind, b->len - behind);
        b->len = at * PAGE;
        b->pieces = 1;
    }
    }
    b->moved = 0;
}

/* Transfers. */

/* A place in a file and one in a buffer, that often agree within their pages. */
static void place(struct history *h, struct file *f, struct buffer *b, off_t *offset, size_t *start, size_t *len) {
    size_t at = below(h, f->size + 1);
    if (chance(h, 30))
        at = 0;
    else if (chance(h, 60))
        at = at / PAGE * PAGE;
    size_t from = below(h, b->len);
    if (chance(h, 80)) {
        from = (at - (uintptr_t)b->p) % PAGE;
        if (chance(h, 50) && b->len > from + PAGE)
            from += below(h, (b->len - from) / PAGE) * PAGE;
        if (from >= b->len)
            from = 0;
    }
    size_t room = b->len - from, n = room;
    if (chance(h, 15))
        n = 1 + below(h, room < 5000 ? room : 5000);
    else if (chance(h, 40))
        n = 1 + below(h, room);
    else if (chance(h, 30) && room > PAGE)
        n = room / PAGE * PAGE;
    *offset = at;
    *start = from;
    *len = n;
}

static void remember(struct buffer *b, int file, off_t offset, size_t start, size_t moved) {
    b->file = file;
    b->offset = offset;
    b->start = start;
    b->moved = moved;
}

/* Moves a descriptor's position, in one of the ways there are. */
static void seek(struct history *h, int s, off_t to) {
    struct desc *d = desc_of(h, s);
    off_t got;
    switch (below(h, 3)) {
    case 0: got = lseek(h->slots[s].fd, to, SEEK_SET); break;
    case 1: got = lseek(h->slots[s].fd, to - d->at, SEEK_CUR); break;
    default: got = lseek(h->slots[s].fd, to - (off_t)file_of(h, s)->size, SEEK_END); break;
    }
    expect(h, "lseek", got, to, 0);
    d->at = to;
}

static void bad_seek(struct history *h) {
    int s = any_slot(h);
    if (s < 0)
        return;
    say(h, "bad lseek of slot %d", s);
    errno = 0;
    expect(h, "lseek", lseek(h->slots[s].fd, -1 - (off_t)below(h, PAGE), SEEK_SET), -1, EINVAL);
    errno = 0;
    expect(h, "lseek", lseek(h->slots[s].fd, 0, 77), -1, EINVAL);
    settled(h, s);
}

/* What a read of `len` bytes at `at` gives. */
static size_t there(struct file *f, off_t at, size_t len) {
    if ((size_t)at >= f->size)
        return 0;
    return len < f->size - at ? len : f->size - at;
}

static void do_read(struct history *h, int positioned) {
    int s = any_slot(h);
    if (s < 0)
        return;
    int i = a_buffer(h), fd = h->slots[s].fd;
    struct buffer *b = &h->buffers[i];
    struct desc *d = desc_of(h, s);
    struct file *f = file_of(h, s);
    off_t at;
    size_t start, len;
    place(h, f, b, &at, &start, &len);
    if (!positioned && chance(h, 70))
        seek(h, s, at);
    if (!positioned)
        at = d->at;
    say(h, "%s slot %d (fd %d, file %d) %#zx bytes at %#lx to buffer %d at %#zx", positioned ? "pread" : "read", s, fd, d->file,
        len, (long)at, i, start);
    errno = 0;
    ssize_t got = positioned ? pread(fd, b->p + start, len, at) : read(fd, b->p + start, len);
    if (!readable(h, s)) {
        expect(h, "read", got, -1, EBADF);
    } else {
        size_t n = there(f, at, len);
        expect(h, "read", got, n, 0);
        memcpy(b->is + start, f->is + at, n);
        if (!positioned)
            d->at += n;
        remember(b, d->file, at, start, n);
        if (chance(h, 15))
            same(h, "buffer just read:", i, start, b->p + start, b->is + start, n);
    }
    settled(h, s);
}

/* Where a write goes, and from where: often back to where the bytes came from. */
static int place_write(struct history *h, int s, struct buffer *b, off_t *at, size_t *start, size_t *len) {
    struct desc *d = desc_of(h, s);
    place(h, file_of(h, s), b, at, start, len);
    if (b->moved > 0 && (b->file == d->file || chance(h, 20)) && chance(h, 70)) {
        *at = b->offset;
        *start = b->start;
        *len = b->moved;
        switch (below(h, 8)) {
        case 0: { /* a part */
            size_t skip = below(h, *len), most = *len - skip;
            *at += skip, *start += skip, *len = 1 + below(h, most);
            break;
        }
        case 1: *at += PAGE; break;
        case 2:
            if (*at >= PAGE)
                *at -= PAGE;
            break;
        case 3: *at += 1 + below(h, 100); break;
        }
    }
    if (*at >= MOST)
        return 0;
    if (*len > (size_t)(MOST - *at))
        *len = MOST - *at;
    return 1;
}

/* The model of a write through slot `s`: where it went. */
static off_t wrote(struct history *h, int s, off_t at, const unsigned char *bytes, size_t len, int positioned) {
    struct desc *d = desc_of(h, s);
    struct file *f = file_of(h, s);
    if (len == 0)
        return at;
    if (d->flags & O_APPEND)
        at = f->size;
    put(f, at, bytes, len);
    if (!positioned)
        d->at = at + len;
    return at;
}

static void do_write(struct history *h, int positioned) {
    int s = any_slot(h);
    if (s < 0)
        return;
    int i = a_buffer(h), fd = h->slots[s].fd;
    struct buffer *b = &h->buffers[i];
    struct desc *d = desc_of(h, s);
    struct file *f = file_of(h, s);
    off_t at;
    size_t start, len;
    if (!place_write(h, s, b, &at, &start, &len))
        return;
    if (!positioned)
        seek(h, s, at);
    if (d->flags & O_APPEND && len > MOST - f->size)
        len = MOST - f->size;
    say(h, "%s slot %d (fd %d, file %d%s) %#zx bytes at %#lx from buffer %d at %#zx", positioned ? "pwrite" : "write", s, fd,
        d->file, d->flags & O_APPEND ? ", append" : "", len, (long)at, i, start);
    errno = 0;
    ssize_t got = positioned ? pwrite(fd, b->p + start, len, at) : write(fd, b->p + start, len);
    if (!writable(h, s)) {
        expect(h, "write", got, -1, EBADF);
    } else {
        expect(h, "write", got, len, 0);
        at = wrote(h, s, at, b->is + start, len, positioned);
        remember(b, d->file, at, start, len);
        int r = reading_slot(h, d->file);
        if (r >= 0 && chance(h, 20))
            check_file_part(h, d->file, h->slots[r].fd, at, at + len);
    }
    settled(h, s);
}

static void vectors(struct history *h) {
    int s = any_slot(h);
    if (s < 0)
        return;
    int fd = h->slots[s].fd, count = 1 + below(h, 4), writes = chance(h, 50), positioned = chance(h, 40);
    struct iovec v[4];
    int which[4];
    size_t starts[4], total = 0;
    struct desc *d = desc_of(h, s);
    struct file *f = file_of(h, s);
    off_t at = chance(h, 60) ? below(h, f->size / PAGE + 1) * PAGE : below(h, f->size + 1);
    for (int i = 0; i < count; i++) {
        which[i] = a_buffer(h);
        struct buffer *b = &h->buffers[which[i]];
        size_t start = chance(h, 70) ? (at + total - (uintptr_t)b->p) % PAGE : below(h, b->len);
        if (start >= b->len)
            start = 0;
        size_t len = chance(h, 40) ? below(h, b->len - start + 1) : b->len - start;
        if (chance(h, 40))
            len = len / PAGE * PAGE;
        size_t end = (d->flags & O_APPEND ? f->size : (size_t)at) + total;
        if (writes && end + len > MOST)
            len = end < MOST ? MOST - end : 0;
        starts[i] = start;
        v[i] = (struct iovec){b->p + start, len};
        total += len;
    }
    if (!positioned)
        seek(h, s, at);
    say(h, "%s%s slot %d (fd %d, file %d) %d parts (%d:%#zx+%#zx …), %#zx bytes at %#lx", positioned ? "p" : "",
        writes ? "writev" : "readv", s, fd, d->file, count, which[0], starts[0], v[0].iov_len, total, (long)at);
    errno = 0;
    ssize_t got;
    if (writes)
        got = positioned ? pwritev(fd, v, count, at) : writev(fd, v, count);
    else
        got = positioned ? preadv(fd, v, count, at) : readv(fd, v, count);
    if (writes ? !writable(h, s) : !readable(h, s)) {
        expect(h, "vector", got, -1, EBADF);
        settled(h, s);
        return;
    }
    expect(h, "vector", got, writes ? total : there(f, at, total), 0);
    off_t to = at;
    if (writes && d->flags & O_APPEND)
        to = f->size;
    for (int i = 0; i < count; i++) {
        struct buffer *b = &h->buffers[which[i]];
        size_t n = v[i].iov_len;
        if (writes) {
            put(f, to, b->is + starts[i], n);
        } else {
            n = there(f, to, n);
            memcpy(b->is + starts[i], f->is + to, n);
            if (n)
                remember(b, d->file, to, starts[i], n);
        }
        to += n;
    }
    if (!positioned && got > 0)
        d->at = to;
    settled(h, s);
}

/* A FILE over a duplicate, as numpy has it, or over a description of its own. */
static void stream(struct history *h) {
    int s = any_slot(h), own = chance(h, 40), f;
    FILE *file;
    if (own) {
        f = below(h, FILES);
        say(h, "fopen file %d", f);
        file = fopen(h->files[f].path[below(h, 2)], "r+");
    } else {
        if (s < 0 || (desc_of(h, s)->flags & (O_ACCMODE | O_APPEND)) != O_RDWR)
            return;
        f = desc_of(h, s)->file;
        int fd = dup(h->slots[s].fd);
        say(h, "fdopen a duplicate (%d) of slot %d", fd, s);
        file = fdopen(fd, "r+");
    }
    if (file == NULL)
        fail(h, "no stream: errno %d", errno);
    struct file *is = &h->files[f];
    for (int steps = 1 + below(h, 4); steps > 0; steps--) {
        int i = a_buffer(h);
        struct buffer *b = &h->buffers[i];
        off_t at;
        size_t start, len;
        place(h, is, b, &at, &start, &len);
        if (b->moved && b->file == f && chance(h, 50))
            at = b->offset, start = b->start, len = b->moved;
        if (at >= MOST)
            continue;
        expect(h, "fseeko", fseeko(file, at, SEEK_SET), 0, 0);
        switch (below(h, 5)) {
        case 0:
        case 1: {
            size_t n = there(is, at, len);
            say(h, "fread file %d, %#zx bytes at %#lx to buffer %d at %#zx", f, len, (long)at, i, start);
            expect(h, "fread", fread(b->p + start, 1, len, file), n, 0);
            memcpy(b->is + start, is->is + at, n);
            expect(h, "feof", !!feof(file), n < len, 0);
            expect(h, "ftello", ftello(file), at + n, 0);
            if (n)
                remember(b, f, at, start, n);
            break;
        }
        case 2:
        case 3:
            if (len > (size_t)(MOST - at))
                len = MOST - at;
            say(h, "fwrite file %d, %#zx bytes at %#lx from buffer %d at %#zx", f, len, (long)at, i, start);
            expect(h, "fwrite", fwrite(b->p + start, 1, len, file), len, 0);
            put(is, at, b->is + start, len);
            expect(h, "ftello", ftello(file), at + len, 0);
            remember(b, f, at, start, len);
            break;
        default: {
            char text[64];
            int n = snprintf(text, sizeof text, "step %ld of %lu;", h->step, h->seed);
            if (at + n + 1 > MOST)
                break;
            say(h, "fprintf and fputc file %d at %#lx", f, (long)at);
            expect(h, "fprintf", fprintf(file, "step %ld of %lu;", h->step, h->seed), n, 0);
            expect(h, "fputc", fputc('!', file), '!', 0);
            text[n] = '!';
            put(is, at, (unsigned char *)text, n + 1);
            if (chance(h, 50))
                expect(h, "fflush", fflush(file), 0, 0);
        }
        }
        if (ferror(file))
            fail(h, "ferror");
    }
    expect(h, "fclose", fclose(file), 0, 0);
    if (!own) {
        /* Where a stream leaves the position is stdio's own affair. */
        desc_of(h, s)->at = below(h, is->size + 1);
        expect(h, "lseek", lseek(h->slots[s].fd, desc_of(h, s)->at, SEEK_SET), desc_of(h, s)->at, 0);
    }
    if (chance(h, 20))
        check_file(h, f);
}

/* Descriptors. */

static void close_slot(struct history *h, int s) {
    say(h, "close slot %d (fd %d, file %d)", s, h->slots[s].fd, desc_of(h, s)->file);
    expect(h, "close", close(h->slots[s].fd), 0, 0);
    desc_of(h, s)->refs--;
    h->slots[s].fd = -1;
}

static void open_slot(struct history *h) {
    /* Alone, a description may carry a lease; among others it may not. Both go on for a while. */
    if (chance(h, 25))
        h->most_slots = chance(h, 60) ? 1 : 1 + below(h, SLOTS);
    for (int open = h->most_slots - 1, i = 0; i < SLOTS; i++)
        if (h->slots[i].fd >= 0 && --open < 0)
            close_slot(h, i);
    int s = free_slot(h);
    static const int modes[] = {O_RDONLY, O_RDONLY, O_RDWR, O_RDWR, O_RDWR, O_WRONLY, O_RDWR | O_APPEND, O_WRONLY | O_APPEND};
    int flags = modes[below(h, 8)], f = chance(h, 60) ? 0 : below(h, FILES), d = 0;
    if (chance(h, 6))
        flags |= O_TRUNC;
    while (h->descs[d].refs)
        d++;
    int fd = open(h->files[f].path[below(h, 2)], flags | (chance(h, 50) ? O_CLOEXEC : 0));
    say(h, "open file %d, flags %#o: fd %d in slot %d", f, flags, fd, s);
    if (fd < 0)
        fail(h, "open: errno %d", errno);
    if (flags & O_TRUNC)
        h->files[f].size = 0;
    h->descs[d] = (struct desc){f, flags, 1, 0};
    h->slots[s] = (struct slot){fd, d};
    settled(h, s);
}

static void duplicate(struct history *h) {
    int s = any_slot(h), to = free_slot(h), fd;
    if (s < 0)
        return;
    if (h->most_slots == 1 && chance(h, 80))
        return;
    if (to < 0 || chance(h, 30)) {
        to = any_slot(h);
        if (to == s)
            return;
        say(h, "dup2 slot %d (fd %d) over slot %d (fd %d)", s, h->slots[s].fd, to, h->slots[to].fd);
        fd = chance(h, 50) ? dup2(h->slots[s].fd, h->slots[to].fd) : dup3(h->slots[s].fd, h->slots[to].fd, O_CLOEXEC);
        expect(h, "dup2", fd, h->slots[to].fd, 0);
        desc_of(h, to)->refs--;
    } else {
        fd = chance(h, 50) ? dup(h->slots[s].fd) : fcntl(h->slots[s].fd, F_DUPFD_CLOEXEC, 20);
        say(h, "dup slot %d (fd %d): fd %d in slot %d", s, h->slots[s].fd, fd, to);
        if (fd < 0)
            fail(h, "dup: errno %d", errno);
    }
    h->slots[to] = (struct slot){fd, h->slots[s].desc};
    desc_of(h, s)->refs++;
    settled(h, to);
}

/* Other changes of a file. */

static void change(struct history *h) {
    int s = writing_slot(h, -1);
    if (s < 0)
        return;
    struct file *f = file_of(h, s);
    int fd = h->slots[s].fd, which = desc_of(h, s)->file;
    size_t at = below(h, MOST), len = 1 + below(h, MOST - at);
    switch (below(h, 7)) {
    case 0:
    case 1:
        if (chance(h, 50))
            at = f->size - below(h, f->size < 9000 ? f->size : 9000);
        say(h, "ftruncate slot %d (file %d) to %#zx", s, which, at);
        expect(h, "ftruncate", ftruncate(fd, at), 0, 0);
        resize_file(f, at);
        break;
    case 2:
        say(h, "truncate file %d to %#zx", which, at);
        expect(h, "truncate", truncate(f->path[below(h, 2)], at), 0, 0);
        resize_file(f, at);
        break;
    case 3:
        say(h, "fallocate slot %d (file %d), keeping its size", s, which);
        // (A signal ends it on a tmpfs.)
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, at, len) != 0 && errno != EOPNOTSUPP && errno != EINTR)
            fail(h, "fallocate: errno %d", errno);
        break;
    case 4: {
        say(h, "punch %#zx bytes at %#zx out of slot %d (file %d)", len, at, s, which);
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, at, len) != 0)
            fail(h, "fallocate: errno %d", errno);
        memset(f->is + at, 0, there(f, at, len));
        break;
    }
    case 5:
        say(h, "zero %#zx bytes at %#zx of slot %d (file %d)", len, at, s, which);
        if (fallocate(fd, FALLOC_FL_ZERO_RANGE, at, len) != 0) {
            if (errno != EOPNOTSUPP)
                fail(h, "fallocate: errno %d", errno);
            break;
        }
        if (at + len > f->size)
            resize_file(f, at + len);
        memset(f->is + at, 0, len);
        break;
    default:
        say(h, "fadvise, fdatasync slot %d (file %d)", s, which);
        if (chance(h, 10))
            fdatasync(fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
    settled(h, s);
}

static void copy_between(struct history *h) {
    int from = any_slot(h);
    if (from < 0 || !readable(h, from))
        return;
    int to = writing_slot(h, desc_of(h, from)->file);
    if (to < 0)
        return;
    struct file *f = file_of(h, from), *t = file_of(h, to);
    off_t at = below(h, f->size + 1), target = below(h, t->size + 1);
    if (chance(h, 50))
        at = at / PAGE * PAGE, target = target / PAGE * PAGE;
    size_t len = 1 + below(h, MOST - target), most = there(f, at, len);
    ssize_t got;
    off_t from_at = at;
    if (chance(h, 50)) {
        off_t to_at = target;
        say(h, "copy_file_range slot %d (file %d) at %#lx to slot %d (file %d) at %#lx, %#zx bytes", from, desc_of(h, from)->file,
            (long)at, to, desc_of(h, to)->file, (long)target, len);
        got = copy_file_range(h->slots[from].fd, &from_at, h->slots[to].fd, &to_at, len, 0);
    } else {
        seek(h, to, target);
        say(h, "sendfile slot %d (file %d) at %#lx to slot %d (file %d) at %#lx, %#zx bytes", from, desc_of(h, from)->file,
            (long)at, to, desc_of(h, to)->file, (long)target, len);
        got = sendfile(h->slots[to].fd, h->slots[from].fd, &from_at, len);
        if (got > 0)
            desc_of(h, to)->at += got;
    }
    if (got < 0 || (size_t)got > most || (got == 0 && most > 0))
        fail(h, "copied %zd of %zu bytes: errno %d", got, most, errno);
    put(t, target, f->is + at, got);
    settled(h, from);
    settled(h, to);
}

static void map_shared(struct history *h) {
    if (h->map == NULL) {
        int s = any_slot(h);
        if (s < 0 || (desc_of(h, s)->flags & O_ACCMODE) != O_RDWR || file_of(h, s)->size == 0)
            return;
        h->map_file = desc_of(h, s)->file;
        h->map_len = file_of(h, s)->size;
        say(h, "mmap file %d, shared, %#zx bytes", h->map_file, h->map_len);
        h->map = mmap(NULL, h->map_len, PROT_READ | PROT_WRITE, MAP_SHARED, h->slots[s].fd, 0);
        if (h->map == MAP_FAILED)
            fail(h, "mmap: errno %d", errno);
    }
    struct file *f = &h->files[h->map_file];
    size_t len = h->map_len < f->size ? h->map_len : f->size;
    if (len > 0) {
        size_t at = below(h, len), n = 1 + below(h, len - at);
        uint32_t seed = next(h);
        say(h, "store into the shared mapping of file %d, %#zx bytes at %#zx", h->map_file, n, at);
        fill(h->map + at, n, seed);
        fill(f->is + at, n, seed);
        same(h, "shared mapping of file", h->map_file, 0, h->map, f->is, len);
    }
    if (chance(h, 60)) {
        say(h, "munmap the shared mapping");
        munmap(h->map, h->map_len);
        h->map = NULL;
    }
}

/* Both names go, and a new file takes them; its inode number may be that of the old one. */
static void recreate(struct history *h) {
    int f = below(h, FILES);
    if (h->map && h->map_file == f)
        return;
    for (int s = 0; s < SLOTS; s++)
        if (h->slots[s].fd >= 0 && desc_of(h, s)->file == f)
            close_slot(h, s);
    struct file *file = &h->files[f];
    file->size = below(h, MOST);
    uint32_t seed = next(h);
    fill(file->is, file->size, seed);
    say(h, "unlink file %d, and make it anew, %#zx bytes", f, file->size);
    unlink(file->path[0]);
    unlink(file->path[1]);
    int fd = open(file->path[0], O_RDWR | O_CREAT | O_EXCL, 0600);
    for (size_t at = 0; at < file->size; at += SMALL) {
        size_t len = file->size - at < SMALL ? file->size - at : SMALL;
        expect(h, "write", write(fd, file->is + at, len), len, 0);
    }
    close(fd);
    expect(h, "link", link(file->path[0], file->path[1]), 0, 0);
}

/* The other process. */

static void serve(struct history *h, int from, int to) {
    struct command c;
    int held[FILES] = {-1, -1, -1};
    unsigned char piece[SMALL];
    while (read(from, &c, sizeof c) == sizeof c) {
        const char *path = h->files[c.file].path[c.seed & 1];
        uint64_t answer = 0;
        int fd = -1, bad = 0;
        switch (c.order) {
        case PWRITE:
        case APPEND:
            fd = open(path, c.order == APPEND ? O_WRONLY | O_APPEND : O_RDWR);
            fill(h->bytes, c.len, c.seed);
            for (size_t at = 0; at < c.len; at += SMALL) {
                ssize_t n = c.len - at < SMALL ? c.len - at : SMALL;
                bad |= (c.order == APPEND ? write(fd, h->bytes + at, n) : pwrite(fd, h->bytes + at, n, c.at + at)) != n;
            }
            break;
        case FTRUNCATE:
            fd = open(path, O_WRONLY);
            bad = ftruncate(fd, c.len);
            break;
        case TRUNCATE: bad = truncate(path, c.len); break;
        case OPEN_TRUNC: bad = (fd = open(path, O_WRONLY | O_TRUNC)) < 0; break;
        case HOLD_WRITE:
        case HOLD_READ:
            if (held[c.file] < 0)
                bad = (held[c.file] = open(path, c.order == HOLD_READ ? O_RDONLY : O_WRONLY)) < 0;
            break;
        case LET_GO:
            if (held[c.file] >= 0)
                close(held[c.file]);
            held[c.file] = -1;
            break;
        default: {
            fd = open(path, O_RDONLY);
            answer = 1;
            for (ssize_t n; (n = read(fd, piece, sizeof piece)) > 0;)
                answer = sum(piece, n, answer);
        }
        }
        if (fd >= 0)
            close(fd);
        if (bad)
            answer = 0x1000000 + errno;
        if (write(to, &answer, sizeof answer) != sizeof answer)
            break;
    }
    _exit(0);
}

static void start_helper(struct history *h) {
    int there[2], back[2];
    if (pipe2(there, O_CLOEXEC) || pipe2(back, O_CLOEXEC))
        fail(h, "pipe2");
    h->helper = fork();
    if (h->helper == 0) {
        for (int i = 0; i < 2; i++)
            if (histories[i].helper > 0)
                close(histories[i].order[1]);
        close(there[1]);
        close(back[0]);
        serve(h, there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    h->order[0] = back[0];
    h->order[1] = there[1];
}

static void other_process(struct history *h) {
    static const char *names[] = {"pwrite", "ftruncate", "truncate", "open O_TRUNC", "append", "hold open to write",
                                  "hold open to read", "let go", "sum"};
    struct command c = {.order = below(h, ORDERS), .file = below(h, FILES), .seed = next(h)};
    if (chance(h, 40))
        c.order = PWRITE;
    if ((c.order == HOLD_WRITE || c.order == HOLD_READ) && chance(h, 80))
        c.order = LET_GO;
    struct file *f = &h->files[c.file];
    c.at = below(h, f->size + 1);
    if (chance(h, 50))
        c.at = c.at / PAGE * PAGE;
    switch (c.order) {
    case PWRITE: c.len = below(h, (MOST - c.at < 9 * PAGE ? MOST - c.at : 9 * PAGE)); break;
    case APPEND: c.len = below(h, MOST - f->size < 3 * PAGE ? MOST - f->size : 3 * PAGE); break;
    default: c.len = below(h, MOST);
    }
    say(h, "other process: %s file %d, %#zx at %#lx", names[c.order], c.file, c.len, (long)c.at);
    uint64_t answer = 0, want = 0;
    if (write(h->order[1], &c, sizeof c) != sizeof c || read(h->order[0], &answer, sizeof answer) != sizeof answer)
        fail(h, "the other process is gone");
    switch (c.order) {
    case PWRITE:
    case APPEND:
        fill(h->bytes, c.len, c.seed);
        put(f, c.order == APPEND ? f->size : (size_t)c.at, h->bytes, c.len);
        break;
    case FTRUNCATE:
    case TRUNCATE: resize_file(f, c.len); break;
    case OPEN_TRUNC: f->size = 0; break;
    case SUM: want = sum(f->is, f->size, 1); break;
    default: break;
    }
    if (answer != want)
        fail(h, "the other process answers %#lx, not %#lx", (unsigned long)answer, (unsigned long)want);
}

/* Processes made. */

static void reap(struct history *h, pid_t pid, int want) {
    int status = -1;
    expect(h, "waitpid", waitpid(pid, &status, 0), pid, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != want)
        fail(h, "a child's status is %#x", status);
}

static void some_reads(struct history *h) {
    for (int s = 0; s < SLOTS; s++) {
        if (h->slots[s].fd < 0 || !readable(h, s))
            continue;
        int i = a_buffer(h);
        struct buffer *b = &h->buffers[i];
        off_t at;
        size_t start, len;
        place(h, file_of(h, s), b, &at, &start, &len);
        say(h, "pread slot %d, %#zx bytes at %#lx to buffer %d at %#zx", s, len, (long)at, i, start);
        size_t n = there(file_of(h, s), at, len);
        expect(h, "pread", pread(h->slots[s].fd, b->p + start, len, at), n, 0);
        memcpy(b->is + start, file_of(h, s)->is + at, n);
    }
}

static void fork_both(struct history *h) {
    int s = writing_slot(h, -1);
    size_t at = below(h, MOST / 2), len = 1 + below(h, 20 * PAGE);
    fill(h->bytes, len, next(h));
    if (s >= 0)
        say(h, "fork; the child writes %#zx bytes at %#zx of slot %d (file %d)", len, at, s, desc_of(h, s)->file);
    else
        say(h, "fork");
    pid_t pid = fork();
    if (pid < 0)
        fail(h, "fork: errno %d", errno);
    if (pid == 0) {
        h->child = 1;
        if (chance(h, 50))
            check_buffers(h);
        some_reads(h);
        for (int i = below(h, 8); i > 0; i--)
            store(h);
        if (s >= 0) {
            expect(h, "pwrite", pwrite(h->slots[s].fd, h->bytes, len, at), len, 0);
            put(file_of(h, s), at, h->bytes, len);
        }
        some_reads(h);
        check_all(h);
        _exit(7);
    }
    for (int i = below(h, 4); i > 0; i--)
        store(h);
    if (chance(h, 50))
        check_buffers(h);
    reap(h, pid, 7);
    if (s >= 0) {
        put(file_of(h, s), at, h->bytes, len);
        settled(h, s);
    }
    if (chance(h, 50))
        check_buffers(h);
}

static void spawn(struct history *h) {
    char *arguments[] = {"true", NULL};
    pid_t pid;
    switch (below(h, 3)) {
    case 0:
        say(h, "vfork and exec");
        pid = vfork();
        if (pid == 0) {
            execv("/bin/true", arguments);
            _exit(99);
        }
        reap(h, pid, 0);
        break;
    case 1:
        say(h, "posix_spawn");
        expect(h, "posix_spawn", posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, environ), 0, 0);
        reap(h, pid, 0);
        break;
    default:
        say(h, "system");
        expect(h, "system", system("exit 5"), 5 << 8, 0);
    }
}

/* The signal handler, with a file and memory of its own. */

enum { SIGNAL_LEN = 20 * PAGE };
static int signal_fd = -1;
static unsigned char *signal_buffer;
static unsigned char signal_is[SIGNAL_LEN];
static volatile sig_atomic_t signals, signal_bad;

static void on_alarm(int number) {
    int before = errno;
    unsigned char little[100];
    size_t at = (size_t)signals * 977 % (SIGNAL_LEN - 100);
    (void)number;
    if (pread(signal_fd, little, 100, at) != 100 || memcmp(little, signal_is + at, 100))
        signal_bad = 1;
    memset(little, (int)signals, 100);
    memcpy(signal_is + at, little, 100);
    if (pwrite(signal_fd, little, 100, at) != 100)
        signal_bad = 2;
    if (signals % 4 == 0 &&
        (pread(signal_fd, signal_buffer, SIGNAL_LEN, 0) != SIGNAL_LEN || memcmp(signal_buffer, signal_is, SIGNAL_LEN)))
        signal_bad = 3;
    if (signals % 8 == 1) {
        signal_buffer[at] ^= 1;
        signal_is[at] = signal_buffer[at];
        /* What was read before and written since is not in the buffer; take the file's word for it. */
        if (pread(signal_fd, signal_buffer, SIGNAL_LEN, 0) != SIGNAL_LEN)
            signal_bad = 4;
        signal_buffer[at] = signal_is[at];
        if (pwrite(signal_fd, signal_buffer, SIGNAL_LEN, 0) != SIGNAL_LEN)
            signal_bad = 5;
    }
    signals++;
    errno = before;
}

static void start_signals(struct history *h) {
    char path[600];
    snprintf(path, sizeof path, "%s/signals", directory);
    signal_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    signal_buffer = mmap(NULL, SIGNAL_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(signal_is, SIGNAL_LEN, h->seed);
    if (write(signal_fd, signal_is, SIGNAL_LEN) != SIGNAL_LEN)
        fail(h, "write");
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval every = {{0, 700}, {0, 700}};
    setitimer(ITIMER_REAL, &every, NULL);
}

static void end_signals(struct history *h) {
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
    if (signal_bad)
        fail(h, "in the signal handler: %d", (int)signal_bad);
    if (signals == 0)
        fail(h, "the signal handler never ran");
}

/* A history. */

static void begin(struct history *h, unsigned long seed, long steps, int thread) {
    h->seed = seed;
    h->steps = steps;
    h->most_slots = 1;
    h->random = (seed * 2 + thread + 1) * 0x9e3779b97f4a7c15ull;
    for (int s = 0; s < SLOTS; s++)
        h->slots[s].fd = -1;
    for (int f = 0; f < FILES; f++) {
        struct file *file = &h->files[f];
        for (int i = 0; i < 2; i++)
            snprintf(file->path[i], sizeof file->path[i], "%s/%d-%d%s", directory, thread, f, i ? "-link" : "");
        file->size = f == 0 ? MOST - 30 * PAGE + below(h, PAGE) : below(h, MOST);
        fill(file->is, file->size, next(h));
        int fd = open(file->path[0], O_RDWR | O_CREAT | O_EXCL, 0600);
        for (size_t at = 0; at < file->size; at += SMALL) {
            size_t len = file->size - at < SMALL ? file->size - at : SMALL;
            expect(h, "write", write(fd, file->is + at, len), len, 0);
        }
        close(fd);
        expect(h, "link", link(file->path[0], file->path[1]), 0, 0);
    }
}

static void *run(void *argument) {
    struct history *h = argument;
    for (h->step = 0; h->step < h->steps; h->step++) {
        size_t what = below(h, 1000);
        if (what < 160) do_read(h, 0);
        else if (what < 300) do_read(h, 1);
        else if (what < 390) do_write(h, 0);
        else if (what < 480) do_write(h, 1);
        else if (what < 550) vectors(h);
        else if (what < 600) stream(h);
        else if (what < 700) store(h);
        else if (what < 730) copy(h);
        else if (what < 760) make_buffer(h, below(h, BUFFERS));
        else if (what < 785) resize_buffer(h);
        else if (what < 810) advise(h);
        else if (what < 820) unmap_part(h);
        else if (what < 875) open_slot(h);
        else if (what < 885) { int s = any_slot(h); if (s >= 0) close_slot(h, s); }
        else if (what < 905) duplicate(h);
        else if (what < 920) bad_seek(h);
        else if (what < 940) change(h);
        else if (what < 950) copy_between(h);
        else if (what < 956) map_shared(h);
        else if (what < 960) recreate(h);
        else if (what < 976) other_process(h);
        else if (what < 980) fork_both(h);
        else if (what < 982) spawn(h);
        else if (what < 992) check_buffer(h, below(h, BUFFERS));
        else if (what < 995) check_buffers(h);
        else if (what < 996) check_all(h);
        else drop_buffer(h, below(h, BUFFERS));
    }
    check_all(h);
    /* In the end, what was read last must not depend on descriptors, nor on the other names of the file. */
    for (int s = 0; s < SLOTS; s++)
        if (h->slots[s].fd >= 0)
            close_slot(h, s);
    check_buffers(h);
    for (int f = 0; f < FILES; f++) {
        unlink(h->files[f].path[0]);
        unlink(h->files[f].path[1]);
    }
    check_buffers(h);
    return NULL;
}

int main(int count, char **arguments) {
    if (count < 4)
        return 2;
    unsigned long seed = strtoul(arguments[1], NULL, 0);
    long steps = strtol(arguments[2], NULL, 0);
    directory = arguments[3];
    const char *flags = count > 4 ? arguments[4] : "";
    int threads = strchr(flags, 't') ? 2 : 1;
    for (int i = 0; i < threads; i++) {
        begin(&histories[i], seed, steps, i);
        start_helper(&histories[i]);
    }
    pthread_t other;
    if (threads == 2) {
        sigset_t alarm;
        sigemptyset(&alarm);
        sigaddset(&alarm, SIGALRM);
        pthread_sigmask(SIG_BLOCK, &alarm, NULL);
        pthread_create(&other, NULL, run, &histories[1]);
        pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
    }
    if (strchr(flags, 's'))
        start_signals(&histories[0]);
    run(&histories[0]);
    if (threads == 2)
        pthread_join(other, NULL);
    if (strchr(flags, 's'))
        end_signals(&histories[0]);
    for (int i = 0; i < threads; i++) {
        close(histories[i].order[1]);
        reap(&histories[i], histories[i].helper, 0);
    }
    return 0;
}
