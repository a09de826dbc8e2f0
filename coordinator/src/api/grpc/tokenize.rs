//! `Tokenize`, whose answer is encoded where its text was tokenised: the tokens of a long text as
//! strings take ten times what their message does, and would wait for the client in memory.

use std::sync::Arc;

use palimpsest_proto::v1::{TokenizeRequest, TokenizeResponse};
use prost::Message;
use prost::bytes::BufMut;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::http;
use tonic::codegen::{BoxFuture, Bytes};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstDecoder;

use super::timeout::grpc_timeout;
use crate::budget::Charge;
use crate::keys::Tenant;
use crate::service::{Call, Service};

/// Answers a call whose message counts against the budget already.
pub(super) async fn answer(service: Service, request: http::Request<Body>) -> http::Response<Body> {
    let limit = service.message_limit();
    Grpc::new(Encoded)
        .apply_max_message_size_config(Some(limit), None)
        .unary(Tokenize(service), request)
        .await
}

struct Tokenize(Service);

impl UnaryService<TokenizeRequest> for Tokenize {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<TokenizeRequest>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let call = Call {
                timeout: grpc_timeout(request.metadata())?,
                charge: request.extensions().get::<Charge>().cloned(),
                tenant: request.extensions().get::<Arc<Tenant>>().cloned(),
                ..Call::default()
            };
            let encode = |found: TokenizeResponse| Bytes::from(found.encode_to_vec());
            let encoded = service.tokenize_as(&call, request.into_inner(), encode);
            Ok(Response::new(encoded.await?))
        })
    }
}

/// Messages come as any other, and go as they are.
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = TokenizeRequest;
    type Encoder = Verbatim;
    type Decoder = ProstDecoder<TokenizeRequest>;

    fn encoder(&mut self) -> Verbatim {
        Verbatim
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

struct Verbatim;

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}
