//! Errors as Python has them.

use pyo3::exceptions::{PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use std::io;
use std::path::Path;

fn os_error(py: Python<'_>, error: &io::Error, path: Option<&Path>) -> PyErr {
    let Some(errno) = error.raw_os_error() else {
        return match error.kind() {
            io::ErrorKind::InvalidInput => PyValueError::new_err(error.to_string()),
            io::ErrorKind::OutOfMemory => PyMemoryError::new_err(()),
            _ => PyOSError::new_err(error.to_string()),
        };
    };
    let text = py.import("os").and_then(|os| os.call_method1("strerror", (errno,))).map(Bound::unbind);
    match (text, path) {
        (Ok(text), Some(path)) => PyOSError::new_err((errno, text, path.as_os_str().to_owned())),
        (Ok(text), None) => PyOSError::new_err((errno, text)),
        (Err(error), _) => error,
    }
}

/// An OSError of the class, number and file name that `open` would give it.
pub fn in_file(py: Python<'_>, error: &io::Error, path: &Path) -> PyErr {
    os_error(py, error, Some(path))
}

/// The same without a file name.
pub fn without_file(py: Python<'_>, error: &io::Error) -> PyErr {
    os_error(py, error, None)
}
