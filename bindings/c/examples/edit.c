/* Edits one byte of a file, however long it is, and says what that moved.
 *
 *     edit FILE OFFSET */
#include <elision.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char *what)
{
    perror(what);
    return EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: edit FILE OFFSET\n");
        return 2;
    }
    elision_buffer *records = elision_edit(argv[1]);
    if (records == NULL)
        return fail(argv[1]);
    size_t offset = strtoul(argv[2], NULL, 0), len = elision_buffer_len(records);
    if (offset >= len) {
        fprintf(stderr, "%s has %zu bytes\n", argv[1], len);
        elision_buffer_free(records);
        return EXIT_FAILURE;
    }
    /* The page is loaded here, and not in the store: a device that fails is an error then, and no signal. */
    if (elision_buffer_load(records, offset, 1) != 0)
        return fail("load");
    elision_buffer_data(records)[offset] ^= 1;

    static const char *const states[] = {"plain", "deferred", "loaded", "tracked", "altered"};
    elision_range ranges[16];
    ssize_t count = elision_buffer_ranges(records, ranges, 16);
    for (ssize_t i = 0; i < count && i < 16; i++)
        printf("%zu to %zu: %s\n", ranges[i].start, ranges[i].end, states[ranges[i].state]);

    if (elision_write(argv[1], records) != 0)
        return fail(argv[1]);
    elision_buffer_free(records);

    elision_stats stats;
    if (elision_stats_snapshot(&stats, sizeof stats) != 0)
        return fail("stats");
    printf("deferred %ju, elided %ju of %zu\n", (uintmax_t)stats.deferred_bytes, (uintmax_t)stats.elided_bytes, len);
    return EXIT_SUCCESS;
}
