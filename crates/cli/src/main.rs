//! `sluice`: the operator's command.
#![forbid(unsafe_code)]

mod demo;
mod exit;
mod explain;
mod files;
mod handback;
mod install;
mod paint;
mod plan;
mod policy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sluice: addresses of the VPC for pods.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a VPC in a box with two nodes and pods, and show addresses, routes, traffic and the warm pool at work.
    Demo(demo::Options),
    /// Say whether one may reach another, and which rules say so.
    Explain(explain::Options),
    /// Put the plugins and the conflist on this node, for its container runtime.
    Install(install::Options),
    /// Give this node back to the AWS VPC CNI: write the file in which it finds its pods.
    Handback(handback::Options),
    /// Say what a node's address pool will hold with given settings, before anybody runs them.
    Plan(plan::Options),
    /// Work with network policies, without a cluster.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Take Sluice off this node.
    Uninstall(install::UninstallOptions),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(told) => {
            // A closed output is no reason for another status.
            let _closed = told.print();
            return ExitCode::from(if told.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    match arguments.command {
        Command::Demo(options) => demo::main(&options),
        Command::Explain(options) => explain::main(&options),
        Command::Install(options) => install::install(&options),
        Command::Handback(options) => handback::main(&options),
        Command::Plan(options) => plan::main(&options),
        Command::Policy(command) => policy::main(&command),
        Command::Uninstall(options) => install::uninstall(&options),
    }
}
