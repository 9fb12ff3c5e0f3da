//! Finds the lines of a big file that have a word in them, with all processors.
//!
//! ```console
//! $ cargo run --release --example search -- access.log timeout
//! ```
//!
//! No byte is copied: the pages are read where the page cache has them. Nor can the file change, be cut or be rotated away under the search,
//! as it could under a memory map.

use std::thread;
use std::{env, error::Error, process::ExitCode};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let [path, word] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        eprintln!("usage: search FILE WORD");
        return Ok(ExitCode::from(2));
    };
    let text = elision::read(path)?;
    let threads = thread::available_parallelism()?.get();
    let found: Vec<&[u8]> = thread::scope(|scope| {
        let parts: Vec<_> = parts(&text, threads)
            .into_iter()
            .map(|part| scope.spawn(|| lines_with(part, word.as_bytes())))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("a search does not panic")).collect()
    });
    for line in &found {
        println!("{}", String::from_utf8_lossy(line));
    }
    Ok(if found.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Cuts text into about this many parts, behind line ends.
fn parts(mut text: &[u8], count: usize) -> Vec<&[u8]> {
    let about = text.len() / count + 1;
    let mut parts = Vec::new();
    while text.len() > about {
        let end = text[about..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |n| about + n + 1);
        let (part, rest) = text.split_at(end);
        parts.push(part);
        text = rest;
    }
    parts.push(text);
    parts
}

fn lines_with<'a>(text: &'a [u8], word: &[u8]) -> Vec<&'a [u8]> {
    let has = |line: &&[u8]| word.is_empty() || line.windows(word.len()).any(|part| part == word);
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).filter(has).collect()
}
