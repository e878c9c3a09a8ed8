//! `etcdserverpb.Watch`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::shared::Shared;
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::{WatchRequest, WatchResponse, watch_server};
use crate::watch::StreamId;

#[derive(Debug)]
pub(super) struct Watch(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl watch_server::Watch for Watch {
    type WatchStream = Responses;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let (sender, receiver) = unbounded_channel();
        let id = self.0.open_stream(sender);
        let responses = Responses {
            shared: Arc::clone(&self.0),
            id,
            receiver,
        };
        let shared = Arc::clone(&self.0);
        let mut requests = request.into_inner();
        // Ends with the client's side of the stream; the responses live on their own.
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                take(&shared, id, request);
            }
            shared.close_stream(id);
        });
        Ok(Response::new(responses))
    }
}

fn take(shared: &Shared, id: StreamId, request: WatchRequest) {
    shared.with_hub(|hub, out| match request.request_union {
        Some(RequestUnion::CreateRequest(create)) => hub.create(id, create, out),
        Some(RequestUnion::CancelRequest(cancel)) => hub.cancel(id, cancel.watch_id, out),
        Some(RequestUnion::ProgressRequest(_)) => hub.ask_progress(id, out),
        None => {}
    });
}

/// The responses of one stream, on their way to the client. Dropping it ends the watches.
#[derive(Debug)]
pub(super) struct Responses {
    shared: Arc<Shared>,
    id: StreamId,
    receiver: UnboundedReceiver<WatchResponse>,
}

impl Stream for Responses {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.receiver.poll_recv(context);
        if let Poll::Ready(Some(_)) = &next {
            self.shared.drained(self.id);
        }
        next.map(|response| response.map(Ok))
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        self.shared.close_stream(self.id);
    }
}
