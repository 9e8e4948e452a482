use super::super::Weight;
use super::*;
use crate::ops::check::*;
use crate::ops::copy;

/// A layer with an adapter on some of its outputs: members that begin with a strip and one that does not.
struct Case {
    m: usize,
    input: usize,
    out: usize,
    rank: usize,
    members: Vec<Range<usize>>,
}

/// What a layer's passes give.
struct Results {
    y: Tensor,
    ax: Tensor,
    dx: Tensor,
    gradients: Tensor,
}

const SCALE: f64 = 0.7;

impl Case {
    fn all() -> Vec<Case> {
        let case = |m, input, out, rank, members: &[(usize, usize)]| Case {
            m,
            input,
            out,
            rank,
            members: members.iter().map(|&(from, to)| from..to).collect(),
        };
        vec![
            case(1, 5, 7, 2, &[(0, 7)]),
            case(70, 96, 192, 16, &[(0, 64), (64, 128), (128, 192)]),
            case(33, 48, 144, 3, &[(0, 48), (48, 96), (96, 144)]),
            case(5, 1100, 40, 33, &[(32, 40)]),
            case(130, 65, 100, 40, &[(0, 100)]),
        ]
    }

    fn inputs(&self, dtype: DType) -> [Tensor; 5] {
        let ranks = self.rank * self.members.len();
        let outputs: usize = self.members.iter().map(Range::len).sum();
        let t = |shape: &[usize], seed| randn(DType::F32, shape, seed).to_dtype(dtype).unwrap();
        [
            t(&[self.m, self.input], 1),
            t(&[self.m, self.out], 2),
            t(&[self.out], 3),
            t(&[ranks, self.input], 4),
            t(&[outputs, self.rank], 5),
        ]
    }

    fn b<'a>(&self, b: &'a Tensor) -> Vec<(Range<usize>, View<'a>)> {
        let mut at = 0;
        let mut member = |columns: &Range<usize>| {
            at += columns.len();
            (columns.clone(), b.view().row_range(at - columns.len()..at))
        };
        self.members.iter().map(&mut member).collect()
    }

    fn packed(&self, weight: &Tensor, exact: bool, write: Write) -> Results {
        let [x, dy, bias, a, b] = self.inputs(DType::F32);
        let members = self.b(&b);
        let adapter = Adapter { a: a.view(), members: &members, scale: SCALE };
        let w = Packed::pack(weight, exact).unwrap().unwrap();
        let mut y = randn(DType::F32, dy.shape(), 6);
        let mut ax = x.empty_like(&[self.m, a.shape()[0]]).unwrap();
        w.forward(x.view(), Some(&bias), Some((adapter, ax.view_mut())), write, y.view_mut()).unwrap();
        let mut dx = randn(DType::F32, x.shape(), 7);
        let mut gradients = randn(DType::F32, &[1, adapter.parameters()], 8);
        let all = AdapterGradients { all: gradients.view_mut(), write };
        let trained = Trained { adapter, x: x.view(), ax: ax.view(), gradients: all };
        w.backward(dy.view(), Some(trained), Some((write, dx.view_mut()))).unwrap();
        Results { y, ax, dx, gradients }
    }

    /// The same from separate products in f64.
    fn reference(&self, weight: &Tensor, write: Write) -> Results {
        let [x, dy, bias, a, b] = self.inputs(DType::F64);
        let w = weight.to_dtype(DType::F64).unwrap();
        let beta = write.beta();
        let start = |shape: &[usize], seed| randn(DType::F32, shape, seed).to_dtype(DType::F64).unwrap();
        let mut y = start(dy.shape(), 6);
        if write == Write::Replace {
            y.fill(0.0).unwrap();
        }
        let mut row = y.empty_like(y.shape()).unwrap();
        copy::broadcast_row(bias.view(), row.view_mut()).unwrap();
        copy::add_scaled(1.0, row.view(), y.view_mut()).unwrap();
        gemm::nt(1.0, x.view(), w.view(), 1.0, y.view_mut()).unwrap();
        let mut ax = x.empty_like(&[self.m, a.shape()[0]]).unwrap();
        gemm::nt(1.0, x.view(), a.view(), 0.0, ax.view_mut()).unwrap();
        let (mut dx, mut u) = (start(x.shape(), 7), ax.empty_like(ax.shape()).unwrap());
        gemm::nn(1.0, dy.view(), w.view(), beta, dx.view_mut()).unwrap();
        let members = self.b(&b);
        let len = a.len() + b.len();
        let mut gradients = start(&[1, len], 8);
        let mut at = a.len();
        for (i, (columns, b)) in members.iter().enumerate() {
            let ranks = i * self.rank..(i + 1) * self.rank;
            let ax = ax.view().columns(ranks.clone());
            gemm::nt(SCALE, ax, *b, 1.0, y.view_mut().columns(columns.clone())).unwrap();
            let dy = dy.view().columns(columns.clone());
            gemm::nn(SCALE, dy, *b, 0.0, u.view_mut().columns(ranks)).unwrap();
            let db = gradients.matrix_mut(at, columns.len(), self.rank).unwrap();
            gemm::tn(SCALE, dy, ax, beta, db).unwrap();
            at += columns.len() * self.rank;
        }
        gemm::nn(1.0, u.view(), a.view(), 1.0, dx.view_mut()).unwrap();
        let da = gradients.matrix_mut(0, a.shape()[0], self.input).unwrap();
        gemm::tn(1.0, u.view(), x.view(), beta, da).unwrap();
        Results { y, ax, dx, gradients }
    }
}

/// `tolerance` is relative to the largest element: rounding errors are as large as the terms of a sum.
fn compare(name: &str, got: &Results, expected: &Results, tolerance: f64) {
    for (what, got, expected) in [
        ("y", &got.y, &expected.y),
        ("ax", &got.ax, &expected.ax),
        ("dx", &got.dx, &expected.dx),
        ("gradients", &got.gradients, &expected.gradients),
    ] {
        let largest = expected.to_f64().unwrap().iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert_close(&format!("{name}: {what}"), got, expected, tolerance * largest);
    }
}

#[test]
fn one_pass_agrees_with_separate_products() {
    for (dtype, exact, available, tolerance) in [
        (DType::F32, true, f32::available(), 2e-6),
        (DType::BF16, false, bf16::available(), 1e-2),
        (DType::BF16, true, splits(), 2e-6),
    ] {
        if !available {
            tenggat_skip::skipped(format!(
                "no packed products of {dtype:?}, exact {exact}, on this processor"
            ));
            continue;
        }
        for case in Case::all() {
            let weight = randn(DType::F32, &[case.out, case.input], 9).to_dtype(dtype).unwrap();
            for write in [Write::Replace, Write::Add] {
                let name = format!("{dtype:?} {exact} {}x{}x{} {write:?}", case.m, case.input, case.out);
                let got = case.packed(&weight, exact, write);
                compare(&name, &got, &case.reference(&weight, write), tolerance);
            }
        }
    }
}

#[test]
fn any_thread_count_gives_the_same_bits() {
    if !f32::available() {
        tenggat_skip::skipped("no packed products on this processor");
        return;
    }
    let case = Case { m: 320, input: 512, out: 700, rank: 16, members: vec![0..350, 352..700] };
    let weight = randn(DType::F32, &[700, 512], 9);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let r = pool.install(|| case.packed(&weight, true, Write::Replace));
        [r.y, r.ax, r.dx, r.gradients].map(|t| t.to_f32().unwrap())
    };
    let one = run(1);
    assert!((2..5).all(|threads| run(threads) == one));
}

#[test]
fn weights_of_other_types_stay_as_they_are() {
    let weight = randn(DType::F64, &[4, 4], 1);
    assert!(matches!(Weight::Dense(weight).packed(false), Ok(Weight::Dense(_))));
    let weight = randn(DType::F32, &[4, 4], 1).to_dtype(DType::BF16).unwrap();
    let packed = Weight::Dense(weight).packed(true).unwrap();
    assert_eq!(matches!(packed, Weight::Packed(_)), splits());
}
