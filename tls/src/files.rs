//! Certificates and keys in PEM files, and rustls' configurations of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use x509_parser::certificate::X509Certificate;

use crate::error::in_words;
use crate::{Role, TlsError};

/// Protocols that are spoken behind TLS, the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What a server shows, and whom it lets in.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// Its certificate and those between it and the CA.
    pub cert: PathBuf,
    /// The key of the first of them.
    pub key: PathBuf,
    /// Clients must show a certificate of one of these CAs.
    pub client_ca: Option<PathBuf>,
}

/// A certificate and its key, by their files.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// The certificate, with those between it and its CA.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
}

/// What a client trusts, and shows.
#[derive(Debug, Clone, Default)]
pub struct ClientFiles {
    /// Servers must show a certificate of one of these CAs; `None`: of those that this system
    /// trusts.
    pub ca: Option<PathBuf>,
    /// What it shows to servers that ask.
    pub identity: Option<IdentityFiles>,
}

/// What a process of a cluster shows to the others, and trusts of them.
#[derive(Debug, Clone)]
pub struct ClusterFiles {
    /// Its certificate, which names its [`Role`].
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The cluster's own CA: whatever it signs is trusted.
    pub ca: PathBuf,
}

impl ServerFiles {
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key]
            .into_iter()
            .chain(&self.client_ca)
            .cloned()
            .collect()
    }

    pub(crate) fn config(&self) -> Result<ServerConfig, TlsError> {
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::unusable(&self.cert, e))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(client_verifier(path, provider)?),
        };
        let (chain, key) = identity(&self.cert, &self.key)?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|e| wrong(e, &self.cert, &self.key))?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(config)
    }
}

impl ClientFiles {
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter();
        let identity = identity.flat_map(|IdentityFiles { cert, key }| [cert, key]);
        identity.chain(&self.ca).cloned().collect()
    }

    pub(crate) fn config(&self, protocol: &[u8]) -> Result<ClientConfig, TlsError> {
        let roots = match &self.ca {
            Some(path) => roots(path)?,
            None => system_roots()?,
        };
        let any = self.ca.clone().unwrap_or_default();
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|e| TlsError::unusable(&any, e))?;
        let builder = builder.with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(IdentityFiles { cert, key }) => {
                let (chain, private) = identity(cert, key)?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|e| wrong(e, cert, key))?
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }
}

impl ClusterFiles {
    pub(crate) fn server(&self) -> ServerFiles {
        let Self { cert, key, ca } = self.clone();
        ServerFiles {
            cert,
            key,
            client_ca: Some(ca),
        }
    }

    pub(crate) fn client(&self) -> ClientFiles {
        let Self { cert, key, ca } = self.clone();
        ClientFiles {
            ca: Some(ca),
            identity: Some(IdentityFiles { cert, key }),
        }
    }

    /// Finds out before anybody else does whether the others will accept this certificate.
    pub(crate) fn check(&self, role: Role) -> Result<(), TlsError> {
        let provider = provider();
        let (chain, key) = identity(&self.cert, &self.key)?;
        drop(key);
        let Some((leaf, between)) = chain.split_first() else {
            return Ok(());
        };
        let refused = |error: rustls::Error| {
            let why = in_words(&error).replacen("its certificate", "the certificate", 1);
            TlsError::unusable(&self.cert, format!("{why} ({})", self.ca.display()))
        };
        let verifier = client_verifier(&self.ca, provider.clone())?;
        verifier
            .verify_client_cert(leaf, between, UnixTime::now())
            .map_err(refused)?;
        let name = role_name(role);
        let parsed = ParsedCertificate::try_from(leaf).map_err(refused)?;
        if verify_server_name(&parsed, &name).is_err() {
            let why = format!(
                "the certificate must hold the DNS name {}, which says what it is for",
                role.dns_name()
            );
            return Err(TlsError::unusable(&self.cert, why));
        }
        if role == Role::Worker {
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&self.ca)?), provider)
                    .build();
            let verifier = verifier.map_err(|e| TlsError::unusable(&self.ca, e))?;
            verifier
                .verify_server_cert(leaf, between, &name, &[], UnixTime::now())
                .map_err(refused)?;
        }
        Ok(())
    }
}

/// The name in certificates of a role.
pub(crate) fn role_name(role: Role) -> ServerName<'static> {
    ServerName::try_from(role.dns_name()).expect("the names of roles are DNS names")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_verifier(
    ca: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider).build();
    verifier.map_err(|error| TlsError::unusable(ca, error))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::unusable(path, in_words(&error)))?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found
            .errors
            .first()
            .map_or_else(|| "none were found".to_owned(), ToString::to_string);
        return Err(TlsError::NoRoots(why));
    }
    Ok(roots)
}

/// A chain whose first certificate is valid now, and a key.
fn identity(
    cert: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(cert)?;
    if let Some(leaf) = chain.first() {
        check_time(leaf, cert)?;
    }
    let bytes = read(key)?;
    // Its errors say nothing of the content.
    let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| TlsError::Empty {
        path: key.to_owned(),
        what: "private key",
    })?;
    Ok((chain, private))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| TlsError::unusable(path, error))?;
    if found.is_empty() {
        return Err(TlsError::Empty {
            path: path.to_owned(),
            what: "certificate",
        });
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read {
        path: path.to_owned(),
        why: error.to_string(),
    })
}

fn check_time(leaf: &CertificateDer<'_>, path: &Path) -> Result<(), TlsError> {
    use x509_parser::prelude::FromDer;
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| TlsError::unusable(path, error))?;
    let (validity, now) = (parsed.validity(), x509_parser::time::ASN1Time::now());
    let what = match () {
        () if now > validity.not_after => "has expired",
        () if now < validity.not_before => "is not valid yet",
        () => return Ok(()),
    };
    let (from, until) = (
        validity.not_before.to_string(),
        validity.not_after.to_string(),
    );
    Err(TlsError::Time {
        path: path.to_owned(),
        what,
        from,
        until,
    })
}

fn wrong(error: rustls::Error, cert: &Path, key: &Path) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
        },
        other => TlsError::unusable(key, other),
    }
}
