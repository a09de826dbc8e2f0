//! Which files of a repository are the model that was asked for.

use std::collections::BTreeMap;

use crate::near::nearest;

/// Name of a trained indexer in a repository or beside a model's file.
pub const INDEXER: &str = "palimpsest-indexer.safetensors";

/// Quantisations in the order in which one is taken when none is named: small and good ones first,
/// then larger ones, then plain numbers.
const PREFERRED: [&str; 19] = [
    "q4_k_m", "q4_k_s", "q4_k", "q4_0", "q4_1", "q5_k_m", "q5_k_s", "q5_k", "q6_k", "q8_0", "q5_0",
    "q5_1", "iq4_xs", "iq4_nl", "mxfp4", "q3_k_m", "bf16", "f16", "f32",
];

/// Small files of a directory with safetensors, those that there are.
const BESIDE: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// The files of one model, as paths within its repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// All that are needed. Of a GGUF file in parts the first part comes first.
    pub(crate) files: Vec<String>,
    /// Whether the model is the directory, and not its first file.
    pub(crate) is_directory: bool,
    /// The indexer among the files.
    pub(crate) indexer: Option<String>,
}

/// Why none of the files of a repository is the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Neither GGUF nor safetensors.
    #[error("it has no GGUF file and no config.json with safetensors; it has {has}")]
    Nothing {
        /// Some of what it has.
        has: String,
    },
    /// Weights of a directory without what they need.
    #[error(
        "it has safetensors but no {missing}; take a repository with the whole model, or one with \
         GGUF files"
    )]
    Incomplete {
        /// The file that is missing.
        missing: &'static str,
    },
    /// No file of the quantisation or of the name.
    #[error("none of its GGUF files is `{tag}`{near}; it has {has}")]
    Tag {
        /// What was asked for.
        tag: String,
        /// Ends the sentence with what may have been meant.
        near: String,
        /// What there is.
        has: String,
    },
    /// A model in parts of which some are not there.
    #[error("part {number} of {of} of `{stem}` is missing; a model in parts needs all of them")]
    Part {
        /// Name without the number.
        stem: String,
        /// The first one that is missing, from 1.
        number: u32,
        /// How many there are.
        of: u32,
    },
}

/// A GGUF file, whole or in parts.
#[derive(Debug, Default)]
struct Variant<'a> {
    /// Path of each part by its number; a whole file is its only one.
    parts: BTreeMap<u32, &'a str>,
    /// How many parts there must be.
    of: u32,
}

/// Chooses among the paths of a repository.
pub(crate) fn choose(paths: &[&str], tag: Option<&str>) -> Result<Choice, Unusable> {
    let variants = variants(paths);
    let mut choice = match tag {
        None if has_directory(paths) => directory(paths)?,
        None if variants.is_empty() => return Err(nothing(paths)),
        None => gguf(preferred(&variants))?,
        Some(tag) => gguf(tagged(&variants, tag).ok_or_else(|| no_tag(&variants, paths, tag))?)?,
    };
    if paths.contains(&INDEXER) {
        choice.files.push(INDEXER.to_owned());
        choice.indexer = Some(INDEXER.to_owned());
    }
    Ok(choice)
}

/// The files of a model among the paths of a repository. Of a GGUF file in parts the first part
/// comes first.
///
/// # Errors
/// [`Unusable`] says what there is instead.
pub fn files_of(paths: &[&str], tag: Option<&str>) -> Result<Vec<String>, Unusable> {
    choose(paths, tag).map(|choice| choice.files)
}

/// Every model among the paths of a repository, each with the tag that it is asked for by. Those
/// that are not whole are left out.
pub(crate) fn choices(paths: &[&str]) -> Vec<(Option<String>, Choice)> {
    let variants = variants(paths);
    let is_directory = has_directory(paths);
    let mut found = Vec::new();
    if let (true, Ok(choice)) = (is_directory, choose(paths, None)) {
        found.push((None, choice));
    }
    for (stem, variant) in &variants {
        let label = label(stem);
        let tag = match tagged(&variants, label) {
            Some((same, _)) if same == stem => label,
            _ => variant
                .parts
                .values()
                .next()
                .map_or(label, |path| base(path)),
        };
        if let Ok(choice) = choose(paths, Some(tag)) {
            // Of the file of a single model no tag is needed, unless it is a quantisation: the
            // repository may have others.
            let is_only = variants.len() == 1 && !is_directory;
            let is_quantisation = PREFERRED.contains(&tag.to_lowercase().as_str());
            found.push((
                (!is_only || is_quantisation).then(|| tag.to_owned()),
                choice,
            ));
        }
    }
    found
}

fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors") && !path.contains('/') && path != INDEXER
}

/// Whether safetensors in the root are the model, and not something beside GGUF files.
fn has_directory(paths: &[&str]) -> bool {
    let has_gguf = paths.iter().any(|path| path.ends_with(".gguf"));
    let has_weights = paths.iter().any(|path| is_weights(path));
    has_weights && (!has_gguf || paths.contains(&"config.json"))
}

fn directory(paths: &[&str]) -> Result<Choice, Unusable> {
    for missing in ["config.json", "tokenizer.json"] {
        if !paths.contains(&missing) {
            return Err(Unusable::Incomplete { missing });
        }
    }
    let single = "model.safetensors";
    let weights: Vec<&str> = if paths.contains(&single) {
        vec![single]
    } else {
        let mut sharded = Variant::default();
        let mut stem = "";
        for path in paths.iter().filter(|path| is_weights(path)) {
            let Some(part) = part_of(path, ".safetensors").filter(|part| part.stem == "model")
            else {
                continue;
            };
            (sharded.of, stem) = (part.of, part.stem);
            sharded.parts.insert(part.number, path);
        }
        if sharded.parts.is_empty() || !paths.contains(&"model.safetensors.index.json") {
            let missing = "model.safetensors, nor parts of it with model.safetensors.index.json";
            return Err(Unusable::Incomplete { missing });
        }
        whole(stem, &sharded)?
    };
    let beside = BESIDE.iter().copied().filter(|name| paths.contains(name));
    let is_whole = weights == [single];
    let beside = beside.filter(|name| !is_whole || !name.ends_with("index.json"));
    Ok(Choice {
        files: beside.chain(weights).map(str::to_owned).collect(),
        is_directory: true,
        indexer: None,
    })
}

fn gguf((stem, variant): (&&str, &Variant<'_>)) -> Result<Choice, Unusable> {
    let files = whole(stem, variant)?;
    Ok(Choice {
        files: files.into_iter().map(str::to_owned).collect(),
        is_directory: false,
        indexer: None,
    })
}

/// All parts in order, or the first that is missing.
fn whole<'a>(stem: &str, variant: &Variant<'a>) -> Result<Vec<&'a str>, Unusable> {
    // Compared before anything is counted up to what a name claims.
    let missing = (1..=variant.of).find(|number| !variant.parts.contains_key(number));
    match missing {
        Some(number) => Err(Unusable::Part {
            stem: stem.to_owned(),
            number,
            of: variant.of,
        }),
        None => Ok(variant.parts.values().copied().collect()),
    }
}

/// GGUF files by their names without numbers and ending. What belongs to other models (projectors
/// of images) and what no model is (importance matrices) is left out.
fn variants<'a>(paths: &[&'a str]) -> BTreeMap<&'a str, Variant<'a>> {
    let mut variants: BTreeMap<&str, Variant<'a>> = BTreeMap::new();
    for path in paths {
        let Some(stem) = path.strip_suffix(".gguf") else {
            continue;
        };
        let base = base(stem).to_lowercase();
        if base.starts_with("mmproj") || base.contains("imatrix") {
            continue;
        }
        let part = part_of(path, ".gguf").unwrap_or(Part {
            stem,
            number: 1,
            of: 1,
        });
        let variant = variants.entry(part.stem).or_default();
        variant.of = part.of;
        variant.parts.insert(part.number, path);
    }
    variants
}

struct Part<'a> {
    stem: &'a str,
    number: u32,
    of: u32,
}

/// `stem-00001-of-00003` and an ending.
fn part_of<'a>(path: &'a str, ending: &str) -> Option<Part<'a>> {
    let name = path.strip_suffix(ending)?;
    let (rest, of) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let count = |digits: &str| {
        let is_count = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_count.then(|| digits.parse::<u32>().ok()).flatten()
    };
    Some(Part {
        stem,
        number: count(number)?,
        of: count(of)?,
    })
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What follows the last `-` or `.` of a name: its quantisation.
fn label(stem: &str) -> &str {
    let base = base(stem);
    base.rsplit(['-', '.']).next().unwrap_or(base)
}

/// Whether a name ends with a quantisation.
fn has_tag(stem: &str, tag: &str) -> bool {
    let stem = base(stem).to_lowercase();
    stem.strip_suffix(tag)
        .is_some_and(|before| before.is_empty() || before.ends_with(['-', '.', '_']))
}

type Named<'v, 'a> = (&'v &'a str, &'v Variant<'a>);

fn tagged<'v, 'a>(
    variants: &'v BTreeMap<&'a str, Variant<'a>>,
    tag: &str,
) -> Option<Named<'v, 'a>> {
    let tag = tag.to_lowercase();
    let file = tag.strip_suffix(".gguf");
    let matches = variants.iter().filter(|(stem, variant)| match file {
        Some(_) => variant
            .parts
            .values()
            .any(|path| base(path).to_lowercase() == tag),
        None => has_tag(stem, &tag),
    });
    // `Q4_K_M` is a tag of `X-Q4_K_M` rather than of `X-UD-Q4_K_M`.
    matches.min_by_key(|(stem, _)| stem.len())
}

fn preferred<'v, 'a>(variants: &'v BTreeMap<&'a str, Variant<'a>>) -> Named<'v, 'a> {
    PREFERRED
        .iter()
        .find_map(|tag| tagged(variants, tag))
        .or_else(|| variants.iter().next())
        .expect("who calls has found some")
}

fn no_tag(variants: &BTreeMap<&str, Variant<'_>>, paths: &[&str], tag: &str) -> Unusable {
    if variants.is_empty() {
        return nothing(paths);
    }
    let labels: Vec<&str> = variants.keys().map(|stem| label(stem)).collect();
    let near = nearest(tag, labels.iter().copied());
    let near = match near.first() {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    Unusable::Tag {
        tag: tag.to_owned(),
        near,
        has: listed(&labels),
    }
}

fn nothing(paths: &[&str]) -> Unusable {
    Unusable::Nothing { has: listed(paths) }
}

/// The first names, and how many there are beyond.
fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    if names.is_empty() {
        return "no file".to_owned();
    }
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str], tag: Option<&str>) -> Vec<String> {
        choose(paths, tag).expect("a model").files
    }

    #[test]
    fn a_tag_names_a_quantisation_as_llama_cpp_does() {
        let repository = [
            "README.md",
            "X-BF16.gguf",
            "X-Q4_K_M.gguf",
            "X-Q8_0.gguf",
            "X-UD-Q4_K_M.gguf",
            "imatrix.gguf",
            "mmproj-F16.gguf",
        ];
        assert_eq!(files(&repository, None), ["X-Q4_K_M.gguf"]);
        assert_eq!(files(&repository, Some("Q8_0")), ["X-Q8_0.gguf"]);
        assert_eq!(files(&repository, Some("q4_k_m")), ["X-Q4_K_M.gguf"]);
        assert_eq!(files(&repository, Some("UD-Q4_K_M")), ["X-UD-Q4_K_M.gguf"]);
        assert_eq!(files(&repository, Some("X-BF16.gguf")), ["X-BF16.gguf"]);
        let refused = choose(&repository, Some("Q4_K_N")).expect_err("no such file");
        let said = refused.to_string();
        assert!(said.contains("`Q4_K_N`; did you mean `Q4_K_M`?"), "{said}");
        assert!(said.contains("BF16, Q4_K_M, Q8_0"), "{said}");
        assert_eq!(
            files(&["a.Q4_1.gguf", "a.Q4_0.gguf"], None),
            ["a.Q4_0.gguf"]
        );
        assert_eq!(files(&["only.gguf"], None), ["only.gguf"]);
    }

    #[test]
    fn a_model_in_parts_needs_all_of_them() {
        let parts = [
            "Q4_K_M/X-Q4_K_M-00001-of-00003.gguf",
            "Q4_K_M/X-Q4_K_M-00002-of-00003.gguf",
            "Q4_K_M/X-Q4_K_M-00003-of-00003.gguf",
            "X-Q8_0.gguf",
        ];
        assert_eq!(files(&parts, None), parts[..3]);
        assert_eq!(files(&parts, Some("Q4_K_M")), parts[..3]);
        let missing = choose(&[parts[0], parts[2]], None);
        assert_eq!(
            missing,
            Err(Unusable::Part {
                stem: "Q4_K_M/X-Q4_K_M".into(),
                number: 2,
                of: 3
            })
        );
        let claim = ["a-00001-of-99999.gguf"];
        assert!(matches!(
            choose(&claim, None),
            Err(Unusable::Part { number: 2, .. })
        ));
    }

    #[test]
    fn a_directory_is_its_configuration_tokenizer_and_weights() {
        let small = ["config.json", "tokenizer.json"];
        let single = [
            &small[..],
            &["model.safetensors", "pytorch_model.bin", INDEXER],
        ]
        .concat();
        let choice = choose(&single, None).expect("a model");
        assert!(choice.is_directory);
        assert_eq!(
            choice.files,
            [&small[..], &["model.safetensors", INDEXER]].concat()
        );
        assert_eq!(choice.indexer.as_deref(), Some(INDEXER));
        let sharded = [
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/model.safetensors",
            "tokenizer.json",
        ];
        assert_eq!(
            files(&sharded, None),
            [
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ]
        );
        let half: Vec<_> = sharded
            .into_iter()
            .filter(|path| !path.contains("00002-of"))
            .collect();
        assert!(matches!(
            choose(&half, None),
            Err(Unusable::Part { number: 2, .. })
        ));
        let bare = choose(&["model.safetensors"], None);
        assert_eq!(
            bare,
            Err(Unusable::Incomplete {
                missing: "config.json"
            })
        );
    }

    #[test]
    fn a_repository_without_a_model_says_what_it_has() {
        let refused = choose(&["README.md", "pytorch_model.bin"], None).expect_err("no model");
        assert!(
            refused
                .to_string()
                .ends_with("it has README.md, pytorch_model.bin")
        );
        let empty = choose(&[], None).expect_err("no model");
        assert!(empty.to_string().ends_with("it has no file"));
        assert!(matches!(
            choose(&["a.bin"], Some("Q4_0")),
            Err(Unusable::Nothing { .. })
        ));
        let own = choose(&[INDEXER], None);
        assert!(
            matches!(own, Err(Unusable::Nothing { .. })),
            "an indexer is no model: {own:?}"
        );
    }
}
