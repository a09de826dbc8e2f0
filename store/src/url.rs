//! Which store a path or a URL names.

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use crate::Store;
use crate::error::{Error, Result};
use crate::place::Place;

/// See [`Store::open`].
pub(crate) fn open(place: &str) -> Result<Store> {
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
        _ => remote(&url),
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
fn remote(url: &Url) -> Result<Store> {
    let name = shown(url);
    // Builders take their keys from variables that begin with AWS_, GOOGLE_ or AZURE_, and pass
    // over all others.
    let variables = std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value));
    let (objects, prefix) = object_store::parse_url_opts(url, variables)
        .map_err(|error| wrong(&name, &error.to_string()))?;
    Ok(Store::over(Arc::from(objects), prefix, &name))
}

#[cfg(not(feature = "cloud"))]
fn remote(url: &Url) -> Result<Store> {
    let what = "this build knows directories, `file:` and `memory:`; build with the feature \
                `cloud` for `s3:`, `gs:` and `az:`";
    Err(wrong(&shown(url), what))
}

/// A URL without what may be a secret.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    format!("{}://{host}{}", url.scheme(), url.path())
}

fn wrong(place: &str, what: &str) -> Error {
    Error::Place {
        place: place.into(),
        what: what.into(),
    }
}
