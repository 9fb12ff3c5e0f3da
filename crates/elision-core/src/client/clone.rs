//! Saves into a new file that shares blocks with the one that memory stands for.

use crate::client::call::Call;
use crate::client::write::Writer;
use crate::shared::live;
use crate::shared::requests::{Op, RUNS};
use crate::stats::{COUNTERS, Counters};
use crate::transfer::{PAGE, Split, Transfer};
use elision_sys::file;
use elision_sys::limits;
use elision_sys::raw::{Errno, Result};

/// Gives the empty file these bytes by a clone, and writes what the clone does not have. `None`: nothing was done.
pub fn fill(fd: i32, addr: usize, len: usize) -> Option<Result<()>> {
    let whole = Transfer { addr, len, offset: 0 };
    let Split { head, pages, tail } = whole.split();
    // A clone longer than the limit is no save longer than the limit.
    if pages.len < PAGE || !live::touched(addr, len) || limits::file_size() != u64::MAX {
        return None;
    }
    let mut call = Call::new(Op::Clone, false)?;
    let mut writer = Writer::new(fd, whole);
    let mut at = 0;
    while at < pages.len {
        let rest = pages.part(at, pages.len - at);
        let request = call.request();
        (request.fd, request.more) = (fd, at > 0);
        (request.addr, request.len, request.offset) = (rest.addr, rest.len, rest.offset);
        let declined = call.send();
        if at == 0 {
            if let Some(reason) = declined {
                crate::decline_write(reason, len);
                return None;
            }
            if let Err(errno) = file::set_len(fd, len as u64) {
                return Some(Err(errno));
            }
            writer.write_part(0, head.len);
        }
        let from = rest.addr - addr;
        let answer = call.request();
        let handled = answer.handled.min(rest.len);
        if declined.is_some() || handled == 0 {
            // What the memory stood for may have changed: the clone has not.
            writer.write_part(from, rest.len);
            break;
        }
        for run in answer.runs.iter().take(answer.count.min(RUNS)) {
            writer.write_part(run.addr - addr, run.len);
        }
        at += handled;
        if writer.stop.is_some() {
            break;
        }
    }
    writer.write_part(len - tail.len, tail.len);
    writer.flush();
    drop(call);
    match writer.stop {
        Some((_, Some(errno))) => Some(Err(errno)),
        // A short write to a regular file: there is no room for the rest.
        Some((stopped, None)) => Some(rest(fd, whole.part(stopped, len - stopped))),
        None => {
            Counters::add(&COUNTERS.written, writer.bytes);
            Counters::add(&COUNTERS.elided, len - writer.bytes);
            Some(Ok(()))
        }
    }
}

fn rest(fd: i32, mut part: Transfer) -> Result<()> {
    while part.len > 0 {
        match file::pwrite(fd, part.addr, part.len, part.offset)? {
            0 => return Err(Errno(libc::ENOSPC)),
            done => part = part.part(done, part.len - done),
        }
    }
    Ok(())
}
