//! `elision run --report`: a page that shows what became of each file's pages.

mod page;
mod story;

pub use page::page;
pub use story::stories;
