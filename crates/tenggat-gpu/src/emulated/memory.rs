//! The emulated device's memory.

use std::alloc::{Layout, alloc, dealloc};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::failed;
use crate::{Error, Result};

/// What the device's own allocator promises.
const ALIGNMENT: usize = 512;

/// Host memory in the place of a card's.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Bytes that it pretends to have, and bytes in use.
    total: usize,
    used: AtomicUsize,
    is_guarded: bool,
}

impl Memory {
    /// So many bytes; guarded, each allocation ends at a page that nobody may touch. Only Linux has guards.
    pub fn new(total: usize, is_guarded: bool) -> Self {
        Memory { total, used: AtomicUsize::new(0), is_guarded: is_guarded && cfg!(target_os = "linux") }
    }

    /// Whether each allocation ends at a page that nobody may touch.
    pub fn is_guarded(&self) -> bool {
        self.is_guarded
    }

    /// Free and total memory, bytes.
    pub fn free_and_total(&self) -> (usize, usize) {
        (self.total.saturating_sub(self.used.load(Ordering::Relaxed)), self.total)
    }

    /// Address of so many bytes, at least one, aligned to 512, or guarded to 16.
    ///
    /// # Errors
    /// There is no room.
    pub fn allocate(&self, bytes: usize) -> Result<u64> {
        let none = || Error::Failed("out of memory".into());
        if self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > self.total {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(none());
        }
        #[cfg(target_os = "linux")]
        if self.is_guarded {
            return guarded::allocate(bytes).ok_or_else(none);
        }
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|e| failed("allocation", e))?;
        // SAFETY: there is at least one byte.
        let address = unsafe { alloc(layout) };
        if address.is_null() { Err(none()) } else { Ok(address as u64) }
    }

    /// Frees what [`allocate`](Self::allocate) gave for so many bytes.
    ///
    /// # Panics
    /// It is guarded, and something was written behind its end.
    pub fn release(&self, address: u64, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        #[cfg(target_os = "linux")]
        if self.is_guarded {
            return guarded::release(address, bytes);
        }
        if let Ok(layout) = Layout::from_size_align(bytes, ALIGNMENT) {
            // SAFETY: `allocate` gave this address for this size, and the pool gives it back once.
            unsafe { dealloc(address as *mut u8, layout) }
        }
    }
}

/// Allocations that end at a page that nobody may touch.
#[cfg(target_os = "linux")]
mod guarded {
    use std::ptr::null_mut;

    /// Kernels read and write so many bytes at a time.
    const ALIGNMENT: usize = 16;
    /// What lies between the end of an allocation and the page, where that is not the same.
    const MARK: u8 = 0x5a;

    fn page() -> usize {
        // SAFETY: only asks.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    }

    /// Bytes of the pages that can be touched, and bytes in them that are in use.
    fn extents(bytes: usize) -> (usize, usize) {
        let used = bytes.next_multiple_of(ALIGNMENT);
        (used.next_multiple_of(page()), used)
    }

    /// The bytes between the end of an allocation and the page behind it.
    fn gap<'a>(address: u64, bytes: usize) -> &'a mut [u8] {
        let (_, used) = extents(bytes);
        // SAFETY: they belong to the allocation at `address`, and to nobody else.
        unsafe { std::slice::from_raw_parts_mut((address as *mut u8).add(bytes), used - bytes) }
    }

    pub fn allocate(bytes: usize) -> Option<u64> {
        let (pages, used) = extents(bytes);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, of which the first pages are made accessible.
        let address = unsafe {
            let base = libc::mmap(null_mut(), pages + page(), libc::PROT_NONE, flags, -1, 0);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            if base == libc::MAP_FAILED || libc::mprotect(base, pages, access) != 0 {
                return None;
            }
            base as u64 + (pages - used) as u64
        };
        gap(address, bytes).fill(MARK);
        Some(address)
    }

    pub fn release(address: u64, bytes: usize) {
        let is_whole = gap(address, bytes).iter().all(|&byte| byte == MARK);
        let (pages, used) = extents(bytes);
        // SAFETY: `allocate` mapped this range, and the pool gives it back once. Nothing can be done about
        // memory that does not go.
        unsafe { libc::munmap((address - (pages - used) as u64) as *mut _, pages + page()) };
        // A panic within another would end the process without a word of the first.
        assert!(is_whole || std::thread::panicking(), "written behind the end of {bytes} bytes of memory");
    }
}
