//! A thread that copies to a device beside its work.
//!
//! It takes the bytes to page-locked memory, and a stream of its own fetches them from there, so that neither
//! the caller nor the main stream waits before the bytes are wanted.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use crate::error::failed;
use crate::staging::Staging;
use crate::{Error, Result};

/// Where bytes come from: whoever holds them keeps them as they are.
pub type Source = Box<dyn AsRef<[u8]> + Send + Sync>;

/// A copy that was handed to the thread.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Whether it is in the thread's stream, once that is known.
    handed_over: Mutex<Option<Result<(), String>>>,
    changed: Condvar,
    /// Recorded behind the copy.
    done: CudaEvent,
}

impl Transfer {
    fn hand_over(&self, result: Result<(), String>) {
        let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        handed_over.get_or_insert(result);
        self.changed.notify_all();
    }

    /// Waits for the thread, and makes a stream wait for the copy.
    pub fn receive(&self, stream: &CudaStream) -> Result<()> {
        let mut handed_over = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let result = loop {
            match &*handed_over {
                Some(result) => break result.clone(),
                None => handed_over = self.changed.wait(handed_over).unwrap_or_else(PoisonError::into_inner),
            }
        };
        // Also after a failure, when a part may be under way.
        stream.wait(&self.done).map_err(|e| failed("copy to the GPU", e))?;
        result.map_err(Error::Failed)
    }
}

struct Job {
    from: Source,
    address: u64,
    /// Recorded where the memory was free for the copy.
    free: CudaEvent,
    transfer: Arc<Transfer>,
}

impl Drop for Job {
    fn drop(&mut self) {
        // In case the thread panicked with it: somebody may wait.
        self.transfer.hand_over(Err("copy to the GPU: the thread of copies stopped".into()));
    }
}

/// A thread that hands copies to a stream of its own.
#[derive(Debug)]
pub(crate) struct Copier {
    context: Arc<CudaContext>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let stream = context.new_stream().map_err(|e| failed("stream of copies", e))?;
        let (jobs, received) = mpsc::channel();
        let own = Arc::clone(context);
        let thread = std::thread::Builder::new().name("copier".into());
        let thread = thread
            .spawn(move || carry(&own, &stream, &received))
            .map_err(|e| failed("thread of copies", e))?;
        Ok(Copier { context: Arc::clone(context), jobs: Some(jobs), thread: Some(thread) })
    }

    /// Takes bytes to a range of device memory that is the caller's from here on in `stream`.
    pub fn send(&self, from: Source, address: u64, stream: &CudaStream) -> Result<Arc<Transfer>> {
        let event = || self.context.new_event(None).map_err(|e| failed("copy to the GPU", e));
        let (free, done) = (event()?, event()?);
        free.record(stream).map_err(|e| failed("copy to the GPU", e))?;
        let transfer = Arc::new(Transfer { handed_over: Mutex::default(), changed: Condvar::new(), done });
        let job = Job { from, address, free, transfer: Arc::clone(&transfer) };
        // A job that is not taken tells so when it is dropped.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
        Ok(transfer)
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.jobs = None;
        // A thread that panicked has dropped its jobs.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn carry(context: &Arc<CudaContext>, stream: &CudaStream, jobs: &Receiver<Job>) {
    let mut staging = None;
    for job in jobs {
        let result = hand_over(context, stream, &job, &mut staging);
        let recorded = job.transfer.done.record(stream).map_err(|e| failed("copy to the GPU", e));
        job.transfer.hand_over(result.and(recorded).map_err(|e| e.to_string()));
    }
}

fn hand_over(
    context: &Arc<CudaContext>,
    stream: &CudaStream,
    job: &Job,
    staging: &mut Option<Staging>,
) -> Result<()> {
    let error = |e| failed("copy to the GPU", e);
    context.bind_to_thread().map_err(error)?;
    stream.wait(&job.free).map_err(error)?;
    if staging.is_none() {
        // Without page-locked memory it takes longer.
        *staging = Staging::new(context).ok();
    }
    let from = (*job.from).as_ref();
    match staging {
        Some(staging) => staging.copy(from, job.address, stream),
        // SAFETY: the range is the job's until its transfer was received. The driver copies ordinary memory
        // before it returns.
        None => unsafe { result::memcpy_htod_async(job.address, from, stream.cu_stream()) }.map_err(error),
    }
}
