//! Epochs and terms count up by one. What others say of the last one is believed within reason: a
//! number from which one could not count on would otherwise stop a group for good.

/// How far ahead of what is known a number may be that others tell: one every second for 136 years.
pub const MAX_LEAP: u64 = 1 << 32;

/// Whether `told` can come after `known`.
pub const fn can_follow(told: u64, known: u64) -> bool {
    told < known.saturating_add(MAX_LEAP)
}

/// The number after `last`; `None` where one could not count on.
pub const fn next(last: u64) -> Option<u64> {
    last.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_have_been_counted_to_is_not_believed() {
        assert!(can_follow(0, 7) && can_follow(8, 7) && can_follow(MAX_LEAP - 1, 0));
        assert!(!can_follow(MAX_LEAP, 0) && !can_follow(u64::MAX, 7));
        assert!(!can_follow(u64::MAX, u64::MAX), "nothing comes after it");
        assert_eq!((next(7), next(u64::MAX)), (Some(8), None));
    }
}
