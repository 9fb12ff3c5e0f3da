//! A program cannot tell whether the drop-in is there: Python, if it is installed.

mod common;

fn python(script: &str) {
    let installed = std::process::Command::new("/usr/bin/python3").arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        common::same("/usr/bin/python3".as_ref(), &["-c", script]);
    }
}

const DATA: &str = "
import os, hashlib, sys
def sum(b): print(len(b), hashlib.sha256(b).hexdigest())
open('data', 'wb').write(bytes(range(251)) * 8000)
";

#[test]
fn whole_files() {
    python(&format!(
        "{DATA}
b = open('data', 'rb').read(); sum(b)
open('copy', 'wb').write(b)
with open('data', 'r+b') as f:
    a = bytearray(os.path.getsize('data')); print(f.readinto(a)); a[1000:1010] = b'0123456789'
    f.seek(0); print(f.write(a), f.tell()); f.truncate(); sum(a)
f = open('data', 'r+b', buffering=0)
a = bytearray(1 << 21); print(f.readinto(a), f.readinto(a), f.tell()); f.seek(4096); print(len(f.read(100000)))
print(os.preadv(f.fileno(), [bytearray(5), a, bytearray(70000)], 11)); sum(a)
print(os.readv(f.fileno(), [bytearray(5), a])); print(os.writev(f.fileno(), [b'abc', a]))
print(os.pwritev(f.fileno(), [a, b'xyz'], 17), os.pread(f.fileno(), 10, 20)); f.close()
sum(open('data', 'rb').read())
with open('data', 'rb') as f: f.seek(128); sum(f.read())
"
    ));
}

#[test]
fn children() {
    python(&format!(
        "{DATA}
import subprocess, multiprocessing
f = open('data', 'r+b', buffering=0); b = f.read(500000)
print(subprocess.run(['sha256sum'], stdin=f, capture_output=True).stdout)
print(f.tell()); f.seek(0)
print(subprocess.run('cat; exit 3', shell=True, stdin=f, stdout=open('cat', 'wb'), close_fds=False).returncode)
pid = os.fork()
if pid == 0:
    os.pwrite(f.fileno(), b'child', 10); os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])); sum(b)
f.seek(0); sum(f.read())
print(os.popen('wc -c < data').read(), os.system('exit 5'))
with multiprocessing.get_context('fork').Pool(3) as p: print(p.map(abs, range(-5, 5)))
"
    ));
}

/// truncate(1) opens its file so that it need not wait, and so it failed while any process under the drop-in held a
/// buffer of that file: a shell script that had always worked ended with "Resource temporarily unavailable".
#[test]
fn opened_for_writing_without_waiting() {
    python(&format!(
        "{DATA}
import subprocess
b = open('data', 'rb').read()
f = os.open('data', os.O_WRONLY | os.O_NONBLOCK); print(os.write(f, b'here')); os.close(f); sum(b)
b = open('data', 'rb').read()
print(subprocess.run(['truncate', '-s', '10', 'data']).returncode, os.path.getsize('data')); sum(b)
os.mkfifo('pipe')
try: os.open('pipe', os.O_WRONLY | os.O_NONBLOCK)
except OSError as e: print(e)
"
    ));
}

#[test]
fn shutil_tempfile_and_mmap() {
    python(&format!(
        "{DATA}
import shutil, tempfile, mmap
print(shutil.copyfile('data', 'copy')); sum(open('copy', 'rb').read())
with tempfile.NamedTemporaryFile(dir='.') as t:
    t.write(open('data', 'rb').read()); t.seek(0); sum(t.read())
with open('copy', 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0); a = bytearray(len(m)); f.readinto(a); m[5000:5005] = b'store'; sum(a); m.flush()
    f.seek(0); print(f.write(a)); f.flush(); sum(m[:])
"
    ));
}

#[test]
fn numpy() {
    python(&format!(
        "{DATA}
try: import numpy as np
except ImportError: sys.exit(0)
with open('data', 'r+b') as f:
    a = np.fromfile(f, dtype=np.uint8); print(f.tell(), a.sum()); a[12345] ^= 255
    f.seek(0); a.tofile(f); print(f.tell())
b = np.fromfile('data', dtype=np.uint8); print((a == b).all())
np.save('saved', a.reshape(-1, 251)); c = np.load('saved.npy'); print(c.shape, (c.ravel() == a).all())
c[5, 5] = 7; np.save('saved', c); print(np.load('saved.npy')[5, 5])
"
    ));
}

/// Large blocks used to lie below the program, which then was not the first in the list of its mappings. A test of CPython's own,
/// of code that looks for itself there, failed for it.
#[test]
fn the_program_is_the_first_of_its_mappings() {
    python(&format!(
        "{DATA}
a = bytearray(1 << 24)
with open('data', 'rb', buffering=0) as f: print(f.readinto(a))
print(open('/proc/self/maps').readline().split()[5])
"
    ));
}
