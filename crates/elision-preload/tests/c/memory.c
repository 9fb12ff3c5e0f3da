/*
 * What a program may observe of malloc, mmap and their kin. Prints nothing that depends on addresses or on
 * sizes beyond what was asked for, so that the output with the drop-in can be compared with the output without.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
/* Out of the compiler's sight, which otherwise removes pairs of malloc and free. */
static void *volatile sink;
static volatile size_t huge = SIZE_MAX;

static int is(const unsigned char *p, size_t n, int byte)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != byte)
			return 0;
	return 1;
}

static void report(const char *what, int good)
{
	printf("%s: %s\n", what, good ? "yes" : "NO");
}

static const size_t sizes[] = { 1, 100, 4095, 4096, 4097, 8192, 65536, 100000, 131072, 1 << 20, (1 << 20) + 34, 5000000 };
#define SIZES (sizeof sizes / sizeof *sizes)

static void alignment(void)
{
	int aligned = 1, usable = 1, writable = 1;
	for (size_t i = 0; i < SIZES; i++) {
		char *p = malloc(sizes[i]);
		aligned &= (uintptr_t)p % 16 == 0;
		size_t n = malloc_usable_size(p);
		usable &= n >= sizes[i];
		memset(p, 1, n);
		writable &= is((unsigned char *)p, n, 1);
		free(p);
	}
	report("malloc is aligned to 16", aligned);
	report("usable size covers the request", usable && malloc_usable_size(NULL) == 0);
	report("usable bytes are usable", writable);

	int error = 0, good = 1;
	void *p = &error;
	for (size_t align = 1; align <= 1 << 24; align <<= 1)
		for (size_t i = 0; i < SIZES; i++) {
			int e = posix_memalign(&p, align, sizes[i]);
			if (align < sizeof(void *)) {
				error |= e != EINVAL;
				continue;
			}
			good &= e == 0 && (uintptr_t)p % align == 0;
			memset(p, 2, sizes[i]);
			good &= malloc_usable_size(p) >= sizes[i];
			free(p);
			p = aligned_alloc(align, sizes[i]);
			good &= p && (uintptr_t)p % align == 0;
			free(p);
			p = memalign(align, sizes[i]);
			good &= p && (uintptr_t)p % align == 0;
			free(p);
		}
	report("posix_memalign refuses small alignments", !error);
	report("posix_memalign aligns", good);
	printf("posix_memalign 24: %d\n", posix_memalign(&p, 24, 100000));
	printf("posix_memalign huge: %d\n", posix_memalign(&p, 64, huge - 100));
	p = valloc(10000);
	report("valloc", (uintptr_t)p % PAGE == 0 && malloc_usable_size(p) >= 10000);
	free(p);
	p = pvalloc(10000);
	report("pvalloc", (uintptr_t)p % PAGE == 0 && malloc_usable_size(p) >= 12288);
	free(p);
}

static void failures(void)
{
	errno = 0;
	void *p = malloc(huge);
	printf("malloc huge: %d %d\n", p != NULL, errno);
	errno = 0;
	p = malloc(huge / 2 + 1);
	printf("malloc half: %d %d\n", p != NULL, errno);
	errno = 0;
	p = calloc(huge / 2, 3);
	printf("calloc overflow: %d %d\n", p != NULL, errno);
	errno = 0;
	p = reallocarray(NULL, huge / 2, 3);
	printf("reallocarray overflow: %d %d\n", p != NULL, errno);
	char *kept = malloc(300000);
	memset(kept, 5, 300000);
	errno = 0;
	p = realloc(kept, huge - 5);
	printf("realloc huge: %d %d %d\n", p != NULL, errno, is((unsigned char *)kept, 300000, 5));
	errno = 0;
	p = reallocarray(kept, huge / 2, 3);
	printf("reallocarray grown too far: %d %d %d\n", p != NULL, errno, is((unsigned char *)kept, 300000, 5));
	errno = 77;
	p = realloc(kept, 0);
	printf("realloc 0: %d %d\n", p != NULL, errno);
	p = malloc(0);
	report("malloc 0 gives something", p != NULL);
	free(p);
	free(NULL);
}

static void errno_is_kept(void)
{
	int good = 1;
	for (size_t i = 0; i < SIZES; i++) {
		char *p, *q;
		errno = 1234;
		p = malloc(sizes[i]);
		q = calloc(3, sizes[i]);
		p = realloc(p, sizes[i] * 2);
		free(p);
		free(q);
		good &= errno == 1234;
	}
	report("errno is left alone", good);
}

static void growing(void)
{
	int good = 1;
	size_t had = 1;
	unsigned char *p = malloc(had);
	p[0] = 9;
	/* Through every threshold and power of two, upwards and down again. */
	for (size_t n = 2; n < 40u << 20; n += n / 3 + 1) {
		p = realloc(p, n);
		good &= (uintptr_t)p % 16 == 0 && is(p, had, 9);
		memset(p + had, 9, n - had);
		had = n;
	}
	while (had > 1) {
		had -= had / 3 + 1;
		if (had == 0)
			break;
		p = realloc(p, had);
		good &= is(p, had, 9) && malloc_usable_size(p) >= had;
	}
	free(p);
	report("realloc keeps the contents", good);

	good = 1;
	p = memalign(1 << 16, 200000);
	memset(p, 3, 200000);
	p = realloc(p, 2000000);
	good &= is(p, 200000, 3);
	p = realloc(p, 100);
	good &= is(p, 100, 3);
	free(p);
	report("realloc of aligned memory", good);
}

static void zeroes(void)
{
	int good = 1;
	for (int round = 0; round < 3; round++)
		for (size_t i = 0; i < SIZES; i++) {
			unsigned char *p = malloc(sizes[i]);
			memset(p, 0xaa, sizes[i]);
			free(p);
			p = calloc(1, sizes[i]);
			good &= is(p, malloc_usable_size(p) < sizes[i] ? 0 : sizes[i], 0);
			memset(p, 0xbb, sizes[i]);
			free(p);
		}
	report("calloc is zero after reuse", good);
}

/* Random histories; each block carries a byte of its own from end to end. */
static void *churn(void *seed)
{
	enum { LIVE = 24 };
	struct { unsigned char *p; size_t n; int byte; } live[LIVE] = { 0 };
	unsigned state = (unsigned)(uintptr_t)seed;
	intptr_t bad = 0;
	for (int step = 0; step < 6000; step++) {
		unsigned i = rand_r(&state) % LIVE;
		size_t n = (size_t)1 << (rand_r(&state) % 19);
		n += rand_r(&state) % n;
		switch (rand_r(&state) % 5) {
		case 0:
			bad += !is(live[i].p, live[i].n, live[i].byte);
			free(live[i].p);
			live[i].p = calloc(1, n);
			bad += !is(live[i].p, n, 0);
			break;
		case 1: {
			size_t kept = live[i].n < n ? live[i].n : n;
			live[i].p = realloc(live[i].p, n);
			bad += !is(live[i].p, kept, live[i].byte);
			break;
		}
		case 2: {
			void *p;
			bad += !is(live[i].p, live[i].n, live[i].byte);
			free(live[i].p);
			bad += posix_memalign(&p, 64 << rand_r(&state) % 8, n) != 0;
			live[i].p = p;
			break;
		}
		default:
			bad += !is(live[i].p, live[i].n, live[i].byte);
			free(live[i].p);
			live[i].p = malloc(n);
			break;
		}
		live[i].n = n;
		live[i].byte = rand_r(&state) & 0xff;
		memset(live[i].p, live[i].byte, n);
	}
	for (int i = 0; i < LIVE; i++) {
		bad += !is(live[i].p, live[i].n, live[i].byte);
		free(live[i].p);
	}
	return (void *)bad;
}

static void threads(void)
{
	pthread_t thread[4];
	intptr_t bad = 0, children = 0;
	for (uintptr_t i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, churn, (void *)(i + 1));
	/* Children are born while the threads are anywhere. */
	for (int i = 0; i < 10; i++) {
		pid_t child = fork();
		if (child == 0)
			_exit(churn((void *)(uintptr_t)(100 + i)) != NULL);
		int status = -1;
		waitpid(child, &status, 0);
		children += status == 0;
	}
	for (int i = 0; i < 4; i++) {
		void *result;
		pthread_join(thread[i], &result);
		bad += (intptr_t)result;
	}
	printf("threads: %ld bad, children: %ld good\n", (long)bad, (long)children);
}

static void mappings(void)
{
	const size_t n = 64 * PAGE;
	unsigned char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(p, 1, n);
	printf("DONTNEED: %d ", madvise(p + 8 * PAGE, 4 * PAGE + 1, MADV_DONTNEED));
	printf("%d %d %d\n", is(p, 8 * PAGE, 1), is(p + 8 * PAGE, 5 * PAGE, 0), is(p + 13 * PAGE, n - 13 * PAGE, 1));
	errno = 0;
	int result = madvise(p + 1, PAGE, MADV_DONTNEED);
	printf("DONTNEED between pages: %d %d\n", result, errno);
	memset(p, 4, n);
	p = mremap(p, n, 2 * n, MREMAP_MAYMOVE);
	printf("mremap grown: %d %d\n", is(p, n, 4), is(p + n, n, 0));
	unsigned char *q = mmap(NULL, 4 * n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned char *r = mremap(p, 2 * n, n, MREMAP_MAYMOVE | MREMAP_FIXED, q + n);
	printf("mremap fixed: %d %d\n", r == q + n, is(r, n, 4));
	errno = 0;
	r = mremap(q + n + 1, n, n, MREMAP_MAYMOVE);
	printf("mremap between pages: %d %d\n", r == MAP_FAILED, errno);
	errno = 0;
	result = munmap(q + 1, n);
	printf("munmap between pages: %d %d\n", result, errno);
	errno = 0;
	result = munmap(q, 0);
	printf("munmap of nothing: %d %d\n", result, errno);
	r = mmap(q + n + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	printf("MAP_FIXED: %d %d %d %d\n", r == q + n + PAGE, is(q + n, PAGE, 4), is(r, PAGE, 0), is(r + PAGE, n - 2 * PAGE, 4));
	errno = 0;
	r = mmap(q + n, n, PROT_READ, MAP_PRIVATE | MAP_FIXED, 999, 0);
	printf("MAP_FIXED of no file: %d %d %d\n", r == MAP_FAILED, errno, is(q + n, PAGE, 4));
	printf("mprotect: %d %d\n", mprotect(q + n, PAGE, PROT_READ), is(q + n, PAGE, 4));
	errno = 0;
	result = mprotect(q + 3, PAGE, PROT_READ);
	printf("mprotect between pages: %d %d\n", result, errno);
	printf("munmap: %d\n", munmap(q, 4 * n));

	/* On memory from malloc, as numpy, jemalloc's users and databases do it. */
	p = malloc(8 << 20);
	memset(p, 6, 8 << 20);
	q = (unsigned char *)(((uintptr_t)p + PAGE - 1) & -PAGE) + PAGE;
	printf("advice on malloc: %d ", madvise(q, 4 << 20, MADV_HUGEPAGE));
	printf("%d ", madvise(q, 2 * PAGE, MADV_DONTFORK));
	printf("%d ", madvise(q, 2 * PAGE, MADV_DOFORK));
	printf("%d ", madvise(q + PAGE, PAGE, MADV_DONTNEED));
	printf("%d %d\n", is(q, PAGE, 6), is(q + PAGE, PAGE, 0));
	printf("mlock: %d %d\n", mlock(p, 10000), munlock(p, 10000));
	p = realloc(p, 20 << 20);
	printf("realloc after advice: %d\n", is(p + 5 * PAGE, (8 << 20) - 5 * PAGE, 6));
	free(p);
}

static void invalid(void)
{
	fflush(stdout);
	for (int which = 0; which < 2; which++) {
		pid_t child = fork();
		if (child == 0) {
			freopen("/dev/null", "w", stderr);
			char *p = malloc(1 << 26);
			sink = p;
			if (which == 0)
				free((char *)sink + 64);
			free(p);
			/* glibc has unmapped it and faults; the drop-in says so. */
			free(sink);
			_exit(0);
		}
		int status = 0;
		waitpid(child, &status, 0);
		report("an invalid free ends the process", WIFSIGNALED(status));
	}
}

/*
 * Memory that a file was read into is reshaped in every way, then another process overwrites the file: the bytes
 * must be those that were read.
 */
enum { FILE_PAGES = 512 };
#define FILE_SIZE (FILE_PAGES * PAGE)
static char path[] = "/tmp/elision-memory-XXXXXX";

static unsigned char byte_at(size_t at)
{
	return (unsigned char)(at * 31 + at / PAGE * 7 + 1);
}

static void fill_file(int fd, int zero)
{
	static unsigned char bytes[FILE_SIZE];
	for (size_t i = 0; i < FILE_SIZE; i++)
		bytes[i] = zero ? 0 : byte_at(i);
	if (pwrite(fd, bytes, FILE_SIZE, 0) != FILE_SIZE)
		abort();
}

static void by_another_process(int zero)
{
	pid_t child = fork();
	if (child == 0) {
		int fd = open(path, O_WRONLY);
		fill_file(fd, zero);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

static int holds(const unsigned char *p, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		if (p[i] != byte_at(i))
			return 0;
	return 1;
}

static void load(void *p)
{
	int fd = open(path, O_RDONLY);
	if (read(fd, p, FILE_SIZE) != FILE_SIZE)
		abort();
	close(fd);
}

static unsigned char *mapped(size_t n)
{
	unsigned char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(p, 0xee, n);
	return p;
}

static void reshaped(void)
{
	const size_t n = FILE_SIZE, more = 2 * FILE_SIZE;
	unsigned char *p, *q;
	int fd = mkstemp(path);
	fill_file(fd, 0);
	close(fd);

	for (int which = 0; which < 13; which++) {
		int good = 1;
		p = which < 8 ? mapped(more) : memalign(PAGE, n);
		load(p);
		p[5 * PAGE + 9] ^= 0xff;
		p[5 * PAGE + 9] ^= 0xff;
		switch (which) {
		case 0: /* discarded in the middle */
			good &= madvise(p + 3 * PAGE, 2 * PAGE, MADV_DONTNEED) == 0;
			by_another_process(1);
			good &= holds(p, 0, 3 * PAGE) && is(p + 3 * PAGE, 2 * PAGE, 0) && holds(p, 5 * PAGE, n);
			break;
		case 1: /* grown, and moved away by it */
			q = mmap(p + more, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
			p = mremap(p, more, 2 * more, MREMAP_MAYMOVE);
			by_another_process(1);
			good &= p != MAP_FAILED && holds(p, 0, n) && is(p + n, n, 0xee) && is(p + more, more, 0);
			munmap(p, 2 * more);
			if (q != MAP_FAILED)
				munmap(q, PAGE);
			p = NULL;
			break;
		case 2: /* moved to a given place */
			q = mmap(NULL, 3 * more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			good &= mremap(p, more, more, MREMAP_MAYMOVE | MREMAP_FIXED, q + more) == q + more;
			p = q + more;
			by_another_process(1);
			good &= holds(p, 0, n) && is(p + n, n, 0xee);
			munmap(q, 3 * more);
			p = NULL;
			break;
		case 3: /* made read-only, and written to afterwards */
			good &= mprotect(p, n, PROT_READ) == 0;
			by_another_process(1);
			good &= holds(p, 0, n) && mprotect(p, n, PROT_READ | PROT_WRITE) == 0;
			p[7] = 1;
			good &= p[7] == 1 && holds(p, 8, n);
			break;
		case 4: /* mapped over in part */
			q = mmap(p + 10 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			by_another_process(1);
			good &= holds(p, 0, 10 * PAGE) && is(q, 4 * PAGE, 0) && holds(p, 14 * PAGE, n);
			break;
		case 5: /* mapped over, had the descriptor been one */
			q = mmap(p, n, PROT_READ, MAP_PRIVATE | MAP_FIXED, 999, 0);
			by_another_process(1);
			good &= q == MAP_FAILED && holds(p, 0, n);
			break;
		case 6: /* unmapped in part, and mapped anew */
			good &= munmap(p, 100 * PAGE) == 0;
			by_another_process(1);
			good &= holds(p, 100 * PAGE, n);
			munmap(p + 100 * PAGE, more - 100 * PAGE);
			p = NULL;
			break;
		case 7: /* kept from children, then locked */
			good &= madvise(p, n, MADV_DONTFORK) == 0 && madvise(p, n, MADV_DOFORK) == 0;
			good &= mlock(p, 10 * PAGE) == 0 && munlock(p, 10 * PAGE) == 0;
			by_another_process(1);
			good &= holds(p, 0, n);
			break;
		case 8: /* grown a little, and a lot, and shrunk */
			p = realloc(p, n + 3 * PAGE);
			by_another_process(1);
			good &= holds(p, 0, n);
			p = realloc(p, 9 * n);
			good &= holds(p, 0, n);
			memset(p + n, 3, 8 * n);
			p = realloc(p, n / 2);
			good &= holds(p, 0, n / 2);
			break;
		case 9: /* grown a lot at once, while deferred */
			p = realloc(p, 9 * n);
			by_another_process(1);
			good &= holds(p, 0, n);
			break;
		case 10: /* shrunk while deferred, to nearly nothing */
			p = realloc(p, n / 4);
			good &= holds(p, 0, n / 4);
			p = realloc(p, 100);
			by_another_process(1);
			good &= holds(p, 0, 100);
			break;
		case 11: /* freed, and given out again at once */
			free(p);
			p = calloc(1, n);
			by_another_process(1);
			good &= is(p, n, 0);
			break;
		case 12: { /* freed, and what came in its place written where the other was read */
			int both = open(path, O_RDWR);
			good &= pread(both, p, n, 0) == n;
			free(p);
			p = calloc(1, n);
			good &= pwrite(both, p, n, 0) == n;
			close(both);
			q = malloc(n);
			load(q);
			good &= is(q, n, 0);
			free(q);
			break;
		}
		}
		printf("reshaped %d: %s\n", which, good ? "yes" : "NO");
		if (which >= 8)
			free(p);
		else if (p)
			munmap(p, more);
		by_another_process(0);
	}
	unlink(path);
}

static double seconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void measure(size_t n, long rounds, int touch)
{
	double best = 1e9;
	for (int turn = 0; turn < 5; turn++) {
		double start = seconds();
		for (long i = 0; i < rounds; i++) {
			char *p = malloc(n);
			if (touch)
				for (size_t at = 0; at < n; at += PAGE)
					p[at] = 1;
			sink = p;
			free(sink);
		}
		double each = (seconds() - start) / rounds * 1e9;
		best = each < best ? each : best;
	}
	printf("%zu %.1f\n", n, best);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "measure")) {
		measure(64, 20000000, 0);
		measure(3000, 10000000, 0);
		measure(100000, 500000, 0);
		measure(1 << 20, 20000, 1);
		measure(40 << 20, 20, 1);
		return 0;
	}
	alignment();
	failures();
	errno_is_kept();
	growing();
	zeroes();
	threads();
	mappings();
	reshaped();
	invalid();
	return 0;
}
