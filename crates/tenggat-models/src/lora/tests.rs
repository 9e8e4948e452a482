use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::{DType, Device, Tensor};

use super::*;
use crate::dropout::Dropout;

fn candidate(name: &str, output: usize, trained: bool) -> Candidate {
    Candidate { name: name.into(), output, trained }
}

#[test]
fn lays_out_every_element_once() {
    let layers = || {
        [
            (5, vec![candidate("q", 3, true), candidate("k", 4, true), candidate("v", 3, true)]),
            (7, vec![candidate("out", 2, false)]),
        ]
    };
    let layout = Layout::new(2, layers(), |name| name != "k");
    let mut used = vec![0; layout.len()];
    for m in layout.modules() {
        (m.a..m.a + 2 * m.input).chain(m.b..m.b + 2 * m.output).for_each(|i| used[i] += 1);
    }
    assert!(used.iter().all(|&n| n == 1));
    assert_eq!(layout.len(), 2 * (5 + 3) * 2 + 2 * (7 + 2));
    // A of q and v are neighbours, and v's columns start after the k that was not picked.
    assert_eq!(layout.modules()[1].a, 10);
    assert_eq!(layout.group(0).unwrap().members[1].columns, 7..10);
    // What feeds nothing is left out.
    assert_eq!(layout.trained_ranges(), std::iter::once(0..32).collect::<Vec<_>>());
    let matrices = layout.trained_matrices();
    assert_eq!(matrices.iter().map(|m| m.rows * m.cols).sum::<usize>(), 32);
    assert_eq!(matrices[3], Matrix { at: layout.modules()[1].b, rows: 3, cols: 2 });
    assert!(Layout::new(2, layers(), |_| false).is_empty());
}

fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut values = vec![0.0; shape.iter().product()];
    tenggat_tensor::random::Philox::new(seed).normal_f64(0, &mut values);
    Tensor::from_f64(&Device::cpu(), DType::F64, &values, shape).unwrap()
}

/// LyCORIS' own examples, with 1024 = 32 · 32 and 127 prime.
#[test]
fn dimensions_are_split_as_lycoris_does() {
    let cases = [
        (128, [(8, 16), (2, 64), (4, 32), (8, 16), (16, 8)]),
        (250, [(10, 25), (2, 125), (2, 125), (5, 50), (10, 25)]),
        (360, [(18, 20), (2, 180), (4, 90), (8, 45), (15, 24)]),
        (1024, [(32, 32), (2, 512), (4, 256), (8, 128), (16, 64)]),
        (127, [(1, 127); 5]),
    ];
    for (dimension, expected) in cases {
        let wanted = [None, Some(2), Some(4), Some(8), Some(16)];
        assert_eq!(wanted.map(|factor| factors(dimension, factor)), expected, "{dimension}");
    }
}

#[test]
fn kronecker_products_are_those_of_the_whole_matrices() {
    let layer = (6, vec![candidate("q", 4, true)]);
    let layout = Layout::new(Kind::Kronecker { factor: None }, [layer], |_| true);
    let module = layout.modules()[0].clone();
    assert_eq!((module.a_shape, module.b_shape), ([2, 2], [2, 3]));
    let lora = Lora::new(layout, numbers(&[4 + 6], 1));
    let (x, mut y) = (numbers(&[1, 6], 2), Tensor::zeros(&Device::cpu(), DType::F64, &[1, 4]).unwrap());
    lora.in_layer(0, None).unwrap().forward(x.view(), y.view_mut()).unwrap();
    let (p, x) = (lora.parameters.to_f64().unwrap(), x.to_f64().unwrap());
    let (w1, w2) = p.split_at(4);
    for (row, got) in y.to_f64().unwrap().into_iter().enumerate() {
        // (W₁ ⊗ W₂)[2i + o, 3j + s] = W₁[i, j] · W₂[o, s].
        let entry = |column: usize| w1[row / 2 * 2 + column / 3] * w2[row % 2 * 3 + column % 3];
        let expected: f64 = (0..6).map(|column| entry(column) * x[column]).sum();
        assert!((got - expected).abs() < 1e-12);
    }
}

/// `L = Σ dy·y`, and its gradients by parameters and input, against central differences: with and without
/// dropout; members of one width, which are multiplied side by side, with and without gaps between them.
#[test]
fn backward_is_the_derivative() {
    let dropout = Dropout { elements: 0.3, ranks: 0.2, modules: 0.0, seed: 3, pass: 7, samples: 2 };
    let (low_rank, kronecker) = (Kind::LowRank(2), Kind::Kronecker { factor: None });
    let all = [0, 1, 2, 3, 4];
    differentiate(low_rank, None, &[3, 4], &all);
    differentiate(low_rank, Some(dropout), &[3, 4], &all);
    differentiate(low_rank, None, &[4, 4, 4], &all);
    differentiate(low_rank, Some(dropout), &[4, 4, 4], &all);
    differentiate(low_rank, None, &[4, 4, 4], &[0, 2]);
    differentiate(low_rank, None, &[3, 4, 4, 3, 3], &[1, 2, 4]);
    differentiate(kronecker, None, &[3, 4], &all);
    differentiate(kronecker, None, &[4, 4, 4], &[0, 2]);
}

/// Checks the gradients of an adapter on a layer whose members have these widths, of which some are picked.
fn differentiate(kind: Kind, dropout: Option<Dropout>, widths: &[usize], picked: &[usize]) {
    let what = format!("{kind:?} {widths:?} {picked:?} {}", dropout.is_some());
    let members = widths.iter().enumerate().map(|(i, &width)| candidate(&i.to_string(), width, true));
    let is_picked = |name: &str| picked.iter().any(|i| i.to_string() == name);
    let layout = Layout::new(kind, [(6, members.collect())], is_picked);
    let outputs = widths.iter().sum();
    let parameters = numbers(&[layout.len()], 1);
    let lora = Lora { scale: 0.7, dropout, ..Lora::new(layout, parameters) };
    let (x, dy) = (numbers(&[5, 6], 2), numbers(&[5, outputs], 3));
    let zeros = |shape: &[usize]| Tensor::zeros(&Device::cpu(), DType::F64, shape).unwrap();
    let loss = |parameters: &[f64], x: &[f64]| -> f64 {
        let own = Tensor::from_f64(&Device::cpu(), DType::F64, parameters, &[parameters.len()]).unwrap();
        let lora = Lora { scale: 0.7, dropout, ..Lora::new(lora.layout.clone(), own) };
        let x = Tensor::from_f64(&Device::cpu(), DType::F64, x, &[5, 6]).unwrap();
        let mut y = zeros(&[5, outputs]);
        lora.in_layer(0, None).unwrap().forward(x.view(), y.view_mut()).unwrap();
        let weighed = y.to_f64().unwrap().into_iter().zip(dy.to_f64().unwrap());
        weighed.map(|(y, d)| y * d).sum()
    };
    let (mut buffer, mut dx) = (zeros(&[lora.layout.len()]), zeros(&[5, 6]));
    let adapter = lora.in_layer(0, None).unwrap();
    let mut y = zeros(&[5, outputs]);
    let ax = adapter.forward(x.view(), y.view_mut()).unwrap();
    let mut gradients = Gradients { buffer: &mut buffer, write: Write::Replace };
    adapter.backward(x.view(), &ax, dy.view(), &mut gradients, Some(dx.view_mut())).unwrap();
    let (p, x_values) = (lora.parameters.to_f64().unwrap(), x.to_f64().unwrap());
    let check = |at: &[f64], got: &[f64], loss: &dyn Fn(&[f64]) -> f64| {
        for (i, &got) in got.iter().enumerate() {
            let moved = |by: f64| {
                let mut at = at.to_vec();
                at[i] += by;
                loss(&at)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((got - expected).abs() < 1e-8 * (1.0 + expected.abs()), "{what}, {i}: {got} {expected}");
        }
    };
    let once = buffer.to_f64().unwrap();
    check(&p, &once, &|p| loss(p, &x_values));
    check(&x_values, &dx.to_f64().unwrap(), &|x| loss(&p, x));
    // Gradients of a further micro-batch are added.
    let mut gradients = Gradients { buffer: &mut buffer, write: Write::Add };
    adapter.backward(x.view(), &ax, dy.view(), &mut gradients, None).unwrap();
    for (i, (twice, once)) in buffer.to_f64().unwrap().into_iter().zip(once).enumerate() {
        assert!((twice - 2.0 * once).abs() < 1e-12 * (1.0 + once.abs()), "{what}, {i}: {twice} {once}");
    }
}
