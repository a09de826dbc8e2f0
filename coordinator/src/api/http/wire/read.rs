//! Reading a body field by field, so that nothing is held that is not read, and a field that is
//! wrong has a name.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, de};

use crate::api::http::error::shorten;

/// Bytes of a body that are read as fast as one of a text is tokenised.
pub const PARSE_SPEED: usize = 16;

/// Reads the value of the named field into the field of the same name.
macro_rules! read_field {
    ($body:expr, $field:expr, $values:expr; $($name:ident),* $(,)?) => {
        match $field {
            $(stringify!($name) => $body.$name = $values.next_value()?,)*
            _ => _ = $values.next_value::<serde::de::IgnoredAny>()?,
        }
    };
}
pub(super) use read_field;

/// A body that is a JSON object.
pub trait RequestBody: Default {
    /// Fields of this body alone.
    const OWN: &'static [&'static str];
    /// Fields that it has in common with others.
    const SHARED: &'static [&'static str];
    /// The field that may not be left out.
    const NEEDED: Option<&'static str>;

    /// Reads the value of a field.
    ///
    /// # Errors
    /// Whatever is wrong with the value.
    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error>;

    /// Reads or skips the value of a field that is not among these.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error>;
}

/// Why a body cannot be read.
#[derive(Debug)]
pub struct Unreadable {
    /// What is wrong, and where.
    pub error: serde_json::Error,
    /// The beginning of the name of the field whose value is at fault, if it is a value.
    pub field: Option<String>,
}

/// Reads a body.
///
/// # Errors
/// If it is no JSON object, or a field has no such value.
pub fn read_body<T: RequestBody>(body: &[u8]) -> Result<T, Unreadable> {
    let mut at = None;
    let mut json = serde_json::Deserializer::from_slice(body);
    let reader = Reader {
        at: &mut at,
        body: PhantomData,
    };
    let read = json.deserialize_map(reader);
    let read = read.and_then(|body| json.end().map(|()| body));
    read.map_err(|error| Unreadable {
        field: at.filter(|_| error.is_data()),
        error,
    })
}

struct Reader<'a, T> {
    /// The field whose value is being read.
    at: &'a mut Option<String>,
    body: PhantomData<T>,
}

impl<'de, T: RequestBody> Visitor<'de> for Reader<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<T, A::Error> {
        let mut body = T::default();
        let mut seen: Vec<&'static str> = Vec::new();
        while let Some(name) = values.next_key::<String>()? {
            let mut fields = T::OWN.iter().chain(T::SHARED);
            if let Some(field) = fields.find(|field| **field == name) {
                if seen.contains(field) {
                    return Err(A::Error::duplicate_field(field));
                }
                seen.push(field);
                *self.at = Some(name);
                body.read(field, &mut values)?;
            } else {
                *self.at = Some(shorten(&name));
                body.read_other(&name, &mut values)?;
            }
            *self.at = None;
        }
        match T::NEEDED {
            Some(needed) if !seen.contains(&needed) => Err(A::Error::missing_field(needed)),
            _ => Ok(body),
        }
    }
}

/// A value that an object alone stands for: types that are derived take a list as well, whose
/// elements may be much shorter than what is made of them.
pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, values: A) -> Result<T, A::Error> {
            T::deserialize(de::value::MapAccessDeserializer::new(values))
        }
    }

    from.deserialize_map(Object(PhantomData))
}
