//! Flat adapters of more than 2³¹ elements, such as rank 256 on all layers has: the last blocks of each
//! launch, over memory of which only what they touch is there.

use tenggat_gpu::Emulation;

use crate::ops::{adamw, adamw8bit, check, copy, lion, prodigy};
use crate::{DType, Device, Result, Tensor};

/// Elements of all matrices of an adapter of rank 256 on every linear of Qwen-Image's blocks.
const LEN: usize = 9_437_184 * 256;
/// Elements at the end that hold numbers. The last blocks of every launch cover them.
const END: usize = 512;
const BLOCKS: u32 = 8;

/// A flat tensor of so many elements that is 0 but for its end.
fn flat(device: &Device, dtype: DType, len: usize, end: &Tensor) -> Tensor {
    let mut tensor = match device {
        Device::Cpu(_) => Tensor::zeros(device, dtype, &[1, len]).unwrap(),
        Device::Cuda(_) => Tensor::empty(device, dtype, &[1, len]).unwrap(),
    };
    let end = end.to_dtype(dtype).unwrap().into_device(device).unwrap();
    copy::forward(end.view(), tensor.matrix_mut(len - END, 1, END).unwrap()).unwrap();
    tensor
}

/// An op on three tensors, with a factor for gradients.
type Pass = fn([&mut Tensor; 3], &Tensor) -> Result<()>;

/// What an op leaves in the last elements of three tensors of `len` elements.
fn ends(device: &Device, len: usize, op: Pass) -> Vec<f64> {
    let mut tensors = [1, 2, 3].map(|seed| {
        let mut values = check::randn(DType::F32, &[1, END], seed).to_f64().unwrap();
        if seed == 3 {
            // Second moments are no less than 0.
            values.iter_mut().for_each(|x| *x *= *x);
        }
        flat(
            device,
            DType::F32,
            len,
            &Tensor::from_f64(&Device::cpu(), DType::F32, &values, &[1, END]).unwrap(),
        )
    });
    let clip = Tensor::from_f64(device, DType::F32, &[2.0, 0.5], &[1, 2]).unwrap();
    op(tensors.each_mut(), &clip).unwrap();
    let read = |tensor: &Tensor| tensor.range_to_dtype(len - END..len, DType::F32).unwrap().to_f64().unwrap();
    tensors.iter().flat_map(read).collect()
}

const ADAMW: adamw::Hyper =
    adamw::Hyper { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01, l2: 0.0, step: 3 };

/// Passes over a whole adapter.
const PASSES: [(&str, Pass); 7] = [
    ("copy", |[a, b, _], _| copy::forward(a.view(), b.view_mut())),
    ("add", |[a, b, _], _| copy::add_scaled(0.5, a.view(), b.view_mut())),
    ("average", |[a, b, _], _| copy::lerp(0.25, a.view(), b.view_mut())),
    ("multiply", |[a, b, _], _| copy::multiply(a.view(), b.view_mut())),
    ("adamw", |[p, m, v], clip| {
        let gradient = p.duplicate()?;
        adamw::step(p.view_mut(), gradient.view(), clip.view(), m.view_mut(), v.view_mut(), ADAMW)
    }),
    ("lion", |[p, m, _], clip| {
        let gradient = p.duplicate()?;
        let hyper = lion::Hyper { lr: 0.1, beta1: 0.9, beta2: 0.99, weight_decay: 0.01 };
        lion::step(p.view_mut(), gradient.view(), clip.view(), m.view_mut(), hyper)
    }),
    ("prodigy", |[p, m, v], _| {
        let hyper = prodigy::Update { step_size: 0.1, eps: 1e-8, weight_decay: 0.01 };
        prodigy::update(p.view_mut(), m.view(), v.view(), hyper)
    }),
];

/// The last elements come to what the processor makes of them alone.
#[test]
fn passes_reach_the_end_of_an_adapter_of_more_than_2_to_the_31_elements() {
    let sparse = Emulation { is_watched: true, last_blocks: Some(BLOCKS), ..Emulation::default() };
    let Some(device) = check::emulated(sparse) else { return };
    for (name, pass) in PASSES {
        let expected = ends(&Device::cpu(), END, pass);
        for (i, (got, expected)) in ends(&device, LEN, pass).iter().zip(&expected).enumerate() {
            let (which, at) = (i / END, i % END);
            assert!(
                (got - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                "{name}: {got} at {at} of the end of tensor {which}, where {expected} belongs"
            );
        }
    }
}

/// The same in 8 bits and for the adapter's copy in bf16.
#[test]
fn codes_and_copies_reach_the_end_too() {
    let sparse = Emulation { is_watched: true, last_blocks: Some(BLOCKS), ..Emulation::default() };
    let Some(device) = check::emulated(sparse) else { return };
    let end = check::randn(DType::F32, &[1, END], 1);
    let run = |device: &Device, len: usize| {
        let mut p = flat(device, DType::F32, len, &end);
        let gradient = p.duplicate().unwrap();
        let clip = Tensor::from_f64(device, DType::F32, &[2.0, 0.5], &[1, 2]).unwrap();
        let mut moments = [(); 4].map(|()| Tensor::empty(device, DType::U8, &[1, 1]).unwrap());
        let [m, v, m_scales, v_scales] = &mut moments;
        for (codes, scales) in [(m, m_scales), (v, v_scales)] {
            *codes = Tensor::empty(device, DType::U8, &[1, len]).unwrap();
            *scales = Tensor::empty(device, DType::F32, &[1, len / adamw8bit::BLOCK]).unwrap();
            if let Device::Cpu(_) = device {
                codes.set_bytes(&vec![0; len]).unwrap();
                scales.fill(0.0).unwrap();
            }
        }
        let [m, v, m_scales, v_scales] = &mut moments;
        let m = adamw8bit::Moment { codes: m.view_mut(), scales: m_scales.view_mut() };
        let v = adamw8bit::Moment { codes: v.view_mut(), scales: v_scales.view_mut() };
        adamw8bit::step(p.view_mut(), gradient.view(), clip.view(), m, v, ADAMW).unwrap();
        let narrow = p.range_to_dtype(0..len, DType::BF16).unwrap();
        let last = narrow.matrix(len - END, 1, END).unwrap();
        let mut read = Tensor::zeros(device, DType::BF16, &[1, END]).unwrap();
        copy::forward(last, read.view_mut()).unwrap();
        (p.range_to_dtype(len - END..len, DType::F32).unwrap().to_f64().unwrap(), read.to_f64().unwrap())
    };
    assert_eq!(run(&device, LEN), run(&Device::cpu(), END));
}
