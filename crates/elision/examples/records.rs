//! Edits fixed-size records of a file in place: read everything, change some, save everything. Only the pages of the changed records are
//! read and written.
//!
//! ```console
//! $ cargo run --release --example records -- accounts.dat 3 250     # adds 250 to the balance of record 3
//! ```

use std::{env, error::Error};

/// The records of the file, of 32 bytes: a name, and the balance behind it.
const RECORD: usize = 32;
const BALANCE: std::ops::Range<usize> = 24..32;

fn main() -> Result<(), Box<dyn Error>> {
    let [path, number, amount] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: records FILE NUMBER AMOUNT".into());
    };
    let (number, amount): (usize, i64) = (number.parse()?, amount.parse()?);

    let mut file = elision::edit(path)?;
    let count = file.len() / RECORD;
    let record = file.chunks_exact_mut(RECORD).nth(number).ok_or(format!("there are {count} records"))?;
    let balance = i64::from_le_bytes(record[BALANCE].try_into()?);
    let balance = balance.checked_add(amount).ok_or("that is too much")?;
    record[BALANCE].copy_from_slice(&balance.to_le_bytes());

    // `write` leaves out what the file has already. Where a crash must not leave half of an edit behind: `write_atomic_sync`.
    elision::write(path, &mut file)?;
    println!("record {number} of {count}: {balance}");
    Ok(())
}
