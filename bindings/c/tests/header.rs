//! `elision.h` is what cbindgen makes of the sources, and the link script's version is the library's.

use std::fs;

/// The header says what the functions are. A C program that was compiled against another one would pass wrong arguments.
#[test]
fn the_header_is_that_of_the_sources() {
    let made = cbindgen::Builder::new()
        .with_src("src/lib.rs")
        .with_config(cbindgen::Config::from_file("cbindgen.toml").unwrap())
        .generate()
        .unwrap();
    let mut header = Vec::new();
    made.write(&mut header);
    let header = String::from_utf8(header).unwrap();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write("elision.h", &header).unwrap();
    }
    let there = fs::read_to_string("elision.h").unwrap_or_default();
    assert!(
        there == header,
        "bindings/c/elision.h is outdated. To make it anew:\n    UPDATE_HEADER=1 cargo test -p elision-c --test header\n{header}"
    );
}
