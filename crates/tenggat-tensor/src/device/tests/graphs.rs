//! CUDA graphs of ops.

use std::sync::Arc;

use tenggat_gpu::Cuda;

use crate::ops::{check, copy, gemm};
use crate::{DType, Device, Error, Result, Tensor};

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
fn gpus_replay_graphs_on_what_memory_holds() {
    let Some(device) = check::open_gpu() else { return };
    let cuda = cuda(&device);
    let mut x = matrix(&device, &[1.0, 2.0, 3.0, 4.0]);
    let mut count = matrix(&device, &[0.0; 4]);
    let (sum, graph) = cuda
        .capture(|| {
            copy::add_scaled(1.0, x.view(), count.view_mut())?;
            work(&x)
        })
        .unwrap();
    assert_eq!(count.to_f64().unwrap(), [0.0; 4], "a capture runs nothing");
    for factor in [1.0, 2.0] {
        let now = matrix(&device, &[1.0, 2.0, 3.0, 4.0].map(|v| factor * v));
        copy::forward(now.view(), x.view_mut()).unwrap();
        // Memory of others that comes and goes is not that of the graph.
        let others = work(&now).unwrap();
        assert!(graph.replay().unwrap());
        assert_eq!(sum.to_f64().unwrap(), others.to_f64().unwrap());
        assert_eq!(sum.to_f64().unwrap()[0], 7.0 * factor * factor + factor);
    }
    assert_eq!(count.to_f64().unwrap()[0], 1.0 + 2.0);
}

/// What a graph allocated and freed is nobody else's, and everybody's once there is no graph.
#[test]
fn memory_of_graphs_is_set_aside() {
    let Some(device) = check::emulated_gpu(usize::MAX) else { return };
    let cuda = cuda(&device);
    let mut x = matrix(&device, &[1.0; 4]);
    drop(work(&x).unwrap());
    let before = device.peak_bytes();
    let (sum, graph) = cuda.capture(|| work(&x)).unwrap();
    assert_eq!(device.peak_bytes(), before, "a warm capture allocates nothing");
    let mut others = [x.duplicate().unwrap(), x.duplicate().unwrap()];
    others.iter_mut().for_each(|other| other.fill(5.0).unwrap());
    assert!(graph.replay().unwrap());
    for other in &others {
        assert_eq!(other.to_f64().unwrap(), [5.0; 4]);
    }
    x.fill(0.0).unwrap();
    let (again, second) = cuda.capture(|| work(&sum)).unwrap();
    assert!(graph.replay().unwrap() && second.replay().unwrap());
    assert_eq!(again.to_f64().unwrap(), [0.0; 4]);
    drop((graph, second, again, sum, others));
    device.trim();
    assert_eq!(cuda.held_bytes(), device.live_bytes());
}

/// Where there is no other room, direct work borrows what is set aside for graphs, and they are replayed once
/// it is back.
#[test]
fn direct_work_borrows_what_graphs_set_aside() {
    let Some(device) = check::emulated_gpu(64 << 10) else { return };
    let cuda = cuda(&device);
    let mut x = matrix(&device, &[1.0; 4]);
    let bytes = |bytes: usize| Tensor::empty(&device, DType::U8, &[bytes]);
    let (sum, graph) = cuda
        .capture(|| {
            drop([bytes(20 << 10)?, bytes(20 << 10)?]);
            work(&x)
        })
        .unwrap();
    for value in [1.0, 2.0, 3.0] {
        // As passes of another shape are: several large tensors at once, of sizes that no graph uses.
        let others = [bytes(19 << 10).unwrap(), bytes(18 << 10).unwrap(), bytes(17 << 10).unwrap()];
        assert!(!graph.replay().unwrap(), "memory that is on loan is in use");
        drop(others);
        x.fill(value).unwrap();
        assert!(graph.replay().unwrap());
        assert_eq!(sum.to_f64().unwrap()[0], 2.0 * value * value + value);
    }
    // Another capture shares it as well, in sizes that do not match.
    let (again, second) = cuda
        .capture(|| {
            drop(bytes(18 << 10)?);
            work(&x)
        })
        .unwrap();
    assert!(second.replay().unwrap() && graph.replay().unwrap());
    assert_eq!(again.to_f64().unwrap()[0], 21.0);
}

#[test]
fn graphs_give_way_when_memory_is_short() {
    let Some(device) = check::emulated_gpu(64 << 10) else { return };
    let cuda = cuda(&device);
    let x = matrix(&device, &[1.0; 4]);
    let big = |bytes: usize| Tensor::empty(&device, DType::U8, &[bytes]);
    let (sum, graph) = cuda
        .capture(|| {
            drop(big(32 << 10)?);
            work(&x)
        })
        .unwrap();
    assert!(graph.replay().unwrap());
    let other = big(48 << 10).unwrap();
    assert!(!graph.replay().unwrap());
    drop((graph, other));
    assert!(work(&sum).is_ok());
    // One that does not fit leaves a device that works.
    let Err(Error::OutOfMemory { .. }) = cuda.capture(|| big(128 << 10)) else { panic!("it fits") };
    assert_eq!(work(&x).unwrap().to_f64().unwrap(), [3.0; 4]);
}

#[test]
fn what_needs_the_host_is_not_captured() {
    let Some(device) = check::emulated_gpu(usize::MAX) else { return };
    let cuda = cuda(&device);
    let x = matrix(&device, &[1.0; 4]);
    let uploads = cuda.capture(|| Tensor::from_f64(&device, DType::F32, &[1.0], &[1]).map(drop));
    let downloads = cuda.capture(|| x.to_f64().map(drop));
    let nested = cuda.capture(|| cuda.capture(|| work(&x)).map(drop));
    for (refused, what) in
        [(uploads.err(), "to the GPU"), (downloads.err(), "from the GPU"), (nested.err(), "within")]
    {
        assert!(refused.is_some_and(|e| e.to_string().contains(what)), "{what}");
    }
    assert_eq!(work(&x).unwrap().to_f64().unwrap(), [3.0; 4]);
}
