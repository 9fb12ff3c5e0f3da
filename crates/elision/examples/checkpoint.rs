//! A computation that saves its state now and then, and goes on from the last save after a crash.
//!
//! ```console
//! $ cargo run --release --example checkpoint -- state.bin 100     # a hundred steps more, with ten saves
//! ```
//!
//! Each save replaces the file in one step, so that there is always a whole state. On XFS and btrfs a save costs what was altered since
//! the first one; elsewhere all of it is written.

use std::{env, error::Error, io};

/// The cells of the computation, behind the number of steps that were done.
const CELLS: usize = 16 << 20;
const HEAD: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let [path, steps] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: checkpoint FILE STEPS".into());
    };
    let steps: u64 = steps.parse()?;
    let mut state = match elision::read(path) {
        Ok(state) if state.len() == HEAD + CELLS => state,
        Ok(_) => return Err(format!("{path} is no state of this program").into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => elision::Buffer::new(HEAD + CELLS)?,
        Err(error) => return Err(error.into()),
    };
    let begun = done(&state);
    for step in begun..begun + steps {
        work(&mut state[HEAD..], step);
        state[..HEAD].copy_from_slice(&(step + 1).to_le_bytes());
        if (step + 1).is_multiple_of(10) {
            // (`write_atomic_sync` also outlives a power failure.)
            elision::write_atomic(path, &mut state)?;
        }
    }
    elision::write_atomic(path, &mut state)?;
    println!("{} steps done", done(&state));
    Ok(())
}

fn done(state: &[u8]) -> u64 {
    u64::from_le_bytes(state[..HEAD].try_into().expect("eight bytes"))
}

/// Some cells of a stretch that moves on.
fn work(cells: &mut [u8], step: u64) {
    let from = (step as usize).wrapping_mul(4096) % CELLS;
    for cell in cells[from..].iter_mut().take(100) {
        *cell = cell.wrapping_add(1);
    }
}
