//! The guide of a request: what can be seen of it at once, and whether it can be compiled.

use palimpsest_guide::Error;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::{Guide, Stopping};

use crate::model::ServedModel;

/// Checks what takes no time.
pub(super) fn validate(guide: &Guide, stopping: &Stopping) -> Result<(), RequestError> {
    palimpsest_guide::check_size(guide).map_err(|error| refused(guide, &error))?;
    if stopping.ignore_eos {
        let message = "ignore_eos does not go with a guide: an answer that is complete has to end";
        return Err(RequestError::new(Reason::BadStopping, message).in_field("stopping.ignore_eos"));
    }
    if stopping.min_tokens > 0 {
        let message = "min_tokens does not go with a guide: an answer that is complete has to end";
        return Err(RequestError::new(Reason::BadStopping, message).in_field("stopping.min_tokens"));
    }
    Ok(())
}

/// Compiles a guide, and returns what the client should know of it. It takes tens of milliseconds,
/// and more for the first guide: call it where blocking is allowed.
///
/// # Errors
/// `BadGuide`, with the reason and the place.
pub fn compile(guide: &Guide, model: &ServedModel) -> Result<Vec<String>, RequestError> {
    let vocabulary = model.guide_vocabulary();
    let checked = vocabulary.and_then(|vocabulary| vocabulary.check(guide));
    let warnings = checked.map_err(|error| refused(guide, &error))?;
    let warning = |what| format!("{}: {what}", guide.field());
    Ok(warnings.into_iter().map(warning).collect())
}

fn refused(guide: &Guide, error: &Error) -> RequestError {
    let field = guide.field();
    RequestError::new(Reason::BadGuide, format!("{field}: {error}")).in_field(field)
}
