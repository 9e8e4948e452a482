//! Matrix products through cuBLASLt.
//!
//! The library's matrices are column-major, ours row-major: it computes `Cᵀ = op(B)ᵀ · op(A)ᵀ`, so our B is its A and the
//! other way round, and a row-major matrix is its own transpose there.
//!
//! Operands of 8-bit floats come with a scale per row of A and per column of B (`OUTER_VEC_32F`, which the documentation
//! promises for compute capability 9.0 from cuBLAS 12.9 on). Whether a device has that is asked of the library itself.
//!
//! The library guesses which of its ways of computing a product is the fastest. Its first guess is taken,
//! until a large shape has come so often that the best guesses are timed ([`timing`]) and the fastest is
//! kept. Ways differ in the order of sums, so that results may differ in their last bits from one process to
//! the next. What was recorded keeps the way it had.
//!
//! These products are checked against headers and documentation alone; none has run on a GPU yet, nor was one
//! timed.

mod description;
mod timing;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};

use self::description::{Described, Preference, Shape};
use super::failed;
use super::lanes::{LANES, MAIN};
use crate::{DType, Error, Result};

/// Bytes of scratch that the library may use: what its documentation advises for Hopper.
const WORKSPACE: usize = 32 << 20;
/// Most ways that the library is asked for.
const WAYS: usize = 8;

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

/// A way of computing products of one shape.
#[derive(Debug)]
struct Plan {
    described: Described,
    /// At least one, the best guess first; no more than one once they were timed.
    ways: Vec<sys::cublasLtMatmulAlgo_t>,
    /// Products that were computed by it.
    uses: u32,
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
        let workspaces = unsafe { driver::malloc_sync(LANES * WORKSPACE) }
            .map_err(|e| failed("workspace of products", e))?;
        Ok(Blas { handle, streams, workspaces, plans: Mutex::default() })
    }

    pub fn product(&self, lane: usize, p: Product) -> Result<()> {
        let shape = Shape::of(&p);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans.entry(shape).or_insert_with(|| self.plan(&p));
        let plan = plan.as_mut().map_err(|e| failed(&format!("product {shape:?}"), e))?;
        plan.described.point(&p)?;
        plan.uses = plan.uses.saturating_add(1);
        if lane == MAIN
            && timing::is_worth_it(shape.extents, plan.uses, plan.ways.len())
            && !self.is_recorded(lane)
        {
            let fastest = self.fastest(lane, plan, &p).unwrap_or_default();
            plan.ways = vec![plan.ways[fastest]];
        }
        self.queue(lane, &plan.described, &plan.ways[0], &p)
            .map_err(|e| failed(&format!("product {shape:?}"), e))
    }

    /// Queues a product whose vectors the description points to.
    fn queue(
        &self,
        lane: usize,
        described: &Described,
        way: &sys::cublasLtMatmulAlgo_t,
        p: &Product,
    ) -> std::result::Result<(), result::CublasError> {
        let Described { description, layouts: [a, b, c] } = *described;
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
                std::ptr::from_ref(way),
                (self.workspaces + (lane * WORKSPACE) as u64) as *mut c_void,
                WORKSPACE,
                self.streams[lane].cast(),
            )
        }
    }

    /// Whether what is queued now is recorded, so that it cannot be waited for.
    fn is_recorded(&self, lane: usize) -> bool {
        // SAFETY: the stream lives as long as the device.
        let status = unsafe { driver::stream::is_capturing(self.streams[lane]) };
        !matches!(status, Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE))
    }

    /// The fastest of a plan's ways, by its index. A scratch buffer takes C's place, whatever it holds: not
    /// every way writes elsewhere than to C. C is as it was. `None` if there is no room for the buffer, or if
    /// no way works.
    fn fastest(&self, lane: usize, plan: &Plan, p: &Product) -> Option<usize> {
        // SAFETY: freed below.
        let scratch = unsafe { driver::malloc_sync(c_bytes(p)) }.ok()?;
        let p = Product { c: scratch, ..*p };
        let wait = || {
            // SAFETY: the stream lives as long as the device.
            unsafe { driver::stream::synchronize(self.streams[lane]) }.map_err(|_| ())
        };
        let begin = Instant::now();
        let time = |way| {
            let run = || self.queue(lane, &plan.described, way, &p).map_err(|_| ());
            timing::measure(run, wait, || begin.elapsed()).ok()
        };
        let times: Vec<_> = plan.ways.iter().map(time).collect();
        // SAFETY: allocated above; freeing waits for what a failure left in the queue. Nothing can be done
        // about memory that does not go.
        let _ = unsafe { driver::free_sync(scratch) };
        timing::winner(&times)
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
            let ways = (self.ways(&described, &Shape::of(p)))
                .map_err(|e| failed("way of computing a product", e))?;
            Ok::<_, Error>(Plan { described, ways, uses: 0 })
        })();
        found.map_err(|e| e.to_string())
    }

    /// The best guesses of the library's heuristic, at least one.
    fn ways(
        &self,
        described: &Described,
        shape: &Shape,
    ) -> std::result::Result<Vec<sys::cublasLtMatmulAlgo_t>, result::CublasError> {
        let preference = Preference::new(shape)?;
        let Described { description, layouts: [a, b, c] } = *described;
        // SAFETY: plain numbers, and a status of which 0 is success.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; WAYS] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: all descriptions are alive; at most so many results are written.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                a,
                b,
                c,
                c,
                preference.0,
                WAYS as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        }
        .result()?;
        let ways = usable(&found[..(count.max(0) as usize).min(WAYS)]);
        if ways.is_empty() {
            return Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        }
        Ok(ways)
    }
}

/// Those that work, and in our workspace.
fn usable(found: &[sys::cublasLtMatmulHeuristicResult_t]) -> Vec<sys::cublasLtMatmulAlgo_t> {
    let works = |found: &&sys::cublasLtMatmulHeuristicResult_t| {
        found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= WORKSPACE
    };
    found.iter().filter(works).map(|found| found.algo).collect()
}

/// Bytes from the first element of C to its last.
fn c_bytes(p: &Product) -> usize {
    (p.rows.saturating_sub(1) * p.c_stride + p.cols) * p.c_dtype.bytes()
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: each was made once, and nothing uses them any more. Nothing can be done about what does not go.
        unsafe {
            let _ = driver::free_sync(self.workspaces);
            let _ = result::destroy_handle(self.handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn product() -> Product {
        let factor = |address, transposed| Factor {
            address,
            dtype: DType::U8,
            stride: 64,
            transposed,
            scales: address + 4096,
        };
        Product {
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
    fn ways_that_do_not_work_are_left_out() {
        let found = |algorithm, state, bytes| sys::cublasLtMatmulHeuristicResult_t {
            algo: sys::cublasLtMatmulAlgo_t { data: [algorithm; 8] },
            workspaceSize: bytes,
            state,
            wavesCount: 1.0,
            reserved: [0; 4],
        };
        use sys::cublasStatus_t::{
            CUBLAS_STATUS_NOT_SUPPORTED as UNSUPPORTED, CUBLAS_STATUS_SUCCESS as FINE,
        };
        let ways = usable(&[
            found(1, UNSUPPORTED, 0),
            found(2, FINE, 32 << 20),
            found(3, FINE, (32 << 20) + 1),
            found(4, FINE, 0),
        ]);
        assert_eq!(ways.iter().map(|way| way.data[0]).collect::<Vec<_>>(), [2, 4]);
        assert!(usable(&[]).is_empty());
    }

    #[test]
    fn scratch_reaches_to_the_last_element() {
        assert_eq!(c_bytes(&product()), 21 * 48 * 2);
        let within = Product { c_stride: 100, c_dtype: DType::F32, ..product() };
        assert_eq!(c_bytes(&within), (20 * 100 + 48) * 4);
        assert_eq!(c_bytes(&Product { rows: 1, ..within }), 48 * 4);
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
