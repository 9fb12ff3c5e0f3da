/* Threads cancelled in the middle of a read: they unwind, and their clean-up runs. */
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <pthread.h>

enum { BIG = 1 << 20 };
static int ends[2];

static void clean(void *which) { printf("cleaned up after %s\n", (char *)which); }

static void *small_read(void *unused) {
    char byte;
    pthread_cleanup_push(clean, "a small read");
    read(ends[0], &byte, 1);
    pthread_cleanup_pop(0);
    return unused;
}

static void *big_read(void *unused) {
    char *buf = malloc(BIG);
    pthread_cleanup_push(clean, "a big read");
    read(ends[0], buf, BIG);
    pthread_cleanup_pop(0);
    return unused;
}

static void *big_write(void *unused) {
    char *buf = calloc(1, BIG);
    pthread_cleanup_push(clean, "a big write");
    write(ends[1], buf, BIG);
    pthread_cleanup_pop(0);
    return unused;
}

/* Pending before the call, which would not block. */
static void *pending(void *unused) {
    char *buf = malloc(BIG);
    int fd = open("data", O_RDWR | O_CREAT, 0600);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    ftruncate(fd, BIG);
    pthread_cancel(pthread_self());
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
    pthread_cleanup_push(clean, "a pending cancellation");
    read(fd, buf, BIG);
    puts("not reached");
    pthread_cleanup_pop(0);
    return unused;
}

static void cancelled(void *(*run)(void *)) {
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, run, NULL);
    usleep(30000);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    printf("cancelled: %d\n", result == PTHREAD_CANCELED);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    pipe(ends);
    cancelled(small_read);
    cancelled(big_read);
    cancelled(big_write);
    cancelled(pending);
    return 0;
}
