//! Connections: accepted, bounded, numbered, logged, and let finish when the server stops.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, Method, Response, StatusCode};
use axum::middleware::Next;
use axum::response::IntoResponse;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::error::Problem;
use crate::config::limits;
use crate::floor::Floor;
use crate::ids::random_token;

/// After a failed accept (out of descriptors, mostly): long enough for one to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then finishes what is in flight, `limits::STOP_GRACE` at most.
pub async fn serve(floor: Arc<Floor>, listener: TcpListener, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(super::router(floor, shutdown.clone()));
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Slow heads are cut off (RFC 9112 §9.5); bodies have their own deadline.
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEAD_DEADLINE)
        .max_buf_size(limits::MAX_HTTP_HEAD);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(limits::MAX_HTTP_HEAD as u32)
        .keep_alive_interval(limits::HTTP_HEAD_DEADLINE);
    let graceful = GracefulShutdown::new();
    let seats = Arc::new(Semaphore::new(limits::MAX_HTTP_CONNECTIONS));
    loop {
        let seat = tokio::select! {
            () = shutdown.cancelled() => break,
            seat = seats.clone().acquire_owned() => seat,
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Answers are written in one go; waiting for more would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "an HTTP connection keeps its delay");
        }
        let connection = http.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _seat = seat;
            if let Err(error) = connection.await {
                tracing::debug!(error, "an HTTP connection ended badly");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(limits::STOP_GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("HTTP requests were cut off: they took longer than a stop may");
    }
}

/// Numbers the request, times it, and logs it once. The query is not logged: it may hold a key.
pub(super) async fn account(request: Request, next: Next) -> axum::response::Response {
    let id = format!("req_{}", random_token::<10>());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("http", request_id = %id);
    let begun = Instant::now();
    async move {
        let mut response = next.run(request).await;
        let status = response.status().as_u16();
        let duration_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(%method, path, status, duration_ms, "answered {method} {path} with {status}");
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("x-request-id", value);
        }
        response
    }
    .instrument(span)
    .await
}

/// A read that takes too long is given up. A write is not: its outcome would be unknown, and a 5xx would have
/// it sent again.
pub(super) async fn read_deadline(request: Request, next: Next) -> axum::response::Response {
    if request.method() != Method::GET {
        return next.run(request).await;
    }
    match tokio::time::timeout(limits::HTTP_READ_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", "The answer took too long.")
                .fix("Ask for less: a smaller `limit`, or a narrower range of time.")
                .into_response()
        }
    }
}

/// A panic is our mistake; it ends one request and no more.
pub(super) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response<axum::body::Body> {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a text");
    super::error::internal(&format!("panic: {text}")).into_response()
}
