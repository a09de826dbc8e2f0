//! `palimpsest config show`: every value of a service, and where it comes from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::parser::ValueSource;
use serde_json::{Map, Value, json};

use super::keys::{Key, Keys};
use super::places::Places;
use super::{Refusal, Resolved, SERVICES, Strictness, resolve};
use crate::args::ConfigShowArgs;
use crate::term;

/// What to show.
#[derive(Debug, Clone)]
pub struct Shown {
    /// A service; all of them when `None`.
    pub service: Option<String>,
    /// Flags that the service would be started with.
    pub flags: Vec<OsString>,
    /// The file that was named for this command.
    pub config: Option<OsString>,
    /// JSON instead of lines.
    pub json: bool,
}

impl Shown {
    /// What was typed; `config`: the file that was named for this command.
    pub fn of(args: ConfigShowArgs, config: Option<OsString>) -> Self {
        Self {
            service: args.service,
            flags: args.flags,
            config,
            json: args.json,
        }
    }
}

/// Prints the values of services, and where each comes from.
///
/// # Errors
/// When there is no such service. Ends the process with exit code 2 where the service would refuse
/// to start for what its options say.
pub fn show(shown: &Shown) -> anyhow::Result<()> {
    let services = match &shown.service {
        Some(name) if !SERVICES.contains(&name.as_str()) => bail!(
            "`{name}` has no settings to show; {} have",
            SERVICES.join(", ")
        ),
        Some(name) => vec![name.as_str()],
        None => SERVICES.to_vec(),
    };
    let report = Report::make(&services, shown, &Places::here());
    let report = report.unwrap_or_else(|refusal| refusal.exit());
    let text = if shown.json {
        format!("{:#}\n", report.json())
    } else {
        report.text()
    };
    Ok(term::emit(&text)?)
}

/// The values of services.
#[derive(Debug)]
pub(super) struct Report {
    file: Option<PathBuf>,
    services: Vec<Service>,
}

#[derive(Debug)]
struct Service {
    name: String,
    values: Vec<Effective>,
}

/// A value that is in force.
#[derive(Debug)]
struct Effective {
    key: String,
    /// `None`: not set. Of a secret, stars.
    values: Option<Vec<String>>,
    is_list: bool,
    source: Source,
}

/// Where a value comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Flag,
    /// A variable of the environment, by its name.
    Environment(String),
    /// A line of the file.
    File(usize),
    Default,
}

impl Report {
    pub(super) fn make(services: &[&str], shown: &Shown, places: &Places) -> Result<Self, Refusal> {
        let keys = Keys::of(&SERVICES);
        let mut report = Self {
            file: None,
            services: Vec::new(),
        };
        for name in services {
            let mut argv: Vec<OsString> = vec!["palimpsest".into(), (*name).into()];
            argv.extend(shown.flags.iter().cloned());
            if let Some(config) = &shown.config {
                let mut flag = OsString::from("--config=");
                flag.push(config);
                argv.push(flag);
            }
            let resolved = resolve(argv, places, Strictness::Partial)?;
            let options = keys.options(name);
            let values = options.map(|(key, option)| effective(&resolved, name, key, option));
            report.services.push(Service {
                name: (*name).to_owned(),
                values: values.collect(),
            });
            report.file = resolved.file;
        }
        Ok(report)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for service in &self.services {
            text.push_str(&format!("[{}]\n", service.name));
            let rows = service.values.iter().map(Effective::shown);
            let width = rows.map(|row| row.chars().count()).max().unwrap_or(0);
            for value in &service.values {
                let source = value.source.shown(self.file.as_deref());
                text.push_str(&format!("{:width$}  # {source}\n", value.shown()));
            }
        }
        if self.file.is_none() {
            text.push_str("# no configuration file was found\n");
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let of = |value: &Effective| {
            let texts = value.values.as_ref();
            let shown = match texts.map(Vec::as_slice) {
                None => Value::Null,
                Some([one]) if !value.is_list => json!(one),
                Some(several) => json!(several),
            };
            let mut entry = json!({ "value": shown, "source": value.source.name() });
            match &value.source {
                Source::Environment(name) => entry["variable"] = json!(name),
                Source::File(line) => entry["line"] = json!(line),
                Source::Flag | Source::Default => {}
            }
            (value.key.clone(), entry)
        };
        let services = self.services.iter().map(|service| {
            let values: Map<_, _> = service.values.iter().map(of).collect();
            (service.name.clone(), Value::Object(values))
        });
        let services: Map<_, _> = services.collect();
        json!({ "file": self.file, "services": services })
    }
}

impl Effective {
    fn shown(&self) -> String {
        let quoted = |text: &String| format!("{text:?}");
        match &self.values {
            None => format!("# {} is not set", self.key),
            Some(values) if self.is_list => {
                let values: Vec<_> = values.iter().map(quoted).collect();
                format!("{} = [{}]", self.key, values.join(", "))
            }
            Some(values) => {
                let value = values.first().map_or("", String::as_str);
                let is_bare = value.parse::<f64>().is_ok() || ["true", "false"].contains(&value);
                let value = if is_bare {
                    value.to_owned()
                } else {
                    format!("{value:?}")
                };
                format!("{} = {value}", self.key)
            }
        }
    }
}

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment(_) => "environment",
            Self::File(_) => "file",
            Self::Default => "default",
        }
    }

    fn shown(&self, file: Option<&Path>) -> String {
        match (self, file) {
            (Self::Environment(name), _) => format!("environment {name}"),
            (Self::File(line), Some(file)) => format!("{}:{line}", file.display()),
            (source, _) => source.name().to_owned(),
        }
    }
}

fn effective(resolved: &Resolved, service: &str, name: &str, key: &Key) -> Effective {
    let matches = resolved.matches.subcommand_matches(service);
    let raw = matches.and_then(|matches| matches.get_raw(&key.id));
    let typed = raw.map(|raw| {
        raw.map(|value| value.to_string_lossy().into_owned())
            .collect()
    });
    let in_file = resolved.settings.iter().find(|setting| setting.key == name);
    let given = matches.and_then(|matches| matches.value_source(&key.id));
    let (values, source) = match (in_file, given) {
        (Some(setting), _) => (Some(setting.values.clone()), Source::File(setting.at.line)),
        (None, Some(ValueSource::CommandLine)) => (typed, Source::Flag),
        (None, Some(ValueSource::EnvVariable)) => (
            typed,
            Source::Environment(key.variable.clone().unwrap_or_default()),
        ),
        (None, _) => (typed, Source::Default),
    };
    let hidden = |_| vec!["***".to_owned()];
    Effective {
        key: name.to_owned(),
        values: if key.is_secret {
            values.map(hidden)
        } else {
            values
        },
        is_list: key.is_list,
        source,
    }
}
