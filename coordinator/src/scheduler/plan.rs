//! What one sequence does in the next step: the pure arithmetic of pieces and boundaries.

/// Tokens from `position` up to the next multiple of `stride`; a step never carries a sequence
/// across it.
pub const fn to_boundary(position: u64, stride: u64) -> u64 {
    stride - position % stride
}

/// Tokens of the next prefill piece: no more than are left, than the boundary allows and than the
/// step may still take.
pub fn piece(position: u64, prompt: u64, stride: u64, allowance: u64) -> u64 {
    (prompt - position)
        .min(to_boundary(position, stride))
        .min(allowance)
}

/// How many prefill tokens the next step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBudget {
    /// While others decode: bounds what a long prompt adds to their time per token.
    pub busy: u64,
    /// While nobody decodes.
    pub idle: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_boundaries_prompts_and_allowances() {
        let rows = [
            (0, 1000, 256, 999, 256),
            (200, 1000, 256, 999, 56),
            (256, 300, 256, 999, 44),
            (0, 1000, 256, 7, 7),
        ];
        for (position, prompt, stride, allowance, expected) in rows {
            assert_eq!(piece(position, prompt, stride, allowance), expected);
        }
        assert_eq!(to_boundary(256, 256), 256);
        assert_eq!(to_boundary(511, 256), 1);
    }
}
