//! Which store a path or a URL names.

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use crate::Store;
use crate::error::{Result, wrong};
use crate::place::Place;

/// Variables of the environment, by their names.
pub(crate) type Variables = Vec<(String, String)>;

/// Those of this process that are text.
pub(crate) fn environment() -> Variables {
    let all = std::env::vars_os();
    all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// See [`Store::open_with`].
pub(crate) fn open(place: &str, variables: &Variables) -> Result<Store> {
    let Some((scheme, _)) = place.split_once(':') else {
        return directory(FilePath::new(place), place);
    };
    let url = Url::parse(place).map_err(|error| wrong(place, &error.to_string()))?;
    match scheme {
        "memory" => Ok(Store::memory()),
        "file" => {
            let path = url
                .to_file_path()
                .map_err(|()| wrong(place, "a file URL has an absolute path and no host"))?;
            directory(&path, place)
        }
        _ => remote(&url, variables),
    }
}

fn directory(path: &FilePath, place: &str) -> Result<Store> {
    let failed = |error: std::io::Error| wrong(place, &error.to_string());
    if path.as_os_str().is_empty() {
        return Err(wrong(place, "give a directory or a URL"));
    }
    std::fs::create_dir_all(path).map_err(failed)?;
    // Objects lie below an absolute path, wherever the process goes.
    let root = path.canonicalize().map_err(failed)?;
    let objects = LocalFileSystem::new_with_prefix(&root)
        .map_err(|error| wrong(place, &error.to_string()))?
        .with_fsync(true);
    let store = Store::over(Arc::new(objects), Path::default(), place);
    Ok(store.at(Place::Directory(root)))
}

#[cfg(feature = "cloud")]
fn remote(url: &Url, variables: &Variables) -> Result<Store> {
    crate::cloud::open(url, &shown(url), variables)
}

#[cfg(not(feature = "cloud"))]
fn remote(url: &Url, _: &Variables) -> Result<Store> {
    let what = "this build knows directories, `file:` and `memory:`; build with the feature \
                `cloud` for `s3:`, `gs:` and `az:`";
    Err(wrong(&shown(url), what))
}

/// A URL without what may be a secret.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{}://{host}{}", url.scheme(), url.path())
}
