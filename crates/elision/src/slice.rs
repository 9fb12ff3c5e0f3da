//! What a [`Buffer`] has in common with a `Vec<u8>`, as far as it costs here what it seems to.

use crate::Buffer;
use std::borrow::{Borrow, BorrowMut};
use std::io;
use std::slice::{Iter, IterMut};

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
