//! Which files of a store make up a rank's part of a snapshot.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use palimpsest_engine::runner::Runner;
use palimpsest_engine::snapshot::file::{Identity, from_hex, to_hex};
use palimpsest_engine::snapshot::{Extent, Snapshot};
use palimpsest_kernels::{Backend, PageShape};
use palimpsest_store::{Entry, Store};

/// Before every key of a snapshot, and before the digest of its model.
const FOLDER: &str = "snapshots";
/// Bytes of a model's digest that name its folder.
const MODEL_BYTES: usize = 8;
const SUFFIX: &str = ".safetensors";
/// What a file's header may take beside its tensors.
const HEADER_BYTES: u64 = 16 << 20;

/// A snapshot in a store, as far as this rank reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredSnapshot {
    pub(super) name: Bytes,
    /// Of the files that this rank reads.
    pub(super) bytes: u64,
}

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error(transparent)]
    Store(#[from] palimpsest_store::Error),
    #[error(transparent)]
    Snapshot(#[from] palimpsest_engine::snapshot::SnapshotError),
    #[error("there is no room for {bytes} bytes beside what is kept: all may take {most}")]
    NoRoom { bytes: u64, most: u64 },
    #[error("the store is slow: it waited for others until it was no longer worth it")]
    Waited,
    #[error("reading or writing it panicked; standard error says where")]
    Panicked,
}

/// What a rank reads and writes files of.
#[derive(Debug, Clone)]
pub struct RankFiles {
    /// Digest of all of the model that its states depend on.
    pub(super) model: Vec<u8>,
    pub(super) stride: u64,
    pub(super) shape: PageShape,
    /// What the rank holds.
    pub(super) extent: Extent,
}

impl RankFiles {
    /// Files of the rank of `runner`, whose model's states have the digest `model`.
    pub fn of<B: Backend>(runner: &Runner<B>, model: &[u8]) -> Self {
        let decoder = runner.decoder();
        let config = decoder.config();
        Self {
            model: model.to_vec(),
            stride: decoder.stride(),
            shape: PageShape {
                head_dim: config.head_dim,
                dtype: runner.kv_type(),
            },
            extent: Extent::of(&decoder.shard().head_layout(config)),
        }
    }

    fn identity(&self, name: &[u8]) -> Identity {
        Identity {
            name: name.to_vec(),
            model: self.model.clone(),
            stride: self.stride,
            shape: self.shape,
            layers: self.extent.layers,
            total_kv_heads: self.extent.total_kv_heads,
            group: self.extent.group,
        }
    }

    /// Writes this rank's file of a snapshot; returns its bytes.
    pub(super) async fn write(
        &self,
        store: &Store,
        name: &[u8],
        snapshot: &Snapshot,
    ) -> Result<u64, FileError> {
        let file = snapshot.encode(&self.identity(name))?;
        let bytes = file.len() as u64;
        store.put(&self.key(name), file).await?;
        Ok(bytes)
    }

    /// Reads this rank's part of a snapshot, out of its own file or of those of other ranks, each
    /// of at most `most` bytes beside its header.
    pub(super) async fn read(
        &self,
        store: &Store,
        name: &[u8],
        most: u64,
    ) -> Result<Snapshot, FileError> {
        let most = most.saturating_add(HEADER_BYTES);
        let identity = self.identity(name);
        match store.get(&self.key(name), most).await {
            Ok(file) => return Ok(Snapshot::decode(&file, &identity)?),
            Err(palimpsest_store::Error::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let listed = store.list(&self.folder(name)).await?;
        let mut parts = Vec::new();
        for file in self.cover(&listed).unwrap_or_default() {
            let bytes = store.get(&file.key, most).await?;
            parts.push(Snapshot::decode(&bytes, &identity)?);
        }
        Ok(Snapshot::join(parts, &self.extent)?)
    }

    /// Removes the files of a snapshot that begin with one of this rank's heads, whoever wrote
    /// them: all ranks together remove it whole, and none removes what another one writes anew.
    pub(super) async fn erase(&self, store: &Store, name: &[u8]) -> Result<(), FileError> {
        let own = query_heads(&self.extent);
        for file in store.list(&self.folder(name)).await? {
            let is_own = heads_of(&file.key).is_some_and(|heads| own.contains(&heads.start));
            if is_own {
                store.delete(&file.key).await?;
            }
        }
        Ok(())
    }

    /// The snapshots whose files cover this rank's heads.
    pub(super) async fn list(&self, store: &Store) -> Result<Vec<StoredSnapshot>, FileError> {
        let mut names: BTreeMap<Vec<u8>, Vec<Entry>> = BTreeMap::new();
        for file in store.list(&self.model_folder()).await? {
            if let Some(name) = self.name_of(&file.key) {
                names.entry(name).or_default().push(file);
            }
        }
        let covered = names.into_iter().filter_map(|(name, files)| {
            let files = self.cover(&files)?;
            Some(StoredSnapshot {
                name: name.into(),
                bytes: files.iter().map(|file| file.bytes).sum(),
            })
        });
        Ok(covered.collect())
    }

    /// As few files as have all of this rank's query heads; `None`: some are in none.
    fn cover<'f>(&self, files: &'f [Entry]) -> Option<Vec<&'f Entry>> {
        let heads = query_heads(&self.extent);
        let ranges: Vec<(Range<usize>, &Entry)> = files
            .iter()
            .filter_map(|file| Some((heads_of(&file.key)?, file)))
            .collect();
        if let Some((_, own)) = ranges.iter().find(|(range, _)| *range == heads) {
            return Some(vec![own]);
        }
        let (mut next, mut chosen) = (heads.start, Vec::new());
        while next < heads.end {
            let reach = ranges.iter().filter(|(range, _)| range.contains(&next));
            let (range, file) = reach.max_by_key(|(range, _)| range.end)?;
            chosen.push(*file);
            next = range.end;
        }
        Some(chosen)
    }

    /// Where snapshots of this rank's model are.
    fn model_folder(&self) -> String {
        let digest = &self.model[..self.model.len().min(MODEL_BYTES)];
        format!("{FOLDER}/{}", to_hex(digest))
    }

    fn folder(&self, name: &[u8]) -> String {
        format!("{}/{}", self.model_folder(), to_hex(name))
    }

    fn key(&self, name: &[u8]) -> String {
        let Range { start, end } = query_heads(&self.extent);
        format!("{}/{start}-{end}{SUFFIX}", self.folder(name))
    }

    /// The name in a key.
    fn name_of(&self, key: &str) -> Option<Vec<u8>> {
        let rest = key.strip_prefix(&self.model_folder())?.strip_prefix('/')?;
        from_hex(rest.split('/').next()?).filter(|name| !name.is_empty())
    }
}

/// Query heads of the model that a part of it is of: what files are named by, because ranks may
/// share a KV head.
fn query_heads(extent: &Extent) -> Range<usize> {
    let Extent {
        kv_heads,
        group,
        queries,
        ..
    } = extent;
    let last = kv_heads.end.saturating_sub(1);
    kv_heads.start * group + queries.start..last * group + queries.end
}

/// The query heads in a key.
fn heads_of(key: &str) -> Option<Range<usize>> {
    let (start, end) = key
        .rsplit('/')
        .next()?
        .strip_suffix(SUFFIX)?
        .split_once('-')?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(extent: Extent) -> RankFiles {
        RankFiles {
            model: vec![0xcd; 32],
            stride: 16,
            shape: PageShape {
                head_dim: 8,
                dtype: palimpsest_kernels::KvType::F16,
            },
            extent,
        }
    }

    fn extent(kv_heads: Range<usize>, queries: Range<usize>) -> Extent {
        Extent {
            layers: 1,
            kv_heads,
            total_kv_heads: 3,
            group: 2,
            queries,
        }
    }

    #[test]
    fn keys_say_whose_state_it_is() {
        let files = files(extent(1..3, 0..2));
        let key = files.key(&[0xab, 1]);
        assert_eq!(key, "snapshots/cdcdcdcdcdcdcdcd/ab01/2-6.safetensors");
        assert_eq!(files.name_of(&key), Some(vec![0xab, 1]));
        assert_eq!(heads_of(&key), Some(2..6));
        assert_eq!(query_heads(&extent(2..3, 1..2)), 5..6);
        for other in [
            "snapshots/",
            "snapshots/cdcdcdcdcdcdcdcd/xy/0-1",
            "snapshots/cdcdcdcdcdcdcdce/ab/0-1",
            "other/cdcdcdcdcdcdcdcd/ab/0-1",
            "snapshots/cdcdcdcdcdcdcdcd/abc/0-1",
        ] {
            assert_eq!(files.name_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_fewest_files_that_have_all_heads_are_read() {
        let entry = |range: &str| Entry {
            key: format!("snapshots/ab/{range}.safetensors"),
            bytes: 1,
        };
        let all: Vec<Entry> = ["0-2", "0-4", "2-4", "4-6", "3-4", "junk"]
            .map(entry)
            .into();
        let cover = |kv_heads, queries, there: &[Entry]| {
            let files = files(extent(kv_heads, queries));
            let ranges = files.cover(there)?.into_iter().filter_map(|file| {
                let Range { start, end } = heads_of(&file.key)?;
                Some(format!("{start}-{end}"))
            });
            Some(ranges.collect::<Vec<_>>().join(" "))
        };
        assert_eq!(cover(0..3, 0..2, &all).as_deref(), Some("0-4 4-6"));
        assert_eq!(cover(1..2, 0..2, &all).as_deref(), Some("2-4"));
        assert_eq!(cover(1..2, 1..2, &all).as_deref(), Some("3-4"));
        assert_eq!(cover(2..3, 1..2, &all).as_deref(), Some("4-6"));
        assert_eq!(cover(0..3, 0..2, &all[..3]), None);
        assert_eq!(cover(0..3, 0..2, &[]), None);
    }
}
