// A thread forks, and in the child it ends before the others, which give its stack back to the kernel. Then the helper is killed.
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include "helper.h"

#define LEN (1 << 20)
// More than libc keeps of stacks that nobody uses.
#define STACK (64 << 20)

static pid_t child_id;
static unsigned char *on_its_stack;

static void *nothing(void *none) { return none; }

static pthread_t thread(void *(*begin)(void *), int detached) {
    pthread_t made;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_attr_setdetachstate(&attributes, detached ? PTHREAD_CREATE_DETACHED : PTHREAD_CREATE_JOINABLE);
    need(!pthread_create(&made, &attributes, begin, NULL), "pthread_create");
    return made;
}

static int is_mapped(unsigned char *at) {
    unsigned char in_memory;
    return !mincore((void *)((size_t)at & ~4095ul), 1, &in_memory);
}

static void check_read(void) {
    unsigned char *p = memory(LEN);
    int fd = open("file", O_RDONLY);
    need(read(fd, p, LEN) == LEN, "read");
    for (int i = 0; i < LEN; i++)
        need(p[i] == 5, "a byte");
    close(fd);
}

static pid_t next_helper(pid_t but) {
    pid_t next = 0;
    for (int i = 0; !next && i < 5000; i++, usleep(1000))
        next = helper(child_id, but);
    return next;
}

static void *goes_on(void *none) {
    (void)none;
    // libc gives back what it has too much of when the next stack is.
    for (int i = 0; is_mapped(on_its_stack) && i < 1000; i++, usleep(1000))
        pthread_join(thread(nothing, 0), NULL);
    need(!is_mapped(on_its_stack), "the stack stays");
    pid_t first = helper(child_id, 0);
    need(first && !kill(first, SIGKILL), "no helper");
    // What was read depends on the next one. By the second answer that has been through all that a helper looks at.
    pid_t next = next_helper(first);
    check_read(), check_read();
    printf("another: %d, and it stays: %d\n", next != 0, next == helper(child_id, 0));
    exit(0);
}

static void *forks(void *none) {
    unsigned char here;
    on_its_stack = &here;
    pid_t child = fork();
    if (child) {
        int status;
        waitpid(child, &status, 0);
        _exit(status != 0);
    }
    child_id = getpid();
    unsigned char *p = memory(LEN);
    int fd = open("file", O_RDONLY);
    need(read(fd, p, LEN) == LEN, "read");
    thread(goes_on, 1);
    return none;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    make("file", LEN, 5);
    thread(forks, 1);
    pause();
}
