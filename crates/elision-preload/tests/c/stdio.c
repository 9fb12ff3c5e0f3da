/* stdio in its modes, with the program's own calls mixed in. */
#define _GNU_SOURCE
#include "say.h"
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <wchar.h>

enum { BIG = 1 << 20, SIZE = 2 * BIG + 777 };
static unsigned char *bytes, *buf;

#define TELL(f) SAY(ftell(f))

static void shown(int fd, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    SAY(vdprintf(fd, format, arguments));
    va_end(arguments);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    bytes = malloc(SIZE), buf = calloc(1, SIZE);
    fill(bytes, SIZE, 2);

    FILE *f = fopen("a", "w+");
    SAY(fwrite(bytes, 1, SIZE, f));
    TELL(f);
    rewind(f);
    SAY(fread(buf, 1, SIZE, f));
    SUM(buf, SIZE);
    SAY(feof(f));
    SAY(fread(buf, 1, 1, f));
    SAY(feof(f));
    fseek(f, 100, SEEK_SET);
    SAY(fread(buf, 4, BIG / 4, f));
    SUM(buf, BIG);
    SAY(ungetc('x', f));
    TELL(f);
    SAY(fread(buf, 1, BIG, f));
    SUM(buf, BIG);
    fseek(f, 0, SEEK_CUR);
    SAY(fwrite(bytes, 1, 9999, f));
    SAY(fflush(f));
    SAY(lseek(fileno(f), 0, SEEK_CUR));
    SAY(fclose(f));

    f = fopen("a", "r+");
    SAY(fread(buf, 1, BIG, f));
    fseek(f, 0, SEEK_CUR);
    memset(buf, 'y', 5000);
    SAY(fwrite(buf, 1, BIG, f));
    TELL(f);
    SAY(lseek(fileno(f), 0, SEEK_CUR) >= BIG);
    fseek(f, -10, SEEK_END);
    SAY(fwrite(bytes, 1, BIG, f));
    TELL(f);
    fseek(f, 0, SEEK_SET);
    SAY(fread(buf, 1, 3, f));
    TELL(f);
    SAY(pwrite(fileno(f), "unseen by stdio", 15, 20000));
    fseek(f, 19000, SEEK_SET);
    SAY(fread(buf, 1, 100000, f));
    SUM(buf, 100000);
    SAY(fclose(f));

    f = fopen64("a", "a+");
    SAY(fwrite(bytes, 1, BIG, f));
    TELL(f);
    rewind(f);
    SAY(fread(buf, 1, BIG, f));
    SUM(buf, BIG);
    SAY(fprintf(f, "%s %d\n", "at the end", 42));
    TELL(f);
    SAY(fclose(f));

    /* Unbuffered, and with a big buffer of our own. */
    for (int mode = 0; mode < 3; mode++) {
        f = fopen("a", "r+");
        static char own[BIG];
        SAY(setvbuf(f, mode == 0 ? NULL : own, mode == 0 ? _IONBF : mode == 1 ? _IOFBF : _IOLBF, sizeof own));
        SAY(fread(buf, 1, BIG + 5, f));
        fseek(f, 1, SEEK_CUR);
        SAY(fwrite(bytes, 1, BIG / 2, f));
        SAY(fputs("a line\n", f));
        SAY(putc_unlocked('z', f));
        TELL(f);
        fseek(f, 17, SEEK_SET);
        SAY(getc(f));
        SAY(fclose(f));
    }

    /* As numpy does: a duplicate, a FILE on it, and back in step. */
    int fd = open("a", O_RDWR);
    lseek(fd, 4096, SEEK_SET);
    int copy = dup(fd);
    f = fdopen(copy, "r+");
    fseek(f, lseek(fd, 0, SEEK_CUR), SEEK_SET);
    SAY(fread(buf, 1, BIG, f));
    SUM(buf, BIG);
    off_t position = ftello(f);
    fclose(f);
    SAY(lseek(fd, position, SEEK_SET));
    copy = dup(fd);
    f = fdopen(copy, "wb");
    SAY(fwrite(buf, 1, BIG, f));
    SAY(fflush(f));
    SAY(fclose(f));
    WHERE(fd);
    SAY(read(fd, buf, 16));
    SAY(close(fd));

    /* freopen, onto another file and onto itself. */
    f = fopen("b", "w");
    int number = fileno(f);
    fputs("something", f);
    f = freopen("c", "w+", f);
    SAY(fileno(f) == number);
    SAY(fwrite(bytes, 1, BIG, f));
    f = freopen64(NULL, "r+", f);
    SAY(f != NULL && fread(buf, 1, BIG, f));
    SUM(buf, BIG);
    SAY(fclose(f));
    SAY(fopen("none/such", "r") == NULL);
    SAY(freopen("none/such", "r", fopen("b", "r")) == NULL);

    /* Lines and wide characters. */
    f = fopen("lines", "w+");
    for (int i = 0; i < 50000; i++)
        fprintf(f, "line %d of many\n", i);
    memset(buf, 'q', BIG);
    fwrite(buf, 1, BIG, f);
    fputc('\n', f);
    rewind(f);
    char *line = NULL;
    size_t room = 0, lines = 0, longest = 0;
    for (ssize_t got; (got = getline(&line, &room, f)) > 0; lines++)
        if ((size_t)got > longest)
            longest = got;
    printf("%zu lines, longest %zu\n", lines, longest);
    fclose(f);
    f = fopen("wide", "w+,ccs=UTF-8");
    SAY(f != NULL);
    if (f) {
        for (int i = 0; i < 20000; i++)
            fwprintf(f, L"%d \u00e9\n", i);
        rewind(f);
        wint_t c;
        size_t wide = 0;
        while ((c = fgetwc(f)) != WEOF)
            wide += c;
        printf("wide %zu\n", wide);
        fclose(f);
    }

    /* Errors. */
    f = fopen("a", "r");
    SAY(fwrite(bytes, 1, BIG, f));
    SAY(ferror(f) != 0);
    fclose(f);
    f = fopen("/dev/full", "w");
    setvbuf(f, NULL, _IONBF, 0);
    SAY(fwrite(bytes, 1, BIG, f));
    SAY(ferror(f) != 0);
    fclose(f);
    f = fopen(".", "r");
    SAY(fread(buf, 1, BIG, f));
    SAY(ferror(f) != 0);
    fclose(f);
    f = fopen("b", "w");
    close(fileno(f));
    SAY(fwrite(bytes, 1, BIG, f) <= BIG);
    SAY(fclose(f));

    /* Past stdio's buffers. */
    fd = open("d", O_RDWR | O_CREAT, 0600);
    SAY(dprintf(fd, "%d %s %.3f %g %c %ld %lld %x %f\n", 1, "two", 3.0, 4.5, '5', 6l, 7ll, 8, 9.25));
    shown(fd, "%d %s %.3f\n", 10, "eleven", 12.5);
    SAY(dprintf(-1, "nowhere"));
    WHERE(fd);
    f = tmpfile();
    SAY(fwrite(bytes, 1, BIG, f));
    rewind(f);
    SAY(fread(buf, 1, BIG, f));
    f = fopen("left to exit", "w");
    fwrite(bytes, 1, 3000, f);
    return 0;
}
