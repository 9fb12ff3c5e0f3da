//! Modules that are hidden in the documentation are public all the same: no safe function of theirs may be able to take bytes away from a
//! buffer, or a descriptor from its owner.
//!
//! No test can call a function and see that this does not compile, so the sources are read. A function that is named here only
//! looks, or does more than need be at worst (loads, copies, writes, gives a guard up in good order), whatever it is given.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Those that take an address or a descriptor, or speak for the process.
const HARMLESS: [(&str, &[&str]); 5] = [
    (
        "dropin",
        &[
            // Ask what is known.
            "at_work",
            "ever_at_work",
            "file_number",
            "may_be_deferred",
            "min_bytes",
            "pauses",
            "touched",
            "validate",
            "write_lease_on",
            "write_lease_on_number",
            "write_leases",
            "writes_synchronously",
            // Give memory of its own to what depends on a file, or have more of it written.
            "before_change",
            "before_rights",
            "closing",
            "dissolve",
            "let_go",
            "surrender",
            "untrack",
            // Start a helper again, or have nothing deferred from now on.
            "look_after",
            "stop",
            "declined",
            // Ends the program at a mistake of ours, and at nothing else.
            "watch_faults",
        ],
    ),
    ("sys/file", &["filesystem", "flags", "open", "read_at", "stat"]),
    ("sys/pages", &["mapping"]),
    ("sys/raw", &[]),
    ("sys/task", &["block_signals", "memory_is_limited", "restore_signals"]),
];

/// The names of all functions at a module's outermost level that safe code of others can call.
fn safe(module: &str) -> BTreeSet<String> {
    let source = fs::read_to_string(Path::new("src").join(module).with_extension("rs")).unwrap();
    let name = |line: &str| Some(line.strip_prefix("pub fn ")?.split(['(', '<']).next()?.to_owned());
    source.lines().filter_map(name).collect()
}

#[test]
fn nothing_that_is_hidden_and_safe_can_do_harm() {
    for (module, harmless) in HARMLESS {
        let expected = harmless.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(safe(module), expected, "{module}");
    }
    // And there is nothing else.
    let modules: Vec<String> = fs::read_to_string("src/sys/mod.rs")
        .unwrap()
        .lines()
        .filter_map(|line| Some(format!("sys/{}", line.strip_prefix("pub mod ")?.strip_suffix(';')?)))
        .collect();
    assert_eq!(modules, ["sys/file", "sys/pages", "sys/raw", "sys/task"]);
    let root = fs::read_to_string("src/lib.rs").unwrap();
    let hidden: BTreeSet<&str> = root
        .lines()
        .zip(root.lines().skip(1))
        .filter(|(attribute, _)| *attribute == "#[doc(hidden)]")
        .map(|(_, item)| item)
        .collect();
    // (The last four do no more than compute.)
    let known =
        ["dropin", "sys", "extent", "program", "settings", "transfer"].map(|name| format!("pub mod {name};"));
    assert_eq!(hidden, known.iter().map(String::as_str).collect());
}
