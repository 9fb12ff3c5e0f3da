//! `Buffer`: memory with the buffer protocol.
#![allow(unsafe_code)] // The protocol is C's; who may have the memory is argued at `Buffer`.

use crate::error::without_file;
use elision::PageState;
use pyo3::basic::CompareOp;
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PySlice};
use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering::*};
use std::time::Duration;

/// Owned bytes whose pages may stand for bytes of a file until they are altered.
///
/// It has the buffer protocol, writable: numpy.frombuffer(buffer), memoryview(buffer), file.write(buffer). buffer[i] is an int,
/// buffer[i:j] a memoryview of that part, without a copy; both can be assigned to. len(buffer) is in bytes.
///
/// read(), edit() and File.read() return one; Buffer(size) has zeroes, which take no memory before they are touched. It cannot be
/// pickled. A forked child has it, and shares its memory as long as it is not altered.
///
/// While something has its memory (a memoryview, an array), resize(), unload() and close() raise BufferError. With `with`, it is closed
/// at the end. A device that fails under a page that is not loaded raises SIGBUS when it is touched, and OSError from load().
#[pyclass(frozen, module = "elision")]
pub struct Buffer {
    /// Who has the memory: the number of views, or one of the states below. A buffer that has views stays where it is.
    views: AtomicI64,
    /// The ID of the process whose thread uses `buffer` just now; 0: no thread does.
    holder: AtomicU32,
    /// Those of `buffer`, which others may ask for while a thread is at work on it.
    addr: AtomicUsize,
    len: AtomicUsize,
    /// Only for who holds it. `None`: closed.
    buffer: UnsafeCell<Option<elision::Buffer>>,
}

/// Being changed, by a thread that holds `buffer`.
const CHANGING: i64 = -1;
const CLOSED: i64 = -2;

// SAFETY: `buffer` is touched by one thread at a time: the one that holds it.
unsafe impl Sync for Buffer {}

/// The right to `buffer`.
struct Held<'a>(&'a Buffer);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.holder.store(0, Release);
    }
}

/// No view, and no new one.
pub struct Unviewed<'a>(&'a Buffer);

impl Drop for Unviewed<'_> {
    fn drop(&mut self) {
        let _ = self.0.views.compare_exchange(CHANGING, 0, Release, Relaxed);
    }
}

fn closed() -> PyErr {
    PyValueError::new_err("the buffer is closed")
}

fn changing() -> PyErr {
    PyBufferError::new_err("the buffer is being changed (by another thread, or by one that was not forked)")
}

impl Buffer {
    pub fn new(mut buffer: elision::Buffer) -> Buffer {
        Buffer {
            views: AtomicI64::new(0),
            holder: AtomicU32::new(0),
            addr: AtomicUsize::new(buffer.as_mut_ptr() as usize),
            len: AtomicUsize::new(buffer.len()),
            buffer: UnsafeCell::new(Some(buffer)),
        }
    }

    /// Waits for other threads. One that held it when the process was forked is not in this process.
    fn hold(&self) -> Held<'_> {
        let process = std::process::id();
        let mut found = 0;
        while let Err(holder) = self.holder.compare_exchange(found, process, Acquire, Relaxed) {
            if holder == process {
                std::thread::sleep(Duration::from_micros(100));
            }
            found = if holder == process { 0 } else { holder };
        }
        Held(self)
    }

    fn check(&self) -> PyResult<()> {
        if self.views.load(Acquire) == CLOSED { Err(closed()) } else { Ok(()) }
    }

    /// Without the interpreter's lock, one thread at a time. Views may be there, and what they show may be altered meanwhile by other
    /// threads, as with any extension that gives up the lock: of the bytes nothing is done but by system calls.
    pub fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl Send + FnOnce(&mut elision::Buffer) -> T,
    ) -> PyResult<T> {
        self.check()?;
        let done = py.detach(|| {
            let held = self.hold();
            // SAFETY: held.
            let done = unsafe { &mut *self.buffer.get() }.as_mut().map(work);
            drop(held);
            done
        });
        done.ok_or_else(closed)
    }

    /// Keeps views away.
    pub fn unviewed(&self, what: &str) -> PyResult<Unviewed<'_>> {
        match self.views.compare_exchange(0, CHANGING, AcqRel, Acquire) {
            Ok(_) => Ok(Unviewed(self)),
            Err(CLOSED) => Err(closed()),
            Err(CHANGING) => Err(changing()),
            Err(views) => Err(PyBufferError::new_err(format!(
                "cannot {what} a buffer while something has its memory ({views} exported: memoryviews, arrays)"
            ))),
        }
    }

    fn view<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(slf.as_any())
    }

    /// As a slice's: negative from the end, and cut to the length.
    fn range(&self, py: Python<'_>, start: isize, stop: Option<isize>) -> PyResult<std::ops::Range<usize>> {
        let len = self.__len__()? as isize;
        let slice = PySlice::new(py, start, stop.unwrap_or(len), 1).indices(len)?;
        Ok(slice.start as usize..(slice.stop as usize).max(slice.start as usize))
    }
}

#[pymethods]
impl Buffer {
    #[new]
    #[pyo3(signature = (size = 0))]
    fn make(py: Python<'_>, size: usize) -> PyResult<Buffer> {
        Ok(Buffer::new(elision::Buffer::new(size).map_err(|error| without_file(py, &error))?))
    }

    fn __len__(&self) -> PyResult<usize> {
        self.check()?;
        Ok(self.len.load(Acquire))
    }

    fn __repr__(&self) -> String {
        match self.__len__() {
            Ok(len) => format!("<elision.Buffer of {len} bytes>"),
            Err(_) => "<elision.Buffer, closed>".to_owned(),
        }
    }

    fn __getitem__<'py>(slf: &Bound<'py, Self>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        Buffer::view(slf)?.get_item(key)
    }

    fn __setitem__(slf: &Bound<'_, Self>, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        Buffer::view(slf)?.set_item(key, value)
    }

    fn __contains__(&self, _item: &Bound<'_, PyAny>) -> PyResult<bool> {
        Err(PyTypeError::new_err(
            "a Buffer is not searched: take re.search(pattern, buffer), or a part of it as bytes",
        ))
    }

    fn __richcmp__<'py>(
        slf: &Bound<'py, Self>,
        other: &Bound<'py, PyAny>,
        compare: CompareOp,
    ) -> PyResult<Bound<'py, PyAny>> {
        match compare {
            CompareOp::Eq | CompareOp::Ne => Buffer::view(slf)?.rich_compare(other, compare),
            _ => Err(PyTypeError::new_err("buffers are equal or not, and have no order")),
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// Closes it. After an exception, what still has its memory is no further error.
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        match self.close(py) {
            Err(error) if kind.is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives the memory back, and closes the file that is open with it. Any later use raises ValueError; another close() does nothing.
    ///
    /// Raises BufferError while something has its memory.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.check().is_err() {
            return Ok(());
        }
        let unviewed = self.unviewed("close")?;
        py.detach(|| {
            let held = self.hold();
            // SAFETY: held, and without views.
            let buffer = unsafe { &mut *self.buffer.get() }.take();
            self.len.store(0, Release);
            self.views.store(CLOSED, Release);
            drop(held);
            drop(buffer);
        });
        drop(unviewed);
        Ok(())
    }

    /// Closes the file that stays open with the buffer after edit() or write(), which others can notice (it cannot be executed, a watcher
    /// waits for the close). The next write() opens it again.
    fn close_file(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, elision::Buffer::close)
    }

    /// Changes the length, in bytes. New bytes are zero; what stays is not loaded.
    ///
    /// Raises BufferError while something has its memory, OSError (ENOMEM) without address space.
    fn resize(&self, py: Python<'_>, size: usize) -> PyResult<()> {
        let _unviewed = self.unviewed("resize")?;
        let resized = self.with(py, |buffer| {
            let resized = buffer.resize(size);
            self.addr.store(buffer.as_mut_ptr() as usize, Release);
            self.len.store(buffer.len(), Release);
            resized
        })?;
        resized.map_err(|error| without_file(py, &error))
    }

    /// Loads the bytes from start to stop (as of a slice) now.
    ///
    /// Raises OSError (EIO) if the device fails, where a touch would end the process with SIGBUS.
    #[pyo3(signature = (start = 0, stop = None))]
    fn load(&self, py: Python<'_>, start: isize, stop: Option<isize>) -> PyResult<()> {
        let range = self.range(py, start, stop)?;
        // (Another thread may have resized it since.)
        let loaded =
            self.with(py, |buffer| buffer.load(range.start.min(buffer.len())..range.end.min(buffer.len())))?;
        loaded.map_err(|error| without_file(py, &error))
    }

    /// Gives the memory of whole loaded pages from start to stop (as of a slice) back; a touch loads them again. Altered pages stay. Returns
    /// the number of bytes given back.
    ///
    /// Raises BufferError while something has its memory: a store at the same time would be lost.
    #[pyo3(signature = (start = 0, stop = None))]
    fn unload(&self, py: Python<'_>, start: isize, stop: Option<isize>) -> PyResult<usize> {
        let range = self.range(py, start, stop)?;
        let _unviewed = self.unviewed("unload")?;
        let given: io::Result<usize> = self
            .with(py, |buffer| buffer.unload(range.start.min(buffer.len())..range.end.min(buffer.len())))?;
        given.map_err(|error| without_file(py, &error))
    }

    /// What each run of bytes is, from 0 to the length: a list of (start, stop, state). The state is "deferred" (not loaded), "loaded" (as
    /// the file has it, in the page cache), "tracked" (memory of its own, equal to the file), "altered", or "plain" (memory like any other).
    fn ranges(&self, py: Python<'_>) -> PyResult<Vec<(usize, usize, &'static str)>> {
        let name = |state| match state {
            PageState::Deferred => "deferred",
            PageState::Loaded => "loaded",
            PageState::Tracked => "tracked",
            PageState::Altered => "altered",
            _ => "plain",
        };
        let ranges = self.with(py, |buffer| buffer.ranges())?;
        Ok(ranges.into_iter().map(|(range, state)| (range.start, range.end, name(state))).collect())
    }

    /// # Safety
    /// Python's.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let more = |views| (views >= 0).then_some(views + 1);
        match this.views.fetch_update(AcqRel, Acquire, more) {
            Ok(_) => {}
            Err(CLOSED) => return Err(closed()),
            Err(_) => return Err(changing()),
        }
        let (addr, len) = (this.addr.load(Acquire), this.len.load(Acquire));
        // SAFETY: the memory stays where it is while there is a view, and the view keeps this object.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), addr as *mut _, len as ffi::Py_ssize_t, 0, flags)
        };
        if filled != 0 {
            this.views.fetch_sub(1, Release);
            return Err(PyErr::fetch(slf.py()));
        }
        Ok(())
    }

    /// # Safety
    /// Python's.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.fetch_sub(1, Release);
    }
}
