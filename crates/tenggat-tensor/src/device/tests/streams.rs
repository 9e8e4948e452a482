//! Captured ops that go in two streams.

use std::sync::Arc;

use crate::ops::{check, copy, gemm};
use crate::{DType, Device, Error, Tensor};

fn number(device: &Device, value: f64) -> Tensor {
    Tensor::from_f64(device, DType::F32, &[value], &[1, 1]).unwrap()
}

/// `x + 1`, by way of tensors that are freed at once, and of the library of products.
fn next(x: &Tensor) -> Result<Tensor, Error> {
    let (mut one, mut more, mut sum) =
        (x.empty_like(&[1, 1])?, x.empty_like(&[1, 1])?, x.empty_like(&[1, 1])?);
    one.fill(1.0)?;
    copy::forward(one.view(), more.view_mut())?;
    copy::add_scaled(1.0, x.view(), more.view_mut())?;
    gemm::nn(1.0, more.view(), one.view(), 0.0, sum.view_mut())?;
    Ok(sum)
}

/// Every interleaving of the two streams gives the same result, whatever they allocate and free, and later
/// work waits for both.
#[test]
fn gpus_keep_streams_apart() {
    let Some(device) = check::open_gpu() else { return };
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    // Streams hold other numbers at each step.
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
    let (sum, graph) = Arc::clone(cuda).capture(work).unwrap();
    for _ in 0..6 {
        assert!(graph.replay().unwrap());
        assert_eq!(sum.to_f64().unwrap(), direct);
    }
    drop((sum, graph));
    x.fill(1.0).unwrap();
    assert_eq!(next(&x).unwrap().to_f64().unwrap(), [2.0]);
}

/// The emulated device shows a stream that relies on the other.
#[test]
fn an_order_that_is_not_there_shows() {
    let Some(device) = check::emulated_gpu(usize::MAX) else { return };
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let mut x = number(&device, 1.0);
    let mut copied = number(&device, 0.0);
    let wrong = || device.both(&mut x, |x| x.fill(2.0), |x| copy::forward(x.view(), copied.view_mut()));
    let (_, graph) = cuda.capture(wrong).unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        x.fill(1.0).unwrap();
        assert!(graph.replay().unwrap());
        seen.push(copied.to_f64().unwrap()[0]);
    }
    assert_eq!(seen, [1.0, 2.0]);
}

#[test]
fn a_stream_that_fails_leaves_one_stream() {
    let Some(device) = check::emulated_gpu(usize::MAX) else { return };
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let x = number(&device, 1.0);
    let failing = || {
        let aside = |(): &mut ()| x.to_f64();
        device.both(&mut (), aside, |()| next(&x)).map(drop)
    };
    assert!(cuda.capture(failing).is_err());
    assert_eq!(next(&next(&x).unwrap()).unwrap().to_f64().unwrap(), [3.0]);
    assert!(cuda.capture(|| next(&x)).is_ok());
}
