"""Saving over the file that the buffer was read from: with a memory map, zeroes, a bus error, or lost data."""

import struct

import pytest

import elision
from conftest import MIB, pattern


def test_tensors_that_are_written_after_the_file_was_emptied(path):
    """As safetensors' save_file: a header, and then each tensor, which is a view of the file that is being written."""
    whole = memoryview(elision.read(path))
    tensors = [whole[start : start + 4 * MIB] for start in range(0, 16 * MIB, 4 * MIB)]
    with open(path, "wb") as file:
        file.write(struct.pack("<q", len(tensors)))
        for tensor in reversed(tensors):
            file.write(tensor)
    with open(path, "rb") as file:
        assert struct.unpack("<q", file.read(8)) == (4,)
        for tensor in reversed(tensors):
            assert file.read(len(tensor)) == tensor
    assert whole == pattern()


def test_a_table_that_is_streamed_through_to_its_own_file(path):
    """As polars' sink: batch after batch is read, altered and written to the file that the next batch is read from."""
    source = memoryview(elision.read(path))
    expected = b""
    with open(path, "wb", buffering=0) as sink:
        for start in range(0, len(source), 3 * MIB):
            batch = bytes(source[start : start + 3 * MIB]).replace(b"\x07", b"\x70\x70\x70")
            sink.write(batch)
            expected += batch
    with open(path, "rb") as file:
        assert file.read() == expected


def test_an_image_whose_header_grows_in_place(path):
    """As nibabel: the data move within the file, while the array still is a view of it."""
    image = memoryview(elision.read(path))[352:]
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(bytes(352 + 4096))
        file.write(image)
    with open(path, "rb") as file:
        assert file.read() == bytes(352 + 4096) + pattern()[352:]


def test_safetensors(place):
    safetensors = pytest.importorskip("safetensors.numpy", reason="there is no safetensors")
    numpy = pytest.importorskip("numpy", reason="there is no numpy")
    first = {name: numpy.arange(2 * MIB, dtype="f4") + number for number, name in enumerate("abc")}
    safetensors.save_file(first, "model.safetensors")
    buffer = elision.read("model.safetensors")
    size = int.from_bytes(buffer[:8], "little")
    views = {
        name: numpy.frombuffer(buffer, "f4", 2 * MIB, 8 + size + number * 8 * MIB) for number, name in enumerate("abc")
    }
    views["c"][5] = -1
    safetensors.save_file(views, "model.safetensors")
    again = safetensors.load_file("model.safetensors")
    first["c"][5] = -1
    assert all((again[name] == first[name]).all() for name in first)


def test_polars(place):
    polars = pytest.importorskip("polars", reason="there is no polars")
    feather = pytest.importorskip("pyarrow.feather", reason="there is no pyarrow")
    pyarrow = pytest.importorskip("pyarrow", reason="there is no pyarrow")
    frame = polars.DataFrame({"x": range(2 * MIB), "y": [0.5] * (2 * MIB)})
    frame.write_ipc("table.feather", compression="uncompressed")
    read = polars.from_arrow(feather.read_table(pyarrow.py_buffer(elision.read("table.feather"))))
    read.lazy().with_columns(x=polars.col("x") + 1).sink_ipc("table.feather", compression="uncompressed")
    with open("table.feather", "rb") as file:
        again = polars.read_ipc(file)
    assert again["x"].sum() == frame["x"].sum() + 2 * MIB
    assert read.equals(frame)
