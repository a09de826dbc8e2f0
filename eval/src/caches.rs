//! Which caches are compared.

use palimpsest_engine::kv::HeadBudget;
use palimpsest_engine::runner::Runner;
use palimpsest_kernels::{Backend, KvType};

use crate::contracts::{Budget, CacheShape, FULL};
use crate::{Error, Result};

/// Caches to compare: the product of its parts, less what would be the same twice.
#[derive(Debug, Clone)]
pub struct Caches {
    /// Policies; `full` is measured once. `POLICY+MEMORY` has that memory alone.
    pub policies: Vec<String>,
    /// Latent memories of the policies that name none.
    pub memories: Vec<String>,
    /// See [`CacheShape::memory_slots`].
    pub memory_slots: Vec<Option<u32>>,
    /// Head budgets; policies whose scores cannot be compared get `uniform` alone.
    pub head_budgets: Vec<String>,
    /// Budgets.
    pub budgets: Vec<Budget>,
    /// Protected first positions.
    pub sinks: u32,
    /// See [`CacheShape::window`].
    pub window: Option<u32>,
}

impl Caches {
    /// The policies without their memories.
    pub fn policy_names(&self) -> impl Iterator<Item = &str> {
        self.policies
            .iter()
            .map(|name| name.split_once('+').map_or(&**name, |(policy, _)| policy))
    }

    /// Every cache once, as the runner knows policies and element type.
    ///
    /// # Errors
    /// [`Error::Worker`] for an unknown policy, and those of [`Self::shapes`].
    pub fn known<B: Backend>(&self, runner: &Runner<B>) -> Result<Vec<CacheShape>> {
        for policy in self.policy_names() {
            palimpsest_engine::policy::find(runner.policies(), policy)?;
        }
        let comparable = |name: &str| {
            runner
                .policies()
                .iter()
                .any(|p| p.name() == name && p.comparable())
        };
        self.shapes(runner.kv_type(), &comparable)
    }

    /// Every cache once, of elements of `kv_type`. `comparable` tells whether a policy's scores may
    /// be pooled.
    ///
    /// # Errors
    /// [`Error::Spec`] for a bounded policy without a budget.
    pub fn shapes(
        &self,
        kv_type: KvType,
        comparable: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<CacheShape>> {
        let mut shapes = Vec::new();
        let mut add = |shape: CacheShape| {
            let shape = CacheShape {
                kv_type: kv_type.name().into(),
                ..shape
            };
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        };
        for name in &self.policies {
            let (policy, memory) = name
                .split_once('+')
                .map_or((&**name, None), |(p, m)| (p, Some(vec![m.to_string()])));
            let memories = memory.as_ref().unwrap_or(&self.memories);
            if policy == FULL {
                add(CacheShape::full());
                continue;
            }
            if self.budgets.is_empty() {
                return Err(Error::Spec(format!(
                    "policy `{policy}` needs a budget: give --shares or --budgets"
                )));
            }
            for head_budget in &self.head_budgets {
                let pooled = comparable(policy);
                let head_budget = if pooled {
                    head_budget.clone()
                } else {
                    HeadBudget::Uniform.name().into()
                };
                for memory in memories {
                    for slots in &self.memory_slots {
                        for budget in &self.budgets {
                            add(CacheShape {
                                policy: policy.into(),
                                memory: memory.clone(),
                                memory_slots: if memory == "none" { None } else { *slots },
                                head_budget: head_budget.clone(),
                                budget: Some(*budget),
                                sinks: self.sinks,
                                window: self.window,
                                ..CacheShape::full()
                            });
                        }
                    }
                }
            }
        }
        Ok(shapes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn caches() -> Caches {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_string()).collect::<Vec<_>>();
        Caches {
            policies: list(&["full", "tova", "retention"]),
            memories: list(&["none", "centroid"]),
            memory_slots: vec![Some(16), Some(32)],
            head_budgets: list(&["uniform", "column"]),
            budgets: vec![Budget::Entries(512), Budget::Share(1000)],
            sinks: 4,
            window: None,
        }
    }

    #[test]
    fn no_cache_is_measured_twice() {
        let shapes = caches()
            .shapes(KvType::F16, &|name| name == "retention")
            .expect("a grid");
        let count = |policy: &str| shapes.iter().filter(|s| s.policy == policy).count();
        // Budgets times (no memory, two sizes of it), times head budgets where they differ.
        assert_eq!(
            (count("full"), count("tova"), count("retention")),
            (1, 2 * 3, 2 * 3 * 2)
        );
        let one = Caches {
            policies: vec!["tova+centroid".into(), "retention".into()],
            memories: vec!["none".into()],
            ..caches()
        };
        let shapes = one.shapes(KvType::F16, &|_| false).expect("a grid");
        let memories = |policy: &str| {
            shapes
                .iter()
                .filter(|s| s.policy == policy)
                .map(|s| &*s.memory)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (memories("tova"), memories("retention")),
            (vec!["centroid"; 4], vec!["none"; 2])
        );
        let none = Caches {
            budgets: Vec::new(),
            ..caches()
        };
        assert!(none.shapes(KvType::F16, &|_| true).is_err());
    }
}
