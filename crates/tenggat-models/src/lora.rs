//! LoRA adapters of a transformer: where each matrix lies in one flat parameter buffer.
//!
//! A module computes `y = W·x + b + scale · B·(A·x)` (Hu et al., arXiv:2106.09685). All matrices of an adapter share
//! one buffer, so that clipping, the optimiser and averaging are each one pass; gradients lie in a second buffer of
//! the same layout. Modules that share an input (q, k and v of a stream) stand side by side, so that their A
//! matrices are one product.

use std::ops::Range;

use crate::dropout::Dropout;
use tenggat_tensor::ops::{gemm, linear::Write};
use tenggat_tensor::{DType, Device, Result, Tensor, View, ViewMut};

/// One adapted module, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Dotted name inside the transformer, as diffusers spells it.
    pub name: String,
    /// Input channels: A is `[rank, input]`.
    pub input: usize,
    /// Output channels: B is `[output, rank]`.
    pub output: usize,
    /// First element of A in the flat buffer.
    pub a: usize,
    /// First element of B in the flat buffer.
    pub b: usize,
    /// Whether the loss depends on it. The text half of the last block feeds nothing.
    pub trained: bool,
}

/// A matrix of an adapter in the flat buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Its first element.
    pub at: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// Modules of one fused linear layer.
#[derive(Debug, Clone)]
pub struct Group {
    input: usize,
    /// First element of the stacked A matrices, `[rank · members, input]`.
    a: usize,
    members: Vec<Member>,
}

#[derive(Debug, Clone)]
struct Member {
    /// Columns of the fused output.
    columns: Range<usize>,
    b: usize,
}

/// A module of a fused layer that may be adapted, before any is chosen.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Dotted name.
    pub name: String,
    /// Output channels.
    pub output: usize,
    /// Whether the loss depends on it.
    pub trained: bool,
}

/// Where the matrices of an adapter lie.
#[derive(Debug, Clone)]
pub struct Layout {
    rank: usize,
    groups: Vec<Option<Group>>,
    modules: Vec<Module>,
    len: usize,
}

impl Layout {
    /// Lays out an adapter of this rank over the modules that `select` picks.
    ///
    /// `layers`: the fused linear layers of the model in its own order, each with its input width and its modules in
    /// the order of their outputs.
    pub fn new(
        rank: usize,
        layers: impl IntoIterator<Item = (usize, Vec<Candidate>)>,
        select: impl Fn(&str) -> bool,
    ) -> Self {
        let mut layout = Layout { rank, groups: Vec::new(), modules: Vec::new(), len: 0 };
        for (input, candidates) in layers {
            let mut column = 0;
            let mut chosen = Vec::new();
            for candidate in candidates {
                let columns = column..column + candidate.output;
                column = columns.end;
                if select(&candidate.name) {
                    chosen.push((candidate, columns));
                }
            }
            layout.push_group(input, chosen);
        }
        layout
    }

    fn push_group(&mut self, input: usize, chosen: Vec<(Candidate, Range<usize>)>) {
        if chosen.is_empty() {
            self.groups.push(None);
            return;
        }
        let (a, rank) = (self.len, self.rank);
        self.len += chosen.len() * rank * input;
        let mut members = Vec::new();
        for (i, (candidate, columns)) in chosen.into_iter().enumerate() {
            let (b, output) = (self.len, candidate.output);
            self.len += output * rank;
            members.push(Member { columns, b });
            let (name, trained) = (candidate.name, candidate.trained);
            self.modules.push(Module { name, input, output, a: a + i * rank * input, b, trained });
        }
        self.groups.push(Some(Group { input, a, members }));
    }

    /// Rank of every module.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Elements of the flat buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no module was picked.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All adapted modules, in the model's order.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// Element ranges that get gradients, merged where they touch.
    pub fn trained_ranges(&self) -> Vec<Range<usize>> {
        let mut parts: Vec<Range<usize>> = self
            .modules
            .iter()
            .filter(|m| m.trained)
            .flat_map(|m| [m.a..m.a + self.rank * m.input, m.b..m.b + m.output * self.rank])
            .collect();
        parts.sort_by_key(|r| r.start);
        let mut merged: Vec<Range<usize>> = Vec::new();
        for part in parts {
            match merged.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => merged.push(part),
            }
        }
        merged
    }

    /// The matrices that get gradients, A and B of each module in the model's order.
    pub fn trained_matrices(&self) -> Vec<Matrix> {
        let trained = self.modules.iter().filter(|m| m.trained);
        let matrices = trained.flat_map(|m| {
            let a = Matrix { at: m.a, rows: self.rank, cols: m.input };
            [a, Matrix { at: m.b, rows: m.output, cols: self.rank }]
        });
        matrices.collect()
    }

    pub(crate) fn group(&self, layer: usize) -> Option<&Group> {
        self.groups[layer].as_ref()
    }
}

/// An adapter: a layout and its parameters.
#[derive(Debug)]
pub struct Lora {
    /// Where the matrices lie.
    pub layout: Layout,
    /// All matrices, `[len]`.
    pub parameters: Tensor,
    /// Strength: multiplies the adapter's output.
    pub scale: f64,
    /// What is dropped in the pass to come; `None` outside training.
    pub dropout: Option<Dropout>,
}

impl Lora {
    /// An adapter of zeros, strength 1.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn zeros(layout: Layout, device: &Device, dtype: DType) -> Result<Self> {
        let parameters = Tensor::zeros(device, dtype, &[layout.len()])?;
        Ok(Lora::new(layout, parameters))
    }

    /// An adapter of strength 1; `parameters` are as long as the layout.
    pub fn new(layout: Layout, parameters: Tensor) -> Self {
        Lora { layout, parameters, scale: 1.0, dropout: None }
    }

    pub(crate) fn part(&self, layer: usize) -> Option<Part<'_>> {
        let group = self.layout.group(layer)?;
        let (rank, parameters, scale) = (self.layout.rank, &self.parameters, self.scale);
        Some(Part { group, rank, parameters, scale, dropout: self.dropout.as_ref().map(|d| (d, layer)) })
    }
}

/// Where gradients go.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// As long as the parameters; ranges that are not trained are left alone.
    pub buffer: &'a mut Tensor,
    /// Whether this batch's gradients replace what is there or add to it.
    pub write: Write,
}

/// The adapter of one fused linear layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    group: &'a Group,
    rank: usize,
    parameters: &'a Tensor,
    scale: f64,
    /// With the number of the layer.
    dropout: Option<(&'a Dropout, usize)>,
}

impl Part<'_> {
    fn stacked_rank(&self) -> usize {
        self.rank * self.group.members.len()
    }

    fn drop(&self, ax: ViewMut<'_>) -> Result<()> {
        self.dropout.map_or(Ok(()), |(dropout, layer)| dropout.apply(layer, self.rank, ax))
    }

    /// Adds `scale · B·(A·x)` to `y` and returns `A·x` (`[m, rank · members]`), which backward needs.
    pub fn forward(&self, x: View<'_>, mut y: ViewMut<'_>) -> Result<Tensor> {
        let mut ax = Tensor::empty(&y.device(), y.dtype(), &[x.rows(), self.stacked_rank()])?;
        let a = self.parameters.matrix(self.group.a, self.stacked_rank(), self.group.input)?;
        gemm::nt(1.0, x, a, 0.0, ax.view_mut())?;
        self.drop(ax.view_mut())?;
        for (i, member) in self.group.members.iter().enumerate() {
            let b = self.parameters.matrix(member.b, member.columns.len(), self.rank)?;
            let ax = ax.view().columns(i * self.rank..(i + 1) * self.rank);
            gemm::nt(self.scale, ax, b, 1.0, y.reborrow().columns(member.columns.clone()))?;
        }
        Ok(ax)
    }

    /// Writes dA and dB, and adds the adapter's share to `dx` if there is one.
    ///
    /// With `u = scale · Bᵀ·dy`: `dB = scale · dyᵀ·(A·x)`, `dA = uᵀ·x`, `dx += Aᵀ·u`. Dropout multiplies `A·x` and u.
    pub fn backward(
        &self,
        x: View<'_>,
        ax: &Tensor,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
        dx: Option<ViewMut<'_>>,
    ) -> Result<()> {
        let beta = gradients.write.beta();
        let mut u = ax.empty_like(ax.shape())?;
        for (i, member) in self.group.members.iter().enumerate() {
            let columns = i * self.rank..(i + 1) * self.rank;
            let dy = dy.columns(member.columns.clone());
            let b = self.parameters.matrix(member.b, member.columns.len(), self.rank)?;
            gemm::nn(self.scale, dy, b, 0.0, u.view_mut().columns(columns.clone()))?;
            let db = gradients.buffer.matrix_mut(member.b, member.columns.len(), self.rank)?;
            gemm::tn(self.scale, dy, ax.view().columns(columns), beta, db)?;
        }
        self.drop(u.view_mut())?;
        let (rows, cols) = (self.stacked_rank(), self.group.input);
        gemm::tn(1.0, u.view(), x, beta, gradients.buffer.matrix_mut(self.group.a, rows, cols)?)?;
        if let Some(dx) = dx {
            gemm::nn(1.0, u.view(), self.parameters.matrix(self.group.a, rows, cols)?, 1.0, dx)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// `L = Σ dy·y`, and its gradients by parameters and input, against central differences; with and without dropout.
    #[test]
    fn backward_is_the_derivative() {
        let layers = || [(5, vec![candidate("q", 3, true), candidate("k", 4, true)])];
        let dropout = Dropout { elements: 0.3, ranks: 0.2, modules: 0.0, seed: 3, pass: 7, samples: 2 };
        for dropout in [None, Some(dropout)] {
            let layout = Layout::new(2, layers(), |_| true);
            let parameters = numbers(&[layout.len()], 1);
            let lora = Lora { scale: 0.7, dropout, ..Lora::new(layout, parameters) };
            let (x, dy) = (numbers(&[6, 5], 2), numbers(&[6, 7], 3));
            let loss = |parameters: &[f64], x: &[f64]| -> f64 {
                let own =
                    Tensor::from_f64(&Device::cpu(), DType::F64, parameters, &[parameters.len()]).unwrap();
                let lora = Lora { scale: 0.7, dropout, ..Lora::new(lora.layout.clone(), own) };
                let x = Tensor::from_f64(&Device::cpu(), DType::F64, x, &[6, 5]).unwrap();
                let mut y = Tensor::zeros(&Device::cpu(), DType::F64, &[6, 7]).unwrap();
                lora.part(0).unwrap().forward(x.view(), y.view_mut()).unwrap();
                let weighed = y.to_f64().unwrap().into_iter().zip(dy.to_f64().unwrap());
                weighed.map(|(y, d)| y * d).sum()
            };
            let mut buffer = Tensor::zeros(&Device::cpu(), DType::F64, &[lora.layout.len()]).unwrap();
            let mut dx = Tensor::zeros(&Device::cpu(), DType::F64, &[6, 5]).unwrap();
            let part = lora.part(0).unwrap();
            let mut y = Tensor::zeros(&Device::cpu(), DType::F64, &[6, 7]).unwrap();
            let ax = part.forward(x.view(), y.view_mut()).unwrap();
            let mut gradients = Gradients { buffer: &mut buffer, write: Write::Replace };
            part.backward(x.view(), &ax, dy.view(), &mut gradients, Some(dx.view_mut())).unwrap();
            let (p, x) = (lora.parameters.to_f64().unwrap(), x.to_f64().unwrap());
            let check = |at: &[f64], got: Vec<f64>, loss: &dyn Fn(&[f64]) -> f64| {
                for (i, got) in got.into_iter().enumerate() {
                    let moved = |by: f64| {
                        let mut at = at.to_vec();
                        at[i] += by;
                        loss(&at)
                    };
                    let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    assert!((got - expected).abs() < 1e-8 * (1.0 + expected.abs()), "{i}: {got} {expected}");
                }
            };
            check(&p, buffer.to_f64().unwrap(), &|p| loss(p, &x));
            check(&x, dx.to_f64().unwrap(), &|x| loss(&p, x));
        }
    }
}
