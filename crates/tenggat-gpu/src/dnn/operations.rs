//! A graph of operations as plain data, and the descriptors it turns into.

use std::fmt;

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnPointwiseMode_t,
    cudnnReduceTensorOp_t,
};

use super::descriptor::Descriptor;
use super::error::{Error, Result};
use super::target::Target;
use super::tensor::{Axes, Place, Tensor, Type, contiguous};

/// A tensor of a graph, by its place in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Node(pub usize);

/// What a pointwise operation computes. Operands of extent one are repeated along their axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pointwise {
    /// `x · b`
    Multiply,
    /// `x − b`
    Subtract,
    /// `exp x`
    Exp,
    /// `x`, in another type
    Identity,
    /// The position along this axis; of `x` only the shape counts.
    Index(i64),
    /// `x < b`
    Less,
    /// `x ∧ b`
    And,
    /// `t ? x : b`
    Select,
}

impl Pointwise {
    fn raw(self) -> cudnnPointwiseMode_t {
        match self {
            Pointwise::Multiply => cudnnPointwiseMode_t::CUDNN_POINTWISE_MUL,
            Pointwise::Subtract => cudnnPointwiseMode_t::CUDNN_POINTWISE_SUB,
            Pointwise::Exp => cudnnPointwiseMode_t::CUDNN_POINTWISE_EXP,
            Pointwise::Identity => cudnnPointwiseMode_t::CUDNN_POINTWISE_IDENTITY,
            Pointwise::Index(_) => cudnnPointwiseMode_t::CUDNN_POINTWISE_GEN_INDEX,
            Pointwise::Less => cudnnPointwiseMode_t::CUDNN_POINTWISE_CMP_LT,
            Pointwise::And => cudnnPointwiseMode_t::CUDNN_POINTWISE_LOGICAL_AND,
            Pointwise::Select => cudnnPointwiseMode_t::CUDNN_POINTWISE_BINARY_SELECT,
        }
    }

    /// The type it computes in.
    fn precision(self) -> Type {
        match self {
            Pointwise::Index(_) => Type::I32,
            Pointwise::Less | Pointwise::And => Type::Bool,
            _ => Type::F32,
        }
    }
}

/// One operation; the last field is what it writes.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) enum Operation {
    /// Elementwise on up to three tensors.
    Pointwise { mode: Pointwise, x: Node, b: Option<Node>, t: Option<Node>, y: Node },
    /// Sum over the last axis.
    Sum { x: Node, y: Node },
    /// `c = a·b` per batch and head; only the first `m` rows, `n` columns and `k` terms count, per sample.
    Matmul { a: Node, b: Node, m: Option<Node>, n: Option<Node>, k: Option<Node>, c: Node },
    /// The same elements under other dims and strides.
    Reshape { x: Node, y: Node },
    /// Softmax attention as a whole.
    Attention { q: Node, k: Node, v: Node, scale: Node, q_lens: Node, k_lens: Node, stats: Node, o: Node },
}

/// Operations in the order in which they are computed.
#[derive(Debug, Clone, Hash)]
pub(super) struct OperationGraph {
    /// Name for messages.
    pub name: &'static str,
    pub tensors: Vec<Tensor>,
    pub operations: Vec<Operation>,
}

impl OperationGraph {
    /// No operation yet.
    pub fn new(name: &'static str) -> Self {
        OperationGraph { name, tensors: Vec::new(), operations: Vec::new() }
    }

    /// A tensor to be used or written.
    pub fn tensor(&mut self, tensor: Tensor) -> Node {
        self.tensors.push(tensor);
        Node(self.tensors.len() - 1)
    }

    /// A value between two operations.
    pub fn between(&mut self, name: &'static str, of: Type, dims: Axes, strides: Axes) -> Node {
        self.tensor(Tensor { name, of, dims, strides, place: Place::Virtual })
    }

    /// A new value `mode(x, b)` of the shape of `x`, contiguous.
    pub fn pointwise(
        &mut self,
        mode: Pointwise,
        x: Node,
        b: Option<Node>,
        of: Type,
        y: &'static str,
    ) -> Node {
        let dims = self.tensors[x.0].dims;
        let y = self.between(y, of, dims, contiguous(dims));
        self.operations.push(Operation::Pointwise { mode, x, b, t: None, y });
        y
    }

    /// Builds every descriptor and lets cuDNN check the whole.
    pub fn finalise(&self, target: &Target) -> Result<Finalised> {
        let tensors = (self.tensors.iter().enumerate())
            .map(|(number, tensor)| tensor.finalise(number).map_err(|e| self.inside(tensor.name, e)))
            .collect::<Result<Vec<_>>>()?;
        let mut settings = Vec::new();
        let mut operations = Vec::new();
        for operation in &self.operations {
            let built = operation
                .finalise(&tensors, &mut settings)
                .map_err(|e| self.inside(&operation.describe(&self.tensors).to_string(), e))?;
            operations.push(built);
        }
        let graph = self.finalise_graph(&operations, target).map_err(|e| self.inside("graph", e))?;
        Ok(Finalised { graph, _operations: operations, _settings: settings, _tensors: tensors })
    }

    fn finalise_graph(&self, operations: &[Descriptor], target: &Target) -> Result<Descriptor> {
        let mut graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        let operations: Vec<&Descriptor> = operations.iter().collect();
        graph.set_descriptors(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations)?;
        target.set_graph(&mut graph)?;
        graph.finalise()
    }

    /// Adds to an error which part of this graph it is about.
    fn inside(&self, part: &str, error: Error) -> Error {
        match error {
            Error::Status { what, status, message } => {
                Error::Status { what: format!("{}: {part}: {what}", self.name), status, message }
            }
            other => other,
        }
    }
}

/// A graph that cuDNN accepted, and all that it refers to.
#[derive(Debug)]
pub(super) struct Finalised {
    /// The operation graph itself.
    pub graph: Descriptor,
    // Dropped after it, in this order.
    _operations: Vec<Descriptor>,
    _settings: Vec<Descriptor>,
    _tensors: Vec<Descriptor>,
}

impl Operation {
    /// The descriptor of the operation; that of its mode and precision goes to `settings`.
    fn finalise(&self, tensors: &[Descriptor], settings: &mut Vec<Descriptor>) -> Result<Descriptor> {
        let (kind, setting, operands) = match *self {
            Operation::Pointwise { mode, x, b, t, y } => (
                Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
                Some((Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, pointwise(mode)?)),
                vec![
                    (Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, Some(x)),
                    (Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b),
                    (Name::CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t),
                    (Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, Some(y)),
                ],
            ),
            Operation::Sum { x, y } => (
                Kind::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
                Some((Name::CUDNN_ATTR_OPERATION_REDUCTION_DESC, sum()?)),
                vec![
                    (Name::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, Some(x)),
                    (Name::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, Some(y)),
                ],
            ),
            Operation::Matmul { a, b, m, n, k, c } => (
                Kind::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
                Some((Name::CUDNN_ATTR_OPERATION_MATMUL_DESC, matmul()?)),
                vec![
                    (Name::CUDNN_ATTR_OPERATION_MATMUL_ADESC, Some(a)),
                    (Name::CUDNN_ATTR_OPERATION_MATMUL_BDESC, Some(b)),
                    (Name::CUDNN_ATTR_OPERATION_MATMUL_CDESC, Some(c)),
                    (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, m),
                    (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, n),
                    (Name::CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, k),
                ],
            ),
            Operation::Reshape { x, y } => (
                Kind::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
                None,
                vec![
                    (Name::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, Some(x)),
                    (Name::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, Some(y)),
                ],
            ),
            Operation::Attention { q, k, v, scale, q_lens, k_lens, stats, o } => (
                Kind::CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR,
                None,
                vec![
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, Some(q)),
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, Some(k)),
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, Some(v)),
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, Some(o)),
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, Some(stats)),
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, Some(scale)),
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_QDESC, Some(q_lens)),
                    (Name::CUDNN_ATTR_OPERATION_SDPA_FWD_SEQ_LEN_KVDESC, Some(k_lens)),
                ],
            ),
        };
        let mut operation = Descriptor::new(kind)?;
        if let Some((name, setting)) = setting {
            operation.set_descriptors(name, &[&setting])?;
            settings.push(setting);
        }
        for (name, node) in operands {
            if let Some(Node(index)) = node {
                operation.set_descriptors(name, &[&tensors[index]])?;
            }
        }
        operation.finalise()
    }

    /// The operation with the names of its tensors, for messages.
    fn describe<'a>(&'a self, tensors: &'a [Tensor]) -> impl fmt::Display + 'a {
        let name = |node: Node| tensors[node.0].name;
        fmt::from_fn(move |f| match *self {
            Operation::Pointwise { mode, x, b, y, .. } => {
                let b = b.map_or("", name);
                write!(f, "{mode:?} of {} {b} to {}", name(x), name(y))
            }
            Operation::Sum { x, y } => write!(f, "sum of {} to {}", name(x), name(y)),
            Operation::Matmul { a, b, c, .. } => write!(f, "{}·{} to {}", name(a), name(b), name(c)),
            Operation::Reshape { x, y } => write!(f, "{} seen as {}", name(x), name(y)),
            Operation::Attention { o, .. } => write!(f, "attention to {}", name(o)),
        })
    }
}

fn pointwise(mode: Pointwise) -> Result<Descriptor> {
    let mut setting = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
    setting.set(Name::CUDNN_ATTR_POINTWISE_MODE, &[mode.raw()])?;
    setting.set(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, &[mode.precision().raw()])?;
    if let Pointwise::Index(axis) = mode {
        setting.set(Name::CUDNN_ATTR_POINTWISE_AXIS, &[axis])?;
    }
    setting.finalise()
}

fn sum() -> Result<Descriptor> {
    let mut setting = Descriptor::new(Kind::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?;
    setting.set(Name::CUDNN_ATTR_REDUCTION_OPERATOR, &[cudnnReduceTensorOp_t::CUDNN_REDUCE_TENSOR_ADD])?;
    setting.set(Name::CUDNN_ATTR_REDUCTION_COMP_TYPE, &[Type::F32.raw()])?;
    setting.finalise()
}

fn matmul() -> Result<Descriptor> {
    let mut setting = Descriptor::new(Kind::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?;
    setting.set(Name::CUDNN_ATTR_MATMUL_COMP_TYPE, &[Type::F32.raw()])?;
    setting.finalise()
}
