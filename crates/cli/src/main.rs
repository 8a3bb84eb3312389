//! `sluice`: the operator's command.
#![forbid(unsafe_code)]

mod bundle;
mod config;
mod daemons;
mod demo;
mod doctor;
mod exit;
mod explain;
mod files;
mod handback;
mod install;
mod kubectl;
mod log;
mod observe;
mod paint;
mod plan;
mod policy;
mod root;
mod shell;
mod status;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Sluice: addresses of the VPC for pods.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write what is needed to find out what is wrong with this node into one archive, without secrets.
    Bundle(bundle::Options),
    /// Print what a shell needs to complete commands and options.
    Completion(shell::Completion),
    /// Bring up a VPC in a box with two nodes and pods, and show addresses, routes, traffic and the warm pool at work.
    Demo(demo::Options),
    /// Look for what breaks nodes, on this node: each finding with what it is seen by, and its mend.
    Doctor(doctor::Options),
    /// Say whether one may reach another, and which rules say so.
    Explain(explain::Options),
    /// Put the plugins and the conflist on this node, for its container runtime.
    Install(install::Options),
    /// Give this node back to the AWS VPC CNI: write the file in which it finds its pods.
    Handback(handback::Options),
    /// Say what the daemons of this node log, or have them log more or less until they end.
    Log(log::Options),
    /// Write the manual, a page for each command.
    Man(shell::Man),
    /// Show flows of this node, or of a cluster, with names, verdict, and the policy and rule that decided.
    Observe(Box<observe::Options>),
    /// Say what a node's address pool will hold with given settings, before anybody runs them.
    Plan(plan::Options),
    /// Work with network policies, without a cluster.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Take Sluice off this node.
    Uninstall(install::UninstallOptions),
    /// Say how this node is, or each of a cluster: what is wrong first, then daemons, pool, ENIs, subnets, endpoints, policy and flows.
    Status(status::Options),
}

fn main() -> ExitCode {
    let (arguments, denied) = observe::split_not(std::env::args_os().collect());
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(told) => {
            // A closed output is no reason for another status.
            let _closed = told.print();
            return ExitCode::from(if told.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    match arguments.command {
        Command::Bundle(options) => bundle::main(&options),
        Command::Completion(options) => shell::completion(&options, &mut Arguments::command()),
        Command::Demo(options) => demo::main(&options),
        Command::Doctor(options) => doctor::main(&options),
        Command::Explain(options) => explain::main(&options),
        Command::Install(options) => install::install(&options),
        Command::Handback(options) => handback::main(&options),
        Command::Log(options) => log::main(&options),
        Command::Man(options) => shell::man(&options, Arguments::command()),
        Command::Observe(options) => observe::main(&options, &denied),
        Command::Plan(options) => plan::main(&options),
        Command::Policy(command) => policy::main(&command),
        Command::Status(options) => status::main(&options),
        Command::Uninstall(options) => install::uninstall(&options),
    }
}
