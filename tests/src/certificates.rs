//! A certificate authority of a test, and certificates of it in files.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use palimpsest_tls::{ClusterFiles, Role};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// Signs certificates; its files are gone with it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate and its key in files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// PEM of the certificate.
    pub cert: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// Now, and for so long.
    For(Duration),
    /// Until the year 2001.
    Past,
}

impl Authority {
    /// A CA that nobody knows yet.
    ///
    /// # Panics
    /// When its files cannot be written.
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key"))
            .expect("a CA");
        std::fs::write(directory.path().join("ca.crt"), issuer.pem())
            .expect("a writable directory");
        Self { issuer, directory }
    }

    /// Its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// A certificate for `names` (DNS names or addresses), for servers and clients, in files called
    /// `file`. Files that are there are replaced.
    ///
    /// # Panics
    /// When a name is none, or the files cannot be written.
    pub fn issue(&self, file: &str, names: &[&str], validity: Validity) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        match validity {
            Validity::Now => {}
            Validity::For(time) => params.not_after = (SystemTime::now() + time).into(),
            Validity::Past => {
                params.not_before = date_time_ymd(2000, 1, 1);
                params.not_after = date_time_ymd(2001, 1, 1);
            }
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |extension: &str| self.directory.path().join(format!("{file}.{extension}"));
        let identity = Identity {
            cert: path("crt"),
            key: path("key"),
        };
        write(&identity.key, &key.serialize_pem());
        write(&identity.cert, &certificate.pem());
        identity
    }

    /// A certificate for 127.0.0.1 and localhost.
    pub fn server(&self) -> Identity {
        self.issue("server", &["127.0.0.1", "localhost"], Validity::Now)
    }

    /// What a process of a cluster in `role` shows.
    pub fn cluster(&self, role: Role) -> ClusterFiles {
        let Identity { cert, key } = self.issue(role.dns_name(), &[role.dns_name()], Validity::Now);
        ClusterFiles {
            cert,
            key,
            ca: self.ca(),
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a writable directory");
}
