//! A reader of a sorted table, as those of maxminddb or of SSTables: opened at once whatever its size, and a lookup loads the few pages that
//! the binary search looks at. Many memory-map such files, and crash if the file is replaced in place: this one keeps what it read.
//!
//! ```console
//! $ cargo run --release --example lookup -- addresses.table 192.0.2.7
//! ```
//!
//! The file: records of 8 bytes, sorted; the first address of a range, then the number of its network, both big-endian.

use std::net::Ipv4Addr;
use std::{env, error::Error, io, path::Path};

/// The table. It owns its bytes, so it needs no lifetime, and can be shared or sent.
struct Table(elision::Buffer);

impl Table {
    fn open(path: impl AsRef<Path>) -> io::Result<Table> {
        let bytes = elision::read(path)?;
        if !bytes.len().is_multiple_of(8) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a table of records of 8 bytes"));
        }
        Ok(Table(bytes))
    }

    /// The network of an address. `None`: it is before the first range.
    fn network(&self, address: Ipv4Addr) -> Option<u32> {
        let (records, _) = self.0.as_chunks::<8>();
        let behind = records.partition_point(|record| record[..4] <= address.octets()[..]);
        let record = records.get(behind.checked_sub(1)?)?;
        Some(u32::from_be_bytes(record[4..].try_into().expect("four bytes")))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let [path, addresses @ ..] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: lookup FILE ADDRESS…".into());
    };
    let table = Table::open(path)?;
    for address in addresses {
        match table.network(address.parse()?) {
            Some(network) => println!("{address} is in network {network}"),
            None => println!("{address} is in none"),
        }
    }
    Ok(())
}
