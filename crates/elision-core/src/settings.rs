//! How switches and sizes are written, in the environment and on the command line.

/// From the benches: into touched memory, reading wins up to 1–4 MiB even if every byte is used. (A little less than 4 MiB: what a
/// stream has read already is missing from a read of whole MiB.)
pub const DEFAULT_MIN_BYTES: usize = 4_000_000;

/// On or off, in any case. `None`: malformed.
pub fn switch(text: &[u8]) -> Option<bool> {
    let is_one_of = |words: [&str; 4]| words.iter().any(|word| text.eq_ignore_ascii_case(word.as_bytes()));
    if is_one_of(["off", "no", "false", "0"]) {
        return Some(false);
    }
    is_one_of(["on", "yes", "true", "1"]).then_some(true)
}

const UNITS: [(&str, usize); 17] = [
    ("", 1),
    ("B", 1),
    ("K", 1000),
    ("KB", 1000),
    ("KiB", 1 << 10),
    ("M", 1000 * 1000),
    ("MB", 1000 * 1000),
    ("MiB", 1 << 20),
    ("G", 1000 * 1000 * 1000),
    ("GB", 1000 * 1000 * 1000),
    ("GiB", 1 << 30),
    ("T", 1000 * 1000 * 1000 * 1000),
    ("TB", 1000 * 1000 * 1000 * 1000),
    ("TiB", 1 << 40),
    ("P", 1000 * 1000 * 1000 * 1000 * 1000),
    ("PB", 1000 * 1000 * 1000 * 1000 * 1000),
    ("PiB", 1 << 50),
];

/// Digits and a unit in any case. `None`: malformed or too large.
pub fn bytes(text: &[u8]) -> Option<usize> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: usize = core::str::from_utf8(number).ok()?.parse().ok()?;
    let unit = unit.trim_ascii_start();
    let (_, factor) = UNITS.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name.as_bytes()))?;
    number.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_understood_in_any_case() {
        for off in ["off", "OFF", "Off", "no", "NO", "false", "False", "0"] {
            assert_eq!(switch(off.as_bytes()), Some(false), "{off}");
        }
        for on in ["on", "ON", "yes", "true", "TRUE", "1"] {
            assert_eq!(switch(on.as_bytes()), Some(true), "{on}");
        }
        for neither in ["", "offf", "2", "disabled", " off", "0ff"] {
            assert_eq!(switch(neither.as_bytes()), None, "{neither}");
        }
    }

    #[test]
    fn sizes_have_units() {
        let cases = [
            ("4096", 4096),
            ("0", 0),
            ("1M", 1_000_000),
            ("1mb", 1_000_000),
            ("1MiB", 1 << 20),
            ("64 kib", 64 << 10),
            ("64K", 64_000),
            ("3GiB", 3 << 30),
            ("2tib", 2 << 40),
            ("7B", 7),
        ];
        for (text, expected) in cases {
            assert_eq!(bytes(text.as_bytes()), Some(expected), "{text}");
        }
        let wrong = [
            "",
            "M",
            "abc",
            "-1",
            "+1",
            "1.5M",
            "1X",
            "1MM",
            "0x10",
            "1M ",
            " 1",
            "18446744073709551616",
            "99999999PiB",
        ];
        for text in wrong {
            assert_eq!(bytes(text.as_bytes()), None, "{text}");
        }
    }
}
