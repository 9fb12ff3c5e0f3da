//! One table for many threads: `Arc<Buffer>`, from which each loads what it looks at, once for all of them.
//!
//! ```console
//! $ cargo run --release --example share -- table.bin
//! ```

use std::sync::Arc;
use std::{env, error::Error, thread};

const THREADS: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: share FILE")?;
    let table = Arc::new(elision::read(path)?);

    let workers: Vec<_> = (0..THREADS)
        .map(|worker| {
            let table = Arc::clone(&table);
            thread::spawn(move || sum(table.chunks(4096).skip(worker).step_by(THREADS)))
        })
        .collect();
    let total: u64 = workers.into_iter().map(|worker| worker.join().expect("a sum does not panic")).sum();
    println!("{total}");

    // Who wants to alter it makes a copy, which shares with the table whatever it does not alter.
    let mut mine = elision::Buffer::clone(&table);
    if let Some(first) = mine.first_mut() {
        *first = first.wrapping_add(1);
        assert_ne!(mine[0], table[0]);
    }
    Ok(())
}

fn sum<'a>(pages: impl Iterator<Item = &'a [u8]>) -> u64 {
    pages.flatten().map(|&byte| u64::from(byte)).sum()
}
