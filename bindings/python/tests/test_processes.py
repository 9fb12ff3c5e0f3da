"""What happens at a fork, and in processes that are started anew."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import elision
from conftest import MIB, SIZE, pattern, run_in_child


def test_a_child_has_the_bytes_whatever_becomes_of_the_file(path):
    records = elision.read(path)
    records[3 * MIB] = 200
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            os.close(go)
            os.read(ready, 1)  # Until the parent has changed the file.
            expected = bytearray(pattern())
            expected[3 * MIB] = 200
            good = records == expected
            records[4 * MIB] = 201
            os._exit(0 if good and records[4 * MIB] == 201 else 1)
        finally:
            os._exit(2)
    os.close(ready)
    with open(path, "wb") as file:
        file.write(b"nothing of what was there")
    os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert records[4 * MIB] == pattern()[4 * MIB] and records[3 * MIB] == 200


def total(records):
    return sum(memoryview(records)[::4096])


inherited = None


def sum_inherited(_):
    return total(inherited)


def sum_read(path):
    return total(elision.read(path))


def test_workers_that_are_forked(path):
    global inherited
    inherited = elision.read(path)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.map(sum_inherited, range(6))
    assert set(sums) == {sum(pattern()[::4096])}
    inherited = None


def test_workers_that_are_started_anew(path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(sum_read, [os.path.abspath(path)] * 4)
    assert set(sums) == {sum(pattern()[::4096])}


def test_a_fork_in_the_middle_of_a_save_leaves_the_child_a_buffer_that_works(path):
    """The thread that was at work is not in the child, and its right to the buffer ended with it: nothing there waits for it."""
    records = elision.read(path)
    os.mkfifo("pipe")
    saving = threading.Thread(target=elision.write, args=["pipe", records])
    saving.start()
    # It is in the middle of the save, and waits for a reader to take the rest, once the pipe has some bytes.
    reader = open("pipe", "rb", buffering=0)
    reader.read(1)
    assert run_in_child(lambda: bool(records.ranges()) and elision.write("copy", records) is None)
    while reader.read(MIB):
        pass
    saving.join()
    reader.close()
    with open("copy", "rb") as file:
        assert file.read() == pattern()


def test_files_after_a_fork(path):
    file = elision.File(path, "r+")
    before = file.read()

    def work():
        file.write(0, b"child")
        return file.read(0, 5) == b"child" and len(before) == SIZE

    assert run_in_child(work)
    assert file.read(0, 5) == b"child" and before == pattern()


def test_the_command_runs_programs(path):
    """The command and the drop-in come with the package."""
    program = f"data = open({path!r}, 'rb').read(); print(len(data), data[16])"
    here = [sys.executable, "-m", "elision"]
    script = [os.path.join(os.path.dirname(sys.executable), "elision")]
    for command in (here, script):
        run = subprocess.run(
            [*command, "run", "--stats", "--", sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        assert (run.returncode, run.stdout) == (0, f"{SIZE} 1\n"), run
        assert "deferred" in run.stderr, run
        assert subprocess.run([*command, "run", "--", "false"], timeout=60).returncode == 1
        assert subprocess.run([*command, "no-such-thing"], capture_output=True, timeout=60).returncode == 2


def test_the_module_under_the_command(path):
    """Both at once, in one process."""
    program = f"""
import elision
records = elision.edit({path!r})
plain = open({path!r}, "rb").read()
records[5 << 20] = 7
elision.write({path!r}, records)
assert plain[5 << 20] == {pattern()[5 * MIB]} and bytes(records)[:5 << 20] == plain[:5 << 20]
assert open({path!r}, "rb").read() == bytes(records)
"""
    run = subprocess.run(
        [sys.executable, "-m", "elision", "run", "--", sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, ""), run
