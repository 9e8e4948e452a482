//! Device memory, recycled so that a warm training step allocates nothing.
//!
//! A CUDA graph ([`graph`](crate::graph)) uses the same addresses at each replay. What it allocated and freed
//! while it was captured is set aside for graphs, of which never two run at once. Between two replays its
//! contents mean nothing: where there is no other room, other work borrows it, and gives it back before the
//! next replay. While captured work goes in two streams ([`fork`](crate::fork)), what one of them freed is
//! not given to the other.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::backend::Backend;
use crate::streams::STREAMS;
use crate::{Error, Result};

/// Addresses by size class.
type Lists = HashMap<usize, Vec<u64>>;

#[derive(Debug, Default)]
struct State {
    free: Lists,
    /// Free for graphs alone.
    set_aside: Lists,
    /// Addresses that graphs were given.
    captured: HashSet<u64>,
    /// Addresses, set aside for graphs, that other work has borrowed.
    borrowed: HashSet<u64>,
    is_capturing: bool,
    /// Stream that is asked, while there are two.
    stream: Option<usize>,
    /// What each stream freed, which the other may still use.
    by_stream: [Lists; STREAMS],
    /// Graphs that are alive, and how often all of them had to give up their memory.
    graphs: usize,
    era: u64,
    live_bytes: usize,
    /// Of both kinds.
    free_bytes: usize,
    peak_bytes: usize,
}

impl State {
    /// A buffer that nobody holds: its address, and its class. Once memory was short, what is captured makes
    /// do with larger buffers that are set aside already, so that graphs take no more than the largest of
    /// them.
    fn recycle(&mut self, class: usize) -> Option<(u64, usize)> {
        let of_stream = self.stream.map(|stream| &mut self.by_stream[stream]);
        let set_aside = self.is_capturing.then_some(&mut self.set_aside);
        let mut lists = of_stream.into_iter().chain(set_aside);
        let exact = |address| Some((address, class));
        let mut found = lists.find_map(|lists| lists.get_mut(&class)?.pop()).and_then(exact);
        if self.is_capturing && self.era > 0 {
            found = found.or_else(|| self.borrow(class));
        }
        found.or_else(|| self.free.get_mut(&class)?.pop().and_then(exact))
    }

    /// The free list that a buffer belongs on.
    fn list(&mut self, address: u64, class: usize) -> &mut Vec<u64> {
        let lists = if self.captured.contains(&address) { &mut self.set_aside } else { &mut self.free };
        lists.entry(class).or_default()
    }

    /// The smallest buffer of at least `class` bytes that was set aside for graphs: its address, and its
    /// class. However much larger it is, lending it costs less than the graphs.
    fn borrow(&mut self, class: usize) -> Option<(u64, usize)> {
        let fits = |(held, addresses): &(&usize, &Vec<u64>)| **held >= class && !addresses.is_empty();
        let held = self.set_aside.iter().filter(fits).map(|(&held, _)| held).min()?;
        let address = self.set_aside.get_mut(&held).and_then(Vec::pop)?;
        if !self.is_capturing {
            self.borrowed.insert(address);
        }
        Some((address, held))
    }

    /// Lets everybody have what was set aside.
    fn share(&mut self) {
        self.captured.clear();
        self.borrowed.clear();
        for (class, addresses) in std::mem::take(&mut self.set_aside) {
            self.free.entry(class).or_default().extend(addresses);
        }
    }
}

/// Free lists by size class.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// Whether each size is a class of its own.
    is_exact: bool,
}

impl Pool {
    /// An empty one; exact, a buffer is never longer than was asked for.
    pub fn new(is_exact: bool) -> Self {
        Pool { state: Mutex::default(), is_exact }
    }

    /// Rounds up to one of eight sizes per power of two: at most an eighth is wasted, and captions of nearby
    /// length share buffers. Multiples of 512 bytes, so that the processor's matrix units find their
    /// operands aligned.
    fn size_class(bytes: usize) -> usize {
        let step = (bytes.next_power_of_two() / 16).max(512);
        bytes.max(1).div_ceil(step) * step
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the free lists half written: every update below is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of at least `bytes` bytes: its address, and its size class.
    pub fn take(&self, backend: &Backend, bytes: usize) -> Result<(u64, usize)> {
        let class = if self.is_exact { bytes.max(1) } else { Self::size_class(bytes) };
        let recycled = self.state().recycle(class);
        let (address, class, was_held) = match recycled {
            Some((address, held)) => (address, held, true),
            None => self.allocate(backend, class)?,
        };
        let mut state = self.state();
        if was_held {
            state.free_bytes -= class;
        }
        if state.is_capturing {
            state.captured.insert(address);
        }
        state.live_bytes += class;
        state.peak_bytes = state.peak_bytes.max(state.live_bytes + state.free_bytes);
        Ok((address, class))
    }

    /// A new buffer: its address, its class, and whether it was held already. If there is no room for it,
    /// recycled buffers of other sizes are freed; then one is borrowed that is set aside for graphs; then
    /// graphs give up their memory.
    fn allocate(&self, backend: &Backend, class: usize) -> Result<(u64, usize, bool)> {
        let is_capturing = self.state().is_capturing;
        let full = |_| {
            let (free, total) = backend.memory().unwrap_or_default();
            Error::OutOfMemory { bytes: class, free, total }
        };
        match backend.allocate(class) {
            Ok(address) => return Ok((address, class, false)),
            // Nothing is freed while work is being captured that may use it.
            Err(_) if is_capturing => {}
            Err(_) => {
                self.trim(backend);
                if let Ok(address) = backend.allocate(class) {
                    return Ok((address, class, false));
                }
            }
        }
        if let Some((address, held)) = self.state().borrow(class) {
            return Ok((address, held, true));
        }
        if !is_capturing && self.end_graphs() {
            self.trim(backend);
        }
        backend.allocate(class).map(|address| (address, class, false)).map_err(full)
    }

    /// Whether memory of graphs is on loan to other work, so that none can be replayed.
    pub fn is_lent(&self) -> bool {
        !self.state().borrowed.is_empty()
    }

    /// The inverse of [`take`](Self::take).
    pub fn give_back(&self, address: u64, class: usize) {
        let mut state = self.state();
        state.live_bytes -= class;
        state.free_bytes += class;
        state.borrowed.remove(&address);
        match state.stream {
            Some(stream) => state.by_stream[stream].entry(class).or_default().push(address),
            None => state.list(address, class).push(address),
        }
    }

    /// From now on this stream takes and gives back; `None`: the streams are joined again.
    pub fn set_stream(&self, stream: Option<usize>) {
        let mut state = self.state();
        state.stream = stream;
        if stream.is_none() {
            for (class, addresses) in std::mem::take(&mut state.by_stream).into_iter().flatten() {
                addresses.into_iter().for_each(|address| state.list(address, class).push(address));
            }
        }
    }

    /// Before work is captured, during which nothing is freed: once memory was short, gives back what is held
    /// for direct work, whose sizes need not be those that are asked for now.
    pub fn make_room_for_capture(&self, backend: &Backend) {
        if self.era() > 0 {
            self.trim(backend);
        }
    }

    /// From now on, what is taken is for work that is being captured.
    pub fn begin_capture(&self) {
        self.state().is_capturing = true;
    }

    /// No more is taken for a graph.
    pub fn end_capture(&self) {
        let mut state = self.state();
        state.is_capturing = false;
        if state.graphs == 0 {
            state.share();
        }
    }

    /// There is one more graph. Returns the era that its addresses belong to.
    pub fn add_graph(&self) -> u64 {
        let mut state = self.state();
        state.graphs += 1;
        state.era
    }

    /// The present era: addresses of graphs of earlier ones are no longer theirs.
    pub fn era(&self) -> u64 {
        self.state().era
    }

    /// A graph of some era is dropped.
    pub fn forget_graph(&self, era: u64) {
        let mut state = self.state();
        if state.era == era {
            state.graphs -= 1;
            if state.graphs == 0 {
                state.share();
            }
        }
    }

    /// Takes the memory away from all graphs, which begins a new era. Whether there were any.
    fn end_graphs(&self) -> bool {
        let mut state = self.state();
        let there_were = state.graphs > 0;
        if there_were {
            state.era += 1;
            state.graphs = 0;
            state.share();
        }
        there_were
    }

    pub fn live_bytes(&self) -> usize {
        self.state().live_bytes
    }

    pub fn peak_bytes(&self) -> usize {
        self.state().peak_bytes
    }

    /// Bytes of the device's memory that are taken, in use or not.
    pub fn held_bytes(&self) -> usize {
        let state = self.state();
        state.live_bytes + state.free_bytes
    }

    /// Gives recycled buffers back to the device.
    pub fn trim(&self, backend: &Backend) {
        let free = {
            let mut state = self.state();
            let free = std::mem::take(&mut state.free);
            state.free_bytes -= free.iter().map(|(class, addresses)| class * addresses.len()).sum::<usize>();
            free
        };
        for (class, addresses) in free {
            addresses.into_iter().for_each(|address| backend.release(address, class));
        }
    }
}
