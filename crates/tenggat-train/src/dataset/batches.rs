//! The order of training: which pictures are in batch n.

use std::collections::BTreeMap;

use tenggat_tensor::random::Philox;

use super::{Item, shuffle};

/// Batches of items of one shape, in an order that is a function of the seed and the batch's number alone.
///
/// As ai-toolkit does (`toolkit/dataloader_mixins.py`, `build_batch_indices`), items are shuffled once inside their
/// bucket and cut into fixed batches, the last of a bucket filled up from its own start; every epoch shuffles the order
/// of the batches. Data sets and resolutions do not mix in a batch.
#[derive(Debug, Clone)]
pub struct Batches {
    batches: Vec<Vec<usize>>,
    random: Philox,
    /// Order of the epoch asked for last.
    order: (u64, Vec<usize>),
}

/// Streams of the generator: epochs count from 0, buckets from here.
const BUCKETS: u64 = 1 << 63;

/// Keeps the numbers drawn here apart from those drawn elsewhere.
const ORDER: u64 = 0x6261_7463_6865_7321;

impl Batches {
    /// Cuts items into batches.
    pub fn new(items: &[Item], seed: u64) -> Batches {
        let random = Philox::new(seed ^ ORDER);
        let mut buckets: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (i, item) in items.iter().enumerate() {
            let key = (item.dataset, item.resolution, item.crop.width, item.crop.height);
            buckets.entry(key).or_default().push(i);
        }
        let mut batches = Vec::new();
        for (number, mut bucket) in buckets.into_values().enumerate() {
            shuffle(&mut bucket, random, BUCKETS + number as u64);
            let size = items[bucket[0]].batch_size.max(1);
            batches.extend(
                bucket.chunks(size).map(|c| c.iter().copied().cycle().take(size).collect::<Vec<_>>()),
            );
        }
        let order = epoch_order(batches.len(), random, 0);
        Batches { batches, random, order: (0, order) }
    }

    /// Batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        self.batches.len()
    }

    /// Items of batch `number`, counted from the start of training; empty if there are no items.
    pub fn at(&mut self, number: u64) -> &[usize] {
        if self.batches.is_empty() {
            return &[];
        }
        let (epoch, place) = (number / self.batches.len() as u64, number % self.batches.len() as u64);
        if self.order.0 != epoch {
            self.order = (epoch, epoch_order(self.batches.len(), self.random, epoch));
        }
        &self.batches[self.order.1[place as usize]]
    }

    /// Every batch once, in no order: for a plan of shapes and their shares.
    pub fn all(&self) -> &[Vec<usize>] {
        &self.batches
    }
}

fn epoch_order(batches: usize, random: Philox, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..batches).collect();
    shuffle(&mut order, random, epoch);
    order
}

#[cfg(test)]
mod tests {
    use super::super::{Crop, tests};
    use super::*;

    fn items(shapes: &[(usize, usize)], batch_size: usize) -> Vec<Item> {
        let item =
            |&(w, h): &(usize, usize)| Item { crop: Crop::to_bucket(w, h, 64), batch_size, ..tests::item() };
        shapes.iter().map(item).collect()
    }

    fn epoch(batches: &mut Batches, number: u64) -> Vec<Vec<usize>> {
        let n = batches.per_epoch() as u64;
        (number * n..(number + 1) * n).map(|i| batches.at(i).to_vec()).collect()
    }

    #[test]
    fn each_epoch_has_every_item_and_batches_have_one_shape() {
        let items = items(&[(64, 64), (64, 32), (64, 64), (64, 64), (64, 32), (64, 64), (64, 64)], 2);
        let mut batches = Batches::new(&items, 7);
        assert_eq!(batches.per_epoch(), 4);
        for number in 0..3 {
            let mut seen: Vec<usize> = Vec::new();
            for batch in epoch(&mut batches, number) {
                assert_eq!(batch.len(), 2);
                assert!(batch.iter().all(|&i| items[i].crop == items[batch[0]].crop));
                seen.extend(batch);
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn order_depends_on_seed_and_number_alone() {
        let items = items(&[(64, 64); 20], 1);
        let mut one = Batches::new(&items, 7);
        let mut two = Batches::new(&items, 7);
        let (first, second) = (epoch(&mut one, 0), epoch(&mut one, 1));
        assert_ne!(first, second);
        // Resumed in the middle of the second epoch.
        assert_eq!((25..40).map(|i| two.at(i).to_vec()).collect::<Vec<_>>(), second[5..]);
        assert_ne!(epoch(&mut Batches::new(&items, 8), 0), first);
    }

    #[test]
    fn sets_and_resolutions_keep_apart() {
        let mut list = items(&[(64, 64); 4], 4);
        list[1].dataset = 1;
        list[2].resolution = 32;
        let batches = Batches::new(&list, 7);
        assert_eq!(batches.per_epoch(), 3);
        assert!(batches.all().iter().all(|b| b.len() == 4));
    }

    #[test]
    fn no_items_give_no_batches() {
        let mut none = Batches::new(&[], 1);
        assert_eq!((none.per_epoch(), none.at(3)), (0, &[][..]));
    }
}
