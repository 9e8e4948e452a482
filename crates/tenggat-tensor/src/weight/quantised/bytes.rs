//! Bytes that a matrix shares with others or with a file.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What holds bytes.
pub trait Owner: AsRef<[u8]> + Send + Sync {
    /// Prefetches the bytes if they are read soon. If not, a mapped file may free the pages, which it reads
    /// again when it must. Does nothing by default.
    fn prefetch(&self, _next: NextUse) {}

    /// Whether the bytes lie in a file, so that holding on to them costs no memory. No by default.
    fn in_file(&self) -> bool {
        false
    }
}

/// When bytes are read next: whether to prefetch them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextUse {
    /// The bytes are read soon.
    Soon,
    /// They are not.
    Later,
}

impl Owner for Vec<u8> {}

/// A range of bytes with shared ownership: of a buffer, or of a file mapped into memory. Cheap to clone.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

impl Bytes {
    /// A range of what `owner` holds; `None` if it does not lie inside.
    pub fn of(owner: Arc<dyn Owner>, range: Range<usize>) -> Option<Self> {
        let all: &[u8] = (*owner).as_ref();
        all.get(range.clone())?;
        Some(Bytes { owner, range })
    }

    /// Prefetches the bytes if they are read soon; lets them leave memory if not.
    pub fn prefetch(&self, next: NextUse) {
        self.owner.prefetch(next);
    }

    /// Whether they lie in a file.
    pub fn in_file(&self) -> bool {
        self.owner.in_file()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Bytes { owner: Arc::new(bytes), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = (*self.owner).as_ref();
        &all[self.range.clone()]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.range.len())
    }
}
