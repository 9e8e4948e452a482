//! Copies to a device beside its work.

use tenggat_gpu::{Buffer, Prefetch};

use crate::ops::{check, copy};
use crate::{DType, Device, Tensor};

fn contents(buffer: &Buffer, bytes: usize) -> Vec<u8> {
    let mut contents = vec![0; bytes];
    buffer.cuda().download(buffer.address(), &mut contents).unwrap();
    contents
}

/// Bytes arrive whole, in memory that was in use just before, and what is queued after their use does not
/// disturb them. They are more than the page-locked ring holds, so that its pieces are taken again while
/// copies from them are under way.
#[test]
fn gpus_get_bytes_ahead_of_their_use() {
    let Some(device) = check::open_gpu() else { return };
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    const BYTES: usize = 37 << 20;
    let bytes = |seed: u8| -> Vec<u8> { (0..BYTES).map(|i| (i % 251) as u8 ^ seed).collect() };
    for seed in 0..6 {
        // The memory that the next one gets, with work on it that is queued.
        let mut before = Tensor::empty(&device, DType::F32, &[BYTES / 4]).unwrap();
        before.fill(1.0).unwrap();
        let mut after = before.empty_like(before.shape()).unwrap();
        copy::forward(before.view(), after.view_mut()).unwrap();
        drop(before);
        let coming = Prefetch::new(cuda, BYTES, Box::new(bytes(seed))).unwrap();
        let unused = Prefetch::new(cuda, BYTES, Box::new(bytes(seed))).unwrap();
        drop(unused);
        // It is recycled although the copy may be under way.
        let mut other = Tensor::empty(&device, DType::F32, &[BYTES / 4]).unwrap();
        other.fill(2.0).unwrap();
        assert!(contents(coming.arrived().unwrap(), BYTES) == bytes(seed), "{seed}");
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
            let coming = Prefetch::new(cuda, 4, Box::new(vec![7u8; 4])).unwrap();
            contents(coming.buffer(), 4)[0]
        })
        .collect();
    assert_eq!(seen, [7, 0xff]);
}
