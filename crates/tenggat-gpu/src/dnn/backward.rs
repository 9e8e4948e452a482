//! The backward pass: 24 operations that cuDNN recognises as one kernel.
//!
//! Per sample and head, with the saved log-sum-exp `stats`: `P = exp(scale · Q·Kᵀ − stats)`, `dV = Pᵀ·dO`,
//! `dS = scale · P ∘ (dO·Vᵀ − rowsum(dO ∘ O))`, `dK = dSᵀ·Q`, `dQ = dS·K`.
//!
//! | # | operations | results |
//! |---|---|---|
//! | 1–3 | `dO ∘ O`; its row sums; times one | `RowSums` in memory, f32 |
//! | 4–6 | `Q·Kᵀ`; times `scale`; minus `stats` | f32 `[b, h, s, s]`, virtual |
//! | 7–11 | index of the query and of the key; each below its length; both | i32 and booleans, virtual |
//! | 12–13 | −∞ where not both; `exp` | `P`, f32, virtual |
//! | 14–15 | `P` transposed, rounded to bf16; `Pᵀ·dO` | `dV` |
//! | 16–19 | `dO·Vᵀ`; minus the row sums; times `P`; times `scale` | `dS`, bf16, virtual |
//! | 20–21 | `dS` transposed; `dSᵀ·Q` | `dK` |
//! | 22–24 | `Kᵀ` seen as `K`; `dS·K`; rounded | `Accumulator` in memory, f32; `dQ` |
//!
//! Products run over the valid lengths only. The order, the types between, the product with one and the
//! detour from `Kᵀ` to `K` are what the library's pattern requires.

use super::operations::{Node, Operation, OperationGraph, Pointwise};
use super::shape::Shape;
use super::tensor::{Operand, Place, Tensor, Type, contiguous, number};

/// `dQ`, `dK` and `dV` from what the forward pass read and wrote and from `dO`.
pub(super) fn graph(shape: &Shape) -> OperationGraph {
    use Pointwise::*;
    let mut graph = OperationGraph::new("attention backward");
    let g = &mut graph;
    let scores = shape.axes(shape.tokens, shape.tokens);
    let values = shape.axes(shape.tokens, shape.head_dim);
    let rows = shape.axes(shape.tokens, 1);

    let key_values = shape.values("K", Operand::K, shape.k);
    let q = g.tensor(shape.values("Q", Operand::Q, shape.q));
    let kt = g.tensor(key_values.transposed("Kᵀ"));
    let vt = g.tensor(shape.values("V", Operand::V, shape.v).transposed("Vᵀ"));
    let o = g.tensor(shape.values("O", Operand::O, shape.output()));
    let d_o = g.tensor(shape.values("dO", Operand::DO, shape.output()));
    let stats = g.tensor(shape.rows("stats", Operand::Stats));
    let scale = g.tensor(number("scale", Operand::Scale));
    let q_lens = Some(g.tensor(shape.lengths("query lengths", Operand::QueryLengths)));
    let k_lens = Some(g.tensor(shape.lengths("key lengths", Operand::KeyLengths)));

    // 1–3
    let products = g.pointwise(Multiply, d_o, Some(o), Type::F32, "dO∘O");
    let sums = g.between("sums of dO∘O", Type::F32, rows, contiguous(rows));
    g.operations.push(Operation::Sum { x: products, y: sums });
    let one = g.tensor(number("one", Operand::One));
    let row_sums = g.tensor(shape.rows("row sums", Operand::RowSums));
    g.operations.push(Operation::Pointwise { mode: Multiply, x: sums, b: Some(one), t: None, y: row_sums });

    // 4–6
    let s = g.between("Q·Kᵀ", Type::F32, scores, contiguous(scores));
    g.operations.push(Operation::Matmul { a: q, b: kt, m: q_lens, n: k_lens, k: None, c: s });
    let scaled = g.pointwise(Multiply, s, Some(scale), Type::F32, "scaled scores");
    let logs = g.pointwise(Subtract, scaled, Some(stats), Type::F32, "log P");

    // 7–13
    let query = g.pointwise(Index(2), logs, None, Type::I32, "query index");
    let key = g.pointwise(Index(3), logs, None, Type::I32, "key index");
    let query_valid = g.pointwise(Less, query, q_lens, Type::Bool, "query valid");
    let key_valid = g.pointwise(Less, key, k_lens, Type::Bool, "key valid");
    let valid = g.pointwise(And, query_valid, Some(key_valid), Type::Bool, "valid");
    let never = g.tensor(number("−∞", Operand::Never));
    let masked = g.between("masked log P", Type::F32, scores, contiguous(scores));
    let (b, t) = (Some(never), Some(valid));
    g.operations.push(Operation::Pointwise { mode: Select, x: logs, b, t, y: masked });
    let p = g.pointwise(Exp, masked, None, Type::F32, "P");

    // 14–15
    let pt = transpose(g, p, "Pᵀ");
    let dv = g.tensor(shape.values("dV", Operand::DV, shape.v));
    g.operations.push(Operation::Matmul { a: pt, b: d_o, m: k_lens, n: None, k: q_lens, c: dv });

    // 16–19
    let dp = g.between("dO·Vᵀ", Type::F32, scores, contiguous(scores));
    g.operations.push(Operation::Matmul { a: d_o, b: vt, m: q_lens, n: k_lens, k: None, c: dp });
    let centred = g.pointwise(Subtract, dp, Some(row_sums), Type::F32, "dP − row sums");
    let weighted = g.pointwise(Multiply, centred, Some(p), Type::F32, "P∘(dP − row sums)");
    let ds = g.pointwise(Multiply, weighted, Some(scale), Type::Bf16, "dS");

    // 20–21
    let dst = transpose(g, ds, "dSᵀ");
    let dk = g.tensor(shape.values("dK", Operand::DK, shape.k));
    g.operations.push(Operation::Matmul { a: dst, b: q, m: k_lens, n: None, k: q_lens, c: dk });

    // 22–24
    let k = g.tensor(Tensor { place: Place::Virtual, ..key_values });
    g.operations.push(Operation::Reshape { x: kt, y: k });
    let accumulator = g.tensor(Tensor {
        name: "accumulator",
        of: Type::F32,
        dims: values,
        strides: contiguous(values),
        place: Place::Memory(Operand::Accumulator),
    });
    g.operations.push(Operation::Matmul { a: ds, b: k, m: q_lens, n: None, k: k_lens, c: accumulator });
    let dq = g.tensor(shape.values("dQ", Operand::DQ, shape.q));
    g.operations.push(Operation::Pointwise { mode: Identity, x: accumulator, b: None, t: None, y: dq });
    graph
}

/// The bf16 transpose of a contiguous `[b, h, s, s]`.
fn transpose(graph: &mut OperationGraph, x: Node, name: &'static str) -> Node {
    let tensor = graph.tensors[x.0].transposed(name);
    let y = graph.tensor(Tensor { of: Type::Bf16, ..tensor });
    graph.operations.push(Operation::Reshape { x, y });
    y
}
