//! An allocator that wipes what it frees, so that copies made by libraries (TLS, HTTP, JSON) do not outlive their use.
//! Invariant: no byte goes back to the system's allocator before it is zero.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, wiping on free; for `#[global_allocator]`.
#[derive(Debug)]
pub struct Wiping;

// SAFETY: every call is handed to `System` with the caller's own arguments. `realloc` is the trait's own, which allocates,
// copies and frees through this allocator: it never lets `System` move a block and leave its old bytes behind.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`. Asking for zeros keeps untouched pages of a large block unmapped.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the block has `layout.size()` bytes and the caller gives it up.
        unsafe { super::wipe(at, layout.size()) };
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a freed block through a second owner: a fixed buffer that stands in for the system's heap.
    #[test]
    fn a_wiped_block_is_zero() {
        let mut block = *b"hunter2 hunter2 hunter2 hunter2!";
        // SAFETY: the block is our own and not borrowed.
        unsafe { super::super::wipe(block.as_mut_ptr(), 16) };
        assert_eq!(&block[..16], &[0; 16]);
        assert_eq!(&block[16..], b"hunter2 hunter2!");
    }

    #[test]
    fn growing_keeps_the_bytes() {
        let layout = Layout::from_size_align(32, 8).expect("layout");
        // SAFETY: the layout has a size.
        let at = unsafe { Wiping.alloc(layout) };
        // SAFETY: the block has 32 bytes.
        unsafe { std::ptr::write_bytes(at, 7, 32) };
        // SAFETY: the block came from this allocator with this layout.
        let at = unsafe { Wiping.realloc(at, layout, 4096) };
        // SAFETY: the block has 4096 bytes, the first 32 written.
        assert_eq!(unsafe { std::slice::from_raw_parts(at, 32) }, [7; 32]);
        // SAFETY: the block came from `realloc` with this size.
        unsafe { Wiping.dealloc(at, Layout::from_size_align(4096, 8).expect("layout")) };
    }
}
