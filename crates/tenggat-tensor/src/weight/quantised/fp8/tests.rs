//! Products of 8-bit floats against their reference.

use tenggat_gpu::float8;

use super::super::Quantised;
use super::*;
use crate::Device;
use crate::ops::check::{gpu, open_gpu_without, randn};
use crate::ops::linear;
use crate::weight::Weight;

/// The nearest code, found by trying all.
fn nearest(x: f32) -> u8 {
    let x = f64::from(x);
    let error = |code: u8| (f64::from(float8::decode(code)) - x.abs()).abs();
    // Of two that are as near, the even one.
    let best = (0..=0x7e).min_by(|&a, &b| error(a).total_cmp(&error(b)).then((a & 1).cmp(&(b & 1))));
    best.unwrap() | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// Codes and scales of rows, each operation in f64 and rounded to f32 once; x, factors: exact in f32.
fn reference(x: &[f64], cols: usize, factors: Option<&[f64]>) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks(cols) {
        let v: Vec<f32> =
            row.iter().enumerate().map(|(i, x)| (x * factors.map_or(1.0, |f| f[i])) as f32).collect();
        let largest = v.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let range = if largest == 0.0 { 448.0 } else { f64::from(largest).max(2f64.powi(-100)) };
        let inverse = f64::from((448.0 / range) as f32);
        scales.push((range / 448.0) as f32);
        codes.extend(v.iter().map(|&v| nearest((f64::from(v) * inverse) as f32)));
    }
    (codes, scales)
}

/// What codes and scales stand for.
fn value((codes, scales): &(Vec<u8>, Vec<f32>), cols: usize) -> Vec<f64> {
    let scale = |i: usize| f64::from(scales[i / cols]);
    codes.iter().enumerate().map(|(i, &code)| f64::from(float8::decode(code)) * scale(i)).collect()
}

fn stored(tensor: &Rounded) -> (Vec<u8>, Vec<f32>) {
    (tensor.codes.to_bytes().unwrap().into_owned(), tensor.scales.to_f32().unwrap())
}

#[test]
fn rows_are_rounded_as_the_reference_rounds_them_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    // More columns than a block takes at once.
    let (m, k) = (7, 2080);
    let mut numbers = randn(DType::BF16, &[m, k], 1).to_f64().unwrap();
    for (i, x) in numbers.iter_mut().enumerate() {
        match i / k {
            0 => *x = 0.0,
            // All magnitudes that a row can hold, down to half of the smallest code and below.
            1 => *x *= 2f64.powi(-(i as i32 % 24)),
            // Ties: multiples of a sixteenth with a row's largest at 448.
            2 => *x = if i % k == 5 { -448.0 } else { (i % k) as f64 / 16.0 },
            3 => *x *= 2f64.powi(-110),
            4 => *x *= 2f64.powi(100),
            _ => {}
        }
    }
    let factors: Vec<f64> = randn(DType::F32, &[k], 2).to_f64().unwrap().iter().map(|f| f * 0.02).collect();
    let factors = Tensor::from_f64(&gpu, DType::F32, &factors, &[k]).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let x = Tensor::from_f64(&gpu, dtype, &numbers, &[m, k]).unwrap();
        let exact = x.to_f64().unwrap();
        for factors in [None, Some(&factors)] {
            let got = stored(&round(x.view(), factors).unwrap());
            let values = factors.map(|f| f.to_f64().unwrap());
            let expected = reference(&exact, k, values.as_deref());
            assert_eq!(got.1, expected.1, "{dtype:?}");
            let wrong = got.0.iter().zip(&expected.0).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{dtype:?}, factors: {}", factors.is_some());
            assert_eq!(got.1[0], 1.0);
            assert!(got.0[..k].iter().all(|code| code & 0x7f == 0));
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    let Some(gpu) = gpu() else { return };
    let mut numbers = vec![1.0; 32];
    (numbers[3], numbers[20]) = (f64::NAN, f64::INFINITY);
    for dtype in [DType::F32, DType::BF16] {
        let x = Tensor::from_f64(&gpu, dtype, &numbers, &[2, 16]).unwrap();
        let back = value(&stored(&round(x.view(), None).unwrap()), 16);
        assert!(back[3].is_nan() && (back[0] - 1.0).abs() < 1e-6 && back[20].is_nan(), "{back:?}");
    }
}

#[test]
fn transposes() {
    let Some(gpu) = gpu() else { return };
    for (rows, cols) in [(16, 16), (64, 128), (80, 48), (208, 144)] {
        let mut from = Tensor::empty(&gpu, DType::U8, &[rows, cols]).unwrap();
        let bytes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 + i / 251) as u8).collect();
        from.set_bytes(&bytes).unwrap();
        let to = transpose(&from).unwrap().to_bytes().unwrap().into_owned();
        let wrong = (0..rows * cols).find(|i| to[i % cols * rows + i / cols] != bytes[*i]);
        assert_eq!(wrong, None, "[{rows}, {cols}]");
    }
}

/// `[out, in]` of bf16 numbers in a format, on a GPU.
fn weight(device: &Device, format: Option<&str>, [out, input]: [usize; 2]) -> Weight {
    let dense = randn(DType::BF16, &[out, input], 3);
    let weight = match format {
        Some(name) => Weight::Quantised(
            Quantised::quantise(name.parse().unwrap(), dense.host().unwrap(), input).unwrap(),
        ),
        None => Weight::Dense(dense),
    };
    weight.into_device(device).unwrap()
}

fn fp8(weight: Weight) -> Fp8 {
    match weight.into_fp8().unwrap() {
        Weight::Fp8(w) => *w,
        other => panic!("not in 8-bit floats: {other:?}"),
    }
}

#[test]
fn codes_of_8_bit_floats_are_taken_over_and_other_weights_are_rounded() {
    let Some(gpu) = gpu() else { return };
    let (out, input) = (48, 128);
    let dense = randn(DType::BF16, &[out, input], 3);
    for format in ["float8", "qfloat8", "uint4", "int8"] {
        let stored_there =
            Quantised::quantise(format.parse().unwrap(), dense.host().unwrap(), input).unwrap();
        let w = fp8(weight(&gpu, Some(format), [out, input]));
        let expected = if format.ends_with("float8") {
            (stored_there.codes(), stored_there.scales().iter().map(|s| s.to_f32()).collect())
        } else {
            let wide = stored_there.dequantise(&Device::cpu(), DType::BF16).unwrap();
            reference(&wide.to_f64().unwrap(), input, None)
        };
        assert!(stored(&w.rounded) == expected, "{format}");
        assert_eq!((w.shape(), w.bytes()), ([out, input], 2 * out * input + 4 * (out + input)));
        if format.ends_with("float8") {
            let usual = stored_there.dequantise(&Device::cpu(), DType::F32).unwrap();
            assert_eq!(w.to_dense(DType::F32).unwrap().to_f64().unwrap(), usual.to_f64().unwrap());
        }
    }
    let w = fp8(weight(&gpu, None, [out, input]));
    assert!(stored(&w.rounded) == reference(&dense.to_f64().unwrap(), input, None));
}

/// `a · bᵀ + start` in f64, and the sums of magnitudes.
fn exact(a: &[f64], b: &[f64], k: usize, start: impl Fn(usize, usize) -> f64) -> Vec<(f64, f64)> {
    let rows = a.chunks(k).enumerate().flat_map(|(i, a)| {
        let start = &start;
        b.chunks(k).enumerate().map(move |(j, b)| {
            let terms = || a.iter().zip(b).map(|(a, b)| a * b);
            let start = start(i, j);
            (start + terms().sum::<f64>(), start.abs() + terms().map(f64::abs).sum::<f64>())
        })
    });
    rows.collect()
}

/// Products are those of the operands as they were rounded: each of k sums in f32 errs by 2⁻²⁴ of the
/// magnitudes so far, the scales and what is added by three more; the result is rounded to its type.
#[test]
fn layers_multiply_what_was_rounded() {
    let Some(gpu) = gpu() else { return };
    multiplies_what_was_rounded(&gpu, 0.0);
}

/// Where products take no scales, sums are rounded to the type of the result once more before they are
/// scaled.
#[test]
fn cards_without_scales_in_products_scale_afterwards() {
    let Some(gpu) = open_gpu_without("fp8-scales".parse().unwrap()) else { return };
    assert!(gpu.fp8_products());
    multiplies_what_was_rounded(&gpu, 1.0);
}

fn multiplies_what_was_rounded(gpu: &Device, roundings_more: f64) {
    // Any number of rows.
    let (m, out, input) = (21, 48, 128);
    for format in [Some("float8"), Some("uint3"), None] {
        for dtype in [DType::F32, DType::BF16] {
            let w = fp8(weight(gpu, format, [out, input]));
            let (w_codes, w_scales) = stored(&w.rounded);
            let w_value = value(&(w_codes.clone(), w_scales.clone()), input);
            let transposed: Vec<f64> = (0..input * out)
                .map(|i| f64::from(float8::decode(w_codes[i % out * input + i / out])))
                .collect();
            let w = Weight::Fp8(Box::new(w));
            let number = |shape: &[usize], seed| randn(dtype, shape, seed).into_device(gpu).unwrap();
            let (x, dy, bias) = (number(&[m, input], 1), number(&[m, out], 2), number(&[out], 4));
            let (old_y, old_dx) = (number(&[m, out], 5), number(&[m, input], 6));
            let q = value(&reference(&x.to_f64().unwrap(), input, None), input);
            let scales: Vec<f64> = w_scales.iter().map(|&s| s.into()).collect();
            let dq = value(&reference(&dy.to_f64().unwrap(), out, Some(&scales)), out);
            let check = |what: &str, got: &Tensor, expected: Vec<(f64, f64)>, k: usize| {
                let half = if dtype == DType::BF16 { 2f64.powi(-8) } else { 2f64.powi(-24) };
                for (i, (got, (value, size))) in got.to_f64().unwrap().iter().zip(&expected).enumerate() {
                    let own = 1.01 * (k as f64 + 3.0) * 2f64.powi(-24) * size + half * value.abs();
                    let limit = own + 1.01 * roundings_more * half * size;
                    let off = (got - value).abs();
                    assert!(off <= limit, "{format:?} {dtype:?} {what}[{i}]: {got} {value}, limit {limit:e}");
                }
            };
            let (bias_values, old) = (bias.to_f64().unwrap(), old_y.to_f64().unwrap());
            let mut y = x.empty_like(&[m, out]).unwrap();
            linear::forward(x.view(), &w, Some(&bias), y.view_mut()).unwrap();
            check("y", &y, exact(&q, &w_value, input, |_, j| bias_values[j]), input);
            let mut y = old_y.duplicate().unwrap();
            linear::accumulate(x.view(), &w, y.view_mut()).unwrap();
            check("accumulated", &y, exact(&q, &w_value, input, |i, j| old[i * out + j]), input);
            if dtype == DType::BF16 {
                let mut y = old_y.duplicate().unwrap();
                linear::forward_onto(x.view(), &w, Some(&bias), y.view_mut()).unwrap();
                let start = |i: usize, j: usize| bias_values[j] + old[i * out + j];
                check("onto", &y, exact(&q, &w_value, input, start), input);
            }
            let mut dx = x.empty_like(&[m, input]).unwrap();
            linear::backward(dy.view(), &w, Write::Replace, dx.view_mut()).unwrap();
            check("dx", &dx, exact(&dq, &transposed, out, |_, _| 0.0), out);
            let (mut dx, old) = (old_dx.duplicate().unwrap(), old_dx.to_f64().unwrap());
            linear::backward(dy.view(), &w, Write::Add, dx.view_mut()).unwrap();
            check("dx more", &dx, exact(&dq, &transposed, out, |i, j| old[i * input + j]), out);
        }
    }
}

/// What rounding both operands does to products of normally distributed numbers.
#[test]
fn products_are_within_4_percent_of_those_in_full() {
    let Some(gpu) = gpu() else { return };
    let (m, out, input) = (32, 192, 512);
    let dense = randn(DType::BF16, &[out, input], 3).to_f64().unwrap();
    let w = weight(&gpu, None, [out, input]).into_fp8().unwrap();
    let (x, dy) = (randn(DType::F32, &[m, input], 1), randn(DType::F32, &[m, out], 2));
    let turned: Vec<f64> = (0..input * out).map(|i| dense[i % out * input + i / out]).collect();
    let y_full = exact(&x.to_f64().unwrap(), &dense, input, |_, _| 0.0);
    let dx_full = exact(&dy.to_f64().unwrap(), &turned, out, |_, _| 0.0);
    let (x, dy) = (x.into_device(&gpu).unwrap(), dy.into_device(&gpu).unwrap());
    let (mut y, mut dx) = (x.empty_like(&[m, out]).unwrap(), x.empty_like(&[m, input]).unwrap());
    linear::forward(x.view(), &w, None, y.view_mut()).unwrap();
    linear::backward(dy.view(), &w, Write::Replace, dx.view_mut()).unwrap();
    for (what, got, full) in [("y", y, y_full), ("dx", dx, dx_full)] {
        let got = got.to_f64().unwrap();
        let off: f64 = got.iter().zip(&full).map(|(a, (b, _))| (a - b).powi(2)).sum();
        let relative = (off / full.iter().map(|(b, _)| b * b).sum::<f64>()).sqrt();
        println!("{what}: relative L2 error {relative:.4}");
        assert!((0.02..0.04).contains(&relative), "{what}: {relative}");
    }
}

/// Shapes and views that 8-bit units do not take go the way of other weights.
#[test]
fn other_sizes_fall_back() {
    let Some(gpu) = gpu() else { return };
    for shape in [[40, 128], [48, 120], [48, 37]] {
        let there = weight(&gpu, Some("float8"), shape).into_fp8().unwrap();
        assert!(matches!(there, Weight::Resident(_)), "{shape:?}");
        assert!(Fp8::from_dense(&Tensor::zeros(&gpu, DType::BF16, &shape).unwrap()).is_err());
    }
    let host = Weight::Dense(randn(DType::BF16, &[48, 128], 3));
    assert!(matches!(host.into_fp8().unwrap(), Weight::Dense(_)));
    let (m, out, input) = (5, 48, 128);
    let usual = weight(&gpu, Some("float8"), [out, input]);
    let w = weight(&gpu, Some("float8"), [out, input]).into_fp8().unwrap();
    // Rows that do not begin at multiples of 16 bytes, of either operand.
    let x = randn(DType::BF16, &[m, input + 4], 1).into_device(&gpu).unwrap();
    let x = x.view().columns(4..input + 4);
    let run = |w: &Weight| {
        let mut y = Tensor::zeros(&gpu, DType::BF16, &[m, out + 8]).unwrap();
        let mut dx = Tensor::zeros(&gpu, DType::BF16, &[m, input + 8]).unwrap();
        linear::forward(x, w, None, y.view_mut().columns(8..out + 8)).unwrap();
        let dy = y.view().columns(8..out + 8);
        linear::backward(dy, w, Write::Replace, dx.view_mut().columns(0..input)).unwrap();
        [y.to_f64().unwrap(), dx.to_f64().unwrap()]
    };
    assert_eq!(run(&w), run(&usual));
    let Weight::Fp8(w) = w else { panic!("not in 8-bit floats") };
    let mut y = randn(DType::BF16, &[m, out], 2).into_device(&gpu).unwrap();
    let before = y.to_f64().unwrap();
    assert!(!w.forward(x, None, Write::Replace, y.view_mut()).unwrap());
    assert_eq!(y.to_f64().unwrap(), before);
}
