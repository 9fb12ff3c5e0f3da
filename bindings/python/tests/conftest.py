"""What the tests share."""

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile

import pytest

import elision

MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture(autouse=True)
def bounded():
    """No test hangs: after a minute every thread's place is printed, and the tests end."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def place(monkeypatch):
    """A directory in the place that the tests are run for, which is the working directory, too."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("ELISION_TEST_DIR")) as directory:
        monkeypatch.chdir(directory)
        yield directory


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: in a process of its own, since Elision learns from what was done before")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs a test that is marked `alone` in a process of its own."""
    if pyfuncitem.get_closest_marker("alone") is None or "TEST_ALONE" in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    environment = {**os.environ, "TEST_ALONE": "1"}
    run = subprocess.run(
        command, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True, timeout=50
    )
    if run.returncode != 0:
        pytest.fail(run.stdout + run.stderr, pytrace=False)
    if "1 skipped" in run.stdout:
        pytest.skip(run.stdout.strip().splitlines()[-2])
    assert "1 passed" in run.stdout, run
    return True


def pattern(size=SIZE):
    """Bytes that tell one page from another."""
    return b"".join(number.to_bytes(16, "little") for number in range(size // 16))


@pytest.fixture
def path(place):
    """A file of 16 MiB."""
    with open("records.dat", "wb") as file:
        file.write(pattern())
    return "records.dat"


@pytest.fixture
def deferring(place):
    """For tests that are about what is deferred."""
    with open("probe", "wb") as file:
        file.write(bytes(SIZE))
    elision.read("probe").close()
    os.remove("probe")
    if elision.stats()["deferred_bytes"] == 0:
        pytest.skip(f"nothing is deferred here: {elision.stats()['declined']}")


def run_in_child(work):
    """Forks, and says whether `work` returned true there, within half a minute."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            os._exit(0 if work() else 1)
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
