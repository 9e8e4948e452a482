//! Descriptions of products for cuBLASLt.

use cudarc::cublaslt::{result, sys};

use super::product::{Batch, Epilogue, Product};
use crate::error::failed;
use crate::{DType, Error, Result};

/// Bytes of scratch that the library may use: what its documentation advises for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// What products share that differ in nothing but addresses and factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows and columns of C, and length of the sums.
    pub extents: [usize; 3],
    pub batch: Batch,
    types: [DType; 3],
    strides: [usize; 3],
    transposed: [bool; 2],
    fast: bool,
    scales: bool,
    /// Largest powers of two that divide the addresses of A, of B and of C, in a batch of all, up to 256.
    /// Each its own: there is no way of computing with 32-bit numbers at multiples of 2, as bf16 beside them
    /// may lie.
    alignments: [u32; 3],
    /// Alignment of the bias if there is one: the library reads it off the address when it chooses a way.
    bias: Option<u32>,
}

/// Largest power of two that divides an address, up to 256.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

impl Shape {
    pub fn of(p: &Product) -> Self {
        Shape {
            extents: [p.rows, p.cols, p.inner],
            batch: p.batch,
            types: [p.a.dtype, p.b.dtype, p.c_dtype],
            strides: [p.a.stride, p.b.stride, p.c_stride],
            transposed: [p.a.transposed, p.b.transposed],
            fast: p.fast,
            scales: p.has_scales(),
            alignments: [
                alignment(p.a.address | (p.batch.steps[0] * p.a.dtype.bytes()) as u64),
                alignment(p.b.address | (p.batch.steps[1] * p.b.dtype.bytes()) as u64),
                alignment(p.c | (p.batch.steps[2] * p.c_dtype.bytes()) as u64),
            ],
            bias: match p.epilogue {
                Epilogue::Bias(address) => Some(alignment(address)),
                Epilogue::None => None,
            },
        }
    }
}

/// The descriptions of products of one shape.
#[derive(Debug)]
pub(super) struct Described {
    pub description: sys::cublasLtMatmulDesc_t,
    /// Of its A, its B, and C.
    pub layouts: [sys::cublasLtMatrixLayout_t; 3],
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::U8 => Ok(sys::cudaDataType::CUDA_R_8F_E4M3),
        dtype => Err(Error::DType { op: "matrix product", dtype }),
    }
}

fn set<T>(
    description: sys::cublasLtMatmulDesc_t,
    what: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the library copies `size_of::<T>()` bytes, all of them from the value.
    unsafe {
        let value = std::ptr::from_ref(value);
        result::set_matmul_desc_attribute(description, what, value.cast(), size_of::<T>())
    }
    .map_err(|e| failed("description of a product", e))
}

fn set_layout<T>(
    layout: sys::cublasLtMatrixLayout_t,
    what: sys::cublasLtMatrixLayoutAttribute_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the library copies `size_of::<T>()` bytes, all of them from the value.
    unsafe {
        let value = std::ptr::from_ref(value);
        result::set_matrix_layout_attribute(layout, what, value.cast(), size_of::<T>())
    }
    .map_err(|e| failed("layout of a product", e))
}

impl Described {
    /// # Errors
    /// The library has no such type, or failed.
    pub fn new(p: &Product) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let shape = Shape::of(p);
        let [rows, cols, inner] = shape.extents;
        let [a_type, b_type, c_type] = shape.types;
        let error = |e| failed("description of a product", e);
        let f32_type = sys::cudaDataType::CUDA_R_32F;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, f32_type).map_err(error)?;
        let mut described = Described { description, layouts: [std::ptr::null_mut(); 3] };
        // CUBLAS_OP_T and CUBLAS_OP_N of cublas_api.h, which the bindings lack.
        let operation = i32::from;
        let [a_transposed, b_transposed] = shape.transposed;
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(b_transposed))?;
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(a_transposed))?;
        if shape.bias.is_some() {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(data_type(c_type)? as i32))?;
        }
        if shape.scales {
            let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode)?;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode)?;
        }
        if p.is_fp8() {
            set(description, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &i8::from(shape.fast))?;
        }
        // What the library chooses may depend on which vectors there are.
        described.point(p)?;
        // A row-major matrix of r rows and c columns is a column-major one of c rows.
        let layout = |dtype, [r, c]: [usize; 2], stride: usize| {
            result::create_matrix_layout(data_type(dtype)?, c as u64, r as u64, stride as i64).map_err(error)
        };
        let Batch { count, steps: [a_step, b_step, c_step] } = shape.batch;
        let [a_stride, b_stride, c_stride] = shape.strides;
        let (a_shape, b_shape) = ([rows, inner], [inner, cols]);
        let stored = |[r, c]: [usize; 2], transposed: bool| if transposed { [c, r] } else { [r, c] };
        described.layouts[0] = layout(b_type, stored(b_shape, b_transposed), b_stride)?;
        described.layouts[1] = layout(a_type, stored(a_shape, a_transposed), a_stride)?;
        described.layouts[2] = layout(c_type, [rows, cols], c_stride)?;
        if count > 1 {
            for (layout, step) in described.layouts.into_iter().zip([b_step, a_step, c_step]) {
                use sys::cublasLtMatrixLayoutAttribute_t as Layout;
                set_layout(layout, Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(count as i32))?;
                let step = step as i64;
                set_layout(layout, Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step)?;
            }
        }
        Ok(described)
    }

    /// Tells the library where the vectors of a product of this shape are.
    ///
    /// # Errors
    /// The library failed.
    pub fn point(&self, p: &Product) -> Result<()> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        if let Epilogue::Bias(address) = p.epilogue {
            set(self.description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)?;
        }
        if p.has_scales() {
            // Its A is our B.
            set(self.description, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p.b.scales)?;
            set(self.description, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p.a.scales)?;
        }
        Ok(())
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each was made once, and nothing uses them any more. Nothing can be done about what does not
        // go.
        unsafe {
            for layout in self.layouts {
                if !layout.is_null() {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_matmul_desc(self.description);
        }
    }
}

/// What the library may choose from for a shape.
pub(super) struct Preference(pub sys::cublasLtMatmulPreference_t);

impl Preference {
    /// # Errors
    /// The library failed.
    pub fn new(shape: &Shape) -> std::result::Result<Self, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        use sys::cublasLtReductionScheme_t as Scheme;
        let preference = Preference(result::create_matmul_pref()?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        // Its A is our B.
        let [a, b, c] = shape.alignments;
        for (what, alignment) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            preference.set(what, &alignment)?;
        }
        // Sums that are split over blocks may else meet in C's own type: partial sums in bf16.
        if shape.types[2] != DType::F32 {
            let scheme = Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
            preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme)?;
        }
        Ok(preference)
    }

    fn set<T>(
        &self,
        what: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> std::result::Result<(), result::CublasError> {
        let value = std::ptr::from_ref(value);
        // SAFETY: the library copies `size_of::<T>()` bytes, all of them from the value.
        unsafe { result::set_matmul_pref_attribute(self.0, what, value.cast(), size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made once, and nothing uses it any more. Nothing can be done about one that does not
        // go.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::Factor;
    use super::super::product::tests::product;
    use super::*;

    fn library_is_there() -> bool {
        let folders = std::env::var_os("TENGGAT_CUDA_LIBRARIES").unwrap_or_default();
        crate::preload(&std::env::split_paths(&folders).collect::<Vec<_>>());
        // SAFETY: only asks whether a library can be opened.
        let is_there = unsafe { sys::is_culib_present() };
        if !is_there {
            tenggat_skip::skipped("libcublasLt was not found");
        }
        is_there
    }

    /// A way that was chosen for one address works for all others of the same shape.
    #[test]
    fn shapes_tell_alignments_apart() {
        let shape = Shape::of(&product());
        assert_eq!((shape.alignments, shape.bias), ([256; 3], Some(256)));
        let moved = |bytes: u64| Product {
            epilogue: Epilogue::Bias((4 << 20) + bytes),
            c: (3 << 20) + 16,
            ..product()
        };
        for (bytes, bias) in [(0, 256), (2, 2), (16, 16), (48, 16)] {
            let shape = Shape::of(&moved(bytes));
            assert_eq!((shape.alignments, shape.bias), ([256, 256, 16], Some(bias)));
        }
        let bare = Shape::of(&Product { epilogue: Epilogue::None, ..product() });
        assert_eq!((bare.alignments, bare.bias), ([256; 3], None));
        // Codes of one byte, and results of two: all products of a batch have to be aligned.
        let batch = Batch { count: 2, steps: [48, 64, 24] };
        assert_eq!(Shape::of(&Product { batch, ..product() }).alignments, [16, 64, 16]);
    }

    /// Partial sums are of 32 bits whatever type C has.
    #[test]
    fn preferences_can_be_described() {
        if !library_is_there() {
            return;
        }
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        for (c_dtype, schemes) in [(DType::BF16, 2), (DType::F32, 7)] {
            let preference = Preference::new(&Shape::of(&Product {
                a: Factor { address: 64, ..product().a },
                b: Factor { address: 32, ..product().b },
                c: 16,
                c_dtype,
                ..product()
            }))
            .unwrap();
            let read = |what, bytes: usize| {
                let (mut value, mut written) = (0u64, 0);
                // SAFETY: the library writes at most `bytes` bytes, and the value has 8.
                let status = unsafe {
                    sys::cublasLtMatmulPreferenceGetAttribute(
                        preference.0,
                        what,
                        (&raw mut value).cast(),
                        bytes,
                        &raw mut written,
                    )
                };
                status.result().unwrap();
                value
            };
            assert_eq!(read(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 4), schemes);
            assert_eq!(read(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 8), 32 << 20);
            for (what, alignment) in [
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 32),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 64),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, 16),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, 16),
            ] {
                assert_eq!(read(what, 4), alignment);
            }
        }
    }

    /// The library takes what says how far one product of a batch is from the next.
    #[test]
    fn batches_can_be_described() {
        if !library_is_there() {
            return;
        }
        let batch = Batch { count: 3, steps: [128, 4096, 64] };
        let described = Described::new(&Product { batch, ..product() }).unwrap();
        use sys::cublasLtMatrixLayoutAttribute_t as Layout;
        for (layout, step) in described.layouts.into_iter().zip([4096, 128, 64]) {
            let read = |what, bytes: usize| {
                let (mut value, mut written) = (0u64, 0);
                // SAFETY: writes at most so many bytes of the value.
                let status = unsafe {
                    let value = (&raw mut value).cast();
                    sys::cublasLtMatrixLayoutGetAttribute(layout, what, value, bytes, &raw mut written)
                };
                status.result().unwrap();
                value
            };
            assert_eq!(read(Layout::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 4), 3);
            assert_eq!(read(Layout::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, 8), step);
        }
    }

    /// The library takes every attribute, with the size that it expects. Whether it then has a way of
    /// computing such a product only a GPU tells.
    #[test]
    fn products_of_8_bit_floats_can_be_described() {
        if !library_is_there() {
            return;
        }
        let product = product();
        let described = Described::new(&product).unwrap();
        let read = |what, bytes: usize| {
            let (mut value, mut written) = (0u64, 0);
            // SAFETY: the library writes at most `bytes` bytes, and the value has 8.
            let status = unsafe {
                sys::cublasLtMatmulDescGetAttribute(
                    described.description,
                    what,
                    (&raw mut value).cast(),
                    bytes,
                    &raw mut written,
                )
            };
            status.result().unwrap();
            value
        };
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, 8), product.b.scales);
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, 8), product.a.scales);
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, 4), 3);
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, 4), 3);
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1), 1);
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 4), 1);
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, 4), 0);
        assert_eq!(read(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, 8), 4 << 20);
    }
}
