//! A configuration file: TOML whose keys are names of flags. Keys before the first table are for
//! every service that has such an option; the table of a service wins over them.

use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Key, Keys, Kind};

/// Bytes of a file at most: nobody writes more by hand.
const MOST: u64 = 1 << 20;

/// Why a file cannot be used, at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    path: PathBuf,
    /// Line and column, where there is one.
    at: Option<(usize, usize)>,
    what: String,
}

impl FileError {
    /// What is wrong with the whole file.
    pub fn of(path: &Path, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            at: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.at {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for FileError {}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The file.
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl At {
    /// What is wrong here.
    pub fn refuse(&self, what: impl Into<String>) -> FileError {
        FileError {
            path: self.path.clone(),
            at: Some((self.line, self.column)),
            what: what.into(),
        }
    }
}

/// An option that a file sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Name of the flag, and of the key.
    pub key: String,
    /// Its name within clap.
    pub id: String,
    /// What it is set to, as it would be typed. A switch has `true` or `false`.
    pub values: Vec<String>,
    /// Whether it is a flag without a value.
    pub is_switch: bool,
    /// Where the value stands.
    pub at: At,
}

impl Setting {
    /// The flags that say the same.
    pub fn flags(&self) -> Vec<OsString> {
        let flag = format!("--{}", self.key);
        if self.is_switch {
            let is_on = self.values.iter().any(|value| value == "true");
            return is_on.then(|| flag.into()).into_iter().collect();
        }
        let values = self.values.iter();
        values
            .map(|value| format!("{flag}={value}").into())
            .collect()
    }
}

/// The text of a configuration file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    text: String,
}

impl File {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, is too large, or is no text.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let refuse = |what: String| FileError::of(path, what);
        let file = std::fs::File::open(path);
        let file = file.map_err(|error| refuse(format!("cannot be read: {error}")))?;
        let mut bytes = Vec::new();
        let read = file.take(MOST + 1).read_to_end(&mut bytes);
        read.map_err(|error| refuse(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > MOST {
            return Err(refuse(format!("larger than {} MiB", MOST >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|_| refuse("not UTF-8 text".into()))?;
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    /// What it sets of `service`. All of it is checked, also what other services are told.
    ///
    /// # Errors
    /// The first thing in it that is no TOML, no option, or of another type.
    pub fn settings(&self, keys: &Keys, service: &str) -> Result<Vec<Setting>, FileError> {
        let table = DeTable::parse(&self.text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            self.at(&span).refuse(error.message())
        })?;
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for (name, value) in in_order(table.get_ref()) {
            if let DeValue::Table(options) = value.get_ref() {
                self.check_service(keys, name)?;
                for (option, value) in in_order(options) {
                    let setting = self.option(keys, Some(name.get_ref()), option, value)?;
                    if name.get_ref() == service {
                        own.push(setting);
                    }
                }
            } else {
                let setting = self.option(keys, None, name, value)?;
                if keys.get(service, &setting.key).is_some() {
                    shared.push(setting);
                }
            }
        }
        shared.retain(|setting: &Setting| own.iter().all(|other| other.key != setting.key));
        shared.extend(own);
        Ok(shared)
    }

    fn check_service(&self, keys: &Keys, name: &Name<'_>) -> Result<(), FileError> {
        if keys.services().any(|service| service == name.get_ref()) {
            return Ok(());
        }
        let known: Vec<_> = keys.services().map(|it| format!("[{it}]")).collect();
        let near = near(keys.nearest(name.get_ref(), None));
        Err(self.at(&name.span()).refuse(format!(
            "`[{}]` is no service{near}; tables are {}",
            name.get_ref(),
            known.join(", ")
        )))
    }

    /// One option, of a service's table or of all services.
    fn option(
        &self,
        keys: &Keys,
        service: Option<&str>,
        name: &Name<'_>,
        value: &Value<'_>,
    ) -> Result<Setting, FileError> {
        let with = keys.services_with(name.get_ref());
        let of = service.or(with.first().copied());
        let Some(key) = of.and_then(|service| keys.get(service, name.get_ref())) else {
            let elsewhere = match (&with[..], service) {
                ([], _) | (_, None) => near(keys.nearest(name.get_ref(), service)),
                (others, Some(_)) => format!(": [{}] has it", others.join("], [")),
            };
            let whose = service.map_or(String::new(), |service| format!(" of [{service}]"));
            let what = format!("`{}` is no option{whose}{elsewhere}", name.get_ref());
            return Err(self.at(&name.span()).refuse(what));
        };
        let at = self.at(&value.span());
        let values = values(key, value.get_ref()).map_err(|found| {
            let kind = match (key.is_list, key.kind) {
                (true, kind) => format!("{kind} or an array of them"),
                (false, kind) => kind.to_string(),
            };
            at.refuse(format!("`{}` takes {kind}, not {found}", name.get_ref()))
        })?;
        Ok(Setting {
            key: name.get_ref().to_string(),
            id: key.id.clone(),
            values,
            is_switch: key.kind == Kind::Switch,
            at,
        })
    }

    /// Line and column of a range of bytes.
    fn at(&self, span: &Range<usize>) -> At {
        let before = self.text.get(..span.start).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        At {
            path: self.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

type Name<'i> = Spanned<std::borrow::Cow<'i, str>>;
type Value<'i> = Spanned<DeValue<'i>>;

/// Entries as they stand in the file: the first mistake is the one that is told.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Name<'i>, &'t Value<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn near(name: Option<&str>) -> String {
    name.map_or(String::new(), |name| format!("; did you mean `{name}`?"))
}

/// The values of an option as they would be typed, or what stands there instead.
fn values(key: &Key, value: &DeValue<'_>) -> Result<Vec<String>, &'static str> {
    match value {
        DeValue::Array(values) if key.is_list => values
            .iter()
            .map(|value| one(key.kind, value.get_ref()))
            .collect(),
        value => Ok(vec![one(key.kind, value)?]),
    }
}

fn one(kind: Kind, value: &DeValue<'_>) -> Result<String, &'static str> {
    match (kind, value) {
        (Kind::Switch | Kind::Truth, DeValue::Boolean(truth)) => Ok(truth.to_string()),
        (Kind::Whole | Kind::Number, DeValue::Integer(number)) => {
            decimal(&number.to_string()).ok_or("a number that large")
        }
        (Kind::Number, DeValue::Float(number)) => Ok(number.to_string()),
        (Kind::Text, DeValue::String(text)) => Ok(text.to_string()),
        (_, other) => Err(match other {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        }),
    }
}

/// Digits of a whole number, which TOML also writes in other bases: `0x10`, `0o20`, `0b10000`.
fn decimal(text: &str) -> Option<String> {
    let (digits, radix) = match text.get(..2) {
        Some("0x") => (&text[2..], 16),
        Some("0o") => (&text[2..], 8),
        Some("0b") => (&text[2..], 2),
        _ => return Some(text.to_owned()),
    };
    let number = u128::from_str_radix(digits, radix).ok()?;
    Some(number.to_string())
}
