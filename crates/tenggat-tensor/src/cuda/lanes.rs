//! Recorded work that goes in two lanes: what one asks for does not wait for the other.
//!
//! A small piece of work beside a large one then costs nothing where the large one leaves units idle. Only recorded work is
//! split: asked for kernel by kernel, the processor would be no faster with two queues than with one.

use std::sync::atomic::Ordering::Relaxed;

use super::{Cuda, Machine};
use crate::Result;

/// Where everything goes that is not told otherwise.
pub(super) const MAIN: usize = 0;
/// The other lane.
pub(super) const SIDE: usize = 1;
/// How many there are.
pub(super) const LANES: usize = 2;

impl Cuda {
    /// Lane that is asked now.
    pub(super) fn lane(&self) -> usize {
        self.lane.load(Relaxed)
    }

    /// Asks for `aside`, then for `main`, which may be done at the same time, and after both for what comes next. Neither
    /// reads what the other writes, writes what the other reads, or lets go of what the other uses. `shared` is for
    /// what both change on the host, and for tensors of which each writes a part of its own.
    pub(crate) fn both<C, A, B, E: From<crate::Error>>(
        &self,
        shared: &mut C,
        aside: impl FnOnce(&mut C) -> Result<A, E>,
        main: impl FnOnce(&mut C) -> Result<B, E>,
    ) -> Result<(A, B), E> {
        if !self.is_recording.load(Relaxed) || self.lane() != MAIN {
            return Ok((aside(shared)?, main(shared)?));
        }
        match &self.machine {
            Machine::Gpu(gpu) => gpu.fork()?,
            Machine::Emulated(emulated) => emulated.fork(),
        }
        let region = Region(self);
        region.enter(SIDE);
        let a = aside(shared)?;
        region.enter(MAIN);
        let b = main(shared)?;
        match &self.machine {
            Machine::Gpu(gpu) => gpu.join()?,
            Machine::Emulated(emulated) => emulated.join(),
        }
        Ok((a, b))
    }
}

/// The time during which there are two lanes.
struct Region<'a>(&'a Cuda);

impl Region<'_> {
    fn enter(&self, lane: usize) {
        self.0.lane.store(lane, Relaxed);
        self.0.pool.set_lane(Some(lane));
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        self.0.lane.store(MAIN, Relaxed);
        self.0.pool.set_lane(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::ops::{check, copy, gemm};
    use crate::{DType, Device, Error, Tensor};

    fn number(device: &Device, value: f64) -> Tensor {
        Tensor::from_f64(device, DType::F32, &[value], &[1, 1]).unwrap()
    }

    /// `x + 1`, by way of tensors that are let go of, and of the library of products.
    fn next(x: &Tensor) -> Result<Tensor, Error> {
        let (mut one, mut more, mut sum) =
            (x.empty_like(&[1, 1])?, x.empty_like(&[1, 1])?, x.empty_like(&[1, 1])?);
        one.fill(1.0)?;
        copy::forward(one.view(), more.view_mut())?;
        copy::add_scaled(1.0, x.view(), more.view_mut())?;
        gemm::nn(1.0, more.view(), one.view(), 0.0, sum.view_mut())?;
        Ok(sum)
    }

    /// Lanes come to the same in every order, whatever they take and let go of, and what comes next waits for both.
    #[test]
    fn gpus_keep_lanes_apart() {
        let Some(device) = check::open_gpu() else { return };
        let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
        // Lanes hold other numbers at each step.
        let (mut x, far) = (number(&device, 0.0), number(&device, 5.0));
        let work = || {
            let first = next(&x)?;
            let ((a, b), count) = {
                let mut count = 0;
                let two = device.both(
                    &mut count,
                    |count| {
                        *count += 1;
                        next(&next(&first)?)
                    },
                    |count| {
                        *count += 1;
                        next(&next(&next(&far)?)?)
                    },
                )?;
                (two, count)
            };
            assert_eq!(count, 2);
            let mut sum = next(&a)?;
            copy::add_scaled(10.0, b.view(), sum.view_mut())?;
            Ok::<_, Error>(sum)
        };
        let direct = work().unwrap().to_f64().unwrap();
        assert_eq!(direct, [4.0 + 80.0]);
        let (sum, recording) = Arc::clone(cuda).record(work).unwrap();
        for _ in 0..6 {
            assert!(recording.replay().unwrap());
            assert_eq!(sum.to_f64().unwrap(), direct);
        }
        drop((sum, recording));
        x.fill(1.0).unwrap();
        assert_eq!(next(&x).unwrap().to_f64().unwrap(), [2.0]);
    }

    /// The emulated device shows a lane that relies on the other.
    #[test]
    fn an_order_that_is_not_there_shows() {
        let Some(device) = check::emulated_gpu(usize::MAX) else { return };
        let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
        let mut x = number(&device, 1.0);
        let mut copied = number(&device, 0.0);
        let wrong = || device.both(&mut x, |x| x.fill(2.0), |x| copy::forward(x.view(), copied.view_mut()));
        let (_, recording) = cuda.record(wrong).unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            x.fill(1.0).unwrap();
            assert!(recording.replay().unwrap());
            seen.push(copied.to_f64().unwrap()[0]);
        }
        assert_eq!(seen, [1.0, 2.0]);
    }

    #[test]
    fn a_lane_that_fails_leaves_one_lane() {
        let Some(device) = check::emulated_gpu(usize::MAX) else { return };
        let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
        let x = number(&device, 1.0);
        let failing = || {
            let aside = |(): &mut ()| x.to_f64();
            device.both(&mut (), aside, |()| next(&x)).map(drop)
        };
        assert!(cuda.record(failing).is_err());
        assert_eq!(next(&next(&x).unwrap()).unwrap().to_f64().unwrap(), [3.0]);
        assert!(cuda.record(|| next(&x)).is_ok());
    }
}
