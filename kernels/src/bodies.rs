//! With which bodies kernels run on a GPU adapter. This is where it is asked whether that is a CPU.

use strata_engine::{Caps, Error, Gpu, Result, fold_grid};

use crate::gemm;

/// The bodies of kernels: of the GEMM family, and with it of norms and reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bodies {
    /// Everything in registers, no workgroup memory, no barriers: CPU adapters.
    Lane,
    /// 64×64 tiles and sums in workgroup memory: everything else.
    Tile,
    /// Cooperative matrices of 8×8×8 (Apple's simdgroups), f16 with f32 sums, for GEMMs and attention in f16; else as `Tile`.
    Coop8,
    /// Cooperative matrices of 16×16×16 (NVIDIA's tensor cores, AMD's from RDNA 3 on), likewise.
    Coop16,
}

/// The environment variable that chooses by hand.
const VARIABLE: &str = "STRATA_GEMM";

impl Bodies {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Lane, Self::Tile, Self::Coop8, Self::Coop16];

    /// The name, as printed and as read from `STRATA_GEMM`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Tile => "tile",
            Self::Coop8 => "coop8",
            Self::Coop16 => "coop16",
        }
    }

    /// Those with the largest cooperative matrices that an adapter offers, of those that there are bodies for.
    pub fn coop(caps: &Caps) -> Option<Self> {
        [Self::Coop16, Self::Coop8].into_iter().find(|bodies| bodies.run_on(caps))
    }

    /// Those that kernels will run with on an adapter: those that `STRATA_GEMM` names, else those that suit it.
    ///
    /// # Errors
    /// `STRATA_GEMM` names none, or some that the adapter cannot run.
    pub fn of(caps: &Caps) -> Result<Self> {
        match std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) {
            Some(name) => Self::named(&name.to_string_lossy(), caps),
            None if is_cpu(caps) => Ok(Self::Lane),
            None => Ok(Self::coop(caps).unwrap_or(Self::Tile)),
        }
    }

    fn named(name: &str, caps: &Caps) -> Result<Self> {
        match Self::ALL.into_iter().find(|bodies| bodies.name() == name) {
            Some(bodies) => bodies.checked(VARIABLE, caps),
            None => {
                let names = Self::ALL.map(Self::name).join(", ");
                let message = format!("`{name}` names no kernels; choose one of {names}, or leave it out");
                Err(Error::op(VARIABLE, message))
            }
        }
    }

    fn checked(self, asked: &'static str, caps: &Caps) -> Result<Self> {
        if self.run_on(caps) {
            return Ok(self);
        }
        let has: Vec<String> = caps.coop.iter().map(|[m, n, k]| format!("{m}×{n}×{k}")).collect();
        let has = if has.is_empty() { "none".into() } else { has.join(", ") };
        let can = Self::ALL.into_iter().filter(|bodies| bodies.run_on(caps)).map(Self::name);
        let message = format!(
            "{} wants cooperative matrices, of which {} has {has}; choose one of {}",
            self.name(),
            caps.name,
            can.collect::<Vec<_>>().join(", ")
        );
        Err(Error::op(asked, message))
    }

    fn run_on(self, caps: &Caps) -> bool {
        self.side().is_none_or(|side| caps.coop.contains(&[side; 3]))
    }

    /// Rows and columns of their cooperative matrices.
    pub(crate) fn side(self) -> Option<u32> {
        match self {
            Self::Lane | Self::Tile => None,
            Self::Coop8 => Some(8),
            Self::Coop16 => Some(16),
        }
    }

    /// Whether one invocation does alone what elsewhere a workgroup does.
    pub(crate) fn lane(self) -> bool {
        self == Self::Lane
    }

    /// Invocations of a workgroup.
    pub(crate) fn workgroup(self) -> u32 {
        if self.lane() { 8 } else { 128 }
    }

    /// A grid of at least so many invocations.
    pub(crate) fn invocations(self, count: u32) -> [u32; 3] {
        fold_grid(count.div_ceil(self.workgroup()))
    }

    /// A grid for so many rows, each an invocation's or a workgroup's.
    pub(crate) fn rows(self, count: u32) -> [u32; 3] {
        if self.lane() { self.invocations(count) } else { fold_grid(count) }
    }
}

/// Whether this is a CPU pretending to be a GPU.
pub(crate) fn is_cpu(caps: &Caps) -> bool {
    caps.cpu
}

/// What was chosen for a GPU adapter, once for all its kernels.
#[derive(Clone)]
struct Chosen(Result<Bodies, String>);

/// The bodies that kernels run with, whether cooperative matrices turn out to work or not.
pub(crate) fn chosen(gpu: &Gpu) -> Result<Bodies> {
    let choose = |gpu: &Gpu| {
        Chosen(Bodies::of(gpu.caps()).map_err(|e| match e {
            Error::Op { message, .. } => message,
            other => other.to_string(),
        }))
    };
    gpu.once(choose).0.map_err(|message| Error::op(VARIABLE, message))
}

/// Has the kernels of this GPU adapter run with these bodies, whatever suits it; before the first of them runs.
///
/// # Errors
/// The adapter cannot run them, or its kernels run with others already.
pub fn use_bodies(gpu: &Gpu, bodies: Bodies) -> Result<()> {
    let wanted = bodies.checked("bodies", gpu.caps())?;
    let Chosen(chosen) = gpu.once(|_| Chosen(Ok(wanted)));
    match chosen {
        Ok(chosen) if chosen == wanted => Ok(()),
        Ok(chosen) => {
            let (chosen, wanted) = (chosen.name(), wanted.name());
            Err(Error::op(
                "bodies",
                format!("kernels run with {chosen} already; choose {wanted} before the first"),
            ))
        }
        Err(message) => Err(Error::op(VARIABLE, message)),
    }
}

/// The bodies in use: where the adapter's cooperative matrices do not do what they should, `Tile`.
///
/// # Errors
/// `STRATA_GEMM` names none, or some that the adapter cannot run.
pub fn bodies(gpu: &Gpu) -> Result<Bodies> {
    match chosen(gpu)? {
        Bodies::Coop8 | Bodies::Coop16 if !gemm::trusted(gpu) => Ok(Bodies::Tile),
        bodies => Ok(bodies),
    }
}

/// Cooperative matrices of an adapter, and what else the shapes of bodies that use them depend on.
#[derive(Clone, Copy)]
pub(crate) struct Matrices {
    pub side: u32,
    /// Most invocations of a subgroup; a workgroup has enough for all, whatever size they come in.
    pub subgroup: u32,
    /// Memory of the workgroup is of vectors of four, which Metal cannot load matrices from.
    pub quads: bool,
    pub cpu: bool,
    /// Bytes of a workgroup's memory, and its invocations, at most.
    pub memory: u32,
    pub invocations: u32,
}

impl Matrices {
    /// Kinds of adapters whose texts are checked without a GPU: subgroups of 8 (llvmpipe), 32 (Apple, NVIDIA) and 64 (AMD).
    pub(crate) const KINDS: [Self; 4] = {
        const fn kind(side: u32, subgroup: u32, quads: bool, cpu: bool, memory: u32) -> Matrices {
            Matrices { side, subgroup, quads, cpu, memory: memory << 10, invocations: 1024 }
        }
        [
            kind(8, 8, true, true, 32),
            kind(8, 32, false, false, 32),
            kind(16, 32, true, false, 48),
            kind(16, 64, true, false, 48),
        ]
    };

    /// Those that kernels were chosen to use, whether they work or not.
    pub(crate) fn chosen(gpu: &Gpu) -> Result<Option<Self>> {
        let caps = gpu.caps();
        let of = |side| Self {
            side,
            subgroup: caps.subgroup,
            quads: caps.backend == "Vulkan",
            cpu: is_cpu(caps),
            memory: caps.max_workgroup_memory,
            invocations: caps.max_workgroup_size,
        };
        Ok(chosen(gpu)?.side().map(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(cpu: bool, coop: &[[u32; 3]]) -> Caps {
        Caps {
            name: "the adapter".into(),
            backend: "Vulkan".into(),
            driver: String::new(),
            cpu,
            f16: true,
            immediates: true,
            timestamps: false,
            coop: coop.to_vec(),
            subgroup: 32,
            max_binding: 1 << 27,
            max_workgroup_memory: 1 << 14,
            max_workgroup_size: 256,
        }
    }

    #[test]
    fn names_choose_bodies() {
        let gpu = caps(false, &[[8, 8, 8], [16, 8, 16]]);
        for bodies in [Bodies::Lane, Bodies::Tile, Bodies::Coop8] {
            assert_eq!(Bodies::named(bodies.name(), &gpu).unwrap(), bodies);
        }
        assert_eq!(Bodies::coop(&gpu), Some(Bodies::Coop8));
        assert_eq!(Bodies::coop(&caps(true, &[[8, 8, 8], [16, 16, 16]])), Some(Bodies::Coop16));
        assert_eq!(Bodies::coop(&caps(false, &[[16, 8, 16]])), None);
    }

    #[test]
    fn other_names_are_refused() {
        let message = |name: &str, caps: &Caps| Bodies::named(name, caps).unwrap_err().to_string();
        for name in ["tiel", "Lane", " tile", "coop"] {
            let message = message(name, &caps(false, &[[8, 8, 8]]));
            for part in ["STRATA_GEMM", &format!("`{name}`"), "lane, tile, coop8, coop16"] {
                assert!(message.contains(part), "{part} is not in: {message}");
            }
        }
        let small = message("coop16", &caps(false, &[[8, 8, 8]]));
        assert!(small.contains("8×8×8") && small.contains("lane, tile, coop8"), "{small}");
        let none = message("coop8", &caps(true, &[]));
        assert!(none.contains("the adapter has none") && none.ends_with("lane, tile"), "{none}");
    }
}
