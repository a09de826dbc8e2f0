//! `inference.GRPCInferenceService`: the Open Inference Protocol of KServe, with Triton's streams.
//!
//! A model takes one text, `text_input`, and gives one, `text_output`. What else a request asks
//! for stands in its parameters. Streams are answered by `stream`, before which nothing reads
//! them.

mod answer;
mod limits;
mod parameters;
mod request;
pub(super) mod stream;
#[cfg(test)]
mod tests;

use futures::stream::BoxStream;
use palimpsest_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use palimpsest_proto::inference::model_metadata_response::TensorMetadata;
use palimpsest_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ModelStreamInferResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
};
use tonic::{Request, Response, Status, Streaming};

pub(super) use self::limits::check_body;
pub use self::request::{Asked, Form, read};
use super::call::{REQUEST_ID_KEY, call_of};
use crate::driver::Readiness;
use crate::service::Service;

/// Name of the service.
pub const SERVICE_NAME: &str = "inference.GRPCInferenceService";
/// The method that answers with all of an answer.
pub(super) const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
/// The method that answers piece by piece.
pub(super) const STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// The generated service over [`Service`].
#[derive(Debug, Clone)]
pub(super) struct KserveApi(pub(super) Service);

impl KserveApi {
    fn is_ready(&self) -> bool {
        *self.0.driver.readiness().borrow() == Readiness::Ready
    }

    /// Whether a model of this name and version is served.
    fn has(&self, name: &str, version: &str) -> bool {
        self.0.model.names().any(|own| own == name) && request::is_version(version)
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for KserveApi {
    type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.is_ready();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.is_ready() && self.has(&name, &version);
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: "palimpsest".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: Vec::new(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        if !name.is_empty() && !self.has(&name, &version) {
            let own = self.0.model.name();
            let message = format!("there is no such model here: ask for {own:?}, version \"1\"");
            return Err(Status::not_found(message));
        }
        let text = |name: &str| TensorMetadata {
            name: name.into(),
            datatype: request::BYTES.into(),
            shape: vec![1],
        };
        Ok(Response::new(ModelMetadataResponse {
            name: self.0.model.name().to_owned(),
            versions: vec![request::VERSION.into()],
            platform: "palimpsest".into(),
            inputs: vec![text(request::INPUT)],
            outputs: vec![text(request::OUTPUT)],
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let call = call_of(request.metadata(), request.extensions())?;
        let (_, extensions, message) = request.into_parts();
        // The other copy of the charge: from here on it ends with the call.
        drop(extensions);
        let Asked { request, form } = request::asked(message)?;
        let answer = self.0.generate_for(&call, request).await?;
        drop(call);
        let name = answer.request_id().as_str().parse();
        let name = name.map_err(|_| Status::internal("request ids are ASCII"))?;
        let most = self.0.config.max_answer_bytes;
        let whole = answer::whole(answer, &form.of(&self.0), most).await?;
        let mut response = Response::new(whole);
        response.metadata_mut().insert(REQUEST_ID_KEY, name);
        Ok(response)
    }

    async fn model_stream_infer(
        &self,
        _: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        // `Charged` stands before this service, and reads a stream message by message.
        Err(Status::internal("ModelStreamInfer is answered elsewhere"))
    }
}
