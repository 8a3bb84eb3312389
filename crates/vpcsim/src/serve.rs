//! `vpcsim ec2`: the EC2 API of an empty account on a local address, without a fabric.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::SocketAddr;

use clap::Args;
use tokio::net::TcpListener;

use crate::ec2::Ec2;
use crate::imds::Imds;
use crate::live::LiveModel;
use crate::model::{Model, Settings};

/// How to serve.
#[derive(Debug, Clone, Args)]
pub struct Ec2Options {
    /// The address to listen on; port 0 takes any that is free. The address is
    /// printed once it is open.
    #[arg(long, default_value = "127.0.0.1:4599")]
    listen: SocketAddr,
    /// Also serve the metadata service of the instance that was launched first, on this address.
    #[arg(long, value_name = "ADDRESS")]
    imds_listen: Option<SocketAddr>,
    /// Answer at once: no latency, no lag, no throttling, the lowest free address first.
    #[arg(long)]
    instant: bool,
    /// Multiply every latency and lag.
    #[arg(long, value_name = "FACTOR")]
    time_scale: Option<f64>,
    /// Seed of ids, addresses and latencies.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The region.
    #[arg(long, default_value = "us-east-1")]
    region: String,
}

impl Ec2Options {
    fn settings(&self) -> Settings {
        let base = if self.instant { Settings::instant() } else { Settings::aws() };
        Settings {
            seed: self.seed,
            region: self.region.clone(),
            time_scale: self.time_scale.unwrap_or(base.time_scale),
            ..base
        }
    }
}

/// Serves until `stop` is done.
///
/// # Errors
/// When an address cannot be listened on, or standard output is closed.
pub async fn run(options: &Ec2Options, stop: impl Future<Output = ()>) -> io::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    writeln!(io::stdout(), "http://{}", listener.local_addr()?)?;
    let live = LiveModel::new(Model::new(options.settings()));
    let imds = async {
        match options.imds_listen {
            None => std::future::pending().await,
            Some(address) => {
                let listener = TcpListener::bind(address).await?;
                writeln!(io::stdout(), "http://{}", listener.local_addr()?)?;
                Imds::of_first_instance(live.clone()).serve(listener).await;
                Ok(())
            }
        }
    };
    tokio::select! {
        () = Ec2::new(live.clone()).serve(listener) => Ok(()),
        ended = imds => ended,
        () = stop => Ok(()),
    }
}
