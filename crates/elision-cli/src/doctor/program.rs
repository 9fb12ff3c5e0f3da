//! `elision doctor PROGRAM`: can the drop-in be loaded into this program? The program is not run.

use std::fs;
use std::path::Path;

use super::report::Report;
use crate::program::{Obstacle, Program};

/// Reports what is known about the program.
pub fn examine(report: &mut Report, path: &Path) {
    report.title(&format!("program {}", path.display()));
    let program = match Program::examine(path) {
        Ok(program) => program,
        Err(error) => return report.no("program", error.to_string(), "the kernel would not run it either"),
    };
    for pair in program.chain.windows(2) {
        report.ok("script", format!("{} is run by {}", pair[0].display(), pair[1].display()));
    }
    if !program.readable {
        return report.note("program", "cannot be read, so nothing is known about it", None);
    }
    if program.obstacles.is_empty() {
        report.ok("program", "dynamically linked against glibc, and gains no rights when it starts");
    }
    for obstacle in &program.obstacles {
        let advice = match obstacle {
            Obstacle::Static => "link it dynamically, or use the elision crate in it; it runs unchanged",
            Obstacle::Musl | Obstacle::Loader(_) => "build it for glibc, or use the elision crate in it",
            Obstacle::Foreign(_) => "use a build for this machine",
            Obstacle::First(_) => {
                "set ASAN_OPTIONS=verify_asan_link_order=0 and preload the drop-in yourself"
            }
            Obstacle::Privileged(_) => "run it as the user whose rights it gains",
        };
        report.no("program", format!("{obstacle}"), advice);
    }
    if has_zend_engine(program.binary()) {
        report.no(
            "PHP",
            "loads its extensions with RTLD_DEEPBIND, which ends deferral, and reads into strings that are not \
             aligned to pages as the file is",
            "none is known: it runs unchanged",
        );
    }
    report.note(
        "while it runs",
        "deferral ends with the first io_uring, seccomp filter, RTLD_DEEPBIND and the like",
        Some("to see what is deferred, and what ends it: elision run --stats --verbose -- PROGRAM"),
    );
}

/// Is it PHP? (Its extensions call this function.)
fn has_zend_engine(program: &Path) -> bool {
    fs::read(program)
        .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("\0zend_register_extension\0"))
}
