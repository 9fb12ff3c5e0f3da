"""Every snippet of README.md, on files that fit it."""

import importlib.util
import os
import pickle
import re

import pytest

import elision
from conftest import MIB, pattern

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SNIPPETS = []
for name in ("README.md", "../../README.md"):
    with open(os.path.join(HERE, name)) as file:
        found = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
    SNIPPETS += [snippet for snippet in found if "import elision" in snippet]


def save_feather():
    import numpy, pyarrow, pyarrow.feather

    table = pyarrow.table({"x": numpy.arange(2 * MIB)})
    pyarrow.feather.write_feather(table, "table.feather", compression="uncompressed")


def save_parquet():
    import numpy, pyarrow, pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"x": numpy.arange(2 * MIB), "y": numpy.zeros(2 * MIB)}), "table.parquet")


def save_numbers(name, dtype):
    import numpy

    numpy.arange(2 * MIB, dtype=dtype).tofile(name)


def save_array():
    import numpy

    numpy.save("table.npy", numpy.arange(2 * MIB))


def save_tensors():
    import numpy, safetensors.numpy

    safetensors.numpy.save_file({"x": numpy.arange(2 * MIB)}, "model.safetensors")


def save_pickle():
    parts = []
    with open("state.pickle", "wb") as file:
        pickle.dump(["state", pickle.PickleBuffer(pattern())], file, protocol=5, buffer_callback=parts.append)
    elision.write("state.buffer", parts[0].raw())


def check_array(names):
    import numpy

    expected = numpy.arange(2 * MIB)
    expected[1000:2000] *= 2
    return (numpy.load("table.npy") == expected).all()


SUM = sum(range(2 * MIB))

# The file that a snippet names: how it is made, and what must be true afterwards.
FILES = {
    "records.dat": (lambda: elision.write("records.dat", pattern()), lambda names: open("records.dat", "rb").read()[4096:4100] == b"paid"),
    "samples.f64": (lambda: save_numbers("samples.f64", "f8"), lambda names: names["samples"].sum() == SUM),
    "table.npy": (save_array, check_array),
    "table.feather": (
        save_feather,
        lambda names: (names["table"].column("x").to_numpy().sum() if "table" in names else names["frame"]["x"].sum()) == SUM,
    ),
    "table.parquet": (save_parquet, lambda names: names["frame"]["x"].sum() == SUM and list(names["frame"]) == ["x"]),
    "model.safetensors": (save_tensors, lambda names: names["tensors"]["x"].sum() == SUM),
    "weights.f32": (lambda: save_numbers("weights.f32", "f4"), lambda names: names["weights"][1000].item() == 1000),
    "picture.raw": (lambda: elision.write("picture.raw", pattern()), lambda names: names["picture"].tobytes() == pattern()),
    "state.pickle": (save_pickle, lambda names: names["state"][0] == "state" and bytes(names["state"][1]) == pattern()),
}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: re.search(r'"(\w+\.\w+)"', snippet).group(1))
def test_snippet(place, snippet):
    wanted = set(re.findall(r"\b(numpy|pandas|polars|pyarrow|safetensors|torch|PIL)\b", snippet))
    if wanted & {"torch", "safetensors", "pandas", "polars", "pyarrow"}:
        wanted.add("numpy")
    for package in sorted(wanted):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"there is no {package}")
    make, good = FILES[re.search(r'"(\w+\.\w+)"', snippet).group(1)]
    make()
    names = {}
    exec(snippet, names)
    assert good(names)


def test_the_snippets_are_all_there():
    assert len(SNIPPETS) == 11
