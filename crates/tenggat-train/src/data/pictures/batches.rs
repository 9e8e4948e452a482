//! The order of training: which pictures are in batch n.

use std::collections::BTreeMap;

use tenggat_tensor::random::Philox;

use super::{Item, shuffle};

/// Batches of items of one shape, in an order that is a function of the seed and the batch's number alone.
///
/// As ai-toolkit does (`toolkit/dataloader_mixins.py`, `build_batch_indices`), items are shuffled once inside
/// their bucket and cut into fixed batches, the last of a bucket filled up from its own start; every epoch
/// shuffles the order of the batches. Data sets and resolutions do not mix in a batch.
///
/// Where there are regularisation sets, steps 0, 2, 4, … take their batches from them and the others from the
/// rest, each in its own order. (ai-toolkit skips a regularisation step where it saves or samples; we do
/// not.)
#[derive(Debug, Clone)]
pub struct Batches {
    learnt: Cycle,
    regularisation: Cycle,
    /// Batches in a step.
    per_step: u64,
}

/// Batches that come again and again, in a new order every epoch.
#[derive(Debug, Clone)]
struct Cycle {
    batches: Vec<Vec<usize>>,
    random: Philox,
    /// Order of the last requested epoch.
    order: (u64, Vec<usize>),
}

/// Streams of the generator: epochs count from 0, buckets from here.
const BUCKETS: u64 = 1 << 63;

/// Keeps the order of regularisation sets apart from that of the others.
const REGULARISATION: u64 = 0x7265_6700;

/// Keeps the numbers drawn here apart from those drawn elsewhere.
const ORDER: u64 = 0x6261_7463_6865_7321;

impl Batches {
    /// Cuts items into batches, of which a step takes `per_step`.
    pub fn new(items: &[Item], per_step: usize, seed: u64) -> Batches {
        let of = |is_reg: bool| (0..items.len()).filter(move |&i| items[i].is_reg == is_reg);
        Batches {
            learnt: Cycle::new(items, of(false), seed),
            regularisation: Cycle::new(items, of(true), seed ^ REGULARISATION),
            per_step: per_step.max(1) as u64,
        }
    }

    /// Batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        self.learnt.batches.len() + self.regularisation.batches.len()
    }

    /// Items of batch `number`, counted from the start of training; empty if there are no items.
    pub fn at(&mut self, number: u64) -> &[usize] {
        if self.regularisation.batches.is_empty() {
            return self.learnt.at(number);
        }
        let (step, within) = (number / self.per_step, number % self.per_step);
        let own = step / 2 * self.per_step + within;
        if step.is_multiple_of(2) { self.regularisation.at(own) } else { self.learnt.at(own) }
    }

    /// Every batch once, in no order, with the share of the training that it has.
    pub fn shares(&self) -> impl Iterator<Item = (&[usize], f64)> {
        let cycles = [&self.learnt, &self.regularisation];
        let used = cycles.iter().filter(|cycle| !cycle.batches.is_empty()).count().max(1);
        cycles.into_iter().flat_map(move |cycle| {
            let share = 1.0 / (used * cycle.batches.len().max(1)) as f64;
            cycle.batches.iter().map(move |batch| (batch.as_slice(), share))
        })
    }
}

impl Cycle {
    fn new(items: &[Item], chosen: impl Iterator<Item = usize>, seed: u64) -> Cycle {
        let random = Philox::new(seed ^ ORDER);
        let mut buckets: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for i in chosen {
            let item = &items[i];
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
        Cycle { batches, random, order: (0, order) }
    }

    fn at(&mut self, number: u64) -> &[usize] {
        if self.batches.is_empty() {
            return &[];
        }
        let (epoch, place) = (number / self.batches.len() as u64, number % self.batches.len() as u64);
        if self.order.0 != epoch {
            self.order = (epoch, epoch_order(self.batches.len(), self.random, epoch));
        }
        &self.batches[self.order.1[place as usize]]
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
        let mut batches = Batches::new(&items, 1, 7);
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
        let mut one = Batches::new(&items, 1, 7);
        let mut two = Batches::new(&items, 1, 7);
        let (first, second) = (epoch(&mut one, 0), epoch(&mut one, 1));
        assert_ne!(first, second);
        // Resumed in the middle of the second epoch.
        assert_eq!((25..40).map(|i| two.at(i).to_vec()).collect::<Vec<_>>(), second[5..]);
        assert_ne!(epoch(&mut Batches::new(&items, 1, 8), 0), first);
    }

    #[test]
    fn sets_and_resolutions_keep_apart() {
        let mut list = items(&[(64, 64); 4], 4);
        list[1].dataset = 1;
        list[2].resolution = 32;
        let batches = Batches::new(&list, 1, 7);
        assert_eq!(batches.per_epoch(), 3);
        assert!(batches.shares().all(|(b, share)| b.len() == 4 && (share - 1.0 / 3.0).abs() < 1e-12));
    }

    #[test]
    fn no_items_give_no_batches() {
        let mut none = Batches::new(&[], 1, 1);
        assert_eq!((none.per_epoch(), none.at(3)), (0, &[][..]));
    }

    #[test]
    fn every_other_step_is_one_of_regularisation() {
        let mut list = items(&[(64, 64); 7], 1);
        list[5].is_reg = true;
        list[6].is_reg = true;
        let mut batches = Batches::new(&list, 2, 7);
        let steps: Vec<Vec<usize>> =
            (0..10).map(|step| (0..2).map(|i| batches.at(2 * step + i)[0]).collect()).collect();
        for (step, own) in steps.iter().enumerate() {
            assert!(own.iter().all(|&i| list[i].is_reg == step.is_multiple_of(2)), "{steps:?}");
        }
        // Ten batches of five pictures: each twice.
        let learnt: Vec<usize> = steps.iter().skip(1).step_by(2).flatten().copied().collect();
        assert!((0..5).all(|i| learnt.iter().filter(|&&l| l == i).count() == 2), "{learnt:?}");
        let of_reg: f64 = batches.shares().filter(|(b, _)| b[0] > 4).map(|(_, share)| share).sum();
        assert!((of_reg - 0.5).abs() < 1e-12);
    }
}
