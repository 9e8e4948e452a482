//! Copies to a device that are made while it works on something else.
//!
//! A thread of its own, the courier, takes the bytes to page-locked memory and a second queue fetches them from there, so
//! that neither the caller nor the device's main queue waits before the bytes are wanted.

use std::fmt;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::staging::Staging;
use super::{Cuda, Machine, failed};
use crate::{DType, Device, Error, Result, Tensor};

/// Where bytes come from: whoever holds them keeps them as they are.
pub(crate) type Source = Box<dyn AsRef<[u8]> + Send + Sync>;

/// A tensor of bytes whose contents are on their way.
#[derive(Debug)]
pub(crate) struct Coming {
    // Dropped first: memory goes back to the pool once the copy can no longer write to it.
    delivery: Delivery,
    tensor: Tensor,
}

#[derive(Debug)]
struct Delivery {
    cuda: Arc<Cuda>,
    state: State,
}

#[derive(Debug)]
enum State {
    Gpu(Arc<Parcel>),
    /// What is done when it is waited for, unless it was done at once.
    Emulated(Mutex<Option<Deferred>>),
}

struct Deferred(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Deferred")
    }
}

impl Coming {
    /// Starts to copy bytes to a device.
    ///
    /// # Errors
    /// There is no room, or the device failed.
    pub fn new(cuda: &Arc<Cuda>, bytes: usize, from: Source) -> Result<Self> {
        cuda.expect_direct("a copy to the GPU")?;
        let tensor = Tensor::empty(&Device::Cuda(Arc::clone(cuda)), DType::U8, &[bytes])?;
        let address = tensor.view().cuda("copy to the GPU")?.1.data;
        let state = match &cuda.machine {
            Machine::Gpu(gpu) => State::Gpu(gpu.send(from, address)?),
            Machine::Emulated(emulated) => {
                let copy = move || emulated_copy(&from, address);
                State::Emulated(Mutex::new(emulated.defer(copy).map(Deferred)))
            }
        };
        Ok(Coming { delivery: Delivery { cuda: Arc::clone(cuda), state }, tensor })
    }

    /// The tensor, for work that is queued from now on.
    ///
    /// # Errors
    /// The copy failed.
    pub fn arrived(&self) -> Result<&Tensor> {
        self.delivery.receive()?;
        Ok(&self.tensor)
    }
}

fn emulated_copy(from: &Source, address: u64) {
    let bytes: &[u8] = (**from).as_ref();
    // SAFETY: the tensor that owns this address lives until the copy was made.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

impl Delivery {
    /// Makes what is queued from now on wait for the copy. The thread waits only until the courier has taken the bytes.
    fn receive(&self) -> Result<()> {
        match (&self.state, &self.cuda.machine) {
            (State::Gpu(parcel), Machine::Gpu(gpu)) => gpu.receive(parcel),
            (State::Emulated(deferred), _) => {
                let deferred = deferred.lock().unwrap_or_else(PoisonError::into_inner).take();
                deferred.into_iter().for_each(|Deferred(copy)| copy());
                Ok(())
            }
            (State::Gpu(_), Machine::Emulated(_)) => Ok(()),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // The memory is recycled next: whoever gets it must not be overtaken. A failure has been told, or nobody asks.
        let _ = self.receive();
    }
}

/// What a courier carries.
#[derive(Debug)]
pub(super) struct Parcel {
    /// Whether it is on the courier's queue, once that is known.
    handed_over: Mutex<Option<Result<(), String>>>,
    changed: Condvar,
    /// Recorded behind the copy.
    done: CudaEvent,
}

impl Parcel {
    fn hand_over(&self, result: Result<(), String>) {
        let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        handed_over.get_or_insert(result);
        self.changed.notify_all();
    }

    /// Waits for the courier, and makes a queue wait for the copy.
    pub fn receive(&self, queue: &CudaStream) -> Result<()> {
        let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let result = loop {
            match &*handed_over {
                Some(result) => break result.clone(),
                None => handed_over = self.changed.wait(handed_over).unwrap_or_else(PoisonError::into_inner),
            }
        };
        // Also after a failure, when a part may be under way.
        queue.wait(&self.done).map_err(|e| failed("copy to the GPU", e))?;
        result.map_err(Error::Cuda)
    }
}

struct Job {
    from: Source,
    address: u64,
    /// Recorded where the memory was free for the copy.
    free: CudaEvent,
    parcel: Arc<Parcel>,
}

impl Drop for Job {
    fn drop(&mut self) {
        // In case the courier came to grief with it: somebody may wait.
        self.parcel.hand_over(Err("copy to the GPU: the courier stopped".into()));
    }
}

/// A thread that hands copies to a queue of its own.
#[derive(Debug)]
pub(super) struct Courier {
    context: Arc<CudaContext>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Courier {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let queue = context.new_stream().map_err(|e| failed("queue of copies", e))?;
        let (jobs, received) = mpsc::channel();
        let own = Arc::clone(context);
        let thread = std::thread::Builder::new().name("courier".into());
        let thread = thread
            .spawn(move || carry(&own, &queue, &received))
            .map_err(|e| failed("thread of copies", e))?;
        Ok(Courier { context: Arc::clone(context), jobs: Some(jobs), thread: Some(thread) })
    }

    /// Takes bytes to a range of device memory that is the caller's from here on in `queue`.
    pub fn send(&self, from: Source, address: u64, queue: &CudaStream) -> Result<Arc<Parcel>> {
        let event = || self.context.new_event(None).map_err(|e| failed("copy to the GPU", e));
        let (free, done) = (event()?, event()?);
        free.record(queue).map_err(|e| failed("copy to the GPU", e))?;
        let parcel = Arc::new(Parcel { handed_over: Mutex::default(), changed: Condvar::new(), done });
        let job = Job { from, address, free, parcel: Arc::clone(&parcel) };
        // A job that is not taken tells so when it is dropped.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
        Ok(parcel)
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.jobs = None;
        // A courier that panicked has dropped its jobs.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn carry(context: &Arc<CudaContext>, queue: &CudaStream, jobs: &Receiver<Job>) {
    let mut staging = None;
    for job in jobs {
        let result = hand_over(context, queue, &job, &mut staging);
        let recorded = job.parcel.done.record(queue).map_err(|e| failed("copy to the GPU", e));
        job.parcel.hand_over(result.and(recorded).map_err(|e| e.to_string()));
    }
}

fn hand_over(
    context: &Arc<CudaContext>,
    queue: &CudaStream,
    job: &Job,
    staging: &mut Option<Staging>,
) -> Result<()> {
    let error = |e| failed("copy to the GPU", e);
    context.bind_to_thread().map_err(error)?;
    queue.wait(&job.free).map_err(error)?;
    if staging.is_none() {
        // Without page-locked memory it takes longer.
        *staging = Staging::new(context).ok();
    }
    let from = (*job.from).as_ref();
    match staging {
        Some(staging) => staging.copy(from, job.address, queue),
        // SAFETY: the range is the job's until its parcel was received. The driver copies ordinary memory before it
        // returns.
        None => unsafe { result::memcpy_htod_async(job.address, from, queue.cu_stream()) }.map_err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{check, copy};

    /// Bytes arrive whole, in memory that was in use just before, and what is queued after their use does not disturb them.
    #[test]
    fn gpus_get_bytes_ahead_of_their_use() {
        let Some(device) = check::open_gpu() else { return };
        let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
        const BYTES: usize = 9 << 20;
        let bytes = |seed: u8| -> Vec<u8> { (0..BYTES).map(|i| (i % 251) as u8 ^ seed).collect() };
        for seed in 0..6 {
            // The memory that the next one gets, with work on it that is queued.
            let mut before = Tensor::empty(&device, DType::F32, &[BYTES / 4]).unwrap();
            before.fill(1.0).unwrap();
            let mut after = before.empty_like(before.shape()).unwrap();
            copy::forward(before.view(), after.view_mut()).unwrap();
            drop(before);
            let coming = Coming::new(cuda, BYTES, Box::new(bytes(seed))).unwrap();
            let unused = Coming::new(cuda, BYTES, Box::new(bytes(seed))).unwrap();
            drop(unused);
            // It is recycled although the copy may be under way.
            let mut other = Tensor::empty(&device, DType::F32, &[BYTES / 4]).unwrap();
            other.fill(2.0).unwrap();
            assert!(coming.arrived().unwrap().to_bytes().unwrap() == bytes(seed), "{seed}");
            assert!(coming.arrived().is_ok());
            assert!(after.to_f32().unwrap().iter().all(|&x| x == 1.0), "{seed}");
            assert!(other.to_f32().unwrap().iter().all(|&x| x == 2.0), "{seed}");
        }
    }

    /// The emulated device shows who does not wait.
    #[test]
    fn a_wait_that_is_not_there_shows() {
        let Some(device) = check::emulated_gpu(usize::MAX) else { return };
        let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
        let seen: Vec<u8> = (0..2)
            .map(|_| {
                let coming = Coming::new(cuda, 4, Box::new(vec![7u8; 4])).unwrap();
                coming.tensor.to_bytes().unwrap()[0]
            })
            .collect();
        assert_eq!(seen, [7, 0xff]);
    }
}
