//! What a [`Buffer`] has in common with a `Vec<u8>`, as far as it costs here what it seems to.

use crate::Buffer;
use std::borrow::{Borrow, BorrowMut};
use std::io::{self, Write};
use std::slice::{Iter, IterMut};
use std::str::Utf8Error;

impl Buffer {
    /// Appends a copy of these bytes. What the buffer has already stays deferred.
    ///
    /// ```
    /// let mut buffer = elision::Buffer::default();
    /// buffer.extend_from_slice(b"one, ")?;
    /// buffer.extend_from_slice(b"two")?;
    /// assert_eq!(buffer, b"one, two");
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`Buffer::resize`]; the buffer is unchanged then.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.len();
        self.grow(end.checked_add(bytes.len()).ok_or(io::ErrorKind::OutOfMemory)?)?;
        self[end..].copy_from_slice(bytes);
        Ok(())
    }

    /// Drops all but the first `len` bytes, and gives their memory back. Does nothing if there are no more.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.resize(len).expect("shrinking takes no memory");
        }
    }

    /// Drops all bytes, and gives their memory back.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The bytes as text, without a copy: what `std::fs::read_to_string` is for. Checks all bytes, which loads them. (There is no `read_to_string`
    /// here: a `String` owns memory of the allocator's, so nothing of it could be deferred.)
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("log");
    /// # std::fs::write(&path, "start\nstop\n".repeat(1 << 20))?;
    /// let log = elision::read(&path)?;
    /// assert_eq!(log.to_str()?.lines().filter(|line| line.contains("stop")).count(), 1 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If they are not UTF-8.
    pub fn to_str(&self) -> Result<&str, Utf8Error> {
        std::str::from_utf8(self)
    }
}

/// [`Buffer::try_clone`].
///
/// # Panics
/// If there is no address space for it.
impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        self.try_clone().expect("address space for a buffer")
    }
}

/// Appends, as [`Buffer::extend_from_slice`]. To fill a buffer from its begin, write to its slice (`&mut buffer[..]`); to read one, or to
/// seek in it, put it into a [`Cursor`](io::Cursor).
///
/// ```
/// use std::io::{BufRead, Cursor, Write};
///
/// let mut buffer = elision::Buffer::default();
/// for n in 1..=3 {
///     writeln!(buffer, "line {n}")?;
/// }
/// let lines: Result<Vec<String>, _> = Cursor::new(buffer).lines().collect();
/// assert_eq!(lines?, ["line 1", "line 2", "line 3"]);
/// # std::io::Result::Ok(())
/// ```
impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends, some KiB at a time.
///
/// # Panics
/// If there is no address space for it.
impl Extend<u8> for Buffer {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        let mut bytes = bytes.into_iter();
        loop {
            let piece: Vec<u8> = bytes.by_ref().take(1 << 14).collect();
            if piece.is_empty() {
                break;
            }
            self.extend_from_slice(&piece).expect("address space for more bytes");
        }
    }
}

/// Appends, as [`Extend<u8>`].
impl<'a> Extend<&'a u8> for Buffer {
    fn extend<I: IntoIterator<Item = &'a u8>>(&mut self, bytes: I) {
        self.extend(bytes.into_iter().copied());
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl Borrow<[u8]> for Buffer {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl BorrowMut<[u8]> for Buffer {
    fn borrow_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// A copy. Not `From`, since there may be no room for it.
impl TryFrom<&[u8]> for Buffer {
    type Error = io::Error;

    fn try_from(bytes: &[u8]) -> io::Result<Buffer> {
        let mut buffer = Buffer::new(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }
}

/// An empty buffer.
///
/// # Panics
/// If there is no address space for one.
impl Default for Buffer {
    fn default() -> Buffer {
        Buffer::new(0).expect("address space for an empty buffer")
    }
}

/// A copy, at the begin of a page.
///
/// # Panics
/// If there is no address space for it; `Buffer::try_from(&bytes[..])` returns that as an error.
impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        Buffer::try_from(&bytes[..]).expect("address space for a buffer")
    }
}

/// A copy, which loads all bytes.
impl From<Buffer> for Vec<u8> {
    fn from(buffer: Buffer) -> Vec<u8> {
        buffer.to_vec()
    }
}

impl<'a> IntoIterator for &'a Buffer {
    type Item = &'a u8;
    type IntoIter = Iter<'a, u8>;

    fn into_iter(self) -> Iter<'a, u8> {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Buffer {
    type Item = &'a mut u8;
    type IntoIter = IterMut<'a, u8>;

    fn into_iter(self) -> IterMut<'a, u8> {
        self.iter_mut()
    }
}

impl Eq for Buffer {}

/// Compares the bytes, which loads them.
impl PartialEq for Buffer {
    fn eq(&self, other: &Buffer) -> bool {
        **self == **other
    }
}

/// The same with other bytes, in either order.
macro_rules! equals {
    ($($other:ty $(, $length:ident)?;)*) => {$(
        impl$(<const $length: usize>)? PartialEq<$other> for Buffer {
            fn eq(&self, other: &$other) -> bool {
                **self == other[..]
            }
        }

        impl$(<const $length: usize>)? PartialEq<Buffer> for $other {
            fn eq(&self, buffer: &Buffer) -> bool {
                self[..] == **buffer
            }
        }
    )*};
}

equals! {
    [u8];
    &[u8];
    Vec<u8>;
    [u8; N], N;
    &[u8; N], N;
}

/// Takes the buffer over without a copy: its deferred pages stay deferred, and slices of the `Bytes` share them. (`Vec::from` copies.)
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("page");
/// # std::fs::write(&path, vec![7; 16 << 20])?;
/// let whole = bytes::Bytes::from(elision::read(&path)?);
/// let part = whole.slice(1 << 20..2 << 20); // nothing is loaded, nothing is copied
/// std::thread::spawn(move || assert_eq!(part[5], 7)).join().unwrap();
/// # std::io::Result::Ok(())
/// ```
#[cfg(feature = "bytes")]
impl From<Buffer> for bytes::Bytes {
    fn from(buffer: Buffer) -> bytes::Bytes {
        bytes::Bytes::from_owner(buffer)
    }
}
