//! Blocks are placed so that what is read into them can be deferred.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::path::Path;
use std::process::Command;

/// No multiple of a page, but of 16.
const SIZE: usize = (8 << 20) + 1040;
const PIECE: u64 = 1 << 20;

/// Runs a program on a file, with the drop-in and without; it says the same. Gives the bytes that were deferred.
fn deferred(program: &Path, arguments: &[&str]) -> u64 {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, Into::into);
    let made = tempfile::tempdir_in(place).unwrap();
    let (file, stats) = (made.path().join("file"), made.path().join("stats"));
    std::fs::write(&file, (0..SIZE).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
    let said = |with: bool| {
        let mut command = Command::new(program);
        if with {
            common::offer_everything(&mut command, &stats);
            command.env("ELISION_MIN_BYTES", "65536");
        }
        let output = command.args(arguments).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(said(true), said(false), "{arguments:?}");
    let stats = std::fs::File::open(&stats).unwrap();
    stats.lock().unwrap(); // The helper holds it until it has written.
    let stats = std::io::read_to_string(stats).unwrap();
    println!("{arguments:?}: {stats}");
    common::counter(&stats, "deferred_bytes")
}

fn rows(rows: &[(&str, u64)]) {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "placement", &["-O1", "-Wextra", "-Werror"]);
    for (row, least) in rows {
        // On a busy machine the helper may not answer in time.
        let mut most = 0;
        let enough = (0..5).any(|_| {
            most = deferred(&program, &[row]).max(most);
            most >= *least
        });
        assert!(enough, "{row}: {most} of {least} bytes deferred");
    }
}

#[test]
fn behind_what_a_stream_has_sought() {
    rows(&[("stream_seeks", 6 * PIECE), ("stream_tells", 6 * PIECE), ("stream_rewinds", 6 * PIECE)]);
}

#[test]
fn all_but_a_header() {
    rows(&[("stream_reads_on", 7 * PIECE), ("positioned", 7 * PIECE), ("trailer", 7 * PIECE)]);
}

#[test]
fn as_python_reads() {
    rows(&[("python_readinto", 7 * PIECE), ("python_bytearray", 7 * PIECE), ("python_read", 7 * PIECE)]);
    rows(&[("python_reads_a_part", PIECE - 8192)]);
}

#[test]
fn what_blocks_of_that_size_were_read_into() {
    rows(&[("pieces_behind_a_header", 5 * (PIECE - 8192)), ("pieces_in_objects", 5 * (PIECE - 8192))]);
    rows(&[("objects_in_a_row", 4 * (PIECE - 8192))]);
}

#[test]
fn where_the_file_or_the_request_says() {
    rows(&[("assembler", 7 * PIECE), ("listed", 3 * (PIECE - 8192)), ("archive", 3 * (PIECE - 8192))]);
}

/// A header of 128 bytes, as that of an .npy file, then all of the rest, in the ways of the standard library and numpy.
#[test]
fn python_itself() {
    const PYTHON: &str = "/usr/bin/python3";
    let has = |module: &str| {
        let import = format!("import {module}");
        Command::new(PYTHON).args(["-c", &import]).output().is_ok_and(|output| output.status.success())
    };
    let mut scripts = vec![
        "f.read(128); b = f.read()",
        "f.read(128); b = bytearray(size - 128); f.readinto(b)",
        "f.read(128); b = f.read(1 << 20); b = f.read(1 << 20) + f.read(1 << 20)",
        "f.seek(4096 + 32); b = f.read()",
        "b = os.read(f.fileno(), 1 << 23)",
        "b = os.pread(f.fileno(), 1 << 23, 0)",
    ];
    let mut modules = "os, sys";
    if has("numpy") {
        modules = "os, sys, numpy";
        scripts.push("f.read(128); b = numpy.fromfile(f, numpy.uint8)");
        scripts.push("f.read(128); b = numpy.fromfile(f, numpy.uint8, 7 << 20)");
        scripts.push("f.read(128); b = numpy.empty(size - 128, numpy.uint8); f.readinto(b)");
    }
    if !has("os") {
        return println!("skipped: {PYTHON} not found");
    }
    for script in scripts {
        let script = format!(
            "import {modules}; size = os.path.getsize(sys.argv[1]); f = open(sys.argv[1], 'rb'); {script}; print(b[77], b[-1])"
        );
        let deferred = deferred(PYTHON.as_ref(), &["-c", &script]);
        assert!(deferred >= PIECE - 16384, "{script}: {deferred} bytes deferred");
    }
}
