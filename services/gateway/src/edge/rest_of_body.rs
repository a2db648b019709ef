//! Reads what a refused request still has to say, so that its client gets to know why.
//!
//! A client that is sending when the connection is closed under it sees a reset, and often not the answer that came before it. So the
//! rest of a body that nobody wants is read and dropped first, within bounds (nginx calls it a lingering close). Whoever announces more
//! than that, waits for `100 Continue`, or is over a limit, is answered at once.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

use crate::gateway::App;

/// How long a client may take for the rest.
const PATIENCE: Duration = Duration::from_secs(5);

/// Passes a request on, and reads the rest of its body if it was refused. See the module's documentation.
pub async fn read_rest(State(app): State<App>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    // Twice what is taken: a little too large is a slip, and much too large is not.
    let most = app.options.max_upload_bytes.saturating_mul(2) as u64;
    let left = Arc::new(Mutex::new(None));
    let request = request.map(|body| {
        Body::new(Lent {
            body: Some(body),
            left: left.clone(),
        })
    });
    let response = next.run(request).await;
    let rest = left.lock().take();
    if let Some(rest) = rest
        && response.status().is_client_error()
        && response.status() != StatusCode::TOO_MANY_REQUESTS
        && rest.size_hint().lower() <= most
    {
        // Whatever comes of it, the answer is the same.
        let _ = tokio::time::timeout(PATIENCE, discard(rest, most)).await;
    }
    response
}

async fn discard(mut body: Body, most: u64) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > most {
            return;
        }
    }
}

/// A body that goes back when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    left: Arc<Mutex<Option<Body>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.left.lock() = self.body.take().filter(|body| !body.is_end_stream());
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}
