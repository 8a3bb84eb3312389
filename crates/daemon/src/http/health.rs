//! What a kubelet asks: is the process alive, and does it serve.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

/// The page that fails when the process has to be started anew.
pub const ALIVE: &str = "/livez";
/// The page that fails while the process does not serve.
pub const READY: &str = "/readyz";

/// How a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Ready,
    /// It works, and does not serve yet; why, in words.
    NotReady(&'static str),
    /// Its loop does not answer.
    Silent,
}

impl Health {
    const fn alive(self) -> (StatusCode, &'static str) {
        match self {
            Self::Ready | Self::NotReady(_) => (StatusCode::OK, "ok\n"),
            Self::Silent => (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n"),
        }
    }

    const fn ready(self) -> (StatusCode, &'static str) {
        match self {
            Self::NotReady(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
            other => other.alive(),
        }
    }
}

/// The two pages. `look` is asked for each request and must end by itself within a second or two.
pub fn pages<L, F>(look: L) -> Router
where
    L: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Health> + Send + 'static,
{
    let again = look.clone();
    Router::new()
        .route(ALIVE, get(move || async move { look().await.alive() }))
        .route(READY, get(move || async move { again().await.ready() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_not_ready_lives_and_one_that_is_silent_does_neither() {
        let codes = |health: Health| (health.alive().0.as_u16(), health.ready().0.as_u16());
        assert_eq!(codes(Health::Ready), (200, 200));
        assert_eq!(codes(Health::NotReady("not yet\n")), (200, 503));
        assert_eq!(codes(Health::Silent), (503, 503));
        assert_eq!(Health::NotReady("not yet\n").ready().1, "not yet\n");
    }
}
