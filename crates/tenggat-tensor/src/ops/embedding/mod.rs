//! Rows of a table by number: `y[i] = table[ids[i]]`.
//!
//! Forward only: it is the first layer of the frozen text encoder.

mod cpu;
pub(crate) mod cuda;

use half::bf16;

use super::dispatch_real;
use crate::error::expect_shape;
use crate::{DType, Error, Result, View, ViewMut};

/// Gathers rows. table: `[v, c]`, in the type of y or in bf16, which is widened; on a GPU, in any type of
/// float; y: `[ids.len(), c]`.
///
/// # Errors
/// An id is not below `v`, shapes do not fit, or there is no kernel for the types.
pub fn forward(ids: &[u32], table: View<'_>, y: ViewMut<'_>) -> Result<()> {
    const OP: &str = "embedding";
    expect_shape(OP, "y", &[ids.len(), table.cols()], &y.shape())?;
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= table.rows()) {
        return Err(Error::shape(OP, "id (below the rows of the table)", &[table.rows()], &[id as usize]));
    }
    if y.on_gpu() {
        return cuda::gather(OP, ids, table, y);
    }
    dispatch_real!(OP, y.dtype(), T => {
        match table.dtype() {
            DType::BF16 => cpu::gather::<bf16, T>(ids, table.cpu(OP)?, y.cpu(OP)?),
            _ => cpu::gather::<T, T>(ids, table.cpu(OP)?, y.cpu(OP)?),
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::Tensor;

    #[test]
    fn gathers_and_widens() {
        let wide = randn(DType::F32, &[9, 5], 1);
        let ids: Vec<u32> = (0..40).map(|i| i * 7 % 9).collect();
        for (table, tolerance) in
            [(wide.to_dtype(DType::BF16).unwrap(), 0.02), (wide.duplicate().unwrap(), 0.0)]
        {
            let mut y = wide.empty_like(&[40, 5]).unwrap();
            forward(&ids, table.view(), y.view_mut()).unwrap();
            let (y, source) = (y.to_f64().unwrap(), wide.to_f64().unwrap());
            for (row, &id) in y.chunks(5).zip(&ids) {
                let expected = &source[id as usize * 5..][..5];
                assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance));
            }
        }
    }

    #[test]
    fn refuses_an_id_outside_the_table() {
        let table = randn(DType::F32, &[3, 2], 1);
        let mut y = table.empty_like(&[2, 2]).unwrap();
        let error = forward(&[0, 3], table.view(), y.view_mut()).unwrap_err().to_string();
        assert!(error.contains("expected [3], got [3]"), "{error}");
        let mut none = Tensor::empty(&table.device(), DType::F32, &[0, 2]).unwrap();
        forward(&[], table.view(), none.view_mut()).unwrap();
    }

    #[test]
    fn gpus_agree() {
        for (c, from) in [(64, 0), (64, 3), (7, 2)] {
            against_cpu("embedding", |on| {
                let ids: Vec<u32> = (0..41).map(|i| i * 7 % 9).collect();
                let tables = [on.randn(&[9, c + 4], 1), on.wide(&[9, c + 4], 2)];
                let mut all = [on.empty(&[41, c]), on.empty(&[41, c]), on.empty_wide(&[41, c])];
                for (table, y) in [(0, 0), (1, 1), (0, 2)] {
                    let table = tables[table].view().columns(from..from + c);
                    forward(&ids, table, all[y].view_mut()).unwrap();
                }
                let [same, narrowed, widened] = all;
                vec![("same", same), ("narrowed", narrowed), ("widened", widened)]
            });
        }
    }
}
