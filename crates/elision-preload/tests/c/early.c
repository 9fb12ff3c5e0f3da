/* A library whose constructor runs before the drop-in's, and whose destructor runs after. */
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifdef LIBRARY
static void all(const char *when) {
    static char buf[1 << 20];
    char name[32];
    snprintf(name, sizeof name, "data %s", when);
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    struct iovec v[2] = {{buf, 100000}, {buf + 200000, 100000}};
    long said[] = {write(fd, buf, sizeof buf), pread(fd, buf, sizeof buf, 0), lseek(fd, 5, SEEK_SET), readv(fd, v, 2),
                   writev(fd, v, 2), dup(fd) > 0, fcntl(fd, F_GETFL), ftruncate(fd, 1000), system("exit 3"), close(fd)};
    printf("%s:", when);
    for (unsigned i = 0; i < sizeof said / sizeof *said; i++)
        printf(" %ld", said[i]);
    FILE *f = fopen(name, "r+");
    printf(" %zu", fread(buf, 1, sizeof buf, f));
    printf(" %d\n", fclose(f));
    pid_t child = vfork();
    if (child == 0)
        _exit(4);
    int status;
    waitpid(child, &status, 0);
    printf("%d\n", WEXITSTATUS(status));
}
__attribute__((constructor)) static void before(void) { all("before"); }
__attribute__((destructor)) static void after(void) { all("after"); }
void library(void) { all("between"); }
#else
void library(void);
int main(void) {
    library();
    return 0;
}
#endif
