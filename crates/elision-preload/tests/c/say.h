/* Prints what a call returned, its errno if it failed, and whether it left errno alone if it did not. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAY(call)                                                                                                \
    do {                                                                                                         \
        errno = 7777;                                                                                            \
        long long said = (long long)(call);                                                                      \
        if (said < 0)                                                                                            \
            printf("%d: %s = %lld %s\n", __LINE__, #call, said, strerror(errno));                                \
        else                                                                                                     \
            printf("%d: %s = %lld%s\n", __LINE__, #call, said, errno == 7777 ? "" : " and errno changed");       \
    } while (0)

static inline unsigned long long sum_of(const void *bytes, size_t len) {
    unsigned long long sum = 1469598103934665603ull;
    for (size_t i = 0; i < len; i++)
        sum = (sum ^ ((const unsigned char *)bytes)[i]) * 1099511628211ull;
    return sum;
}
#define SUM(bytes, len) printf("%d: sum of %s = %llx\n", __LINE__, #bytes, sum_of(bytes, len))

static inline void fill(void *bytes, size_t len, uint32_t seed) {
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525u + 1013904223u;
        ((unsigned char *)bytes)[i] = seed >> 24;
    }
}

#define WHERE(fd) SAY(lseek(fd, 0, SEEK_CUR))
