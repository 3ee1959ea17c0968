//! An allocator that wipes freed blocks, so no copy that a library makes (TLS, HTTP,
//! JSON) survives. Invariant: a byte is zero before the system's allocator gets the byte back.

use std::alloc::{GlobalAlloc, Layout, System};

/// From this size on, only touched pages of a block are wiped.
const LARGE: usize = 1 << 20;
/// The kernel is asked for each piece of this size: a multiple of every page size.
const PIECE: usize = 1 << 16;

/// The system's allocator, wiping on free; for `#[global_allocator]`.
#[derive(Debug)]
pub struct Wiping;

// SAFETY: every call is handed to `System` with the caller's arguments. `realloc` is the default of
// the trait, which allocates, copies and frees through this allocator: `System` never moves a block
// and leaves the old bytes behind.
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
        unsafe { wipe_touched(at, layout.size()) };
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Wipes a block, except for untouched pages of a large block: fuser's buffer has 16 MiB, of which
/// fuser touches a page. Wiping would make the other pages resident, and take longer than the rest
/// of a start.
///
/// # Safety
/// As for `memory::wipe`.
unsafe fn wipe_touched(at: *mut u8, len: usize) {
    let head = if len < LARGE {
        len
    } else {
        at.align_offset(PIECE)
    };
    // SAFETY: the range is a part of the block that the caller gives up.
    unsafe { super::wipe(at, head) };
    for from in (head..len).step_by(PIECE) {
        let piece = at.wrapping_add(from);
        let len = PIECE.min(len - from);
        if is_touched(piece, len) {
            // SAFETY: as above.
            unsafe { super::wipe(piece, len) };
        }
    }
}

/// Whether any page of the range is in memory. The range begins at a page and has at most `PIECE`
/// bytes. Other pages hold zeros, or are in a swap, where no wipe reaches.
fn is_touched(at: *mut u8, len: usize) -> bool {
    let mut pages = [0_u8; PIECE / 4096];
    // SAFETY: the range is a part of a live block and begins at a page; the vector has a byte for
    // each page even where pages have the least size, 4 KiB.
    let asked = unsafe { libc::mincore(at.cast(), len, pages.as_mut_ptr()) };
    asked != 0 || pages.iter().any(|page| page & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    use std::num::NonZeroUsize;

    /// Reads a freed block through a second owner: a fixed buffer that stands in for the system's
    /// heap.
    #[test]
    fn a_wiped_block_is_zero() {
        let mut block = *b"hunter2 hunter2 hunter2 hunter2!";
        // SAFETY: the block is our own and not borrowed.
        unsafe { super::super::wipe(block.as_mut_ptr(), 16) };
        assert_eq!(&block[..16], &[0; 16]);
        assert_eq!(&block[16..], b"hunter2 hunter2!");
    }

    /// A large block is wiped wherever it was written, at its unaligned ends too, and nowhere else
    /// made resident.
    #[test]
    fn a_large_block_is_wiped_where_it_was_touched() {
        let len = 8 * LARGE;
        // Fresh from the kernel: a block of the heap may have been touched by another test.
        let length = NonZeroUsize::new(len + 7).expect("not zero");
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let block = unsafe { mmap_anonymous(None, length, flags, MapFlags::MAP_PRIVATE) };
        let block = block.expect("8 MiB of address space").cast::<u8>();
        // SAFETY: the mapping has `len + 7` bytes, zero and initialised, and is borrowed here
        // alone.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), len + 7) };
        for place in [0, 1, PIECE - 8, PIECE + 1, 3 * LARGE + 4095, len - 1] {
            bytes[7 + place] = 1;
        }
        let at = bytes[7..].as_mut_ptr();
        let untouched = at.wrapping_add(5 * LARGE + PIECE - (at.addr() % PIECE));
        assert!(!is_touched(untouched, PIECE));
        // SAFETY: the block is our own and not borrowed.
        unsafe { wipe_touched(at, len) };
        assert!(!is_touched(untouched, PIECE));
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), len + 7) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        // SAFETY: the mapping is our own and no borrow of it is left.
        unsafe { munmap(block.cast(), len + 7) }.expect("it is mapped");
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
