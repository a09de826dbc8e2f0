//! The name of a record, which says all that an index must know.

use palimpsest_store::Entry as Object;

use super::super::id::{ResponseId, TenantKey, digits};

/// Where records are in a store.
pub(in super::super) const FOLDER: &str = "responses";
/// What the key of a marker ends with.
const MARKER: &str = ".deleted";

/// A record as its key names it: `responses/TENANT/CREATED-ID-PARENT`, in hexadecimal digits. The
/// parent of a first turn is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Name {
    pub tenant: TenantKey,
    pub id: ResponseId,
    pub parent: Option<ResponseId>,
    /// Seconds since 1970.
    pub created: u64,
    /// Of the record with its seal.
    pub bytes: u64,
}

/// What an object of the store is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A record.
    Record(Name),
    /// A word that a response was deleted.
    Marker(ResponseId),
}

impl Name {
    /// Where its record is.
    pub(in super::super) fn key(&self) -> String {
        let (tenant, created, id) = (self.tenant, self.created, self.id.0);
        let parent = self.parent.map(|parent| format!("-{:032x}", parent.0));
        let parent = parent.unwrap_or_default();
        format!("{FOLDER}/{tenant}/{created:010x}-{id:032x}{parent}")
    }

    /// Where a word is kept that it was deleted.
    pub(super) fn marker(&self) -> String {
        format!("{}{MARKER}", self.key())
    }
}

impl Found {
    /// What the object's key says; `None` for a key that no response has.
    pub(super) fn parse(object: &Object) -> Option<Self> {
        let (key, is_marker) = match object.key.strip_suffix(MARKER) {
            Some(key) => (key, true),
            None => (object.key.as_str(), false),
        };
        let (tenant, name) = key
            .strip_prefix(FOLDER)?
            .strip_prefix('/')?
            .split_once('/')?;
        let mut parts = name.split('-');
        let created = u64::from_str_radix(parts.next()?, 16).ok()?;
        let id = ResponseId(digits(parts.next()?)?);
        let parent = match parts.next() {
            Some(parent) => Some(ResponseId(digits(parent)?)),
            None => None,
        };
        let name = Name {
            tenant: TenantKey(digits(tenant)?),
            id,
            parent,
            created,
            bytes: object.bytes,
        };
        // One key for each name: what is removed by its name is what was listed.
        if name.key() != key {
            return None;
        }
        Some(match is_marker {
            true => Self::Marker(id),
            false => Self::Record(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str) -> Object {
        Object {
            key: key.into(),
            bytes: 7,
        }
    }

    #[test]
    fn a_key_says_what_it_was_made_of_and_others_say_nothing() {
        for parent in [None, Some(ResponseId(5))] {
            let name = Name {
                tenant: TenantKey::of(Some("research")),
                id: ResponseId::draw(),
                parent,
                created: 1_796_000_000,
                bytes: 7,
            };
            let key = name.key();
            assert_eq!(Found::parse(&object(&key)), Some(Found::Record(name)));
            let marker = Found::parse(&object(&name.marker()));
            assert_eq!(marker, Some(Found::Marker(name.id)));
            for other in [
                key.to_uppercase(),
                key.replace("responses", "sessions"),
                format!("{key}-5"),
                key.replace('-', "_"),
                key.replacen("/00", "/0", 1),
            ] {
                assert_eq!(Found::parse(&object(&other)), None, "{other}");
            }
        }
    }
}
