//! Choosing a GPU adapter, opening it, and the one queue everything goes through.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::launch::Recorder;
use crate::pool::Pool;
use crate::{Error, Result};

/// What an open GPU adapter can do.
#[derive(Clone, Debug)]
pub struct Caps {
    /// The adapter's name.
    pub name: String,
    /// `Vulkan`, `Metal` or `Dx12`.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// A CPU pretending to be a GPU (llvmpipe, WARP).
    pub cpu: bool,
    /// f16 storage and arithmetic in shaders.
    pub f16: bool,
    /// Immediate data (push constants); without it params go through a uniform arena.
    pub immediates: bool,
    /// A clock of its own, that passes can be timed with.
    pub timestamps: bool,
    /// The cooperative matrices of f16 with f32 sums that the adapter offers, m × n × k; `STRATA_COOP=0` hides them.
    pub coop: Vec<[u32; 3]>,
    /// Most invocations of a subgroup.
    pub subgroup: u32,
    /// Largest storage binding in bytes.
    pub max_binding: u64,
    /// Largest workgroup memory in bytes.
    pub max_workgroup_memory: u32,
    /// Most invocations of a workgroup.
    pub max_workgroup_size: u32,
}

/// One line of `strata devices`.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Position in the list, usable as `--adapter`.
    pub index: usize,
    /// What it can do, had it been opened with default options.
    pub caps: Caps,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub kind: &'static str,
}

/// How to open a GPU adapter.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Part of the adapter's name (any case) or its index; `None` takes the best.
    pub adapter: Option<String>,
    /// Fill every new tensor with NaN and put guard words behind it, within reach of a kernel that overruns.
    pub debug: bool,
    /// Hold the adapter to what WebGPU guarantees on every one: 8 bindings of 128 MiB, workgroups of 256 invocations with 16 KiB,
    /// no f16, no immediates, no cooperative matrices, no clock.
    pub minimal: bool,
    /// Bytes of tensors at most, as if the GPU had no more memory; `None` leaves that to the driver.
    pub memory: Option<u64>,
    /// Send params through the uniform arena even where immediates exist. `STRATA_IMMEDIATES=0` does the same.
    pub no_immediates: bool,
}

/// Counters since the adapter was opened. Bytes are of GPU memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes in tensors that are alive, as allocated (size classes, guards).
    pub live_bytes: u64,
    /// Highest `live_bytes` since the last [`Gpu::reset_peak`].
    pub peak_bytes: u64,
    /// Bytes the pool holds, alive or free: what the GPU's memory is short of, until [`Gpu::trim`].
    pub allocated_bytes: u64,
    /// Buffers created.
    pub buffers: u64,
    /// Bind groups created.
    pub bind_groups: u64,
    /// Pipelines created.
    pub pipelines: u64,
    /// Kernels launched.
    pub launches: u64,
    /// Floating-point operations the launches declared.
    pub flops: u64,
    /// Bytes of the launches' bindings: what they move if they read and write each byte once.
    pub bytes: u64,
}

pub(crate) struct Inner {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub caps: Caps,
    pub debug: bool,
    pub lost: Arc<AtomicBool>,
    pub pool: Mutex<Pool>,
    pub recorder: Mutex<Recorder>,
    /// Of [`Gpu::once`], by type.
    pub made: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

/// An open GPU adapter. Cloning is cheap; all clones share one queue, one pool and one set of caches.
#[derive(Clone)]
pub struct Gpu(pub(crate) Arc<Inner>);

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.0.caps.name)
    }
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when nothing matches, [`Error::Open`] when the driver refuses.
    pub fn open(options: &GpuOptions) -> Result<Gpu> {
        let adapters = adapters();
        let found = || match adapters.is_empty() {
            true => "none".to_string(),
            false => adapters
                .iter()
                .enumerate()
                .map(|(i, a)| format!("{i}: {}", a.get_info().name))
                .collect::<Vec<_>>()
                .join(", "),
        };
        let chosen = match &options.adapter {
            None => adapters.first(),
            Some(wanted) => match wanted.parse::<usize>() {
                Ok(index) => adapters.get(index),
                Err(_) => adapters
                    .iter()
                    .find(|a| a.get_info().name.to_lowercase().contains(&wanted.to_lowercase())),
            },
        };
        let Some(adapter) = chosen else {
            let wanted = options.adapter.as_ref().map_or("is available".into(), |w| format!("matches {w:?}"));
            return Err(Error::NoAdapter { wanted, found: found() });
        };
        open(adapter, options)
    }

    /// Lists the GPU adapters, best first: discrete, integrated, virtual, CPU.
    pub fn list() -> Vec<AdapterSummary> {
        let summary = |(index, a): (usize, &wgpu::Adapter)| AdapterSummary {
            index,
            caps: caps(a, &GpuOptions::default()),
            kind: kind(a.get_info().device_type),
        };
        adapters().iter().enumerate().map(summary).collect()
    }

    /// What this adapter can do.
    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    /// Whether tensors are poisoned and guarded.
    pub fn debug(&self) -> bool {
        self.0.debug
    }

    /// A value of this type that belongs to this adapter: what `make` returned the first time.
    pub fn once<T: Clone + Send + Sync + 'static>(&self, make: impl FnOnce(&Gpu) -> T) -> T {
        let cell = {
            let mut made = self.0.made.lock().unwrap_or_else(|e| e.into_inner());
            let empty = || Arc::new(OnceLock::<T>::new()) as Arc<dyn Any + Send + Sync>;
            made.entry(TypeId::of::<T>()).or_insert_with(empty).clone()
        };
        // not under the lock: making one value may ask for another
        match cell.downcast::<OnceLock<T>>() {
            Ok(cell) => cell.get_or_init(|| make(self)).clone(),
            Err(_) => unreachable!("cells are kept by their type"),
        }
    }

    /// Counters since opening.
    pub fn stats(&self) -> Stats {
        let (pool, recorder) = (self.pool(), self.recorder());
        Stats {
            live_bytes: pool.live_bytes,
            peak_bytes: pool.peak_bytes,
            allocated_bytes: pool.allocated_bytes,
            buffers: pool.created,
            ..recorder.stats
        }
    }

    /// Shader and definitions of every pipeline compiled so far.
    pub fn pipelines(&self) -> Vec<String> {
        self.recorder().pipeline_names()
    }

    /// Starts `peak_bytes` again from the bytes alive now.
    pub fn reset_peak(&self) {
        let mut pool = self.pool();
        pool.peak_bytes = pool.live_bytes;
    }

    /// Submits what has been launched so far without waiting for it.
    pub fn flush(&self) {
        self.recorder().flush(&self.0);
    }

    /// Waits until everything written and launched so far is done.
    pub fn wait(&self) -> Result<()> {
        self.flush();
        // uploads wait for the next submit, and without a launch there was none
        self.0.queue.submit([]);
        self.poll("waiting for the queue")
    }

    pub(crate) fn poll(&self, doing: &'static str) -> Result<()> {
        let polled = self.0.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: None });
        match polled {
            Err(e) => Err(Error::Lost { doing, cause: e.to_string() }),
            Ok(_) if self.0.lost.load(Ordering::Relaxed) => Err(Error::Lost {
                doing,
                cause: "the device was reset; a display GPU resets a kernel of over about 2 s, so try a smaller batch".into(),
            }),
            Ok(_) => Ok(()),
        }
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.0.recorder.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    adapters.sort_by_key(|a| {
        let info = a.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        (kind, info.backend == wgpu::Backend::Dx12)
    });
    adapters
}

fn kind(t: wgpu::DeviceType) -> &'static str {
    match t {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "cpu",
        wgpu::DeviceType::Other => "other",
    }
}

fn caps(adapter: &wgpu::Adapter, options: &GpuOptions) -> Caps {
    let info = adapter.get_info();
    let (features, limits, coop) = match options.minimal {
        true => (wgpu::Features::empty(), wgpu::Limits::default(), Vec::new()),
        false => (adapter.features(), adapter.limits(), coop(adapter)),
    };
    let immediates_off = options.no_immediates || std::env::var("STRATA_IMMEDIATES").is_ok_and(|v| v == "0");
    Caps {
        backend: format!("{:?}", info.backend),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        cpu: info.device_type == wgpu::DeviceType::Cpu,
        f16: features.contains(wgpu::Features::SHADER_F16),
        immediates: features.contains(wgpu::Features::IMMEDIATES) && !immediates_off,
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        coop,
        subgroup: info.subgroup_max_size,
        max_binding: limits.max_storage_buffer_binding_size,
        max_workgroup_memory: limits.max_compute_workgroup_storage_size,
        max_workgroup_size: limits.max_compute_invocations_per_workgroup,
        name: info.name,
    }
}

/// The cooperative matrices of f16 with f32 sums that the adapter has.
fn coop(adapter: &wgpu::Adapter) -> Vec<[u32; 3]> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SUBGROUP
        | wgpu::Features::SHADER_F16;
    if std::env::var("STRATA_COOP").is_ok_and(|v| v == "0") || !adapter.features().contains(needed) {
        return Vec::new();
    }
    let offered = adapter.cooperative_matrix_properties().into_iter();
    let fit = offered.filter(|p| (p.ab_type, p.cr_type) == (F16, F32));
    fit.map(|p| [p.m_size, p.n_size, p.k_size]).collect()
}

fn open(adapter: &wgpu::Adapter, options: &GpuOptions) -> Result<Gpu> {
    let caps = caps(adapter, options);
    let mut features = wgpu::Features::empty();
    features.set(wgpu::Features::SHADER_F16, caps.f16);
    features.set(wgpu::Features::IMMEDIATES, caps.immediates);
    features.set(wgpu::Features::TIMESTAMP_QUERY, caps.timestamps);
    let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
    if !caps.coop.is_empty() {
        features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP;
        // SAFETY: only kernels that say so are compiled with it: GEMMs and attention on cooperative matrices. Their text is
        // validated and run in tests, and on every adapter first held to the other bodies; where they differ it is not used.
        experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
    }
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("strata"),
        required_features: features,
        required_limits: if options.minimal { wgpu::Limits::default() } else { adapter.limits() },
        experimental_features,
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(request)
        .map_err(|e| Error::Open { name: caps.name.clone(), cause: e.to_string() })?;
    let lost = Arc::new(AtomicBool::new(false));
    let flag = lost.clone();
    device.set_device_lost_callback(move |reason, _| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            flag.store(true, Ordering::Relaxed);
        }
    });
    let recorder = Mutex::new(Recorder::new(&device, &caps));
    let debug = options.debug;
    let pool = Mutex::new(Pool::new(options.memory.unwrap_or(u64::MAX)));
    Ok(Gpu(Arc::new(Inner { device, queue, caps, debug, lost, pool, recorder, made: Mutex::default() })))
}
