//! Ranks that are found in a registry.

use std::sync::Arc;

use async_trait::async_trait;
use palimpsest_registry::{Registry, RegistryError};

use super::{Members, MembersError};

/// The ranks of one group of a registry.
pub struct RegistryMembers {
    registry: Arc<dyn Registry>,
    group: String,
    world_size: u32,
}

impl RegistryMembers {
    /// A group of `world_size` ranks.
    pub fn new(registry: Arc<dyn Registry>, group: String, world_size: u32) -> Self {
        Self { registry, group, world_size }
    }
}

#[async_trait]
impl Members for RegistryMembers {
    async fn addresses(&self) -> Result<Vec<Option<String>>, MembersError> {
        let ranks = self.registry.ranks(&self.group).await.map_err(|error| match error {
            RegistryError::Unreachable { .. } => MembersError::Unreachable(error.to_string()),
            other => MembersError::Refused(other.to_string()),
        })?;
        let mut addresses = vec![None; self.world_size as usize];
        for found in ranks {
            let place = addresses.get_mut(found.rank as usize).filter(|_| found.world_size == self.world_size);
            let Some(place) = place else {
                return Err(MembersError::Refused(format!(
                    "the process at {} is rank {} of {}, this group has {}: start all with the same --tp",
                    found.address, found.rank, found.world_size, self.world_size
                )));
            };
            *place = Some(found.address);
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palimpsest_registry::{MemoryRegistry, RankRecord};
    use std::time::Duration;

    #[tokio::test]
    async fn ranks_stand_in_order_and_odd_ones_are_named() {
        let registry = MemoryRegistry::default();
        let members = RegistryMembers::new(Arc::new(registry.clone()), "g".into(), 3);
        let claim = |rank, of| {
            let record = RankRecord::new(rank, of, format!("host-{rank}:1"));
            let registry = registry.clone();
            async move { registry.claim("g", record, Duration::ZERO).await.expect("a free rank") }
        };
        let (_two, _zero) = (claim(2, 3).await, claim(0, 3).await);
        assert_eq!(members.addresses().await, Ok(vec![Some("host-0:1".into()), None, Some("host-2:1".into())]));
        let _odd = claim(1, 2).await;
        let error = members.addresses().await.expect_err("rank 1 of 2").to_string();
        assert!(error.contains("host-1:1 is rank 1 of 2, this group has 3"), "{error}");
    }
}
