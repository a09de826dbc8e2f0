//! Head layouts that cases run over.

use crate::backend::QkvShape;

const fn layout(heads: usize, kv_heads: usize, head_dim: usize) -> QkvShape {
    QkvShape {
        heads,
        kv_heads,
        head_dim,
    }
}

/// Head layouts: of one head, grouped by 2, 3, 4, 7 and 8, of SmolLM2 and of wider heads.
pub(super) const SHAPES: [QkvShape; 7] = [
    layout(1, 1, 8),
    layout(9, 3, 64),
    layout(4, 2, 24),
    layout(4, 1, 128),
    layout(8, 1, 80),
    layout(7, 1, 64),
    layout(3, 3, 16),
];
