/* Blocks whose place has to be guessed before it is known what is read into them.
 *
 *     placement ROW FILE */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER = 128, PIECE = 1 << 20 };
static char header[8192];
static size_t size;

static void need(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void says(const unsigned char *bytes, size_t len) { printf("%d %d\n", bytes[0], bytes[len - 1]); }

/* What numpy does for numpy.load: a stream of its own on a duplicate, at the place where its caller is. */
static void stream_seeks(const char *path) {
    int fd = open(path, O_RDONLY);
    need(read(fd, header, sizeof header) == sizeof header, "read");
    FILE *file = fdopen(dup(fd), "r");
    need(!fseek(file, HEADER, SEEK_SET) && ftell(file) == HEADER && !fseek(file, 0, SEEK_CUR), "fseek");
    unsigned char *bytes = malloc(size - HEADER - PIECE);
    need(fread(bytes, 1, size - HEADER - PIECE, file) == size - HEADER - PIECE, "fread");
    says(bytes, size - HEADER - PIECE);
    fclose(file);
}

static void stream_tells(const char *path) {
    FILE *file = fopen(path, "r");
    need(fread(header, 1, HEADER, file) == HEADER && ftello(file) == HEADER && ftello64(file) == HEADER, "ftello");
    unsigned char *bytes = malloc(size - PIECE);
    need(fread(bytes, 1, size - PIECE, file) == size - PIECE, "fread");
    says(bytes, size - PIECE);
    fclose(file);
}

static void stream_rewinds(const char *path) {
    FILE *file = fopen(path, "r");
    need(!fseeko(file, 32, SEEK_SET) && !fseeko64(file, 112, SEEK_SET), "fseeko");
    rewind(file);
    unsigned char *bytes = malloc(size - PIECE);
    need(fread(bytes, 1, size - PIECE, file) == size - PIECE, "fread");
    says(bytes, size - PIECE);
    fclose(file);
}

static void stream_reads_on(const char *path) {
    FILE *file = fopen(path, "r");
    need(fread(header, 1, HEADER, file) == HEADER, "fread");
    unsigned char *bytes = malloc(size - HEADER);
    need(fread(bytes, 1, size - HEADER, file) == size - HEADER, "fread");
    says(bytes, size - HEADER);
    fclose(file);
}

/* A buffer of 8 KiB ahead of the program; `before` bytes of its own in front of what is read, `after` behind. */
static void buffered(const char *path, size_t before, size_t after) {
    int fd = open(path, O_RDONLY);
    need(read(fd, header, sizeof header) == sizeof header, "read");
    unsigned char *block = malloc(before + size - HEADER + after), *bytes = block + before;
    memcpy(bytes, header + HEADER, sizeof header - HEADER);
    need(read(fd, bytes + sizeof header - HEADER, size - sizeof header) == (ssize_t)(size - sizeof header), "read");
    says(bytes, size - HEADER);
}

static void python_readinto(const char *path) { buffered(path, 0, 0); }
static void python_bytearray(const char *path) { buffered(path, 0, 1); }
static void python_read(const char *path) { buffered(path, 32, 1); }

static void python_reads_a_part(const char *path) {
    int fd = open(path, O_RDONLY);
    unsigned char *block = malloc(32 + PIECE + 1);
    need(read(fd, block + 32, PIECE) == PIECE, "read");
    says(block + 32, PIECE);
}

/* HDF5: positioned reads alone. */
static void positioned(const char *path) {
    int fd = open(path, O_RDONLY);
    need(pread(fd, header, 512, 96) == 512, "pread");
    unsigned char *bytes = malloc(size - 2048);
    need(pread(fd, bytes, size - 2048, 2048) == (ssize_t)(size - 2048), "pread");
    says(bytes, size - 2048);
}

/* TIFF: the end is read first. */
static void trailer(const char *path) {
    int fd = open(path, O_RDONLY);
    size_t end = size - 1234;
    need(lseek(fd, end, SEEK_SET) == (off_t)end && read(fd, header, sizeof header) == 1234, "read");
    need(lseek(fd, 0, SEEK_CUR) == (off_t)size, "lseek");
    unsigned char *bytes = malloc(end - 256);
    need(lseek(fd, 256, SEEK_SET) == 256 && read(fd, bytes, end - 256) == (ssize_t)(end - 256), "read");
    says(bytes, end - 256);
}

/* GNU as, .incbin: 64 KiB and a header more than is read, and the obstack's header before. */
static void assembler(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat status;
    need(!fstat(fd, &status), "fstat");
    unsigned char *block = malloc(size + 65536 + 160), *bytes = block + 176;
    need(read(fd, bytes, size) == (ssize_t)size, "read");
    says(bytes, size);
}

/* Of the little-endian fields of a header. */
static void put(size_t at, unsigned long value, int bytes) {
    for (; bytes--; value >>= 8)
        header[at++] = value;
}

static void store(const char *path, size_t at, size_t len) {
    int fd = open(path, O_WRONLY);
    need(pwrite(fd, header, len, at) == (ssize_t)len && !close(fd), "pwrite");
}

static void pieces_at(const char *path, const size_t *places, int count) {
    int fd = open(path, O_RDONLY);
    need(pread(fd, header, 512, 0) == 512, "pread");
    for (int i = 0; i < count; i++) {
        unsigned char *block = calloc(PIECE, 1);
        need(pread(fd, block, PIECE, places[i]) == PIECE, "pread");
        says(block, PIECE);
    }
}

/* HDF5: the header of each data set has its place and length. The third has its header right before it. */
static void listed(const char *path) {
    const size_t places[] = {2048, PIECE + 2048 + 16, 3 * PIECE + 32};
    put(930, places[0], 8), put(938, PIECE, 8), put(1530, places[1], 8), put(1538, PIECE, 8);
    store(path, 0, 2048);
    put(130, places[2], 8), put(138, PIECE, 8);
    store(path, places[1] + PIECE, 1024);
    pieces_at(path, places, 3);
}

/* An archive (torch): members in the order of their names as text, read in the order of the numbers. */
static void archive(const char *path) {
    const char *names[] = {"data/8", "data/10", "data/9"};
    size_t places[3], at = 0;
    for (int i = 0; i < 3; i++) {
        memset(header, 0, 64);
        memcpy(header, "PK\3\4", 4), put(26, strlen(names[i]), 2), put(28, 16 * i + 34 - strlen(names[i]), 2);
        memcpy(header + 30, names[i], strlen(names[i]));
        store(path, at, 64 + 16 * i);
        places[i] = at + 64 + 16 * i;
        at = places[i] + PIECE;
    }
    memset(header, 0, 1024);
    for (size_t i = 0, record = 512; i < 3; i++) {
        memcpy(header + record, "PK\1\2", 4), put(record + 20, PIECE, 4), put(record + 24, PIECE, 4);
        put(record + 28, strlen(names[i]), 2), put(record + 42, places[i] - 64 - 16 * i, 4);
        memcpy(header + record + 46, names[i], strlen(names[i]));
        record += 46 + strlen(names[i]);
    }
    store(path, size - 1024, 1024);
    pieces_at(path, (size_t[]){places[0], places[2], places[1]}, 3);
}

/* The first block has to be unlucky for the next ones to be right. */
static void pieces(const char *path, size_t before) {
    int fd = open(path, O_RDONLY);
    for (int i = 0; i < 6; i++) {
        unsigned char *block = malloc(before + PIECE);
        need(pread(fd, block + before, PIECE, 1104 + i * PIECE) == PIECE, "pread");
        says(block + before, PIECE);
        free(block);
    }
}

/* As pandas.read_feather: objects one behind the other, of a length that is no multiple of a page. The first three tell. */
static void objects_in_a_row(const char *path) {
    int fd = open(path, O_RDONLY);
    const ssize_t len = PIECE + 1040;
    for (int i = 0; i < 7; i++) {
        unsigned char *block = malloc(32 + len + 1);
        need(pread(fd, block + 32, len, 1664 + i * len) == len, "pread");
        says(block + 32, len);
    }
}

static void pieces_behind_a_header(const char *path) { pieces(path, 0); }
static void pieces_in_objects(const char *path) { pieces(path, 48); }

#define ROW(name) {#name, name}
static const struct {
    const char *name;
    void (*run)(const char *);
} rows[] = {
    ROW(stream_seeks), ROW(stream_tells), ROW(stream_rewinds), ROW(stream_reads_on), ROW(python_readinto),
    ROW(python_bytearray), ROW(python_read), ROW(python_reads_a_part), ROW(positioned), ROW(trailer),
    ROW(pieces_behind_a_header), ROW(pieces_in_objects), ROW(assembler), ROW(listed), ROW(archive), ROW(objects_in_a_row),
};

int main(int count, char **words) {
    struct stat status;
    if (count != 3 || stat(words[2], &status))
        return 2;
    size = status.st_size;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!strcmp(words[1], rows[i].name)) {
            rows[i].run(words[2]);
            return 0;
        }
    return 2;
}
