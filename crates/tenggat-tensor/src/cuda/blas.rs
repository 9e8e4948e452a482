//! Matrix products through cuBLASLt.
//!
//! The library's matrices are column-major, ours row-major: it computes `Cᵀ = op(B)ᵀ · op(A)ᵀ`, so our B is its A and the
//! other way round, and a row-major matrix is its own transpose there.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;

use super::failed;
use crate::{DType, Error, Result};

/// Bytes of scratch that the library may use: what its documentation advises for Hopper.
const WORKSPACE: usize = 32 << 20;

/// An operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Factor {
    /// First element.
    pub address: u64,
    /// bf16 or f32.
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Whether it is multiplied transposed.
    pub transposed: bool,
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
}

/// What products share that differ in nothing but addresses and factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    extents: [usize; 3],
    types: [DType; 3],
    strides: [usize; 3],
    transposed: [bool; 2],
    bias: bool,
    /// Largest power of two that divides every address, up to 256.
    alignment: u32,
}

impl Shape {
    fn of(p: &Product) -> Self {
        let bias = if let Epilogue::Bias(address) = p.epilogue { address } else { 0 };
        let addresses = p.a.address | p.b.address | p.c | bias;
        Shape {
            extents: [p.rows, p.cols, p.inner],
            types: [p.a.dtype, p.b.dtype, p.c_dtype],
            strides: [p.a.stride, p.b.stride, p.c_stride],
            transposed: [p.a.transposed, p.b.transposed],
            bias: bias != 0,
            alignment: 1 << addresses.trailing_zeros().min(8),
        }
    }
}

/// A way of computing products of one shape.
#[derive(Debug)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library on one stream.
#[derive(Debug)]
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: CUstream,
    workspace: u64,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: the library's handle may be used from any thread, descriptions are not changed but under the lock.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    match dtype {
        DType::F32 => Ok(sys::cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(sys::cudaDataType::CUDA_R_16BF),
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

impl Blas {
    pub fn open(stream: CUstream) -> Result<Self> {
        // SAFETY: only asks whether a library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Cuda(
                "libcublasLt is not there: `pip install nvidia-cublas`, or install the CUDA toolkit".into(),
            ));
        }
        let handle = result::create_handle().map_err(|e| failed("cuBLASLt", e))?;
        // SAFETY: freed with the context.
        let workspace = unsafe { cudarc::driver::result::malloc_sync(WORKSPACE) }
            .map_err(|e| failed("workspace of products", e))?;
        Ok(Blas { handle, stream, workspace, plans: Mutex::default() })
    }

    pub fn product(&self, p: Product) -> Result<()> {
        let shape = Shape::of(&p);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(shape) {
            std::collections::hash_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(self.plan(shape, p.epilogue)?),
        };
        if let Epilogue::Bias(address) = p.epilogue {
            set(
                plan.description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                &address,
            )?;
        }
        // SAFETY: descriptions are of these operands, which live until the work queued behind is done.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const p.alpha).cast(),
                (&raw const p.beta).cast(),
                p.b.address as *const c_void,
                plan.a,
                p.a.address as *const c_void,
                plan.b,
                p.c as *const c_void,
                plan.c,
                p.c as *mut c_void,
                plan.c,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )
        }
        .map_err(|e| failed(&format!("product {shape:?}"), e))
    }

    fn plan(&self, shape: Shape, epilogue: Epilogue) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [rows, cols, inner] = shape.extents;
        let [a_type, b_type, c_type] = shape.types;
        let f32_type = sys::cudaDataType::CUDA_R_32F;
        let error = |e| failed(&format!("product {shape:?}"), e);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(compute, f32_type).map_err(error)?;
        // CUBLAS_OP_T and CUBLAS_OP_N of cublas_api.h, which the bindings lack.
        let operation = i32::from;
        let [a_transposed, b_transposed] = shape.transposed;
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(b_transposed))?;
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(a_transposed))?;
        if let Epilogue::Bias(address) = epilogue {
            // The heuristic wants an address, though plans are used with others.
            set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address)?;
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(data_type(c_type)? as i32))?;
        }
        // A row-major matrix of r rows and c columns is a column-major one of c rows.
        let layout = |dtype, [r, c]: [usize; 2], stride: usize| {
            result::create_matrix_layout(data_type(dtype)?, c as u64, r as u64, stride as i64).map_err(error)
        };
        let [a_stride, b_stride, c_stride] = shape.strides;
        let a = layout(b_type, if b_transposed { [cols, inner] } else { [inner, cols] }, b_stride)?;
        let b = layout(a_type, if a_transposed { [inner, rows] } else { [rows, inner] }, a_stride)?;
        let c = layout(c_type, [rows, cols], c_stride)?;
        let algorithm = self.algorithm(description, [a, b, c], shape.alignment).map_err(error)?;
        Ok(Plan { description, a, b, c, algorithm })
    }

    /// The first choice of the library's heuristic.
    fn algorithm(
        &self,
        description: sys::cublasLtMatmulDesc_t,
        [a, b, c]: [sys::cublasLtMatrixLayout_t; 3],
        alignment: u32,
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
            for what in [
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
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
        let plans = self.plans.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: each was made once, and nothing uses them any more. Nothing can be done about what does not go.
        unsafe {
            for plan in plans.values() {
                for layout in [plan.a, plan.b, plan.c] {
                    let _ = result::destroy_matrix_layout(layout);
                }
                let _ = result::destroy_matmul_desc(plan.description);
            }
            let _ = cudarc::driver::result::free_sync(self.workspace);
            let _ = result::destroy_handle(self.handle);
        }
    }
}
