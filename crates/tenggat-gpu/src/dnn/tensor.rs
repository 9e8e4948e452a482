//! Tensors of an operation graph: shape, strides, and where the elements are.

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnDataType_t,
};

use super::descriptor::Descriptor;
use super::error::Result;
use super::shape::{Shape, Strides};

/// Element types that occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Type {
    Bf16,
    F32,
    I32,
    Bool,
}

impl Type {
    /// cuDNN's name of the type.
    pub fn raw(self) -> cudnnDataType_t {
        match self {
            Type::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            Type::F32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
            Type::I32 => cudnnDataType_t::CUDNN_DATA_INT32,
            Type::Bool => cudnnDataType_t::CUDNN_DATA_BOOLEAN,
        }
    }
}

/// What the caller hands over when a plan runs: device addresses, and three numbers of the host.
///
/// The discriminant is the tensor's id in both graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Operand {
    Q = 1,
    K,
    V,
    O,
    Stats,
    QueryLengths,
    KeyLengths,
    DO,
    DQ,
    DK,
    DV,
    /// Row sums of `dO ∘ O`, f32 `[b, h, s, 1]`: scratch of the backward pass.
    RowSums,
    /// dQ before it is rounded, f32 `[b, h, s, d]`: scratch of the backward pass.
    Accumulator,
    /// Factor of the scores.
    Scale,
    /// The number one.
    One,
    /// Minus infinity.
    Never,
}

/// Where the elements of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Device memory of the caller.
    Memory(Operand),
    /// One number of the host, read when the plan runs.
    Host(Operand),
    /// Nowhere: a value between two operations.
    Virtual,
}

/// Four axes, outermost first; for values of attention `[b, h, s, d]`.
pub(super) type Axes = [i64; 4];

/// Description of a tensor.
#[derive(Debug, Clone, Hash)]
pub(super) struct Tensor {
    /// Name for messages.
    pub name: &'static str,
    pub of: Type,
    pub dims: Axes,
    /// In elements.
    pub strides: Axes,
    pub place: Place,
}

impl Tensor {
    /// The same elements with the last two axes exchanged.
    pub fn transposed(&self, name: &'static str) -> Self {
        let swap = |[b, h, i, j]: Axes| [b, h, j, i];
        Tensor { name, dims: swap(self.dims), strides: swap(self.strides), ..self.clone() }
    }

    /// The descriptor; `number` tells virtual tensors apart.
    pub fn finalise(&self, number: usize) -> Result<Descriptor> {
        /// Ids below belong to operands.
        const FIRST_VIRTUAL: i64 = 100;
        let mut descriptor = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
        let id = match self.place {
            Place::Memory(operand) | Place::Host(operand) => operand as i64,
            Place::Virtual => FIRST_VIRTUAL + number as i64,
        };
        descriptor.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &[self.of.raw()])?;
        descriptor.set(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &self.dims)?;
        descriptor.set(Name::CUDNN_ATTR_TENSOR_STRIDES, &self.strides)?;
        descriptor.set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id])?;
        descriptor.set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT as i64])?;
        match self.place {
            Place::Memory(_) => {}
            Place::Host(_) => descriptor.set(Name::CUDNN_ATTR_TENSOR_IS_BY_VALUE, &[true])?,
            Place::Virtual => descriptor.set(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, &[true])?,
        }
        descriptor.finalise()
    }
}

/// What every device address is a multiple of, in bytes: the kernels read 16 bytes at a time.
pub(super) const ALIGNMENT: u64 = 16;

/// Strides of a contiguous tensor.
pub(super) fn contiguous([_, h, i, j]: Axes) -> Axes {
    [h * i * j, i * j, j, 1]
}

/// The tensors that both passes name.
impl Shape {
    /// `[b, h, i, j]` of this batch and these heads.
    pub(super) fn axes(&self, i: usize, j: usize) -> Axes {
        [self.batch as i64, self.heads as i64, i as i64, j as i64]
    }

    /// A bf16 tensor of the caller, `[b, h, s, d]`, whose tokens and heads lie as `strides` says.
    pub(super) fn values(&self, name: &'static str, operand: Operand, strides: Strides) -> Tensor {
        let batch = self.tokens * strides.token;
        Tensor {
            name,
            of: Type::Bf16,
            dims: self.axes(self.tokens, self.head_dim),
            strides: [batch as i64, strides.head as i64, strides.token as i64, 1],
            place: Place::Memory(operand),
        }
    }

    /// An f32 number per query row, `[b, h, s, 1]`, contiguous.
    pub(super) fn rows(&self, name: &'static str, operand: Operand) -> Tensor {
        let dims = self.axes(self.tokens, 1);
        Tensor { name, of: Type::F32, dims, strides: contiguous(dims), place: Place::Memory(operand) }
    }

    /// A length per sample, i32 `[b, 1, 1, 1]`.
    pub(super) fn lengths(&self, name: &'static str, operand: Operand) -> Tensor {
        let dims = [self.batch as i64, 1, 1, 1];
        Tensor { name, of: Type::I32, dims, strides: [1; 4], place: Place::Memory(operand) }
    }
}

/// An f32 number of the host.
pub(super) fn number(name: &'static str, operand: Operand) -> Tensor {
    Tensor { name, of: Type::F32, dims: [1; 4], strides: [1; 4], place: Place::Host(operand) }
}
