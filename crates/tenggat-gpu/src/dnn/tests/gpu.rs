//! Attention on a GPU, where there is one.

use std::sync::Arc;

use cudarc::driver::{self, CudaContext, CudaSlice, CudaStream, DevicePtr};
use half::bf16;

use super::super::tensor::Operand;
use super::super::tensor::Tensor as Layout;
use super::super::{Backward, Dnn, Forward, Shape};
use super::interpret::{gather, scatter};
use super::reference::Reference;
use super::{libraries, mixed};
use crate::DType;

/// Tensors of one stream.
struct Device(Arc<CudaStream>);

impl Device {
    fn upload(&self, bytes: Vec<u8>) -> CudaSlice<u8> {
        self.0.clone_htod(&bytes).unwrap()
    }

    /// Bytes that read as NaN where nobody writes.
    fn poisoned(&self, bytes: usize) -> CudaSlice<u8> {
        self.upload(vec![0xff; bytes.max(1)])
    }

    /// bf16 values, with NaN in the gaps of the layout.
    fn values(&self, layout: &Layout, dense: &[f64]) -> CudaSlice<u8> {
        let elements = scatter(layout, dense);
        self.upload(elements.into_iter().flat_map(|x| bf16::from_f64(x).to_le_bytes()).collect())
    }

    fn lengths(&self, lengths: &[usize]) -> CudaSlice<u8> {
        self.upload(lengths.iter().flat_map(|&n| (n as i32).to_le_bytes()).collect())
    }

    fn address(&self, buffer: &CudaSlice<u8>) -> u64 {
        buffer.device_ptr(&self.0).0
    }

    fn download<const N: usize>(&self, buffer: &CudaSlice<u8>, element: fn([u8; N]) -> f64) -> Vec<f64> {
        let bytes = self.0.clone_dtoh(buffer).unwrap();
        bytes.as_chunks::<N>().0.iter().map(|&bytes| element(bytes)).collect()
    }
}

/// Forward and backward on bf16 inputs against the CPU in f64 on the same inputs, with new plans and with
/// plans from files.
///
/// Tolerances: results are rounded to bf16 (2⁻⁹), and so are P, dS and O on the way; a few times that of the
/// largest value. The log-sum-exp stays f32.
#[test]
fn a_gpu_agrees_with_the_cpu() {
    // SAFETY: loading runs the driver's initialisers, which ask nothing of the process.
    let driver = unsafe { driver::sys::is_culib_present() };
    let context = if driver { CudaContext::new(0).ok() } else { None };
    let Some(context) = context.filter(|_| libraries()) else {
        tenggat_skip::skipped("no GPU");
        return;
    };
    let device = Device(context.new_stream().unwrap());
    let plans = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let dnn = Dnn::open(device.0.cu_stream().cast(), Some(plans.path().to_owned())).unwrap();
        eprintln!("cuDNN {}", dnn.version());
        for shape in [Shape::separate(2, 256, 2, 128), Shape::packed(2, 333, 3, 64), mixed(2, 97, 2, 128)] {
            let tokens = shape.tokens;
            agree(&device, &dnn, &Reference::new(shape, &[tokens, 61], &[tokens; 2], DType::BF16));
            agree(&device, &dnn, &Reference::new(shape, &[77, tokens], &[77, tokens], DType::BF16));
        }
    }
    assert_eq!(std::fs::read_dir(plans.path()).unwrap().count(), 6);
    tails_are_masked(&device);
}

/// Lengths that end in the middle of a kernel's tile of 128 keys, where kernels of Hopper were known to leave
/// the tail unmasked; and rows whose scores are all about −100, below where exp gives an f32 above 0.
fn tails_are_masked(device: &Device) {
    let dnn = Dnn::open(device.0.cu_stream().cast(), None).unwrap();
    for (tokens, lengths) in [(192, [192, 64]), (320, [192, 320]), (448, [448, 320])] {
        let shape = Shape::separate(2, tokens, 2, 128);
        let plain = Reference::new(shape, &lengths, &[tokens; 2], DType::BF16);
        agree(device, &dnn, &plain);
        let mut inputs = plain.inputs.clone();
        // With both along one axis all scores are near −100: scale · 128 · 8.8 · −1 = −99.6.
        inputs[0].iter_mut().for_each(|q| *q = bf16::from_f64(8.8 + q.abs() / 64.0).to_f64());
        inputs[1].iter_mut().for_each(|k| *k = bf16::from_f64(-1.0 - k.abs() / 64.0).to_f64());
        agree(device, &dnn, &Reference::of(shape, &lengths, &[tokens; 2], inputs));
    }
}

fn agree(device: &Device, dnn: &Dnn, reference: &Reference) {
    let (shape, scale) = (reference.shape, reference.scale as f32);
    let [q, k, v, d_o] = &reference.inputs;
    let layout = |strides| shape.values("", Operand::Q, strides);
    let output = layout(shape.output());
    let [q, k, v, d_o] = [(shape.q, q), (shape.k, k), (shape.v, v), (shape.output(), d_o)]
        .map(|(strides, dense)| device.values(&layout(strides), dense));
    let o = device.poisoned(d_o.len());
    let stats = device.poisoned(4 * shape.batch * shape.heads * shape.tokens);
    let [dq, dk, dv] = [&q, &k, &v].map(|buffer| device.poisoned(buffer.len()));
    let [k_lens, q_lens] =
        [&reference.key_lens, &reference.query_lens].map(|lengths| device.lengths(lengths));
    let saved = Forward {
        q: device.address(&q),
        k: device.address(&k),
        v: device.address(&v),
        o: device.address(&o),
        stats: device.address(&stats),
        key_lengths: device.address(&k_lens),
        query_lengths: device.address(&q_lens),
    };
    let workspace = device.poisoned(dnn.forward_workspace(shape).unwrap());
    dnn.forward(shape, saved, scale, device.address(&workspace)).unwrap();
    let operands = Backward {
        saved,
        d_o: device.address(&d_o),
        dq: device.address(&dq),
        dk: device.address(&dk),
        dv: device.address(&dv),
    };
    let workspace = device.poisoned(dnn.backward_workspace(shape).unwrap());
    dnn.backward(shape, operands, scale, device.address(&workspace)).unwrap();

    eprintln!("{shape:?}, keys {:?}, queries {:?}", reference.key_lens, reference.query_lens);
    let single = |bytes| f64::from(f32::from_le_bytes(bytes));
    let half = |bytes| bf16::from_le_bytes(bytes).to_f64();
    let rows = shape.rows("", Operand::Stats);
    reference.compare(0, &gather(&output, &device.download(&o, half)), 0.02);
    reference.compare(1, &gather(&rows, &device.download(&stats, single)), 1e-3);
    for (result, buffer, strides) in [(2, &dq, shape.q), (3, &dk, shape.k), (4, &dv, shape.v)] {
        reference.compare(result, &gather(&layout(strides), &device.download(buffer, half)), 0.02);
    }
}
