//! What is wrong, in words that say what to do.

use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use tokio_rustls::rustls::{self, AlertDescription, CertificateError, InvalidMessage};

/// What plain text is told.
pub(crate) const SPEAKS_TLS: &str = "this port speaks TLS: use https://";

/// Certificates or keys that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// A file without what it should hold.
    #[error("{} holds no {what} in PEM form", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// A key that belongs to another certificate.
    #[error(
        "the key in {} does not belong to the certificate in {}",
        key.display(),
        cert.display()
    )]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate whose time is over, or has not come.
    #[error("the certificate in {} {what}; its times are {from} to {until}", path.display())]
    Time {
        /// The file.
        path: PathBuf,
        /// `has expired` or `is not valid yet`.
        what: &'static str,
        /// First moment.
        from: String,
        /// Last moment.
        until: String,
    },
    /// Anything else about a file.
    #[error("{}: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The certificates of this machine cannot be read.
    #[error("this system has no trusted certificates: {0}; name the file of a CA")]
    NoRoots(String),
}

impl TlsError {
    pub(crate) fn unusable(path: &std::path::Path, why: impl Display) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}

/// What TLS has to say of a failed connection, searched in the causes of an error.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(found) = cause {
        let inner = found
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let tls = found
            .downcast_ref()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref()));
        if let Some(tls) = tls {
            return Some(in_words(tls));
        }
        // HTTP/2 keeps the text of an error and not the error.
        let text = found.to_string();
        if text.contains(SPEAKS_TLS) {
            return Some(SPEAKS_TLS.to_owned());
        }
        if let Some((_, alert)) = text.rsplit_once("received fatal alert: ") {
            return Some(alert_in_words(alert.trim_matches(['\'', '"', '`'])));
        }
        cause = found.source();
    }
    None
}

/// A handshake that failed at our end.
pub(crate) fn in_words(error: &rustls::Error) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the other side does not speak TLS: is its address one of http:// and not https://?"
                .into()
        }
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            // Of a CA of the same name.
            UnknownIssuer | BadSignature => {
                "its certificate is not signed by the CA that is trusted here".into()
            }
            Expired | ExpiredContext { .. } => "its certificate has expired".into(),
            NotValidYet | NotValidYetContext { .. } => "its certificate is not valid yet".into(),
            NotValidForName => "its certificate is for another name".into(),
            NotValidForNameContext {
                expected,
                presented,
            } => {
                format!(
                    "its certificate is for {} and not for {}",
                    presented.join(", "),
                    expected.to_str()
                )
            }
            other => format!("its certificate cannot be accepted: {other}"),
        },
        rustls::Error::NoCertificatesPresented => {
            "it shows no certificate, and one of the trusted CA is asked for".into()
        }
        rustls::Error::AlertReceived(alert) => alert_in_words(&format!("{alert:?}")),
        other => other.to_string(),
    }
}

/// What the other side means by an alert, given its name in rustls.
fn alert_in_words(alert: &str) -> String {
    let is = |known: AlertDescription| alert == format!("{known:?}");
    if is(AlertDescription::CertificateRequired) {
        return "the other side asks for a client certificate, and none was given".into();
    }
    if is(AlertDescription::UnknownCA) {
        return "the other side does not trust the CA of the certificate that it was shown".into();
    }
    if is(AlertDescription::CertificateExpired) {
        return "the other side says that the certificate it was shown has expired".into();
    }
    if is(AlertDescription::BadCertificate) || is(AlertDescription::CertificateUnknown) {
        return "the other side does not accept the certificate that it was shown".into();
    }
    format!("the other side ended the handshake: {alert}")
}
