//! How long launches take on the GPU's own clock.

use crate::gpu::Inner;
use crate::{Error, Gpu, Result};

/// Timestamps of one query set: the most that WebGPU allows.
const QUERIES: u32 = 4096;

/// One launch of a [`Gpu::profile`].
#[derive(Clone, Debug)]
pub struct LaunchTime {
    /// The shader, and the body or pass of it that ran.
    pub label: String,
    /// Time on the GPU; `None` where the adapter has no timestamps.
    pub seconds: Option<f64>,
    /// Floating-point operations it declared.
    pub flops: u64,
    /// Bytes of its bindings.
    pub bytes: u64,
}

/// Timestamps around compute passes: of up to a submit's launches each, or of one.
pub(crate) struct Timer {
    /// Whether every launch gets a pass of its own.
    pub each: bool,
    /// Passes so far: pass i has queries 2i and 2i + 1, counted through all sets.
    passes: u32,
    sets: Vec<wgpu::QuerySet>,
    /// Label, operations and bytes of every launch, where each has its own pass.
    pub launches: Vec<(String, u64, u64)>,
}

impl Timer {
    fn new(each: bool) -> Timer {
        Timer { each, passes: 0, sets: Vec::new(), launches: Vec::new() }
    }

    /// Where the next pass writes when it begins and ends; nowhere if the adapter has no timestamps.
    pub fn next(&mut self, inner: &Inner) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        if !inner.caps.timestamps {
            return None;
        }
        let at = 2 * self.passes % QUERIES;
        self.passes += 1;
        if at == 0 {
            self.sets.push(inner.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: QUERIES,
            }));
        }
        Some(wgpu::ComputePassTimestampWrites {
            query_set: self.sets.last()?,
            beginning_of_pass_write_index: Some(at),
            end_of_pass_write_index: Some(at + 1),
        })
    }
}

impl Gpu {
    /// Does `work` and says how many seconds passed on the GPU's clock from the beginning of its first launch to the end
    /// of its last; `None` if it launched nothing or the adapter has no timestamps. Waits for what came before, and
    /// for the work.
    ///
    /// # Errors
    /// Those of `work`, or the GPU fails.
    pub fn time<T, E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(T, Option<f64>), E> {
        let (done, timer) = self.timed(Timer::new(false), work)?;
        let passes = self.ticks(&timer)?;
        let begin = passes.iter().map(|p| p[0]).min();
        let end = passes.iter().map(|p| p[1]).max();
        Ok((done, begin.zip(end).map(|(begin, end)| self.seconds([begin, end]))))
    }

    /// Does `work` with each launch in a pass of its own, and lists them. The gaps that this makes between launches are in
    /// no launch's time. Waits for what came before, and for the work.
    ///
    /// # Errors
    /// Those of `work`, or the GPU fails.
    pub fn profile<T, E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(T, Vec<LaunchTime>), E> {
        let (done, timer) = self.timed(Timer::new(true), work)?;
        let mut passes = self.ticks(&timer)?.into_iter();
        let time = |(label, flops, bytes)| {
            let seconds = passes.next().map(|ticks| self.seconds(ticks));
            LaunchTime { label, seconds, flops, bytes }
        };
        Ok((done, timer.launches.into_iter().map(time).collect()))
    }

    fn timed<T, E: From<Error>>(
        &self,
        timer: Timer,
        work: impl FnOnce() -> std::result::Result<T, E>,
    ) -> std::result::Result<(T, Timer), E> {
        self.wait()?;
        self.recorder().timer = Some(timer);
        let done = work().and_then(|done| Ok(self.wait().map(|()| done)?));
        let timer = self.recorder().timer.take().unwrap_or(Timer::new(false));
        Ok((done?, timer))
    }

    /// Begin and end of each pass, in the GPU's ticks.
    fn ticks(&self, timer: &Timer) -> Result<Vec<[u64; 2]>> {
        let mut ticks = Vec::new();
        for (i, set) in timer.sets.iter().enumerate() {
            let count = (2 * timer.passes - i as u32 * QUERIES).min(QUERIES);
            let device = &self.0.device;
            let buffer = |usage| {
                device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("timestamps"),
                    size: 8 * u64::from(count),
                    usage,
                    mapped_at_creation: false,
                })
            };
            let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
            let staging = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
            let mut encoder = device.create_command_encoder(&Default::default());
            encoder.resolve_query_set(set, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, None);
            self.0.queue.submit([encoder.finish()]);
            let values: Vec<u64> = bytemuck::pod_collect_to_vec(&self.map(&staging, 8 * u64::from(count))?);
            ticks.extend(values.as_chunks().0);
        }
        Ok(ticks)
    }

    fn seconds(&self, [begin, end]: [u64; 2]) -> f64 {
        end.saturating_sub(begin) as f64 * f64::from(self.0.queue.get_timestamp_period()) * 1e-9
    }
}
