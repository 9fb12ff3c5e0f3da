//! A program cannot tell that its threads are held still now and then, nor that its helper was killed.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use common::{With, compile, same_with};

fn row(row: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "pauses", &["-O1", "-Wextra", "-Werror"]);
    let said = same_with(&program, &[row], &[With::Least(4096)]);
    assert!(said.ends_with("done\n"), "{said}");
    said
}

#[test]
fn calls_are_not_cut_short() {
    let said = row("whole");
    assert_eq!(said.matches(": 0\n").count(), 7, "{said}");
}

#[test]
fn waits_come_to_an_end() {
    row("waits");
}

/// A hundred kills each. The first failed in every run before it was mended, the second (one who was killed before his starter saw that he
/// was ready had not been at work, it was thought) in most.
#[test]
fn nothing_is_lost_while_another_thread_has_the_next_helper_started() {
    row("noticed");
    row("first");
}

#[test]
fn a_program_without_its_helper_does_not_wait_for_itself() {
    for how in ["open", "written", "stream", "truncate", "truncate by number", "fork"] {
        row(how);
    }
}

#[test]
fn a_mapping_of_the_programs_own_keeps_no_lease() {
    row("mapped");
}
