//! The crate `elision` for Python.
//!
//! Whatever may wait for a device, another process or another thread is done without the interpreter's lock.

mod buffer;
mod doctor;
mod error;
mod file;
mod view;

use crate::buffer::Buffer;
use crate::error::in_file;
use crate::view::View;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::io;
use std::path::{Path, PathBuf};

/// Saves a buffer of ours, or any bytes.
fn save(
    py: Python<'_>,
    path: &Path,
    data: &Bound<'_, PyAny>,
    of_buffer: fn(&Path, &mut elision::Buffer) -> io::Result<()>,
    of_bytes: fn(&Path, &[u8]) -> io::Result<()>,
) -> PyResult<()> {
    let done = match data.cast::<Buffer>() {
        Ok(buffer) => buffer.get().with(py, |buffer| of_buffer(path, buffer))?,
        Err(_) => {
            let view = View::of(data)?;
            py.detach(|| of_bytes(path, view.bytes()))
        }
    };
    done.map_err(|error| in_file(py, &error, path))
}

#[pymodule(name = "_elision")]
mod module {
    use super::*;

    #[pymodule_export]
    use crate::buffer::Buffer;
    #[pymodule_export]
    use crate::doctor::probe;
    #[pymodule_export]
    use crate::file::File;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// Reads a whole file into a Buffer, in time that does not depend on its size: a page is loaded when it is touched.
    ///
    /// The bytes are those that the file has now, whatever happens to it later. Whoever wants to change the file waits until the pages
    /// have memory of their own. Files of less than 8 MiB are read at once.
    ///
    /// path: str or os.PathLike. Raises OSError as open() and read() do.
    #[pyfunction]
    fn read(py: Python<'_>, path: PathBuf) -> PyResult<Buffer> {
        let buffer = py.detach(|| elision::read(&path)).map_err(|error| in_file(py, &error, &path))?;
        Ok(Buffer::new(buffer))
    }

    /// Reads a whole file in order to change it and write() it again: as read(), but the file is opened for writing, too, and stays open
    /// with the buffer, so that write() writes the pages that were altered and nothing else. Files of less than 1 MiB are read at once.
    ///
    /// path: str or os.PathLike. Raises OSError as open(path, "r+b") and read() do.
    #[pyfunction]
    fn edit(py: Python<'_>, path: PathBuf) -> PyResult<Buffer> {
        let buffer = py.detach(|| elision::edit(&path)).map_err(|error| in_file(py, &error, &path))?;
        Ok(Buffer::new(buffer))
    }

    /// Makes the file consist of these bytes. Of a Buffer only what the file does not have already is written.
    ///
    /// The file is never emptied first, so it may be the one that the bytes were read from. After an error it has the new bytes as far as
    /// the save came, and its own behind them. It stays open with a Buffer until that is closed, or its close_file() is called.
    ///
    /// path: str or os.PathLike. data: a Buffer, or any contiguous bytes-like object. Raises OSError as open(path, "wb") and write() do.
    #[pyfunction]
    fn write(py: Python<'_>, path: PathBuf, data: &Bound<'_, PyAny>) -> PyResult<()> {
        save(
            py,
            &path,
            data,
            |path, buffer| elision::write(path, buffer),
            |path, bytes| elision::write(path, bytes),
        )
    }

    /// Replaces the file by a new one of these bytes: at every moment there is the old file or the new one, whole.
    ///
    /// Mode, owner, group and attributes are those of the old file; hard links and whoever has it open keep the old one. On XFS and btrfs
    /// the time depends on what was altered; elsewhere all of it is written. With sync=True also a power failure leaves one or the
    /// other, and the new one once this has returned.
    ///
    /// path: str or os.PathLike. data: a Buffer, or any contiguous bytes-like object. Raises OSError as creating and writing a file there.
    #[pyfunction]
    #[pyo3(signature = (path, data, *, sync = false))]
    fn write_atomic(py: Python<'_>, path: PathBuf, data: &Bound<'_, PyAny>, sync: bool) -> PyResult<()> {
        if sync {
            save(
                py,
                &path,
                data,
                |path, buffer| elision::write_atomic_sync(path, buffer),
                |path, bytes| elision::write_atomic_sync(path, bytes),
            )
        } else {
            save(
                py,
                &path,
                data,
                |path, buffer| elision::write_atomic(path, buffer),
                |path, bytes| elision::write_atomic(path, bytes),
            )
        }
    }

    /// Sets the size in bytes (one page at least) from which on transfers of this module are deferred and elided. Unless set, it is 8 MiB
    /// for read(), 4 MiB for File.readinto(), and 1 MiB for edit() and writes.
    #[pyfunction]
    fn set_min_bytes(size: usize) {
        elision::set_min_bytes(size);
    }

    /// The counters of this process, as a dict of bytes: "deferred_bytes" that reads did not load; of these, "loaded_bytes" since by a
    /// touch (counted when the buffer ends) and "materialised_bytes" because the file was about to change; "prefetched_bytes";
    /// "elided_bytes" that writes left out, "shared_bytes" left to be shared with the file that they were read from, "written_bytes".
    /// "declined" has the number of transfers that were done the plain way, by reason, "declined_read_bytes" the bytes of the reads among
    /// them. A forked child starts from zero.
    #[pyfunction]
    fn stats(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let now = elision::stats::snapshot();
        let stats = PyDict::new(py);
        for (name, bytes) in [
            ("deferred_bytes", now.deferred_bytes),
            ("loaded_bytes", now.loaded_bytes),
            ("materialised_bytes", now.materialised_bytes),
            ("prefetched_bytes", now.prefetched_bytes),
            ("elided_bytes", now.elided_bytes),
            ("shared_bytes", now.shared_bytes),
            ("written_bytes", now.written_bytes),
        ] {
            stats.set_item(name, bytes)?;
        }
        for (name, reasons) in [("declined", now.declined), ("declined_read_bytes", now.declined_read_bytes)]
        {
            let by_reason = PyDict::new(py);
            for (reason, count) in reasons {
                by_reason.set_item(reason.name(), count)?;
            }
            stats.set_item(name, by_reason)?;
        }
        Ok(stats)
    }
}
