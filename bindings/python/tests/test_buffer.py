"""Buffer, File and the functions of the module."""

import ast
import errno
import gc
import inspect
import io
import os
import pickle
import re
import threading

import pytest

import elision
from conftest import MIB, SIZE, pattern


def content(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.alone
def test_a_save_writes_what_was_altered(path, deferring):
    records = elision.edit(path)
    assert records.ranges() == [(0, SIZE, "deferred")]
    records[5 * MIB] = 7
    records[9 * MIB : 9 * MIB + 4] = b"paid"
    states = records.ranges()
    assert states[0][:1] == (0,) and states[-1][1] == SIZE
    assert [(a, b) for a, b, state in states if state == "altered"] == [
        (5 * MIB, 5 * MIB + 4096),
        (9 * MIB, 9 * MIB + 4096),
    ]
    before = elision.stats()
    elision.write(path, records)
    after = elision.stats()
    assert after["elided_bytes"] - before["elided_bytes"] == SIZE - 3 * 4096  # The first page is always written.
    expected = bytearray(pattern())
    expected[5 * MIB] = 7
    expected[9 * MIB : 9 * MIB + 4] = b"paid"
    assert content(path) == expected


def test_a_buffer_is_a_snapshot(path):
    records = elision.read(path)
    with open(path, "wb") as file:
        file.write(b"something else")
    assert records == pattern()


def test_a_buffer_is_bytes(path):
    records = elision.read(path)
    assert len(records) == SIZE and bytes(records[16:18]) == b"\x01\x00" and records[-16] == (SIZE // 16 - 1) & 0xFF
    part = records[4096:8192]
    assert isinstance(part, memoryview) and not part.readonly and len(part) == 4096
    part[0] = 99
    assert records[4096] == 99
    assert records != pattern() and records == bytearray(records) and not records == "text"
    assert re.search(b"\x01\x01\x00", records).start() == 257 * 16
    assert io.BytesIO(records[:20]).read() == pattern()[:20]
    with pytest.raises(IndexError):
        records[SIZE]
    with pytest.raises(TypeError):
        records < records
    with pytest.raises(TypeError):
        b"x" in records
    with pytest.raises(TypeError):
        hash(records)
    with pytest.raises(TypeError):
        pickle.dumps(records)
    with pytest.raises(ValueError):
        records[0:2] = b"longer"


def test_zeroes_and_sizes(place):
    with elision.Buffer(3 * MIB) as zeroes:
        assert len(zeroes) == 3 * MIB and zeroes == bytes(3 * MIB)
        zeroes[3 * MIB - 1] = 1
        zeroes.resize(5 * MIB)
        assert zeroes[3 * MIB - 1] == 1 and zeroes[5 * MIB - 1] == 0
        zeroes.resize(10)
        zeroes.resize(20)
        assert zeroes == bytes(20)
        with pytest.raises(OSError) as error:
            zeroes.resize(1 << 62)
        assert error.value.errno == errno.ENOMEM and len(zeroes) == 20
    assert elision.Buffer() == b"" and elision.Buffer(0)[:] == b""
    with pytest.raises(OverflowError):
        elision.Buffer(-1)


def test_what_something_else_has_is_not_taken_away(path):
    records = elision.edit(path)
    view = memoryview(records)[100:200]
    for change in (lambda: records.resize(10), records.close, records.unload):
        with pytest.raises(BufferError, match="1 exported"):
            change()
    with elision.File(path) as file, pytest.raises(BufferError):
        file.readinto(records)
    assert view == pattern()[100:200]
    # Saving, loading and asking go on.
    view[0] = 255
    records.load()
    elision.write(path, records)
    assert content(path)[100] == 255 and records.ranges()
    view.release()
    records.resize(10)
    assert records == pattern()[:10]
    # A view outlives the name.
    view = memoryview(elision.read(path))
    gc.collect()
    assert view[:100] == pattern()[:100]


def test_a_closed_buffer(path):
    with elision.edit(path) as records:
        assert records[16] == 1
    for use in (
        lambda: len(records),
        lambda: records[0],
        lambda: memoryview(records),
        records.load,
        records.unload,
        records.ranges,
        records.close_file,
        lambda: records.resize(1),
        lambda: elision.write(path, records),
        lambda: records == b"",
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    records.close()
    assert "closed" in repr(records)
    with pytest.raises(BufferError):
        with elision.read(path) as records:
            view = memoryview(records)
    # What went wrong before is not hidden.
    with pytest.raises(KeyError):
        with elision.read(path) as records:
            view = memoryview(records)
            raise KeyError
    view.release()


@pytest.mark.alone
def test_load_and_unload(path, deferring):
    records = elision.read(path)
    records.load(4 * MIB, 8 * MIB)
    loaded = sum(b - a for a, b, state in records.ranges() if state == "loaded")
    assert 4 * MIB <= loaded < SIZE
    assert records.unload() == loaded
    assert records.ranges() == [(0, SIZE, "deferred")]
    records[0] = 1
    records.load()
    assert records.unload(-4096) == 4096 and records[0] == 1
    records.load(SIZE, 2 * SIZE)
    assert records.unload(5, 3) == 0


def test_any_bytes_are_written(place):
    data = os.urandom(100_000)
    for write in (elision.write, elision.write_atomic, lambda *both: elision.write_atomic(*both, sync=True)):
        for given in (data, bytearray(data), memoryview(data)[:5], b"", elision.Buffer(10)):
            write("file", given)
            assert content("file") == given
    with pytest.raises(TypeError):
        elision.write("file", "text")
    with pytest.raises(BufferError):
        elision.write("file", memoryview(data)[::2])


def test_atomic(path):
    records = elision.read(path)
    records[7 * MIB] = 1
    with open(path, "rb") as old:
        elision.write_atomic(path, records)
        assert old.read() == pattern()
    assert records == content(path) and os.listdir() == [path]


def test_errors_are_those_of_open(place):
    for call in (elision.read, elision.edit, elision.File):
        with pytest.raises(FileNotFoundError) as error:
            call("missing")
        assert (error.value.errno, error.value.filename) == (errno.ENOENT, "missing")
        assert str(error.value) == "[Errno 2] No such file or directory: 'missing'"
    with pytest.raises(IsADirectoryError):
        elision.edit(".")
    with pytest.raises(FileNotFoundError):
        elision.write("missing/file", b"")
    with pytest.raises(ValueError):
        elision.read("zero\0byte")
    with pytest.raises(TypeError):
        elision.read(5)


def test_parts_of_files(path):
    import pathlib

    with elision.File(pathlib.Path(path), "r+") as file:
        assert file.size == SIZE
        part = file.read(4 * MIB, 9 * MIB)
        assert part == pattern()[4 * MIB : 13 * MIB] and file.read(SIZE - 5, 10) == pattern()[-5:]
        part[0] = 77
        file.write(4 * MIB, part)
        file.write(3, b"abc")
        file.write(5 * MIB + 1, bytearray(b"z") * (2 * MIB))
        expected = bytearray(pattern())
        expected[4 * MIB] = 77
        expected[3:6] = b"abc"
        expected[5 * MIB + 1 : 7 * MIB + 1] = b"z" * (2 * MIB)
        assert content(path) == expected
        room = elision.Buffer(SIZE + 10)
        assert file.readinto(room, 10) == SIZE and room[10:] == expected
        assert file.readinto(room, 0, 20, SIZE - 5) == 5
        with pytest.raises(ValueError):
            file.readinto(room, 11, SIZE)
        with pytest.raises(OSError):
            file.write(2**63 - 1, b"ab")
        file.sync()
        file.sync_data()
        file.truncate(5)
        assert file.size == 5 and part == b"M" + pattern()[4 * MIB + 1 : 13 * MIB]
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with pytest.raises(FileExistsError):
        elision.File(path, "x+")
    with elision.File(path, "w+") as file:
        assert file.size == 0
    with pytest.raises(ValueError, match="mode"):
        elision.File(path, "a")
    with elision.File(path) as file, pytest.raises(OSError):
        file.write(0, b"x")


def test_the_lock_is_given_up_where_something_waits(place):
    """A pipe: the read ends when somebody writes, which nobody could if the reader kept the interpreter's lock."""
    os.mkfifo("pipe")
    for wait, answer in (
        (lambda: elision.read("pipe"), lambda: open("pipe", "wb").close()),
        (lambda: elision.write("pipe", b"some bytes"), lambda: content("pipe")),
        (lambda: elision.write("pipe", elision.Buffer(MIB)), lambda: content("pipe")),
        (lambda: elision.File("pipe").close(), lambda: open("pipe", "wb").close()),
    ):
        thread = threading.Thread(target=wait)
        thread.start()
        answer()
        thread.join()


def test_threads_that_share_a_buffer(path):
    records = elision.edit(path)
    problems = []

    def work(number):
        try:
            for turn in range(20):
                records[number * MIB + turn] = turn
                elision.write(path, records)
                records.load(number * MIB, number * MIB + 4096)
                assert records.ranges()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    elision.write(path, records)
    assert content(path) == records


def test_what_works_here(path):
    checks = elision.doctor(path)
    assert {"/proc", "read lease"} <= {check.name for check in checks}
    for check in checks:
        assert check.works or check.reason, check
    assert all(check.name != "read lease" for check in elision.doctor("."))
    assert [check.works for check in elision.doctor("missing") if check.name == "file system"] == [False]


def test_statistics(place):
    with open("little", "wb") as file:
        file.write(b"abc")
    before = elision.stats()["declined"].get("small", 0)
    elision.read("little").close()
    stats = elision.stats()
    assert stats["declined"]["small"] == before + 1 and stats["declined_read_bytes"]["small"] >= 3


def test_the_stubs_name_what_there_is():
    import elision.numpy  # (it is no stub)

    directory = os.path.dirname(elision.__file__)
    assert os.path.exists(os.path.join(directory, "py.typed"))
    with open(os.path.join(directory, "__init__.pyi")) as file:
        tree = ast.parse(file.read())

    def names(body):
        return {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"}

    stubs = names(tree.body)
    assert set(stubs) == set(elision.__all__)
    for name, stub in stubs.items():
        real = getattr(elision, name)
        assert real.__doc__, name
        if isinstance(stub, ast.FunctionDef):
            pairs = [(stub, real)]
        elif name == "Check":
            continue
        else:
            public = {entry for entry in vars(real) if entry[0] != "_"}
            assert set(names(stub.body)) == public
            pairs = [(names(stub.body)[entry], getattr(real, entry)) for entry in public]
        for node, function in pairs:
            assert function.__doc__, node.name
            if callable(function):
                arguments = [argument.arg for argument in node.args.args + node.args.kwonlyargs if argument.arg != "self"]
                assert [entry for entry in inspect.signature(function).parameters if entry != "self"] == arguments
