//! What this process keeps in memory.

use std::ptr;

unsafe extern "C" {
    /// The first byte of the executable as it is mapped; set by the linker (end(3) is its sister).
    static __executable_start: u8;
    /// The first byte behind the code, end(3).
    static etext: u8;
}

/// The kernel's and the processor's page size on x86-64, in bytes.
const PAGE: usize = 4096;

/// What stays at the heap's end for what comes next, in bytes.
const HEAP_KEPT_BYTES: usize = 64 * 1024;

/// Gives back the pages of this program's code and constants: those that are used again come back from the page cache one by one.
///
/// For a process that works hard once and then waits: what only its beginning needed no longer counts as its memory.
/// The mappings are of a file and are never written to (relocated constants lie behind the code), so nothing is lost.
pub fn release_code() {
    let start = ptr::addr_of!(__executable_start).addr();
    let end = ptr::addr_of!(etext).addr();
    let first = start.next_multiple_of(PAGE);
    let length = (end & !(PAGE - 1)).saturating_sub(first);
    if length > 0 {
        let address = ptr::addr_of!(__executable_start)
            .cast_mut()
            .wrapping_add(first - start);
        // SAFETY: the range holds whole pages of this program's own read-only file mappings, which madvise(2) drops from the page table
        // and the next access maps again with the same bytes. A failure leaves them where they are.
        unsafe { libc::madvise(address.cast(), length, libc::MADV_DONTNEED) };
    }
}

/// Gives the heap's free pages back to the kernel, those between what is in use included (malloc_trim(3)).
pub fn release_heap() {
    // SAFETY: it only gives back pages that the allocator knows to be free, and takes its locks as every allocation does.
    unsafe { libc::malloc_trim(HEAP_KEPT_BYTES) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of the program's code that this process has in memory.
    fn resident_code() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut in_code = false;
        let mut sum = 0;
        for line in maps.lines() {
            if line.contains(" r-xp ") {
                in_code = line.contains('/');
            } else if line.contains("-p ") || line.contains("-s ") {
                in_code = false;
            } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| in_code) {
                let size = size.trim().trim_end_matches(" kB");
                sum += size.parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_that_is_not_used_again_leaves_memory() {
        // Whatever formatting, hashing and reading of files touches.
        let before = resident_code();
        release_code();
        let after = resident_code();
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
