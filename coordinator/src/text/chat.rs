//! Chat templates: the Jinja source that models ship, with the names that Hugging Face's
//! `apply_chat_template` defines.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, ErrorKind, Value, context};
use palimpsest_proto::v1::Chat;
use serde::Serialize;

use super::error::Error;

const NAME: &str = "chat";
/// Steps that a template may take for any conversation, for each message, and for each byte of
/// text. Templates of models take some dozens for a message, and some look at all messages for each
/// of them.
const FUEL: u64 = 1_000_000;
const MESSAGE_FUEL: u64 = 10_000;
const BYTE_FUEL: u64 = 16;

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`Error::Template`] if it is not valid Jinja.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: &str| {
            let since = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            strftime(format, since.as_secs())
        });
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| Error::Template(format!("{error:#}")))?;
        Ok(Self {
            environment,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        })
    }

    /// The prompt for a conversation: the messages, the opening of an answer, the answer's prefix.
    ///
    /// # Errors
    /// [`Error::Render`] with what the template says; it holds no text of the messages.
    /// [`Error::OutOfFuel`] for a template that goes on and on.
    pub fn render(&self, chat: &Chat) -> Result<String, Error> {
        let mut prompt = self.render_with(chat, true)?;
        prompt.push_str(&chat.answer_prefix);
        Ok(prompt)
    }

    /// The messages alone, behind which nothing is answered.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_messages(&self, chat: &Chat) -> Result<String, Error> {
        self.render_with(chat, false)
    }

    fn render_with(&self, chat: &Chat, has_opening: bool) -> Result<String, Error> {
        let fuel = fuel(chat);
        // Fuel belongs to an environment. A copy shares the compiled template.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let messages: Vec<Value> = chat
            .messages
            .iter()
            .map(|message| context! { role => message.role, content => message.content })
            .collect();
        let template = environment
            .get_template(NAME)
            .map_err(|error| Error::Template(error.to_string()))?;
        let prompt = template.render(context! {
            messages,
            add_generation_prompt => has_opening,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
        });
        prompt.map_err(|error| {
            if error.kind() == ErrorKind::OutOfFuel {
                return Error::OutOfFuel(fuel);
            }
            // Details of other kinds may quote values, and values are the client's text.
            let detail = if error.kind() == ErrorKind::InvalidOperation {
                error.detail()
            } else {
                None
            };
            Error::Render(detail.map_or_else(|| error.kind().to_string(), str::to_owned))
        })
    }
}

/// Steps that a template may take for a conversation.
fn fuel(chat: &Chat) -> u64 {
    let text = |bytes: usize| (bytes as u64).saturating_mul(BYTE_FUEL);
    let messages = chat.messages.iter();
    messages
        .map(|message| text(message.role.len() + message.content.len()) + MESSAGE_FUEL)
        .fold(FUEL, u64::saturating_add)
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which is not what Jinja's own filter does: no
/// HTML escapes, and a space after commas and colons.
fn to_json(value: &Value, options: minijinja::value::Kwargs) -> Result<String, minijinja::Error> {
    let failed = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, error.to_string())
    };
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(
                    &mut out, formatter,
                ))
                .map_err(failed)?;
        }
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut out, Python,
            ))
            .map_err(failed)?,
    }
    Ok(String::from_utf8(out).expect("serde_json writes UTF-8"))
}

struct Python;

impl serde_json::ser::Formatter for Python {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// The date formats that templates use; others stand as they are. UTC, because a server has no
/// place.
fn strftime(format: &str, unix_seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let Date { year, month, day } = civil(days);
    let (month_name, weekday) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{:02}", seconds / 3600)),
            Some('M') => out.push_str(&format!("{:02}", seconds / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", seconds % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// A day of the calendar.
struct Date {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
}

/// The date of a day since 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn civil(days: u64) -> Date {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    Date {
        year: year_of_era + era * 400 + u64::from(month <= 2),
        month,
        day,
    }
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::v1::ChatMessage;

    use super::*;

    fn chat(messages: &[(&str, &str)], answer_prefix: &str) -> Chat {
        let message = |(role, content): &(&str, &str)| ChatMessage {
            role: (*role).into(),
            content: (*content).into(),
        };
        Chat {
            messages: messages.iter().map(message).collect(),
            answer_prefix: answer_prefix.into(),
        }
    }

    fn render(source: &str, chat: &Chat) -> Result<String, Error> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(chat)
    }

    #[test]
    fn chatml_with_a_default_system_line() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != \
                      'system' %}{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif \
                      %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
                      '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ \
                      '<|im_start|>assistant\n' }}{% endif %}";
        let prompt = render(source, &chat(&[("user", "Hi")], "The")).unwrap();
        let expected = "<|im_start|>system\nBe brief<|im_end|>\n\
                        <|im_start|>user\nHi<|im_end|>\n\
                        <|im_start|>assistant\nThe";
        assert_eq!(prompt, expected);
        assert!(
            !render(source, &chat(&[("system", "x")], ""))
                .unwrap()
                .contains("Be brief")
        );
    }

    #[test]
    fn python_methods_blocks_and_json_are_as_hugging_face_has_them() {
        let rows = [
            (
                "{{ messages[0].content.strip().upper().startswith('A') }}",
                "True",
            ),
            (
                "{{ bos_token }}\n{% if true %}\n  x\n{% endif %}\ny{{ eos_token }}",
                "<s>\n  x\ny</s>",
            ),
            (
                "{{ {'a': [1, '<é>'], 'b': none} | tojson }}",
                "{\"a\": [1, \"<é>\"], \"b\": null}",
            ),
            ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
            ("{{ undefined_name is defined }}", "False"),
            ("{{ (messages | length) ~ messages[-1]['role'] }}", "1user"),
        ];
        for (source, expected) in rows {
            assert_eq!(
                render(source, &chat(&[("user", " abc ")], "")).unwrap(),
                expected,
                "{source}"
            );
        }
    }

    #[test]
    fn refusals_say_what_the_template_says_and_never_the_text() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must \
                      alternate') }}{% endif %}{{ messages[0].content + 1 }}";
        let refused = render(source, &chat(&[("tool", "secret")], ""))
            .unwrap_err()
            .to_string();
        assert!(refused.ends_with("roles must alternate"), "{refused}");
        assert!(
            !render(source, &chat(&[("user", "secret")], ""))
                .unwrap_err()
                .to_string()
                .contains("secret")
        );
        assert!(matches!(
            ChatTemplate::new("{% if %}", "", ""),
            Err(Error::Template(_))
        ));
    }

    /// Without fuel this takes hours.
    #[test]
    fn a_template_that_goes_on_and_on_is_stopped() {
        let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor \
                      %}";
        let error = render(source, &chat(&[("user", "secret")], "")).unwrap_err();
        assert!(matches!(error, Error::OutOfFuel(_)), "{error}");
        assert!(
            error.to_string().contains("more than 1010160 steps"),
            "{error}"
        );
        // What looks at all messages for each of a long conversation is fine.
        let source = "{% for a in messages %}{% for b in messages %}{{ loop.index }}{% endfor \
                      %}{% endfor %}";
        render(source, &chat(&[("user", "x"); 500], "")).unwrap();
    }

    #[test]
    fn dates() {
        assert_eq!(
            strftime("%d %b %Y %A %H:%M:%S %%%q", 951_827_696),
            "29 Feb 2000 Tuesday 12:34:56 %%q"
        );
        assert_eq!(strftime("%Y-%m-%d", 0), "1970-01-01");
        assert_eq!(strftime("%B %y", 4_102_444_799), "December 99");
    }
}
