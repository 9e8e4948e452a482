//! CPU linear layer on a packed weight, with its adapter in the same pass.
//!
//! The weight is packed once, as `Wᵀ [in, out]` in strips over the outputs. Forward it stands on the right,
//! `y = x·Wᵀ`; backward it stands on the left, `dxᵀ = Wᵀ·dyᵀ`. The adapter's outer factors are further terms
//! of the same sums, so `y` and `dx` are written once. x, dy and what comes from them are packed once per
//! pass and serve all products.

use std::ops::Range;

use half::bf16;

use crate::cpu::{Mat, MatMut, Real};
use crate::error::expect_shape;
use crate::ops::gemm::strips::{
    Extra, Job, Lane, Parts, Scratch, Strips, Target, WIDTH, pack_transposed, packed_len, run_all, splits,
};
use crate::ops::gemm::{self, Operand};
use crate::ops::linear::Write;
use crate::{DType, Element, Error, Result, Tensor, View, ViewMut};

/// A weight `[out, in]` in the order in which this processor multiplies it: as large as it was, but for the
/// padding of the outputs to a multiple of 32.
#[derive(Debug)]
pub struct Packed {
    strips: Tensor,
    shape: [usize; 2],
    /// Parts of the other operand of its products.
    parts: usize,
}

/// The adapter of a layer: `scale · Bᵢ·(Aᵢ·x)` for each of its members, which share x.
#[derive(Debug, Clone, Copy)]
pub struct Adapter<'a> {
    /// All A, one under the other: `[members · rank, in]`.
    pub a: View<'a>,
    /// Outputs of each member, and its B: `[outputs, rank]`.
    pub members: &'a [(Range<usize>, View<'a>)],
    /// Multiplies what the adapter adds.
    pub scale: f64,
}

/// Where an adapter's gradients go.
#[derive(Debug)]
pub struct AdapterGradients<'a> {
    /// `[1, n]`: dA, then dB of one member after the other.
    pub all: ViewMut<'a>,
    /// Whether they replace the existing values.
    pub write: Write,
}

/// Whether this processor multiplies packed weights of a type faster than unpacked ones.
pub fn packs(dtype: DType) -> bool {
    match dtype {
        DType::F32 => f32::available(),
        DType::BF16 => bf16::available(),
        DType::F64 | DType::U8 => false,
    }
}

impl Packed {
    /// Packs a weight, if this processor multiplies packed ones of its type faster: 32-bit floats everywhere
    /// with AVX-512, bf16 where there are fast dot products of it. Products of a bf16 weight round the
    /// other operand to bf16 too, unless they are to be `exact`; sums are 32-bit.
    ///
    /// Exact products with a weight whose values are bf16, however it is stored, are made of bf16 ones where
    /// these are more than three times as fast as 32-bit ones.
    ///
    /// # Errors
    /// Out of memory; the weight is not a matrix.
    pub fn pack(weight: &Tensor, exact: bool) -> Result<Option<Self>> {
        let &[out, input] = weight.shape() else {
            return Err(Error::shape("pack", "axes of the weight", &[2], &[weight.shape().len()]));
        };
        let exact = exact || weight.dtype() == DType::F32;
        let slower = weight.dtype() == DType::BF16 && exact && !splits();
        if !packs(weight.dtype()) || slower || out == 0 || input == 0 {
            return Ok(None);
        }
        let wide = if weight.dtype() == DType::F32 { None } else { Some(weight.to_dtype(DType::F32)?) };
        let wide = wide.as_ref().unwrap_or(weight).view().cpu::<f32>("pack")?;
        let narrow = weight.dtype() == DType::BF16 || splits() && is_narrow(wide);
        let parts = if narrow && exact { 3 } else { 1 };
        let dtype = if narrow { DType::BF16 } else { DType::F32 };
        let mut strips = Tensor::empty(&weight.device(), dtype, &[packed_len(input, out)])?;
        if narrow {
            pack_transposed::<bf16>(wide, 1.0, strips.host_mut()?, true);
        } else {
            pack_transposed::<f32>(wide, 1.0, strips.host_mut()?, true);
        }
        Ok(Some(Packed { strips, shape: [out, input], parts }))
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Element type of the storage.
    pub fn dtype(&self) -> DType {
        self.strips.dtype()
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        self.strips.len() * self.dtype().bytes()
    }

    /// `Wᵀ`, packed.
    fn transpose<E: Element + Lane>(&self) -> Result<Parts<'_, E>> {
        Ok(Parts::one(Strips::new(self.strips.host()?, self.shape[1], self.shape[0])))
    }

    /// `y = x·Wᵀ + bias` and what the adapter adds, or added to `y`; `ax` becomes `A·x`, `[m, members ·
    /// rank]`.
    ///
    /// # Errors
    /// Shapes do not fit, or types differ.
    pub fn forward(
        &self,
        x: View<'_>,
        bias: Option<&Tensor>,
        adapter: Option<(Adapter<'_>, ViewMut<'_>)>,
        write: Write,
        y: ViewMut<'_>,
    ) -> Result<()> {
        const OP: &str = "packed linear forward";
        let [out, input] = self.shape;
        expect_shape(OP, "x columns", &[input], &[x.cols()])?;
        expect_shape(OP, "y", &[x.rows(), out], &y.shape())?;
        if let Some(bias) = bias {
            expect_shape(OP, "bias", &[out], bias.shape())?;
        }
        if let Some((adapter, ax)) = &adapter {
            adapter.check_shapes(OP, self.shape)?;
            expect_shape(OP, "A·x", &[x.rows(), adapter.a.rows()], &ax.shape())?;
        }
        match self.dtype() {
            DType::BF16 => forward::<bf16>(OP, x, self, bias, adapter, write, y),
            _ => forward::<f32>(OP, x, self, bias, adapter, write, y),
        }
    }

    /// `dx = dy·W` and what comes through the adapter, or added to `dx`; with `trained`, also the adapter's
    /// gradients. `ax` is what the forward pass left.
    ///
    /// With `u = scale · Bᵀ·dy`: `dB = scale · dyᵀ·(A·x)`, `dA = uᵀ·x`, `dx += Aᵀ·u`.
    ///
    /// # Errors
    /// Shapes do not fit, or types differ.
    pub fn backward(
        &self,
        dy: View<'_>,
        trained: Option<Trained<'_>>,
        dx: Option<(Write, ViewMut<'_>)>,
    ) -> Result<()> {
        const OP: &str = "packed linear backward";
        let [out, input] = self.shape;
        expect_shape(OP, "dy columns", &[out], &[dy.cols()])?;
        if let Some((_, dx)) = &dx {
            expect_shape(OP, "dx", &[dy.rows(), input], &dx.shape())?;
        }
        if let Some(Trained { adapter, x, ax, gradients }) = &trained {
            adapter.check_shapes(OP, self.shape)?;
            expect_shape(OP, "x", &[dy.rows(), input], &x.shape())?;
            expect_shape(OP, "A·x", &[dy.rows(), adapter.a.rows()], &ax.shape())?;
            expect_shape(OP, "gradients", &[1, adapter.parameters()], &gradients.all.shape())?;
        }
        match self.dtype() {
            DType::BF16 => backward::<bf16>(OP, dy, self, trained, dx),
            _ => backward::<f32>(OP, dy, self, trained, dx),
        }
    }
}

/// An adapter that is trained, with what its backward pass needs.
#[derive(Debug)]
pub struct Trained<'a> {
    /// The adapter.
    pub adapter: Adapter<'a>,
    /// The layer's input, `[m, in]`.
    pub x: View<'a>,
    /// `A·x` of the forward pass.
    pub ax: View<'a>,
    /// Where gradients go.
    pub gradients: AdapterGradients<'a>,
}

impl Adapter<'_> {
    fn rank(&self) -> usize {
        self.a.rows() / self.members.len().max(1)
    }

    /// Parameters of all its matrices.
    fn parameters(&self) -> usize {
        let b = self.members.iter().map(|(columns, _)| columns.len() * self.rank());
        self.a.rows() * self.a.cols() + b.sum::<usize>()
    }

    fn check_shapes(&self, op: &'static str, [out, input]: [usize; 2]) -> Result<()> {
        let rank = self.rank();
        expect_shape(op, "A", &[rank * self.members.len(), input], &self.a.shape())?;
        for (columns, b) in self.members {
            expect_shape(op, "B", &[columns.len(), rank], &b.shape())?;
            if columns.end > out {
                return Err(Error::shape(op, "outputs of the adapter", &[out], &[columns.end]));
            }
        }
        Ok(())
    }

    /// Columns of `A·x` of a member.
    fn ranks(&self, member: usize) -> Range<usize> {
        member * self.rank()..(member + 1) * self.rank()
    }
}

/// Columns of a matrix.
fn columns(m: Mat<'_, f32>, range: Range<usize>) -> Mat<'_, f32> {
    Mat { data: m.data.get(range.start..).unwrap_or_default(), cols: range.len(), ..m }
}

/// Whether all values are bf16.
fn is_narrow(m: Mat<'_, f32>) -> bool {
    (0..m.rows).all(|i| m.row(i).iter().all(|x| x.to_bits() & 0xffff == 0))
}

/// Scratch for what every member of an adapter packs: m rows of its ranks, and its B.
fn members_cost<E: Lane>(adapter: &Adapter<'_>, m: usize, parts: usize) -> usize {
    let rank = adapter.rank();
    let b = |(outputs, _): &(Range<usize>, View<'_>)| Parts::<E>::cost(parts, rank, outputs.len());
    adapter.members.len() * Parts::<E>::cost(parts, m, rank) + adapter.members.iter().map(b).sum::<usize>()
}

/// An adapter's matrices on the host.
struct Matrices<'a> {
    a: Mat<'a, f32>,
    /// Outputs of each member, and its B.
    members: Vec<(Range<usize>, Mat<'a, f32>)>,
}

impl<'a> Matrices<'a> {
    fn of(op: &'static str, adapter: &Adapter<'a>) -> Result<Self> {
        let b = |(outputs, b): &(Range<usize>, View<'a>)| Ok((outputs.clone(), b.cpu::<f32>(op)?));
        Ok(Matrices { a: adapter.a.cpu(op)?, members: adapter.members.iter().map(b).collect::<Result<_>>()? })
    }
}

fn forward<E: Element + Lane>(
    op: &'static str,
    x: View<'_>,
    weight: &Packed,
    bias: Option<&Tensor>,
    adapter: Option<(Adapter<'_>, ViewMut<'_>)>,
    write: Write,
    y: ViewMut<'_>,
) -> Result<()> {
    let (weight, parts) = (weight.transpose::<E>()?, weight.parts);
    let (x, y) = (x.cpu::<f32>(op)?, y.cpu::<f32>(op)?);
    let (m, input, out) = (x.rows, x.cols, y.cols);
    let bias = bias.map(|b| b.view().cpu::<f32>(op)).transpose()?;
    let adapter =
        adapter.map(|(a, ax)| Ok::<_, Error>((Matrices::of(op, &a)?, a, ax.cpu::<f32>(op)?))).transpose()?;
    let mut cost = Parts::<E>::cost(parts, m, input) + Scratch::cost::<f32>(out + WIDTH);
    if let Some((_, adapter, _)) = &adapter {
        cost += Parts::<E>::cost(parts, input, adapter.a.rows()) + members_cost::<E>(adapter, m, parts);
    }
    f32::with_scratch(cost, |scratch| {
        let mut scratch = Scratch::new(scratch);
        let start = bias.map(|bias| {
            let row = scratch.take::<f32>(out.next_multiple_of(WIDTH));
            row[..out].copy_from_slice(bias.row(0));
            row[out..].fill(0.0);
            &*row
        });
        let mut own = scratch.split(Parts::<E>::cost(parts, m, input));
        let matrices = adapter.as_ref().map(|(matrices, ..)| matrices);
        let (px, packed) = rayon::join(
            || Parts::<E>::pack(parts, x, 1.0, &mut own),
            || {
                matrices.map(|Matrices { a, members }| {
                    let a = Parts::<E>::pack_transposed(parts, *a, 1.0, &mut scratch);
                    let aligned = members.iter().filter(|(outputs, _)| outputs.start % WIDTH == 0);
                    let b = aligned.map(|(_, b)| Parts::pack_transposed(parts, *b, 1.0, &mut scratch));
                    (a, b.collect::<Vec<_>>())
                })
            },
        );
        let mut extras = Vec::new();
        let mut apart = Vec::new();
        if let (Some((matrices, adapter, ax)), Some((pa, pb))) = (adapter, packed) {
            let base = px.times(pa);
            let job =
                Job { base: &base, extras: &[], start: None, target: Target::Rows(ax.stride), add: false };
            // SAFETY: A·x is m rows of as many elements as A has rows, borrowed exclusively.
            unsafe { job.run(ax.data.as_mut_ptr()) }
            let ax = Mat { data: &*ax.data, rows: ax.rows, cols: ax.cols, stride: ax.stride };
            let mut pb = pb.into_iter();
            for (i, (outputs, b)) in matrices.members.into_iter().enumerate() {
                let ax = columns(ax, adapter.ranks(i));
                let Some(pb) = (outputs.start % WIDTH == 0).then(|| pb.next()).flatten() else {
                    apart.push((outputs, ax, b, adapter.scale));
                    continue;
                };
                let terms = Parts::pack(parts, ax, adapter.scale as f32, &mut scratch).times(pb);
                let first = outputs.start / WIDTH;
                let strips = first..first + outputs.len().div_ceil(WIDTH);
                extras.extend(terms.iter().map(|&term| Extra { term, strips: strips.clone() }));
            }
        }
        let target = Target::Rows(y.stride);
        let job = Job { base: &px.times(weight), extras: &extras, start, target, add: write == Write::Add };
        // SAFETY: y is m rows of as many elements as the weight has outputs, borrowed exclusively.
        unsafe { job.run(y.data.as_mut_ptr()) }
        // Outputs that do not begin with a strip.
        for (outputs, ax, b, scale) in apart {
            let stride = y.stride;
            let to = MatMut { data: &mut y.data[outputs.start..], rows: m, cols: outputs.len(), stride };
            gemm::product(scale as f32, Operand::new(ax, false), Operand::new(b, true), 1.0, to);
        }
        Ok(())
    })
}

/// [`Trained`] on the host.
struct HostTrained<'a> {
    matrices: Matrices<'a>,
    adapter: Adapter<'a>,
    x: Mat<'a, f32>,
    ax: Mat<'a, f32>,
    gradients: MatMut<'a, f32>,
    add: bool,
}

impl<'a> HostTrained<'a> {
    fn of(op: &'static str, trained: Trained<'a>) -> Result<Self> {
        let Trained { adapter, x, ax, gradients: AdapterGradients { all, write } } = trained;
        let (matrices, add) = (Matrices::of(op, &adapter)?, write == Write::Add);
        Ok(HostTrained { matrices, adapter, x: x.cpu(op)?, ax: ax.cpu(op)?, gradients: all.cpu(op)?, add })
    }
}

fn backward<E: Element + Lane>(
    op: &'static str,
    dy: View<'_>,
    weight: &Packed,
    trained: Option<Trained<'_>>,
    dx: Option<(Write, ViewMut<'_>)>,
) -> Result<()> {
    let (weight, parts) = (weight.transpose::<E>()?, weight.parts);
    let dy = dy.cpu::<f32>(op)?;
    let (m, out) = (dy.rows, dy.cols);
    let dx = dx.map(|(write, dx)| Ok::<_, Error>((write == Write::Add, dx.cpu::<f32>(op)?))).transpose()?;
    let trained = trained.map(|trained| HostTrained::of(op, trained)).transpose()?;
    let mut cost = Parts::<E>::cost(parts, out, m);
    if let Some(HostTrained { adapter, x, .. }) = &trained {
        let ranks = adapter.a.rows();
        cost += Scratch::cost::<f32>(packed_len(ranks, m))
            + Parts::<E>::sums_cost(parts, ranks, m)
            + Parts::<E>::cost(parts, x.cols, ranks)
            + Parts::<E>::cost(parts, m, x.cols)
            + members_cost::<E>(adapter, m, parts);
    }
    f32::with_scratch(cost, |scratch| {
        let mut scratch = Scratch::new(scratch);
        let mut own = scratch.split(Parts::<E>::cost(parts, out, m));
        let mut pack_dy = || Parts::<E>::pack_transposed(parts, dy, 1.0, &mut own);
        let Some(trained) = trained else {
            if let Some((add, dx)) = dx {
                let base = weight.times(pack_dy());
                let job =
                    Job { base: &base, extras: &[], start: None, target: Target::Columns(dx.stride), add };
                // SAFETY: dx is m rows of as many elements as the weight has inputs, borrowed exclusively.
                unsafe { job.run(dx.data.as_mut_ptr()) }
            }
            return;
        };
        let HostTrained { matrices: Matrices { a, members }, adapter, x, ax, gradients, add } = trained;
        let (ranks, rank, scale) = (a.rows, adapter.rank(), adapter.scale as f32);
        let mut own_x = scratch.split(Parts::<E>::cost(parts, m, x.cols));
        let (pdy, (px, (pa, small))) = rayon::join(pack_dy, || {
            rayon::join(
                || Parts::<E>::pack(parts, x, 1.0, &mut own_x),
                || {
                    let pa = Parts::<E>::pack_transposed(parts, a, 1.0, &mut scratch);
                    let member = |(i, (_, b)): (usize, &(Range<usize>, Mat<'_, f32>))| {
                        let pb = Parts::<E>::pack_transposed(parts, *b, scale, &mut scratch);
                        let pax = Parts::<E>::pack(parts, columns(ax, adapter.ranks(i)), scale, &mut scratch);
                        (pb, pax)
                    };
                    (pa, members.iter().enumerate().map(member).collect::<Vec<_>>())
                },
            )
        });

        // uᵀ, packed: [ranks, m].
        let sums = scratch.take::<f32>(packed_len(ranks, m));
        let u = sums.as_mut_ptr();
        let (da, mut rest) = gradients.data.split_at_mut(ranks * a.cols);
        let mut terms = Vec::with_capacity(2 * members.len());
        for ((outputs, _), (pb, pax)) in members.iter().zip(small) {
            let pdy = pdy.rows_from(outputs.start, outputs.len());
            terms.extend([pb.times(pdy), pdy.times(pax)]);
        }
        let job = |base, target, add| Job { base, extras: &[], start: None, target, add };
        let mut products = Vec::with_capacity(terms.len());
        for (i, (pair, (outputs, _))) in terms.chunks_exact(2).zip(&members).enumerate() {
            let (db, tail) = rest.split_at_mut(outputs.len() * rank);
            rest = tail;
            // SAFETY: the rows of this member's rank in every strip of uᵀ, and dB, as large as B; both
            // borrowed exclusively.
            products.extend(unsafe {
                [
                    job(&pair[0], Target::Strips(ranks), false).to(u.add(i * rank * WIDTH)),
                    job(&pair[1], Target::Rows(rank), add).to(db.as_mut_ptr()),
                ]
            });
        }
        run_all(&products);

        let pu = Parts::of_sums(parts, sums, ranks, m, &mut scratch);
        let da_base = pu.times(px);
        // SAFETY: dA is as large as A, borrowed exclusively.
        let da = unsafe { job(&da_base, Target::Rows(a.cols), add).to(da.as_mut_ptr()) };
        let Some((add, dx)) = dx else {
            return run_all(&[da]);
        };
        let through = pa.times(pu);
        let extras: Vec<_> =
            through.iter().map(|&term| Extra { term, strips: 0..m.div_ceil(WIDTH) }).collect();
        let base = weight.times(pdy);
        let job = Job { base: &base, extras: &extras, start: None, target: Target::Columns(dx.stride), add };
        // SAFETY: dx is m rows of as many elements as the weight has inputs, borrowed exclusively.
        run_all(&[unsafe { job.to(dx.data.as_mut_ptr()) }, da]);
    });
    Ok(())
}

#[cfg(test)]
mod tests;
