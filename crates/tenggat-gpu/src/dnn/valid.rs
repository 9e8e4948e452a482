//! Which shapes cuDNN can be asked about.

use super::error::{Error, Result};
use super::shape::Shape;

impl Shape {
    /// Refuses what has no elements, too many, or rows that do not start at 16 bytes.
    pub(super) fn check(&self) -> Result<()> {
        let error = |reason| Err(Error::Shape { shape: *self, reason });
        let Shape { batch, heads, tokens, head_dim, q, k, v } = *self;
        if [batch, heads, tokens, head_dim].contains(&0) {
            return error("an axis is empty");
        }
        let strides = [q.token, q.head, k.token, k.head, v.token, v.head];
        if strides.into_iter().chain([head_dim]).any(|stride| stride % 8 != 0) {
            return error("the head dimension and all strides must be multiples of 8");
        }
        let extent = strides.into_iter().fold(heads.saturating_mul(tokens.max(head_dim)), usize::max);
        // At most 8 bytes are counted for an element.
        let bytes = [batch, tokens, extent, 8]
            .into_iter()
            .try_fold(1i64, |bytes, factor| bytes.checked_mul(i64::try_from(factor).ok()?));
        match bytes {
            Some(_) => Ok(()),
            None => error("more bytes than a number of 64 bits counts"),
        }
    }
}
