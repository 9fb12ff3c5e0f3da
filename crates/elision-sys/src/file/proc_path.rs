//! Paths below /proc, without allocation.

use core::ffi::CStr;

pub struct ProcPath([u8; 64]);

impl ProcPath {
    pub fn new(pid: i32, tail: &str, number: Option<i32>) -> ProcPath {
        let path = ProcPath([0; 64]).and(b"/proc/").number(pid).and(b"/").and(tail.as_bytes());
        if let Some(number) = number { path.and(b"/").number(number) } else { path }
    }

    /// The calling thread's descriptor.
    pub fn own(fd: i32) -> ProcPath {
        ProcPath([0; 64]).and(b"/proc/thread-self/fd/").number(fd)
    }

    /// Appends `tail`, cut off at the buffer's end.
    pub fn and(mut self, tail: &[u8]) -> ProcPath {
        let at = self.as_c_str().count_bytes();
        for (slot, byte) in self.0.iter_mut().take(63).skip(at).zip(tail) {
            *slot = *byte;
        }
        self
    }

    fn number(self, number: i32) -> ProcPath {
        self.and(decimal(number.max(0) as u64, &mut [0; 10]))
    }

    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }

    pub fn below_proc(&self) -> &CStr {
        let below = self.0.get(b"/proc/".len()..).unwrap_or(&[]);
        CStr::from_bytes_until_nul(below).unwrap_or(c"")
    }
}

/// `number` in decimal; the formatting machinery may panic.
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
