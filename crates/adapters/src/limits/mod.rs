//! Rate limits in this process: alone, or for the time in which the shared store is away.

mod fallback;
mod memory;

pub use fallback::Fallback;
pub use memory::MemoryLimiter;
