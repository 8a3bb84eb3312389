//! Whether a LocalStack answers, and has EC2.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one that runs already may take.
pub(crate) const SHORT: Duration = Duration::from_secs(10);
/// How long one may take to start. A cold one has taken 14 s on two cores; what else runs there makes it longer.
pub(crate) const LONG: Duration = Duration::from_secs(90);

const PAUSE: Duration = Duration::from_millis(200);
/// What its health page may have, and then some.
const LARGEST: u64 = 64 << 10;

/// It does not answer as a LocalStack with EC2 does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    #[error("{0:?} is no address such as http://127.0.0.1:4566")]
    BadUrl(String),
    #[error("no answer of /_localstack/health said within {0:?} that EC2 is there; the last one: {1}")]
    Silent(Duration, String),
}

/// Waits until the LocalStack at `url` says that it has EC2.
pub(crate) async fn wait(url: &str, longest: Duration) -> Result<(), NotReady> {
    let host = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let host = host.filter(|host| !host.is_empty() && !host.contains('/'));
    let Some(host) = host else { return Err(NotReady::BadUrl(url.to_owned())) };
    let end = Instant::now() + longest;
    loop {
        let answer = tokio::time::timeout(SHORT, get(host)).await;
        let last = match answer {
            Ok(Ok(page)) if has_ec2(&page) => return Ok(()),
            Ok(Ok(page)) => page.chars().take(500).collect(),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "none in time".to_owned(),
        };
        if Instant::now() >= end {
            return Err(NotReady::Silent(longest, last));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn has_ec2(page: &str) -> bool {
    let page: String = page.chars().filter(|c| !c.is_whitespace()).collect();
    page.contains(r#""ec2":"running""#) || page.contains(r#""ec2":"available""#)
}

async fn get(host: &str) -> io::Result<String> {
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /_localstack/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = Vec::new();
    stream.take(LARGEST).read_to_end(&mut page).await?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ec2_has_to_be_among_the_services() {
        assert!(has_ec2("HTTP/1.1 200\r\n\r\n{\"services\": {\"ec2\": \"running\", \"s3\": \"disabled\"}}"));
        assert!(has_ec2("{\"services\": {\"ec2\" : \"available\"}}"));
        assert!(!has_ec2("{\"services\": {\"ec2\": \"disabled\"}}"));
        assert!(!has_ec2(""));
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_at_once() {
        for bad in ["127.0.0.1:4566", "https://localhost", "http://", "http://a/b"] {
            assert!(matches!(wait(bad, LONG).await, Err(NotReady::BadUrl(_))), "{bad}");
        }
    }
}
