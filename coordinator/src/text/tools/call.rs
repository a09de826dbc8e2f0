//! A call as models write it, `{"name": …, "arguments": …}`, read character by character.
//!
//! The arguments are given out as they come and as they are written: a client that reads the stream
//! sees them grow, and an answer that ends within them leaves what was there.

/// Bytes of a name, or of a key, that a call may have.
const MAX_NAME_BYTES: usize = 256;
/// Bytes of arguments that wait for a name that comes behind them.
const MAX_HELD_BYTES: usize = 1 << 20;

/// What characters of a call say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// The call has its name, and so many of its arguments.
    Named { name: String, arguments: String },
    /// More of the arguments.
    Arguments(String),
    /// The call is whole.
    Ended,
}

/// What was read is no call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoCall;

/// Reads one call from its opening brace to its closing one.
#[derive(Debug, Clone)]
pub(super) struct CallReader {
    state: State,
    key: String,
    /// The name as it stands in JSON, until it is given out.
    name: String,
    is_named: bool,
    /// The arguments are all there is: the name stood before them.
    is_bare: bool,
    /// Arguments that wait for the name, or for their end where they are no object.
    held: String,
    has_arguments: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Before a key, or the end of an object without any.
    Key {
        first: bool,
    },
    InKey {
        escaped: bool,
    },
    Colon,
    Value,
    InValue {
        of: Field,
        scan: Scan,
    },
    /// Behind a value.
    Next,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    /// An object, which is given out as it comes.
    Arguments,
    /// Some models write the object once more as a string, or nothing in its place.
    Other(Of),
}

/// Whose value is held or skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Arguments,
    Nobody,
}

/// How far into a JSON value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Scan {
    depth: u32,
    in_text: bool,
    escaped: bool,
    begun: bool,
}

/// Where a character is, seen from a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Inside,
    Last,
    Behind,
    Wrong,
}

impl Scan {
    fn step(&mut self, c: char) -> Place {
        let first = !std::mem::replace(&mut self.begun, true);
        if self.in_text {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_text = false;
                    return self.closed();
                }
                _ => {}
            }
            return Place::Inside;
        }
        match c {
            '"' => self.in_text = true,
            '{' | '[' => self.depth = self.depth.saturating_add(1),
            '}' | ']' | ',' if self.depth == 0 => {
                return if first { Place::Wrong } else { Place::Behind };
            }
            '}' | ']' => {
                self.depth -= 1;
                return self.closed();
            }
            _ => {}
        }
        Place::Inside
    }

    const fn closed(self) -> Place {
        if self.depth == 0 {
            Place::Last
        } else {
            Place::Inside
        }
    }
}

impl CallReader {
    pub(super) fn new() -> Self {
        Self {
            state: State::Open,
            key: String::new(),
            name: String::new(),
            is_named: false,
            is_bare: false,
            held: String::new(),
            has_arguments: false,
        }
    }

    /// A call whose name stood before it, and whose arguments are the object that begins now.
    pub(super) fn of_arguments() -> Self {
        Self {
            state: State::InValue {
                of: Field::Arguments,
                scan: Scan::default(),
            },
            is_named: true,
            is_bare: true,
            ..Self::new()
        }
    }

    /// Whether its name was read.
    pub(super) const fn is_named(&self) -> bool {
        self.is_named
    }

    /// Reads the next character.
    pub(super) fn step(&mut self, c: char, said: &mut Vec<Said>) -> Result<(), NoCall> {
        let is_blank = matches!(c, ' ' | '\n' | '\r' | '\t');
        match self.state {
            State::InKey { escaped } => self.in_key(c, escaped)?,
            State::InValue { of, scan } => self.in_value(c, of, scan, said)?,
            _ if is_blank => {}
            State::Open if c == '{' => self.state = State::Key { first: true },
            State::Key { .. } if c == '"' => {
                self.key.clear();
                self.state = State::InKey { escaped: false };
            }
            State::Key { first: true } if c == '}' => self.end(said)?,
            State::Colon if c == ':' => self.state = State::Value,
            State::Value => {
                let of = self.field(c)?;
                self.in_value(c, of, Scan::default(), said)?;
            }
            State::Next if c == ',' => self.state = State::Key { first: false },
            State::Next if c == '}' => self.end(said)?,
            State::Open | State::Key { .. } | State::Colon | State::Next => return Err(NoCall),
        }
        Ok(())
    }

    fn in_key(&mut self, c: char, escaped: bool) -> Result<(), NoCall> {
        if c == '"' && !escaped {
            self.state = State::Colon;
            return Ok(());
        }
        self.key.push(c);
        let escaped = c == '\\' && !escaped;
        self.state = State::InKey { escaped };
        (self.key.len() <= MAX_NAME_BYTES)
            .then_some(())
            .ok_or(NoCall)
    }

    /// The field whose value begins with this character.
    fn field(&mut self, first: char) -> Result<Field, NoCall> {
        match self.key.as_str() {
            "name" if first != '"' || self.is_named => Err(NoCall),
            "name" => Ok(Field::Name),
            "arguments" | "parameters" if self.has_arguments => Err(NoCall),
            "arguments" | "parameters" => {
                self.has_arguments = true;
                Ok(if first == '{' {
                    Field::Arguments
                } else {
                    Field::Other(Of::Arguments)
                })
            }
            _ => Ok(Field::Other(Of::Nobody)),
        }
    }

    fn in_value(
        &mut self,
        c: char,
        of: Field,
        mut scan: Scan,
        said: &mut Vec<Said>,
    ) -> Result<(), NoCall> {
        let place = scan.step(c);
        match place {
            Place::Wrong => return Err(NoCall),
            Place::Inside => {
                self.state = State::InValue { of, scan };
                return self.take(c, of, said);
            }
            Place::Last => {
                self.take(c, of, said)?;
                self.close_value(of, said)?;
                self.state = State::Next;
            }
            Place::Behind => {
                self.close_value(of, said)?;
                self.state = State::Next;
                return self.step(c, said);
            }
        }
        if self.is_bare {
            self.end(said)?;
        }
        Ok(())
    }

    /// Takes a character of a value.
    fn take(&mut self, c: char, of: Field, said: &mut Vec<Said>) -> Result<(), NoCall> {
        let (held, most) = match of {
            Field::Other(Of::Nobody) => return Ok(()),
            Field::Name => (&mut self.name, MAX_NAME_BYTES),
            Field::Arguments if self.is_named => {
                match said.last_mut() {
                    Some(Said::Arguments(before)) => before.push(c),
                    _ => said.push(Said::Arguments(c.into())),
                }
                return Ok(());
            }
            Field::Arguments | Field::Other(Of::Arguments) => (&mut self.held, MAX_HELD_BYTES),
        };
        held.push(c);
        (held.len() <= most).then_some(()).ok_or(NoCall)
    }

    /// What a value says once it is whole.
    fn close_value(&mut self, of: Field, said: &mut Vec<Said>) -> Result<(), NoCall> {
        match of {
            Field::Name => {
                let name: String = serde_json::from_str(&self.name).map_err(|_| NoCall)?;
                if name.is_empty() {
                    return Err(NoCall);
                }
                self.is_named = true;
                let arguments = std::mem::take(&mut self.held);
                said.push(Said::Named { name, arguments });
            }
            Field::Other(Of::Arguments) => {
                let held = std::mem::take(&mut self.held);
                let text = match held.trim() {
                    "null" => "{}".to_owned(),
                    text if text.starts_with('"') => {
                        serde_json::from_str(text).map_err(|_| NoCall)?
                    }
                    other => other.to_owned(),
                };
                if self.is_named {
                    said.push(Said::Arguments(text));
                } else {
                    self.held = text;
                }
            }
            Field::Arguments | Field::Other(Of::Nobody) => {}
        }
        Ok(())
    }

    fn end(&mut self, said: &mut Vec<Said>) -> Result<(), NoCall> {
        if !self.is_named {
            return Err(NoCall);
        }
        if !self.has_arguments && !self.is_bare {
            said.push(Said::Arguments("{}".to_owned()));
        }
        said.push(Said::Ended);
        Ok(())
    }
}
