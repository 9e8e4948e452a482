//! Golden files and comparisons.

use std::collections::HashMap;
use std::path::PathBuf;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

/// Folder of the golden set: `TENGGAT_GOLDEN`, else the committed one.
pub fn folder() -> PathBuf {
    std::env::var_os("TENGGAT_GOLDEN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")),
        PathBuf::from,
    )
}

/// Whether the set has this file, which its generator leaves out where the ai-toolkit is not at hand; a test
/// that returns without it says so. The committed set has every file.
pub fn has_file(file: &str) -> bool {
    let there = folder().join(file).is_file();
    if !there && std::env::var_os("TENGGAT_GOLDEN").is_none() {
        panic!("{} is missing", folder().join(file).display());
    }
    if !there {
        skip(format!("the set has no {file}"));
    }
    there
}

pub use tenggat_skip::skipped as skip;

/// One safetensors file of the set.
pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    /// Reads `<folder>/<file>`.
    pub fn open(file: &str) -> Self {
        Self::at(folder().join(file))
    }

    /// Reads a file of another set.
    pub fn at(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { path, bytes }
    }

    fn parsed(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    fn get(&self, name: &str) -> (Dtype, Vec<usize>, &[u8]) {
        let missing = |e| panic!("{}: `{name}`: {e}", self.path.display());
        let view = self.parsed().tensor(name).unwrap_or_else(missing);
        (view.dtype(), view.shape().to_vec(), view.data())
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.parsed().names().into_iter().map(String::from).collect();
        names.sort_unstable();
        names
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.parsed().tensor(name).is_ok()
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.get(name).1
    }

    /// Values of a tensor of any number type.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        let (dtype, _, data) = self.get(name);
        match dtype {
            Dtype::F64 => numbers(data, f64::from_le_bytes),
            Dtype::F32 => numbers(data, |b| f32::from_le_bytes(b).into()),
            Dtype::BF16 => numbers(data, |b| bf16::from_le_bytes(b).to_f64()),
            Dtype::F16 => numbers(data, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::I64 => numbers(data, |b| i64::from_le_bytes(b) as f64),
            Dtype::I8 => numbers(data, |b| i8::from_le_bytes(b).into()),
            Dtype::U8 => numbers(data, |b| u8::from_le_bytes(b).into()),
            other => panic!("{}: `{name}` has type {other:?}", self.path.display()),
        }
    }

    /// Values of a tensor of any number type, rounded to f32.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.f64(name).into_iter().map(|x| x as f32).collect()
    }

    /// Values of an integer tensor.
    pub fn i64(&self, name: &str) -> Vec<i64> {
        let (dtype, _, data) = self.get(name);
        assert_eq!(dtype, Dtype::I64, "{}: `{name}`", self.path.display());
        numbers(data, i64::from_le_bytes)
    }

    /// Free-form metadata of the file.
    pub fn metadata(&self) -> HashMap<String, String> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).expect("header");
        header.metadata().clone().unwrap_or_default()
    }
}

fn numbers<const N: usize, T>(data: &[u8], one: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|&b| one(b)).collect()
}

/// Compares elementwise; prints the largest difference, and fails if it exceeds `tolerance` or is not a
/// number.
#[track_caller]
pub fn assert_close<A: Copy + Into<f64>, B: Copy + Into<f64>>(
    what: &str,
    got: &[A],
    expected: &[B],
    tolerance: f64,
) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let difference = |i: usize| {
        let d = (got[i].into() - expected[i].into()).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    };
    let worst = (0..got.len()).reduce(|a, b| if difference(b) > difference(a) { b } else { a });
    let Some(worst) = worst else { return };
    let error = difference(worst);
    println!("{what}: largest difference {error:.2e} (limit {tolerance:.0e})");
    let (a, b): (f64, f64) = (got[worst].into(), expected[worst].into());
    assert!(error <= tolerance, "{what}[{worst}]: got {a}, expected {b}: {error:e} > {tolerance:e}");
}

/// Compares ‖got − expected‖ / ‖expected‖; prints it, and fails if it exceeds `tolerance` or is not a number.
#[track_caller]
pub fn assert_close_l2<A: Copy + Into<f64>, B: Copy + Into<f64>>(
    what: &str,
    got: &[A],
    expected: &[B],
    tolerance: f64,
) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(expected).map(|(&a, &b)| a.into() - b.into()));
    let scale = norm(&mut expected.iter().map(|&b| b.into()));
    // An expected tensor of zeros must be met exactly.
    let relative = if error == 0.0 { 0.0 } else { error / scale };
    println!("{what}: relative L2 difference {relative:.2e} (limit {tolerance:.0e})");
    assert!(relative <= tolerance, "{what}: relative L2 difference {relative:e} > {tolerance:e}");
}

#[test]
fn reads_every_number_type_and_the_metadata() {
    let forward = Golden::open("transformer_forward.safetensors");
    assert!(forward.contains("square.output") && !forward.contains("no such tensor"));
    assert_eq!(forward.i64("square.img_shape").len(), 3);
    let (single, double) = (forward.f32("square.output"), forward.f64("square.output_f64"));
    assert_eq!(single.len(), forward.shape("square.output").iter().product::<usize>());
    assert_close_l2("reference f32 against f64", &single, &double, 1e-3);
    assert!(forward.metadata().contains_key("versions"));
    assert!(forward.names().is_sorted());
}

#[test]
#[should_panic(expected = "NaN")]
fn not_a_number_is_no_match() {
    assert_close("NaN", &[0.0, f64::NAN, 1.0], &[0.0, 1.0, 1.0], 1.0);
}
