//! LoRA adapters of a transformer: where each matrix lies in one flat parameter buffer.
//!
//! A module computes `y = W·x + b + scale · B·(A·x)` (Hu et al., arXiv:2106.09685), or in the Kronecker variant
//! `y = W·x + b + scale · (W₁ ⊗ W₂)·x` (LoKr, arXiv:2309.14859), whose two matrices stand in the places of A and B. All matrices of an adapter share
//! one buffer, so that clipping, the optimiser and averaging are each one pass; gradients lie in a second buffer of
//! the same layout. Modules that share an input (q, k and v of a stream) stand side by side, so that their A
//! matrices are one product.

mod kronecker;

use std::ops::Range;

use crate::dropout::Dropout;
use kronecker::Kronecker;
use tenggat_tensor::ops::gemm;
use tenggat_tensor::ops::linear::{self, AdapterGradients, Packed, Write};
use tenggat_tensor::{DType, Device, Error, Result, Tensor, View, ViewMut};

/// One adapted module, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Dotted name inside the transformer, as diffusers spells it.
    pub name: String,
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// First element of A, or of W₁, in the flat buffer.
    pub a: usize,
    /// A is `[rank, input]`, W₁ `[l, q]`.
    pub a_shape: [usize; 2],
    /// First element of B, or of W₂, in the flat buffer.
    pub b: usize,
    /// B is `[output, rank]`, W₂ `[output / l, input / q]`.
    pub b_shape: [usize; 2],
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

/// What an adapter adds to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `B·A` of a rank.
    LowRank(usize),
    /// `W₁ ⊗ W₂`, the dimensions split as [`factors`] says.
    Kronecker {
        /// Wanted small factor; `None`: as near as can be to the square root.
        factor: Option<usize>,
    },
}

impl From<usize> for Kind {
    fn from(rank: usize) -> Self {
        Kind::LowRank(rank)
    }
}

/// A dimension as a product of two, the small one first: `factor` if it divides the dimension, else the pair with the
/// least sum whose small part is at most `factor` (any, for `None`). Source: LyCORIS `lycoris/functional/general.py`,
/// `factorization`, and ai-toolkit's copy of it, which puts a `factor` that divides first even if it is the larger.
pub fn factors(dimension: usize, factor: Option<usize>) -> (usize, usize) {
    if let Some(factor) = factor.filter(|&f| f > 0 && dimension.is_multiple_of(f)) {
        return (factor, dimension / factor);
    }
    let most = factor.unwrap_or(dimension).max(1);
    let divides = |m: &usize| dimension.is_multiple_of(*m) && *m <= most && m * m <= dimension;
    let small = (1..=dimension.isqrt()).rev().find(divides).unwrap_or(1);
    (small, dimension / small)
}

/// Modules of one fused linear layer.
#[derive(Debug, Clone)]
pub struct Group {
    input: usize,
    /// First element of the stacked A matrices, `[rank · members, input]`, or of the first W₁.
    a: usize,
    members: Vec<Member>,
}

#[derive(Debug, Clone)]
struct Member {
    /// Columns of the fused output.
    columns: Range<usize>,
    a: usize,
    a_shape: [usize; 2],
    b: usize,
    b_shape: [usize; 2],
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
    kind: Kind,
    groups: Vec<Option<Group>>,
    modules: Vec<Module>,
    len: usize,
}

impl Layout {
    /// Lays out an adapter of this kind over the modules that `select` picks.
    ///
    /// `layers`: the fused linear layers of the model in its own order, each with its input width and its modules in
    /// the order of their outputs.
    pub fn new(
        kind: impl Into<Kind>,
        layers: impl IntoIterator<Item = (usize, Vec<Candidate>)>,
        select: impl Fn(&str) -> bool,
    ) -> Self {
        let mut layout = Layout { kind: kind.into(), groups: Vec::new(), modules: Vec::new(), len: 0 };
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
        let first = self.len;
        if let Kind::LowRank(rank) = self.kind {
            // The A matrices of the group stand side by side.
            self.len += chosen.len() * rank * input;
        }
        let mut members = Vec::new();
        for (i, (candidate, columns)) in chosen.into_iter().enumerate() {
            let output = candidate.output;
            let (a, a_shape, b_shape) = match self.kind {
                Kind::LowRank(rank) => (first + i * rank * input, [rank, input], [output, rank]),
                Kind::Kronecker { factor } => {
                    let ((l, k), (q, n)) = (factors(output, factor), factors(input, factor));
                    let a = self.len;
                    self.len += l * q;
                    (a, [l, q], [k, n])
                }
            };
            let b = self.len;
            self.len += b_shape[0] * b_shape[1];
            members.push(Member { columns, a, a_shape, b, b_shape });
            let (name, trained) = (candidate.name, candidate.trained);
            self.modules.push(Module { name, input, output, a, a_shape, b, b_shape, trained });
        }
        let a = first;
        self.groups.push(Some(Group { input, a, members }));
    }

    /// What it adds to a layer.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Rank of every module; 0 for Kronecker products, which have none.
    pub fn rank(&self) -> usize {
        match self.kind {
            Kind::LowRank(rank) => rank,
            Kind::Kronecker { .. } => 0,
        }
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
            .flat_map(|m| {
                let [a, b] = [m.a_shape, m.b_shape].map(|[rows, columns]| rows * columns);
                [m.a..m.a + a, m.b..m.b + b]
            })
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
            let a = Matrix { at: m.a, rows: m.a_shape[0], cols: m.a_shape[1] };
            [a, Matrix { at: m.b, rows: m.b_shape[0], cols: m.b_shape[1] }]
        });
        matrices.collect()
    }

    /// Elements of the flat buffer that belong to some fused layers, which follow one another.
    fn range(&self, layers: Range<usize>) -> Range<usize> {
        let groups = self.groups[layers].iter().flatten();
        let first = groups.clone().map(|group| group.a).min().unwrap_or(0);
        let ends = groups.flat_map(|group| &group.members).map(|m| m.b + m.b_shape[0] * m.b_shape[1]);
        first..ends.max().unwrap_or(first)
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

    /// The parameters of some fused layers, rounded to the type that a model computes in, where that is narrower than
    /// their own.
    ///
    /// # Errors
    /// Out of device memory.
    pub(crate) fn rounded(&self, layers: Range<usize>, compute: DType) -> Result<Option<Rounded>> {
        if self.parameters.dtype() == compute || self.parameters.dtype() != compute.wide() {
            return Ok(None);
        }
        let range = self.layout.range(layers);
        Ok(Some(Rounded { first: range.start, parameters: self.parameters.range_to_dtype(range, compute)? }))
    }
}

/// A part of an adapter's parameters in a narrower type.
#[derive(Debug)]
pub(crate) struct Rounded {
    /// First element of the flat buffer that is there.
    first: usize,
    parameters: Tensor,
}

/// An adapter's parameters as a pass multiplies by them.
#[derive(Debug, Clone, Copy)]
struct Parameters<'a> {
    /// First element of the flat buffer that is there.
    first: usize,
    there: &'a Tensor,
}

impl<'a> Parameters<'a> {
    /// A matrix whose first element is `at` in the flat buffer.
    fn matrix(&self, at: usize, rows: usize, cols: usize) -> Result<View<'a>> {
        let at = at.checked_sub(self.first);
        let at = at.ok_or_else(|| Error::shape("adapter", "rounded parameters", &[self.first], &[0]))?;
        self.there.matrix(at, rows, cols)
    }
}

/// An adapter in a pass through some layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Adapter<'a> {
    lora: &'a Lora,
    parameters: Parameters<'a>,
}

impl<'a> Adapter<'a> {
    /// `rounded`: what [`Lora::rounded`] gave for these layers.
    pub fn new(lora: &'a Lora, rounded: Option<&'a Rounded>) -> Self {
        let parameters = match rounded {
            Some(Rounded { first, parameters }) => Parameters { first: *first, there: parameters },
            None => Parameters { first: 0, there: &lora.parameters },
        };
        Adapter { lora, parameters }
    }

    /// The part of a fused layer.
    pub fn part(self, layer: usize) -> Option<Part<'a>> {
        let Adapter { lora, parameters } = self;
        let group = lora.layout.group(layer)?;
        let dropout = lora.dropout.as_ref().map(|dropout| (dropout, layer));
        Some(Part { group, kind: lora.layout.kind, parameters, scale: lora.scale, dropout })
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
    kind: Kind,
    parameters: Parameters<'a>,
    scale: f64,
    /// With the number of the layer.
    dropout: Option<(&'a Dropout, usize)>,
}

impl Part<'_> {
    /// Adds the adapter's share to `y` and returns what backward needs: `A·x` (`[m, rank · members]`), or every member's
    /// `X·W₂ᵀ`, one after the other.
    pub fn forward(&self, x: View<'_>, y: ViewMut<'_>) -> Result<Tensor> {
        match self.kind {
            Kind::LowRank(rank) => self.low_rank(rank).forward(x, y),
            Kind::Kronecker { .. } => self.kronecker().forward(x, y),
        }
    }

    /// Writes the gradients of both matrices of every member, and adds the adapter's share to `dx` if there is one.
    pub fn backward(
        &self,
        x: View<'_>,
        ax: &Tensor,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
        dx: Option<ViewMut<'_>>,
    ) -> Result<()> {
        match self.kind {
            Kind::LowRank(rank) => self.low_rank(rank).backward(x, ax, dy, gradients, dx),
            Kind::Kronecker { .. } => self.kronecker().backward(x, ax, dy, gradients, dx),
        }
    }

    /// The frozen layer and the adapter in one pass, `y = W·x + bias + scale · B·(A·x)`, and `A·x`; `None`, and `y` as
    /// it was, if this adapter goes on top of the layer instead.
    pub fn forward_with(
        &self,
        x: View<'_>,
        weight: &Packed,
        bias: Option<&Tensor>,
        y: ViewMut<'_>,
    ) -> Result<Option<Tensor>> {
        self.joins().map(|part| part.forward_packed(x, weight, bias, y)).transpose()
    }

    /// Backward of [`Part::forward_with`]: writes dA and dB and, if there is room for it, the gradient of x, which
    /// includes the frozen layer's share. Whether it did.
    pub fn backward_with(
        &self,
        (x, ax, dy): (View<'_>, &Tensor, View<'_>),
        weight: &Packed,
        gradients: &mut Gradients<'_>,
        dx: Option<ViewMut<'_>>,
    ) -> Result<bool> {
        let Some(part) = self.joins() else { return Ok(false) };
        part.backward_packed(x, ax, dy, weight, gradients, dx)?;
        Ok(true)
    }

    /// The adapter as further terms of a layer's own sums. Dropout stands between its factors, so it cannot join.
    fn joins(&self) -> Option<LowRank<'_>> {
        match (self.kind, self.dropout) {
            (Kind::LowRank(rank), None) => Some(self.low_rank(rank)),
            _ => None,
        }
    }

    fn low_rank(&self, rank: usize) -> LowRank<'_> {
        let Part { group, parameters, scale, dropout, .. } = *self;
        LowRank { group, rank, parameters, scale, dropout }
    }

    fn kronecker(&self) -> Kronecker<'_> {
        Kronecker { members: &self.group.members, parameters: self.parameters, scale: self.scale }
    }
}

/// `scale · B·(A·x)`.
struct LowRank<'a> {
    group: &'a Group,
    rank: usize,
    parameters: Parameters<'a>,
    scale: f64,
    dropout: Option<(&'a Dropout, usize)>,
}

impl LowRank<'_> {
    fn stacked_rank(&self) -> usize {
        self.rank * self.group.members.len()
    }

    fn drop(&self, ax: ViewMut<'_>) -> Result<()> {
        self.dropout.map_or(Ok(()), |(dropout, layer)| dropout.apply(layer, self.rank, ax))
    }

    /// The adapter in the form that packed layers take; `members` is filled with views of B.
    fn adapter<'m>(&'m self, members: &'m mut Vec<(Range<usize>, View<'m>)>) -> Result<linear::Adapter<'m>> {
        for member in &self.group.members {
            let b = self.parameters.matrix(member.b, member.columns.len(), self.rank)?;
            members.push((member.columns.clone(), b));
        }
        let a = self.parameters.matrix(self.group.a, self.stacked_rank(), self.group.input)?;
        Ok(linear::Adapter { a, members, scale: self.scale })
    }

    /// `y = W·x + bias + scale · B·(A·x)` in one pass; returns `A·x`.
    fn forward_packed(
        &self,
        x: View<'_>,
        weight: &Packed,
        bias: Option<&Tensor>,
        y: ViewMut<'_>,
    ) -> Result<Tensor> {
        let mut ax = Tensor::empty(&y.device(), y.dtype(), &[x.rows(), self.stacked_rank()])?;
        let mut members = Vec::new();
        let adapter = self.adapter(&mut members)?;
        weight.forward(x, bias, Some((adapter, ax.view_mut())), Write::Replace, y)?;
        Ok(ax)
    }

    /// Writes dA and dB, and the gradient of x if there is room for it, the frozen layer's share included.
    fn backward_packed(
        &self,
        x: View<'_>,
        ax: &Tensor,
        dy: View<'_>,
        weight: &Packed,
        gradients: &mut Gradients<'_>,
        dx: Option<ViewMut<'_>>,
    ) -> Result<()> {
        let mut members = Vec::new();
        let adapter = self.adapter(&mut members)?;
        // B follows A, member by member: see `Layout::push_group`.
        let outputs: usize = self.group.members.iter().map(|m| m.columns.len()).sum();
        let len = self.stacked_rank() * self.group.input + outputs * self.rank;
        let all = gradients.buffer.matrix_mut(self.group.a, 1, len)?;
        let gradients = AdapterGradients { all, write: gradients.write };
        let trained = linear::Trained { adapter, x, ax: ax.view(), gradients };
        weight.backward(dy, Some(trained), dx.map(|dx| (Write::Replace, dx)))
    }

    /// Adds `scale · B·(A·x)` to `y` and returns `A·x` (`[m, rank · members]`), which backward needs.
    fn forward(&self, x: View<'_>, mut y: ViewMut<'_>) -> Result<Tensor> {
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
    fn backward(
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
        Adapter::new(&lora, None).part(0).unwrap().forward(x.view(), y.view_mut()).unwrap();
        let (p, x) = (lora.parameters.to_f64().unwrap(), x.to_f64().unwrap());
        let (w1, w2) = p.split_at(4);
        for (row, got) in y.to_f64().unwrap().into_iter().enumerate() {
            // (W₁ ⊗ W₂)[2i + o, 3j + s] = W₁[i, j] · W₂[o, s].
            let entry = |column: usize| w1[row / 2 * 2 + column / 3] * w2[row % 2 * 3 + column % 3];
            let expected: f64 = (0..6).map(|column| entry(column) * x[column]).sum();
            assert!((got - expected).abs() < 1e-12);
        }
    }

    /// `L = Σ dy·y`, and its gradients by parameters and input, against central differences; with and without dropout.
    #[test]
    fn backward_is_the_derivative() {
        let layers = || [(6, vec![candidate("q", 3, true), candidate("k", 4, true)])];
        let dropout = Dropout { elements: 0.3, ranks: 0.2, modules: 0.0, seed: 3, pass: 7, samples: 2 };
        let kronecker = Kind::Kronecker { factor: None };
        let cases = [(Kind::LowRank(2), None), (Kind::LowRank(2), Some(dropout)), (kronecker, None)];
        for (kind, dropout) in cases {
            let layout = Layout::new(kind, layers(), |_| true);
            let parameters = numbers(&[layout.len()], 1);
            let lora = Lora { scale: 0.7, dropout, ..Lora::new(layout, parameters) };
            let (x, dy) = (numbers(&[5, 6], 2), numbers(&[5, 7], 3));
            let loss = |parameters: &[f64], x: &[f64]| -> f64 {
                let own =
                    Tensor::from_f64(&Device::cpu(), DType::F64, parameters, &[parameters.len()]).unwrap();
                let lora = Lora { scale: 0.7, dropout, ..Lora::new(lora.layout.clone(), own) };
                let x = Tensor::from_f64(&Device::cpu(), DType::F64, x, &[5, 6]).unwrap();
                let mut y = Tensor::zeros(&Device::cpu(), DType::F64, &[5, 7]).unwrap();
                Adapter::new(&lora, None).part(0).unwrap().forward(x.view(), y.view_mut()).unwrap();
                let weighed = y.to_f64().unwrap().into_iter().zip(dy.to_f64().unwrap());
                weighed.map(|(y, d)| y * d).sum()
            };
            let mut buffer = Tensor::zeros(&Device::cpu(), DType::F64, &[lora.layout.len()]).unwrap();
            let mut dx = Tensor::zeros(&Device::cpu(), DType::F64, &[5, 6]).unwrap();
            let part = Adapter::new(&lora, None).part(0).unwrap();
            let mut y = Tensor::zeros(&Device::cpu(), DType::F64, &[5, 7]).unwrap();
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
