//! Whether a process lives, and whether it can do its work: `/livez` and `/readyz` over HTTP.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What each part of a process says of itself. Its clones speak of the same process.
///
/// A process is ready when it has at least one part and all of them are ready.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// By part; `Some` says why it is not ready.
    parts: Arc<Mutex<BTreeMap<String, Option<String>>>>,
}

impl Health {
    /// The part `name` can do its work.
    pub fn ready(&self, name: &str) {
        self.set(name, None);
    }

    /// The part `name` cannot do its work, because of `why`.
    pub fn not_ready(&self, name: &str, why: impl Into<String>) {
        self.set(name, Some(why.into()));
    }

    /// Whether everything is ready.
    pub fn is_ready(&self) -> bool {
        let parts = self.parts();
        !parts.is_empty() && parts.values().all(Option::is_none)
    }

    /// What `/readyz` answers: `{"ready":false,"parts":{"broker":"connection refused","store":"ok"}}`.
    pub fn to_json(&self) -> serde_json::Value {
        let ready = self.is_ready();
        let parts = self.parts();
        let parts: serde_json::Map<_, _> =
            parts.iter().map(|(name, why)| (name.clone(), why.as_deref().unwrap_or("ok").into())).collect();
        serde_json::json!({ "ready": ready, "parts": parts })
    }

    fn set(&self, name: &str, why: Option<String>) {
        let before = self.parts().insert(name.to_owned(), why.clone());
        if before != Some(why.clone()) {
            match why {
                None => tracing::debug!(part = name, "ready"),
                Some(why) => tracing::debug!(part = name, why, "not ready"),
            }
        }
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<String>>> {
        // A map of texts is whole whoever panicked while holding it.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Binds `address` and serves `health` there until `stop`; returns the address with its real port.
pub(crate) async fn serve(address: SocketAddr, health: Health, stop: CancellationToken) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let router =
        Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(readyz)).with_state(health);
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the health server stopped");
        }
    });
    Ok(address)
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{}\n", health.to_json()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.trim().to_owned())
    }

    #[tokio::test]
    async fn a_process_is_ready_when_all_its_parts_are() {
        let (health, stop) = (Health::default(), CancellationToken::new());
        let address = serve("127.0.0.1:0".parse().unwrap(), health.clone(), stop.clone()).await.unwrap();
        assert_eq!(ask(address, "/livez").await, ("200".into(), "ok".into()));
        assert_eq!(ask(address, "/readyz").await.0, "503");
        health.ready("store");
        health.not_ready("broker", "connection refused");
        let body = r#"{"parts":{"broker":"connection refused","store":"ok"},"ready":false}"#;
        assert_eq!(ask(address, "/readyz").await, ("503".into(), body.into()));
        health.ready("broker");
        assert_eq!(ask(address, "/readyz").await.0, "200");
        stop.cancel();
    }
}
