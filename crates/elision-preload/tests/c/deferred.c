/* One case each, by name: what a deferred read must leave as it was. Prints what it finds.
 *
 *     deferred CASE FILE
 *
 * FILE has at least 1 MiB. Most cases read it whole and keep it so until the test closes their input. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned char *bytes;
static size_t size;

static void whole(int fd) {
    struct stat st;
    fstat(fd, &st);
    size = st.st_size;
    bytes = malloc(size);
    if (pread(fd, bytes, size, 0) != (ssize_t)size) {
        printf("a short read\n");
        exit(1);
    }
}

static void descriptors(const char *when) {
    DIR *directory = opendir("/proc/self/fd");
    printf("%s:", when);
    for (struct dirent *entry; (entry = readdir(directory));)
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(directory))
            printf(" %s", entry->d_name);
    closedir(directory);
    printf("\n");
}

/* Until the test has seen enough. */
static void stay(void) {
    char byte;
    printf("ready\n");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
}

static void *stays(void *unused) {
    stay();
    _exit(unused != NULL);
}

/* Whether another process could lock the file. */
static void lock_elsewhere(const char *path, int whole_file) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        struct flock lock = {.l_type = F_WRLCK, .l_len = 100};
        int fd = open(path, O_RDWR);
        _exit(whole_file ? flock(fd, LOCK_EX | LOCK_NB) != 0 : fcntl(fd, F_SETLK, &lock) != 0);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("another process %s lock it\n", WEXITSTATUS(status) ? "cannot" : "can");
}

/* Writes all to another file, and says whether the kernel took a fault for each page of it. */
static void copy(const char *path, int flags, size_t want) {
    struct rusage before, after;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | flags, 0600);
    getrusage(RUSAGE_SELF, &before);
    errno = 0;
    ssize_t done = write(fd, bytes, size);
    printf("%zd of %zu: %s\n", done, size, strerror(errno));
    getrusage(RUSAGE_SELF, &after);
    printf("%s faults\n", (size_t)(after.ru_minflt - before.ru_minflt) < size / 4096 / 8 ? "few" : "many");
    unsigned char *other = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    printf("%s\n", lseek(fd, 0, SEEK_END) == (off_t)want && !memcmp(bytes, other, want) ? "the same" : "another");
    munmap(other, size);
    close(fd);
}

/* Alters a dozen pages, saves all in place, and sums all; twice. */
static void summed(const char *path) {
    struct rusage before, after;
    unsigned char *saved = malloc(1 << 16);
    int fd = open(path, O_RDWR);
    whole(fd);
    for (size_t turn = 0; turn < 2; turn++) {
        for (size_t i = 1; i < 13; i++)
            bytes[size / 13 * i + turn * 65536] ^= 255;
        ssize_t done = pwrite(fd, bytes, size, 0);
        getrusage(RUSAGE_SELF, &before);
        unsigned long sum = 0;
        for (size_t at = 0; at < size; at += 512)
            sum += bytes[at];
        getrusage(RUSAGE_SELF, &after);
        printf("%zd%s\n", done, sum ? "" : " of zeroes");
        if (turn == 0)
            printf("%s faults\n", (size_t)(after.ru_minflt - before.ru_minflt) < size / 4096 / 8 ? "few" : "many");
    }
    for (size_t at = 0; at < size; at += 1 << 16)
        if (pread(fd, saved, 1 << 16, at) != 1 << 16 || memcmp(saved, bytes + at, 1 << 16))
            printf("another at %zu\n", at);
    close(fd);
}

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    const char *what = arguments[1], *path = arguments[2];
    if (!strcmp(what, "stream")) { /* look at ten places, change three bytes, save in place */
        FILE *file = fopen(path, "r+");
        setvbuf(file, NULL, _IOFBF, 4096);
        fseeko(file, 0, SEEK_END);
        size = ftello(file);
        rewind(file);
        bytes = malloc(size);
        if (fread(bytes, 1, size, file) != size)
            return 1;
        unsigned seen = 0;
        for (size_t i = 0; i < 10; i++)
            seen += bytes[size / 10 * i];
        for (size_t i = 1; i < 4; i++)
            bytes[size / 4 * i] ^= 255;
        rewind(file);
        if (fwrite(bytes, 1, size, file) != size)
            return 1;
        free(bytes);
        if (fclose(file) != 0)
            return 1;
        printf("%u\n", seen);
        return 0;
    }
    if (!strcmp(what, "summed")) {
        summed(path);
        return 0;
    }
    if (!strcmp(what, "descriptors")) {
        int fd = open(path, O_RDONLY);
        descriptors("before");
        whole(fd);
        descriptors("after");
        int other = open(path, O_RDWR);
        printf("the next is %d\n", other - fd);
        close(fd);
        whole(other);
        descriptors("in the end");
        return 0;
    }
    if (!strcmp(what, "wait")) {
        int fd = open(path, O_RDONLY), status;
        whole(fd);
        printf("wait %d", wait(&status));
        printf(" %s\n", strerror(errno));
        printf("waitpid %d", waitpid(-1, &status, WNOHANG));
        printf(" %s\n", strerror(errno));
        return 0;
    }
    if (!strcmp(what, "locks")) {
        int fd = open(path, O_RDWR);
        struct flock lock = {.l_type = F_WRLCK, .l_len = 100};
        if (fcntl(fd, F_SETLK, &lock) != 0)
            return 1;
        whole(fd);
        lock_elsewhere(path, 0);
        whole(fd);
        lock_elsewhere(path, 0);
        close(fd);
        lock_elsewhere(path, 0);
        return 0;
    }
    if (!strcmp(what, "flock")) {
        int fd = open(path, O_RDWR);
        if (flock(fd, LOCK_EX) != 0)
            return 1;
        whole(fd);
        close(fd);
        lock_elsewhere(path, 1);
        /* The child that asked has let the file go; what was read is what it was. */
        int again = open(path, O_RDONLY);
        unsigned char *other = malloc(size);
        for (size_t at = 0; at < size; at += 4000)
            if (pread(again, other + at, size - at < 4000 ? size - at : 4000, at) <= 0)
                return 1;
        printf("%s\n", memcmp(bytes, other, size) ? "changed" : "the same");
        return 0;
    }
    if (!strcmp(what, "pipe")) { /* the helper must not keep the end of a pipe open */
        int ends[2], fd = open(path, O_RDONLY);
        char byte;
        if (pipe(ends) != 0)
            return 1;
        whole(fd);
        alarm(30);
        close(ends[1]);
        printf("end of file: %zd\n", read(ends[0], &byte, 1));
        return 0;
    }
    if (!strcmp(what, "copies")) { /* what was read goes to other files; at last a page of it is no memory any more */
        static const int ways[] = {0, O_DSYNC, O_APPEND};
        char to[4096];
        snprintf(to, sizeof to, "%s of another name", path);
        for (int i = 0; i < 3; i++, free(bytes)) {
            whole(open(path, O_RDONLY));
            copy(to, ways[i], size);
        }
        bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pread(open(path, O_RDONLY), bytes, size, 0) != (ssize_t)size)
            return 1;
        munmap(bytes + size / 2, 4096);
        copy(to, 0, size / 2);
        return 0;
    }
    if (!strcmp(what, "truncated")) { /* saved again and again, each time into the emptied file */
        int from = open(path, O_RDONLY);
        whole(from);
        close(from);
        for (int i = 0; i < 6; i++) {
            int fd = open(path, O_WRONLY | O_TRUNC);
            if (write(fd, bytes, size) != (ssize_t)size)
                return 1;
            close(fd);
            struct rusage before, after;
            getrusage(RUSAGE_SELF, &before);
            for (size_t at = 0; at < size; at += 4096)
                bytes[at]++;
            getrusage(RUSAGE_SELF, &after);
            if (i > 0)
                printf("%s\n", after.ru_minflt - before.ru_minflt < (long)(size / 4096 / 2) ? "few faults" : "many");
        }
        return 0;
    }
    if (!strcmp(what, "execute")) { /* patches what will be a program in place, and runs it at once */
        for (int i = 0; i < 20; i++) {
            int fd = chmod(path, 0644) ? -1 : open(path, O_RDWR), status = -1;
            whole(fd);
            bytes[size - 1] = i;
            if (i % 2 && pwrite(fd, bytes, size, 0) != (ssize_t)size)
                return 1;
            close(fd);
            if (chmod(path, 0755))
                return 1;
            pid_t pid = i % 4 < 2 ? fork() : vfork();
            if (pid == 0) {
                execl(path, path, NULL);
                _exit(errno == ETXTBSY ? 99 : 98);
            }
            waitpid(pid, &status, 0);
            printf("%d: status %#x\n", i, status);
            free(bytes);
        }
        return 0;
    }
    if (!strncmp(what, "in_vain_", 8)) { /* all of it is altered, or changed by somebody else, time after time */
        int fd = -1;
        unsigned long long sum = 0;
        for (int i = 0; i < 24; i++) {
            int saves = !strcmp(what + 8, "saved"), frees = !strcmp(what + 8, "freed"), wants = !strcmp(what + 8, "wanted");
            if (fd < 0)
                fd = open(path, saves ? O_RDWR : O_RDONLY);
            if (!bytes || frees)
                whole(fd);
            else if (!saves && pread(fd, bytes, size, 0) != (ssize_t)size)
                return 1;
            for (size_t at = 0; at < size; at += wants ? size : 512)
                bytes[at] += i + 1;
            sum = sum * 31 + bytes[i * 512] + bytes[size - 512];
            if (saves && pwrite(fd, bytes, size, 0) != (ssize_t)size)
                return 1;
            if (frees)
                free(bytes);
            if (wants) {
                pid_t pid = fork();
                if (pid == 0) {
                    int own = open(path, O_WRONLY);
                    _exit(pwrite(own, &i, sizeof i, 512 * i) != sizeof i);
                }
                waitpid(pid, NULL, 0);
            }
        }
        printf("%llu\n", sum);
        return 0;
    }
    if (!strcmp(what, "patch")) { /* patches a program whenever it is told to, and keeps what it has of it for a while */
        for (char byte; read(0, &byte, 1) == 1; free(bytes)) {
            int fd = open(path, O_RDWR);
            whole(fd);
            bytes[size - 1] = byte;
            if (pwrite(fd, bytes, size, 0) != (ssize_t)size)
                return 1;
            close(fd);
            puts("ready");
            fflush(stdout);
            if (read(0, &byte, 1) != 1)
                return 1;
        }
        return 0;
    }
    if (!strcmp(what, "saved")) { /* the buffer is kept when the file has been saved and closed, all descriptors of it */
        int fd = open(path, O_RDWR), copy = dup(fd);
        whole(fd);
        bytes[0] ^= 1;
        unsigned long long sum = 0;
        if (pwrite(fd, bytes, size, 0) != (ssize_t)size)
            return 1;
        close(copy);
        close(fd);
        stay();
        for (size_t at = 0; at < size; at++)
            sum = sum * 31 + bytes[at];
        printf("%llu\n", sum);
        return 0;
    }
    if (!strcmp(what, "huge")) { /* a buffer for which the program wants huge pages; then the file is about to change */
        bytes = aligned_alloc(2 << 20, size = 8 << 20);
        if (madvise(bytes, size, MADV_HUGEPAGE) || pread(open(path, O_RDONLY), bytes, size, 0) != (ssize_t)size)
            return 1;
        close(open(path, O_WRONLY));
        unsigned seen = bytes[5000], huge = 0;
        char line[256];
        FILE *rollup = fopen("/proc/self/smaps_rollup", "r");
        while (rollup && fgets(line, sizeof line, rollup))
            sscanf(line, "AnonHugePages: %u", &huge);
        printf("%u: %s\n", seen, huge >= 4 << 10 ? "huge pages" : "small pages");
        return 0;
    }
    if (!strcmp(what, "stay")) {
        whole(open(path, O_RDONLY));
        stay();
        return 0;
    }
    if (!strcmp(what, "word")) { /* the kernel is told of another word to clear when the main thread ends */
        static int word;
        whole(open(path, O_RDONLY));
        syscall(SYS_set_tid_address, &word);
        stay();
        return 0;
    }
    if (!strcmp(what, "main_first")) { /* the main thread ends before the last one does */
        pthread_t thread;
        whole(open(path, O_RDONLY));
        pthread_create(&thread, NULL, stays, NULL);
        pthread_exit(NULL);
    }
    if (!strcmp(what, "young")) { /* children, killed sooner or later in their first read */
        for (int i = 0; i < 800; i++) {
            pid_t child = fork();
            if (child == 0) {
                whole(open(path, O_RDONLY));
                _exit(0);
            }
            usleep(i % 80 * 10);
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
        }
        return 0;
    }
    if (!strcmp(what, "proc")) { /* /proc is taken away, in a mount namespace of the program's own */
        unsigned long long sum = 0;
        whole(open(path, O_RDONLY));
        if (umount2("/proc", MNT_DETACH) != 0)
            return 1;
        stay();
        for (size_t at = 0; at < size; at++)
            sum = sum * 31 + bytes[at];
        printf("%llu\n", sum);
        return 0;
    }
    if (!strcmp(what, "in_vain")) { /* read, and then changed in other ways than by saving what was read */
        int fd = open(path, O_RDWR);
        whole(fd);
        for (int round = 0; round < 40; round++)
            if (pread(fd, bytes, size, 0) != (ssize_t)size || ftruncate(fd, size) != 0)
                return 1;
        printf("%d\n", bytes[12345]);
        return 0;
    }
    if (!strcmp(what, "exec")) { /* another program in its place, which outlives the deferral */
        whole(open(path, O_RDONLY));
        execl("/bin/cat", "cat", NULL);
    }
    return 2;
}
