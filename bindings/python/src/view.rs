//! The bytes of any object that has the buffer protocol.
#![allow(unsafe_code)] // The protocol is C's.

use pyo3::ffi;
use pyo3::prelude::*;

/// Contiguous bytes, which stay where they are as long as this lives. (It needs the interpreter's lock to end.)
pub struct View(Box<ffi::Py_buffer>);

// SAFETY: the bytes may be read in any thread; the view itself ends where it began, with the lock.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// BufferError if they are not contiguous, TypeError if there are none.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<View> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // SAFETY: fills the view, which stays at its address.
        if unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut *view, ffi::PyBUF_SIMPLE) } != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(View(view))
    }

    /// They may be stored to by other threads meanwhile, as with any extension that gives up the lock: they are only handed to system
    /// calls, and compared.
    pub fn bytes(&self) -> &[u8] {
        if self.0.len <= 0 {
            return &[];
        }
        // SAFETY: a simple view has `len` bytes at `buf` until it is released.
        unsafe { std::slice::from_raw_parts(self.0.buf.cast(), self.0.len as usize) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: filled in `of`, released once.
        Python::attach(|_| unsafe { ffi::PyBuffer_Release(&mut *self.0) });
    }
}
