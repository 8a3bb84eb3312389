//! What a running process logs: a socket of root's at which its filter is asked for, or set until the process ends.
//! What is spoken there: [`sluice_contract::log`].

use std::io;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sluice_contract::log::{Answer, CONFIGURED, FILTER_LIMIT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;

use super::{ErrorChain, parse};
use crate::rpc::listen;

/// Bytes of a client that sends too much that are read to no end, so that it has the answer and no reset.
const DRAINED: u64 = 1 << 20;
/// How long a client may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Until the socket is tried again, and the attempt that is worth a word.
const AGAIN: Duration = Duration::from_secs(1);
const SAID: u32 = 5;

/// Puts another filter in force.
pub(super) type Set = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The filter of this process.
struct Levels {
    configured: String,
    current: Mutex<String>,
    set: Set,
}

static LEVELS: OnceLock<Levels> = OnceLock::new();

/// The filter with which logs were set up, and how another is put in its place.
pub(super) fn keep(filter: &str, set: Set) {
    let levels = Levels { configured: filter.to_owned(), current: Mutex::new(filter.to_owned()), set };
    // Logs are set up once in a process: so says the subscriber.
    let _second = LEVELS.set(levels);
}

/// Serves the socket for as long as it is polled. One that cannot be made is tried again.
pub async fn serve(path: &Path) {
    let mut failures = 0_u32;
    loop {
        match listen(path) {
            Ok(listener) => loop {
                match listener.accept().await {
                    // The socket's mode lets in nobody but root.
                    Ok((stream, _)) => {
                        if let Err(error) = answer(stream).await {
                            tracing::debug!(error = %error, "a client that asked what is logged was not answered");
                        }
                    }
                    Err(error) => {
                        tracing::warn!(error = %error, "a client that asks what is logged cannot be heard");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            },
            // The directory may still have to be made.
            Err(error) => {
                failures += 1;
                if failures == SAID {
                    tracing::warn!(error = %ErrorChain(&error), "what is logged cannot be changed while this process runs");
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn answer(mut stream: UnixStream) -> io::Result<()> {
    let talk = async {
        let mut asked = Vec::new();
        (&mut stream).take(FILTER_LIMIT as u64 + 1).read_to_end(&mut asked).await?;
        if asked.len() > FILTER_LIMIT {
            tokio::io::copy(&mut (&mut stream).take(DRAINED), &mut tokio::io::sink()).await?;
        }
        let answer = LEVELS.get().map_or_else(unset, |levels| match filter(&asked) {
            Ok(filter) => levels.change(filter),
            Err(error) => levels.answer(Some(error)),
        });
        let text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        stream.write_all(&text).await?;
        stream.shutdown().await
    };
    timeout(PATIENCE, talk).await.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()))
}

/// What a client has sent, if it may be a filter.
fn filter(asked: &[u8]) -> Result<&str, String> {
    if asked.len() > FILTER_LIMIT {
        return Err(format!("the filter is too long: it may have {FILTER_LIMIT} bytes; name fewer parts"));
    }
    std::str::from_utf8(asked).map(str::trim).map_err(|error| format!("the filter is no text: {error}"))
}

fn unset() -> Answer {
    let error = Some("this process has set up no logs".to_owned());
    Answer { filter: String::new(), configured: String::new(), error }
}

impl Levels {
    /// Puts a filter in force, if one is asked for.
    fn change(&self, asked: &str) -> Answer {
        let wanted = if asked == CONFIGURED { &self.configured } else { asked };
        let changed = match wanted {
            "" => Ok(()),
            filter => parse(filter).map_err(|error| ErrorChain(&error).to_string()).and_then(|parsed| {
                // One after the other, so that what is told to be in force is.
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                (self.set)(parsed).map_err(|error| error.to_string())?;
                filter.clone_into(&mut current);
                drop(current);
                tracing::info!(filter, "what is logged has changed");
                Ok(())
            }),
        };
        self.answer(changed.err())
    }

    /// What is in force, and why it is not what was asked for.
    fn answer(&self, error: Option<String>) -> Answer {
        let filter = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Answer { filter, configured: self.configured.clone(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_filter_is_asked_for_set_refused_and_taken_back() {
        let set = std::sync::Arc::new(Mutex::new(Vec::new()));
        let told = std::sync::Arc::clone(&set);
        keep(
            "info",
            Box::new(move |filter| {
                told.lock().unwrap().push(filter.to_string());
                Ok(())
            }),
        );
        let path = std::env::temp_dir().join(format!("sluice-levels-{}.sock", std::process::id()));
        let serving = tokio::spawn({
            let path = path.clone();
            async move { serve(&path).await }
        });
        let ask = async |text: &str| -> Answer {
            let mut stream = loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            stream.write_all(text.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            serde_json::from_slice(&answer).unwrap()
        };
        let is = |filter: &str| Answer { filter: filter.to_owned(), configured: "info".to_owned(), error: None };
        assert_eq!(ask("").await, is("info"));
        assert_eq!(ask("sluice=debug,warn\n").await, is("sluice=debug,warn"));
        let refused = ask("sluice=loud").await;
        assert!(refused.error.unwrap().contains("is no log filter"));
        assert_eq!(refused.filter, "sluice=debug,warn");
        // What is cut off would be another filter.
        let long = "sluice=debug,".repeat(FILTER_LIMIT);
        let refused = ask(&long).await;
        assert!(refused.error.unwrap().contains("it may have 4096 bytes"));
        assert_eq!(refused.filter, "sluice=debug,warn");
        assert_eq!(ask(CONFIGURED).await, is("info"));
        assert_eq!(set.lock().unwrap().len(), 2);
        serving.abort();
        std::fs::remove_file(path).unwrap();
    }
}
