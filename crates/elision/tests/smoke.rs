//! The shortest way through everything.

use elision::PageState;

fn directory() -> tempfile::TempDir {
    match std::env::var_os("ELISION_TEST_DIR") {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

#[test]
fn a_read_is_deferred_and_holds_still() {
    let dir = directory();
    let path = dir.path().join("data");
    let bytes: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let buffer = elision::read(&path).unwrap();
    println!("{:?} {:?}", buffer.ranges(), elision::stats::snapshot());
    assert_eq!(buffer.ranges()[0].1, PageState::Deferred);
    assert_eq!(buffer[1_000_000], bytes[1_000_000]);
    std::fs::write(&path, b"short").unwrap();
    assert!(*buffer == *bytes);
    println!("{:?} {:?}", buffer.ranges(), elision::stats::snapshot());
}

#[test]
fn an_edit_writes_what_was_altered() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut bytes: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let mut buffer = elision::edit(&path).unwrap();
    println!("{:?} {:?}", buffer.ranges(), elision::stats::snapshot());
    for at in [5, 1_000_000, 3_000_000] {
        buffer[at] ^= 0xff;
        bytes[at] ^= 0xff;
    }
    elision::write(&path, &mut buffer).unwrap();
    println!("{:?} {:?}", buffer.ranges(), elision::stats::snapshot());
    assert!(std::fs::read(&path).unwrap() == bytes);
    println!("{:?} {:?}", buffer.ranges(), elision::stats::snapshot());
    buffer[77] ^= 1;
    bytes[77] ^= 1;
    elision::write(&path, &mut buffer).unwrap();
    println!("{:?} {:?}", buffer.ranges(), elision::stats::snapshot());
    assert!(std::fs::read(&path).unwrap() == bytes);
}
