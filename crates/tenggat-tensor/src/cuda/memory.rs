//! Device memory, recycled so that a warm training step allocates nothing.
//!
//! Recorded work ([`recording`](super::recording)) uses the same addresses each time it is done. What it took and gave back
//! while it was recorded is set aside for recorded work alone, which is never done while other recorded work is under way;
//! between two times its contents mean nothing. While recorded work goes in two lanes ([`lanes`](super::lanes)), what one of
//! them gave back is not given to the other.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Cuda;
use crate::{Error, Result};

/// Addresses by size class.
type Lists = HashMap<usize, Vec<u64>>;

#[derive(Debug, Default)]
struct State {
    free: Lists,
    /// Free for recorded work alone.
    set_aside: Lists,
    /// Addresses that recorded work was given.
    recorded: HashSet<u64>,
    is_recording: bool,
    /// Lane that is asked, while there are two.
    lane: Option<usize>,
    /// What was given back by each lane, which the other may still use.
    by_lane: [Lists; 2],
    /// Recordings that are alive, and how often all of them had to give up their memory.
    recordings: usize,
    era: u64,
    live_bytes: usize,
    /// Of both kinds.
    free_bytes: usize,
    peak_bytes: usize,
}

impl State {
    /// A buffer that nobody holds.
    fn recycle(&mut self, class: usize) -> Option<u64> {
        let of_lane = self.lane.map(|lane| &mut self.by_lane[lane]);
        let set_aside = self.is_recording.then_some(&mut self.set_aside);
        let mut lists = of_lane.into_iter().chain(set_aside).chain([&mut self.free]);
        lists.find_map(|lists| lists.get_mut(&class).and_then(Vec::pop))
    }

    /// The free list that a buffer belongs on.
    fn list(&mut self, address: u64, class: usize) -> &mut Vec<u64> {
        let lists = if self.recorded.contains(&address) { &mut self.set_aside } else { &mut self.free };
        lists.entry(class).or_default()
    }

    /// Lets everybody have what was set aside.
    fn share(&mut self) {
        self.recorded.clear();
        for (class, addresses) in std::mem::take(&mut self.set_aside) {
            self.free.entry(class).or_default().extend(addresses);
        }
    }
}

/// Free lists by size class.
#[derive(Debug, Default)]
pub(super) struct Pool {
    state: Mutex<State>,
}

impl Pool {
    /// Rounds up to one of eight sizes per power of two: at most an eighth is wasted, and captions of nearby length share
    /// buffers. Multiples of 512 bytes, so that the processor's matrix units find their operands aligned.
    fn size_class(bytes: usize) -> usize {
        let step = (bytes.next_power_of_two() / 16).max(512);
        bytes.max(1).div_ceil(step) * step
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the free lists half written: every update below is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, cuda: &Cuda, bytes: usize) -> Result<(u64, usize)> {
        let class = Self::size_class(bytes);
        let recycled = self.state().recycle(class);
        let address = match recycled {
            Some(address) => address,
            None => self.allocate(cuda, class)?,
        };
        let mut state = self.state();
        if recycled.is_some() {
            state.free_bytes -= class;
        }
        if state.is_recording {
            state.recorded.insert(address);
        }
        state.live_bytes += class;
        state.peak_bytes = state.peak_bytes.max(state.live_bytes + state.free_bytes);
        Ok((address, class))
    }

    /// A new buffer; if there is no room for it, at the cost of recycled buffers of other sizes, then of recordings.
    fn allocate(&self, cuda: &Cuda, class: usize) -> Result<u64> {
        let is_recording = self.state().is_recording;
        let full = |_| {
            let (free, total) = cuda.memory().unwrap_or_default();
            Error::OutOfMemory { bytes: class, free, total }
        };
        match cuda.allocate(class) {
            Ok(address) => return Ok(address),
            // Nothing is given back while work is being recorded that may use it.
            Err(e) if is_recording => return Err(full(e)),
            Err(_) => self.trim(cuda),
        }
        match cuda.allocate(class) {
            Err(_) if self.end_recordings() => {
                self.trim(cuda);
                cuda.allocate(class).map_err(full)
            }
            result => result.map_err(full),
        }
    }

    fn give_back(&self, address: u64, class: usize) {
        let mut state = self.state();
        state.live_bytes -= class;
        state.free_bytes += class;
        match state.lane {
            Some(lane) => state.by_lane[lane].entry(class).or_default().push(address),
            None => state.list(address, class).push(address),
        }
    }

    /// What is taken and given back from now on is so by this lane; `None`: all lanes are one again.
    pub fn set_lane(&self, lane: Option<usize>) {
        let mut state = self.state();
        state.lane = lane;
        if lane.is_none() {
            for (class, addresses) in std::mem::take(&mut state.by_lane).into_iter().flatten() {
                addresses.into_iter().for_each(|address| state.list(address, class).push(address));
            }
        }
    }

    /// From now on, what is taken is for work that is being recorded.
    pub fn begin_recording(&self) {
        self.state().is_recording = true;
    }

    /// No more is taken for a recording.
    pub fn end_recording(&self) {
        let mut state = self.state();
        state.is_recording = false;
        if state.recordings == 0 {
            state.share();
        }
    }

    /// There is one more recording. Returns the era that its addresses belong to.
    pub fn keep_recording(&self) -> u64 {
        let mut state = self.state();
        state.recordings += 1;
        state.era
    }

    /// The present era: addresses of recordings of earlier ones are no longer theirs.
    pub fn era(&self) -> u64 {
        self.state().era
    }

    /// A recording of some era is dropped.
    pub fn forget_recording(&self, era: u64) {
        let mut state = self.state();
        if state.era == era {
            state.recordings -= 1;
            if state.recordings == 0 {
                state.share();
            }
        }
    }

    /// Takes the memory away from all recordings, which begins a new era. Whether there were any.
    fn end_recordings(&self) -> bool {
        let mut state = self.state();
        let there_were = state.recordings > 0;
        if there_were {
            state.era += 1;
            state.recordings = 0;
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
    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        let state = self.state();
        state.live_bytes + state.free_bytes
    }

    /// Gives recycled buffers back to the device.
    pub fn trim(&self, cuda: &Cuda) {
        let free = {
            let mut state = self.state();
            let free = std::mem::take(&mut state.free);
            state.free_bytes -= free.iter().map(|(class, addresses)| class * addresses.len()).sum::<usize>();
            free
        };
        for (class, addresses) in free {
            addresses.into_iter().for_each(|address| cuda.release(address, class));
        }
    }
}

/// Device memory on loan from the pool of its device; returns on drop. Work that is queued may still use it: whoever
/// gets it next queues its own behind.
#[derive(Debug)]
pub(crate) struct Storage {
    cuda: Arc<Cuda>,
    address: u64,
    class: usize,
}

impl Storage {
    /// At least `bytes` bytes, contents unspecified.
    pub fn new(cuda: &Arc<Cuda>, bytes: usize) -> Result<Self> {
        let (address, class) = cuda.pool.take(cuda, bytes)?;
        cuda.poison(address, class)?;
        Ok(Storage { cuda: Arc::clone(cuda), address, class })
    }

    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.cuda.pool.give_back(self.address, self.class);
    }
}
