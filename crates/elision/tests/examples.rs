//! The programs in `examples/` do what they say.
#![allow(unsafe_code)] // The parts that other processes play.

mod common;

use common::{bytes, directory};
use std::fs;
use std::process::Command;

crate::roles!(play);

fn play(_: &str, _: &[String]) {}

/// What an example prints, and whether it succeeded.
fn run(name: &str, arguments: &[&str]) -> (String, bool) {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().with_file_name("examples").join(name);
    let output = Command::new(&program).args(arguments).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (text, output.status.success())
}

fn good(name: &str, arguments: &[&str]) -> String {
    let (text, success) = run(name, arguments);
    assert!(success, "{name} {arguments:?}: {text}");
    text
}

fn bad(name: &str, arguments: &[&str], said: &str) {
    let (text, success) = run(name, arguments);
    assert!(!success && text.contains(said), "{name} {arguments:?}: {text}");
}

/// Large enough that the crate defers it.
const LEN: usize = 9 << 20;

#[test]
fn search() {
    let dir = directory();
    let path = dir.path().join("log");
    let mut text = "all is well\n".repeat(LEN / 12);
    text.insert_str(0, "needle first\n");
    text.push_str("the last one, a needle");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(good("search", &[path, "needle"]), "needle first\nthe last one, a needle\n");
    bad("search", &[path, "nowhere"], "");
    bad("search", &[path], "usage");
}

#[test]
fn records() {
    let dir = directory();
    let path = dir.path().join("accounts");
    let mut expected = vec![0; LEN];
    fs::write(&path, &expected).unwrap();
    let named = path.to_str().unwrap();
    assert_eq!(good("records", &[named, "1000", "250"]), format!("record 1000 of {}: 250\n", LEN / 32));
    assert_eq!(good("records", &[named, "1000", "-251"]), format!("record 1000 of {}: -1\n", LEN / 32));
    expected[32_024..32_032].fill(0xff);
    assert!(fs::read(&path).unwrap() == expected);
    bad("records", &[named, "9999999", "1"], "there are");
}

#[test]
fn share() {
    let dir = directory();
    let path = dir.path().join("table");
    let content = bytes(1, LEN);
    fs::write(&path, &content).unwrap();
    let sum: u64 = content.iter().map(|&byte| u64::from(byte)).sum();
    assert_eq!(good("share", &[path.to_str().unwrap()]), format!("{sum}\n"));
    assert!(fs::read(&path).unwrap() == content);
    bad("share", &[], "usage");
}

#[test]
fn lookup() {
    let dir = directory();
    let path = dir.path().join("table");
    // Ranges of 16 addresses, from 16.0.0.0 on.
    let table: Vec<u8> = (0..LEN as u32 / 8)
        .flat_map(|n| [(0x1000_0000 + 16 * n).to_be_bytes(), n.to_be_bytes()].concat())
        .collect();
    fs::write(&path, table).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(
        good("lookup", &[path, "16.0.0.0", "16.0.16.31", "15.255.255.255", "255.0.0.1"]),
        format!(
            "16.0.0.0 is in network 0\n16.0.16.31 is in network 257\n15.255.255.255 is in none\n255.0.0.1 is in network {}\n",
            LEN / 8 - 1
        )
    );
    bad("lookup", &[path, "somewhere"], "AddrParseError");
}

#[test]
fn checkpoint() {
    let dir = directory();
    let path = dir.path().join("state");
    let named = path.to_str().unwrap();
    assert_eq!(good("checkpoint", &[named, "25"]), "25 steps done\n");
    assert_eq!(good("checkpoint", &[named, "275"]), "300 steps done\n");
    let state = fs::read(&path).unwrap();
    assert_eq!((state[8], state[8 + 299 * 4096], state[8 + 300 * 4096], state[8 + 100]), (1, 1, 0, 0));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    fs::write(&path, b"else").unwrap();
    bad("checkpoint", &[named, "1"], "is no state");
}

#[test]
fn hex() {
    let dir = directory();
    let path = dir.path().join("image");
    let mut expected: Vec<u8> = (0..LEN).map(|n| n as u8).collect();
    fs::write(&path, &expected).unwrap();
    let named = path.to_str().unwrap();
    let row = "00000140  40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f  @ABCDEFGHIJKLMNO\n";
    assert!(good("hex", &[named, "0x144"]).starts_with(row));
    let text = good("hex", &[named, "324", "de", "ad"]);
    assert!(text.starts_with(&format!("before:\n{row}")), "{text}");
    assert!(text.contains("now:\n00000140  40 41 42 43 de ad 46 47"), "{text}");
    expected[0x144..0x146].copy_from_slice(&[0xde, 0xad]);
    assert!(fs::read(&path).unwrap() == expected);
    bad("hex", &[named, &(LEN - 1).to_string(), "1", "2"], "ends at");
    assert!(fs::read(&path).unwrap() == expected);
}
