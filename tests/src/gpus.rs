//! The GPU adapter under test, opened once per way of running it.

use std::io::Write;
use std::sync::{LazyLock, Mutex, MutexGuard};

use strata_engine::{Gpu, GpuOptions, Result};
use strata_kernels::{Bodies, use_bodies};

/// A way of running the kernels. All are in debug mode: poisoned tensors with guard words behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// The `lane` bodies: what runs on CPU adapters.
    Lane,
    /// The `tile` bodies: what runs on GPUs.
    Tile,
    /// Cooperative matrices, of the side that the adapter has.
    Coop,
    /// As `Lane`, with params in the uniform arena instead of immediate data.
    Arena,
    /// As `Lane`, on an adapter with no more than WebGPU guarantees.
    Minimal,
    /// As `Tile`, on such an adapter.
    MinimalTile,
}

impl Setup {
    fn open(self) -> Result<Gpu> {
        let options = GpuOptions {
            debug: true,
            no_immediates: self == Self::Arena,
            minimal: matches!(self, Self::Minimal | Self::MinimalTile),
            ..GpuOptions::default()
        };
        let gpu = Gpu::open(&options)?;
        let bodies = match self {
            Self::Lane | Self::Arena | Self::Minimal => Bodies::Lane,
            Self::Tile | Self::MinimalTile => Bodies::Tile,
            Self::Coop => coop().expect("the adapter has cooperative matrices"),
        };
        use_bodies(&gpu, bodies)?;
        Ok(gpu)
    }
}

/// The adapter in this setup, held by one test at a time so that its counters mean something.
///
/// # Panics
/// Where there is no GPU adapter: that is a failure, never a skip.
pub fn gpu(setup: Setup) -> MutexGuard<'static, Gpu> {
    type Slot = LazyLock<Mutex<Gpu>>;
    fn open(setup: Setup) -> Mutex<Gpu> {
        Mutex::new(setup.open().unwrap_or_else(|e| panic!("{e}")))
    }
    static LANE: Slot = Slot::new(|| open(Setup::Lane));
    static TILE: Slot = Slot::new(|| open(Setup::Tile));
    static COOP: Slot = Slot::new(|| open(Setup::Coop));
    static ARENA: Slot = Slot::new(|| open(Setup::Arena));
    static MINIMAL: Slot = Slot::new(|| open(Setup::Minimal));
    static MINIMAL_TILE: Slot = Slot::new(|| open(Setup::MinimalTile));
    let slot = match setup {
        Setup::Lane => &LANE,
        Setup::Tile => &TILE,
        Setup::Coop => &COOP,
        Setup::Arena => &ARENA,
        Setup::Minimal => &MINIMAL,
        Setup::MinimalTile => &MINIMAL_TILE,
    };
    // a failed test leaves the adapter usable
    slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The cooperative matrices that the adapter under test has.
pub fn coop() -> Option<Bodies> {
    Bodies::coop(&Gpu::list().first()?.caps)
}

/// Says that something is not tested here, and why, past the test runner, which shows nothing of a test that passes.
pub fn skipped(what: &str) {
    writeln!(std::io::stderr(), "skipped {what}").expect("stderr can be written to");
}
