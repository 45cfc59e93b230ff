//! One dispatch: a shader, its definitions, bindings, params and grid; with the caches that make it cheap.

use std::collections::{HashMap, HashSet};

use crate::gpu::{Caps, Inner, Stats};
use crate::shader::{Def, Shader, render};
use crate::timing::Timer;
use crate::{Error, Gpu, Params, Result, Tensor};

/// Launches between two submits at most.
const LAUNCHES_PER_SUBMIT: u32 = 64;
/// Bytes of one params slot in the uniform arena (the largest offset alignment an adapter may ask for).
const SLOT: u64 = 256;
/// Cached bind groups before the cache starts anew. llvmpipe maps memory for each, and Linux allows 65,530 maps.
const MAX_BIND_GROUPS: usize = 1 << 14;

/// Lays `workgroups` out as a grid within 65,535 per axis; kernels find their index as
/// `wid.x + wid.y * num_workgroups.x` and return where it is past the end.
pub fn fold_grid(workgroups: u32) -> [u32; 3] {
    const MAX: u32 = 65_535;
    if workgroups <= MAX { [workgroups.max(1), 1, 1] } else { [MAX, workgroups.div_ceil(MAX), 1] }
}

/// A launch being put together. Bindings carry the numbers the `.wgsl` gives them.
pub struct Launch<'a> {
    gpu: &'a Gpu,
    shader: &'static Shader,
    defs: Vec<(&'static str, Def)>,
    bindings: Vec<(u32, &'a Tensor, bool)>,
    params: (&'static str, Vec<u8>),
    grid: [u32; 3],
    flops: u64,
    note: &'static str,
}

impl<'a> Launch<'a> {
    /// Starts a launch of `shader`.
    pub fn new(gpu: &'a Gpu, shader: &'static Shader) -> Launch<'a> {
        Launch {
            gpu,
            shader,
            defs: Vec::new(),
            bindings: Vec::new(),
            params: ("", Vec::new()),
            grid: [1; 3],
            flops: 0,
            note: "",
        }
    }

    /// Defines a template variable.
    pub fn def(mut self, name: &'static str, value: impl Into<Def>) -> Self {
        self.defs.push((name, value.into()));
        self
    }

    /// Defines several template variables.
    pub fn defs(mut self, defs: impl IntoIterator<Item = (&'static str, Def)>) -> Self {
        self.defs.extend(defs);
        self
    }

    /// Binds a tensor read-only.
    pub fn read(mut self, binding: u32, tensor: &'a Tensor) -> Self {
        self.bindings.push((binding, tensor, false));
        self
    }

    /// Binds a tensor read-only if there is one.
    pub fn read_opt(self, binding: u32, tensor: Option<&'a Tensor>) -> Self {
        match tensor {
            Some(tensor) => self.read(binding, tensor),
            None => self,
        }
    }

    /// Binds a tensor for writing (and reading).
    pub fn write(mut self, binding: u32, tensor: &'a Tensor) -> Self {
        self.bindings.push((binding, tensor, true));
        self
    }

    /// Sets the params.
    pub fn params<P: Params>(mut self, params: &P) -> Self {
        self.params = (P::WGSL, bytemuck::bytes_of(params).to_vec());
        self
    }

    /// Sets the number of workgroups per axis.
    pub fn grid(mut self, grid: [u32; 3]) -> Self {
        self.grid = grid;
        self
    }

    /// Declares the floating-point operations of the launch (a multiply-add counts two).
    pub fn flops(mut self, flops: u64) -> Self {
        self.flops = flops;
        self
    }

    /// Says which body or pass of its shader this is, for [`Gpu::profile`].
    pub fn note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }

    /// Records the launch; it runs in order with every other one.
    ///
    /// # Errors
    /// [`Error::Shader`] when the shader does not compile on this adapter.
    pub fn run(self) -> Result<()> {
        let gpu = self.gpu;
        gpu.recorder().launch(&gpu.0, self)
    }
}

#[derive(PartialEq, Eq, Hash)]
struct PipelineKey {
    shader: &'static str,
    defs: Vec<(&'static str, Def)>,
}

impl PipelineKey {
    fn name(&self) -> String {
        format!("{} {:?}", self.shader, self.defs)
    }
}

struct Pipeline {
    index: usize,
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// pipeline index, then (buffer id, offset, bytes) per binding
type BindGroupKey = (usize, Vec<(u64, u64, u64)>);

/// The uniform arena that stands in for immediates: a fresh slot per launch and flush.
struct Arena {
    layout: wgpu::BindGroupLayout,
    buffer: wgpu::Buffer,
    bind_group: wgpu::BindGroup,
    bytes: Vec<u8>,
}

/// The command stream under way, and the caches.
pub(crate) struct Recorder {
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    pending: u32,
    pending_flops: u64,
    flops_per_submit: u64,
    pipelines: HashMap<PipelineKey, Pipeline>,
    bind_groups: HashMap<BindGroupKey, wgpu::BindGroup>,
    arena: Option<Arena>,
    pub stats: Stats,
    pub timer: Option<Timer>,
}

impl Recorder {
    pub fn new(device: &wgpu::Device, caps: &Caps) -> Recorder {
        Recorder {
            pass: None,
            encoder: None,
            pending: 0,
            pending_flops: 0,
            // about a tenth of a second of work, far from the two seconds after which a display GPU resets
            flops_per_submit: if caps.cpu { 4_000_000_000 } else { 200_000_000_000 },
            pipelines: HashMap::new(),
            bind_groups: HashMap::new(),
            arena: (!caps.immediates).then(|| Arena::new(device)),
            stats: Stats::default(),
            timer: None,
        }
    }

    fn encoder(&mut self, inner: &Inner) -> &mut wgpu::CommandEncoder {
        self.encoder.get_or_insert_with(|| inner.device.create_command_encoder(&Default::default()))
    }

    fn launch(&mut self, inner: &Inner, mut launch: Launch<'_>) -> Result<()> {
        check(&inner.caps, &launch)?;
        launch.bindings.sort_by_key(|b| b.0);
        let key = PipelineKey { shader: launch.shader.name, defs: std::mem::take(&mut launch.defs) };
        if !self.pipelines.contains_key(&key) {
            let pipeline = self.compile(inner, &launch, &key)?;
            self.pipelines.insert(PipelineKey { shader: key.shader, defs: key.defs.clone() }, pipeline);
        }
        let Pipeline { index, pipeline, layout } = &self.pipelines[&key];
        let spans =
            launch.bindings.iter().map(|(_, t, _)| (t.block.id, t.offset, t.binding_bytes())).collect();
        if self.bind_groups.len() >= MAX_BIND_GROUPS {
            self.bind_groups.clear();
        }
        let bind_group = self.bind_groups.entry((*index, spans)).or_insert_with(|| {
            self.stats.bind_groups += 1;
            let entries: Vec<_> =
                launch.bindings.iter().map(|(binding, t, _)| bind_group_entry(*binding, t)).collect();
            inner.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(launch.shader.name),
                layout,
                entries: &entries,
            })
        });
        let encoder =
            self.encoder.get_or_insert_with(|| inner.device.create_command_encoder(&Default::default()));
        let timer = &mut self.timer;
        let pass = self.pass.get_or_insert_with(|| {
            let timestamp_writes = timer.as_mut().and_then(|timer| timer.next(inner));
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            encoder.begin_compute_pass(&descriptor).forget_lifetime()
        });
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &*bind_group, &[]);
        match &mut self.arena {
            _ if launch.params.1.is_empty() => {}
            None => pass.set_immediates(0, &launch.params.1),
            Some(arena) => {
                let offset = arena.bytes.len();
                arena.bytes.extend_from_slice(&launch.params.1);
                arena.bytes.resize(offset + SLOT as usize, 0);
                pass.set_bind_group(1, &arena.bind_group, &[offset as u32]);
            }
        }
        pass.dispatch_workgroups(launch.grid[0], launch.grid[1], launch.grid[2]);
        let bytes = launch.bindings.iter().map(|(_, t, _)| t.binding_bytes()).sum();
        self.stats.launches += 1;
        self.stats.flops += launch.flops;
        self.stats.bytes += bytes;
        if let Some(timer) = self.timer.as_mut().filter(|timer| timer.each) {
            let label = format!("{} {}", launch.shader.name, launch.note).trim_end().to_string();
            timer.launches.push((label, launch.flops, bytes));
            self.pass = None;
        }
        self.pending += 1;
        self.pending_flops += launch.flops;
        if self.pending >= LAUNCHES_PER_SUBMIT || self.pending_flops >= self.flops_per_submit {
            self.flush(inner);
        }
        Ok(())
    }

    pub fn pipeline_names(&self) -> Vec<String> {
        self.pipelines.keys().map(PipelineKey::name).collect()
    }

    /// Lets go of what holds one of these buffers.
    pub fn forget(&mut self, buffers: &HashSet<u64>) {
        self.bind_groups.retain(|(_, spans), _| !spans.iter().any(|(id, ..)| buffers.contains(id)));
    }

    fn compile(&mut self, inner: &Inner, launch: &Launch<'_>, key: &PipelineKey) -> Result<Pipeline> {
        let name = key.name();
        let text = render(launch.shader, &key.defs, launch.params.0, self.arena.is_none())?;
        let scope = inner.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let checks = wgpu::ShaderRuntimeChecks::unchecked();
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(key.shader),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        };
        // SAFETY: the kernels of this workspace index within their bindings and end their loops; every one is run
        // over guard words behind its outputs in tests. The clamps cost 17-40 % on matmul (gpuweb/gpuweb#1202).
        let module = unsafe { inner.device.create_shader_module_trusted(descriptor, checks) };
        let entries: Vec<_> =
            launch.bindings.iter().map(|(binding, _, write)| storage_entry(*binding, !write)).collect();
        let layout = inner.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(key.shader),
            entries: &entries,
        });
        let groups: &[Option<&wgpu::BindGroupLayout>] = match &self.arena {
            Some(arena) => &[Some(&layout), Some(&arena.layout)],
            None => &[Some(&layout)],
        };
        let pipeline_layout = inner.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(key.shader),
            bind_group_layouts: groups,
            immediate_size: if self.arena.is_none() { launch.params.1.len() as u32 } else { 0 },
        });
        let pipeline = inner.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(key.shader),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(Error::Shader { shader: name, message: error.to_string() });
        }
        self.stats.pipelines += 1;
        Ok(Pipeline { index: self.pipelines.len(), pipeline, layout })
    }

    /// Sets a range of a buffer to zero, in order.
    pub fn clear(&mut self, inner: &Inner, buffer: &wgpu::Buffer, offset: u64, bytes: u64) {
        self.pass = None;
        self.encoder(inner).clear_buffer(buffer, offset, Some(bytes));
    }

    /// Copies into `to`, in order.
    pub fn copy(&mut self, inner: &Inner, from: &wgpu::Buffer, offset: u64, to: &wgpu::Buffer, bytes: u64) {
        self.pass = None;
        self.encoder(inner).copy_buffer_to_buffer(from, offset, to, 0, bytes);
    }

    /// Submits everything recorded.
    pub fn flush(&mut self, inner: &Inner) {
        self.pass = None;
        let Some(encoder) = self.encoder.take() else { return };
        if let Some(arena) = &mut self.arena {
            // lands before the submit below, and every slot is used once per submit
            inner.queue.write_buffer(&arena.buffer, 0, &arena.bytes);
            arena.bytes.clear();
        }
        inner.queue.submit([encoder.finish()]);
        self.pending = 0;
        self.pending_flops = 0;
    }
}

impl Arena {
    fn new(device: &wgpu::Device) -> Arena {
        let entry = wgpu::BindGroupLayoutEntry {
            binding: 0,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Uniform,
                has_dynamic_offset: true,
                min_binding_size: None,
            },
            count: None,
        };
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("params"),
            entries: &[entry],
        });
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: SLOT * LAUNCHES_PER_SUBMIT as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &buffer,
            offset: 0,
            size: std::num::NonZero::new(SLOT),
        });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("params"),
            layout: &layout,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource }],
        });
        Arena { layout, buffer, bind_group, bytes: Vec::new() }
    }
}

/// What a driver would answer with a panic or with silence.
fn check(caps: &Caps, launch: &Launch<'_>) -> Result<()> {
    for (i, (_, tensor, write)) in launch.bindings.iter().enumerate() {
        let bytes = tensor.binding_bytes();
        if bytes > caps.max_binding {
            return Err(Error::TooLarge { bytes, limit: caps.max_binding });
        }
        let same = |(_, other, _): &&(u32, &Tensor, bool)| other.block.id == tensor.block.id;
        let mut others = launch.bindings.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, other)| other);
        if let (true, Some((_, other, false))) = (*write, others.find(|b| same(b) && !b.2)) {
            let message =
                format!("writes {tensor:?} and reads {other:?} on the same memory; copy one of them");
            return Err(Error::op(launch.shader.name, message));
        }
    }
    Ok(())
}

fn bind_group_entry(binding: u32, t: &Tensor) -> wgpu::BindGroupEntry<'_> {
    let (buffer, size) = (&t.block.buffer, std::num::NonZero::new(t.binding_bytes()));
    wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: t.offset, size }),
    }
}

fn storage_entry(binding: u32, read_only: bool) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}
