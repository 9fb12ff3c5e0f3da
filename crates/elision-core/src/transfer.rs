//! Splits a transfer into head fragment, whole pages and tail fragment.
//!
//! ```text
//!            page        page        page        page
//!   |···········|···········|···········|···········|
//!         addr ▲│                       │    ▲ addr + len
//!         head ─┤◀──── whole pages ────▶├─── tail
//! ```
//!
//! Only whole pages can be associated with a file; fragments are copied. Pure arithmetic.

pub use elision_sys::PAGE;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    pub addr: usize,
    /// Clipped to the end of file for a read.
    pub len: usize,
    pub offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    pub head: Transfer,
    pub pages: Transfer,
    pub tail: Transfer,
}

impl Transfer {
    pub fn part(&self, skip: usize, len: usize) -> Transfer {
        debug_assert!(skip + len <= self.len);
        Transfer { addr: self.addr + skip, len, offset: self.offset + skip as u64 }
    }

    /// Do page boundaries of memory and file agree?
    pub fn congruent(&self) -> bool {
        self.addr % PAGE == (self.offset % PAGE as u64) as usize
    }

    pub fn split(&self) -> Split {
        let to_boundary = self.addr.wrapping_neg() % PAGE;
        let head = to_boundary.min(self.len);
        let pages = (self.len - head) / PAGE * PAGE;
        Split {
            head: self.part(0, head),
            pages: self.part(head, pages),
            tail: self.part(head + pages, self.len - head - pages),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn split_agrees_with_a_walk_over_bytes(addr in 0usize..20_000, len in 0usize..40_000, offset in 0u64..100_000) {
            let whole = Transfer { addr, len, offset };
            let Split { head, pages, tail } = whole.split();
            let in_whole_page = |at: usize| {
                let page = at / PAGE * PAGE;
                page >= addr && page + PAGE <= addr + len
            };
            let expected = (addr..addr + len).filter(|&at| in_whole_page(at)).count();
            prop_assert_eq!(pages.len, expected);
            prop_assert!(pages.len == 0 || in_whole_page(pages.addr));
            prop_assert_eq!(head.len + pages.len + tail.len, len);
            prop_assert_eq!(head.addr, addr);
            prop_assert_eq!(pages.addr, head.addr + head.len);
            prop_assert_eq!(tail.addr, pages.addr + pages.len);
            prop_assert_eq!(tail.offset, offset + (head.len + pages.len) as u64);
            prop_assert!(head.len < PAGE && tail.len < PAGE);
        }
    }
}
