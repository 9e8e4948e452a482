//! Packs row-major matrices.

use rayon::prelude::*;

use super::{Lane, WIDTH};
use crate::cpu::Mat;

/// Rows of a strip that one task packs.
const TASK_ROWS: usize = 256;
/// Elements below which packing is left to one task.
const SERIAL: usize = 1 << 15;

/// Elements of a packed matrix.
pub(crate) fn packed_len(rows: usize, cols: usize) -> usize {
    cols.div_ceil(WIDTH) * WIDTH * rows
}

/// Calls `pack(strip, first row, rows of the strip)` for parts of strips of `rows` rows.
fn for_each_part<E: Lane>(
    out: &mut [E],
    rows: usize,
    parallel: bool,
    pack: impl Fn(usize, usize, &mut [E]) + Sync,
) {
    if rows == 0 {
        return;
    }
    if parallel && out.len() > SERIAL {
        let parts = out.par_chunks_mut(rows * WIDTH).enumerate().flat_map(|(strip, rows)| {
            rows.par_chunks_mut(TASK_ROWS * WIDTH)
                .enumerate()
                .map(move |(part, rows)| (strip, part * TASK_ROWS, rows))
        });
        parts.for_each(|(strip, first, rows)| pack(strip, first, rows));
    } else {
        for (strip, rows) in out.chunks_mut(rows * WIDTH).enumerate() {
            pack(strip, 0, rows);
        }
    }
}

/// Packs `alpha · m`: strips over its columns. `out` has [`packed_len`] elements.
pub(crate) fn pack<E: Lane>(m: Mat<'_, f32>, alpha: f32, out: &mut [E], parallel: bool) {
    pack_part(m, alpha, 0, out, parallel);
}

/// Packs `alpha · mᵀ`: strips over the rows of m. `out` has [`packed_len`] elements of `[m.cols, m.rows]`.
pub(crate) fn pack_transposed<E: Lane>(m: Mat<'_, f32>, alpha: f32, out: &mut [E], parallel: bool) {
    pack_part_transposed(m, alpha, 0, out, parallel);
}

/// Packs a part (see `parts.rs`) of `alpha · m`.
pub fn pack_part<E: Lane>(m: Mat<'_, f32>, alpha: f32, part: usize, out: &mut [E], parallel: bool) {
    let out = &mut out[..packed_len(m.rows, m.cols)];
    for_each_part(out, m.rows, parallel, |strip, first, rows| {
        let columns = strip * WIDTH..m.cols.min((strip + 1) * WIDTH);
        for (i, to) in rows.chunks_exact_mut(WIDTH).enumerate() {
            let from = &m.row(first + i)[columns.clone()];
            // Of a length that the compiler knows, a copy is two moves instead of a call.
            match from.first_chunk::<WIDTH>() {
                Some(from) => E::narrow(from, alpha, part, &mut to[..WIDTH]),
                None => {
                    E::narrow(from, alpha, part, &mut to[..from.len()]);
                    to[from.len()..].fill(E::ZERO);
                }
            }
        }
    });
}

/// Packs a part of `alpha · mᵀ`.
pub fn pack_part_transposed<E: Lane>(
    m: Mat<'_, f32>,
    alpha: f32,
    part: usize,
    out: &mut [E],
    parallel: bool,
) {
    assert!(E::available());
    let out = &mut out[..packed_len(m.cols, m.rows)];
    for_each_part(out, m.cols, parallel, |strip, first, columns| {
        let top = strip * WIDTH;
        let (rows, cols) = (WIDTH.min(m.rows - top), columns.len() / WIDTH);
        let from = &m.data[top * m.stride + first..];
        assert!((rows - 1) * m.stride + cols <= from.len());
        // SAFETY: checked above, and the part is whole rows of a strip.
        unsafe { E::columns(from.as_ptr(), (rows, cols, m.stride), alpha, part, columns.as_mut_ptr()) }
    });
}
