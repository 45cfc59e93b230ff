//! From GPU memory back to the host.

use crate::pool::{GUARD_BYTES, GUARD_WORD};
use crate::tensor::byte_len;
use crate::{DType, Error, Gpu, Result, Tensor};

/// Buffers for reading back of up to so many bytes are kept: losses and norms are read in every step, pictures are not.
const KEPT: u64 = 1 << 16;

impl Tensor {
    /// Waits for the content and returns it as f32 (exact for f16).
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let bytes = self.download(self.offset, byte_len(self.shape(), self.dtype()))?;
        let mut values: Vec<f32> = match self.dtype() {
            DType::F32 => bytemuck::pod_collect_to_vec(&bytes),
            DType::F16 => {
                bytemuck::pod_collect_to_vec::<u8, half::f16>(&bytes).iter().map(|h| h.to_f32()).collect()
            }
            DType::U32 => return Err(Error::op("readback", "a u32 tensor read as floats")),
        };
        values.truncate(self.len());
        Ok(values)
    }

    /// Waits for the content and returns its bytes: what bit-equality means.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = self.download(self.offset, byte_len(self.shape(), self.dtype()))?;
        bytes.truncate(self.len() * self.dtype().bytes() as usize);
        Ok(bytes)
    }

    /// In debug mode: whether the guard words behind this tensor still stand, or behind the one it is a view of.
    pub fn guards_intact(&self) -> Result<bool> {
        let end = self.block.wanted - GUARD_BYTES;
        let guard: Vec<u32> = bytemuck::pod_collect_to_vec(&self.download(end, GUARD_BYTES)?);
        Ok(guard.iter().all(|w| *w == GUARD_WORD))
    }

    fn download(&self, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let inner = &self.gpu().0;
        let staging = self.gpu().staging(bytes);
        self.gpu().recorder().copy(inner, &self.block.buffer, offset, &staging, bytes);
        self.gpu().flush();
        let content = self.gpu().map(&staging, bytes)?;
        if staging.size() <= KEPT {
            self.gpu().pool().staging = Some(staging);
        }
        Ok(content)
    }
}

impl Gpu {
    /// Waits for all that was submitted and returns what is then in a buffer that the host can read.
    pub(crate) fn map(&self, staging: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        const DOING: &str = "reading from the GPU";
        let (send, receive) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, ..bytes, move |r| drop(send.send(r)));
        self.poll(DOING)?;
        let lost = |cause: String| Error::Lost { doing: DOING, cause };
        receive.recv().map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
        let content = staging.get_mapped_range(..bytes).map_err(|e| lost(e.to_string()))?.to_vec();
        staging.unmap();
        Ok(content)
    }

    /// A buffer that the host can read: the last one, if it is free and large enough.
    fn staging(&self, bytes: u64) -> wgpu::Buffer {
        let mut pool = self.pool();
        if let Some(buffer) = pool.staging.take_if(|buffer| buffer.size() >= bytes) {
            return buffer;
        }
        pool.created += 1;
        self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: bytes,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }
}
