//! A snapshot as a file: safetensors, of the heads of one rank or of several.
//!
//! What the file says of itself stands in its metadata ([`Header`]): its version, whose state it
//! is, and a SHA-256 over all of that and every tensor. Nothing in it depends on the number of
//! ranks or on the device: `Snapshot::join` makes any rank's part out of files that cover it.
//!
//! Every KV head has tensors of its own, named `{layer}.{kv_head}.{part}`:
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `keys`, `values` | F32, F16 or I8 | `[L, D]` | as they are stored |
//! | `key_scales`, `value_scales` | F16 | `[L]` | of 8-bit elements |
//! | `positions`, `rotary`, `notes` | U32 | `[L]` | the latter two where there are any |
//! | `terms` | F32 | `[L, t]` | what the policy's hook stores with slots |
//! | `mass` | F32 | `[n, L]` | for each query head, or one line |
//! | `sums` | F64 | `[n, m]` | for each query head, or one line |
//! | `memory_keys`, `memory_values`, `memory_counts` | F32 | `[r, D]`, `[r]` | centroids |
//! | `memory_sums`, `memory_norms` | F32 | `[f, D]`, `[f]` | associative memory |

mod checksum;
mod decode;
mod describe;
mod encode;
mod header;
mod hex;
mod identity;
mod tensors;

pub use self::describe::{Description, describe, is_snapshot, seal};
pub use self::header::Header;
pub use self::hex::{from_hex, to_hex};
pub use self::identity::{FORMAT, Identity, VERSION};

#[cfg(test)]
mod tests;
