/* How many bytes of the stack each call takes: it is made on a stack of its own, which has a pattern before and is looked at after. */
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>

enum { LEN = 1 << 20, ROOM = 1 << 18, PATTERN = 0xa5 };
extern char **environ;

static unsigned char room[ROOM] __attribute__((aligned(4096)));
static ucontext_t here, there;
static void (*call)(void);
static void begin(void) { call(); }

static unsigned taken(void (*by)(void)) {
    memset(room, PATTERN, ROOM);
    call = by;
    getcontext(&there);
    there.uc_stack.ss_sp = room, there.uc_stack.ss_size = ROOM, there.uc_link = &here;
    makecontext(&there, begin, 0);
    swapcontext(&here, &there);
    unsigned untouched = 0;
    while (untouched < ROOM && room[untouched] == PATTERN)
        untouched++;
    return ROOM - untouched;
}

static int fd, both, other, to;
static char *p, *q;
static void *volatile block;
static struct iovec pieces[2];
static char *arguments[] = {"true", NULL};

static void wait_for(pid_t child) { waitpid(child, NULL, 0); }
static void c_open(void) { fd = open("file", O_RDONLY); }
static void c_first_read(void) { pread(fd, p, LEN, 0); }
static void c_read(void) { pread(fd, p, LEN, 0); }
static void c_small_read(void) { pread(fd, p, 10, 0); }
static void c_readv(void) { preadv(fd, pieces, 2, 0); }
static void c_open_both(void) { both = open("both", O_RDWR); }
static void c_read_both(void) { pread(both, q, LEN, 0); }
static void c_save(void) { q[9999] ^= 1, pwrite(both, q, LEN, 0); }
static void c_small_write(void) { pwrite(both, "x", 1, 5); }
static void c_read_again(void) { pread(both, q, LEN, 0); }
static void c_ftruncate(void) { ftruncate(both, LEN - 1); }
static void c_sendfile(void) { sendfile(to, fd, &(off_t){0}, LEN); }
static void c_copy(void) { copy_file_range(fd, &(off_t){0}, to, &(off_t){0}, LEN, 0); }
static void c_dup(void) { other = dup(both); }
static void c_dup_over(void) { dup2(fd, other); }
static void c_fcntl(void) { fcntl(both, F_SETLK, &(struct flock){.l_type = F_RDLCK}); }
static void c_close(void) { close(other); }
static void c_malloc(void) { block = malloc(LEN); }
static void c_read_block(void) { pread(fd, block, LEN, 0); }
static void c_realloc(void) { block = realloc(block, 2 * LEN); }
static void c_free(void) { free(block); }
static void c_map(void) { block = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
static void c_remap(void) { block = mremap(block, LEN, 2 * LEN, MREMAP_MAYMOVE); }
static void c_protect(void) { mprotect(block, 4096, PROT_READ); }
static void c_discard(void) { madvise(block, LEN, MADV_DONTNEED); }
static void c_unmap(void) { munmap(block, 2 * LEN); }
static void c_fork(void) {
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    wait_for(child);
}
static void c_vfork(void) {
    pid_t child = vfork();
    if (child == 0)
        _exit(0);
    wait_for(child);
}
static void c_spawn(void) {
    pid_t child;
    if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ) == 0)
        wait_for(child);
}
static void c_execute(void) {
    pid_t child = vfork();
    if (child == 0) {
        execv("/bin/true", arguments);
        _exit(1);
    }
    wait_for(child);
}
static void c_execute_list(void) {
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", "1", "2", "3", "4", "5", "6", "7", (char *)NULL);
        _exit(1);
    }
    wait_for(child);
}
static void c_truncate(void) { close(open("both", O_RDONLY | O_TRUNC)); }
static void c_no_wait(void) { close(open("file", O_WRONLY | O_NONBLOCK)); }
static void c_memory(void) { close(shm_open("/elision no such memory", O_RDWR | O_NONBLOCK, 0)); }
static void c_rights(void) { setuid(getuid()); }
static void c_lease(void) { fcntl(fd, F_SETLEASE, F_RDLCK); }

#define CALL(name) {#name, c_##name}
static const struct {
    const char *name;
    void (*by)(void);
} calls[] = {CALL(open),     CALL(first_read), CALL(read),     CALL(small_read),   CALL(readv),   CALL(open_both),
             CALL(read_both), CALL(save),      CALL(small_write), CALL(read_again), CALL(ftruncate), CALL(sendfile),
             CALL(copy),     CALL(dup),        CALL(dup_over), CALL(fcntl),        CALL(close),   CALL(malloc),
             CALL(read_block), CALL(realloc),  CALL(free),     CALL(map),          CALL(remap),   CALL(protect),
             CALL(discard),  CALL(unmap),      CALL(fork),     CALL(vfork),        CALL(spawn),   CALL(execute),
             CALL(execute_list), CALL(truncate), CALL(read),   CALL(no_wait),      CALL(memory),  CALL(read),
             CALL(rights),   CALL(read),       CALL(lease)};

static void make(const char *name) {
    int made = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    fill(p, LEN, 1);
    if (write(made, p, LEN) != LEN)
        exit(1);
    close(made);
}

int main(void) {
    p = mmap(NULL, 2 * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    q = p + LEN;
    pieces[0] = (struct iovec){p, LEN / 2}, pieces[1] = (struct iovec){p + LEN / 2, LEN / 2};
    make("file"), make("both");
    to = open("to", O_RDWR | O_CREAT, 0600);
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++)
        printf("%s %u\n", calls[i].name, taken(calls[i].by));
    return 0;
}
