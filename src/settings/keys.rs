//! What a configuration file may say: the options of the services, as clap describes them.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::fmt;

use clap::{Arg, ArgAction, CommandFactory};

use crate::args::Cli;

/// Similarity (Jaro, 0 to 1) from which a name is taken for what was meant.
const NEAR: f64 = 0.7;

/// The options of each service, by the name of their flag.
#[derive(Debug)]
pub struct Keys {
    services: BTreeMap<&'static str, BTreeMap<String, Key>>,
}

/// An option.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its name within clap.
    pub id: String,
    /// What it takes.
    pub kind: Kind,
    /// Whether it takes several values.
    pub is_list: bool,
    /// Variable of the environment that sets it too.
    pub variable: Option<String>,
    /// Whether its value is nobody's to see.
    pub is_secret: bool,
}

/// What an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A flag without a value: true, or not there.
    Switch,
    /// True or false, said in full.
    Truth,
    /// A whole number.
    Whole,
    /// Any number.
    Number,
    /// Text.
    Text,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch | Self::Truth => "true or false",
            Self::Whole => "a whole number",
            Self::Number => "a number",
            Self::Text => "a string",
        })
    }
}

impl Keys {
    /// The options of `services`.
    pub fn of(services: &[&'static str]) -> Self {
        let mut command = Cli::command();
        // Options of the whole program are known to its commands only then.
        command.build();
        let keys = |service: &'static str| {
            let found = command.find_subcommand(service)?;
            let options = found.get_arguments().filter(|option| may_be_set(option));
            let named = options.filter_map(|option| Some((option.get_long()?, key(option))));
            let named = named.map(|(name, key)| (name.to_owned(), key)).collect();
            Some((service, named))
        };
        Self {
            services: services.iter().filter_map(|name| keys(name)).collect(),
        }
    }

    /// The option `name` of `service`.
    pub fn get(&self, service: &str, name: &str) -> Option<&Key> {
        self.services.get(service)?.get(name)
    }

    /// Services that have an option of this name.
    pub fn services_with(&self, name: &str) -> Vec<&'static str> {
        let all = self.services.iter();
        all.filter(|(_, keys)| keys.contains_key(name))
            .map(|(service, _)| *service)
            .collect()
    }

    /// Names of the services.
    pub fn services(&self) -> impl Iterator<Item = &'static str> {
        self.services.keys().copied()
    }

    /// Options of one service in the order of their names.
    pub fn options(&self, service: &str) -> impl Iterator<Item = (&String, &Key)> {
        self.services.get(service).into_iter().flatten()
    }

    /// The name that is most like `name`, of the services and of the options of `service`, or of
    /// all of them.
    pub fn nearest<'a>(&'a self, name: &str, service: Option<&str>) -> Option<&'a str> {
        let of = |one: &str| service.is_none_or(|service| service == one);
        let options = self.services.iter().filter(|(one, _)| of(one));
        let options = options.flat_map(|(_, keys)| keys.keys().map(String::as_str));
        let services = self.services().filter(|_| service.is_none());
        let names: Vec<&'a str> = options
            .chain(services.map(|one| -> &'a str { one }))
            .collect();
        let plain = name.to_lowercase().replace('_', "-");
        let similar = names
            .into_iter()
            .map(|one| (strsim::jaro(&plain, one), one));
        let near = similar.filter(|(similarity, _)| *similarity >= NEAR);
        near.max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, one)| one)
    }
}

/// Faults for tests, help, and the file itself are no settings.
fn may_be_set(option: &Arg) -> bool {
    !option.is_hide_set() && !["help", "version", "config"].contains(&option.get_id().as_str())
}

fn key(option: &Arg) -> Key {
    let several = option.get_num_args().is_some_and(|n| n.max_values() > 1);
    Key {
        id: option.get_id().as_str().to_owned(),
        kind: kind(option),
        is_list: several || matches!(option.get_action(), ArgAction::Append),
        variable: option
            .get_env()
            .map(|name| name.to_string_lossy().into_owned()),
        is_secret: option.is_hide_env_values_set(),
    }
}

fn kind(option: &Arg) -> Kind {
    if matches!(option.get_action(), ArgAction::SetTrue) {
        return Kind::Switch;
    }
    let of = option.get_value_parser().type_id();
    let is_one_of = |types: &[TypeId]| types.iter().any(|one| of == *one);
    if of == TypeId::of::<bool>() {
        Kind::Truth
    } else if is_one_of(&[
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
    ]) {
        Kind::Whole
    } else if is_one_of(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
        Kind::Number
    } else {
        Kind::Text
    }
}
