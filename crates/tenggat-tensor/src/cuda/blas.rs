//! Matrix products through cuBLASLt.
//!
//! The library's matrices are column-major, ours row-major: it computes `Cᵀ = op(B)ᵀ · op(A)ᵀ`, so our B is its A and the
//! other way round, and a row-major matrix is its own transpose there.
//!
//! Operands of 8-bit floats come with a scale per row of A and per column of B (`OUTER_VEC_32F`, which the documentation
//! promises for compute capability 9.0 from cuBLAS 12.9 on). Whether a device has that is asked of the library itself.
//! These products are checked against headers and documentation alone; none has run on a GPU yet.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;

use super::failed;
use super::lanes::LANES;
use crate::{DType, Error, Result};

/// Bytes of scratch that the library may use: what its documentation advises for Hopper.
const WORKSPACE: usize = 32 << 20;

/// An operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Factor {
    /// First element.
    pub address: u64,
    /// bf16 or f32; or bytes, which are e4m3 codes, in both operands.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Whether it is multiplied transposed.
    pub transposed: bool,
    /// First of the f32 scales of codes, one per row of C where it is A and per column of C where it is B; else 0.
    pub scales: u64,
}

/// What is done to the result before it is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    /// Nothing.
    None,
    /// A row of this type of C is added to every row of the result.
    Bias(u64),
}

/// `C = alpha · op(A) · op(B) + beta · C`, then the epilogue. Sums are 32-bit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
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
    /// Whether sums of 8-bit products may be kept in the tensor cores, which round them to fewer than 24 bits.
    pub fast: bool,
}

impl Product {
    /// Whether it multiplies e4m3 codes.
    pub fn is_fp8(&self) -> bool {
        self.a.dtype == DType::U8
    }

    /// Whether 8-bit operands lie as tensor cores take them: both contiguous along the sums, and all axes along which
    /// memory runs, the distances of rows and the addresses multiples of 16. The rows of C are free: memory does not run
    /// along them.
    pub fn fits_fp8(&self) -> bool {
        let extents = [self.cols, self.inner, self.a.stride, self.b.stride, self.c_stride];
        let addresses = [self.a.address, self.b.address, self.c];
        (self.a.transposed, self.b.transposed) == (false, true)
            && extents.iter().all(|n| n.is_multiple_of(16))
            && addresses.iter().all(|address| address.is_multiple_of(16))
    }
}

/// What products share that differ in nothing but addresses and factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    extents: [usize; 3],
    types: [DType; 3],
    strides: [usize; 3],
    transposed: [bool; 2],
    bias: bool,
    fast: bool,
    /// Largest powers of two that divide the addresses of A, of B, and of C and the bias, up to 256. Each its own: there is
    /// no way of computing with 32-bit numbers at multiples of 2, as bf16 next to them may lie.
    alignments: [u32; 3],
}

impl Shape {
    fn of(p: &Product) -> Self {
        let bias = if let Epilogue::Bias(address) = p.epilogue { address } else { 0 };
        let alignment = |address: u64| 1 << address.trailing_zeros().min(8);
        Shape {
            extents: [p.rows, p.cols, p.inner],
            types: [p.a.dtype, p.b.dtype, p.c_dtype],
            strides: [p.a.stride, p.b.stride, p.c_stride],
            transposed: [p.a.transposed, p.b.transposed],
            bias: bias != 0,
            fast: p.fast,
            alignments: [p.a.address, p.b.address, p.c | bias].map(alignment),
        }
    }
}

/// A way of computing products of one shape.
#[derive(Debug)]
struct Plan {
    described: Described,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// Products of one shape as the library is told of them.
#[derive(Debug)]
struct Described {
    description: sys::cublasLtMatmulDesc_t,
    /// Of its A, its B, and C.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

/// The library on the streams of one device, each with a workspace of its own.
#[derive(Debug)]
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    streams: [CUstream; LANES],
    workspaces: u64,
    plans: Mutex<HashMap<Shape, Result<Plan, String>>>,
}

// SAFETY: the library's handle may be used from any thread, descriptions are not changed but under the lock.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
        DType::U8 => Ok(sys::cudaDataType::CUDA_R_8F_E4M3),
        dtype => Err(Error::DType { op: "matrix product", dtype, device: "cuda" }),
    }
}

fn set<T>(
    description: sys::cublasLtMatmulDesc_t,
    what: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    // SAFETY: the library copies so many bytes from the value.
    unsafe {
        let value = std::ptr::from_ref(value);
        result::set_matmul_desc_attribute(description, what, value.cast(), size_of::<T>())
    }
    .map_err(|e| failed("description of a product", e))
}

/// Tells the library where the vectors of a product are.
fn point(description: sys::cublasLtMatmulDesc_t, p: &Product) -> Result<()> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    if let Epilogue::Bias(address) = p.epilogue {
        set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)?;
    }
    if p.is_fp8() {
        // Its A is our B.
        set(description, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p.b.scales)?;
        set(description, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p.a.scales)?;
    }
    Ok(())
}

impl Described {
    fn new(p: &Product) -> Result<Self> {
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
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(data_type(c_type)? as i32))?;
        }
        if p.is_fp8() {
            let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode)?;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode)?;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, &i8::from(shape.fast))?;
        }
        // What the library chooses may depend on which vectors there are.
        point(description, p)?;
        // A row-major matrix of r rows and c columns is a column-major one of c rows.
        let layout = |dtype, [r, c]: [usize; 2], stride: usize| {
            result::create_matrix_layout(data_type(dtype)?, c as u64, r as u64, stride as i64).map_err(error)
        };
        let [a_stride, b_stride, c_stride] = shape.strides;
        let (a_shape, b_shape) = ([rows, inner], [inner, cols]);
        let stored = |[r, c]: [usize; 2], transposed: bool| if transposed { [c, r] } else { [r, c] };
        described.layouts[0] = layout(b_type, stored(b_shape, b_transposed), b_stride)?;
        described.layouts[1] = layout(a_type, stored(a_shape, a_transposed), a_stride)?;
        described.layouts[2] = layout(c_type, [rows, cols], c_stride)?;
        Ok(described)
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each was made once, and nothing uses them any more. Nothing can be done about what does not go.
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

impl Blas {
    pub fn open(streams: [CUstream; LANES]) -> Result<Self> {
        // SAFETY: only asks whether a library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Cuda(
                "libcublasLt is not there: `pip install nvidia-cublas`, or install the CUDA toolkit".into(),
            ));
        }
        let handle = result::create_handle().map_err(|e| failed("cuBLASLt", e))?;
        // SAFETY: freed with the context.
        let workspaces = unsafe { cudarc::driver::result::malloc_sync(LANES * WORKSPACE) }
            .map_err(|e| failed("workspace of products", e))?;
        Ok(Blas { handle, streams, workspaces, plans: Mutex::default() })
    }

    pub fn product(&self, lane: usize, p: Product) -> Result<()> {
        let shape = Shape::of(&p);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.entry(shape).or_insert_with(|| self.plan(&p));
        let plan = plan.as_ref().map_err(|e| failed(&format!("product {shape:?}"), e))?;
        let Described { description, layouts: [a, b, c] } = plan.described;
        point(description, &p)?;
        // SAFETY: descriptions are of these operands, which live until the work queued behind is done.
        unsafe {
            result::matmul(
                self.handle,
                description,
                (&raw const p.alpha).cast(),
                (&raw const p.beta).cast(),
                p.b.address as *const c_void,
                a,
                p.a.address as *const c_void,
                b,
                p.c as *const c_void,
                c,
                p.c as *mut c_void,
                c,
                &raw const plan.algorithm,
                (self.workspaces + (lane * WORKSPACE) as u64) as *mut c_void,
                WORKSPACE,
                self.streams[lane].cast(),
            )
        }
        .map_err(|e| failed(&format!("product {shape:?}"), e))
    }

    /// Whether the library has a way of computing it.
    pub fn computes(&self, p: &Product) -> bool {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.entry(Shape::of(p)).or_insert_with(|| self.plan(p)).is_ok()
    }

    /// Whether it multiplies 8-bit floats with a scale per row and column on this device.
    pub fn computes_fp8(&self) -> bool {
        let factor = |transposed| Factor {
            address: self.workspaces,
            dtype: DType::U8,
            stride: 128,
            transposed,
            scales: self.workspaces,
        };
        self.computes(&Product {
            rows: 128,
            cols: 128,
            inner: 128,
            alpha: 1.0,
            a: factor(false),
            b: factor(true),
            beta: 0.0,
            c: self.workspaces,
            c_dtype: DType::BF16,
            c_stride: 128,
            epilogue: Epilogue::None,
            fast: true,
        })
    }

    /// How to compute it, or why not.
    fn plan(&self, p: &Product) -> Result<Plan, String> {
        let found = (|| {
            let described = Described::new(p)?;
            let Described { description, layouts } = &described;
            let alignments = Shape::of(p).alignments;
            let algorithm = (self.algorithm(*description, *layouts, alignments))
                .map_err(|e| failed("way of computing a product", e))?;
            Ok::<_, Error>(Plan { described, algorithm })
        })();
        found.map_err(|e| e.to_string())
    }

    /// The first choice of the library's heuristic.
    fn algorithm(
        &self,
        description: sys::cublasLtMatmulDesc_t,
        [a, b, c]: [sys::cublasLtMatrixLayout_t; 3],
        [our_a, our_b, our_c]: [u32; 3],
    ) -> std::result::Result<sys::cublasLtMatmulAlgo_t, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref()?;
        // SAFETY: the library copies the values; all descriptions are alive.
        unsafe {
            let put = |what, value: *const c_void, bytes| {
                result::set_matmul_pref_attribute(preference, what, value, bytes)
            };
            put(
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&WORKSPACE).cast(),
                8,
            )?;
            // Its A is our B.
            for (what, alignment) in [
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, our_b),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, our_a),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, our_c),
                (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, our_c),
            ] {
                put(what, (&raw const alignment).cast(), 4)?;
            }
            let found = result::get_matmul_algo_heuristic(self.handle, description, a, b, c, c, preference);
            // Nothing can be done about a preference that does not go.
            let _ = result::destroy_matmul_pref(preference);
            Ok(found?.algo)
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: each was made once, and nothing uses them any more. Nothing can be done about what does not go.
        unsafe {
            let _ = cudarc::driver::result::free_sync(self.workspaces);
            let _ = result::destroy_handle(self.handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library takes every attribute, with the size that it expects. Whether it then has a way of computing such a
    /// product only a GPU tells.
    #[test]
    fn products_of_8_bit_floats_can_be_described() {
        let folders = std::env::var_os("TENGGAT_CUDA_LIBRARIES").unwrap_or_default();
        crate::cuda::library::preload(&std::env::split_paths(&folders).collect::<Vec<_>>());
        // SAFETY: only asks whether a library can be opened.
        if !unsafe { sys::is_culib_present() } {
            eprintln!("skipped: libcublasLt is not there");
            return;
        }
        let factor = |address, transposed| Factor {
            address,
            dtype: DType::U8,
            stride: 64,
            transposed,
            scales: address + 4096,
        };
        let product = Product {
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
        };
        assert!(product.fits_fp8());
        let described = Described::new(&product).unwrap();
        let read = |what, bytes: usize| {
            let (mut value, mut written) = (0u64, 0);
            // SAFETY: writes at most so many bytes of the value.
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
        for wrong in [
            Product { a: factor(1 << 20, true), ..product },
            Product { a: factor((1 << 20) + 8, false), ..product },
            Product { cols: 40, ..product },
            Product { inner: 56, ..product },
            Product { c_stride: 56, ..product },
        ] {
            assert!(!wrong.fits_fp8(), "{wrong:?}");
        }
    }
}
