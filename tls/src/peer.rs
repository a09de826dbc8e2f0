//! Who is at the other end of a connection.

use std::net::SocketAddr;

use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::ParsedCertificate;
use tonic::{Request, Status};

use crate::files::role_name;
use crate::{Network, Requests, Role};

/// Who is at the other end of a connection. tonic puts it into the extensions of each request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Roles that its certificate names; `None` without TLS.
    roles: Option<Vec<Role>>,
    requests: Requests,
}

impl Peer {
    /// One that shows nothing.
    pub(crate) fn plain(address: Option<SocketAddr>) -> Self {
        Self {
            address,
            roles: None,
            requests: Requests::new(),
        }
    }

    /// One behind TLS, and the certificate that it has shown.
    pub(crate) fn encrypted(
        address: Option<SocketAddr>,
        shown: Option<&CertificateDer<'_>>,
    ) -> Self {
        let parsed = shown.and_then(|shown| ParsedCertificate::try_from(shown).ok());
        let names = |role: &Role| {
            parsed
                .as_ref()
                .is_some_and(|parsed| verify_server_name(parsed, &role_name(*role)).is_ok())
        };
        let roles = [Role::Coordinator, Role::Worker]
            .into_iter()
            .filter(names)
            .collect();
        Self {
            roles: Some(roles),
            ..Self::plain(address)
        }
    }

    /// Whether it may act in `role`. Without TLS nobody can be told from anybody, and the network
    /// decides.
    pub fn is(&self, role: Role) -> bool {
        self.roles
            .as_ref()
            .is_none_or(|roles| roles.contains(&role))
    }

    /// Whom its requests count for.
    pub fn network(&self) -> Option<Network> {
        self.address.map(|address| address.ip().into())
    }

    /// What it has under way on this connection.
    pub fn requests(&self) -> Requests {
        self.requests.clone()
    }
}

/// Lets calls of one role through.
pub fn only(
    role: Role,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone + Send + Sync + 'static {
    move |request| match request.extensions().get::<Peer>() {
        Some(peer) if peer.is(role) => Ok(request),
        _ => Err(Status::permission_denied(format!(
            "only for who shows a certificate with the DNS name {}",
            role.dns_name()
        ))),
    }
}
