//! Adapters that are products of two thin matrices: `y += scale · B·(A·x)`.

use std::ops::Range;

use tenggat_tensor::ops::gemm;
use tenggat_tensor::ops::linear::Write;
use tenggat_tensor::weight::{self, AdapterGradients, Packed};
use tenggat_tensor::{Result, Tensor, View, ViewMut};

use super::layout::{Group, Member};
use super::parameters::{Gradients, Parameters};
use crate::dropout::Dropout;

/// `scale · B·(A·x)`.
pub(super) struct LowRank<'a> {
    pub(super) group: &'a Group,
    pub(super) rank: usize,
    pub(super) parameters: Parameters<'a>,
    pub(super) scale: f64,
    pub(super) dropout: Option<(&'a Dropout, usize)>,
}

impl LowRank<'_> {
    fn stacked_rank(&self) -> usize {
        self.rank * self.group.members.len()
    }

    fn drop(&self, ax: ViewMut<'_>) -> Result<()> {
        self.dropout.map_or(Ok(()), |(dropout, layer)| dropout.apply(layer, self.rank, ax))
    }

    /// The adapter in the form that packed layers take; `members` is filled with views of B.
    fn adapter<'m>(&'m self, members: &'m mut Vec<(Range<usize>, View<'m>)>) -> Result<weight::Adapter<'m>> {
        for member in &self.group.members {
            let b = self.parameters.matrix(member.b, member.columns.len(), self.rank)?;
            members.push((member.columns.clone(), b));
        }
        let a = self.parameters.matrix(self.group.a, self.stacked_rank(), self.group.input)?;
        Ok(weight::Adapter { a, members, scale: self.scale })
    }

    /// `y = W·x + bias + scale · B·(A·x)` in one pass; returns `A·x`.
    pub(super) fn forward_packed(
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
    pub(super) fn backward_packed(
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
        let trained = weight::Trained { adapter, x, ax: ax.view(), gradients };
        weight.backward(dy, Some(trained), dx.map(|dx| (Write::Replace, dx)))
    }

    /// Members that can be multiplied side by side: equal widths, their columns adjoining. Their B matrices
    /// follow one another (`Layout::push_group`).
    fn runs(&self) -> impl Iterator<Item = &[Member]> {
        let alike =
            |a: &Member, b: &Member| a.columns.len() == b.columns.len() && a.columns.end == b.columns.start;
        self.group.members.chunk_by(alike)
    }

    /// Whether it has a share in each of a layer's output columns.
    pub(super) fn covers(&self, outputs: usize) -> bool {
        let members = &self.group.members;
        let adjoin = members.windows(2).all(|pair| pair[0].columns.end == pair[1].columns.start);
        adjoin
            && members.first().is_some_and(|m| m.columns.start == 0)
            && members.last().is_some_and(|m| m.columns.end == outputs)
    }

    /// Writes `scale · B·(A·x)` to `y`, or adds it, and returns `A·x` (`[m, rank · members]`), which backward
    /// needs.
    pub(super) fn forward(&self, x: View<'_>, write: Write, mut y: ViewMut<'_>) -> Result<Tensor> {
        let mut ax = Tensor::empty(&y.device(), y.dtype(), &[x.rows(), self.stacked_rank()])?;
        let a = self.parameters.matrix(self.group.a, self.stacked_rank(), self.group.input)?;
        gemm::nt(1.0, x, a, 0.0, ax.view_mut())?;
        self.drop(ax.view_mut())?;
        let mut at = 0;
        for run in self.runs() {
            let Run { outputs, b } = Run::of(run);
            let b = self.parameters.matrix(b, outputs.len(), self.rank)?;
            let ax = ax.view().columns(at..at + self.rank * run.len());
            let to = y.reborrow().columns(outputs);
            gemm::nt_parts(run.len(), self.scale, ax, b, write.beta(), to)?;
            at += self.rank * run.len();
        }
        Ok(ax)
    }

    /// Writes dA and dB, and writes the adapter's share to `dx`, or adds it, if there is one.
    ///
    /// With `u = scale · Bᵀ·dy`: `dB = scale · dyᵀ·(A·x)`, `dA = uᵀ·x`, `dx += Aᵀ·u`. Dropout multiplies
    /// `A·x` and u.
    pub(super) fn backward(
        &self,
        x: View<'_>,
        ax: &Tensor,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
        dx: Option<(Write, ViewMut<'_>)>,
    ) -> Result<()> {
        let beta = gradients.write.beta();
        let mut u = ax.empty_like(ax.shape())?;
        let mut at = 0;
        for run in self.runs() {
            let columns = at..at + self.rank * run.len();
            let Run { outputs, b: first } = Run::of(run);
            let (dy, rows) = (dy.columns(outputs.clone()), outputs.len());
            let b = self.parameters.matrix(first, rows, self.rank)?;
            gemm::nn_parts(run.len(), self.scale, dy, b, 0.0, u.view_mut().columns(columns.clone()))?;
            let db = gradients.buffer.matrix_mut(first, rows, self.rank)?;
            gemm::tn_parts(run.len(), self.scale, dy, ax.view().columns(columns), beta, db)?;
            at += self.rank * run.len();
        }
        self.drop(u.view_mut())?;
        let (rows, cols) = (self.stacked_rank(), self.group.input);
        gemm::tn(1.0, u.view(), x, beta, gradients.buffer.matrix_mut(self.group.a, rows, cols)?)?;
        if let Some((write, dx)) = dx {
            gemm::nn(1.0, u.view(), self.parameters.matrix(self.group.a, rows, cols)?, write.beta(), dx)?;
        }
        Ok(())
    }
}

/// Where members that are multiplied side by side lie.
struct Run {
    /// Columns of the layer's output.
    outputs: Range<usize>,
    /// First element of the first one's B, which the others' follow.
    b: usize,
}

impl Run {
    fn of(members: &[Member]) -> Self {
        let (first, last) = (&members[0], &members[members.len() - 1]);
        Run { outputs: first.columns.start..last.columns.end, b: first.b }
    }
}
