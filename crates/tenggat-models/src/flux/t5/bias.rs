//! The bias that attention gets from the distance between two tokens.
//!
//! Source: `T5Attention._relative_position_bucket` and `compute_bias` of transformers `modeling_t5.py`, for
//! an encoder: half of the buckets for keys before the query, half for those behind it.

use tenggat_tensor::{DType, Device, Tensor};

use crate::Result;

/// A value per bucket and head.
#[derive(Debug)]
pub(super) struct Bias {
    /// `[buckets, heads]`.
    pub values: Vec<f64>,
    pub heads: usize,
    pub buckets: usize,
    /// Distance from which on all are alike.
    pub max_distance: usize,
}

impl Bias {
    /// The bias of a sequence of so many tokens, `[heads·len, len]`: a row per head and query.
    pub fn of(&self, len: usize, device: &Device, dtype: DType) -> Result<Tensor> {
        let mut all = Vec::with_capacity(self.heads * len * len);
        for head in 0..self.heads {
            let of = |bucket: usize| self.values[bucket * self.heads + head];
            // Of the distances −(len − 1) to len − 1.
            let by_distance: Vec<f64> =
                (0..2 * len).map(|i| of(self.bucket(i as isize - (len as isize - 1)))).collect();
            (0..len).for_each(|query| all.extend(&by_distance[len - 1 - query..2 * len - 1 - query]));
        }
        Ok(Tensor::from_f64(device, dtype, &all, &[self.heads * len, len])?)
    }

    /// The bucket of `key − query`: one per distance for near ones, then wider and wider.
    fn bucket(&self, distance: isize) -> usize {
        let half = self.buckets / 2;
        let side = if distance > 0 { half } else { 0 };
        let (exact, distance) = (half / 2, distance.unsigned_abs());
        if distance < exact {
            return side + distance;
        }
        // Rounded to f32 as in the source: at the edges of buckets that decides.
        let ratio = (distance as f32 / exact as f32).ln();
        let whole = (self.max_distance as f64 / exact as f64).ln() as f32;
        let far = exact + (ratio / whole * (half - exact) as f32) as usize;
        side + far.min(half - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the source gives for 32 buckets and a greatest distance of 128, at both sides of every edge.
    #[test]
    fn buckets_are_the_sources() {
        let bias = Bias { values: vec![], heads: 1, buckets: 32, max_distance: 128 };
        let before = [
            (0, 0),
            (1, 1),
            (7, 7),
            (8, 8),
            (11, 8),
            (12, 9),
            (15, 9),
            (16, 10),
            (22, 10),
            (23, 11),
            (31, 11),
            (32, 12),
            (45, 12),
            (46, 13),
            (63, 13),
            (64, 14),
            (90, 14),
            (91, 15),
            (500, 15),
        ];
        for (distance, bucket) in before {
            assert_eq!(bias.bucket(-distance), bucket, "{distance} before");
            let behind = if distance == 0 { 0 } else { 16 + bucket };
            assert_eq!(bias.bucket(distance), behind, "{distance} behind");
        }
    }

    #[test]
    fn rows_are_queries_and_columns_keys() {
        let values = (0..64).map(f64::from).collect();
        let bias = Bias { values, heads: 2, buckets: 32, max_distance: 128 };
        let table = bias.of(3, &Device::cpu(), DType::F64).unwrap();
        assert_eq!(table.shape(), [6, 3]);
        // Head 1 has the odd values: buckets 0, 1, 2 before, 17, 18 behind.
        let expected = [1.0, 35.0, 37.0, 3.0, 1.0, 35.0, 5.0, 3.0, 1.0];
        assert_eq!(table.to_f64().unwrap()[9..], expected);
    }
}
