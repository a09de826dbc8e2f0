//! Names that may have been meant.

use std::collections::BTreeSet;

/// Similarity (Jaro, 0 to 1) from which a name is taken for what was meant.
const NEAR: f64 = 0.8;

/// Characters from which the beginning of a name is as good as the name.
const LEAST: usize = 4;

/// Up to three of `names` that are most like `name` or begin with it, the most similar first,
/// without regard to case.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name = name.to_lowercase();
    // Each once, and in an order of their own where two are as similar.
    let names: BTreeSet<&str> = names.into_iter().collect();
    let is_begun = name.len() >= LEAST;
    let similar = names.into_iter().map(|other| {
        let lower = other.to_lowercase();
        let begins = is_begun && lower.starts_with(&name);
        let how = strsim::jaro(&name, &lower);
        (if begins { how.max(NEAR) } else { how }, other)
    });
    let mut near: Vec<_> = similar.filter(|(how, _)| *how >= NEAR).collect();
    near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    near.into_iter().take(3).map(|(_, other)| other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_near_and_another_name_is_not() {
        let names = [
            "Qwen/Qwen2.5-0.5B-Instruct",
            "org/other-model",
            "SmolLM2-135M-Instruct",
        ];
        assert_eq!(nearest("qwen/qwen2.5-0.5b-instrcut", names), [names[0]]);
        assert_eq!(nearest("smollm-135m-instruct", names), [names[2]]);
        assert_eq!(nearest("SmolLM2", names), [names[2]]);
        assert!(nearest("meta/llama", names).is_empty());
        assert!(nearest("q", names).is_empty());
    }
}
