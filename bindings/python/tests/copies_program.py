"""What test_copies.py runs: reads a file by every copy that the arguments name, and looks whether they defer by one helper."""

import ctypes
import os
import subprocess
import sys

MIB = 1 << 20


def children(name, parents):
    """Processes of this name that are children of one of these."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/stat") as file:
                text = file.read()
        except OSError:
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if text.partition("(")[2].rpartition(")")[0] == name and int(parent) in parents and state not in "ZX":
            found.append(int(number))
    return found


def resident(start, size):
    """How much of a buffer is in memory that is this program's own, or has been loaded: nothing of a deferred one, but for its ends."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(start // 4096 * 8)
        entries = memoryview(file.read(size // 4096 * 8)).cast("Q")
    return sum(4096 for entry in entries if entry >> 62)


def by_module(path):
    import elision

    buffer = elision.read(path)
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer), buffer


def by_c(path):
    library = ctypes.CDLL(sys.argv[1])
    library.elision_read.restype = library.elision_buffer_data.restype = ctypes.c_void_p
    library.elision_buffer_data.argtypes = library.elision_buffer_len.argtypes = [ctypes.c_void_p]
    library.elision_buffer_len.restype = ctypes.c_size_t
    buffer = library.elision_read(path.encode())
    return library.elision_buffer_data(buffer), library.elision_buffer_len(buffer), buffer


def by_read(path):
    """By the drop-in."""
    buffer = bytearray(os.path.getsize(path))
    with open(path, "rb", buffering=0) as file:
        assert file.readinto(buffer) == len(buffer)
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer), buffer


WAYS = {"module": by_module, "c": by_c, "plain": by_read}

with open("all", "rb") as file:
    expected = os.pread(file.fileno(), MIB, 5 * MIB)
held = [WAYS[way]("all") for way in ",".join(sys.argv[2:]).split(",")]
helpers = children("elision", children("elision-watch", [os.getpid()]))
deferring = sum(resident(start, size) < size // 2 for start, size, _ in held)
# Whoever changes the file waits until each copy's pages are safe.
subprocess.run([sys.executable, "-c", "open('all', 'r+b').write(bytes(16 << 20))"], check=True, timeout=30)
for start, size, _ in held:
    assert size == 16 * MIB and ctypes.string_at(start + 5 * MIB, MIB) == expected, "the bytes of before"
print("helpers", len(helpers), "deferring", deferring)
