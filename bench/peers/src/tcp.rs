//! One TCP connection, plain or TLS 1.3, file to file. Blocking: with one connection there is nothing to multiplex.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use serde_json::json;

use crate::{keys, report};

const BUFFER: usize = 1 << 20;
const SOCKET_BUFFER: usize = 4 << 20;

pub fn receive(file: &Path, ready: &Path, tls: Option<&Path>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    report::ready(ready, &listener.local_addr()?.to_string())?;
    let stdout = file == Path::new("-");
    let mut out: Box<dyn Write> = if stdout {
        Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    } else {
        Box::new(File::create(file).with_context(|| format!("create {}", file.display()))?)
    };
    let (socket, _) = listener.accept()?;
    let begin = Instant::now();
    let bytes = match tls {
        None => drain(socket, &mut out)?,
        Some(dir) => {
            let connection = ServerConnection::new(Arc::new(keys::server(dir)?))?;
            drain(StreamOwned::new(connection, socket), &mut out)?
        }
    };
    report::print(json!({ "seconds": begin.elapsed().as_secs_f64(), "bytes": bytes }), stdout);
    Ok(())
}

/// Writes everything, then tells the sender.
fn drain(mut from: impl Read + Write, to: &mut dyn Write) -> Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
    to.flush()?;
    from.write_all(b"k")?;
    from.flush()?;
    Ok(bytes)
}

pub fn send(addr: SocketAddr, file: &Path, tls: Option<&Path>) -> Result<()> {
    let begin = Instant::now();
    let socket = TcpStream::connect(addr)?;
    socket.set_nodelay(true)?;
    socket2::SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER)?;
    let from = if file == Path::new("-") {
        File::from(io::stdin().as_fd().try_clone_to_owned()?)
    } else {
        File::open(file).with_context(|| format!("open {}", file.display()))?
    };
    let bytes = match tls {
        None => send_plain(socket, from)?,
        Some(dir) => send_tls(socket, from, dir)?,
    };
    report::print(json!({ "seconds": begin.elapsed().as_secs_f64(), "bytes": bytes }), false);
    Ok(())
}

fn send_plain(mut socket: TcpStream, mut from: File) -> Result<u64> {
    // The standard library makes this sendfile.
    let bytes = io::copy(&mut from, &mut socket)?;
    socket.shutdown(std::net::Shutdown::Write)?;
    socket.read_exact(&mut [0])?;
    Ok(bytes)
}

fn send_tls(socket: TcpStream, mut from: File, dir: &Path) -> Result<u64> {
    let name = "localhost".try_into()?;
    let mut connection = ClientConnection::new(Arc::new(keys::client(dir)?), name)?;
    connection.set_buffer_limit(Some(2 * BUFFER));
    let mut stream = StreamOwned::new(connection, socket);
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        stream.write_all(&buffer[..read])?;
        bytes += read as u64;
    }
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.read_exact(&mut [0])?;
    Ok(bytes)
}
