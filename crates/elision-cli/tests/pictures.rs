//! A program reads a file, alters it and saves it. What `elision run --report` and `elision top` show of that.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::statfs;

const MIB: usize = 1 << 20;
const LEN: usize = 32 * MIB;

fn elision() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_elision"));
    for name in ["LD_PRELOAD", "ELISION", "ELISION_PRELOAD", "ELISION_STATS", "ELISION_MIN_BYTES"] {
        command.env_remove(name);
    }
    command
}

/// A file of the records that the demo's program edits, where reads are deferred.
fn records(dir: &Path) -> Option<std::path::PathBuf> {
    const KNOWN: [i64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];
    let magic = statfs(dir).expect("statfs").f_type as i64;
    if !KNOWN.contains(&magic) {
        println!("skipped: file system {magic:#x} is not one that reads are deferred from");
        return None;
    }
    let path = dir.join("records <&> \"1\"");
    let mut data = vec![7; LEN];
    for (number, record) in data.chunks_exact_mut(256).enumerate() {
        record[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    fs::write(&path, data).expect("written");
    Some(path)
}

/// Runs the demo's program with a report.
fn report(dir: &Path, path: &Path, options: &[&str]) -> (Output, String) {
    let page = dir.join("page.html");
    let mut command = elision();
    command.arg("run").arg(format!("--report={}", page.display())).args(options).arg("--");
    command
        .arg(env!("CARGO_BIN_EXE_elision-demo-edit"))
        .arg(path)
        .args(["in_place", "5", "5", "70000", "70001"]);
    let output = command.output().expect("run");
    assert!(output.status.success(), "{output:?}");
    (output, fs::read_to_string(page).expect("a page"))
}

#[test]
fn a_report_shows_what_became_of_a_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(path) = records(dir.path()) else { return };
    let (output, page) = report(dir.path(), &path, &[]);
    assert!(output.stderr.is_empty(), "{output:?}");
    // One story, of this file.
    assert_eq!(page.matches("<svg class=\"picture\"").count(), 1, "{page}");
    assert!(page.contains("/records &lt;&amp;&gt; &quot;1&quot;</h3>"), "{page}");
    // Cell 0 has the first page, and record 5. Records 70000 and 70001 are 17.09 MiB from the beginning.
    let cell = |number: usize| {
        let offset =
            |cell: usize| bytesize::ByteSize::b((LEN * cell / 128) as u64).display().iec().to_string();
        format!("<title>{} to {}: written", offset(number), offset(number + 1))
    };
    for number in [0, 70000 * 256 * 128 / LEN] {
        assert!(page.contains(&cell(number)), "{}\n{page}", cell(number));
    }
    assert_eq!(page.matches(": written").count(), 2, "{page}");
    assert!(page.contains("100 % one elided, 1 % one written."), "{page}");
    // Traditionally all of it is read and written.
    assert_eq!(page.matches("<td>32.0 MiB").count(), 2, "{page}");
    assert!(page.contains("Nothing was declined."), "{page}");
    // It stands alone.
    for outside in ["<script", "http:", "https:", "src=", "@import"] {
        assert!(!page.contains(outside), "{outside} in {page}");
    }
}

#[test]
fn a_report_says_what_was_declined_and_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(path) = records(dir.path()) else { return };
    let other = fs::OpenOptions::new().write(true).open(&path).expect("open");
    let (output, page) = report(dir.path(), &path, &["--stats"]);
    drop(other);
    assert!(page.contains("not_sole_opener") || page.contains("lease_refused"), "{page}");
    assert!(page.contains("elision doctor FILE") || page.contains("close the file elsewhere"), "{page}");
    assert!(!page.contains("<svg class=\"picture\""), "{page}");
    // The table is printed, too, and has no process more for the lines of the report.
    let table = String::from_utf8_lossy(&output.stderr).into_owned();
    let processes = table.lines().find(|line| line.contains("processes that used it")).unwrap_or_default();
    assert_eq!(processes.split_whitespace().rev().nth(1), Some("1"), "{table}");
}

#[test]
fn a_report_without_anything_to_show_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = dir.path().join("page.html");
    let run = elision().arg("run").arg(format!("--report={}", page.display())).args(["--", "true"]).output();
    assert!(run.expect("run").status.success());
    let page = fs::read_to_string(page).expect("a page");
    assert!(page.contains("Nothing to report: no process that it reached read or wrote 3.8 MiB"), "{page}");
}

#[test]
fn a_report_that_cannot_be_written_is_said_before_the_program_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let mark = dir.path().join("mark");
    let run = elision()
        .args(["run", "--report=/nowhere/page.html", "--", "touch"])
        .arg(&mark)
        .output()
        .expect("run");
    assert_eq!(run.status.code(), Some(125));
    assert!(
        String::from_utf8_lossy(&run.stderr).contains("cannot write the report to /nowhere/page.html"),
        "{run:?}"
    );
    assert!(!mark.exists());
}

#[test]
fn top_shows_a_program_and_its_files() {
    const PYTHON: &str = "/usr/bin/python3";
    if !Path::new(PYTHON).exists() {
        return println!("skipped: there is no {PYTHON}");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let Some(path) = records(dir.path()) else { return };
    let program = "import sys\ndata = open(sys.argv[1], 'rb').read()\nsum(data[at] for at in range(0, 1 << 20, 4096))\n\
                   print('ready', flush=True)\nsys.stdin.read()";
    let mut child = elision()
        .args(["run", "--", PYTHON, "-c", program])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run");
    let mut said = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut said).expect("a line");
    assert_eq!(said, "ready\n");
    let pid = child.id().to_string();
    let shown = elision().args(["top", "--once", &pid]).output().expect("run");
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let line = |has: &str| shown.lines().find(|line| line.contains(has)).unwrap_or_default().to_owned();
    assert!(line(&pid).contains("python3 -c"), "{shown}");
    let file = line("records <&>");
    // A fault maps up to 16 pages around.
    assert!(file.contains("30.9 MiB") || file.contains("31.0 MiB"), "{shown}");
    assert!(file.contains("▒···"), "{shown}");
    drop(child.stdin.take());
    assert!(child.wait().expect("an end").success());
    let gone = elision().args(["top", "--once", &pid]).output().expect("run");
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("has deferred nothing"), "{gone:?}");
}
