//! The file side of a hex editor: shows a part of a file of any size, or patches some bytes of it.
//!
//! ```console
//! $ cargo run --release --example hex -- disk.img 0x100           # shows 64 bytes
//! $ cargo run --release --example hex -- disk.img 0x100 de ad     # overwrites two, and writes one or two pages
//! ```
//!
//! An undo is a copy of the buffer: it costs the pages that were altered.

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    let [path, at, patch @ ..] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: hex FILE OFFSET [BYTE…]".into());
    };
    let at = match at.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16)?,
        None => at.parse()?,
    };
    let patch = patch.iter().map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>()?;

    if patch.is_empty() {
        show(&elision::read(path)?, at);
        return Ok(());
    }
    let mut file = elision::edit(path)?;
    // An editor keeps one for each step.
    let undo = file.clone();
    let length = file.len();
    file.get_mut(at..)
        .and_then(|rest| rest.get_mut(..patch.len()))
        .ok_or(format!("the file ends at {length:#x}"))?
        .copy_from_slice(&patch);
    elision::write(path, &mut file)?;
    println!("before:");
    show(&undo, at);
    println!("now:");
    show(&file, at);
    Ok(())
}

/// Four lines of 16 bytes, from the line of `at` on. Loads their pages only.
fn show(bytes: &[u8], at: usize) {
    let from = at / 16 * 16;
    for (line, row) in bytes.get(from..).unwrap_or_default().chunks(16).take(4).enumerate() {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let letter = |&byte: &u8| if byte.is_ascii_graphic() { char::from(byte) } else { '.' };
        let text: String = row.iter().map(letter).collect();
        println!("{:08x}  {:<47}  {text}", from + line * 16, hex.join(" "));
    }
}
