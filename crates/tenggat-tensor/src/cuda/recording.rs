//! Work that is recorded once and then asked for as a whole: a CUDA graph, which spares the processor a call for each
//! kernel and the GPU the gaps between them.
//!
//! What is recorded is not done. Addresses and numbers are kept as they were, so that only the contents of memory differ
//! from time to time; tensors that are made on the way have meaningful contents only after [`Recording::replay`].

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use super::{Cuda, Machine, emulated, gpu};
use crate::{Error, Result};

/// Orders of two lanes in which an emulated device does recorded work, one after the other: whether the side lane begins, and
/// of how many calls the turns are.
const ORDERS: [(bool, usize); 3] = [(false, usize::MAX), (true, usize::MAX), (true, 1)];

#[derive(Debug)]
enum Work {
    Graph(gpu::Graph),
    /// With how often it was done.
    Calls(Vec<emulated::Recorded>, AtomicUsize),
}

/// Recorded work of one device.
///
/// Memory that the work uses beyond tensors that outlive the recording is kept for it, and for all recordings of the device
/// together; when the device has no room left, it is taken away from all of them.
#[derive(Debug)]
pub struct Recording {
    cuda: Arc<Cuda>,
    era: u64,
    work: Work,
}

impl Recording {
    /// Asks for the work. Returns whether that was possible: it is not once the device needed the memory.
    ///
    /// # Errors
    /// The device failed.
    pub fn replay(&self) -> Result<bool> {
        self.cuda.expect_direct("recorded work")?;
        if self.cuda.pool.era() != self.era {
            return Ok(false);
        }
        match (&self.work, &self.cuda.machine) {
            (Work::Graph(graph), Machine::Gpu(gpu)) => gpu.replay(graph)?,
            (Work::Calls(work, times), _) => {
                let (side_first, turn) = ORDERS[times.fetch_add(1, Relaxed) % ORDERS.len()];
                emulated::replay(work, side_first, turn)?;
            }
            (Work::Graph(_), Machine::Emulated(_)) => return Ok(false),
        }
        Ok(true)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.cuda.pool.forget_recording(self.era);
    }
}

/// A recording that is under way; dropping it gives it up.
struct Open<'a>(&'a Arc<Cuda>);

impl<'a> Open<'a> {
    fn new(cuda: &'a Arc<Cuda>) -> Result<Self> {
        if cuda.is_recording.swap(true, Relaxed) {
            return Err(Error::Cuda("a recording within a recording".into()));
        }
        let open = Open(cuda);
        match &cuda.machine {
            Machine::Gpu(gpu) => gpu.begin_recording()?,
            Machine::Emulated(emulated) => emulated.begin_recording(),
        }
        cuda.pool.begin_recording();
        Ok(open)
    }

    fn end(self) -> Result<Recording> {
        let work = match &self.0.machine {
            Machine::Gpu(gpu) => Work::Graph(gpu.end_recording()?),
            Machine::Emulated(emulated) => Work::Calls(emulated.end_recording(), AtomicUsize::new(0)),
        };
        Ok(Recording { cuda: Arc::clone(self.0), era: self.0.pool.keep_recording(), work })
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.is_recording.store(false, Relaxed);
        self.0.pool.end_recording();
        match &self.0.machine {
            // A capture that failed has to be ended all the same; what came of it is not wanted.
            Machine::Gpu(gpu) => gpu.give_up_recording(),
            Machine::Emulated(emulated) => drop(emulated.end_recording()),
        }
    }
}

impl Cuda {
    /// Records what `work` asks of the device, without its being done. Whatever `work` needs that depends on shapes
    /// alone (kernels, plans, constants) has to be there, as it is after the same work was done once. No other thread may
    /// ask anything of the device meanwhile.
    ///
    /// # Errors
    /// Those of `work`; it reads or writes the host's memory; there is no room; the device failed.
    pub fn record<T, E: From<Error>>(
        self: &Arc<Self>,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Recording), E> {
        let open = Open::new(self)?;
        let made = work()?;
        Ok((made, open.end()?))
    }

    /// Refuses what cannot be part of a recording.
    pub(super) fn expect_direct(&self, what: &str) -> Result<()> {
        match self.is_recording.load(Relaxed) {
            false => Ok(()),
            true => Err(Error::Cuda(format!("{what} cannot be recorded"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{check, copy, gemm};
    use crate::{DType, Device, Tensor};

    fn cuda(device: &Device) -> Arc<Cuda> {
        let Device::Cuda(cuda) = device else { panic!("not a GPU") };
        Arc::clone(cuda)
    }

    fn matrix(device: &Device, values: &[f64]) -> Tensor {
        Tensor::from_f64(device, DType::F32, values, &[2, 2]).unwrap()
    }

    /// `x·x + x`, by way of a tensor that is gone at the end.
    fn work(x: &Tensor) -> Result<Tensor> {
        let mut squared = x.empty_like(x.shape())?;
        gemm::nn(1.0, x.view(), x.view(), 0.0, squared.view_mut())?;
        let mut sum = x.empty_like(x.shape())?;
        copy::forward(squared.view(), sum.view_mut())?;
        copy::add_scaled(1.0, x.view(), sum.view_mut())?;
        Ok(sum)
    }

    #[test]
    fn gpus_do_recorded_work_anew_on_what_memory_holds() {
        let Some(device) = check::open_gpu() else { return };
        let cuda = cuda(&device);
        let mut x = matrix(&device, &[1.0, 2.0, 3.0, 4.0]);
        let mut count = matrix(&device, &[0.0; 4]);
        let (sum, recording) = cuda
            .record(|| {
                copy::add_scaled(1.0, x.view(), count.view_mut())?;
                work(&x)
            })
            .unwrap();
        assert_eq!(count.to_f64().unwrap(), [0.0; 4], "recording is not doing");
        for factor in [1.0, 2.0] {
            let now = matrix(&device, &[1.0, 2.0, 3.0, 4.0].map(|v| factor * v));
            copy::forward(now.view(), x.view_mut()).unwrap();
            // Memory of others that comes and goes is not that of the recording.
            let others = work(&now).unwrap();
            assert!(recording.replay().unwrap());
            assert_eq!(sum.to_f64().unwrap(), others.to_f64().unwrap());
            assert_eq!(sum.to_f64().unwrap()[0], 7.0 * factor * factor + factor);
        }
        assert_eq!(count.to_f64().unwrap()[0], 1.0 + 2.0);
    }

    /// What a recording took and gave back is nobody else's, and everybody's once there is no recording.
    #[test]
    fn memory_of_recordings_is_set_aside() {
        let Some(device) = check::emulated_gpu(usize::MAX) else { return };
        let cuda = cuda(&device);
        let mut x = matrix(&device, &[1.0; 4]);
        drop(work(&x).unwrap());
        let before = device.peak_bytes();
        let (sum, recording) = cuda.record(|| work(&x)).unwrap();
        assert_eq!(device.peak_bytes(), before, "a warm recording allocates nothing");
        let mut others = [x.duplicate().unwrap(), x.duplicate().unwrap()];
        others.iter_mut().for_each(|other| other.fill(5.0).unwrap());
        assert!(recording.replay().unwrap());
        for other in &others {
            assert_eq!(other.to_f64().unwrap(), [5.0; 4]);
        }
        x.fill(0.0).unwrap();
        let (again, second) = cuda.record(|| work(&sum)).unwrap();
        assert!(recording.replay().unwrap() && second.replay().unwrap());
        assert_eq!(again.to_f64().unwrap(), [0.0; 4]);
        drop((recording, second, again, sum, others));
        device.trim();
        assert_eq!(cuda.pool.held_bytes(), device.live_bytes());
    }

    #[test]
    fn recordings_give_way_when_memory_is_short() {
        let Some(device) = check::emulated_gpu(64 << 10) else { return };
        let cuda = cuda(&device);
        let x = matrix(&device, &[1.0; 4]);
        let big = |bytes: usize| Tensor::empty(&device, DType::U8, &[bytes]);
        let (sum, recording) = cuda
            .record(|| {
                drop(big(32 << 10)?);
                work(&x)
            })
            .unwrap();
        assert!(recording.replay().unwrap());
        let other = big(48 << 10).unwrap();
        assert!(!recording.replay().unwrap());
        drop((recording, other));
        assert!(work(&sum).is_ok());
        // One that does not fit leaves a device that works.
        let Err(Error::OutOfMemory { .. }) = cuda.record(|| big(128 << 10)) else { panic!("it fits") };
        assert_eq!(work(&x).unwrap().to_f64().unwrap(), [3.0; 4]);
    }

    #[test]
    fn what_needs_the_host_is_not_recorded() {
        let Some(device) = check::emulated_gpu(usize::MAX) else { return };
        let cuda = cuda(&device);
        let x = matrix(&device, &[1.0; 4]);
        let uploads = cuda.record(|| Tensor::from_f64(&device, DType::F32, &[1.0], &[1]).map(drop));
        let downloads = cuda.record(|| x.to_f64().map(drop));
        let nested = cuda.record(|| cuda.record(|| work(&x)).map(drop));
        for (refused, what) in
            [(uploads.err(), "to the GPU"), (downloads.err(), "from the GPU"), (nested.err(), "within")]
        {
            assert!(refused.is_some_and(|e| e.to_string().contains(what)), "{what}");
        }
        assert_eq!(work(&x).unwrap().to_f64().unwrap(), [3.0; 4]);
    }
}
