/* Made from src/lib.rs by cbindgen: do not edit. See README.md beside it in the sources.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0 */

#ifndef ELISION_H
#define ELISION_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// What a run of bytes of a buffer is.
typedef enum elision_state {
  // Memory like any other.
  ELISION_PLAIN = 0,
  // Stands for file bytes, and is not loaded.
  ELISION_DEFERRED = 1,
  // Stands for file bytes, and was loaded by a touch.
  ELISION_LOADED = 2,
  // Has memory of its own, which the file has, too.
  ELISION_TRACKED = 3,
  // Was altered since it was read or saved.
  ELISION_ALTERED = 4,
} elision_state;

// Owned memory whose pages may stand for file bytes until they are altered.
typedef struct elision_buffer elision_buffer;

// An open file of which no other descriptor exists in this program.
typedef struct elision_file elision_file;

// A run of bytes of a buffer.
typedef struct elision_range {
  // Of its first byte.
  size_t start;
  // Behind its last byte.
  size_t end;
  // What all of it is.
  enum elision_state state;
} elision_range;

// Counters of this process, in bytes. A forked child starts from zero.
typedef struct elision_stats {
  // Bytes that reads did not load.
  uint64_t deferred_bytes;
  // Of these, loaded since by a touch; counted when the buffer ends.
  uint64_t loaded_bytes;
  // Of these, copied because the file was about to change.
  uint64_t materialised_bytes;
  // Bytes that were brought into the page cache unasked, because the program had waited for many.
  uint64_t prefetched_bytes;
  // Bytes that writes left out.
  uint64_t elided_bytes;
  // Bytes that writes left to be shared with the file that they were read from.
  uint64_t shared_bytes;
  // Bytes that the same writes wrote.
  uint64_t written_bytes;
} elision_stats;

// How many transfers were done the plain way for one reason.
typedef struct elision_declined {
  // The reason's name ("file_system", "small", ...), which stays.
  const char *reason;
  // Transfers.
  uint64_t count;
  // Bytes of the reads among them.
  uint64_t read_bytes;
} elision_declined;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Reads a whole file, in time that does not depend on its size. The bytes are those that the file has now, whatever happens to it
// later. NULL and errno as of open and read.
struct elision_buffer *elision_read(const char *path);

// The same for a file that will be saved again: it is opened for writing, too, and stays open with the buffer.
struct elision_buffer *elision_edit(const char *path);

// Saves the buffer: afterwards the file has its bytes alone. Only what was altered is written. The file is not emptied first, and stays open with
// the buffer for the next save. 0, or -1 and errno as of open, write and ftruncate.
int elision_write(const char *path, struct elision_buffer *buffer);

// The same for any bytes.
int elision_write_bytes(const char *path, const void *data, size_t len);

// Replaces the file by a new one of the buffer's bytes: at every moment there is the old file or the new one, whole. Where files share
// blocks (XFS, btrfs) only what was altered is written. 0, or -1 and errno as of creating a file there.
int elision_write_atomic(const char *path, struct elision_buffer *buffer);

// The same, and durable: also after a power failure there is one of them, and the new one once this has returned.
int elision_write_atomic_sync(const char *path, struct elision_buffer *buffer);

// A buffer of `len` zero bytes, which take no memory before they are touched. NULL and ENOMEM without address space.
struct elision_buffer *elision_buffer_new(size_t len);

// Frees the memory, and closes the file that is open with it. NULL is allowed.
void elision_buffer_free(struct elision_buffer *buffer);

// The first byte: at a multiple of 16, mostly of a page. Valid until the buffer is resized or freed. Of an empty buffer it must not be
// touched.
uint8_t *elision_buffer_data(struct elision_buffer *buffer);

// The length in bytes. Of NULL: 0, and errno EINVAL.
size_t elision_buffer_len(const struct elision_buffer *buffer);

// Changes the length. New bytes are zero; what stays is not loaded. The first byte may be elsewhere afterwards. 0, or -1 and ENOMEM:
// the buffer is as it was.
int elision_buffer_resize(struct elision_buffer *buffer, size_t len);

// Loads the `len` bytes from `at` on now. 0, or -1 and errno: EIO where a touch would raise SIGBUS, ENOMEM.
int elision_buffer_load(const struct elision_buffer *buffer, size_t at, size_t len);

// Gives the memory of loaded whole pages back; a touch loads them again. Altered pages stay. Nobody may store into the range meanwhile.
// The number of bytes given back, or -1.
ssize_t elision_buffer_unload(struct elision_buffer *buffer, size_t at, size_t len);

// What each run of bytes is: in order, from 0 to the length. Fills at most `room` elements of `ranges`, and returns how many there are;
// or -1.
ssize_t elision_buffer_ranges(const struct elision_buffer *buffer, struct elision_range *ranges, size_t room);

// Closes the file that is open with the buffer since elision_edit or elision_write. The next save opens it again.
void elision_buffer_close_file(struct elision_buffer *buffer);

// Opens a file as open(2) does. EINVAL for O_APPEND (every write has an offset) and for O_TRUNC without writing (no lease keeps buffers
// from it). NULL and errno as of open.
struct elision_file *elision_file_open(const char *path, int flags, mode_t mode);

// Closes a file. Buffers that were read from it stay what they are. NULL is allowed.
void elision_file_close(struct elision_file *file);

// Reads up to `len` bytes from `offset` on into a new buffer: fewer only at the end of the file. NULL and errno as of pread, or ENOMEM.
struct elision_buffer *elision_file_read(const struct elision_file *file, uint64_t offset, size_t len);

// Reads up to `len` bytes from `offset` on into a buffer, from `at` on. How many there were (fewer only at the end of the file), or -1
// and errno as of pread; EINVAL if `at + len` is beyond the buffer.
ssize_t elision_file_read_at(const struct elision_file *file, uint64_t offset, struct elision_buffer *buffer, size_t at, size_t len);

// Writes a whole buffer at `offset`: only what the file does not have already. 0, or -1 and errno as of pwrite: what was written by then
// is written.
int elision_file_write(const struct elision_file *file, uint64_t offset, struct elision_buffer *buffer);

// The same for the `len` bytes of the buffer from `at` on.
int elision_file_write_at(const struct elision_file *file, uint64_t offset, struct elision_buffer *buffer, size_t at, size_t len);

// The file's size in bytes, or -1 and errno as of fstat.
int64_t elision_file_size(const struct elision_file *file);

// Cuts or extends the file. Buffers that depend on it get memory of their own first. 0, or -1 and errno as of ftruncate.
int elision_file_set_size(const struct elision_file *file, uint64_t size);

// Waits until the file is on the device. 0, or -1 and errno as of fsync.
int elision_file_sync(const struct elision_file *file);

// The same without the metadata that reading does not need, as fdatasync.
int elision_file_sync_data(const struct elision_file *file);

// Sets the size from which on transfers of this library are deferred and elided, in bytes; at least one page. Unless set, it is 8 MiB for
// a read into a new buffer, 4 MiB into one that is there, and 1 MiB for elision_edit and writes.
void elision_set_min_bytes(size_t bytes);

// Reads the counters of this process. `size` is sizeof(elision_stats): a later library fills what the program knows. 0, or -1 and EFAULT.
int elision_stats_snapshot(struct elision_stats *stats, size_t size);

// Which transfers were done the plain way, and why. Fills at most `room` elements of `declined`, and returns how many reasons there were;
// or -1 and EFAULT.
ssize_t elision_stats_declined(struct elision_declined *declined, size_t room);

// The library's version, as "0.1.0".
const char *elision_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ELISION_H */
