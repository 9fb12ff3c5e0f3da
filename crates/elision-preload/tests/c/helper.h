// What tests share whose helper is killed.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void need(int good, const char *what) {
    if (!good) {
        printf("%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static unsigned char *memory(size_t len) {
    unsigned char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(p != MAP_FAILED, "mmap");
    return p;
}

__attribute__((unused)) static void make(const char *path, size_t len, int byte) {
    unsigned char *p = memory(len);
    memset(p, byte, len);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    need(write(fd, p, len) == (ssize_t)len, "write");
    close(fd), munmap(p, len);
}

// The youngest child of a process with this name, not counting this one; 0 if there is none.
static pid_t child(pid_t process, const char *name, pid_t but) {
    char path[300], text[512], parent[40], first[40];
    pid_t found = 0;
    sprintf(first, "Name:\t%s\n", name);
    sprintf(parent, "\nPPid:\t%d\n", process);
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; (entry = readdir(processes));) {
        snprintf(path, sizeof path, "/proc/%s/status", entry->d_name);
        FILE *file = atoi(entry->d_name) ? fopen(path, "r") : NULL;
        if (!file)
            continue;
        text[fread(text, 1, sizeof text - 1, file)] = 0;
        fclose(file);
        if (!strncmp(text, first, strlen(first)) && strstr(text, parent) && !strstr(text, "(zombie)") &&
            atoi(entry->d_name) != but)
            found = atoi(entry->d_name);
    }
    closedir(processes);
    return found;
}

// The helper of a program, but for this one, and its parent: children that no wait tells of.
static inline pid_t supervisor(pid_t program) { return child(program, "elision-watch", 0); }
static inline pid_t helper(pid_t program, pid_t but) {
    pid_t parent = supervisor(program);
    return parent ? child(parent, "elision", but) : 0;
}
