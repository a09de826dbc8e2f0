//! What a kernel can refuse, with the operands that made it refuse.

/// Result of a kernel call.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation that could not be carried out. Shapes and names are kept, so that the message says
/// what to change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument does not have the size that the operation's shape implies.
    #[error("{op}: {what} holds {got} elements, the shape needs {want}")]
    Shape {
        /// Operation, a `Backend` method name.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// Elements found.
        got: usize,
        /// Elements needed.
        want: usize,
    },
    /// A size is not a multiple of what the layout needs.
    #[error("{op}: {what} is {got}, not a multiple of {multiple}")]
    Multiple {
        /// Operation.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// Value found.
        got: usize,
        /// Required divisor.
        multiple: usize,
    },
    /// An index points outside its table.
    #[error("{op}: {what} {index} is out of range (there are {len})")]
    Index {
        /// Operation.
        op: &'static str,
        /// Argument.
        what: &'static str,
        /// Index found.
        index: usize,
        /// Size of the table.
        len: usize,
    },
    /// The device has no room for an allocation.
    #[error("cannot allocate {bytes} bytes for {what}")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// There is no such device, or this build or machine cannot use it. The text says what to do.
    #[error("{0}")]
    Unavailable(String),
    /// The device failed in mid-operation, or a kernel did. What it held is lost; a process that
    /// wants to go on starts anew.
    #[error("{op}: the device failed: {what}")]
    Device {
        /// Operation or kernel.
        op: &'static str,
        /// The device's words.
        what: String,
    },
    /// A sum over ranks failed, or its epoch was ended: the device is whole, and the group has to
    /// form anew.
    #[error(transparent)]
    Sums(Box<dyn std::error::Error + Send + Sync>),
}

/// Checks that `what` has at least `want` elements.
pub(crate) fn at_least(
    op: &'static str,
    what: &'static str,
    got: usize,
    want: usize,
) -> Result<()> {
    if got < want {
        Err(Error::Shape {
            op,
            what,
            got,
            want,
        })
    } else {
        Ok(())
    }
}
