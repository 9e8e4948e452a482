//! Which blocks' weights are in memory only while they are used.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Offloaded blocks, spread evenly over the model: while the blocks between two of them are at work, the
/// weights of the next one can come.
#[derive(Debug)]
pub(super) struct Offloading {
    /// Blocks in the order in which they are offloaded.
    order: Vec<usize>,
    /// Place of each block in that order.
    turns: Vec<usize>,
    /// Number of offloaded blocks.
    blocks: AtomicUsize,
    /// Whether weights are prefetched.
    prefetches: AtomicBool,
}

impl Offloading {
    /// So many of a model's blocks.
    pub fn new(layers: usize, blocks: usize) -> Self {
        // With their bits reversed, the first numbers of any range are far apart (the van der Corput
        // sequence).
        let mut order: Vec<usize> = (0..layers).collect();
        order.sort_by_key(|block| block.reverse_bits());
        let mut turns = vec![0; layers];
        order.iter().enumerate().for_each(|(turn, &block)| turns[block] = turn);
        Offloading { order, turns, blocks: blocks.min(layers).into(), prefetches: true.into() }
    }

    /// Number of offloaded blocks.
    pub fn blocks(&self) -> usize {
        self.blocks.load(Relaxed)
    }

    /// Whether a block is offloaded.
    pub fn has(&self, block: usize) -> bool {
        self.turns.get(block).is_some_and(|&turn| turn < self.blocks())
    }

    /// The first offloaded block after this many.
    pub fn next(&self, from: usize) -> Option<usize> {
        (from..self.turns.len()).find(|&block| self.has(block))
    }

    /// The last offloaded block before this one.
    pub fn last(&self, before: usize) -> Option<usize> {
        (0..before).rev().find(|&block| self.has(block))
    }

    /// Whether weights are prefetched.
    pub fn prefetches(&self) -> bool {
        self.prefetches.load(Relaxed)
    }

    /// From now on weights are read when they are used. Whether that changes anything.
    pub fn stop_prefetching(&self) -> bool {
        self.blocks() > 0 && self.prefetches.swap(false, Relaxed)
    }

    /// Offloads up to so many further blocks, as long as each can be. Returns how many.
    pub fn extend(&self, blocks: usize, can_be: impl Fn(usize) -> bool) -> usize {
        let now = self.blocks();
        let further = self.order.iter().skip(now).take(blocks).take_while(|&&block| can_be(block)).count();
        self.blocks.store(now + further, Relaxed);
        further
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(offloading: &Offloading) -> Vec<usize> {
        std::iter::successors(offloading.next(0), |&block| offloading.next(block + 1)).collect()
    }

    #[test]
    fn offloaded_blocks_are_far_apart() {
        for layers in [1, 2, 7, 60] {
            for blocks in 1..=layers {
                let found = all(&Offloading::new(layers, blocks));
                assert_eq!(found.len(), blocks);
                let most = found.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(1);
                // At most twice as far as evenly spread, bits being halves.
                assert!(most <= 2 * layers.div_ceil(blocks), "{blocks} of {layers}: {found:?}");
            }
        }
        assert_eq!(all(&Offloading::new(60, 15)), (0..60).step_by(4).collect::<Vec<_>>());
        assert!(all(&Offloading::new(60, 0)).is_empty());
        assert_eq!(Offloading::new(3, 9).blocks(), 3);
    }

    #[test]
    fn more_are_added_to_those_that_there_are() {
        let offloading = Offloading::new(8, 2);
        let before = all(&offloading);
        assert_eq!(offloading.extend(3, |_| true), 3);
        let after = all(&offloading);
        assert!(after.len() == 5 && before.iter().all(|block| after.contains(block)));
        assert_eq!((offloading.last(8), offloading.last(0)), (after.last().copied(), None));
        assert_eq!(offloading.extend(3, |block| block != 3), 1);
        assert_eq!(offloading.extend(3, |_| true), 2);
        assert_eq!(all(&offloading), (0..8).collect::<Vec<_>>());
    }
}
