//! A model by its name: what the hub has of it, what of that is needed, what is there already.

use std::cell::Cell;
use std::path::Path;
use std::{panic, thread};

use crate::cache::{Fetched, RepositoryCache, cached};
use crate::choice::{Choice, choose};
use crate::download::{Download, begun, is_whole};
use crate::error::HubError;
use crate::http::{Ask, Http};
use crate::listing::{Entry, Hash, Listing, ids};
use crate::name::{ModelName, is_commit};
use crate::near::nearest;
use crate::settings::Settings;

/// Bytes of a list of files at most.
const LONGEST_LISTING: u64 = 64 << 20;
/// Room that is left beyond what is fetched.
const SPACE_MARGIN: u64 = 64 << 20;
/// Attempts to ask a hub where the cache can answer in its place.
const ATTEMPTS_WITH_CACHE: u32 = 2;
/// Models of a cache that a message lists.
const LISTED: usize = 8;

/// How far a fetch is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Path of the file that is fetched.
    pub file: &'a str,
    /// Bytes of all files that are there.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// A hub and its cache.
#[derive(Debug, Clone)]
pub struct Hub {
    settings: Settings,
}

/// The files of a model with their checksums.
struct Plan<'a> {
    name: &'a ModelName,
    listing: &'a Listing,
    choice: Choice,
    files: Vec<(&'a Entry, &'a Hash)>,
}

impl Hub {
    /// A hub where the settings say.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Returns where the model is, and fetches what of it the cache does not have. `on_progress`
    /// hears of that. Where the hub cannot be asked, what the cache has is taken, with a warning.
    /// May be called from within a runtime of tokio.
    ///
    /// # Errors
    /// [`HubError`]. What has come of a file stays, and the next fetch goes on from there.
    pub fn fetch(
        &self,
        name: &ModelName,
        on_progress: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Fetched, HubError> {
        // The client waits for a runtime of its own, which a thread of another runtime must not.
        thread::scope(|scope| {
            let work = scope.spawn(|| self.fetch_here(name, on_progress));
            work.join()
                .unwrap_or_else(|fault| panic::resume_unwind(fault))
        })
    }

    fn fetch_here(
        &self,
        name: &ModelName,
        on_progress: &dyn Fn(Progress<'_>),
    ) -> Result<Fetched, HubError> {
        let cache = RepositoryCache::of(&self.settings.cache, name);
        let found = cache.find(name);
        if self.settings.offline {
            return found.ok_or_else(|| self.offline(name));
        }
        if let Some(found) = found.as_ref().filter(|found| is_settled(name, found)) {
            return Ok(found.clone());
        }
        let http = Http::new(&self.settings)?;
        let attempts = match found {
            Some(_) => ATTEMPTS_WITH_CACHE.min(http.attempts()),
            None => http.attempts(),
        };
        let listing = match (listing(&http, name, attempts), found) {
            (Ok(listing), _) => listing,
            (Err(error), Some(found)) if error.is_silence() => {
                tracing::warn!(%error, "taking what the cache has of `{name}`");
                return Ok(found);
            }
            (Err(error), _) => return Err(self.explained(error, name, &http)),
        };
        let plan = plan(&http, name, &listing)?;
        self.bring(&http, &cache, &plan, on_progress)
    }

    fn bring(
        &self,
        http: &Http,
        cache: &RepositoryCache,
        plan: &Plan<'_>,
        on_progress: &dyn Fn(Progress<'_>),
    ) -> Result<Fetched, HubError> {
        cache.prepare()?;
        let commit = &plan.listing.commit;
        let missing: Vec<_> = plan
            .files
            .iter()
            .filter(|(entry, hash)| !is_whole(cache, entry, hash))
            .collect();
        let needed = missing
            .iter()
            .map(|(entry, hash)| entry.bytes.saturating_sub(begun(cache, entry, hash)));
        self.check_space(needed.fold(0, u64::saturating_add))?;
        let total = missing
            .iter()
            .fold(0, |sum: u64, (entry, _)| sum.saturating_add(entry.bytes));
        let before = Cell::new(0);
        for (entry, hash) in missing {
            let on_bytes = |bytes: u64| {
                on_progress(Progress {
                    file: &entry.path,
                    done: before.get() + bytes,
                    total,
                });
            };
            Download {
                http,
                cache,
                repository: &plan.name.repository(),
                revision: plan.name.revision(),
                commit,
                entry,
                hash,
                on_bytes: &on_bytes,
            }
            .run()?;
            before.set(before.get() + entry.bytes);
        }
        // Links come last: what a snapshot shows is whole.
        for (entry, hash) in &plan.files {
            cache.link(commit, &entry.path, hash)?;
        }
        cache.note(plan.name.revision(), commit)?;
        Ok(cache.fetched(commit, &plan.choice))
    }

    fn check_space(&self, needed: u64) -> Result<(), HubError> {
        // A filesystem that cannot tell is no reason to stop: writing will tell.
        let Ok(stat) = rustix::fs::statvfs(&self.settings.cache) else {
            return Ok(());
        };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed == 0 || free >= needed.saturating_add(SPACE_MARGIN) {
            return Ok(());
        }
        Err(HubError::NoSpace {
            dir: self.settings.cache.clone(),
            needed: needed.saturating_add(SPACE_MARGIN),
            free,
        })
    }

    fn offline(&self, name: &ModelName) -> HubError {
        let names = names(&self.settings.cache);
        HubError::Offline {
            name: name.to_string(),
            cache: self.settings.cache.clone(),
            near: near(name, &names),
            has: listed(&names),
        }
    }

    /// The error with what may have been meant, or with what the cache has.
    fn explained(&self, error: HubError, name: &ModelName, http: &Http) -> HubError {
        let mut names = names(&self.settings.cache);
        match error {
            HubError::NoRepository {
                endpoint,
                repository,
                whom,
                token,
                ..
            } => {
                names.extend(suggestions(http, name));
                HubError::NoRepository {
                    near: near(name, &names),
                    endpoint,
                    repository,
                    whom,
                    token,
                }
            }
            error if error.is_silence() => HubError::Unreachable {
                error: Box::new(error),
                name: name.to_string(),
                cache: self.settings.cache.clone(),
                near: near(name, &names),
                has: listed(&names),
            },
            error => error,
        }
    }
}

/// Whether nothing that a hub could answer changes what is meant: a commit, and either a whole
/// directory or a named file of it.
fn is_settled(name: &ModelName, found: &Fetched) -> bool {
    is_commit(name.revision()) && (name.tag.is_some() || found.path.is_dir())
}

fn names(cache: &Path) -> Vec<String> {
    cached(cache).into_iter().map(|model| model.name).collect()
}

fn near(name: &ModelName, names: &[String]) -> String {
    let repositories = names
        .iter()
        .map(|name| name.split([':', '@']).next().unwrap_or(name));
    match &nearest(&name.repository(), repositories)[..] {
        [] => String::new(),
        meant => format!("; did you mean {}?", meant.join(" or ")),
    }
}

/// The first names, and how many there are beyond.
fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "no model".to_owned();
    }
    let mut text = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED {
        text.push_str(&format!(" and {} more", names.len() - LISTED));
    }
    text
}

/// Names that the hub has and that are like one that it has not: of the same owner, and of the
/// same name. A hub that does not say has none.
fn suggestions(http: &Http, name: &ModelName) -> Vec<String> {
    let repository = name.repository();
    let Some((owner, model)) = repository.split_once('/') else {
        return Vec::new();
    };
    let queries = [
        format!("api/models?author={owner}&sort=downloads&limit=200"),
        format!("api/models?search={model}&sort=downloads&limit=20"),
    ];
    let names = queries.iter().flat_map(|path| {
        let ask = Ask {
            path,
            repository: &repository,
            revision: name.revision(),
            what: "names of models",
            from: 0,
            attempts: 1,
        };
        http.text(&ask, LONGEST_LISTING)
            .map(|json| ids(&json))
            .unwrap_or_default()
    });
    names.collect()
}

/// Asks the hub what it has at a revision.
fn listing(http: &Http, name: &ModelName, attempts: u32) -> Result<Listing, HubError> {
    let repository = name.repository();
    let revision = name.revision().replace('/', "%2F");
    let ask = Ask {
        path: &format!("api/models/{repository}/revision/{revision}?blobs=true"),
        repository: &repository,
        revision: name.revision(),
        what: &repository,
        from: 0,
        attempts,
    };
    let json = http.text(&ask, LONGEST_LISTING)?;
    Listing::parse(&json).map_err(|source| HubError::Listing {
        endpoint: http.endpoint(),
        repository: repository.clone(),
        source,
    })
}

/// What has to be there for the model.
fn plan<'a>(http: &Http, name: &'a ModelName, listing: &'a Listing) -> Result<Plan<'a>, HubError> {
    let paths: Vec<&str> = listing
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    let choice = choose(&paths, name.tag.as_deref()).map_err(|source| HubError::Unusable {
        repository: name.repository(),
        source,
    })?;
    let chosen = listing
        .files
        .iter()
        .filter(|file| choice.files.contains(&file.path));
    let checked = |entry: &'a Entry| match &entry.hash {
        Some(hash) => Ok((entry, hash)),
        None => Err(HubError::NoChecksum {
            endpoint: http.endpoint(),
            path: entry.path.clone(),
        }),
    };
    let files = chosen.map(checked).collect::<Result<_, _>>()?;
    Ok(Plan {
        name,
        listing,
        choice,
        files,
    })
}
