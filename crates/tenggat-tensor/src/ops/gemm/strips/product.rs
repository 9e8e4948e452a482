//! Products of packed operands.

use std::ops::Range;

use rayon::prelude::*;

use super::cut::Cut;
use super::kernel::Segment;
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{Lane, Strips, WIDTH};
use crate::cpu::Real;

/// Parts of a sum that a tile takes at once.
const SEGMENTS: usize = 12;
/// Columns of a vector.
const HALF: usize = WIDTH / 2;

/// A product `a · b`; a: `[m, k]`, b: `[k, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Term<'a, E> {
    pub a: Strips<'a, E>,
    pub b: Strips<'a, E>,
}

/// A product that goes to some strips of C only; its own strips are counted from the first of them.
#[derive(Debug, Clone)]
pub(crate) struct Extra<'a, E> {
    pub term: Term<'a, E>,
    pub strips: Range<usize>,
}

/// Where C `[m, n]` goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Row-major, with this row stride in elements.
    Rows(usize),
    /// Cᵀ row-major: columns of C with this stride in elements.
    Columns(usize),
    /// Packed, in strips of this many rows.
    Strips(usize),
}

/// Output pointer that tasks share.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: tasks write disjoint tiles, so the pointer may be sent to another thread.
unsafe impl Send for Out {}
// SAFETY: tasks write disjoint tiles, so sharing the pointer causes no data race.
unsafe impl Sync for Out {}

impl Out {
    fn get(self) -> *mut f32 {
        self.0
    }
}

/// `C = start + base + extras`, or added to C.
#[derive(Debug)]
pub(crate) struct Job<'a, E> {
    /// At least one, all of the same shape.
    pub base: &'a [Term<'a, E>],
    pub extras: &'a [Extra<'a, E>],
    /// A row that every row of the sums starts from, whole strips long.
    pub start: Option<&'a [f32]>,
    pub target: Target,
    /// Whether the product is added to what C holds.
    pub add: bool,
}

/// A product with the place that it goes to, cut into tasks.
#[derive(Clone, Copy)]
pub(crate) struct Placed<'a, E> {
    job: Job<'a, E>,
    cut: Cut,
    c: Out,
}

impl<E> Clone for Job<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Job<'_, E> {}

impl<E: Lane> Placed<'_, E> {
    fn task(&self, task: usize) {
        let (panels, strips) = self.cut.task(task);
        // SAFETY: by the caller of `Job::to`; tasks have tiles of their own.
        unsafe { self.job.task(&self.cut, panels, strips, self.c.get()) }
    }
}

/// Runs products on the threads of the current pool. Their tasks are one list, so that no thread waits for
/// the last one of each: no product may read what another one writes.
pub(crate) fn run_all<E: Lane>(products: &[Placed<'_, E>]) {
    let tasks = products.iter().map(|product| product.cut.tasks()).sum();
    let run = |mut task: usize| {
        for product in products {
            match task.checked_sub(product.cut.tasks()) {
                Some(rest) => task = rest,
                None => return product.task(task),
            }
        }
    };
    if tasks == 1 {
        return run(0);
    }
    (0..tasks).into_par_iter().with_max_len(1).for_each(run);
}

impl<'a, E: Lane> Job<'a, E> {
    /// With the place that it goes to.
    ///
    /// # Safety
    /// `c` has the elements of the target, which nothing else accesses until the product was run. Packed
    /// targets are whole strips.
    pub unsafe fn to(self, c: *mut f32) -> Placed<'a, E> {
        let (m, n) = self.check();
        let cut = Cut::new(m, n, self.base[0].a.cols, E::height());
        Placed { job: self, cut, c: Out(c) }
    }

    /// Runs it in tasks on the threads of the current pool.
    ///
    /// # Safety
    /// As [`Job::to`].
    pub unsafe fn run(&self, c: *mut f32) {
        // SAFETY: by the caller.
        run_all(&[unsafe { self.to(c) }]);
    }

    /// Runs it on the calling thread.
    ///
    /// # Safety
    /// As [`Job::to`].
    pub unsafe fn run_serial(&self, c: *mut f32) {
        let (m, n) = self.check();
        if m > 0 && n > 0 {
            let cut = Cut::new(m, n, self.base[0].a.cols, E::height());
            let (panels, strips) = cut.whole();
            // SAFETY: by the caller.
            unsafe { self.task(&cut, panels, strips, c) }
        }
    }

    fn check(&self) -> (usize, usize) {
        let (m, k, n) = (self.base[0].a.rows, self.base[0].a.cols, self.base[0].b.cols);
        assert!(E::available());
        for Term { a, b } in self.base {
            assert!((a.rows, a.cols, b.rows, b.cols) == (m, k, k, n));
        }
        for extra in self.extras {
            let Term { a, b } = extra.term;
            assert!(a.rows == m && a.cols == b.rows);
            assert!(extra.strips.len() * WIDTH <= b.cols.next_multiple_of(WIDTH));
        }
        assert!(self.start.is_none_or(|row| row.len() >= n.next_multiple_of(WIDTH)));
        (m, n)
    }

    /// # Safety
    /// As [`Job::to`]; the panels and strips are inside C.
    unsafe fn task(&self, cut: &Cut, panels: Range<usize>, strips: Range<usize>, c: *mut f32) {
        f32::with_scratch(WIDTH * WIDTH, |tile| {
            let none = Segment { a: std::ptr::null(), a_step: 0, b: std::ptr::null(), k: 0 };
            let (rows, strip, segments) = (0..0, 0, [none; SEGMENTS]);
            let mut tile =
                TileSums { job: self, rows, strip, c, first: true, again: false, segments, held: 0, tile };
            let k = self.base[0].a.cols;
            let mut from = 0;
            loop {
                let steps = E::block().min(k - from);
                let last = from + steps == k;
                for strip in strips.clone() {
                    let extras = || self.extras.iter().filter(|e| last && e.strips.contains(&strip));
                    let at_once = self.base.len() + extras().count() <= SEGMENTS;
                    tile.strip = strip;
                    for panel in panels.clone() {
                        tile.rows = cut.panel(panel);
                        (tile.first, tile.again) = (from == 0, at_once && panel > panels.start);
                        // SAFETY: by the caller.
                        unsafe {
                            for term in self.base {
                                tile.push(term, strip, from, steps);
                            }
                            for extra in extras() {
                                tile.push(&extra.term, strip - extra.strips.start, 0, extra.term.a.cols);
                            }
                            tile.flush();
                        }
                    }
                }
                from += steps;
                if last {
                    break;
                }
            }
        });
    }
}

/// A tile on its way.
struct TileSums<'a, 'j, E> {
    job: &'a Job<'j, E>,
    rows: Range<usize>,
    strip: usize,
    c: *mut f32,
    /// Whether nothing was written yet.
    first: bool,
    /// Whether the last tile had the same B.
    again: bool,
    segments: [Segment<E>; SEGMENTS],
    held: usize,
    /// WIDTH × WIDTH sums, for tiles that are copied to where they go.
    tile: &'a mut [f32],
}

impl<E: Lane> TileSums<'_, '_, E> {
    /// # Safety
    /// As [`Job::to`].
    unsafe fn push(&mut self, term: &Term<'_, E>, strip: usize, from: usize, k: usize) {
        if k == 0 {
            return;
        }
        if self.held == SEGMENTS {
            // SAFETY: by the caller.
            unsafe { self.flush() }
        }
        self.segments[self.held] = Segment {
            a: term.a.at(from / WIDTH, self.rows.start),
            a_step: term.a.height * WIDTH,
            b: term.b.at(strip, from),
            k,
        };
        self.held += 1;
    }

    /// Computes what is held and writes it.
    ///
    /// # Safety
    /// As [`Job::to`].
    unsafe fn flush(&mut self) {
        let add = self.job.add || !self.first;
        if self.held == 0 && !self.first {
            return;
        }
        let (i, j, h) = (self.rows.start, self.strip * WIDTH, self.rows.len());
        let (cols, again) = (WIDTH.min(self.job.base[0].b.cols - j), self.again);
        let start = match self.job.start {
            Some(row) if self.first => row[j..j + WIDTH].as_ptr(),
            _ => std::ptr::null(),
        };
        let segments = &self.segments[..self.held];
        let kernel = E::tile(h, cols <= HALF);
        // SAFETY: by the caller; tiles at the edge go through memory of the task.
        unsafe {
            match self.job.target {
                Target::Strips(height) => {
                    let to = self.c.add((self.strip * height + i) * WIDTH);
                    E::tile(h, false)(segments, start, to, WIDTH, add, again);
                }
                Target::Rows(stride) if cols == WIDTH => {
                    kernel(segments, start, self.c.add(i * stride + j), stride, add, again);
                }
                Target::Rows(stride) => {
                    kernel(segments, start, self.tile.as_mut_ptr(), WIDTH, false, again);
                    put(&self.tile.as_chunks().0[..h], cols, self.c.add(i * stride + j), stride, add);
                }
                Target::Columns(stride) => {
                    kernel(segments, start, self.tile.as_mut_ptr(), WIDTH, false, again);
                    put_transposed(self.tile.as_chunks().0, h, cols, self.c.add(j * stride + i), stride, add);
                }
            }
        }
        (self.held, self.first) = (0, false);
    }
}

/// # Safety
/// `c` has these rows and columns.
unsafe fn put(sums: &[[f32; WIDTH]], cols: usize, c: *mut f32, stride: usize, add: bool) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: by the caller; packed products run with AVX-512 only.
    unsafe {
        x86::copy(sums, cols, c, stride, add);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{sums:?} {cols} {c:?} {stride} {add}: packed products do not run here")
}

/// # Safety
/// As [`put`], transposed.
unsafe fn put_transposed(
    sums: &[[f32; WIDTH]],
    rows: usize,
    cols: usize,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    for (i, block) in sums.as_chunks().0.iter().enumerate().take(rows.div_ceil(HALF)) {
        // SAFETY: by the caller; packed products run with AVX-512 only.
        unsafe {
            x86::copy_transposed(block, rows - i * HALF, cols, c.add(i * HALF), stride, add);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{sums:?} {rows} {cols} {c:?} {stride} {add}: packed products do not run here")
}
