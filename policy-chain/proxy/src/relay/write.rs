//! Writing to a connection.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::tcp::WriteHalf;

/// Writes some of `first` and then `second`, in one call of the kernel.
fn poll_two(cx: &mut Context<'_>, to: &mut WriteHalf<'_>, first: &[u8], second: &[u8]) -> Poll<io::Result<usize>> {
    let to = Pin::new(to);
    let count = ready!(match (first, second) {
        (one, []) | ([], one) => to.poll_write(cx, one),
        (first, second) => to.poll_write_vectored(cx, &[IoSlice::new(first), IoSlice::new(second)]),
    })?;
    Poll::Ready(if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) })
}

/// Writes all of `first` and then of `second`, and calls `progress` whenever some has been taken.
///
/// # Errors
/// The connection's.
pub(crate) async fn write_two(
    to: &mut WriteHalf<'_>,
    mut first: &[u8],
    mut second: &[u8],
    progress: impl Fn(usize),
) -> io::Result<()> {
    while !first.is_empty() || !second.is_empty() {
        let count = poll_fn(|cx| poll_two(cx, to, first, second)).await?;
        progress(count);
        let of_second = count.saturating_sub(first.len());
        first = first.get(count..).unwrap_or_default();
        second = second.get(of_second..).unwrap_or_default();
    }
    Ok(())
}
