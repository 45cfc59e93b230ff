//! What can go wrong on the GPU side, said so that the reader knows what to do.

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the engine or of an op built on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No GPU adapter at all, or none that fits the request.
    #[error(
        "no GPU adapter {wanted}. Found: {found}. If one is missing, install its Vulkan driver: on Debian or Ubuntu `apt-get install \
         mesa-vulkan-drivers` (its llvmpipe also runs without a GPU), your vendor's driver elsewhere"
    )]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// The adapters that exist, or "none".
        found: String,
    },
    /// The adapter refused to open.
    #[error("cannot open GPU adapter {name}: {cause}")]
    Open {
        /// Name of the GPU adapter.
        name: String,
        /// What wgpu said.
        cause: String,
    },
    /// An op was given shapes, types or values that do not go together.
    #[error("{op}: {message}")]
    Op {
        /// Name of the op.
        op: &'static str,
        /// Both shapes or both values, and what to do.
        message: String,
    },
    /// A shader did not compile on this adapter.
    #[error("shader {shader}: {message}")]
    Shader {
        /// Name of the shader and its definitions.
        shader: String,
        /// The compiler's words.
        message: String,
    },
    /// A tensor larger than the adapter can hold in one buffer, or bind to a shader.
    #[error(
        "a tensor of {bytes} bytes is over this GPU adapter's limit of {limit} bytes for one tensor; use a smaller batch or resolution"
    )]
    TooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// The adapter's limit.
        limit: u64,
    },
    /// GPU memory is exhausted.
    #[error(
        "out of GPU memory: {bytes} bytes more were wanted on top of {allocated} allocated; use a smaller batch, resolution or dtype f16"
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes the pool already holds.
        allocated: u64,
    },
    /// Of a crate above this one, on its way through a block that is run again; see [`Tape::recompute`](crate::Tape::recompute).
    #[error(transparent)]
    Outer(Box<dyn std::error::Error + Send + Sync>),
    /// The device stopped answering.
    #[error("the GPU was lost while {doing}: {cause}")]
    Lost {
        /// What was under way.
        doing: &'static str,
        /// What wgpu said.
        cause: String,
    },
}

impl Error {
    /// An [`Error::Op`]; `message` holds both shapes or values.
    pub fn op(op: &'static str, message: impl Into<String>) -> Error {
        Error::Op { op, message: message.into() }
    }
}
