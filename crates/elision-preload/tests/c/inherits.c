// Executes a program in every way there is; and says what it has inherited of LD_PRELOAD.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

// Everything but what the drop-in would do besides.
#define KILL(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
static struct sock_filter filter[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    KILL(statx), KILL(rt_sigprocmask), KILL(faccessat), KILL(clone),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

static int confine(void) {
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

// What the handler executes, on the classic size of its stack and what the kernel puts there besides.
static char **handled;
static void handle(int signal) {
    execve(handled[0], handled, environ);
    _exit(signal);
}

static void on_a_small_stack(char **words) {
    size_t size = 8192 + sysconf(_SC_MINSIGSTKSZ) - 2048;
    char *pages = mmap(NULL, 1 << 16, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + 4096, (1 << 16) - 4096, PROT_READ | PROT_WRITE);
    sigaltstack(&(stack_t){.ss_sp = pages + 4096, .ss_size = size}, NULL);
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handle, .sa_flags = SA_ONSTACK}, NULL);
    handled = words;
    raise(SIGUSR1);
}

static void execute(const char *way, char *path) {
    // What a loader is to load, or what the program itself is to do.
    char *word = getenv("WORD") ? getenv("WORD") : "say";
    char *words[] = {path, word, NULL}, *name = basename(strdup(path));
    int directory = open(dirname(strdup(path)), O_PATH | O_CLOEXEC), file = open(path, O_RDONLY | O_CLOEXEC);
    pid_t child = 0;
    if (!strcmp(way, "execve"))
        execve(path, words, environ);
    else if (!strcmp(way, "execv"))
        execv(path, words);
    else if (!strcmp(way, "execvp"))
        execvp(name, words);
    else if (!strcmp(way, "execvpe"))
        execvpe(name, words, environ);
    else if (!strcmp(way, "execl"))
        execl(path, path, word, NULL);
    else if (!strcmp(way, "execle"))
        execle(path, path, word, NULL, environ);
    else if (!strcmp(way, "execlp"))
        execlp(name, path, word, NULL);
    else if (!strcmp(way, "execveat"))
        execveat(directory, name, words, environ, 0);
    else if (!strcmp(way, "execveat_empty"))
        execveat(file, "", words, environ, AT_EMPTY_PATH);
    else if (!strcmp(way, "fexecve"))
        fexecve(file, words, environ);
    else if (!strcmp(way, "fexecve_path"))
        fexecve(open(path, O_PATH | O_CLOEXEC), words, environ);
    else if (!strcmp(way, "handler"))
        on_a_small_stack(words);
    else if (!strcmp(way, "SYS_execve"))
        syscall(SYS_execve, path, words, environ);
    else if (!strcmp(way, "SYS_execveat"))
        syscall(SYS_execveat, directory, name, words, environ, 0);
    else if (!strcmp(way, "confined")) {
        if (confine())
            exit(77);
        execve(path, words, environ);
    } else if (!strcmp(way, "posix_spawn"))
        errno = posix_spawn(&child, path, NULL, NULL, words, environ);
    else if (!strcmp(way, "posix_spawnp"))
        errno = posix_spawnp(&child, name, NULL, NULL, words, environ);
    else if (!strcmp(way, "vfork")) {
        child = vfork();
        if (!child) {
            execve(path, words, environ);
            _exit(9);
        }
    }
    if (child <= 0) {
        printf("%s: %s\n", way, strerror(errno));
        exit(8);
    }
    int status;
    waitpid(child, &status, 0);
    exit(WEXITSTATUS(status));
}

int main(int count, char **words) {
    if (count == 1 || !strcmp(words[1], "say")) {
        const char *preload = getenv("LD_PRELOAD");
        int variables = 0;
        while (environ[variables])
            variables++;
        printf("%s %d\n", preload ? preload : "none", variables - !!preload);
        return 0;
    }
    if (!strcmp(words[1], "refused")) {
        char **volatile nowhere = (char **)8;
        char *arguments[] = {"true", NULL}, *odd[] = {(char *)8, NULL}, *list[] = {"LD_PRELOAD=/x", (char *)8, NULL};
        execve("/bin/true", arguments, nowhere);
        printf("%s\n", strerror(errno));
        execve("/bin/true", arguments, odd);
        printf("%s\n", strerror(errno));
        execve("/bin/true", arguments, list);
        printf("%s\n", strerror(errno));
        execve((char *)nowhere, arguments, environ);
        printf("%s\n", strerror(errno));
        execve("/nonexistent", arguments, environ);
        printf("%s\n", strerror(errno));
        execvp("nonexistent", arguments);
        printf("%s\n", strerror(errno));
        execveat(-1, (char *)nowhere, arguments, environ, AT_EMPTY_PATH);
        printf("%s\n", strerror(errno));
        fexecve(-1, arguments, environ);
        printf("%s\n", strerror(errno));
        fflush(stdout);
        execve(words[0], (char *[]){words[0], "say", NULL}, NULL);
        return 1;
    }
    if (count < 4)
        return 2;
    // WAY PROGRAM VARIABLES [FROM TO]: what is to be out of the loader's sight.
    char name[32], *path = strdup(words[2]);
    for (int i = 0; i < atoi(words[3]); i++) {
        sprintf(name, "VARIABLE_%d", i);
        setenv(name, name, 1);
    }
    setenv("PATH", dirname(path), 1);
    if (count == 6 && rename(words[4], words[5]))
        return 3;
    execute(words[1], words[2]);
}
