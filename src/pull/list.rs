//! `palimpsest pull --list`: the models that are here.

use std::path::PathBuf;

use palimpsest_hub::{Settings, cached};
use palimpsest_models::fetch::{KNOWN_MODELS, default_cache_dir};
use serde_json::{Value, json};

use crate::term;

/// A model, here or not.
struct Model {
    /// What brings it.
    name: String,
    /// Where it is; `None` when it is not here yet.
    path: Option<PathBuf>,
    bytes: u64,
}

/// Prints the models that are here, and those that are known.
pub fn run(json: bool) -> anyhow::Result<()> {
    let models = models();
    let text = if json {
        format!(
            "{:#}\n",
            Value::from(models.iter().map(Model::json).collect::<Vec<_>>())
        )
    } else {
        lines(&models)
    };
    Ok(term::emit(&text)?)
}

/// Known models first, then those of the hub's cache.
fn models() -> Vec<Model> {
    let own = default_cache_dir();
    let known = KNOWN_MODELS.iter().map(|known| {
        let path = own.as_ref().ok().map(|cache| cache.join(known.file_name));
        Model {
            name: known.name.to_owned(),
            path: path.filter(|path| path.is_file()),
            bytes: known.size_bytes,
        }
    });
    let mut models: Vec<_> = known.collect();
    if let Ok(settings) = Settings::of_environment() {
        models.extend(cached(&settings.cache).into_iter().map(|model| Model {
            name: model.name,
            path: Some(model.path),
            bytes: model.bytes,
        }));
    }
    models
}

fn lines(models: &[Model]) -> String {
    let width = models
        .iter()
        .map(|model| model.name.chars().count())
        .max()
        .unwrap_or(0);
    let line = |model: &Model| {
        let place = match &model.path {
            Some(path) => path.display().to_string(),
            None => "not here yet: palimpsest pull".to_owned(),
        };
        format!(
            "{:width$}  {:>10}  {place}\n",
            model.name,
            term::bytes(model.bytes)
        )
    };
    models.iter().map(line).collect()
}

impl Model {
    fn json(&self) -> Value {
        json!({ "name": self.name, "path": self.path, "bytes": self.bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_large_a_model_is_and_where() {
        let model = |name: &str, path: Option<&str>| Model {
            name: name.into(),
            path: path.map(PathBuf::from),
            bytes: 3 << 30,
        };
        let models = [model("a", None), model("org/name:Q4_0", Some("/c/x.gguf"))];
        let text = lines(&models);
        assert_eq!(
            text,
            "a                3.00 GiB  not here yet: palimpsest pull\n\
             org/name:Q4_0    3.00 GiB  /c/x.gguf\n"
        );
        assert_eq!(
            models[0].json(),
            json!({ "name": "a", "path": null, "bytes": 3_u64 << 30 })
        );
    }
}
