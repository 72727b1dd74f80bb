//! The way between a node's agent and the processes beside it: gRPC on a Unix socket, callers known by their credentials.
//!
//! The service itself is the agent's; here are the socket, who may use it, the client, and what both make of a request to
//! publish. Chunks have a socket of their own, beside that one: see [`chunks`].

pub mod chunks;
mod client;
mod connection;
mod publication;
mod socket;

pub use chunks::{MAX_SOCKET_PATH, chunk_socket};
pub use client::{Client, ClientError, FleetPart};
pub use connection::{Caller, Connection};
pub use publication::{Content, Publication, PublicationError, builder};
pub use socket::{Callers, Listener, SocketConfig, SocketError};

use crate::telemetry::trace;

/// Flow-control windows in bytes: the defaults of HTTP/2 would send 64 KiB at a time.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;

/// Largest message in bytes that brings or takes content: one chunk, or one envelope, and some room.
pub const MAX_MESSAGE: usize = 20 * 1024 * 1024;

/// Largest message in bytes that only asks: all chunks of the largest artifact, by index.
pub const MAX_QUESTION: usize = 512 * 1024;

/// A server with the limits of this socket.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(64)
        .max_frame_size(1024 * 1024)
        .trace_fn(trace::of_call)
}

/// An error and what caused it, in one line, for messages that leave the process.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let told = cause.to_string();
        // Transparent wrappers, and errors that name their cause, say it already.
        if !text.ends_with(&told) {
            text = format!("{text}: {told}");
        }
        source = cause.source();
    }
    text
}
