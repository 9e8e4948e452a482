//! CUDA graph capture: work is captured once and launched as a whole from then on, which spares the processor
//! a call for each kernel and the GPU the gaps between them.
//!
//! What is captured is not done. Addresses and numbers are kept as they were, so that only the contents of
//! memory differ from launch to launch; tensors that are made on the way have meaningful contents only after
//! [`Graph::replay`].

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use crate::backend::Backend;
use crate::{Cuda, Error, Result, emulated, gpu};

/// Orders of two streams in which an emulated device runs captured work, one after the other: whether the
/// side stream begins, and of how many calls the turns are.
const ORDERS: [(bool, usize); 3] = [(false, usize::MAX), (true, usize::MAX), (true, 1)];

#[derive(Debug)]
enum Work {
    Exec(gpu::Exec),
    /// With how often it was run.
    Calls(Vec<emulated::Captured>, AtomicUsize),
}

/// Captured work of one device.
///
/// Memory that the work uses beyond tensors that outlive the capture is kept for it, and for all graphs of
/// the device together; when the device has no room left, it is taken away from all of them.
#[derive(Debug)]
pub struct Graph {
    cuda: Arc<Cuda>,
    era: u64,
    work: Work,
}

impl Graph {
    /// Launches the work. Returns whether that was possible: it is not once the device needed the memory, nor
    /// while other tensors have borrowed some of it.
    ///
    /// # Errors
    /// Work is being captured, or the device failed.
    pub fn replay(&self) -> Result<bool> {
        self.cuda.refuse_while_capturing("recorded work")?;
        if self.cuda.pool().era() != self.era || self.cuda.pool().is_lent() {
            return Ok(false);
        }
        match (&self.work, self.cuda.backend()) {
            (Work::Exec(graph), Backend::Gpu(gpu)) => gpu.replay(graph)?,
            (Work::Calls(work, times), _) => {
                let (side_first, turn) = ORDERS[times.fetch_add(1, Relaxed) % ORDERS.len()];
                emulated::replay(work, side_first, turn)?;
            }
            (Work::Exec(_), Backend::Emulated(_)) => return Ok(false),
        }
        Ok(true)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.cuda.pool().forget_graph(self.era);
    }
}

/// A capture that is under way; dropping it abandons it.
#[derive(Debug)]
pub struct Capture<'a>(&'a Arc<Cuda>);

impl<'a> Capture<'a> {
    /// From now on, what is asked of the device is captured. See [`Cuda::capture`].
    ///
    /// # Errors
    /// Work is being captured already, or the device failed.
    pub fn begin(cuda: &'a Arc<Cuda>) -> Result<Self> {
        if cuda.set_capturing(true) {
            return Err(Error::Failed("a recording within a recording".into()));
        }
        let capture = Capture(cuda);
        cuda.pool().make_room_for_capture(cuda.backend());
        match cuda.backend() {
            Backend::Gpu(gpu) => gpu.begin_capture()?,
            Backend::Emulated(emulated) => emulated.begin_capture(),
        }
        cuda.pool().begin_capture();
        Ok(capture)
    }

    /// What was captured.
    ///
    /// # Errors
    /// The device failed.
    pub fn end(self) -> Result<Graph> {
        let work = match self.0.backend() {
            Backend::Gpu(gpu) => Work::Exec(gpu.end_capture()?),
            Backend::Emulated(emulated) => Work::Calls(emulated.end_capture(), AtomicUsize::new(0)),
        };
        Ok(Graph { cuda: Arc::clone(self.0), era: self.0.pool().add_graph(), work })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.0.set_capturing(false);
        self.0.pool().end_capture();
        match self.0.backend() {
            // A capture that failed has to be ended all the same; what came of it is not wanted.
            Backend::Gpu(gpu) => gpu.abandon_capture(),
            Backend::Emulated(emulated) => drop(emulated.end_capture()),
        }
    }
}

impl Cuda {
    /// Captures what `work` asks of the device, without its being done. Whatever `work` needs that depends on
    /// shapes alone (kernels, plans, constants) has to exist, as it does after the same work was done
    /// once. No other thread may ask anything of the device meanwhile.
    ///
    /// # Errors
    /// Those of `work`; it reads or writes the host's memory; there is no room; the device failed.
    pub fn capture<T, E: From<Error>>(
        self: &Arc<Self>,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Graph), E> {
        let capture = Capture::begin(self)?;
        let made = work()?;
        Ok((made, capture.end()?))
    }
}
