//! `palimpsest.v1.Sessions`.

use palimpsest_proto::error::RequestError;
use palimpsest_proto::v1::sessions_server::Sessions;
use palimpsest_proto::v1::{
    AppendRequest, AppendResponse, CreateSessionRequest, DeleteSessionResponse, ForkSessionRequest,
    ListSessionsRequest, ListSessionsResponse, MovedResponse, Session, SessionRequest,
};
use tonic::{Request, Response, Status};

use super::call::call_of;
use crate::service::{Call, Service};

/// The generated service over [`Service`].
#[derive(Debug, Clone)]
pub(super) struct SessionsApi(pub(super) Service);

/// Of whom a request is, and what it asks.
fn split<T>(request: Request<T>) -> Result<(Call, T), Status> {
    let call = call_of(request.metadata(), request.extensions())?;
    Ok((call, request.into_inner()))
}

fn respond<T>(done: Result<T, RequestError>) -> Result<Response<T>, Status> {
    Ok(Response::new(done?))
}

#[tonic::async_trait]
impl Sessions for SessionsApi {
    async fn create(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<Session>, Status> {
        let (call, asked) = split(request)?;
        respond(self.0.create_session(&call, asked).await)
    }

    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let (call, asked) = split(request)?;
        respond(self.0.append(&call, asked).await)
    }

    async fn fork(
        &self,
        request: Request<ForkSessionRequest>,
    ) -> Result<Response<Session>, Status> {
        let (call, asked) = split(request)?;
        let (from, to) = (&asked.session_id, &asked.new_session_id);
        respond(self.0.sessions.fork(call.tenant_name(), from, to).await)
    }

    async fn suspend(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<MovedResponse>, Status> {
        let (call, asked) = split(request)?;
        let sessions = &self.0.sessions;
        respond(
            sessions
                .suspend(call.tenant_name(), &asked.session_id)
                .await,
        )
    }

    async fn resume(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<MovedResponse>, Status> {
        let (call, asked) = split(request)?;
        let sessions = &self.0.sessions;
        respond(sessions.resume(call.tenant_name(), &asked.session_id).await)
    }

    async fn list(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let (call, asked) = split(request)?;
        let (sessions, tenant) = (&self.0.sessions, call.tenant_name());
        let size = asked.page_size as usize;
        let page = sessions.list(tenant, &asked.page_token, size).await?;
        Ok(Response::new(ListSessionsResponse {
            sessions: page.sessions,
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn show(&self, request: Request<SessionRequest>) -> Result<Response<Session>, Status> {
        let (call, asked) = split(request)?;
        let sessions = &self.0.sessions;
        respond(sessions.show(call.tenant_name(), &asked.session_id).await)
    }

    async fn delete(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<DeleteSessionResponse>, Status> {
        let (call, asked) = split(request)?;
        let sessions = &self.0.sessions;
        sessions
            .delete(call.tenant_name(), &asked.session_id)
            .await?;
        Ok(Response::new(DeleteSessionResponse {}))
    }
}
