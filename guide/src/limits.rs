//! What a guide may take.

use std::time::Duration;

use llguidance::api::ParserLimits;

/// Bytes of a guide's texts together.
pub const MAX_BYTES: usize = 64 << 10;

/// Bytes of a grammar of calls, the schemas of all tools among them: as many as a guide may have,
/// and what stands around them for the largest number of tools.
pub(crate) const MAX_CALLS_BYTES: usize = MAX_BYTES + (64 << 10);

/// Bytes of a grammar: the library takes time that grows faster than the number of its rules.
pub(crate) const MAX_GRAMMAR_BYTES: usize = 16 << 10;

/// A guide that took longer to compile is refused where it is checked. Ranks compile it again, and
/// their steps must not wait for long.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(5);

/// The library goes down a chain of definitions by calls, and a guide of the largest size may be
/// one chain. What is not used of it takes no memory.
pub(crate) const STACK_BYTES: usize = 256 << 20;

/// What compiling a guide and following an answer may take. At the library's pace, 20 ms for
/// compiling and 15 ms for a mask; a state of its lexer takes 1 to 2 KiB.
pub(crate) fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        // They hold what was answered.
        verbose_errors: false,
    }
}
