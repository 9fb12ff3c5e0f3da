//! `File`: parts of files, at offsets.

use crate::buffer::Buffer;
use crate::error::{in_file, without_file};
use crate::view::View;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of another object are copied so many at a time.
const PIECE: usize = 1 << 20;

/// An open file whose parts are read and written at offsets. Nobody else in the program can have its descriptor.
///
/// mode: "r" (read), "r+" (read and write), "w+" (the same; emptied first), "x+" (the same; must not exist). Offsets and sizes are bytes.
/// Several threads may use it at once. After a fork, parent and child transfer the plain way. With `with`, it is closed at the end; buffers
/// that were read from it stay what they are. Raises OSError as open() does.
#[pyclass(frozen, module = "elision")]
pub struct File {
    /// Held for an instant only, and never while the interpreter's lock is given up. `None`: closed.
    file: Mutex<Option<Arc<elision::File>>>,
    path: PathBuf,
}

impl File {
    fn open(&self) -> PyResult<Arc<elision::File>> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).clone();
        file.ok_or_else(|| PyValueError::new_err("the file is closed"))
    }

    /// Without the interpreter's lock.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl Send + FnOnce(&elision::File) -> io::Result<T>,
    ) -> PyResult<T> {
        let file = self.open()?;
        py.detach(move || work(&file)).map_err(|error| in_file(py, &error, &self.path))
    }
}

#[pymethods]
impl File {
    #[new]
    #[pyo3(signature = (path, mode = "r"))]
    fn make(py: Python<'_>, path: PathBuf, mode: &str) -> PyResult<File> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode.replace('b', "").as_str() {
            "r" => &mut options,
            "r+" => options.write(true),
            "w+" => options.write(true).create(true).truncate(true),
            "x+" => options.write(true).create_new(true),
            _ => {
                return Err(PyValueError::new_err(format!(
                    "mode is \"r\", \"r+\", \"w+\" or \"x+\", not {mode:?}"
                )));
            }
        };
        let file = py.detach(|| elision::File::open_with(&options, &path));
        let file = file.map_err(|error| in_file(py, &error, &path))?;
        Ok(File { file: Mutex::new(Some(Arc::new(file))), path })
    }

    fn __repr__(&self) -> String {
        format!("<elision.File {:?}>", self.path)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyAny>) {
        self.close(py);
    }

    /// Closes the file. Any later use raises ValueError; another close() does nothing.
    fn close(&self, py: Python<'_>) {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop(file));
    }

    /// The file's size in bytes.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |file| file.metadata().map(|metadata| metadata.len()))
    }

    /// Reads up to size bytes from offset on (to the end unless given) into a new Buffer: fewer only at the end of the file.
    ///
    /// Raises OSError as os.pread.
    #[pyo3(signature = (offset = 0, size = None))]
    fn read(&self, py: Python<'_>, offset: u64, size: Option<usize>) -> PyResult<Buffer> {
        self.with(py, |file| file.read(offset, size.unwrap_or(usize::MAX))).map(Buffer::new)
    }

    /// Reads up to size bytes from offset on into a Buffer, from at on (to its end unless given). Returns how many there were: fewer only at
    /// the end of the file.
    ///
    /// Raises OSError as os.preadv, ValueError if that is beyond the buffer, BufferError while something has its memory.
    #[pyo3(signature = (buffer, at = 0, size = None, offset = 0))]
    fn readinto(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, Buffer>,
        at: usize,
        size: Option<usize>,
        offset: u64,
    ) -> PyResult<usize> {
        let file = self.open()?;
        let _unviewed = buffer.get().unviewed("read into")?;
        let read = buffer.get().with(py, |buffer| {
            let size = size.unwrap_or_else(|| buffer.len().saturating_sub(at));
            at.checked_add(size).filter(|&end| end <= buffer.len())?;
            Some(buffer.read_at(at, size, &file, offset))
        })?;
        let read = read.ok_or_else(|| PyValueError::new_err("beyond the end of the buffer"))?;
        read.map_err(|error| without_file(py, &error))
    }

    /// Writes a Buffer, or any contiguous bytes-like object, at offset: of a Buffer only what the file does not have already.
    ///
    /// Raises OSError as os.pwrite; what was written by then is written.
    fn write(&self, py: Python<'_>, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let beyond =
            |len: usize| offset.checked_add(len as u64).is_none_or(|end| i64::try_from(end).is_err());
        let beyond = |len| if beyond(len) { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(()) };
        match data.cast::<Buffer>() {
            Ok(buffer) => {
                let file = self.open()?;
                let written = buffer.get().with(py, |buffer| {
                    beyond(buffer.len())?;
                    file.write(offset, buffer)
                })?;
                written.map_err(|error| in_file(py, &error, &self.path))
            }
            Err(_) => {
                let view = View::of(data)?;
                let bytes = view.bytes();
                self.with(py, |file| {
                    beyond(bytes.len())?;
                    // (What the crate writes to a part of a file is in a buffer.)
                    let mut piece = elision::Buffer::new(bytes.len().min(PIECE))?;
                    for (number, bytes) in bytes.chunks(PIECE).enumerate() {
                        piece[..bytes.len()].copy_from_slice(bytes);
                        piece.write_at(0, bytes.len(), file, offset + (number * PIECE) as u64)?;
                    }
                    Ok(())
                })
            }
        }
    }

    /// Cuts or extends the file. Buffers that depend on it get memory of their own first. Raises OSError as os.ftruncate.
    fn truncate(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        self.with(py, |file| file.set_len(size))
    }

    /// Waits until the file is on the device, as os.fsync.
    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, elision::File::sync_all)
    }

    /// The same without the metadata that reading does not need, as os.fdatasync.
    fn sync_data(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, elision::File::sync_data)
    }
}
