//! Names of states: a chain of hashes over the tokens, one link for every stride.
//!
//! ```text
//! root = H(versions, model, contract, stride, salt)   link 1 = H(root, tokens 0..E)
//! link n = H(link n-1, tokens (n-1)E..nE)             the name of the state at position nE
//! ```
//! The state of a sequence is a function of what the root holds and of its tokens, so equal names
//! are equal states. H is SHA-256: names are drawn from what clients send, and nobody may find two
//! prompts of one name.

use std::fmt;

use palimpsest_proto::contract::{self, Contract};
use palimpsest_proto::v1::KvContract;
use prost::Message;
use sha2::{Digest, Sha256};

/// Changes whenever a name stands for something else than before.
const VERSION: &[u8] = b"palimpsest snapshot names 2";

/// The name of a state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name([u8; 32]);

impl Name {
    /// For the wire.
    pub fn bytes(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }

    /// A name from the wire.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a state depends on beside its tokens.
#[derive(Debug, Clone, Copy)]
pub struct Root<'a> {
    /// Digest of weights, scorers, the cache's element type and the device's arithmetic, as ranks
    /// report it.
    pub model: &'a [u8],
    /// The contract of the request.
    pub contract: &'a Contract,
    /// Tokens between two boundaries.
    pub stride: u64,
    /// Who may use it: requests with other salts have other names for the same states.
    pub salt: Salt<'a>,
}

/// Who may begin with a state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Salt<'a> {
    /// Whose key was shown; empty: anyone's.
    pub tenant: &'a str,
    /// What the request says; mostly nothing.
    pub request: &'a str,
}

impl Root<'_> {
    fn name(&self) -> Name {
        let mut hash = Sha256::new();
        let contract = KvContract::from(self.contract).encode_to_vec();
        // Each part with its length, so that no two lists of parts are the same bytes.
        let Salt { tenant, request } = self.salt;
        let (tenant, request) = (tenant.as_bytes(), request.as_bytes());
        let meaning = contract::VERSION.to_le_bytes();
        for part in [VERSION, self.model, &meaning, &contract, tenant, request] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(self.stride.to_le_bytes());
        Name(hash.finalize().into())
    }
}

/// The names of a sequence's states, at every boundary that its tokens reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    stride: u64,
    /// The root, then one name for every whole stride.
    names: Vec<Name>,
}

impl Chain {
    /// The chain of a sequence that has not read a token.
    pub fn new(root: &Root<'_>) -> Self {
        Self {
            stride: root.stride.max(1),
            names: vec![root.name()],
        }
    }

    /// The chain of a sequence that begins with `tokens`.
    pub fn of(root: &Root<'_>, tokens: &[u32]) -> Self {
        let mut chain = Self::new(root);
        chain.extend(tokens.chunks_exact(chain.stride as usize));
        chain
    }

    /// Goes on with whole strides of tokens, each of which follows the last boundary.
    pub fn extend<'t>(&mut self, strides: impl Iterator<Item = &'t [u32]>) {
        for tokens in strides {
            debug_assert_eq!(tokens.len() as u64, self.stride, "a whole stride");
            let mut hash = Sha256::new();
            if let Some(last) = self.names.last() {
                hash.update(last.0);
            }
            tokens.iter().for_each(|id| hash.update(id.to_le_bytes()));
            self.names.push(Name(hash.finalize().into()));
        }
    }

    /// Tokens between two boundaries.
    pub const fn stride(&self) -> u64 {
        self.stride
    }

    /// The last boundary that it reaches.
    pub fn end(&self) -> u64 {
        (self.names.len() as u64 - 1) * self.stride
    }

    /// The name at a boundary; none at 0, beyond the end, and between boundaries.
    pub fn at(&self, position: u64) -> Option<Name> {
        let link = position.checked_div(self.stride)?;
        let is_boundary = link > 0 && link * self.stride == position;
        is_boundary
            .then(|| self.names.get(link as usize).copied())
            .flatten()
    }

    /// Its boundaries up to `most`, the last one first, with their names.
    pub fn boundaries(&self, most: u64) -> impl Iterator<Item = (u64, Name)> + '_ {
        let last = most.min(self.end()) / self.stride;
        (1..=last)
            .rev()
            .map(|link| (link * self.stride, self.names[link as usize]))
    }

    /// Its names, one for every whole stride, each shortened to a number: enough to tell logs of
    /// one tenant apart.
    pub fn links(&self) -> impl Iterator<Item = u64> + '_ {
        let short = |name: &Name| {
            let mut first = [0; 8];
            first.copy_from_slice(&name.0[..8]);
            u64::from_le_bytes(first)
        };
        self.names.iter().skip(1).map(short)
    }

    /// The last boundary up to which both have the same tokens.
    pub fn shared(&self, other: &Self) -> u64 {
        let both = self.names.iter().zip(&other.names);
        // Equal names have equal pasts, so the first difference can be searched for.
        let same: Vec<_> = both.collect();
        let links = same.partition_point(|(own, other)| own == other) as u64;
        links.saturating_sub(1) * self.stride
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRIDE: u64 = 4;

    fn root<'a>(model: &'a [u8], tenant: &'a str) -> Root<'a> {
        Root {
            model,
            contract: &Contract::Full,
            stride: STRIDE,
            salt: Salt {
                tenant,
                request: "",
            },
        }
    }

    proptest! {
        /// Two sequences share exactly the whole strides that both begin with.
        #[test]
        fn chains_share_what_their_tokens_share(
            a in prop::collection::vec(0u32..3, 0..40),
            b in prop::collection::vec(0u32..3, 0..40),
        ) {
            let chains = [&a, &b].map(|tokens| Chain::of(&root(b"m", ""), tokens));
            let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count() as u64;
            prop_assert_eq!(chains[0].shared(&chains[1]), same / STRIDE * STRIDE);
        }

        /// A chain that grows is the chain of all its tokens.
        #[test]
        fn a_chain_grows(tokens in prop::collection::vec(0u32..9, 0..60), cut in 0usize..15) {
            let whole = Chain::of(&root(b"m", ""), &tokens);
            let cut = (cut * STRIDE as usize).min(tokens.len() / 4 * 4);
            let mut grown = Chain::of(&root(b"m", ""), &tokens[..cut]);
            grown.extend(tokens[cut..].chunks_exact(STRIDE as usize));
            prop_assert_eq!(grown, whole);
        }
    }

    #[test]
    fn other_roots_have_other_names() {
        let tokens = [1, 2, 3, 4];
        let name = |root: &Root<'_>| Chain::of(root, &tokens).at(4).expect("a boundary");
        let names = [
            name(&root(b"m", "")),
            name(&root(b"n", "")),
            name(&root(b"m", "t")),
            name(&root(b"mt", "")),
            name(&Root {
                salt: Salt {
                    tenant: "",
                    request: "t",
                },
                ..root(b"m", "")
            }),
            name(&Root {
                stride: 2,
                ..root(b"m", "")
            }),
        ];
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn names_stand_at_boundaries_only() {
        let chain = Chain::of(&root(b"m", ""), &[7; 11]);
        assert_eq!(chain.end(), 8);
        assert!(chain.at(0).is_none() && chain.at(6).is_none() && chain.at(12).is_none());
        let positions: Vec<_> = chain.boundaries(7).map(|(at, _)| at).collect();
        assert_eq!(positions, [4]);
        assert_eq!(chain.boundaries(99).next().map(|(at, _)| at), Some(8));
    }
}
