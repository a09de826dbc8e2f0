//! Object stores by their URL: S3, Google Cloud Storage and Azure Blob Storage.
//!
//! Credentials and endpoints come from variables of the environment, under the names that each
//! vendor's own tools use. A variable that does not begin with the vendor's prefix is never read:
//! `object_store` would take `ENDPOINT` or `TOKEN` for its own.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use tokio_rustls::rustls::crypto::ring;
use url::Url;

use crate::Store;
use crate::error::{Result, wrong};
use crate::url::Variables;

/// What is done about answers that may be better the next time: 5xx, 429 and broken connections.
///
/// All attempts together take less than the time of a call, so that a caller is told what the
/// store said, and not only that it was late.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: Duration::from_secs(5),
    }
}

/// A cloud, as far as its builders differ.
trait Cloud: Sized {
    /// Its name for people.
    const NAME: &'static str;
    /// Schemes of its URLs.
    const SCHEMES: &'static [&'static str];
    /// What the names of its variables begin with.
    const PREFIX: &'static str;

    /// Begins with what the URL says.
    fn at(url: &Url) -> Self;

    /// Takes a variable, by its name in small letters. Unknown ones are passed over.
    fn set(self, name: &str, value: &str) -> Self;

    /// Where it is reached, if a variable says so.
    fn endpoint(&self) -> Option<String>;

    /// Opens it.
    fn build(self) -> object_store::Result<Arc<dyn ObjectStore>>;
}

/// See [`Store::open`].
pub(crate) fn open(url: &Url, name: &str, variables: &Variables) -> Result<Store> {
    let scheme = url.scheme();
    if AmazonS3Builder::SCHEMES.contains(&scheme) {
        build::<AmazonS3Builder>(url, name, variables)
    } else if GoogleCloudStorageBuilder::SCHEMES.contains(&scheme) {
        build::<GoogleCloudStorageBuilder>(url, name, variables)
    } else if MicrosoftAzureBuilder::SCHEMES.contains(&scheme) {
        build::<MicrosoftAzureBuilder>(url, name, variables)
    } else {
        Err(wrong(
            name,
            "give a directory, or a URL with `s3:`, `gs:` or `az:`",
        ))
    }
}

fn build<C: Cloud>(url: &Url, name: &str, variables: &Variables) -> Result<Store> {
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong(name, "the URL names no bucket or container"));
    }
    let prefix =
        Path::from_url_path(url.path()).map_err(|error| wrong(name, &error.to_string()))?;
    let own: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
        .filter(|(name, value)| name.starts_with(C::PREFIX) && !value.is_empty())
        .collect();
    let set = |cloud: C, (name, value): &(String, &str)| cloud.set(name, value);
    let cloud = own.iter().fold(C::at(url), set);

    let allow = format!("{}allow_http", C::PREFIX);
    let is_allowed = own
        .iter()
        .any(|(name, value)| *name == allow && *value == "true");
    let is_plain = cloud.endpoint().is_some_and(|at| at.starts_with("http://"));
    if is_plain && !is_allowed {
        let what = format!(
            "its endpoint is plain text, in which everything that is kept can be read on the way: \
             give an https: endpoint, or set {}=true",
            allow.to_ascii_uppercase()
        );
        return Err(wrong(name, &what));
    }

    // reqwest, which brings no cryptography here, takes that of the process. It is ring, as
    // everywhere in this program; whoever installed another one before keeps it.
    let _ = ring::default_provider().install_default();
    let objects = cloud.build().map_err(|error| {
        let said = own
            .iter()
            .filter(|(_, value)| value.len() > 4)
            .fold(error.to_string(), |said, (_, value)| {
                said.replace(value, "…")
            });
        let (cloud, variables) = (C::NAME, C::PREFIX.to_ascii_uppercase());
        let what = format!("{cloud} refuses the variables {variables}… as they are: {said}");
        wrong(name, &what)
    })?;
    Ok(Store::over(objects, prefix, name))
}

impl Cloud for AmazonS3Builder {
    const NAME: &'static str = "S3";
    const SCHEMES: &'static [&'static str] = &["s3", "s3a"];
    const PREFIX: &'static str = "aws_";

    fn at(url: &Url) -> Self {
        Self::new().with_url(url.as_str()).with_retry(retry())
    }

    fn set(self, name: &str, value: &str) -> Self {
        match name.parse::<AmazonS3ConfigKey>() {
            Ok(key) => self.with_config(key, value),
            Err(_) => self,
        }
    }

    fn endpoint(&self) -> Option<String> {
        let keys = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
        keys.iter().find_map(|key| self.get_config_value(key))
    }

    fn build(self) -> object_store::Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(Self::build(self)?))
    }
}

impl Cloud for GoogleCloudStorageBuilder {
    const NAME: &'static str = "Google Cloud Storage";
    const SCHEMES: &'static [&'static str] = &["gs"];
    const PREFIX: &'static str = "google_";

    fn at(url: &Url) -> Self {
        Self::new().with_url(url.as_str()).with_retry(retry())
    }

    fn set(self, name: &str, value: &str) -> Self {
        match name.parse::<GoogleConfigKey>() {
            Ok(key) => self.with_config(key, value),
            Err(_) => self,
        }
    }

    fn endpoint(&self) -> Option<String> {
        self.get_config_value(&GoogleConfigKey::BaseUrl)
    }

    fn build(self) -> object_store::Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(Self::build(self)?))
    }
}

impl Cloud for MicrosoftAzureBuilder {
    const NAME: &'static str = "Azure Blob Storage";
    const SCHEMES: &'static [&'static str] = &["az", "azure", "abfs", "abfss"];
    const PREFIX: &'static str = "azure_";

    fn at(url: &Url) -> Self {
        Self::new().with_url(url.as_str()).with_retry(retry())
    }

    fn set(self, name: &str, value: &str) -> Self {
        match name.parse::<AzureConfigKey>() {
            Ok(key) => self.with_config(key, value),
            Err(_) => self,
        }
    }

    fn endpoint(&self) -> Option<String> {
        self.get_config_value(&AzureConfigKey::Endpoint)
    }

    fn build(self) -> object_store::Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(Self::build(self)?))
    }
}

#[cfg(test)]
mod tests;
