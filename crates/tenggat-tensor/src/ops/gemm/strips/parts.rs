//! Matrices as sums of packed ones, so that products of bf16 tiles are as exact as 32-bit ones.
//!
//! x = x₀ + x₁ + x₂, each part the bf16 nearest to what those before it leave: 24 bits. Of a product of two
//! such sums the terms with i + j < 3 count. A matrix whose values are bf16 has one part.

use super::product::Term;
use super::{Lane, Scratch, Strips, pack_part, pack_part_transposed, packed_len};
use crate::cpu::Mat;

/// Most parts of a matrix.
const MOST: usize = 3;

/// A packed matrix as a sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a, E> {
    /// Those past `count` repeat the last.
    strips: [Strips<'a, E>; MOST],
    count: usize,
}

impl<'a, E: Lane> Parts<'a, E> {
    /// A matrix that is packed already.
    pub fn one(strips: Strips<'a, E>) -> Self {
        Parts { strips: [strips; MOST], count: 1 }
    }

    /// Elements of f32 scratch that this many parts of a matrix `[rows, cols]` take.
    pub fn cost(count: usize, rows: usize, cols: usize) -> usize {
        count * Scratch::cost::<E>(packed_len(rows, cols))
    }

    fn each(count: usize, mut part: impl FnMut(usize) -> Strips<'a, E>) -> Self {
        let mut parts = Self::one(part(0));
        for i in 1..count {
            parts.strips[i..].fill(part(i));
        }
        Parts { count, ..parts }
    }

    /// Packs `alpha · m`.
    pub fn pack(count: usize, m: Mat<'_, f32>, alpha: f32, scratch: &mut Scratch<'a>) -> Self {
        Self::each(count, |part| {
            let to = scratch.take::<E>(packed_len(m.rows, m.cols));
            pack_part(m, alpha, part, to, true);
            Strips::new(to, m.rows, m.cols)
        })
    }

    /// Packs `alpha · mᵀ`.
    pub fn pack_transposed(count: usize, m: Mat<'_, f32>, alpha: f32, scratch: &mut Scratch<'a>) -> Self {
        Self::each(count, |part| {
            let to = scratch.take::<E>(packed_len(m.cols, m.rows));
            pack_part_transposed(m, alpha, part, to, true);
            Strips::new(to, m.cols, m.rows)
        })
    }

    /// Elements of f32 of scratch that [`Parts::of_sums`] takes.
    pub fn sums_cost(count: usize, rows: usize, cols: usize) -> usize {
        count * Scratch::cost::<E>(E::scratch_len(packed_len(rows, cols)))
    }

    /// Sums that lie packed, `[rows, cols]`.
    pub fn of_sums(
        count: usize,
        sums: &'a [f32],
        rows: usize,
        cols: usize,
        scratch: &mut Scratch<'a>,
    ) -> Self {
        Self::each(count, |part| {
            let rounded = scratch.take::<E>(E::scratch_len(sums.len()));
            Strips::new(E::operand(sums, part, rounded), rows, cols)
        })
    }

    /// Rows `from..from + n`.
    pub fn rows_from(self, from: usize, n: usize) -> Self {
        Parts { strips: self.strips.map(|s| s.rows_from(from, n)), ..self }
    }

    /// The terms of `self · b`.
    pub fn times(self, b: Self) -> Terms<'a, E> {
        let mut terms =
            Terms { terms: [Term { a: self.strips[0], b: b.strips[0] }; MOST * (MOST + 1) / 2], count: 0 };
        // The small ones first, while their sum is small too.
        for order in (0..MOST).rev() {
            for i in (0..=order).filter(|i| *i < self.count && order - i < b.count) {
                terms.terms[terms.count] = Term { a: self.strips[i], b: b.strips[order - i] };
                terms.count += 1;
            }
        }
        terms
    }
}

/// Products whose sum is a product.
#[derive(Debug)]
pub(crate) struct Terms<'a, E> {
    terms: [Term<'a, E>; MOST * (MOST + 1) / 2],
    count: usize,
}

impl<'a, E> std::ops::Deref for Terms<'a, E> {
    type Target = [Term<'a, E>];

    fn deref(&self) -> &Self::Target {
        &self.terms[..self.count]
    }
}
