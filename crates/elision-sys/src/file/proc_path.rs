//! Paths below /proc, built without allocating.

use core::ffi::CStr;

/// The path of descriptor `fd` of process `pid` under /proc, as a C string in a small buffer.
pub struct ProcPath([u8; 64]);

impl ProcPath {
    /// /proc/PID/TAIL, or /proc/PID/TAIL/N.
    pub fn new(pid: i32, tail: &str, number: Option<i32>) -> ProcPath {
        let mut path = ProcPath([0; 64]);
        let mut at = 0;
        path.push(&mut at, b"/proc/");
        path.push_number(&mut at, pid);
        path.push(&mut at, b"/");
        path.push(&mut at, tail.as_bytes());
        if let Some(number) = number {
            path.push(&mut at, b"/");
            path.push_number(&mut at, number);
        }
        path
    }

    /// The calling thread's descriptor.
    pub fn own(fd: i32) -> ProcPath {
        let mut path = ProcPath([0; 64]);
        let mut at = 0;
        path.push(&mut at, b"/proc/thread-self/fd/");
        path.push_number(&mut at, fd);
        path
    }

    /// The same with `tail` behind it.
    pub fn and(mut self, tail: &[u8]) -> ProcPath {
        let mut at = self.as_c_str().to_bytes().len();
        self.push(&mut at, tail);
        self
    }

    fn push(&mut self, at: &mut usize, bytes: &[u8]) {
        for &byte in bytes {
            // The last byte stays zero, whatever happens.
            if let Some(slot) = self.0.get_mut(*at).filter(|_| *at < 63) {
                *slot = byte;
                *at += 1;
            }
        }
    }

    fn push_number(&mut self, at: &mut usize, number: i32) {
        let mut digits = [0u8; 10];
        let text = decimal(number.max(0) as u64, &mut digits);
        self.push(at, text);
    }

    /// The path.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }

    /// The path from /proc on.
    pub fn below_proc(&self) -> &CStr {
        let below = self.0.get(b"/proc/".len()..).unwrap_or(&[]);
        CStr::from_bytes_until_nul(below).unwrap_or(c"")
    }
}

/// Writes `number` in decimal into the end of `buffer`; without the formatting machinery, which may panic.
pub fn decimal(mut number: u64, buffer: &mut [u8]) -> &[u8] {
    let mut at = buffer.len();
    while let Some(slot) = at.checked_sub(1).and_then(|i| buffer.get_mut(i)) {
        *slot = b'0' + (number % 10) as u8;
        at -= 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    buffer.get(at..).unwrap_or(&[])
}
