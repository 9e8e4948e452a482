//! The model of the golden set, a batch for it, and its dense twin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};
use tenggat_models::Result;
use tenggat_models::lora::{Gradients, Lora, factors};
use tenggat_models::transformer::recovery::Recovery;
use tenggat_models::transformer::{
    Config, Inputs, LoadOptions, Positions, Precision, Recompute, Transformer,
};
use tenggat_models::weights::{Checkpoint, Matrix, Modules, Quantisation, Source, Weights};
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::random::Philox;
use tenggat_tensor::weight::Weight;
use tenggat_tensor::{DType, Device, Tensor};

/// The model's files, in the tree that the test runs in: it may be carried to a machine that did not build
/// it.
pub fn folder() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("../../tests/fixtures/qwen_image/transformer")
}

pub fn randn(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0f64; shape.iter().product()];
    Philox::new(seed).normal_f64(0, &mut values);
    Tensor::from_f64(&Device::cpu(), dtype, &values, shape).unwrap()
}

/// A model whose matrices hold, dense and in f64, what those of a quantised model stand for, recovery
/// included.
#[derive(Debug)]
pub struct Dense {
    quantised: Checkpoint,
    recovery: Option<Recovery>,
}

impl Dense {
    pub fn model(wanted: &Quantisation, recovery: Option<&Path>) -> Transformer {
        let config = Config::read(&folder()).unwrap();
        let weights = Weights::open(&folder(), "transformer").unwrap();
        let recovery = recovery.map(|path| Recovery::open(path).unwrap());
        let modules = recovery
            .as_ref()
            .map_or(Modules::Under(&["transformer_blocks."]), |r| Modules::Only(r.modules()));
        let device = Device::cpu();
        let checkpoint = Checkpoint::new(weights, "", &device, DType::F64, DType::F64);
        let quantised = checkpoint.quantised(wanted, modules, &config.matrices(), &|_, _| {}).unwrap();
        let source = Arc::new(Dense { quantised, recovery });
        let precision = Precision { compute: DType::F64, weights: DType::F64 };
        Transformer::from_source(config, &device, precision, source, None, LoadOptions::default()).unwrap()
    }
}

impl Source for Dense {
    fn matrix(&self, matrix: &Matrix) -> Result<Weight> {
        let device = Device::cpu();
        let mut dense = match self.quantised.matrix(matrix)? {
            Weight::Quantised(w) => w.dequantise(&device, DType::F64)?,
            Weight::Dense(w) => w,
            Weight::Packed(_) | Weight::Resident(_) | Weight::Fp8(_) => panic!("a source does not pack"),
        };
        if let Some(recovery) = &self.recovery
            && let Some(branch) = recovery.branch(matrix, &device)?
        {
            // The branch applied to the identity is (B·A)ᵀ.
            let n = matrix.input;
            let mut identity = Tensor::zeros(&device, DType::F64, &[n, n])?;
            (0..n).for_each(|i| identity.host_mut::<f64>().unwrap()[i * n + i] = 1.0);
            let mut transposed = Tensor::zeros(&device, DType::F64, &[n, matrix.output()])?;
            branch.forward(identity.view(), transposed.view_mut())?;
            let added = transposed.to_f64()?;
            for (i, w) in dense.host_mut::<f64>()?.iter_mut().enumerate() {
                *w += added[i % n * matrix.output() + i / n];
            }
        }
        Ok(Weight::Dense(dense))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.quantised.vector(name, len)
    }
}

/// A batch of two samples with texts of different length.
pub struct Case {
    latents: Tensor,
    pub sigmas: Vec<f64>,
    text: Tensor,
    text_lens: Vec<usize>,
    positions: Positions,
}

pub fn case(model: &Transformer) -> Case {
    let (config, dtype) = (model.config(), model.precision().compute);
    let numbers = |shape, seed| randn(dtype, shape, seed).into_device(model.device()).unwrap();
    Case {
        latents: numbers(&[2 * 12, config.in_channels], 1),
        sigmas: vec![0.25, 0.875],
        text: numbers(&[2 * 5, config.joint_attention_dim], 2),
        text_lens: vec![5, 3],
        positions: model.positions((3, 4), 5).unwrap(),
    }
}

/// An adapter of random numbers on every module.
pub fn lora(model: &Transformer, rank: usize) -> Lora {
    lora_of(model, rank, |_| true)
}

/// One on some modules.
pub fn lora_of(model: &Transformer, rank: usize, is_picked: impl Fn(&str) -> bool) -> Lora {
    let dtype = model.precision().compute.wide();
    let mut lora = Lora::zeros(model.lora_layout(rank, is_picked), model.device(), dtype).unwrap();
    let mut values = vec![0.0; lora.parameters.len()];
    Philox::new(9).normal_f64(0, &mut values);
    values.iter_mut().for_each(|x| *x *= 0.05);
    lora.parameters = Tensor::from_f64(model.device(), dtype, &values, &[values.len()]).unwrap();
    lora
}

/// What a pass forward and back gives.
pub struct Pass {
    pub prediction: Vec<f64>,
    /// By module and matrix, and the latents'.
    gradients: BTreeMap<String, Vec<f64>>,
}

/// The second of two blocks keeps everything, the first its results.
pub const MIXED: Recompute = Recompute { keep_all: 1, keep_results: 1 };

pub fn gradients(model: &Transformer, lora: &Lora, recompute: Recompute) -> Pass {
    let case = case(model);
    let inputs = Inputs {
        latents: &case.latents,
        sigmas: &case.sigmas,
        text: &case.text,
        text_lens: &case.text_lens,
        positions: &case.positions,
        global: None,
    };
    let (prediction, tape) = model.forward_for_backward(inputs, Some(lora), recompute).unwrap();
    let inferred = model.forward(inputs, Some(lora)).unwrap().to_f64().unwrap();
    assert_eq!(prediction.to_f64().unwrap(), inferred, "with and without a tape");
    let dout = randn(model.precision().compute, prediction.shape(), 5).into_device(model.device()).unwrap();
    let mut buffer = Tensor::zeros(model.device(), dout.dtype().wide(), &[lora.layout.len()]).unwrap();
    let into = Gradients { buffer: &mut buffer, write: Write::Replace };
    let d_latents = model.backward(inputs, Some(lora), tape, &dout, Some(into), true).unwrap().unwrap();
    let buffer = buffer.to_f64().unwrap();
    let mut gradients = BTreeMap::from([("latents".to_string(), d_latents.to_f64().unwrap())]);
    let rank = lora.layout.rank();
    for m in lora.layout.modules().iter().filter(|m| m.trained) {
        gradients.insert(format!("{}.A", m.name), buffer[m.a..m.a + rank * m.input].to_vec());
        gradients.insert(format!("{}.B", m.name), buffer[m.b..m.b + rank * m.output].to_vec());
    }
    Pass { prediction: prediction.to_f64().unwrap(), gradients }
}

/// Compares relative L2 distances of the prediction and of every gradient.
#[track_caller]
pub fn close(what: &str, a: &Pass, b: &Pass, tolerance: f64) {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let relative = |a: &[f64], b: &[f64]| {
        assert_eq!(a.len(), b.len());
        norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
    };
    let pairs = a.gradients.iter().zip(&b.gradients);
    let pairs = pairs.map(|((name, a), (_, b))| (name.as_str(), relative(a, b)));
    let prediction = [("prediction", relative(&a.prediction, &b.prediction))];
    let worst = prediction.into_iter().chain(pairs).max_by(|a, b| a.1.total_cmp(&b.1));
    let (name, worst) = worst.unwrap();
    println!("{what}: worst relative difference {worst:.1e} ({name}; limit {tolerance:.0e})");
    assert!(worst <= tolerance, "{what}: {name}: {worst:e} > {tolerance:e}");
}

/// A file with a rank 2 LoRA on these modules of the model.
pub fn recovery_file(folder: &Path, prefix: &str, modules: &[&str]) -> PathBuf {
    let arrays = modules.iter().enumerate().flat_map(|(i, module)| {
        let (input, output) = dims(module);
        let shapes = [("lora_A.weight", [2, input]), ("lora_B.weight", [output, 2])];
        shapes.map(|(name, shape)| (format!("{prefix}{module}.{name}"), shape, i))
    });
    write_recovery(folder, arrays.collect())
}

/// A file with a LoKr on these modules of the model; `name` makes the beginning of a module's keys.
pub fn lokr_recovery_file(folder: &Path, name: impl Fn(&str) -> String, modules: &[&str]) -> PathBuf {
    let arrays = modules.iter().enumerate().flat_map(|(i, module)| {
        let (input, output) = dims(module);
        let ((l, k), (q, n)) = (factors(output, None), factors(input, None));
        let shapes = [("lokr_w1", [l, q]), ("lokr_w2", [k, n]), ("alpha", [1, 1])];
        shapes.map(|(part, shape)| (format!("{}.{part}", name(module)), shape, i))
    });
    write_recovery(folder, arrays.collect())
}

fn dims(module: &str) -> (usize, usize) {
    let inner = Config::read(&self::folder()).unwrap().inner();
    match module.rsplit('.').next() {
        Some("1") => (inner, 6 * inner),
        Some("2") => (4 * inner, inner),
        _ => (inner, inner),
    }
}

fn write_recovery(folder: &Path, arrays: Vec<(String, [usize; 2], usize)>) -> PathBuf {
    let filled = arrays.into_iter().map(|(name, shape, seed)| {
        let t = randn(DType::BF16, &shape, 20 + seed as u64);
        let values = t.host::<half::bf16>().unwrap().iter();
        let small = values.flat_map(|x| half::bf16::from_f32(0.1 * x.to_f32()).to_le_bytes());
        (name, shape, small.collect::<Vec<u8>>())
    });
    let filled: Vec<_> = filled.collect();
    let views = filled.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.to_vec(), bytes).unwrap())
    });
    let path = folder.join("recovery.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}
