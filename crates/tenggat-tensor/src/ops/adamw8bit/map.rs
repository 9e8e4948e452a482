//! The two maps from codes to numbers in [−1, 1] or [0, 1].
//!
//! Dynamic quantisation (Dettmers, arXiv:1511.04561; Dettmers et al., arXiv:2110.02861): seven decades, each
//! cut into equal steps, twice as many in each decade as in the one below it, so that small numbers keep some
//! accuracy and large ones have more. Source: bitsandbytes `bitsandbytes/functional.py`, `create_dynamic_map`
//! with its defaults.

use std::sync::LazyLock;

/// Decades below 1.
const DECADES: i32 = 7;

/// Numbers of a code, and the code of a number.
pub struct Map {
    /// Rising numbers.
    values: [f32; 256],
    /// Half way between each number and the next; nothing lies above the last.
    midpoints: [f32; 256],
    /// By the upper 16 bits of a float: the code of the least number that has them. No two midpoints share
    /// these bits, so that the code of any other is this one or the next.
    least: Vec<u8>,
}

/// Of the first moment: −1 to 1.
pub static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
/// Of the second moment: 0 to 1.
pub static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

impl Map {
    fn new(signed: bool) -> Map {
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let steps = 1 << if signed { decade } else { decade + 1 };
            let scale = 10f64.powi(decade + 1 - DECADES) as f32;
            for i in 0..steps {
                let middle = (edge(i, steps) + edge(i + 1, steps)) / 2.0 * scale;
                values.push(middle);
                if signed {
                    values.push(-middle);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let midpoint = |i: usize| values.get(i + 1).map_or(f32::INFINITY, |next| (values[i] + next) / 2.0);
        let midpoints: [f32; 256] = std::array::from_fn(midpoint);
        let least = (0..=u16::MAX).map(|upper| {
            let lower = if upper >> 15 == 0 { 0 } else { 0xffff };
            let least = f32::from_bits(u32::from(upper) << 16 | lower);
            let least = if least.is_nan() { f32::NEG_INFINITY } else { least };
            midpoints.partition_point(|m| *m < least) as u8
        });
        Map { least: least.collect(), values: std::array::from_fn(|i| values[i]), midpoints }
    }

    /// The numbers, rising.
    pub fn values(&self) -> &[f32; 256] {
        &self.values
    }

    /// The number of a code.
    #[inline(always)]
    pub fn value(&self, code: u8) -> f32 {
        self.values[code as usize]
    }

    /// Code of the nearest number, the lower one where two are as near; some code for what is no number.
    #[inline(always)]
    pub fn code(&self, x: f32) -> u8 {
        let least = self.least[(x.to_bits() >> 16) as usize];
        least + u8::from(x > self.midpoints[least as usize])
    }
}

/// Edge `i` of `steps` equal steps from 0.1 to 1, in fused single precision and counted from the nearer end,
/// as `torch.linspace` does it.
fn edge(i: usize, steps: usize) -> f32 {
    let step = (1.0f32 - 0.1) / steps as f32;
    if i < steps.div_ceil(2) { step.mul_add(i as f32, 0.1) } else { step.mul_add(-((steps - i) as f32), 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code by its definition.
    fn nearest(map: &Map, x: f32) -> u8 {
        map.midpoints.iter().filter(|m| **m < x).count() as u8
    }

    #[test]
    fn every_number_has_the_nearest_code() {
        for map in [&*SIGNED, &*UNSIGNED] {
            assert!(map.values.is_sorted() && map.values[255] == 1.0);
            // The ends of every range of upper bits, and the neighbourhood of every midpoint.
            let ends = (0..=u16::MAX).flat_map(|k| [0, 0x8000, 0xffff].map(|low| u32::from(k) << 16 | low));
            let around = map.midpoints[..255].iter().flat_map(|m| [m.next_down(), *m, m.next_up()]);
            for x in ends.map(f32::from_bits).chain(around).filter(|x| !x.is_nan()) {
                assert_eq!(map.code(x), nearest(map, x), "{x:e}");
            }
            for (code, &value) in map.values.iter().enumerate() {
                assert_eq!(usize::from(map.code(value)), code);
            }
        }
    }
}
