//! The forward pass: one operation.

use super::operations::{Operation, OperationGraph};
use super::shape::Shape;
use super::tensor::{Operand, number};

/// `O` and the log-sum-exp of the scaled scores, from `Q`, `K` and `V`.
pub(super) fn graph(shape: &Shape) -> OperationGraph {
    let mut graph = OperationGraph::new("attention forward");
    let q = graph.tensor(shape.values("Q", Operand::Q, shape.q));
    let k = graph.tensor(shape.values("K", Operand::K, shape.k));
    let v = graph.tensor(shape.values("V", Operand::V, shape.v));
    let scale = graph.tensor(number("scale", Operand::Scale));
    let q_lens = graph.tensor(shape.lengths("query lengths", Operand::QueryLengths));
    let k_lens = graph.tensor(shape.lengths("key lengths", Operand::KeyLengths));
    let stats = graph.tensor(shape.rows("stats", Operand::Stats));
    let o = graph.tensor(shape.values("O", Operand::O, shape.output()));
    graph.operations.push(Operation::Attention { q, k, v, scale, q_lens, k_lens, stats, o });
    graph
}
