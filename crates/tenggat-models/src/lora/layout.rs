//! Which modules are adapted, and where their matrices lie in the flat buffer.

use std::ops::Range;

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

/// A dimension as a product of two, the small one first: `factor` if it divides the dimension, else the pair
/// with the least sum whose small part is at most `factor` (any, for `None`). Source: LyCORIS
/// `lycoris/functional/general.py`, `factorization`, and ai-toolkit's copy of it, which puts a `factor` that
/// divides first even if it is the larger.
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
    pub(super) input: usize,
    /// First element of the stacked A matrices, `[rank · members, input]`, or of the first W₁.
    pub(super) a: usize,
    pub(super) members: Vec<Member>,
}

/// A module of a fused layer that is adapted.
#[derive(Debug, Clone)]
pub(super) struct Member {
    /// Columns of the fused output.
    pub(super) columns: Range<usize>,
    pub(super) a: usize,
    pub(super) a_shape: [usize; 2],
    pub(super) b: usize,
    pub(super) b_shape: [usize; 2],
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
    pub(super) kind: Kind,
    groups: Vec<Option<Group>>,
    modules: Vec<Module>,
    len: usize,
}

impl Layout {
    /// Lays out an adapter of this kind over the modules that `select` picks.
    ///
    /// `layers`: the fused linear layers of the model in its own order, each with its input width and its
    /// modules in the order of their outputs.
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
    pub(super) fn range(&self, layers: Range<usize>) -> Range<usize> {
        let groups = self.groups[layers].iter().flatten();
        let first = groups.clone().map(|group| group.a).min().unwrap_or(0);
        let ends = groups.flat_map(|group| &group.members).map(|m| m.b + m.b_shape[0] * m.b_shape[1]);
        first..ends.max().unwrap_or(first)
    }

    pub(crate) fn group(&self, layer: usize) -> Option<&Group> {
        self.groups[layer].as_ref()
    }
}
