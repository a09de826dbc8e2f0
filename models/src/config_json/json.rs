//! A JSON object with checked access.

use serde_json::Value;

use crate::config::ConfigError;

/// Object of a JSON configuration, with checked access.
pub(super) struct Json<'a>(pub(super) &'a serde_json::Map<String, Value>);

impl<'a> Json<'a> {
    /// Value of `key`; JSON `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn typed<T>(
        &self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let found = || value.to_string().chars().take(80).collect();
        read(value).map(Some).ok_or_else(|| ConfigError::Type {
            key: key.to_owned(),
            found: found(),
            expected,
        })
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let read = |value: &Value| {
            value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
        };
        self.typed(key, "a non-negative integer", read)
    }

    pub(super) fn needed(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?
            .ok_or_else(|| ConfigError::Missing(key.to_owned()))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn needed_float(&self, key: &str) -> Result<f64, ConfigError> {
        self.float(key)?
            .ok_or_else(|| ConfigError::Missing(key.to_owned()))
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        Ok(self
            .typed(key, "true or false", Value::as_bool)?
            .unwrap_or(false))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(key, "text", Value::as_str)
    }

    /// One token id, or a list of them.
    pub(super) fn ids(&self, key: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let read = |value: &'a Value| match value {
            Value::Array(values) => values.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        self.typed(key, "a token id or a list of them", read)
    }

    pub(super) fn refuse(&self, key: &'static str) -> Result<(), ConfigError> {
        if !self.flag(key)? {
            return Ok(());
        }
        Err(ConfigError::Unsupported {
            what: key,
            found: "true".to_owned(),
            supported: "false",
        })
    }
}
