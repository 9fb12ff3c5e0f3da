//! Numbers of bytes, as people write and read them.

use bytesize::ByteSize;
use elision_core::settings;

/// Parses a number of bytes as the drop-in does.
pub fn size(text: &str) -> Result<usize, &'static str> {
    settings::bytes(text.as_bytes()).ok_or("a number of bytes is wanted, such as 65536, 64KiB or 1M")
}

/// A number of bytes for people.
pub fn bytes(number: u64) -> String {
    ByteSize::b(number).display().iec().to_string()
}
