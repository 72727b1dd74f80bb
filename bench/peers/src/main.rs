//! The transfers that warmd is compared with: plain TCP, TLS 1.3 over TCP, bare quinn, iroh-blobs. Each end is a process; what it
//! measured goes to stdout as one line of JSON, or to stderr when stdout carries the data.

mod iroh_blobs_peer;
mod keys;
mod quic;
mod report;
mod tcp;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Transfers that only the comparison needs")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the certificate and key that the TLS and QUIC ends use.
    Keys { dir: PathBuf },
    /// Accept one TCP connection and write what comes into a file, or `-` for stdout.
    Recv {
        file: PathBuf,
        /// Written with the address once listening.
        #[arg(long)]
        ready: PathBuf,
        /// TLS 1.3 with the keys in this directory.
        #[arg(long)]
        tls: Option<PathBuf>,
    },
    /// Send a file, or `-` for stdin, and wait until the receiver says that it has written all.
    Send {
        addr: SocketAddr,
        file: PathBuf,
        #[arg(long)]
        tls: Option<PathBuf>,
    },
    /// Serve ranges of a file over QUIC until killed.
    QuicServe {
        file: PathBuf,
        #[arg(long)]
        ready: PathBuf,
        #[command(flatten)]
        tuning: quic::Tuning,
    },
    /// Fetch the file of a `quic-serve`.
    QuicGet {
        addr: SocketAddr,
        file: PathBuf,
        #[command(flatten)]
        tuning: quic::Tuning,
    },
    /// Import a tree into an iroh-blobs store and serve it until killed. The ticket goes into the ready file.
    IrohProvide {
        dir: PathBuf,
        #[arg(long)]
        store: PathBuf,
        #[arg(long)]
        ready: PathBuf,
    },
    /// Fetch a ticket into an iroh-blobs store and export the tree.
    IrohFetch {
        ticket: PathBuf,
        into: PathBuf,
        #[arg(long)]
        store: PathBuf,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Keys { dir } => keys::make(&dir),
        Command::Recv { file, ready, tls } => tcp::receive(&file, &ready, tls.as_deref()),
        Command::Send { addr, file, tls } => tcp::send(addr, &file, tls.as_deref()),
        Command::QuicServe { file, ready, tuning } => tuning.runtime()?.block_on(quic::serve(&file, &ready, &tuning)),
        Command::QuicGet { addr, file, tuning } => tuning.runtime()?.block_on(quic::get(addr, &file, &tuning)),
        Command::IrohProvide { dir, store, ready } => {
            runtime()?.block_on(iroh_blobs_peer::provide(&dir, &store, &ready))
        }
        Command::IrohFetch { ticket, into, store } => {
            runtime()?.block_on(iroh_blobs_peer::fetch(&ticket, &into, &store))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
