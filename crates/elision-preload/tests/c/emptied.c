// Files are read, altered, and saved over themselves with O_TRUNC. A witness, another process, is told in many ways how far the
// program is, and looks: it must find what it would find without Elision.
//
// emptied told ROUNDS SEED     one random save after another, each told in another way
// emptied shared ROUNDS SEED   the same by a program that shares writable memory, in which it tells
// emptied opened ROUNDS SEED   the same, while another process opens the file at any moment
// emptied killed ROUNDS SEED   the helper is killed at any moment; what was saved is looked at when it is closed
// emptied race ROUNDS SEED     another thread stores into a copy of the file while the file is opened
// emptied save HOW FILE        reads, alters ten pages, and saves once
// emptied leave FILE HOW       the same, but ends in the middle: exit, exec, signal
#define _GNU_SOURCE
#include <linux/futex.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "helper.h"

#define MOST (96 << 10)

static unsigned long long state;
static unsigned dice(unsigned n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % n;
}

static void fill(unsigned char *p, size_t len) {
    for (size_t i = 0; i < len; i++)
        p[i] = dice(256);
}

struct seen {
    long size;
    unsigned long long sum;
};

static unsigned long long sum_of(const unsigned char *p, size_t len) {
    unsigned long long sum = 1469598103934665603ull;
    for (size_t i = 0; i < len; i++)
        sum = (sum ^ p[i]) * 1099511628211ull;
    return sum;
}

// ------------------------------------------------------------------------------------------------- channels

enum how { PIPE, SEND, SENDMSG, EVENT, SIGNAL, FLOCK, LOCK, END_OF_PIPE, READ, MKDIR, UNLINK, RENAME, MESSAGE, SEMAPHORE, QUEUE, RAW, FORK,
           SYSTEM, FILE_WRITE, THREAD, SPLICE, HOWS, STORE = HOWS };

struct order {
    int how;
    char name[32];
};

// After so many steps the helper is killed, or the file opened.
struct plan {
    pid_t helper;
    int spins;
    char name[32];
};

static int orders[2], acks[2], told[2], sockets[2], event, full[2], lock, message, semaphore, board;
static mqd_t queue;
static volatile int *memory_shared;
static sem_t wake;
static pid_t witness;
static int threads, fifo;

static void *teller(void *unused) {
    for (;;) {
        while (sem_wait(&wake))
            ;
        write(told[1], "t", 1);
    }
    return unused;
}

static void set_up(int shares) {
    need(!pipe(orders) && !pipe(acks) && !pipe(told) && !pipe(full), "pipe");
    need(!socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets), "socketpair");
    need((event = eventfd(0, 0)) >= 0, "eventfd");
    need((lock = open("lock", O_RDWR | O_CREAT, 0644)) >= 0, "lock");
    need((board = open("board", O_RDWR | O_CREAT, 0644)) >= 0, "board");
    message = msgget(IPC_PRIVATE, 0600), semaphore = semget(IPC_PRIVATE, 1, 0600);
    char name[64];
    sprintf(name, "/elision-%d", getpid());
    queue = mq_open(name, O_RDWR | O_CREAT, 0600, NULL);
    if (queue >= 0)
        mq_unlink(name);
    if (shares)
        memory_shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fcntl(full[1], F_SETPIPE_SZ, 4096);
}

static int possible(int how) {
    return how == THREAD ? threads : how == MESSAGE ? message >= 0 : how == SEMAPHORE ? semaphore >= 0 : how == QUEUE ? queue >= 0 : 1;
}

// In the program, before the witness waits.
static void prepare(int how) {
    struct flock whole = {.l_type = F_WRLCK};
    char page[4096] = "";
    if (how == FLOCK)
        need(!flock(lock, LOCK_EX), "flock");
    if (how == LOCK)
        need(!fcntl(lock, F_SETLK, &whole), "lock");
    if (how == READ)
        need(write(full[1], page, sizeof page) == sizeof page, "fill a pipe");
    if (how == END_OF_PIPE)
        unlink("fifo"), mkfifo("fifo", 0600), fifo = open("fifo", O_RDWR);
    if (how == UNLINK || how == RENAME)
        close(open("mark", O_RDWR | O_CREAT, 0644));
}

static void tell(int how) {
    struct flock whole = {.l_type = F_UNLCK};
    struct iovec part = {"t", 1};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    struct { long type; char text[1]; } text = {1, "t"};
    struct sembuf up = {0, 1, 0};
    char page[4096];
    unsigned long long one = 1;
    pid_t pid;
    switch (how) {
    case PIPE: write(told[1], "t", 1); break;
    case SEND: send(sockets[1], "t", 1, 0); break;
    case SENDMSG: sendmsg(sockets[1], &header, 0); break;
    case EVENT: write(event, &one, 8); break;
    case SIGNAL: kill(witness, SIGUSR1); break;
    case FLOCK: flock(lock, LOCK_UN); break;
    case LOCK: fcntl(lock, F_SETLK, &whole); break;
    case END_OF_PIPE: close(fifo); break;
    case READ: read(full[0], page, sizeof page); break;
    case MKDIR: mkdir("mark", 0755); break;
    case UNLINK: unlink("mark"); break;
    case RENAME: rename("mark", "marked"); break;
    case MESSAGE: msgsnd(message, &text, 1, 0); break;
    case SEMAPHORE: semop(semaphore, &up, 1); break;
    case QUEUE: mq_send(queue, "t", 1, 0); break;
    case RAW: {
        long result;
        __asm__ volatile("syscall" : "=a"(result) : "0"(SYS_write), "D"(told[1]), "S"("t"), "d"(1) : "rcx", "r11", "memory");
        break;
    }
    case FORK:
        if (!(pid = fork())) {
            write(told[1], "t", 1);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
        break;
    case SYSTEM: system("mkdir mark"); break;
    case FILE_WRITE: pwrite(board, "t", 1, 0); break;
    case THREAD: sem_post(&wake); break;
    case SPLICE: vmsplice(told[1], &part, 1, 0); break;
    case STORE: *memory_shared = 1; break;
    }
}

// In the witness.
static void await(int how) {
    struct flock whole = {.l_type = F_WRLCK};
    struct { long type; char text[1]; } text;
    struct sembuf down = {0, -1, 0};
    struct stat status;
    sigset_t signals;
    char byte = 0, page[8192];
    unsigned long long one;
    int got;
    switch (how) {
    case END_OF_PIPE: read(fifo, &byte, 1), close(fifo); break;
    case SEND: case SENDMSG: recv(sockets[0], &byte, 1, 0); break;
    case EVENT: read(event, &one, 8); break;
    case SIGNAL: sigemptyset(&signals), sigaddset(&signals, SIGUSR1), sigwait(&signals, &got); break;
    case FLOCK: {
        int mine = open("lock", O_RDWR);
        flock(mine, LOCK_EX), close(mine);
        break;
    }
    case LOCK: fcntl(lock, F_SETLKW, &whole), whole.l_type = F_UNLCK, fcntl(lock, F_SETLK, &whole); break;
    case READ: write(full[1], "t", 1), read(full[0], page, sizeof page); break;
    case MKDIR: case SYSTEM:
        while (rmdir("mark"))
            sched_yield();
        break;
    case UNLINK: case RENAME:
        while (!stat("mark", &status))
            sched_yield();
        break;
    case MESSAGE: msgrcv(message, &text, 1, 0, 0); break;
    case SEMAPHORE: semop(semaphore, &down, 1); break;
    case QUEUE: mq_receive(queue, page, sizeof page, NULL); break;
    case FILE_WRITE:
        while (pread(board, &byte, 1, 0) != 1 || byte != 't')
            sched_yield();
        pwrite(board, "-", 1, 0);
        break;
    case STORE:
        while (!*memory_shared)
            ;
        *memory_shared = 0;
        break;
    default: read(told[0], &byte, 1); break;
    }
}

static struct seen look(const char *name) {
    static unsigned char bytes[2 * MOST];
    struct stat status;
    struct seen seen = {-1, 0};
    if (stat(name, &status))
        return seen;
    seen.size = status.st_size;
    int fd = open(name, O_RDONLY);
    ssize_t got = read(fd, bytes, sizeof bytes);
    close(fd);
    if (got != seen.size)
        seen.size = -2;
    seen.sum = sum_of(bytes, got > 0 ? got : 0);
    return seen;
}

static void be_witness(void) {
    struct order order;
    sigset_t signals;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&signals), sigaddset(&signals, SIGUSR1), sigprocmask(SIG_BLOCK, &signals, NULL);
    close(orders[1]), close(acks[0]), close(told[1]);
    while (read(orders[0], &order, sizeof order) == sizeof order) {
        if (order.how == END_OF_PIPE)
            fifo = open("fifo", O_RDONLY);
        write(acks[1], &order, 1);
        await(order.how);
        struct seen seen = look(order.name);
        write(acks[1], &seen, sizeof seen);
    }
    _exit(0);
}

// ---------------------------------------------------------------------------------------------------- saves

static unsigned char model[2 * MOST], *p;
static long size, at;
static char name[32];
static int fd, round_now;

// What was done in this round, to be printed if it fails.
static char history[8192];
static void note(const char *what, long first, long second) {
    size_t length = strlen(history);
    snprintf(history + length, sizeof history - length, " %s(%ld, %ld)", what, first, second);
}

static void check(int good, const char *what, long found, long wanted) {
    if (good)
        return;
    printf("round %d, %s: %s: %ld in place of %ld, after%s\n", round_now, name, what, found, wanted, history);
    fflush(stdout);
    _exit(1);
}

static void check_seen(struct seen seen, const char *what) {
    check(seen.size == size, what, seen.size, size);
    if (seen.sum != sum_of(model, size)) {
        static unsigned char bytes[2 * MOST];
        int other = open(name, O_RDONLY);
        long got = read(other, bytes, sizeof bytes), differs = 0;
        while (differs < got && bytes[differs] == model[differs])
            differs++;
        check(0, "contents", differs, size);
    }
}

static void be_quiet(int what) {
    note("quiet", what, size);
    struct stat status;
    struct statx extended;
    void *p;
    switch (what) {
    case 0: fstat(fd, &status), check(status.st_size == size, "fstat", status.st_size, size); break;
    case 1: check(lseek(fd, 0, SEEK_CUR) == at, "position", lseek(fd, 0, SEEK_CUR), at); break;
    case 2: fcntl(fd, F_GETFL); break;
    case 3: p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), munmap(p, 8192); break;
    case 4:
        statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &extended);
        check((long)extended.stx_size == size, "statx", extended.stx_size, size);
        break;
    case 5: fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, dice(MOST) + 1); break;
    case 6: fstatat(fd, "", &status, AT_EMPTY_PATH), check(status.st_size == size, "fstatat", status.st_size, size); break;
    }
}

// What the program itself can tell.
static void look_oneself(int what) {
    note("look", what, size);
    static unsigned char bytes[2 * MOST];
    struct stat status;
    int other;
    switch (what) {
    case 0: stat(name, &status), check(status.st_size == size, "stat", status.st_size, size); break;
    case 1: check(lseek(fd, 0, SEEK_END) == size, "end", lseek(fd, 0, SEEK_END), size), lseek(fd, at, SEEK_SET); break;
    case 2: {
        other = open(name, O_RDONLY);
        ssize_t got = read(other, bytes, sizeof bytes);
        check(got == size && !memcmp(bytes, model, size), "read", got, size);
        close(other);
        break;
    }
    case 3:
        other = open(name, O_PATH);
        fstat(other, &status), check(status.st_size == size, "O_PATH", status.st_size, size);
        close(other);
        break;
    case 4: {
        int copy = dup(fd);
        check(lseek(copy, 0, SEEK_CUR) == at, "position of a duplicate", -1, at);
        fstat(copy, &status), check(status.st_size == size, "fstat of a duplicate", status.st_size, size);
        close(copy);
        break;
    }
    case 5:
        if (size > 0) {
            unsigned char *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, other = open(name, O_RDONLY), 0);
            check(!memcmp(p, model, size), "mapping", -1, size);
            munmap(p, size), close(other);
        }
        break;
    }
}

static void write_some(const unsigned char *from, long offset, long len, int positioned) {
    note(positioned ? "pwrite" : "write", offset, len);
    ssize_t done = positioned ? pwrite(fd, from, len, offset) : write(fd, from, len);
    check(done == len, "write", done, len);
    if (offset > size && len > 0)
        memset(model + size, 0, offset - size);
    if (len > 0)
        memcpy(model + offset, from, len);
    if (!positioned)
        at = offset + len;
    if (len > 0 && offset + len > size)
        size = offset + len;
}

static void wait_for(struct order *order) {
    char byte;
    prepare(order->how);
    strcpy(order->name, name);
    write(orders[1], order, sizeof *order);
    need(read(acks[0], &byte, 1) == 1, "the witness");
}

static void ask(struct order *order, const char *what) {
    struct seen seen;
    note("tell", order->how, size);
    tell(order->how);
    need(read(acks[0], &seen, sizeof seen) == sizeof seen, "the witness");
    check_seen(seen, what);
}

// Of all that is written, `last` pages at least are equal to the file's.
static void save(int round, int shares, int kills, int intruder) {
    long len = 4096 * (8 + dice(14)) + dice(4096), keep = dice(6) ? len : dice(len);
    round_now = round, history[0] = 0;
    sprintf(name, "f%d", round);
    // Small writes, of which nothing is known afterwards.
    static unsigned char old[MOST];
    fill(old, len);
    int made = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
    for (long done = 0; done < len; done += 2048)
        write(made, old + done, len - done < 2048 ? len - done : 2048);
    close(made);
    made = open(name, O_RDONLY);
    check(read(made, p, len) == len, "read", -1, len);
    close(made);
    for (int i = dice(5); i > 0; i--)
        p[dice(len)] ^= 1;
    unsigned char *whole = p, *block = NULL;
    if (dice(3) == 0) {
        // No call tells what these bytes are.
        p = block = aligned_alloc(4096, (len + 4095) / 4096 * 4096);
        memcpy(p, whole, len);
    }
    long more = dice(4) || block ? 0 : dice(MOST - len);
    fill(p + len, more);
    len = keep < len ? keep : len + more;
    note("length", len, keep);
    struct order order = {shares ? STORE : (int)dice(HOWS)};
    if (!possible(order.how) || kills)
        order.how = PIPE;
    wait_for(&order);
    int when = dice(4), now = 0, asked = 0;
    if (intruder >= 0) {
        struct plan plan = {kills ? helper(getpid(), 0) : 0, dice(kills ? 3000000 : 1000000)};
        strcpy(plan.name, name);
        write(intruder, &plan, sizeof plan);
    }
    switch (dice(3)) {
    case 0: fd = open(name, O_WRONLY | O_TRUNC); break;
    case 1: fd = creat(name, 0600); break;
    default: fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600); break;
    }
    need(fd >= 0, "open");
    size = at = 0;
    for (long done = 0; done < len || now <= when;) {
        // (Until there is another helper the program sees the size that the file has.)
        for (int i = kills ? 0 : dice(4); i > 0; i--)
            be_quiet(dice(7));
        if (now++ == when && !kills) {
            ask(&order, "the witness");
            asked = 1;
        } else if (dice(8) == 0 && !kills)
            look_oneself(dice(6));
        if (done >= len)
            continue;
        if (dice(3) == 0)
            p[done + dice(len - done)] ^= 1;
        long part = dice(3) ? len - done : 1 + dice(len - done);
        if (dice(12) == 0 && size > 0) {
            long from = dice(size);
            write_some(p + from, from, len - from < 5000 ? len - from : 5000, 1);
        } else if (dice(12) == 0) {
            // Bytes that were never written are zero.
            done += dice(len - done + 1);
            at = lseek(fd, done, SEEK_SET);
            continue;
        }
        write_some(p + done, done, part, dice(8) == 0 && at == done);
        done += part;
        if (at != done)
            at = lseek(fd, done, SEEK_SET);
    }
    close(fd);
    check_seen(look(name), "closed");
    if (!asked)
        ask(&order, "the witness at the end");
    unlink(name);
    free(block);
    p = whole;
}

static void intrude(int orders) {
    struct plan plan;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(orders, &plan, sizeof plan) == sizeof plan) {
        for (volatile int i = 0; i < plan.spins; i++)
            ;
        if (plan.helper > 0)
            kill(plan.helper, SIGKILL);
        else
            close(open(plan.name, O_RDONLY));
    }
    _exit(0);
}

// Reads the file, and alters ten pages.
static long altered(const char *path) {
    struct stat status;
    int other = open(path, O_RDONLY);
    fstat(other, &status);
    p = memory(status.st_size);
    need(read(other, p, status.st_size) == status.st_size, "read");
    close(other);
    for (int i = 0; i < 10; i++)
        p[i * (status.st_size / 10)] ^= 1;
    return status.st_size;
}

static volatile int opened, answered;

static void *work(void *unused) {
    for (;; answered = opened)
        usleep(100);
    return unused;
}

static int save_once(const char *how, const char *path) {
    pthread_t thread;
    if (!strcmp(how, "threads") || !strcmp(how, "spins"))
        for (int i = 0; i < 4; i++)
            pthread_create(&thread, NULL, work, NULL);
    long len = altered(path);
    if (!strcmp(how, "copy")) {
        unsigned char *block = malloc(len + 4096), *copy = block + (-(uintptr_t)block & 4095);
        memcpy(copy, p, len);
        p = copy;
        p[len / 2] ^= 1;
    }
    if (!strcmp(how, "fopen")) {
        FILE *file = fopen(path, "wb");
        return fwrite(p, 1, len, file) != len || fclose(file);
    }
    fd = strcmp(how, "creat") ? open(path, O_WRONLY | O_TRUNC) : creat(path, 0644);
    opened = 1;
    while (!strcmp(how, "spins") && !answered)
        sched_yield();
    if (!strcmp(how, "writev")) {
        struct iovec parts[2] = {{NULL, 0}, {p, len}};
        return writev(fd, parts, 2) != len || close(fd);
    }
    long first = strcmp(how, "creat") ? len : len / 3;
    return write(fd, p, first) != first || write(fd, p + first, len - first) != len - first || close(fd);
}

static unsigned char *volatile stored_into;
static int pace;

// Page after page, about as fast as the comparison.
static void *store(void *len) {
    unsigned char *at = stored_into, *end = at + (size_t)len;
    for (; stored_into && at < end; at += 4096) {
        ++*at;
        for (volatile int i = 0; i < pace; i++)
            ;
    }
    return NULL;
}

// Another thread stores into a copy of the file until the file has been opened.
static void race(int round) {
    const size_t len = 4 << 20;
    sprintf(name, "raced%d", round);
    pthread_t thread;
    unsigned char *old = aligned_alloc(4096, len), *copy = aligned_alloc(4096, len);
    fill(old, len);
    int made = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    for (size_t done = 0; done < len; done += 2048)
        write(made, old + done, 2048);
    close(made);
    made = open(name, O_RDONLY);
    need(read(made, old, len) == len, "read");
    close(made);
    memcpy(copy, old, len);
    stored_into = copy, pace = dice(4000);
    pthread_create(&thread, NULL, store, (void *)(len / 8));
    fd = open(name, O_WRONLY | O_TRUNC);
    stored_into = NULL;
    need(write(fd, copy, len) == len && !close(fd), "write");
    made = open(name, O_RDONLY);
    need(read(made, old, len) == len, "read again");
    close(made);
    // The thread may have stored once more.
    int differ = 0;
    for (size_t i = 0; i < len; i++)
        differ += old[i] != copy[i];
    round_now = round;
    check(differ <= 1, "stored", 1, differ);
    pthread_join(thread, NULL);
    free(old), free(copy);
}

static void leave(const char *path, const char *how) {
    long len = altered(path);
    fd = open(path, O_WRONLY | O_TRUNC);
    if (!strcmp(how, "at once"))
        _exit(0);
    write(fd, p, len / 2);
    if (!strcmp(how, "exit"))
        exit(0);
    if (!strcmp(how, "exec"))
        execl("/bin/true", "true", NULL);
    if (!strcmp(how, "signal"))
        raise(SIGKILL);
    if (!strcmp(how, "trap"))
        __builtin_trap();
    for (;;)
        ;
}

int main(int count, char **arguments) {
    const char *what = arguments[1];
    if (!strcmp(what, "leave"))
        leave(arguments[2], arguments[3]);
    if (!strcmp(what, "save"))
        return save_once(arguments[2], arguments[3]);
    if (!strcmp(what, "race")) {
        state = atoll(arguments[3]) * 2654435761u + 88172645463325252ull;
        for (int round = 0; round < atoi(arguments[2]); round++)
            race(round);
        return 0;
    }
    int rounds = atoi(arguments[2]), shares = !strcmp(what, "shared"), kills = !strcmp(what, "killed"), plans[2];
    int intrudes = kills || !strcmp(what, "opened");
    state = atoll(arguments[3]) * 2654435761u + 88172645463325252ull;
    set_up(shares);
    need(!pipe(plans), "pipe");
    if (!(witness = fork()))
        be_witness();
    if (intrudes && !fork()) {
        close(plans[1]), close(orders[1]), close(acks[0]);
        intrude(plans[0]);
    }
    close(orders[0]), close(acks[1]);
    p = memory(MOST);
    pthread_t thread;
    sem_init(&wake, 0, 0);
    if ((threads = dice(2)))
        pthread_create(&thread, NULL, teller, NULL);
    for (int round = 0; round < rounds; round++)
        save(round, shares, kills, intrudes ? plans[1] : -1);
    if (message >= 0)
        msgctl(message, IPC_RMID, NULL);
    if (semaphore >= 0)
        semctl(semaphore, 0, IPC_RMID);
    close(orders[1]), close(plans[1]);
    printf("good\n");
    return 0;
}
