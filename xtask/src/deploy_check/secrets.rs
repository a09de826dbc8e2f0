//! Secrets that come from outside the manifests: API keys, and certificates of a CA that is made
//! for one run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// The key whose digest the overlay `dev` has.
pub const KEY: &str = "palimpsest-dev";
const KEY_LINE: &str = "dev:efeadd5bf30c5f2e99712ee5c5d3187cf01f5487beb554e76f5e6ab7706d9f79\n";
/// Where connections between loopback addresses come from: members of etcd look whether it stands
/// in the certificate that they are shown.
const SOURCE: &str = "127.0.0.1";
/// Secrets with certificates, and the names in these that `deploy/README.md` asks for.
const CERTIFICATES: [(&str, &[&str]); 4] = [
    ("palimpsest-tls", &["palimpsest"]),
    (
        "palimpsest-coordinator-tls",
        &["coordinator.palimpsest.internal"],
    ),
    ("palimpsest-worker-tls", &["worker.palimpsest.internal"]),
    (
        "palimpsest-etcd-tls",
        &[
            "etcd",
            "*.etcd-peers",
            "*.etcd-peers.palimpsest.svc.cluster.local",
        ],
    ),
];

/// Signs what the pods of one overlay show.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A CA that nobody knows.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "deploy-check");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// Its own certificate, in PEM form.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes the files of the secret `name` for a pod at `ip`: here names of services are that
    /// address.
    ///
    /// # Errors
    /// A secret that nothing here knows, and files that cannot be written.
    pub fn write(&self, name: &str, ip: &str, directory: &Path) -> Result<()> {
        let put =
            |file: &str, text: &str| fs::write(directory.join(file), text).context("a secret");
        if name == "palimpsest-keys" {
            return put("keys", KEY_LINE);
        }
        let Some((_, names)) = CERTIFICATES.iter().find(|(secret, _)| *secret == name) else {
            bail!("deploy-check knows no Secret/{name}: tell it what it holds");
        };
        let names: Vec<String> = names
            .iter()
            .chain([&ip, &SOURCE])
            .map(|name| (*name).to_owned())
            .collect();
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        put("tls.crt", &params.signed_by(&key, &self.0)?.pem())?;
        put("tls.key", &key.serialize_pem())?;
        put("ca.crt", &self.pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_has_its_files_and_others_are_refused() {
        let (authority, directory) = (Authority::new().expect("a CA"), std::env::temp_dir());
        let directory = directory.join(format!("deploy-check-secrets-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        for (name, _) in CERTIFICATES {
            authority.write(name, "127.0.0.1", &directory).expect(name);
            for (file, holds) in [
                ("tls.crt", "CERTIFICATE"),
                ("tls.key", "PRIVATE KEY"),
                ("ca.crt", "CERTIFICATE"),
            ] {
                let path = directory.join(file);
                assert!(
                    fs::read_to_string(&path).expect(file).contains(holds),
                    "{name} {file}"
                );
                fs::remove_file(path).expect(file);
            }
        }
        authority
            .write("palimpsest-keys", "127.0.0.1", &directory)
            .expect("keys");
        let unknown = authority
            .write("other", "127.0.0.1", &directory)
            .expect_err("an unknown secret");
        assert!(unknown.to_string().contains("Secret/other"));
        fs::remove_dir_all(directory).expect("it was made here");
    }
}
