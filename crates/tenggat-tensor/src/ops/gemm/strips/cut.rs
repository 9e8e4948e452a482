//! How a product is shared among tasks: by its shape alone, so that the bits do not depend on the number of
//! threads.

use std::ops::Range;

use super::WIDTH;

/// Multiply-adds of a task, about: 6 µs of a core, a small part of a small product.
const TASK_WORK: usize = 1 << 18;
/// The same where a tile unit multiplies, whose panels are as high as strips are wide.
const TILE_UNIT_WORK: usize = 1 << 21;
/// Most tasks of a product: enough for 64 threads to share evenly.
const MAX_TASKS: usize = 256;
/// Most row panels of a task: what it reads of A stays in the second-level cache.
const MAX_PANELS: usize = 8;

/// The tiles of a product, in rectangles.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    rows: usize,
    panels: usize,
    strips: usize,
    panels_per_task: usize,
    strips_per_task: usize,
}

impl Cut {
    /// For C `[m, n]` with sums over about `k`, in panels of at most `height` rows.
    pub fn new(m: usize, n: usize, k: usize, height: usize) -> Self {
        let (panels, strips) = (m.div_ceil(height), n.div_ceil(WIDTH));
        let work = if height == WIDTH { TILE_UNIT_WORK } else { TASK_WORK };
        let tasks = (m * n * k / work).clamp(1, MAX_TASKS);
        let groups = panels.div_ceil(MAX_PANELS).max(tasks.div_ceil(strips.max(1))).clamp(1, panels.max(1));
        let (panels_per_task, strips_per_task) =
            (panels.div_ceil(groups).max(1), strips.div_ceil(tasks.div_ceil(groups)).max(1));
        Cut { rows: m, panels, strips, panels_per_task, strips_per_task }
    }

    fn columns(&self) -> usize {
        self.strips.div_ceil(self.strips_per_task)
    }

    /// Number of tasks; none for an empty C.
    pub fn tasks(&self) -> usize {
        self.panels.div_ceil(self.panels_per_task) * self.columns()
    }

    /// Panels and strips of a task.
    pub fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let part = |i: usize, size: usize, len: usize| i * size..len.min((i + 1) * size);
        let (row, column) = (task / self.columns(), task % self.columns());
        (part(row, self.panels_per_task, self.panels), part(column, self.strips_per_task, self.strips))
    }

    /// All panels and strips.
    pub fn whole(&self) -> (Range<usize>, Range<usize>) {
        (0..self.panels, 0..self.strips)
    }

    /// Rows of a panel: even shares, so that no panel is left thin.
    pub fn panel(&self, panel: usize) -> Range<usize> {
        panel * self.rows / self.panels..(panel + 1) * self.rows / self.panels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_every_tile_once() {
        const HEIGHT: usize = 14;
        for (m, n, k) in [
            (1, 1, 1),
            (14, 32, 5),
            (15, 33, 7),
            (320, 512, 2048),
            (4096, 3072, 3072),
            (4, 9000, 512),
            (0, 5, 7),
            (5, 0, 7),
        ] {
            let cut = Cut::new(m, n, k, HEIGHT);
            let mut seen = vec![0; m.div_ceil(HEIGHT) * n.div_ceil(WIDTH)];
            for task in 0..cut.tasks() {
                let (panels, strips) = cut.task(task);
                for panel in panels {
                    strips.clone().for_each(|strip| seen[panel * n.div_ceil(WIDTH) + strip] += 1);
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{m} {n} {k}");
            let rows: Vec<usize> = (0..m.div_ceil(HEIGHT)).flat_map(|p| cut.panel(p)).collect();
            assert_eq!(rows, (0..m).collect::<Vec<_>>());
            assert!((0..m.div_ceil(HEIGHT)).all(|p| (1..=HEIGHT).contains(&cut.panel(p).len())));
        }
    }
}
