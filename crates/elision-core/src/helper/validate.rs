use crate::helper::files::{Files, Guard, NO_STAMP};
use crate::helper::map::Map;
use elision_sys::file::lease;

/// For tests: what holds between requests.
///
/// # Errors
/// A sentence on what does not hold.
pub fn validate(map: &mut Map, files: &Files) -> Result<(), &'static str> {
    map.view().validate()?;
    if !map.usage.whole || map.intent.len != 0 {
        return Err("the map is said to be in the middle of a change");
    }
    let mut at = 0;
    while let Some(row) = map.view().next(at) {
        at = row.end();
        let file = files.get(row.target);
        if !file.used {
            return Err("an extent is of a file that is not known");
        }
        if row.is_mapped() && file.guard == Guard::None {
            return Err("a mapped extent has no guard");
        }
        if !row.is_mapped() && file.guard == Guard::None && file.stamp == NO_STAMP {
            return Err("a tracked extent has neither guard nor stamp");
        }
    }
    for file in files.known() {
        let held = match file.guard {
            Guard::None if file.source.fd >= 0 => return Err("a file without a guard has a descriptor"),
            Guard::None => continue,
            Guard::Copy | Guard::Immutable if file.source.fd < 0 => return Err("a file has no descriptor"),
            Guard::Copy | Guard::Immutable => continue,
            Guard::Read => libc::F_RDLCK,
            Guard::Write => libc::F_WRLCK,
        };
        // A lease being broken shows what it has to become.
        if !matches!(lease(file.source.fd), Ok(now) if now == held || now == libc::F_UNLCK || now == libc::F_RDLCK)
        {
            return Err("a guard's lease is gone");
        }
    }
    Ok(())
}
