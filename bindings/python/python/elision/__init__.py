"""read and write with another implementation.

A big read returns at once and loads a page when the program touches it; a big write skips the pages that were not altered since.

    records = elision.edit("records.dat")       # loads nothing
    records[4096:4100] = b"paid"                # loads one page
    elision.write("records.dat", records)       # writes two pages

No byte changes under the program, as it may under mmap or numpy.memmap: the kernel makes others who want to change the file wait
until the pages have memory of their own. Linux 6.11 or later on x86-64; elsewhere the same calls read and write the plain way.
"""

import os as _os
from typing import NamedTuple as _NamedTuple
from typing import Optional as _Optional

from ._elision import (
    Buffer,
    File,
    __version__,
    edit,
    read,
    set_min_bytes,
    stats,
    write,
    write_atomic,
)
from ._elision import probe as _probe

__all__ = [
    "Buffer",
    "Check",
    "File",
    "doctor",
    "edit",
    "read",
    "set_min_bytes",
    "stats",
    "write",
    "write_atomic",
]


class Check(_NamedTuple):
    """What doctor() tried: its name; whether it works (None: not tried); why not, or an empty string."""

    name: str
    works: _Optional[bool]
    reason: str


def doctor(path: "_Optional[str | _os.PathLike[str]]" = None) -> "list[Check]":
    """What this machine allows, and the file or directory of this path (str or os.PathLike; it is only read): a list of Check.

    Reads are deferred and writes elided where all of it works. The command `elision doctor` also says what to do about what does not.
    """
    return [Check(*row) for row in _probe(None if path is None else _os.fspath(path))]
