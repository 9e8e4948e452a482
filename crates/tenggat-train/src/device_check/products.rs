//! Whether cuBLASLt has a way for every product of a training step of Qwen-Image. None of them is computed.

use tenggat_gpu::{Batch, Cuda, Epilogue, Factor, Product};
use tenggat_tensor::DType;

/// Channels of a block and of its MLP, `[in, out]` of its frozen linears: q, k and v together, output, MLP up
/// and down.
const WIDTH: usize = 3072;
const LINEARS: [[usize; 2]; 4] = [[WIDTH, 3 * WIDTH], [WIDTH, WIDTH], [WIDTH, 4 * WIDTH], [4 * WIDTH, WIDTH]];
/// The modulation's: a row for each sample.
const MODULATION: [usize; 2] = [WIDTH, 6 * WIDTH];
const RANKS: [usize; 3] = [4, 16, 128];
const BATCHES: [usize; 2] = [1, 2];
/// Tokens of a picture of 1024 × 1024, and of a padded caption.
const TOKENS: [usize; 2] = [4096, 224];

/// A product of matrices at some aligned addresses.
fn product([rows, cols, inner]: [usize; 3], [a, b]: [bool; 2], types: [DType; 2], beta: f32) -> Product {
    let factor = |transposed: bool, contiguous: [usize; 2]| Factor {
        address: 1 << 20,
        dtype: types[0],
        stride: contiguous[usize::from(transposed)],
        transposed,
        scales: 0,
    };
    Product {
        batch: Batch::ONE,
        rows,
        cols,
        inner,
        alpha: 1.0,
        a: factor(a, [inner, rows]),
        b: factor(b, [cols, inner]),
        beta,
        c: 1 << 20,
        c_dtype: types[1],
        c_stride: cols,
        epilogue: Epilogue::None,
        fast: false,
    }
}

fn biased(product: Product) -> Product {
    Product { epilogue: Epilogue::Bias(1 << 20), ..product }
}

/// The products of the adapters of q, k and v that are computed at once, of m rows: B, u and dB.
fn of_members(m: usize, r: usize) -> [Product; 3] {
    const N: usize = 3;
    let batch = |steps| Batch { count: N, steps };
    let (x, ax, b) = (WIDTH, r, WIDTH * r);
    let wide = |factor: Factor, members: usize| Factor { stride: members, ..factor };
    let up = product([m, WIDTH, r], [false, true], [DType::BF16; 2], 0.0);
    let down = product([m, r, WIDTH], [false, false], [DType::BF16; 2], 0.0);
    let db = product([WIDTH, r, m], [true, false], [DType::BF16, DType::F32], 1.0);
    [
        Product { batch: batch([ax, b, x]), a: wide(up.a, N * r), c_stride: N * WIDTH, ..up },
        Product { batch: batch([x, b, ax]), a: wide(down.a, N * WIDTH), c_stride: N * r, ..down },
        Product { batch: batch([x, ax, b]), a: wide(db.a, N * WIDTH), b: wide(db.b, N * r), ..db },
    ]
}

/// All products of a linear `[input, out]` of m rows with an adapter of rank r, forward and backward.
fn of_linear(m: usize, [input, out]: [usize; 2], r: usize) -> Vec<Product> {
    const NT: [bool; 2] = [false, true];
    const NN: [bool; 2] = [false, false];
    const TN: [bool; 2] = [true, false];
    const SAME: [DType; 2] = [DType::BF16, DType::BF16];
    const SUMS: [DType; 2] = [DType::BF16, DType::F32];
    vec![
        // x·Aᵀ, y = (x·Aᵀ)·Bᵀ, y += x·Wᵀ + bias; the last alone where there is no adapter
        product([m, r, input], NT, SAME, 0.0),
        product([m, out, r], NT, SAME, 0.0),
        biased(product([m, out, input], NT, SAME, 1.0)),
        biased(product([m, out, input], NT, SAME, 0.0)),
        // u = dy·B, dx = u·A, dx += dy·W; the last alone likewise
        product([m, r, out], NN, SAME, 0.0),
        product([m, input, r], NN, SAME, 0.0),
        product([m, input, out], NN, SAME, 1.0),
        product([m, input, out], NN, SAME, 0.0),
        // dB = dyᵀ·(x·Aᵀ), dA = uᵀ·x; added up over batches too
        product([out, r, m], TN, SUMS, 0.0),
        product([r, input, m], TN, SUMS, 0.0),
        product([out, r, m], TN, SUMS, 1.0),
        product([r, input, m], TN, SUMS, 1.0),
    ]
}

/// How many products were tried, and descriptions of those for which the library has no algorithm.
pub(super) fn without_a_way(cuda: &Cuda) -> (usize, Vec<String>) {
    let mut asked = 0;
    let mut missing = Vec::new();
    for (batch, rank) in BATCHES.into_iter().flat_map(|batch| RANKS.map(|rank| (batch, rank))) {
        let wide = TOKENS.into_iter().flat_map(|tokens| LINEARS.map(|linear| (batch * tokens, linear)));
        let linears = wide.chain([(batch, MODULATION)]).map(|(m, linear)| of_linear(m, linear, rank));
        let members = TOKENS.into_iter().map(|tokens| of_members(batch * tokens, rank).to_vec());
        for products in linears.chain(members) {
            for product in products {
                asked += 1;
                if !cuda.has_a_way(&product) {
                    let Product { rows, cols, inner, a, b, .. } = product;
                    missing.push(format!(
                        "{rows}×{cols}×{inner}{}{} {:?} to {:?}",
                        if a.transposed { " Aᵀ" } else { "" },
                        if b.transposed { " Bᵀ" } else { "" },
                        a.dtype,
                        product.c_dtype
                    ));
                }
            }
        }
    }
    (asked, missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operands hold the elements that the extents name.
    #[test]
    fn strides_are_those_of_whole_matrices() {
        let [_, _, forward, .., gradient] = &of_linear(7, [20, 30], 4)[..] else { panic!("twelve products") };
        assert_eq!([forward.rows, forward.cols, forward.inner], [7, 30, 20]);
        assert_eq!((forward.a.stride, forward.b.stride, forward.c_stride), (20, 20, 30));
        assert_eq!([gradient.rows, gradient.cols, gradient.inner], [4, 20, 7]);
        assert_eq!((gradient.a.stride, gradient.b.stride, gradient.c_stride), (4, 20, 20));
        let [up, down, db] = of_members(7, 4);
        assert_eq!((up.a.stride, up.b.stride, up.c_stride), (12, 4, 3 * WIDTH));
        assert_eq!((down.a.stride, down.b.stride, down.c_stride), (3 * WIDTH, 4, 12));
        assert_eq!((db.a.stride, db.b.stride, db.c_stride), (3 * WIDTH, 12, 4));
    }
}
