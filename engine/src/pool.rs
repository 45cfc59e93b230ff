//! One buffer per tensor, reused by size class.
//!
//! Dropping a tensor returns its buffer at once: all work goes through one queue in order, so whoever takes the
//! buffer next also runs next. A training step thus reaches a fixed set of buffers after its first run. What is free stays with
//! the pool until [`Gpu::trim`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};

use crate::gpu::{Gpu, Inner};
use crate::{Error, Result};

/// Guard bytes behind a tensor in debug mode, bound together with it so that a kernel can hit them.
pub(crate) const GUARD_BYTES: u64 = 256;
/// What guards hold, word by word.
pub(crate) const GUARD_WORD: u32 = 0x5AFE_60AD;

#[derive(Default)]
pub(crate) struct Pool {
    /// By size, then by id; the lowest id goes first, so that a step that starts with the same free buffers as the one
    /// before takes the same ones, in whatever order they were dropped, and finds its bind groups in the cache.
    free: HashMap<u64, BTreeMap<u64, wgpu::Buffer>>,
    next_id: u64,
    pub live_bytes: u64,
    pub peak_bytes: u64,
    pub allocated_bytes: u64,
    pub created: u64,
    /// Bytes that it may hold.
    pub limit: u64,
    /// What the host last read through, unmapped.
    pub staging: Option<wgpu::Buffer>,
}

impl Pool {
    /// One that may hold so many bytes.
    pub fn new(limit: u64) -> Pool {
        Pool { limit, ..Pool::default() }
    }

    /// A buffer of this size class that nobody uses.
    fn take(&mut self, size: u64) -> Option<(u64, wgpu::Buffer)> {
        self.free.get_mut(&size).and_then(BTreeMap::pop_first)
    }

    /// A new buffer; none where the GPU has no memory for it.
    fn create(&mut self, device: &wgpu::Device, size: u64) -> Option<(u64, wgpu::Buffer)> {
        if self.allocated_bytes + size > self.limit {
            return None;
        }
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("tensor"),
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return None;
        }
        self.allocated_bytes += size;
        self.created += 1;
        self.next_id += 1;
        Some((self.next_id, buffer))
    }

    /// Lets go of the buffers that nobody uses: their ids.
    fn trim(&mut self) -> HashSet<u64> {
        let free = std::mem::take(&mut self.free);
        self.allocated_bytes -= free.iter().map(|(size, buffers)| size * buffers.len() as u64).sum::<u64>();
        free.into_values().flat_map(BTreeMap::into_keys).collect()
    }
}

/// A pooled buffer; goes back to its pool when the last tensor on it is dropped.
pub(crate) struct Block {
    pub id: u64,
    pub buffer: wgpu::Buffer,
    /// Bytes that were asked for, guard words included.
    pub wanted: u64,
    size: u64,
    owner: Weak<Inner>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(inner) = self.owner.upgrade() {
            let mut pool = inner.pool.lock().unwrap_or_else(|e| e.into_inner());
            pool.live_bytes -= self.size;
            pool.free.entry(self.size).or_default().insert(self.id, self.buffer.clone());
        }
    }
}

/// Sizes come in steps of an eighth of a power of two, so at most 12.5 % of a large buffer is unused.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(256);
    let step = (bytes.next_power_of_two() / 16).max(256);
    bytes.div_ceil(step) * step
}

impl Gpu {
    /// A buffer of at least `bytes`, from the pool or new. Its content is undefined.
    pub(crate) fn block(&self, bytes: u64) -> Result<Arc<Block>> {
        let size = size_class(bytes);
        // a table may be larger than what a launch can bind: it is bound in parts
        let limit = self.0.device.limits().max_buffer_size;
        if size > limit {
            return Err(Error::TooLarge { bytes, limit });
        }
        let found = {
            let mut pool = self.pool();
            pool.take(size).or_else(|| pool.create(&self.0.device, size))
        };
        let (id, buffer) = match found {
            Some(entry) => entry,
            None => {
                self.trim()?;
                let mut pool = self.pool();
                let allocated = pool.allocated_bytes;
                pool.create(&self.0.device, size).ok_or(Error::OutOfMemory { bytes: size, allocated })?
            }
        };
        let mut pool = self.pool();
        pool.live_bytes += size;
        pool.peak_bytes = pool.peak_bytes.max(pool.live_bytes);
        Ok(Arc::new(Block { id, buffer, wanted: bytes, size, owner: Arc::downgrade(&self.0) }))
    }

    /// Gives the memory that no tensor uses back to the driver; what is launched next asks for it anew. Waits for all that was
    /// launched before. The pool calls it by itself before it says that memory is exhausted.
    ///
    /// # Errors
    /// The GPU was lost.
    pub fn trim(&self) -> Result<()> {
        self.wait()?;
        let gone = self.pool().trim();
        self.recorder().forget(&gone);
        // the driver gets a buffer back when the queue is looked at the next time
        self.poll("giving memory back")
    }
}
