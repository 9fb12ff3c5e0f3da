"""elision.numpy."""

import os

import pytest

import elision

numpy = pytest.importorskip("numpy", reason="there is no numpy")
import elision.numpy  # noqa: E402


@pytest.fixture
def table(place):
    numbers = numpy.arange(2_000_000, dtype=numpy.float64).reshape(2000, 1000)
    numpy.save("table.npy", numbers)
    return numbers


@pytest.mark.alone
def test_an_array_is_loaded_altered_and_saved(table, deferring):
    loaded = elision.numpy.load("table.npy")
    assert type(loaded) is numpy.ndarray and (loaded == table).all()
    del loaded
    opened = elision.numpy.open("table.npy")
    opened[1000, 7] = -1
    before = elision.stats()["elided_bytes"]
    elision.numpy.save("table.npy", opened)
    assert elision.stats()["elided_bytes"] - before > 15_000_000
    table[1000, 7] = -1
    assert (numpy.load("table.npy") == table).all()
    # Again, and by another name.
    opened[3, 3] = table[3, 3] = -2
    elision.numpy.save("table.npy", opened)
    elision.numpy.save("other", opened)
    assert (numpy.load("table.npy") == table).all() and (numpy.load("other") == table).all()


@pytest.mark.parametrize(
    "array",
    [
        numpy.zeros(0),
        numpy.zeros((3, 0, 2), "i2"),
        numpy.array(7.5),
        numpy.asfortranarray(numpy.arange(60).reshape(3, 4, 5)),
        numpy.arange(10)[::2],
        numpy.arange(10, dtype=">i4"),
        numpy.array(["ab", "ö"]),
        numpy.array([(1, 2.5)], [("whole", "i4"), ("part", "f8")]),
        numpy.array([(1,)], [("ähnlich", "i4")]),
        numpy.zeros(2, [(f"a name of some length, number {i}", "f4") for i in range(3000)]),
        numpy.array(["2026-01-01"], "M8[D]"),
        numpy.array([True, False]),
    ],
    ids=lambda array: f"{array.dtype.str}-{array.shape}",
)
@pytest.mark.filterwarnings("ignore:Stored array in format")
def test_every_kind_of_array(place, array):
    limits = {"max_header_size": 1_000_000} if array.nbytes > 20_000 else {}
    elision.numpy.save("array", array)
    assert_equal(numpy.load("array", **limits), array)
    numpy.save("array.npy", array)
    if limits:
        with pytest.raises(ValueError):  # As numpy.load.
            elision.numpy.load("array.npy")
        return
    loaded = elision.numpy.load("array.npy")
    assert_equal(loaded, array)
    elision.numpy.save("again", loaded)
    with open("again", "rb") as again, open("array.npy", "rb") as first:
        assert again.read() == first.read()


def assert_equal(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_other_shapes_of_a_loaded_array_are_arrays_of_their_own(table):
    loaded = elision.numpy.load("table.npy")
    for other in (loaded[:1000], loaded.T, loaded.reshape(-1), loaded.view("i8"), loaded[:, ::2], loaded * 2, loaded[1:1]):
        elision.numpy.save("other.npy", other)
        assert_equal(numpy.load("other.npy"), numpy.array(other, order="A"))
    # Over the file itself, which is emptied first.
    elision.numpy.save("table.npy", loaded[500:].T)
    assert (numpy.load("table.npy") == table[500:].T).all() and (loaded == table).all()


def test_modes_and_errors(table):
    array = elision.numpy.open("table.npy", "r")
    with pytest.raises(ValueError):
        array[0, 0] = 1
    with pytest.raises(ValueError, match="mode"):
        elision.numpy.open("table.npy", "w+")
    with open("table.npy", "r+b") as file:
        file.truncate(os.path.getsize("table.npy") - 1)
    with pytest.raises(ValueError, match="ends early"):
        elision.numpy.load("table.npy")
    numpy.save("objects.npy", numpy.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="objects"):
        elision.numpy.load("objects.npy")
    with pytest.raises(ValueError, match="objects"):
        elision.numpy.save("table.npy", numpy.array([{}]))
    for wrong in (b"", b"no numpy", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x09\x00"):
        elision.write("wrong", wrong)
        with pytest.raises(ValueError):
            elision.numpy.load("wrong")
    with pytest.raises(FileNotFoundError):
        elision.numpy.load("missing")
