//! The library on the streams of a device.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::result as driver;
use cudarc::driver::sys::{CUstream, CUstreamCaptureStatus};

use super::description::{Described, Preference, Shape, WORKSPACE};
use super::product::{Batch, Epilogue, Factor, Product};
use super::timing;
use crate::error::failed;
use crate::streams::{MAIN, STREAMS};
use crate::{DType, Error, Result};

/// Most algorithms that the library is asked for.
const WAYS: usize = 8;

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
pub(crate) struct Blas {
    handle: sys::cublasLtHandle_t,
    streams: [CUstream; STREAMS],
    workspaces: u64,
    /// Whether ways are timed.
    times: bool,
    plans: Mutex<HashMap<Shape, Result<Plan, String>>>,
}

// SAFETY: cuBLASLt's handle is not bound to a thread, and plans change only under the mutex.
unsafe impl Send for Blas {}
// SAFETY: cuBLASLt's handle may be used from several threads at once, and plans change only under the mutex.
unsafe impl Sync for Blas {}

impl Blas {
    /// The library on these streams; `times` is whether the ways of computing a product are timed.
    ///
    /// # Errors
    /// There is no library, or no room for the workspaces.
    pub fn open(streams: [CUstream; STREAMS], times: bool) -> Result<Self> {
        // SAFETY: only asks whether a library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Failed(
                "libcublasLt was not found: `pip install nvidia-cublas`, or install the CUDA toolkit".into(),
            ));
        }
        let handle = result::create_handle().map_err(|e| failed("cuBLASLt", e))?;
        // SAFETY: freed with the context.
        let workspaces = unsafe { driver::malloc_sync(STREAMS * WORKSPACE) }
            .map_err(|e| failed("workspace of products", e))?;
        Ok(Blas { handle, streams, workspaces, times, plans: Mutex::default() })
    }

    /// Queues a product. If there is no way of computing it, nothing is queued, and the answer says why.
    ///
    /// # Errors
    /// The library failed; or, while work is being captured, it cannot be asked about a shape that is new.
    pub fn product(&self, stream: usize, p: Product) -> Result<Option<String>> {
        let shape = Shape::of(&p);
        let is_captured = self.is_captured(stream);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(shape) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match self.plan(&p) {
                // From CUDA 13.3 on the library may refuse to be asked while work is captured; that says
                // nothing of the shape.
                Err(why) if is_captured => {
                    return Err(failed(
                        &format!("product {shape:?}, which is new while work is captured"),
                        why,
                    ));
                }
                plan => entry.insert(plan),
            },
        };
        loop {
            let found = match plan {
                Ok(found) => found,
                Err(why) if p.is_fp8() => return Err(failed(&format!("product {shape:?}"), why)),
                Err(why) => return Ok(Some(format!("{shape:?}: {why}"))),
            };
            found.described.point(&p)?;
            found.uses = found.uses.saturating_add(1);
            if stream == MAIN
                && self.times
                && timing::is_worth_it(shape.extents, found.uses, found.ways.len())
                && !is_captured
            {
                let fastest = self.fastest(stream, found, &p).unwrap_or_default();
                found.ways = vec![found.ways[fastest]];
            }
            match self.queue(stream, &found.described, &found.ways[0], &p) {
                Ok(()) => return Ok(None),
                // A way that does not run after all makes room for the next one.
                Err(e) if !is_captured && e.0 == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => {
                    found.ways.remove(0);
                    if found.ways.is_empty() {
                        *plan = Err(e.to_string());
                    }
                }
                Err(e) => return Err(failed(&format!("product {shape:?}"), e)),
            }
        }
    }

    /// Queues a product whose vectors the description points to.
    fn queue(
        &self,
        stream: usize,
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
                (self.workspaces + (stream * WORKSPACE) as u64) as *mut c_void,
                WORKSPACE,
                self.streams[stream].cast(),
            )
        }
    }

    /// Whether what is queued now is captured, so that it cannot be waited for.
    fn is_captured(&self, stream: usize) -> bool {
        // SAFETY: the stream lives as long as the device.
        let status = unsafe { driver::stream::is_capturing(self.streams[stream]) };
        !matches!(status, Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE))
    }

    /// The fastest of a plan's ways, by its index. A scratch buffer takes C's place, whatever it holds: not
    /// every way writes elsewhere than to C. C is as it was. `None` if there is no room for the buffer, or if
    /// no way works.
    fn fastest(&self, stream: usize, plan: &Plan, p: &Product) -> Option<usize> {
        // SAFETY: freed below.
        let scratch = unsafe { driver::malloc_sync(c_bytes(p)) }.ok()?;
        let p = Product { c: scratch, ..*p };
        let wait = || {
            // SAFETY: the stream lives as long as the device.
            unsafe { driver::stream::synchronize(self.streams[stream]) }.map_err(|_| ())
        };
        let begin = Instant::now();
        let time = |way| {
            let run = || self.queue(stream, &plan.described, way, &p).map_err(|_| ());
            timing::measure(run, wait, || begin.elapsed()).ok()
        };
        let times: Vec<_> = plan.ways.iter().map(time).collect();
        // SAFETY: allocated above; freeing waits for what a failure left in the queue. Nothing can be done
        // about memory that does not go.
        let _ = unsafe { driver::free_sync(scratch) };
        timing::winner(&times)
    }

    /// Whether the library has a way of computing it. What it says while work is captured is not kept: it may
    /// say no to any question then.
    pub fn computes(&self, p: &Product) -> bool {
        let is_captured = (0..STREAMS).any(|stream| self.is_captured(stream));
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        match plans.entry(Shape::of(p)) {
            Entry::Occupied(entry) => entry.get().is_ok(),
            Entry::Vacant(entry) => match self.plan(p) {
                Err(_) if is_captured => false,
                plan => entry.insert(plan).is_ok(),
            },
        }
    }

    /// Whether it multiplies 8-bit floats on this device.
    pub fn computes_fp8(&self) -> bool {
        let factor = |transposed| Factor {
            address: self.workspaces,
            dtype: DType::U8,
            stride: 128,
            transposed,
            scales: 0,
        };
        self.computes(&Product {
            batch: Batch::ONE,
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
        // SAFETY: all descriptions are alive, and the library writes at most as many results as the list has
        // room for.
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

/// Bytes from the first element of C to its last, in a batch to that of the last product.
fn c_bytes(p: &Product) -> usize {
    let before = p.batch.count.saturating_sub(1) * p.batch.steps[2];
    (before + p.rows.saturating_sub(1) * p.c_stride + p.cols) * p.c_dtype.bytes()
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: each was made once, and nothing uses them any more. Nothing can be done about what does not
        // go.
        unsafe {
            let _ = driver::free_sync(self.workspaces);
            let _ = result::destroy_handle(self.handle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::product::tests::product;
    use super::*;

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
        let batch = Batch { count: 3, steps: [0, 0, 1000] };
        assert_eq!(c_bytes(&Product { rows: 1, batch, ..within }), 2048 * 4);
    }
}
