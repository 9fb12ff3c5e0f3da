"""Arrays in .npy files, loaded where they are touched.

    table = elision.numpy.open("table.npy", "r+")
    table[1000:2000] *= 2
    elision.numpy.save("table.npy", table)      # writes the pages that were altered

numpy's own functions read and write the header. Unlike numpy.memmap, an array is a snapshot: it does not change with the file, is
not lost when the file is truncated, and is saved when the program says so.
"""

from __future__ import annotations

import builtins
import os
from typing import Any, Optional, Tuple, Union

import numpy
from numpy.lib import format as _format

import elision

__all__ = ["load", "open", "save"]

_Path = Union[str, "os.PathLike[str]"]


class _Reader:
    """As much of a file as numpy wants in order to read a header."""

    def __init__(self, view: memoryview) -> None:
        self.view, self.at = view, 0

    def read(self, size: int) -> bytes:
        part = bytes(self.view[self.at : self.at + size])
        self.at += len(part)
        return part


def _header(view: memoryview) -> Tuple[tuple, bool, numpy.dtype, int]:
    """Shape, whether in Fortran's order, type, and where the elements begin, in bytes."""
    reader: Any = _Reader(view)
    version = _format.read_magic(reader)
    if version == (1, 0):
        shape, fortran, dtype = _format.read_array_header_1_0(reader)
    elif version == (2, 0):
        shape, fortran, dtype = _format.read_array_header_2_0(reader)
    else:
        # (For names that are not Latin numpy has no public one.)
        implementation = getattr(numpy.lib, "_format_impl", _format)
        shape, fortran, dtype = implementation._read_array_header(reader, version)
    return shape, fortran, dtype, reader.at


def _array(buffer: elision.Buffer) -> numpy.ndarray:
    with memoryview(buffer) as view:
        shape, fortran, dtype, offset = _header(view)
    if dtype.hasobject:
        raise ValueError("the file has pickled objects, which numpy.load reads with allow_pickle=True")
    count = 1
    for length in shape:
        count *= length
    if len(buffer) < offset + count * dtype.itemsize:
        raise ValueError(f"the file ends early: {len(buffer)} bytes in place of {offset + count * dtype.itemsize}")
    return numpy.ndarray(shape, dtype, buffer, offset, order="F" if fortran else "C")


def load(path: _Path) -> numpy.ndarray:
    """Loads an array from a .npy file, in time that does not depend on its size. It can be written to; the file stays as it is.

    path: str or os.PathLike. The array has the file's shape, type and order. Raises OSError as numpy.load, ValueError if the file is no
    .npy file, ends early, or has pickled objects. (.npz: numpy.load.)
    """
    return _array(elision.read(path))


def open(path: _Path, mode: str = "r+") -> numpy.ndarray:
    """The same for an array that will be saved again: the file is opened for writing, too (mode "r+"), so that save() writes the pages
    that were altered and nothing else. With mode "r" the array cannot be written to.
    """
    if mode == "r+":
        return _array(elision.edit(path))
    if mode == "r":
        array = load(path)
        array.flags.writeable = False
        return array
    raise ValueError(f'mode is "r" or "r+", not {mode!r}')


def _buffer_of(array: numpy.ndarray) -> Optional[elision.Buffer]:
    """The buffer that consists of a header and this array."""
    base: Any = array
    while isinstance(base, (numpy.ndarray, memoryview)):
        base = base.base if isinstance(base, numpy.ndarray) else base.obj
    if not isinstance(base, elision.Buffer):
        return None
    whole = numpy.frombuffer(base, numpy.uint8)
    try:
        shape, fortran, dtype, offset = _header(memoryview(base))
    except ValueError:
        return None
    in_order = array.flags.f_contiguous if fortran else array.flags.c_contiguous
    same = (array.shape, array.dtype) == (shape, dtype) and in_order
    begins = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0] == offset
    return base if same and begins and offset + array.nbytes == len(base) else None


def save(path: _Path, array: Any) -> None:
    """Saves an array as a .npy file, of this name exactly.

    Of an array of load() or open(), in its shape, only what the file does not have already is written. Other arrays are written in
    full. The file may be the one that the array was loaded from.

    path: str or os.PathLike. Raises OSError as numpy.save, ValueError if the elements are objects.
    """
    array = numpy.asanyarray(array)
    if array.dtype.hasobject:
        raise ValueError("elements that are objects are saved by numpy.save with allow_pickle=True")
    buffer = _buffer_of(array)
    if buffer is not None:
        elision.write(path, buffer)
        return
    with builtins.open(path, "wb") as file:
        _format.write_array(file, array, allow_pickle=False)
