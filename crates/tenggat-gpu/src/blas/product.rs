//! A matrix product as ops ask for it.

use crate::DType;

/// An operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Factor {
    /// First element.
    pub address: u64,
    /// bf16 or f32; or bytes, which are e4m3 codes, in both operands.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Whether it is multiplied transposed.
    pub transposed: bool,
    /// First of the f32 scales of codes, one per row of C where it is A and per column of C where it is B; 0
    /// for numbers, and for codes that count as they are. Both operands have scales, or neither.
    pub scales: u64,
}

/// What is done to the result before it is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// A row of this type of C is added to every row of the result.
    Bias(u64),
}

/// Products of one shape that are computed at once, their matrices at equal distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Batch {
    /// How many, at least 1.
    pub count: usize,
    /// Elements from one product's A, B and C to the next one's.
    pub steps: [usize; 3],
}

impl Batch {
    /// One product alone.
    pub const ONE: Batch = Batch { count: 1, steps: [0; 3] };
}

/// `C = alpha · op(A) · op(B) + beta · C`, then the epilogue. Sums are 32-bit.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// How many such products there are; addresses are the first one's.
    pub batch: Batch,
    /// Rows of C.
    pub rows: usize,
    /// Columns of C.
    pub cols: usize,
    /// Length of the sums.
    pub inner: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Left operand, `[rows, inner]` or transposed.
    pub a: Factor,
    /// Right operand, `[inner, cols]` or transposed.
    pub b: Factor,
    /// Factor of what C held; if it is 0, C is not read.
    pub beta: f32,
    /// First element of C.
    pub c: u64,
    /// bf16 or f32.
    pub c_dtype: DType,
    /// Elements from one row of C to the next.
    pub c_stride: usize,
    /// What is done at the end.
    pub epilogue: Epilogue,
    /// Whether sums of 8-bit products may be kept in the tensor cores, which round them to fewer than 24
    /// bits.
    pub fast: bool,
}

impl Product {
    /// The products of the batch, one by one.
    pub fn each(self) -> impl Iterator<Item = Product> {
        let Batch { count, steps: [a_step, b_step, c_step] } = self.batch;
        let moved =
            |address: u64, i: usize, step: usize, dtype: DType| address + (i * step * dtype.bytes()) as u64;
        (0..count).map(move |i| Product {
            batch: Batch::ONE,
            a: Factor { address: moved(self.a.address, i, a_step, self.a.dtype), ..self.a },
            b: Factor { address: moved(self.b.address, i, b_step, self.b.dtype), ..self.b },
            c: moved(self.c, i, c_step, self.c_dtype),
            ..self
        })
    }

    /// Whether it multiplies e4m3 codes.
    pub fn is_fp8(&self) -> bool {
        self.a.dtype == DType::U8
    }

    /// Whether codes have scales per row and column.
    pub fn has_scales(&self) -> bool {
        self.a.scales != 0
    }

    /// Whether 8-bit operands lie as tensor cores take them: both contiguous along the sums, and all axes
    /// along which memory runs, the distances of rows and the addresses multiples of 16. The rows of C
    /// are free: memory does not run along them.
    pub fn fits_fp8(&self) -> bool {
        let extents = [self.cols, self.inner, self.a.stride, self.b.stride, self.c_stride];
        let addresses = [self.a.address, self.b.address, self.c];
        (self.a.transposed, self.b.transposed) == (false, true)
            && extents.iter().all(|n| n.is_multiple_of(16))
            && addresses.iter().all(|address| address.is_multiple_of(16))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn product() -> Product {
        let factor = |address, transposed| Factor {
            address,
            dtype: DType::U8,
            stride: 64,
            transposed,
            scales: address + 4096,
        };
        Product {
            batch: Batch::ONE,
            rows: 21,
            cols: 48,
            inner: 64,
            alpha: 1.0,
            a: factor(1 << 20, false),
            b: factor(2 << 20, true),
            beta: 0.0,
            c: 3 << 20,
            c_dtype: DType::BF16,
            c_stride: 48,
            epilogue: Epilogue::Bias(4 << 20),
            fast: true,
        }
    }

    #[test]
    fn a_batch_is_its_products_side_by_side() {
        let batch = Batch { count: 3, steps: [10, 200, 48] };
        let moved: Vec<_> = Product { batch, ..product() }.each().collect();
        assert_eq!(moved.len(), 3);
        // A and B are bytes, C has two for each element.
        assert_eq!(moved[2].a.address - product().a.address, 20);
        assert_eq!(moved[2].b.address - product().b.address, 400);
        assert_eq!((moved[2].c - product().c, moved[2].batch), (192, Batch::ONE));
    }

    #[test]
    fn operands_of_8_bits_lie_as_tensor_cores_take_them() {
        let product = product();
        assert!(product.fits_fp8());
        for wrong in [
            Product { a: Factor { transposed: true, ..product.a }, ..product },
            Product { a: Factor { address: product.a.address + 8, ..product.a }, ..product },
            Product { cols: 40, ..product },
            Product { inner: 56, ..product },
            Product { c_stride: 56, ..product },
        ] {
            assert!(!wrong.fits_fp8(), "{wrong:?}");
        }
    }
}
