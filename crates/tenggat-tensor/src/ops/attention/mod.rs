//! Scaled dot-product attention with a number of valid keys per sample.
//!
//! Per sample and head, with `S = scale · Q·Kᵀ` over the first `key_lens[b]` keys: `L = log Σ exp S`
//! (log-sum-exp per row), `P = exp(S − L)`, `O = P·V`.
//!
//! Backward (Dao et al., FlashAttention-2, arXiv:2307.08691, algorithm 2): `D = rowsum(dO ∘ O)`, `dV =
//! Pᵀ·dO`, `dP = dO·Vᵀ`, `dS = P ∘ (dP − D)`, `dQ = scale · dS·K`, `dK = scale · dSᵀ·Q`; P is rebuilt from L.
//! Saved: q, k, v, o and L. Keys past the length get zero gradients; queries past it are computed like any
//! other.
//!
//! Layout: q, k, v, o are `[b·tokens, h·d]`, that is `[b, tokens, h, d]`; L is `[b·tokens, h]`.

mod cpu;
mod cpu_blocked;
mod cpu_packed;
pub(crate) mod cuda;

use half::bf16;

use super::dispatch_real;
use super::gemm::strips::Lane;
use tenggat_gpu::int;

use crate::error::expect_shape;
use crate::{DType, Element, Error, Result, Tensor, View, ViewMut};

/// What the shapes of the operands do not say.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// Valid keys of each sample: this many of its first tokens. At least one each.
    pub key_lens: &'a [usize],
    /// The same in a GPU's memory, as [`device_lens`] puts them there, where they are read each time:
    /// a graph is replayed with other lengths than it was captured with. `None`: they stay what they
    /// are.
    pub device_lens: Option<&'a Tensor>,
    /// Tokens per sample, padding included.
    pub tokens: usize,
    /// Heads; the channels are `heads · d`.
    pub heads: usize,
    /// Multiplies the scores; usually 1/√d.
    pub scale: f64,
    /// Rounds the operands of 32-bit products to bf16 where that is faster; sums and softmax stay as they
    /// are.
    pub bf16_products: bool,
}

/// Valid keys of each sample for a GPU to read: 32-bit integers, as bytes, `[4·b]`.
///
/// # Errors
/// The tensor is of another size, or the device failed.
pub fn device_lens(key_lens: &[usize], to: &mut Tensor) -> Result<()> {
    let lens: Vec<i32> = key_lens.iter().map(|&n| int(n)).collect::<Result<_, _>>()?;
    let bytes: Vec<u8> = lens.into_iter().flat_map(i32::to_ne_bytes).collect();
    to.set_bytes(&bytes)
}

impl Layout<'_> {
    /// Checks the key lengths and the operands: `alike` have the shape of q, `lse` is `[b·tokens, h]`.
    fn check_shapes(
        &self,
        op: &'static str,
        q: [usize; 2],
        alike: &[(&'static str, [usize; 2])],
        lse: [usize; 2],
    ) -> Result<()> {
        expect_shape(op, "rows of q", &[self.key_lens.len() * self.tokens], &[q[0]])?;
        expect_shape(op, "columns of q, by heads", &[q[1] / self.heads.max(1) * self.heads], &[q[1]])?;
        if let Some(&n) = self.key_lens.iter().find(|&&n| n == 0 || n > self.tokens) {
            return Err(Error::shape(op, "key length (1 to tokens)", &[self.tokens], &[n]));
        }
        let stored = self.device_lens.map_or(4 * self.key_lens.len(), Tensor::len);
        expect_shape(op, "bytes of key lengths", &[4 * self.key_lens.len()], &[stored])?;
        alike.iter().try_for_each(|(what, shape)| expect_shape(op, what, &q, shape))?;
        expect_shape(op, "log-sum-exp", &[q[0], self.heads], &lse)
    }
}

/// Writes `o` (`[b·tokens, h·d]`) and the log-sum-exp (`[b·tokens, h]`).
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn forward(
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    layout: Layout<'_>,
    o: ViewMut<'_>,
    lse: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "attention forward";
    let alike = [("k", k.shape()), ("v", v.shape()), ("o", o.shape())];
    layout.check_shapes(OP, q.shape(), &alike, lse.shape())?;
    if o.on_gpu() {
        return cuda::forward(OP, [q, k, v], layout, o, lse);
    }
    if o.dtype() == DType::F32 && f32::available() {
        let (q, k, v, o, lse) = (q.cpu(OP)?, k.cpu(OP)?, v.cpu(OP)?, o.cpu(OP)?, lse.cpu(OP)?);
        match layout.bf16_products && bf16::available() {
            true => cpu_packed::forward::<bf16>(q, k, v, layout, o, lse),
            false => cpu_packed::forward::<f32>(q, k, v, layout, o, lse),
        }
        return Ok(());
    }
    dispatch_real!(OP, o.dtype(), T => {
        let (q, k, v, o, lse) = (q.cpu::<T>(OP)?, k.cpu(OP)?, v.cpu(OP)?, o.cpu(OP)?, lse.cpu(OP)?);
        match T::DTYPE {
            DType::F64 => cpu::forward(q, k, v, layout, o, lse),
            _ => cpu_blocked::forward(q, k, v, layout, o, lse),
        }
        Ok(())
    })
}

/// What [`forward`] read and wrote.
#[derive(Debug, Clone, Copy)]
pub struct Saved<'a> {
    /// Queries.
    pub q: View<'a>,
    /// Keys.
    pub k: View<'a>,
    /// Values.
    pub v: View<'a>,
    /// Output.
    pub o: View<'a>,
    /// Log-sum-exp.
    pub lse: View<'a>,
}

/// Writes dq, dk and dv, each `[b·tokens, h·d]`, from the output gradient.
///
/// # Errors
/// Shapes do not fit, or types differ.
pub fn backward(
    saved: Saved<'_>,
    layout: Layout<'_>,
    d_o: View<'_>,
    dq: ViewMut<'_>,
    dk: ViewMut<'_>,
    dv: ViewMut<'_>,
) -> Result<()> {
    const OP: &str = "attention backward";
    let Saved { q, k, v, o, lse } = saved;
    let saved_alike = [("k", k.shape()), ("v", v.shape()), ("o", o.shape())];
    let gradients = [("do", d_o.shape()), ("dq", dq.shape()), ("dk", dk.shape()), ("dv", dv.shape())];
    layout.check_shapes(OP, q.shape(), &[&saved_alike[..], &gradients[..]].concat(), lse.shape())?;
    if dq.on_gpu() {
        return cuda::backward(OP, saved, layout, d_o, [dq, dk, dv]);
    }
    if dq.dtype() == DType::F32 && f32::available() {
        let saved =
            cpu::Saved { q: q.cpu(OP)?, k: k.cpu(OP)?, v: v.cpu(OP)?, o: o.cpu(OP)?, lse: lse.cpu(OP)? };
        let gradients = [dq.cpu(OP)?, dk.cpu(OP)?, dv.cpu(OP)?];
        match layout.bf16_products && bf16::available() {
            true => cpu_packed::backward::<bf16>(saved, layout, d_o.cpu(OP)?, gradients),
            false => cpu_packed::backward::<f32>(saved, layout, d_o.cpu(OP)?, gradients),
        }
        return Ok(());
    }
    dispatch_real!(OP, dq.dtype(), T => {
        let saved = cpu::Saved::<T> {
            q: q.cpu(OP)?, k: k.cpu(OP)?, v: v.cpu(OP)?, o: o.cpu(OP)?, lse: lse.cpu(OP)?,
        };
        let gradients = [dq.cpu::<T>(OP)?, dk.cpu(OP)?, dv.cpu(OP)?];
        match T::DTYPE {
            DType::F64 => cpu::backward(saved, layout, d_o.cpu(OP)?, gradients),
            _ => cpu_blocked::backward(saved, layout, d_o.cpu(OP)?, gradients),
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::check::*;
    use super::*;
    use crate::Tensor;

    struct Case {
        key_lens: Vec<usize>,
        tokens: usize,
        heads: usize,
        d: usize,
        bf16_products: bool,
    }

    impl Case {
        fn layout(&self) -> Layout<'_> {
            let Case { key_lens, tokens, heads, bf16_products, .. } = self;
            Layout {
                key_lens,
                device_lens: None,
                tokens: *tokens,
                heads: *heads,
                scale: 0.6,
                bf16_products: *bf16_products,
            }
        }

        fn shape(&self) -> [usize; 2] {
            [self.key_lens.len() * self.tokens, self.heads * self.d]
        }

        fn inputs(&self, dtype: DType) -> [Tensor; 4] {
            [1, 2, 3, 4].map(|seed| randn(DType::F64, &self.shape(), seed).to_dtype(dtype).unwrap())
        }

        fn forward(&self, [q, k, v]: [&Tensor; 3]) -> (Tensor, Tensor) {
            let mut o = q.empty_like(&self.shape()).unwrap();
            let mut lse = q.empty_like(&[self.shape()[0], self.heads]).unwrap();
            forward(q.view(), k.view(), v.view(), self.layout(), o.view_mut(), lse.view_mut()).unwrap();
            (o, lse)
        }

        fn backward(&self, [q, k, v, d_o]: [&Tensor; 4]) -> [Tensor; 3] {
            let (o, lse) = self.forward([q, k, v]);
            let mut d = [(); 3].map(|()| q.empty_like(&self.shape()).unwrap());
            let [dq, dk, dv] = &mut d;
            let saved = Saved { q: q.view(), k: k.view(), v: v.view(), o: o.view(), lse: lse.view() };
            backward(saved, self.layout(), d_o.view(), dq.view_mut(), dk.view_mut(), dv.view_mut()).unwrap();
            d
        }
    }

    #[test]
    fn backward_is_the_derivative() {
        let case = Case { key_lens: vec![5, 3], tokens: 5, heads: 2, d: 3, bf16_products: false };
        let [q, k, v, d_o] = case.inputs(DType::F64);
        let [dq, dk, dv] = case.backward([&q, &k, &v, &d_o]);
        finite_differences("dq", &q, &dq, |q| dot(&case.forward([q, &k, &v]).0, &d_o));
        finite_differences("dk", &k, &dk, |k| dot(&case.forward([&q, k, &v]).0, &d_o));
        finite_differences("dv", &v, &dv, |v| dot(&case.forward([&q, &k, v]).0, &d_o));
    }

    #[test]
    fn masked_keys_change_nothing_and_get_no_gradient() {
        let case = Case { key_lens: vec![4], tokens: 7, heads: 2, d: 4, bf16_products: false };
        for dtype in [DType::F64, DType::F32] {
            let [q, mut k, v, d_o] = case.inputs(dtype);
            let before = case.forward([&q, &k, &v]).0.to_f64().unwrap();
            let [_, dk, dv] = case.backward([&q, &k, &v, &d_o]);
            for masked in [dk, dv] {
                assert!(masked.to_f64().unwrap()[4 * 8..].iter().all(|&x| x == 0.0));
            }
            k.view_mut().row_range(4..7);
            let mut values = k.to_f64().unwrap();
            values[4 * 8..].fill(1e3);
            k = Tensor::from_f64(&k.device(), dtype, &values, k.shape()).unwrap();
            assert_eq!(case.forward([&q, &k, &v]).0.to_f64().unwrap(), before);
        }
    }

    /// The blocked f32 path against the plain f64 one, over several blocks and ragged edges.
    #[test]
    fn the_fast_path_agrees_with_the_reference() {
        for case in [
            Case { key_lens: vec![1], tokens: 1, heads: 1, d: 2, bf16_products: false },
            Case { key_lens: vec![70, 129], tokens: 150, heads: 3, d: 32, bf16_products: false },
            Case { key_lens: vec![401], tokens: 433, heads: 2, d: 24, bf16_products: false },
        ] {
            let (single, double) = (case.inputs(DType::F32), case.inputs(DType::F64));
            let (o32, l32) = case.forward([&single[0], &single[1], &single[2]]);
            let (o64, l64) = case.forward([&double[0], &double[1], &double[2]]);
            assert_close("o", &o32, &o64, 5e-6);
            assert_close("log-sum-exp", &l32, &l64, 1e-5);
            let d32 = case.backward([&single[0], &single[1], &single[2], &single[3]]);
            let d64 = case.backward([&double[0], &double[1], &double[2], &double[3]]);
            for (a, b) in d32.iter().zip(&d64) {
                assert_close("gradient", a, b, 1e-4);
            }
        }
    }

    /// Operands rounded to bf16: off by some of its 2⁻⁹ relative to the largest element.
    #[test]
    fn narrow_products_are_near_the_reference() {
        let case = Case { key_lens: vec![70, 129], tokens: 150, heads: 3, d: 32, bf16_products: true };
        let (single, double) = (case.inputs(DType::F32), case.inputs(DType::F64));
        let near = |what: &str, got: &Tensor, expected: &Tensor| {
            let largest = expected.to_f64().unwrap().iter().fold(0.0f64, |m, x| m.max(x.abs()));
            assert_close(what, got, expected, 0.02 * largest);
        };
        let (o, _) = case.forward([&single[0], &single[1], &single[2]]);
        near("o", &o, &case.forward([&double[0], &double[1], &double[2]]).0);
        let got = case.backward([&single[0], &single[1], &single[2], &single[3]]);
        let expected = case.backward([&double[0], &double[1], &double[2], &double[3]]);
        got.iter().zip(&expected).for_each(|(got, expected)| near("gradient", got, expected));
    }

    #[test]
    fn any_thread_count_gives_the_same_bits() {
        let case = Case { key_lens: vec![401, 433], tokens: 433, heads: 3, d: 16, bf16_products: false };
        let [q, k, v, d_o] = case.inputs(DType::F32);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.backward([&q, &k, &v, &d_o])).map(|t| t.to_f32().unwrap())
        };
        let one = run(1);
        assert!((2..5).all(|threads| run(threads) == one));
    }

    #[test]
    fn survives_large_scores() {
        let case = Case { key_lens: vec![3], tokens: 3, heads: 1, d: 2, bf16_products: false };
        let mut inputs = case.inputs(DType::F32);
        inputs[0].host_mut::<f32>().unwrap().iter_mut().for_each(|x| *x *= 1e3);
        let (o, _) = case.forward([&inputs[0], &inputs[1], &inputs[2]]);
        assert!(o.to_f32().unwrap().iter().all(|x| x.is_finite()));
    }

    #[test]
    fn refuses_a_sample_without_keys() {
        let case = Case { key_lens: vec![0], tokens: 2, heads: 1, d: 2, bf16_products: false };
        let [q, k, v, mut o] = case.inputs(DType::F32);
        let mut lse = q.empty_like(&[2, 1]).unwrap();
        let result = forward(q.view(), k.view(), v.view(), case.layout(), o.view_mut(), lse.view_mut());
        assert!(result.unwrap_err().to_string().contains("key length"));
    }

    #[test]
    fn gpus_agree() {
        for (heads, d, tokens, lens) in
            [(2, 128, 70, vec![70, 37]), (3, 64, 45, vec![45]), (2, 20, 33, vec![1, 33])]
        {
            // The output's rounding enters D, which is subtracted from numbers of its own size.
            against_cpu_within("attention", 2f64.powi(-6), |on| {
                let (rows, channels) = (lens.len() * tokens, heads * d);
                let scale = 1.0 / (d as f64).sqrt();
                let layout =
                    Layout { key_lens: &lens, device_lens: None, tokens, heads, scale, bf16_products: false };
                let [q, k, v, d_o] = [1, 2, 3, 4].map(|seed| on.randn(&[rows, channels], seed));
                let (mut o, mut lse) = (on.empty(&[rows, channels]), on.empty_wide(&[rows, heads]));
                forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut()).unwrap();
                let [mut dq, mut dk, mut dv] = [0; 3].map(|_| on.empty(&[rows, channels]));
                let saved = Saved { q: q.view(), k: k.view(), v: v.view(), o: o.view(), lse: lse.view() };
                let to = (dq.view_mut(), dk.view_mut(), dv.view_mut());
                backward(saved, layout, d_o.view(), to.0, to.1, to.2).unwrap();
                vec![("o", o), ("dq", dq), ("dk", dk), ("dv", dv)]
            });
        }
    }

    #[test]
    fn gpus_agree_on_wide_heads() {
        let (heads, d, tokens, lens) = (2, 160, 40, [40, 23]);
        // The weights of the values are rounded too before they are multiplied.
        against_cpu_within("attention of wide heads", 2f64.powi(-6), |on| {
            let (rows, channels) = (lens.len() * tokens, heads * d);
            let layout = Layout {
                key_lens: &lens,
                device_lens: None,
                tokens,
                heads,
                scale: 0.08,
                bf16_products: false,
            };
            let [q, k, v] = [1, 2, 3].map(|seed| on.randn(&[rows, channels], seed));
            let (mut o, mut lse) = (on.empty(&[rows, channels]), on.empty_wide(&[rows, heads]));
            forward(q.view(), k.view(), v.view(), layout, o.view_mut(), lse.view_mut()).unwrap();
            vec![("o", o), ("lse", lse)]
        });
    }
}
