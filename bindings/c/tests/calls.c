/* Calls every function of elision.h, and checks what comes back: calls FILE, a file of 16 MiB of lines like 000000000000000. */
#include <elision.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "line %d: %s (errno %d, %s)\n", __LINE__, #what, errno, strerror(errno)); \
            exit(1); \
        } \
    } while (0)
/* The call fails with this errno. */
#define FAILS(call, number) \
    do { \
        errno = 0; \
        CHECK(call); \
        CHECK(errno == (number)); \
    } while (0)

enum { SIZE = 16 << 20 };

static void whole_files(const char *path)
{
    FAILS(elision_read("/nonexistent/file") == NULL, ENOENT);
    FAILS(elision_read(NULL) == NULL, EFAULT);
    FAILS(elision_edit("/") == NULL, EISDIR);
    elision_buffer *buffer = elision_read(path);
    CHECK(buffer != NULL && elision_buffer_len(buffer) == SIZE);
    uint8_t *data = elision_buffer_data(buffer);
    CHECK((uintptr_t)data % 16 == 0 && memcmp(data + 16, "000000000000001\n", 16) == 0);
    FAILS(elision_buffer_len(NULL) == 0, EINVAL);
    FAILS(elision_buffer_data(NULL) == NULL, EINVAL);

    CHECK(elision_buffer_load(buffer, 8 << 20, 100) == 0);
    CHECK(elision_buffer_load(buffer, SIZE, 0) == 0);
    FAILS(elision_buffer_load(buffer, SIZE, 1) == -1, EINVAL);
    FAILS(elision_buffer_load(buffer, 1, SIZE_MAX) == -1, EINVAL);
    CHECK(elision_buffer_unload(buffer, 0, SIZE) >= 0);
    FAILS(elision_buffer_unload(buffer, 1, SIZE) == -1, EINVAL);
    CHECK(memcmp(data + (8 << 20), "000000000524288\n", 16) == 0);

    data[5 << 20] = 'x';
    elision_range ranges[8];
    ssize_t count = elision_buffer_ranges(buffer, ranges, 8);
    CHECK(count >= 1 && ranges[0].start == 0);
    for (ssize_t i = 0; i < count && i < 8; i++) {
        CHECK(ranges[i].end == (i + 1 < count ? ranges[i + 1].start : SIZE));
        if (ranges[i].start <= 5 << 20 && 5 << 20 < ranges[i].end)
            CHECK(ranges[i].state == ELISION_ALTERED || ranges[i].state == ELISION_PLAIN);
    }
    CHECK(elision_buffer_ranges(buffer, NULL, 0) == count);
    FAILS(elision_buffer_ranges(buffer, NULL, 1) == -1, EFAULT);

    FAILS(elision_write("/nonexistent/file", buffer) == -1, ENOENT);
    FAILS(elision_write(path, NULL) == -1, EINVAL);
    CHECK(elision_write(path, buffer) == 0);
    elision_buffer_close_file(buffer);
    elision_buffer_close_file(NULL);
    CHECK(elision_buffer_resize(buffer, SIZE + 5000) == 0);
    FAILS(elision_buffer_resize(buffer, SIZE_MAX) == -1, ENOMEM);
    data = elision_buffer_data(buffer);
    CHECK(elision_buffer_len(buffer) == SIZE + 5000 && data[SIZE + 4999] == 0 && data[5 << 20] == 'x');
    data[9 << 20] = 'y';
    CHECK(elision_write_atomic(path, buffer) == 0);
    data[9 << 20] = 'z';
    CHECK(elision_write_atomic_sync(path, buffer) == 0);
    elision_buffer_free(buffer);
    elision_buffer_free(NULL);

    elision_buffer *again = elision_edit(path);
    CHECK(again != NULL && elision_buffer_len(again) == SIZE + 5000);
    CHECK(elision_buffer_data(again)[5 << 20] == 'x' && elision_buffer_data(again)[9 << 20] == 'z');
    elision_buffer_free(again);
    FAILS(elision_write_bytes(path, NULL, 1) == -1, EFAULT);
    CHECK(elision_write_bytes(path, NULL, 0) == 0);
    CHECK(elision_write_bytes(path, "short", 5) == 0);
    buffer = elision_read(path);
    CHECK(buffer != NULL && elision_buffer_len(buffer) == 5 && memcmp(elision_buffer_data(buffer), "short", 5) == 0);
    elision_buffer_free(buffer);
}

static void *read_first_byte(void *file)
{
    elision_buffer *buffer = elision_file_read(file, 0, SIZE);
    CHECK(buffer != NULL);
    uintptr_t byte = elision_buffer_data(buffer)[0];
    elision_buffer_free(buffer);
    return (void *)byte;
}

static void parts_of_files(const char *path)
{
    FAILS(elision_file_open(path, O_RDONLY | O_TRUNC, 0) == NULL, EINVAL);
    FAILS(elision_file_open(path, O_RDWR | O_APPEND, 0) == NULL, EINVAL);
    FAILS(elision_file_open(path, O_RDWR | O_CREAT | O_EXCL, 0600) == NULL, EEXIST);
    elision_file *file = elision_file_open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file != NULL && elision_file_size(file) == 0);
    elision_buffer *buffer = elision_buffer_new(SIZE);
    CHECK(buffer != NULL);
    FAILS(elision_buffer_new(SIZE_MAX) == NULL, ENOMEM);
    memset(elision_buffer_data(buffer), 'a', SIZE);
    CHECK(elision_file_write(file, 0, buffer) == 0);
    elision_buffer_data(buffer)[6 << 20] = 'b';
    CHECK(elision_file_write_at(file, 0, buffer, 0, SIZE) == 0);
    FAILS(elision_file_write_at(file, 0, buffer, SIZE, 1) == -1, EINVAL);
    FAILS(elision_file_write(file, INT64_MAX, buffer) == -1, EINVAL);
    CHECK(elision_file_sync(file) == 0 && elision_file_sync_data(file) == 0);

    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, read_first_byte, file) == 0);
    for (int i = 0; i < 4; i++) {
        void *byte;
        CHECK(pthread_join(threads[i], &byte) == 0 && (uintptr_t)byte == 'a');
    }

    elision_buffer *part = elision_file_read(file, 4 << 20, SIZE);
    CHECK(part != NULL && elision_buffer_len(part) == 12 << 20 && elision_buffer_data(part)[2 << 20] == 'b');
    FAILS(elision_file_read(file, UINT64_MAX, 1) == NULL, EINVAL);
    CHECK(elision_file_read_at(file, SIZE - 10, part, 5, 100) == 10);
    FAILS(elision_file_read_at(file, 0, part, 12 << 20, 1) == -1, EINVAL);
    FAILS(elision_file_read_at(file, UINT64_MAX, part, 0, 1) == -1, EINVAL);

    /* A child has the bytes, whatever becomes of the file meanwhile. */
    int go[2];
    CHECK(pipe(go) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char word;
        close(go[1]);
        CHECK(read(go[0], &word, 1) == 0);
        CHECK(elision_buffer_data(part)[2 << 20] == 'b' && elision_buffer_data(part)[3 << 20] == 'a');
        elision_buffer_free(part);
        elision_file_close(file);
        exit(0);
    }
    close(go[0]);
    CHECK(elision_file_set_size(file, 1) == 0);
    FAILS(elision_file_set_size(file, UINT64_MAX) == -1, EINVAL);
    FAILS(elision_file_size(NULL) == -1, EINVAL);
    close(go[1]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(elision_buffer_data(part)[2 << 20] == 'b');
    CHECK(elision_file_size(file) == 1);
    elision_file_close(file);
    elision_file_close(NULL);
    elision_buffer_free(part);
    elision_buffer_free(buffer);
    /* No child is left that wait could find. */
    FAILS(wait(NULL) == -1, ECHILD);
}

static void counters(const char *path)
{
    CHECK(strcmp(elision_version(), "0.1.0") == 0);
    unsigned char some[sizeof(elision_stats) + 8];
    memset(some, 0xff, sizeof some);
    CHECK(elision_stats_snapshot((elision_stats *)(void *)some, 4) == 0);
    CHECK(some[4] == 0xff);
    FAILS(elision_stats_snapshot(NULL, 8) == -1, EFAULT);
    elision_stats stats;
    CHECK(elision_stats_snapshot(&stats, sizeof stats) == 0);

    elision_set_min_bytes(1);
    elision_buffer *none = elision_read("/proc/self/status");
    CHECK(none != NULL && elision_buffer_len(none) > 0);
    elision_buffer_free(none);
    CHECK(elision_write_bytes(path, some, 100) == 0);
    elision_buffer *little = elision_read(path);
    CHECK(little != NULL);
    elision_buffer_free(little);
    elision_declined declined[32];
    ssize_t count = elision_stats_declined(declined, 32);
    CHECK(count >= 1 && elision_stats_declined(NULL, 0) == count);
    FAILS(elision_stats_declined(NULL, 1) == -1, EFAULT);
    int small = 0;
    for (ssize_t i = 0; i < count; i++) {
        CHECK(declined[i].count > 0);
        if (strcmp(declined[i].reason, "small") == 0)
            small = declined[i].read_bytes >= 100;
    }
    CHECK(small);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    whole_files(argv[1]);
    parts_of_files(argv[1]);
    counters(argv[1]);
    puts("all is well");
    return 0;
}
