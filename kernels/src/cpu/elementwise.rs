//! Owned by k2.
