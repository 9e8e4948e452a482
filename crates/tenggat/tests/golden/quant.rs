//! `quant`: quantised formats against ai-toolkit, optimum-quanto and torchao.

use half::bf16;
use tenggat_tensor::ops::linear;
use tenggat_tensor::weight::{Format, Quantised, Weight};
use tenggat_tensor::{DType, Device, Tensor};

use crate::fixture::{Golden, assert_close, assert_close_l2};

struct Case {
    golden: Golden,
    device: Device,
}

impl Case {
    fn open() -> Self {
        Case { golden: Golden::open("quant.safetensors"), device: Device::cpu_poisoned() }
    }

    fn bf16(&self, name: &str) -> Vec<bf16> {
        self.golden.f64(name).into_iter().map(bf16::from_f64).collect()
    }

    fn tensor(&self, name: &str, dtype: DType) -> Tensor {
        Tensor::from_f64(&self.device, dtype, &self.golden.f64(name), &self.golden.shape(name)).unwrap()
    }

    fn quantise(&self, format: Format, weight: &str) -> Quantised {
        Quantised::quantise(format, &self.bf16(weight), self.golden.shape(weight)[1]).unwrap()
    }

    /// `x · Wᵀ + bias` in f32.
    fn linear(&self, weight: &Weight) -> Tensor {
        let (x, bias) = (self.tensor("x", DType::F32), self.tensor("bias", DType::F32));
        let mut y = x.empty_like(&[x.shape()[0], weight.shape()[0]]).unwrap();
        linear::forward(x.view(), weight, Some(&bias), y.view_mut()).unwrap();
        y
    }

    /// Codes, scales and weights bit for bit, and the layer's output.
    fn check(&self, prefix: &str, weight: &str, q: &Quantised, codes: &str) {
        let bytes = |name: &str| -> Vec<u8> {
            self.golden.f64(name).into_iter().map(|x| if x < 0.0 { x as i8 as u8 } else { x as u8 }).collect()
        };
        assert_eq!(q.codes(), bytes(&format!("{prefix}.{codes}")), "{prefix}.{codes}");
        assert_eq!(q.scales(), self.bf16(&format!("{prefix}.scale")), "{prefix}.scale");
        let back = q.dequantise(&self.device, DType::BF16).unwrap();
        assert_eq!(back.host::<bf16>().unwrap(), self.bf16(&format!("{prefix}.dequant")), "{prefix}.dequant");
        let y = self.linear(&Weight::Quantised(q.clone()));
        self.check_output(&format!("{prefix}.y"), &y);
        // The reference's own rounding is larger than that tolerance allows a wrong weight to hide in.
        let unquantised = format!("y_unquantised{}", weight.trim_start_matches("weight"));
        let (y, expected) = (y.to_f64().unwrap(), self.golden.f64(&unquantised));
        let coarse: f64 = if matches!(q.format(), Format::Uint(bits) if bits < 4) { 1.0 } else { 0.15 };
        assert_close_l2(&format!("{prefix}.y against {unquantised}"), &y, &expected, coarse);
    }

    /// Within one bf16 step of the largest value: the reference rounds the product, the scaled product and
    /// the sum with the bias to bf16, half a step each, of values that are mostly smaller.
    fn check_output(&self, name: &str, y: &Tensor) {
        let (y, expected) = (y.to_f64().unwrap(), self.golden.f64(name));
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert_close(name, &y, &expected, 2f64.powf(largest.log2().floor() - 7.0));
    }
}

/// The whole matrix packed as upstream stores it: shards of the flattened codes, widest first with the lowest
/// bits, each cut into as many chunks as fit side by side into a byte.
fn packed_whole(bits: u8, codes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut shift = 0;
    for width in [4u8, 2, 1].into_iter().filter(|width| bits & width != 0) {
        let len = codes.len() * usize::from(width) / 8;
        let chunks = usize::from(8 / width);
        packed.extend((0..len).map(|i| {
            (0..chunks).fold(0, |byte, j| {
                byte | (codes[j * len + i] >> shift & ((1 << width) - 1)) << (j * usize::from(width))
            })
        }));
        shift += width;
    }
    packed
}

#[test]
fn groups_of_few_bits() {
    let case = Case::open();
    for bits in 2..=7 {
        let prefix = format!("uint{bits}");
        let q = case.quantise(Format::Uint(bits), "weight");
        case.check(&prefix, "weight", &q, "codes");
        let golden = |name: &str| -> Vec<u8> {
            case.golden.f64(&format!("{prefix}.{name}")).into_iter().map(|x| x as u8).collect()
        };
        assert_eq!(&q.parts().zero_points[..], golden("zero_point"), "{prefix}.zero_point");
        assert_eq!(packed_whole(bits, &q.codes()), golden("packed"), "{prefix}.packed");
    }
}

#[test]
fn eight_bits_with_one_scale_a_row() {
    let case = Case::open();
    for (format, prefix) in [
        (Format::QFloat8, "quanto_qfloat8"),
        (Format::QInt8, "quanto_qint8"),
        (Format::Float8, "torchao_float8"),
        (Format::Int8, "torchao_int8"),
    ] {
        let q = case.quantise(format, "weight_per_row");
        case.check(prefix, "weight_per_row", &q, "data");
    }
}

/// A recovery adapter beside a quantised layer.
#[test]
fn a_quantised_layer_with_its_recovery_adapter() {
    let case = Case::open();
    let mut y = case.linear(&Weight::Quantised(case.quantise(Format::Uint(3), "weight")));
    let x = case.tensor("x", DType::F32);
    let [a, b] = ["ara.lora_A", "ara.lora_B"].map(|name| Weight::Dense(case.tensor(name, DType::BF16)));
    let mut ax = x.empty_like(&[x.shape()[0], a.shape()[0]]).unwrap();
    linear::forward(x.view(), &a, None, ax.view_mut()).unwrap();
    linear::accumulate(ax.view(), &b, y.view_mut()).unwrap();
    assert_close("ara.y_f32", &y.to_f64().unwrap(), &case.golden.f64("ara.y_f32"), 1e-5);
    // Upstream rounds twice more: after A and before the sum.
    let (y, expected) = (y.to_f64().unwrap(), case.golden.f64("ara.y"));
    assert_close_l2("ara.y", &y, &expected, 5e-3);
}
