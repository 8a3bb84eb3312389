//! wrk, and what it says.

use std::io;
use std::net::SocketAddrV4;
use std::process::Command;

use sluice_hostnet::netns::Namespace;

use super::super::BenchError;
use super::super::machine::CLIENT_CPU;
use super::server::LARGE;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Small answers on connections that stay.
    KeepAlive,
    /// A small answer on each connection.
    Connections,
    /// Answers of 1 MiB on connections that stay.
    Bulk,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// Requests a second.
    pub(super) rate: f64,
    /// Percentiles of the time of a request, in microseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// Requests, and those of them that failed.
    pub(super) requests: f64,
    pub(super) failed: f64,
    /// CPU time of what stands in between, in microseconds a request.
    pub(super) cpu: f64,
}

impl Load {
    /// All, in the order of a turn.
    pub(super) const ALL: [Self; 3] = [Self::KeepAlive, Self::Connections, Self::Bulk];

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive, 32 at once",
            Self::Connections => "a connection each, 8 at once",
            Self::Bulk => "1 MiB bodies, 8 at once",
        }
    }

    const fn at_once(self) -> u32 {
        match self {
            Self::KeepAlive => 32,
            Self::Connections | Self::Bulk => 8,
        }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::KeepAlive => "/",
            Self::Connections => "/new",
            Self::Bulk => LARGE,
        }
    }

    /// Asks from the client's network for so many seconds.
    ///
    /// # Errors
    /// wrk does not run, or what it says is not understood.
    pub(super) fn run(self, client: &Namespace, to: SocketAddrV4, seconds: u32) -> Result<Measured, BenchError> {
        // wrk waits for ever where nobody answers.
        let mut command = Command::new("timeout");
        command
            .args([&(seconds + 20).to_string(), "taskset", "-c", &CLIENT_CPU.to_string(), "wrk", "-t1", "--latency"])
            .args([format!("-c{}", self.at_once()), format!("-d{seconds}s")]);
        if self == Self::Connections {
            command.args(["-H", "Connection: close"]);
        }
        command.arg(format!("http://{to}{}", self.target()));
        let ran = client.run(|| command.output()).map_err(BenchError::setup("the client cannot be entered"))?;
        let output = ran.map_err(BenchError::setup::<io::Error>("wrk cannot be run"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
        let failed = || BenchError::setup("wrk does not say what it has measured")(said.clone());
        if !output.status.success() {
            return Err(failed());
        }
        read(&text).ok_or_else(failed)
    }
}

/// Reads what wrk 4 prints.
fn read(text: &str) -> Option<Measured> {
    let line = |begin: &str| text.lines().map(str::trim).find_map(|line| line.strip_prefix(begin)).map(str::trim);
    let requests: f64 = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok())?;
    // `Socket errors: connect 0, read 0, write 0, timeout 0`, if there are any.
    let numbers = |line: &str| line.split([' ', ',']).filter_map(|word| word.parse::<f64>().ok()).sum::<f64>();
    let failed = line("Socket errors:").map_or(0.0, numbers) + line("Non-2xx or 3xx responses:").map_or(0.0, numbers);
    Some(Measured {
        rate: line("Requests/sec:")?.parse().ok()?,
        p50: micros(line("50%")?)?,
        p99: micros(line("99%")?)?,
        requests,
        failed,
        cpu: 0.0,
    })
}

/// `312.00us`, `1.06ms`, `2.00s`.
fn micros(text: &str) -> Option<f64> {
    let (number, unit) = [("us", 1.0), ("ms", 1e3), ("s", 1e6)]
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    number.parse::<f64>().ok().map(|number| number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_understood() {
        let text = "Running 1s test @ http://10.1.0.2:8081/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev     Max   \
                    +/- Stdev\n    Latency   464.66us  152.73us   1.95ms   76.79%\n    Req/Sec    68.92k     2.08k   72.06k    \
                    70.00%\n  Latency Distribution\n     50%  444.00us\n     75%  539.00us\n     90%  657.00us\n     99%    \
                    1.01ms\n  685610 requests in 10.00s, 41.84MB read\n  Socket errors: connect 0, read 3, write 0, timeout 1\n  \
                    Non-2xx or 3xx responses: 12\nRequests/sec:  68543.10\nTransfer/sec:      4.18MB\n";
        let read = read(text).unwrap();
        assert_eq!((read.rate, read.p50, read.p99), (68543.10, 444.0, 1010.0));
        assert_eq!((read.requests, read.failed), (685_610.0, 16.0));
        assert!(super::read("unable to connect to 10.1.0.2:8081 Connection refused\n").is_none());
    }
}
