"""This module, the C library and the drop-in in one program: whoever comes first serves the others."""

import glob
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from conftest import SIZE, pattern

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = HERE / "copies_program.py"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The C library, installed."""
    bindings = HERE.parent.parent
    target = os.environ.get("CARGO_TARGET_DIR", bindings.parent / "target")
    archives = glob.glob(f"{target}/debug/libelision_c.a")
    if not archives or not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("no libelision_c.a (cargo build -p elision-c), or no C compiler")
    prefix = tmp_path_factory.mktemp("installed")
    subprocess.run([bindings / "c/install", "--prefix", prefix, "--built", archives[0]], check=True, timeout=50)
    return str(prefix / "lib/libelision.so")


@pytest.mark.parametrize("under", ["plain", "drop-in"])
@pytest.mark.parametrize("order", ["module", "c", "module,c", "c,module"])
def test_one_helper_serves_all(place, deferring, library, order, under):
    with open("all", "wb") as file:
        file.write(pattern())
    command = [sys.executable, str(PROGRAM), library, order]
    if under == "drop-in":
        command = [sys.executable, "-m", "elision", "run", "--", *command, "plain"]
    run = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stdout + run.stderr
    copies = len(order.split(",")) + (under == "drop-in")
    assert run.stdout.split() == ["helpers", "1", "deferring", str(copies)]
    assert os.path.getsize("all") == SIZE
