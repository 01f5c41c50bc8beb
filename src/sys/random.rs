//! Randomness from the operating system.

use std::io;

/// 64 random bits. Costs a system call.
///
/// # Errors
/// If the operating system has no source of randomness.
pub(crate) fn bits() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u64::from_le_bytes(bytes))
}
